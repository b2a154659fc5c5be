"""Rows that are held out: which they are, that none of them is given as a training row, and what is near one.

What makes new rows of training rows (data.augment, data.generate) asks here. Held out are the validation, calibration
and test rows of the split (data.split) that the training rows are of, those of the trained runs that help, and the rows
of --exclude.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.rows import BadRows, RowError, RowFormat, read_rows
from core.runs import RunRecord
from core.spent import USES, count_common, read_uses, row_hash
from data.splits import find_near

HELD_OUT = USES[1:]  # validation, calibration, test


@dataclass
class HeldOut:
    """Rows that no new row may be near to."""

    texts: list[str] = field(default_factory=list)  # as joined gives them
    hashes: set[int] = field(default_factory=set)  # core/spent.py; of rows without a text here, too
    num_rows: dict[str, int] = field(default_factory=dict)  # of each file
    num_hashes: dict[str, int] = field(default_factory=dict)  # of each folder: rows known by their hash alone

    def told(self) -> str:
        """Where they are from, for the log."""
        files = [f"{path} ({n} rows)" for path, n in self.num_rows.items()]
        folders = [f"{path} ({n} rows, known by their hash)" for path, n in self.num_hashes.items()]
        return ", ".join(files + folders) or "nothing is known; --exclude names dev and test rows"


def joined(texts: Sequence[str | None]) -> str:
    """A row's texts as data.split compares them."""
    return "\n".join(text for text in texts if text)


def split_folders(path: str) -> list[Path]:
    """Where the split of a file may lie: beside it; behind a link also beside the file itself."""
    folders = (Path(path).resolve().parent, Path(path).parent)
    return list({folder.resolve(): folder for folder in folders}.values())  # as given, where it is one


def refuse_held_out(
    hashes: Sequence[int], flag: str, path: str, row_format: RowFormat, runs: Sequence[Path], mend: str
) -> None:
    """Raise UserError when training rows are held-out rows of their split or test rows of a run, or none could tell.

    None could where the split's, or the run's, hashes are of other columns.
    Args: hashes: of the rows, core/spent.py | flag, path: named in the message | runs: folders | mend: what to do about
          columns that are not the split's.
    """
    folders = split_folders(path)
    for folder in folders:
        refuse_other_columns(folder, flag, path, row_format, mend)
    for run in runs:
        refuse_other_run(run, row_format)
    own = np.array(hashes, np.uint64)
    for folder, uses in [(folder, HELD_OUT) for folder in folders] + [(run, ("test",)) for run in runs]:
        for use, others in read_uses(folder).items():
            num_common = count_common(own, others) if use in uses else 0
            if num_common:
                raise UserError(
                    f"{flag} {path}: {num_common} of its {len(own)} rows are {use} rows of {folder}; new rows are made "
                    "of training rows alone: give the train part"
                )


def refuse_other_columns(folder: Path, flag: str, path: str, row_format: RowFormat, mend: str) -> None:
    """Raise UserError when a folder's split was made with other text columns, or its split.json cannot be read."""
    about = folder / "split.json"
    if not about.is_file():
        return
    try:
        stored = json.loads(about.read_text(encoding="utf-8")).get("fields", {})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{flag} {path}: {about} cannot be read: {error}; divide the rows again") from None
    for name in ("text_field", "pair_field"):  # labels are in no hash
        own = getattr(row_format, name)
        if stored.get(name, own) != own:
            raise UserError(
                f"{flag} {path}: {about} was made with --{name} {stored[name]!r}, here it is {own!r}: its held-out "
                f"rows could not be known again; {mend}"
            )


def refuse_other_run(run: Path, row_format: RowFormat) -> None:
    """Raise UserError when a run was trained on pairs, or on joined columns, and the rows are of another form.

    One column may have another name there: its texts have the same hashes. A folder without run.json is passed over.
    """
    record = RunRecord.read(run).record if (run / "run.json").is_file() else {}
    stored = record.get("model", {}).get("row_format")
    if stored and _form(RowFormat(**stored)) != _form(row_format):
        was, own = (
            " ".join(f"--{name} {getattr(form, name)!r}" for name in ("text_field", "pair_field"))
            for form in (RowFormat(**stored), row_format)
        )
        raise UserError(
            f"--check_run {run}: was trained with {was}, here it is {own}: its rows could not be known again; give a "
            "run of such rows"
        )


def _form(row_format: RowFormat) -> tuple[str, bool]:
    """What of a form the hashes depend on: the names of joined columns, and whether there is a second text."""
    return row_format.text_field if "," in row_format.text_field else "", bool(row_format.pair_field)


def read_held_out(path: str, exclude: Sequence[str], runs: Sequence[Path], row_format: RowFormat) -> HeldOut:
    """The held-out rows of the split that a file's rows are of, of runs, and of the files of --exclude.

    Of a split whose files are gone, and of runs, the hashes alone are known: copies.
    Raises: UserError with all bad rows of a file.
    """
    found, files = HeldOut(), {Path(own).resolve(): (own, "--exclude") for own in exclude}
    for folder in (*split_folders(path), *runs):
        uses, is_split = read_uses(folder), (folder / "split.json").is_file()
        for use in HELD_OUT:
            part, own = folder / f"{use}.jsonl", uses.get(use, ())
            if part.is_file() and (is_split or use in uses):
                files.setdefault(part.resolve(), (str(part), f"the split's {use} part"))
            elif len(own):
                found.num_hashes[str(folder)] = found.num_hashes.get(str(folder), 0) + len(own)
            found.hashes.update(map(int, own))
    for name, flag in files.values():
        bad, before = BadRows(name), len(found.texts)
        for line, row in read_rows(name, bad, flag):
            try:
                texts = row_format.text(row)
            except RowError as error:
                bad.add(line, str(error))
                continue
            found.texts.append(joined(texts))
            found.hashes.add(row_hash(*texts))
        bad.raise_if_any()
        found.num_rows[name] = len(found.texts) - before
    return found


def why_held_out(texts: list[str], hashes: Sequence[int], held_out: HeldOut, near: float) -> list[str]:
    """For each row why it may not be used: it is near a held-out row (data.splits.find_near), or one; "" where it may.

    Args: texts: (n,) as joined gives them | hashes: (n,) | near: share of words in common.
    """
    found = find_near(texts, held_out.texts, near) if texts and held_out.texts else [-1] * len(texts)
    near_one, one = "near-duplicate of a row to be scored on", "a row to be scored on"
    return [
        near_one if place >= 0 else one if value in held_out.hashes else ""
        for place, value in zip(found, hashes, strict=True)
    ]
