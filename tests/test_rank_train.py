"""The ranking loop: it learns, its curve is frozen, what a run leaves behind, what a user gets wrong."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import rank_train
from losses.ranking import RANKING_LOSSES
from tests.conftest import rank_rows, write_jsonl
from tests.helpers import RANKERS, ROOT, logs, rank_flags, replaced, torchrun, weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind of RANKERS: flags of a run without its folder."""
    folder = tmp_path_factory.mktemp("rank")
    return lambda kind: rank_flags(folder, kind)


def run(flags: list[str], folder: Path, **values) -> dict:
    return rank_train.main(replaced(flags, output_dir=folder, **values))


# -- learning ---------------------------------------------------------------------------------------------------

LEARNING = {"causal": {"learning_rate": "1e-2", "epochs": 2}, "bert": {"learning_rate": "3e-3", "epochs": 5}}


@pytest.mark.parametrize("kind", LEARNING)
def test_it_learns_which_candidate_repeats_a_word_of_the_context(kind, flags_of, tmp_path, no_figures):
    files = {
        f"{name}_data": write_jsonl(tmp_path / f"{name}.jsonl", rank_rows(size, seed, 3, 3))
        for seed, (name, size) in enumerate({"train": 480, "val": 100}.items())
    }
    result = run(flags_of(kind), tmp_path / "run", dropout=0, **files, **LEARNING[kind])
    assert result["accuracy"] > 0.75  # chance is 1/3
    assert result["reward_ratio"] == pytest.approx(result["accuracy"])  # rewards are 0 and 1
    losses = [record["train/loss"] for record in logs(tmp_path / "run") if "train/loss" in record]
    assert losses[0] == pytest.approx(math.log(3), rel=0.2)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["causal", "bert"])
def test_golden_curve(kind, flags_of, tmp_path, no_figures):
    """Five float32 steps; `BARELOOP_WRITE_GOLDEN=1 pytest -k golden` writes them anew (say so in the commit)."""
    run(flags_of(kind), tmp_path / "run", max_steps=5, epochs=2, log_steps=1, max_tokens=160)
    found = [(r["step"], r["train/loss"]) for r in logs(tmp_path / "run") if "train/loss" in r]
    golden = GOLDEN / f"rank_train_{kind}.txt"
    if os.environ.get("BARELOOP_WRITE_GOLDEN"):
        golden.write_text("".join(f"{step} {loss:.7f}\n" for step, loss in found))
    expected = [line.split() for line in golden.read_text().splitlines()]
    assert [step for step, _ in found] == [int(step) for step, _ in expected] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in found] == pytest.approx([float(loss) for _, loss in expected], rel=1e-5)


@pytest.mark.parametrize("loss", RANKING_LOSSES)
def test_every_loss_trains(loss, flags_of, tmp_path, no_figures):
    """Steps with a small learning rate make the loss of one and the same batch less."""
    flags = [*flags_of("bert"), "--dropout", "0", "--loss", loss, "--warmup", "0", "--log_steps", "1"]
    run(flags, tmp_path / "run", batch_size=64, epochs=3, learning_rate="1e-3", eval_steps=9)
    losses = [record["train/loss"] for record in logs(tmp_path / "run") if "train/loss" in record]
    assert losses[0] > losses[1] > losses[2]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["loss"] == loss


def test_only_adapters_and_the_score_head_are_trained(flags_of, tmp_path, no_figures):
    seen, make = {}, rank_train.parameter_groups

    def noted(model, *args):
        seen.update({name: p.requires_grad for name, p in model.named_parameters()})
        return make(model, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_train, "parameter_groups", noted)
        run(flags_of("causal"), tmp_path / "run", max_steps=2)
    ours = {name for name in seen if ".lora_" in name or name.startswith("head.")}
    assert {name for name, is_trained in seen.items() if is_trained} == ours
    (checkpoint,) = (tmp_path / "run" / "checkpoint").glob("step_*")
    assert set(load_file(checkpoint / "model.safetensors")) == ours


# -- what a run leaves behind -----------------------------------------------------------------------------------

FILES = {
    "causal": {"adapter_config.json", "adapter_model.safetensors"},
    "bert": {"config.json", "model.safetensors"},
}


