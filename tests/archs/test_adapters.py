"""archs/adapters.py: PEFT reads the adapters that we write, and we read PEFT's, with the same scores."""

import os
import warnings

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from archs.adapters import load_adapter, whole_modules
from archs.build import build_model
from archs.loading import load_config, load_tokenizer
from archs.lora import add_lora, find_targets
from archs.saving import load_model, save_model
from core.batches import make_cut
from core.errors import UserError
from tests.conftest import LANGUAGE_MODELS, save_language_model, save_tiny
from tests.helpers import cut_of

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Adapter .default")
NAMES = ["red", "green", "blue"]
ROWS = [[2, 7, 8, 9, 3], [2, 10, 3], [2, 11, 12, 13, 14, 15, 3]]
ANSWERS = [(7,), (8, 9), (10,)]
AUTO = {"model": "SequenceClassification", "causal": "CausalLM", "t5": "Seq2SeqLM"}
CASES = {  # name: (family, architecture, head, PEFT's task)
    "bert": ("bert", "bert", "model", "SEQ_CLS"),
    "roberta": ("roberta", "bert", "model", "SEQ_CLS"),
    "distilbert": ("distilbert", "bert", "model", "SEQ_CLS"),
    "deberta": ("deberta-v2", "bert", "model", "SEQ_CLS"),
    "modernbert": ("modernbert", "bert", "model", "SEQ_CLS"),
    "bert mlp": ("bert", "bert", "mlp", "FEATURE_EXTRACTION"),
    "llama": ("llama", "causal", "words", "CAUSAL_LM"),
    "llama linear": ("llama", "causal", "linear", "FEATURE_EXTRACTION"),
    "gpt2": ("gpt2", "causal", "words", "CAUSAL_LM"),
    "t5": ("t5", "t5", "words", "SEQ_2_SEQ_LM"),
    "t5 encoder": ("t5", "t5", "linear", "FEATURE_EXTRACTION"),
}


@pytest.fixture(scope="module")
def peft():
    """PEFT, where it is installed."""
    return pytest.importorskip("peft", reason="peft is not installed (requirements-bench.txt)")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """A folder with a tiny model of each family."""
    return save_bases(tmp_path_factory.mktemp("bases"))


def save_bases(root) -> dict[str, str]:
    """A folder with a tiny model of each family."""
    return {
        family: (save_language_model if family in LANGUAGE_MODELS else save_tiny)(root / family, family)
        for family in {case[0] for case in CASES.values()}
    }


def build(base: str, case: str, **changes) -> nn.Module:
    """A classifier on the base, without adapters; its own head is random."""
    _, architecture, head, _ = CASES[case]
    config = load_config(base)
    more = {"architecture": architecture, "answers": ANSWERS} | changes
    return build_model(base, config, NAMES, False, head, "mean", None, "auto", **more)[0].eval()


@torch.no_grad()
def move(model: nn.Module) -> None:
    """As after training: everything that is trained is somewhere else."""
    for param in model.parameters():
        if param.requires_grad:
            param.add_(0.3 * torch.randn_like(param))


def trained(base: str, case: str, rslora: bool = False, targets: str = "", seed: int = 1) -> nn.Module:
    """A classifier with random adapters of rank 3."""
    torch.manual_seed(seed)
    model = build(base, case)
    names = find_targets(model.inner, targets)
    add_lora(model.inner, names, 3, 4.0, 0.1, rslora, keep_trained=whole_modules(model))
    move(model)
    return model


def save(folder, model: nn.Module, base: str, case: str, rslora: bool = False) -> str:
    """save_model with what load_model needs to know."""
    _, architecture, head, _ = CASES[case]
    about = {"architecture": architecture, "head": head, "pooling": "mean", "answers": ANSWERS}
    about |= {"label_names": NAMES, "multi_label": False, "attention": "auto", "max_length": 32}
    about |= {"model_name": base, "base_model": os.path.abspath(base)}
    about["lora"] = {"rank": 3, "alpha": 4.0, "dropout": 0.1, "rslora": rslora}
    save_model(folder, model, load_tokenizer(base), about)
    return str(folder)


def plain_base(base: str, case: str) -> nn.Module:
    """What a user of transformers has for PEFT: the model of the adapter's task, with as many labels."""
    _, architecture, head, task = CASES[case]
    kind = AUTO["model" if head == "model" else architecture] if task != "FEATURE_EXTRACTION" else ""
    auto = getattr(transformers, f"AutoModel{'For' * bool(kind)}{kind}")
    if task == "FEATURE_EXTRACTION" and architecture == "t5":
        auto = transformers.AutoModelForTextEncoding
    return auto.from_pretrained(base, **({"num_labels": 3} if head == "model" else {})).eval()


@torch.no_grad()
def outputs(model: nn.Module) -> torch.Tensor:
    """Logits, or the states of tokens, of a transformers model for the padded rows."""
    cut = cut_of(ROWS, False, pad_id=model.config.pad_token_id or 0)
    inputs = {"input_ids": cut.ids, "attention_mask": cut.mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 7, 8]] * len(ROWS))
    out = model(**inputs)
    if not hasattr(out, "logits"):
        return out.last_hidden_state[cut.mask]
    return out.logits if out.logits.dim() == 2 or model.config.is_encoder_decoder else out.logits[cut.mask]


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def scores(model: nn.Module) -> torch.Tensor:
    """(3, 3) by our model; with words of several tokens they stand behind each row."""
    parts = [np.array(row) for row in ROWS], np.zeros(3, np.int64), np.arange(3), None
    return model(make_cut(*parts, model.inner.config.pad_token_id or 0, False, False, model.branches))


