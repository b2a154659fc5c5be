"""One batch, cut into 1, 2, 4 and 8 micro-batches: the gradient norm and the loss that are logged, theirs and ours.

    python -m bench.gradient
    python -m bench.gradient --layers 6 --rows 64

The same rows, weights and first optimiser step in float32 without dropout, so that one number is right. The Trainer's
sequence classifiers average each micro-batch and their gradients are added up (transformers issue 47688); train.py sums
over rows and divides once. The last line is one JSON object. Needs requirements-bench.txt (accelerate) for the Trainer.
"""

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path

from bench.results import print_result
from core.errors import run_main
from core.results_table import format_table

SPLITS = (1, 2, 4, 8)


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--train_data", default="rows/docstrings/train.jsonl", metavar="FILE", help="of which the first are the batch")
    flag("--rows", type=int, default=32, help="rows of the batch, a multiple of 8")
    flag("--model_name", default="builtin:minilm")
    flag("--layers", type=int, default=3, help="layers of it that are used")
    flag("--max_length", type=int, default=128)
    return parser.parse_args(argv)
# fmt: on


def first_layers(args, folder: str) -> str:
    """A model folder of the first layers, dropout 0."""
    import torch
    from transformers import AutoConfig, AutoModel

    from archs.dropout import set_dropout
    from archs.loading import load_tokenizer, resolve_name

    source = resolve_name(args.model_name)
    config = AutoConfig.from_pretrained(source, num_hidden_layers=args.layers)
    set_dropout(config, 0.0)
    torch.manual_seed(0)
    AutoModel.from_pretrained(source, config=config, dtype=torch.float32).save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    return folder


def theirs(args, model_folder: str, data: str, split: int) -> tuple[float, float]:
    """(gradient norm, loss) that the Trainer logs for one step of `split` accumulation steps."""
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from archs.loading import load_tokenizer
    from core.cache import RowSource
    from core.rows import RowFormat
    from core.tokens import Encoder

    tokenizer = load_tokenizer(model_folder)
    with tempfile.TemporaryDirectory() as temp:
        source = RowSource(Encoder(tokenizer, args.max_length, "head", pair=False), RowFormat(), temp)
        rows = source.open(data, "--train_data")
        items = [
            {
                "input_ids": rows.ids[rows.starts[k] : rows.starts[k + 1]].tolist(),
                "labels": int(rows.labels[k]),
            }
            for k in range(len(rows))
        ]
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            model_folder, num_labels=len(rows.label_names), problem_type="single_label_classification"
        )
        options = TrainingArguments(
            output_dir=f"{temp}/out",
            max_steps=1,
            per_device_train_batch_size=args.rows // split,
            gradient_accumulation_steps=split,
            max_grad_norm=1e9,  # logged, never reached
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        )
        trainer = Trainer(
            model=model,
            args=options,
            train_dataset=items,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        logged = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    return float(logged["grad_norm"]), float(logged["loss"])


def ours(args, model_folder: str, data: str, max_tokens: int) -> tuple[float, float, int]:
    """(gradient norm, loss, cuts) of train.py's first step with this budget."""
    import train
    from core.plan import Plan

    counted, cuts_of = [], Plan.cuts

    def counting(self, *call):
        counted.append(cuts_of(self, *call))
        return counted[-1]

    Plan.cuts = counting
    try:
        with tempfile.TemporaryDirectory() as temp:
            flags = [
                "--train_data",
                data,
                "--val_data",
                data,
                "--model_name",
                model_folder,
                "--max_steps",
                "1",
            ]
            flags += ["--batch_size", str(args.rows), "--max_length", str(args.max_length), "--amp", "off"]
            flags += ["--max_tokens", str(max_tokens), "--max_grad_norm", "0", "--log_steps", "1"]
            flags += ["--output_dir", f"{temp}/run", "--cache_dir", f"{temp}/cache"]
            train.main(flags)
            lines = Path(temp, "run", "training_logs.jsonl").read_text().splitlines()
            record = next(r for r in map(json.loads, lines) if "train/loss" in r)
    finally:
        Plan.cuts = cuts_of
    return record["train/grad_norm"], record["train/loss"], len(counted[0])


def main(argv=None) -> dict:
    """Both, at every split; prints the table."""
    args = parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory() as temp:
        data = str(Path(temp) / "train.jsonl")
        with open(args.train_data, encoding="utf-8") as file:
            Path(data).write_text("".join(islice(file, args.rows)), encoding="utf-8")
        folder = first_layers(args, f"{temp}/model")
        lengths = token_lengths(args, folder, data)
        for split in SPLITS:
            norm, loss = theirs(args, folder, data, split)
            budget = max(max(lengths), -(-sum(lengths) // split))
            our_norm, our_loss, cuts = ours(args, folder, data, budget)
            row = {"trainer_grad_norm": norm, "trainer_loss": loss, "bareloop_cuts": cuts}
            found.append((f"{split}", row | {"bareloop_grad_norm": our_norm, "bareloop_loss": our_loss}))
    columns = list(found[0][1])
    print(f"\nmicro-batches a step ({args.rows} rows, {args.layers} layers, float32, dropout 0)")
    print(format_table(found, columns), "\n")
    return print_result(args, found=dict(found))


def token_lengths(args, model_folder: str, data: str) -> list[int]:
    """Tokens of each row."""
    from archs.loading import load_tokenizer

    texts = [json.loads(line)["text"] for line in Path(data).read_text(encoding="utf-8").splitlines()]
    tokenizer = load_tokenizer(model_folder)
    return [len(ids) for ids in tokenizer(texts, truncation=True, max_length=args.max_length)["input_ids"]]


if __name__ == "__main__":
    run_main(main)
