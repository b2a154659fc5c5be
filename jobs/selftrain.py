"""Self-training: a model labels unlabelled rows, a new one learns from the surest of them, round by round.

    python -m jobs.selftrain --train_data labelled.jsonl --unlabelled pool.jsonl --val_data val.jsonl \\
        --model_name builtin:minilm --flags "--batch_size 16" --rounds 3 --quota 0.2
    python -m jobs.selftrain --train_data train.jsonl --labelled_share 0.05 --val_data val.jsonl    # a trial
    python -m jobs.selftrain ... --models minilm=bert:builtin:minilm roberta=bert:/models/roberta --teach agreement

Round 0 is the labelled rows alone. In round k each model of the round before labels the pool with calibrated
probabilities (a temperature, fitted on --calibration_data, else on --val_data); of each class the most confident rows
become training rows, its share of the labelled rows x --quota x k x the pool at the most, none below
--least_confidence; all are chosen anew each round. A student starts from the pretrained weights each time: what it
learnt from a wrong pseudo-label does not outlive the round. With several labels a row every label must be sure, held
(p >= --least_confidence) or not (p <= 1 - that): no row is half labelled; its quota is its rarest label's.

--audit_ratio of the labelled rows is set aside once, by label, and neither trained on nor pseudo-labelled. What the
same cuts would take of it estimates how many pseudo-labels are right; its macro F1 ends the rounds when it falls and
chooses the round (between those within --margin of the best the validation score does). It should not be small. The
gain is measured on --test_data, scored once at the end; without it on --val_data, which flatters: those rows have
chosen steps and perhaps the round. It is told over round 0 and over a run of all labelled rows, the audit's too: what
one would have without all this. More rows are more optimiser steps: --flags "--epochs 100 --max_steps 400 --eval_steps
50" gives every run the same.

With several models each learns from the others (--teach others: the mean of their probabilities; agreement: rows on
which all say the same, itself included). Written to --output_dir: round<k>/<model>/ (runs of train.py),
round<k>/<model>.train.jsonl (pseudo-labelled rows carry "pseudo": true and "confidence"), summary.json, summary.md,
selftrain.png. Stopped at any instant, the same command goes on from there; more --rounds go on from the last one. Runs
that are no result keep their scores and lose their weights (--keep_weights). The last line is JSON.
"""

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path

import train
from core.errors import UserError, disk_errors, run_main
from core.files import write_json, write_text
from core.flags import Parser, number
from core.plots import save_png
from core.rows import RowFormat, file_sha256
from core.runs import git_commit, slug, versions
from core.statistics import RESAMPLES
from data.splits import NEAR
from jobs.compare import check_gpus, data_name, model_flags, words
from jobs.selftrain_choice import best_round, has_fallen
from jobs.selftrain_report import gain_over, markdown, report_text, rounds_figure, score_test
from jobs.selftrain_rounds import Plan, device_of, judge_round, run_round, validation_score
from jobs.selftrain_rows import FLAGS, hide_labels, open_parts

TEACH = ("self", "others", "agreement")
NEEDED = ("train_data", "unlabelled", "val_data")
# what a start may be given anew: none of it touches the rounds that are there
FREE = {"rounds", "margin", "patience", "resamples", "gpus", "keep_weights", "output_dir"}


