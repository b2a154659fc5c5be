"""archs/branching.py against one softmax over all tokens under core.branches.branch_mask; nothing leaks; it bites."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from archs import branching
from archs.attention import attention
from archs.branching import branched_attention
from core.branches import Trees, branch_mask, branch_row

quick = settings(max_examples=40, deadline=None, derandomize=True)
SCALE = 0.3
SIZES = {  # name: tokens of each row's prefix, and of its branches
    "one question": [(7, (3, 3, 3))],
    "uneven": [(7, (3, 1, 5))],
    "one candidate": [(4, (2,))],
    "one token": [(1, (1,))],
    "several": [(7, (3, 1, 5)), (2, (4, 4)), (12, (1,)), (1, (2, 6, 2, 1))],
    "an empty branch": [(5, (2, 0, 3)), (3, (1, 1))],
    "a prefix alone": [(5, ()), (3, (2, 1)), (4, (0,))],
    "several chunks": [(2 * branching.CHUNK + 44, (3, 1)), (branching.CHUNK, (2,))],
}
HEADS = {"heads": (4, 4), "grouped": (4, 2), "one key": (4, 1)}
KINDS = {  # name: (softcap, window)
    "plain": (None, None),
    "window": (None, 4),
    "near": (None, 1),
    "wide": (None, 10),
    "softcap": (1.5, None),
    "both": (1.5, 3),
}


def inputs(sizes, heads: str = "grouped", seed: int = 0, dtype=torch.float64) -> list[torch.Tensor]:
    """Query (1, H, N, D), key and value (1, G, N, D), with gradients."""
    num_tokens = sum(prefix + sum(branches) for prefix, branches in sizes)
    num_heads, groups = HEADS[heads]
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, n, num_tokens, 5) for n in (num_heads, groups, groups)]
    found = [2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in found]


def whole_mask(sizes, window: int | None) -> torch.Tensor:
    """(N, N) bool: each row's branch_mask, and nothing between rows."""
    masks = []
    for prefix, branches in sizes:
        _, place, branch = branch_row(np.arange(prefix), [range(size) for size in branches])
        masks.append(branch_mask(torch.from_numpy(branch), torch.from_numpy(place), window))
    return torch.block_diag(*masks)


def slow(query, key, value, sizes, softcap=None, window=None, mask=None) -> torch.Tensor:
    """(1, N, H, D): scores of every pair of tokens, then the mask, then one softmax."""
    each = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(each, dim=1), value.repeat_interleave(each, dim=1)
    scores = query @ key.transpose(2, 3) * SCALE
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    mask = whole_mask(sizes, window) if mask is None else mask
    return (scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value).transpose(1, 2)


def fast(query, key, value, sizes, softcap=None, window=None) -> torch.Tensor:
    return branched_attention(query, key, value, Trees(sizes), SCALE, softcap, window)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def both_ways(sizes, heads, softcap, window, dtype=torch.float64) -> tuple[float, float]:
    """The distances of the outputs, and of the gradients of query, key and value together."""
    parts = inputs(sizes, heads, dtype=dtype)
    outs = [f(*parts, sizes, softcap, window) for f in (fast, slow)]
    assert outs[0].shape == outs[1].shape
    upstream = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = [torch.autograd.grad((out * upstream.to(dtype)).sum(), parts) for out in outs]
    flat = [torch.cat([g.flatten() for g in grad]) for grad in grads]
    return distance(*outs), distance(*flat)


# -- the same as one softmax under the mask ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", SIZES)
def test_outputs_and_gradients_are_those_of_the_masked_softmax(name, heads, kind):
    assert max(both_ways(SIZES[name], heads, *KINDS[kind])) <= 1e-12


@pytest.mark.parametrize("kind", ["plain", "both"])
def test_in_float32(kind):
    assert max(both_ways(SIZES["several"], "grouped", *KINDS[kind], dtype=torch.float32)) <= 2e-6


TREES = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 5), max_size=5)), min_size=1, max_size=4
)


@quick
@given(TREES, st.sampled_from(list(HEADS)), st.none() | st.just(2.0), st.none() | st.integers(1, 12))
def test_whatever_the_trees_are(sizes, heads, softcap, window):
    assert max(both_ways(sizes, heads, softcap, window)) <= 1e-12


@pytest.mark.parametrize("kind", ["plain", "both"])
def test_gradcheck(kind):
    sizes, (softcap, window) = [(3, (2, 1)), (2, (1,))], KINDS[kind]
    assert torch.autograd.gradcheck(lambda q, k, v: fast(q, k, v, sizes, softcap, window), inputs(sizes))


