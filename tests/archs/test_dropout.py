"""archs/dropout.py as a function: the keep share, the scale, the gradient, what it leaves alone."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from archs.dropout import MASKS, Dropout, dropout, replace_dropout, same_masks_again

ROWS, WIDTH = 400, 500
N = ROWS * WIDTH


def name_rows(num_rows: int, num_tokens: int = 1, seed: int = 0) -> None:
    """As the loop and the model do before a forward pass in training."""
    MASKS.begin_step(seed)
    MASKS.begin_cut(torch.arange(num_rows), None, torch.arange(num_tokens))


def kept(p: float, seed: int = 0) -> torch.Tensor:
    """Which elements of 400 vectors of ones survive, as 0.0 and 1.0, flat."""
    name_rows(ROWS, seed=seed)
    return (dropout(torch.ones(ROWS, WIDTH), p, True) != 0).double().flatten()


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
    name_rows(ROWS)
    out = dropout(torch.ones(ROWS, WIDTH), p, True)
    values = set(out.unique().tolist())
    scale = torch.tensor(65536 / (65536 - dropped)).item()
    assert values <= {0.0, scale}
    assert scale in values or dropped == 65535  # where three elements of 200,000 are expected to survive
    if p == 1e-9:  # rounds to no dropout at all
        assert values == {1.0}


@pytest.mark.parametrize("width", [1, 3, 4, 5, 1023, 9001])
def test_widths_that_no_pair_of_16_bit_numbers_divides(width):
    name_rows(3)
    out = dropout(torch.ones(3, width), 0.5, True)
    assert out.shape == (3, width)
    assert ((out == 0) | (out == 2)).all()
    # an odd width is an even one less its last column
    name_rows(3)
    assert torch.equal(dropout(torch.ones(3, width + 1), 0.5, True)[:, :width], out)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_neighbours_are_not_correlated(p):
    """At distances 1 to 8 (two 16-bit numbers come out of one hash) and across two seeds."""
    keep = (kept(p) - (1 - p)) / (p * (1 - p)) ** 0.5
    bound = 4 / N**0.5
    for distance in range(1, 9):
        assert (keep[:-distance] * keep[distance:]).mean().abs() < bound, distance
    other = (kept(p, seed=1) - (1 - p)) / (p * (1 - p)) ** 0.5
    assert (keep * other).mean().abs() < bound
    for lane in range(4):  # each half of a hash keeps its share
        assert share_is_right(kept(p)[lane::4], p)
    # bite: the same bits used for two neighbours
    twice = keep[::2].repeat_interleave(2)
    assert (twice[:-1] * twice[1:]).mean().abs() > bound


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_gradient_is_the_mask_times_the_scale(p, dtype):
    name_rows(6, 7)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_that_is_not_contiguous(dtype):
    name_rows(6)
    x = torch.randn(4, 6, dtype=dtype).T
    out = dropout(x, 0.5, True)
    assert ((out == 0) | (out == 2 * x)).all()
    assert 0 < (out == 0).sum() < 24
    name_rows(6)
    assert torch.equal(dropout(x.contiguous(), 0.5, True), out)


def test_gradcheck():
    def same(x: torch.Tensor) -> torch.Tensor:
        name_rows(6)
        return dropout(x.T, 0.4, True)

    assert torch.autograd.gradcheck(same, torch.randn(4, 6, dtype=torch.float64, requires_grad=True))


def test_it_changes_nothing_in_evaluation_or_at_zero():
    name_rows(5)
    x = torch.randn(5, 5)
    assert dropout(x, 0.5, False) is x
    assert dropout(x, 0.0, True) is x
    assert torch.equal(dropout(x, 1.0, True), torch.zeros(5, 5))
    module = Dropout(0.5).eval()
    assert module(x) is x


@pytest.mark.parametrize("shape", [(50,), (7, 50), (2, 3, 4, 5, 6), (0, 4)])
def test_what_is_no_vector_a_row_is_dropped_by_torch(shape):
    name_rows(2, 9)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(dropout(torch.ones(shape), 0.5, True))
    torch.manual_seed(0)
    assert torch.equal(found[0], nn.functional.dropout(torch.ones(shape), 0.5))
    assert torch.equal(found[0], found[1])
    assert found[0].shape == shape
    assert not torch.equal(found[0], found[2]) or 0 in shape


# -- gradient checkpointing -------------------------------------------------------------------------------------


def gradient(x: torch.Tensor, **how) -> torch.Tensor:
    """Of two dropouts after one that is not computed again; with arguments, they are."""

    def inner(y: torch.Tensor) -> torch.Tensor:
        return dropout(dropout(y, 0.5, True).square(), 0.3, True).sin()

    leaf = x.clone().requires_grad_()
    name_rows(50)
    y = dropout(leaf, 0.2, True)
    for _ in range(2):
        y = checkpoint(inner, y, use_reentrant=False, **how) if how else inner(y)
    dropout(y, 0.2, True).sum().backward()
    return leaf.grad


def test_gradient_checkpointing_takes_the_same_masks_again():
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    expected = gradient(x)
    assert torch.equal(gradient(x, context_fn=same_masks_again), expected)
    # bite: layers that are counted on in the second pass get other masks
    assert not torch.equal(gradient(x, preserve_rng_state=True), expected)


# -- modules ----------------------------------------------------------------------------------------------------


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
