"""The gradient of PPO's updates is one thing, whatever the cuts, the layout and the ranks; and it is that of the loss
written out here, one question at a time, in float64."""

import copy
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import core.dist
import ppo
from archs.actor_critic import ActorCritic
from archs.saving import load_model
from core.rank_batches import RankFeed
from core.rollouts import Bandit, Rollout
from tests.archs.test_ranker import in_own_type
from tests.conftest import rank_rows, write_jsonl
from tests.helpers import Caught, first_gradient_of, logs, replaced
from tests.test_one_gradient import BOUND, CAUGHT, distance, on_ranks
from tests.test_ppo import SAMPLES, in_haste, ppo_flags

WHOLE = ["--max_tokens", "4096"]
# a question of three candidates has up to 18 + 3 x 3 tokens, or 3 x 21
WAYS = {  # kind: (how the policy's questions are read, flags), the first in one cut
    "causal": [("auto", WHOLE), ("auto", ["--max_tokens", "40"]), ("off", ["--max_tokens", "130"]),
               ("auto", ["--packing", "off", "--max_tokens", "130"])],
    "bert": [("auto", WHOLE), ("auto", ["--max_tokens", "70"]), ("auto", ["--packing", "off", "--max_tokens", "130"])],
}  # fmt: skip


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind, and how its questions are read: flags of a run without its folder, in rollouts of 12 of 24."""
    folder = tmp_path_factory.mktemp("ppo")
    for k, (name, size) in enumerate({"train": 24, "val": 6}.items()):
        write_jsonl(folder / f"{name}.jsonl", rank_rows(size, k))

    def flags(kind: str, share: str = "auto", **values) -> list[str]:
        found = ppo_flags(folder, kind, **{"rollout_size": 12, "batch_size": 12} | values)
        policy = folder / "policies" / f"{kind}-{share}"
        if not policy.exists():
            shutil.copytree(folder / "policies" / kind / "best_model", policy)
            about = json.loads((policy / "bareloop.json").read_text())
            (policy / "bareloop.json").write_text(json.dumps(about | {"share_prefix": share}))
        return replaced(found, policy=policy)

    return flags


def in_number(patch: pytest.MonkeyPatch, number: str) -> None:
    """Let the policy be of this type, its value head too."""
    load, critic = ppo.load_policy, ppo.ActorCritic

    def loaded(*args):
        ranker, *others = load(*args)
        in_own_type(ranker.double())
        return ranker, *others

    if number == "float64":
        patch.setattr(ppo, "load_policy", loaded)
        patch.setattr(ppo, "ActorCritic", lambda *args: critic(*args).double())


def first_gradient(flags: list[str], number: str = "float32", harm=None) -> tuple[torch.Tensor, list]:
    """Of ppo.py, and the choices that were told. harm: a mutation."""
    choices = []
    with pytest.MonkeyPatch.context() as patch:
        in_number(patch, number)
        tell = Bandit.tell
        patch.setattr(Bandit, "tell", lambda *args: (choices.append(args[2].tolist()), tell(*args))[1])
        if harm:
            harm(patch)
        return first_gradient_of(ppo.main, flags), choices


# -- cuts and layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("estimator", SAMPLES)
def test_one_gradient_in_any_cuts_and_layouts(estimator, kind, flags_of):
    """The value head's too, which reads the prefix, wherever that stands; and the choices are the same."""
    ways = [[*flags_of(kind, share, estimator=estimator, batch_size=10), *how] for share, how in WAYS[kind]]
    whole = {number: first_gradient(ways[0], number) for number in BOUND}
    numbers = list(BOUND)[:: -1 if estimator in ("rloo", "exact") else 1] * 2
    for number, flags in zip(numbers, ways[1:]):  # each way in one of the types
        gradient, choices = whole[number]
        found, drawn = first_gradient(flags, number)
        assert drawn == choices
        assert len(choices) == (SAMPLES[estimator] > 0)
        assert gradient.isfinite().all()
        assert gradient.norm() > 1e-4
        assert distance(gradient, found) <= BOUND[number], (number, flags)


def test_all_weights_of_a_decoder_and_recomputed_layers(flags_of):
    flags = flags_of("whole", estimator="rloo")
    (whole, _), *others = (first_gradient([*flags, *more], "float64") for more in (
        WHOLE, ["--max_tokens", "40"], ["--max_tokens", "130", "--packing", "off"], [*WHOLE, "--gradient_checkpointing"]
    ))  # fmt: skip
    for found, _ in others:
        assert distance(whole, found) <= BOUND["float64"]


def divided_by_each_cut(patch: pytest.MonkeyPatch) -> None:
    """Each cut's loss is divided by its own questions."""
    for name in ("clipped_surrogate", "best_cross_entropy"):
        loss = getattr(ppo, name)
        patch.setattr(ppo, name, lambda *args, loss=loss: loss(*args) / len(args[0]) * 12)


