"""The classification loop: one gradient however it is cut, frozen curves, what a run leaves behind."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests.conftest import toy_rows, write_jsonl
from tests.helpers import ROOT, logs, replaced, torchrun, weights

GOLDEN = Path(__file__).parent / "golden" / "train_bert.txt"


@pytest.fixture
def first_gradient(monkeypatch):
    """Call with flags: the flat gradient of the first optimiser step, before clipping."""

    def call(flags: list[str]) -> torch.Tensor:
        found = []
        clip = torch.nn.utils.clip_grad_norm_

        def catch(params, *args, **kwargs):
            params = list(params)
            if not found:
                found.append(torch.cat([p.grad.flatten().double() for p in params]))
            return clip(params, *args, **kwargs)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", catch)
        train.main([*flags, "--max_steps", "1"])
        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
        return found[0]

    return call


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


LOSSES = {
    "ce": [],
    "weights": ["--class_weights", "balanced"],
    "smoothing": ["--label_smoothing", "0.1", "--class_weights", "effective"],
    "focal": ["--loss", "focal", "--class_weights", "balanced"],
}


# -- one gradient ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_does_not_depend_on_the_cuts(toy_flags, tmp_path, first_gradient, loss):
    flags = [*toy_flags, "--dropout", "0", *LOSSES[loss]]
    found = [
        first_gradient(replaced(flags, max_tokens=budget, output_dir=tmp_path / f"run{budget}"))
        for budget in (25, 64, 1000)
    ]
    assert distance(found[0], found[2]) <= 2e-6
    assert distance(found[1], found[2]) <= 2e-6


@pytest.mark.parametrize("flags", [["--loss", "focal", "--class_weights", "balanced"], ["--head", "mlp"]])
def test_gradient_with_several_labels_and_other_heads(toy_flags, tmp_path, first_gradient, flags):
    data = write_jsonl(tmp_path / "several.jsonl", toy_rows(60, 2, "list"))
    flags = [*replaced(toy_flags, train_data=data, val_data=data, dropout=0), *flags]
    few, many = (
        first_gradient(replaced(flags, max_tokens=b, output_dir=tmp_path / f"r{b}")) for b in (1000, 30)
    )
    assert distance(few, many) <= 2e-6


def test_a_mean_over_each_cut_is_caught(toy_flags, tmp_path, first_gradient, monkeypatch):
    def mean_of_cut(*_):
        return lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels) * 16

    monkeypatch.setattr(train, "make_loss", mean_of_cut)
    flags = [*toy_flags, "--dropout", "0"]
    few, many = (
        first_gradient(replaced(flags, max_tokens=b, output_dir=tmp_path / f"r{b}")) for b in (1000, 40)
    )
    assert distance(few, many) > 1e-2


CAPTURE = """
import sys
import torch
sys.path.insert(0, {root!r})
import train
clip = torch.nn.utils.clip_grad_norm_
def catch(params, *args, **kwargs):
    params = list(params)
    if torch.distributed.get_rank() == 0:
        torch.save(torch.cat([p.grad.flatten().double() for p in params]), sys.argv[1])
    return clip(params, *args, **kwargs)
