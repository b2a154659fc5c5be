"""losses/ranking.py: by hand, against slow loops and torch, and what must not change a loss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from losses.ranking import RANKING_LOSSES, make_ranking_loss

LOG = math.log
TAU = 0.3
every_loss = pytest.mark.parametrize("name", RANKING_LOSSES)


def batch(num_questions: int = 9, num_places: int = 6, seed: int = 0, levels: int = 3):
    """Float64 scores, rewards with ties, and keep with at least one candidate a question, gaps in between."""
    generator = torch.Generator().manual_seed(seed)
    shape = num_questions, num_places
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    rewards = torch.randint(0, levels, shape, generator=generator).float() / max(levels - 1, 1)
    keep = torch.rand(shape, generator=generator) < 0.7
    keep[torch.arange(num_questions), torch.randint(0, num_places, (num_questions,), generator=generator)] = (
        True
    )
    return scores, rewards, keep


def loss_and_gradient(name, scores, rewards, keep, tau=TAU):
    leaf = scores.clone().requires_grad_()
    loss = make_ranking_loss(name, tau)(leaf, rewards, keep)
    loss.backward()
    return loss.detach(), leaf.grad


# -- by hand: one question, K = 3 -------------------------------------------------------------------------------
# scores log 1, log 2, log 5: softmax 1/8, 2/8, 5/8; of two of them 1/3, 2/3 or 1/6, 5/6 or 2/7, 5/7

SCORES = torch.tensor([[0.0, LOG(2), LOG(5)]])
ALL = torch.ones(1, 3, dtype=torch.bool)
BY_HAND = [  # loss, rewards, expected
    ("ce", [0.0, 1.0, 0.5], LOG(4)),
    ("ce", [1.0, 1.0, 0.5], (LOG(8) + LOG(4)) / 2),  # half of each best
    ("pairwise", [0.0, 1.0, 0.5], (LOG(3 / 2) + LOG(7 / 2) + LOG(6 / 5)) / 3),  # 2 > 1, 2 > 3, 3 > 1
    ("pairwise", [1.0, 1.0, 0.5], (LOG(6) + LOG(7 / 2)) / 2),  # the tie is no pair
    ("pairwise", [0.5, 0.5, 0.5], 0.0),
    ("listmle", [0.0, 1.0, 0.5], LOG(8 / 2) + LOG(6 / 5)),  # 2 of all three, 3 of {1, 3}, 1 of itself
    ("listmle", [1.0, 1.0, 0.5], LOG(8) + LOG(8 / 2)),  # 1 and 2 of all three each
    (
        "listmle",
        [0.0, 0.0, 1.0],
        LOG(8 / 5) + LOG(3) + LOG(3 / 2),
    ),  # the lowest group shares its denominator too
    ("expected_reward", [0.0, 1.0, 0.5], -(2 / 8 + 0.5 * 5 / 8)),
    # tau 1 / log 3: weights 3^r: 1, 3, 9 of 13
    ("soft_ce", [0.0, 1.0, 2.0], (LOG(8) + 3 * LOG(4) + 9 * LOG(8 / 5)) / 13),
]


@pytest.mark.parametrize("name, rewards, expected", BY_HAND)
def test_by_hand(name, rewards, expected):
    loss = make_ranking_loss(name, tau=1 / LOG(3))(SCORES, torch.tensor([rewards]), ALL)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name, rewards, expected", BY_HAND)
def test_by_hand_among_places_not_kept_and_twice(name, rewards, expected):
    wide = torch.full((2, 5), torch.nan)
    scores, given_rewards, keep = wide.clone(), wide.clone(), torch.zeros(2, 5, dtype=torch.bool)
    for row, places in enumerate(([0, 2, 4], [1, 2, 3])):
        scores[row, places], given_rewards[row, places] = SCORES[0], torch.tensor(rewards)
        keep[row, places] = True
    loss = make_ranking_loss(name, tau=1 / LOG(3))(scores, given_rewards, keep)
    assert loss.item() == pytest.approx(2 * expected, rel=1e-6, abs=1e-7)  # a sum over questions


# -- against slow loops -----------------------------------------------------------------------------------------


def slow(name: str, scores: list[float], rewards: list[float]) -> float:
    """One question's loss, one number after the other, over its real candidates."""
    n = len(scores)
    probs = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
    if name == "ce":
        best = [i for i in range(n) if rewards[i] == max(rewards)]
        return -sum(LOG(probs[i]) for i in best) / len(best)
    if name == "soft_ce":
        weights = [math.exp(r / TAU) for r in rewards]
        return -sum(w / sum(weights) * LOG(p) for w, p in zip(weights, probs))
    if name == "pairwise":
        pairs = [(i, j) for i in range(n) for j in range(n) if rewards[i] > rewards[j]]
        return sum(LOG(1 + math.exp(scores[j] - scores[i])) for i, j in pairs) / max(len(pairs), 1)
    if name == "listmle":
        order = sorted(range(n), key=lambda i: -rewards[i])
        total = 0.0
        for i in order:
            first_of_group = min(k for k, j in enumerate(order) if rewards[j] == rewards[i])
            total += LOG(sum(math.exp(scores[j]) for j in order[first_of_group:])) - scores[i]
        return total
    return -sum(p * r for p, r in zip(probs, rewards))


