"""The batch plan: which rows make which optimiser step, micro-batch ("cut") and rank. Pure functions of lengths.

Which rows make a logical batch depends on the seed and the epoch alone, never on the budget or the world
size. Every rank builds the same plan and takes its own slice, so nothing has to be sent or saved.
"""

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

from core.errors import UserError

# What a cut costs beside its padded tokens, in tokens: the launches and weight casts of a forward and backward
# pass. CPU measured (bench/NOTES.md); CUDA an assumption: about 10 ms at 100 k tokens/s.
CUT_COST = {"cpu": 64, "mps": 256, "cuda": 1024}


def epoch_order(num_rows: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The order in which an epoch visits the rows.

    Args:    weights: (num_rows,) float64 or None | relative chance of each row; None visits each row once.
    Returns: (num_rows,) int64; with weights, num_rows draws with replacement.
    """
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    if weights is None:
        return rng.permutation(num_rows)
    cumulative = np.cumsum(weights, dtype=np.float64)
    draws = np.searchsorted(cumulative, rng.random(num_rows) * cumulative[-1], side="right")
    return np.minimum(draws, num_rows - 1)


def class_balance_weights(labels: np.ndarray) -> np.ndarray:
    """Chance of each row such that every class is drawn equally often.

    Args:    labels: (n,) int class index, or (n, C) 0/1: a row's chance is the mean of its labels' inverse
             counts; a row without a label counts as a class of its own.
    Returns: (n,) float64, summing to 1.
    """
    if labels.ndim == 1:
        weights = 1.0 / np.bincount(labels)[labels]
    else:
        bare = labels.sum(axis=1) == 0
        onehot = np.column_stack([labels, bare]).astype(np.float64)
        inverse = 1.0 / np.maximum(onehot.sum(axis=0), 1)
        weights = onehot @ inverse / onehot.sum(axis=1)
    return weights / weights.sum()


def cut_by_budget(rows: np.ndarray, lengths: np.ndarray, max_tokens: int, cut_cost: int) -> list[np.ndarray]:
    """Sort rows by length, longest first, and cut them where padding and the cuts' own cost are least in all.

    Args:    rows: (B,) int64 row indices | lengths: (n,) tokens a row | max_tokens: padded tokens a cut, rows x
             longest, never exceeded | cut_cost: what a cut costs beside its tokens, in tokens.
    Returns: list of (b,) int64; every row is in exactly one cut.
    Cost:    O(B x rows a cut), by dynamic programming over the sorted rows: the best cost of the first j rows is
             the least, over the row i that opens the last cut, of best[i] + (j - i) x length[i] + cut_cost.
    """
    order = rows[np.lexsort((rows, -lengths[rows].astype(np.int64)))]
    longest = lengths[order].astype(np.int64)
    num_rows = len(order)
    best, opens = np.zeros(num_rows + 1, np.int64), np.zeros(num_rows + 1, np.int64)
    first = 0  # the earliest row that can open the cut that ends before row j: later ones always can
    for j in range(1, num_rows + 1):
        while first < j - 1 and (j - first) * longest[first] > max_tokens:
            first += 1
        size = np.arange(j - first, 0, -1)
        costs = best[first:j] + size * longest[first:j] + cut_cost
        k = int(np.argmin(costs))
        best[j], opens[j] = costs[k], first + k
    cuts, end = [], num_rows
    while end > 0:
        cuts.append(order[opens[end] : end])
        end = int(opens[end])
    return cuts[::-1]


def pack_by_budget(
    rows: np.ndarray, lengths: np.ndarray, max_tokens: int, world: int
) -> list[list[np.ndarray]]:
    """Deal rows to as few packed cuts as fit, the same number for each rank and level in tokens.

    Each row, longest first, goes to the cut with the fewest tokens (Graham 1969, LPT); where that overflows, to the
    fullest cut that still holds it (best fit); where that fails too, there is one more cut a rank.

    Args:    rows: (B,) int64 row indices | lengths: (n,) tokens a row, each <= max_tokens | max_tokens: a cut.
    Returns: for each rank a list of (b,) int64, longest row first; every row is in exactly one cut.
    """
    order = rows[np.lexsort((rows, -lengths[rows].astype(np.int64)))]
    sizes = lengths[order].tolist()
    num_cuts = max(1, -(-sum(sizes) // (max_tokens * world)))
    while True:
        places = _level(sizes, num_cuts * world, max_tokens) or _best_fit(sizes, num_cuts * world, max_tokens)
        if places is not None:
            break
        num_cuts += 1
    hands: list[list[np.ndarray]] = [[] for _ in range(world)]
    places = np.asarray(places)
    for cut in range(num_cuts * world):
        members = order[places == cut]
        if len(members):
            hands[cut % world].append(members)
    return hands


def _level(sizes: list[int], num_cuts: int, max_tokens: int) -> list[int] | None:
    """The cut of each row when each goes to the emptiest, None when one overflows."""
    loads = [(0, cut) for cut in range(num_cuts)]
    places = []
    for size in sizes:
        load, cut = loads[0]
        if load and load + size > max_tokens:  # a row over a lowered budget gets a cut of its own
            return None
        heapq.heapreplace(loads, (load + size, cut))
        places.append(cut)
    return places


def _best_fit(sizes: list[int], num_cuts: int, max_tokens: int) -> list[int] | None:
    """The cut of each row when each goes where the least room stays, None when it fits nowhere."""
    room = np.full(num_cuts, max_tokens)
    places = []
    for size in sizes:
        fits = (room >= size) | (room == max_tokens)
        if not fits.any():
            return None
        cut = int(np.argmin(np.where(fits, room, 2 * max_tokens)))
        room[cut] -= size
        places.append(cut)
    return places


def deal(cuts: list[np.ndarray], lengths: np.ndarray, world: int) -> list[list[np.ndarray]]:
    """Deal cuts to ranks, the dearest first and always to the rank with the fewest padded tokens so far."""
    loads = [(0, rank) for rank in range(world)]
    hands: list[list[np.ndarray]] = [[] for _ in range(world)]
    costs = [len(cut) * int(lengths[cut[0]]) for cut in cuts]
    for index in sorted(range(len(cuts)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        hands[rank].append(cuts[index])
        heapq.heappush(loads, (load + costs[index], rank))
    return hands


def deal_level(
    rows: np.ndarray, lengths: np.ndarray, max_tokens: int, world: int, cut_cost: int
) -> list[list[np.ndarray]]:
    """Cut rows by a budget of at most max_tokens and deal the cuts so that the busiest rank has least to do.

    With several ranks a smaller cut can level the load: budgets that give every rank 1 to 4 cuts are tried,
    and the one whose busiest rank has the fewest padded tokens wins (ties: the largest budget).
    """
    if world == 1:
        return [cut_by_budget(rows, lengths, max_tokens, cut_cost)]
    total = int(lengths[rows].sum())
    longest = int(lengths[rows].max())
    budgets = {max_tokens} | {
        min(max_tokens, max(longest, math.ceil(total / (world * k)))) for k in (1, 2, 3, 4)
    }
    best, best_load = None, None
    for budget in sorted(budgets, reverse=True):
        hands = deal(cut_by_budget(rows, lengths, budget, cut_cost), lengths, world)
        load = max(sum(len(cut) * int(lengths[cut[0]]) for cut in hand) for hand in hands)
        if best_load is None or load < best_load:
            best, best_load = hands, load
    return best


def fillers(hands: list[list[np.ndarray]], lengths: np.ndarray, rank: int) -> list[np.ndarray]:
    """Cuts that count nothing, so that this rank runs as many as the one with the most: the shortest row each time."""
    num_missing = max(map(len, hands)) - len(hands[rank])
    if not num_missing:
        return []
    rows = np.concatenate([cut for hand in hands for cut in hand])
    return [rows[[np.argmin(lengths[rows])]]] * num_missing


@dataclass
class Plan:
    """The steps of a run over one set of rows; see make_plan."""

    lengths: np.ndarray  # (n,) int32 tokens a row
    batch_size: int
    seed: int
    cut_cost: int  # tokens
    packed: bool
    weights: np.ndarray | None
    steps_per_epoch: int
    _epoch: int = field(default=-1, repr=False)
    _order: np.ndarray | None = field(default=None, repr=False)

    def rows(self, step: int) -> np.ndarray:
        """(B,) int64: the logical batch of a step, over all ranks. The last batch of an epoch can be shorter."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(len(self.lengths), self.seed, epoch, self.weights)
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]

    def cuts(self, rows: np.ndarray, max_tokens: int, rank: int, world: int) -> list[np.ndarray]:
        """This rank's cuts of a logical batch; a rank can be without any when rows < world."""
        return self.hands(rows, max_tokens, world)[rank]

    def hands(self, rows: np.ndarray, max_tokens: int, world: int) -> list[list[np.ndarray]]:
        """Every rank's cuts of a logical batch."""
        if self.packed:
            return pack_by_budget(rows, self.lengths, max_tokens, world)
        return deal_level(rows, self.lengths, max_tokens, world, self.cut_cost)

    def fillers(self, rows: np.ndarray, max_tokens: int, rank: int, world: int) -> list[np.ndarray]:
        """What this rank runs behind its cuts where all ranks must run equally many; see fillers."""
        return fillers(self.hands(rows, max_tokens, world), self.lengths, rank)

    def cost(self, cuts: list[np.ndarray]) -> int:
        """Tokens that the cuts cost: packed those of their rows, padded rows x longest."""
        if self.packed:
            return sum(int(self.lengths[cut].sum()) for cut in cuts)
        return padded_tokens(cuts, self.lengths)