# fmt: off
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked as far as they can be without the data."""
    parser = Parser(__doc__)
    parser.fromfile_prefix_chars = None  # @presets/NAME in --flags is train.py's to read
    flag = parser.add_argument_group("rows (columns: --text_field and so on, in --flags)").add_argument
    flag("--train_data", default="", metavar="FILE", help="labelled rows")
    flag("--unlabelled", default="", metavar="FILE", help="the pool: rows with the same text columns; labels unread")
    flag("--val_data", default="", metavar="FILE", help="rows that choose each run's best step")
    flag("--calibration_data", default="", metavar="FILE", help="rows for temperature and thresholds")
    flag("--test_data", default="", metavar="FILE", help="rows for the gain alone, scored once at the end")
    flag("--audit_ratio", type=number(float, 1e-6, 0.9), default=0.1,
         help="share of the labelled rows that measures and is never learnt from")
    flag("--near", type=number(float, 0.01, 1), default=NEAR,
         help="share of words in common from which a pool row is too near to an audit, validation or test row")
    flag("--check_labels", action="store_true",
         help="for a trial: the pool's rows carry labels, read for one column of the table and for nothing else")
    flag("--labelled_share", type=number(float, 0, 0.99), default=0.0,
         help="for a trial without --unlabelled: so many of the labelled rows keep their label, the rest is the pool")
    flag = parser.add_argument_group("models").add_argument
    flag("--model_name", default="", help="one model: as train.py's; default: what --flags say")
    flag("--models", nargs="+", default=[], metavar="MODEL",
         help="several, that teach each other: words of jobs.compare, name=architecture:model[:more flags]")
    flag("--flags", default="", help="train.py's, one string, for every model: --flags=\"@presets/NAME\"")
    flag("--teach", choices=("auto", *TEACH), default="auto",
         help="whose labels a student learns from; auto: self, with several models others")
    flag = parser.add_argument_group("rounds").add_argument
    flag("--rounds", type=number(int, 1), default=3, help="at the most, behind round 0")
    flag("--quota", type=number(float, 1e-6, 1), default=0.2, help="share of the pool, times the number of the round")
    flag("--least_confidence", type=number(float, 0, 1), default=0.7,
         help="calibrated probability of the label; with several a row of its least sure label's decision, from 0.5")
    flag("--margin", type=number(float, 0, 1, auto=True), default="auto",
         help="what of the audit's macro F1 is put down to chance; auto: what a paired bootstrap allows")
    flag("--patience", type=number(int, 1), default=1, help="rounds in a row that have fallen before it stops")
    flag = parser.add_argument_group("run").add_argument
    flag("--no_rival", action="store_true", help="do not train on all labelled rows for comparison")
    flag("--keep_weights", action="store_true", help="of rounds that are no result, too")
    flag("--resamples", type=number(int, 100), default=RESAMPLES, help="of the bootstrap")
    flag("--seed", type=number(int, 0), default=0, help="of the audit's cut and of every run")
    flag("--gpus", default="", metavar="0,1", help="one run at a time on each; default: one run at a time")
    flag("--output_dir", default="", metavar="DIR", help="default: runs/selftrain/<name of the labelled rows>")
    args = parser.parse_args(argv)
    if args.labelled_share and args.unlabelled:
        raise UserError("--labelled_share: makes a pool of --train_data; drop it, or --unlabelled")
    for name in NEEDED:
        if not getattr(args, name) and not (name == "unlabelled" and args.labelled_share):
            raise UserError(f"--{name}: no file given; expected rows in JSON, JSONL, CSV or TSV")
    args.output_dir = args.output_dir or f"runs/selftrain/{data_name(args.train_data)}"
    args.gpus = args.gpus.split(",") if args.gpus else []
    check_gpus(args.gpus)
    return args
# fmt: on


def find_models(args: argparse.Namespace) -> tuple[dict[str, list[str]], RowFormat]:
    """Each model's flags for train.py by its name in folders, and the columns that all read. Raises UserError."""
    every, models = words(args.flags, "--flags"), {}
    for taken in ("--calibration_data", "--baselines"):
        if any(word.partition("=")[0] == taken for word in every):
            raise UserError(f"--flags: {taken} does not go there; expected other flags of train.py")
    if args.model_name or not args.models:
        own = ["--model_name", args.model_name] if args.model_name else []
        name = slug(Path(args.model_name.removeprefix("builtin:")).name) if args.model_name else "student"
        models[name] = [*every, *own]
    given = argparse.Namespace(epochs="auto", learning_rate="auto", flags=args.flags)
    for word in args.models:
        name, flags = model_flags(word, given)
        if name in models:
            raise UserError(f"--models {word}: a second model of the name {name}; give it another")
        models[name] = flags
    formats = {}
    for name, flags in models.items():
        files = ["--train_data", args.train_data, "--val_data", args.val_data, "--output_dir", "x"]
        try:
            found = train.parse_args([*flags, *files])
        except UserError as error:
            raise UserError(f"{name}: train.py: {error}") from None
        formats[name] = RowFormat(found.text_field, found.pair_field, found.label_field)
    if len(set(formats.values())) > 1:
        raise UserError("--models: read different columns; they must teach each other on the same rows")
    return models, next(iter(formats.values()))


def how_taught(args: argparse.Namespace, num_models: int) -> str:
    """What --teach means. Raises UserError for one model that is to learn from others."""
    if args.teach == "auto":
        return "self" if num_models == 1 else "others"
    if args.teach != "self" and num_models == 1:
        raise UserError(f"--teach {args.teach}: needs several models; name them with --models")
    return args.teach


def made_of(args: argparse.Namespace) -> dict:
    """What a self-training is made of: its flags but for the FREE ones, and its files. Raises UserError."""
    for flag in FLAGS:
        path = getattr(args, flag)
        if path and not Path(path).is_file():
            raise UserError(f"--{flag} {path}: no such file")
    given = {name: value for name, value in vars(args).items() if name not in FREE}
    return given | {"sha256": {flag: file_sha256(given[flag]) for flag in FLAGS if given[flag]}}


def check_same(folder: Path, given: dict) -> None:
    """Raise UserError when a folder holds a self-training that is made of other things."""
    path = folder / "parts" / "arguments.json"
    if not path.is_file():
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    told = [
        f"--{name} was {stored.get(name)!r}, now {value!r}"
        for name, value in given.items()
        if name != "sha256" and stored.get(name) != value
    ]
    told = told or [
        f"--{name} {given[name]} has changed"
        for name, value in given["sha256"].items()
        if value != stored["sha256"][name]
    ]
    if told:
        raise UserError(
            f"--output_dir {folder}: holds another self-training: {'; '.join(told)}; give another"
        )


# -- the rounds -----------------------------------------------------------------------------------------------------


def best_model(found: dict) -> dict:
    """A round's line of the model with the highest macro F1 on audit rows, then on validation rows."""
    return max(found["models"].values(), key=lambda line: (line["audit"]["macro_f1"], validation_score(line)))


