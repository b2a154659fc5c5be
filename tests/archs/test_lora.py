"""archs/lora.py, one layer: the product by hand against the dense matrix W + s B A."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from archs.dropout import MASKS, dropout
from archs.lora import LoraConv1D, LoraLinear, _LoraProduct, add_lora, frozen_dtype, lora_delta, merged_state
from core.errors import UserError

BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}
LAYERS = {
    "linear": lambda: nn.Linear(6, 5),
    "no bias": lambda: nn.Linear(6, 5, bias=False),
    "conv1d": lambda: Conv1D(5, 6),
}
SHAPES = {"2-D": (7, 6), "3-D": (2, 4, 6)}


def adapted(kind: str, dtype: torch.dtype = torch.float64, **settings) -> nn.Module:
    """One adapted layer of rank 3 with a random B, in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[kind]())
    add_lora(model, ["0"], **({"rank": 3, "alpha": 1.5} | settings))
    nn.init.normal_(model[0].lora_B)
    return model[0].to(dtype).train()


def dense(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x (W + s B A)^T + bias by autograd; with dropout x W^T + bias + s (drop(x) A^T) B^T."""
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    if layer.lora_dropout:
        small = dropout(x, layer.lora_dropout, True) @ layer.lora_A.t() @ layer.lora_B.t()
        return F.linear(x, weight, layer.bias) + layer.lora_scale * small
    return F.linear(x, weight + layer.lora_scale * layer.lora_B @ layer.lora_A, layer.bias)


def gradients(layer: nn.Module, forward, x: torch.Tensor, by_input: bool = True) -> list[torch.Tensor]:
    """The output, and the gradients by A, by B and by x of a random sum of it."""
    MASKS.begin_step(5)
    MASKS.begin_cut(torch.arange(len(x)), None, torch.arange(x.shape[1]))
    x = x.clone().requires_grad_(by_input)
    layer.lora_A.grad = layer.lora_B.grad = None
    out = forward(x)
    weigh = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    (out * weigh).sum().backward()
    found = [out.detach(), layer.lora_A.grad, layer.lora_B.grad]
    return found + [x.grad] * by_input


def is_dense(layer: nn.Module, shape: tuple, by_input: bool = True) -> bool:
    """Whether output and gradients are those of the dense matrix."""
    dtype = layer.weight.dtype
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    ours = gradients(layer, layer, x, by_input)
    theirs = gradients(layer, lambda x: dense(layer, x), x, by_input)
    return all(float((a - b).norm() / b.norm()) <= BOUND[dtype] for a, b in zip(ours, theirs, strict=True))


# -- one layer --------------------------------------------------------------------------------------------------


def test_a_layer_by_hand():
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"x": layer})
    add_lora(model, ["x"], rank=1, alpha=2.0)
    with torch.no_grad():
        for param, value in ((layer.weight, [[1, 2], [3, 4]]), (layer.bias, [10, 20]),
                             (layer.lora_A, [[1, -1]]), (layer.lora_B, [[1], [2]])):  # fmt: skip
            param.copy_(torch.tensor(value))
    # W x = (5, 11), A x = -1, s = 2 / 1, so y = (5, 11) + (10, 20) + 2 * -1 * (1, 2)
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    out = layer(x)
    assert out.tolist() == [[13.0, 27.0]]
    out[
        0, 1
    ].backward()  # grad (0, 1): dB = s * grad * Ax, dA = s * (B^T grad) x, dx = W^T grad + s * B^T grad * A
    assert layer.lora_B.grad.tolist() == [[0.0], [-2.0]]
    assert layer.lora_A.grad.tolist() == [[4.0, 8.0]]
    assert x.grad.tolist() == [[3.0 + 4.0, 4.0 - 4.0]]
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_output_and_gradients_are_those_of_the_dense_matrix(kind, shape, p, dtype):
    layer = adapted(kind, dtype, dropout=p)
    assert type(layer) is (LoraConv1D if kind == "conv1d" else LoraLinear)
    assert is_dense(layer, SHAPES[shape])
    assert is_dense(layer, SHAPES[shape], by_input=False)
    assert layer.weight.grad is None


def test_dropout_is_of_the_adapters_input_alone():
    layer = adapted("linear", dropout=0.4)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    base = F.linear(x, layer.weight, layer.bias)
    kept = gradients(layer, layer, x)[0]
    assert not torch.allclose(kept, layer.eval()(x))  # no dropout in evaluation
    nn.init.zeros_(layer.lora_B)
    assert torch.allclose(gradients(layer.train(), layer, x)[0], base, atol=1e-12)


def scale_forgotten(ctx, grad: torch.Tensor) -> tuple:
    """A mutation of backward: B's gradient without the scale."""
    found = list(BACKWARD(ctx, grad))
    found[5] = found[5] / ctx.scale
    return tuple(found)


def dropped_input_left_out(ctx, grad: torch.Tensor) -> tuple:
    """A mutation of backward: nothing flows back through the adapter's dropped input."""
    found = list(BACKWARD(ctx, grad))
    found[1] = None
    return tuple(found)


def whole_input_left_out(ctx, grad: torch.Tensor) -> tuple:
    """A mutation of backward: x gets the frozen product's gradient alone."""
    found = list(BACKWARD(ctx, grad))
    found[0] = (grad @ ctx.saved_tensors[2]).view(ctx.shape)
    return tuple(found)


BACKWARD = _LoraProduct.backward
MUTATIONS = {
    "scale": (scale_forgotten, (0.0, 0.4)),
    "dropped": (dropped_input_left_out, (0.4,)),
    "input": (whole_input_left_out, (0.0,)),
}


@pytest.mark.parametrize("harm", MUTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bite_is_dense(harm, shape, monkeypatch):
    mutation, rates = MUTATIONS[harm]
    for p in rates:
        layer = adapted("linear", torch.float32, dropout=p)
        assert is_dense(layer, SHAPES[shape])
        with monkeypatch.context() as patch:
            patch.setattr(_LoraProduct, "backward", staticmethod(mutation))
            assert not is_dense(layer, SHAPES[shape]), p


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_dropped", [True, False])
def test_gradcheck(with_bias, with_dropped):
    torch.manual_seed(0)
    x, dropped = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    a, b = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in ((2, 4), (5, 2)))
    inputs = (x, dropped if with_dropped else None, weight, bias if with_bias else None, a, b, 0.7)
    assert torch.autograd.gradcheck(_LoraProduct.apply, inputs)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_under_autocast_everything_is_bfloat16(base, p):
    layer = adapted("linear", torch.float32, dropout=p)
    layer.weight.data, layer.bias.data = layer.weight.bfloat16().to(base), layer.bias.bfloat16().to(base)
    x = torch.randn(2, 4, 6).bfloat16().float()

    def cast(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    half = gradients(layer, cast, x)
    assert [part.dtype for part in half] == [torch.bfloat16] + [torch.float32] * 3
    layer.weight.data, layer.bias.data = layer.weight.float(), layer.bias.float()
    whole = gradients(layer, layer, x)
    for a, b in zip(half, whole, strict=True):  # bfloat16 has 8 bits: each rounding is off by at most 2^-9
        assert float((a - b).norm() / b.norm()) < 0.02


def test_outside_of_autocast_the_wider_type_counts():
    layer = adapted("linear", torch.float32)
    layer.weight.data, layer.bias.data = layer.weight.bfloat16(), layer.bias.bfloat16()
    x = torch.randn(7, 6)
    assert layer(x.bfloat16()).dtype == torch.bfloat16  # float32 A and B do not widen the states
    assert layer(x).dtype == torch.float32


def test_scales():
    assert adapted("linear", rank=4, alpha=8.0).lora_scale == 2.0
    assert adapted("linear", rank=4, alpha=8.0, rslora=True).lora_scale == 4.0
    assert adapted("linear", rank=3, alpha=1.5, rslora=True).lora_scale == pytest.approx(1.5 / math.sqrt(3))
    assert frozen_dtype(torch.bfloat16) == torch.bfloat16
    assert frozen_dtype(torch.float16) == frozen_dtype(None) == torch.float32


def test_the_start_is_peft_s():
    """A uniform in +-1/sqrt(inputs), B zero, both in float32 beside a base of any type."""
    model = nn.Sequential(nn.Linear(400, 300, dtype=torch.bfloat16))
    add_lora(model, ["0"], rank=100, alpha=1.0)
    a, b = model[0].lora_A, model[0].lora_B
    assert 0.99 / 20 < a.max() <= 1 / 20
    assert -1 / 20 <= a.min() < -0.99 / 20
    assert a.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)
    assert not b.any()
    assert a.dtype == b.dtype == torch.float32


def test_a_rank_that_makes_nothing_smaller():
    assert adapted("linear", rank=5).lora_A.shape == (5, 6)
    for kind in LAYERS:
        with pytest.raises(UserError, match=r"--lora_rank 6: is larger than 0's smaller side \(5\)"):
            adapted(kind, rank=6)


def test_a_merged_bfloat16_weight_is_rounded_once():
    layer = adapted("linear", torch.float32)
    layer.weight.data = layer.weight.bfloat16()
    found = merged_state(nn.Sequential(layer))["0.weight"]
    assert torch.equal(found, (layer.weight.float() + lora_delta(layer)).bfloat16())
    conv = adapted("conv1d", torch.float32)
    assert torch.allclose(merged_state(nn.Sequential(conv))["0.weight"], conv.weight + lora_delta(conv))
