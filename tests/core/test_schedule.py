"""core/schedule.py: learning rates by hand and against torch and transformers; parameter groups of eight families."""

import math

import pytest
import torch
import transformers
from torch import nn

from archs.adapters import whole_modules
from archs.build import build_model
from archs.lora import add_lora, find_targets
from core.schedule import (
    SCHEDULES,
    auto_epochs,
    auto_learning_rate,
    layer_depth,
    lr_scale,
    parameter_groups,
    warmup_steps,
)
from tests.conftest import tiny_config

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "mpnet", "modernbert", "electra", "albert")


def curve(schedule: str, num_steps: int, num_warmup: int = 0, **extra) -> list[float]:
    """The shares of all steps of a run."""
    return [lr_scale(step, num_steps, num_warmup, schedule, **extra) for step in range(num_steps)]


def reference_curve(make_scheduler, num_steps: int) -> list[float]:
    """The shares that a scheduler object of torch or transformers gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


# -- learning rates ---------------------------------------------------------------------------------------------


def test_schedules_by_hand():
    # 2 steps of warm-up: 1/2, 1; then 4 steps at progress 0, 1/4, 1/2, 3/4
    assert curve("constant", 6, 2) == [0.5, 1, 1, 1, 1, 1]
    assert curve("linear", 6, 2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    root = math.sqrt(0.5)  # cos(pi / 4)
    assert curve("cosine", 6, 2) == pytest.approx([0.5, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2])
    # two cycles of two steps: each falls from 1 to 1/2 and starts again
    assert curve("cosine_restarts", 6, 2, num_cycles=2) == pytest.approx([0.5, 1, 1, 0.5, 1, 0.5])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_restarts"])
def test_schedules_end_at_zero(schedule):
    assert lr_scale(50, 50, 5, schedule) == pytest.approx(0, abs=1e-15)
    assert lr_scale(60, 50, 5, schedule) == pytest.approx(0, abs=1e-15)  # and stay there


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_warmup", [0, 1, 7, 20])
def test_schedules_stay_between_zero_and_one(schedule, num_warmup):
    shares = curve(schedule, 20, num_warmup)
    assert min(shares) > 0  # no step of a run is without effect
    assert max(shares) <= 1
    assert shares[:num_warmup] == [(step + 1) / num_warmup for step in range(num_warmup)]


def test_schedules_refuse_an_unknown_name():
    with pytest.raises(ValueError, match=r"schedule 'step': one of constant, linear, cosine"):
        lr_scale(0, 10, 0, "step")


def agrees(ours: list[float], theirs: list[float], num_warmup: int) -> bool:
    """Equal after the warm-up; inside it theirs start at 0, so ours are theirs one step on."""
    rising = all(
        math.isclose(a, b, rel_tol=1e-9) for a, b in zip(ours[: num_warmup - 1], theirs[1:num_warmup])
    )
    falling = zip(ours[num_warmup:], theirs[num_warmup:])
    return rising and all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in falling)


@pytest.mark.parametrize("num_warmup", [0, 1, 10])
def test_schedules_against_transformers(num_warmup):
    tools = {
        "constant": lambda o: transformers.get_constant_schedule_with_warmup(o, num_warmup),
        "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, num_warmup, 60),
        "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, num_warmup, 60),
        "cosine_restarts": lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(
            o, num_warmup, 60, num_cycles=3
        ),
    }
    found = {name: reference_curve(tool, 60) for name, tool in tools.items()}
    for name, theirs in found.items():
        assert agrees(curve(name, 60, num_warmup), theirs, num_warmup), name
    # bite: another schedule, and a warm-up of another length, are told apart
    assert not agrees(curve("cosine", 60, num_warmup), found["linear"], num_warmup)
    assert not agrees(curve("linear", 60, num_warmup + 2), found["linear"], num_warmup)


def test_schedules_against_torch():
    schedulers = torch.optim.lr_scheduler
    linear = reference_curve(lambda o: schedulers.LinearLR(o, 1.0, 0.0, total_iters=40), 40)
    assert curve("linear", 40) == pytest.approx(linear)
    cosine = reference_curve(lambda o: schedulers.CosineAnnealingLR(o, T_max=40), 40)
    assert curve("cosine", 40) == pytest.approx(cosine)
    restarts = reference_curve(lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=10), 40)
    assert curve("cosine_restarts", 40, num_cycles=4) == pytest.approx(restarts)


@pytest.mark.parametrize(
    "warmup, num_steps, expected",
    [
        (0, 100, 0),
        (0.06, 100, 6),
        (0.06, 50, 3),
        (0.999, 10, 10),
        (1, 100, 1),
        (30, 100, 30),
        (500, 100, 100),
    ],
)
def test_warmup_is_a_share_below_one_and_steps_from_one_on(warmup, num_steps, expected):
    assert warmup_steps(warmup, num_steps) == expected


def test_auto_values():
    assert [auto_learning_rate(n) for n in (22e6, 110e6, 340e6)] == [1e-4, 3e-5, 1e-5]
    assert [auto_learning_rate(n, "t5") for n in (80e6, 220e6, 770e6)] == [1e-3, 3e-4, 1e-4]
    assert auto_learning_rate(770e6, "t5", lora=True) == 1e-4
    for family in ("bert", "causal"):  # LoRA: ten times as much, by the size of the whole model
        assert auto_learning_rate(7e9, family, lora=True) == pytest.approx(
            10 * auto_learning_rate(7e9, family)
        )
    # 200 steps an epoch: 3 epochs are 600; 100 steps: 6; 6 steps: 100, so 10; many: 3
    assert [auto_epochs(n, 16) for n in (3200, 1600, 96, 10**6)] == [3, 6, 10, 3]


# -- parameter groups -------------------------------------------------------------------------------------------


def tiny_model(family: str, head: str = "model") -> nn.Module:
    """A random classifier of two layers."""
    return build_model(
        family, tiny_config(family), ["a", "b", "c"], False, head, "attention", None, "eager", False
    )[0]


def check_groups(model: nn.Module, groups: list[dict], weight_decay: float) -> None:
    """Every trainable parameter once; weights decay, biases and norms do not."""
    ids = [id(param) for group in groups for param in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(param) for param in model.parameters() if param.requires_grad}
    names = {id(param): name for name, param in model.named_parameters()}
    flat = {
        id(param)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
        for param in module.parameters()
    }
    for group in groups:
        assert group["lr"] == group["peak_lr"]
        for param in group["params"]:
            bare = id(param) in flat or names[id(param)].endswith("bias")
            assert group["weight_decay"] == (0.0 if bare else weight_decay), names[id(param)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["model", "residual"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_every_parameter_is_in_one_group(family, head, layer_decay):
    model = tiny_model(family, head)
    next(model.inner.parameters()).requires_grad_(False)
    groups = parameter_groups(model, 1e-3, 0.01, layer_decay, model.num_layers)
    check_groups(model, groups, 0.01)
    if layer_decay == 1:
        assert [(group["weight_decay"], group["lr"]) for group in groups] == [(0.01, 1e-3), (0.0, 1e-3)]
    torch.optim.AdamW(groups, lr=1e-3, fused=True)


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("head", ["model", "residual"])
def test_b_of_lora_has_a_rate_of_its_own(head, layer_decay):
    model = tiny_model("bert", head)
    add_lora(model.inner, find_targets(model.inner, ""), 2, 4.0, keep_trained=whole_modules(model))
    params = dict(model.named_parameters())
    for ratio in (1.0, 16.0):
        groups = parameter_groups(model, 1e-3, 0.01, layer_decay, 2, ratio)
        check_groups(model, groups, 0.01)
        rates = {id(param): group["peak_lr"] for group in groups for param in group["params"]}
        assert len(rates) < len(params)  # the base is in no group
        for name, param in params.items():
            if param.requires_grad:
                rate = (
                    1e-3
                    * layer_decay ** (3 - layer_depth(name, 2))
                    * (ratio if name.endswith("lora_B") else 1)
                )
                assert rates[id(param)] == pytest.approx(rate), name
        if layer_decay == 1:
            assert len(groups) == 2 + (ratio != 1)  # no group of its own at the same rate
        assert groups[-1]["peak_lr"] == 1e-3  # the one that the log names
        torch.optim.AdamW(groups, lr=1e-3, fused=True)


def test_the_rate_in_the_log_is_not_b_s():
    model = nn.ModuleDict({"dense": nn.Linear(4, 4)})
    add_lora(model, ["dense"], 2, 4.0)
    groups = parameter_groups(model, 1e-3, 0.01, 1.0, 2, 16.0)
    assert [group["peak_lr"] for group in groups] == [16e-3, 1e-3]


@pytest.mark.parametrize("harm", ["twice", "missing", "decayed bias"])
def test_bite_check_groups(harm):
    model = tiny_model("bert")
    groups = parameter_groups(model, 1e-3, 0.01, 1.0, 2)
    if harm == "twice":
        groups[1]["params"].append(groups[0]["params"][0])
    elif harm == "missing":
        groups[0]["params"].pop()
    else:
        groups[0]["params"].append(groups[1]["params"].pop())
    with pytest.raises(AssertionError):
        check_groups(model, groups, 0.01)


DEPTHS = {  # by hand, for two layers: embeddings 0, the layers 1 and 2, pooler and head 3
    "bert": {
        "model.bert.embeddings.LayerNorm.weight": 0,
        "model.bert.encoder.layer.0.attention.self.key.weight": 1,
        "model.bert.encoder.layer.1.output.dense.bias": 2,
        "model.bert.pooler.dense.weight": 3,
        "model.classifier.bias": 3,
    },
    "roberta": {
        "model.roberta.embeddings.position_embeddings.weight": 0,
        "model.roberta.encoder.layer.1.attention.output.LayerNorm.weight": 2,
        "model.classifier.dense.weight": 3,
        "model.classifier.out_proj.bias": 3,
    },
    "distilbert": {
        "model.distilbert.embeddings.word_embeddings.weight": 0,
        "model.distilbert.transformer.layer.0.ffn.lin1.weight": 1,
        "model.pre_classifier.weight": 3,
    },
    "deberta-v2": {
        "model.deberta.embeddings.word_embeddings.weight": 0,
        "model.deberta.encoder.rel_embeddings.weight": 0,
        "model.deberta.encoder.layer.0.attention.self.pos_key_proj.weight": 1,
        "model.deberta.encoder.layer.1.intermediate.dense.weight": 2,
        "model.pooler.dense.weight": 3,
        "model.classifier.weight": 3,
    },
    "modernbert": {
        "model.model.embeddings.tok_embeddings.weight": 0,
        "model.model.layers.0.attn.Wqkv.weight": 1,
        "model.model.layers.1.mlp_norm.weight": 2,
        "model.model.final_norm.weight": 3,
        "model.head.dense.weight": 3,
        "model.classifier.weight": 3,
    },
    "electra": {
        "model.electra.embeddings.word_embeddings.weight": 0,
        "model.electra.embeddings_project.weight": 0,
        "model.electra.encoder.layer.1.attention.self.value.bias": 2,
        "model.classifier.dense.weight": 3,
    },
    "mpnet": {
        "model.mpnet.embeddings.word_embeddings.weight": 0,
        "model.mpnet.encoder.relative_attention_bias.weight": 0,
        "model.mpnet.encoder.layer.0.attention.attn.q.weight": 1,
        "model.classifier.out_proj.weight": 3,
    },
    "albert": {  # one set of weights for all layers counts as the last
        "model.albert.embeddings.word_embeddings.weight": 0,
        "model.albert.encoder.embedding_hidden_mapping_in.weight": 0,
        "model.albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight": 2,
        "model.albert.pooler.weight": 3,
        "model.classifier.weight": 3,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_decay_by_hand(family):
    model = tiny_model(family)
    params = dict(model.named_parameters())
    groups = parameter_groups(model, 1.0, 0.01, 0.5, 2)
    lrs = {id(param): group["peak_lr"] for group in groups for param in group["params"]}
    for name, depth in DEPTHS[family].items():
        assert layer_depth(name, 2) == depth, name
        assert lrs[id(params[name])] == 0.5 ** (3 - depth)  # 1/8 for embeddings, 1 for the head
    embeddings = {name for name in params if "embeddings." in name}
    assert {layer_depth(name, 2) for name in embeddings} == {0}
    depths = {int(group["name"].split()[1].rstrip(",")) for group in groups}
    assert depths == ({0, 2, 3} if family == "albert" else {0, 1, 2, 3})


def test_our_pooling_and_head_are_the_top():
    model = tiny_model("bert", "residual")
    for name in model.own_parts():
        assert layer_depth(name, 2) == 3, name
