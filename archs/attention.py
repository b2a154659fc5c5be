"""The attention function that our models run, registered with transformers under the name "bareloop".

B rows, H heads, T tokens, D head width. Two reasons not to take transformers' own: its sdpa mask asks the device
whether anything is padded, a host wait in each forward pass; and on CPU, with dropout, the explicit product with
our dropout is faster than torch's fused kernel, which then falls back to one thread of random numbers.
"""

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from archs.dropout import dropout as drop

NAME = "bareloop"


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention over padded rows.

    Args:    query: (B, H, T, D) | key, value: (B, H or fewer, S, D) | attention_mask: (B, 1, T, S) bool, True
             means keep, or additive float; None keeps all.
    Returns: ((B, T, H, D), None).
    """
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    explicit = softcap is not None or (query.device.type == "cpu" and module.training and dropout > 0)
    if not explicit:
        dropout = dropout if module.training else 0.0
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return out.transpose(1, 2).contiguous(), None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scaling, key.transpose(2, 3))  # (B, H, T, S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probs = scores.softmax(dim=-1).to(value.dtype)
    out = torch.matmul(drop(probs, dropout, module.training), value)
    return out.transpose(1, 2).contiguous(), None


def padding_mask(
    attention_mask: torch.Tensor | None = None, allow_is_bidirectional_skip: bool = False, **kwargs
) -> torch.Tensor | None:
    """transformers' boolean sdpa mask, left out where no mask was given and never by asking the device."""
    kwargs["allow_is_causal_skip"] = False
    skip = allow_is_bidirectional_skip and attention_mask is None
    return sdpa_mask(attention_mask=attention_mask, allow_is_bidirectional_skip=skip, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, padding_mask)
