"""The rows of jobs.selftrain: read, checked, cut once into labelled, audit and pool; and the rows with pseudo-labels.

n rows, C classes.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.cache import LabelColumn
from core.errors import UserError
from core.files import save_array, write_folder, write_json, write_text
from core.pseudo_labels import label_groups
from core.rows import BadRows, RowError, RowFormat, file_sha256, half_pair, read_rows
from core.spent import refuse_test_rows, row_hash
from data.split_rows import Table, read_table
from data.splits import find_near, group_near_duplicates, join_groups, stratify
from jobs.scored import columns, read_labels

FLAGS = ("train_data", "unlabelled", "val_data", "calibration_data", "test_data")


@dataclass
class Parts:
    """The files that the rounds read. Texts are not kept in memory but those of the pool."""

    folder: Path
    row_format: RowFormat
    label_names: list[str]  # C
    kind: str  # of LabelColumn: one, list, dict
    counts: np.ndarray  # (C,) labelled rows of each class
    group_counts: np.ndarray  # (C + 1,) the same by core.pseudo_labels' groups: the prior of the quotas
    audit: np.ndarray  # (n,) (C,) bool: the audit rows' labels
    pool: list[dict]
    pool_truth: np.ndarray | None  # (n, C) bool, with --check_labels: for one column of the table alone
    about: dict  # parts.json

    @property
    def multi_label(self) -> bool:
        return self.kind != "one"

    def path(self, name: str) -> str:
        """The file of labelled, audit or pool rows."""
        return str(self.folder / f"{name}.jsonl")

    def groups(self, labels: np.ndarray) -> np.ndarray:
        """(n,) int: the group of each row. labels: (n, C) bool."""
        return label_groups(labels, self.counts)

    def pseudo_rows(self, rows: np.ndarray, labels: np.ndarray, confidence: np.ndarray) -> list[dict]:
        """Pool rows as training rows. Args: rows: (k,) int, their places | labels: (k, C) bool | confidence: (k,)."""
        name = self.row_format.label_field or ("labels" if self.multi_label else "label")
        made = []
        for k, own, sure in zip(rows, labels, confidence, strict=True):
            held = [self.label_names[c] for c in np.flatnonzero(own)]
            if self.kind == "dict":
                held = {label: int(applies) for label, applies in zip(self.label_names, own, strict=True)}
            value = held[0] if self.kind == "one" else held
            made.append(self.pool[k] | {name: value, "pseudo": True, "confidence": round(float(sure), 6)})
        return made


def open_parts(args: Namespace, row_format: RowFormat, folder: Path, given: dict) -> Parts:
    """The parts in a folder; cut there where they are not yet. given: what they are made of, kept beside them.

    Raises: UserError for bad rows, or none left.
    """
    if not folder.is_dir():
        write_parts(args, row_format, folder, given)
    about = json.loads((folder / "parts.json").read_text(encoding="utf-8"))
    names, truth = {}, {}
    for part in ("labelled", "audit"):
        path = str(folder / f"{part}.jsonl")
        names[part], truth[part] = read_labels(path, file_sha256(path), row_format)
    label_names = names["labelled"]
    counts = truth["labelled"].sum(axis=0)
    groups = label_groups(truth["labelled"], counts)
    path = folder / "pool.jsonl"
    return Parts(
        folder, row_format, label_names, about["kind"], counts,
        group_counts=np.bincount(groups, minlength=len(label_names) + 1),
        audit=columns(truth["audit"], names["audit"], label_names),
        pool=[row for _, row in read_rows(path, BadRows(path), "--unlabelled")],
        pool_truth=np.load(folder / "pool_truth.npy") if about["pool_labels"] else None,
        about=about,
    )  # fmt: skip


def hide_labels(args: Namespace, row_format: RowFormat, folder: Path) -> None:
    """For a trial: part --train_data into trial/labelled.jsonl, a share of it, and pool.jsonl, labels level."""
    if (folder / "parts").is_dir():  # made of them
        return
    flags = Namespace(**vars(row_format), group_fields=[])
    table = read_table(args.train_data, "--train_data", flags, LabelColumn())
    refuse_test_rows(np.array(table.hashes, np.uint64), "--train_data", args.train_data)
    shares = {"labelled": args.labelled_share, "pool": 1 - args.labelled_share}
    side = np.array(part_rows(table, shares, args.seed, args.near))
    if len(set(side)) < 2:
        told = f"{args.labelled_share:g} of {len(table)} rows"
        raise UserError(f"--labelled_share {told} leaves one side empty; give another share")

    def fill(part: Path) -> None:
        for name in shares:
            write_text(
                part / f"{name}.jsonl", as_lines(table.only(np.flatnonzero(side == name).tolist()).rows)
            )

    write_folder(folder / "trial", fill)


def write_parts(args: Namespace, row_format: RowFormat, folder: Path, given: dict) -> None:
    """Cut the audit rows from the training rows, clean the pool, write both.

    Rows of one text and near-duplicates go to the same side of the audit's cut. Out of the pool go rows with a text
    that is labelled already, a second row of one text, and near-duplicates of audit, validation, calibration and test
    rows: what is scored must not have been trained on.
    """
    kind = LabelColumn()
    flags = Namespace(**vars(row_format), group_fields=[])
    train = read_table(args.train_data, "--train_data", flags, kind)
    names, matrix = kind.finish()
    if len(names) < 2:
        raise UserError(f"--train_data {args.train_data}: has the labels {names}; expected two at least")
    if kind.kind != "one" and args.least_confidence < 0.5:
        raise UserError(
            f"--least_confidence {args.least_confidence:g}: several labels a row want 0.5 or more"
        )
    tables = {"train_data": train, "unlabelled": read_texts(args.unlabelled, "--unlabelled", row_format)}
    for flag in FLAGS[2:]:
        if getattr(args, flag):
            tables[flag] = read_texts(getattr(args, flag), f"--{flag}", row_format)
    folders = {Path(getattr(args, flag)).parent for flag in tables}
    for flag, table in tables.items():
        if flag != "test_data":
            hashes = np.array(table.hashes, np.uint64)
            refuse_test_rows(hashes, f"--{flag}", getattr(args, flag), sorted(folders))
    shares = {"labelled": 1 - args.audit_ratio, "audit": args.audit_ratio}
    is_audit = np.array(part_rows(train, shares, args.seed, args.near)) == "audit"
    num_audit = int(is_audit.sum())
    if not num_audit:
        raise UserError(
            f"--audit_ratio {args.audit_ratio:g}: leaves no audit row of {len(train)} training rows; give more"
        )
    labelled, audit = (train.only(np.flatnonzero(own).tolist()) for own in (~is_audit, is_audit))
    if not any(audit.labels):
        raise UserError(f"--audit_ratio {args.audit_ratio:g}: no audit row has a label; give more")
    apart = [audit, *(tables[flag] for flag in FLAGS[2:] if flag in tables)]
    pool, left_out = clean_pool(tables["unlabelled"], train, apart, args.near)
    if not len(pool):
        told = ", ".join(f"{count} {why}" for why, count in left_out.items() if count)
        raise UserError(
            f"--unlabelled {args.unlabelled}: no row is left of {len(tables['unlabelled'])}: {told}"
        )
    truth = pool_truth(pool, names, matrix.ndim == 2, row_format, args) if args.check_labels else None
    about = {
        "kind": kind.kind, "labelled": len(labelled), "audit": num_audit, "pool": len(pool),
        "left_out": left_out, "pool_labels": truth is not None,
    }  # fmt: skip
    kept = [*row_format.text_field.split(","), *([row_format.pair_field] * bool(row_format.pair_field)), "id"]
    bare = [{name: row[name] for name in kept if name in row} for row in pool.rows]

    def fill(part: Path) -> None:
        for name, rows in (("labelled", labelled.rows), ("audit", audit.rows), ("pool", bare)):
            write_text(part / f"{name}.jsonl", as_lines(rows))
        if truth is not None:
            save_array(part / "pool_truth.npy", truth)
        write_json(part / "arguments.json", given)
        write_json(part / "parts.json", about)

    write_folder(folder, fill)


def part_rows(table: Table, shares: dict[str, float], seed: int, near: float) -> list[str]:
    """The part of each row: labels level, near-duplicates together, each label in the first part."""
    hashes = [str(value) for value in table.hashes]
    groups = join_groups(group_near_duplicates(table.texts, near), hashes)
    keys = [row_hash(f"{seed} {value}") for value in table.hashes]
    return stratify(groups, table.labels, keys, shares)


def read_texts(path: str, flag: str, row_format: RowFormat) -> Table:
    """The rows of a file whose labels are not read. Raises UserError with all bad rows."""
    table, bad = Table(), BadRows(path)
    for line, row in read_rows(path, bad, flag):
        try:
            texts = row_format.text(row)
        except RowError as error:
            bad.add(line, str(error))
            continue
        table.rows.append(row)
        table.lines.append(line)
        table.texts.append("\n".join(text for text in texts if text))
        table.hashes.append(row_hash(*texts))
        table.labels.append([])
        table.owners.append(())
    bad.raise_if_any()
    return table


def clean_pool(pool: Table, train: Table, apart: list[Table], near: float) -> tuple[Table, dict[str, int]]:
    """The pool's rows that may be learnt from, and how many others there are, by reason."""
    known = set(train.hashes)
    others = [text for table in apart for text in table.texts]
    spent = {value for table in apart for value in table.hashes}
    is_near = find_near(pool.texts, others, near)
    left_out = dict.fromkeys(
        ("near an audit, validation, calibration or test row", "labelled already", "twice"), 0
    )
    why_near, why_known, why_twice = left_out
    kept, seen = [], set()
    for k, value in enumerate(pool.hashes):
        why = why_near if is_near[k] >= 0 or value in spent else why_known if value in known else ""
        why = why or (why_twice if value in seen else "")
        if why:
            left_out[why] += 1
        else:
            kept.append(k)
            seen.add(value)
    return pool.only(kept), left_out


def pool_truth(
    pool: Table, names: list[str], multi_label: bool, row_format: RowFormat, args: Namespace
) -> np.ndarray:
    """(n, C) bool: the labels that the pool's rows carry. Raises UserError with all rows that have none."""
    bad, labels = BadRows(args.unlabelled), LabelColumn()
    for line, row in zip(pool.lines, pool.rows, strict=True):
        try:
            labels.add(row_format.labels(row))
        except RowError as error:
            bad.add(line, f"--check_labels: {error}")
    bad.raise_if_any()
    found, values = labels.finish()
    odd = sorted(set(found) - set(names))
    if odd or (values.ndim == 2) != multi_label:
        told = f"labels without a training row: {', '.join(odd[:20])}" if odd else "another kind of labels"
        raise UserError(f"--check_labels: --unlabelled {args.unlabelled} has {told}")
    onehot = values == 1 if values.ndim == 2 else values[:, None] == np.arange(len(found))
    return columns(onehot, found, names)


def as_lines(rows: list[dict]) -> str:
    """Rows as JSONL; a row that holds half of a surrogate pair somewhere is escaped, as UTF-8 has no bytes for that."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return "".join((json.dumps(row) if half_pair(line) else line) + "\n" for row, line in zip(rows, lines))
