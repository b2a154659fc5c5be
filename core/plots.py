"""Pictures of a finished evaluation, as matplotlib figures: no pyplot, no state, nothing shown on a screen.

Legend: n rows, C classes.
"""

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import average_precision_score, precision_recall_curve

COUNTS_UP_TO = 20  # classes: above, the numbers in the cells of a confusion matrix would not be readable
NAMES_UP_TO = 60  # classes: above, the axes of a confusion matrix carry class numbers
CURVES_UP_TO = 8  # classes: above, pr_figure shows the best and the worst EXTREMES
EXTREMES = 3
BARS_UP_TO = 100  # classes: above, per_class_figure leaves the rarest out
CURVE_POINTS = 1000  # of a PR curve, evenly spaced in recall
LONGEST_NAME = 28
GREY = "0.55"


def save_png(figure: Figure, path: str) -> None:
    """Write a figure as a PNG file, through the Agg canvas whatever backend matplotlib is set to."""
    FigureCanvasAgg(figure)
    # "tight": the constrained layout alone cuts an axis label off beside long names and square axes.
    figure.savefig(path, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)


def confusion_figure(matrix: list[list[int]], label_names: list[str]) -> Figure:
    """A confusion matrix, coloured by the share of the true class, so that rare classes are visible too.

    Args:    matrix: C x C counts, rows are the true class; they stand in the cells up to 20 classes.
             label_names: C names.
    """
    counts = np.asarray(matrix)
    num_classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_shorten(name) for name in label_names]
    cell, points = (0.4, 10) if num_classes <= COUNTS_UP_TO else (0.24, 8)  # inches, font size
    matrix_side = min(max(cell * num_classes, 2.0), 16.0)
    names_side = points / 130 * max(map(len, names))  # inches: a letter is about half as wide as it is high
    figure, axes = _new_figure(matrix_side + names_side + 2.0, matrix_side + 0.7 * names_side + 1.1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    figure.colorbar(image, ax=axes, label="Share of the true class", shrink=0.8, aspect=25)
    axes.set(xlabel="Predicted class", ylabel="True class")
    if num_classes <= NAMES_UP_TO:
        axes.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_classes), names)
        axes.tick_params(labelsize=points)
    if num_classes <= COUNTS_UP_TO:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.55 else "black" if count else GREY
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    return figure


def outcomes_figure(per_class: dict[str, dict]) -> Figure:
    """What became of each class's rows, several labels a row: found, missed, and claimed in error, at 0.5.

    Args: per_class: as in classification_metrics, with tp, fn and fp.
    """
    names = sorted(per_class, key=lambda name: per_class[name]["support"])
    figure, axes = _new_figure(7.5, 0.26 * len(names) + 1.4)
    left = np.zeros(len(names))
    for key, label, colour in (
        ("tp", "found (true positive)", "#2c7fb8"),
        ("fn", "missed (false negative)", "#c7dceb"),
        ("fp", "claimed in error (false positive)", "#d95f0e"),
    ):
        values = np.array([per_class[name][key] for name in names])
        axes.barh(range(len(names)), values, left=left, label=label, color=colour)
        left = left + values
    axes.set_yticks(range(len(names)), [_shorten(name) for name in names])
    axes.set(xlabel="Rows", ylim=(-0.6, len(names) - 0.4))
    axes.legend(loc="lower right", fontsize=8)
    return figure


