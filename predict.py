"""Predict with a finished run: rows in, predictions out, in the same order.

    python predict.py runs/minilm/docstrings/20260101-120000-seed0 --data rows.jsonl --output out.jsonl
    cat rows.jsonl | python predict.py RUN --data - --output - | head
    python predict.py RANKER --data questions.jsonl --output picks.jsonl    # rows {"question", "candidates"}
    python predict.py RUN --data rows.jsonl --output out.jsonl --generate   # T5 and decoders: what they really say
    python predict.py RUN --data test.csv --output out.csv --evaluate

In Python: `from predict import load; load("runs/...")(["a text", "another"])`; a ranker takes rows. A file is read in
windows, each sorted by length inside so that padding is small; memory does not grow with the file.
"""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from archs.generation import generate_answers
from archs.lora import frozen_dtype
from archs.probes import choose_packing
from archs.saving import load_model, read_about
from core.batches import Cut, make_cut, row_costs, to_device
from core.cache import LabelColumn
from core.calibration import read_fit
from core.errors import UserError, disk_errors, run_main
from core.evaluate import headline, score_cuts
from core.flags import Parser, number
from core.memory import auto_max_tokens, choose_amp, choose_device, keep_freed_memory, release_cached
from core.metrics import classification_metrics, probabilities
from core.plan import eval_cuts
from core.predictions import WINDOW, RowPredictor, append_rows
from core.prompts import Prompt, make_encoder
from core.results_table import format_per_class, format_table
from core.rows import BadRows, RowError, RowFormat, read_rows
from core.thresholds import cross_fitted
from ensemble_predict import EnsemblePredictor, is_ensemble, load_ensemble
from rank_predict import RankPredictor, predict_ranks


