"""core/rollouts.py: a bandit that tells what was asked and counts it, draws that follow the policy, values by hand."""

import math
import warnings

import numpy as np
import pytest
import torch

from core.rank_batches import make_rank_cut
from core.rank_cache import rows_in_memory
from core.rollouts import Bandit, Rollout, draw_choices, explained_variance, minibatches, nothing_chosen
from losses.ppo import policy_log_probs

REWARDS = [[0.5, 1.0], [2.0, 0.0, 2.0], [-1.0, -3.0], [0.0], [0.25, 0.0, 0.75]]  # of five questions, K = 3


def bandit(rewards=REWARDS) -> Bandit:
    coded = [([5, 6], [[7]] * len(own), 0) for own in rewards]
    return Bandit(rows_in_memory(coded, rewards, "here"))


# -- what is told, and what it costs ----------------------------------------------------------------------------


def test_tells_the_rewards_of_the_choices_and_counts_them():
    people = bandit()
    found = people.tell(torch.tensor([4, 0, 1]), torch.tensor([[2, 0], [1, 0], [1, 2]]))
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.75, 0.25], [1.0, 0.5], [0.0, 2.0]]
    assert people.told == 6
    assert people.tell(torch.tensor([0, 0]), torch.tensor([[1, 1, 1], [0, 1, 0]])).tolist() == [
        [1.0, 1.0, 1.0],
        [0.5, 1.0, 0.5],
    ]
    assert people.told == 12  # asked again is told again


def test_tells_nothing_of_the_others():
    """Whatever the rewards of what was not chosen: the answer is the same."""
    questions, choices = torch.tensor([1, 4, 0]), torch.tensor([[0, 2], [1, 1], [0, 0]])
    other = [[0.5, 9.0], [2.0, 9.0, 2.0], [9.0, 9.0], [9.0], [9.0, 0.0, 9.0]]
    assert torch.equal(bandit().tell(questions, choices), bandit(other).tell(questions, choices))


def test_tells_all_candidates_and_counts_those_that_are_there():
    people = bandit()
    found = people.tell_all(torch.tensor([3, 1, 0, 1]))
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.0, 0.0, 0.0], [2.0, 0.0, 2.0], [0.5, 1.0, 0.0], [2.0, 0.0, 2.0]]
    assert people.told == 1 + 3 + 2 + 3
    people.tell(torch.tensor([1]), torch.tensor([[0]]))
    assert people.told == 10
    assert people.tell_all(torch.tensor([0])).tolist() == [[0.5, 1.0, 0.0]]  # what was told stays as it was


# -- how good choices were --------------------------------------------------------------------------------------


