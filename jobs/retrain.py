"""The default and a search's best again, over seeds that the search has not seen: what it made up is told apart.

A search reports the best of many noisy numbers, which flatters it. New seeds take the luck of the seed out of it, but
not that of the rows: both are scored on the rows that the search chose on, and only test rows show the rest.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from core.errors import UserError
from core.runs import RunRecord
from jobs.cells import Cell, check_cell, train_all


def paired_interval(differences: list[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of differences within pairs; None with fewer than two pairs.

    The pairs are seeds: with three of them it is wide (t = 4.3), as it has to be.
    """
    if len(differences) < 2:
        return None
    spread = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    reach = float(student_t.ppf((1 + level) / 2, len(differences) - 1)) * spread
    mean = float(np.mean(differences))
    return mean - reach, mean + reach


def retrain(
    folders: dict[str, Path],
    flags: dict[str, list[str]],
    seeds: list[int],
    metric: str,
    gpus: list[str],
    may_start: Callable[[], bool],
) -> dict:
    """Train default and best once a seed, seed by seed; what is finished there already is not trained again.

    Args:    folders, flags: by "default" and "best"; a run is folders[name]/seed<k> | metric: in metrics.json |
             may_start: asked before each seed: is there time for a pair?
    Returns: seeds (those of which both are finished), default and best (a value a seed), difference (mean, low, high;
             best less default), failed (why, by folder), left_out (seeds without time).
    """
    found = {"metric": metric, "seeds": [], "default": [], "best": [], "failed": {}, "left_out": []}
    for seed in seeds:
        cells = {}
        for name, folder in folders.items():
            run = folder / f"seed{seed}"
            more = ["--seed", str(seed), "--output_dir", str(run)]
            cells[name] = Cell(run, (*flags[name], *more))
        todo = [cell for cell in cells.values() if check_cell(cell) != "finished"]
        if todo and not may_start():
            found["left_out"].append(seed)
            continue
        failed = train_all(todo, gpus) if todo else {}
        found["failed"] |= {str(run): why for run, why in failed.items()}
        values = {name: value_of(cell.folder, metric) for name, cell in cells.items()}
        if None not in values.values():
            found["seeds"].append(seed)
            for name, value in values.items():
                found[name].append(value)
    differences = [best - default for best, default in zip(found["best"], found["default"], strict=True)]
    low, high = paired_interval(differences) or (None, None)
    mean = float(np.mean(differences)) if differences else None
    return found | {"difference": {"mean": mean, "low": low, "high": high}}


def value_of(run: Path, metric: str) -> float | None:
    """The metric of a finished run on its validation rows; None where it is not finished."""
    try:
        record = RunRecord.read(run).record
    except UserError:
        return None
    return record["metrics"]["validation"].get(metric) if record["status"] == "finished" else None


def told_of(found: dict, searched: dict, lower_is_better: bool) -> list[str]:
    """What the retraining says, in sentences. searched: the values that the search had, by default and best."""
    if not found["seeds"]:
        return [
            "Not retrained: " + ("no time was left." if found["left_out"] else "no pair of runs finished.")
        ]
    means = {name: float(np.mean(found[name])) for name in ("default", "best")}
    kept, difference = means["best"] - means["default"], found["difference"]
    seeds = f"{len(found['seeds'])} new seed{'s' * (len(found['seeds']) > 1)}"
    spreads = {name: f"{min(found[name]):.4f} to {max(found[name]):.4f}" for name in means}
    lines = [
        f"Retrained over {seeds}: best {means['best']:.4f} ({spreads['best']}), default {means['default']:.4f} "
        f"({spreads['default']})."
    ]
    better = (difference["high"] or 0) < 0 if lower_is_better else (difference["low"] or 0) > 0
    if difference["low"] is None:
        lines.append(f"Best less default: {kept:+.4f}; one seed gives no interval.")
    else:
        verdict = "a gain is shown" if better else "no gain is shown"
        interval = f"95 % interval {difference['low']:+.4f} to {difference['high']:+.4f}, paired over seeds"
        lines.append(f"Best less default: {kept:+.4f} ({interval}): {verdict}.")
    claimed = searched["best"] - searched["default"]
    lines.append(f"The search itself had claimed {claimed:+.4f}; what it made up is {claimed - kept:+.4f}.")
    if found["left_out"]:
        lines.append(f"No time was left for the seeds {', '.join(map(str, found['left_out']))}.")
    return lines
