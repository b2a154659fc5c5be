"""From one file of labelled rows to a calibrated classifier and an honest report, in one command and a budget of hours.

    make pipeline DATA=rows.jsonl ARGS="--hours 2"                  # without DATA: the built-in rows
    python -m jobs.pipeline --data rows.jsonl --output_dir runs/pipeline/mine --hours 0.5
    python -m jobs.pipeline --data rows.csv --text_field title,body --label_field topic --group_field author ...
    python -m jobs.pipeline --train_data a.jsonl --val_data b.jsonl --test_data c.jsonl --output_dir ... --skip search
    python -m jobs.pipeline ... --flags="@presets/roberta-base" --models minilm=bert:builtin:minilm --feedback said.json

split          train, validation, calibration and test, near-duplicates on one side (data.split)
baselines      majority class, TF-IDF with logistic regression
single         one model with --flags
regularisers   the same with --ema, --neftune, --rdrop or --fgm, a run each; all runs may be members of the ensemble
search         those flags searched with Optuna (jobs.tune)
architectures  --models, written as for jobs.compare
feedback       what people said of predictions (ppo.py --feedback)
selftrain      pseudo-labels of --unlabelled rows, round by round (jobs.selftrain)
ensemble       more runs of the best flags, other seeds and poolings, all runs as one (jobs.ensemble, --folds: stacked)
calibration    probabilities of the best run that come true as often as they say (jobs.calibrate)
thresholds     of each label, with several labels a row (jobs.calibrate)
test           every line scored on the test rows, which nothing before has read; then the report (jobs.report)

Choices are made on validation and calibration rows. --skip leaves stages out. With --hours a stage is begun only if it
can be finished; what there was no time for is said. The same command goes on where it stopped; a finished stage is not
done again. Written to --output_dir: split/, runs/, pipeline.json, report.html, report.md. The last line is JSON.
"""

import json
import sys
from argparse import Namespace

from core.errors import UserError, disk_errors, run_main
from core.evaluate import headline
from core.flags import Parser, number
from core.results_table import format_table
from jobs import stage_rows, stages
from jobs.compare import check_gpus, words
from jobs.final_scores import FinalRows, gain, intervals
from jobs.pipeline_state import ALWAYS, OF_ONE_RUN, PARTS, REGULARISERS, Pipeline
from jobs.report import write_report

STAGES = {
    "split": stage_rows.split_rows,
    "baselines": stage_rows.baselines,
    "single": stages.single,
    "regularisers": stages.regularisers,
    "search": stages.search,
    "architectures": stages.architectures,
    "feedback": stages.feedback,
    "selftrain": stages.selftrain,
    "ensemble": stages.members,
    "calibration": stages.calibration,
    "thresholds": stages.thresholds,
}


# fmt: off
def parse_args(argv: list[str] | None = None) -> Namespace:
    """The flags, checked as far as they can be without the data."""
    parser = Parser(__doc__)
    parser.fromfile_prefix_chars = None  # @presets/NAME is train.py's to read
    flag = parser.add_argument_group("rows").add_argument
    flag("--data", default="", metavar="FILE", help="all labelled rows, to be divided; or the parts:")
    for name in PARTS.values():
        flag(f"--{name}", default="", metavar="FILE", help="a part as it is, instead of --data")
    flag("--shares", default="", metavar="A,B,C,D", help="of the parts of --data (default: 0.7,0.1,0.1,0.1)")
    flag("--group_field", default="", help="column whose rows stay together: an author, a document")
    flag("--text_field", default="", help="column of the text; a,b joins columns (default: text)")
    flag("--pair_field", default="", help="column of a second text")
    flag("--label_field", default="", help="column of the label or labels (default: label or labels)")
    flag("--feedback", default="", metavar="FILE", help="rows of jobs.feedback, filled in by people")
    flag("--unlabelled", default="", metavar="FILE", help="rows without labels, for self-training")
    flag = parser.add_argument_group("models").add_argument
    flag("--flags", default="", help="of train.py, one string, for the single model: --flags=\"@presets/NAME\"")
    flag("--models", nargs="+", default=[], metavar="MODEL", help="more models: name=architecture:model[:more flags]")
    flag("--trials", type=number(int, 1), default=30, help="of the search, at the most")
    flag("--space", default="default", metavar="default|wide|FILE", help="what is searched, see jobs.tune")
    flag("--members", type=number(int, 0, auto=True), default="auto",
         help=f"more runs of the best flags; auto: {stages.MEMBERS}; with --hours what there is time for, up to "
              f"{stages.MOST_MEMBERS}")
    flag("--folds", type=number(int, 0, 20), default=0,
         help="of the ensemble: train each run so many times without a part of its rows, for stacking; 0: do not")
    flag("--metric", default="auto", help="what chooses; auto: macro_f1, with several labels macro_f1_tuned")
    flag = parser.add_argument_group("how").add_argument
    flag("--hours", type=number(float, 0), default=0.0,
         help="of wall time for all of it, earlier starts included; 0: no limit")
    flag("--skip", nargs="+", default=[], choices=[name for name in STAGES if name not in ALWAYS], metavar="STAGE",
         help="stages to leave out")
    flag("--gpus", default="", metavar="0,1", help="one run at a time on each; default: one run at a time")
    flag("--seed", type=number(int, 0), default=0, help="of the split, the runs, the search")
    flag("--output_dir", required=True, metavar="DIR", help="where everything is written")
    args = parser.parse_args(argv)
    if bool(args.data) == bool(args.train_data or args.val_data or args.calibration_data or args.test_data):
        raise UserError("expected --data, or the parts --train_data, --val_data and --test_data, and not both")
    if not args.data and not (args.train_data and args.val_data and args.test_data):
        missing = [f"--{name}" for name in ("train_data", "val_data", "test_data") if not getattr(args, name)]
        raise UserError(f"{', '.join(missing)}: not given; --data divides one file into all parts")
    check_gpus(args.gpus.split(",") if args.gpus else [])
    taken = ("--text_field", "--pair_field", "--label_field", "--metric")
    odd = [word for word in words(args.flags, "--flags") if word.partition("=")[0] in taken]
    if odd:
        raise UserError(f"--flags: {odd[0]} is a flag of the pipeline itself")
    names = [word.partition("=")[0] for word in args.models]
    taken = (*STAGES, *REGULARISERS)
    odd = [name for name in names if name in taken or name.startswith(("member", "ensemble")) or names.count(name) > 1]
    if odd:
        raise UserError(f"--models {odd[0]}: is the name of a stage, or given twice; take another name")
    return args
