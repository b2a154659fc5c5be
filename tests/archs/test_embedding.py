"""archs/embedding.py: sparse gradients of the token embedding, made dense, are the dense ones."""

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from archs.embedding import densify_gradients, use_sparse_gradients
from tests.conftest import tiny_config

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "mpnet", "modernbert", "electra", "albert")


def gradients(family: str, sparse: bool, num_cuts: int) -> list[torch.Tensor]:
    """All gradients of a tiny model after some cuts of the same batch."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(family)).eval()
    if sparse:
        use_sparse_gradients(model)
    pad = model.config.pad_token_id
    ids = torch.randint(5, 30, (6, 9), generator=torch.Generator().manual_seed(2))
    ids[:, -2:] = pad
    for cut in ids.chunk(num_cuts):
        model(input_ids=cut, attention_mask=cut != pad).logits.logsumexp(1).sum().backward()
    params = list(model.parameters())
    assert any(param.grad is not None and param.grad.is_sparse for param in params) == sparse
    densify_gradients(params)
    return [param.grad for param in params]


def same(one: list[torch.Tensor | None], other: list[torch.Tensor | None]) -> bool:
    """Equal up to the order of summation; missing where the other is missing."""
    pairs = list(zip(one, other, strict=True))
    if any((a is None) != (b is None) or (b is not None and b.is_sparse) for a, b in pairs):
        return False
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in pairs if a is not None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_cuts", [1, 3])
def test_sparse_gradients_are_the_dense_ones(family, num_cuts):
    dense, sparse = (gradients(family, flag, num_cuts) for flag in (False, True))
    assert same(dense, sparse)
    # bite: a table that lost one word's gradient is told apart
    table = next(k for k, grad in enumerate(sparse) if grad is not None and grad.shape[0] == 40)
    sparse[table] = sparse[table].clone()
    sparse[table][sparse[table].norm(dim=1).argmax()] = 0
    assert not same(dense, sparse)


def test_words_that_do_not_occur_have_a_gradient_of_zero():
    table = gradients("bert", True, 2)[0]
    assert table.shape == (40, 16)
    assert not table[30:].any()
    assert not table[0].any()  # the padding's own row
    assert table[5:30].any()


def test_dense_and_missing_gradients_are_left_alone():
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    params[0].grad = grad = torch.ones(2)
    densify_gradients(params)
    assert params[0].grad is grad
    assert params[1].grad is None


def test_a_tied_embedding_stays_dense():
    model = transformers.BertForMaskedLM(tiny_config("bert"))
    use_sparse_gradients(model)
    assert not model.get_input_embeddings().sparse
