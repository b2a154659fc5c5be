"""core/plots.py: what each figure holds, that it can be written, and that pyplot stays out of it."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from core.metrics import calibration_summary, classification_metrics
from core.plots import (
    confusion_figure,
    curves_figure,
    per_class_figure,
    pr_figure,
    reliability_figure,
    save_png,
)


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _names(num_classes):
    return [f"class {column}" for column in range(num_classes)]


def _multi(num_rows=120, num_classes=28, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, num_classes)) < 0.3).astype(int)
    return rng.random(labels.shape) * 0.6 + 0.4 * labels, labels


def _saved(figure, tmp_path):
    """Pixels wide and high of the PNG, read from its header."""
    path = tmp_path / "figure.png"
    save_png(figure, str(path))
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize("num_classes", [2, 16, 28, 61])
def test_confusion(num_classes, tmp_path):
    matrix = np.random.default_rng(0).integers(0, 9, (num_classes, num_classes))
    matrix[0] = 0  # a class without rows is white, not 0/0
    figure = confusion_figure(matrix.tolist(), _names(num_classes))
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown[0], 0)
    np.testing.assert_allclose(shown[1:].sum(axis=1), 1)
    assert [text.get_text() for text in axes.texts] == (
        [str(count) for count in matrix.ravel()] if num_classes <= 20 else []
    )
    if num_classes <= 60:
        assert [tick.get_text() for tick in axes.get_yticklabels()] == _names(num_classes)
    width, height = _saved(figure, tmp_path)
    assert max(width, height) < 4000


def test_confusion_grows_with_its_classes(tmp_path):
    sizes = [_saved(confusion_figure(np.eye(c).tolist(), _names(c)), tmp_path)[0] for c in (2, 8, 16)]
    assert sizes == sorted(set(sizes))


def test_colours_by_column_would_hide_a_missed_class():
    """Bite: shares of the predicted class look perfect for a class that is nearly always missed."""
    matrix = np.array([[1, 9], [0, 90]])
    by_column = matrix / matrix.sum(axis=0)
    shown = confusion_figure(matrix.tolist(), ["a", "b"]).axes[0].images[0].get_array()
    assert by_column[0, 0] == 1.0
    assert shown[0, 0] == pytest.approx(0.1)


def test_pr_shows_every_class_when_there_are_few(tmp_path):
    probs, labels = _multi(num_classes=3)
    figure = pr_figure(
        probs, labels, ["_a", "b", "c"]
    )  # matplotlib itself would drop a label with "_" from a legend
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    expected = [
        f"{average_precision_score(labels[:, c], probs[:, c]):.3f}  {n}"
        for c, n in enumerate(["_a", "b", "c"])
    ]
    assert texts[0] == f"{average_precision_score(labels.ravel(), probs.ravel()):.3f}  micro average"
    assert sorted(texts[1:]) == sorted(expected)
    assert figure.axes[0].get_title() == ""
    _saved(figure, tmp_path)


def test_pr_of_many_classes_shows_the_extremes_and_says_so(tmp_path):
    probs, labels = _multi()
    labels[:, 5] = 0
    figure = pr_figure(probs, labels, _names(28))
    title = figure.axes[0].get_title()
    assert "3 best and 3 worst of 27 classes" in title
    assert "1 of 28" in title
    scores = {f"class {c}": average_precision_score(labels[:, c], probs[:, c]) for c in range(28) if c != 5}
    ranked = sorted(scores, key=scores.get, reverse=True)
    texts = [text.get_text().split("  ")[1] for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["micro average", *ranked[:3], *ranked[-3:]]
    _saved(figure, tmp_path)


def test_the_area_under_the_drawn_steps_is_the_average_precision():
    probs, labels = _multi(num_classes=1)
    line = pr_figure(probs, labels, ["a"]).axes[0].lines[-1]
    recall, precision = line.get_data()
    area = (np.diff(recall) * precision[1:]).sum()  # steps-pre: a step is as high as its right end
    assert line.get_drawstyle() == "steps-pre"
    assert area == pytest.approx(average_precision_score(labels, probs), rel=1e-6)
    wrong = (np.diff(recall) * precision[:-1]).sum()  # bite: the other kind of step is a different number
    assert abs(wrong - area) > 1e-3


def test_a_long_curve_is_thinned():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (20_000, 1))
    probs = rng.random(labels.shape) + 0.3 * labels
    recall, precision = pr_figure(probs, labels, ["a"]).axes[0].lines[-1].get_data()
    assert len(recall) <= 1001
    area = (np.diff(recall) * precision[1:]).sum()
    assert area == pytest.approx(average_precision_score(labels, probs), abs=1e-3)


def test_pr_without_any_positive_row(tmp_path):
    figure = pr_figure(np.zeros((3, 2)), np.zeros((3, 2), int), ["a", "b"])
    assert "2 of 2" in figure.axes[0].get_title()
    _saved(figure, tmp_path)


@pytest.mark.parametrize("multi_label", [False, True])
def test_reliability(multi_label, tmp_path):
    probs, labels = _multi()
    summary = calibration_summary(
        probs * 6 - 4, labels if multi_label else labels.argmax(axis=1), multi_label
    )
    figure = reliability_figure(summary | {"method": "temperature", "temperature": 1.25})
    points = figure.axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(points, [(part["confidence"], part["accuracy"]) for part in summary["bins"]])
    assert f"ECE {summary['ece']:.3f}" in figure.axes[0].get_title()
    assert "1.250" in figure.axes[0].get_title()
    _saved(figure, tmp_path)


@pytest.mark.parametrize("with_tuned", [False, True])
def test_per_class(with_tuned, tmp_path):
    probs, labels = _multi()
    tuned = probs > 0.4 if with_tuned else None
    metrics = classification_metrics(probs * 6 - 4, labels, _names(28), True, tuned)
    figure = per_class_figure(metrics["per_class"])
    axes = figure.axes[0]
    supports = [int(text.get_text()) for text in axes.texts if text.get_text() != "rows"]
    assert supports == sorted(labels.sum(axis=0), reverse=True)
    widths = [[bar.get_width() for bar in container] for container in axes.containers]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert widths[0] == [metrics["per_class"][name]["f1"] for name in names]
    assert len(widths) == 1 + with_tuned
    if with_tuned:
        assert widths[1] == [metrics["per_class"][name]["f1_tuned"] for name in names]
    _saved(figure, tmp_path)


def test_per_class_of_very_many_says_what_is_left_out(tmp_path):
    figure = per_class_figure({str(c): {"f1": 0.5, "support": c} for c in range(130)})
    assert "100 largest of 130" in figure.axes[0].get_title()
    assert max(_saved(figure, tmp_path)) < 5000


def test_curves(tmp_path):
    records = [{"step": step, "train/loss": 1 / step, "train/lr": 1e-5} for step in range(1, 50)]
    records[9] |= {"eval/loss": 0.5, "eval/macro_f1": 0.3}
    records[20]["train/loss"] = float("nan")
    records.append({"step": 3, "train/loss": 0.123})  # step 3 again, after a resume
    figure = curves_figure(records)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Loss (nats)", "Evaluation score", "Learning rate"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"Optimiser step"}
    steps, losses = figure.axes[0].lines[0].get_data()
    assert list(steps) == [step for step in range(1, 50) if step != 21]
    assert losses[2] == 0.123
    _saved(figure, tmp_path)


def test_curves_of_what_there_is(tmp_path):
    assert len(curves_figure([{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": None}]).axes) == 1
    empty = curves_figure([])
    assert empty.axes == []
    assert isinstance(empty, Figure)
    _saved(empty, tmp_path)


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    figure = confusion_figure([[1, 0], [0, 1]], ["$a_{$", "$x$"])
    _saved(figure, tmp_path)  # "$a_{$" as a formula would raise
    axis = figure.axes[0]
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text().replace("\\$", "$") for label in labels] == ["$a_{$", "$x$"]


def test_pyplot_is_never_loaded():
    code = "import sys, core.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
