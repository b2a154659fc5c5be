"""Human feedback on a classifier's predictions: a file for people to fill in, or one filled in by a simulated person.

    python -m jobs.feedback collect RUN --data rows.jsonl --output feedback.json --num_rows 200
    python -m jobs.feedback simulate feedback.json --output filled.json --error_rate 0.1 --seed 0

collect   predicts the rows, writes them with the most uncertain first; people put a number where "feedback" is null
simulate  fills it in from true_labels, with errors; for trials of what learns from feedback
A row: {"id", "text", "pair", "true_labels", "predicted_labels", "probabilities", "uncertainty", "feedback"}; id and
pair where the row has them. An output that ends in .json is a list, one in .jsonl has a row a line.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from scipy.special import entr, log_expit
from tqdm import tqdm

from core.errors import UserError, disk_errors, run_main
from core.feedback import check_ending, class_indices, named_labels
from core.flags import number, step_parser
from core.memory import keep_freed_memory
from core.metrics import probabilities
from core.predictions import prediction_rows
from core.rows import BadRows, RowError, RowFormat, half_pair, is_label, read_rows, show
from predict import WINDOW, Predictor, load, open_output
from rank_predict import RankPredictor

# collect


def uncertainty(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """How unsure each row's prediction is, in nats.

    Args:    logits: (n, C) float.
    Returns: (n,) float64: the entropy of the distribution over the classes, at most ln C; with multi_label the mean
             over the labels of each one's binary entropy, at most ln 2.
    """
    probs = probabilities(logits, multi_label)
    if not multi_label:
        return entr(probs).sum(axis=1)
    logits = np.asarray(logits, np.float64)
    others = probabilities(-logits, True)  # 1 - probs would be 0 from logit 37 on
    return -(probs * log_expit(logits) + others * log_expit(-logits)).mean(axis=1)


def rows_to_fill(
    rows: list[dict],
    logits: np.ndarray,
    label_names: list[str],
    multi_label: bool,
    thresholds: np.ndarray | None,
    num_rows: int = 0,
) -> list[dict]:
    """The rows with their predictions and an empty feedback, the most uncertain first, equal ones as they came.

    Args: logits: (n, C) | thresholds: (C,), with multi_label; None is 0.5 | num_rows: so many of them; 0: all.
    """
    unsure = uncertainty(logits, multi_label)
    order = np.argsort(-unsure, kind="stable")[: num_rows or None]
    predicted = prediction_rows(logits[order], label_names, multi_label, thresholds)
    probs, made = probabilities(logits[order], multi_label), []
    for k, place in enumerate(order):
        ranked = np.argsort(-logits[place], kind="stable")  # probabilities can tie where logits do not
        row = dict(rows[place])
        row["predicted_labels"] = predicted[k]["labels" if multi_label else "label"]
        row["probabilities"] = {label_names[c]: round(float(probs[k, c]), 4) for c in ranked}
        row["uncertainty"] = round(float(unsure[place]), 6)
        made.append(row | {"feedback": None})
    return made


def true_labels(row: dict, row_format: RowFormat, classes: dict[str, int], multi_label: bool) -> object:
    """What a data row carries as its labels; None where it carries none.

    Raises: RowError for labels that the run does not have or that are of another kind: the file that people filled
            in would be refused for them.
    """
    name = row_format.label_field or ("labels" if "labels" in row and "label" not in row else "label")
    if row.get(name) is None or row[name] == "":
        return None
    found = row_format.labels(row)
    class_indices(found, name, classes, multi_label)
    return found


def read_data(path: str, predictor: Predictor) -> tuple[list[dict], list[int], list[tuple[np.ndarray, int]]]:
    """The rows as they are to be written, their lines, their tokens. Raises UserError with all bad rows."""
    bad, rows, lines, tokens = BadRows(path), [], [], []
    row_format, classes = predictor.row_format, {name: k for k, name in enumerate(predictor.label_names)}
    for line, row in read_rows(path, bad, "--data"):
        try:
            text, pair = row_format.text(row)
            labels = true_labels(row, row_format, classes, predictor.multi_label)
            if "id" in row and half_pair(json.dumps(row["id"], ensure_ascii=False)):
                raise RowError(f"field 'id': {half_pair(json.dumps(row['id'], ensure_ascii=False))}")
        except RowError as error:
            bad.add(line, str(error))
            continue
        made = {"id": row["id"]} if "id" in row else {}
        made |= {"text": text} | ({} if pair is None else {"pair": pair})
        rows.append(made | {"true_labels": labels})
        lines.append(line)
    for first in range(0, len(rows), WINDOW):
        window = slice(first, first + WINDOW)
        pairs = [row["pair"] for row in rows[window]] if row_format.pair_field else None
        coded = predictor.encoder([row["text"] for row in rows[window]], pairs)
        for line, (ids, start, _) in zip(lines[window], coded, strict=True):
            if not ids:
                bad.add(line, "the text has no token: empty after tokenisation")
            tokens.append((np.asarray(ids, np.int32), start))
    bad.raise_if_any()
    return rows, lines, tokens


def score(
    predictor: Predictor, tokens: list[tuple[np.ndarray, int]], lines: list[int], path: str
) -> np.ndarray:
    """(n, C) float32 logits. Raises UserError naming the lines whose scores are not finite."""
    logits = np.empty((len(tokens), len(predictor.label_names)), np.float32)
    with tqdm(total=len(tokens), desc="predict", unit=" rows", disable=None, leave=False) as bar:
        for first in range(0, len(tokens), WINDOW):
            ids, starts = zip(*tokens[first : first + WINDOW], strict=True)
            logits[first : first + WINDOW] = predictor.score_ids(list(ids), np.array(starts))  # GPU D2H
            bar.update(len(ids))
    bad = BadRows(path)
    for k in np.flatnonzero(~np.isfinite(logits).all(axis=1)):
        bad.add(lines[k], "a score is not finite: the run has diverged, or --amp is too narrow for it")
    bad.raise_if_any()
    return logits


def collect(args: argparse.Namespace) -> dict:
    """Predict, write the rows to fill in; returns counts and mean uncertainties in nats."""
    keep_freed_memory()
    predictor = load(args.run, args.device, args.amp)
    if isinstance(predictor, RankPredictor):
        raise UserError(f"{args.run}: is a ranker; expected a classifier's run: feedback is on labels")
    names, several, cuts = predictor.label_names, predictor.multi_label, predictor.thresholds
    if several and cuts is None:
        print(f"note: {args.run} holds no thresholds: labels hold from 0.5 on", file=sys.stderr)
    rows, lines, tokens = read_data(args.data, predictor)
    with make_output(args.output) as out:  # opened first: what cannot be written costs no GPU time
        logits = predictor.calibrate(score(predictor, tokens, lines, args.data))
        made = rows_to_fill(rows, logits, names, several, cuts, args.num_rows)
        out.write(as_text(made, args.output))
    mean = sum(row["uncertainty"] for row in made) / len(made)
    mean_all = float(uncertainty(logits, several).mean())
    most = "ln 2" if several else f"ln {len(names)}"
    print(
        f"{args.data}: {len(rows)} rows, {sum(row['true_labels'] is not None for row in rows)} with true labels\n"
        f"mean uncertainty {mean_all:.3f} nats, of at most {math.log(2 if several else len(names)):.3f} ({most})\n"
        f"written: {args.output}, {len(made)} rows, the most uncertain first, mean {mean:.3f} nats\n"
        'to do: put a number where "feedback" is null: 1 right, 0 wrong, or between; or from -1 (wrong) to 1 (right), '
        "which a file says by one negative number; rows left at null are left out"
    )
    result = {"output": args.output, "rows": len(made), "rows_read": len(rows)}
    return result | {"mean_uncertainty": round(mean, 6), "mean_uncertainty_read": round(mean_all, 6)}


# simulate


def row_accuracy(row: dict, multi_label: bool) -> float:
    """How right a row's predicted labels are: 1 or 0; for label sets 1 - Hamming loss.

    That is over the labels in "probabilities"; where the row has none, over those that it names (1 for no name).
    Raises:  RowError without true labels, or for labels that are none of "probabilities".
    """
    if row.get("true_labels") is None:
        raise RowError("no 'true_labels'; simulated feedback is made from them")
    if row.get("predicted_labels") is None:
        raise RowError("no 'predicted_labels'; expected what `collect` wrote")
    probs = row.get("probabilities")
    if probs is not None and not isinstance(probs, dict):
        raise RowError(f"field 'probabilities' is {show(probs)}; expected {{name: p}}")
    sides = {name: named_labels(row[name], name, multi_label) for name in ("predicted_labels", "true_labels")}
    for name in sides if probs else ():
        class_indices(row[name], name, {label: k for k, label in enumerate(probs)}, multi_label)
    predicted, true = sides.values()
    if not multi_label:
        return float(predicted == true)
    names = probs or predicted | true
    return sum(predicted.get(n, False) == true.get(n, False) for n in names) / len(names) if names else 1.0


def simulate(args: argparse.Namespace) -> dict:
    """Fill in feedback from the true labels, write; returns counts.

    Labels are sets unless half the rows give one as it is, outside a list: then a list must hold just one.
    """
    bad, lines, rows = BadRows(args.feedback), [], []
    for line, row in read_rows(args.feedback, bad, "FEEDBACK"):
        lines.append(line)
        rows.append(row)
    num_plain = sum(is_label(row.get("predicted_labels")) or is_label(row.get("true_labels")) for row in rows)
    multi_label = num_plain * 2 < len(rows)
    accuracies = np.zeros(len(rows))
    for k, (line, row) in enumerate(zip(lines, rows, strict=True)):
        try:
            accuracies[k] = row_accuracy(row, multi_label)
            half = half_pair(json.dumps(row, ensure_ascii=False))
            if half:
                raise RowError(f"the row as JSON: {half}")
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    # one number a row, whatever the rate: a higher rate turns the same rows and more
    is_wrong = np.random.default_rng(args.seed).random(len(rows)) < args.error_rate
    values = np.where(is_wrong, 1 - accuracies, accuracies).round(6)
    made = [row | {"feedback": float(value)} for row, value in zip(rows, values, strict=True)]
    if args.hide_labels:
        made = [row | {"true_labels": None} for row in made]
    with make_output(args.output) as out:
        out.write(as_text(made, args.output))
    num_replaced = sum(row.get("feedback") not in (None, "") for row in rows)
    replaced = f", {num_replaced} had feedback before, which is replaced" if num_replaced else ""
    print(
        f"{args.feedback}: {len(rows)} rows{replaced}\n"
        f"written: {args.output}, mean feedback {values.mean():.3f} (without errors {accuracies.mean():.3f}), "
        f"{is_wrong.sum()} wrong ({is_wrong.mean():.1%}; --error_rate {args.error_rate:g}, --seed {args.seed})"
    )
    result = {"output": args.output, "rows": len(rows), "wrong": int(is_wrong.sum())}
    return result | {"mean_feedback": round(float(values.mean()), 6)}


# The command


def as_text(rows: list[dict], path: str) -> str:
    """The rows as JSON: a list, easy to edit, for a path in .json; else one a line."""
    if Path(path).suffix.lower() == ".json":
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@contextmanager
def make_output(path: str) -> Iterator[TextIO]:
    """open_output, and the folder where there is none."""
    with disk_errors(path, "--output"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open_output(path) as file:
        yield file


STEPS = {
    "collect": (collect, "Predict rows, and write them for people to fill in, the most uncertain first."),
    "simulate": (simulate, "Fill in feedback from true_labels, some of it wrong. Loads no model."),
}


# fmt: off
def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """The step and its flags."""
    step, parser, rest = step_parser("jobs.feedback", __doc__, STEPS, argv)
    flag = parser.add_argument
    if step == "collect":
        flag("run", metavar="RUN", help="a classifier's run folder that train.py made")
        flag("--data", required=True, metavar="FILE",
             help="rows in JSON, JSONL, CSV or TSV, in the columns that the run was trained on; labels may be missing")
        flag("--num_rows", type=number(int, 0), default=0, help="write only so many, the most uncertain; 0: all")
        flag("--amp", choices=("run", "auto", "bf16", "fp16", "off"), default="off",
             help="autocast type; off: float32; run: as the run was evaluated, faster")
        flag("--device", default=None, help="cuda, cuda:1, cpu; default: what there is")
    else:
        flag("feedback", metavar="FEEDBACK", help="rows that `collect` wrote, .json or .jsonl, with true_labels")
        flag("--error_rate", type=number(float, 0, 1), default=0.0,
             help="the chance that a row's feedback is turned round, x into 1 - x (default: 0)")
        flag("--hide_labels", action="store_true", help="write no true_labels: feedback alone is left to learn from")
        flag("--seed", type=number(int, 0), default=0, help="of which rows those are (default: 0)")
    flag("--output", required=True, metavar="FILE", help="rows to write: .json (a list) or .jsonl (one a line)")
    args = parser.parse_args(rest)
    source, args.step = args.data if step == "collect" else args.feedback, step
    output = Path(args.output)
    if output.is_dir():
        raise UserError(f"--output {args.output}: is a folder; give a file")
    if output.resolve() == Path(source).resolve():
        raise UserError(f"--output {args.output}: is the input; give another file")
    check_ending(output, "--output")
    if step == "simulate":
        check_ending(source, "FEEDBACK")
    return args
# fmt: on


def main(argv: list[str] | None = None) -> dict:
    """Run one step; returns what the last line of the output says."""
    args = parse_flags(argv)
    result = STEPS[args.step][0](args)
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_main(main)
