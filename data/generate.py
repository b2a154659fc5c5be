"""New rows of each label by a language model: training rows in as examples, generated rows out, each with its origin.

    export OPENAI_API_KEY=...                                     # read from the environment alone, written nowhere
    python -m data.generate --train_data train.jsonl --output generated.jsonl --model gpt-4o-mini --rows_per_label 50 \\
        --price_in 0.15 --price_out 0.60
    python -m data.generate ... --base_url http://localhost:8000/v1 --model NAME   # vLLM, llama.cpp, transformers serve
    python -m data.generate ... --local models/smollm2                             # a Hugging Face decoder right here
    python -m data.generate ... --mode paraphrase --check_run runs/minilm/mine/20260101-120000-seed0
    cat train.jsonl generated.jsonl > more.jsonl; python train.py --train_data more.jsonl ...

A prompt holds --shots training texts of its label. None is a row to be scored on, nor near to one: those of --exclude,
the other parts of the split (data.split) that the training rows are of, and what --check_run chose and was tested by;
training rows that are such rows of the split, or test rows of --check_run, are refused. Near-duplicates of rows to be
scored on, of training rows and of each other are dropped, as is what is no text of its kind (a refusal, a cut end,
...), all counted by reason. Rows whose label --check_run doubts go to GENERATED.set_aside.jsonl. What is missing then
is asked for again, --rounds times in all.

A row: the text, its label or labels as the training rows have them, "source_text" with --mode paraphrase, and
"generated": {"model", "prompt_id", "index", "seed", "verdict"}. Beside GENERATED.jsonl lie GENERATED.summary.json and
GENERATED.journal.jsonl, every prompt and answer as it came, by which the same command goes on and pays for nothing
twice; given more --rows_per_label, it asks for the rest.
"""

import argparse
import json
from pathlib import Path

from core.cache import LabelColumn
from core.errors import UserError, disk_errors, run_main
from core.files import write_json, write_text
from core.flags import Parser, number
from core.results_table import format_table
from core.rows import RowFormat, file_sha256, show, sort_names
from data.check_run import predict, refuse_other_labels
from data.generate_answers import TextForm
from data.generate_checks import Novelty
from data.generate_journal import Journal
from data.generate_local import LocalModel
from data.generate_prompts import Task
from data.generate_rounds import Made, run_rounds, tokens_and_cost
from data.generate_secrets import KEY, Address, hide_arguments, read_address
from data.generate_server import Server
from data.held_out import HeldOut, read_held_out, refuse_held_out, why_held_out
from data.split_rows import Table, read_table
from data.splits import NEAR


