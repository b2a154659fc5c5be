"""What the fuzz tests share: odd rows, files, flags and run folders, and what it means that a command ends well.

A command ends well when it succeeds, or when it raises UserError, which the shell sees as one message and exit status
2. After an error there is no new file, the files that were there are as they were, and nothing half-written lies about.

The quick tests draw few examples, always the same ones. Many more: BARELOOP_FUZZ=300 (examples a test), other ones each
time:  BARELOOP_FUZZ=300 python -m pytest -m "slow or not slow" tests/fuzz
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from core.errors import UserError, run_main

MANY = int(os.environ.get("BARELOOP_FUZZ", "0"))
HANGS_AFTER_S = 60  # of a command that takes well under one: no claim about speed
LONGEST_MESSAGE = 10_000


def examples(quick: int, many: int | None = None) -> settings:
    """Settings of a fuzz test. many: at most so many examples with BARELOOP_FUZZ, for commands that take long."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    checks += [HealthCheck.large_base_example, HealthCheck.function_scoped_fixture]
    num = min(MANY, many or MANY) if MANY else quick
    return settings(
        max_examples=num, deadline=None, derandomize=not MANY, database=None, suppress_health_check=checks
    )


# -- rows -------------------------------------------------------------------------------------------------------


def nested(depth: int, inner: str = "1") -> str:
    """JSON of lists in lists."""
    return "[" * depth + inner + "]" * depth


DEPTHS = (50, 480, 700, 960, 100_000)
ODD_JSON = [
    *("null", "true", "false", "0", "1", "-1", "1.5", "NaN", "Infinity", "-Infinity", "1e999", "-1e-999", "-0.0"),
    *("1" * 400, "9" * 5000, '""', '" "', '"\\n\\t"', '"\\u0000"', '"\\ud800"', '"a\\udfff b"', '"\\u202eabc\\u202c"'),
    *('"\\u200b\\u00ad"', '"\\ufeffx"', '"' + "x" * 70_000 + '"', '"' + "\\u05d0" * 300 + '"', '"\U0001f600"'),
    *("[]", "{}", "[null]", '[""]', '["a", "a"]', '["\\ud800"]', '[1, "1"]', "[[]]", '{"a": 1, "a": 0}', '{"": 1}'),
    *('{"a": 2}', '{"a": NaN}', '{"\\ud800": 1}', '{"a": "1"}', "[NaN]", "[true]", "[1e999]"),
    *('"[1, 2"', '"{\\"a\\": "'),
    *(nested(depth) for depth in DEPTHS),
    *('{"a": ' * depth + "1" + "}" * depth for depth in DEPTHS[:3]),
    *(json.dumps(nested(depth)) for depth in DEPTHS),  # a cell that holds JSON
    *("[" * 2000, "nul", "'a'", "{1: 2}", "[1,]", "\x00", "\u2028"),
]  # fmt: skip
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.lists(st.text(max_size=4) | st.integers() | st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.sampled_from([0, 1, 2, None, "1"]), max_size=3),
)  # fmt: skip
odd_json = st.sampled_from(ODD_JSON) | PLAIN.map(json.dumps)


def as_object(pairs: list[tuple[str, str]]) -> str:
    """A JSON object of (name, JSON of the value); names may come twice."""
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in pairs) + "}"


@st.composite
def row_texts(draw, good: list[dict]) -> list[str]:
    """Rows as JSON: good ones, some with odd or missing or doubled fields, some that are no objects."""
    rows = [[(name, json.dumps(value)) for name, value in row.items()] for row in good]
    for _ in range(draw(st.integers(0, 3))):
        pairs = rows[draw(st.integers(0, len(rows) - 1))]
        place = draw(st.integers(0, max(0, len(pairs) - 1)))
        change = draw(st.sampled_from(["value", "value", "value", "value", "drop", "twice", "name", "more"]))
        if not pairs or change == "more":
            pairs.append(
                (draw(st.sampled_from(["id", "extra", "", "\ud800", "label", "labels"])), draw(odd_json))
            )
        elif change == "value":
            pairs[place] = (pairs[place][0], draw(odd_json))
        elif change == "drop":
            del pairs[place]
        elif change == "twice":
            pairs.append((pairs[place][0], draw(odd_json)))
        else:
            pairs[place] = (draw(st.text(max_size=5)), pairs[place][1])
    made = [as_object(pairs) for pairs in rows]
    if draw(st.integers(0, 9)) == 0:
        made.insert(draw(st.integers(0, len(made))), draw(odd_json))
    return made


