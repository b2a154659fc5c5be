"""What the tests of data.augment share: rows of which no two are near, and its files."""

import json
from pathlib import Path

from data.augment import main
from tests.conftest import write_jsonl


def long_rows(num_rows: int = 12, first: int = 0) -> list[dict]:
    """Rows of ten words, no two rows near each other."""
    return [
        {"id": i, "text": " ".join(f"w{i}x{k}" for k in range(10)), "label": "ab"[i % 2]}
        for i in range(first, first + num_rows)
    ]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def made_of(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "augmented" in row]


def augmented(folder: Path, rows: list[dict] | str, *flags: str) -> tuple[dict, list[dict]]:
    """Of rows or a file what data.augment returns, and the rows that it writes to out/aug.jsonl."""
    source = rows if isinstance(rows, str) else write_jsonl(folder / "train.jsonl", rows)
    out = folder / "out" / "aug.jsonl"
    return main(["--input", source, "--output", str(out), *flags]), read(out)
