"""The rounds of jobs.selftrain: pseudo-labels of the round before, the students trained, the pool scored by them.

A round is a folder, round<k>/: NAME.train.jsonl (labelled rows, then pseudo-labelled ones), NAME/ (the student's run),
NAME.pool.npy and NAME.audit.npy (its scores), and last round.json, with which the round is done. What is there is not
made again.

n rows, C classes, M models.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from core.calibration import apply_calibration, fit_calibration
from core.errors import UserError
from core.evaluate import headline
from core.files import save_array, write_json, write_text
from core.memory import keep_freed_memory, release_cached
from core.metrics import probabilities
from core.pseudo_labels import class_quotas, consult, is_above, select
from core.rank_metrics import binomial_interval
from core.rows import BadRows, read_rows
from core.runs import RunRecord
from core.thresholds import f1_of
from jobs.cells import Cell, check_cell, train_all
from jobs.comparison import one_hot
from jobs.scored import has_split, read_scored
from jobs.selftrain_choice import Judged, judge
from jobs.selftrain_rows import Parts, as_lines
from predict import load, read_window


@dataclass(frozen=True)
class Plan:
    """What all rounds have in common."""

    folder: Path
    parts: Parts
    models: dict[str, list[str]]  # flags of train.py by name, without rows, seed and folder
    shared: list[str]  # flags of every run: validation and calibration rows, seed
    teach: str  # self, others, agreement
    quota: float  # share of the pool, times the number of the round
    least: float  # confidence
    gpus: list[str]
    rival_data: str  # all labelled rows, for a run that nothing is taken from; "": none


def run_round(plan: Plan, number: int) -> dict:
    """What round.json says, after the round was run where it was not yet.

    Returns: {"round", "minutes", "models": {name: line}}; a line as of `add_rows` and `measure`, and "run". With no row
             to add, "models" is empty.
    Raises:  UserError when a training fails.
    """
    folder = plan.folder / f"round{number}"
    if (folder / "round.json").is_file():
        found = json.loads((folder / "round.json").read_text(encoding="utf-8"))
        return found | {"models": with_runs(found["models"], folder)}
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    added = add_rows(plan, number) if number else {name: {} for name in plan.models}
    lines = {}
    if not number or any(line["num_added"] for line in added.values()):
        cells = {name: cell_of(plan, number, name) for name in plan.models}
        rivals = [rival_cell(plan, name) for name in plan.models] if plan.rival_data and not number else []
        train(plan, [*cells.values(), *rivals])
        for name, cell in cells.items():
            score_pool(plan, number, name, cell.folder)
            lines[name] = added[name] | measure(plan, number, name, cell.folder)
    minutes = (time.monotonic() - started) / 60
    found = {"round": number, "minutes": minutes, "models": lines}
    write_json(folder / "round.json", found)
    return found | {"models": with_runs(lines, folder)}


def with_runs(lines: dict[str, dict], folder: Path) -> dict[str, dict]:
    """Each line with its run: the folder may have been moved, so that no file says where it is."""
    return {name: line | {"run": str(folder / name)} for name, line in lines.items()}


# -- pseudo-labels ----------------------------------------------------------------------------------------------


def add_rows(plan: Plan, number: int) -> dict[str, dict]:
    """Write each student's training rows.

    The quotas of a class are its share of the labelled rows, times --quota, the number of the round and the rows of the
    pool: all pseudo-labels are chosen anew, by the models of the round before.
    Returns: by name "num_added", "per_class", "confidence" (the mean of the rows added), "selection": what the same
             cuts take of the audit rows, and how much of it is right (accuracy, with Wilson's 95 % interval; with
             several labels a row, all of them right), and with --check_labels "pool_accuracy".
    Source:  chosen anew each round, by a share that grows: Cascante-Bonilla et al. 2021, "Curriculum labeling" (AAAI).
    """
    parts, found = plan.parts, {}
    scores = {part: read_probabilities(plan, number - 1, part) for part in ("pool", "audit")}
    num_rows = int(min(1.0, plan.quota * number) * len(parts.pool))
    quotas = class_quotas(parts.group_counts, num_rows)
    for name in plan.models:
        chosen, confidence = taught(plan, scores["pool"], name)
        groups = parts.groups(chosen)
        taken, cuts = select(groups, confidence, quotas, plan.least)
        rows = np.flatnonzero(taken)
        write_train(plan, number, name, parts.pseudo_rows(rows, chosen[rows], confidence[rows]))
        said, sure = taught(plan, scores["audit"], name)
        passed = is_above(parts.groups(said), sure, cuts)
        right = (said == parts.audit)[passed]  # (k, C)
        hits = int(right.all(axis=1).sum())
        line = {"num_added": len(rows), "per_class": count_groups(parts, groups[rows])}
        line["confidence"] = float(confidence[rows].mean()) if len(rows) else None
        line["selection"] = {
            "audit_rows": int(passed.sum()),
            "accuracy": hits / len(right) if len(right) else None,
            "interval": binomial_interval(hits, len(right)),
            "label_accuracy": float(right.mean()) if len(right) else None,
            "cuts": {name: cut for name, cut in zip(group_names(parts), cuts) if np.isfinite(cut)},
        }
        if parts.pool_truth is not None and len(rows):
            line["pool_accuracy"] = float((chosen == parts.pool_truth)[rows].all(axis=1).mean())
        found[name] = line
    return found


def taught(plan: Plan, probs: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """What the teachers of a student say of rows: (n, C) bool and (n,) confidence. probs: (n, C) by model."""
    names = [name] if plan.teach == "self" else list(probs)
    if plan.teach == "others":
        names.remove(name)
    together = np.stack([probs[own] for own in names])
    return consult(together, plan.parts.multi_label, agree=plan.teach == "agreement")


def read_probabilities(plan: Plan, number: int, part: str) -> dict[str, np.ndarray]:
    """(n, C) calibrated probabilities of pool or audit rows, by model, of a round that is done."""
    found = {}
    for name, line in run_round(plan, number)["models"].items():
        logits = np.load(plan.folder / f"round{number}" / f"{name}.{part}.npy")
        found[name] = calibrated(line["temperature"], logits, plan.parts.multi_label)
    return found


def calibrated(temperature: float, logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, C) probabilities."""
    fit = {"method": "temperature", "parameters": {"temperature": temperature}}
    return probabilities(apply_calibration(**fit, logits=logits, multi_label=multi_label), multi_label)


