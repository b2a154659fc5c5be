"""core/rank_encoder.py: the prompt's parts, what a long context loses, special tokens and token types."""

import numpy as np
import pytest

from core.errors import UserError
from core.rank_batches import make_rank_cut
from core.rank_encoder import DEFAULT, RankEncoder, fault_of
from core.rank_rows import RankRow
from tests.conftest import WORDS, language_tokenizer, rank_rows, tiny_tokenizer, write_jsonl
from tests.core.test_rank_cache import encoder, read, words

BERT, ROBERTA = tiny_tokenizer(), tiny_tokenizer("roberta")
CONTEXT = " ".join(WORDS[:30])
ROW = RankRow("is it red", CONTEXT, ["the rose", "a leaf of grass", "ink"], None)


def texts(found, tokenizer=BERT) -> list[str]:
    """The prefix and the candidates of one encoded row, decoded."""
    prefix, branches, _ = found
    return [words(ids, tokenizer) for ids in (prefix, *branches)]


# -- a long context ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [12, 13, 20, 31, 44, 60])
@pytest.mark.parametrize(
    "prompt", ["{context} on {question} at", "{question} of {context}", "on {question} {context} at"]
)
@pytest.mark.parametrize("architecture", ["causal", "bert"])
def test_a_long_context_loses_its_middle_alone(max_length, prompt, architecture):
    made = encoder(max_length, prompt, architecture)
    found = made([ROW])[0]
    prefix, *candidates = texts(found)
    end = " [SEP]" if architecture == "bert" else ""
    assert candidates == [text + end for text in ROW.candidates]
    before, _, after = prompt.replace("{question}", ROW.question).partition("{context}")
    before, after = f"[CLS] {before}".split(), f"{after}{end}".split()
    own = prefix.split()
    assert own[: len(before)] == before
    assert own[len(own) - len(after) :] == after
    kept = own[len(before) : len(own) - len(after)]
    room = max_length - len(before) - len(after) - 4 - len(end.split())  # the longest candidate has 4 tokens
    front = (room + 1) // 2
    whole = CONTEXT.split()
    assert kept == (whole if room >= 30 else whole[:front] + whole[30 - (room - front) :])
    assert found[2] == max(0, 30 - room)
    assert len(found[0]) + max(map(len, found[1])) == min(
        max_length, len(before + after) + 34 + len(end.split())
    )


def test_what_was_cut_is_counted_and_said(tmp_path):
    rows = rank_rows(8)
    rows[2] |= {"context": CONTEXT}
    rows[5] |= {"context": CONTEXT + " " + CONTEXT}
    found = read(rows, tmp_path, encoder(30, "{context} on {question} at"))
    lost = []
    for k in range(8):
        prefix, branches = found.question(k)
        size = 1 + len(rows[k]["context"].split()) + 5
        lost.append(size - len(prefix))
        assert len(prefix) + max(map(len, branches)) <= 30
        assert words(prefix).endswith("on is it this at")
        assert [words(ids) for ids in branches] == rows[k]["candidates"]
    assert (found.meta["num_cut"], found.meta["num_lost"]) == (2, sum(lost))
    assert [k for k in range(8) if lost[k]] == [2, 5]
    assert f"2 contexts cut ({sum(lost)} tokens) to 30" in found.summary()


@pytest.mark.parametrize("architecture, most", [("causal", 9), ("bert", 11)])
def test_question_and_candidate_that_do_not_fit_are_an_error(tmp_path, architecture, most):
    """[CLS] is it red on, and a leaf of grass: 9 tokens; an encoder has two [SEP]."""
    row = {"question": ROW.question, "context": "", "candidates": ROW.candidates, "rewards": [0, 1, 0]}
    write_jsonl(tmp_path / "rows.jsonl", [row])
    for context in ("", CONTEXT):
        row["context"] = context
        good = read([row], tmp_path, encoder(most, "{context} {question} on", architecture))
        assert len(good.question(0)[0]) + good.branch_lengths(0).max() == most
        assert good.meta["num_lost"] == len(context.split())
        with pytest.raises(UserError) as error:
            read([row, row], tmp_path, encoder(most - 1, "{context} {question} on", architecture))
        longest = 4 + (architecture == "bert")
        assert str(error.value).splitlines()[1] == (
            f"  line 1: question and longest candidate ({longest} tokens) do not fit --max_length {most - 1}, even "
            "without the context"
        )
        assert "2 bad rows" in str(error.value)


# -- the prompt -------------------------------------------------------------------------------------------------


def prefix_of(prompt: str, row: RankRow = ROW, architecture: str = "causal") -> str:
    return encoder(60, prompt, architecture).parts(row)


