"""core/rank_batches.py: cuts by hand in every layout, what a question costs, and feeds that hold to a budget."""

import numpy as np
import pytest
import torch

from core.batches import Cut, to_device
from core.branches import Trees
from core.plan import make_plan
from core.rank_batches import LAYOUTS, RankCut, RankFeed, make_rank_cut, row_tokens
from core.rank_cache import rows_in_memory
from tests.conftest import rank_rows
from tests.core.test_rank_cache import read

CPU = torch.device("cpu")
PREFIXES = [np.array([5, 6, 7]), np.array([8, 9])]
BRANCHES = [[np.array([10, 11]), np.array([12])], [np.array([13]), np.array([14, 15, 16]), np.array([17])]]
INDEX, QUESTIONS = np.array([40, 3]), [40, 40, 3, 3, 3]
REWARDS = np.array([1.0, 0.5, 0.0, 2.0, 0.25], np.float32)


def cut_of(layout: str, typed: bool = False, in_blocks: bool = True) -> RankCut:
    return make_rank_cut(PREFIXES, BRANCHES, INDEX, REWARDS, 4, layout, 1, in_blocks, typed)


# -- one cut by hand --------------------------------------------------------------------------------------------


def test_a_shared_cut():
    cut = cut_of("shared")
    tokens = cut.tokens
    assert tokens.ids.tolist() == [[5, 6, 7, 10, 11, 12, 8, 9, 13, 14, 15, 16, 17]]
    assert tokens.place.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 2, 3, 4, 2]
    assert tokens.owner.tolist() == [0] * 6 + [1] * 7
    assert (tokens.cu_seqlens.tolist(), tokens.max_seqlen) == ([0, 6, 13], 7)
    assert tokens.rows.tolist() == [40, 3]
    assert [tree[:4] for tree in tokens.trees.rows] == [(3, 2, 2, 3), (2, 3, 3, 5)]
    assert (tokens.blocks, tokens.mask, tokens.labels, tokens.token_types) == (None,) * 4
    assert cut.last.tolist() == [4, 5, 8, 11, 12]
    assert tokens.ids[0, cut.last].tolist() == [own[-1] for row in BRANCHES for own in row]


def test_a_packed_cut():
    tokens = cut_of("packed").tokens
    assert tokens.ids.tolist() == [
        [5, 6, 7, 10, 11, 5, 6, 7, 12, 8, 9, 13, 8, 9, 14, 15, 16, 8, 9, 17],
    ]
    assert tokens.cu_seqlens.tolist() == [0, 5, 9, 12, 17, 20]
    assert tokens.rows.tolist() == QUESTIONS  # what dropout masks hang on
    assert tokens.blocks is not None
    assert cut_of("packed", in_blocks=False).tokens.blocks is None
    assert cut_of("packed").last is None
    types = cut_of("packed", typed=True).tokens.token_types[0]
    assert types.split([5, 4, 3, 5, 3])[1].tolist() == [0, 0, 0, 1]
    assert int(types.sum()) == sum(len(ids) for own in BRANCHES for ids in own)


def test_a_padded_cut():
    tokens = cut_of("padded").tokens
    assert tokens.ids.tolist() == [[5, 6, 7, 10, 11], [5, 6, 7, 12, 1], [8, 9, 13, 1, 1], [8, 9, 14, 15, 16],
                                   [8, 9, 17, 1, 1]]  # fmt: skip
    assert tokens.mask.sum(dim=1).tolist() == [5, 4, 3, 5, 3]
    assert tokens.rows.tolist() == QUESTIONS
    assert tokens.trees is None
    types = cut_of("padded", typed=True).tokens.token_types
    assert types.tolist()[2] == [0, 0, 1, 0, 0]  # padding has type 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_scores_and_rewards_stand(layout):
    cut = cut_of(layout)
    assert cut.keep.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert cut.rewards.tolist() == [[1.0, 0.5, 0.0, 0.0], [0.0, 2.0, 0.25, 0.0]]
    assert cut.slots.tolist() == [0, 1, 4, 5, 6]
    assert cut.questions.tolist() == QUESTIONS
    assert cut.rewards.flatten()[cut.slots].tolist() == REWARDS.tolist()


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("layout, front", [("shared", [2, 7]), ("packed", [2, 10]), ("padded", [2, 11])])
def test_where_each_prefix_ends(layout, front, typed):
    """Where it first stands: packed after rows of 5 and 4 tokens, padded after two rows of 5 places."""
    cut = cut_of(layout, typed)
    assert (cut.front.tolist(), cut.front.dtype) == (front, torch.int64)
    assert cut.tokens.ids.flatten()[cut.front].tolist() == [7, 9]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_the_prefixes_of_a_feed_s_cut_end(layout, tmp_path):
    rows = read(rank_rows(20), tmp_path)
    index = np.array([7, 2, 19, 0])
    cut = RankFeed(rows, 0, CPU, layout, True, False).cut(index)
    tokens, row = cut.tokens, 0  # row: of the question's first candidate
    for place, question in enumerate(index):
        prefix, row_of = rows.question(question)[0].tolist(), place if layout == "shared" else row
        begin = row * tokens.ids.shape[1] if layout == "padded" else int(tokens.cu_seqlens[row_of])
        assert int(cut.front[place]) == begin + len(prefix) - 1
        assert tokens.ids.flatten()[begin : begin + len(prefix)].tolist() == prefix
        row += int(rows.sizes[question])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_of_a_cut_goes_to_the_device(layout):
    """The meta device stands for CUDA's: what is left on the host is numbers alone."""
    cut = to_device(cut_of(layout), torch.device("meta"))
    assert isinstance(cut, RankCut)
    assert isinstance(cut.tokens, Cut)
    parts = [*cut, *cut.tokens]
    assert {part.device.type for part in parts if torch.is_tensor(part)} == {"meta"}
    if layout == "shared":
        assert {tree.places.device.type for tree in cut.tokens.trees.rows if tree.places is not None} == {
            "meta"
        }
    assert isinstance(cut.tokens.trees, Trees if layout == "shared" else type(None))


