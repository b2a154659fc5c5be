"""A feedback run that was killed at any instant, or whose memory ended inside a step, ends as if it had not been."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ppo
import ppo_feedback
from core.errors import UserError
from core.plan import Plan
from tests.conftest import Killed, killed_at
from tests.helpers import logs, replaced, same, weights
from tests.test_one_gradient import BOUND, CAUGHT, distance, on_ranks
from tests.test_ppo_feedback import feedback_flags, feedback_rows, policy_of, without_figures

STEPS, AN_EPOCH = 8, 3  # 24 rows in batches of 10, 10 and 4


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    without_figures(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the policies, so that no test kills the runs that make them."""
    found = tmp_path_factory.mktemp("feedback")
    for kind in ("one", "several", "adapter"):
        policy_of(found, kind)
    return found


KINDS = {  # kind: (kind of policy, flags)
    "one": ("one", {"schedule": "cosine", "log_steps": 2, "save_steps": 2}),
    "several": ("several", {"log_steps": 5, "save_steps": 1, "metric": "loss"}),
    "adapter": ("adapter", {"amp": "bf16", "save_steps": 4, "eval_steps": 2}),
    "supervised": ("one", {"estimator": "supervised", "save_steps": 2, "log_steps": 3}),
    "patience": ("one", {"learning_rate": 0, "patience": 2, "eval_steps": 2, "save_steps": 1}),
    "rarely saved": ("one", {"save_steps": 5, "batch_size": 12, "max_steps": 11}),  # two steps an epoch
}


def flags_of(folder: Path, kind: str, **values) -> list[str]:
    policy, more = KINDS[kind]
    settings = {"batch_size": 10, "epochs": 9, "max_steps": STEPS, "max_tokens": 60, "learning_rate": "1e-2"}
    return feedback_flags(folder, policy, **settings | {"clip": 0.05, "eval_steps": 3} | more | values)


@pytest.fixture(scope="module")
def straight(folder):
    """Call with a kind: the run that nobody killed."""

    def run(kind: str) -> Path:
        if not (folder / "straight" / kind).exists():
            with pytest.MonkeyPatch.context() as patch:
                without_figures(patch)
                ppo.main(flags_of(folder, kind, output_dir=folder / "straight" / kind))
        return folder / "straight" / kind

    return run


def check_same(run: Path, straight: Path) -> None:
    """Bitwise the same weights, log, metrics."""
    for name in ("final_model", "best_model"):
        assert same(weights(straight, name), weights(run, name)), name
    assert logs(straight) == logs(run)
    for name in ("metrics.json", "predictions.jsonl", "calibration.json"):
        assert (straight / "validation" / name).read_text() == (run / "validation" / name).read_text(), name
    for name in ("train", "validation"):
        assert np.array_equal(*(np.load(path / f"start_{name}.npy") for path in (straight, run)))
    records = [json.loads((path / "run.json").read_text()) for path in (straight, run)]
    assert [record["status"] for record in records] == ["finished"] * 2
    for name in ("best", "metrics", "change", "num_steps"):
        assert records[0][name] == records[1][name], name


def carried_on(folder: Path, kind: str, run: Path) -> None:
    """A killed run, to its end: resumed, or begun again where nothing was written yet."""
    if (run / "run.json").exists():
        assert ppo.main(["--resume", str(run)])["run"] == str(run)
    else:
        ppo.main(flags_of(folder, kind, output_dir=run))


# -- killed -----------------------------------------------------------------------------------------------------


def kill_before_update(patch: pytest.MonkeyPatch, number: int) -> None:
    """number: from 1, of this start."""
    real, made = torch.optim.AdamW.step, []

    def step(optimizer, closure=None):
        made.append(1)
        if len(made) == number:
            raise Killed
        return real(optimizer, closure)

    patch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.parametrize("kind, updates", [
    ("one", (1, 4)), ("one", (5, 2, 2)), ("several", (5, 3)),
    ("adapter", (6, 1)), ("supervised", (3, 4)), ("patience", (3,)), ("rarely saved", (9,)),
])  # fmt: skip
def test_killed_before_an_update_it_ends_as_if_it_had_not_been(kind, updates, folder, straight, tmp_path):
    """updates: of each start in turn, before which it is killed; inside of epochs as well as at their ends."""
    run, flags = tmp_path / "run", flags_of(folder, kind, output_dir=tmp_path / "run")
    for k, number in enumerate(updates):
        with pytest.MonkeyPatch.context() as patch:
            kill_before_update(patch, number)
            with pytest.raises(Killed):
                ppo.main(["--resume", str(run)] if k else flags)
        assert json.loads((run / "run.json").read_text())["status"] == "running"
    carried_on(folder, kind, run)
    check_same(run, straight(kind))


@pytest.mark.parametrize("kind", ["one", "patience"])
def test_killed_after_the_last_step_it_makes_no_other(kind, folder, straight, tmp_path):
    """Also where patience has ended before the steps have."""

    def kill(*args):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_feedback, "report_run", kill)
        with pytest.raises(Killed):
            ppo.main(flags_of(folder, kind, output_dir=tmp_path / "run"))
    ppo.main(["--resume", str(tmp_path / "run")])
    check_same(tmp_path / "run", straight(kind))


