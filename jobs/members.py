"""The runs of an ensemble, read together: scores of the same rows, columns in one order, what each was trained on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.files import found_folder
from core.rows import RowFormat, file_sha256
from core.spent import USES, count_common, read_uses, refuse_test_rows
from ensemble_predict import is_ensemble
from jobs.comparison import measured_costs
from jobs.scored import FILES, Scored, has_split, read_scored


@dataclass
class Split:
    """Rows that all members were scored on. M members, n rows, C classes."""

    name: str  # validation, calibration or test
    path: str
    sha256: str
    logits: np.ndarray  # (M, n, C) float32, columns as Team.label_names
    truth: np.ndarray  # (n, C) bool
    label_names: list[str]
    multi_label: bool

    @property
    def labels(self) -> np.ndarray:
        """(n,) class indices, or (n, C) of 0 and 1 with several labels a row: what core.metrics takes."""
        return self.truth.astype(np.uint8) if self.multi_label else self.truth.argmax(axis=1)

    @property
    def meta(self) -> dict:
        """What core.evaluate names the rows by."""
        return {"path": self.path, "sha256": self.sha256}

    def onehot(self) -> np.ndarray:
        """(n, C) of 0 and 1."""
        return self.truth

    def __len__(self) -> int:
        return len(self.truth)


@dataclass
class Team:
    """The members of an ensemble."""

    folders: list[Path]
    records: list[dict]  # run.json of each
    label_names: list[str]  # C, in the order of the first member
    multi_label: bool
    row_format: RowFormat
    splits: dict[str, Split]  # validation; calibration and test where all members have them, of the same rows
    costs: list[dict[str, float]]  # of each, see jobs.comparison
    notes: list[str]  # for the log

    def __len__(self) -> int:
        return len(self.folders)

    @property
    def chosen_on(self) -> str:
        """The split that weights and thresholds are chosen on: never the test rows."""
        return "calibration" if "calibration" in self.splits else "validation"

    def unique(self, key: str, part: str = "arguments") -> str | float:
        """What a part of run.json holds, if it is the same in all members; else all of it, with commas between."""
        found = list(dict.fromkeys((record[part] if part else record).get(key) for record in self.records))
        return found[0] if len(found) == 1 else ", ".join(map(str, found))


def read_team(runs: list[str]) -> Team:
    """The members from their folders.

    Raises: UserError when they are not two or more finished runs of classifiers with the same labels, columns and
            validation rows, or one of them is an ensemble.
    """
    folders = [Path(run) for run in runs]
    if len(folders) < 2:
        raise UserError(f"{folders[0]}: is one run; expected two or more")
    seen = [folder.resolve() for folder in folders]
    for k, folder in enumerate(folders):
        if seen.index(seen[k]) < k:
            raise UserError(f"{folder}: is given twice; --method weighted or greedy gives a run more weight")
        if is_ensemble(folder):
            raise UserError(f"{folder}: is an ensemble; expected single runs: give its members instead")
    scored = [read_scored(folder, "validation") for folder in folders]
    for own in scored:
        check_member(own, scored[0])
    splits, notes = {"validation": join_scores("validation", scored)}, []
    for name in ("calibration", "test"):
        holders = [own.folder for own in scored if name in own.record["data"] and has_split(own.folder, name)]
        if len({own.record["data"].get(name) for own in scored}) == 1 and len(holders) == len(scored):
            splits[name] = join_scores(name, [read_scored(folder, name) for folder in folders])
        elif holders:
            notes.append(f"note: the members do not all have the same {name} rows: none are used")
    records, first = [own.record for own in scored], scored[0]
    row_format = RowFormat(**first.record["model"]["row_format"])
    costs = list(map(costs_of, scored))
    return Team(folders, records, first.label_names, first.multi_label, row_format, splits, costs, notes)


def check_member(own: Scored, first: Scored) -> None:
    """Raise UserError unless a member's scores can be combined with the first one's."""
    folder, other = own.folder, first.folder
    if not (found_folder(folder / "best_model") / "bareloop.json").is_file():
        raise UserError(f"{folder}: holds no best_model/; expected a run that can predict")
    if own.multi_label != first.multi_label:
        kinds = [("one label a row", "several labels a row")[run.multi_label] for run in (own, first)]
        raise UserError(f"{folder}: has {kinds[0]}, {other} {kinds[1]}; expected one kind")
    odd = sorted(set(own.label_names) ^ set(first.label_names))
    if odd:
        raise UserError(
            f"{folder}: has other labels than {other}: {', '.join(odd[:10])}; expected the same in all"
        )
    formats = [{"pair_field": "", **run.record["model"]["row_format"]} for run in (own, first)]
    differ = [f"--{name} {mine or 'none'}, not {formats[1][name] or 'none'}"
              for name, mine in formats[0].items() if mine != formats[1][name]]  # fmt: skip
    if differ:
        raise UserError(
            f"{folder}: reads other columns than {other}: {', '.join(differ)}; expected the same in all"
        )
    shas = [run.record["data"]["validation"] for run in (own, first)]
    if shas[0] != shas[1]:
        raise UserError(
            f"{folder}: was scored on other validation rows than {other}: {own.path} and {first.path} differ; train "
            "the members with the same --val_data"
        )


def costs_of(own: Scored) -> dict[str, float]:
    """What a member's training cost. Raises UserError."""
    try:
        return measured_costs(own.folder, own.record)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{own.folder}: is not whole, train it again: {error!r}") from None


def join_scores(name: str, scored: list[Scored]) -> Split:
    """One split of all members. Raises UserError for scores that are not finite."""
    first, logits = scored[0], []
    for own in scored:
        if not np.isfinite(own.logits).all():
            raise UserError(f"{own.folder}: its {name} scores are not all finite; leave it out")
        logits.append(own.logits[:, [own.label_names.index(label) for label in first.label_names]])
    sha256 = first.record["data"][name]
    about = first.label_names, first.multi_label
    return Split(name, first.path, sha256, np.stack(logits), first.truth, *about)


# -- which rows were used for what ------------------------------------------------------------------------------


def joined_uses(folders: list[Path]) -> dict[str, np.ndarray]:
    """The hashes by use of all members together: a row that trained one of them has trained the ensemble."""
    found = [read_uses(folder) for folder in folders]
    joined = {}
    for use in USES:
        own = [uses[use] for uses in found if use in uses]
        if own:
            alike = all(np.array_equal(hashes, own[0]) for hashes in own)
            joined[use] = own[0] if alike else np.unique(np.concatenate(own))
    return joined


def check_choice(team: Team) -> list[str]:
    """Whether the rows that choose may choose.

    Returns: notes for the log: members that were trained on some of them.
    Raises:  UserError when some are test rows of a member, or of the split that lies in their file's folder.
    """
    split = team.splits[team.chosen_on]
    hashes, notes = joined_uses(team.folders).get(split.name), []
    if hashes is None:  # runs from before rows/ was written
        return [f"note: the members do not say which rows they used: {split.path} is taken on trust"]
    refuse_test_rows(hashes, f"--{FILES[split.name]}", split.path, team.folders)
    for folder in team.folders:
        train = read_uses(folder).get("train", np.zeros(0, np.uint64))
        num_common = count_common(hashes, train)
        if num_common:
            what = f"{num_common} of {len(hashes)} {split.name} rows are training rows of {folder}"
            notes.append(f"note: {what}, by their text: it will look better than it is")
    return notes


def scores_sha256(folder: Path) -> str:
    """What tells a member from the same folder trained again: the hash of its validation scores."""
    return file_sha256(folder / "validation" / "logits.npy")
