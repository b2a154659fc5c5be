"""What a report says of the result: classes, probabilities, thresholds, errors, the model card."""

from collections.abc import Callable

import numpy as np

from core.calibration import row_losses
from core.metrics import NUM_BINS
from core.plots import (
    confusion_figure,
    outcomes_figure,
    per_class_figure,
    pr_figure,
    reliability_figure,
    reliability_pair_figure,
)
from jobs.report_page import bullets, clean, cut, facts_list, heading, label_words, more, note, table, text
from jobs.report_plots import MOST_PANELS, THRESHOLDS, curves_figure, picture
from jobs.report_rows import SURE, Rows, confusions, threshold_curve
from jobs.report_words import (
    count,
    f1_of,
    interval,
    is_number,
    listing,
    metric_name,
    percent,
    pick,
    score,
)

MOST_CLASSES = 300  # lines of a table by class
MOST_KINDS = 8  # of errors


def named(per_class: dict) -> dict:
    """A table by class with names that a picture can hold."""
    return {clean(label): numbers for label, numbers in per_class.items()}


# -- classes ----------------------------------------------------------------------------------------------------


def classes(facts: dict) -> list[dict]:
    """The table and the bars by class, and what was said in place of what."""
    result, metrics = facts["result"], facts["result"]["metrics"]
    per_class = metrics.get("per_class") or {}
    if not per_class:
        return [text("The run's metrics have no table by class.")]
    order = sorted(per_class.items(), key=lambda item: (-item[1]["support"], item[0]))
    by_f1 = sorted(f1_of(own) for own in per_class.values())
    blocks = class_table(order, result, facts["data"])
    blocks.append(picture(
        per_class_figure(named(per_class)),
        f"Bars of F1 by class, from {score(by_f1[0])} to {score(by_f1[-1])}; the numbers are in the table.",
        "F1 by class, the class with most rows on top.",
    ))  # fmt: skip
    if metrics.get("confusion_matrix"):
        matrix, names = metrics["confusion_matrix"], [clean(label) for label in per_class]
        right, total = sum(matrix[k][k] for k in range(len(matrix))), sum(map(sum, matrix))
        blocks += [heading("What was said in place of what"), picture(
            confusion_figure(matrix, names),
            f"Confusion matrix of {len(names)} classes; {right:,} of {total:,} rows are on the diagonal. The most "
            "frequent confusions are in the table of errors.",
            "A line is a true class, a column what was said; colour: the share of the true class.",
        )]  # fmt: skip
    elif all("tp" in own for own in per_class.values()):
        hits, missed, claimed = (sum(own[key] for own in per_class.values()) for key in ("tp", "fn", "fp"))
        blocks += [heading("What became of each label"), picture(
            outcomes_figure(named(per_class)),
            f"Bars of each label's outcomes; in all {hits:,} found, {missed:,} missed, {claimed:,} claimed in error.",
            "Several labels can hold for a row, so there is no matrix of confusions. Decisions at 0.5.",
        )]  # fmt: skip
    return blocks


def class_table(order: list[tuple[str, dict]], result: dict, found: dict) -> list[dict]:
    """The table by class. Args: order: (class, its metrics), as they are to stand there."""
    part, cuts = result["part"], result["thresholds"].get("thresholds", {})
    has_tuned = any("f1_tuned" in own for _, own in order)
    kinds = ("precision", "recall", "f1")
    keys = [f"{key}_tuned" for key in kinds] + ["f1"] if has_tuned else [*kinds]
    head = ["Class", f"{part} rows", "train rows", "Precision", "Recall", "F1"]
    head += ["F1 at 0.5", "Threshold"] * has_tuned + ["AP"]
    lines = []
    for label, own in order[:MOST_CLASSES]:
        train = found.get("labels", {}).get(label, {}).get("train")
        cells = [[label_words(label)], f"{own['support']:,}", f"{train:,}" if is_number(train) else "-"]
        cells += [score(own.get(key)) for key in keys] + [score(cuts.get(label))] * has_tuned
        lines.append([*cells, score(own.get("average_precision"))])
    at = ", precision, recall and F1 at its threshold" if has_tuned else ""
    name = result["stage"]["name"]
    blocks = [table(f"By class, {name} on the {part} rows{at}", head, lines)]
    left_out = len(order) - MOST_CLASSES
    more_classes = (
        f" {count(left_out, 'rarer class is', 'rarer classes are')} left out." if left_out > 0 else ""
    )
    return [*blocks, note(f"AP: average precision, the area under the precision-recall curve.{more_classes}")]


# -- probabilities ----------------------------------------------------------------------------------------------


def probabilities(facts: dict) -> list[dict]:
    """Precision-recall, reliability, thresholds."""
    result, rows, part = facts["result"], facts["result"]["rows"], facts["result"]["part"]
    if not rows:
        return [text("The rows that were scored cannot be read, so there are no curves.")]
    blocks = [heading("Precision and recall"), picture(
        pr_figure(rows.probs, rows.truth, [clean(label) for label in rows.names]),
        f"Precision-recall curves of the classes on the {part} rows; mean average precision "
        f"{score(result['metrics'].get('average_precision'))}.",
        "Each point is a threshold: the share of what is claimed that is right (precision), against the share of what "
        "is there that is found (recall).",
    )]  # fmt: skip
    blocks += reliability(result)
    return blocks + (thresholds(result) if rows.multi_label or len(rows.names) == 2 else [])


