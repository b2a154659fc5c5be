"""archs/actor_critic.py: a ranker's own scores, and a value that reads the question and moves nothing but itself."""

import numpy as np
import pytest
import torch
from torch import nn

from archs.actor_critic import ActorCritic
from core.rank_batches import LAYOUTS
from tests.archs.test_ranker import DECODERS, PLACES, build, cut_of, distance, gradient, questions

F64 = torch.float64
WAYS = [(family, layout) for family in ("llama", "gemma2", "gpt2") for layout in LAYOUTS]
WAYS += [("bert", "packed"), ("bert", "padded")]


def critic(family: str, dtype=F64, has_value: bool = True, at_birth: bool = False, **options) -> ActorCritic:
    """A tiny ranker with a value head, of random weights where it is not at birth."""
    ranker = build(family, dtype, **options)
    torch.manual_seed(1)
    model = ActorCritic(ranker, has_value, family != "bert").to(dtype).eval()
    if has_value and not at_birth:
        nn.init.normal_(model.value[-1].weight)
        nn.init.normal_(model.value[-1].bias)
    return model


def values(model: ActorCritic, asked: list | None = None, layout: str = "shared", **more) -> torch.Tensor:
    return model(cut_of(asked or questions(), layout, **more))[1].detach()


def changed(ids: np.ndarray) -> np.ndarray:
    """Other tokens, everywhere."""
    return 5 + (ids - 4) % 35


# -- scores, and the start --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("family, layout", WAYS)
def test_scores_and_their_gradients_are_the_ranker_s_own(family, layout, dtype):
    cut, plain = cut_of(questions(), layout), build(family, dtype)
    wanted = plain(cut)
    slopes = gradient(plain, [wanted])
    for has_value in (False, True):
        model = critic(family, dtype, has_value)
        scores, found = model(cut)
        assert torch.equal(scores, wanted)  # bitwise
        assert torch.equal(gradient(model, [scores]), slopes)  # of the ranker's weights: others have none
        assert (found.shape, found.dtype, scores.shape) == ((4,), dtype, (4, PLACES))
        assert found.any() == has_value


@pytest.mark.parametrize("family, layout", WAYS)
def test_values_start_at_exactly_zero(family, layout):
    model = critic(family, torch.float32, at_birth=True)
    found = model(cut_of(questions(), layout))[1]
    assert not found.any()
    (found - 1).square().sum().backward()
    assert model.value[-1].weight.grad.any()  # and leave it


def test_it_stands_for_its_ranker():
    model = critic("llama", has_value=False)
    assert model.value is None
    assert model.inner is model.ranker.backbone
    assert model.num_layers == 2


@pytest.mark.parametrize("family, layout", WAYS)
def test_the_value_moves_no_weight_of_the_ranker(family, layout):
    model = critic(family)
    model(cut_of(questions(), layout))[1].sum().backward()
    assert all(param.grad is None for param in model.ranker.parameters())
    assert all(param.grad.any() for param in model.value.parameters())


@pytest.mark.parametrize("family, layout", WAYS)
def test_values_are_float32_under_autocast(family, layout):
    model = critic(family, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = model(cut_of(questions(), layout))
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    assert distance(found, values(model, layout=layout)) < 0.1


# -- a decoder's reads the prefix alone -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_the_value_of_a_decoder_is_that_of_the_prefix_in_the_plain_transformers_model(family, layout):
    model = critic(family)
    found = values(model, layout=layout)
    model.inner.set_attn_implementation("eager")
    for b, (prefix, _) in enumerate(questions()):
        states = model.inner(input_ids=torch.from_numpy(prefix)[None], use_cache=False).last_hidden_state
        torch.testing.assert_close(found[b], model.value(states[0, -1])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", DECODERS)
def test_all_layouts_and_any_neighbours_give_one_value(family):
    model, asked = critic(family), questions()
    wanted = torch.cat([values(model, [one], "padded") for one in asked])
    assert wanted.unique().numel() == len(asked)
    for layout in LAYOUTS:
        assert distance(values(model, layout=layout), wanted) <= 1e-12
        assert distance(values(model, asked[::-1], layout).flip(0), wanted) <= 1e-12
        assert distance(values(model, asked[1:3], layout), wanted[1:3]) <= 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_s_value_has_seen_no_candidate(family, layout):
    model, before = critic(family), values(critic(family), layout=layout)
    others = [(prefix, [*map(changed, own[::-1]), np.array([6, 7])]) for prefix, own in questions()]
    assert distance(values(model, others, layout), before) <= 1e-12
    for b, (prefix, own) in enumerate(questions()):
        asked = questions()
        asked[b] = (changed(prefix), own)
        moved = (values(model, asked, layout) - before).abs() > 1e-6
        assert moved.nonzero().flatten().tolist() == [b]


# -- an encoder's reads all candidates alike --------------------------------------------------------------------


def pooled(model: ActorCritic, row: np.ndarray, kind: str) -> torch.Tensor:
    """(D,): one row in the transformers model, pooled by hand."""
    states = model.inner(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0]
    parts = {"cls": [states[0]], "last": [states[-1]], "mean": [states.mean(dim=0)]}
    parts["mean_max"] = [states.mean(dim=0), states.max(dim=0).values]
    return torch.cat(parts[kind])


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "mean_max", "last"])
@torch.no_grad()
def test_the_value_of_an_encoder_is_that_of_the_mean_of_its_pooled_states(pooling, layout):
    """Questions of 3, 1, 5 and 2 candidates."""
    model = critic("bert", pooling=pooling)
    found = values(model, layout=layout)
    wanted = []
    for prefix, own in questions():
        states = [pooled(model, np.concatenate([prefix, ids]), pooling) for ids in own]
        wanted.append(model.value(sum(states) / len(own)))
    assert distance(found, torch.cat(wanted)) <= 1e-12


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_an_encoder_s_value_hangs_on_its_own_candidates_in_no_order(layout):
    model, before = critic("bert"), values(critic("bert"), layout=layout)
    turned = [(prefix, own[::-1]) for prefix, own in questions()]
    assert distance(values(model, turned, layout), before) <= 1e-12
    alone = torch.cat([values(model, [one], layout) for one in questions()])
    assert distance(alone, before) <= 1e-12
    for b, (prefix, own) in enumerate(questions()):
        for k in range(len(own)):
            asked = questions()
            asked[b] = (prefix, [changed(ids) if k == j else ids for j, ids in enumerate(own)])
            moved = (values(model, asked, layout) - before).abs() > 1e-6
            assert moved.nonzero().flatten().tolist() == [b]
