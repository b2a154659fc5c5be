"""Built-in findings: each rule by hand, both ways, then the files made of a part of this interpreter's library."""

import errno
import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from core.errors import UserError
from core.rows import RowFormat
from data import smells
from data.iac import normalise_smell
from data.smells import RULES, SMELLS, drop_copies, find_detections, main, show_context
from data.splits import group_near_duplicates

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")
PACKAGES = {
    "asyncio",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
    "zipfile",
}


# For each rule, sources whose lines end in the label that the rule is to give; a line without one: no finding
EXAMPLES = {
    "use_of_eval": [
        "eval(text)  # TP",
        "exec (f.read(), {})  # TP",
        "x = [eval(a), 'eval(b)']  # TP",
        "eval('1 + 1')  # FP",
        "self.tk.eval(text)  # FP",
        "# eval(text)  # FP",
        "'''\neval(text)  # FP\n'''",
        "def exec(code):  # FP\n    pass\nexec(code)  # FP",
        "from mine import eval\neval(text)  # FP",
        "class A:\n    def eval(self, text):  # FP\n        return eval(text)  # TP",
        "evaluate(text)\neval",
    ],
    "password_without_value": [
        "password = None  # TP",
        "self.user_name = ''  # TP",
        "data['passwd'] = b''  # TP",
        "user = password = None  # TP",
        "def f(host, token=None, n=1):  # TP\n    pass",
        "def f(*, userPassword=None):  # TP\n    pass",
        "x: str = ''\nlogin: str = ''",  # the rule is naive: it sees no annotation
        "connect(authkey=None)  # TP",
        "password = getpass()  # FP",
        "token = 0  # FP",
        "password = 'sesame'  # FP",
        "# password = None  # FP",
        "x = 'password = None'  # FP",
        "'''\ntoken = ''  # FP\n'''",
        "connect(user=user)  # FP",
        "if password == None:\n    pass",
        "token_type = ''",
    ],
    "bare_except": [
        "try:\n    f()\nexcept:  # TP\n    pass",
        "try:\n    f()\nexcept Exception:  # TP\n    x = 1",
        "try:\n    f()\nexcept BaseException as e:  # TP\n    def g():\n        raise ValueError\n",
        "try:\n    f()\nexcept:  # FP\n    g()\n    raise",
        "try:\n    f()\nexcept Exception as e:  # FP\n    g(e)",
        "try:\n    f()\nexcept Exception:  # FP\n    logging.info('x')",
        "try:\n    f()\nexcept:  # FP\n    self.handle_error()",
        "try:\n    f()\nexcept MyException:\n    pass",
        "try:\n    f()\nexcept (OSError, Exception):  # FP\n    pass",  # of a tuple the rule knows nothing
        "# except:  # FP\n'''\nexcept Exception:  # FP\n'''",
    ],
    "assert_as_check": [
        "def f(a, *b, self=1):\n    assert a > 0  # TP\n    assert len(b)  # TP\n    assert self  # FP",
        "def f(a):\n    x = a + 1\n    assert x > 0  # FP",
        "def f(a):\n    class B:\n        def g(self):\n            assert a  # FP",
        "async def f(*, k):\n    assert isinstance(  # TP\n        k, int)",
        "assert a  # FP",
        "def f(a):\n    'we assert a'  # FP\n    # assert a  # FP",
        "def f(a):\n    assert (  # TP\n        a)",
        "self.assertTrue(a)",
    ],
    "temporary_file_by_name": [
        "f = open('/tmp/x', 'w')  # TP",
        "name = tempfile.mktemp()  # TP",
        "x = {'/var/tmp': 1}  # TP",
        "from tempfile import mktemp  # FP",
        "def mktemp():  # FP\n    pass",
        "'''\nin /tmp there is  # FP\n'''",
        "x = 'see /tmp/a'  # FP",
        "# /tmp  # FP",
        "tempfile.mkstemp()\nx = '/tmpfile'",
    ],
    "unclosed_file": [
        "x = open(p).read()  # TP",
        "f = open(p)  # TP\nf.read()\ng.close()",
        "f(open(p))  # TP",
        "self.f = open(p)  # TP",
        "f = open(p)  # FP\nf.close()",
        "class A:\n    def f(self):\n        self.f = open(p)  # FP\n    def g(self):\n        self.f.close()",
        "def f():\n    return open(p)  # FP",
        "f = open(p)  # FP\nwith f:\n    pass",
        "x = stack.enter_context(open(p))  # FP",
        "from codecs import open\nx = open(p)  # FP",
        "from posix import *\nx = open(p)  # FP",
        "# open(p)  # FP\n'''\nx = open(p)  # FP\n'''",
        "with open(p) as f:\n    pass\nx = io.open(p)\ndef open(p):\n    pass",
    ],
    "print_in_function": [
        "def f():\n    print(1)  # TP\n    [print(x) for x in y]  # TP",
        "class A:\n    def f(self):\n        print()  # TP",
        "x = lambda: print(1)  # TP",
        "def main():\n    print(1)  # FP\ndef _usage():\n    print(1)  # FP",
        "print(1)  # FP",
        "def f():\n    print(1, file=x)  # FP",
        "def f():\n    print(1,  # FP\n          file=x)",
        "def f():\n    '''\n    >>> print(1)  # FP\n    '''\n    self.print(2)  # FP",
        "pprint(1)",
    ],
    "mutable_class_attribute": [
        "class A:\n    x = []  # TP\n    y = {  # TP\n    }\n    z = dict(a=1)  # TP\n    __slots__ = []  # FP",
        "class A:\n    if B:\n        x = []\n    x = (1,)",
        "def f():\n    x = []  # FP",
        "if a:\n    x = {}  # FP",
        "'''\n    x = []  # FP\n'''",
        "class A:\n    def f(self):\n        self.x = []",
    ],
    "mutable_default": [
        "def f(a, b=[]):  # TP\n    pass",
        "def f(a={}, *, b=1):  # TP\n    pass",
        "def f(a,\n      b=[]):  # TP\n    pass\ndef g(\n        b=[],  # TP\n):\n    pass",
        "def f(a, b=()):  # FP\n    pass",
        "def f(a=(1, [])):  # FP\n    pass",
        "f(\n    a=[],  # FP\n)",
        "# def f(a=[])  # FP",
        "def f(a=None):\n    pass",
    ],
    "check_then_use": [
        "def f(p):\n    if os.path.exists(p):  # TP\n        return open(p)",
        "if not os.path.isdir(a.b):  # TP\n    os.mkdir(a.b)",
        "def f(p):\n    if os.access(p, 1):  # TP\n        shutil.copy(p, q)",
        "x = os.path.isfile(p) and open(p)  # TP",
        "def f(p):\n    if os.path.exists(p):  # FP\n        return open(q)",
        "def f(p):\n    g = open(p)\n    return os.path.exists(p)  # FP",
        "def f(p):\n    if os.path.exists(p):  # FP\n        def g():\n            open(p)",
        "def f(p):\n    os.path.exists(p)  # FP\ndef g(p):\n    open(p)",
        "# os.path.exists(p)  # FP\nopen(p)",
        "os.path.join(p)",
    ],
    "regex_compiled_in_function": [
        "def f():\n    return re.compile('a')  # TP",
        "class A:\n    def f(self):\n        x = re.compile(a)  # TP",
        "x = re.compile('a')  # FP",
        "class A:\n    x = re.compile('a')  # FP",
        "def f():\n    '''re.compile('a')'''  # FP",
        "def f():\n    more.re.compile('a')  # FP",
        "def f():\n    compile('a')",
    ],
    "import_in_function": [
        "def f():\n    import os  # TP\n    from a.b import c  # TP",
        "try:\n    import os  # FP\nexcept ImportError:\n    pass",
        "class A:\n    from a import b  # FP",
        "'''\n    import os  # FP\n'''",
        "import os\ndef f():\n    important = 1",
    ],
    "shadowed_builtin": [
        "list = []  # TP",
        "def f(type=None):  # TP\n    pass",
        "def f(a,\n      id=1):  # TP\n    pass",
        "for x in y:\n    max = x  # TP",
        "with a as dir: len = 1  # TP",
        "f(type=int)  # FP",
        "class A:\n    id = 1  # FP\n    def f(self, a):\n        id = 2  # TP",
        "x = 'type=1'  # FP",
        "# type = 1  # FP",
        "self.type = 1\nif type == int:\n    pass\nmytype = 1",
    ],
}


