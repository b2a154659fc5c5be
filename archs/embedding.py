"""Token embeddings whose gradient is as large as the batch, not as the vocabulary. V vocabulary, D width."""

import math

import torch
import torch.distributed as dist
from torch import nn


def use_sparse_gradients(model: nn.Module) -> None:
    """Let the large token embedding give sparse gradients, in place; densify_gradients makes them dense again.

    A dense one is a table of V x D zeros, filled and added anew for every cut: on CPU, for a small BERT, as dear
    as 200 tokens of the model itself (bench/NOTES.md). Tied embeddings also get a dense gradient and stay dense.
    """
    embedding = model.get_input_embeddings()
    output = model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not embedding.weight.requires_grad:
        return
    if output is not None and output.weight is embedding.weight:
        return
    # all modules on the one table: T5's encoder and decoder have one each
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight is embedding.weight:
            module.sparse = True


def densify_gradients(params: list[torch.Tensor]) -> None:
    """Make sparse gradients dense, in place: once a step, whatever the number of cuts.

    Each has one dense table that is kept, so that only the rows of the step before are cleared, not all V.
    """
    for param in params:
        if param.grad is None or not param.grad.is_sparse:
            continue
        sparse = param.grad.coalesce()
        rows = sparse.indices()[0]
        table, dirty = getattr(param, "_dense_gradient", (None, None))
        if table is None:
            table = torch.zeros_like(param)
        elif (dist.is_initialized() and dist.get_world_size() > 1) or not math.isfinite(table[0, 0]):
            table.zero_()  # the reduction has put the other ranks' rows into it, or clipping by NaN has spread
        else:
            table.index_fill_(0, dirty, 0)
        param.grad = table.index_copy_(0, rows, sparse.values())
        param._dense_gradient = table, rows
