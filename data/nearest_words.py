"""Replacement of words by those with the nearest embeddings in a model's input table.

Legend: V tokens, W whole words among them, D width.
"""

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModel

from archs.loading import fetch, load_tokenizer, resolve_name
from core.errors import UserError
from data.augment_words import choose_spans, is_inflection, match_case, replace_spans, whole_words, words_of

CHUNK = 512  # words compared at once, each with all W
MORE = 20  # neighbours looked at beyond top_k: inflections are passed over


def load_table(name: str, seen: set[str]) -> tuple[list[str], torch.Tensor]:
    """W whole words of a model's vocabulary, and (W, D) float32 their input embeddings, of length 1.

    A word that the vocabulary has in lower case, too, counts once.
    Args:    name: a --model_name | seen: words of the texts (words_of).
    Raises:  UserError when the model cannot be loaded or its vocabulary has no two words.
    """
    folder = resolve_name(name)
    words = whole_words(load_tokenizer(folder), seen)
    there = set(words.values())
    words = {k: word for k, word in words.items() if word == word.lower() or word.lower() not in there}
    if len(words) < 2:
        raise UserError(
            f"--model_name {name}: its vocabulary has no words of the texts: nothing can be replaced"
        )
    weight = fetch("weights", folder, AutoModel.from_pretrained).get_input_embeddings().weight  # (V, D)
    table = weight.detach().float()[torch.tensor(list(words))]  # (W, D)
    return list(words.values()), F.normalize(table, dim=1)


def neighbours(
    wanted: set[str], words: list[str], table: torch.Tensor, top_k: int, least_cosine: float
) -> dict[str, list[str]]:
    """For each wanted word (lower case) its at most top_k nearest others of at least that cosine, the nearest first.

    Inflections of the word itself are passed over: they are its nearest, and mostly wrong where it stands. Words that
    are not in the table, or have no such neighbour, are left out. words, table: as load_table returns them.
    """
    place = {word.lower(): k for k, word in enumerate(words)}
    asked = sorted(wanted & place.keys())
    found = {}
    for first in tqdm(range(0, len(asked), CHUNK), "nearest words", disable=None, leave=False, delay=1):
        chunk = asked[first : first + CHUNK]
        own = torch.tensor([place[word] for word in chunk])
        cosines = table[own] @ table.T  # (c, W)
        cosines[torch.arange(len(chunk)), own] = -1
        values, places = cosines.topk(min(top_k + MORE, len(words) - 1), dim=1)
        for word, near, numbers in zip(chunk, values.tolist(), places.tolist(), strict=True):
            others = [words[k] for value, k in zip(near, numbers, strict=True) if value >= least_cosine]
            others = [other for other in others if not is_inflection(word, other.lower())][:top_k]
            if others:
                found[word] = others
    return found


def replace_nearest(
    texts: list[str],
    rngs: list[np.random.Generator],
    name: str,
    rate: float,
    top_k: int,
    least_cosine: float,
) -> list[str | None]:
    """Texts with a share of their words replaced, each by one of its nearest, drawn evenly; None: none could be.

    Args:    rngs: one for each text | name: a --model_name | others: as in neighbours.
    """
    seen = words_of(texts)
    with torch.inference_mode():
        near = neighbours(seen, *load_table(name, seen), top_k, least_cosine)
    out = []
    for text, rng in zip(texts, rngs, strict=True):
        spans = choose_spans(text, rng, rate, lambda word: word.lower() in near)
        olds = [text[start:end] for start, end in spans]
        news = [match_case(near[old.lower()][rng.integers(len(near[old.lower()]))], old) for old in olds]
        out.append(replace_spans(text, spans, news) if spans else None)
    return out
