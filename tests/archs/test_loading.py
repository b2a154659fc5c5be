"""archs/loading.py: names and their errors, dropout of every family, notes about weights."""

import hashlib
import os

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel

from archs import loading
from archs.build import build_model
from archs.dropout import Dropout, set_dropout
from archs.loading import load_config, load_tokenizer, longest_input, resolve_name
from core.errors import UserError
from tests.conftest import save_tiny, tiny_config, tiny_tokenizer

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "mpnet", "modernbert", "electra", "albert")
NAMES = ["red", "green", "blue"]


def build(folder: str, head: str = "model", dropout: float | None = None, multi_label: bool = False, **extra):
    """build_model with the settings most tests share."""
    return build_model(
        folder, load_config(folder), NAMES, multi_label, head, "mean", dropout, "auto", **extra
    )


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert-base-uncased", "microsoft/deberta-v3-base"])
def test_hub_names_are_left_alone(name):
    assert resolve_name(name) == name


def test_folders(tiny_bert, tmp_path, monkeypatch):
    assert resolve_name(tiny_bert) == tiny_bert
    monkeypatch.setenv("HOME", os.path.dirname(tiny_bert))
    assert resolve_name("~/tiny-bert") == tiny_bert
    with pytest.raises(UserError, match=r"--model_name \./nowhere: is no folder; expected a model folder"):
        resolve_name("./nowhere")
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve_name(str(tmp_path))
    with pytest.raises(UserError, match=r"--model_name a/b/c: is no folder"):
        resolve_name("a/b/c")


def test_built_in_names(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"builtin:maxilm: no such built-in model; there is minilm"):
        resolve_name("builtin:maxilm")
    with pytest.raises(UserError, match=r"builtin:minilm: not fetched yet: run `make setup`"):
        resolve_name("builtin:minilm")
    (tmp_path / "minilm").mkdir()
    weights = tmp_path / "minilm" / "model.safetensors"
    weights.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(
        UserError, match=rf"{found}, expected 53aa51172d.*remove its folder and run `make setup`"
    ):
        resolve_name("builtin:minilm")
    monkeypatch.setitem(loading.BUILTIN, "minilm", ("model.safetensors", found))
    assert resolve_name("builtin:minilm") == str(tmp_path / "minilm")


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for load, what in ((load_config, "configuration"), (load_tokenizer, "tokenizer")):
        with pytest.raises(
            UserError, match=rf"someone/no-such-model: its {what} cannot be loaded from this hub model"
        ):
            load("someone/no-such-model")


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"its configuration cannot be loaded from this folder"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(UserError, match="nonesuch"):
        load_config(str(tmp_path))


def test_a_folder_without_weights(tmp_path):
    tiny_config("bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its weights cannot be loaded from this folder.*model\.safetensors"):
        build(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer(family, tmp_path):
    """transformers makes an empty vocabulary of it, without a word."""
    tiny_config(family).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no tokenizer|its tokenizer cannot be loaded from this folder"):
        load_tokenizer(str(tmp_path))
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("red the").input_ids == [2, 29, 34, 3]


def test_an_encoder_decoder_is_refused(tmp_path):
    transformers.T5Config(d_model=16, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"is an encoder-decoder \(t5\), not an encoder: give --architecture t5"
    ):
        load_config(str(tmp_path), "bert")
    assert load_config(str(tmp_path), "t5").model_type == load_config(str(tmp_path)).model_type == "t5"


def test_an_architecture_without_its_own_head(tmp_path):
    config = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(
        UserError, match=r"--head model: transformers has no such model for clip_text_model.*linear"
    ):
        build_model(str(tmp_path), config, NAMES, False, "model", "mean", None, "auto")


def test_a_tokenizer_without_padding(tmp_path):
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "end")
    assert load_tokenizer(str(tmp_path / "end")).pad_token == "</s>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="neither a padding nor an end token"):
        load_tokenizer(str(tmp_path / "none"))


# -- lengths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_input_really_fits(family, tmp_path):
    """64 of 64 or of 66 positions; RoBERTa and MPNet lose the two up to their padding index."""
    config, tokenizer = tiny_config(family), tiny_tokenizer()
    tokenizer.model_max_length = 10**6
    assert longest_input(config, tokenizer, "auto") == 64
    assert longest_input(config, tokenizer, 30) == 30
    with pytest.raises(UserError, match=rf"--max_length 65: {family} takes at most 64 tokens"):
        longest_input(config, tokenizer, 65)
    model = AutoModel.from_config(config).eval()
    assert model(input_ids=torch.full((1, 64), 7)).last_hidden_state.isfinite().all()


