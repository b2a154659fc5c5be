"""Findings with a prompt: spellings and layouts by hand, then the files and the errors of the command."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.rows import RowFormat
from data.iac import add_fields, main
from data.iac_context import LONGEST_FLAGGED, WAYS, clip
from data.iac_names import SMELLS
from tests.data.test_iac_context import CONTENT, LINE

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "iac_smells"


def a_row(**changes) -> dict:
    row = {"smell": "hardcoded-password", "file": "shop/manifests/db.pp", "content": CONTENT, "line": LINE}
    return row | {"with_context": "9:     password => 'sesame',\n}", "label": "TP"} | changes


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_prompt_by_hand():
    row, way = add_fields(a_row(), ["content"], {"hard_coded_secret": "A secret is in the code."})
    assert way == "number"
    assert row["with_prompt"] == (
        "A static analyser for Puppet code reports a finding. Decide whether it is real.\n"
        "Smell: hard coded secret. A secret is in the code.\n"
        "File: db.pp\n"
        "Code (the flagged line begins with -->):\n"
        "--> password => 'sesame',\n"
        "}\n"
        "Question: is the flagged line really a case of hard coded secret?\n"
        "Answer TP if it is, or FP if the analyser is mistaken.\n"
        "Answer:"
    )


@pytest.mark.parametrize(
    "fields, expected",
    [
        ("content", CONTENT),
        ("smell,content", f"smell: hard_coded_secret\ncontent: {CONTENT}"),
        ("technology,file", "technology: Puppet\nfile: shop/manifests/db.pp"),
        ("code", f"--> {CONTENT}\n}}"),
    ],
)
def test_what_content_becomes(tmp_path, fields, expected):
    main(
        [
            "--input",
            write_rows(tmp_path / "a.jsonl", [a_row()]),
            "--output_dir",
            str(tmp_path / "o"),
            "--fields",
            fields,
        ]
    )
    assert load(tmp_path / "o" / "a.jsonl")[0]["content"] == expected


def test_files_of_the_command(tmp_path, capsys):
    train = [
        a_row(),
        a_row(label="FP", id=7, line="9"),
        a_row(smell="Odd thing", label=None, with_context=None),
        a_row(smell="sec_https", content="nowhere", line=3, with_context="a\nb"),
    ]
    inputs = [write_rows(tmp_path / "train.jsonl", train), write_rows(tmp_path / "dev.jsonl", [a_row()])]
    result = main(["--input", *inputs, "--output_dir", str(tmp_path / "out")])
    rows = load(tmp_path / "out" / "train.jsonl")
    assert [row["smell"] for row in rows] == [
        "hard_coded_secret",
        "hard_coded_secret",
        "odd_thing",
        "use_of_http",
    ]
    new = {"smell", "content", "line", "with_context", "code", "with_prompt"}
    assert [{k: v for k, v in row.items() if k not in new} for row in rows] == [
        {k: v for k, v in row.items() if k not in new} for row in train
    ]
    assert list(rows[1]) == [*a_row(), "id", "code", "with_prompt"]
    assert rows[1]["line"] == 9
    assert "calls this odd thing" in rows[2]["with_prompt"]
    assert RowFormat(text_field="with_prompt").text(rows[0])[0] == rows[0]["with_prompt"]
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == result
    assert result["rows"] == {"train": 4, "dev": 1}
    assert result["found_by"] == dict(zip(WAYS, [3, 0, 0, 2]))
    assert "not known, so their prompts give no meaning: odd_thing" in out
    assert ["hard_coded_secret", "3", "1", "2", "-"] in [line.split() for line in out.splitlines()]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["files"]["train"]["labels"]["odd_thing"] == {"no label": 1}
    assert sorted(os.listdir(tmp_path / "out")) == ["dev.jsonl", "summary.json", "train.jsonl"]


def test_same_bytes_from_another_process_and_from_csv(tmp_path):
    source = write_rows(tmp_path / "a.jsonl", [a_row(), a_row(smell="x y")])
    main(["--input", source, "--output_dir", str(tmp_path / "one")])
    command = [sys.executable, "-m", "data.iac", "--input", source, "--output_dir", str(tmp_path / "two")]
    env = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    for name in ("a.jsonl", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    header, cells = (
        ",".join(a_row()),
        ",".join('"' + str(v).replace('"', '""') + '"' for v in a_row().values()),
    )
    (tmp_path / "b.csv").write_text(f"{header}\n{cells}\n")
    main(["--input", str(tmp_path / "b.csv"), "--output_dir", str(tmp_path / "three")])
    assert load(tmp_path / "three" / "b.jsonl")[0] == load(tmp_path / "one" / "a.jsonl")[0]


# What a user can get wrong


def test_all_bad_rows_are_told_together(tmp_path):
    good = a_row()
    bad = [
        {k: v for k, v in good.items() if k != "file"},
        good,
        good | {"line": "nine"},
        good | {"line": True},
    ]
    bad += [good | {"content": " "}, good | {"smell": 3}, good | {"smell": "-"}, good | {"label": 0.5}]
    bad += [good | {"file": "\ud800"}, good | {"note": "\ud800"}, good | {"with_context": ["a"]}]
    inputs = [write_rows(tmp_path / "a.jsonl", bad), write_rows(tmp_path / "b.jsonl", [{}] * 25)]
    with pytest.raises(UserError) as caught:
        main(["--input", *inputs, "--output_dir", str(tmp_path / "out")])
    message = str(caught.value)
    for part in (
        f"{inputs[0]}: 10 bad rows",
        "line 1: no field 'file' (found: smell, content, line, with_context, label)",
        "line 3: field 'line' is \"nine\"; expected a whole number",
        "line 4: field 'line' is true",
        "line 5: field 'content' is empty; expected text",
        "line 6: field 'smell' is 3; expected a string",
        "line 7: field 'smell' is \"-\"; expected a name",
        "line 8: field 'label' is 0.5; expected TP or FP",
        "line 9: field 'file': character 1",
        "line 10: holds half of a surrogate pair",
        "line 11: field 'with_context' is [\"a\"]; expected a string",
        f"{inputs[1]}: 25 bad rows",
        "line 20: no field 'smell' (found: none)",
        "... and 5 more",
    ):
        assert part in message, part
    assert "line 2:" not in message.split(inputs[1])[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--fields", "smell,prompt"], "'prompt' is none of smell, technology, file, content, code"),
        (["--context_lines", "-1"], "--context_lines: -1: expected a whole number at least 0"),
        (["--output_dir", "{folder}"], "would be written over"),
        (["--output_dir", "{folder}/a.jsonl/out"], "a.jsonl/out: lies below a file, not in a folder"),
        (["--input", "{folder}/a.jsonl", "{folder}/more/a.jsonl"], "a second file named a"),
        (["--input", "{folder}/none.jsonl"], "no such file"),
    ],
)
def test_errors_name_the_flag(tmp_path, flags, message):
    (tmp_path / "more").mkdir()
    for folder in (tmp_path, tmp_path / "more"):
        write_rows(folder / "a.jsonl", [a_row()])
    command = ["--input", str(tmp_path / "a.jsonl"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        main([*command, *(flag.format(folder=tmp_path) for flag in flags)])


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    source = write_rows(tmp_path / "a.jsonl", [a_row()])
    main(["--input", source, "--output_dir", str(tmp_path / "out")])
    before = (tmp_path / "out" / "a.jsonl").read_bytes()

    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match="the disk is full"):
        main(["--input", source, "--output_dir", str(tmp_path / "out"), "--fields", "code"])
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "out")) == ["a.jsonl", "summary.json"]


def test_real_findings(tmp_path):
    if not REAL.is_dir():
        pytest.skip("no ../shared/data/iac_smells")
    inputs = [str(REAL / "train.jsonl"), str(REAL / "dev.jsonl")]
    result = main(["--input", *inputs, "--output_dir", str(tmp_path / "out")])
    assert result["rows"] == {"train": 1376, "dev": 172}
    assert result["found_by"]["number"] == 1548
    rows = load(tmp_path / "out" / "dev.jsonl")
    assert {row["smell"] for row in rows} <= set(SMELLS)
    for row in rows:
        flagged = [line for line in row["code"].splitlines() if line.startswith("--> ")]
        assert [line[4:] for line in flagged] == [clip(row["content"], LONGEST_FLAGGED)]
        assert not row["code"].startswith(("# Puppet file:", "# Ansible file:"))
    lengths = sorted(len(row["with_prompt"].split()) for row in rows)
    assert lengths[len(lengths) // 2] < 200
