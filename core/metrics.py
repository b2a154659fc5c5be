"""Numbers for classifiers from saved logits: the flat metrics, and how well the scores are calibrated.

Legend: n rows, C classes. numpy in, JSON-safe dictionaries out: Python numbers, None where a value is
undefined, never NaN. The order of the rows does not matter beyond the last digit.

Averages are over all C classes, so they do not change with what was predicted: a class without rows and
without predictions counts as F1 0 (scikit-learn's zero_division=0 with labels=range(C)). Only roc_auc (a
class needs a positive and a negative row) and average_precision (a positive row), each class against the
rest, are averaged over the classes that define them.
"""

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

NUM_BINS = 15  # Guo et al. 2017, arXiv:1706.04599, section 4 (their bins have equal width, ours equal mass)


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """The probability of each class, by softmax over the classes or, for several labels, by a sigmoid each.

    Args:    logits: (n, C) float of any width.
    Returns: (n, C) float64; without multi_label each row sums to 1.
    """
    logits = np.asarray(logits, dtype=np.float64)
    return expit(logits) if multi_label else softmax(logits, axis=1)


def classification_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    label_names: list[str],
    multi_label: bool,
    tuned: np.ndarray | None = None,
) -> dict:
    """One flat dictionary of metrics, with `per_class` by name and, for single labels, `confusion_matrix`.

    Args:    logits: (n, C) float, finite.
             labels: (n,) int in 0..C-1, or with multi_label (n, C) of 0 and 1.
             label_names: C different names, in the order of the columns.
             tuned: (n, C) bool, decisions at tuned thresholds | multi_label only | None leaves `_tuned` out.
    Returns: accuracy, macro_f1, micro_f1, weighted_f1, macro_precision, macro_recall, roc_auc,
             average_precision, n, and loss: the mean negative log-likelihood in nats, without class weights.
             With multi_label decisions are p >= 0.5; `accuracy` IS `subset_accuracy` (all C decisions of a
             row are right), and hamming_loss is the share of wrong decisions.
             confusion_matrix: C lists of C counts, rows are the true class.
    Raises:  ValueError when shapes, labels or names do not fit, or a logit is not finite.
    """
    logits, truth = _checked(logits, labels, multi_label)
    _check_names_and_tuned(truth, label_names, multi_label, tuned)
    num_rows, num_classes = truth.shape
    probs = probabilities(logits, multi_label)
    choice = logits.argmax(axis=1)
    chosen = probs >= 0.5 if multi_label else _one_hot(choice, num_classes)
    averages, columns = _f1_family(truth, chosen)
    # A sigmoid in float64 is 1.0 from logit 37 on and would tie rows that the logits still tell apart.
    roc_auc, average_precision = _ranking(truth, logits if multi_label else probs)
    metrics = {
        "accuracy": float((chosen == truth).all(axis=1).mean()),
        **averages,
        "roc_auc": _mean_of_defined(roc_auc),
        "average_precision": _mean_of_defined(average_precision),
        "loss": _nll(logits, truth, multi_label),
        "n": num_rows,
    }
    columns |= {"roc_auc": roc_auc, "average_precision": average_precision}
    if multi_label:
        for key, cells in (("tp", truth & chosen), ("fp", ~truth & chosen), ("fn", truth & ~chosen)):
            columns[key] = cells.sum(axis=0).tolist()  # numpy; at 0.5, the confusion matrix of a class
        metrics |= {"subset_accuracy": metrics["accuracy"], "hamming_loss": float((chosen != truth).mean())}
    else:
        matrix = confusion_matrix(truth.argmax(axis=1), choice, labels=range(num_classes))
        metrics["confusion_matrix"] = matrix.tolist()
    if tuned is not None:
        more, more_columns = _tuned(truth, np.asarray(tuned, dtype=bool))
        metrics, columns = metrics | more, columns | more_columns
    metrics["per_class"] = {
        name: {key: values[c] for key, values in columns.items()} for c, name in enumerate(label_names)
    }
    return metrics


