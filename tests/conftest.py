"""What the tests share: tiny models of several families, a learnable toy task, files of rows. No downloads."""

import contextlib
import json
import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from archs.dropout import MASKS

COLOURS = {"red": "rose cherry ruby brick", "green": "grass leaf lime moss", "blue": "sky sea ink jeans"}
FILLER = "the a of and to in it is was for on with as his her they at be this from".split()  # noqa: SIM905
WORDS = sorted({word for words in COLOURS.values() for word in words.split()} | set(FILLER) | set(COLOURS))


def tiny_tokenizer(family: str = "bert") -> PreTrainedTokenizerFast:
    """A word-level tokenizer over WORDS with the special tokens of a family."""
    if family == "roberta":
        special = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
        special |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
        names, around = (
            ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        )
    else:
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
        special |= {"mask_token": "[MASK]"}
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        around = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    vocab = {word: k for k, word in enumerate([*names, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token=special["unk_token"]))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, vocab[name]) for name in (special["cls_token"], special["sep_token"])]
    inner.post_processor = processors.TemplateProcessing(
        single=around[0], pair=around[1], special_tokens=ends
    )
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if family == "bert" else [])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=64, model_input_names=inputs, **special
    )


def tiny_config(family: str, **changes):
    """A configuration of two layers of width 16."""
    size = {"vocab_size": len(WORDS) + 5, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.2}
    if family == "distilbert":
        size = {"vocab_size": len(WORDS) + 5, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
        size |= {"max_position_embeddings": 64, "initializer_range": 0.2}
    if family in ("roberta", "xlm-roberta", "mpnet"):
        size |= {"max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if family == "deberta-v2":
        size |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    if family == "modernbert":
        size |= {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}
    kind = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "deberta-v2": "DebertaV2"}
    kind |= {"mpnet": "MPNet", "modernbert": "ModernBert", "electra": "Electra", "albert": "Albert"}
    kind |= {"xlm-roberta": "XLMRoberta"}
    return getattr(transformers, f"{kind[family]}Config")(**(size | changes))


def save_tiny(folder: Path, family: str = "bert", seed: int = 0, **changes) -> str:
    """Write a tiny model with its tokenizer; the folder's name serves as --model_name."""
    torch.manual_seed(seed)
    AutoModel.from_config(tiny_config(family, **changes)).save_pretrained(folder)
    tiny_tokenizer("roberta" if family in ("roberta", "mpnet") else "bert").save_pretrained(folder)
    return str(folder)


LANGUAGE_MODELS = ("llama", "gpt2", "gemma2", "t5", "bart")


def tiny_language_model(family: str, seed: int = 0, **changes):
    """A decoder or an encoder-decoder of two layers of width 16 over tiny_tokenizer's words."""
    size = {"vocab_size": len(WORDS) + 5, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    deep = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    deep |= {"num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.2}
    if family == "gpt2":
        deep = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.2}
    if family == "gemma2":
        deep |= {
            "head_dim": 8,
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 30.0,
        }
    if family in ("mistral", "gemma3"):
        deep |= {"sliding_window": 8}
    if family == "gemma3":
        deep |= {"head_dim": 8, "query_pre_attn_scalar": 8}
        deep |= {"layer_types": ["sliding_attention", "full_attention"]}
    if family == "t5":
        deep = {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "initializer_factor": 1.0,
        }
        deep |= {"decoder_start_token_id": 0, "relative_attention_num_buckets": 8}
    if family == "bart":
        deep = {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 32,
            "init_std": 0.2,
        }
        deep |= {"decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        deep |= {"max_position_embeddings": 128, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    kind = {"llama": "Llama", "gpt2": "GPT2", "gemma2": "Gemma2", "t5": "T5", "bart": "Bart"}
    kind |= {"qwen2": "Qwen2", "mistral": "Mistral", "gemma3": "Gemma3Text"}
    config = getattr(transformers, f"{kind[family]}Config")(**(size | deep | changes))
    torch.manual_seed(seed)
    auto = AutoModelForSeq2SeqLM if family in ("t5", "bart") else AutoModelForCausalLM
    return auto.from_config(config)


def language_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """tiny_tokenizer's words; a decoder's puts [CLS] in front, T5's [SEP] behind."""
    tokenizer = tiny_tokenizer()
    around = "$A [SEP]" if family in ("t5", "bart") else "[CLS] $A"
    name = around.split()["[" not in around.split()[0]]
    ends = [(name, tokenizer.convert_tokens_to_ids(name))]
    inner = tokenizer.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=ends)
    special = {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )


def save_language_model(folder: Path, family: str, seed: int = 0, **changes) -> str:
    """Write a tiny decoder or encoder-decoder with its tokenizer; returns the folder."""
    tiny_language_model(family, seed, **changes).save_pretrained(folder)
    language_tokenizer(family).save_pretrained(folder)
    return str(folder)


def toy_rows(num_rows: int, seed: int = 0, kind: str = "one") -> list[dict]:
    """Rows whose label is the colour of the one coloured word in them (kind one), or the colours of up to two."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        chosen = rng.sample(sorted(COLOURS), 1 if kind == "one" else rng.randint(0, 2))
        words = [rng.choice(COLOURS[colour].split()) for colour in chosen]
        words += rng.choices(FILLER, k=rng.randint(1, 12))
        rng.shuffle(words)
        row = {"text": " ".join(words)}
        if kind == "one":
            row["label"] = chosen[0]
        elif kind == "list":
            row["labels"] = sorted(chosen)
        else:
            row["labels"] = {colour: int(colour in chosen) for colour in COLOURS}
        rows.append(row)
    return rows


def rank_rows(num_rows: int, seed: int = 0, num_candidates: int = 0, longest: int = 9) -> list[dict]:
    """Questions whose best candidate names the colour that stands in the context, of 2 to longest + 1 words.

    num_candidates: 2 or 3; 0: either, and now and then a second candidate that is half right.
    """
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        colours = rng.sample(sorted(COLOURS), num_candidates or rng.randint(2, 3))
        words = [colours[0], *rng.choices(FILLER, k=rng.randint(1, longest))]
        rng.shuffle(words)
        candidates = [" ".join([*rng.choices(FILLER, k=rng.randint(0, 2)), colour]) for colour in colours]
        rewards = [1.0] + [0.0] * (len(colours) - 1)
        if not num_candidates and rng.random() < 0.3:
            rewards[1] = 0.5
        order = rng.sample(range(len(colours)), len(colours))
        row = {"question": "is it this", "context": " ".join(words), "kind": f"{len(colours)} of them"}
        row["candidates"] = [candidates[k] for k in order]
        rows.append(row | {"rewards": [rewards[k] for k in order]})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> str:
    """Write rows; returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pytest_configure(config) -> None:
    """Everything but `-m gpu` runs on the CPU, so that frozen curves are the same on every machine."""
    if "gpu" not in config.option.markexpr or "not gpu" in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ):  # a shell's job in the background: Ctrl-C is tested too
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_masks_of_another_test() -> None:
    """Dropout masks hang on the rows named last; a test that names none draws from torch's generator."""
    MASKS.begin_step(0)


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Of a ranking run: they take more time than everything else of a short one."""
    monkeypatch.setattr("core.rank_report.save_png", lambda figure, path: None)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *args: None)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> str:
    """A folder with a tiny BERT."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
def toy_files(tmp_path) -> dict[str, str]:
    """Files of single-label rows: train (96), val (48), test (48)."""
    sizes = {"train": 96, "val": 48, "test": 48}
    return {
        name: write_jsonl(tmp_path / f"{name}.jsonl", toy_rows(size, seed))
        for seed, (name, size) in enumerate(sizes.items())
    }


@pytest.fixture
def toy_flags(tiny_bert, toy_files, tmp_path) -> list[str]:
    """Flags of a training run of a few seconds: tiny BERT, toy rows, its own cache and run folder."""
    return [
        *("--model_name", tiny_bert, "--train_data", toy_files["train"], "--val_data", toy_files["val"]),
        *("--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")),
        *(
            "--batch_size",
            "16",
            "--epochs",
            "2",
            "--learning_rate",
            "1e-2",
            "--amp",
            "off",
            "--max_length",
            "32",
        ),
    ]


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file grows beyond limit bytes inside the block: a write there fails as on a full disk (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Killed(BaseException):
    """Stands for kill -9: what comes after it, clean-up included, does not happen."""


@contextlib.contextmanager
def killed_at(call: int) -> Iterator[list[str]]:
    """Let the call-th file system change of the block (from 0) and all later ones raise Killed.

    Yields the names of the changes that were made, so that a caller can stop when none was refused.
    """
    made = []

    def refusing(name: str):
        real = getattr(os, name)

        def change(*args, **kwargs):
            if len(made) >= call:
                raise Killed(name)
            made.append(name)
            return real(*args, **kwargs)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "fsync", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, refusing(name))
        yield made
