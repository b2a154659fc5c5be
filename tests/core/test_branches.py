"""core/branches.py and what cuts make of it: by hand, and against what each branch would be alone behind its prefix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import packing
from core.batches import Feed, expanded, make_cut
from core.branches import branch_mask, branch_row
from core.cache import RowSource
from core.packing import Blocks
from core.rows import RowFormat
from core.tokens import Encoder
from tests.conftest import tiny_tokenizer, toy_rows, write_jsonl
from tests.helpers import cut_of

quick = settings(max_examples=60, deadline=None, derandomize=True)
BRANCHES = [(8, 9), (), (4,)]
PREFIX = np.array([5, 6, 7])


def tensors(prefix, branches) -> tuple[torch.Tensor, torch.Tensor]:
    """branch_mask's branch and place of one row."""
    _, place, branch = branch_row(np.asarray(prefix), branches)
    return torch.from_numpy(branch), torch.from_numpy(place)


# -- one row ----------------------------------------------------------------------------------------------------


def test_a_row_by_hand():
    ids, place, branch = branch_row(PREFIX, BRANCHES)
    assert ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert place.tolist() == [0, 1, 2, 3, 4, 3]  # each branch goes on where the prefix ends
    assert branch.tolist() == [0, 0, 0, 1, 1, 3]


@pytest.mark.parametrize("branches", [[], [()], [(), ()]])
def test_a_row_without_branches_is_its_prefix(branches):
    ids, place, branch = branch_row(PREFIX, branches)
    assert (ids.tolist(), place.tolist(), branch.tolist()) == ([5, 6, 7], [0, 1, 2], [0, 0, 0])


SEEN = """
1.....
11....
111...
1111..
11111.
111..1
"""
NEAR = """
1.....
11....
.11...
..11..
...11.
..1..1
"""


@pytest.mark.parametrize("drawn, window", [(SEEN, None), (SEEN, 5), (NEAR, 2)])
def test_a_mask_by_hand(drawn, window):
    wanted = torch.tensor([[c == "1" for c in line] for line in drawn.split()])
    found = branch_mask(*tensors(PREFIX, BRANCHES), window)
    assert found.dtype == torch.bool
    assert torch.equal(found, wanted)


def slow_mask(prefix: int, sizes: list[int], window: int | None) -> list[list[bool]]:
    """A query sees what it would see in a row of its prefix and its branch alone."""
    paths, first = [list(range(prefix))], prefix  # the numbers of the tokens in each such row
    for size in sizes:
        paths.append([*range(prefix), *range(first, first + size)])
        first += size
    seen = [[False] * first for _ in range(first)]
    for path in paths:
        for i, query in enumerate(path):
            for j, key in enumerate(path[: i + 1]):
                seen[query][key] = window is None or i - j < window
    return seen


@quick
@given(st.integers(1, 6), st.lists(st.integers(0, 4), max_size=4), st.none() | st.integers(1, 6))
def test_every_branch_sees_what_it_would_alone(prefix, sizes, window):
    branches = [tuple(range(size)) for size in sizes]
    found = branch_mask(*tensors(range(prefix), branches), window)
    assert found.tolist() == slow_mask(prefix, sizes, window)


def test_rows_of_a_batch_have_masks_of_their_own():
    one, other = tensors([5, 6, 7], [(1,), (2,)]), tensors([5], [(1, 2), (3, 4)])
    both = branch_mask(torch.stack([one[0], other[0]]), torch.stack([one[1], other[1]]))
    assert torch.equal(both, torch.stack([branch_mask(*one), branch_mask(*other)]))
    assert not torch.equal(both[0], both[1])


# -- cuts -------------------------------------------------------------------------------------------------------

ROWS = [[5, 6, 7], [10]]


def test_a_packed_cut_by_hand():
    cut = cut_of(ROWS, True, numbers=[40, 3], labels=[2, 0], branches=BRANCHES)
    assert cut.ids.tolist() == [[5, 6, 7, 8, 9, 4, 10, 8, 9, 4]]
    assert cut.place.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 1]
    assert cut.owner.tolist() == [0] * 6 + [1] * 4
    assert cut.cu_seqlens.tolist() == [0, 6, 10]
    assert (cut.max_seqlen, cut.rows.tolist(), cut.labels.tolist()) == (6, [40, 3], [2, 0])
    assert cut.blocks.branch.tolist() == [0, 0, 0, 1, 1, 3, 0, 1, 1, 3]
    assert cut.blocks.place is not None


def test_a_padded_cut_by_hand():
    cut = cut_of(ROWS, False, numbers=[40, 3], labels=[2, 0], pad_id=1, branches=BRANCHES)
    assert cut.ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 1, 1], [5, 6, 7, 4, 1],
                                [10, 8, 9, 1, 1], [10, 1, 1, 1, 1], [10, 4, 1, 1, 1]]  # fmt: skip
    assert cut.mask.sum(dim=1).tolist() == [5, 3, 4, 3, 1, 2]
    assert cut.rows.tolist() == [40, 40, 40, 3, 3, 3]
    assert cut.labels.tolist() == [2, 0]
    assert [row.tolist() for row in expanded([np.array([5])], [(1, 2), ()])] == [[5, 1, 2], [5]]


def test_branches_ask_for_blocks():
    """Flash attention knows no trees."""
    rows = [np.array(row) for row in ROWS]
    parts = rows, np.zeros(2, np.int64), np.arange(2), None, 0, True
    assert make_cut(*parts, in_blocks=False).blocks is None
    assert make_cut(*parts, in_blocks=False, branches=BRANCHES).blocks is not None
    assert make_cut(*parts, in_blocks=True).blocks.branch is None


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cost", [0, 10**6])  # a block for each length, or one for all
def test_blocks_have_each_row_s_mask_and_no_padding(window, cost, monkeypatch):
    monkeypatch.setattr(packing, "BLOCK_COST", cost)
    prefixes = [[5] * n for n in (9, 2, 1, 20)]
    cut = cut_of(prefixes, True, branches=BRANCHES)
    lowest, found = torch.finfo(torch.float32).min, {}
    biases = cut.blocks.biases(2, torch.float32, True, window)
    assert (len(biases) == 1) == (cost > 0)
    for (_, b, width, members, _), bias in zip(cut.blocks.blocks, biases, strict=True):
        bias = bias.view(b, 2, width, width)
        assert torch.equal(bias[:, 0], bias[:, 1])
        found |= {int(row): bias[k, 0] for k, row in enumerate(members)}
    for row, prefix in enumerate(prefixes):
        seen = branch_mask(*tensors(prefix, BRANCHES), window)
        size = len(seen)
        assert torch.equal(found[row][:size, :size] == 0, seen)
        assert (found[row][:size, size:] == lowest).all()  # padding inside the block


def test_a_feed_counts_the_branches_tokens(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", toy_rows(12))
    encoder = Encoder(tiny_tokenizer(), 16, "head", False)
    rows = RowSource(encoder, RowFormat(), str(tmp_path / "cache")).open(path, "--train_data")
    feed = Feed(rows, 0, torch.device("cpu"), packed=True, branches=BRANCHES)
    assert feed.lengths.tolist() == (rows.lengths + 3).tolist()
    cut = feed.cut(np.array([4, 1]))
    assert cut.cu_seqlens.diff().tolist() == feed.lengths[[4, 1]].tolist()
    assert Feed(rows, 0, torch.device("cpu"), packed=True).lengths is rows.lengths
    assert isinstance(cut.blocks, Blocks)
