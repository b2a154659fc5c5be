"""A run that is asked to end saves itself and goes on exactly; of ranks one is enough; a bad stretch ends by itself."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ppo
import rank_train
import train
from core.checkpoint import last_checkpoint, read_state
from core.errors import UserError
from core.interrupt import Stopped
from tests.conftest import rank_rows, write_jsonl
from tests.helpers import ROOT, logs, rank_flags, replaced, same, torchrun, weights
from tests.test_ppo import in_haste, ppo_flags
from tests.test_ppo_feedback import feedback_flags, policy_of


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    in_haste(monkeypatch)


def classifier(folder: Path, toy_flags: list[str]) -> tuple[Callable, list[str]]:
    return train.main, [*toy_flags, "--eval_steps", "3", "--log_steps", "4"]


def ranker(folder: Path, toy_flags: list[str]) -> tuple[Callable, list[str]]:
    more = {"batch_size": 8, "max_steps": 7, "eval_steps": 3, "log_steps": 4}
    (folder / "rank").mkdir()
    return rank_train.main, replaced(rank_flags(folder / "rank", "bert"), **more)


def chooser(folder: Path, toy_flags: list[str]) -> tuple[Callable, list[str]]:
    for k, (name, size) in enumerate({"train": 24, "val": 8}.items()):
        write_jsonl(folder / f"{name}.jsonl", rank_rows(size, k))
    more = {"rollout_size": 12, "batch_size": 6, "epochs": 2, "eval_steps": 4, "save_steps": 100}
    return ppo.main, ppo_flags(folder, "bert", **more)


def listener(folder: Path, toy_flags: list[str]) -> tuple[Callable, list[str]]:
    policy_of(folder, "one")
    more = {
        "batch_size": 10,
        "epochs": 9,
        "max_steps": 8,
        "max_tokens": 60,
        "learning_rate": "1e-2",
        "eval_steps": 3,
    }
    return ppo.main, feedback_flags(folder, "one", **more)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", [classifier, ranker, chooser, listener])
def test_a_run_that_is_asked_to_end_goes_on_exactly(loop, number, toy_flags, tmp_path):
    main, flags = loop(tmp_path, toy_flags)
    if number == signal.SIGINT and loop is not classifier:
        pytest.skip("the same handler")
    straight = main(replaced(flags, output_dir=tmp_path / "straight"))["run"]
    asked = []

    def ask(step: int, metrics: dict) -> None:
        if not asked:
            asked.append(step)
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as caught:
        main(replaced(flags, output_dir=tmp_path / "stopped"), ask)
    assert caught.value.code == 128 + number
    saved = read_state(last_checkpoint(tmp_path / "stopped" / "checkpoint"))["step"]
    assert asked[0] < saved < logs(straight)[-1]["step"]
    main(["--resume", str(tmp_path / "stopped")])
    for name in ("final_model", "best_model"):
        assert same(weights(straight, name), weights(tmp_path / "stopped", name))
    assert logs(straight) == logs(tmp_path / "stopped")


ASK_ONE = """
import os, signal, sys
sys.path.insert(0, {root!r})
import train
from core.plan import Plan
rows = Plan.rows
def asked(plan, step):
    if step == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.{how})
    return rows(plan, step)
