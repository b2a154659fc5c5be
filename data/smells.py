"""Built-in findings: naive pattern rules run over the standard library, its syntax trees say which are real.

    python -m data.smells                       -> rows/smells

Real code that every Python has: sources are read and parsed, never imported; test folders are left out. Each rule
is a regular expression over single lines, as naive analysers have, so it also fires on comments, on strings, and on
code that only looks alike. The label is asked of the syntax tree: TP where the node that the rule means stands on that
line, FP where it does not. Often the flagged line alone cannot tell: what counts is the class or the function
around it, or what comes later.

Rows have the fields of data/iac.py's findings (`smell`, `file`, `content`, `line`, `with_context`, `label`), and its
`code` and `with_prompt`: train with --text_field with_prompt, content or code. All findings of a file are in one
split. Where contexts of several files are near-duplicates, those of one file are kept. A rule gives at most
MOST_OF_A_RULE rows. The same Python version gives the same files, if its standard library is whole.
"""

import argparse
import ast
import builtins
import importlib.util
import json
import platform
import random
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import UserError, run_main
from core.results_table import format_table
from data.docstrings import list_sources, write_folder
from data.iac import add_fields
from data.splits import group_near_duplicates, split_by_group

CONTEXT_LINES = 5  # on either side, as in the rows that data/iac.py was written for
MOST_OF_A_RULE = 600
FEWEST_FILES = 50
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SCOPE = (*FUNCTION, ast.ClassDef)
SECRET = r"(passw(or)?d|passphrase|pwd|secret|token|credential|user(_?name)?|login|account|auth_?key)s?"
USES = re.compile(
    r"([\w.]+\.)?(open|stat|lstat|listdir|getsize|getmtime|chmod|link|symlink|move|rename|replace|remove|unlink|rmtree"
    r"|mkdir|makedirs|rmdir|copy|copyfile|copytree)"
)
LOOKS = re.compile(r"exc|error|traceback|warn|report|(^|[._])log", re.IGNORECASE)
LOOKED_UP = re.compile(r"os\.(path\.(exists|isfile|isdir)|access)")
OF_SITE = ("copyright", "credits", "exit", "help", "license", "quit")  # no built-ins under python -S
BUILTINS = {name for name in dir(builtins) if name.isalpha() and name.islower() and name not in OF_SITE}


class Module:
    """A parsed source: its nodes, and what stands above each."""

    def __init__(self, source: str):
        self.tree = ast.parse(source)
        self.nodes: list[ast.AST] = [self.tree]
        self.parent, self.by_type = {}, defaultdict(list)
        for node in self.nodes:  # grows while it is read
            self.by_type[type(node)].append(node)
            children = list(ast.iter_child_nodes(node))
            self.parent |= dict.fromkeys(children, node)
            self.nodes += children
        self.own = {node.name for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        for node in self.by_type[ast.ImportFrom]:
            self.own |= {alias.asname or alias.name for alias in node.names}
            self.own |= {"open"} if node.module in ("posix", "nt") else set()  # they are imported by *

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, from the inside out."""
        while node := self.parent.get(node):
            yield node

    def inside(self, node: ast.AST, kinds: tuple) -> ast.AST:
        """The innermost of `kinds` that a node stands in, or the module."""
        return next((above for above in self.above(node) if isinstance(above, kinds)), self.tree)

    def calls(self, *names: str) -> Iterator[ast.Call]:
        """The calls of names as they are written, if the module does not define them: `open` is not `io.open`."""
        wanted = set(names) - self.own
        return (node for node in self.by_type[ast.Call] if written(node.func) in wanted)


def written(node: ast.AST | None) -> str:
    """A name or a chain of attributes as it is written: `os.path.exists`; "" for other expressions."""
    if isinstance(node, ast.Attribute):
        owner = written(node.value)
        return owner and f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def own_nodes(nodes: list[ast.AST]) -> Iterator[ast.AST]:
    """The nodes and what is in them, without the inside of nested functions and classes."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, SCOPE):
            stack.extend(ast.iter_child_nodes(node))


def bindings(module: Module) -> Iterator[tuple[str, ast.AST | None, int]]:
    """Each name that is given a value, the value, the line: targets, defaults, keyword arguments."""
    for node in module.nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                key = target.slice if isinstance(target, ast.Subscript) else None
                name = key.value if isinstance(key, ast.Constant) else written(target).split(".")[-1]
                yield str(name), node.value, target.lineno
        elif isinstance(node, ast.keyword):
            yield node.arg or "", node.value, node.lineno
        elif isinstance(node, ast.arguments):
            given = [*node.posonlyargs, *node.args]
            given = given[len(given) - len(node.defaults) :] + node.kwonlyargs
            for parameter, default in zip(given, node.defaults + node.kw_defaults, strict=True):
                yield parameter.arg, default, parameter.lineno


# The rules. A function gives the lines on which its finding is real; its docstring is what the prompts say about it


def use_of_eval(module: Module) -> Iterator[int]:
    """The built-in eval or exec runs something other than a literal as code."""
    for call in module.calls("eval", "exec"):
        if call.args and not isinstance(call.args[0], ast.Constant):
            yield call.lineno


def password_without_value(module: Module) -> Iterator[int]:
    """A password, a token, a key or a user name is set to None or to an empty string."""
    for name, value, line in bindings(module):
        is_empty = isinstance(value, ast.Constant) and value.value in (None, "", b"")
        if is_empty and re.search(rf"(^|_|(?<=[a-z])(?=[A-Z])){SECRET}$", name, re.IGNORECASE):
            yield line


def bare_except(module: Module) -> Iterator[int]:
    """An except clause for all errors goes on without raising, reporting or looking at what was caught."""
    for handler in module.by_type[ast.ExceptHandler]:
        if handler.type is None or written(handler.type) in ("Exception", "BaseException"):
            own = list(own_nodes(handler.body))
            names = [written(node) for node in own]
            looks = any(name and (name == handler.name or LOOKS.search(name)) for name in names)
            if not looks and not any(isinstance(node, ast.Raise) for node in own):
                yield handler.lineno


def assert_as_check(module: Module) -> Iterator[int]:
    """An assert checks an argument of the function it stands in; python -O drops the check."""
    for check in module.by_type[ast.Assert]:
        function = module.inside(check, FUNCTION)
        if function is not module.tree:
            names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)} - {
                "self",
                "cls",
            }
            if any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(check.test)):
                yield check.lineno


