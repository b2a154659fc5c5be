"""Packed cuts through whole models: the scores that each row gets alone, and nothing from its neighbours."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AttentionInterface, AutoModel

from archs import probes
from archs.attention import NAME, attention
from archs.build import build_model
from archs.pooling import POOLINGS
from archs.probes import can_pack, choose_packing
from core.batches import Cut
from core.errors import UserError
from tests.conftest import tiny_config
from tests.helpers import cut_of

FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "modernbert")
HEADS = ("model", *POOLINGS)
LENGTHS = [24, 3, 17, 1, 9, 30]  # ModernBERT's window of the tiny model is 4 to each side
CPU = torch.device("cpu")


def build(family: str, head: str = "model", attention: str = "auto", **changes) -> nn.Module:
    """A random classifier in evaluation mode; head: model, or a pooling under a linear one."""
    torch.manual_seed(0)
    kind, pooling = ("model", "") if head == "model" else ("linear", head)
    config = tiny_config(family, **changes)
    model, _ = build_model(family, config, ["a", "b", "c"], False, kind, pooling, None, attention, False)
    return model.eval()


def rows(lengths=LENGTHS, seed: int = 0) -> list[np.ndarray]:
    """Ids of tokens that are no special ones."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 40, n) for n in lengths]


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_packed_scores_are_those_of_each_row_alone(family, head):
    model = build(family, head)
    together = model(cut_of(rows(), True))
    alone = torch.cat([model(cut_of([row], False)) for row in rows()])
    assert is_close(together, alone)
    pad = model.inner.config.pad_token_id
    assert is_close(together, model(cut_of(rows(), False, pad_id=pad)))
    assert can_pack(model)
    # bite: rows that take their neighbours for their own
    merged = cut_of([np.concatenate(rows())], True)
    leaky = cut_of(rows(), True)._replace(blocks=merged.blocks)
    assert not is_close(model(leaky), alone)
    # bite: positions that do not begin anew; ModernBERT's are relative
    later = cut_of(rows(), True)
    later = later._replace(place=later.place + later.owner)
    assert is_close(model(later), alone) == (family == "modernbert")


