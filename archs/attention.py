"""The attention function that our models run, registered with transformers under the name "bareloop".

Padded rows, or a packed cut whose `cu_seqlens` come as a forward keyword argument. Reasons not to take
transformers' own: its sdpa mask asks the device whether anything is padded, a host wait in each forward pass; it
has no packed path without further packages; and on CPU torch's dropout draws one random number after another.

B rows, H heads, T tokens a row, N packed tokens, D head width; of a block: b rows, T places a row.
"""

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from archs.branching import branched_attention, capped
from archs.dropout import MASKS, kept_scale, masked
from archs.dropout import dropout as drop
from core.branches import Trees
from core.packing import Blocks, near_mask

NAME = "bareloop"
try:  # flash attention over rows of any length, in torch itself; CUDA, 16-bit types
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a build without it
    varlen_attn = None


def has_flash_attention(device: torch.device) -> bool:
    """Whether this CUDA device runs torch's variable-length flash attention: Ampere and newer."""
    return varlen_attn is not None and torch.cuda.get_device_capability(device)[0] >= 8


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
    sliding_window: int | None = None,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int = 0,
    blocks: Blocks | None = None,
    trees: Trees | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention over padded rows, or over a packed cut.

    Args:    query: (B, H, T, D) | key, value: (B, H or fewer, S, D) | attention_mask: (B, 1, T, S) bool, True
             means keep, or additive float; None keeps what causality and window let be seen | sliding_window: tokens
             that far apart or farther do not see each other (where there is a mask, it is in it) | cu_seqlens: (B + 1,)
             int32, where the rows of a packed cut (batch dimension 1) begin and end | max_seqlen: the longest of
             them | blocks: those rows in blocks, where there is no variable-length kernel | trees: those rows as
             prefixes and branches (archs/branching.py) | position_bias:
             (1, H, T, S), what T5 adds to the scores of padded rows; a packed cut's would be N x N for each head.
    Returns: ((B, T, H, D), None).
    Raises:  TypeError for what changes the scores and is not computed here, so that a probe finds it out.
    """
    if kwargs.get("s_aux") is not None or (position_bias is not None and cu_seqlens is not None):
        raise TypeError("attention sinks, or a position bias of packed rows: not computed here")
    dropout = dropout if module.training else 0.0
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.dtype != value.dtype:  # rotary embeddings can leave float32 behind
        query, key = query.to(value.dtype), key.to(value.dtype)
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if trees is not None:
        if dropout > 0:
            raise ValueError(
                "attention dropout: a prefix that is read once has no masks of its own for a branch"
            )
        return branched_attention(query, key, value, trees, scaling, softcap, sliding_window), None
    if cu_seqlens is not None:
        if blocks is not None:
            return block_attention(
                query, key, value, blocks, scaling, dropout, causal, softcap, sliding_window
            ), None
        if softcap is not None:
            raise ValueError("softcap: torch's flash attention has none; build the cut with blocks")
        return flash_attention(
            query, key, value, cu_seqlens, max_seqlen, scaling, dropout, causal, sliding_window
        ), None
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if attention_mask is None:
        attention_mask = near_mask(query.shape[2], causal, sliding_window, query.device)
    if position_bias is not None:
        attention_mask = biased(position_bias.to(query.dtype), attention_mask)
    explicit = softcap is not None or (dropout > 0 and (query.device.type == "cpu" or MASKS.everywhere))
    if not explicit:
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return out.transpose(1, 2).contiguous(), None
    scores = capped(torch.matmul(query * scaling, key.transpose(2, 3)), softcap)  # (B, H, T, S)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probs = scores.softmax(dim=-1).to(value.dtype)
    out = torch.matmul(drop(probs, dropout, module.training), value)
    return out.transpose(1, 2).contiguous(), None


def biased(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """A position bias and a mask, bool or additive, as one additive mask."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    return bias + mask


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scaling: float,
    dropout: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """torch's variable-length flash attention over a packed cut: (1, H, N, D) to (1, N, H, D); CUDA, 16 bits.

    varlen_attn takes no dropout, the operator beneath it does.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, D)
    left, right = (-1, -1) if window is None else (window - 1, window - 1)
    right = 0 if causal else right
    if dropout == 0:
        grouped = {"enable_gqa": True} if k.shape[1] != q.shape[1] else {}
        lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
        out = varlen_attn(q, k, v, *lengths, scale=scaling, window_size=(left, right), **grouped)
    else:
        out = torch.ops.aten._flash_attention_forward(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, dropout, causal, False, scale=scaling,
            window_size_left=None if left < 0 else left, window_size_right=None if right < 0 else right,
        )[0]  # fmt: skip
    return out[None]


class _BlockAttention(torch.autograd.Function):
    """Softmax attention over blocks of rows of like length; forward and backward pass written out.

    By hand, because autograd's version copies and fills a whole packed tensor for each block and for each of query, key
    and value (bench/NOTES.md). Gathering and scattering are index_selects in both directions: no sum, so no order.
    """

    @staticmethod
    def forward(
        ctx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        blocks: Blocks,
        scaling: float,
        p: float,
        causal: bool,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """query, key, value: (1, H, N, D). Returns (1, N, H, D)."""
        _, num_heads, num_tokens, width = query.shape
        gather, back, _ = blocks.by_head(num_heads)
        q, k, v = (
            x[0].transpose(0, 1).reshape(num_tokens * num_heads, width).index_select(0, gather)
            for x in (query, key, value)
        )  # (P x H, D), a block's as (b, H, T, D)
        out, probs, keeps, tanhs, scale = torch.empty_like(q), [], [], [], kept_scale(p)
        layer = MASKS.next_layer() if p > 0 else 0
        biases = blocks.biases(num_heads, q.dtype, causal, window)
        for (first, b, places, members, _), bias in zip(blocks.blocks, biases, strict=True):
            shape = b * num_heads, places, width
            here = slice(first * num_heads, (first + b * places) * num_heads)
            q_b, k_b, v_b, out_b = (x[here].view(shape) for x in (q, k, v, out))
            if bias is None or softcap is not None:
                scores = torch.bmm(q_b, k_b.transpose(1, 2)).mul_(scaling)
                if softcap is not None:
                    tanhs.append(scores.div_(softcap).tanh_())
                    scores = scores * softcap if bias is None else scores.mul(softcap).add_(bias)
            else:
                scores = torch.baddbmm(bias, q_b, k_b.transpose(1, 2), alpha=scaling)
            prob, keep = scores.softmax(dim=-1, dtype=scores.dtype), None  # (b x H, T, T)
            if p > 0:
                keep = MASKS.keep(MASKS.heads(num_heads, places, members), places, p, layer).view(prob.shape)
            dropped = prob if keep is None else masked(prob, keep)
            torch.baddbmm(out_b, dropped, v_b, beta=0, alpha=scale, out=out_b)
            probs.append(prob)
            keeps.append(keep)
        keeps = [keep for keep in keeps if keep is not None]
        ctx.save_for_backward(q, k, v, *probs, *keeps, *tanhs)
        ctx.blocks, ctx.scaling, ctx.p, ctx.capped = blocks, scaling, p, softcap is not None
        return out.index_select(0, back).view(1, num_tokens, num_heads, width)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:
        q, k, v, *rest = ctx.saved_tensors
        blocks, scale = ctx.blocks, kept_scale(ctx.p)
        _, num_tokens, num_heads, width = grad.shape
        count = len(blocks.blocks)
        probs, keeps = rest[:count], rest[count : count * (1 + (ctx.p > 0))]
        tanhs = rest[len(rest) - count :] if ctx.capped else None
        gather, back, pads = blocks.by_head(num_heads)
        grad = grad.reshape(num_tokens * num_heads, width).index_select(0, gather)
        if pads is not None:
            grad.index_fill_(0, pads, 0)  # a padded place repeats a token: it must not count twice
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for i, (first, b, places, _, _) in enumerate(blocks.blocks):
            shape, prob = (b * num_heads, places, width), probs[i]
            here = slice(first * num_heads, (first + b * places) * num_heads)
            q_b, k_b, v_b, grad_b = (x[here].view(shape) for x in (q, k, v, grad))
            dq_b, dk_b, dv_b = (x[here].view(shape) for x in (grad_q, grad_k, grad_v))
            dropped = masked(prob, keeps[i]) if keeps else prob
            torch.baddbmm(dv_b, dropped.transpose(1, 2), grad_b, beta=0, alpha=scale, out=dv_b)
            grad_prob = torch.empty_like(prob)
            torch.baddbmm(grad_prob, grad_b, v_b.transpose(1, 2), beta=0, alpha=scale, out=grad_prob)
            if keeps:
                grad_prob = masked(grad_prob, keeps[i])
            grad_scores = torch._softmax_backward_data(grad_prob, prob, -1, prob.dtype)
            if tanhs is not None:
                grad_scores = grad_scores * (1 - tanhs[i].square())
            torch.baddbmm(dq_b, grad_scores, k_b, beta=0, alpha=ctx.scaling, out=dq_b)
            torch.baddbmm(dk_b, grad_scores.transpose(1, 2), q_b, beta=0, alpha=ctx.scaling, out=dk_b)
        grads = (
            x.index_select(0, back).view(num_tokens, num_heads, width).transpose(0, 1)[None]
            for x in (grad_q, grad_k, grad_v)
        )
        return (*grads, None, None, None, None, None, None)


def block_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    blocks: Blocks,
    scaling: float,
    dropout: float,
    causal: bool,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of a packed cut, (1, H, N, D) to (1, N, H, D), block by block."""
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return _BlockAttention.apply(query, key, value, blocks, scaling, dropout, causal, softcap, window)


def padding_mask(attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor | None:
    """transformers' boolean sdpa mask where rows are padded; None where they are not: what a causal or windowed model
    must not see is then left to the attention function, and no mask of N x N is built for a packed cut."""
    if attention_mask is None:
        return None
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, padding_mask)
