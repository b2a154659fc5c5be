"""core/runs.py: what a run is called, what run.json says, and which run may be continued."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from core import runs
from core.errors import UserError
from core.lock import unlock_runs
from core.runs import RunRecord, begun_run, git_commit, run_folder, slug, versions

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def arguments(**changes) -> Namespace:
    plain = {
        "resume": None,
        "output_dir": "",
        "model_name": "builtin:minilm",
        "train_data": "rows/a/train.jsonl",
    }
    return Namespace(**(plain | {"epochs": 2.0, "seed": 7, "dry_run": False} | changes))


@pytest.fixture(autouse=True)
def no_lock_is_left():
    yield
    unlock_runs()


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_name", "train_data", "model", "source"), [
    ("builtin:minilm", "rows/docstrings/train.jsonl", "minilm", "docstrings"),
    ("builtin:minilm", "training.csv", "minilm", "here"),  # takes its folder's name
    ("sentence-transformers/all-MiniLM-L6-v2", "my rows.v2.csv", "all-MiniLM-L6-v2", "my-rows.v2"),
    ("/models/tiny bert/", "rows/train_2.json", "tiny-bert", "train_2"),
    ("roberta-base", "../h\xe4user.tsv", "roberta-base", "h\xe4user"),
])  # fmt: skip
def test_the_folder_of_a_run(model_name, train_data, model, source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = run_folder(arguments(model_name=model_name, train_data=train_data))
    assert re.fullmatch(rf"runs/{re.escape(model)}/{re.escape(source)}/\d{{8}}-\d{{6}}-seed7", found), found
    assert not Path("runs").exists()  # made later, when all that a user can get wrong has been read


@pytest.mark.parametrize(("name", "wanted"), [
    ("a b/c:d", "a-b-c-d"), ("..", "data"), ("", "data"), ("-x-", "x"), (".hidden", "hidden"), ("a..b", "a..b"),
    ("gr\xf6\xdfe_1", "gr\xf6\xdfe_1"), ("a\n\t b", "a-b"), ("/etc/passwd", "etc-passwd"),
])  # fmt: skip
def test_slug(name, wanted):
    assert slug(name) == wanted


def test_a_folder_that_is_taken(tmp_path):
    assert run_folder(arguments(output_dir=str(tmp_path / "new"))) == str(tmp_path / "new")
    assert run_folder(arguments(output_dir=str(tmp_path))) == str(tmp_path)  # a folder without a run
    assert run_folder(arguments(resume="runs/x", output_dir="runs/x")) == "runs/x"
    for status in ("running", "finished"):
        RunRecord(tmp_path, {"status": status}).write()
        with pytest.raises(UserError) as caught:
            run_folder(arguments(output_dir=str(tmp_path)))
        wanted = f"--output_dir {tmp_path}: holds a {status} run: give another, or --resume {tmp_path}"
        assert str(caught.value) == wanted
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file; expected a folder"):
        run_folder(arguments(output_dir=str(tmp_path / "file")))


# -- the record ----------------------------------------------------------------------------------------------

FIXED = {"data": {"train": "ab12", "validation": "cd34"}, "max_tokens": 2048}


def test_the_record_of_a_new_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", "--epochs", "2"])
    folder = tmp_path / "deep" / "run"
    record = RunRecord.open(folder, arguments(text_field="gr\xf6\xdfe"), CPU, world=1, **FIXED)
    assert os.listdir(folder) == ["lock"]  # nothing else is written yet
    record.write(num_steps=7)
    found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert found["status"] == "running"
    assert found["arguments"] == {
        "model_name": "builtin:minilm", "train_data": "rows/a/train.jsonl", "epochs": 2.0, "seed": 7,
        "text_field": "gr\xf6\xdfe", "dry_run": False,
    }  # fmt: skip
    assert found["command"] == ["train.py", "--epochs", "2"]
    assert (found["data"], found["max_tokens"], found["num_steps"]) == (*FIXED.values(), 7)
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["device"] == "cpu"
    assert found["hardware"]["world"] == 1
    assert found["hardware"]["cores"] == os.cpu_count()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", found["started"])
    record.write(status="finished")
    assert RunRecord.read(folder).record == found | {"status": "finished"}


def test_a_run_is_continued_with_what_it_began_with(tmp_path):
    RunRecord.open(tmp_path, arguments(), CPU, world=1, **FIXED).write()
    again = arguments(resume=str(tmp_path), log_steps=1)
    for count in (1, 2):
        record = RunRecord.open(tmp_path, again, CPU, world=1, **FIXED)
        record.write()
        assert len(RunRecord.read(tmp_path).record["resumed"]) == count
    assert "log_steps" not in record.record["arguments"]  # the record keeps the first start's


def check_refused(opener, folder: Path) -> None:
    """Other data, another budget, and a finished run are refused, naming both values."""
    RunRecord.open(folder, arguments(), CPU, world=1, **FIXED).write()
    again = arguments(resume=str(folder))
    data = {"train": "ab12", "validation": "ee"}
    for world, fixed, message in (
        (1, FIXED | {"max_tokens": 1024}, "is a run of another max_tokens: 2048, now 1024"),
        (1, FIXED | {"data": data}, f"is a run of another data: {FIXED['data']}, now {data}"),
    ):
        with pytest.raises(UserError) as caught:
            opener(folder, again, CPU, world=world, **fixed)
        assert str(caught.value) == f"--resume {folder}: {message}"
    RunRecord.read(folder).write(status="finished")
    with pytest.raises(UserError, match="this run is finished"):
        opener(folder, again, CPU, world=1, **FIXED)


def test_a_run_is_not_continued_with_anything_else(tmp_path):
    check_refused(RunRecord.open, tmp_path)


def test_another_number_of_ranks_is_written_down(tmp_path):
    RunRecord.open(tmp_path, arguments(), CPU, world=1, **FIXED).write()
    record = RunRecord.open(tmp_path, arguments(resume=str(tmp_path)), CPU, world=4, **FIXED)
    assert [start["world"] for start in record.record["resumed"]] == [4]


# -- one process a folder ------------------------------------------------------------------------------------


def holds(folder: Path) -> subprocess.Popen:
    """Another process that has the lock of a folder."""
    code = f"from core.lock import lock_run; lock_run({str(folder)!r}); print('held', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    with holds(tmp_path) as process:
        with pytest.raises(UserError, match=rf"{tmp_path}: process {process.pid} on .* is training this run"):
            RunRecord.open(tmp_path, arguments(), CPU, world=1, **FIXED)
        process.kill()
    RunRecord.open(tmp_path, arguments(), CPU, world=1, **FIXED)


def test_a_dry_run_takes_no_lock(tmp_path):
    RunRecord.open(tmp_path / "new", arguments(dry_run=True), CPU, world=1, **FIXED)
    assert not (tmp_path / "new").exists()


def test_a_run_that_began_while_this_one_was_set_up_is_not_overwritten(tmp_path):
    RunRecord.open(tmp_path, arguments(), CPU, world=1, **FIXED).write()
    with pytest.raises(UserError, match="holds a run: give another, or --resume"):
        RunRecord.open(tmp_path, arguments(), CPU, world=1, **FIXED)


def test_a_rank_that_is_late_does_not_take_its_own_run_for_another(tmp_path, monkeypatch):
    """Rank 0 can have written the record before another rank gets that far (found by bench.kill --ranks 2)."""
    RunRecord.open(tmp_path, arguments(), CPU, world=2, **FIXED).write()
    monkeypatch.setattr(runs, "on_main", lambda function, *args: None)  # as on rank 1
    RunRecord.open(tmp_path, arguments(), CPU, world=2, **FIXED)


# -- started again by torchrun -------------------------------------------------------------------------------


def started_again(monkeypatch, count: int = 1, run_id: str = "job7") -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)


@pytest.mark.parametrize(
    ("count", "status", "is_found"), [(1, "running", True), (0, "running", False), (1, "finished", False)]
)
def test_a_process_that_torchrun_starts_again_goes_on_with_its_run(
    count, status, is_found, tmp_path, monkeypatch
):
    started_again(monkeypatch, count)
    RunRecord.open(tmp_path, arguments(), CPU, world=1, **FIXED).write(status=status)
    assert begun_run(arguments(output_dir=str(tmp_path))) == (str(tmp_path) if is_found else None)


@pytest.mark.parametrize(("run_id", "is_found"), [("job7", True), ("job8", False)])
def test_without_an_output_dir_it_is_the_run_of_the_same_torchrun(run_id, is_found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started_again(monkeypatch)
    folder = Path(run_folder(arguments(train_data="a.jsonl")))
    RunRecord.open(folder, arguments(), CPU, world=1, **FIXED).write()
    started_again(monkeypatch, run_id=run_id)
    assert begun_run(arguments(train_data="a.jsonl")) == (str(folder) if is_found else None)


@pytest.mark.parametrize(("run_id", "is_found"), [("job7", True), ("job8", False)])
@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("count", [0, 1])
def test_of_several_agents_each_goes_on_whatever_it_has_counted(
    count, is_named, run_id, is_found, tmp_path, monkeypatch
):
    """An agent whose processes are restarted because another's rank died still counts 0 (found by bench.chaos)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    started_again(monkeypatch, 0)
    given = arguments(train_data="a.jsonl", output_dir=str(tmp_path / "run") if is_named else "")
    assert begun_run(given) is None
    folder = Path(run_folder(given))
    RunRecord.open(folder, given, CPU, world=2, **FIXED).write()
    started_again(monkeypatch, count, run_id)
    assert begun_run(given) == (str(folder) if is_found else None)


