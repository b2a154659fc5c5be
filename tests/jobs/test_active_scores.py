"""jobs/active_scores.py: states are the input of the layer that the scores come from, for every kind of model."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from archs.build import build_model
from core.acquisition import badge, coreset, margins, residuals
from core.errors import UserError
from jobs import active_scores
from jobs.active_scores import choose, last_layer, score_texts
from predict import Predictor
from tests.conftest import COLOURS, save_language_model, save_tiny, toy_rows

NAMES = sorted(COLOURS)
TEXTS = [row["text"] for row in toy_rows(30, 5)]
LINES = list(range(1, 31))
# the words of WordDecoder and WordEncoderDecoder: each one token, or some longer
SHORT, LONG = [(5,), (6,), (7,)], [(5, 8), (6,), (7, 9, 10)]
MODELS = {  # name: (family, architecture, head, pooling, answers)
    "bert": ("bert", "bert", "model", "cls", None),
    "roberta": ("roberta", "bert", "model", "cls", None),
    "distilbert": ("distilbert", "bert", "model", "cls", None),
    "modernbert": ("modernbert", "bert", "model", "cls", None),
    "mpnet": ("mpnet", "bert", "model", "cls", None),
    "deberta": ("deberta-v2", "bert", "model", "cls", None),
    "electra": ("electra", "bert", "model", "cls", None),
    "mlp": ("bert", "bert", "mlp", "mean_max", None),
    "residual": ("distilbert", "bert", "residual", "attention", None),
    "causal-linear": ("llama", "causal", "linear", "last", None),
    "words": ("llama", "causal", "words", "last", SHORT),
    "long-words": ("llama", "causal", "words", "last", LONG),
    "gpt2-long-words": ("gpt2", "causal", "words", "last", LONG),
    "t5": ("t5", "t5", "words", "last", SHORT),
    "t5-long-words": ("t5", "t5", "words", "last", LONG),
}


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """Call with a name of MODELS: a predictor with random weights whose cuts hold a few rows each."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def make(name: str) -> Predictor:
        if name not in made:
            family, architecture, head, pooling, answers = MODELS[name]
            save = save_tiny if architecture == "bert" else save_language_model
            path = save(folder / name, family)
            torch.manual_seed(1)
            model, _ = build_model(
                path, AutoConfig.from_pretrained(path), NAMES, False, head, pooling, None, "auto",
                architecture=architecture, answers=answers,
            )  # fmt: skip
            about = {"label_names": NAMES, "multi_label": False, "row_format": {}, "max_length": 32}
            about |= {"truncate": "head", "architecture": architecture, "amp": "off"}
            tokenizer = AutoTokenizer.from_pretrained(path)
            made[name] = Predictor(model.eval(), tokenizer, about, None, torch.device("cpu"), "off", 120)
        return made[name]

    return make


@pytest.mark.parametrize("name", [name for name, (*_, answers) in MODELS.items() if not answers])
def test_states_times_the_last_layer_are_the_scores(predictors, name):
    predictor = predictors(name)
    logits, states = score_texts(predictor, TEXTS, None, LINES, "a.jsonl", True)
    layer = last_layer(predictor.model)
    np.testing.assert_allclose(layer(torch.tensor(states)).detach(), logits, rtol=1e-5, atol=1e-5)
    assert np.array_equal(logits, predictor.scores(TEXTS))  # nothing is changed by looking


@pytest.mark.parametrize("name", [name for name, (*_, answers) in MODELS.items() if answers])
def test_states_of_label_words_give_the_words_first_tokens(predictors, name):
    """For words of one token that is all of the score, but for a constant of the row."""
    predictor, answers = predictors(name), MODELS[name][-1]
    logits, states = score_texts(predictor, TEXTS, None, LINES, "a.jsonl", True)
    head = last_layer(predictor.model)
    log_probs = head(torch.tensor(states)).log_softmax(-1)
    first = log_probs[:, [answer[0] for answer in answers]].detach().numpy()
    single = [k for k, answer in enumerate(answers) if len(answer) == 1]
    np.testing.assert_allclose(first[:, single], logits[:, single], rtol=1e-4, atol=1e-4)
    assert (first >= logits - 1e-4).all()  # the tokens behind take some more


