"""Probabilities that mean what they say: fit a map from a run's scores to calibrated ones, apply it, measure it.

Legend: n rows, C classes, R resamples. A calibrated score is a logit again: core.metrics.probabilities of it is the
calibrated probability, so whatever reads logits (metrics, prediction rows) reads calibrated ones as well.

none         the scores as they are
temperature  z / T, one T for all classes; the argmax, and with several labels the side of 0.5, stay as they are
platt        a slope and an offset for each class's log-odds against the rest
isotonic     a rising step curve for each class's log-odds against the rest, linear between its knots

Platt and isotonic are fitted a class against the rest; with one label a row the C probabilities are then divided by
their sum (Zadrozny & Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates"). With
two classes that is Platt's own method; vector scaling (Guo et al. 2017, section 4.2) would have a third parameter.
"""

import json
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from core.errors import UserError
from core.metrics import NUM_BINS, bin_numbers, calibration_summary, confidences, probabilities
from core.statistics import percentile_interval, resampled
from core.stored import ANY, NUMBER, Stored, read_json
from core.thresholds import deal_folds

METHODS = ("none", "temperature", "platt", "isotonic")  # the simpler first
SHAPE = {
    "method": str,
    "label_names": [str],
    "thresholds": {ANY: NUMBER},
    "tuned_on": str,
    "fit": str,
    ANY: ANY,
}
UNCALIBRATED = {"method": "none", "parameters": {}}
COLDEST, WARMEST = 0.05, 20.0  # limits of the temperature
NUM_FOLDS = 5
TIE = 1e-9  # of the raw score, where two classes of a row have come to the same probability
SIMULATIONS = 200  # of perfectly calibrated rows, for ece_by_chance
MEASURES = ("ece", "brier", "nll")


def log_odds(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, C) float64: log p / (1 - p) of each class; with multi_label the logits themselves."""
    logits = np.asarray(logits, np.float64)
    if multi_label:
        return logits
    log_probs, rows = log_softmax(logits, axis=1), np.arange(len(logits))
    probs, top = np.exp(log_probs), logits.argmax(axis=1)
    rest = 1 - probs
    probs[rows, top] = 0  # 1 - p of the top class would lose its digits: the others' sum does not
    rest[rows, top] = probs.sum(axis=1)
    return log_probs - np.log(np.maximum(rest, np.finfo(np.float64).tiny))


def fit_calibration(method: str, logits: np.ndarray, truth: np.ndarray, multi_label: bool) -> dict:
    """The parameters of a method, fitted on rows that the model was not trained on.

    Args:    method: one of METHODS | logits: (n, C) float, finite | truth: (n, C) bool.
    Returns: JSON-safe; lists have one entry a class. temperature: {"temperature"}, the minimum of the NLL. platt:
             {"scale", "bias"}. isotonic: {"log_odds", "probability"}, the knots. none: {}.
    Source:  temperature: Guo et al. 2017, arXiv:1706.04599, eq. 9. platt: Platt 1999, "Probabilistic outputs for
             support vector machines", section 2.2, with his targets in place of 0 and 1; a slope below 0, which would
             turn a class's ranking round, is 0 instead. isotonic: Zadrozny & Elkan 2002, kept 1 / (n + 2) away from
             0 and 1 (Laplace), so that the NLL stays finite.
    """
    if method == "temperature":
        return {"temperature": _fit_temperature(np.asarray(logits, np.float64), truth, multi_label)}
    if method == "none":
        return {}
    columns = list(zip(log_odds(logits, multi_label).T, truth.T))
    fits = [(_fit_platt if method == "platt" else _fit_isotonic)(*column) for column in columns]
    names = ("scale", "bias") if method == "platt" else ("log_odds", "probability")
    return {name: list(values) for name, values in zip(names, zip(*fits), strict=True)}


def apply_calibration(method: str, parameters: dict, logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, C) float64: the calibrated logits of (n, C) logits. Args as fit_calibration gives them."""
    logits = np.asarray(logits, np.float64)
    if method == "none":
        return logits
    if method == "temperature":
        return logits / parameters["temperature"]
    scores = log_odds(logits, multi_label)
    if method == "platt":
        odds = scores * parameters["scale"] + parameters["bias"]
        return odds if multi_label else log_softmax(log_expit(odds), axis=1)
    knots = zip(scores.T, parameters["log_odds"], parameters["probability"], strict=True)
    probs = np.stack([np.interp(*column) for column in knots], axis=1)
    return logit(probs) if multi_label else log_softmax(np.log(probs) + TIE * logits, axis=1)


