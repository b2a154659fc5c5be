"""Packed cuts (core/plan.py) and their blocks (core/packing.py): every row once, within budget, level; by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import packing
from core.packing import ALIGN, Blocks, near_mask
from core.plan import eval_cuts, make_plan, pack_by_budget, pack_sorted, padded_tokens

quick = settings(max_examples=60, deadline=None, derandomize=True)
some_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(lambda x: np.array(x, np.int32))


def loads(hands, lengths) -> list[int]:
    """Tokens of each cut, in the order in which pack_by_budget numbers them."""
    longest = max(map(len, hands))
    return [int(lengths[hand[k]].sum()) for k in range(longest) for hand in hands if k < len(hand)]


def check_packed(hands, rows, lengths, max_tokens) -> None:
    """Each row in one cut, none over the budget but one that is a single row, as many cuts on each rank (+-1)."""
    cuts = [cut for hand in hands for cut in hand]
    assert sorted(np.concatenate(cuts).tolist()) == sorted(rows.tolist())
    for cut in cuts:
        assert len(cut) == 1 or 0 < lengths[cut].sum() <= max_tokens
        assert (np.diff(lengths[cut]) <= 0).all()  # longest first
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


def slow_loads(sizes: list[int], num_cuts: int) -> list[int]:
    """Each row, longest first, to the cut with the fewest tokens, whatever the budget."""
    found = [0] * num_cuts
    for size in sorted(sizes, reverse=True):
        found[found.index(min(found))] += size
    return found


@quick
@given(some_lengths, st.integers(-20, 100), st.integers(1, 5), st.booleans())
def test_every_row_in_one_packed_cut(lengths, slack, world, twice):
    max_tokens = max(1, int(lengths.max()) + slack)  # a lowered budget can be less than a row
    rows = np.arange(len(lengths))
    rows = np.concatenate([rows, rows[::2]]) if twice else rows  # weighted sampling draws rows again
    hands = pack_by_budget(rows, lengths, max_tokens, world)
    check_packed(hands, rows, lengths, max_tokens)
    found, sizes = loads(hands, lengths), lengths[rows].tolist()
    num_cuts = max(map(len, hands)) * world
    assert num_cuts * max_tokens >= sum(sizes) or slack < 0
    level = slow_loads(sizes, num_cuts)
    if len(hands[-1]) == 0:  # a rank goes without only where rows have run out
        assert len(found) == len(rows)
    if max(level) <= max_tokens:  # the rule suffices: it is taken
        assert found == [load for load in level if load]
        if len(found) == num_cuts:
            assert max(found) - min(found) <= max(sizes)
    other = pack_by_budget(rows[::-1].copy(), lengths, max_tokens, world)
    assert [[c.tolist() for c in hand] for hand in hands] == [[c.tolist() for c in hand] for hand in other]


def test_bite_check_packed():
    lengths, rows = np.array([5, 4, 3, 2]), np.arange(4)
    good = [[np.array([0, 3])], [np.array([1, 2])]]
    check_packed(good, rows, lengths, 7)
    for bad in (
        [[np.array([0])], [np.array([1, 2])]],  # a row is lost
        [[np.array([0, 3])], [np.array([0, 1, 2])]],  # twice
        [[np.array([0, 1])], [np.array([2, 3])]],  # over the budget
        [[np.array([3, 0])], [np.array([1, 2])]],  # shortest first
        [[np.array([0, 3]), np.array([1, 2])], []],  # a rank has nothing to do, another two cuts
    ):
        with pytest.raises(AssertionError):
            check_packed(bad, rows, lengths, 7)


def packed(sizes: list[int], max_tokens: int, world: int = 1) -> list[list[list[int]]]:
    """The lengths of the rows of each cut of each rank."""
    lengths = np.array(sizes)
    hands = pack_by_budget(np.arange(len(sizes)), lengths, max_tokens, world)
    return [[lengths[cut].tolist() for cut in hand] for hand in hands]


def test_packing_by_hand():
    assert packed([7, 6, 3, 4], 10) == [[[7, 3], [6, 4]]]  # the emptiest cut takes each
    assert packed([7, 6, 3, 4], 20) == [[[7, 6, 4, 3]]]
    assert packed([7, 6, 3, 4], 20, world=2) == [[[7, 3]], [[6, 4]]]
    # the emptiest first would end at 5 + 4 and 5 + 3 + 3 = 11; the fullest that holds it: 5 + 5 and 4 + 3 + 3
    assert max(slow_loads([5, 5, 4, 3, 3], 2)) == 11
    assert packed([5, 5, 4, 3, 3], 10) == [[[5, 5], [4, 3, 3]]]
    assert packed([5, 5, 4, 3, 3], 10, world=2) == [[[5, 5]], [[4, 3, 3]]]
    # 18 tokens would fill two cuts of 10, but no two of these rows fit one: one more cut a rank
    assert packed([6, 6, 6], 10) == [[[6], [6], [6]]]
    assert packed([6, 6, 6], 10, world=2) == [[[6], [6]], [[6]]]
    # over a lowered budget: alone in its cut
    assert packed([12, 4, 3, 2], 8) == [[[12], [4], [3, 2]]]
    assert packed([12, 12], 8) == [[[12], [12]]]
    assert packed([3], 8, world=3) == [[[3]], [], []]


def test_a_real_batch_takes_as_few_cuts_as_its_tokens_and_is_level():
    lengths = np.random.default_rng(0).integers(8, 128, 256).astype(np.int32)
    total = int(lengths.sum())
    for world in (1, 2, 4):
        hands = pack_by_budget(np.arange(256), lengths, 4096, world)
        assert max(map(len, hands)) == -(-total // (4096 * world))
        per_rank = [sum(int(lengths[cut].sum()) for cut in hand) for hand in hands]
        assert max(per_rank) <= 1.001 * total / world


@quick
@given(some_lengths, st.integers(-20, 100), st.integers(1, 5))
def test_sorted_packing_fills_one_cut_after_another(lengths, slack, world):
    max_tokens, rows = max(1, int(lengths.max()) + slack), np.arange(len(lengths))
    hands = pack_sorted(rows, lengths, max_tokens, world)
    check_packed(hands, rows, lengths, max_tokens)
    cuts = [hands[k % world][k // world] for k in range(sum(map(len, hands)))]
    assert (np.diff(lengths[np.concatenate(cuts)]) <= 0).all()
    share = max(int(lengths.max()), -(-int(lengths.sum()) // world))  # few rows are shared out over the ranks
    for cut, following in zip(cuts, cuts[1:]):
        assert lengths[cut].sum() + lengths[following[0]] > min(max_tokens, share)
    for rank in range(world):
        again = eval_cuts(lengths, max_tokens, rank, world, packed=True)
        assert [cut.tolist() for cut in again] == [cut.tolist() for cut in hands[rank]]


@quick
@given(some_lengths, st.integers(1, 24), st.integers(0, 100), st.integers(1, 4))
def test_a_packed_plan_has_the_same_batches(lengths, batch_size, slack, world):
    max_tokens = int(lengths.max()) + slack
    padded, plan = (make_plan(lengths, batch_size, max_tokens, 3, packed=form) for form in (False, True))
    for step in range(plan.steps_per_epoch):
        rows = plan.rows(step)
        np.testing.assert_array_equal(rows, padded.rows(step))
        hands = [plan.cuts(rows, max_tokens, rank, world) for rank in range(world)]
        check_packed(hands, rows, lengths, max_tokens)
        assert sum(map(plan.cost, hands)) == lengths[rows].sum()  # nothing is padded
        cuts = padded.cuts(rows, max_tokens, 0, 1)
        assert padded.cost(cuts) == padded_tokens(cuts, lengths) >= lengths[rows].sum()


# -- blocks -----------------------------------------------------------------------------------------------------


@quick
@given(some_lengths, st.integers(1, 3))
def test_gathering_by_head_against_a_slow_loop(lengths, num_heads):
    blocks = Blocks(lengths)
    gather, back, pads = blocks.by_head(num_heads)
    starts, seen, padding = np.cumsum(lengths) - lengths, [], []
    for first, b, width, members, keep in blocks.blocks:
        assert len(members) == b
        assert width == -(-int(lengths[members].max()) // ALIGN) * ALIGN
        assert (keep is None) == (lengths[members] == width).all()
        for i, row in enumerate(members.tolist()):
            seen.append(row)
            for h in range(num_heads):
                for t in range(width):
                    spot = first * num_heads + (i * num_heads + h) * width + t
                    token = starts[row] + min(t, lengths[row] - 1)  # padding repeats the last token
                    assert gather[spot] == token * num_heads + h
                    if t >= lengths[row]:
                        padding.append(spot)
                    assert keep is None or keep[i, t] == (t < lengths[row])
    assert sorted(seen) == list(range(len(lengths)))
    assert sorted(pads.tolist() if pads is not None else []) == sorted(padding)
    assert len(gather) == blocks.num_places * num_heads == len(back) + len(padding)
    assert torch.equal(torch.arange(lengths.sum() * num_heads)[gather][back], torch.arange(len(back)))
    assert blocks.by_head(num_heads)[0] is gather  # made once for all layers


def test_rows_of_unlike_length_are_in_blocks_of_their_own():
    blocks = Blocks(np.array([5, 200, 7, 199, 8]))
    assert [(b, width, members.tolist()) for _, b, width, members, _ in blocks.blocks] == [
        (2, 200, [1, 3]), (3, 8, [0, 2, 4]),
    ]  # fmt: skip
    assert (blocks.num_tokens, blocks.num_places) == (419, 424)
    assert blocks.to(torch.device("cpu")) is blocks
    assert blocks.pin_memory() is blocks


@pytest.fixture
def unaligned(monkeypatch):
    """Widths as long as the longest row, to write biases by hand."""
    monkeypatch.setattr(packing, "ALIGN", 1)


def kept(lengths, num_heads: int, causal: bool, window: int | None) -> list | None:
    """The one block's bias as 0/1: 1 where a key is seen."""
    (bias,) = Blocks(np.array(lengths)).biases(num_heads, torch.float64, causal, window)
    if bias is None:
        return None
    assert set(bias.unique().tolist()) <= {0.0, torch.finfo(torch.float64).min}
    return (bias == 0).int().tolist()


