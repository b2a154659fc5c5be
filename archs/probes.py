"""What a model does with our attention, found out by putting rows through it: no list of architectures.

B rows, T padded tokens.
"""

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from archs.attention import NAME as BARELOOP
from archs.attention import attention, has_flash_attention
from archs.encoder import OwnHead, PooledHead, first_position
from core.batches import packed_cut, padded_cut
from core.errors import UserError


def set_attention(model: nn.Module, attention: str) -> None:
    """Choose the attention implementation. auto takes ours where the model computes the same with it.

    Some architectures accept a registered function by name and ignore it, or mask in another way; so a padded
    row is put through both, and a model that disagrees keeps its own.

    Raises: UserError for a name that transformers or the model does not know.
    """
    if attention != "auto":
        try:
            model.set_attn_implementation(attention)
        except (ValueError, ImportError) as error:
            raise UserError(f"--attention {attention}: {str(error).splitlines()[0]}") from None
        return
    own = model.config._attn_implementation
    before = probe_states(model)
    try:
        model.set_attn_implementation(BARELOOP)
        same = torch.allclose(before, probe_states(model), rtol=1e-3, atol=1e-4)
    except (ValueError, RuntimeError, TypeError):
        same = False
    if not same:
        model.set_attn_implementation(own)


@torch.no_grad()
def probe_states(model: nn.Module) -> torch.Tensor:
    """States or scores of one whole and one padded row of 8 tokens, in evaluation mode, at the real places."""
    training = model.training
    model.eval()
    pad = model.config.pad_token_id or 0
    ids = (
        torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [9, 8, 7, 6, 5, pad, pad, pad]]) % model.config.vocab_size
    )
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    out = model(input_ids=ids, attention_mask=mask)
    model.train(training)
    if hasattr(out, "logits"):
        return out.logits.float()
    return out.last_hidden_state.float()[mask]  # the states at padding mean nothing


def choose_packing(
    choice: str, model: OwnHead | PooledHead, device: torch.device, amp_dtype: torch.dtype | None
) -> tuple[bool, bool]:
    """What --packing auto|on|off means for this model and device. The model is still on the host.

    Returns: (whether cuts are packed, whether their attention runs in blocks: where torch has no kernel for rows
             of any length, which is on CPU and in float32).
    Raises:  UserError for `on` where the model computes something else with packed rows.
    """
    packed = choice != "off" and device.type != "mps" and can_pack(model)
    if choice == "on" and not packed:
        raise UserError(
            f"--packing on: {model.inner.config.model_type} with this head and --attention gives packed rows other "
            "scores than single ones: use auto (padded cuts, sorted by length), or another --head"
        )
    return packed, not (device.type == "cuda" and amp_dtype is not None and has_flash_attention(device))


@torch.no_grad()
def can_pack(model: OwnHead | PooledHead) -> bool:
    """Whether packed rows get the scores that they get alone: three rows are put through both ways, on the host.

    A list of architectures would not do: MPNet and DeBERTa take a registered attention function by name and ignore it.
    So every layer must have called it, and the scores must be the same. The longest row is longer than the windows of
    models that have them.
    """
    inner, config = model.inner, model.inner.config
    if config._attn_implementation != BARELOOP:
        return False
    longest = min(160, getattr(config, "max_position_embeddings", None) or 160)
    lengths = [max(1, min(n, longest - first_position(config))) for n in (8, longest, 5)]
    rows = [(np.arange(n) * 7 + n) % max(1, config.vocab_size - 5) + 5 for n in lengths]
    rows = [np.where(row == (config.pad_token_id or 0), 5, row) % config.vocab_size for row in rows]
    starts, index, calls = np.zeros(len(rows), np.int64), np.arange(len(rows)), []

    def counted(*args, **kwargs):
        calls.append(kwargs.get("cu_seqlens") is not None)
        return attention(*args, **kwargs)

    training = inner.training
    model.eval()
    AttentionInterface.register(BARELOOP, counted)
    try:
        together = model(packed_cut(rows, starts, index, None))
        alone = [model(padded_cut([row], starts[:1], index[:1], None, 0)) for row in rows]
        reached = calls[: config.num_hidden_layers] == [True] * config.num_hidden_layers
        return reached and torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-4)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # it takes no position_ids, say
    finally:
        AttentionInterface.register(BARELOOP, attention)
        model.train(training)
