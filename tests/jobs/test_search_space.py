"""jobs/search_space.py: what is searched, checked before anything is trained, and written as flags."""

import json
from argparse import Namespace

import optuna
import pytest

import train
from core.errors import UserError
from jobs.search_space import (
    as_flags,
    changed,
    check_space,
    default_space,
    default_values,
    is_active,
    preset_text,
    read_space,
    suggest,
)

FLAGS = ["--train_data", "a.jsonl", "--val_data", "b.jsonl"]


def numbers(*more: str) -> Namespace:
    """Parsed flags with a number for every auto."""
    return train.parse_args(["--learning_rate", "1e-4", "--epochs", "3", *FLAGS, *more])


def checked(space: dict, *more: str) -> dict:
    return check_space(space, [*FLAGS, *more], "--space mine.json")


def sampled(space: dict, base: Namespace, num_trials: int = 60) -> list[dict]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(study.ask(), space, base) for _ in range(num_trials)]


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


# -- the built-in space -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--architecture", "t5"],
        ["--architecture", "causal", "--lora_rank", "16", "--word_loss", "vocab"],
        ["--head", "mlp", "--dropout", "0.5", "--warmup", "100", "--max_steps", "50", "--batch_size", "1"],
        ["--head", "model", "--loss", "focal", "--weight_decay", "0", "--schedule", "cosine_restarts"],
        ["--class_weights", "effective", "--epochs", "0.5", "--layer_decay", "0.5"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("wide", [False, True])
def test_every_sample_of_the_built_in_space_is_parsed(more, wide):
    base = numbers(*more)
    space = checked(default_space(base, wide), *more)
    for values in sampled(space, base):
        parsed = vars(train.parse_args([*FLAGS, *more, *as_flags(values)]))
        for name, value in values.items():
            assert parsed[name] == (pytest.approx(value, rel=5e-3) if isinstance(value, float) else value)


def test_the_built_in_space_is_laid_around_the_default():
    base = numbers()
    space = default_space(base)
    assert (space["learning_rate"]["low"], space["learning_rate"]["high"]) == pytest.approx((2e-5, 5e-4))
    assert space["batch_size"]["choices"] == [16, 32, 64]
    assert space["epochs"] == {"low": 2, "high": 4, "step": 1}
    assert space["loss"]["choices"] == ["auto", "focal"]
    assert space["head"]["choices"] == ["auto", "linear", "mlp"]
    assert space["pooling"]["if"] == {"head": ["linear", "mlp"]}
    assert "lora_rank" not in space
    assert default_space(numbers("--lora_rank", "8"))["lora_rank"]["choices"] == [4, 8, 16]


def test_what_has_another_meaning_is_not_searched():
    assert "warmup" not in default_space(numbers("--warmup", "100"))  # a number of steps
    assert "epochs" not in default_space(numbers("--max_steps", "50"))
    assert not {"head", "pooling"} & set(default_space(numbers("--architecture", "t5")))
    vocab = default_space(numbers("--architecture", "causal", "--word_loss", "vocab"))
    assert not {"loss", "focal_gamma", "label_smoothing"} & set(vocab)


def test_ranges_are_widened_to_hold_the_default():
    space = default_space(numbers("--dropout", "0.5", "--weight_decay", "1", "--class_weights", "w.json"))
    assert space["dropout"]["high"] == 0.5
    assert space["weight_decay"]["high"] == 1
    assert space["class_weights"]["choices"][0] == "w.json"


def test_wide_adds_the_regularisers():
    more = set(default_space(numbers(), wide=True)) - set(default_space(numbers()))
    assert more == {"ema", "rdrop", "fgm", "neftune"}


def test_the_defaults_own_place():
    base = numbers("--head", "linear", "--pooling", "mean_max")
    found = default_values(checked(default_space(base)), base)
    assert found["learning_rate"] == 1e-4
    assert found["epochs"] == 3
    assert (found["head"], found["pooling"]) == ("linear", "mean_max")
    assert "dropout" not in found  # the model's own
    assert "focal_gamma" not in found  # of another loss
    assert "weight_decay" not in default_values(
        default_space(numbers("--weight_decay", "0")), numbers("--weight_decay", "0")
    )
    odd = numbers("--epochs", "2.5")
    assert "epochs" not in default_values(default_space(odd), odd)  # between the steps


# -- a user's own -----------------------------------------------------------------------------------------------


def test_a_users_space(tmp_path):
    path = tmp_path / "mine.json"
    given = {
        "--learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "batch_size": {"low": 8, "high": 64, "log": True},
        "head": ["linear", "mlp"],
        "pooling": {"choices": ["cls", "mean"], "if": {"head": "mlp"}},
        "max_grad_norm": {"low": 0, "high": 2, "step": 0.5},
        "lora_rslora": [True, False],
        "lora_rank": [4, 8],
    }
    path.write_text(json.dumps(given))
    space = checked(read_space(str(path)))
    assert space["batch_size"]["int"]
    assert "int" not in space["max_grad_norm"]
    base = numbers()
    samples = sampled(space, base)
    assert all(("pooling" in values) == (values["head"] == "mlp") for values in samples)
    assert {type(values["batch_size"]) for values in samples} == {int}
    assert {values["max_grad_norm"] for values in samples} == {0.0, 0.5, 1.0, 1.5, 2.0}
    assert {"--lora_rslora" in as_flags(values) for values in samples} == {True, False}


def test_a_condition_on_what_is_not_searched_looks_at_the_default():
    spec = {"low": 0.5, "high": 4.0, "if": {"loss": ["focal"]}}
    space = checked({"focal_gamma": spec})
    assert not is_active(space["focal_gamma"], {}, space, numbers())
    assert is_active(space["focal_gamma"], {}, space, numbers("--loss", "focal"))


@pytest.mark.parametrize(
    "space, message",
    [
        ({"learning_rat": [1e-4]}, r"mine\.json: learning_rat: .*no such flag; did you mean learning_rate\?"),
        ({"zzz": [1]}, r"zzz: train\.py has no such flag \(python train\.py --help lists them\)"),
        (
            {"test_data": ["x"]},
            r"test_data: is given by the search itself; test rows are read by the report alone",
        ),
        ({"seed": [1, 2]}, r"seed: is given by the search itself"),
        ({"dropout": {"low": 0.3, "high": 0.1}}, r"dropout: low 0\.3 is above high 0\.1"),
        ({"dropout": {"low": 0.3}}, r"dropout: high is null; expected a number"),
        ({"dropout": {"low": "a", "high": 1}}, r'dropout: low is "a"; expected a number'),
        ({"dropout": {"low": 0, "high": 1.5}}, r"dropout: train\.py refuses 1\.5: .*from 0 to 0\.99"),
        ({"weight_decay": {"low": 0, "high": 1, "log": True}}, r"low is 0; with log it must be above 0"),
        ({"warmup": {"low": 0, "high": 1, "step": 0}}, r"step must be above 0"),
        ({"warmup": {"low": 1, "high": 2, "step": 1, "log": True}}, r"step .*does not go with log"),
        ({"warmup": {"lo": 0, "high": 1}}, r"has 'lo'; expected choices, high, if, log, low, step"),
        ({"pooling": ["cls", "median"]}, r'pooling: train\.py refuses "median": .*invalid choice'),
        ({"pooling": []}, r"expected a list of values"),
        ({"pooling": ["cls", "cls"]}, r'holds "cls"; expected different'),
        ({"pooling": ["cls", None]}, r"holds null; expected"),
        ({"pooling": {"choices": ["cls"], "low": 1}}, r"expected a list of values, or low and high"),
        ({"batch_size": {"low": 1.5, "high": 4}}, r"batch_size: train\.py refuses 1\.5: .*a whole number"),
        ({"batch_size": [True]}, r"holds true; expected words or numbers"),
        ({"chat": ["yes"]}, r"chat: is a switch; expected \[true, false\]"),
        ({"chat": {"low": 0, "high": 1}}, r"chat: is a switch"),
        ({"pooling": {"choices": ["cls"], "if": {"head": "mlp"}}, "head": ["mlp"]}, r'"if" names \'head\''),
        ({"pooling": {"choices": ["cls"], "if": {"hea": "mlp"}}}, r'"if" names \'hea\''),
        (
            {"head": ["mlp"], "pooling": {"choices": ["cls"], "if": {"head": "linear"}}},
            r"none of its choices",
        ),
        ({"lora_alpha": [4.0]}, r"lora_alpha: train\.py refuses 4: --lora_alpha: needs --lora_rank"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_bad_space_is_one_clear_error(space, message):
    spaces = {name: {"choices": spec} if isinstance(spec, list) else spec for name, spec in space.items()}
    with pytest.raises(UserError, match=message):
        checked(spaces)


def test_a_switch_that_is_on_already():
    with pytest.raises(UserError, match=r"chat: is on in --flags"):
        checked({"chat": {"choices": [True, False]}}, "--chat")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"invalid JSON"),
        ("[1]", r"is \[1\]; expected \{flag: range"),
        ("{}", r"is \{\}; expected"),
        ('{"dropout": 0.1}', r"dropout: is 0\.1; expected a list of values or"),
    ],
)
def test_a_file_that_holds_no_space(tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=rf"--space .*s\.json: .*{message}"):
        read_space(str(tmp_path / "s.json"))


def test_a_space_that_is_not_there():
    with pytest.raises(UserError, match=r"--space narrow: expected default, wide or a JSON file"):
        read_space("narrow")


# -- flags and presets ------------------------------------------------------------------------------------------


def test_values_as_flags():
    values = {"learning_rate": 2.13456e-4, "epochs": 3.0, "batch_size": 1024, "head": "mlp", "chat": True}
    values |= {"baselines": False, "prompt": "- {text}"}
    assert as_flags(values) == [
        *("--learning_rate", "0.000213", "--epochs", "3", "--batch_size", "1024", "--head", "mlp", "--chat"),
        "--prompt=- {text}",
    ]


def test_changed_names_what_differs():
    base = numbers()
    other = numbers(
        "--head", "mlp", "--seed", "3", "--output_dir", "x", "--eval_steps", "7", "--epochs", "3.0"
    )
    assert changed(other, base) == {"head": "mlp"}


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--architecture", "causal", "--lora_rank", "8", "--lora_rslora", "--prompt", "- {text}\\nIt's #1:"],
        ["--prompt", "{text}\nAnswer:", "--chat", "--text_field", "title,the body", "--compile", "off"],
        ["--head", "mlp", "--pooling", "mean_max", "--learning_rate", "2.13e-05", "--epochs", "2.5"],
        [
            "--class_weights",
            "my weights.json",
            "--dropout",
            "0",
            "--eval_steps",
            "12",
            "--warmup",
            "0.123456789",
        ],
        ["--approach", "generative", "--lora_rank", "4", "--label_words", "A=yes it is,B=no"],
    ],
    ids=" ".join,
)
def test_a_preset_gives_the_same_arguments_again(more, tmp_path):
    files = ["--output_dir", "x", "--seed", "3", "--save_steps", "5"]
    args = train.parse_args([*FLAGS, *files, *more])
    (tmp_path / "preset").write_text(preset_text(args, ["the default's; from #3\nand more"]))
    again = train.parse_args([f"@{tmp_path / 'preset'}", *FLAGS, *files])
    if "\n" in args.prompt:
        args.prompt = args.prompt.replace("\n", "\\n")  # train.py reads the two alike
    assert vars(again) == vars(args)


def test_a_preset_holds_no_file_seed_or_folder():
    args = numbers("--output_dir", "x", "--seed", "3", "--cache_dir", "c", "--calibration_data", "d")
    text = preset_text(args, ["why"])
    assert text == "# why\n--epochs 3\n--learning_rate 0.0001\n"
