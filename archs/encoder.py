"""Encoder classifiers: a transformers model with its own head, or its backbone with our pooling and head.

Both take a cut, packed or padded, and return (B, C) scores, so the loop sees no difference.
"""

import inspect

import torch
from torch import nn
from transformers import PreTrainedConfig

from archs.attention import NAME as BARELOOP
from archs.dropout import MASKS
from archs.heads import make_head
from archs.pooling import Pooling
from core.batches import Cut

# their positions start at padding_idx + 1, so the table is longer than the longest row
POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text"}


def first_position(config: PreTrainedConfig) -> int:
    """The position of a row's first token."""
    return (config.pad_token_id or 0) + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0


def model_inputs(model: nn.Module, cut: Cut) -> dict:
    """What a transformers model is called with for a cut; in training its dropout masks are named too."""
    if model.training and MASKS.are_used(cut.ids.device, cut.blocks is not None):
        MASKS.begin_cut(cut.rows, cut.owner, cut.place)
    inputs = {"input_ids": cut.ids}
    if cut.token_types is not None:
        inputs["token_type_ids"] = cut.token_types
    if cut.cu_seqlens is not None:
        inputs["position_ids"] = (cut.place + first_position(model.config))[None]
        inputs |= {"cu_seqlens": cut.cu_seqlens, "max_seqlen": cut.max_seqlen, "blocks": cut.blocks}
        inputs |= {"trees": cut.trees} if cut.trees is not None else {}
    elif cut.mask is not None:
        inputs["attention_mask"] = cut.mask
    elif model.config._attn_implementation != BARELOOP:
        # a mask of ones: without one some models ask the device whether there is padding (DeBERTa), a host wait
        inputs["attention_mask"] = torch.ones_like(cut.ids, dtype=torch.bool)
    return inputs


class OwnHead(nn.Module):
    """The architecture's own classification model, exactly as transformers builds it."""

    branches: tuple = ()  # nothing stands behind a row

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._starts: torch.Tensor | None = None  # of a packed cut's rows, while it is in the model
        base = model.base_model
        for name in ("encoder", "transformer", "final_norm"):  # the last stage before any pooler or head
            if isinstance(getattr(base, name, None), nn.Module):
                getattr(base, name).register_forward_hook(self._first_tokens)
                break

    def _first_tokens(self, module: nn.Module, inputs: tuple, output):
        """Of a packed cut, hand on each row's first state as (B, 1, D): heads of this kind read no other.

        A head that does (ModernBERT's mean) then differs from itself on padded rows, which archs.probes finds out.
        """
        if self._starts is None:
            return output
        states = output if torch.is_tensor(output) else output.last_hidden_state  # (1, N, D)
        first = states[0].index_select(0, self._starts)[:, None]
        if torch.is_tensor(output):
            return first
        output.last_hidden_state = first
        return output

    @property
    def inner(self) -> nn.Module:
        """The transformers model."""
        return self.model

    @property
    def num_layers(self) -> int:
        """Layers of the backbone."""
        return self.inner.config.num_hidden_layers

    def forward(self, cut: Cut) -> torch.Tensor:
        """(B, C) scores of a cut of B rows."""
        self._starts = None if cut.cu_seqlens is None else cut.cu_seqlens[:-1]
        try:
            return self.model(**model_inputs(self.model, cut)).logits
        finally:
            self._starts = None


class PooledHead(nn.Module):
    """A backbone, a pooling of its last states, and a head of ours."""

    branches: tuple = ()
    head_file = "head.safetensors"  # of a saved model's folder

    def __init__(self, backbone: nn.Module, pooling: str, head: str, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = backbone
        # a decoder's cache of keys and values would copy them all, and turn bfloat16 values into the keys' float32
        takes_cache = "use_cache" in inspect.signature(backbone.forward).parameters
        self.options = {"use_cache": False} if takes_cache else {}
        self.pooling = Pooling(pooling, backbone.config.hidden_size)
        self.head = make_head(head, self.pooling.width, num_classes, dropout)

    def forward(self, cut: Cut) -> torch.Tensor:
        """(B, C) scores of a cut of B rows."""
        return self.head(self.pooling(self.states(cut), cut))

    def states(self, cut: Cut) -> torch.Tensor:
        """(B, T, D) or (1, N, D): the backbone's last states of a cut."""
        return self.backbone(**model_inputs(self.backbone, cut), **self.options).last_hidden_state

    @property
    def inner(self) -> nn.Module:
        """The transformers model."""
        return self.backbone

    @property
    def num_layers(self) -> int:
        """Layers of the backbone."""
        return self.inner.config.num_hidden_layers

    def own_parts(self) -> dict[str, torch.Tensor]:
        """The pooling's and the head's weights by name: what head_file holds."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}
