"""Which unlabelled rows get a label from a model's probabilities: the most confident ones, by quotas of the classes.

Legend: n rows, C classes, G = C + 1 groups, M models. A row's group is its label; with several labels a row it is the
rarest label of its set, and group C for an empty set. Quotas and cuts are one a group.

With several labels a row every label is decided: it holds from p >= 0.5 on, and the row's confidence is that of its
least sure label, max(p, 1 - p). A least confidence of 0.8 so takes rows alone in which each label has p >= 0.8 (a
positive) or p <= 0.2 (a negative): no row is half labelled.
"""

import numpy as np

UNDECIDED = -1.0  # confidence of a row on which models differ: below every cut


def decide(probs: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """The labels that probabilities speak for, and how sure they are.

    Args:    probs: (n, C) calibrated probabilities.
    Returns: (n, C) bool: the most probable class, with multi_label every one from 0.5 on; (n,) float: its probability,
             with multi_label that of the least sure label's decision.
    """
    if multi_label:
        return probs >= 0.5, np.maximum(probs, 1 - probs).min(axis=1)
    return probs.argmax(axis=1)[:, None] == np.arange(probs.shape[1]), probs.max(axis=1)


def consult(probs: np.ndarray, multi_label: bool, agree: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What several models say together. Returns as decide.

    Args: probs: (M, n, C) | agree: False: the mean of their probabilities decides; True: a row on which two differ is
          UNDECIDED, the confidence of the others is the least of the models'.
    """
    if not agree:
        return decide(probs.mean(axis=0), multi_label)
    found = [decide(own, multi_label) for own in probs]
    chosen = np.stack([own for own, _ in found])  # (M, n, C)
    same = (chosen == chosen[0]).all(axis=(0, 2))
    least = np.min([confidence for _, confidence in found], axis=0)
    return chosen[0], np.where(same, least, UNDECIDED)


def label_groups(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(n,) int: the group of each row. Args: labels: (n, C) bool | counts: (C,) labelled rows of each class."""
    rarest = np.where(labels, counts, np.inf).argmin(axis=1)
    return np.where(labels.any(axis=1), rarest, labels.shape[1])


def class_quotas(prior: np.ndarray, num_rows: int) -> np.ndarray:
    """(G,) int: num_rows divided as the prior is, by largest remainders; of equal ones the first.

    Args:   prior: (G,) labelled rows of each group, at least one.
    Source: the balance of Zou et al. 2018, "Unsupervised domain adaptation for semantic segmentation via
            class-balanced self-training" (ECCV), eq. 5, with the labelled rows' shares in place of equal ones.
    """
    wanted = prior / prior.sum() * num_rows
    quotas = np.floor(wanted + 1e-9).astype(np.int64)  # a share that is whole is not lost to rounding
    order = np.argsort(-(wanted - quotas), kind="stable")
    quotas[order[: num_rows - quotas.sum()]] += 1
    return quotas


def select(
    groups: np.ndarray, confidence: np.ndarray, quotas: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """The most confident rows of each group, as many as its quota, none below the least confidence.

    What one group has not enough rows for is given to no other. Of equal ones the first come.
    Args:    groups: (n,) int | confidence: (n,) | quotas: (G,) int | least: from 0 to 1.
    Returns: (n,) bool; (G,) float: the lowest confidence that was taken, inf where none was: is_above of other rows
             with these cuts is the same rule on them.
    """
    taken, cuts = np.zeros(len(groups), bool), np.full(len(quotas), np.inf)
    for group, quota in enumerate(quotas):
        rows = np.flatnonzero((groups == group) & (confidence >= least))
        rows = rows[np.argsort(-confidence[rows], kind="stable")][:quota]
        taken[rows] = True
        if len(rows):
            cuts[group] = confidence[rows[-1]]
    return taken, cuts


def is_above(groups: np.ndarray, confidence: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """(n,) bool: the rows that the cuts of `select` would take. Args as there."""
    return confidence >= cuts[groups]