@pytest.mark.parametrize("family", ["bert", "electra", "albert"])
@pytest.mark.parametrize("head", ["model", "mean"])
@torch.no_grad()
def test_pairs(family, head):
    model, pairs = build(family, head), [7, 0, 16, 0, 1, 20]
    together = model(cut_of(rows(), True, pairs=pairs))
    alone = [model(cut_of([row], False, pairs=[pair])) for row, pair in zip(rows(), pairs)]
    assert is_close(together, torch.cat(alone))
    assert not is_close(together, model(cut_of(rows(), True)))


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_packed_cut_of_one_row_or_of_one_token(head):
    model = build("bert", head)
    for lengths in ([9], [1], [1, 1, 1]):
        alone = [model(cut_of([row], False)) for row in rows(lengths)]
        assert is_close(model(cut_of(rows(lengths), True)), torch.cat(alone))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_packed_cut_leaves_nothing_behind(family):
    """Who calls the transformers model itself afterwards gets all its states, not those of the cut's first tokens."""
    model, ids = build(family), torch.from_numpy(rows()[0])[None]
    wanted = model.inner.base_model(input_ids=ids).last_hidden_state
    model(cut_of([[7] * 3, [8] * 5], True))
    found = model.inner.base_model(input_ids=ids).last_hidden_state
    assert found.shape == wanted.shape
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("head", ["model", "mean"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(head, dtype):
    """16-bit scores and gradients of packed rows are as near to those of padded ones as the type lets them be."""
    found = []
    for packed in (False, True):
        model = build("bert", head)
        with torch.autocast("cpu", dtype):
            scores = model(cut_of(rows(), packed))
        scores.float().square().sum().backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((scores.float().detach(), torch.cat(grads)))
    near = 4 * torch.finfo(dtype).eps
    for padded, other in zip(*found):
        assert (padded - other).norm() < near * padded.norm()


# -- decoders: the states of a backbone -------------------------------------------------------------------------

SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
SIZE |= {"initializer_range": 0.2, "pad_token_id": 0}
BOTH = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
DECODERS = {
    "GPT2Config": {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "LlamaConfig": SIZE,
    "Qwen2Config": SIZE | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "Qwen3Config": SIZE | {"head_dim": 8},
    "MistralConfig": SIZE | {"sliding_window": 6},
    "GemmaConfig": SIZE | {"head_dim": 8},
    "Gemma2Config": SIZE | BOTH | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "Gemma3TextConfig": SIZE | BOTH | {"query_pre_attn_scalar": 8},
}  # fmt: skip


def states(model: nn.Module, cut: Cut) -> torch.Tensor:
    """(N, D) of a packed cut."""
    return model(
        input_ids=cut.ids, position_ids=cut.place[None], cu_seqlens=cut.cu_seqlens, max_seqlen=cut.max_seqlen,
        blocks=cut.blocks, use_cache=False,
    ).last_hidden_state[0]  # fmt: skip


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_packed_states_of_decoders_are_those_of_each_row_alone(kind):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**DECODERS[kind])
    theirs = AutoModel.from_config(config, attn_implementation="eager").eval()
    ours = copy.deepcopy(theirs)
    ours.set_attn_implementation(NAME)
    alone = [torch.from_numpy(row)[None] for row in rows()]
    wanted = torch.cat([theirs(input_ids=ids, use_cache=False).last_hidden_state[0] for ids in alone])
    assert is_close(states(ours, cut_of(rows(), True)), wanted)
    assert is_close(torch.cat([ours(input_ids=ids).last_hidden_state[0] for ids in alone]), wanted)
    # padded, with a mask
    padded = cut_of(rows(), False)
    found = ours(input_ids=padded.ids, attention_mask=padded.mask, use_cache=False).last_hidden_state
    assert is_close(found[padded.mask], wanted)
    # bite
    merged = cut_of([np.concatenate(rows())], True)
    assert not is_close(states(ours, cut_of(rows(), True)._replace(blocks=merged.blocks)), wanted)


# -- which models can be packed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
@pytest.mark.parametrize("head", ["model", "mean"])
@pytest.mark.parametrize("implementation", ["auto", NAME])
def test_models_with_an_attention_of_their_own_are_not_packed(family, head, implementation):
    model = build(family, head)
    if implementation == NAME:  # they take the name, and ignore it
        model.inner.config._attn_implementation = NAME
    assert not can_pack(model)
    with pytest.raises(UserError, match=rf"--packing on: {family} with this head"):
        choose_packing("on", model, CPU, None)


def test_a_head_that_reads_more_than_the_first_token_is_not_packed():
    assert not can_pack(build("modernbert", classifier_pooling="mean"))
    assert can_pack(build("modernbert", classifier_pooling="cls"))
    assert can_pack(build("modernbert", "mean", classifier_pooling="mean"))  # our head: theirs is not built


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_another_attention_is_not_packed(implementation):
    assert not can_pack(build("bert", attention=implementation))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("harm", ["sdpa", "the same, unseen"])
def test_bite_one_layer_that_does_not_call_the_function(layer, harm):
    model = build("bert")
    assert can_pack(model)
    part = model.inner.bert.encoder.layer[layer].attention.self
    part.config = copy.copy(part.config)
    if harm == "sdpa":
        part.config._attn_implementation = "sdpa"
    else:  # its scores would pass, but how can it know of the rows?
        AttentionInterface.register("unseen", attention)
        part.config._attn_implementation = "unseen"
    assert not can_pack(model)


def test_bite_scores_that_differ_are_not_packed(monkeypatch):
    model = build("roberta", "cls")
    assert can_pack(model)
    monkeypatch.setattr("archs.encoder.first_position", lambda config: 0)  # RoBERTa's positions begin at 2
    assert not can_pack(model)


@pytest.mark.parametrize("training", [False, True])
def test_the_probe_leaves_everything_as_it_was(training):
    model = build("bert").train(training)
    before = AttentionInterface._global_mapping[NAME]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert can_pack(model)
    assert torch.equal(torch.rand(3), expected)
    assert {module.training for module in model.modules()} == {training}
    assert AttentionInterface._global_mapping[NAME] is before is attention
    monster = build("deberta-v2")
    monster.inner.config._attn_implementation = NAME
    can_pack(monster)
    assert AttentionInterface._global_mapping[NAME] is attention


def test_choose_packing():
    model = build("bert")
    assert choose_packing("auto", model, CPU, None) == (True, True)
    assert choose_packing("on", model, CPU, torch.bfloat16) == (True, True)
    assert choose_packing("off", model, CPU, None)[0] is False
    assert choose_packing("auto", build("mpnet"), CPU, None)[0] is False
    assert choose_packing("auto", model, torch.device("mps"), None)[0] is False
    assert choose_packing("auto", model, torch.device("cuda"), None) == (
        True,
        True,
    )  # float32: no flash kernel


def test_flash_attention_is_taken_in_16_bits_on_ampere(monkeypatch):
    model, cuda = build("bert"), torch.device("cuda")
    for found, in_blocks in ((True, False), (False, True)):
        monkeypatch.setattr(probes, "has_flash_attention", lambda device, found=found: found)
        assert choose_packing("auto", model, cuda, torch.bfloat16) == (True, in_blocks)
        assert choose_packing("auto", model, cuda, None) == (True, True)


# -- nothing leaks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["model", "attention"])
@torch.no_grad()
def test_nothing_leaks_between_packed_neighbours(family, head):
    model, batch = build(family, head), rows()
    before = model(cut_of(batch, True))
    for k in range(len(LENGTHS)):
        other = [row if i != k else rows(seed=1)[k] for i, row in enumerate(batch)]
        after = model(cut_of(other, True))
        same = [i for i in range(len(LENGTHS)) if i != k]
        assert torch.equal(before[same], after[same])  # bitwise
        assert not torch.equal(before[k], after[k]) or LENGTHS[k] == 1
        for length in (2, 28):  # other blocks and other products: not bitwise
            other[k] = rows([length])[0]
            assert (model(cut_of(other, True))[same] - before[same]).abs().max() <= 1e-6