def slow_sum(name, scores, rewards, keep) -> float:
    kept = [[row[k].tolist() for row in (s, r)] for s, r, k in zip(scores, rewards, keep)]
    return sum(slow(name, *question) for question in kept)


@every_loss
@pytest.mark.parametrize("levels", [1, 2, 3, 1000])
def test_against_a_slow_loop(name, levels):
    question = batch(seed=levels, levels=levels)
    loss = make_ranking_loss(name, TAU)(*question)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_sum(name, *question), rel=1e-6)  # rewards are float32 in both
    # bite: another loss is told apart, where the rewards order anything
    others = [slow_sum(other, *question) for other in RANKING_LOSSES if other != name]
    assert levels == 1 or loss.item() not in [pytest.approx(other, rel=1e-6) for other in others]


def test_bite_denominators_that_shrink_within_a_tie_depend_on_the_order():
    """Plain ListMLE by a sort that happens to order the ties: another loss for the same question, reordered."""

    def by_sort(scores, rewards):
        scores = scores[rewards.argsort(descending=True, stable=True)]
        return (scores.flip(0).logcumsumexp(0).flip(0) - scores).sum()

    scores, rewards, keep = SCORES[0].double(), torch.tensor([1.0, 1.0, 0.5]), ALL
    swap, loss_fn = torch.tensor([1, 0, 2]), make_ranking_loss("listmle")
    assert by_sort(scores, rewards).item() != pytest.approx(by_sort(scores[swap], rewards[swap]).item())
    both = [loss_fn(s[None], r[None], keep) for s, r in ((scores, rewards), (scores[swap], rewards[swap]))]
    assert both[0].item() == pytest.approx(both[1].item(), rel=1e-14)
    distinct = torch.tensor([1.0, 0.2, 0.5])  # without ties both are Plackett-Luce
    assert loss_fn(scores[None], distinct[None], keep).item() == pytest.approx(
        by_sort(scores, distinct).item()
    )


# -- against torch ----------------------------------------------------------------------------------------------


def test_ce_with_one_best_is_torchs():
    scores, rewards = batch()[0], torch.rand(9, 6, generator=torch.Generator().manual_seed(1))
    keep = torch.ones(9, 6, dtype=torch.bool)
    expected = F.cross_entropy(scores, rewards.argmax(dim=1), reduction="sum")
    for name, tau in (("ce", TAU), ("soft_ce", 1e-5)):  # near tau 0 the soft target is the best alone
        found = make_ranking_loss(name, tau)(scores, rewards, keep)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    expected = F.cross_entropy(scores, (rewards.double() / TAU).softmax(dim=1), reduction="sum")
    found = make_ranking_loss("soft_ce", TAU)(scores, rewards, keep)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_pairwise_of_two_is_torchs_logistic_loss():
    scores, keep = batch(num_places=2)[0], torch.ones(9, 2, dtype=torch.bool)
    found = make_ranking_loss("pairwise")(scores, torch.tensor([[0.0, 1.0]]).expand(9, 2), keep)
    expected = F.binary_cross_entropy_with_logits(
        scores[:, 1] - scores[:, 0], torch.ones(9).double(), reduction="sum"
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# -- gradients --------------------------------------------------------------------------------------------------


@every_loss
def test_gradients_in_float64(name):
    scores, rewards, keep = batch(4)
    loss_fn = make_ranking_loss(name, TAU)
    assert torch.autograd.gradcheck(lambda x: loss_fn(x, rewards, keep), scores.requires_grad_())


@every_loss
def test_a_step_against_the_gradient_orders_the_candidates(name):
    scores, rewards, keep = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.5]]), ALL
    for _ in range(200):
        scores = scores - 0.5 * loss_and_gradient(name, scores, rewards, keep, tau=0.1)[1]
    assert scores.argmax().item() == 1


