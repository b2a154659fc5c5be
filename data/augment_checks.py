"""What made rows must pass: new, one label a text, off the rows that are held out, still labelled the same by a run.

Legend: n made rows, m rows of the input.
"""

import argparse
from collections import Counter, defaultdict
from dataclasses import dataclass

from data.check_run import predict, predicted_labels, refuse_other_labels
from data.held_out import HeldOut, why_held_out
from data.split_rows import Table


@dataclass(frozen=True)
class Made:
    """One made row."""

    row: dict  # as it is written
    source: int  # place of its source among the rows of the input
    text: str  # whose words near-duplicates share: the text and its second
    hash: int  # core/spent.py


# The rows of the input


def usable_sources(table: Table, dropped: Counter) -> list[int]:
    """The rows that new ones are made of: of one text the first, none where its rows' labels contradict each other."""
    labels, first = defaultdict(set), {}
    for i, value in enumerate(table.hashes):
        labels[value].add(tuple(sorted(table.labels[i])))
        first.setdefault(value, i)
    kept = [i for i in first.values() if len(labels[table.hashes[i]]) == 1]
    dropped["source: its text has other labels in another row"] += sum(
        len(labels[value]) > 1 for value in table.hashes
    )
    dropped["source: its text stands in a row before"] += sum(
        first[value] != i and len(labels[value]) == 1 for i, value in enumerate(table.hashes)
    )
    return kept


# The made rows


def drop_copies(made: list[Made], table: Table, dropped: Counter) -> list[Made]:
    """The made rows whose text is new: none of the input's, each once, none made with two different labels."""
    own, labels = set(table.hashes), defaultdict(set)
    for one in made:
        labels[one.hash].add(tuple(sorted(table.labels[one.source])))
    kept, seen = [], set()
    for one in made:
        if one.hash in own:
            dropped["same as a row of the input"] += 1
        elif len(labels[one.hash]) > 1:
            dropped["same text made with other labels"] += 1
        elif one.hash in seen:
            dropped["same as a row made before"] += 1
        else:
            seen.add(one.hash)
            kept.append(one)
    return kept


def drop_near_held_out(
    made: list[Made], table: Table, held_out: HeldOut, near: float, dropped: Counter
) -> tuple[list[Made], int]:
    """The made rows that are near no held-out row (data/held_out.py), and how many rows of the input are.

    Of those nothing is made: with some words less a copy of a held-out row is near it no longer, and gives it away.
    """
    texts = [*(one.text for one in made), *table.texts]
    hashes = [*(one.hash for one in made), *table.hashes]
    reasons = why_held_out(texts, hashes, held_out, near)
    of_input, kept = reasons[len(made) :], []
    for one, why in zip(made, reasons, strict=False):
        if of_input[one.source]:
            dropped["source: near a held-out row"] += 1
        elif why:
            dropped["near a held-out row"] += 1
        else:
            kept.append(one)
    return kept, sum(map(bool, of_input))


def keep_same_labels(
    made: list[Made], table: Table, kind: str, args: argparse.Namespace, dropped: Counter
) -> list[Made]:
    """The made rows that a trained run labels as their source is labelled. kind: one, list or dict.

    Raises: UserError when predict.py fails, or the run has other labels than the rows.
    """
    if not made:
        return made
    print(f"labelling {len(made)} made rows with {args.check_run}")
    rows = [one.row for one in made]
    predicted = predict(args.check_run, rows, args.text_field, args.pair_field, args.device)
    refuse_other_labels(args.check_run, predicted[0], set().union(*table.labels), kind)
    pairs = zip(made, predicted, strict=True)
    kept = [one for one, row in pairs if predicted_labels(row) == set(table.labels[one.source])]
    dropped["labelled otherwise by the run"] += len(made) - len(kept)
    return kept


def balance(made: list[Made], table: Table, keys: list[int], dropped: Counter) -> list[Made]:
    """As many made rows of each class as it has fewer rows than the largest; a row counts as one of its rarest label.

    Args: keys: (n,) random numbers of the made rows: the least are kept.
    """
    counts = Counter(name for own in table.labels for name in own)
    rarest = [min(own, key=lambda name: (counts[name], name), default=None) for own in table.labels]
    sizes = Counter(rarest)
    room = {name: max(sizes.values()) - size for name, size in sizes.items()}
    kept = set()
    for k in sorted(range(len(made)), key=lambda k: keys[k]):
        name = rarest[made[k].source]
        if room[name]:
            room[name] -= 1
            kept.add(k)
    dropped["its class has enough rows (--balance)"] += len(made) - len(kept)
    return [one for k, one in enumerate(made) if k in kept]