def reliability(result: dict) -> list[dict]:
    """Whether probabilities come true, before and after calibration."""
    before, after, part = result["reliability"].get("before"), result["reliability"]["after"], result["part"]
    blocks, measures = [heading("Do probabilities come true?")], ("ece", "brier", "nll")
    caption = "On the diagonal, 70 % comes true in 70 % of the cases."
    if before:
        lines = [[title, *(score(own[key]) for key in measures)] for title, own in
                 (("Before calibration", before), ("After", after))]  # fmt: skip
        head = ["Probabilities", "ECE", "Brier score", "NLL (nats)"]
        blocks.append(table(f"Calibration on the {part} rows; lower is better", head, lines))
        figure = reliability_pair_figure(
            before, after, ("before calibration", f"after: {result['rows'].method}")
        )
        alt = f"Two reliability diagrams; ECE {score(before['ece'])} before, {score(after['ece'])} after calibration."
    else:
        figure = reliability_figure(after)
        alt = (
            f"Reliability diagram in {len(after['bins'])} bins; the mean distance from the diagonal (ECE) is "
        )
        alt += f"{score(after['ece'])}."
    blocks.append(picture(figure, alt, caption))
    whose = "of every label's probability" if result["rows"].multi_label else "of the top class's probability"
    return [*blocks, note(f"ECE: expected calibration error, {NUM_BINS} bins of equal mass, {whose}.")]


def thresholds(result: dict) -> list[dict]:
    """F1, precision and recall against the threshold: of each label, or of the second of two classes."""
    rows, part, cuts = result["rows"], result["part"], result["thresholds"].get("thresholds", {})
    order = np.argsort(-rows.truth.sum(axis=0), kind="stable")
    numbers = order[:MOST_PANELS].tolist() if rows.multi_label else [1]  # numpy
    curves = [
        {"name": clean(rows.names[c]), "threshold": cuts.get(rows.names[c], 0.5)}
        | threshold_curve(rows.probs[:, c], rows.truth[:, c], THRESHOLDS)
        for c in numbers
    ]
    told = listing([f"{curve['name']} {curve['threshold']:.2f}" for curve in curves])
    which = (
        f"The {len(curves)} labels with most rows. " if len(order) > len(curves) and rows.multi_label else ""
    )
    tuned_on = result["thresholds"].get("tuned_on")
    chosen = f"Thresholds were chosen on {tuned_on}." if tuned_on and cuts else "Nothing was tuned: 0.5."
    shown = picture(
        curves_figure(curves),
        f"Precision, recall and F1 on the {part} rows against the threshold. Chosen thresholds: {told}.",
        f"{which}{chosen}",
    )
    warning = (
        "A better threshold that shows here is no reason to take it: these rows test, they do not choose."
    )
    return [heading("Thresholds"), shown, *([note(warning)] if part == "test" else [])]


# -- errors -----------------------------------------------------------------------------------------------------


