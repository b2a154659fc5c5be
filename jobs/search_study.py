"""The study behind a search: where it is kept, who joins it, what is asked of it next, and trials whose worker died."""

import argparse
import contextlib
import json
import math
import os
import socket
import statistics
import time
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from tqdm import tqdm

from core.errors import UserError
from core.report import LOWER_IS_BETTER
from jobs.search_space import Space, default_values

HOST = socket.gethostname()
DONE = (TrialState.COMPLETE, TrialState.PRUNED)  # what --trials counts
# Percent of a trial's steps, and of how many trials one goes on: at 12 % and 48 %. Simulated (30 trials over 11 flags
# with noise, means of 25 searches, 2026-11-20): cost 0.29 of full trainings, with 3 in the place of 4 0.33, hyperband
# 0.50, median 0.48; true gain 1.2 points, with 3 1.3, hyperband 1.4, median 1.5, without pruning 1.5.
FIRST_RUNG, REDUCTION = 12, 4
STALE_S = 600  # seconds without a sign of life after which a worker elsewhere is taken for dead
MOST_ATTEMPTS = 3  # at a trial whose worker died: it may be what kills it


@dataclass
class Search:
    """A study, and what stays the same through it."""

    args: argparse.Namespace  # of jobs.tune
    flags: list[str]  # of the default, for train.py
    base: argparse.Namespace  # those parsed
    numbers: argparse.Namespace  # base with numbers for auto
    space: Space
    num_rows: int  # for training
    data: dict[str, dict]  # path and sha256 by use
    study: optuna.Study
    deadline: float  # time.monotonic(), infinite without --hours
    failures: list[str] = field(default_factory=list)  # in a row, of this process

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def lower_is_better(self) -> bool:
        return self.args.metric in LOWER_IS_BETTER

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """All, or those in one of the states."""
        return self.study.get_trials(deepcopy=False, states=states or None)


# -- opening ----------------------------------------------------------------------------------------------------


