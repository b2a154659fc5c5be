"""Encoder classifiers: a transformers model with its own head, or its backbone with our pooling and head.

Both take a cut's (ids, mask, token_types) and return (B, C) scores, so the loop sees no difference.
"""

import torch
from torch import nn

from archs.attention import NAME as BARELOOP
from archs.heads import make_head
from archs.pooling import Pooling


def whole_mask(model: nn.Module, ids: torch.Tensor) -> torch.Tensor | None:
    """None for a model that runs our attention; for others a mask of ones: without one some of them ask the
    device whether there is padding (DeBERTa), a host wait."""
    return None if model.config._attn_implementation == BARELOOP else torch.ones_like(ids, dtype=torch.bool)


class OwnHead(nn.Module):
    """The architecture's own classification model, exactly as transformers builds it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def inner(self) -> nn.Module:
        """The transformers model."""
        return self.model

    @property
    def num_layers(self) -> int:
        """Layers of the backbone."""
        return self.inner.config.num_hidden_layers

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, token_types: torch.Tensor | None
    ) -> torch.Tensor:
        """ids: (B, T) int64 | mask: (B, T) bool or None | token_types: (B, T) int64 or None. Returns (B, C)."""
        types = {} if token_types is None else {"token_type_ids": token_types}
        mask = whole_mask(self.inner, ids) if mask is None else mask
        return self.model(input_ids=ids, attention_mask=mask, **types).logits


class PooledHead(nn.Module):
    """A backbone, a pooling of its last states, and a head of ours."""

    def __init__(self, backbone: nn.Module, pooling: str, head: str, num_classes: int, dropout: float):
        super().__init__()
        self.backbone = backbone
        self.pooling = Pooling(pooling, backbone.config.hidden_size)
        self.head = make_head(head, self.pooling.width, num_classes, dropout)

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, token_types: torch.Tensor | None
    ) -> torch.Tensor:
        """As OwnHead.forward."""
        types = {} if token_types is None else {"token_type_ids": token_types}
        mask = whole_mask(self.inner, ids) if mask is None else mask
        states = self.backbone(input_ids=ids, attention_mask=mask, **types).last_hidden_state  # (B, T, D)
        return self.head(self.pooling(states, mask))

    @property
    def inner(self) -> nn.Module:
        """The transformers model."""
        return self.backbone

    @property
    def num_layers(self) -> int:
        """Layers of the backbone."""
        return self.inner.config.num_hidden_layers

    def own_parts(self) -> dict[str, torch.Tensor]:
        """The pooling's and the head's weights by name: what head.safetensors holds."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}
