"""The gradient of a logical batch is one thing for label words too, of decoders and of encoder-decoders."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from core import packing
from tests.archs.test_causal import branches_see_each_other
from tests.conftest import save_language_model, toy_rows, write_jsonl
from tests.test_one_gradient import BOUND, CAUGHT, distance, first_gradient, mean_of_means, skewed

SEVERAL = ["--label_words", "red=red rose,green=red grass moss,blue=sea ink"]  # two share their first token
NO_DROPOUT = ["--dropout", "0"]
CASES = {  # name: (model, flags)
    "causal, single": ("llama", []),
    "causal, several": ("llama", SEVERAL),
    "causal, several, classes": (
        "gemma2",
        [*SEVERAL, "--word_loss", "classes", "--class_weights", "balanced"],
    ),
    "causal, weights": ("gpt2", [*SEVERAL, "--class_weights", "balanced"]),
    "causal, focal": ("gpt2", ["--loss", "focal", "--class_weights", "effective"]),
    "causal, last": ("llama", ["--head", "last"]),
    "t5, single": ("t5", []),
    "t5, several": ("t5", SEVERAL),
    "t5, vocab": ("t5", [*SEVERAL, "--t5_loss", "vocab", "--class_weights", "balanced"]),
    "t5, smoothing": ("t5", ["--label_smoothing", "0.1"]),
    "t5, encoder": ("t5", ["--t5_head", "encoder"]),
    "bart, several": ("bart", SEVERAL),
    "causal, recomputed": ("llama", [*SEVERAL, "--gradient_checkpointing"]),
    "t5, recomputed": ("t5", [*SEVERAL, "--gradient_checkpointing"]),
}
IN_FLOAT64 = [name for name in CASES if "recomputed" not in name]
PACKED = [["--max_tokens", "35", "--packing", "on"], ["--max_tokens", "150", "--packing", "off"]]
PADDED = [["--max_tokens", budget, "--packing", "off"] for budget in ("35", "150")]


def norms_in_float64(patch: pytest.MonkeyPatch) -> None:
    """transformers' RMSNorm casts to float32, whatever comes in."""

    def normed(x, eps):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)

    patch.setattr(LlamaRMSNorm, "forward", lambda self, x: self.weight * normed(x, self.variance_epsilon))
    patch.setattr(Gemma2RMSNorm, "forward", lambda self, x: (1 + self.weight) * normed(x, self.eps))
    patch.setattr(T5LayerNorm, "forward", lambda self, x: self.weight * normed(x, self.variance_epsilon))


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a case: flags of a run whose rows have 8 to 32 tokens, the words not counted."""
    folder, models = tmp_path_factory.mktemp("words"), {}
    data = write_jsonl(folder / "rows.jsonl", skewed(toy_rows(96)))

    def flags(case: str) -> list[str]:
        family, extra = CASES[case]
        if family not in models:
            models[family] = save_language_model(folder / family, family)
        kind = "t5" if family in ("t5", "bart") else "causal"
        flags = ["--architecture", kind, "--model_name", models[family], "--max_length", "32", *extra]
        flags += ["--cache_dir", str(folder / "cache"), "--batch_size", "24", "--amp", "off"]
        return [*flags, "--train_data", data, "--val_data", data]

    return flags


def ways(case: str) -> tuple[list[str], list[list[str]]]:
    """One cut, packed where that can be, and other ways to cut."""
    packs = CASES[case][0] not in ("t5", "bart")
    return ["--max_tokens", "4096", "--packing", "on" if packs else "off"], PACKED if packs else PADDED


def check(case: str, flags: list[str], number: str) -> None:
    whole, others = ways(case)
    harm = norms_in_float64 if number == "float64" else None
    wanted = first_gradient([*flags, *whole], number, harm)
    for how in others:
        assert distance(wanted, first_gradient([*flags, *how], number, harm)) <= BOUND[number], how


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_does_not_depend_on_cuts_and_packing(flags_of, case):
    check(case, [*flags_of(case), *NO_DROPOUT], "float32")


@pytest.mark.parametrize("case", IN_FLOAT64)
def test_nor_does_it_in_float64(flags_of, case):
    check(case, [*flags_of(case), *NO_DROPOUT], "float64")


@pytest.mark.parametrize("case, flags", [
    ("causal, single", ["--dropout", "0.1"]),
    ("causal, last", ["--dropout", "0.1"]),
    ("causal, weights", ["--dropout", "0.1", "--attention_dropout", "0"]),
    ("t5, single", ["--dropout", "0.1"]),
    ("t5, several", ["--dropout", "0.1"]),
    ("t5, encoder", ["--dropout", "0.1"]),
])  # fmt: skip
def test_nor_does_it_with_dropout(flags_of, case, flags):
    """But for that of attention among a decoder's words of several tokens, whose masks go by the place in a packed
    row, and for BART's, whose layers draw masks of torch's."""
    check(case, [*flags_of(case), *flags], "float32")
    whole, _ = ways(case)
    found = [first_gradient([*flags_of(case), *other, *whole]) for other in (flags, NO_DROPOUT)]
    assert distance(*found) > 1e-2


def test_recomputed_layers_have_the_gradient_of_kept_ones(flags_of):
    for family in ("causal", "t5"):
        kept, again = (
            first_gradient([*flags_of(f"{family}, {kind}"), *NO_DROPOUT, *ways(f"{family}, {kind}")[0]])
            for kind in ("several", "recomputed")
        )
        assert distance(kept, again) <= BOUND["float32"]


# -- mutations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["causal, several", "causal, weights", "t5, vocab"])
def test_a_denominator_for_each_micro_batch_is_caught(flags_of, case):
    whole, others = ways(case)
    flags = [*flags_of(case), *NO_DROPOUT]
    wanted = first_gradient([*flags, *whole])
    assert distance(wanted, first_gradient([*flags, *others[0]], harm=mean_of_means)) > CAUGHT


def mask_of_one_row(patch: pytest.MonkeyPatch) -> None:
    """Packed words see the words before them."""
    patch.setattr(packing, "branch_mask", branches_see_each_other)


def test_branches_that_see_each_other_are_caught(flags_of):
    """With --packing auto such a model is not packed at all; so the probe is told to pass."""

    def harm(patch):
        mask_of_one_row(patch)
        patch.setattr("archs.probes.can_pack", lambda model: True)

    flags = [*flags_of("causal, several"), *NO_DROPOUT]
    whole, others = ways("causal, several")
    wanted = first_gradient([*flags, *others[1]])
    assert distance(wanted, first_gradient([*flags, *whole])) <= BOUND["float32"]
    assert distance(wanted, first_gradient([*flags, *whole], harm=harm)) > CAUGHT


def test_the_losses_are_not_one(flags_of):
    """Else the cases above would compare less than they say."""
    first = [first_gradient([*flags_of(case), *NO_DROPOUT, *ways(case)[0]]) for case in
             ("t5, several", "t5, vocab", "t5, smoothing", "t5, single")]  # fmt: skip
    for k, one in enumerate(first):
        assert all(distance(one, other) > 1e-2 for other in first[k + 1 :])
