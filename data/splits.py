"""What steps of `data/` share: which rows belong together, which split they go to, and files written whole."""

import math
import os
import random
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from core.errors import disk_error

NEAR = 0.7  # share of words in common from which two texts are near-duplicates
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def group_near_duplicates(texts: list[str], near: float = NEAR) -> list[int]:
    """A group for each text; two texts with at least `near` of their words in common are in the same one.

    Words in common: of all different words of the two, the share that both have (Jaccard), case and order
    aside. Groups are closed: a and c share one when both are near b. The search is exact, not an estimate.
    Cost:    0.4 s for 4,000 texts (data/docstrings.py, 2026-11-20): only those sharing a rare word are compared.
    Source:  Chaudhuri, Ganti, Kaushik 2006, "A primitive operator for similarity joins in data cleaning":
             sets this much alike share one of their len - ceil(near * len) + 1 rarest words.
    """
    words = [frozenset(re.findall(r"\w+", text.lower())) for text in texts]
    count = Counter(word for own in words for word in own)
    group = list(range(len(texts)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = i = group[group[i]]
        return i

    holders = defaultdict(list)
    for i, own in enumerate(words):
        rarest_first = sorted(own, key=lambda word: (count[word], word))
        rare = rarest_first[: len(own) - math.ceil(near * len(own) - 1e-9) + 1]
        for j in {j for word in rare for j in holders[word]}:
            if len(own & words[j]) >= near * len(own | words[j]) - 1e-9:
                group[root(i)] = root(j)
        for word in rare:
            holders[word].append(i)
    return [root(i) for i in range(len(texts))]


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


def write_files(folder: Path, files: Mapping[str, bytes], flag: str) -> None:
    """Write files into a folder, none of them before all are on disk under another name.

    A new folder appears whole. In one that exists each file is replaced as a whole, the last of `files` last,
    and files of other names stay.
    Args:    files: name -> content | flag: which flag names the folder, for errors.
    Raises:  UserError when the disk is full or the folder cannot be written; the old files are as they were.
    """
    exists = folder.is_dir()
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
