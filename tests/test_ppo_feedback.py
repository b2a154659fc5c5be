"""The feedback loop: what a run leaves behind, the gradient of the loss written out, that it learns from feedback."""

import csv
import json
import random
import shutil
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

import core.dist
import ppo
import ppo_feedback
import predict
import train
from archs.saving import load_model
from core.errors import UserError
from core.plan import epoch_order
from tests.archs.test_ranker import in_own_type
from tests.conftest import COLOURS, FILLER, save_language_model, save_tiny, toy_rows, write_jsonl
from tests.helpers import Caught, cut_of, first_gradient_of, logs, replaced, same, weights
from tests.test_one_gradient import BOUND, CAUGHT, distance, on_ranks

NAMES = sorted(COLOURS)
POLICIES = {  # kind: (kind of rows, base model, flags of the policy's own run); each has dropout then
    "one": ("one", "bert", ["--head", "linear", "--pooling", "mean"]),
    "several": ("list", "bert", ["--head", "linear", "--pooling", "mean"]),
    "adapter": ("one", "bert", ["--lora_rank", "4", "--lora_dropout", "0.2"]),
    "words": (
        "one",
        "llama",
        ["--approach", "generative", "--dropout", "0"],
    ),  # its scores are of label words
}
KINDS = pytest.mark.parametrize("kind", POLICIES)
NUM_ROWS = 24  # with feedback
WITHOUT = (
    "confusion_figure",
    "outcomes_figure",
    "pr_figure",
    "per_class_figure",
    "reliability_figure",
    "save_png",
)


def without_figures(patch: pytest.MonkeyPatch) -> None:
    """They take more time than everything else of a short run."""
    for name in WITHOUT:
        patch.setattr(f"core.evaluate.{name}", lambda *args: None)
    patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *args: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    without_figures(monkeypatch)


def feedback_rows(several: bool, num_rows: int = NUM_ROWS, seed: int = 5) -> list[dict]:
    """Rows of any prediction and feedback; every third without true labels, one of unlike length."""
    rng, rows = random.Random(seed), []
    for k, row in enumerate(toy_rows(num_rows, seed, "list" if several else "one")):
        guess = sorted(rng.sample(NAMES, rng.randint(0, 3))) if several else rng.choice(NAMES)
        known = {} if k % 3 == 1 else {"true_labels": row["labels" if several else "label"]}
        text = " ".join([row["text"], *FILLER[: 5 * (k % 4 == 0)]])
        rows.append({"text": text, "predicted_labels": guess, "feedback": round(rng.random(), 3)} | known)
    return rows


def policy_of(folder: Path, kind: str) -> Path:
    """The run that feedback starts from; made where it is not there, with its rows."""
    rows_kind, base, more = POLICIES[kind]
    run = folder / "policies" / kind
    for seed, (name, size) in enumerate({"train": 96, "val": 24, "test": 12}.items()):
        if not (folder / f"{name}-{rows_kind}.jsonl").exists():
            write_jsonl(folder / f"{name}-{rows_kind}.jsonl", toy_rows(size, seed, rows_kind))
    if not run.exists():
        if not (folder / base).exists():
            (save_tiny if base == "bert" else save_language_model)(folder / base, base)
        flags = [
            "--model_name",
            str(folder / base),
            "--train_data",
            str(folder / f"train-{rows_kind}.jsonl"),
            *more,
        ]
        flags += ["--val_data", str(folder / f"val-{rows_kind}.jsonl"), "--cache_dir", str(folder / "cache")]
        flags += [
            "--amp",
            "off",
            "--max_length",
            "40",
            "--max_tokens",
            "600",
            "--batch_size",
            "16",
            "--epochs",
            "2",
        ]
        with pytest.MonkeyPatch.context() as patch:
            without_figures(patch)
            train.main([*flags, "--learning_rate", "1e-2", "--output_dir", str(run)])
    return run


