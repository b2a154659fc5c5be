"""What an audit looks at: training rows, what models that have not seen them make of them, rows that are near others.

N training rows, C classes.
"""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import train
from core.cache import LabelColumn
from core.errors import UserError
from core.metrics import probabilities
from core.rows import BadRows, RowError, RowFormat, file_sha256, read_rows
from core.runs import RunRecord
from core.spent import read_uses, row_hash
from data.near_duplicates import near_pairs, word_sets
from data.split_rows import Table, read_table
from data.splits import find_near
from ensemble_predict import is_ensemble
from jobs.folds import deal_rows, out_of_fold
from jobs.members import Team
from jobs.scored import columns


@dataclass
class Audited:
    """The training rows, and the run that is trained again on parts of them."""

    table: Table
    kind: str  # of labels: one, list or dict, see core/cache.py
    truth: np.ndarray  # (N, C) bool
    team: Team  # of that one run; its folder may be none, when flags stand for it
    path: str
    sha256: str

    @property
    def labels(self) -> np.ndarray:
        """(N,) int: the class of each row, with one label a row."""
        return self.truth.argmax(axis=1)


def read_audited(args: argparse.Namespace) -> Audited:
    """The rows of a run or of --train_data.

    Raises: UserError for a folder that is no classifier's run, rows that have changed since, bad rows, bad --flags.
    """
    record = run_record(args.run) if args.run else flag_record(args)
    path, about = record["arguments"]["train_data"], record["model"]
    row_format = RowFormat(**about["row_format"])
    kind = LabelColumn()
    table = read_table(path, "--train_data", SimpleNamespace(**about["row_format"], group_fields=()), kind)
    names, found = kind.finish()
    sha256 = file_sha256(path)
    if record["data"].setdefault("train", sha256) != sha256:
        raise UserError(
            f"{args.run}: its training rows {path} have changed since; give them with --train_data, --val_data, --flags"
        )
    multi_label = kind.kind != "one"
    label_names = about.get("label_names", names)
    if about.get("multi_label", multi_label) != multi_label or set(names) - set(label_names):
        raise UserError(f"{args.run}: {path} has other labels than the run; train it again")
    truth = found == 1 if multi_label else found[:, None] == np.arange(len(names))
    folder = Path(args.run or "trained")
    team = Team([folder], [record], label_names, multi_label, row_format, {}, [], [])
    return Audited(table, kind.kind, columns(truth, names, label_names), team, path, sha256)


def run_record(run: str) -> dict:
    """run.json of a run that can be trained again. Raises UserError."""
    record = RunRecord.read(Path(run)).record
    if is_ensemble(Path(run)):
        raise UserError(f"{run}: is an ensemble; expected a single run: give one of its members")
    if "label_names" not in record.get("model", {}):
        raise UserError(f"{run}: is no classifier's run, or was stopped early; expected one of train.py")
    path = record["arguments"]["train_data"]
    if not Path(path).is_file():
        raise UserError(f"{run}: its training rows {path} are not there; this needs them")
    return record


def flag_record(args: argparse.Namespace) -> dict:
    """What run.json would say of a run of --train_data, --val_data and --flags. Raises UserError."""
    val_data = args.val_data or ("" if args.folds else args.train_data)  # without folds nothing is trained
    try:
        flags = [*shlex.split(args.flags), f"--train_data={args.train_data}", f"--val_data={val_data}"]
        arguments = vars(train.parse_args(flags))
    except ValueError as error:
        raise UserError(f"--flags {args.flags!r}: {error}") from None
    except UserError as error:
        raise UserError(f"--flags: train.py: {error}") from None
    row_format = {name: arguments[name] for name in ("text_field", "pair_field", "label_field")}
    return {"arguments": arguments, "data": {}, "model": {"row_format": row_format}}


def out_of_fold_probabilities(
    audited: Audited, folder: Path, num_folds: int, seed: int, gpus: list[str]
) -> np.ndarray:
    """(N, C) float64 probabilities of every row by a model that has not seen it; NaN for rows that no fold holds out.

    The trainings are those of jobs/folds.py, in <folder>/folds. Raises UserError when one fails.
    """
    scores, _ = out_of_fold(audited.team, folder, num_folds, seed, gpus)
    hashes = np.array(audited.table.hashes, np.uint64)
    fold = deal_rows(audited.truth, hashes, num_folds, seed)  # as out_of_fold dealt them
    probs = np.full(audited.truth.shape, np.nan)
    probs[fold >= 0] = probabilities(scores[0], audited.team.multi_label)
    if not np.isfinite(probs[fold >= 0]).all():
        raise UserError(
            f"{folder / 'folds'}: a score is not finite: a training has diverged; give a lower learning rate"
        )
    return probs


# -- near-duplicates --------------------------------------------------------------------------------------------


def find_conflicts(texts: list[str], truth: np.ndarray, near: float) -> np.ndarray:
    """(N,) int: for each text one that is near it (words in common as in data/splits.py) with other labels, or -1.

    One with the same words where there is one, else the one that the search meets first.
    """
    sets, own = word_sets(texts)
    _, label = np.unique(truth, axis=0, return_inverse=True)
    label = label.reshape(-1)
    found = np.full(len(texts), -1)
    members = [[] for _ in sets]
    for i, k in enumerate(own):
        if k >= 0:
            members[k].append(i)
    label_of = np.array([label[rows[0]] for rows in members], int)  # of a set; -1: it has several
    for k, rows in enumerate(members):
        for i in rows:
            others = [j for j in rows if label[j] != label[i]]
            if others:
                found[i], label_of[k] = others[0], -1
    is_open = label_of >= 0

    def wanted(k: int, others: np.ndarray) -> np.ndarray:
        return (is_open[k] | is_open[others]) & (label_of[k] != label_of[others])

    for pair in near_pairs(sets, near, wanted):
        for k, j in (pair, pair[::-1]):
            if is_open[k]:
                for i in members[k]:
                    found[i] = next(other for other in members[j] if label[other] != label[i])
                is_open[k] = False
    return found


@dataclass
class Others:
    """Rows that must not be among the training rows; of their labels nothing is read."""

    use: str  # validation or test
    path: str
    lines: list[int]
    texts: list[str]
    hashes: list[int]


def read_others(use: str, path: str, flag: str, row_format: RowFormat) -> Others:
    """The texts of a file. Raises UserError with all bad rows."""
    bad, others = BadRows(path), Others(use, path, [], [], [])
    for line, row in read_rows(path, bad, flag):
        try:
            texts = row_format.text(row)
        except RowError as error:
            bad.add(line, str(error))
            continue
        others.lines.append(line)
        others.texts.append("\n".join(text for text in texts if text))
        others.hashes.append(row_hash(*texts))
    bad.raise_if_any()
    return others


def find_leaks(table: Table, others: Others, near: float) -> list[tuple[int, bool]]:
    """For each training row the other row that is the same text or near it, or -1, and whether it is the same."""
    places = {value: i for i, value in reversed(list(enumerate(others.hashes)))}
    near_ones = find_near(table.texts, others.texts, near)
    pairs = zip(table.hashes, near_ones, strict=True)
    return [(places.get(value, k), value in places) for value, k in pairs]


def known_test_rows(run: str, path: str, others: list[Others]) -> np.ndarray:
    """(n,) uint64: every row known to be a test row: of the run, of the split in the file's folder, of --test_data."""
    found = [read_uses(folder).get("test") for folder in (Path(path).parent, *([Path(run)] if run else []))]
    found += [np.array(own.hashes, np.uint64) for own in others if own.use == "test"]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(own for own in found if own is not None)]))
