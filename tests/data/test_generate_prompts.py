"""data/generate_prompts.py: which rows a prompt shows, and what its id and seed hang on."""

import dataclasses
import json
from collections import Counter

import pytest

from data.generate_prompts import Task

TEXTS = [f"text {k}" for k in range(10)]
LABELS = [("red",)] * 5 + [("blue",)] * 3 + [("blue", "red")] * 2
TASK = Task(TEXTS, LABELS, "label", 3, 1, True, 0, {}, {"model": "m"})


def prompts(task: Task, label: str, count: int) -> list:
    rows = task.rows_of(label)
    return [task.prompt(label, k, rows) for k in range(count)]


def shots_of(prompt) -> list[str]:
    return [turn["content"] for turn in prompt.messages if turn["role"] == "assistant"]


def test_shots_have_the_labels_that_the_new_row_gets():
    for prompt in prompts(TASK, "red", 14):
        assert {LABELS[TEXTS.index(text)] for text in shots_of(prompt)} == {prompt.labels}


def test_rows_take_turns_as_the_base_of_a_prompt():
    task = dataclasses.replace(TASK, shots=1)
    shown = Counter(text for prompt in prompts(task, "red", 14) for text in shots_of(prompt))
    assert shown == {TEXTS[k]: 2 for k in (0, 1, 2, 3, 4, 8, 9)}


def test_a_prompt_hangs_on_its_number_alone():
    many, few = prompts(TASK, "red", 9), prompts(TASK, "red", 3)
    assert many[:3] == few


def test_another_seed_shows_other_rows():
    other = dataclasses.replace(TASK, seed=1)
    assert [shots_of(p) for p in prompts(TASK, "red", 5)] != [shots_of(p) for p in prompts(other, "red", 5)]


def test_the_id_is_that_of_what_is_sent():
    first, second = prompts(TASK, "red", 2)
    assert first.id != second.id
    for change in (
        {"sampling": {"model": "n"}},
        {"mode": "paraphrase"},
        {"descriptions": {"red": "r", "blue": "b"}},
    ):
        assert prompts(dataclasses.replace(TASK, **change), "red", 1)[0].id != first.id


def test_seeds_fit_into_31_bits_and_differ():
    seeds = [prompt.seed for prompt in prompts(TASK, "red", 50)]
    assert len(set(seeds)) == 50
    assert 0 <= min(seeds) <= max(seeds) < 2**31


def test_several_labels_are_all_named():
    both = next(prompt for prompt in prompts(TASK, "red", 14) if len(prompt.labels) == 2)
    assert 'with the labels "blue" and "red"' in both.messages[-1]["content"]


def test_a_list_is_shown_as_a_list():
    prompt = prompts(dataclasses.replace(TASK, many=4), "blue", 1)[0]
    assert set(json.loads(shots_of(prompt)[0])) <= set(TEXTS)
    assert "4 strings alone" in prompt.messages[-1]["content"]


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_paraphrase_asks_for_its_source_alone(is_chat):
    prompt = prompts(dataclasses.replace(TASK, mode="paraphrase", is_chat=is_chat), "blue", 1)[0]
    assert [text for text in TEXTS if text in prompt.messages[0]["content"]] == [prompt.source]
    assert len(prompt.messages) == 1


def test_a_plain_prompt_ends_where_the_next_text_begins():
    prompt = prompts(dataclasses.replace(TASK, is_chat=False), "red", 1)[0]
    (turn,) = prompt.messages
    head, *shots, end = turn["content"].split("\n###\n")
    assert set(shots) <= set(TEXTS)
    assert (len(shots), end) == (2 if len(prompt.labels) == 2 else 3, "")
    assert '"red"' in head


def test_turns_alternate_and_the_user_is_last():
    for task in (TASK, dataclasses.replace(TASK, shots=0), dataclasses.replace(TASK, many=3)):
        roles = [turn["role"] for turn in prompts(task, "red", 1)[0].messages]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert roles[-1] == "user"
