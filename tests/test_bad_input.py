"""What a user gets wrong: one clear message, a non-zero exit, no traceback, and no run folder that looks finished."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from core.errors import UserError
from tests.conftest import save_language_model, toy_rows, write_jsonl

ROOT = Path(__file__).parent.parent
GOOD = {"text": "red", "label": "red"}


def lines(*rows: dict | str) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


FILES = {  # case: (flag, content of the file, what the message says)
    "empty file": ("train_data", "", "has no rows"),
    "invalid JSON": ("train_data", lines(*[GOOD] * 6, '{"text": "red", label}'), "line 7: invalid JSON"),
    "no text": ("train_data", lines(GOOD, {"label": "red"}), "line 2: no field 'text' .*--text_field"),
    "text is a number": ("train_data", lines(GOOD, {"text": 3, "label": "a"}), "'text' is 3; expected a string"),
    "no label": ("val_data", lines(GOOD, {"text": "red"}), "line 2: no field 'label' or 'labels'"),
    "unknown label": ("val_data", lines(GOOD, {"text": "a", "label": "pink"}), r"'pink' \(line 2\)"),
    "mixed labels": ("train_data", lines(GOOD, {"text": "a", "label": ["red"]}), "line 2: labels are a list of labels"),
    "no tokens": ("train_data", lines(GOOD, {"text": "\u200b\u200d\u00ad", "label": "red"}), "line 2: .*no token"),
    "one class": ("train_data", lines(GOOD, GOOD), "all rows have the label 'red'; expected 2 or more"),
    "empty class": (
        "train_data",
        lines(*[{"text": "red", "labels": {"red": 1, "blue": 0}}] * 2),
        "classes without a training row: 'blue'",
    ),
    "other kind": ("val_data", lines({"text": "red", "labels": ["red"]}), "has several labels a row; .*one label"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_bad_files(toy_flags, tmp_path, case):
    flag, content, message = FILES[case]
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    flags = [*toy_flags, f"--{flag}", str(path)]  # the last one counts
    with pytest.raises(UserError, match=message) as error:
        train.main(flags)
    assert str(path) in str(error.value)
    assert not (tmp_path / "run").exists()


FLAGS = {  # case: (flags, what the message says)
    "missing file": (["--train_data", "nowhere.jsonl"], "--train_data nowhere.jsonl: no such file"),
    "no file given": (["--val_data", ""], "--val_data: no file given"),
    "batch of 0": (["--batch_size", "0"], "--batch_size: 0: expected a whole number at least 1"),
    "not a number": (
        ["--learning_rate", "fast"],
        "--learning_rate: 'fast': expected a number at least 0, or auto",
    ),
    "unknown flag": (["--batchsize", "3"], "unrecognized arguments: --batchsize 3"),
    "abbreviation": (["--batch", "3"], "unrecognized arguments: --batch 3"),
    "no such model": (["--model_name", "./nowhere"], r"--model_name \./nowhere: is no folder"),
    "no such built-in": (["--model_name", "builtin:bert"], "no such built-in model; there is minilm"),
    "too long": (["--max_length", "100"], "--max_length 100: .* takes at most 64 tokens"),
    "no room": (["--max_length", "4", "--max_tokens", "3"], "has 4 tokens, more than --max_tokens 3"),
    "unknown metric": (["--metric", "f2"], "--metric f2: not among the metrics of these rows: .*macro_f1"),
    "wrong loss": (["--loss", "bce"], "--loss bce: the rows have one label a row; expected ce or focal"),
    "alpha": (["--focal_alpha", "0.5"], "--focal_alpha: .*needs --loss focal"),
    "weights file": (
        ["--class_weights", "nowhere.json"],
        "--class_weights nowhere.json: expected none, balanced",
    ),
    "attention": (["--attention", "flash9"], "--attention flash9: "),
    "profile": (["--profile", "5"], "--profile 5: expected FIRST:LAST"),
    "preset": (["@presets/nowhere"], "presets/nowhere"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_bad_flags(toy_flags, tmp_path, case, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags, message = FLAGS[case]
    with pytest.raises(UserError, match=message):
        train.main([*toy_flags, *flags])
    assert not (tmp_path / "run").exists()


T5, CAUSAL, BERT = ["--architecture", "t5"], ["--architecture", "causal"], ["--architecture", "bert"]
SEVERAL = "red=red rose,green=red grass,blue=sea"
LANGUAGE = {  # case: (model, flags, what the message says)
    "a decoder for an encoder": ("llama", BERT, "is a decoder .llama., not an encoder: give --architecture causal"),
    "an encoder for a T5": ("bert", T5, "is an encoder .bert., not an encoder-decoder: give --architecture bert"),
    "a T5 for a decoder": ("t5", CAUSAL, "is an encoder-decoder .t5., not a decoder: give --architecture t5"),
    "generative": ("bert", ["--approach", "generative"], "is an encoder .bert., not a decoder"),
    "words of an encoder": ("bert", ["--head", "words"], "--head words: an encoder has no words to answer with"),
    "T5's own head": ("t5", [*T5, "--head", "model"], "--head model: is for --architecture bert"),
    "two answers": ("t5", [*T5, "--head", "words", "--t5_head", "encoder"], "--t5_head encoder has none; give one"),
    "not a T5": ("llama", [*CAUSAL, "--t5_head", "encoder"], "--t5_head encoder: is for --architecture t5, not causal"),
    "no text": ("t5", [*T5, "--prompt", "classify"], r"--prompt .classify.: holds \{text\} 0 times; expected once"),
    "no chat": ("llama", [*CAUSAL, "--chat"], "--chat: this tokenizer has no chat template"),
    "pairs": ("t5", [*T5, "--pair_field", "b"], "--pair_field: a prompt holds one text"),
    "no room": (
        "llama", [*CAUSAL, "--max_length", "4", "--prompt", "the {text} is on"],
        "--max_length 4 leaves no room for text: the prompt alone has 4 tokens",
    ),
    "words for T5 too": ("t5", [*T5, "--label_words", "red=pink,green=grass,blue=sea"], "does not know 'pink'"),
    "a label without": ("t5", [*T5, "--label_words", "red=red,green=green"], "'blue' has no word; the labels are"),
    "one word twice": ("llama", [*CAUSAL, "--label_words", "red=sea,green=Sea,blue=ink"], "are the same tokens"),
    "no file": ("t5", [*T5, "--label_words", "nowhere.json"], "--label_words nowhere.json: expected NAME=WORD"),
    "smoothing": ("t5", [*T5, "--word_loss", "vocab", "--label_smoothing", "0.1"], "nothing for --label_smoothing"),
    "no words": ("bert", ["--word_loss", "vocab"], "--word_loss vocab: needs label words for an answer"),
    "packing": ("t5", [*T5, "--packing", "on"], "--packing on: t5 with this head"),
    "float16": ("t5", [*T5, "--amp", "fp16"], "--amp fp16: T5's activations overflow float16"),
    "a budget below row and words": (
        "llama", [*CAUSAL, "--max_length", "20", "--max_tokens", "16", "--label_words", SEVERAL],
        "has 17 tokens, more than --max_tokens 16",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def language_models(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny decoder and a tiny encoder-decoder."""
    folder = tmp_path_factory.mktemp("language")
    return {family: save_language_model(folder / family, family) for family in ("llama", "t5")}


