"""archs/pooling.py and archs/heads.py: against a slow loop over rows; padding never enters; shapes and counts."""

import math

import pytest
import torch
from torch import nn

from archs.dropout import Dropout, replace_dropout
from archs.heads import HEADS, ResidualBlock, make_head
from archs.pooling import POOLINGS, Pooling
from core.batches import Cut
from tests.helpers import cut_of

WIDTH, LENGTHS = 5, [7, 3, 1, 6]


def inputs(dtype=torch.float64, packed: bool = False) -> tuple[torch.Tensor, Cut]:
    """States of rows of 7, 3, 1 and 6 tokens, (4, 7, 5) or (1, 17, 5), and their cut."""
    states = torch.randn(4, 7, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )
    cut = cut_of([[1] * n for n in LENGTHS], packed)
    return (states[real_places()][None] if packed else states), cut


def real_places() -> torch.Tensor:
    """(4, 7) bool."""
    return torch.arange(7) < torch.tensor(LENGTHS)[:, None]


def pooling(kind: str, dtype=torch.float64) -> Pooling:
    torch.manual_seed(1)
    return Pooling(kind, WIDTH).to(dtype)


def slow(pool: Pooling, states: torch.Tensor) -> torch.Tensor:
    """The pooling of each row alone, without any padding, from its definition."""
    out = []
    for row, length in zip(states, LENGTHS):
        tokens = row[:length]
        mean = sum(tokens) / length
        if pool.kind == "cls":
            out.append(tokens[0])
        elif pool.kind == "last":
            out.append(tokens[-1])
        elif pool.kind == "mean":
            out.append(mean)
        elif pool.kind == "mean_max":
            most = torch.stack([max(tokens[:, d]) for d in range(WIDTH)])
            out.append(torch.cat([mean, most]))
        else:
            shares = [math.exp(pool.query(token).item()) for token in tokens]
            out.append(sum(share / sum(shares) * token for share, token in zip(shares, tokens)))
    return torch.stack(out)


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_against_a_slow_loop(kind, packed):
    pool = pooling(kind)
    found = pool(*inputs(packed=packed))
    assert found.shape == (4, pool.width)
    # attention: its softmax is float32 whatever the states are
    wanted = slow(pool, inputs()[0])
    torch.testing.assert_close(found, wanted, rtol=1e-6 if kind == "attention" else 1e-12, atol=0)


@pytest.mark.parametrize("kind", POOLINGS)
def test_the_same_gradients_packed(kind):
    pool, weights = pooling(kind), torch.randn(4, 1, generator=torch.Generator().manual_seed(2)).double()
    found = []
    for packed in (False, True):
        states, cut = inputs(packed=packed)
        leaf = states.requires_grad_()
        (pool(leaf, cut) * weights).square().sum().backward()
        found.append(leaf.grad[0] if packed else leaf.grad[real_places()])
    assert (found[0] - found[1]).norm() <= (1e-6 if kind == "attention" else 1e-12) * found[0].norm()


def ignores_padding(pool: nn.Module) -> bool:
    """Whether changing the padded states changes nothing, bitwise, and they get no gradient."""
    (states, cut), mask = inputs(), real_places()
    before = pool(states, cut)
    for value in (1e30, -1e30, 0.0):
        other = states.masked_fill(~mask[..., None], value)
        if not torch.equal(before, pool(other, cut)):
            return False
    leaf = states.clone().requires_grad_()
    pool(leaf, cut).square().sum().backward()
    return not leaf.grad[~mask].any() and bool(leaf.grad[mask].any())


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_never_enters(kind):
    assert ignores_padding(pooling(kind))


def test_bite_a_pooling_that_forgets_the_mask():
    class Forgetful(Pooling):
        def forward(self, states, cut):
            return super().forward(states, cut._replace(mask=None))

    for kind in ("mean", "mean_max", "attention", "last"):
        assert not ignores_padding(Forgetful(kind, WIDTH).double()), kind