def feedback_flags(folder: Path, kind: str, rows: list[dict] | None = None, **values) -> list[str]:
    """Flags of a run of a second without its folder."""
    run, rows_kind = policy_of(folder, kind), POLICIES[kind][0]
    rows = feedback_rows(kind == "several") if rows is None else rows
    path = folder / f"feedback-{zlib.crc32(json.dumps(rows).encode())}.jsonl"
    if not path.exists():
        write_jsonl(path, rows)
    settings = {"feedback": path, "policy": run, "val_data": folder / f"val-{rows_kind}.jsonl"}
    settings |= {"cache_dir": folder / "cache", "amp": "off", "max_tokens": 600, "epochs": 1, "log_steps": 1}
    return replaced([], **settings | {"batch_size": 12, "learning_rate": "3e-3", "warmup": 0} | values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("feedback")


def updates_of(run: str | Path) -> list[dict]:
    """The log's records of updates, in order."""
    return [record for record in logs(run) if "ppo/kl" in record]


def rewards_of(rows: list[dict], for_feedback: float = 0.7, for_accuracy: float = 0.3) -> list[float]:
    """By hand."""
    found = []
    for row in rows:
        right, true, guess = row["feedback"], row.get("true_labels"), row["predicted_labels"]
        if true is not None and isinstance(guess, list):
            right = sum((name in true) == (name in guess) for name in NAMES) / len(NAMES)
        elif true is not None:
            right = float(true == guess)
        found.append(for_feedback * row["feedback"] + for_accuracy * right)
    return found


def log_prob(scores: torch.Tensor, labels: str | list[str]) -> torch.Tensor:
    """Of one label: (1,); of several the C choices' own. scores: (C,)."""
    if isinstance(labels, str):
        return Categorical(logits=scores).log_prob(torch.tensor([NAMES.index(labels)]))
    return Bernoulli(logits=scores).log_prob(
        torch.tensor([float(name in labels) for name in NAMES]).to(scores)
    )


def total_log_probs(scores: np.ndarray, rows: list[dict]) -> np.ndarray:
    """(n,) of what was predicted. scores: (n, C)."""
    scores = torch.from_numpy(scores).double()
    return np.array([log_prob(s, row["predicted_labels"]).sum() for s, row in zip(scores, rows, strict=True)])


def mean_divergence(scores: np.ndarray, others: np.ndarray, several: bool) -> float:
    kind = Bernoulli if several else Categorical
    p, q = (kind(logits=torch.from_numpy(part).double()) for part in (scores, others))
    return float(kl_divergence(p, q).sum() / len(scores))


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


# -- what a run leaves behind -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, more", [*((kind, {}) for kind in POLICIES), ("one", {"lora_rank": 4})])
def test_the_run_folder_is_whole_and_its_first_step_is_on_policy(kind, more, folder, tmp_path, capsys):
    """One step over all rows: what the log says of it is known by hand."""
    run, policy, several = tmp_path / "run", policy_of(folder, kind), kind == "several"
    rows, rows_kind = feedback_rows(several), POLICIES[kind][0]
    flags = feedback_flags(folder, kind, batch_size=NUM_ROWS, clip="1e-4", supervised_weight=0.5, **more)
    result = ppo.main(
        [*flags, "--test_data", str(folder / f"test-{rows_kind}.jsonl"), "--output_dir", str(run)]
    )
    printed = capsys.readouterr().out
    last = json.loads(printed.strip().splitlines()[-1])
    assert last["run"] == str(run) == result["run"]
    assert (last["validation"]["n"], last["test"]["n"]) == (24, 12)
    assert last["validation"] == {name: value for name, value in result.items() if name != "run"}
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["num_steps"], record["loss"]) == ("finished", 1, "ppo")
    assert {path.name for path in run.iterdir()} >= {
        *("best_model", "final_model", "validation", "test", "checkpoint", "tensorboard", "run.json"),
        *("training_logs.jsonl", "start_train.npy", "start_validation.npy", "start_test.npy", "scores_0.npy"),
    }
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["step_00000001"]

    # the scores of the start, of train.py's best model; those of the end
    start = {name: np.load(run / f"start_{name}.npy") for name in ("train", "validation", "test")}
    texts = {"train": [row["text"] for row in rows]}
    for name, of in (("validation", "val"), ("test", "test")):
        texts[name] = texts_of(folder / f"{of}-{rows_kind}.jsonl")
    for name, scores in start.items():
        np.testing.assert_allclose(predict.load(policy).scores(texts[name]), scores, rtol=1e-5, atol=1e-5)
    assert np.array_equal(np.load(run / "scores_0.npy"), start["train"])
    for name in ("validation", "test"):
        logits, change = np.load(run / name / "logits.npy"), record["change"][name]
        np.testing.assert_allclose(predict.load(run).scores(texts[name]), logits, rtol=1e-5, atol=1e-5)
        assert change["accuracy"]["after"] == pytest.approx(last[name]["accuracy"])
        assert change["accuracy"]["difference"] == change["accuracy"]["after"] - change["accuracy"]["before"]
        told = {"validation": "validation, which chose the step"}.get(name, name) + ", at 0.5" * (
            kind == "several"
        )
        assert f"{told}: accuracy {change['accuracy']['before']:.4f} before" in printed
    assert not same(weights(policy, "best_model"), weights(run))
    assert (run / "final_model" / "adapter_model.safetensors").exists() == (
        kind == "adapter" or "lora_rank" in more
    )
    begun, *_, ended = logs(run)
    assert (begun["step"], ended["step"]) == (0, 1)
    assert begun["eval/accuracy"] == pytest.approx(record["change"]["validation"]["accuracy"]["before"])

    # the first step: ratio 1, its own reference
    (found,) = updates_of(run)
    assert (found["step"], found["train/epoch"], found["train/skipped_steps"]) == (1, 1, 0)
    assert (found["ppo/clip_share"], found["ppo/kl"]) == (0, pytest.approx(0, abs=1e-6))
    assert found["ppo/reward"] == pytest.approx(np.mean(rewards_of(rows)), rel=1e-5)
    assert found["ppo/policy_loss"] == pytest.approx(0, abs=1e-5)  # advantages that sum to 0, times 1
    known = [k for k, row in enumerate(rows) if "true_labels" in row]
    truths = [rows[k] | {"predicted_labels": rows[k]["true_labels"]} for k in known]
    supervised = -total_log_probs(start["train"][known], truths).sum() / NUM_ROWS
    assert found["ppo/supervised_loss"] == pytest.approx(supervised, rel=1e-5)
    parts = [found[f"ppo/{name}"] for name in ("policy_loss", "supervised_loss", "kl")]
    assert found["train/loss"] == pytest.approx(parts[0] + 0.5 * parts[1] + 0.1 * parts[2], abs=1e-6)


