"""A search as files: trials.md, search.json, pictures, TensorBoard's HParams, and the best arguments as a preset."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.trial import FrozenTrial, TrialState
from torch.utils.tensorboard import SummaryWriter

from core.files import write_json, write_text
from core.plots import save_png
from core.statistics import percentile_interval
from jobs.search_space import Space, as_text

FEWEST_FOR_IMPORTANCE = 10  # trials with a value: below, a forest of trees has nothing to split (assumption)
BLUE, ORANGE, GREY = "#2c7fb8", "#d95f0e", "0.6"


def trial_row(trial: FrozenTrial) -> dict:
    """A trial as one JSON-safe row; a pruned one's value is what it had when it was pruned."""
    about = trial.user_attrs
    state = trial.state.name.lower()
    return {
        "number": trial.number,
        "state": f"pruned at {trial.last_step} %" if state == "pruned" else state,
        "value": trial.value,
        "minutes": about.get("minutes", 0.0),
        "is_default": bool(about.get("default")),
        "changed": about.get("changed", {}),
        "params": trial.params,
        "reported": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "why": about.get("why", ""),
        "run": about.get("run", ""),
        "host": about.get("worker", {}).get("host", ""),
    }


def cost_of(trials: Sequence[FrozenTrial]) -> dict:
    """What the trials cost, against as many full trainings.

    Returns: n: complete and pruned trials; minutes: of all, failed ones too; minutes_pruned; full_minutes: the median
             of the complete ones; share: minutes / (n * full_minutes), None without a complete one.
    """
    minutes = {state: [] for state in TrialState}
    for trial in trials:
        minutes[trial.state].append(trial.user_attrs.get("minutes", 0.0))
    complete, pruned = minutes[TrialState.COMPLETE], minutes[TrialState.PRUNED]
    spent, num = sum(map(sum, minutes.values())), len(complete) + len(pruned)
    full = float(np.median(complete)) if complete else None
    found = {
        "n": num,
        "complete": len(complete),
        "pruned": len(pruned),
        "failed": len(minutes[TrialState.FAIL]),
    }
    found |= {"minutes": spent, "minutes_pruned": sum(pruned), "full_minutes": full}
    return found | {"share": spent / (num * full) if full else None}


def importance(
    trials: Sequence[FrozenTrial], space: Space, direction: str, seed: int
) -> dict[str, float] | None:
    """Each searched flag's share in how the values differ, by fANOVA; None with too few trials.

    Pruned trials count with the value that they had at the end, or a search that prunes well had next to none. Flags
    with a condition, and trials that leave out another, do not count.

    Source: Hutter et al. 2014 (fANOVA), optuna's own.
    """
    names = [name for name, spec in space.items() if "if" not in spec]
    study = optuna.create_study(direction=direction)
    for trial in trials:
        has_value = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
        if has_value and set(names) <= set(trial.params):
            kept = {"params": trial.params, "distributions": trial.distributions}
            study.add_trial(optuna.trial.create_trial(value=trial.value, **kept))
    values = {trial.value for trial in study.get_trials(deepcopy=False)}
    if len(study.get_trials(deepcopy=False)) < FEWEST_FOR_IMPORTANCE or len(values) < 2:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)


# -- text -------------------------------------------------------------------------------------------------------


def differences(row: dict) -> str:
    """What a trial had other than the default, in words."""
    if row["is_default"]:
        return "the default"
    return ", ".join(f"{name} {as_text(value)}" for name, value in row["changed"].items()) or "as the default"


def table_lines(rows: list[dict], lower_is_better: bool) -> list[list[str]]:
    """Number, value, state, minutes, differences; complete trials first, the best of each state first."""

    def rank(row: dict) -> tuple:
        value = math.inf if row["value"] is None else row["value"] * (1 if lower_is_better else -1)
        return row["state"] != "complete", not row["state"].startswith("pruned"), value

    lines = []
    for row in sorted(rows, key=rank):
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        state = f"{row['state']}: {row['why']}" if row["why"] else row["state"]
        lines.append([str(row["number"]), value, state, f"{row['minutes']:.1f}", differences(row)])
    return lines