def cross_fitted_logits(
    method: str,
    logits: np.ndarray,
    truth: np.ndarray,
    multi_label: bool,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> np.ndarray:
    """(n, C) float64: each row's calibrated logits, by the fit on the other folds. Args as in fit_calibration."""
    fold, out = deal_folds(len(logits), num_folds, seed), np.empty(logits.shape)
    for held_out in np.unique(fold):
        inside = fold == held_out
        parameters = fit_calibration(method, logits[~inside], truth[~inside], multi_label)
        out[inside] = apply_calibration(method, parameters, logits[inside], multi_label)
    return out


def choose_method(losses: dict[str, np.ndarray], num_resamples: int, seed: int) -> tuple[str, dict]:
    """The simplest method whose mean loss is within one standard error of the lowest.

    Args:    losses: (n,) of each method, on rows that it was not fitted on; the simpler methods first.
    Returns: its name; and {method: {"behind", "standard_error"}}, how far its mean is above the lowest, with the
             bootstrap standard error of that (paired: the same resampled rows).
    Source:  Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3, on paired differences.
    """
    best = min(losses, key=lambda name: losses[name].mean())
    behind = np.stack([values - losses[best] for values in losses.values()], axis=1)  # (n, methods)
    samples = [counts @ behind / len(behind) for counts in resampled(len(behind), num_resamples, seed)]
    mean, error = behind.mean(axis=0), np.concatenate(samples).std(axis=0)
    table = {
        name: {"behind": float(mean[k]), "standard_error": float(error[k])} for k, name in enumerate(losses)
    }
    return next(name for name, found in table.items() if found["behind"] <= found["standard_error"]), table


def row_losses(logits: np.ndarray, truth: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n,) float64: each row's negative log-likelihood in nats, with multi_label its mean over the classes."""
    logits = np.asarray(logits, np.float64)
    if multi_label:
        return -log_expit(np.where(truth, logits, -logits)).mean(axis=1)
    return -log_softmax(logits, axis=1)[truth]


def compare_calibration(
    before: np.ndarray,
    after: np.ndarray,
    truth: np.ndarray,
    multi_label: bool,
    num_resamples: int,
    seed: int,
) -> dict:
    """ECE, Brier score and NLL of two sets of scores of the same rows, and of their difference, with intervals.

    Args:    before, after: (n, C) logits | truth: (n, C) bool.
    Returns: {"before", "after": calibration_summary, "intervals": {name: [low, high]} and "by_chance", of
             ece_by_chance; "change": {name: {"difference", "low", "high"}}}: 95 % of resampled rows, paired. A
             resample's ECE is too high, since chance makes gaps of its own: all intervals are moved so that the
             resamples' mean is the number itself.
    """
    labels = truth.astype(np.uint8) if multi_label else truth.argmax(axis=1)
    found = {"before": before, "after": after}
    parts = {name: _row_parts(logits, truth, multi_label) for name, logits in found.items()}
    samples = {name: [] for name in parts}
    for counts in resampled(len(truth), num_resamples, seed):  # the same rows for both
        for name, values in parts.items():
            samples[name].append(_measures(counts @ values / len(truth)))
    samples = {name: np.concatenate(values) for name, values in samples.items()}  # (R, 3)
    numbers = {name: _measures(values.mean(axis=0)[None])[0] for name, values in parts.items()}
    out: dict = {"change": {}}
    for name, logits in found.items():
        intervals = _intervals(samples[name], numbers[name], least=0.0)
        out[name] = calibration_summary(logits, labels, multi_label)
        out[name]["intervals"] = dict(zip(MEASURES, intervals, strict=True))
        out[name]["by_chance"] = ece_by_chance(logits, multi_label, seed)
    moved = numbers["after"] - numbers["before"]
    for k, (low, high) in enumerate(_intervals(samples["after"] - samples["before"], moved)):
        out["change"][MEASURES[k]] = {"difference": float(moved[k]), "low": low, "high": high}
    return out


def ece_by_chance(logits: np.ndarray, multi_label: bool, seed: int) -> dict:
    """The ECE that chance alone gives to probabilities that are exactly right, on that many rows.

    Returns: {"mean", "high"}: mean and 95th percentile over SIMULATIONS draws of what comes true from the
             probabilities. An ECE below "high" says nothing against them.
    Source:  Broecker & Smith 2007, "Increasing the reliability of reliability diagrams" (consistency resampling).
    """
    rng = np.random.default_rng(seed)
    confidence, _ = confidences(logits, np.zeros(logits.shape, bool), multi_label)
    bins, found = bin_numbers(confidence), []
    for _ in range(SIMULATIONS):
        gaps = (rng.random(len(confidence)) < confidence) - confidence
        found.append(np.abs(np.bincount(bins, gaps)).sum() / len(confidence))
    return {"mean": float(np.mean(found)), "high": float(np.quantile(found, 0.95))}


def fit_name(method: str, parameters: dict) -> str:
    """What tells one fit from another: thresholds.json names the calibration that its thresholds belong to."""
    digest = sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    return method if method == "none" else f"{method} {digest[:12]}"


def read_fit(folder: Path, label_names: list[str], raw: bool = False) -> tuple[dict, dict | None]:
    """What a folder (a run's validation/) says about probabilities and thresholds.

    Args:    label_names: C, of the model's scores | raw: leave a calibration out, and take the thresholds that were
             found without it.
    Returns: ({"method", "parameters"} for apply_calibration, what thresholds.json holds or None).
    Raises:  UserError when the two files are not of one fit, or of other classes.
    """
    calibration, tuned = (_read(folder / f"{name}.json") for name in ("calibration", "thresholds"))
    calibration = UNCALIBRATED | (calibration or {})
    used = {name: calibration[name] for name in UNCALIBRATED}
    try:
        zeros = np.zeros((1, len(label_names)))
        made = apply_calibration(**used, logits=zeros, multi_label=True)
        is_good = used["method"] in METHODS and made.shape == zeros.shape
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        is_good = False
    if not is_good:
        raise UserError(f"{folder}/calibration.json: is not whole: no fit for {len(label_names)} classes; run "
                        "python -m jobs.calibrate once more")  # fmt: skip
    again = "run python -m jobs.calibrate once more, or predict with --raw"
    tuned_with = tuned.get("fit", "none") if tuned is not None else None
    if tuned is not None:
        check_thresholds(tuned, label_names)
    if raw:
        first = _read(
            folder / "thresholds.uncalibrated.json"
        )  # there after jobs.calibrate, whatever it chose
        if first is not None:
            check_thresholds(first, label_names)
        elif tuned_with == "none":
            first = tuned
        return UNCALIBRATED, first
    if tuned is not None and tuned_with != fit_name(**used):
        raise UserError(f"{folder}: calibration.json and thresholds.json are not of one fit; {again}")
    if calibration.get("label_names", label_names) != label_names:
        raise UserError(f"{folder}/calibration.json: is of other classes than the model; {again}")
    return used, tuned


def check_thresholds(tuned: Stored, label_names: list[str]) -> None:
    """Raise UserError where a thresholds.json lacks what is read of it."""
    cuts, _ = tuned["thresholds"], tuned["tuned_on"]
    for name in label_names:
        _ = cuts[name]


def _read(path: Path) -> dict | None:
    """A JSON file; None where there is none."""
    return read_json(path, SHAPE) if path.is_file() else None


def _fit_temperature(logits: np.ndarray, truth: np.ndarray, multi_label: bool) -> float:
    """The temperature of least NLL: one scalar search, as the NLL is convex in 1 / T and so has one dip in log T."""
    is_right = (logits >= 0) == truth if multi_label else logits[truth] == logits.max(axis=1)
    if is_right.all():  # the NLL falls for ever as T does, and the first wrong row would cost any price
        return 1.0

    def nll(log_t: float) -> float:
        return float(row_losses(logits / np.exp(log_t), truth, multi_label).mean())

    limits = np.log([COLDEST, WARMEST])
    return float(np.exp(minimize_scalar(nll, bounds=limits, method="bounded", options={"xatol": 1e-10}).x))


def _fit_platt(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Slope and offset of one class's log-odds."""
    num_true, num_false = truth.sum(), (~truth).sum()
    target = np.where(truth, (num_true + 1) / (num_true + 2), 1 / (num_false + 2))
    flat = 0.0, float(logit(target.mean()))
    spread = float(scores.std())
    if spread == 0:
        return flat
    # A target between 0 and 1 is two rows with weights. The scores have unit spread for the solver's sake alone.
    doubled = np.tile((scores - scores.mean()) / spread, 2)[:, None]
    outcome, weight = np.repeat([1, 0], len(scores)), np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the last digits its line search finds no better point
        model.fit(doubled, outcome, weight)
    scale = float(model.coef_[0, 0]) / spread
    return (scale, float(model.intercept_[0] - scale * scores.mean())) if scale > 0 else flat


def _fit_isotonic(scores: np.ndarray, truth: np.ndarray) -> tuple[list[float], list[float]]:
    """The knots of one class's curve: log-odds, rising, and probability."""
    least = 1 / (len(scores) + 2)
    model = IsotonicRegression(y_min=least, y_max=1 - least, out_of_bounds="clip").fit(scores, truth)
    return model.X_thresholds_.tolist(), model.y_thresholds_.tolist()  # numpy


def _row_parts(logits: np.ndarray, truth: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, NUM_BINS + 2) float64: each row's share in what _measures adds up: gap in each bin, Brier score, NLL."""
    num_rows, num_classes = truth.shape
    confidence, right = confidences(logits, truth, multi_label)
    scores_a_row = len(confidence) // num_rows
    cell = np.repeat(np.arange(num_rows), scores_a_row) * NUM_BINS + bin_numbers(confidence)
    gaps = np.bincount(cell, right - confidence, num_rows * NUM_BINS).reshape(num_rows, NUM_BINS)
    squared = ((probabilities(logits, multi_label) - truth) ** 2).sum(axis=1)
    brier = squared / num_classes if multi_label else squared
    return np.column_stack([gaps / scores_a_row, brier, row_losses(logits, truth, multi_label)])


def _measures(means: np.ndarray) -> np.ndarray:
    """(R, 3): MEASURES of (R, NUM_BINS + 2) means over rows of _row_parts."""
    return np.column_stack([np.abs(means[:, :NUM_BINS]).sum(axis=1), means[:, NUM_BINS:]])


def _intervals(samples: np.ndarray, numbers: np.ndarray, least: float = -np.inf) -> list[list[float]]:
    """[low, high] of each column of (R, 3) samples, moved so that their mean is the number itself."""
    centred = np.maximum(samples - samples.mean(axis=0) + numbers, least)
    return [list(percentile_interval(column)) for column in centred.T]
