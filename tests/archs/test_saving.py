"""archs/saving.py: transformers reads what we write, with the same scores; we refuse what we did not write."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from archs.build import build_model
from archs.heads import HEADS
from archs.loading import load_config, load_tokenizer
from archs.pooling import POOLINGS
from archs.saving import load_model, load_weights, save_model
from core.errors import UserError
from tests.conftest import save_tiny
from tests.helpers import cut_of

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "mpnet", "modernbert", "electra", "albert")
NAMES = ["red", "deep green", "blue/sky"]
TEXTS = [
    "the red rose",
    "grass in the sea of moss and lime with jeans",
    "ink",
    "a ruby for his leaf and her sky",
]


def build(folder: str, head: str = "model", pooling: str = "mean", multi_label: bool = False, seed: int = 0):
    """A classifier whose every weight is moved a little, as after training, and its tokenizer."""
    torch.manual_seed(seed)
    model, _ = build_model(folder, load_config(folder), NAMES, multi_label, head, pooling, 0.1, "auto")
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return model.eval(), load_tokenizer(folder)


def save(
    folder, model, tokenizer, head: str = "model", pooling: str = "mean", multi_label: bool = False
) -> str:
    """save_model with what load_model needs to know."""
    about = {"architecture": "bert", "head": head, "pooling": pooling}
    about |= {"label_names": NAMES, "multi_label": multi_label}
    save_model(folder, model, tokenizer, about | {"attention": "auto", "max_length": 32})
    return str(folder)


def batch(tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of the texts, padded."""
    coded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    return coded["input_ids"], coded["attention_mask"].bool()


@torch.no_grad()
def scores(model, tokenizer) -> torch.Tensor:
    """(4, 3) by our model."""
    return model(cut_of(tokenizer(TEXTS)["input_ids"], False, pad_id=tokenizer.pad_token_id))


def is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


# -- the architecture's own head --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("multi_label", [False, True])
@torch.no_grad()
def test_transformers_gives_the_same_scores(family, multi_label, tmp_path):
    model, tokenizer = build(save_tiny(tmp_path / "base", family), multi_label=multi_label)
    ours = scores(model, tokenizer)
    folder = save(tmp_path / "best_model", model, tokenizer, multi_label=multi_label)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert theirs.config._attn_implementation != "bareloop"
    ids, mask = batch(AutoTokenizer.from_pretrained(folder))
    found = theirs(input_ids=ids, attention_mask=mask).logits
    assert is_same(found, ours)
    # bite: before "training" the scores were others
    base, _ = build_model(
        str(tmp_path / "base"), load_config(folder), NAMES, multi_label, "model", "", 0.1, "auto"
    )
    assert not is_same(scores(base.eval(), tokenizer), ours)

    config = json.loads((tmp_path / "best_model" / "config.json").read_text())
    assert config["id2label"] == {str(k): name for k, name in enumerate(NAMES)}
    assert config["problem_type"] == (
        "multi_label_classification" if multi_label else "single_label_classification"
    )
    assert "bareloop" not in json.dumps(config)

    pipe = transformers.pipeline(
        "text-classification", model=folder, tokenizer=folder, top_k=None, device="cpu"
    )
    probs = ours.sigmoid() if multi_label else ours.softmax(1)
    for row, answer in zip(probs, pipe(TEXTS), strict=True):
        by_name = {item["label"]: item["score"] for item in answer}
        assert by_name == pytest.approx(dict(zip(NAMES, row.tolist())), abs=1e-5)


# -- our own heads ----------------------------------------------------------------------------------------------


def check_joined(folder, family: str, head: str, pooling: str) -> None:
    """The backbone by transformers has the same states; load_model joins it with head.safetensors."""
    model, tokenizer = build(save_tiny(folder / "base", family), head, pooling)
    ours = scores(model, tokenizer)
    saved = save(folder / "best_model", model, tokenizer, head, pooling)
    ids, mask = batch(tokenizer)
    theirs = AutoModel.from_pretrained(saved).eval()
    states = (
        net(input_ids=ids, attention_mask=mask).last_hidden_state[mask] for net in (theirs, model.backbone)
    )
    assert is_same(*states)
    parts = load_file(folder / "best_model" / "head.safetensors")
    assert set(parts) == set(model.own_parts())
    assert all(name.startswith(("head.", "pooling.")) for name in parts)
    again, tokens, about = load_model(folder / "best_model")
    assert not again.training
    assert (about["head"], about["pooling"]) == (head, pooling)
    assert tokens.model_max_length == 32
    assert torch.equal(scores(again, tokens), ours)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_backbone_and_head_are_joined_again(head, pooling, tmp_path):
    check_joined(tmp_path, "bert", head, pooling)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_backbone_of_every_family(family, tmp_path):
    check_joined(tmp_path, family, "mlp", "attention")