def wrong_labels(smell: str) -> list[str]:
    """The lines of a rule's EXAMPLES that it labels otherwise, or finds where it is not to, or does not find."""
    wrong = []
    for source in EXAMPLES[smell]:
        found = {
            row["line"]: row["label"] for row in find_detections(source, "a.py") if row["smell"] == smell
        }
        for n, line in enumerate(source.split("\n"), 1):
            label = line[-2:] if line.endswith(("# TP", "# FP")) else None
            if found.get(n) != label:
                wrong.append(f"{line!r} of {source!r}: {found.get(n)}")
    return wrong


# By hand


@pytest.mark.parametrize("smell", SMELLS)
def test_rule_by_hand(smell):
    assert wrong_labels(smell) == []
    labels = "".join(EXAMPLES[smell])
    assert labels.count("# TP") >= 2 <= labels.count("# FP")


@pytest.mark.parametrize("smell", SMELLS)
@pytest.mark.parametrize("mutation", ["flipped", "always", "never", "a line late"])
def test_bite_rules(monkeypatch, smell, mutation):
    rule = SMELLS[smell]

    def mutant(module):
        lines = set(rule(module))
        everywhere = set(range(1, 20))
        return {
            "flipped": everywhere - lines,
            "always": everywhere,
            "never": set(),
            "a line late": {n + 1 for n in lines},
        }[mutation]

    mutant.__name__ = smell
    monkeypatch.setattr(smells, "RULES", {mutant: RULES[rule]})
    assert wrong_labels(smell)