class Predictor(RowPredictor):
    """A loaded run of one model."""

    def __init__(self, model, tokenizer, about: dict, tuned: dict | None, device, amp: str, max_tokens):
        self.label_names, self.multi_label = about["label_names"], about["multi_label"]
        self.row_format = RowFormat(**about["row_format"])
        pair = bool(self.row_format.pair_field)
        prompt = Prompt(**about["prompt"]) if about.get("prompt") else None
        self.encoder = make_encoder(tokenizer, about["max_length"], about["truncate"], pair, prompt)
        kind = about["architecture"], amp == "run"  # what a run was trained in was forced then, if need be
        self.amp_dtype = choose_amp(about["amp"] if amp == "run" else amp, device, *kind)
        self.packed, self.in_blocks = choose_packing("auto", model, device, self.amp_dtype)
        self.model, self.device, self.pad_id = model.to(device), device, tokenizer.pad_token_id
        self.max_tokens = auto_max_tokens(device, about["max_length"]) if max_tokens == "auto" else max_tokens
        self.thresholds = tuned and np.array([tuned["thresholds"][name] for name in self.label_names])
        self.tuned_on = tuned and tuned["tuned_on"]
        self.tokenizer, self.label_words = tokenizer, about.get("label_words")

    def scores(self, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
        """(n, C) float32 logits of texts, in their order.

        Raises: UserError naming the texts (from 1) that have no token, or that are pairs where none belong.
        """
        if self.encoder.pair != (pairs is not None):
            raise UserError(
                f"this run was trained on {'pairs of texts' if self.encoder.pair else 'single texts'}"
            )
        coded = self.encoder(texts, pairs)
        bad = BadRows("texts")
        for place, (ids, _, _) in enumerate(coded, 1):
            if not ids:
                bad.add(place, "the text has no token: empty after tokenisation")
        bad.raise_if_any()
        return self.score_ids(
            [np.asarray(ids) for ids, _, _ in coded], np.array([start for _, start, _ in coded])
        )

    def score_ids(self, ids: list[np.ndarray], starts: np.ndarray) -> np.ndarray:
        """(n, C) float32 logits of token rows. Cost: H2D and GPU a cut, one D2H.

        Where memory ends the budget is halved for good, and these rows are scored again.
        """
        behind = self.model.branches
        lengths = row_costs(np.fromiter(map(len, ids), np.int64, len(ids)), behind, self.packed)
        cuts = eval_cuts(lengths, self.max_tokens, 0, 1, self.device.type, self.packed)

        def batch(cut: np.ndarray) -> Cut:
            parts = [ids[k] for k in cut], starts[cut], cut, None
            return to_device(make_cut(*parts, self.pad_id, self.packed, self.in_blocks, behind), self.device)

        try:
            found = score_cuts(self.model, map(batch, cuts), self.amp_dtype, self.device).numpy()
        except torch.OutOfMemoryError:
            if max(map(len, cuts)) == 1:
                raise UserError(
                    f"out of memory on a single row of {lengths.max()} tokens on {self.device}"
                ) from None
            found = None
        if found is None:  # outside of the handler, which holds on to the tensors of the failure
            release_cached(self.device)
            self.max_tokens //= 2
            return self.score_ids(ids, starts)
        logits = np.empty_like(found)
        logits[np.concatenate(cuts)] = found
        return logits

    def generate(self, texts: list[str]) -> list[tuple[str, int | None]]:
        """What the model really says to each text, greedily, and the class whose word that begins with (None: none).

        Raises: UserError for a run without label words.
        """
        if not self.label_words:
            raise UserError("--generate: this run answers with a head, not with a word")
        ids = [np.asarray(row) for row, _, _ in self.encoder(texts)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        answers = [("", None)] * len(ids)
        for cut in eval_cuts(lengths, self.max_tokens, 0, 1, self.device.type, False):
            with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                found = generate_answers(
                    self.model, self.tokenizer, [ids[k] for k in cut], self.device
                )  # GPU SYNC
            for k, answer in zip(cut, found, strict=True):
                answers[k] = answer
        return answers


def load(
    run: str | Path,
    device: str | None = None,
    amp: str = "off",
    max_tokens: int | str = "auto",
    raw: bool = False,
) -> Predictor | RankPredictor | EnsemblePredictor:
    """Load a run for prediction: texts go into a classifier, rows {"question", "candidates"} into a ranker.

    Args:    run: a run folder (its best_model/, calibration and thresholds of its validation/) or a model folder (its
             own) |
             device: cuda, cpu, ...; None takes what there is | amp: off (float32, the labels that transformers
             gives), run (as the run was evaluated), auto, bf16, fp16 | max_tokens: tokens a micro-batch |
             raw: leave out what jobs.calibrate found.
    Raises:  UserError when the folder is not a run, or the run has no best model yet.
    """
    run = Path(run)
    if is_ensemble(run):  # members are loaded raw: their own scores were combined
        member = partial(load, device=device, amp=amp, max_tokens=max_tokens, raw=True)
        return load_ensemble(run, member, raw)
    folder = run
    if not (run / "bareloop.json").is_file():
        folder = run / "best_model"
        if not run.is_dir():
            raise UserError(f"{run}: no such folder; expected a run folder that train.py made")
        if not (folder / "bareloop.json").is_file() and not folder.with_name("best_model.old").is_dir():
            raise UserError(
                f"{run}: holds no best_model/; expected the folder of a run that was evaluated once"
            )
    device = choose_device(device)
    about = read_about(folder)
    kind = about["architecture"], amp == "run"  # what was forced once is not refused now
    amp_dtype = choose_amp(about["amp"] if amp == "run" else amp, device, *kind)
    if about.get("task") == "rank":
        max_tokens = auto_max_tokens(device, about["max_length"]) if max_tokens == "auto" else max_tokens
        return RankPredictor(*load_model(folder, frozen_dtype(amp_dtype)), device, amp_dtype, max_tokens)
    calibration, tuned = read_fit(run if folder == run else run / "validation", about["label_names"], raw)
    predictor = Predictor(*load_model(folder, frozen_dtype(amp_dtype)), tuned, device, amp, max_tokens)
    predictor.calibration = calibration
    return predictor


@contextmanager
def open_output(path: str) -> Iterator[io.TextIOBase]:
    """Standard output for "-"; else a file that gets its name only when it is whole."""
    if path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    if Path(path).is_dir():
        raise UserError(f"--output {path}: is a folder; give a file")
    part = Path(path).with_name(Path(path).name + ".part")
    try:  # what no UTF-8 can hold, half a surrogate pair, is written as JSON's escape
        with disk_errors(path, "--output"):
            with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield file
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_cells(row: dict) -> dict:
    """A prediction row as CSV columns: label, labels (joined by ;) and one column p_NAME a class."""
    several = {"labels": ";".join(row["labels"])} if "labels" in row else {}
    columns = {f"p_{name}": value for name, value in row["probabilities"].items()}
    return {"label": row["label"], **several, **columns}


def read_window(
    source, row_format: RowFormat, bad: BadRows, keep: list[str]
) -> tuple[list, list | None, list, list]:
    """The next WINDOW rows: texts, pairs, rows as read, and what of each goes along into the output."""
    texts, pairs, rows, kept = [], [], [], []
    for line, row in islice(source, WINDOW):
        try:
            text, pair = row_format.text(row)
        except RowError as error:
            bad.add(line, str(error))
            continue
        texts.append(text)
        pairs.append(pair)
        rows.append((line, row))
        kept.append({name: row.get(name) for name in keep})
    return texts, pairs if row_format.pair_field else None, rows, kept


def evaluate(predictor: Predictor, logits: np.ndarray, labels: LabelColumn) -> dict:
    """The metrics of labelled rows, of their scores. Raises UserError for labels that the run does not know."""
    names, found = labels.finish()
    unknown = [name for name in names if name not in predictor.label_names]
    if unknown or (labels.kind != "one") != predictor.multi_label:
        odd = (
            f"labels that the run does not know: {', '.join(unknown[:20])}"
            if unknown
            else "another kind of labels"
        )
        raise UserError(
            f"--evaluate: the rows have {odd}; the run's are {', '.join(predictor.label_names[:30])}"
        )
    order = np.array([predictor.label_names.index(name) for name in names], dtype=np.int64)
    logits, tuned = predictor.calibrate(logits), None
    if predictor.multi_label:
        truth = np.zeros(logits.shape, np.uint8)
        truth[:, order] = found
        probs = probabilities(logits, True)
        tuned = cross_fitted(probs, truth) if predictor.thresholds is None else probs >= predictor.thresholds
    else:
        truth = order[found]
    metrics = classification_metrics(logits, truth, predictor.label_names, predictor.multi_label, tuned)
    if predictor.multi_label:
        metrics["thresholds_tuned_on"] = predictor.tuned_on or "these rows, cross-fitted in 5 folds"
    return metrics


# fmt: off
def parse_args(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", metavar="RUN", help="a run folder that train.py made")
    flag("--data", required=True, metavar="FILE", help="rows in JSON, JSONL, CSV or TSV; - is standard input")
    flag("--output", required=True, metavar="FILE", help="predictions, .jsonl or .csv; - is standard output")
    flag("--input_format", choices=("jsonl", "json", "csv", "tsv"), default="", help="default: by the file's ending")
    flag("--output_format", choices=("jsonl", "csv"), default="", help="default: by the file's ending")
    flag("--keep", default="", metavar="FIELDS", help="columns copied into the output: id,text")
    flag("--evaluate", action="store_true", help="print the metrics; the rows must carry labels")
    flag("--generate", action="store_true",
         help="label words: also generate text, put it into the rows, say how often it is a label and agrees")
    flag("--text_field", default="", help="column of the text; default: the run's own")
    flag("--pair_field", default="", help="column of the second text; default: the run's own")
    flag("--label_field", default="", help="column of the labels, for --evaluate; default: the run's own")
    flag("--raw", action="store_true", help="leave out the calibration that jobs.calibrate found, and its thresholds")
    flag("--max_tokens", type=number(int, 1, auto=True), default="auto", help="tokens a micro-batch, padding included")
    flag("--amp", choices=("run", "auto", "bf16", "fp16", "off"), default="off",
         help="autocast type; off: float32, the labels that transformers gives; run: as evaluated, faster")
    flag("--device", default=None, help="cuda, cuda:1, cpu; default: what there is")
    return parser.parse_args(argv)
# fmt: on


def main(argv=None) -> dict:
    """Read, predict, write; returns {"n", "rows_per_s"} and with --evaluate the metrics."""
    args = parse_args(argv)
    form = args.output_format or ("csv" if args.output.endswith(".csv") else "jsonl")
    keep_freed_memory()
    predictor = load(args.run, args.device, args.amp, args.max_tokens, args.raw)
    if isinstance(predictor, RankPredictor):
        bad = BadRows(args.data)
        with open_output(args.output) as out:
            return predict_ranks(
                predictor, args, read_rows(args.data, bad, "--data", args.input_format), bad, out, form
            )
    fields = {name: getattr(args, name) or getattr(predictor.row_format, name) for name in
              ("text_field", "pair_field", "label_field")}  # fmt: skip
    if predictor.multi_label and predictor.thresholds is None:
        print(f"note: {args.run} holds no thresholds: labels hold from 0.5 on", file=sys.stderr)
    row_format, keep = RowFormat(**fields), [name for name in args.keep.split(",") if name]
    columns = {f"p_{name}" for name in predictor.label_names}
    taken = ({"label", "labels", "probabilities", "generated"} | columns) & set(keep)
    if taken:
        raise UserError(f"--keep {args.keep}: the output has a column {min(taken)!r} of its own; keep others")
    bad, labels, logits, num_rows, start = BadRows(args.data), LabelColumn(), [], 0, time.perf_counter()
    num_labels = num_agree = 0
    source = read_rows(args.data, bad, "--data", args.input_format)
    with open_output(args.output) as out, tqdm(unit=" rows", disable=None) as bar:
        while True:
            texts, pairs, rows, kept = read_window(source, row_format, bad, keep)
            if args.evaluate:
                for line, row in rows:
                    try:
                        labels.add(row_format.labels(row))
                    except RowError as error:
                        bad.add(line, str(error))
            bad.raise_if_any()
            if not texts:
                break
            scores = predictor.scores(texts, pairs)
            if args.generate:
                for row, (text, said), best in zip(
                    kept, predictor.generate(texts), predictor.calibrate(scores).argmax(axis=1), strict=True
                ):
                    row["generated"] = text
                    num_labels += said is not None
                    num_agree += said == best
            with disk_errors(args.output, "--output"):
                append_rows(out, kept, predictor.rows(scores), form, num_rows == 0, to_cells)
            if args.evaluate:
                logits.append(scores)
            num_rows += len(texts)
            bar.update(len(texts))
    result = {"n": num_rows, "rows_per_s": num_rows / (time.perf_counter() - start)}
    print(f"{num_rows} rows, {result['rows_per_s']:.0f} rows/s", file=sys.stderr)
    if args.generate:
        result |= {
            "generated_label_frac": num_labels / num_rows,
            "generated_agrees_frac": num_agree / num_rows,
        }
        print(
            f"generated text begins with a label word in {num_labels} of {num_rows} rows, with the best scored one in "
            f"{num_agree}",
            file=sys.stderr,
        )
    if args.evaluate:
        metrics = evaluate(predictor, np.concatenate(logits), labels)
        table = format_table([(args.data, metrics)], list(headline(metrics)))
        print(
            f"\n{format_per_class(metrics)}\n\n{table}", file=sys.stderr if args.output == "-" else sys.stdout
        )
        result |= headline(metrics)
    return result


if __name__ == "__main__":
    try:
        run_main(main)
    except BrokenPipeError:  # the reader of our standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
