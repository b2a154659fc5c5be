"""Names to models: a built-in name, a folder or a hub name in; tokenizer, configuration and weights out.

Weights are safetensors, or .bin files read with weights_only=True and said so. Remote code is never run.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from archs.encoder import first_position
from core.errors import UserError

BUILTIN = {  # name: file of weights checked, its sha256 (the published model's own)
    "minilm": ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
}
WEIGHTS_FOLDER = Path(__file__).resolve().parent.parent / "weights"
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def resolve_name(name: str) -> str:
    """The folder or hub name that a --model_name means; a built-in one's weights are checked.

    Raises: UserError when the built-in weights are missing or are not the published ones, or a path is no folder.
    """
    if not name.startswith("builtin:"):
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            folder = Path(name).expanduser()
            if not (folder / "config.json").is_file():
                what = "has no config.json" if folder.is_dir() else "is no folder"
                raise UserError(
                    f"--model_name {name}: {what}; expected a model folder, a hub name or builtin:minilm"
                )
            return str(folder)
        return name
    short = name.removeprefix("builtin:")
    if short not in BUILTIN:
        raise UserError(f"--model_name {name}: no such built-in model; there is {', '.join(BUILTIN)}")
    folder, (file, sha256) = WEIGHTS_FOLDER / short, BUILTIN[short]
    if not (folder / file).is_file():
        raise UserError(f"--model_name {name}: not fetched yet: run `make setup` (or python -m data.weights)")
    check_sha256(folder / file, sha256)
    return str(folder)


def check_sha256(path: Path, sha256: str) -> None:
    """Raise UserError when a file is not the one expected."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{path}: sha256 is {found}, expected {sha256}: remove its folder and run `make setup` again"
        )


def fetch(what: str, name: str, call: Callable, **kwargs: Any) -> Any:
    """call(name) of transformers, its many ways to fail turned into one message."""
    try:
        return call(name, trust_remote_code=False, **kwargs)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        kind = "folder" if os.path.isdir(name) else "hub model"
        raise UserError(
            f"--model_name {name}: its {what} cannot be loaded from this {kind}: {first}\n"
            "  expected a model folder, a hub name that can be reached from here, or builtin:minilm"
        ) from None


def load_config(folder: str, architecture: str | None = None) -> PreTrainedConfig:
    """The configuration of a model that can be what --architecture says; None: whatever it is. Raises UserError."""
    config = fetch("configuration", folder, AutoConfig.from_pretrained)
    found = model_kind(config)
    if architecture is not None and found != architecture:
        words = {"bert": "an encoder", "t5": "an encoder-decoder", "causal": "a decoder"}
        raise UserError(
            f"--model_name {folder}: is {words[found]} ({config.model_type}), not {words[architecture]}: "
            f"give --architecture {found}, or another model"
        )
    return config


def model_kind(config: PreTrainedConfig) -> str:
    """bert, t5 or causal: the --architecture that a configuration fits."""
    if (
        getattr(config, "is_encoder_decoder", False)
        and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    ):
        return "t5"
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return "causal" if decoder or getattr(config, "is_decoder", False) else "bert"


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer, fast where there is one, with a padding token. Raises UserError."""
    tokenizer = fetch("tokenizer", folder, AutoTokenizer.from_pretrained)
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not words:  # what transformers makes of a folder without a tokenizer's files, without a word
        raise UserError(
            f"--model_name {folder}: has no tokenizer: its vocabulary is empty, each word is unknown"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"--model_name {folder}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def most_positions(config: PreTrainedConfig) -> int:
    """Tokens that a model can number; 10^9 where its positions are relative (DeBERTa writes -1 or 0, T5 nothing)."""
    most = (getattr(config, "max_position_embeddings", None) or 10**9) - first_position(config)
    return most if most > 0 else 10**9


def check_room(config: PreTrainedConfig, max_length: int, behind: int) -> None:
    """Raise UserError when the model cannot number the tokens that stand behind its longest prompt."""
    most = most_positions(config)
    if max_length + behind > most:
        raise UserError(
            f"--max_length {max_length}: the model takes at most {most} tokens, and the label words need {behind} of "
            f"them behind the prompt: give --max_length {most - behind}"
        )


def longest_input(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | str, auto: int = 256
) -> int:
    """Tokens a row may have: --max_length; "auto" is `auto`, or what the model takes if that is less.

    Raises: UserError when the model takes fewer than asked for.
    """
    most = most_positions(config)
    if max_length == "auto":
        return min(auto, most, tokenizer.model_max_length)
    if max_length > most:
        raise UserError(
            f"--max_length {max_length}: {config.name_or_path or config.model_type} takes at most {most} tokens"
        )
    return max_length


def loading_notes(folder: str, model: nn.Module, info: dict) -> list[str]:
    """What the log should say about weights that were not in the checkpoint, or not in safetensors."""
    notes, prefix = [], model.base_model_prefix + "."
    missing = sorted(info.get("missing_keys", ()))
    body = [name for name in missing if name.startswith(prefix) and "pooler" not in name]
    head = [name for name in missing if name not in body]
    if head:
        notes.append(f"new weights, not in the checkpoint: {', '.join(head)}")
    if body:
        notes.append(
            f"WARNING: {len(body)} weights of the backbone are not in the checkpoint and are random: {body[0]}, ..."
        )
    if os.path.isdir(folder) and not list(Path(folder).glob("*.safetensors")):
        notes.append("weights read from a .bin file with weights_only=True")
    return notes
