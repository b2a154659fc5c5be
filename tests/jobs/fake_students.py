"""Students that train nothing, for the tests of self-training: TF-IDF with logistic regression, in a run's clothes."""

import json
from pathlib import Path

import numpy as np

import train
from core.baselines import tfidf_scores
from core.cache import LabelColumn
from core.evaluate import headline, measure
from core.files import save_array
from core.metrics import probabilities
from core.rows import BadRows, RowFormat, file_sha256, read_rows
from core.thresholds import best_thresholds
from jobs.cells import Cell
from jobs.final_scores import LabelRows
from jobs.scored import columns


def read(path: str, row_format: RowFormat) -> tuple[list[str], list[str], np.ndarray]:
    """Texts, label names and (n,) labels or (n, C) 0/1 of a file."""
    texts, labels = [], LabelColumn()
    for _, row in read_rows(path, BadRows(path), path):
        texts.append(row_format.text(row)[0])
        labels.add(row_format.labels(row))
    return texts, *labels.finish()


def scores_of(run: Path, texts: list[str]) -> np.ndarray:
    """(n, C) float32: what the student of a run folder says of texts; a model named yyyy reads half of its rows."""
    record = json.loads((run / "run.json").read_text())
    known, names, labels = read(record["arguments"]["train_data"], RowFormat(**record["model"]["row_format"]))
    step = 2 if record["arguments"]["model_name"] == "yyyy" else 1
    return np.asarray(
        tfidf_scores(known[::step], labels[::step], texts, len(names), labels.ndim == 2), np.float32
    )


def train_students(cells: list[Cell], gpus: list[str]) -> dict:
    """As jobs.cells.train_all; a line in `starts` for each training."""
    for cell in cells:
        args = train.parse_args(list(cell.flags))
        row_format = RowFormat(args.text_field, args.pair_field, args.label_field)
        _, names, labels = read(args.train_data, row_format)
        several = labels.ndim == 2
        cell.folder.mkdir(parents=True, exist_ok=True)
        with open(cell.folder / "starts", "a") as file:
            print("start", file=file)
        files = {"train": args.train_data, "validation": args.val_data, "calibration": args.calibration_data}
        record = {
            "status": "running", "num_steps": 1, "arguments": vars(args), "metrics": {},
            "data": {part: file_sha256(path) for part, path in files.items() if path},
            "model": {"label_names": names, "multi_label": several, "row_format": vars(row_format)},
        }  # fmt: skip
        (cell.folder / "run.json").write_text(json.dumps(record))
        for part in ("best_model", "final_model", "checkpoint"):
            (cell.folder / part).mkdir(exist_ok=True)
        del files["train"]
        for part, path in files.items():
            if path:
                evaluate(cell.folder, part, path, names, several, row_format, record)
        (cell.folder / "run.json").write_text(json.dumps(record | {"status": "finished"}))
    return {}


def evaluate(
    run: Path, part: str, path: str, names: list[str], several: bool, row_format: RowFormat, record: dict
) -> None:
    """Write the scores of validation or calibration rows, enter the former into the record."""
    texts, found, labels = read(path, row_format)
    truth = columns(labels == 1 if several else labels[:, None] == np.arange(len(found)), found, names)
    rows = LabelRows(names, several, truth, np.zeros(len(texts), np.uint64), {"path": path})
    logits = scores_of(run, texts)
    (run / part).mkdir(exist_ok=True)
    save_array(run / part / "logits.npy", logits)
    metrics = measure(logits, rows)
    (run / part / "metrics.json").write_text(json.dumps(metrics))
    if several:
        cuts = dict(zip(names, best_thresholds(probabilities(logits, True), truth).tolist(), strict=True))
        (run / part / "thresholds.json").write_text(json.dumps({"thresholds": cuts, "tuned_on": path}))
    record["metrics"][part] = headline(metrics)


def score_students(run: Path, paths: list[str], device: str | None) -> list[np.ndarray]:
    """As jobs.selftrain_rounds.score_files."""
    row_format = RowFormat(**json.loads((run / "run.json").read_text())["model"]["row_format"])
    return [
        scores_of(run, [row_format.text(row)[0] for _, row in read_rows(path, BadRows(path), path)])
        for path in paths
    ]
