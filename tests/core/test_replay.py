"""core/replay.py on fake work: the cuts in order, and all of them again in smaller ones where memory ends."""

from collections.abc import Callable
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import core.replay
from core.budget import Budget, MemoryModel, coarse, squares
from core.errors import UserError
from core.logs import Meter
from core.plan import make_plan
from core.replay import Replay

LENGTHS = np.array([7, 3, 9, 4, 4, 8, 2, 6, 5, 10, 3, 7], np.int32)
ALL = np.arange(12)
BUDGET = 24
LAYOUTS = pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])


class FakeFeed:
    """Cuts that say what they are; like Feed's it makes one ahead, and counts time."""

    device = torch.device("cpu")

    def __init__(self):
        self.wait_s, self.made, self.fails = 0.0, [], False

    def __call__(self, cuts):
        for cut in cuts:
            if self.fails and self.made == ["cut"]:
                self.fails = False
                raise torch.OutOfMemoryError("injected")
            self.made.append("cut")
            yield tuple(cut.tolist())


class Bench:
    """A Replay and everything around it."""

    def __init__(
        self, packed: bool = True, ranks=(0, 1), memory=None, budget: int = BUDGET, dry=False, amp=None
    ):
        self.plan = make_plan(LENGTHS, 12, BUDGET, 0, packed=packed)
        self.feed, self.budget, self.written, self.said = FakeFeed(), Budget(budget, memory), [], []
        self.meter, self.params = Meter(self.feed), [torch.nn.Parameter(torch.zeros(2)) for _ in "ab"]
        record = None if dry else SimpleNamespace(write=lambda **fields: self.written.append(fields))
        self.replay = Replay(
            self.plan, self.feed, self.budget, self.meter, ranks, amp, record, self.said.append
        )
        self.calls = []

    def run(self, work: Callable, rows=ALL, step: int = 0, *more) -> list:
        return self.replay(rows, step, self.params, work, *more)

    def noted(self, fail: Callable = lambda number, index: False) -> Callable:
        """Work that gives its rows, and ends memory where fail(call, rows) says so, calls from 0 over all attempts."""

        def work(cut, index, *more):
            assert cut == tuple(index.tolist())
            self.calls.append(index.tolist())
            assert len(self.calls) < 100  # else it would be done again for ever
            for param in self.params:
                param.grad = torch.ones(2) * len(index) + (0 if param.grad is None else param.grad)
            if fail(len(self.calls) - 1, index.tolist()):
                raise torch.OutOfMemoryError("injected")
            return [*index.tolist(), *more]

        return work


def flat(lists) -> list[int]:
    """All of them in order of size."""
    return sorted(chain.from_iterable(lists))


def fail_at(*numbers: int) -> Callable:
    return lambda number, index: number in numbers


# -- without a fault ---------------------------------------------------------------------------------------------


@LAYOUTS
def test_results_come_in_the_order_of_the_cuts(packed):
    bench = Bench(packed)
    cuts = bench.plan.cuts(ALL, BUDGET, 0, 1)
    assert len(cuts) > 2
    assert bench.run(bench.noted(), ALL, 0, "a", "b") == [[*cut.tolist(), "a", "b"] for cut in cuts]
    assert (bench.written, bench.said, bench.budget.changes) == ([], [], [])
    assert flat(bench.calls) == ALL.tolist()
    assert all(param.grad[0] == 12 for param in bench.params)  # what the cuts made adds up
    some = np.array([2, 5, 6])
    assert flat(bench.run(bench.noted(), some)) == [2, 5, 6]


@LAYOUTS
def test_each_rank_does_its_own_cuts(packed):
    found = [Bench(packed, (rank, 2)).run(lambda cut, index: index.tolist()) for rank in (0, 1)]
    assert all(found)
    assert flat(chain(*found)) == ALL.tolist()
    for rank, own in enumerate(found):
        cuts = Bench(packed).plan.cuts(ALL, BUDGET, rank, 2)
        assert own == [cut.tolist() for cut in cuts]
    nothing = Bench(packed, (1, 2))  # a rank without a row
    assert nothing.run(nothing.noted(), ALL[:1]) == []
    assert (nothing.meter.padded, nothing.meter.room) == (0, 0)


def test_work_runs_under_the_autocast_of_the_run():
    def work(cut, index):
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    for amp in (None, torch.bfloat16):
        assert set(Bench(amp=amp).run(work)) == {amp}
    assert not torch.is_autocast_enabled("cpu")


