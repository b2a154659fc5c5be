"""Classification losses: sums over rows, never means; the loop divides by one global denominator.

A logical batch's gradient is then the same however it is cut. B rows, C classes. Scores come in any float type
and are computed in float32; the result is a float32 scalar (float64 for float64 scores).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from core.errors import UserError


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    """Half-precision scores as float32; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of weighted cross-entropies, in nats.

    Args:    logits: (B, C) | labels: (B,) int64 | weights: (C,) float32, of each class | smoothing: in [0, 1),
             the share of the target spread evenly over all classes.
    Source:  Szegedy et al. 2016, section 7, for smoothing; as torch's cross_entropy weighs it.
    """
    return F.cross_entropy(
        at_least_float32(logits), labels, weights, reduction="sum", label_smoothing=smoothing
    )


def binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of weighted binary cross-entropies over rows and classes, in nats.

    Args:    logits: (B, C) | labels: (B, C) float32 0/1 | weights: (2, C) float32, of a class's negatives and
             positives | smoothing: in [0, 1): targets become y (1 - s) + s / 2.
    """
    logits = at_least_float32(logits)
    target = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * element_weights(labels, weights)).sum() if weights is not None else loss.sum()


def focal(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
    gamma: float = 2.0,
) -> torch.Tensor:
    """Sum of weighted focal losses, in nats; gamma 0 is cross_entropy.

    Args:    as cross_entropy; gamma >= 0 discounts the rows that are right already by (1 - p)^gamma.
    Source:  Lin et al. 2017, eq. 5, over softmax probabilities; their alpha is `weights`. With smoothing each
             class's term carries its own (1 - p)^gamma and its share of the smoothed target.
    """
    log_probs = F.log_softmax(at_least_float32(logits), dim=-1)  # (B, C)
    tiny = torch.finfo(log_probs.dtype).tiny  # at 1 - p = 0 the slope of a gamma below 1 would be infinite
    wrong = (1 - log_probs.exp()).clamp_min(tiny)
    loss = -(wrong**gamma) * log_probs
    target = (
        F.one_hot(labels, logits.shape[-1]).to(loss.dtype) * (1 - smoothing) + smoothing / logits.shape[-1]
    )
    return (loss * target * weights).sum() if weights is not None else (loss * target).sum()


def binary_focal(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
    gamma: float = 2.0,
) -> torch.Tensor:
    """Sum of weighted sigmoid focal losses over rows and classes, in nats; gamma 0 is binary_cross_entropy.

    Source: Lin et al. 2017, eq. 5; alpha is weights[1] = alpha, weights[0] = 1 - alpha. With smoothing both
            outcomes' terms enter with their share of the smoothed target.
    """
    logits = at_least_float32(logits)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    target = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    loss = -target * (gamma * log_q).exp() * log_p - (1 - target) * (gamma * log_p).exp() * log_q
    return (loss * element_weights(labels, weights)).sum() if weights is not None else loss.sum()


def answer_loss(
    scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, smoothing: float = 0.0
) -> torch.Tensor:
    """Minus the sum of the right words' weighted log-probabilities, in nats: language modelling of the answer alone.

    Args: scores: (B, C) log-probabilities of the classes' words | labels: (B,) int64 | weights: (C,) |
          smoothing: 0, there is no distribution over classes to smooth.
    """
    loss = -at_least_float32(scores).gather(1, labels[:, None]).squeeze(1)
    return (loss * weights[labels]).sum() if weights is not None else loss.sum()


