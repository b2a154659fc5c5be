"""archs/build.py: which head the flags mean, for which model; every dropout of language models; what stands where."""

import pytest
import torch
from transformers import AutoConfig

from archs.build import build_model, choose_head, model_class
from archs.causal import WordDecoder
from archs.encoder import OwnHead, PooledHead
from archs.loading import load_config, model_kind
from archs.seq2seq import WordEncoderDecoder
from core.errors import UserError
from core.schedule import parameter_groups
from tests.archs.test_loading import dropouts
from tests.conftest import LANGUAGE_MODELS, save_language_model, save_tiny, tiny_config, tiny_language_model
from tests.helpers import cut_of

NAMES = ["red", "green", "blue"]
ANSWERS = [(5, 6), (9,), (11, 12)]
ENCODERS = ("bert", "roberta", "distilbert", "deberta-v2", "mpnet", "modernbert", "electra", "albert")
KINDS = {"llama": "causal", "gpt2": "causal", "gemma2": "causal", "t5": "t5", "bart": "t5"}
KINDS |= dict.fromkeys(ENCODERS, "bert")

# -- which head -------------------------------------------------------------------------------------------------

HEADS = [  # architecture, --head, --t5_head, (head, pooling) with --pooling mean
    ("bert", "auto", "words", ("model", "mean")),
    ("bert", "model", "words", ("model", "mean")),
    ("bert", "residual", "words", ("residual", "mean")),
    ("bert", "last", "words", ("linear", "last")),
    ("t5", "auto", "words", ("words", "mean")),
    ("t5", "words", "words", ("words", "mean")),
    ("t5", "auto", "encoder", ("linear", "mean")),
    ("t5", "mlp", "encoder", ("mlp", "mean")),
    ("t5", "mlp", "words", ("mlp", "mean")),  # a head of ours stands on the encoder
    ("t5", "last", "encoder", ("linear", "last")),
    ("causal", "auto", "words", ("words", "mean")),
    ("causal", "words", "words", ("words", "mean")),
    ("causal", "last", "words", ("linear", "last")),
    ("causal", "linear", "words", ("linear", "mean")),
    ("bert", "words", "words", "--head words: an encoder has no words to answer with"),
    ("t5", "model", "words", "--head model: is for --architecture bert"),
    ("causal", "model", "words", "--head model: is for --architecture bert"),
    ("t5", "words", "encoder", "--head words: answers through the decoder, --t5_head encoder has none"),
    ("bert", "auto", "encoder", "--t5_head encoder: is for --architecture t5, not bert"),
    ("causal", "last", "encoder", "--t5_head encoder: is for --architecture t5, not causal"),
]


@pytest.mark.parametrize("architecture, head, t5_head, wanted", HEADS)
def test_the_head_that_the_flags_mean(architecture, head, t5_head, wanted):
    if isinstance(wanted, tuple):
        assert choose_head(architecture, head, "mean", t5_head) == wanted
        return
    with pytest.raises(UserError, match=wanted):
        choose_head(architecture, head, "mean", t5_head)


def test_transformers_classes():
    names = {kind: model_class(*kind).__name__ for kind in (("bert", "model"), ("bert", "mlp"), ("t5", "words"),
             ("t5", "linear"), ("causal", "words"), ("causal", "linear"))}  # fmt: skip
    assert list(names.values()) == [
        "AutoModelForSequenceClassification", "AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForTextEncoding",
        "AutoModelForCausalLM", "AutoModel",
    ]  # fmt: skip


# -- which model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KINDS)
def test_what_a_configuration_is(family):
    config = tiny_language_model(family).config if family in LANGUAGE_MODELS else tiny_config(family)
    assert model_kind(config) == KINDS[family]
    assert model_kind(AutoConfig.for_model(config.model_type)) == KINDS[family]


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_model_of_another_architecture_is_refused(family, tmp_path):
    folder = save_tiny(tmp_path) if family == "bert" else save_language_model(tmp_path, family)
    words = {"bert": "an encoder", "t5": "an encoder-decoder", "causal": "a decoder"}
    for architecture in words:
        if architecture == KINDS[family]:
            assert load_config(folder, architecture).model_type == family
            continue
        found, asked = words[KINDS[family]], words[architecture]
        with pytest.raises(
            UserError, match=rf"is {found} \({family}\), not {asked}: give --architecture {KINDS[family]}"
        ):
            load_config(folder, architecture)


# -- what is built ----------------------------------------------------------------------------------------------


def build(family: str, head: str, dropout: float | None = None, pooling: str = "mean"):
    """A random model."""
    kind = {"architecture": KINDS[family], "answers": ANSWERS}
    config = tiny_language_model(family).config
    return build_model(family, config, NAMES, False, head, pooling, dropout, "auto", False, **kind)[0]


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize("head", ["words", "linear"])
def test_every_architecture_has_one_face(family, head):
    if (family, head) == ("bart", "linear"):
        pytest.skip("transformers has no encoder of BART alone")
    model = build(family, head).eval()
    wanted = (
        PooledHead if head == "linear" else WordDecoder if KINDS[family] == "causal" else WordEncoderDecoder
    )
    assert type(model) is wanted
    scores = model(cut_of([[5, 6, 7], [8]], False, branches=model.branches))
    assert scores.shape == (2, 3)
    assert scores.dtype == torch.float32
    assert model.num_layers == 2
    assert model.inner.config.id2label == dict(enumerate(NAMES))
    names = [name for name, _ in model.named_parameters()]
    grouped = [
        id(p) for group in parameter_groups(model, 1e-3, 0.1, 0.8, model.num_layers) for p in group["params"]
    ]
    assert len(grouped) == len(set(grouped)) == len(names)


def test_an_encoder_of_bart_alone():
    with pytest.raises(
        UserError, match="--head linear: transformers has no such model for bart: give --t5_head words"
    ):
        build("bart", "linear")


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_sets_every_dropout(family, p):
    """GPT-2 calls them pdrop."""
    found = dropouts(build(family, "words", p))
    found = {
        name: value for name, value in found.items() if not name.endswith("layerdrop")
    }  # of whole layers
    assert len(found) >= 2
    assert set(found.values()) == {p}, found


def test_the_faces_of_an_encoder_are_as_they_were(tiny_bert):
    config = load_config(tiny_bert)
    for head, kind in (("model", OwnHead), ("mlp", PooledHead)):
        model, _ = build_model(tiny_bert, config, NAMES, False, head, "mean", None, "auto")
        assert type(model) is kind
        assert model.branches == ()
