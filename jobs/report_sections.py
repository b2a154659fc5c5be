"""What a report says of the question and the stages: facts of jobs/report.py in, blocks for
jobs/report_page.py out. Of the result itself: jobs/report_result.py.
"""

import shlex
from collections.abc import Callable
from functools import partial

from jobs.report_data import data
from jobs.report_page import (
    aside,
    bullets,
    clean,
    cut,
    facts_list,
    heading,
    label_words,
    more,
    note,
    table,
    text,
)
from jobs.report_plots import ablation_figure, picture
from jobs.report_result import card, classes, errors, probabilities
from jobs.report_words import (
    gain_words,
    interval,
    is_number,
    listing,
    machine,
    metric_name,
    minutes,
    pick,
    score,
    signed,
    stage_name,
    verdict,
)

MOST_CHARACTERS = 200  # of a value in the lists of settings
MOST_SETTINGS = 200


def sections(facts: dict, examples: int, text_length: int) -> list[dict]:
    """All sections. Args: examples: hardest rows shown; 0: no text of the data | text_length: characters of one."""
    parts = {
        "asked": ("What was asked", asked),
        "data": ("The data", data),
        "stages": ("What each stage brought" if facts["is_pipeline"] else "The scores", stages),
    }
    if facts["result"]:
        parts |= {
            "classes": ("Classes", classes),
            "probabilities": ("Probabilities and thresholds", probabilities),
            "errors": ("Errors", partial(errors, examples=examples, text_length=text_length)),
            "card": ("Model card", card),
        }
    found = [
        {"id": name, "title": title, "blocks": attempt(make, facts, title, [])}
        for name, (title, make) in parts.items()
    ]
    if facts["missing"]:
        blocks = [bullets(facts["missing"])]
        found.append({"id": "missing", "title": "What could not be shown", "blocks": blocks})
    return found


def attempt(make: Callable[[dict], list], facts: dict, what: str, instead: list) -> list:
    """A part of the report. Where the files that it is of are not as they should be, the report goes on without it."""
    try:
        return make(facts)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        facts["missing"].append(f"{what} could not be made of what the files hold: {error!r}")
        return instead


# -- asked and given --------------------------------------------------------------------------------------------


def asked(facts: dict) -> list[dict]:
    """The question: rows, labels, metric; and what it ran on, with what."""
    pipeline, about = facts["pipeline"], facts["pipeline"]["data"]
    fields = {name: about.get(f"{name}_field") for name in ("text", "pair", "label")}
    told = [f"{name} from {value}" for name, value in fields.items() if value]
    versions = [f"{package} {number}" for package, number in pipeline["versions"].items()]
    items = [
        ("Rows", [("code", str(about["file"] or "-"))]),
        ("Fields", listing(told) or "text, and label or labels"),
        ("Labels", label_list(pipeline)),
        ("Chosen by", f"{metric_name(pipeline['metric'])} on rows that are not test rows"),
        ("Started", clean(pipeline["started"].replace("T", " ")) or "not recorded"),
        ("Took", minutes(pipeline["minutes"])),
        ("Hardware", machine(pipeline["hardware"]) if pipeline["hardware"] else "not recorded"),
        ("Versions", listing(versions) or "not recorded"),
        ("Commit", [("code", str(pipeline["commit"] or "not recorded"))]),
    ]
    blocks = [facts_list(items)]
    if pipeline["command"]:
        blocks.append({"kind": "code", "text": shlex.join(map(str, pipeline["command"]))})
    settings = [(key, [("code", shown(value))]) for key, value in leaves(pipeline["arguments"])]
    return blocks + ([aside("All flags", facts_list(settings[:MOST_SETTINGS]))] if settings else [])


def label_list(pipeline: dict) -> list:
    """How many labels of which kind, and the first of their names."""
    labels, kind = (
        pipeline["label_names"],
        "several labels a row" if pipeline["multi_label"] else "one label a row",
    )
    words: list = [f"{len(labels)}, {kind}: "]
    for k, label in enumerate(labels[:30]):
        words += [", " if k else "", label_words(str(label))]
    return [*words, f" and {len(labels) - 30} more" if len(labels) > 30 else ""]


