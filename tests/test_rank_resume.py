"""A ranking run that was stopped, or whose memory ended inside a step, ends as if it had not been."""

import json
from pathlib import Path

import pytest
import torch

import rank_train
from archs.ranker import Ranker
from core.errors import UserError
from core.plan import Plan
from core.rank_batches import RankFeed
from tests.helpers import logs, rank_flags, replaced, same, weights
from tests.test_one_gradient import distance
from tests.test_out_of_memory import BOUND, apart

RESUMED = {
    "causal": ["--lora_dropout", "0.2", "--lora_b_ratio", "16", "--schedule", "cosine", "--log_steps", "4"],
    "gpt2": ["--loss", "listmle", "--gradient_checkpointing"],
    "bert": ["--head", "residual", "--pooling", "attention", "--layer_decay", "0.8", "--loss", "pairwise"],
    "whole": ["--amp", "bf16", "--log_steps", "3"],
}


pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind of RANKERS: flags of a run of ten steps without its folder."""
    folder = tmp_path_factory.mktemp("rank")
    steps = {
        "epochs": 3,
        "batch_size": 8,
        "max_steps": 10,
        "eval_steps": 5,
        "save_steps": 2,
        "max_tokens": 75,
    }
    return lambda kind: replaced(rank_flags(folder, kind), **steps)


class Stopped(Exception):
    """What on_eval raises to end a run in the middle."""


def stop(step: int, metrics: dict) -> None:
    raise Stopped


@pytest.mark.parametrize("kind", RESUMED)
def test_ten_steps_are_five_and_five(kind, flags_of, tmp_path):
    flags = [*flags_of(kind), *RESUMED[kind]]
    straight = rank_train.main(replaced(flags, output_dir=tmp_path / "straight"))["run"]
    stopped = str(tmp_path / "stopped")
    with pytest.raises(Stopped):  # after the fifth step; its state was saved after the fourth
        rank_train.main(replaced(flags, output_dir=stopped), stop)
    assert json.loads(Path(stopped, "run.json").read_text())["status"] == "running"
    assert rank_train.main(["--resume", stopped])["run"] == stopped
    for name in ("final_model", "best_model"):
        assert same(weights(straight, name), weights(stopped, name))
    assert logs(straight) == logs(stopped)
    for name in ("metrics.json", "predictions.jsonl"):
        assert Path(straight, "validation", name).read_text() == Path(stopped, "validation", name).read_text()


def test_another_seed_is_caught_and_another_configuration_refused(flags_of, tmp_path):
    a, b = (
        rank_train.main(
            replaced(flags_of("causal"), seed=seed, max_steps=2, output_dir=tmp_path / str(seed))
        )["run"]
        for seed in (0, 1)
    )
    assert not same(weights(a), weights(b))
    with pytest.raises(UserError, match="finished"):
        rank_train.main(["--resume", a])
    record = json.loads(Path(a, "run.json").read_text())
    Path(a, "run.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(UserError, match=r"--share_prefix is 'off', the run's is 'auto'"):
        rank_train.main(["--resume", a, "--share_prefix", "off"])
    Path(a, "run.json").write_text(json.dumps(record | {"status": "running", "data": {"train": "x"}}))
    with pytest.raises(UserError, match="another data"):
        rank_train.main(["--resume", a])


# -- memory -----------------------------------------------------------------------------------------------------


class AdamW(torch.optim.AdamW):
    """AdamW with an eps above float32's noise, that notes the gradients and what is on disk by then."""

    def __init__(self, params, **options):
        super().__init__(params, **options, eps=1e-3)

    def step(self, closure=None):
        faults, params = self.faults, [p for group in self.param_groups for p in group["params"]]
        faults.gradients.append(torch.cat([p.grad.flatten().double() for p in params]))
        record = json.loads((faults.run / "run.json").read_text())
        faults.on_disk.append(len(record["budget_changes"]))
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not (self.faults.keeps_gradients and self.faults.is_pending):
            super().zero_grad(set_to_none)
        self.faults.is_pending = False


