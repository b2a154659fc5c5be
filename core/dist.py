"""Processes and the few collectives the loops call: one process, or N under torchrun (gloo on CPU, nccl on CUDA)."""

import os
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from core.errors import UserError

BUCKET_MIB = 64  # assumption: large enough that a bucket is bound by bandwidth, small beside the gradients


def init_dist() -> tuple[int, int, torch.device]:
    """Rank, world size and device of this process; joins the process group when torchrun started it.

    Returns: (rank, world, device). CUDA takes LOCAL_RANK's device; Apple's MPS is used by a single process.
    Raises:  UserError when there are more local processes than visible CUDA devices.
    """
    world, local_rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} visible "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); lower --nproc_per_node"
        )
    if cuda:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "-1"):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} (GPU=), but torch {torch.__version__} sees no "
            "such device: name one that nvidia-smi lists, install torch's CUDA build, or unset it to train on CPU"
        )
    elif torch.backends.mps.is_available() and world == 1:
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"  # host flags go over gloo: no device wait
        dist.init_process_group(backend, timeout=timedelta(hours=2), **fresh_store())
    return int(os.environ.get("RANK", 0)), world, device


def fresh_store() -> dict:
    """What init_process_group needs beside the backend, so that processes that torchrun starts again meet anew.

    torchrun keeps one store for all its starts, and gloo would find the addresses of the dead ones in it. One agent
    counts its starts; several do not count alike, so there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 must be set for them.
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return {}
    store, rank, world = next(dist.rendezvous("env://"))
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": dist.PrefixStore(f"start_{count}", store), "rank": rank, "world_size": world}


def close_dist() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def on_main(function: Callable, *args) -> object:
    """Rank 0 calls function(*args); every rank gets its result, or its exception.

    So that a file is read, tokenised or written once, and a bad row stops all ranks with one message.
    """
    if not dist.is_initialized():
        return function(*args)
    box = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = function(*args)
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def broadcast_parameters(tensors: Iterable[torch.Tensor]) -> None:
    """Give every rank rank 0's values, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def gradient_buckets(params: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Groups of gradients of like dtype of about BUCKET_MIB each, in order; a missing gradient becomes zeros.

    A rank can be without rows in a short last batch, so its gradients can be missing where others have them.
    """
    bucket, size = [], 0
    for param in params:
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        if bucket and (size >= BUCKET_MIB * 2**20 or param.grad.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(param.grad)
        size += param.grad.numel() * param.grad.element_size()
    if bucket:
        yield bucket


def reduce_gradients(params: list[torch.Tensor]) -> None:
    """Sum the gradients over ranks in flat buckets, in place: once an optimiser step, never inside backward.

    Cost: COMM, one all-reduce a bucket; nothing with one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for bucket in gradient_buckets(params):
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        dist.all_reduce(flat)
        for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(part.view_as(grad))


class OverlappedReduction:
    """reduce_gradients during the last cut's backward pass: a bucket is sent as soon as its gradients are there.

    Buckets go out in one order on every rank (from the head down, as the backward pass makes them), whichever is ready
    first; a rank without a cut sends zeros in finish. A step cannot be done again once its first bucket is on its way.
    Source: Li et al. 2020 (PyTorch Distributed), section 3.2.3; here by hooks of ours.
    """

    def __init__(self, params: list[torch.Tensor]):
        self.buckets, size = [[]], 0
        for param in reversed(params):
            if size >= BUCKET_MIB * 2**20:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(param)
            size += param.numel() * param.element_size()
        self.where = {param: k for k, bucket in enumerate(self.buckets) for param in bucket}
        self.armed, self.sent, self.missing = False, [], []
        for param in params:
            param.register_post_accumulate_grad_hook(self._made)

    def arm(self) -> None:
        """Call before the last cut of a step."""
        self.armed, self.missing = True, [len(bucket) for bucket in self.buckets]

    def _made(self, param: torch.Tensor) -> None:
        if not self.armed or param.grad.is_sparse:  # sparse ones are sent by finish, once they are dense
            return
        self.missing[self.where[param]] -= 1
        while len(self.sent) < len(self.buckets) and not self.missing[len(self.sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self.sent)]
        for param in bucket:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        flat = torch.cat([param.grad.reshape(-1) for param in bucket])
        self.sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Send what is left, wait, and put the sums into the gradients. Cost: COMM."""
        while len(self.sent) < len(self.buckets):
            self._send()
        for bucket, flat, work in self.sent:
            work.wait()
            for param, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                param.grad.copy_(part.view_as(param))
        self.armed, self.sent = False, []


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, summed over ranks in place; itself with one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def worst_of_ranks(code: int) -> int:
    """The largest of the ranks' numbers. Cost: COMM over gloo, so no device waits."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return code
    box = torch.tensor(code)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def gather_to_main(item: object) -> list | None:
    """Every rank's item in a list on rank 0, None elsewhere."""
    if not dist.is_initialized():
        return [item]
    items = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(item, items, dst=0)
    return items


def barrier() -> None:
    """Wait for the other ranks (over gloo, so no device waits)."""
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch: what is drawn before the first step (new weights) hangs on it alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The generator seed of one step on one rank: a resumed run needs no saved generator state.

    Source: fairseq seeds by update number (trainer.py, _set_seed); here the rank is mixed in, since every
            rank draws its own dropout masks.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64  # splitmix64's finaliser
    return (mixed ^ (mixed >> 31)) % 2**63
