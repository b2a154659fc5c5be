"""losses/ppo.py: by hand, against others' formulas, and each estimator's expectation against the exact gradient."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

from core.rollouts import draw_choices
from losses.ppo import (
    ESTIMATORS,
    adapted,
    choice_advantages,
    clipped_share,
    clipped_surrogate,
    clipped_value_loss,
    divergence,
    entropy,
    policy_log_probs,
)

LOG, INF = math.log, math.inf
F64 = partial(torch.tensor, dtype=torch.float64)
close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)


def batch(num_questions: int = 8, num_places: int = 5, seed: int = 0):
    """Float64 scores, log-probabilities of another policy, keep with gaps; the first question has one candidate."""
    generator = torch.Generator().manual_seed(seed)
    scores, others = torch.randn(2, num_questions, num_places, generator=generator, dtype=torch.float64)
    keep = torch.rand(num_questions, num_places, generator=generator) < 0.6
    keep[:, 2] = True
    keep[0] = torch.arange(num_places) == 2
    return scores, policy_log_probs(others, keep), keep


def choices_of(shape: tuple, seed: int = 0):
    """Log-probabilities of choices before and after updates, ratios 1/4 to 4; advantages of both signs; weights."""
    generator = torch.Generator().manual_seed(seed)
    old, moved, advantages, weights = torch.rand(4, *shape, generator=generator, dtype=torch.float64)
    return LOG(0.1) + old + (moved * 2 - 1) * LOG(4), LOG(0.1) + old, advantages - 0.5, weights.softmax(dim=1)


# -- one question of two candidates by hand: p = 1/4, 3/4, q = 1/2, 1/2 -----------------------------------------

ENTROPY = LOG(4) - 0.75 * LOG(3)
TILT = 3 / 16 * LOG(3)  # dH/ds_1 = -p_1 (log p_1 + H), at temperature 1; ds_2 is minus that
TWO = torch.ones(1, 2, dtype=torch.bool)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_numbers_of_a_policy(temperature):
    scores = (temperature * F64([[5.0, 5 + LOG(3)]])).requires_grad_()
    p = policy_log_probs(scores, TWO, temperature)
    q = F64([[LOG(0.5), LOG(0.5)]])
    wanted = [  # number, value, its gradient by the scores at temperature 1
        (p[:, 0], -LOG(4), [3 / 4, -3 / 4]),
        (p[:, 1], LOG(3 / 4), [-1 / 4, 1 / 4]),
        (entropy(p, TWO), ENTROPY, [TILT, -TILT]),
        (divergence(p, q, TWO), LOG(2) - ENTROPY, [-TILT, TILT]),
        (divergence(q, p, TWO), LOG(4 / 3) / 2, [-1 / 4, 1 / 4]),  # p - q
    ]
    for number, value, slope in wanted:
        close(number, F64([value]))
        close(torch.autograd.grad(number, scores, retain_graph=True)[0], F64([slope]) / temperature)


def test_a_temperature_above_one_tries_more():
    scores, _, keep = batch()
    cold, warm, hot = (entropy(policy_log_probs(scores, keep, t), keep)[1:] for t in (0.5, 1.0, 2.0))
    assert (cold < warm).all()
    assert (warm < hot).all()


@pytest.mark.parametrize("ratio, advantage, clip, loss, slope", [
    (1.5, 2.0, 0.2, -2.4, 0.0),  # min(3, 2.4): held
    (1.5, -2.0, 0.2, 3.0, 3.0),  # min(-3, -2.4): free, it goes back
    (0.5, 2.0, 0.2, -1.0, -1.0),  # min(1, 1.6)
    (0.5, -2.0, 0.2, 1.6, 0.0),  # min(-1, -1.6)
    (1.1, 2.0, 0.2, -2.2, -2.2), (0.9, -2.0, 0.2, 1.8, 1.8), (1.0, 2.0, 0.2, -2.0, -2.0),
    (1.5, 2.0, 0.6, -3.0, -3.0), (1.5, 2.0, INF, -3.0, -3.0), (0.5, -2.0, INF, 1.0, 1.0),
    (1e3, 2.0, INF, -2e3, -2e3), (1.5, 0.0, 0.2, 0.0, 0.0),
])  # fmt: skip
def test_the_surrogate_of_one_choice(ratio, advantage, clip, loss, slope):
    old = F64([[LOG(0.3)]])
    new = (old + LOG(ratio)).requires_grad_()
    found = clipped_surrogate(new, old, F64([[advantage]]), F64([[1.0]]), clip)
    close(found, F64(loss))
    close(torch.autograd.grad(found, new)[0], F64([[slope]]))  # by log p


@pytest.mark.parametrize("value, old, reward, clip, loss, slope", [
    (1.0, 0.9, 0.0, 0.2, 0.5, 1.0),  # near enough: nothing is held
    (1.0, 0.5, 0.0, 0.2, 0.5, 1.0), (-1.0, -0.5, 0.0, 0.2, 0.5, -1.0),  # moved away from r: the larger error, free
    (1.0, 0.5, 2.0, 0.2, 0.845, 0.0), (-1.0, -0.5, -2.0, 0.2, 0.845, 0.0),  # towards r, and too far: held at 0.7
    (1.0, 0.5, 2.0, 0.6, 0.5, -1.0), (1.0, 0.5, 2.0, INF, 0.5, -1.0), (9.0, 0.5, 2.0, INF, 24.5, 7.0),
])  # fmt: skip
def test_the_value_loss_of_one_choice(value, old, reward, clip, loss, slope):
    value = F64([value]).requires_grad_()
    found = clipped_value_loss(value, F64([old]), F64([[reward]]), F64([[1.0]]), clip)
    close(found, F64(loss))
    close(torch.autograd.grad(found, value)[0], F64([slope]))


def test_choices_count_by_their_weights():
    old, weights = F64([[LOG(0.3), LOG(0.2)]]), F64([[0.25, 0.75]])
    new = (old + F64([[LOG(1.5), LOG(0.5)]])).requires_grad_()
    found = clipped_surrogate(new, old, F64([[-2.0, 4.0]]), weights, 0.2)
    close(found, F64(0.25 * 3 - 0.75 * 2))
    close(torch.autograd.grad(found, new)[0], F64([[0.25 * 3, -0.75 * 2]]))
    value = F64([0.0]).requires_grad_()
    found = clipped_value_loss(value, F64([0.0]), F64([[1.0, 3.0]]), weights, 0.2)
    close(found, F64((0.25 * 1 + 0.75 * 9) / 2))
    close(torch.autograd.grad(found, value)[0], F64([-(0.25 * 1 + 0.75 * 3)]))
    close(clipped_share(new, old, weights, 0.4), F64(1.0))
    close(clipped_share(new, old, F64([[0.1, 0.2]]), 0.5 + 1e-9), F64(0.0))


def test_the_share_that_is_clipped():
    ratios = F64([[1.3, 0.9], [0.7, 1.1], [0.95, 1.05]])
    weights = F64([[0.25, 0.75], [0.4, 0.6], [0.5, 0.5]])
    found = [clipped_share(ratios.log(), torch.zeros(3, 2), weights, c) for c in (0.2, 0.01, 0.4, INF)]
    close(torch.stack(found), F64([0.25 + 0.4, 3.0, 0.0, 0.0]))  # a sum over questions


@pytest.mark.parametrize("divergence, wanted", [
    (0.16, 0.8), (0.1499, 0.4), (0.1, 0.4), (0.0668, 0.4), (0.0666, 0.2), (0.0, 0.2), (INF, 0.8),
])  # fmt: skip
def test_the_coefficient_follows_its_target(divergence, wanted):
    assert adapted(0.4, divergence, target=0.1) == wanted


# -- gradients, precision, places, cuts -------------------------------------------------------------------------


def test_gradients_in_float64():
    scores, others, keep = batch()
    new, old, advantages, weights = choices_of((6, 3))
    value, near, rewards = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(1)).double()
    value, near = 3 * value[:, 0], near[:, 0]

    def numbers(scores: torch.Tensor) -> tuple:
        p = policy_log_probs(scores, keep, 0.7)
        return p, entropy(p, keep), divergence(p, others, keep), divergence(others, p, keep)

    def losses(new: torch.Tensor, value: torch.Tensor) -> tuple:
        surrogate = clipped_surrogate(new, old, advantages, weights, 0.2)
        return surrogate, clipped_value_loss(value, near, rewards, weights, 0.2)

    assert torch.autograd.gradcheck(numbers, scores.requires_grad_())
    assert torch.autograd.gradcheck(losses, (new.requires_grad_(), value.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("junk", [math.nan, INF, -INF, 1e30, -1e30])
def test_places_not_kept_change_no_bit(junk, dtype):
    def found(junk: float) -> list[torch.Tensor]:
        scores, others, keep = batch()
        leaf = scores.to(dtype).masked_fill(~keep, junk).requires_grad_()
        others = others.to(dtype).masked_fill(~keep, junk)
        p = policy_log_probs(leaf, keep, 0.7)
        dirty = p.masked_fill(~keep, junk)
        numbers = [p, entropy(p, keep), divergence(p, others, keep), divergence(others, p, keep)]
        numbers += [entropy(dirty, keep), divergence(dirty, others, keep)]
        sum((k * x).sum() for k, x in enumerate(numbers, 1)).backward()
        assert not leaf.grad[~keep].any()
        assert not p[~keep].any()
        return [*numbers, leaf.grad]

    clean, dirty = found(0.0), found(junk)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty))
    assert all(x.isfinite().all() for x in dirty)


def test_a_question_of_one_candidate_has_nothing_to_choose():
    scores, others, keep = batch()
    p = policy_log_probs(scores.requires_grad_(), keep, 0.7)
    numbers = p[0, 2], entropy(p, keep)[0], divergence(p, others, keep)[0], divergence(others, p, keep)[0]
    for number in numbers:
        assert number.item() == 0
        assert not torch.autograd.grad(number, scores, retain_graph=True)[0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_are_computed_in_float32_at_least(dtype):
    scores, others, keep = batch()
    rounded, wanted = scores.to(dtype), torch.promote_types(dtype, torch.float32)
    p = policy_log_probs(rounded, keep, 0.7)
    assert torch.equal(p, policy_log_probs(rounded.to(wanted), keep, 0.7))  # bitwise
    numbers = p, entropy(p, keep), divergence(p, others.to(wanted), keep)
    assert {number.dtype for number in numbers} == {wanted}
    close(p, policy_log_probs(rounded.double(), keep, 0.7), rtol=1e-5, atol=1e-6, check_dtype=False)


def test_any_cut_of_a_batch_gives_the_same_sums():
    parts = choices_of((9, 4))
    new, old, advantages, weights = parts
    sums = clipped_surrogate(*parts, 0.2), clipped_share(new, old, weights, 0.2)
    cuts = list(zip(*(part.split([2, 4, 3]) for part in parts)))
    close(sum(clipped_surrogate(*cut, 0.2) for cut in cuts), sums[0])
    close(sum(clipped_share(cut[0], cut[1], cut[3], 0.2) for cut in cuts), sums[1])
    parts = new[:, 0], old[:, 0], advantages, weights
    cuts = zip(*(part.split([2, 4, 3]) for part in parts))
    close(sum(clipped_value_loss(*cut, 0.2) for cut in cuts), clipped_value_loss(*parts, 0.2))


# -- what the clip does to the gradient -------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.5, 1.5, INF])
def test_the_gradient_ends_where_the_advantage_would_push_further(clip):
    new, old, advantages, weights = choices_of((200, 3))
    found = clipped_surrogate(new.requires_grad_(), old, advantages, weights, clip)
    ratio = (new - old).exp().detach()
    is_held = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    close(torch.autograd.grad(found, new)[0], -weights * advantages * ratio * ~is_held)
    assert bool(is_held.any()) == (clip < INF)
    assert not is_held.all()


@pytest.mark.parametrize("clip", [1e-6, 0.2, INF])
def test_at_ratio_one_the_gradient_is_reinforces(clip):
    scores, _, keep = batch(40)
    _, _, advantages, weights = choices_of((40, 3))
    p = policy_log_probs(scores.requires_grad_(), keep, 0.7)
    new = p.gather(1, draw_choices(p.detach(), keep, 3, 0))
    found = clipped_surrogate(new, new.detach(), advantages, weights, clip)
    close(found, -(weights * advantages).sum())
    plain = -(weights * advantages * new).sum()
    close(*(torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (found, plain)))


# -- against others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_choices", [1, 4])
def test_against_the_formulas_of_stable_baselines3(num_choices):
    """Its ppo.py, in train(): means over all choices; the squared error has no half, and where values are held it
    is that of the held value alone. Ours takes the larger of both, as OpenAI baselines do, and half of it."""
    new, old, advantages, _ = choices_of((30, num_choices))
    generator = torch.Generator().manual_seed(1)
    value, near, rewards = torch.randn(3, 30, num_choices, generator=generator).double()
    value, near, clip = value[:, 0].requires_grad_(), near[:, 0], 0.2
    weights = torch.full_like(new, 1 / num_choices)

    ratio = torch.exp(new.requires_grad_() - old)
    policy_loss = -torch.minimum(ratio * advantages, ratio.clip(0.8, 1.2) * advantages).mean()
    found = clipped_surrogate(new, old, advantages, weights, clip) / 30
    close(found, policy_loss)
    close(*(torch.autograd.grad(loss, new)[0] for loss in (found, policy_loss)))
    close(clipped_share(new, old, weights, clip) / 30, ((ratio - 1).abs() > clip).double().mean())

    free = F.mse_loss(value[:, None].expand_as(rewards), rewards)  # clip_range_vf None
    close(clipped_value_loss(value, near, rewards, weights, INF) / 30, free / 2)
    held = near + torch.clamp(value - near, -clip, clip)
    each = [F.mse_loss(v[:, None].expand_as(rewards), rewards, reduction="none") for v in (value, held)]
    found = clipped_value_loss(value, near, rewards, weights, clip) / 30
    close(found, torch.maximum(*each).mean() / 2)
    assert found > each[1].mean() / 2
    close(*(torch.autograd.grad(loss, value)[0] for loss in (found, torch.maximum(*each).mean() / 2)))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_against_torchs_distributions(temperature):
    scores, others, keep = batch(30)
    p = policy_log_probs(scores, keep, temperature)
    for b, kept in enumerate(keep):
        ours, theirs = Categorical(logits=scores[b, kept] / temperature), Categorical(logits=others[b, kept])
        close(p[b, kept], ours.logits)
        close(entropy(p, keep)[b], ours.entropy())
        close(divergence(p, others, keep)[b], kl_divergence(ours, theirs))
        close(divergence(others, p, keep)[b], kl_divergence(theirs, ours))


# -- advantages -------------------------------------------------------------------------------------------------

GROUP, SHARES = F64([[1.0, 0.0, 5.0], [2.0, 2.0, 2.0]]), F64([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]])
SPREAD = math.sqrt((1 + 4 + 9) / 2) + 1e-4


@pytest.mark.parametrize("estimator, wanted", [
    ("ppo", [[0.5 - 3, -0.5 - 3, 4.5 - 3], [3 - 1.5, 3 - 1.5, 3 - 1.5]]),  # r - V, less the other question's mean of it
    ("rloo", [[1 - 5 / 2, 0 - 6 / 2, 5 - 1 / 2], [0.0, 0.0, 0.0]]),
    ("grpo", [[-1 / SPREAD, -2 / SPREAD, 3 / SPREAD], [0.0, 0.0, 0.0]]),
    ("exact", [[-0.75, -1.75, 3.25], [0.0, 0.0, 0.0]]),
])  # fmt: skip
def test_advantages_by_hand(estimator, wanted):
    values, nothing = F64([0.5, -1.0]), torch.full((2,), math.nan)
    found = choice_advantages(estimator, GROUP, SHARES, values if estimator == "ppo" else nothing)
    close(found, F64(wanted))
    if estimator != "exact":  # the others do not read the weights
        close(choice_advantages(estimator, GROUP, SHARES * math.nan, values), found)


@pytest.mark.parametrize("num_questions, num_choices", [(1, 1), (1, 4), (2, 1), (5, 1), (5, 4)])
def test_ppo_leaves_the_own_question_out_of_the_mean(num_questions, num_choices):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(num_questions, num_choices, generator=generator, dtype=torch.float64)
    values = torch.randn(num_questions, generator=generator, dtype=torch.float64)
    found, left = choice_advantages("ppo", rewards, rewards, values), (rewards - values[:, None]).tolist()
    for b, own in enumerate(left):
        others = [x for c, row in enumerate(left) if c != b for x in row]
        mean = sum(others) / max(1, len(others))  # of a rollout of one question: 0
        close(found[b], F64([x - mean for x in own]))


def test_baselines_leave_nothing_in_the_mean():
    rewards, values = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)).double(), torch.rand(50)
    weights = choices_of((50, 4))[3]
    for name, shares in (("ppo", 0.25), ("rloo", 0.25), ("grpo", 0.25), ("exact", weights)):
        found = choice_advantages(name, rewards, weights, values.double())
        sums = (shares * found).sum(dim=1)
        close(sums.mean() if name == "ppo" else sums, torch.zeros(() if name == "ppo" else 50).double())
        assert (found.abs().amax(dim=1) > 0.01).all()
        shifted = choice_advantages(name, rewards + 7, weights, values.double())
        close(shifted, found, rtol=1e-9, atol=1e-12)


def test_other_names_and_a_group_of_one_are_errors():
    assert ESTIMATORS == ("ppo", "rloo", "grpo", "exact")
    one = torch.ones(3, 1)
    with pytest.raises(ValueError, match="estimator 'reinforce': expected one of ppo, rloo, grpo, exact"):
        choice_advantages("reinforce", one, one, one[:, 0])
    for name in ("rloo", "grpo"):
        with pytest.raises(ValueError, match=f"{name} .* expected two or more, found 1"):
            choice_advantages(name, one, one, one[:, 0])
    assert not choice_advantages("exact", one, one, one[:, 0]).any()


# -- the oracle: three questions whose expected reward can be differentiated as it stands -----------------------

T = 1.7
SCORES = F64([[0.3, 9.0, 9.0, -0.8], [1.2, -0.5, 9.0, 0.1], [0.4, -1.0, 0.9, -0.2]])
KEEP = torch.tensor([[True, False, False, True], [True, True, False, True], [True] * 4])
REWARDS = F64([[0.4, 0.0, 0.0, 1.5], [0.0, 2.0, 0.0, 1.0], [1.0, 0.3, 0.0, 2.5]])
POLICY = policy_log_probs(SCORES, KEEP, T)
PROBS = POLICY.exp() * KEEP
VALUES = F64([0.7, -2.0, 5.0])  # any
NUM = 20_000  # rollouts drawn
Advantages = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
BY_NAME = {name: partial(choice_advantages, name) for name in ESTIMATORS}


def plain(rewards, weights, values):
    """REINFORCE without a baseline."""
    return rewards


def with_own_choice(rewards, weights, values):
    """A mutation: rloo's baseline with the choice's own reward in it."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def with_own_question(rewards, weights, values):
    """A mutation: ppo's mean over all questions of the rollout."""
    left = rewards - values[:, None]
    return left - left.mean()


