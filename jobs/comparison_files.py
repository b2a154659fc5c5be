"""A comparison as files: comparison.md, comparison.png, comparison.json, and TensorBoard's HParams tab."""

import math
import shutil
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch.utils.tensorboard import SummaryWriter

from core.files import write_json, write_text
from core.plots import save_png
from core.runs import slug
from jobs.comparison import COSTS, SCORES, verdict

MARKERS = "os^vP"  # by the rows that were scored
COLOURS = ("#2c7fb8", "#d95f0e", "#31a354", "#756bb1", "#b8860b", "#636363", "#c51b8a", "#41b6c4")
HPARAMS = ("architecture", "model_name", "batch_size", "max_length", "loss", "head", "weight_decay", "warmup")


def write_comparison(folder: Path, result: dict) -> None:
    """Write everything into the folder; what an earlier comparison left there is replaced.

    Args: result: of compare_runs, with name, failed, command, commit, versions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", result)
    write_text(folder / "comparison.md", markdown(result))
    save_png(comparison_figure(result["lines"], result["rows"]), folder / "comparison.png")
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    for line in result["lines"]:
        write_board(folder / "tensorboard", line)


def write_board(folder: Path, line: dict) -> None:
    """A line's runs for TensorBoard's HParams tab: what they were given, what they reached and cost."""
    args = line["arguments"]
    given = dict(zip(("model", "source", "data"), line["place"])) | {"rows": line["rows"]}
    given |= {name: args[name] for name in HPARAMS if isinstance(args.get(name), str | int | float)}
    given |= {"learning_rate": line["learning_rate"], "epochs": line["epochs"]}
    for k, seed in enumerate(line["seeds"]):
        reached = {f"compare/{name}": line[f"{name}_by_seed"][k] for name in SCORES}
        reached |= {f"compare/{name}": line["by_run"][k][name] for name in COSTS}
        board = SummaryWriter(str(folder / slug(f"{line['number']} {line['label']} seed{seed}")))
        board.add_hparams(given | {"seed": seed}, reached, run_name=".")
        board.close()


# -- Markdown ---------------------------------------------------------------------------------------------------


def markdown(result: dict) -> str:
    """The whole comparison as text."""
    lines, pairs = result["lines"], result["pairs"]
    parts = [f"# Comparison: {result['name']}", scored_on(result["rows"])]
    if lines:
        parts += [results_table(lines, len(result["rows"]) > 1), *map(bullet, notes(result))]
        parts.append("![scores with intervals, and what they cost](comparison.png)")
    if pairs:
        parts += ["## Are the differences real?", *map(bullet, sentences(result)), pairs_table(pairs, lines)]
        parts.append(how_tested(result))
    if result["failed"]:
        parts.append("## Runs that failed")
        parts += [f"- `{run}`: {why}" for run, why in result["failed"].items()]
    if lines:
        parts += [
            "## Runs",
            *(f"- {line['label']}: " + ", ".join(f"`{r}`" for r in line["runs"]) for line in lines),
        ]
    parts.append(f"Made by `{result['command']}` at commit {result['commit']}.")
    return join_parts(parts)


def join_parts(parts: list[str]) -> str:
    """Paragraphs with an empty line between them; list items follow one another."""
    text = parts[0]
    for before, part in zip(parts, parts[1:]):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"


def bullet(text: str) -> str:
    """A list item."""
    return f"- {text}"


def scored_on(rows: dict[str, dict]) -> str:
    """Which rows were scored, by letter where there are several kinds."""
    told = []
    for letter, about in rows.items():
        which = f"{letter}: " if len(rows) > 1 else ""
        told.append(
            f"- {which}`{about['file']}` ({about['split']} rows), {about['n']} rows, "
            f"{about['num_classes']} classes, sha256 {about['sha256'][:12]}"
        )
    return "Scored on:\n" + "\n".join(told) if told else "No run has finished."


def results_table(lines: list[dict], has_letters: bool) -> str:
    """One line a setting; scores are means over the seeds, with 95 % intervals and the spread over the seeds."""
    head = [
        "",
        *(["rows"] if has_letters else []),
        "model",
        "source",
        "data",
        "seeds",
        "parameters",
        "trained",
        "rows/s",
    ]
    head += ["tokens/s", "peak MiB", "minutes"]
    for name in ("accuracy", "macro F1"):
        head += [name, "95 %", "spread"]
    table = []
    for line in lines:
        cells = [str(line["number"]), *([line["rows"]] if has_letters else []), *line["place"]]
        cells += [
            " ".join(map(str, line["seeds"])),
            millions(line["num_parameters"]),
            millions(line["num_trained"]),
        ]
        cells += [f"{line['rows_per_s']:,.0f}", f"{line['tokens_per_s']:,.0f}", f"{line['peak_mib']:,.0f}"]
        cells.append(f"{line['minutes']:.1f}")
        for name in SCORES:
            spread = f"{line[f'{name}_spread']:.4f}" if len(line["seeds"]) > 1 else "-"
            interval = f"{line[f'{name}_low']:.3f} to {line[f'{name}_high']:.3f}"
            cells += [f"**{line[name]:.4f}**", interval, spread]
        table.append(cells)
    return format_markdown(head, table, num_words=4 + has_letters)


def pairs_table(pairs: list[dict], lines: list[dict]) -> str:
    """One line a pair: the differences in points, their intervals and p, and McNemar's counts."""
    labels = {line["number"]: f"{line['number']} {line['label']}" for line in lines}
    head = ["", "against", "macro F1", "95 %", "p", "p (Holm)", "accuracy", "95 %", "p", "p (Holm)"]
    head += ["only the first right", "only the second", "McNemar p"]
    table = []
    for pair in pairs:
        cells = [labels[pair["a"]], labels[pair["b"]]]
        for name in reversed(SCORES):
            found = pair[name]
            cells += [
                f"{100 * found['difference']:+.1f}",
                f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}",
            ]
            cells += [format_p(found["p"]), format_p(found["p_holm"])]
        test = pair["mcnemar"]
        cells += [str(test["only_a"]), str(test["only_b"]), f"{format_p(test['p'])} ({test['method']})"]
        table.append(cells)
    return format_markdown(head, table, num_words=2)


