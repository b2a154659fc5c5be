"""core/mixing.py: means of probabilities by hand, at their extremes, and weights that are known beforehand."""

import numpy as np
import pytest

from core.metrics import classification_metrics, probabilities
from core.mixing import CUTS, best_cuts, climb, f1_weights, goodness, greedy_weights, mean_logits, one_hot
from core.thresholds import best_thresholds


def some_rows(num_rows: int, num_classes: int, multi_label: bool, seed: int = 0) -> tuple:
    """(n, C) logits that know something, and (n, C) bool labels."""
    rng = np.random.default_rng(seed)
    if multi_label:
        truth = rng.random((num_rows, num_classes)) < 0.3
    else:
        truth = rng.integers(num_classes, size=num_rows)[:, None] == np.arange(num_classes)
    return rng.normal(size=truth.shape) + 1.5 * truth - multi_label, truth


def logits_of(probs: list) -> np.ndarray:
    return np.log(np.array(probs))


def test_mean_by_hand():
    members = logits_of([[[0.8, 0.2]], [[0.4, 0.6]]])
    found = mean_logits(members, np.array([0.25, 0.75]), False)
    assert np.allclose(np.exp(found), [[0.5, 0.5]])


def test_mean_does_not_ask_for_normalised_logits():
    members = logits_of([[[0.8, 0.2]], [[0.4, 0.6]]]) + np.array([7.0, -3.0])[:, None, None]
    assert np.allclose(np.exp(mean_logits(members, np.array([0.25, 0.75]), False)), [[0.5, 0.5]])


def test_mean_by_hand_several_labels():
    members = np.array([[[np.log(9.0), 0.0]], [[0.0, np.log(1 / 9)]]])  # 0.9 and 0.5; 0.5 and 0.1
    found = mean_logits(members, np.array([0.5, 0.5]), True)
    assert np.allclose(probabilities(found, True), [[0.7, 0.3]])


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_that_round_to_one_keep_their_order(multi_label):
    members = np.array([[[40.0, -40.0], [50.0, -50.0], [5000.0, -5000.0]]] * 2)
    found = mean_logits(members, np.array([0.5, 0.5]), multi_label)
    assert np.isfinite(found).all()
    gap = found[:, 0] - found[:, 1]
    assert np.allclose(gap, [80, 100, 10000])


def test_a_member_without_weight_has_no_say():
    members = np.array([[[1.0, 2.0]], [[9.0, -9.0]]])
    found = mean_logits(members, np.array([1.0, 0.0]), True)
    assert np.allclose(found, members[0])


def test_f1_weights_by_hand():
    truth = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    right = np.where(truth, 0.9, 0.1)
    always_first = np.tile([0.9, 0.1], (4, 1))  # F1: 2 * 2 / (4 + 2) and 0, so 1 / 3
    assert np.allclose(f1_weights(np.stack([right, always_first]), truth, False), [0.75, 0.25])


def test_f1_weights_are_equal_when_nobody_is_right():
    truth = np.array([[1, 0], [0, 1]], bool)
    assert f1_weights(np.stack([np.where(truth, 0.1, 0.9)] * 2), truth, False).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("multi_label", [False, True])
def test_loss_is_that_of_the_metrics(multi_label):
    logits, truth = some_rows(60, 4, multi_label)
    labels = truth.astype(int) if multi_label else truth.argmax(axis=1)
    metrics = classification_metrics(logits, labels, list("abcd"), multi_label)
    assert goodness(probabilities(logits, multi_label), truth, multi_label, "loss") == pytest.approx(
        -metrics["loss"]
    )


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_goodness_of_one_label_is_that_of_the_metrics(metric):
    logits, truth = some_rows(60, 4, False)
    metrics = classification_metrics(logits, truth.argmax(axis=1), list("abcd"), False)
    assert goodness(probabilities(logits, False), truth, False, metric) == pytest.approx(metrics[metric])