def table_text(lines: list[list[str]], most: int) -> str:
    """The first lines of the table for the terminal; the last column is as long as it is."""
    shown = [["trial", "value", "state", "min", "other than the default"], *lines[:most]]
    shown = [[cell[:40] if k == 2 else cell for k, cell in enumerate(line)] for line in shown]
    widths = [max(len(line[k]) for line in shown) for k in range(4)]
    text = "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths)) + "  " + line[4] for line in shown
    )
    more = len(lines) - most
    return text + (f"\n... and {more} more in trials.md" if more > 0 else "")


def cost_text(cost: dict) -> str:
    """One sentence."""
    states = ", ".join(f"{cost[name]} {name}" for name in ("complete", "pruned", "failed"))
    text = f"cost: {cost['minutes']:.1f} minutes of trials ({states}; {cost['minutes_pruned']:.1f} in pruned ones)"
    if cost["share"] is None:
        return text
    full = f"{cost['n']} full trainings of {cost['full_minutes']:.1f} minutes (median)"
    return f"{text}, {cost['share']:.2f} of {full}"


def markdown(result: dict) -> str:
    """The whole search as text."""
    name = "lower" if result["lower_is_better"] else "higher"
    files = ", ".join(
        f"{use} `{about['path']}` ({about['sha256'][:12]})" for use, about in result["data"].items()
    )
    head = ["| trial | value | state | minutes | other than the default |", "|---:|---:|---|---:|---|"]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in result["table"]]
    parts = [
        f"# Search: {result['name']}",
        f"{result['metric']} on the validation rows ({name} is better); rows: {files}.",
        "\n".join(f"- {sentence}" for sentence in result["told"]),
        "![values by trial, importance](search.png)\n\n![values by flag](flags.png)",
        "## Trials\n\n" + "\n".join([*head, *lines]),
        f"Made by `{result['command']}` at commit {result['commit']}; study `{result['study']}`.",
    ]
    return "\n\n".join(parts) + "\n"


# -- pictures ---------------------------------------------------------------------------------------------------


def valued(rows: list[dict]) -> list[dict]:
    """The rows with a value."""
    return [row for row in rows if row["value"] is not None]


