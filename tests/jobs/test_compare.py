"""jobs/compare.py: the grid's folders and flags, what a user can get wrong, and the whole of it with real runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

import train
from core.errors import UserError
from jobs import compare
from jobs.cells import check_cell
from jobs.compare import make_cells, model_flags, parse_args
from tests.conftest import save_language_model, toy_rows, write_jsonl
from tests.helpers import ROOT

SMALL = "--batch_size 16 --learning_rate 1e-2 --amp off --max_length 32 --max_tokens 256"


@pytest.fixture
def silver(tmp_path) -> Path:
    """<data_dir> with labels of two llms, asked in two ways; one strategy's folder has no _silver at its end."""
    for k, (strategy, llm) in enumerate(
        [("optimized_silver", "one"), ("optimized_silver", "two"), ("plain", "one"), ("plain", "two")]
    ):
        folder = tmp_path / "data" / strategy / llm
        folder.mkdir(parents=True)
        write_jsonl(folder / "train.jsonl", toy_rows(30 + k, k))
        (folder / "train.json").write_text(json.dumps(toy_rows(30 + k, k)))
        (folder / "val.json").write_text(json.dumps(toy_rows(20, 10 + k)))
    return tmp_path / "data"


@pytest.fixture
def plain(tiny_bert, toy_files, tmp_path) -> list[str]:
    """Flags of a comparison of one tiny model on one data set."""
    return [
        *("--models", f"tiny=bert:{tiny_bert}", "--output_dir", str(tmp_path / "runs")),
        *(
            "--train_data",
            toy_files["train"],
            "--val_data",
            toy_files["val"],
            "--test_data",
            toy_files["test"],
        ),
        *("--epochs", "1", f"--flags={SMALL} --cache_dir {tmp_path / 'cache'}"),
    ]


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs without their plots: half of a tiny run's time."""
    monkeypatch.setattr("core.evaluate.save_png", lambda *_: None)
    monkeypatch.setattr(SummaryWriter, "add_figure", lambda *_: None)


def refused(argv: list[str]) -> str:
    with pytest.raises(UserError) as error:
        [check_cell(cell) for cell in make_cells(parse_args(argv))]
    return str(error.value)


# -- the grid ---------------------------------------------------------------------------------------------------


def test_folders_of_the_grid(silver, tmp_path):
    argv = [
        "--models",
        "bert",
        "other=bert:/some/folder",
        "--llms",
        "one",
        "two",
        "--strategies",
        "optimized",
        "plain",
    ]
    argv += ["--data_dir", str(silver), "--output_dir", "out", "--seeds", "0", "7"]
    cells = make_cells(parse_args(argv))
    assert len(cells) == 16
    assert [str(cell.folder) for cell in cells[:4]] == [
        "out/bert/one/optimized_30/seed0",
        "out/other/one/optimized_30/seed0",
        "out/bert/one/plain_32/seed0",
        "out/other/one/plain_32/seed0",
    ]
    assert {str(cell.folder.parent) for cell in cells[8:]} == {str(cell.folder.parent) for cell in cells[:8]}
    args = train.parse_args(list(cells[-1].flags))
    assert (args.model_name, args.seed, args.patience, args.epochs) == ("/some/folder", 7, 3, "auto")
    assert args.train_data == str(silver / "plain/two/train.json")
    assert args.val_data == str(silver / "plain/two/val.json")
    assert args.output_dir == "out/other/two/plain_33/seed7"
    assert args.test_data == ""


def test_folder_of_one_data_set(plain, tmp_path):
    (cell,) = make_cells(parse_args(plain))
    assert cell.folder == tmp_path / "runs" / "tiny" / tmp_path.name / "train_96" / "seed0"
    assert train.parse_args(list(cell.flags)).test_data == str(tmp_path / "test.jsonl")