def test_best_cuts_against_all_cuts():
    logits, truth = some_rows(50, 3, True)
    probs = probabilities(logits, True)
    f1, cuts = best_cuts(probs, truth)
    for c in range(3):
        by_cut = []
        for k in range(CUTS + 1):
            told = np.floor(probs[:, c] * CUTS) >= k
            by_cut.append(2 * (told & truth[:, c]).sum() / max(told.sum() + truth[:, c].sum(), 1))
        assert f1[c] == pytest.approx(max(by_cut))
        assert by_cut[round(cuts[c] * CUTS)] == pytest.approx(max(by_cut))


def test_best_cuts_are_the_exact_ones_where_scores_lie_between_them():
    rng = np.random.default_rng(1)
    probs, truth = (rng.integers(20, size=(80, 3)) + 0.5) / 20, rng.random((80, 3)) < 0.4
    exact = probs >= best_thresholds(probs, truth)
    f1 = 2 * (exact & truth).sum(axis=0) / (exact.sum(axis=0) + truth.sum(axis=0))
    assert np.allclose(best_cuts(probs, truth)[0], f1)


def test_accuracy_of_several_labels_is_of_whole_rows():
    truth = np.array([[1, 0], [0, 1], [1, 1]], bool)
    probs = np.where(truth, 0.8, 0.1)
    assert goodness(probs, truth, True, "accuracy") == 1
    probs[2] = [0.8, 0.05]  # its second label is missed at any cut that keeps the others right
    assert goodness(probs, truth, True, "accuracy") == pytest.approx(2 / 3)


# twelve rows of class 1: A is right on the first eight, B is a worse A, C alone knows the last four
PAIR = np.array([[0.9] * 8 + [0.4] * 4, [0.9] * 7 + [0.4] + [0.1] * 4, [0.3] * 8 + [0.95] * 4])


def test_greedy_selection_finds_the_best_pair():
    probs, truth = np.stack([1 - PAIR, PAIR], axis=2), np.tile([False, True], (12, 1))
    assert [goodness(own, truth, False, "accuracy") * 12 for own in probs] == [8, 7, 4]
    assert goodness((probs[0] + probs[2]) / 2, truth, False, "accuracy") == 1
    assert goodness(probs.mean(axis=0), truth, False, "accuracy") < 1
    assert greedy_weights(probs, truth, False, "accuracy", num_bags=0).tolist() == [0.5, 0, 0.5]


def test_climb_begins_with_the_best_members_together():
    target = np.array(
        [0.5, 0.5, 0.0]
    )  # of one number a member: the mean of the first two is the target exactly
    members = np.eye(3)[:, None, :]
    found = climb(members, lambda mean: -float(np.abs(mean[0] - target).sum()) + 0.01 * mean[0, 0])
    assert found.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "loss"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_climb_is_never_below_the_best_member_or_the_mean_of_all(metric, multi_label):
    truth = some_rows(80, 4, multi_label)[1]
    members = np.stack([probabilities(some_rows(80, 4, multi_label, seed)[0] + 2 * truth * (seed == 1), multi_label)
                        for seed in range(3)])  # fmt: skip
    weights = greedy_weights(members, truth, multi_label, metric, num_bags=0)
    assert weights.sum() == pytest.approx(1)
    reached = goodness(np.tensordot(weights, members, 1), truth, multi_label, metric)
    others = [*members, members.mean(axis=0)]
    assert reached >= max(goodness(own, truth, multi_label, metric) for own in others) - 1e-12


def test_bags_are_of_rows_and_their_weights_are_averaged():
    rng = np.random.default_rng(4)
    truth = rng.integers(3, size=60)[:, None] == np.arange(3)
    members = np.stack([probabilities(truth + rng.normal(size=truth.shape), False) for _ in range(3)])
    rng = np.random.default_rng(4)
    bags = [rng.integers(60, size=60) for _ in range(2)]
    single = [greedy_weights(members[:, bag], truth[bag], False, "loss", num_bags=0) for bag in bags]
    found = greedy_weights(members, truth, False, "loss", num_bags=2, seed=4)
    assert np.allclose(found, np.mean(single, axis=0))
    assert not np.allclose(single[0], single[1])


def test_one_hot_takes_the_first_of_equal_scores():
    assert one_hot(np.array([[1.0, 1.0], [0.0, 2.0]])).tolist() == [[True, False], [False, True]]