def test_a_run_goes_on_from_another_run_of_this_loop(folder, tmp_path):
    flags = feedback_flags(folder, "one", output_dir=tmp_path / "first", lora_rank=4, lora_rslora=None)
    flags.remove("None")
    first = ppo.main([*flags, "--metric", "loss", "--learning_rate", "1e-2"])["run"]
    again = feedback_flags(folder, "one", output_dir=tmp_path / "again", policy=first, max_steps=1)
    ppo.main(again)
    start, end = (
        np.load(tmp_path / "again/start_validation.npy"),
        np.load(tmp_path / "first/validation/logits.npy"),
    )
    np.testing.assert_allclose(start, end, rtol=1e-5, atol=1e-5)


def test_bareloop_json_names_the_type_that_this_run_was_evaluated_in(folder, tmp_path):
    """predict.py --amp run reads it."""
    run = ppo.main(feedback_flags(folder, "one", amp="bf16", max_steps=1, output_dir=tmp_path / "run"))["run"]
    assert json.loads(Path(run, "best_model", "bareloop.json").read_text())["amp"] == "bf16"


def test_a_dry_run_writes_nothing(folder, tmp_path, capsys):
    flags = feedback_flags(folder, "one", output_dir=tmp_path / "run", epochs=5)
    assert ppo.main([*flags, "--dry_run"])["num_steps"] == 10
    assert "dry_run" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert not list(tmp_path.iterdir())


def test_a_pair_run_takes_pairs(folder, tmp_path):
    """The second part reaches the model: start scores are those of the pairs."""
    rows = [row | {"second": f"the {NAMES[k % 3]}", "title": "it"} for k, row in enumerate(toy_rows(24, 3))]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = [
        "--model_name",
        str(folder / "bert"),
        "--train_data",
        data,
        "--val_data",
        data,
        "--max_steps",
        "2",
    ]
    flags += [
        "--cache_dir",
        str(folder / "cache"),
        "--output_dir",
        str(tmp_path / "pairs"),
        "--max_tokens",
        "400",
    ]
    policy_of(folder, "one")
    train.main(
        [*flags, "--text_field", "title,text", "--pair_field", "second", "--max_length", "40", "--amp", "off"]
    )
    given = [
        {
            "text": f"title: it\ntext: {row['text']}",
            "pair": row["second"],
            "predicted_labels": "red",
            "feedback": k % 2,
        }
        for k, row in enumerate(rows)
    ]
    flags = feedback_flags(folder, "one", given, policy=tmp_path / "pairs", val_data=data, max_steps=1)
    ppo.main([*flags, "--output_dir", str(tmp_path / "run")])
    for name in ("train", "validation"):  # the same rows
        found = predict.load(tmp_path / "pairs").scores(
            [r["text"] for r in given], [r["pair"] for r in given]
        )
        np.testing.assert_allclose(found, np.load(tmp_path / f"run/start_{name}.npy"), rtol=1e-5, atol=1e-5)


# -- the gradient, written out -----------------------------------------------------------------------------------


class Update(NamedTuple):
    """What a run's update is made of: its gradient, and the weights at the start of this and of all updates before."""

    gradient: dict[str, torch.Tensor]
    states: list[dict[str, torch.Tensor]]


def in_float64(patch: pytest.MonkeyPatch) -> None:
    load = ppo_feedback.load_policy

    def loaded(*args):
        model, *others = load(*args)
        in_own_type(model.double())
        return model, *others

    patch.setattr(ppo_feedback, "load_policy", loaded)


def update_of(flags: list[str], number: int, harm=None) -> Update:
    """Of a float64 run's update, from 1. harm: a mutation."""
    seen, states = {}, []

    def groups(model, *args, make=ppo_feedback.parameter_groups):
        seen["model"] = model
        return make(model, *args)

    def step(optimizer, closure=None, real=torch.optim.AdamW.step):
        named = dict(seen["model"].named_parameters())
        states.append({name: param.detach().clone() for name, param in named.items()})
        if len(states) < number:
            return real(optimizer, closure)
        raise Caught({name: param.grad.clone() for name, param in named.items() if param.grad is not None})

    with pytest.MonkeyPatch.context() as patch:
        in_float64(patch)
        patch.setattr(ppo_feedback, "parameter_groups", groups)
        patch.setattr(torch.optim.AdamW, "step", step)
        if harm:
            harm(patch)
        with pytest.raises(Caught) as end:
            ppo.main([*flags, "--dry_run", "--max_grad_norm", "0"])
    return Update(end.value.args[0], states)


