"""jobs/active.py: rows out to people and back, by hand; what must not become a training row."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train
from core.errors import UserError
from core.rows import RowFormat
from core.spent import row_hashes
from jobs import active, active_select
from jobs.active_rows import read_texts
from predict import load
from tests.conftest import save_tiny, toy_rows, write_jsonl


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# -- select -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny run, its rows, and a pool that holds some of them, a row twice, and columns of its own."""
    home = tmp_path_factory.mktemp("active")
    train_rows, val_rows, pool = toy_rows(40, 0), toy_rows(20, 1), toy_rows(60, 2)
    pool = [*pool, train_rows[3], val_rows[2], pool[0]]
    pool = [{"id": k, "text": row["text"], "label": "hidden"} for k, row in enumerate(pool)]
    for name, rows in {"train": train_rows, "val": val_rows, "pool": pool}.items():
        write_jsonl(home / f"{name}.jsonl", rows)
    flags = [f"--{name}_data={home / name}.jsonl" for name in ("train", "val")]
    flags += [
        f"--model_name={save_tiny(home / 'tiny')}",
        f"--cache_dir={home / 'cache'}",
        "--learning_rate=1e-2",
    ]
    flags += ["--amp=off", "--batch_size=16", "--max_steps=4", "--max_length=32", "--max_tokens=512"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.evaluate.save_png", lambda *_: None)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *_: None)
        train.main([*flags, f"--output_dir={home / 'run'}"])
    return home


def select(home: Path, out: Path, *more: str, data: str = "") -> tuple[dict, list[dict]]:
    call = [
        "select",
        str(home / "run"),
        "--data",
        data or str(home / "pool.jsonl"),
        "--output",
        str(out),
        *more,
    ]
    out.unlink(missing_ok=True)
    result = active.main(call)
    return result, read_jsonl(out)


def test_the_most_wanted_come_first_as_the_run_sees_them(home, tmp_path):
    result, rows = select(home, tmp_path / "out.jsonl", "--acquisition", "margin", "--num_rows", "7")
    assert (result["rows"], result["pool"], len(rows)) == (7, 60, 7)
    pool = read_jsonl(home / "pool.jsonl")[:60]
    predicted = load(home / "run")([row["text"] for row in pool])
    best = np.array([sorted(row["probabilities"].values())[-2:] for row in predicted])
    order = np.argsort(best[:, 1] - best[:, 0], kind="stable")
    assert [row["id"] for row in rows] == order[:7].tolist()
    assert [row["wanted"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    for row in rows:
        said = predicted[row["id"]]
        assert row["predicted"] == said["label"] == next(iter(row["probabilities"]))
        assert row["probabilities"] == pytest.approx(said["probabilities"], abs=1e-4)


def test_a_row_keeps_its_columns_but_not_its_label(home, tmp_path):
    _, rows = select(home, tmp_path / "out.jsonl", "--num_rows", "2")
    assert list(rows[0]) == ["id", "text", "predicted", "probabilities", "wanted", "label"]
    assert rows[0]["label"] is None
    assert "hidden" not in (tmp_path / "out.jsonl").read_text()


def test_rows_of_the_run_and_rows_twice_are_not_asked_for(home, tmp_path):
    result, rows = select(home, tmp_path / "out.jsonl", "--acquisition", "random", "--num_rows", "999")
    assert (result["spent"], result["repeated"]) == (2, 1)
    assert sorted(row["id"] for row in rows) == list(range(60))


@pytest.mark.parametrize("acquisition", ["badge", "random"])
def test_the_seed_chooses(home, tmp_path, acquisition):
    calls = [("--seed", "0"), ("--seed", "0"), ("--seed", "1")]
    ids = [
        [
            row["id"]
            for row in select(
                home, tmp_path / "o.jsonl", "--acquisition", acquisition, "--num_rows", "9", *more
            )[1]
        ]
        for more in calls
    ]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_coreset_measures_from_the_training_rows(home, tmp_path):
    call = ("--acquisition", "coreset", "--num_rows", "1")
    _, rows = select(home, tmp_path / "a.jsonl", *call)
    same = rows[0]["text"].upper()  # to the model, which lowers it; by its text another row
    others = write_jsonl(tmp_path / "other.jsonl", [{"text": same}])
    _, again = select(home, tmp_path / "b.jsonl", *call, "--train_data", others)
    assert again[0]["id"] != rows[0]["id"]
    with pytest.raises(UserError, match=r"--train_data .*gone.jsonl: no such file"):
        select(home, tmp_path / "c.jsonl", *call, "--train_data", str(tmp_path / "gone.jsonl"))


def test_rows_that_have_labels_elsewhere_are_not_asked_for(home, tmp_path):
    others = write_jsonl(tmp_path / "more.jsonl", read_jsonl(home / "pool.jsonl")[5:15])
    call = ("--acquisition", "random", "--num_rows", "99", "--train_data", others)
    result, rows = select(home, tmp_path / "out.jsonl", *call)
    assert result["spent"] == 12
    assert not {row["id"] for row in rows} & set(range(5, 15))


def test_labels_of_people_are_not_written_over(home, tmp_path):
    (tmp_path / "out.jsonl").write_text("their work")
    call = ["select", str(home / "run"), "--data", str(home / "pool.jsonl")]
    with pytest.raises(UserError, match=r"--output .*: is there already, and may hold people's labels"):
        active.main([*call, "--output", str(tmp_path / "out.jsonl")])
    assert (tmp_path / "out.jsonl").read_text() == "their work"


def test_test_rows_are_not_offered(home, tmp_path):
    (tmp_path / "rows").mkdir()
    data = write_jsonl(tmp_path / "pool.jsonl", toy_rows(5, 9))
    np.save(tmp_path / "rows" / "test.npy", row_hashes([toy_rows(5, 9)[3]["text"]]))
    with pytest.raises(UserError, match=r"--data .*pool.jsonl: 1 of its 5 rows are test rows"):
        select(home, tmp_path / "out.jsonl", data=data)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_pool_of_nothing_new(home, tmp_path):
    with pytest.raises(UserError, match=r"all 40 rows are the run's own rows already"):
        select(home, tmp_path / "out.jsonl", data=str(home / "train.jsonl"))


def test_a_column_that_select_writes_is_refused(home, tmp_path):
    data = write_jsonl(tmp_path / "pool.jsonl", [{"text": "the sea", "predicted": "x"}])
    with pytest.raises(UserError, match=r"has a column 'predicted', which select writes"):
        select(home, tmp_path / "out.jsonl", data=data)


def test_label_sets_get_an_empty_list_to_fill(tmp_path):
    pool = read_texts(
        write_jsonl(tmp_path / "p.jsonl", [{"text": "a", "labels": ["x"]}, {"text": "b"}]),
        "--data",
        RowFormat(),
    )
    predictor = SimpleNamespace(
        multi_label=True, label_names=["x", "y"], thresholds=np.array([0.5, 0.2]), row_format=RowFormat()
    )
    logits = np.array([[3.0, -3.0], [-1.0, -1.0]])
    rows = active_select.rows_to_label(pool, np.array([1, 0]), logits, predictor)
    assert rows[0] == {
        "text": "b",
        "predicted": ["y"],
        "probabilities": {"x": 0.2689, "y": 0.2689},
        "wanted": 1,
        "labels": None,
    }
    assert rows[1]["predicted"] == ["x"]
    assert rows[1]["labels"] is None


def test_a_spreadsheet_out_and_back(home, tmp_path):
    out = str(tmp_path / "to_label.csv")
    active.main(
        ["select", str(home / "run"), "--data", str(home / "pool.jsonl"), "--output", out, "--num_rows", "4"]
    )
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["wanted"] for row in rows] == ["1", "2", "3", "4"]
    assert json.loads(rows[0]["probabilities"])[rows[0]["predicted"]] > 1 / 3
    assert {row["label"] for row in rows} == {""}
    rows[2]["label"] = "red"
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = active.main(
        ["take", out, "--train_data", str(home / "train.jsonl"), "--output", str(tmp_path / "t.jsonl")]
    )
    assert (result["new"], result["unlabelled"]) == (1, 3)
    assert read_jsonl(tmp_path / "t.jsonl")[-1] == {
        "id": rows[2]["id"],
        "text": rows[2]["text"],
        "label": "red",
    }


# -- take -------------------------------------------------------------------------------------------------------

TRAIN = [{"text": "t0", "label": "red"}, {"text": "t1", "label": "blue"}]
SHOWN = {"predicted": "red", "probabilities": {"red": 0.6, "blue": 0.4}, "wanted": 1}


def take(
    tmp_path: Path, labelled: list[dict], *more: str, rows: list[dict] = TRAIN
) -> tuple[dict, list[dict]]:
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", value) for name, value in (("l", labelled), ("train", rows))
    ]
    result = active.main(
        ["take", files[0], "--train_data", files[1], "--output", str(tmp_path / "o.jsonl"), *more]
    )
    return result, read_jsonl(tmp_path / "o.jsonl")


def test_new_rows_stand_behind_the_old_without_what_select_wrote(tmp_path, capsys):
    labelled = [{"id": 7, "text": "a", **SHOWN, "label": "blue"}, {"text": "b", **SHOWN, "label": "red"}]
    result, rows = take(
        tmp_path, [*labelled, {"text": "c", **SHOWN, "label": None}, {"text": "d", "label": ""}]
    )
    assert rows == [*TRAIN, {"id": 7, "text": "a", "label": "blue"}, {"text": "b", "label": "red"}]
    assert (result["rows"], result["new"], result["unlabelled"]) == (4, 2, 2)
    said = capsys.readouterr().out
    assert "blue 1 + 1, red 1 + 1" in said
    assert "the run had said the same of 50.0% of them" in said


def test_rows_that_are_there_already_are_left_out(tmp_path):
    labelled = [
        {"text": " t0 ", "label": "red"},
        {"text": "t1", "label": "red"},
        {"text": "n", "label": "red"},
    ]
    result, rows = take(tmp_path, [*labelled, {"text": "n", "label": "red"}])
    assert [row["text"] for row in rows] == ["t0", "t1", "n"]
    assert (result["known"], result["known_otherwise"], result["repeated"]) == (2, 1, 1)
    assert rows[1]["label"] == "blue"


def test_two_people_with_two_labels_are_asked_again(tmp_path):
    other = write_jsonl(tmp_path / "m.jsonl", [{"text": "n", "label": "blue"}])
    files = [write_jsonl(tmp_path / "l.jsonl", [{"text": "n", "label": "red"}]), other]
    call = ["take", *files, "--train_data", write_jsonl(tmp_path / "train.jsonl", TRAIN)]
    with pytest.raises(
        UserError,
        match=r'm.jsonl: 1 bad row:\n  line 1: has the label \["blue"\], .*l.jsonl, line 1 has \["red"\]',
    ):
        active.main([*call, "--output", str(tmp_path / "o.jsonl")])
    assert not (tmp_path / "o.jsonl").exists()


def test_unknown_labels_are_all_named(tmp_path):
    labelled = [{"text": "a", "label": "rde"}, {"text": "b", "label": "red"}, {"text": "c", "label": ["red"]}]
    with pytest.raises(UserError) as error:
        take(tmp_path, labelled)
    said = str(error.value).splitlines()
    assert said[0].endswith("l.jsonl: 2 bad rows:")
    assert said[1].startswith('  line 1: no training row has the label "rde"; known are blue, red')
    assert said[2] == '  line 3: the label is ["red"]; the training rows have one label'
    assert not (tmp_path / "o.jsonl").exists()


def test_a_space_behind_a_label_is_no_other_label(tmp_path):
    _, rows = take(tmp_path, [{"text": "a", "label": "red "}])
    assert rows[-1]["label"] == "red"


def test_integers_stay_integers(tmp_path):
    _, rows = take(
        tmp_path, [{"text": "a", "label": "1"}], rows=[{"text": "t0", "label": 0}, {"text": "t1", "label": 1}]
    )
    assert rows[-1] == {"text": "a", "label": 1}


@pytest.mark.parametrize("given", [["x", "y"], {"x": 1, "y": 1, "z": 0}, {"y": 1, "x": 1}])
@pytest.mark.parametrize("kind", ["list", "dict"])
def test_label_sets_take_the_form_of_the_training_rows(tmp_path, kind, given):
    rows = {"list": [{"text": "t", "labels": ["x", "z"]}, {"text": "u", "labels": ["y"]}],
            "dict": [{"text": "t", "labels": {"x": 1, "y": 0, "z": 1}}]}[kind]  # fmt: skip
    expected = {"list": ["x", "y"], "dict": {"x": 1, "y": 1, "z": 0}}[kind]
    found = take(tmp_path, [{"text": "a", "labels": given}, {"text": "b", "labels": []}], rows=rows)[1]
    holds = sorted(found[-2]["labels"]) if kind == "list" else found[-2]["labels"]
    assert holds == expected
    assert found[-1]["labels"] == {"list": [], "dict": {"x": 0, "y": 0, "z": 0}}[kind]
    with pytest.raises(UserError, match=r"line 1: the label is \"x\"; the training rows have"):
        take(tmp_path, [{"text": "a", "labels": "x"}], rows=rows)


def test_what_is_left_of_the_pool(tmp_path):
    pool = write_jsonl(
        tmp_path / "pool.jsonl", [{"text": text, "id": text} for text in ("a", "b", "t1", "c")]
    )
    labelled = [{"text": "b", "label": "red"}, {"text": "c", "label": None}]
    result, _ = take(tmp_path, labelled, "--pool", pool, "--rest", str(tmp_path / "rest.jsonl"))
    assert [row["id"] for row in read_jsonl(tmp_path / "rest.jsonl")] == ["a", "c"]
    assert result["rest"] == 2


def test_test_rows_do_not_become_training_rows(tmp_path):
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "test.npy", row_hashes(["n"]))
    with pytest.raises(UserError, match=r"1 of its 1 rows are test rows"):
        take(tmp_path, [{"text": "n", "label": "red"}])
    assert not (tmp_path / "o.jsonl").exists()


