"""The loop of a search: as many trials at once as there are workers, judged at each evaluation, put into the study."""

import contextlib
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from tqdm import tqdm

import train
from core.errors import UserError
from core.report import is_better
from core.runs import RunRecord
from core.schedule import auto_epochs
from jobs.cells import ends_as_ctrl_c
from jobs.search_report import table_lines, trial_row
from jobs.search_space import as_flags, changed, default_values, suggest
from jobs.search_study import (
    DONE,
    Search,
    ask,
    bury_dead,
    full_minutes,
    give_sign_of_life,
    queue_again,
    room_s,
)
from jobs.trials import Training

WEIGHTS = ("best_model", "final_model", "checkpoint")
POLL_S = 1.0
BEAT_S = 60  # between signs of life
MOST_FAILURES = 5  # in a row: the next would fail too
NEVER = 10**9  # --save_steps of a trial, which is never resumed


@dataclass
class Running:
    """A trial under way."""

    trial: optuna.Trial
    training: Training
    is_default: bool
    beat: float  # time.monotonic() of its last sign of life
    best: float | None = None  # the metric so far
    record: dict | None = None  # run.json, once it is written
    reported: int = -1  # percent of its steps


def trial_flags(search: Search, values: dict, run: Path) -> list[str]:
    """All flags of a trial; the default has its own alone, values {}.

    Evaluations are laid evenly over the trial's steps, so that every trial is judged at the same shares of its own.
    Raises: UserError where the values do not go together.
    """
    flags = [*search.flags, *as_flags(values)]
    args = train.parse_args(flags)
    if search.args.evaluations and not search.base.eval_steps:
        epochs = auto_epochs(search.num_rows, args.batch_size) if args.epochs == "auto" else args.epochs
        num_steps = math.ceil(epochs * math.ceil(search.num_rows / args.batch_size))
        num_steps = min(num_steps, args.max_steps) if args.max_steps else num_steps
        flags += ["--eval_steps", str(math.ceil(num_steps / search.args.evaluations))]
    flags += [] if search.base.save_steps else ["--save_steps", str(NEVER)]
    return [*flags, "--seed", str(search.args.seed), "--output_dir", str(run)]


