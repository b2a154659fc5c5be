"""Search train.py's flags with Optuna: trials as processes, hopeless ones pruned, a study that any number can join.

    make tune TRIALS=30                                        # the built-in rows, a fresh clone
    python -m jobs.tune --train_data a.jsonl --val_data b.jsonl --trials 30 --hours 1.5 --output_dir runs/tune/mine
    python -m jobs.tune ... --flags="@presets/roberta-base --text_field title" --gpus 0,1,2,3
    python -m jobs.tune ... --space mine.json                  # {"dropout": {"low": 0, "high": 0.3}, ...}
    python -m jobs.tune ... --study sqlite:////shared/mine.db  # the same command on several machines: one search

A trial is train.main in a process of its own; one that crashes, diverges or runs out of memory is one failed trial.
The first is always the default, train.py's flags as --flags has them: it is never pruned, so the best on --val_data is
never below it. What is searched: jobs/search_space.py (--space default, wide, or a JSON file). Evaluations are laid
evenly over a trial (--evaluations) and reported in percent of its own steps, so that trials of other lengths compare.

--pruner halving, the default, is asynchronous successive halving (Li et al. 2020, ASHA): at 12 % of its steps a trial
must be among the best quarter of all that came so far, and at 48 % again. hyperband puts trials into two brackets, and
TPE learns within each alone: for a hundred trials and more. Ctrl-C stops; the same command goes on, and trains again
what had been under way. Test rows have no part in any of this.

Written to --output_dir: trials/<number>/ (run folders; weights of the best alone), trials.md, search.json, search.png,
flags.png, tensorboard/ (HParams), preset (the best flags: python train.py @DIR/preset ...), retrained/. The last line
is JSON.
"""

import argparse
import contextlib
import fcntl
import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from transformers import AutoModel

import train
from archs.loading import load_config, resolve_name
from core.errors import UserError, disk_errors, run_main
from core.flags import Parser, number
from core.rows import file_sha256
from core.runs import git_commit
from core.schedule import auto_epochs, auto_learning_rate
from jobs.compare import check_gpus, data_name
from jobs.comparison import count_rows
from jobs.retrain import retrain, told_of
from jobs.search_loop import MOST_FAILURES, WEIGHTS, run_trials
from jobs.search_report import (
    cost_of,
    cost_text,
    differences,
    importance,
    table_lines,
    table_text,
    trial_row,
    write_search,
)
from jobs.search_space import GIVEN, OF_THE_RUN, Space, check_space, default_space, preset_text, read_space
from jobs.search_study import DONE, Search, bury_dead, full_minutes, open_study, pair_s, queue_default
from jobs.trials import start_training