def test_sixteen_bits():
    """Weights of bfloat16, and float32 under autocast: close to float64, and not it."""
    sizes = SIZES["several"]
    wanted = slow(*inputs(sizes), sizes)
    found = fast(*inputs(sizes, dtype=torch.bfloat16), sizes)
    assert found.dtype == torch.bfloat16
    assert 1e-6 < distance(found.double(), wanted) < 3e-2
    for dtype in (torch.float32, torch.bfloat16):  # a base in float32, and what its linear layers make of it
        parts, upstream = (
            inputs(sizes, dtype=dtype),
            torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64),
        )
        with torch.autocast("cpu", torch.bfloat16):  # around the backward pass too, as in the loop
            found = fast(*parts, sizes)
            grads = torch.autograd.grad((found * upstream.view_as(found).to(found.dtype)).sum(), parts)
        assert 1e-6 < distance(found.double(), wanted) < 3e-2
        slow_parts = inputs(sizes)
        slow_grads = torch.autograd.grad(
            (slow(*slow_parts, sizes) * upstream.view_as(wanted)).sum(), slow_parts
        )
        flat = [torch.cat([g.double().flatten() for g in each]) for each in (grads, slow_grads)]
        assert 1e-6 < distance(*flat) < 5e-2


def test_the_attention_function_takes_trees():
    sizes = SIZES["several"]
    parts, module = inputs(sizes), torch.nn.Module().train()
    window, softcap = 4, 1.5
    found, none = attention(
        module, *parts, None, SCALE, softcap=softcap, sliding_window=window, trees=Trees(sizes)
    )
    assert none is None
    assert distance(found, slow(*parts, sizes, softcap, window)) <= 1e-12
    with pytest.raises(ValueError, match="attention dropout: a prefix that is read once has no masks"):
        attention(module, *parts, None, SCALE, dropout=0.1, trees=Trees(sizes))
    attention(module.eval(), *parts, None, SCALE, dropout=0.1, trees=Trees(sizes))  # none when it is scored


# -- nothing leaks ----------------------------------------------------------------------------------------------


def tokens_of(sizes, row: int, part: int) -> slice:
    """Where the prefix (part 0) or a branch (part k + 1) of a row stands among the N."""
    start = sum(prefix + sum(branches) for prefix, branches in sizes[:row])
    lengths = [sizes[row][0], *sizes[row][1]]
    return slice(start + sum(lengths[:part]), start + sum(lengths[: part + 1]))


@pytest.mark.parametrize("kind", ["plain", "both"])
@pytest.mark.parametrize("row, part", [(0, 2), (0, 1), (1, 2), (2, 1), (3, 3), (1, 0), (3, 0)])
def test_other_tokens_change_nothing_elsewhere(row, part, kind):
    """A branch changes itself alone; a prefix its own row; bitwise."""
    sizes, (softcap, window) = SIZES["several"], KINDS[kind]
    parts, others = inputs(sizes), inputs(sizes, seed=5)
    before = fast(*parts, sizes, softcap, window)
    where, num_tokens = tokens_of(sizes, row, part), before.shape[1]
    changed = [x.detach().clone() for x in parts]
    for x, other in zip(changed, others):
        x[:, :, where] = other[:, :, where].detach()
    after = fast(*changed, sizes, softcap, window)
    own = set(range(num_tokens)[where])
    if part == 0:  # what is behind it may see it
        own = set(range(where.start, tokens_of(sizes, row, len(sizes[row][1])).stop))
    rest = [k for k in range(num_tokens) if k not in own]
    assert torch.equal(before[:, rest], after[:, rest])
    assert not torch.equal(before[:, where], after[:, where])


def test_no_gradient_flows_between_branches():
    """From one branch's output to its own keys and the prefix's, and to nothing else."""
    sizes = SIZES["several"]
    for row, part in ((0, 2), (1, 1), (3, 4)):
        parts = inputs(sizes)
        fast(*parts, sizes)[:, tokens_of(sizes, row, part)].sum().backward()
        reached = parts[2].grad.abs().sum(dim=(0, 1, 3)) > 0
        wanted = torch.zeros_like(reached)
        wanted[tokens_of(sizes, row, part)] = wanted[tokens_of(sizes, row, 0)] = True
        assert torch.equal(reached, wanted)


