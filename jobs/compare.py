"""Train a grid of models, label sources and seeds, then one table and one picture with intervals and tests.

    make master MODELS=bert SEEDS="0 1 2"                          # the built-in rows, a fresh clone
    make master MODELS="bert t5" LLM="gemini-1.5-flash-8b" STRATEGY="optimized original" GPUS=0,1
    python -m jobs.compare --models bert roberta=bert:/models/roberta --train_data a.jsonl --val_data b.jsonl
    python -m jobs.compare --table_only runs/minilm/trec/one runs/minilm/trec/two

Every run is a `python train.py ...` of its own in <output_dir>/<model>/<source>/<strategy>_<rows>/seed<k> (source:
who gave the labels; strategy: how it was asked; rows: training rows); what it prints is in train.log there. A
finished run is not trained again, an unfinished one is resumed, a failed one is reported and the others go on (exit
status 1). Ctrl-C stops what runs; the same command goes on from there. The grid is models x (llms x strategies, or
one data set) x seeds; silver labels are those of `python -m data.silver`:
<data_dir>/<strategy>_silver/<llm>/train.json and val.json, or <data_dir>/<strategy>/<llm>/.

--models takes words of FAMILIES, or name=architecture:model[:more flags], say
roberta=bert:/models/roberta:@presets/roberta-base. --flags="--batch_size 16" (with the = sign) is for every run.
Written to <output_dir>/comparison/<name>/: comparison.md, .png, .json, TensorBoard's HParams. The last line is JSON.
"""

import argparse
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import UserError, disk_errors, run_main
from core.flags import Parser, number
from core.results_table import format_table
from core.runs import git_commit, slug, versions
from jobs.cells import SCRIPT, Cell, check_cell, train_all
from jobs.comparison import COSTS, compare_runs, count_rows
from jobs.comparison_files import millions, sentences, write_comparison

# a word of --models: (architecture, model, preset)
FAMILIES = {
    "bert": ("bert", "builtin:minilm", "minilm"),
    "t5": ("t5", "google/flan-t5-small", "flan-t5-small"),
    "causal": ("causal", "codellama/CodeLlama-7b-hf", "codellama-7b"),
}
# What auto means for --epochs and --learning_rate, by architecture, where neither the preset nor this table says it:
# train.py's own, by family, size, LoRA and number of rows (encoders: 3 epochs or more; 3e-5 for base, 1e-5 for large,
# 1e-4 below: core/schedule.py). A rate in this table is one for all weights, so it is left out with --lora_rank.
AUTO = {
    "bert": {},
    "t5": {"--epochs": "20", "--learning_rate": "3e-5"},  # the issue's; --patience ends it earlier
    "causal": {"--epochs": "3"},  # assumption: as encoders
}
PATIENCE = ["--patience", "3"]
# what the grid itself gives to a run
GIVEN = ("train_data", "val_data", "test_data", "output_dir", "seed", "resume", "dry_run")
MOST_SENTENCES = 20


@dataclass(frozen=True)
class Source:
    """Training and validation rows, and the two parts of a folder's name that say where they are from."""

    name: str
    data: str
    train: str
    val: str


