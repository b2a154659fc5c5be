"""What came of a split: counts, near-duplicates, what a random split would leak, warnings; as JSON and as text."""

import argparse
from collections import Counter, defaultdict

import numpy as np

from core.results_table import format_table
from data.split_rows import Table

MOST_LISTED, MOST_LABELS = 20, 30  # lines of a group, names in a warning; labels that are printed
LARGE_GROUP, FAR_OFF = 0.05, 0.1  # share of all rows; of those that a part was to have: worth a warning


def expected_leaks(sizes: list[int], counts: dict[str, int]) -> dict[str, float]:
    """How many rows a random split into parts of the same sizes would have divided from a near-duplicate, on average.

    All g rows of a group are in a part with n_s of the n rows with chance C(n_s, g) / C(n, g). A row outside train
    has none of its g - 1 near-duplicates there with chance C(n - 1 - n_train, g - 1) / C(n - 1, g - 1).
    Args:    sizes: rows of each group of near-duplicates | counts: rows of each part.
    Returns: divided: rows with a near-duplicate in another part | by part but train: its rows with one in train.
    """
    num_rows = sum(counts.values())
    leaks = dict.fromkeys(["divided", *(part for part in counts if part != "train")], 0.0)

    def chance(some: int, of: int, drawn: int) -> float:
        """C(some, drawn) / C(of, drawn)."""
        return float(np.prod((some - np.arange(drawn)) / (of - np.arange(drawn)))) if drawn <= some else 0.0

    for size, times in sorted(Counter(sizes).items()):
        together = sum(chance(n, num_rows, size) for n in counts.values())
        leaks["divided"] += times * size * (1 - together)
        beside = 1 - chance(num_rows - 1 - counts["train"], num_rows - 1, size - 1)
        for part in leaks.keys() - {"divided"}:
            leaks[part] += times * size * counts[part] / num_rows * beside
    return leaks


def describe(
    args: argparse.Namespace,
    table: Table,
    test: Table | None,
    named: list[str],
    groups: tuple,
    parts: list[str],
) -> dict:
    """Of the rows that were divided all that split.json says, warnings and files aside.

    Args: named: labels that the rows name | groups: as group_rows returns them | parts: (n,) where each row went.
    """
    copies, whole = groups
    counts = {part: parts.count(part) for part in args.asked} | ({"test": len(test)} if test else {})
    labels = {part: Counter() for part in counts}
    for own, part in zip(table.labels, parts, strict=True):
        labels[part].update(own)
    if test:
        labels["test"].update(name for own in test.labels for name in own)
    sizes, with_hash = Counter(copies), defaultdict(list)
    for i, value in enumerate(table.hashes):
        with_hash[value].append(i)
    odd = [own for own in with_hash.values() if len({frozenset(table.labels[i]) for i in own}) > 1]
    largest, num_largest = sizes.most_common(1)[0]
    places = Counter(part for part, _ in {*zip(parts, whole, strict=True)})
    return {
        "rows": counts,
        "shares": {part: {"asked": asked, "found": counts[part] / len(table)} for part, asked in args.asked.items()},
        "labels": {name: {part: labels[part][name] for part in counts} for name in named},
        "groups": {
            "all": len(set(whole)), **{part: places[part] for part in args.asked},
            "largest": max(Counter(whole).values()), "fields": args.group_fields,
            "rows_without": dict(zip(args.group_fields, (own.count("") for own in zip(*table.owners)))),
        },
        "near_duplicates": {
            "near": args.near, "groups": sum(n > 1 for n in sizes.values()),
            "rows": sum(n for n in sizes.values() if n > 1), "largest": num_largest,
            "largest_lines": [n for n, group in zip(table.lines, copies) if group == largest][:MOST_LISTED],
            "expected_in_a_random_split": expected_leaks([*sizes.values()], {p: counts[p] for p in args.asked}),
        },
        "exact_duplicates": {
            "rows": len(table) - len(with_hash),
            "with_different_labels": [[table.lines[i] for i in own] for own in odd],
        },
    }  # fmt: skip


