"""archs/lora.py, whole models: what is frozen, where backward stops, merging, taking adapters off, which modules."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from archs.adapters import whole_modules
from archs.build import build_model, freeze_unused
from archs.lora import adapters, add_lora, find_targets, merged_state, remove_lora, short_names
from core.errors import UserError
from tests.conftest import tiny_config, tiny_language_model
from tests.helpers import cut_of, same

ENCODERS = ("bert", "roberta", "distilbert", "deberta-v2")
ROWS = [[2, 7, 8, 9, 3], [2, 10, 3], [2, 11, 12, 13, 14, 15, 3]]


def classifier(family: str = "bert", head: str = "model", birth: bool = False, targets: str = "", **changes):
    """A classifier of two layers with adapters of rank 2; at birth B is 0, else random."""
    torch.manual_seed(0)
    config = tiny_config(family, **changes)
    model, _ = build_model(family, config, ["a", "b", "c"], False, head, "mean", None, "auto", False)
    base = {name: value.clone() for name, value in model.inner.state_dict().items()}
    before = model.eval()(cut_of(ROWS, False))
    add_lora(model.inner, find_targets(model.inner, targets), 2, 4.0, keep_trained=whole_modules(model))
    if not birth:
        for layer in adapters(model.inner).values():
            nn.init.normal_(layer.lora_B)
    return model, base, before.detach()


@pytest.mark.parametrize("head", ["model", "mlp"])
@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_birth_merging_and_taking_off(family, head):
    model, base, before = classifier(family, head, birth=True)
    cut = cut_of(ROWS, False)
    assert torch.allclose(model(cut), before, rtol=1e-6, atol=1e-6)  # at birth nothing changes
    assert all(layer.lora_A.abs().min() > 0 for layer in adapters(model.inner).values())
    for layer in adapters(model.inner).values():
        nn.init.normal_(layer.lora_B)
    ours = model(cut)
    assert not torch.allclose(ours, before, atol=1e-2)

    own = {name: value.clone() for name, value in model.inner.state_dict().items()}
    merged = merged_state(model.inner)
    assert same(own, dict(model.inner.state_dict()))  # the model's weights are as they were
    assert merged.keys() == base.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {f"{name}.weight" for name in adapters(model.inner)}
    plain, _ = build_model(
        family, tiny_config(family), ["a", "b", "c"], False, head, "mean", None, "auto", False
    )
    plain.inner.load_state_dict(merged)
    if head != "model":
        plain.load_state_dict(model.own_parts(), strict=False)
    assert torch.allclose(plain.eval()(cut), ours, rtol=1e-5, atol=1e-5)

    remove_lora(model.inner)
    assert same(base, dict(model.inner.state_dict()))
    assert not adapters(model.inner)
    assert torch.equal(model(cut), before)


@pytest.mark.parametrize("head", ["model", "mlp"])
@pytest.mark.parametrize("family", ENCODERS)
def test_gradients_exist_for_adapters_and_head_alone(family, head):
    model, _, _ = classifier(family, head, birth=True)
    whole = tuple(f"model.{name}." for name in whole_modules(model)) + ("head.", "pooling.")
    expected = {name for name, _ in model.named_parameters() if ".lora_" in name or name.startswith(whole)}
    assert {name for name, param in model.named_parameters() if param.requires_grad} == expected
    model.train()(cut_of(ROWS, False)).sum().backward()
    assert {name for name, param in model.named_parameters() if param.grad is not None} == expected
    assert freeze_unused(model) == []
    assert {name for name, param in model.named_parameters() if param.requires_grad} == expected


@pytest.mark.parametrize("first, flows", [("0", [True, True]), ("1", [False, True])])
def test_backward_stops_at_the_first_adapted_layer(first, flows):
    model, _, _ = classifier(targets=rf".*layer\.{first}\..*")
    found = []
    for layer in model.inner.bert.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: found.append(output.requires_grad))
    model.train()(cut_of(ROWS, False))
    assert found == flows


# -- which modules ----------------------------------------------------------------------------------------------


BERT = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "intermediate.dense", "output.dense"]  # fmt: skip
POSITIONS = ["attention.self.pos_key_proj", "attention.self.pos_query_proj"]
LLAMA = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
T5_ENCODER = [f"0.SelfAttention.{x}" for x in "qkvo"] + [f"1.DenseReluDense.{x}" for x in ("wi", "wo")]
T5_DECODER = [f"0.SelfAttention.{x}" for x in "qkvo"] + [f"1.EncDecAttention.{x}" for x in "qkvo"]
T5_DECODER += [f"2.DenseReluDense.{x}" for x in ("wi", "wo")]
TARGETS = {  # by hand: the linear modules of each layer
    "bert": {"bert.encoder.layer": BERT},
    "roberta": {"roberta.encoder.layer": BERT},
    "distilbert": {"distilbert.transformer.layer": [f"attention.{x}_lin" for x in ("q", "k", "v", "out")]
                   + ["ffn.lin1", "ffn.lin2"]},
    "deberta-v2": {"deberta.encoder.layer": [n + "_proj" * ("self" in n) for n in BERT] + POSITIONS},
    "gpt2": {"transformer.h": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]},
    "llama": {"model.layers": LLAMA},
    "t5": {"encoder.block": [f"layer.{n}" for n in T5_ENCODER], "decoder.block": [f"layer.{n}" for n in T5_DECODER]},
}  # fmt: skip


def tiny(family: str) -> nn.Module:
    """A transformers model with its own head, without adapters."""
    if family not in ENCODERS:
        return tiny_language_model(family)
    return build_model(family, tiny_config(family), ["a", "b"], False, "model", "", None, "auto", False)[
        0
    ].inner


@pytest.mark.parametrize("family", TARGETS)
def test_targets_are_the_layers_linear_modules(family):
    model = tiny(family)
    expected = {
        f"{stem}.{k}.{name}" for stem, names in TARGETS[family].items() for k in (0, 1) for name in names
    }
    assert set(find_targets(model, "")) == expected
    head = model.get_output_embeddings()
    linear = {name for name, part in model.named_modules() if type(part) in (nn.Linear, Conv1D)}
    assert set(find_targets(model, ".*")) == linear - {"lm_head"}  # label words read that one as it is
    assert (head is None) == (family in ENCODERS)


def test_targets_that_are_none():
    model = tiny("llama")
    with pytest.raises(UserError, match=r"--lora_targets \(q_proj: is no regular expression: missing \)"):
        find_targets(model, "(q_proj")
    for targets in ("q_proj", "lm_head", "model.embed_tokens"):  # a part of a name, a head, no linear module
        with pytest.raises(
            UserError, match=rf"--lora_targets {targets}: matches no linear module; .*layers\.N\."
        ):
            find_targets(model, targets)


def test_what_is_trained_whole_gets_no_adapter():
    found = adapters(classifier("roberta", targets=".*")[0].inner)
    assert set(found) == set(find_targets(tiny("roberta"), ""))
    with pytest.raises(UserError, match=r"matches only what is trained whole: classifier"):
        classifier("roberta", targets=r"classifier\.dense")


def peft_matches(key: str, targets: list[str]) -> bool:
    """Whether PEFT adapts a module (peft.tuners.tuners_utils.check_target_module_exists)."""
    return key in targets or any(key.endswith(f".{target}") for target in targets)


PARTS = [
    "",
    r".*\.1\..*",
    r".*[._](q|query|query_proj|q_proj|q_lin|c_attn)",
    r".*\.0\..*(dense|c_proj|o|lin1|o_proj)",
]


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("targets", PARTS)
def test_short_names_mean_the_adapted_modules_alone(family, targets):
    model = tiny(family)
    names = find_targets(model, targets)
    short = short_names(names, model)
    assert [name for name, _ in model.named_modules() if peft_matches(name, short)] == names
    assert targets or len(short) <= 7  # not every layer by its name


def test_bite_last_parts_of_names_mean_more():
    """BERT's pooler and RoBERTa's head are called dense too."""
    for family in ("bert", "roberta"):
        model = tiny(family)
        names = find_targets(model, "")
        last = sorted({name.split(".")[-1] for name in names})
        assert len([name for name, _ in model.named_modules() if peft_matches(name, last)]) > len(names)


def test_a_backbone_without_its_pooler_does_not_name_it():
    """Ours is built without one; AutoModel, which PEFT is given, has it."""
    model = build_model("m", tiny_config("bert"), ["a", "b"], False, "mlp", "mean", None, "auto", False)[
        0
    ].inner
    assert model.pooler is None
    assert not peft_matches("pooler.dense", short_names(find_targets(model, ""), model))