@pytest.mark.parametrize("estimator", ["rloo", "supervised"])
def test_a_mean_over_each_cut_is_caught(estimator, flags_of):
    flags = flags_of("bert", estimator=estimator)
    whole, same, apart = (
        first_gradient([*flags, *how], harm=harm)[0]
        for how, harm in (
            (WHOLE, None), (WHOLE, divided_by_each_cut), (["--max_tokens", "70"], divided_by_each_cut)
        )
    )  # fmt: skip
    assert distance(whole, same) <= BOUND["float32"]
    assert distance(whole, apart) > CAUGHT


# -- what it is the gradient of: the loss, one question and one candidate at a time ------------------------------


class Update(NamedTuple):
    """What a run's update is made of. States: weights by name, of the policy and its value head."""

    gradient: dict[str, torch.Tensor]
    start: dict[str, torch.Tensor]  # state of the policy that the run starts from
    old: dict[str, torch.Tensor]  # of the policy that made the rollout
    now: dict[str, torch.Tensor]
    questions: list[int]  # of the rollout
    choices: list[list[int]]
    batch: list[int]  # the part of the questions that the update learns from
    feed: RankFeed


def update_of(flags: list[str], number: int, harm=None) -> Update:
    """Of a float64 run's update, from 1. harm: a mutation."""
    seen, states, batches = {}, {"rollout": [], "update": []}, []

    def state() -> dict[str, torch.Tensor]:
        return {name: param.detach().clone() for name, param in seen["model"].named_parameters()}

    def noted(name: str, function):
        def call(*args):
            seen[name] = args
            return function(*args)

        return call

    def rolled_out(*args):
        states["rollout"].append(state())
        seen["choices"] = args[0].tolist()
        return Rollout(*args)

    def minibatches(*args, cut_up=ppo.minibatches):
        batches.extend(cut_up(*args))
        return cut_up(*args)

    def groups(model, *args, make=ppo.parameter_groups):
        seen["model"] = model
        return make(model, *args)

    def step(optimizer, closure=None, real=torch.optim.AdamW.step):
        states["update"].append(state())
        if len(states["update"]) < number:
            return real(optimizer, closure)
        params = seen["model"].named_parameters()
        raise Caught({name: param.grad.clone() for name, param in params if param.grad is not None})

    with pytest.MonkeyPatch.context() as patch:
        in_number(patch, "float64")
        for owner, name, value in (
            (ppo, "Rollout", rolled_out), (ppo, "minibatches", minibatches), (ppo, "parameter_groups", groups),
            (Bandit, "tell", noted("told", Bandit.tell)), (Bandit, "tell_all", noted("told", Bandit.tell_all)),
            (RankFeed, "cut", noted("cut", RankFeed.cut)), (torch.optim.AdamW, "step", step),
        ):  # fmt: skip
            patch.setattr(owner, name, value)
        if harm:
            harm(patch)
        with pytest.raises(Caught) as end:
            ppo.main([*flags, "--dry_run", "--max_grad_norm", "0"])
    known = states["update"][0], states["rollout"][-1], states["update"][-1], seen["told"][1].tolist()
    return Update(end.value.args[0], *known, seen["choices"], batches[number - 1].tolist(), seen["cut"][0])


def models_of(policy: str, states: list[dict[str, torch.Tensor]]) -> list[ActorCritic]:
    """The policy and its value in several states."""
    ranker, _, about = load_model(Path(policy), dropout=0.0)
    first = ActorCritic(ranker, "value.1.weight" in states[0], about["architecture"] == "causal").double()
    models = [copy.deepcopy(first) for _ in states]
    for model, state in zip(models, states):
        assert not model.load_state_dict(state, strict=False).unexpected_keys
        in_own_type(model)
    return models


def log_policy(model: ActorCritic, feed: RankFeed, question: int, temperature: float) -> torch.Tensor:
    """(K,), of a question alone; a decoder reads it again with each candidate."""
    alone = feed.apart(question) if feed.layout == "shared" else [feed.cut([question])]
    scores = torch.cat([model(cut)[0][0] for cut in alone])[: feed.rows.sizes[question]]
    return (scores / temperature).log_softmax(dim=0)


def rewards_of(feed: RankFeed, question: int) -> torch.Tensor:
    first, last = feed.rows.first[question : question + 2]
    return torch.tensor(feed.rows.rewards[first:last], dtype=torch.float64)