# fmt: off
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked as far as they can be without the data."""
    parser = Parser(__doc__)
    parser.fromfile_prefix_chars = None  # @presets/NAME is train.py's to read
    flag = parser.add_argument_group("what is trained").add_argument
    flag("--train_data", default="", metavar="FILE", help="training rows")
    flag("--val_data", default="", metavar="FILE", help="rows that the search chooses by")
    flag("--model_name", default="", help="as train.py's; default: that of --flags, or train.py's own")
    flag("--flags", default="", help='of train.py, for default and trials, one string: --flags="@presets/NAME"')
    flag = parser.add_argument_group("search").add_argument
    flag("--space", default="default", metavar="default|wide|FILE",
         help="what is searched; wide: regularisers too, two of which double a trial's time; FILE: JSON")
    flag("--fix", nargs="+", default=[], metavar="NAME", help="flags of the space that stay as the default has them")
    flag("--metric", default="auto", help="any in metrics.json; auto: macro_f1, with several labels macro_f1_tuned")
    flag("--trials", type=number(int, 1), default=30, help="complete and pruned ones, over all workers of the study")
    flag("--hours", type=number(float, 0), default=0.0,
         help="of wall time for this command, retraining included; 0: no limit")
    flag("--pruner", choices=("halving", "hyperband", "median", "none"), default="halving", help="see above")
    flag("--evaluations", type=number(int, 0), default=8,
         help="a trial, laid evenly, unless --flags has --eval_steps; 0: as train.py, each epoch")
    flag("--seed", type=number(int, 0), default=0, help="of the sampler, and of every trial")
    flag("--retrain_seeds", type=number(int, 0), default=3,
         help="new seeds over which the default and the best are trained again; 0: none")
    flag = parser.add_argument_group("where").add_argument
    flag("--study", default="", metavar="URL|journal:FILE",
         help="sqlite:///FILE, another database Optuna knows, or a journal; default: a journal in --output_dir")
    flag("--study_name", default="tune", help="in a database with several studies")
    flag("--workers", type=number(int, 0), default=0, help="trials at once; 0: one on each of --gpus, without them one")
    flag("--gpus", default="", metavar="0,1", help="devices for the trials, one each")
    flag("--keep", choices=("best", "all", "none"), default="best", help="whose weights stay on disk")
    flag("--output_dir", default="", metavar="DIR", help="default: runs/tune/<data>")
    args = parser.parse_args(argv)
    for name in ("train_data", "val_data"):
        if not getattr(args, name):
            raise UserError(f"--{name}: no file given; expected rows in JSON, JSONL or CSV")
    args.gpus = args.gpus.split(",") if args.gpus else []
    check_gpus(args.gpus)
    args.workers = args.workers or max(1, len(args.gpus))
    args.output_dir = args.output_dir or f"runs/tune/{data_name(args.train_data)}"
    return args
# fmt: on


# -- before -----------------------------------------------------------------------------------------------------


def default_flags(args: argparse.Namespace) -> list[str]:
    """The default's flags for train.py. Raises UserError for what is not --flags' to say."""
    try:
        given = shlex.split(args.flags)
    except ValueError as error:
        raise UserError(f"--flags: {args.flags!r} cannot be read: {error}") from None
    data = ["--train_data", args.train_data, "--val_data", args.val_data]
    plain = train.parse_args(data)
    try:
        parsed = train.parse_args([*data, *given])
    except UserError as error:
        raise UserError(f"--flags: train.py: {error}") from None
    for name in GIVEN:
        if getattr(parsed, name) != getattr(plain, name):
            is_test = name == "test_data"
            why = "test rows are read by the report alone" if is_test else "is the search's to give"
            raise UserError(f"--flags: --{name}: {why}; drop it there")
    flags = [*given, *data]
    flags += ["--model_name", args.model_name] if args.model_name else []
    return flags + (["--metric", args.metric] if args.metric != "auto" else [])


def with_numbers(base: argparse.Namespace, num_rows: int) -> argparse.Namespace:
    """The arguments with the numbers that auto stands for, as train.py chooses them: where the space is laid.

    Raises: UserError when the model is not there.
    """
    found = argparse.Namespace(**vars(base))
    if base.epochs == "auto":
        found.epochs = float(auto_epochs(num_rows, base.batch_size))
    config = load_config(resolve_name(base.model_name), base.architecture)
    if base.learning_rate == "auto":
        with torch.device("meta"):  # the rate hangs on the size; the head, which is small, is not in it
            size = sum(param.numel() for param in AutoModel.from_config(config).parameters())
        found.learning_rate = auto_learning_rate(size, base.architecture, base.lora_rank > 0)
    return found


def make_space(args: argparse.Namespace, flags: list[str], numbers: argparse.Namespace) -> Space:
    """The space that --space and --fix mean, checked. Raises UserError."""
    is_own = args.space not in ("default", "wide")
    space = read_space(args.space) if is_own else default_space(numbers, args.space == "wide")
    unknown = [name for name in args.fix if name not in space]
    if unknown:
        raise UserError(f"--fix {unknown[0]}: is not searched; the space has {', '.join(space)}")
    space = {name: spec for name, spec in space.items() if name not in args.fix}
    if not space:
        raise UserError("--fix: leaves nothing to search")
    return check_space(space, flags, f"--space {args.space}")


def prepare(args: argparse.Namespace) -> Search:
    """Check everything that a user can get wrong, open the study, queue the default."""
    flags = default_flags(args)
    base = train.parse_args(flags)
    num_rows = count_rows(args.train_data, "--train_data")
    count_rows(args.val_data, "--val_data")
    numbers = with_numbers(base, num_rows)
    space = make_space(args, flags, numbers)
    paths = {"train": args.train_data, "validation": args.val_data}
    data = {use: {"path": path, "sha256": file_sha256(path)} for use, path in paths.items()}
    configuration = {
        "data": {f"{use} rows": about["sha256"] for use, about in data.items()},
        "flags": {f"--{name}": value for name, value in vars(base).items() if name not in OF_THE_RUN},
        "search": {f"--{name}": getattr(args, name) for name in ("metric", "seed", "evaluations")},
        "space": space,
    }
    study = open_study(args, configuration)
    deadline = time.monotonic() + 3600 * args.hours if args.hours else math.inf
    search = Search(args, flags, base, numbers, space, num_rows, data, study, deadline)
    bury_dead(search)
    queue_default(search)
    return search


# -- after ------------------------------------------------------------------------------------------------------


def retrain_best(search: Search, best: FrozenTrial, default: FrozenTrial, metric: str) -> dict | None:
    """Default and best over new seeds, side by side; None where there is nothing to retrain."""
    args = search.args
    if not args.retrain_seeds or best.number == default.number or search.trials(TrialState.RUNNING):
        return None
    seeds = [args.seed + 1 + k for k in range(args.retrain_seeds)]
    trials = {"default": default, "best": best}
    folders = {
        name: search.folder / "retrained" / f"trial{trial.number:03}" for name, trial in trials.items()
    }
    flags = {name: trial.user_attrs["flags"] for name, trial in trials.items()}

    def may_start() -> bool:
        return search.deadline - time.monotonic() > pair_s(search)

    print(f"\nretraining the default and the best over the seeds {', '.join(map(str, seeds))}")
    found = retrain(folders, flags, seeds, metric, args.gpus, may_start)
    if args.keep != "all":
        for name, folder in folders.items():
            beaten = WEIGHTS if (name, args.keep) != ("best", "best") else ("final_model", "checkpoint")
            for weights in beaten:
                for run in folder.glob("seed*"):
                    shutil.rmtree(run / weights, ignore_errors=True)
    return found | {"folder": str(folders["best"])}


def sentences(search: Search, result: dict) -> list[str]:
    """What came of it."""
    best, default, metric = result["best"], result["default"], result["metric"]
    if best["is_default"]:
        told = [f"No trial beat the default: {metric} {best['value']:.4f}."]
    else:
        told = [
            f"Best: trial {best['number']}, {metric} {best['value']:.4f}, the default's {default['value']:.4f}; "
            f"{differences(best)}. It is the best of many, and so flattered."
        ]
    told.append(cost_text(result["cost"]))
    told += result["told_retrained"]
    num_others = len(search.trials(TrialState.RUNNING))
    if num_others:
        told.append(f"{num_others} trials still run elsewhere: the command that ends last retrains.")
    if len(search.failures) >= MOST_FAILURES:
        told.append(f"Stopped after {MOST_FAILURES} failures in a row, the last: {search.failures[-1]}")
    num_missing = search.args.trials - result["cost"]["n"] - num_others
    if num_missing > 0:
        told.append(f"{num_missing} of {search.args.trials} trials are left: the same command goes on.")
    return told


def preset_comments(result: dict) -> list[str]:
    """Where a preset is from."""
    cost, best = result["cost"], result["best"]
    counts = f"{cost['complete']} complete, {cost['pruned']} pruned, {cost['failed']} failed"
    rows = ", ".join(f"{use} sha256 {about['sha256']}" for use, about in result["data"].items())
    return [
        f"trial {best['number']}, the best of {cost['n']} ({counts}) of the search {result['name']}",
        f"{result['metric']} {best['value']:.4f} on its validation rows, the default {result['default']['value']:.4f}",
        *result["told_retrained"],
        f"rows: {rows}; commit {result['commit']}",
    ]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Commands that share a folder report one after another: the second finds retrained what the first has trained."""
    with open(folder / "report.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def report(search: Search, command: str) -> dict:
    """Retrain, write the files, print the table and the line of JSON. Raises UserError without a finished default."""
    trials = [trial for trial in search.trials() if trial.state.is_finished()]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    default = next((trial for trial in complete if trial.user_attrs.get("default")), None)
    if default is None:
        if search.trials(TrialState.RUNNING):
            raise UserError("the default is still being trained by another worker: nothing to report yet")
        raise UserError(f"--hours {search.args.hours:g}: the default was not finished: give it more time")
    best, rows = search.study.best_trial, [trial_row(trial) for trial in trials]
    metric = best.user_attrs["metric"]
    direction = "minimize" if search.lower_is_better else "maximize"
    result = {
        "name": search.folder.name,
        "command": command,
        "study": search.args.study or f"journal:{search.folder / 'study.journal'}",
        "commit": git_commit(),
        "metric": metric,
        "lower_is_better": search.lower_is_better,
        "data": search.data,
        "best": trial_row(best),
        "default": trial_row(default),
        "cost": cost_of(trials),
        "full_minutes": full_minutes(search),
        "importance": importance(trials, search.space, direction, search.args.seed),
        "retrained": retrain_best(search, best, default, metric),
        "table": table_lines(rows, search.lower_is_better),
        "trials": rows,
    }
    values = {"best": best.value, "default": default.value}
    again = result["retrained"]
    result["told_retrained"] = told_of(again, values, search.lower_is_better) if again else []
    result["told"] = sentences(search, result)
    preset = preset_text(train.parse_args(best.user_attrs["flags"]), preset_comments(result))
    write_search(search.folder, result, search.space, preset)
    print("\n" + table_text(result["table"], 12) + "\n\n" + "\n".join(result["told"]))
    print(f"\ntable, pictures, preset: {search.folder}/trials.md, search.png, flags.png, preset")
    short = {"tune": str(search.folder), "metric": metric, "best": best.value, "default": default.value}
    short |= {"trial": best.number, "run": best.user_attrs["run"], "preset": str(search.folder / "preset")}
    short |= {"cost": result["cost"], "retrained": result["retrained"]}
    print(json.dumps(short))
    return short


def main(argv: list[str] | None = None, fit: Callable = train.main, start: Callable = start_training) -> dict:
    """Search, report, retrain. Returns what the last line says.

    Args: fit: what a trial calls, with train.main's arguments | start: starts it (jobs.trials); tests give others.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with disk_errors(args.output_dir, "--output_dir"):
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        search = prepare(args)
        done = f"{len(search.trials(*DONE))} of {args.trials} trials are done"
        print(f"searched: {', '.join(search.space)}; {done}")
        run_trials(search, fit, start)
        with alone(search.folder):
            return report(search, shlex.join(["python", "-m", "jobs.tune", *argv]))


if __name__ == "__main__":
    run_main(main)