def write_train(plan: Plan, number: int, name: str, pseudo: list[dict]) -> None:
    """NAME.train.jsonl: the labelled rows as they are, then the pseudo-labelled ones."""
    labelled = Path(plan.parts.path("labelled")).read_text(encoding="utf-8")
    write_text(train_path(plan, number, name), labelled + as_lines(pseudo))


def train_path(plan: Plan, number: int, name: str) -> Path:
    """A student's training rows."""
    return plan.folder / f"round{number}" / f"{name}.train.jsonl"


def group_names(parts: Parts) -> list[str]:
    """Of the groups: the labels, then the empty set of labels."""
    return [*parts.label_names, "no label"]


def count_groups(parts: Parts, groups: np.ndarray) -> dict[str, int]:
    """Rows by group; the empty set only where rows can have it."""
    counts = np.bincount(groups, minlength=len(parts.label_names) + 1).tolist()  # numpy
    return dict(zip(group_names(parts)[: None if parts.multi_label else -1], counts, strict=False))


# -- training and scoring ---------------------------------------------------------------------------------------


def cell_of(plan: Plan, number: int, name: str) -> Cell:
    """A student's run, from the pretrained weights: a round before leaves nothing but its labels."""
    folder = plan.folder / f"round{number}" / name
    data = train_path(plan, number, name) if number else plan.parts.path("labelled")
    own = ("--train_data", str(data), "--output_dir", str(folder))
    return Cell(folder, (*plan.models[name], *plan.shared, *own))


def rival_cell(plan: Plan, name: str) -> Cell:
    """The run of all labelled rows, the audit's too: what somebody without self-training would have."""
    folder = plan.folder / "all_labelled" / name
    own = ("--train_data", plan.rival_data, "--output_dir", str(folder))
    return Cell(folder, (*plan.models[name], *plan.shared, *own))


