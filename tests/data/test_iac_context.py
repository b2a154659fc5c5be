"""data/iac_context.py: the lines around a finding, in one layout whatever an analyser wrote."""

import pytest

from data import iac_context
from data.iac_context import mark_context

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
    monkeypatch.setattr(iac_context, pattern, iac_context.re.compile("(?!)(.)(.)(.)(.)"))  # matches nothing
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
    assert (
        code
        == "x" * (iac_context.LONGEST_LINE - 3)
        + "...\n--> "
        + "y" * (iac_context.LONGEST_FLAGGED - 3)
        + "..."
    )