def pr_figure(probs: np.ndarray, labels_onehot: np.ndarray, label_names: list[str]) -> Figure:
    """Precision over recall, one class against the rest, with the average precision (AP) in the legend.

    Args:    probs: (n, C) float.
             labels_onehot: (n, C) of 0 and 1.
             label_names: C names.
    Returns: the micro average and each class with a positive row; over 8 of them only the 3 best and the 3
             worst. The title says what is left out.
    """
    probs, truth = np.asarray(probs), np.asarray(labels_onehot).astype(bool)
    drawn = [column for column in range(truth.shape[1]) if truth[:, column].any()]
    scores = {column: average_precision_score(truth[:, column], probs[:, column]) for column in drawn}
    drawn.sort(key=lambda column: -scores[column])
    titles = []
    if len(drawn) > CURVES_UP_TO:
        titles.append(f"{EXTREMES} best and {EXTREMES} worst of {len(drawn)} classes by AP")
        drawn = drawn[:EXTREMES] + drawn[-EXTREMES:]
    if len(scores) < truth.shape[1]:
        titles.append(f"left out, without a positive row: {truth.shape[1] - len(scores)} of {truth.shape[1]}")

    figure, axes = _new_figure(7.6, 4.8)
    if truth.any():
        micro = average_precision_score(truth.ravel(), probs.ravel())
        _pr_curve(
            axes, truth.ravel(), probs.ravel(), label=f"{micro:.3f}  micro average", color="black", lw=2
        )
    for column in drawn:
        name = _shorten(label_names[column])
        _pr_curve(axes, truth[:, column], probs[:, column], label=f"{scores[column]:.3f}  {name}", lw=1.2)
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1.005), ylim=(0, 1.005), title="\n".join(titles))
    axes.title.set_fontsize(10)
    if axes.lines:
        axes.legend(title="AP", alignment="left", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def reliability_figure(summary: dict) -> Figure:
    """The share that came true over the predicted probability, bin by bin, against the diagonal.

    Args:    summary: what calibration_summary returns.
    """
    confidence, accuracy, counts = (
        np.array([part[key] for part in summary["bins"]]) for key in ("confidence", "accuracy", "n")
    )
    figure, axes = _new_figure(4.8, 4.8)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfect calibration")
    axes.vlines(confidence, confidence, accuracy, color="C3", lw=1.5, alpha=0.6, label="gap")
    sizes = 12 + 36 * counts / counts.max()
    size_note = f"bin of {counts.max():,} scores"
    axes.scatter(confidence, accuracy, s=sizes, color="C0", zorder=3, label=size_note)
    axes.set(xlabel="Predicted probability (mean of the bin)", ylabel="Share that came true")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    title = f"ECE {summary['ece']:.3f}   Brier {summary['brier']:.3f}   NLL {summary['nll']:.3f} nats"
    if summary["method"] != "none":
        title += f"\n{summary['method']}, temperature {summary['temperature']:.3f}"
    axes.set_title(title, fontsize=10)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def reliability_pair_figure(before: dict, after: dict, titles: tuple[str, str]) -> Figure:
    """reliability_figure's diagram twice, side by side: before and after calibration.

    Args:    before, after: what calibration_summary returns, for the same rows | titles: what stands above each.
    """
    figure = Figure(figsize=(9.2, 4.9), layout="constrained")
    largest = max(part["n"] for summary in (before, after) for part in summary["bins"])
    for place, (summary, title) in enumerate(zip((before, after), titles), 1):
        confidence, accuracy, counts = (
            np.array([part[key] for part in summary["bins"]]) for key in ("confidence", "accuracy", "n")
        )
        axes = figure.add_subplot(1, 2, place)
        axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfect calibration")
        axes.vlines(confidence, confidence, accuracy, color="C3", lw=1.5, alpha=0.6, label="gap")
        size_note = f"bin of up to {counts.max():,} scores"
        axes.scatter(
            confidence, accuracy, s=12 + 36 * counts / largest, color="C0", zorder=3, label=size_note
        )
        axes.set(xlabel="Predicted probability (mean of the bin)", ylabel="Share that came true")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        numbers = f"ECE {summary['ece']:.3f}   Brier {summary['brier']:.3f}   NLL {summary['nll']:.3f} nats"
        axes.set_title(f"{title}\n{numbers}", fontsize=10)
        axes.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def threshold_figure(
    at: np.ndarray, f1: np.ndarray, chosen: np.ndarray, intervals: np.ndarray, names: list[str]
) -> Figure:
    """F1 over the threshold, a panel a class, with the chosen threshold and where resampled rows have their best one.

    Args:    at: (T,) thresholds | f1: (T, C) | chosen: (C,) | intervals: (C, 2) low and high | names: C, with what is
             to be read beside them; in the order wanted.
    """
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.4, 2.1 * rows + 0.7), layout="constrained")
    for c, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, c + 1)
        axes.axvspan(*intervals[c], color="C1", alpha=0.25, lw=0, label="best of resampled rows (95 %)")
        axes.axvline(0.5, color=GREY, lw=1, ls=":", label="0.5")
        axes.plot(at, f1[:, c], color="C0", lw=1.4, label="F1")
        axes.axvline(chosen[c], color="C1", lw=1.4, label="chosen threshold")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.set_title(_shorten(name), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("Threshold on the probability", fontsize=9)
    figure.supylabel("F1 on the rows it was found on", fontsize=9)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9
    )
    return figure


