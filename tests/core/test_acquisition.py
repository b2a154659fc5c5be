"""core/acquisition.py: margins and residuals by hand, BADGE and core-set against the slow way."""

import numpy as np
import pytest
import torch
from scipy.special import logit
from scipy.stats import chisquare

from core.acquisition import badge, coreset, margins, residuals


def test_margins_by_hand():
    probs = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
    assert np.allclose(margins(np.log(probs), False), [0.2, 0.7, 0])


def test_margins_of_label_sets_by_hand():
    probs = np.array([[0.9, 0.5], [0.1, 0.7], [0.02, 0.01]])
    assert np.allclose(margins(logit(probs), True), [0, 0.4, 0.96])


def test_a_sure_label_is_told_from_a_surer_one():
    assert margins(np.array([[30.0]]), True) < margins(np.array([[35.0]]), True)


def test_residuals_by_hand():
    assert np.allclose(residuals(np.log([[0.5, 0.3, 0.2]]), False), [[-0.5, 0.3, 0.2]])
    assert np.allclose(residuals(logit(np.array([[0.9, 0.5, 0.2]])), True), [[-0.1, -0.5, 0.2]])


@pytest.mark.parametrize("multi_label", [False, True])
def test_residual_times_state_is_the_gradient_of_the_last_layer(multi_label):
    rng = np.random.default_rng(0)
    states, weight = torch.tensor(rng.normal(size=(5, 4))), torch.tensor(rng.normal(size=(3, 4)))
    weight.requires_grad_(True)
    logits = states @ weight.T
    made = residuals(logits.detach().numpy(), multi_label)
    for row in range(5):
        if multi_label:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits[row], (logits[row] >= 0).double(), reduction="sum"
            )
        else:
            loss = torch.nn.functional.cross_entropy(logits[row], logits[row].argmax())
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert np.allclose(np.outer(made[row], states[row]), gradient)


def slow_badge(gradients: np.ndarray, num_rows: int, rng: np.random.Generator) -> list[int]:
    """k-means++ on the gradients themselves."""
    chosen = [int((gradients**2).sum(axis=1).argmax())]
    while len(chosen) < num_rows:
        away = ((gradients[:, None] - gradients[chosen]) ** 2).sum(axis=2).min(axis=1)
        chosen.append(int(rng.choice(len(gradients), p=away / away.sum())))
    return chosen


def some_rows(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return residuals(rng.normal(size=(num_rows, 3)), False), rng.normal(size=(num_rows, 4)).astype(np.float32)


def test_badge_draws_what_the_whole_gradients_draw():
    residual, states = some_rows(60)
    whole = np.einsum("nc,nd->ncd", residual, states).reshape(60, -1)
    found = badge(residual, states, 20, np.random.default_rng(7))
    assert found.tolist() == slow_badge(whole, 20, np.random.default_rng(7))


def test_badge_draws_by_the_squared_distance():
    residual, states = (
        np.array([[1.0], [1.0], [1.0]]),
        np.array([[3.0], [2.0], [1.0]]),
    )  # 1 and 2 from the first
    second = [badge(residual, states, 2, np.random.default_rng(seed))[1] for seed in range(500)]
    assert chisquare(np.bincount(second, minlength=3)[1:], [100, 400]).pvalue > 1e-3


def test_badge_draws_no_row_twice_even_among_equal_ones():
    residual, states = np.ones((6, 2)), np.ones((6, 3))
    assert sorted(badge(residual, states, 6, np.random.default_rng(0))) == list(range(6))
    assert sorted(badge(residual * 0, states, 9, np.random.default_rng(0))) == list(range(6))


def test_coreset_by_hand():
    states = np.array([[0.0], [1.0], [4.0], [10.0], [-3.0]])
    # from 0: 10 is farthest, then 4 (4 from 0), then -3, then 1
    assert coreset(states, np.array([[0.0]]), 4).tolist() == [3, 2, 4, 1]
    assert coreset(states, np.array([[0.0], [9.0]]), 1).tolist() == [2]


def test_coreset_against_the_slow_way():
    rng = np.random.default_rng(1)
    states, labelled, chosen = rng.normal(size=(50, 5)), rng.normal(size=(8, 5)), []
    for _ in range(12):
        centres = np.concatenate([labelled, states[chosen]])
        chosen.append(int(np.linalg.norm(states[:, None] - centres, axis=2).min(axis=1).argmax()))
    assert coreset(states, labelled, 12).tolist() == chosen


def test_coreset_chooses_no_row_twice_even_among_equal_ones():
    assert coreset(np.ones((4, 2)), np.ones((1, 2)), 9).tolist() == [0, 1, 2, 3]
