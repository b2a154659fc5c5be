"""bench/estimators.py: its table when runs diverge, when there is no reward ratio, and when nothing is left."""

import pytest

from bench import estimators
from core.errors import UserError


def flags(tmp_path, *more: str) -> list[str]:
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "val")}
    for file in files.values():
        file.write_text("{}\n")
    paths = ("--train_data", str(files["train"]), "--val_data", str(files["val"]))
    return ["--policy", str(tmp_path), *paths, "--output_dir", str(tmp_path / "out"), *more]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Call with {(way, seed): end, or None for a run that diverged}: what the study returns."""

    def run(ends: dict, seeds: int) -> dict:
        (tmp_path / "out").mkdir(exist_ok=True)
        ways = list(dict.fromkeys(way for way, _ in ends))
        folders = {key: None if end is None else tmp_path / f"{key[0]}{key[1]}" for key, end in ends.items()}
        found = {folder: ends[key] for key, folder in folders.items() if folder}
        monkeypatch.setattr(estimators, "run_once", lambda args, way, seed: folders[way, seed])
        monkeypatch.setattr(estimators, "measure", lambda folder: measured(*found[folder]))
        monkeypatch.setattr(estimators, "read_logs", lambda folder: log(*found[folder]))
        return estimators.main(flags(tmp_path, "--estimators", *ways, "--seeds", str(seeds)))

    return run


def measured(start: float, last: float) -> dict:
    return {
        "start": start,
        "last": last,
        "best": max(start, last),
        "told": 8,
        "seconds": 1.0,
        "peak_mib": None,
        "skipped": 0,
    }


def log(start: float, last: float) -> list[dict]:
    values = enumerate((start, last))
    return [
        {"step": k, "eval/reward_ratio": v, "ppo/rewards_told": 8 * k, "perf/train_s": k} for k, v in values
    ]


def test_diverged_runs_are_counted_and_the_others_measured(study):
    found = study({("ppo", 0): (0.5, 0.6), ("ppo", 1): None, ("ppo", 2): (0.5, 0.4), ("exact", 0): None,
                   ("exact", 1): None, ("exact", 2): None}, 3)  # fmt: skip
    assert found["diverged"] == {"ppo": 1, "exact": 3}
    columns = found["medians"]["ppo"]
    assert (columns["last"], columns["below_start"], columns["diverged"]) == (0.5, 1, 1)
    assert columns["spread"] == pytest.approx(0.1)
    assert "exact" not in found["medians"]


def test_a_value_that_no_run_has_is_none(study):
    assert study({("rloo", 0): (0.5, 0.6)}, 1)["medians"]["rloo"]["peak_mib"] is None


def test_when_every_run_diverged_it_says_so(study):
    with pytest.raises(UserError, match="every run diverged"):
        study({("ppo", 0): None}, 1)
