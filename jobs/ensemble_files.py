"""The run folder of an ensemble: what jobs.scored, jobs.compare, jobs.calibrate and predict.py read of any run.

A member's path is kept relative to the folder, so that both can be moved together. Costs are those of the members'
training: minutes are summed, memory is the most of them, speed is the mean over the time.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from matplotlib.figure import Figure

from archs.saving import read_about
from core.evaluate import fit_thresholds, headline, write_evaluation
from core.files import save_array, write_text
from core.plots import save_png
from core.report import split_metrics
from core.runs import TIME, RunRecord, git_commit, versions
from core.spent import write_uses
from jobs.members import Team, joined_uses, scores_sha256

CHOOSES = ("weighted", "greedy", "stacking")  # a mean chooses nothing, nor does one model
OURS, THEIRS = "#d95f0e", "#2c7fb8"


def write_ensemble(
    folder: Path,
    args: argparse.Namespace,
    team: Team,
    combination: np.ndarray | None,
    logits: dict[str, np.ndarray],
    about: dict,
    metric: str,
) -> dict[str, dict]:
    """Write everything; run.json last, so that a folder with one is whole.

    Args:    combination: None for one model, which lies in best_model/ | logits: (n, C) by split | about: method,
             folds, and what measure_worth found | metric: its name in metrics.json.
    Returns: the headline metrics by split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("validation", "calibration", "test", "rows"):  # of a start that was killed
        shutil.rmtree(folder / name, ignore_errors=True)
    logits = {name: np.asarray(values, np.float32) for name, values in logits.items()}
    tuned = team.splits[team.chosen_on]
    thresholds = fit_thresholds(logits[tuned.name], tuned)
    how, found = chosen_how(team, about), {}
    for name in ("validation", "test"):
        if name in team.splits:
            split = team.splits[name]
            metrics = split_metrics(logits[name], split, thresholds, tuned)
            if how:
                is_folded = name == tuned.name and not is_out_of_fold(about)
                metrics["weights_chosen_on"] = f"{name}, cross-fitted in 5 folds" if is_folded else how
            found_on = f"{tuned.path}, all {len(tuned)} rows"
            write_evaluation(folder / name, logits[name], split, metrics, thresholds, found_on)
            found[name] = headline(metrics)
    if "calibration" in team.splits:
        (folder / "calibration").mkdir(exist_ok=True)
        save_array(folder / "calibration" / "logits.npy", logits["calibration"])
    if about["method"] == "stacking":
        save_array(folder / "stacking.npy", combination)
    uses = joined_uses(team.folders)
    write_uses(folder, {use: SimpleNamespace(hashes=hashes) for use, hashes in uses.items()})
    save_png(worth_figure(team, about, metric), folder / "ensemble.png")
    record = make_record(folder, args, team, about, metric)
    write_text(folder / "training_logs.jsonl", json.dumps(record.pop("log")) + "\n")
    RunRecord(folder, record).write(metrics=found, baselines={}, status="finished")
    return found


def is_out_of_fold(about: dict) -> bool:
    """Whether the rows that choose had no part in the combination: a meta-learner was fitted on training rows."""
    return about["method"] == "stacking" and about["folds"] > 0


def chosen_how(team: Team, about: dict) -> str:
    """Which rows chose the weights, in words; "" where nothing was chosen."""
    if about["method"] not in CHOOSES:
        return ""
    if is_out_of_fold(about):
        return f"{team.unique('train_data')}, out-of-fold scores of {about['folds']} folds"
    return f"{team.splits[team.chosen_on].path}, all {len(team.splits[team.chosen_on])} rows"