def make_plan(
    lengths: np.ndarray,
    batch_size: int,
    max_tokens: int | str,
    seed: int,
    device_type: str = "cpu",
    weights: np.ndarray | None = None,
    packed: bool = False,
) -> Plan:
    """The plan of a run.

    Args:    lengths: (n,) tokens a row | batch_size: rows an optimiser step, over all ranks | max_tokens: tokens a
             cut, or auto (nothing to check) | device_type: whose CUT_COST shapes padded cuts (never the batches) |
             weights: (n,) chance of each row, None for each row once an epoch.
    Raises:  UserError when a single row is longer than max_tokens.
    """
    if max_tokens != "auto":
        check_budget(lengths, max_tokens)
    steps_per_epoch = math.ceil(len(lengths) / batch_size)
    return Plan(lengths, batch_size, seed, CUT_COST[device_type], packed, weights, steps_per_epoch)


def check_budget(lengths: np.ndarray, max_tokens: int, path: str = "") -> None:
    """Raise UserError when a single row is longer than max_tokens: it would never fit a cut. path: of the rows."""
    longest = int(np.argmax(lengths))
    if lengths[longest] > max_tokens:
        raise UserError(
            f"{path + ': ' if path else ''}row {longest} has {int(lengths[longest])} tokens, more than "
            f"--max_tokens {max_tokens}: raise --max_tokens or lower --max_length"
        )


