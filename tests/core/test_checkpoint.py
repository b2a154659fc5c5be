"""core/checkpoint.py: bitwise what was saved, and always a whole one to go on from."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from core import checkpoint
from core.checkpoint import (
    last_checkpoint,
    load_checkpoint,
    oldest_step,
    own_part,
    read_state,
    save_checkpoint,
    trained_state,
    unshared,
)
from core.errors import UserError
from tests.conftest import Killed, full_disk, killed_at


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)


class Tied(nn.Module):
    """An embedding whose weights are the output's too, a norm, a buffer, and a weight that is never trained."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 11)
        self.out.weight = self.embed.weight
        base = torch.randn(3, generator=torch.Generator().manual_seed(7))  # whatever the seed of the rest
        self.frozen = nn.Parameter(base, requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, ids):
        return self.out(self.norm(self.embed(ids)))


def build(seed: int = 0, width: int = 6) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its fused AdamW with three groups, as train.py has them."""
    torch.manual_seed(seed)
    model = Tied(width)
    groups = [
        {"params": [model.embed.weight], "weight_decay": 0.1, "peak_lr": 1e-2},
        {
            "params": [model.norm.weight, model.norm.bias, model.out.bias],
            "weight_decay": 0.0,
            "peak_lr": 2e-2,
        },
        {"params": [model.frozen], "weight_decay": 0.1, "peak_lr": 1e-2},
    ]
    return model, torch.optim.AdamW(groups, lr=1e-2, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    """Steps start to stop; each is seeded by its own number, as the loops' are."""
    for step in range(start, stop):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] / (1 + step)
        model(torch.randint(11, (4, 5))).logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.count += 1


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, bytes]:
    """Every number of a model and its optimiser as bytes."""
    tensors = dict(model.state_dict())
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": value for name, value in values.items()}
    return {name: value.numpy(force=True).tobytes() for name, value in tensors.items()}


def check_resume(load, folder: Path) -> None:
    """Three steps, a checkpoint and three more in another process's objects end where six straight steps do."""
    straight = build()
    train(*straight, 0, 6)
    first = build()
    train(*first, 0, 3)
    save_checkpoint(folder, 3, *first, {})
    second = build(seed=1)  # other weights, all of which must go
    load(folder / "step_00000003", *second)
    assert bits(*second) == bits(*first)
    train(*second, 3, 6)
    assert bits(*second) == bits(*straight)


def test_resume_is_bitwise(tmp_path):
    check_resume(load_checkpoint, tmp_path)


@pytest.mark.parametrize("lost", ["step", "exp_avg"])
def test_bite_lost_optimiser_state_is_caught(lost, tmp_path):
    def load(path, model, optimizer):
        load_checkpoint(path, model, optimizer)
        for values in optimizer.state.values():
            values[lost].zero_()

    with pytest.raises(AssertionError):
        check_resume(load, tmp_path)


def test_what_lies_in_it(tmp_path):
    built = build()
    train(*built, 0, 2)
    state = {"best": {"value": 0.1 + 0.2, "step": 1}, "stop": False, "loss_sums": [1e-300], "name": "gr\xfcn"}
    save_checkpoint(tmp_path / "checkpoint", 2, *built, state)
    assert os.listdir(tmp_path / "checkpoint") == ["step_00000002"]
    found = tmp_path / "checkpoint" / "step_00000002"
    assert sorted(os.listdir(found)) == [
        "model.safetensors",
        "optimizer.safetensors",
        "sha256.json",
        "state.json",
    ]
    assert last_checkpoint(tmp_path / "checkpoint") == found
    assert read_state(found) == {"step": 2, **state}
    assert json.loads((found / "state.json").read_text(encoding="utf-8"))["step"] == 2


def test_tied_weights_are_written_once():
    model, _ = build()
    assert set(model.state_dict()) - set(unshared(model.state_dict())) == {"out.weight"}
    # two views that only begin at the same place are two, and so are two that hold nothing
    base = torch.arange(6.0)
    state = {
        "a": base,
        "b": base[:3],
        "c": base.view(2, 3),
        "d": base,
        "e": torch.zeros(0),
        "f": torch.zeros(0),
    }
    assert set(unshared(state)) == {"a", "b", "c", "e", "f"}


def test_frozen_weights_are_not_written(tmp_path):
    """They are built again from the same base: a LoRA run's checkpoint is as small as its adapter."""
    model, optimizer = build()
    assert set(trained_state(model)) == set(unshared(model.state_dict())) - {"frozen"}
    model.embed.weight.requires_grad_(False)  # under both of its names
    assert set(trained_state(model)) == {"norm.weight", "norm.bias", "out.bias", "count"}
    save_checkpoint(tmp_path, 1, model, optimizer, {})
    assert set(load_file(tmp_path / "step_00000001" / "model.safetensors")) == set(trained_state(model))


def test_the_newest_is_found(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    for step in (9, 100):
        save_checkpoint(tmp_path, step, *build(), {})
    (tmp_path / ".part_00000200").mkdir()
    assert last_checkpoint(tmp_path).name == "step_00000100"


def test_the_last_two_are_kept(tmp_path):
    built, steps = build(), (9, 10, 100)
    for k, step in enumerate(steps):
        train(*built, step, step + 1)
        save_checkpoint(tmp_path, step, *built, {})
        assert sorted(os.listdir(tmp_path)) == [f"step_{kept:08d}" for kept in steps[max(0, k - 1) : k + 1]]
        assert oldest_step(tmp_path) == steps[max(0, k - 1)]
    save_checkpoint(tmp_path, 100, *built, {"again": True})
    assert read_state(last_checkpoint(tmp_path)) == {"step": 100, "again": True}


# -- a damaged one is known ----------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Turn one bit of a file, as a bad disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


DAMAGE = {"flipped": flip, "cut": cut_short, "gone": Path.unlink, "empty": lambda path: path.write_bytes(b"")}
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "sha256.json")


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_one_is_told_and_the_one_before_is_used(file, how, tmp_path, capsys):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, *build(), {})
    DAMAGE[how](tmp_path / "step_00000002" / file)
    assert last_checkpoint(tmp_path) == tmp_path / "step_00000001"
    assert f"{tmp_path}/step_00000002: is damaged" in capsys.readouterr().err