def test_rules_have_names_and_meanings_of_their_own():
    assert set(EXAMPLES) == set(SMELLS)
    assert [normalise_smell(smell) for smell in SMELLS] == list(SMELLS)
    for rule in RULES:
        assert rule.__doc__ == " ".join(rule.__doc__.split())
        assert rule.__doc__.endswith(".")


def test_a_detection_by_hand():
    source = "import os\n\ndef f(a):\n    b = 1\n    if a:\n        assert a > 0\n    return b\n"
    assert find_detections(source, "pack/mod.py") == [
        {
            "smell": "assert_as_check",
            "file": "pack/mod.py",
            "content": "assert a > 0",
            "line": 6,
            "with_context": "import os\n\ndef f(a):\nb = 1\nif a:\n6:         assert a > 0\nreturn b\n",
            "label": "TP",
        }
    ]
    assert show_context([f" {n}" for n in range(1, 20)], 10) == "5\n6\n7\n8\n9\n10:  10\n11\n12\n13\n14\n15"


def test_lines_are_counted_as_the_parser_does():
    """Form feeds and other breaks of str.splitlines, which stand in real sources, end no line."""
    source = "x = 1\n\x0c\ny = 'a\x1cb\u2028c'\ndef f():\n    print(1)\n"
    assert [(row["line"], row["label"]) for row in find_detections(source, "a.py")] == [(5, "TP")]


def test_a_source_without_findings_is_not_parsed():
    assert find_detections("def broken(:", "a.py") == []
    with pytest.raises(SyntaxError):
        find_detections("def broken(:\n    assert x", "a.py")


def test_copies_of_a_context_stay_in_one_file():
    same, other = "3: a b c d e f g h\ni j", "9: k l m n o\np"
    rows = [{"file": "b.py", "with_context": same}, {"file": "a.py", "with_context": same.replace("3", "7")}]
    rows += [{"file": "a.py", "with_context": other}, {"file": "c.py", "with_context": same + " q"}]
    rows += [{"file": "c.py", "with_context": same + " r"}]
    assert drop_copies(rows) == [rows[2], rows[3], rows[4]]
    assert drop_copies(rows[:3]) == rows[1:3]  # as many rows each: the first file by name


# On a part of the real library


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Rows of PACKAGES, written once: the folder and what main returned."""
    folder = tmp_path_factory.mktemp("smells") / "rows"
    with pytest.MonkeyPatch.context() as patch:
        use_packages(patch)
        return folder, main(["--output_dir", str(folder)])


def use_packages(patch) -> None:
    whole = smells.list_sources
    patch.setattr(smells, "list_sources", lambda root: [s for s in whole(root) if s[0] in PACKAGES])


def load(folder: Path) -> dict[str, list[dict]]:
    lines = {
        split: (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1] for split in SPLITS
    }
    return {split: [json.loads(line) for line in rows] for split, rows in lines.items()}


def test_rows_and_summary(written):
    folder, summary = written
    splits = load(folder)
    rows = [row for split in SPLITS for row in splits[split]]
    assert len(rows) == summary["rows"]["all"] > 500
    assert abs(len(splits["train"]) / len(rows) - 0.8) < 0.05
    assert len({(row["smell"], row["file"], row["line"]) for row in rows}) == len(rows)
    fields = ["smell", "file", "content", "line", "with_context", "label", "code", "with_prompt"]
    for row in rows:
        assert list(row) == fields
        assert f"--> {row['content']}"[:40] in row["code"]
        assert SMELLS[row["smell"]].__doc__ in row["with_prompt"]
        assert row["with_prompt"].startswith("A static analyser for Python code")
        RowFormat(text_field="with_prompt").text(row)
    for split in SPLITS:
        labels = [row["label"] for row in splits[split]]
        assert set(labels) == {"TP", "FP"}
        assert min(labels.count("TP"), labels.count("FP")) > 0.2 * len(labels)
        counted = {(row["smell"], row["label"]) for row in splits[split]}
        told = {(s, k) for s, counts in summary["smells"].items() for k in counts if counts[k][split]}
        assert counted == told
    assert summary == json.loads((folder / "summary.json").read_text()) | {"output_dir": str(folder)}


def test_labels_are_what_the_sources_say(written):
    """Each row's line stands in its file, and the file read alone gives the same label."""
    library = Path(sysconfig.get_path("stdlib"))
    rows = [row for own in load(written[0]).values() for row in own]
    for file in sorted({row["file"] for row in rows})[::8]:
        source = smells.importlib.util.decode_source((library / file).read_bytes())
        found = {(row["smell"], row["line"]): row for row in find_detections(source, file)}
        for row in rows:
            if row["file"] == file:
                assert found[row["smell"], row["line"]].items() <= row.items()
                assert source.split("\n")[row["line"] - 1].strip() == row["content"]


