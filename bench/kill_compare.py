"""What two runs of the same command must have in common, bit for bit, when one of them was killed on its way."""

import json
from collections import Counter
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from core.checkpoint import last_checkpoint

VOLATILE = ("perf/", "mem/")  # fields of a record
TIMES = ("train_s", "rollout_s")  # of a checkpoint's state.json
RECORD = (
    "status",
    "best",
    "metrics",
    "baselines",
    "num_steps",
    "change",
    "rewards_told",
    "budget_changes",
    "data",
)
MANIFEST = ("best", "metrics", "data", "num_steps")


def records(run: Path) -> list[dict]:
    """Of training_logs.jsonl, whole."""
    return [json.loads(line) for line in (run / "training_logs.jsonl").read_text().splitlines()]


def steady(found: list[dict]) -> list[dict]:
    """Records without times and memory."""
    return [{k: v for k, v in record.items() if not k.startswith(VOLATILE)} for record in found]


def events(run: Path) -> list[tuple[int, str, bytes]]:
    """(step, tag, value) of everything in a run's event files as it stands there: no reader's purging; of a picture
    without its value."""
    found = []
    for path in sorted((run / "tensorboard").glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                is_picture = value.metadata.plugin_data.plugin_name == "images"
                found.append((event.step, value.tag, b"" if is_picture else value.tensor.SerializeToString()))
    return found


def file_bytes(run: Path) -> dict[str, bytes]:
    """Files that must be the same to the last bit: models, scores, predictions, metrics, the checkpoint's tensors."""
    paths = [
        path
        for part in ("best_model", "final_model", "validation", "test")
        for path in (run / part).rglob("*")
    ]
    paths += [*run.glob("start_*.npy"), *run.glob("reference.npy")]
    checkpoint = last_checkpoint(run / "checkpoint")
    paths += [*checkpoint.glob("*.safetensors")] if checkpoint else []
    return {str(p.relative_to(run)): p.read_bytes() for p in paths if p.is_file() and p.suffix != ".png"}


def facts(run: Path) -> dict:
    """Of run.json, the manifest and the last checkpoint, what is no time and no place."""
    record = json.loads((run / "run.json").read_text())
    found = {f"run.json {name}": record.get(name) for name in RECORD}
    if (run / "training_manifest.json").exists():
        manifest = json.loads((run / "training_manifest.json").read_text())
        found |= {f"manifest {name}": manifest.get(name) for name in MANIFEST}
        found["manifest files"] = {name: about["sha256"] for name, about in manifest["files"].items()}
    checkpoint = last_checkpoint(run / "checkpoint")
    state = json.loads((checkpoint / "state.json").read_text()) if checkpoint else {}
    return found | {f"checkpoint {name}": value for name, value in state.items() if name not in TIMES}


def differences(straight: Path, run: Path) -> list[str]:
    """What differs, a line each; [] for runs that are the same but for time and memory."""
    found = []
    for what, ours, theirs in (
        ("file", file_bytes(straight), file_bytes(run)),
        ("", facts(straight), facts(run)),
    ):
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs or name not in ours:
                found.append(f"{what} {name}: {'missing' if name in ours else 'is there'}")
            elif ours[name] != theirs[name]:
                found.append(f"{what} {name}: differs")
    if steady(records(straight)) != steady(records(run)):
        found.append("training_logs.jsonl: differs")
    boards = [Counter(e for e in events(path) if not e[1].startswith(VOLATILE)) for path in (straight, run)]
    for missing, sign in ((boards[0] - boards[1], "misses"), (boards[1] - boards[0], "has too much")):
        found += [f"TensorBoard {sign} {tag} of step {step}" for step, tag, _ in list(missing)[:3]]
    in_file = Counter(
        (record["step"], name)
        for record in records(run)
        for name, value in record.items()
        if "/" in name and isinstance(value, int | float) and name != "perf/time_s"
    )
    on_board = Counter((step, tag) for step, tag, _ in events(run) if (step, tag) in in_file)
    if in_file != on_board:
        found.append("TensorBoard: not the steps of training_logs.jsonl")
    return found
