"""losses/classification.py: by hand, against torch and scikit-learn, and the same sum however a batch is cut."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from core.errors import UserError
from losses.classification import (
    LOSSES,
    answer_loss,
    binary_cross_entropy,
    binary_focal,
    choose_word_loss,
    cross_entropy,
    focal,
    loss_denominator,
    make_loss,
)

LOG = math.log
NAMES = [("ce", False), ("focal", False), ("vocab", False), ("bce", True), ("focal", True)]


def batch(multi_label: bool, num_rows: int = 7, num_classes: int = 3, seed: int = 0, dtype=torch.float64):
    """Scores, labels and class weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, num_classes, generator=generator, dtype=dtype)
    if multi_label:
        labels = (torch.rand(num_rows, num_classes, generator=generator) < 0.4).float()
        return logits, labels, torch.rand(2, num_classes, generator=generator).to(dtype) + 0.2
    labels = torch.randint(0, num_classes, (num_rows,), generator=generator)
    return logits, labels, torch.rand(num_classes, generator=generator).to(dtype) + 0.2


# -- by hand: three rows of two classes -------------------------------------------------------------------------
# one label: scores (log 3, 0), so p = 3/4, 1/4; (0, 0): 1/2, 1/2; (0, log 4): 1/5, 4/5. Labels 0, 1, 0.

LOGITS = torch.tensor([[LOG(3), 0.0], [0.0, 0.0], [0.0, LOG(4)]])
LABELS = torch.tensor([0, 1, 0])
WEIGHTS = torch.tensor([2.0, 3.0])


def test_cross_entropy_by_hand():
    # -log 3/4 - log 1/2 - log 1/5 = log(4/3 * 2 * 5)
    assert cross_entropy(LOGITS, LABELS).item() == pytest.approx(LOG(40 / 3))
    # weights 2, 3, 2
    expected = 2 * LOG(4 / 3) + 3 * LOG(2) + 2 * LOG(5)
    assert cross_entropy(LOGITS, LABELS, WEIGHTS).item() == pytest.approx(expected)
    # smoothing 0.2: 0.9 of the label's, 0.1 of the other's
    expected = 0.9 * LOG(40 / 3) + 0.1 * (LOG(4) + LOG(2) + LOG(5 / 4))
    assert cross_entropy(LOGITS, LABELS, smoothing=0.2).item() == pytest.approx(expected)


def test_focal_by_hand():
    # (1 - p)^2 = 1/16, 1/4, 16/25 of the label
    expected = LOG(4 / 3) / 16 + LOG(2) / 4 + 16 / 25 * LOG(5)
    assert focal(LOGITS, LABELS).item() == pytest.approx(expected)
    expected = 2 * LOG(4 / 3) / 16 + 3 * LOG(2) / 4 + 2 * 16 / 25 * LOG(5)
    assert focal(LOGITS, LABELS, WEIGHTS).item() == pytest.approx(expected)


def test_answer_loss_by_hand():
    # chances of whole words, among others that no class has: 1/2, 1/5; 1/10, 3/10; 1/8, 1/2
    scores = torch.tensor([[0.5, 0.2], [0.1, 0.3], [0.125, 0.5]]).log()
    assert answer_loss(scores, LABELS).item() == pytest.approx(LOG(2) + LOG(10 / 3) + LOG(8))
    expected = 2 * LOG(2) + 3 * LOG(10 / 3) + 2 * LOG(8)
    assert answer_loss(scores, LABELS, WEIGHTS).item() == pytest.approx(expected)
    denom = loss_denominator(LABELS.numpy(), WEIGHTS.numpy())
    assert answer_loss(scores, LABELS, WEIGHTS).item() / denom == pytest.approx(expected / 7)
    assert make_loss("vocab", False, WEIGHTS, 0.0, 2.0)(scores, LABELS).item() == pytest.approx(expected)
    # over the classes alone the rest of the vocabulary does not count: 5/7, 3/4, 1/5 of the two
    assert cross_entropy(scores, LABELS).item() == pytest.approx(LOG(7 / 5) + LOG(4 / 3) + LOG(5))