@pytest.mark.parametrize("head", ["model", "linear"])
def test_load_weights_takes_another_run_of_the_same_model(tiny_bert, head, tmp_path):
    """As at the end of training: what was best is read into the model that went on."""
    best, tokenizer = build(tiny_bert, head, seed=0)
    save(tmp_path / "best_model", best, tokenizer, head)
    last, _ = build(tiny_bert, head, seed=1)
    assert not torch.equal(scores(last, tokenizer), scores(best, tokenizer))
    load_weights(last, tmp_path / "best_model")
    for (name, one), (_, other) in zip(last.named_parameters(), best.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    reloaded, _, _ = load_model(tmp_path / "best_model")
    assert torch.equal(scores(reloaded, tokenizer), scores(best, tokenizer))


def test_saving_again_replaces_the_whole_folder(tiny_bert, tmp_path):
    model, tokenizer = build(tiny_bert, "linear")
    save(tmp_path / "m", model, tokenizer, "linear")
    (tmp_path / "m" / "left_over").touch()
    with torch.no_grad():
        model.head[1].bias.add_(1)
    save(tmp_path / "m", model, tokenizer, "linear")
    assert not (tmp_path / "m" / "left_over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert torch.equal(scores(load_model(tmp_path / "m")[0], tokenizer), scores(model, tokenizer))


def test_a_kill_between_the_two_renames_is_survived(tiny_bert, tmp_path):
    model, tokenizer = build(tiny_bert)
    save(tmp_path / "m", model, tokenizer)
    (tmp_path / "m").rename(tmp_path / "m.old")
    assert torch.equal(scores(load_model(tmp_path / "m")[0], tokenizer), scores(model, tokenizer))
    load_weights(model, tmp_path / "m")


# -- folders that are not ours, or not whole --------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    """A saved folder for each kind of head."""
    root = tmp_path_factory.mktemp("saved")
    folder = save_tiny(root / "base")
    return {head: save(root / head, *build(folder, head), head) for head in ("model", "linear")}


def without(path, name: str) -> None:
    """Drop one tensor of a safetensors file."""
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


def rename_labels(path) -> None:
    """One class more than the weights have."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_names": [*NAMES, "grey"]}))


HARMS = {
    "no bareloop.json": ("model", "bareloop.json", lambda path: path.unlink()),
    "half a bareloop.json": ("model", "bareloop.json", lambda path: path.write_text('{"head": ')),
    "another bareloop.json": ("model", "bareloop.json", lambda path: path.write_text('{"head": "model"}')),
    "one class more": ("model", "bareloop.json", rename_labels),
    "one class more, our head": ("linear", "bareloop.json", rename_labels),
    "no config": ("model", "config.json", lambda path: path.unlink()),
    "no weights": ("model", "model.safetensors", lambda path: path.unlink()),
    "half the weights": (
        "model",
        "model.safetensors",
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
    ),
    "a classifier missing": ("model", "model.safetensors", lambda path: without(path, "classifier.weight")),
    "a layer missing": (
        "linear",
        "model.safetensors",
        lambda path: without(path, "encoder.layer.1.output.dense.bias"),
    ),
    "no tokenizer": ("model", "tokenizer.json", lambda path: path.unlink()),
    "no head": ("linear", "head.safetensors", lambda path: path.unlink()),
    "half a head": ("linear", "head.safetensors", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "a head without its bias": ("linear", "head.safetensors", lambda path: without(path, "head.1.bias")),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_hollow_folder_is_refused(whole, harm, tmp_path):
    head, name, change = HARMS[harm]
    folder = tmp_path / "m"
    shutil.copytree(whole[head], folder)
    load_model(folder)
    change(folder / name)
    with pytest.raises(UserError, match=str(folder)):
        load_model(folder)


@pytest.mark.parametrize("head, name", [("model", "model.safetensors"), ("linear", "head.safetensors")])
def test_load_weights_refuses_what_does_not_fit(whole, head, name, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(whole[head], folder)
    model, _, _ = load_model(folder)
    without(folder / name, "classifier.weight" if head == "model" else "head.1.weight")
    with pytest.raises(UserError, match="weights do not fit the model"):
        load_weights(model, folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: holds no model \(no bareloop\.json\)"):
        load_model(tmp_path / "nowhere")
