"""Every command of data/ with odd files, odd places and odd flags: it ends well."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import answers, augment, docstrings, finqa, generate, iac, reports, silver, smells, split, weights
from tests.data.invented import invented_rows
from tests.fuzz.strategies import (
    PLACES,
    Reached,
    ends_well,
    examples,
    files,
    flags_of,
    odd_flags,
    put_odd,
    workspace,
)

WORDS = "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
TEXTS = [f"{a} {b} {a}{b} is {n}" for n, (a, b) in enumerate(zip(WORDS, WORDS[5:] + WORDS[:5], strict=True))]
OTHERS = [{"text": f"something {word} else {word * 2}", "label": "ab"[k % 2]} for k, word in enumerate(WORDS)]
LABELLED = [{"text": text, "label": "ab"[k % 2], "author": k} for k, text in enumerate(TEXTS)]
SEVERAL = [{"text": text, "labels": {"a": k % 2, "b": k % 3 // 2}} for k, text in enumerate(TEXTS)]
RANKED = [
    {"question": text, "context": "c", "candidates": ["x", "y " + text], "rewards": [1.0, 0], "id": k}
    for k, text in enumerate(TEXTS)
]
PAIRS = [
    {"QuestionID": f"q{k // 2}", "Question": TEXTS[k // 2], "Sentence": f"s{k}", "Label": k % 2}
    for k in range(8)
]
SOLUTIONS = [
    {
        "question": text,
        "big": {"solution": "4 <<2*2=4>>", "is_correct": True},
        "small": {"solution": "5", "is_correct": False},
    }
    for text in TEXTS[:4]
]
PREDICTED = [{"id": k, "question": text, "prediction": "ab"[k % 2]} for k, text in enumerate(TEXTS)]
ANSWERED = [{"question": t, "strategies_that_answer": ["a", "b"][k % 2 :]} for k, t in enumerate(TEXTS)]
FINDINGS = [
    {
        "smell": "sec_https",
        "file": "a/b.pp",
        "content": "x => 'http://'",
        "line": 2,
        "label": "TP",
        "with_context": "1 a\n2 x => 'http://'\n3 c",
    },
    {
        "smell": "Hard-coded secret",
        "file": "c.yml",
        "content": "password: y",
        "line": "7",
        "label": "FP",
        "with_context": "k: v\n>>> password: y\nz: 1",
    },
]
FINQA = invented_rows(6, 0)
CANDIDATES = [
    {
        "id": r["id"],
        "question": "what was it?",
        "context": "a | 1 | 2",
        "answer": "3",
        "value": 3.0,
        "program": "add(1, 2)",
        "num_steps": 1,
        "table": [["a", "1", "2"]],
        "candidates": ["add(1, 2)", "add(1, 3)"],
        "gold": 0,
        "programs": ["add(1, 2)", "add(1, 3)"],
        "values": [3.0, 4.0],
        "kinds": ["gold", "operand"],
    }
    for r in FINQA
]
SAMPLES = [{"id": row["id"], "samples": ["add(1, 2)", "12", 3]} for row in FINQA]


class Command(NamedTuple):
    """A command that reads rows. {rows} in the flags is the odd file; {labelled} and so on are good ones."""

    main: Callable
    rows: list[dict]
    flags: list[str]
    outputs: tuple[str, ...] = ()


COMMANDS = {
    "split": Command(
        split.main, LABELLED, ["--input", "{rows}", "--output_dir", "out"], ("out/train.jsonl",)
    ),
    "split groups": Command(
        split.main, LABELLED, ["--input", "{rows}", "--output_dir", "out", "--group_field", "author"]
    ),
    "split several": Command(
        split.main, SEVERAL, ["--input", "{rows}", "--output_dir", "out"], ("out/split.json",)
    ),
    "split ranking": Command(
        split.main, RANKED, ["--input", "{rows}", "--output_dir", "out"], ("out/split.json",)
    ),
    "split test": Command(
        split.main, OTHERS, ["--input", "{labelled}", "--test_data", "{rows}", "--output_dir", "out"]
    ),
    "answers pairs": Command(
        answers.main, PAIRS, ["--input", "{rows}", "--output", "out.jsonl"], ("out.jsonl",)
    ),
    "answers solutions": Command(
        answers.main,
        SOLUTIONS,
        ["--input", "{rows}", "--output", "out.jsonl", "--strip_annotations"],
        ("out.jsonl",),
    ),
    "answers rows": Command(
        answers.main,
        RANKED,
        ["--input", "{rows}", "--output", "out.jsonl", "--validation_ratio", "0.3"],
        ("out.jsonl",),
    ),
    "silver": Command(
        silver.main, PREDICTED, ["--input_folder", ".", "--model_name", "odd", "--output_dir", "out"]
    ),
    "silver several": Command(
        silver.main,
        ANSWERED,
        ["--input_folder", ".", "--model_name", "odd", "--output_dir", "out", "--multiple", "--order", "a,b"],
    ),
    "iac": Command(iac.main, FINDINGS, ["--input", "{rows}", "--output_dir", "out"]),
    "iac fields": Command(
        iac.main,
        FINDINGS,
        [
            "--input",
            "{rows}",
            "--output_dir",
            "out",
            "--fields",
            "smell,file,code",
            "--context_lines",
            "1",
            "--keep_indent",
        ],
    ),
    "finqa check": Command(
        finqa.main, FINQA, ["check", "--input", "{rows}", "--output", "out.json"], ("out.json",)
    ),
    "finqa prepare": Command(
        finqa.main, FINQA, ["prepare", "--input", "{rows}", "--output", "out.jsonl"], ("out.jsonl",)
    ),
    "finqa gold": Command(
        finqa.main, FINQA, ["prepare", "--input", "{rows}", "--output", "out.jsonl", "--context", "gold"]
    ),
    "finqa exclude": Command(
        finqa.main,
        invented_rows(4, 1),
        ["prepare", "--input", "{finqa}", "--output", "out.jsonl", "--exclude", "{rows}"],
    ),
    "finqa candidates": Command(
        finqa.main,
        CANDIDATES,
        ["candidates", "--input", "{rows}", "--output", "out.jsonl", "--num_candidates", "3"],
    ),
    "finqa samples": Command(
        finqa.main,
        SAMPLES,
        ["candidates", "--input", "{prepared}", "--output", "out.jsonl", "--from", "{rows}"],
    ),
    "finqa rewards": Command(
        finqa.main, CANDIDATES, ["rewards", "--input", "{rows}", "--output", "out.jsonl"]
    ),
    "augment": Command(
        augment.main, LABELLED, ["--input", "{rows}", "--output", "out.jsonl"], ("out.jsonl",)
    ),
    "augment exclude": Command(
        augment.main,
        OTHERS,
        ["--input", "{labelled}", "--output", "out.jsonl", "--exclude", "{rows}", "--balance"],
    ),
    "augment paraphrases": Command(
        augment.main,
        [{"source_text": text, "text": text + " more"} for text in TEXTS],
        [
            "--input",
            "{labelled}",
            "--output",
            "out.jsonl",
            "--methods",
            "paraphrase",
            "--paraphrases",
            "{rows}",
        ],
    ),
    "generate": Command(
        generate.main, LABELLED, ["--train_data", "{rows}", "--output", "out.jsonl", "--model", "m"]
    ),
    "generate exclude": Command(
        generate.main,
        OTHERS,
        ["--train_data", "{labelled}", "--exclude", "{rows}", "--output", "out.jsonl", "--model", "m"],
    ),
    "generate descriptions": Command(
        generate.main,
        [{"a": "the first", "b": "the second"}],
        ["--train_data", "{labelled}", "--descriptions", "{rows}", "--output", "out.jsonl", "--model", "m"],
    ),
}
# what a server would be asked, were there one: not this test's; its journal may stay, empty
JOURNAL = ("out.journal.jsonl",)


@pytest.fixture(autouse=True)
def no_server(monkeypatch) -> None:
    """No request leaves this test, and no model is loaded."""

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr("data.generate.make_source", reached)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")


def put_rows(folder: Path, ending: str, content: bytes, command: Command, command_name: str) -> list[str]:
    """Write the odd file and the good ones; the flags with their paths in them."""
    if command_name.startswith("silver"):
        (folder / "odd").mkdir()
    name = f"odd/rows{ending}" if command_name.startswith("silver") else f"rows{ending}"
    (folder / name).write_bytes(content)
    beside = {"labelled": LABELLED, "prepared": CANDIDATES, "finqa": FINQA}
    for kind, rows in beside.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [flag.format(rows=name, **{kind: f"{kind}.jsonl" for kind in beside}) for flag in command.flags]


@pytest.mark.parametrize("name", COMMANDS)
def test_odd_rows(name):
    command = COMMANDS[name]

    @examples(9)
    @given(files(command.rows))
    def check(file):
        with workspace() as folder:
            flags = put_rows(folder, *file, command, name)
            ends_well(command.main, flags, folder, JOURNAL, command.outputs)

    check()


@pytest.mark.parametrize("name", COMMANDS)
def test_good_rows_are_not_refused(name):
    """Else the tests above would test nothing but messages."""
    command = COMMANDS[name]
    content = "".join(json.dumps(row) + "\n" for row in command.rows).encode()
    with workspace() as folder:
        if name == "generate descriptions":
            content = json.dumps(command.rows[0]).encode()
        ended = ends_well(
            command.main, put_rows(folder, ".jsonl", content, command, name), folder, JOURNAL, command.outputs
        )
        assert not ended.is_error, ended.message


FILE_FLAGS = {
    "split": (split.main, ["--input", "--test_data", "--output_dir"]),
    "answers pairs": (answers.main, ["--input", "--output", "--validation_output"]),
    "silver": (
        silver.main,
        ["--input_folder", "--model_name", "--output_dir", "--dataset_name", "--compare_with"],
    ),
    "iac": (iac.main, ["--input", "--output_dir"]),
    "finqa prepare": (finqa.main, ["--input", "--output", "--exclude"]),
    "finqa samples": (finqa.main, ["--from"]),
    "augment": (augment.main, ["--input", "--output", "--exclude", "--paraphrases"]),
    "generate": (generate.main, ["--train_data", "--output", "--exclude", "--descriptions"]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name, flag", [(name, flag) for name, (_, flags) in FILE_FLAGS.items() for flag in flags]
)
def test_odd_places(name, flag, place):
    command = COMMANDS[name]
    content = "".join(json.dumps(row) + "\n" for row in command.rows).encode()
    with workspace() as folder:
        flags = put_rows(folder, ".jsonl", content, command, name)
        odd = put_odd(folder, place, "odd.jsonl")
        if flag == "--validation_output":
            flags += ["--validation_ratio", "0.3"]
        ends_well(command.main, [*flags, flag, odd], folder, ("odd.jsonl", "out", *JOURNAL))


WITHOUT_ROWS = {
    "docstrings": (docstrings.main, []),
    "smells": (smells.main, []),
    "reports": (reports.main, []),
    "weights": (weights.main, []),
}


@pytest.mark.parametrize("name", [*FILE_FLAGS, "finqa candidates", "finqa rewards", *WITHOUT_ROWS])
def test_odd_flags(name, monkeypatch):
    """Two flags of the help with odd values; a command without rows ends where its work would begin."""

    def reached(*_, **__):
        raise Reached

    for place in ("docstrings.build", "smells.build", "reports.build", "weights.fetch"):
        monkeypatch.setattr(f"data.{place}", reached)
    command = COMMANDS.get(name) or Command(WITHOUT_ROWS[name][0], [{}], [])
    first = command.flags[:1] if command.flags and command.flags[0][:2] != "--" else []
    flags = flags_of(command.main, *first)
    flags = [flag for flag in flags if flag != "--copies"]  # a thousand copies of each row take their time
    assert flags
    content = "".join(json.dumps(row) + "\n" for row in command.rows).encode()

    @examples(18)
    @given(st.lists(st.tuples(st.sampled_from(flags), odd_flags), min_size=1, max_size=2), st.booleans())
    def check(given_flags, with_equals):
        with workspace() as folder:
            argv = put_rows(folder, ".jsonl", content, command, name)
            for flag, value in given_flags:
                argv += [f"{flag}={value}"] if with_equals else [flag, value]
            kept = ("out", *JOURNAL)
            ends_well(command.main, argv, folder, kept)

    check()