WORD_LOSSES = [  # --word_loss, the loss that --loss means, head, architecture, smoothing, what is taken
    ("auto", "ce", "words", "t5", 0.0, "ce"),
    ("auto", "ce", "words", "causal", 0.0, "vocab"),
    ("auto", "ce", "words", "causal", 0.1, "ce"),
    ("auto", "focal", "words", "causal", 0.0, "focal"),
    ("auto", "focal", "words", "t5", 0.0, "focal"),
    ("classes", "ce", "words", "causal", 0.0, "ce"),
    ("classes", "focal", "words", "t5", 0.1, "focal"),
    ("vocab", "ce", "words", "t5", 0.0, "vocab"),
    ("vocab", "ce", "words", "causal", 0.0, "vocab"),
    ("auto", "ce", "model", "bert", 0.1, "ce"),
    ("auto", "bce", "linear", "causal", 0.0, "bce"),
    ("vocab", "ce", "words", "t5", 0.1, "--word_loss vocab: leaves nothing for --label_smoothing to do"),
    ("vocab", "focal", "words", "causal", 0.0, "--word_loss vocab: leaves nothing for --loss focal to do"),
    (
        "vocab",
        "ce",
        "linear",
        "t5",
        0.0,
        "--word_loss vocab: needs label words for an answer, not --head linear",
    ),
    ("classes", "ce", "model", "bert", 0.0, "--word_loss classes: needs label words .*, not --head model"),
]


@pytest.mark.parametrize("word_loss, loss, head, architecture, smoothing, taken", WORD_LOSSES)
def test_the_loss_over_words(word_loss, loss, head, architecture, smoothing, taken):
    args = word_loss, loss, head, architecture, smoothing
    if not taken.startswith("--"):
        assert choose_word_loss(*args) == taken
        return
    with pytest.raises(UserError, match=taken):
        choose_word_loss(*args)


# several labels: sigmoid of log 3, -log 3, 0 is 3/4, 1/4, 1/2

BINARY_LOGITS = torch.tensor([[LOG(3), -LOG(3)], [0.0, LOG(3)], [-LOG(3), 0.0]])
BINARY_LABELS = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
BINARY_WEIGHTS = torch.tensor([[1.0, 2.0], [3.0, 5.0]])  # of negatives, of positives, for each class


def test_binary_losses_by_hand():
    # chances given to the truth: 3/4, 1/4; 1/2, 1/4; 3/4, 1/2; their weights 3, 5; 1, 2; 1, 5
    truth, weights = np.array([3 / 4, 1 / 4, 1 / 2, 1 / 4, 3 / 4, 1 / 2]), np.array([3, 5, 1, 2, 1, 5])
    nats = -np.log(truth)
    args = BINARY_LOGITS, BINARY_LABELS
    assert binary_cross_entropy(*args).item() == pytest.approx(nats.sum())
    assert binary_cross_entropy(*args, BINARY_WEIGHTS).item() == pytest.approx((weights * nats).sum())
    assert binary_focal(*args).item() == pytest.approx(((1 - truth) ** 2 * nats).sum())
    assert binary_focal(*args, BINARY_WEIGHTS).item() == pytest.approx(
        (weights * (1 - truth) ** 2 * nats).sum()
    )
    # smoothing 0.2: 0.9 of the truth, 0.1 of the other outcome
    smooth = (0.9 * nats - 0.1 * np.log(1 - truth)).sum()
    assert binary_cross_entropy(*args, smoothing=0.2).item() == pytest.approx(smooth)