def test_no_file_and_no_near_duplicate_on_two_sides(written):
    splits = load(written[0])
    files = {split: {row["file"] for row in rows} for split, rows in splits.items()}
    assert not files["train"] & files["validation"]
    assert not files["train"] & files["test"]
    assert not files["validation"] & files["test"]
    rows = [(split, row) for split in SPLITS for row in splits[split]]

    def count_divided(sides: list[str]) -> int:
        texts = [row["with_context"].replace(f"{row['line']}: ", "", 1) for _, row in rows]
        held: dict[int, set] = {}
        for group, side in zip(group_near_duplicates(texts), sides):
            held.setdefault(group, set()).add(side)
        return sum(len(names) > 1 for names in held.values())

    assert count_divided([split for split, _ in rows]) == 0
    dealt = [split for split, _ in rows]
    random.Random(0).shuffle(dealt)
    assert count_divided(dealt) > 20  # rows dealt one by one would be divided


def test_same_files_from_another_process(written, tmp_path):
    folder, _ = written
    code = (
        "import sys; from data import smells; from pytest import MonkeyPatch; whole = smells.list_sources; "
    )
    code += f"smells.list_sources = lambda root: [s for s in whole(root) if s[0] in {sorted(PACKAGES)}]; "
    code += f"smells.main(['--output_dir', {str(tmp_path / 'again')!r}])"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["output_dir"] == str(tmp_path / "again")
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "summary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_rule_gives_no_more_than_its_share(monkeypatch, tmp_path):
    library = find_detections("\n".join(["print(1)"] * 50), "a.py")
    for row in library:
        row["file"] = f"{row['line']}.py"
        row["with_context"] = f"{row['line']}: word{row['line']} print"
    library += [row | {"smell": "use_of_eval", "label": "TP", "with_context": "x y"} for row in library[:3]]
    monkeypatch.setattr(smells, "MOST_OF_A_RULE", 10)
    monkeypatch.setattr(smells, "drop_copies", list)
    monkeypatch.setattr(smells, "read_detections", lambda root: (library, {"read": 1, "not_parsed": []}))
    monkeypatch.setattr(smells, "FEWEST_FILES", 5)
    _, summary = smells.build(tmp_path, seed=0)
    assert summary["rows"]["all"] == 13
    assert summary["dropped"] == {"near_duplicates": 0, "over_the_most_of_a_rule": 40}


# What a user can get wrong


def test_an_interpreter_without_sources(tmp_path):
    with pytest.raises(UserError, match="standard library"):
        smells.build(tmp_path, seed=0)


def test_a_full_disk_leaves_nothing(monkeypatch, tmp_path):
    rows = {split: [{"smell": "a"}] for split in SPLITS}
    count = {label: dict.fromkeys(SPLITS, 1) for label in ("TP", "FP")}
    summary = {
        "rows": {},
        "smells": {"a": count},
        "dropped": {},
        "files": {"read": 0, "not_parsed": []},
        "python": "",
    }
    monkeypatch.setattr(smells, "build", lambda root, seed: (rows, summary))
    main(["--output_dir", str(tmp_path / "whole")])

    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=r"the disk is full.*--output_dir"):
        main(["--output_dir", str(tmp_path / "rows")])
    assert os.listdir(tmp_path) == ["whole"]


def test_without_docstrings_there_is_no_prompt(tmp_path):
    command = [sys.executable, "-OO", "-m", "data.smells", "--output_dir", str(tmp_path / "rows")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: python -OO")
    assert os.listdir(tmp_path) == []
