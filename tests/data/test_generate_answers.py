"""data/generate_answers.py: texts out of answers of every form, and garbage told from texts."""

import json

import pytest

from data.generate_answers import Counts, TextForm, split_answer, why_garbage

LINES, POSTS = TextForm(True, 12), TextForm(False, 40)


@pytest.mark.parametrize(
    "answer, texts",
    [
        ("a red rose", ["a red rose"]),
        ('  "a red rose"\n', ["a red rose"]),
        ("\u201ca red rose\u201d", ["a red rose"]),
        ('he said "a rose" and "a ruby"', ['he said "a rose" and "a ruby"']),
        ('"a rose" and "a ruby"', ['"a rose" and "a ruby"']),
        ("Text: a red rose", ["a red rose"]),
        ("**Text:** a red rose", ["a red rose"]),
        ("New text 1: a red rose", ["a red rose"]),
        ("the text: of a song", ["the text: of a song"]),
        ("Sure, here is a new text:\n\na red rose", ["a red rose"]),
        ("Here are two:\n1. a rose\n2. a ruby", ["a rose", "a ruby"]),
        ("a red rose\n\nThis text has the label red.", ["a red rose"]),
        ("<think>which one?\n\nhm</think>\na red rose", ["a red rose"]),
        ("<think>never ended", []),
        ("```\na red rose\n```", ["a red rose"]),
        ('["a rose", "a ruby"]', ["a rose", "a ruby"]),
        ('```json\n["a rose"]\n```', ["a rose"]),
        ('{"text": "a rose"}', ["a rose"]),
        ("1. a rose", ["1. a rose"]),  # one alone may be part of the text
        ("", []),
        (" \n ", []),
    ],
)
def test_one_text_was_asked_for(answer, texts):
    assert split_answer(answer, False, LINES) == texts


@pytest.mark.parametrize(
    "answer, texts",
    [
        ('["a rose", "a \\"ruby\\""]', ["a rose", 'a "ruby"']),
        ('Here you are: ["a rose", "a ruby"] - enjoy!', ["a rose", "a ruby"]),
        ('{"texts": ["a rose", "a ruby"]}', ["a rose", "a ruby"]),
        ('[{"text": "a rose", "label": "red"}, {"text": "a ruby"}]', ["a rose", "a ruby"]),
        ('["a rose", 7, null, "a ruby"]', ["a rose", "a ruby"]),
        ('["a rose", "a ruby",]', ["a rose", "a ruby"]),
        ('["a rose",\n "a ruby",\n "a bri', ["a rose", "a ruby"]),
        ("1. a rose\n2. a ruby", ["a rose", "a ruby"]),
        ("1) a rose\n\n2) a ruby", ["a rose", "a ruby"]),
        ("- a rose\n- a ruby", ["a rose", "a ruby"]),
        ('1. "a rose"\n2. "a ruby"', ["a rose", "a ruby"]),
        ("a rose\na ruby", ["a rose", "a ruby"]),
        ("a rose", ["a rose"]),
        ("[[[[", ["[[[["]),
    ],
)
def test_a_list_was_asked_for(answer, texts):
    assert split_answer(answer, True, LINES) == texts


@pytest.mark.parametrize(
    "answer, many, texts",
    [
        ("a rose that is", False, []),
        ("a rose\n\nand the", False, ["a rose"]),
        ("1. a rose\n2. a ru", True, ["a rose"]),
        ('["a rose", "a ru', True, ["a rose"]),
        ('["a rose", "a ruby"', True, ["a rose"]),
    ],
)
def test_what_the_limit_of_tokens_cuts_is_left_out(answer, many, texts):
    assert split_answer(answer, many, LINES, is_cut=True) == texts


def test_posts_of_several_paragraphs_stay_whole():
    post = "first\n\n- one thing\n- another\n\nlast"
    assert split_answer(post, False, POSTS) == [post]


@pytest.mark.parametrize(
    "answer, is_cut, texts",
    [
        ("a rose\n###\na ruby\n###", False, ["a rose"]),
        ("a rose", False, ["a rose"]),
        ("a rose\n###\na ru", True, ["a rose"]),
        ("a ro", True, []),
        ("\n###\n", False, []),
    ],
)
def test_a_plain_text_ends_at_the_mark(answer, is_cut, texts):
    assert split_answer(answer, False, LINES, is_chat=False, is_cut=is_cut) == texts


@pytest.mark.parametrize(
    "text, why",
    [
        ("a red rose", ""),
        ("I'm sorry that the rose is red", ""),
        ("caf\u00e9 r\u00f4se \U0001f339", ""),
        ("I'm sorry, but I can't", "refusal"),
        ("As an AI language model, I", "refusal"),
        ("I cannot provide texts", "refusal"),
        ("?!", "no word in it"),
        ("a\ufffdrose", "broken characters"),
        ("half a pair \ud83d", "broken characters"),
        ("a\x00rose", "control characters"),
        ("Answer with the text alone.", "repeats the prompt"),
        ("a rose ### b", "repeats the prompt"),
        ("a rose <|im_end|>", "repeats the prompt"),
        ("a rose\na ruby", "several lines, where training texts have one"),
        ("a " * 13, "longer than every training text"),
        ("a b c d a b c d a b c d", "goes round in a circle"),
    ],
)
def test_garbage(text, why):
    assert why_garbage(text, LINES) == why


def test_the_form_is_that_of_the_training_texts():
    assert TextForm.of(["a b c", "a\n"]) == TextForm(True, 3)
    assert TextForm.of(["a b", "a\nb c d"]) == TextForm(False, 4)


def test_counts_keep_the_first_example_and_any_text():
    counts = Counts()
    for text in ("a\ud800", "b", "c"):
        counts.add("odd", text)
    counts.add("other", "d" * 100)
    summary = counts.summary()
    assert list(summary) == ["odd", "other"]
    assert summary["odd"] == {"count": 3, "example": '"a\\ud800"'}
    assert len(summary["other"]["example"]) == 60
    json.dumps(summary, ensure_ascii=False).encode()
