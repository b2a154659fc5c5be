"""The PPO loop: what a run leaves behind, what its numbers mean, what a learner is told, that it learns."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ppo
import predict
import rank_train
from core.rollouts import Bandit
from losses.ranking import log_softmax_kept
from tests.conftest import COLOURS, FILLER, rank_rows, write_jsonl
from tests.helpers import logs, rank_flags, replaced, same, weights

KINDS = {"causal": ["--lora_dropout", "0.2"], "whole": [], "bert": []}  # flags of the policy's own run
SIZES = {"train": 40, "val": 16, "test": 8}
ROWS = {name: rank_rows(size, k) for k, (name, size) in enumerate(SIZES.items())}
SAMPLES = {"ppo": 1, "rloo": 2, "grpo": 2, "exact": 0, "supervised": 0}  # of the runs below; 0: told all


def in_haste(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes more time than everything else of a short run: figures, versions, waits for the disk."""
    for name in ("position_figure", "reward_figure", "confidence_figure", "group_figure", "save_png"):
        patch.setattr(f"core.rank_report.{name}", lambda *args: None)
    patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *args: None)
    patch.setattr("ppo.learning_figure", lambda records: len(records))
    patch.setattr("ppo.save_png", lambda number, path: path.write_text(str(number)))
    for name in ("core.runs.git_commit", "core.runs.versions", "os.fsync"):
        patch.setattr(name, lambda *args: None)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    in_haste(monkeypatch)


