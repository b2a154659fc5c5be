"""jobs/retrain.py: default and best over new seeds, with a script in the place of train.py that trains nothing."""

import json
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from jobs import cells
from jobs.retrain import paired_interval, retrain, told_of

FAKE = """
import json, pathlib, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(flags["--output_dir"])
open(folder / "starts", "a").write("x")
seed, dropout = int(flags["--seed"]), float(flags.get("--dropout", 0.0))
if seed == 3 and dropout:
    sys.exit("error: diverged")
metrics = {"validation": {"macro_f1": 0.5 + dropout * (1 + seed)}}
record = {"status": "finished", "metrics": metrics, "arguments": {}, "data": {}}
(folder / "run.json").write_text(json.dumps(record))
"""


@pytest.fixture
def again(tmp_path, toy_flags, monkeypatch):
    """Retrains over seeds; default has 0.5, best 0.1 a seed and one more above it."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(cells, "SCRIPT", tmp_path / "fake.py")
    monkeypatch.setattr(cells, "POLL_S", 0.02)
    known = {}

    def status(cell):
        path = cell.folder / "run.json"
        known[cell.folder.name] = cell.flags
        return json.loads(path.read_text())["status"] if path.exists() else "new"

    monkeypatch.setattr("jobs.retrain.check_cell", status)
    folders = {"default": tmp_path / "trial000", "best": tmp_path / "trial007"}
    flags = {"default": toy_flags, "best": [*toy_flags, "--dropout", "0.1"]}

    def run(seeds, may_start=lambda: True):
        return retrain(folders, flags, seeds, "macro_f1", [], may_start)

    return run


def starts(tmp_path: Path) -> int:
    return sum(len(path.read_text()) for path in tmp_path.glob("trial*/seed*/starts"))


def test_pairs_over_seeds(again, tmp_path):
    found = again([1, 2])
    assert found["seeds"] == [1, 2]
    assert found["default"] == [0.5, 0.5]
    assert found["best"] == pytest.approx([0.7, 0.8])
    assert found["difference"]["mean"] == pytest.approx(0.25)
    assert (found["failed"], found["left_out"]) == ({}, [])
    assert starts(tmp_path) == 4
    assert again([1, 2]) == found
    assert starts(tmp_path) == 4  # nothing is trained twice


def test_a_pair_of_which_one_fails_does_not_count(again, tmp_path):
    found = again([1, 3])
    assert found["seeds"] == [1]
    assert len(found["default"]) == len(found["best"]) == 1
    assert found["failed"] == {str(tmp_path / "trial007" / "seed3"): "error: diverged"}
    assert found["difference"] == {"mean": pytest.approx(0.2), "low": None, "high": None}


def test_seeds_without_time_are_left_out(again):
    times = iter([True, False, False])
    found = again([1, 2, 4], lambda: next(times))
    assert (found["seeds"], found["left_out"]) == ([1], [2, 4])


def test_what_is_trained_already_needs_no_time(again):
    again([1, 2])
    assert again([1, 2], lambda: False)["seeds"] == [1, 2]


def test_the_interval_by_hand_and_against_scipy():
    low, high = paired_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)  # t = 4.30265, s = 1, n = 3
    best, default = [0.52, 0.55, 0.51, 0.56], [0.50, 0.51, 0.50, 0.50]
    wanted = ttest_rel(best, default).confidence_interval(0.95)
    assert paired_interval([b - d for b, d in zip(best, default)]) == pytest.approx((wanted.low, wanted.high))
    assert paired_interval([1.0]) is None


def found_of(best: list[float], default: list[float], **more) -> dict:
    low, high = paired_interval([b - d for b, d in zip(best, default)]) or (None, None)
    found = {
        "seeds": [*range(1, len(best) + 1)],
        "best": best,
        "default": default,
        "failed": {},
        "left_out": [],
    }
    return found | {"difference": {"mean": 0.0, "low": low, "high": high}} | more


def test_what_is_told():
    gain = told_of(found_of([0.60, 0.61, 0.62], [0.50, 0.51, 0.52]), {"best": 0.66, "default": 0.51}, False)
    assert gain[0] == (
        "Retrained over 3 new seeds: best 0.6100 (0.6000 to 0.6200), default 0.5100 (0.5000 to 0.5200)."
    )
    assert gain[1].startswith("Best less default: +0.1000")
    assert gain[1].endswith("a gain is shown.")
    assert gain[2] == "The search itself had claimed +0.1500; what it made up is +0.0500."
    claimed = {"best": 0.51, "default": 0.50}
    assert told_of(found_of([0.5, 0.6, 0.4], [0.5, 0.5, 0.5]), claimed, False)[1].endswith(
        "no gain is shown."
    )
    worse = found_of([0.40, 0.41, 0.42], [0.50, 0.51, 0.52])
    assert told_of(worse, claimed, False)[1].endswith("no gain is shown.")
    assert told_of(worse, claimed, True)[1].endswith("a gain is shown.")  # of a loss
    assert "one seed gives no interval" in told_of(found_of([0.6], [0.5]), claimed, False)[1]
    assert told_of(found_of([0.6], [0.5], left_out=[2, 3]), claimed, False)[-1].endswith("the seeds 2, 3.")
    assert told_of(found_of([], [], left_out=[1]), claimed, False) == ["Not retrained: no time was left."]
    assert told_of(found_of([], []), claimed, False) == ["Not retrained: no pair of runs finished."]