def test_several_agents_without_an_id_find_no_run_by_themselves(tmp_path, monkeypatch):
    """Every torchrun has that id unless it is given one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    started_again(monkeypatch, 1, "none")
    given = arguments(train_data="a.jsonl")
    RunRecord.open(Path(run_folder(given)), given, CPU, world=2, **FIXED).write()
    assert begun_run(given) is None


def test_bite_a_record_that_takes_anything_is_caught(tmp_path):
    with pytest.raises(pytest.fail.Exception):
        check_refused(lambda folder, *args, **fixed: RunRecord.read(folder), tmp_path)


def test_folders_without_a_record(tmp_path):
    expected = "expected a run folder that train.py made"
    for folder, what in ((tmp_path, "holds no run (no run.json)"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UserError) as caught:
            RunRecord.read(folder)
        assert str(caught.value) == f"{folder}: {what}; {expected}"
    (tmp_path / "run.json").write_text('{"status": ')
    with pytest.raises(UserError, match=r"run\.json: is not whole: invalid JSON: Expecting value"):
        RunRecord.read(tmp_path)


# -- commit and versions -------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *words], cwd=folder, env=os.environ | names, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def test_the_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "core").mkdir()
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "core" / "runs.py"))
    assert git_commit() is None  # outside git
    git(tmp_path, "init", "-q")
    assert git_commit() is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "untracked").write_text("1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit() == head
    (tmp_path / "a").write_text("2")
    assert git_commit() == head + "+changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None  # no git at all


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(runs, "PACKAGES", ("torch", "no-such-package"))
    assert list(versions()) == ["python", "torch"]
