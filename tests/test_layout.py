"""The house rules that the syntax trees can show: who owns a loop, who imports whom, where a host wait is tagged."""

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# DESIGN.md, "The house": a room imports itself and rooms of a smaller number
ROOMS = {"core": 1, "losses": 2, "archs": 3, "data": 4, "rank_predict": 5}
ROOMS |= {"ensemble_predict": 5, "predict": 6}
ROOMS |= {"train": 7, "rank_train": 7, "ppo_feedback": 7, "ppo": 8, "jobs": 9, "bench": 10, "tests": 11}
SCRIPTS = ("train.py", "rank_train.py", "ppo_feedback.py", "ppo.py")
LIBRARY = ("core", "archs", "losses")
WAITS = {"item", "tolist", "cpu", "nonzero"}
# (file, text in the line): why no tag is needed
UNTAGGED: dict[tuple[str, str], str] = {}
# device tensors of the scripts' loops: to make a Python number of one is a host wait
LOOP_TENSORS = {"loss_sum", "loss", "step_loss", "grad_norm", "is_finite", "skipped", "found_inf"}


def files(*rooms: str) -> list[Path]:
    """The Python files of rooms: folders, or single scripts at the root."""
    found = []
    for room in rooms:
        path = ROOT / room
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.is_file()
    return found


EVERYTHING = files(*ROOMS, *(f"{room}.py" for room in ROOMS))


def name_of(node: ast.AST) -> str:
    """The last part of a dotted name: optimizer of self.optimizer."""
    return getattr(node, "id", getattr(node, "attr", ""))


def comments(source: str) -> dict[int, str]:
    """The comment on each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


# -- the loop belongs to the scripts ----------------------------------------------------------------------------


def loop_parts(source: str) -> list[str]:
    """What only a training script may hold."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = name_of(node)
        if isinstance(node, ast.Attribute) and name in ("backward", "no_sync"):
            found.append(f"line {node.lineno}: .{name}")
        if name == "GradScaler":
            found.append(f"line {node.lineno}: GradScaler")
        if isinstance(node, ast.Attribute) and name == "step":
            owner = name_of(node.value).lower()
            if "opt" in owner or "scaler" in owner:
                found.append(f"line {node.lineno}: {owner}.step")
    return found


@pytest.mark.parametrize("path", files(*LIBRARY), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loop_outside_the_scripts(path):
    assert loop_parts(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "loss.backward()",
        "scaler.scale(loss).backward()",
        "optimizer.step()",
        "self.opt.step()",
        "scaler.step(optimizer)",
        "model.no_sync()",
        "torch.amp.GradScaler('cuda')",
        "from torch.amp import GradScaler; GradScaler()",
    ],
)
def test_bite_loop_parts(line):
    assert loop_parts(line)
    assert not loop_parts("profiler.step(); self.step(3); plan.step; x.forward()")


# -- imports run downwards --------------------------------------------------------------------------------------


