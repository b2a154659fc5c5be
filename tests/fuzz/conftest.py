"""Finished tiny runs, made once for all fuzz tests."""

import contextlib
import io
from pathlib import Path

import pytest
import torch

import rank_train
import train
from tests.conftest import rank_rows, save_tiny, toy_rows, write_jsonl

TINY = [
    "--batch_size",
    "16",
    "--max_steps",
    "2",
    "--amp",
    "off",
    "--max_length",
    "32",
    "--learning_rate",
    "1e-2",
]


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> dict[str, Path]:
    """The folder of everything, a tiny BERT, files of good rows, and runs: one, list (several labels), lora, rank."""
    root = tmp_path_factory.mktemp("fuzz")
    found = {"root": root, "model": Path(save_tiny(root / "tiny-bert"))}
    for seed, (name, size) in enumerate({"train": 60, "val": 40, "test": 30, "pool": 20}.items()):
        found[name] = Path(write_jsonl(root / f"{name}.jsonl", toy_rows(size, seed)))
        found[f"list_{name}"] = Path(write_jsonl(root / f"list_{name}.jsonl", toy_rows(size, seed, "list")))
        found[f"rank_{name}"] = Path(write_jsonl(root / f"rank_{name}.jsonl", rank_rows(size, seed)))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr("core.rank_report.save_png", lambda figure, path: None)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *args: None)
        torch.set_num_threads(1)
        for name, kind in {"one": "", "two": "", "list": "list_", "lora": "", "rank": "rank_"}.items():
            flags = [*TINY, "--model_name", str(found["model"]), "--cache_dir", str(root / "cache")]
            flags += ["--output_dir", str(root / name), "--seed", str(int(name == "two"))]
            for part in ("train", "val", "test"):
                flags += [f"--{part}_data", str(found[kind + part])]
            flags += ["--lora_rank", "2"] if name == "lora" else []
            (rank_train if name == "rank" else train).main(flags)
            found[name] = root / name
    return found
