"""jobs/merge.py: a run's adapter folded into its base, compared, written as a plain model folder."""

import json

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

import train
from core.errors import UserError
from jobs import merge
from predict import load
from tests.conftest import toy_rows, write_jsonl
from tests.helpers import replaced

TEXTS = [row["text"] for row in toy_rows(20, 7)]


@pytest.fixture
def lora_run(toy_flags, tmp_path):
    train.main([*toy_flags, "--lora_rank", "4"])
    return tmp_path / "run"


def test_the_merged_model_scores_as_the_run_does(lora_run, capsys):
    found = merge.main([str(lora_run)])
    assert found["float32"]["largest_change"] < 1e-4
    assert found["float32"]["flipped_frac"] == 0
    assert found["n"] == 48
    assert "largest logit change" in capsys.readouterr().out
    merged = lora_run / "merged_model"
    assert not (merged / "adapter_config.json").exists()
    assert np.allclose(load(merged).scores(TEXTS), load(lora_run).scores(TEXTS), atol=1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(merged)  # transformers reads it too
    assert plain.config.num_labels == 3
    with pytest.raises(UserError, match="is there already"):
        merge.main([str(lora_run)])


def test_thresholds_go_along(toy_flags, tmp_path):
    data = write_jsonl(tmp_path / "several.jsonl", toy_rows(60, 2, "list"))
    train.main([*replaced(toy_flags, train_data=data, val_data=data), "--lora_rank", "4"])
    merge.main([str(tmp_path / "run")])
    ours, theirs = load(tmp_path / "run"), load(tmp_path / "run" / "merged_model")
    assert ours.thresholds.tolist() == theirs.thresholds.tolist()
    assert [row["labels"] for row in ours(TEXTS)] == [row["labels"] for row in theirs(TEXTS)]


def test_flips_are_counted_where_labels_begin():
    before, after = np.array([[0.4, -2.0], [0.6, -2.0]]), np.array([[0.6, -2.0], [0.7, -2.0]])
    assert merge.compare(before, after, np.array([0.5, 0.0]))["flipped_frac"] == 0.5
    assert merge.compare(before, after, np.array([0.0, 0.0]))["flipped_frac"] == 0.0
    assert merge.compare(before, after, None) == {"largest_change": pytest.approx(0.2), "flipped_frac": 0.0}


def test_what_cannot_be_merged(toy_flags, tmp_path, lora_run):
    train.main(replaced(toy_flags, output_dir=tmp_path / "plain"))
    with pytest.raises(UserError, match=r"holds no adapter: nothing to merge"):
        merge.main([str(tmp_path / "plain")])
    record = json.loads((lora_run / "run.json").read_text())
    record["arguments"]["val_data"] = "gone.jsonl"
    (lora_run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"validation rows gone\.jsonl are not here: give --data"):
        merge.main([str(lora_run)])
    assert not (lora_run / "merged_model").exists()
