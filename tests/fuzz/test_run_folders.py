"""Run folders with a file that is gone, cut, binary, or of another shape: whatever reads a run ends well."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ppo
import predict
from jobs import active, audit, calibrate, compare, ensemble, feedback, merge
from tests.conftest import toy_rows
from tests.fuzz.strategies import Reached, damaged, damaged_json, ends_well, examples, files, workspace

PREDICT = ["run", "--data", "{pool}", "--output", "out.jsonl"]


class Reader(NamedTuple):
    """A command that reads a run: its flags, the files of the run that it reads, and what it leaves."""

    main: Callable
    run: str
    flags: list[str]
    files: tuple[str, ...]
    may_stay: tuple[str, ...] = ()
    quick: int = 3
    outputs: tuple[str, ...] = ()


MODEL = (
    "best_model/bareloop.json",
    "best_model/config.json",
    "best_model/tokenizer.json",
    "best_model/tokenizer_config.json",
    "best_model/model.safetensors",
)
SCORED = ("run.json", "validation/logits.npy", "rows/validation.npy")
READERS = {
    "predict": Reader(
        predict.main, "one", PREDICT, ("run.json", *MODEL, "validation/calibration.json"), quick=5
    ),
    "predict several": Reader(
        predict.main, "list", PREDICT, ("validation/thresholds.json", "best_model/bareloop.json")
    ),
    "predict LoRA": Reader(
        predict.main,
        "lora",
        PREDICT,
        (
            "best_model/adapter_config.json",
            "best_model/adapter_model.safetensors",
            "best_model/bareloop.json",
        ),
    ),
    "predict ranks": Reader(
        predict.main,
        "rank",
        ["run", "--data", "{rank_pool}", "--output", "out.jsonl"],
        ("run.json", "best_model/bareloop.json", "best_model/score_head.safetensors"),
    ),
    "predict ensemble": Reader(
        predict.main, "ensemble", PREDICT, ("run.json", "validation/calibration.json")
    ),
    "predict stacking": Reader(predict.main, "stacking", PREDICT, ("run.json", "stacking.npy"), quick=6),
    "calibrate": Reader(calibrate.main, "one", ["run", "--resamples", "100"], SCORED, ("run/validation",), 3),
    "calibrate several": Reader(
        calibrate.main,
        "list",
        ["run", "--resamples", "100"],
        (*SCORED, "validation/thresholds.json"),
        ("run/validation",),
        2,
    ),
    "compare": Reader(
        compare.main,
        "one",
        ["--table_only", "run", "{two}", "--output_dir", "out"],
        ("run.json", "training_logs.jsonl", "test/logits.npy"),
        ("out",),
        1,
    ),
    "compare several": Reader(
        compare.main,
        "list",
        ["--table_only", "run", "--output_dir", "out"],
        ("test/metrics.json", "test/thresholds.json"),
        ("out",),
        1,
    ),
    "ensemble": Reader(
        ensemble.main,
        "one",
        ["run", "{two}", "--output_dir", "out", "--method", "mean"],
        (
            "run.json",
            "validation/logits.npy",
            "training_logs.jsonl",
            "rows/test.npy",
            "best_model/bareloop.json",
        ),
        ("out",),
        1,
    ),
    "merge": Reader(
        merge.main,
        "lora",
        ["run", "--output_dir", "out", "--rows", "8"],
        ("run.json", "best_model/adapter_config.json", "best_model/bareloop.json"),
        ("out",),
        1,
    ),
    "feedback": Reader(
        feedback.main,
        "one",
        ["collect", "run", "--data", "{pool}", "--output", "out.json"],
        ("best_model/bareloop.json", "validation/calibration.json"),
        outputs=("out.json",),
    ),
    "active": Reader(
        active.main,
        "one",
        [
            "select",
            "run",
            "--data",
            "{pool}",
            "--output",
            "out.jsonl",
            "--num_rows",
            "3",
            "--acquisition",
            "entropy",
        ],
        ("run.json", "rows/train.npy", "best_model/bareloop.json"),
    ),
    "audit": Reader(
        audit.main,
        "one",
        ["run", "--folds", "0", "--output_dir", "out"],
        ("run.json", "rows/test.npy"),
        ("out",),
        1,
    ),
    "ppo": Reader(
        ppo.main,
        "rank",
        [
            "--policy",
            "run",
            "--train_data",
            "{rank_train}",
            "--val_data",
            "{rank_val}",
            "--output_dir",
            "out",
            "--cache_dir",
            "cache",
        ],
        ("best_model/bareloop.json", "best_model/config.json", "best_model/model.safetensors"),
        ("out", "cache"),
    ),
}
CASES = [(name, file) for name, reader in READERS.items() for file in reader.files]


@pytest.fixture(scope="session")
def runs(places) -> dict[str, Path]:
    """The finished runs, an ensemble of two and a stacked one; both keep relative paths to their members."""
    for name, how in {"ensemble": "mean", "stacking": "stacking"}.items():
        if not (places["root"] / name).exists():
            ensemble.main(
                [
                    str(places["one"]),
                    str(places["two"]),
                    "--output_dir",
                    str(places["root"] / name),
                    "--method",
                    how,
                ]
            )
        places[name] = places["root"] / name
    for name in ("one", "ensemble"):
        calibrate.main([str(places[name]), "--resamples", "100", "--method", "temperature"])
    return places


@pytest.fixture
def no_training(monkeypatch) -> None:
    """End ppo.py once its policy and rows are read."""

    def reached(*_, **__):
        raise Reached

    monkeypatch.setattr("ppo.make_plan", reached)


def copy_run(reader: Reader, runs: dict[str, Path], folder: Path) -> list[str]:
    """Copy a run into the folder (an ensemble with its members); the reader's flags."""
    shutil.copytree(
        runs[reader.run], folder / "run", ignore=shutil.ignore_patterns("checkpoint", "final_model", "*.png")
    )
    if reader.run in ("ensemble", "stacking"):
        for name in ("one", "two"):
            (folder / name).symlink_to(runs[name])
    return [flag.format(**runs) for flag in reader.flags]


