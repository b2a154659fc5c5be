"""What jobs.calibrate prints and writes: tables, calibration.json and thresholds.json, pictures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from core.calibration import MEASURES, SHAPE
from core.evaluate import CROSS_FITTED
from core.files import copy_file, write_json
from core.plots import reliability_pair_figure, save_png, threshold_figure
from core.results_table import format_table
from core.stored import read_json
from core.thresholds import f1_curves

FEW_ROWS = 200  # assumption: below, say so
FEW_POSITIVE = 10  # rows of a class, below which its own threshold is hardly one
PANELS = 12
MOST_CLASSES = 40  # in the printed table


def as_calibration(
    fit: dict, methods: dict, measured: dict, test: dict | None, split: str, seed: int
) -> dict:
    """What calibration.json holds.

    Args:    fit: method, parameters, label_names, fitted_on | methods: what each came to | measured, test: of
             compare_calibration, with n and labels_changed | split: of the rows that were fitted on.
    Returns: the keys of core.metrics.calibration_summary are those after calibration, cross-fitted.
    """
    after = {name: measured["after"][name] for name in ("ece", "brier", "nll", "bins")}
    after["temperature"] = fit["parameters"].get("temperature", 1.0)
    measured_on = CROSS_FITTED.replace("validation", split, 1)
    return {
        **after,
        **fit,
        "measured_on": measured_on,
        "seed": seed,
        **measured,
        "methods": methods,
        "test": test,
    }


def first_thresholds(folder: Path, label_names: list[str]) -> tuple[np.ndarray, str]:
    """(C,) thresholds that the run was finished with, and the rows that they were found on."""
    path = folder / "thresholds.uncalibrated.json"
    path = path if path.is_file() else folder / "thresholds.json"
    if not path.is_file():
        return np.full(len(label_names), 0.5), "nothing: 0.5"
    stored = read_json(path, SHAPE)
    return np.array([stored["thresholds"][name] for name in label_names]), stored["tuned_on"]


def class_table(found: dict, truth: np.ndarray, label_names: list[str]) -> dict[str, dict]:
    """What tune_thresholds found for each class, with "intervals" (C, 2); JSON-safe. Args: truth: (n, C) bool."""
    low, high = found["intervals"].T
    values = {"threshold": found["thresholds"], "exact": found["exact"], "exact_low": low, "exact_high": high}
    values |= {name: found[name] for name in ("expected", "f1_half", "f1", "gain", "gain_low", "gain_high")}
    table = {}
    for c, name in enumerate(label_names):
        table[name] = {"rows": int(truth[:, c].sum())} | {k: float(v[c]) for k, v in values.items()}
        table[name]["left_at_half"] = bool(found["is_left"][c])
    return table


def too_few(truth: np.ndarray, label_names: list[str], measured: dict) -> list[str]:
    """Notes on what the rows are too few to say. Args: truth: (n, C) bool | measured: of compare_calibration."""
    notes, num_rows, chance = [], len(truth), measured["before"]["by_chance"]
    if num_rows < FEW_ROWS:
        notes.append(f"note: {num_rows} rows are few: read the intervals, not the numbers")
    if measured["before"]["ece"] <= chance["high"]:
        notes.append(
            f"note: these rows do not show that anything is wrong: an ECE of {measured['before']['ece']:.4f} is what "
            f"chance gives to probabilities that are exactly right ({chance['mean']:.4f}, up to {chance['high']:.4f})"
        )
    support = truth.sum(axis=0)
    rare = np.flatnonzero(support < FEW_POSITIVE)
    if len(rare):
        named = ", ".join(f"{label_names[c]} ({support[c]})" for c in rare[:8])
        more = f" and {len(rare) - 8} more" if len(rare) > 8 else ""
        notes.append(f"note: classes with fewer than {FEW_POSITIVE} rows: {named}{more}")
    return notes


def results_text(calibration: dict, tuned: dict | None, notes: list[str]) -> str:
    """All tables and notes, for the terminal."""
    methods = [
        (name + " <- chosen" * (name == calibration["method"]), {
            "NLL": found["nll"], "above the lowest": found["behind"], "its error": found["standard_error"],
            "rows whose label changes": found["labels_changed"],
        })
        for name, found in calibration["methods"].items()
    ]  # fmt: skip
    parts = [
        f"fitted on {calibration['fitted_on']}; measured on {calibration['measured_on']}",
        format_table(methods, list(methods[0][1])),
        measures_text(calibration, calibration["method"], "cross-fitted"),
    ]
    if tuned and "classes" in tuned:
        parts += [classes_text(tuned), rules_text(tuned["macro_f1"], "macro F1, cross-fitted")]
    test = calibration["test"]
    if test:
        parts.append(measures_text(test, calibration["method"], f"test rows, {test['path']}"))
        if "macro_f1" in test:
            parts.append(rules_text(test["macro_f1"], "macro F1, test rows"))
    return "\n\n".join(parts + ["\n".join(notes)] * bool(notes))


def measures_text(found: dict, method: str, where: str) -> str:
    """Before, after and the change, each with its interval."""
    columns = {"ece": "ECE", "brier": "Brier", "nll": "NLL (nats)"}
    lines = [("before", "before"), ("after", f"after: {method}")][: 1 if method == "none" else 2]
    table = []
    for name, title in lines:
        numbers, intervals = found[name], found[name]["intervals"]
        table.append((title, {columns[k]: _with_interval(numbers[k], *intervals[k]) for k in MEASURES}))
    if len(lines) == 2:
        change = {columns[k]: _with_interval(*found["change"][k].values(), "+") for k in MEASURES}
        table.append(("change", change))
    chance = found[lines[-1][0]]["by_chance"]
    table.append(("right ones, by chance", {"ECE": f"{chance['mean']:.4f} (up to {chance['high']:.4f})"}))
    told = f"{found['labels_changed']} rows change their label"
    return f"{where}, {found['n']} rows:\n{format_table(table, list(columns.values()))}\n{told}"


def classes_text(tuned: dict) -> str:
    """The thresholds, the class with most rows first."""
    classes = sorted(tuned["classes"].items(), key=lambda item: -item[1]["rows"])
    table = [
        (name, {
            "rows": c["rows"], "threshold": "0.5 (left)" if c["left_at_half"] else f"{c['threshold']:.3f}",
            "expected": f"{c['expected']:.3f}",
            "exact": f"{c['exact']:.3f} ({c['exact_low']:.3f}, {c['exact_high']:.3f})",
            "F1 at 0.5": f"{c['f1_half']:.3f}",
            "gain": f"{c['gain']:+.3f} ({c['gain_low']:+.3f}, {c['gain_high']:+.3f})",
        })
        for name, c in classes
    ]  # fmt: skip
    text = format_table(table[:MOST_CLASSES], list(table[0][1]))
    more = f"\n... and {len(table) - MOST_CLASSES} more" if len(table) > MOST_CLASSES else ""
    return (
        f"thresholds on calibrated probabilities, drawn from exact to expected with the weight of {tuned['strength']} "
        f"positive rows\n{text}{more}"
    )


def rules_text(rules: dict, where: str) -> str:
    """Macro F1 of each rule, its gain over 0.5 with an interval."""
    table = [
        (
            name,
            {"macro F1": f["macro_f1"], "gain over 0.5": _with_interval(f["gain"], f["low"], f["high"], "+")},
        )
        for name, f in rules.items()
    ]
    return f"{where}:\n{format_table(table, ['macro F1', 'gain over 0.5'])}"


def draw(
    calibration: dict, found: dict | None, truth: np.ndarray, label_names: list[str]
) -> dict[str, Figure]:
    """The pictures by name. Args: found: what tune_thresholds gives, with "probs" (n, C) and "intervals" (C, 2)."""
    titles = "before", f"after: {calibration['method']}, cross-fitted"
    pictures = {
        "calibration": reliability_pair_figure(calibration["before"], calibration["after"], titles),
    }
    if found:
        support = truth.sum(axis=0)
        shown = [c for c in np.argsort(-support, kind="stable") if support[c]]
        if len(shown) > PANELS:  # the most frequent and the rarest
            shown = shown[: PANELS // 2] + shown[-PANELS // 2 :]
        if shown:
            at = np.linspace(0, 1, 201)
            curves = f1_curves(found["probs"][:, shown], truth[:, shown], at)
            names = [f"{label_names[c]}: {support[c]} rows" for c in shown]
            pictures["threshold_curves"] = threshold_figure(
                at, curves, found["thresholds"][shown], found["intervals"][shown], names
            )
    return pictures


def write_files(folder: Path, calibration: dict, tuned: dict | None, pictures: dict[str, Figure]) -> None:
    """Write calibration.json, thresholds.json and the pictures; what was there from the run is kept first.

    A kill between the two files leaves a pair that core.calibration.read_fit refuses.
    """
    for name in ("calibration", "thresholds"):
        path, kept = folder / f"{name}.json", folder / f"{name}.uncalibrated.json"
        if path.is_file() and not kept.exists():
            copy_file(path, kept)
    for name, picture in pictures.items():
        save_png(picture, folder / f"{name}.png")
    write_json(folder / "calibration.json", calibration)
    if tuned:
        write_json(folder / "thresholds.json", tuned)


def _with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """A number with its interval as a cell of a table."""
    return f"{value:{sign}.4f} ({low:{sign}.4f}, {high:{sign}.4f})"