@pytest.mark.parametrize("case", LANGUAGE)
def test_bad_flags_of_language_models(toy_flags, language_models, tiny_bert, tmp_path, case):
    family, flags, message = LANGUAGE[case]
    model = {**language_models, "bert": tiny_bert}[family]
    with pytest.raises(UserError, match=message):
        train.main([*toy_flags, "--model_name", model, *flags])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family, flags", [("t5", T5), ("llama", CAUSAL)])
def test_a_text_without_a_token_in_a_prompt(toy_flags, language_models, tmp_path, family, flags):
    """The prompt has tokens enough; the text must have some of its own."""
    for text in ("  ", "\u200b\u00ad"):
        write_jsonl(tmp_path / "bad.jsonl", [GOOD, {"text": text, "label": "blue"}])
        with pytest.raises(UserError, match=r"line 2: .*(no token|is empty)"):
            train.main(
                [
                    *toy_flags,
                    "--model_name",
                    language_models[family],
                    *flags,
                    "--train_data",
                    str(tmp_path / "bad.jsonl"),
                ]
            )


def test_a_validation_row_over_the_budget_is_no_cut_of_its_own(toy_flags, tmp_path):
    write_jsonl(tmp_path / "val.jsonl", [GOOD, {"text": "red " * 40, "label": "red"}])
    with pytest.raises(UserError, match=r"val.jsonl: row 1 has 32 tokens, more than --max_tokens 30"):
        train.main([*toy_flags, "--val_data", str(tmp_path / "val.jsonl"), "--max_tokens", "30"])
    assert not (tmp_path / "run").exists()


