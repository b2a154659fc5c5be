"""What stands at the end of a ranking run: the folder of each split, and one table with the baselines beside it.

Legend: n questions, K places for candidates; a question's candidates stand in its first places.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from core.errors import UserError
from core.evaluate import headline
from core.files import save_array, write_json, write_text
from core.logs import RunLog
from core.plots import save_png
from core.rank_cache import RankRows
from core.rank_metrics import group_metrics, ranking_baselines, ranking_metrics
from core.rank_plots import confidence_figure, group_figure, position_figure, reward_figure
from core.results_table import format_table
from core.rows import file_sha256
from core.runs import RunRecord

COLUMNS = ["accuracy", "reward_ratio", "average_reward", "mrr", "map", "ndcg", "loss", "n"]
POSITIONS_UP_TO = 16  # places: above, the table by position stays in metrics.json and in the figure
GROUPS_UP_TO = 30  # groups: above, the table shows the largest
SPLITS = ("validation", "test")


def rank_prediction_rows(scores: np.ndarray, sizes: np.ndarray) -> list[dict]:
    """A row {"choice", "scores"} each: the index of the first highest score, and the scores of the real candidates.

    Args:    scores: (n, K) float32 | sizes: (n,) int in 1..K, candidates of each question, in its first places.
             Scores have 6 decimals; the choice is made before they are rounded.
    Raises:  ValueError when shapes do not fit, a size is not in 1..K or a real candidate's score is not finite.
    """
    scores, sizes = np.asarray(scores, dtype=np.float64), np.asarray(sizes)
    if scores.ndim != 2 or sizes.shape != scores.shape[:1]:
        raise ValueError(f"scores must be (n, K) and sizes (n,), found {scores.shape} and {sizes.shape}")
    out = []
    for k, (row, size) in enumerate(zip(scores, sizes)):
        if not 1 <= size <= len(row):
            raise ValueError(f"sizes must be in 1..{len(row)}, found {size} in question {k}")
        if not np.isfinite(row[:size]).all():
            raise ValueError(f"question {k} has a score that is not finite")
        out.append({"choice": int(row[:size].argmax()), "scores": row[:size].round(6).tolist()})
    return out


def write_rank_evaluation(
    folder: Path, scores: np.ndarray, rewards: np.ndarray, metrics: dict
) -> dict[str, Figure]:
    """Write validation/ or test/: metrics.json, predictions.jsonl, logits.npy (NaN: no candidate), plots.

    Args:    folder: made where it is missing | scores, rewards, metrics: as in ranking_metrics, candidates in the
             first places; "per_group" among the metrics is drawn.
    Returns: the figures by name, for TensorBoard: positions, pick_rewards, and, where there is anything to show,
             pick_confidence and per_group.
    Raises:  ValueError as rank_prediction_rows, or when a candidate stands behind an empty place.
    """
    scores, rewards = np.asarray(scores, np.float32), np.asarray(rewards, np.float32)
    keep = ~np.isnan(rewards)
    sizes = keep.sum(axis=1)
    gaps = np.flatnonzero((keep != (np.arange(keep.shape[1]) < sizes[:, None])).any(axis=1))
    if len(gaps):
        raise ValueError(
            f"question {gaps[0]} has a candidate behind an empty place: its choice would be misread"
        )
    lines = rank_prediction_rows(scores, sizes)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    save_array(folder / "logits.npy", np.where(keep, scores, np.float32(np.nan)))
    figures = {"positions": position_figure(metrics), "pick_rewards": reward_figure(scores, rewards)}
    confidence = confidence_figure(scores, rewards)
    if confidence is not None:
        figures["pick_confidence"] = confidence
    if metrics.get("per_group"):
        figures["per_group"] = group_figure(metrics["per_group"])
    for name, figure in figures.items():
        save_png(figure, folder / f"{name}.png")
    return figures


def rank_table(table: dict[str, dict]) -> str:
    """One line for each split and baseline; below it the last split by group and by position, where that is short.

    Args:    table: metrics by name: "validation", "test", and baselines such as "random (validation)", in order.
    Returns: text for the terminal, with an empty line before and after.
    """
    rows = [(f"this run ({name})" if name in SPLITS else name, metrics) for name, metrics in table.items()]
    parts = ["", format_table(rows, COLUMNS)]
    splits = [name for name in table if name in SPLITS]
    if not splits:
        return "\n".join([*parts, ""])
    name, metrics = splits[-1], table[splits[-1]]
    if metrics["num_skipped"]:
        parts.append(
            f"{name}: {metrics['num_skipped']} question(s) that cannot be ranked are in none of these"
        )
    per_group = metrics.get("per_group")
    if per_group:
        parts += ["", f"{name}, by group:", _group_table(per_group)]
    if len(metrics["picks_by_position"]) <= POSITIONS_UP_TO:
        parts += ["", f"{name}, share of questions by position:", _position_table(metrics)]
    return "\n".join([*parts, ""])


def _group_table(per_group: dict[str, dict]) -> str:
    """The largest groups, in the order given."""
    largest = sorted(per_group, key=lambda name: -per_group[name]["n"])[:GROUPS_UP_TO]
    shown = [(name, values) for name, values in per_group.items() if name in largest]
    table = format_table(shown, ["accuracy", "reward_ratio", "n"])
    left_out = len(per_group) - len(shown)
    return f"{table}\n... and {left_out} more, none larger" if left_out else table


def _position_table(metrics: dict) -> str:
    """Where the picks stand, the best candidates, and where chance would pick."""
    rows, counted = [], max(metrics["n"], 1)
    for name in ("picks", "best", "chance"):
        shares = [count / counted for count in metrics[f"{name}_by_position"]]
        rows.append((name, {str(k): share for k, share in enumerate(shares, 1)}))
    return format_table(rows, list(rows[0][1]))


def measure_ranking(scores: np.ndarray, rows: RankRows) -> dict:
    """The metrics of scores. Raises UserError when scores are not finite: training has diverged."""
    if not np.isfinite(scores).all():
        raise UserError(
            f"{int((~np.isfinite(scores)).any(axis=1).sum())} of {len(scores)} questions of {rows.meta['path']} get "
            "scores that are not finite: training has diverged; lower --learning_rate, or use --amp bf16 or off"
        )
    return ranking_metrics(scores, rows.table(rows.rewards))


def choose_rank_metric(name: str, rows: RankRows) -> str:
    """The metric that --metric means; auto is accuracy.

    Raises: UserError when there is no such metric, or these rows do not define it: no step would be the best.
    """
    known = sorted(set(COLUMNS) - {"n"})
    if name != "auto" and name not in known:
        raise UserError(f"--metric {name}: not among a ranker's metrics: {', '.join(known)}")
    name = "accuracy" if name == "auto" else name
    if measure_ranking(np.zeros((len(rows), rows.num_candidates)), rows)[name] is None:
        raise UserError(f"--metric {name}: no question of {rows.meta['path']} has a reward above 0")
    return name


def report_ranking(
    folder: Path,
    record: RunRecord,
    log: RunLog,
    data: dict[str, RankRows],
    scores: dict[str, np.ndarray],
    facts: dict,
    start: dict[str, np.ndarray] | None = None,
) -> dict:
    """Write validation/ and test/, training_manifest.json, print the table, close the record and the log. For rank 0.

    Args:    scores: (n, K) by split | facts: for run.json, with "best" | start: scores of the model that a run began
             with, for the table.
    Returns: the headline metrics on the validation rows, and "run".
    """
    table, baselines = {}, {}
    for name, found in (start or {}).items():
        baselines[f"start ({name})"] = measure_ranking(found, data[name])
    for name in (name for name in SPLITS if name in data):
        rows = data[name]
        names = rows.meta["group_names"]
        groups = [names[k] for k in rows.groups] if names != [""] else None
        rewards = rows.table(rows.rewards)
        metrics = measure_ranking(scores[name], rows)
        if groups:
            metrics["per_group"] = group_metrics(scores[name], rewards, groups)
        for title, figure in write_rank_evaluation(folder / name, scores[name], rewards, metrics).items():
            log.board.add_figure(f"{name}/{title}", figure, facts["best"]["step"])
        table[name] = metrics
        lengths = rows.table(np.diff(rows.candidate_starts), 0)
        found = ranking_baselines(rewards, lengths)
        baselines |= {f"{baseline} ({name})": values for baseline, values in found.items()}
    print(rank_table(table | baselines))
    numbers = {name: headline(metrics) for name, metrics in table.items()}
    log.close()
    facts = facts | {"metrics": numbers}
    facts["baselines"] = {name: headline(metrics) for name, metrics in baselines.items()}
    write_manifest(folder, record.record | facts, data)
    record.write(status="finished", **facts)  # last: nobody resumes it now
    print(f"run folder: {folder}\n{json.dumps({'run': str(folder), **numbers})}")
    return {"run": str(folder), **numbers["validation"]}


def write_manifest(folder: Path, record: dict, data: dict[str, RankRows]) -> None:
    """training_manifest.json: what the models of this run were made from, and every file of theirs with its sha256."""
    files = sorted(
        path
        for part in ("best_model", "final_model")
        for path in (folder / part).rglob("*")
        if path.is_file()
    )
    manifest = {
        name: record.get(name) for name in ("command", "commit", "versions", "hardware", "arguments", "model")
    }
    manifest |= {
        name: record.get(name) for name in ("best", "metrics", "num_parameters", "num_trained", "num_steps")
    }
    manifest["data"] = {
        name: {"path": rows.meta["path"], "sha256": rows.meta["sha256"], "questions": len(rows)}
        for name, rows in data.items()
    }
    manifest["files"] = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    }
    write_json(folder / "training_manifest.json", manifest)
