"""A model soup: the mean of the weights of runs that began from one pretrained model, as a model of its own.

Source: Wortsman et al. 2022, "Model soups", ICML, arXiv:2203.05482 (their uniform soup). It costs no more than one
model. Whether it is better than its best member has to be measured: runs whose new heads began from other seeds often
do not lie in one basin, and the mean between them is then worse than any.
"""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from archs.saving import load_model, read_about, save_model
from core.errors import UserError
from core.files import found_folder
from core.rows import BadRows, read_rows
from jobs.members import Team
from predict import WINDOW, load

# of bareloop.json: what must be the same, or the mean of the weights is of no model
ALIKE = (
    "architecture", "head", "pooling", "model_name", "label_names", "multi_label", "prompt", "label_words",
    "max_length", "truncate",
)  # fmt: skip


def model_folder(run: Path) -> Path:
    """Where a run's plain weights are: best_model/, or with an adapter merged_model/. Raises UserError."""
    folder = found_folder(run / "best_model")
    if not (folder / "adapter_config.json").is_file():
        return folder
    if not (run / "merged_model" / "bareloop.json").is_file():
        raise UserError(
            f"{run}: holds an adapter, B A: a mean of the A and a mean of the B do not give the mean of the products; "
            f"merge it first, `python -m jobs.merge {run}`, and the same command takes its merged_model/"
        )
    return run / "merged_model"


def average_models(runs: list[Path], output: Path) -> None:
    """Write the mean of the runs' weights as a model folder: of floating-point tensors, in float32.

    Raises: UserError when the runs are not of one architecture, one base model and equal shapes.
    Cost:   two models in memory.
    """
    folders = [model_folder(run) for run in runs]
    abouts = [read_about(folder) for folder in folders]
    for run, about in zip(runs, abouts, strict=True):
        for name in ALIKE:
            if about.get(name) != abouts[0].get(name):
                raise UserError(
                    f"{run}: its {name} is {about.get(name)!r}, that of {runs[0]} {abouts[0].get(name)!r}; weights "
                    "can only be averaged of runs of one model; --method mean takes any"
                )
    model, tokenizer, about = load_model(folders[0])
    total = {name: value.clone() for name, value in model.state_dict().items()}
    for run, folder in zip(runs[1:], folders[1:], strict=True):
        state = load_model(folder)[0].state_dict()
        shapes = [{name: tuple(value.shape) for name, value in part.items()} for part in (total, state)]
        odd = sorted(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name))
        if odd:
            there = [shape.get(odd[0], "absent") for shape in shapes]
            raise UserError(f"{run}: {odd[0]} is {there[1]}, in {runs[0]} {there[0]}; expected equal shapes")
        for name, value in state.items():
            if value.is_floating_point():
                total[name] += value
            elif not torch.equal(value, total[name]):
                raise UserError(
                    f"{run}: {name} differs from that of {runs[0]}, and whole numbers have no mean"
                )
    mean = {name: value / len(runs) if value.is_floating_point() else value for name, value in total.items()}
    model.load_state_dict(mean)
    save_model(output, model, tokenizer, about)


def score_splits(model: Path, team: Team, device: str | None) -> dict[str, np.ndarray]:
    """(n, C) float32 logits of each of the team's splits, by a model folder; in the number format of the runs."""
    predictor, found = load(model, device, "run"), {}
    order = [predictor.label_names.index(name) for name in team.label_names]
    for name, split in team.splits.items():
        rows = (row for _, row in read_rows(split.path, BadRows(split.path), "scored on"))
        parts, bar = [], tqdm(total=len(split), desc=f"score {name}", unit=" rows", disable=None)
        while window := list(islice(rows, WINDOW)):
            texts, pairs = zip(*(predictor.row_format.text(row) for row in window), strict=True)
            parts.append(predictor.scores(list(texts), list(pairs) if team.row_format.pair_field else None))
            bar.update(len(window))
        bar.close()
        found[name] = np.concatenate(parts)[:, order]
    return found
