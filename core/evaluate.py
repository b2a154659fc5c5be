"""Score rows with a model, and write down what the scores are worth.

n rows, C classes. Every rank scores its own cuts; each row is on exactly one rank, so no row counts twice.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from core.batches import Cut, Feed
from core.budget import Budget, shard_error
from core.cache import TokenRows
from core.dist import gather_to_main, worst_of_ranks
from core.errors import UserError
from core.files import save_array, write_json, write_text
from core.metrics import calibration_summary, classification_metrics, probabilities
from core.plan import eval_hands, fillers
from core.plots import (
    confusion_figure,
    outcomes_figure,
    per_class_figure,
    pr_figure,
    reliability_figure,
    save_png,
)
from core.predictions import prediction_rows
from core.thresholds import best_thresholds, cross_fitted

CROSS_FITTED = "validation, cross-fitted in 5 folds"


@torch.no_grad()
def score_cuts(
    forward: Callable[[Cut], torch.Tensor],
    cuts: Iterable[Cut],
    amp_dtype: torch.dtype | None,
    device: torch.device,
) -> torch.Tensor | None:
    """Float32 scores of the cuts' rows, in their order, on the host; None without a cut.

    Cost: GPU a cut, one D2H at the end.
    """
    with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):  # weights are cast once
        scores = [forward(cut).float() for cut in cuts]  # GPU
    return torch.cat(scores).cpu() if scores else None  # SYNC D2H


def score_rows(
    model: torch.nn.Module,
    forward: Callable[[Cut], torch.Tensor],
    feed: Feed,
    budget: Budget,
    amp_dtype: torch.dtype | None,
    rank: int,
    world: int,
    sharded: bool = False,
) -> np.ndarray | None:
    """(n, C) float32 scores of all rows on rank 0, None on the others. The model is left in training mode.

    Where memory ends the budget is halved, on all ranks, and all rows are scored again; sharded: it ends the run, and
    every rank runs as many cuts as any, the scores of those that it has no rows for are dropped.

    Raises: UserError where memory ends on a single row, or with sharded.
    """
    model.eval()
    while True:
        hands = eval_hands(feed.lengths, budget.at(0), world, feed.device.type, feed.packed)
        cuts, more = hands[rank], fillers(hands, feed.lengths, rank) if sharded else []
        fault = 0
        try:
            scores = score_cuts(forward, feed(cuts + more), amp_dtype, feed.device)
        except torch.OutOfMemoryError:
            if sharded:
                raise shard_error() from None
            fault = 1 if max(map(len, cuts)) > 1 else 2
        fault = worst_of_ranks(fault)  # COMM
        if not fault:
            break
        if fault == 2:
            raise UserError(
                f"out of memory on a single row of {feed.rows.meta['path']} while it is scored: lower --max_length"
            )
        budget.lower(0, worst_of_ranks(cut_cost(cuts, feed)))  # COMM
    model.train()
    rows = np.concatenate(cuts) if cuts else []
    parts = gather_to_main((rows, scores[: len(rows)].numpy()) if cuts else None)  # COMM
    if parts is None:
        return None
    logits = np.empty((len(feed.rows), feed.num_scores), np.float32)
    for part in parts:
        if part is not None:
            logits[part[0]] = part[1]
    return logits


def cut_cost(cuts: list[np.ndarray], feed: Feed) -> int:
    """Tokens of the dearest cut, padding included where there is any."""
    lengths = [feed.lengths[cut] for cut in cuts]
    return max((int(n.sum()) if feed.packed else len(n) * int(n[0]) for n in lengths), default=0)


def measure(
    logits: np.ndarray, rows: TokenRows, thresholds: np.ndarray | None = None, tuned_on: str = CROSS_FITTED
) -> dict:
    """The metrics of scores; with several labels a row also at thresholds: given ones, else cross-fitted.

    Raises: UserError when scores are not finite: training has diverged.
    """
    if not np.isfinite(logits).all():
        raise UserError(
            f"{int((~np.isfinite(logits)).any(axis=1).sum())} of {len(logits)} rows of {rows.meta['path']} get "
            "scores that are not finite: training has diverged; lower --learning_rate, or use --amp bf16 or off"
        )
    tuned = None
    if rows.multi_label:
        probs = probabilities(logits, True)
        tuned = cross_fitted(probs, rows.labels) if thresholds is None else probs >= thresholds
    metrics = classification_metrics(
        logits, np.asarray(rows.labels), rows.label_names, rows.multi_label, tuned
    )
    if rows.multi_label:
        metrics["thresholds_tuned_on"] = tuned_on
    return metrics


def fit_thresholds(logits: np.ndarray, rows: TokenRows) -> np.ndarray | None:
    """The (C,) thresholds of best F1 on these rows, exactly; None with one label a row."""
    return best_thresholds(probabilities(logits, True), np.asarray(rows.labels)) if rows.multi_label else None


def headline(metrics: dict) -> dict:
    """The flat numbers of metrics, without the tables in it."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and v is not None}


def write_evaluation(
    folder: Path,
    logits: np.ndarray,
    rows: TokenRows,
    metrics: dict,
    thresholds: np.ndarray | None,
    tuned_on: str,
) -> dict:
    """Write validation/ or test/: metrics, predictions, scores, thresholds, calibration, plots.

    Returns: the figures by name, for TensorBoard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, labels = rows.label_names, np.asarray(rows.labels)
    write_json(folder / "metrics.json", metrics)
    lines = prediction_rows(logits, names, rows.multi_label, thresholds)
    write_text(
        folder / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )
    save_array(folder / "logits.npy", logits)
    if thresholds is not None:
        values = dict(zip(names, thresholds.tolist(), strict=True))  # numpy
        write_json(folder / "thresholds.json", {"thresholds": values, "tuned_on": tuned_on})
    calibration = calibration_summary(logits, labels, rows.multi_label)
    write_json(folder / "calibration.json", calibration)
    onehot = rows.onehot()
    figures = {
        "pr_curves": pr_figure(probabilities(logits, rows.multi_label), onehot, names),
        "per_class": per_class_figure(metrics["per_class"]),
        "reliability": reliability_figure(calibration),
    }
    if rows.multi_label:
        figures["confusion_matrix"] = outcomes_figure(metrics["per_class"])
    else:
        figures["confusion_matrix"] = confusion_figure(metrics["confusion_matrix"], names)
    for name, figure in figures.items():
        save_png(figure, folder / f"{name}.png")
    return figures
