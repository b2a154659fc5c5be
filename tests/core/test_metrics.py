"""core/metrics.py against values worked out by hand, scikit-learn, and what must not change a number."""

import json
import math
import time
import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from core.metrics import _equal_mass_bins, calibration_summary, classification_metrics, probabilities

NAMES = ["a", "b", "c", "d"]
AVERAGES = ("macro_f1", "micro_f1", "weighted_f1", "macro_precision", "macro_recall")


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _single(num_rows=200, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_rows)
    return rng.normal(size=(num_rows, num_classes)) + 1.5 * np.eye(num_classes)[labels], labels


def _multi(num_rows=200, num_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, num_classes)) < 0.3).astype(int)
    return rng.normal(size=labels.shape) + 1.5 * labels - 0.5, labels


def test_probabilities_by_hand():
    # softmax of (log 1, log 3) is (1/4, 3/4); sigmoid of log 3 is 3/4
    logits = np.log([[1.0, 3.0]])
    np.testing.assert_allclose(probabilities(logits, multi_label=False), [[0.25, 0.75]])
    np.testing.assert_allclose(probabilities(logits, multi_label=True), [[0.5, 0.75]])


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_are_stable_and_float64(multi_label):
    probs = probabilities(np.array([[1e4, -1e4], [-1e4, 1e4]], dtype=np.float32), multi_label)
    assert probs.dtype == np.float64
    np.testing.assert_array_equal(probs, [[1.0, 0.0], [0.0, 1.0]])


def test_single_label_by_hand():
    # Weights 1 and 3: the larger has p = 3/4. True 0 0 1, predicted 0 1 1.
    logits = np.log([[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]])
    got = classification_metrics(logits, np.array([0, 0, 1]), ["no", "yes"], multi_label=False)
    # no: 1 hit of 1 told and 2 real; yes: 1 hit of 2 told and 1 real. F1 is 2/3 for both.
    assert got["per_class"]["no"]["precision"] == 1.0
    assert got["per_class"]["no"]["recall"] == 0.5
    assert got["per_class"]["yes"]["precision"] == 0.5
    assert got["per_class"]["no"]["support"] == 2
    assert got["confusion_matrix"] == [[1, 1], [0, 1]]
    expected = {"accuracy": 2 / 3, "macro_f1": 2 / 3, "micro_f1": 2 / 3, "weighted_f1": 2 / 3, "n": 3}
    expected |= {"macro_precision": 0.75, "macro_recall": 0.75}
    expected["loss"] = -(2 * math.log(3 / 4) + math.log(1 / 4)) / 3
    # yes: positive at 3/4, negatives at 3/4 (half a pair) and 1/4 (a pair): AUC 3/4; "no" mirrors it.
    expected["roc_auc"] = 0.75
    # yes: two rows at the top, one right: 1/2. no: recall 1/2 at precision 1, then 1/2 more at 2/3: 5/6.
    expected["average_precision"] = (1 / 2 + 5 / 6) / 2
    assert {key: got[key] for key in expected} == pytest.approx(expected)


def test_multi_label_by_hand():
    logits = np.log([[3.0, 3.0], [1 / 3, 3.0]])  # p = 3/4 3/4; 1/4 3/4: decisions 1 1; 0 1
    labels = np.array([[1, 0], [0, 1]])  # wrong in one of four, in the first row
    tuned = np.array([[True, False], [False, False]])
    got = classification_metrics(logits, labels, ["a", "b"], multi_label=True, tuned=tuned)
    assert got["accuracy"] == got["subset_accuracy"] == 0.5
    assert got["hamming_loss"] == 0.25
    assert got["loss"] == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4)
    assert got["per_class"]["b"]["f1"] == pytest.approx(2 / 3)  # 1 hit, 2 told, 1 real
    assert got["micro_f1"] == pytest.approx(2 * 2 / (3 + 2))
    # tuned: a right, b: 0 hits of 0 told, 1 real; one of four wrong, in the second row
    assert got["macro_f1_tuned"] == got["weighted_f1_tuned"] == 0.5
    assert got["micro_f1_tuned"] == pytest.approx(2 * 1 / (1 + 2))
    assert (got["subset_accuracy_tuned"], got["hamming_loss_tuned"]) == (0.5, 0.25)
    assert got["per_class"]["a"]["f1_tuned"] == 1.0
    assert got["per_class"]["b"]["precision_tuned"] == got["per_class"]["b"]["recall_tuned"] == 0.0
    assert "confusion_matrix" not in got


