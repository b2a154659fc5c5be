"""archs/policy.py: which folders serve as a policy, and that a policy has no dropout anywhere, adapters included."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from archs.adapters import whole_modules
from archs.build import build_model
from archs.loading import load_config, load_tokenizer
from archs.lora import adapters, add_lora, find_targets
from archs.policy import load_policy, policy_folder, policy_hash, read_policy
from archs.saving import load_model, save_model
from core.errors import UserError
from tests.conftest import save_language_model, save_tiny
from tests.helpers import cut_of

NAMES = ["blue", "green", "red"]
TEXTS = [
    "the red rose",
    "grass in the sea of moss and lime with jeans",
    "ink",
    "a ruby for his leaf and her sky",
]
KINDS = {  # name: (family, head, architecture, whether it has an adapter)
    "own head": ("bert", "model", "bert", False),
    "distilbert": ("distilbert", "model", "bert", False),  # its dropouts have other names
    "mlp": ("bert", "mlp", "bert", False),
    "words": ("t5", "words", "t5", False),
    "decoder": ("gpt2", "mlp", "causal", False),
    "adapter": ("bert", "model", "bert", True),
    "adapter, mlp": ("bert", "mlp", "bert", True),
    "adapter, decoder": ("llama", "words", "causal", True),
}
WHOLE = [kind for kind, (*_, is_adapter) in KINDS.items() if not is_adapter]
ANSWERS = [(10,), (11, 12), (13,)]


def args_of(policy: Path, **changes) -> Namespace:
    flags = {
        "policy": str(policy),
        "lora_rank": 0,
        "lora_alpha": "auto",
        "lora_dropout": 0.0,
        "lora_rslora": False,
    }
    return Namespace(**flags | {"lora_targets": ""} | changes)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Call with a kind: a run's folder whose best_model has dropout in training, and in its adapter."""
    folder = tmp_path_factory.mktemp("policies")

    def policy(kind: str) -> Path:
        run, (family, head, architecture, is_adapter) = folder / kind, KINDS[kind]
        if run.exists():
            return run
        save = save_tiny if architecture == "bert" else save_language_model
        base = save(folder / f"{kind} base", family)
        torch.manual_seed(0)
        answers = ANSWERS if head == "words" else []
        pooling = "last" if architecture == "causal" else "mean"
        model, _ = build_model(base, load_config(base), NAMES, False, head, pooling, 0.3, "auto",
                               architecture=architecture, answers=answers)  # fmt: skip
        about = {"architecture": architecture, "head": head, "pooling": pooling, "label_names": NAMES}
        about |= {"multi_label": False, "attention": "auto", "max_length": 32, "answers": answers}
        about |= {"model_name": base, "base_model": base}
        if is_adapter:
            settings = {"rank": 4, "alpha": 8.0, "dropout": 0.4, "rslora": False}
            targets = find_targets(model.inner, "")
            add_lora(model.inner, targets, *settings.values(), keep_trained=whole_modules(model))
            about["lora"] = settings
        with torch.no_grad():
            for param in model.parameters():
                if param.requires_grad:
                    param.add_(0.1 * torch.randn_like(param))
        save_model(run / "best_model", model, load_tokenizer(base), about)
        return run

    return policy


@torch.no_grad()
def scores(model, tokenizer, packed: bool = False) -> torch.Tensor:
    """(4, 3) in the mode that the model is in."""
    ids = tokenizer(TEXTS)["input_ids"]
    return model(cut_of(ids, packed, pad_id=tokenizer.pad_token_id, branches=model.branches))


def check_no_dropout(model, tokenizer, packed: bool) -> None:
    """Training mode computes what evaluation mode does, and no module holds a rate."""
    model.train()
    trained = scores(model, tokenizer, packed)
    assert torch.equal(trained, scores(model, tokenizer, packed))
    assert torch.equal(trained, scores(model.eval(), tokenizer, packed))
    assert all(module.p == 0 for module in model.modules() if isinstance(module, nn.Dropout))
    assert all(layer.lora_dropout == 0 for layer in adapters(model.inner).values())
    assert not [
        name for name, value in vars(model.inner.config).items() if name.endswith("dropout") and value
    ]