def true_gradient() -> torch.Tensor:
    """(3, 4) of minus the expected reward, by torch's softmax alone."""
    leaf = SCORES.clone().requires_grad_()
    probs = (leaf / T).masked_fill(~KEEP, -INF).softmax(dim=1)
    (-(probs * REWARDS).sum()).backward()
    return leaf.grad


def gradients(make: Advantages, choices, rewards=REWARDS, weights=None) -> torch.Tensor:
    """(n, 3, 4): the gradient that each of n rollouts of the three questions gives. choices: (n, 3, G)."""
    count, size = len(choices), choices.shape[2]
    leaf = SCORES.expand(count, 3, 4).clone().requires_grad_()
    log_probs = policy_log_probs(leaf.view(-1, 4), KEEP.repeat(count, 1), T).view(count, 3, 4)
    chosen, brought = log_probs.gather(2, choices), rewards.expand(count, 3, 4).gather(2, choices)
    weights = torch.full_like(brought, 1 / size) if weights is None else weights
    advantages = torch.vmap(make)(brought, weights, VALUES.expand(count, 3))  # a rollout at a time
    parts = (x.flatten(0, 1) for x in (chosen, chosen.detach(), advantages, weights))
    clipped_surrogate(*parts, 0.2).backward()
    return leaf.grad


