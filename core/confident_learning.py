"""Confident learning: which given labels out-of-fold probabilities speak against, and how many labels are wrong.

Source: Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 70),
equations 1 to 3 and the pruning methods of section 3.2. As in cleanlab 2.9, and not in the paper: a threshold is met
from 1e-6 below it on, each class has at least one row counted as right, counts are whole numbers, and a row whose
likeliest class is the given one is never an issue. cleanlab differs from equation 1 where two classes meet their
thresholds and the likeliest class is neither: it counts the row as that one.

n rows, C classes. In a joint, rows are the given label i, columns the estimated true label j. Several labels a row are
C problems of two classes, as in cleanlab.multilabel_classification.
"""

import numpy as np

METHODS = ("prune_by_noise_rate", "prune_by_class", "both", "off_diagonal")
RANKINGS = ("self_confidence", "normalised_margin")
SLACK = 1e-6  # a mean of equal numbers can come out above them


def class_thresholds(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C,) t_j: the mean probability of class j over the rows given it (equation 2); infinite for a class without rows.

    Args: probs: (n, C) out-of-fold probabilities | labels: (n,) int, the given classes.
    """
    given = labels[:, None] == np.arange(probs.shape[1])
    counts = given.sum(axis=0)
    return np.where(counts > 0, (probs * given).sum(axis=0) / np.maximum(counts, 1), np.inf)


def confident_classes(probs: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(n,) int: of the classes whose threshold a row's probability reaches the likeliest (equation 1); -1: none."""
    reached = probs >= thresholds - SLACK
    return np.where(reached.any(axis=1), np.where(reached, probs, -1.0).argmax(axis=1), -1)


def confident_joint(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(C, C) int64: rows by given label and class that they are confidently counted as (equation 1), calibrated.

    Calibrated (equation 3, times n): each row of it sums to the rows that were given that label.
    """
    num_classes, classes = probs.shape[1], confident_classes(probs, class_thresholds(probs, labels))
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels[classes >= 0], classes[classes >= 0]), 1)
    np.fill_diagonal(counts, np.maximum(counts.diagonal(), 1))
    given = np.bincount(labels, minlength=num_classes)
    return np.stack([_round(row / row.sum() * n) for row, n in zip(counts, given, strict=True)])


def noise_matrix(joint: np.ndarray) -> np.ndarray:
    """(C, C) float64 P(given i | true j): columns sum to 1, those of a class that is nobody's true one are 0."""
    return joint / np.maximum(joint.sum(axis=0), 1)


def wrong_share(joint: np.ndarray) -> float:
    """The estimated share of rows with a wrong label."""
    return 1 - float(np.trace(joint) / max(joint.sum(), 1))


def find_issues(
    probs: np.ndarray, labels: np.ndarray, method: str = METHODS[0], joint: np.ndarray | None = None
) -> np.ndarray:
    """(n,) bool: the rows whose given label is probably wrong.

    Args: joint: (C, C) int64; None: confident_joint's | method: prune_by_noise_rate, of each cell (i, j) off the
          diagonal as many rows given i as it counts, those with the largest p_j - p_i; prune_by_class, of each class as
          many as its cells count together, those with the smallest p_i; both, what both find (C+NR);
          off_diagonal, the rows that equation 1 counted there.
    """
    joint = confident_joint(probs, labels) if joint is None else joint
    if method == "off_diagonal":
        classes = confident_classes(probs, class_thresholds(probs, labels))
        found = (classes >= 0) & (classes != labels)
    elif method == "both":
        found = find_issues(probs, labels, "prune_by_noise_rate", joint)
        found &= find_issues(probs, labels, "prune_by_class", joint)
    else:
        found = np.zeros(len(labels), bool)
        for i, cells in enumerate(joint):
            rows, wrong = np.flatnonzero(labels == i), np.delete(np.arange(len(cells)), i)
            if method == "prune_by_class":
                order = np.argsort(probs[rows, i], kind="stable")
                found[rows[order[: cells[wrong].sum()]]] = True
                continue
            for j in wrong[cells[wrong] > 0]:
                order = np.argsort(probs[rows, i] - probs[rows, j], kind="stable")
                found[rows[order[: cells[j]]]] = True
    own = probs[np.arange(len(labels)), labels]
    return found & (own + SLACK < probs.max(axis=1))


def label_scores(probs: np.ndarray, labels: np.ndarray, ranking: str = RANKINGS[0]) -> np.ndarray:
    """(n,) float64 in [0, 1], the lowest for the labels most probably wrong.

    Args: ranking: self_confidence, p of the given label i; normalised_margin, (p_i - max over j != i of p_j + 1) / 2.
    """
    rows = np.arange(len(labels))
    own = probs[rows, labels]
    if ranking == "self_confidence":
        return own
    others = probs.copy()
    others[rows, labels] = -np.inf
    return (own - others.max(axis=1) + 1) / 2


def one_vs_rest(probs: np.ndarray, truth: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The C problems of two classes, (n, 2) probabilities and (n,) labels each: class 1 is that the label holds.

    Args: probs, truth: (n, C) of independent labels.
    """
    return [
        (np.stack([1 - p, p], axis=1), given.astype(np.int64))
        for p, given in zip(probs.T, truth.T, strict=True)
    ]


def _round(values: np.ndarray) -> np.ndarray:
    """Whole numbers with the same sum: rounded, and those changed that rounding moved farthest the other way."""
    whole = np.rint(values)
    missing = round(values.sum() - whole.sum())
    order = np.argsort(values - whole, kind="stable")
    whole[order[len(order) - missing :] if missing > 0 else order[:-missing]] += np.sign(missing)
    return whole.astype(np.int64)
