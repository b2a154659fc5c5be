"""Names to models: a built-in name, a folder or a hub name in; tokenizer, configuration and weights out.

Weights are safetensors, or .bin files read with weights_only=True and said so. Remote code is never run.
"""

import hashlib
import inspect
import os
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from archs.dropout import replace_dropout, same_masks_again
from archs.encoder import OwnHead, PooledHead, first_position
from archs.probes import set_attention
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


def _fetch(what: str, name: str, call, **kwargs):
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


def load_config(folder: str) -> PreTrainedConfig:
    """The configuration of a model that can be a bert-type encoder. Raises UserError."""
    config = _fetch("configuration", folder, AutoConfig.from_pretrained)
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    if decoder or getattr(config, "is_decoder", False):
        raise UserError(f"--model_name {folder}: is a decoder ({config.model_type}), not a bert-type encoder")
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"--model_name {folder}: is an encoder-decoder ({config.model_type}), not a bert-type encoder"
        )
    return config


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer, fast where there is one, with a padding token. Raises UserError."""
    tokenizer = _fetch("tokenizer", folder, AutoTokenizer.from_pretrained)
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


def longest_input(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, max_length: int | str) -> int:
    """Tokens a row may have: --max_length; auto is 256, or what the model takes if that is less.

    Raises: UserError when the model takes fewer than asked for.
    """
    most = getattr(config, "max_position_embeddings", None) or 10**9
    most -= first_position(config)
    if most <= 0:
        most = 10**9  # DeBERTa writes -1 or 0 where positions are relative alone
    if max_length == "auto":
        return min(256, most, tokenizer.model_max_length)
    if max_length > most:
        raise UserError(
            f"--max_length {max_length}: {config.name_or_path or config.model_type} takes at most {most} tokens"
        )
    return max_length


def set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """Set every dropout of a configuration, in place; those that follow another one (None) keep following."""
    for name, value in vars(config).copy().items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and ("dropout" in name or "drop_out" in name):
            setattr(config, name, dropout)


def attention_dropout(config: PreTrainedConfig, value: float | None = None) -> float:
    """The dropout of attention probabilities; a value sets it, in place."""
    names = [
        name
        for name in ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop", "attn_dropout")
        if isinstance(getattr(config, name, None), int | float)
    ]
    if value is not None:
        for name in names:
            setattr(config, name, value)
    return max((getattr(config, name) for name in names), default=0.0)


def check_exact_dropout(exact: bool, config: PreTrainedConfig, device: torch.device) -> None:
    """Raise UserError where --exact_dropout cannot hold: on CUDA, where flash kernels draw masks of their own."""
    found = attention_dropout(config)
    if exact and device.type != "cpu" and found > 0:
        raise UserError(
            f"--exact_dropout: the model drops attention probabilities ({found}), and on {device.type} their kernels "
            "draw masks of their own: add --attention_dropout 0"
        )


def build_encoder(
    folder: str,
    config: PreTrainedConfig,
    label_names: list[str],
    multi_label: bool,
    head: str,
    pooling: str,
    dropout: float | None,
    attention: str,
    pretrained: bool = True,
    attention_drop: float | None = None,
) -> tuple[nn.Module, list[str]]:
    """The classifier in float32 with pretrained weights, new ones where the checkpoint has none.

    Args:    head: model (the architecture's own) | linear | mlp | residual, on a pooling | dropout: sets every
             dropout; None keeps the model's | attention: auto or a name that transformers knows |
             pretrained: False gives random weights (to load a run's own into, or for tests) | attention_drop: the
             dropout of attention probabilities alone; None leaves it to dropout.
    Returns: (OwnHead or PooledHead, notes for the log).
    Raises:  UserError when the architecture has no classification head of its own, or weights cannot be read.
    """
    if dropout is not None:
        set_dropout(config, dropout)
    attention_dropout(config, attention_drop)
    config.num_labels = len(label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: k for k, name in enumerate(label_names)}
    config.problem_type = "multi_label_classification" if multi_label else "single_label_classification"
    auto = AutoModelForSequenceClassification if head == "model" else AutoModel
    if type(config) not in auto._model_mapping:
        raise UserError(
            f"--head {head}: transformers has no such model for {config.model_type}: give --head linear"
        )
    options = {"add_pooling_layer": False} if head != "model" and takes_pooling_flag(auto, config) else {}
    notes = []
    if pretrained:
        found = _fetch(
            "weights",
            folder,
            auto.from_pretrained,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
        backbone, info = found
        notes = loading_notes(folder, backbone, info)
    else:
        backbone = auto.from_config(config, dtype=torch.float32, **options)
    replace_dropout(backbone)
    set_attention(backbone, attention)
    if head == "model":
        return OwnHead(backbone), notes
    drop = (
        getattr(config, "hidden_dropout_prob", getattr(config, "dropout", 0.1))
        if dropout is None
        else dropout
    )
    model = PooledHead(backbone, pooling, head, len(label_names), drop)
    replace_dropout(model)
    return model, notes


def takes_pooling_flag(auto: type, config: PreTrainedConfig) -> bool:
    """Whether the backbone's class can be built without its pooler, which our poolings do not use."""
    return "add_pooling_layer" in inspect.signature(auto._model_mapping[type(config)].__init__).parameters


def recompute_activations(model: nn.Module) -> None:
    """Checkpoint each layer's activations, under the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False, "context_fn": same_masks_again})
    except ValueError as error:
        raise UserError(f"--gradient_checkpointing: {error}") from None


def freeze_unused(model: nn.Module) -> list[str]:
    """After one backward pass: stop training what got no gradient, and clear the gradients, in place.

    Such a weight would still decay, and with several ranks it would get a gradient of zeros. Returns a note for
    the log when there are any.
    """
    unused = [name for name, param in model.named_parameters() if param.grad is None]
    for param in model.parameters():
        param.requires_grad_(param.grad is not None)
        param.grad = None
    return [f"not trained, since the scores do not depend on it: {', '.join(unused)}"] if unused else []


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
