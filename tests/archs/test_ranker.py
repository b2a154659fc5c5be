"""archs/ranker.py: a question read once for its candidates against a pass for each, scores and gradients, by family."""

import numpy as np
import pytest
import torch
from torch import nn

from archs.build import build_model, recompute_activations
from archs.dropout import MASKS
from archs.lora import adapters, add_lora, find_targets
from archs.probes import can_share
from archs.ranker import Ranker
from core.rank_batches import RankCut, make_rank_cut
from tests.conftest import tiny_config, tiny_language_model

DECODERS = ("llama", "qwen2", "mistral", "gemma2", "gemma3", "gpt2")
BOUND = {torch.float32: 2e-6, torch.float64: 1e-12}
# tokens of each question's prefix and candidates; the windows of mistral, gemma2 and gemma3 are 8
SIZES = [(30, (3, 5, 1)), (4, (12,)), (9, (2, 2, 2, 2, 2)), (1, (4, 1))]
PLACES = 6  # K: one more than any question has


def questions(seed: int = 0, sizes=SIZES) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Token ids of prefixes and candidates."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(5, 40, p), [rng.integers(5, 40, n) for n in own]) for p, own in sizes]


def cut_of(asked: list, layout: str, typed: bool = False, first: int = 0) -> RankCut:
    """first: the first question's number in the file."""
    prefixes, branches = [prefix for prefix, _ in asked], [own for _, own in asked]
    count = sum(map(len, branches))
    parts = prefixes, branches, np.arange(first, first + len(asked)), np.zeros(count)
    return make_rank_cut(*parts, PLACES, layout, 0, typed=typed)


def in_own_type(model: nn.Module) -> None:
    """RMSNorm in the type of its input: transformers' casts to float32, whatever comes."""
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            gemma = name.startswith("Gemma")

            def forward(x, module=module, gemma=gemma):
                eps = module.eps if gemma else module.variance_epsilon
                return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (module.weight + gemma)

            module.forward = forward


def build(family: str, dtype=torch.float64, lora: bool = False, pooling: str = "", **changes) -> Ranker:
    """A random ranker in evaluation mode."""
    encoder = family == "bert"
    if family == "gemma2":
        changes = {"attn_logit_softcapping": 2.0} | changes  # so low that it is felt
    config = tiny_config(family) if encoder else tiny_language_model(family, **changes).config
    torch.manual_seed(0)
    model, _ = build_model(
        family, config, ["score"], False, "mlp", pooling or ("mean" if encoder else "last"), 0.0, "auto", False,
        architecture="bert" if encoder else "causal", ranks=True,
    )  # fmt: skip
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            nn.init.normal_(module.weight, std=0.3)
            module.weight.data += not type(module).__name__.startswith("Gemma")
    if lora:
        add_lora(model.inner, find_targets(model.inner, ""), 2, 4.0)
        for layer in adapters(model.inner).values():
            nn.init.normal_(layer.lora_B, std=0.3)
    if dtype == torch.float64:
        in_own_type(model)
    return model.to(dtype).eval()


