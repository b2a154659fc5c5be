"""What stands at the end of a run: the evaluation of each split, the baselines beside it, one table."""

from pathlib import Path

import numpy as np

from core.baselines import majority_scores, tfidf_scores
from core.cache import TokenRows
from core.errors import UserError
from core.evaluate import CROSS_FITTED, headline, measure, write_evaluation
from core.logs import RunLog
from core.results_table import format_per_class, format_table
from core.rows import BadRows, RowFormat, read_rows

LOWER_IS_BETTER = {"loss", "hamming_loss", "hamming_loss_tuned"}
COLUMNS = ["accuracy", "macro_f1", "micro_f1", "weighted_f1", "roc_auc", "average_precision", "loss", "n"]
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
    """Measure one split, write its folder and its TensorBoard entries; returns the metrics.

    Args: thresholds: (C,) found on tuned_rows; when those are this split's own rows, the metrics at thresholds
          are cross-fitted instead, since thresholds flatter the rows that they were found on.
    """
    same = tuned_rows is rows
    tuned_on = CROSS_FITTED if same else f"{tuned_rows.meta['path']}"
    metrics = measure(logits, rows, None if same else thresholds, tuned_on)
    found_on = f"{tuned_rows.meta['path']}, all {len(tuned_rows)} rows"
    figures = write_evaluation(folder, logits, rows, metrics, thresholds, found_on)
    for title, figure in figures.items():
        log.board.add_figure(f"{name}/{title}", figure, step)
    return metrics


def read_texts(path: str, row_format: RowFormat) -> list[str]:
    """The texts of a file that has been checked; a pair as one text."""
    texts = []
    for _, row in read_rows(path, BadRows(path), path):
        text, pair = row_format.text(row)
        texts.append(text if pair is None else f"{text} {pair}")
    return texts


def report_baselines(
    train_data: str, train: TokenRows, splits: dict[str, TokenRows], row_format: RowFormat
) -> dict:
    """Metrics of the majority class and of TF-IDF with logistic regression, fitted on the training rows.

    Returns: {"majority (validation)": metrics, ...}.
    """
    labels, num_classes = np.asarray(train.labels), len(train.label_names)
    texts = read_texts(train_data, row_format)
    found = {}
    for name, rows in splits.items():
        scores = majority_scores(labels, len(rows), num_classes, train.multi_label)
        found[f"majority class ({name})"] = measure(scores, rows)
        split_texts = read_texts(rows.meta["path"], row_format)
        scores = tfidf_scores(texts, labels, split_texts, num_classes, train.multi_label)
        found[f"TF-IDF + logistic regression ({name})"] = measure(scores, rows)
    return found


def results_text(table: dict[str, dict], multi_label: bool) -> str:
    """The per-class table of the last split, then one line for each split and baseline."""
    splits = [name for name in table if name in ("validation", "test")]
    columns = MULTI_COLUMNS + COLUMNS[4:] if multi_label else COLUMNS
    parts = [f"{splits[-1]}, by class:", format_per_class(table[splits[-1]])]
    rows = [(f"this run ({name})" if name in splits else name, metrics) for name, metrics in table.items()]
    return "\n".join(["", *parts, "", format_table(rows, columns), ""])
