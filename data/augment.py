"""More training rows out of those there are: words dropped, swapped, replaced, whole texts said in other words.

    python -m data.augment --input rows/mine/train.jsonl --output rows/mine/train_aug.jsonl                # drop, swap
    python -m data.augment ... --methods drop,swap,nearest --model_name builtin:minilm --copies 2 --balance
    python -m data.augment ... --methods mask --model_name bert-base-uncased --check_run runs/mine --exclude dev.jsonl
    python -m data.augment ... --methods paraphrase --paraphrases said_otherwise.jsonl

drop        leaves out --rate of the words
swap        exchanges words that stand at most --window apart
nearest     replaces words by one of --top_k with the nearest input embeddings of --model_name, whole words alone
mask        replaces words by one of --top_k that the masked-LM head of --model_name finds most probable there
paraphrase  takes texts out of --paraphrases, rows {"source_text", "text"}: those of data.generate --mode paraphrase

Each row gives --copies new ones by each method. mask and nearest leave numbers, contractions and English function
words (negations among them) as they are. The text column alone changes (--change_field names another one of
--text_field a,b, or that of --pair_field); labels and all other fields stay. A new row carries
"augmented": {"method", "copy", "source", "seed"}; source is the line of its row in the input.

The input is a train part: rows that data.split, in the folder beside it, holds out are refused. What is made of a row
that shares --near of its words with a held-out row, or with one of --exclude, or comes near to one, is dropped; so are
copies, and with --check_run what that run labels otherwise. A new row depends on the text it is made of and on --seed,
not on the rows' order (with a BPE vocabulary also on which words the input has: its other pieces may be none).
"""

import argparse
import json
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from core.cache import LabelColumn
from core.errors import UserError, disk_errors, run_main
from core.flags import Parser, number
from core.results_table import format_table
from core.rows import BadRows, RowError, RowFormat, read_rows, sort_names
from core.spent import read_uses, row_hash
from data import augment_checks as checks
from data.augment_checks import Made
from data.augment_words import drop_words, swap_words
from data.held_out import joined, read_held_out, refuse_held_out
from data.masked_words import replace_masked
from data.nearest_words import replace_nearest
from data.split import as_line
from data.split_rows import Table, read_table
from data.splits import NEAR, write_files

METHODS = ("drop", "swap", "nearest", "mask", "paraphrase")
NEED_MODEL = ("nearest", "mask")
EXAMPLES = 5


