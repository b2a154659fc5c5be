"""What a user of ppo.py gets wrong: one clear message, no traceback, and no run folder that looks finished."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ppo
import train
from core.errors import UserError
from tests.conftest import rank_rows, save_tiny, toy_rows, write_jsonl
from tests.helpers import ROOT, replaced
from tests.test_ppo import ROWS, in_haste, ppo_flags


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind: flags of a run without its folder; beside the policies there are folders that are none."""
    folder = tmp_path_factory.mktemp("ppo")
    ppo_flags(folder, "bert")
    (folder / "policies" / "file").write_text("")
    (folder / "policies" / "empty").mkdir()
    young = folder / "policies" / "young"  # killed before its first evaluation
    shutil.copytree(folder / "policies" / "bert", young, ignore=shutil.ignore_patterns("*_model"))
    for name, text in (("torn", "{"), ("old", "{}")):
        shutil.copytree(folder / "policies" / "bert", folder / "policies" / name)
        (folder / "policies" / name / "best_model" / "bareloop.json").write_text(text)
    shutil.copytree(folder / "policies" / "bert", folder / "policies" / "hollow")
    (folder / "policies" / "hollow" / "best_model" / "score_head.safetensors").unlink()
    return lambda kind, **values: ppo_flags(folder, kind, **values)


def of_policy(flags: list[str], name: str) -> list[str]:
    return replaced(flags, policy=Path(flags[flags.index("--policy") + 1]).with_name(name))


def check(flags: list[str], message: str, run: Path) -> str:
    """One error, before anything is written."""
    with pytest.raises(UserError, match=message) as error:
        ppo.main(replaced(flags, output_dir=run))
    assert not run.exists()
    assert "\n" not in str(error.value) or "bad row" in str(error.value)
    return str(error.value)


