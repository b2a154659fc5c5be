"""jobs/cells.py: runs as processes, with a script in the place of train.py that trains nothing."""

import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from jobs import cells
from jobs.cells import Cell, check_cell, share_done, train_all

FAKE = """
import json, os, pathlib, sys, time
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, kind = pathlib.Path(flags["--output_dir"]), flags["--kind"]
with open(folder / "starts", "a") as file:
    print(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), "--resume" in flags]), file=file)
def record(status):
    (folder / "run.json").write_text(json.dumps({"status": status, "num_steps": 10}))
print("set-up")
if kind == "fails":
    print("error: --val_data x.jsonl: no such file", file=sys.stderr)
    sys.exit(2)
if kind == "crashes":
    raise RuntimeError("no room")
if kind == "dies":
    os.kill(os.getpid(), 9)
record("running")
if kind == "once" and "--resume" not in flags:
    time.sleep(60)
if kind == "meets":  # ends only when the others have started too
    deadline = time.time() + 20
    while len(list(folder.parent.glob("*/run.json"))) < 2:
        assert time.time() < deadline
        time.sleep(0.02)
if kind != "stays":
    record("finished")
"""


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Makes cells of a kind; their script is the fake one."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(cells, "SCRIPT", tmp_path / "fake.py")
    monkeypatch.setattr(cells, "POLL_S", 0.02)

    def make(kind: str, name: str = "") -> Cell:
        folder = tmp_path / "runs" / (name or kind)
        return Cell(folder, ("--kind", kind, "--output_dir", str(folder)))

    return make


def starts(cell: Cell) -> list:
    return [json.loads(line) for line in (cell.folder / "starts").read_text().splitlines()]


def status(cell: Cell) -> str:
    return json.loads((cell.folder / "run.json").read_text())["status"]


def test_a_failed_run_is_told_and_the_others_go_on(cell, capsys):
    kinds = ["fails", "crashes", "dies", "stays", "good"]
    failed = train_all([cell(kind) for kind in kinds], [])
    assert {folder.name: why for folder, why in failed.items()} == {
        "fails": "error: --val_data x.jsonl: no such file",
        "crashes": "RuntimeError: no room",
        "dies": "ended by SIGKILL, memory perhaps",
        "stays": "set-up",
    }
    assert status(cell("good")) == "finished"
    assert "set-up" in (cell("good").folder / "train.log").read_text()
    printed = capsys.readouterr().out
    assert printed.count("started ") == 5
    assert printed.count("FAILED ") == 4


def test_one_run_at_a_time_on_each_gpu(cell):
    pair = [cell("meets", "a"), cell("meets", "b")]  # each waits for the other
    assert train_all([*pair, cell("good")], ["3", "5"]) == {}
    assert sorted(starts(one)[0][0] for one in pair) == ["3", "5"]
    assert starts(cell("good"))[0][0] in ("3", "5")


def test_ctrl_c_stops_the_runs_and_the_next_start_resumes(cell):
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        one = cell("once", f"once-{number}")

        def interrupt(one=one, number=number):
            while not (one.folder / "run.json").exists():
                time.sleep(0.02)
            os.kill(os.getpid(), number)

        threading.Thread(target=interrupt).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            train_all([one, cell("good", f"later-{number}")], [])
        assert time.monotonic() - began < 20  # the run itself would sleep for 60
        assert status(one) == "running"
        assert not cell("good", f"later-{number}").folder.exists()
        assert train_all([one], []) == {}  # its lock is gone with it
        assert status(one) == "finished"
        assert [resumed for _, resumed in starts(one)] == [False, True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_another_process_trains_is_left_alone(cell):
    one = cell("good")
    one.folder.mkdir(parents=True)
    with open(one.folder / "train.log", "ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert train_all([one, cell("good", "free")], []) == {one.folder: "another process is training it"}
    assert not (one.folder / "starts").exists()
    assert status(cell("good", "free")) == "finished"
    assert train_all([one], []) == {}


def test_share_done(tmp_path):
    assert share_done(tmp_path) == 0.0
    (tmp_path / "run.json").write_text(json.dumps({"num_steps": 40}))
    (tmp_path / "training_logs.jsonl").write_text('{"step": 10}\n{"step": 30}\n')
    assert share_done(tmp_path) == 0.75
    (tmp_path / "training_logs.jsonl").write_text('{"step": 10}\n{"st')
    assert share_done(tmp_path) == 0.0  # a line that is being written


def test_a_new_folder_is_a_new_run(toy_flags, tmp_path):
    assert check_cell(Cell(Path(tmp_path / "run"), tuple(toy_flags))) == "new"
