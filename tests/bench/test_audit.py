"""bench/audit.py: as many labels as told are made wrong, uniformly; precision and recall by hand; a whole study."""

import json

import numpy as np
import pytest

from core.errors import UserError
from jobs import folds
from tests.conftest import toy_rows, write_jsonl
from tests.jobs.test_audit import fake_run, sees_colours

audit = pytest.importorskip(
    "bench.audit", exc_type=ImportError
)  # cleanlab is in requirements-bench.txt alone


def test_planted_labels_are_others_and_as_many_as_told():
    labels = np.arange(3000) % 5
    made = audit.plant(labels, 5, 0.1, np.random.default_rng(0))
    assert (made != labels).sum() == 300
    moves = np.bincount((made - labels)[made != labels] % 5, minlength=5)
    assert moves[0] == 0
    assert (moves[1:] > 45).all()  # 75 are expected of each


def test_precision_and_recall_by_hand():
    found, wrong = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    assert audit.measure(found, wrong) == {"found": 3, "precision": 2 / 3, "recall": 2 / 3}
    assert audit.measure(np.zeros(5, bool), wrong) == {"found": 0, "precision": 0, "recall": 0}
    assert audit.at_planted(np.array([0.1, 0.2, 0.3, 0.4, 0.9]), wrong) == 2 / 3


def test_a_study(tmp_path, monkeypatch):
    def train_all(cells, gpus):
        for cell in cells:
            fake_run(list(cell.flags), sees_colours)
        return {}

    monkeypatch.setattr(folds, "train_all", train_all)
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(200, 0))
    call = [
        "--data",
        data,
        "--model_name",
        "tiny",
        "--seeds",
        "0",
        "1",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    result = audit.main([*call, "--folds", "3"])
    assert [fact["rows"] for fact in result["seeds"]] == [180, 180]
    for seed, fact in enumerate(result["seeds"]):
        lines = (tmp_path / "out" / f"noise0.1-seed{seed}" / "train.jsonl").read_text().splitlines()
        label_of = {row["text"]: row["label"] for row in toy_rows(200, 0)}
        wrong = sum(json.loads(line)["label"] != label_of[json.loads(line)["text"]] for line in lines)
        assert fact["planted"] == pytest.approx(wrong, abs=2)  # texts of a few words stand there twice
    for name, row in result["medians"].items():  # the fake model knows the task: everything is found
        assert row.get("at planted", row.get("recall")) > 0.9, name
    again = audit.main([*call, "--folds", "3"])
    assert again["tables"] == result["tables"]


def test_label_sets_are_refused(tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(20, 0, "list"))
    with pytest.raises(UserError, match="has several labels a row; expected one"):
        audit.main(["--data", data, "--model_name", "tiny", "--output_dir", str(tmp_path / "out")])