def test_held_out_rows_do_not_become_training_rows(tmp_path):
    held_out = write_jsonl(tmp_path / "val.jsonl", [{"text": "n"}])
    with pytest.raises(UserError, match=r"1 of the 2 labelled rows are in --held_out .*val.jsonl"):
        take(tmp_path, [{"text": "n", "label": "red"}, {"text": "m", "label": "red"}], "--held_out", held_out)


def test_a_file_that_nobody_filled_in(tmp_path):
    with pytest.raises(
        UserError, match=r"l.jsonl: no new labelled row in 2 rows: 1 without a label, 1 that are"
    ):
        take(tmp_path, [{"text": "a", "label": None}, {"text": "t0", "label": "red"}])


# -- flags ------------------------------------------------------------------------------------------------------

SELECT = ["select", "RUN", "--data", "a.jsonl"]
TAKE = ["take", "l.jsonl", "--train_data", "t.jsonl"]
SIMULATE = ["simulate", "--train_data", "t.jsonl", "--val_data", "v.jsonl", "--output_dir", "d"]
BAD_FLAGS = {
    "no step": ([], "expected one of select, take, simulate"),
    "an ending": ([*SELECT, "--output", "a.txt"], r"--output a.txt: expected a file that ends in"),
    "the input": ([*SELECT, "--output", "./a.jsonl"], r"--output ./a.jsonl: is an input too"),
    "no rows": ([*SELECT, "--output", "b.jsonl", "--num_rows", "0"], "a whole number at least 1"),
    "the training rows": ([*TAKE, "--output", "t.jsonl"], r"--output t.jsonl: is an input too"),
    "a pool without a rest": ([*TAKE, "--output", "o.jsonl", "--pool", "p.jsonl"], "--pool, --rest: expected both"),
    "one output": ([*TAKE, "--output", "o.json", "--pool", "p", "--rest", "o.json"], "is given twice as an output"),
    "an acquisition": ([*SIMULATE, "--acquisition", "luck"], "invalid choice: 'luck'"),
    "one twice": ([*SIMULATE, "--acquisition", "badge", "badge"], "--acquisition: badge is given twice"),
    "a seed twice": ([*SIMULATE, "--seeds", "1", "1"], "--seeds: 1 is given twice"),
    "a loss": ([*SIMULATE, "--metric", "loss"], "--metric loss: is better when lower"),
    "flags": ([*SIMULATE, "--flags=--seed 3"], r"--flags: --seed is given by the grid"),
    "no such run": ([*SELECT, "--output", "b.jsonl"], "RUN: no such folder"),
    "no such file": ([*TAKE, "--output", "o.jsonl"], "--train_data t.jsonl: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case, tmp_path, monkeypatch):
    flags, message = BAD_FLAGS[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        active.main(flags)
    assert not list(tmp_path.iterdir())


def test_random_is_always_simulated_too():
    assert active.parse_flags([*SIMULATE, "--acquisition", "margin"]).acquisition == ["margin", "random"]