@pytest.mark.parametrize("kind", POOLINGS)
def test_no_mask_is_a_mask_that_keeps_all(kind):
    states, cut = inputs()
    pool, whole = pooling(kind), cut._replace(mask=torch.ones(4, 7, dtype=torch.bool))
    assert torch.equal(pool(states, cut._replace(mask=None)), pool(states, whole))


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_the_same_in_any_batch(kind, packed):
    pool, states = pooling(kind), inputs()[0]
    together = pool(*inputs(packed=packed))
    for k, length in enumerate(LENGTHS):
        alone = pool(states[k : k + 1, :length], cut_of([[1] * length], packed))
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", POOLINGS)
def test_nothing_leaks_between_packed_neighbours(kind):
    states, cut = inputs(packed=True)
    pool = pooling(kind)
    before = pool(states, cut)
    for value in (1e30, -1e30):
        other = states.clone()
        other[:, 7:10] = value  # the second row
        after = pool(other, cut)
        assert torch.equal(before[[0, 2, 3]], after[[0, 2, 3]])
        assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_widths_and_types(kind, packed):
    pool = pooling(kind, torch.bfloat16)
    out = pool(*inputs(torch.bfloat16, packed))
    assert out.dtype == torch.bfloat16
    assert out.shape == (4, 2 * WIDTH if kind == "mean_max" else WIDTH)
    expected = WIDTH + 1 if kind == "attention" else 0
    assert sum(param.numel() for param in pool.parameters()) == expected


@pytest.mark.parametrize("packed", [False, True])
def test_a_mean_of_half_precision_states_is_summed_in_float32(packed):
    states = torch.full((1, 3000, 1), 1.01, dtype=torch.bfloat16)  # a bfloat16 sum stops growing at 256
    assert (
        pooling("mean", torch.bfloat16)(states, cut_of([[1] * 3000], packed)).item() == states[0, 0, 0].item()
    )


def test_an_unknown_pooling_or_head_is_refused():
    with pytest.raises(ValueError, match="pooling 'max': one of cls, mean"):
        Pooling("max", 4)
    with pytest.raises(ValueError, match="head 'big': one of linear, mlp, residual"):
        make_head("big", 4, 2, 0.1)


# -- heads: width 5, 3 classes ----------------------------------------------------------------------------------

COUNTS = {
    "linear": 5 * 3 + 3,
    "mlp": 5 * 5 + 5 + 5 * 3 + 3,
    "residual": 2 * 5 + 2 * (5 * 5 + 5) + 2 * 5 + 5 * 3 + 3,  # norm, up and down, norm, out
}


@pytest.mark.parametrize("kind", HEADS)
def test_head_shapes_and_counts(kind):
    head = make_head(kind, WIDTH, 3, 0.1)
    assert head(torch.randn(4, WIDTH)).shape == (4, 3)
    assert sum(param.numel() for param in head.parameters()) == COUNTS[kind]


@pytest.mark.parametrize("kind", HEADS)
def test_head_dropout(kind):
    head = make_head(kind, WIDTH, 3, 0.25)
    found = [module.p for module in head.modules() if isinstance(module, nn.Dropout)]
    assert found == [0.25] * (2 if kind == "mlp" else 1)
    replace_dropout(head)
    assert all(type(m) is Dropout for m in head.modules() if isinstance(m, nn.Dropout))
    x = torch.randn(4, WIDTH)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


def test_heads_by_formula():
    torch.manual_seed(0)
    x = torch.randn(4, WIDTH)
    linear = make_head("linear", WIDTH, 3, 0.5).eval()
    torch.testing.assert_close(linear(x), x @ linear[1].weight.T + linear[1].bias)
    mlp = make_head("mlp", WIDTH, 3, 0.5).eval()
    hidden = torch.tanh(x @ mlp[1].weight.T + mlp[1].bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp[4].weight.T + mlp[4].bias)
    block = ResidualBlock(WIDTH, 0.5).eval()
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    up = normed @ block.up.weight.T + block.up.bias
    gelu = 0.5 * up * (1 + torch.erf(up / 2**0.5))
    torch.testing.assert_close(block(x), x + gelu @ block.down.weight.T + block.down.bias)
