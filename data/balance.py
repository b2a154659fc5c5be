"""One set a question, such that right candidates differ from their sets in nothing when summed over all questions.

What is zero on these very rows helps no probe of that kind, whatever rows it was fitted on. Zero are made

- the moments: in which of a few bins each number and rank is, which common words a candidate has, which leaves of
  trees that tell right from wrong it falls into, how often earlier probes pick it;
- the planes: one after the other a probe is fitted on the sets as they are chosen, and the right candidate's rank
  under it is made each rank equally often.

Legend:  Q questions, B sets to choose from, K candidates of a set, F numbers of a candidate, D moments.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from sklearn.ensemble import ExtraTreesClassifier

from data.probes import Array, log_softmax, page_folds, tree_probe

COMMON_WORD, BINS = 0.02, 5  # share of candidates with a word that counts; of a number
TREES, LEAVES, TREE_ROWS = 40, 16, 40_000  # whose leaves are moments; candidates that they are fitted on
PLANES = ("trees", "linear", "words", "trees", "linear", "trees") * 3
PLANE_WEIGHT, RIDGE, FOLDS = (
    0.02,
    5.0,
    4,
)  # of each rank under a plane; of a probe's weights; parts of the pages
PASSES, AGAIN = 5, 2  # over all questions, at first and after each plane


def bin_edges(values: Array) -> list[float]:
    """At most BINS - 1 different edges between bins of about equal size."""
    return sorted(set(np.quantile(values, np.arange(1, BINS) / BINS).tolist()))


def above_mean(inside: Array) -> Array:
    """(Q, B, ...) of (Q, B, K, ...): how much more the right candidate, the first, has than the mean of its set."""
    return (inside[:, :, 0] - inside.mean(2)).astype(np.float32)


def moments(x: Array, words: Array, scores: Array, seed: int) -> Array:
    """(Q, B, D) float32: in what the right candidate differs from its set, in units of what is usual, / sqrt(D).

    Args:    x: (Q, B, K, F) of set_features | words: (Q, B, D') above_mean of the common words |
             scores: (Q, B, S, K) of S probes.
    """
    parts = [words]
    for i in range(x.shape[3]):
        parts += [above_mean(x[..., i] > edge)[..., None] for edge in bin_edges(x[..., i])]
    parts += leaf_moments(x, seed)
    picked = scores >= scores.max(3, keepdims=True)
    shares = (np.exp(log_softmax(scores)), picked / picked.sum(3, keepdims=True))
    parts += [(share[..., 0] - 1 / share.shape[3]).astype(np.float32) for share in shares]
    found = np.concatenate(parts, 2)
    found /= np.maximum(1e-3, found.reshape(-1, found.shape[2]).std(0)) * np.sqrt(found.shape[2])
    return found


def common_words(words: csr_matrix) -> Array:
    """The columns of words that enough candidates have."""
    counts = np.asarray(words.astype(bool).sum(0)).ravel()
    return np.flatnonzero(counts > max(3, COMMON_WORD * words.shape[0]))


def leaf_moments(x: Array, seed: int) -> list[Array]:
    """(Q, B, leaves) for each of TREES trees that tell right from wrong: which leaf."""
    rows = x.reshape(-1, x.shape[3])
    right = np.tile(np.arange(x.shape[2]) == 0, len(rows) // x.shape[2])
    some = np.random.default_rng(seed).choice(len(rows), min(len(rows), TREE_ROWS), replace=False)
    forest = ExtraTreesClassifier(
        TREES, max_leaf_nodes=LEAVES, min_samples_leaf=40, max_features=0.4, class_weight="balanced",
        random_state=seed,
    )  # fmt: skip
    leaves = forest.fit(rows[some], right[some]).apply(rows).reshape(*x.shape[:3], TREES)
    return [above_mean(leaves[..., t, None] == np.unique(leaves[..., t])) for t in range(TREES)]


def match(found: Array, chosen: Array, groups: Array, passes: int, rng: np.random.Generator) -> Array:
    """(Q,) one set for each question, such that each group's sums of moments are small: coordinate descent."""
    chosen = chosen.copy()
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        total = found[members, chosen[members]].sum(0)
        for _ in range(passes):
            for q in rng.permutation(members):
                rest = total - found[q, chosen[q]]
                chosen[q] = (found[q] @ (2 * rest) + (found[q] ** 2).sum(1)).argmin()
                total = rest + found[q, chosen[q]]
    return chosen


def listwise_probe(x: Array) -> Array:
    """(F,) weights of a conditional logit that picks the first of each set. Args: x: (Q, K, F), scaled."""

    def loss(weights: Array) -> tuple[float, Array]:
        logp = log_softmax(x @ weights)
        gradient = (np.exp(logp)[:, :, None] * x).sum((0, 1)) - x[:, 0].sum(0) + RIDGE * weights
        return -logp[:, 0].sum() + RIDGE / 2 * weights @ weights, gradient

    return minimize(loss, np.zeros(x.shape[2]), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x


def linear_plane(x: Array, chosen: Array, rng: np.random.Generator) -> Array:
    """(Q, B, K) scores of a listwise probe that is fitted on the chosen sets, on some of what it could see."""
    columns = rng.permutation(x.shape[3])[: int(x.shape[3] * rng.uniform(0.5, 1))]
    own = x[np.arange(len(x)), chosen]  # (Q, K, F)
    return x[..., columns] @ listwise_probe(own[..., columns])


def tree_plane(x: Array, chosen: Array, pages: Sequence[str], rng: np.random.Generator) -> Array:
    """(Q, B, K) scores of trees that are fitted on the chosen sets of other pages' questions."""
    own = x[np.arange(len(x)), chosen]
    scores, folds = np.zeros(x.shape[:3]), page_folds(pages, FOLDS, rng)
    for fold in range(FOLDS):
        fitted, scored = folds != fold, folds == fold
        right = np.tile(np.arange(x.shape[2]) == 0, fitted.sum())
        probe = tree_probe(own[fitted].reshape(-1, x.shape[3]), right, int(rng.integers(2**31)))
        scores[scored] = probe.decision_function(x[scored].reshape(-1, x.shape[3])).reshape(-1, *x.shape[1:3])
    return scores


def balance(
    x: Array,
    words: Array,
    scores: Array,
    pages: Sequence[str],
    groups: Sequence[int],
    by_words: Callable[[Array], Array],
    rng: np.random.Generator,
) -> Array:
    """(Q,) which of its sets each question has.

    Args:    x, words, scores: as in moments | pages: of the questions | groups: (Q,) files: each is balanced |
             by_words: (Q,) the chosen sets -> (Q, B, K), scores of a linear probe that is fitted on their words.
    """
    seed, groups = int(rng.integers(2**31)), np.asarray(groups)
    found = moments(x, words, scores, seed)
    chosen = match(found, np.zeros(len(x), int), groups, PASSES, rng)
    x = (x - x.mean((0, 1, 2))) / np.maximum(1e-3, x.std((0, 1, 2)))
    size = x.shape[2]
    for kind in PLANES:
        if kind == "words":
            new = by_words(chosen)
        else:
            new = linear_plane(x, chosen, rng) if kind == "linear" else tree_plane(x, chosen, pages, rng)
        above = (new > new[:, :, :1]).sum(2) + rng.random(new.shape[:2]) * (new == new[:, :, :1]).sum(2)
        ranks = above[:, :, None] >= np.arange(1, size)  # (Q, B, K - 1)
        ranks = PLANE_WEIGHT**0.5 * (ranks - (1 - np.arange(1, size) / size)) / 0.4
        found = np.concatenate([found, ranks.astype(np.float32)], 2)
        chosen = match(found, chosen, groups, AGAIN, rng)
    return chosen
