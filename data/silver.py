"""Silver labels: a folder of a labelling model's predictions in, train.json and val.json out.

    python -m data.silver --input_folder predictions --model_name flan-t5-xl                 # one label a row
    python -m data.silver --input_folder predictions --model_name flan-t5-xl --multiple      # all labels that hold
    python -m data.silver --input_folder predictions --model_name flan-t5-xl --order A,B,C   # simplest label first

Reads all *.json and *.jsonl files in INPUT_FOLDER/MODEL_NAME, or in INPUT_FOLDER where that is no folder: rows (a
JSON array, or one object a line), or one object with a row under each id. Writes train.json, val.json and
summary.json to OUTPUT_DIR/DATASET_NAME/MODEL_NAME. A row is {"id", "text", "label"} or, with --multiple,
{"id", "text", "labels": [...]}; train.py reads both.

The label is the simplest strategy that answers: the first of --order among the labels that hold. A row where
none holds is dropped; one without a field for them (or in which it is null) gives its single prediction, as all
rows do under --label_field alone. Without --order every label found counts, sorted by name. With it, a label
that is none of them is searched for one as a word of its own: "The answer is B." is B, "B or C" and "D" are no
label. A row keeps the labels that remain, and is dropped when none does.

The same question (case and white space aside) with the same label is kept once, with different labels not at
all. Questions that share most of their words are never divided between train and val; both have the same share
of each label (with --multiple also of each set of labels, if it is not too rare), and a label that cannot be in
both is in train. The same files and --seed give the same bytes. Each two models (--compare_with, and the folders
beside MODEL_NAME's) are compared on the questions that both have.
"""

import argparse
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path

from sklearn.metrics import cohen_kappa_score

from core.errors import UserError, run_main
from core.flags import Parser, check_path, number
from core.results_table import format_table
from core.rows import show
from data.predictions import Predictions, Row, read_predictions, same_text
from data.splits import group_near_duplicates, join_groups, split_by_group, write_files

MOST_SHOWN = 12  # lines of a confusion table, and sets of labels


# Splits


def split_rows(rows: list[Row], ratio: float, seed: int) -> tuple[dict[str, list[Row]], dict]:
    """The rows of train and val, and how many have near-duplicates. Each label in val is in train, too.

    Raises:  UserError when one is empty.
    """
    same = [same_text(row.text) for row in rows]  # a text without a word has no near-duplicates
    groups = join_groups(group_near_duplicates([row.text for row in rows]), same)
    sets = Counter(row.labels for row in rows)
    names = []  # to keep level: the number of rows, of each label, and of each set that can be in both
    for row in rows:
        common = sets[row.labels] * min(ratio, 1 - ratio) >= 1
        labels = [f"label {name}" for name in row.labels]
        names.append(["row", *labels, *([f"set {'+'.join(row.labels)}"] if common else [])])
    splits = split_by_group(groups, names, seed, {"train": 1 - ratio, "val": ratio})
    trained = {name for i in splits["train"] for name in rows[i].labels}
    moved = {groups[i] for i in splits["val"] if not trained.issuperset(rows[i].labels)}
    splits["train"] += [i for i in splits["val"] if groups[i] in moved]
    splits["val"] = [i for i in splits["val"] if groups[i] not in moved]
    for name, chosen in splits.items():
        if not chosen:
            told = f"{len(rows)} rows in {len(set(groups))} groups of near-duplicates leave {name} empty"
            raise UserError(f"--validation_ratio {ratio:g}: {told} (train has all labels); give more rows")
    sizes = Counter(groups).values()
    near = {"rows": sum(size for size in sizes if size > 1), "largest_group": max(sizes)}
    return {name: [rows[i] for i in chosen] for name, chosen in splits.items()}, near


# Agreement


def compare(names: list[str], models: list[Predictions], multiple: bool) -> dict:
    """How far two models agree on the questions that both have; without such only their number, 0.

    Returns: equal: share of questions with equal labels, as sets | jaccard (of the sets) with multiple, else
             kappa (Cohen; None where it is not defined) and confusion: label -> the other model's label -> rows.
    """
    one, other = ({same_text(row.text): row.labels for row in model.rows} for model in models)
    pairs = [(one[text], other[text]) for text in sorted(one.keys() & other.keys())]
    result = {"models": names, "questions": len(pairs)}
    if not pairs:
        return result
    result["equal"] = sum({*a} == {*b} for a, b in pairs) / len(pairs)
    if multiple:
        shares = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in pairs]
        return result | {"jaccard": sum(shares) / len(shares)}
    table = Counter((a[0], b[0]) for a, b in pairs)
    labels = [n for n in dict.fromkeys(models[0].order + models[1].order) if any(n in pair for pair in table)]
    first, second = ([labels[0] for labels in side] for side in zip(*pairs, strict=True))
    kappa = float(cohen_kappa_score(first, second)) if len(labels) > 1 else None
    return result | {"kappa": kappa, "confusion": {a: {b: table[a, b] for b in labels} for a in labels}}


