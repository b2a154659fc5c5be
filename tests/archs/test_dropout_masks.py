"""archs/dropout.py's masks: hashes of (seed, step, row, layer, element) that are as good as independent draws."""

import itertools

import pytest
import torch
import transformers

from archs.build import build_model
from archs.dropout import MASKS, attention_dropout, check_exact_dropout, dropout, kept_scale, sixteenth_bits
from core.dist import step_seed
from core.errors import UserError
from tests.conftest import tiny_config
from tests.helpers import cut_of

WIDTH = 384


def name_rows(rows, num_tokens: int = 1, seed: int = 0) -> None:
    """The step, and a padded cut of rows of these numbers."""
    MASKS.begin_step(seed)
    MASKS.begin_cut(torch.as_tensor(rows), None, torch.arange(num_tokens))


def masks(rows, num_tokens: int = 1, seed: int = 0, p: float = 0.5, num_layers: int = 1, width: int = WIDTH):
    """(layers, B, T, D) bool: what the first dropouts of a forward pass keep."""
    name_rows(rows, num_tokens, seed)
    ones = torch.ones(len(rows), num_tokens, width)
    return torch.stack([dropout(ones, p, True) != 0 for _ in range(num_layers)])


def real_p(p: float) -> float:
    """The probability in 16 bits."""
    return sixteenth_bits(p) / 65536


def check_share(keep: torch.Tensor, p: float) -> None:
    """1 - p, within five standard errors."""
    error = (p * (1 - p) / keep.numel()) ** 0.5
    assert abs(keep.double().mean() - (1 - p)) < 5 * error


def check_unrelated(a: torch.Tensor, b: torch.Tensor, p: float) -> None:
    """Two masks agree as often as independent ones: (1 - p)^2 + p^2, within five standard errors."""
    chance = (1 - p) ** 2 + p**2
    check_share(a != b, chance)  # "kept" means that they differ


# -- shares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("width", [384, 385, 7, 1])
def test_the_share_kept(p, width):
    num_rows = 30_000 // width + 10
    found = masks(torch.arange(num_rows), 16, 7, p, width=width)
    check_share(found, real_p(p))
    with pytest.raises(AssertionError):
        check_share(found, real_p(p) * 1.1)
    if width > 1:
        check_share(found[..., :2], real_p(p))  # both halves of the first hash
        check_share(found[..., -1], real_p(p))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_each_column_and_each_vector_keeps_its_share(p):
    """The largest of many shares is as far off as the largest of that many independent ones (6 sigma)."""
    found, q = masks(torch.arange(100), 40, 3, p)[0].double(), real_p(p)
    for shares, size in (
        (found.mean((0, 1)), 4000),
        (found.mean(-1).flatten(), WIDTH),
        (found.mean((1, 2)), 40 * WIDTH),
    ):
        error = (q * (1 - q) / size) ** 0.5
        slack = 6 if p > 0.01 else 9  # few are dropped: the tail of a binomial is longer
        assert (shares - (1 - q)).abs().max() < slack * error
        assert shares.std() == pytest.approx(error, rel=5 / (2 * len(shares)) ** 0.5 + 0.02)


# -- independence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_steps_rows_places_and_layers_have_unrelated_masks(p):
    q = real_p(p)
    rows = torch.tensor([0, 1, 2, 3, 1000, 1001, 2**20, 2**31, 2**32 - 1])
    found = masks(rows, 20, step_seed(0, 0, 0), p, num_layers=4)  # (4, B, T, D)
    for a, b in itertools.pairwise(range(4)):
        check_unrelated(found[a], found[b], q)
    check_unrelated(found[0], found[3], q)
    for a, b in itertools.combinations(range(len(rows)), 2):
        check_unrelated(found[:, a], found[:, b], q)
    for distance in (1, 2, 7):
        check_unrelated(found[:, :, distance:], found[:, :, :-distance], q)  # places
        check_unrelated(found[..., distance:], found[..., :-distance], q)  # elements
    for seed in (step_seed(0, 1, 0), step_seed(0, 2, 0), step_seed(1, 0, 0), 1, 2, 3):
        check_unrelated(found, masks(rows, 20, seed, p, num_layers=4), q)
    for seed in range(3):  # seeds that follow one another
        check_unrelated(masks(rows, 20, seed, p), masks(rows, 20, seed + 1, p), q)
    # the mask of the next layer is not that of the next row, and so on
    check_unrelated(found[1, 0], found[0, 1], q)
    check_unrelated(found[0, 0, 1], found[0, 1, 0], q)


def test_bite_related_masks_are_caught():
    found = masks([0, 1, 2, 3], 20)[0]
    with pytest.raises(AssertionError):
        check_unrelated(found, found, 0.5)
    with pytest.raises(AssertionError):
        check_unrelated(found, ~found, 0.5)
    mostly = torch.where(masks([9, 10, 11, 12], 20, p=0.05)[0], found, ~found)
    with pytest.raises(AssertionError):
        check_unrelated(found, mostly, 0.5)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_heads_and_queries_have_unrelated_masks(p):
    name_rows(torch.arange(6), 24)
    keep, q = dropout(torch.ones(6, 4, 24, 24), p, True) != 0, real_p(p)
    check_share(keep, q)
    check_unrelated(keep[:, 1:], keep[:, :-1], q)
    check_unrelated(keep[:, :, 1:], keep[:, :, :-1], q)
    check_unrelated(keep[1:], keep[:-1], q)
    states = dropout(torch.ones(6, 24, 24), p, True) != 0  # and those of the tokens' states
    check_unrelated(keep[:, 0], states, q)


# -- what they hang on ------------------------------------------------------------------------------------------