# fmt: off
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked as far as they can be without the data."""
    parser = Parser(__doc__)
    parser.fromfile_prefix_chars = None  # @presets/NAME is train.py's to read
    flag = parser.add_argument_group("grid").add_argument
    flag("--models", nargs="+", default=[], metavar="MODEL",
         help=f"of {', '.join(FAMILIES)}, or name=architecture:model[:more flags]")
    flag("--llms", nargs="+", default=[], metavar="NAME", help="who gave the silver labels; with --strategies")
    flag("--strategies", nargs="+", default=[], metavar="NAME", help="how it was asked, say original optimized")
    flag("--data_dir", default="data", metavar="DIR", help="holds <strategy>_silver/<llm>/train.json, val.json")
    flag("--train_data", default="", metavar="FILE", help="instead of silver labels: one data set")
    flag("--val_data", default="", metavar="FILE", help="of --train_data: rows that choose the best step")
    flag("--test_data", default="", metavar="FILE",
         help="rows that every run is scored on; default: each on its validation rows")
    flag("--seeds", nargs="+", type=number(int, 0), default=[0], metavar="N", help="one run each, for the means")
    flag = parser.add_argument_group("training").add_argument
    flag("--epochs", type=number(float, 1e-3, auto=True), default="auto",
         help="passes over the training rows; auto: by family")
    flag("--learning_rate", type=number(float, 0, auto=True), default="auto", help="peak; auto: by family")
    flag("--flags", default="", help=f"more of train.py's, one string; {' '.join(PATIENCE)} unless set here")
    flag("--gpus", default="", metavar="0,1", help="one run at a time on each; default: one run at a time")
    flag = parser.add_argument_group("output").add_argument
    flag("--output_dir", default="runs", metavar="DIR", help="where the runs and comparison/ are")
    flag("--name", default="", help="of the comparison's folder; default: of the models and llms")
    flag("--table_only", nargs="+", default=[], metavar="RUN", help="train nothing: compare these finished runs")
    args = parser.parse_args(argv)
    check_args(args)
    return args
# fmt: on


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for flags that do not go together."""
    for name in ("models", "llms", "strategies", "seeds", "table_only"):
        values = getattr(args, name)
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise UserError(f"--{name}: {twice[0]} is given twice")
    if args.table_only:
        if args.models:
            raise UserError("--table_only: trains nothing; drop --models")
        return
    if not args.models:
        raise UserError(
            f"--models: none given; expected some of {', '.join(FAMILIES)}, or name=architecture:model"
        )
    is_plain = bool(args.train_data or args.val_data)
    if is_plain and (args.llms or args.strategies):
        raise UserError("--train_data: is one data set; it does not go with --llms and --strategies")
    if is_plain and not (args.train_data and args.val_data):
        raise UserError("--train_data, --val_data: expected both")
    if not is_plain and not (args.llms and args.strategies):
        raise UserError("expected rows: --llms and --strategies (both), or --train_data and --val_data")
    args.gpus = args.gpus.split(",") if args.gpus else []
    check_gpus(args.gpus)


def check_gpus(gpus: list[str]) -> None:
    """Raise UserError unless these are different devices of this machine (numbers, or names CUDA knows)."""
    flag, there = f"--gpus {','.join(gpus)}", torch.cuda.device_count() if gpus else 0
    if gpus and not there:
        raise UserError(f"{flag}: no CUDA device is visible; drop the flag to train on the CPU")
    if not all(gpus) or len(set(gpus)) < len(gpus):
        raise UserError(f"{flag}: expected different numbers with commas between, say 0,1")
    beyond = [gpu for gpu in gpus if gpu.isdecimal() and int(gpu) >= there]
    if beyond and "CUDA_VISIBLE_DEVICES" not in os.environ:
        raise UserError(f"{flag}: there is no device {beyond[0]}; this machine has 0 to {there - 1}")


def model_flags(word: str, args: argparse.Namespace) -> tuple[str, list[str]]:
    """A model's name in folders, and its flags for train.py. Raises UserError.

    Later flags win: what auto means, the model's own (a preset), its weights, what was asked for, --flags.
    """
    name, _, given = word.partition("=")
    if not given and name not in FAMILIES:
        raise UserError(
            f"--models {word}: expected one of {', '.join(FAMILIES)}, or name=architecture:model[:more flags]"
        )
    if given:
        architecture, _, rest = given.partition(":")
        model, *more = re.split(r":(?=--|@)", rest, maxsplit=1)
        if architecture not in AUTO or not model or slug(name) != name:
            raise UserError(
                f"--models {word}: expected name=architecture:model, with a name of letters, digits, . - and _, and "
                f"one of the architectures {', '.join(AUTO)}"
            )
        own = words(more[0], f"--models {word}") if more else []
    else:
        architecture, model, preset = FAMILIES[name]
        own = [f"@{SCRIPT.parent / 'presets' / preset}"]
    auto = dict(AUTO[architecture])
    every = words(args.flags, "--flags")
    if "--lora_rank" in [*own, *every]:
        auto.pop("--learning_rate", None)
    flags = [*(word for pair in auto.items() for word in pair), *PATIENCE, *own]
    flags += ["--architecture", architecture, "--model_name", model]
    for flag in ("epochs", "learning_rate"):
        if getattr(args, flag) != "auto":
            flags += [f"--{flag}", str(getattr(args, flag))]
    return name, [*flags, *every]