@pytest.mark.parametrize("kind", FILES)
def test_run_folder_is_whole(kind, flags_of, tmp_path, capsys):
    folder = tmp_path / "run"
    test = Path(flags_of(kind)[3]).with_name("test.jsonl")
    result = run(flags_of(kind), folder, test_data=test, group_field="kind", epochs=2)
    printed = capsys.readouterr().out
    last = json.loads(printed.strip().splitlines()[-1])
    assert last["run"] == str(folder) == result["run"]
    assert (last["validation"]["n"], last["test"]["n"]) == (40, 24)
    assert last["validation"] == {name: value for name, value in result.items() if name != "run"}
    for text in ("random (validation)", "longest (test)", "oracle (test)", "3 of them", "by position"):
        assert text in printed
    for split, size in (("validation", 40), ("test", 24)):
        names = {path.name for path in (folder / split).iterdir()}
        assert names >= {"metrics.json", "predictions.jsonl", "logits.npy", "positions.png", "per_group.png"}
        metrics = json.loads((folder / split / "metrics.json").read_text())
        flat = {"accuracy", "reward_ratio", "average_reward", "mrr", "map", "ndcg", "n", "loss"}
        assert metrics.keys() >= flat | {"picks_by_position", "per_group"}
        assert set(metrics["per_group"]) == {"2 of them", "3 of them"}
        logits = np.load(folder / split / "logits.npy")
        assert logits.shape == (size, 3)
        lines = [json.loads(line) for line in (folder / split / "predictions.jsonl").read_text().splitlines()]
        assert [line["choice"] for line in lines] == np.nanargmax(logits, axis=1).tolist()
        assert [len(line["scores"]) for line in lines] == (~np.isnan(logits)).sum(axis=1).tolist()
    for name in ("best_model", "final_model"):
        names = {path.name for path in (folder / name).iterdir()}
        assert names >= FILES[kind] | {"score_head.safetensors", "tokenizer.json", "bareloop.json"}
        assert set(load_file(folder / name / "score_head.safetensors")) <= {
            f"head.{k}.{part}" for k in range(9) for part in ("weight", "bias")
        }
    about = json.loads((folder / "best_model" / "bareloop.json").read_text())
    assert (about["task"], about["architecture"]) == (
        "rank",
        RANKERS[kind][1][1] if kind != "bert" else "bert",
    )
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["layout"] == ("shared" if kind == "causal" else "packed")
    assert record.keys() >= {
        "arguments",
        "versions",
        "commit",
        "data",
        "hardware",
        "timings",
        "peak_memory",
        "best",
    }
    assert (tmp_path / "run" / "tensorboard").is_dir()
    tags = {tag for entry in logs(folder) for tag in entry}
    assert tags >= {
        "train/loss",
        "train/grad_norm",
        "train/lr",
        "eval/accuracy",
        "eval/reward_ratio",
        "eval/loss",
    }
    said = "each question is read once" if kind == "causal" else "it cannot be shared exactly"
    assert said in printed
    assert ("one question read once and" in printed) == (kind == "causal")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", FILES)
def test_the_manifest_says_what_the_models_are_made_of(kind, flags_of, tmp_path, no_figures):
    flags = flags_of(kind)
    run(flags, tmp_path / "run", max_steps=2)
    manifest = json.loads((tmp_path / "run" / "training_manifest.json").read_text())
    for name, size in (("train", 64), ("validation", 40)):
        path = Path(flags[flags.index("--train_data") + 1]).with_name(
            {"train": "train.jsonl"}.get(name, "val.jsonl")
        )
        assert manifest["data"][name] == {"path": str(path), "sha256": sha256(path), "questions": size}
    files = {
        p
        for part in ("best_model", "final_model")
        for p in (tmp_path / "run" / part).rglob("*")
        if p.is_file()
    }
    assert {tmp_path / "run" / name for name in manifest["files"]} == files
    for name, about in manifest["files"].items():
        path = tmp_path / "run" / name
        assert about == {"bytes": path.stat().st_size, "sha256": sha256(path)}
    assert manifest["metrics"]["validation"]["n"] == 40
    assert manifest["arguments"]["max_steps"] == 2
    assert manifest["model"]["task"] == "rank"
    assert manifest.keys() >= {
        "command",
        "commit",
        "versions",
        "hardware",
        "best",
        "num_trained",
        "num_steps",
    }


