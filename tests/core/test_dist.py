"""core/dist.py: one process, and two over gloo that are started once for all the tests that need them."""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from core import dist
from core.errors import UserError

SHAPES = [(3, 5), (100,), (), (2, 2), (7,)]


def gradients(rank: int) -> list[torch.Tensor | None]:
    """What each rank brings: whole numbers, so that sums are exact; None where a rank has no gradient."""
    generator = torch.Generator().manual_seed(rank)
    grads = [torch.randint(-9, 10, shape, generator=generator).float() for shape in SHAPES]
    grads[4] = grads[4].double()
    if rank == 1:
        grads[1] = None  # a rank without rows
    grads[3] = None  # on no rank
    return grads


def summed() -> list[torch.Tensor]:
    """The sums over both ranks, a missing gradient counted as zeros."""
    pairs = zip(gradients(0), gradients(1))
    return [
        sum((grad for grad in pair if grad is not None), torch.zeros(shape))
        for shape, pair in zip(SHAPES, pairs)
    ]


def params_with(grads: list[torch.Tensor | None]) -> list[nn.Parameter]:
    """Parameters that hold these gradients."""
    params = []
    for shape, grad in zip(SHAPES, grads):
        params.append(nn.Parameter(torch.zeros(shape, dtype=torch.float32 if grad is None else grad.dtype)))
        params[-1].grad = grad
    return params


