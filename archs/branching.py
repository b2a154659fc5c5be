"""Attention over rows that are a prefix and branches, each token of the prefix read once.

The prefix attends to itself, causally: by torch's kernel on CUDA, by chunks of queries on the CPU, and with a mask
where a window or a softcap asks for one. Every branch attends to the prefix and to itself, its softmax taken over both
parts at once. No branch meets another, so a row costs P^2 / 2 + K S (P + S) pairs of a query and a key (P^2 with a
mask) where K separate rows cost K (P + S)^2 / 2.

H heads, G heads of keys and values, P prefix tokens, K branches, S places of a branch, N packed tokens, D head width.
"""

import torch
from torch import nn

from core.branches import Tree, Trees
from core.packing import near_mask

CHUNK = 128  # queries: of 128, 256 and 512 the fastest (bench/NOTES.md, 20)


def branched_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    trees: Trees,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of a packed cut of trees.

    Args:    query: (1, H, N, D) | key, value: (1, G, N, D), G divides H | window: tokens that far apart or farther, by
             their places, do not see each other; None: all do.
    Returns: (1, N, H, D).
    """
    parts = []
    # split: its backward pass is one concatenation; that of slices would fill N tokens for each of them
    pieces = [x.split(trees.splits, dim=2) for x in (query, key, value)]
    for k, tree in enumerate(trees.rows):
        prefix = [x[2 * k] for x in pieces]
        parts.append(prefix_attention(*prefix, scaling, softcap, window))
        if tree.branches:
            own = [x[2 * k + 1] for x in pieces]
            parts.append(suffix_attention(*own, *prefix[1:], tree, scaling, softcap, window))
    return torch.cat(parts, dim=1)


def prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """query: (1, H, P, D) to (1, P, H, D); causal."""
    length, grouped = query.shape[2], key.shape[1] != query.shape[1]
    if softcap is None and (window is None or window >= length) and query.device.type == "cpu":
        return _CausalAttention.apply(query[0], key[0], value[0], scaling).transpose(0, 1)[None]
    if softcap is None:
        near = None if window is None or window >= length else near_mask(length, True, window, query.device)
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=near, is_causal=near is None, scale=scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2)
    if grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = capped(torch.matmul(query * scaling, key.transpose(2, 3)), softcap)
    near = near_mask(length, True, window, query.device)
    probs = scores.masked_fill(~near, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return torch.matmul(probs, value).transpose(1, 2)


class _CausalAttention(torch.autograd.Function):
    """Causal attention of one row by chunks of queries, each against the keys up to its end; forward and backward pass
    written out. For CPU, where torch's kernel takes twice as long (bench/NOTES.md, 20); it keeps the probabilities,
    half a P x P matrix a head, where that kernel computes them again.

    H heads, G of keys and values, P tokens, C tokens of a chunk, D head width.
    """

    @staticmethod
    def forward(
        ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """query: (H, P, D) | key, value: (G, P, D). Returns (H, P, D)."""
        (num_heads, length, width), groups = query.shape, key.shape[0]
        each, scaled = num_heads // groups, query * scaling
        out, probs = torch.empty_like(scaled), []
        with torch.autocast(query.device.type, enabled=False):  # all in one type, here and backwards
            for first in range(0, length, CHUNK):
                last = min(length, first + CHUNK)
                rows = _chunk(scaled, groups, first, last)  # (G, each x C, D)
                scores = torch.bmm(rows, key[:, :last].transpose(1, 2)).view(groups, each, last - first, last)
                ahead = torch.ones(last - first, last - first, dtype=torch.bool, device=query.device).triu_(1)
                scores[..., first:].masked_fill_(ahead, torch.finfo(scores.dtype).min)
                probs.append(scores.softmax(dim=-1).view(groups, -1, last))
                found = torch.bmm(probs[-1], value[:, :last])
                out[:, first:last] = found.view(num_heads, last - first, width)
        ctx.save_for_backward(scaled, key, value, *probs)
        ctx.scaling = scaling
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:
        scaled, key, value, *probs = ctx.saved_tensors
        (num_heads, length, width), groups = scaled.shape, key.shape[0]
        grad_query, grad_key, grad_value = map(torch.zeros_like, (scaled, key, value))
        with torch.autocast(scaled.device.type, enabled=False):
            for first, prob in zip(range(0, length, CHUNK), probs, strict=True):
                last = min(length, first + CHUNK)
                rows, grads = _chunk(scaled, groups, first, last), _chunk(grad, groups, first, last)
                grad_value[:, :last].baddbmm_(prob.transpose(1, 2), grads)
                grad_prob = torch.bmm(grads, value[:, :last].transpose(1, 2))
                grad_scores = torch._softmax_backward_data(grad_prob, prob, -1, prob.dtype)
                found = torch.bmm(grad_scores, key[:, :last]).view(num_heads, last - first, width)
                grad_query[:, first:last] = found.mul_(ctx.scaling)
                grad_key[:, :last].baddbmm_(grad_scores.transpose(1, 2), rows)
        return grad_query, grad_key, grad_value, None


def _chunk(x: torch.Tensor, groups: int, first: int, last: int) -> torch.Tensor:
    """(H, P, D) to (G, H / G x C, D): a chunk's tokens, the heads that share a key side by side."""
    return x[:, first:last].reshape(groups, -1, x.shape[2])


def capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Scores between -softcap and softcap (Gemma 2)."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def suffix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    tree: Tree,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """The branches of one row.

    Args:    query: (1, H, n, D) and key, value: (1, G, n, D) of the branches' n tokens | prefix_key, prefix_value:
             (1, G, P, D).
    Returns: (1, n, H, D).
    """
    num_heads, groups = query.shape[1], key.shape[1]
    length, width = prefix_key.shape[2:]
    count, size, each = tree.branches, tree.width, num_heads // groups
    query, key, value = (padded(x[0], tree) for x in (query * scaling, key, value))  # (H or G, K, S, D)
    flat = query.reshape(groups, each * count * size, width)  # the heads that share a key stand side by side
    far = torch.bmm(flat, prefix_key[0].transpose(1, 2))  # (G, each x K x S, P)
    rows = query.reshape(groups, each, count, size, width).transpose(1, 2).reshape(-1, each * size, width)
    near = torch.bmm(rows, key.reshape(groups * count, size, width).transpose(1, 2))  # (G x K, each x S, S)
    near = near.view(groups, count, each, size, size).transpose(1, 2)  # (G, each, K, S, S)
    hidden = ~near_mask(size, True, window, near.device)
    near = capped(near, softcap).masked_fill(hidden, torch.finfo(near.dtype).min)
    far = capped(far, softcap).view(groups, each, count, size, length)
    if window is not None and window < length + size:
        place = torch.arange(size, device=far.device)[:, None] + length
        seen = place - torch.arange(length, device=far.device) < window  # (S, P)
        far = far.masked_fill(~seen, torch.finfo(far.dtype).min)
    probs = torch.cat([far, near], dim=-1).softmax(dim=-1).to(value.dtype)  # over both at once
    far, near = probs.split([length, size], dim=-1)
    out = torch.bmm(far.reshape(groups, -1, length), prefix_value[0]).view(groups, each, count, size, width)
    near = near.transpose(1, 2).reshape(groups * count, each * size, size)
    own = torch.bmm(near, value.reshape(groups * count, size, width))
    out = out + own.view(groups, count, each, size, width).transpose(1, 2)
    out = out.reshape(num_heads, count * size, width)
    if tree.places is not None:
        out = out.index_select(1, tree.places)
    return out.transpose(0, 1)[None]


def padded(x: torch.Tensor, tree: Tree) -> torch.Tensor:
    """(H, n, D) tokens of the branches to (H, K, S, D), zeros where a branch is shorter."""
    if tree.places is not None:
        room = x.new_zeros(x.shape[0], tree.branches * tree.width, x.shape[2])
        x = room.index_copy(1, tree.places, x)  # each token once: no sum in either direction, so no order
    return x.reshape(x.shape[0], tree.branches, tree.width, x.shape[2])
