"""Noise and adversarial steps on the token embeddings, by one hook on the embedding: NEFTune and FGM.

Both are of each row alone: its own length, its own gradient, and noise that hangs on (seed, step, row, token) where
dropout masks do (archs/dropout.py). So, dropout off or exact, the gradient is the same however rows are cut or packed;
but for a decoder's words of several tokens: packed they count into their row, padded each copy of the row has one.
B rows, T or N tokens, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from archs.dropout import MASKS
from core.batches import Cut
from core.errors import UserError


class EmbeddingNoise:
    """A hook on a model's token embeddings; without it (both numbers 0) there is none."""

    def __init__(self, model: nn.Module, neftune: float, fgm: float):
        """neftune: alpha, the noise is uniform in +- alpha / sqrt(L D) | fgm: length of a row's adversarial step."""
        self.neftune, self.fgm = neftune, fgm
        self.cut: Cut | None = None  # of the pass under way, until the embeddings have been seen
        self.seen: tuple[Cut, torch.Tensor] | None = (
            None  # a cut and its embeddings, whose gradient makes the step
        )
        self.step: torch.Tensor | None = None  # what is added to them in an adversarial pass
        if neftune or fgm:
            model.register_forward_pre_hook(self.begin)
            model.register_forward_hook(self.end)
            table = model.inner.get_input_embeddings().weight
            for module in model.modules():  # T5's encoder and decoder have an embedding each of the one table
                if isinstance(module, nn.Embedding) and module.weight is table:
                    module.register_forward_hook(self.change)

    def begin(self, model: nn.Module, args: tuple) -> None:
        """Before a pass of the classifier: remember its cut, in training alone."""
        self.cut = args[0] if model.training and torch.is_grad_enabled() else None

    def end(self, model: nn.Module, args: tuple, scores: torch.Tensor) -> None:
        """After it. Raises UserError when no embedding of these tokens was seen: the model pads them itself, say."""
        if self.cut is not None:
            raise UserError(
                "--neftune, --fgm: this model embeds other tokens than it is given; drop the flag"
            )

    def change(self, module: nn.Module, args: tuple, embedded: torch.Tensor) -> torch.Tensor | None:
        """After the embedding: (B, T, D) or (1, N, D) with noise; a decoder's own input, which comes later, without."""
        if self.cut is None or embedded.shape[:-1] != self.cut.ids.shape:
            return None
        cut, self.cut = self.cut, None
        if self.neftune:
            embedded = embedded + neftune_noise(embedded, cut, self.neftune)
        if self.step is not None:
            return embedded + self.step.to(embedded.dtype)
        if self.fgm:
            if self.seen and self.seen[0] is cut:
                return embedded  # R-Drop's second pass: the first is the one that is moved
            self.seen = cut, embedded if embedded.requires_grad else embedded.detach().requires_grad_()
            self.seen[1].retain_grad()
            return self.seen[1]
        return embedded

    @contextmanager
    def adversarial(self, cut: Cut) -> Iterator[None]:
        """After backward: the passes in the block see each row moved by fgm along its own gradient."""
        self.step, self.seen = fgm_step(self.seen[1].grad, cut, self.fgm), None
        try:
            yield
        finally:
            self.step = None


def row_lengths(cut: Cut) -> torch.Tensor:
    """Tokens of the row that each token is of: (B, 1, 1), packed (1, N, 1), int64."""
    if cut.owner is not None:
        return cut.cu_seqlens.diff().long()[cut.owner][None, :, None]
    if cut.mask is not None:
        return cut.mask.sum(1)[:, None, None]
    return torch.full((len(cut.ids), 1, 1), cut.ids.shape[1], device=cut.ids.device)


def neftune_noise(embedded: torch.Tensor, cut: Cut, alpha: float) -> torch.Tensor:
    """Uniform noise in +- alpha / sqrt(L D), of the embeddings' shape; L: the row's own tokens, padding left out.

    Source: Jain et al. 2023, arXiv:2310.05914, algorithm 1.
    """
    width = embedded.shape[-1]
    if MASKS.tokens is not None and MASKS.tokens.shape == cut.ids.shape:
        uniform = MASKS.uniform(MASKS.tokens, width, MASKS.next_layer())
    else:
        uniform = torch.rand_like(embedded, dtype=torch.float32) * 2 - 1
    return (uniform * alpha / (row_lengths(cut) * width).sqrt()).to(embedded.dtype)


def fgm_step(gradient: torch.Tensor, cut: Cut, epsilon: float) -> torch.Tensor:
    """epsilon g / |g|, with g the gradient of a row's loss in all its embeddings; 0 where g is. At least float32.

    Source: Miyato et al. 2017, arXiv:1605.07725, eq. 5 to 7, without their normalised embeddings.
    """
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    tiny, largest = torch.finfo(gradient.dtype).tiny, gradient.abs().amax(-1)
    if cut.owner is not None:
        empty = largest.new_zeros(len(cut.cu_seqlens) - 1)
        peaks = empty.scatter_reduce(0, cut.owner, largest[0], "amax")[cut.owner][None, :, None]
        gradient = gradient / peaks.clamp_min(tiny)  # squares of small gradients would be 0
        of_rows = empty.index_add(0, cut.owner, gradient.square().sum(-1)[0])
        norms = of_rows.sqrt()[cut.owner][None, :, None]
    else:
        gradient = gradient / largest.amax(1)[:, None, None].clamp_min(tiny)
        norms = gradient.flatten(1).norm(dim=1)[:, None, None]
    return epsilon * gradient / norms.clamp_min(tiny)