def gradient(model: Ranker, scores: list[torch.Tensor]) -> torch.Tensor:
    """Of a sum of the scores, each with a weight of its own: all parameters in one vector."""
    model.zero_grad(set_to_none=True)
    flat = torch.cat([x.flatten() for x in scores])
    weights = torch.linspace(-1, 2, len(flat), dtype=flat.dtype) + 0.1
    (flat * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def separate(model: Ranker, asked: list) -> list[torch.Tensor]:
    """The scores of K passes for each question, one candidate a pass."""
    passes = [cut_of([(prefix, [ids])], "padded") for prefix, own in asked for ids in own]
    return [model(cut)[0, 0] for cut in passes]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def check_both_ways(model: Ranker, bound: float) -> None:
    asked = questions()
    cut = cut_of(asked, "shared")
    alone = separate(model, asked)
    wanted = gradient(model, alone)
    shared = model(cut)
    assert shared.shape == (len(asked), PLACES)
    assert not shared[~cut.keep].any()
    assert distance(shared[cut.keep], torch.stack(alone)) <= bound
    assert distance(gradient(model, [shared[cut.keep]]), wanted) <= bound
    packed = model(cut_of(asked, "packed"))
    assert distance(gradient(model, [packed[cut.keep]]), wanted) <= bound


# -- a question read once ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("family", DECODERS)
def test_scores_and_gradients_are_those_of_separate_passes(family, dtype, lora):
    model = build(family, dtype, lora)
    assert can_share(model)
    check_both_ways(model, BOUND[dtype])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_with_recomputed_layers(family):
    for lora in (False, True):
        model = build(family, lora=lora)
        recompute_activations(model.inner)
        check_both_ways(model.train(), BOUND[torch.float64])


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_scores_are_those_of_the_plain_transformers_model(family):
    """Its own attention, a row at a time, and the head on the state of the last token."""
    model, asked = build(family), questions()
    found = model(cut_of(asked, "shared"))
    model.inner.set_attn_implementation("eager")
    for b, (prefix, own) in enumerate(asked):
        for k, ids in enumerate(own):
            row = torch.from_numpy(np.concatenate([prefix, ids]))[None]
            state = model.inner(input_ids=row, use_cache=False).last_hidden_state[0, -1]
            torch.testing.assert_close(found[b, k], model.head(state)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", DECODERS)
def test_windows_and_softcaps_are_felt(family):
    """Else the tests above would show less than they say."""
    changes = {"gemma2": [{"sliding_window": 64}, {"attn_logit_softcapping": 50.0}]}.get(family, [])
    changes = [{"sliding_window": 64}] if family in ("mistral", "gemma3") else changes
    before = model_scores(build(family))
    for change in changes:
        other = build(family)
        other.load_state_dict(build(family, **change).state_dict())
        assert distance(model_scores(build(family, **change)), before) > 1e-3


def model_scores(model: Ranker, asked: list | None = None, layout: str = "shared") -> torch.Tensor:
    return model(cut_of(asked or questions(), layout)).detach()


@pytest.mark.parametrize("family", DECODERS)
def test_nothing_leaks_between_candidates_and_questions(family):
    """Other tokens of one candidate, or of one prefix: all other scores stay, bitwise."""
    model = build(family, torch.float32)
    other = [(5 + (prefix - 4) % 35, [5 + (ids - 4) % 35 for ids in own]) for prefix, own in questions()]
    before = model_scores(model)
    for b, (_, own) in enumerate(questions()):
        for k in range(len(own)):
            asked = questions()
            asked[b][1][k] = other[b][1][k]
            changed = model_scores(model, asked) != before
            assert changed.nonzero().tolist() == [[b, k]]
        asked = questions()
        asked[b] = (other[b][0], own)
        changed = model_scores(model, asked) != before
        assert changed.nonzero().tolist() == [[b, k] for k in range(len(own))]


@pytest.mark.parametrize("family", ["llama", "gemma2", "bert"])
def test_the_order_of_candidates_and_questions_does_not_matter(family):
    model, layout = build(family), "packed" if family == "bert" else "shared"
    before, order = model_scores(model, layout=layout), [4, 2, 0, 3, 1]
    asked = questions()
    asked[2] = (asked[2][0], [asked[2][1][k] for k in order])
    after = model_scores(model, asked[::-1], layout).flip(0)
    wanted = before.clone()
    wanted[2, :5] = before[2, order]
    torch.testing.assert_close(after, wanted, rtol=1e-12, atol=1e-12)
    assert not torch.equal(before, wanted)


# -- encoders, and other ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("pooling", ["mean", "cls", "mean_max"])
@pytest.mark.parametrize("typed", [False, True])
def test_an_encoder_packed_against_padded(pooling, typed, dtype):
    model, asked = build("bert", dtype, pooling=pooling), questions()
    packed, padded = (cut_of(asked, layout, typed) for layout in ("packed", "padded"))
    assert (packed.tokens.token_types is not None) == typed
    found = [model(cut)[cut.keep] for cut in (packed, padded)]
    assert distance(*found) <= BOUND[dtype]
    assert distance(*(gradient(model, [scores]) for scores in found)) <= BOUND[dtype]
    if not typed:
        assert distance(torch.stack(separate(model, asked)), found[0]) <= BOUND[dtype]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_masks_do_not_hang_on_the_neighbours(layout):
    """Dropout on: a question's gradient and scores do not depend on what stands beside it."""
    torch.manual_seed(0)
    model, _ = build_model(
        "bert", tiny_config("bert"), ["score"], False, "mlp", "mean", 0.2, "auto", False, ranks=True
    )
    model.double().train()
    asked = questions()
    MASKS.begin_step(3)
    whole = model(cut_of(asked, layout))
    alone = [model(cut_of(asked[:1], layout)), model(cut_of(asked[1:], layout, first=1))]
    assert distance(torch.cat(alone), whole) <= 1e-12
    MASKS.begin_step(4)
    assert distance(model(cut_of(asked, layout)), whole) > 1e-2


def test_a_shared_question_with_dropout_does_not_hang_on_its_neighbours():
    model = build("llama").train()
    model.head.train()
    for module in model.head.modules():
        if hasattr(module, "p"):
            module.p = 0.3
    asked = questions()
    MASKS.begin_step(3)
    whole, alone = model(cut_of(asked, "shared")), model(cut_of(asked[:1], "shared"))
    assert distance(alone, whole[:1]) <= 1e-12
    MASKS.begin_step(4)
    assert distance(model(cut_of(asked, "shared")), whole) > 1e-3


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_scores_are_float32_under_autocast(layout):
    """In bfloat16 two of ten candidates that say nearly the same would tie, and the first would be picked."""
    model, asked = build("llama", torch.float32), questions()
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(cut_of(asked, layout))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
