"""The flags that the loops share, in groups; a loop adds its own beside them. Presets are files: @presets/NAME."""

import argparse
import errno
import math
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError
from core.runs import RunRecord, begun_run
from core.schedule import SCHEDULES
from core.secrets import hide_keys

# what a resumed run may be given anew: none of it touches the weights
FREE_ON_RESUME = {
    "resume",
    "output_dir",
    "cache_dir",
    "log_steps",
    "save_steps",
    "max_bad_steps",
    "profile",
    "baselines",
    "shard",
}


PATHS = ("FILE", "DIR", "FOLDER", "RUN", "OUTPUT", "LABELLED", "FEEDBACK")  # metavars of files and folders
LARGEST = 2**32 - 1  # of a whole number: what every library behind takes as a seed


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, @FILE of flags (with # comments), no abbreviations, and paths that can be looked
    at: no loop of links, no name that is too long, nothing below a file."""

    def __init__(self, description: str, add_help: bool = True):
        super().__init__(
            add_help=add_help,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            fromfile_prefix_chars="@",
            allow_abbrev=False,
        )

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        try:
            return shlex.split(arg_line, comments=True)
        except ValueError as error:
            self.error(f"a file of flags has the line {arg_line!r}: {error}")

    def parse_known_args(
        self, args: list[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple:
        try:
            found, rest = super().parse_known_args(args, namespace)
        except RecursionError:
            self.error("a file of flags names itself as one")
        except ValueError as error:  # of open(): no such name can be
            self.error(f"a file of flags cannot be read: {error}")
        for action in self._actions:
            value, flag = getattr(found, action.dest, None), "/".join(action.option_strings) or action.metavar
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and "\0" in text:
                    self.error(f"{flag} {text!r}: has a null character in it")
                if action.metavar in PATHS and isinstance(text, str):
                    if action.required and not text:
                        self.error(f"{flag}: is empty; expected a path")
                    check_path(text, flag)
        return found, rest

    def error(self, message: str) -> None:
        raise UserError(f"{hide_keys(message)} (--help lists the flags)")


def check_path(path: str | Path, flag: str) -> None:
    """Raise UserError for a path that cannot even be looked for: a loop, a name too long. flag: names it."""
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        why = {
            errno.ELOOP: "is a loop of symbolic links",
            errno.ENOTDIR: "lies below a file, not in a folder",
        }
        raise UserError(f"{flag} {shown}: {why.get(error.errno, os.strerror(error.errno))}") from None


def step_parser(program: str, doc: str, steps: dict[str, tuple], argv: list[str] | None) -> tuple:
    """Of a command with several steps, the first word of whose arguments names one.

    Args:    program: python -m what | doc: printed for --help | steps: (function, description) by name.
    Returns: (the step, a parser for its flags, the arguments behind it).
    Raises:  UserError when there is no such step.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    step = argv[0] if argv else "nothing"
    if step in ("-h", "--help"):
        print(doc)
        sys.exit(0)
    if step not in steps:
        raise UserError(f"{step}: no such step; expected one of {', '.join(steps)}, then its flags")
    parser = Parser(steps[step][1])
    parser.prog = f"python -m {program} {step}"
    return step, parser, argv[1:]


def number(
    kind: type, least: float, most: float | None = None, auto: bool = False
) -> Callable[[str], object]:
    """An argparse type: an int or float in [least, most], or the word auto; a whole number is at most LARGEST."""
    top = LARGEST if kind is int and most is None else most  # said only to who is above it

    def parse(text: str):
        if auto and text == "auto":
            return text
        what = "a whole number" if kind is int else "a number"
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        expected = f"expected {what} {limits}" + (", or auto" if auto else "")
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:60]!r}: {expected}") from None
        if not (least <= value < math.inf and (top is None or value <= top)):
            expected += f" (at most {top})" if most is None and least <= value < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text[:60]}: {expected}")
        return value

    return parse


def add_data_flags(parser: Parser) -> None:
    """Where the rows are."""
    group = parser.add_argument_group("data (JSON, JSONL, CSV or TSV files, one object a row)")
    group.add_argument("--train_data", default="", metavar="FILE", help="training rows")
    group.add_argument("--val_data", default="", metavar="FILE", help="rows that choose the best step")
    group.add_argument("--test_data", default="", metavar="FILE", help="rows scored once, at the end")
    group.add_argument(
        "--cache_dir", default="rows/cache", metavar="DIR", help="where tokenised rows are kept"
    )


