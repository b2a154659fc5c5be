"""losses/ppo.py, of labels that were given: by hand, against torch.distributions, and what is not known."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence
from torch.nn import functional as F

from losses.ppo import known_cross_entropy, label_divergence, label_log_probs, leave_one_out

LOG = math.log
F64 = partial(torch.tensor, dtype=torch.float64)
close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)
KINDS = pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])


def batch(several: bool, num_rows: int = 7, num_classes: int = 4, seed: int = 0):
    """Float64 scores of two classifiers, labels given, true labels, and whose are known."""
    generator = torch.Generator().manual_seed(seed)
    scores, others = torch.randn(2, num_rows, num_classes, generator=generator, dtype=torch.float64) * 3
    shape = (num_rows, num_classes) if several else (num_rows,)
    actions, truth = (torch.randint(2 if several else num_classes, shape, generator=generator) for _ in "ab")
    known = torch.arange(num_rows) % 3 != 1
    return scores, others, actions.to(torch.uint8 if several else torch.int64), truth, known


def slope(function, scores: torch.Tensor) -> torch.Tensor:
    """The gradient of the sum of what the function gives, by the scores."""
    scores = scores.detach().clone().requires_grad_()
    return torch.autograd.grad(function(scores).sum(), scores)[0]


# -- log-probabilities of labels ---------------------------------------------------------------------------------


def test_log_probs_by_hand():
    scores = F64([[5.0, 5 + LOG(3)], [0.0, 0.0]])  # p = 1/4, 3/4 and 1/2, 1/2
    close(label_log_probs(scores, torch.tensor([1, 0]), False), F64([[LOG(3 / 4)], [LOG(1 / 2)]]))
    wanted = F64([[3 / 4, -3 / 4], [1 / 2, -1 / 2]])  # of label 0: one at its place, less p
    close(slope(lambda s: label_log_probs(s, torch.tensor([0, 0]), False), scores), wanted)
    scores, given = (
        F64([[LOG(3), 0.0, -LOG(4)]]),
        torch.tensor([[1, 0, 0]], dtype=torch.uint8),
    )  # 3/4, 1/2, 1/5
    close(label_log_probs(scores, given, True), F64([[LOG(3 / 4), LOG(1 / 2), LOG(4 / 5)]]))
    close(slope(lambda s: label_log_probs(s, given, True), scores), F64([[1 / 4, -1 / 2, -1 / 5]]))


@KINDS
def test_log_probs_are_those_of_torch_s_distributions(several):
    scores, _, actions, _, _ = batch(several)
    found = label_log_probs(scores, actions, several)

    def wanted(s: torch.Tensor) -> torch.Tensor:
        if several:
            return Bernoulli(logits=s).log_prob(actions.double())
        return Categorical(logits=s).log_prob(actions)[:, None]

    assert found.shape == ((7, 4) if several else (7, 1))
    close(found, wanted(scores))
    close(slope(lambda s: label_log_probs(s, actions, several), scores), slope(wanted, scores))


def test_the_sets_of_several_labels_sum_to_one():
    """The C numbers of a row are choices of their own: over all 2^C sets their products are a distribution."""
    scores = batch(True)[0][:1]
    sets = torch.cartesian_prod(*[torch.arange(2)] * 4)
    close(label_log_probs(scores.expand(16, 4), sets, True).sum(dim=1).exp().sum(), F64(1.0))


# -- divergence -------------------------------------------------------------------------------------------------


def test_divergence_by_hand():
    p, q = F64([[0.0, LOG(3)]]), F64([[2.0, 2.0]])  # 1/4, 3/4 from 1/2, 1/2
    close(label_divergence(p, q, False), F64([LOG(1 / 2) / 4 + 3 * LOG(3 / 2) / 4]))
    close(
        label_divergence(q, p, False), F64([LOG(2) / 2 + LOG(2 / 3) / 2])
    )  # not the same the other way round
    p, q = F64([[LOG(3), 0.0]]), F64([[0.0, 0.0]])  # labels of 3/4 and 1/2, from 1/2 and 1/2
    close(label_divergence(p, q, True), F64([3 * LOG(3 / 2) / 4 + LOG(1 / 2) / 4]))
    close(label_divergence(q, p, True), F64([LOG(2 / 3) / 2 + LOG(2) / 2]))


@KINDS
def test_divergence_is_that_of_torch_s_distributions(several):
    scores, others, *_ = batch(several)

    def wanted(s: torch.Tensor) -> torch.Tensor:
        kind = Bernoulli if several else Categorical
        found = kl_divergence(kind(logits=s), kind(logits=others))
        return found.sum(dim=1) if several else found

    found = label_divergence(scores, others, several)
    assert found.shape == (7,)
    assert (found > 0).all()
    close(found, wanted(scores))
    close(slope(lambda s: label_divergence(s, others, several), scores), slope(wanted, scores))
    close(label_divergence(scores, scores, several), torch.zeros(7, dtype=torch.float64))
    at_start = slope(lambda s: label_divergence(s, scores, several), scores)
    close(at_start, torch.zeros(7, 4, dtype=torch.float64))  # where it is 0 it pulls nowhere


@KINDS
def test_sure_classifiers_are_finite(several):
    scores = torch.tensor([[1e4, -1e4], [-200.0, 200.0]])
    actions = torch.tensor([[0, 1], [1, 1]]) if several else torch.tensor([1, 1])
    for found in (
        label_log_probs(scores, actions, several),
        label_divergence(scores, -scores, several),
        slope(lambda s: label_divergence(s, -scores, several), scores),
        slope(lambda s: label_log_probs(s, actions, several), scores),
    ):
        assert found.isfinite().all()
    assert label_divergence(scores, -scores, several)[1].item() == pytest.approx(2 * 200 if several else 400)


# -- baseline ---------------------------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    close(leave_one_out(F64([1.0, 0.0, 0.5])), F64([1 - 0.25, 0 - 0.75, 0.5 - 0.5]))
    close(leave_one_out(F64([0.2, 1.0])), F64([-0.8, 0.8]))
    close(leave_one_out(F64([0.7])), F64([0.0]))  # nobody to compare with
    assert leave_one_out(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("num_rows", [2, 3, 50])
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(num_rows):
    rewards = torch.rand(num_rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = leave_one_out(rewards)
    others = [torch.cat([rewards[:k], rewards[k + 1 :]]).mean() for k in range(num_rows)]
    close(found, rewards - torch.stack(others))
    assert abs(found.mean().item()) < 1e-15
    close(leave_one_out(rewards + 5), found)  # a constant teaches nothing


# -- true labels ------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    scores, known = F64([[0.0, LOG(3)], [0.0, 0.0], [9.0, 0.0]]), torch.tensor([True, True, False])
    close(known_cross_entropy(scores, torch.tensor([0, 1, 0]), known, False), F64(LOG(4) + LOG(2)))  # a sum
    truth = F64([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    wanted = LOG(2) + LOG(4) + 2 * LOG(2)  # 1/2, 1 - 3/4; 1/2, 1/2
    close(known_cross_entropy(scores, truth, known, True), F64(wanted))


@KINDS
def test_cross_entropy_is_torch_s_over_the_known_rows(several):
    scores, _, _, truth, known = batch(several)
    truth = truth.float() if several else truth

    def wanted(s: torch.Tensor) -> torch.Tensor:
        if several:
            return F.binary_cross_entropy_with_logits(s[known], truth[known].double(), reduction="sum")
        return F.cross_entropy(s[known], truth[known], reduction="sum")

    found = partial(known_cross_entropy, truth=truth, known=known, several=several)
    close(found(scores), wanted(scores))
    close(slope(found, scores), slope(wanted, scores))
    assert (slope(found, scores)[~known] == 0).all()
    nobody = partial(known_cross_entropy, truth=truth, known=torch.zeros_like(known), several=several)
    assert nobody(scores) == 0
    assert (slope(nobody, scores) == 0).all()


@pytest.mark.parametrize(
    "several, junk", [(False, -1), (False, 99), (False, -100), (True, 7.0), (True, math.nan)]
)
def test_what_stands_where_the_truth_is_unknown_changes_no_bit(several, junk):
    scores, _, _, truth, known = batch(several)
    truth = truth.float() if several else truth
    other = truth.clone()
    other[~known] = junk
    clean, dirty = (
        partial(known_cross_entropy, truth=t, known=known, several=several) for t in (truth, other)
    )
    assert torch.equal(clean(scores), dirty(scores))
    assert torch.equal(slope(clean, scores), slope(dirty, scores))


# -- types ------------------------------------------------------------------------------------------------------


@KINDS
def test_bfloat16_scores_are_computed_in_float32(several):
    scores, others, actions, truth, known = batch(several)
    scores, others = scores.bfloat16(), others.bfloat16()
    truth = truth.float() if several else truth
    for function in (
        lambda s: label_log_probs(s, actions, several),
        lambda s: label_divergence(s, others, several),
        lambda s: known_cross_entropy(s, truth, known, several),
    ):
        assert function(scores).dtype == torch.float32
        assert torch.equal(function(scores), function(scores.float()))
        assert torch.equal(slope(function, scores), slope(function, scores.float()).bfloat16())
        assert function(scores.double()).dtype == torch.float64
    mixed = label_divergence(
        scores, others.float(), several
    )  # scores of a start are float32, of a cut bfloat16
    assert torch.equal(mixed, label_divergence(scores.float(), others.float(), several))