def words(text: str, flag: str) -> list[str]:
    """A string of flags as a list. Raises UserError for one that the grid gives."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{flag}: {text!r} cannot be read: {error}") from None
    taken = [
        word for word in found if word.partition("=")[0].removeprefix("--") in GIVEN and word[:2] == "--"
    ]
    if taken:
        raise UserError(f"{flag}: {taken[0]} is given by the grid; expected other flags of train.py")
    return found


def find_sources(args: argparse.Namespace) -> list[Source]:
    """The data sets of the grid. Raises UserError with all that are missing."""
    if args.train_data:
        return [Source(data_name(args.train_data), "train", args.train_data, args.val_data)]
    found, missing = [], []
    for llm in args.llms:
        for strategy in args.strategies:
            folders = [Path(args.data_dir) / name / llm for name in (strategy, f"{strategy}_silver")]
            folder = next((folder for folder in folders if folder.is_dir()), folders[1])
            files = [first_file(folder, names) for names in (("train",), ("val", "validation"))]
            if all(files):
                found.append(Source(slug(llm), slug(strategy), *files))
            else:
                missing.append(f"{folder}/{'val' if files[0] else 'train'}.json")
    if missing:
        raise UserError(
            f"--data_dir {args.data_dir}: no such file: {', '.join(missing[:10])}; expected silver labels as "
            "`python -m data.silver` writes them, <data_dir>/<strategy>_silver/<llm>/train.json and val.json"
        )
    return found


def data_name(train_data: str) -> str:
    """What a data set is called in folders, as train.py calls it: its folder, or the file where that says more."""
    path = Path(train_data).resolve()
    return slug(path.parent.name if path.stem in ("train", "training") else path.stem)


def first_file(folder: Path, names: tuple[str, ...]) -> str:
    """The first of the files NAME.json and NAME.jsonl that is there, or ""."""
    files = [folder / f"{name}{end}" for name in names for end in (".json", ".jsonl")]
    return next((str(file) for file in files if file.is_file()), "")


def make_cells(args: argparse.Namespace) -> list[Cell]:
    """All runs of the grid, seed by seed, so that every setting has one before any has two. Raises UserError."""
    cells = []
    models = dict(model_flags(word, args) for word in args.models)
    sources = find_sources(args)
    num_rows = {source: count_rows(source.train, "--train_data") for source in sources}
    for path, flag in [*((source.val, "--val_data") for source in sources), (args.test_data, "--test_data")]:
        if path:
            count_rows(path, flag)  # raises before anything is trained
    for seed in args.seeds:
        for source in sources:
            data = ["--train_data", source.train, "--val_data", source.val]
            data += ["--test_data", args.test_data] if args.test_data else []
            for model, flags in models.items():
                folder = (
                    Path(args.output_dir)
                    / model
                    / source.name
                    / f"{source.data}_{num_rows[source]}"
                    / f"seed{seed}"
                )
                own = ["--seed", str(seed), "--output_dir", str(folder)]
                cells.append(Cell(folder, (*flags, *data, *own)))
    if len({cell.folder for cell in cells}) < len(cells):
        raise UserError("--models, --llms, --strategies: two of them give the same run folder; rename one")
    return cells


# -- all of it --------------------------------------------------------------------------------------------------


def run_grid(args: argparse.Namespace) -> tuple[list[Path], dict[Path, str]]:
    """Train what is not trained yet. Returns the folders of the finished runs, and why the others are not."""
    cells = make_cells(args)
    status = {cell: check_cell(cell) for cell in cells}
    todo = [cell for cell in cells if status[cell] != "finished"]
    resumed = sum(status[cell] == "running" for cell in cells)
    counts = f"{len(cells) - len(todo)} finished, {resumed} to be resumed, {len(todo) - resumed} new"
    how = f"one at a time on each of the GPUs {', '.join(args.gpus)}" if args.gpus else "one at a time"
    print(f"{len(cells)} run{'s' * (len(cells) > 1)}: {counts}; {how}")
    failed = train_all(todo, args.gpus)
    return [cell.folder for cell in cells if cell.folder not in failed], failed


def default_name(args: argparse.Namespace) -> str:
    """The models and where their rows are from; table for given runs."""
    if args.table_only:
        return "table"
    rows = args.llms or [data_name(args.train_data)]
    return "-".join([*(word.partition("=")[0] for word in args.models), *rows])[:80]


def main(argv: list[str] | None = None) -> dict:
    """Train the grid, write the comparison, print the table. Returns what comparison.json holds, and its folder."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    name = slug(args.name or "-".join([*(w.partition("=")[0] for w in args.models), *args.llms]) or "table")[
        :80
    ]
    folder = Path(args.output_dir) / "comparison" / name
    with disk_errors(args.output_dir, "--output_dir"):
        done, failed = ([Path(run) for run in args.table_only], {}) if args.table_only else run_grid(args)
        result = {"name": name, "command": shlex.join(["python", "-m", "jobs.compare", *argv])}
        result |= compare_runs(done) | {"failed": {str(run): why for run, why in failed.items()}}
        result |= {"commit": git_commit(), "versions": versions()}
        write_comparison(folder, result)
    report(result, folder)
    return result | {"folder": str(folder)}


