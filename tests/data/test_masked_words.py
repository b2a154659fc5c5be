"""data/masked_words.py: heads that are really there, words that differ, batches that do not matter."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from core.errors import UserError
from data import masked_words
from data.masked_words import likely_words, load_masked_model, replace_masked
from tests.conftest import COLOURS, save_language_model, save_tiny, tiny_config, tiny_tokenizer

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "mpnet", "modernbert", "electra", "albert")
SEEN = {word for words in COLOURS.values() for word in words.split()}
TEXTS = ["the rose is with moss", "it was on", "sky and Sea and ink or ruby brick", "a leaf"]


def save_masked(folder, family: str = "bert") -> str:
    """A tiny encoder with its masked-LM head."""
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(tiny_config(family)).save_pretrained(folder)
    tiny_tokenizer("roberta" if family in ("roberta", "mpnet") else "bert").save_pretrained(folder)
    return str(folder)


def rngs(num: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, k]) for k in range(num)]


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_head_is_accepted(tmp_path, family):
    assert load_masked_model(save_masked(tmp_path / "m", family), "cpu", SEEN).words


@pytest.mark.parametrize("family", FAMILIES)
def test_random_head_is_refused(tmp_path, family):
    with pytest.raises(UserError, match=r"has no masked-LM head: .* are not among its weights"):
        load_masked_model(save_tiny(tmp_path / "m", family), "cpu", SEEN)


def test_one_missing_weight_of_the_head_is_refused(tmp_path):
    name = save_masked(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    kept = {k: v for k, v in load_file(path).items() if "transform.dense.weight" not in k}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"transform\.dense\.weight"):
        load_masked_model(name, "cpu", SEEN)


def test_head_of_another_size_is_refused(tmp_path):
    name = save_masked(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    weights["cls.predictions.transform.dense.bias"] = torch.zeros(3)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="--model_name"):
        load_masked_model(name, "cpu", SEEN)


def test_decoder_is_refused(tmp_path):
    with pytest.raises(UserError, match="a llama model has no masked-LM head"):
        load_masked_model(save_language_model(tmp_path / "m", "llama"), "cpu", SEEN)


def test_tokenizer_without_mask_is_refused(tmp_path):
    name = save_masked(tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"}))
    with pytest.raises(UserError, match="no mask token"):
        load_masked_model(name, "cpu", SEEN)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_likely_words_against_one_text_at_a_time(tmp_path, family):
    masked = load_masked_model(save_masked(tmp_path / "m", family), "cpu", SEEN)
    mask, tokenizer = masked.tokenizer.mask_token, masked.tokenizer
    texts = [f"the {mask} is with {mask}", f"{mask} and sea and ink or ruby brick", f"a {mask}"]
    olds = [["rose", "moss"], ["Sky"], ["leaf"]]
    found = likely_words(masked, texts, olds, 3)
    for text, old, own in zip(texts, olds, found, strict=True):
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = masked.model(**batch).logits[0][batch["input_ids"][0] == tokenizer.mask_token_id]
        for line, word, (words, p) in zip(logits, old, own, strict=True):
            scores = {w: float(line[k]) for k, w in masked.words.items() if w != word.lower()}
            assert words == sorted(scores, key=scores.get, reverse=True)[:3]
            wanted = torch.tensor([scores[w] for w in words], dtype=torch.float64).softmax(0)
            np.testing.assert_allclose(p, wanted, rtol=1e-4)


def test_replacements_differ_and_leave_the_rest(tmp_path):
    made = replace_masked(TEXTS, rngs(4), save_masked(tmp_path / "m"), "cpu", 0.2, 4)
    assert made[1] is None  # function words alone
    for old, new in zip([TEXTS[k] for k in (0, 2, 3)], [made[k] for k in (0, 2, 3)], strict=True):
        pairs = list(zip(old.split(), new.split(), strict=True))
        changed = [(a, b) for a, b in pairs if a != b]
        assert len(changed) == max(1, round(0.2 * len(pairs)))
        assert all(a.lower() in SEEN and b.lower() in SEEN for a, b in changed)


def test_a_text_does_not_depend_on_the_others(tmp_path, monkeypatch):
    name, numbers = save_masked(tmp_path / "m"), rngs(4)
    made = replace_masked(TEXTS, numbers, name, "cpu", 0.4, 4)
    monkeypatch.setattr(masked_words, "MAX_TOKENS", 16)
    turned = replace_masked(TEXTS[::-1], rngs(4)[::-1], name, "cpu", 0.4, 4)
    assert turned == made[::-1]


def test_padding_does_not_matter(tmp_path, monkeypatch):
    masked = load_masked_model(save_masked(tmp_path / "m"), "cpu", SEEN)
    texts = ["the [MASK]", "the [MASK] is in the sea and in the sky and on the moss"]
    together = likely_words(masked, texts, [["rose"], ["rose"]], 5)
    alone = [likely_words(masked, [text], [["rose"]], 5)[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one[0][0] == other[0][0]
        np.testing.assert_allclose(one[0][1], other[0][1], rtol=1e-4)


def test_words_behind_the_longest_input_stay(tmp_path):
    text = " ".join(["the"] * 60 + ["rose", "moss"] * 10)
    made = replace_masked([text], rngs(1), save_masked(tmp_path / "m"), "cpu", 0.25, 4)[0]
    assert made.split()[62:] == text.split()[62:]  # 64 tokens with [CLS] and [SEP]


def test_a_text_with_the_mask_token_is_left_out(tmp_path):
    texts = ["the [MASK] rose", "a ruby rose"]
    made = replace_masked(texts, rngs(2), save_masked(tmp_path / "m"), "cpu", 0.2, 4)
    assert [text is None for text in made] == [True, False]


def test_a_probable_word_is_drawn_more_often(tmp_path, monkeypatch):
    def certain(masked, texts, olds, top_k):
        return [[(["ruby", "moss"], np.array([0.9, 0.1]))] * len(own) for own in olds]

    monkeypatch.setattr(masked_words, "likely_words", certain)
    made = replace_masked(
        ["the rose"] * 200 + ["ruby moss"], rngs(201), save_masked(tmp_path / "m"), "cpu", 0.2, 2
    )
    assert 160 < made.count("the ruby") < 197
