"""A cut of rows as tensors on the device, one cut ahead of the loop: packed, or padded.

B rows, T padded tokens, N packed tokens, C classes.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from core.branches import Trees, branch_row
from core.cache import TokenRows
from core.packing import Blocks
from core.profile import region


class Cut(NamedTuple):
    """One micro-batch. Packed, it is one row of N tokens and has `owner` and `cu_seqlens`; padded, it has neither, and
    `mask` is None where nothing is padded, so that no mask is built and no host waits to find out."""

    ids: torch.Tensor  # (B, T) or (1, N) int64
    mask: torch.Tensor | None  # (B, T) bool, True means keep
    token_types: torch.Tensor | None  # as ids, for pairs
    labels: torch.Tensor | None  # (B,) int64, or (B, C) float32
    rows: torch.Tensor  # (B,) int64: the rows' numbers in their file
    place: torch.Tensor  # (T,) or (N,) int64: each token's place in its row
    owner: torch.Tensor | None = None  # (N,) int64: which of the B rows a token is of
    cu_seqlens: torch.Tensor | None = None  # (B + 1,) int32: where rows begin and end
    max_seqlen: int = 0  # tokens of the longest row
    blocks: Blocks | None = None  # the rows for attention, where there is no variable-length kernel
    trees: Trees | None = None  # the rows for attention, where each is a prefix and branches of its own


def labels_tensor(labels: np.ndarray | None) -> torch.Tensor | None:
    """(B,) class indices as int64, (B, C) 0/1 as float32."""
    if labels is None:
        return None
    return torch.from_numpy(labels.astype(np.int64 if labels.ndim == 1 else np.float32))


def padded_ids(rows: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, padded on the right: (B, T) int64 and their lengths (B,)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.full((len(rows), lengths.max()), pad_id, np.int64)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = row
    return ids, lengths


def padded_cut(
    ids: list[np.ndarray], pair_starts: np.ndarray, index: np.ndarray, labels: np.ndarray | None, pad_id: int
) -> Cut:
    """A padded cut on the host.

    Args: ids: of each row | pair_starts: (B,) index at which token type 1 begins, 0 for nowhere | index: (B,) the
          rows' numbers | labels: (B,) class indices, (B, C) 0/1, or None.
    """
    padded, lengths = padded_ids(ids, pad_id)
    place = np.arange(padded.shape[1])
    mask = types = None
    if lengths.min() < padded.shape[1]:
        mask = torch.from_numpy(place < lengths[:, None])
    if pair_starts.any():
        second = (place >= pair_starts[:, None]) & (pair_starts[:, None] > 0) & (place < lengths[:, None])
        types = torch.from_numpy(second.astype(np.int64))
    numbers = torch.from_numpy(index.astype(np.int64))
    return Cut(torch.from_numpy(padded), mask, types, labels_tensor(labels), numbers, torch.from_numpy(place))


def packed_cut(
    ids: list[np.ndarray],
    pair_starts: np.ndarray,
    index: np.ndarray,
    labels: np.ndarray | None,
    in_blocks: bool = True,
    branches: Sequence[Sequence[int]] = (),
    each: Sequence[Sequence[Sequence[int]]] = (),
) -> Cut:
    """A packed cut on the host; arguments as padded_cut's.

    Args: in_blocks: build what block attention needs | branches: token ids that stand behind every row, each as if it
          were alone there (core/branches.py); they need block attention | each: other branches behind each row; they
          need the attention of trees.
    """
    behind = each or ([branches] * len(ids) if branches else ())
    rows = [branch_row(*pair) for pair in zip(ids, behind, strict=True)] if behind else None
    ids = ids if rows is None else [row[0] for row in rows]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(len(ids)), lengths)
    place, trees = np.arange(cu_seqlens[-1]) - cu_seqlens[owner], (None, None)
    if rows is not None:
        place = np.concatenate([row[1] for row in rows])
        trees = torch.from_numpy(np.concatenate([row[2] for row in rows])), torch.from_numpy(place)
    types = None
    if pair_starts.any():
        second = (place >= pair_starts[owner]) & (pair_starts[owner] > 0)
        types = torch.from_numpy(second.astype(np.int64))[None]
    return Cut(
        torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        None,
        types,
        labels_tensor(labels),
        torch.from_numpy(index.astype(np.int64)),
        torch.from_numpy(place),
        torch.from_numpy(owner),
        torch.from_numpy(cu_seqlens.astype(np.int32)),
        int(lengths.max()),
        Blocks(lengths, *trees) if in_blocks or branches else None,
    )


def expanded(ids: list[np.ndarray], branches: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Each row once for every branch, with the branch behind it: (B x K) rows, for models that cannot pack."""
    return [np.concatenate([row, np.asarray(branch, row.dtype)]) for row in ids for branch in branches]