def odd_content(content: bytes, name: str) -> st.SearchStrategy:
    """What a file may have become; None: it is gone."""
    odd = damaged_json(content) if name.endswith(".json") else damaged(content)
    return odd | st.none() if not name.endswith(".json") else odd


@pytest.mark.parametrize("name, file", CASES)
def test_damaged_run(runs, no_training, name, file):
    reader = READERS[name]
    content = (runs[reader.run] / file).read_bytes()

    @examples(reader.quick, 150)
    @given(odd_content(content, file))
    def check(odd):
        with workspace() as folder:
            flags = copy_run(reader, runs, folder)
            (folder / "run" / file).unlink()
            if odd is not None:
                (folder / "run" / file).write_bytes(odd)
            ends_well(reader.main, flags, folder, (*reader.may_stay, "run/lock"), reader.outputs)

    check()


@pytest.mark.parametrize("name", READERS)
def test_whole_runs_are_not_refused(runs, no_training, name):
    with workspace() as folder:
        ended = ends_well(
            READERS[name].main,
            copy_run(READERS[name], runs, folder),
            folder,
            READERS[name].may_stay,
            READERS[name].outputs,
        )
        assert not ended.is_error, ended.message


# -- rows for finished runs -------------------------------------------------------------------------------------

LABELLED = toy_rows(8)
ROWS = {
    "predict": (
        predict.main,
        "one",
        LABELLED,
        ["run", "--data", "{rows}", "--output", "out.jsonl", "--evaluate"],
    ),
    "predict keep": (
        predict.main,
        "one",
        LABELLED,
        ["run", "--data", "{rows}", "--output", "out.csv", "--keep", "id,text,x"],
    ),
    "predict ensemble": (
        predict.main,
        "ensemble",
        LABELLED,
        ["run", "--data", "{rows}", "--output", "out.jsonl"],
    ),
    "predict ranks": (
        predict.main,
        "rank",
        None,
        ["run", "--data", "{rows}", "--output", "out.csv", "--keep", "id"],
    ),
    "collect": (
        feedback.main,
        "one",
        LABELLED,
        ["collect", "run", "--data", "{rows}", "--output", "out.json"],
    ),
    "calibrate": (calibrate.main, "one", toy_rows(12, 9), ["run", "--data", "{rows}", "--resamples", "100"]),
    "merge": (merge.main, "lora", LABELLED, ["run", "--data", "{rows}", "--output_dir", "out"]),
    "select": (
        active.main,
        "one",
        [{"text": row["text"] + " rose"} for row in toy_rows(8, 11)],
        ["select", "run", "--data", "{rows}", "--output", "out.csv", "--acquisition", "margin"],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_odd_rows_for_a_run(runs, name):
    from tests.conftest import rank_rows

    main, run, good, flags = ROWS[name]

    @examples(4, 200)
    @given(files(good or rank_rows(6)))
    def check(file):
        with workspace() as folder:
            argv = copy_run(Reader(main, run, flags, ()), runs | {"rows": f"rows{file[0]}"}, folder)
            (folder / f"rows{file[0]}").write_bytes(file[1])
            output = tuple(flag for flag in flags if flag.startswith("out."))
            kept = ("run/validation", "out") if name in ("calibrate", "merge") else ()
            ends_well(main, argv, folder, kept, output)

    check()


def test_flags_of_predict(runs):
    from tests.fuzz.strategies import flags_of, odd_flags

    flags = flags_of(predict.main)

    @examples(12, 300)
    @given(st.lists(st.tuples(st.sampled_from(flags), odd_flags), min_size=1, max_size=2))
    def check(given_flags):
        with workspace() as folder:
            argv = copy_run(READERS["predict"], runs, folder)
            argv += [f"{flag}={value}" for flag, value in given_flags]
            ends_well(
                predict.main, argv, folder, tuple(value for flag, value in given_flags if flag == "--output")
            )

    check()


@pytest.mark.parametrize("place", ["missing", "folder", "loop", "long", "null", "under a file", "empty name"])
@pytest.mark.parametrize("flag", ["--data", "--output", ""])
def test_odd_places_for_predict(runs, flag, place):
    from tests.fuzz.strategies import put_odd

    with workspace() as folder:
        argv = copy_run(READERS["predict"], runs, folder)
        odd = put_odd(folder, place, "odd.jsonl")
        argv = [*argv, flag, odd] if flag else [odd, *argv[1:]]
        ends_well(predict.main, argv, folder, ("odd.jsonl",))


def test_an_ensemble_of_itself(runs):
    """No member may be the ensemble again: that would have no end."""
    with workspace() as folder:
        argv = copy_run(READERS["predict ensemble"], runs, folder)
        path = folder / "run" / "run.json"
        record = json.loads(path.read_text())
        for member in record["ensemble"]["members"]:
            member["run"] = "."
        path.write_text(json.dumps(record))
        assert "is an ensemble itself" in ends_well(predict.main, argv, folder).message
