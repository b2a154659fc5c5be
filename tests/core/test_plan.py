"""core/plan.py: every row once, never over budget, the cheapest cuts, level ranks, fair sampling."""

from functools import lru_cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.plan import (
    CUT_COST,
    class_balance_weights,
    cut_by_budget,
    deal,
    deal_level,
    epoch_order,
    eval_cuts,
    make_plan,
    padded_tokens,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
some_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(lambda x: np.array(x, np.int32))


def loads(hands, lengths) -> list[int]:
    """Padded tokens of each rank."""
    return [padded_tokens(hand, lengths) for hand in hands]


def check_hands(hands, rows, lengths, max_tokens) -> None:
    """Each row in exactly one cut on exactly one rank, no cut empty or over the budget."""
    cuts = [cut for hand in hands for cut in hand]
    assert sorted(np.concatenate(cuts).tolist()) == sorted(rows.tolist())
    for cut in cuts:
        assert len(cut) > 0
        assert len(cut) * lengths[cut].max() <= max_tokens


# -- every row once, within the budget -------------------------------------------------------------------------


@quick
@given(some_lengths, st.integers(1, 24), st.integers(0, 100), st.integers(1, 8), st.integers(0, 99))
def test_every_row_in_one_cut_on_one_rank(lengths, batch_size, slack, world, seed):
    max_tokens = int(lengths.max()) + slack
    plan = make_plan(lengths, batch_size, max_tokens, seed)
    seen = []
    for step in range(plan.steps_per_epoch):
        rows = plan.rows(step)
        hands = [plan.cuts(rows, max_tokens, rank, world) for rank in range(world)]
        check_hands(hands, rows, lengths, max_tokens)
        seen.extend(rows.tolist())
    assert sorted(seen) == list(range(len(lengths)))


@quick
@given(some_lengths, st.integers(0, 100), st.integers(1, 8))
def test_eval_cuts_cover_all_rows(lengths, slack, world):
    max_tokens = int(lengths.max()) + slack
    hands = [eval_cuts(lengths, max_tokens, rank, world) for rank in range(world)]
    check_hands(hands, np.arange(len(lengths)), lengths, max_tokens)


def test_eval_cuts_of_no_rows():
    assert eval_cuts(np.array([], np.int32), 100, 0, 2) == []


@pytest.mark.parametrize("harm", ["lose a row", "twice", "over budget"])
def test_bite_check_hands(harm):
    lengths, rows = np.array([5, 4, 3, 2], np.int32), np.arange(4)
    hands = {
        "lose a row": [[np.array([0, 1])], [np.array([2])]],
        "twice": [[np.array([0, 1])], [np.array([1, 2, 3])]],
        "over budget": [[np.array([0, 1, 2])], [np.array([3])]],
    }[harm]
    with pytest.raises(AssertionError):
        check_hands(hands, rows, lengths, 12)


# -- which rows make a batch ------------------------------------------------------------------------------------


@quick
@given(some_lengths, st.integers(1, 24), st.integers(0, 200), st.sampled_from(sorted(CUT_COST)))
def test_batches_do_not_depend_on_the_budget_or_device(lengths, batch_size, slack, device_type):
    longest = int(lengths.max())
    one = make_plan(lengths, batch_size, longest, seed=3)
    other = make_plan(lengths, batch_size, longest + slack, 3, device_type)
    for step in range(2 * one.steps_per_epoch):
        np.testing.assert_array_equal(one.rows(step), other.rows(step))


def test_steps_can_be_asked_in_any_order():
    lengths = np.arange(1, 24, dtype=np.int32)
    plan, again = make_plan(lengths, 4, 100, seed=1), make_plan(lengths, 4, 100, seed=1)
    straight = [plan.rows(step) for step in range(18)]
    for step in (17, 0, 6, 5, 12):
        np.testing.assert_array_equal(again.rows(step), straight[step])


def test_epochs_and_seeds_differ():
    plan = make_plan(np.full(50, 3), 50, 100, seed=1)
    assert plan.rows(0).tolist() != plan.rows(1).tolist()
    assert plan.rows(0).tolist() != make_plan(np.full(50, 3), 50, 100, seed=2).rows(0).tolist()
    # the mixing of seed and epoch is no sum: seed 1 epoch 1 is not seed 2 epoch 0
    assert epoch_order(50, 1, 1).tolist() != epoch_order(50, 2, 0).tolist()


def test_the_last_batch_is_short():
    plan = make_plan(np.full(10, 3), 4, 100, seed=0)
    assert plan.steps_per_epoch == 3
    assert [len(plan.rows(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    hands = [plan.cuts(plan.rows(2), 100, rank, 4) for rank in range(4)]
    assert sorted(map(len, hands)) == [0, 0, 1, 1]  # more ranks than rows: two have none


@quick
@given(some_lengths, st.integers(1, 8))
def test_the_same_inputs_give_the_same_cuts(lengths, world):
    rows, budget = np.arange(len(lengths)), 2 * int(lengths.max())
    first, second = (deal_level(rows, lengths, budget, world, 16) for _ in range(2))
    flat = [[cut.tolist() for cut in hand] for hand in first]
    assert flat == [[cut.tolist() for cut in hand] for hand in second]
    shuffled = deal_level(rows[::-1].copy(), lengths, budget, world, 16)
    assert flat == [[cut.tolist() for cut in hand] for hand in shuffled]  # the rows' order does not matter


def test_a_row_over_the_budget_is_named():
    lengths = np.array([3, 8, 9, 1], np.int32)
    with pytest.raises(UserError, match=r"row 2 has 9 tokens, more than --max_tokens 8.*--max_length"):
        make_plan(lengths, 2, 8, 0)
    make_plan(lengths, 2, "auto", 0)  # nothing to check yet


@pytest.mark.parametrize("packed", [False, True])
def test_a_row_over_a_lowered_budget_is_scored_alone(packed):
    cuts = eval_cuts(np.array([3, 8, 12, 1, 9], np.int32), 8, 0, 1, packed=packed)
    assert [cut.tolist() for cut in cuts] == [[2], [4], [1], [0, 3]]


# -- the cuts ---------------------------------------------------------------------------------------------------


def cost(cuts, lengths, cut_cost) -> int:
    """What cut_by_budget makes least."""
    return padded_tokens(cuts, lengths) + cut_cost * len(cuts)


def brute_force(lengths: np.ndarray, max_tokens: int, cut_cost: int) -> int:
    """The least cost over all 2^(n-1) ways to cut the sorted rows into runs."""
    longest = sorted(lengths.tolist(), reverse=True)
    least = None
    for breaks in product([False, True], repeat=len(longest) - 1):
        edges = [0, *(k + 1 for k, here in enumerate(breaks) if here), len(longest)]
        tokens = [(end - start) * longest[start] for start, end in zip(edges, edges[1:])]
        total = sum(tokens) + cut_cost * len(tokens)
        if max(tokens) <= max_tokens and (least is None or total < least):
            least = total
    return least


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=9).map(np.array), st.integers(0, 80), st.integers(0, 30)
)
def test_cuts_are_the_cheapest(lengths, slack, cut_cost):
    max_tokens = int(lengths.max()) + slack
    cuts = cut_by_budget(np.arange(len(lengths)), lengths, max_tokens, cut_cost)
    assert cost(cuts, lengths, cut_cost) == brute_force(lengths, max_tokens, cut_cost)
    ordered = lengths[np.concatenate(cuts)]
    assert (np.diff(ordered) <= 0).all()  # longest first


def test_bite_filling_each_cut_is_not_the_cheapest():
    # 10, 9, 1, 1: filled up to 40 one cut of 4 x 10; the best is 2 x 10 + 2 x 1 and two cuts' cost
    lengths = np.array([10, 9, 1, 1])
    assert cost([np.arange(4)], lengths, 5) == 45 > brute_force(lengths, 40, 5) == 32
    assert [len(cut) for cut in cut_by_budget(np.arange(4), lengths, 40, 5)] == [2, 2]


def test_cuts_with_a_row_drawn_twice():
    cuts = cut_by_budget(np.array([1, 0, 1, 1]), np.array([4, 2]), 8, 0)
    assert [cut.tolist() for cut in cuts] == [[0], [1, 1, 1]]


# -- level ranks ------------------------------------------------------------------------------------------------


def check_level(hands, lengths) -> None:
    """Graham's bound (1966) for any greedy dealing: no rank is above the mean by more than its last cut."""
    world, per_rank = len(hands), loads(hands, lengths)
    dearest = max(padded_tokens([cut], lengths) for hand in hands for cut in hand)
    assert max(per_rank) <= sum(per_rank) / world + (1 - 1 / world) * dearest + 1e-9


@quick
@given(some_lengths, st.integers(0, 60), st.integers(1, 8))
def test_ranks_are_level(lengths, slack, world):
    rows, budget = np.arange(len(lengths)), int(lengths.max()) + slack
    hands = deal_level(rows, lengths, budget, world, 16)
    check_level(hands, lengths)
    plain = deal(cut_by_budget(rows, lengths, budget, 16), lengths, world)
    assert max(loads(hands, lengths)) <= max(loads(plain, lengths))  # smaller cuts only where they help


def test_the_budget_of_the_busiest_rank_with_least_to_do():
    lengths, rows = np.full(4, 10), np.arange(4)
    hands = deal_level(rows, lengths, 40, 2, 16)  # one cut of 40 would leave a rank without work
    assert [[cut.tolist() for cut in hand] for hand in hands] == [[[0, 1]], [[2, 3]]]
    # 3 ranks: 20, 20, 0 with two rows a cut, 20, 10, 10 with one: a tie, and the larger budget is taken
    assert sorted(len(hand) for hand in deal_level(rows, lengths, 20, 3, 0)) == [0, 1, 1]
    uneven = np.array(
        [9, 7, 2, 2]
    )  # 9 against 7 + 2 x 2; in one cut of 2 x 9 and one of 2 x 2 it would be 18
    assert loads(deal_level(rows, uneven, 18, 2, 0), uneven) == [9, 11]


def test_bite_dealing_in_turn_is_not_level():
    lengths = np.array([9, 1, 9, 1, 9, 1])
    with pytest.raises(AssertionError):
        check_level([[np.array([k]) for k in (0, 2, 4)], [np.array([k]) for k in (1, 3, 5)]], lengths)


@quick
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(2, 3))
def test_dealing_the_dearest_first_is_near_the_best(costs, world):
    """Graham 1969: at most 4/3 - 1/(3 world) of the best possible busiest rank."""
    lengths = np.array(costs)
    hands = deal([np.array([k]) for k in range(len(costs))], lengths, world)

    @lru_cache(None)
    def best(k: int, state: tuple[int, ...]) -> int:
        if k == len(costs):
            return max(state)
        return min(
            best(k + 1, tuple(sorted(v + costs[k] * (i == r) for i, v in enumerate(state))))
            for r in range(world)
        )

    assert max(loads(hands, lengths)) <= (4 / 3 - 1 / (3 * world)) * best(0, (0,) * world) + 1e-9


def test_a_real_batch_is_level_to_a_few_percent():
    lengths = np.random.default_rng(0).integers(8, 128, 256).astype(np.int32)
    busiest = max(per_rank := loads(deal_level(np.arange(256), lengths, 4096, 4, 64), lengths))
    assert busiest <= 1.05 * sum(per_rank) / 4


# -- weighted sampling ------------------------------------------------------------------------------------------


def test_class_balance_weights_by_hand():
    # one label: class 0 twice, class 1 once: 1/2, 1/2, 1, over their sum 2
    np.testing.assert_allclose(class_balance_weights(np.array([0, 0, 1])), [0.25, 0.25, 0.5])
    # two labels: column counts 2 and 3, one row without: 1/2, (1/2 + 1/3) / 2, 1, 1/3, 1/3, over 31/12
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 1]], np.uint8)
    np.testing.assert_allclose(class_balance_weights(labels), np.array([6, 5, 12, 4, 4]) / 31)
    # a class that no row has, and no row without a label, weigh nothing
    np.testing.assert_allclose(class_balance_weights(np.array([[1, 0], [1, 0]], np.uint8)), [0.5, 0.5])


