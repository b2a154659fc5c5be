"""Active learning: which rows are worth a label, a file of them for people and back, and what it would have bought.

    python -m jobs.active select RUN --data unlabelled.jsonl --output to_label.jsonl --num_rows 100 --acquisition badge
    python -m jobs.active take to_label.jsonl --train_data train.jsonl --output train_2.jsonl \
        --pool unlabelled.jsonl --rest rest.jsonl
    python -m jobs.active simulate --train_data all_labelled.jsonl --val_data val.jsonl --model_name builtin:minilm \
        --start 100 --step 100 --rounds 8 --acquisition margin badge random --seeds 0 1 2 --output_dir DIR

select    predicts the rows and writes those to be labelled, the most wanted first; people fill in "label" or "labels"
take      joins what they have filled in to the training rows; train.py on those, then select again
simulate  hides the labels of labelled rows, buys them step by step, and draws the score against the labels bought

entropy: of the prediction (several labels a row: the mean of theirs) | margin: the best class's lead over the second
(several: the least sure label's) | badge: large gradients in different directions (Ash et al. 2020) | coreset: no row
far from a labelled one (Sener, Savarese 2018) | random: what the others have to beat.
"""

import argparse
import json
from pathlib import Path

from core.errors import UserError, run_main
from core.flags import Parser, number, step_parser
from core.report import LOWER_IS_BETTER
from jobs.active_scores import ACQUISITIONS
from jobs.active_select import select
from jobs.active_simulate import simulate
from jobs.active_take import take
from jobs.compare import check_gpus

STEPS = {
    "select": (select, "Write the rows of a pool that are to be labelled next, the most wanted first."),
    "take": (take, "Join rows that people have labelled to the training rows."),
    "simulate": (
        simulate,
        "Score against labels bought, by each acquisition and by random choice, over seeds.",
    ),
}


# fmt: off
def add_select_flags(parser: Parser) -> None:
    """The flags of select."""
    flag = parser.add_argument
    flag("run", metavar="RUN", help="a finished classifier's run folder; an ensemble for entropy, margin and random")
    flag("--data", required=True, metavar="FILE",
         help="the pool: JSON, JSONL, CSV or TSV, with the columns that the run was trained on; labels are ignored")
    flag("--output", required=True, metavar="FILE", help="rows to label: .jsonl, .json, or .csv for a spreadsheet")
    flag("--num_rows", type=number(int, 1), default=100, help="rows to be labelled (default: 100)")
    flag("--acquisition", choices=ACQUISITIONS, default="badge", help="how they are chosen (default: badge)")
    flag("--train_data", default="", metavar="FILE",
         help="rows that have labels: none is asked for again, coreset measures from them; default: the run's own")
    flag("--seed", type=number(int, 0), default=0, help="of what badge and random draw (default: 0)")
    flag("--amp", choices=("run", "auto", "bf16", "fp16", "off"), default="run",
         help="autocast type; run: as the run was evaluated; off: float32")
    flag("--device", default=None, help="cuda, cuda:1, cpu; default: what there is")


def add_take_flags(parser: Parser) -> None:
    """The flags of take."""
    flag = parser.add_argument
    flag("labelled", nargs="+", metavar="LABELLED", help="files that select wrote and people filled in")
    flag("--train_data", required=True, metavar="FILE", help="training rows so far; their labels are the known ones")
    flag("--output", required=True, metavar="FILE", help="training rows and new ones: .jsonl, .json or .csv")
    flag("--pool", default="", metavar="FILE", help="the unlabelled rows; with --rest")
    flag("--rest", default="", metavar="FILE", help="the pool without the rows that now have labels")
    flag("--held_out", nargs="+", default=[], metavar="FILE",
         help="validation and test rows: a labelled row among them is refused")
    flag("--text_field", default="text", help="as train.py's")
    flag("--pair_field", default="", help="as train.py's")
    flag("--label_field", default="", help="as train.py's")


