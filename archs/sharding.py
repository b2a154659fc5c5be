"""A model that no single device holds: every rank keeps a part of each weight, gradient and moment (--shard).

By torch's fully_shard (FSDP2): a layer's weights are gathered before it runs, forward and backward, and dropped behind
it; its gradients are summed and scattered inside backward. So every rank must run the same number of cuts.
Source: Rajbhandari et al. 2020 (ZeRO), stage 3; Zhao et al. 2023 (PyTorch FSDP).
"""

import warnings
from collections import Counter

import torch
import torch.distributed as dist
from torch import nn

from archs.encoder import PooledHead
from core.dist import broadcast_parameters
from core.errors import UserError
from core.sharding import is_sharded


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The numbered layers: the members of module lists that lie in no other one's member."""
    found = []
    for part in model.children():
        found += list(part) if isinstance(part, nn.ModuleList) else transformer_layers(part)
    return found


def shard_model(model: nn.Module, device: torch.device, amp_dtype: torch.dtype | None) -> None:
    """Spread a classifier that lies on the host over the ranks' devices, in place, one layer after another.

    Weights stay as they are (float32; a frozen base bfloat16) and are gathered in the type of autocast; a head of ours
    in its own, since a ranker's scores would tie in bfloat16. Gradients are summed over ranks in float32, not averaged.
    Inputs are not cast: autocast does that, operation by operation, as it does without --shard.

    Args:   amp_dtype: of autocast, None for float32 throughout.
    Raises: UserError where two layers share a weight.
    Cost:   COMM and H2D of all weights; on a device at most one layer is whole, or what is in no layer.
    """
    from torch.distributed.device_mesh import init_device_mesh  # here: a second that other runs need not wait
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # that the scores are a view (a ranker's are): no loss writes into them
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    sums = torch.float32 if amp_dtype else None
    mixed = MixedPrecisionPolicy(param_dtype=amp_dtype, reduce_dtype=sums, cast_forward_inputs=False)
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    parts = [(layer, mixed) for layer in transformer_layers(model.inner)]
    parts += [(model.head, plain)] if isinstance(model, PooledHead) else []
    check_apart([part for part, _ in parts], model)
    for part, policy in [*parts, (model, mixed)]:
        rest = [param for param in part.parameters() if not is_sharded(param)]
        for param in rest:
            param.data = param.data.to(device)  # H2D
        broadcast_parameters(rest)  # COMM
        # the root's too are dropped after forward: what evaluation gathered would be old after the next update
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # else a product by 1.0 on the way, which gloo has not
    broadcast_parameters(model.buffers())  # COMM


def check_apart(parts: list[nn.Module], model: nn.Module) -> None:
    """Raise UserError where a weight is in two of the parts, or in one and outside of it: it has one home."""

    def places(part: nn.Module) -> Counter:
        return Counter(id(param) for _, param in part.named_parameters(remove_duplicate=False))

    every = places(model)
    for part in parts:
        found = places(part)
        for name, param in part.named_parameters():
            if found[id(param)] != every[id(param)]:
                raise UserError(
                    f"--shard: {name} of a {type(part).__name__} is the weight of another part too, and it can be "
                    "gathered for one alone: drop --shard"
                )
