"""Out-of-fold scores for stacking: each member trained again without a fold of its rows, and asked about that fold.

Every such training is a run of train.py as a process (jobs/cells.py), with the member's own flags, in
<folder>/folds/<K>-seed<S>/<member>/fold<k>. The member's validation rows choose its best step there too; the fold is
its --test_data, scored once, at its end. A run that has finished is not trained again, one that was stopped goes on.

N training rows, K folds, M members, C classes.
"""

import json
import shutil
from pathlib import Path

import numpy as np

import train
from core.errors import UserError
from core.files import write_text
from core.rows import BadRows, RowFormat, read_rows
from core.runs import slug
from core.spent import row_hashes
from jobs.cells import Cell, check_cell, train_all
from jobs.members import Team
from jobs.scored import columns, read_labels, read_scored

# what a fold's run does not have from its member, or must not have
OWN = (
    "train_data",
    "test_data",
    "output_dir",
    "calibration_data",
    "baselines",
    "resume",
    "dry_run",
    "profile",
)


def deal_rows(truth: np.ndarray, hashes: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Deal training rows to folds: classes evenly, rows of one text together.

    Args:    truth: (N, C) bool | hashes: (N,) uint64 of the texts.
    Returns: (N,) int: the fold that holds the row out; -1: rows of a class that would have no other row left to learn
             from, which are in every training instead.
    """
    counts = truth.sum(axis=0)
    rarest = np.where(truth, counts, len(truth) + 1).argmin(axis=1)  # a row counts as one of its rarest class
    rarest[~truth.any(axis=1)] = len(counts)
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(first)), rarest[first]))
    dealt = np.empty(len(first), int)
    dealt[order] = np.arange(len(first)) % num_folds
    fold = dealt[group]
    for is_class in truth.T:
        if len(np.unique(fold[is_class])) == 1:
            fold[is_class] = -1
    return fold


def member_flags(record: dict, folder: Path, **given: str) -> list[str]:
    """The flags of train.py that a run was made with, some of them given anew.

    Args:   record: run.json | folder: named in the message.
    Raises: UserError when train.py of today does not read the same arguments from them.
    """
    stored = {name: value for name, value in record["arguments"].items() if name not in OWN}
    flags = []
    for name, value in (stored | given).items():
        if value is True:
            flags.append(f"--{name}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None and value is not False:
            flags.append(f"--{name}={value}")
    try:
        parsed = vars(train.parse_args(flags))
    except UserError as error:
        raise UserError(
            f"{folder}: --folds trains it again with train.py's flags, and cannot: {error}"
        ) from None
    differ = [name for name, value in stored.items() if parsed.get(name) != value]
    if differ:
        raise UserError(
            f"{folder}: --folds cannot train it again: --{differ[0]} was {stored[differ[0]]!r}, would be "
            f"{parsed.get(differ[0])!r}"
        )
    return flags


def write_folds(
    folder: Path, path: str, row_format: RowFormat, truth: np.ndarray, num_folds: int, seed: int
) -> np.ndarray:
    """Write fold<k>.train.jsonl and fold<k>.held_out.jsonl for each fold; the same every time.

    Returns: (N,) as deal_rows.
    """
    rows = [row for _, row in read_rows(path, BadRows(path), "--train_data")]
    texts, others = zip(*(row_format.text(row) for row in rows), strict=True)
    fold = deal_rows(truth, row_hashes(texts, others), num_folds, seed)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(num_folds):
        for name, kept in (("train", fold != k), ("held_out", fold == k)):
            write_text(folder / f"fold{k}.{name}.jsonl", "".join(lines[n] for n in np.flatnonzero(kept)))
    return fold


def out_of_fold(
    team: Team, folder: Path, num_folds: int, seed: int, gpus: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Train what is not trained yet; the scores of every training row by models that have not seen it.

    Args:    folder: of the ensemble | gpus: one run at a time on each; empty: one at a time.
    Returns: (M, N, C) float32 logits and (N, C) bool labels, without rows that were in every training.
    Raises:  UserError when the members were trained on different rows, or a training fails.
    """
    first = team.records[0]
    for own, record in zip(team.folders, team.records, strict=True):
        if record["data"]["train"] != first["data"]["train"]:
            raise UserError(
                f"{own}: was trained on other rows than {team.folders[0]}: --folds needs the same for all"
            )
    path = first["arguments"]["train_data"]
    try:
        names, truth = read_labels(path, first["data"]["train"], team.row_format)
    except UserError as error:
        raise UserError(f"{team.folders[0]}: --folds trains it again, but it {error}") from None
    truth = columns(truth, names, team.label_names)
    home = folder / "folds" / f"{num_folds}-seed{seed}"
    fold = write_folds(home, path, team.row_format, truth, num_folds, seed)
    held_out = [k for k in range(num_folds) if (fold == k).any()]
    grid = {
        own: [fold_cell(own, record, home, f"{m}-{slug(own.name)}", k) for k in held_out]
        for m, (own, record) in enumerate(zip(team.folders, team.records, strict=True))
    }
    todo = {own: [cell for cell in cells if check_cell(cell) != "finished"] for own, cells in grid.items()}
    print(f"folds: {sum(map(len, grid.values()))} runs, {sum(map(len, todo.values()))} of them to be trained")
    logits = np.full((len(team), *truth.shape), np.nan, np.float32)
    for m, (own, cells) in enumerate(grid.items()):
        failed = train_all(todo[own], gpus) if todo[own] else {}
        if failed:
            told = "; ".join(f"{run}: {why}" for run, why in failed.items())
            raise UserError(
                f"{len(failed)} of the runs for --folds failed: {told}. The same command goes on from here"
            )
        for k, cell in zip(held_out, cells, strict=True):
            scored = read_scored(cell.folder, "test")
            order = [scored.label_names.index(name) for name in team.label_names]
            logits[m, fold == k] = scored.logits[:, order]
            for part in (
                "best_model",
                "final_model",
                "checkpoint",
            ):  # only the scores are needed from here on
                shutil.rmtree(cell.folder / part, ignore_errors=True)
    return logits[:, fold >= 0], truth[fold >= 0]


def fold_cell(member: Path, record: dict, home: Path, name: str, fold: int) -> Cell:
    """The run of one member without one fold."""
    folder = home / name / f"fold{fold}"
    given = {"train_data": str(home / f"fold{fold}.train.jsonl"), "output_dir": str(folder)}
    given["test_data"] = str(home / f"fold{fold}.held_out.jsonl")
    return Cell(folder, tuple(member_flags(record, member, **given)))
