"""Side by side: transformers' Trainer and train.py on the same weights, rows, batch, epochs and precision, in turn.

    python -m bench.classify                                             # speed: one epoch of the docstring rows
    python -m bench.classify --data DIR --epochs 3 --seeds 0 1 2 --only trainer-random-sdpa bareloop   # scores too

Every run is a process of its own, so that peak memory is its own; with several seeds the settings take turns. Rows
and real tokens a second count training alone: set-up, evaluation and saving are left out, and so are the first
WARM_UP optimiser steps. The scores are those of the best epoch on the validation rows by --metric, chosen alike
for both; with several labels a row macro F1 is given at 0.5 and at cross-fitted thresholds (macro_f1_tuned). The last
line is one JSON object.
Needs requirements-bench.txt (accelerate) for the Trainer.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from bench.results import print_result
from bench.turns import run_worker
from core.errors import UserError, run_main
from core.results_table import format_table

WARM_UP = 3
TRAINER = {
    f"trainer-{sampling}-{attention}": {"sampling": sampling, "attention": attention}
    for sampling in ("random", "group_by_length", "batch_rebalance")
    for attention in ("sdpa", "eager")
}
OURS = {"bareloop": ["--attention", "auto"], "bareloop-sdpa": ["--attention", "sdpa"]}
OURS |= {"bareloop-eager": ["--attention", "eager"]}
SCORES = ("accuracy", "macro_f1", "macro_f1_tuned")
ACCUMULATION = 4  # batch_rebalance levels micro-batches inside a step, so it gets some to level


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", default="rows/docstrings", help="folder with train.jsonl and validation.jsonl or dev.jsonl")
    flag("--rows", type=int, default=0, help="only the first N training rows; 0: all")
    flag("--model_name", default="builtin:minilm")
    flag("--epochs", type=int, default=1)
    flag("--seeds", type=int, nargs="+", default=[0])
    flag("--batch_size", type=int, default=32)
    flag("--learning_rate", type=float, default=1e-4)
    flag("--max_length", type=int, default=256)
    flag("--amp", choices=("bf16", "off"), default="bf16")
    flag("--metric", default="auto", help="chooses the epoch; auto: macro_f1, with several labels macro_f1_tuned")
    flag("--only", nargs="+", default=[*TRAINER, *OURS], choices=[*TRAINER, *OURS], metavar="SETTING",
         help=f"of {', '.join([*TRAINER, *OURS])}")
    flag("--ours", default="", help="more flags for train.py, as one string")
    flag("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)
# fmt: on


def files(args) -> tuple[str, str]:
    """Training and validation files of the data folder."""
    folder = Path(args.data)
    val = next(
        (folder / name for name in ("validation.jsonl", "dev.jsonl") if (folder / name).is_file()), None
    )
    if val is None or not (folder / "train.jsonl").is_file():
        raise UserError(f"--data {folder}: expected train.jsonl and validation.jsonl (or dev.jsonl) in it")
    return str(folder / "train.jsonl"), str(val)


def first_rows(path: str, num_rows: int, folder: str) -> str:
    """The file itself, or a copy of its first rows."""
    if not num_rows:
        return path
    short = Path(folder) / "train.jsonl"
    with open(path, encoding="utf-8") as file:
        short.write_text("".join(islice(file, num_rows)), encoding="utf-8")
    return str(short)


def best_epoch(evals: list[dict], metric: str) -> dict:
    """The scores of the epoch that is best by the metric."""
    if metric == "auto":
        metric = "macro_f1_tuned" if "macro_f1_tuned" in evals[0] else "macro_f1"
    best = max(evals, key=lambda scores: scores[metric])
    return {name: best[name] for name in SCORES if name in best}


def run_ours(args, seed: int) -> dict:
    """One run of train.py; speed from its own step clock, one record a step."""
    import train
    from core.cache import read_cache

    with tempfile.TemporaryDirectory() as folder:
        train_data, val_data = files(args)
        flags = ["--train_data", first_rows(train_data, args.rows, folder), "--val_data", val_data]
        flags += ["--model_name", args.model_name, "--epochs", str(args.epochs), "--seed", str(seed)]
        flags += ["--batch_size", str(args.batch_size), "--learning_rate", str(args.learning_rate)]
        flags += ["--max_length", str(args.max_length), "--amp", args.amp, "--log_steps", "1"]
        flags += [
            "--weight_decay",
            "0.0",
            "--warmup",
            "0",
            "--cache_dir",
            folder,
            "--output_dir",
            f"{folder}/run",
        ]
        train.main([*flags, *OURS[args.worker], *args.ours.split()])
        records = [
            json.loads(line) for line in Path(folder, "run", "training_logs.jsonl").read_text().splitlines()
        ]
        record = json.loads(Path(folder, "run", "run.json").read_text())
        caches = [read_cache(path) for path in Path(folder).iterdir() if (path / "ids.bin").is_file()]
        num_rows = next(len(rows) for rows in caches if rows.meta["sha256"] == record["data"]["train"])
    steps = [r for r in records if "perf/step_ms" in r]
    tokens = sum(r["perf/tokens_per_s"] * r["perf/step_ms"] / 1e3 for r in steps[WARM_UP:])
    seconds = sum(r["perf/step_ms"] for r in steps[WARM_UP:]) / 1e3
    rows = num_rows * args.epochs - WARM_UP * args.batch_size
    evals = [{k.removeprefix("eval/"): v for k, v in r.items()} for r in records if "eval/macro_f1" in r]
    return best_epoch(evals, args.metric) | {
        "rows_per_s": rows / seconds,
        "tokens_per_s": tokens / seconds,
        "step_ms": 1e3 * seconds / max(1, len(steps) - WARM_UP),
        "peak_mib": record["peak_memory"]["mem/peak_mib"],
    }


def run_trainer(args, seed: int) -> dict:
    """One run of transformers' Trainer, with the same tokens, labels and metrics."""
    import numpy as np
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from archs.loading import load_tokenizer, resolve_name
    from core.cache import RowSource
    from core.evaluate import measure
    from core.memory import peak_memory
    from core.rows import RowFormat
    from core.tokens import Encoder

    setting = TRAINER[args.worker]
    folder = resolve_name(args.model_name)
    tokenizer = load_tokenizer(folder)
    ends, evals, eval_s = [], [], [0.0]

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter() - eval_s[0])

    class Rows(torch.utils.data.Dataset):
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, k):
            start, end = self.rows.starts[k], self.rows.starts[k + 1]
            label = self.rows.labels[k]
            label = label.astype(np.float32) if self.rows.multi_label else int(label)
            return {
                "input_ids": self.rows.ids[start:end].tolist(),
                "labels": label,
                "length": int(end - start),
            }

    class Timed(Trainer):
        def evaluate(self, *call, **kwargs):
            start = time.perf_counter()
            logits = np.asarray(self.predict(self.eval_dataset).predictions, np.float32)
            evals.append(measure(logits, val))
            eval_s[0] += time.perf_counter() - start
            return {}

    with tempfile.TemporaryDirectory() as temp:
        train_data, val_data = files(args)
        encoder = Encoder(tokenizer, args.max_length, "head", pair=False)
        source = RowSource(encoder, RowFormat(), f"{temp}/cache")
        train = source.open(first_rows(train_data, args.rows, temp), "--data")
        val = source.open(val_data, "--data", train)
        set_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(train.label_names),
            problem_type="multi_label_classification" if train.multi_label else "single_label_classification",
            attn_implementation=setting["attention"],
            dtype=torch.float32,
        )
        rebalance = setting["sampling"] == "batch_rebalance"
        split = ACCUMULATION if rebalance else 1
        options = TrainingArguments(
            output_dir=f"{temp}/out",
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size // split,
            gradient_accumulation_steps=split,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            train_sampling_strategy=setting["sampling"],
            length_column_name="length",
            bf16=args.amp == "bf16",
            use_cpu=not torch.cuda.is_available(),
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            logging_strategy="no",
        )
        collate = DataCollatorWithPadding(tokenizer)

        def padded(features):
            return collate([{k: v for k, v in f.items() if k != "length"} for f in features])

        trainer = Timed(
            model=model, args=options, train_dataset=Rows(train), eval_dataset=Rows(val), data_collator=padded,
            callbacks=[Clock()],
        )  # fmt: skip
        trainer.train()
    seconds = ends[-1] - ends[WARM_UP - 1]
    rows = len(train) * args.epochs - WARM_UP * args.batch_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return best_epoch(evals, args.metric) | {
        "rows_per_s": rows / seconds,
        "tokens_per_s": rows * float(train.lengths.mean()) / seconds,
        "step_ms": 1e3 * seconds / (len(ends) - WARM_UP),
        "peak_mib": peak_memory(device)["mem/peak_mib"],
    }


