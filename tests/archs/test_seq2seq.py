"""archs/seq2seq.py against the chain rule spelled out: one step, words together or apart, heads tied or not."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForSeq2SeqLM, T5Config

from archs import words as words_file
from archs.build import build_model
from archs.loading import load_config
from archs.probes import can_pack, choose_packing
from archs.seq2seq import WordEncoderDecoder, start_token
from core.errors import UserError
from losses.classification import answer_loss
from tests.archs.test_causal import ANSWERS, one_step
from tests.conftest import tiny_language_model
from tests.helpers import cut_of, word_scores

LENGTHS = [24, 3, 17, 1, 9, 30]


def umt5() -> nn.Module:
    """Each layer has a position bias of its own."""
    size = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(transformers.UMT5Config(**size, decoder_start_token_id=0))


def untied() -> nn.Module:
    """T5 1.1 and FLAN: a head of its own, whose input is not scaled."""
    model = tiny_language_model("t5", tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    model.lm_head.weight = nn.Parameter(torch.randn(model.lm_head.weight.shape) / 4)
    return model


def with_final_bias() -> nn.Module:
    """Marian's and BART's checkpoints can have one behind the head."""
    model = tiny_language_model("bart")
    model.final_logits_bias = torch.randn(1, model.config.vocab_size)
    return model


FAMILIES = {  # name: (a plain model, whether its words can stand in one decoder row)
    "t5": (lambda: tiny_language_model("t5"), True),
    "t5, untied": (untied, True),
    "umt5": (umt5, True),
    "bart": (lambda: tiny_language_model("bart"), False),
    "bart, bias": (with_final_bias, False),
}


def rows(lengths=LENGTHS, seed: int = 0) -> list[np.ndarray]:
    """Ids of tokens that are no special ones."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 40, n) for n in lengths]


def build(family: str, answers: list, folder) -> tuple[WordEncoderDecoder, nn.Module]:
    """Our classifier in evaluation mode, read from a folder, and the plain model that was written there."""
    torch.manual_seed(0)
    plain = FAMILIES[family][0]().eval()
    plain.save_pretrained(folder)
    names, config = [str(k) for k in range(len(answers))], load_config(str(folder), "t5")
    kind = {"architecture": "t5", "answers": answers}
    model, notes = build_model(str(folder), config, names, False, "words", "", None, "auto", **kind)
    assert notes == []
    return model.eval(), plain


def is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def score(model: WordEncoderDecoder, batch: list) -> torch.Tensor:
    return model(cut_of(batch, False, branches=model.branches)).detach()


# -- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ANSWERS)
def test_scores_are_those_of_the_chain_rule(family, kind, tmp_path):
    model, plain = build(family, ANSWERS[kind], tmp_path)
    wanted = word_scores(plain, rows(), ANSWERS[kind])
    assert (wanted.exp().sum(dim=1) < 1).all()
    assert is_close(score(model, rows()), wanted)
    assert is_close(torch.cat([score(model, [row]) for row in rows()]), wanted)
    if kind != "single":
        assert model.together == (FAMILIES[family][1] or len(model.words.branches) < 2)
        model.together = False
        assert is_close(score(model, rows()), wanted)
    assert model.exact == (family != "bart, bias")


def test_a_head_that_is_tied_is_scaled_and_one_that_is_not_is_not(tmp_path):
    """Else the two cases above would be one."""
    for family in ("t5", "t5, untied"):
        model, _ = build(family, ANSWERS["mixed"], tmp_path / family)
        tied = model.inner.lm_head.weight is model.inner.shared.weight
        assert model.inner.config.scale_decoder_outputs == tied == (family == "t5")


@pytest.mark.parametrize("kind, length", [("single", 1), ("several", 9), ("mixed", 8)])
def test_the_encoder_runs_once_and_the_decoder_once(kind, length, tmp_path):
    """One step where all words are single tokens; otherwise m for each beginning, and keys and values once a row."""
    model, _ = build("t5", ANSWERS[kind], tmp_path)
    shapes = {"encoder": [], "decoder": [], "keys": []}
    parts = {name: getattr(model.inner, name).final_layer_norm for name in ("encoder", "decoder")}
    parts["keys"] = model.inner.decoder.block[0].layer[1].EncDecAttention.k
    for name, part in parts.items():
        note = lambda module, inputs, output, name=name: shapes[name].append(tuple(output.shape[:2]))  # noqa: E731
        part.register_forward_hook(note)
    score(model, rows())
    assert shapes == {"encoder": [(6, 30)], "decoder": [(6, length)], "keys": [(6, 30)]}


@pytest.mark.parametrize("where", ["config", "generation", "nowhere"])
def test_the_start_token_is_found_where_the_checkpoint_has_it(where, tmp_path):
    size = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    if where == "config":
        size["decoder_start_token_id"] = 7
    torch.manual_seed(0)
    plain = AutoModelForSeq2SeqLM.from_config(T5Config(**size, pad_token_id=4))
    if where == "generation":
        plain.generation_config.decoder_start_token_id = 7
    plain.save_pretrained(tmp_path)
    names, config = ["a", "b", "c"], load_config(str(tmp_path), "t5")
    kind = {"architecture": "t5", "answers": ANSWERS["several"]}
    model, _ = build_model(str(tmp_path), config, names, False, "words", "", None, "auto", **kind)
    start = 4 if where == "nowhere" else 7
    assert start_token(model.inner) == start
    assert model.decoder_ids.tolist() == [[start, 5, 6], [start, 9, start], [start, 30, start]]
    plain.config.decoder_start_token_id = start
    assert is_close(score(model.eval(), rows()), word_scores(plain, rows(), ANSWERS["several"]))


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("kind", ["single", "mixed"])
def test_bfloat16(how, kind, tmp_path):
    model, plain = build("t5", ANSWERS[kind], tmp_path)
    wanted = word_scores(plain, rows(), ANSWERS[kind])
    model = model.bfloat16() if how == "weights" else model
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        found = score(model, rows())
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().max() < 0.5
    if kind == "mixed":  # the probe finds the same in 16 bits
        again = WordEncoderDecoder(copy.deepcopy(model.inner).bfloat16(), ANSWERS[kind])
        assert again.together


