"""What a start costs as the data grows: 10 thousand, 100 thousand and a million rows.

    python -m bench.scale
    python -m bench.scale --sizes 10000 100000 --row_tokens 30

Made-up rows of random words (lengths geometric), the built-in tokenizer. For each size, in processes of their own: the
first start (read, check, tokenise into the cache), a second start (open the cache), the plan of a whole epoch (batches
and cuts of every step), and the resident memory that opening and planning add, a row. The last line is one JSON object.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.results import print_result
from core.errors import run_main
from core.results_table import format_table

WORDS = "time year people way day man thing woman life child world school state family group country".split()  # noqa: SIM905


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="rows")
    flag("--row_tokens", type=int, default=20, help="words a row, on average")
    flag("--batch_size", type=int, default=256)
    flag("--max_tokens", type=int, default=4096)
    flag("--model_name", default="builtin:minilm")
    flag("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)
# fmt: on


def write_rows(path: Path, num_rows: int, row_tokens: int) -> None:
    """A file of made-up rows."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for k in range(num_rows):
            count = min(120, 1 + int(rng.expovariate(1 / row_tokens)))
            text = f"{' '.join(rng.choices(WORDS, k=count))} {k}"
            file.write(json.dumps({"text": text, "label": k % 7}) + "\n")


def resident() -> int:
    """Bytes of memory of this process that are its own: mapped files are left out."""
    fields = dict(
        line.split(":")
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("Rss")
    )
    return 1024 * int(fields["RssAnon"].split()[0])


def start(args, folder: str) -> dict:
    """One start on the rows of a folder."""
    from archs.loading import load_tokenizer, resolve_name
    from core.cache import RowSource
    from core.plan import make_plan
    from core.rows import RowFormat
    from core.tokens import Encoder

    encoder = Encoder(load_tokenizer(resolve_name(args.model_name)), 128, "head", pair=False)
    before, began = resident(), time.perf_counter()
    rows = RowSource(encoder, RowFormat(), f"{folder}/cache").open(f"{folder}/rows.jsonl", "--train_data")
    opened = time.perf_counter()
    plan = make_plan(rows.lengths, args.batch_size, args.max_tokens, 0, packed=True)
    num_cuts = sum(
        len(plan.cuts(plan.rows(step), args.max_tokens, 0, 1)) for step in range(plan.steps_per_epoch)
    )
    planned = time.perf_counter()
    return {
        "open_s": opened - began,
        "plan_epoch_s": planned - opened,
        "plan_us_a_row": 1e6 * (planned - opened) / len(rows),
        "memory_mib": (resident() - before) / 2**20,
        "num_cuts": num_cuts,
    }


def main(argv=None) -> dict:
    """Every size; prints the table."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if args.worker:
        print(json.dumps(start(args, args.worker)))
        return {}
    found = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder, "rows.jsonl"), size, args.row_tokens)
            command = [sys.executable, "-m", "bench.scale", *argv, "--worker", folder]
            runs = [
                json.loads(
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
                        -1
                    ]
                )
                for _ in range(2)
            ]
        row = {"first_start_s": runs[0]["open_s"], "second_start_s": runs[1]["open_s"]}
        row |= {name: runs[1][name] for name in ("plan_epoch_s", "plan_us_a_row", "memory_mib")}
        row["bytes_a_row"] = runs[1]["memory_mib"] * 2**20 / size
        found.append((f"{size}", row))
        print(f"{size} rows done", flush=True)
    print(f"\nrows\n{format_table(found, list(found[0][1]))}\n")
    return print_result(args, found=dict(found))


if __name__ == "__main__":
    run_main(main)
