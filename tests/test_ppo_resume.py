"""A PPO run that was killed, or whose memory ended in a rollout or an update, ends as if it had not been."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ppo
from archs.actor_critic import ActorCritic
from core.checkpoint import write_sums
from core.errors import UserError
from core.plan import Plan
from core.rank_batches import RankFeed
from core.replay import Replay
from tests.conftest import rank_rows, write_jsonl
from tests.helpers import logs, replaced, same, weights
from tests.test_one_gradient import CAUGHT, distance
from tests.test_out_of_memory import BOUND, apart
from tests.test_ppo import in_haste, ppo_flags
from tests.test_rank_resume import AdamW


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    in_haste(monkeypatch)


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind: flags of a run of four rollouts of 12 questions, four steps each, without its folder."""
    folder = tmp_path_factory.mktemp("ppo")
    for k, (name, size) in enumerate({"train": 24, "val": 8}.items()):
        write_jsonl(folder / f"{name}.jsonl", rank_rows(size, k))
    settings = {"rollout_size": 12, "batch_size": 6, "epochs": 2, "eval_steps": 4, "save_steps": 4}
    return lambda kind, **values: ppo_flags(folder, kind, **{**settings, **values})


def read(run: Path, name: str):
    return json.loads((run / "run.json").read_text())[name]


# -- kills ------------------------------------------------------------------------------------------------------


def killed_where(is_due: Callable[[int], bool], flags: list[str], folder: Path) -> list[Path]:
    """Do a run to its end in folder/run; returns what a kill before some changes of its files would have left.

    is_due: called with the number of the change, of about a hundred, from 0.
    """
    run, left, changes, copying = folder / "run", [], [], []

    def noted(real):
        def change(*args, **kwargs):
            if not copying and (run / "run.json").exists() and read(run, "status") == "running":
                if is_due(len(changes)):
                    copying.append(True)
                    left.append(shutil.copytree(run, folder / f"killed {len(changes)}"))
                    copying.clear()
                changes.append(args)
            return real(*args, **kwargs)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, noted(getattr(os, name)))
        ppo.main(replaced(flags, output_dir=run))
    return left


def check_ends_alike(killed: Path, run: Path) -> None:
    assert ppo.main(["--resume", str(killed)])["run"] == str(killed)
    for name in ("final_model", "best_model"):
        assert same(weights(run, name), weights(killed, name)), killed
    assert logs(run) == logs(killed), killed
    for name in ("validation/metrics.json", "validation/predictions.jsonl"):
        assert (run / name).read_text() == (killed / name).read_text(), killed
    for name in ("rewards_told", "best", "baselines", "metrics"):
        assert read(run, name) == read(killed, name), (killed, name)


KILLED = {  # case: (kind, flags, changes of files between kills)
    "ppo": ("bert", {"kl_target": 1e-4, "stop_kl": 1e-3, "schedule": "cosine", "log_steps": 3}, 24),
    "rloo": ("causal", {"estimator": "rloo", "kl_target": 1, "save_steps": 8}, 32),
    "exact": ("whole", {"estimator": "exact", "lora_rank": 4, "amp": "bf16", "max_steps": 6}, 40),
}