def test_the_prompt_s_parts():
    assert prefix_of("{context} {question}?") == ("", CONTEXT, " is it red?")
    assert prefix_of("a {question} b {context} c") == ("a is it red b ", CONTEXT, " c")
    assert prefix_of("{context}\\n{question}") == ("", CONTEXT, "\nis it red")
    assert prefix_of("") == ("", CONTEXT, "\n\nQuestion: is it red\nAnswer:")
    assert prefix_of("", architecture="bert") == ("is it red ", CONTEXT, "")
    assert DEFAULT["causal"].startswith("{context}")


@pytest.mark.parametrize("context", ["", "  ", "\n"])
def test_rows_without_a_context(context):
    row = RankRow("is it red", context, ["the rose", "ink"], None)
    assert prefix_of("", row) == ("Question: is it red\nAnswer:", "", "")
    assert prefix_of("{question} {context}", row, "bert")[0].strip() == "is it red"
    assert texts(encoder(60, "{context} {question} at")([row])[0]) == [
        "[CLS] is it red at",
        "the rose",
        "ink",
    ]
    assert texts(encoder(60, "", "bert")([row])[0])[0] == "[CLS] is it red [SEP]"


def test_a_prompt_without_a_context_reads_none():
    assert prefix_of("of {question} at") == ("of is it red at", "", "")
    assert encoder(12, "of {question} at")([ROW])[0][2] == 0


def test_what_a_row_says_is_no_prompt():
    odd = RankRow("is {context} it", "the {question} sea", ["{question}"], None)
    assert prefix_of("{context} on {question}", odd) == ("", "the {question} sea", " on is {context} it")
    assert prefix_of("on {question}", odd) == ("on is {context} it", "", "")


@pytest.mark.parametrize(
    "prompt, found", [("{context}", "0 and 1"), ("{question} {question}", "2 and 0"), ("x", "0 and 0"),
                      ("{question} {context} {context}", "1 and 2")],
)  # fmt: skip
def test_a_prompt_that_is_none(prompt, found):
    with pytest.raises(
        UserError, match=r"--prompt .*: expected \{question\} once and .* at most once, found " + found
    ):
        encoder(60, prompt)


@pytest.mark.parametrize("prompt, lead", [("{question}:", " "), ("{question}: ", ""), ("{question}\\n", "")])
def test_one_space_before_a_candidate(prompt, lead):
    assert encoder(60, prompt).lead == lead


# -- special tokens ---------------------------------------------------------------------------------------------


def test_an_encoder_has_a_pair_with_token_types():
    made = encoder(40, "", "bert")
    found = made([ROW])[0]
    assert texts(found) == [
        f"[CLS] is it red {CONTEXT} [SEP]", "the rose [SEP]", "a leaf of grass [SEP]", "ink [SEP]",
    ]  # fmt: skip
    pair = BERT(f"{ROW.question} {CONTEXT}", ROW.candidates[1])
    assert [*found[0], *found[1][1]] == pair["input_ids"]
    assert made.typed
    parts = [found[0]], [found[1]], [0], [0.0, 0.0, 1.0], 3
    for layout in ("packed", "padded"):
        cut = cut_of_parts(*parts, layout, made.typed).tokens
        types = (
            cut.token_types[1]
            if layout == "padded"
            else cut.token_types[0].split(cut.cu_seqlens.diff().tolist())[1]
        )
        assert types[: len(pair["token_type_ids"])].tolist() == pair["token_type_ids"]
        assert cut_of_parts(*parts, layout, False).tokens.token_types is None


def cut_of_parts(prefixes, branches, index, rewards, places, layout, typed):
    arrays = [np.array(p) for p in prefixes], [[np.array(ids) for ids in own] for own in branches]
    return make_rank_cut(*arrays, np.array(index), np.array(rewards), places, layout, 0, typed=typed)


def test_roberta_has_its_own_tokens_and_no_types():
    made = encoder(60, "", "bert", ROBERTA)
    found = made([ROW])[0]
    assert [*found[0], *found[1][0]] == ROBERTA(f"{ROW.question} {CONTEXT}", ROW.candidates[0])["input_ids"]
    assert not made.typed


def test_a_decoder_begins_and_does_not_end():
    assert texts(encoder(60, "{question}")([ROW])[0]) == ["[CLS] is it red", *ROW.candidates]
    ended = language_tokenizer("t5")  # [SEP] behind, nothing in front
    made = RankEncoder(ended, 60, "{question}", "causal")
    assert texts(made([ROW])[0], ended) == ["is it red", *ROW.candidates]


def test_faults_of_encoded_rows():
    made = encoder(60, "{question}")
    odd = RankRow("is it", "", ["red", "\u200b", "\u200b"], None)
    assert fault_of(made([odd])[0], 60) == "candidate 2 has no token: empty after tokenisation"
    bert = encoder(60, "{question}", "bert")
    assert fault_of(bert([odd])[0], 60) == "candidate 2 has no token: empty after tokenisation"
    assert made([]) == bert([]) == []
