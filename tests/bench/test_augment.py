"""bench/augment.py: the same steps for what is compared, scores by hand, and a study that was stopped."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train
from bench import augment
from core.errors import UserError
from core.runs import RunRecord
from tests.conftest import save_tiny, toy_rows, write_jsonl


def flags(tmp_path, *more: str) -> list[str]:
    """Of a study of 90 toy rows, batches of 8 and two passes."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "dev")}
    for k, (file, size) in enumerate(zip(files.values(), (90, 30), strict=True)):
        write_jsonl(file, toy_rows(size, k))
    paths = ["--train_data", str(files["train"]), "--dev_data", str(files["dev"])]
    model = tmp_path / "bert"
    name = str(model) if model.exists() else save_tiny(model)
    given = f"--model_name {name} --epochs 2 --batch_size 8 --cache_dir {tmp_path / 'cache'}"
    return [*paths, "--output_dir", str(tmp_path / "out"), f"--flags={given}", "--seeds", "0", "1", *more]


def number(line: list[str] | tuple[str, ...], flag: str) -> float:
    """The last value of a flag."""
    return [float(line[k + 1]) for k, name in enumerate(line) if name == flag][-1]


@pytest.fixture
def cells(tmp_path):
    """The runs of each way, and the rows of both files."""
    args = augment.parse_args(flags(tmp_path))
    files = augment.make_files(args)
    sizes = {kind: len(path.read_text().splitlines()) for kind, path in files.items()}
    return augment.make_cells(args, files), sizes


def test_what_is_compared_has_the_same_steps(cells):
    steps = {way: number(own[0].flags, "--max_steps") for way, own in cells[0].items()}
    plain, made = (-(-size // 8) for size in (cells[1][False], cells[1][True]))
    assert steps == {
        "plain": 2 * plain,
        "augmented": 2 * plain,
        "plain, longer": 2 * made,
        "augmented, longer": 2 * made,
    }


def test_passes_are_enough_for_the_steps(cells):
    for way, own in cells[0].items():
        size = cells[1][augment.WAYS[way][1]]
        passes, steps = number(own[0].flags, "--epochs"), number(own[0].flags, "--max_steps")
        assert steps <= passes * -(-size // 8) < steps + 1


def test_all_ways_are_evaluated_as_often_a_step(cells):
    assert len({number(cell.flags, "--eval_steps") for own in cells[0].values() for cell in own}) == 1


def test_dev_rows_train_nothing(cells, tmp_path):
    dev = {row["text"] for row in map(json.loads, (tmp_path / "dev.jsonl").read_text().splitlines())}
    for way, own in cells[0].items():
        path = Path(own[0].flags[own[0].flags.index("--train_data") + 1])
        texts = {row["text"] for row in map(json.loads, path.read_text().splitlines())}
        assert not texts & dev, way


def test_some_rows_are_the_same_whatever_the_order(tmp_path):
    args = augment.parse_args(flags(tmp_path, "--num_rows", "20"))
    plain = augment.make_files(args)[False]
    first = plain.read_text()
    rows = plain.with_name("train.jsonl")
    rows.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
    assert len(first.splitlines()) == 20
    assert augment.make_files(args)[False].read_text() == first


def test_another_file_is_refused(tmp_path):
    augment.make_files(augment.parse_args(flags(tmp_path)))
    args = augment.parse_args(flags(tmp_path))
    write_jsonl(tmp_path / "dev.jsonl", toy_rows(30, 7))
    with pytest.raises(UserError, match="was divided from another file than"):
        augment.make_files(args)


def test_epochs_must_be_given(tmp_path):
    with pytest.raises(UserError, match="give --epochs"):
        augment.parse_args(flags(tmp_path, "--flags=--batch_size 8"))


def told(rights: dict[str, list[int]], num_rows: int, monkeypatch) -> tuple[dict, list[dict]]:
    """score() of runs of which each gets so many of the rows right, the first ones."""
    truth = np.arange(num_rows)[:, None] % 2 == np.arange(2)
    runs = {}
    for way, counts in rights.items():
        for seed, count in enumerate(counts):
            right = (np.arange(num_rows) < count)[:, None]
            runs[f"{way}{seed}"] = SimpleNamespace(truth=truth, chosen=np.where(right, truth, ~truth))
    monkeypatch.setattr(augment, "read_run", lambda folder: runs[folder])
    monkeypatch.setattr(RunRecord, "read", lambda folder: SimpleNamespace(record={"num_steps": 5}))
    cells = {
        way: [SimpleNamespace(folder=f"{way}{seed}") for seed in range(len(own))]
        for way, own in rights.items()
    }
    return augment.score(cells)


def test_scores_and_differences_by_hand(monkeypatch):
    lines, pairs = told({"plain": [50, 60], "augmented": [80, 90]}, 100, monkeypatch)
    assert lines["plain"]["accuracy"]["by_seed"] == [0.5, 0.6]
    assert lines["augmented"]["accuracy"]["mean"] == pytest.approx(0.85)
    found = next(pair for pair in pairs if pair["score"] == "accuracy")
    assert found["difference"] == pytest.approx(0.3)
    assert 0.15 < found["low"] < 0.3 < found["high"] < 0.45
    assert len(pairs) == 2  # no plain, longer: no such difference


def test_verdicts(monkeypatch):
    ways = {
        "plain": [50, 50],
        "augmented": [51, 50],
        "plain, longer": [90, 90],
        "augmented, longer": [50, 50],
    }
    text = augment.markdown(*told(ways, 100, monkeypatch))
    assert "augmented against plain, accuracy: no difference shown, +0.5 points" in text
    assert "augmented, longer against plain, longer, accuracy: loss, -40.0 points" in text
    assert "| plain | 5 | 50.0 (" in text


def test_a_study_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    rounds = []

    def training(cells, gpus):
        rounds.append([str(cell.folder.relative_to(tmp_path / "out")) for cell in cells])
        for cell in cells[:1] if len(rounds) == 1 else cells:
            train.main(list(cell.flags))
        return {cell.folder: "stopped" for cell in cells[1:]} if len(rounds) == 1 else {}

    monkeypatch.setattr(augment, "train_all", training)
    given = flags(tmp_path, "--ways", "plain", "augmented", "--seeds", "0")
    with pytest.raises(UserError, match="The same command goes on from here"):
        augment.main(given)
    result = augment.main(given)
    assert rounds == [["plain/seed0", "augmented/seed0"], ["augmented/seed0"]]
    assert len({line["num_steps"] for line in result["ways"].values()}) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["differences"] == result["differences"]
    assert (tmp_path / "out" / "augment.md").is_file()
