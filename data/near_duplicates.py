"""The search for texts with most of their words in common: exact, and quick where all of them share common words.

Legend: n texts, m different word sets, sorted by size; words are numbered from the rarest.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

BITS = 256  # of a set's sketch; a multiple of 64
SLACK = 1e-9  # shares like 0.7 are no binary fractions


def word_sets(texts: list[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """The different word sets of texts, case and order aside.

    Returns: m ascending (words,) int64, the smallest first | (n,) int64: each text's set, -1 for none.
    """
    number: dict[str, int] = {}
    found: dict[bytes, int] = {}
    own = np.full(len(texts), -1)
    for i, text in enumerate(texts):
        words = {number.setdefault(word, len(number)) for word in re.findall(r"\w+", text.lower())}
        if words:
            own[i] = found.setdefault(np.array(sorted(words), np.int32).tobytes(), len(found))
    if not found:
        return [], own
    sets = [np.frombuffer(content, np.int32) for content in found]
    sizes = np.array([len(words) for words in sets])
    order = np.argsort(sizes, kind="stable")
    flat = np.concatenate([sets[k] for k in order])
    rank = np.empty(len(number), np.int64)
    rank[np.argsort(np.bincount(flat), kind="stable")] = np.arange(len(number))
    of_set = np.repeat(np.arange(len(sets)), sizes[order])
    flat = np.sort(of_set * len(number) + rank[flat]) % len(number)  # ascending in each set
    place = np.empty(len(sets) + 1, np.int64)
    place[order], place[-1] = np.arange(len(sets)), -1
    return np.split(flat, np.cumsum(sizes[order])[:-1]), place[own]


def near_pairs(
    sets: list[np.ndarray], near: float, wanted: Callable[[int, np.ndarray], np.ndarray]
) -> Iterator[tuple[int, int]]:
    """Each pair of sets (k, j), j < k, that is wanted and has at least `near` of its words in common (Jaccard).

    Args:    sets: as word_sets returns them | near: from 0 to 1, 0 left out |
             wanted: (k, (c,) others) -> (c,) bool; asked again after each pair, so that what a pair settles
             needs no other.
    Cost:    50,000 made-up texts of 12, 80 and 200 words, Zipf-distributed: 1.2, 3.7 and 8.2 s; of 10 words out of 20,
             of which nearly every two texts share most: 17 s (one core of two, 2026-11-20).
    Source:  Xiao, Wang, Lin, Yu 2008, "Efficient similarity joins for near duplicate detection": of
             two such sets the larger shares one of its size - ceil(near * size) + 1 rarest words with the
             size - ceil(2 near / (1 + near) * size) + 1 rarest of the smaller. Sandes, Teodoro, Melo 2020, "Bitmap
             filter": words in one alone are at least as many as the bits in which their sketches differ. What
             that leaves is compared word by word.
    """
    sizes = np.array([len(words) for words in sets], np.int64)
    bits = _sketches(sets, sizes)
    # of each set the first that is large enough to be near it
    least = np.searchsorted(sizes, np.ceil(near * sizes - SLACK)).tolist()
    kept = sizes - np.ceil(2 * near / (1 + near) * sizes - SLACK).astype(int) + 1
    looked = sizes - np.ceil(near * sizes - SLACK).astype(int) + 1
    holders = defaultdict(list)  # word -> sets that keep it
    for k, words in enumerate(sets):
        for word in words[: kept[k]].tolist():
            holders[word].append(k)
    holders = {word: np.array(numbers) for word, numbers in holders.items()}
    start, end = dict.fromkeys(holders, 0), dict.fromkeys(holders, 0)  # of the holders that k can be near to
    share = near / (1 + near)  # of the sum of both sizes
    for k in tqdm(range(len(sets)), "near-duplicates", unit=" texts", disable=None, leave=False, delay=1):
        found = []
        for word in sets[k][: looked[k]].tolist():
            if word in holders:
                numbers, first, last = holders[word], start[word], end[word]
                while first < last and numbers[first] < least[k]:
                    first += 1
                start[word] = first
                if first < last:
                    found.append(numbers[first:last])
        for word in sets[k][: kept[k]].tolist():
            end[word] += 1
        if not found:
            continue
        others = np.concatenate(found)
        others = others[wanted(k, others)]
        both = sizes[others] + sizes[k]
        apart = np.bitwise_count(bits[others] ^ bits[k]).sum(axis=1)
        others = np.unique(others[both - apart >= 2 * (share * both - SLACK)])
        words = set(sets[k].tolist())
        while len(others):
            j, others = int(others[0]), others[1:]
            if len(words.intersection(sets[j].tolist())) >= share * (sizes[k] + sizes[j]) - SLACK:
                yield k, j
                others = others[wanted(k, others)]


def _sketches(sets: list[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """(m, BITS / 64) uint64: a bit is set where one of the set's words falls on it."""
    bits = np.zeros((len(sets), BITS // 64), np.uint64)
    if sets:
        flat = np.concatenate(sets)
        of_set = np.repeat(np.arange(len(sets)), sizes)
        np.bitwise_or.at(bits, (of_set, flat % BITS // 64), np.uint64(1) << (flat % 64).astype(np.uint64))
    return bits
