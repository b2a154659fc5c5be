"""Probabilities that come true as often as they say, and a decision threshold for each label, for a finished run.

    python -m jobs.calibrate runs/minilm2/goemotions/20260101-120000-seed0
    python -m jobs.calibrate RUN --method temperature --no_thresholds
    python -m jobs.calibrate RUN --data labelled.jsonl           # rows that the run has neither learnt nor is tested on
    python predict.py RUN --data rows.jsonl --output out.jsonl   # uses what is found; --raw leaves it out

Fitted on the run's --calibration_data, or --data, else on its validation rows; scored there in 5 folds, no row helping
to choose what it is scored with, and at the end on the run's test rows, which choose nothing. Thresholds are for
several labels a row and stand on the calibrated probabilities. Writes RUN/validation/calibration.json, thresholds.json
(the run's own stay beside them as *.uncalibrated.json) and two pictures. The saved scores stay as they are, so that the
same command gives the same again.
"""

import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from tqdm import tqdm

from core.cache import LabelColumn
from core.calibration import (
    MEASURES,
    METHODS,
    apply_calibration,
    choose_method,
    compare_calibration,
    cross_fitted_logits,
    fit_calibration,
    fit_name,
    row_losses,
)
from core.errors import UserError, disk_errors, run_main
from core.flags import Parser, number
from core.metrics import probabilities
from core.rows import BadRows, RowError, read_rows
from core.runs import RunRecord
from core.spent import count_common, read_uses, refuse_test_rows, row_hashes
from core.statistics import bootstrap_scores, percentile_interval, score_decisions
from core.thresholds import cross_fitted_tuning, threshold_intervals, tune_thresholds
from jobs.calibration_files import (
    as_calibration,
    class_table,
    draw,
    first_thresholds,
    results_text,
    too_few,
    write_files,
)
from jobs.scored import columns, has_split, read_scored
from predict import load, read_window
from rank_predict import RankPredictor

LEAST_ROWS = 10  # below, five folds have nothing to fit on


@dataclass
class Rows:
    """Scores with labels. n rows, C classes."""

    split: str  # validation, calibration, data
    path: str
    label_names: list[str]
    multi_label: bool
    logits: np.ndarray  # (n, C) float32
    truth: np.ndarray  # (n, C) bool
    hashes: np.ndarray  # (n,) uint64, or (0,) where the run does not tell