def add_text_flags(parser: Parser) -> None:
    """How a text becomes a classification row."""
    group = parser.add_argument_group("text rows")
    group.add_argument(
        "--calibration_data",
        default="",
        metavar="FILE",
        help="rows for thresholds; without it cross-fitted on --val_data",
    )
    group.add_argument(
        "--text_field", default="text", help="column of the text; a,b joins columns as lines `name: value`"
    )
    group.add_argument(
        "--pair_field", default="", help="column of a second text, encoded as a true pair with the first"
    )
    group.add_argument(
        "--label_field", default="", help="column of the label or labels (default: label or labels)"
    )
    group.add_argument(
        "--max_length", type=number(int, 4, auto=True), default="auto",
        help="tokens a row, special tokens included; auto: 256, or what the model takes if that is less",
    )  # fmt: skip
    group.add_argument(
        "--truncate",
        choices=("head", "tail", "head_tail"),
        default="head",
        help="which end of a longer row is kept",
    )
    group.add_argument(
        "--sampler", choices=("shuffle", "weighted"), default="shuffle",
        help="shuffle: each row once an epoch; weighted: drawn with replacement, every class equally often",
    )  # fmt: skip
    group.add_argument("--baselines", action="store_true", help="majority class and TF-IDF in the same table")


def add_batching_flags(parser: Parser) -> None:
    """The logical batch, and how memory cuts it."""
    group = parser.add_argument_group("batching")
    group.add_argument(
        "--batch_size",
        type=number(int, 1),
        default=32,
        help="rows an optimiser step, over all ranks (the logical batch)",
    )
    group.add_argument(
        "--max_tokens", type=number(int, 1, auto=True), default="auto",
        help="tokens a micro-batch on one device, padding included; never changes the gradient; auto: by a few probes",
    )  # fmt: skip
    group.add_argument(
        "--packing", choices=("auto", "on", "off"), default="auto",
        help="rows behind one another without padding; auto: where a probe shows that the model computes the same",
    )  # fmt: skip
    group.add_argument(
        "--overlap", action="store_true",
        help="several ranks: send gradients during the last backward pass; gives up the replay when memory ends",
    )  # fmt: skip
    group.add_argument(
        "--shard", nargs="?", const="on", choices=("on", "off"), default="off",
        help="several ranks: each keeps a part of every weight, gradient and moment (FSDP2), for models that one GPU "
             "does not hold; costs two gathers of all weights and a reduction each micro-batch, and the replay when "
             "memory ends",
    )  # fmt: skip


def add_optimisation_flags(parser: Parser) -> None:
    """Steps, learning rate, regularisation, number formats."""
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--epochs", type=number(float, 1e-3, auto=True), default="auto",
        help="passes over the training rows, 2.5 say; auto: 3, up to 10 where an epoch has few steps",
    )  # fmt: skip
    group.add_argument(
        "--max_steps", type=number(int, 0), default=0, help="optimiser steps at the most; 0: by --epochs"
    )
    group.add_argument(
        "--learning_rate",
        type=number(float, 0, auto=True),
        default="auto",
        help="peak, after warm-up; auto: by model size",
    )
    group.add_argument(
        "--schedule", choices=SCHEDULES, default="linear", help="of the learning rate, after warm-up"
    )
    group.add_argument(
        "--warmup",
        type=number(float, 0),
        default=0.1,
        help="below 1 a share of all steps, from 1 on a number of steps",
    )
    group.add_argument(
        "--weight_decay", type=number(float, 0), default=0.01, help="AdamW's; not on biases and norms"
    )
    group.add_argument(
        "--layer_decay",
        type=number(float, 1e-3, 1),
        default=1.0,
        help="learning-rate factor for each layer below the head",
    )
    group.add_argument(
        "--max_grad_norm", type=number(float, 0), default=1.0, help="clip the gradient's norm; 0: never"
    )
    group.add_argument(
        "--max_bad_steps", type=number(int, 0), default=25,
        help="end the run after so many steps in a row without a finite gradient (skipped, as each is); 0: never",
    )  # fmt: skip
    group.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "off"),
        default="auto",
        help="autocast type; auto: by hardware; off: float32",
    )
    group.add_argument(
        "--force_fp16", action="store_true", help="let --amp fp16 be used for a T5 all the same"
    )
    group.add_argument(
        "--gradient_checkpointing", action="store_true", help="recompute activations: less memory, slower"
    )
    group.add_argument(
        "--compile", nargs="?", const="on", choices=("auto", "on", "off"), default="auto",
        help="torch.compile the model, on CUDA; auto: off, until it has been measured where that pays",
    )  # fmt: skip


