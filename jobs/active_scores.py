"""What a finished run says of rows that nobody has labelled, and which of them are to be labelled next.

Beside its scores a run gives the states before its last layer: what the diversity-aware acquisitions measure by.

n rows, C classes, D width of the states, B rows of a cut.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from archs.build import Classifier
from archs.encoder import OwnHead, PooledHead
from core.acquisition import badge, coreset, margins, residuals
from core.errors import UserError
from core.rows import BadRows
from ensemble_predict import EnsemblePredictor
from jobs.feedback import uncertainty
from predict import WINDOW, Predictor

ACQUISITIONS = ("entropy", "margin", "badge", "coreset", "random")
NEED_STATES = ("badge", "coreset")


def last_layer(model: Classifier) -> nn.Module:
    """The layer whose products with a row's state are its scores; label words: the language model's head.

    Raises: UserError for an architecture whose own head ends in no linear layer.
    """
    if isinstance(model, PooledHead):
        return model.head[-1]
    if not isinstance(model, OwnHead):
        return model.inner.get_output_embeddings()
    inner = model.inner
    ours = set(map(id, inner.base_model.modules()))
    found = [m for m in inner.modules() if isinstance(m, nn.Linear) and id(m) not in ours]
    if not found or found[-1].out_features != inner.config.num_labels:
        raise UserError(
            f"{type(inner).__name__}: its head ends in no linear layer, so there are no states for "
            f"{' and '.join(NEED_STATES)}; give another --acquisition, or train with --head linear"
        )
    return found[-1]


@contextmanager
def states_caught(model: Classifier, found: dict[int, np.ndarray]) -> Iterator[None]:
    """In the block, put the last layer's input of every row that the model scores into found, by the row's number.

    A row behind which several words stand gives its first state: that in which its prompt ends.
    """
    inputs = []

    def before(module: nn.Module, args: tuple) -> None:
        inputs.append(args[0])

    def after(module: nn.Module, args: tuple, scores: torch.Tensor) -> None:
        num_rows, states = len(scores), inputs.pop()
        numbers = (
            args[0].rows.reshape(num_rows, -1)[:, 0].tolist()
        )  # SYNC: padded rows stand once for each word
        states = states.reshape(num_rows, -1, states.shape[-1])[:, 0].float().cpu().numpy()  # SYNC D2H
        found.update(zip(numbers, states, strict=True))

    hooks = [last_layer(model).register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def score_texts(
    predictor: Predictor | EnsemblePredictor,
    texts: list[str],
    pairs: list[str] | None,
    lines: list[int],
    path: str,
    with_states: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The run's own scores of texts, and the states before its last layer.

    Args:    lines, path: of the texts in their file, for messages | with_states: else none are kept.
    Returns: (n, C) float32 logits, not calibrated | (n, D) float32 states, or None.
    Raises:  UserError for texts without a token, scores that are not finite, states of an ensemble.
    Cost:    one pass of the model; with states a D2H of (B, D) each cut.
    """
    if isinstance(predictor, EnsemblePredictor):
        if with_states:
            told = " and ".join(NEED_STATES)
            raise UserError(
                f"{told} need the states of one model, and this run is an ensemble: give a member"
            )
    elif predictor.encoder.pair != (pairs is not None):
        raise UserError(f"{path}: the run takes {'pairs' if pairs is None else 'single texts'}")
    bad, logits, states = BadRows(path), [], []
    with tqdm(total=len(texts), desc="predict", unit=" rows", disable=None, leave=False) as bar:
        for first in range(0, len(texts), WINDOW):
            window = slice(first, first + WINDOW)
            more = None if pairs is None else pairs[window]
            if isinstance(predictor, EnsemblePredictor):
                logits.append(predictor.scores(texts[window], more))
            else:
                coded = predictor.encoder(texts[window], more)
                for line, (ids, _, _) in zip(lines[window], coded, strict=True):
                    if not ids:
                        bad.add(line, "the text has no token: empty after tokenisation")
                bad.raise_if_any()
                rows = [np.asarray(ids) for ids, _, _ in coded], np.array([start for _, start, _ in coded])
                found = {}
                if with_states:
                    with states_caught(predictor.model, found):
                        logits.append(predictor.score_ids(*rows))  # GPU D2H
                    states.append(np.stack([found[k] for k in range(len(coded))]))
                else:
                    logits.append(predictor.score_ids(*rows))  # GPU D2H
            bar.update(len(texts[window]))
    scores = np.concatenate(logits)
    for k in np.flatnonzero(~np.isfinite(scores).all(axis=1)):
        bad.add(lines[k], "a score is not finite: the run has diverged, or --amp is too narrow for it")
    bad.raise_if_any()
    return scores, np.concatenate(states) if with_states else None


def choose(
    acquisition: str,
    num_rows: int,
    logits: np.ndarray,
    states: np.ndarray | None,
    labelled: np.ndarray | None,
    multi_label: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """The rows to be labelled next, the most wanted first.

    Args:    acquisition: one of ACQUISITIONS | num_rows: so many, if there are | logits: (n, C) | states: (n, D), for
             NEED_STATES | labelled: (m, D) of the rows that have labels, for coreset | rng: for badge and random.
    Returns: (num_rows,) int64 different indices; of equally unsure rows the first come first.
    """
    if acquisition == "entropy":
        return np.argsort(-uncertainty(logits, multi_label), kind="stable")[:num_rows]
    if acquisition == "margin":
        return np.argsort(margins(logits, multi_label), kind="stable")[:num_rows]
    if acquisition == "badge":
        return badge(residuals(logits, multi_label), states, num_rows, rng)
    if acquisition == "coreset":
        return coreset(states, labelled, num_rows)
    return rng.permutation(len(logits))[:num_rows]
