"""What the tests of searches share: a search over a tiny model's rate, with fake trainings in threads."""

import json
from collections.abc import Callable
from pathlib import Path

from jobs import tune
from jobs.search_loop import run_trials
from jobs.search_study import Search
from tests.conftest import toy_rows, write_jsonl
from tests.jobs.fake_training import good, in_thread

SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "batch_size": [8, 16]}


def argv_of(folder: Path, model: str, *more: str) -> list[str]:
    """A command's arguments; its rows and its space are made in the folder. The default's rate is 1e-4."""
    for seed, name in enumerate(("train", "val")):
        if not (folder / f"{name}.jsonl").exists():
            write_jsonl(folder / f"{name}.jsonl", toy_rows(96, seed))
    (folder / "space.json").write_text(json.dumps(SPACE))
    argv = ["--train_data", str(folder / "train.jsonl"), "--val_data", str(folder / "val.jsonl")]
    argv += ["--model_name", model, "--flags=--batch_size 16 --learning_rate 1e-4", "--retrain_seeds", "0"]
    return [*argv, "--space", str(folder / "space.json"), "--output_dir", str(folder / "out"), *more]


def search_of(folder: Path, model: str, *more: str) -> Search:
    """A search, ready to run."""
    return tune.prepare(tune.parse_args(argv_of(folder, model, *more)))


def go(search: Search, fit: Callable = good, start: Callable = in_thread) -> Search:
    """Run its trials; in threads unless told otherwise."""
    run_trials(search, fit, start)
    return search


def states(search: Search) -> list[str]:
    """Of all trials, by number."""
    return [trial.state.name for trial in search.trials()]