def test_what_was_asked_for_wins_over_preset_and_auto(monkeypatch):
    args = parse_args(["--models", "bert", "--train_data", "a", "--val_data", "b"])
    given = train.parse_args([*model_flags("bert", args)[1], "--train_data", "a", "--val_data", "b"])
    assert (given.model_name, given.learning_rate, given.pooling) == (
        "builtin:minilm",
        2e-4,
        "mean",
    )  # its preset
    name, flags = model_flags("x=bert:hub/name:@presets/roberta-base", args)
    given = train.parse_args([*flags, "--train_data", "a", "--val_data", "b"])
    assert (name, given.model_name, given.learning_rate, given.epochs) == ("x", "hub/name", 2e-5, 5)
    _, flags = model_flags("x=bert:builtin:minilm:--head mlp --patience 9", args)
    given = train.parse_args([*flags, "--train_data", "a", "--val_data", "b"])
    assert (given.model_name, given.head, given.patience) == ("builtin:minilm", "mlp", 9)
    args.epochs, args.learning_rate, args.flags = 2.0, 1e-3, "--patience 0"
    given = train.parse_args([*model_flags("bert", args)[1], "--train_data", "a", "--val_data", "b"])
    assert (given.epochs, given.learning_rate, given.patience) == (2, 1e-3, 0)


def test_auto_of_the_families():
    args = parse_args(["--models", "t5", "--train_data", "a", "--val_data", "b"])
    _, flags = model_flags("t5", args)
    assert flags[:4] == ["--epochs", "20", "--learning_rate", "3e-5"]
    assert flags[flags.index("--architecture") + 1] == "t5"
    assert (
        "--learning_rate" not in model_flags("x=t5:m:--lora_rank 8", args)[1]
    )  # LoRA wants another: train.py's
    assert {Path(flag[1:]).is_file() for flag in model_flags("bert", args)[1] if flag[0] == "@"} == {True}
    args.epochs = 4.0
    assert model_flags("t5", args)[1][-2:] == ["--epochs", "4.0"]