# fmt: off
def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked; no complaint repeats what may be a key."""
    parser = Parser(__doc__)
    parser.prog = "python -m data.generate"
    add = parser.add_argument
    add("--train_data", required=True, metavar="FILE", help="labelled rows whose texts the prompts show")
    add("--output", required=True, metavar="FILE", help="rows to write, .jsonl")
    add("--exclude", nargs="+", default=[], metavar="FILE",
        help="rows to be scored on, validation and test: nothing near to them is shown or written; labels not needed")
    add("--model", default="", metavar="NAME", help="the server's name of the model; with --local the folder's name")
    add("--base_url", default="", metavar="URL", help="of an OpenAI-compatible server, with /v1 (default: OpenAI's)")
    add("--local", default="", metavar="FOLDER", help="a Hugging Face decoder to run here, instead of a server")
    add("--endpoint", choices=("chat", "completions"), default="chat",
        help="completions: for a server's model without a chat template")
    add("--mode", choices=("label", "paraphrase"), default="label",
        help="label: new texts of a label; paraphrase: training texts in other words, label kept")
    add("--rows_per_label", type=number(int, 1), default=50, help="rows to write for each label (default: 50)")
    add("--shots", type=number(int, 0), default=4, help="training texts in a prompt (default: 4; paraphrase: none)")
    add("--texts_per_prompt", type=number(int, 1, 50), default=1, help="texts asked for in one list (default: 1)")
    add("--rounds", type=number(int, 1), default=4, help="how often what was dropped is asked for anew, with the first")
    add("--labels", nargs="+", default=[], metavar="NAME", help="only these (default: all labels of the training rows)")
    add("--descriptions", default="", metavar="FILE", help="what labels mean: JSON, {label: description}")
    add("--check_run", default="", metavar="RUN", help="a trained classifier: rows whose label it doubts are set aside")
    add("--least_probability", type=number(float, 0, 1), default=0.5,
        help="of the row's label by --check_run; below it is doubted (default: 0.5)")
    add("--near", type=number(float, 0.3, 1), default=NEAR, metavar="SHARE",
        help="of words in common from which texts are near-duplicates (default: 0.7)")
    add("--temperature", type=number(float, 0), default=1.0, help="of sampling; 0: the most probable (default: 1)")
    add("--top_p", type=number(float, 1e-3, 1), default=0.95, help="sample from so much probability (default: 0.95)")
    add("--max_new_tokens", type=number(int, 1), default=256, help="tokens of an answer at the most (default: 256)")
    add("--concurrency", type=number(int, 1), default=8, help="requests, or --local prompts, at once (default: 8)")
    add("--max_retries", type=number(int, 0), default=6,
        help="tries after the first on 408, 409, 429, 5xx, time-outs and lost connections (default: 6)")
    add("--timeout", type=number(float, 1e-3), default=60.0, help="seconds that a server may be silent (default: 60)")
    add("--price_in", type=number(float, 0), default=None, help="dollars per million tokens sent")
    add("--price_out", type=number(float, 0), default=None, help="dollars per million tokens received")
    add("--text_field", default="text", help="column of the text")
    add("--label_field", default="", help="column of the label or labels (default: label or labels)")
    add("--device", default=None, help="of --local and --check_run: cuda, cuda:1, cpu; default: what there is")
    add("--seed", type=number(int, 0), default=0, help="of the rows shown and of sampling (default: 0)")
    try:
        args = parser.parse_args(argv)
    except UserError as error:
        told = hide_arguments(str(error))
        raise UserError(told + f"; the key is read from {KEY} alone" * ("key" in told)) from None
    return check_flags(args)
# fmt: on


def check_flags(args: argparse.Namespace) -> argparse.Namespace:
    """The flags that depend on each other. Raises UserError."""
    output = Path(args.output)
    if output.suffix != ".jsonl" or output.is_dir():
        raise UserError(f"--output {args.output}: expected a file that ends in .jsonl")
    args.beside = {name: output.with_name(f"{output.stem}.{name}.jsonl") for name in ("journal", "set_aside")}
    args.beside["summary"] = output.with_name(f"{output.stem}.summary.json")
    read = {Path(path).resolve() for path in (args.train_data, *args.exclude)}
    for path in (output, *args.beside.values()):
        if path.resolve() in read:
            raise UserError(f"--output {args.output}: would replace {path}, which is read; give another file")
    if "-" in (args.train_data, *args.exclude):
        raise UserError("-: standard input is not read here; give a file")
    if output.exists() and not args.beside["journal"].exists():
        raise UserError(f"--output {args.output}: is there, without a journal of its own; give another file")
    if args.local and (args.base_url or args.endpoint != "chat"):
        raise UserError("--local: runs the model here; leave out --base_url and --endpoint")
    if not args.local and not args.model:
        raise UserError("--model: give the server's name of the model, or --local FOLDER")
    if (args.price_in is None) != (args.price_out is None):
        raise UserError("--price_in, --price_out: give both, or none")
    if "," in args.text_field:
        raise UserError(f"--text_field {args.text_field}: expected one column: that is what is generated")
    args.pair_field, args.group_fields = "", []  # of data/split_rows.py
    args.model = args.model or Path(args.local).name
    return args


# What the prompts are made of


def read_descriptions(path: str, labels: list[str]) -> dict[str, str]:
    """{label: description} of a JSON file. Raises UserError."""
    if not path:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"--descriptions {path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UserError(f"--descriptions {path}: is {show(found)}; expected {{label: description}}")
    odd = [name for name in found if name not in labels]
    if odd:
        raise UserError(
            f"--descriptions {path}: {odd[0]!r} is no label of the rows: {', '.join(labels[:30])}"
        )
    return found


def rows_to_show(table: Table, held_out: HeldOut, near: float) -> list[int]:
    """The rows with a label that are near to none to be scored on."""
    reasons = why_held_out(table.texts, table.hashes, held_out, near)
    return [i for i, (own, why) in enumerate(zip(table.labels, reasons, strict=True)) if own and not why]


def make_task(args: argparse.Namespace, table: Table, shown: list[int], about: dict, is_chat: bool) -> Task:
    """What all prompts have in common. about: descriptions of labels."""
    sampling = {name: getattr(args, name) for name in ("model", "temperature", "top_p", "max_new_tokens")}
    texts = [table.texts[i].strip() for i in shown]
    own = [tuple(sort_names(dict.fromkeys(table.labels[i]))) for i in shown]
    many = args.texts_per_prompt if is_chat else 1
    return Task(texts, own, args.mode, args.shots, many, is_chat, args.seed, about, sampling)


def make_source(args: argparse.Namespace, address: Address | None) -> Server | LocalModel:
    """Who answers. address: None for a model on this machine."""
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_new_tokens}
    if address is None:
        return LocalModel(args.local, args.model, sampling, args.concurrency, args.device)
    how = args.endpoint == "chat", args.concurrency, args.max_retries, args.timeout
    return Server(address, args.model, sampling, *how)


# Out


def write_all(args: argparse.Namespace, made: Made, summary: dict) -> None:
    """Write the rows, those set aside and the summary, each whole; the rows last."""
    rows = [row for own in made.kept.values() for row in own]
    with disk_errors(args.output, "--output"):
        write_json(args.beside["summary"], summary)
        for path, own in ((args.beside["set_aside"], made.aside), (Path(args.output), rows)):
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own))


def print_summary(summary: dict) -> None:
    """Rows of each label, what was dropped and why, tokens and cost."""
    print(format_table(list(summary["labels"].items()), ["asked", "kept", "set_aside"]))
    total = sum(found["count"] for found in summary["dropped"].values())
    print(f"\ndropped: {total} texts or answers")
    for reason, found in summary["dropped"].items():
        print(f"{found['count']:6}  {reason} (first: {found['example']})")
    used = summary["used"]
    num_unknown = used["answers_of_unknown_tokens"]
    unknown = f" ({num_unknown} answers unknown)" if num_unknown else ""
    cost = "unknown: no --price_in and --price_out" if used["dollars"] is None else f"${used['dollars']:.4f}"
    told = f"{used['prompt_tokens']} sent, {used['completion_tokens']} received{unknown}"
    print(f"\ntokens: {told}; cost: {cost}")
    for note in summary["notes"]:
        print(f"note: {note}")


def main(argv: list[str] | None = None) -> dict:
    """Ask, sort out, write; returns what the last line says."""
    args, kind = parse_flags(argv), LabelColumn()
    table = read_table(args.train_data, "--train_data", args, kind)
    names = sort_names(kind.index)
    odd = [name for name in args.labels if name not in names]
    if odd:
        raise UserError(f"--labels: {odd[0]!r} is no label of {args.train_data}: {', '.join(names[:30])}")
    labels, about = list(dict.fromkeys(args.labels)) or names, read_descriptions(args.descriptions, names)
    runs, row_format = [Path(args.check_run)] if args.check_run else [], RowFormat(args.text_field)
    mend = "texts of one column are generated: give that column, or rows divided by it"
    refuse_held_out(table.hashes, "--train_data", args.train_data, row_format, runs, mend)
    held_out = read_held_out(args.train_data, args.exclude, runs, row_format)
    shown, notes = rows_to_show(table, held_out, args.near), []
    bare = [name for name in labels if not any(name in table.labels[i] for i in shown)]
    if bare:
        raise UserError(f"--train_data {args.train_data}: no row of {bare[0]!r} is left for a prompt to show")
    if len(shown) < len(table):
        why = "near to rows to be scored on, or without a label"
        notes.append(f"{len(table) - len(shown)} training rows are in no prompt: {why}")
    address = None if args.local else read_address(args.base_url)
    if args.check_run:
        trial = predict(
            args.check_run, [{args.text_field: table.texts[shown[0]]}], args.text_field, device=args.device
        )
        refuse_other_labels(args.check_run, trial[0], names, kind.kind)  # before anything is asked for
    novelty = Novelty(table.texts, held_out, args.near)
    journal = Journal(args.beside["journal"])
    try:
        source = make_source(args, address)
        task = make_task(args, table, shown, about, source.is_chat)
        made = Made(labels, kind, args)
        failed = run_rounds(task, made, source, journal, novelty, TextForm.of(table.texts))
    except UserError as error:
        count = len(journal.answers)
        told = f"\n  {count} answers are in {journal.path}: the same command goes on" if count else ""
        raise UserError(f"{error}{told}") from None
    finally:
        journal.close()
    notes += source.notes
    if task.many < args.texts_per_prompt:
        notes.append("a model without a chat template is asked for one text a prompt")
    if failed:
        last = f"the last: {failed[-1]}; the same command asks for them again"
        notes.append(f"{len(failed)} requests failed, {last}")
    hidden = ("base_url", "beside", "group_fields", "pair_field")
    counts = {
        "asked": made.asked,
        "kept": {k: len(rows) for k, rows in made.kept.items()},
        "set_aside": made.doubted,
    }
    summary = {
        "train_data": {"path": args.train_data, "sha256": file_sha256(args.train_data), "rows": len(table)},
        "exclude": [{"path": path, "sha256": file_sha256(path)} for path in held_out.num_rows],
        "flags": {name: value for name, value in vars(args).items() if name not in hidden},
        "server": address.url if address else None,
        "labels": {name: {what: own[name] for what, own in counts.items()} for name in labels},
        "dropped": made.dropped.summary(),
        "used": tokens_and_cost(list(made.used.values()), args.price_in, args.price_out),
        "failed_requests": len(failed),
        "notes": notes,
    }
    write_all(args, made, summary)
    print_summary(summary)
    result = {"output": args.output, "rows": sum(map(len, made.kept.values())), "set_aside": len(made.aside)}
    result |= {"dropped": {name: found["count"] for name, found in summary["dropped"].items()}}
    result |= {"failed_requests": len(failed), **summary["used"]}
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_main(main)
