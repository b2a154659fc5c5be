"""Adapters on disk, in PEFT's own format: adapter_config.json and adapter_model.safetensors.

On an architecture's own head the adapter is a SEQ_CLS one with the head inside it; with label words one on the language
model; with any other head one on the backbone, and the head is head.safetensors beside it.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from archs.encoder import OwnHead
from archs.lora import adapters, add_lora, linear_modules, short_names
from core.errors import UserError
from core.files import save_tensors, write_json
from core.sharding import part_like
from core.stored import ANY, NUMBER, read_json

SHAPE = {  # of adapter_config.json
    "peft_type": str,
    "r": int,
    "lora_alpha": NUMBER,
    "lora_dropout": NUMBER,
    "use_rslora": bool,
    "bias": str,
    "base_model_name_or_path": (str, type(None)),
    ANY: ANY,
}
PREFIX = "base_model.model."  # PEFT's name for the model that it wraps
UNREAD = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's weights


def whole_modules(model: nn.Module) -> list[str]:
    """Names of the modules that are trained whole beside an adapter: an own head, and the pooler that it stands on
    (but not one with an adapter inside: PEFT makes them)."""
    if not isinstance(model, OwnHead):
        return []
    inner = model.inner
    prefix = inner.base_model_prefix
    names = [
        name
        for name, part in inner.named_children()
        if name != prefix and next(part.parameters(), None) is not None
    ]
    if getattr(inner.base_model, "pooler", None) is not None:
        names.append(f"{prefix}.pooler")
    return [name for name in names if not adapters(inner.get_submodule(name))]


def task_type(architecture: str, head: str) -> str:
    """PEFT's name for what an adapter is on."""
    if head == "model":
        return "SEQ_CLS"
    if head == "words":
        return "CAUSAL_LM" if architecture == "causal" else "SEQ_2_SEQ_LM"
    return "FEATURE_EXTRACTION"


def save_adapter(folder: Path, model: nn.Module, about: dict, state: dict[str, torch.Tensor]) -> None:
    """Write the adapter of a classifier.

    Args: about: as in bareloop.json; `lora` holds rank, alpha, dropout, rslora, `base_model` a hub name or a folder |
          state: the transformers model's state dict, of which what is neither adapter nor trained whole can be missing.
    Cost: D2H of the adapter.
    """
    inner, lora = model.inner, about["lora"]
    layers, whole = adapters(inner), whole_modules(model)
    tensors = {}
    for name in layers:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = state[f"{name}.lora_A"]
        tensors[f"{PREFIX}{name}.lora_B.weight"] = state[f"{name}.lora_B"]
    for name in whole:
        tensors |= {f"{PREFIX}{key}": value for key, value in state.items() if key.startswith(f"{name}.")}
    save_tensors(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": task_type(about["architecture"], about["head"])}
    config |= {"base_model_name_or_path": about["base_model"], "r": lora["rank"], "lora_alpha": lora["alpha"]}
    config |= {"lora_dropout": lora["dropout"], "use_rslora": lora["rslora"], "bias": "none"}
    config |= {"target_modules": short_names(list(layers), inner), "modules_to_save": whole or None}
    config |= {"fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers.values())}
    write_json(folder / "adapter_config.json", config | {"inference_mode": True, "init_lora_weights": True})


def read_adapter_config(folder: Path) -> dict:
    """adapter_config.json. Raises UserError when it is not whole, or of a kind that we do not compute."""
    path = folder / "adapter_config.json"
    config = read_json(path, SHAPE)
    kind = config["peft_type"]
    if kind == "LORA" and (
        config["r"] < 1 or not config["lora_alpha"] or not 0 <= config.get("lora_dropout", 0) < 1
    ):
        raise UserError(
            f"{path}: expected r of at least 1, lora_alpha other than 0, lora_dropout from 0 to below 1"
        )
    odd = [name for name in UNREAD if config.get(name)]
    odd += [name for name in OTHER_BASE if str(config.get("init_lora_weights")).startswith(name)]
    if kind != "LORA" or odd or config.get("bias", "none") != "none":
        raise UserError(f"{path}: expected plain LoRA without biases, found {kind} {', '.join(odd)}".rstrip())
    return config


def read_adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """adapter_model.safetensors. Raises UserError when it cannot be read."""
    path = folder / "adapter_model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[-1].strip()}") from None


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Put an adapter, ours or PEFT's, beside a classifier's linear modules, and its own head's weights into it.

    The weights' names say which modules are adapted; in PEFT's configuration several settings together do. A pooler
    that is not in the adapter, since PEFT leaves it out by default, stays the base's.

    Raises: UserError when the adapter is of another model.
    """
    config, found = read_adapter_config(folder), read_adapter_weights(folder)
    inner = model.inner
    names = [name for name in linear_modules(inner) if f"{PREFIX}{name}.lora_A.weight" in found]
    if not names:
        raise UserError(f"{folder}: adapts no linear module of this {inner.config.model_type} model")
    plain = [name for name in found if ".lora_" not in name]
    whole = [
        name
        for name in whole_modules(model)
        if not name.endswith("pooler") or any(key.startswith(f"{PREFIX}{name}.") for key in plain)
    ]
    settings = config.get("lora_dropout", 0.0), config.get("use_rslora", False)
    add_lora(inner, names, config["r"], config["lora_alpha"], *settings, keep_trained=whole)
    put_weights(model, found, whole, folder)


def load_adapter_weights(model: nn.Module, folder: Path) -> None:
    """Read an adapter of ours into a model that has the adapters. Raises UserError when it does not fit."""
    put_weights(model, read_adapter_weights(folder), whole_modules(model), folder)


@torch.no_grad()
def put_weights(model: nn.Module, found: dict[str, torch.Tensor], whole: list[str], folder: Path) -> None:
    """Copy an adapter's weights into the model, and those of the modules named in whole. Raises UserError."""
    wanted = {}
    for name, layer in adapters(model.inner).items():
        wanted |= {
            f"{PREFIX}{name}.lora_A.weight": layer.lora_A,
            f"{PREFIX}{name}.lora_B.weight": layer.lora_B,
        }
    for name in whole:
        part = model.inner.get_submodule(name)
        wanted |= {f"{PREFIX}{name}.{key}": value for key, value in part.state_dict(keep_vars=True).items()}
    odd = {name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape}
    odd |= wanted.keys() ^ found.keys()
    if odd:
        raise UserError(f"{folder}: its adapter does not fit the model: {min(odd)}")
    for name, value in wanted.items():
        value.copy_(part_like(found[name], value))