def calibration_summary(logits: np.ndarray, labels: np.ndarray, multi_label: bool) -> dict:
    """How far the probabilities are from what comes true: ECE, Brier score, NLL and a diagram's bins.

    Args:    logits, labels: as in classification_metrics.
    Returns: ece: mean over rows of |accuracy - confidence| of the row's bin, in 15 bins of equal mass, of the
             top label's confidence; with multi_label of all n * C probabilities, where "accuracy" is the
             share of positives. Tied scores share one bin, so there may be fewer bins, and the row order
             cannot matter.
             brier: squared error, summed over the classes (0..2); with multi_label their mean (0..1).
             nll: in nats, the same number as `loss`.
             bins: list of {confidence, accuracy, n}, rising in confidence.
             temperature 1.0 and method "none": nothing is fitted here.
    Source:  Guo et al. 2017, arXiv:1706.04599, eq. 3; with bins of equal mass instead of equal width.
    """
    logits, truth = _checked(logits, labels, multi_label)
    probs = probabilities(logits, multi_label)
    squared = (probs - truth) ** 2
    confidence, right = confidences(logits, truth, multi_label)
    bins = _equal_mass_bins(confidence, right)
    gaps = sum(part["n"] * abs(part["accuracy"] - part["confidence"]) for part in bins)
    return {
        "ece": float(gaps / len(confidence)),
        "brier": float(squared.mean() if multi_label else squared.sum(axis=1).mean()),
        "nll": _nll(logits, truth, multi_label),
        "bins": bins,
        "temperature": 1.0,
        "method": "none",
    }


def confidences(logits: np.ndarray, truth: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """What calibration is measured on: the top label's probability, or with multi_label all n * C of them.

    Args:    logits: (n, C) float | truth: (n, C) bool.
    Returns: (m,) float64 confidence and (m,) bool, whether it came true; m is n, or n * C row after row.
    """
    probs = probabilities(logits, multi_label)
    if multi_label:
        return probs.ravel(), truth.ravel()
    return probs.max(axis=1), truth[np.arange(len(truth)), logits.argmax(axis=1)]


def bin_numbers(confidence: np.ndarray) -> np.ndarray:
    """(m,) int: which of at most NUM_BINS bins of about equal mass a score is in, rising; equal scores never part."""
    wanted = np.arange(NUM_BINS) * len(confidence) // NUM_BINS
    lowest = np.unique(np.sort(confidence)[wanted])
    return np.searchsorted(lowest, confidence, side="right") - 1


def _checked(logits: np.ndarray, labels: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, C) float64 and the labels as (n, C) bool, or a ValueError that says what does not fit."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or logits.size == 0:
        raise ValueError(f"logits must be (n, C) with at least one row, found {logits.shape}")
    expected = logits.shape if multi_label else logits.shape[:1]
    if labels.shape != expected:
        raise ValueError(
            f"labels must be {expected} for logits {logits.shape} ({multi_label=}), found {labels.shape}"
        )
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(logits)} rows have a logit that is not finite, first row {broken[0]}"
        )
    if multi_label:
        truth = labels == 1
        wrong = ~(truth | (labels == 0)).all(axis=1)
    else:
        truth = _one_hot(labels, logits.shape[1])
        wrong = ~truth.any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        allowed = "0 and 1" if multi_label else f"0..{logits.shape[1] - 1}"
        raise ValueError(f"labels must be {allowed}, found {labels[row].tolist()} in row {row}")
    return logits, truth


