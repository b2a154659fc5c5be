"""jobs/tune.py: a search as one command, with fake trainings; at the end one with real ones."""

import json
import os
import shutil
from pathlib import Path

import pytest

import train
from archs.build import build_model
from archs.loading import load_config
from core.errors import UserError
from core.schedule import auto_learning_rate
from jobs import search_loop, tune
from jobs.trials import numbers
from predict import load
from tests.conftest import toy_rows, write_jsonl
from tests.jobs.fake_training import good, in_thread
from tests.jobs.searches import argv_of, states


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(search_loop, "POLL_S", 0.02)


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def parsed(folder: Path, model: str, *more: str):
    return tune.parse_args(argv_of(folder, model, *more))


# -- a whole search ---------------------------------------------------------------------------------------------


def test_a_search_from_flags_to_preset(tmp_path, tiny_bert, capsys):
    argv = argv_of(tmp_path, tiny_bert, "--trials", "12")
    found = tune.main(argv, fit=good, start=in_thread)
    out = tmp_path / "out"
    printed = capsys.readouterr().out
    assert last_json(printed) == json.loads(json.dumps(found))
    assert " of 12 full trainings of " in printed
    assert found["best"] > found["default"] == pytest.approx(0.5229, abs=1e-4)
    assert found["cost"]["n"] == 12
    assert (found["metric"], found["retrained"]) == ("macro_f1", None)
    result = json.loads((out / "search.json").read_text())
    assert len(result["trials"]) == 12
    assert result["best"]["number"] == found["trial"]
    assert {path.name for path in out.iterdir()} >= {
        "trials.md",
        "search.png",
        "flags.png",
        "preset",
        "trials",
    }
    data = ["--train_data", "a", "--val_data", "b"]
    preset = train.parse_args([f"@{out / 'preset'}", *data])
    assert preset.learning_rate == pytest.approx(result["best"]["params"]["learning_rate"], rel=5e-3)
    assert preset.model_name == tiny_bert
    assert Path(found["run"], "best_model").is_dir()
    text = (out / "preset").read_text()
    assert f"# macro_f1 {found['best']:.4f} on its validation rows, the default 0.5229" in text
    assert result["data"]["train"]["sha256"] in text


def test_the_same_command_reports_again(tmp_path, tiny_bert):
    argv = argv_of(tmp_path, tiny_bert, "--trials", "3")
    first = tune.main(argv, fit=good, start=in_thread)

    def never(flags, on_eval):
        raise AssertionError("it trains again")

    second = tune.main(argv, fit=never, start=in_thread)
    assert (second["best"], second["cost"]) == (first["best"], first["cost"])


def test_when_nothing_beats_the_default(tmp_path, tiny_bert, capsys):
    def fit(flags, on_eval):
        return good(flags, on_eval) | {"macro_f1": 0.9 if Path(flags[-1]).name == "000" else 0.1}

    argv = argv_of(tmp_path, tiny_bert, "--trials", "3", "--retrain_seeds", "2", "--pruner", "none")
    found = tune.main(argv, fit=fit, start=in_thread)
    assert (found["trial"], found["retrained"]) == (0, None)
    assert "No trial beat the default: macro_f1 0.9000." in capsys.readouterr().out
    preset = train.parse_args([f"@{tmp_path}/out/preset", "--train_data", "a", "--val_data", "b"])
    assert preset.learning_rate == 1e-4