def leaves(value: object, key: str = "") -> list[tuple[str, object]]:
    """(path, value) of each leaf of nested settings, and nothing of what was left empty.

    A list is a leaf, and so are things that lie side by side, {name: {...}, ...}: as a list of those with their names.
    """
    if not isinstance(value, dict):
        return [] if value in ("", None, []) else [(clean(key), value)]
    if key and len(value) > 1 and all(map(is_flat, value.values())):
        return [(clean(key), [{"name": str(name), **own} for name, own in value.items()])]
    pairs = [leaves(own, f"{key}.{name}" if key else str(name)) for name, own in value.items()]
    return [pair for some in pairs for pair in some]


def is_flat(value: object) -> bool:
    """Whether a value can be a line of a table: named values, nothing nested in them."""
    return isinstance(value, dict) and not any(isinstance(own, dict | list) for own in value.values())


def shown(value: object) -> str:
    """A setting as text."""
    return clean(cut(f"{value:.4g}" if isinstance(value, float) else str(value), MOST_CHARACTERS))


# -- stages -----------------------------------------------------------------------------------------------------


def stages(facts: dict) -> list[dict]:
    """The ablation table, its picture, what brought nothing in words, and what the stages said of themselves."""
    pipeline, metric = facts["pipeline"], facts["pipeline"]["metric"]
    if not pipeline["stages"]:
        return [text("No stage has finished yet.")]
    rows = [baseline_line(name, numbers, metric) for name, numbers in pipeline["baselines"].items()]
    rows += [stage_line(pipeline, stage) for stage in pipeline["stages"]]
    head = ["Stage", "Validation", "Test (95 %)", "Gain (95 %)", "Time"]
    order = ", in the order in which they ran" if facts["is_pipeline"] else ""
    name = metric_name(metric)
    blocks = [table(f"{name[0].upper()}{name[1:]} of each line{order}", head, rows)]
    blocks += ablation(pipeline)
    idle = [(stage, verdict(stage["gain"], metric)) for stage in pipeline["stages"]]
    idle = [(stage, mark[1]) for stage, mark in idle if mark and mark[1] != "gain"]
    if idle:
        told = [
            [
                ("strong", stage["name"]),
                f": {word}: {gain_words(pipeline, stage)}, {minutes(stage['minutes'])}.",
            ]
            for stage, word in idle
        ]
        blocks += [heading("What brought nothing"), bullets(told)]
    blocks.append(note(
        "Intervals: bootstrap over the test rows, the models taken as trained; a gain's is paired, on the same rows. "
        "They hold the chance that lies in the rows, not that of another training. Stages are chosen by the validation "
        "column; test rows are read at the end alone. Cross-fitted: no row helped to choose what it is scored with."
    ))  # fmt: skip
    return blocks + all_metrics(pipeline) + stage_details(pipeline)


def baseline_line(name: str, numbers: dict, metric: str) -> list:
    """A baseline's line of the ablation table."""
    test = numbers.get("test") or {}
    pair = interval(pick(test.get("interval"), metric))
    validation = score(pick(numbers.get("validation"), metric))
    first, reached = [("strong", name), ("small", "baseline")], [score(pick(test, metric)), ("small", pair)]
    return [first, validation, reached, "-", "-"]


def stage_line(pipeline: dict, stage: dict) -> list:
    """A stage's line of the ablation table."""
    metric, gain = pipeline["metric"], stage["gain"]
    first: list = [("strong", stage["name"])]
    if stage["status"] != "done":
        first += [" ", ("bad" if stage["status"] == "failed" else "flat", stage["status"])]
    first += [("small", stage["what"])] if stage["what"] else []
    first += [("small", f"Why: {stage['why']}")] if stage["why"] and stage["status"] != "done" else []
    own = pick(stage["validation"], metric)
    is_fitted = stage["is_cross_fitted"] and is_number(own)
    validation = [score(own), *([("small", "cross-fitted")] if is_fitted else [])]
    test = [score(pick(stage["test"], metric)), ("small", interval(pick(stage["test_interval"], metric)))]
    brought: list = ["-"]
    if gain:
        over = ("small", f"over {stage_name(pipeline, gain.get('over', ''))}")
        brought = [signed(pick(gain, metric)), ("small", interval(gain.get("interval"), signed)), over]
        brought += [mark] if (mark := verdict(gain, metric)) else []
    is_begun = stage["status"] in ("done", "failed", "running")
    return [first, validation, test, brought, minutes(stage["minutes"]) if is_begun else "-"]