@st.composite
def table_text(draw, good: list[dict]) -> str:
    """Rows as CSV, with another delimiter or quotes now and then, and cells too few or too many."""
    delimiter = draw(st.sampled_from([",", ",", ",", ";", "\t", "|"]))

    def cell(value: object) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return '"' + text.replace('"', '""') + '"'

    lines = [list(good[0])] + [[cell(value) for value in row.values()] for row in good]
    for _ in range(draw(st.integers(0, 3))):
        line = lines[draw(st.integers(0, len(lines) - 1))]
        change = draw(st.sampled_from(["cell", "cell", "cell", "more", "fewer", "raw"]))
        if change == "fewer" and line:
            line.pop()
        elif change == "more" or not line:
            line.append(draw(st.text(max_size=5)))
        else:
            odd = draw(odd_json)
            line[draw(st.integers(0, len(line) - 1))] = odd if change == "raw" else cell(odd)
    return draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])).join(map(delimiter.join, lines)) + "\n"


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes of a file: mostly as they were, else truncated, with other bytes in them, or quite another file's."""
    change = draw(st.sampled_from(["none"] * 8 + ["cut", "flip", "insert", "empty", "binary", "double"]))
    place = draw(st.integers(0, len(content)))
    if change == "cut":
        return content[:place]
    if change == "flip" and place < len(content):
        return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    if change == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=6)) + content[place:]
    if change == "double":
        return content + content
    if change == "binary":
        return draw(st.binary(max_size=200))
    return b"" if change == "empty" else content


@st.composite
def files(
    draw, good: list[dict], endings: tuple[str, ...] = (".jsonl", ".json", ".csv", ".tsv")
) -> tuple[str, bytes]:
    """(ending, content) of a file of rows that may be anything from good to no rows at all."""
    ending = draw(st.sampled_from(endings))
    written = draw(st.sampled_from([ending] * 9 + list(endings)))  # now and then the ending lies
    if written in (".csv", ".tsv"):
        text = draw(table_text(good))
    else:
        rows = draw(row_texts(good))
        line_end = draw(st.sampled_from(["\n"] * 3 + ["\r\n", "\r", "\n\n", "\u2028", " "]))
        text = line_end.join(rows) + "\n" if written != ".json" else "[" + ",\n ".join(rows) + "]"
    codes = ["utf-8"] * 8 + ["utf-8-sig", "utf-16", "latin-1"]
    content = text.encode(
        draw(st.sampled_from(codes)), "replace" if "\ud800" not in text else "surrogatepass"
    )
    return ending, draw(damaged(content))


# -- places -----------------------------------------------------------------------------------------------------

PLACES = ("missing", "folder", "loop", "long", "unreadable", "null", "under a file", "empty name")


def put_odd(folder: Path, kind: str, name: str) -> str:
    """A path that is no good file, by kind; what it needs is made in the folder."""
    path = folder / name
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "long":
        return str(folder / ("x" * 300 + name))
    elif kind == "unreadable":  # the superuser reads it all the same
        path.write_text("{}")
        path.chmod(0)
    elif kind == "null":
        return str(folder / f"a\0b{name}")
    elif kind == "under a file":
        (folder / "a_file").write_text("")
        return str(folder / "a_file" / name)
    elif kind == "empty name":
        return ""
    return str(path)


# -- flags ------------------------------------------------------------------------------------------------------

ODD_FLAGS = [
    *("", " ", "nan", "inf", "-inf", "-1", "-0.5", "0", "0.0", "1", "2", "1e309", "1e-400"),
    *("9" * 12, "9" * 30, "9" * 5000, "1e18", "0x10", "1_0", "auto", "none", "on"),
    *("a,b", ",", ",,,", "a=b", "=", "a:b", ":", "1:2", "2:1", "0:0"),
    *("{text}", "{}", "{0}", "{text", "{text}{text}", "../..", "/", ".", "..", "~", "@", "@missing", "@.", "%", "%s"),
    *("\udcff", "\u202e", "\u0663", "x" * 300, "x" * 5000),
    *("\xe9", "\t", "\n", "*", "[", "[[", '{"a": 1}', "'", '"', "a b"),
    *("builtin:", "builtin:minilm2", "builtin:../x", "cuda:99", "cpu:7", "meta", "nonsense", "mps", "-", "a\0b"),
]  # fmt: skip
odd_flags = st.sampled_from(ODD_FLAGS) | st.text(max_size=6) | st.integers().map(str) | st.floats().map(str)


def flags_of(main: Callable, *before: str) -> list[str]:
    """The flags that a command's --help lists."""
    import re

    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([*before, "--help"])
    found = re.findall(r"^  +(--\w+)", told.getvalue(), re.MULTILINE)
    return list(dict.fromkeys(flag for flag in found if flag != "--help"))


