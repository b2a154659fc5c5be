"""An encoder-decoder that answers with a label word: the encoder runs once, the decoder asks for every word.

Where all words are single tokens that is one decoder step. Otherwise the words stand one behind the other in one
decoder row, each with a start token of its own, under a block mask: the encoder's keys and values are made once a row,
not once a word. T5's positions are distances, so a word computes there what it would alone; where a probe finds that
a model's are not (BART), the rows are repeated for each word.

B rows, T padded tokens, C classes, P beginnings of words to be read (those that words share, once), m tokens of the
longest word, D width.
"""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from archs.encoder import model_inputs
from archs.words import WordTable, has_plain_head
from core.batches import Cut


def start_token(model: nn.Module) -> int:
    """What a decoder's row begins with: as the configuration says, or the one for generation; else padding."""
    for config in (model.config, model.generation_config):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return found
    return model.config.pad_token_id


class WordEncoderDecoder(nn.Module):
    """A transformers model for conditional generation; the score of a class is its word's log-probability."""

    branches: tuple = ()  # nothing stands behind the encoder's rows

    def __init__(self, model: nn.Module, answers: list[tuple[int, ...]]):
        super().__init__()
        self.model, self.words, self.exact = model, WordTable(answers), has_plain_head(model)
        self.together = True  # the words of a row in one decoder row
        table = self.words
        read = table.branches or [()]
        ids = torch.full((len(read), table.width), start_token(model))  # (P, m)
        for k, part in enumerate(read):  # behind the start token, the words but for their last
            ids[k, 1 : 1 + len(part)] = torch.tensor(part, dtype=torch.int64)
        word = torch.arange(len(ids)).repeat_interleave(table.width)
        index = torch.arange(len(word))
        seen = (word[:, None] == word) & (index[:, None] >= index)
        self.register_buffer("decoder_ids", ids, persistent=False)
        self.register_buffer("seen", seen, persistent=False)  # (P m, P m)
        asked = [0, *(k * table.width + j for k, part in enumerate(read) for j in range(1, 1 + len(part)))]
        self.register_buffer("asked", torch.tensor(asked), persistent=False)  # (S,) of a row's P m states
        self._asks, self._states = False, None
        model.get_output_embeddings().register_forward_pre_hook(self._select)
        if table.width > 1:
            self.together = self._words_are_apart()

    def _select(self, module: nn.Module, inputs: tuple) -> tuple | None:
        """The head's input, cut down to the states that are asked for where the words stand in one row: every word's
        start token has the same state, and the head is as wide as the vocabulary."""
        if not self._asks:  # it generates
            return None
        (self._states,) = inputs
        if self.words.width == 1 or not self.together:
            return None
        self._states = self._states.index_select(1, self.asked)
        return (self._states,)

    def forward(self, cut: Cut) -> torch.Tensor:
        """(B, C) scores of a padded cut of B rows."""
        inputs = model_inputs(self.inner, cut)
        states = self.model.get_encoder()(**inputs).last_hidden_state  # (B, T, D)
        return self._answer(states, inputs.get("attention_mask"))

    def _answer(self, encoded: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, C) scores by the decoder. encoded: (B, T, D) | mask: (B, T) bool, None: nothing is padded."""
        table, batch = self.words, len(encoded)
        ids, extra = self.decoder_ids, {}
        if table.width == 1:
            ids, places = ids.expand(batch, 1), table.behind
        elif self.together:
            ids, places = ids.reshape(1, -1).expand(batch, -1), table.behind
            dtype = encoded.dtype
            kind = encoded.device.type
            if torch.is_autocast_enabled(kind):
                dtype = torch.get_autocast_dtype(kind)
            blocked = torch.zeros(self.seen.shape, dtype=dtype, device=encoded.device)
            blocked = blocked.masked_fill(~self.seen, torch.finfo(dtype).min)
            extra["decoder_attention_mask"] = blocked.expand(batch, 1, -1, -1)
        else:
            places, count = table.apart, len(ids)
            ids = ids.repeat(batch, 1)
            encoded = encoded.repeat_interleave(count, dim=0)
            mask = None if mask is None else mask.repeat_interleave(count, dim=0)
        self._asks = True
        try:
            out = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
                attention_mask=mask,
                decoder_input_ids=ids,
                use_cache=False,
                **extra,
            )
            states = self._states.reshape(batch, -1, self._states.shape[-1])  # (B, S, D)
        finally:
            self._asks, self._states = False, None
        logits = out.logits.reshape(batch, states.shape[1], -1)
        return table.scores(states, logits, self.model.get_output_embeddings(), places, self.exact)

    @torch.no_grad()
    def _words_are_apart(self) -> bool:
        """Whether words in one decoder row get the scores that they get in rows of their own: random states say."""
        training = self.model.training
        self.model.eval()
        width = self.model.get_output_embeddings().in_features
        weight = self.model.get_output_embeddings().weight
        encoded = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0)).to(weight)
        found = []
        try:
            for self.together in (True, False):
                found.append(self._answer(encoded, None).float())
            loose = 1e-3 if weight.dtype == torch.float32 else 0.1
            return torch.allclose(*found, rtol=loose, atol=loose)
        except (TypeError, ValueError, RuntimeError):
            return False
        finally:
            self.model.train(training)

    @property
    def inner(self) -> nn.Module:
        """The transformers model."""
        return self.model

    @property
    def num_layers(self) -> int:
        """Layers of the decoder; the encoder's are counted alike."""
        return getattr(self.inner.config, "num_decoder_layers", None) or self.inner.config.num_hidden_layers
