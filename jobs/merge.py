"""Fold a run's adapter into its base: a plain model folder that loads without peft and runs without the extra products.

    python -m jobs.merge runs/minimind2/trec/20260101-120000-seed0                  # writes RUN/merged_model
    python -m jobs.merge RUN --dtype bf16 --output_dir models/mine --rows 1000

The base's weights are never edited in place: the sum is made in float32 as a new tensor and rounded once. Before it is
written, the run's validation rows (or --data) are scored with the adapter beside its base and with the merged weights,
in float32 and in bfloat16: how far the logits move and how many predictions flip is printed for each.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from archs.build import Classifier
from archs.lora import adapters, merged_state, remove_lora
from archs.saving import load_model, save_model
from core.errors import UserError, disk_errors, run_main
from core.files import copy_file, found_folder
from core.flags import Parser, number
from core.memory import choose_device
from core.results_table import format_table
from core.rows import BadRows, read_rows
from core.runs import RunRecord
from jobs.calibration_files import first_thresholds
from predict import WINDOW, Predictor, read_window

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


# fmt: off
def parse_args(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", metavar="RUN", help="a run that train.py made with --lora_rank, or one of its model folders")
    flag("--output_dir", default="", metavar="DIR", help="default: RUN/merged_model")
    flag("--data", default="", metavar="FILE", help="rows that are scored both ways; default: the run's --val_data")
    flag("--rows", type=number(int, 1, WINDOW), default=1000, help=f"at most so many of them, {WINDOW} at the most")
    flag("--dtype", choices=tuple(DTYPES), default="float32", help="of the weights that are written")
    flag("--device", default=None, help="cuda, cuda:1, cpu; default: what there is")
    return parser.parse_args(argv)
# fmt: on


def merge(model: Classifier, dtype: torch.dtype) -> Classifier:
    """A copy of a classifier with its adapters folded into the weights, its transformers model in a type."""
    state = merged_state(model.inner)
    merged = copy.deepcopy(model)
    remove_lora(merged.inner)
    merged.inner.load_state_dict(state, strict=False)
    merged.inner.to(dtype)
    return merged.eval()


def score(
    model: Classifier, tokenizer: PreTrainedTokenizerBase, about: dict, rows: tuple, dtype: str, device: str
) -> np.ndarray:
    """(n, C) float32 logits of (texts, pairs), in float32 or with bfloat16 autocast."""
    amp = "bf16" if dtype == "bf16" else "off"
    return Predictor(model, tokenizer, about, None, torch.device(device), amp, "auto").scores(*rows)


def compare(before: np.ndarray, after: np.ndarray, cuts: np.ndarray | None) -> dict:
    """The largest move of a logit, and the share of rows whose prediction flips.

    Args: cuts: (C,) the logits from which labels hold, with several a row; None: one label a row.
    """
    if cuts is not None:
        flips = ((before >= cuts) != (after >= cuts)).any(axis=1)
    else:
        flips = before.argmax(axis=1) != after.argmax(axis=1)
    return {"largest_change": float(np.abs(before - after).max()), "flipped_frac": float(flips.mean())}


def main(argv=None) -> dict:
    """Merge, compare, write; returns what each type's comparison came to."""
    args = parse_args(argv)
    run = Path(args.run)
    folder = run if (run / "bareloop.json").is_file() else found_folder(run / "best_model")
    model, tokenizer, about = load_model(folder)
    if about.get("task") == "rank":
        raise UserError(f"{args.run}: is a ranker; only classifiers are merged so far")
    if not adapters(model.inner):
        raise UserError(
            f"{args.run}: holds no adapter: nothing to merge; expected a run made with --lora_rank"
        )
    output = Path(args.output_dir or (folder.parent / "merged_model"))
    if output.exists():
        raise UserError(f"--output_dir {output}: is there already; remove it or give another")
    data = args.data
    if not data and (folder.parent / "run.json").is_file():
        data = RunRecord.read(folder.parent).record["arguments"]["val_data"]
        if not Path(data).is_file():
            raise UserError(f"{folder.parent}: its validation rows {data} are not here: give --data")
    if not data:
        raise UserError("--data: give rows to compare on; this folder belongs to no run")
    device = str(choose_device(args.device))
    merged = {name: merge(model, DTYPES[name]) for name in DTYPES}
    bad = BadRows(data)
    predictor = Predictor(model, tokenizer, about, None, torch.device(device), "off", "auto")
    texts, pairs, _, _ = read_window(read_rows(data, bad, "--data"), predictor.row_format, bad, [])
    bad.raise_if_any()
    rows = texts[: args.rows], pairs and pairs[: args.rows]
    validation, cuts = folder.parent / "validation", None
    if about["multi_label"]:  # of the model's own scores, calibrated or not
        at = np.clip(first_thresholds(validation, about["label_names"])[0], 1e-9, 1 - 1e-9)
        cuts = np.log(at / (1 - at))
    table, found = [], {}
    for name, copied in merged.items():
        before = score(model, tokenizer, about, rows, name, device)
        after = score(copied, tokenizer, about, rows, name, device)
        found[name] = compare(before, after, cuts)
        told = {"largest logit change": f"{found[name]['largest_change']:.2g}"}
        told["flipped"] = f"{found[name]['flipped_frac']:.2%}"
        table.append((f"{name}, {len(rows[0])} rows", told))
    print(format_table(table, ["largest logit change", "flipped"]))
    about = {name: value for name, value in about.items() if name not in ("lora", "base_model")}
    with disk_errors(output, "--output_dir"):
        save_model(output, merged[args.dtype], tokenizer, about)
        for name in ("calibration", "thresholds", "thresholds.uncalibrated"):
            if (validation / f"{name}.json").is_file():
                copy_file(validation / f"{name}.json", output / f"{name}.json")
    print(f"\nmerged model: {output} ({args.dtype})")
    result = {"merged": str(output), "n": len(rows[0]), **found}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    run_main(main)
