"""Answers to rank from other sources: each form by hand, odd lines, splits; then the real rows where they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from data.answers import main
from tests.conftest import write_jsonl

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"
NEEDS_REAL = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not on this machine")
WIKIQA = "QuestionID\tQuestion\tDocumentID\tDocumentTitle\tSentenceID\tSentence\tLabel\n"


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(path: Path | str, *flags: str) -> tuple[dict, list[dict]]:
    """The summary and the rows of --output."""
    out = Path(path).parent / "out" / "train.jsonl"
    summary = main(["--input", str(path), "--output", str(out), *flags])
    return summary, load(out)


def write(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def rows_in(num: int, k: int = 2, right: int = 0) -> list[dict]:
    """Ranking rows of which no two are near-duplicates."""
    return [
        {"question": " ".join(f"w{i}x{j}" for j in range(5)), "candidates": [f"c{i}x{j}" for j in range(k)],
         "rewards": [float(j == right) for j in range(k)]}
        for i in range(num)
    ]  # fmt: skip


# Pairs


def test_wikiqa_as_published(tmp_path):
    lines = [
        'Q1\tHow are "glaciers" made?\tD1\tGlacier\tD1-0\tA "slow" river of ice\t0',
        "Q2\twho sang it\tD2\tSong\tD2-0\tIt is a song.\t0",
        'Q1\tHow are "glaciers" made?\tD1\tGlacier\tD1-1\t"Snow" that is pressed\t1',
        "Q2\twho sang it\tD2\tSong\tD2-1\tNobody knows.\t0",
        "Q3\talone\tD3\tOne\tD3-0\tA single sentence.\t1",
    ]
    summary, rows = run(write(tmp_path, "WikiQA-dev.tsv", WIKIQA + "\n".join(lines) + "\n"))
    assert rows == [
        {"id": "Q1", "question": 'How are "glaciers" made?',
         "candidates": ['A "slow" river of ice', '"Snow" that is pressed'], "rewards": [0.0, 1.0]},
        {"id": "Q2", "question": "who sang it", "candidates": ["It is a song.", "Nobody knows."],
         "rewards": [0.0, 0.0]},
    ]  # fmt: skip
    assert summary["form"] == "pairs"
    assert summary["dropped"] == {"1 candidate": {"rows": 1, "lines": [6], "found": "alone"}}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "tsv"])
def test_pairs_without_ids_are_gathered_by_question(tmp_path, ending):
    found = [("a b ?", "yes, it is", 1), ("a b ?", "no, never", 0), ("c ?", "one", 0), ("c ?", "two", 1)]
    rows = [dict(zip(("question", "sentence", "label"), row)) for row in found]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if ending != "jsonl":
        cells = [["question", "sentence", "label"], *[[f'"{a}"', f'"{b}"', str(c)] for a, b, c in found]]
        text = "".join({"csv": ",", "tsv": "\t"}[ending].join(row) + "\n" for row in cells)
    _, made = run(write(tmp_path, f"pairs.{ending}", text))
    assert [row["candidates"] for row in made] == [["yes, it is", "no, never"], ["one", "two"]]
    assert [row["rewards"] for row in made] == [[1.0, 0.0], [0.0, 1.0]]
    assert all("id" not in row for row in made)


def test_fields_by_flag_and_what_is_guessed(tmp_path, capsys):
    rows = [{"ask": "q", "reply": text, "ok": mark} for text, mark in (("a", True), ("b", "false"), ("c", 0))]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(UserError, match=r"columns of the first row are ask, reply, ok; --question_field"):
        run(path)
    flags = ("--question_field", "ask", "--candidate_field", "reply", "--label_field", "ok")
    _, made = run(path, *flags)
    assert made == [{"question": "q", "candidates": ["a", "b", "c"], "rewards": [1.0, 0.0, 0.0]}]
    assert "question   ask (given)" in capsys.readouterr().out


def test_bad_lines_are_told_and_not_fatal(tmp_path):
    good = [{"question": "q", "sentence": "a", "label": 1}, {"question": "q", "sentence": "b", "label": 0}]
    bad = [
        {"question": "q", "sentence": "", "label": 1},
        {"question": "", "sentence": "a", "label": 1},
        {"question": "q", "sentence": "d", "label": "maybe"},
        {"question": "q", "sentence": "e", "label": 7},
        {"question": "q", "sentence": "f", "label": None},
        {"question": "q", "sentence": "g"},
        {"question": "q", "sentence": "A ", "label": 1},  # again
        {"question": "q", "sentence": "\ud800", "label": 1},
    ]
    text = "".join(json.dumps(row) + "\n" for row in good + bad) + "{oh\n[1]\n"
    summary, made = run(write(tmp_path, "in.jsonl", text))
    assert [row["candidates"] for row in made] == [["a", "b"]]
    assert {reason: n["lines"] for reason, n in summary["dropped"].items()} == {
        "cannot be read": [11, 12],
        "no candidate": [3],
        "no question": [4],
        "no label": [5, 6, 7, 8],
        "not Unicode text": [10],
        "the same candidate again": [1],
    }
    with pytest.raises(UserError, match=r"none is left: .*no label"):
        run(write_jsonl(tmp_path / "no.jsonl", [{"question": "q", "sentence": "a", "label": "?"}]))


def test_marked_both_ways_is_kept_neither_way(tmp_path):
    found = [("a", 1), ("b", 0), ("a", 0), ("c", 1)]
    rows = [{"question": "q", "sentence": text, "label": mark} for text, mark in found]
    summary, made = run(write_jsonl(tmp_path / "in.jsonl", rows))
    assert made[0]["candidates"] == ["b", "c"]
    assert summary["dropped"]["the same candidate right and wrong"]["rows"] == 1


def test_two_questions_under_one_id(tmp_path):
    rows = [{"qid": 1, "question": q, "sentence": s, "label": n} for q, s, n in zip("aab", "xyz", (0, 1, 1))]
    summary, made = run(write_jsonl(tmp_path / "in.jsonl", rows))
    assert made == [{"id": "1", "question": "a", "candidates": ["x", "y"], "rewards": [0.0, 1.0]}]
    assert summary["dropped"]["another question under the same id"]["lines"] == [3]


# Solutions


def test_solutions_in_a_list_with_sources(tmp_path):
    rows = [
        {"id": 7, "question": "3*4?", "context": "c", "solutions": [
            {"text": "3*4=<<3*4=12>>12", "correct": True, "model": "big"},
            {"solution": "It is 7", "correct": False, "model": "small"}]},
        {"question": "1+1?", "solutions": [
            {"text": "3", "correct": 0, "model": "big"}, {"text": "2", "correct": 1, "model": "small"},
            {"text": "2", "correct": 1, "model": "big"}]},
        {"question": "bad", "solutions": ["text", {"text": "a", "correct": 1}, {"text": "b", "correct": 0}]},
    ]  # fmt: skip
    summary, made = run(write_jsonl(tmp_path / "in.jsonl", rows), "--strip_annotations")
    assert made == [
        {"id": "7", "question": "3*4?", "context": "c", "candidates": ["3*4=12", "It is 7"],
         "rewards": [1.0, 0.0], "sources": ["big", "small"]},
        {"question": "1+1?", "candidates": ["3", "2"], "rewards": [0.0, 1.0], "sources": ["big", "small+big"]},
        {"question": "bad", "candidates": ["a", "b"], "rewards": [1.0, 0.0]},
    ]  # fmt: skip
    assert summary["sources"] == {"big": (2 / 3, 3), "small": (0.5, 2)}
    assert summary["dropped"]["a solution is no object"]["lines"] == [3]


def test_example_model_solutions(tmp_path, capsys):
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    rows = [
        {"question": f"q{i}", "ground_truth": "12"}
        | {n: {"solution": f"{n} {i} <<1=1>>", "is_correct": i % (k + 1) == 0} for k, n in enumerate(names)}
        for i in range(6)
    ]
    summary, made = run(write_jsonl(tmp_path / "in.jsonl", rows))
    assert summary["form"] == "solutions"
    assert made[0]["sources"] == list(names)
    assert made[0]["candidates"][0] == "6b_finetuning 0 <<1=1>>"
    assert made[1]["rewards"] == [1.0, 0.0, 0.0, 0.0]
    assert summary["sources"]["6b_verification"] == (0.5, 6)
    assert "the best single source, 6b_finetuning, is right 100.0%" in capsys.readouterr().out


# Rows that are ready


def test_rows_pass_through_and_bad_ones_are_named(tmp_path):
    good = rows_in(3, 3) + [{"question": "x", "candidates": ["a", "a"], "rewards": [0.25, 0.25], "more": [1]}]
    bad = [
        {"question": "x", "candidates": ["a", "b"], "rewards": [1.0]},
        {"question": "x", "candidates": ["a", " "], "rewards": [1.0, 0.0]},
        {"question": "x", "candidates": ["a"], "rewards": [1.0]},
        {"question": "x", "candidates": ["a", "b"], "rewards": [1.0, float("nan")]},
        {"question": "x", "candidates": "ab", "rewards": [1.0, 0.0]},
        {"candidates": ["a", "b"], "rewards": [1.0, 0.0]},
    ]
    summary, made = run(write_jsonl(tmp_path / "in.jsonl", good + bad))
    assert made == good
    assert {reason: n["lines"] for reason, n in summary["dropped"].items()} == {
        "rewards of another length": [5],
        "an empty candidate": [6],
        "1 candidate": [7],
        "no label": [8],
        "candidates is no list": [9],
        "no question": [10],
    }
    (split,) = summary["splits"].values()
    assert (split["questions"], split["no_right"], split["K"]) == (4, 1, [2, 3, 3])
    assert split["by_position"] == [0.75, 0.0, 0.0]
    assert split["picks"] == {
        "random": 0.25,
        "first": 0.75,
        "longest": 0.75,
        "shortest": 0.75,
        "oracle": 0.75,
    }


def test_unanswered_and_many_candidates(tmp_path):
    rows = rows_in(2, 6, right=4) + rows_in(1, 3, right=9)
    rows[0] |= {"programs": list("abcdef"), "gold": 4, "kinds": ["x"]}
    rows[1]["rewards"] = [0.5, 1.0, 0.0, 1.0, 1.0, 0.0]
    _, made = run(write_jsonl(tmp_path / "in.jsonl", rows), "--drop_unanswered", "--max_candidates", "3")
    assert [row["rewards"] for row in made] == [[0.0, 0.0, 1.0], [0.5, 1.0, 1.0, 1.0]]
    assert (made[0]["programs"], made[0]["gold"], made[0]["kinds"]) == (["a", "b", "e"], 2, ["x"])


# Splits and flags


def test_split_by_question(tmp_path):
    rows = rows_in(20)
    again = [row | {"question": row["question"].upper()} for row in rows]
    path = write_jsonl(tmp_path / "in.jsonl", rows + again)
    summary, made = run(path, "--validation_ratio", "0.25")
    other = load(tmp_path / "out" / "train_validation.jsonl")
    sides = [{row["question"].lower() for row in side} for side in (made, other)]
    assert not sides[0] & sides[1]
    assert [len(made), len(other)] == [30, 10] == [n["questions"] for n in summary["splits"].values()]
    run(path, "--validation_ratio", "0.25")
    assert load(tmp_path / "out" / "train_validation.jsonl") == other
    run(
        path,
        "--validation_ratio",
        "0.25",
        "--seed",
        "1",
        "--validation_output",
        str(tmp_path / "b" / "v.jsonl"),
    )
    assert load(tmp_path / "b" / "v.jsonl") != other


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--validation_output", "v.jsonl"], "--validation_ratio"),
        (["--max_candidates", "1"], "--max_candidates 1"),
        (["--validation_ratio", "0.01"], "leave one file empty"),
        (["--form", "solutions"], "none is left"),
    ],
)
def test_flags_that_cannot_be(tmp_path, flags, told):
    with pytest.raises(UserError, match=told):
        run(write_jsonl(tmp_path / "in.jsonl", rows_in(2)), *flags)


def test_files_that_cannot_be(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", rows_in(2))
    with pytest.raises(UserError, match="is the input"):
        main(["--input", path, "--output", path])
    for name in ("missing.tsv", "missing.jsonl"):
        with pytest.raises(UserError, match="no such file"):
            run(tmp_path / name)
    for name, text in (("empty.tsv", WIKIQA), ("odd.tsv", WIKIQA + "a\tb\n"), ("odd.jsonl", "{\n")):
        with pytest.raises(UserError, match=r"has no rows|no row can be read"):
            run(write(tmp_path, name, text))


def test_as_a_command(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", rows_in(2))
    command = [sys.executable, "-m", "data.answers", "--input", path, "--output", str(tmp_path / "o.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last == {"questions": {str(tmp_path / "o.jsonl"): 2}, "dropped": {}}


# The real rows


@NEEDS_REAL
@pytest.mark.parametrize("name, count", [("wikiqa/dev", 122), ("gsm8k_solutions/train", 800)])
def test_real_rows(tmp_path, name, count):
    out = tmp_path / "o.jsonl"
    summary = main(["--input", str(REAL / f"{name}.jsonl"), "--output", str(out)])
    assert len(load(out)) == count
    split = summary["splits"][str(out)]
    if count == 800:
        assert max(split["by_position"]) == pytest.approx(0.56375)  # the best single model