torch.nn.utils.clip_grad_norm_ = catch
train.main(sys.argv[2:])
train.close_dist()
"""


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradient_does_not_depend_on_the_ranks(toy_flags, tmp_path, first_gradient, ranks):
    flags = [*toy_flags, "--dropout", "0", "--class_weights", "balanced", "--max_tokens", "100"]
    alone = first_gradient(flags)
    (tmp_path / "capture.py").write_text(CAPTURE.format(root=str(ROOT)))
    more = replaced(flags, output_dir=tmp_path / "ranks", max_steps=1)
    done = torchrun(ranks, str(tmp_path / "capture.py"), str(tmp_path / "gradient.pt"), *more)
    assert done.returncode == 0, done.stderr
    assert distance(alone, torch.load(tmp_path / "gradient.pt")) <= 2e-6


@pytest.mark.dist
def test_two_ranks_score_every_row_once(toy_flags, tmp_path):
    flags = [*toy_flags, "--dropout", "0", "--max_tokens", "60"]
    one = train.main(flags)
    done = torchrun(2, "train.py", *replaced(flags, output_dir=tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout.strip().splitlines()[-1])["validation"]
    assert two["n"] == one["n"] == 48
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)  # Adam turns 1e-7 in a gradient into more
    ours, theirs = (
        np.load(Path(run) / "validation" / "logits.npy") for run in (one["run"], tmp_path / "two")
    )
    assert np.allclose(ours, theirs, atol=1e-2)


def test_only_what_the_head_uses_is_trained(toy_flags, tiny_bert, tmp_path):
    run = train.main([*toy_flags, "--head", "linear", "--pooling", "mean", "--weight_decay", "0.5"])["run"]
    before, after = (
        load_file(Path(folder) / "model.safetensors") for folder in (tiny_bert, f"{run}/final_model")
    )
    assert not any(name.startswith("pooler") for name in after)
    assert all(not torch.equal(before[name], after[name]) for name in after)


def test_unused_parameters_stay_as_they_are(toy_flags, tiny_bert, monkeypatch):
    """A weight without a gradient must not decay: with several ranks it would get zeros for one."""
    build = train.build_model

    def with_spare(*args, **kwargs):
        model, notes = build(*args, **kwargs)
        model.model.spare = torch.nn.Linear(3, 3)
        return model, notes

    monkeypatch.setattr(train, "build_model", with_spare)
    run = train.main([*toy_flags, "--weight_decay", "0.5"])["run"]
    torch.manual_seed(0)
    record = json.loads((Path(run) / "run.json").read_text())
    assert record["num_parameters"] - record["num_trained"] == 12


# -- frozen curve and behaviour --------------------------------------------------------------------------------


def test_golden_curve(toy_flags):
    """Five float32 steps; `BARELOOP_WRITE_GOLDEN=1 pytest -k golden` writes them anew (say so in the commit)."""
    run = train.main([*toy_flags, "--max_steps", "5", "--log_steps", "1", "--max_tokens", "100"])["run"]
    found = [(r["step"], r["train/loss"]) for r in logs(run) if "train/loss" in r]
    if os.environ.get("BARELOOP_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("".join(f"{step} {loss:.7f}\n" for step, loss in found))
    expected = [line.split() for line in GOLDEN.read_text().splitlines()]
    assert [step for step, _ in found] == [int(step) for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([float(loss) for _, loss in expected], rel=1e-5)


def test_the_toy_task_is_learnt(toy_flags, toy_files, tmp_path):
    flags = replaced(toy_flags, epochs=20, learning_rate=1e-2, dropout=0, val_data=toy_files["train"])
    result = train.main([*flags, "--head", "linear", "--pooling", "mean"])
    losses = [r["train/loss"] for r in logs(result["run"]) if "train/loss" in r]
    assert losses[-1] < 0.5 * losses[0]
    assert result["accuracy"] > 0.9


def test_a_step_that_is_not_finite_is_skipped_and_counted(toy_flags, monkeypatch):
    make, seed, steps = train.make_loss, train.step_seed, []

    def with_a_bad_step(*args):
        loss_fn = make(*args)

        def call(logits, labels):
            return loss_fn(logits, labels) * (math.nan if steps[-1:] == [1] else 1.0)

        return call

    monkeypatch.setattr(train, "make_loss", with_a_bad_step)
    monkeypatch.setattr(train, "step_seed", lambda *args: steps.append(args[1]) or seed(*args))
    run = train.main([*toy_flags, "--log_steps", "1", "--max_steps", "4"])["run"]
    records = [r for r in logs(run) if "train/loss" in r]
    assert [r["train/skipped_steps"] for r in records] == [0, 1, 1, 1]
    assert records[1]["train/grad_norm"] is None  # NaN
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_early_stopping_and_best_model(toy_flags):
    seen = []
    result = train.main(
        [*toy_flags, "--learning_rate", "0", "--epochs", "6", "--patience", "2", "--metric", "loss"],
        lambda step, metrics: seen.append((step, metrics["loss"])),
    )
    record = json.loads(Path(result["run"], "run.json").read_text())
    assert [step for step, _ in seen] == [6, 12, 18]  # the first is best, then two without a better one
    assert record["best"] == {"metric": "loss", "value": seen[0][1], "step": 6}


def test_a_diverged_run_says_so(toy_flags):
    with pytest.raises(train.UserError, match="not finite: training has diverged"):
        train.main([*toy_flags, "--learning_rate", "1e30", "--max_grad_norm", "0"])


@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_autocast_and_checkpointing_train(toy_flags, amp):
    result = train.main([*toy_flags, "--amp", amp, "--gradient_checkpointing"])
    assert math.isfinite(result["loss"])


@pytest.mark.slow
def test_compiled_model_gives_the_same_loss(toy_flags, tmp_path):
    flags = [*toy_flags, "--dropout", "0"]
    plain, compiled = (
        train.main(flags),
        train.main([*replaced(flags, output_dir=tmp_path / "c"), "--compile"]),
    )
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert weights(plain["run"]).keys() == weights(compiled["run"]).keys()


# -- what a run leaves behind ----------------------------------------------------------------------------------


def test_run_folder_is_whole(toy_flags, toy_files, capsys):
    result = train.main([*toy_flags, "--test_data", toy_files["test"], "--baselines"])
    run = Path(result["run"])
    printed = capsys.readouterr().out
    last = json.loads(printed.strip().splitlines()[-1])
    assert last["run"] == str(run)
    assert last["test"]["n"] == 48
    assert "TF-IDF" in printed
    for split in ("validation", "test"):
        names = {path.name for path in (run / split).iterdir()}
        assert names >= {
            "metrics.json",
            "predictions.jsonl",
            "logits.npy",
            "calibration.json",
            "confusion_matrix.png",
        }
        metrics = json.loads((run / split / "metrics.json").read_text())
        flat = {
            "accuracy",
            "macro_f1",
            "micro_f1",
            "weighted_f1",
            "roc_auc",
            "average_precision",
            "loss",
            "n",
        }
        assert metrics.keys() >= flat | {"per_class", "confusion_matrix"}
        assert np.load(run / split / "logits.npy").shape == (48, 3)
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record.keys() >= {"arguments", "versions", "commit", "data", "hardware", "timings", "peak_memory"}
    assert len(record["data"]["train"]) == 64
    assert (run / "best_model" / "config.json").exists()
    assert (run / "final_model" / "tokenizer.json").exists()
    board = EventAccumulator(str(run / "tensorboard"), {"images": 0, "tensors": 0}).Reload().Tags()
    assert {tag.split("/")[0] for tag in board["scalars"]} == {"train", "eval", "perf", "mem"}
    assert {"validation/confusion_matrix", "validation/pr_curves", "test/reliability"} <= set(board["images"])
    assert "validation/red" in board["tensors"]  # a PR curve of its own
    tags = {tag for record in logs(run) for tag in record}
    assert tags >= {"train/loss", "train/grad_norm", "train/lr", "eval/macro_f1", "eval/loss"}


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_several_labels_with_calibration_rows(toy_flags, tmp_path, kind):
    paths = {
        name: write_jsonl(tmp_path / f"{name}.multi.jsonl", toy_rows(size, seed, kind))
        for seed, (name, size) in enumerate({"train": 96, "val": 48, "calibration": 60, "test": 30}.items())
    }
    flags = replaced(toy_flags, **{f"{name}_data": path for name, path in paths.items()})
    result = train.main(
        [*flags, "--class_weights", "balanced", "--loss", "focal", "--label_smoothing", "0.05"]
    )
    run = Path(result["run"])
    assert {"macro_f1_tuned", "micro_f1_tuned", "subset_accuracy", "hamming_loss"} <= result.keys()
    thresholds = json.loads((run / "validation" / "thresholds.json").read_text())
    assert list(thresholds["thresholds"]) == ["blue", "green", "red"]
    assert "calibration" in thresholds["tuned_on"]
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert "calibration" in metrics["thresholds_tuned_on"]
    assert (run / "test" / "confusion_matrix.png").exists()
    green = metrics["per_class"]["green"]
    assert green["tp"] + green["fn"] == green["support"]
    row = json.loads((run / "test" / "predictions.jsonl").read_text().splitlines()[0])
    applies = [n for n, p in row["probabilities"].items() if p >= thresholds["thresholds"][n]]
    assert row["labels"] == applies


def test_profile_writes_a_trace(toy_flags):
    run = Path(train.main([*toy_flags, "--profile", "2:4", "--max_steps", "5"])["run"])
    events = json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events]
    assert names.count("optim") == 2
    table = (run / "profile" / "operators.txt").read_text()
    assert all(region in table for region in ("data", "forward", "backward", "optim", "ms a step"))


def test_profile_of_steps_that_never_come_says_so(toy_flags, capsys):
    train.main([*toy_flags, "--profile", "8:9", "--max_steps", "3"])
    assert "--profile: nothing recorded, no step 8 was run" in capsys.readouterr().out
