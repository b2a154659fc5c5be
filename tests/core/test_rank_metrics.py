"""core/rank_metrics.py against values worked out by hand, scikit-learn, and every order of tied candidates."""

import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from core.rank_metrics import (
    binomial_interval,
    group_metrics,
    pick_calibration,
    rankable,
    ranking_baselines,
    ranking_metrics,
)
from losses.ranking import make_ranking_loss

NAN = np.nan
ORDERED = ("mrr", "map", "ndcg")


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _questions(num_questions=60, num_places=5, levels=3, score_levels=None, seed=0):
    """Scores and rewards with gaps; every question can be ranked; score_levels None has no tied scores."""
    rng = np.random.default_rng(seed)
    shape = 4 * num_questions, num_places
    rewards = rng.integers(0, levels, shape) / (levels - 1)
    rewards[rng.random(shape) < 0.2] = NAN
    scores = rng.normal(size=shape) if score_levels is None else rng.integers(0, score_levels, shape) * 1.0
    can = np.array([len(set(row[~np.isnan(row)])) > 1 for row in rewards])
    return scores[can][:num_questions], rewards[can][:num_questions]


def _by_question(scores, rewards):
    """The kept candidates of each question."""
    for row, truth in zip(scores, rewards):
        keep = ~np.isnan(truth)
        yield row[keep], truth[keep]


# -- by hand ----------------------------------------------------------------------------------------------------

# picks: place 2 (best, reward 1), place 0 (0.5 of best 1), place 1 (0 of best 0.5; place 2 holds no candidate)
SCORES = np.log([[1.0, 2.0, 5.0], [4.0, 2.0, 2.0], [1.0, 3.0, 9.0]])
REWARDS = np.array([[0.0, 0.5, 1.0], [0.5, 1.0, 0.0], [0.5, 0.0, NAN]])


