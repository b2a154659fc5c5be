"""core/batches.py: padded and packed tensors by hand, and every row back out of both."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import batches
from core.batches import Cut, Feed, padded_cut, padded_ids, to_device
from core.cache import TokenRows
from core.packing import Blocks
from tests.helpers import cut_of

CPU = torch.device("cpu")
PAD = 9


def token_rows(rows: list[list[int]], pairs: list[int], labels) -> TokenRows:
    """Token rows in memory, laid out as the cache has them."""
    lengths = np.array([len(row) for row in rows], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.array([token for row in rows for token in row], np.int32)
    lines = np.arange(1, len(rows) + 1, dtype=np.int32)
    labels = np.asarray(labels)
    several, hashes = labels.ndim == 2, np.zeros(len(rows), np.uint64)
    return TokenRows(ids, starts, np.array(pairs, np.int32), lines, hashes, labels, [], several, {}, lengths)


def test_padding_by_hand():
    cut = cut_of([[1, 2, 3], [4]], False, numbers=[7, 5], labels=np.array([2, 0], np.int32), pad_id=PAD)
    assert cut.ids.tolist() == [[1, 2, 3], [4, PAD, PAD]]
    assert cut.mask.tolist() == [[True, True, True], [True, False, False]]
    assert cut.token_types is None
    assert cut.labels.tolist() == [2, 0]
    assert [part.dtype for part in (cut.ids, cut.mask, cut.labels)] == [torch.int64, torch.bool, torch.int64]
    assert (cut.rows.tolist(), cut.place.tolist()) == ([7, 5], [0, 1, 2])
    assert cut[6:] == (None, None, 0, None, None)  # what only a packed cut has


def test_packing_by_hand():
    cut = cut_of([[4], [1, 2, 3], [PAD]], True, numbers=[7, 5, 6], labels=np.array([2, 0, 1], np.int32))
    assert cut.ids.tolist() == [[4, 1, 2, 3, PAD]]
    assert (cut.mask, cut.token_types) == (None, None)
    assert (cut.labels.tolist(), cut.rows.tolist()) == ([2, 0, 1], [7, 5, 6])
    assert cut.place.tolist() == [0, 0, 1, 2, 0]
    assert cut.owner.tolist() == [0, 1, 1, 1, 2]
    assert cut.cu_seqlens.tolist() == [0, 1, 4, 5]
    assert (cut.cu_seqlens.dtype, cut.ids.dtype, cut.max_seqlen) == (torch.int32, torch.int64, 3)
    assert cut.blocks.num_tokens == 5


def test_no_mask_where_nothing_is_padded():
    cut = cut_of([[1, 2], [3, 4]], False, pad_id=PAD)
    assert cut.ids.tolist() == [[1, 2], [3, 4]]
    assert (cut.mask, cut.token_types, cut.labels) == (None, None, None)
    assert cut_of([[PAD]], False, pad_id=PAD).mask is None  # the id itself says nothing


def test_token_types_begin_at_the_second_part_and_end_before_the_padding():
    rows, pairs = [np.arange(5), np.arange(3), np.arange(4)], [2, 0, 3]
    padded, packed = (cut_of(rows, form, pairs=pairs).token_types for form in (False, True))
    assert padded.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert packed.tolist() == [[0, 0, 1, 1, 1] + [0, 0, 0] + [0, 0, 0, 1]]
    assert padded.dtype == packed.dtype == torch.int64


@pytest.mark.parametrize("packed", [False, True])
def test_several_labels_are_floats(packed):
    cut = cut_of([[1], [2]], packed, labels=np.array([[1, 0, 1], [0, 0, 0]], np.uint8))
    assert cut.labels.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert cut.labels.dtype == torch.float32


ROWS = st.lists(st.lists(st.integers(0, PAD), min_size=1, max_size=7), min_size=1, max_size=6)


def check_round_trip(make, rows: list[list[int]], pairs: list[int]) -> None:
    """Every row comes back out of its padding, padding ids inside a text included, and its second part too."""
    cut = make([np.array(row) for row in rows], np.array(pairs), np.arange(len(rows)), None, PAD)
    mask = torch.ones_like(cut.ids, dtype=torch.bool) if cut.mask is None else cut.mask
    types = torch.zeros_like(cut.ids) if cut.token_types is None else cut.token_types
    assert cut.ids.shape == (len(rows), max(map(len, rows)))
    assert (cut.mask is None) == (len({len(row) for row in rows}) == 1)
    assert (cut.ids[~mask] == PAD).all()
    for k, row in enumerate(rows):
        assert cut.ids[k][mask[k]].tolist() == row
        wanted = [int(0 < pairs[k] <= place < len(row)) for place in range(cut.ids.shape[1])]
        assert types[k].tolist() == wanted


@given(ROWS, st.data())
def test_every_row_comes_back(rows, data):
    pairs = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    check_round_trip(padded_cut, rows, pairs)


@given(ROWS, st.data())
def test_every_row_comes_back_out_of_a_packed_cut(rows, data):
    pairs = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
    cut = cut_of(rows, True, pairs=pairs)
    types = torch.zeros_like(cut.ids) if cut.token_types is None else cut.token_types
    assert cut.max_seqlen == max(map(len, rows))
    for k, row in enumerate(rows):
        here = slice(*cut.cu_seqlens[k : k + 2].tolist())
        assert cut.ids[0, here].tolist() == row
        assert cut.place[here].tolist() == list(range(len(row)))
        assert cut.owner[here].tolist() == [k] * len(row)
        assert types[0, here].tolist() == [int(0 < pairs[k] <= place) for place in range(len(row))]


def test_bite_a_mask_from_the_padding_id_is_caught():
    def wrong(*parts):
        cut = padded_cut(*parts)
        return cut._replace(mask=cut.ids != PAD)

    check_round_trip(padded_cut, [[1, PAD, 2], [3]], [0, 0])
    with pytest.raises(AssertionError):
        check_round_trip(wrong, [[1, PAD, 2], [3]], [0, 0])


def test_padded_ids_take_any_integer_rows():
    ids, lengths = padded_ids([np.array([1], np.int32), [2, 3]], PAD)
    assert (ids.tolist(), lengths.tolist()) == ([[1, PAD], [2, 3]], [1, 2])
    assert ids.dtype == np.int64


# -- the feed ------------------------------------------------------------------------------------------------


def test_all_cuts_in_order():
    rows = token_rows([[1], [2, 3], [4, 5, 6], [7]], [0, 1, 0, 0], [0, 1, 2, 1])
    feed = Feed(rows, PAD, CPU)
    cuts = [np.array([2, 0]), np.array([1]), np.array([3]), np.array([1, 1])]
    found = list(feed(cuts))
    assert [cut.ids.tolist() for cut in found] == [
        [[4, 5, 6], [1, PAD, PAD]], [[2, 3]], [[7]], [[2, 3], [2, 3]],
    ]  # fmt: skip
    assert [cut.labels.tolist() for cut in found] == [[2, 0], [1], [1], [1, 1]]
    assert [None if cut.token_types is None else cut.token_types.tolist() for cut in found] == [
        None, [[0, 1]], None, [[0, 1], [0, 1]],
    ]  # fmt: skip
    assert [cut.rows.tolist() for cut in found] == [[2, 0], [1], [3], [1, 1]]
    assert list(feed([])) == []
    assert len(list(feed(cuts[:1]))) == 1


@pytest.mark.parametrize("in_blocks", [False, True])
def test_packed_cuts_of_a_file(in_blocks):
    rows = token_rows([[1], [2, 3], [4, 5, 6]], [0, 1, 0], [0, 1, 2])
    one, other = Feed(rows, PAD, CPU, True, in_blocks)([np.array([2, 0]), np.array([1])])
    assert (one.ids.tolist(), other.ids.tolist()) == ([[4, 5, 6, 1]], [[2, 3]])
    assert (one.token_types, other.token_types.tolist()) == (None, [[0, 1]])
    assert (one.rows.tolist(), one.labels.tolist()) == ([2, 0], [2, 0])
    assert isinstance(one.blocks, Blocks) == in_blocks


def test_one_cut_ahead_and_its_time(monkeypatch):
    """The next cut is made before the loop asks for it, and only the loop's own waiting is counted."""
    now, made = 0.0, []
    monkeypatch.setattr(batches.time, "perf_counter", lambda: now)
    feed = Feed(token_rows([[1], [2], [3]], [0, 0, 0], [0, 1, 0]), PAD, CPU)

    def cut(index):
        nonlocal now
        now += 1.0  # what making a cut takes
        made.append(int(index[0]))
        return index

    monkeypatch.setattr(feed, "cut", cut)
    for step, _ in enumerate(feed([np.array([k]) for k in range(3)])):
        assert made == list(range(step + 1))  # on the loop's side nothing is queued twice
        now += 10.0  # what the step takes
    assert made == [0, 1, 2]
    assert feed.wait_s == 3.0