def report(result: dict, folder: Path) -> None:
    """Print the table, what the tests say, what failed, and the line of JSON."""
    table = []
    for line in result["lines"]:
        shown = {name: line[name] for name in ("accuracy", "macro_f1")}
        shown["macro_f1_spread"] = line["macro_f1_spread"] if len(line["seeds"]) > 1 else None
        shown["macro_f1_95"] = f"{line['macro_f1_low']:.3f} to {line['macro_f1_high']:.3f}"
        shown |= {name: f"{line[name]:,.1f}" if name == "minutes" else f"{line[name]:,.0f}" for name in COSTS}
        shown["rows"] = line["rows"]
        shown |= {name: millions(line[name]) for name in ("num_parameters", "num_trained")}
        table.append((f"{line['number']} {line['label']}", shown))
    columns = [
        "accuracy",
        "macro_f1",
        "macro_f1_95",
        "macro_f1_spread",
        *["rows"] * (len(result["rows"]) > 1),
        *COSTS,
    ]
    print("\n" + format_table(table, columns) + "\n" if table else "\nno run has finished\n")
    told = sentences(result)
    left_out = [f"... and {len(told) - MOST_SENTENCES} more in comparison.md"] * (len(told) > MOST_SENTENCES)
    failures = [f"FAILED {run}: {why}" for run, why in result["failed"].items()]
    for text in [*told[:MOST_SENTENCES], *left_out, *failures]:
        print(text)
    print("\n" * bool(told or failures) + f"table, tests, picture: {folder}/comparison.md, comparison.png")
    short = {
        line["label"]: {name: line[name] for name in ("accuracy", "macro_f1")} for line in result["lines"]
    }
    print(json.dumps({"comparison": str(folder), "lines": short, "failed": result["failed"]}))


def shell() -> None:
    """main, with exit status 1 when a run failed."""
    if main()["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    run_main(shell)
