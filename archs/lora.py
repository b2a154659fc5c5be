"""LoRA by hand: a frozen product with W plus a trained one of rank R, in one autograd function.

    y = x W^T + bias + s (x A^T) B^T,   s = alpha / R, or alpha / sqrt(R) with rank stabilisation

A layer keeps its class's weight under its own name and gets lora_A and lora_B beside it, so a base model's weights
load as before. W gets no gradient, and backward stops at the first adapted layer: nothing below it is trained.
At birth B is 0 and the layer computes what it did before.

N vectors, I inputs, O outputs, R rank. Sources: Hu et al. 2021 (LoRA), section 4.1; Kalajdzievski 2023 (rank
stabilisation), eq. 4; Hayou et al. 2024 (LoRA+): B learns at a multiple of A's rate.
"""

import math
import re
from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from archs.dropout import dropout as drop
from core.errors import UserError

IN_LAYERS = r".*\.\d+\..*"  # every linear module of the numbered layers: attention and MLP projections


class _LoraProduct(torch.autograd.Function):
    """x W^T + bias + s h B^T with h = d A^T, where d is x or x after dropout.

    By hand, because autograd's version makes (N, O) tensors of the small product, of its multiple and of the sum, and
    one (N, I) more in the backward pass: each is a pass through memory. Here both products add into one tensor.
    """

    @staticmethod
    def forward(
        ctx,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """x, dropped: (..., I), None for x itself | weight: (O, I) | a: (R, I) | b: (O, R), all of one type."""
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        source = flat if dropped is None else dropped.reshape(flat.shape)
        h = source @ a.t()  # (N, R)
        out = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        out.addmm_(h, b.t(), alpha=scale)
        ctx.save_for_backward(source, h, weight, a, b)
        ctx.scale, ctx.is_dropped, ctx.shape = scale, dropped is not None, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple:
        source, h, weight, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # (N, O)
        grad_h = torch.mm(grad, b).mul_(ctx.scale)  # (N, R)
        grad_a = grad_h.t() @ source
        grad_b = torch.mm(grad.t(), h).mul_(ctx.scale)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if not ctx.is_dropped:
                grad_x.addmm_(grad_h, a)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_dropped = (grad_h @ a).view(ctx.shape)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None


class LoraLinear(nn.Linear):
    """nn.Linear with a low-rank update beside its frozen weight; made by add_lora, never built anew."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lora_product(self, x, self.weight)


class LoraConv1D(Conv1D):
    """GPT-2's linear layer, whose weight is (I, O)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return lora_product(self, x, self.weight.t())


ADAPTED = {nn.Linear: LoraLinear, Conv1D: LoraConv1D}


def lora_product(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The adapted layer's output. x: (..., I) | weight: (O, I). Under autocast everything is in its type; otherwise
    in the widest of x and W."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = torch.promote_types(x.dtype, weight.dtype)
    x = x.to(dtype)
    dropped = drop(x, layer.lora_dropout, layer.training) if layer.training and layer.lora_dropout else None
    bias = None if layer.bias is None else layer.bias.to(dtype)
    a, b = layer.lora_A.to(dtype), layer.lora_B.to(dtype)
    with torch.autocast(kind, enabled=False):
        return _LoraProduct.apply(x, dropped, weight.to(dtype), bias, a, b, layer.lora_scale)


def linear_modules(model: nn.Module) -> list[str]:
    """Names of the modules that can be adapted."""
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if type(module) in ADAPTED and module is not head]


def find_targets(model: nn.Module, targets: str) -> list[str]:
    """Names of the linear modules that a regular expression matches whole; "" means those of the numbered layers.

    A head over the vocabulary is never among them: label words read its rows as they are.

    Raises: UserError for an expression that is none, or matches no linear module.
    """
    linear = linear_modules(model)
    try:
        found = [name for name in linear if re.fullmatch(targets or IN_LAYERS, name)]
    except re.error as error:
        raise UserError(f"--lora_targets {targets}: is no regular expression: {error}") from None
    if not found:
        some = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in linear))
        raise UserError(f"--lora_targets {targets}: matches no linear module; there are {some[:500]}")
    return found


