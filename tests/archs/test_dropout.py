"""archs/dropout.py: the keep share, the scale, the gradient, and that no two masks hang together."""

import pytest
import torch
from torch import nn

from archs.dropout import Dropout, dropout, replace_dropout

N = 200_000


def kept(p: float, size: int = N, seed: int = 0, function=dropout) -> torch.Tensor:
    """Which elements of a row of ones survive, as 0.0 and 1.0."""
    torch.manual_seed(seed)
    return (function(torch.ones(size), p, True) != 0).double()


def share_is_right(keep: torch.Tensor, p: float) -> bool:
    """Within four standard errors of 1 - p."""
    return abs(keep.mean().item() - (1 - p)) < 4 * (p * (1 - p) / keep.numel()) ** 0.5


@pytest.mark.parametrize("p", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99])
def test_the_share_kept(p):
    assert share_is_right(kept(p), p)
    assert not share_is_right(kept(p), p + 0.008)  # bite: a neighbouring probability is told apart
    assert not share_is_right(kept(p + 0.008), p)


@pytest.mark.parametrize(
    "p, dropped", [(0.1, 6554), (0.5, 32768), (0.25, 16384), (1e-9, 0), (0.999999, 65535)]
)
def test_the_scale_is_that_of_the_rounded_probability(p, dropped):
    torch.manual_seed(0)
    out = dropout(torch.ones(N), p, True)
    values = set(out.unique().tolist())
    scale = torch.tensor(65536 / (65536 - dropped)).item()
    assert values <= {0.0, scale}
    assert scale in values or dropped == 65535  # where three elements of 200,000 are expected to survive
    if p == 1e-9:  # rounds to no dropout at all
        assert values == {1.0}


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1023])
def test_sizes_that_no_64_bit_draw_divides(size):
    out = dropout(torch.ones(size), 0.5, True)
    assert out.shape == (size,)
    assert ((out == 0) | (out == 2)).all()


def test_an_empty_tensor():
    assert dropout(torch.ones(0, 4), 0.5, True).shape == (0, 4)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_neighbours_are_not_correlated(p):
    """At distances 1 to 8 (four 16-bit numbers come out of one draw) and across two seeds."""
    keep = (kept(p) - (1 - p)) / (p * (1 - p)) ** 0.5
    bound = 4 / N**0.5
    for distance in range(1, 9):
        assert (keep[:-distance] * keep[distance:]).mean().abs() < bound, distance
    other = (kept(p, seed=1) - (1 - p)) / (p * (1 - p)) ** 0.5
    assert (keep * other).mean().abs() < bound
    for lane in range(4):  # each of the four numbers keeps its share
        assert share_is_right(kept(p)[lane::4], p)
    # bite: the same bits used for two neighbours
    twice = keep[::2].repeat_interleave(2)
    assert (twice[:-1] * twice[1:]).mean().abs() > bound


def test_seeded_draws_repeat():
    assert torch.equal(kept(0.3), kept(0.3))
    assert not torch.equal(kept(0.3), kept(0.3, seed=1))
    torch.manual_seed(0)
    first, second = (dropout(torch.ones(1000), 0.5, True) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_is_the_mask_times_the_scale(p, dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 7, 5, dtype=dtype, requires_grad=True)
    out = dropout(x, p, True)
    assert out.dtype == dtype
    mask = (out.detach() != 0).to(dtype)
    scale = 65536 / (65536 - round(p * 65536))
    assert torch.equal(out.detach(), x.detach() * mask * scale)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert torch.equal(x.grad, grad * mask * scale)


def test_a_tensor_that_is_not_contiguous():
    x = torch.randn(4, 6, dtype=torch.float64).T
    out = dropout(x, 0.5, True)
    assert ((out == 0) | (out == 2 * x)).all()
    assert torch.autograd.gradcheck(
        lambda y: seeded(y.T), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    )


def seeded(x: torch.Tensor) -> torch.Tensor:
    """The same mask at each call."""
    torch.manual_seed(3)
    return dropout(x, 0.4, True)


def test_it_changes_nothing_in_evaluation_or_at_zero():
    x = torch.randn(5, 5)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert torch.equal(dropout(x, 1.0, True), torch.zeros(5, 5))
    module = Dropout(0.5).eval()
    assert module(x) is x


def test_gradient_checkpointing_draws_the_same_mask_again():
    x = torch.randn(50, requires_grad=True)
    torch.manual_seed(0)
    out = torch.utils.checkpoint.checkpoint(lambda y: dropout(y, 0.5, True).square(), x, use_reentrant=False)
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)


def test_replace_dropout():
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.3), nn.ModuleDict({"deep": nn.Dropout(0.7)}), nn.Dropout1d(0.2)
    )
    model.eval()
    replace_dropout(model)
    replace_dropout(model)  # a second time changes nothing
    assert [type(module) for module in (model[1], model[2]["deep"])] == [Dropout, Dropout]
    assert [model[1].p, model[2]["deep"].p] == [0.3, 0.7]
    assert type(model[3]) is nn.Dropout1d  # another kind of dropout stays what it is
    assert not model[1].training
    assert isinstance(model[1], nn.Dropout)
