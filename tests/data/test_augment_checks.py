"""data/augment_checks.py by way of data.augment: --balance, and what a run labels otherwise."""

import subprocess
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

import predict
import train
from data import check_run
from tests.conftest import save_tiny, toy_rows, write_jsonl
from tests.data.augment_rows import augmented, long_rows, made_of, read


@pytest.fixture
def run(tmp_path):
    """Call with rows and flags: what main returns, and the rows written."""
    return partial(augmented, tmp_path)


# --balance


def test_balance_fills_up_to_the_largest_class(run):
    rows = [row | {"label": "a" if row["id"] < 8 else "b"} for row in long_rows()]
    result, found = run(rows, "--balance", "--copies", "3")
    assert Counter(row["label"] for row in found) == {"a": 8, "b": 8}
    assert result["dropped"]["its class has enough rows (--balance)"] > 0


def test_balance_counts_a_row_as_its_rarest_label(run):
    rows = [{"text": row["text"], "labels": ["a"] if row["id"] < 9 else ["a", "b"]} for row in long_rows()]
    _, found = run(rows, "--balance", "--methods", "drop", "--copies", "2")
    made = made_of(found)
    assert len(made) == 6  # 9 rows of a, 3 of b; as many as there are copies
    assert all("b" in row["labels"] for row in made)


# --check_run


def predicting(monkeypatch, label_of) -> list[list[str]]:
    """Put a function of a row in the place of predict.py; the commands that were run."""
    commands = []

    def instead(command: list[str], **kwargs):
        commands.append(command)
        source, target = (command[command.index(name) + 1] for name in ("--data", "--output"))
        write_jsonl(Path(target), [label_of(row) for row in read(Path(source))])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(check_run.subprocess, "run", instead)
    return commands


BOTH = {"a": 0.5, "b": 0.5}


def test_rows_that_a_run_labels_otherwise_are_dropped(run, tmp_path, monkeypatch):
    commands = predicting(monkeypatch, lambda row: {"label": "a", "probabilities": BOTH})
    result, rows = run(long_rows(), "--check_run", str(tmp_path / "some"), "--methods", "drop")
    assert {row["label"] for row in made_of(rows)} == {"a"}
    assert result["dropped"] == {"labelled otherwise by the run": 6}
    assert commands[0][2] == str(tmp_path / "some")


def test_label_sets_must_be_equal(run, tmp_path, monkeypatch):
    predicting(monkeypatch, lambda row: {"label": "a", "labels": ["b", "a"], "probabilities": BOTH})
    rows = [{"text": row["text"], "labels": [["a"], ["a", "b"]][row["id"] % 2]} for row in long_rows()]
    _, found = run(rows, "--check_run", str(tmp_path), "--methods", "drop")
    assert [row["labels"] for row in made_of(found)] == [["a", "b"]] * 6


def test_a_real_run_keeps_what_it_labels_the_same(run, tmp_path, monkeypatch):
    rows = toy_rows(120)
    path = write_jsonl(tmp_path / "toy.jsonl", rows)
    val = write_jsonl(tmp_path / "val.jsonl", toy_rows(40, 5))
    flags = ["--model_name", save_tiny(tmp_path / "bert"), "--train_data", path, "--val_data", val]
    flags += ["--epochs", "12", "--learning_rate", "3e-3", "--cache_dir", str(tmp_path / "cache")]
    train.main([*flags, "--output_dir", str(tmp_path / "run")])

    def in_process(command: list[str], **kwargs) -> subprocess.CompletedProcess:
        assert Path(command[1]) == Path(predict.__file__)
        predict.main(command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(check_run.subprocess, "run", in_process)
    result, found = run(rows, "--methods", "drop", "--rate", "0.8", "--check_run", str(tmp_path / "run"))
    predicted = predict.load(tmp_path / "run")([row["text"] for row in made_of(found)])
    assert [row["label"] for row in made_of(found)] == [row["label"] for row in predicted]
    assert result["dropped"]["labelled otherwise by the run"] > 0
    assert result["made"] > 0
