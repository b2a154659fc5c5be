"""Where memory ends inside a step, the step is done again in smaller cuts: the same gradient, and on disk before the
update. Faults are injected; what a run becomes is compared with one without them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import predict
import train
from archs.encoder import OwnHead
from core.batches import Feed
from core.errors import UserError, run_main
from core.plan import Plan
from tests.conftest import toy_rows
from tests.helpers import logs, replaced, same, weights
from tests.test_one_gradient import CAUGHT, distance, masks_of_a_generator, on_ranks

BOUND = 2e-6  # float32: smaller cuts add up in another order


class AdamW(torch.optim.AdamW):
    """AdamW with an eps above float32's noise. Where the true gradient is 0 (BERT's key biases) Adam makes a step of
    what rounding leaves, in any direction: with the usual 1e-8 gradients agree to 5e-7 and weights only to 1e-4."""

    def __init__(self, params, **options):
        super().__init__(params, **options, eps=1e-3)

    def zero_grad(self, set_to_none: bool = True) -> None:
        if not (self.faults.keeps_gradients and self.faults.is_pending):
            super().zero_grad(set_to_none)

    def step(self, closure=None):
        faults, params = self.faults, [p for group in self.param_groups for p in group["params"]]
        faults.gradients.append(torch.cat([p.grad.flatten().double() for p in params]))
        faults.on_disk.append(read(faults.run, "budget_changes"))
        if faults.step == faults.kill_at:
            raise KeyboardInterrupt  # stands for kill -9
        faults.is_pending = False
        return super().step(closure)


class Faults:
    """Ends memory where it is told to, and notes what the run does."""

    row, eval_tokens, kill_at = -1, 10**9, -1
    first_probe = keeps_gradients = is_pending = False
    step, attempt, cut, made, num_cuts, raised = -1, 0, 0, 0, 1, 0

    def __init__(self, run: Path, **settings):
        """at: {(step, attempt from 1): (forward | backward | feed, cut)} | row: ends memory in each training cut that
        holds it | eval_tokens: a larger cut ends memory in evaluation | kill_at: step | first_probe: the backward pass
        of the run's first cut ends memory | keeps_gradients: a mutation."""
        self.gradients, self.on_disk, self.budgets, self.eval_sizes = [], [], {}, []
        vars(self).update({"run": run, "at": {}} | settings)

    def fail(self, *_):
        self.raised, self.is_pending = self.raised + 1, True
        raise torch.OutOfMemoryError("injected")

    def is_due(self, where: str, cut: int) -> bool:
        kind, place = self.at.get((self.step, self.attempt), ("", 0))
        return self.attempt > 0 and kind == where and cut == place % self.num_cuts

    def install(self, patch: pytest.MonkeyPatch) -> None:
        rows, cuts, forward, make = Plan.rows, Plan.cuts, OwnHead.forward, Feed.cut

        def rows_of(plan, step):
            if step != self.step:
                self.step, self.attempt = step, 0
            return rows(plan, step)

        def cuts_of(plan, indices, max_tokens, *ranks):
            found = cuts(plan, indices, max_tokens, *ranks)
            self.attempt, self.num_cuts, self.cut, self.made = self.attempt + 1, len(found), -1, -1
            self.budgets.setdefault(self.step, []).append(max_tokens)
            return found

        def cut_of(feed, index):
            self.made += 1
            return self.fail() if self.is_due("feed", self.made) else make(feed, index)

        def forward_of(model, cut):
            if not model.training:
                size = cut.ids.numel() if self.attempt else 0  # not when packing is tried out
                self.eval_sizes.append(size)
                return self.fail() if size > self.eval_tokens else forward(model, cut)
            self.cut += 1
            if self.is_due("forward", self.cut) or (self.attempt and self.row in cut.rows.tolist()):
                self.fail()
            if not torch.is_grad_enabled():
                return forward(model, cut)
            if not (self.is_due("backward", self.cut) or (self.first_probe and not self.raised)):
                return forward(model, cut)
            layer = model.inner.base_model.encoder.layer[0]  # half of the gradients are there by then
            hook = layer.register_forward_hook(lambda *parts: [parts[-1].register_hook(self.fail), None][1])
            scores = forward(model, cut)
            hook.remove()
            return scores

        for owner, name, value in (
            (Plan, "rows", rows_of), (Plan, "cuts", cuts_of), (Feed, "cut", cut_of), (AdamW, "faults", self),
            (OwnHead, "forward", forward_of), (torch.optim, "AdamW", AdamW), (train, "release_cached", id),
            (train, "report_run", lambda args, folder, *_: {"run": str(folder)}),  # no plots, no gc: quicker
        ):  # fmt: skip
            patch.setattr(owner, name, value, raising=False)