def add_lora(
    model: nn.Module,
    names: list[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    rslora: bool = False,
    keep_trained: Sequence[str] = (),
) -> None:
    """Freeze a transformers model and put adapters beside linear modules, in place.

    Args:    names: of the modules, see find_targets; those inside keep_trained get none | alpha: the update is
             scaled by alpha / rank (rslora: alpha / sqrt(rank)) | dropout: of the adapter's input alone |
             keep_trained: names of modules that stay trained whole, in float32.
    Raises:  UserError when the rank is larger than a product that it should make small, or no module is left.
    """
    whole = tuple(f"{name}." for name in keep_trained)
    names = [name for name in names if not f"{name}.".startswith(whole)]
    if not names:
        raise UserError(f"--lora_targets: matches only what is trained whole: {', '.join(keep_trained)}")
    model.requires_grad_(False)
    for name in keep_trained:
        model.get_submodule(name).float().requires_grad_(True)
    for name in names:
        layer = model.get_submodule(name)
        num_out, num_in = layer.weight.shape[::-1] if type(layer) is Conv1D else layer.weight.shape
        if rank > min(num_out, num_in):
            raise UserError(
                f"--lora_rank {rank}: is larger than {name}'s smaller side ({min(num_out, num_in)})"
            )
        layer.__class__ = ADAPTED[type(layer)]
        layer.lora_dropout = dropout
        layer.lora_scale = alpha / (math.sqrt(rank) if rslora else rank)
        place = {"dtype": torch.float32, "device": layer.weight.device}
        layer.lora_A = nn.Parameter(torch.empty(rank, num_in, **place))
        layer.lora_B = nn.Parameter(torch.zeros(num_out, rank, **place))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))  # as the authors' code does


def adapters(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers by name."""
    return {name: layer for name, layer in model.named_modules() if type(layer) in ADAPTED.values()}


def lora_delta(layer: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """s B A, shaped as the layer's weight is."""
    delta = layer.lora_scale * (layer.lora_B.to(dtype) @ layer.lora_A.to(dtype))
    return delta.t() if isinstance(layer, Conv1D) else delta


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The base model's state dict with every adapter folded in: new tensors, the model's own stay as they are.

    The sum is made in float32 and rounded once to the weight's type.
    """
    state = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    for name, layer in adapters(model).items():
        weight = layer.weight
        state[f"{name}.weight"] = (weight.float() + lora_delta(layer)).to(weight.dtype)
    return state


def remove_lora(model: nn.Module) -> None:
    """Take the adapters off, in place: the base model is bitwise what it was."""
    plain = {adapted: base for base, adapted in ADAPTED.items()}
    for layer in adapters(model).values():
        layer.__class__ = plain[type(layer)]
        for name in ("lora_A", "lora_B", "lora_dropout", "lora_scale"):
            delattr(layer, name)


def short_names(names: list[str], model: nn.Module) -> list[str]:
    """The fewest last parts of the adapted modules' names that name them and no other module, as PEFT's
    target_modules are read: a module is meant when its name ends with one. A backbone of ours has no pooler, the one
    that PEFT is given has: it must not be named either."""
    others = [name for name, _ in model.named_modules() if name not in set(names)] + ["pooler.dense"]
    for depth in (1, 2, 3):
        short = sorted({".".join(name.split(".")[-depth:]) for name in names})
        endings = tuple(f".{name}" for name in short)
        if not any(f".{other}".endswith(endings) for other in others):
            return short
    return sorted(names)


def frozen_dtype(amp_dtype: torch.dtype | None) -> torch.dtype:
    """What a frozen base is held in: bfloat16 where products are done in it, else float32."""
    return torch.bfloat16 if amp_dtype is torch.bfloat16 else torch.float32
