"""best_model/ and final_model/: what transformers, PEFT and we can load again.

config.json, model.safetensors (or an adapter in PEFT's format), the tokenizer's files; head.safetensors (a ranker's:
score_head.safetensors) when the head is ours; bareloop.json says how a text becomes a row (fields, prompt, length,
truncation), what the classes are called and which head stands on what.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from archs.adapters import load_adapter, load_adapter_weights, save_adapter, whole_modules
from archs.build import Classifier, build_model
from archs.encoder import PooledHead
from archs.loading import load_config, load_tokenizer, resolve_name
from archs.lora import adapters
from core.errors import UserError
from core.files import found_folder, save_tensors, write_folder, write_json
from core.sharding import local, read_parts
from core.stored import ANY, NUMBER, ROW_FORMAT, check_shape, read_json

ONE_FILE = "100TB"  # transformers would begin another after 50 GB, and load_weights reads one
NEEDED = ("label_names", "multi_label", "head", "pooling", "attention", "architecture")
SHAPE = {  # of bareloop.json
    **dict.fromkeys(
        ("head", "pooling", "attention", "architecture", "truncate", "amp", "model_name", "task"), str
    ),
    "label_names": [str],
    "multi_label": bool,
    "row_format": ROW_FORMAT,
    "max_length": int,
    "lora": {"rank": int, "alpha": NUMBER, "dropout": NUMBER, "rslora": bool},
    **dict.fromkeys(("prompt", "label_words", "answers"), (str, dict, list, type(None))),
    ANY: ANY,
}
OPTIONAL = {  # of what may also be null, or a ranker's text
    "prompt": {"before": str, "after": str, "add_special": bool, "is_open": bool, "lead": str},
    "label_words": [str],
    "answers": [[int]],
}


def save_model(
    folder: Path,
    model: Classifier,
    tokenizer: PreTrainedTokenizerBase,
    about: dict,
    whole: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model folder, whole or not at all.

    Args:   about: what bareloop.json holds; load_model reads it | whole: saved_state, gathered, where this rank has no
            more than a part of each weight.
    Raises: OSError when it cannot be written; the folder that was there is still whole then.
    Cost:   D2H of all weights, with LoRA of the adapter and the head.
    """

    state, prefix = saved_state(model) if whole is None else whole, inner_prefix(model)
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    def fill(part: Path) -> None:
        if adapters(model.inner):
            save_adapter(part, model, about, inner)
        else:
            given = None if whole is None else inner
            model.inner.save_pretrained(part, state_dict=given, max_shard_size=ONE_FILE)
        if isinstance(model, PooledHead):
            save_tensors({name: state[name] for name in model.own_parts()}, part / model.head_file)
        tokenizer.model_max_length = about["max_length"]
        tokenizer.save_pretrained(part)
        write_json(part / "bareloop.json", about)

    write_folder(folder, fill)


def inner_prefix(model: Classifier) -> str:
    """What the transformers model's names begin with in the classifier's state dict."""
    return next(f"{name}." for name, part in model.named_children() if part is model.inner)


def saved_state(model: Classifier) -> dict[str, torch.Tensor]:
    """What save_model writes, by its name in the classifier's state dict: everything, or all but an adapter's base.

    Nothing is copied, so a sharded tensor stays one.
    """
    state, prefix = model.state_dict(keep_vars=True), inner_prefix(model)
    if not adapters(model.inner):
        return state
    trained = tuple(f"{prefix}{name}." for name in whole_modules(model))
    return {
        name: value
        for name, value in state.items()
        if ".lora_" in name or name.startswith(trained) or not name.startswith(prefix)
    }


def load_weights(model: Classifier, folder: Path) -> None:
    """Read a model folder's weights into a model built for it. Raises UserError when they do not fit."""
    folder, odd = found_folder(folder), set()
    if adapters(model.inner):
        load_adapter_weights(model, folder)
    else:
        try:
            found = read_parts(folder / "model.safetensors", model.inner.state_dict().get)
            missing, unexpected = model.inner.load_state_dict(found, strict=False)
        except (OSError, SafetensorError, RuntimeError) as error:
            told = str(error).splitlines()[-1].strip()
            raise UserError(f"{folder}/model.safetensors: does not fit the model: {told}") from None
        names = {name: local(value).data_ptr() for name, value in model.inner.state_dict().items()}
        read = {pointer for name, pointer in names.items() if name not in missing}
        odd = {name for name in missing if names[name] not in read} | set(unexpected)  # tied: read
    if isinstance(model, PooledHead):
        odd |= load_head(model, folder)
    if odd:
        raise UserError(f"{folder}: weights do not fit the model: {', '.join(sorted(odd)[:3])}")


def load_head(model: PooledHead, folder: Path) -> set[str]:
    """Read the head's file; returns the names that do not fit. Raises UserError when it cannot be read."""
    path = folder / model.head_file
    try:
        parts = read_parts(path, model.state_dict().get)
        model.load_state_dict(parts, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit the model: {str(error).splitlines()[-1].strip()}") from None
    return set(parts) ^ set(model.own_parts())


def read_about(folder: Path) -> dict:
    """What a model folder's bareloop.json holds. Raises UserError when the folder is not one that save_model wrote."""
    folder = found_folder(folder)
    if not (folder / "bareloop.json").is_file():
        raise UserError(f"{folder}: holds no model (no bareloop.json); expected one that train.py saved")
    about = read_json(folder / "bareloop.json", SHAPE)
    missing = [key for key in NEEDED if key not in about]
    if missing:
        raise UserError(f"{folder}/bareloop.json: is not whole: no {missing[0]!r}")
    for name, shape in OPTIONAL.items():
        if isinstance(about.get(name), dict | list):
            check_shape(about[name], shape, f"{folder}/bareloop.json: {name}")
    return about


def load_model(
    folder: Path, base_dtype: torch.dtype | None = None, dropout: float | None = None
) -> tuple[Classifier, PreTrainedTokenizerBase, dict]:
    """The classifier of a model folder, in evaluation mode on the host, in float32.

    Args:    base_dtype: of the base of an adapter, if not float32: where products are in bfloat16 all the same |
             dropout: every one of model and head, in training; None keeps the model's.
    Returns: (model, tokenizer, what bareloop.json holds).
    Raises:  UserError when the folder is not one that save_model wrote, or the base of its adapter is not there.
    """
    folder, about = found_folder(folder), read_about(folder)
    names, multi_label, head, pooling, attention, architecture = (about[key] for key in NEEDED)
    is_adapter = (folder / "adapter_config.json").is_file()
    source = str(folder)
    if is_adapter:  # a name that is relative to where the run was started is not one here
        name = about["model_name"]
        name = name if name.startswith("builtin:") else about["base_model"]
        try:
            source = resolve_name(name)
        except UserError as error:
            raise UserError(f"{folder}: holds an adapter, and its base is not there: {error}") from None
    config, tokenizer = load_config(source), load_tokenizer(str(folder))
    model, notes = build_model(
        source, config, names, multi_label, head, pooling, dropout, attention,
        architecture=architecture, answers=[tuple(answer) for answer in about.get("answers") or ()],
        dtype=(is_adapter and base_dtype) or torch.float32, ranks=about.get("task") == "rank",
    )  # fmt: skip
    if is_adapter:
        load_adapter(model, folder)
    elif notes:  # a weight that is not there would be random
        raise UserError(f"{folder}: is not whole: {notes[0]}")
    if isinstance(model, PooledHead) and load_head(model, folder):
        raise UserError(f"{folder}/{model.head_file}: does not fit its bareloop.json")
    return model.eval(), tokenizer, about