def element_weights(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B, C): weights[1, c] where the label holds, weights[0, c] where not. weights: (2, C)."""
    return torch.lerp(weights[0], weights[1], labels.to(weights.dtype))


LOSSES = {("ce", False): cross_entropy, ("focal", False): focal}
LOSSES |= {("vocab", False): answer_loss}
LOSSES |= {("bce", True): binary_cross_entropy, ("focal", True): binary_focal}


def choose_loss(name: str, multi_label: bool, num_classes: int, alpha: float | None) -> str:
    """The loss that --loss means for these labels. Raises UserError when it does not fit them."""
    name = ("bce" if multi_label else "ce") if name == "auto" else name
    if (name, multi_label) not in LOSSES:
        rows = "several labels a row" if multi_label else "one label a row"
        raise UserError(
            f"--loss {name}: the rows have {rows}; expected {'bce' if multi_label else 'ce'} or focal"
        )
    if alpha is not None and (name != "focal" or (num_classes > 2 and not multi_label)):
        raise UserError(
            "--focal_alpha: weighs positives against negatives, so it needs --loss focal and two classes or "
            "several labels a row; --class_weights weighs more classes"
        )
    return name


def choose_word_loss(word_loss: str, loss: str, head: str, architecture: str, smoothing: float) -> str:
    """The loss over label words: that over the classes' scores, or vocab.

    Args:   word_loss: auto | classes | vocab; auto is classes for an encoder-decoder, vocab for a decoder | loss: what
            choose_loss gave.
    Raises: UserError where a flag does not fit.
    """
    if head != "words":
        if word_loss != "auto":
            raise UserError(f"--word_loss {word_loss}: needs label words for an answer, not --head {head}")
        return loss
    if word_loss == "auto":
        word_loss = "vocab" if architecture == "causal" and loss == "ce" and not smoothing else "classes"
    if word_loss == "vocab" and (smoothing or loss != "ce"):
        odd = "--label_smoothing" if smoothing else f"--loss {loss}"
        raise UserError(f"--word_loss vocab: leaves nothing for {odd} to do; use --word_loss classes")
    return "vocab" if word_loss == "vocab" else loss


def make_loss(
    name: str, multi_label: bool, weights: torch.Tensor | None, smoothing: float, gamma: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss as a function of (logits, labels), its settings bound."""
    loss, extra = LOSSES[name, multi_label], {"gamma": gamma} if name == "focal" else {}

    def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss(logits, labels, weights, smoothing, **extra)

    return loss_fn


def loss_denominator(labels: np.ndarray, weights: np.ndarray | None) -> float:
    """What the summed loss of these rows is divided by: the sum of their weights, a Python number.

    Args:    labels: (B,) class indices, or (B, C) 0/1, of the whole logical batch over all ranks |
             weights: (C,), or (2, C) for several labels a row; None weighs everything 1.
    Returns: without weights B, or B x C; so the loss is torch's mean reduction of the whole batch.
    """
    if weights is None:
        return float(labels.size)
    if labels.ndim == 1:
        return float(weights[labels].sum())
    return float(np.where(labels > 0, weights[1], weights[0]).sum())


def class_weights(
    kind: str,
    labels: np.ndarray,
    num_classes: int,
    given: list[float] | None = None,
    alpha: float | None = None,
) -> np.ndarray | None:
    """Weights of the classes.

    Args:    kind: none | balanced (n / (C n_c)) | effective ((1 - b) / (1 - b^n_c), b = 1 - 1/n, scaled to mean
             1) | a file's name | labels: (n,) or (n, C), the training rows | given: (C,) from that file; weighs
             a class's positives with several labels a row | alpha: weighs positives alpha and negatives
             1 - alpha, with several labels a row or two classes (the second is the positive one).
    Returns: (C,) float32; with several labels a row (2, C): negatives, positives; None when all are 1.
    Source:  scikit-learn's "balanced"; Cui et al. 2019 (class-balanced loss), eq. 2, with b = (n - 1) / n.
    """
    multi_label = labels.ndim == 2
    if multi_label:
        positives = labels.sum(axis=0, dtype=np.int64)
        counts = np.stack([len(labels) - positives, positives])  # (2, C): two classes in each column
    else:
        counts = np.bincount(labels, minlength=num_classes)
    if kind == "balanced":
        weights = len(labels) / (len(counts) * np.maximum(counts, 1.0))
    elif kind == "effective":
        beta = 1 - 1 / len(labels)
        weights = (1 - beta) / (1 - beta ** np.maximum(counts, 1.0))
        weights = weights / weights.mean(axis=0)
    elif given is not None:
        given = np.asarray(given, np.float64)
        weights = np.stack([np.ones(num_classes), given]) if multi_label else given
    else:
        weights = np.ones(counts.shape)
    if alpha is not None:
        weights = weights * (
            np.array([[1 - alpha], [alpha]]) if multi_label else np.array([1 - alpha, alpha])
        )
    return None if np.all(weights == 1) else weights.astype(np.float32)
