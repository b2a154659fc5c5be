"""train.py, rank_train.py, ppo.py and ppo.py --feedback with odd rows, places and flags: they end well.

What is behind the reading of rows is cut off where a test is about rows: then good rows end in Reached, which is
success. Odd flags that are let through train a tiny model for two steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ppo
import rank_train
import train
from tests.conftest import rank_rows, toy_rows
from tests.fuzz.conftest import TINY
from tests.fuzz.strategies import (
    PLACES,
    Reached,
    damaged_json,
    ends_well,
    examples,
    files,
    flags_of,
    odd_flags,
    put_odd,
    workspace,
)

FEEDBACK = [
    {"id": k, "text": row["text"], "true_labels": row["label"], "predicted_labels": "red", "feedback": k % 2}
    for k, row in enumerate(toy_rows(8))
]


class Loop(NamedTuple):
    """A loop, the flag of its rows, good ones, what is called once they are read, and its other flags."""

    main: Callable
    flag: str
    rows: list[dict]
    behind: str
    flags: tuple[str, ...]


LOOPS = {
    "train": Loop(train.main, "--train_data", toy_rows(8), "train.build_model", ("val", "", "model")),
    "train several": Loop(
        train.main, "--train_data", toy_rows(8, 0, "dict"), "train.build_model", ("list_val", "", "model")
    ),
    "validation": Loop(train.main, "--val_data", toy_rows(8), "train.build_model", ("train", "", "model")),
    "rank": Loop(
        rank_train.main, "--train_data", rank_rows(8), "rank_train.build_model", ("rank_val", "", "model")
    ),
    "ppo": Loop(ppo.main, "--train_data", rank_rows(8), "ppo.make_plan", ("rank_val", "rank", "")),
    "feedback": Loop(ppo.main, "--feedback", FEEDBACK, "ppo_feedback.make_plan", ("val", "one", "")),
}
LATE = ("cache", "run")  # what a run that has begun leaves


def flags_for(loop: Loop, places: dict[str, Path], rows: str) -> list[str]:
    """The flags of a tiny run on the rows of a file."""
    beside, policy, model = loop.flags
    other = "--train_data" if loop.flag == "--val_data" else "--val_data"
    flags = [loop.flag, rows, other, str(places[beside]), "--cache_dir", "cache", "--output_dir", "run"]
    flags += ["--policy", str(places[policy])] if policy else []
    flags += [*TINY, "--model_name", str(places[model])] if model else ["--amp", "off", "--max_steps", "1"]
    return flags


@pytest.fixture
def read_alone(monkeypatch) -> None:
    """End each loop once its rows are read."""

    def reached(*_, **__):
        raise Reached

    for loop in LOOPS.values():
        monkeypatch.setattr(loop.behind, reached)


@pytest.mark.parametrize("name", LOOPS)
def test_odd_rows(places, read_alone, name):
    loop = LOOPS[name]

    @examples(12)
    @given(
        files(loop.rows, (".json", ".jsonl") if name == "feedback" else (".jsonl", ".json", ".csv", ".tsv"))
    )
    def check(file):
        with workspace() as folder:
            (folder / f"rows{file[0]}").write_bytes(file[1])
            ended = ends_well(loop.main, flags_for(loop, places, f"rows{file[0]}"), folder, LATE)
            if ended.is_error:
                assert not list(folder.glob("cache/*.part"))
            assert not (folder / "run").exists()

    check()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name, flag",
    [
        ("train", flag)
        for flag in (
            "--train_data",
            "--val_data",
            "--calibration_data",
            "--test_data",
            "--output_dir",
            "--cache_dir",
            "--model_name",
            "--resume",
            "--class_weights",
            "--label_words",
        )
    ]
    + [("rank", "--train_data"), ("ppo", "--policy"), ("ppo", "--val_data"), ("feedback", "--feedback")],
)
def test_odd_places(places, read_alone, name, flag, place):
    loop = LOOPS[name]
    with workspace() as folder:
        argv = [*flags_for(loop, places, str(places[(loop.flags[2] and "") + "train"])), flag]
        odd = put_odd(folder, place, "odd.jsonl")
        ends_well(loop.main, [*argv, odd], folder, ("odd.jsonl", "folder", *LATE))


@pytest.mark.parametrize("name", ["train", "rank", "ppo", "feedback"])
def test_odd_flags(places, no_figures, name):
    """One or two flags of the help with odd values; what is let through trains."""
    loop = LOOPS[name]
    flags = flags_of(loop.main, *(["--feedback", "x"] if name == "feedback" else []))
    assert len(flags) > 40
    good = {"train": "train", "rank": "rank_train", "ppo": "rank_train"}

    @examples(8, 400)
    @given(st.lists(st.tuples(st.sampled_from(flags), odd_flags), min_size=1, max_size=2))
    def check(given_flags):
        with workspace() as folder:
            rows = folder / "feedback.json"
            if name == "feedback":
                import json

                rows.write_text(json.dumps(FEEDBACK))
            argv = flags_for(loop, places, str(places[good[name]] if name in good else rows))
            argv += [f"{flag}={value}" for flag, value in given_flags]
            ends_well(loop.main, argv, folder, (*LATE, "runs"))  # one that has begun and diverged stays

    check()


def test_each_flag_with_each_odd_value(places, monkeypatch):
    """Parsing alone, of train.py: no flag lets an odd value become anything but a setting or one message."""
    from tests.fuzz.strategies import ODD_FLAGS

    flags = [
        *TINY,
        "--model_name",
        "x",
        "--train_data",
        str(places["train"]),
        "--val_data",
        str(places["val"]),
    ]

    def parse(argv: list[str]) -> object:
        return train.parse_args(argv)

    names = flags_of(train.main)
    with workspace() as folder:
        for name in names:
            for value in ODD_FLAGS:
                ends_well(parse, [*flags, f"{name}={value}"], folder)


# -- run folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "training_logs.jsonl", "checkpoint/step_*/state.json"])
def test_resume_of_a_damaged_run(places, name):
    """An unfinished run one of whose JSON files is not what it was."""
    with workspace() as made:
        argv = flags_for(LOOPS["train"], places, str(places["train"]))
        begin_run(argv, made)
        name = str(sorted((made / "run").glob(name))[-1].relative_to(made / "run"))
        content = (made / "run" / name).read_bytes()

        @examples(5, 150)
        @given(
            damaged_json(content) if name.endswith(".json") else st.just(b"\xff{") | st.binary(max_size=40)
        )
        def check(odd):
            with workspace(made) as folder:
                (folder / "run" / name).write_bytes(odd)
                ends_well(train.main, [*argv, "--resume", "run"], folder, ("run", "cache"))

        check()


def begin_run(argv: list[str], folder: Path) -> None:
    """A run that ends after its first checkpoint."""
    import json
    import os

    class Ends(BaseException):
        pass

    def end(step: int, metrics: dict) -> None:
        raise Ends

    here = os.getcwd()
    os.chdir(folder)
    try:
        with pytest.raises(Ends):
            train.main([*argv, "--max_steps", "4", "--save_steps", "1", "--eval_steps", "2"], end)
    finally:
        os.chdir(here)
    assert json.loads((folder / "run" / "run.json").read_text())["status"] == "running"