def find_warnings(summary: dict, is_ranking: bool) -> list[str]:
    """What a person should look at before training."""
    rows, labels, near = summary["rows"], summary["labels"], summary["near_duplicates"]
    told, num_rows = [], sum(rows[part] for part in summary["shares"])
    for part in rows:
        without = [name for name, count in labels.items() if not count[part]]
        if without and not is_ranking:
            more = f" and {len(without) - MOST_LISTED} more" if len(without) > MOST_LISTED else ""
            told.append(f"labels without a {part} row: {', '.join(without[:MOST_LISTED])}{more}")
    if len(labels) == 1 and not is_ranking:
        told.append("all rows have the same label: nothing can be learnt from them")
    for part, share in summary["shares"].items():
        off = abs(share["found"] - share["asked"])
        if off > max(FAR_OFF * share["asked"], 1 / num_rows):
            told.append(
                f"{part} has {share['found']:.1%} of the rows, asked for were {share['asked']:.1%}; "
                f"the largest group, which is not divided, has {summary['groups']['largest']} rows"
            )
    if near["largest"] > max(LARGE_GROUP * num_rows, MOST_LISTED):
        lines = ", ".join(map(str, near["largest_lines"][:3]))
        told.append(
            f"{near['largest']} rows are one group of near-duplicates (lines {lines}, ...): if they share a prompt "
            "or a template, name the bare text with --text_field, else raise --near"
        )
    odd = summary["exact_duplicates"]["with_different_labels"]
    if odd and not is_ranking:
        first = "; ".join(", ".join(map(str, lines[:3])) for lines in odd[:3])
        more = "; ..." if len(odd) > 3 else ""
        told.append(
            f"texts that are there more than once, with different labels: {len(odd)} (lines {first}{more})"
        )
    for name, num_without in summary["groups"]["rows_without"].items():
        if num_without:
            told.append(f"rows without {name}, each of them nobody's: {num_without}")
    return told


def furthest_label(summary: dict, part: str) -> dict:
    """The label whose rows are furthest from the asked share, in rows."""
    asked, parts = summary["shares"][part]["asked"], summary["shares"]
    off = []
    for name, counts in summary["labels"].items():
        total = sum(counts[own] for own in parts)
        off.append((abs(counts[part] - asked * total), name, counts[part], total))
    _, name, found, total = max(off)
    share = f"{found / total:.1%}" if total else "-"
    return {"furthest label": name, "its rows": found, "wanted": f"{asked * total:.1f}", "its share": share}


def print_summary(summary: dict) -> None:
    """Tables of parts and labels, near-duplicates, warnings."""
    groups, near, same = (summary[key] for key in ("groups", "near_duplicates", "exact_duplicates"))
    print(
        f"{summary['input']['path']}: {summary['input']['rows']} rows, {summary['kind']}, {groups['all']} groups"
    )
    table = []
    for part, num_rows in summary["rows"].items():
        line = {"rows": num_rows, "groups": groups.get(part)}
        if part in summary["shares"]:
            shares = {name: f"{value:.1%}" for name, value in summary["shares"][part].items()}
            line |= {"share": shares["found"], "asked": shares["asked"], **furthest_label(summary, part)}
        table.append((part, line))
    columns = ["rows", "share", "asked", "groups", "furthest label", "its rows", "wanted", "its share"]
    print(f"\n{format_table(table, columns)}")
    labels = sorted(summary["labels"].items(), key=lambda item: -sum(item[1].values()))
    print(f"\nrows by label\n{format_table(labels[:MOST_LABELS], [*summary['rows']])}")
    if labels[MOST_LABELS:]:
        print(f"... and {len(labels) - MOST_LABELS} more")
    print(
        f"\nnear-duplicates ({near['near']:.0%} of the words): {near['rows']} rows in {near['groups']} groups, the "
        f"largest of {near['largest']}; {same['rows']} rows repeat another's text"
    )
    leaks = {part: n for part, n in near["expected_in_a_random_split"].items() if part != "divided"}
    told = ", ".join(f"{n:.1f} of {summary['rows'][part]} {part} rows" for part, n in leaks.items())
    print(f"a random split would have a near-duplicate in train for {told} (expected); this one has none")
    if summary["dropped"]:
        why = Counter(row["why"] for row in summary["dropped"])
        print("dropped for the test rows: " + ", ".join(f"{n} ({reason})" for reason, n in why.items()))
    for line in summary["warnings"]:
        print(f"warning: {line}")