def test_states_are_in_the_order_of_the_texts_over_windows_too(predictors, monkeypatch):
    whole = score_texts(predictors("bert"), TEXTS, None, LINES, "a.jsonl", True)
    monkeypatch.setattr(active_scores, "WINDOW", 7)
    parts = score_texts(predictors("bert"), TEXTS, None, LINES, "a.jsonl", True)
    backwards = score_texts(predictors("bert"), TEXTS[::-1], None, LINES, "a.jsonl", True)
    for a, b, c in zip(whole, parts, backwards, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a, c[::-1], rtol=1e-5, atol=1e-5)


def test_no_hook_stays(predictors):
    predictor = predictors("bert")
    score_texts(predictor, TEXTS, None, LINES, "a.jsonl", True)
    model = predictor.model
    assert not model._forward_hooks
    assert not last_layer(model)._forward_pre_hooks


def test_without_states(predictors):
    logits, states = score_texts(predictors("bert"), TEXTS, None, LINES, "a.jsonl", False)
    assert states is None
    assert np.array_equal(logits, predictors("bert").scores(TEXTS))


def test_scores_that_are_not_finite_are_told_by_line(predictors):
    predictor = predictors("bert")
    weight = last_layer(predictor.model).weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"a.jsonl: 30 bad rows:\n  line 1: a score is not finite"):
        score_texts(predictor, TEXTS, None, LINES, "a.jsonl", False)
    with torch.no_grad():
        weight.copy_(before)


def test_pairs_are_asked_for(predictors):
    with pytest.raises(UserError, match=r"a.jsonl: the run takes single texts"):
        score_texts(predictors("bert"), TEXTS, TEXTS, LINES, "a.jsonl", False)


# -- choosing ---------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
LOGITS, STATES, LABELLED = RNG.normal(size=(40, 3)), RNG.normal(size=(40, 5)), RNG.normal(size=(6, 5))


def chosen(acquisition: str, num_rows: int = 9, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return choose(acquisition, num_rows, LOGITS, STATES, LABELLED, False, rng).tolist()


def test_entropy_wants_the_most_uncertain():
    probs = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    assert chosen("entropy") == np.argsort((probs * np.log(probs)).sum(axis=1))[:9].tolist()


def test_margin_wants_the_most_narrow():
    assert chosen("margin") == np.argsort(margins(LOGITS, False))[:9].tolist()


def test_equally_unsure_rows_come_as_they_stand():
    same = np.zeros((20, 3))
    for acquisition in ("entropy", "margin"):
        assert choose(acquisition, 4, same, None, None, False, np.random.default_rng(0)).tolist() == [
            0,
            1,
            2,
            3,
        ]


def test_badge_and_coreset_get_what_they_need():
    rng = np.random.default_rng(0)
    assert chosen("badge") == badge(residuals(LOGITS, False), STATES, 9, rng).tolist()
    assert chosen("coreset") == coreset(STATES, LABELLED, 9).tolist()


def test_the_seed_draws():
    for acquisition in ("badge", "random"):
        assert chosen(acquisition) == chosen(acquisition)
        assert chosen(acquisition) != chosen(acquisition, seed=1)


@pytest.mark.parametrize("acquisition", active_scores.ACQUISITIONS)
def test_all_rows_where_there_are_no_more(acquisition):
    assert sorted(chosen(acquisition, 99)) == list(range(40))


def test_several_labels_by_hand():
    logits = np.array([[4.0, 4.0], [0.1, 9.0], [1.0, 1.0]])
    rng = np.random.default_rng(0)
    assert choose("margin", 3, logits, None, None, True, rng).tolist() == [
        1,
        2,
        0,
    ]  # one narrow label will do
    assert choose("entropy", 3, logits, None, None, True, rng).tolist() == [2, 1, 0]  # their mean
