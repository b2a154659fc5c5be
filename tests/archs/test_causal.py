"""archs/causal.py against the chain rule spelled out: packed, padded and alone; pad and end tokens; nothing leaks."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from archs import words as words_file
from archs.build import build_model
from archs.causal import WordDecoder
from archs.dropout import attention_dropout
from archs.probes import can_pack
from core import packing
from core.errors import UserError
from losses.classification import answer_loss
from tests.conftest import tiny_language_model
from tests.helpers import cut_of, word_scores

FAMILIES = ("llama", "gpt2", "gemma2")
END = 3
ANSWERS = {
    "single": [(5,), (9,), (30,)],
    "several": [(5, 6, 7), (9, 8), (30, 11)],
    "mixed": [(5,), (9, 8, 7, 6), (30, 11)],
    "shared": [(5, 6), (5, 9), (5, 6, 7, 8), (9, 6)],  # TP and FP: the same first token, or the same last
    "beginning": [(5, END), (5, 6, END), (5, 6, 7, END)],  # as answer_tokens ends them
    "two": [(5, 6), (9, 6)],
}
LENGTHS = [24, 3, 17, 1, 9, 30]  # gemma2's window is 8


def rows(lengths=LENGTHS, seed: int = 0) -> list[np.ndarray]:
    """Ids of tokens that are no special ones."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 40, n) for n in lengths]


def build(family: str, answers: list[tuple[int, ...]], **changes) -> tuple[WordDecoder, nn.Module]:
    """Our classifier in evaluation mode, and the plain transformers model with the same weights."""
    plain = tiny_language_model(family, attn_implementation="eager", **changes)
    names = [str(k) for k in range(len(answers))]
    model, _ = build_model(
        family, copy.deepcopy(plain.config), names, False, "words", "", None, "auto", False,
        architecture="causal", answers=answers,
    )  # fmt: skip
    model.inner.load_state_dict(plain.state_dict())
    return model.eval(), plain.eval()


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def score(model: WordDecoder, batch: list, packed: bool, pad_id: int = 0) -> torch.Tensor:
    return model(cut_of(batch, packed, pad_id=pad_id, branches=model.branches)).detach()


# -- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ANSWERS)
def test_scores_are_those_of_the_chain_rule(family, kind):
    model, plain = build(family, ANSWERS[kind])
    wanted = word_scores(plain, rows(), ANSWERS[kind])
    assert (wanted.exp().sum(dim=1) < 1).all()  # of all that could be said
    assert is_close(score(model, rows(), True), wanted)
    assert is_close(score(model, rows(), False), wanted)
    for packed in (True, False):
        assert is_close(torch.cat([score(model, [row], packed) for row in rows()]), wanted)
        drops = model.branches and attention_dropout(model.inner.config) > 0  # masks go by index in a block
        assert can_pack(model) == (not drops)


def test_attention_that_is_not_ours_has_the_same_scores():
    for kind in ("single", "mixed"):
        model, plain = build("llama", ANSWERS[kind])
        model.inner.set_attn_implementation("sdpa")
        assert is_close(score(model, rows(), False), word_scores(plain, rows(), ANSWERS[kind]))
        assert not can_pack(model)


@pytest.mark.parametrize("end", [END, 7])
@pytest.mark.parametrize("packed", [True, False])
def test_a_pad_token_that_is_the_end_token(packed, end):
    """Rows that hold and end with it are rows like others: lengths say what is padding, not ids."""
    answers = [(5, end), (5, 6, end), (9, end)]
    model, plain = build("llama", answers, pad_token_id=end, eos_token_id=end)
    batch = [np.array(row) for row in ([9, 8, end], [11, end, 20, 21, 22, 30], [end], [12, end, end])]
    assert is_close(score(model, batch, packed, pad_id=end), word_scores(plain, batch, answers))
    assert can_pack(model)


@pytest.mark.parametrize("kind", ["single", "mixed"])
@pytest.mark.parametrize("training", [False, True])
def test_the_head_sees_only_the_states_that_are_asked_for(kind, training):
    model, _ = build("llama", ANSWERS[kind])
    model.train(training)
    seen = []
    model.inner.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    score(model, rows(), True)
    assert seen[-1][:2] == (len(LENGTHS), model.words.num_states)
    before = model.inner(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert before.shape[:2] == (1, 3)  # who calls the transformers model itself gets all of them
    with pytest.raises(IndexError):  # a failure in the model leaves nothing behind
        model(cut_of([[1000]], True, branches=model.branches))
    assert model.inner(input_ids=torch.tensor([[5, 6, 7]])).logits.shape[:2] == (1, 3)


def test_bfloat16_weights_and_autocast():
    for kind in ("single", "mixed"):
        model, plain = build("llama", ANSWERS[kind])
        wanted = word_scores(plain, rows(), ANSWERS[kind])
        with torch.autocast("cpu", torch.bfloat16):
            found = score(model, rows(), True)
        assert found.dtype == torch.float32
        assert 0 < (found - wanted).abs().max() < 0.2
        found = score(copy.deepcopy(model).bfloat16(), rows(), True)
        assert found.dtype == torch.float32
        assert 0 < (found - wanted).abs().max() < 0.5


# -- nothing leaks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["single", "mixed"])
def test_nothing_leaks_between_packed_neighbours(family, kind):
    model, _ = build(family, ANSWERS[kind])
    before = score(model, rows(), True)
    for k in range(len(LENGTHS)):
        other = [row if i != k else rows(seed=1)[k] for i, row in enumerate(rows())]
        after = score(model, other, True)
        same = [i for i in range(len(LENGTHS)) if i != k]
        assert torch.equal(before[same], after[same])  # bitwise
        assert not torch.equal(before[k], after[k])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_nothing_leaks_between_words(family, packed):
    model, _ = build(family, [(5, 6, 7), (9, 8, 4), (30, 11, 12)])
    before = score(model, rows(), packed)
    model.words = words_file.WordTable([(5, 6, 7), (20, 21, 22), (30, 11, 12)])
    after = score(model, rows(), packed)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])  # bitwise
    assert not is_close(before[:, 1], after[:, 1])


