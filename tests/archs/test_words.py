"""archs/words.py: which state predicts which token, scores by hand and against the chain rule, exact in bfloat16."""

import copy
import math

import pytest
import torch
import transformers
from torch import nn

from archs.causal import WordDecoder
from archs.lora import add_lora
from archs.words import WordTable, has_plain_head
from tests.conftest import LANGUAGE_MODELS, tiny_language_model
from tests.helpers import cut_of, word_scores

SINGLE = [(3,), (7,)]
MIXED = [(3, 4, 5), (7,), (3, 8)]  # the first and the last share their first token


# -- which state predicts which token ---------------------------------------------------------------------------


def test_words_of_one_token_by_hand():
    table = WordTable(SINGLE)
    assert (table.width, table.num_states, table.branches) == (1, 1, [])
    assert table.tokens.tolist() == [[3], [7]]
    assert table.behind.tolist() == [[0], [0]]


def test_words_of_several_tokens_by_hand():
    table = WordTable(MIXED)
    assert table.branches == [(3, 4)]  # the third word's 3 is read with the first's
    assert (table.width, table.num_states) == (3, 3)  # the prompt's last, then 3 4
    assert table.tokens.tolist() == [[3, 4, 5], [7, 0, 0], [3, 8, 0]]
    assert table.keep.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert table.behind.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 0]]
    assert table.apart.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 0]]
    assert table.ends.tolist() == [3]
    two = WordTable([(3, 4, 5), (7,), (8, 4), (3, 9)])
    assert two.branches == [(3, 4), (8,)]
    assert two.behind.tolist() == [[0, 1, 2], [0, 0, 0], [0, 3, 0], [0, 1, 0]]
    assert two.apart.tolist() == [[0, 1, 2], [0, 0, 0], [3, 4, 0], [0, 1, 0]]
    assert two.ends.tolist() == [3, 2]
    assert not table.state_dict()  # made from the answers: nothing to save


# -- scores by hand: a vocabulary of 4, states whose next token has the chances below ---------------------------

LOG = math.log
CHANCES = (
    torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 1, 7]]) / 10
)  # of the tokens 0 to 3, in three states
ANSWERS = [(3, 0), (1,), (2, 2)]
WANTED = [LOG(0.4) + LOG(0.4), LOG(0.2), LOG(0.3) + LOG(0.1)]


class Head(nn.Module):
    """Not an nn.Linear: its logits are all there is."""


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_scores_by_hand(shift):
    table, logits = (
        WordTable(ANSWERS),
        CHANCES.log()[None] + shift,
    )  # what is added to all is nothing to a softmax
    found = table.scores(torch.zeros(1, 3, 2), logits, Head(), table.behind, True)
    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx(WANTED)
    # words apart: each its own states, of which those past its end are never asked
    apart = logits[:, [0, 1, 0, 2]]
    assert table.scores(apart[..., :2], apart, Head(), table.apart, False)[0].tolist() == pytest.approx(
        WANTED
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_float64_states_have_float64_scores(exact, bias):
    torch.manual_seed(0)
    table, head = WordTable(MIXED), nn.Linear(5, 11, bias=bias).double()
    states = torch.randn(2, table.num_states, 5, dtype=torch.float64)
    found = table.scores(states, head(states), head, table.behind, exact)
    log_probs = head(states).log_softmax(-1)
    wanted = [log_probs[:, 0, 3] + log_probs[:, 1, 4] + log_probs[:, 2, 5], log_probs[:, 0, 7],
              log_probs[:, 0, 3] + log_probs[:, 1, 8]]  # fmt: skip
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.stack(wanted, dim=1), rtol=1e-12, atol=0)


def test_gradients_in_float64():
    torch.manual_seed(0)
    table, head = WordTable(MIXED), nn.Linear(3, 9).double()

    def scores(states, weight):
        plain = copy.copy(head)
        plain._parameters = {"weight": weight, "bias": head.bias.detach()}
        return table.scores(states, plain(states), plain, table.behind, True)

    states = torch.randn(2, table.num_states, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scores, (states, head.weight.detach().requires_grad_()))


def test_the_right_word_is_the_likely_one_and_not_the_one_with_likely_tokens():
    """TP and FP, T5's way: the second token is shared. What one step says of all tokens is no word's chance."""
    table = WordTable([(0, 2), (1, 2)])  # states: behind the prompt, behind 0, behind 1
    chances = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.49, 0.01], [0.01, 0.01, 0.98]])
    found = table.scores(torch.zeros(1, 3, 2), chances.log()[None], Head(), table.behind, False)
    assert found[0].exp().tolist() == pytest.approx([0.6 * 0.01, 0.3 * 0.98])
    one_step = chances[0].log()[table.tokens].sum(dim=1)
    assert one_step.argmax() == 0 != found[0].argmax()


