"""From scores to prediction rows, the same for a run's own validation rows and for predict.py."""

import numpy as np

from core.metrics import probabilities


def prediction_rows(
    logits: np.ndarray, label_names: list[str], multi_label: bool, thresholds: np.ndarray | None
) -> list[dict]:
    """A row {"label", "probabilities": {name: p}} each; with several labels a row also "labels".

    Args: logits: (n, C) float32 | thresholds: (C,), for several labels a row; None is 0.5. A label holds when
          its probability is at least its threshold. Probabilities have 6 decimals; decisions are made before
          they are rounded.
    """
    probs = probabilities(logits, multi_label)
    thresholds = np.full(probs.shape[1], 0.5) if thresholds is None else thresholds
    best, rounded = logits.argmax(axis=1), probs.round(6)  # a sigmoid ties logits from 37 on
    out = []
    for k in range(len(probs)):
        row = {"label": label_names[best[k]]}
        if multi_label:
            row["labels"] = [label_names[c] for c in np.flatnonzero(probs[k] >= thresholds)]
        row["probabilities"] = dict(zip(label_names, rounded[k].tolist(), strict=True))
        out.append(row)
    return out