# -- no dropout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_has_no_dropout(kind, policies):
    model, tokenizer, about, notes = load_policy(args_of(policies(kind)), None)
    architecture = KINDS[kind][2]
    for packed in (False, True) if architecture == "bert" else (False,):
        check_no_dropout(model, tokenizer, packed)
    plain, _, told = load_model(policies(kind) / "best_model")
    assert notes == []
    assert all(about[name] == value for name, value in told.items() if name not in ("amp", "lora"))
    assert torch.equal(scores(model, tokenizer), scores(plain, tokenizer))
    assert not torch.equal(
        scores(plain.train(), tokenizer), scores(model, tokenizer)
    )  # bite: it was trained with some


# -- fresh adapters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WHOLE)
def test_fresh_adapters_change_no_score_and_have_no_dropout(kind, policies):
    args = args_of(policies(kind), lora_rank=2)
    model, tokenizer, about, (note,) = load_policy(args, None)
    plain, _, told = load_model(policies(kind) / "best_model")
    torch.testing.assert_close(
        scores(model.eval(), tokenizer), scores(plain, tokenizer), rtol=1e-5, atol=1e-6
    )
    layers = adapters(model.inner)
    assert note == f"LoRA: rank 2, alpha 4, beside {len(find_targets(plain.inner, ''))} modules"
    assert {layer.lora_scale for layer in layers.values()} == {2.0}
    for layer in layers.values():
        nn.init.normal_(layer.lora_B, std=0.3)  # at birth, B 0, no dropout of theirs could be seen
    check_no_dropout(model, tokenizer, False)
    folder = str(policies(kind) / "best_model")
    assert (about["model_name"], about["base_model"]) == (folder, folder)
    assert about["lora"].items() >= {"rank": 2, "alpha": 4.0, "rslora": False}.items()
    changed = {"amp", "lora", "model_name", "base_model"}
    assert all(about[name] == value for name, value in told.items() if name not in changed)


@pytest.mark.parametrize("kind", ["own head", "mlp"])
def test_beside_fresh_adapters_only_the_head_is_trained(kind, policies):
    model, *_ = load_policy(
        args_of(policies(kind), lora_rank=2, lora_targets=r".*\.query", lora_alpha=3.0), None
    )
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    heads = {name for name in trained if "classifier" in name or "pooler" in name or name.startswith("head.")}
    assert heads
    assert all(".query.lora_" in name for name in trained - heads)
    layers = adapters(model.inner)
    assert len(layers) == 2
    assert {layer.lora_scale for layer in layers.values()} == {1.5}


@pytest.mark.parametrize("kind", ["own head", "mlp"])
def test_with_fresh_adapters_it_is_saved_and_loaded_as_it_is(kind, policies, tmp_path):
    model, tokenizer, about, _ = load_policy(args_of(policies(kind), lora_rank=2, lora_rslora=True), None)
    for layer in adapters(model.inner).values():
        nn.init.normal_(layer.lora_B, std=0.3)
    save_model(tmp_path / "best_model", model, tokenizer, about)
    again, _, _, _ = load_policy(args_of(tmp_path), None)
    torch.testing.assert_close(
        scores(again, tokenizer), scores(model.eval(), tokenizer), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["own head", "adapter"])
def test_a_frozen_base_is_held_in_bfloat16(kind, policies):
    model, *_ = load_policy(args_of(policies(kind), lora_rank=0 if kind == "adapter" else 2), torch.bfloat16)
    for name, param in model.named_parameters():
        assert param.dtype == (torch.float32 if param.requires_grad else torch.bfloat16), name
    whole, *_ = load_policy(args_of(policies("own head")), torch.bfloat16)
    assert {param.dtype for param in whole.parameters()} == {torch.float32}  # all of it is trained


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in WHOLE])
def test_adapters_beside_an_adapter_are_refused(kind, policies):
    with pytest.raises(UserError, match=rf"--lora_rank 3: .*{kind} has an adapter, and that is trained"):
        load_policy(args_of(policies(kind), lora_rank=3), None)


