"""From one file of labelled rows to a calibrated classifier and an honest report, in one command and a budget of hours.

    make pipeline DATA=rows.jsonl ARGS="--hours 2"                  # without DATA: the built-in rows
    python -m jobs.pipeline --data rows.jsonl --output_dir runs/pipeline/mine --hours 0.5
    python -m jobs.pipeline --data rows.csv --text_field title,body --label_field topic --group_field author ...
    python -m jobs.pipeline --train_data a.jsonl --val_data b.jsonl --test_data c.jsonl --output_dir ... --skip search
    python -m jobs.pipeline ... --flags="@presets/roberta-base" --models minilm=bert:builtin:minilm --feedback said.json

split          train, validation, calibration and test, near-duplicates on one side (data.split)
baselines      majority class, TF-IDF with logistic regression
single         one model with --flags
search         those flags searched with Optuna (jobs.tune)
architectures  --models, written as for jobs.compare
feedback       what people said of predictions (ppo.py --feedback)
selftrain      --unlabelled rows
ensemble       more runs of the best flags, other seeds and poolings, all runs as one (jobs.ensemble)
calibration    probabilities and thresholds of the best run (jobs.calibrate)
test           every line scored on the test rows, which nothing before has read; then the report (jobs.report)

Choices are made on validation and calibration rows. --skip leaves stages out. With --hours a stage is begun only if it
can be finished; what there was no time for is said. The same command goes on where it stopped; a finished stage is not
done again. Written to --output_dir: split/, runs/, pipeline.json, report.html, report.md. The last line is JSON.
"""

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch

from core.errors import UserError, disk_errors, run_main
from core.evaluate import headline
from core.files import write_json
from core.flags import Parser, number
from core.report import is_better
from core.results_table import format_table
from core.rows import RowFormat, file_sha256
from core.runs import RunRecord, git_commit, hardware, versions
from jobs import stages
from jobs.cells import Cell
from jobs.compare import check_gpus, words
from jobs.final_scores import FinalRows, gain, intervals
from jobs.report import write_report

STAGES = {
    "split": stages.split_rows,
    "baselines": stages.baselines,
    "single": stages.single,
    "search": stages.search,
    "architectures": stages.architectures,
    "feedback": stages.feedback,
    "selftrain": stages.selftrain,
    "ensemble": stages.members,
    "calibration": stages.calibration,
}
NAMES = {"split": "rows divided", "single": "single model", "search": "search", "calibration": "calibrated"}
ALWAYS = ("split", "single")  # what all others stand on
OF_ALL_RUNS = ("ensemble", "calibration")
FREE = ("hours", "skip", "gpus", "members", "trials", "output_dir")  # what a second start may change
RESERVED = 0.1  # of --hours: for the ensemble's and the calibration's sums, test rows and the report
GIVEN = ("train_data", "val_data", "calibration_data", "test_data")


# fmt: off
def parse_args(argv: list[str] | None = None) -> Namespace:
    """The flags, checked as far as they can be without the data."""
    parser = Parser(__doc__)
    parser.fromfile_prefix_chars = None  # @presets/NAME is train.py's to read
    flag = parser.add_argument_group("rows").add_argument
    flag("--data", default="", metavar="FILE", help="all labelled rows, to be divided; or the parts:")
    for name in GIVEN:
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
    odd = [name for name in names if name in STAGES or name.startswith(("member", "ensemble")) or names.count(name) > 1]
    if odd:
        raise UserError(f"--models {odd[0]}: is the name of a stage, or given twice; take another name")
    return args
# fmt: on


