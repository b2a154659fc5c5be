"""The gradient of a batch is the same however its rows are cut, packed or padded: with dropout too, on CPU."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from archs import attention as attention_file
from archs import build as build_file
from archs.build import build_model, recompute_activations
from archs.dropout import MASKS, Dropout, Masks
from core.packing import Blocks
from tests.conftest import tiny_config
from tests.helpers import cut_of

FAMILIES = ("bert", "roberta", "electra", "distilbert", "albert", "modernbert")
LENGTHS, LABELS = [24, 3, 17, 1, 9, 30], np.array([0, 2, 1, 1, 0, 2])
NUMBERS = np.array([105, 3, 77, 12, 40, 9])  # the rows' in their file
WHOLE, ONE_BY_ONE = [[0, 1, 2, 3, 4, 5]], [[k] for k in range(6)]
TWO = [[5, 0, 3], [4, 2, 1]]
BOUND = {torch.float32: 2e-6, torch.float64: 1e-12}


def build(
    family: str, head: str, dropout: float, attention_drop: float | None, dtype=torch.float64
) -> nn.Module:
    """A random classifier in training mode."""
    torch.manual_seed(0)
    kind, pooling = ("model", "") if head == "model" else ("mlp", head)
    model, _ = build_model(
        family,
        tiny_config(family),
        ["a", "b", "c"],
        False,
        kind,
        pooling,
        dropout,
        "auto",
        False,
        attention_drop,
    )
    return model.to(dtype).train()


def gradient(
    model: nn.Module, cuts: list[list[int]], packed: bool, step: int = 3, seed: int = 0
) -> torch.Tensor:
    """Of the summed loss of six rows, all parameters in one vector."""
    rng = np.random.default_rng(seed)
    rows, pad_id = [rng.integers(5, 40, n) for n in LENGTHS], model.inner.config.pad_token_id
    model.zero_grad(set_to_none=True)
    MASKS.begin_step(step)
    for cut in cuts:
        batch = cut_of([rows[k] for k in cut], packed, NUMBERS[cut], LABELS[cut], pad_id)
        F.cross_entropy(model(batch), batch.labels, reduction="sum").backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


def check_cuts(model: nn.Module, bound: float) -> None:
    """One packed cut against any other way to cut the rows."""
    wanted = gradient(model, WHOLE, packed=True)
    assert wanted.isfinite().all()
    ways = [(WHOLE, False), (ONE_BY_ONE, False), (ONE_BY_ONE, True), (TWO, False), (TWO, True)]
    found = [distance(wanted, gradient(model, cuts, packed)) for cuts, packed in ways]
    assert max(found) <= bound, found


DROPOUTS = {"none": (0.0, None), "all": (0.1, None), "hidden": (0.1, 0.0), "attention": (0.0, 0.1)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropouts", DROPOUTS)
def test_the_gradient_does_not_depend_on_the_cuts(family, dropouts):
    model = build(family, "model", *DROPOUTS[dropouts])
    check_cuts(model, BOUND[torch.float64])
    # bite: without dropout the step is nothing to the gradient, with it everything
    first, second = (gradient(model, WHOLE, packed=True, step=step) for step in (3, 4))
    assert torch.equal(first, second) == (dropouts == "none")
    assert dropouts == "none" or distance(first, second) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_in_float32(family):
    check_cuts(build(family, "mean", *DROPOUTS["all"], torch.float32), BOUND[torch.float32])


@pytest.mark.parametrize("head", ["cls", "mean", "mean_max", "attention", "last"])
@pytest.mark.parametrize("dropouts", ["none", "all"])
def test_every_pooling(head, dropouts):
    # the softmax of the attention pooling is float32 whatever the states are
    dtype = torch.float32 if head == "attention" else torch.float64
    check_cuts(build("bert", head, *DROPOUTS[dropouts], dtype), BOUND[dtype])


# -- bite -------------------------------------------------------------------------------------------------------


def test_bite_masks_by_the_place_in_the_cut(monkeypatch):
    model, begin_cut = build("bert", "model", 0.1, None), Masks.begin_cut
    check_cuts(model, 1e-12)
    by_place = lambda self, rows, *where: begin_cut(self, torch.arange(len(rows)), *where)  # noqa: E731
    monkeypatch.setattr(Masks, "begin_cut", by_place)
    with pytest.raises(AssertionError):
        check_cuts(model, 0.05)


def test_bite_gradients_of_padded_places(monkeypatch):
    model, by_head = build("bert", "model", 0.0, None), Blocks.by_head
    monkeypatch.setattr(Blocks, "by_head", lambda self, heads: (*by_head(self, heads)[:2], None))
    with pytest.raises(AssertionError):
        check_cuts(model, 1e-3)


# -- one mask for each depth ------------------------------------------------------------------------------------


def layers_drawn(monkeypatch, model: nn.Module, packed: bool) -> list[int]:
    """The layer numbers of the masks of one forward pass, those of a block apart."""
    found, keep = [], Masks.keep

    def seen(self, keys, width, p, layer):
        found.append(layer)
        return keep(self, keys, width, p, layer)

    monkeypatch.setattr(Masks, "keep", seen)
    monkeypatch.setattr(attention_file.Blocks, "__init__", one_block(Blocks.__init__))
    gradient(model, WHOLE, packed)
    return found


def one_block(init):
    """Blocks of like length, however unlike: a mask is then drawn once a layer."""

    def call(self, *args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.packing.BLOCK_COST", 10**9)
            init(self, *args)

    return call


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [False, True])
def test_each_dropout_of_a_forward_pass_has_its_own_mask(family, packed, monkeypatch):
    found = layers_drawn(monkeypatch, build(family, "model", 0.1, None), packed)
    assert len(set(found)) == len(found) >= 4


@pytest.mark.parametrize("packed", [False, True])
def test_shared_layers_drop_other_elements_in_each_depth(packed):
    """ALBERT runs one layer's weights twice."""
    model, kept = build("albert", "model", 0.1, None), []
    part = model.inner.albert.encoder.albert_layer_groups[0].albert_layers[0].attention.output_dropout
    assert isinstance(part, Dropout)
    part.register_forward_hook(lambda module, inputs, output: kept.append((output != 0) | (inputs[0] == 0)))
    gradient(model, WHOLE, packed)
    first, second = kept
    p, size = 6554 / 65536, first.numel()
    both = (~first & ~second).double().mean()
    assert abs(both - p**2) < 5 * (p**2 / size) ** 0.5
    assert (first != second).any()


# -- computed again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "albert"])  # transformers cannot
@pytest.mark.parametrize("packed", [False, True])
def test_recomputed_activations_give_the_same_gradient(family, packed):
    model = build(family, "mean", 0.1, None)
    again, calls = copy.deepcopy(model), []
    recompute_activations(again.inner)
    *_, last = (module for module in again.inner.modules() if isinstance(module, nn.Linear))
    last.register_forward_pre_hook(lambda module, inputs: calls.append(module))
    for cuts in (WHOLE, TWO):
        calls.clear()
        wanted, found = (gradient(net, cuts, packed) for net in (model, again))
        assert distance(wanted, found) <= 1e-12
        assert len(calls) == 2 * len(cuts)  # it was computed again


def test_bite_recomputing_with_other_masks(monkeypatch):
    model = build("bert", "mean", 0.1, None)
    wanted = gradient(model, WHOLE, packed=True)
    monkeypatch.setattr(build_file, "same_masks_again", lambda: (nullcontext(), nullcontext()))
    recompute_activations(model.inner)  # layers are counted on
    assert distance(wanted, gradient(model, WHOLE, packed=True)) > 0.05
