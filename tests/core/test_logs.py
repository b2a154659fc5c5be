"""core/logs.py: no record twice and none of a step that was undone; the meter's numbers by hand."""

import errno
import itertools
import json
import math
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from core import logs
from core.logs import Meter, RunLog
from tests.conftest import full_disk


def records(folder) -> list[dict]:
    """Without the time they were written at."""
    lines = [json.loads(line) for line in (folder / "training_logs.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != logs.TIME} for line in lines]


def events(folder) -> list[tuple[int, str, float, float]]:
    """(step, tag, value, time) of all scalars in all event files as they stand there: no reader's purging."""
    found = []
    for path in sorted((folder / "tensorboard").glob(logs.EVENTS)):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.append((event.step, value.tag, value.tensor.float_val[0], event.wall_time))
    return found


def log_steps(folder, start: int, steps, value: float) -> None:
    """A run that starts after step start and logs these steps."""
    log = RunLog(folder, start)
    for step in steps:
        log.write(step, {"train/loss": value})
    log.close()


def test_records_go_to_both(tmp_path):
    log = RunLog(tmp_path)
    log.write(10, {"train/loss": 0.5, "perf/step_ms": 3, "note": "gr\xfcn", "plain": 1, "eval/x": None})
    assert records(tmp_path) == [  # on disk before the run ends
        {"step": 10, "train/loss": 0.5, "perf/step_ms": 3, "note": "gr\xfcn", "plain": 1, "eval/x": None}
    ]
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["scalars"] == ["train/loss", "perf/step_ms"]  # a number with a / in its name
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(10, 0.5)]


def check_resumed(make_log, folder, start: int) -> None:
    """Killed after step 40, resumed after step start: each step is there once, the later ones anew."""
    log_steps(folder, 0, (10, 20, 30, 40), 1.0)
    log = make_log(folder, start)
    for step in range(start + 10, 60, 10):
        log.write(step, {"train/loss": 2.0})
    log.close()
    wanted = [(step, 1.0 if step <= start else 2.0) for step in (10, 20, 30, 40, 50)]
    assert [(record["step"], record["train/loss"]) for record in records(folder)] == wanted
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == wanted
    assert [(step, value) for step, _, value, _ in events(folder)] == wanted


@pytest.mark.parametrize("start", [0, 20, 40])  # 0: killed before its first checkpoint
def test_a_resumed_run_drops_what_came_after_its_checkpoint(start, tmp_path):
    check_resumed(RunLog, tmp_path, start)


class AppendingLog(RunLog):
    """The deliberately wrong variant: every record counts as one from before."""

    @staticmethod
    def _before(line, step):
        return True


def test_bite_a_log_that_only_appends_is_caught(tmp_path):
    with pytest.raises(AssertionError):
        check_resumed(AppendingLog, tmp_path, 20)


def test_what_a_killed_writer_had_not_flushed_is_shown_after_a_resume_at_its_own_time(tmp_path, monkeypatch):
    monkeypatch.setattr(logs.time, "time", lambda: 1_000_000_000.0)
    log_steps(tmp_path, 0, (10, 20), 1.0)
    for path in (tmp_path / "tensorboard").iterdir():
        path.write_bytes(b"")
    monkeypatch.undo()
    log_steps(tmp_path, 20, (30,), 2.0)
    assert [(step, value) for step, _, value, _ in events(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    times = [time for *_, time in events(tmp_path)]
    assert times[:2] == [1_000_000_000.0] * 2
    assert times[2] > 1.5e9


def test_a_reader_that_had_the_old_events_in_memory_forgets_them(tmp_path, monkeypatch):
    monkeypatch.setattr(logs.time, "time", itertools.count(1e9).__next__)  # files are named by the second
    log_steps(tmp_path, 0, (10, 20, 30), 1.0)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for value in (2.0, 3.0, 4.0):
        log_steps(tmp_path, 20, (30,), value)
        scalars = board.Reload().Scalars("train/loss")
        assert [(event.step, event.value) for event in scalars] == [(10, 1.0), (20, 1.0), (30, value)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # the others of three resumes are gone


def test_a_full_disk_that_only_tensorboard_meets_is_raised_and_no_traceback_of_a_thread(tmp_path, capfd):
    log = RunLog(tmp_path)
    log.write(10, {"train/loss": 0.5})
    with full_disk(1000):
        log.board.add_text("some/text", "x" * 2000, 10)
        with pytest.raises(OSError) as caught:
            log.close()
    assert caught.value.errno == errno.EFBIG
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook == log.others_hook


def test_each_record_is_in_the_event_file_at_once(tmp_path):
    log = RunLog(tmp_path)
    log.write(10, {"train/loss": 0.5})
    assert [event[:3] for event in events(tmp_path)] == [(10, "train/loss", 0.5)]
    log.close()


def test_a_last_record_without_its_line_break_is_not_joined_to_the_next(tmp_path):
    log_steps(tmp_path, 0, (10, 20), 1.0)
    path = tmp_path / "training_logs.jsonl"
    path.write_text(path.read_text()[:-1])
    log_steps(tmp_path, 20, (30,), 2.0)
    assert [record["step"] for record in records(tmp_path)] == [10, 30]


@pytest.mark.parametrize(
    "half", ['{"step": 30, "train/lo', '{"step": 3', "{", '{"other": 1}\n', "\0\0\0", "[1]\n"]
)
def test_a_half_last_line_is_dropped_and_the_rest_survives(half, tmp_path):
    log_steps(tmp_path, 0, (10, 20), 1.0)
    with open(tmp_path / "training_logs.jsonl", "a") as file:
        file.write(half)
    log_steps(tmp_path, 20, (30,), 2.0)
    assert records(tmp_path) == [{"step": step, "train/loss": 1.0 + (step > 20)} for step in (10, 20, 30)]


def test_the_meter_by_hand(monkeypatch):
    now = 100.0
    monkeypatch.setattr(logs.time, "perf_counter", lambda: now)

    class Feed:
        wait_s = 5.0  # before the meter: not counted

    feed = Feed()
    meter = Meter(feed)
    for busy, wait, *counts in ((2.0, 0.25, 300, 400, 500, 3.5), (1.0, 0.75, 100, 100, 125, 2.0)):
        meter.start()
        now += busy
        feed.wait_s += wait
        meter.stop(*counts)  # tokens, padded, room, predicted MiB
        now += 50.0  # evaluation, saving
    meter.start()
    now += 1.0  # the wait for the loss: time without a step
    meter.stop()
    fields = meter.fields()
    assert fields == {
        "perf/tokens_per_s": 400 / 4.0,
        "perf/step_ms": 2000.0,
        "perf/data_ms": 500.0,
        "perf/pad_frac": pytest.approx(0.2),
        "perf/fill_frac": pytest.approx(0.8),
        "mem/predicted_mib": 3.5,  # the dearest cut's
    }
    meter.start()
    now += 0.5
    meter.stop(10, 10, 20)
    assert meter.fields() == {  # anew
        "perf/tokens_per_s": 20.0,
        "perf/step_ms": 500.0,
        "perf/data_ms": 0.0,
        "perf/pad_frac": 0.0,
        "perf/fill_frac": 0.5,
    }


def test_a_meter_without_tokens_stays_finite(monkeypatch):
    monkeypatch.setattr(logs.time, "perf_counter", iter(range(10)).__next__)
    meter = Meter(type("Feed", (), {"wait_s": 0.0})())
    meter.start()
    meter.stop()
    assert all(math.isfinite(value) for value in meter.fields().values())