def add_evaluation_flags(parser: Parser) -> None:
    """When to score, and by what."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--eval_steps",
        type=number(int, 0),
        default=0,
        help="optimiser steps between evaluations; 0: each epoch",
    )
    group.add_argument(
        "--metric",
        default="auto",
        help="what chooses the best step, any in metrics.json; auto: macro_f1, macro_f1_tuned, a ranker's accuracy",
    )
    group.add_argument(
        "--patience",
        type=number(int, 0),
        default=0,
        help="evaluations without a better --metric before it stops; 0: never",
    )


def add_run_flags(parser: Parser) -> None:
    """Where a run is written, resumed, recorded."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir",
        default="",
        metavar="DIR",
        help="the run folder (default: runs/<model>/<source>/<time>)",
    )
    group.add_argument("--seed", type=number(int, 0), default=0, help="of new weights, row order and dropout")
    group.add_argument(
        "--exact_dropout", action="store_true",
        help="masks from seed, step, row and layer alone; CPU: always so; CUDA: wants attention dropout 0",
    )  # fmt: skip
    group.add_argument(
        "--deterministic", action="store_true", help="bitwise repeatable on CUDA too; slower there"
    )
    group.add_argument(
        "--log_steps", type=number(int, 1), default=10, help="optimiser steps between log records"
    )
    group.add_argument(
        "--save_steps",
        type=number(int, 0),
        default=0,
        help="optimiser steps between checkpoints; 0: each epoch",
    )
    group.add_argument(
        "--resume", nargs="?", const="", default=None, metavar="RUN",
        help="continue a run from its checkpoint, with its own flags; alone: the run in --output_dir",
    )  # fmt: skip
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="run a few steps, print what the whole would cost, write no run",
    )
    group.add_argument(
        "--price_per_hour", type=number(float, 0), default=0.0,
        help="of all devices together, in any currency; 0: print no price",
    )  # fmt: skip
    group.add_argument(
        "--profile", default="", metavar="FIRST:LAST", help="record these optimiser steps with torch.profiler"
    )


def add_shared_flags(parser: Parser) -> None:
    """The groups data, batching, optimisation, evaluation and run."""
    add_data_flags(parser)
    add_batching_flags(parser)
    add_optimisation_flags(parser)
    add_evaluation_flags(parser)
    add_run_flags(parser)


def check_stored(parser: Parser, stored: dict, where: str) -> None:
    """Raise UserError for stored arguments that no flag can have given. where: named in the message."""
    for action in parser._actions:
        value = stored.get(action.dest)
        if value is None or value == action.default:
            continue
        if action.nargs == 0:
            is_good = isinstance(value, bool)
        elif action.type:
            try:
                is_good = isinstance(value, str | int | float) and action.type(str(value)) == value
            except argparse.ArgumentTypeError:
                is_good = False
        else:
            is_good = isinstance(value, str) and (not action.choices or value in action.choices)
        if not is_good:
            raise UserError(f"{where}: --{action.dest} is {hide_keys(str(value))[:60]!r}; no flag gives that")


def check_shard(args: argparse.Namespace) -> bool:
    """Whether --shard is on. Raises UserError where it cannot be."""
    if args.shard != "on":
        return False
    if args.overlap:
        raise UserError("--shard: sends gradients in each backward pass as it is: drop --overlap")
    if args.compile == "on":
        raise UserError(
            "--shard: gathers weights by hooks, which --compile on would trace; drop one of the two"
        )
    if "WORLD_SIZE" not in os.environ:
        raise UserError(
            "--shard: divides a model among processes, and there is one: start it by torchrun --nproc_per_node=N, or "
            "give --shard off"
        )
    return True


def parse(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse; with --resume the run's own arguments take the place of the defaults.

    Under torchrun --max_restarts a process that is started again resumes the run that it finds begun, by itself.

    Raises: UserError for a bad flag, a resume folder that is none, or a flag that differs from the run's.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if isinstance(value, str) and hide_keys(value) != value:
            raise UserError(
                f"--{name} {hide_keys(value)}: what looks like a key would stand in run.json; give keys by the "
                "environment"
            )
    if args.resume is None:
        args.resume = begun_run(args)
    if args.resume is None:
        return args
    folder = Path(args.resume or args.output_dir or ".")
    if not (folder / "run.json").is_file():
        found = "holds no run (no run.json)" if folder.is_dir() else "no such folder"
        raise UserError(f"--resume {folder}: {found}; expected the folder of an unfinished run")
    stored = RunRecord.read(folder).record["arguments"]
    check_stored(parser, stored, f"--resume {folder}: run.json")
    parser.set_defaults(**{name: value for name, value in stored.items() if hasattr(args, name)})
    args = parser.parse_args(argv)
    differ = [
        f"--{name} is {getattr(args, name)!r}, the run's is {value!r}"
        for name, value in stored.items()
        if name not in FREE_ON_RESUME and getattr(args, name, value) != value
    ]
    if differ:
        raise UserError(
            hide_keys(f"--resume {folder}: is a run of another configuration: {'; '.join(differ)}")
        )
    args.resume, args.output_dir = str(folder), str(folder)
    return args