def check_shares(labels, order, num_classes) -> None:
    """Each class is drawn equally often: within four standard errors of a multinomial share."""
    shares = np.bincount(labels[order], minlength=num_classes) / len(order)
    expected = 1 / num_classes
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / len(order))).all(), shares


def test_weighted_sampling_levels_the_classes():
    labels = np.repeat([0, 1, 2], [9000, 900, 100])
    weights = class_balance_weights(labels)
    order = epoch_order(len(labels), 7, 0, weights)
    assert len(order) == len(labels)
    check_shares(labels, order, 3)
    rare = np.bincount(order, minlength=10000)[9900:]  # within a class all rows are alike: 33.3 draws each
    assert rare.min() > 33.3 - 5 * 33.3**0.5
    assert rare.max() < 33.3 + 5 * 33.3**0.5
    np.testing.assert_array_equal(order, epoch_order(len(labels), 7, 0, weights))
    assert (order != epoch_order(len(labels), 7, 1, weights)).any()
    assert (order != epoch_order(len(labels), 8, 0, weights)).any()


def test_bite_plain_sampling_is_not_level():
    labels = np.repeat([0, 1, 2], [9000, 900, 100])
    with pytest.raises(AssertionError):
        check_shares(labels, epoch_order(len(labels), 7, 0), 3)


def test_a_row_of_weight_zero_is_never_drawn():
    order = epoch_order(1000, 0, 0, np.array([0.0, 1.0] * 500))
    assert (order % 2 == 1).all()


def test_a_weighted_plan_draws_by_its_weights():
    plan = make_plan(np.full(6, 3), 4, 100, seed=0, weights=np.array([0, 0, 1, 0, 0, 0.0]))
    assert [plan.rows(step).tolist() for step in range(2)] == [[2] * 4, [2] * 2]
