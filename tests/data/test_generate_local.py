"""data/generate_local.py: a tiny decoder answers, alone as in a batch, with and without a chat template."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from core.errors import UserError
from data import generate
from data.generate_local import LocalModel
from data.generate_prompts import Prompt
from tests.conftest import language_tokenizer, save_language_model, save_tiny, toy_rows, write_jsonl
from tests.data.language_server import made_rows

TEMPLATE = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}{% if add_generation_prompt %}the {% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save_language_model(tmp_path_factory.mktemp("local") / "tiny", "llama")


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("local") / "chat"
    save_language_model(path, "llama")
    tokenizer = language_tokenizer("llama")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    return str(path)


def prompt(text: str, seed: int = 0) -> Prompt:
    return Prompt("red", 0, ("red",), [{"role": "user", "content": text}], "id", seed)


def model(folder: str, temperature: float = 0.0, tokens: int = 6, batch: int = 4) -> LocalModel:
    return LocalModel(
        folder, "tiny", {"temperature": temperature, "top_p": 1.0, "max_tokens": tokens}, batch, "cpu"
    )


def greedy(local: LocalModel, text: str, special: bool, tokens: int) -> str:
    """The most probable words one by one, without a cache and without padding."""
    ids = local.tokenizer(text, add_special_tokens=special)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            best = int(local.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if best in (local.tokenizer.eos_token_id, local.tokenizer.pad_token_id):
            break
        ids.append(best)
    return local.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_batch_answers_as_each_alone_would(folder):
    local = model(folder)
    texts = ["rose", "the sea of her jeans", "a moss and the leaf of it in"]
    found = local.answers([prompt(text) for text in texts])
    assert [row["answer"] for row in found] == [greedy(local, text, True, 6) for text in texts]


def test_a_chat_template_is_used_and_adds_no_special_tokens_twice(chat_folder):
    local = model(chat_folder)
    assert local.is_chat
    found = local.answers([prompt("rose"), prompt("sea ink")])
    assert [row["answer"] for row in found] == [
        greedy(local, text, False, 6) for text in ("rose the ", "sea ink the ")
    ]
    assert [row["prompt_tokens"] for row in found] == [2, 3]


def test_tokens_are_counted_without_padding(folder):
    found = model(folder).answers([prompt("rose"), prompt("the sea of her jeans")])
    assert [row["prompt_tokens"] for row in found] == [2, 6]  # [CLS] in front
    assert all(row["completion_tokens"] == 6 or row["finish_reason"] == "stop" for row in found)


def test_an_end_token_ends_an_answer_and_the_limit_cuts_it(folder):
    local = model(folder)
    local.model.generation_config.eos_token_id = [3]
    local.model.generate = lambda **more: torch.cat(
        [more["input_ids"], torch.tensor([[7, 8, 3, 0, 0, 0], [7, 8, 9, 7, 8, 9]])], dim=1
    )
    whole, cut = local.answers([prompt("rose"), prompt("sea")])
    assert (whole["finish_reason"], whole["completion_tokens"]) == ("stop", 3)
    assert (cut["finish_reason"], cut["completion_tokens"]) == ("length", 6)
    assert whole["answer"] == local.tokenizer.decode([7, 8])


def test_the_same_seed_draws_the_same_answer_and_another_one_another(folder):
    local = model(folder, temperature=2.0, tokens=12)
    first, again, other = (local.answers([prompt("rose", seed)])[0]["answer"] for seed in (1, 1, 2))
    assert first == again != other


def test_a_plain_text_stops_at_the_mark(folder, monkeypatch):
    local = model(folder, tokens=40)
    text = "a moss and the leaf of it in"
    whole = greedy(local, text, True, 40).split()
    monkeypatch.setattr("data.generate_local.END", whole[3])
    (found,) = local.answers([prompt(text)])
    place = next(k for k, word in enumerate(whole, 1) if whole[3] in word)
    assert found["answer"].split() == whole[:place]
    assert (found["completion_tokens"], found["finish_reason"]) == (place, "stop")


def test_all_are_asked_in_batches_and_recorded(folder):
    recorded = []
    with tqdm(disable=True) as bar:
        failed = model(folder, batch=2).ask_all(
            [prompt(text) for text in ("rose", "sea", "moss")], lambda *both: recorded.append(both), bar
        )
    assert failed == []
    assert [len(prompts) for prompts, _ in recorded] == [2, 1]


def test_a_prompt_that_does_not_fit_is_said(folder):
    with pytest.raises(
        UserError, match="takes 128 tokens; a prompt has 2 and asks for 200: give fewer --shots"
    ):
        model(folder, tokens=200).answers([prompt("rose")])


def test_an_encoder_generates_nothing(tmp_path):
    with pytest.raises(UserError, match="is an encoder"):
        model(save_tiny(tmp_path / "bert"))


@pytest.mark.parametrize("kind", ["folder", "chat_folder"])
def test_rows_of_a_local_model(kind, request, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [*toy_rows(40), {"text": "the " * 60, "label": "red"}])
    flags = ["--train_data", train, "--output", str(tmp_path / "out.jsonl"), "--device", "cpu"]
    flags += ["--shots", "1", "--temperature", "1.5", "--rounds", "2"]
    flags += ["--local", request.getfixturevalue(kind), "--rows_per_label", "2", "--max_new_tokens", "12"]
    result = generate.main(flags)
    rows = made_rows(tmp_path)
    assert result["rows"] == len(rows)
    assert result["completion_tokens"] > 0
    assert {row["generated"]["model"] for row in rows} <= {"tiny", "chat"}
    before = json.dumps(rows)
    again = generate.main(flags)
    assert again == result
    assert json.dumps(made_rows(tmp_path)) == before


@pytest.mark.slow  # a server of its own
def test_transformers_serve_answers(chat_folder, tmp_path):
    """A real server of real software with the tiny model; its packages are none of ours."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    train = write_jsonl(tmp_path / "train.jsonl", [*toy_rows(40), {"text": "the " * 60, "label": "red"}])
    script = Path(sys.executable).with_name("transformers")
    command = [str(script), "serve", chat_folder, "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            flags = ["--train_data", train, "--output", str(tmp_path / "out.jsonl"), "--model", chat_folder]
            flags += [
                "--base_url",
                f"http://127.0.0.1:{port}/v1",
                "--rows_per_label",
                "2",
                "--max_new_tokens",
                "12",
            ]
            result = generate.main([*flags, "--shots", "1", "--max_retries", "8"])  # until it has started
        finally:
            server.terminate()
    assert result["failed_requests"] == 0
    assert result["answers"] >= 6
    assert result["completion_tokens"] > 0
    assert result["answers_of_unknown_tokens"] == 0
