"""core/statistics.py: McNemar and Holm by hand, the bootstrap against a slow loop and against what it promises."""

import numpy as np
import pytest
from scipy.stats import binomtest

from core.metrics import classification_metrics
from core.statistics import (
    FEWEST_DISCORDANT,
    bootstrap_p,
    bootstrap_scores,
    holm,
    is_right,
    mcnemar,
    percentile_interval,
    resampled,
    score_decisions,
)


def one_hot(labels, num_classes: int) -> np.ndarray:
    return np.asarray(labels)[..., None] == np.arange(num_classes)


def rights(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_a, only_b, neither)
    a, b = (np.repeat(kind, counts) for kind in ([True, True, False, False], [True, False, True, False]))
    return a, b


def draw(rng, num_rows: int, num_classes: int, skill: float, seeds: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and decisions that are the truth or chance."""
    labels = rng.integers(num_classes, size=num_rows)
    guess = rng.integers(num_classes, size=(seeds, num_rows))
    chosen = np.where(rng.random((seeds, num_rows)) < skill, labels, guess)
    return one_hot(labels, num_classes), one_hot(chosen, num_classes)


# -- scores -----------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    truth = one_hot([0, 0, 1, 1], 3)
    chosen = one_hot([[0, 1, 1, 1], [0, 0, 1, 1]], 3)  # class 2 has no row and no decision: F1 0
    scores = score_decisions(truth, chosen)
    assert scores["accuracy"] == pytest.approx([0.75, 1.0])
    assert scores["macro_f1"] == pytest.approx([(2 / 3 + 4 / 5 + 0) / 3, 2 / 3])


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_are_those_of_a_run(multi_label):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 5))
    labels = (rng.random((60, 5)) < 0.3).astype(int) if multi_label else rng.integers(5, size=60)
    metrics = classification_metrics(logits, labels, list("abcde"), multi_label)
    chosen = logits >= 0 if multi_label else one_hot(logits.argmax(axis=1), 5)
    scores = score_decisions(labels == 1 if multi_label else one_hot(labels, 5), chosen[None])
    assert scores["accuracy"] == pytest.approx([metrics["accuracy"]], rel=1e-12)
    assert scores["macro_f1"] == pytest.approx([metrics["macro_f1"]], rel=1e-12)


# -- bootstrap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
def test_bootstrap_against_a_loop_over_its_own_resamples(multi_label, monkeypatch):
    monkeypatch.setattr("core.statistics.CHUNK", 3 * 40)  # several blocks, the last one shorter
    rng = np.random.default_rng(1)
    truth, chosen = draw(rng, 40, 4, 0.5, seeds=2)
    if multi_label:
        truth, chosen = truth | (rng.random(truth.shape) < 0.2), chosen | (rng.random(chosen.shape) < 0.2)
    found = bootstrap_scores(truth, chosen, 10, seed=3)
    counts = np.concatenate(list(resampled(40, 10, 3)))
    assert counts.shape == (10, 40)
    assert (counts.sum(axis=1) == 40).all()
    for k in range(10):
        rows = np.repeat(np.arange(40), counts[k].astype(int))
        scores = score_decisions(truth[rows], chosen[:, rows])
        assert found["accuracy"][k] == pytest.approx(scores["accuracy"].mean(), rel=1e-6)
        assert found["macro_f1"][k] == pytest.approx(scores["macro_f1"].mean(), rel=1e-6)


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    truth = one_hot([0] * 20 + [1], 3)  # class 2 never occurs: 0 in the score and in every resample
    samples = bootstrap_scores(truth, truth[None], 500)
    assert set(np.round(samples["macro_f1"], 6)) == {round(1 / 2, 6), round(2 / 3, 6)}
    assert score_decisions(truth, truth[None])["macro_f1"] == pytest.approx([2 / 3])


def test_the_same_seed_pairs_the_resamples():
    truth, chosen = draw(np.random.default_rng(2), 80, 3, 0.6)
    a, b = bootstrap_scores(truth, chosen, 50), bootstrap_scores(truth, chosen, 50)
    other = bootstrap_scores(truth, chosen, 50, seed=1)
    assert np.array_equal(a["macro_f1"], b["macro_f1"])
    assert not np.array_equal(a["accuracy"], other["accuracy"])


def test_intervals_cover_the_population():
    """95 % intervals of 300 samples hold the true score about 95 times in a hundred: accuracy and macro F1 0.8."""
    rng, inside = np.random.default_rng(3), {"accuracy": 0, "macro_f1": 0}
    for _ in range(300):
        samples = bootstrap_scores(*draw(rng, 200, 4, 11 / 15), 300)  # right: 11/15 + 4/15/4 = 0.8
        for name, values in samples.items():
            low, high = percentile_interval(values)
            inside[name] += low <= 0.8 <= high
    assert 0.91 <= inside["accuracy"] / 300 <= 0.98
    assert 0.91 <= inside["macro_f1"] / 300 <= 0.98


def test_equal_models_are_seldom_told_apart_and_unequal_ones_often():
    rng, found = np.random.default_rng(4), {0.7: 0, 0.85: 0}
    for skill in found:
        for seed in range(150):
            truth, a = draw(rng, 200, 4, 0.7)
            b = one_hot(np.where(rng.random(200) < skill, truth.argmax(1), rng.integers(4, size=200)), 4)[
                None
            ]
            samples = [bootstrap_scores(truth, chosen, 200, seed)["macro_f1"] for chosen in (a, b)]
            found[skill] += bootstrap_p(samples[0] - samples[1]) < 0.05
    assert found[0.7] / 150 < 0.12
    assert found[0.85] / 150 > 0.7


def test_bootstrap_p_by_hand():
    assert bootstrap_p(np.full(99, 0.1)) == pytest.approx(0.02)  # 2 (0 + 1) / (99 + 1)
    assert bootstrap_p(np.r_[np.full(95, -0.1), np.full(4, 0.1)]) == pytest.approx(0.1)
    assert bootstrap_p(np.zeros(99)) == 1.0
    assert percentile_interval(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))


# -- tests ------------------------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    found = mcnemar(*rights(50, 1, 5, 4))
    assert (found["only_a"], found["only_b"], found["method"]) == (1, 5, "exact")
    assert found["p"] == pytest.approx(14 / 64)  # 2 (C(6,0) + C(6,1)) / 2^6
    found = mcnemar(*rights(50, 10, 30, 4))
    assert found["method"] == "chi2"
    assert found["p"] == pytest.approx(0.002663, rel=1e-3)  # (|10 - 30| - 1)^2 / 40 = 9.025, one degree


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (3, 3), (0, 5), (9, 2), (12, 12)])
def test_mcnemar_is_the_binomial_test_where_few_rows_differ(only_a, only_b):
    assert only_a + only_b < FEWEST_DISCORDANT
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(*rights(7, only_a, only_b, 3))["p"] == pytest.approx(expected)


def test_mcnemar_does_not_mind_the_order_and_is_near_the_binomial_test_at_its_limit():
    there, back = mcnemar(*rights(5, 16, 9, 1)), mcnemar(*rights(5, 9, 16, 1))
    assert there["p"] == back["p"]
    assert there["p"] == pytest.approx(binomtest(9, 25).pvalue, abs=0.01)
    assert mcnemar(*rights(5, 20, 20, 1))["p"] == 1.0


def test_right_means_all_decisions_of_a_row():
    truth = np.array([[1, 0], [1, 1], [0, 0]], bool)
    assert is_right(truth, np.array([[1, 0], [1, 0], [0, 0]], bool)).tolist() == [True, False, True]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
