"""What a report is made of: one plain structure from the files of a pipeline's or a run's folder.

Everything is read; what is missing becomes a sentence, and only what makes a report impossible an error.
"""

import json
import re
from pathlib import Path

from core.errors import UserError
from core.metrics import calibration_summary, classification_metrics
from core.rows import RowFormat
from core.statistics import bootstrap_scores, percentile_interval
from jobs.report_rows import Rows, contradicted, describe_files, load_rows
from jobs.report_words import is_number
from jobs.scored import FILES

PARTS = {"train": "train_data", **FILES}
STAGE = {
    "name": "", "what": "", "status": "done", "why": "", "minutes": None, "run": None, "validation": None,
    "is_cross_fitted": False, "test": None, "test_interval": None, "gain": None, "details": {},
}  # fmt: skip
PIPELINE = {
    "status": "unknown", "started": "", "minutes": None, "arguments": {}, "command": [], "commit": None,
    "versions": {}, "hardware": {}, "metric": "macro_f1", "multi_label": False, "label_names": [], "data": {},
    "stages": [], "baselines": {}, "final": None,
}  # fmt: skip
SECRET_NAME = re.compile(r"(?i)(api_?key|secret|passw|credential|auth|(^|_)key$|(^|_)token$)")
SECRET_VALUE = re.compile(
    r"\b(sk|hf|gh[pousr]|glpat|xox[abprs])[-_][\w-]{12,}|(?<=://)[^/\s@]+@|\bBearer\s+\S+"
)
# what files that are not whole raise, beside UserError
UNREADABLE = (UserError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)