if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    Plan.rows = asked
from core.errors import run_main
run_main(train.main)
"""


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """STYLE.md section 6: ||a - b|| / ||a|| over all weights together, but for BERT's key biases: softmax does not see
    them, so their gradient is rounding, of which AdamW makes steps of full size."""
    a = {name: value for name, value in a.items() if not name.endswith("key.bias")}
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (apart / sum(float(value.double().square().sum()) for value in a.values())) ** 0.5


@pytest.mark.dist
def test_one_of_two_ranks_is_asked_and_one_rank_goes_on(toy_flags, tmp_path):
    """Both ranks save after the same step; a single one then does the same logical batches."""
    flags = [*toy_flags, "--dropout", "0", "--max_tokens", "60", "--amp", "off"]
    straight = train.main(replaced(flags, output_dir=tmp_path / "straight"))["run"]
    (tmp_path / "ask.py").write_text(ASK_ONE.format(root=str(ROOT), how="SIGTERM"))
    done = torchrun(2, str(tmp_path / "ask.py"), *replaced(flags, output_dir=tmp_path / "stopped"))
    assert "SIGTERM: stopped after step 4, saved" in done.stdout + done.stderr, done.stderr
    train.main(["--resume", str(tmp_path / "stopped")])
    assert distance(weights(straight), weights(tmp_path / "stopped")) < 2e-6
    losses = [
        [record["train/loss"] for record in logs(run) if "train/loss" in record]
        for run in (straight, tmp_path / "stopped")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.dist
@pytest.mark.slow
def test_torchrun_starts_a_dead_rank_again_and_the_run_goes_on_by_itself(toy_flags, tmp_path):
    flags = [*toy_flags, "--dropout", "0", "--max_tokens", "60", "--save_steps", "2"]
    done = torchrun(2, "train.py", *replaced(flags, output_dir=tmp_path / "straight"))
    assert done.returncode == 0, done.stderr
    (tmp_path / "die.py").write_text(ASK_ONE.format(root=str(ROOT), how="SIGKILL"))
    again = replaced(flags, output_dir=tmp_path / "died")
    done = torchrun(2, "--max_restarts=1", str(tmp_path / "die.py"), *again)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "died" / "run.json").read_text())["status"] == "finished"
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "died"))
    assert logs(tmp_path / "straight") == logs(tmp_path / "died")


# -- not a number -----------------------------------------------------------------------------------------------


def spoiled(monkeypatch, script, maker: str, bad: range) -> None:
    """The loss of some training steps is not a number; forward passes at set-up are none of them."""
    real, calls = getattr(script, maker), []

    def make(*args, **kwargs):
        loss_fn = real(*args, **kwargs)

        def loss(*inputs):
            calls.append(1)
            found = loss_fn(*inputs)
            return found * float("nan") if len(calls) - 2 in bad else found  # the first is of set-up

        return loss

    monkeypatch.setattr(script, maker, make)


def test_a_stretch_of_bad_steps_ends_the_run_and_names_its_rows(toy_flags, tmp_path, monkeypatch):
    flags = [
        *toy_flags,
        "--log_steps",
        "1",
        "--save_steps",
        "1",
        "--max_bad_steps",
        "3",
        "--max_tokens",
        "4000",
    ]
    good = [*flags, "--max_steps", "2", "--schedule", "constant", "--warmup", "0"]
    train.main(replaced(good, output_dir=tmp_path / "good"))
    spoiled(monkeypatch, train, "make_loss", range(2, 99))
    bad = [*flags, "--schedule", "constant", "--warmup", "0"]
    with pytest.raises(UserError, match=r"3 steps in a row .* up to step 5 with the rows \d+, .* of .*train"):
        train.main(replaced(bad, output_dir=tmp_path / "bad"))
    newest = [last_checkpoint(tmp_path / run / "checkpoint") for run in ("good", "bad")]
    assert len({(path / "model.safetensors").read_bytes() for path in newest}) == 1


def test_bad_steps_between_good_ones_do_not_end_a_run_and_are_left_out_of_its_loss(
    toy_flags, tmp_path, monkeypatch
):
    spoiled(monkeypatch, train, "make_loss", range(2, 4))
    flags = [*toy_flags, "--log_steps", "5", "--max_bad_steps", "3", "--max_tokens", "4000"]
    run = train.main(replaced(flags, output_dir=tmp_path / "run"))["run"]
    records = [record for record in logs(run) if "train/loss" in record]
    assert records[-1]["train/skipped_steps"] == 2
    assert all(record["train/loss"] is not None for record in records)