def test_a_model_that_cannot_be_reached(toy_flags, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--model_name nobody/nothing: its configuration cannot be loaded"):
        train.main([*toy_flags, "--model_name", "nobody/nothing"])


def test_bad_weights_files(toy_flags, tmp_path):
    path = tmp_path / "weights.json"
    for content, message in (
        ({"red": 1, "green": 1}, "'blue' is missing"),
        ({"red": 1, "green": 1, "blue": 1, "pink": 2}, "'pink' is not a label"),
        ({"red": 1, "green": 0, "blue": 1}, "weight of 'green' is 0; expected a number above 0"),
        ([1, 2], r"is \[1, 2\]; expected \{name: weight\}"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            train.main([*toy_flags, "--class_weights", str(path)])


def test_all_bad_rows_are_reported_together(toy_flags, tmp_path):
    write_jsonl(tmp_path / "bad.jsonl", [GOOD, *[{"label": "red"}] * 25])
    with pytest.raises(UserError) as error:
        train.main([*toy_flags, "--train_data", str(tmp_path / "bad.jsonl")])
    told = str(error.value).splitlines()
    assert "25 bad rows" in told[0]
    assert len(told) == 22
    assert told[-1].strip() == "... and 5 more"


def test_a_run_is_never_overwritten(toy_flags, tmp_path):
    train.main(toy_flags)
    with pytest.raises(UserError, match="holds a finished run"):
        train.main(toy_flags)


def shell(flags: list[str], **kwargs) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, **kwargs)


def test_the_shell_sees_one_line_and_a_status(toy_flags):
    done = shell([*toy_flags, "--batch_size", "0"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: argument --batch_size: 0: expected")
    assert len(done.stderr.strip().splitlines()) == 1


LIMITED = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = sys.argv[2:]
sys.path.insert(0, ".")
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("limit", [30_000, 60_000])
def test_a_full_disk_while_saving(toy_flags, tmp_path, limit):
    """A file may not grow past `limit` bytes: as on a full disk, the model or its optimiser cannot be saved."""
    train.main(
        [*toy_flags, "--output_dir", str(tmp_path / "warm")]
    )  # the token cache is written without a limit
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "train.py", *toy_flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written: the disk is full" in done.stderr
    assert "--output_dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    assert not list(tmp_path.glob("run/**/*.part*"))


def test_rows_of_toy_files_are_good(toy_flags):
    """The check of the checks: without a fault nothing is refused."""
    assert train.main(toy_flags)["n"] == len(toy_rows(48, 1))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lora_targets", "q"], "--lora_targets: needs --lora_rank"),
        (["--lora_b_ratio", "4"], "--lora_b_ratio: needs --lora_rank"),
        (
            ["--approach", "encoder", "--architecture", "t5"],
            "--approach encoder is --architecture bert, not t5",
        ),
        (["--label_words", "red=a"], "--label_words: this model answers with a head"),
    ],
)
def test_flags_that_do_not_belong_together(toy_flags, flags, message):
    with pytest.raises(UserError, match=message):
        train.main([*toy_flags, *flags])
