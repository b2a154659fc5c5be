"""archs/attention.py: the same states and gradients as transformers' own implementations, on padded rows."""

import copy
import types

import pytest
import torch
from transformers import AutoModel

from archs.attention import NAME, attention, padding_mask
from archs.dropout import MASKS
from archs.probes import set_attention
from core.errors import UserError
from tests.conftest import tiny_config

OURS = ("bert", "roberta", "distilbert", "modernbert", "electra", "albert")
THEIR_OWN = (
    "mpnet",
    "deberta-v2",
)  # relative positions inside their attention: a registered function is not called
LENGTHS = [24, 17, 5, 1]  # ModernBERT's window of the tiny model is 4 to each side


def tiny(family: str, implementation: str = "eager", **changes):
    """A random backbone in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config(family, **changes), attn_implementation=implementation)
    return model.eval()


def inputs(family: str) -> dict[str, torch.Tensor]:
    """Ids and the boolean mask of four rows of up to 24 tokens."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, 40, mask.shape, generator=torch.Generator().manual_seed(1))
    pad = 1 if family in ("roberta", "mpnet") else 0
    return {"input_ids": ids.masked_fill(~mask, pad), "attention_mask": mask}


def states(model, batch: dict) -> torch.Tensor:
    """The last states at the real places."""
    found = model(**batch).last_hidden_state
    return found if batch["attention_mask"] is None else found[batch["attention_mask"]]


def with_ours(model):
    """A copy of the model that runs our attention."""
    model = copy.deepcopy(model)
    set_attention(model, "auto")
    return model


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_the_same_states_as_theirs(family, implementation):
    theirs = tiny(family, implementation)
    ours = with_ours(theirs)
    assert ours.config._attn_implementation == NAME
    batch = inputs(family)
    assert is_close(states(ours, batch), states(theirs, batch))
    # no mask: nothing is padded; ModernBERT's window stays
    whole = {"input_ids": batch["input_ids"][:1], "attention_mask": None}
    assert is_close(states(ours, whole), states(theirs, whole))
    # bite: an attention that ignores the mask is not the same
    blind = {"input_ids": batch["input_ids"], "attention_mask": None}
    assert not is_close(states(ours, blind)[batch["attention_mask"]], states(theirs, batch))


@torch.no_grad()
def test_the_sliding_window_is_not_forgotten():
    batch = inputs("modernbert")
    local, wide = tiny("modernbert"), tiny("modernbert", local_attention=60)
    assert is_close(states(with_ours(wide), batch), states(wide, batch))
    assert not is_close(states(with_ours(local), batch), states(wide, batch))


def name_rows(num_rows: int, num_tokens: int) -> None:
    """As a model does before a forward pass in training."""
    MASKS.begin_cut(torch.arange(num_rows), None, torch.arange(num_tokens))


def gradients(model, batch: dict) -> torch.Tensor:
    """All gradients of a sum over real places, as one vector, in training mode."""
    model.train().zero_grad()
    name_rows(*batch["input_ids"].shape)
    states(model, batch).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", OURS)
@pytest.mark.parametrize("p", [0.0, 1e-9])  # 1e-9 rounds to no dropout, but takes the explicit product
def test_the_same_gradients_in_training(family, p):
    names = [name for name in vars(tiny_config(family)) if "dropout" in name and "classifier" not in name]
    theirs = tiny(family, **dict.fromkeys(names, 0.0))
    ours = tiny(family, **dict.fromkeys(names, p))
    ours.load_state_dict(theirs.state_dict())
    set_attention(ours, "auto")
    assert ours.config._attn_implementation == NAME
    batch = inputs(family)
    torch.manual_seed(0)
    one, other = gradients(theirs, batch), gradients(ours, batch)
    assert other.isfinite().all()
    assert (one - other).norm() / one.norm() < 2e-6


@pytest.mark.parametrize("family", THEIR_OWN)
@torch.no_grad()
def test_models_that_compute_otherwise_keep_their_own(family):
    model = tiny(family)
    batch = inputs(family)
    before = states(model, batch)
    own = model.config._attn_implementation
    set_attention(model, "auto")
    assert model.config._attn_implementation == own
    assert torch.equal(states(model, batch), before)


@torch.no_grad()
def test_a_wrong_attention_is_caught_by_the_probe(monkeypatch):
    """Bite: set_attention keeps the model's own where ours would compute something else."""
    from transformers import AttentionInterface

    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        NAME,
        lambda *args, **kw: attention(*args, **(kw | {"scaling": 0.1})),
    )
    model = tiny("bert")
    set_attention(model, "auto")
    assert model.config._attn_implementation == "eager"


