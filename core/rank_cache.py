"""The ranking rows of a file, tokenised once into a memory-mapped cache."""

import json
from array import array
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.cache import cache_folder, write_cache
from core.dist import on_main
from core.errors import UserError
from core.files import save_array
from core.rank_encoder import RankEncoder, fault_of
from core.rank_rows import parse_rank_row
from core.rows import BadRows, RowError, read_rows
from core.spent import row_hash

WINDOW = 256  # rows a tokenizer call: a row is a page and its candidates


@dataclass
class RankRows:
    """The tokenised questions of one file; ids are memory-mapped. n questions, M candidates of all of them."""

    prefix_ids: np.ndarray  # (sum of prefixes,) int32
    candidate_ids: np.ndarray  # (sum of candidates,) int32
    prefix_starts: np.ndarray  # (n + 1,) int64 into prefix_ids
    candidate_starts: np.ndarray  # (M + 1,) int64 into candidate_ids
    first: np.ndarray  # (n + 1,) int64: each question's first candidate
    rewards: np.ndarray  # (M,) float32
    lines: np.ndarray  # (n,) int32: line in the file
    groups: np.ndarray  # (n,) int32 into meta["group_names"]
    hashes: np.ndarray  # (n,) uint64 of question and context (core/spent.py)
    meta: dict  # path, sha256, num_cut, ...
    prefix_lengths: np.ndarray  # (n,) int64, in memory
    sizes: np.ndarray  # (n,) int64: candidates of each question, in memory

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_candidates(self) -> int:
        """K of the widest question."""
        return int(self.sizes.max())

    @property
    def num_tokens(self) -> int:
        """Tokens of all questions, each prefix once."""
        return len(self.prefix_ids) + len(self.candidate_ids)

    def branch_lengths(self, question: int) -> np.ndarray:
        """(K,) tokens of each candidate of a question."""
        first, last = self.first[question], self.first[question + 1]
        return np.diff(self.candidate_starts[first : last + 1])

    def question(self, k: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The prefix's ids, and each candidate's."""
        prefix = self.prefix_ids[self.prefix_starts[k] : self.prefix_starts[k + 1]]
        starts = self.candidate_starts[self.first[k] : self.first[k + 1] + 1]
        return prefix, [self.candidate_ids[a:b] for a, b in zip(starts, starts[1:])]

    def table(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """(n, K) float32 of one value a candidate; fill where a question has fewer."""
        out = np.full((len(self), self.num_candidates), fill, np.float32)
        out[np.arange(self.num_candidates) < self.sizes[:, None]] = values
        return out

    def summary(self) -> str:
        """One line for the log."""
        meta, sizes = self.meta, self.sizes
        equal = f", {meta['num_equal']} with one reward for all: " if meta["num_equal"] else ""
        equal += ("left out" if meta["is_training"] else "nothing to choose there") if equal else ""
        sizes = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else sizes.max()
        return (
            f"{len(self)} questions of {sizes} candidates, {len(self.prefix_ids)} + {len(self.candidate_ids)} tokens, "
            f"longest {int(self.prefix_lengths.max())}, {meta['num_cut']} contexts cut ({meta['num_lost']} tokens) to "
            f"{meta['max_length']}{equal}, {meta['path']}"
        )


def rows_in_memory(
    coded: list[tuple[list[int], list[list[int]], int]], rewards: list[list[float]], path: str
) -> RankRows:
    """The questions of RankEncoder's output, with a reward for each candidate, without a cache.

    path: named in messages.
    """
    prefixes, branches = [prefix for prefix, _, _ in coded], [ids for _, own, _ in coded for ids in own]
    sizes = np.array([len(own) for _, own, _ in coded])
    lengths = np.array([len(prefix) for prefix in prefixes])

    def starts(counts) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    return RankRows(
        prefix_ids=np.concatenate(prefixes).astype(np.int32),
        candidate_ids=np.concatenate(branches).astype(np.int32),
        prefix_starts=starts(lengths),
        candidate_starts=starts([len(ids) for ids in branches]),
        first=starts(sizes),
        rewards=np.concatenate(rewards).astype(np.float32),
        lines=np.arange(1, len(coded) + 1),
        groups=np.zeros(len(coded), np.int32),
        hashes=np.zeros(len(coded), np.uint64),
        meta={"path": path, "group_names": [""]},
        prefix_lengths=lengths,
        sizes=sizes,
    )


COLUMNS = ("prefix_starts", "candidate_starts", "first", "rewards", "lines", "groups", "hashes")


def tokenise_rank_file(
    path: str,
    flag: str,
    encoder: RankEncoder,
    cache_dir: str,
    group_field: str = "",
    is_training: bool = False,
    most_rows: int = 0,
) -> RankRows:
    """The questions of a file, tokenised, from the cache where they are there already.

    Args:    group_field: whose values name groups of questions, "" for none | is_training: leave out, and count,
             questions whose candidates have one reward: they teach nothing | most_rows: read no more; 0: all.
    Raises:  UserError with all bad rows of the file, or when no question is left.
    """
    options = [*encoder.options(), group_field, is_training, most_rows]
    folder, sha256 = cache_folder(path, flag, encoder.tokenizer, options, cache_dir)
    if not (folder / "meta.json").exists():

        def fill(part: Path) -> dict:
            meta = _tokenise(path, flag, encoder, group_field, is_training, most_rows, part)
            return meta | {"sha256": sha256, "max_length": encoder.max_length}

        write_cache(folder, fill)
    meta = json.loads((folder / "meta.json").read_text()) | {"path": str(path)}
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    ids = {n: np.memmap(folder / f"{n}.bin", np.int32, "r") for n in ("prefix_ids", "candidate_ids")}
    lengths, sizes = np.diff(columns["prefix_starts"]), np.diff(columns["first"])
    rows = RankRows(**ids, **columns, meta=meta, prefix_lengths=lengths, sizes=sizes)
    return rows


def open_rank_rows(path: str, flag: str, *args, **kwargs) -> RankRows:
    """tokenise_rank_file on every rank: rank 0 writes the cache where there is none, then all ranks map it."""
    call = partial(tokenise_rank_file, path, flag, *args, **kwargs)
    on_main(lambda: bool(call()))
    return call()


def _tokenise(
    path: str,
    flag: str,
    encoder: RankEncoder,
    group_field: str,
    is_training: bool,
    most_rows: int,
    part: Path,
) -> dict:
    """Read, check and tokenise; ids are written as they come, then the columns. Returns what meta.json holds."""
    bad, names = BadRows(path), {}
    prefix_starts, candidate_starts, first = array("q", [0]), array("q", [0]), array("q", [0])
    rewards, lines, groups, num_cut, num_lost, num_equal = array("f"), array("i"), array("i"), 0, 0, 0
    hashes = array("Q")
    source = islice(read_rows(path, bad, flag), most_rows or None)
    with (
        open(part / "prefix_ids.bin", "wb") as prefixes,
        open(part / "candidate_ids.bin", "wb") as candidates,
        tqdm(desc=f"tokenise {path}", unit=" rows", disable=None, leave=False) as bar,
    ):
        while window := list(islice(source, WINDOW)):
            kept = []
            for line, row in window:
                try:
                    kept.append((line, parse_rank_row(row, True, group_field)))
                except RowError as error:
                    bad.add(line, str(error))
            for (line, row), coded in zip(kept, encoder([row for _, row in kept]), strict=True):
                fault = fault_of(coded, encoder.max_length)
                if fault:
                    bad.add(line, fault)
                    continue
                is_equal = len(set(array("f", row.rewards))) == 1
                num_equal += is_equal
                if is_training and is_equal:
                    continue
                prefix, branches, lost = coded
                prefixes.write(np.asarray(prefix, np.int32).tobytes())
                prefix_starts.append(prefix_starts[-1] + len(prefix))
                for ids in branches:
                    candidates.write(np.asarray(ids, np.int32).tobytes())
                    candidate_starts.append(candidate_starts[-1] + len(ids))
                first.append(first[-1] + len(branches))
                rewards.extend(row.rewards)
                lines.append(line)
                groups.append(names.setdefault(row.group, len(names)))
                hashes.append(row_hash(row.question, row.context))
                num_cut, num_lost = num_cut + (lost > 0), num_lost + lost
            bar.update(len(window))
    bad.raise_if_any()
    if not lines or (num_equal == len(lines) and not is_training):
        why = (
            f"the candidates of all {num_equal} have one and the same reward" if num_equal else "it has none"
        )
        raise UserError(f"{flag} {path}: no question to rank: {why}")
    columns = prefix_starts, candidate_starts, first, rewards, lines, groups, hashes
    for name, column in zip(COLUMNS, columns, strict=True):
        save_array(part / f"{name}.npy", np.array(column))
    counts = {"num_cut": num_cut, "num_lost": num_lost, "num_equal": num_equal, "is_training": is_training}
    return counts | {"group_names": list(names)}