def test_default_and_best_are_trained_again_over_new_seeds(tmp_path, tiny_bert, monkeypatch, capsys):
    asked = {}

    def retrain(folders, flags, seeds, metric, gpus, may_start):
        asked.update(folders=folders, flags=flags, seeds=seeds, metric=metric, may=may_start())
        for folder in folders.values():
            for name in ("best_model", "final_model", "checkpoint"):
                (folder / "seed5" / name).mkdir(parents=True)
        values = {"default": [0.5, 0.5], "best": [0.6, 0.7]}
        difference = {"mean": 0.15, "low": -0.5, "high": 0.8}
        return values | {"seeds": [5, 6], "difference": difference, "failed": {}, "left_out": []}

    monkeypatch.setattr(tune, "retrain", retrain)
    argv = argv_of(tmp_path, tiny_bert, "--trials", "6", "--retrain_seeds", "2", "--seed", "4")
    found = tune.main(argv, fit=good, start=in_thread)
    assert (asked["seeds"], asked["metric"], asked["may"]) == ([5, 6], "macro_f1", True)
    folders = asked["folders"]
    assert (folders["default"].name, folders["best"].name) == ("trial000", f"trial{found['trial']:03}")
    best, default = (train.parse_args(asked["flags"][name]) for name in ("best", "default"))
    assert default.learning_rate == 1e-4
    assert best.learning_rate != 1e-4
    kept = sorted(
        str(path.relative_to(tmp_path / "out" / "retrained")) for path in folders["best"].glob("*/*")
    )
    assert kept == [f"{folders['best'].name}/seed5/best_model"]
    assert list(folders["default"].glob("*/*")) == []
    assert found["retrained"]["folder"] == str(folders["best"])
    printed = capsys.readouterr().out
    assert "Retrained over 2 new seeds: best 0.6500" in printed
    assert "# Retrained over 2 new seeds: best 0.6500" in (tmp_path / "out" / "preset").read_text()


def test_a_search_without_a_finished_default_is_told(tmp_path, tiny_bert):
    search = tune.prepare(parsed(tmp_path, tiny_bert))
    with pytest.raises(UserError, match=r"the default was not finished: give it more time"):
        tune.report(search, "")


def test_failures_in_a_row_are_told(tmp_path, tiny_bert, capsys):
    def fit(flags, on_eval):
        if Path(flags[-1]).name != "000":
            raise RuntimeError("CUDA out of memory")
        return good(flags, on_eval)

    tune.main(argv_of(tmp_path, tiny_bert), fit=fit, start=in_thread)
    printed = capsys.readouterr().out
    assert "Stopped after 5 failures in a row, the last: RuntimeError: CUDA out of memory" in printed
    assert "29 of 30 trials are left: the same command goes on." in printed


