"""core/budget.py: the memory model, the budget it gives, and what becomes of a budget when memory ends."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from core import budget as budget_of
from core.budget import Budget, MemoryModel, Probe, choose_budget, coarse, fit_memory, probe_cuts, squares
from core.plan import make_plan
from tests.helpers import replaced

quick = settings(max_examples=80, deadline=None, derandomize=True)
SHAPES = [(1024, 30_000), (1100, 200_000), (2048, 90_000), (4096, 150_000)]  # tokens, squares of cuts


def probes_of(model: MemoryModel, shapes: list[tuple[int, int]]) -> list[Probe]:
    return [Probe(tokens, squared, model.peak(tokens, squared), 1.0) for tokens, squared in shapes]


def plan_of(lengths, packed: bool, batch_size: int = 4):
    return make_plan(np.array(lengths, np.int32), batch_size, "auto", 0, packed=packed)


# -- the memory model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [(2e9, 3e5, 40.0), (1e6, 1.0, 1e3), (5e8, 0.0, 12.0), (5e8, 7e4, 0.0), (3e9, 0.0, 0.0)]
)
def test_the_model_is_recovered_from_what_it_predicts(model):
    model = MemoryModel(*model)
    found = fit_memory(probes_of(model, SHAPES))
    assert found == pytest.approx(model, rel=1e-9, abs=1e-5)
    other = probes_of(model._replace(b=2 * model.b + 1e4), SHAPES)
    assert fit_memory(other) != pytest.approx(model, rel=1e-9, abs=1e-5)  # bite


def test_rows_of_one_length_do_not_tell_tokens_from_squares():
    """squares is 128 x tokens in each: the sum of both costs is found, and given to the tokens."""
    found = fit_memory(probes_of(MemoryModel(1e9, 2e5, 30.0), [(n, 128 * n) for n in (1024, 2048, 4096)]))
    assert found == pytest.approx(MemoryModel(1e9, 2e5 + 128 * 30, 0.0), rel=1e-9)


def test_cuts_of_as_many_tokens_tell_only_the_squares():
    found = fit_memory(probes_of(MemoryModel(1e9, 2e5, 30.0), [(2048, 10_000), (2048, 90_000)]))
    assert found == pytest.approx(MemoryModel(1e9 + 2048 * 2e5, 0.0, 30.0), rel=1e-9)
    assert fit_memory([Probe(512, 9000, 3e9, 1.0), Probe(512, 9000, 2.9e9, 1.0)]) == (3e9, 0, 0)  # nor those


def test_a_probe_that_ran_out_does_not_count():
    model, ran_out = MemoryModel(2e9, 3e5, 40.0), [Probe(8192, 10**6, math.inf, 0.1)]
    assert fit_memory(probes_of(model, SHAPES) + ran_out) == pytest.approx(model, rel=1e-9)
    assert fit_memory(ran_out) == (0, 0, 0)


some_probes = st.lists(
    st.tuples(st.integers(1, 9000), st.integers(1, 10**7), st.floats(1e6, 1e11)), min_size=1, max_size=8
)


@quick
@given(some_probes)
def test_no_cost_is_ever_negative(parts):
    assert all(0 <= cost < math.inf for cost in fit_memory([Probe(*part, 1.0) for part in parts]))


def test_a_cost_that_would_be_negative_is_left_out():
    """Peaks that fall as squares rise: least squared error alone would give c = -20."""
    found = fit_memory(probes_of(MemoryModel(2e9, 3e5, -20.0), SHAPES))
    assert found.b > found.c == 0


def test_most_tokens_by_hand():
    model = MemoryModel(a=100.0, b=2.0, c=0.5)  # a token of a row of 4 costs 2 + 0.5 x 4 = 4 bytes
    assert model.peak(10, 40) == 100 + 20 + 20
    assert model.most_tokens(500, 4) == model.most_tokens(503, 4) == 100
    assert model.peak(100, 25 * 4**2) == 500  # 25 rows of 4
    assert model.most_tokens(500, 16) == 40  # 2 + 0.5 x 16 = 10 bytes
    assert model.most_tokens(100, 4) == model.most_tokens(50, 4) == 0
    assert MemoryModel(100.0, 0.0, 0.0).most_tokens(500, 4) == 400  # at least a byte a token


# -- from costs to a budget -------------------------------------------------------------------------------------


def test_coarse_by_hand():
    numbers = {0: 1, 1: 1, 7: 7, 8: 8, 9: 8, 10: 10, 15: 14, 16: 16, 19: 16, 20: 20, 31: 28, 1000: 896}
    numbers |= {4095: 3584, 4096: 4096, 5119: 4096, 5120: 5120, 10**6: 917504}
    assert {n: coarse(n) for n in numbers} == numbers


@quick
@given(st.integers(1, 10**7), st.integers(0, 10**5))
def test_coarse_is_monotone_and_close_below(tokens, more):
    assert coarse(tokens) <= coarse(tokens + more)
    assert 0.75 * tokens <= coarse(tokens) <= tokens
    assert coarse(coarse(tokens)) == coarse(tokens)


MODEL = MemoryModel(100.0, 2.0, 0.5)


def cuda_choice(limit: float, longest: int, most: int, *ran_out: int) -> int:
    """choose_budget on CUDA, where cuts of so many tokens ran out of memory."""
    probes = [Probe(10, 40, 140.0, 1.0), *(Probe(tokens, 1, math.inf, 0.1) for tokens in ran_out)]
    return choose_budget(probes, MODEL, limit, longest, most, "cuda")


def test_on_cuda_the_largest_that_fits():
    assert cuda_choice(500, 4, 1000) == 96  # 100 tokens fit
    assert cuda_choice(500, 4, 60) == 64  # a rank has 60 at the most, and a row more does no harm
    assert cuda_choice(500, 150, 1000) == 150  # 4 fit; the longest row must
    assert cuda_choice(500, 4, 1000, 80) == 40  # 80 did not fit: half of them
    assert cuda_choice(500, 4, 1000, 80, 40) == 20
    assert cuda_choice(500, 4, 1000, 300) == 96  # what ran out is larger than what fits anyway
    assert cuda_choice(500, 60, 1000, 80) == 60
    assert cuda_choice(0, 4, 1000) == 4


@quick
@given(st.floats(0, 1e4), st.integers(1, 300), st.integers(1, 3000), st.integers(1, 3000))
def test_on_cuda_no_more_than_fits_unless_a_row_is_longer(limit, longest, most, ran_out):
    found = cuda_choice(limit, longest, most, ran_out)
    assert found >= longest
    if found > longest:
        assert found <= most + longest
        assert found < ran_out
        assert MODEL.peak(found, found * longest) <= limit


def cpu_choice(seconds: dict[int, float | tuple], fits: float = 10**6, longest: int = 4) -> int:
    """choose_budget on CPU of probes of these tokens, whose model says that so many fit."""
    probes = [Probe(tokens, 1, 1.0, s) for tokens, all_s in seconds.items() for s in np.atleast_1d(all_s)]
    return choose_budget(probes, MemoryModel(0.0, 1.0, 0.0), fits, longest, 10**6, "cpu")


def test_on_cpu_the_fastest_that_fits():
    assert cpu_choice({1024: 1.0, 2048: 1.5, 4096: 4.0}) == 2048
    assert cpu_choice({1024: 1.0, 2048: 1.5, 4096: 2.0}) == 4096
    assert cpu_choice({1024: 1.0, 2048: 1.5, 4096: 2.0}, fits=4000) == 2048
    assert cpu_choice({1024: 1.0, 2048: 1.5, 4096: 2.0}, fits=900) == 896  # none was probed: what fits
    assert cpu_choice({1024: 1.0, 2048: 1.5}, fits=10, longest=40) == 40
    assert cpu_choice({1024: 1.0, 2048: 1.5}, longest=3000) == 3000
    assert cpu_choice({1100: 1.0}) == 1024  # coarse


def test_on_cpu_ties_go_to_the_larger_and_the_quicker_of_two_probes_counts():
    assert cpu_choice({1024: 1.0, 2048: 2.0, 4096: 4.0}) == 4096
    assert cpu_choice({1024: 1.0, 2048: 2.08}) == 2048  # 4 % slower
    assert cpu_choice({1024: 1.0, 2048: 2.14}) == 1024  # 7 %
    assert cpu_choice({1024: (9.0, 1.0), 2048: (1.5, 8.0)}) == 2048
    assert cpu_choice({1024: (0.5, 1.0), 2048: (8.0, 1.5)}) == 1024
    assert cpu_choice({895: 1.0}) == 1024  # a batch of 895 tokens: it is to stay one cut


def test_on_cpu_a_probe_that_ran_out_is_not_the_fastest():
    probes = [Probe(1024, 1, 1.0, 1.0), Probe(2048, 1, math.inf, 0.01)]
    assert choose_budget(probes, MemoryModel(0.0, 1.0, 0.0), 10**6, 4, 10**6, "cpu") == 1024


# -- cuts for the probes ----------------------------------------------------------------------------------------


def test_squares_packed_and_padded_by_hand():
    cuts = [np.array([0, 1]), np.array([2])]  # rows of 5 and 3, and of 2
    assert squares(plan_of([5, 3, 2], packed=True), cuts) == 25 + 9 + 4
    assert squares(plan_of([5, 3, 2], packed=False), cuts) == 25 + 25 + 4
    assert squares(plan_of([70_000, 3], packed=True), [np.array([0])]) == 4_900_000_000  # over 32 bits


def test_largest_share_by_hand():
    assert budget_of.largest_share(plan_of([3] * 10, packed=True), 1) == 12  # batches of 4, 4 and 2 rows
    assert budget_of.largest_share(plan_of([3] * 10, packed=True), 5) == 3  # ceil(12 / 5)
    assert budget_of.largest_share(plan_of([9, 1, 1, 1], packed=True), 4) == 9  # the longest row is whole
    assert budget_of.largest_share(plan_of([5, 3, 2], packed=True, batch_size=8), 2) == 5


some_lengths = st.lists(st.integers(1, 600), min_size=1, max_size=80)


@quick
@given(some_lengths, st.integers(1, 40), st.integers(1, 8))
def test_largest_share_is_that_of_the_largest_batch(lengths, batch_size, world):
    plan = plan_of(lengths, True, batch_size)
    sums = [int(plan.lengths[plan.rows(step)].sum()) for step in range(plan.steps_per_epoch)]
    assert budget_of.largest_share(plan, world) == max(max(lengths), math.ceil(max(sums) / world))


@pytest.mark.parametrize("packed", [True, False])
@quick
@given(some_lengths, st.integers(1, 80), st.integers(1, 4), st.sampled_from(["cpu", "cuda"]))
def test_probe_cuts_are_rows_of_about_a_rank_s_share(packed, lengths, batch_size, world, device_type):
    plan = plan_of(lengths, packed, batch_size)
    cuts, share = probe_cuts(plan, device_type, world), budget_of.largest_share(plan, world)
    for cut in cuts:
        assert len(cut) > 0
        assert len(set(cut.tolist())) == len(cut)
        assert set(cut.tolist()) <= set(range(len(lengths)))
        assert (np.diff(plan.lengths[cut]) <= 0).all()  # longest first, as the plan cuts them
        assert plan.cost([cut]) < share + max(lengths)
    largest = max(budget_of.CPU_SIZES) if device_type == "cpu" else 2 * budget_of.CUDA_SIZE
    assert max(map(plan.cost, ([cut] for cut in cuts))) < largest + max(lengths)
    repeats = 2 if device_type == "cpu" else 1
    once = cuts[: len(cuts) // repeats]
    assert all(np.array_equal(a, b) for a, b in zip(once * repeats, cuts, strict=True))
    tokens = [plan.cost([cut]) for cut in once[1 + (device_type == "cuda") :]]  # rows as they come
    assert tokens == sorted(tokens)


def test_probe_cuts_of_long_and_of_short_rows_differ_in_squares():
    plan = plan_of([200] * 100 + [10] * 2000, True, batch_size=2100)
    short, long, *_ = probe_cuts(plan, "cuda", 1)
    assert (plan.cost([short]), plan.cost([long])) == (4100, 4200)  # the first rows beyond 4,096 tokens
    assert squares(plan, [long]) == 21 * 200**2
    assert squares(plan, [short]) < squares(plan, [long]) / 3


# -- what becomes of it -----------------------------------------------------------------------------------------


def test_a_change_holds_from_its_step_on():
    budget = Budget(4096)
    assert budget.lower(7, 10**6) == [{"step": 7, "old": 4096, "new": 2048}]
    assert [budget.at(step) for step in (0, 6, 7, 8, 1000)] == [4096, 4096, 2048, 2048, 2048]
    budget.lower(7, 10**6)
    budget.lower(9, 10**6)
    assert budget.changes[1:] == [{"step": 7, "old": 2048, "new": 1024}, {"step": 9, "old": 1024, "new": 512}]
    assert [budget.at(step) for step in (6, 7, 8, 9)] == [4096, 1024, 1024, 512]
    assert budget.tokens == 4096


def test_lower_ends_at_one_token():
    budget = Budget(1000)
    assert [budget.lower(step, 10**6)[-1]["new"] for step in range(9)] == [448, 224, 112, 56, 28, 14, 7, 3, 1]
    assert Budget(1).lower(0, 10**6) == [{"step": 0, "old": 1, "new": 1}]


def test_lower_splits_the_dearest_cut_however_large_the_budget():
    assert Budget(4096).lower(0, 150) == [{"step": 0, "old": 4096, "new": 64}]


def test_predicted_mib_is_that_of_the_dearest_cut():
    plan, cuts = plan_of([5, 3, 2], packed=True), [np.array([0, 1]), np.array([2])]
    model = MemoryModel(1e6, 1e5, 1e4)
    assert Budget(8, model).predicted_mib(plan, cuts) == pytest.approx((1e6 + 8e5 + 34e4) / 2**20)
    assert Budget(8, model).predicted_mib(plan, []) == 0
    assert Budget(8).predicted_mib(plan, cuts) == 0


def test_probed_budgets_by_hand(monkeypatch):
    plan = plan_of([4] * 100, packed=True, batch_size=50)
    trained, scored = probes_of(MODEL, SHAPES), probes_of(MODEL._replace(b=0.0), SHAPES)
    kind = plan, 4, "cuda", 1
    budget, scoring = budget_of.probed_budgets(
        trained, scored, 560.0, 60, *kind
    )  # 400 bytes are left to tokens
    assert (budget.tokens, scoring.tokens) == (96, 192)  # of 4 and of 2 bytes each; 204 at the most
    assert budget.memory == pytest.approx((160, 2, 0.5))
    assert budget.changes == scoring.changes == []
    monkeypatch.setattr(
        budget_of, "worst_of_ranks", lambda code: max(code, -64)
    )  # another rank has room for 64
    assert [found.tokens for found in budget_of.probed_budgets(trained, scored, 560.0, 60, *kind)] == [64, 64]


def test_stored_budgets_are_what_was_written():
    budget, scoring = Budget(4096, MemoryModel(1e9, 2e5, 30.5)), Budget(8192)
    budget.lower(3, 10**6)
    record = {"max_tokens": {"train": budget.tokens, "eval": scoring.tokens}}
    record |= {"memory_model": budget.memory, "budget_changes": budget.changes}
    found, scored = budget_of.stored_budgets(json.loads(json.dumps(record)))
    assert (found.tokens, found.memory, found.changes) == (4096, budget.memory, budget.changes)
    assert isinstance(found.memory, MemoryModel)
    assert scored.at(10) == 8192
    found.lower(5, 10**6)
    assert [found.at(step) for step in (2, 3, 5)] == [4096, 2048, 1024]
    assert budget_of.stored_budgets(record | {"memory_model": None})[0].memory is None


def test_a_resumed_run_never_probes_again(toy_flags, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    path = tmp_path / "run" / "run.json"
    with pytest.raises(KeyboardInterrupt):
        train.main(
            [*replaced(toy_flags, output_dir=path.parent), "--save_steps", "2", "--eval_steps", "4"], stop
        )
    stored = json.loads(path.read_text())
    assert (len(stored["memory_model"]), stored["budget_changes"]) == (3, [])
    stored["max_tokens"] = {"train": 40, "eval": 33}  # what no probe finds
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(budget_of, "probe_cuts", stop)
    train.main(["--resume", str(path.parent)])
    found = json.loads(path.read_text())
    assert found["status"] == "finished"
    assert all(found[name] == stored[name] for name in ("max_tokens", "memory_model"))


def test_probes_end_when_they_have_taken_their_time(monkeypatch):
    monkeypatch.setattr(budget_of, "PROBE_S", 3.0)
    made = []
    probes = (made.append(k) or Probe(k, 1, 1.0, 1.5) for k in range(9))
    assert [probe.tokens for probe in budget_of.in_time(probes)] == [0, 1, 2]
    assert made == [0, 1, 2]  # the rest is not begun
