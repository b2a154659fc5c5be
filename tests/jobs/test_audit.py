"""jobs/audit.py: planted errors are found and mended, from rows to cleaned rows; restarts; bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import train
from core.errors import UserError
from core.rows import file_sha256
from core.spent import row_hash
from jobs import audit, folds
from tests.conftest import COLOURS as WORDS
from tests.conftest import save_tiny, toy_rows, write_jsonl

COLOURS = sorted(WORDS)


def fake_run(flags: list[str], knows) -> Path:
    """A finished run of these flags, whose scores of its test rows are knows(text)."""
    arguments = vars(train.parse_args(flags))
    folder, data = Path(arguments["output_dir"]), {}
    for name, flag in (("train", "train_data"), ("validation", "val_data"), ("test", "test_data")):
        if arguments[flag]:
            data[name] = file_sha256(arguments[flag])
    row_format = {name: arguments[name] for name in ("text_field", "pair_field", "label_field")}
    rows = [json.loads(line) for line in Path(arguments["train_data"]).read_text().splitlines()]
    several = "labels" in rows[0]
    model = {"label_names": COLOURS, "multi_label": several, "row_format": row_format}
    (folder / "test").mkdir(parents=True, exist_ok=True)
    if arguments["test_data"]:
        held_out = [json.loads(line) for line in Path(arguments["test_data"]).read_text().splitlines()]
        np.save(
            folder / "test" / "logits.npy", np.array([knows(row["text"]) for row in held_out], np.float32)
        )
    stored = {name: value for name, value in arguments.items() if name not in ("resume", "output_dir")}
    record = {"status": "finished", "arguments": stored, "data": data, "model": model}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def sees_colours(text: str) -> list[float]:
    """Logits of a model that has learnt the task; a little different in each text."""
    words = set(text.split())
    return [(3.0 if words & set(WORDS[colour].split()) else -3.0) + len(text) % (c + 7) / 50
            for c, colour in enumerate(COLOURS)]  # fmt: skip


@pytest.fixture
def trained(monkeypatch) -> list[Path]:
    """Trainings are fakes; their folders, in order."""
    made = []

    def train_all(cells, gpus):
        made.extend(fake_run(list(cell.flags), sees_colours) for cell in cells)
        return {}

    monkeypatch.setattr(folds, "train_all", train_all)
    return made


def wrong_rows(kind: str, num_rows: int = 120) -> tuple[list[dict], list[int]]:
    """Toy rows without repeated texts, every tenth with another label; which those are, from 1."""
    rows = [
        row | {"text": f"{row['text']} {k}a {k}b {k}c"} for k, row in enumerate(toy_rows(num_rows, 0, kind))
    ]
    for row in rows[::10]:
        if kind == "one":
            row["label"] = COLOURS[(COLOURS.index(row["label"]) + 1) % 3]
        else:
            has = "red" in row["labels"]
            row["labels"] = sorted({*row["labels"]} - {"red"} if has else {*row["labels"], "red"})
    return rows, list(range(1, num_rows + 1, 10))


def a_run(folder: Path, rows: list[dict], **files: list[dict]) -> Path:
    """A run trained on rows."""
    paths = {
        name: write_jsonl(folder / f"{name}.jsonl", own) for name, own in {"train": rows, **files}.items()
    }
    flags = [f"--{name}_data={path}" for name, path in paths.items()]
    return fake_run([*flags, "--model_name=tiny", f"--output_dir={folder / 'run'}"], sees_colours)


def listed(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["one", "list"])
def test_planted_errors_are_found_and_mended(tmp_path, trained, kind, capsys):
    rows, wrong = wrong_rows(kind)
    run = a_run(tmp_path, rows, val=toy_rows(30, 1, kind))
    result = audit.main([str(run), "--folds", "3"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["judged"] == result["rows"] == 120
    suspects = [row for row in listed(run / "audit") if "label" in row["kinds"]]
    assert sorted(row["row"] for row in suspects) == wrong
    assert result["found"]["label"] == len(wrong)
    share = len(wrong) / 120 / (1 if kind == "one" else 3)
    assert result["estimated_wrong_frac"] == pytest.approx(share, abs=0.01)
    filled = write_jsonl(run / "audit" / "mine.jsonl", [row | {"verdict": "fix"} for row in suspects])
    done = audit.main(["--apply", filled])
    assert (done["fixed"], done["rows"]) == (len(wrong), 120)
    field = "label" if kind == "one" else "labels"
    right = toy_rows(120, 0, kind)
    cleaned = [json.loads(line) for line in Path(done["cleaned"]).read_text().splitlines()]
    assert [row[field] for row in cleaned] == [row[field] for row in right]
    assert [row["text"] for row in cleaned] == [row["text"] for row in rows]


def test_a_table_from_a_spreadsheet(tmp_path, trained):
    rows, wrong = wrong_rows("one")
    run = a_run(tmp_path, rows, val=toy_rows(30, 1))
    audit.main([str(run), "--folds", "3"])
    with open(run / "audit" / "audit.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    table[0]["verdict"], table[1]["verdict"] = "drop", f"fix/{table[1]['suggested']}"
    filled = tmp_path / "filled.csv"
    with open(filled, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    done = audit.main(
        ["--apply", str(filled), "--output_dir", str(run / "audit"), "--cleaned", str(tmp_path / "c.jsonl")]
    )
    assert (done["dropped"], done["fixed"], done["undecided"], done["rows"]) == (1, 1, len(wrong) - 2, 119)


def test_leaks_and_conflicts(tmp_path, trained):
    rows, _ = wrong_rows("one")
    rows = [row | {"label": right["label"]} for row, right in zip(rows, toy_rows(120, 0), strict=True)]
    other = COLOURS[(COLOURS.index(rows[5]["label"]) + 1) % 3]
    rows.append({"text": rows[5]["text"].upper(), "label": other})  # row 121
    test = [{"text": f" {rows[7]['text']}", "label": "red"}, {"text": "far off", "label": "red"}]
    val = [*toy_rows(30, 1), {"text": rows[9]["text"] + " more", "label": "red"}]
    run = a_run(tmp_path, rows, val=val, test=test)
    result = audit.main([str(run), "--folds", "0"])
    found = {row["row"]: row for row in listed(run / "audit")}
    assert {number: row["kinds"] for number, row in found.items()} == {
        6: ["duplicate"], 121: ["duplicate"], 8: ["test"], 10: ["validation"]
    }  # fmt: skip
    assert found[6]["why"].startswith(f"near line 121, given {other}: ")
    assert found[8]["why"] == f"the text of line 1 of {tmp_path / 'test.jsonl'}"
    assert found[10]["why"].startswith(f"near line 31 of {tmp_path / 'val.jsonl'}: ")
    assert found[8]["suggested"] is found[8]["score"] is None
    assert result["judged"] == 0
    assert not trained
    assert np.load(run / "audit" / "rows" / "test.npy").tolist() == sorted(
        row_hash(row["text"]) for row in test
    )
    filled = write_jsonl(run / "audit" / "mine.jsonl", [{"row": 8, "verdict": "keep"}])
    assert audit.main(["--apply", filled])["dropped_test_rows"] == 1


def test_the_rows_of_a_file(tmp_path, trained):
    rows, wrong = wrong_rows("one")
    data, val = write_jsonl(tmp_path / "t.jsonl", rows), write_jsonl(tmp_path / "v.jsonl", toy_rows(30, 1))
    call = ["--train_data", data, "--val_data", val, "--flags=--model_name tiny --epochs 2", "--folds", "3"]
    audit.main([*call, "--output_dir", str(tmp_path / "out")])
    assert sorted(row["row"] for row in listed(tmp_path / "out") if "label" in row["kinds"]) == wrong
    assert json.loads((trained[0] / "run.json").read_text())["arguments"]["epochs"] == 2
    assert len(trained) == 3


def test_nothing_is_trained_twice(tmp_path, trained):
    run = a_run(tmp_path, wrong_rows("one")[0], val=toy_rows(30, 1))
    audit.main([str(run), "--folds", "3"])
    names = ("audit.jsonl", "audit.csv", "audit.html", "summary.json")
    before = {name: (run / "audit" / name).read_bytes() for name in names}
    audit.main([str(run), "--folds", "3"])
    assert len(trained) == 3
    assert {name: (run / "audit" / name).read_bytes() for name in names} == before


def test_stopped_after_the_first_training(tmp_path, trained, monkeypatch):
    run, whole = a_run(tmp_path, wrong_rows("one")[0], val=toy_rows(30, 1)), folds.train_all

    def one_and_stop(cells, gpus):
        whole(cells[:1], gpus)
        raise KeyboardInterrupt

    monkeypatch.setattr(folds, "train_all", one_and_stop)
    with pytest.raises(KeyboardInterrupt):
        audit.main([str(run), "--folds", "3"])
    assert not (run / "audit" / "summary.json").exists()
    monkeypatch.setattr(folds, "train_all", whole)
    assert audit.main([str(run), "--folds", "3"])["judged"] == 120
    assert len(trained) == 3


def test_verdicts_are_not_replaced(tmp_path, trained):
    run = a_run(tmp_path, wrong_rows("one")[0], val=toy_rows(30, 1))
    audit.main([str(run), "--folds", "0", "--near", "0.1"])
    rows = listed(run / "audit")
    write_jsonl(run / "audit" / "audit.jsonl", [rows[0] | {"verdict": "keep"}, *rows[1:]])
    with pytest.raises(UserError, match="holds a table with verdicts, which it would replace"):
        audit.main([str(run), "--folds", "3"])
    assert not trained


def test_the_only_row_of_a_class_is_not_judged(tmp_path, trained):
    rows = [row for row in wrong_rows("one")[0] if row["label"] != "green"]
    rows.append({"text": "a green thing", "label": "green"})
    run = a_run(tmp_path, rows, val=toy_rows(30, 1))
    result = audit.main([str(run), "--folds", "3"])
    assert result["judged"] == result["rows"] - 1
    assert np.isnan(np.load(run / "audit" / "probabilities.npy")).all(axis=1).tolist() == [False] * (
        len(rows) - 1
    ) + [True]


def test_with_a_real_model(tmp_path, monkeypatch):
    """Tiny trainings in this process: what jobs/folds.py starts and reads is what train.py takes and writes."""
    monkeypatch.setattr("core.evaluate.save_png", lambda *_: None)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *_: None)
    monkeypatch.setattr(
        folds, "train_all", lambda cells, gpus: {c.folder: "" for c in cells if not train.main([*c.flags])}
    )
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", toy_rows(64, seed)) for seed, name in enumerate("tv")
    }
    model = save_tiny(tmp_path / "tiny")
    flags = f"--model_name {model} --cache_dir {tmp_path / 'cache'} --learning_rate 1e-2 --amp off --epochs 1"
    call = ["--train_data", files["t"], "--val_data", files["v"], f"--flags={flags} --max_tokens 512"]
    result = audit.main([*call, "--folds", "2", "--output_dir", str(tmp_path / "out")])
    assert result["judged"] == 64
    probs = np.load(tmp_path / "out" / "probabilities.npy")
    np.testing.assert_allclose(probs.sum(axis=1), 1)


# -- bad input --------------------------------------------------------------------------------------------------

BAD = {
    "nothing": ([], "expected one of RUN, --train_data FILE and --apply FILE"),
    "two": (["RUN", "--train_data", "t.jsonl"], "expected one of RUN"),
    "one fold": (["RUN", "--folds", "1"], "--folds 1: expected 0, or at least 2"),
    "flags of a run": (["RUN", "--flags=--epochs 3"], "--flags, --val_data: are for --train_data"),
    "no run": (["nowhere"], "nowhere: no such folder; expected a run folder"),
    "no validation rows": (["--train_data", "t.jsonl"], "--flags: train.py: --val_data: no file given"),
    "bad flags": (["--train_data", "t.jsonl", "--val_data", "v.jsonl", "--flags=--epoch 3"], "--flags: train.py: "),
    "half a quote": (["--train_data", "t.jsonl", "--flags=\"x"], "No closing quotation"),
    "no file": (["--train_data", "t.jsonl", "--folds", "0"], "--train_data t.jsonl: no such file"),
    "not a folder": (["RUN", "--output_dir", __file__], "is a file; expected a folder"),
    "no table": (["--apply", "x.csv"], "holds no audit"),
    "not JSONL": (["--apply", "x.csv", "--cleaned", "c.csv"], "--cleaned c.csv: expected a file that ends in .jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    argv, message = BAD[case]
    with pytest.raises(UserError) as error:
        audit.main(argv)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_changed_since_the_run(tmp_path, trained):
    run = a_run(tmp_path, wrong_rows("one")[0], val=toy_rows(30, 1))
    write_jsonl(tmp_path / "train.jsonl", toy_rows(20, 0))
    with pytest.raises(UserError, match="have changed since"):
        audit.main([str(run)])


def test_the_input_is_never_the_output(tmp_path, trained):
    run = a_run(tmp_path, wrong_rows("one")[0], val=toy_rows(30, 1))
    audit.main([str(run), "--folds", "3"])
    filled = write_jsonl(run / "audit" / "mine.jsonl", [{"row": 1, "verdict": "drop"}])
    for path in (tmp_path / "train.jsonl", filled, run / "audit" / "audit.jsonl"):
        before = Path(path).read_bytes()
        with pytest.raises(UserError, match="is an input; give another file"):
            audit.main(["--apply", filled, "--cleaned", str(path)])
        assert Path(path).read_bytes() == before


def test_a_model_that_diverged(tmp_path, trained, monkeypatch):
    run = a_run(tmp_path, wrong_rows("one")[0], val=toy_rows(30, 1))
    monkeypatch.setattr(f"{__name__}.sees_colours", lambda text: [np.nan] * 3)
    with pytest.raises(UserError, match="a score is not finite: a training has diverged"):
        audit.main([str(run), "--folds", "3"])
