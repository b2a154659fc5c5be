"""core/rows.py: the same rows from every format, and one message for all that is wrong with a file."""

import csv
import io
import itertools
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.cache import tokenise_file
from core.errors import UserError
from core.rows import BadRows, RowError, RowFormat, read_class_weights, read_rows, show, sort_names
from core.tokens import Encoder
from tests.conftest import tiny_tokenizer

ENCODER = Encoder(tiny_tokenizer(), 16, "head", pair=False)


def read(path, form: str = "") -> list[tuple[int, dict]]:
    """All (line, row) of a file without a bad row."""
    bad = BadRows(path)
    rows = list(read_rows(path, bad, "--train_data", form))
    bad.raise_if_any()
    return rows


def said(kind: type[Exception], call, *args) -> str:
    """The message of what call(*args) raises."""
    with pytest.raises(kind) as caught:
        call(*args)
    return str(caught.value)


def complaint(path: Path, content: bytes | str | None = None) -> str:
    """The message of a file that cannot be used; nothing of it may be left in the cache."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    cache = path.parent / "cache"
    message = said(UserError, tokenise_file, str(path), "--train_data", ENCODER, RowFormat(), str(cache))
    assert not cache.exists() or not list(cache.iterdir())
    return message


# -- the same rows from every format -------------------------------------------------------------------------


def as_csv(rows: list[dict], delimiter: str) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


WRITERS = {
    "jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    "ndjson": lambda rows: "\r\n\n".join(json.dumps(row) for row in rows),  # CRLF, blank lines, no last break
    "json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False),
    "csv": lambda rows: as_csv(rows, ","),
    "tsv": lambda rows: as_csv(rows, "\t"),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=50)
@given(st.lists(st.fixed_dictionaries({"text": TEXT, "label": TEXT}), min_size=1, max_size=4), st.booleans())
@example([{"text": 'a "b",\tc\r\nd\n\ne', "label": "\u2028\xe4"}], True)
def test_every_format_gives_the_same_rows(tmp_path_factory, rows, with_bom):
    folder = tmp_path_factory.getbasetemp() / "formats"
    folder.mkdir(exist_ok=True)
    for ending, write in WRITERS.items():
        path = folder / f"rows.{ending}"
        path.write_bytes(("\ufeff" * with_bom + write(rows)).encode())
        assert [row for _, row in read(path)] == rows, ending


def naive_csv(path: Path) -> list[tuple[int, dict]]:
    """The deliberately wrong reader: it splits at line breaks and commas, quoted or not."""
    head, *lines = path.read_text().splitlines()
    names = head.split(",")
    return [(k, dict(zip(names, line.split(","), strict=False))) for k, line in enumerate(lines, 2)]


def check_quoted_csv(reader, path: Path) -> None:
    path.write_bytes(b'text,label\r\n"two\nlines, one cell",x\r\n\r\n"say ""a""",y\r\n')
    wanted = [(3, {"text": "two\nlines, one cell", "label": "x"}), (5, {"text": 'say "a"', "label": "y"})]
    assert reader(path) == wanted  # the line at which a row ends


def test_quoted_line_breaks_in_csv(tmp_path):
    check_quoted_csv(read, tmp_path / "rows.csv")


def test_bite_a_reader_that_splits_at_commas_is_caught(tmp_path):
    with pytest.raises(AssertionError):
        check_quoted_csv(naive_csv, tmp_path / "rows.csv")


def test_lines_are_counted_with_the_blank_ones(tmp_path):
    (path := tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"text": "a"}\r\n  \r\n\r\n{"text": "b"}')
    assert read(path) == [(2, {"text": "a"}), (5, {"text": "b"})]
    (path := tmp_path / "rows.json").write_text('\n[{"text": "a"},\n\n {"text": "b"}]')
    assert read(path) == [(1, {"text": "a"}), (2, {"text": "b"})]  # of an array: the row's number


def test_a_json_file_that_is_jsonl(tmp_path):
    (path := tmp_path / "rows.json").write_bytes(
        b'\xef\xbb\xbf\n{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
    )
    assert read(path) == [(2, {"text": "a", "label": "x"}), (3, {"text": "b", "label": "y"})]


@pytest.mark.parametrize("form", ["", "json", "csv"])
def test_standard_input_can_be_a_pipe(monkeypatch, form):
    rows = [{"text": "gr\xfcn", "label": "x"}, {"text": "b", "label": "y"}]
    end, start = os.pipe()
    with open(start, "wb") as file:
        file.write(b"\xef\xbb\xbf" + WRITERS[form or "jsonl"](rows).encode())
    monkeypatch.setattr(sys, "stdin", open(end, encoding="ascii"))  # noqa: SIM115 read_rows closes it
    assert [row for _, row in read("-", form)] == rows


# -- what a row says -----------------------------------------------------------------------------------------