def per_class_figure(per_class: dict) -> Figure:
    """Bars of F1, the class with most rows on top, its support printed; tuned F1 beside it where there.

    Args:    per_class: the entry of that name in what classification_metrics returns.
    """
    classes = sorted(per_class.items(), key=lambda item: -item[1]["support"])
    shown = classes[:BARS_UP_TO]
    places = np.arange(len(shown))
    has_tuned = all("f1_tuned" in values for _, values in shown)
    height = 0.38 if has_tuned else 0.7
    figure, axes = _new_figure(7.0, 1.2 + (0.32 if has_tuned else 0.25) * max(len(shown), 2))
    f1 = [values["f1"] for _, values in shown]
    axes.barh(places - (height / 2 if has_tuned else 0), f1, height, color="C0", label="at 0.5")
    if has_tuned:
        tuned = [values["f1_tuned"] for _, values in shown]
        axes.barh(places + height / 2, tuned, height, color="C1", label="at tuned thresholds")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    for place, (_, values) in zip(places, shown):
        axes.text(1.01, place, f"{values['support']:,}", va="center", fontsize=8, color="0.3")
    axes.text(1.01, -0.75, "rows", va="bottom", fontsize=8, color="0.3")
    axes.set_yticks(places, [_shorten(name) for name, _ in shown])
    axes.set(xlabel="F1", xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6))
    axes.spines[["top", "right"]].set_visible(False)
    if len(classes) > len(shown):
        axes.set_title(f"the {len(shown)} largest of {len(classes)} classes", fontsize=10)
    return figure


def curves_figure(records: list[dict]) -> Figure:
    """What a run logged, over its optimiser steps: loss, evaluation scores and learning rate, where logged.

    Args:    records: those of training_logs.jsonl: "step" and any of "train/loss", "eval/loss",
             "eval/macro_f1", "eval/accuracy", "train/lr". Values that are missing, None or not finite are
             left out of the line; where a step was logged twice, as after a resume, the later record counts.
    """
    panels = {
        "Loss (nats)": {"train/loss": "train", "eval/loss": "evaluation"},
        "Evaluation score": {"eval/macro_f1": "macro F1", "eval/accuracy": "accuracy"},
        "Learning rate": {"train/lr": "learning rate"},
    }
    lines = {}
    for title, keys in panels.items():
        named = {name: _points(records, key) for key, name in keys.items()}
        if any(named.values()):
            lines[title] = {name: points for name, points in named.items() if points}
    figure = Figure(figsize=(4.6 * max(len(lines), 1), 3.4), layout="constrained")
    if not lines:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", color=GREY)
    for place, (title, named) in enumerate(lines.items()):
        axes = figure.add_subplot(1, len(lines), place + 1)
        for name, points in named.items():
            marker = "o" if len(points) <= 30 else None
            axes.plot(*zip(*points), lw=1.2, marker=marker, ms=3, label=name)
        axes.set(xlabel="Optimiser step", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        if len(named) > 1:
            axes.legend(frameon=False)
    return figure


def _new_figure(width: float, height: float) -> tuple:
    """A figure of that many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _shorten(name: str) -> str:
    """A name that fits beside an axis; a dollar sign stays a dollar sign instead of opening a formula."""
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
    return short.replace("$", r"\$")


def _points(records: list[dict], key: str) -> list[tuple]:
    """(step, value) pairs of what was logged under the key, in the order of the steps."""
    pairs = [(record["step"], record.get(key)) for record in records]
    last = {step: value for step, value in pairs if value is not None and math.isfinite(value)}
    return sorted(last.items())


def _pr_curve(axes, truth: np.ndarray, scores: np.ndarray, **style) -> None:
    """One precision-recall curve of (m,) labels and scores, thinned to CURVE_POINTS."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    precision, recall = precision[::-1], recall[::-1]  # recall now rises from 0 to 1
    kept = np.unique(np.searchsorted(recall, np.linspace(0, 1, CURVE_POINTS + 1)))
    axes.plot(recall[kept], precision[kept], drawstyle="steps-pre", **style)  # AP is the area under the steps
