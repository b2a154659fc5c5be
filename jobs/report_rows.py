"""What rows say for a report: the files of a split described, the rows a model finds hardest, what it confuses.

Legend: n rows, C classes. Everything here is read from files and saved scores; nothing is scored again.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.calibration import apply_calibration, read_fit
from core.errors import UserError
from core.metrics import probabilities
from core.rows import BadRows, RowError, RowFormat, read_rows
from core.spent import count_common, row_hash
from jobs.scored import read_scored

SURE = 0.9  # probability from which a decision that its label contradicts is worth a look


@dataclass
class Rows:
    """The scored rows of one part of a run, as predict.py shows them. n rows, C classes."""

    path: str
    texts: list[str]  # n
    names: list[str]  # C
    multi_label: bool
    truth: np.ndarray  # (n, C) bool
    raw: np.ndarray  # (n, C) float32: the model's own logits
    logits: np.ndarray  # (n, C): calibrated, where the run is; else the same
    method: str  # of the calibration; none
    said: np.ndarray  # (n, C) bool, at the run's thresholds

    @property
    def labels(self) -> np.ndarray:
        """(n,) class indices, or (n, C) of 0 and 1 with several labels a row: what core.metrics takes."""
        return self.truth.astype(np.uint8) if self.multi_label else self.truth.argmax(axis=1)

    @cached_property
    def probs(self) -> np.ndarray:
        """(n, C) float64."""
        return probabilities(self.logits, self.multi_label)


def load_rows(run: Path, part: str) -> Rows:
    """The rows of a part of a finished run with its scores. Validation rows are taken without a calibration, which may
    have been fitted on them.

    Raises: UserError when the rows' file is gone or has changed, or what the run's folder holds does not fit.
    """
    scored = read_scored(run, part)
    names, several = scored.label_names, scored.multi_label
    fit, tuned = read_fit(run / "validation", names, raw=part == "validation")
    logits = apply_calibration(**fit, logits=scored.logits, multi_label=several)
    if several:
        cuts = [tuned["thresholds"][name] for name in names] if tuned else 0.5
        said = probabilities(logits, True) >= np.asarray(cuts)
    else:
        said = logits.argmax(axis=1)[:, None] == np.arange(len(names))
    row_format, bad, texts = RowFormat(**scored.record["model"]["row_format"]), BadRows(scored.path), []
    try:
        for _, row in read_rows(scored.path, bad, "scored on"):
            text, pair = row_format.text(row)
            texts.append(text if pair is None else f"{text}\n{pair}")
    except RowError as error:
        raise UserError(f"{scored.path}: row {len(texts) + 1}: {error}") from None
    if len(texts) != len(logits):
        raise UserError(f"{scored.path}: {len(texts)} rows; expected the {len(logits)} that were scored")
    return Rows(scored.path, texts, names, several, scored.truth, scored.logits, logits, fit["method"], said)


def confusions(rows: Rows) -> list[dict]:
    """The kinds of errors, the most frequent first.

    Returns: one label a row: {"true", "said", "rows", "of", "examples"}: class indices, rows with that true class,
             row numbers, the surest first. Several: "true" is None where a label was claimed in error, "said" is
             None where it was missed; of: the rows without, or with, the label.
    """
    found, probs = [], rows.probs
    if rows.multi_label:
        for c in range(len(rows.names)):
            for is_missed in (True, False):
                pool = rows.truth[:, c] == is_missed
                wrong = np.flatnonzero(pool & (rows.said[:, c] != is_missed))
                sure = -probs[wrong, c] if is_missed else probs[wrong, c]
                pair = (c, None) if is_missed else (None, c)
                found.append((pair, wrong[np.argsort(-sure, kind="stable")], int(pool.sum())))
    else:
        truth, said = rows.truth.argmax(axis=1), rows.said.argmax(axis=1)
        wrong = np.flatnonzero(truth != said)
        wrong = wrong[np.argsort(-probs[wrong, said[wrong]], kind="stable")]
        groups = {}
        for k in wrong.tolist():  # numpy
            groups.setdefault((int(truth[k]), int(said[k])), []).append(k)
        found = [(pair, np.array(group), int((truth == pair[0]).sum())) for pair, group in groups.items()]
    kinds = [
        {
            "true": pair[0],
            "said": pair[1],
            "rows": len(wrong),
            "of": pool,
            "examples": wrong.tolist(),
        }  # numpy
        for pair, wrong, pool in found
        if len(wrong)
    ]
    return sorted(kinds, key=lambda kind: (-kind["rows"], str(kind["true"]), str(kind["said"])))


def contradicted(rows: Rows, sure: float = SURE) -> dict:
    """Decisions that the model is sure of and the label contradicts: where a label error may be, or the model's own.

    Returns: decisions: how many have at least that probability (with several labels a row each label is one) |
             wrong: those that the label contradicts | expected: how many of them are wrong if the probabilities are
             right, the sum of 1 - p | rows: numbers of rows with such a decision, the surest first.
    """
    # one label a row: the class that was said is the only decision
    probs = np.where(rows.said, rows.probs, 1 - rows.probs if rows.multi_label else 0.0)
    is_sure, is_wrong = probs >= sure, rows.said != rows.truth
    worst = np.where(is_sure & is_wrong, probs, 0.0).max(axis=1)
    order = np.argsort(-worst, kind="stable")
    return {
        "decisions": int(is_sure.sum()),
        "wrong": int((is_sure & is_wrong).sum()),
        "expected": float((1 - probs)[is_sure].sum()),
        "rows": [int(k) for k in order if worst[k] > 0],
    }


def threshold_curve(probs: np.ndarray, truth: np.ndarray, at: np.ndarray) -> dict[str, np.ndarray]:
    """Precision (nan where nothing is claimed), recall and F1 of one class against the threshold.

    Args: probs: (n,) | truth: (n,) bool | at: (m,) thresholds; a row is claimed when p >= threshold.
    """
    real, claimed = np.sort(probs[truth]), np.sort(probs)
    hits, told = len(real) - np.searchsorted(real, at), len(claimed) - np.searchsorted(claimed, at)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(told > 0, hits / told, np.nan)
    recall = hits / max(len(real), 1)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / np.maximum(told + len(real), 1)}


def describe_files(paths: Mapping[str, Path], row_format: RowFormat) -> dict:
    """The files of a split, as far as split.json says it too under the same names, and how long the texts are.

    Args:    paths: by part; those that are not there are left out.
    Returns: rows, labels: {name: {part: n}}, exact_duplicates: {"rows", "with_different_labels": how many texts} |
             in_train: {part: rows whose text is a training row's too} | bad: rows that cannot be read |
             words, characters: {part: (n,) int}.
    """
    there = {part: path for part, path in paths.items() if path.is_file()}
    numbers, keys = {part: [] for part in there}, {part: [] for part in there}
    labels: dict[str, Counter] = {}
    labels_of: dict[int, frozenset] = {}
    bad, odd = 0, set()
    for part, path in there.items():
        unreadable = BadRows(path)
        for _, row in tqdm(read_rows(path, unreadable, part), f"read {path}", leave=False, disable=None):
            try:
                texts, found = row_format.text(row), row_format.labels(row)
            except RowError:
                bad += 1
                continue
            named = [name for name, holds in found.items() if holds] if isinstance(found, dict) else found
            own = frozenset([named] if isinstance(named, str) else named)
            for name in own:
                labels.setdefault(name, Counter())[part] += 1
            keys[part].append(row_hash(*texts))
            if labels_of.setdefault(keys[part][-1], own) != own:
                odd.add(keys[part][-1])
            whole = " ".join(text for text in texts if text)
            numbers[part].append((len(whole.split()), len(whole)))
        bad += unreadable.count
    counts = {part: np.array(pairs, np.int64).reshape(-1, 2) for part, pairs in numbers.items()}
    hashes = {part: np.array(own, np.uint64) for part, own in keys.items()}
    train = hashes.get("train", np.zeros(0, np.uint64))
    return {
        "rows": {part: len(pairs) for part, pairs in numbers.items()},
        "labels": {name: {part: counter[part] for part in there} for name, counter in labels.items()},
        "exact_duplicates": {
            "rows": sum(map(len, numbers.values())) - len(labels_of),
            "with_different_labels": len(odd),
        },
        "in_train": {part: count_common(own, train) for part, own in hashes.items() if part != "train"},
        "bad": bad,
        "words": {part: pairs[:, 0] for part, pairs in counts.items()},
        "characters": {part: pairs[:, 1] for part, pairs in counts.items()},
    }