# -- against torch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("name", ["ce", "focal"])
def test_one_label_over_our_denominator_is_torchs_mean(weighted, smoothing, name):
    logits, labels, weights = batch(False)
    weights = weights if weighted else None
    loss = make_loss(name, False, weights, smoothing, gamma=0.0)(logits, labels)  # focal with gamma 0 is ce
    denom = loss_denominator(labels.numpy(), weights.numpy() if weighted else None)
    mean = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(loss / denom, mean, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("name", ["bce", "focal"])
def test_several_labels_over_our_denominator_are_torchs_mean(weighted, smoothing, name):
    logits, labels, weights = batch(True)
    weights = weights if weighted else None
    loss = make_loss(name, True, weights, smoothing, gamma=0.0)(logits, labels)
    denom = loss_denominator(labels.numpy(), weights.numpy() if weighted else None)
    each = torch.where(labels > 0, weights[1], weights[0]) if weighted else torch.ones_like(logits)
    target = labels.double() * (1 - smoothing) + smoothing / 2
    mean = F.binary_cross_entropy_with_logits(logits, target, each) * labels.numel() / each.sum()
    torch.testing.assert_close(loss / denom, mean, rtol=1e-12, atol=0)


def slow_focal(logits, labels, weights, smoothing, gamma, multi_label) -> float:
    """Lin et al. 2017, eq. 5, one number after the other."""
    total, num_classes = 0.0, logits.shape[1]
    for row, truth in zip(logits.tolist(), labels.tolist()):
        for c in range(num_classes):
            if multi_label:
                p = 1 / (1 + math.exp(-row[c]))
                y = truth[c] * (1 - smoothing) + smoothing / 2
                weight = float(weights[int(truth[c]), c])
                total -= weight * y * (1 - p) ** gamma * LOG(p)
                total -= weight * (1 - y) * p**gamma * LOG(1 - p)
            else:
                p = math.exp(row[c]) / sum(math.exp(x) for x in row)
                y = (truth == c) * (1 - smoothing) + smoothing / num_classes
                total -= float(weights[c]) * y * (1 - p) ** gamma * LOG(p)
    return total


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_focal_against_a_slow_loop(multi_label, smoothing, gamma):
    logits, labels, weights = batch(multi_label)
    found = LOSSES["focal", multi_label](logits, labels, weights, smoothing, gamma)
    assert found.item() == pytest.approx(
        slow_focal(logits, labels, weights, smoothing, gamma, multi_label), rel=1e-12
    )
    # bite: another gamma is told apart
    other = slow_focal(logits, labels, weights, smoothing, gamma + 0.1, multi_label)
    assert found.item() != pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("name, multi_label", NAMES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_in_float64(name, multi_label, smoothing):
    logits, labels, weights = batch(multi_label)
    loss_fn = make_loss(name, multi_label, weights, smoothing, gamma=1.5)
    assert torch.autograd.gradcheck(lambda x: loss_fn(x, labels), logits.requires_grad_())


@pytest.mark.parametrize("name, multi_label", NAMES)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_sure_scores_have_finite_gradients(name, multi_label, gamma):
    logits = torch.tensor([[200.0, -200.0, 0.0], [-30.0, 30.0, 0.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]) if multi_label else torch.tensor([0, 0])
    loss = make_loss(name, multi_label, None, 0.1, gamma)(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name, multi_label", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(name, multi_label, dtype):
    logits, labels, weights = batch(multi_label, num_rows=300, dtype=torch.float32)
    loss_fn = make_loss(name, multi_label, weights, 0.1, 2.0)
    rounded = logits.to(dtype)
    found = loss_fn(rounded, labels)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss_fn(rounded.float(), labels))  # bitwise
    assert found.shape == ()


# -- a sum, however the batch is cut ----------------------------------------------------------------------------


def by_cuts(loss_fn, logits, labels, sizes, denom) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient, summed cut by cut."""
    leaf, total = logits.clone().requires_grad_(), 0.0
    for part, truth in zip(leaf.split(sizes), labels.split(sizes)):
        loss = loss_fn(part, truth) / denom(truth)
        loss.backward(retain_graph=True)
        total = total + loss.detach()
    return total, leaf.grad


def is_same(one, other) -> bool:
    return all(torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in zip(one, other))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(NAMES), st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 99))
def test_the_sum_over_any_split_is_the_same(name, sizes, seed):
    logits, labels, weights = batch(name[1], sum(sizes), seed=seed)
    loss_fn = make_loss(*name, weights, 0.1, 2.0)
    whole = loss_denominator(labels.numpy(), weights.numpy())
    in_one = by_cuts(loss_fn, logits, labels, [sum(sizes)], lambda _: whole)
    assert is_same(in_one, by_cuts(loss_fn, logits, labels, sizes, lambda _: whole))


@pytest.mark.parametrize("name, multi_label", NAMES)
def test_bite_a_mean_of_means_depends_on_the_split(name, multi_label):
    logits, labels, weights = batch(multi_label, 9)
    loss_fn = make_loss(name, multi_label, weights, 0.1, 2.0)
    whole = loss_denominator(labels.numpy(), weights.numpy())
    in_one = by_cuts(loss_fn, logits, labels, [9], lambda _: whole)
    wrong = by_cuts(
        loss_fn, logits, labels, [5, 4], lambda truth: 2 * loss_denominator(truth.numpy(), weights.numpy())
    )
    assert not is_same(in_one, wrong)


def test_denominators_by_hand():
    assert loss_denominator(np.array([0, 1, 0]), None) == 3.0
    assert loss_denominator(np.array([0, 1, 0]), np.array([2, 3], np.float32)) == 7.0
    labels = np.array([[1, 1], [0, 0], [0, 1]], np.uint8)
    assert loss_denominator(labels, None) == 6.0
    assert loss_denominator(labels, BINARY_WEIGHTS.numpy()) == 3 + 5 + 1 + 2 + 1 + 5
    assert type(loss_denominator(labels, BINARY_WEIGHTS.numpy())) is float
