"""What a trained run makes of new rows: predict.py as a command, for --check_run."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from core.errors import UserError
from data.generate_secrets import KEY
from data.split import as_line

PREDICT = Path(__file__).resolve().parent.parent / "predict.py"


def predict(
    run: str, rows: list[dict], text_field: str, pair_field: str = "", device: str | None = None
) -> list[dict]:
    """The prediction rows of a trained run, with its calibration and thresholds; of no rows none.

    Args:   device: None for what there is.
    Raises: UserError with predict.py's last line when it fails.
    """
    if not rows:
        return []
    with tempfile.TemporaryDirectory(prefix="check_run-") as folder:
        source, target = Path(folder, "rows.jsonl"), Path(folder, "predictions.jsonl")
        source.write_bytes(b"".join(map(as_line, rows)))
        command = [sys.executable, str(PREDICT), run, "--data", str(source), "--output", str(target)]
        command += [f"--text_field={text_field}", f"--pair_field={pair_field}"]
        command += ["--device", device] if device else []
        env = {name: value for name, value in os.environ.items() if name != KEY}  # it needs none
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it printed nothing"]
            raise UserError(f"--check_run {run}: predict.py: {lines[-1].removeprefix('error: ')}")
        return [json.loads(line) for line in target.read_bytes().splitlines()]


def refuse_other_labels(run: str, prediction: dict, names: Iterable[str], kind: str) -> None:
    """Raise UserError when a run cannot say how probable the rows' labels are.

    Args: prediction: any row of predict | names: the rows' labels | kind: one, list or dict, core/cache.py.
    """
    flag = f"--check_run {run}"
    if "probabilities" not in prediction:
        raise UserError(f"{flag}: is no classifier's run; expected one of train.py")
    known = prediction["probabilities"]
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise UserError(
            f"{flag}: does not know the label {unknown[0]!r}; it knows {', '.join(list(known)[:30])}"
        )
    if ("labels" in prediction) != (kind != "one"):
        one, several = "one label a row", "several labels a row"
        was, own = (several, one) if kind == "one" else (one, several)
        raise UserError(f"{flag}: gives {was}, the rows have {own}; give a run that was trained on such rows")


def predicted_labels(prediction: dict) -> set[str]:
    """The labels that a prediction row says hold."""
    return set(prediction["labels"]) if "labels" in prediction else {prediction["label"]}
