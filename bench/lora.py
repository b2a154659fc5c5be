"""Side by side: LoRA by hand and peft, the same base, targets, rank and batch, in turn, each in a process of its own.

    python -m bench.lora --model_name FOLDER                              # a small decoder, on CPU or one GPU
    python -m bench.lora --shape codellama-7b --length 512 --batch_size 16   # random weights of a known shape; a GPU

A step is forward, backward and AdamW over the adapters: a frozen base in bfloat16 under autocast, float32 adapters,
cross-entropy of the last token, no padding, transformers' own attention on both sides. Memory is the peak above what
stands before the first step (weights and adapters), so it is activations, gradients and optimiser state. The last line
is one JSON object. Needs requirements-bench.txt (peft).
"""

import argparse
import json
import statistics
import sys
import time

from bench.results import print_result
from bench.turns import in_turn, medians, ratio
from core.errors import UserError, run_main
from core.results_table import format_table

SIDES = ("ours", "peft")
SHAPES = {  # of published configurations
    "codellama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32016},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--model_name", default="", help="a decoder: folder or hub name")
    flag("--shape", choices=tuple(SHAPES), help="random weights of this shape instead")
    flag("--layers", type=int, default=0, help="only so many layers of a --shape; 0: all")
    flag("--rank", type=int, default=16)
    flag("--dropout", type=float, default=0.0, help="of the adapters' input")
    flag("--batch_size", type=int, default=8, help="rows a step")
    flag("--length", type=int, default=128, help="tokens a row")
    flag("--steps", type=int, default=8, help="timed steps of a process, after 2 that are not")
    flag("--repeats", type=int, default=3, help="processes of each side, in turn")
    flag("--gradient_checkpointing", action="store_true")
    flag("--worker", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)
# fmt: on


def base_model(args, device):
    """The decoder in bfloat16, on the device."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from archs.loading import resolve_name

    if args.shape:
        shape = SHAPES[args.shape] | ({"num_hidden_layers": args.layers} if args.layers else {})
        with torch.device(device):
            return AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(resolve_name(args.model_name), dtype=torch.bfloat16).to(
        device
    )


def run_side(args) -> dict:
    """One process: median step time in ms and the peak in MiB above what stands before the first step."""
    import torch

    from archs.build import recompute_activations
    from archs.lora import add_lora, find_targets
    from core.memory import keep_freed_memory, peak_bytes, reset_peak

    torch.manual_seed(0)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = base_model(args, device)
    names = find_targets(model, "")
    if args.gradient_checkpointing:
        recompute_activations(model)
    if args.worker == "ours":
        add_lora(model, names, args.rank, 2.0 * args.rank, args.dropout)
    else:
        from peft import LoraConfig, get_peft_model

        settings = {"lora_alpha": 2 * args.rank, "lora_dropout": args.dropout, "task_type": "CAUSAL_LM"}
        model = get_peft_model(model, LoraConfig(r=args.rank, target_modules=names, **settings))
    model.train()
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=True)
    ids = torch.randint(5, model.config.vocab_size, (args.batch_size, args.length), device=device)
    labels = torch.randint(5, model.config.vocab_size, (args.batch_size,), device=device)

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    reset_peak(device)
    before, times = peak_bytes(device), []
    for _ in range(2 + args.steps):
        wait()
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, 0]
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        times.append(1e3 * (time.perf_counter() - began))
    peak = (peak_bytes(device) - before) / 2**20
    num_trained = sum(param.numel() for param in params)
    return {"step_ms": statistics.median(times[2:]), "peak_mib": peak, "num_trained": num_trained}


def main(argv=None) -> dict:
    """Both sides in turn; prints the table of medians and the ratios."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    if bool(args.model_name) == bool(args.shape):
        raise UserError("give one of --model_name (a decoder's folder or hub name) and --shape")
    if args.worker:
        print(json.dumps(run_side(args)))
        return {}
    found = in_turn("bench.lora", argv, SIDES, args.repeats)
    rows = [(side, medians(runs)) for side, runs in found.items()]
    ratios = {
        name: ratio(found["peft"], found["ours"], f"{name}{unit}")
        for name, unit in (("step", "_ms"), ("peak", "_mib"))
    }
    print(f"\n{format_table(rows, list(rows[0][1]))}\n")
    print(f"peft over ours: {ratios['step']:.3f} in time (median of pairs), {ratios['peak']:.3f} in memory")
    return print_result(args, runs=found, peft_over_ours=ratios)


if __name__ == "__main__":
    run_main(main)
