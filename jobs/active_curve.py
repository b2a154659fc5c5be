"""The score against the labels bought: what each acquisition needs for random choice's score, as a table and a picture.

S seeds, R points of a curve: the first rows and the rounds.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from core.files import write_json, write_text
from core.plots import GREY, save_png
from core.results_table import format_table
from jobs.retrain import paired_interval

COLOURS = {
    "entropy": "#31a354",
    "margin": "#2c7fb8",
    "badge": "#d95f0e",
    "coreset": "#756bb1",
    "random": "0.35",
}


def reach(scores: np.ndarray, labels: list[int], target: float, out_of: int) -> dict:
    """The labels at which a curve has a score; of the points that were measured, nothing in between.

    Args:    scores: (R,) | labels: R | out_of: labels that the target was reached with.
    Returns: labels: at the first point at or above the target; frac: of out_of; stays: at the first from which on the
             curve stays there. None where there is no such point.
    """
    is_there = np.asarray(scores) >= target
    below = np.flatnonzero(~is_there)
    stays = below[-1] + 1 if len(below) else 0
    first = labels[int(is_there.argmax())] if is_there.any() else None
    return {
        "labels": first,
        "frac": None if first is None else first / out_of,
        "stays": labels[stays] if stays < len(labels) else None,
    }


def summarise(found: dict) -> dict:
    """Means, spreads, and what each acquisition needs for random's last score and for the score of all labels.

    Args:    found: labels (R), curves ({acquisition: S lists of R scores}, random among them), full (S, or None),
             num_rows (of all labels), and what is only passed on.
    Returns: found with targets (mean scores: random, full) and lines, by acquisition: mean, low, high (R, over seeds);
             to_random, to_full (see reach; of the mean curve), by_seed (labels at which each seed's own curve is at the
             target of random); gain: the mean over the rounds less random's, with a 95 % interval, paired over seeds.
    """
    labels, curves = found["labels"], {name: np.array(rows) for name, rows in found["curves"].items()}
    random, full = curves["random"], found["full"]
    targets = {"random": float(random[:, -1].mean()), "full": None if full is None else float(np.mean(full))}
    lines = {}
    for name, scores in curves.items():
        mean = scores.mean(axis=0)
        gains = (scores - random)[:, 1:].mean(axis=1)  # the first rows are common
        low, high = (name != "random" and paired_interval(gains.tolist())) or (None, None)
        lines[name] = {
            "mean": mean.tolist(),
            "low": scores.min(axis=0).tolist(),
            "high": scores.max(axis=0).tolist(),
            "to_random": reach(mean, labels, targets["random"], labels[-1]),
            "to_full": None if full is None else reach(mean, labels, targets["full"], found["num_rows"]),
            "by_seed": [reach(own, labels, targets["random"], labels[-1])["labels"] for own in scores],
            "gain": {"mean": float(gains.mean()), "low": low, "high": high},
        }
    return found | {"targets": targets, "lines": lines}


# -- words ------------------------------------------------------------------------------------------------------


def cells_of(name: str, result: dict) -> dict[str, str]:
    """A line of the table: labels that an acquisition needs, as numbers and shares, and its gain."""

    def told(reached: dict | None) -> str:
        if reached is None or reached["labels"] is None:
            return "-" if reached is None else "not reached"
        return f"{reached['labels']} ({reached['frac']:.0%})"

    line = result["lines"][name]
    gain, points = line["gain"], 100 * line["gain"]["mean"]
    interval = "" if gain["low"] is None else f" ({100 * gain['low']:+.2f} to {100 * gain['high']:+.2f})"
    by_seed = ", ".join("-" if k is None else str(k) for k in line["by_seed"])
    return {
        f"at {result['labels'][-1]}": f"{line['mean'][-1]:.4f}",
        "to random's": told(line["to_random"]),
        "stays from": "-" if line["to_random"]["stays"] is None else str(line["to_random"]["stays"]),
        "each seed": by_seed,
        "to full": told(line["to_full"]),
        "gain": "-" if name == "random" else f"{points:+.2f}{interval}",
    }


def told_of(result: dict) -> list[str]:
    """What came out, for the terminal."""
    names, targets, last = list(result["lines"]), result["targets"], result["labels"][-1]
    rows = [(name, cells_of(name, result)) for name in names]
    full = "" if targets["full"] is None else f", with all {result['num_rows']} {targets['full']:.4f}"
    return [
        f"{result['metric']} of random choice with {last} labels {targets['random']:.4f}{full}",
        format_table(rows, list(rows[0][1])),
    ]


def markdown(result: dict) -> str:
    """The table as text: what each acquisition needs, then every point of the curves."""
    names, targets, labels = list(result["lines"]), result["targets"], result["labels"]
    seeds = f"{len(result['seeds'])} seed{'s' * (len(result['seeds']) > 1)} ({', '.join(map(str, result['seeds']))})"
    chosen = "that no choice has seen" if result["is_test"] else "that chose the best step of every run too"
    full = "not trained yet" if targets["full"] is None else f"{targets['full']:.4f}"
    table = [("acquisition", cells_of(names[0], result).keys())]
    table += [(name, cells_of(name, result).values()) for name in names]
    points = [("labels", names)]
    for k, num_labels in enumerate(labels):
        lines = (result["lines"][name] for name in names)
        points.append(
            (
                str(num_labels),
                [f"{x['mean'][k]:.4f} ({x['low'][k]:.4f} to {x['high'][k]:.4f})" for x in lines],
            )
        )
    parts = [
        "# Active learning: the score against the labels bought",
        f"{result['metric']} on `{result['scored_on']}`, rows {chosen}; rows bought from `{result['train_data']}`; "
        f"means over {seeds}.",
        f"Random choice with {labels[-1]} labels: {targets['random']:.4f}. All {result['num_rows']} labels: {full}.",
        as_markdown(table),
        "To random's, to full: the labels at the first measured point whose mean is at that score, and their share (of "
        f"{labels[-1]}, of {result['num_rows']}). A mean that goes up and down reaches a score early by luck too, as "
        "random's own line shows: see from where it stays there, and each seed's own curve. Gain: points of the mean "
        "over the rounds over random's, with a 95 % interval, paired over seeds.",
        "![score against labels bought](curve.png)",
        "Means, and lowest to highest over the seeds:",
        as_markdown(points),
    ]
    return "\n\n".join(parts) + "\n"


def as_markdown(table: list[tuple]) -> str:
    """(first cell, other cells) of each line, the head first, as a Markdown table with numbers to the right."""
    lines = [f"| {first} | {' | '.join(cells)} |" for first, cells in table]
    return "\n".join([lines[0], "|---|" + "---:|" * len(table[0][1]), *lines[1:]])


# -- picture ----------------------------------------------------------------------------------------------------


def curve_figure(result: dict) -> Figure:
    """The mean over the seeds as a line, lowest to highest as a band, the scores to be reached as levels; a ring where
    a mean first is at random's last score."""
    figure = Figure(figsize=(7.4, 4.8), layout="constrained")
    axes, labels, targets = figure.add_subplot(), result["labels"], result["targets"]
    if targets["full"] is not None:
        axes.axhspan(min(result["full"]), max(result["full"]), color=GREY, alpha=0.18, lw=0)
        axes.axhline(targets["full"], color=GREY, lw=1.2, ls="--", label=f"all {result['num_rows']:,} labels")
    axes.axhline(targets["random"], color=COLOURS["random"], lw=1, ls=":", label=f"random at {labels[-1]:,}")
    for name, line in result["lines"].items():
        colour, first = COLOURS[name], line["to_random"]["labels"]
        axes.fill_between(labels, line["low"], line["high"], color=colour, alpha=0.15, lw=0)
        told = (
            f"{name}: {line['to_random']['frac']:.0%} of the labels" if first and name != "random" else name
        )
        axes.plot(labels, line["mean"], color=colour, lw=1.6, marker="o", ms=3.5, label=told)
        if first and name != "random":
            at = line["mean"][labels.index(first)]
            axes.plot([first], [at], marker="o", ms=10, mfc="none", mec=colour, mew=1.6, ls="none")
    axes.set(xlabel="Labels bought", ylabel=result["metric"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    seeds = len(result["seeds"])
    over = f"mean and range of {seeds} seeds" if seeds > 1 else "1 seed"
    axes.set_title(f"{over}; ring: first measured at random's last score", fontsize=10)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def write_curve(folder: Path, result: dict) -> None:
    """Write curve.json, curve.md and curve.png. result: of summarise."""
    write_json(folder / "curve.json", result)
    write_text(folder / "curve.md", markdown(result))
    save_png(curve_figure(result), folder / "curve.png")
