"""What a finished run holds of one split: the saved scores, and the labels of the rows that they are of."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.cache import LabelColumn
from core.errors import UserError
from core.rows import BadRows, RowError, RowFormat, file_sha256, read_rows
from core.runs import RunRecord
from core.stored import read_array

FILES = {"validation": "val_data", "calibration": "calibration_data", "test": "test_data"}


@dataclass
class Scored:
    """The scores of one split of a finished run. n rows, C classes."""

    folder: Path
    record: dict  # run.json
    split: str
    path: str  # of the rows
    label_names: list[str]  # C, of the columns
    multi_label: bool
    truth: np.ndarray  # (n, C) bool
    logits: np.ndarray  # (n, C) float32

    @property
    def labels(self) -> np.ndarray:
        """(n,) class indices, or (n, C) of 0 and 1 with several labels a row: what core.metrics takes."""
        return self.truth.astype(np.uint8) if self.multi_label else self.truth.argmax(axis=1)


def has_split(folder: str | Path, split: str) -> bool:
    """Whether a run folder holds the scores of a split."""
    return (Path(folder) / split / "logits.npy").is_file()


def read_scored(folder: str | Path, split: str) -> Scored:
    """The scores of one split (validation, calibration, test) with their labels.

    Raises: UserError when the folder is no finished run of a classifier, holds no such scores, or the rows' file is
            gone or has changed.
    """
    folder = Path(folder)
    record = RunRecord.read(folder).record
    if record.get("status") != "finished":
        raise UserError(f"{folder}: is a {record.get('status')} run; expected a finished one")
    about = record.get("model", {})
    if "label_names" not in about:
        raise UserError(f"{folder}: is no classifier's run; expected one of train.py or ppo_feedback.py")
    path = record["arguments"].get(FILES[split])
    if not path or split not in record["data"]:
        raise UserError(f"{folder}: has no {split} rows; it was trained without --{FILES[split]}")
    try:
        names, truth = read_labels(path, record["data"][split], RowFormat(**about["row_format"]))
        logits = read_array(folder / split / "logits.npy", "f", 2)
        truth = columns(truth, names, about["label_names"])
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: is not whole, train it again: {error!r}") from None
    if logits.shape != truth.shape:
        raise UserError(f"{folder}: scores are {logits.shape}, the labels in {path} {truth.shape}")
    return Scored(folder, record, split, path, about["label_names"], about["multi_label"], truth, logits)


@lru_cache
def read_labels(path: str, sha256: str, row_format: RowFormat) -> tuple[list[str], np.ndarray]:
    """Label names and (n, C) bool of a file. Raises UserError when it is not there or another one than it was."""
    if not Path(path).is_file() or file_sha256(path) != sha256:
        why = "has changed since" if Path(path).is_file() else "is not there"
        raise UserError(f"was scored on {path}, which {why}; this needs its labels")
    labels = LabelColumn()
    for line, row in read_rows(path, BadRows(path), "scored on"):
        try:
            labels.add(row_format.labels(row))
        except RowError as error:
            raise UserError(f"was scored on {path}: line {line}: {error}") from None
    names, matrix = labels.finish()
    return names, matrix == 1 if matrix.ndim == 2 else matrix[:, None] == np.arange(len(names))


def columns(values: np.ndarray, names: list[str], wanted: list[str]) -> np.ndarray:
    """(..., C) bool with its columns in the wanted order; a name that is new has no True."""
    places = {name: k for k, name in enumerate(names)}
    empty = np.zeros(values.shape[:-1], bool)
    return np.stack([values[..., places[name]] if name in places else empty for name in wanted], axis=-1)