def test_a_feed_does_not_change_its_rows():
    rows = token_rows([[1, 2], [3]], [0, 0], np.array([[1, 0], [0, 1]], np.uint8))
    before = rows.ids.copy()
    for cut in Feed(rows, PAD, CPU)([np.array([0, 1])]):
        cut.ids.fill_(5)
        cut.labels.fill_(5)
    assert (rows.ids == before).all()
    assert rows.labels.tolist() == [[1, 0], [0, 1]]


def test_on_the_cpu_nothing_is_copied():
    for packed in (False, True):
        cut = cut_of([[1]], packed)
        assert to_device(cut, CPU) is cut


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_on_cuda_every_part_goes_there(packed):
    rows = token_rows([[1], [2, 3], [4, 5, 6]], [0, 1, 0], [0, 1, 2])
    cuts = [np.array([2, 1, 0]), np.array([1])]
    for found, wanted in zip(
        Feed(rows, PAD, torch.device("cuda"), packed)(cuts), Feed(rows, PAD, CPU, packed)(cuts), strict=True
    ):
        for part, name in zip(found, Cut._fields, strict=True):
            there = getattr(wanted, name)
            if isinstance(there, Blocks):
                pairs = zip((part.tokens, part.places, part.pads), (there.tokens, there.places, there.pads))
                assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in pairs)
            elif isinstance(there, torch.Tensor):
                assert part.is_cuda
                assert torch.equal(part.cpu(), there)
            else:
                assert part == there