@pytest.mark.parametrize(
    "argv, told",
    [
        ([], "--models: none given; expected some of bert, t5, causal"),
        (["--models", "bart", "--train_data", "a", "--val_data", "b"], "--models bart: expected one of bert, t5"),
        (["--models", "x=bart:m", "--train_data", "a", "--val_data", "b"], "--models x=bart:m: expected name=arch"),
        (["--models", "x/y=bert:m", "--train_data", "a", "--val_data", "b"], "letters, digits"),
        (["--models", "x=bert:m:--seed 3", "--train_data", "a", "--val_data", "b"], "--seed is given by the grid"),
        (["--models", "bert", "bert", "--train_data", "a", "--val_data", "b"], "--models: bert is given twice"),
        (["--models", "bert"], "--llms and --strategies (both), or --train_data and --val_data"),
        (["--models", "bert", "--llms", "g"], "--llms and --strategies (both)"),
        (["--models", "bert", "--train_data", "a"], "--train_data, --val_data: expected both"),
        (["--models", "bert", "--train_data", "a", "--val_data", "b", "--llms", "g"], "does not go with --llms"),
        (["--models", "bert", "--train_data", "a.csv", "--val_data", "b.csv"], "--train_data a.csv: no such file"),
        (["--models", "bert", "--llms", "g", "--strategies", "s"], "no such file: data/s_silver/g/train.json"),
        (["--models", "bert", "--gpus", "0", "--train_data", "a", "--val_data", "b"], "no CUDA device is visible"),
        (["--models", "bert", "--seeds", "1", "1"], "--seeds: 1 is given twice"),
        (["--models", "bert", "--epochs", "few"], "--epochs: 'few': expected a number"),
        (["--table_only", "a", "--models", "bert"], "--table_only: trains nothing; drop --models"),
        (["--flags=--max_steps 'x", "--models", "bert", "--train_data", "a", "--val_data", "b"], "cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(argv, told):
    assert told in refused(argv)


def test_bad_gpus(monkeypatch):
    monkeypatch.setattr(compare.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    compare.check_gpus(["0", "1"])
    for gpus, told in (
        (["0", "0"], "different numbers"),
        (["0", ""], "different numbers"),
        (["2"], "no device 2"),
    ):
        with pytest.raises(UserError, match=told):
            compare.check_gpus(gpus)


def test_flags_that_train_does_not_know_are_told_before_anything_is_trained(plain, tmp_path):
    assert "train.py: unrecognized arguments: --bogus" in refused([*plain, "--flags=--bogus"])
    (tmp_path / "val.jsonl").write_text("{}\n[1]\n")
    assert "bad row" in refused(plain)
    assert not (tmp_path / "runs").exists()


# -- real runs --------------------------------------------------------------------------------------------------


def test_finished_runs_are_compared_without_training(
    no_pictures, plain, tiny_bert, tmp_path, capsys, monkeypatch
):
    argv = [
        *plain,
        "--models",
        f"tiny=bert:{tiny_bert}",
        f"mlp=bert:{tiny_bert}:--head mlp",
    ]
    for cell in make_cells(parse_args(argv)):
        assert check_cell(cell) == "new"
        train.main(list(cell.flags))
        assert check_cell(cell) == "finished"
    monkeypatch.setattr("jobs.cells.start", None)  # nothing is started
    capsys.readouterr()
    result = compare.main([*argv, "--name", "two models"])
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0] == "2 runs: 2 finished, 0 to be resumed, 0 new; one at a time"
    last = json.loads(printed[-1])
    folder = tmp_path / "runs" / "comparison" / "two-models"
    assert last["comparison"] == result["folder"] == str(folder)
    assert last["failed"] == {}
    assert last["lines"].keys() == {"tiny", "mlp"}
    assert sum("than" in line or "no difference shown" in line for line in printed) == 2
    assert [line["seeds"] for line in result["lines"]] == [[0], [0]]
    assert len(result["pairs"]) == 1
    stored = json.loads((folder / "comparison.json").read_text())
    assert stored["lines"] == result["lines"]
    assert (folder / "comparison.png").stat().st_size > 10_000
    assert len(list((folder / "tensorboard").iterdir())) == 2
    changed = refused([*argv, "--epochs", "3"])
    assert "seed0: holds a finished run of another configuration: --epochs was 1.0, now 3.0" in changed
    assert "Give another --output_dir" in changed
    write_jsonl(tmp_path / "test.jsonl", toy_rows(48, 99))
    assert "test.jsonl has changed" in refused(argv)


def test_families_side_by_side(no_pictures, plain, tiny_bert, tmp_path):
    folders = [save_language_model(tmp_path / family, family) for family in ("t5", "llama")]
    models = [f"bert=bert:{tiny_bert}", f"t5=t5:{folders[0]}", f"lora=causal:{folders[1]}:--lora_rank 2"]
    for cell in make_cells(parse_args([*plain, "--models", *models])):
        train.main(list(cell.flags))
    result = compare.main([*plain, "--models", *models])
    lines = {line["place"][0]: line for line in result["lines"]}
    assert lines.keys() == {"bert", "t5", "lora"}
    assert lines["lora"]["num_trained"] < lines["lora"]["num_parameters"] / 2
    assert lines["t5"]["num_trained"] == lines["t5"]["num_parameters"]
    assert len(result["pairs"]) == 3
    assert {line["rows"] for line in result["lines"]} == {"A"}


@pytest.mark.slow
@pytest.mark.dist
def test_the_whole_as_a_command(plain, tiny_bert, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    argv = [*plain, "--models", f"tiny=bert:{tiny_bert}", f"broken=bert:{broken}"]
    command = [sys.executable, "-m", "jobs.compare", *argv]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    last = json.loads(done.stdout.strip().splitlines()[-1])
    assert last["lines"].keys() == {"tiny"}
    ((run, why),) = last["failed"].items()
    assert run == str(tmp_path / "runs" / "broken" / tmp_path.name / "train_96" / "seed0")
    assert why.startswith("error: ")
    assert "broken" in why
    text = Path(last["comparison"], "comparison.md").read_text()
    assert why in text
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "2 runs: 1 finished, 0 to be resumed, 1 new" in done.stdout