POLICIES = {  # name in policies/: message
    "nowhere": "--policy .*nowhere: no such folder; expected a run of rank_train.py",
    "file": "--policy .*file: no such folder; expected a run of rank_train.py",
    "empty": "--policy .*empty: holds no best_model/; expected a run of rank_train.py",
    "young": "--policy .*young: holds no best_model/; expected a run of rank_train.py",
    "torn": r"torn/best_model/bareloop\.json: is not whole",
    "old": r"old/best_model/bareloop\.json: is not whole: no 'label_names'",
    "hollow": r"hollow/best_model/score_head\.safetensors: does not fit",
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_that_are_none(name, flags_of, tmp_path):
    check(of_policy(flags_of("bert"), name), POLICIES[name], tmp_path / "run")


def test_a_classifier_is_not_a_policy(flags_of, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "report_run", lambda args, folder, *_: {"run": str(folder)})  # no plots
    rows = write_jsonl(tmp_path / "rows.jsonl", toy_rows(32))
    flags = [
        "--model_name",
        save_tiny(tmp_path / "bert"),
        "--train_data",
        rows,
        "--val_data",
        rows,
        "--max_steps",
        "1",
    ]
    flags += [
        "--cache_dir",
        str(tmp_path / "cache"),
        "--amp",
        "off",
        "--max_length",
        "32",
        "--max_tokens",
        "400",
    ]
    train.main([*flags, "--output_dir", str(tmp_path / "classifier")])
    for folder in (tmp_path / "classifier", tmp_path / "classifier" / "best_model"):
        message = f"--policy {folder}: is a classifier, not a ranker; expected a run of rank_train.py"
        check(flags_of("bert", policy=folder), re.escape(message), tmp_path / "run")


FLAGS = {  # case: (kind, flags, message)
    "no policy": ("bert", ["--policy", ""], "--policy: not given; expected a run of rank_train.py"),
    "no training rows": ("bert", ["--train_data", ""], "--train_data: not given; expected ranking rows"),
    "no validation rows": ("bert", ["--val_data", ""], "--val_data: not given; expected ranking rows"),
    "missing file": ("bert", ["--train_data", "nowhere.jsonl"], "--train_data nowhere.jsonl: no such file"),
    "unknown estimator": ("bert", ["--estimator", "a2c"], "--estimator: invalid choice: 'a2c'"),
    "one sample, rloo": ("bert", ["--estimator", "rloo", "--samples", "1"], "--estimator rloo expects 2 or more"),
    "one sample, grpo": ("bert", ["--estimator", "grpo", "--samples", "1"], "--estimator grpo expects 2 or more"),
    "samples of all": ("bert", ["--estimator", "exact", "--samples", "4"], "--samples 4: --estimator exact expects no"),
    "samples, supervised": ("bert", ["--estimator", "supervised", "--samples", "2"], "supervised expects no --samples"),
    "fewer than no samples": ("bert", ["--samples", "-1"], "--samples: -1: expected a whole number at least 0"),
    "stop, supervised": ("bert", ["--estimator", "supervised", "--stop_kl", "1"], "--stop_kl: --estimator superv"),
    "overlap": ("bert", ["--overlap"], "--overlap: not in this loop: drop the flag"),
    "no temperature": ("bert", ["--temperature", "0"], "--temperature: 0: expected a number at least 0.001"),
    "no clip": ("bert", ["--clip", "0"], "--clip: 0: expected a number"),
    "less than no KL": ("bert", ["--kl_coef", "-1"], "--kl_coef: -1: expected a number at least 0"),
    "no rollout": ("bert", ["--rollout_size", "0"], "--rollout_size: 0: expected a whole number at least 1"),
    "adapters twice": ("causal", ["--lora_rank", "4"], "--lora_rank 4: .*causal has an adapter, and that is trained"),
    "dropout of adapters": ("bert", ["--lora_rank", "4", "--lora_dropout", "0.5"], "--lora_dropout 0.5: a policy"),
    "alpha without rank": ("bert", ["--lora_alpha", "16"], "--lora_alpha: needs --lora_rank"),
    "no such target": ("bert", ["--lora_rank", "2", "--lora_targets", "nothing"], "--lora_targets"),
    "a classifier's metric": ("bert", ["--metric", "macro_f1"], "--metric macro_f1: not among a ranker's metrics"),
    "no such column": ("bert", ["--group_field", "steps"], r"val.jsonl: 16 bad rows"),
    "a budget below a question": ("bert", ["--max_tokens", "15"], "tokens, more than --max_tokens 15"),
    "unknown packing": ("bert", ["--packing", "no"], "--packing: invalid choice: 'no'"),
    "stop_kl in the only pass": ("bert", ["--stop_kl", "0.1", "--ppo_epochs", "1"], "--stop_kl: looks after each"),
    "a target for nothing": ("bert", ["--kl_target", "0.1", "--kl_coef", "0"], "--kl_target 0.1: adapts --kl_coef"),
    "compiled on a CPU": ("bert", ["--compile"], "--compile on: not on cpu"),
    "a flag of rank_train.py": ("bert", ["--share_prefix", "on"], "unrecognized arguments: --share_prefix on"),
    "another": ("bert", ["--dropout", "0.1"], "unrecognized arguments: --dropout 0.1"),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flags(case, flags_of, tmp_path):
    kind, flags, message = FLAGS[case]
    check([*flags_of(kind), *flags], message, tmp_path / "run")


GOOD = rank_rows(2)[0]
EQUAL = GOOD | {"rewards": [0.5] * len(GOOD["rewards"])}
ALONE = GOOD | {"candidates": ["a"], "rewards": [1]}
FILES = {  # case: (flag, rows, message)
    "rewards of another length": ("train_data", [GOOD, GOOD | {"rewards": [1]}], "line 2: 1 rewards for . candidates"),
    "no rewards": ("train_data", [{"question": "a", "candidates": ["b", "c"]}], "line 1: no field 'rewards'"),
    "NaN": ("train_data", [GOOD | {"rewards": [float("nan")] * len(GOOD["rewards"])}], "line 1: .*'rewards'"),
    "infinity": ("val_data", [GOOD | {"rewards": [float("inf")] * len(GOOD["rewards"])}], "line 1: .*'rewards'"),
    "nothing to learn": ("train_data", [EQUAL] * 3, "no question to rank: the candidates of all 3 have one"),
    "nothing to rank": ("val_data", [EQUAL] * 2, "no question to rank: the candidates of all 2 have one"),
    "one candidate each": ("train_data", [ALONE] * 2, "no question to rank: the candidates of all 2"),
    "no rows": ("test_data", [], "--test_data .* has no rows"),
    "too long": ("train_data", [GOOD | {"question": "it " * 60}], "question and longest candidate .* do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_bad_files(case, flags_of, tmp_path):
    flag, rows, message = FILES[case]
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    assert path in check(flags_of("bert", **{flag: path}), message, tmp_path / "run")


@pytest.mark.parametrize("estimator, told", [("ppo", 17), ("exact", None)])
def test_who_knows_all_rewards_leaves_out_questions_that_teach_nothing(
    estimator, told, flags_of, tmp_path, monkeypatch, capsys
):
    """Others cannot know before they have asked."""
    in_haste(monkeypatch)
    files = {"train_data": write_jsonl(tmp_path / "train.jsonl", rank_rows(8) + [EQUAL] * 5 + [ALONE] * 4)}
    files |= {"val_data": write_jsonl(tmp_path / "val.jsonl", rank_rows(6, 1) + [EQUAL, ALONE])}
    result = ppo.main(flags_of("bert", output_dir=tmp_path / "run", estimator=estimator, **files))
    said = capsys.readouterr().out
    assert f"train: {told or 8} questions" in said
    assert ("9 with one reward for all: left out" in said) == (told is None)
    assert (result["n"], result["num_skipped"]) == (6, 2)
    everything = sum(len(row["candidates"]) for row in rank_rows(8))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["rewards_told"] == (told or everything)


def test_rewards_below_zero(flags_of, tmp_path, monkeypatch):
    """No ratio to the best can be told: another metric chooses."""
    in_haste(monkeypatch)
    rows = [row | {"rewards": [reward - 1 for reward in row["rewards"]]} for row in ROWS["val"]]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    flags = flags_of("bert", train_data=path, val_data=path, max_steps=1)
    asked = [*flags, "--metric", "reward_ratio"]
    check(
        asked, r"--metric reward_ratio: no question of .*rows\.jsonl has a reward above 0", tmp_path / "run"
    )
    found = ppo.main([*flags, "--output_dir", str(tmp_path / "run")])
    assert found["average_reward"] < 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["metric"] == "average_reward"


def test_a_diverged_run_says_so(flags_of, tmp_path):
    flags = flags_of("bert", learning_rate=1e30, max_grad_norm=0, output_dir=tmp_path / "run")
    with pytest.raises(
        UserError, match="scores are not finite after step 4: it has diverged; lower --learning_rate"
    ):
        ppo.main(flags)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"


# -- resume -----------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """What on_eval raises to end a run in the middle."""


def stop(step: int, metrics: dict) -> None:
    raise Stopped


def test_a_run_of_another_configuration_is_not_resumed(flags_of, tmp_path, monkeypatch):
    in_haste(monkeypatch)
    train_data = shutil.copy(flags_of("bert")[1], tmp_path / "train.jsonl")
    flags, run = flags_of("bert", train_data=train_data, output_dir=tmp_path / "run"), str(tmp_path / "run")
    with pytest.raises(Stopped):
        ppo.main(flags, stop)
    for flag, value, message in (
        ("estimator", "grpo", "--estimator is 'grpo', the run's is 'ppo'; --samples is 4, the run's is 1"),
        ("samples", "3", "--samples is 3, the run's is 1"),
        ("kl_coef", "0.5", "--kl_coef is 0.5, the run's is 0.05"),
        ("policy", "elsewhere", "--policy is 'elsewhere', the run's is "),
    ):
        with pytest.raises(UserError, match=message.split(";")[0]):
            ppo.main(["--resume", run, f"--{flag}", value])
    with pytest.raises(UserError, match="holds a running run: give another, or --resume"):
        ppo.main(flags)
    with pytest.raises(UserError, match="no such folder; expected the folder of an unfinished run"):
        ppo.main(["--resume", str(tmp_path / "nowhere")])
    write_jsonl(tmp_path / "train.jsonl", rank_rows(30, 5))
    with pytest.raises(UserError, match="another data"):
        ppo.main(["--resume", run])
    write_jsonl(tmp_path / "train.jsonl", ROWS["train"])
    assert ppo.main(["--resume", run])["run"] == run
    with pytest.raises(UserError, match="this run is finished"):
        ppo.main(["--resume", run])


@pytest.mark.slow
def test_an_error_is_one_line(flags_of):
    command = [sys.executable, "ppo.py", *of_policy(flags_of("bert"), "nowhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.search(r"^error: --policy .*nowhere: no such folder", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
