"""What stands at the end of a run: the evaluation of each split, the baselines beside it, one table."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np

from core.baselines import majority_scores, tfidf_scores
from core.cache import TokenRows
from core.errors import UserError
from core.evaluate import fit_thresholds, headline, measure, write_evaluation
from core.files import save_array
from core.logs import RunLog
from core.metrics import probabilities
from core.results_table import format_per_class, format_table
from core.rows import BadRows, RowFormat, read_rows
from core.runs import RunRecord

MOST_CURVES = 40  # classes with a PR curve of their own in TensorBoard
LOWER_IS_BETTER = {"loss", "hamming_loss", "hamming_loss_tuned"}
COLUMNS = ["accuracy", "macro_f1", "micro_f1", "weighted_f1", "roc_auc", "average_precision", "loss"]
MULTI_COLUMNS = [
    "subset_accuracy",
    "hamming_loss",
    "macro_f1",
    "macro_f1_tuned",
    "micro_f1",
    "micro_f1_tuned",
]


def choose_metric(name: str, val: TokenRows) -> str:
    """The metric that --metric means: auto is macro_f1, with several labels a row macro_f1_tuned.

    Raises: UserError when it is not among those reported for these rows.
    """
    if name == "auto":
        return "macro_f1_tuned" if val.multi_label else "macro_f1"
    known = headline(measure(np.zeros((len(val), len(val.label_names))), val))
    if name not in known:
        raise UserError(
            f"--metric {name}: not among the metrics of these rows: {', '.join(sorted(set(known) - {'n'}))}"
        )
    return name


def is_better(metrics: dict, name: str, best: float | None) -> bool:
    """Whether metrics[name] beats the best so far; losses are better when lower, ties keep the earlier."""
    value = metrics[name]
    if value is None:
        return False
    return best is None or (value < best if name in LOWER_IS_BETTER else value > best)


def split_metrics(
    logits: np.ndarray, rows: TokenRows, thresholds: np.ndarray | None, tuned_rows: TokenRows
) -> dict:
    """The metrics of one split, at thresholds too where a row has several labels.

    Args: thresholds: (C,) found on tuned_rows; when those are this split's own rows, the metrics at thresholds
          are cross-fitted instead, since thresholds flatter the rows that they were found on.
    """
    if tuned_rows is rows:
        return measure(logits, rows)
    return measure(logits, rows, thresholds, str(tuned_rows.meta["path"]))


def report_split(
    folder: Path,
    name: str,
    logits: np.ndarray,
    rows: TokenRows,
    thresholds: np.ndarray | None,
    tuned_rows: TokenRows,
    log: RunLog,
    step: int,
) -> dict:
    """Measure one split (see split_metrics), write its folder and its TensorBoard entries."""
    metrics = split_metrics(logits, rows, thresholds, tuned_rows)
    found_on = f"{tuned_rows.meta['path']}, all {len(tuned_rows)} rows"
    figures = write_evaluation(folder, logits, rows, metrics, thresholds, found_on)
    for title, figure in figures.items():
        log.board.add_figure(f"{name}/{title}", figure, step)
    probs, onehot = probabilities(logits, rows.multi_label), rows.onehot()
    for c, class_name in enumerate(rows.label_names[:MOST_CURVES]):
        log.board.add_pr_curve(f"{name}/{class_name}", onehot[:, c], probs[:, c], step)
    return metrics


def read_texts(path: str, row_format: RowFormat) -> list[str]:
    """The texts of a file that has been checked; a pair as one text."""
    texts = []
    for _, row in read_rows(path, BadRows(path), path):
        text, pair = row_format.text(row)
        texts.append(text if pair is None else f"{text} {pair}")
    return texts


def report_baselines(
    train_data: str, data: dict[str, TokenRows], tuned: str, row_format: RowFormat
) -> dict[str, dict]:
    """Metrics of the majority class and of TF-IDF with logistic regression, fitted on the training rows.

    Args:    data: rows by name: train, validation, and as given calibration, test | tuned: name of the rows that
             thresholds are found on, for these as for the run itself.
    Returns: {"majority class (validation)": metrics, ...}.
    """
    train, others = data["train"], {name: rows for name, rows in data.items() if name != "train"}
    labels, num_classes = np.asarray(train.labels), len(train.label_names)
    texts = {name: read_texts(rows.meta["path"], row_format) for name, rows in others.items()}
    every = [text for name in others for text in texts[name]]
    scores = {
        "majority class": majority_scores(labels, len(every), num_classes, train.multi_label),
        "TF-IDF + logistic": tfidf_scores(
            read_texts(train_data, row_format), labels, every, num_classes, train.multi_label
        ),
    }
    ends = np.cumsum([len(texts[name]) for name in others])[:-1]
    found = {}
    for baseline, all_scores in scores.items():
        parts = dict(zip(others, np.split(all_scores, ends), strict=True))
        thresholds = fit_thresholds(parts[tuned], data[tuned])
        for name, rows in others.items():
            if name != "calibration":
                metrics = split_metrics(parts[name], rows, thresholds, data[tuned])
                found[f"{baseline} ({name})"] = metrics
    return found


def results_text(table: dict[str, dict], multi_label: bool) -> str:
    """The per-class table of the last split, then one line for each split and baseline."""
    splits = [name for name in table if name in ("validation", "test")]
    columns = MULTI_COLUMNS + COLUMNS[4:] if multi_label else COLUMNS
    parts = [f"{splits[-1]}, by class:", format_per_class(table[splits[-1]])]
    rows = [(f"this run ({name})" if name in splits else name, metrics) for name, metrics in table.items()]
    return "\n".join(["", *parts, "", format_table(rows, columns), ""])


def report_run(
    args: Namespace,
    folder: Path,
    record: RunRecord,
    log: RunLog,
    row_format: RowFormat,
    data: dict[str, TokenRows],
    scores: dict[str, np.ndarray],
    facts: dict,
) -> dict:
    """Write validation/ and test/, print the table, close the record and the log. For rank 0.

    Args:    scores: (n, C) by split | facts: for run.json, with "best".
    Returns: the headline metrics on the validation rows, and "run".
    """
    tuned = "calibration" if "calibration" in data else "validation"
    thresholds = fit_thresholds(scores[tuned], data[tuned])
    splits = {name: data[name] for name in ("validation", "test") if name in data}
    table = {}
    for name, rows in splits.items():
        step = facts["best"]["step"]
        table[name] = report_split(
            folder / name, name, scores[name], rows, thresholds, data[tuned], log, step
        )
    if "calibration" in data:  # for jobs.calibrate and jobs.ensemble
        (folder / "calibration").mkdir(exist_ok=True)
        save_array(folder / "calibration" / "logits.npy", scores["calibration"])
    baselines = report_baselines(args.train_data, data, tuned, row_format) if args.baselines else {}
    print(results_text(table | baselines, data["train"].multi_label))
    numbers = {name: headline(metrics) for name, metrics in table.items()}
    others = {name: headline(metrics) for name, metrics in baselines.items()}
    log.close()
    record.write(status="finished", metrics=numbers, baselines=others, **facts)  # last: nobody resumes it now
    print(f"run folder: {folder}\n{json.dumps({'run': str(folder), **numbers})}")
    return {"run": str(folder), **numbers["validation"]}
