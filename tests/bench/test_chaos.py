"""bench/chaos.py: the faults that need one process, in short; what is lost is told; the soak's quarters by hand."""

import random

import pytest

from bench import chaos, chaos_faults, soak
from bench.kill import cases
from tests.test_ppo import in_haste
from tests.test_ppo_feedback import without_figures


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    in_haste(monkeypatch)
    without_figures(monkeypatch)


@pytest.fixture(scope="module")
def train_case(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        in_haste(patch)
        without_figures(patch)
        (case,) = cases(tmp_path_factory.mktemp("chaos"), ["train"])
    return case


@pytest.mark.parametrize("fault, times", [
    (chaos_faults.damaged_checkpoints, 6), (chaos_faults.full_disk, 4), (chaos_faults.not_a_number, 1),
    (chaos_faults.two_processes, 2), (chaos_faults.bad_rows, 11),
])  # fmt: skip
def test_a_fault_loses_nothing(fault, times, train_case, monkeypatch):
    monkeypatch.setattr(chaos_faults, "LIMITS", (4_000, 45_000))  # the others: make chaos
    found = list(fault(train_case, random.Random(0)))
    assert [line for _, lost in found for line in lost] == []
    assert len(found) == times


def test_a_damaged_checkpoint_that_is_used_is_told(train_case, monkeypatch):
    monkeypatch.setattr("core.checkpoint.damage", lambda path: "")  # inherited by the forks
    monkeypatch.setattr(chaos_faults, "HARMS", (chaos_faults.one_bit_flipped,))
    (_, lost), *_ = chaos_faults.damaged_checkpoints(train_case, random.Random(0))
    assert any("is damaged" in line for line in lost)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", ["other_world_sizes", "rank_dies_restarts", "two_agents", "sigterm"])
def test_a_fault_of_several_processes_loses_nothing(kind, tmp_path):
    assert chaos.main(["--only", kind, "--output_dir", str(tmp_path / "chaos")])["lost"] == []


# -- the table --------------------------------------------------------------------------------------------------


def test_the_table_counts_what_was_tried_and_lost(tmp_path, monkeypatch, capsys):
    def plan(folder, rng):
        return {
            "fine": lambda: iter([("a", []), ("b", [])]),
            "bad": lambda: iter([("a", []), ("b", ["the weights differ", "the log differs"])]),
        }

    monkeypatch.setattr(chaos, "plan", plan)
    found = chaos.main(["--output_dir", str(tmp_path / "chaos")])
    rows = {name: (row["tried"], row["survived"]) for name, row in found["kinds"].items()}
    assert rows == {"fine": (2, 2), "bad": (2, 1)}
    assert found["lost"] == ["bad, b: the weights differ", "bad, b: the log differs"]
    assert "nothing" in capsys.readouterr().out


# -- the soak ---------------------------------------------------------------------------------------------------


def test_what_was_seen_is_put_at_its_step_by_the_logs_times():
    log = [{"step": 10 * k, "train/loss": 1.0, "perf/time_s": 100.0 + k} for k in range(1, 5)]
    log.insert(2, {"step": 20, "eval/loss": 1.0, "perf/time_s": 102.5})
    seen = [(100.5, 1.0, 3), (101.5, 2.0, 4), (103.25, 3.0, 5), (104.5, 4.0, 6)]  # before, in, in, after
    assert soak.by_step(seen, log) == [(15.0, 2.0, 4), (32.5, 3.0, 5)]
    assert [len(part) for part in soak.quarters([(1, 0), (39, 0), (40, 0)], 40)] == [1, 0, 0, 2]


@pytest.mark.slow
def test_memory_and_handles_stay_flat(tmp_path):
    found = soak.main(["--steps", "400", "--output_dir", str(tmp_path / "soak")])
    assert found["is_flat"]
    assert (tmp_path / "soak" / "soak.png").stat().st_size > 10_000
