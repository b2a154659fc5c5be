"""From scores to prediction rows, the same for a run's own validation rows and for predict.py; rows to a file."""

import csv
import json
from collections.abc import Callable
from typing import TextIO

import numpy as np

from core.calibration import UNCALIBRATED, apply_calibration
from core.metrics import probabilities

WINDOW = 4096  # rows sorted together: enough that cuts hold rows of like length, small beside a model


def prediction_rows(
    logits: np.ndarray, label_names: list[str], multi_label: bool, thresholds: np.ndarray | None
) -> list[dict]:
    """A row {"label", "probabilities": {name: p}} each; with several labels a row also "labels".

    Args: logits: (n, C) float32 | thresholds: (C,), for several labels a row; None is 0.5. A label holds when
          its probability is at least its threshold. Probabilities have 6 decimals; decisions are made before
          they are rounded.
    """
    probs = probabilities(logits, multi_label)
    thresholds = np.full(probs.shape[1], 0.5) if thresholds is None else thresholds
    best, rounded = logits.argmax(axis=1), probs.round(6)  # a sigmoid ties logits from 37 on
    out = []
    for k in range(len(probs)):
        row = {"label": label_names[best[k]]}
        if multi_label:
            row["labels"] = [label_names[c] for c in np.flatnonzero(probs[k] >= thresholds)]
        row["probabilities"] = dict(zip(label_names, rounded[k].tolist(), strict=True))
        out.append(row)
    return out


class RowPredictor:
    """A loaded run, of one model or of several. Call it with texts (or pairs) for prediction rows; `scores` gives the
    model's own logits, and `calibrate` makes of them those that the rows' probabilities, labels and thresholds are of.

    Whoever is one has label_names, multi_label, thresholds ((C,) or None) and scores(texts, pairs) -> (n, C) float32.
    """

    calibration = UNCALIBRATED

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """(n, C) logits of the probabilities that the run shows for (n, C) logits; they are the same without a fit."""
        return apply_calibration(**self.calibration, logits=logits, multi_label=self.multi_label)

    def rows(self, logits: np.ndarray) -> list[dict]:
        """The prediction rows of logits."""
        return prediction_rows(self.calibrate(logits), self.label_names, self.multi_label, self.thresholds)

    def __call__(self, texts: list[str], pairs: list[str] | None = None) -> list[dict]:
        """A row {"label", "probabilities"} for each text; with several labels a row also "labels"."""
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, found one string")
        out = []
        for first in range(0, len(texts), WINDOW):
            window = slice(first, first + WINDOW)
            out += self.rows(self.scores(list(texts[window]), None if pairs is None else list(pairs[window])))
        return out


def append_rows(
    file: TextIO, kept: list[dict], rows: list[dict], form: str, first: bool, to_cells: Callable[[dict], dict]
) -> None:
    """Append prediction rows as JSONL or CSV, what is kept of each input row before them.

    Args: form: jsonl | csv | first: a CSV's header comes before these rows | to_cells: a row's CSV columns by name.
    """
    if form == "jsonl":
        both = zip(kept, rows, strict=True)
        file.writelines(json.dumps(keep | row, ensure_ascii=False) + "\n" for keep, row in both)
        return
    lines = [keep | to_cells(row) for keep, row in zip(kept, rows, strict=True)]
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    if first:
        writer.writeheader()
    writer.writerows(lines)
