"""What a model does with our attention, found out by putting rows through it: no list of architectures.

B rows, T padded tokens.
"""

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from archs.attention import NAME as BARELOOP
from archs.attention import attention, has_flash_attention
from archs.dropout import attention_dropout
from archs.encoder import first_position
from core.batches import make_cut
from core.errors import UserError
from core.rank_batches import make_rank_cut


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
        same = torch.allclose(before, probe_states(model), **closeness(model))
    except (ValueError, RuntimeError, TypeError):
        same = False
    if not same:
        model.set_attn_implementation(own)


def closeness(model: nn.Module) -> dict[str, float]:
    """Tolerances for "the same scores" in the model's type. What a probe is to find is off by 1 and more."""
    return {"rtol": 1e-3, "atol": 1e-4} if model.dtype == torch.float32 else {"rtol": 0.05, "atol": 0.25}


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
    two = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    out = model(input_ids=ids, attention_mask=mask, **two)
    model.train(training)
    if two:
        return out.logits.float()
    if hasattr(out, "logits"):
        return (out.logits if out.logits.dim() == 2 else out.logits[mask]).float()
    return out.last_hidden_state.float()[mask]  # the states at padding mean nothing


def choose_packing(
    choice: str, model: nn.Module, device: torch.device, amp_dtype: torch.dtype | None
) -> tuple[bool, bool]:
    """What --packing auto|on|off means for this model and device. The model is still on the host.

    Returns: (whether cuts are packed, whether their attention runs in blocks: where torch has no kernel for rows
             of any length, which is on CPU and in float32, or rows branch).
    Raises:  UserError for `on` where the model computes something else with packed rows.
    """
    packed = choice != "off" and device.type != "mps" and can_pack(model)
    if choice == "on" and not packed:
        raise UserError(
            f"--packing on: {model.inner.config.model_type} with this head and --attention gives packed rows other "
            "scores than single ones: use auto (padded cuts, sorted by length), or another --head"
        )
    flash = device.type == "cuda" and amp_dtype is not None and has_flash_attention(device)
    return packed, bool(model.branches) or not flash


def choose_layout(
    share: str, packing: str, model: nn.Module, device: torch.device, amp_dtype: torch.dtype | None
) -> tuple[str, bool]:
    """What --share_prefix and --packing mean for a ranker. The model is still on the host.

    Returns: (shared, packed or padded, see core/rank_batches.py; whether attention over packed rows runs in blocks).
    Raises:  UserError for `on` where the model computes something else that way.
    """
    if share != "off" and packing != "off" and device.type != "mps" and can_share(model):
        return "shared", False
    if share == "on":
        raise UserError(
            f"--share_prefix on: {model.inner.config.model_type} cannot read a question once for all candidates: an "
            "encoder sees both ways, attention dropout wants masks of their own (--attention_dropout 0), and with "
            "--attention other than auto or --packing off it is not done; use auto"
        )
    packed, in_blocks = choose_packing(packing, model, device, amp_dtype)
    return ("packed" if packed else "padded"), in_blocks


@torch.no_grad()
def can_share(model: nn.Module) -> bool:
    """Whether candidates behind a prefix that is read once get the scores of separate rows: two questions with
    candidates of several lengths are put through both ways, on the host. The model is a Ranker on a decoder, pooled at
    the last token.

    Attention dropout above 0 would need masks of its own for every branch: then candidates are read separately.
    """
    inner, config = model.inner, model.inner.config
    if (
        config._attn_implementation != BARELOOP
        or attention_dropout(config) > 0
        or model.pooling.kind != "last"
    ):
        return False
    longest = min(160, getattr(config, "max_position_embeddings", None) or 160)
    prefixes = [(np.arange(n) * 7 + n) % max(1, config.vocab_size - 5) + 5 for n in (longest - 8, 5)]
    branches = [
        [np.array([6, 9, 7]), np.array([8, 5]), np.array([6, 5, 9, 8])],
        [np.array([7]), np.array([9, 6])],
    ]
    parts = prefixes, branches, np.arange(2), np.zeros(5, np.float32), 3
    calls, training = [], inner.training

    def counted(*args, **kwargs):
        calls.append(kwargs.get("trees") is not None)
        return attention(*args, **kwargs)

    model.eval()
    AttentionInterface.register(BARELOOP, counted)
    try:
        halves = inner.dtype if inner.dtype in (torch.bfloat16, torch.float16) else None
        with torch.autocast("cpu", halves, enabled=halves is not None):
            together = model(make_rank_cut(*parts, "shared", 0))
            reached = calls == [True] * config.num_hidden_layers
            alone = model(make_rank_cut(*parts, "padded", config.pad_token_id or 0))
        return reached and torch.allclose(together, alone, **closeness(inner))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    finally:
        AttentionInterface.register(BARELOOP, attention)
        model.train(training)


@torch.no_grad()
def draws_own_masks(model: nn.Module) -> bool:
    """Whether a model in training draws masks from torch's generator, past our dropout: BART calls the function, not
    the module, DeBERTa drops a table that no row owns. Two passes with the same named masks
    and other seeds say, on the host."""
    config, training = model.inner.config, model.training
    row, one = np.arange(8) % max(1, config.vocab_size - 5) + 5, np.zeros(1, np.int64)
    cut = make_cut([row % config.vocab_size], one, one, None, 0, packed=False, branches=model.branches)
    halves = model.inner.dtype if model.inner.dtype in (torch.bfloat16, torch.float16) else None
    model.train()
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", halves, enabled=halves is not None):
        scores = [torch.manual_seed(seed) and model(cut) for seed in (1, 2)]
    model.train(training)
    return not torch.equal(*scores)


@torch.no_grad()
def can_pack(model: nn.Module) -> bool:
    """Whether packed rows get the scores that they get alone: three rows are put through both ways, on the host.

    A list of architectures would not do: MPNet and DeBERTa take a registered attention function by name and ignore it.
    So every layer must have called it, and the scores must be the same. The longest row is longer than the windows of
    models that have them.
    """
    inner, config = model.inner, model.inner.config
    if config._attn_implementation != BARELOOP:
        return False
    # a block's dropout masks go by index, and a branch's tokens stand elsewhere than their places say
    if model.branches and attention_dropout(config) > 0:
        return False
    longest = min(160, getattr(config, "max_position_embeddings", None) or 160)
    longest -= max(map(len, model.branches), default=0)
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
        behind = model.branches
        halves = inner.dtype if inner.dtype in (torch.bfloat16, torch.float16) else None
        with torch.autocast("cpu", halves, enabled=halves is not None):  # a frozen base under a float32 head
            together = model(make_cut(rows, starts, index, None, 0, packed=True, branches=behind))
            alone = [
                model(make_cut([row], starts[:1], index[:1], None, 0, packed=False, branches=behind))
                for row in rows
            ]
        reached = calls[: config.num_hidden_layers] == [True] * config.num_hidden_layers
        return reached and torch.allclose(together, torch.cat(alone), **closeness(inner))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False  # it takes no position_ids, say
    finally:
        AttentionInterface.register(BARELOOP, attention)
        model.train(training)