def read(run: Path, name: str):
    return json.loads((run / "run.json").read_text())[name] if (run / "run.json").exists() else None


def train_with(flags: list[str], run: Path, harm=None, **faults) -> Faults:
    """A run with faults. flags: of a new run, or --resume."""
    found = Faults(run, **faults)
    with pytest.MonkeyPatch.context() as patch:
        found.install(patch)
        if harm:
            harm(patch)
        train.main(flags if "--resume" in flags else replaced(flags, output_dir=run))
    return found


def apart(run: Path, other: Path) -> float:
    """The distance of two runs' weights."""
    both = (torch.cat([w.flatten().double() for _, w in sorted(weights(r).items())]) for r in (run, other))
    return distance(*both)


@pytest.fixture
def flags(toy_flags) -> list[str]:
    """Five steps of about 150 tokens in cuts of at most 60."""
    return [*toy_flags, "--max_tokens", "60", "--max_steps", "5", "--log_steps", "1", "--save_steps", "2"]


# -- training ---------------------------------------------------------------------------------------------------

FAULTS = {
    "in the first forward pass": {(0, 1): ("forward", 0)},
    "in forward": {(2, 1): ("forward", 1)},
    "in backward": {(2, 1): ("backward", 1)},
    "at the last cut": {(2, 1): ("backward", -1)},
    "while a cut is made": {(2, 1): ("feed", 1)},
    "twice in a step": {(2, 1): ("forward", -1), (2, 2): ("backward", 2)},
    "in two steps": {(1, 1): ("backward", 0), (3, 1): ("forward", 1)},
}
HOW = {"no dropout": ["--dropout", "0"], "dropout": [], "padded": ["--packing", "off"]}
LAST, TWICE = FAULTS["at the last cut"], FAULTS["twice in a step"]


@pytest.mark.parametrize("how", HOW)
def test_a_step_done_again_changes_nothing(flags, tmp_path, how):
    flags = [*flags, *HOW[how]]
    whole = train_with(flags, tmp_path / "whole")
    assert (whole.budgets, whole.on_disk) == ({step: [60] for step in range(5)}, [[]] * 5)
    for name, at in FAULTS.items():
        found = train_with(flags, tmp_path / name, at=at)
        assert found.raised == len(at), name
        assert max(map(distance, whole.gradients, found.gradients)) <= BOUND, name
        assert apart(tmp_path / "whole", tmp_path / name) <= BOUND, name
        changes = found.on_disk[-1]
        assert [change["step"] for change in changes] == [place[0] for place in at], name
        assert [c["old"] for c in changes] == [60, *(c["new"] for c in changes)][: len(at)], name
        assert all(c["old"] / 4 <= c["new"] <= c["old"] / 2 for c in changes), name
        assert found.on_disk == [[c for c in changes if c["step"] <= step] for step in range(5)], name
        for step in range(5):  # of each attempt; later it stays lowered
            before = [60, *(c["new"] for c in changes if c["step"] < step)][-1]
            assert found.budgets[step] == [before, *(c["new"] for c in changes if c["step"] == step)], name