def temporary_file_by_name(module: Module) -> Iterator[int]:
    """Code names a temporary file itself, by mktemp or a path under /tmp, so others can make that file first."""
    for call in module.by_type[ast.Call]:
        if written(call.func).split(".")[-1] in ("mktemp", "tempnam", "tmpnam"):
            yield call.lineno
    for text in module.by_type[ast.Constant]:
        if not isinstance(module.parent[text], ast.Expr) and re.match(
            r"/((var|usr)/)?tmp\b", str(text.value)
        ):
            yield text.lineno


def unclosed_file(module: Module) -> Iterator[int]:
    """A file of the built-in open is in no with statement, not returned, and closed nowhere by its name."""
    called = {written(call.func) for call in module.by_type[ast.Call]}
    closed = {name.removesuffix(".close") for name in called if name.endswith(".close")}
    closed |= {written(item.context_expr) for item in module.by_type[ast.withitem]}
    for call in module.calls("open"):
        above = module.parent[call]
        passed = isinstance(above, ast.Call) and written(above.func).split(".")[-1] in (
            "closing",
            "enter_context",
        )
        names = {written(target) for target in above.targets} if isinstance(above, ast.Assign) else set()
        if not (isinstance(above, ast.withitem | ast.Return) or passed or (names - {""}) & closed):
            yield call.lineno


def print_in_function(module: Module) -> Iterator[int]:
    """A function other than main prints to standard output, where a library should return or log."""
    for call in module.calls("print"):
        function = module.inside(call, FUNCTION)
        name = "main" if function is module.tree else getattr(function, "name", "lambda").strip("_")
        if name not in ("main", "usage") and all(keyword.arg != "file" for keyword in call.keywords):
            yield call.lineno