class Pipeline:
    """The folder, the clock, and what has come out so far: `state` is pipeline.json."""

    def __init__(self, args: Namespace, command: list[str]):
        self.args, self.folder, self.began = args, Path(args.output_dir), time.monotonic()
        path = self.folder / "pipeline.json"
        self.state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        given = {name: value for name, value in vars(args).items() if name not in FREE}
        stored = self.state.get("given", given)
        differ = [f"--{name} was {stored.get(name)!r}, now {value!r}" for name, value in given.items()
                  if stored.get(name) != value]  # fmt: skip
        if differ:
            told = "; ".join(differ)
            raise UserError(
                f"--output_dir {self.folder}: holds another pipeline: {told}; give another folder"
            )
        self.spent_before = self.state.get("minutes", 0.0)
        fresh = {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "stages": [], "baselines": {}, "final": None}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.state = fresh | self.state | {"status": "running", "given": given, "arguments": vars(args)}
        self.state |= {"command": command, "commit": git_commit(), "versions": versions()}
        self.state["hardware"] = hardware(device, 1)
        columns = {name: getattr(args, name) for name in ("text_field", "pair_field", "label_field")}
        self.state["data"] = {"file": args.data or args.train_data, **columns}
        self.state["data"] |= {"split": "split/split.json"} if args.data else {}
        # lines of an earlier start, taken over stage by stage; what is made of all runs is made again after a new one
        self.known, self.state["stages"], self.has_new_runs = self.state["stages"], [], False
        self.check_files()

    # -- rows and flags

    @property
    def parts(self) -> dict[str, str]:
        """The file of each part that there is."""
        if not self.args.data:
            given = {part: getattr(self.args, name) for part, name in stages.PARTS.items()}
            return {part: path for part, path in given.items() if path}
        made = {part: self.folder / "split" / f"{part}.jsonl" for part in stages.PARTS}
        return {part: str(path) for part, path in made.items() if path.is_file()}

    def check_files(self) -> None:
        """Raise UserError for a file that is missing, or has changed since the first start."""
        hashes = self.state.setdefault("hashes", {})
        for name in ("data", *GIVEN, "feedback", "unlabelled"):
            path = getattr(self.args, name)
            if not path:
                continue
            if not Path(path).is_file():
                raise UserError(f"--{name} {path}: no such file")
            found = file_sha256(path)
            if hashes.setdefault(name, found) != found:
                raise UserError(
                    f"--{name} {path}: has changed since this pipeline began; give another --output_dir"
                )

    def row_format(self) -> RowFormat:
        """The columns that the flags name."""
        return RowFormat(self.args.text_field or "text", self.args.pair_field, self.args.label_field)

    def labels(self) -> tuple[list[str], bool, RowFormat]:
        """The training rows' label names, whether a row has several, and the columns."""
        names, several = stages.label_names(self.parts["train"], self.row_format())
        self.state |= {"label_names": names, "multi_label": several}
        return names, several, self.row_format()

    def columns(self) -> list[str]:
        """Which columns hold what."""
        given = {name: getattr(self.args, name) for name in ("text_field", "pair_field", "label_field")}
        return [word for name, value in given.items() if value for word in (f"--{name}", value)]

    def calibration_flags(self) -> list[str]:
        """Where the calibration rows are."""
        return ["--calibration_data", self.parts["calibration"]] if "calibration" in self.parts else []

    def row_flags(self) -> list[str]:
        """Where the rows are, but for test rows, which no run sees."""
        rows = ["--train_data", self.parts["train"], "--val_data", self.parts["validation"]]
        return [*rows, *self.calibration_flags()]

    def shared_flags(self) -> list[str]:
        """What every run has in common with the single one."""
        return [*self.columns(), "--metric", self.args.metric, "--seed", str(self.args.seed)]

    def flags(self) -> list[str]:
        """Of the single model."""
        return [*words(self.args.flags, "--flags"), *self.row_flags(), *self.shared_flags()]

    def best_flags(self) -> list[str]:
        """Of the better of the single model and the search."""
        if self.best_of(["single", "search"])["key"] == "search":
            return [f"@{self.folder / 'search' / 'preset'}", *self.row_flags(), *self.shared_flags()]
        return self.flags()

    def preset_text(self) -> str:
        """What the search found, "" where there is none."""
        path = self.folder / "search" / "preset"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    # -- the clock

    def minutes(self) -> float:
        """Spent so far, over all starts."""
        return self.spent_before + (time.monotonic() - self.began) / 60

    def minutes_left(self) -> float:
        """Of --hours, less what the end is expected to take; inf without a limit."""
        return (1 - RESERVED) * 60 * self.args.hours - self.minutes() if self.args.hours else math.inf

    def minutes_of(self, key: str) -> float:
        """What a line's run takes, over all of its starts."""
        line = next(line for line in self.state["stages"] if line["key"] == key)
        timings = RunRecord.read(self.folder / line["run"]).record["timings"]
        return max(timings["total_s"], timings.get("train_s", 0.0)) / 60

    def forecast_minutes(self, flags: list[str]) -> float:
        """What a run is expected to take; 0 without a limit, since nobody asks."""
        return stages.dry_run_minutes(flags) if self.args.hours else 0.0

    # -- runs

    def is_trained(self, name: str) -> bool:
        """Whether a run of this name is finished."""
        folder = self.folder / "runs" / name
        return (folder / "run.json").is_file() and RunRecord.read(folder).record["status"] == "finished"

    def train(self, flags: dict[str, list[str]]) -> tuple[dict[str, Path], dict[str, str]]:
        """Train what is not trained yet, one run a name. Returns the folders of the finished, and why others failed."""
        folders = {name: self.folder / "runs" / name for name in flags}
        cells = [Cell(folders[name], (*own, f"--output_dir={folders[name]}")) for name, own in flags.items()]
        failed = stages.train_cells(cells, self.args.gpus.split(",") if self.args.gpus else [])
        return {name: folder for name, folder in folders.items() if name not in failed}, failed

    def run(self, command: list[str], name: str) -> None:
        """Run a command; what it prints goes to logs/NAME.log."""
        stages.run_command(command, self.folder / "logs" / f"{name}.log", name)

    def model_of(self, run: Path) -> str:
        """What a run was made from, and how large it is."""
        record = RunRecord.read(run).record
        return f"{record['model']['model_name']}, {record['num_parameters'] / 1e6:.1f} M parameters"

    def runs(self) -> list[Path]:
        """Of all lines so far."""
        return [self.folder / line["run"] for line in self.state["stages"] if line["run"]]

    def best_of(self, keys: list[str]) -> dict:
        """The line with the best validation score among these."""
        best, metric = None, self.state["metric"]
        for line in (line for line in self.state["stages"] if line["key"] in keys and line["run"]):
            if best is None or is_better(line["validation"], metric, best["validation"][metric]):
                best = line
        return best

    def best_run(self) -> Path:
        """The run of the best line so far."""
        return self.folder / self.best_of([line["key"] for line in self.state["stages"]])["run"]

    # -- the lines

    def write(self) -> None:
        """Write pipeline.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "pipeline.json", self.state | {"minutes": self.minutes()})

    def do(self, key: str, stage: Callable) -> None:
        """Run a stage, unless it is done, and enter its line or lines."""
        known = [line for line in self.known if line["stage"] == key]
        is_done = bool(known) and all(line["status"] == "done" for line in known)
        if is_done and not (self.has_new_runs and key in OF_ALL_RUNS):
            print(f"{key}: done before")
            self.state["stages"] += known
            return
        began, left = self.minutes(), f", {self.minutes_left():.1f} min left" if self.args.hours else ""
        print(f"\n== {key}{left}", flush=True)
        line = {"key": key, "name": NAMES.get(key, key), "what": stage.__doc__ or "", "run": None}
        try:
            if key in self.args.skip:
                raise stages.Skip("left out by --skip")
            found = stage(self)
            lines = found if isinstance(found, list) else [found]
        except stages.Skip as why:
            lines = [{"status": "no time" if why.no_time else "skipped", "why": str(why)}]
        except UserError as error:
            if key in ALWAYS:
                raise
            lines = [{"status": "failed", "why": str(error)}]
        for own in lines:
            self.enter(key, line | {"status": "done", "why": "", "minutes": self.minutes() - began} | own)
        self.write()

    def enter(self, stage: str, line: dict) -> None:
        """Add a line, with the scores of its run on validation rows."""
        blank = {
            "stage": stage,
            "validation": None,
            "is_cross_fitted": False,
            "test": None,
            "test_interval": None,
        }
        line = blank | {"gain": None, "details": {}} | line
        if line["run"]:
            record = RunRecord.read(Path(line["run"])).record
            line["validation"] = record["metrics"]["validation"]
            self.has_new_runs = True
            self.state.setdefault("metric", record["metric"])
            line["run"] = str(Path(line["run"]).relative_to(self.folder))
        if line["status"] != "done":
            print(f"{line['key']}: {line['status']}: {line['why']}")
        self.state["stages"].append(line)

    def finish(self) -> None:
        """Score every line on the test rows, with intervals and gains; choose nothing any more."""
        lines = [line for line in self.state["stages"] if line["run"]]
        final = self.best_of([line["key"] for line in lines if line["key"] != "calibration"])
        own = (line for line in lines if line["key"] == "calibration" and line["run"] == final["run"])
        calibrated = next(own, None)
        self.state["final"] = (calibrated or final)["key"]
        rows, scores = FinalRows(self.parts["test"], seed=self.args.seed), {}
        for line in lines:
            run = self.folder / line["run"]
            found = scores[line["key"]] = rows.of_run(run, raw=line["key"] != "calibration")
            line["test"] = headline(found.metrics)
            line["test_interval"] = intervals(found)["interval"]
            if line["key"] != "single":
                over = final["key"] if line["key"] == "calibration" else "single"
                line["gain"] = {"over": over} | gain(found, scores[over], rows.logits(run)[1].truth)
        rows.write(self.folder / (calibrated or final)["run"])
        if self.state["baselines"]:
            found = rows.baselines(self.parts["train"], self.parts["validation"], *self.labels())
            for name, numbers in found.items():
                self.state["baselines"][name]["test"] = numbers


def main(argv: list[str] | None = None) -> dict:
    """Run what is to be run, write the report; returns what the last line says."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    with disk_errors(args.output_dir, "--output_dir"):
        pipe = Pipeline(args, ["python", "-m", "jobs.pipeline", *argv])
        for key, stage in STAGES.items():
            pipe.do(key, stage)
        print("\n== test", flush=True)
        pipe.finish()
        pipe.state["status"] = "finished"
        pipe.write()
        report = write_report(pipe.folder)
    print(summary(pipe.state))
    final = next(line for line in pipe.state["stages"] if line["key"] == pipe.state["final"])
    last = {"pipeline": str(pipe.folder), "run": str(pipe.folder / final["run"]), "final": final["key"]}
    last |= {"test": final["test"], "gain": final["gain"], "minutes": pipe.minutes()} | report
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
    left_out = [
        f"{line['name']}: {line['status']}: {line['why']}"
        for line in state["stages"]
        if line["status"] != "done"
    ]
    return "\n".join(
        [
            "",
            f"{metric}; gains in macro F1 over the single model",
            format_table(table, columns),
            *left_out,
            "",
        ]
    )


if __name__ == "__main__":
    run_main(main)
