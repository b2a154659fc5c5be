"""What steps of `data/` share: which rows belong together, which split they go to, and files written whole."""

import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from core.errors import disk_error
from data.near_duplicates import near_pairs, word_sets

NEAR = 0.7  # share of words in common from which two texts are near-duplicates
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
ALL_ROWS, NO_LABEL = ("all rows",), ("no label",)  # no strings, as labels are
MOST_PASSES = 20  # over all groups, to level a split: 2 to 5 are usual


def group_near_duplicates(texts: list[str], near: float = NEAR) -> list[int]:
    """A group for each text; two texts with at least `near` of their words in common are in the same one.

    Words in common: of all different words of the two, the share that both have (Jaccard), case and order
    aside. Groups are closed: a and c share one when both are near b. The search is exact, not an estimate.
    A text without a word is alone. Cost, source: near_pairs.
    """
    sets, own = word_sets(texts)
    group = np.arange(len(sets))
    members = [[k] for k in range(len(sets))]
    for k, j in near_pairs(sets, near, lambda k, others: group[others] != group[k]):
        fewer, more = sorted((int(group[k]), int(group[j])), key=lambda g: len(members[g]))
        group[members[fewer]] = more
        members[more] += members[fewer]
        members[fewer] = []
    return [int(group[k]) if k >= 0 else len(sets) + i for i, k in enumerate(own)]


def find_near(texts: list[str], others: list[str], near: float = NEAR) -> list[int]:
    """For each text one of the others that is near it (words in common as in group_near_duplicates), or -1.

    Of several the one that the search meets first. By way of a third text nothing is near.
    """
    sets, own = word_sets(texts + others)
    is_open, found = np.zeros(len(sets), bool), np.full(len(sets) + 1, -1)
    of_other = np.full(len(sets), -1)  # the first of the others with this set
    is_open[own[: len(texts)][own[: len(texts)] >= 0]] = True
    for i, k in reversed(list(enumerate(own[len(texts) :]))):
        if k >= 0:
            of_other[k] = i
    both = is_open & (of_other >= 0)
    found[:-1][both] = of_other[both]
    is_open &= ~both

    def wanted(k: int, numbers: np.ndarray) -> np.ndarray:
        return (is_open[k] & (of_other[numbers] >= 0)) | ((of_other[k] >= 0) & is_open[numbers])

    for k, j in near_pairs(sets, near, wanted):
        text, other = (k, j) if is_open[k] else (j, k)
        found[text], is_open[text] = of_other[other], False
    return found[own[: len(texts)]].tolist()


def join_groups(groups: list[int], owners: list[str]) -> list[int]:
    """Groups in which rows of one owner are together too; "" is nobody's.

    Methods of one class speak of the same few things: divided between the splits, knowing the class's own words
    would pass for knowing the package.
    """
    parent = {group: group for group in groups}

    def root(group: int) -> int:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[str, int] = {}
    for group, owner in zip(groups, owners, strict=True):
        if owner:
            parent[root(group)] = root(first.setdefault(owner, group))
    return [root(group) for group in groups]