def enumerated(make: Advantages, size: int, **more) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 4) mean and variance of the gradient over all rollouts of G = size that there are, each by its chance."""
    groups = (itertools.product(torch.where(keep)[0].tolist(), repeat=size) for keep in KEEP)
    choices = torch.tensor(list(itertools.product(*groups)))  # (n, 3, G)
    assert len(choices) == (2 * 3 * 4) ** size
    chance = POLICY.exp().expand(len(choices), 3, 4).gather(2, choices).prod(dim=2).prod(dim=1)[:, None, None]
    close(chance.sum(), F64(1.0))
    found = gradients(make, choices, **more)
    mean = (chance * found).sum(dim=0)
    return mean, (chance * (found - mean).square()).sum(dim=0)


def sampled(make: Advantages, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 4) mean over drawn rollouts, and its standard error."""
    choices = draw_choices(POLICY.repeat(NUM, 1), KEEP.repeat(NUM, 1), size, seed=5).view(NUM, 3, size)
    found = gradients(make, choices)
    return found.mean(dim=0), found.std(dim=0) / math.sqrt(NUM)


def test_exact_is_the_gradient_of_the_expected_reward():
    found = gradients(BY_NAME["exact"], torch.arange(4).expand(1, 3, 4), weights=PROBS[None])[0]
    close(found, true_gradient())
    close(found, -PROBS * (REWARDS - (PROBS * REWARDS).sum(dim=1, keepdim=True)) / T)  # once more, on paper