def test_biases_by_hand(unaligned):
    assert kept([3, 3], 2, False, None) is None
    assert kept([3, 3], 2, False, 3) is None  # two tokens apart at most
    assert kept([3, 3], 2, True, None) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]  # for all rows and heads
    assert kept([3, 3], 2, False, 2) == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert kept([3, 3], 2, True, 2) == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    # padded: (rows x heads, 1 or 3 queries, 3 keys), a row's heads behind one another
    assert kept([3, 2], 1, False, None) == [[[1, 1, 1]], [[1, 1, 0]]]
    assert kept([3, 2], 2, False, None) == [[[1, 1, 1]]] * 2 + [[[1, 1, 0]]] * 2
    whole, short = [[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert kept([3, 2], 2, True, None) == [whole, whole, short, short]
    assert kept([3, 1], 1, False, 2)[1] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]  # the last query is padding


def test_near_masks_by_hand():
    cpu = torch.device("cpu")
    assert near_mask(3, False, None, cpu) is None
    assert near_mask(3, False, 3, cpu) is None
    assert near_mask(2, True, 5, cpu).tolist() == [[True, False], [True, True]]
    assert near_mask(2, False, 1, cpu).tolist() == [[True, False], [False, True]]
    seen = near_mask(9, True, 4, cpu)
    assert seen.tolist() == [[0 <= q - k < 4 for k in range(9)] for q in range(9)]


def test_biases_are_made_once_for_each_kind_of_layer():
    blocks = Blocks(np.array([9, 5]))
    first = blocks.biases(2, torch.float32, False, 4)
    assert blocks.biases(2, torch.float32, False, 4) is first
    assert blocks.biases(2, torch.float32, False, None) is not first
    assert blocks.biases(2, torch.bfloat16, False, 4)[0].dtype == torch.bfloat16
