"""Built-in data: the standard library's docstrings, labelled by package or by what their code does.

    python -m data.docstrings                   # one of 16 packages           -> rows/docstrings
    python -m data.docstrings --task traits     # which facts of the code hold -> rows/docstring_traits

Real text that every Python has: sources are read and parsed, never imported; test folders are left out. Each
run of white space, line breaks included, becomes one space, and texts under MIN_WORDS words are dropped. Neither
near-duplicates nor the docstrings of one class are ever divided between the splits.

`package` takes modules, classes and functions. The label is the top-level package or module (`email`,
`tarfile`; `_pydecimal`, the Python code of `decimal`, counts as `decimal`): the NUM_CLASSES with most rows.

`traits` takes classes and functions of all packages. The labels are read from the syntax tree; what stands in
a nested function, class or lambda is not the outer function's, and for a class only the last four can hold:

    returns             has a `return` of something other than None
    raises              has a `raise`
    yields              has a `yield`
    defaults            a parameter has a default
    keyword_arguments   takes **kwargs, or parameters given by keyword only
    variable_arguments  takes *args
    method              stands in the body of a class
    async               is an `async def`
    decorated           has a decorator
    private             its name begins with an underscore (but is not like `__init__`)
    special             its name is like `__init__`
    class               is a class

A trait that holds for under MIN_TRAIT_SHARE of the rows is left out; summary.json names it (3.11: async). The
same Python version gives the same files, if its standard library is whole: some Linux packages hold a part.
"""

import ast
import hashlib
import json
import os
import platform
import sys
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError, run_main
from core.flags import Parser, number
from data.splits import group_near_duplicates, join_groups, split_by_group, write_files

NUM_CLASSES = 16
MIN_WORDS = 6  # measured (this file, 3.11.7, 2026-11-20): leaves 3,983 rows of 16 packages; 3 leaves 4,508
MIN_TRAIT_SHARE = 0.01
TEST_FOLDERS = {"test", "tests", "idle_test"}
FOLDERS = {"package": "rows/docstrings", "traits": "rows/docstring_traits"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITION = (*FUNCTION, ast.ClassDef)
TRAITS = ("returns", "raises", "yields", "defaults", "keyword_arguments", "variable_arguments")
TRAITS += ("method", "async", "decorated", "private", "special", "class")
NO_PARAMETERS = ast.parse("lambda: 0").body[0].value.args


class Docstring(NamedTuple):
    text: str
    package: str
    traits: dict[str, int] | None  # None for a module
    owner: str = ""  # the outermost class that it stands in, with its file; "" outside classes


# Reading the standard library


def list_sources(root: Path) -> list[tuple[str, Path]]:
    """Package and path of each Python file of the standard library under `root`, sorted by path."""
    paths = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name.isidentifier() and name not in TEST_FOLDERS]
        paths += [Path(folder, name).relative_to(root) for name in files if name.endswith(".py")]
    paths = [path for path in paths if path.parts[0].removesuffix(".py") in sys.stdlib_module_names]
    names = {path.parts[0].removesuffix(".py") for path in paths}
    sources = []
    for path in sorted(paths, key=lambda path: path.parts):
        name = path.parts[0].removesuffix(".py")
        public = name.removeprefix("_py")  # _pydecimal, _pydatetime, _pyio stand in for compiled modules
        sources.append((public if public in names else name, path))
    return sources


def own_nodes(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function's own body, without those of nested functions, classes and lambdas."""
    stack: list[ast.AST] = list(function.body)
    while stack:
        node = stack.pop()
        if not isinstance(node, (*DEFINITION, ast.Lambda)):
            yield node
            stack.extend(ast.iter_child_nodes(node))


def find_traits(node: ast.AST, in_class: bool) -> dict[str, int]:
    """The TRAITS of a function or a class as 0/1."""
    is_function = isinstance(node, FUNCTION)
    own = list(own_nodes(node)) if is_function else []
    args = node.args if is_function else NO_PARAMETERS
    special = node.name.startswith("__") and node.name.endswith("__")
    returned = [n.value for n in own if isinstance(n, ast.Return) and n.value is not None]
    facts = {
        "returns": any(not isinstance(v, ast.Constant) or v.value is not None for v in returned),
        "raises": any(isinstance(n, ast.Raise) for n in own),
        "yields": any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in own),
        "defaults": bool(args.defaults) or any(default is not None for default in args.kw_defaults),
        "keyword_arguments": bool(args.kwonlyargs) or args.kwarg is not None,
        "variable_arguments": args.vararg is not None,
        "method": is_function and in_class,
        "async": isinstance(node, ast.AsyncFunctionDef),
        "decorated": bool(node.decorator_list),
        "private": node.name.startswith("_") and not special,
        "special": special,
        "class": not is_function,
    }
    return {name: int(facts[name]) for name in TRAITS}