def read_object(path: Path) -> dict:
    """A JSON file that holds an object. Raises UserError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: invalid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: is no object; write it again")
    return found


def fill(found: dict, default: dict, where: str) -> dict:
    """What was found, with defaults for what is missing or null. Raises UserError for a value of another kind."""
    out = dict(found)
    for name, value in default.items():
        own = found.get(name)
        if own is None:
            out[name] = value.copy() if isinstance(value, dict | list) else value
        elif isinstance(value, dict | list | str) and not isinstance(own, type(value)):
            raise UserError(f"{where}: {name!r} is {own!r:.60}; expected what jobs.pipeline writes there")
    kinds = dict.fromkeys(("validation", "test", "test_interval", "gain"), dict) | {"run": str}
    for name, kind in kinds.items():
        if name in default and not isinstance(out[name], kind | None):
            raise UserError(
                f"{where}: {name!r} is {out[name]!r:.60}; expected what jobs.pipeline writes there"
            )
    return out


def read_pipeline(path: Path) -> dict:
    """pipeline.json with everything in it that the report reads. Raises UserError."""
    pipeline = fill(read_object(path), PIPELINE, str(path))
    for k, stage in enumerate(pipeline["stages"]):
        if not isinstance(stage, dict) or not isinstance(stage.get("key"), str):
            raise UserError(f"{path}: stage {k + 1} is {stage!r:.60}; expected an object with a key")
        pipeline["stages"][k] = fill(stage, STAGE | {"name": stage["key"]}, f"{path}: stage {stage['key']}")
    for name, numbers in pipeline["baselines"].items():
        if not isinstance(numbers, dict):
            raise UserError(f"{path}: baseline {name!r} is {numbers!r:.60}; expected an object")
    return pipeline


def run_as_pipeline(folder: Path) -> dict:
    """A single run as a pipeline of one line. Raises UserError when it is no run of a classifier."""
    record = read_object(folder / "run.json")
    about = record.get("model") or {}
    if not isinstance(about, dict) or not isinstance(about.get("label_names"), list):
        is_new = record.get("status") == "running" and not about
        why = "has only begun" if is_new else "is no classifier's run"
        raise UserError(
            f"{folder}: {why}; expected a run of train.py or ppo_feedback.py, or a pipeline's folder"
        )
    baselines = {}
    for name, numbers in (record.get("baselines") or {}).items():
        kind, _, part = name.rpartition(" (")
        baselines.setdefault(kind, {})[part.rstrip(")")] = numbers
    seconds = (record.get("timings") or {}).get("total_s")
    length = seconds / 60 if is_number(seconds) else None
    numbers = record.get("metrics") or {}
    stage = {"key": "run", "name": "this run", "what": str(about.get("model_name") or ""), "run": ".",
             "minutes": length, "validation": numbers.get("validation"), "test": numbers.get("test")}  # fmt: skip
    found = {
        name: record[name]
        for name in ("status", "started", "arguments", "command", "commit")
        if name in record
    }
    found |= {name: record.get(name) or {} for name in ("versions", "hardware")}
    found |= {
        "minutes": length,
        "metric": record.get("metric", "macro_f1"),
        "multi_label": about["multi_label"],
    }
    found |= {"label_names": about["label_names"], "baselines": baselines, "final": "run"}
    found |= {"data": dict(about.get("row_format") or {}), "stages": [STAGE | stage]}
    return fill(found, PIPELINE, f"{folder}/run.json")


def hide_secrets(value: object, name: str = "") -> object:
    """Arguments or a command without what looks like a key or a password."""
    if isinstance(value, dict):
        return {key: hide_secrets(own, str(key)) for key, own in value.items()}
    if isinstance(value, list):
        names = [
            own.lstrip("-") if str(own).startswith("--") and "=" not in own else "" for own in value[:-1]
        ]
        before = ["", *names] if value else []
        return [hide_secrets(own, flag) for own, flag in zip(value, before, strict=True)]
    if SECRET_NAME.search(name) and isinstance(value, str) and value:
        return "***"
    if not isinstance(value, str):
        return value
    flag, equals, own = value.partition("=")
    if equals and flag.startswith("--") and SECRET_NAME.search(flag.lstrip("-")):
        return f"{flag}=***"
    return SECRET_VALUE.sub("***", value)


def describe_data(folder: Path, pipeline: dict, missing: list[str]) -> dict:
    """The parts: what split.json says, and what their files say beyond it; {} when neither is there."""
    about, args, found = pipeline["data"], pipeline["arguments"], {}
    names = ("text_field", "pair_field", "label_field")
    fields = {name: about.get(name) or args.get(name) for name in names if about.get(name) or args.get(name)}
    about |= {"file": about.get("file") or args.get("data") or args.get("train_data")} | fields
    split = folder / str(about.get("split") or "split/split.json")
    given = {part: args.get(flag) for part, flag in PARTS.items()}
    paths = {part: Path(path) for part, path in given.items() if path}
    if split.is_file():
        paths = {part: split.parent / f"{part}.jsonl" for part in PARTS}
    try:
        found = describe_files(paths, RowFormat(**fields))
    except UNREADABLE as error:
        missing.append(f"The rows could not be read: {error}")
    gone = [part for part in paths if part not in found.get("rows", {}) and not split.is_file()]
    if gone:
        missing.append(f"The files of these rows are not there any more: {', '.join(gone)}.")
    try:
        found |= read_object(split) if split.is_file() else {}
    except UserError as error:
        missing.append(str(error))
    return found if isinstance(found.get("rows"), dict) else {}


def read_result(folder: Path, pipeline: dict, missing: list[str]) -> dict | None:
    """The run whose rows are shown: the final one's test rows, else the last finished one's validation rows."""
    done = [stage for stage in pipeline["stages"] if stage["run"] and stage["status"] == "done"]
    final = [stage for stage in done if stage["key"] == pipeline["final"]]
    for stage in final + done[::-1]:
        run = folder / stage["run"]
        parts = ["test"] * (pipeline["status"] == "finished") + ["validation"]
        part = next((part for part in parts if (run / part / "metrics.json").is_file()), None)
        try:
            if part:
                record, metrics = read_object(run / "run.json"), read_object(run / part / "metrics.json")
                for name in ("model", "arguments"):
                    record[name] = record[name] if isinstance(record.get(name), dict) else {}
                return {"stage": stage, "run": run, "part": part, "record": record, "metrics": metrics}
            missing.append(f"The run {stage['run']} of {stage['name']} holds no scores.")
        except UserError as error:
            missing.append(str(error))
    return None


def read_details(result: dict, is_pipeline: bool, missing: list[str]) -> None:
    """Add to a result its rows, thresholds, reliability, interval and what contradicts a sure prediction."""
    run, part, stage = result["run"], result["part"], result["stage"]
    result |= {"rows": None, "suspects": None, "thresholds": {}, "reliability": {}, "interval": {}}
    result["interval"] = stage["test_interval"] if part == "test" and stage["test_interval"] else {}
    try:
        for place in (
            run / "validation",
            run / part,
        ):  # jobs.calibrate writes the first, which predict.py reads
            if not result["thresholds"] and (place / "thresholds.json").is_file():
                result["thresholds"] = read_object(place / "thresholds.json")
        rows = load_rows(run, part)
    except UNREADABLE as error:
        missing.append(f"Rows, curves and errors are left out: {error}")
        return
    result |= {"rows": rows, "suspects": contradicted(rows), "reliability": compare_reliability(rows)}
    if not is_pipeline and rows.method != "none":  # jobs.calibrate came after the scores of the folder
        tuned = rows.said if rows.multi_label else None
        result["metrics"] = classification_metrics(
            rows.logits, rows.labels, rows.names, rows.multi_label, tuned
        )
    if not result["interval"]:
        samples = bootstrap_scores(rows.truth, rows.said[None])
        result["interval"] = {name: list(percentile_interval(values)) for name, values in samples.items()}


def compare_reliability(rows: Rows) -> dict:
    """Summaries of core.metrics.calibration_summary: "after" of what predict.py shows, "before" of a calibrated run."""
    summaries = {"after": calibration_summary(rows.logits, rows.labels, rows.multi_label)}
    if rows.method != "none":
        summaries["before"] = calibration_summary(rows.raw, rows.labels, rows.multi_label)
    return summaries


def gather(folder: Path) -> dict:
    """All that the report says, from the folder's files: pipeline, data, result, and sentences on what is missing."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one of jobs.pipeline, or a run folder")
    is_pipeline = (folder / "pipeline.json").is_file()
    if not is_pipeline and not (folder / "run.json").is_file():
        raise UserError(
            f"{folder}: holds no pipeline.json and no run.json; expected a pipeline's or a run's folder"
        )
    pipeline = read_pipeline(folder / "pipeline.json") if is_pipeline else run_as_pipeline(folder)
    missing: list[str] = []
    result = read_result(folder, pipeline, missing)
    data = describe_data(folder, pipeline, missing)
    if result:
        read_details(result, is_pipeline, missing)
        about = result["record"]["model"]
        pipeline["label_names"] = pipeline["label_names"] or about.get("label_names") or []
        pipeline["multi_label"] = bool(pipeline["multi_label"] or about.get("multi_label"))
    for name in ("arguments", "command"):
        pipeline[name] = hide_secrets(pipeline[name])
    return {"folder": folder, "is_pipeline": is_pipeline, "pipeline": pipeline, "data": data, "result": result,
            "missing": missing}  # fmt: skip
