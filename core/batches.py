"""A cut of rows as padded tensors on the device, one cut ahead of the loop.

B rows, T padded tokens, C classes.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from core.cache import TokenRows
from core.profile import region


class Cut(NamedTuple):
    """One micro-batch. mask is None where nothing is padded, so that no mask is built and no host waits to find out."""

    ids: torch.Tensor  # (B, T) int64
    mask: torch.Tensor | None  # (B, T) bool, True means keep
    token_types: torch.Tensor | None  # (B, T) int64, for pairs
    labels: torch.Tensor | None  # (B,) int64, or (B, C) float32


def padded_ids(rows: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, padded on the right: (B, T) int64 and their lengths (B,)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.full((len(rows), lengths.max()), pad_id, np.int64)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = row
    return ids, lengths


def make_cut(rows: list[np.ndarray], pair_starts: np.ndarray, pad_id: int, labels: np.ndarray | None) -> Cut:
    """A cut on the host.

    Args: rows: ids of each row | pair_starts: (B,) index at which token type 1 begins, 0 for nowhere |
          labels: (B,) class indices, (B, C) 0/1, or None.
    """
    ids, lengths = padded_ids(rows, pad_id)
    place = np.arange(ids.shape[1])
    mask = types = None
    if lengths.min() < ids.shape[1]:
        mask = torch.from_numpy(place < lengths[:, None])
    if pair_starts.any():
        second = (place >= pair_starts[:, None]) & (pair_starts[:, None] > 0) & (place < lengths[:, None])
        types = torch.from_numpy(second.astype(np.int64))
    if labels is not None:
        labels = torch.from_numpy(labels.astype(np.int64 if labels.ndim == 1 else np.float32))
    return Cut(torch.from_numpy(ids), mask, types, labels)


def to_device(cut: Cut, device: torch.device) -> Cut:
    """The cut on the device. Cost: H2D, from pinned memory and without a host wait on CUDA."""
    if device.type == "cpu":
        return cut
    if device.type == "cuda":
        cut = Cut(*(None if part is None else part.pin_memory() for part in cut))
    pinned = device.type == "cuda"
    return Cut(*(None if part is None else part.to(device, non_blocking=pinned) for part in cut))


class Feed:
    """Cuts of one file's rows as tensors; wait_s adds up the time that its caller waited for them."""

    def __init__(self, rows: TokenRows, pad_id: int, device: torch.device):
        self.rows, self.pad_id, self.device, self.wait_s = rows, pad_id, device, 0.0

    @region("data")
    def cut(self, index: np.ndarray) -> Cut:
        """The cut of these rows, on the device."""
        starts = self.rows.starts
        ids = [self.rows.ids[starts[k] : starts[k + 1]] for k in index]
        labels = self.rows.labels[index]
        return to_device(make_cut(ids, self.rows.pairs[index], self.pad_id, labels), self.device)

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
