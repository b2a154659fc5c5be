"""Side by side: a ranker's training step with the question read once, read once for each candidate, and by
sentence-transformers' CrossEncoder with its listwise loss: the same backbone, rows, LoRA targets and precision, in
turn, each in a process of its own.

    python -m bench.rank --model_name FOLDER --data rows/finqa/train.jsonl          # real rows
    python -m bench.rank --model_name FOLDER --prefix 512 --suffix 8                # made-up ids: the token bound
    python -m bench.rank --shape llama-8b --prefix 1024 --suffix 32 --gradient_checkpointing --sides shared separate

A step is forward, backward and AdamW over the adapters and the head for --questions questions, one question a
micro-batch: a frozen base in bfloat16 under autocast, adapters and head in float32. Memory is the peak above what
stands before the first step. The token bound is the tokens of separate rows over those of shared ones,
K (P + S) / (P + K S). The last line is one JSON object. Needs requirements-bench.txt (sentence-transformers, peft) for
the CrossEncoder.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

from bench.lora import SHAPES
from bench.results import print_result
from bench.turns import in_turn, medians, ratio
from core.errors import UserError, run_main
from core.results_table import format_table

SIDES = ("shared", "separate", "crossencoder")
WARM_UP = 1  # steps that are not timed


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--model_name", default="", help="a decoder: folder or hub name")
    flag("--shape", choices=tuple(SHAPES), help="random weights of this shape instead")
    flag("--layers", type=int, default=0, help="only so many layers of a --shape; 0: all")
    flag("--data", default="", help="ranking rows")
    flag("--prefix", type=int, default=0, help="instead of --data: tokens of a made-up question")
    flag("--suffix", type=int, default=8, help="tokens of each made-up candidate")
    flag("--num_candidates", type=int, default=8, help="of a made-up question")
    flag("--max_length", type=int, default=2048, help="tokens of question, context and one candidate")
    flag("--questions", type=int, default=4, help="a step")
    flag("--steps", type=int, default=2, help=f"timed steps of a process, after {WARM_UP} that are not")
    flag("--repeats", type=int, default=3, help="processes of each side, in turn")
    flag("--rank", type=int, default=16)
    flag("--gradient_checkpointing", action="store_true")
    flag("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    flag("--worker", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)
# fmt: on


def made_up_rows(args, vocab_size: int) -> list:
    """(prefix ids, candidates' ids) of made-up questions, enough for all steps."""
    import numpy as np

    rng, rows = np.random.default_rng(0), []
    for _ in range(args.questions * (args.steps + WARM_UP)):
        branches = [rng.integers(5, vocab_size, args.suffix) for _ in range(args.num_candidates)]
        rows.append((rng.integers(5, vocab_size, args.prefix), branches))
    return rows


def read_questions(args) -> list[dict]:
    """The first rows of --data, enough for all steps."""
    from core.rows import BadRows, read_rows

    bad = BadRows(args.data)
    count = args.questions * (args.steps + WARM_UP)
    rows = [row for _, row in islice(read_rows(args.data, bad, "--data"), count)]
    bad.raise_if_any()
    if len(rows) < count:
        raise UserError(
            f"--data {args.data}: {len(rows)} rows, {count} are needed: lower --questions or --steps"
        )
    return rows


def our_side(args, device) -> tuple[Callable, list, object, float]:
    """(loss of one question, the questions, the model, the token bound): shared, or each candidate with a question of
    its own."""
    import numpy as np
    import torch
    from transformers import LlamaConfig

    from archs.build import build_model, recompute_activations
    from archs.loading import load_config, load_tokenizer, resolve_name
    from archs.lora import add_lora, find_targets
    from core.batches import to_device
    from core.rank_batches import make_rank_cut
    from core.rank_encoder import RankEncoder
    from core.rank_rows import parse_rank_row
    from losses.ranking import make_ranking_loss

    shared = args.worker == "shared"
    folder = "" if args.shape else resolve_name(args.model_name)
    if args.shape:
        config = LlamaConfig(
            **SHAPES[args.shape] | ({"num_hidden_layers": args.layers} if args.layers else {})
        )
    else:
        config = load_config(folder)
    options = {"architecture": "causal", "dtype": torch.bfloat16, "ranks": True, "pretrained": not args.shape}
    with torch.device(device):
        # separate rows by transformers' own attention, which here is the fastest for them
        model, _ = build_model(
            folder, config, ["score"], False, "mlp", "last", 0.0, "auto" if shared else "sdpa", **options
        )
    add_lora(model.inner, find_targets(model.inner, ""), args.rank, 2.0 * args.rank)
    model.to(device).train()
    if args.gradient_checkpointing:
        recompute_activations(model.inner)
    if args.prefix:
        rows = made_up_rows(args, config.vocab_size)
        rewards = [np.eye(len(own), dtype=np.float32)[0] for _, own in rows]
    else:
        read = [parse_rank_row(row) for row in read_questions(args)]
        coded = RankEncoder(load_tokenizer(folder), args.max_length, "", "causal")(read)
        rows = [(np.array(prefix), [np.array(ids) for ids in own]) for prefix, own, _ in coded]
        rewards = [np.array(row.rewards, np.float32) for row in read]
    loss_fn, layout = make_ranking_loss("ce"), "shared" if shared else "padded"
    cuts = [
        make_rank_cut([prefix], [own], np.zeros(1, np.int64), reward, len(own), layout, 0)
        for (prefix, own), reward in zip(rows, rewards, strict=True)
    ]

    def loss(cut) -> torch.Tensor:
        cut = to_device(cut, device)
        return loss_fn(model(cut), cut.rewards, cut.keep)

    return loss, cuts, model, bound(rows)


def bound(rows: list) -> float:
    """Tokens of separate rows over tokens of shared ones."""
    separate = sum(len(prefix) + len(ids) for prefix, own in rows for ids in own)
    return separate / sum(len(prefix) + sum(map(len, own)) for prefix, own in rows)


def cross_encoder_side(args, device) -> tuple[Callable, list, object, float]:
    """As our_side, of sentence-transformers, a question's pairs in one micro-batch; no bound."""
    import torch
    from peft import LoraConfig
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from transformers import PreTrainedModel

    from archs.loading import resolve_name
    from archs.lora import find_targets

    if not args.data:
        raise UserError("--sides crossencoder: tokenises texts itself: give --data, or other --sides")
    model = CrossEncoder(
        resolve_name(args.model_name), num_labels=1, max_length=args.max_length, device=str(device),
        model_kwargs={"dtype": torch.bfloat16},
    )  # fmt: skip
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    inner = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    inner.config.pad_token_id = model.tokenizer.pad_token_id
    settings = LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules=find_targets(inner, ""),
        modules_to_save=["score"],
    )
    inner.add_adapter(settings)
    for param in inner.parameters():
        if param.requires_grad:
            param.data = param.data.float()
    model.train()
    if args.gradient_checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    rows = read_questions(args)
    loss_fn = ListNetLoss(model, mini_batch_size=-1)

    def loss(row: dict) -> torch.Tensor:
        texts = [f"{row.get('context', '')}\n\nQuestion: {row['question']}\nAnswer:"], [row["candidates"]]
        return loss_fn(texts, [torch.tensor(row["rewards"], device=device)])

    return loss, rows, inner, 0.0