def test_calibration_by_hand():
    # Two rows of p = 3/4, one right: |1/2 - 3/4| = 1/4, in one bin, for the scores are tied.
    summary = calibration_summary(np.log([[3.0, 1.0], [3.0, 1.0]]), np.array([0, 1]), multi_label=False)
    assert summary["bins"] == [{"confidence": pytest.approx(0.75), "accuracy": 0.5, "n": 2}]
    assert summary["ece"] == pytest.approx(0.25)
    # squared errors, both classes: 2 * (1/4)^2 and 2 * (3/4)^2, mean 5/8
    assert summary["brier"] == pytest.approx(0.625)
    assert (summary["temperature"], summary["method"]) == (1.0, "none")
    # several labels: p = 3/4 and 1/2, true 1 and 0: gaps 1/4 and 1/2 in two bins
    summary = calibration_summary(np.log([[3.0, 1.0]]), np.array([[1, 0]]), multi_label=True)
    assert [part["accuracy"] for part in summary["bins"]] == [0.0, 1.0]
    assert summary["ece"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert summary["brier"] == pytest.approx((1 / 16 + 1 / 4) / 2)


def test_bins_have_equal_mass():
    bins = _equal_mass_bins(np.linspace(0, 1, 152), np.arange(152) % 2 == 0)
    assert [part["n"] for part in bins] == [10] * 6 + [10, 11] + [10] * 6 + [11]
    assert np.all(np.diff([part["confidence"] for part in bins]) > 0)


def _averages_by_sklearn(truth, told, **kwargs):
    found = {}
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = reference.precision_recall_fscore_support(
            truth, told, average=average, zero_division=0, **kwargs
        )
        found[f"{average}_f1"] = f1
        if average == "macro":
            found |= {"macro_precision": precision, "macro_recall": recall}
    return found


@pytest.mark.parametrize("classes_seen", [4, 3])
def test_single_label_against_sklearn(classes_seen):
    logits, labels = _single()
    labels = labels % classes_seen  # with 3 the class d has predictions, but no row
    got = classification_metrics(logits, labels, NAMES, multi_label=False)
    told = logits.argmax(axis=1)
    expected = _averages_by_sklearn(labels, told, labels=range(4))
    expected["accuracy"] = reference.accuracy_score(labels, told)
    expected["loss"] = reference.log_loss(labels, probabilities(logits, False), labels=range(4))
    if classes_seen == 4:
        expected["roc_auc"] = reference.roc_auc_score(labels, probabilities(logits, False), multi_class="ovr")
    else:
        assert got["per_class"]["d"]["roc_auc"] is got["per_class"]["d"]["average_precision"] is None
        assert got["roc_auc"] == pytest.approx(np.mean([got["per_class"][n]["roc_auc"] for n in "abc"]))
    assert {key: got[key] for key in expected} == pytest.approx(expected)


def test_multi_label_against_sklearn():
    logits, labels = _multi()
    tuned = logits > -0.3
    got = classification_metrics(logits, labels, NAMES, multi_label=True, tuned=tuned)
    told = logits >= 0
    expected = _averages_by_sklearn(labels, told)
    expected["subset_accuracy"] = reference.accuracy_score(labels, told)
    expected["hamming_loss"] = reference.hamming_loss(labels, told)
    expected["roc_auc"] = reference.roc_auc_score(labels, logits, average="macro")
    expected["average_precision"] = reference.average_precision_score(labels, logits, average="macro")
    expected["loss"] = reference.log_loss(labels.ravel(), probabilities(logits, True).ravel())
    by_tuned = _averages_by_sklearn(labels, tuned)
    expected |= {f"{key}_tuned": by_tuned[key] for key in ("macro_f1", "micro_f1", "weighted_f1")}
    assert {key: got[key] for key in expected} == pytest.approx(expected)
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, told)
    per_class = [
        [got["per_class"][n][key] for n in NAMES] for key in ("precision", "recall", "f1", "support")
    ]
    np.testing.assert_allclose(per_class, [precision, recall, f1, support])


def test_calibration_against_sklearn():
    logits, labels = _single()
    expected = reference.brier_score_loss(labels, probabilities(logits, False), scale_by_half=False)
    assert calibration_summary(logits, labels, False)["brier"] == pytest.approx(expected)
    logits, labels = _multi()
    summary = calibration_summary(logits, labels, True)
    flat = probabilities(logits, True).ravel()
    assert summary["brier"] == pytest.approx(reference.brier_score_loss(labels.ravel(), flat))
    assert summary["nll"] == classification_metrics(logits, labels, NAMES, True)["loss"]


