"""bench/kill.py: runs that are killed end as the undisturbed one; what differs is seen; where a kill hit, by hand."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from bench.chaos_faults import killed_after
from bench.kill import cases, kill_all, main
from bench.kill_compare import differences
from bench.kill_sight import Sight, where_hit
from tests.test_ppo import in_haste
from tests.test_ppo_feedback import without_figures


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Forked starts inherit it."""
    in_haste(monkeypatch)
    without_figures(monkeypatch)


@pytest.fixture(scope="module")
def train_case(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        in_haste(patch)
        without_figures(patch)
        (case,) = cases(tmp_path_factory.mktemp("kill"), ["train"])
    return case


@pytest.fixture(scope="module")
def feedback_case(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        in_haste(patch)
        without_figures(patch)
        (case,) = cases(tmp_path_factory.mktemp("kill"), ["feedback"], 2)
    return case


def test_three_kills_lose_nothing(train_case):
    found = kill_all([train_case], 3, seed=0, minutes=2, fresh=0)
    assert found["differ"] == []
    assert found["hits"]["train"].total() == 3


@pytest.mark.dist
def test_a_killed_rank_loses_nothing(tmp_path):
    found = kill_all(cases(tmp_path, ["train"], 2), 1, seed=0, minutes=2, fresh=0)
    assert found["differ"] == []
    assert found["hits"]["train"].total() == 1


@pytest.mark.dist
@pytest.mark.parametrize("step", [9, 15])
def test_what_two_ranks_had_not_logged_is_summed_as_if_they_had_gone_on(step, feedback_case):
    """The order in which the ranks' parts are added is seen in the last bit of a mean."""
    run = killed_after(feedback_case, f"unlogged-{step}", step)
    feedback_case.run_to_end(run, feedback_case.start(run))
    assert differences(feedback_case.straight, run) == []


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_many_kills_of_all_loops_lose_nothing(ranks, tmp_path):
    found = main(["--times", "12", "--ranks", str(ranks), "--output_dir", str(tmp_path / "kill")])
    assert found["differ"] == []
    assert sum(hits.total() for hits in found["hits"].values()) >= 12


# -- bite -------------------------------------------------------------------------------------------------------


def double_an_event(run: Path) -> None:
    with SummaryWriter(str(run / "tensorboard")) as board:
        board.add_scalar("train/loss", 1.0, 4)


def empty_the_events(run: Path) -> None:
    for path in (run / "tensorboard").iterdir():
        path.write_bytes(b"")


def edit_lines(run: Path, edit) -> None:
    path = run / "training_logs.jsonl"
    path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_the_record(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"best": {"step": 1}}))


HARMS = {
    "TensorBoard has too much train/loss of step 4": double_an_event,
    "TensorBoard misses": empty_the_events,
    "training_logs.jsonl": lambda run: edit_lines(run, lambda lines: lines[:-1]),
    "TensorBoard: not the steps": lambda run: edit_lines(run, lambda lines: [*lines, lines[-1]]),
    "file final_model/model.safetensors": lambda run: change_a_byte(
        run / "final_model" / "model.safetensors"
    ),
    "file validation/logits.npy: missing": lambda run: (run / "validation" / "logits.npy").unlink(),
    "run.json best": change_the_record,
}


def test_a_run_is_the_same_as_its_copy(train_case, tmp_path):
    run = shutil.copytree(train_case.straight, tmp_path / "copy")
    edit_lines(run, lambda lines: [line.replace('"perf/step_ms": ', '"perf/step_ms": 1') for line in lines])
    for path in run.rglob("*.png"):
        path.write_bytes(b"")
    assert differences(train_case.straight, run) == []  # times and pictures are left out


@pytest.mark.parametrize("told", HARMS)
def test_what_is_lost_is_seen(told, train_case, tmp_path):
    run = shutil.copytree(train_case.straight, tmp_path / "copy")
    HARMS[told](run)
    assert any(told in line for line in differences(train_case.straight, run))


def test_a_resume_without_the_optimisers_state_is_seen(train_case, monkeypatch):
    run = killed_after(train_case, "bite")
    monkeypatch.setattr(
        "torch.optim.AdamW.load_state_dict", lambda self, state: None
    )  # inherited by the fork
    train_case.run_to_end(run, train_case.start(run))
    found = differences(train_case.straight, run)
    assert "file final_model/model.safetensors: differs" in found
    assert "training_logs.jsonl: differs" in found


# -- where a kill hit -------------------------------------------------------------------------------------------


def test_where_it_hit_by_hand(tmp_path):
    sight = Sight(tmp_path, {4})
    assert where_hit(sight) == "set-up"
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    assert where_hit(sight) == "step"
    log = tmp_path / "training_logs.jsonl"
    log.write_text('{"step": 4, "train/loss": 1}\n')
    assert where_hit(sight) == "evaluation"
    log.write_text('{"step": 4, "train/loss": 1}\n{"step": 4, "eval/loss": 1}\n')
    assert where_hit(sight) == "step"
    (tmp_path / "checkpoint" / ".part_00000004").mkdir(parents=True)
    assert where_hit(sight) == "save"
    (tmp_path / "checkpoint" / ".part_00000004").rmdir()
    (tmp_path / "final_model").mkdir()
    assert where_hit(sight) == "final"


def test_what_an_earlier_start_left_is_not_this_ones(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "resumed": [{}]}))
    (tmp_path / "best_model.part").mkdir()
    (tmp_path / "final_model").mkdir()
    time.sleep(0.05)
    sight = Sight(tmp_path, set())
    assert where_hit(sight) == "set-up"
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "resumed": [{}, {}]}))
    assert where_hit(sight) == "step"


def test_a_run_that_never_ends_well_is_lost_and_does_not_hang(train_case, monkeypatch):
    def fail(*args):
        raise ValueError("planted")

    monkeypatch.setattr("train.make_plan", fail)
    hits, lost = train_case.trial("planted", random.Random(0), most=0)
    assert hits == []
    assert "planted" in lost[0]
