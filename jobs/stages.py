"""The stages of jobs.pipeline: each a job or runs of train.py on files, its result a line of the ablation table.

A stage is a function of the Pipeline (flags, folder, clock, the lines before it). It returns its line, {"what", "run",
"details", ...}, or raises Skip where there is nothing to do. None of them reads a test row; jobs/pipeline.py has those
scored at the end, when everything is chosen.
"""

import importlib.util
import json
import math
import shlex
import shutil
import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import train
from core.cache import LabelColumn
from core.errors import UserError
from core.evaluate import headline, measure
from core.rows import BadRows, RowError, RowFormat, read_rows
from core.runs import RunRecord
from data import split as data_split
from jobs import calibrate, ensemble, tune
from jobs.cells import SCRIPT, Cell, check_cell, train_all
from jobs.compare import model_flags, words
from jobs.final_scores import LabelRows, baseline_scores, read_truth

if TYPE_CHECKING:
    from jobs.pipeline import Pipeline

PARTS = {
    "train": "train_data",
    "validation": "val_data",
    "calibration": "calibration_data",
    "test": "test_data",
}
FEWEST_TRIALS = (
    4.0  # full trainings that a search must have time for: below, TPE and pruning have nothing to go by
)
SEARCH_SHARE = 0.4  # of the time that is left after the single model; the rest trains members of the ensemble
MEMBERS, MOST_MEMBERS = 3, 8  # more runs of the best flags: without a budget of hours, and with one
POOLINGS = ("mean_max", "mean", "attention", "cls")  # members that differ by more than their seed agree less


COMBINED_BY = ("auto", "macro_f1", "accuracy", "loss")  # metrics that jobs.ensemble can choose by


class Skip(Exception):
    """Why a stage has nothing to do; no_time: since it would not have been finished."""

    def __init__(self, why: str, no_time: bool = False):
        super().__init__(why)
        self.no_time = no_time


def split_rows(pipe: "Pipeline") -> dict:
    """Divide --data, or take the parts as they are given."""
    args = pipe.args
    if not args.data:
        pipe.labels()
        return {"what": "the parts as given", "details": {"parts": pipe.parts}}
    flags = ["--input", args.data, "--output_dir", str(pipe.folder / "split"), "--seed", str(args.seed)]
    for name in ("shares", "group_field", "text_field", "pair_field", "label_field"):
        if getattr(args, name):
            flags += [f"--{name}", getattr(args, name)]
    if not (pipe.folder / "split" / "split.json").is_file():
        data_split.main(flags)
    pipe.labels()
    return {"what": "rows divided once, near-duplicates kept on one side", "details": {"parts": pipe.parts}}


def baselines(pipe: "Pipeline") -> dict:
    """The majority class and TF-IDF with logistic regression, on validation rows."""
    names, several, row_format = pipe.labels()
    path = pipe.parts["validation"]
    truth = read_truth(path, names, row_format)
    rows = LabelRows(names, several, truth, None, {"path": path})
    found = baseline_scores(pipe.parts["train"], path, names, several, row_format)
    numbers = {name: headline(measure(logits, rows)) for name, logits in found.items()}
    pipe.state["baselines"] = {name: {"validation": values} for name, values in numbers.items()}
    return {"what": "majority class; TF-IDF with logistic regression", "details": {}}


def single(pipe: "Pipeline") -> dict:
    """One model with the flags as given."""
    run = pipe.train({"single": pipe.flags()})[0]
    return {"what": f"{pipe.model_of(run)}, flags as given", "run": run}


def search(pipe: "Pipeline") -> dict:
    """jobs.tune around those flags."""
    args, one = pipe.args, pipe.minutes_of("single")
    room = SEARCH_SHARE * pipe.minutes_left()
    folder = pipe.folder / "search"
    if room < FEWEST_TRIALS * one and not (folder / "search.json").is_file():
        why = f"{room:.1f} min are {room / one:.1f} trainings of {one:.1f} min; a search wants {FEWEST_TRIALS:g}"
        raise Skip(f"{why}; more --hours, or fewer --epochs in --flags", no_time=True)
    own = shlex.join([*words(args.flags, "--flags"), *pipe.columns(), *pipe.calibration_flags()])
    given = {"train_data": pipe.parts["train"], "val_data": pipe.parts["validation"], "flags": own}
    given |= {"trials": args.trials, "space": args.space, "metric": args.metric, "seed": args.seed}
    given |= {"output_dir": folder, "retrain_seeds": 0}
    given |= {"hours": f"{room / 60:.4f}"} if math.isfinite(room) else {}
    given |= {"gpus": args.gpus} if args.gpus else {}
    flags = [f"--{name}={value}" for name, value in given.items()]
    found = tune.main(flags)
    details = {
        "trials": found["cost"],
        "preset": found["preset"],
        "best": found["best"],
        "default": found["default"],
    }
    return {
        "what": "flags searched with Optuna; the best trial",
        "run": Path(found["run"]),
        "details": details,
    }


def architectures(pipe: "Pipeline") -> list[dict]:
    """The other models of --models, a line each."""
    if not pipe.args.models:
        raise Skip("no --models given")
    given = Namespace(epochs="auto", learning_rate="auto", flags="")
    wanted = {}
    for word in pipe.args.models:
        name, flags = model_flags(word, given)
        wanted[name] = [*flags, *pipe.row_flags(), *pipe.shared_flags()]
    kept, lines = {}, []
    left = (1 - SEARCH_SHARE) * pipe.minutes_left()
    for name, flags in wanted.items():
        cost = 0.0 if pipe.is_trained(name) else pipe.forecast_minutes(flags)
        if cost > left:
            why = f"would take {cost:.1f} min, and {left:.1f} are left for it"
            lines.append(
                {
                    "key": name,
                    "name": name,
                    "what": "not trained",
                    "run": None,
                    "status": "no time",
                    "why": why,
                }
            )
            continue
        kept[name], left = flags, left - cost
    for name, run in zip(kept, pipe.train(kept), strict=True):
        lines.append({"key": name, "name": name, "what": f"another model: {pipe.model_of(run)}", "run": run})
    return lines


