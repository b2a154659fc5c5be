"""--shard: with each weight in parts on two ranks a run is the run of one process, whatever is left to do unevenly."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import predict
import rank_train
import train
from core.budget import Budget, lower_for_resume, stored_budgets
from core.dist import on_main
from core.errors import UserError
from core.plan import eval_hands, fillers, make_plan
from core.sharding import local
from tests.conftest import save_language_model, save_tiny, write_jsonl
from tests.helpers import logs, rank_flags, replaced, same, weights
from tests.test_asked_to_end import distance, spoiled
from tests.test_one_gradient import BOUND, GRID, LORA, first_gradient_of, on_ranks, skewed, toy_rows
from tests.test_one_gradient import distance as gap

HALVES = (
    1e-2  # of bfloat16: embeddings and norms are rounded too; a cut whose gradient is lost changes a tenth
)
GRADIENTS = {  # name: flags
    "padded": GRID[1],
    "a rank without a row": [*GRID[2], "--batch_size", "1"],
    "recomputed": [*GRID[0], "--gradient_checkpointing"],
    "regularisers": [*GRID[0], "--rdrop", "1", "--fgm", "0.5", "--neftune", "5"],
    "our head": [*GRID[2], "--head", "mlp", "--pooling", "attention"],
    "lora": [*GRID[0], *LORA],
    "our head, bf16": [*GRID[0], "--head", "mlp", "--pooling", "mean"],
}
RUNS = {
    "plain": ["--ema", "0.9"],
    "lora": ["--lora_rank", "4", "--head", "linear", "--pooling", "mean"],
    "rank": [],
}


class Halt(Exception):
    """Ends a run in the middle."""


def halt_at(step: int):
    def on_eval(now: int, _) -> None:
        if now == step:
            raise Halt

    return on_eval


def base_flags(folder: Path, model: str, rows: str = "train") -> list[str]:
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "val")}
    flags = [
        "--model_name",
        model,
        "--cache_dir",
        str(folder / "cache"),
        "--max_length",
        "33",
        "--amp",
        "off",
    ]
    return [*flags, "--train_data", files[rows], "--val_data", files["val"]]


def run_flags(folder: Path, kind: str) -> list[str]:
    """Of a run whose ranks often have unlike numbers of cuts: 20 steps of the plain one, 9 of the others."""
    steps = {
        "max_steps": 20 if kind == "plain" else 9,
        "epochs": 20,
        "eval_steps": 7,
        "save_steps": 6,
        "log_steps": 5,
        "dropout": 0,
    }
    if kind == "rank":
        return replaced(rank_flags(folder, "bert"), **steps, max_tokens=90, batch_size=10)
    flags = [*base_flags(folder, str(folder / "bert")), "--learning_rate", "1e-3", *RUNS[kind]]
    return replaced(flags, **steps, max_tokens=70, batch_size=12)


def main_of(kind: str):
    return rank_train.main if kind == "rank" else train.main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("shard")
    save_tiny(found / "bert")
    save_language_model(found / "t5", "t5")
    for k, (name, size) in enumerate({"train": 96, "val": 31}.items()):
        write_jsonl(found / f"{name}.jsonl", skewed(toy_rows(size, k)))
    rank = found / "rank"
    rank.mkdir()
    rank_flags(rank, "bert")
    return found


def place_of(folder: Path, kind: str) -> Path:
    return folder / "rank" if kind == "rank" else folder


def gradient_flags(folder: Path, name: str) -> list[str]:
    flags = [*base_flags(folder, str(folder / "bert")), "--batch_size", "24", *GRADIENTS[name]]
    return replaced(flags, amp="bf16") if "bf16" in name else flags


def out_of_memory(patch: pytest.MonkeyPatch, call: int) -> None:
    """Memory ends in a training step, at the same pass of all ranks."""
    make, calls = train.make_loss, []

    def made(*args):
        loss_fn = make(*args)

        def loss(*inputs):
            calls.append(1)
            if len(calls) == call:
                raise torch.OutOfMemoryError
            return loss_fn(*inputs)

        return loss

    patch.setattr(train, "make_loss", made)


def on_two(rank: int, folder: Path) -> dict:
    """Everything that needs two processes, so that they start once: the gradients; the runs are in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        for room in ("core.evaluate", "core.rank_report"):
            patch.setattr(f"{room}.save_png", lambda *_: None)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *_: None)
        flags = {name: [*gradient_flags(folder, name), "--shard"] for name in GRADIENTS}
        found = {name: first_gradient_of(train.main, flags[name]) for name in GRADIENTS}
        found["share"] = []
        shard = train.shard_model

        def noted(model, *args) -> None:
            before = sum(param.numel() for param in model.parameters())
            shard(model, *args)
            found["share"].append(sum(local(param).numel() for param in model.parameters()) / before)

        patch.setattr(train, "shard_model", noted)
        for kind in RUNS:
            flags = [*run_flags(place_of(folder, kind), kind), "--shard"]
            main_of(kind)(replaced(flags, output_dir=folder / kind))
        flags = [*run_flags(folder, "plain"), "--shard"]
        with pytest.raises(Halt):
            train.main(replaced(flags, output_dir=folder / "alone"), halt_at(7))
        for name in ("resumed", "three"):
            on_main(shutil.copytree, folder / "alone", folder / name)
        train.main(["--resume", str(folder / "resumed")])
        with pytest.MonkeyPatch.context() as faults:
            out_of_memory(faults, call=12)
            with pytest.raises(UserError) as told:
                train.main(replaced(flags, output_dir=folder / "full"))
            found["told"] = str(told.value)
        train.main(["--resume", str(folder / "full")])
        if rank == 1:
            spoiled(patch, train, "make_loss", range(3, 5))
        flags = replaced(flags, max_steps=6, max_tokens=4096, ema=0, log_steps=6)
        train.main(replaced(flags, output_dir=folder / "spoiled"))
    return found