# -- ending well ------------------------------------------------------------------------------------------------


class Reached(BaseException):
    """Everything was read and checked; the costly part behind it is not what is tested."""


class Hung(BaseException):
    """A command did not come to an end."""


@dataclass
class Ended:
    """How a command ended."""

    message: str  # of the UserError; "" for success
    result: object

    @property
    def is_error(self) -> bool:
        return bool(self.message)


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Raise Hung in a block that does not end."""

    def alarm(*_) -> None:
        raise Hung(f"no end after {HANGS_AFTER_S} s")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(HANGS_AFTER_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    """The files under a folder, without those below the named ones."""
    found = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in but]
        for name in names:
            path = Path(root, name)
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b""
    return found


def half_written(names: set[str]) -> list[str]:
    """Names that say that a file is on its way."""
    return [n for n in names if any(end in n for end in (".part", ".old", ".split/", ".tmp", ".partial"))]


def ends_well(
    main: Callable,
    argv: list[str],
    folder: Path,
    may_stay: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
) -> Ended:
    """Call main as the shell does, in the folder, and assert that it ends well.

    Args: may_stay: folders or files below it that an error may leave | outputs: files that a success must leave.
    """
    before, ended, here = contents(folder, may_stay), Ended("", None), os.getcwd()
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")

    def call() -> None:
        try:
            ended.result = main(argv)
        except Reached:
            ended.result = Reached
        except UserError as error:
            ended.message = str(error)
            assert ended.message.strip(), "an empty message"
            raise

    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(b""), "utf-8")  # of "-": empty
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_hang():
            try:
                run_main(call)
                status = 0
            except SystemExit as end:
                status = end.code
            out.flush()
    finally:
        os.chdir(here)
        sys.stdin = stdin
    assert status == (2 if ended.is_error else 0), f"exit status {status}"
    after = contents(folder, may_stay)
    assert not half_written(set(after) - set(before))
    if ended.is_error:
        assert len(ended.message) <= LONGEST_MESSAGE, f"a message of {len(ended.message)} characters"
        assert set(after) == set(before), f"left behind by an error: {set(after) - set(before)}"
        assert after == before, "an error changed a file"
    elif ended.result is not Reached:
        for name in outputs:
            check_whole(folder / name)
    return ended


def check_whole(path: Path) -> None:
    """Assert that a file of rows is there, and JSON from the first byte to the last."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        assert text.endswith("\n") or not text  # no row may be what there is
        assert all(isinstance(json.loads(line), dict) for line in text.split("\n")[:-1])
    elif path.suffix == ".json":
        json.loads(text)
    else:
        assert text


@contextlib.contextmanager
def workspace(copy: str | Path | None = None) -> Iterator[Path]:
    """A folder of one example, removed after it; a copy of another where one is given."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        if copy:
            shutil.copytree(copy, folder, dirs_exist_ok=True, symlinks=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- run folders ------------------------------------------------------------------------------------------------

SHAPES = [
    b"[]",
    b"null",
    b"5",
    b'"text"',
    b"{}",
    b"[{}]",
    b'{"a": {}}',
    nested(100_000).encode(),
    nested(700).encode(),
]
SHAPES += [b"", b"\xff\xfe\x00", b'{"status": "finished"', b"NaN", b"\x00" * 50, b"\xef\xbb\xbf{}"]


def places_in(value: object, path: tuple = ()) -> list[tuple]:
    """The paths to every part of a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 3)):
            found += places_in(value[key], (*path, key))
    return found


@st.composite
def damaged_json(draw, content: bytes, spare: tuple[str, ...] = ()) -> bytes:
    """A JSON file with one part gone or another than it was, or damaged as a file. spare: keys that stay."""
    kind = draw(st.sampled_from(["part", "part", "part", "gone", "gone", "shape", "bytes"]))
    if kind == "shape":
        return draw(st.sampled_from(SHAPES))
    if kind == "bytes":
        return draw(damaged(content))
    value = json.loads(content)
    places = [place for place in places_in(value) if place[0] not in spare]
    place = draw(st.sampled_from(places))
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if kind == "gone":
        del holder[place[-1]]
        return json.dumps(value).encode()
    mark = "c0ffee-odd-value"
    holder[place[-1]] = mark
    return json.dumps(value).replace(json.dumps(mark), draw(odd_json)).encode("utf-8", "surrogatepass")


if sys.platform == "win32":  # no alarm signal there
    raise RuntimeError("the fuzz tests run on Linux and macOS")