def ablation(pipeline: dict) -> list[dict]:
    """The picture of the lines: test scores where there are some, else validation scores."""
    metric, lines = pipeline["metric"], []
    for name, numbers in pipeline["baselines"].items():
        pair = pick((numbers.get("test") or {}).get("interval"), metric)
        lines.append({"name": name, "scores": numbers, "interval": pair, "is_baseline": True})
    for stage in pipeline["stages"]:
        pair = pick(stage["test_interval"], metric)
        lines.append({"name": stage["name"], "scores": stage, "interval": pair, "is_baseline": False})
    part = (
        "test"
        if any(is_number(pick(stage["test"], metric)) for stage in pipeline["stages"])
        else "validation"
    )
    points = []
    for line in lines:
        value = pick(line["scores"].get(part), metric)
        if is_number(value):
            pair = line["interval"] if part == "test" and interval(line["interval"]) else None
            points.append(line | {"value": value, "interval": pair, "name": clean(line["name"])})
    if len(points) < 2:
        return []
    told = listing([f"{point['name']} {score(point['value'])}" for point in points])
    return [picture(
        ablation_figure(points, f"{metric_name(metric)} on {part} rows"),
        f"A point for each line, {metric_name(metric)} on {part} rows: {told}.",
        "Points: the score; bars: its 95 % interval; hollow: baselines; dotted: the last line.",
    )]  # fmt: skip


def all_metrics(pipeline: dict) -> list[dict]:
    """Every headline metric of every line, on test rows where there are some."""
    part = "test" if any(stage["test"] for stage in pipeline["stages"]) else "validation"
    lines = {name: numbers.get(part) or {} for name, numbers in pipeline["baselines"].items()}
    lines |= {stage["name"]: stage[part] for stage in pipeline["stages"] if stage[part]}
    keys = dict.fromkeys(key for numbers in lines.values() for key, own in numbers.items() if is_number(own))
    keys.pop("n", None)
    if not keys:
        return []
    rows = [[metric_name(key), *(score(numbers.get(key)) for numbers in lines.values())] for key in keys]
    blocks = [table(f"All metrics on {part} rows", ["Metric", *lines], rows)]
    gains = [
        (stage, stage["gain"])
        for stage in pipeline["stages"]
        if (stage["gain"] or {}).get("accuracy_interval")
    ]
    told = [
        [stage["name"], signed(gain.get("accuracy")), interval(gain["accuracy_interval"], signed)]
        for stage, gain in gains
    ]
    blocks += [table("Gains in accuracy", ["Stage", "Gain", "95 %"], told)] if told else []
    return [more("All metrics", *blocks)]


def stage_details(pipeline: dict) -> list[dict]:
    """What the stages wrote down about themselves: lists of alike things as tables."""
    blocks = []
    for stage in pipeline["stages"]:
        items, tables = [], []
        for key, value in leaves(stage["details"])[:MOST_SETTINGS]:
            if isinstance(value, list) and all(map(is_flat, value)):
                names = [
                    name
                    for name in dict.fromkeys(name for own in value for name in own)
                    if "sha256" not in name
                ]
                names.sort(key=lambda name: name not in ("run", "name"))
                rows = [[shown(own.get(name, "-")) for name in names] for own in value[:MOST_SETTINGS]]
                tables.append(table(key, names, rows))
            else:
                items.append((key, [("code", shown(value))]))
        if items or tables:
            own = [facts_list(items)] if items else []
            blocks.append(aside(f"Details: {stage['name']}", *own, *tables))
    return blocks