def row_costs(lengths: np.ndarray, branches: Sequence[Sequence[int]], packed: bool) -> np.ndarray:
    """Tokens of each row with what stands behind it: packed once, padded once for every branch."""
    if not branches:
        return lengths
    sizes = [len(branch) for branch in branches]
    return lengths + sum(sizes) if packed else len(sizes) * (lengths + max(sizes))


def make_cut(
    ids: list[np.ndarray],
    pair_starts: np.ndarray,
    index: np.ndarray,
    labels: np.ndarray | None,
    pad_id: int,
    packed: bool,
    in_blocks: bool = True,
    branches: Sequence[Sequence[int]] = (),
) -> Cut:
    """packed_cut or padded_cut; padded rows are repeated, one for each branch (`labels` are not)."""
    if packed:
        return packed_cut(ids, pair_starts, index, labels, in_blocks, branches)
    if not branches:
        return padded_cut(ids, pair_starts, index, labels, pad_id)
    repeated = np.repeat(np.arange(len(ids)), len(branches))
    cut = padded_cut(expanded(ids, branches), pair_starts[repeated], index[repeated], None, pad_id)
    return cut._replace(labels=labels_tensor(labels))


def to_device(cut: NamedTuple, device: torch.device) -> NamedTuple:
    """The cut, or what holds one, on the device. Cost: H2D, from pinned memory and without a host wait on CUDA."""
    if device.type == "cpu":
        return cut
    pinned = device.type == "cuda"

    def move(part):
        if isinstance(part, Cut):
            return Cut(*map(move, part))
        if not isinstance(part, torch.Tensor | Blocks | Trees):
            return part
        return (part.pin_memory() if pinned else part).to(device, non_blocking=pinned)

    return type(cut)(*map(move, cut))


class Feed:
    """Cuts of one file's rows as tensors; wait_s adds up the time that its caller waited for them."""

    def __init__(
        self,
        rows: TokenRows,
        pad_id: int,
        device: torch.device,
        packed: bool = False,
        in_blocks: bool = True,
        branches: Sequence[Sequence[int]] = (),
        lengths: np.ndarray | None = None,
    ):
        """packed, in_blocks, branches: see packed_cut | lengths: (n,) tokens that a row costs, if not its own."""
        self.rows, self.pad_id, self.device, self.wait_s = rows, pad_id, device, 0.0
        self.packed, self.in_blocks, self.branches = packed, in_blocks, branches
        self.lengths = row_costs(rows.lengths, branches, packed) if lengths is None else lengths

    @property
    def num_scores(self) -> int:
        """Scores of a row."""
        return len(self.rows.label_names)

    @region("data")
    def cut(self, index: np.ndarray) -> Cut:
        """The cut of these rows, on the device."""
        starts = self.rows.starts
        ids = [self.rows.ids[starts[k] : starts[k + 1]] for k in index]
        parts = ids, self.rows.pairs[index], index, self.rows.labels[index]
        cut = make_cut(*parts, self.pad_id, self.packed, self.in_blocks, self.branches)
        return to_device(cut, self.device)

    def __call__(self, cuts: list[np.ndarray]) -> Iterator[Cut]:
        """Yield the cuts in order, each made and sent while the device still computes the one before it."""
        start = time.perf_counter()
        ahead = self.cut(cuts[0]) if cuts else None
        for following in [*cuts[1:], None]:
            if ahead is None:
                return
            self.wait_s += time.perf_counter() - start
            yield ahead
            start = time.perf_counter()
            ahead = self.cut(following) if following is not None else None