# fmt: on


def finish(pipe: Pipeline) -> None:
    """Score every line on the test rows, with intervals and gains; choose nothing any more."""
    lines = [line for line in pipe.state["stages"] if line["run"]]
    final = pipe.best_of([line["key"] for line in lines if line["key"] not in OF_ONE_RUN])
    added = [line for line in lines if line["key"] in OF_ONE_RUN and line["run"] == final["run"]]
    pipe.state["final"] = (added or [final])[-1]["key"]
    device = f"cuda:{pipe.args.gpus.split(',')[0]}" if pipe.args.gpus else None
    rows, scores = FinalRows(pipe.parts["test"], seed=pipe.args.seed, device=device), {}
    for line in lines:
        key, run = line["key"], pipe.folder / line["run"]
        found = scores[key] = rows.of_run(run, key not in OF_ONE_RUN, own_thresholds=key == "calibration")
        line["test"] = headline(found.metrics)
        line["test_interval"] = intervals(found)["interval"]
        if key != "single":
            over = final["key"] if key in OF_ONE_RUN else "single"
            line["gain"] = {"over": over} | gain(found, scores[over], rows.logits(run)[1].truth)
        if key == "calibration":
            line["details"]["test"] = rows.calibration(run)
            before, after = (line["details"]["test"][when]["ece"] for when in ("before", "after"))
            line["what"] = (
                f"{line['what'].split(';')[0]}; ECE on test rows {before:.3f} before, {after:.3f} after"
            )
    best = scores[pipe.state["final"]]
    truth = rows.logits(pipe.folder / final["run"])[1].truth
    pipe.state["whole"] = {"over": "single"} | gain(best, scores["single"], truth)
    rows.write(pipe.folder / final["run"])
    if pipe.state["baselines"]:
        found = rows.baselines(pipe.parts["train"], pipe.parts["validation"], *pipe.labels())
        for name, numbers in found.items():
            pipe.state["baselines"][name]["test"] = numbers


def main(argv: list[str] | None = None) -> dict:
    """Run what is to be run, write the report; returns what the last line says."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    with disk_errors(args.output_dir, "--output_dir"):
        pipe = Pipeline(args, ["python", "-m", "jobs.pipeline", *argv])
        for key, stage in STAGES.items():
            pipe.do(key, stage)
        print("\n== test", flush=True)
        finish(pipe)
        pipe.state["status"] = "finished"
        pipe.write()
        report = write_report(pipe.folder)
    print(summary(pipe.state))
    final = next(line for line in pipe.state["stages"] if line["key"] == pipe.state["final"])
    last = {"pipeline": str(pipe.folder), "run": str(pipe.folder / final["run"]), "final": final["key"]}
    last |= {"test": final["test"], "gain": pipe.state["whole"], "minutes": pipe.minutes()} | report
    print(f"report: {pipe.folder}/report.html\n{json.dumps(last)}")
    return last


def summary(state: dict) -> str:
    """The ablation table and what was left out."""
    metric, table = state["metric"], []
    for line in state["stages"]:
        if line["test"]:
            low, high = line["test_interval"]["macro_f1"]
            row = {"validation": line["validation"][metric], "test": line["test"].get(metric)}
            row |= {"macro_f1_95": f"{low:.3f} to {high:.3f}", "minutes": f"{line['minutes']:.1f}"}
            if line["gain"]:
                low, high = line["gain"]["interval"]
                row |= {"gain": line["gain"]["macro_f1"], "gain_95": f"{low:+.3f} to {high:+.3f}"}
            table.append((line["name"], row))
    for name, found in state["baselines"].items():
        row = {"validation": found["validation"].get(metric), "test": found.get("test", {}).get(metric)}
        table.append((name, row))
    columns = ["validation", "test", "macro_f1_95", "gain", "gain_95", "minutes"]
    whole, (low, high) = state["whole"]["macro_f1"], state["whole"]["interval"]
    left_out = [
        f"{line['name']}: {line['status']}: {line['why']}"
        for line in state["stages"]
        if line["status"] != "done"
    ]
    return "\n".join(
        [
            "",
            f"{metric}; gains in macro F1 over the single model; of calibration and thresholds over their run",
            format_table(table, columns),
            f"the whole over the single model: {whole:+.4f}, 95 % {low:+.3f} to {high:+.3f}",
            *left_out,
            "",
        ]
    )


if __name__ == "__main__":
    run_main(main)
