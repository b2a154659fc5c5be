"""core/flags.py: every message names the flag, the value and what was expected; presets; resuming with a run's own."""

import argparse
import json

import pytest

from core.errors import UserError
from core.flags import FREE_ON_RESUME, Parser, add_shared_flags, add_text_flags, number, parse


def make_parser() -> Parser:
    parser = Parser("for tests")
    add_shared_flags(parser)
    add_text_flags(parser)
    return parser


def parsed(*argv: str) -> argparse.Namespace:
    return parse(make_parser(), list(argv))


def refused(*argv: str) -> str:
    """The message for flags that cannot be used."""
    with pytest.raises(UserError) as caught:
        parsed(*argv)
    return str(caught.value)


# -- numbers -------------------------------------------------------------------------------------------------

EXPECTED = {  # every numeric flag: what its message asks for
    "max_length": "a whole number at least 4, or auto",
    "batch_size": "a whole number at least 1",
    "max_tokens": "a whole number at least 1, or auto",
    "epochs": "a number at least 0.001, or auto",
    "max_steps": "a whole number at least 0",
    "learning_rate": "a number at least 0, or auto",
    "warmup": "a number at least 0",
    "weight_decay": "a number at least 0",
    "layer_decay": "a number from 0.001 to 1",
    "max_grad_norm": "a number at least 0",
    "max_bad_steps": "a whole number at least 0",
    "eval_steps": "a whole number at least 0",
    "patience": "a whole number at least 0",
    "seed": "a whole number at least 0",
    "log_steps": "a whole number at least 1",
    "save_steps": "a whole number at least 0",
    "price_per_hour": "a number at least 0",
}
END = " (--help lists the flags)"


def test_the_table_holds_every_numeric_flag():
    assert set(EXPECTED) == {action.dest for action in make_parser()._actions if action.type}


def check_messages(flags, name: str) -> None:
    """Words, numbers outside the limits and non-numbers: each is named, with what was expected."""
    expected = f"expected {EXPECTED[name]}"
    for value in ("many", "", "1,5", "1e", "0x10"):
        assert flags(f"--{name}", value) == f"argument --{name}: {value!r}: {expected}{END}"
    for value in ("-1", "nan", "inf", "-inf", *(["1.5"] if "whole" in expected else [])):
        assert flags(f"--{name}={value}").replace("'", "") == f"argument --{name}: {value}: {expected}{END}"


@pytest.mark.parametrize("name", EXPECTED)
def test_messages_of_numbers(name):
    check_messages(refused, name)


def test_bite_a_type_that_takes_infinity_is_caught(monkeypatch):
    def loose(text):  # the deliberately wrong check: only the lower limit
        value = float(text)
        if value < 0:
            raise argparse.ArgumentTypeError(f"{text}: expected a number at least 0")
        return value

    monkeypatch.setattr("core.flags.number", lambda *args, **flags: loose)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_messages(refused, "warmup")


def test_batch_size_of_nothing():
    assert refused("--batch_size", "0") == (
        "argument --batch_size: 0: expected a whole number at least 1 (--help lists the flags)"
    )


