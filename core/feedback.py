"""Feedback on a classifier's predictions: read, checked, and made into one reward a row.

A row: {"text", "true_labels", "predicted_labels", "feedback"}, and "pair" for a run that takes pairs; JSON or JSONL.
Legend: n rows, C classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.rows import BadRows, RowError, field_names, half_pair, is_label, read_rows, show

MOST_NAMED = 30  # labels of the model that a message lists


@dataclass(frozen=True)
class FeedbackRow:
    """One checked row; labels are class indices: one, or those of the labels that hold."""

    text: str
    pair: str | None
    predicted: list[int]
    true: list[int] | None  # None: unknown
    feedback: float | None  # as given, in [-1, 1]; None: nobody filled it in


@dataclass
class FeedbackRows:
    """The rows of one file that have feedback."""

    texts: list[str]
    pairs: list[str] | None  # of a run that takes pairs
    actions: np.ndarray  # (n,) int64 predicted class, or (n, C) uint8 with several labels a row
    truth: np.ndarray  # (n,) int64, -1 where unknown; or (n, C) float32 of 0 and 1, NaN rows where unknown
    feedback: np.ndarray  # (n,) float32 in [0, 1], whatever range the file has
    lines: np.ndarray  # (n,) int64: line in the file
    found_range: str  # of the file: "[0, 1]" or "[-1, 1]"
    num_empty: int  # rows left out: nobody filled in their feedback
    path: str

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def has_truth(self) -> np.ndarray:
        """(n,) bool: whose true labels are known."""
        return self.truth >= 0 if self.truth.ndim == 1 else ~np.isnan(self.truth).any(axis=1)

    def part(self, keep: np.ndarray) -> "FeedbackRows":
        """Some of the rows. keep: (n,) bool."""
        places = np.flatnonzero(keep)
        texts = [self.texts[k] for k in places]
        pairs = None if self.pairs is None else [self.pairs[k] for k in places]
        columns = {name: getattr(self, name)[places] for name in ("actions", "truth", "feedback", "lines")}
        return replace(self, texts=texts, pairs=pairs, **columns)

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{len(self)} rows with feedback in {self.found_range}, mean {self.feedback.mean():.3f} of 0 to 1, "
            f"{int((~self.has_truth).sum())} without true labels, {self.num_empty} without feedback left out, "
            f"{self.path}"
        )


def check_ending(path: str | Path, flag: str) -> None:
    """Raise UserError unless a file of feedback is JSON or JSONL: a CSV cell does not tell 1 from "1"."""
    if Path(path).suffix.lower() not in (".json", ".jsonl", ".ndjson"):
        raise UserError(f"{flag} {path}: expected a file of feedback that ends in .json or .jsonl")


def named_labels(value: object, field: str, multi_label: bool) -> dict[str, bool]:
    """Each label that a field names, and whether it holds. Raises RowError: field, found, expected.

    Args: value: one label, or a list of just one; with multi_label a list of those that hold, or {name: 0/1}.
    """
    if multi_label and isinstance(value, dict):
        for name, holds in value.items():
            if holds not in (0, 1):
                raise RowError(f"field {field!r}: {name!r} is {show(holds)}; expected 0 or 1")
        return {str(name): bool(holds) for name, holds in value.items()}
    if multi_label and not isinstance(value, list):
        raise RowError(f"field {field!r} is {show(value)}; expected a list of labels, or 0/1 for each label")
    labels = value if isinstance(value, list) else [value]
    if not multi_label and (len(labels) != 1 or not is_label(labels[0]) or labels[0] == ""):
        raise RowError(f"field {field!r} is {show(value)}; expected one label (a string or an integer)")
    for label in labels:
        if not is_label(label):
            raise RowError(f"field {field!r} holds {show(label)}; expected labels (strings or integers)")
    return {str(label): True for label in labels}


def class_indices(value: object, field: str, classes: dict[str, int], multi_label: bool) -> list[int]:
    """The class indices of the labels that hold. Raises RowError, also for a label that is none of classes.

    Args: classes: {name: index}, in order.
    """
    named = named_labels(value, field, multi_label)
    unknown = [show(name) for name in named if name not in classes]
    if unknown:
        more = f", ... ({len(classes)} in all)" if len(classes) > MOST_NAMED else ""
        told = ", ".join(list(classes)[:MOST_NAMED]) + more
        raise RowError(f"field {field!r}: the model has no label {', '.join(unknown)}; it has {told}")
    return [classes[name] for name, holds in named.items() if holds]


def parse_feedback_row(
    row: dict, classes: dict[str, int], multi_label: bool, pair: bool = False
) -> FeedbackRow:
    """A row as read, checked. Raises RowError: field, found, expected.

    Args: classes: the model's labels, {name: index} | pair: the model takes pairs.
    """
    texts = {}
    for name in ("text", "pair") if pair else ("text",):
        if name not in row:
            raise RowError(f"no field {name!r} (found: {field_names(row)})")
        if not isinstance(row[name], str) or not row[name].strip():
            raise RowError(f"field {name!r} is {show(row[name])}; expected text")
        if half_pair(row[name]):
            raise RowError(f"field {name!r}: {half_pair(row[name])}")
        texts[name] = row[name]
    if "predicted_labels" not in row:
        raise RowError(f"no field 'predicted_labels' (found: {field_names(row)})")
    predicted = class_indices(row["predicted_labels"], "predicted_labels", classes, multi_label)
    true = row.get("true_labels")
    if true is not None:
        true = class_indices(true, "true_labels", classes, multi_label)
    value = row.get("feedback")
    if value == "":
        value = None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and abs(value) <= 1):  # NaN is not <= 1 either
        raise RowError(f"field 'feedback' is {show(value)}; expected a number in [0, 1], or in [-1, 1]")
    return FeedbackRow(texts["text"], texts.get("pair"), predicted, true, value)


def read_feedback(
    path: str, flag: str, label_names: list[str], multi_label: bool, pair: bool = False
) -> FeedbackRows:
    """The rows of a file that have feedback, checked; those without are checked as well, counted and left out.

    One negative value says that the file is in [-1, 1]: all its values become (x + 1) / 2. A file of that range that
    happens to hold no negative value looks like [0, 1]: summary() says which was found.

    Args:    flag: named in errors | label_names: the model's, in the order of its classes | pair: it takes pairs.
    Raises:  UserError with all bad rows of the file, or when no row has feedback.
    """
    check_ending(path, flag)
    bad, lines, found, num_empty = BadRows(path), [], [], 0
    classes = {name: k for k, name in enumerate(label_names)}
    for line, row in read_rows(path, bad, flag):
        try:
            parsed = parse_feedback_row(row, classes, multi_label, pair)
        except RowError as error:
            bad.add(line, str(error))
            continue
        if parsed.feedback is None:
            num_empty += 1
            continue
        lines.append(line)
        found.append(parsed)
    bad.raise_if_any()
    if not found:
        raise UserError(
            f"{flag} {path}: no row has feedback ({num_empty} are empty); fill in 'feedback': "
            "1 right, 0 wrong, or a number from -1 to 1"
        )
    feedback = np.array([row.feedback for row in found], np.float64)
    is_signed = bool((feedback < 0).any())
    if multi_label:
        actions, truth = _label_sets(found, len(label_names))
    else:
        actions = np.array([row.predicted[0] for row in found], np.int64)
        truth = np.array([-1 if row.true is None else row.true[0] for row in found], np.int64)
    return FeedbackRows(
        texts=[row.text for row in found],
        pairs=[row.pair for row in found] if pair else None,
        actions=actions,
        truth=truth,
        feedback=((feedback + 1) / 2 if is_signed else feedback).astype(np.float32),
        lines=np.array(lines),
        found_range="[-1, 1]" if is_signed else "[0, 1]",
        num_empty=num_empty,
        path=str(path),
    )


def _label_sets(rows: list[FeedbackRow], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, C) uint8 of the predicted labels, (n, C) float32 of the true ones, NaN rows where unknown."""
    actions = np.zeros((len(rows), num_classes), np.uint8)
    truth = np.zeros((len(rows), num_classes), np.float32)
    for k, row in enumerate(rows):
        actions[k, row.predicted] = 1
        truth[k, slice(None) if row.true is None else row.true] = np.nan if row.true is None else 1
    return actions, truth


def row_accuracies(rows: FeedbackRows) -> np.ndarray:
    """How right each prediction is.

    Returns: (n,) float64: 1 or 0; with several labels a row the share of the C labels that are predicted as they are
             (1 - Hamming loss). NaN where the true labels are unknown.
    """
    same = rows.actions == rows.truth
    return np.where(rows.has_truth, same if same.ndim == 1 else same.mean(axis=1), np.nan)


def row_rewards(rows: FeedbackRows, feedback_weight: float, accuracy_weight: float) -> np.ndarray:
    """The reward of each row's predicted labels.

        reward = feedback_weight * feedback + accuracy_weight * accuracy      (row_accuracies; feedback in [0, 1])

    Where the true labels are unknown the feedback stands for both, so that all rewards have one scale:

        reward = (feedback_weight + accuracy_weight) * feedback

    Args:    feedback_weight, accuracy_weight: at least 0; 0.7 and 0.3, say.
    Returns: (n,) float32 in [0, feedback_weight + accuracy_weight].
    """
    feedback = rows.feedback.astype(np.float64)
    accuracy = np.where(rows.has_truth, row_accuracies(rows), feedback)
    return (feedback_weight * feedback + accuracy_weight * accuracy).astype(np.float32)