def main(argv=None) -> dict:
    """Run every setting with every seed, in turn, and print the table."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.worker:
        call = run_ours if args.worker in OURS else run_trainer
        print(json.dumps(call(args, args.seeds[0])))
        return {}

    files(args)
    found = {name: [] for name in args.only}
    for seed in args.seeds:
        for name in args.only:
            found[name].append(run_worker("bench.classify", argv, name, "--seeds", str(seed)))
            last = found[name][-1]
            scores = "  ".join(f"{k} {last[k]:.4f}" for k in SCORES if k in last)
            print(f"seed {seed}  {name:30} {last['rows_per_s']:8.1f} rows/s  {scores}", flush=True)
    rows = []
    for name, runs in found.items():
        medians = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
        spread = {
            f"{k}_spread": max(r[k] for r in runs) - min(r[k] for r in runs)
            for k in ("rows_per_s", *SCORES)
            if k in runs[0]
        }
        rows.append((name, medians | spread))
    columns = ["rows_per_s", "rows_per_s_spread", "tokens_per_s", "step_ms", "peak_mib"]
    columns += [f"{name}{end}" for name in SCORES if name in rows[0][1] for end in ("", "_spread")]
    print(f"\nmedians over seeds {args.seeds}\n{format_table(rows, columns)}\n")
    return print_result(args, medians=dict(rows), runs=found)


if __name__ == "__main__":
    run_main(main)
