"""jobs/soup.py: the mean of the weights, tensor by tensor, as a run that predict.py loads; what has no mean."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from core.errors import UserError
from core.metrics import classification_metrics
from jobs import compare, ensemble, merge
from jobs.soup import average_models
from predict import load
from tests.conftest import save_tiny, toy_rows, write_jsonl
from tests.helpers import weights


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Runs of one tiny model: a and b of two seeds, adapter, wider (a model of another width), other (another head)."""
    home = tmp_path_factory.mktemp("soup")
    files = {name: write_jsonl(home / f"{name}.jsonl", toy_rows(48, seed))
             for seed, name in enumerate(("train", "val", "test"))}  # fmt: skip
    models = {"tiny": save_tiny(home / "tiny"), "wide": save_tiny(home / "wide", intermediate_size=48)}
    flags = [f"--{name}_data={path}" for name, path in files.items()]
    flags += [f"--cache_dir={home / 'cache'}", "--learning_rate=1e-2", "--amp=off", "--batch_size=16"]
    grid = {
        "a": ["--seed=0"],
        "b": ["--seed=1"],
        "adapter": ["--lora_rank=4"],
        "wider": [],
        "other": ["--head=mlp"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.evaluate.save_png", lambda *_: None)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *_: None)
        for name, own in grid.items():
            model = models["wide" if name == "wider" else "tiny"]
            own = [*own, f"--model_name={model}", f"--output_dir={home / name}", "--epochs=1"]
            train.main([*flags, "--max_length=32", "--max_tokens=512", *own])
    return home


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("core.evaluate.save_png", lambda *_: None)


def cook(home: Path, folder: Path, *names: str) -> dict:
    runs = [str(home / name) for name in names]
    return ensemble.main([*runs, "--output_dir", str(folder), "--method", "weights_average"])


def test_every_tensor_is_the_mean(home, tmp_path):
    cook(home, tmp_path / "soup", "a", "b")
    found, first, second = (weights(run, "best_model") for run in (tmp_path / "soup", home / "a", home / "b"))
    assert found.keys() == first.keys()
    for name, value in found.items():
        assert torch.allclose(value, (first[name] + second[name]) / 2, atol=1e-7), name
    assert not all(torch.equal(first[name], second[name]) for name in found)


def test_one_run_alone_is_itself(home, tmp_path):
    average_models([home / "a"], tmp_path / "model")
    found = weights(tmp_path, "model")
    assert all(torch.equal(found[name], value) for name, value in weights(home / "a", "best_model").items())


def test_it_is_a_run_that_was_scored(home, tmp_path, capsys):
    result = cook(home, tmp_path / "soup", "a", "b")
    printed = capsys.readouterr().out
    predictor = load(tmp_path / "soup")
    rows = [json.loads(line) for line in (home / "test.jsonl").read_text().splitlines()]
    scores = predictor.scores([row["text"] for row in rows])
    stored = np.load(tmp_path / "soup" / "test" / "logits.npy")
    assert np.allclose(scores, stored, atol=1e-5)
    labels = np.array([predictor.label_names.index(row["label"]) for row in rows])
    expected = classification_metrics(scores, labels, predictor.label_names, False)
    assert result["test"]["macro_f1"] == pytest.approx(expected["macro_f1"])
    table = compare.main(["--table_only", str(tmp_path / "soup"), "--output_dir", str(tmp_path)])["lines"]
    assert table[0]["accuracy"] == pytest.approx(expected["accuracy"])
    gain = result["gain_over_best"]["validation"]["difference"]
    assert ("worse than its best member" in printed) == (gain < 0)


def test_a_soup_that_is_worse_says_so(home, tmp_path, capsys, monkeypatch):
    def worst(model, team, device):
        return {name: -split.logits[0] for name, split in team.splits.items()}

    monkeypatch.setattr("jobs.ensemble.score_splits", worst)
    result = cook(home, tmp_path / "soup", "a", "b")
    assert result["gain_over_best"]["validation"]["difference"] < 0
    assert "the average of the weights is worse than its best member: use" in capsys.readouterr().out


def refused(home: Path, folder: Path, *names: str) -> str:
    with pytest.raises(UserError) as error:
        cook(home, folder / "soup", *names)
    assert not (folder / "soup" / "run.json").exists()
    return str(error.value)


def test_adapters_have_to_be_merged(home, tmp_path):
    told = refused(home, tmp_path, "a", "adapter")
    assert f"{home / 'adapter'}: holds an adapter" in told
    assert f"python -m jobs.merge {home / 'adapter'}" in told
    merge.main([str(home / "adapter")])
    cook(home, tmp_path / "soup", "a", "adapter")
    found, first = weights(tmp_path / "soup", "best_model"), weights(home / "a", "best_model")
    second = weights(home / "adapter", "merged_model")
    name = next(name for name in found if name.endswith("query.weight"))
    assert torch.allclose(found[name], (first[name] + second[name]) / 2, atol=1e-7)


def test_runs_of_other_models(home, tmp_path):
    assert f"{home / 'wider'}: its model_name is" in refused(home, tmp_path, "a", "wider")
    assert f"{home / 'other'}: its head is 'mlp', that of {home / 'a'} 'model'" in refused(
        home, tmp_path, "a", "other"
    )


def test_shapes_that_differ(home, tmp_path):
    path = home / "wider" / "best_model" / "bareloop.json"
    before = path.read_text()
    about = json.loads(before) | {"model_name": str(home / "tiny")}
    path.write_text(json.dumps(about))
    try:
        told = refused(home, tmp_path, "a", "wider")
    finally:
        path.write_text(before)
    assert "is (48,), in" in told
    assert "(32,); expected equal shapes" in told