def test_by_hand():
    got = ranking_metrics(SCORES, REWARDS)
    assert got["accuracy"] == pytest.approx(1 / 3)
    assert got["reward_ratio"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert got["average_reward"] == pytest.approx((1 + 0.5 + 0) / 3)
    # ranks of the best: 1; 2 or 3, each half the time; 2
    assert got["mrr"] == got["map"] == pytest.approx((1 + (1 / 2 + 1 / 3) / 2 + 1 / 2) / 3)
    two, three = 1 / np.log2(3), 1 / 2  # discounts of ranks 2 and 3
    ideal = 1 + 0.5 * two
    ndcg = [1, (0.5 + 1.0 * (two + three) / 2) / ideal, 0.5 * two / 0.5]
    assert got["ndcg"] == pytest.approx(np.mean(ndcg))
    # probabilities of the best: 5 of 8, 2 of 8, 1 of 4
    assert got["loss"] == pytest.approx((np.log(8 / 5) + np.log(4) + np.log(4)) / 3)
    assert (got["n"], got["num_skipped"]) == (3, 0)
    assert got["picks_by_position"] == [1, 1, 1]
    assert got["best_by_position"] == [1, 1, 1]
    assert got["chance_by_position"] == pytest.approx([1 / 3 + 1 / 3 + 1 / 2] * 2 + [2 / 3])


def test_several_best_share_the_target_and_their_place():
    got = ranking_metrics(np.log([[1.0, 2.0, 5.0]]), np.array([[1.0, 0.0, 1.0]]))
    assert got["accuracy"] == 1.0
    assert got["loss"] == pytest.approx((np.log(8) + np.log(8 / 5)) / 2)
    assert got["map"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["best_by_position"] == [0.5, 0.0, 0.5]


def test_questions_that_cannot_be_ranked_are_counted_and_in_no_number():
    scores = np.vstack([SCORES, SCORES, SCORES[:1]])
    one, none = [NAN, 0.7, NAN], [NAN, NAN, NAN]
    rewards = np.vstack([REWARDS, [[0.0] * 3, [1.0] * 3, one], [none]])
    got, whole = ranking_metrics(scores, rewards), ranking_metrics(SCORES, REWARDS)
    assert got == whole | {"num_skipped": 4}
    assert got != ranking_metrics(scores, np.vstack([REWARDS, [[0.0, 0, 1]] * 4]))
    empty = ranking_metrics(scores[3:], rewards[3:])
    assert (empty["n"], empty["num_skipped"], empty["picks_by_position"]) == (0, 4, [0, 0, 0])
    assert all(
        empty[key] is None for key in ("accuracy", "accuracy_interval", "reward_ratio", "loss", *ORDERED)
    )


def test_without_a_reward_above_0_there_is_no_ratio():
    rewards = np.array([[-1.0, -0.5], [0.5, 1.0]])
    got = ranking_metrics(np.array([[1.0, 0.0], [1.0, 0.0]]), rewards)
    assert (got["n"], got["accuracy"], got["average_reward"]) == (2, 0.0, -0.25)
    assert (got["reward_ratio"], got["mrr"]) == (0.5, 0.5)  # of the second question
    assert ranking_metrics(rewards[:1], rewards[:1])["reward_ratio"] is None


# -- against scikit-learn and torch -----------------------------------------------------------------------------


@pytest.mark.parametrize("score_levels", [None, 3])
def test_ndcg_is_scikit_learns_ties_included(score_levels):
    scores, rewards = _questions(score_levels=score_levels)
    expected = [reference.ndcg_score(r[None], s[None]) for s, r in _by_question(scores, rewards)]
    assert ranking_metrics(scores, rewards)["ndcg"] == pytest.approx(np.mean(expected), rel=1e-12)


def test_map_and_mrr_are_scikit_learns_without_ties():
    scores, rewards = _questions()
    precision, ranking, reciprocal = [], [], []
    for row, truth in _by_question(scores, rewards):
        relevant = truth == truth.max()
        precision.append(reference.average_precision_score(relevant, row))
        ranking.append(reference.label_ranking_average_precision_score(relevant[None], row[None]))
        reciprocal.append(1 / (1 + np.flatnonzero(relevant[np.argsort(-row)])[0]))
    got = ranking_metrics(scores, rewards)
    assert got["map"] == pytest.approx(np.mean(precision), rel=1e-12)
    assert got["map"] == pytest.approx(np.mean(ranking), rel=1e-12)
    assert got["mrr"] == pytest.approx(np.mean(reciprocal), rel=1e-12)


@pytest.mark.parametrize("score_levels", [None, 3])
def test_loss_is_the_training_loss(score_levels):
    scores, rewards = _questions(score_levels=score_levels)
    tensors = torch.tensor(scores), torch.tensor(rewards), torch.tensor(~np.isnan(rewards))
    expected = make_ranking_loss("ce")(*tensors).item() / len(scores)
    assert ranking_metrics(scores, rewards)["loss"] == pytest.approx(expected, rel=1e-12)


# -- ties -------------------------------------------------------------------------------------------------------


def _over_all_orders(score, reward) -> dict:
    """The three metrics of one question, averaged over every order that the scores allow."""
    best, found = reward.max(), []
    for order in itertools.permutations(range(len(score))):
        order = list(order)
        if (np.diff(score[order]) > 0).any():
            continue
        hits = np.flatnonzero(reward[order] == best)
        discount = 1 / np.log2(2 + np.arange(len(score)))
        found.append(
            {
                "mrr": 1 / (hits[0] + 1),
                "map": np.mean([(k + 1) / (hit + 1) for k, hit in enumerate(hits)]),
                "ndcg": reward[order] @ discount / (-np.sort(-reward) @ discount),
            }
        )
    return {key: np.mean([one[key] for one in found]) for key in ORDERED}


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("score_levels", [1, 2, 3, 50])
def test_ties_are_the_mean_over_every_order(levels, score_levels):
    scores, rewards = _questions(25, 6, levels, score_levels, seed=score_levels)
    for row, truth in zip(scores, rewards):
        got = ranking_metrics(row[None], truth[None])
        expected = _over_all_orders(*next(_by_question(row[None], truth[None])))
        assert {key: got[key] for key in ORDERED} == pytest.approx(expected, rel=1e-12)


def test_a_constant_scorer_gets_what_chance_gets():
    scores, rewards = _questions(300, 6, levels=2)
    constant, random = ranking_metrics(np.full(scores.shape, 7.0), rewards), {}
    rng = np.random.default_rng(1)
    drawn = [ranking_metrics(rng.random(scores.shape), rewards) for _ in range(150)]
    for key in (*ORDERED, "accuracy", "reward_ratio", "average_reward"):
        random[key] = np.mean([one[key] for one in drawn])
        assert ranking_baselines(rewards, scores)["random"][key] == pytest.approx(random[key], abs=0.01)
    assert {key: constant[key] for key in ORDERED} == pytest.approx({k: random[k] for k in ORDERED}, abs=0.01)
    # bite: with the best first, a sort that keeps the order of ties hands a constant scorer everything
    best_first = np.take_along_axis(rewards, np.argsort(-np.nan_to_num(rewards, nan=-1), axis=1), axis=1)
    fair = ranking_metrics(np.zeros(scores.shape), best_first)
    assert {key: fair[key] for key in ORDERED} == pytest.approx({key: constant[key] for key in ORDERED})
    by_place = ranking_metrics(-np.arange(6.0) * np.ones_like(scores), best_first)
    assert by_place["mrr"] == by_place["ndcg"] == pytest.approx(1.0)


def test_the_first_of_the_highest_scores_is_the_pick():
    got = ranking_metrics(np.array([[0.0, 2.0, 2.0]]), np.array([[0.0, 0.0, 1.0]]))
    assert (got["accuracy"], got["picks_by_position"]) == (0.0, [0, 1, 0])


# -- what must not change a number ------------------------------------------------------------------------------


def test_orders_padding_and_float32_change_nothing():
    scores, rewards = _questions(score_levels=None)
    scores = scores.astype(np.float32)
    rng = np.random.default_rng(3)
    order, places = rng.permutation(len(scores)), rng.permutation(scores.shape[1])
    wide = np.full((len(scores), 3), NAN)
    got = ranking_metrics(scores, rewards.astype(np.float32))
    by_place = [key for key in got if key.endswith("position")]
    numbers = [key for key in got if not isinstance(got[key], list)]
    for other_scores, other_rewards in (
        (scores[order], rewards[order]),
        (scores[:, places], rewards[:, places]),
        (np.hstack([scores, wide]), np.hstack([rewards, wide])),
        (np.where(np.isnan(rewards), np.inf, scores), rewards),
    ):
        other = ranking_metrics(other_scores, other_rewards)
        assert [other[key] for key in numbers] == pytest.approx([got[key] for key in numbers])
        assert all(sum(other[key]) == pytest.approx(other["n"]) for key in by_place)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_extreme_scores_are_finite():
    scores, rewards = _questions(score_levels=3)
    large = (scores * 1e38).astype(np.float32)
    found, small = ranking_metrics(large, rewards), ranking_metrics(scores, rewards)
    json.dumps([found, pick_calibration(scores * 1e4, rewards)], allow_nan=False)
    order = ("accuracy", "reward_ratio", "mrr", "map", "ndcg")
    assert {name: found[name] for name in order} == {
        name: small[name] for name in order
    }  # the order is the same


# -- baselines, groups, calibration -----------------------------------------------------------------------------


def test_baselines_by_hand():
    lengths = np.array([[9, 4, 2], [3, 8, 8], [5, 6, 99]])  # longest: 0, 1 (the first), 1 (no candidate at 2)
    got = ranking_baselines(REWARDS, lengths)
    keys = ranking_metrics(SCORES, REWARDS).keys()
    assert all(metrics.keys() == keys for metrics in got.values())
    random = got["random"]
    assert random["accuracy"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3)
    assert random["reward_ratio"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)
    assert random["average_reward"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3)
    assert random["mrr"] == pytest.approx((2 * (1 + 1 / 2 + 1 / 3) / 3 + 3 / 4) / 3)
    assert random["loss"] == pytest.approx((2 * np.log(3) + np.log(2)) / 3)
    assert random["picks_by_position"] == random["chance_by_position"]
    assert got["first"]["picks_by_position"] == [3, 0, 0]
    assert got["first"]["accuracy"] == pytest.approx(1 / 3)
    assert got["first"]["mrr"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert got["longest"]["picks_by_position"] == [1, 2, 0]
    assert got["longest"]["accuracy"] == pytest.approx(1 / 3)
    assert got["first"]["loss"] is got["longest"]["loss"] is None
    assert all(got["oracle"][k] == pytest.approx(1) for k in ("accuracy", "reward_ratio", *ORDERED))
    assert got["oracle"]["loss"] == 0.0
    tied = ranking_baselines(np.array([[1.0, 1.0, 0.0]]), lengths[:1])
    assert tied["oracle"]["loss"] == pytest.approx(np.log(2))


def test_groups():
    scores, rewards = _questions(30)
    groups = [("10 steps", "9 steps", "other")[k % 3] for k in range(30)]
    got = group_metrics(scores, rewards, groups)
    assert list(got) == ["9 steps", "10 steps", "other"]
    alone = ranking_metrics(scores[1::3], rewards[1::3])
    assert got["9 steps"] == {key: alone[key] for key in ("n", "accuracy", "reward_ratio")}
    none = group_metrics(
        np.vstack([scores, scores[:1]]), np.vstack([rewards, rewards[:1] * 0]), [*groups, "x"]
    )
    assert none == got | {"x": {"n": 0, "accuracy": None, "reward_ratio": None}}
    with pytest.raises(ValueError, match="groups must be 30 names, one a question, found 29"):
        group_metrics(scores, rewards, groups[1:])


def test_pick_calibration_by_hand():
    got = pick_calibration(SCORES, REWARDS)  # picks at 5/8 (right), 4/8 and 3/4 (wrong)
    assert [b["confidence"] for b in got["bins"]] == pytest.approx([0.5, 0.625, 0.75])
    assert [b["accuracy"] for b in got["bins"]] == [0, 1, 0]
    assert got["brier"] == pytest.approx((0.25 + 0.375**2 + 0.75**2) / 3)
    assert pick_calibration(SCORES, np.zeros((3, 3))) is None


def test_interval_against_wilsons_formula():
    z, n, p = 1.959964, 40, 0.25
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = [(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)]
    assert binomial_interval(10, 40) == pytest.approx(expected, rel=1e-6)
    assert binomial_interval(0, 0) is None


@pytest.mark.parametrize(
    "scores, rewards, message",
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"found \(2, 3\) and \(3, 2\)"),
        (np.zeros(3), np.zeros(3), r"must both be \(n, K\)"),
        (np.zeros((2, 0)), np.zeros((2, 0)), r"must both be \(n, K\)"),
        (
            [[0.0, NAN], [0, 0]],
            [[0.0, 1.0], [0, 1]],
            "1 of 2 questions have a score that is not finite, first question 0",
        ),
        ([[0.0, 0], [0, np.inf]], [[0.0, 1.0], [0, 0]], "a score that is not finite, first question 1"),
        ([[0.0, 0]], [[0.0, np.inf]], "a reward that is not finite"),
    ],
)
def test_what_does_not_fit_is_an_error(scores, rewards, message):
    for function in (ranking_metrics, rankable, pick_calibration):
        with pytest.raises(ValueError, match=message):
            function(scores, rewards)
