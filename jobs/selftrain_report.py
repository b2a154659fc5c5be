"""What jobs.selftrain shows at its end: the gain with its interval, the table of the rounds, a picture, summary.md."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from core.results_table import format_table
from core.rows import file_sha256
from core.runs import RunRecord
from core.statistics import bootstrap_scores
from jobs.comparison import decisions, one_hot
from jobs.comparison_files import format_markdown, join_parts
from jobs.final_scores import FinalRows, Scores, gain
from jobs.scored import read_scored

COLOURS = ("#2c7fb8", "#d95f0e", "#31a354", "#756bb1", "#636363")
MOST_NAMED = 8  # classes with their counts in the table, and with a colour of their own


# -- gain -------------------------------------------------------------------------------------------------------


def score_test(runs: list[Path], path: str, device: str | None) -> None:
    """Write RUN/test/ for those that were not scored on these rows yet: the one look at them, when all is chosen."""
    rows = FinalRows(path, device=device)
    for run in runs:
        if RunRecord.read(run).record["data"].get("test") != file_sha256(path):
            rows.write(run)


def gain_over(run: Path, rival: Path, split: str, num_resamples: int, seed: int) -> dict:
    """What a run has more than another on validation or test rows, with 95 % intervals of the paired bootstrap.

    Returns: macro_f1, interval, accuracy, accuracy_interval; over (the other run), on, n. With several labels a row at
             thresholds that were found on other rows, or cross-fitted; accuracy: all labels of a row are right.
    """
    found = []
    for folder in (run, rival):
        scored = read_scored(folder, split)
        chosen = one_hot(scored.logits)
        if scored.multi_label:
            chosen = decisions(folder / split, scored.logits, scored.label_names, scored.truth)
        samples = bootstrap_scores(scored.truth, chosen[None], num_resamples, seed)
        found.append(Scores({}, chosen, samples))
    about = {"over": str(rival), "on": split, "n": len(scored.truth)}
    return gain(*found, scored.truth) | about


# -- table ------------------------------------------------------------------------------------------------------


def per_class_text(counts: dict[str, int]) -> str:
    """Counts by class, the first MOST_NAMED of them."""
    named = [f"{name} {count}" for name, count in list(counts.items())[:MOST_NAMED]]
    return ", ".join(named) + (f" and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else "")


def cells_of(number: int, name: str, line: dict, several: bool) -> dict[str, str]:
    """A student's cells by column, as text."""
    said, score = line.get("selection"), "macro_f1_tuned" if several else "macro_f1"
    cells = {"round": str(number), "model": name, "added": str(line.get("num_added", 0))}
    if said and said["interval"]:
        low, high = said["interval"]
        cells["audit says right"] = f"{said['accuracy']:.3f} ({low:.3f} to {high:.3f})"
        cells["of audit rows"] = str(said["audit_rows"])
    if line.get("confidence"):
        cells["confidence"] = f"{line['confidence']:.3f}"
    if line.get("pool_accuracy") is not None:
        cells["truly right"] = f"{line['pool_accuracy']:.3f}"
    cells["audit F1"] = f"{line['audit']['macro_f1']:.4f}"
    cells["validation F1"] = f"{line['validation'][score]:.4f}"
    cells["added by class"] = per_class_text(line.get("per_class", {}))
    return cells


def columns_of(rows: list[dict[str, str]]) -> list[str]:
    """The columns that some row has, scores and classes last."""
    last = ("audit F1", "validation F1", "added by class")
    return sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name in last)


def gain_text(found: dict) -> str:
    """A gain in words."""
    (low, high), (worst, best) = found["interval"], found["accuracy_interval"]
    macro = f"macro F1 {found['macro_f1']:+.4f} ({low:+.4f} to {high:+.4f})"
    return f"{macro}, accuracy {found['accuracy']:+.4f} ({worst:+.4f} to {best:+.4f})"


def gain_lines(result: dict) -> list[str]:
    """The gains as sentences, that over labelled rows alone last."""
    split, number = result["gain"]["on"], result["best_round"]
    about = f"on {result['gain']['n']} {split} rows, 95 % intervals, paired bootstrap over rows"
    about += ", which helped to choose" * (split == "validation")
    lines = []
    if result["gain_over_all_labelled"]:
        told = gain_text(result["gain_over_all_labelled"])
        lines.append(f"round {number} over all labelled rows alone, the audit's too: {told}; {about}")
    low, _ = result["gain"]["interval"]
    verdict = (
        "none: round 0 is the best" if not number else "a gain is shown" if low > 0 else "no gain is shown"
    )
    return [
        *lines,
        f"round {number} over labelled alone (round 0): {gain_text(result['gain'])}; {about}: {verdict}",
    ]


def report_text(result: dict) -> str:
    """The table and the gains, for the terminal."""
    rows = [cells_of(*line, result["multi_label"]) for line in lines_of(result)]
    columns = [name for name in columns_of(rows) if name not in ("round", "model")]
    several = len(result["models"]) > 1
    table = [(f"round {row['round']}" + f" {row['model']}" * several, row) for row in rows]
    return "\n".join(["", format_table(table, columns), "", *gain_lines(result), ""])


