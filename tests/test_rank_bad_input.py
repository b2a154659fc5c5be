"""What a user of rank_train.py gets wrong: one clear message, no traceback, and no run folder that looks finished."""

import json

import pytest

import rank_train
from core.errors import UserError
from tests.conftest import rank_rows, save_language_model, write_jsonl
from tests.helpers import ROOT, rank_flags, replaced

GOOD = rank_rows(2)[0]


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a kind of RANKERS: flags of a run without its folder."""
    folder = tmp_path_factory.mktemp("rank")
    return lambda kind: rank_flags(folder, kind)


FLAGS = {  # case: (kind, flags, message)
    "missing file": ("bert", ["--train_data", "nowhere.jsonl"], "--train_data nowhere.jsonl: no such file"),
    "no training rows": ("bert", ["--train_data", ""], "--train_data: no file given; expected ranking rows"),
    "no validation rows": ("bert", ["--val_data", ""], "--val_data: no file given"),
    "a missing test file": ("bert", ["--test_data", "a/b.csv"], "--test_data a/b.csv: no such file"),
    "sharing in an encoder": ("bert", ["--share_prefix", "on"], "--share_prefix on: bert cannot read a question once"),
    "sharing and padding": ("causal", ["--share_prefix", "on", "--packing", "off"], "--share_prefix on: llama"),
    "sharing in eager": ("causal", ["--share_prefix", "on", "--attention", "eager"], "--share_prefix on: llama"),
    "sharing with attention dropout": (
        "gpt2", ["--share_prefix", "on", "--attention_dropout", "0.1"], r"\(--attention_dropout 0\)",
    ),
    "sharing and a mean": ("causal", ["--share_prefix", "on", "--pooling", "mean"], "--share_prefix on: llama"),
    "packing in eager": ("bert", ["--packing", "on", "--attention", "eager"], "--packing on: bert"),
    "alpha without rank": ("bert", ["--lora_alpha", "16"], "--lora_alpha: needs --lora_rank"),
    "dropout without rank": ("bert", ["--lora_dropout", "0.1"], "--lora_dropout: needs --lora_rank"),
    "no such target": ("causal", ["--lora_targets", "nothing"], "--lora_targets"),
    "unknown metric": ("bert", ["--metric", "nonsense"], "--metric nonsense: not among a ranker's metrics: accuracy"),
    "a classifier's metric": ("bert", ["--metric", "macro_f1"], "--metric macro_f1: not among a ranker's metrics"),
    "unknown loss": ("bert", ["--loss", "mse"], "--loss: invalid choice: 'mse'"),
    "no tau": ("bert", ["--loss", "soft_ce", "--tau", "0"], "--tau: 0: expected a number at least 0.001"),
    "a T5": ("bert", ["--architecture", "t5"], "--architecture: invalid choice: 't5'"),
    "an encoder as a decoder": ("bert", ["--architecture", "causal"], "is an encoder .bert., not a decoder"),
    "a decoder as an encoder": ("causal", ["--architecture", "bert"], "is a decoder .llama., not an encoder"),
    "no question in the prompt": ("bert", ["--prompt", "{context}"], r"--prompt .*expected \{question\} once"),
    "no such column": ("bert", ["--group_field", "steps"], r"val.jsonl: 40 bad rows"),  # training needs none
    "too long": ("bert", ["--max_length", "400"], "--max_length 400: .* takes at most 64 tokens"),
    "no room": ("bert", ["--max_length", "8"], "question and longest candidate .* do not fit --max_length 8"),
    "a budget below a question": ("causal", ["--max_tokens", "15"], "tokens, more than --max_tokens 15"),
    "a flag of train.py": ("bert", ["--class_weights", "balanced"], "unrecognized arguments: --class_weights"),
    "another": ("bert", ["--sampler", "weighted"], "unrecognized arguments: --sampler weighted"),
    "no such model": ("bert", ["--model_name", "./nowhere"], r"--model_name \./nowhere: is no folder"),
    "no such preset": ("bert", ["@presets/nowhere"], "presets/nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flags(case, flags_of, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    kind, flags, message = FLAGS[case]
    with pytest.raises(UserError, match=message):
        rank_train.main([*flags_of(kind), "--output_dir", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


FILES = {  # case: (flag, rows, message)
    "bad rows": (
        "train_data",
        [GOOD, GOOD | {"rewards": [1]}],
        "line 2: 1 rewards for . candidates; expected one for",
    ),
    "bad validation rows": (
        "val_data",
        [GOOD | {"candidates": "a"}],
        "line 1: field 'candidates' is \"a\"; expected a",
    ),
    "nothing to learn": (
        "train_data",
        [GOOD | {"rewards": [0] * len(GOOD["rewards"])}] * 3,
        "no question to rank",
    ),
    "nothing to rank": (
        "val_data",
        [GOOD | {"rewards": [1] * len(GOOD["rewards"])}],
        "no question to rank: the cand",
    ),
    "one candidate each": (
        "train_data",
        [GOOD | {"candidates": ["a"], "rewards": [1]}] * 2,
        "the candidates of all 2",
    ),
    "no rows": ("test_data", [], "--test_data .* has no rows"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files(case, flags_of, tmp_path):
    flag, rows, message = FILES[case]
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(UserError, match=message) as error:
        rank_train.main(replaced(flags_of("bert"), output_dir=tmp_path / "run", **{flag: path}))
    assert path in str(error.value)
    assert not (tmp_path / "run").exists()


def test_questions_of_one_reward_are_counted_and_left_out(flags_of, tmp_path, no_figures, capsys):
    equal = [row | {"rewards": [0.5] * len(row["rewards"])} for row in rank_rows(30, 7)]
    files = {
        "train_data": write_jsonl(tmp_path / "train.jsonl", rank_rows(30) + equal),
        "val_data": write_jsonl(tmp_path / "val.jsonl", rank_rows(20, 1) + equal[:5]),
    }
    result = rank_train.main(replaced(flags_of("bert"), output_dir=tmp_path / "run", max_steps=2, **files))
    said = capsys.readouterr().out
    assert "train: 30 questions" in said
    assert "30 with one reward for all: left out" in said
    assert "validation: 25 questions" in said
    assert "5 with one reward for all: nothing to choose there" in said
    assert (result["n"], result["num_skipped"]) == (20, 5)


def test_a_metric_that_the_rows_do_not_define(flags_of, tmp_path):
    """Else no step would be the best, and the run would end without a best_model/."""
    rows = [row | {"rewards": [reward - 1 for reward in row["rewards"]]} for row in rank_rows(20)]
    flags = replaced(flags_of("bert"), val_data=write_jsonl(tmp_path / "val.jsonl", rows), max_steps=1)
    with pytest.raises(UserError, match=r"--metric mrr: no question of .*val\.jsonl has a reward above 0"):
        rank_train.main([*flags, "--metric", "mrr", "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_diverged_run_says_so(flags_of, tmp_path):
    flags = [
        *flags_of("bert"),
        "--learning_rate",
        "1e30",
        "--max_grad_norm",
        "0",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(UserError, match="not finite: training has diverged; lower --learning_rate"):
        rank_train.main(flags)


def test_presets_of_other_loops_are_one_message(flags_of, tmp_path):
    (tmp_path / "preset").write_text("--max_steps 3\n--loss focal\n")
    with pytest.raises(UserError, match="--loss: invalid choice: 'focal'"):
        rank_train.main([*flags_of("bert"), f"@{tmp_path / 'preset'}"])


def test_a_model_without_a_padding_token(flags_of, tmp_path, no_figures):
    """Decoders often have none: padded cuts then take another, for what they are masked."""
    model = save_language_model(tmp_path / "llama", "llama")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / "llama" / name
        if path.exists():
            path.write_text(
                json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"})
            )
    for how in (["--packing", "off"], []):
        flags = replaced(
            flags_of("causal"), model_name=model, max_steps=1, output_dir=tmp_path / f"run{len(how)}"
        )
        assert rank_train.main([*flags, *how])["n"] == 40
