"""What a candidate shows without its question: numbers and words for probes, and probes that guess the right one.

Legend:  Q questions, P candidates of a question's pool (the right one first), B sets drawn from a pool, K candidates of
a set, F numbers of a candidate.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import LogisticRegression

NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)%?")
NAME = re.compile(r" \[([^\]]*)\]")  # of an operand (data/operand_names.py)
OPERATIONS = ("+", "-", "*", "/")
FUNCTIONS = ("average(", "max(", "min(", "sum(")
WORDS = 2**14  # buckets of hashed words

Array = np.ndarray


# One candidate


def split_text(text: str) -> tuple[str, list[str], str]:
    """The arithmetic with letters for its numbers (the same for the same), the numbers, and the value; no names."""
    program, _, value = NAME.sub("", text).rpartition(" = ")
    numbers, letters = [], {}

    def letter(match: re.Match) -> str:
        if match[0] in ("100", "1000", "1000000", "2", "3", "-1"):
            numbers.append(match[0])
            return match[0]
        numbers.append(match[0])
        return letters.setdefault(match[0], chr(ord("A") + min(25, len(letters))))

    if any(name in program for name in FUNCTIONS):
        return re.sub(r"(average|max|min|sum)\(.*?\)(?= [-+*/]|\)|$)", r"\1(R)", program), numbers, value
    return re.sub(rf"(?<![\w.)]){NUMBER.pattern}", letter, program), numbers, value


def look(number: str) -> str:
    """A number's kind: sign, digits before and behind the point, percent, year."""
    if re.fullmatch(r"19[89]\d|20[0-3]\d", number):
        return "year"
    whole, _, rest = number.strip("-%").partition(".")
    return f"{'-' * number.startswith('-')}{len(whole)}.{len(rest)}{'%' * number.endswith('%')}"