def lines_of(result: dict) -> list[tuple[int, str, dict]]:
    """(round, model, line) of every student."""
    return [(one["round"], name, line) for one in result["rounds"] for name, line in one["models"].items()]


def markdown(result: dict) -> str:
    """summary.md."""
    found = [cells_of(*line, result["multi_label"]) for line in lines_of(result)]
    head = columns_of(found)
    table = [[row.get(name, "-") for name in head] for row in found]
    if result["gain_over_all_labelled"]:
        table.append(gain_row(head, "all labelled", result["gain_over_all_labelled"], result))
    table.append(gain_row(head, "labelled alone", result["gain"], result))
    parts, about = ["# Self-training"], result["parts"]
    left = ", ".join(f"{count} {why}" for why, count in about["left_out"].items() if count)
    parts.append(
        f"{about['labelled']} labelled rows to learn from, {about['audit']} for the audit, {about['pool']} in the pool"
        + (f"; left out of the pool: {left}." if left else ".")
    )
    parts += [format_markdown(head, table, 2), "![scores and rows added, round by round](selftrain.png)"]
    parts += [f"- {line}" for line in gain_lines(result)]
    parts.append(f"Result: `{result['run']}`; it stopped because {result['stopped']}.")
    parts.append(
        "audit says right: of the audit rows that the same cuts take, the share whose label the teachers say rightly, "
        "with Wilson's 95 % interval; confidence: what the teachers claimed, on average. "
        "audit F1: the student's macro F1 on all audit rows, which ends the rounds and chooses the one to keep."
    )
    parts.append(f"Made by `{result['command']}` at commit {result['commit']}.")
    return join_parts(parts)


def gain_row(head: list[str], over: str, found: dict, result: dict) -> list[str]:
    """A gain as the table's row."""
    low, high = found["interval"]
    cells = {"round": f"gain of {result['best_round']}", "model": f"over {over}"}
    cells["validation F1"] = f"{found['macro_f1']:+.4f} ({low:+.4f} to {high:+.4f}, {found['on']} rows)"
    return [cells.get(name, "") for name in head]


# -- picture ----------------------------------------------------------------------------------------------------


def rounds_figure(result: dict) -> Figure:
    """Left the scores over the rounds, and what the audit says of the pseudo-labels; right the rows added, by class."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    scores, added = figure.subplots(1, 2, width_ratios=(1.25, 1))
    score = "macro_f1_tuned" if result["multi_label"] else "macro_f1"
    for k, name in enumerate(result["models"]):
        lines = [(number, line) for number, own, line in lines_of(result) if own == name]
        colour, told = COLOURS[k % len(COLOURS)], f"{name}: " * (len(result["models"]) > 1)
        numbers = [number for number, _ in lines]
        audit, val = ([line[part][key] for _, line in lines] for part, key in
                      (("audit", "macro_f1"), ("validation", score)))  # fmt: skip
        scores.plot(numbers, audit, "o-", color=colour, label=f"{told}macro F1 on audit rows")
        scores.plot(numbers, val, "s--", color=colour, alpha=0.6, label=f"{told}macro F1 on validation rows")
        said = [
            (number, line["selection"]) for number, line in lines if line.get("selection", {}).get("interval")
        ]
        if said:
            x = np.array([number for number, _ in said]) + 0.06 * (k + 1)
            y = np.array([own["accuracy"] for _, own in said])
            ends = np.abs(np.array([own["interval"] for _, own in said]).T - y)
            style = {"fmt": "D", "color": colour, "ms": 4, "lw": 1, "mfc": "white", "capsize": 2}
            scores.errorbar(x, y, yerr=ends, label=f"{told}pseudo-labels right, by the audit", **style)
    scores.axvline(result["best_round"], color="0.7", lw=0.8, ls=":", label="the round that is kept")
    scores.set(xlabel="Round (0: labelled rows alone)", ylabel="Score")
    scores.xaxis.set_major_locator(MaxNLocator(integer=True))
    scores.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    draw_added(added, result)
    for axes in (scores, added):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_added(axes, result: dict) -> None:
    """A bar a student, stacked by class; beyond MOST_NAMED classes in one colour."""
    lines = [(number, name, line) for number, name, line in lines_of(result) if line.get("num_added")]
    several = len(result["models"]) > 1
    names = list(lines[0][2]["per_class"]) if lines else []
    stacked = names if len(names) <= MOST_NAMED else ["all classes"]
    places, bottom = np.arange(len(lines)), np.zeros(len(lines))
    for k, name in enumerate(stacked):
        heights = [line["per_class"].get(name, line["num_added"]) for *_, line in lines]
        label = name if len(name) <= 28 else name[:25] + "..."
        shade = 0.25 + 0.65 * k / max(len(stacked) - 1, 1)
        axes.bar(
            places, heights, 0.7, bottom, color=[(0.17, 0.5, 0.72, shade)], label=label.replace("$", r"\$")
        )
        bottom += heights
    axes.set_xticks(
        places, [f"round {number}" + f"\n{name}" * several for number, name, _ in lines], fontsize=8
    )
    axes.set(ylabel="Pseudo-labelled rows", title=f"of a pool of {result['parts']['pool']} rows")
    axes.title.set_fontsize(10)
    if lines:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color="0.5")