@pytest.mark.parametrize("harm", [None, masks_of_a_generator], ids=["kept gradients", "drawn masks"])
@pytest.mark.parametrize("fault", ["in backward", "at the last cut", "twice in a step"])
def test_what_a_replay_must_not_keep_or_draw_is_caught(flags, tmp_path, fault, harm):
    whole = train_with(flags, tmp_path / "whole", harm)
    found = train_with(flags, tmp_path / "run", harm, at=FAULTS[fault], keeps_gradients=not harm)
    assert torch.equal(whole.gradients[1], found.gradients[1])
    assert distance(whole.gradients[2], found.gradients[2]) > CAUGHT
    assert apart(tmp_path / "whole", tmp_path / "run") > CAUGHT


@pytest.mark.parametrize("kill_at, harm", [(2, None), (3, None), (4, None), (3, masks_of_a_generator)])
def test_a_run_killed_after_a_fault_ends_as_if_it_had_not_been(flags, tmp_path, kill_at, harm):
    """The fault is at step 2 and not injected again. Saved after 2 and 4 steps: killed at step 2 or 3, the step of
    the fault is done again with the recorded change; killed at 4, the budget is found lowered."""
    straight, run = tmp_path / "straight", tmp_path / "killed"
    whole = train_with(flags, straight, harm, at=TWICE)
    with pytest.raises(KeyboardInterrupt):
        train_with(flags, run, harm, at=TWICE, kill_at=kill_at)
    forgotten = shutil.copytree(run, tmp_path / "forgotten")
    again = train_with(["--resume", str(run)], run, harm)
    left = range(2 if kill_at < 4 else 4, 5)
    assert (again.raised, again.budgets) == (0, {step: [whole.budgets[step][-1]] for step in left})
    assert whole.budgets[2][-1] < whole.budgets[2][0] / 3  # lowered twice
    assert all(torch.equal(a, b) for a, b in zip(whole.gradients[::-1], again.gradients[::-1]))
    assert same(weights(straight), weights(run))
    assert logs(straight) == logs(run)
    changes = read(straight, "budget_changes")
    assert read(run, "budget_changes") == read(forgotten, "budget_changes") == changes
    record = json.loads((forgotten / "run.json").read_text()) | {"budget_changes": []}
    (forgotten / "run.json").write_text(json.dumps(record))
    train_with(["--resume", str(forgotten)], forgotten)
    assert not same(weights(straight), weights(forgotten))  # bite: in the last bits


def test_a_single_row_that_does_not_fit_is_one_message(flags, tmp_path, capsys):
    """Row 11 ends memory wherever it is, so its cut is split until it stands alone."""
    with pytest.raises(SystemExit) as stopped:
        run_main(lambda: train_with(flags, tmp_path / "run", row=11))
    assert stopped.value.code == 2
    said, tokens = capsys.readouterr().err, 2 + len(toy_rows(96)[11]["text"].split())
    (error,) = [line for line in said.splitlines() if "error" in line]
    assert f"error: out of memory on a single row: row 11 of --train_data, {tokens} tokens" in error
    assert all(flag in error for flag in ("--max_length", "--gradient_checkpointing", "--amp bf16"))
    assert "Traceback" not in said
    assert read(tmp_path / "run", "status") == "running"
    assert not [*tmp_path.glob("run/*_model"), *tmp_path.glob("run/validation")]


def test_memory_that_ends_in_the_update_is_one_message(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: Faults(tmp_path).fail())
    with pytest.raises(UserError, match=r"out of memory on cpu after .* does not fit"):
        train.main(replaced(flags, output_dir=tmp_path / "run"))


def test_memory_that_ends_on_the_first_row_is_one_message(flags, tmp_path):
    """Not a run in which what got no gradient then is frozen."""
    with pytest.raises(UserError, match=r"out of memory on cpu .* does not fit"):
        train_with(flags, tmp_path / "run", first_probe=True)
    assert not (tmp_path / "run").exists()