def test_the_score_of_a_rollout_by_hand():
    people = bandit()
    questions = torch.tensor([0, 1, 2, 4])
    choices = torch.tensor([[0, 1, 1, 1], [0, 2, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    found = people.score(questions, choices, torch.full((4, 4), 0.25))
    rewards = [(0.5 + 3) / 4, (2 + 2) / 4, (-1 - 9) / 4, 0.0]
    assert found["reward"] == pytest.approx(sum(rewards) / 4)
    assert found["reward_ratio"] == pytest.approx((rewards[0] / 1 + rewards[1] / 2 + 0 / 0.75) / 3)
    assert found["accuracy"] == pytest.approx((3 + 2 + 1 + 0) / 16)  # any of the best, also below 0
    assert found["picked"] == pytest.approx([3 / 16, 12 / 16, 1 / 16])
    assert people.told == 0
    assert isinstance(found["reward"], float)


def test_the_score_of_the_expectation_over_all_candidates():
    """Places without a candidate have weight 0 and no part, though a reward of 0 would be the best."""
    questions, everything = torch.tensor([2, 0, 4]), torch.arange(3).expand(3, -1)
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])
    found = bandit().score(questions, everything, weights)
    rewards = [-2.0, 0.125 + 0.75, 0.125 + 0.1875]
    assert found["reward"] == pytest.approx(sum(rewards) / 3)
    assert found["reward_ratio"] == pytest.approx((rewards[1] / 1 + rewards[2] / 0.75) / 2)
    assert found["accuracy"] == pytest.approx((0.5 + 0.75 + 0.25) / 3)
    assert found["picked"] == pytest.approx([1.25 / 3, 1.5 / 3, 0.25 / 3])


def test_without_a_reward_above_zero_there_is_no_ratio():
    found = bandit().score(torch.tensor([2, 3]), torch.tensor([[0], [0]]), torch.ones(2, 1))
    assert found == {"reward": -0.5, "reward_ratio": 0.0, "accuracy": 1.0, "picked": [1.0, 0.0, 0.0]}


# -- draws ------------------------------------------------------------------------------------------------------

KEEP = torch.tensor([[True, True, False, True], [False, True, False, False], [True] * 4, [True] * 4])
SCORES = torch.tensor([[0.0, 1.0, 9.0, -1.0], [9.0, 0.0, 9.0, 9.0], *[[0.5, 0.0, -2.0, 0.3]] * 2])
LOG_PROBS = policy_log_probs(SCORES, KEEP)  # 0 at places without a candidate, where exp gives 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_follow_the_policy(dtype):
    count = 50_000
    choices = draw_choices(LOG_PROBS.to(dtype), KEEP, count, seed=1)
    assert (choices.shape, choices.dtype) == ((4, count), torch.int64)
    found = torch.stack([row.bincount(minlength=4) for row in choices]) / count
    wanted = SCORES.double().masked_fill(~KEEP, -math.inf).softmax(dim=1)
    assert ((found - wanted).abs() <= 4 * (wanted * (1 - wanted) / count).sqrt()).all()
    assert not found[~KEEP].any()  # never a place without a candidate
    pair = (choices[2] == choices[3]).double().mean()  # alike policies, draws of their own
    chance = wanted[2].square().sum()
    assert abs(pair - chance) <= 4 * math.sqrt(chance * (1 - chance) / count)


def test_draws_hang_on_the_seed_alone():
    first, again, other = (draw_choices(LOG_PROBS, KEEP, 40, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(draw_choices(LOG_PROBS, KEEP, 40, 3), first)
    assert torch.equal(torch.get_rng_state(), before)


# -- a rollout and its parts ------------------------------------------------------------------------------------


def rollout(num_questions: int = 5, num_choices: int = 2, num_places: int = 3) -> Rollout:
    """One whose every number is another."""
    sizes = [num_choices] * 5 + [0] + [num_places] * 2
    parts = []
    for k, size in enumerate(sizes):
        part = 100.0 * k + torch.arange(num_questions * (size or 1))
        parts.append(part.view(num_questions, size) if size else part)
    return Rollout(parts[0].long(), *parts[1:])


def test_the_part_of_some_questions():
    whole = rollout()
    part = whole.of(torch.tensor([3, 0, 3]))
    assert isinstance(part, Rollout)
    for name, mine, all_of_it in zip(Rollout._fields, part, whole):
        assert torch.equal(mine, all_of_it[[3, 0, 3]]), name
        assert mine.dtype == (torch.int64 if name == "choices" else torch.float32)
    assert part.old_values.tolist() == [503.0, 500.0, 503.0]


def test_all_of_a_rollout_goes_to_the_device():
    moved = rollout().to(torch.device("meta"))
    assert isinstance(moved, Rollout)
    assert {part.device.type for part in moved} == {"meta"}


@pytest.mark.parametrize("num_choices", [0, 1, 4])
def test_a_rollout_for_probes_has_the_shape_of_a_real_one(num_choices):
    prefixes, branches = [np.array([5, 6])] * 2, [[np.array([7])] * 2, [np.array([8])] * 3]
    cut = make_rank_cut(prefixes, branches, np.arange(2), np.zeros(5, np.float32), 4, "shared", 0)
    found, real = nothing_chosen(cut, num_choices), rollout(2, num_choices or 4, 4)
    assert [(part.shape, part.dtype) for part in found] == [(part.shape, part.dtype) for part in real]
    assert not any(part.any() for part in found)
    assert LOG_PROBS[:2].gather(1, found.choices).shape == (2, num_choices or 4)


# -- the value's worth, and batches -----------------------------------------------------------------------------


def test_explained_variance_by_hand():
    values, rewards = torch.tensor([1.0, 3.0]), torch.tensor([[0.0, 2.0], [2.0, 6.0]])
    assert explained_variance(values, rewards) == pytest.approx(1 - 11 / 19)  # of r - V: -1, 1, -1, 3
    assert explained_variance(values + 7, rewards) == pytest.approx(1 - 11 / 19)
    assert explained_variance(torch.zeros(2), rewards) == 0
    assert explained_variance(torch.tensor([1.0, 4.0]), torch.tensor([[1.0], [4.0]])) == 1
    assert explained_variance(torch.tensor([4.0, 1.0]), torch.tensor([[1.0], [4.0]])) == pytest.approx(-3)
    assert isinstance(explained_variance(values, rewards), float)


@pytest.mark.parametrize("rewards", [[[0.5, 0.5], [0.5, 0.5]], [[0.1]] * 64, [[1.0]]], ids=["4", "64", "1"])
def test_rewards_that_do_not_vary_leave_nothing_to_explain(rewards):
    rewards = torch.tensor(rewards)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explained_variance(torch.arange(len(rewards)).float(), rewards) is None


@pytest.mark.parametrize("num_questions, size, sizes", [
    (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (5, 1, [1] * 5), (64, 16, [16] * 4),
])  # fmt: skip
def test_every_question_stands_in_one_batch(num_questions, size, sizes):
    batches = minibatches(num_questions, size, seed=2)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_questions))


def test_the_order_of_batches_hangs_on_the_seed():
    first, again, other = (np.concatenate(minibatches(64, 16, seed)).tolist() for seed in (2, 2, 3))
    assert first == again
    assert first != other
    assert first != sorted(first)
