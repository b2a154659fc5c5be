"""archs/generation.py: what a model really says, and which label word that begins with."""

import numpy as np
import pytest
import torch

from archs.build import build_model
from archs.generation import begun, generate_answers
from archs.loading import load_config
from tests.conftest import language_tokenizer, save_language_model
from tests.helpers import cut_of

ANSWERS = [(9, 7), (9,), (30, 11)]


def test_the_longest_word_that_ids_begin_with():
    assert begun([9, 7, 3], ANSWERS) == 0
    assert begun([9, 8], ANSWERS) == 1
    assert begun([30, 8], ANSWERS) is None
    assert begun([], ANSWERS) is None


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_a_sure_model_says_the_word_that_it_scores_best(family, tmp_path):
    """Single-token words over the whole vocabulary: the greedy token is then the best scored word."""
    folder, arch = save_language_model(tmp_path, family), "t5" if family == "t5" else "causal"
    names = [str(k) for k in range(12)]
    kind = {"architecture": arch, "answers": [(k,) for k in range(4, 16)]}
    model, _ = build_model(folder, load_config(folder, arch), names, False, "words", "", None, "auto", **kind)
    bias = torch.full((model.inner.get_output_embeddings().weight.shape[0],), -50.0)
    bias[4:16] = 0.0
    hook = model.inner.get_output_embeddings().register_forward_hook(lambda m, i, out: out + bias)
    rows = [np.arange(5, 5 + n) for n in (3, 9, 6)]  # padded together, each on its right side
    said = generate_answers(model.eval(), language_tokenizer(family), rows, torch.device("cpu"))
    hook.remove()
    scores = model(cut_of(rows, False, branches=model.branches))
    assert [k for _, k in said] == scores.argmax(dim=1).tolist()
    assert all(isinstance(text, str) for text, _ in said)
    again = generate_answers(model, language_tokenizer(family), rows[:1], torch.device("cpu"))
    assert len(again) == 1
    assert model.inner.config._attn_implementation == "bareloop"