def train(plan: Plan, cells: list[Cell]) -> None:
    """Train what is not trained yet. Raises UserError when one fails."""
    todo = [cell for cell in cells if check_cell(cell) != "finished"]
    failed = train_all(todo, plan.gpus) if todo else {}
    if failed:
        told = "; ".join(f"{run}: {why}" for run, why in failed.items())
        raise UserError(
            f"{len(failed)} of {len(cells)} trainings failed: {told}. The same command goes on from here"
        )


def score_pool(plan: Plan, number: int, name: str, run: Path) -> None:
    """NAME.pool.npy and NAME.audit.npy: (n, C) float32 scores of a student's best weights."""
    paths = {part: plan.folder / f"round{number}" / f"{name}.{part}.npy" for part in ("audit", "pool")}
    todo = [part for part, path in paths.items() if not path.is_file()]
    found = score_files(run, [plan.parts.path(part) for part in todo], device_of(plan.gpus)) if todo else []
    for part, logits in zip(todo, found, strict=True):
        save_array(paths[part], logits)


def score_files(run: Path, paths: list[str], device: str | None) -> list[np.ndarray]:
    """(n, C) float32 scores of each file's rows, labels unread, in the number format that the run was evaluated in.

    Cost: GPU; loads the run once, gives its memory back.
    """
    keep_freed_memory()
    predictor, made = load(run, device, amp="run", raw=True), []
    for path in paths:
        bad, scores = BadRows(path), []
        source = read_rows(path, bad, path)
        with tqdm(desc=f"scoring {Path(path).name}", unit=" rows", disable=None, leave=False) as bar:
            while True:
                texts, pairs, _, _ = read_window(source, predictor.row_format, bad, [])
                bad.raise_if_any()
                if not texts:
                    break
                scores.append(predictor.scores(texts, pairs))
                bar.update(len(texts))
        made.append(np.concatenate(scores))
    device = predictor.device
    del predictor
    release_cached(device)
    return made


def device_of(gpus: list[str]) -> str | None:
    """The first of --gpus as this process counts them; None: what there is."""
    if not gpus or not torch.cuda.is_available():
        return None
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return f"cuda:{visible.index(gpus[0]) if gpus[0] in visible else gpus[0]}"


def measure(plan: Plan, number: int, name: str, run: Path) -> dict:
    """A student's line: its temperature, its scores on audit rows, those of its validation rows.

    The temperature is fitted on calibration rows, else on validation rows; it is never judged on them, but on audit
    rows. The macro F1 is over the labels that an audit row has; with several labels a row at the run's own thresholds.
    """
    truth, several = plan.parts.audit, plan.parts.multi_label
    split = "calibration" if has_split(run, "calibration") else "validation"
    fitted_on = read_scored(run, split)
    fit = fit_calibration("temperature", fitted_on.logits, fitted_on.truth, several)
    chosen = audit_decisions(plan, number, name)
    audit = {
        "macro_f1": float(f1_of(truth, chosen)[truth.any(axis=0)].mean()),
        "accuracy": float((chosen == truth).all(axis=1).mean()),
        "n": len(truth),
    }
    validation = RunRecord.read(run).record["metrics"]["validation"]
    found = {"temperature": fit["temperature"], "fitted_on": split, "audit": audit}
    return found | {"validation": headline(validation)}


def audit_decisions(plan: Plan, number: int, name: str) -> np.ndarray:
    """(n, C) bool: what a student says of the audit rows."""
    folder = plan.folder / f"round{number}"
    logits = np.load(folder / f"{name}.audit.npy")
    if not plan.parts.multi_label:
        return one_hot(logits)
    stored = json.loads((folder / name / "validation" / "thresholds.json").read_text(encoding="utf-8"))
    return probabilities(logits, True) >= [stored["thresholds"][label] for label in plan.parts.label_names]


def validation_score(line: dict) -> float:
    """Macro F1 on validation rows, with several labels a row at thresholds."""
    return line["validation"].get("macro_f1_tuned", line["validation"]["macro_f1"])


def judge_round(plan: Plan, found: dict, num_resamples: int, seed: int) -> Judged:
    """A round on the audit rows and on validation rows, for the choice between rounds."""
    chosen = np.stack([audit_decisions(plan, found["round"], name) for name in found["models"]])
    validation = float(np.mean([validation_score(line) for line in found["models"].values()]))
    return judge(plan.parts.audit, chosen, validation, num_resamples, seed)
