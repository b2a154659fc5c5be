"""core/prompts.py: the prompt around a text, what is cut of it, and label words as the answer."""

import json

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from core.cache import RowSource
from core.errors import UserError
from core.prompts import (
    Prompt,
    PromptEncoder,
    answer_tokens,
    choose_prompt,
    label_answers,
    make_encoder,
    read_label_words,
)
from core.rows import RowFormat
from core.tokens import Encoder
from tests.conftest import language_tokenizer, tiny_tokenizer, toy_rows, write_jsonl
from tests.core.test_tokens import byte_tokenizer, t5_tokenizer

LLAMA, T5 = language_tokenizer("llama"), language_tokenizer("t5")  # [CLS] in front; [SEP] behind
TURNS = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
TURNS += "{% if add_generation_prompt %}[assistant]{% endif %}"


def chat_tokenizer(template: str = TURNS) -> PreTrainedTokenizerFast:
    """LLAMA's words with a chat template."""
    tokenizer = language_tokenizer("llama")
    tokenizer.chat_template = template
    return tokenizer


# -- which prompt -----------------------------------------------------------------------------------------------

CHOICES = [  # architecture, head, --prompt, what is expected
    ("bert", "model", "", None),
    ("t5", "linear", "", None),
    ("causal", "linear", "", None),
    ("t5", "words", "", Prompt("classify: ", "", True, False)),
    ("causal", "words", "", Prompt("", "\nAnswer:", True, True, " ")),
    ("causal", "words", "Text: {text}\\nLabel: ", Prompt("Text: ", "\nLabel:", True, True, " ")),
    ("causal", "words", "{text} =>\n", Prompt("", " =>\n", True, True)),  # a line break stays
    ("t5", "words", "say {text} now ", Prompt("say ", " now ", True, False)),
    ("causal", "linear", "say {text} now ", Prompt("say ", " now ", True, False)),
    ("bert", "model", "is {text}", Prompt("is ", "", True, False)),
]


@pytest.mark.parametrize("architecture, head, template, wanted", CHOICES)
def test_the_prompt_that_the_flags_mean(architecture, head, template, wanted):
    assert choose_prompt(template, architecture, head, LLAMA, False) == wanted


@pytest.mark.parametrize("template, times", [("classify", 0), ("{text} or {text}", 2), ("{ text }", 0)])
def test_a_prompt_holds_the_text_once(template, times):
    with pytest.raises(UserError, match=rf"--prompt .*: holds \{{text\}} {times} times; expected once"):
        choose_prompt(template, "t5", "words", T5, False)


@pytest.mark.parametrize("template", ["", "is {text} red "])
@pytest.mark.parametrize("head", ["words", "linear"])
def test_a_chat_is_what_the_tokenizer_makes_of_it(template, head):
    tokenizer, text = chat_tokenizer(), "the sky"
    prompt = choose_prompt(template, "causal", head, tokenizer, True)
    turn = [{"role": "user", "content": (template or "{text}").replace("{text}", text)}]
    assert prompt(text) == tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert prompt.after.endswith("[assistant]")
    assert not prompt.add_special
    assert prompt.is_open == (head == "words")
    found = PromptEncoder(tokenizer, 50, "head", prompt)([text])[0][0]
    assert found == tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    assert found.count(tokenizer.bos_token_id) == 1  # the template's, and no second one


def test_a_chat_template_must_be_there_and_leave_the_text_alone():
    with pytest.raises(UserError, match="--chat: this tokenizer has no chat template"):
        choose_prompt("", "causal", "words", LLAMA, True)
    upper = chat_tokenizer("{{ messages[0].content | upper }}")
    with pytest.raises(UserError, match=r"--chat: .* changes the text"):
        choose_prompt("", "causal", "words", upper, True)


# -- token rows -------------------------------------------------------------------------------------------------


def encode(text: str, max_length: int = 50, truncate: str = "head", tokenizer=LLAMA, **changes) -> tuple:
    """(ids, 0, was cut) of one text behind "the at" and before "is on"."""
    parts = {"before": "the at ", "after": " is on", "add_special": True, "is_open": True} | changes
    return PromptEncoder(tokenizer, max_length, truncate, Prompt(**parts))([text])[0]