def parse_source(source: str | bytes, package: str, file: str = "") -> list[Docstring]:
    """The docstrings of one file, from top to bottom; `file` tells classes of the same name apart.

    Raises:  SyntaxError or ValueError when the file does not parse.
    """
    found = []

    def visit(node: ast.AST, in_class: bool, owner: str) -> None:
        is_definition = isinstance(node, DEFINITION)
        if isinstance(node, ast.ClassDef):
            owner = owner or f"{file}:{node.name}"
        if is_definition or isinstance(node, ast.Module):
            text = " ".join((ast.get_docstring(node) or "").split())
            if text:
                traits = find_traits(node, in_class) if is_definition else None
                found.append(Docstring(text, package, traits, owner))
            in_class = isinstance(node, ast.ClassDef)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
                visit(child, in_class, owner)  # inside `if` and `try` a method is still a method

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old modules
        visit(ast.parse(source), False, "")
    return found


def read_docstrings(root: Path) -> tuple[list[Docstring], dict]:
    """All docstrings under `root`; how many files were read, and which could not be parsed."""
    docstrings, not_parsed = [], []
    sources = list_sources(root)
    for package, path in sources:
        try:
            docstrings += parse_source((root / path).read_bytes(), package, path.as_posix())
        except (SyntaxError, ValueError, OSError):
            not_parsed.append(path.as_posix())
    return docstrings, {"read": len(sources) - len(not_parsed), "not_parsed": not_parsed}


# Duplicates


def drop_duplicates(
    docstrings: list[Docstring], label: Callable[[Docstring], object]
) -> tuple[list[Docstring], int, int]:
    """One row for each text, sorted by text, and how many were dropped as duplicates and as ambiguous.

    Texts are the same when they differ in case and white space only. One with several labels is ambiguous: no
    row of it is kept, as any choice among its labels would be made up.
    """
    same = defaultdict(list)
    for row in docstrings:
        same[" ".join(row.text.lower().split())].append(row)
    kept, ambiguous = [], 0
    for key in sorted(same):
        if all(label(row) == label(same[key][0]) for row in same[key]):
            kept.append(same[key][0])
        else:
            ambiguous += len(same[key])
    return kept, len(docstrings) - ambiguous - len(kept), ambiguous


# From docstrings to files


def choose_rows(
    docstrings: list[Docstring], task: str
) -> tuple[list[dict], list[list[str]], list[str], dict]:
    """The rows of a task, for each the names to keep level and its owner, and what was dropped and why."""
    dropped = {"modules": sum(row.traits is None for row in docstrings)} if task == "traits" else {}
    rows = [row for row in docstrings if task == "package" or row.traits is not None]
    long = [row for row in rows if len(row.text.split()) >= MIN_WORDS]
    dropped["too_short"] = len(rows) - len(long)
    label = (lambda row: row.package) if task == "package" else (lambda row: row.traits)
    rows, dropped["duplicates"], dropped["ambiguous"] = drop_duplicates(long, label)
    if task == "package":
        count = Counter(row.package for row in rows)
        largest = sorted(count, key=lambda name: (-count[name], name))[:NUM_CLASSES]
        kept = [row for row in rows if row.package in largest]
        dropped["other_packages"] = len(rows) - len(kept)
        owners = [row.owner for row in kept]
        return (
            [{"text": r.text, "label": r.package} for r in kept],
            [[r.package] for r in kept],
            owners,
            dropped,
        )
    count = Counter(name for row in rows for name, holds in row.traits.items() if holds)
    traits = [name for name in TRAITS if count[name] >= MIN_TRAIT_SHARE * len(rows)]
    chosen = [{"text": row.text, "labels": {name: row.traits[name] for name in traits}} for row in rows]
    names = [["row"] + [name for name in traits if row.traits[name]] for row in rows]
    return chosen, names, [row.owner for row in rows], dropped