def run_side(args) -> dict:
    """One process: seconds a question and the peak in MiB above what stands before the first step."""
    import torch

    from core.memory import keep_freed_memory, peak_bytes, reset_peak

    torch.manual_seed(0)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make = cross_encoder_side if args.worker == "crossencoder" else our_side
    loss_of, questions, model, token_bound = make(args, device)
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def steps() -> Iterator[list]:
        starts = range(0, args.questions * (args.steps + WARM_UP) + 1, args.questions)
        yield from (questions[a:b] for a, b in pairwise(starts))

    reset_peak(device)
    before, times = peak_bytes(device), []
    for batch in steps():
        wait()
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            for question in batch:
                (loss_of(question) / len(batch)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        times.append(1e3 * (time.perf_counter() - began))
    peak, num_trained = (peak_bytes(device) - before) / 2**20, sum(p.numel() for p in params)
    step_ms = statistics.mean(times[WARM_UP:])  # questions differ in length, so all timed ones count
    found = {"step_ms": step_ms, "s_a_question": step_ms / 1e3 / args.questions, "peak_mib": peak}
    return found | {"num_trained": num_trained, "token_bound": token_bound}


def main(argv=None) -> dict:
    """All sides in turn; prints the table of medians and the ratios."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if bool(args.model_name) == bool(args.shape) or bool(args.data) == bool(args.prefix):
        raise UserError("give one of --model_name and --shape, and one of --data and --prefix")
    if args.shape and args.data:
        raise UserError("--shape: has no tokenizer: give --prefix, not --data")
    sides = [side for side in args.sides if args.data or side != "crossencoder"]
    if args.worker:
        print(json.dumps(run_side(args)))
        return {}
    found = in_turn("bench.rank", argv, sides, args.repeats)
    columns = ["s_a_question", "step_ms", "step_ms_spread", "peak_mib", "num_trained"]
    print(f"\n{format_table([(side, medians(runs)) for side, runs in found.items()], columns)}\n")
    token_bound = max(run["token_bound"] for runs in found.values() for run in runs)
    ratios = {"token_bound": token_bound}
    print(f"token bound of these questions: {token_bound:.2f}")
    for side in sides[1:]:
        ratios[side] = {name: ratio(found[side], found[sides[0]], name) for name in ("step_ms", "peak_mib")}
        share = f", {ratios[side]['step_ms'] / token_bound:.0%} of the bound" if side == "separate" else ""
        print(
            f"{side} over {sides[0]}: {ratios[side]['step_ms']:.2f} in time (median of turns){share}, "
            f"{ratios[side]['peak_mib']:.2f} in memory"
        )
    return print_result(args, runs=found, ratios=ratios)


if __name__ == "__main__":
    run_main(main)
