"""The stages of jobs.pipeline: each a job or runs of train.py on files, its result a line of the ablation table.

A stage is a function of the Pipeline (flags, folder, clock, the lines before it). It returns its line, {"what", "run",
"details", ...}, or raises Skip where there is nothing to do. None of them reads a test row; jobs/pipeline.py has those
scored at the end, when everything is chosen.
"""

import json
import math
import shlex
import shutil
import sys
from argparse import Namespace
from hashlib import sha256
from pathlib import Path

import jobs.selftrain
import train
from core.errors import UserError
from core.rows import RowFormat
from core.runs import RunRecord
from core.spent import refuse_test_rows
from jobs import calibrate, ensemble, tune
from jobs.cells import SCRIPT
from jobs.compare import model_flags, words
from jobs.pipeline_state import REGULARISERS, Pipeline, Skip, run_minutes
from jobs.scored import has_split
from jobs.stage_rows import read_hashes

FEWEST_TRIALS = (
    4.0  # full trainings that a search must have time for: below, TPE and pruning have nothing to go by
)
SEARCH_SHARE = 0.4  # of the time that is left; the rest trains members of the ensemble
REGULARISER_SHARE = 0.3  # the same; what is trained is a member too
SELFTRAIN_SHARE, ROUNDS = 0.4, 3  # the same; rounds behind the first training, at the most
MEMBERS, MOST_MEMBERS = 3, 8  # more runs of the best flags: without a budget of hours, and with one
POOLINGS = ("mean_max", "mean", "attention", "cls")  # members that differ by more than their seed agree less


COMBINED_BY = ("auto", "macro_f1", "accuracy", "loss")  # metrics that jobs.ensemble can choose by


def single(pipe: Pipeline) -> dict:
    """One model with the flags as given."""
    if not pipe.is_trained("single"):
        one, left = pipe.forecast_minutes(pipe.flags()), pipe.minutes_left()
        if one > left:
            raise UserError(
                f"--hours {pipe.args.hours:g}: the single model alone is expected to take {one:.1f} min, and "
                f"{left:.1f} are left for it; more --hours, or fewer --epochs in --flags"
            )
    runs, failed = pipe.train({"single": pipe.flags()})
    if failed:
        raise UserError(f"the single model: {failed['single']}")
    return {"what": f"{pipe.model_of(runs['single'])}, flags as given", "run": runs["single"]}


def regularisers(pipe: Pipeline) -> list[dict]:
    """The single model once more with each regulariser, a line each."""
    given = train.parse_args([*pipe.flags(), "--output_dir", "x"])
    one, left = pipe.minutes_of("single"), REGULARISER_SHARE * pipe.minutes_left()
    lines, wanted = {}, {}
    for name, (own, times) in REGULARISERS.items():
        told = " ".join(own)
        lines[name] = {"key": name, "name": f"single model, {told}", "what": "", "run": None, "minutes": 0.0}
        cost = 0.0 if pipe.is_trained(name) else times * one
        if getattr(given, name):
            lines[name] |= {"status": "skipped", "why": "is among --flags: all runs have it"}
        elif cost > left:
            why = f"would take {cost:.1f} min, and {left:.1f} are left for it"
            lines[name] |= {"status": "no time", "why": why}
        else:
            wanted[name], left = [*pipe.flags(), *own], left - cost
    runs, failed = pipe.train(wanted)
    for name, run in runs.items():
        lines[name] |= {"run": run, "minutes": run_minutes(run)}
    for name, why in failed.items():
        lines[name] |= {"status": "failed", "why": why}
    return list(lines.values())


def search(pipe: Pipeline) -> dict:
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


def architectures(pipe: Pipeline) -> list[dict]:
    """The other models of --models, a line each."""
    if not pipe.args.models:
        raise Skip("no --models given")
    given = Namespace(epochs="auto", learning_rate="auto", flags="")
    wanted, lines, left = {}, {}, (1 - SEARCH_SHARE) * pipe.minutes_left()
    for name, own in (model_flags(word, given) for word in pipe.args.models):
        flags = [*own, *pipe.row_flags(), *pipe.shared_flags()]
        lines[name] = {"key": name, "name": name, "what": "another model", "run": None, "minutes": 0.0}
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
        what = f"another model: {pipe.model_of(run)}"
        lines[name] |= {"what": what, "run": run, "minutes": run_minutes(run)}
    for name, why in failed.items():
        lines[name] |= {"status": "failed", "why": why}
    return list(lines.values())