def search_figure(result: dict) -> Figure:
    """Values in the order of the trials, and what they hang on."""
    shares = result["importance"]
    figure = Figure(figsize=(12 if shares else 7, 4.6), layout="constrained")
    if shares is None:
        history = figure.subplots()
        history.set_title(f"importance needs {FEWEST_FOR_IMPORTANCE} trials with a value", fontsize=9)
        draw_history(history, result)
        return figure
    history, bars = figure.subplots(1, 2, width_ratios=(1.3, 1))
    draw_history(history, result)
    names = sorted(shares, key=shares.get)
    bars.barh(range(len(names)), [shares[name] for name in names], color=BLUE)
    bars.set_yticks(range(len(names)), names)
    bars.set(xlabel="importance (fANOVA; pruned trials with their last value)", xlim=(0, None))
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def draw_history(axes: Axes, result: dict) -> None:
    """Complete and pruned trials, the best so far, the default."""
    rows = valued(result["trials"])
    pick = min if result["lower_is_better"] else max
    complete = [row for row in rows if row["state"] == "complete"]
    pruned = [row for row in rows if row["state"] != "complete"]
    style = {"marker": "o", "facecolors": "none", "edgecolors": GREY, "s": 26}
    axes.scatter(
        [r["number"] for r in pruned], [r["value"] for r in pruned], label="pruned, last value", **style
    )
    axes.scatter(
        [r["number"] for r in complete], [r["value"] for r in complete], color=BLUE, s=30, label="complete"
    )
    best = [pick(r["value"] for r in complete[: k + 1]) for k in range(len(complete))]
    numbers = [*(r["number"] for r in complete), rows[-1]["number"]]
    axes.step(numbers, [*best, best[-1]], where="post", color=BLUE, lw=1, alpha=0.6, label="best so far")
    if result["default"] is not None:
        axes.axhline(result["default"]["value"], color=ORANGE, lw=1, ls="--", label="default")
    limit_values(axes, [row["value"] for row in rows])
    axes.set(xlabel="trial", ylabel=result["metric"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def limit_values(axes: Axes, values: list[float]) -> None:
    """An axis for the values that matter: trials that learnt nothing do not squeeze the others."""
    if len(values) < 4:
        return
    low, high = percentile_interval(np.asarray(values), 0.8)
    room = 0.6 * (high - low) or 0.01
    axes.set_ylim(max(min(values) - 0.1 * room, low - room), min(max(values) + 0.1 * room, high + room))


def flags_figure(result: dict, space: Space) -> Figure:
    """A small picture a flag: the value over what was chosen."""
    rows, names = valued(result["trials"]), list(space)
    num_columns = min(4, len(names))
    num_rows = math.ceil(len(names) / num_columns)
    figure = Figure(figsize=(3.1 * num_columns, 2.4 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).ravel()
    for axes, name in zip(grid, names):
        draw_flag(axes, name, space[name], [row for row in rows if name in row["params"]])
        limit_values(axes, [row["value"] for row in rows])
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes in grid[::num_columns]:
        axes.set_ylabel(result["metric"])
    figure.suptitle("discs: complete; rings: pruned, at their last value; orange: the default", fontsize=9)
    return figure


def draw_flag(axes: Axes, name: str, spec: dict, rows: list[dict]) -> None:
    """Discs are complete trials, rings pruned ones, the orange disc is the default."""
    choices = [as_text(value) for value in spec.get("choices", [])]
    for row in rows:
        chosen = row["params"][name]
        x = choices.index(as_text(chosen)) if choices else chosen
        colour = ORANGE if row["is_default"] else BLUE if row["state"] == "complete" else GREY
        fill = colour if row["state"] == "complete" else "none"
        axes.scatter(x, row["value"], s=22, edgecolors=colour, facecolors=fill, alpha=0.8)
    if choices:
        axes.set_xticks(range(len(choices)), choices, fontsize=8)
        axes.set_xlim(-0.5, len(choices) - 0.5)
    else:
        room = 0.04 * (spec["high"] - spec["low"])
        axes.set_xlim(spec["low"] - room, spec["high"] + room)
    if spec.get("log"):
        axes.set_xscale("log")
        axes.set_xlim(spec["low"] / 1.1, spec["high"] * 1.1)
        ticks = [float(tick) for tick in np.geomspace(spec["low"], spec["high"], 3)]
        axes.set_xticks(ticks, [as_text(tick) for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(name, fontsize=9)
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# -- files ------------------------------------------------------------------------------------------------------


def write_board(folder: Path, rows: list[dict]) -> None:
    """The trials for TensorBoard's HParams tab."""
    shutil.rmtree(folder, ignore_errors=True)
    for row in valued(rows):
        board = SummaryWriter(str(folder / f"{row['number']:03}"))
        given = row["params"] | {"state": row["state"].split()[0]}
        reached = {"search/value": row["value"], "search/minutes": row["minutes"]}
        board.add_hparams(given, reached, run_name=".")
        board.close()


def write_search(folder: Path, result: dict, space: Space, preset: str) -> None:
    """Write everything into the folder; what an earlier report left there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "search.json", result)
    write_text(folder / "trials.md", markdown(result))
    write_text(folder / "preset", preset)
    save_png(search_figure(result), folder / "search.png")
    save_png(flags_figure(result, space), folder / "flags.png")
    write_board(folder / "tensorboard", result["trials"])