# two steps an epoch; a high rate, so that ratios leave 1 +- clip
SETTINGS = {"clip": 0.05, "kl_coef": 0.3, "supervised_weight": 0.6, "reward_weights": "0.5,1.5", "epochs": 8}
SETTINGS |= {"learning_rate": "1e-2", "schedule": "constant", "seed": 3, "batch_size": 14}


def gradient_by_hand(folder: Path, kind: str, update: Update, estimator: str = "ppo", rows=None) -> dict:
    """Of the loss of SETTINGS, one row at a time, in float64."""
    several, policy = kind == "several", policy_of(folder, kind)
    rows = feedback_rows(several) if rows is None else rows
    if estimator == "supervised":  # the others teach nothing there
        rows = [row for row in rows if row.get("true_labels") is not None]
    epoch, place = divmod(len(update.states) - 1, 2)
    order = epoch_order(len(rows), SETTINGS["seed"], epoch)
    encoder = predict.load(policy).encoder

    def model_of(state):
        model = load_model(policy / "best_model", dropout=0.0)[0].double()
        in_own_type(model)
        assert not model.load_state_dict(state, strict=False).unexpected_keys
        return model

    start, old, now = (model_of(update.states[k]) for k in (0, 2 * epoch, -1))
    rewards, loss = rewards_of(rows, 0.5, 1.5), 0.0
    batch = order[14 * place : 14 * place + 14]
    for k in batch.tolist():
        row, ((ids, _, _),) = rows[k], encoder([rows[k]["text"]])
        cut = cut_of([ids], False, branches=now.branches)
        scores = now(cut)[0]
        if row.get("true_labels") is not None:
            loss -= (1 if estimator == "supervised" else 0.6) * log_prob(scores, row["true_labels"]).sum()
        if estimator == "supervised":
            continue
        with torch.no_grad():
            start_scores, old_scores = start(cut)[0], old(cut)[0]
        others = [reward for j, reward in enumerate(rewards) if j != k]
        advantage = rewards[k] - sum(others) / len(others)
        for ratio in (
            log_prob(scores, row["predicted_labels"]) - log_prob(old_scores, row["predicted_labels"])
        ).exp():
            loss -= min(ratio * advantage, ratio.clamp(0.95, 1.05) * advantage)
        kinds = Bernoulli if several else Categorical
        loss += 0.3 * kl_divergence(kinds(logits=scores), kinds(logits=start_scores)).sum()
    named = {name: param for name, param in now.named_parameters() if name in update.gradient}
    found = torch.autograd.grad(loss / len(batch), list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return distance(*(torch.cat([found[name].flatten() for name in sorted(a)]) for found in (a, b)))


ROUNDED = 1e-6  # scores of the start and of the old policy are float32


@pytest.mark.parametrize("number", [1, 2, 4], ids=["first", "second", "new old policy"])
@KINDS
def test_it_is_the_gradient_of_the_loss_written_out(kind, number, folder):
    """At the first update policy gradient and cross-entropy; then the ratio is not 1, and the start pulls back."""
    update = update_of(feedback_flags(folder, kind, **SETTINGS), number)
    by_hand = gradient_by_hand(folder, kind, update)
    assert apart(by_hand, update.gradient) < ROUNDED
    assert any(grad.abs().max() > 1e-4 for grad in by_hand.values())


@pytest.mark.parametrize("kind, number", [("one", 1), ("one", 3), ("several", 2)])
def test_supervised_is_plain_cross_entropy(kind, number, folder):
    update = update_of(feedback_flags(folder, kind, **SETTINGS, estimator="supervised"), number)
    assert apart(gradient_by_hand(folder, kind, update, "supervised"), update.gradient) < 1e-12


def of_ppo_feedback(name: str, change):
    """A mutation: change(the function, *its arguments) in the place of the function."""

    def harm(patch: pytest.MonkeyPatch) -> None:
        real = getattr(ppo_feedback, name)
        patch.setattr(ppo_feedback, name, lambda *args: change(real, *args))

    return harm


def never_anew(patch: pytest.MonkeyPatch) -> None:
    """The old policy is scored once, not each epoch."""
    real, old = ppo_feedback.label_log_probs, []

    def call(scores, *args):
        found = real(scores, *args)
        if scores.requires_grad:
            return found
        old.append(found)
        return old[0]

    patch.setattr(ppo_feedback, "label_log_probs", call)


HARMS = {
    "no baseline": of_ppo_feedback("leave_one_out", lambda real, rewards: rewards),
    "the own reward in the baseline": of_ppo_feedback("leave_one_out", lambda real, r: r - r.mean()),
    "KL the other way": of_ppo_feedback("label_divergence", lambda real, a, b, several: real(b, a, several)),
    "no KL": of_ppo_feedback("label_divergence", lambda real, a, b, several: 0 * real(a, b, several)),
    "ratios to the start": never_anew,
    "never clipped": of_ppo_feedback("clipped_surrogate", lambda real, *args: real(*args[:4], 1e9)),
    "a mean over each cut": of_ppo_feedback(
        "clipped_surrogate", lambda real, *args: real(*args) / len(args[0]) * 14
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_another_loss_is_caught(harm, folder):
    update = update_of(feedback_flags(folder, "one", **SETTINGS | {"max_tokens": 60}), 4, HARMS[harm])
    assert apart(gradient_by_hand(folder, "one", update), update.gradient) > CAUGHT


@pytest.mark.parametrize("kind", ["one", "several"])
def test_the_start_is_pulled_nowhere_by_itself(kind, folder):
    flags = feedback_flags(folder, kind, **SETTINGS)
    free, held = (update_of(replaced(flags, kl_coef=coef), 1).gradient for coef in (0, 5))
    assert apart(free, held) < ROUNDED
    free, held = (update_of(replaced(flags, kl_coef=coef), 2).gradient for coef in (0, 5))
    assert apart(free, held) > CAUGHT


# -- cuts, layouts, ranks ----------------------------------------------------------------------------------------

GRID = [
    ["--max_tokens", "45"],
    ["--max_tokens", "90", "--packing", "off"],
    ["--max_tokens", "600", "--packing", "off"],
]


@KINDS
def test_one_gradient_in_any_cuts_and_layouts(kind, folder):
    flags = feedback_flags(folder, kind)
    whole = first_gradient_of(ppo.main, flags)
    for how in GRID:
        assert distance(whole, first_gradient_of(ppo.main, [*flags, *how])) <= BOUND["float32"], how


def outcome(rank: int, jobs: dict[str, list[str]], flags: list[str]) -> tuple[dict, dict]:
    """The gradients of all jobs on this rank, sent in small buckets; what a whole run says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.dist, "BUCKET_MIB", 1e-3)
        without_figures(patch)
        return {name: first_gradient_of(ppo.main, job) for name, job in jobs.items()}, ppo.main(flags)


@pytest.mark.dist
@pytest.mark.slow  # the reduction is ppo.py's: tests/test_ppo_gradient.py
def test_two_ranks_are_as_one(folder, tmp_path):
    jobs = {kind: [*feedback_flags(folder, kind), *GRID[k % 2]] for k, kind in enumerate(POLICIES)}
    jobs["a rank without a row"] = feedback_flags(folder, "one", batch_size=1)
    flags = feedback_flags(folder, "one", epochs=2, max_tokens=60)
    two = [*flags, "--output_dir", str(tmp_path / "2")]
    (first, said), (second, same_said) = on_ranks(2, tmp_path, outcome, jobs, two)
    for name, job in jobs.items():
        alone = first_gradient_of(ppo.main, replaced(job, max_tokens=600))
        assert distance(alone, first[name]) <= BOUND["float32"], name
        assert torch.equal(first[name], second[name]), name
    alone = ppo.main([*flags, "--output_dir", str(tmp_path / "1")])
    assert said == same_said
    assert said["n"] == alone["n"] == 24
    for one, two in zip(logs(tmp_path / "1"), logs(tmp_path / "2"), strict=True):
        assert two == pytest.approx(one, rel=1e-2, abs=1e-3)  # Adam turns 1e-7 in a gradient into more
    first_of = [updates_of(tmp_path / name)[0] for name in "12"]
    assert first_of[0] == pytest.approx(first_of[1], rel=1e-5, abs=1e-6)


# -- rows without true labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_rows_without_truth_teach_by_their_feedback_alone(several, folder):
    kind = "several" if several else "one"
    bare = [{k: v for k, v in row.items() if k != "true_labels"} for row in feedback_rows(several)]
    nothing, null = bare, [row | {"true_labels": None} for row in bare]
    found = []
    for rows, weight, rewards in ((nothing, 0, "1,0"), (nothing, 9, "1,0"), (null, 9, "0.25,0.75")):
        flags = feedback_flags(folder, kind, rows, supervised_weight=weight, reward_weights=rewards)
        found.append(first_gradient_of(ppo.main, flags))
    assert found[0].norm() > 1e-4
    assert torch.equal(found[0], found[1])
    assert distance(found[0], found[2]) <= BOUND["float32"]  # feedback stands for accuracy too
    some = feedback_rows(several)
    changed = [
        first_gradient_of(ppo.main, feedback_flags(folder, kind, some, supervised_weight=w)) for w in (0, 9)
    ]
    assert distance(*changed) > CAUGHT


def test_feedback_from_minus_one_to_one_is_the_same_feedback(folder):
    """Else feedback_weight would weigh twice as much."""
    rows = feedback_rows(False)
    signed = [row | {"feedback": 2 * row["feedback"] - 1} for row in rows]
    a, b = (first_gradient_of(ppo.main, feedback_flags(folder, "one", part)) for part in (rows, signed))
    assert distance(a, b) <= BOUND["float32"]
    empty = [*rows, rows[0] | {"feedback": None}, rows[1] | {"feedback": ""}]
    assert torch.equal(a, first_gradient_of(ppo.main, feedback_flags(folder, "one", empty)))


# -- learning ------------------------------------------------------------------------------------------------------


def told_rows(several: bool) -> list[dict]:
    """Texts of one red word were called red, rightly by what people said; those of a blue word blue, wrongly."""
    rows = []
    for k, word in enumerate(["rose", "cherry", "ruby", "brick", "sky", "sea", "ink", "jeans"]):
        guess = "red" if k < 4 else "blue"
        row = {
            "text": " ".join([*FILLER[k : k + 3], word]),
            "predicted_labels": [guess] if several else guess,
        }
        rows.append(row | {"feedback": 1 if k < 4 else -1})
    return rows


@pytest.mark.parametrize("kind", POLICIES)
def test_what_people_reject_loses_probability_and_what_they_praise_gains(kind, folder, tmp_path):
    rows = told_rows(kind == "several")
    flags = feedback_flags(folder, kind, rows, supervised_weight=0, kl_coef=0, batch_size=8, epochs=6)
    ppo.main(replaced(flags, learning_rate="1e-2", output_dir=tmp_path / "run"))
    before = total_log_probs(np.load(tmp_path / "run" / "start_train.npy"), rows)
    after = total_log_probs(
        predict.load(tmp_path / "run/final_model").scores([row["text"] for row in rows]), rows
    )
    assert (after[:4] > before[:4]).all()
    assert (after[4:] < before[4:]).all()
    assert (after - before)[:4].mean() > 0.05
    assert (after - before)[4:].mean() < -0.05


@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_divergence_that_costs_much_holds_the_policy(kind, folder, tmp_path):
    """And the log's divergence is that of the policy from the start, over the rows of the step."""
    rows, kl = told_rows(kind == "several"), {}
    for coef in (0, 1000):
        run = tmp_path / str(coef)
        flags = feedback_flags(folder, kind, rows, supervised_weight=0, kl_coef=coef, batch_size=8, epochs=8)
        ppo.main(replaced(flags, learning_rate="3e-3", output_dir=run))
        start = np.load(run / "start_train.npy")
        end = predict.load(run / "final_model").scores([row["text"] for row in rows])
        kl[coef] = mean_divergence(end, start, kind == "several")
    assert kl[0] > 1e-3
    assert kl[1000] < kl[0] / 20


@pytest.mark.parametrize("kind", ["one", "several"])
def test_the_log_measures_the_policy_before_each_update(kind, folder, tmp_path):
    """The second step's numbers are those of the policy after the first: of a run of one step."""
    several, rows = kind == "several", feedback_rows(kind == "several")
    flags = feedback_flags(
        folder, kind, batch_size=NUM_ROWS, epochs=2, learning_rate="1e-2", schedule="constant"
    )
    flags = replaced(flags, clip=0.03)
    for steps in (1, 2):
        ppo.main(replaced(flags, max_steps=steps, output_dir=tmp_path / str(steps)))
    start = np.load(tmp_path / "1" / "start_train.npy")
    moved = predict.load(tmp_path / "1/final_model").scores([row["text"] for row in rows])
    second = updates_of(tmp_path / "2")[1]
    assert second["ppo/kl"] == pytest.approx(mean_divergence(moved, start, several), rel=1e-3)
    np.testing.assert_allclose(np.load(tmp_path / "2/scores_1.npy"), moved, rtol=1e-5, atol=1e-5)
    assert second["ppo/clip_share"] == 0  # a new epoch: ratios are to the policy that it began with
    flags = replaced(flags, batch_size=NUM_ROWS // 2, epochs=1)
    ppo.main(replaced(flags, output_dir=tmp_path / "half"))
    first, second = updates_of(tmp_path / "half")
    assert (first["ppo/clip_share"], first["train/epoch"]) == (0, 0.5)
    assert 0 < second["ppo/clip_share"] <= 1
    order = epoch_order(NUM_ROWS, 0, 0)
    rewards = np.array(rewards_of(rows))
    for found, batch in ((first, order[:12]), (second, order[12:])):
        assert found["ppo/reward"] == pytest.approx(rewards[batch].mean(), rel=1e-5)


def test_records_hold_means_over_all_rows_since_the_last(folder, tmp_path):
    flags = feedback_flags(
        folder, "one", epochs=2, batch_size=10, output_dir=tmp_path / "run"
    )  # 10, 10, 4 rows
    ppo.main(replaced(flags, log_steps=2, eval_steps=5))
    order = [epoch_order(NUM_ROWS, 0, epoch) for epoch in (0, 1)]
    rewards = np.array(rewards_of(feedback_rows(False)))
    steps = [order[0][:10], order[0][10:20], order[0][20:], order[1][:10], order[1][10:20], order[1][20:]]
    found = [(record["step"], record["ppo/reward"]) for record in updates_of(tmp_path / "run")]
    expected = [(2, steps[:2]), (4, steps[2:4]), (5, steps[4:5]), (6, steps[5:])]
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (_, reward), (_, batches) in zip(found, expected):
        assert reward == pytest.approx(rewards[np.concatenate(batches)].mean(), rel=1e-5)


@pytest.mark.parametrize("kind, rate", [("one", 0), ("one", 2), ("several", 2)])
def test_where_nothing_gets_better_the_start_is_handed_back(kind, rate, folder, tmp_path, capsys):
    flags = feedback_flags(folder, kind, learning_rate=rate, epochs=9, patience=2, metric="loss")
    result = ppo.main(replaced(flags, output_dir=tmp_path / "run"))
    assert "stopped: 2 evaluations without a better loss than at step 0" in capsys.readouterr().out
    assert [record["step"] for record in logs(tmp_path / "run")][-1] == 4
    assert same(weights(policy_of(folder, kind), "best_model"), weights(tmp_path / "run", "best_model"))
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["best"] == {"metric": "loss", "value": logs(tmp_path / "run")[0]["eval/loss"], "step": 0}
    assert result["loss"] == pytest.approx(record["best"]["value"], rel=1e-6)
    assert record["change"]["validation"]["accuracy"]["difference"] == 0
    assert not rate or not same(weights(tmp_path / "run"), weights(tmp_path / "run", "best_model"))


# -- which loop ------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path) -> Path:
    """What is left of two runs: one of this loop, one of the other."""
    for name, arguments in (("feedback", {"feedback": "a.jsonl"}), ("ranks", {"policy": "b"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"arguments": arguments}))
    (tmp_path / "flags").write_text("--feedback a.jsonl\n--policy b\n")
    return tmp_path


ARGVS = {  # argv, with RUN for a run of this loop and RANKS for one of the other: whether it is of this loop
    "--feedback a.jsonl --policy b": True,
    "--policy b --feedback=a.jsonl": True,
    "--feedback": True,  # its error is of this loop
    "--policy b --train_data a.jsonl": False,
    "": False,
    "--resume RUN": True,
    "--resume=RUN": True,
    "--output_dir RUN --resume": True,
    "--resume --output_dir RUN": True,
    "--resume --output_dir=RUN": True,
    "--resume RANKS": False,
    "--resume --output_dir RANKS": False,
    "--output_dir RUN": False,  # a new run, and an error of the other loop
    "--resume nowhere": False,
    "@FLAGS": True,  # a preset
}


@pytest.mark.parametrize("argv", ARGVS)
def test_which_loop_the_flags_are_of(argv, finished, monkeypatch):
    wanted = ARGVS[argv]
    for name, place in (("RUN", "feedback"), ("RANKS", "ranks"), ("FLAGS", "flags")):
        argv = argv.replace(name, str(finished / place))
    words = argv.split()
    assert ppo.is_about_feedback(words) == wanted
    seen = []
    monkeypatch.setattr(ppo_feedback, "main", lambda *args: seen.append(args))
    monkeypatch.setattr(ppo, "parse_args", lambda argv: None)
    monkeypatch.setattr(ppo, "launch", lambda *args: None)
    ppo.main(words, "on_eval")
    assert seen == ([(words, "on_eval")] if wanted else [])


def test_flags_of_the_shell_reach_this_loop(monkeypatch):
    monkeypatch.setattr("sys.argv", ["ppo.py", "--feedback", "nowhere.jsonl"])
    with pytest.raises(UserError, match=r"--policy: not given; expected a run of train\.py"):
        ppo.main()


# -- what a user gets wrong --------------------------------------------------------------------------------------------

ROW = {"text": "a rose", "predicted_labels": "red", "true_labels": "red", "feedback": 1}
FLAGS = {  # case: (flags that replace the good ones, what the message says)
    "no policy": ({"policy": ""}, r"--policy: not given; expected a run of train\.py"),
    "no feedback": ({"feedback": ""}, "--feedback: not given; expected rows with feedback"),
    "no validation rows": ({"val_data": ""}, "--val_data: not given; expected rows that choose the best step"),
    "missing validation rows": ({"val_data": "nowhere.jsonl"}, r"--val_data nowhere\.jsonl: no such file"),
    "missing feedback": ({"feedback": "nowhere.jsonl"}, r"--feedback nowhere\.jsonl: no such file"),
    "a table": ({"feedback": "rows.csv"}, r"--feedback rows\.csv: expected a file of feedback that ends in \.json"),
    "missing policy": ({"policy": "nowhere"}, r"--policy nowhere: no such folder; expected a run of train\.py"),
    "a ranker": ({"policy": "RANKER"}, r"--policy .*: is a ranker, not a classifier; expected a run of train\.py"),
    "one weight": ({"reward_weights": "1"}, "--reward_weights 1: expected two numbers of at least 0"),
    "words": ({"reward_weights": "a,b"}, "--reward_weights a,b: expected two numbers of at least 0, .*: 0.7,0.3"),
    "no weight": ({"reward_weights": "0,0"}, "--reward_weights 0,0: expected"),
    "a negative weight": ({"reward_weights": "-1,2"}, "--reward_weights -1,2: expected"),
    "three weights": ({"reward_weights": "1,1,1"}, "--reward_weights 1,1,1: expected"),
    "NaN": ({"reward_weights": "nan,1"}, "--reward_weights nan,1: expected"),
    "endless": ({"reward_weights": "1,inf"}, "--reward_weights 1,inf: expected"),
    "training rows too": ({"train_data": "rows.jsonl"}, r"--train_data rows\.jsonl: with --feedback .*: drop the flag"),
    "overlap": ({"overlap": None}, "--overlap: not in this loop: drop the flag"),
    "another estimator": ({"estimator": "grpo"}, "--estimator: invalid choice: 'grpo'"),
    "the other loop's": ({"rollout_size": 4}, "unrecognized arguments: --rollout_size=4"),
    "a clip of 0": ({"clip": 0}, r"--clip: 0: expected a number at least 1e-06"),
    "a negative weight of KL": ({"kl_coef": "-1"}, "--kl_coef: -1: expected a number at least 0"),
    "adapters without a rank": ({"lora_targets": "q"}, "--lora_targets: needs --lora_rank"),
    "another metric": ({"metric": "f2"}, "--metric f2: not among the metrics of these rows"),
    "too small a budget": ({"max_tokens": 5}, r"row \d+ has \d+ tokens, more than --max_tokens 5"),
}  # fmt: skip
FILES = {  # case: (rows with feedback, what the message says)
    "a label of nobody": ([ROW, ROW | {"predicted_labels": "pink"}],
                          "line 2: field 'predicted_labels': the model has no label \"pink\"; it has blue, green, red"),
    "a truth of nobody": ([ROW | {"true_labels": "pink"}], "line 1: field 'true_labels': the model has no label"),
    "several labels": ([ROW | {"predicted_labels": ["red", "blue"]}], "line 1: .*expected one label"),
    "NaN": ([ROW, ROW, ROW | {"feedback": float("nan")}], "line 3: field 'feedback' is NaN; expected a number in"),
    "out of range": ([ROW | {"feedback": 5}, ROW | {"feedback": -1.01}],
                     r"2 bad rows:\n  line 1: field 'feedback' is 5; .*\n  line 2: field 'feedback' is -1.01;"),
    "words": ([ROW | {"feedback": "good"}], "line 1: field 'feedback' is \"good\"; expected a number"),
    "nobody filled it in": ([ROW | {"feedback": None}] * 3, r"no row has feedback \(3 are empty\); fill in 'feedback'"),
    "no prediction": ([{"text": "red", "feedback": 1}], "line 1: no field 'predicted_labels'"),
    "no token": ([ROW, ROW | {"text": "\u200b\u00ad"}], "line 2: the text has no token"),
    "no row": ([], "has no rows"),
}  # fmt: skip


def check_refused(flags: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    """One message that names the file, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        ppo.main([*flags, "--output_dir", str(tmp_path / "run")])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flags(case, folder, tmp_path, monkeypatch):
    changes, message = FLAGS[case]
    ranker = tmp_path / "ranker" / "best_model"
    shutil.copytree(policy_of(folder, "one") / "best_model", ranker)
    about = json.loads((ranker / "bareloop.json").read_text())
    (ranker / "bareloop.json").write_text(json.dumps(about | {"task": "rank"}))
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([ROW, ROW.values()])
    flags = feedback_flags(folder, "one", cache_dir=folder / "cache")
    for name, value in changes.items():
        value = str(ranker.parent) if value == "RANKER" else value
        flags = [*flags, f"--{name}"] if value is None else [*flags, f"--{name}={value}"]
    check_refused(flags, message, tmp_path, monkeypatch)


@pytest.mark.parametrize("case", FILES)
def test_bad_feedback(case, folder, tmp_path, monkeypatch):
    rows, message = FILES[case]
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    check_refused([*feedback_flags(folder, "one"), "--feedback", path], message, tmp_path, monkeypatch)


def test_files_of_another_kind_are_refused(folder, tmp_path, monkeypatch):
    several = feedback_flags(folder, "several")
    one = write_jsonl(tmp_path / "one.jsonl", [ROW])
    check_refused([*several, "--feedback", one], "line 1: .*expected a list of labels", tmp_path, monkeypatch)
    val = str(folder / "val-one.jsonl")
    check_refused(
        [*several, "--val_data", val], "has one label a row; .* several labels", tmp_path, monkeypatch
    )
    pink = write_jsonl(tmp_path / "pink.jsonl", [{"text": "red", "label": "pink"}])
    one = [*feedback_flags(folder, "one"), "--val_data", pink]
    check_refused(one, "--val_data .*pink.jsonl: labels .*'pink'", tmp_path, monkeypatch)


def test_adapters_beside_an_adapter_are_refused(folder, tmp_path, monkeypatch):
    flags = feedback_flags(folder, "adapter", lora_rank=4)
    check_refused(
        flags, r"--lora_rank 4: .*adapter has an adapter, and that is trained", tmp_path, monkeypatch
    )


def test_supervised_without_any_true_label_is_refused(folder, tmp_path, monkeypatch):
    """It would train on nothing: weight decay alone would move the weights."""
    rows = [{k: v for k, v in row.items() if k != "true_labels"} for row in feedback_rows(False)]
    flags = feedback_flags(folder, "one", rows, estimator="supervised")
    check_refused(flags, "--estimator supervised: .*true_labels", tmp_path, monkeypatch)


def test_a_run_is_never_overwritten_and_the_good_flags_are_good(folder, tmp_path):
    flags = feedback_flags(folder, "one", max_steps=1, output_dir=tmp_path / "run")
    assert ppo.main(flags)["n"] == 24
    with pytest.raises(UserError, match="holds a finished run"):
        ppo.main(flags)
    with pytest.raises(UserError, match="this run is finished"):
        ppo.main(["--resume", str(tmp_path / "run")])
