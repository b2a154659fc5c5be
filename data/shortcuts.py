"""How far candidates give the right one away without question and context: numbers to print beside chance.

candidates_only   a linear model over words, character n-grams and numbers of each candidate by itself
set_aware         boosted trees that also see ranks in the set and what a candidate shares with the others
position          always the one place that is right most often
length            always the longest, or always the shortest candidate, in characters or in words, whichever is best

The first two are scored on questions of pages that they were not fitted on (five parts). position and length choose
their rule by the rows that they are scored on, which flatters them. Equal scores count as equal chances.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from data.probes import Array, Pool, hash_words, pick_accuracy, set_features, tree_probe

ALLOWED = 0.05  # above chance
FOLDS = 5
FEWEST = 20  # questions: with fewer no probe is fitted
CHARACTERS = HashingVectorizer(analyzer="char", ngram_range=(1, 4), n_features=2**15, alternate_sign=False)

Rows = Sequence[dict]


@threadpool_limits.wrap(limits=1)  # as data/selection.py
def measure_shortcuts(rows: Rows, pages: Sequence[str], seed: int = 0) -> dict[str, float]:
    """The four accuracies, chance, the standard error of an accuracy at chance, and n.

    Args:    rows: with candidates (any number, of programs or not) and gold | pages: of the rows, a group each.
    Returns: shares of the questions; the two probes are left out where there are fewer than FEWEST questions.
    """
    if not rows:
        return {"n": 0}
    sizes = np.array([len(row["candidates"]) for row in rows])
    chance = float((1 / sizes).mean())
    result = {"n": len(rows), "chance": chance, "error": math.sqrt(chance * (1 - chance) / len(rows))}
    if len(rows) >= FEWEST and len(set(pages)) >= FOLDS:
        result |= probe_accuracies(rows, pages, seed)
    return result | {"position": best_position(rows), "length": best_length(rows)}


def best_position(rows: Rows) -> float:
    """How often the place that is right most often is right."""
    return max(np.bincount([row["gold"] for row in rows])) / len(rows)


def best_length(rows: Rows) -> float:
    """How often the longest, or the shortest candidate is right; the better of the two, in characters or words."""
    best = 0.0
    for measure in (len, lambda text: len(text.split())):
        for sign in (1, -1):
            picks = []
            for row in rows:
                lengths = [sign * measure(text) for text in row["candidates"]]
                top = max(lengths)
                picks.append((lengths[row["gold"]] == top) / lengths.count(top))
            best = max(best, sum(picks) / len(picks))
    return best


def probe_accuracies(rows: Rows, pages: Sequence[str], seed: int) -> dict[str, float]:
    """The linear and the set-aware probe, each on pages that it was not fitted on."""
    own, beside = features_of(rows)
    right = np.concatenate([np.arange(len(row["candidates"])) == row["gold"] for row in rows])
    question = np.repeat(np.arange(len(rows)), [len(row["candidates"]) for row in rows])
    names = sorted(set(pages))
    shuffled = np.random.default_rng(seed).permutation(len(names)) % FOLDS
    fold = np.array([dict(zip(names, shuffled, strict=True))[page] for page in pages])[question]
    linear, trees = np.zeros(len(right)), np.zeros(len(right))
    for f in range(FOLDS):
        fitted, scored = fold != f, fold == f
        model = LogisticRegression(C=0.3, solver="liblinear", max_iter=300, random_state=seed)
        linear[scored] = model.fit(own[fitted], right[fitted]).decision_function(own[scored])
        trees[scored] = tree_probe(beside[fitted], right[fitted], seed).decision_function(beside[scored])
    return {
        "candidates_only": accuracy(linear, right, question),
        "set_aware": accuracy(trees, right, question),
    }


def features_of(rows: Rows) -> tuple[csr_matrix, Array]:
    """For each candidate of each row: (N, F) by itself, and (N, F') beside the others."""
    texts = [text for row in rows for text in row["candidates"]]
    pools = [Pool.of(row["candidates"]) for row in rows]
    numbers = StandardScaler().fit_transform(np.concatenate([pool.numbers for pool in pools]))
    characters = CHARACTERS.transform(texts)
    own = hstack([characters, 0.3 * hash_words(texts), csr_matrix(0.3 * numbers)]).tocsr()
    return own, np.concatenate([set_features(pool, np.arange(len(pool.numbers))[None])[0] for pool in pools])


def accuracy(scores: Array, right: Array, question: Array) -> float:
    """How often a question's highest score is the right one's, ties shared; questions may differ in size."""
    hits = []
    starts = np.flatnonzero(np.diff(question, prepend=-1))
    for own, truth in zip(np.split(scores, starts[1:]), np.split(right, starts[1:]), strict=True):
        hits.append(pick_accuracy(own[None], np.array([truth.argmax()])))
    return float(np.mean(hits))


def describe_shortcuts(found: dict[str, float]) -> list[str]:
    """Lines to print: each number beside chance, and which are too far above it."""
    if not found["n"]:
        return ["no questions, so no shortcuts to look for"]
    lines = [f"without question and context ({found['n']} questions, chance {found['chance']:.3f}):"]
    for name in ("candidates_only", "position", "length", "set_aware"):
        if name not in found:
            lines.append(f"  {name:16} not measured: fewer than {FEWEST} questions or {FOLDS} pages")
            continue
        above = found[name] - found["chance"]
        told = f"over the {ALLOWED:.2f} that are allowed" if above > ALLOWED else ""
        lines.append(
            f"  {name:16} {found[name]:.3f}  ({above:+.3f}, +- {found['error']:.3f}) {told}".rstrip()
        )
    return lines