def compare_all(main_model: Predictions, source: Path, target: Path, args: argparse.Namespace) -> list[dict]:
    """Agreement of each two models: the main one, those of --compare_with, and the folders beside the main one's.

    A folder that was not asked for and holds no such rows is passed over, and said so.
    """
    folders, models = {}, {args.model_name: main_model}
    if source != Path(args.input_folder):
        beside = [path for path in sorted(source.parent.iterdir()) if path.is_dir()]
        own = (source.resolve(), *target.resolve().parents)
        folders = {path.name: path for path in beside if path.resolve() not in own}
    for name in args.compare_with:
        places = [place for place in (Path(args.input_folder, name), Path(name)) if place.is_dir()]
        if not places:
            raise UserError(f"--compare_with {name}: no such folder, nor is there one in {args.input_folder}")
        folders[name] = places[0]
    for name, folder in folders.items():
        try:
            models.setdefault(name, read_predictions(folder, args))
        except UserError as error:
            if name in args.compare_with:
                raise
            print(f"not compared: {error}")
    pairs = itertools.combinations(models.items(), 2)
    return [compare([a, b], [one, other], args.multiple) for (a, one), (b, other) in pairs]


# From folder to files


def build(args: argparse.Namespace, target: Path) -> tuple[dict[str, list[Row]], dict]:
    """The rows of train and val, and their summary. Prints which columns are read."""
    source = Path(args.input_folder, args.model_name)
    if Path(args.input_folder).is_dir():
        check_path(source, "--model_name")
    check_path(target, "--output_dir, --dataset_name, --model_name")
    for name in args.compare_with if Path(args.input_folder).is_dir() else ():
        check_path(Path(args.input_folder, name), "--compare_with")
    if not source.is_dir():
        source = Path(args.input_folder)
        if not source.is_dir():
            raise UserError(
                f"--input_folder {source}: {'is a file' if source.exists() else 'no such folder'}"
            )
        models = sorted(
            path.name for path in source.iterdir() if path.is_dir() and any(path.rglob("*.json*"))
        )
        if models:
            raise UserError(
                f"--model_name {args.model_name}: no such folder in {source}; there are {', '.join(models)}"
            )
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output_dir: {target} lies in {source}, which is read; give another folder")
    made = read_predictions(source, args)
    print(f"{source}: {len(made.files)} files, {made.read} rows read, {len(made.rows)} kept")
    for kind, field in made.fields.items():
        how = "given" if getattr(args, f"{kind}_field") else "guessed"
        none = "the key, or file and line" if kind == "id" else "not needed"
        print(f"  {kind:6}  {f'{field} ({how})' if field else none}")
    how = "as given" if args.order else "by name, as no --order is given"
    print(f"labels, simplest first ({how}): {', '.join(made.order)}")

    splits, near = split_rows(made.rows, args.validation_ratio, args.seed)
    labels = {split: Counter(name for row in rows for name in row.labels) for split, rows in splits.items()}
    sets = {split: Counter("+".join(row.labels) for row in rows) for split, rows in splits.items()}
    often = [name for name, _ in sum(sets.values(), Counter()).most_common()] if args.multiple else []
    summary = {key: getattr(args, key) for key in ("model_name", "multiple", "validation_ratio", "seed")}
    return splits, summary | {
        "fields": made.fields,
        "order": made.order,
        "rows": {"read": made.read} | {split: len(rows) for split, rows in splits.items()},
        "classes": {name: {split: labels[split][name] for split in splits} for name in made.order},
        "label_sets": {name: {split: sets[split][name] for split in splits} for name in often},
        "near_duplicates": near,
        "dropped": made.dropped,
        "left_out": made.left_out,
        "agreement": compare_all(made, source, target, args),
        "files": made.files,
    }


