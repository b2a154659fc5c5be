"""archs/attention.py on packed cuts: blocks against one row after another, forward and backward, in float64."""

import types

import numpy as np
import pytest
import torch

from archs.attention import attention, block_attention, flash_attention
from archs.dropout import MASKS
from core.packing import Blocks

LENGTHS = [3, 11, 8, 1, 16, 40]  # two blocks: one row that fills its width 40, and five of width 16, padded
HEADS, WIDTH = 4, 3
ORDER = torch.tensor([2, 0, 3, 5, 1, 4])  # the rows' numbers in their file


def inputs(lengths=LENGTHS, num_groups: int = HEADS, dtype=torch.float64) -> list[torch.Tensor]:
    """query (1, 4, N, 3), key and value (1, groups, N, 3), and a gradient (1, N, 4, 3) of the output."""
    generator, tokens = torch.Generator().manual_seed(0), sum(lengths)
    shapes = [(1, HEADS, tokens, WIDTH), *[(1, num_groups, tokens, WIDTH)] * 2, (1, tokens, HEADS, WIDTH)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def one_by_one(query, key, value, lengths, scaling, causal, softcap, window) -> torch.Tensor:
    """(1, N, H, D): the softmax of each row alone, from the formula."""
    share, out = query.shape[1] // key.shape[1], []
    key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
    for start, length in zip(np.cumsum([0, *lengths]), lengths):
        q, k, v = (x[0, :, start : start + length] for x in (query, key, value))
        scores = q @ k.transpose(1, 2) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        ahead = torch.arange(length)[:, None] - torch.arange(length)
        seen = torch.ones(length, length, dtype=torch.bool)
        seen = seen & (ahead >= 0) if causal else seen
        seen = seen & (ahead.abs() < window) if window is not None else seen
        out.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
    return torch.cat(out, dim=1).transpose(0, 1)[None]


def with_gradients(function, leaves: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of query, key and value."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    out = function(*leaves)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in leaves)]


def packed(query, key, value, lengths=LENGTHS, training=False, dropout=0.0, **how) -> torch.Tensor:
    """(1, N, H, D) by the function that the models call."""
    module = types.SimpleNamespace(training=training)
    starts = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    blocks = Blocks(np.array(lengths))
    return attention(
        module, query, key, value, None, dropout=dropout, cu_seqlens=starts, max_seqlen=max(lengths),
        blocks=blocks, **how,
    )[0]  # fmt: skip


def worst(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest of the relative distances of output and gradients."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("num_groups", [4, 2, 1])
def test_blocks_against_one_row_after_another(causal, window, softcap, num_groups):
    *leaves, grad = inputs(num_groups=num_groups)
    how = {"softcap": softcap, "scaling": 0.7}
    found = with_gradients(
        lambda *x: packed(*x, is_causal=causal, sliding_window=window, **how), leaves, grad
    )
    wanted = with_gradients(lambda *x: one_by_one(*x, LENGTHS, 0.7, causal, softcap, window), leaves, grad)
    assert worst(found, wanted) < 1e-13


def test_scaling_and_causality_of_the_module():
    *leaves, _ = inputs()
    plain = one_by_one(*leaves, LENGTHS, WIDTH**-0.5, False, None, None)
    causal = one_by_one(*leaves, LENGTHS, WIDTH**-0.5, True, None, None)
    torch.testing.assert_close(packed(*leaves), plain, rtol=1e-12, atol=1e-13)
    for is_causal, wanted in ((True, causal), (False, plain)):
        blocks, module = Blocks(np.array(LENGTHS)), types.SimpleNamespace(training=False, is_causal=is_causal)
        found, _ = attention(module, *leaves, None, cu_seqlens=torch.zeros(1), blocks=blocks)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 0, 4, 2, 1]])
def test_the_order_of_the_rows_does_not_matter(order):
    *leaves, _ = inputs()
    places = torch.arange(sum(LENGTHS)).split(LENGTHS)
    shuffled = torch.cat([places[k] for k in order])
    again = packed(*(x[:, :, shuffled] for x in leaves), lengths=[LENGTHS[k] for k in order])
    torch.testing.assert_close(again, packed(*leaves)[:, shuffled], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("causal, softcap, window", [(False, None, None), (True, 2.0, 2)])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_gradcheck(causal, softcap, window, p):
    lengths, generator = np.array([2, 1, 9]), torch.Generator().manual_seed(0)

    def function(*leaves: torch.Tensor) -> torch.Tensor:
        MASKS.begin_cut(torch.arange(3), None, torch.arange(9))
        return block_attention(*leaves, Blocks(lengths), 0.5, p, causal, softcap, window)

    leaves = [torch.randn(1, 2, 12, 2, dtype=torch.float64, generator=generator) for _ in range(3)]
    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in leaves])


def test_only_what_is_asked_for_gets_a_gradient():
    query, key, value, grad = inputs()
    value.requires_grad_()
    packed(query, key, value).backward(grad)
    wanted = with_gradients(packed, [query, key, value.detach()], grad)
    assert torch.equal(value.grad, wanted[3])
    assert query.grad is None


