"""Which unlabelled rows are worth a label: unsure ones, and unsure ones that differ from one another.

numpy in, numbers out; the model's scores and the states before its last layer are all that is asked of it.

Legend: n rows, C classes, D width of the states, k rows that are chosen.
"""

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from core.metrics import probabilities


def margins(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """How narrowly each row is decided; small ones are worth a label.

    Args:    logits: (n, C) float, C at least 2 without multi_label.
    Returns: (n,) float64 in [0, 1]: the best class's probability less the second's; with multi_label the smallest
             |p - (1 - p)| of the labels: that of the label that is decided most narrowly.
    Source:  Scheffer, Decomain, Wrobel 2001, section 4; for several labels the same of each label's two outcomes.
    """
    if multi_label:  # 2 p - 1 = tanh(x / 2), which does not round to 1 as soon
        return np.abs(np.tanh(np.asarray(logits, np.float64) / 2)).min(axis=1)
    best = np.partition(probabilities(logits, False), -2, axis=1)
    return best[:, -1] - best[:, -2]


def residuals(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """The gradient of each row's loss in its logits, were the row's own prediction its label.

    Args:    logits: (n, C) float.
    Returns: (n, C) float64: p - onehot(argmax p), or with multi_label p - [p >= 0.5] for each label by itself.
    Source:  Ash et al. 2020, arXiv:1906.03671, eq. 1: times the row's state it is the gradient of the last layer.
    """
    probs = probabilities(logits, multi_label)
    if multi_label:
        return probs - (np.asarray(logits) >= 0)
    probs[np.arange(len(probs)), np.argmax(logits, axis=1)] -= 1
    return probs


def badge(residual: np.ndarray, states: np.ndarray, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """BADGE: rows whose gradients are large and point in different directions, by k-means++ seeding.

    Args:    residual: (n, C), see residuals | states: (n, D), the input of the last layer | num_rows: k, n at most.
    Returns: (k,) int64 different rows in the order drawn: the first has the largest gradient, each other is drawn with
             a chance proportional to its squared distance from the nearest one drawn before.
    Cost:    O(k n (C + D)) time, O(n (C + D)) memory: gradients are residual x state, so that their inner product is
             the product of two, and the (n, C D) matrix of them is never made.
    Source:  Ash et al. 2020, algorithm 1; the first as in the authors' code, where k-means++ draws it uniformly.
    """
    states = np.asarray(states, np.float32)
    norms = (residual**2).sum(axis=1) * np.einsum("nd,nd->n", states, states, dtype=np.float64)  # squared
    nearest, chosen = np.full(len(norms), np.inf), []
    for _ in range(min(num_rows, len(norms))):
        if not chosen:
            pick = int(norms.argmax())
        elif nearest.sum() > 0:
            pick = int(rng.choice(len(nearest), p=nearest / nearest.sum()))
        else:  # the rest have the gradients of rows that are drawn: any will do
            pick = int(rng.choice(np.setdiff1d(np.arange(len(nearest)), chosen)))
        products = (residual @ residual[pick]) * (states @ states[pick])
        nearest = np.minimum(nearest, np.maximum(norms + norms[pick] - 2 * products, 0))
        nearest[pick] = 0
        chosen.append(pick)
    return np.array(chosen, np.int64)


def coreset(states: np.ndarray, labelled: np.ndarray, num_rows: int) -> np.ndarray:
    """Core-set: rows such that no row is far from one with a label, greedily.

    Args:    states: (n, D) of the rows without a label | labelled: (m, D) of those with one, m at least 1 |
             num_rows: k, n at most.
    Returns: (k,) int64 different rows in the order chosen: each is the one farthest (Euclidean) from the nearest row
             that is labelled or chosen before; of equally far ones the first.
    Cost:    O((m + k) n D) time; distances to labelled rows are made in blocks.
    Source:  Sener, Savarese 2018, arXiv:1708.00489, algorithm 1 (greedy k-centre).
    """
    states = np.asarray(states, np.float32)
    nearest = pairwise_distances_argmin_min(states, np.asarray(labelled, np.float32))[1].astype(np.float64)
    chosen = []
    for _ in range(min(num_rows, len(states))):
        pick = int(nearest.argmax())
        away = np.sqrt(((states - states[pick]) ** 2).sum(axis=1, dtype=np.float64))
        nearest = np.minimum(nearest, away)
        nearest[pick] = -1  # of rows that are all equal, each once
        chosen.append(pick)
    return np.array(chosen, np.int64)
