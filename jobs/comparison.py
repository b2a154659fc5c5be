"""Finished runs side by side, from their folders: scores with intervals, tests of every pair, cost.

jobs.compare trains the runs and calls compare_runs; jobs.comparison_files writes what comes out. The labels are
read again from the file that a run was scored on: its path stands in run.json, and its hash must still fit.

A line is one setting: runs beside each other that differ in nothing but the seed. n rows, C classes, S seeds.
"""

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np

from core.calibration import SHAPE, apply_calibration, fit_name, read_fit
from core.errors import UserError
from core.evaluate import CROSS_FITTED
from core.flags import FREE_ON_RESUME
from core.metrics import probabilities
from core.rows import BadRows, file_sha256, read_rows, sort_names
from core.runs import RunRecord
from core.statistics import (
    RESAMPLES,
    bootstrap_p,
    bootstrap_scores,
    holm,
    is_right,
    mcnemar,
    percentile_interval,
    score_decisions,
)
from core.stored import ANY, read_json
from core.thresholds import cross_fitted
from jobs.scored import columns, read_scored

SIGNIFICANT = 0.05
SCORES = ("accuracy", "macro_f1")
COSTS = ("num_parameters", "num_trained", "rows_per_s", "tokens_per_s", "peak_mib", "minutes")


@dataclass
class Run:
    """A finished run: where it is, and how it decided on the rows that it was scored on."""

    folder: Path
    record: dict
    split: str  # test, or validation where there was no test file
    label_names: list[str]  # C, of the columns of truth and chosen
    truth: np.ndarray  # (n, C) bool
    chosen: np.ndarray  # (n, C) bool
    costs: dict[str, float]

    @property
    def rows(self) -> tuple:
        """What two runs must have in common to be compared: the scored file's content and its labels' column."""
        about = self.record["model"]
        return self.record["data"][self.split], about["row_format"]["label_field"], about["multi_label"]

    @property
    def setting(self) -> str:
        """What the runs of one line have in common: the folder around them, and in it all that was given but the seed.

        Folders seed0, seed1, ... beside each other are one setting without a look at the rest: jobs.compare sees to it.
        """
        args, left_out = self.record["arguments"], {*FREE_ON_RESUME, "seed"}
        kept = {k: v for k, v in args.items() if k not in left_out and not k.endswith("_data")}
        is_cell = re.fullmatch(r"seed\d+", self.folder.name)
        return json.dumps(
            [str(self.folder.parent), self.record["data"], {} if is_cell else kept], sort_keys=True
        )

    @property
    def place(self) -> list[str]:
        """Model, source and data, by the folder's name: runs/<model>/<source>/<data>[/seed<k> or -seed<k>]."""
        *parts, last = self.folder.resolve().parts
        last = re.sub(r"-?seed\d+$", "", last)
        return [*parts, last][-3:] if last else parts[-3:]


def read_run(folder: str | Path) -> Run:
    """A run from its folder. Raises UserError when it is not finished, or its rows are gone or have changed."""
    folder = Path(folder)
    split = "test" if "test" in RunRecord.read(folder).record.get("data", {}) else "validation"
    found = read_scored(folder, split)
    names, truth = found.label_names, found.truth
    try:
        chosen = (
            decisions(folder / split, found.logits, names, truth)
            if found.multi_label
            else one_hot(found.logits)
        )
        costs = measured_costs(folder, found.record)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder}: is not whole, train it again: {error!r}") from None
    return Run(folder, found.record, split, names, truth, chosen, costs)


def count_rows(path: str, flag: str) -> int:
    """The rows of a file. Raises UserError when it is missing or holds something else than rows."""
    bad = BadRows(path)
    found = sum(1 for _ in read_rows(path, bad, flag))
    bad.raise_if_any()
    return found


@lru_cache
def known_rows(path: str, sha256: str) -> int:
    """The rows of a training file; 0 when it is gone or has changed."""
    return count_rows(path, "--train_data") if Path(path).is_file() and file_sha256(path) == sha256 else 0


def one_hot(logits: np.ndarray) -> np.ndarray:
    """(n, C) bool: the class with the highest score."""
    return logits.argmax(axis=1)[:, None] == np.arange(logits.shape[1])