# -- bite -------------------------------------------------------------------------------------------------------


def test_bite_gradients_of_padded_places(monkeypatch):
    """Padding repeats a row's last token; without its gradient set to zero that token would count several times."""
    *leaves, grad = inputs()
    wanted = with_gradients(lambda *x: one_by_one(*x, LENGTHS, WIDTH**-0.5, False, None, None), leaves, grad)
    by_head = Blocks.by_head
    monkeypatch.setattr(Blocks, "by_head", lambda self, heads: (*by_head(self, heads)[:2], None))
    found = with_gradients(packed, leaves, grad)
    assert worst(found[:1], wanted[:1]) < 1e-13  # the scores do not show it
    assert worst(found, wanted) > 0.1


@pytest.mark.parametrize("harm", ["no bias", "neighbours"])
def test_bite_rows_that_see_padding_or_each_other(monkeypatch, harm):
    *leaves, grad = inputs()
    wanted = with_gradients(lambda *x: one_by_one(*x, LENGTHS, WIDTH**-0.5, False, None, None), leaves, grad)
    if harm == "no bias":
        monkeypatch.setattr(Blocks, "_bias", lambda self, *args: None)
        found = with_gradients(packed, leaves, grad)
    else:
        found = with_gradients(lambda *x: packed(*x, lengths=[14, 8, 1, 16, 40]), leaves, grad)
    assert worst(found, wanted) > 0.01


# -- dropout ----------------------------------------------------------------------------------------------------


def padded_rows(x: torch.Tensor) -> torch.Tensor:
    """(1, H, N, D) to (B, H, T, D)."""
    rows = x[0].transpose(0, 1).split(LENGTHS)  # (n, H, D) each
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).transpose(1, 2)


def with_padding(query, key, value, dropout: float, **how) -> torch.Tensor:
    """(1, N, H, D) by the same function on padded rows."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    module = types.SimpleNamespace(training=True)
    rows = [padded_rows(x) for x in (query, key, value)]
    return attention(module, *rows, mask[:, None, None], dropout=dropout, **how)[0][mask][None]


def name_rows(order: torch.Tensor = ORDER) -> None:
    MASKS.begin_step(3)
    MASKS.begin_cut(order, None, torch.arange(max(LENGTHS)))


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_packed_and_padded_rows_drop_the_same_weights(p, softcap):
    *leaves, grad = inputs()
    name_rows()
    found = with_gradients(lambda *x: packed(*x, training=True, dropout=p, softcap=softcap), leaves, grad)
    name_rows()
    wanted = with_gradients(lambda *x: with_padding(*x, p, softcap=softcap), leaves, grad)
    assert worst(found, wanted) < 1e-13
    # bite: rows of other numbers, the next layer, and no dropout are something else
    with_another = with_gradients(
        lambda *x: packed(*x, training=True, dropout=p, softcap=softcap), leaves, grad
    )
    assert worst(with_another, wanted) > 0.1
    name_rows(ORDER + 1)
    assert worst(with_gradients(lambda *x: packed(*x, training=True, dropout=p), leaves, grad), wanted) > 0.1
    assert worst(with_gradients(lambda *x: packed(*x, training=False, dropout=p), leaves, grad), wanted) > 0.1


def test_bfloat16_drops_what_float32_drops():
    """bfloat16 has 8 bits: each of the few roundings is 2^-9 at most."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        *leaves, grad = inputs(dtype=dtype)
        name_rows()
        outs = with_gradients(lambda *x: packed(*x, training=True, dropout=0.3), leaves, grad)
        assert {x.dtype for x in outs} == {dtype}
        found.append([x.float() for x in outs])
    assert worst(found[1], found[0]) < 8 * 2**-9


@pytest.mark.parametrize("name", ["query", "key"])
def test_what_rotary_embeddings_leave_in_float32_is_cast(name):
    parts = dict(zip(("query", "key", "value"), inputs(dtype=torch.bfloat16)))
    parts[name] = parts[name].float()
    parts["query" if name == "key" else "key"] = parts["query" if name == "key" else "key"].float()
    assert packed(**parts).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_the_flash_kernels_take_the_arguments(p, causal, window):
    """On meta tensors, which have shapes and no numbers: those are compared on CUDA."""
    query, key, value, _ = (x.to("meta", torch.bfloat16) for x in inputs(num_groups=2))
    starts = torch.empty(len(LENGTHS) + 1, dtype=torch.int32, device="meta")
    found = flash_attention(query, key, value, starts, max(LENGTHS), 0.5, p, causal, window)
    assert found.shape == (1, sum(LENGTHS), HEADS, WIDTH)
    assert found.dtype == torch.bfloat16


def test_a_softcap_that_the_flash_kernels_lack_is_refused():
    module = types.SimpleNamespace(training=False)
    with pytest.raises(ValueError, match="softcap: torch's flash attention has none"):
        attention(module, *inputs()[:3], None, softcap=2.0, cu_seqlens=torch.zeros(2), max_seqlen=79)
