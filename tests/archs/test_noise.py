"""Noise on the embeddings: whose length, how large, which passes; an adversarial step by hand and that it does harm."""

import numpy as np
import pytest
import torch

import train
from archs.dropout import MASKS
from archs.noise import EmbeddingNoise, fgm_step, neftune_noise, row_lengths
from core.batches import make_cut
from core.errors import UserError
from tests.conftest import save_language_model
from tests.helpers import first_gradient_of, replaced, weights

ROWS = [np.array([2, 5, 6, 3]), np.array([2, 7, 3])]


def cut_of_rows(packed: bool, rows=ROWS):
    return make_cut(
        rows, np.zeros(len(rows), np.int64), np.arange(len(rows)), np.zeros(len(rows), np.int64), 0, packed
    )


def of_tokens(values: torch.Tensor, cut) -> torch.Tensor:
    """(N, ...) of the tokens in the rows' order, padding left out."""
    if cut.owner is not None:
        return values[0]
    return values[cut.mask] if cut.mask is not None else values.flatten(0, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_a_rows_length_is_its_own(packed):
    cut = cut_of_rows(packed)
    lengths = row_lengths(cut).expand(*cut.ids.shape, 1)
    assert of_tokens(lengths, cut).flatten().tolist() == [4, 4, 4, 4, 3, 3, 3]


def test_without_padding_no_mask_is_needed():
    cut = cut_of_rows(False, [ROWS[0], ROWS[0]])
    assert cut.mask is None
    assert row_lengths(cut).flatten().tolist() == [4, 4]


@pytest.mark.parametrize("packed", [False, True])
def test_neftune_fills_its_range_evenly(packed):
    """Jain et al.'s epsilon: uniform in +- alpha / sqrt(L D)."""
    cut, width = cut_of_rows(packed), 4096
    MASKS.begin_step(3)
    MASKS.begin_cut(cut.rows, cut.owner, cut.place)
    noise = neftune_noise(torch.zeros(*cut.ids.shape, width), cut, 5.0)
    bounds = [5 / (n * width) ** 0.5 for n in (4, 4, 4, 4, 3, 3, 3)]
    for values, bound in zip(of_tokens(noise, cut), bounds, strict=True):
        assert 0.99 * bound < float(values.abs().max()) <= bound
        assert abs(float(values.mean())) < 0.05 * bound  # standard error 0.009
        assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_neftune_is_the_same_noise_packed_or_padded_and_another_in_the_next_step():
    found = {}
    for step, packed in ((1, False), (1, True), (2, True)):
        cut = cut_of_rows(packed)
        MASKS.begin_step(step)
        MASKS.begin_cut(cut.rows, cut.owner, cut.place)
        found[step, packed] = of_tokens(neftune_noise(torch.zeros(*cut.ids.shape, 8), cut, 5.0), cut)
    assert torch.equal(found[1, False], found[1, True])
    assert not torch.equal(found[1, True], found[2, True])


def test_neftune_without_masks_draws_from_torch():
    cut = cut_of_rows(True)
    MASKS.rows = MASKS.tokens = None
    torch.manual_seed(0)
    first, second = (neftune_noise(torch.zeros(1, 7, 8), cut, 5.0) for _ in range(2))
    assert not torch.equal(first, second)
    assert float(first.abs().max()) <= 5 / (3 * 8) ** 0.5


@pytest.mark.parametrize("packed", [False, True])
def test_the_adversarial_step_by_hand(packed):
    """Each row's gradient at length epsilon; a row without a gradient stays."""
    cut = cut_of_rows(packed)
    gradient = torch.zeros(*cut.ids.shape, 2)
    gradient[0, 0] = torch.tensor([3.0, 0.0])
    gradient[0, 2] = torch.tensor([0.0, 4.0])
    step = fgm_step(gradient, cut, 0.5)
    torch.testing.assert_close(step, gradient / 5 * 0.5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_rows_step_does_not_hang_on_the_other_rows(packed):
    cut = cut_of_rows(packed)
    gradient = torch.randn(*cut.ids.shape, 4, generator=torch.Generator().manual_seed(0))
    if cut.mask is not None:
        gradient = gradient * cut.mask[..., None]
    louder = gradient.clone()
    first_row = cut.owner == 0 if packed else torch.tensor([True, False])
    (louder[0] if packed else louder)[first_row] *= 100
    torch.testing.assert_close(fgm_step(gradient, cut, 1.0), fgm_step(louder, cut, 1.0))


class Model(torch.nn.Module):
    """Scores that are the mean of the embeddings; a second call of them stands for a decoder's input."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Module()
        self.inner.table = torch.nn.Embedding(10, 3)
        self.inner.get_input_embeddings = lambda: self.inner.table

    def forward(self, cut):
        self.first = self.inner.table(cut.ids)
        self.second = self.inner.table(torch.tensor([[1]]))
        return self.first.sum(-1).tanh().sum(-1, keepdim=True)


def test_noise_is_for_training_passes_and_the_first_input_alone():
    model, cut = Model(), cut_of_rows(False)
    EmbeddingNoise(model, 5.0, 0.0)
    plain, other = model.inner.table.weight[cut.ids], model.inner.table.weight[torch.tensor([[1]])]
    model.train()(cut)
    assert not torch.equal(model.first, plain)
    assert torch.equal(model.second, other)
    model.eval()(cut)
    assert torch.equal(model.first, plain)
    with torch.no_grad():
        model.train()(cut)
    assert torch.equal(model.first, plain)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_adversarial_pass_has_the_larger_loss(frozen):
    model, cut = Model().train(), cut_of_rows(False)
    model.inner.table.weight.requires_grad_(not frozen)
    noise = EmbeddingNoise(model, 0.0, 0.1)
    loss = model(cut).sum()
    loss.backward()
    with noise.adversarial(cut):
        moved = model(cut).sum()
    assert moved.item() > loss.item()
    assert torch.equal(model.inner.table(cut.ids), model.inner.table.weight[cut.ids])  # over
    assert (model.inner.table.weight.grad is None) == frozen


def test_fgm_adds_the_adversarial_gradient(toy_flags):
    """With a step of no length the same gradient once more; with a length another one."""
    flags = [*toy_flags, "--dropout", "0"]
    plain, twice, moved = (
        first_gradient_of(train.main, [*flags, "--fgm", epsilon]) for epsilon in ("0", "1e-30", "1")
    )
    torch.testing.assert_close(twice, 2 * plain)
    assert float((moved - twice).norm()) > 1e-2 * float(twice.norm())


def test_each_regulariser_changes_the_weights(toy_flags, tmp_path):
    base = [*toy_flags, "--max_steps", "3"]
    plain = weights(train.main(replaced(base, output_dir=tmp_path / "plain"))["run"])
    for flag, value in (("--ema", "0.9"), ("--rdrop", "5"), ("--neftune", "10")):
        run = train.main([*replaced(base, output_dir=tmp_path / flag), flag, value])["run"]
        found = weights(run)
        assert any(not torch.equal(found[name], value) for name, value in plain.items()), flag


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_decoders_and_t5_take_them_too(family, toy_flags, tmp_path):
    """Their hook fires once a pass: a T5's decoder has an embedding of the same table."""
    architecture = "t5" if family == "t5" else "causal"
    model = save_language_model(tmp_path / family, family)
    flags = [*replaced(toy_flags, model_name=model), "--architecture", architecture, "--dropout", "0"]
    plain = first_gradient_of(train.main, flags)
    for flag in ("--fgm", "--neftune"):
        found = first_gradient_of(train.main, [*flags, flag, "1"])
        assert float((found - plain).norm()) > 1e-2 * float(plain.norm())


@pytest.mark.parametrize("flags", [["--fgm", "1", "--overlap"], ["--neftune", "1", "--compile", "on"]])
def test_what_does_not_go_together_is_refused(flags, toy_flags):
    with pytest.raises(UserError, match=flags[0]):
        train.main([*toy_flags, *flags])


def test_a_small_gradient_is_a_direction_and_none_is_none():
    """Its squares would be 0 in float32."""
    cut = cut_of_rows(True)
    gradient = torch.zeros(1, 7, 2)
    gradient[0, 1] = torch.tensor([3e-30, 4e-30])
    step = fgm_step(gradient, cut, 0.5)
    torch.testing.assert_close(step[0, 1], torch.tensor([0.3, 0.4]))
    assert step[0, 4:].eq(0).all()


def test_a_model_that_embeds_other_tokens_is_refused():
    class Padding(Model):
        def forward(self, cut):
            return self.inner.table(torch.nn.functional.pad(cut.ids, (0, 3))).sum()

    model = Padding().train()
    EmbeddingNoise(model, 5.0, 0.0)
    with pytest.raises(UserError, match="--neftune, --fgm: this model embeds other tokens"):
        model(cut_of_rows(False))


def test_with_two_passes_the_first_is_moved():
    """R-Drop's second pass draws other masks than the adversarial one, which draws the first's."""
    model, cut = Model().train(), cut_of_rows(False)
    noise = EmbeddingNoise(model, 0.0, 0.1)
    first, second = model(cut).sum(), model(cut).sum()
    (first + 3 * second).backward()
    gradient = noise.seen[1].grad
    with noise.adversarial(cut):
        model(cut)
    assert torch.equal(gradient, torch.autograd.grad(model(cut).sum(), noise.seen[1])[0])
