"""R-Drop's divergence: by hand, against torch's kl_div and Bernoulli, its gradient, additive over rows."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from losses.regularisers import symmetric_divergence


def test_two_classes_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): (p - q)(log p - log q) summed is (1/4)(log 2 - log 2/3)."""
    scores = torch.zeros(1, 2)
    others = torch.tensor([[0.0, math.log(3)]])
    expected = 0.25 * (math.log(2) - math.log(2 / 3)) / 2
    assert float(symmetric_divergence(scores, others, False)) == pytest.approx(expected)


@pytest.mark.parametrize("several", [False, True])
def test_it_is_torchs_divergence_both_ways(several):
    generator = torch.Generator().manual_seed(0)
    scores, others = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64) * 3
    kind = (lambda x: Bernoulli(logits=x)) if several else (lambda x: Categorical(logits=x))
    both = kl_divergence(kind(scores), kind(others)) + kl_divergence(kind(others), kind(scores))
    torch.testing.assert_close(symmetric_divergence(scores, others, several), both.sum() / 2)


@pytest.mark.parametrize("several", [False, True])
def test_it_is_a_sum_over_rows_and_zero_for_equal_scores(several):
    scores, others = torch.randn(2, 6, 4, dtype=torch.float64)
    parts = sum(symmetric_divergence(scores[k : k + 2], others[k : k + 2], several) for k in (0, 2, 4))
    torch.testing.assert_close(symmetric_divergence(scores, others, several), parts)
    assert float(symmetric_divergence(scores, scores, several)) == 0


@pytest.mark.parametrize("several", [False, True])
def test_both_passes_learn_from_it(several):
    scores, others = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: symmetric_divergence(a, b, several), (scores.requires_grad_(), others.requires_grad_())
    )


def test_half_precision_is_summed_in_float32():
    scores = torch.tensor([[30.0, -30.0]], dtype=torch.bfloat16)
    found = symmetric_divergence(scores, -scores, False)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(60.0, rel=1e-4)
