"""Active learning simulated: labels that are there are hidden and bought step by step, by each acquisition and seed.

    DIR/simulation.json                      what was asked for: the same folder is never another simulation
    DIR/seed<k>/start/                       the first rows, the same for every acquisition
    DIR/seed<k>/<acquisition>/round<r>/      rows.json (places in --train_data, as bought), train.jsonl, run/
    DIR/seed<k>/full/                        all rows
    DIR/curve.json, curve.md, curve.png      written anew after each round

A round is files in (train.jsonl), train.py as a process (run/), files out (scores/, until the next round's rows.json is
there). Whatever is there is not done again, so a command that was killed goes on where it was. The weights of a run
are removed as soon as nothing will be chosen by them.

N rows, C classes.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from core.errors import UserError, disk_errors
from core.files import save_array, write_folder, write_json, write_text
from core.memory import release_cached
from core.runs import RunRecord
from jobs.active_curve import summarise, told_of, write_curve
from jobs.active_scores import choose, score_texts
from jobs.active_setup import Simulation, prepare
from jobs.cells import Cell, check_cell, train_all
from predict import load

HEAVY = ("best_model", "final_model", "checkpoint")  # of a run's folder


# -- a round ----------------------------------------------------------------------------------------------------


def first_rows(truth: np.ndarray, num_rows: int, order: np.ndarray) -> np.ndarray:
    """The rows that are labelled at first: random ones, with each class among them, as train.py needs it.

    Args:    truth: (N, C) bool | order: (N,) the rows in random order.
    Returns: (num_rows,) in that order: the first of each class, and those that come first of the rest.
    Raises:  UserError when there are more classes than rows.
    """
    needed = {int(order[is_class[order].argmax()]) for is_class in truth.T if is_class.any()}
    if len(needed) > num_rows:
        raise UserError(f"--start {num_rows}: {len(needed)} rows are needed for each class to have one")
    others = [k for k in order.tolist() if k not in needed][: num_rows - len(needed)]
    wanted = needed.union(others)
    return np.array([k for k in order.tolist() if k in wanted])


def buy(sim: Simulation, seed: int, acquisition: str, r: int) -> None:
    """Write a round's rows.json and train.jsonl, where they are not there yet."""
    folder, order = sim.place(seed, acquisition, r), np.random.default_rng(seed).permutation(len(sim.rows))
    path, before = folder / "rows.json", sim.place(seed, acquisition, r - 1)
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        if r == 0:
            found = first_rows(sim.truth, sim.args.start, order)
        else:
            found = np.array(json.loads((before / "rows.json").read_text()))
            found = np.concatenate([found, next_rows(sim, before, found, seed, acquisition, r, order)])
        write_json(path, found.tolist())
    if r > 1:
        shutil.rmtree(before / "scores", ignore_errors=True)  # the start's serve every acquisition
    write_train(sim, folder, json.loads(path.read_text()))


def write_train(sim: Simulation, folder: Path, index: Iterable[int]) -> None:
    """Write the train.jsonl of some rows, where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.jsonl").is_file():
        lines = [json.dumps(sim.rows.rows[k], ensure_ascii=False) + "\n" for k in index]
        write_text(folder / "train.jsonl", "".join(lines))


def next_rows(
    sim: Simulation,
    before: Path,
    labelled: np.ndarray,
    seed: int,
    acquisition: str,
    r: int,
    order: np.ndarray,
) -> np.ndarray:
    """The (step,) rows that a round buys, by the scores of the round before; the same each time."""
    if acquisition == "random":
        return order[~np.isin(order, labelled)][: sim.args.step]
    pool = np.setdiff1d(np.arange(len(sim.rows)), labelled)
    logits, states = (np.load(before / "scores" / f"{name}.npy") for name in ("logits", "states"))
    multi_label = RunRecord.read(before / "run").record["model"]["multi_label"]
    rng = np.random.default_rng([seed, r])
    chosen = choose(
        acquisition, sim.args.step, logits[pool], states[pool], states[labelled], multi_label, rng
    )
    return pool[chosen]


def score(sim: Simulation, folder: Path) -> None:
    """Write a round's scores/: logits.npy (N, C) and states.npy (N, D) float32 of all rows by its run."""
    predictor = load(folder / "run", sim.args.device, amp="run")
    rows = sim.rows
    logits, states = score_texts(predictor, rows.texts, rows.pairs, rows.lines, rows.path, with_states=True)

    def fill(part: Path) -> None:
        save_array(part / "logits.npy", logits)
        save_array(part / "states.npy", states)

    write_folder(folder / "scores", fill)
    device = predictor.device
    del predictor  # the next training needs the room
    release_cached(device)