def begin(search: Search, gpu: str, fit: Callable, start: Callable) -> Running | None:
    """Ask for a trial and start its training; None where its values do not go together: it has failed."""
    trial = ask(search)
    run = search.folder / "trials" / f"{trial.number:03}"
    is_default = bool(trial.user_attrs.get("default"))
    if is_default:  # TPE learns from it too: what of it the space can tell
        known = default_values(search.space, search.numbers)
        suggest(trial, {name: search.space[name] for name in known}, search.numbers)
    values = {} if is_default else suggest(trial, search.space, search.base)
    try:
        flags = trial_flags(search, values, run)
    except UserError as error:
        trial.set_user_attr("why", str(error))
        search.study.tell(trial, state=TrialState.FAIL)
        search.failures.append(str(error))
        return None
    about = {"run": str(run), "changed": changed(train.parse_args(flags), search.base), "flags": flags}
    for name, value in about.items():
        trial.set_user_attr(name, value)
    are_crowded = search.args.workers > 1 and not search.args.gpus and "OMP_NUM_THREADS" not in os.environ
    num_threads = max(1, (os.cpu_count() or 1) // search.args.workers) if are_crowded else 0
    return Running(trial, start(fit, flags, run, gpu, num_threads), is_default, time.monotonic())


def record_of(run: Running) -> dict:
    """run.json as it was when the loop began: num_steps and metric are in it."""
    if run.record is None:
        run.record = RunRecord.read(run.training.folder).record
    return run.record


def goes_on(run: Running, step: int, metrics: dict) -> bool:
    """Report an evaluation: the best so far, over percent of the trial's steps; whether the trial goes on.

    The default always does, but it is judged, so that others have to hold their own against it.
    """
    record = record_of(run)
    name, percent = record["metric"], 100 * step // record["num_steps"]
    if is_better({name: metrics.get(name)}, name, run.best):
        run.best = metrics[name]
    if run.best is None or percent <= run.reported:
        return True
    run.reported = percent
    run.trial.report(run.best, percent)
    is_hopeless = run.trial.should_prune()
    return run.is_default or percent >= 100 or not is_hopeless


def handle(search: Search, run: Running) -> bool:
    """Answer a trial's message; True when the trial has ended."""
    kind, *rest = run.training.receive()
    try:
        if kind == "evaluated":
            answer = goes_on(run, *rest)
            with contextlib.suppress(OSError):  # it died meanwhile: its next message says so
                run.training.pipe.send(answer)
            return False
        run.training.end()
        if kind == "finished":
            value = rest[0].get(record_of(run)["metric"])
            if value is None or not math.isfinite(value):
                finish(search, run, TrialState.FAIL, why=f"{run.record['metric']} is undefined")
            else:
                finish(search, run, TrialState.COMPLETE, value)
        elif kind == "pruned":
            finish(search, run, TrialState.PRUNED)
        else:
            finish(search, run, TrialState.FAIL, why=rest[0])
    except UpdateFinishedTrialError:
        run.training.end(at_once=True)
        tqdm.write(f"trial {run.trial.number}: another worker took this one for dead")
    return True


def finish(
    search: Search, run: Running, state: TrialState, value: float | None = None, why: str = ""
) -> None:
    """Put a trial's end into the study, remove weights that are not kept, say so.

    Raises: UserError when it is the default that failed: there is nothing to compare with.
    """
    about = {"minutes": run.training.minutes, "why": why, "metric": (run.record or {}).get("metric", "")}
    for name, found in about.items():
        run.trial.set_user_attr(name, found)
    frozen = search.study.tell(run.trial, value, state=state)
    search.failures = [*search.failures, why] if state == TrialState.FAIL else []
    tidy(search)
    number, shown, told, minutes, differences = table_lines([trial_row(frozen)], search.lower_is_better)[0]
    is_best = state == TrialState.COMPLETE and search.study.best_trial.number == frozen.number
    tqdm.write(f"trial {number:>3}  {shown:>7}  {minutes:>5} min  {told}{', best' * is_best}: {differences}")
    if run.is_default and state == TrialState.FAIL:
        raise UserError(f"the default flags themselves fail: {why} (log: {run.training.folder}/train.log)")


def give_up(search: Search, run: Running, why: str) -> None:
    """Stop a trial and queue it again, for a search that goes on."""
    run.training.end(at_once=True)
    with contextlib.suppress(ValueError, UpdateFinishedTrialError):
        run.trial.set_user_attr("minutes", run.training.minutes)
        run.trial.set_user_attr("why", why)
        queue_again(search, search.study.tell(run.trial, state=TrialState.FAIL))
    tidy(search)


def tidy(search: Search) -> None:
    """Remove the weights of ended trials in this folder that --keep does not keep."""
    if search.args.keep == "all":
        return
    has_best = search.args.keep == "best" and search.trials(TrialState.COMPLETE)
    best = search.study.best_trial.number if has_best else None
    for trial in search.trials(*DONE, TrialState.FAIL):
        run = search.folder / "trials" / f"{trial.number:03}"
        for name in WEIGHTS if trial.number != best else ("checkpoint",):
            shutil.rmtree(run / name, ignore_errors=True)


def may_start(search: Search, own: Sequence[int]) -> bool:
    """Whether another trial is wanted, and can be expected to finish. own: numbers of those under way here."""
    bury_dead(search, own)
    num_under_way = len(search.trials(TrialState.RUNNING, *DONE))
    is_wanted = num_under_way < search.args.trials and len(search.failures) < MOST_FAILURES
    return is_wanted and room_s(search) > 60 * full_minutes(search)


def run_trials(search: Search, fit: Callable, start: Callable) -> None:
    """Run trials until there are enough, the time is over, or too many fail in a row.

    Args: fit: train.main | start: trials.start_training.
    """
    runs: list[Running] = []
    gpus = search.args.gpus or [""]
    free = deque(gpus[k % len(gpus)] for k in range(search.args.workers))
    bar = tqdm(total=search.args.trials, initial=len(search.trials(*DONE)), unit=" trial", disable=None)
    why = "stopped"
    with ends_as_ctrl_c(), bar:
        try:
            while True:
                while free and may_start(search, [run.trial.number for run in runs]):
                    run = begin(search, free[0], fit, start)
                    if run:
                        runs.append(run)
                        free.popleft()
                if not runs:
                    break
                spoke = wait([run.training.pipe for run in runs], timeout=POLL_S)
                for run in [run for run in runs if run.training.pipe in spoke]:
                    if handle(search, run):
                        runs.remove(run)
                        free.append(run.training.gpu)
                bar.update(len(search.trials(*DONE)) - bar.n)
                for run in [run for run in runs if time.monotonic() - run.beat > BEAT_S]:
                    run.beat = time.monotonic()
                    give_sign_of_life(run.trial)
                if room_s(search) <= 0:
                    why = "no time left"
                    break
        except KeyboardInterrupt:
            tqdm.write("stopping; the same command goes on from here")
            raise
        finally:
            for run in runs:
                give_up(search, run, why)