def test_other_libraries_read_an_encoder(flags_of, tmp_path, no_figures):
    """The backbone with AutoModel; the head's two layers are score_head.safetensors."""
    run(flags_of("bert"), tmp_path / "run", max_steps=3)
    best = tmp_path / "run" / "best_model"
    model, tokenizer = AutoModel.from_pretrained(best).eval(), AutoTokenizer.from_pretrained(best)
    head = weights(tmp_path / "run", "best_model")
    first, second = sorted({name.rsplit(".", 1)[0] for name in head if name.startswith("head.")})
    row = rank_rows(40, 1)[5]
    logits = np.load(tmp_path / "run" / "validation" / "logits.npy")[5]
    for k, candidate in enumerate(row["candidates"]):
        inputs = tokenizer(f"{row['question']} {row['context']}", candidate, return_tensors="pt")
        with torch.no_grad():
            state = model(**inputs).last_hidden_state[0].mean(dim=0)
            hidden = torch.tanh(state @ head[f"{first}.weight"].T + head[f"{first}.bias"])
            score = hidden @ head[f"{second}.weight"].T + head[f"{second}.bias"]
        assert float(score[0]) == pytest.approx(float(logits[k]), rel=1e-4, abs=1e-5)


def test_the_check_of_a_run_recomputes_as_its_steps_do(flags_of, tmp_path, no_figures, monkeypatch, capsys):
    """With --gradient_checkpointing the first question's two ways must not need more memory than a step."""
    compare, calls = rank_train.compare_with_separate, []

    def counted(model, feed, question, *args):
        hook = model.inner.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(model.training))
        found = compare(model, feed, question, *args)
        hook.remove()
        calls.append(len(feed.rows.question(question)[1]))
        return found

    monkeypatch.setattr(rank_train, "compare_with_separate", counted)
    flags = [*flags_of("causal"), "--gradient_checkpointing", "--lora_dropout", "0.2"]
    run(flags, tmp_path / "run", max_steps=1)
    *calls, num_candidates = calls
    assert calls == [False] * 2 * (1 + num_candidates)  # each pass twice, without dropout
    told = re.search(r"scores differ by at most (\S+), gradients by (\S+) of", capsys.readouterr().out)
    assert max(map(float, told.groups())) < 1e-5


def test_quick_test(flags_of, tmp_path, no_figures, capsys):
    flags = [flag for flag in flags_of("causal") if flag not in ("--max_length", "40")]
    result = rank_train.main([*flags, "--output_dir", str(tmp_path / "run"), "--quick_test"])
    printed = capsys.readouterr().out
    assert "plan: 4 steps of 8 questions" in printed
    assert "train: 32 questions" in printed
    assert result["n"] == 32
    assert (
        rank_train.parse_args([*flags, "--quick_test", "--max_length", "2048"]).max_length == 256
    )  # a preset's
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_a_dry_run_writes_nothing(flags_of, tmp_path):
    found = rank_train.main(
        [*flags_of("causal"), "--output_dir", str(tmp_path / "run"), "--dry_run", "--epochs", "3"]
    )
    assert not (tmp_path / "run").exists()
    assert found


# -- ranks, and the shell ---------------------------------------------------------------------------------------


@pytest.mark.dist
@pytest.mark.slow  # quicker, without torchrun: tests/test_rank_one_gradient.py
@pytest.mark.parametrize("kind", ["causal", "bert"])
def test_two_ranks_score_every_question_once(kind, flags_of, tmp_path, no_figures):
    flags = [*flags_of(kind), "--dropout", "0", "--max_tokens", "150"]
    one = run(flags, tmp_path / "one")
    done = torchrun(2, "rank_train.py", *replaced(flags, output_dir=tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout.strip().splitlines()[-1])["validation"]
    assert two["n"] == one["n"] == 40
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)  # Adam turns 1e-7 in a gradient into more
    ours, theirs = (np.load(tmp_path / name / "validation" / "logits.npy") for name in ("one", "two"))
    assert np.allclose(ours, theirs, atol=1e-2, equal_nan=True)


@pytest.mark.slow
def test_an_error_is_one_line(flags_of, tmp_path):
    command = [sys.executable, "rank_train.py", *flags_of("bert"), "--share_prefix", "on"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(
        r"^error: --share_prefix on: bert cannot read a question once", done.stderr, re.MULTILINE
    )
    assert "Traceback" not in done.stderr
