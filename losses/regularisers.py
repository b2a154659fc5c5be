"""Terms beside a classification loss: sums over rows, as in losses/classification.py. B rows, C classes."""

import torch
from torch.nn import functional as F

from losses.classification import at_least_float32


def symmetric_divergence(scores: torch.Tensor, others: torch.Tensor, multi_label: bool) -> torch.Tensor:
    """Sum over rows of (KL(p || q) + KL(q || p)) / 2, in nats: R-Drop's term for two passes with other dropout masks.

    Args:    scores, others: (B, C); with multi_label each of the C is a distribution of its own, and all are summed.
    Returns: a float32 scalar, with gradients into both.
    Source:  Liang et al. 2021, arXiv:2106.14448, eq. 2 (KL(p||q) + KL(q||p) = sum (p - q)(log p - log q)).
    """
    scores, others = at_least_float32(scores), at_least_float32(others)
    if multi_label:
        # of a Bernoulli the logits' difference is that of log p and log(1 - p) together
        return ((scores.sigmoid() - others.sigmoid()) * (scores - others)).sum() / 2
    log_p, log_q = F.log_softmax(scores, -1), F.log_softmax(others, -1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum() / 2
