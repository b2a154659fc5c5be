"""Jobs that read people's files without a run, and the flags of all jobs: they end well."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.rows import file_sha256
from jobs import (
    active,
    audit,
    calibrate,
    compare,
    ensemble,
    feedback,
    merge,
    pipeline,
    report,
    selftrain,
    tune,
)
from tests.conftest import toy_rows, write_jsonl
from tests.fuzz.strategies import (
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

FILLED = [
    {
        "id": k,
        "text": row["text"],
        "true_labels": row["label"],
        "predicted_labels": "red",
        "probabilities": {"red": 0.5, "green": 0.3, "blue": 0.2},
        "feedback": None,
    }
    for k, row in enumerate(toy_rows(6))
]
FILLED_SETS = [
    {"text": row["text"], "true_labels": row["labels"], "predicted_labels": ["red"], "feedback": 0.5}
    for row in toy_rows(6, 0, "list")
]
NEW = [
    {"text": row["text"] + " new", "label": row["label"], "predicted": "red", "wanted": 1}
    for row in toy_rows(6, 5)
]
TRAIN = toy_rows(8)
AUDITED = [
    {"row": k, "text": row["text"], "given": row["label"], "suggested": "red", "verdict": verdict}
    for k, (row, verdict) in enumerate(zip(TRAIN, ["keep", "fix", "drop", "fix/blue", "", "KEEP"]), 1)
]
COMMANDS = {
    "simulate feedback": (
        feedback.main,
        FILLED,
        ["simulate", "{rows}", "--output", "out.json"],
        (".json", ".jsonl"),
    ),
    "simulate sets": (
        feedback.main,
        FILLED_SETS,
        ["simulate", "{rows}", "--output", "out.jsonl"],
        (".json", ".jsonl"),
    ),
    "take": (
        active.main,
        NEW,
        ["take", "{rows}", "--train_data", "train.jsonl", "--output", "out.jsonl"],
        (),
    ),
    "take into": (
        active.main,
        TRAIN,
        ["take", "new.jsonl", "--train_data", "{rows}", "--output", "out.csv"],
        (),
    ),
    "take out of": (
        active.main,
        TRAIN,
        [
            "take",
            "new.jsonl",
            "--train_data",
            "train.jsonl",
            "--output",
            "out.jsonl",
            "--pool",
            "{rows}",
            "--rest",
            "rest.jsonl",
        ],
        (),
    ),
    "take held out": (
        active.main,
        TRAIN,
        ["take", "new.jsonl", "--train_data", "train.jsonl", "--output", "out.json", "--held_out", "{rows}"],
        (),
    ),
    "apply": (audit.main, AUDITED, ["--apply", "{rows}", "--output_dir", "audit"], ()),
    "audit rows": (audit.main, TRAIN, ["--train_data", "{rows}", "--folds", "0", "--output_dir", "out"], ()),
    "audit test": (
        audit.main,
        toy_rows(6, 7),
        ["--train_data", "train.jsonl", "--test_data", "{rows}", "--folds", "0", "--output_dir", "out"],
        (),
    ),
}
ENDINGS = (".jsonl", ".json", ".csv", ".tsv")


def prepare(folder: Path, ending: str, content: bytes, flags: list[str]) -> list[str]:
    """The odd file, good ones beside it and an audit's folder; the flags with the file's name."""
    (folder / f"rows{ending}").write_bytes(content)
    write_jsonl(folder / "train.jsonl", TRAIN)
    write_jsonl(folder / "new.jsonl", NEW)
    (folder / "audit").mkdir()
    write_jsonl(
        folder / "audit" / "audit.jsonl",
        [{k: v for k, v in row.items() if k != "verdict"} for row in AUDITED],
    )
    summary = {
        "train_data": "train.jsonl",
        "sha256": file_sha256(folder / "train.jsonl"),
        "multi_label": False,
    }
    summary |= {"label_names": ["blue", "green", "red"]}
    summary |= {"row_format": {"text_field": "text", "pair_field": "", "label_field": ""}}
    (folder / "audit" / "summary.json").write_text(json.dumps(summary))
    return [flag.format(rows=f"rows{ending}") for flag in flags]


@pytest.mark.parametrize("name", COMMANDS)
def test_odd_rows(name):
    main, rows, flags, endings = COMMANDS[name]
    outputs = tuple(flag for flag in flags if flag.startswith(("out.", "rest.")))

    @examples(15)
    @given(files(rows, endings or ENDINGS))
    def check(file):
        with workspace() as folder:
            ends_well(main, prepare(folder, *file, flags), folder, ("out",), outputs)

    check()


@pytest.mark.parametrize("name", COMMANDS)
def test_good_rows_are_not_refused(name):
    main, rows, flags, _ = COMMANDS[name]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with workspace() as folder:
        ended = ends_well(main, prepare(folder, ".jsonl", content, flags), folder, ("out",))
        assert not ended.is_error, ended.message


@pytest.mark.parametrize("file", ["summary.json", "audit.jsonl"])
def test_apply_to_a_damaged_audit(file):
    with workspace() as made:
        prepare(made, ".jsonl", b"", [])
        content = (made / "audit" / file).read_bytes().split(b"\n")[0]

    @examples(20)
    @given(damaged_json(content))
    def check(odd):
        rows = "".join(json.dumps(row) + "\n" for row in AUDITED).encode()
        with workspace() as folder:
            argv = prepare(folder, ".jsonl", rows, COMMANDS["apply"][2])
            (folder / "audit" / file).write_bytes(odd)
            ends_well(audit.main, argv, folder)

    check()


FLAGGED: dict[str, tuple[Callable, list[str]]] = {
    "feedback": (feedback.main, ["simulate", "rows.jsonl", "--output", "out.json"]),
    "take": (active.main, ["take", "new.jsonl", "--train_data", "train.jsonl", "--output", "out.jsonl"]),
    "select": (active.main, ["select", "norun", "--data", "train.jsonl", "--output", "out.jsonl"]),
    "simulate": (
        active.main,
        ["simulate", "--train_data", "train.jsonl", "--val_data", "new.jsonl", "--output_dir", "out"],
    ),
    "audit": (audit.main, ["--train_data", "train.jsonl", "--folds", "0", "--output_dir", "out"]),
    "apply": (audit.main, ["--apply", "rows.jsonl", "--output_dir", "audit"]),
    "calibrate": (calibrate.main, ["norun"]),
    "compare": (
        compare.main,
        ["--models", "a=bert:none", "--train_data", "train.jsonl", "--val_data", "new.jsonl"],
    ),
    "ensemble": (ensemble.main, ["norun", "nor", "--output_dir", "out"]),
    "merge": (merge.main, ["norun"]),
    "tune": (tune.main, ["--train_data", "train.jsonl", "--val_data", "new.jsonl", "--output_dir", "out"]),
    "pipeline": (pipeline.main, ["--data", "train.jsonl", "--output_dir", "out"]),
    "report": (report.main, ["norun"]),
    "selftrain": (
        selftrain.main,
        [
            "--train_data",
            "train.jsonl",
            "--val_data",
            "new.jsonl",
            "--unlabelled",
            "rows.jsonl",
            "--output_dir",
            "out",
        ],
    ),
}


def no_training(monkeypatch) -> None:
    """No process is started: a command that comes that far has taken its flags."""
    real = subprocess.Popen

    def start(command, *args, **kwargs):
        if command[0] == "git":
            return real(command, *args, **kwargs)
        raise Reached

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr("jobs.tune.run_trials", reached)  # starts processes of its own kind


@pytest.mark.parametrize("name", FLAGGED)
def test_odd_flags(name, monkeypatch):
    no_training(monkeypatch)
    main, argv = FLAGGED[name]
    flags = flags_of(main, *([argv[0]] if argv[0] in ("simulate", "take", "select") else []))
    content = "".join(json.dumps(row) + "\n" for row in (AUDITED if name == "apply" else FILLED)).encode()

    @examples(15)
    @given(st.lists(st.tuples(st.sampled_from(flags), odd_flags), min_size=1, max_size=2))
    def check(given_flags):
        with workspace() as folder:
            prepare(folder, ".jsonl", content, [])
            given = [f"{flag}={value}" for flag, value in given_flags]
            written = tuple(
                value for flag, value in given_flags if flag in ("--output", "--output_dir", "--cleaned")
            )
            ends_well(main, [*argv, *given], folder, ("out", "runs", *written))

    check()


@pytest.mark.parametrize("place", ["missing", "folder", "loop", "long", "null", "under a file", "empty name"])
@pytest.mark.parametrize("name", FLAGGED)
def test_odd_places(name, place, monkeypatch):
    """Each flag with a path in turn, and the first argument without a flag."""
    no_training(monkeypatch)
    main, argv = FLAGGED[name]
    places = [k for k, word in enumerate(argv) if "." in word or word in ("out", "norun", "audit")]
    for k in places:
        with workspace() as folder:
            prepare(folder, ".jsonl", b"{}", [])
            odd = [
                *argv[:k],
                put_odd(
                    folder,
                    place,
                    Path(argv[k]).name.replace("rows", "odd")
                    if not (folder / argv[k]).exists()
                    else f"odd_{argv[k]}",
                ),
                *argv[k + 1 :],
            ]
            ends_well(main, odd, folder, ("out", "runs", "odd_out", "folder"))
