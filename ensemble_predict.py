"""What predict.py does with an ensemble that jobs.ensemble made: each member scores the texts, and they are combined.

M members, n texts, C classes. Each member reads with its own tokenizer, prompt, length and number format; they are all
loaded at once. A member that has no weight is not loaded.
"""

from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Protocol

import numpy as np

from core.calibration import read_fit
from core.ensembles import combine
from core.errors import UserError
from core.predictions import RowPredictor
from core.rows import RowFormat, file_sha256
from core.runs import RunRecord
from core.stored import read_array


class Member(Protocol):
    """A Predictor of predict.py: what is asked of it here."""

    label_names: list[str]

    def scores(self, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
        """(n, C) logits."""


def is_ensemble(run: Path) -> bool:
    """Whether a folder is a run of several members; an average of weights is a run with one model like any other."""
    if not (run / "run.json").is_file():
        return False
    return (
        RunRecord.read(run).record.get("ensemble", {}).get("method", "weights_average") != "weights_average"
    )


class EnsemblePredictor(RowPredictor):
    """A loaded ensemble, used as a Predictor is. Call it with texts (or pairs) for prediction rows."""

    def __init__(
        self,
        members: list[Member],
        combination: np.ndarray,
        about: dict,
        calibration: dict,
        tuned: dict | None,
    ):
        """members: in the order of the combination | about: "model" of run.json | the others: of read_fit."""
        self.members, self.combination, self.calibration = members, combination, calibration
        self.label_names, self.multi_label = about["label_names"], about["multi_label"]
        self.row_format = RowFormat(**about["row_format"])
        self.thresholds = tuned and np.array([tuned["thresholds"][name] for name in self.label_names])
        self.tuned_on = tuned and tuned["tuned_on"]
        self.orders = [[own.label_names.index(name) for name in self.label_names] for own in members]

    def scores(self, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
        """(n, C) float32 logits of texts, in their order: core.metrics.probabilities gives the combined ones back.

        Raises: UserError for texts that a member cannot read.
        """
        found = [
            own.scores(texts, pairs)[:, order] for own, order in zip(self.members, self.orders, strict=True)
        ]
        return combine(np.stack(found), self.combination, self.multi_label).astype(np.float32)

    def generate(self, texts: list[str]) -> list:
        """Raises UserError: several models have no one answer."""
        raise UserError("--generate: this run is an ensemble; ask one of its members")

    @property
    def encoder(self) -> None:
        """Raises UserError: there is a tokenizer for each member."""
        raise UserError("this run is an ensemble, which has no tokenizer of its own: give one of its members")


def check_combination(
    run: Path, combination: np.ndarray, num_members: int, num_classes: int, several: bool
) -> None:
    """Raise UserError for a stored combination that is of other members or classes than the ensemble has."""
    try:
        weights = combination if combination.ndim == 1 else np.ones(1)
        is_good = (weights >= 0).all() and 0 < weights.sum() < np.inf and np.isfinite(combination).all()
        made = combine(np.zeros((num_members, 1, num_classes)), combination, several)
        is_good = is_good and made.shape == (1, num_classes)
    except (TypeError, ValueError, IndexError):
        is_good = False
    if not is_good:
        raise UserError(f"{run}: its weights do not fit {num_members} members and {num_classes} classes; make the "
                        "ensemble again with jobs.ensemble")  # fmt: skip


def load_ensemble(run: Path, load_member: Callable[[Path], Member], raw: bool = False) -> EnsemblePredictor:
    """The ensemble of a run folder, its members loaded by load_member(folder); raw: see predict.load.

    Raises: UserError naming the member that is gone, or that is another run than the one that was combined.
    """
    record = RunRecord.read(run).record
    members, names = record["ensemble"]["members"], record["model"]["label_names"]
    several = record["model"]["multi_label"]
    again = "or make the ensemble again with jobs.ensemble"
    is_stacked = record["ensemble"]["method"] == "stacking"
    combination = (
        read_array(run / "stacking.npy", "f", 2) if is_stacked else np.array([m["weight"] for m in members])
    )
    check_combination(run, combination, len(members), len(names), several)
    loaded, kept = [], np.ones(len(members), bool) if is_stacked else combination > 0
    for member in compress(members, kept):
        folder = (run / member["run"]).resolve()
        if not (folder / "run.json").is_file():
            raise UserError(f"{run}: its member {folder} is gone; put it back there, {again}")
        if is_ensemble(folder):
            raise UserError(
                f"{run}: its member {folder} is an ensemble itself, where a single run was; {again[3:]}"
            )
        scores = folder / "validation" / "logits.npy"
        if not scores.is_file() or file_sha256(scores) != member["scores_sha256"]:
            raise UserError(
                f"{run}: its member {folder} is another run than it was; put the old one back, {again}"
            )
        own = load_member(folder)
        if sorted(own.label_names) != sorted(names):
            raise UserError(f"{run}: its member {folder} has other labels than it had; {again[3:]}")
        loaded.append(own)
    fit = read_fit(run / "validation", names, raw)
    return EnsemblePredictor(loaded, combination if is_stacked else combination[kept], record["model"], *fit)