def add_simulate_flags(parser: Parser) -> None:
    """The flags of simulate."""
    flag = parser.add_argument_group("rows and training").add_argument
    flag("--train_data", required=True, metavar="FILE", help="labelled rows; all but --start of them play the pool")
    flag("--val_data", required=True, metavar="FILE", help="rows that choose the best step, and give the score")
    flag("--test_data", default="", metavar="FILE", help="rows that give the score instead; no choice sees them")
    flag("--model_name", default="", help="as train.py's; default: that of --flags, or train.py's own")
    flag("--flags", default="", help='more of train.py\'s, one string: --flags="--epochs 5 --text_field title"')
    flag("--metric", default="auto", help="of the curve and of the best step, higher is better; auto: as train.py's")
    flag("--gpus", default="", metavar="0,1", help="one run at a time on each; default: one run at a time")
    flag("--device", default=None, help="for predictions: cuda, cuda:1, cpu; default: what there is")
    flag = parser.add_argument_group("buying labels").add_argument
    flag("--start", type=number(int, 2), default=100, help="labels at first, drawn at random with each class in them")
    flag("--step", type=number(int, 1), default=100, help="labels bought a round (default: 100)")
    flag("--rounds", type=number(int, 1), default=8, help="how often labels are bought (default: 8)")
    flag("--acquisition", nargs="+", choices=ACQUISITIONS, default=["margin", "badge", "random"], metavar="NAME",
         help=f"of {', '.join(ACQUISITIONS)}; random is always among them (default: margin badge random)")
    flag("--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2], metavar="N",
         help="a curve each: of the first rows, of what is drawn, and of train.py (default: 0 1 2)")
    flag("--output_dir", required=True, metavar="DIR", help="rounds, curve, table; the same command goes on in it")
# fmt: on


def same_file(one: str, other: str) -> bool:
    """Whether two paths are one file."""
    return bool(one and other) and Path(one).resolve() == Path(other).resolve()


def check_outputs(outputs: dict[str, str], inputs: list[str]) -> None:
    """Raise UserError for an output, by flag, that is a folder, an input, another output, or of an unknown ending."""
    for flag, path in outputs.items():
        if Path(path).is_dir():
            raise UserError(f"{flag} {path}: is a folder; give a file")
        if Path(path).suffix.lower() not in (".json", ".jsonl", ".csv"):
            raise UserError(f"{flag} {path}: expected a file that ends in .jsonl, .json or .csv")
        if any(same_file(path, other) for other in inputs):
            raise UserError(f"{flag} {path}: is an input too; give another file")
        if sum(same_file(path, other) for other in outputs.values()) > 1:
            raise UserError(f"{flag} {path}: is given twice as an output; give another file")


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """The step and its flags, checked as far as they can be without the data."""
    step, parser, rest = step_parser("jobs.active", __doc__, STEPS, argv)
    parser.fromfile_prefix_chars = None  # @presets/NAME in --flags is train.py's to read
    {"select": add_select_flags, "take": add_take_flags, "simulate": add_simulate_flags}[step](parser)
    args = parser.parse_args(rest)
    args.step_name = step
    if step == "select":
        check_outputs({"--output": args.output}, [args.data, args.train_data])
    elif step == "take":
        if bool(args.pool) != bool(args.rest):
            raise UserError("--pool, --rest: expected both, or none")
        outputs = {"--output": args.output} | ({"--rest": args.rest} if args.rest else {})
        check_outputs(outputs, [*args.labelled, args.train_data, args.pool, *args.held_out])
    else:
        for name in ("acquisition", "seeds"):
            values = getattr(args, name)
            if len(set(values)) < len(values):
                raise UserError(f"--{name}: {max(values, key=values.count)} is given twice")
        if args.metric in LOWER_IS_BETTER:
            raise UserError(
                f"--metric {args.metric}: is better when lower; give one that is better when higher"
            )
        args.acquisition += ["random"] * ("random" not in args.acquisition)
        args.gpus = args.gpus.split(",") if args.gpus else []
        check_gpus(args.gpus)
    return args


def main(argv: list[str] | None = None) -> dict:
    """Run one step; returns what the last line of the output says."""
    args = parse_flags(argv)
    result = STEPS[args.step_name][0](args)
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_main(main)
