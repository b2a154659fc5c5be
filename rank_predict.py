"""What predict.py does with a ranker: rows {"question", "context", "candidates"} in, {"choice", "scores"} out.

n questions, K candidate places.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO

import numpy as np
import torch
from tqdm import tqdm

from archs.probes import choose_layout
from core.budget import Budget
from core.errors import UserError, disk_errors
from core.evaluate import headline, score_rows
from core.predictions import append_rows
from core.rank_batches import RankFeed
from core.rank_cache import rows_in_memory
from core.rank_encoder import RankEncoder, fault_of
from core.rank_metrics import ranking_metrics
from core.rank_report import rank_prediction_rows, rank_table
from core.rank_rows import RankRow, parse_rank_row
from core.rows import BadRows, RowError

WINDOW = 256  # questions scored together, sorted by length


class RankPredictor:
    """A loaded ranker. Call it with rows for prediction rows; `scores` gives (n, K) numbers."""

    def __init__(self, model, tokenizer, about: dict, device: torch.device, amp_dtype, max_tokens: int):
        self.encoder = RankEncoder(tokenizer, about["max_length"], about["prompt"], about["architecture"])
        self.layout, self.in_blocks = choose_layout(about["share_prefix"], "auto", model, device, amp_dtype)
        self.model, self.device, self.amp_dtype = model.to(device), device, amp_dtype
        self.pad_id, self.budget = tokenizer.pad_token_id or 0, Budget(max_tokens)

    def scores(self, rows: list[RankRow], bad: BadRows, lines: list[int]) -> np.ndarray:
        """(n, K) float32 scores, K the most candidates of a question; NaN where one has fewer.

        Where memory ends the budget is halved for good, and these rows are scored again.
        Raises: UserError naming the lines of rows that do not fit, have a candidate without a token, or get a score
                that is not finite.
        """
        coded = self.encoder(rows)
        for line, row in zip(lines, coded, strict=True):
            fault = fault_of(row, self.encoder.max_length)
            if fault:
                bad.add(line, fault)
        bad.raise_if_any()
        found = rows_in_memory(coded, [[0.0] * len(row.candidates) for row in rows], str(bad.path))
        feed = RankFeed(found, self.pad_id, self.device, self.layout, self.in_blocks, self.encoder.typed)
        scores = score_rows(self.model, self.model, feed, self.budget, self.amp_dtype, 0, 1)  # GPU D2H
        self.model.eval()
        keep = np.arange(scores.shape[1]) < found.sizes[:, None]
        for line in np.asarray(lines)[(keep & ~np.isfinite(scores)).any(axis=1)]:
            bad.add(int(line), "a score is not finite: the run has diverged, or --amp is too narrow for it")
        bad.raise_if_any()
        scores[~keep] = np.nan
        return scores

    def __call__(self, rows: list[dict]) -> list[dict]:
        """A row {"choice", "scores"} for each {"question", "candidates"}, with or without "context".

        Raises: UserError naming the rows (from 1) that are none.
        """
        bad, out = BadRows("rows"), []
        for window in windows(enumerate(rows, 1), bad, False):
            found = self.scores([row for _, row, _ in window], bad, [line for line, _, _ in window])
            out += rank_prediction_rows(found, np.array([len(row.candidates) for _, row, _ in window]))
        bad.raise_if_any()
        return out


def windows(
    source: Iterable[tuple[int, dict]], bad: BadRows, needs_rewards: bool
) -> Iterator[list[tuple[int, RankRow, dict]]]:
    """(line, checked row, row as read), WINDOW at a time. Raises UserError with the bad rows of a window."""
    source = iter(source)
    while window := list(islice(source, WINDOW)):
        kept = []
        for line, row in window:
            try:
                kept.append((line, parse_rank_row(row, needs_rewards), row))
            except RowError as error:
                bad.add(line, str(error))
        bad.raise_if_any()
        yield kept


def to_cells(row: dict) -> dict:
    """A prediction row as CSV columns, the scores joined by semicolons."""
    return {"choice": row["choice"], "scores": ";".join(map(str, row["scores"]))}


def predict_ranks(
    predictor: RankPredictor, args: argparse.Namespace, source: Iterator, bad: BadRows, out: TextIO, form: str
) -> dict:
    """Read, score, write; returns {"n", "questions_per_s"} and with --evaluate the metrics."""
    if args.generate:
        raise UserError("--generate: this run is a ranker; it answers with a choice, not with a word")
    for name in ("text_field", "pair_field", "label_field"):
        if getattr(args, name):
            raise UserError(f"--{name}: this run is a ranker; its rows have question, context and candidates")
    keep = [name for name in args.keep.split(",") if name]
    if {"choice", "scores"} & set(keep):
        raise UserError(
            f"--keep {args.keep}: the output has columns choice and scores of its own; keep others"
        )
    scores, rewards, num_rows, start = [], [], 0, time.perf_counter()
    with tqdm(unit=" questions", disable=None) as bar:
        for window in windows(source, bad, args.evaluate):
            lines, rows, read = zip(*window, strict=True)
            found = predictor.scores(list(rows), bad, list(lines))
            picks = rank_prediction_rows(found, np.array([len(row.candidates) for row in rows]))
            kept = [{name: row.get(name) for name in keep} for row in read]
            with disk_errors(args.output, "--output"):
                append_rows(out, kept, picks, form, num_rows == 0, to_cells)
            if args.evaluate:
                scores += list(found)
                rewards += [row.rewards for row in rows]
            num_rows += len(rows)
            bar.update(len(rows))
    bad.raise_if_any()
    result = {"n": num_rows, "questions_per_s": num_rows / (time.perf_counter() - start)}
    print(f"{num_rows} questions, {result['questions_per_s']:.1f} questions/s", file=sys.stderr)
    if args.evaluate:
        places = max(map(len, rewards))
        metrics = ranking_metrics(as_table(scores, places), as_table(rewards, places))
        print(rank_table({args.data: metrics}), file=sys.stderr if args.output == "-" else sys.stdout)
        result |= headline(metrics)
    return result


def as_table(rows: list, places: int) -> np.ndarray:
    """(n, places) float32 of rows of several lengths, NaN behind them."""
    out = np.full((len(rows), places), np.nan, np.float32)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row[:places]
    return out
