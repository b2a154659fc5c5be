"""Pictures of a ranker's evaluation, as matplotlib figures in the manner of core/plots.py, written with its save_png.

Legend: n questions, K places. Every figure leaves out the questions that cannot be ranked (core/rank_metrics.py).
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from core.plots import LONGEST_NAME, reliability_figure
from core.rank_metrics import binomial_interval, pick_calibration, rankable

BARS_UP_TO = 24  # places: above, bars side by side would be too thin to tell apart
GROUPS_UP_TO = 60  # groups: above, the smallest are left out
REWARD_BINS = 20
PICKS, BEST = "C0", "#9ecae1"


def position_figure(metrics: dict) -> Figure:
    """Where the picks stand beside where the best candidates stand, and where chance would pick.

    Args:    metrics: as ranking_metrics returns them.
    """
    counted = max(metrics["n"], 1)
    picks, best, chance = (
        np.array(metrics[f"{key}_by_position"]) / counted for key in ("picks", "best", "chance")
    )
    places = np.arange(1, len(picks) + 1)
    figure, axes = _new_figure(min(max(5.5, 0.55 * len(places) + 1.5), 11.0), 3.8)
    if len(places) <= BARS_UP_TO:
        axes.bar(places - 0.2, picks, 0.4, color=PICKS, label="picked")
        axes.bar(places + 0.2, best, 0.4, color=BEST, label="best (ties shared)")
        axes.set_xticks(places)
        axes.hlines(chance, places - 0.46, places + 0.46, color="black", lw=1.2, ls="--", label="by chance")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(BARS_UP_TO, integer=True))
        edges = np.arange(len(places) + 1) + 0.5
        style = {"baseline": None, "clip_on": False}  # a share of 0 is not to vanish behind the axis
        axes.stairs(best, edges, color=BEST, lw=3.0, label="best (ties shared)", **style)
        axes.stairs(picks, edges, color=PICKS, lw=1.2, label="picked", **style)
        axes.stairs(chance, edges, color="black", lw=1.0, ls="--", label="by chance", **style)
    axes.set(xlim=(0.4, len(places) + 0.6))
    axes.set(xlabel="Position of the candidate, as given", ylabel="Share of questions", ylim=(0, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_counted(metrics["n"], metrics["num_skipped"]), fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def group_figure(per_group: dict[str, dict]) -> Figure:
    """Accuracy with its 95 % interval, and reward ratio, one line a group in the order given.

    Args:    per_group: what group_metrics returns; a group without a question counted is left out.
    """
    groups = [(name, values) for name, values in per_group.items() if values["n"]]
    largest = sorted(groups, key=lambda group: -group[1]["n"])[:GROUPS_UP_TO]
    shown = [group for group in groups if group in largest]
    places = np.arange(len(shown))
    figure, axes = _new_figure(7.0, 1.5 + 0.32 * max(len(shown), 2))
    for place, (_, values) in zip(places, shown):
        low, high = binomial_interval(round(values["accuracy"] * values["n"]), values["n"])
        axes.hlines(place, low, high, color=PICKS, lw=2.5, alpha=0.4)
        axes.text(1.03, place, f"{values['n']:,}", va="center", fontsize=8, color="0.3")
    accuracy = [values["accuracy"] for _, values in shown]
    ratio = [np.nan if values["reward_ratio"] is None else values["reward_ratio"] for _, values in shown]
    axes.scatter(accuracy, places, s=36, color=PICKS, zorder=3, label="accuracy, 95 % interval")
    axes.scatter(
        ratio, places, s=36, marker="D", color="none", edgecolor="C1", zorder=4, label="reward ratio"
    )
    axes.text(1.03, -0.75, "questions", va="bottom", fontsize=8, color="0.3")
    axes.set_yticks(places, [_shorten(name) for name, _ in shown])
    left = min([0.0, *(value for value in ratio if np.isfinite(value))])
    axes.set(xlim=(left - 0.01, 1.01), ylim=(max(len(shown), 1) - 0.4, -0.6))
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    if len(groups) > len(shown):
        axes.set_title(f"the {len(shown)} largest of {len(groups)} groups", fontsize=10)
    return figure


def confidence_figure(scores: np.ndarray, rewards: np.ndarray) -> Figure | None:
    """How often the pick is a best one over its softmax probability, in bins of equal mass.

    Args:    as ranking_metrics.
    Returns: None when no question can be ranked.
    """
    summary = pick_calibration(scores, rewards)
    if summary is None:
        return None
    figure = reliability_figure(summary)
    figure.axes[0].set(
        xlabel="Probability of the pick (mean of the bin)", ylabel="Share of picks that are best"
    )
    for text in figure.axes[0].get_legend().get_texts():
        text.set_text(text.get_text().replace("scores", "question(s)"))
    return figure


def reward_figure(scores: np.ndarray, rewards: np.ndarray) -> Figure:
    """The rewards of the picks as a histogram, over those of a candidate picked at random.

    Args:    as ranking_metrics.
    """
    scores, rewards, num_skipped = rankable(scores, rewards)
    keep = ~np.isnan(rewards)
    picked = np.take_along_axis(rewards, scores.argmax(axis=1)[:, None], axis=1)[:, 0]
    low, high = np.nanmin(rewards, initial=0.0), np.nanmax(rewards, initial=1.0)
    half = (
        (high - low) / REWARD_BINS / 2
    )  # bins around round values: 0, 0.05, ... 1; at an edge float32 decides
    edges = np.linspace(low - half, high + half, REWARD_BINS + 2)
    share = keep / keep.sum(axis=1, keepdims=True)
    counted = max(len(rewards), 1)
    figure, axes = _new_figure(6.0, 3.8)
    axes.hist(picked, edges, weights=np.full(len(picked), 1 / counted), color=PICKS, label="the pick")
    axes.hist(
        rewards[keep],
        edges,
        weights=share[keep] / counted,
        histtype="step",
        color="black",
        lw=1.2,
        label="a random candidate",
    )
    if len(picked):
        axes.axvline(
            picked.mean(), color=PICKS, lw=1, ls=":", label=f"mean of the picks, {picked.mean():.3f}"
        )
    axes.set(xlabel="Reward", ylabel="Share of questions", xlim=(edges[0], edges[-1]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_counted(len(rewards), num_skipped), fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _counted(num_questions: int, num_skipped: int) -> str:
    """How many questions a figure is of."""
    skipped = f", {num_skipped:,} that cannot be ranked left out" if num_skipped else ""
    return f"{num_questions:,} questions{skipped}"


def _new_figure(width: float, height: float) -> tuple:
    """A figure of that many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _shorten(name: str) -> str:
    """A name that fits beside an axis, without its middle where it is too long; "$" opens no formula."""
    half = (LONGEST_NAME - 3) // 2
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}...{name[-half:]}"
    return short.replace("$", r"\$")