def train_rounds(
    sim: Simulation, folders: dict[Path, int], what: str, finish: Callable[[Path], None]
) -> None:
    """Train what is not trained yet, as many at once as there are GPUs, so that few weights lie about.

    Args:   folders: of rounds, with their seeds | finish: called with each folder when its run is finished.
    Raises: UserError when a run fails; those beside it are finished first.
    """
    cells, num_new = {}, 0
    for folder, seed in folders.items():
        own = ["--train_data", str(folder / "train.jsonl"), "--output_dir", str(folder / "run")]
        cell = Cell(folder / "run", (*sim.flags, *own, "--seed", str(seed)))
        is_new = check_cell(cell) != "finished"
        cells[folder], num_new = (cell, is_new), num_new + is_new
    print(f"{what}: {len(cells)} runs, {num_new} of them to be trained")
    waiting, at_once = iter(cells), max(1, len(sim.args.gpus))
    while some := list(islice(waiting, at_once)):
        todo = [cells[folder][0] for folder in some if cells[folder][1]]
        failed = train_all(todo, sim.args.gpus) if todo else {}
        for folder in some:
            if folder / "run" not in failed:
                finish(folder)
        if failed:
            told = "; ".join(f"{run}: {why}" for run, why in failed.items())
            raise UserError(f"{len(failed)} runs failed: {told}. The same command goes on from here")


def drop_weights(folder: Path) -> None:
    """Remove a finished run's weights."""
    for name in HEAVY:
        shutil.rmtree(folder / "run" / name, ignore_errors=True)


def run_round(sim: Simulation, r: int) -> None:
    """Buy, train and score one round of all lines; what is there of it is left as it is."""
    lines = {sim.place(seed, name, r): (seed, name) for seed, name in sim.lines(r)}
    for seed, name in lines.values():
        buy(sim, seed, name, r)

    def finish(folder: Path) -> None:
        seed, name = lines[folder]
        asking = [a for a in sim.args.acquisition if a != "random" and (r == 0 or a == name)]
        asking = asking if r < sim.args.rounds else []
        is_chosen = all((sim.place(seed, a, r + 1) / "rows.json").is_file() for a in asking)
        if not is_chosen and not (folder / "scores").is_dir():
            score(sim, folder)
        if asking or r:  # a start that nobody asks may be asked by an acquisition that is added
            drop_weights(folder)

    seeds = {folder: seed for folder, (seed, _) in lines.items()}
    train_rounds(sim, seeds, f"round {r} of {sim.args.rounds}, {sim.labels[r]} labels", finish)


# -- all of it --------------------------------------------------------------------------------------------------


def read_curves(sim: Simulation, num_done: int) -> dict:
    """The scores of the rounds up to num_done, and of all rows where they are trained: what summarise takes."""

    def value(folder: Path) -> float:
        metrics = RunRecord.read(folder / "run").record["metrics"][split]
        if metrics.get(metric) is None:
            raise UserError(f"{folder / 'run'}: has no {metric}; give another --metric")
        return metrics[metric]

    seeds, first = sim.args.seeds, sim.place(sim.args.seeds[0], "start", 0)
    split = "test" if sim.args.test_data else "validation"
    metric = RunRecord.read(first / "run").record["metric"]
    curves = {
        name: [[value(sim.place(seed, name, r)) for r in range(num_done + 1)] for seed in seeds]
        for name in sim.args.acquisition
    }
    full = [sim.home / f"seed{seed}" / "full" for seed in seeds]
    is_full = [check_done(folder) for folder in full]
    return {
        "metric": metric,
        "scored_on": sim.args.test_data or sim.args.val_data,
        "is_test": bool(sim.args.test_data),
        "train_data": sim.args.train_data,
        "num_rows": len(sim.rows),
        "seeds": seeds,
        "labels": sim.labels[: num_done + 1],
        "curves": curves,
        "full": [value(folder) for folder in full] if all(is_full) else None,
    }


def check_done(folder: Path) -> bool:
    """Whether a round's run is there and finished."""
    path = folder / "run"
    return (path / "run.json").is_file() and RunRecord.read(path).record["status"] == "finished"


def train_full(sim: Simulation) -> None:
    """One run a seed on all rows."""
    folders = {sim.home / f"seed{seed}" / "full": seed for seed in sim.args.seeds}
    for folder in folders:
        write_train(sim, folder, range(len(sim.rows)))
    train_rounds(sim, folders, f"all {len(sim.rows)} labels", drop_weights)


def simulate(args: argparse.Namespace) -> dict:
    """All rounds, then all rows; returns what the last line says."""
    sim = prepare(args)
    with disk_errors(args.output_dir, "--output_dir"):
        for r in range(args.rounds + 1):
            run_round(sim, r)
            if r:
                write_curve(sim.home, summarise(read_curves(sim, r)))
        train_full(sim)
        result = summarise(read_curves(sim, args.rounds))
        write_curve(sim.home, result)
    print("\n" + "\n".join(told_of(result)))
    print(f"\ncurve, table: {sim.home}/curve.png, curve.md")
    reached = {name: line["to_random"]["frac"] for name, line in result["lines"].items()}
    return {
        "output_dir": str(sim.home),
        "metric": result["metric"],
        **result["targets"],
        "frac_to_random": reached,
    }