# -- bfloat16 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weights", "autocast"])
@torch.no_grad()
def test_differences_in_bfloat16_are_nearer_to_those_in_float32(how):
    """A logit of 20 comes in steps of 1/8; differences of words must not."""
    torch.manual_seed(0)
    wide, answers = tiny_language_model("llama", tie_word_embeddings=False), [(k,) for k in range(5, 11)]
    head = wide.get_output_embeddings()
    head.weight[5:11] += 3 * torch.randn(16)  # what they have in common makes their logits large
    rows = [torch.randint(5, 40, (n,)).tolist() for n in (4, 9, 2, 6, 12, 7) * 8]
    wanted = WordDecoder(copy.deepcopy(wide), answers).eval()(cut_of(rows, False))
    narrow = wide.bfloat16() if how == "weights" else wide
    model, seen = WordDecoder(narrow, answers).eval(), {}
    head.register_forward_hook(lambda module, inputs, output: seen.update(states=inputs[0], logits=output))
    found = []
    for model.exact in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            found.append(model(cut_of(rows, False)))
    assert seen["logits"].dtype == torch.bfloat16
    assert found[0].dtype == found[1].dtype == torch.float32

    def errors(wanted):
        wanted = wanted - wanted.mean(dim=1, keepdim=True)
        return [float((x - x.mean(dim=1, keepdim=True) - wanted).abs().mean()) for x in found]

    exact, plain = errors(wanted)  # the states' own rounding included
    assert exact < 0.85 * plain
    exact, plain = errors(seen["states"][:, 0].float() @ head.weight[5:11].float().T)  # the head's alone
    assert exact < 1e-5
    assert plain > 1e-2


# -- heads whose product is not the last word -------------------------------------------------------------------

PLAIN = {"llama": {}, "gpt2": {}, "t5": {}, "bart": {}, "gemma2": {"final_logit_softcapping": None}}


@pytest.mark.parametrize("family", PLAIN)
def test_plain_heads(family):
    model = tiny_language_model(family, **PLAIN[family]).train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert has_plain_head(model)
    assert torch.equal(torch.rand(2), expected)  # no number drawn, nothing left behind
    assert model.training
    assert not model.get_output_embeddings()._forward_hooks


SIZE = {"vocab_size": 45, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"num_key_value_heads": 1, "intermediate_size": 32, "initializer_range": 0.2}
CHANGED = {  # a cap, a scale, a cap by another name, a bias that is no part of the head
    "gemma2": lambda: tiny_language_model("gemma2"),
    "cohere": lambda: transformers.CohereForCausalLM(transformers.CohereConfig(**SIZE, logit_scale=0.5)),
    "granite": lambda: transformers.GraniteForCausalLM(transformers.GraniteConfig(**SIZE, logits_scaling=3.0)),
    "recurrent_gemma": lambda: transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(**SIZE, lru_width=16, attention_window_size=8, w_init_variance_scale=1.0)
    ),
    "bart": lambda: with_final_bias(tiny_language_model("bart")),
}  # fmt: skip


def with_final_bias(model: nn.Module) -> nn.Module:
    """Marian's checkpoints have one."""
    model.final_logits_bias = torch.randn(
        model.final_logits_bias.shape, generator=torch.Generator().manual_seed(1)
    )
    return model


@pytest.mark.parametrize("family", CHANGED)
def test_logits_that_are_more_than_a_product(family):
    torch.manual_seed(0)
    assert not has_plain_head(CHANGED[family]())


@pytest.mark.parametrize("family", ["cohere", "granite", "recurrent_gemma"])
def test_their_scores_are_right(family):
    torch.manual_seed(0)
    model = CHANGED[family]().eval()
    rows, answers = [[5, 9, 8], [11, 6, 30, 9, 7]], [(5,), (6, 7), (6, 8)]
    wanted = word_scores(model, rows, answers)
    decoder = WordDecoder(model, answers).eval()
    found = decoder(cut_of(rows, False, branches=decoder.branches))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)
    decoder.exact = True  # bite
    other = decoder(cut_of(rows, False, branches=decoder.branches))
    assert (other - wanted).abs().max() > 0.01


def test_an_adapter_on_the_head_is_in_the_scores():
    torch.manual_seed(0)
    model = tiny_language_model("llama", tie_word_embeddings=False)
    decoder, rows = WordDecoder(model, MIXED).eval(), [[5, 9, 8], [11, 6]]
    before = decoder(cut_of(rows, False, branches=decoder.branches))
    add_lora(model, ["lm_head"], 2, 4.0)
    nn.init.normal_(model.lm_head.lora_B)
    found = decoder(cut_of(rows, False, branches=decoder.branches))
    torch.testing.assert_close(found.double(), word_scores(model, rows, MIXED), rtol=1e-5, atol=1e-5)
    assert (found - before).abs().max() > 0.01


def test_every_language_model_is_here():
    assert set(LANGUAGE_MODELS) == set(PLAIN)