def _assert_same(one, other):
    """Equal up to the order of a sum, through nested dictionaries and lists."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other):
            _assert_same(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-12)
    else:
        assert one == other


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_row_order_does_not_matter(multi_label, seed):
    logits, labels = (_multi if multi_label else _single)(num_rows=40, seed=seed)
    logits = logits.round(0)  # many ties
    order = np.random.default_rng(seed).permutation(len(logits))
    one = classification_metrics(logits, labels, NAMES, multi_label)
    _assert_same(one, classification_metrics(logits[order], labels[order], NAMES, multi_label))
    one = calibration_summary(logits, labels, multi_label)
    _assert_same(one, calibration_summary(logits[order], labels[order], multi_label))


def test_bins_that_part_ties_would_depend_on_the_row_order():
    """Bite: plain equal slices of the sorted scores see a difference where there is none."""

    def ece_with_parted_ties(confidence, right):
        order = np.argsort(confidence, kind="stable")
        slices = np.array_split(order, 15)
        return sum(len(s) * abs(right[s].mean() - confidence[s].mean()) for s in slices) / len(confidence)

    confidence = np.full(30, 0.5)
    sorted_rows, mixed_rows = np.arange(30) < 15, np.arange(30) % 2 == 0
    assert ece_with_parted_ties(confidence, sorted_rows) != ece_with_parted_ties(confidence, mixed_rows)
    assert _equal_mass_bins(confidence, sorted_rows) == _equal_mass_bins(confidence, mixed_rows)


def test_f1_over_the_classes_seen_alone_would_move_with_one_prediction():
    """Bite: scikit-learn's default leaves out classes neither seen nor predicted; ours keeps all."""
    labels = np.array([0, 0, 1, 1])
    logits = np.eye(4)[[0, 1, 1, 1]]
    ours = classification_metrics(logits, labels, NAMES, multi_label=False)["macro_f1"]
    default = reference.f1_score(labels, logits.argmax(axis=1), average="macro")
    assert ours == pytest.approx(default / 2)  # F1 sums over a, b; c and d count as 0


def test_multi_label_ranks_by_logits_where_the_sigmoid_is_flat():
    """Bite: probabilities would tie both rows at 1.0 and answer 0.5."""
    logits, labels = np.array([[40.0], [50.0]]), np.array([[0], [1]])
    assert reference.roc_auc_score(labels, probabilities(logits, True)) == 0.5
    assert classification_metrics(logits, labels, ["a"], multi_label=True)["roc_auc"] == 1.0


@pytest.mark.parametrize("num_classes, multi_label", [(2, False), (3, False), (1, True), (2, True)])
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_one_row_and_equal_scores(num_classes, multi_label, value):
    names = NAMES[:num_classes]
    for num_rows in (1, 2):
        logits = np.full((num_rows, num_classes), value)
        shape = (num_rows, num_classes) if multi_label else num_rows
        for labels in (np.zeros(shape, dtype=int), np.full(shape, 1 if multi_label else num_classes - 1)):
            tuned = labels == 1 if multi_label else None
            got = classification_metrics(logits, labels, names, multi_label, tuned)
            assert got["roc_auc"] is None
            json.dumps(got, allow_nan=False)
            json.dumps(calibration_summary(logits, labels, multi_label), allow_nan=False)


def test_everything_is_plain_json():
    logits, labels = _multi()
    logits = logits.astype(np.float32)
    got = classification_metrics(logits, labels.astype(np.float32), NAMES, True, tuned=logits > 0.2)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert type(got["n"]) is int
    assert type(got["per_class"]["a"]["support"]) is int
    assert type(got["accuracy"]) is float


def test_a_perfect_loss_is_not_minus_zero():
    got = classification_metrics(np.array([[1e4, 0.0]]), np.array([0]), ["a", "b"], multi_label=False)
    assert str(got["loss"]) == "0.0"


@pytest.mark.parametrize(
    "logits, labels, names, multi_label, message",
    [
        (np.zeros((0, 2)), np.zeros(0, int), ["a", "b"], False, "at least one row"),
        (np.zeros((2, 2)), np.array([0, 2]), ["a", "b"], False, r"0\.\.1, found 2 in row 1"),
        (np.zeros((2, 2)), np.array([0, -100]), ["a", "b"], False, "found -100"),
        (np.zeros((1, 2)), np.array([[1, 2]]), ["a", "b"], True, "0 and 1"),
        (np.zeros((1, 2)), np.array([0]), ["a", "b"], True, r"labels must be \(1, 2\)"),
        (np.array([[0, 0], [np.nan, 0]]), np.array([0, 0]), ["a", "b"], False, "1 of 2 rows.*first row 1"),
        (np.zeros((1, 2)), np.array([0]), ["a", "a"], False, "2 different names"),
        (np.zeros((1, 2)), np.array([0]), ["a"], False, "2 different names"),
    ],
)
def test_what_does_not_fit_is_said(logits, labels, names, multi_label, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(logits, labels, names, multi_label)


def test_tuned_decisions_need_several_labels():
    with pytest.raises(ValueError, match="tuned must be"):
        classification_metrics(np.zeros((1, 2)), np.array([0]), ["a", "b"], False, tuned=np.ones((1, 2)))


def test_quick_enough_to_run_at_every_evaluation():
    logits, labels = _multi(num_rows=5426, num_classes=28)
    names = [str(column) for column in range(28)]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        classification_metrics(logits, labels, names, True, tuned=logits > 0.2)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0  # 0.10 s on two idle cores (measured, 2026-11-20); a busy machine is not a defect