@every_loss
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 3e38])
def test_places_not_kept_change_no_bit(name, junk):
    scores, rewards, keep = batch()
    scores = scores.float()
    clean = loss_and_gradient(name, scores, rewards, keep)
    dirty = loss_and_gradient(name, scores.masked_fill(~keep, junk), rewards.masked_fill(~keep, junk), keep)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty))
    assert (dirty[1][~keep] == 0).all()
    assert dirty[1].isfinite().all()


@every_loss
def test_a_question_without_candidates_adds_nothing(name):
    scores, rewards, keep = batch(4)
    loss, gradient = loss_and_gradient(name, scores, rewards, keep)
    keep = torch.cat([keep, torch.zeros(2, 6, dtype=torch.bool)])
    more = loss_and_gradient(
        name, F.pad(scores, (0, 0, 0, 2)), F.pad(rewards, (0, 0, 0, 2), value=math.nan), keep
    )
    torch.testing.assert_close(more[0], loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(more[1], F.pad(gradient, (0, 0, 0, 2)), rtol=1e-14, atol=0)


@every_loss
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_scores_are_finite(name, size):
    _, rewards, keep = batch(40, levels=2)
    scores = size * torch.randint(-1, 2, rewards.shape, generator=torch.Generator().manual_seed(2)).float()
    loss, gradient = loss_and_gradient(name, scores, rewards, keep, tau=1e-3)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@every_loss
def test_a_shift_of_all_scores_changes_nothing(name):
    scores, rewards, keep = batch()
    one, other = (loss_and_gradient(name, s, rewards, keep) for s in (scores, scores + 1000))
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- order, precision, cuts -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(RANKING_LOSSES), st.integers(0, 999), st.integers(1, 4))
def test_the_order_of_candidates_does_not_matter(name, seed, levels):
    question = batch(5, seed=seed, levels=levels)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    loss, gradient = loss_and_gradient(name, *question)
    moved, moved_gradient = loss_and_gradient(name, *(a[:, order] for a in question))
    torch.testing.assert_close(moved, loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(moved_gradient, gradient[:, order], rtol=1e-12, atol=1e-14)


@every_loss
def test_any_cut_of_a_batch_gives_the_same_sum(name):
    scores, rewards, keep = batch()
    whole, gradient = loss_and_gradient(name, scores, rewards, keep)
    parts = [
        loss_and_gradient(name, *cut) for cut in zip(*(a.split([2, 4, 3]) for a in (scores, rewards, keep)))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.cat([g for _, g in parts]), gradient, rtol=1e-13, atol=1e-15)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(name, dtype):
    scores, rewards, keep = batch(300)
    rounded, loss_fn = scores.to(dtype), make_ranking_loss(name, TAU)
    found = loss_fn(rounded, rewards, keep)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss_fn(rounded.float(), rewards, keep))  # bitwise


def test_other_names_and_taus_are_errors():
    assert RANKING_LOSSES == ("ce", "soft_ce", "pairwise", "listmle", "expected_reward")
    with pytest.raises(ValueError, match="'hinge': expected one of ce, soft_ce"):
        make_ranking_loss("hinge")
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tau must be a number above 0"):
            make_ranking_loss("soft_ce", tau)