# -- what a question costs --------------------------------------------------------------------------------------


def test_tokens_of_a_question_by_hand():
    coded = [(list(p), [list(ids) for ids in own], 0) for p, own in zip(PREFIXES, BRANCHES)]
    rows = rows_in_memory(coded, [REWARDS[:2], REWARDS[2:]], "here")
    assert row_tokens(rows, "shared").tolist() == [3 + 3, 2 + 5]
    assert row_tokens(rows, "packed").tolist() == [2 * 3 + 3, 3 * 2 + 5]
    assert row_tokens(rows, "padded").tolist() == [3 * (3 + 2), 3 * (2 + 3)]  # K of the file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuts_hold_to_the_budget(layout, tmp_path):
    rows = read(rank_rows(60), tmp_path)
    feed = RankFeed(rows, 0, CPU, layout, True, False)
    budget, packed = 120, layout != "padded"
    plan = make_plan(feed.lengths, 24, budget, 0, "cpu", packed=packed)
    seen = []
    for step in range(plan.steps_per_epoch):
        for index in plan.cuts(plan.rows(step), budget, 0, 1):
            cut = feed.cut(index)
            numel = cut.tokens.ids.numel()
            assert numel <= budget
            assert numel <= plan.cost([index])
            assert not packed or numel == feed.lengths[index].sum()
            seen += index.tolist()
    assert set(seen) == set(range(60))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_feed_s_cut_holds_its_questions(layout, tmp_path):
    rows = read(rank_rows(20), tmp_path)
    feed = RankFeed(rows, 0, CPU, layout, True, False)
    assert feed.num_scores == 3
    index = np.array([7, 2, 19])
    cut = feed.cut(index)
    assert cut.rewards.tolist() == np.nan_to_num(rows.table(rows.rewards)[index]).tolist()
    assert cut.keep.sum(dim=1).tolist() == rows.sizes[index].tolist()
    assert cut.questions.tolist() == np.repeat(index, rows.sizes[index]).tolist()
    alone = [feed.cut([k]) for k in index]
    assert sum(one.tokens.ids.numel() for one in alone) == cut.tokens.ids.numel() or layout == "padded"
    assert torch.cat([one.rewards for one in alone]).tolist() == cut.rewards.tolist()


def test_a_question_s_candidates_apart(tmp_path):
    rows = read(rank_rows(20), tmp_path)
    feed = RankFeed(rows, 0, CPU, "shared", True, False)
    apart, (prefix, branches) = feed.apart(7), rows.question(7)
    assert [cut.tokens.ids.tolist() for cut in apart] == [[[*prefix, *ids]] for ids in branches]
    assert [cut.rewards.tolist() for cut in apart] == [
        [[r]] for r in rows.rewards[rows.first[7] : rows.first[8]]
    ]
    assert [cut.questions.tolist() for cut in apart] == [[7]] * len(branches)
    assert all(cut.tokens.mask is None and cut.tokens.trees is None for cut in apart)


def test_prefixes_are_read_once():
    """At P = 100, S = 5 and K = 8 a shared question has 140 tokens, a packed one 840."""
    coded = [(list(range(100)), [[1, 2, 3, 4, 5]] * 8, 0)]
    rows = rows_in_memory(coded, [np.arange(8)], "here")
    assert [int(row_tokens(rows, layout)[0]) for layout in LAYOUTS] == [140, 840, 840]