def same_sums(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Bitwise equal, each of them."""
    return all(torch.equal(a.double(), b.double()) for a, b in zip(found, expected, strict=True))


# -- two processes ----------------------------------------------------------------------------------------------


def fail(what: str) -> None:
    raise UserError(f"rows.jsonl: {what}")


def worker(rank: int, port: int, folder: str) -> None:
    """What one of the two processes does; its findings go to a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    found = {"init": [str(part) for part in dist.init_dist()], "calls": []}
    dist.init_dist()  # a second main() in the same process joins nothing new
    for name, mib in (("one bucket", 64), ("small buckets", 2e-5)):  # 21 bytes: less than most tensors here
        dist.BUCKET_MIB = mib
        params = params_with(gradients(rank))
        before = [param.grad for param in params]
        dist.reduce_gradients(params)
        found[name] = [param.grad for param in params]
        found[f"{name}, in place"] = all(a is b for a, b in zip(before, found[name]) if a is not None)
    found["value"] = dist.on_main(lambda a, b: found["calls"].append(a) or [a, b, rank], 1, "two")
    try:
        dist.on_main(fail, "line 7 is bad")
    except UserError as error:
        found["error"] = str(error)
    found["after the error"] = dist.on_main(lambda: "still in step")
    found["gathered"] = dist.gather_to_main({"rank": rank})
    values = nn.Linear(3, 2)
    nn.init.constant_(values.weight, rank + 1.0)
    buffer = torch.tensor([rank, rank])
    dist.broadcast_parameters([*values.parameters(), buffer])
    found["broadcast"] = [values.weight.detach(), values.bias.detach(), buffer]
    found["sum"] = dist.sum_over_ranks(torch.tensor([1.0, rank]))
    dist.barrier()
    dist.close_dist()
    torch.save(found, Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What rank 0 and rank 1 found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.dist
def test_init_dist_of_two(ranks):
    assert [found["init"] for found in ranks] == [["0", "2", "cpu"], ["1", "2", "cpu"]]


@pytest.mark.dist
@pytest.mark.parametrize("name", ["one bucket", "small buckets"])
def test_gradients_are_summed_over_ranks(ranks, name):
    for found in ranks:
        assert same_sums(found[name], summed())
        assert found[f"{name}, in place"]
        assert [grad.dtype for grad in found[name]] == [torch.float32] * 4 + [torch.float64]
    # bite: a mean over ranks, or one rank's own gradients, are not the sum
    assert not same_sums([grad / 2 for grad in ranks[0][name]], summed())
    assert not same_sums([torch.zeros(s) if g is None else g for s, g in zip(SHAPES, gradients(0))], summed())


@pytest.mark.dist
def test_on_main_runs_once_and_answers_everywhere(ranks):
    assert [found["value"] for found in ranks] == [[1, "two", 0]] * 2
    assert [found["calls"] for found in ranks] == [[1], []]
    assert [found["error"] for found in ranks] == ["rows.jsonl: line 7 is bad"] * 2
    assert [found["after the error"] for found in ranks] == ["still in step"] * 2


@pytest.mark.dist
def test_gathering_broadcasting_and_summing(ranks):
    assert [found["gathered"] for found in ranks] == [[{"rank": 0}, {"rank": 1}], None]
    for first, second in zip(*(found["broadcast"] for found in ranks), strict=True):
        assert torch.equal(first, second)
    assert (ranks[1]["broadcast"][0] == 1).all()  # rank 0's weights
    assert (ranks[1]["broadcast"][2] == 0).all()
    assert [found["sum"].tolist() for found in ranks] == [[2, 1]] * 2


# -- one process ------------------------------------------------------------------------------------------------


def test_one_process_needs_no_group(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    rank, world, _ = dist.init_dist()
    assert (rank, world) == (0, 1)
    assert dist.on_main(max, 3, 5) == 5
    with pytest.raises(UserError, match="line 7"):
        dist.on_main(fail, "line 7 is bad")
    assert dist.gather_to_main("x") == ["x"]
    tensor = torch.tensor([2.0])
    assert dist.sum_over_ranks(tensor) is tensor
    params = params_with(gradients(1))
    dist.reduce_gradients(params)
    assert params[1].grad is None  # nothing is touched
    dist.broadcast_parameters(params)
    dist.barrier()
    dist.close_dist()


def test_a_process_without_a_gpu_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match=r"process 2 .* 2 visible .*4,5.*--nproc_per_node"):
        dist.init_dist()


def test_buckets_by_size_and_type(monkeypatch):
    params = [nn.Parameter(torch.zeros(size)) for size in (4, 4, 4, 100, 1)]
    params += [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    params[0].grad = torch.ones(4)
    monkeypatch.setattr(dist, "BUCKET_MIB", 32 / 2**20)  # 8 float32
    sizes = [[grad.numel() for grad in bucket] for bucket in dist.gradient_buckets(params)]
    # closed once 32 bytes are in it, or the type changes; a tensor larger than a bucket is not split
    assert sizes == [[4, 4], [4, 100], [1], [2, 2]]
    assert torch.equal(params[0].grad, torch.ones(4))
    assert torch.equal(params[3].grad, torch.zeros(100))
    monkeypatch.setattr(dist, "BUCKET_MIB", 64)
    assert len(list(dist.gradient_buckets(params))) == 2
    assert list(dist.gradient_buckets([])) == []


# -- seeds ------------------------------------------------------------------------------------------------------


def num_distinct(function) -> int:
    """Distinct values over a grid of 40 seeds, 500 steps and 16 ranks."""
    return len(
        {function(seed, step, rank) for seed in range(40) for step in range(500) for rank in range(16)}
    )


def test_step_seeds_never_collide():
    assert num_distinct(dist.step_seed) == 40 * 500 * 16
    # bite: a sum collides
    assert num_distinct(lambda seed, step, rank: seed + step + rank) < 40 * 500 * 16


def test_step_seeds_differ_and_repeat():
    base = dist.step_seed(13, 7, 2)
    assert base == dist.step_seed(13, 7, 2)
    assert base not in {dist.step_seed(14, 7, 2), dist.step_seed(13, 8, 2), dist.step_seed(13, 7, 3)}
    for seed in (0, 13, 2**32, 2**63):
        value = dist.step_seed(seed, 10**9, 1023)
        assert 0 <= value < 2**63
        torch.manual_seed(value)  # is taken


def test_neighbouring_step_seeds_give_unrelated_masks():
    masks = []
    for step in range(200):
        torch.manual_seed(dist.step_seed(0, step, 0))
        masks.append(torch.rand(500))
    table = torch.corrcoef(torch.stack(masks))
    neighbours = table.diagonal(1)
    # the mean of 199 correlations, each with standard error 1 / sqrt(500)
    assert neighbours.mean().abs() < 4 / (500 * 199) ** 0.5
    assert neighbours.abs().max() < 5 / 500**0.5


def test_seed_everything_repeats():
    def draws() -> list[float]:
        dist.seed_everything(2**40 + 5)
        return [dist.random.random(), float(dist.np.random.rand()), float(torch.rand(()))]

    assert draws() == draws()
