"""How a policy learnt, from the records of its training_logs.jsonl, as matplotlib figures."""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def read_logs(folder: Path) -> list[dict]:
    """The records of a run folder's training_logs.jsonl."""
    return [json.loads(line) for line in (folder / "training_logs.jsonl").read_text().splitlines()]


def curve(records: list[dict], x: str, y: str) -> tuple[list[float], list[float]]:
    """The points of all records that hold both fields; a missing x is 0: the first record has seen nothing."""
    found = [(record.get(x, 0), record[y]) for record in records if record.get(y) is not None]
    return [a for a, _ in found], [b for _, b in found]


def learning_figure(records: list[dict]) -> Figure:
    """Validation scores against the rewards that were told, the rollouts' rewards, how far the policy has moved, and
    how the updates went, against optimiser steps.

    Args: records: of one run, in order.
    """
    figure = Figure(figsize=(10, 6.2), layout="constrained")
    (scores, rewards), (moved, updates) = figure.subplots(2, 2)
    _draw(
        scores,
        records,
        "ppo/rewards_told",
        {"eval/reward_ratio": "reward ratio", "eval/accuracy": "accuracy"},
    )
    scores.set(xlabel="Rewards told", ylabel="On validation rows")
    _draw(rewards, records, "step", {"ppo/reward_ratio": "reward ratio", "ppo/accuracy": "accuracy"})
    rewards.set(xlabel="Optimiser steps", ylabel="Of the choices drawn")
    _draw(moved, records, "step", {"ppo/kl": "KL(policy || start)", "ppo/entropy": "entropy"})
    moved.set(xlabel="Optimiser steps", ylabel="Nats")
    parts = {"ppo/clip_share": "clipped choices", "ppo/explained_variance": "explained variance"}
    _draw(updates, records, "step", parts)
    updates.set(xlabel="Optimiser steps", ylabel="Share", ylim=(-0.5, 1))
    return figure


def _draw(axes: Axes, records: list[dict], x: str, names: dict[str, str]) -> None:
    """A line for each field that the records hold."""
    for k, (name, title) in enumerate(names.items()):
        xs, ys = curve(records, x, name)
        if xs:
            axes.plot(xs, ys, color=f"C{k}", marker=".", label=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def estimators_figure(runs: dict[str, list[list[dict]]], start: float) -> Figure:
    """Validation reward ratio of several ways to learn, against the rewards they were told and against seconds.

    Args: runs: records of each run (seed) by the way's name | start: reward ratio of the policy that all began with.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    views = figure.subplots(1, 2, sharey=True)
    for axes, x in zip(views, ("ppo/rewards_told", "perf/train_s"), strict=True):
        for k, (name, seeds) in enumerate(runs.items()):
            curves = [curve(records, x, "eval/reward_ratio") for records in seeds]
            for xs, ys in curves:
                axes.plot(xs, ys, color=f"C{k}", alpha=0.3, lw=0.8)
            shortest = min(len(xs) for xs, _ in curves)  # a run that was stopped early has fewer points
            middle = [
                [sum(part[i][j] for part in curves) / len(curves) for j in range(shortest)] for i in (0, 1)
            ]
            axes.plot(
                *middle,
                color=f"C{k}",
                marker=".",
                label=f"{name} ({len(seeds)} seed{'s' * (len(seeds) > 1)})",
            )
        axes.axhline(start, color="black", lw=0.8, ls="--", label="start")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    views[0].set(xlabel="Rewards told", ylabel="Reward ratio on validation rows")
    views[1].set(xlabel="Seconds of rollouts and updates")
    views[0].legend(frameon=False, fontsize=8)
    return figure