def test_evaluation_is_done_again_in_smaller_cuts(flags, tmp_path):
    flags = [*flags, "--eval_steps", "2"]
    whole, found = (train_with(flags, tmp_path / str(most), eval_tokens=most) for most in (1000, 30))
    assert (whole.raised, found.raised) == (0, 1)  # from 60 to 28, and there it stays
    assert sum(size > 30 for size in found.eval_sizes) == 1 < sum(size > 30 for size in whole.eval_sizes)
    assert same(weights(tmp_path / "1000"), weights(tmp_path / "30"))  # training has not noticed
    for ours, theirs in zip(logs(tmp_path / "1000"), logs(tmp_path / "30"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_prediction_halves_its_cuts_for_good(flags, tmp_path, monkeypatch):
    train_with(flags, tmp_path / "run")
    predictor, faults = predict.load(tmp_path / "run", "cpu", max_tokens=200), Faults(tmp_path, attempt=1)
    whole = predictor.scores(texts := [row["text"] for row in toy_rows(60, 3)])
    faults.install(monkeypatch)
    faults.eval_tokens = 60
    for tried in (2, 2):  # cuts of up to 200 and 100 tokens, once
        assert predictor.scores(texts) == pytest.approx(whole, rel=1e-5, abs=1e-6)
        assert (predictor.max_tokens, faults.raised) == (50, tried)
    faults.eval_tokens = 10
    with pytest.raises(UserError, match="out of memory on a single row of 14 tokens on cpu"):
        predictor.scores(["the " * 3, "a " * 12])


# -- two ranks --------------------------------------------------------------------------------------------------

SCENARIOS = {  # name: (flags, ranks with the fault, faults)
    "whole": ([], (), {}),
    "whole, padded": (HOW["no dropout"] + HOW["padded"], (), {}),
    "on rank 0": ([], (0,), {"at": LAST}),
    "on rank 1": ([], (1,), {"at": LAST}),
    "on rank 1, padded": (HOW["no dropout"] + HOW["padded"], (1,), {"at": LAST}),
    "twice on rank 1": ([], (1,), {"at": TWICE}),
    "in evaluation": ([], (1,), {"eval_tokens": 60}),
    "a row": ([], (0, 1), {"row": 11}),
    "overlap": (["--overlap"], (0, 1), {"at": LAST}),
}


def outcomes(rank: int, folder: Path, flags: list[str]) -> dict[str, dict | str]:
    """What this rank saw in each scenario: its Faults, or the message that ended it."""
    found = {}
    for name, (more, ranks, faults) in SCENARIOS.items():
        try:
            found[name] = vars(train_with(flags + more, folder / name, **(faults if rank in ranks else {})))
        except UserError as error:
            found[name] = str(error)
    return found


@pytest.mark.dist
def test_a_fault_on_one_of_two_ranks_is_done_again_on_both(flags, tmp_path):
    flags = replaced(flags, eval_steps=4, batch_size=32, max_tokens=100)
    both = on_ranks(2, tmp_path, outcomes, tmp_path, flags)
    train_with(flags, tmp_path / "alone")
    assert apart(tmp_path / "alone", tmp_path / "whole") <= BOUND
    for name in ("on rank 0", "on rank 1", "on rank 1, padded", "twice on rank 1"):
        whole, (_, ranks, faults) = "whole, padded" if "padded" in name else "whole", SCENARIOS[name]
        lowered = [change["new"] for change in both[0][name]["on_disk"][-1]]
        assert len(lowered) == len(faults["at"])
        assert all(new <= old / 2 for old, new in zip([100, *lowered], lowered))
        for rank, found in enumerate(of_all[name] for of_all in both):
            assert found.get("raised", 0) == len(lowered) * (rank in ranks), name
            assert [found["budgets"][step] for step in (1, 2, 4)] == [[100], [100, *lowered], lowered[-1:]], (
                name
            )
            assert list(map(len, found["on_disk"])) == [0, 0] + 3 * [len(lowered)], name
            assert max(map(distance, both[0][whole]["gradients"], found["gradients"])) <= BOUND, name
        assert apart(tmp_path / whole, tmp_path / name) <= BOUND, name
    assert both[1]["in evaluation"]["raised"] == 1
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "in evaluation"))
    assert logs(tmp_path / "whole")[-1] == pytest.approx(logs(tmp_path / "in evaluation")[-1], rel=1e-5)
    assert all("row 11 of --train_data" in found["a row"] for found in both)  # rank 0 says it
    assert all("with --overlap a step cannot be done again" in found["overlap"] for found in both)
