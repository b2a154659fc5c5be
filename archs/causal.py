"""A decoder that answers with a label word: the prompt is read once, the words behind it under a block mask.

B rows, T padded tokens, N packed tokens, C classes, S states asked for the next token, D width, V vocabulary.
"""

import torch
from torch import nn

from archs.encoder import model_inputs
from archs.words import WordTable, has_plain_head
from core.batches import Cut


class WordDecoder(nn.Module):
    """A transformers model for causal language modelling; the score of a class is its word's log-probability.

    The head, which is as wide as the vocabulary, runs on the S states that are asked for, not on every token.
    """

    def __init__(self, model: nn.Module, answers: list[tuple[int, ...]]):
        super().__init__()
        self.model, self.words, self.exact = model, WordTable(answers), has_plain_head(model)
        self._wanted: torch.Tensor | None = None  # indices of states, while a cut is in the model
        self._states: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(self, module: nn.Module, inputs: tuple) -> tuple | None:
        """The head's input cut down to the states asked for: (B, T, D) or (1, N, D) to (B, S, D)."""
        if self._wanted is None:
            return None
        (states,) = inputs
        flat = states.reshape(-1, states.shape[-1])
        self._states = flat.index_select(0, self._wanted.reshape(-1)).view(*self._wanted.shape, -1)
        return (self._states,)

    def _places(self, cut: Cut) -> torch.Tensor:
        """(B, S) indices into all states, row by row: the prompt's last, then those of the words behind it.

        Padded rows that stand once for each branch give (B x branches, m).
        """
        table = self.words
        device = cut.ids.device
        if cut.cu_seqlens is not None:
            behind = torch.arange(-table.num_states, 0, device=device)
            return cut.cu_seqlens[1:, None].long() + behind
        if cut.mask is not None:
            ends = cut.mask.sum(dim=1)
        else:
            ends = torch.full((len(cut.ids),), cut.ids.shape[1], device=device)
        starts = torch.arange(len(cut.ids), device=device) * cut.ids.shape[1] + ends
        if table.width == 1:
            return starts[:, None] - 1
        sizes = table.ends.repeat(len(cut.ids) // len(table.ends))
        offsets = torch.arange(table.width, device=device)
        return (starts - sizes)[:, None] + offsets.minimum(sizes[:, None] - 1)  # past a word's end: its last

    def forward(self, cut: Cut) -> torch.Tensor:
        """(B, C) scores of a cut of B rows, with the words behind them as WordTable.branches says."""
        self._wanted = self._places(cut)
        try:
            logits = self.model(**model_inputs(self.model, cut), use_cache=False).logits  # (B, S, V)
            states = self._states
        finally:
            self._wanted = self._states = None
        places = self.words.behind
        if cut.cu_seqlens is None and self.words.width > 1:
            num_rows = len(cut.ids) // len(self.branches)
            states = states.reshape(num_rows, -1, states.shape[-1])
            logits = logits.reshape(*states.shape[:2], -1)
            places = self.words.apart
        head = self.model.get_output_embeddings()
        return self.words.scores(states, logits, head, places, self.exact)

    @property
    def branches(self) -> list[tuple[int, ...]]:
        """Token ids that every row must have behind it."""
        return self.words.branches

    @property
    def inner(self) -> nn.Module:
        """The transformers model."""
        return self.model

    @property
    def num_layers(self) -> int:
        """Layers of the backbone."""
        return self.inner.config.num_hidden_layers