def mutable_class_attribute(module: Module) -> Iterator[int]:
    """A list, a dict or a set is assigned in the body of a class, so all its instances share it."""
    for node in [*module.by_type[ast.Assign], *module.by_type[ast.AnnAssign]]:
        target = written(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        if isinstance(module.inside(node, SCOPE), ast.ClassDef) and not target.startswith("__"):
            yield node.lineno


def mutable_default(module: Module) -> Iterator[int]:
    """The default of a parameter is a list, a dict or a set, which all calls share."""
    for arguments in module.by_type[ast.arguments]:
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if isinstance(default, ast.List | ast.Dict | ast.Set):
                yield default.lineno


def check_then_use(module: Module) -> Iterator[int]:
    """A path is looked up first, and opened, changed or read later in the same function; it can change in between."""
    for call in module.by_type[ast.Call]:
        if LOOKED_UP.fullmatch(written(call.func)) and call.args:
            path, scope = ast.unparse(call.args[0]), module.inside(call, FUNCTION)
            later = own_nodes(scope.body if isinstance(scope.body, list) else [scope.body])
            later = (node for node in later if isinstance(node, ast.Call) and node.lineno >= call.lineno)
            uses = (node for node in later if USES.fullmatch(written(node.func)))
            if any(path in map(ast.unparse, node.args) for node in uses):
                yield call.lineno


def regex_compiled_in_function(module: Module) -> Iterator[int]:
    """A function compiles a regular expression anew at each call."""
    for call in module.calls("re.compile"):
        if module.inside(call, FUNCTION) is not module.tree:
            yield call.lineno


def import_in_function(module: Module) -> Iterator[int]:
    """An import stands in a function, so that a missing module shows only when the function is called."""
    for node in [*module.by_type[ast.Import], *module.by_type[ast.ImportFrom]]:
        if module.inside(node, FUNCTION) is not module.tree:
            yield node.lineno


def shadowed_builtin(module: Module) -> Iterator[int]:
    """A parameter, or a variable outside of a class body, takes the name of a built-in."""
    for node in module.by_type[ast.arg]:
        if node.arg in BUILTINS:
            yield node.lineno
    for node in module.by_type[ast.Name]:
        is_set = node.id in BUILTINS and isinstance(node.ctx, ast.Store)
        if is_set and not isinstance(module.inside(node, SCOPE), ast.ClassDef):
            yield node.lineno


RULES: dict[Callable[[Module], Iterator[int]], str] = {
    use_of_eval: r"\b(eval|exec)\s*\(",
    password_without_value: rf"(?i){SECRET}['\"\])]*\s*=(?!=)",
    bare_except: r"\bexcept\s*:|\bexcept\b.*\b(Base)?Exception\b",
    assert_as_check: r"\bassert\b",
    temporary_file_by_name: r"/tmp\b|mktemp|te?mpnam",
    unclosed_file: r"^(?!\s*(with|def)\b).*(?<![\w.])open\(",
    print_in_function: r"\bprint\(",
    mutable_class_attribute: r"^    \w+\s*=\s*(\[|\{|dict\(|list\(|set\()",
    mutable_default: r"\bdef\b.*=\s*[\[{(]|^\s+\w+=(\[\]|\{\}|\(\)),?",
    check_then_use: r"\bos\.(path\.(exists|isfile|isdir)|access)\(",
    regex_compiled_in_function: r"\bre\.compile\(",
    import_in_function: r"^    (import\s+\w+|from\s+[\w.]+\s+import)\b",
    shadowed_builtin: rf"(?<![\w.])({'|'.join(sorted(BUILTINS))})\s*=(?!=)",
}
SMELLS = {rule.__name__: rule for rule in RULES}


# From sources to files


def find_detections(source: str, file: str) -> list[dict]:
    """What the rules find in one source, from top to bottom, with labels.

    Raises:  SyntaxError or ValueError when the source does not parse.
    """
    lines = source.split("\n")  # as the parser counts: str.splitlines also ends lines at form feeds
    found = [(n, rule) for rule, pattern in RULES.items() for n in hits(pattern, lines)]
    if not found:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old modules
        module = Module(source)
    real = {rule: set(rule(module)) for rule in {rule for _, rule in found}}
    return [
        {
            "smell": rule.__name__,
            "file": file,
            "content": lines[n - 1].strip(),
            "line": n,
            "with_context": show_context(lines, n),
            "label": "TP" if n in real[rule] else "FP",
        }
        for n, rule in sorted(found, key=lambda hit: (hit[0], hit[1].__name__))
    ]


def hits(pattern: str, lines: list[str]) -> list[int]:
    """The numbers of the lines that a pattern is found in, from 1."""
    search = re.compile(pattern).search
    return [n for n, line in enumerate(lines, 1) if search(line)]


def show_context(lines: list[str], number: int) -> str:
    """The lines around a line, without their indents; the line itself as it is, with its number."""
    start, end = max(1, number - CONTEXT_LINES), min(len(lines), number + CONTEXT_LINES)
    return "\n".join(
        f"{n}: {lines[n - 1]}" if n == number else lines[n - 1].strip() for n in range(start, end + 1)
    )


def drop_copies(rows: list[dict]) -> list[dict]:
    """The rows without those whose context is a near-duplicate of one in another file that has more such rows."""
    texts = [re.sub(r"^\d+: ", "", row["with_context"], flags=re.MULTILINE) for row in rows]
    groups = group_near_duplicates(texts)
    files = defaultdict(Counter)
    for row, group in zip(rows, groups, strict=True):
        files[group][row["file"]] += 1
    chosen = {group: min(count, key=lambda file: (-count[file], file)) for group, count in files.items()}
    return [row for row, group in zip(rows, groups, strict=True) if row["file"] == chosen[group]]


def read_detections(root: Path) -> tuple[list[dict], dict]:
    """All findings under `root`; how many files were read, and which could not be parsed."""
    rows, not_parsed = [], []
    sources = list_sources(root)
    for _, path in sources:
        try:
            source = importlib.util.decode_source((root / path).read_bytes())
            rows += find_detections(source, path.as_posix())
        except (SyntaxError, ValueError, OSError):
            not_parsed.append(path.as_posix())
    return rows, {"read": len(sources) - len(not_parsed), "not_parsed": not_parsed}


def build(root: Path, seed: int) -> tuple[dict[str, list[dict]], dict]:
    """The rows of each split, and their summary."""
    found, files = read_detections(root)
    kept = drop_copies(found)
    rng, rows = random.Random(seed), []
    for smell in SMELLS:
        own = [row for row in kept if row["smell"] == smell]
        rows += own if len(own) <= MOST_OF_A_RULE else rng.sample(own, MOST_OF_A_RULE)
    rows.sort(key=lambda row: (row["file"], row["line"], row["smell"]))
    if len({row["file"] for row in rows}) < FEWEST_FILES or len({row["label"] for row in rows}) < 2:
        raise UserError(
            f"{root}: this standard library gives {len(rows)} findings, too few. "
            "Use a Python that has all of its standard library as .py files."
        )
    number = {file: i for i, file in enumerate(sorted({row["file"] for row in rows}))}
    names = [[f"{row['smell']} {row['label']}"] for row in rows]
    chosen = split_by_group([number[row["file"]] for row in rows], names, seed)
    meanings = {smell: rule.__doc__ for smell, rule in SMELLS.items()}
    splits = {
        name: [add_fields(rows[i], ["content"], meanings)[0] for i in own] for name, own in chosen.items()
    }
    counts = {split: Counter((row["smell"], row["label"]) for row in own) for split, own in splits.items()}
    summary = {
        "python": platform.python_version(),
        "seed": seed,
        "rows": {"all": len(rows)} | {split: len(own) for split, own in splits.items()},
        "smells": {
            smell: {label: {split: counts[split][smell, label] for split in splits} for label in ("TP", "FP")}
            for smell in SMELLS
        },
        "dropped": {
            "near_duplicates": len(found) - len(kept),
            "over_the_most_of_a_rule": len(kept) - len(rows),
        },
        "files": files,
    }
    return splits, summary


def main(argv: list[str] | None = None) -> dict:
    """Write the rows; returns what stands in their summary."""
    parser = argparse.ArgumentParser(
        prog="python -m data.smells",
        description="Write train, validation and test rows: findings in this Python's own library, real or not.",
    )
    parser.add_argument("--output_dir", default="rows/smells", help="folder to write to, default rows/smells")
    parser.add_argument("--seed", type=int, default=0, help="which rows go to which split, and in what order")
    args = parser.parse_args(argv)
    if not use_of_eval.__doc__:
        raise UserError(
            "python -OO drops the docstrings that the prompts are made of; run python without -OO"
        )

    splits, summary = build(Path(sysconfig.get_path("stdlib")), args.seed)
    summary = write_folder(Path(args.output_dir), splits, summary)

    files, dropped = summary["files"], summary["dropped"]
    print(f"Python {summary['python']}: {files['read']} files read, {len(files['not_parsed'])} not parsed")
    print("rows     " + ", ".join(f"{name} {count}" for name, count in summary["rows"].items()))
    print("dropped  " + ", ".join(f"{name} {count}" for name, count in dropped.items()) + "\n")
    table = []
    for smell, counts in summary["smells"].items():
        cells = {f"{split} {label}": counts[label][split] for split in splits for label in ("TP", "FP")}
        real, all_rows = sum(counts["TP"].values()), sum(sum(count.values()) for count in counts.values())
        table.append((smell, {"rows": all_rows, "TP_frac": real / all_rows if all_rows else None} | cells))
    print(format_table(table, list(table[0][1])))
    result = {"output_dir": args.output_dir, "rows": summary["rows"]}
    print(json.dumps(result))
    return summary | {"output_dir": args.output_dir}


if __name__ == "__main__":
    run_main(main)
