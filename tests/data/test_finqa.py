"""FinQA's steps: rows by hand, what is reported, files and errors of the command."""

import json
from pathlib import Path

import pytest

from core.errors import UserError
from data.finqa import main
from data.finqa_rows import check_rows, context_table, prepare_rows, read_finqa
from data.rewards import reward_rows
from tests.data.invented import invented_rows

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "finqa"


def a_row(**changes) -> dict:
    qa = {"question": "what was the growth?", "answer": "20%", "exe_ans": 0.2}
    qa |= {"program": "subtract(120, 100), divide(#0, 100)"}
    qa["gold_inds"] = {
        "text_2": "behind , 3 .",
        "table_1": "the net sales of 2009 is 120 ;",
        "text_0": "before .",
    }
    row = {"id": "A/2009/page_1.pdf-1", "filename": "A/2009/page_1.pdf", "table": [["", "2009", "2008"]]}
    row["table"] = row["table"] + [["net sales", "$ 120", "$ 100"]]
    row |= {"pre_text": ["before .", "."], "post_text": ["behind , 3 .", ". ."]}
    return row | {"qa": qa | changes.pop("qa", {})} | changes


def a_flat_row(**changes) -> dict:
    context = "before .\n\n | 2009 | 2008\nnet sales | $ 120 | $ 100\n\nbehind ."
    row = {"id": "B/2009/page_2.pdf-1", "question": "growth?", "context": context, "answer": "0.2"}
    return row | {"program": "subtract(120, 100), divide(#0, 100)"} | changes


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


BAD = [
    (a_row(id="1", qa={"program": ""}), "missing field", "program"),
    (a_row(id="2", table="none"), "missing field", "table"),
    (a_row(id="3", qa={"answer": "", "exe_ans": None}), "missing field", "answer"),
    (a_row(id="4", qa={"program": "power(1, 2)"}), "program cannot be read", "no operation 'power'"),
    (a_row(id="5", qa={"program": "table_sum(costs, none)"}), "program does not execute", "no row 'costs'"),
    (a_row(id="6", qa={"exe_ans": 0.3}), "program disagrees with exe_ans", "gives 0.2, exe_ans is 0.3"),
    (a_row(id="7", qa={"answer": "-20%"}), "program disagrees with answer", "'-20%'"),
    (a_flat_row(id="8", answer="7"), "program disagrees with answer", "'7'"),
    (a_row(id="9", qa={"program": 7}), "program cannot be read", ""),
    (a_row(id="10", table=[1, 2]), "missing field", "table"),
    (a_flat_row(id="11", context=None, program="add(1, 2)"), "missing field", "context is null"),
]


def test_check_names_every_bad_row():
    report = check_rows([a_row(), a_flat_row(), *[row for row, _, _ in BAD], a_row()])
    assert report["rows"] == 14
    assert report["usable"] == 3
    assert report["form"] == {"published": 11, "flat": 3}
    assert report["problems"].pop("id used twice") == [{"id": "A/2009/page_1.pdf-1", "found": "2 rows"}]
    found = {row["id"]: (kind, row["found"]) for kind, rows in report["problems"].items() for row in rows}
    assert sorted(found, key=int) == [row["id"] for row, _, _ in BAD]
    for row, kind, detail in BAD:
        assert found[row["id"]][0] == kind
        assert detail in found[row["id"]][1]


def test_prepare_leaves_out_what_check_complains_of():
    rows, problems = prepare_rows([row for row, _, _ in BAD] + [a_row()])
    assert [name for name, _ in problems] == [row["id"] for row, _, _ in BAD]
    assert len(rows) == 1


def test_half_a_surrogate_pair_is_one_row_s_fault(tmp_path: Path, capsys: pytest.CaptureFixture):
    data = write_rows(tmp_path / "a.jsonl", [a_flat_row(id="x-1", question="\ud800"), a_row()])
    assert main(["prepare", "--input", data, "--output", str(tmp_path / "o.jsonl")])["rows"] == 1
    assert "x-1: character" in capsys.readouterr().out


def test_contexts():
    (page,), _ = prepare_rows([a_row()], context="page")
    assert page["context"] == "before .\n| 2009 | 2008\nnet sales | $ 120 | $ 100\nbehind , 3 ."
    assert page["value"] == pytest.approx(0.2)
    assert (page["answer"], page["num_steps"]) == ("20%", 2)
    (gold,), _ = prepare_rows([a_row()], context="gold")
    assert gold["context"] == "before .\nthe net sales of 2009 is 120 ;\nbehind , 3 ."
    (flat,), _ = prepare_rows([a_flat_row()])
    assert flat["context"] == "before .\n| 2009 | 2008\nnet sales | $ 120 | $ 100\nbehind ."
    assert flat["table"] == [["", "2009", "2008"], ["net sales", "$ 120", "$ 100"]]
    assert context_table(flat["context"]) == flat["table"]
    with pytest.raises(UserError, match=r"--context gold: row B/2009.*flat context"):
        prepare_rows([a_flat_row()], context="gold")
    assert prepare_rows([a_row(qa={"gold_inds": {}})], context="gold")[1][0][1].startswith("no gold evidence")


