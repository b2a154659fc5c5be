"""What the tests of whole runs share: reading a run folder, changing flags, starting several ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.batches import Cut, make_cut
from core.sharding import whole
from tests.conftest import rank_rows, save_language_model, save_tiny, write_jsonl

ROOT = Path(__file__).parent.parent
VOLATILE = ("perf/", "mem/")


def weights(run: str | Path, name: str = "final_model") -> dict[str, torch.Tensor]:
    """Of a saved model: the transformers model's or the adapter's, and our head's."""
    found = {}
    for path in sorted((Path(run) / name).glob("*.safetensors")):
        found |= load_file(path)
    return found


class Caught(Exception):
    """Carries the gradient out of the first update."""


def first_gradient_of(main: Callable, flags: list[str]) -> torch.Tensor:
    """The flat float64 gradient that a run's first update is made of, unclipped; the run ends there."""

    def catch(optimizer, closure=None):
        params = [param for group in optimizer.param_groups for param in group["params"]]
        raise Caught(torch.cat([whole(param.grad).flatten().double() for param in params]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", catch)
        with pytest.raises(Caught) as caught:
            main([*flags, "--dry_run", "--max_steps", "1", "--max_grad_norm", "0"])
    return caught.value.args[0]


def logs(run: str | Path) -> list[dict]:
    """The records of a run without times and memory."""
    lines = (Path(run) / "training_logs.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(VOLATILE)} for line in lines]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bitwise equal, name by name."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cut_of(
    rows: list, packed: bool, numbers=None, labels=None, pad_id: int = 0, pairs=None, branches=()
) -> Cut:
    """A cut of token rows on the host; numbers: the rows' in their file, by default 0, 1, ... | branches: token ids
    that stand behind every row."""
    ids = [np.asarray(row, np.int64) for row in rows]
    numbers = np.arange(len(rows)) if numbers is None else np.asarray(numbers)
    pairs = np.zeros(len(rows), np.int64) if pairs is None else np.asarray(pairs)
    labels = None if labels is None else np.asarray(labels)
    return make_cut(ids, pairs, numbers, labels, pad_id, packed, branches=branches)


@torch.no_grad()
def word_scores(model: torch.nn.Module, rows: list, answers: list[tuple[int, ...]]) -> torch.Tensor:
    """(B, C) float64: the chain rule spelled out for a plain transformers model, one token a pass, over all words."""
    model.eval()
    scores = torch.zeros(len(rows), len(answers), dtype=torch.float64)
    for b, row in enumerate(rows):
        for c, answer in enumerate(answers):
            for j, token in enumerate(answer):
                if model.config.is_encoder_decoder:
                    start = model.config.decoder_start_token_id
                    inputs = {"input_ids": [list(row)], "decoder_input_ids": [[start, *answer[:j]]]}
                else:
                    inputs = {"input_ids": [[*row, *answer[:j]]]}
                inputs = {name: torch.tensor(ids) for name, ids in inputs.items()}
                logits = model(**inputs, use_cache=False).logits[0, -1]
                scores[b, c] += logits.double().log_softmax(-1)[token]
    return scores


def replaced(flags: list[str], **values) -> list[str]:
    """The flags with some values replaced or added."""
    out = list(flags)
    for name, value in values.items():
        if f"--{name}" in out:
            out[out.index(f"--{name}") + 1] = str(value)
        else:
            out += [f"--{name}", str(value)]
    return out


RANKERS = {  # name: (family, flags)
    "causal": ("llama", ["--architecture", "causal", "--lora_rank", "8"]),
    "whole": ("llama", ["--architecture", "causal"]),
    "gpt2": ("gpt2", ["--architecture", "causal", "--attention_dropout", "0"]),
    "bert": ("bert", []),
}


def rank_flags(folder: Path, kind: str) -> list[str]:
    """Flags of a ranking run of a second; its model, rows and cache are made in the folder where they are not there."""
    family, more = RANKERS[kind]
    if not (folder / family).exists():
        (save_tiny if family == "bert" else save_language_model)(folder / family, family)
    for k, (name, size) in enumerate({"train": 64, "val": 40, "test": 24}.items()):
        if not (folder / f"{name}.jsonl").exists():
            write_jsonl(folder / f"{name}.jsonl", rank_rows(size, k))
    flags = ["--model_name", str(folder / family), "--train_data", str(folder / "train.jsonl"), *more]
    flags += ["--val_data", str(folder / "val.jsonl"), "--cache_dir", str(folder / "cache"), "--amp", "off"]
    return [*flags, "--max_length", "40", "--batch_size", "16", "--learning_rate", "1e-2", "--epochs", "1"]


def torchrun(ranks: int, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
