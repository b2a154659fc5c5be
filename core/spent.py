"""Rows are spent once: which rows a run used for what, by hash, and who must not use them for another thing.

A run folder and a folder of data.split hold rows/<use>.npy, (n,) uint64: a hash of each row's text (its second text, a
question's context), whitespace aside, labels and candidates left out. So a row is known again in another file.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np

from core.errors import UserError
from core.files import save_array
from core.stored import read_array

USES = ("train", "validation", "calibration", "test")


class Rows(Protocol):
    """TokenRows and RankRows: what is asked of them here."""

    hashes: np.ndarray  # (n,) uint64
    meta: dict  # path


def row_hash(*texts: str | None) -> int:
    """64 bits of a row's texts. Two different rows of a million have the same with a chance of 3e-8."""
    joined = "\x1f".join(" ".join((text or "").split()) for text in texts).rstrip("\x1f")
    return int.from_bytes(blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def row_hashes(texts: Sequence[str], others: Sequence[str | None] | None = None) -> np.ndarray:
    """(n,) uint64, a row_hash for each text and its second."""
    both = zip(texts, others or [None] * len(texts), strict=True)
    return np.fromiter((row_hash(*pair) for pair in both), np.uint64, len(texts))


def write_uses(folder: Path, data: Mapping[str, Rows]) -> None:
    """Write rows/<use>.npy for each use. data: rows by USES."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for use, rows in data.items():
        save_array(folder / "rows" / f"{use}.npy", np.asarray(rows.hashes, np.uint64))


def read_uses(folder: Path) -> dict[str, np.ndarray]:
    """The hashes by use that a run folder or a split's folder holds; those that are not there are left out."""
    paths = {use: Path(folder) / "rows" / f"{use}.npy" for use in USES}
    return {use: read_array(path, "u", 1) for use, path in paths.items() if path.is_file()}


def count_common(hashes: np.ndarray, others: np.ndarray) -> int:
    """How many of the rows are among the others."""
    return int(np.isin(hashes, others).sum())


def check_uses(data: Mapping[str, Rows], train_flag: str = "--train_data") -> list[str]:
    """Whether rows serve two ends in one run.

    Args:    data: rows by USES | train_flag: names the training rows in the message.
    Returns: notes for the log: rows that two of the files have in common.
    Raises:  UserError when rows that train or choose are test rows of the split that lies in their file's folder.
    """
    flags = {"train": train_flag, "validation": "--val_data", "calibration": "--calibration_data"}
    for use, rows in data.items():
        if use != "test":
            refuse_test_rows(rows.hashes, flags[use], rows.meta["path"])
    notes = []
    for use, other in combinations(data, 2):
        num_common = count_common(data[other].hashes, data[use].hashes)
        if num_common:
            of = f"{num_common} of {len(data[other].hashes)} {other} rows"
            notes.append(f"note: {of} are {use} rows too, by their text")
    return notes


def refuse_test_rows(hashes: np.ndarray, flag: str, path: str, runs: Iterable[Path] = ()) -> None:
    """Raise UserError when rows that are about to train or to choose are somebody's test rows.

    Args: hashes: (n,) uint64 of the rows | flag, path: named in the message | runs: folders whose test rows count,
          beside those of the split (data.split) that the file's own folder holds.
    """
    for folder in (Path(path).parent, *runs):
        test = read_uses(folder).get("test", np.zeros(0, np.uint64))
        num_common = count_common(hashes, test)
        if num_common:
            raise UserError(
                f"{flag} {path}: {num_common} of its {len(hashes)} rows are test rows of {folder}; what trains or "
                "chooses must not have seen them; give other rows"
            )