def open_storage(text: str, folder: Path) -> BaseStorage:
    """The storage that --study means; a file's folder is made. Raises UserError when it cannot be opened."""
    text = text or f"journal:{folder / 'study.journal'}"
    try:
        if text.startswith("journal:"):
            path = Path(text.removeprefix("journal:"))
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        if "://" not in text:
            raise ValueError("expected journal:FILE or a database's URL, say sqlite:///FILE")
        if text.startswith("sqlite:///"):
            Path(text.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return open_database(text)
    except (OptunaError, SQLAlchemyError, ImportError, OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0][:300]
        raise UserError(f"--study {text}: cannot be opened: {first}") from None


def open_database(url: str) -> RDBStorage:
    """A database, its tables made where there are none; two workers that make them at once get in each other's way."""
    options = (
        {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else None
    )  # seconds to wait for a lock
    for _ in range(4):
        with contextlib.suppress(IntegrityError, OperationalError):
            return RDBStorage(url, engine_kwargs=options)
        time.sleep(1)
    return RDBStorage(url, engine_kwargs=options)


def open_study(args: argparse.Namespace, configuration: dict[str, dict]) -> optuna.Study:
    """The study, made or joined.

    Args:   configuration: what all workers of it have in common: {part: {name: value}}, one part being the space.
    Raises: UserError when it is a study of another search.
    """
    study = optuna.create_study(
        storage=open_storage(args.study, Path(args.output_dir)),
        study_name=args.study_name,
        direction="minimize" if args.metric in LOWER_IS_BETTER else "maximize",
        load_if_exists=True,
        sampler=NumberedTPE(args.seed, min(10, max(4, args.trials // 3))),
        pruner=make_pruner(args.pruner),
    )
    wanted = json.loads(json.dumps(configuration))
    stored = study.user_attrs.get("configuration")
    if stored is None:
        study.set_user_attr("configuration", wanted)
        return study
    both = [(part, name) for part in stored for name in stored[part] if name in wanted[part]]
    differ = [
        f"{name} was {stored[part][name]}, now {wanted[part][name]}"
        for part, name in both
        if stored[part][name] != wanted[part][name]
    ]
    differ += [f"{name} was searched" for name in stored["space"] if name not in wanted["space"]]
    differ += [f"{name} was not searched" for name in wanted["space"] if name not in stored["space"]]
    if differ:
        raise UserError(
            f"--study {args.study or args.output_dir}: holds another search: {'; '.join(differ)}. "
            "Give another --output_dir or --study."
        )
    return study


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """What --pruner means; steps are percent of a trial's own."""
    halving = {"min_resource": FIRST_RUNG, "reduction_factor": REDUCTION}
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(**halving)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(**halving, max_resource=100)
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=FIRST_RUNG)
    return optuna.pruners.NopPruner()


# -- asking -----------------------------------------------------------------------------------------------------


def worker() -> dict:
    """Who runs a trial."""
    return {"host": HOST, "pid": os.getpid()}


class NumberedTPE(optuna.samplers.BaseSampler):
    """TPE (Bergstra et al. 2011), multivariate, whose draws hang on the seed and the trial's number alone.

    So no worker draws what another has drawn, and a search that was stopped goes on as it would have.
    """

    def __init__(self, seed: int, num_startup: int):
        """num_startup: trials drawn at random, before it learns from those that are complete or pruned."""
        self.seed, self.num_startup = seed, num_startup
        self.tpe = self.make(-1)

    def make(self, number: int) -> optuna.samplers.TPESampler:
        """The sampler of one trial."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # multivariate, group, constant_liar are so
            return optuna.samplers.TPESampler(
                multivariate=True,
                group=True,  # flags with conditions
                constant_liar=True,  # trials under way count as bad, so that workers spread
                seed=zlib.crc32(f"{self.seed} {number}".encode()),
                n_startup_trials=self.num_startup,
            )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.tpe = self.make(trial.number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict:
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> object:
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


def ask(search: Search) -> optuna.Trial:
    """The next trial of the study, as this process's own.

    Two workers that begin at once may both have queued the default: the second one is dropped.
    """
    while True:
        trial = search.study.ask()
        trial.set_user_attr("beat", time.time())
        trial.set_user_attr("worker", worker())
        is_default = trial.user_attrs.get("default")
        others = search.trials(TrialState.RUNNING, TrialState.COMPLETE) if is_default else []
        if not any(other.user_attrs.get("default") and other.number < trial.number for other in others):
            return trial
        trial.set_user_attr("why", "the default is there already")
        search.study.tell(trial, state=TrialState.FAIL)


def queue_default(search: Search) -> None:
    """See that the default is in the study; before anything else, so that it is its first trial."""
    there = search.trials(TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
    if not any(trial.user_attrs.get("default") for trial in there):
        values = default_values(search.space, search.numbers)
        search.study.enqueue_trial(values, user_attrs={"default": True})


def queue_again(search: Search, trial: FrozenTrial) -> None:
    """The values of a trial that was stopped once more, under a new number."""
    about = {"attempt": trial.user_attrs.get("attempt", 1) + 1}
    if trial.user_attrs.get("default"):
        values = default_values(search.space, search.numbers)
        search.study.enqueue_trial(values, user_attrs=about | {"default": True})
    elif trial.params:  # else it was stopped before it had any
        search.study.enqueue_trial(trial.params, user_attrs=about)


# -- the dead ---------------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_dead(trial: FrozenTrial, own: Sequence[int]) -> bool:
    """Whether the worker of a running trial is gone: its process on this machine, elsewhere its signs of life.

    own: numbers of the trials that this process runs.
    """
    about = trial.user_attrs.get("worker")
    if about and about["host"] == HOST:
        return trial.number not in own if about["pid"] == os.getpid() else not is_alive(about["pid"])
    started = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
    return time.time() - trial.user_attrs.get("beat", started) > STALE_S


def bury_dead(search: Search, own: Sequence[int] = ()) -> None:
    """Mark trials whose worker is gone as failed, and queue their values again."""
    for trial in search.trials(TrialState.RUNNING):
        if not is_dead(trial, own):
            continue
        try:
            search.study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, UpdateFinishedTrialError):  # another worker was first
            continue
        tqdm.write(f"trial {trial.number}: its worker is gone")
        if trial.user_attrs.get("default") or trial.user_attrs.get("attempt", 1) < MOST_ATTEMPTS:
            queue_again(search, trial)


def give_sign_of_life(trial: optuna.Trial) -> None:
    """For workers elsewhere, which cannot see this one's process."""
    with contextlib.suppress(UpdateFinishedTrialError):
        trial.set_user_attr("beat", time.time())


# -- time -------------------------------------------------------------------------------------------------------


def full_minutes(search: Search) -> float:
    """The median of complete trials; 0 while there is none."""
    found = [trial.user_attrs.get("minutes", 0.0) for trial in search.trials(TrialState.COMPLETE)]
    return statistics.median(found) if found else 0.0


def pair_s(search: Search) -> float:
    """Seconds that default and best take once more."""
    return 60 * full_minutes(search) * (1 if len(search.args.gpus) > 1 else 2)


def room_s(search: Search) -> float:
    """Seconds left for trials: what retraining will take, up to a third of the time, is kept back."""
    if not search.args.hours:
        return math.inf
    kept = min(pair_s(search) * search.args.retrain_seeds, search.args.hours * 3600 / 3)
    return search.deadline - time.monotonic() - kept
