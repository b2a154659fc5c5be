"""Really generated answers: greedy text of a model that otherwise scores label words, by transformers' own generate."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from archs.causal import WordDecoder
from archs.seq2seq import WordEncoderDecoder


@contextmanager
def own_attention(model: torch.nn.Module) -> Iterator[None]:
    """transformers' attention inside the block: ours has no cache of keys and values."""
    name = model.config._attn_implementation
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(name)


@torch.no_grad()
def generate_answers(
    model: WordDecoder | WordEncoderDecoder,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[np.ndarray],
    device: torch.device,
) -> list[tuple[str, int | None]]:
    """The greedy answer to each row of token ids, as long as the longest label word: its text without special tokens,
    and the class whose word it begins with, None for none.

    Rows are padded together, on the left for a decoder, on the right for an encoder. Cost: GPU a token, SYNC.
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    mask = torch.zeros(ids.shape, dtype=torch.long)
    is_decoder = isinstance(model, WordDecoder)
    for k, row in enumerate(rows):
        here = slice(longest - len(row), None) if is_decoder else slice(len(row))
        ids[k, here], mask[k, here] = torch.from_numpy(row.astype(np.int64)), 1
    with own_attention(model.inner):
        out = model.inner.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=model.words.width,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
        )
    made = (out[:, longest:] if is_decoder else out[:, 1:]).tolist()  # SYNC
    texts = tokenizer.batch_decode(made, skip_special_tokens=True)
    return [(text.strip(), begun(ids, model.words.answers)) for text, ids in zip(texts, made, strict=True)]


def begun(ids: list[int], answers: list[tuple[int, ...]]) -> int | None:
    """The answer that token ids begin with, None for none; of several the longest: "maybe so" before "maybe"."""
    found = [k for k, answer in enumerate(answers) if tuple(ids[: len(answer)]) == answer]
    return max(found, key=lambda k: len(answers[k]), default=None)