class Faults:
    """Ends memory where it is told to."""

    step, attempt, cut, num_cuts, raised = -1, 0, 0, 1, 0
    keeps_gradients = is_pending = False

    def __init__(self, run: Path, **settings):
        """at: {(step, attempt from 1): (forward | backward | feed, cut)} | question: ends memory in each training cut
        that holds it | eval_questions: a larger cut ends memory in evaluation | keeps_gradients: a mutation."""
        self.gradients, self.on_disk, self.budgets, self.eval_sizes = [], [], {}, []
        vars(self).update({"run": run, "at": {}, "question": -1, "eval_questions": 10**9} | settings)

    def fail(self, *_):
        self.raised, self.is_pending = self.raised + 1, True
        raise torch.OutOfMemoryError("injected")

    def is_due(self, where: str, cut: int) -> bool:
        kind, place = self.at.get((self.step, self.attempt), ("", 0))
        return kind == where and cut == place % self.num_cuts

    def install(self, patch: pytest.MonkeyPatch) -> None:
        rows, cuts, forward, make = Plan.rows, Plan.cuts, Ranker.forward, RankFeed.cut

        def rows_of(plan, step):
            if step != self.step:
                self.step, self.attempt = step, 0
            return rows(plan, step)

        def cuts_of(plan, indices, max_tokens, *ranks):
            found = cuts(plan, indices, max_tokens, *ranks)
            self.attempt, self.num_cuts, self.cut = self.attempt + 1, len(found), -1
            self.budgets.setdefault(self.step, []).append(max_tokens)
            return found

        def cut_of(feed, index):
            found = make(feed, index)
            if not self.attempt or "train.jsonl" not in feed.rows.meta["path"]:
                return found
            is_due = self.is_due("feed", self.cut + 1) or self.question in list(index)
            return self.fail() if is_due else found

        def forward_of(model, cut):
            if not self.attempt:
                return forward(model, cut)
            if not model.training:
                self.eval_sizes.append(len(cut.keep))
                return self.fail() if len(cut.keep) > self.eval_questions else forward(model, cut)
            self.cut += 1
            if self.is_due("forward", self.cut):
                self.fail()
            scores = forward(model, cut)
            if self.is_due("backward", self.cut):
                scores.register_hook(self.fail)
            return scores

        for owner, name, value in (
            (Plan, "rows", rows_of), (Plan, "cuts", cuts_of), (RankFeed, "cut", cut_of), (AdamW, "faults", self),
            (Ranker, "forward", forward_of), (torch.optim, "AdamW", AdamW), (rank_train, "release_cached", id),
            (rank_train, "report_ranking", lambda folder, *_: {"run": str(folder)}),
        ):  # fmt: skip
            patch.setattr(owner, name, value, raising=False)


def train_with(flags: list[str], run: Path, **faults) -> Faults:
    found = Faults(run, **faults)
    with pytest.MonkeyPatch.context() as patch:
        found.install(patch)
        rank_train.main(replaced(flags, output_dir=run, max_steps=5))
    return found


FAULTS = {
    "causal": {
        "in the first forward pass": {(0, 1): ("forward", 0)},
        "at the last cut": {(2, 1): ("backward", -1)},
        "twice in a step": {(2, 1): ("forward", -1), (2, 2): ("backward", 1)},
    },
    "bert": {
        "while a cut is made": {(2, 1): ("feed", 1)},
        "at the last cut": {(2, 1): ("backward", -1)},
        "in two steps": {(1, 1): ("backward", 0), (3, 1): ("forward", 1)},
    },
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_step_done_again_changes_nothing(kind, flags_of, tmp_path):
    budget = {"causal": 130, "bert": 300}[kind]
    flags = replaced(
        flags_of(kind), batch_size=16, max_tokens=budget, lora_dropout="0.2" if kind == "causal" else 0
    )
    whole = train_with(flags, tmp_path / "whole")
    assert (whole.on_disk, set(map(tuple, whole.budgets.values()))) == ([0] * 5, {(budget,)})
    for name, at in FAULTS[kind].items():
        found = train_with(flags, tmp_path / name, at=at)
        assert found.raised == len(at), name
        assert max(map(distance, whole.gradients, found.gradients)) <= BOUND, name
        assert apart(tmp_path / "whole", tmp_path / name) <= BOUND, name
        assert found.on_disk == [sum(place[0] <= step for place in at) for step in range(5)], name
        for place in at:
            before, after = found.budgets[place[0]][place[1] - 1 : place[1] + 1]
            assert after <= before / 2, name
    found = train_with(flags, tmp_path / "kept", at=FAULTS[kind]["at the last cut"], keeps_gradients=True)
    assert distance(whole.gradients[2], found.gradients[2]) > 1e-3  # bite


def test_a_question_that_does_not_fit_is_one_message(flags_of, tmp_path):
    with pytest.raises(
        UserError, match=r"out of memory on a single row: row 11 of --train_data, \d+ tokens, .*--max_l"
    ):
        train_with(flags_of("causal"), tmp_path / "run", question=11)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


def test_evaluation_is_done_again_in_smaller_cuts(flags_of, tmp_path):
    flags = flags_of("causal")
    whole, found = (train_with(flags, tmp_path / str(most), eval_questions=most) for most in (100, 3))
    assert whole.raised == 0 < found.raised <= 2
    assert max(whole.eval_sizes) > 3
    assert same(weights(tmp_path / "100"), weights(tmp_path / "3"))  # training has not noticed
    for ours, theirs in zip(logs(tmp_path / "100"), logs(tmp_path / "3"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
