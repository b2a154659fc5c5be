"""The first stages of jobs.pipeline: rows divided or checked, and what simple models make of them."""

from types import SimpleNamespace

import numpy as np

from core.errors import UserError
from core.evaluate import headline, measure
from core.rows import BadRows, RowError, RowFormat, read_rows
from core.spent import count_common, refuse_test_rows, row_hash, write_uses
from data import split as data_split
from jobs.final_scores import LabelRows, baseline_scores, read_truth
from jobs.pipeline_state import PARTS, Pipeline, label_names


def split_rows(pipe: Pipeline) -> dict:
    """Divide --data, or check the parts as they are given."""
    args, folder = pipe.args, pipe.folder / "split"
    if not args.data:
        pipe.labels()
        check_parts(pipe)
        return {"what": "the parts as given", "details": {"parts": pipe.parts}}
    names = ("shares", "group_field", "text_field", "pair_field", "label_field")
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    given |= {"input": args.data, "output_dir": folder, "seed": args.seed}
    if not (folder / "split.json").is_file():
        data_split.main([f"--{name}={value}" for name, value in given.items()])
    missing = [part for part in ("validation", "test") if part not in pipe.parts]
    if missing:
        raise UserError(f"--shares {args.shares}: leaves no {missing[0]} rows; only calibration can be 0")
    pipe.labels()
    return {"what": "rows divided once, near-duplicates kept on one side", "details": {"parts": pipe.parts}}


def check_parts(pipe: Pipeline) -> None:
    """Of parts as given: labels are those of train, no row that chooses is a test row; their hashes are kept."""
    names, _, row_format = pipe.labels()
    hashes = {}
    for part, path in pipe.parts.items():
        found, _ = label_names(path, row_format, f"--{PARTS[part]}")
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise UserError(
                f"--{PARTS[part]} {path}: labels without a training row: {', '.join(unknown[:20])}"
            )
        hashes[part] = SimpleNamespace(hashes=read_hashes(path, row_format))
    write_uses(pipe.folder / "split", hashes)
    for part in ("validation", "calibration"):
        if part in hashes:
            refuse_test_rows(
                hashes[part].hashes, f"--{PARTS[part]}", pipe.parts[part], [pipe.folder / "split"]
            )
    num_common = count_common(hashes["test"].hashes, hashes["train"].hashes)
    if num_common:
        print(f"note: {num_common} test rows are training rows too, by their text: their scores flatter; "
              "python -m data.split --input TRAIN --test_data TEST leaves such rows out")  # fmt: skip


def read_hashes(path: str, row_format: RowFormat) -> np.ndarray:
    """(n,) uint64, a row_hash for each row of a file."""
    bad, hashes = BadRows(path), []
    for line, row in read_rows(path, bad, path):
        try:
            hashes.append(row_hash(*row_format.text(row)))
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    return np.array(hashes, np.uint64)


def baselines(pipe: Pipeline) -> dict:
    """The majority class and TF-IDF with logistic regression, on validation rows."""
    names, several, row_format = pipe.labels()
    path = pipe.parts["validation"]
    truth = read_truth(path, names, row_format)
    rows = LabelRows(names, several, truth, None, {"path": path})
    found = baseline_scores(pipe.parts["train"], path, names, several, row_format)
    numbers = {name: headline(measure(logits, rows)) for name, logits in found.items()}
    pipe.state["baselines"] = {name: {"validation": values} for name, values in numbers.items()}
    return {"what": "majority class; TF-IDF with logistic regression", "details": {}}