def words(tokenizer, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("tokenizer", [LLAMA, T5, byte_tokenizer(), byte_tokenizer(False), t5_tokenizer()])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_row_is_the_whole_string_s_tokens(tokenizer, is_open):
    for text in ("red sea", "a", "x [SEP] y </s> z"):
        wanted = tokenizer(f"the at {text} is on")["input_ids"]
        if is_open and wanted[-1] == tokenizer.eos_token_id:
            wanted = wanted[:-1]
        assert encode(text, tokenizer=tokenizer, is_open=is_open) == (wanted, 0, False)


def test_an_end_token_is_taken_off_where_the_answer_follows():
    ends = {is_open: encode("red", tokenizer=T5, is_open=is_open)[0] for is_open in (True, False)}
    assert words(T5, ends[False]) == "the at red is on [SEP]"
    assert words(T5, ends[True]) == "the at red is on"
    assert words(LLAMA, encode("red")[0]) == "[CLS] the at red is on"


CUT = {
    "head": "[CLS] the at red lime is on",
    "tail": "[CLS] the at sky ink is on",
    "head_tail": "[CLS] the at red ink is on",
}


@pytest.mark.parametrize("truncate", CUT)
def test_a_text_is_cut_and_its_prompt_is_not(truncate):
    text = "red lime sea sky ink"
    ids, second, was_cut = encode(text, 7, truncate)
    assert (words(LLAMA, ids), second, was_cut) == (CUT[truncate], 0, True)
    assert encode(text, 10, truncate) == (LLAMA(f"the at {text} is on")["input_ids"], 0, False)


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), byte_tokenizer(False), t5_tokenizer()])
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("truncate", CUT)
def test_every_tokenizer_cuts_the_text_alone(tokenizer, is_open, truncate):
    """Subwords, bytes, and a special token at the end or not."""
    text = "\u00e9t\u00e9 is the sea and \U0001f600 under the sun so red and so hot"
    whole, _, _ = encode(text, 500, truncate, tokenizer, is_open=is_open)
    front = len(tokenizer("the at ", add_special_tokens=False)["input_ids"])
    front += whole[0] == tokenizer.bos_token_id
    back = len(tokenizer(" is on", add_special_tokens=False)["input_ids"])
    back += whole[-1] == tokenizer.eos_token_id
    for max_length in range(front + back + 2, front + back + 12):
        ids, _, was_cut = encode(text, max_length, truncate, tokenizer, is_open=is_open)
        assert (len(ids), was_cut) == (max_length, True)
        kept = {"head": max_length - back, "tail": front}.get(
            truncate, front + (max_length - front - back) // 2
        )
        assert ids[:kept] == whole[:kept]  # the prompt's front and, but for the tail, of the text
        assert ids[-back:] == whole[-back:]
        assert ids[kept:] == whole[len(whole) - max_length + kept :] or truncate == "head_tail"


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "\u200b\u00ad"])
def test_a_text_without_a_token_has_no_row(text):
    assert encode(text) == ([], 0, False)
    assert encode("red")[0]


def test_padding_side_is_nothing_to_a_row():
    left = language_tokenizer("llama")
    left.padding_side = "left"
    left.truncation_side = "left"
    for max_length in (8, 50):
        assert encode("red sea ink the at", max_length, tokenizer=left) == encode(
            "red sea ink the at", max_length
        )


def test_no_room_for_text():
    assert encode("red sea", 6)[0]
    with pytest.raises(
        UserError, match="--max_length 5 leaves no room for text: the prompt alone has 5 tokens"
    ):
        encode("red", 5)


class Slow(PreTrainedTokenizerFast):
    """One that cannot say where a token is of."""

    is_fast = False


def test_a_slow_tokenizer_cannot_cut():
    slow = Slow(tokenizer_object=LLAMA.backend_tokenizer, pad_token="[PAD]")
    assert encode("red", tokenizer=slow)[0] == encode("red")[0]
    with pytest.raises(UserError, match=r"a prompt of 9 tokens is over --max_length 8.* not a fast one"):
        encode("red lime sea sky", 8, tokenizer=slow)


def test_which_encoder():
    prompt = Prompt("is ", "", True, False)
    assert isinstance(make_encoder(LLAMA, 9, "head", False, None), Encoder)
    found = make_encoder(LLAMA, 9, "tail", False, prompt)
    assert isinstance(found, PromptEncoder)
    assert (found.template, found.max_length, found.truncate, found.pair) == (prompt, 9, "tail", False)
    with pytest.raises(UserError, match="--pair_field: a prompt holds one text; join the columns"):
        make_encoder(LLAMA, 9, "head", True, prompt)


def test_a_prompt_is_part_of_the_cache_s_key(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", toy_rows(12))
    base = {"before": "is ", "after": "", "add_special": True, "is_open": False}
    others = [{}, {"before": "at "}, {"after": " on"}, {"add_special": False}, {"is_open": True}]
    rows = []
    for k, other in enumerate([*others, {}]):
        encoder = PromptEncoder(T5, 30, "head", Prompt(**(base | other)))
        rows.append(RowSource(encoder, RowFormat(), str(tmp_path / "cache")).open(path, "--train_data"))
        assert len(list((tmp_path / "cache").iterdir())) == min(k + 1, len(others))
    assert rows[0].ids.tolist() == rows[-1].ids.tolist() != rows[1].ids.tolist()
    assert rows[0].ids[: rows[0].lengths[0]].tolist() == T5(f"is {toy_rows(1)[0]['text']}")["input_ids"]


# -- label words ------------------------------------------------------------------------------------------------

NAMES = ["neg", "pos"]


def test_words_by_name(tmp_path):
    assert read_label_words("", NAMES) == NAMES
    assert read_label_words("pos=very good,neg= bad ", NAMES) == ["bad", "very good"]
    assert read_label_words("neg=a=b,pos=c", NAMES) == ["a=b", "c"]
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"pos": "good, or so", "neg": "b\u00f6se"}), encoding="utf-8-sig")
    assert read_label_words(str(file), NAMES) == ["b\u00f6se", "good, or so"]