@pytest.mark.parametrize("name, size", [("ppo", 1), ("ppo", 2), ("rloo", 2), ("rloo", 3)])
def test_ppo_and_rloo_expect_the_exact_gradient(name, size):
    close(enumerated(BY_NAME[name], size)[0], true_gradient())
    mean, error = sampled(BY_NAME[name], size)
    assert ((mean - true_gradient()).abs() <= 4 * error).all()
    assert not mean[~KEEP].any()


@pytest.mark.parametrize("make, size, kept", [
    (with_own_choice, 2, 1 / 2), (with_own_choice, 3, 2 / 3),  # Kool et al. 2019, equation 8
    (with_own_question, 1, 2 / 3), (with_own_question, 2, 5 / 6),
])  # fmt: skip
def test_bite_the_own_reward_in_the_baseline_is_found(make, size, kept):
    """It shrinks the gradient."""
    close(enumerated(make, size)[0], true_gradient() * kept)
    mean, error = sampled(make, size)
    assert not ((mean - true_gradient()).abs() <= 4 * error).all()


def test_grpo_expects_another_gradient():
    def of_pairs(rewards: torch.Tensor) -> torch.Tensor:
        """On paper, two choices: -p_a / T sum_b p_b A(a, b), A = (d / 2) / (|d| / sqrt 2 + 1e-4), d = r_a - r_b."""
        gap = rewards[:, :, None] - rewards[:, None, :]
        advantage = gap / 2 / (gap.abs() / math.sqrt(2) + 1e-4)
        return -PROBS / T * (advantage * PROBS[:, None, :]).sum(dim=2)

    mean, _ = enumerated(BY_NAME["grpo"], 2)
    close(mean, of_pairs(REWARDS))
    found = sampled(BY_NAME["grpo"], 2)
    assert ((found[0] - mean).abs() <= 4 * found[1]).all()
    for size in (2, 3):
        mean, _ = enumerated(BY_NAME["grpo"], size)
        assert ((mean - true_gradient()).abs()[KEEP] > 0.005).all()
        louder, _ = enumerated(BY_NAME["grpo"], size, rewards=100 * REWARDS)
        close(louder, mean, atol=1e-4)  # the size of the rewards is lost
        assert F.cosine_similarity(mean.flatten(), true_gradient().flatten(), dim=0) < 0.99


