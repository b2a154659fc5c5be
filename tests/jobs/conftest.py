"""Fixtures of the tests of jobs.pipeline."""

import pytest

from jobs.pipeline import parse_args
from jobs.pipeline_state import Pipeline
from tests.conftest import toy_rows, write_jsonl


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    sizes = {"train_data": 90, "val_data": 40, "test_data": 50}
    return {
        name: write_jsonl(tmp_path / f"{name}.jsonl", toy_rows(n, k))
        for k, (name, n) in enumerate(sizes.items())
    }


@pytest.fixture
def flags(files, tmp_path) -> list[str]:
    given = [word for name, path in files.items() for word in (f"--{name}", path)]
    return [*given, "--output_dir", str(tmp_path / "out")]


@pytest.fixture
def pipe(flags) -> Pipeline:
    return Pipeline(parse_args(flags), ["python"])
