"""Words of a text that can be dropped, swapped or replaced, and which pieces of a vocabulary are whole words.

Every function is of one text and a generator of random numbers; the methods that need a model are in
data/masked_words.py and data/nearest_words.py.
"""

import re
from collections.abc import Callable
from itertools import takewhile

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from transformers import PreTrainedTokenizerBase

# two letters or more, no part of a contraction, a compound, a name with digits, an address
WORD = re.compile(r"(?<![\w'\u2019\-/@#&.:])[^\W\d_]{2,}(?![\w'\u2019\-/@]|[.:][\w/])")
ENDING = re.compile(r"(ing|ings|ed|ies|ied|es|s|er|ers|e|y)$")
# didn, won: pieces of contractions that vocabularies hold as words
FRAGMENTS = re.compile(
    r"(ai|are|could|did|does|do|had|has|have|is|might|must|need|should|was|were|wo|would)n|gonna|wanna"
)
WORD_STARTS = ("\u0120", "\u2581")  # how BPE and SentencePiece mark the first piece of a word


def num_changes(num_words: int, rate: float) -> int:
    """Words of a text that are changed: rate of them, one at the least. Source: Wei, Zou 2019 (EDA), section 2.1."""
    return max(1, round(rate * num_words))


def split_words(text: str) -> tuple[list[str], list[str], str]:
    """What stands between white space, the white space before each, and that behind the last."""
    found = re.findall(r"(\s*)(\S+)", text)
    return [word for _, word in found], [space for space, _ in found], text[len(text.rstrip()) :]


def join_words(words: list[str], spaces: list[str], end: str) -> str:
    """The inverse of split_words."""
    return "".join(space + word for space, word in zip(spaces, words, strict=True)) + end


def drop_words(text: str, rng: np.random.Generator, rate: float) -> str | None:
    """The text without some of its words, at least one of which stays; None for a text of one word.

    Source: Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods", section 3.1 (word dropout); here a
            fixed share of the words, so that a short text loses one, too.
    """
    words, spaces, end = split_words(text)
    if len(words) < 2:
        return None
    left_out = rng.choice(len(words), min(num_changes(len(words), rate), len(words) - 1), replace=False)
    kept = [k for k in range(len(words)) if k not in set(left_out.tolist())]
    before = [spaces[0], *(spaces[k] for k in kept[1:])]
    return join_words([words[k] for k in kept], before, end)


def swap_words(text: str, rng: np.random.Generator, rate: float, window: int) -> str | None:
    """The text with a share of its words moved: pairs at most `window` words apart change places, each word once.

    Returns: None where no two different words are so near.
    """
    words, spaces, end = split_words(text)
    pairs = [
        (i, j) for i in range(len(words)) for j in range(i + 1, i + 1 + window)
        if j < len(words) and words[i].lower() != words[j].lower()
    ]  # fmt: skip
    moved, wanted = set(), num_changes(len(words), rate / 2)  # pairs
    for k in rng.permutation(len(pairs)).tolist():
        i, j = pairs[k]
        if wanted and not moved & {i, j}:
            words[i], words[j] = words[j], words[i]
            moved |= {i, j}
            wanted -= 1
    return join_words(words, spaces, end) if moved else None


# Words that are replaced


def is_function_word(word: str) -> bool:
    """Whether a word is one of English grammar, negations among them: to replace it changes the meaning or nothing."""
    return word.lower() in ENGLISH_STOP_WORDS or FRAGMENTS.fullmatch(word.lower()) is not None


def choose_spans(
    text: str, rng: np.random.Generator, rate: float, can_be_replaced: Callable[[str], bool] | None = None
) -> list[tuple[int, int]]:
    """(start, end) of the words to replace, in order: a share of all words, of those that are no function words.

    Args: can_be_replaced: asked about each word; None: all can.
    """
    spans = [found.span() for found in WORD.finditer(text) if not is_function_word(found.group())]
    if can_be_replaced:
        spans = [(start, end) for start, end in spans if can_be_replaced(text[start:end])]
    wanted = min(len(spans), num_changes(len(text.split()), rate))
    return [spans[k] for k in sorted(rng.choice(len(spans), wanted, replace=False).tolist())] if spans else []


def replace_spans(text: str, spans: list[tuple[int, int]], words: list[str]) -> str:
    """The text with words in the place of spans, which are in order and do not overlap."""
    out, last = [], 0
    for (start, end), word in zip(spans, words, strict=True):
        out += [text[last:start], word]
        last = end
    return "".join([*out, text[last:]])


def match_case(word: str, like: str) -> str:
    """A word written as another one: in capitals, or with a capital; else as it is."""
    if like.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


def is_inflection(word: str, other: str) -> bool:
    """Whether two words (lower case) differ by their endings alone, so far as letters tell: try, tries, trying."""
    one, two = (ENDING.sub("", text) for text in (word, other))
    common = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(one, two, strict=False)))
    return common >= max(2, min(len(one), len(two)) - 1)


def words_of(texts: list[str]) -> set[str]:
    """The different words of texts that could be replaced, in lower case."""
    return {word.lower() for text in texts for word in WORD.findall(text)}


def whole_words(tokenizer: PreTrainedTokenizerBase, seen: set[str]) -> dict[int, str]:
    """The tokens that are words of letters by themselves, no function words: id -> word.

    In WordPiece a piece inside a word is marked (##ing), so that the others are words. Other vocabularies mark where a
    word begins or nothing, and "analges" looks like a word: of those only words that are `seen` (words_of) count.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    is_wordpiece = any(token.startswith("##") for token in vocabulary)
    is_marked = any(token.startswith(WORD_STARTS) and len(token) > 1 for token in vocabulary)
    found = {}
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        if number in special or token.startswith("##") or (is_marked and not token.startswith(WORD_STARTS)):
            continue
        word = tokenizer.convert_tokens_to_string([token]).strip() if is_marked else token
        if WORD.fullmatch(word) and not is_function_word(word) and (is_wordpiece or word.lower() in seen):
            found[number] = word
    return found
