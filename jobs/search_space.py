"""What a search varies: flags of train.py with their ranges, from the table below or a JSON file, and back as flags.

A space is {flag: spec} in the order of the choices. A spec is a list of values or {"choices": [...]}; or a range
{"low": 1e-5, "high": 1e-3, "log": true} or {"low": 2, "high": 6, "step": 1}; either with "if": {"head": ["linear",
"mlp"]}: only where that flag, which stands above it or is not searched, has one of these values. A switch (--chat) has
true and false. Adding a dimension to the built-in space is one line of default_space.
"""

import argparse
import difflib
import json
import shlex
from pathlib import Path

import optuna

import train
from archs.heads import HEADS
from core.errors import UserError
from core.rows import show

# fmt: off
GIVEN = ("train_data", "val_data", "test_data", "output_dir", "seed", "resume", "dry_run", "metric", "profile")
# of no run's result: neither told as a difference nor written into a preset
OF_THE_RUN = {*GIVEN, "calibration_data", "cache_dir", "save_steps", "log_steps", "price_per_hour", "baselines"}
# fmt: on
KEYS = {"choices", "low", "high", "log", "step", "if"}
Space = dict[str, dict]


def default_space(args: argparse.Namespace, wide: bool = False) -> Space:
    """The built-in space around the default: every range holds the default's own value.

    Args: args: the default's arguments, with numbers for auto | wide: regularisers of which two double the time too.
    The ranges are assumptions: five times either way for the rate, for the rest what papers on fine-tuning use.
    """
    batch, rank, epochs, is_encoder = (
        args.batch_size,
        args.lora_rank,
        args.epochs,
        args.architecture == "bert",
    )
    if epochs >= 1:
        passes = {"low": max(1, round(epochs / 2)), "high": max(2, round(1.5 * epochs)), "step": 1}
    else:
        passes = {"low": epochs / 2, "high": 1.5 * epochs}
    is_vocab = args.word_loss == "vocab"  # which leaves nothing for smoothing and focal to do
    space = {
        "learning_rate": {"low": args.learning_rate / 5, "high": args.learning_rate * 5, "log": True},
        "schedule": ["linear", "cosine", "constant"],
        "batch_size": sorted({max(1, batch // 2), batch, 2 * batch}),
        "weight_decay": {"low": 1e-3, "high": 0.3, "log": True},
        "dropout": {"low": 0.0, "high": 0.3},
        "warmup": {"low": 0.0, "high": 0.15} if args.warmup < 1 else None,  # from 1 on a number of steps
        "layer_decay": {"low": 0.75, "high": 1.0},
        "label_smoothing": None if is_vocab else {"low": 0.0, "high": 0.2},
        "loss": None if is_vocab else ["focal"] if args.loss != "focal" else ["auto"],
        "focal_gamma": None if is_vocab else {"low": 0.5, "high": 4.0, "if": {"loss": ["focal"]}},
        "class_weights": ["none", "balanced", "effective"],
        "head": ["model" if args.head == "model" else "auto", "linear", "mlp"] if is_encoder else None,
        "pooling": ["cls", "mean", "mean_max", "attention"] if is_encoder else None,
        "epochs": None if args.max_steps else passes,
        "lora_rank": sorted({max(1, rank // 2), rank, 2 * rank}) if rank else None,
    }
    if wide:
        space |= {"ema": [0.0, 0.99, 0.999], "neftune": [0.0, 5.0, 10.0]}
        space |= {"rdrop": [0.0, 1.0, 4.0], "fgm": [0.0, 0.3, 1.0]}
    space = {name: as_spec(spec) for name, spec in space.items() if spec and hasattr(args, name)}
    space = {name: widened(spec, getattr(args, name)) for name, spec in space.items()}
    if "pooling" in space:
        heads = [head for head in space["head"]["choices"] if head in HEADS]  # the others have their own
        space["pooling"]["if"] = {"head": heads}
    return space


def as_spec(spec: list | dict) -> dict:
    """A spec in its long form."""
    return {"choices": list(spec)} if isinstance(spec, list) else dict(spec)


def widened(spec: dict, value: object) -> dict:
    """The spec with room for a value, where it can have it."""
    if value is None:
        return spec
    if "choices" in spec:
        return spec if value in spec["choices"] else spec | {"choices": [value, *spec["choices"]]}
    if spec.get("log") and value <= 0:
        return spec
    return spec | {"low": min(spec["low"], value), "high": max(spec["high"], value)}


def read_space(path: str) -> Space:
    """A space from a JSON file; check_space sees to what is in it. Raises UserError when it holds no object."""
    flag = f"--space {path}"
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{flag}: expected default, wide or a JSON file of {{flag: range}}: {error}"
        ) from None
    except ValueError as error:
        raise UserError(f"{flag}: invalid JSON: {error}") from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{flag}: is {show(found)}; expected {{flag: range or list of values, ...}}")
    space = {}
    for name, spec in found.items():
        if not isinstance(spec, list | dict):
            raise UserError(
                f"{flag}: {name}: is {show(spec)}; expected a list of values or {{low, high, log, step, if}}"
            )
        space[name.removeprefix("--")] = as_spec(spec)
    return space


# -- checks -----------------------------------------------------------------------------------------------------


def check_space(space: Space, flags: list[str], source: str) -> Space:
    """The space with its conditions as lists and its whole numbers as such.

    Args:   flags: of the default, parsed together with every choice and every end of a range | source: named in errors.
    Raises: UserError for a flag that train.py does not have, an empty range, a value that it refuses.
    """
    base = train.parse_args(flags)
    done: Space = {}
    for name, spec in space.items():
        where = f"{source}: {name}"
        try:
            check_name(name, base)
            done[name] = check_shape(spec, done, space, base)
            check_switch(name, done[name], base)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
    for name, spec in done.items():
        for value in spec.get("choices") or (spec["low"], spec["high"]):
            together = companions(name, done) | {name: value}
            try:
                parsed = train.parse_args([*flags, *as_flags(together)])
            except UserError as error:
                told = as_text(value) if isinstance(value, int | float) else show(value)
                raise UserError(f"{source}: {name}: train.py refuses {told}: {error}") from None
        is_whole = isinstance(getattr(parsed, name), int) and "low" in spec
        if is_whole:  # a flag of whole numbers
            spec |= {key: int(spec[key]) for key in ("low", "high", "step") if key in spec} | {"int": True}
    return done


def check_name(name: str, base: argparse.Namespace) -> None:
    """Raise ValueError unless a search may vary this flag."""
    if name in GIVEN:
        why = "; test rows are read by the report alone" if name == "test_data" else ""
        raise ValueError(f"is given by the search itself{why}")
    if not hasattr(base, name):
        close = difflib.get_close_matches(name, vars(base), 1)
        hint = f"; did you mean {close[0]}?" if close else " (python train.py --help lists them)"
        raise ValueError(f"train.py has no such flag{hint}")


def check_shape(spec: dict, above: Space, space: Space, base: argparse.Namespace) -> dict:
    """The spec with its condition's values as lists. Raises ValueError."""
    odd = set(spec) - KEYS
    if odd:
        raise ValueError(f"has {min(odd)!r}; expected {', '.join(sorted(KEYS))}")
    if "choices" in spec:
        choices = spec["choices"]
        if set(spec) & {"low", "high", "log", "step"} or not isinstance(choices, list) or not choices:
            raise ValueError(f"is {show(spec)}; expected a list of values, or low and high")
        for value in choices:
            if not isinstance(value, str | int | float) or choices.count(value) > 1:
                raise ValueError(f"holds {show(value)}; expected different words, numbers or true and false")
    else:
        check_range(spec)
    needs = {}
    for other, values in spec.get("if", {}).items():
        if other not in above and (other in space or not hasattr(base, other)):
            raise ValueError(f'"if" names {other!r}; expected a flag above it, or one that is not searched')
        needs[other] = values if isinstance(values, list) else [values]
        there = above.get(other, {}).get("choices")
        odd = [value for value in needs[other] if there and value not in there]
        if odd:
            raise ValueError(
                f'"if" wants {other} {show(odd[0])}, which is none of its choices: {show(there)}'
            )
    return spec | ({"if": needs} if needs else {})


def check_range(spec: dict) -> None:
    """Raise ValueError unless low and high are a range."""
    for key in ("low", "high", *(["step"] if "step" in spec else [])):
        value = spec.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise ValueError(f"{key} is {show(value)}; expected a number")
    low, high = spec["low"], spec["high"]
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}")
    if spec.get("log") and low <= 0:
        raise ValueError(f"low is {low:g}; with log it must be above 0")
    if "step" in spec and (spec["step"] <= 0 or spec.get("log")):
        raise ValueError("step must be above 0, and does not go with log")


def check_switch(name: str, spec: dict, base: argparse.Namespace) -> None:
    """Raise ValueError for a switch with other values than true and false, or true and false for another flag."""
    is_switch, choices = isinstance(getattr(base, name), bool), spec.get("choices", [])
    told = [isinstance(value, bool) for value in choices]
    if is_switch and (not told or not all(told)):
        raise ValueError("is a switch; expected [true, false]")
    if is_switch and getattr(base, name):
        raise ValueError("is on in --flags, and a switch cannot be turned off again; drop it there")
    if not is_switch and any(told):
        raise ValueError(f"holds {show(choices[told.index(True)])}; expected words or numbers")


def companions(name: str, space: Space) -> dict:
    """Values of other flags with which a flag's own can be parsed: what its condition wants, and what that wants."""
    found = {}
    for other, values in space[name].get("if", {}).items():
        if other in space:
            found |= companions(other, space) | {other: values[0]}
    if name.startswith("lora_") and "lora_rank" in space and name != "lora_rank":
        found |= {"lora_rank": space["lora_rank"].get("choices", [space["lora_rank"].get("high")])[-1]}
    return found


# -- values -----------------------------------------------------------------------------------------------------


def is_active(spec: dict, values: dict, space: Space, base: argparse.Namespace) -> bool:
    """Whether a flag's condition holds: values are those chosen so far, what is not searched has the default's."""

    def value_of(other: str) -> object:
        return values.get(other) if other in space else getattr(base, other)

    return all(value_of(other) in wanted for other, wanted in spec.get("if", {}).items())


def suggest(trial: optuna.Trial, space: Space, base: argparse.Namespace) -> dict:
    """The values of a trial: those of the flags whose conditions hold."""
    values = {}
    for name, spec in space.items():
        if not is_active(spec, values, space, base):
            continue
        if "choices" in spec:
            values[name] = trial.suggest_categorical(name, spec["choices"])
        elif spec.get("int"):
            numbers = {"step": spec.get("step", 1), "log": spec.get("log", False)}
            values[name] = trial.suggest_int(name, spec["low"], spec["high"], **numbers)
        else:
            numbers = {"step": spec.get("step"), "log": spec.get("log", False)}
            values[name] = trial.suggest_float(name, spec["low"], spec["high"], **numbers)
    return values


def default_values(space: Space, args: argparse.Namespace) -> dict:
    """The default's place in the space; a flag whose value it cannot tell (the model's own dropout) is left out."""
    values = {}
    for name, spec in space.items():
        value = getattr(args, name)
        if not is_active(spec, {n: getattr(args, n) for n in space}, space, args):
            continue
        if "choices" in spec:
            is_there = value in spec["choices"]
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_there = is_number and spec["low"] <= value <= spec["high"]
            if is_there and "step" in spec:
                is_there = abs((value - spec["low"]) / spec["step"] % 1) < 1e-9
        if is_there:
            values[name] = value
    return values


def as_text(value: object) -> str:
    """A value as it is written: numbers with three digits, which is more than any of them is known to."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_flags(values: dict) -> list[str]:
    """Values as flags of train.py."""
    flags = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags += [f"--{name}"] * value
        elif as_text(value).startswith("-"):
            flags.append(f"--{name}={as_text(value)}")
        else:
            flags += [f"--{name}", as_text(value)]
    return flags


def changed(args: argparse.Namespace, base: argparse.Namespace) -> dict:
    """What a run's arguments have other than the default's, by name."""
    kept = {name: value for name, value in vars(args).items() if name not in OF_THE_RUN | {"eval_steps"}}
    return {name: value for name, value in kept.items() if value != getattr(base, name)}


def preset_text(args: argparse.Namespace, comments: list[str]) -> str:
    """A file of flags: all that differ from train.py's own defaults, but for files, seeds and folders.

    train.parse_args(["@FILE", "--train_data", ..., "--val_data", ...]) gives these arguments again.
    """
    plain = train.parse_args(["--train_data", "-", "--val_data", "-"])
    lines = [f"# {line}" for comment in comments for line in comment.splitlines()]
    for name, value in vars(args).items():
        if name in OF_THE_RUN or value == getattr(plain, name) or value is None:
            continue
        if isinstance(value, bool):
            lines.append(f"--{name}" if value else "")
        else:
            text = f"{value:.12g}" if isinstance(value, float) else str(value)
            text = text.replace("\n", "\\n")  # a prompt's line break, which train.py reads so
            lines.append(
                f"--{name} {shlex.quote(text)}" if text[:1] != "-" else shlex.quote(f"--{name}={text}")
            )
    return "\n".join(line for line in lines if line) + "\n"