# -- bite -------------------------------------------------------------------------------------------------------


def one_step(self, states, logits, head, places, exact):
    """One step's log-probabilities of all of a word's tokens, summed: what T5's decoder says at its first step."""
    return (logits[:, :1].log_softmax(-1)[:, 0, self.tokens] * self.keep).sum(dim=-1)


@pytest.mark.parametrize("packed", [True, False])
def test_bite_summing_one_step(packed, monkeypatch):
    monkeypatch.setattr(words_file.WordTable, "scores", one_step)
    for kind in ANSWERS:
        model, plain = build("llama", ANSWERS[kind])
        wanted = word_scores(plain, rows(), ANSWERS[kind])
        assert is_close(score(model, rows(), packed), wanted) == (kind == "single")


def branches_see_each_other(branch, place, window=None):
    """What is read before, as in one row."""
    index = torch.arange(branch.shape[-1])
    return (index[:, None] >= index).expand(*branch.shape, -1)


def branches_see_by_place(branch, place, window=None):
    """Whatever stands at an earlier place, in whatever branch."""
    return place[..., :, None] >= place[..., None, :]


@pytest.mark.parametrize("harm", [branches_see_each_other, branches_see_by_place])
def test_bite_branches_that_see_each_other(harm, monkeypatch):
    model, plain = build("llama", ANSWERS["several"])
    wanted = word_scores(plain, rows(), ANSWERS["several"])
    monkeypatch.setattr(packing, "branch_mask", harm)
    found = score(model, rows(), True)
    assert not is_close(found, wanted)
    if harm is branches_see_each_other:
        assert is_close(found[:, 0], wanted[:, 0])  # nothing stands before the first
    model.words = words_file.WordTable([*ANSWERS["several"][:1], (20, 21), *ANSWERS["several"][2:]])
    assert not torch.equal(score(model, rows(), True)[:, 2], found[:, 2])
    assert not can_pack(model)


def test_bite_branches_whose_places_run_on(monkeypatch):
    model, plain = build("gpt2", ANSWERS["several"])
    cut = cut_of(rows(), True, branches=model.branches)
    run_on = cut._replace(place=torch.arange(cut.ids.shape[1]) - cut.cu_seqlens[cut.owner])
    assert not is_close(model(run_on).detach(), word_scores(plain, rows(), ANSWERS["several"]))


# -- learning, and a head instead of words ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "mixed"])
def test_the_answer_s_loss_is_language_modelling_of_the_answer_alone(kind):
    """Its gradient is that of transformers' own loss with every label but the answer's ignored."""
    model, plain = build("llama", ANSWERS[kind])
    labels = np.array([0, 2, 1, 1, 0, 2])
    cut = cut_of(rows(), True, labels=labels, branches=model.branches)
    loss = answer_loss(model(cut), cut.labels)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    total = 0.0
    for row, label in zip(rows(), labels):
        answer = ANSWERS[kind][label]
        ids = torch.tensor([[*row, *answer]])
        targets = torch.tensor([[-100] * len(row) + list(answer)])
        total = total + plain(input_ids=ids, labels=targets).loss * len(
            answer
        )  # theirs is a mean over tokens
    total.backward()
    wanted = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    assert (found - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_last_token_under_a_head(family):
    names, config = ["a", "b", "c"], tiny_language_model(family).config
    torch.manual_seed(1)
    parts = ("linear", "last", None, "auto", False)
    model, _ = build_model(family, config, names, False, *parts, architecture="causal")
    model.eval()
    assert not model.branches
    states = [model.inner(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0, -1] for row in rows()]
    wanted = model.head(torch.stack(states))
    assert is_close(model(cut_of(rows(), True)), wanted)
    assert is_close(model(cut_of(rows(), False)), wanted)
    assert can_pack(model)


def test_a_backbone_that_has_no_language_model():
    config = tiny_language_model("t5").config
    with pytest.raises(UserError, match="--head words: transformers has no such model for t5"):
        build_model("x", config, ["a", "b"], False, "words", "", None, "auto", False, architecture="causal",
                    answers=ANSWERS["single"])  # fmt: skip