def decisions(folder: Path, logits: np.ndarray, names: list[str], truth: np.ndarray) -> np.ndarray:
    """(n, C) bool with several labels a row: those behind macro_f1_tuned in the folder's metrics.json."""
    metrics = read_json(folder / "metrics.json", {"thresholds_tuned_on": str, ANY: ANY})
    if metrics["thresholds_tuned_on"] == CROSS_FITTED:
        return cross_fitted(probabilities(logits, True), truth)
    stored = read_json(folder / "thresholds.json", SHAPE)
    if stored.get("fit", "none") != "none":  # found on what jobs.calibrate made of the scores
        fit, _ = read_fit(folder.parent / "validation", names)
        if stored["fit"] != fit_name(**fit):
            raise UserError(
                f"{folder}: its thresholds are of another calibration than the run's; score it again"
            )
        logits = apply_calibration(**fit, logits=logits, multi_label=True)
    return probabilities(logits, True) >= np.array([stored["thresholds"][name] for name in names])


def measured_costs(folder: Path, record: dict) -> dict[str, float]:
    """COSTS of a run. The speed is that of its own step clock, without the first log record: it holds warm-up."""
    text = (folder / "training_logs.jsonl").read_text(encoding="utf-8")
    records = [r for r in map(json.loads, text.splitlines()) if "perf/step_ms" in r]
    steps = np.diff([0, *(r["step"] for r in records)])
    seconds = steps * [r["perf/step_ms"] / 1e3 for r in records]
    tokens = seconds * [r["perf/tokens_per_s"] for r in records]
    first = 1 if len(records) > 1 else 0
    args = record["arguments"]
    num_rows = known_rows(args["train_data"], record["data"]["train"])
    rows_a_step = args["batch_size"]
    if num_rows:  # the last step of an epoch has fewer than the others
        rows_a_step = num_rows / math.ceil(num_rows / rows_a_step)
    return {
        "num_parameters": record["num_parameters"],
        "num_trained": record["num_trained"],
        "rows_per_s": float(rows_a_step * steps[first:].sum() / seconds[first:].sum()),
        "tokens_per_s": float(tokens[first:].sum() / seconds[first:].sum()),
        "peak_mib": record["peak_memory"]["mem/peak_mib"],
        "minutes": record["timings"]["train_s"] / 60,
    }


def compare_runs(folders: list[str | Path]) -> dict:
    """All lines, best first within the rows that they were scored on, and the tests of every pair on the same rows.

    Returns: lines, pairs, rows (what was scored, by letter), num_resamples; JSON-safe.
    """
    by_rows: dict[tuple, dict[str, list[Run]]] = {}
    for folder in folders:
        run = read_run(folder)
        by_rows.setdefault(run.rows, {}).setdefault(run.setting, []).append(run)
    num_pairs = sum(math.comb(len(settings), 2) for settings in by_rows.values())
    num_resamples = max(RESAMPLES, 100 * num_pairs)  # Holm multiplies the least p, 2 / (R + 1), by the pairs
    lines, pairs, rows = [], [], {}
    for k, settings in enumerate(by_rows.values()):
        letter = chr(ord("A") + k) if k < 26 else f"R{k + 1}"
        groups = [sorted(runs, key=seed_of) for runs in settings.values()]
        found, rows[letter] = score_rows_alike(groups, letter, num_resamples)
        found.sort(key=lambda line: -line["macro_f1"])
        for number, line in enumerate(found, len(lines) + 1):
            line["number"] = number
        lines += found
        pairs += [compare_pair(a, b) for a, b in combinations(found, 2)]
    name_lines(lines)
    correct_pairs(pairs)
    for line in lines:
        del line["_samples"], line["_right"]
    return {"lines": lines, "pairs": pairs, "rows": rows, "num_resamples": num_resamples}


def seed_of(run: Run) -> int:
    """The seed that a run was given."""
    return run.record["arguments"]["seed"]