def test_the_order_of_branches_moves_their_outputs_alone():
    sizes, order = [(7, (3, 1, 5))], (2, 0, 1)
    other = [(7, tuple(sizes[0][1][k] for k in order))]
    places = [range(100)[tokens_of(sizes, 0, k)] for k in range(4)]
    index = [*places[0], *(place for k in order for place in places[k + 1])]
    parts = inputs(sizes)
    moved = fast(*(x[:, :, index] for x in parts), other, 1.5, 4)
    assert distance(moved, fast(*parts, sizes, 1.5, 4)[:, index]) <= 1e-14


# -- bite -------------------------------------------------------------------------------------------------------


def wrong_masks(sizes) -> dict[str, torch.Tensor]:
    """Masks that are almost right."""
    right, num_tokens = whole_mask(sizes, None), sum(prefix + sum(branches) for prefix, branches in sizes)
    index = torch.arange(num_tokens)
    leak = right.clone()
    leak[tokens_of(sizes, 0, 2), tokens_of(sizes, 0, 1)] = True  # a branch sees the one before it
    last = right.clone()
    last[tokens_of(sizes, 0, 1).start, sizes[0][0] - 1] = False  # a token does not see the prefix's last
    ahead = right.clone()
    ahead[tokens_of(sizes, 0, 1), tokens_of(sizes, 0, 1)] = True  # a branch sees what comes
    rows = right.clone()
    rows[tokens_of(sizes, 1, 0), tokens_of(sizes, 0, 0)] = True  # a row sees the one before it
    return {"leak": leak, "last": last, "ahead": ahead, "rows": rows, "causal": index[:, None] >= index}


@pytest.mark.parametrize("name", ["leak", "last", "ahead", "rows", "causal"])
def test_bite_a_wrong_mask_is_another_result(name):
    sizes = SIZES["several"]
    parts = inputs(sizes)
    wrong = slow(*parts, sizes, mask=wrong_masks(sizes)[name])
    assert distance(fast(*parts, sizes), slow(*parts, sizes)) <= 1e-12
    assert distance(fast(*parts, sizes), wrong) > 1e-3


HARM = {
    "every branch sees what comes": ("near_mask", lambda n, causal, window, device: torch.ones(n, n).bool()),
    "no softcap": ("capped", lambda scores, softcap: scores),
    "branches read where they do not stand": ("padded", lambda x, tree: padded(x, tree).flip(2)),
}
padded = branching.padded


@pytest.mark.parametrize("name", HARM)
def test_bite_the_code(name, monkeypatch):
    monkeypatch.setattr(branching, *HARM[name])
    assert both_ways(SIZES["several"], "grouped", 1.5, 3)[0] > 1e-3


@pytest.mark.parametrize("window", [1, 2, 4])
def test_bite_a_window_that_is_one_off(window):
    sizes = SIZES["several"]
    parts = inputs(sizes)
    for other in (window + 1, None if window == 1 else window - 1):
        assert distance(fast(*parts, sizes, None, window), slow(*parts, sizes, None, other)) > 1e-3


# -- what it costs ----------------------------------------------------------------------------------------------


def test_trees_by_hand():
    trees = Trees([(7, (3, 1, 0, 2)), (2, (4, 4)), (5, ())])
    first, second, third = trees.rows
    assert first[:4] == (7, 3, 3, 6)
    assert first.places.tolist() == [0, 1, 2, 3, 6, 7]  # into 3 x 3
    assert (second[:4], second.places) == ((2, 2, 4, 8), None)
    assert (third[:4], third.places) == ((5, 0, 0, 0), None)
    assert trees.splits == [7, 6, 2, 8, 5, 0]
    assert trees.pin_memory() is trees
    assert trees.to(torch.device("cpu")) is trees


def test_a_prefix_is_read_once():
    """Scores of P x P and K S x (P + S) pairs, not of K (P + S)^2: counted in the multiplications."""
    prefix, count, size = 96, 8, 4
    sizes = [(prefix, (size,) * count)]
    parts = inputs(sizes, "heads")
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        fast(*parts, sizes, softcap=50.0)  # explicit, so that all products are counted
    pairs = prefix**2 + count * size * (prefix + size)
    width, num_heads = parts[0].shape[-1], parts[0].shape[1]
    assert counter.get_total_flops() == 2 * 2 * pairs * width * num_heads
    assert math.isclose(pairs / (count * (prefix + size) ** 2), 0.155, abs_tol=1e-3)