@pytest.mark.parametrize("kind", ["own head", "adapter"])
def test_dropout_of_adapters_is_refused(kind, policies):
    rank = 0 if kind == "adapter" else 2
    with pytest.raises(
        UserError, match=r"--lora_dropout 0.5: a policy is compared with itself: drop the flag"
    ):
        load_policy(args_of(policies(kind), lora_rank=rank, lora_dropout=0.5), None)


def test_a_rank_that_is_too_large_is_refused(policies):
    with pytest.raises(UserError, match=r"--lora_rank 99: is larger than .*'s smaller side \(16\)"):
        load_policy(args_of(policies("own head"), lora_rank=99), None)


# -- which folder ------------------------------------------------------------------------------------------------


def test_a_run_or_its_model_folder_is_a_policy(policies):
    run = policies("own head")
    assert policy_folder(str(run)) == policy_folder(str(run / "best_model")) == run / "best_model"
    assert read_policy(str(run), ranks=False) == read_policy(str(run / "best_model"), ranks=False)
    assert read_policy(str(run), ranks=False)["label_names"] == NAMES


def test_a_kill_between_two_renames_leaves_a_policy(policies, tmp_path):
    (tmp_path / "best_model.old").symlink_to(policies("own head") / "best_model")
    assert read_policy(str(tmp_path), ranks=False)["label_names"] == NAMES


def about(**more) -> str:
    """A bareloop.json."""
    found = {"label_names": NAMES, "multi_label": False, "head": "mlp", "pooling": "mean"}
    return json.dumps(found | {"attention": "auto", "architecture": "bert"} | more)


ERRORS = {  # case: (bareloop.json or None, whether a ranker is expected, what the message says)
    "an empty folder": (None, False, r": holds no best_model/; expected a run of train\.py"),
    "an empty folder for a ranker": (None, True, r": holds no best_model/; expected a run of rank_train\.py"),
    "a ranker": (about(task="rank"), False, r": is a ranker, not a classifier; expected a run of train\.py"),
    "a classifier": (about(), True, r": is a classifier, not a ranker; expected a run of rank_train\.py"),
    "no JSON": ("{", False, r"best_model/bareloop\.json: is not whole"),
    "another JSON": ('{"head": "mlp"}', False, r"best_model/bareloop\.json: is not whole: no 'label_names'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_folder_that_is_no_policy(case, tmp_path):
    content, ranks, message = ERRORS[case]
    if content is not None:
        (tmp_path / "best_model").mkdir()
        (tmp_path / "best_model" / "bareloop.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_policy(str(tmp_path), ranks)
    assert str(tmp_path) in str(error.value)
    assert read_policy.__defaults__ is None  # ranks is always said


@pytest.mark.parametrize("ranks, maker", [(False, r"train\.py"), (True, r"rank_train\.py")])
def test_no_folder_at_all(ranks, maker, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(UserError, match=rf"--policy .*{name}: no such folder; expected a run of {maker}"):
            read_policy(str(tmp_path / name), ranks)


def test_the_hash_of_a_policy_hangs_on_its_weights(tmp_path):
    (tmp_path / "best_model").mkdir()
    path = tmp_path / "best_model" / "model.safetensors"
    path.write_bytes(b"a")
    first = policy_hash(str(tmp_path))
    assert policy_hash(str(tmp_path)) == first
    path.write_bytes(b"b")
    assert policy_hash(str(tmp_path)) != first


def test_the_hash_of_an_adapter_hangs_on_its_base_too(tmp_path):
    folder, base = tmp_path / "best_model", tmp_path / "base"
    folder.mkdir()
    base.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"a")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    (base / "model.safetensors").write_bytes(b"a")
    first = policy_hash(str(tmp_path))
    (base / "model.safetensors").write_bytes(b"b")
    assert policy_hash(str(tmp_path)) != first
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "somebody/on-the-hub"})
    )
    policy_hash(str(tmp_path))  # its name is in the run's flags and in the adapter's own file