def imported_rooms(source: str) -> Iterator[str]:
    """The rooms of this project that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
        for name in names:
            assert not name.startswith("."), "imports name the room: no relative ones"
            if name.split(".")[0] in ROOMS:
                yield name.split(".")[0]


def climbs(room: str, source: str) -> list[str]:
    """The imports that do not run downwards."""
    return [other for other in imported_rooms(source) if other != room and ROOMS[other] >= ROOMS[room]]


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert climbs(room, path.read_text()) == []


@pytest.mark.parametrize(
    "room, line",
    [
        ("core", "from archs.loading import build_model"),
        ("losses", "def f():\n    import archs.heads"),
        ("data", "from predict import load"),
        ("train", "import rank_train"),
        ("rank_predict", "from predict import load"),
        ("losses", "from rank_predict import RankPredictor"),
        ("archs", "import torch, data.weights"),
    ],
)
def test_bite_imports(room, line):
    assert climbs(room, line)
    assert not climbs("tests", line)
    assert not climbs(room, "import torch\nfrom core.plan import deal\nfrom trainer import step")


# -- host waits are tagged --------------------------------------------------------------------------------------


def untagged_waits(source: str, is_script: bool) -> list[str]:
    """Lines that make the host wait and say neither SYNC nor (where it is no tensor) numpy behind them."""
    tree, said, found = ast.parse(source), comments(source), []
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        wait = isinstance(node.func, ast.Attribute) and node.func.attr in WAITS
        if is_script and name_of(node.func) in ("float", "int", "bool") and node.args:
            names = {name_of(part) for part in ast.walk(node.args[0])}
            wait = wait or bool(names & LOOP_TENSORS)
        if wait:
            line = node.func.end_lineno
            inside = [s for s in statements if s.lineno <= line <= s.end_lineno]
            end = max(inside, key=lambda s: s.lineno).end_lineno  # the innermost statement's last line
            tags = " ".join(said.get(k, "") for k in (line, end))
            if not re.search(r"\bSYNC\b|\bnumpy\b", tags):
                found.append(f"line {line}: {source.splitlines()[line - 1].strip()}")
    return found


def imports_torch(source: str) -> bool:
    return re.search(r"^\s*(import|from) torch\b", source, re.MULTILINE) is not None


@pytest.mark.parametrize(
    "path",
    [p for p in files(*LIBRARY, *SCRIPTS) if imports_torch(p.read_text())],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_host_waits_are_tagged(path):
    name = str(path.relative_to(ROOT))
    found = untagged_waits(path.read_text(), path.name in SCRIPTS)
    assert [line for line in found if not any(file == name and text in line for file, text in UNTAGGED)] == []


def test_every_exception_is_still_there():
    for file, text in UNTAGGED:
        assert any(text in line for line in untagged_waits((ROOT / file).read_text(), file in SCRIPTS)), file


@pytest.mark.parametrize(
    "source",
    [
        "x = loss.item()",
        "x = loss.cpu()  # D2H",
        "x = [\n    a.tolist(),\n    2,\n]",
        "if True:  # SYNC\n    y = mask.nonzero()",
        "x = float(sum_over_ranks(loss_sum)) / 3",
    ],
)
def test_bite_host_waits(source):
    assert untagged_waits(source, is_script=True)
    tagged = "\n".join([*source.splitlines()[:-1], source.splitlines()[-1].split("  #")[0] + "  # D2H SYNC"])
    assert not untagged_waits(tagged, is_script=True)


# -- text -------------------------------------------------------------------------------------------------------


def odd_text(source: str) -> list[str]:
    """Lines with more than ASCII in them, or with a note that puts work off."""
    later = re.compile(r"\b(TO" + "DO|FIX" + "ME|XX" + "X)\\b")
    lines = enumerate(source.splitlines(), 1)
    return [f"line {k}: {line}" for k, line in lines if not line.isascii() or later.search(line)]


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_text_and_nothing_put_off(path):
    assert odd_text(path.read_text(encoding="utf-8")) == []


def test_bite_odd_text():
    assert odd_text("a = 1\nb = '\u00fc'\n# TO" + "DO: c\n") == [
        "line 2: b = '\u00fc'",
        "line 3: # TO" + "DO: c",
    ]


def bare_functions(source: str) -> list[str]:
    """Public functions without a docstring, and functions and methods without all their type hints."""
    tree, found = ast.parse(source), []
    if not ast.get_docstring(tree):
        found.append("no module docstring")
    scopes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for scope in scopes:
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if scope is tree and not ast.get_docstring(node):
                found.append(f"{node.name}: no docstring")
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls", "ctx")]
            if bare:
                found.append(f"{node.name}: no type hint for {', '.join(bare)}")
            if node.returns is None:
                found.append(f"{node.name}: no type hint for what it returns")
    return found


@pytest.mark.parametrize("path", files(*LIBRARY, "data"), ids=lambda path: str(path.relative_to(ROOT)))
def test_public_functions_say_what_they_take_and_give(path):
    assert bare_functions(path.read_text()) == []


def test_bite_bare_functions():
    assert bare_functions('"""A module."""\ndef f(x: int) -> int:\n    """It."""\ndef _g(x): ...\n') == []
    for source in (
        "def f(x: int) -> int:\n    'It.'",
        "'M'\ndef f() -> int: ...",
        "'M'\ndef f(x) -> int:\n    'It.'",
    ):
        assert bare_functions(source), source
    assert bare_functions("'M'\nclass A:\n    def f(self, x): ...\n") == [
        "f: no type hint for x",
        "f: no type hint for what it returns",
    ]


# -- README and Makefile ----------------------------------------------------------------------------------------


def make_targets(text: str) -> set[str]:
    """The targets that a text's code (backticks, fences) calls."""
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    return {name for part in code for name in re.findall(r"\bmake ([a-z][a-z0-9-]*)", part)}


def known_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_readme_names_targets_that_exist():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    assert make_targets(readme.read_text()) <= known_targets()


def test_every_target_has_its_help_line():
    text = (ROOT / "Makefile").read_text()
    assert known_targets() == set(re.findall(r"^([a-z][a-z0-9-]*):.*##", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split()
    assert known_targets() == set(phony)


def test_bite_make_targets():
    assert make_targets("To make sure, `make bert GPU=1` and\n```\nmake fly\n```") == {"bert", "fly"}


# -- every loop tells its own flags -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, flags",
    [
        (["train.py"], ("--class_weights", "--label_words")),
        (["rank_train.py"], ("--tau", "--share_prefix")),
        (["ppo.py"], ("--ppo_epochs", "--kl_target", "ppo_feedback.py")),
        (["ppo.py", "--feedback", "x.json"], ("--reward_weights", "--supervised_weight")),
        (["predict.py"], ("--evaluate", "--keep")),
    ],
    ids=" ".join,
)
def test_help_lists_the_flags_of_the_loop(argv, flags, monkeypatch, capsys):
    module = importlib.import_module(Path(argv[0]).stem)
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        module.main([*argv[1:], "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(flag in told for flag in flags)