def test_the_mode_and_generator_are_left_alone():
    model = tiny("bert").train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    set_attention(model, "auto")
    assert model.training
    assert torch.equal(torch.rand(3), expected)  # the probe draws nothing


def test_attention_can_be_named():
    model = tiny("bert")
    set_attention(model, "sdpa")
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="--attention blitz: "):
        set_attention(model, "blitz")


# -- the function alone -----------------------------------------------------------------------------------------


def slow(query, key, value, mask, scaling, softcap) -> torch.Tensor:
    """(B, T, H, D): one query after the other, from the formula."""
    num_rows, num_heads, length, width = query.shape
    out = torch.zeros(num_rows, length, num_heads, width, dtype=query.dtype)
    share = num_heads // key.shape[1]
    for b in range(num_rows):
        for h in range(num_heads):
            for t in range(length):
                scores = torch.stack([query[b, h, t] @ k * scaling for k in key[b, h // share]])
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                keep = mask[b, 0, t]
                weights = torch.where(keep, scores.exp(), 0.0)
                out[b, t, h] = weights / weights.sum() @ value[b, h // share]
    return out


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("num_groups", [4, 2, 1])
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("training", [False, True])
def test_grouped_heads_and_softcap_against_a_slow_formula(softcap, num_groups, scaling, training):
    torch.manual_seed(0)
    query = torch.randn(2, 4, 6, 3, dtype=torch.float64)
    key, value = (torch.randn(2, num_groups, 6, 3, dtype=torch.float64) for _ in range(2))
    mask = (torch.arange(6) < torch.tensor([[6], [4]]))[:, None, None].expand(2, 1, 6, 6)
    module = types.SimpleNamespace(training=training)
    dropout = 1e-9 if training else 0.5  # in training the explicit product, without anything dropped
    expected = slow(query, key, value, mask, 3**-0.5 if scaling is None else scaling, softcap)
    name_rows(2, 6)
    for form in (mask, torch.zeros(2, 1, 6, 6, dtype=torch.float64).masked_fill(~mask, -1e300)):
        found, weights = attention(module, query, key, value, form, scaling, dropout, softcap=softcap)
        assert weights is None
        assert found.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_dropout_drops_whole_weights_in_training_only():
    torch.manual_seed(0)
    query, key = (torch.randn(1, 1, 40, 4) for _ in range(2))
    value = torch.eye(40)[None, None]  # the output is the attention weights themselves
    weights, _ = attention(types.SimpleNamespace(training=False), query, key, value, None, dropout=0.25)
    name_rows(1, 40)
    dropped, _ = attention(types.SimpleNamespace(training=True), query, key, value, None, dropout=0.25)
    keep = dropped != 0
    # 1600 weights: the standard error of the share is 0.011
    assert abs(keep.float().mean().item() - 0.75) < 0.045
    torch.testing.assert_close(dropped, weights * keep / 0.75, rtol=1e-5, atol=1e-7)


def test_no_mask_is_built_where_none_was_given():
    size = {"batch_size": 2, "q_length": 6, "kv_length": 6, "allow_is_bidirectional_skip": True}
    both = lambda b, h, q, k: k >= 0  # noqa: E731
    assert padding_mask(None, mask_function=both, **size) is None
    # a mask that keeps all is still built: to find out would be a host wait
    mask = padding_mask(torch.ones(2, 6, dtype=torch.bool), mask_function=both, **size)
    assert mask.shape == (2, 1, 6, 6)
    assert mask.all()
    # a causal one neither: the function itself then shows no token what comes after it (next test)
    causal = lambda b, h, q, k: k <= q  # noqa: E731
    assert padding_mask(None, mask_function=causal, **(size | {"allow_is_bidirectional_skip": False})) is None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 99])
def test_without_a_mask_causality_and_window_are_kept(training, causal, window):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 6, 3, dtype=torch.float64) for _ in range(3))
    seen = [
        [(k <= q or not causal) and (window is None or abs(q - k) < window) for k in range(6)]
        for q in range(6)
    ]
    expected = slow(query, key, value, torch.tensor(seen).expand(2, 1, 6, 6), 3**-0.5, None)
    name_rows(2, 6)
    module = types.SimpleNamespace(training=training, is_causal=causal)
    found, _ = attention(module, query, key, value, None, dropout=1e-9, sliding_window=window)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    # what the caller says goes before what the module says
    other = types.SimpleNamespace(training=training, is_causal=not causal)
    again, _ = attention(
        other, query, key, value, None, dropout=1e-9, is_causal=causal, sliding_window=window
    )
    assert torch.equal(found, again)