def ppo_flags(folder: Path, kind: str, **values) -> list[str]:
    """Flags of a run of a second without its folder; rows and policy are made where they are not there."""
    for name, rows in ROWS.items():
        if not (folder / f"{name}.jsonl").exists():
            write_jsonl(folder / f"{name}.jsonl", rows)
    run = folder / "policies" / kind
    if not run.exists():
        with pytest.MonkeyPatch.context() as patch:
            in_haste(patch)
            rank_train.main(
                replaced([*rank_flags(folder, kind), *KINDS[kind]], max_tokens=400, output_dir=run)
            )
    data = {f"{name}_data": folder / f"{name}.jsonl" for name in ("train", "val")}
    settings = {"policy": run, "cache_dir": folder / "cache", "amp": "off", "max_tokens": 400, "epochs": 1}
    settings |= {"rollout_size": 20, "batch_size": 10, "learning_rate": "3e-3", "log_steps": 1}
    return replaced([], **{**data, **settings, **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ppo")


def records(run: str | Path, name: str) -> list:
    """The values of one field of a run's log, in order."""
    return [record[name] for record in logs(run) if name in record]


def scores_of(run: Path, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, K) float64 scores of a run's or a model folder's ranker, and where a candidate is."""
    found = [row["scores"] for row in predict.load(run)(rows)]
    table = torch.full((len(rows), max(map(len, found))), torch.nan, dtype=torch.float64)
    for k, row in enumerate(found):
        table[k, : len(row)] = torch.tensor(row)
    return table.nan_to_num(0.0), ~table.isnan()


# -- what a run leaves behind -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_folder_is_whole_and_starts_from_the_best_model_of_the_policy(kind, folder, tmp_path, capsys):
    flags, run = ppo_flags(folder, kind, test_data=folder / "test.jsonl"), tmp_path / "run"
    result = ppo.main(replaced(flags, output_dir=run))
    printed = capsys.readouterr().out
    last = json.loads(printed.strip().splitlines()[-1])
    assert last["run"] == str(run) == result["run"]
    assert (last["validation"]["n"], last["test"]["n"]) == (16, 8)
    assert last["validation"] == {name: value for name, value in result.items() if name != "run"}
    assert {path.name for path in run.iterdir()} >= {
        *("best_model", "final_model", "validation", "test", "checkpoint", "tensorboard", "run.json"),
        *("training_logs.jsonl", "training_manifest.json", "reference.npy", "start_validation.npy"),
        "learning.png",
    }
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["step_00000008"]  # 2 rollouts x 2 x 2
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["num_steps"], record["rewards_told"]) == ("finished", 8, 40)
    assert record["layout"] == ("packed" if kind == "bert" else "shared")
    for split, of_split in (("validation", ROWS["val"]), ("test", ROWS["test"])):
        assert f"start ({split})" in printed
        scores, keep = scores_of(run, of_split)
        logits = torch.from_numpy(np.load(run / split / "logits.npy")).double()
        torch.testing.assert_close(scores[keep], logits[keep], rtol=1e-5, atol=1e-5)
        start = torch.from_numpy(np.load(run / f"start_{split}.npy")).double()
        policy, _ = scores_of(folder / "policies" / kind, of_split)
        torch.testing.assert_close(policy[keep], start[keep], rtol=1e-5, atol=1e-5)
    assert not same(weights(folder / "policies" / kind, "best_model"), weights(run))
    baseline = record["baselines"]["start (validation)"]
    assert baseline == {name[5:]: value for name, value in logs(run)[0].items() if "eval/" in name}


def test_bareloop_json_names_the_type_that_this_run_was_evaluated_in(folder, tmp_path):
    """predict.py --amp run reads it."""
    run = ppo.main(ppo_flags(folder, "bert", amp="bf16", max_steps=1, output_dir=tmp_path / "run"))["run"]
    assert json.loads(Path(run, "best_model", "bareloop.json").read_text())["amp"] == "bf16"


def test_a_run_goes_on_from_another_run_of_this_loop(folder, tmp_path):
    first = ppo.main(ppo_flags(folder, "causal", max_steps=4, output_dir=tmp_path / "first"))["run"]
    again = ppo.main(
        ppo_flags(folder, "causal", max_steps=1, output_dir=tmp_path / "again") + ["--policy", first]
    )
    start, end = (np.load(path) for path in (
        tmp_path / "again" / "start_validation.npy", tmp_path / "first" / "validation" / "logits.npy"
    ))  # fmt: skip
    np.testing.assert_allclose(start[~np.isnan(end)], end[~np.isnan(end)], rtol=1e-5, atol=1e-5)
    assert again["run"] == str(tmp_path / "again")


def test_a_dry_run_writes_nothing(folder, tmp_path, capsys):
    flags = ppo_flags(folder, "bert", output_dir=tmp_path / "run", epochs=3)
    assert ppo.main([*flags, "--dry_run"])["num_steps"] > 0
    assert "dry_run" in json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_it_learns_from_its_choices_within_the_rankers_memory(kind, folder, tmp_path):
    """bf16, budgets fitted by probes: finite scores, KL above 0, and a second run in the same numbers."""
    flags = ppo_flags(folder, kind, amp="bf16", max_tokens="auto", output_dir=tmp_path / "run")
    run = ppo.main([*flags, "--estimator", "rloo", "--samples", "2", "--deterministic"])["run"]
    assert all(np.isfinite(records(run, "train/loss")))
    assert max(records(run, "ppo/kl")) > 0
    again = replaced(flags, output_dir=tmp_path / "again")
    run_again = ppo.main([*again, "--estimator", "rloo", "--samples", "2", "--deterministic"])["run"]
    assert same(weights(run), weights(run_again))


# -- what the numbers mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator, kind", list(zip(SAMPLES, ["causal", "bert", "causal", "whole", "bert"])))
def test_before_any_update_the_ratio_is_one_and_the_policy_its_own_reference(
    estimator, kind, folder, tmp_path
):
    """Dropout is off though the policy has some: BERT 0.1, the adapter 0.2."""
    flags = ppo_flags(folder, kind, batch_size=20, ppo_epochs=1, clip=1e-6, temperature=2, max_steps=1)
    ppo.main(replaced(flags, estimator=estimator, output_dir=tmp_path / "run"))
    if estimator != "supervised":
        (first,) = (record for record in logs(tmp_path / "run") if "ppo/kl" in record)
        assert first["ppo/clip_share"] == 0
        assert abs(first["ppo/kl"]) < 1e-6
        assert abs(first["ppo/kl_old"]) < 1e-6
    scores, keep = scores_of(folder / "policies" / kind, ROWS["train"])
    reference = torch.from_numpy(np.load(tmp_path / "run" / "reference.npy")).double()
    torch.testing.assert_close(reference, log_softmax_kept(scores / 2, keep), rtol=1e-5, atol=1e-5)


def test_the_divergences_and_the_entropy_of_the_log_are_those_of_the_policies(folder, tmp_path):
    """The second pass over one rollout of all questions is measured after one update, that of a run of one step."""
    flags = ppo_flags(folder, "bert", estimator="rloo", rollout_size=40, batch_size=40, temperature=1.5)
    flags += [
        "--schedule",
        "constant",
        "--warmup",
        "0",
        "--learning_rate",
        "2e-2",
        "--clip",
        "0.01",
        "--entropy_coef",
        "0.1",
    ]
    for steps in (1, 2):
        ppo.main(replaced(flags, max_steps=steps, output_dir=tmp_path / str(steps)))
    rows = ROWS["train"]
    (old, keep), (new, _) = (
        scores_of(folder / "policies" / "bert", rows),
        scores_of(tmp_path / "1/final_model", rows),
    )
    old, new = (log_softmax_kept(scores / 1.5, keep) for scores in (old, new))

    def mean(values: torch.Tensor) -> float:
        return float((values * keep).sum(dim=1).mean())

    (found,) = (record for record in logs(tmp_path / "2") if "ppo/kl" in record)
    assert mean(new.exp() * (new - old)) > 1e-4
    assert found["ppo/kl"] == pytest.approx(mean(new.exp() * (new - old)), rel=1e-3)  # of start, from the new
    assert found["ppo/kl_old"] == pytest.approx(
        mean(old.exp() * (old - new)), rel=1e-3
    )  # the other way round
    assert found["ppo/entropy"] == pytest.approx(mean(-new.exp() * new), rel=1e-4)
    assert 0 < found["ppo/clip_share"] < 1
    loss = found["ppo/policy_loss"] + 0.05 * found["ppo/kl"] - 0.1 * found["ppo/entropy"]
    assert found["train/loss"] == pytest.approx(loss, rel=1e-5)


# -- what a learner is told -------------------------------------------------------------------------------------


class Told:
    """What a Bandit told: the rewards, and of which (question, place); places of no candidate are left out."""

    def __init__(self, patch: pytest.MonkeyPatch):
        tell, tell_all = Bandit.tell, Bandit.tell_all
        self.rewards, self.pairs = [], set()

        def noted(bandit, questions, choices):
            self.rewards.append(tell(bandit, questions, choices))
            self.pairs |= {(q, k) for q, own in zip(questions.tolist(), choices.tolist()) for k in own}
            return self.rewards[-1]

        def noted_all(bandit, questions):
            self.rewards.append(tell_all(bandit, questions))
            self.pairs |= {
                (q, k) for q in questions.tolist() for k in range(len(ROWS["train"][q]["rewards"]))
            }
            return self.rewards[-1]

        patch.setattr(Bandit, "tell", noted)
        patch.setattr(Bandit, "tell_all", noted_all)


@pytest.fixture(scope="module")
def told_runs(folder):
    """Call with an estimator: (flags, folder of a run of two epochs in rollouts of 16, 16 and 8, what was told)."""
    made = {}

    def run_of(estimator: str) -> tuple[list[str], Path, Told]:
        if estimator not in made:
            flags = ppo_flags(folder, "bert", estimator=estimator, rollout_size=16, epochs=2)
            flags = replaced(flags, samples=SAMPLES[estimator], output_dir=folder / "told" / estimator)
            with pytest.MonkeyPatch.context() as patch:
                made[estimator] = flags, folder / "told" / estimator, Told(patch)
                ppo.main(flags)
        return made[estimator]

    return run_of


@pytest.mark.parametrize("estimator", SAMPLES)
def test_the_log_says_how_much_was_told_and_what_was_chosen(estimator, told_runs):
    _, run, told = told_runs(estimator)
    samples, sizes = SAMPLES[estimator], [16, 16, 8] * 2
    if samples:
        assert [rewards.shape for rewards in told.rewards] == [(size, samples) for size in sizes]
        assert records(run, "ppo/rewards_told")[-1] == 80 * samples
    else:
        assert records(run, "ppo/rewards_told")[-1] == 2 * sum(len(row["rewards"]) for row in ROWS["train"])
        assert len(told.pairs) == sum(len(row["rewards"]) for row in ROWS["train"])
    assert json.loads((run / "run.json").read_text())["rewards_told"] == records(run, "ppo/rewards_told")[-1]
    assert [record["step"] for record in logs(run) if "eval/accuracy" in record] == [0, 10, 20]  # each epoch
    if estimator == "supervised":
        assert not records(run, "ppo/reward")
        assert records(run, "train/loss")[-1] > 0
        return
    for name in (
        "reward_ratio",
        "accuracy",
        "kl",
        "kl_old",
        "entropy",
        "clip_share",
        "policy_loss",
        "value_loss",
    ):
        assert len(records(run, f"ppo/{name}")) == 6, name
    assert records(run, "ppo/kl_coef") == [0.05] * 6
    assert records(run, "ppo/passes") == [2] * 6
    shares = [records(run, f"ppo/picked_{k}") for k in (1, 2, 3)]
    assert np.sum(shares, axis=0) == pytest.approx(np.ones(6))
    if samples:
        rewards = [float(found.mean()) for found in told.rewards]
        assert records(run, "ppo/reward") == pytest.approx(rewards)
        assert records(run, "ppo/reward_ratio") == pytest.approx(rewards)  # the best reward is 1 everywhere
    explained = records(run, "ppo/explained_variance")
    if estimator == "ppo":
        assert explained[0] == 0  # a value head starts at 0
        assert all(explained[1:])
    else:
        assert not explained
    assert (min(records(run, "ppo/value_loss")) > 0) == (estimator == "ppo")


@pytest.mark.parametrize("estimator", SAMPLES)
def test_a_learner_sees_no_reward_but_those_of_its_choices(estimator, told_runs, folder, tmp_path):
    """All other rewards of the training file are replaced: not a bit changes, but for those who are told all."""
    flags, run, told = told_runs(estimator)
    pairs = told.pairs if SAMPLES[estimator] else told_runs("rloo")[2].pairs
    rows, num_equal = [], 0
    for q, row in enumerate(ROWS["train"]):
        of_told = {r for k, r in enumerate(row["rewards"]) if (q, k) in pairs}
        hides = (
            q % 2 == 0 and len(of_told) == 1
        )  # the rest like what was told: only who looks sees no difference
        num_equal += hides
        others = [min(of_told) if hides else 5.0 + k for k in range(len(row["rewards"]))]
        told_or_not = zip(row["rewards"], others, strict=True)
        rewards = [r if (q, k) in pairs else other for k, (r, other) in enumerate(told_or_not)]
        rows.append(row | {"rewards": rewards})
    assert num_equal or not SAMPLES[estimator]
    assert sum(row != other for row, other in zip(rows, ROWS["train"])) >= 10
    flags = replaced(
        flags, train_data=write_jsonl(tmp_path / "train.jsonl", rows), output_dir=tmp_path / "run"
    )
    ppo.main(flags)
    assert same(weights(run), weights(tmp_path / "run")) == bool(SAMPLES[estimator])
    assert (records(run, "train/loss") == records(tmp_path / "run", "train/loss")) == bool(SAMPLES[estimator])


# -- LoRA -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch) -> dict:
    """What is trained in the next run: {"model": it, "before": its weights at the start}."""
    held, make = {}, ppo.parameter_groups

    def noted(model, *args):
        held["model"] = model
        held["before"] = {name: value.detach().clone() for name, value in model.named_parameters()}
        return make(model, *args)

    monkeypatch.setattr(ppo, "parameter_groups", noted)
    return held


@pytest.mark.parametrize(
    "kind, more", [("causal", []), ("whole", ["--lora_rank", "4"]), ("bert", ["--lora_rank", "4"])]
)
def test_with_adapters_only_they_and_the_heads_move(kind, more, folder, tmp_path, trained):
    """Of a policy that has an adapter, or fresh ones beside a whole policy, which change nothing at their birth."""
    run = tmp_path / "run"
    ppo.main([*ppo_flags(folder, kind, output_dir=run, learning_rate="1e-2"), *more])
    after = dict(trained["model"].named_parameters())
    ours = {name for name in after if ".lora_" in name or name.startswith(("ranker.head.", "value."))}
    assert ours != set(after)
    assert {name for name, param in after.items() if param.requires_grad} == ours
    assert set(load_file(next((run / "checkpoint").glob("step_*")) / "model.safetensors")) == ours
    assert all(torch.equal(after[name], trained["before"][name]) for name in after.keys() - ours)
    final = weights(run)
    assert {name.split(".")[0] for name in final} == {"base_model", "head"}
    assert not any(
        torch.equal(final[f"head.{k}.weight"], trained["before"][f"ranker.head.{k}.weight"]) for k in (1, 4)
    )
    rows = ROWS["val"]
    (start, keep), (best, _), (last, _) = (
        scores_of(path, rows) for path in (folder / "policies" / kind, run, run / "final_model")
    )
    logits = torch.from_numpy(np.load(run / "validation" / "logits.npy")).double()
    torch.testing.assert_close(best[keep], logits[keep], rtol=1e-5, atol=1e-5)
    born = torch.from_numpy(np.load(run / "start_validation.npy")).double()
    torch.testing.assert_close(start[keep], born[keep], rtol=1e-5, atol=1e-5)
    assert (last - start).abs().max() > 1e-2


# -- when it changes course, and when it ends -------------------------------------------------------------------


@pytest.mark.parametrize("target, factor", [(1e-9, 2), (100, 0.5)])
def test_a_kl_target_moves_the_coefficient_after_each_rollout(target, factor, folder, tmp_path):
    flags = ppo_flags(
        folder, "bert", estimator="rloo", kl_target=target, kl_coef=3, output_dir=tmp_path / "run"
    )
    ppo.main(flags)
    assert records(tmp_path / "run", "ppo/kl_coef") == [
        3 * factor,
        3 * factor**2,
    ]  # that of the rollout to come
    for coef, record in zip((3, 3 * factor), logs(tmp_path / "run")[1:]):
        loss = record["ppo/policy_loss"] + coef * record["ppo/kl"]
        assert record["train/loss"] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(
    "stop_kl, batch_size, passes", [(1e-12, 10, 1), (1e-12, 20, 2), (1e9, 10, 3), (0, 10, 3)]
)
def test_passes_end_where_the_policy_has_left_that_of_the_rollout(
    stop_kl, batch_size, passes, folder, tmp_path
):
    """A single batch's first pass is measured before its update. The learning rate goes on as planned."""
    flags = ppo_flags(folder, "bert", stop_kl=stop_kl, batch_size=batch_size, ppo_epochs=3, warmup=0)
    ppo.main(replaced(flags, output_dir=tmp_path / "run"))
    done = [(passes + planned) * 20 // batch_size - 1 for planned in (0, 3)]
    rates = [3e-3 * (1 - steps / (6 * 20 // batch_size)) for steps in done]
    assert records(tmp_path / "run", "train/lr") == pytest.approx(rates)
    assert records(tmp_path / "run", "ppo/passes") == [passes] * 2
    assert records(tmp_path / "run", "step")[-1] == 2 * passes * 20 // batch_size


@pytest.mark.parametrize("max_steps, told", [(3, 20), (4, 20), (5, 40)])
def test_max_steps_ends_exactly_there(max_steps, told, folder, tmp_path):
    """Four steps a rollout."""
    ppo.main(ppo_flags(folder, "bert", max_steps=max_steps, epochs=9, output_dir=tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == [f"step_{max_steps:08d}"]
    assert records(tmp_path / "run", "step")[-1] == max_steps
    assert records(tmp_path / "run", "ppo/rewards_told")[-1] == told


def test_patience_ends_a_run_that_gets_no_better_and_the_policy_is_handed_back(folder, tmp_path, capsys):
    flags = ppo_flags(folder, "bert", learning_rate=0, patience=2, epochs=9, eval_steps=4)
    ppo.main(replaced(flags, output_dir=tmp_path / "run"))
    assert "stopped: 2 evaluations without a better reward_ratio than at step 0" in capsys.readouterr().out
    assert records(tmp_path / "run", "step")[-1] == 8
    assert same(weights(folder / "policies" / "bert", "best_model"), weights(tmp_path / "run", "best_model"))


# -- learning ---------------------------------------------------------------------------------------------------


def easy_rows(num_rows: int, seed: int) -> list[dict]:
    """Questions whose best candidate is the red one."""
    rng, rows = random.Random(seed), []
    for _ in range(num_rows):
        colours = rng.sample(sorted(COLOURS), 3)
        candidates = [" ".join([*rng.choices(FILLER, k=rng.randint(0, 2)), colour]) for colour in colours]
        rewards = [float(colour == "red") for colour in colours]
        rows.append({"question": "is it", "candidates": candidates, "rewards": rewards})
    return rows


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    """Flags of a run on easy rows from a policy that has learnt nothing yet."""
    folder = tmp_path_factory.mktemp("easy")
    for seed, (name, size) in enumerate({"train": 48, "val": 30}.items()):
        write_jsonl(folder / f"{name}.jsonl", easy_rows(size, seed))
    start = replaced(rank_flags(folder, "bert"), learning_rate=0, max_steps=1, max_tokens=2000)
    with pytest.MonkeyPatch.context() as patch:
        in_haste(patch)
        rank_train.main(replaced(start, output_dir=folder / "policies" / "bert"))
    return ppo_flags(
        folder, "bert", learning_rate="1e-2", epochs=3, rollout_size=24, batch_size=8, max_tokens=2000
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("estimator", SAMPLES)
def test_every_estimator_learns_what_brings_rewards(estimator, seed, easy, tmp_path):
    found = ppo.main(replaced(easy, estimator=estimator, seed=seed, output_dir=tmp_path / "run"))
    assert logs(tmp_path / "run")[0]["eval/reward_ratio"] <= 0.6
    assert found["reward_ratio"] >= 0.9
    if estimator != "supervised":
        rewards = records(tmp_path / "run", "ppo/reward")  # of the choices themselves
        assert rewards[0] < 0.6
        assert np.mean(rewards[-2:]) > 0.7
