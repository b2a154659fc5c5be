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
from data import iac
from data.iac import SMELLS, WAYS, add_fields, find_technology, main, mark_context, normalise_smell

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "iac_smells"

# made up: a Puppet class, its flagged line is 9
CODE = [
    "class shop::database (",
    "  $port = 5432,",
    ") {",
    "  file { '/etc/shop/db.conf': }",
    "  -> package { 'postgresql': ensure => '9.6' }",
    "",
    "  * 10.0.0.1",
    "  user { 'shop':",
    "    password => 'sesame',",
    "    shell    => '/bin/false',",
    "  }",
    "}",
]
LINE, CONTENT = 9, "password => 'sesame',"
EXPECTED = """class shop::database (
$port = 5432,
) {
file { '/etc/shop/db.conf': }
-> package { 'postgresql': ensure => '9.6' }

* 10.0.0.1
user { 'shop':
--> password => 'sesame',
shell    => '/bin/false',
}
}"""


def a_row(**changes) -> dict:
    row = {"smell": "hardcoded-password", "file": "shop/manifests/db.pp", "content": CONTENT, "line": LINE}
    return row | {"with_context": "9:     password => 'sesame',\n}", "label": "TP"} | changes


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Names


@pytest.mark.parametrize(
    "smell, spellings",
    [
        (
            "hard_coded_secret",
            "hard_coded_secret|Hard-coded secret|hardcoded-secret|HardCodedSecret|sec_hard_secr|hardcoded_password"
            "|Hard-coded user|sec_hard_user|sec_hard_pass|hardcoded-username|hard coded key|Hard-coded API key"
            "|SECURITY:::HARD_CODED_SECRET_V1:::Do not hard code secrets.|CWE-798: Use of Hard-coded Credentials"
            "|Hard-coded secret - Developers should not reveal it. (CWE-798)|password hardcoded|plain-text password",
        ),
        (
            "suspicious_comment",
            "suspicious_comment|Suspicious Comments|sec_susp_comm|suspicious word in comment",
        ),
        (
            "use_of_http",
            "use_of_http|use_of_http_without_ssl_tls|Use of HTTP without SSL/TLS|Use of HTTP without TLS|sec_https"
            "|HTTP without TLS|HTTPWithoutTLS|useOfHttp|http_no_tls|SECURITY:::HTTP:::|insecure HTTP|without TLS",
        ),
        (
            "weak_cryptography_algorithms",
            "weak_cryptography_algorithms|Use of weak cryptography algorithms|Weak Crypto Algorithm|sec_weak_crypt"
            "|use_of_weak_crypto_algorithm|Use of weak crypto. algo.|weak encryption|WeakCrypt|Use of MD5|sha-1",
        ),
        ("admin_by_default", "admin_by_default|Admin by default|sec_def_admin|AdminByDefault|DFLT_ADMN"),
        ("empty_password", "empty_password|Empty Passwords|sec_empty_pass|EMPT_PASS|password is empty"),
        (
            "invalid_ip_binding",
            "invalid_ip_binding|Invalid IP address binding|sec_invalid_bind|Unrestricted IP Address"
            "|improper ip address binding|SECURITY:::BINDING_TO_ALL:::|Binding to 0.0.0.0"
            "|[SECURITY] Invalid IP Address Binding (line=1, col=2)",
        ),
        (
            "no_integrity_check",
            "no_integrity_check|No integrity check|sec_no_int_check|Missing integrity check",
        ),
        (
            "missing_default_case",
            "missing_default_case|Missing default case statement|Missing Default in Case Statement"
            "|sec_no_default_switch|missing_default_switch|no default branch",
        ),
    ],
)
def test_spellings_of_the_known_smells(smell, spellings):
    assert {name: normalise_smell(name) for name in spellings.split("|")} == dict.fromkeys(
        spellings.split("|"), smell
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Full permission to the filesystem", "full_permission_to_the_filesystem"),
        ("sec_obsolete_command", "sec_obsolete_command"),
        ("BASE64", "base64"),
        ("hard-coded IP", "hard_coded_ip"),  # nobody's secret
        ("http header injection", "http_header_injection"),
        ("bareExcept", "bare_except"),
        ("key error", "key_error"),
    ],
)
def test_other_smells_keep_their_names(name, expected):
    assert normalise_smell(name) == normalise_smell(expected) == expected