def _check_names_and_tuned(
    truth: np.ndarray, label_names: list[str], multi_label: bool, tuned: np.ndarray | None
) -> None:
    """A ValueError when the names or the tuned decisions do not fit the (n, C) labels."""
    num_classes = truth.shape[1]
    if len(label_names) != num_classes or len(set(label_names)) != num_classes:
        raise ValueError(f"label_names needs {num_classes} different names, found {list(label_names)}")
    if tuned is not None and (not multi_label or np.shape(tuned) != truth.shape):
        raise ValueError(
            f"tuned must be {truth.shape} with multi_label, found {np.shape(tuned)}, {multi_label=}"
        )


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(n, C) bool with one True a row; none where the label is outside 0..C-1."""
    return labels[:, None] == np.arange(num_classes)


def _nll(logits: np.ndarray, truth: np.ndarray, multi_label: bool) -> float:
    """Mean negative log-likelihood in nats, over rows or, with multi_label, over rows and classes."""
    if multi_label:
        log_likelihood = log_expit(np.where(truth, logits, -logits))
    else:
        log_likelihood = log_softmax(logits, axis=1)[truth]
    return abs(float(log_likelihood.mean()))  # abs: 0.0 is not to become -0.0


def _f1_family(truth: np.ndarray, chosen: np.ndarray) -> tuple[dict, dict]:
    """Averages, and columns of C values each, from two (n, C) bool arrays; 0/0 counts as 0.

    Own sums instead of precision_recall_fscore_support: that reads a single column (one label, yes or no) as
    two classes, and takes 11 ms for each kind of average at n = 5426, C = 28 (measured, 2026-11-20).
    """
    hits, told, real = (truth & chosen).sum(axis=0), chosen.sum(axis=0), truth.sum(axis=0)
    precision = hits / np.maximum(told, 1)
    recall = hits / np.maximum(real, 1)
    f1 = 2 * hits / np.maximum(told + real, 1)
    averages = {
        "macro_f1": float(f1.mean()),
        "micro_f1": float(2 * hits.sum() / max((told + real).sum(), 1)),
        "weighted_f1": float(f1 @ real / max(real.sum(), 1)),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
    }
    columns = {"precision": precision, "recall": recall, "f1": f1, "support": real}
    return averages, {key: values.tolist() for key, values in columns.items()}


def _tuned(truth: np.ndarray, tuned: np.ndarray) -> tuple[dict, dict]:
    """The `_tuned` averages and columns: the same rows, decided at tuned thresholds."""
    averages, columns = _f1_family(truth, tuned)
    kept = {f"{key}_tuned": averages[key] for key in ("macro_f1", "micro_f1", "weighted_f1")}
    kept["subset_accuracy_tuned"] = float((tuned == truth).all(axis=1).mean())
    kept["hamming_loss_tuned"] = float((tuned != truth).mean())
    return kept, {f"{key}_tuned": columns[key] for key in ("f1", "precision", "recall")}


def _ranking(truth: np.ndarray, scores: np.ndarray) -> tuple[list, list]:
    """Each class against the rest: ROC-AUC and average precision, None where undefined."""
    roc_auc, average_precision = [], []
    for is_class, score in zip(truth.T, np.ascontiguousarray(scores.T)):
        roc_auc.append(float(roc_auc_score(is_class, score)) if 0 < is_class.sum() < len(is_class) else None)
        average_precision.append(float(average_precision_score(is_class, score)) if is_class.any() else None)
    return roc_auc, average_precision


def _mean_of_defined(values: list) -> float | None:
    """The mean of what is not None; None when nothing is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _equal_mass_bins(confidence: np.ndarray, right: np.ndarray) -> list[dict]:
    """The bins of (m,) scores: mean confidence, share that came true, count."""
    order = np.argsort(confidence, kind="stable")
    confidence, right = confidence[order], right[order].astype(np.float64)
    starts = np.flatnonzero(np.diff(bin_numbers(confidence), prepend=-1))
    counts = np.diff(np.append(starts, len(confidence)))
    means = np.add.reduceat(confidence, starts) / counts
    shares = np.add.reduceat(right, starts) / counts
    return [
        {"confidence": float(mean), "accuracy": float(share), "n": int(count)}
        for mean, share, count in zip(means, shares, counts)
    ]