# -- before anything is trained ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, message",
    [
        (
            ["--flags=--test_data x.jsonl"],
            r"--flags: --test_data: test rows are read by the report alone; drop",
        ),
        (["--flags=--seed 3"], r"--flags: --seed: is the search's to give"),
        (["--flags=--output_dir x"], r"--flags: --output_dir: is the search's"),
        (["--flags=--train_data x"], r"--flags: --train_data: is the search's"),
        (["--flags=--metric loss"], r"--flags: --metric: is the search's"),
        (["--flags=--dry_run"], r"--flags: --dry_run: is the search's"),
        (["--flags=--epoch 3"], r"--flags: train\.py: unrecognized arguments: --epoch 3"),
        (["--flags='"], r"cannot be read: No closing quotation"),
        (["--train_data", "gone.jsonl"], r"--train_data gone\.jsonl: no such file"),
        (["--val_data", "gone.jsonl"], r"--val_data gone\.jsonl: no such file"),
        (["--model_name", "./gone"], r"--model_name \./gone: is no folder"),
        (["--space", "gone.json"], r"--space gone\.json: expected default, wide or a JSON file"),
        (["--fix", "dropout"], r"--fix dropout: is not searched; the space has learning_rate, batch_size"),
        (["--fix", "learning_rate", "batch_size"], r"--fix: leaves nothing to search"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_is_refused(tmp_path, tiny_bert, more, message):
    with pytest.raises(UserError, match=message):
        tune.prepare(parsed(tmp_path, tiny_bert, *more))
    assert not (tmp_path / "out" / "study.journal").exists()


def test_test_rows_in_a_preset_are_refused_too(tmp_path, tiny_bert):
    (tmp_path / "preset").write_text("--test_data x.jsonl\n")
    with pytest.raises(UserError, match=r"--test_data: test rows are read by the report alone"):
        tune.prepare(parsed(tmp_path, tiny_bert, f"--flags=@{tmp_path / 'preset'}"))


@pytest.mark.parametrize("name", ["train_data", "val_data"])
def test_rows_are_asked_for(name):
    other = "val_data" if name == "train_data" else "train_data"
    with pytest.raises(UserError, match=rf"--{name}: no file given"):
        tune.parse_args([f"--{other}", "a.jsonl"])


def test_gpus_that_are_not_there():
    with pytest.raises(UserError, match=r"--gpus 0,1: no CUDA device is visible"):
        tune.parse_args(["--train_data", "a", "--val_data", "b", "--gpus", "0,1"])


def test_numbers_for_auto_are_those_of_train(tmp_path, tiny_bert):
    argv = ["--train_data", "a", "--val_data", "b", "--model_name", tiny_bert]
    found = tune.with_numbers(train.parse_args(argv), 3000)
    assert (found.learning_rate, found.epochs) == (auto_learning_rate(10**6), 7.0)  # 600 steps of 94
    config = load_config(tiny_bert, "bert")
    model, _ = build_model(tiny_bert, config, ["a", "b"], False, "linear", "mean", None, "auto")
    size = sum(param.numel() for param in model.parameters())
    assert found.learning_rate == auto_learning_rate(size)
    given = train.parse_args([*argv, "--learning_rate", "0.5", "--epochs", "2"])
    assert vars(tune.with_numbers(given, 3000)) == vars(given)


def test_the_built_in_space_around_a_real_default(tmp_path, tiny_bert):
    search = tune.prepare(parsed(tmp_path, tiny_bert, "--space", "default", "--fix", "schedule"))
    assert "schedule" not in search.space
    default = search.trials()[0]
    fixed = default.system_attrs["fixed_params"]
    assert fixed["learning_rate"] == 1e-4
    assert fixed["head"] == "auto"
    assert states(search) == ["WAITING"]


# -- with real trainings ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_search(tmp_path, tiny_bert, toy_files, capfd):
    flags = f"--cache_dir {tmp_path / 'cache'} --amp off --max_length 32 --batch_size 16 --epochs 2"
    flags += " --learning_rate 1e-2"
    space = {"learning_rate": {"low": 3e-3, "high": 3e-2, "log": True}, "head": ["auto", "linear"]}
    space |= {"pooling": {"choices": ["cls", "mean"], "if": {"head": "linear"}}}
    (tmp_path / "space.json").write_text(json.dumps(space))
    argv = ["--train_data", toy_files["train"], "--val_data", toy_files["val"], "--model_name", tiny_bert]
    argv += [
        f"--flags={flags}",
        "--space",
        str(tmp_path / "space.json"),
        "--trials",
        "3",
        "--retrain_seeds",
        "2",
    ]
    found = tune.main([*argv, "--output_dir", str(tmp_path / "out")])
    assert found["cost"]["n"] == 3
    record = json.loads(Path(tmp_path / "out" / "trials" / "000" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["metrics"]["validation"]["macro_f1"] == found["default"]
    assert len(load(found["run"])(["rose the a", "sky in it"])) == 2
    preset = [f"@{found['preset']}", "--train_data", toy_files["train"], "--val_data", toy_files["val"]]
    again = train.main(
        [*preset, "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "again")]
    )
    assert numbers(again)["macro_f1"] == found["best"]  # the preset is the best trial
    if found["trial"]:
        assert found["retrained"]["seeds"] == [1, 2]
    capfd.readouterr()


@pytest.mark.slow
def test_a_trial_with_test_rows_is_told(tmp_path, tiny_bert):
    """The rows of a split's test part do not choose: train.py refuses them, and with the default the search ends."""
    (tmp_path / "rows").mkdir()
    argv = argv_of(tmp_path, tiny_bert)
    write_jsonl(tmp_path / "test.jsonl", toy_rows(96, 1))
    cache = f"--flags=--cache_dir {tmp_path / 'cache'} --amp off --learning_rate 1e-4 --max_length 32"
    argv = [*argv, cache]
    flags = ["--model_name", tiny_bert, "--train_data", str(tmp_path / "train.jsonl"), "--max_steps", "1"]
    flags += ["--val_data", str(tmp_path / "test.jsonl"), "--amp", "off"]
    train.main([*flags, "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache")])
    shutil.copy(tmp_path / "run" / "rows" / "validation.npy", tmp_path / "rows" / "test.npy")
    with pytest.raises(UserError, match=r"the default flags themselves fail: --val_data .* are test rows"):
        tune.main(argv)
    assert os.listdir(tmp_path / "out" / "trials") == ["000"]
