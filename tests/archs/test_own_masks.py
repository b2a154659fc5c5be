"""archs/probes.py, draws_own_masks: which models draw dropout masks past ours, and what is said of them."""

import pytest
import torch

import train
from archs.build import build_model
from archs.dropout import MASKS
from archs.loading import load_config
from archs.probes import draws_own_masks
from core.errors import UserError
from tests.conftest import save_language_model, save_tiny
from tests.helpers import replaced

WORDS = [(30,), (9, 8)]


def build(family: str, folder, attention: str = "auto"):
    MASKS.begin_step(3)
    if family in ("bert", "deberta-v2", "mpnet"):
        name = save_tiny(folder, family)
        return build_model(name, load_config(name), ["a", "b"], False, "model", "", 0.3, attention)[0]
    name, kind = save_language_model(folder, family), "t5" if family in ("t5", "bart") else "causal"
    more = {"architecture": kind, "answers": WORDS}
    return build_model(name, load_config(name), ["a", "b"], False, "words", "", 0.3, attention, **more)[0]


@pytest.mark.parametrize("family", ["bert", "mpnet", "llama", "gpt2", "t5"])
def test_models_whose_dropout_is_all_ours(family, tmp_path):
    model = build(family, tmp_path).train()
    state = torch.get_rng_state()
    assert not draws_own_masks(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_models_that_draw_their_own(tmp_path):
    assert draws_own_masks(build("bart", tmp_path / "bart"))
    assert draws_own_masks(build("bert", tmp_path / "bert", "sdpa"))  # torch's attention drops by itself
    assert draws_own_masks(build("deberta-v2", tmp_path / "deberta"))  # its table of distances has no rows


def test_what_a_user_is_told(toy_flags, tmp_path, capsys):
    bart = ["--architecture", "t5"]
    flags = replaced(toy_flags, model_name=save_language_model(tmp_path / "bart", "bart"), max_steps=1)
    train.main([*flags, *bart])
    assert "draws dropout masks of its own" in capsys.readouterr().out
    flags = replaced(flags, output_dir=tmp_path / "exact")
    with pytest.raises(UserError, match=r"--exact_dropout: bart draws masks past the modules"):
        train.main([*flags, *bart, "--exact_dropout"])
    train.main([*flags, *bart, "--exact_dropout", "--dropout", "0"])
    assert "masks of its own" not in capsys.readouterr().out
