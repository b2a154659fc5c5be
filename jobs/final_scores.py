"""The one look at the test rows: every stage's run is scored on them when all is chosen, with intervals and gains.

n rows, C classes, R resamples. Gains are paired: both runs on the same resamples of the same rows.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.baselines import majority_scores, tfidf_scores
from core.calibration import apply_calibration, compare_calibration, read_fit
from core.evaluate import headline, measure, write_evaluation
from core.files import save_array, write_json
from core.metrics import probabilities
from core.report import read_texts
from core.rows import RowFormat, file_sha256
from core.runs import RunRecord
from core.spent import write_uses
from core.statistics import bootstrap_scores, percentile_interval, score_decisions
from core.thresholds import best_thresholds
from jobs.calibrate import carried_over, score_file
from jobs.calibration_files import first_thresholds
from jobs.scored import columns, read_labels

TOLD = ("thresholds", "tuned_on", "fit")  # of thresholds.json


@dataclass
class LabelRows:
    """Rows of nothing but labels: what core.evaluate asks of rows."""

    label_names: list[str]
    multi_label: bool
    truth: np.ndarray  # (n, C) bool
    hashes: np.ndarray  # (n,) uint64
    meta: dict  # path

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def labels(self) -> np.ndarray:
        """(n,) class indices, or (n, C) of 0 and 1."""
        return self.truth.astype(np.uint8) if self.multi_label else self.truth.argmax(axis=1)

    def onehot(self) -> np.ndarray:
        """(n, C) of 0 and 1."""
        return self.truth


@dataclass
class Scores:
    """One line's numbers on the rows."""

    metrics: dict
    chosen: np.ndarray  # (n, C) bool
    samples: dict[str, np.ndarray]  # accuracy, macro_f1: (R,)


class FinalRows:
    """Scores runs, calibrated or not, on one file of labelled rows; each run's logits are made once."""

    def __init__(self, path: str, resamples: int = 2000, seed: int = 0, device: str | None = None):
        self.path, self.resamples, self.seed, self.device = path, resamples, seed, device
        self.found: dict[Path, tuple[np.ndarray, LabelRows]] = {}

    def logits(self, run: Path) -> tuple[np.ndarray, LabelRows]:
        """(n, C) float32 raw scores of a run, and the rows with columns in its order."""
        if run not in self.found:
            rows = score_file(run, self.path, self.device)
            labelled = LabelRows(
                rows.label_names, rows.multi_label, rows.truth, rows.hashes, {"path": self.path}
            )
            self.found[run] = rows.logits, labelled
        return self.found[run]

    def shown(self, run: Path, raw: bool) -> tuple[np.ndarray, LabelRows, dict | None]:
        """(n, C) scores as predict.py shows them, the rows, what thresholds.json holds; raw: of the model itself."""
        logits, rows = self.logits(run)
        fit, tuned = read_fit(run / "validation", rows.label_names, raw)
        return apply_calibration(**fit, logits=logits, multi_label=rows.multi_label), rows, tuned

    def of_run(self, run: Path, raw: bool, own_thresholds: bool = False) -> Scores:
        """A run as predict.py shows it; raw: without what jobs.calibrate found; own_thresholds: without its thresholds,
        so that calibrated probabilities decide as the raw ones did."""
        logits, rows, tuned = self.shown(run, raw)
        cuts, tuned_on = cuts_of(tuned, rows), tuned["tuned_on"] if tuned else ""
        if own_thresholds and rows.multi_label:
            own, tuned_on = first_thresholds(run / "validation", rows.label_names)
            cuts = carried_over(own, **read_fit(run / "validation", rows.label_names)[0])
        return self.of_scores(logits, rows, cuts, tuned_on)

    def calibration(self, run: Path) -> dict:
        """ECE, Brier and NLL of the probabilities before and after jobs.calibrate, with 95 % intervals."""
        logits, rows = self.logits(run)
        after = self.shown(run, raw=False)[0]
        return compare_calibration(logits, after, rows.truth, rows.multi_label, self.resamples, self.seed)

    def of_scores(
        self, logits: np.ndarray, rows: LabelRows, cuts: np.ndarray | None, tuned_on: str
    ) -> Scores:
        """Metrics, decisions and their resamples; with several labels at the thresholds."""
        metrics = measure(logits, rows, cuts, tuned_on) if rows.multi_label else measure(logits, rows)
        if rows.multi_label:
            chosen = probabilities(logits, True) >= cuts
        else:
            chosen = logits.argmax(axis=1)[:, None] == np.arange(logits.shape[1])
        samples = bootstrap_scores(rows.truth, chosen[None], self.resamples, self.seed)
        return Scores(metrics, chosen, samples)

    def write(self, run: Path) -> None:
        """Write RUN/test/ as a loop does for --test_data, and enter the rows into the run's record.

        metrics.json and predictions.jsonl are of what predict.py shows, logits.npy holds the model's own scores, as
        jobs.calibrate and jobs.ensemble read them.
        """
        logits, rows, tuned = self.shown(run, raw=False)
        metrics, tuned_on = self.of_run(run, raw=False).metrics, tuned["tuned_on"] if tuned else ""
        write_evaluation(run / "test", logits, rows, metrics, cuts_of(tuned, rows), tuned_on)
        if tuned:  # with the name of the fit on whose scores they stand
            write_json(run / "test" / "thresholds.json", {k: v for k, v in tuned.items() if k in TOLD})
        save_array(run / "test" / "logits.npy", self.logits(run)[0])
        record = RunRecord.read(run)
        arguments = record.record["arguments"] | {"test_data": self.path}
        data = record.record["data"] | {"test": file_sha256(self.path)}
        numbers = record.record.get("metrics", {}) | {"test": headline(metrics)}
        record.write(arguments=arguments, data=data, metrics=numbers)
        write_uses(run, {"test": rows})

    def baselines(
        self, train_data: str, val_data: str, label_names: list[str], multi_label: bool, row_format: RowFormat
    ) -> dict:
        """Headline metrics of the majority class and of TF-IDF with logistic regression, at thresholds of val_data."""
        about = label_names, multi_label, row_format
        logits = baseline_scores(train_data, self.path, *about)
        cuts = dict.fromkeys(logits)
        if multi_label:
            tuned, val_truth = (
                baseline_scores(train_data, val_data, *about),
                read_truth(val_data, label_names, row_format),
            )
            cuts = {name: best_thresholds(probabilities(own, True), val_truth) for name, own in tuned.items()}
        truth = read_truth(self.path, label_names, row_format)
        rows = LabelRows(
            label_names, multi_label, truth, np.zeros(len(truth), np.uint64), {"path": self.path}
        )
        found = {name: self.of_scores(own, rows, cuts[name], val_data) for name, own in logits.items()}
        return {name: headline(scores.metrics) | intervals(scores) for name, scores in found.items()}