def build(root: Path, task: str, seed: int) -> tuple[dict[str, list[dict]], dict]:
    """The rows of each split, and their summary."""
    docstrings, files = read_docstrings(root)
    rows, names, owners, dropped = choose_rows(docstrings, task)
    classes = sorted({name for row in names for name in row} - {"row"})
    if len(classes) < (NUM_CLASSES if task == "package" else 2):
        raise UserError(
            f"{root}: this standard library gives {len(rows)} rows of {len(classes)} classes, too few for "
            f"--task {task}. Use a Python that has all of its standard library as .py files."
        )
    groups = group_near_duplicates([row["text"] for row in rows])
    splits = split_by_group(join_groups(groups, owners), names, seed)
    counts = {split: Counter(name for i in chosen for name in names[i]) for split, chosen in splits.items()}
    lengths = sorted(len(row["text"].split()) for row in rows)
    sizes = Counter(groups)
    summary = {
        "task": task,
        "python": platform.python_version(),
        "seed": seed,
        "rows": {"all": len(rows)} | {split: len(chosen) for split, chosen in splits.items()},
        "classes": {name: {split: counts[split][name] for split in splits} for name in classes},
        "words": {f"p{q}": lengths[q * (len(lengths) - 1) // 100] for q in (50, 90)} | {"max": lengths[-1]},
        "near_duplicates": {
            "rows": sum(size for size in sizes.values() if size > 1),
            "largest_group": max(sizes.values()),
        },
        "left_out_traits": [n for n in TRAITS if task == "traits" and n not in classes],
        "dropped": dropped,
        "files": files,
    }
    return {split: [rows[i] for i in chosen] for split, chosen in splits.items()}, summary


def write_folder(output_dir: Path, splits: dict[str, list[dict]], summary: dict) -> dict:
    """The summary with the hash of each file, once all are on disk, summary.json last."""
    texts = {
        f"{split}.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        for split, rows in splits.items()
    }
    summary = summary | {"sha256": {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}}
    texts["summary.json"] = (json.dumps(summary, indent=2) + "\n").encode()
    write_files(output_dir, texts, "--output_dir")
    return summary


def main(argv: list[str] | None = None) -> dict:
    """Write the rows; returns what stands in their report."""
    parser = Parser("Write train, validation and test rows made of this Python's own docstrings.")
    parser.prog = "python -m data.docstrings"
    task_help = "package: one of the 16 packages with most docstrings; traits: which facts of the code hold"
    folder_help = f"folder to write to, default {FOLDERS['package']} or {FOLDERS['traits']}"
    parser.add_argument("--task", choices=list(FOLDERS), default="package", help=task_help)
    parser.add_argument("--output_dir", metavar="DIR", help=folder_help)
    seed_help = "which rows go to which split, and in what order"
    parser.add_argument("--seed", type=number(int, 0), default=0, help=seed_help)
    args = parser.parse_args(argv)

    output_dir = Path(args.output_dir or FOLDERS[args.task])
    splits, summary = build(Path(sysconfig.get_path("stdlib")), args.task, args.seed)
    summary = write_folder(output_dir, splits, summary)

    rows, words, near, files = (summary[key] for key in ("rows", "words", "near_duplicates", "files"))
    print(f"Python {summary['python']}: {files['read']} files read, {len(files['not_parsed'])} not parsed")
    print("rows     " + ", ".join(f"{name} {count}" for name, count in rows.items()))
    print("words    " + ", ".join(f"{name} {count}" for name, count in words.items()))
    print("dropped  " + ", ".join(f"{name} {count}" for name, count in summary["dropped"].items()))
    print(f"near-duplicates kept on one side: {near['rows']} rows, largest group {near['largest_group']}")
    for name, counts in sorted(summary["classes"].items(), key=lambda item: -item[1]["train"]):
        print(f"  {name:18} " + "  ".join(f"{split} {count:4}" for split, count in counts.items()))
    print(f"written to {output_dir}")
    return summary | {"output_dir": str(output_dir)}


if __name__ == "__main__":
    run_main(main)