def eval_cuts(
    lengths: np.ndarray,
    max_tokens: int,
    rank: int,
    world: int,
    device_type: str = "cpu",
    packed: bool = False,
) -> list[np.ndarray]:
    """This rank's cuts of all rows, each row on exactly one rank, for scoring."""
    return eval_hands(lengths, max_tokens, world, device_type, packed)[rank]


def eval_hands(
    lengths: np.ndarray, max_tokens: int, world: int, device_type: str = "cpu", packed: bool = False
) -> list[list[np.ndarray]]:
    """Every rank's cuts of all rows; see eval_cuts."""
    if len(lengths) == 0:
        return [[] for _ in range(world)]
    rows = np.arange(len(lengths))
    if packed:
        return pack_sorted(rows, lengths, max_tokens, world)
    return deal_level(rows, lengths, max_tokens, world, CUT_COST[device_type])


def pack_sorted(rows: np.ndarray, lengths: np.ndarray, max_tokens: int, world: int) -> list[list[np.ndarray]]:
    """Packed cuts of many rows, filled one after another with rows of like length, and dealt to ranks."""
    order = rows[np.lexsort((rows, -lengths[rows].astype(np.int64)))]
    ends = np.cumsum(lengths[order], dtype=np.int64)
    max_tokens = min(
        max_tokens, max(int(lengths[order[0]]), -(-int(ends[-1]) // world))
    )  # something for every rank
    cuts, first = [], 0
    while first < len(order):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + max_tokens, side="right")))
        cuts.append(order[first:last])
        first = last
    return [cuts[rank::world] for rank in range(world)]


def padded_tokens(cuts: list[np.ndarray], lengths: np.ndarray) -> int:
    """Tokens that the cuts cost with padding: rows x longest, summed."""
    return sum(len(cut) * int(lengths[cut[0]]) for cut in cuts)
