"""best_model/ and final_model/: what transformers and we can load again.

config.json, model.safetensors, the tokenizer's files; head.safetensors when the head is ours; bareloop.json says
how a text becomes a row (fields, length, truncation), what the classes are called and which head stands on what.
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from archs.encoder import OwnHead, PooledHead
from archs.loading import build_encoder, load_config, load_tokenizer
from core.errors import UserError
from core.files import found_folder, save_tensors, write_folder, write_json


def save_model(
    folder: Path, model: OwnHead | PooledHead, tokenizer: PreTrainedTokenizerBase, about: dict
) -> None:
    """Write a model folder, whole or not at all.

    Args:   about: what bareloop.json holds; load_model reads it.
    Raises: OSError when it cannot be written; the folder that was there is still whole then.
    Cost:   D2H of all weights.
    """

    def fill(part: Path) -> None:
        model.inner.save_pretrained(part)
        if isinstance(model, PooledHead):
            save_tensors(model.own_parts(), part / "head.safetensors")
        tokenizer.model_max_length = about["max_length"]
        tokenizer.save_pretrained(part)
        write_json(part / "bareloop.json", about)

    write_folder(folder, fill)


def load_weights(model: OwnHead | PooledHead, folder: Path) -> None:
    """Read a model folder's weights into a model built for it. Raises UserError when they do not fit."""
    folder = found_folder(folder)
    missing, unexpected = model.inner.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    odd = set(missing) - set(getattr(model.inner, "_tied_weights_keys", None) or ()) | set(unexpected)
    if isinstance(model, PooledHead):
        odd |= load_head(model, folder)
    if odd:
        raise UserError(f"{folder}: weights do not fit the model: {', '.join(sorted(odd)[:3])}")


def load_head(model: PooledHead, folder: Path) -> set[str]:
    """Read head.safetensors; returns the names that do not fit. Raises UserError when it cannot be read."""
    path = folder / "head.safetensors"
    try:
        parts = load_file(path)
        model.load_state_dict(parts, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit the model: {str(error).splitlines()[-1].strip()}") from None
    return set(parts) ^ set(model.own_parts())


def load_model(folder: Path) -> tuple[nn.Module, PreTrainedTokenizerBase, dict]:
    """The classifier of a model folder, in evaluation mode on the host.

    Returns: (model, tokenizer, what bareloop.json holds).
    Raises:  UserError when the folder is not one that save_model wrote.
    """
    folder = found_folder(folder)
    if not (folder / "bareloop.json").is_file():
        raise UserError(f"{folder}: holds no model (no bareloop.json); expected one that train.py saved")
    try:
        about = json.loads((folder / "bareloop.json").read_text(encoding="utf-8"))
        keys = ("label_names", "multi_label", "head", "pooling", "attention")
        names, multi_label, head, pooling, attention = (about[key] for key in keys)
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder}/bareloop.json: is not whole: {error!r}") from None
    config, tokenizer = load_config(str(folder)), load_tokenizer(str(folder))
    model, notes = build_encoder(str(folder), config, names, multi_label, head, pooling, None, attention)
    if notes:  # a weight that is not there would be random
        raise UserError(f"{folder}: is not whole: {notes[0]}")
    if isinstance(model, PooledHead) and load_head(model, folder):
        raise UserError(f"{folder}/head.safetensors: does not fit its bareloop.json")
    return model.eval(), tokenizer, about