def print_summary(summary: dict) -> None:
    """Counts of each class, what was dropped and why, and the agreement."""
    for title, most in (("classes", None), ("label_sets", MOST_SHOWN)):
        counts = list(summary[title].items())
        if counts:
            lines = [
                (name, n | {"val_share": n["val"] / max(1, sum(n.values()))}) for name, n in counts[:most]
            ]
            print(f"\n{title.replace('_', ' ')}\n{format_table(lines, ['train', 'val', 'val_share'])}")
            if counts[len(lines) :]:
                print(f"... and {len(counts) - len(lines)} more")
    near = summary["near_duplicates"]
    print(f"\nnear-duplicates kept on one side: {near['rows']} rows, largest group {near['largest_group']}")
    print(f"dropped: {sum(n['rows'] for n in summary['dropped'].values())} rows")
    for reason, n in summary["dropped"].items():
        print(f"{n['rows']:6}  {reason} (first: {n['first']}: {n['found']})")
    for name, count in summary["left_out"].items():
        print(f"{count:6}  rows lost the label {show(name)}, which is none of --order, and keep another")
    for pair in summary["agreement"]:
        numbers = {key: pair[key] for key in ("equal", "kappa", "jaccard") if pair.get(key) is not None}
        told = "".join(f", {key} {value:.4f}" for key, value in numbers.items())
        print(f"\n{' and '.join(pair['models'])}: {pair['questions']} questions in both{told}")
        table = list(pair.get("confusion", {}).items())[:MOST_SHOWN]
        if table:
            print(f"lines {pair['models'][0]}, columns {pair['models'][1]}")
            print(format_table(table, [name for name, _ in table]))


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked; order is a list."""
    parser = Parser("Make train.json and val.json of a labelling model's predictions.")
    parser.prog = "python -m data.silver"
    add = parser.add_argument
    help_text = "predictions, in a folder of the model's name or right here"
    add("--input_folder", required=True, metavar="DIR", help=help_text)
    add("--model_name", required=True, help="the labelling model: a folder of the input and of the output")
    help_text = "writes DIR/DATASET_NAME/MODEL_NAME/train.json, val.json (default: data)"
    add("--output_dir", default="data", metavar="DIR", help=help_text)
    add("--dataset_name", default="silver", help="a folder of the output (default: silver)")
    add("--validation_ratio", type=float, default=0.2, help="share of the rows in val.json (default: 0.2)")
    add("--multiple", action="store_true", help="all labels that hold, not the simplest alone")
    add("--order", default="", metavar="A,B,C", help="the labels, from simplest to most complex")
    add("--text_field", default="", help="column of the text, or a,b (default: guessed, as the other fields)")
    add("--labels_field", default="", help="column of the labels that hold: a list, or 0/1 for each name")
    add("--label_field", default="", help="column of the one label predicted")
    add("--id_field", default="", help="column of the id (default: also the key, or file and line)")
    help_text = "keep a question once, and not at all with different labels (default: on)"
    add("--deduplicate", action=argparse.BooleanOptionalAction, default=True, help=help_text)
    help_text = "more models to compare with: names in INPUT_FOLDER, or folders"
    add("--compare_with", nargs="+", default=[], metavar="MODEL", help=help_text)
    add(
        "--seed",
        type=number(int, 0),
        default=0,
        help="which rows go to val.json, and in what order (default: 0)",
    )
    args = parser.parse_args(argv)
    if not 0 < args.validation_ratio < 1:
        raise UserError(f"--validation_ratio {args.validation_ratio:g}: expected a number between 0 and 1")
    args.order = [name.strip() for name in args.order.split(",")] if args.order else []
    if "" in args.order or len(set(args.order)) < len(args.order):
        raise UserError(f"--order {','.join(args.order)}: expected different names, divided by commas")
    return args


def main(argv: list[str] | None = None) -> dict:
    """Write the rows; returns their summary."""
    args = parse_flags(argv)
    target = Path(args.output_dir, args.dataset_name, args.model_name)
    splits, summary = build(args, target)
    files = {}
    for name, rows in splits.items():
        labels = [{"labels": row.labels} if args.multiple else {"label": row.labels[0]} for row in rows]
        written = [{"id": row.id, "text": row.text} | own for row, own in zip(rows, labels, strict=True)]
        files[f"{name}.json"] = (json.dumps(written, ensure_ascii=False, indent=1) + "\n").encode()
    summary["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["summary.json"] = (json.dumps(summary, ensure_ascii=False, indent=1) + "\n").encode()
    write_files(target, files, "--output_dir")
    print_summary(summary)
    print(f"\nwritten: {', '.join(str(target / name) for name in files)}")
    short = {key: summary[key] for key in ("rows", "classes", "dropped", "agreement")}
    print(json.dumps({"output_dir": str(target)} | short, ensure_ascii=False))
    return summary | {"output_dir": str(target)}


if __name__ == "__main__":
    run_main(main)
