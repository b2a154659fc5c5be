"""Tiny models and rows made on the spot: what the benches of reliability run the real loops on, in seconds."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

COLOURS = {"red": "rose cherry ruby brick", "green": "grass leaf lime moss", "blue": "sky sea ink jeans"}
FILLER = "the a of and to in it is was for on with as his her they at be this from".split()  # noqa: SIM905
WORDS = sorted({word for words in COLOURS.values() for word in words.split()} | {*FILLER, *COLOURS})
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LOOPS = ("train", "rank", "ppo", "feedback")
SCRIPTS = {"train": "train", "rank": "rank_train", "ppo": "ppo", "feedback": "ppo"}
NUM_ROWS = {"train": 96, "val": 32, "test": 24}
# saves, evaluations and records out of step with one another, so that a kill finds each alone; dropout on
STEPS = {"log_steps": 2, "save_steps": 3, "eval_steps": 4, "max_steps": 22}


def save_model(folder: Path) -> None:
    """Write a BERT of two layers of width 16 with random weights, and a tokenizer of WORDS."""
    torch.manual_seed(0)
    vocab = {word: k for k, word in enumerate([*SPECIAL, *WORDS])}
    size = {"vocab_size": len(vocab), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.2}
    AutoModel.from_config(BertConfig(**size)).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names).save_pretrained(folder)


def text_rows(num_rows: int, seed: int) -> list[dict]:
    """Rows whose label is the colour of the one coloured word in them."""
    rng, rows = random.Random(seed), []
    for _ in range(num_rows):
        label = rng.choice(sorted(COLOURS))
        words = [rng.choice(COLOURS[label].split()), *rng.choices(FILLER, k=rng.randint(1, 12))]
        rows.append({"text": " ".join(rng.sample(words, len(words))), "label": label})
    return rows


def rank_rows(num_rows: int, seed: int) -> list[dict]:
    """Questions whose best candidate names the colour that stands in the context."""
    rng, rows = random.Random(seed), []
    for _ in range(num_rows):
        colours = rng.sample(sorted(COLOURS), rng.randint(2, 3))
        words = [rng.choice(colours), *rng.choices(FILLER, k=rng.randint(1, 9))]
        row = {"question": "is it this", "context": " ".join(rng.sample(words, len(words)))}
        row["candidates"] = [" ".join([*rng.choices(FILLER, k=rng.randint(0, 2)), c]) for c in colours]
        rows.append(row | {"rewards": [float(colour in words) for colour in colours]})
    return rows


def feedback_rows(num_rows: int, seed: int) -> list[dict]:
    """A prediction of any colour and what somebody thought of it; every third without a true label."""
    rng, rows = random.Random(seed), []
    for k, row in enumerate(text_rows(num_rows, seed)):
        said = {"text": row["text"], "predicted_labels": rng.choice(sorted(COLOURS))}
        known = {} if k % 3 == 1 else {"true_labels": row["label"]}
        rows.append(said | {"feedback": round(rng.random(), 3)} | known)
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_inputs(folder: Path) -> None:
    """The model and the rows of all loops, but for the runs that ppo and feedback start from (see policy_of)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "tiny")
    for seed, (name, size) in enumerate(NUM_ROWS.items()):
        write_rows(folder / f"text-{name}.jsonl", text_rows(size, seed))
        write_rows(folder / f"rank-{name}.jsonl", rank_rows(size, seed))
    write_rows(folder / "feedback.jsonl", feedback_rows(60, 5))


def policy_of(loop: str) -> str:
    """The loop whose finished run this one starts from, "" for none."""
    return {"ppo": "rank", "feedback": "train"}.get(loop, "")


def flags_of(loop: str, folder: Path, **values) -> list[str]:
    """Flags, but for --output_dir, of a run of a second in write_inputs' folder; a policy is FOLDER/policy-LOOP."""
    kind = "rank" if loop in ("rank", "ppo") else "text"
    flags = {"val_data": folder / f"{kind}-val.jsonl", "cache_dir": folder / "cache", "amp": "off"} | STEPS
    flags |= {"max_tokens": 200, "batch_size": 12, "epochs": 9, "learning_rate": "1e-2"}
    if loop == "feedback":
        flags |= {"feedback": folder / "feedback.jsonl"}
    else:
        flags |= {"train_data": folder / f"{kind}-train.jsonl"}
    if policy_of(loop):
        flags |= {"policy": folder / f"policy-{policy_of(loop)}"}
    else:
        flags |= {"model_name": folder / "tiny", "max_length": 40}
    if loop == "train":
        flags |= {"ema": 0.9, "test_data": folder / "text-test.jsonl"}
    if loop == "ppo":
        flags |= {"rollout_size": 24, "kl_target": 1e-3}
    return [part for name, value in (flags | values).items() for part in (f"--{name}", str(value))]