# fmt: off
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked; methods is a list, change_field is never empty."""
    parser = Parser(__doc__)
    parser.prog = "python -m data.augment"
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="training rows: JSON, JSONL, CSV or TSV, with labels")
    add("--output", required=True, metavar="FILE", help="a .jsonl file: the rows, then the new ones")
    add("--methods", default="drop,swap", metavar="A,B", help=f"of {', '.join(METHODS)} (default: drop,swap)")
    add("--copies", type=number(int, 1), default=1, help="new rows of each row by each method (default: 1)")
    add("--rate", type=number(float, 0.01, 0.9), default=0.15, metavar="SHARE",
        help="of a text's words that a method changes, one at the least (default: 0.15)")
    add("--window", type=number(int, 1), default=1, help="words apart that swap may exchange (default: 1, neighbours)")
    add("--model_name", default="", metavar="NAME",
        help="for nearest any model (builtin:minilm), for mask an encoder with its masked-LM head")
    add("--top_k", type=number(int, 1), default=10, help="words that a replacement is drawn from (default: 10)")
    add("--least_cosine", type=number(float, -1, 1), default=0.45,
        help="nearest: between the embeddings of a word and its replacement (default: 0.45)")
    add("--paraphrases", default="", metavar="FILE", help="rows {source_text, text}, for --methods paraphrase")
    add("--balance", action="store_true", help="new rows only for classes that have fewer than the largest, up to it")
    add("--check_run", default="", metavar="RUN", help="keep what this run of train.py labels as the row is labelled")
    add("--exclude", nargs="+", default=[], metavar="FILE", help="rows (dev, test) that no new row may be near to")
    add("--near", type=number(float, 0.3, 1), default=NEAR, metavar="SHARE",
        help="of words in common from which rows are near (default: 0.7; 1: the same words)")
    add("--only_new", action="store_true", help="write the new rows alone")
    add("--text_field", default="text", help="column of the text; a,b joins columns as lines `name: value`")
    add("--pair_field", default="", help="column of a second text")
    add("--label_field", default="", help="column of the label or labels; default: label or labels")
    add("--change_field", default="", metavar="NAME", help="the column that changes (default: --text_field)")
    add("--device", default=None, help="for mask and --check_run: cuda, cuda:1, cpu; default: what there is")
    add("--seed", type=number(int, 0), default=0, help="of which words change, and into what")
    args = parser.parse_args(argv)
    args.methods = [name.strip() for name in args.methods.split(",")]
    args.change_field = args.change_field or args.text_field
    args.group_fields = []  # none: what read_table asks for
    check_args(args)
    return args
# fmt: on


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    odd = [name for name in args.methods if name not in METHODS]
    if odd or len(set(args.methods)) < len(args.methods):
        raise UserError(
            f"--methods {','.join(args.methods)}: expected different ones of {', '.join(METHODS)}"
        )
    needs = [name for name in args.methods if name in NEED_MODEL]
    if needs and not args.model_name:
        raise UserError(f"--methods {needs[0]}: needs a --model_name (for nearest builtin:minilm serves)")
    if ("paraphrase" in args.methods) != bool(args.paraphrases):
        raise UserError("--methods paraphrase and --paraphrases FILE: give both or none")
    columns = [*args.text_field.split(","), *([args.pair_field] if args.pair_field else [])]
    if args.change_field not in columns:
        raise UserError(f"--change_field {args.change_field}: expected one column, of {', '.join(columns)}")
    if Path(args.output).suffix.lower() != ".jsonl":
        raise UserError(f"--output {args.output}: expected a name that ends in .jsonl")
    if Path(args.output).is_dir():
        raise UserError(f"--output {args.output}: is a folder; give a file")
    for path in (args.input, *args.exclude, args.paraphrases):
        if path and Path(path).resolve() == Path(args.output).resolve():
            raise UserError(f"--output {args.output}: is read, too; give another file")
    if args.input == "-":
        raise UserError("--input -: give a file; the split in its folder says which rows are held out")


# Making


def make_texts(
    method: str, texts: list[str], rngs: list[np.random.Generator], args: argparse.Namespace
) -> list:
    """A new text for each, by one method (not paraphrase); None where it has nothing to change."""
    if method == "nearest":
        return replace_nearest(texts, rngs, args.model_name, args.rate, args.top_k, args.least_cosine)
    if method == "mask":
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return replace_masked(texts, rngs, args.model_name, device, args.rate, args.top_k)
    both = tqdm(zip(texts, rngs, strict=True), method, len(texts), unit=" rows", disable=None, leave=False)
    if method == "drop":
        return [drop_words(text, rng, args.rate) for text, rng in both]
    return [swap_words(text, rng, args.rate, args.window) for text, rng in both]


def read_paraphrases(args: argparse.Namespace) -> dict[int, list[dict]]:
    """What is said instead of each text, by its hash: the column that changes, and "generated" where the row has it.

    They are in an order that is the seed's. Raises: UserError with all bad rows.
    """
    found, bad = {}, BadRows(args.paraphrases)
    for line, row in read_rows(args.paraphrases, bad, "--paraphrases"):
        try:
            source, _ = RowFormat("source_text").text(row)
            text, _ = RowFormat(args.change_field if args.change_field in row else "text").text(row)
        except RowError as error:
            bad.add(line, str(error))
            continue
        origin = {"generated": row["generated"]} if "generated" in row else {}
        found.setdefault(row_hash(source), {}).setdefault(text, {args.change_field: text} | origin)
    bad.raise_if_any()
    return {
        value: [own[text] for text in sorted(own, key=lambda text: row_hash(str(args.seed), text))]
        for value, own in found.items()
    }


def make_rows(table: Table, sources: list[int], args: argparse.Namespace, dropped: Counter) -> list[Made]:
    """--copies new rows of each source by each method, in the order of the sources. Raises UserError."""
    row_format = RowFormat(args.text_field, args.pair_field, args.label_field)
    texts = [str(table.rows[i][args.change_field]) for i in sources]
    made = []
    for method in args.methods:
        owners = [(i, copy) for copy in range(args.copies) for i in sources]
        if method == "paraphrase":
            said = read_paraphrases(args)
            if not said.keys() & {row_hash(text) for text in texts}:
                raise UserError(f"--paraphrases {args.paraphrases}: no source_text is a text of {args.input}")
            own = [said.get(row_hash(text), []) for text in texts]
            news = [says[copy] if copy < len(says) else None for copy in range(args.copies) for says in own]
        else:  # all copies at once: a model is loaded once
            rngs = [row_rng(args.seed, method, copy, table.hashes[i]) for i, copy in owners]
            made_texts = make_texts(method, texts * args.copies, rngs, args)
            news = [None if text is None else {args.change_field: text} for text in made_texts]
        for (i, copy), new in zip(owners, news, strict=True):
            if new is None:
                why = "no paraphrase" if method == "paraphrase" else f"no word that {method} can change"
                dropped[why] += 1
                continue
            about = {"method": method, "copy": copy, "source": table.lines[i], "seed": args.seed}
            row = table.rows[i] | new | {"augmented": about}
            whole = row_format.text(row)
            made.append(Made(row, i, joined(whole), row_hash(*whole)))
    return sorted(made, key=lambda one: one.source)


def row_rng(seed: int, method: str, copy: int, value: int) -> np.random.Generator:
    """The random numbers of one new row: of nothing but these."""
    return np.random.default_rng(row_hash(str(seed), method, str(copy), str(value)))


# Telling


def print_examples(made: list[Made], table: Table, args: argparse.Namespace) -> None:
    """Some made rows below their sources, the methods in turn."""

    def place(one: Made) -> int:
        return row_hash(str(args.seed), "examples", str(one.hash))

    turns = [sorted((one for one in made if method_of(one) == name), key=place) for name in args.methods]
    shown = [one for turn in zip_longest(*turns) for one in turn if one]
    for one in shown[:EXAMPLES]:
        name = f"{method_of(one)}, line {table.lines[one.source]}, {', '.join(table.labels[one.source]) or 'no label'}"
        print(f"{name}\n  was {shorten(str(table.rows[one.source][args.change_field]))}")
        print(f"  now {shorten(str(one.row[args.change_field]))}")


def count_classes(made: list[Made], table: Table) -> list[tuple[str, dict[str, int]]]:
    """For each label how many rows of the input have it, and how many made ones."""
    rows = Counter(name for own in table.labels for name in own)
    new = Counter(name for one in made for name in table.labels[one.source])
    return [(name, {"rows": rows[name], "made": new[name]}) for name in sort_names(rows)]


def method_of(one: Made) -> str:
    """The method that made a row."""
    return one.row["augmented"]["method"]


def shorten(text: str, most: int = 160) -> str:
    """A text on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def main(argv: list[str] | None = None) -> dict:
    """Read, make, check, write; returns what the last line says."""
    args = parse_args(argv)
    row_format = RowFormat(args.text_field, args.pair_field, args.label_field)
    kind, dropped = LabelColumn(), Counter()
    table = read_table(args.input, "--input", args, kind)
    for line, row in zip(table.lines, table.rows, strict=True):
        if "augmented" in row:
            raise UserError(
                f"--input {args.input}: line {line} was made by data.augment; give the rows before that"
            )
    runs = [Path(args.check_run)] if args.check_run else []
    mend = "give the same (--change_field says which column is changed)"
    refuse_held_out(table.hashes, "--input", args.input, row_format, runs, mend)
    held_out = read_held_out(args.input, args.exclude, runs, row_format)
    made = make_rows(table, checks.usable_sources(table, dropped), args, dropped)
    num_tried = len(made)
    made = checks.drop_copies(made, table, dropped)
    made, num_near = checks.drop_near_held_out(made, table, held_out, args.near, dropped)
    if args.check_run:
        made = checks.keep_same_labels(made, table, kind.kind, args, dropped)
    if args.balance:
        keys = [row_hash(str(args.seed), "balance", method_of(one), str(one.hash)) for one in made]
        made = checks.balance(made, table, keys, dropped)
    written = [*([] if args.only_new else table.rows), *(one.row for one in made)]
    with disk_errors(args.output, "--output"):
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    write_files(
        Path(args.output).parent, {Path(args.output).name: b"".join(map(as_line, written))}, "--output"
    )

    methods = {name: sum(method_of(one) == name for one in made) for name in args.methods}
    dropped = {why: n for why, n in dropped.items() if n}
    print_examples(made, table, args)
    print(f"\n{format_table(count_classes(made, table), ['rows', 'made'])}")
    told = ", ".join(f"{methods[name]} by {name}" for name in args.methods)
    print(f"\n{args.input}: {len(table)} rows; {num_tried} made, {len(made)} kept: {told}")
    for why, n in dropped.items():
        print(f"{n:6}  {why}")
    print(f"held out: {held_out.told()}")
    if num_near:
        print(
            f"note: {num_near} rows of {args.input} itself are near held-out rows; data.split --test_data drops such"
        )
    if (
        read_uses(Path(args.input).parent)
        and Path(args.output).resolve().parent != Path(args.input).resolve().parent
    ):
        print(
            f"note: {args.output} is not in the split's folder, where train.py looks for rows it must not train on"
        )
    print(f"written: {args.output}, {len(written)} rows")
    result = {
        "output": args.output,
        "rows": len(table),
        "made": len(made),
        "methods": methods,
        "dropped": dropped,
    }
    result |= {"rows_near_held_out": num_near, "written": len(written), "seed": args.seed}
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_main(main)