def test_where_all_are_damaged_the_run_does_not_begin_anew_in_silence(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, *build(), {})
        flip(tmp_path / f"step_{step:08d}" / "model.safetensors")
    with pytest.raises(UserError, match="none of its 2 checkpoints is whole"):
        last_checkpoint(tmp_path)


def test_a_save_after_a_start_from_the_one_before_takes_the_damaged_one_away(tmp_path):
    for step in (10, 20):
        save_checkpoint(tmp_path, step, *build(), {})
    flip(tmp_path / "step_00000020" / "model.safetensors")
    save_checkpoint(tmp_path, 15, *build(), {})
    assert sorted(os.listdir(tmp_path)) == ["step_00000010", "step_00000015"]


@pytest.mark.parametrize(("sums", "rank", "world", "part"), [
    ([1.0, 2.0], 1, 2, 2.0), ([1.0, 2.0], 0, 1, 3.0), ([1.0, 2.0], 0, 4, 3.0), ([1.0, 2.0], 3, 4, 0.0),
])  # fmt: skip
def test_sums_of_ranks_go_on_with_another_number_of_them(sums, rank, world, part):
    assert own_part(sums, rank, world) == part


# -- the previous one is whole -------------------------------------------------------------------------------


def found_bits(folder: Path) -> dict[str, bytes]:
    """What a resume would start from."""
    fresh = build(seed=2)
    load_checkpoint(last_checkpoint(folder), *fresh)
    assert read_state(last_checkpoint(folder))["step"] == int(fresh[0].count)
    return bits(*fresh)


def check_killed_anywhere(save, tmp_path: Path) -> None:
    """Kill the second save before each of its changes: the first or the second is found, whole."""
    built = build()
    train(*built, 0, 1)
    save_checkpoint(tmp_path / "first", 1, *built, {})
    old = bits(*built)
    train(*built, 1, 2)
    new, refused, call, found = bits(*built), True, 0, []
    while refused:
        folder = shutil.copytree(tmp_path / "first", tmp_path / f"killed{call}")
        refused = False
        try:
            with killed_at(call):
                save(folder, 2, *built, {})
        except Killed:
            refused = True
        found.append(found_bits(folder))
        assert found[-1] in (old, new)
        save_checkpoint(folder, 2, *built, {})  # the next start finds nothing in its way
        assert sorted(os.listdir(folder)) == ["step_00000001", "step_00000002"]
        call += 1
    assert (found[0], found[-1]) == (old, new)
    assert call > 4


def test_killed_anywhere(tmp_path):
    check_killed_anywhere(save_checkpoint, tmp_path)


def test_bite_a_save_in_place_is_caught(tmp_path):
    def save(folder, step, model, optimizer, state):
        shutil.rmtree(folder / "step_00000001")
        save_checkpoint(folder, step, model, optimizer, state)

    with pytest.raises((AssertionError, AttributeError, FileNotFoundError, UserError)):
        check_killed_anywhere(save, tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_full_disk_leaves_the_previous_one(file, tmp_path, monkeypatch):
    built = build()
    train(*built, 0, 1)
    save_checkpoint(tmp_path, 1, *built, {})
    old = bits(*built)
    size = (last_checkpoint(tmp_path) / file).stat().st_size
    train(*built, 1, 2)
    state = {"long": "x" * 10_000} if file == "state.json" else {}
    limit = 5000 if file == "state.json" else size - 1
    with pytest.raises(OSError) as caught, full_disk(limit):
        save_checkpoint(tmp_path, 2, *built, state)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["step_00000001"]
    assert found_bits(tmp_path) == old


# -- another model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("other", "name"), [
    (build(width=4), "embed.weight"), ((nn.Linear(2, 2), None), "bias"),
    ((nn.Sequential(build()[0]), None), "0.count"),
])  # fmt: skip
def test_another_model_is_refused_before_anything_is_loaded(other, name, tmp_path):
    save_checkpoint(tmp_path, 1, *build(), {})
    model, _ = other
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "step_00000001", model, optimizer)
    assert str(caught.value) == f"{tmp_path}/step_00000001: is of another model: {name} does not fit"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_error_of_safetensors_is_an_os_error(tmp_path, monkeypatch):
    def fail(tensors, path):
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_tensors", fail)
    with pytest.raises(OSError) as caught:
        save_checkpoint(tmp_path, 1, *build(), {})
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


@pytest.mark.gpu
def test_resume_is_bitwise_on_cuda(tmp_path):
    first = build()
    first = first[0].cuda(), torch.optim.AdamW(first[0].cuda().parameters(), fused=True)
    for _ in range(2):
        first[0](torch.arange(8, device="cuda")[None]).sum().backward()
        first[1].step()
        first[1].zero_grad()
    save_checkpoint(tmp_path, 2, *first, {})
    second = build(seed=1)
    second = second[0].cuda(), torch.optim.AdamW(second[0].cuda().parameters(), fused=True)
    load_checkpoint(tmp_path / "step_00000002", *second)
    assert bits(*second) == bits(*first)
    for model, optimizer in (first, second):
        model(torch.arange(8, device="cuda")[None]).sum().backward()
        optimizer.step()
    assert bits(*second) == bits(*first)