def score_rows_alike(groups: list[list[Run]], letter: str, num_resamples: int) -> tuple[list[dict], dict]:
    """The lines of settings that were scored on the same rows, over all class names that any of them knows."""
    every = [run for runs in groups for run in runs]
    names = sort_names({name for run in every for name in run.label_names})
    first = every[0]
    truth = columns(first.truth, first.label_names, names)
    lines = []
    for runs in groups:
        chosen = np.stack([columns(run.chosen, run.label_names, names) for run in runs])
        scores, samples = score_decisions(truth, chosen), bootstrap_scores(truth, chosen, num_resamples)
        line = {"place": runs[0].place, "rows": letter, "seeds": [seed_of(run) for run in runs]}
        for name in SCORES:
            low, high = percentile_interval(samples[name])
            by_seed = [float(value) for value in scores[name]]
            line |= {name: float(np.mean(by_seed)), f"{name}_low": low, f"{name}_high": high}
            line |= {f"{name}_spread": max(by_seed) - min(by_seed), f"{name}_by_seed": by_seed}
        for name in COSTS:
            values = [run.costs[name] for run in runs]
            line[name] = max(values) if name == "peak_mib" else float(np.mean(values))
        line |= {"runs": [str(run.folder) for run in runs], "arguments": runs[0].record["arguments"]}
        line |= {"learning_rate": runs[0].record["learning_rate"], "epochs": runs[0].record["epochs"]}
        line |= {"hardware": device_name(runs[0].record), "by_run": [run.costs for run in runs]}
        lines.append(line | {"_samples": samples, "_right": is_right(truth, chosen)})
    about = {"file": first.record["arguments"]["test_data" if first.split == "test" else "val_data"]}
    about |= {"split": first.split, "sha256": first.rows[0], "n": len(truth), "num_classes": len(names)}
    about |= {"multi_label": first.rows[2], "classes_differ": any(run.label_names != names for run in every)}
    return lines, about


def device_name(record: dict) -> str:
    """What a run ran on, in words."""
    about = record["hardware"]
    name = about.get("gpu") or f"{about.get('cpu') or about['system']}, {about['threads']} threads"
    return f"{about['world']} x {name}" if about["world"] > 1 else name


def compare_pair(a: dict, b: dict) -> dict:
    """The differences of two lines on the same rows, the first less the second, with intervals and tests.

    The bootstrap takes the mean over seeds. McNemar's test is one of two classifiers: those of the first seed that
    both have (a vote of the seeds would be a third). The p of accuracy is the larger of the two, since the
    bootstrap's is too small where few rows differ.
    """
    common = sorted(set(a["seeds"]) & set(b["seeds"]))
    of_a, of_b = (line["seeds"].index(common[0]) if common else 0 for line in (a, b))
    pair = {"a": a["number"], "b": b["number"]}
    pair["mcnemar"] = mcnemar(a["_right"][of_a], b["_right"][of_b])
    pair["mcnemar"]["seeds"] = [a["seeds"][of_a], b["seeds"][of_b]]
    for name in SCORES:
        samples = a["_samples"][name] - b["_samples"][name]
        low, high = percentile_interval(samples)
        p = bootstrap_p(samples)
        pair[name] = {"difference": a[name] - b[name], "low": low, "high": high, "bootstrap_p": p}
        pair[name]["p"] = max(p, pair["mcnemar"]["p"]) if name == "accuracy" else p
    return pair


def correct_pairs(pairs: list[dict]) -> None:
    """Add p_holm, over all pairs of a score, and whether the difference is shown."""
    for name in SCORES:
        for pair, p in zip(pairs, holm([pair[name]["p"] for pair in pairs]), strict=True):
            pair[name] |= {"p_holm": p, "is_shown": p < SIGNIFICANT}


def name_lines(lines: list[dict]) -> None:
    """Give each line the label that tells it from the others: of model, source and data what varies."""
    places = [line["place"] for line in lines]
    varies = [k for k in range(3) if len({place[k] for place in places}) > 1] or [0]
    for line in lines:
        line["label"] = " / ".join(line["place"][k] for k in varies)
    labels = [line["label"] for line in lines]
    for line in lines:
        if labels.count(line["label"]) > 1:
            line["label"] += f" ({line['number']})"


def verdict(pair: dict, lines: list[dict], name: str) -> str:
    """One sentence: who is better by how much, or that no difference is shown."""
    a, b = (next(line["label"] for line in lines if line["number"] == pair[k]) for k in ("a", "b"))
    found = pair[name]
    points, low, high = (100 * found[key] for key in ("difference", "low", "high"))
    if points < 0:
        a, b, points, low, high = b, a, -points, -high, -low
    p = "p < 0.001" if found["p_holm"] < 0.001 else f"p = {found['p_holm']:.3f}"
    numbers = f"(95 % interval {low:.1f} to {high:.1f}, {p})"
    if found["is_shown"]:
        return f"{a} is better than {b} by {points:.1f} points {numbers}"
    return f"no difference shown between {a} and {b}: {points:.1f} points {numbers}"