def feedback(pipe: Pipeline) -> dict:
    """ppo.py --feedback on the best run so far."""
    if not pipe.args.feedback:
        raise Skip("no --feedback given")
    policy, folder = pipe.best_run(), pipe.folder / "runs" / "feedback"
    one, left = pipe.minutes_of("single"), pipe.minutes_left()
    if one > left and not (folder / "run.json").is_file():
        why = f"is given the time of a training, {one:.1f} min, and {left:.1f} are left"
        raise Skip(why, no_time=True)
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


def selftrain(pipe: Pipeline) -> dict:
    """jobs.selftrain: pseudo-labels of --unlabelled rows."""
    if not pipe.args.unlabelled:
        raise Skip("no --unlabelled rows given")
    names, path = ("text_field", "pair_field"), pipe.args.unlabelled
    row_format = RowFormat(*(getattr(pipe.row_format(), name) for name in names))
    refuse_test_rows(read_hashes(path, row_format), "--unlabelled", path, [pipe.folder / "split"])
    folder, one = pipe.folder / "selftrain", pipe.minutes_of("single")
    room = SELFTRAIN_SHARE * pipe.minutes_left()
    rounds = min(ROUNDS, math.floor(room / one) - 1) if math.isfinite(room) else ROUNDS
    if rounds < 1 and not (folder / "summary.json").is_file():
        why = f"{room:.1f} min are {room / one:.1f} trainings of {one:.1f} min; the first round is the second training"
        raise Skip(why, no_time=True)
    flags = [*words(pipe.args.flags, "--flags"), *pipe.columns(), "--metric", pipe.args.metric]
    given = {"train_data": pipe.parts["train"], "val_data": pipe.parts["validation"], "unlabelled": path}
    given |= {"calibration_data": pipe.parts["calibration"]} if "calibration" in pipe.parts else {}
    given |= {
        "flags": shlex.join(flags),
        "rounds": max(1, rounds),
        "seed": pipe.args.seed,
        "output_dir": folder,
    }
    given |= {"gpus": pipe.args.gpus} if pipe.args.gpus else {}
    found = jobs.selftrain.main([*(f"--{name}={value}" for name, value in given.items()), "--no_rival"])
    what = f"pseudo-labels of unlabelled rows: round {found['best_round']} of {len(found['rounds']) - 1}"
    details = {name: found[name] for name in ("best_round", "gain", "stopped")}
    return {"what": what, "run": Path(found["run"]), "details": details}


def members(pipe: Pipeline) -> dict:
    """More runs of the best flags, as many as there is time for, and all runs of the same labels as one."""
    args, room, best = pipe.args, pipe.minutes_left(), pipe.best_flags()
    one = pipe.minutes_of(pipe.best_of(["single", *REGULARISERS, "search"])["key"])
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
        again = (
            len(runs) * max(0, args.folds - 1) * one
        )  # each run args.folds times, without a fold of its rows
        if args.folds and again <= pipe.minutes_left():
            how += ["--folds", str(args.folds)] + (["--gpus", args.gpus] if args.gpus else [])
        ensemble.main([*map(str, runs), *how])
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    about = RunRecord.read(folder).record["ensemble"]
    what = f"{len(runs)} runs as one: {about['method']}" + "".join(f"; {name} failed" for name in failed)
    what += "; no time for --folds" if args.folds and not about.get("folds") else ""
    return {"what": what, "run": folder, "details": about, "is_cross_fitted": True}


def is_of(folder: Path, runs: list[Path]) -> bool:
    """Whether an ensemble's folder is there and of these runs: a later start may have brought more."""
    if not (folder / "run.json").is_file():
        return False
    known = {
        (folder / member["run"]).resolve() for member in RunRecord.read(folder).record["ensemble"]["members"]
    }
    return known == {run.resolve() for run in runs}


def calibration(pipe: Pipeline) -> dict:
    """jobs.calibrate on the best run: its probabilities; its decisions stay."""
    best = pipe.best_run()
    found = calibrate.main([str(best), "--seed", str(pipe.args.seed), "--no_thresholds"])
    return {
        "what": f"probabilities of {best.name}: {found['method']}",
        "run": best,
        "details": found,
        "is_cross_fitted": True,
    }


def thresholds(pipe: Pipeline) -> dict:
    """jobs.calibrate on the best run: a threshold for each label, on its probabilities as they are by now."""
    if not pipe.state["multi_label"]:
        raise Skip("one label a row: the most probable class decides")
    before = next((line for line in pipe.state["stages"] if line["key"] == "calibration"), {})
    best, method = pipe.best_run(), before.get("details", {}).get("method", "none")
    found = calibrate.main([str(best), "--seed", str(pipe.args.seed), "--method", method])
    what = f"a threshold for each label of {best.name}; {found['left_at_half']} of them stay at 0.5"
    return {"what": what, "run": best, "details": found, "is_cross_fitted": True}