def test_every_known_smell_is_its_own_spelling():
    assert [normalise_smell(smell) for smell in SMELLS] == list(SMELLS)
    assert all(1 <= meaning.count(". ") + 1 <= 2 for _, meaning in SMELLS.values())


@pytest.mark.parametrize(
    "file, expected",
    [
        ("a/site.PP", "Puppet"),
        ("me_puppet-cookbooks-x.rb", "Chef"),
        ("chef-repo-playbook.yml", "Ansible"),
        ("x/template.yaml", "Ansible"),
        ("modules/ntp/manifests/init", "Puppet"),
        ("cookbooks/ntp/metadata.json", "Chef"),
        ("main.tf", "Terraform"),
        ("app/Dockerfile", "Docker"),
        ("json/tool.py", "Python"),
        ("notes.txt", "infrastructure"),
    ],
)
def test_technology_of_a_file(file, expected):
    assert find_technology(file) == expected


# Layouts of with_context. Each: how a line is written, given its number, its text, and whether it is flagged

LAYOUTS = {
    "only the flagged one is numbered": (lambda n, t, f: f"{n}: {t}" if f else t.strip(), "number"),
    "all numbered": (lambda n, t, f: f"{n}: {t}", "number"),
    "number and tab": (lambda n, t, f: f"{n:6}\t{t}", "number"),
    "cat -n": (lambda n, t, f: f"{n:6}  {t}", "number"),
    "brackets": (lambda n, t, f: f"[{n}] {t}", "number"),
    "parenthesis": (lambda n, t, f: f"{n}) {t}", "number"),
    "L": (lambda n, t, f: f"L{n}: {t}", "number"),
    "Line": (lambda n, t, f: f"Line {n}: {t}", "number"),
    "grep": (lambda n, t, f: f"{n}{':' if f else '-'}{t}", "number"),
    "bar": (lambda n, t, f: f"{n:4} | {t}", "number"),
    "bar and arrow": (lambda n, t, f: f"{'>>> ' if f else '    '}{n:4} | {t}", "number"),
    "bar and star": (lambda n, t, f: f"{n:4}{'*' if f else ' '}| {t}", "number"),
    "arrow before": (lambda n, t, f: f"{'-->' if f else '   '} {n} {t}", "number"),
    "greater before": (lambda n, t, f: f"{'>' if f else ' '} {n}: {t}", "number"),
    "greater behind": (lambda n, t, f: f"{n:4}{'> ' if f else '  '}{t}", "number"),
    "numbered and a tail": (lambda n, t, f: f"{n}: {t}{' # <=== HERE' if f else ''}", "number"),
    "chevrons": (lambda n, t, f: f"{'>>> ' if f else '    '}{t}", "marker"),
    "fat arrow": (lambda n, t, f: f"{'=> ' if f else '   '}{t}", "marker"),
    "star": (lambda n, t, f: f"{'* ' if f else '  '}{t}", "marker"),
    "word": (lambda n, t, f: f"{'[FLAGGED] ' if f else ''}{t}", "marker"),
    "tail": (lambda n, t, f: f"{t}{'  # <-- flagged' if f else ''}", "marker"),
    "bare tail": (lambda n, t, f: f"{t}{' <<<' if f else ''}", "marker"),
    "tag": (lambda n, t, f: f"<mark>{t}</mark>" if f else t, "marker"),
    "bold": (lambda n, t, f: f"**{t}**" if f else t, "marker"),
    "nothing": (lambda n, t, f: t, "content"),
    "tabs": (lambda n, t, f: "\t" + t, "content"),
}


