"""Replacement of words by what the masked-LM head of an encoder says could stand there.

All chosen words of a text are masked at once, and for each one is drawn from the head's most probable words other than
the one that stood there. Source: Wu et al. 2019, "Conditional BERT contextual augmentation", section 3, without its
condition on the label: a trained run can check that afterwards (data.augment --check_run).

Legend: B texts, T tokens, M masked words, V tokens of the vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from archs.loading import fetch, load_config, load_tokenizer, longest_input, model_kind, resolve_name
from core.errors import UserError
from core.plan import eval_cuts
from data.augment_words import choose_spans, match_case, replace_spans, whole_words, words_of

MAX_TOKENS = 2048  # of a batch, padding included: with 50,000 words 400 MB of logits


@dataclass
class MaskedModel:
    """An encoder with its masked-LM head, on its device, and the ids of the words that it may say."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    words: dict[int, str]  # whole_words
    max_length: int  # tokens of a text, special ones included; what is behind stays as it is


def load_masked_model(name: str, device: str | torch.device, seen: set[str]) -> MaskedModel:
    """An encoder whose folder really has a masked-LM head.

    Args:    name: a --model_name | seen: words of the texts (words_of).
    Raises:  UserError when it is no encoder, its weights have no such head (transformers would make a random one), or
             its tokenizer has no mask.
    """
    folder = resolve_name(name)
    config = load_config(folder)
    if model_kind(config) != "bert" or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(
            f"--model_name {name}: a {config.model_type} model has no masked-LM head; "
            "--methods mask needs an encoder that has one"
        )
    tokenizer = load_tokenizer(folder)
    if tokenizer.mask_token is None:
        raise UserError(f"--model_name {name}: its tokenizer has no mask token; --methods mask needs one")
    model, info = fetch("weights", folder, AutoModelForMaskedLM.from_pretrained, output_loading_info=True)
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if missing:
        raise UserError(
            f"--model_name {name}: has no masked-LM head: {', '.join(missing[:4])}{' ...' * (len(missing) > 4)} "
            "are not among its weights, and random ones would say random words. Sentence encoders and fine-tuned "
            "classifiers mostly come without; give the model as it was pretrained (bert-base-uncased, roberta-base, "
            "...), or use --methods nearest, which needs the embeddings alone"
        )
    words = whole_words(tokenizer, seen)
    if len(words) < 2:
        raise UserError(
            f"--model_name {name}: its vocabulary has no words of the texts: nothing can be replaced"
        )
    max_length = longest_input(config, tokenizer, "auto")
    return MaskedModel(model.to(device).eval(), tokenizer, words, max_length)


@torch.inference_mode()
def likely_words(
    masked: MaskedModel, texts: list[str], olds: list[list[str]], top_k: int
) -> list[list[tuple[list[str], np.ndarray]]]:
    """For each masked word of each text the top_k most probable whole words that differ from the old one.

    Args:    texts: with mask tokens in the place of words | olds: the words that stood there, in order.
    Returns: for each mask that the first max_length tokens hold (words, (k,) float64 probabilities that sum to 1).
    Cost:    GPU and one D2H a batch of MAX_TOKENS.
    """
    tokenizer, device = masked.tokenizer, masked.model.device
    tokenizer.truncation_side = "right"  # so that the first masks are the ones that are left
    coded = tokenizer(texts, truncation=True, max_length=masked.max_length)["input_ids"]
    order = sorted(
        range(len(texts)), key=lambda k: (len(coded[k]), texts[k])
    )  # batches whatever the rows' order is
    ids = torch.tensor(list(masked.words), device=device)
    words, same = list(masked.words.values()), {}
    for k, word in enumerate(words):
        same.setdefault(word.lower(), []).append(k)
    out = [[] for _ in texts]
    lengths = np.array([len(coded[k]) for k in order])
    with tqdm(total=len(texts), desc="masked words", unit=" rows", disable=None, leave=False) as bar:
        for cut in eval_cuts(lengths, MAX_TOKENS, 0, 1, device.type, False):
            rows = [order[k] for k in cut]
            batch = tokenizer.pad(
                {"input_ids": [coded[k] for k in rows]}, return_attention_mask=True, return_tensors="pt"
            ).to(device)
            where = (batch["input_ids"] == tokenizer.mask_token_id).nonzero()  # (M, 2), row by row
            logits = masked.model(**batch).logits[where[:, 0], where[:, 1]][:, ids].float()  # (M, words)
            owners = [rows[b] for b in where[:, 0].tolist()]
            old_words = {k: iter(olds[k]) for k in rows}
            for m, k in enumerate(owners):
                logits[m, same.get(next(old_words[k]).lower(), [])] = -torch.inf
            values, places = logits.topk(min(top_k, len(ids) - 1), dim=1)
            chances = values.double().softmax(1).cpu().numpy()
            for k, numbers, p in zip(owners, places.tolist(), chances, strict=True):
                out[k].append(([words[j] for j in numbers], p))
            bar.update(len(rows))
    return out


def replace_masked(
    texts: list[str], rngs: list[np.random.Generator], name: str, device: str, rate: float, top_k: int
) -> list[str | None]:
    """Texts with a share of their words replaced, each by one of top_k, drawn by probability; None: none could be.

    A text that holds the mask token itself is left out.
    Args:    rngs: one for each text | name: a --model_name.
    """
    masked = load_masked_model(name, device, words_of(texts))
    mask = masked.tokenizer.mask_token
    spans = [
        [] if mask in text else choose_spans(text, rng, rate) for text, rng in zip(texts, rngs, strict=True)
    ]
    chosen = [k for k, own in enumerate(spans) if own]
    olds = [[texts[k][start:end] for start, end in spans[k]] for k in chosen]
    holes = [replace_spans(texts[k], spans[k], [mask] * len(spans[k])) for k in chosen]
    out = [None] * len(texts)
    for k, old, likely in zip(chosen, olds, likely_words(masked, holes, olds, top_k), strict=True):
        drawn = [words[rngs[k].choice(len(words), p=p)] for words, p in likely]
        news = [match_case(word, like) for word, like in zip(drawn, old, strict=False)]
        if news:
            out[k] = replace_spans(texts[k], spans[k][: len(news)], news)
    return out