def cuts_of(tuned: dict | None, rows: LabelRows) -> np.ndarray | None:
    """(C,) thresholds in the order of the classes."""
    return tuned and np.array([tuned["thresholds"][name] for name in rows.label_names])


def intervals(scores: Scores) -> dict:
    """{"interval": {accuracy, macro_f1: [low, high]}}, 95 % over resamples of the rows."""
    return {"interval": {name: list(percentile_interval(values)) for name, values in scores.samples.items()}}


def gain(scores: Scores, over: Scores, truth: np.ndarray) -> dict:
    """What one line has more than another, with 95 % intervals of the paired bootstrap."""
    ours, theirs = (score_decisions(truth, own.chosen[None]) for own in (scores, over))
    found = {}
    for name, key in (("macro_f1", "interval"), ("accuracy", "accuracy_interval")):
        found[name] = float(ours[name][0] - theirs[name][0])
        found[key] = list(percentile_interval(scores.samples[name] - over.samples[name]))
    return found


def read_truth(path: str, label_names: list[str], row_format: RowFormat) -> np.ndarray:
    """(n, C) bool of a labelled file, columns in the wanted order."""
    names, truth = read_labels(path, file_sha256(path), row_format)
    return columns(truth, names, label_names)


def baseline_scores(
    train_data: str, path: str, label_names: list[str], multi_label: bool, row_format: RowFormat
) -> dict[str, np.ndarray]:
    """(n, C) scores of a file's rows by each baseline, fitted on the training rows."""
    truth, size = read_truth(train_data, label_names, row_format), len(label_names)
    labels = truth.astype(np.uint8) if multi_label else truth.argmax(axis=1)
    texts = read_texts(path, row_format)
    train_texts = read_texts(train_data, row_format)
    return {
        "majority class": majority_scores(labels, len(texts), size, multi_label),
        "TF-IDF + logistic": tfidf_scores(train_texts, labels, texts, size, multi_label),
    }