# -- ours read by PEFT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_peft_gives_the_same_outputs(case, rslora, bases, peft, tmp_path):
    base = bases[CASES[case][0]]
    model = trained(base, case, rslora)
    folder = save(tmp_path / "m", model, base, case, rslora)
    config = peft.PeftConfig.from_pretrained(folder)
    assert config.task_type == CASES[case][3]
    assert config.base_model_name_or_path == base
    plain = plain_base(base, case)
    before = outputs(plain)
    with warnings.catch_warnings():  # PEFT warns where its reading of target_modules is not what we saved
        warnings.filterwarnings("error", "Found missing adapter keys")
        theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
    found = outputs(theirs)
    assert is_same(found, outputs(model.inner))
    assert not torch.allclose(found, before, atol=1e-2)  # bite: the adapter does something

    again, _, about = load_model(tmp_path / "m")
    assert torch.equal(scores(again), scores(model))
    assert about["lora"]["rank"] == 3
    files = {path.name for path in (tmp_path / "m").iterdir()}
    assert "model.safetensors" not in files  # the base is not written again
    assert ("head.safetensors" in files) == (CASES[case][2] in ("mlp", "linear"))


def test_bite_a_setting_that_is_not_written(bases, peft, tmp_path):
    base = bases["roberta"]
    model = trained(base, "roberta", rslora=True)
    for name, right in (("wrong", False), ("right", True)):
        folder = save(tmp_path / name, model, base, "roberta", rslora=right)
        theirs = peft.PeftModel.from_pretrained(plain_base(base, "roberta"), folder).eval()
        assert is_same(outputs(theirs), outputs(model.inner)) == right


def test_a_part_of_the_layers_for_peft(bases, peft, tmp_path):
    for case, targets in (("bert", r".*layer\.1\.attention\..*"), ("t5", r"encoder\..*\.(q|wi)")):
        base = bases[CASES[case][0]]
        model = trained(base, case, targets=targets)
        folder = save(tmp_path / case, model, base, case)
        theirs = peft.PeftModel.from_pretrained(plain_base(base, case), folder).eval()
        assert is_same(outputs(theirs), outputs(model.inner))
        assert torch.equal(scores(load_model(tmp_path / case)[0]), scores(model))


# -- PEFT's read by us ------------------------------------------------------------------------------------------

THEIRS = {  # name: (case, PEFT's settings)
    "bert": ("bert", {"target_modules": ["query", "value"]}),
    "pooler": ("bert", {"target_modules": ["query", "value"], "modules_to_save": ["pooler", "classifier"]}),
    "all": ("bert", {"target_modules": "all-linear"}),  # the pooler's too
    "dense": ("roberta", {"target_modules": ["query", "dense"]}),  # not the head's: it is trained whole
    "distilbert": ("distilbert", {"target_modules": ["q_lin", "lin1"]}),
    "regex": ("bert mlp", {"target_modules": r".*layer\.1\.attention\.self\.(query|key)"}),
    "one layer": ("bert mlp", {"target_modules": ["query"], "layers_to_transform": [1]}),
    "exclude": ("bert mlp", {"target_modules": ["dense"], "exclude_modules": r"pooler.*|.*layer\.0.*"}),
    "default": ("llama", {}),
    "llama": ("llama", {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "t5": ("t5", {"target_modules": "all-linear"}),
    "t5 encoder": ("t5 encoder", {"target_modules": ["q", "wo"]}),
}


def peft_model(peft, base: str, case: str, **settings) -> nn.Module:
    """A model of PEFT's with random adapters of rank 2."""
    torch.manual_seed(2)
    config = peft.LoraConfig(task_type=CASES[case][3], **({"r": 2, "lora_alpha": 5} | settings))
    theirs = peft.get_peft_model(plain_base(base, case), config).eval()
    move(theirs)
    return theirs


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", THEIRS)
def test_we_give_the_same_outputs_as_peft(name, rslora, bases, peft, tmp_path):
    case, settings = THEIRS[name]
    base = bases[CASES[case][0]]
    theirs = peft_model(peft, base, case, use_rslora=rslora, **settings)
    theirs.save_pretrained(tmp_path)
    model = build(base, case)
    load_adapter(model, tmp_path)
    assert is_same(outputs(model.inner), outputs(theirs))


KINDS = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "rank_pattern": {"rank_pattern": {"query": 4}},
    "lora_bias": {"lora_bias": True},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_lora_is_refused(kind, bases, peft, tmp_path):
    base = bases["bert"]
    peft_model(peft, base, "bert mlp", target_modules=["query"], **KINDS[kind]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="expected plain LoRA without biases, found LORA"):
        load_adapter(build(base, "bert mlp"), tmp_path)


def test_another_peft_method_is_refused(bases, peft, tmp_path):
    config = peft.IA3Config(target_modules=["query"], feedforward_modules=[])
    peft.get_peft_model(plain_base(bases["bert"], "bert mlp"), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"expected plain LoRA without biases, found IA3$"):
        load_adapter(build(bases["bert"], "bert mlp"), tmp_path)