def advantages_by_hand(estimator: str, rewards: list, old: list[torch.Tensor], values: list) -> list[list]:
    """Of each question's choices. rewards: of the choices | old: log-probabilities of the candidates | values: V."""
    if estimator == "ppo":
        left = [[r - value for r in own] for own, value in zip(rewards, values)]
        others = [[x for j, own in enumerate(left) if j != k for x in own] for k in range(len(left))]
        return [[x - sum(rest) / len(rest) for x in own] for own, rest in zip(left, others)]
    if estimator == "exact":
        return [[r - sum(p.exp() * own) for r in own] for own, p in zip(rewards, old)]
    if estimator == "rloo":
        return [[r - (sum(own) - r) / (len(own) - 1) for r in own] for own in rewards]
    means = [sum(own) / len(own) for own in rewards]
    spreads = [(sum((r - m) ** 2 for r in own) / (len(own) - 1)) ** 0.5 for own, m in zip(rewards, means)]
    return [[(r - m) / (spread + 1e-4) for r in own] for own, m, spread in zip(rewards, means, spreads)]


SETTINGS = {"temperature": 1.7, "clip": 0.02, "value_clip": 0.01, "kl_coef": 0.3, "entropy_coef": 0.2}
SETTINGS |= {"value_coef": 0.7, "learning_rate": "2e-2", "warmup": 0, "epochs": 4, "rollout_size": 8}


