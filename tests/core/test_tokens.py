"""core/tokens.py against the tokenizers' own special tokens, truncation and token types."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from archs.loading import WEIGHTS_FOLDER
from core.errors import UserError
from core.tokens import Encoder, Template, cut_ids, fit_pair, special_template
from tests.conftest import tiny_tokenizer

TEXTS = [
    "red",
    "the sky is blue",
    "Redness, unhappily!",
    "x " * 30,
    "a b c d e f",
    "n\xe4ive [SEP] </s> text",
    "un" * 9,
]


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's pipeline over letters: each word splits into pieces."""
    letters = "abcdefghijklmnopqrstuvwxyz,!"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *(f"##{c}" for c in letters),
        "un",
        "##happ",
        "red",
    ]
    vocab = {piece: k for k, piece in enumerate(pieces)}
    inner = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inner.enable_truncation(7)  # as some published tokenizer.json files have it
    inner.enable_padding(length=9)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def byte_tokenizer(template: bool = True) -> PreTrainedTokenizerFast:
    """RoBERTa's pipeline over bytes; without its template GPT-2's, which adds nothing."""
    vocab = {char: k for k, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {name: 256 + k for k, name in enumerate(["<s>", "<pad>", "</s>", "re", "\u0120b", "red"])}
    inner = Tokenizer(models.BPE(vocab, [("r", "e"), ("\u0120", "b"), ("re", "d")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if template:
        inner.post_processor = processors.RobertaProcessing(("</s>", 258), ("<s>", 256))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """T5's pipeline: word boundaries inside the tokens, one special token at the end of each part."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    inner = Tokenizer(models.Unigram([*pieces, *((c, -3.0) for c in "abcdefghilnorstux")], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


FAMILIES = {
    "bert": tiny_tokenizer(),
    "roberta": tiny_tokenizer("roberta"),
    "wordpiece": wordpiece_tokenizer(),
    "bytes": byte_tokenizer(),
    "gpt2": byte_tokenizer(template=False),
    "t5": t5_tokenizer(),
}
for name in ("bert", "wordpiece"):  # as BertTokenizer has it; the plain class asks for no token types
    FAMILIES[name].model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
if (WEIGHTS_FOLDER / "minilm" / "tokenizer.json").is_file():
    FAMILIES["minilm"] = AutoTokenizer.from_pretrained(WEIGHTS_FOLDER / "minilm")


def check_like_library(encoder_class, tokenizer, max_length: int, side: str, texts, pairs=None) -> None:
    """The encoder's rows are the tokenizer's own, token types and all."""
    encoder = encoder_class(tokenizer, max_length, {"right": "head", "left": "tail"}[side], pairs is not None)
    rows = encoder(texts, pairs)
    tokenizer.truncation_side = side
    for k, (ids, pair_start, was_cut) in enumerate(rows):
        both = (texts[k],) if pairs is None else (texts[k], pairs[k])
        whole = tokenizer(*both, truncation=False)["input_ids"]
        coded = tokenizer(*both, truncation=True, max_length=max_length, return_token_type_ids=True)
        assert ids == coded["input_ids"]
        assert was_cut == (len(whole) > max_length)
        if "token_type_ids" in tokenizer.model_input_names:  # else the model is given none
            assert [int(0 < pair_start <= k) for k in range(len(ids))] == coded["token_type_ids"]
        else:
            assert pair_start == 0
    tokenizer.truncation_side = "right"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizers_own_ids(family, side):
    tokenizer = FAMILIES[family]
    firsts, seconds = zip(*[(a, b) for a in TEXTS for b in TEXTS])
    for max_length in (5, 6, 7, 8, 17, 40, 200):
        check_like_library(Encoder, tokenizer, max_length, side, TEXTS)
        check_like_library(Encoder, tokenizer, max_length, side, list(firsts), list(seconds))


@given(
    st.sampled_from(["bert", "roberta"]), st.integers(5, 16), st.sampled_from(["left", "right"]), st.data()
)
def test_pairs_of_any_length(family, max_length, side, data):
    num_a, num_b = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    pair = (["red " * num_a], ["sky " * num_b])
    check_like_library(Encoder, FAMILIES[family], max_length, side, *pair)


class Forgetful(Encoder):
    """The deliberately wrong variant: it cuts to max_length and adds the special tokens after that."""

    def __init__(self, tokenizer, max_length, truncate, pair):
        super().__init__(tokenizer, max_length, truncate, pair)
        self.room = max_length


def first_gets_the_odd_one(len_a: int, len_b: int, room: int) -> tuple[int, int]:
    """Another wrong variant: longest first, but an odd token always goes to the first part."""
    half = room // 2
    return (room - half, half) if min(len_a, len_b) > half else fit_pair(len_a, len_b, room)


def test_bite_forgotten_special_tokens_are_caught():
    check_like_library(Encoder, FAMILIES["bert"], 8, "right", ["red " * 9])
    with pytest.raises(AssertionError):
        check_like_library(Forgetful, FAMILIES["bert"], 8, "right", ["red " * 9])


def test_bite_an_odd_token_in_the_wrong_part_is_caught(monkeypatch):
    monkeypatch.setattr("core.tokens.fit_pair", first_gets_the_odd_one)
    with pytest.raises(AssertionError):
        check_like_library(Encoder, FAMILIES["bert"], 8, "right", ["red " * 9], ["sky " * 9])


# -- templates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "single", "pair"), [
    ("bert", Template((2,), (), (3,), False), Template((2,), (3,), (3,), True)),
    ("roberta", Template((0,), (), (2,), False), Template((0,), (2, 2), (2,), False)),
    ("wordpiece", Template((2,), (), (3,), False), Template((2,), (3,), (3,), True)),
    ("bytes", Template((256,), (), (258,), False), Template((256,), (258, 258), (258,), False)),
    ("t5", Template((), (), (1,), False), Template((), (1,), (1,), False)),
])  # fmt: skip
def test_templates_by_hand(family, single, pair):
    assert special_template(FAMILIES[family], pair=False) == single
    assert special_template(FAMILIES[family], pair=True) == pair
    assert pair.num_special == len(pair.prefix + pair.middle + pair.suffix)


def test_a_tokenizer_without_special_tokens():
    template = special_template(FAMILIES["gpt2"], pair=False)
    assert template == Template((), (), (), False)
    assert template.num_special == 0


class Changing:
    """A tokenizer whose special tokens change the text's own."""

    name_or_path = "strange"

    def __call__(self, *texts, add_special_tokens=True, **flags):
        return {"input_ids": [1, 9, 2] if add_special_tokens else [5]}


def test_a_tokenizer_that_changes_the_text_is_refused():
    with pytest.raises(UserError, match="tokenizer of strange changes a text when it adds special tokens"):
        special_template(Changing(), pair=False)


@pytest.mark.parametrize(
    ("family", "pair", "num_special"), [("bert", False, 2), ("bert", True, 3), ("roberta", True, 4)]
)
def test_max_length_too_small_for_special_tokens(family, pair, num_special):
    Encoder(FAMILIES[family], num_special + 1, "head", pair)
    with pytest.raises(UserError) as caught:
        Encoder(FAMILIES[family], num_special, "head", pair)
    wanted = f"--max_length {num_special} leaves no room for text: this tokenizer adds {num_special} special tokens"
    assert str(caught.value) == wanted


def test_the_tokenizers_own_state_is_left_out():
    # truncation at 7 and padding to 9 are stored in it: neither may touch our rows
    ids, _, was_cut = Encoder(wordpiece_tokenizer(), 20, "head", pair=False)(["abcdefghijk"])[0]
    assert (len(ids), was_cut) == (13, False)
    assert "truncation" in json.loads(wordpiece_tokenizer().backend_tokenizer.to_str())


def test_texts_without_tokens_have_no_ids():
    encoder = Encoder(FAMILIES["bert"], 8, "head", pair=False)
    assert encoder(["\u200b", "red"])[0] == ([], 0, False)
    encoder = Encoder(FAMILIES["bert"], 8, "head", pair=True)
    assert [len(ids) for ids, _, _ in encoder(["\u200b", "red", "red"], ["red", "\u200b", "red"])] == [
        0,
        0,
        5,
    ]


# -- truncation ----------------------------------------------------------------------------------------------


def test_truncation_by_hand():
    ids = [1, 2, 3, 4, 5, 6]
    assert cut_ids(ids, 3, "head") == [1, 2, 3]
    assert cut_ids(ids, 3, "tail") == [4, 5, 6]
    assert cut_ids(ids, 3, "head_tail") == [1, 2, 6]  # the odd one from the front
    assert cut_ids(ids, 4, "head_tail") == [1, 2, 5, 6]
    assert cut_ids(ids, 1, "head_tail") == [1]
    encoder = Encoder(tiny_tokenizer(), 6, "head_tail", pair=False)
    words = encoder.tokenizer.convert_ids_to_tokens(encoder(["red rose the sea sky ink"])[0][0])
    assert words == ["[CLS]", "red", "rose", "sky", "ink", "[SEP]"]


@given(st.lists(st.integers(), max_size=30), st.integers(0, 40))
@example([1, 2, 3], 0)
def test_truncation_keeps_the_ends(ids, size):
    for truncate, num_front in (("head", size), ("tail", 0), ("head_tail", -(-size // 2))):
        kept = list(cut_ids(ids, size, truncate))
        assert len(kept) == min(len(ids), size)
        if len(ids) > size:
            assert kept[:num_front] == ids[:num_front]
            assert kept[::-1][: size - num_front] == ids[::-1][: size - num_front]
        else:
            assert kept == ids


@pytest.mark.parametrize(("sizes", "room", "wanted"), [
    ((3, 4), 7, (3, 4)), ((3, 9), 7, (3, 4)), ((9, 3), 7, (4, 3)), ((1, 9), 7, (1, 6)), ((9, 1), 7, (6, 1)),
    ((8, 9), 7, (3, 4)), ((9, 8), 7, (4, 3)), ((9, 9), 7, (3, 4)), ((9, 9), 8, (4, 4)), ((4, 5), 8, (4, 4)),
])  # fmt: skip
def test_longest_first_by_hand(sizes, room, wanted):
    assert fit_pair(*sizes, room) == wanted


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60))
def test_longest_first_fills_the_room_and_spares_the_shorter(len_a, len_b, room):
    kept_a, kept_b = fit_pair(len_a, len_b, room)
    assert 0 <= kept_a <= len_a
    assert 0 <= kept_b <= len_b
    assert kept_a + kept_b == min(len_a + len_b, room)
    if kept_a < len_a:
        assert kept_a >= kept_b - 1  # only a part that is still as long as the other gives way
    if kept_b < len_b:
        assert kept_b >= kept_a - 1