def feedback(pipe: "Pipeline") -> dict:
    """ppo.py --feedback on the best run so far."""
    if not pipe.args.feedback:
        raise Skip("no --feedback given")
    policy, folder = pipe.best_run(), pipe.folder / "runs" / "feedback"
    command = [sys.executable, str(SCRIPT.parent / "ppo.py")]
    if (folder / "run.json").is_file():
        if RunRecord.read(folder).record["status"] != "finished":
            pipe.run([*command, "--resume", str(folder)], "feedback")
    else:
        command += [
            "--feedback",
            pipe.args.feedback,
            "--policy",
            str(policy),
            "--val_data",
            pipe.parts["validation"],
        ]
        pipe.run([*command, "--seed", str(pipe.args.seed), "--output_dir", str(folder)], "feedback")
    return {"what": f"learnt from feedback, from {policy.name}", "run": folder}


def selftrain(pipe: "Pipeline") -> dict:
    """jobs.selftrain on --unlabelled rows."""
    if not pipe.args.unlabelled:
        raise Skip("no --unlabelled rows given")
    if importlib.util.find_spec("jobs.selftrain") is None:
        raise Skip("this version has no jobs.selftrain")
    raise Skip("jobs.selftrain is not called from here yet")


def members(pipe: "Pipeline") -> dict:
    """More runs of the best flags, as many as there is time for, and all runs of the same labels as one."""
    args, one = pipe.args, statistics.median(pipe.run_minutes())
    room = pipe.minutes_left()
    if args.members == "auto":
        wanted = min(MOST_MEMBERS, math.floor(room / one)) if math.isfinite(room) else MEMBERS
    else:
        wanted = min(args.members, math.floor(room / one)) if math.isfinite(room) else args.members
    best = pipe.best_flags()
    varied = train.parse_args([*best, "--output_dir", "x"]).architecture == "bert"
    flags = {}
    for k in range(1, wanted + 1):
        own = ["--head", "linear", "--pooling", POOLINGS[(k - 1) % len(POOLINGS)]] if varied else []
        flags[f"member{k}"] = [*best, *own, "--seed", str(args.seed + k)]
    trained = [path for path in sorted(pipe.folder.glob("runs/member*")) if pipe.is_trained(path.name)]
    others = [path for path in trained if path.name not in flags]  # of an earlier start, which had more time
    runs = [*pipe.runs(), *others, *pipe.train(flags)]
    if len(runs) < 2:
        raise Skip(f"one run alone; another would take {one:.1f} min", no_time=True)
    folder = pipe.folder / "runs" / "ensemble"
    if not is_of(folder, runs):
        shutil.rmtree(folder, ignore_errors=True)
        metric = args.metric if args.metric in COMBINED_BY else "auto"
        how = ["--output_dir", str(folder), "--metric", metric, "--seed", str(args.seed)]
        ensemble.main([*map(str, runs), *how])
    about = RunRecord.read(folder).record["ensemble"]
    return {
        "what": f"{len(runs)} runs as one: {about['method']}",
        "run": folder,
        "details": about,
        "is_cross_fitted": True,
    }


def is_of(folder: Path, runs: list[Path]) -> bool:
    """Whether an ensemble's folder is there and of these runs: a later start may have brought more."""
    if not (folder / "run.json").is_file():
        return False
    known = {
        (folder / member["run"]).resolve() for member in RunRecord.read(folder).record["ensemble"]["members"]
    }
    return known == {run.resolve() for run in runs}


def calibration(pipe: "Pipeline") -> dict:
    """jobs.calibrate on the best run."""
    best = pipe.best_run()
    found = calibrate.main([str(best), "--seed", str(pipe.args.seed)])
    return {
        "what": f"probabilities and thresholds of {best.name}",
        "run": best,
        "details": found,
        "is_cross_fitted": True,
    }


def run_command(command: list[str], log: Path, name: str) -> None:
    """Run a command, its output into a log. Raises UserError with its last line when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)
    if done.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(f"{name}: {(last or ['it printed nothing'])[-1][:300]} ({log})")


def train_cells(cells: list[Cell], gpus: list[str]) -> None:
    """Train what is not trained yet. Raises UserError naming those that failed."""
    todo = [cell for cell in cells if check_cell(cell) != "finished"]
    failed = train_all(todo, gpus)
    if failed:
        raise UserError("; ".join(f"{folder.name}: {why}" for folder, why in failed.items()))


def dry_run_minutes(flags: list[str]) -> float:
    """What train.py --dry_run says that a run takes."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags, "--dry_run"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"train.py --dry_run: {(done.stderr.strip().splitlines() or ['failed'])[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["dry_run"]["total_s"] / 60


def label_names(path: str, row_format: RowFormat) -> tuple[list[str], bool]:
    """The label names of a file's rows, and whether a row has several. Raises UserError for bad rows."""
    bad, labels = BadRows(path), LabelColumn()
    for line, row in read_rows(path, bad, "--train_data"):
        try:
            labels.add(row_format.labels(row))
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    return labels.finish()[0], labels.kind != "one"
