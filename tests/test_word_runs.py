"""Whole runs of decoders and encoder-decoders: they learn, predict, resume exactly, and transformers reads them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import predict
import train
from core.errors import UserError
from core.memory import choose_amp
from tests.conftest import language_tokenizer, save_language_model, toy_rows, write_jsonl
from tests.helpers import logs, replaced, same, weights, word_scores

SEVERAL = ["--label_words", "red=red rose,green=red grass moss,blue=sea"]  # two share their first token
RUNS = {  # name: (model, flags)
    "causal": ("llama", ["--approach", "generative"]),
    "causal, several": ("llama", ["--architecture", "causal", *SEVERAL, "--prompt", "the {text} is on"]),
    "causal, chat": ("gemma2", ["--architecture", "causal", "--chat"]),
    "causal, last": ("llama", ["--architecture", "causal", "--head", "last"]),
    "t5": ("t5", ["--architecture", "t5"]),
    "t5, several": ("t5", ["--architecture", "t5", *SEVERAL, "--t5_loss", "vocab"]),
    "t5, encoder": ("t5", ["--architecture", "t5", "--t5_head", "encoder"]),
}
WITH_WORDS = [name for name in RUNS if name not in ("causal, last", "t5, encoder")]
TURN = "{{ bos_token }}at {{ messages[0].content }} on{% if add_generation_prompt %} it{{ '\\n' }}{% endif %}"


@pytest.fixture(scope="module")
def flags_of(tmp_path_factory):
    """Call with a name of RUNS: flags of a run of a second or two."""
    folder, models = tmp_path_factory.mktemp("runs"), {}
    data = [
        write_jsonl(folder / f"{seed}.jsonl", toy_rows(size, seed)) for seed, size in enumerate((160, 48))
    ]

    def flags(name: str) -> list[str]:
        family, extra = RUNS[name]
        if family not in models:
            size = {"initializer_range": 0.1} if family in ("llama", "gemma2") else {}
            models[family] = save_language_model(folder / family, family, **size)
            tokenizer = language_tokenizer(family)
            tokenizer.chat_template = TURN
            tokenizer.save_pretrained(models[family])
        flags = ["--model_name", models[family], "--train_data", data[0], "--val_data", data[1], *extra]
        flags += ["--cache_dir", str(folder / "cache"), "--batch_size", "16", "--learning_rate", "1e-2"]
        return [*flags, "--amp", "off", "--max_length", "40", "--max_tokens", "400", "--dropout", "0"]

    return flags


@pytest.fixture(scope="module")
def finished(flags_of, tmp_path_factory):
    """Call with a name of RUNS: the folder of a finished run and its headline metrics."""
    folder, done = tmp_path_factory.mktemp("finished"), {}

    def run(name: str) -> tuple[Path, dict]:
        if name not in done:
            flags = [*flags_of(name), "--epochs", "8", "--output_dir", str(folder / name)]
            done[name] = train.main(flags)
        return folder / name, done[name]

    return run


def texts() -> list[str]:
    """Of the validation rows."""
    return [row["text"] for row in toy_rows(48, 1)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_and_predicts_as_it_was_evaluated(finished, name):
    run, metrics = finished(name)
    assert metrics["accuracy"] > 0.75  # chance is 1/3
    predictor = predict.load(run)
    logits = np.load(run / "validation" / "logits.npy")
    np.testing.assert_allclose(predictor.scores(texts()), logits, rtol=1e-5, atol=1e-5)
    one_by_one = np.concatenate([predictor.scores([text]) for text in texts()[:6]])
    np.testing.assert_allclose(one_by_one, logits[:6], rtol=1e-5, atol=1e-5)
    rows = [json.loads(line) for line in (run / "validation" / "predictions.jsonl").read_text().splitlines()]
    assert [row["label"] for row in predictor(texts())] == [row["label"] for row in rows]
    with pytest.raises(UserError, match="empty after tokenisation"):
        predictor(["red", " "])


@pytest.mark.parametrize("name", WITH_WORDS)
def test_transformers_says_the_same_of_a_saved_model(finished, name):
    """The folder loads as a language model; the prompt and words are in bareloop.json."""
    run, _ = finished(name)
    about = json.loads((run / "best_model" / "bareloop.json").read_text())
    auto = AutoModelForSeq2SeqLM if about["architecture"] == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(run / "best_model")
    tokenizer = AutoTokenizer.from_pretrained(run / "best_model")
    prompt = about["prompt"]
    strings = [f"{prompt['before']}{text}{prompt['after']}" for text in texts()[:5]]
    rows = tokenizer(strings, add_special_tokens=prompt["add_special"])["input_ids"]
    found = word_scores(model, rows, about["answers"])
    logits = np.load(run / "validation" / "logits.npy")[:5]
    np.testing.assert_allclose(found.numpy(), logits, rtol=1e-5, atol=1e-5)


def test_what_the_flags_mean_is_in_the_record(finished):
    record = json.loads((finished("causal")[0] / "run.json").read_text())
    assert record["model"]["architecture"] == "causal"
    assert record["model"]["head"] == "words"
    assert record["loss"] == "vocab"
    assert record["model"]["prompt"]["after"] == "\nAnswer:"
    chat = json.loads((finished("causal, chat")[0] / "run.json").read_text())["model"]["prompt"]
    assert chat == {
        "before": "[CLS]at ",
        "after": " on it\n",
        "add_special": False,
        "is_open": True,
        "lead": "",
    }
    record = json.loads((finished("t5")[0] / "run.json").read_text())
    assert (record["model"]["prompt"]["before"], record["loss"]) == ("classify: ", "ce")
    assert json.loads((finished("t5, several")[0] / "run.json").read_text())["loss"] == "vocab"


class Stopped(Exception):
    """What on_eval raises to end a run in the middle."""


@pytest.mark.parametrize("name", ["causal, several", "t5"])
def test_resume_is_bitwise_exact(flags_of, tmp_path, name):
    flags = replaced(flags_of(name), epochs="1", dropout="0.1", eval_steps="3", save_steps="2")
    straight = train.main(replaced(flags, output_dir=tmp_path / "straight"))["run"]
    stopped = str(tmp_path / "stopped")

    def on_eval(step, _):
        raise Stopped

    with pytest.raises(Stopped):
        train.main(replaced(flags, output_dir=stopped), on_eval)
    assert train.main(["--resume", stopped])["run"] == stopped
    assert same(weights(straight), weights(stopped))
    assert same(weights(straight, "best_model"), weights(stopped, "best_model"))
    assert logs(straight) == logs(stopped)
    for file in ("metrics.json", "predictions.jsonl"):
        assert Path(straight, "validation", file).read_text() == Path(stopped, "validation", file).read_text()


@pytest.mark.parametrize("name, other", [("causal", "causal, last"), ("t5", "t5, encoder")])
def test_several_labels_a_row_need_a_head(flags_of, tmp_path, name, other):
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(48, 2, "list"))
    several = [
        "--train_data",
        data,
        "--val_data",
        data,
        "--output_dir",
        str(tmp_path / "run"),
        "--epochs",
        "1",
    ]
    with pytest.raises(UserError, match=r"several labels each, and a label word answers with one: give --"):
        train.main([*flags_of(name), *several])
    assert not (tmp_path / "run").exists()
    assert train.main([*flags_of(other), *several])["n"] == 48
    assert "labels" in predict.load(tmp_path / "run")(["the red sea"])[0]


def test_t5_in_float16_must_be_forced(flags_of, tmp_path):
    flags = [*replaced(flags_of("t5"), amp="fp16", max_steps="2", output_dir=tmp_path / "run")]
    with pytest.raises(UserError, match=r"--amp fp16: T5's activations overflow float16; .* --force_fp16"):
        train.main(flags)
    run = train.main([*flags, "--force_fp16"])["run"]
    assert predict.load(run, amp="run").amp_dtype is torch.float16
    with pytest.raises(UserError, match="--amp fp16"):
        predict.load(run, amp="fp16")


def test_the_type_of_autocast(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_amp("fp16", cuda, "t5", True) is choose_amp("fp16", cuda, "causal") is torch.float16
    for has, wanted in ((True, (torch.bfloat16,) * 3), (False, (torch.float16, torch.float16, None))):
        monkeypatch.setattr("core.memory.supports_bf16", lambda device, has=has: has)
        assert tuple(choose_amp("auto", cuda, kind) for kind in ("bert", "causal", "t5")) == wanted
    assert choose_amp("auto", cpu, "t5") is None