def make_record(folder: Path, args: argparse.Namespace, team: Team, about: dict, metric: str) -> dict:
    """run.json, and under "log" the record of training_logs.jsonl: one, the members' training put together."""
    costs = team.costs
    minutes = np.array([cost["minutes"] for cost in costs])
    share = minutes / minutes.sum()
    rates = {name: float(share @ [cost[name] for cost in costs]) for name in ("rows_per_s", "tokens_per_s")}
    is_one = about["method"] == "weights_average"
    one_or_all = max if is_one else sum
    first = team.records[0]["arguments"]
    arguments = {name: value for name, value in vars(args).items() if name != "output_dir"}
    arguments |= {"train_data": team.unique("train_data"), "batch_size": first["batch_size"]}
    for name, flag in (
        ("validation", "val_data"),
        ("calibration", "calibration_data"),
        ("test", "test_data"),
    ):
        arguments[flag] = team.splits[name].path if name in team.splits else ""
    arguments |= {name: team.unique(name) for name in ("architecture", "model_name")} | vars(team.row_format)
    num_steps = int(sum(record["num_steps"] for record in team.records))
    members = [
        told | {"run": os.path.relpath(own.resolve(), folder.resolve()), "scores_sha256": scores_sha256(own)}
        for own, told in zip(team.folders, about["members"], strict=True)
    ]
    model = {name: team.unique(name, "model") for name in ("architecture", "head", "model_name")}
    model |= {"label_names": team.label_names, "multi_label": team.multi_label}
    model |= {"row_format": vars(team.row_format)}
    best = {
        "metric": metric,
        "value": about["splits"][team.chosen_on]["ensemble"]["value"],
        "step": num_steps,
    }
    return {
        "status": "running",
        "arguments": arguments,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": git_commit(),
        "versions": versions(),
        "hardware": team.records[0]["hardware"],
        "started": time.strftime(TIME),
        "data": {"train": team.unique("train", "data")}
        | {name: split.sha256 for name, split in team.splits.items()},
        "model": read_about(folder / "best_model") if is_one else model,
        "ensemble": about | {"members": members, "chosen_on": team.chosen_on, "metric": metric},
        "num_steps": num_steps,
        "epochs": team.unique("epochs", ""),
        "learning_rate": team.unique("learning_rate", ""),
        "loss": team.unique("loss", ""),
        "metric": metric,
        "num_parameters": one_or_all(cost["num_parameters"] for cost in costs),
        "num_trained": one_or_all(cost["num_trained"] for cost in costs),
        "timings": {"train_s": 60 * float(minutes.sum())},
        "peak_memory": {"mem/peak_mib": max(cost["peak_mib"] for cost in costs)},
        "best": best,
        "log": {
            "step": num_steps,
            "perf/step_ms": 1e3 * first["batch_size"] / rates["rows_per_s"],
            "perf/tokens_per_s": rates["tokens_per_s"],
        },
    }


def worth_figure(team: Team, about: dict, metric: str) -> Figure:
    """Each member and the ensemble as bars with intervals; beside them the ensemble's paired gain over each member.

    Of the test rows where there are any, else of the rows that chose.
    """
    name = "test" if "test" in about["splits"] else team.chosen_on
    found = about["splits"][name]
    values = [*found["members"], found["ensemble"]]
    labels = [shorten(str(own)) for own in team.folders] + [f"ensemble ({about['method']})"]
    places = np.arange(len(values))
    figure = Figure(figsize=(11, 1.6 + 0.4 * len(values)), layout="constrained")
    bars, gains = figure.subplots(1, 2, width_ratios=(1.3, 1))
    height = np.array([told["value"] for told in values])
    error = np.abs(np.array([[told["low"], told["high"]] for told in values]).T - height)
    colours = [THEIRS] * len(team) + [OURS]
    bars.barh(places, height, 0.65, color=colours, xerr=error, error_kw={"lw": 1.2, "capsize": 3})
    for place, told in zip(places, values, strict=True):
        text = f"{told['value']:.4f}"
        bars.text(
            0.01, place, text, transform=bars.get_yaxis_transform(), va="center", color="white", fontsize=9
        )
    bars.set_yticks(places, labels, fontsize=9)
    bars.set(ylim=(len(values) - 0.4, -0.6), xlabel=f"{metric}, {len(team.splits[name])} {name} rows")
    for place, gain in enumerate(found["gains"]):
        gains.hlines(place, gain["low"], gain["high"], color=OURS, lw=1.6)
        gains.plot(gain["difference"], place, "o", color=OURS)
    gains.axvline(0, color="0.5", lw=1)
    gains.set_yticks(places[:-1], [])
    gains.set(ylim=bars.get_ylim(), xlabel="gain of the ensemble over the member, paired 95 % interval")
    for axes in (bars, gains):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    return figure


def shorten(name: str, longest: int = 40) -> str:
    """The end of a path, which tells runs apart; a dollar sign stays one."""
    return (name if len(name) <= longest else "..." + name[3 - longest :]).replace("$", r"\$")