def errors(facts: dict, examples: int, text_length: int) -> list[dict]:
    """The most frequent confusions, the hardest rows, and rows that contradict a sure prediction."""
    rows, part, suspects = (facts["result"][key] for key in ("rows", "part", "suspects"))
    if not rows:
        return [text("The rows that were scored cannot be read; see what could not be shown.")]
    kinds = confusions(rows)
    blocks = [text(f"None: all {len(rows.texts):,} {part} rows are decided rightly.")]
    if kinds:
        lines = [
            [kind_words(rows, kind), f"{kind['rows']:,}", percent(kind["rows"] / kind["of"])]
            for kind in kinds[:MOST_KINDS]
        ]
        share = "Share of the rows it can happen to" if rows.multi_label else "Share of the true class"
        told = f"{min(len(kinds), MOST_KINDS)} of {count(len(kinds), 'kind')} of errors on the {part} rows"
        blocks = [heading("The most frequent"), table(told, ["Error", "Rows", share], lines)]
    if not examples:
        return [*blocks, note("Texts of the rows are left out.")]

    def shown(numbers: list[int]) -> dict:
        return {"kind": "rows", "rows": [row_block(rows, k, text_length) for k in numbers]}

    few = max(1, examples // 3)
    blocks += [more(kind_words(rows, kind), shown(kind["examples"][:few])) for kind in kinds[:MOST_KINDS]]
    losses = row_losses(rows.logits, rows.truth, rows.multi_label)
    hardest = np.argsort(-losses, kind="stable")[:examples].tolist()  # numpy
    blocks += [
        heading("The hardest rows"),
        text(
            "Where the model gave what is true the least chance. Rows are counted in ",
            ("code", rows.path),
            ".",
        ),
        shown(hardest),
    ]
    return [
        *blocks,
        heading("Sure, and contradicted by the label"),
        *contradictions(rows, suspects, shown, examples),
    ]


def contradictions(rows: Rows, suspects: dict, shown: Callable, examples: int) -> list[dict]:
    """Rows whose label contradicts what the model is sure of. Args: shown: gives the block of some rows."""
    what = "decisions on a label" if rows.multi_label else "predictions"
    if not suspects["decisions"]:
        return [text(f"None of the {what} has a probability of {percent(SURE)} or more.")]
    told = (
        f"Of {suspects['decisions']:,} {what} with a probability of {percent(SURE)} or more, {suspects['wrong']:,} are "
        f"contradicted by the label; if the probabilities are right, about {suspects['expected']:,.1f} would be. "
    )
    if not suspects["rows"]:
        return [text(told)]
    told += "Some of these may be errors in the labels, others are the model's: only a person who reads them can tell."
    left_out = len(suspects["rows"]) - examples
    rest = [note(f"{count(left_out, 'more row is', 'more rows are')} left out.")] if left_out > 0 else []
    return [text(told), shown(suspects["rows"][:examples]), *rest]


def kind_words(rows: Rows, kind: dict) -> list:
    """A kind of error as words."""
    if kind["said"] is None:
        return [label_words(rows.names[kind["true"]]), " missed"]
    if kind["true"] is None:
        return [label_words(rows.names[kind["said"]]), " claimed in error"]
    return [label_words(rows.names[kind["true"]]), " taken for ", label_words(rows.names[kind["said"]])]


def row_block(rows: Rows, k: int, text_length: int) -> dict:
    """A row: its text, how it is labelled, what was said, each with its probability."""

    def labels(of: np.ndarray) -> list:
        words: list = []
        for c in np.flatnonzero(of):
            chance = percent(float(rows.probs[k, c]))
            words += [", " if words else "", label_words(rows.names[c]), f" {chance}"]
        return words or ["none"]

    told = [["labelled: ", *labels(rows.truth[k])], ["said: ", *labels(rows.said[k])], f"row {k + 1}"]
    told += ["decided rightly"] * bool((rows.truth[k] == rows.said[k]).all())
    return {"text": cut(clean(rows.texts[k], False), text_length), "facts": told}


# -- the model card ---------------------------------------------------------------------------------------------


def card(facts: dict) -> list[dict]:
    """What somebody needs to know who is handed the model."""
    pipeline, result, part = facts["pipeline"], facts["result"], facts["result"]["part"]
    record, after = result["record"], result["reliability"].get("after")
    kind = "the labels that hold, none or several" if pipeline["multi_label"] else "one label"
    base = record["model"].get("model_name") or record["arguments"].get("model_name") or "not recorded"
    num = facts["data"].get("rows", {}).get("train")
    what = f"A classifier: a text in, {kind} of {len(pipeline['label_names'])} out, with probabilities. "
    calibrated = "not measured"
    if after:
        calibrated = f"ECE {score(after['ece'])} on {part} rows; calibrated by: {result['rows'].method}"
    items = [
        ("What it is", what + f"Made by: {result['stage']['name']}."),
        ("Base model", [("code", str(base))]),
        (
            "Training rows",
            [f"{num:,} of " if is_number(num) else "", ("code", str(pipeline["data"]["file"] or "-"))],
        ),
        (
            "Intended use",
            "To be filled in. It has learnt from texts like the training rows, and from no others.",
        ),
        ("Calibration", calibrated),
        ("Licence", "To be filled in. Those of the base model and of the data hold for it too."),
    ]
    code = f"from predict import load\n\nmodel = load({str(result['run'])!r})\n"
    code += 'model(["a text", "another"])  # for each: {"label", "probabilities"'
    code += ', "labels"}' if pipeline["multi_label"] else "}"
    return [facts_list(items), heading("Limits, as measured"), bullets(limits(facts)), heading("To load it"),
            {"kind": "code", "text": code}]  # fmt: skip


def limits(facts: dict) -> list:
    """What was measured of the model's limits, and what was not."""
    pipeline, result, part = facts["pipeline"], facts["result"], facts["result"]["part"]
    metric, about = pipeline["metric"], result["record"]["model"]
    reached, pair = pick(result["metrics"], metric), pick(result["interval"], metric)
    told = f"{metric_name(metric)} {score(reached)} {interval(pair)} on {part} rows".replace("  ", " ")
    lines: list = [f"{told} of the same source as the training rows; rows from elsewhere: not measured."]
    per_class = result["metrics"].get("per_class") or {}
    worst = sorted((f1_of(own), label) for label, own in per_class.items())[:3] if len(per_class) > 3 else []
    if worst:
        words: list = ["Weakest: "]
        for k, (value, label) in enumerate(worst):
            words += [", " if k else "", label_words(label), f" (F1 {score(value)})"]
        lines.append([*words, "."])
    if is_number(about.get("max_length")):
        kept = {"head": "the beginning", "tail": "the end", "head_tail": "beginning and end"}
        lines.append(f"It reads {about['max_length']} tokens of a text at the most; of longer ones "
                     f"{kept.get(about.get('truncate'), 'a part')}.")  # fmt: skip
    return [*lines, "Other languages, other kinds of text, later times, whether it treats groups of people alike: not "
                    "measured."]  # fmt: skip