@pytest.mark.parametrize("case", KILLED)
def test_a_run_killed_at_any_instant_ends_as_if_it_had_not_been(case, flags_of, tmp_path):
    kind, more, every = KILLED[case]
    left = killed_where(lambda k: k % every == every // 2, flags_of(kind, **more), tmp_path)
    is_early = [not list(path.glob("checkpoint/step_*")) for path in left]
    assert is_early[0]  # it begins anew
    assert not is_early[-1]
    for killed in left:
        check_ends_alike(killed, tmp_path / "run")


def first_with(folder: Path, checkpoint: str) -> Callable[[int], bool]:
    """The first change of files after a checkpoint was there."""
    found = []

    def is_due(_: int) -> bool:
        found.append((folder / "run" / "checkpoint" / checkpoint).exists())
        return found[-1] and sum(found) == 1

    return is_due


def test_a_run_killed_when_its_patience_had_ended_does_not_go_on(flags_of, tmp_path):
    flags = flags_of("bert", learning_rate=0, patience=2, epochs=9)
    (killed,) = killed_where(first_with(tmp_path, "step_00000008"), flags, tmp_path)
    assert logs(tmp_path / "run")[-1]["step"] == 8
    check_ends_alike(killed, tmp_path / "run")


def test_what_a_checkpoint_holds_is_needed(flags_of, tmp_path):
    """Bite: the comparisons above see its numbers."""
    flags = flags_of("bert", kl_target=1e-4)
    (killed,) = killed_where(first_with(tmp_path, "step_00000008"), flags, tmp_path)
    for name, value in {"kl_coef": 9.0, "told": 1, "best": {"value": 2, "step": 4, "waited": 0}}.items():
        other = shutil.copytree(killed, tmp_path / name)
        path = other / "checkpoint" / "step_00000008" / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        write_sums(path.parent)
        with pytest.raises(AssertionError):
            check_ends_alike(other, tmp_path / "run")


# -- memory -----------------------------------------------------------------------------------------------------


class Faults:
    """Ends memory where it is told to. An attempt is a rollout, or the cuts of an update; from 0, in order."""

    attempt, cut, made, num_cuts, raised = -1, 0, 0, 1, 0
    keeps_gradients = is_pending = False  # of test_rank_resume's AdamW

    def __init__(self, run: Path, **settings):
        """at: {attempt: (forward | backward | feed, cut)} | question: ends memory in each training cut that holds it |
        kill_at: the update that a kill comes before."""
        self.gradients, self.on_disk, self.budgets, self.told = [], [], [], []
        vars(self).update({"run": run, "at": {}, "question": -1, "kill_at": -1} | settings)

    def fail(self, *_):
        self.raised += 1
        raise torch.OutOfMemoryError("injected")

    def is_due(self, where: str, cut: int) -> bool:
        kind, place = self.at.get(self.attempt, ("", 0))
        return kind == where and cut == place % self.num_cuts

    def install(self, patch: pytest.MonkeyPatch) -> None:
        cuts, forward, make, draw = Plan.cuts, ActorCritic.forward, RankFeed.cut, ppo.draw_choices

        def cuts_of(plan, rows, max_tokens, *ranks):
            found = cuts(plan, rows, max_tokens, *ranks)
            self.attempt, self.num_cuts, self.cut, self.made = self.attempt + 1, len(found), -1, -1
            self.budgets.append(max_tokens)
            return found

        def cut_of(feed, index):
            if self.attempt < 0 or "train.jsonl" not in feed.rows.meta["path"]:
                return make(feed, index)
            self.made += 1
            is_due = self.is_due("feed", self.made) or self.question in list(index)
            return self.fail() if is_due else make(feed, index)

        def forward_of(model, cut):
            if self.attempt < 0 or not model.training:
                return forward(model, cut)
            self.cut += 1
            if self.is_due("forward", self.cut):
                self.fail()
            scores, values = forward(model, cut)
            if self.is_due("backward", self.cut):
                scores.register_hook(self.fail)
            return scores, values

        def draw_of(*args):
            self.told.append(draw(*args).tolist())
            return draw(*args)

        def step(optimizer, closure=None, real=AdamW.step):
            if len(self.gradients) == self.kill_at:
                raise KeyboardInterrupt  # stands for kill -9
            return real(optimizer, closure)

        for owner, name, value in (
            (Plan, "cuts", cuts_of), (RankFeed, "cut", cut_of), (ActorCritic, "forward", forward_of),
            (ppo, "draw_choices", draw_of), (AdamW, "step", step), (AdamW, "faults", self),
            (torch.optim, "AdamW", AdamW), (ppo, "report_ranking", lambda run, *_: {"run": str(run)}),
        ):  # fmt: skip
            patch.setattr(owner, name, value, raising=False)


def train_with(flags: list[str], run: Path, harm=None, **faults) -> Faults:
    """A run with faults. flags: of a new run, or --resume."""
    found = Faults(run, **faults)
    with pytest.MonkeyPatch.context() as patch:
        found.install(patch)
        if harm:
            harm(patch)
        ppo.main(flags if "--resume" in flags else replaced(flags, output_dir=run))
    return found


FAULTS = {  # name: (attempts with a fault, steps they belong to: a rollout stands half a step before its update)
    "in the last cut of a rollout": ({5: ("forward", -1)}, [3.5]),
    "while a rollout's cut is made": ({5: ("feed", 1)}, [3.5]),
    "in the first update": ({1: ("backward", -1)}, [0]),
    "twice in an update": ({3: ("forward", -1), 4: ("backward", 0)}, [2, 2]),
    "in a rollout and in its update": ({0: ("forward", 1), 2: ("backward", 0)}, [-0.5, 0]),
}


AGAIN = {  # estimator: (kind, budget: a rollout in two cuts, an update in one, faults)
    "ppo": ("bert", 200, [name for name in FAULTS if name != "in the last cut of a rollout"]),
    "rloo": ("causal", 130, ["in the last cut of a rollout"]),
}


@pytest.mark.parametrize("estimator", AGAIN)
def test_what_is_done_again_changes_nothing(estimator, flags_of, tmp_path):
    kind, budget, names = AGAIN[estimator]
    flags = flags_of(kind, estimator=estimator, epochs=1, max_tokens=budget)
    whole = train_with(flags, tmp_path / "whole")
    assert (whole.on_disk, whole.budgets) == ([0] * 8, [budget] * 10)
    for name in names:
        at, steps = FAULTS[name]
        found = train_with(flags, tmp_path / name, at=at)
        assert found.raised == len(at), name
        assert found.told == whole.told, name
        assert max(map(distance, whole.gradients, found.gradients)) <= BOUND, name
        assert apart(tmp_path / "whole", tmp_path / name) <= BOUND, name
        changes = read(tmp_path / name, "budget_changes")
        assert [change["step"] for change in changes] == steps, name
        assert all(change["new"] <= change["old"] / 2 for change in changes), name
        assert found.on_disk == [sum(step <= now for step in steps) for now in range(8)], (
            name
        )  # before each update
        lowered = [budget] + [change["new"] for change in changes]
        assert found.budgets == [lowered[sum(k > place for place in at)] for k in range(10 + len(at))], name


def kept_gradients(patch: pytest.MonkeyPatch) -> None:
    """What the cuts before the fault have left in the gradients stays there."""
    call = Replay.__call__
    patch.setattr(
        Replay, "__call__", lambda self, rows, step, params, *more: call(self, rows, step, [], *more)
    )


def test_gradients_that_are_kept_are_caught(flags_of, tmp_path):
    flags = flags_of("bert", epochs=1, max_tokens=200, max_steps=2)
    whole = train_with(flags, tmp_path / "whole")
    found = train_with(flags, tmp_path / "kept", kept_gradients, at=FAULTS["in the first update"][0])
    assert distance(whole.gradients[0], found.gradients[0]) > CAUGHT


@pytest.mark.parametrize("fault", ["in the first update", "in the last cut of a rollout"])
def test_a_run_killed_after_a_fault_ends_as_if_it_had_not_been(fault, flags_of, tmp_path):
    """The fault is not injected again: what was recorded is done at once, and nothing before it."""
    flags, (at, (step,)) = flags_of("bert", epochs=1, max_tokens=160), FAULTS[fault]
    whole = train_with(flags, tmp_path / "straight", at=at)
    with pytest.raises(KeyboardInterrupt):
        train_with(flags, tmp_path / "killed", at=at, kill_at=math.ceil(step) + 1)
    again = train_with(["--resume", str(tmp_path / "killed")], tmp_path / "killed")
    assert again.raised == 0
    done = [budget for k, budget in enumerate(whole.budgets) if k not in at]
    assert again.budgets == done[-len(again.budgets) :]
    assert all(torch.equal(a, b) for a, b in zip(whole.gradients[::-1], again.gradients[::-1]))
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "killed"))
    assert logs(tmp_path / "straight") == logs(tmp_path / "killed")


def test_a_question_that_does_not_fit_is_one_message(flags_of, tmp_path):
    with pytest.raises(
        UserError, match=r"out of memory on a single row: row 11 of --train_data, \d+ tokens, .*--max_l"
    ):
        train_with(flags_of("bert"), tmp_path / "run", question=11)
    assert read(tmp_path / "run", "status") == "running"
    assert not (tmp_path / "run" / "validation").exists()
