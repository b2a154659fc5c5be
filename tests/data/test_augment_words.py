"""data/augment_words.py and data/nearest_words.py: words dropped, swapped, replaced, by hand and by property."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from data.augment_words import (
    choose_spans,
    drop_words,
    is_function_word,
    is_inflection,
    join_words,
    match_case,
    num_changes,
    replace_spans,
    split_words,
    swap_words,
    whole_words,
    words_of,
)
from data.nearest_words import neighbours, replace_nearest
from tests.conftest import save_tiny, tiny_tokenizer

TEXTS = st.text(alphabet="ab \n.\u00e9", max_size=40)
SEEDS = st.integers(0, 99)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Vocabulary:
    """As much of a tokenizer as whole_words asks for."""

    def __init__(self, *tokens: str):
        self.tokens, self.all_special_ids = tokens, [0]

    def get_vocab(self) -> dict[str, int]:
        return {token: k for k, token in enumerate(self.tokens)}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("\u0120", " ")


# drop and swap


@settings(deadline=None, derandomize=True)
@given(TEXTS)
def test_words_and_spaces_are_the_whole_text(text):
    assert not text.strip() or join_words(*split_words(text)) == text


@settings(deadline=None, derandomize=True)
@given(TEXTS, SEEDS, st.sampled_from([0.01, 0.3, 0.9]))
def test_drop_leaves_words_in_order_and_one_at_least(text, seed, rate):
    made, words = drop_words(text, rng(seed), rate), text.split()
    if len(words) < 2:
        assert made is None
        return
    left = iter(words)
    assert all(word in left for word in made.split())  # a subsequence
    assert len(made.split()) == len(words) - min(num_changes(len(words), rate), len(words) - 1)


def test_drop_takes_the_space_before_a_word_along():
    assert {drop_words("a  b\nc", rng(seed), 0.1) for seed in range(30)} == {"b\nc", "a\nc", "a  b"}


@settings(deadline=None, derandomize=True)
@given(TEXTS, SEEDS, st.integers(1, 3))
def test_swap_keeps_the_words(text, seed, window):
    made = swap_words(text, rng(seed), 0.5, window)
    assert made is None or sorted(made.split()) == sorted(text.split())


def test_swap_of_neighbours_by_hand():
    made = {swap_words("one two three", rng(seed), 0.1, 1) for seed in range(30)}
    assert made == {"two one three", "one three two"}


def test_swap_within_a_window():
    made = {swap_words("one two three", rng(seed), 0.1, 2) for seed in range(60)}
    assert made == {"two one three", "one three two", "three two one"}


def test_swap_of_words_that_are_the_same_is_none():
    assert swap_words("so so So", rng(), 0.5, 2) is None


def test_swap_moves_the_share_of_words_that_rate_says():
    words = [f"w{k}" for k in range(40)]
    made = swap_words(" ".join(words), rng(), 0.2, 1).split()
    assert sum(a != b for a, b in zip(words, made, strict=True)) == 8


@pytest.mark.parametrize("num, rate, wanted", [(1, 0.1, 1), (10, 0.15, 2), (100, 0.15, 15)])
def test_changes_of_a_text(num, rate, wanted):
    assert num_changes(num, rate) == wanted


# which words are replaced


@pytest.mark.parametrize(
    "text, found",
    [
        ("my doctor doesn't know, she said", {"doctor", "know", "said"}),
        ("well-being at http://school.org/pupils", set()),
        ("costs 30k in B2 or x", {"costs"}),
        ("School. Then caf\u00e9!", {"School", "caf\u00e9"}),
    ],
)
def test_words_that_can_be_replaced(text, found):
    spans = choose_spans(text, rng(), 0.9)
    assert {text[start:end] for start, end in spans} == found


def test_spans_are_a_share_of_all_words_in_order():
    text = " ".join(["doctor"] * 20)
    spans = choose_spans(text, rng(), 0.2)
    assert len(spans) == 4
    assert spans == sorted(spans)


@pytest.mark.parametrize("word", ["not", "Never", "the", "didn", "won"])
def test_negations_are_function_words(word):
    assert is_function_word(word)


@pytest.mark.parametrize("word", ["doctor", "woman", "noted"])
def test_other_words_are_not(word):
    assert not is_function_word(word)


@pytest.mark.parametrize(
    "pair",
    ["try tried", "go going", "asking asked", "school schools", "depressed depression", "worry worries"],
)
def test_inflections(pair):
    assert is_inflection(*pair.split())


@pytest.mark.parametrize("pair", ["school college", "doctor physician", "pain agony", "horrible horrific"])
def test_no_inflections(pair):
    assert not is_inflection(*pair.split())


def test_replaced_spans_by_hand():
    assert replace_spans("a bb ccc.", [(0, 1), (5, 8)], ["x", "yy"]) == "x bb yy."


@pytest.mark.parametrize(
    "word, like, wanted",
    [("house", "HOME", "HOUSE"), ("house", "Home", "House"), ("Paris", "home", "Paris")],
)
def test_case_is_the_old_words(word, like, wanted):
    assert match_case(word, like) == wanted


# vocabularies


def test_whole_words_of_wordpiece_are_those_that_begin_one():
    vocabulary = Vocabulary("[PAD]", "school", "##school", "the", "x", "didn", "30", "pupil")
    assert whole_words(vocabulary, set()) == {1: "school", 7: "pupil"}


def test_whole_words_of_bpe_begin_a_word_and_were_seen():
    vocabulary = Vocabulary("<s>", "\u0120school", "school", "\u0120analges", "\u0120School")
    assert whole_words(vocabulary, {"school"}) == {1: "school", 4: "School"}


# nearest


def test_neighbours_by_hand():
    words, angles = ["rose", "roses", "ruby", "moss"], torch.tensor([0.0, 0.1, 0.5, 1.5])
    table = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = neighbours({"rose", "moss", "sky"}, words, table, top_k=2, least_cosine=0.5)
    assert found == {"rose": ["ruby"], "moss": ["ruby"]}  # roses: an inflection; sky: no word of the table


def test_nearest_are_at_most_top_k():
    words = ["rose", "grass", "ruby", "moss"]
    table = torch.ones(4, 2) / 2**0.5
    found = neighbours({"rose"}, words, table, top_k=2, least_cosine=0.0)
    assert len(found["rose"]) == 2


def test_replacements_are_other_words_of_the_vocabulary(tmp_path):
    name = save_tiny(tmp_path / "bert")
    texts = ["the Rose is with moss", "it was on"]
    made, none = replace_nearest(texts, [rng(), rng()], name, 0.2, 5, -1.0)
    assert none is None
    old, new = texts[0].split(), made.split()
    changed = [k for k in range(5) if old[k] != new[k]]
    assert len(changed) == 1
    assert new[changed[0]].lower() in tiny_tokenizer().get_vocab()


def test_vocabulary_without_the_words_is_refused(tmp_path):
    name = save_tiny(tmp_path / "bert")
    with pytest.raises(UserError, match="no words of the texts"):
        replace_nearest(["zzz yyy"], [rng()], name, 0.2, 5, -1.0)


def test_words_of_texts():
    assert words_of(["The Doctor", "doctor's 30 pills"]) == {"the", "doctor", "pills"}
