"""What the tests of data.split share: rows with near-duplicates and authors, a split read back, what is divided."""

import itertools
import json
import random
from pathlib import Path

from core.spent import USES
from data import split
from tests.conftest import write_jsonl


def made_rows(num_rows: int, seed: int = 0, kind: str = "one") -> list[dict]:
    """Rows of 5 to 12 words out of 60, a fifth of them another's with one word more; an id, at times an author."""
    rng, rows = random.Random(seed), []
    for k in range(num_rows):
        words = [f"w{rng.randrange(60)}" for _ in range(rng.randint(5, 12))]
        if rows and rng.random() < 0.2:
            words = [*rng.choice(rows)["text"].split(), "more"]
        labels = [name for name, share in (("a", 0.5), ("b", 0.2), ("c", 0.1)) if rng.random() < share]
        own = {"label": "abcd"[len(labels)]} if kind == "one" else {"labels": labels}
        if kind == "dict":
            own = {"labels": {name: int(name in labels) for name in ("a", "b", "c")}}
        author = None if rng.random() < 0.5 else rng.randrange(25)
        rows.append({"id": k, "text": " ".join(words), "author": author, "\u00e9": {"x": [k]}} | own)
    return rows


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(folder: Path, rows: list[dict] | str, *flags: str) -> tuple[dict[str, list[dict]], dict]:
    """Split rows to folder / "out": the rows by part, and split.json."""
    path = rows if isinstance(rows, str) else write_jsonl(folder / "rows.jsonl", rows)
    split.main(["--input", path, "--output_dir", str(folder / "out"), *flags])
    return read_parts(folder / "out")


def read_parts(out: Path) -> tuple[dict[str, list[dict]], dict]:
    parts = {part: out / f"{part}.jsonl" for part in USES}
    found = {part: read_jsonl(path) for part, path in parts.items() if path.exists()}
    return found, json.loads((out / "split.json").read_text(encoding="utf-8"))


def divided(parts: dict[str, list[dict]], belong) -> int:
    """How many pairs of rows in different parts belong together."""
    pairs = itertools.combinations(parts, 2)
    return sum(belong(a, b) for one, other in pairs for a in parts[one] for b in parts[other])


def near(a: dict, b: dict) -> bool:
    a, b = set(a["text"].split()), set(b["text"].split())
    return len(a & b) >= 0.7 * len(a | b) - 1e-12


def same_author(a: dict, b: dict) -> bool:
    return a["author"] is not None and a["author"] == b["author"]