def test_the_same_numbers_give_the_same_mask():
    first = masks([5, 9], 4, 11, num_layers=3)
    assert torch.equal(first, masks([5, 9], 4, 11, num_layers=3))
    for other in (masks([5, 8], 4, 11, num_layers=3)[:, 1:], masks([5, 9], 4, 12, num_layers=3)[:, 1:]):
        assert not torch.equal(first[:, 1:], other)


def test_a_row_has_its_mask_in_any_cut():
    whole = masks([5, 9, 2], 6, num_layers=2)
    assert torch.equal(whole[:, [2, 0]], masks([2, 5], 6, num_layers=2))
    assert torch.equal(whole[:, 1:2, :4], masks([9], 4, num_layers=2))  # cut to four tokens
    assert torch.equal(whole[..., :99], masks([5, 9, 2], 6, num_layers=2, width=99))
    # packed: rows of 6, 2 and 4 tokens
    cut = cut_of([[1] * n for n in (6, 2, 4)], True, [5, 9, 2])
    MASKS.begin_step(0)
    MASKS.begin_cut(cut.rows, cut.owner, cut.place)
    for layer in range(2):
        keep = dropout(torch.ones(1, 12, WIDTH), 0.5, True)[0] != 0
        for k, part in enumerate(keep.split([6, 2, 4])):
            assert torch.equal(part, whole[layer, k, : len(part)])


def test_a_vector_a_row_is_the_same_packed_and_padded():
    """What heads drop: (B, D), and (B, 1, D) where a packed row's first state stands for its tokens."""
    cuts = [cut_of([[1] * n for n in (6, 2, 4)], packed, [5, 9, 2]) for packed in (False, True)]
    found = []
    for cut, shape in itertools.product(cuts, [(3, WIDTH), (3, 1, WIDTH)]):
        MASKS.begin_step(0)
        MASKS.begin_cut(cut.rows, cut.owner, cut.place)
        found.append(dropout(torch.ones(shape), 0.5, True).view(3, WIDTH))
    assert all(torch.equal(found[0], other) for other in found[1:])
    check_unrelated(found[0] != 0, masks([5, 9, 2])[0, :, 0], 0.5)  # a row is not its first token


@pytest.mark.parametrize("width", [24, 23])
def test_attention_padded_in_another_width_has_the_same_mask(width):
    """(B, H, T, S): the common part, of rows in another order."""
    name_rows([5, 9, 2], 40)
    wide = dropout(torch.ones(3, 4, 40, 40), 0.3, True)
    name_rows([2, 5], width)
    narrow = dropout(torch.ones(2, 4, width, width), 0.3, True)
    assert torch.equal(wide[[2, 0]][:, :, :width, :width], narrow)


@pytest.mark.parametrize("shape", [(3, 9), (3, 5, 9), (3, 4, 5, 7)])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_all_types_drop_the_same_elements(shape, p):
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        name_rows([5, 9, 2], 5)
        found.append(dropout(torch.full(shape, 3.0, dtype=dtype), p, True) != 0)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert found[0].any()


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 7), (3, 2, 5, 5)])
def test_the_gradient_is_the_mask_times_the_scale(shape):
    name_rows([5, 9, 2], 5)
    x = torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    out = dropout(x, 0.1, True)
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0).double() * kept_scale(0.1))
    assert kept_scale(0.1) == 1 / (1 - real_p(0.1))
    assert 0 < (out == 0).sum() < x.numel()


def test_nothing_is_counted_in_evaluation_or_at_zero():
    """Else the next layer's mask would hang on what came before it."""
    name_rows([5, 9])
    x = torch.ones(2, WIDTH)
    wanted = dropout(x, 0.5, True)
    name_rows([5, 9])
    assert dropout(x, 0.0, True) is x
    assert dropout(x, 0.5, False) is x
    assert torch.equal(dropout(x, 0.5, True), wanted)


def test_a_new_step_forgets_the_rows():
    name_rows([5, 9])
    MASKS.begin_step(1)
    torch.manual_seed(0)
    first = dropout(torch.ones(2, WIDTH), 0.5, True)
    torch.manual_seed(0)
    assert torch.equal(first, torch.nn.functional.dropout(torch.ones(2, WIDTH), 0.5))


# -- --attention_dropout and --exact_dropout --------------------------------------------------------------------

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "mpnet", "modernbert", "electra", "albert")


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_dropout_sets_that_of_attention_alone(family):
    config, other = tiny_config(family), tiny_config(family)
    attention_dropout(config, 0.25)
    assert attention_dropout(config) == 0.25
    changed = {name for name, value in vars(config).items() if getattr(other, name) != value}
    assert changed == {
        "attention_dropout" if family in ("distilbert", "modernbert") else "attention_probs_dropout_prob"
    }
    attention_dropout(config, None)
    assert attention_dropout(config) == 0.25


def test_attention_dropout_goes_before_dropout():
    config = tiny_config("bert")
    build_model("m", config, ["a", "b"], False, "model", "", 0.3, "auto", False, attention_drop=0.0)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.0)
    gpt2 = transformers.GPT2Config(attn_pdrop=0.2, resid_pdrop=0.4)
    assert attention_dropout(gpt2) == 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_dropout_wants_no_dropout_of_attention_on_cuda(family):
    config, cuda, cpu = tiny_config(family), torch.device("cuda", 1), torch.device("cpu")
    attention_dropout(config, 0.1)
    with pytest.raises(UserError, match=r"--exact_dropout: .*\(0\.1\).*on cuda .*--attention_dropout 0"):
        check_exact_dropout(True, config, cuda)
    check_exact_dropout(True, config, cpu)
    check_exact_dropout(False, config, cuda)
    attention_dropout(config, 0.0)
    check_exact_dropout(True, config, cuda)