def run_rounds(plan: Plan, args: argparse.Namespace) -> tuple[list[dict], str, int]:
    """The rounds that were trained, round 0 first, why there are no more, and the place of the one to keep."""
    rounds, judged, why = [], [], f"{args.rounds} rounds were asked for"
    for k in range(args.rounds + 1):
        found = run_round(plan, k)
        if not found["models"]:
            why = f"no row of the pool was as sure as {plan.least:g} in round {k}"
            break
        rounds.append(found)
        judged.append(judge_round(plan, found, args.resamples, args.seed))
        for name, line in found["models"].items():
            told = f"round {k}, {name}: {line.get('num_added', 0)} rows added, macro F1 {line['audit']['macro_f1']:.4f}"
            print(
                f"{told} on {line['audit']['n']} audit rows, {validation_score(line):.4f} on validation rows"
            )
        if has_fallen(judged, args.margin, args.patience):
            why = f"the audit's macro F1 had fallen in round {k}"
            break
    # a start before with fewer rounds, or another margin, has dropped the weights of what it did not keep
    kept = [(Path(best_model(found)["run"]) / "best_model").is_dir() for found in rounds]
    return rounds, why, best_round(judged, args.margin, kept)


def drop_weights(rounds: list[dict], kept: set[str]) -> None:
    """Remove the weights of runs that are no result; their scores stay."""
    for found in rounds:
        for line in found["models"].values():
            for part in ("best_model", "final_model", "checkpoint") if line["run"] not in kept else ():
                shutil.rmtree(Path(line["run"]) / part, ignore_errors=True)


def main(argv: list[str] | None = None) -> dict:
    """Run the rounds, keep the best, say what it gains; returns what summary.json holds: "run", "gain" and all else."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_args(argv)
    folder = Path(args.output_dir)
    models, row_format = find_models(args)
    teach = how_taught(args, len(models))
    with disk_errors(folder, "--output_dir"):
        given = made_of(args)
        check_same(folder, given)
        if args.labelled_share:
            hide_labels(args, row_format, folder)
            made = {"train_data": "labelled", "unlabelled": "pool"}
            vars(args).update({flag: str(folder / "trial" / f"{name}.jsonl") for flag, name in made.items()})
            args.check_labels = True
        parts = open_parts(args, row_format, folder / "parts", given)
        told = [f"{count} {why}" for why, count in parts.about["left_out"].items() if count]
        about = parts.about
        print(f"{about['labelled']} labelled rows, {about['audit']} audit rows, {about['pool']} in the pool"
              + (f" (left out: {', '.join(told)})" if told else ""))  # fmt: skip
        if about["audit"] < 100:
            print(f"note: {about['audit']} audit rows tell little: one row is {1 / about['audit']:.1%} of them; "
                  "a larger --audit_ratio tells more")  # fmt: skip
        shared = ["--val_data", args.val_data, "--seed", str(args.seed)]
        shared += ["--calibration_data", args.calibration_data] if args.calibration_data else []
        rival_data = "" if args.no_rival else args.train_data
        plan = Plan(
            folder, parts, models, shared, teach, args.quota, args.least_confidence, args.gpus, rival_data
        )
        rounds, why, place = run_rounds(plan, args)
        result = conclude(plan, rounds, place, args)
        result |= {"stopped": why, "command": shlex.join(["python", "-m", "jobs.selftrain", *argv])}
        result |= {"commit": git_commit(), "versions": versions()}
        save_png(rounds_figure(result), str(folder / "selftrain.png"))
        write_text(folder / "summary.md", markdown(result))
        write_json(folder / "summary.json", result)
    print(report_text(result))
    print(f"stopped: {why}\nrun folder: {result['run']}; table, picture: {folder}/summary.md, selftrain.png")
    print(
        json.dumps({name: result[name] for name in ("run", "best_round", "gain", "gain_over_all_labelled")})
    )
    return result


def conclude(plan: Plan, rounds: list[dict], place: int, args: argparse.Namespace) -> dict:
    """The round that is kept, and what it gains."""
    alone, best = best_model(rounds[0]), best_model(rounds[place])
    runs = {"best": Path(best["run"]), "alone": Path(alone["run"])}
    if plan.rival_data:
        runs["all"] = plan.folder / "all_labelled" / runs["alone"].name
    if args.test_data:
        score_test(list(dict.fromkeys(runs.values())), args.test_data, device_of(plan.gpus))
    split = "test" if args.test_data else "validation"
    gains = {
        name: gain_over(runs["best"], run, split, args.resamples, args.seed)
        for name, run in runs.items()
        if name != "best"
    }
    if not args.keep_weights:
        drop_weights(rounds, {str(run) for run in runs.values()})
    return {
        "run": best["run"], "best_round": rounds[place]["round"], "multi_label": plan.parts.multi_label,
        "gain": gains["alone"], "gain_over_all_labelled": gains.get("all"), "teach": plan.teach,
        "models": list(plan.models), "parts": plan.parts.about, "rounds": rounds,
    }  # fmt: skip


if __name__ == "__main__":
    run_main(main)