@pytest.fixture(scope="module")
def num_changes(folder):
    """Of files, that a run makes."""
    with pytest.MonkeyPatch.context() as patch, killed_at(10**9) as made:
        without_figures(patch)
        ppo.main(flags_of(folder, "one", output_dir=folder / "counted"))
    assert len(made) > 100
    return len(made)


@pytest.mark.parametrize("share", np.linspace(0, 0.99, 6).round(2))
def test_killed_at_any_change_of_a_file_it_ends_as_if_it_had_not_been(
    share, folder, num_changes, straight, tmp_path
):
    """Model, checkpoint, record and scores half written: what was there before still counts."""
    with pytest.raises(Killed), killed_at(int(share * num_changes)):
        ppo.main(flags_of(folder, "one", output_dir=tmp_path / "run"))
    carried_on(folder, "one", tmp_path / "run")
    check_same(tmp_path / "run", straight("one"))


@pytest.mark.parametrize("epoch, how", [(0, "whole"), (1, "before"), (1, "half"), (1, "whole"), (2, "half")])
def test_killed_while_the_old_policy_s_scores_are_written(epoch, how, folder, straight, tmp_path):
    """At the start of an epoch; the checkpoint can be of the one before."""
    real, seen = ppo_feedback.save_array, []

    def save(path, array):
        seen.extend([path.name] if path.name.startswith("scores_") else [])
        is_due = len(seen) == epoch + 1 and path.name == seen[-1]
        if not is_due or how != "before":
            real(path, array)
        if is_due and how == "half":
            path.write_bytes(path.read_bytes()[:99])
        if is_due:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_feedback, "save_array", save)
        with pytest.raises(Killed):
            ppo.main(flags_of(folder, "one", output_dir=tmp_path / "run"))
    assert len(seen) == epoch + 1
    ppo.main(["--resume", str(tmp_path / "run")])
    check_same(tmp_path / "run", straight("one"))


