"""Side by side: predict.py and transformers.pipeline(batch_size=32) on the same run and rows, in turn.

    python -m bench.predict RUN --data rows/docstrings/train.jsonl --repeats 3

Reading the rows and loading the model are left out for both. The labels of both are compared row by row, for our
precision of the run and for float32. The last line is one JSON object.
"""

import argparse
import statistics
import time

import torch
from transformers import pipeline

from bench.results import print_result
from core.errors import run_main
from core.results_table import format_table
from core.rows import BadRows, read_rows
from predict import load


def main(argv=None) -> dict:
    """Time all settings in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run folder of train.py, with --head model")
    parser.add_argument("--data", default="rows/docstrings/train.jsonl", help="rows with one label each")
    parser.add_argument("--rows", type=int, default=0, help="only the first N rows; 0: all")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = {f"bareloop, {amp}": load(args.run, amp=amp) for amp in ("run", "off")}
    row_format = next(iter(ours.values())).row_format
    texts = [row_format.text(row)[0] for _, row in read_rows(args.data, BadRows(args.data), "--data")]
    texts = texts[: args.rows or None]
    max_length = next(iter(ours.values())).encoder.max_length
    theirs = pipeline("text-classification", f"{args.run}/best_model", device=device, dtype=torch.float32)
    base = "pipeline(batch_size=32)"
    calls = {base: lambda rows: theirs(rows, batch_size=32, truncation=True, max_length=max_length), **ours}
    times, labels = {name: [] for name in calls}, {}
    for call in calls.values():
        call(texts[:64])  # warm-up
    for _ in range(args.repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            rows = call(texts)
            times[name].append(time.perf_counter() - start)
            labels[name] = [row["label"] for row in rows]
    rows = []
    for name in calls:
        same = sum(a == b for a, b in zip(labels[name], labels[base], strict=True))
        speeds = [len(texts) / t for t in times[name]]
        pairs = [b / t for b, t in zip(times[base], times[name], strict=True)]
        rows.append((name, {"rows_per_s": statistics.median(speeds), "spread": max(speeds) - min(speeds),
                            "ratio": statistics.median(pairs), "same_labels": f"{same}/{len(texts)}"}))  # fmt: skip
    print(format_table(rows, ["rows_per_s", "spread", "ratio", "same_labels"]))
    return print_result(args, table=dict(rows))


if __name__ == "__main__":
    run_main(main)
