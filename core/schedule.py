"""Learning-rate schedules as functions of the step, and AdamW's parameter groups. No scheduler object to save."""

import math
import re

from torch import nn

GENTLE = 0.25  # of auto_learning_rate, for a model that is trained already (assumption)
SCHEDULES = ("constant", "linear", "cosine", "cosine_restarts")


def warmup_steps(warmup: float, num_steps: int) -> int:
    """Steps of warm-up: a share of all steps below 1, a number of steps from 1 on."""
    return round(warmup * num_steps) if warmup < 1 else min(int(warmup), num_steps)


def lr_scale(step: int, num_steps: int, num_warmup: int, schedule: str, num_cycles: int = 3) -> float:
    """The share of the peak learning rate that a step uses.

    Args:    step: from 0 | num_steps: of the whole run | num_warmup: rises linearly over these |
             schedule: constant, linear (to 0), cosine (to 0), cosine_restarts (num_cycles times) |
             num_cycles: of cosine_restarts.
    Returns: in [0, 1]. The first step of a warm-up is 1/num_warmup, not 0: no step is without effect.
    Source:  Loshchilov and Hutter 2017 (SGDR), eq. 5, for the cosines.
    """
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "cosine_restarts":
        return 0.5 * (1 + math.cos(math.pi * ((progress * num_cycles) % 1.0))) if progress < 1 else 0.0
    raise ValueError(f"schedule {schedule!r}: one of {', '.join(SCHEDULES)}")


def auto_learning_rate(num_parameters: int, architecture: str = "bert", lora: bool = False) -> float:
    """Peak learning rate with AdamW, by size and family.

    Args:    num_parameters: of the whole model, frozen ones too.
    Source:  encoders: Devlin et al. 2019 (2e-5 to 5e-5 for base), Liu et al. 2019 (1e-5 for large); 1e-4 for small
             ones is an assumption (MiniLM trains well there: BENCHMARKS.md). T5: more (Raffel et al. 2020 use
             1e-3 with AdaFactor, transformers' documentation 1e-4 to 3e-4 with AdamW); 1e-3 for small ones was better
             than 3e-4 after 300 steps of trec (BENCHMARKS.md). LoRA: ten times the rate of full fine-tuning
             (Schulman et al. 2025, "LoRA without regret"); T5 with LoRA as T5.
    """
    rate = 1e-4 if num_parameters < 50e6 else 3e-5 if num_parameters < 200e6 else 1e-5
    if architecture == "t5":
        return 1e-3 if num_parameters < 100e6 else 3e-4 if num_parameters < 300e6 else 1e-4
    return 10 * rate if lora else rate


def auto_epochs(num_rows: int, batch_size: int) -> int:
    """Epochs for an encoder: 3, and more (at most 10) where an epoch is few steps.

    Source: 3 is Devlin et al. 2019's; small sets need steps, not passes (Zhang et al. 2021, "Revisiting
            few-sample BERT fine-tuning"): at least 600 steps; the number 600 is an assumption.
    """
    return max(3, min(10, math.ceil(600 / math.ceil(num_rows / batch_size))))


def layer_depth(name: str, num_layers: int) -> int:
    """Depth of a parameter by its name: 0 embeddings, 1..num_layers the layers, num_layers + 1 pooler and head."""
    layer = re.search(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.", name)
    if layer:
        return min(int(layer.group(1)) + 1, num_layers)
    if "albert_layers." in name:
        return num_layers  # ALBERT: one set of weights serves every layer, the last one too
    return (
        0 if re.search(r"embed|\bwte\b|\bwpe\b|relative_attention_bias|\bshared\b", name) else num_layers + 1
    )


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    num_layers: int,
    lora_b_ratio: float = 1.0,
) -> list[dict]:
    """AdamW's groups: decay and no decay (biases and norms, all of one dimension), for each layer with layer_decay.

    Args:    layer_decay: factor on the learning rate for each layer below the head; 1 gives two groups |
             lora_b_ratio: factor for the B matrices of LoRA, groups of their own unless it is 1.
    Returns: dicts of params, lr, peak_lr (what the schedule scales), weight_decay, name. Every trainable
             parameter is in exactly one group.
    Source:  Clark et al. 2020 (ELECTRA), section 3.1, for layer-wise decay; Hayou et al. 2024 (LoRA+) for B's rate.
    """
    groups: dict[tuple[int, bool, bool], dict] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        depth = layer_depth(name, num_layers) if layer_decay != 1 else num_layers + 1
        decays = param.ndim > 1
        is_b = lora_b_ratio != 1 and name.endswith(".lora_B")
        if (depth, decays, is_b) not in groups:
            peak = learning_rate * layer_decay ** (num_layers + 1 - depth) * (lora_b_ratio if is_b else 1)
            groups[depth, decays, is_b] = {
                "params": [],
                "lr": peak,
                "peak_lr": peak,
                "weight_decay": weight_decay if decays else 0.0,
                "name": f"depth {depth}, {'decay' if decays else 'no decay'}{', LoRA B' if is_b else ''}",
            }
        groups[depth, decays, is_b]["params"].append(param)
    # the last one is what the log names: never B's
    return [groups[key] for key in sorted(groups, key=lambda k: (not k[2], k[0], not k[1]))]