def gradient_by_hand(estimator: str, policy: str, update: Update) -> dict[str, torch.Tensor]:
    """Of the loss of SETTINGS, by the parameters' names."""
    start, old, now = models_of(policy, [update.start, update.old, update.now])
    feed, loss, is_supervised = update.feed, 0.0, estimator == "supervised"
    all_rewards = [rewards_of(feed, question) for question in update.questions]
    if estimator == "exact":
        choices = [list(range(len(own))) for own in all_rewards]
    else:
        choices = update.choices
    if not is_supervised:
        rewards = [own[made] for own, made in zip(all_rewards, choices)]
        with torch.no_grad():
            log_old = [log_policy(old, feed, question, 1.7) for question in update.questions]
            values = [old(feed.cut([question]))[1][0] for question in update.questions]
        advantages = advantages_by_hand(estimator, rewards, log_old, values)
    for k in update.batch:
        question = update.questions[k]
        log_now = log_policy(now, feed, question, 1.0 if is_supervised else 1.7)
        if is_supervised:
            loss -= log_now[all_rewards[k] == all_rewards[k].max()].mean()
            continue
        with torch.no_grad():
            log_start = log_policy(start, feed, question, 1.7)
        value = now(feed.cut([question]))[1][0]
        near = values[k] + (value - values[k]).clamp(-0.01, 0.01)
        for a, reward, advantage in zip(choices[k], rewards[k], advantages[k], strict=True):
            weight = log_old[k][a].exp() if estimator == "exact" else 1 / len(rewards[k])
            ratio = (log_now[a] - log_old[k][a]).exp()
            loss -= weight * min(ratio * advantage, ratio.clamp(0.98, 1.02) * advantage)
            if estimator == "ppo":
                loss += 0.7 * weight * max((value - reward) ** 2, (near - reward) ** 2) / 2
        loss += 0.3 * (log_now.exp() * (log_now - log_start)).sum()
        loss += 0.2 * (log_now.exp() * log_now).sum()  # less the entropy
    named = {name: param for name, param in now.named_parameters() if name in update.gradient}
    found = torch.autograd.grad(loss / len(update.batch), list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return distance(*(torch.cat([found[name].flatten() for name in sorted(a)]) for found in (a, b)))


MOMENTS = {  # name: (flags, update)
    "the first batch": ({"batch_size": 5}, 1),
    "the second pass": (
        {"batch_size": 8, "ppo_epochs": 2},
        2,
    ),  # the policy is no longer that of the rollout
    "the second rollout": ({"batch_size": 8, "ppo_epochs": 1}, 2),  # nor that of the start; values are not 0
}
ROUNDED = 1e-6  # what a rollout holds is float32


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("estimator", SAMPLES)
def test_it_is_the_gradient_of_the_loss_written_out(estimator, moment, flags_of):
    more, number = MOMENTS[moment]
    kind = "causal" if moment == "the second rollout" else "bert"
    samples = {"ppo": 2, "rloo": 3, "grpo": 4}.get(estimator, 0)
    flags = flags_of(kind, estimator=estimator, samples=samples, **SETTINGS | more)
    update = update_of(flags, number)
    assert (
        apart(gradient_by_hand(estimator, flags[flags.index("--policy") + 1], update), update.gradient)
        < ROUNDED
    )


@pytest.mark.parametrize("estimator", ["ppo", "rloo", "grpo", "exact"])
def test_without_clip_and_kl_the_first_update_is_reinforce(estimator, flags_of):
    """Of all K choices it is the gradient of the expected reward."""
    flags = flags_of("bert", estimator=estimator, clip=1e6, kl_coef=0, value_coef=0)
    update = update_of(flags, 1)
    (policy,) = models_of(flags[flags.index("--policy") + 1], [update.start])
    log_p = [log_policy(policy, update.feed, question, 1.0) for question in update.questions]
    rewards = [rewards_of(update.feed, question) for question in update.questions]
    if estimator == "exact":
        gain = sum((p.exp() * own).sum() for p, own in zip(log_p, rewards))
    else:
        made = [own[choices] for own, choices in zip(rewards, update.choices)]
        advantages = advantages_by_hand(estimator, made, log_p, [0.0] * 12)
        gain = sum(
            p[a] * advantage / len(choices)
            for p, choices, own in zip(log_p, update.choices, advantages)
            for a, advantage in zip(choices, own)
        )
    named = {name: param for name, param in policy.named_parameters() if name in update.gradient}
    found = torch.autograd.grad(-gain / 12, list(named.values()), materialize_grads=True)
    assert apart(dict(zip(named, found)), update.gradient) < ROUNDED


def without_weights(patch: pytest.MonkeyPatch) -> None:
    """The choices of a question are summed, not averaged."""
    loss = ppo.clipped_surrogate
    patch.setattr(ppo, "clipped_surrogate", lambda *args: loss(*args[:3], torch.ones_like(args[3]), args[4]))


def of_another_question(place: str):
    """One part of a rollout is shifted by a row."""

    def harm(patch: pytest.MonkeyPatch) -> None:
        make, k = ppo.Rollout, Rollout._fields.index(place)
        patch.setattr(ppo, "Rollout", lambda *args: make(*args[:k], args[k].roll(1, 0), *args[k + 1 :]))

    return harm


HARMS = {"weights": without_weights, "denominator": divided_by_each_cut}
HARMS |= {place: of_another_question(place) for place in ("reference", "old_log_probs", "advantages")}


@pytest.mark.parametrize("harm", HARMS)
def test_another_loss_is_caught(harm, flags_of):
    flags = flags_of("bert", estimator="rloo", samples=3, **SETTINGS | {"batch_size": 8, "ppo_epochs": 1})
    update = update_of(flags, 2, HARMS[harm])
    assert (
        apart(gradient_by_hand("rloo", flags[flags.index("--policy") + 1], update), update.gradient) > CAUGHT
    )


def test_the_start_is_pulled_nowhere_by_its_own_reference(flags_of):
    """But by that of another question it is."""
    flags = flags_of("bert", estimator="rloo")
    free, held = (first_gradient([*flags, "--kl_coef", coef], "float64")[0] for coef in ("0", "1"))
    assert distance(free, held) < ROUNDED
    odd, _ = first_gradient([*flags, "--kl_coef", "1"], "float64", of_another_question("reference"))
    assert distance(free, odd) > CAUGHT


# -- ranks ------------------------------------------------------------------------------------------------------


def outcome(rank: int, jobs: dict[str, tuple[list[str], str]], flags: list[str]) -> tuple[dict, dict]:
    """The gradients of all jobs on this rank, sent in small buckets; what a whole run says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.dist, "BUCKET_MIB", 1e-3)
        in_haste(patch)
        return {name: first_gradient(*job) for name, job in jobs.items()}, ppo.main(flags)


@pytest.mark.dist
def test_two_ranks_are_as_one(flags_of, tmp_path):
    jobs = {}
    for k, estimator in enumerate(SAMPLES):
        kind, number = list(WAYS)[k % 2], list(BOUND)[k // 2 % 2]
        share, how = WAYS[kind][1 + k // 2 % 2]
        jobs[f"{estimator}, {kind}"] = [*flags_of(kind, share, estimator=estimator), *how], number
    jobs["no question"] = [*flags_of("bert", rollout_size=1, batch_size=1), "--max_tokens", "70"], "float64"
    flags = flags_of("bert", max_tokens=70, max_steps=4, batch_size=6, stop_kl=1e-12, estimator="grpo")
    two = [*flags, "--output_dir", str(tmp_path / "two")]
    (first, said), (second, same) = on_ranks(2, tmp_path, outcome, jobs, two)
    for name, ((flags_, number), (gradient, choices)) in zip(jobs, zip(jobs.values(), first.values())):
        whole, drawn = first_gradient([*flags_, *WHOLE], number)
        assert distance(whole, gradient) <= BOUND[number], name
        assert torch.equal(gradient, second[name][0]), name
        assert drawn == choices == second[name][1], name
    alone = ppo.main([*flags, "--output_dir", str(tmp_path / "one")])
    assert said.pop("run") == same.pop("run") == str(tmp_path / "two")
    alone.pop("run")
    assert said == same == pytest.approx(alone, rel=1e-3)
    for ours, theirs in zip(logs(tmp_path / "one"), logs(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-4)