@pytest.mark.parametrize(
    "around", ["{}", "\n{}\n\n", "# Puppet file: shop-manifests-db.pp\n\n{}", "```puppet\n{}\n```"]
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_gives_the_same_code(name, around):
    write, way = LAYOUTS[name]
    text = "\n".join(write(n, line, n == LINE) for n, line in enumerate(CODE, 1))
    assert mark_context(around.format(text), LINE, CONTENT) == (EXPECTED, way)


@pytest.mark.parametrize(
    "pattern, name",
    [("NUMBER", "bar"), ("STRONG", "word"), ("WEAK", "star"), ("TAIL", "tail"), ("TAGS", "tag")],
)
def test_bite_layouts(monkeypatch, pattern, name):
    monkeypatch.setattr(iac, pattern, iac.re.compile("(?!)(.)(.)(.)(.)"))  # matches nothing
    text = "\n".join(LAYOUTS[name][0](n, line, n == LINE) for n, line in enumerate(CODE, 1))
    assert mark_context(text, LINE, CONTENT) != (EXPECTED, LAYOUTS[name][1])


@pytest.mark.parametrize(
    "with_context, line, content, expected",
    [
        # numbers that are code: of a line, of an address, of a time
        ("a: 1\n80: web\nb: 2", 80, "80: web", ("a: 1\n--> 80: web\nb: 2", "content")),
        (
            "10.0.0.1 db\n10:30 start\n10: x = 1",
            10,
            "x = 1",
            ("10.0.0.1 db\n10:30 start\n--> x = 1", "number"),
        ),
        ("9: a\n5: b\n12: c", 9, "a", ("--> a\n5: b\n12: c", "number")),
        # numbers with gaps, where blank lines were left out
        ("7: a\n9: b\n10: c\n14: d", 10, "c", ("a\nb\n--> c\nd", "number")),
        # a wrong number: the content decides
        ("7: a\n8: b\n9: c", 8, "c", ("a\nb\n--> c", "content")),
        # the content twice: the numbered one, else the one in the middle
        ("x = 1\n5: x = 1\ny", 5, "x = 1", ("x = 1\n--> x = 1\ny", "number")),
        ("x = 1\ny\nx = 1\nz", 9, "x = 1", ("x = 1\ny\n--> x = 1\nz", "content")),
        # cut content, and content of several lines
        (
            "a\nsecret = 'abcdefgh' if x\nb",
            2,
            "secret = 'abcde...",
            ("a\n--> secret = 'abcdefgh' if x\nb", "content"),
        ),
        ("a\nf(\n1)\nb", 2, "  f(\n    1)", ("a\n--> f(\n1)\nb", "content")),
        # the content nowhere: the number, else the only mark, else it is added
        ("7: a\n8: b\n9: c", 8, "zzz", ("a\n--> b\nc", "number")),
        ("a\n>>> b\nc", 8, "zzz", ("a\n--> b\nc", "marker")),
        (">>> a\n>>> b\nc", 8, "zzz  1", (">>> a\n>>> b\nc\n--> zzz 1", "not_found")),
        ("", 8, "zzz", ("--> zzz", "not_found")),
        # marks that are code
        ("a\n8: >>> eval(b)\n9: c", 8, ">>> eval(b)", ("a\n--> >>> eval(b)\nc", "number")),
        ("bash 'x' do\ncode <<-EOH\nEOH", 4, "code <<-EOH", ("bash 'x' do\n--> code <<-EOH\nEOH", "content")),
        ("# File: a note\nx", 4, "# File: a note", ("--> # File: a note\nx", "content")),
    ],
)
def test_contexts_by_hand(with_context, line, content, expected):
    assert mark_context(with_context, line, content) == expected


def test_context_lines_and_indents():
    text = "\n".join(CODE)
    assert mark_context(text, LINE, CONTENT, 0)[0] == f"--> {CONTENT}"
    assert mark_context(text, LINE, CONTENT, 1)[0] == "\n".join(EXPECTED.splitlines()[7:10])
    assert mark_context(text, LINE, CONTENT, 3)[0] == "\n".join(EXPECTED.splitlines()[6:12])  # no blank edge
    assert mark_context(text, LINE, CONTENT, 99)[0] == EXPECTED
    nested = "    a:\n      b: 1\n    c: 2"
    assert mark_context(nested, 2, "b: 1", keep_indent=True)[0] == "a:\n-->   b: 1\nc: 2"


def test_long_lines_are_cut():
    code, _ = mark_context("x" * 5000 + "\n7: " + "y" * 5000, 7, "y" * 5000)
    assert code == "x" * (iac.LONGEST_LINE - 3) + "...\n--> " + "y" * (iac.LONGEST_FLAGGED - 3) + "..."


# Rows


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
        (["--context_lines", "-1"], "--context_lines -1: expected 0 or more"),
        (["--output_dir", "{folder}"], "would be written over"),
        (["--output_dir", "{folder}/a.jsonl/out"], "cannot be written"),
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
        assert [line[4:] for line in flagged] == [iac.clip(row["content"], iac.LONGEST_FLAGGED)]
        assert not row["code"].startswith(("# Puppet file:", "# Ansible file:"))
    lengths = sorted(len(row["with_prompt"].split()) for row in rows)
    assert lengths[len(lengths) // 2] < 200
