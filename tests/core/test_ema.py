"""The moving average of the weights: by hand, put in and taken out again, through a checkpoint."""

import pytest
import torch
from safetensors.torch import save_file

from core.ema import Ema


def params() -> list[torch.Tensor]:
    return [torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([[4.0]]))]


def test_by_hand():
    """d is (1 + t) / (10 + t) until the decay is less."""
    weights = params()
    ema = Ema(weights, 0.15)
    with torch.no_grad():
        weights[0].fill_(11.0)
    ema.update(0)  # d = 0.1
    torch.testing.assert_close(ema.averages[0], torch.tensor([0.1 * 1 + 0.9 * 11, 0.1 * 2 + 0.9 * 11]))
    torch.testing.assert_close(ema.averages[1], torch.tensor([[4.0]]))
    before = ema.averages[0].clone()
    ema.update(1)  # 2 / 11 is over 0.15
    torch.testing.assert_close(ema.averages[0], 0.15 * before + 0.85 * 11)


def test_the_block_has_the_averages_and_training_its_own_weights():
    weights = params()
    ema = Ema(weights, 0.5)
    with torch.no_grad():
        weights[1].fill_(8.0)
    with ema.applied():
        assert weights[1].item() == 4.0
    assert weights[1].item() == 8.0
    with pytest.raises(ZeroDivisionError), ema.applied():
        1 / 0  # noqa: B018
    assert weights[1].item() == 8.0
    assert ema.averages[1].item() == 4.0


def test_an_average_is_no_view_of_the_weights():
    weights = params()
    ema = Ema(weights, 0.9)
    with torch.no_grad():
        weights[0].zero_()
    assert ema.averages[0].tolist() == [1.0, 2.0]


def test_through_a_checkpoint(tmp_path):
    weights = params()
    ema, again = Ema(weights, 0.9), Ema(weights, 0.9)
    with torch.no_grad():
        weights[0].fill_(5.0)
    ema.update(3)
    save_file(ema.state(), tmp_path / "averages.safetensors")
    again.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, again.averages, strict=True))
