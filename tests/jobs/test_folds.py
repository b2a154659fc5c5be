"""jobs/folds.py: how rows are dealt, the flags of a run that is trained again, rows scored by who has not seen them."""

import json
from pathlib import Path

import numpy as np
import pytest

import train
from core.errors import UserError
from core.mixing import one_hot
from core.stacking import choose_strength, fit_stacking, stacked_logits
from jobs import ensemble, folds
from jobs.folds import deal_rows, member_flags
from jobs.members import read_team
from jobs.scored import read_scored
from tests.conftest import save_tiny, toy_rows, write_jsonl

# -- dealing ----------------------------------------------------------------------------------------------------


def test_classes_are_dealt_evenly():
    truth = np.arange(97)[:, None] % 10 == np.array([0, 1, 2])  # 10, 10 and 10 rows, 67 without a label
    fold = deal_rows(truth, np.arange(97, dtype=np.uint64), 5, 0)
    assert all((np.bincount(fold[is_class], minlength=5) == 2).all() for is_class in truth.T)
    assert set(np.bincount(fold)) <= {19, 20}


def test_rows_of_one_text_stay_together():
    hashes = np.repeat(np.arange(30, dtype=np.uint64), 3)
    fold = deal_rows(one_hot(np.eye(3)[np.arange(90) % 3]), hashes, 5, 0)
    assert all(len(set(fold[hashes == value])) == 1 for value in range(30))


def test_the_only_rows_of_a_class_are_in_every_training():
    truth = np.zeros((40, 3), bool)
    truth[np.arange(40), np.arange(40) % 2] = True
    truth[7] = [False, False, True]
    fold = deal_rows(truth, np.arange(40, dtype=np.uint64), 4, 0)
    assert np.flatnonzero(fold < 0).tolist() == [7]
    assert all(truth[fold != k].any(axis=0).all() for k in range(4))


def test_the_seed_deals():
    truth, hashes = np.ones((50, 1), bool), np.arange(50, dtype=np.uint64)
    assert np.array_equal(deal_rows(truth, hashes, 5, 0), deal_rows(truth, hashes, 5, 0))
    assert not np.array_equal(deal_rows(truth, hashes, 5, 0), deal_rows(truth, hashes, 5, 1))


# -- flags ------------------------------------------------------------------------------------------------------

GIVEN = [
    "--train_data",
    "a.jsonl",
    "--val_data",
    "b.jsonl",
    "--epochs",
    "2.5",
    "--lora_rank",
    "4",
    "--compile",
]
GIVEN += [
    "--label_smoothing",
    "0.1",
    "--exact_dropout",
    "--text_field",
    "premise,x",
    "--test_data",
    "c.jsonl",
]


def test_flags_are_read_back_as_they_were():
    arguments = vars(train.parse_args([*GIVEN, "--calibration_data", "d.jsonl", "--baselines"]))
    found = vars(train.parse_args(member_flags({"arguments": arguments}, Path("run"), train_data="z.jsonl")))
    differ = {name for name, value in arguments.items() if found[name] != value}
    assert differ == {"train_data", "test_data", "calibration_data", "baselines"}
    assert (found["train_data"], found["test_data"], found["baselines"]) == ("z.jsonl", "", False)


def test_runs_that_train_py_did_not_make_alone():
    arguments = vars(train.parse_args(GIVEN)) | {"policy": "runs/a"}
    with pytest.raises(
        UserError, match=r"run: --folds trains it again with train.py's flags, and cannot: .*policy"
    ):
        member_flags({"arguments": arguments}, Path("run"), train_data="z.jsonl")


