"""A finished run as the policy that a PPO loop starts from."""

import hashlib
import os
from argparse import Namespace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from archs.adapters import SHAPE, whole_modules
from archs.build import Classifier
from archs.lora import adapters, add_lora, find_targets, frozen_dtype
from archs.saving import load_model, read_about
from core.errors import UserError
from core.files import found_folder
from core.rows import file_sha256
from core.stored import read_json

MAKERS = {True: ("a ranker", "rank_train.py"), False: ("a classifier", "train.py")}


def policy_folder(policy: str) -> Path:
    """The model folder that --policy names: a run's best_model/, or itself."""
    folder = Path(policy)
    return folder if (folder / "bareloop.json").is_file() else found_folder(folder / "best_model")


def read_policy(policy: str, ranks: bool) -> dict:
    """What the policy's bareloop.json holds.

    Raises: UserError when the folder holds no ranker (ranks: True), or no classifier (False).
    """
    kind, maker = MAKERS[ranks]
    if not Path(policy).is_dir():
        raise UserError(f"--policy {policy}: no such folder; expected a run of {maker}")
    if not (policy_folder(policy) / "bareloop.json").is_file():
        raise UserError(f"--policy {policy}: holds no best_model/; expected a run of {maker}")
    about = read_about(policy_folder(policy))
    if (about.get("task") == "rank") != ranks:
        other = MAKERS[not ranks][0]
        raise UserError(f"--policy {policy}: is {other}, not {kind}; expected a run of {maker}")
    return about


def policy_hash(policy: str) -> str:
    """One sha256 of the weights that a policy starts from: a run that is resumed must start from the same.

    An adapter's base is read too where it is a folder; a base of the hub is known by its name alone.
    """
    folder = policy_folder(policy)
    adapter = folder / "adapter_config.json"
    base = read_json(adapter, SHAPE)["base_model_name_or_path"] if adapter.is_file() else None
    folders = [folder, Path(base)] if base else [folder]
    parts = [part for path in folders for part in sorted(path.glob("*.safetensors"))]
    return hashlib.sha256(" ".join(file_sha256(part) for part in parts).encode()).hexdigest()


def load_policy(
    args: Namespace, amp_dtype: torch.dtype | None
) -> tuple[Classifier, PreTrainedTokenizerBase, dict, list[str]]:
    """The model of args.policy without dropout, so that every ratio is 1 before the first update; with --lora_rank
    fresh adapters beside it.

    Returns: (model, tokenizer, what bareloop.json of the run to come holds, notes for the log).
    Raises:  UserError when adapters are asked for beside adapters.
    """
    folder, notes = policy_folder(args.policy), []
    model, tokenizer, about = load_model(folder, frozen_dtype(amp_dtype), dropout=0.0)
    about |= {"amp": {torch.bfloat16: "bf16", torch.float16: "fp16", None: "off"}[amp_dtype]}
    layers = adapters(model.inner)
    for layer in layers.values():
        layer.lora_dropout = 0.0
    if layers and args.lora_rank:
        raise UserError(f"--lora_rank {args.lora_rank}: {args.policy} has an adapter, and that is trained")
    if args.lora_dropout:
        raise UserError(
            f"--lora_dropout {args.lora_dropout}: a policy is compared with itself: drop the flag"
        )
    if args.lora_rank:
        alpha = 2.0 * args.lora_rank if args.lora_alpha == "auto" else args.lora_alpha
        settings = args.lora_rank, alpha, 0.0, args.lora_rslora
        targets = find_targets(model.inner, args.lora_targets)
        model.inner.to(frozen_dtype(amp_dtype))
        add_lora(model.inner, targets, *settings, keep_trained=whole_modules(model))
        about |= {"lora": dict(zip(("rank", "alpha", "dropout", "rslora"), settings, strict=True))}
        about |= {"model_name": os.path.abspath(folder), "base_model": os.path.abspath(folder)}
        notes.append(f"LoRA: rank {args.lora_rank}, alpha {alpha:g}, beside {len(targets)} modules")
    return model, tokenizer, about, notes