def test_numbers_by_hand():
    assert number(int, 1)("1") == 1
    assert number(float, 0)("1e-3") == 0.001
    assert number(float, 0, 1)("1") == 1.0
    assert number(int, 1, auto=True)("auto") == "auto"
    assert number(int, 0)("4294967295") == 2**32 - 1
    with pytest.raises(argparse.ArgumentTypeError, match=r"at least 0 \(at most 4294967295\)"):
        number(int, 0)("9" * 400)  # no library behind takes it as a seed or a size
    for text in ("2", "1.0001"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number from 0 to 1"):
            number(float, 0, 1)(text)
    with pytest.raises(argparse.ArgumentTypeError, match=r"'auto': expected a whole number at least 1$"):
        number(int, 1)("auto")


# -- other mistakes, and presets -----------------------------------------------------------------------------


def test_other_mistakes():
    assert refused("--batch", "4") == f"unrecognized arguments: --batch 4{END}"  # no abbreviations
    assert refused("--truncate", "middle").startswith(
        "argument --truncate: invalid choice: 'middle' (choose from"
    )
    assert refused("--seed") == f"argument --seed: expected one argument{END}"
    assert refused("rows.csv") == f"unrecognized arguments: rows.csv{END}"


def test_presets(tmp_path):
    preset, inner = tmp_path / "preset", tmp_path / "inner"
    inner.write_text("--epochs 2 --amp off")
    preset.write_text(
        "# don't read this: it's a comment\n\n"
        "--learning_rate 3e-5   # peak\n"
        "--text_field 'a column,b' --compile\n"
        '--output_dir "runs/it\'s here"\n'
        f"@{inner}\n"
    )
    args = parsed("--epochs", "9", f"@{preset}", "--learning_rate", "1e-4")  # what comes last holds
    assert (args.epochs, args.learning_rate, args.amp, args.compile) == (2.0, 1e-4, "off", "on")
    assert (args.text_field, args.output_dir) == ("a column,b", "runs/it's here")


def test_presets_that_cannot_be_read(tmp_path):
    assert refused(f"@{tmp_path}/none") == f"[Errno 2] No such file or directory: '{tmp_path}/none'{END}"
    assert "Is a directory" in refused(f"@{tmp_path}")
    (tmp_path / "p").write_text("--amp off\n--text_field it's\n")
    wanted = f'a file of flags has the line "--text_field it\'s": No closing quotation{END}'
    assert refused(f"@{tmp_path}/p") == wanted
    (tmp_path / "p").write_text("--epochs many")
    assert refused(f"@{tmp_path}/p") == f"argument --epochs: 'many': expected {EXPECTED['epochs']}{END}"


# -- resume --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> str:
    """The folder of a run with a few arguments of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    flags = (
        "--epochs",
        "2",
        "--batch_size",
        "8",
        "--text_field",
        "gr\xf6\xdfe",
        "--log_steps",
        "7",
        "--compile",
    )
    stored = {k: v for k, v in vars(parsed(*flags)).items() if k not in ("resume", "output_dir")}
    (folder / "run.json").write_text(json.dumps({"arguments": stored | {"gone_flag": 1}}))
    return str(folder)


def test_resume_takes_the_runs_own_arguments(run):
    args = parsed("--resume", run)
    assert (args.epochs, args.batch_size, args.text_field, args.log_steps) == (2.0, 8, "gr\xf6\xdfe", 7)
    assert args.compile == "on"
    assert args.learning_rate == "auto"
    assert (args.resume, args.output_dir) == (run, run)
    assert parsed("--resume", "--output_dir", run) == args
    assert parsed("--output_dir", run, "--resume").resume == run
    assert parsed("--resume", run, "--batch_size", "8") == args  # said again, the same


def test_resume_refuses_others_and_names_both(run):
    assert refused("--resume", run, "--batch_size", "16", "--epochs", "3", "--amp", "auto") == (
        f"--resume {run}: is a run of another configuration: --batch_size is 16, the run's is 8; "
        "--epochs is 3.0, the run's is 2.0"
    )
    assert "--deterministic is True, the run's is False" in refused("--resume", run, "--deterministic")


def test_what_may_differ_on_resume(run):
    args = parsed("--resume", run, "--log_steps", "1", "--save_steps", "5", "--cache_dir", "x", "--profile", "1:2",
                  "--baselines")  # fmt: skip
    assert (args.log_steps, args.save_steps, args.cache_dir, args.profile) == (1, 5, "x", "1:2")
    assert args.baselines
    flags = {action.dest for action in make_parser()._actions}
    assert flags >= FREE_ON_RESUME  # a renamed flag would be refused in silence
    # what decides the weights is not among them
    assert not FREE_ON_RESUME & set(EXPECTED) - {"log_steps", "save_steps", "max_bad_steps"}


def test_resume_of_no_run(tmp_path, monkeypatch):
    wanted = "expected the folder of an unfinished run"
    assert refused("--resume", f"{tmp_path}/none") == f"--resume {tmp_path}/none: no such folder; {wanted}"
    assert refused("--resume", str(tmp_path)) == f"--resume {tmp_path}: holds no run (no run.json); {wanted}"
    monkeypatch.chdir(tmp_path)
    assert refused("--resume") == f"--resume .: holds no run (no run.json); {wanted}"


# -- paths and files of flags that cannot be -----------------------------------------------------------------


@pytest.mark.parametrize(
    "path, message",
    [
        ("loop", "--train_data .*loop: is a loop of symbolic links"),
        ("x" * 300, "--train_data .*xxx.*: File name too long"),
        ("a_file/rows.jsonl", "--train_data .*: lies below a file, not in a folder"),
        ("a\0b", "--train_data 'a.x00b': has a null character in it"),
    ],
)
def test_paths_that_cannot_be_looked_for(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a_file").write_text("")
    parser = Parser("")
    parser.add_argument("--train_data", metavar="FILE")
    with pytest.raises(UserError, match=message):
        parser.parse_args(["--train_data", path])


def test_a_file_of_flags_that_names_itself(tmp_path):
    (tmp_path / "flags").write_text(f"@{tmp_path / 'flags'}\n")
    with pytest.raises(UserError, match=r"names itself|Too many open files"):
        Parser("").parse_args([f"@{tmp_path / 'flags'}"])