# -- training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two runs on the same rows."""
    home = tmp_path_factory.mktemp("folds")
    files = {
        name: write_jsonl(home / f"{name}.jsonl", toy_rows(48, seed))
        for seed, name in enumerate(("train", "val"))
    }
    flags = [f"--{name}_data={path}" for name, path in files.items()]
    flags += [
        f"--model_name={save_tiny(home / 'tiny')}",
        f"--cache_dir={home / 'cache'}",
        "--learning_rate=1e-2",
    ]
    flags += ["--amp=off", "--batch_size=16", "--epochs=1", "--max_length=32", "--max_tokens=512"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.evaluate.save_png", lambda *_: None)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *_: None)
        for seed in range(2):
            train.main([*flags, f"--output_dir={home / f'run{seed}'}", f"--seed={seed}"])
    return home


@pytest.fixture
def trained(monkeypatch) -> list[Path]:
    """Trainings run in this process; their folders, in order."""
    made = []

    def train_all(cells, gpus):
        for cell in cells:
            train.main(list(cell.flags))
            made.append(cell.folder)
        return {}

    monkeypatch.setattr(folds, "train_all", train_all)
    monkeypatch.setattr("core.evaluate.save_png", lambda *_: None)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *_: None)
    return made


def texts_of(path: Path) -> set[str]:
    return {json.loads(line)["text"] for line in path.read_text().splitlines()}


def test_every_row_is_scored_by_models_that_have_not_seen_it(home, tmp_path, trained):
    team = read_team([str(home / "run0"), str(home / "run1")])
    logits, truth = folds.out_of_fold(team, tmp_path, 2, 0, [])
    assert logits.shape == (2, 48, 3)
    assert np.isfinite(logits).all()
    place = tmp_path / "folds" / "2-seed0"
    whole, parts = texts_of(home / "train.jsonl"), []
    for k in range(2):
        seen, held_out = texts_of(place / f"fold{k}.train.jsonl"), texts_of(place / f"fold{k}.held_out.jsonl")
        assert not seen & held_out
        assert seen | held_out == whole
        parts.append(held_out)
    assert not parts[0] & parts[1]
    rows = [json.loads(line) for line in (home / "train.jsonl").read_text().splitlines()]
    assert [team.label_names[k] for k in truth.argmax(axis=1)] == [row["label"] for row in rows]
    for m in range(2):
        for k in range(2):
            folder = place / f"{m}-run{m}" / f"fold{k}"
            inside = [row["text"] in parts[k] for row in rows]
            assert np.array_equal(logits[m, inside], read_scored(folder, "test").logits)
            assert not (folder / "best_model").exists()  # scores are what is needed of it
    assert json.loads((folder / "run.json").read_text())["arguments"]["seed"] == 1

    made = list(trained)
    again, _ = folds.out_of_fold(team, tmp_path, 2, 0, [])
    assert len(made) == 4
    assert trained == made
    assert np.array_equal(again, logits)


def test_the_meta_learner_is_fitted_on_them_and_nothing_else(home, tmp_path, trained):
    runs, out = [str(home / "run0"), str(home / "run1")], tmp_path / "out"
    ensemble.main([*runs, "--output_dir", str(out), "--method", "stacking", "--folds", "2"])
    team = read_team(runs)
    oof = folds.out_of_fold(team, out, 2, 0, [])
    table = fit_stacking(*oof, False, choose_strength(*oof, False))
    assert np.allclose(np.load(out / "stacking.npy"), table)
    expected = stacked_logits(team.splits["validation"].logits, table, False)
    assert np.allclose(np.load(out / "validation" / "logits.npy"), expected, atol=1e-5)
    metrics = json.loads((out / "validation" / "metrics.json").read_text())
    assert metrics["weights_chosen_on"] == f"{home / 'train.jsonl'}, out-of-fold scores of 2 folds"


def test_a_failed_training_is_named(home, tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "train_all", lambda cells, gpus: {cells[0].folder: "it broke"})
    with pytest.raises(UserError, match=r"1 of the runs for --folds failed: .*0-run0/fold0: it broke"):
        folds.out_of_fold(read_team([str(home / "run0"), str(home / "run1")]), tmp_path, 2, 0, [])


@pytest.mark.slow
def test_processes(home, tmp_path):
    runs = [str(home / "run0"), str(home / "run1")]
    ensemble.main([*runs, "--output_dir", str(tmp_path / "out"), "--folds", "2"])
    assert len(list((tmp_path / "out" / "folds").rglob("run.json"))) == 4