def test_texts_by_hand():
    row = {"text": " a ", "smell": "sweet", "content": "", "year": 1999, "b": "c"}
    assert RowFormat().text(row) == (" a ", None)
    assert RowFormat("text", "b").text(row) == (" a ", "c")
    assert RowFormat("smell,content,year").text(row) == ("smell: sweet\ncontent: \nyear: 1999", None)


@pytest.mark.parametrize(("row_format", "row", "message"), [
    (RowFormat("x"), {"a": "", "b": 1}, "no field 'x' (found: a, b); --text_field names it"),
    (RowFormat("x"), {}, "no field 'x' (found: none); --text_field names it"),
    (RowFormat("x"), {"x": 7}, "field 'x' is 7; expected a string"),
    (RowFormat("x"), {"x": None}, "field 'x' is null; expected a string"),
    (RowFormat("x"), {"x": " \n"}, "field 'x' is empty; expected text"),
    (RowFormat("x", "y"), {"x": "a"}, "no field 'y' (found: x); --pair_field names it"),
    (RowFormat("x", "y"), {"x": "a", "y": ""}, "field 'y' is empty; expected text"),
    (RowFormat("x,y"), {"x": "", "y": " "}, "fields x, y are all empty; expected text"),
    (RowFormat("x,y"), {"x": "", "y": True}, "field 'y' is true; expected a string"),
])  # fmt: skip
def test_texts_that_are_none(row_format, row, message):
    assert said(RowError, row_format.text, row) == message


def test_labels_by_hand():
    plain = RowFormat()
    assert plain.labels({"label": "B"}) == "B"
    assert plain.labels({"label": 3, "labels": ["x"]}) == "3"
    assert plain.labels({"labels": ["b", 7, "a"]}) == ["b", "7", "a"]
    assert plain.labels({"labels": {"b": 1, "a": 0, "c": True}}) == {"b": 1, "a": 0, "c": 1}
    assert plain.labels({"labels": '["b", "a"]'}) == ["b", "a"]  # a CSV cell
    assert plain.labels({"labels": ' {"b": 0}'}) == {"b": 0}
    assert RowFormat(label_field="mood").labels({"mood": [], "label": "x"}) == []


ONE = "; expected one label (a string or an integer), or several (a list of names, or 0/1 for each name)"


@pytest.mark.parametrize(("row", "message"), [
    ({"text": "a"}, "no field 'label' or 'labels' (found: text); --label_field names it"),
    ({"label": None}, "field 'label' is null" + ONE),
    ({"label": True}, "field 'label' is true" + ONE),
    ({"label": 1.5}, "field 'label' is 1.5" + ONE),
    ({"label": ""}, "field 'label' is \"\"" + ONE),
    ({"labels": ["a", 0.5]}, "field 'labels' holds 0.5; expected names (strings or integers)"),
    ({"labels": {"a": 2}}, "field 'labels': 'a' is 2; expected 0 or 1"),
    ({"labels": {"a": "1"}}, "field 'labels': 'a' is \"1\"; expected 0 or 1"),
    ({"labels": "[a]"}, "field 'labels' is \"[a]\": invalid JSON (Expecting value: line 1 column 2 (char 1))"),
])  # fmt: skip
def test_labels_that_are_none(row, message):
    assert said(RowError, RowFormat().labels, row) == message


@pytest.mark.parametrize(
    "wanted", [["-1", "9", "10"], ["10", "9", "b"], ["+1", "01", "1"], ["Z", "z", "\xe4"]]
)
def test_order_of_names(wanted):
    for names in itertools.permutations(wanted):  # the same order whatever came first
        assert sort_names(names) == wanted


def test_show_cuts_long_values():
    assert show("x" * 58) == '"' + "x" * 58 + '"'
    assert show("x" * 59) == '"' + "x" * 56 + "..."


# -- what is wrong with a file: all of it in one message -----------------------------------------------------

GOOD = '{"text": "red", "label": "x"}\n'


def test_all_bad_rows_of_a_file_come_together(tmp_path):
    rows = [
        *(GOOD.strip(), '{"label": "x"}', '{"text": "", "label": "x"}', '{"text": "red"}', ""),
        *('["red", "x"]', '{"text": "red", "label": }', '{"text": "red", "label": ["x"]}', "[" * 10**5),
        *('{"text": "\\u200b", "label": "x"}', '{"text": "\\ud83d", "label": "x"}'),
    ]
    path, kind = tmp_path / "rows.jsonl", "expected one kind in all rows"
    deep = "maximum recursion depth exceeded while decoding a JSON array from a unicode string"
    assert complaint(path, "\n".join(rows)).splitlines() == [
        f"{path}: 9 bad rows:",
        "  line 2: no field 'text' (found: label); --text_field names it",
        "  line 3: field 'text' is empty; expected text",
        "  line 4: no field 'label' or 'labels' (found: text); --label_field names it",
        '  line 6: the row is ["red", "x"]; expected an object',
        "  line 7: invalid JSON: Expecting value: line 1 column 26 (char 25)",
        f'  line 8: labels are a list of labels (["x"]), in the rows before one label; {kind}',
        f"  line 9: invalid JSON: {deep}",
        "  line 10: the text has no token: empty after tokenisation",
        r"  line 11: field 'text': character 1 is '\ud83d', half of a surrogate pair; expected Unicode text",
    ]