# fmt: off
def parse_args(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", metavar="RUN", help="a finished run of a classifier, or an ensemble")
    flag("--data", default="", metavar="FILE",
         help="labelled rows to fit on; default: the run's calibration rows, else its validation rows")
    flag("--method", choices=("auto", *METHODS), default="auto",
         help="auto: the simplest whose cross-fitted NLL is within a standard error of the lowest")
    flag("--no_thresholds", action="store_true",
         help="several labels: the run's own thresholds are carried over, so that decisions stay as they are")
    flag("--judge", choices=("together", "each"), default="together",
         help="which thresholds stay at 0.5. together: all, unless macro F1 gains for certain (95 %%), then a class "
              "that certainly loses. each: every class that does not gain for certain by itself")
    flag("--resamples", type=number(int, 100), default=2000, help="of the rows, for each interval")
    flag("--seed", type=int, default=0, help="deals the folds and draws the resamples")
    flag("--device", default=None, help="for --data: cuda, cuda:1, cpu; default: what there is")
    return parser.parse_args(argv)
# fmt: on


def read_own(run: Path) -> Rows:
    """The run's saved scores of its calibration rows, else of its validation rows."""
    split = "calibration" if has_split(run, "calibration") else "validation"
    found = read_scored(run, split)
    hashes = read_uses(run).get(split, np.zeros(0, np.uint64))
    return Rows(split, found.path, found.label_names, found.multi_label, found.logits, found.truth, hashes)


def score_file(run: Path, data: str, device: str | None) -> Rows:
    """Labelled rows of a file, scored in the number format that the run was evaluated in."""
    if RunRecord.read(run).record.get("status") != "finished":
        raise UserError(f"{run}: is not a finished run")
    predictor = load(run, device, amp="run", raw=True)
    if isinstance(predictor, RankPredictor):
        raise UserError(f"{run}: is a ranker; expected a classifier's run")
    bad, labels, scores, hashes = BadRows(data), LabelColumn(), [], []
    source = read_rows(data, bad, "--data")
    with tqdm(desc="scoring", unit=" rows", disable=None) as bar:
        while True:
            texts, pairs, rows, _ = read_window(source, predictor.row_format, bad, [])
            for line, row in rows:
                try:
                    labels.add(predictor.row_format.labels(row))
                except RowError as error:
                    bad.add(line, str(error))
            bad.raise_if_any()
            if not texts:
                break
            scores.append(predictor.scores(texts, pairs))
            hashes.append(row_hashes(texts, pairs))
            bar.update(len(texts))
    (names, found), known = labels.finish(), predictor.label_names
    unknown, is_multi = [name for name in names if name not in known], found.ndim == 2
    if unknown or is_multi != predictor.multi_label:
        odd = f"labels that it has not: {', '.join(unknown[:20])}" if unknown else "another kind of labels"
        raise UserError(f"--data {data}: the run's labels are {', '.join(known[:30])}; found {odd}")
    onehot = found == 1 if is_multi else found[:, None] == np.arange(len(names))
    truth = columns(onehot, names, known)
    return Rows("data", data, known, is_multi, np.concatenate(scores), truth, np.concatenate(hashes))


def unspent(run: Path, rows: Rows) -> tuple[Rows, list[str]]:
    """The rows that the run was neither trained on nor is tested on, and notes for the user.

    Raises: UserError when a --data file holds others, or the run's own rows are mostly others: these were given once
            for all, and short texts come twice in most files, so a few of them are left out.
    """
    uses, empty, notes = read_uses(run), np.zeros(0, np.uint64), []
    trained, tested = uses.get("train", empty), uses.get("test", empty)
    if "train" not in uses:
        notes.append(
            "note: the run does not tell which rows it was trained on; that these are others is not checked"
        )
    if rows.split == "data":
        refuse_test_rows(rows.hashes, "--data", rows.path, [run])
        num_trained = count_common(rows.hashes, trained)
        if num_trained:
            raise UserError(
                f"--data {rows.path}: the run was trained on {num_trained} of its {len(rows.hashes)} rows, and is too "
                "sure of them; give rows that it has not seen"
            )
    elif len(rows.hashes):
        is_spent = np.isin(rows.hashes, np.concatenate([trained, tested]))
        if is_spent.mean() > 0.5:
            raise UserError(
                f"{run}: {is_spent.sum()} of its {len(is_spent)} {rows.split} rows ({rows.path}) are training or test "
                "rows too, by their text; give others with --data"
            )
        if is_spent.any():
            of = f"{is_spent.sum()} of {len(is_spent)} {rows.split} rows"
            notes.append(f"note: {of} left out: they are training or test rows too, by their text")
        rows = replace(rows, logits=rows.logits[~is_spent], truth=rows.truth[~is_spent])
    if rows.split == "validation":
        notes.append(
            "note: these rows chose the step too, which flatters them a little; --calibration_data when training, or "
            "--data here, gives calibration rows of its own"
        )
    if len(rows.logits) < LEAST_ROWS:
        raise UserError(
            f"{rows.path}: {len(rows.logits)} rows; expected {LEAST_ROWS} at least, give more with --data"
        )
    if len(rows.label_names) < 2 and not rows.multi_label:
        raise UserError(f"{run}: has one class; there is nothing to calibrate")
    return rows, notes


def try_methods(rows: Rows, wanted: str, num_resamples: int, seed: int) -> tuple[str, np.ndarray, dict]:
    """The method (wanted, unless auto), its cross-fitted logits (n, C), and what each method came to."""
    fair = {
        name: cross_fitted_logits(name, rows.logits, rows.truth, rows.multi_label, seed=seed)
        for name in tqdm(METHODS, desc="methods", disable=None)
    }
    losses = {name: row_losses(logits, rows.truth, rows.multi_label) for name, logits in fair.items()}
    simplest, table = choose_method(losses, num_resamples, seed)
    for name, found in table.items():
        found["nll"] = float(losses[name].mean())
        found["labels_changed"] = count_changed(rows.logits, fair[name], rows.multi_label)
    method = simplest if wanted == "auto" else wanted
    return method, fair[method], table


def count_changed(before: np.ndarray, after: np.ndarray, multi_label: bool) -> int:
    """Rows whose best label is another one, or with several labels one that is on another side of 0.5."""
    if multi_label:
        return int(((before >= 0) != (after >= 0)).any(axis=1).sum())
    return int((before.argmax(axis=1) != after.argmax(axis=1)).sum())


def find_thresholds(rows: Rows, method: str, judge: str, num_resamples: int, seed: int) -> tuple[dict, dict]:
    """What tune_thresholds found with the intervals of the thresholds, and the macro F1 of each rule."""
    known: dict[bytes, np.ndarray] = {}
    with tqdm(total=31, desc="thresholds", unit=" fits", disable=None) as bar:

        def calibrated(some: np.ndarray) -> np.ndarray:
            key = some.tobytes()
            if key not in known:
                parameters = fit_calibration(method, rows.logits[some], rows.truth[some], True)
                known[key] = probabilities(apply_calibration(method, parameters, rows.logits, True), True)
                bar.update()
            return known[key]

        found = tune_thresholds(rows.truth, calibrated, judge, num_resamples, seed)
        decided = cross_fitted_tuning(rows.truth, calibrated, judge, num_resamples, seed)
        probs = calibrated(np.arange(len(rows.truth)))
    found["intervals"] = threshold_intervals(probs, rows.truth, num_resamples, seed)
    found["probs"] = probs
    return found, compare_rules(rows.truth, decided, "at 0.5", num_resamples, seed)


def compare_rules(
    truth: np.ndarray, decided: dict[str, np.ndarray], first: str, num_resamples: int, seed: int
) -> dict:
    """{rule: {"macro_f1", "gain", "low", "high"}}: gain over the first rule, with 95 % of resampled rows, paired."""
    scores = {name: score_decisions(truth, d[None])["macro_f1"][0] for name, d in decided.items()}
    samples = {
        n: bootstrap_scores(truth, d[None], num_resamples, seed)["macro_f1"] for n, d in decided.items()
    }
    out = {}
    for name, score in scores.items():
        low, high = percentile_interval(samples[name] - samples[first])
        out[name] = {"macro_f1": float(score), "gain": float(score - scores[first]), "low": low, "high": high}
    return out


def carried_over(cuts: np.ndarray, method: str, parameters: dict) -> np.ndarray:
    """(C,) thresholds on calibrated probabilities that decide as (C,) thresholds on uncalibrated ones do."""
    tiny = 1e-12  # away from 0 and 1, whose logits are not finite
    return expit(apply_calibration(method, parameters, logit(np.clip(cuts, tiny, 1 - tiny))[None], True))[0]


def thresholds_for(rows: Rows, fit: dict, folder: Path, args: Namespace) -> tuple[dict, dict, dict | None]:
    """What thresholds.json holds; (C,) thresholds by rule, for on_test; what find_thresholds found, if it was asked."""
    own, own_rows = first_thresholds(folder, rows.label_names)
    cuts = {"at 0.5": np.full(len(own), 0.5), "own, uncalibrated": own}
    if args.no_thresholds:
        found, values = None, carried_over(own, fit["method"], fit["parameters"])
        cuts["own, carried over"] = values
        tuned = {"tuned_on": f"{own_rows}; carried over to calibrated probabilities"}
    else:
        found, rules = find_thresholds(rows, fit["method"], args.judge, args.resamples, args.seed)
        values = found["thresholds"]
        cuts |= {name: found[name] for name in ("exact", "drawn")} | {"chosen": values}
        tuned = {"tuned_on": fit["fitted_on"], "judge": args.judge, "strength": found["strength"]}
        tuned |= {"macro_f1": rules, "classes": class_table(found, rows.truth, rows.label_names)}
    tuned["thresholds"] = dict(zip(rows.label_names, values.tolist(), strict=True))  # numpy
    return tuned | {"fit": fit_name(fit["method"], fit["parameters"])}, cuts, found


def on_test(
    run: Path, method: str, parameters: dict, cuts: dict[str, np.ndarray], num_resamples: int, seed: int
) -> dict:
    """The same measures on the run's test rows, when everything is chosen.

    Args: cuts: (C,) thresholds by rule, with several labels a row; "own" are the run's first, on uncalibrated ones.
    """
    test = read_scored(run, "test")
    after = apply_calibration(method, parameters, test.logits, test.multi_label)
    found = compare_calibration(test.logits, after, test.truth, test.multi_label, num_resamples, seed)
    found |= {"n": len(after), "path": test.path}
    found["labels_changed"] = count_changed(test.logits, after, test.multi_label)
    if test.multi_label:
        raw, probs = probabilities(test.logits, True), probabilities(after, True)
        decided = {name: (raw if name.startswith("own") else probs) >= cut for name, cut in cuts.items()}
        found["macro_f1"] = compare_rules(test.truth, decided, "at 0.5", num_resamples, seed)
    return found


def main(argv=None) -> dict:
    """Choose, fit, measure, write; returns the method and the measures before and after, cross-fitted."""
    args = parse_args(argv)
    run, chance = Path(args.run), (args.resamples, args.seed)
    rows, notes = unspent(run, score_file(run, args.data, args.device) if args.data else read_own(run))
    folder, several = run / "validation", rows.multi_label
    method, fair, methods = try_methods(rows, args.method, *chance)
    parameters = fit_calibration(method, rows.logits, rows.truth, several)
    measured = compare_calibration(rows.logits, fair, rows.truth, several, *chance)
    measured |= {"n": len(fair), "labels_changed": methods[method]["labels_changed"]}
    fitted_on = f"{rows.path}, {len(fair)} {rows.split} rows"
    fit = {
        "method": method,
        "parameters": parameters,
        "fitted_on": fitted_on,
        "label_names": rows.label_names,
    }
    tuned, cuts, found = None, {}, None
    if several:
        tuned, cuts, found = thresholds_for(rows, fit, folder, args)
    test = None
    if has_split(run, "test"):
        try:
            test = on_test(run, method, parameters, cuts, *chance)
        except UserError as error:  # their file may have gone meanwhile: nothing hangs on them here
            notes.append(f"note: not measured on test rows: {error}")
    notes += too_few(rows.truth, rows.label_names, measured)
    calibration = as_calibration(fit, methods, measured, test, rows.split, args.seed)
    print(results_text(calibration, tuned, notes))
    with disk_errors(folder, "RUN"):
        write_files(folder, calibration, tuned, draw(calibration, found, rows.truth, rows.label_names))
    result = {"run": str(run), "method": method, "n": len(fair), "rows": rows.split}
    for name in MEASURES:
        result |= {f"{name}_before": measured["before"][name], f"{name}_after": measured["after"][name]}
    if found:
        result["macro_f1"] = {name: rule["macro_f1"] for name, rule in tuned["macro_f1"].items()}
        result["left_at_half"] = int(found["is_left"].sum())
    print(f"\nwritten: {folder}/calibration.json" + ", thresholds.json" * several + f"\n{json.dumps(result)}")
    return result


if __name__ == "__main__":
    run_main(main)