@pytest.fixture(scope="module")
def two(folder) -> list[dict]:
    """What on_two gives on each of two ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return on_ranks(2, folder, on_two, folder)


@pytest.mark.dist
@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_is_the_sum_over_ranks(two, folder, name):
    """Not the mean: what one process computes in a single cut."""
    one = first_gradient_of(train.main, replaced(gradient_flags(folder, name), max_tokens=4096))
    assert gap(one, two[0][name]) <= (HALVES if "bf16" in name else BOUND["float32"])
    assert torch.equal(two[0][name], two[1][name])


@pytest.mark.dist
def test_each_rank_holds_half(two):
    for shares in zip(two[0]["share"], two[1]["share"], strict=True):
        assert sum(shares) == 1
        assert max(shares) < 0.51


@pytest.mark.dist
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_ends_at_the_weights_of_one_process(two, folder, kind, no_figures):
    flags = replaced(run_flags(place_of(folder, kind), kind), output_dir=folder / f"one-{kind}")
    main_of(kind)(flags)
    for name in ("final_model", "best_model"):
        one, many = weights(folder / f"one-{kind}", name), weights(folder / kind, name)
        assert one.keys() == many.keys()
        one.pop(
            "head.4.bias", None
        )  # a ranker's: the same for all candidates, so its gradient is rounding too
        assert distance(one, many) <= 2e-6
    a, b = (json.loads((folder / run / "run.json").read_text())["metrics"] for run in (f"one-{kind}", kind))
    assert a["validation"]["accuracy"] == b["validation"]["accuracy"]


@pytest.mark.dist
def test_resume_is_exact(two, folder):
    for name in ("final_model", "best_model"):
        assert same(weights(folder / "plain", name), weights(folder / "resumed", name))
    assert logs(folder / "plain") == logs(folder / "resumed")


@pytest.mark.dist
def test_one_process_goes_on_from_a_sharded_checkpoint(two, folder, monkeypatch):
    with pytest.raises(UserError, match="give --shard off"):
        train.main(["--resume", str(folder / "alone")])
    train.main(["--resume", str(folder / "alone"), "--shard", "off"])
    assert distance(weights(folder / "plain"), weights(folder / "alone")) <= 2e-6


@pytest.mark.dist
def test_predict_reads_what_was_gathered(two, folder):
    rows = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    for kind in ("plain", "lora"):
        scores = np.load(folder / kind / "validation" / "logits.npy")
        answers = predict.load(str(folder / kind))([row["text"] for row in rows])
        names = [answer["label"] for answer in answers]
        order = json.loads((folder / kind / "best_model" / "bareloop.json").read_text())["label_names"]
        assert names == [order[k] for k in scores.argmax(1)]


@pytest.mark.dist
def test_a_loss_that_is_no_number_on_one_rank_skips_the_step_on_all(two, folder):
    record = [record for record in logs(folder / "spoiled") if "train/loss" in record][-1]
    assert record["train/skipped_steps"] == 2
    assert all(value.isfinite().all() for value in weights(folder / "spoiled").values())


@pytest.mark.dist
def test_out_of_memory_ends_the_run_and_a_resumed_one_has_smaller_cuts(two, folder):
    assert all("goes on from its last checkpoint with cuts of at most 32 tokens" in f["told"] for f in two)
    changes = json.loads((folder / "full" / "run.json").read_text())["budget_changes"]
    assert (changes[0]["old"], changes[0]["new"], len(changes)) == (70, 32, 1)
    assert distance(weights(folder / "plain"), weights(folder / "full")) <= 2e-6


def go_on(rank: int, run: Path) -> None:
    train.main(["--resume", str(run)])


@pytest.mark.dist
@pytest.mark.slow
def test_three_ranks_go_on_from_a_checkpoint_of_two(two, folder, tmp_path):
    on_ranks(3, tmp_path, go_on, folder / "three")
    assert distance(weights(folder / "plain"), weights(folder / "three")) <= 2e-6


# -- fillers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_every_rank_runs_as_many_cuts(packed):
    rng = np.random.default_rng(0)
    lengths, uneven = rng.integers(3, 40, 500).astype(np.int32), 0
    plan = make_plan(lengths, 7, 60, seed=0, packed=packed)
    for step in range(60):
        rows = plan.rows(step)
        cuts = [plan.cuts(rows, 60, rank, 4) for rank in range(4)]
        more = [plan.fillers(rows, 60, rank, 4) for rank in range(4)]
        assert len({len(a) + len(b) for a, b in zip(cuts, more, strict=True)}) == 1
        assert min(map(len, more)) == 0
        shortest = lengths[rows].min()
        assert all(len(cut) == 1 and lengths[cut[0]] == shortest for hand in more for cut in hand)
        uneven += any(more)
    assert uneven
    hands = eval_hands(lengths[:9], 60, 4, packed=packed)
    assert len({len(hand) + len(fillers(hands, lengths, rank)) for rank, hand in enumerate(hands)}) == 1


def test_no_rows_need_no_fillers():
    assert fillers(eval_hands(np.zeros(0, np.int32), 60, 3), np.zeros(0, np.int32), 1) == []


# -- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--shard"], "there is one: start it by torchrun"),
        (["--shard", "--overlap"], "drop --overlap"),
        (["--shard", "--compile", "on"], "drop one of the two"),
    ],
)
def test_what_shard_refuses(toy_flags, flags, message):
    with pytest.raises(UserError, match=message):
        train.main([*toy_flags, *flags])


def test_a_run_that_ran_out_of_memory_goes_on_with_smaller_cuts(tmp_path):
    record = {"max_tokens": {"train": 4096, "eval": 4096}, "memory_model": None, "budget_changes": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    told = lower_for_resume(tmp_path, Budget(4096), 12, rank=1)
    assert "at most 2048 tokens" in told
    budget, _ = stored_budgets(json.loads((tmp_path / "run.json").read_text()))
    assert (budget.at(11), budget.at(12)) == (4096, 2048)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert lower_for_resume(tmp_path / "dry", Budget(4096), 12, rank=1) == ""