def split_by_group(
    groups: list[int], names: list[list[str]], seed: int, shares: Mapping[str, float] = SHARES
) -> dict[str, list[int]]:
    """Indices of the rows of each split, in a shuffled order; a group is never divided.

    Large groups go first, each to the split that would have the most room left for the names its rows carry.
    Args:    names: what to keep level over the splits, for each row: its label, or the labels that hold |
             shares: the part of all rows that each split is to have.
    """
    rng = random.Random(seed)
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    order = list(members.values())
    rng.shuffle(order)
    order.sort(key=len, reverse=True)
    total = Counter(name for row in names for name in row)
    wanted = {(split, name): share * total[name] for split, share in shares.items() for name in total}
    room = dict(wanted)
    splits = {split: [] for split in shares}
    for group in order:
        count = Counter(name for i in group for name in names[i])
        left = {s: sum((room[s, k] - n) / wanted[s, k] for k, n in count.items()) for s in shares}
        best = max(shares, key=left.get)
        splits[best] += group
        for name, n in count.items():
            room[best, name] -= n
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def stratify(
    groups: list[int], names: list[list[str]], keys: list[int], shares: Mapping[str, float]
) -> list[str]:
    """The part of each row: labels level over the parts, a group never divided, each label in the first part.

    Which row goes where depends on the rows and their keys, not on their order.
    Args:    names: the labels of each row; none of them counts as a label, too | keys: of each row, random
             numbers that differ between groups: they break ties | shares: the part of all rows, and of each
             label's rows, that each part is to have; above 0.
    Cost:    50,000 rows with some of 12 labels: 1.1 s (one core of two, 2026-11-20).
    Source:  Sechidis, Tsoumakas, Vlahavas 2011, "On the stratification of multi-label data" (ECML PKDD), algorithm
             1: the label with fewest rows left is dealt first, each of its rows to the part that lacks it most, of
             several to the one that lacks most rows. Different here: groups are dealt, the larger ones first (by
             powers of two); a lack is a share of what the part is to have, the group taken off, so that large
             groups are spread and not all in the first part; a tie that is left goes to the first part; a label
             that the first part then lacks gets a group there; and at last groups are moved as long as that lowers
             the sum of (found - wanted)^2 / rows over parts and labels, all rows counted as a label, too: dealing
             looks at one label at a time.
    """
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    order = sorted(members.values(), key=lambda rows: (-len(rows).bit_length(), min(keys[i] for i in rows)))
    counts = [_count_names([names[i] for i in rows]) for rows in order]
    total = Counter()
    for own in counts:
        total.update(own)
    first, *_ = shares
    lacks = {part: {name: share * n for name, n in total.items()} for part, share in shares.items()}
    found_first = Counter()  # labels of the first part
    part_of: list[str] = [""] * len(order)

    def put(g: int, part: str) -> None:
        for name, n in counts[g].items():
            if part_of[g]:
                lacks[part_of[g]][name] += n
            lacks[part][name] -= n
            found_first[name] += n * ((part == first) - (part_of[g] == first))
        part_of[g] = part

    def room(g: int, part: str, name: str | tuple) -> float:
        """What a part would lack with a group, as a share of what it is to have."""
        return round((lacks[part][name] - counts[g][name]) / (shares[part] * total[name]), 6)

    def change(g: int, part: str) -> float:
        """Half of what a move adds to the sum."""
        old, new = lacks[part_of[g]], lacks[part]
        return sum(n * (n + old[name] - new[name]) / total[name] for name, n in counts[g].items())

    with_name, left = defaultdict(list), Counter(total)
    for g, own in enumerate(counts):
        for name in own:
            with_name[name].append(g)
    del left[ALL_ROWS]
    while left:
        rarest = min(left, key=lambda name: (left[name], str(name)))
        for g in with_name[rarest]:
            if not part_of[g]:
                put(g, max(shares, key=lambda part: [room(g, part, name) for name in (rarest, ALL_ROWS)]))
                for name in counts[g].keys() & left.keys():
                    left[name] -= counts[g][name]
        del left[rarest]
    for name in sorted({name for own in names for name in own}, key=lambda name: (total[name], name)):
        if not found_first[name]:
            put(min(with_name[name], key=lambda g: change(g, first)), first)
    for _ in range(MOST_PASSES):
        num_moved = 0
        for g, own in enumerate(counts):
            if part_of[g] == first and any(found_first[name] == n for name, n in own.items()):
                continue
            part = min(shares, key=lambda part: change(g, part) if part != part_of[g] else -1e-9)
            if part != part_of[g]:
                put(g, part)
                num_moved += 1
        if not num_moved:
            break
    parts = [""] * len(groups)
    for rows, part in zip(order, part_of, strict=True):
        for i in rows:
            parts[i] = part
    return parts


def _count_names(rows: list[list[str]]) -> dict:
    """How many of a group's rows have each label, and how many there are; in one order, whatever the rows' is."""
    count = Counter()
    for own in rows:
        count.update({ALL_ROWS, *(own or [NO_LABEL])})
    return {name: count[name] for name in sorted(count, key=str)}


def write_files(folder: Path, files: Mapping[str, bytes], flag: str) -> None:
    """Write files into a folder, none of them before all are on disk under another name.

    A new folder appears whole. In one that exists each file is replaced as a whole, the last of `files` last,
    and files of other names stay.
    Args:    files: name -> content | flag: which flag names the folder, for errors.
    Raises:  UserError when the disk is full or the folder cannot be written; the old files are as they were.
    """
    exists = os.path.isdir(folder)  # where Path.is_dir raises, as for a name that is too long, False
    partial = (folder if exists else folder.parent) / f".partial-{os.getpid()}"  # on the same disk
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if exists:
            for name in files:
                os.replace(partial / name, folder / name)
        else:
            os.rename(partial, folder)
    except OSError as error:
        raise disk_error(error, str(folder), flag) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
