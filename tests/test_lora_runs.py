"""Whole runs with --lora_rank: what is trained, saved and resumed, what predicts, one gradient for any cuts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import core.evaluate
import predict
import train
from archs.lora import adapters
from core.checkpoint import last_checkpoint
from tests import test_one_gradient, test_resume
from tests.conftest import save_language_model, save_tiny, toy_rows, write_jsonl
from tests.helpers import replaced

KINDS = {  # name: (family, flags)
    "bert": ("bert", []),
    "mlp": ("bert", ["--head", "mlp"]),
    "llama": ("llama", ["--architecture", "causal"]),
    "t5": ("t5", ["--architecture", "t5"]),
}
LORA = ["--lora_rank", "4", "--lora_dropout", "0.2", "--lora_rslora", "--lora_b_ratio", "16"]
TEXTS = [row["text"] for row in toy_rows(48, 1)]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch) -> None:
    """They take more time than everything else here."""
    monkeypatch.setattr(core.evaluate, "save_png", lambda figure, path: None)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *args: None)


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind: flags of a run of a few seconds."""
    folder = tmp_path_factory.mktemp("lora")
    rows = [write_jsonl(folder / f"{k}.jsonl", toy_rows(size, k)) for k, size in enumerate((96, 48))]
    models = {"bert": save_tiny(folder / "bert")}
    models |= {family: save_language_model(folder / family, family) for family in ("llama", "t5")}
    start = ["--train_data", rows[0], "--val_data", rows[1], "--cache_dir", str(folder / "cache"), *LORA]
    start += ["--batch_size", "16", "--learning_rate", "2e-3", "--amp", "off", "--max_length", "40"]
    return lambda kind: [*start, "--model_name", models[KINDS[kind][0]], *KINDS[kind][1]]


def run(flags: list[str], folder: Path, **values) -> tuple[Path, dict, list]:
    """The folder of a run, {name: (type, is trained)} of its parameters, {name: peak learning rate} of the trained."""
    seen, rates, make = {}, {}, train.parameter_groups

    def noted(model, *args):
        groups, names = make(model, *args), {id(param): name for name, param in model.named_parameters()}
        seen.update({name: (param.dtype, param.requires_grad) for name, param in model.named_parameters()})
        rates.update({names[id(param)]: group["peak_lr"] for group in groups for param in group["params"]})
        return groups

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "parameter_groups", noted)
        return Path(train.main(replaced(flags, output_dir=folder, **values))["run"]), seen, rates


def is_ours(name: str) -> bool:
    """Whether a parameter is an adapter's, or of the pooler and head that are trained whole."""
    return ".lora_" in name or name.startswith(
        ("head.", "pooling.", "model.classifier.", "model.bert.pooler.")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_training_to_prediction(kind, flags_of, tmp_path):
    flags = flags_of(kind)
    folder, seen, rates = run(flags, tmp_path / "run", epochs=2)
    assert {dtype for dtype, _ in seen.values()} == {torch.float32}
    assert {name for name, (_, is_trained) in seen.items() if is_trained} == set(filter(is_ours, seen))
    assert rates == {name: 16 * 2e-3 if name.endswith("lora_B") else 2e-3 for name in filter(is_ours, seen)}

    about = json.loads((folder / "best_model" / "bareloop.json").read_text())
    assert about["base_model"] == flags[flags.index("--model_name") + 1]
    assert about["lora"] == {"rank": 4, "alpha": 8.0, "dropout": 0.2, "rslora": True}
    checkpoint = last_checkpoint(folder / "checkpoint")
    saved = load_file(checkpoint / "model.safetensors")
    assert set(saved) == set(filter(is_ours, seen))  # nothing of the base
    moved = [bool(value.any()) for name, value in saved.items() if name.endswith("lora_B")]
    assert sum(moved) > 0.8 * len(
        moved
    )  # a T5 decoder of one step has one key: its query and key get no gradient

    predictor = predict.load(folder)
    assert adapters(predictor.model.inner)
    logits = np.load(folder / "validation" / "logits.npy")
    assert np.allclose(predictor.scores(TEXTS), logits, rtol=1e-5, atol=1e-5)
    lines = (folder / "validation" / "predictions.jsonl").read_text().splitlines()
    assert [row["label"] for row in predictor(TEXTS)] == [json.loads(line)["label"] for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_in_bfloat16_under_bfloat16(kind, flags_of, tmp_path):
    packing = "off" if kind == "t5" else "on"  # a base in bfloat16 under a float32 head is no reason to pad
    folder, seen, _ = run(flags_of(kind), tmp_path / "run", amp="bf16", max_steps=2, packing=packing)
    for name, (dtype, is_trained) in seen.items():
        assert is_trained == is_ours(name)
        assert dtype == (torch.float32 if is_trained else torch.bfloat16), name
    logits = np.load(folder / "validation" / "logits.npy")
    found = predict.load(folder, amp="run").scores(TEXTS)  # its base is in float32: only products are rounded
    assert np.linalg.norm(found - logits) < 0.05 * np.linalg.norm(logits)


def test_a_run_learns(flags_of, tmp_path):
    flags = flags_of("llama")
    flags = replaced(flags, val_data=flags[flags.index("--train_data") + 1], lora_rank=8, lora_dropout=0)
    flags = replaced(flags, lora_alpha=6, lora_b_ratio=8, learning_rate="3e-3", epochs=10, eval_steps=60)
    result = train.main(replaced(flags, output_dir=tmp_path / "run"))
    assert result["loss"] < 0.5 * np.log(3)  # of three even classes, and nothing but adapters is trained


@pytest.mark.parametrize("kind", ["mlp", "llama", "t5"])  # bert's own head: tests/test_resume.py
def test_resume_is_bitwise_exact(kind, flags_of, tmp_path, monkeypatch):
    flags = replaced(flags_of(kind), epochs=2)
    test_resume.test_resume_is_bitwise_exact(flags, tmp_path, monkeypatch, "plain")


# -- one gradient -----------------------------------------------------------------------------------------------


def with_random_b(add):
    """add_lora with B away from 0, so that A has a gradient."""

    def added(model, *args, **kwargs):
        add(model, *args, **kwargs)
        torch.manual_seed(0)
        for layer in adapters(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.1)

    return added


@pytest.mark.parametrize("dropout", [["--lora_dropout", "0"], ["--lora_dropout", "0.2"]])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_does_not_depend_on_cuts_and_packing(kind, dropout, flags_of, monkeypatch):
    monkeypatch.setattr(train, "add_lora", with_random_b(train.add_lora))
    flags = [*flags_of(kind), *dropout]
    if kind == "t5":  # its own attention draws its dropout from torch's generator
        flags += ["--dropout", "0"]
    whole = test_one_gradient.first_gradient([*flags, "--max_tokens", "4096"])
    for how in test_one_gradient.GRID:
        if kind != "t5" or "off" in how:
            found = test_one_gradient.first_gradient([*flags, *how])
            assert test_one_gradient.distance(whole, found) <= test_one_gradient.BOUND["float32"], how


def test_dropout_of_the_adapters_does_something(flags_of, monkeypatch):
    """Else the grid above would compare less than it says."""
    monkeypatch.setattr(train, "add_lora", with_random_b(train.add_lora))
    flags = [*flags_of("llama"), "--dropout", "0", "--max_tokens", "4096"]
    kept, dropped = (test_one_gradient.first_gradient([*flags, "--lora_dropout", p]) for p in ("0", "0.2"))
    assert test_one_gradient.distance(kept, dropped) > 1e-2
