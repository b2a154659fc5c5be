"""What a run changed: its scores beside those of the model that it began with, on the same rows, with intervals."""

import numpy as np

from core.cache import TokenRows
from core.statistics import bootstrap_p, bootstrap_scores, percentile_interval, score_decisions


def measure_change(before: np.ndarray, after: np.ndarray, rows: TokenRows) -> dict[str, dict]:
    """Accuracy and macro F1 before, after, and their difference with a paired 95 % bootstrap interval over the rows.

    Args:    before, after: (n, C) scores of the same rows; with several labels a row they are cut at 0.
    Returns: {"accuracy", "macro_f1"}: {"before", "after", "difference", "low", "high", "p"} each.
    """
    truth = rows.onehot().astype(bool)

    def decide(scores: np.ndarray) -> np.ndarray:
        if rows.multi_label:
            return (scores >= 0)[None]
        return (np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None])[None]

    chosen = decide(before), decide(after)
    (old, new), (old_samples, new_samples) = (
        [work(truth, part) for part in chosen] for work in (score_decisions, bootstrap_scores)
    )
    found = {}
    for name in old:
        samples = new_samples[name] - old_samples[name]
        low, high = percentile_interval(samples)
        values = {"before": float(old[name][0]), "after": float(new[name][0])}
        values |= {"difference": values["after"] - values["before"], "low": low, "high": high}
        found[name] = values | {"p": bootstrap_p(samples)}
    return found


def change_text(change: dict[str, dict], split: str, several: bool) -> str:
    """One line a score. split: validation rows chose the step, so their line flatters it | several: labels a row."""
    told = {"validation": "validation, which chose the step"}.get(split, split) + ", at 0.5" * several
    return "\n".join(
        f"{told}: {name} {found['before']:.4f} before, {found['after']:.4f} after: {found['difference']:+.4f} "
        f"(95 % of resampled rows {found['low']:+.4f} to {found['high']:+.4f}, p {found['p']:.3f})"
        for name, found in change.items()
    )
