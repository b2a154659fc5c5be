"""Folders with an adapter: read again as they were; of another model, or not whole, they are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from archs.lora import adapters
from archs.saving import load_model, load_weights
from core.errors import UserError
from tests.archs.test_adapters import CASES, move, save, save_bases, scores, trained


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    """A folder with a tiny model of each family."""
    return save_bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def whole(bases, tmp_path_factory) -> dict[str, str]:
    """A saved adapter on an own head, and one with a head of ours."""
    root = tmp_path_factory.mktemp("saved")
    return {
        case: save(root / case, trained(bases["bert"], case), bases["bert"], case)
        for case in ("bert", "bert mlp")
    }


@pytest.mark.parametrize("case", ["bert", "bert mlp", "llama", "t5"])
def test_load_weights_takes_another_run_of_the_same_model(case, bases, tmp_path):
    """As at the end of training: what was best is read into the model that went on."""
    base = bases[CASES[case][0]]
    best, last = trained(base, case, seed=1), trained(base, case, seed=2)
    if case == "bert mlp":
        move(best.head)
    folder = save(tmp_path / "m", best, base, case)
    assert not torch.equal(scores(last), scores(best))
    load_weights(last, tmp_path / "m")
    assert torch.equal(scores(last), scores(best))
    for (name, one), (_, other) in zip(last.named_parameters(), best.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    read = load_file(f"{folder}/adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in read.values())
    assert len(read) == 2 * len(adapters(best.inner)) + 4 * (
        case == "bert"
    )  # pooler and classifier: weight, bias


def test_the_base_is_found_from_elsewhere(bases, tmp_path, monkeypatch):
    """A --model_name that is relative to where the run was started; a base that has moved away."""
    shutil.copytree(bases["bert"], tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    model = trained("models/mine", "bert")
    save(tmp_path / "m", model, "models/mine", "bert")
    monkeypatch.chdir("/")
    assert torch.equal(scores(load_model(tmp_path / "m")[0]), scores(model))
    (tmp_path / "models" / "mine").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="models/mine: is no folder"):
        load_model(tmp_path / "m")


def change_tensors(change):
    """What changes a file of tensors."""

    def harm(path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return harm


def set_config(**values):
    """What changes adapter_config.json; None drops a key."""

    def harm(path) -> None:
        config = json.loads(path.read_text()) | values
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))

    return harm


QUERY = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_B.weight"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
HARMS = {
    "no weights": ("bert", WEIGHTS, lambda path: path.unlink(), "cannot be read"),
    "half the weights": (
        "bert",
        WEIGHTS,
        lambda path: path.write_bytes(path.read_bytes()[:900]),
        "cannot be read",
    ),
    "no B": ("bert", WEIGHTS, change_tensors(lambda found: found.pop(QUERY)), QUERY),
    "no head": (
        "bert",
        WEIGHTS,
        change_tensors(lambda f: f.pop("base_model.model.classifier.bias")),
        "classifier",
    ),
    "a layer too many": (
        "bert",
        WEIGHTS,
        change_tensors(lambda f: f.update({"x.lora_A.weight": f[QUERY].clone()})),
        "x.lora_A",
    ),
    "another rank": ("bert", CONFIG, set_config(r=2), "does not fit the model"),
    "another task": ("bert mlp", CONFIG, set_config(peft_type="LOHA"), "found LOHA"),
    "no rank": ("bert", CONFIG, set_config(r=None), "is not whole: no 'r'"),
    "half a configuration": ("bert", CONFIG, lambda path: path.write_text('{"r": '), "is not whole"),
    "an activated one": (
        "bert",
        CONFIG,
        set_config(alora_invocation_tokens=[5]),
        "found LORA alora_invocation_tokens",
    ),
    "a head of another kind": (
        "bert mlp",
        "bareloop.json",
        set_config(head="model"),
        "adapts no linear module",
    ),
    "no head.safetensors": ("bert mlp", "head.safetensors", lambda path: path.unlink(), "does not fit"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_hollow_folder_is_refused(whole, harm, tmp_path):
    case, name, change, message = HARMS[harm]
    folder = tmp_path / "m"
    shutil.copytree(whole[case], folder)
    load_model(folder)
    change(folder / name)
    with pytest.raises(UserError, match=message):
        load_model(folder)
