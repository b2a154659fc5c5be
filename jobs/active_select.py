"""Which rows of a pool are to be labelled next, by what a finished run says of them, as a file for people.

n rows of the pool, C classes, k rows chosen.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.metrics import probabilities
from core.predictions import RowPredictor, prediction_rows
from core.runs import RunRecord
from core.spent import read_uses, refuse_test_rows
from jobs.active_rows import MOST_NAMED, SHOWN, Rows, label_names_of, read_texts, write_rows
from jobs.active_scores import NEED_STATES, choose, score_texts
from predict import load
from rank_predict import RankPredictor


def unspent(pool: Rows, run: Path, train_data: str, own: Rows | None) -> tuple[Rows, dict[str, int]]:
    """The pool without rows that the run has learnt from or was chosen by, each text once; how many were left out.

    Args:   train_data: the run's, "" where it does not tell | own: its rows, where they were read: they are left out.
    Raises: UserError when rows of the pool are test rows: a label for one makes a training row of it.
    """
    folders = [run, *([Path(train_data).parent] if train_data else [])]
    refuse_test_rows(pool.hashes, "--data", pool.path, folders)
    spent = [hashes for use, hashes in read_uses(run).items() if use != "test"]
    spent.append(np.zeros(0, np.uint64) if own is None else own.hashes)
    is_spent = np.isin(pool.hashes, np.concatenate(spent))
    keep = ~is_spent & pool.is_first
    left_out = {"spent": int(is_spent.sum()), "repeated": int((~is_spent & ~pool.is_first).sum())}
    if not keep.any():
        raise UserError(
            f"--data {pool.path}: all {len(pool)} rows are the run's own rows already; give others"
        )
    return pool.part(keep), left_out


def rows_to_label(pool: Rows, chosen: np.ndarray, logits: np.ndarray, predictor: RowPredictor) -> list[dict]:
    """The chosen rows as people get them: their own columns, what the run says of them, an empty label.

    Args: chosen: (k,) indices, the most wanted first | logits: (n, C), calibrated.
    """
    several, names = predictor.multi_label, predictor.label_names
    said = prediction_rows(logits[chosen], names, several, predictor.thresholds)
    probs, columns, made = probabilities(logits[chosen], several), label_names_of(predictor.row_format), []
    empty = {columns[-1] if several else columns[0]: None}
    for k, place in enumerate(chosen):
        row = {name: value for name, value in pool.rows[place].items() if name not in columns}
        row["predicted"] = said[k]["labels" if several else "label"]
        ranked = np.argsort(-logits[place], kind="stable")
        row["probabilities"] = {names[c]: round(float(probs[k, c]), 4) for c in ranked}
        made.append(row | {"wanted": k + 1} | empty)
    return made


def select(args: argparse.Namespace) -> dict:
    """Choose rows of a pool by what a run says of them, and write them for people to label."""
    if Path(args.output).exists():
        raise UserError(
            f"--output {args.output}: is there already, and may hold people's labels; give another"
        )
    run, rng = Path(args.run), np.random.default_rng(args.seed)
    predictor = load(run, args.device, args.amp)
    if isinstance(predictor, RankPredictor):
        raise UserError(f"{run}: is a ranker; expected a classifier's run: labels are of texts")
    row_format, several = predictor.row_format, predictor.multi_label
    record = RunRecord.read(run).record if (run / "run.json").is_file() else {"arguments": {}}
    train_data = args.train_data or record["arguments"].get("train_data", "")
    own = None
    if args.train_data or args.acquisition == "coreset":  # before the pool is scored: no file, no GPU time
        own = read_texts(train_data, "--train_data", row_format)
    elif "train" not in read_uses(run):
        told = "the pool may hold some, give them with --train_data"
        print(f"note: {run} does not tell its training rows: {told}", file=sys.stderr)
    pool = read_texts(args.data, "--data", row_format)
    taken = set(SHOWN) & set().union(*pool.rows)
    if taken:
        raise UserError(f"--data {args.data}: has a column {min(taken)!r}, which select writes: rename it")
    pool, left_out = unspent(pool, run, train_data, own)
    labelled = None
    if args.acquisition == "coreset":
        labelled = score_texts(predictor, own.texts, own.pairs, own.lines, train_data, True)[1]
    with_states = args.acquisition in NEED_STATES
    found = score_texts(predictor, pool.texts, pool.pairs, pool.lines, args.data, with_states)
    logits, states = predictor.calibrate(found[0]), found[1]
    chosen = choose(args.acquisition, args.num_rows, logits, states, labelled, several, rng)
    write_rows(args.output, rows_to_label(pool, chosen, logits, predictor), "--output")
    field = label_names_of(row_format)[-1 if several else 0]
    wanted = 'a list of labels, ["a", "b"], or []' if several else "one label"
    print(
        f"{args.data}: {len(pool)} rows to choose from; left out: {left_out['spent']} that the run has used, "
        f"{left_out['repeated']} with the text of another\n"
        f"written: {args.output}, {len(chosen)} rows by {args.acquisition}, the most wanted first\n"
        f'to do: fill in "{field}" ({wanted}) of {", ".join(predictor.label_names[:MOST_NAMED])}'
        f"{', ...' * (len(predictor.label_names) > MOST_NAMED)}; rows left empty are left out by take"
    )
    return {"output": args.output, "rows": len(chosen), "pool": len(pool), **left_out}