BAD_WORDS = {
    "pos=good": "'neg' has no word; the labels are neg, pos",
    "pos=good,neg=bad,odd=x": "'odd' is not a label of the training rows; the labels are neg, pos",
    "pos=good,neg=": "expected a word .* for each name",
    "pos=good,neg": "expected a word .* for each name",
    "nowhere.json": r"--label_words nowhere.json: expected NAME=WORD,\.\.\. or a JSON file",
    "{": "expected NAME=WORD",
    "[1]": "expected a word",
    '{"pos": 1, "neg": "bad"}': "expected a word",
}


@pytest.mark.parametrize("source", BAD_WORDS)
def test_bad_words(source, tmp_path):
    if source[0] in "[{":
        (tmp_path / "words.json").write_text(source)
    given = str(tmp_path / "words.json") if source[0] in "[{" else source
    with pytest.raises(UserError, match=BAD_WORDS[source]):
        read_label_words(given, NAMES)


OPEN = Prompt("", " is:", True, True, " ")
BYTES = byte_tokenizer(False)  # GPT-2's: a word behind a space is another token


def ids(text: str, tokenizer=BYTES) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_word_is_split_as_it_stands_behind_the_prompt():
    assert answer_tokens(BYTES, ["b", "red"], OPEN) == [ids(" b"), ids(" red")]
    assert answer_tokens(BYTES, ["b", "red"], Prompt("", " is\n", True, True)) == [ids("b"), ids("red")]
    assert answer_tokens(BYTES, ["b", "red"], Prompt("", "[as]", False, True)) == [ids("b"), ids("red")]
    assert answer_tokens(BYTES, ["b", "red"], None) == [ids("b"), ids("red")]
    assert ids(" b") != ids("b")
    assert answer_tokens(T5, ["red", "sea ink"], None) == [ids("red", T5), ids("sea ink", T5)]  # no end token


def test_an_end_token_tells_words_apart_where_one_begins_another():
    end = BYTES.eos_token_id
    assert answer_tokens(BYTES, ["red", "redo", "x"], None) == [(*ids(w), end) for w in ("red", "redo", "x")]
    assert answer_tokens(BYTES, ["rex", "rey"], None) == [ids("rex"), ids("rey")]  # shared, but no beginning
    endless = byte_tokenizer(False)
    endless.eos_token = None
    with pytest.raises(UserError, match="one is the beginning of another, and there is no end token"):
        answer_tokens(endless, ["red", "redo"], None)


def test_words_that_cannot_answer():
    with pytest.raises(UserError, match="the tokenizer does not know 'pink'; give another word"):
        answer_tokens(LLAMA, ["red", "pink"], OPEN)
    with pytest.raises(UserError, match="the tokenizer does not know 'deep pink'"):
        answer_tokens(T5, ["red", "deep pink"], None)
    with pytest.raises(UserError, match="'red' and 'RED' are the same tokens"):  # a lower-casing tokenizer
        answer_tokens(LLAMA, ["sea", "red", "RED"], OPEN)
    letters = {c: k for k, c in enumerate(["a", ":", " ", "r", "e", "d", ": ", "</s>"])}
    joined = Tokenizer(models.BPE(letters, [(":", " ")]))
    joined = PreTrainedTokenizerFast(tokenizer_object=joined, eos_token="</s>")
    with pytest.raises(UserError, match="'red' is split together with the prompt's end: let --prompt end"):
        answer_tokens(joined, ["red", "dare"], Prompt("", ":", True, True, " "))
    assert answer_tokens(joined, ["red", "dare"], Prompt("", "", True, True, " "))


def test_answers_of_an_architecture():
    names = ["blue", "red"]
    found = label_answers(BYTES, "", names, False, "causal", OPEN)
    assert found == (names, [ids(" blue"), ids(" red")])
    assert label_answers(BYTES, "", names, False, "t5", OPEN) == (names, [ids("blue"), ids("red")])
    found = label_answers(BYTES, "red=b,blue=x", names, False, "t5", OPEN)
    assert found == (["x", "b"], [ids("x"), ids("b")])
    for architecture, other in (("t5", "--t5_head encoder"), ("causal", "--head last")):
        with pytest.raises(UserError, match=f"several labels each, .* give {other}"):
            label_answers(BYTES, "", names, True, architecture, OPEN)


@pytest.mark.parametrize("space", ["", " "])
def test_a_chat_template_says_what_stands_before_the_answer(space):
    chat = language_tokenizer("llama")
    chat.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}at {{ m.content }} on{% else %}"
        + space
        + "{{ m.content }}{% endif %}{% endfor %}"
    )
    prompt = choose_prompt("{text}", "causal", "words", chat, True)
    assert prompt == Prompt("at ", " on", False, True, space)


def test_a_tokenizer_that_adds_nothing_and_a_prompt_of_the_text_alone():
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    bare.eos_token = "[SEP]"
    encoder = PromptEncoder(bare, 20, "head", Prompt("", "", True, True))
    ids = bare("red sea", add_special_tokens=False)["input_ids"]
    assert encoder(["red sea"]) == [(ids, 0, False)]