def test_pages_of_another_file_are_left_out():
    exclude = [a_flat_row(id="A/2009/page_1.pdf-9")]
    rows, problems = prepare_rows([a_row(), a_flat_row()], exclude=exclude)
    assert [row["id"] for row in rows] == ["B/2009/page_2.pdf-1"]
    assert problems == [("A/2009/page_1.pdf-1", "excluded page: A/2009/page_1.pdf")]


def test_the_steps_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture):
    raw = tmp_path / "raw.json"
    rows = invented_rows(14, seed=1)
    rows[3]["qa"]["program"] = "divide(1, 0)"
    raw.write_text(json.dumps(rows))
    ready, chosen, ranked = (tmp_path / "new" / f"{name}.jsonl" for name in ("ready", "chosen", "ranked"))

    assert main(["check", "--input", str(raw), "--output", str(tmp_path / "check.json")])["usable"] == 13
    assert json.loads((tmp_path / "check.json").read_text())["rows"] == 14
    main(["prepare", "--input", str(raw), "--output", str(ready)])
    assert f"{rows[3]['id']}: step 1, divide(1, 0): division by zero" in capsys.readouterr().out
    result = main(["candidates", "--input", str(ready), "--output", str(chosen), "--num_candidates", "6"])
    assert result["shortcuts"]["n"] == 13
    assert "candidates_only  not measured" in capsys.readouterr().out
    main(["rewards", "--input", str(chosen), "--output", str(ranked)])
    assert "questions with two best candidates: 0" in capsys.readouterr().out
    for row in load(ranked):
        assert len(row["candidates"]) == len(row["rewards"]) == 6
        assert row["rewards"][row["gold"]] == 1
        assert sorted(row["rewards"])[-2] <= 0.6

    before = chosen.read_bytes()
    main(["candidates", "--input", str(ready), "--output", str(chosen), "--num_candidates", "6"])
    assert chosen.read_bytes() == before
    main(
        ["candidates", "--input", str(ready), "--output", str(chosen), "--num_candidates", "6", "--seed", "1"]
    )
    assert chosen.read_bytes() != before
    assert not list(tmp_path.rglob("*.part"))


def test_named_candidates_can_stand_without_their_page(tmp_path: Path):
    """With the same choice of candidates; rewards do not ask for a context."""
    ready, whole, alone, ranked = (
        tmp_path / f"{name}.jsonl" for name in ("ready", "whole", "alone", "ranked")
    )
    write_rows(tmp_path / "raw.jsonl", invented_rows(6, seed=1))
    main(["prepare", "--input", str(tmp_path / "raw.jsonl"), "--output", str(ready)])
    named = ["candidates", "--input", str(ready), "--num_candidates", "4", "--name_operands", "--output"]
    main([*named, str(whole)])
    main([*named, str(alone), "--drop_context"])
    assert all(row["context"] for row in load(whole))
    assert load(alone) == [row | {"context": ""} for row in load(whole)]
    assert any("[" in text for row in load(alone) for text in row["candidates"])
    main(["rewards", "--input", str(alone), "--output", str(ranked)])
    assert len(load(ranked)) == len(load(alone)) > 0


def test_errors_of_the_command(tmp_path: Path):
    good, bad = (
        write_rows(tmp_path / f"{n}.jsonl", rows) for n, rows in (("a", [a_row()]), ("b", [{"id": "1"}]))
    )
    (tmp_path / "c.json").write_text("{not json")
    out = str(tmp_path / "out.jsonl")
    for argv, message in [
        ([], "nothing: no such step; expected one of check, prepare"),
        (["prepare", "--input", good], "required: --output"),
        (["prepare", "--input", str(tmp_path / "no.json"), "--output", out], "no such file"),
        (["prepare", "--input", str(tmp_path / "c.json"), "--output", out], "invalid JSON"),
        (["prepare", "--input", bad, "--output", out], "no row is usable for prepare; row 1: missing field"),
        (["prepare", "--input", good, "--output", good], "is the input"),
        (["candidates", "--input", good, "--output", bad, "--also", bad], "or read beside it"),
        (["prepare", "--input", good, "--output", str(tmp_path)], "is a folder"),
        (["prepare", "--input", good, "--output", out, "--seed", "1"], "--seed"),
        (["candidates", "--input", good, "--output", out, "--num_candidates", "1"], "from 2 to 64"),
        (["candidates", "--input", good, "--output", out, "--corruption_rate", "2"], "from 0 to 1"),
        (["candidates", "--input", good, "--output", out], "no row is usable for candidates"),
        (["candidates", "--input", good, "--output", out, "--from", bad], "expected an id and samples"),
        (["rewards", "--input", good, "--output", out], "no row is usable for rewards"),
    ]:
        with pytest.raises(UserError, match=message):
            main(argv)
    assert not Path(out).exists()


def test_help_gives_the_formula(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        main(["rewards", "--help"])
    assert "0.6 * (0.3 * shape + 0.4 * operands" in capsys.readouterr().out


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared FinQA files are not here")
def test_the_real_files():
    dev, flat = read_finqa(REAL / "dev.json"), read_finqa(REAL / "train_flat.jsonl")
    report = check_rows(dev)
    assert set(report["problems"]) == {"program disagrees with answer"}
    assert report["usable"] >= 188
    rows, problems = prepare_rows(flat, exclude=dev)
    assert len(rows) == 499
    assert not problems
    assert all(len(row["table"]) > 1 for row in rows)
    assert reward_rows(rows)[0] == []  # rows of another step are reported, not fatal