def words_of(text: str) -> Counter:
    """The words that a linear probe sees: the shape in n-grams, numbers as they are and by their look, the value, the
    words of the operands' names."""
    shape, numbers, value = split_text(text)
    tokens = ["^", *re.findall(r"\w+|[^\w\s]", shape), "$"]
    found = [f"shape {shape}", f"value {look(value)}", f"first {value.strip('-')[:1]}", f"last {value[-1]}"]
    for n in (1, 2, 3):
        found += [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    looks = [look(number) for number in numbers]
    found += [f"number {number}" for number in numbers] + [f"look {x}" for x in looks]
    found += [f"looks {i} {x}" for i, x in enumerate(looks[:4])]
    found += [f"both {a} {b}" for a, b in zip(looks, looks[1:], strict=False)]
    found += [f"end {number[-2:]}" for number in numbers]
    names = [name.lower().split() for name in NAME.findall(text)]
    for words in names:
        found += [f"name {word}" for word in words] + [
            f"name {a} {b}" for a, b in zip(words, words[1:], strict=False)
        ]
    found += [f"different names {len(set(map(tuple, names)))} of {len(names)}"] if names else []
    found.append(f"length {len(text) // 3}")
    return Counter(found)


def magnitude(value: float) -> float:
    """log10 of the absolute value, 1e-9 for 0."""
    return math.log10(max(1e-9, abs(value)))


def as_float(text: str) -> float:
    """A number as split_text finds it; 0.035 for 3.5%."""
    return float(text.rstrip("%")) / (100 if text.endswith("%") else 1)


NUMBER_NAMES = (
    "value sign", "value magnitude", "value is whole", "value digits", "value decimals", "value below 1",
    "value like a year", "length", "operations", "parentheses", "first operation", "last operation",
    *(f"count {op}" for op in OPERATIONS), *(f"count {name}" for name in FUNCTIONS), "operands", "different operands",
    "operand mean", "operand most", "operand least", "operand spread", "years", "percents", "negative operands",
    "constants", "most decimals", "least decimals", "round operands", "first magnitude", "second magnitude",
    "first against second", "value against operands", "last magnitude", "value in operands",
)  # fmt: skip


def numbers_of(text: str) -> list[float]:
    """The numbers that a probe of trees sees, one for each of NUMBER_NAMES."""
    shape, numbers, value_text = split_text(text)
    value = float(value_text) if value_text not in ("yes", "no") else 0.0
    digits = value_text.strip("-")
    operations = re.findall(r"(?<= )[-+*/^](?= )", shape)
    operands = [as_float(number) for number in numbers] or [0.0]
    sizes = [magnitude(x) for x in operands]
    decimals = [len(number.rstrip("%").partition(".")[2]) for number in numbers] or [0]
    codes = ["", *OPERATIONS, "^"]
    return [
        float(np.sign(value)), magnitude(value), float("." not in digits), len(digits.replace(".", "")),
        len(digits.partition(".")[2]), float(abs(value) < 1), float(1980 <= abs(value) < 2040),
        len(text), len(operations), shape.count("("),
        codes.index(operations[0] if operations else ""), codes.index(operations[-1] if operations else ""),
        *(operations.count(op) for op in OPERATIONS), *(shape.count(name) for name in FUNCTIONS),
        len(numbers), len(set(numbers)), sum(sizes) / len(sizes), max(sizes), min(sizes), max(sizes) - min(sizes),
        sum(look(number) == "year" for number in numbers), sum(number.endswith("%") for number in numbers),
        sum(number.startswith("-") for number in numbers),
        sum(number in ("100", "1000", "1000000") for number in numbers),
        max(decimals), min(decimals), sum(x == round(x, -1) for x in operands),
        sizes[0], sizes[1] if len(sizes) > 1 else -10.0,
        sizes[0] - sizes[1] if len(sizes) > 1 else 0.0, magnitude(value) - max(sizes), sizes[-1],
        float(any(math.isclose(abs(x), abs(value), rel_tol=1e-3) for x in operands)),
    ]  # fmt: skip


def hash_words(texts: list[str]) -> csr_matrix:
    """(texts, WORDS) counts of words_of."""
    return FeatureHasher(WORDS, input_type="dict", alternate_sign=False).transform(words_of(t) for t in texts)


# A candidate among others

RANKED = tuple(
    NUMBER_NAMES.index(name)
    for name in (
        "value magnitude", "value digits", "value decimals", "length", "operations", "operand mean", "operand most",
        "operand least", "operand spread", "most decimals", "different operands", "first magnitude", "last magnitude",
    )
)  # fmt: skip
SHARED = tuple(
    NUMBER_NAMES.index(name)
    for name in (
        "value sign",
        "value below 1",
        "value decimals",
        "operations",
        "first operation",
        "last operation",
    )
)


@dataclass
class Pool:
    """What probes need of one question's candidates."""

    numbers: Array  # (P, F) float32
    shapes: Array  # (P,) int: equal where the arithmetic has the same shape
    parts: Array  # (P, V) float32: 1 where the text has this number or operation

    @classmethod
    def of(cls, texts: list[str]) -> "Pool":
        split = [split_text(text) for text in texts]
        ids = {shape: i for i, shape in enumerate(dict.fromkeys(shape for shape, _, _ in split))}
        owned = [
            {
                *numbers,
                *re.findall(r"(?<= )[-+*/^](?= )", shape),
                *re.findall(r"\w+\(.*?\)", NAME.sub("", text)),
            }
            for text, (shape, numbers, _) in zip(texts, split, strict=True)
        ]
        columns = {
            part: i for i, part in enumerate(dict.fromkeys(part for parts in owned for part in sorted(parts)))
        }
        parts = np.zeros((len(texts), len(columns)), np.float32)
        for i, own in enumerate(owned):
            parts[i, [columns[part] for part in own]] = 1
        numbers = np.array([numbers_of(text) for text in texts], np.float32)
        return cls(numbers, np.array([ids[shape] for shape, _, _ in split]), parts)


def set_features(pool: Pool, sets: Array, scores: Array | None = None) -> Array:
    """What a candidate shows beside the others of its set.

    Args:    sets: (B, K) int, places in the pool | scores: (P,) a linear probe's, ranked too.
    Returns: (B, K, F') float32: its own numbers, ranks, differences from the mean, and what it shares with others.
    """
    own = pool.numbers[sets]  # (B, K, F)
    ranked = own[:, :, RANKED]
    if scores is not None:
        ranked = np.concatenate([ranked, scores[sets][:, :, None]], 2)
    above = (ranked[:, :, None] > ranked[:, None]).sum(2) + 0.5 * (ranked[:, :, None] == ranked[:, None]).sum(
        2
    )
    apart = ranked - ranked.mean(1, keepdims=True)
    others = sets.shape[1] - 1
    same = own[:, :, SHARED]
    alike = ((same[:, :, None] == same[:, None]).sum(2) - 1) / others
    shapes = pool.shapes[sets]
    same_shape = ((shapes[:, :, None] == shapes[:, None]).sum(2) - 1)[:, :, None] / others
    parts = pool.parts[sets]  # (B, K, V)
    size = parts.sum(2)[:, :, None]  # (B, K, 1)
    shared = (parts * (parts.sum(1, keepdims=True) - 1)).sum(2)[:, :, None] / np.maximum(size, 1) / others
    both = parts @ parts.swapaxes(1, 2)  # (B, K, K)
    overlap = both / np.maximum(1, size + size.swapaxes(1, 2) - both)
    overlap[:, range(others + 1), range(others + 1)] = 0
    nearest = np.sort(np.abs(ranked[:, :, None, 0] - ranked[:, None, :, 0]), 2)[:, :, 1:2]
    relations = [
        alike,
        same_shape,
        shared,
        overlap.sum(2)[:, :, None] / others,
        overlap.max(2)[:, :, None],
        nearest,
    ]
    relations += [rank_in_set(relation) for relation in relations[2:4]]
    return np.concatenate([own, above, apart, *relations], 2).astype(np.float32)


def rank_in_set(values: Array) -> Array:
    """(B, K, 1) how many of the set are below, ties half."""
    other = values.swapaxes(1, 2)
    return ((values > other).sum(2) + 0.5 * (values == other).sum(2))[:, :, None]


# Probes


def page_folds(pages: Sequence[str], folds: int, rng: np.random.Generator) -> Array:
    """(Q,) a fold for each question; those of one page share it."""
    names = sorted(set(pages))
    fold = dict(zip(names, rng.permutation(len(names)) % folds, strict=True))
    return np.array([fold[page] for page in pages])


def linear_probe(
    words: csr_matrix, is_right: Array, weight: Array | None = None, strength: float = 0.3
) -> LogisticRegression:
    """A logistic regression on words, fitted."""
    model = LogisticRegression(C=strength, solver="liblinear", max_iter=200)
    return model.fit(words, is_right, sample_weight=weight)


def tree_probe(
    features: Array, is_right: Array, seed: int, rounds: int = 60
) -> HistGradientBoostingClassifier:
    """Gradient-boosted trees on numbers, fitted."""
    model = HistGradientBoostingClassifier(
        max_iter=rounds, learning_rate=0.1, max_leaf_nodes=12, min_samples_leaf=25, l2_regularization=5.0,
        max_bins=64, early_stopping=False, random_state=seed,
    )  # fmt: skip
    return model.fit(features, is_right)


def log_softmax(scores: Array) -> Array:
    """Along the last axis."""
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def pick_accuracy(scores: Array, gold: Array) -> float:
    """How often the highest score is the right one's; of equal scores each is picked equally often.

    Args:    scores: (Q, K) | gold: (Q,) int.
    """
    best = scores >= scores.max(1, keepdims=True) - 1e-12
    return float((best[np.arange(len(gold)), gold] / best.sum(1)).mean())
