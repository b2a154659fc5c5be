"""jobs/active_simulate.py: what is bought when, with trainings that train nothing; killed anywhere, it goes on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from core.errors import UserError
from core.rows import file_sha256
from core.spent import row_hash, row_hashes
from jobs import active, active_simulate
from jobs.active_simulate import HEAVY, first_rows
from tests.conftest import Killed, killed_at, save_tiny, toy_rows, write_jsonl

NAMES = ("red", "green", "blue")


def rows_of(count: int) -> list[dict]:
    """Rows of different texts; few are blue."""
    return [{"text": f"row {k}", "label": "blue" if k % 20 == 7 else NAMES[k % 2]} for k in range(count)]


def fake_scores(text: str, num_labels: int, width: int) -> np.ndarray:
    """The same for a text and a number of labels."""
    return np.random.default_rng([row_hash(text), num_labels, width]).normal(size=width)


@pytest.fixture
def trained(tmp_path, monkeypatch) -> list[str]:
    """Trainings and predictions without a model; the folders that were trained, in order."""
    made = []

    def train_all(cells, gpus):
        for cell in cells:
            args = vars(train.parse_args(list(cell.flags)))
            value = 0.5 + len(Path(args["train_data"]).read_text().splitlines()) / 1000 + 0.001 * args["seed"]
            for name in HEAVY:
                (cell.folder / name).mkdir(parents=True, exist_ok=True)
            data = {"train": file_sha256(args["train_data"]), "validation": file_sha256(args["val_data"])}
            record = {"status": "finished", "arguments": args, "data": data, "metric": "macro_f1"}
            record |= {"metrics": {"validation": {"macro_f1": value}, "test": {"macro_f1": value / 2}}}
            (cell.folder / "run.json").write_text(json.dumps(record | {"model": {"multi_label": False}}))
            made.append(str(cell.folder.relative_to(tmp_path)))
        return {}

    def load(run, device, amp):
        assert (run / "best_model").is_dir()
        count = len((run.parent / "train.jsonl").read_text().splitlines())
        return SimpleNamespace(device=torch.device("cpu"), count=count)

    def score_texts(predictor, texts, pairs, lines, path, with_states):
        return tuple(
            np.stack([fake_scores(text, predictor.count, width) for text in texts]).astype(np.float32)
            for width in (3, 5)
        )

    monkeypatch.setattr(active_simulate, "train_all", train_all)
    monkeypatch.setattr(active_simulate, "load", load)
    monkeypatch.setattr(active_simulate, "score_texts", score_texts)
    monkeypatch.setattr(active_simulate, "release_cached", lambda device: None)
    monkeypatch.setattr(
        "os.fsync", lambda file: None
    )  # most of the time of a test, and of a disk that is in use
    monkeypatch.setattr("jobs.active_curve.curve_figure", lambda result: None)
    monkeypatch.setattr("jobs.active_curve.save_png", lambda figure, path: None)
    return made


@pytest.fixture
def call(tmp_path) -> list[str]:
    """Of 60 rows, 10 at first, two rounds of 5."""
    files = {"train": rows_of(60), "val": [{"text": "other", "label": "red"}]}
    paths = {name: write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}
    return [
        *(
            "simulate",
            "--train_data",
            paths["train"],
            "--val_data",
            paths["val"],
            "--start",
            "10",
            "--step",
            "5",
        ),
        *("--rounds", "2", "--acquisition", "margin", "random", "--seeds", "0", "1"),
        *("--output_dir", str(tmp_path / "d")),
    ]


def bought(tmp_path: Path, place: str) -> list[int]:
    return json.loads((tmp_path / "d" / place / "rows.json").read_text())


def tree(tmp_path: Path) -> dict[str, bytes]:
    """What a simulation leaves behind, but for fake runs."""
    found = [path for path in (tmp_path / "d").rglob("*") if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(tmp_path)): path.read_bytes() for path in found}


# -- what is bought ---------------------------------------------------------------------------------------------


def test_the_first_rows_hold_each_class():
    truth = np.arange(3) == np.array([0] * 50 + [1] * 49 + [2])[:, None]
    order = np.random.default_rng(0).permutation(100)
    found = first_rows(truth, 5, order)
    assert len(set(found)) == 5
    assert truth[found].any(axis=0).all()
    others = [k for k in found if k != 99]
    assert set(others) <= set(order[:6])  # the rest are the first of the order
    with pytest.raises(UserError, match=r"--start 2: 3 rows are needed"):
        first_rows(truth, 2, order)


def test_each_round_adds_to_the_one_before(call, tmp_path, trained):
    active.main(call)
    for name in ("margin", "random"):
        first, second, third = (
            bought(tmp_path, f"seed0/{place}") for place in ("start", f"{name}/round1", f"{name}/round2")
        )
        assert (len(first), len(second), len(third)) == (10, 15, 20)
        assert second[:10] == first
        assert third[:15] == second
        assert len(set(third)) == 20


def test_the_training_rows_of_a_round_are_those_that_were_bought(call, tmp_path, trained):
    active.main(call)
    lines = (tmp_path / "d/seed1/margin/round2/train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        rows_of(60)[k] for k in bought(tmp_path, "seed1/margin/round2")
    ]


def test_margin_buys_the_most_narrow_by_the_run_before(call, tmp_path, trained):
    active.main(call)
    for before, after, count in (("start", "margin/round1", 10), ("margin/round1", "margin/round2", 15)):
        labelled = bought(tmp_path, f"seed0/{before}")
        pool = [k for k in range(60) if k not in labelled]
        logits = np.stack([fake_scores(f"row {k}", count, 3) for k in pool])
        probs = np.sort(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), axis=1)
        narrow = np.argsort(probs[:, 2] - probs[:, 1])[:5]
        assert bought(tmp_path, f"seed0/{after}")[count:] == [pool[k] for k in narrow]


def test_random_goes_on_in_the_order_of_the_first_rows(call, tmp_path, trained):
    active.main(call)
    order = np.random.default_rng(0).permutation(60).tolist()
    rows = bought(tmp_path, "seed0/random/round2")
    assert rows[10:] == [k for k in order if k not in rows[:10]][:10]


@pytest.mark.parametrize("acquisition", ["entropy", "badge", "coreset"])
def test_every_acquisition_buys_rows_of_its_own(call, tmp_path, trained, acquisition):
    active.main([*call, "--acquisition", "margin", acquisition])
    rows = {name: set(bought(tmp_path, f"seed0/{name}/round2")) for name in ("margin", acquisition, "random")}
    assert len(set(map(frozenset, rows.values()))) == 3


def test_seeds_begin_with_other_rows(call, tmp_path, trained):
    active.main(call)
    assert set(bought(tmp_path, "seed0/start")) != set(bought(tmp_path, "seed1/start"))


def test_the_curve_is_what_the_runs_reached(call, tmp_path, trained, capsys):
    result = active.main(call)
    found = json.loads((tmp_path / "d/curve.json").read_text())
    assert found["labels"] == [10, 15, 20]
    assert np.allclose(found["curves"]["margin"], [[0.51, 0.515, 0.52], [0.511, 0.516, 0.521]])
    assert np.allclose(found["full"], [0.56, 0.561])
    assert found["num_rows"] == 60
    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1]) == result
    assert result["frac_to_random"] == {"margin": 1.0, "random": 1.0}


def test_test_rows_give_the_score_where_they_are_given(call, tmp_path, trained):
    test = write_jsonl(tmp_path / "test.jsonl", [{"text": "a third", "label": "red"}])
    active.main([*call, "--test_data", test])
    found = json.loads((tmp_path / "d/curve.json").read_text())
    assert found["is_test"]
    assert found["curves"]["margin"][0][0] == pytest.approx(0.255)
    arguments = json.loads((tmp_path / "d/seed0/start/run/run.json").read_text())["arguments"]
    assert arguments["test_data"] == test


def test_rows_that_are_held_out_or_repeated_are_not_bought(call, tmp_path, trained):
    val = rows_of(60)[::3]
    write_jsonl(tmp_path / "val.jsonl", val)
    write_jsonl(tmp_path / "train.jsonl", [*rows_of(60), *rows_of(60)[:9]])
    active.main(call)
    texts = [
        json.loads(line)["text"] for line in (tmp_path / "d/seed0/full/train.jsonl").read_text().splitlines()
    ]
    assert sorted(texts) == sorted({row["text"] for row in rows_of(60)} - {row["text"] for row in val})


# -- going on ---------------------------------------------------------------------------------------------------


def test_nothing_is_done_twice(call, trained, tmp_path):
    active.main(call)
    before, count = tree(tmp_path), len(trained)
    assert count == 2 * (1 + 2 * 2 + 1)  # start, two acquisitions of two rounds, full
    active.main(call)
    assert len(trained) == count
    assert tree(tmp_path) == before


def test_killed_anywhere_it_goes_on_to_the_same_end(call, trained, tmp_path):
    call = [*call, "--acquisition", "badge", "--rounds", "1", "--seeds", "0"]
    active.main(call)
    reference, step, refused = tree(tmp_path), 0, True
    while refused:
        shutil.rmtree(tmp_path / "d")
        trained.clear()
        try:
            with killed_at(step):
                active.main(call)
            refused = False
        except Killed:
            active.main(call)
        assert len(trained) == len(set(trained)) == 4, step
        assert tree(tmp_path) == reference, step
        step += 1
    assert step > 40


def test_weights_are_removed_when_nothing_is_chosen_by_them(call, trained, tmp_path):
    active.main(call)
    assert not [path for name in HEAVY for path in (tmp_path / "d").rglob(name)]
    assert [str(path.parent.relative_to(tmp_path)) for path in sorted((tmp_path / "d").rglob("scores"))] == [
        "d/seed0/start",
        "d/seed1/start",
    ]


def test_acquisitions_and_seeds_can_be_added(call, trained, tmp_path):
    active.main([*call, "--acquisition", "random", "--seeds", "0"])
    del trained[:]
    active.main([*call, "--acquisition", "coreset", "--seeds", "0", "1"])
    assert sorted(trained) == sorted(
        [f"d/seed0/coreset/round{r}/run" for r in (1, 2)]
        + [f"d/seed1/{name}/run" for name in ("start", "full")]
        + [f"d/seed1/{name}/round{r}/run" for name in ("coreset", "random") for r in (1, 2)]
    )


@pytest.mark.parametrize(
    "more", [("--step", "4"), ("--start", "9"), ("--rounds", "1"), ("--flags=--epochs 3",)]
)
def test_a_folder_is_one_simulation(call, trained, more):
    active.main(call)
    with pytest.raises(UserError, match=r"--output_dir .*: holds another simulation: --\w+ was "):
        active.main([*call, *more])


def test_rows_that_have_changed(call, trained, tmp_path):
    active.main(call)
    write_jsonl(tmp_path / "train.jsonl", rows_of(61))
    with pytest.raises(UserError, match=r"holds another simulation: --train_data has other rows"):
        active.main(call)


def test_a_run_that_fails_is_named_and_those_before_it_are_scored(call, trained, tmp_path, monkeypatch):
    real = active_simulate.train_all

    def fails(cells, gpus):
        if "seed1" in str(cells[0].folder):
            return {cells[0].folder: "no room"}
        return real(cells, gpus)

    monkeypatch.setattr(active_simulate, "train_all", fails)
    with pytest.raises(
        UserError, match=r"1 runs failed: .*seed1/start/run: no room. The same command goes on"
    ):
        active.main(call)
    assert (tmp_path / "d/seed0/start/scores").is_dir()


def test_as_many_at_once_as_there_are_gpus(call, trained, monkeypatch):
    real, sizes = active_simulate.train_all, []

    def counted(cells, gpus):
        sizes.append(len(cells))
        return real(cells, gpus)

    monkeypatch.setattr(active_simulate, "train_all", counted)
    monkeypatch.setattr(active, "check_gpus", lambda gpus: None)
    active.main([*call, "--gpus", "0,1,2"])
    assert sizes == [2, 3, 1, 3, 1, 2]


# -- bad input --------------------------------------------------------------------------------------------------


def test_more_labels_than_rows(call, trained, tmp_path):
    with pytest.raises(
        UserError, match=r"--start 10 --step 5 --rounds 11: would buy 65 labels, .* has 60 rows to buy"
    ):
        active.main([*call, "--rounds", "11"])
    assert not (tmp_path / "d").exists()


def test_test_rows_are_not_bought(call, trained, tmp_path):
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "test.npy", row_hashes(["row 3"]))
    with pytest.raises(UserError, match=r"--train_data .*: 1 of its 60 rows are test rows"):
        active.main(call)


def test_rows_without_a_label(call, trained, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [*rows_of(60), {"text": "x"}])
    with pytest.raises(UserError, match=r"train.jsonl: 1 bad row:\n  line 61: no field 'label' or 'labels'"):
        active.main(call)


def test_flags_that_train_py_does_not_take(call, trained):
    with pytest.raises(UserError, match=r"--flags: train.py: .*--epoch"):
        active.main([*call, "--flags=--epoch 3"])


# -- the whole --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes(tmp_path):
    paths = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", toy_rows(60, k))
        for k, name in enumerate(("train", "val"))
    }
    flags = "--learning_rate 1e-2 --amp off --batch_size 16 --epochs 1 --max_length 32 --max_tokens 512"
    call = ["simulate", "--train_data", paths["train"], "--val_data", paths["val"], f"--flags={flags}"]
    call += ["--model_name", save_tiny(tmp_path / "tiny"), "--start", "12", "--step", "6", "--rounds", "2"]
    active.main(
        [*call, "--acquisition", "badge", "random", "--seeds", "0", "--output_dir", str(tmp_path / "d")]
    )
    found = json.loads((tmp_path / "d/curve.json").read_text())
    assert len(found["curves"]["badge"][0]) == 3
    assert (tmp_path / "d/curve.png").is_file()