# -- nothing leaks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "mixed"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_nothing_leaks_between_rows(family, kind, tmp_path):
    model, _ = build(family, ANSWERS[kind], tmp_path)
    before = score(model, rows())
    for k in range(len(LENGTHS)):
        after = score(model, [row if i != k else rows(seed=1)[k] for i, row in enumerate(rows())])
        same = [i for i in range(len(LENGTHS)) if i != k]
        assert torch.equal(before[same], after[same])  # bitwise
        assert not torch.equal(before[k], after[k])


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_nothing_leaks_between_words(family, tmp_path):
    both = []
    for middle in ((9, 8, 4), (20, 21, 22)):
        model, _ = build(family, [(5, 6, 7), middle, (30, 11, 12)], tmp_path / str(middle[0]))
        both.append(score(model, rows()))
    assert torch.equal(both[0][:, [0, 2]], both[1][:, [0, 2]])  # bitwise
    assert not is_close(both[0][:, 1], both[1][:, 1])


# -- bite -------------------------------------------------------------------------------------------------------


def test_bite_summing_one_step(tmp_path, monkeypatch):
    monkeypatch.setattr(words_file.WordTable, "scores", one_step)
    for kind in ANSWERS:
        model, plain = build("t5", ANSWERS[kind], tmp_path / kind)
        wanted = word_scores(plain, rows(), ANSWERS[kind])
        assert is_close(score(model, rows()), wanted) == (kind == "single")


HARMS = {
    "all see all": lambda seen: seen.fill_(True),
    "as one row": lambda seen: seen.copy_(seen.new_ones(9, 9).tril()),
}


@pytest.mark.parametrize("harm", HARMS)
def test_bite_words_that_see_each_other(harm, tmp_path):
    """Their start tokens above all: with a mask of ones each is every word's."""
    model, plain = build("t5", ANSWERS["several"], tmp_path)
    wanted = word_scores(plain, rows(), ANSWERS["several"])
    HARMS[harm](model.seen)
    assert not is_close(score(model, rows())[:, 1:], wanted[:, 1:])
    assert not model._words_are_apart()  # the probe sees it too
    assert model.together is False
    assert is_close(score(model, rows()), wanted)  # apart, the mask is not asked


def test_bite_bart_s_words_together_are_wrong(tmp_path):
    model, plain = build("bart", ANSWERS["several"], tmp_path)
    model.together = True
    found, wanted = score(model, rows()), word_scores(plain, rows(), ANSWERS["several"])
    assert is_close(found[:, 0], wanted[:, 0])  # its positions are right
    assert not is_close(found[:, 1:], wanted[:, 1:])


# -- learning, packing, and the encoder alone -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single", "mixed"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_answer_s_loss_is_transformers_own(family, kind, tmp_path):
    model, plain = build(family, ANSWERS[kind], tmp_path)
    labels, total = np.array([0, 2, 1, 1, 0, 2]), 0.0
    cut = cut_of(rows(), False, labels=labels)
    loss = answer_loss(model(cut), cut.labels)
    loss.backward()
    for row, label in zip(rows(), labels):
        answer = torch.tensor([ANSWERS[kind][label]])
        total = total + plain(input_ids=torch.from_numpy(row)[None], labels=answer).loss * answer.numel()
    total.backward()
    found, wanted = (
        torch.cat([p.grad.flatten() for _, p in sorted(m.named_parameters())]) for m in (model.inner, plain)
    )
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    assert (found - wanted).norm() <= 2e-6 * wanted.norm()


def test_padded_cuts_alone(tmp_path):
    model, _ = build("t5", ANSWERS["mixed"], tmp_path)
    assert not can_pack(model)
    assert choose_packing("auto", model, torch.device("cpu"), None)[0] is False
    with pytest.raises(UserError, match="--packing on: t5 with this head"):
        choose_packing("on", model, torch.device("cpu"), None)


@pytest.mark.parametrize("head, pooling", [("linear", "mean"), ("mlp", "cls"), ("linear", "last")])
@torch.no_grad()
def test_the_encoder_alone_under_a_head(head, pooling, tmp_path):
    plain = FAMILIES["t5"][0]().eval()
    plain.save_pretrained(tmp_path)
    config, names = load_config(str(tmp_path), "t5"), ["a", "b", "c"]
    model, notes = build_model(
        str(tmp_path), config, names, False, head, pooling, None, "auto", architecture="t5"
    )
    assert notes == []
    assert not any("decoder" in name for name, _ in model.named_parameters())
    states = [plain.encoder(input_ids=torch.from_numpy(row)[None]).last_hidden_state[0] for row in rows()]
    pools = {"mean": lambda x: x.mean(dim=0), "cls": lambda x: x[0], "last": lambda x: x[-1]}
    wanted = model.eval().head(torch.stack([pools[pooling](x) for x in states]))
    assert is_close(score(model, rows()), wanted)