def test_the_automatic_length():
    config, tokenizer = tiny_config("bert", max_position_embeddings=512), tiny_tokenizer()
    assert longest_input(config, tokenizer, "auto") == 64  # the tokenizer's
    tokenizer.model_max_length = 10**30
    assert longest_input(config, tokenizer, "auto") == 256
    config.max_position_embeddings = -1  # relative positions alone
    assert longest_input(config, tokenizer, 5000) == 5000


# -- dropout ----------------------------------------------------------------------------------------------------


def dropouts(model: nn.Module) -> dict[str, float]:
    """Every dropout probability in a model: modules, and numbers that an attention passes on."""
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout)}
    for name, module in model.named_modules():
        numbers = {key: value for key, value in vars(module).items() if "drop" in key}
        found |= {f"{name}.{k}": v for k, v in numbers.items() if isinstance(v, float)}
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["model", "mlp"])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_dropout_sets_every_dropout(family, head, p):
    config = tiny_config(family)
    model, _ = build_model(family, config, NAMES, False, head, "mean", p, "auto", pretrained=False)
    found = dropouts(model)
    assert len(found) >= 5
    assert set(found.values()) == {p}, found
    assert all(type(m) is Dropout for m in model.modules() if isinstance(m, nn.Dropout))


def test_bite_one_dropout_that_was_forgotten():
    model, _ = build_model("m", tiny_config("modernbert"), NAMES, False, "model", "mean", 0.3, "auto", False)
    model.inner.model.layers[1].attn.attention_dropout = 0.1
    assert set(dropouts(model).values()) == {0.1, 0.3}


def test_dropout_sets_numbers_alone():
    config = tiny_config("bert", token_dropout=False, use_dropout=True, classifier_dropout=None)
    set_dropout(config, 0.3)
    assert config.token_dropout is False
    assert config.use_dropout is True
    assert config.classifier_dropout is None  # follows hidden_dropout_prob
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3


# -- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_and_problem_type(tiny_bert, multi_label):
    model, _ = build(tiny_bert, multi_label=multi_label)
    config = model.inner.config
    assert config.num_labels == 3
    assert config.id2label == {0: "red", 1: "green", 2: "blue"}
    assert config.label2id == {"red": 0, "green": 1, "blue": 2}
    assert config.problem_type == (
        "multi_label_classification" if multi_label else "single_label_classification"
    )
    assert {param.dtype for param in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["model", "linear"])
def test_the_backbone_is_the_checkpoints(family, head, tmp_path):
    folder = save_tiny(tmp_path, family)
    model, notes = build(folder, head)
    saved = load_file(tmp_path / "model.safetensors")
    ours = dict(model.inner.named_parameters())
    prefix = model.inner.base_model_prefix + "." if head == "model" else ""
    same = [name for name in saved if prefix + name in ours and torch.equal(ours[prefix + name], saved[name])]
    assert len(same) == len([name for name in saved if "pooler" not in name or prefix + name in ours])
    assert not any("WARNING" in note for note in notes)
    new = [note for note in notes if "new weights, not in the checkpoint: " in note]
    assert len(new) == (head == "model")  # the head of a pretrained backbone; ours goes without saying
    if new:
        assert "classifier" in new[0]


def test_a_checkpoint_with_holes_is_warned_of(tmp_path):
    folder = save_tiny(tmp_path)
    config = load_config(folder)
    config.num_hidden_layers = 3
    _, notes = build_model(folder, config, NAMES, False, "model", "mean", None, "auto")
    assert any(
        note.startswith("WARNING: 16 weights of the backbone are not in the checkpoint") for note in notes
    )


class Harmful:
    """What a pickle can do: run a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_bin_weights_are_read_and_said_so(tmp_path):
    folder = save_tiny(tmp_path)
    expected, _ = build(folder, "linear")
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model, notes = build(folder, "linear")
    assert notes == ["weights read from a .bin file with weights_only=True"]
    for one, other in zip(model.inner.parameters(), expected.inner.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.save(weights | {"bad": Harmful(tmp_path / "harm")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights cannot be loaded"):
        build(folder, "linear")
    assert not (tmp_path / "harm").exists()


def test_remote_code_is_never_run(tmp_path):
    config = AutoConfig.from_pretrained(save_tiny(tmp_path)).to_dict()
    config |= {"model_type": "odd", "auto_map": {"AutoConfig": "code.Odd"}}
    (tmp_path / "config.json").write_text(transformers.PreTrainedConfig.from_dict(config).to_json_string())
    (tmp_path / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'harm')!r})\n")
    with pytest.raises(UserError, match="its configuration cannot be loaded"):
        load_config(str(tmp_path))
    assert not (tmp_path / "harm").exists()