def test_killed_where_a_resumed_run_has_read_the_scores(folder, straight, tmp_path):
    """Inside of an epoch it reads them; what it reads must still be there when it is killed right then."""
    run, real = tmp_path / "run", Path.write_bytes
    with pytest.MonkeyPatch.context() as patch:
        kill_before_update(patch, 3)  # saved after two of three steps
        with pytest.raises(Killed):
            ppo.main(flags_of(folder, "one", output_dir=run))

    def write(path, data):
        if path.name.startswith("scores_"):
            real(path, data[: len(data) // 2])
            raise Killed
        return real(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        with pytest.raises(Killed):
            ppo.main(["--resume", str(run)])
    ppo.main(["--resume", str(run)])
    check_same(run, straight("one"))


def test_scores_of_another_policy_are_caught_by_the_check(folder, straight, tmp_path):
    """The bite: what a run inside of an epoch reads decides its weights."""
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill_before_update(patch, 6)  # saved after four, in the second epoch
        with pytest.raises(Killed):
            ppo.main(flags_of(folder, "one", output_dir=run))
    shutil.copy(run / "start_train.npy", run / "scores_1.npy")
    ppo.main(["--resume", str(run)])
    assert not same(weights(straight("one")), weights(run))


def test_other_feedback_or_flags_are_refused(folder, tmp_path):
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in feedback_rows(False)))
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        kill_before_update(patch, 4)
        with pytest.raises(Killed):
            ppo.main(flags_of(folder, "one", feedback=path, output_dir=run))
    for flag, value in (("--kl_coef", "7"), ("--reward_weights", "1,0"), ("--estimator", "supervised")):
        with pytest.raises(UserError, match=rf"another configuration: {flag} is .*, the run's is"):
            ppo.main(["--resume", str(run), flag, value])
    path.write_text("".join(json.dumps(row | {"feedback": 0.5}) + "\n" for row in feedback_rows(False)))
    with pytest.raises(UserError, match="is a run of another data"):
        ppo.main(["--resume", str(run)])
    assert json.loads((run / "run.json").read_text())["status"] == "running"


# -- two ranks ----------------------------------------------------------------------------------------------------


def killed_and_resumed(rank: int, flags: list[str], folder: Path) -> None:
    """A whole run, and one that is killed inside of the second epoch and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        ppo.main([*flags, "--output_dir", str(folder / "whole")])
        with pytest.MonkeyPatch.context() as inner:
            kill_before_update(inner, 6)
            with pytest.raises(Killed):
                ppo.main([*flags, "--output_dir", str(folder / "killed")])
        ppo.main(["--resume", str(folder / "killed")])


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_resume_inside_of_an_epoch(folder, tmp_path):
    on_ranks(2, tmp_path, killed_and_resumed, flags_of(folder, "one", log_steps=2, save_steps=2), tmp_path)
    check_same(tmp_path / "killed", tmp_path / "whole")


# -- memory -------------------------------------------------------------------------------------------------------


class Faults:
    """Ends memory in the forward pass of training cuts; notes each update's gradient and what was on disk by then."""

    def __init__(self, run: Path, at: dict | None = None, row: int = -1, keeps_gradients: bool = False):
        """at: {(step, attempt from 0): cut} | row: ends memory in each cut that holds it."""
        self.run, self.at, self.row, self.keeps = run, at or {}, row, keeps_gradients
        self.step, self.attempt, self.cut, self.raised = -1, -1, -1, 0
        self.gradients, self.on_disk, self.budgets = [], [], []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        rows, cuts, of, update = Plan.rows, Plan.cuts, ppo_feedback.Part.of, torch.optim.AdamW.step

        def rows_of(plan, step):
            self.step, self.attempt = step, -1
            return rows(plan, step)

        def cuts_of(plan, indices, max_tokens, *ranks):
            self.attempt, self.cut = self.attempt + 1, -1
            self.budgets.append((self.step, max_tokens))
            return cuts(plan, indices, max_tokens, *ranks)

        def part_of(part, index):
            self.cut += 1
            is_due = self.at.get((self.step, self.attempt)) == self.cut or self.row in np.asarray(index)
            if self.attempt >= 0 and is_due:
                self.raised += 1
                raise torch.OutOfMemoryError("injected")
            return of(part, index)

        def step_of(optimizer, closure=None):
            params = [param for group in optimizer.param_groups for param in group["params"]]
            self.gradients.append(torch.cat([param.grad.flatten().double() for param in params]))
            self.on_disk.append(json.loads((self.run / "run.json").read_text())["budget_changes"])
            return update(optimizer, closure)

        places = [(Plan, "rows", rows_of), (Plan, "cuts", cuts_of), (ppo_feedback.Part, "of", part_of)]
        places.append((torch.optim.AdamW, "step", step_of))
        if self.keeps:  # a mutation: what a failed attempt made stays
            replay = ppo_feedback.Replay.__call__
            places.append(
                (ppo_feedback.Replay, "__call__", lambda s, r, n, p, *more: replay(s, r, n, [], *more))
            )
        for owner, name, value in places:
            patch.setattr(owner, name, value)


def run_with(flags: list[str], run: Path, **faults) -> Faults:
    found = Faults(run, **faults)
    with pytest.MonkeyPatch.context() as patch:
        found.install(patch)
        ppo.main(replaced(flags, output_dir=run))
    return found


@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_step_done_again_has_the_same_gradient(kind, folder, tmp_path):
    flags = flags_of(folder, kind, max_steps=3, clip=0.2, batch_size=24, max_tokens=120)
    whole = run_with(flags, tmp_path / "whole")
    assert whole.budgets == [(0, 120), (1, 120), (2, 120)]
    for name, at in {"once": {(0, 0): 1}, "twice": {(0, 0): 1, (0, 1): 0}}.items():
        found = run_with(flags, tmp_path / name, at=at)
        assert found.raised == len(at)
        assert distance(whole.gradients[0], found.gradients[0]) <= BOUND["float32"], name
        changes = found.on_disk[0]
        assert len(changes) == len(at)
        assert found.on_disk == [changes] * 3
        assert [change["step"] for change in changes] == [0] * len(at)
        tokens = [120, *(change["new"] for change in changes)]
        assert all(new <= old / 2 for old, new in zip(tokens, tokens[1:]))
        assert found.budgets == [*((0, size) for size in tokens), (1, tokens[-1]), (2, tokens[-1])]
    if kind == "several":
        return
    log, others = logs(tmp_path / "whole"), logs(tmp_path / "once")
    assert log[1] == pytest.approx(others[1], rel=1e-5, abs=1e-6)  # what failed is in no sum
    kept = run_with(flags, tmp_path / "kept", at={(0, 0): 1}, keeps_gradients=True)
    assert distance(whole.gradients[0], kept.gradients[0]) > CAUGHT  # bite


def test_killed_after_a_fault_the_change_is_known(folder, tmp_path):
    """Killed in the step after: the step of the fault is done again in the cuts that were written down."""
    flags = flags_of(folder, "one")
    at = {(2, 0): 0}
    with pytest.MonkeyPatch.context() as patch:
        Faults(tmp_path / "whole", at=at).install(patch)
        ppo.main(replaced(flags, output_dir=tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        kill_before_update(patch, 4)
        Faults(tmp_path / "run", at=at).install(patch)
        with pytest.raises(Killed):
            ppo.main(replaced(flags, output_dir=tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        found = Faults(tmp_path / "run")
        found.install(patch)
        ppo.main(["--resume", str(tmp_path / "run")])
    assert found.budgets[0] == (2, found.on_disk[0][0]["new"])
    check_same(tmp_path / "run", tmp_path / "whole")


def test_a_row_that_does_not_fit_is_one_message(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"out of memory on a single row: row 7 of .*, \d+ tokens, .*--max_l"
    ) as error:
        run_with(flags_of(folder, "one"), tmp_path / "run", row=7)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    assert not (tmp_path / "run" / "final_model").exists()
    assert "of --feedback, " in str(error.value)  # the flag that this run was given
