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
import subprocess
import sys
from argparse import Namespace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

import train
from core.cache import LabelColumn
from core.errors import UserError
from core.evaluate import headline, measure
from core.rows import BadRows, RowError, RowFormat, read_rows
from core.runs import RunRecord
from core.spent import count_common, refuse_test_rows, row_hash, write_uses
from data import split as data_split
from jobs import calibrate, ensemble, tune
from jobs.cells import SCRIPT, Cell, check_cell, train_all
from jobs.compare import model_flags, words
from jobs.final_scores import LabelRows, baseline_scores, read_truth
from jobs.scored import has_split

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
    """Divide --data, or check the parts as they are given."""
    args, folder = pipe.args, pipe.folder / "split"
    if not args.data:
        pipe.labels()
        check_parts(pipe)
        return {"what": "the parts as given", "details": {"parts": pipe.parts}}
    names = ("shares", "group_field", "text_field", "pair_field", "label_field")
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    given |= {"input": args.data, "output_dir": folder, "seed": args.seed}
    if not (folder / "split.json").is_file():
        data_split.main([f"--{name}={value}" for name, value in given.items()])
    missing = [part for part in ("validation", "test") if part not in pipe.parts]
    if missing:
        raise UserError(f"--shares {args.shares}: leaves no {missing[0]} rows; only calibration can be 0")
    pipe.labels()
    return {"what": "rows divided once, near-duplicates kept on one side", "details": {"parts": pipe.parts}}


def check_parts(pipe: "Pipeline") -> None:
    """Of parts as given: labels are those of train, no row that chooses is a test row; their hashes are kept."""
    names, _, row_format = pipe.labels()
    hashes = {}
    for part, path in pipe.parts.items():
        found, _ = label_names(path, row_format, f"--{PARTS[part]}")
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise UserError(
                f"--{PARTS[part]} {path}: labels without a training row: {', '.join(unknown[:20])}"
            )
        hashes[part] = SimpleNamespace(hashes=read_hashes(path, row_format))
    write_uses(pipe.folder / "split", hashes)
    for part in ("validation", "calibration"):
        if part in hashes:
            refuse_test_rows(
                hashes[part].hashes, f"--{PARTS[part]}", pipe.parts[part], [pipe.folder / "split"]
            )
    num_common = count_common(hashes["test"].hashes, hashes["train"].hashes)
    if num_common:
        print(f"note: {num_common} test rows are training rows too, by their text: their scores flatter; "
              "python -m data.split --input TRAIN --test_data TEST leaves such rows out")  # fmt: skip


def read_hashes(path: str, row_format: RowFormat) -> np.ndarray:
    """(n,) uint64, a row_hash for each row of a file."""
    rows = (row for _, row in read_rows(path, BadRows(path), path))
    return np.array([row_hash(*row_format.text(row)) for row in rows], np.uint64)


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
    runs, failed = pipe.train({"single": pipe.flags()})
    if failed:
        raise UserError(f"the single model: {failed['single']}")
    return {"what": f"{pipe.model_of(runs['single'])}, flags as given", "run": runs["single"]}


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
    details = {"trials": found["cost"]} | {name: found[name] for name in ("preset", "best", "default")}
    what = "flags searched with Optuna; the best trial"
    return {"what": what, "run": Path(found["run"]), "details": details}


def architectures(pipe: "Pipeline") -> list[dict]:
    """The other models of --models, a line each."""
    if not pipe.args.models:
        raise Skip("no --models given")
    given = Namespace(epochs="auto", learning_rate="auto", flags="")
    wanted, lines, left = {}, {}, (1 - SEARCH_SHARE) * pipe.minutes_left()
    for name, own in (model_flags(word, given) for word in pipe.args.models):
        flags = [*own, *pipe.row_flags(), *pipe.shared_flags()]
        lines[name] = {"key": name, "name": name, "what": "another model", "run": None}
        try:
            cost = 0.0 if pipe.is_trained(name) else pipe.forecast_minutes(flags)
        except UserError as error:
            lines[name] |= {"status": "failed", "why": str(error)}
            continue
        if cost > left:
            why = f"would take {cost:.1f} min, and {left:.1f} are left for it"
            lines[name] |= {"status": "no time", "why": why}
            continue
        wanted[name], left = flags, left - cost
    runs, failed = pipe.train(wanted)
    for name, run in runs.items():
        lines[name] |= {"what": f"another model: {pipe.model_of(run)}", "run": run}
    for name, why in failed.items():
        lines[name] |= {"status": "failed", "why": why}
    return list(lines.values())


