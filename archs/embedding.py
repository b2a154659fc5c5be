"""Token embeddings whose gradient is as large as the batch, not as the vocabulary. V vocabulary, D width."""

import torch
from torch import nn


def use_sparse_gradients(model: nn.Module) -> None:
    """Let the large token embedding give sparse gradients, in place; densify_gradients makes them dense again.

    A dense one is a table of V x D zeros, filled and added anew for every cut: on CPU, for a small BERT, as dear
    as 200 tokens of the model itself (bench/NOTES.md). Tied embeddings also get a dense gradient and stay dense.
    """
    embedding = model.get_input_embeddings()
    output = model.get_output_embeddings()
    if isinstance(embedding, nn.Embedding) and (output is None or output.weight is not embedding.weight):
        embedding.sparse = True


def densify_gradients(params: list[torch.Tensor]) -> None:
    """Make sparse gradients dense, in place: once a step, whatever the number of cuts."""
    for param in params:
        if param.grad is not None and param.grad.is_sparse:
            param.grad = param.grad.to_dense()
