"""archs/probes.py on rankers: who may read a question once, what --share_prefix and --packing then mean; it bites."""

import pytest
import torch

from archs import attention as attention_file
from archs import probes
from archs.branching import branched_attention
from archs.probes import can_share, choose_layout
from archs.ranker import Ranker
from core.batches import to_device
from core.branches import Trees
from core.errors import UserError
from tests.archs.test_ranker import (
    BOUND,
    DECODERS,
    build,
    check_both_ways,
    cut_of,
    distance,
    gradient,
    questions,
)

CPU = torch.device("cpu")


def layout_of(model: Ranker, share: str = "auto", packing: str = "auto") -> str:
    return choose_layout(share, packing, model, CPU, None)[0]


def test_who_shares():
    assert layout_of(build("llama")) == layout_of(build("llama"), "on") == "shared"
    assert layout_of(build("llama"), "off") == "packed"
    assert layout_of(build("llama"), packing="off") == "padded"
    assert choose_layout("auto", "auto", build("llama"), torch.device("mps"), None)[0] == "padded"
    for refused in (
        build("bert"),
        build("llama", pooling="mean"),
        with_eager(build("llama")),
        with_attention_dropout(build("llama")),
    ):
        assert not can_share(refused)
        with pytest.raises(UserError, match=r"--share_prefix on: \w+ cannot read a question once for all"):
            layout_of(refused, "on")
    assert layout_of(build("bert")) == "packed"
    assert layout_of(with_eager(build("llama"))) == "padded"
    assert layout_of(with_attention_dropout(build("llama"))) == "packed"


def with_eager(model: Ranker) -> Ranker:
    model.inner.set_attn_implementation("eager")
    return model


def with_attention_dropout(model: Ranker) -> Ranker:
    model.inner.config.attention_dropout = 0.1
    return model


def without_window(query, key, value, trees, scaling, softcap=None, window=None):
    return branched_attention(query, key, value, trees, scaling, softcap)


def without_softcap(query, key, value, trees, scaling, softcap=None, window=None):
    return branched_attention(query, key, value, trees, scaling, None, window)


def one_branch(query, key, value, trees, scaling, softcap=None, window=None):
    """All candidates of a question as one: what plain packing would do."""
    sizes = [(tree.prefix, (tree.num_tokens,)) for tree in trees.rows]
    return branched_attention(query, key, value, Trees(sizes), scaling, softcap, window)


HARM = {without_window: ("mistral", "gemma2", "gemma3"), without_softcap: ("gemma2",), one_branch: DECODERS}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("family", DECODERS)
def test_bite_the_probe_refuses_an_attention_that_is_not_the_model_s(family, harm, monkeypatch):
    model = build(family, torch.float32)
    monkeypatch.setattr(attention_file, "branched_attention", harm)
    assert can_share(model) == (family not in HARM[harm])
    if family in HARM[harm]:
        with pytest.raises(AssertionError):
            check_both_ways(model, BOUND[torch.float32])
        assert layout_of(model) == "packed"


def test_a_probe_leaves_the_model_as_it_was(monkeypatch):
    model = build("llama").train()
    assert can_share(model)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    monkeypatch.setattr(probes, "make_rank_cut", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        can_share(model)
    assert model.training


@pytest.mark.gpu
@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_on_cuda(family, layout):
    """Float32 as on the host; under bfloat16 near it, whatever kernel torch takes."""
    cuda = torch.device("cuda")
    model, asked = build(family, torch.float32), questions()
    cut = cut_of(asked, layout)
    wanted = model(cut)[cut.keep]
    grads = gradient(model, [wanted])
    model.to(cuda)
    moved = to_device(cut_of(asked, layout), cuda)
    found = model(moved)[moved.keep]
    assert distance(found.cpu(), wanted) <= 2e-5
    assert distance(gradient(model, [found.cpu()]).cpu(), grads) <= 2e-5
    with torch.autocast("cuda", torch.bfloat16):
        rounded = model(moved)[moved.keep]
    assert distance(rounded.float().cpu(), wanted) <= 5e-2