@pytest.mark.parametrize("size", [2, 3])
def test_rloo_is_steadier_than_no_baseline(size):
    """Where rewards lie far from 0; near it one other choice is worse than none (G = 2, REWARDS as they are)."""
    mean, loose = enumerated(plain, size, rewards=1 + REWARDS)
    close(mean, true_gradient())
    steady = enumerated(BY_NAME["rloo"], size)[1]
    close(enumerated(BY_NAME["rloo"], size, rewards=1 + REWARDS)[1], steady)
    assert (steady.sum(dim=1) < loose.sum(dim=1)).all()  # in every question
    close(sampled(BY_NAME["rloo"], size)[1].square().sum(dim=1) * NUM, steady.sum(dim=1), rtol=0.05)
    if size > 2:  # with REWARDS, too
        assert steady.sum() < enumerated(plain, size)[1].sum()


def test_a_choice_that_the_old_policy_excluded_is_no_nan():
    """exact weighs all places: one of probability 0 in the rollout must not come back as 0 times infinity."""
    keep, old = (
        torch.ones(1, 2, dtype=torch.bool),
        policy_log_probs(torch.tensor([[0.0, -120.0]]), torch.ones(1, 2) > 0),
    )
    scores = torch.tensor([[0.0, -20.0]], requires_grad=True)
    loss = clipped_surrogate(policy_log_probs(scores, keep), old, torch.tensor([[-0.1, 0.9]]), old.exp(), 0.2)
    (grad,) = torch.autograd.grad(loss, scores)
    assert grad.isfinite().all()