def format_markdown(head: list[str], table: list[list[str]], num_words: int) -> str:
    """A table whose first num_words columns stand to the left, the others to the right."""
    marks = ["---" if k < num_words else "---:" for k in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in [head, marks, *table]
    )


def millions(count: float) -> str:
    """A number of parameters: 22.6 M, or 3,120 where that would be nothing."""
    return f"{count / 1e6:,.1f} M" if count >= 1e5 else f"{count:,.0f}"


def format_p(p: float) -> str:
    """A p-value with three decimals."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def sentences(result: dict) -> list[str]:
    """What the tests say, pair by pair: macro F1, then accuracy where its answer is another one."""
    told = []
    for pair in result["pairs"]:
        told.append(f"macro F1: {verdict(pair, result['lines'], 'macro_f1')}")
        told.append(f"accuracy: {verdict(pair, result['lines'], 'accuracy')}")
    return told


def notes(result: dict) -> list[str]:
    """What a reader has to know before the numbers are believed."""
    lines, rows, told = result["lines"], result["rows"], []
    if len(rows) > 1:
        told.append(
            "Rows of different letters are not comparable: they were scored on different rows. "
            "--test_data FILE scores every run on the same ones."
        )
    if any(about["split"] == "validation" for about in rows.values()):
        told.append(
            "Validation rows also chose each run's best step: these scores flatter. --test_data FILE does not."
        )
    if any(about["multi_label"] for about in rows.values()):
        told.append(
            "Several labels a row: accuracy is subset_accuracy_tuned, macro F1 is macro_f1_tuned (at tuned thresholds)."
        )
    if any(about["classes_differ"] for about in rows.values()):
        told.append(
            "The runs know different classes: macro F1 is over all classes that any run on the rows knows."
        )
    if any(len(line["seeds"]) == 1 for line in lines):
        told.append(
            "One seed a setting: how much another seed would change is not known. --seeds 0 1 2 shows it."
        )
    else:
        told.append("Scores are means over the seeds; spread is the largest less the smallest.")
    told.append("Intervals are over the scored rows, of the models as trained; other seeds are not in them.")
    machines = sorted({line["hardware"] for line in lines})
    if len(machines) > 1:
        told.append(f"Speed, memory and minutes were measured on different machines: {'; '.join(machines)}.")
    else:
        told.append(
            f"Speed, memory (peak, the most of the seeds) and minutes (of training alone): {machines[0]}."
        )
    return told


def how_tested(result: dict) -> str:
    """The tests, in words."""
    return (
        "Differences are in points, the first less the second. Intervals and p of macro F1: paired bootstrap, "
        f"{result['num_resamples']} resamples of the rows, mean over seeds. McNemar: the first seed that both have, "
        "over the rows that one of the two alone decides rightly. p of accuracy: the larger of McNemar's and the "
        f"bootstrap's. p (Holm): corrected over the {len(result['pairs'])} pair(s); a difference is shown where it is "
        "below 0.05. The intervals are not corrected."
    )


# -- picture ----------------------------------------------------------------------------------------------------


def comparison_figure(lines: list[dict], rows: dict[str, dict]) -> Figure:
    """Scores with their intervals, one row a line; beside it macro F1 over minutes and over trained parameters.

    A line has the same number everywhere, and the colour of its model.
    """
    height = 1.6 + 0.42 * max(len(lines), 6) + 0.3 * len(rows)
    figure = Figure(figsize=(15, height), layout="constrained")
    scores, *costs = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    costs[1].sharey(costs[0])
    models = list(dict.fromkeys(line["place"][0] for line in lines))
    colours = {line["number"]: COLOURS[models.index(line["place"][0]) % len(COLOURS)] for line in lines}
    if lines:
        draw_scores(scores, lines, colours, rows)
        draw_cost(costs[0], lines, colours, "minutes", "training minutes")
        draw_cost(costs[1], lines, colours, "num_trained", "trained parameters")
    return figure


def draw_scores(axes: Axes, lines: list[dict], colours: dict[int, str], rows: dict[str, dict]) -> None:
    """One row a line: macro F1 as a disc with its interval, accuracy as a small diamond below it."""
    places, place = {}, 0.0
    for k, line in enumerate(lines):
        if len(rows) > 1 and (k == 0 or line["rows"] != lines[k - 1]["rows"]):
            about = rows[line["rows"]]
            text = f"{line['rows']}: {about['n']} rows of {Path(about['file']).name}, {about['sha256'][:8]}"
            style = {"transform": axes.get_yaxis_transform(), "fontsize": 8, "color": "0.35", "va": "center"}
            axes.text(0.01, place + 0.1, text, **style)
            place += 0.7
        y, colour = place, colours[line["number"]]
        draw_point(axes, line["macro_f1"], y, line, colour, "x")
        axes.hlines(y + 0.3, line["accuracy_low"], line["accuracy_high"], color=colour, lw=1, alpha=0.5)
        axes.plot(line["accuracy"], y + 0.3, marker="D", ms=4, color=colour, alpha=0.7)
        places[f"{line['number']}  {shorten(line['label'])}"] = y
        place += 1
    axes.set_yticks([*places.values()], [*places], fontsize=9)
    axes.set(ylim=(place - 0.3, -0.6), xlabel="macro F1 and (paler, diamond) accuracy, 95 % intervals")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_cost(axes: Axes, lines: list[dict], colours: dict[int, str], key: str, title: str) -> None:
    """Macro F1 over a cost, from 0 on, or on a logarithmic axis where the costs differ tenfold."""
    costs = [line[key] for line in lines]
    is_log = min(costs) > 0 and max(costs) > 10 * min(costs)
    for line, x in zip(lines, side_by_side(costs, is_log)):
        colour = colours[line["number"]]
        draw_point(axes, x, line["macro_f1"], line, colour, "y")
        above_right = {"xytext": (4, 3), "textcoords": "offset points", "zorder": 5}
        above_right["path_effects"] = [withStroke(linewidth=2, foreground="white")]
        axes.annotate(str(line["number"]), (x, line["macro_f1"]), color=colour, fontsize=9, **above_right)
    if is_log:
        axes.set_xscale("log")
        axes.margins(x=0.12)
    else:
        axes.set_xlim(0, 1.12 * max(costs))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e5 else f"{value:g}")
    axes.set(xlabel=title, ylabel="macro F1, 95 % intervals")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_point(axes: Axes, x: float, y: float, line: dict, colour: str, along: str) -> None:
    """A line's macro F1 as a disc, with its interval along x or y."""
    score, low, high = (line[f"macro_f1{end}"] for end in ("", "_low", "_high"))
    error = [[max(0.0, score - low)], [max(0.0, high - score)]]
    axes.errorbar(
        x, y, **{f"{along}err": error}, color=colour, lw=1.4, capsize=3, marker=marker_of(line), ms=6
    )


def marker_of(line: dict) -> str:
    """A disc; for lines of other rows, another shape."""
    return MARKERS[(ord(line["rows"][-1]) - ord("A")) % len(MARKERS)]


def side_by_side(costs: list[float], is_log: bool) -> list[float]:
    """The costs, with equal ones (to a hundredth of the axis) moved apart, by an eighth of the axis at the most."""
    scale = [math.log(cost) for cost in costs] if is_log else list(costs)
    width = (max(scale) - min(scale)) or abs(scale[0]) or 1.0
    groups: list[list[int]] = []
    for k in sorted(range(len(scale)), key=lambda k: scale[k]):
        if groups and scale[k] - scale[groups[-1][0]] < 0.01 * width:
            groups[-1].append(k)
        else:
            groups.append([k])
    for group in groups:
        step = min(0.02, 0.12 / len(group)) * width
        for place, k in enumerate(sorted(group)):
            scale[k] += (place - (len(group) - 1) / 2) * step
    return [math.exp(value) for value in scale] if is_log else scale


def shorten(name: str, longest: int = 64) -> str:
    """A name that fits beside an axis."""
    return (name if len(name) <= longest else name[: longest - 3] + "...").replace("$", r"\$")