# -- where memory ends -------------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("number", [0, 1, -1])
def test_all_is_done_again_in_cuts_of_half_the_dearest(number, packed):
    bench = Bench(packed)
    first = bench.plan.cuts(ALL, BUDGET, 0, 1)
    dearest = max(bench.plan.cost([cut]) for cut in first)
    found = bench.run(bench.noted(fail_at(number % len(first))), ALL, 5)
    new = coarse(dearest // 2)
    again = bench.plan.cuts(ALL, new, 0, 1)
    assert max(bench.plan.cost([cut]) for cut in again) <= new < dearest
    assert found == [cut.tolist() for cut in again]  # nothing of the first attempt
    assert bench.calls == [cut.tolist() for cut in [*first[: number % len(first) + 1], *again]]
    assert all(param.grad[0] == 12 for param in bench.params)  # its gradients are dropped too
    assert bench.written == [{"budget_changes": [{"step": 5, "old": BUDGET, "new": new}]}]
    assert bench.said == [f"step 5: out of memory, done again with cuts of at most {new} tokens"]


def test_memory_that_ends_while_a_cut_is_made():
    bench = Bench()
    bench.feed.fails = True
    assert flat(bench.run(bench.noted())) == ALL.tolist()
    assert len(bench.written) == 1
    assert all(param.grad[0] == 12 for param in bench.params)


def test_the_change_is_written_before_anything_is_done_again():
    bench, seen = Bench(budget=48), []

    def work(cut, index):
        seen.append((len(bench.written), all(param.grad is None for param in bench.params)))
        for param in bench.params:
            param.grad = torch.ones(2)
        if len(seen) in (2, 3):
            raise torch.OutOfMemoryError("injected")

    bench.run(work)
    assert seen[:4] == [(0, True), (0, False), (1, True), (2, True)]
    assert [len(fields["budget_changes"]) for fields in bench.written] == [
        2,
        2,
    ]  # one list, as run.json keeps it
    (one, two) = bench.budget.changes
    assert one["old"] > one["new"] == two["old"] > two["new"]
    assert bench.said[1].endswith(f"{two['new']} tokens")


def test_a_change_holds_from_its_step_on():
    bench = Bench()
    bench.run(bench.noted(fail_at(0)), ALL, 5)
    new = bench.budget.at(5)
    for step, tokens in ((4, BUDGET), (5, new), (6, new)):
        bench.calls.clear()
        bench.run(bench.noted(), ALL, step)
        assert bench.calls == [cut.tolist() for cut in bench.plan.cuts(ALL, tokens, 0, 1)], step
    assert len(bench.written) == 1


def test_a_dry_run_writes_no_change():
    bench = Bench(dry=True)
    assert flat(bench.run(bench.noted(fail_at(0)))) == ALL.tolist()
    assert bench.budget.at(0) < BUDGET


@LAYOUTS
def test_the_meter_counts_what_was_kept(packed):
    memory = MemoryModel(2.0**20, 2.0**18, 2.0**16)
    bench = Bench(packed, memory=memory)
    bench.run(bench.noted(fail_at(1)))
    size = bench.budget.at(0)
    cuts = bench.plan.cuts(ALL, size, 0, 1)
    assert bench.meter.padded == bench.plan.cost(cuts)
    assert bench.meter.room == size * len(cuts)
    dearest = max(memory.peak(bench.plan.cost([cut]), squares(bench.plan, [cut])) for cut in cuts) / 2**20
    assert bench.meter.predicted_mib == pytest.approx(dearest)
    bench.run(bench.noted())
    assert bench.meter.padded == 2 * bench.plan.cost(cuts)  # rounds of one step add up
    assert bench.meter.steps == 0  # the loop's own to count


# -- what ends a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 4, 9])
def test_a_row_that_never_fits_is_named(row):
    """It is split off until it stands alone, whatever else is in the batch."""
    bench = Bench()
    with pytest.raises(
        UserError, match=rf"out of memory on a single row: row {row} of .*, {LENGTHS[row]} tokens"
    ):
        bench.run(bench.noted(lambda number, index: row in index))
    assert bench.calls[-1] == [row]
    assert [len(call) > 1 for call in bench.calls if row in call] == [True] * (len(bench.written)) + [False]


def test_memory_that_ends_while_a_row_of_its_own_is_made_names_that_row():
    bench = Bench(budget=1)
    bench.feed.fails = True
    (first, second, *_) = bench.plan.cuts(ALL, 1, 0, 1)
    with pytest.raises(UserError, match=f"row {second[0]} of"):
        bench.run(bench.noted())
    assert bench.calls == [first.tolist()]


def test_other_errors_are_raised_as_they_are():
    def work(cut, index):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    bench = Bench()
    with pytest.raises(RuntimeError, match="mat1"):
        bench.run(work)
    assert (bench.written, bench.meter.padded) == ([], 0)


# -- several ranks -----------------------------------------------------------------------------------------------


def other_rank(patch: pytest.MonkeyPatch, *answers: int) -> list[int]:
    """Another rank's numbers, one for each time that the worst is looked for; returns this rank's."""
    asked, left = [], list(answers)

    def worst(code: int) -> int:
        asked.append(code)
        return max(code, left.pop(0))

    patch.setattr(core.replay, "worst_of_ranks", worst)
    patch.setattr(core.replay, "agree", lambda fault: (worst(fault), 0))
    return asked


@pytest.mark.parametrize("cost", [16, 22])
def test_a_fault_of_another_rank_is_done_again_here_too(monkeypatch, cost):
    asked = other_rank(monkeypatch, 1, cost, 0)
    bench = Bench(ranks=(0, 2))
    first = bench.plan.cuts(ALL, BUDGET, 0, 2)
    bench.run(bench.noted())
    dearest = max(bench.plan.cost([cut]) for cut in first)
    assert asked == [0, dearest, 0]
    new = coarse(max(cost, dearest) // 2)  # the dearest cut of all ranks
    again = bench.plan.cuts(ALL, new, 0, 2)
    assert bench.calls == [cut.tolist() for cut in [*first, *again]]
    assert all(param.grad[0] == sum(map(len, again)) for param in bench.params)


def test_a_rank_without_a_cut_lowers_its_budget_with_the_others(monkeypatch):
    assert other_rank(monkeypatch, 1, 20, 0) == []
    bench = Bench(ranks=(1, 2))
    assert bench.run(bench.noted(), ALL[:1]) == []
    assert bench.budget.at(0) == coarse(10)


def test_a_row_that_does_not_fit_on_another_rank_ends_all(monkeypatch):
    other_rank(monkeypatch, 2 + 7)
    with pytest.raises(UserError, match=f"row 7 of .*, {LENGTHS[7]} tokens"):
        Bench(ranks=(0, 2)).run(lambda cut, index: None)