def feedback(pipe: "Pipeline") -> dict:
    """ppo.py --feedback on the best run so far."""
    if not pipe.args.feedback:
        raise Skip("no --feedback given")
    policy, folder = pipe.best_run(), pipe.folder / "runs" / "feedback"
    row_format = RowFormat("text", "pair" if pipe.args.pair_field else "")
    tested = [pipe.folder / "split"]
    refuse_test_rows(read_hashes(pipe.args.feedback, row_format), "--feedback", pipe.args.feedback, tested)
    command = [sys.executable, str(SCRIPT.parent / "ppo.py")]
    if not (folder / "run.json").is_file():
        command += ["--feedback", pipe.args.feedback, "--policy", str(policy)]
        command += ["--val_data", pipe.parts["validation"], "--seed", str(pipe.args.seed)]
        pipe.run([*command, "--output_dir", str(folder)], "feedback")
    elif RunRecord.read(folder).record["status"] != "finished":
        pipe.run([*command, "--resume", str(folder)], "feedback")
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
    args, room, best = pipe.args, pipe.minutes_left(), pipe.best_flags()
    one = pipe.minutes_of(pipe.best_of(["single", "search"])["key"])
    wanted = (MOST_MEMBERS if args.hours else MEMBERS) if args.members == "auto" else args.members
    wanted = min(wanted, max(0, math.floor(room / one))) if math.isfinite(room) else wanted
    varied = train.parse_args([*best, "--output_dir", "x"]).architecture == "bert"
    kind = sha256(json.dumps([best, pipe.preset_text()]).encode()).hexdigest()[
        :6
    ]  # other flags, other members
    flags = {}
    for k in range(1, wanted + 1):
        own = ["--head", "linear", "--pooling", POOLINGS[(k - 1) % len(POOLINGS)]] if varied else []
        flags[f"member{k}-{kind}"] = [*best, *own, "--seed", str(args.seed + k)]
    trained = [path for path in sorted(pipe.folder.glob("runs/member*")) if pipe.is_trained(path.name)]
    others = [path for path in trained if path.name not in flags]  # of an earlier start
    made, failed = pipe.train(flags)
    runs = [*pipe.runs(), *others, *made.values()]
    if "calibration" in pipe.parts:  # a run that learnt from feedback has no scores of them
        runs = [run for run in runs if has_split(run, "calibration")]
    if len(runs) < 2:
        why = "; ".join(f"{name}: {told}" for name, told in failed.items())
        raise Skip(why or f"one run alone; another would take {one:.1f} min", no_time=not why)
    folder = pipe.folder / "runs" / "ensemble"
    if not is_of(folder, runs):
        new = folder.with_name("ensemble.new")  # beside the old one, which is there until this is whole
        shutil.rmtree(new, ignore_errors=True)
        metric = args.metric if args.metric in COMBINED_BY else "auto"
        how = ["--output_dir", str(new), "--metric", metric, "--seed", str(args.seed)]
        ensemble.main([*map(str, runs), *how])
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    about = RunRecord.read(folder).record["ensemble"]
    what = f"{len(runs)} runs as one: {about['method']}" + "".join(f"; {name} failed" for name in failed)
    return {"what": what, "run": folder, "details": about, "is_cross_fitted": True}


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
    what = f"probabilities and thresholds of {best.name}"
    return {"what": what, "run": best, "details": found, "is_cross_fitted": True}


def run_command(command: list[str], log: Path, name: str) -> None:
    """Run a command, its output into a log. Raises UserError with its last line when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False)
    if done.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(f"{name}: {(last or ['it printed nothing'])[-1][:300]} ({log})")


def train_cells(cells: list[Cell], gpus: list[str]) -> dict[str, str]:
    """Train what is not trained yet. Returns why, by folder name, for those that failed."""
    failed, todo = {}, []
    for cell in cells:
        try:
            todo += [cell] if check_cell(cell) != "finished" else []
        except UserError as error:
            failed[cell.folder.name] = str(error)
    return failed | {folder.name: why for folder, why in train_all(todo, gpus).items()}


def dry_run_minutes(flags: list[str]) -> float:
    """What train.py --dry_run says that a run takes."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags, "--dry_run"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"train.py --dry_run: {(done.stderr.strip().splitlines() or ['failed'])[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["dry_run"]["total_s"] / 60


def label_names(path: str, row_format: RowFormat, flag: str = "--train_data") -> tuple[list[str], bool]:
    """The label names of a file's rows, and whether a row has several. Raises UserError for bad rows."""
    bad, labels = BadRows(path), LabelColumn()
    for line, row in read_rows(path, bad, flag):
        try:
            labels.add(row_format.labels(row))
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    return labels.finish()[0], labels.kind != "one"