def test_the_first_twenty_are_shown(tmp_path):
    path, wanted = tmp_path / "rows.jsonl", "field 'text' is 1; expected a string"
    content = GOOD + '{"text": 1}\n' * 20
    assert complaint(path, content).splitlines() == [
        f"{path}: 20 bad rows:",
        *(f"  line {line}: {wanted}" for line in range(2, 22)),
    ]
    assert complaint(path, content + "{\n" * 3).splitlines() == [  # the first by line, not the first found
        f"{path}: 23 bad rows:",
        *(f"  line {line}: {wanted}" for line in range(2, 22)),
        "  ... and 3 more",
    ]


BAD_FILES = {  # name: (content, message); FILE stands for the path
    "a.jsonl": (GOOD * 6 + "{text}\n" + GOOD, "FILE: 1 bad row:\n  line 7: invalid JSON: Expecting property "
                "name enclosed in double quotes: line 1 column 2 (char 1)"),
    "b.json": ("[{},\n{]", "FILE: 1 bad row:\n  line 2: invalid JSON: Expecting property name enclosed in "
               "double quotes: line 2 column 2 (char 6)"),
    "c.json": ("3", "FILE: 1 bad row:\n  line 1: the row is 3; expected an object"),
    "d.csv": ("text,label\nred,x,y,z\nred\nred,x\n", "FILE: 2 bad rows:\n  line 2: 2 cells more than the "
              "header has\n  line 3: fewer cells than the header has"),
    "e.csv": ('text,label\n"red" blue,x\n', "FILE: 1 bad row:\n  line 2: invalid CSV: ',' expected after '\"'"),
    "f.csv": ("text;label\nred;x\n", "FILE: 1 bad row:\n  line 2: no field 'text' (found: text;label); "
              "--text_field names it"),
    "g.jsonl": (GOOD.encode() + b'{"text": "gr\xfcn", "label": "y"}', "--train_data FILE: not UTF-8 text (byte 0xfc)"),
    "h.csv": ("text,label\n".encode("utf-16"), "--train_data FILE: not UTF-8 text (byte 0xff)"),
    "i.jsonl": ("\n \n", "--train_data FILE: has no rows"),
    "j.json": ("[]", "--train_data FILE: has no rows"),
    "k.csv": ("text,label\n", "--train_data FILE: has no rows"),
    "l.tsv": ("", "--train_data FILE: has no rows"),
    "m.txt": (GOOD, "--train_data FILE: unknown ending 'txt': expected .json, .jsonl, .csv or .tsv"),
    "n.jsonl": (None, "--train_data FILE: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    content, message = BAD_FILES[name]
    assert complaint(tmp_path / name, content) == message.replace("FILE", str(tmp_path / name))


@pytest.mark.parametrize("name", ["rows", "rows.jsonl"])
def test_a_folder_is_no_file(tmp_path, name):
    (tmp_path / name).mkdir()
    wanted = f"--train_data {tmp_path / name}: is a folder; expected a .json, .jsonl, .csv or .tsv file"
    assert complaint(tmp_path / name) == wanted


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (path := tmp_path / "rows.jsonl").write_text(GOOD)
    monkeypatch.setattr("core.cache.os.access", lambda *args: False)  # a root user may read everything
    monkeypatch.setattr("core.rows.open", refuse, raising=False)
    assert complaint(path) == f"--train_data {path}: cannot be read: permission denied"


def test_class_weights_are_in_the_order_of_the_names(tmp_path):
    (path := tmp_path / "weights.json").write_bytes('\ufeff{"gr\xfcn": 2, "a": 0.5}'.encode())
    assert read_class_weights(str(path), ["a", "gr\xfcn"]) == [0.5, 2.0]
    assert read_class_weights("balanced", ["a"]) is None


@pytest.mark.parametrize(("content", "message"), [
        ("[1]", "is [1]; expected {name: weight}"),
        ('{"a": 1}', "'b' is missing in the file; expected a weight for each of a, b"),
        ('{"a": 1, "b": 1, "c": 1}', "'c' is not a label of the training rows; expected a weight for each of a, b"),
        ('{"a": 1, "b": 0}', "the weight of 'b' is 0; expected a number above 0"),
        ('{"a": 1, "b": true}', "the weight of 'b' is true; expected a number above 0"),
        ('{"a": 1, "b": NaN}', "the weight of 'b' is NaN; expected a number above 0"),
        ("{", "expected none, balanced, effective or a JSON file of {name: weight}: Expecting property name "
         "enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)  # fmt: skip
def test_class_weights_that_do_not_fit(tmp_path, content, message):
    (path := tmp_path / "weights.json").write_text(content)
    assert said(UserError, read_class_weights, str(path), ["a", "b"]) == f"--class_weights {path}: {message}"
