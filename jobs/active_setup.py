"""What a simulation of active learning starts from: checked flags and rows, and a folder that holds no other one.

N rows, C classes.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.cache import LabelColumn
from core.errors import UserError, disk_errors
from core.files import write_json
from core.rows import BadRows, RowError, RowFormat, file_sha256
from core.spent import refuse_test_rows
from jobs.active_rows import Rows, read_texts
from jobs.compare import words
from train import parse_args as training_args


@dataclass(frozen=True)
class Simulation:
    """What stays the same over the rounds."""

    args: argparse.Namespace
    flags: list[str]  # of train.py, the same for every run
    rows: Rows  # N, of different texts, none held out
    truth: np.ndarray  # (N, C) bool

    @property
    def home(self) -> Path:
        """--output_dir."""
        return Path(self.args.output_dir)

    @property
    def labels(self) -> list[int]:
        """How many labels each round has, the first rows' at 0."""
        return [self.args.start + self.args.step * r for r in range(self.args.rounds + 1)]

    def lines(self, r: int) -> list[tuple[int, str]]:
        """The (seed, acquisition) that are trained in a round; the first round is common to all acquisitions."""
        return [
            (seed, name) for seed in self.args.seeds for name in (self.args.acquisition if r else ["start"])
        ]

    def place(self, seed: int, acquisition: str, r: int) -> Path:
        """The folder of a line's round."""
        folder = self.home / f"seed{seed}"
        return folder / "start" if r == 0 else folder / acquisition / f"round{r}"


def prepare(args: argparse.Namespace) -> Simulation:
    """Read and check everything. Raises UserError, also when the folder holds another simulation."""
    flags = training_flags(args)
    about = training_args([*flags, "--train_data", args.train_data])
    row_format = RowFormat(about.text_field, about.pair_field, about.label_field)
    rows = rows_to_buy(args, row_format)
    most = args.start + args.step * args.rounds
    if most > len(rows):
        raise UserError(
            f"--start {args.start} --step {args.step} --rounds {args.rounds}: would buy {most} labels, and "
            f"--train_data {args.train_data} has {len(rows)} rows to buy; lower --rounds or --step"
        )
    truth = read_truth(rows, row_format)
    check_home(args, flags)
    return Simulation(args, flags, rows, truth)


def training_flags(args: argparse.Namespace) -> list[str]:
    """The flags of train.py that every run has. Raises UserError for those that it does not take."""
    flags = [*words(args.flags, "--flags"), "--val_data", args.val_data]
    flags += ["--test_data", args.test_data] if args.test_data else []
    flags += ["--model_name", args.model_name] if args.model_name else []
    flags += ["--metric", args.metric] if args.metric != "auto" else []
    data = ["--train_data", args.train_data, "--val_data", args.val_data]
    try:
        own = training_args([*flags, *data]).cache_dir
    except UserError as error:
        raise UserError(f"--flags: train.py: {error}") from None
    if own == training_args(data).cache_dir:  # rounds are many, and nobody else's
        flags += ["--cache_dir", str(Path(args.output_dir) / "cache")]
    return flags


def rows_to_buy(args: argparse.Namespace, row_format: RowFormat) -> Rows:
    """The rows of --train_data, each text once, none that is a validation or test row; says how many are left out.

    Raises: UserError for bad rows, or when some are test rows of the split that lies in the folder.
    """
    rows = read_texts(args.train_data, "--train_data", row_format)
    refuse_test_rows(rows.hashes, "--train_data", args.train_data, [Path(args.val_data).parent])
    files = {"--val_data": args.val_data, "--test_data": args.test_data}
    held_out = [read_texts(path, flag, row_format).hashes for flag, path in files.items() if path]
    is_held_out = np.isin(rows.hashes, np.concatenate(held_out))
    kept = rows.part(~is_held_out & rows.is_first)
    if len(kept) < len(rows):
        num_repeated = len(rows) - len(kept) - int(is_held_out.sum())
        print(
            f"left out: {is_held_out.sum()} rows that are held out, {num_repeated} with the text of another"
        )
    return kept


def read_truth(rows: Rows, row_format: RowFormat) -> np.ndarray:
    """(N, C) bool: the labels of the rows. Raises UserError for bad ones."""
    column, bad = LabelColumn(), BadRows(rows.path)
    for line, row in zip(rows.lines, rows.rows, strict=True):
        try:
            column.add(row_format.labels(row))
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    names, found = column.finish()
    return found == 1 if found.ndim == 2 else found[:, None] == np.arange(len(names))


def check_home(args: argparse.Namespace, flags: list[str]) -> None:
    """Write simulation.json. Raises UserError when the folder's is of another simulation."""
    path = Path(args.output_dir) / "simulation.json"
    asked = {"flags": flags} | {name: getattr(args, name) for name in ("start", "step", "rounds")}
    for name in ("train_data", "val_data", "test_data"):
        asked[name] = file_sha256(getattr(args, name)) if getattr(args, name) else ""
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else asked
    differ = [name for name, value in asked.items() if there.get(name) != value]
    if differ:
        name = differ[0]
        what = "has other rows" if name.endswith("_data") else f"was {there.get(name)}, now {asked[name]}"
        raise UserError(
            f"--output_dir {args.output_dir}: holds another simulation: --{name} {what}. --seeds and --acquisition may "
            "be added to one, all else not: give another folder, or remove it"
        )
    with disk_errors(args.output_dir, "--output_dir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
