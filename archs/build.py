"""From a configuration to a classifier: the model, its head, its dropout, what of it is trained.

build_model gives every architecture the same face: called with a cut it returns (B, C) scores; `inner` is the
transformers model, `branches` what must stand behind every row.
"""

import inspect

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    PreTrainedConfig,
)

from archs.causal import WordDecoder
from archs.dropout import (
    attention_dropout,
    replace_dropout,
    same_masks_again,
    set_dropout,
    set_t5_attention_dropout,
)
from archs.encoder import OwnHead, PooledHead
from archs.loading import fetch, loading_notes
from archs.probes import set_attention
from archs.ranker import Ranker
from archs.seq2seq import WordEncoderDecoder
from core.errors import UserError

Classifier = OwnHead | PooledHead | WordDecoder | WordEncoderDecoder


def choose_head(architecture: str, head: str, pooling: str, t5_head: str) -> tuple[str, str]:
    """The (head, pooling) that the flags mean: auto is the architecture's own for an encoder, label words otherwise.

    Raises: UserError for a head that the architecture does not have.
    """
    if t5_head == "encoder" and architecture != "t5":
        raise UserError(f"--t5_head encoder: is for --architecture t5, not {architecture}")
    if head == "auto":
        head = "model" if architecture == "bert" else "linear" if t5_head == "encoder" else "words"
    if head == "last":
        head, pooling = "linear", "last"
    if (head == "words") == (architecture == "bert") and head in ("words", "model"):
        own = "an encoder has no words to answer with" if head == "words" else "is for --architecture bert"
        raise UserError(f"--head {head}: {own}; give --head auto, linear, mlp or residual")
    if head == "words" and t5_head == "encoder":
        raise UserError(
            "--head words: answers through the decoder, --t5_head encoder has none; give one of the two"
        )
    return head, pooling


def model_class(architecture: str, head: str) -> type:
    """transformers' class for an architecture and a head."""
    if head == "model":
        return AutoModelForSequenceClassification
    if head == "words":
        return AutoModelForCausalLM if architecture == "causal" else AutoModelForSeq2SeqLM
    return AutoModelForTextEncoding if architecture == "t5" else AutoModel


def build_model(
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
    architecture: str = "bert",
    answers: list[tuple[int, ...]] | None = None,
    dtype: torch.dtype = torch.float32,
    ranks: bool = False,
) -> tuple[Classifier, list[str]]:
    """The classifier with pretrained weights, new ones where the checkpoint has none.

    Args:    head: model (the architecture's own) | words | linear | mlp | residual, on a pooling | dropout: sets every
             dropout; None keeps the model's | attention: auto or a name that transformers knows |
             pretrained: False gives random weights (to load a run's own into, or for tests) | attention_drop: the
             dropout of attention probabilities alone; None leaves it to dropout | answers: the label words' tokens,
             for head words | dtype: of the transformers model; a head of ours is float32 | ranks: a Ranker, whose
             head of ours gives one score a candidate.
    Returns: (the classifier, notes for the log).
    Raises:  UserError when the architecture has no classification head of its own, or weights cannot be read.
    """
    if dropout is not None:
        set_dropout(config, dropout)
    attention_dropout(config, attention_drop)
    config.num_labels = len(label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: k for k, name in enumerate(label_names)}
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    config.problem_type = (
        "regression" if ranks else kind
    )  # one score: transformers refuses classes with one label
    auto = model_class(architecture, head)
    if type(config) not in auto._model_mapping:
        other = "--t5_head words" if architecture == "t5" else "--head linear"
        raise UserError(
            f"--head {head}: transformers has no such model for {config.model_type}: give {other}"
        )
    options = {"add_pooling_layer": False} if auto is AutoModel and takes_pooling_flag(auto, config) else {}
    notes = []
    if pretrained:
        options |= {"config": config, "dtype": dtype, "output_loading_info": True}
        inner, info = fetch("weights", folder, auto.from_pretrained, **options)
        notes = loading_notes(folder, inner, info)
    else:
        inner = auto.from_config(config, dtype=dtype, **options)
    replace_dropout(inner)
    if attention_drop is not None:
        set_t5_attention_dropout(inner, attention_drop)
    set_attention(inner, attention)
    if head == "words":
        return (WordDecoder if architecture == "causal" else WordEncoderDecoder)(inner, answers), notes
    if head == "model":
        return OwnHead(inner), notes
    if dropout is None:
        dropout = next((getattr(config, n) for n in ("hidden_dropout_prob", "dropout_rate", "dropout")
                        if isinstance(getattr(config, n, None), float)), 0.1)  # fmt: skip
    model = (Ranker if ranks else PooledHead)(inner, pooling, head, len(label_names), dropout)
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
    unused = [name for name, param in model.named_parameters() if param.requires_grad and param.grad is None]
    for param in model.parameters():
        param.requires_grad_(param.grad is not None)
        param.grad = None
    return [f"not trained, since the scores do not depend on it: {', '.join(unused)}"] if unused else []
