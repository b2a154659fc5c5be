"""jobs/selftrain.py: what each round learns from, who teaches, what a kill leaves, which round is kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from core.errors import UserError
from core.pseudo_labels import class_quotas
from jobs import selftrain, selftrain_rounds
from tests.conftest import Killed, killed_at, toy_rows, write_jsonl
from tests.jobs.fake_students import score_students, scores_of, train_students

NAMES = ["blue", "green", "red"]
SIZES = {"train": 60, "pool": 200, "val": 40, "cal": 40, "test": 50}
FLAGS = {"train": "train_data", "pool": "unlabelled", "val": "val_data"}


@pytest.fixture(autouse=True)
def students(monkeypatch):
    """Trainings and scores of seconds; no picture."""
    monkeypatch.setattr(selftrain_rounds, "train_all", train_students)
    monkeypatch.setattr(selftrain_rounds, "score_files", score_students)
    monkeypatch.setattr(selftrain, "save_png", lambda figure, path: Path(path).write_text("png"))


@pytest.fixture
def flags(tmp_path):
    """Flags of a self-training on toy rows. kind: one, list or dict; more: flags by name."""

    def make(kind: str = "one", **more) -> list[str]:
        given = {"model_name": "m", "output_dir": tmp_path / "out", "resamples": 100, "audit_ratio": 0.3}
        given |= {"least_confidence": 0.5}
        for seed, (name, size) in enumerate(SIZES.items()):
            path = write_jsonl(tmp_path / f"{name}.jsonl", toy_rows(size, seed, kind))
            given |= {FLAGS[name]: path} if name in FLAGS else {}
        given |= more
        return [f"--{name}={value}" for name, value in given.items() if value is not None]

    return make


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def pseudo(out: Path, number: int, name: str = "m") -> list[dict]:
    return [row for row in lines(out / f"round{number}" / f"{name}.train.jsonl") if row.get("pseudo")]


def starts(out: Path) -> dict[str, int]:
    """Trainings by folder."""
    return {str(path.parent.relative_to(out)): len(path.read_text().split()) for path in out.rglob("starts")}


# -- what a round learns from -----------------------------------------------------------------------------------


def test_a_round_is_labelled_rows_and_the_surest_of_the_pool(flags, tmp_path):
    selftrain.main(flags(rounds=2, quota=0.1, margin=1))
    out = tmp_path / "out"
    labelled = lines(out / "parts" / "labelled.jsonl")
    for number in (1, 2):
        rows = lines(out / f"round{number}" / "m.train.jsonl")
        assert rows[: len(labelled)] == labelled
        assert all(row["pseudo"] and 0.5 <= row["confidence"] <= 1 for row in rows[len(labelled) :])
    sizes = [len(pseudo(out, number)) for number in (1, 2)]
    num_pool = len(lines(out / "parts" / "pool.jsonl"))
    assert [size <= int(0.1 * k * num_pool) for k, size in enumerate(sizes, 1)] == [True, True]
    assert sizes[1] > sizes[0] > 10


def said_by(out: Path, number: int, name: str, texts: list[str]) -> np.ndarray:
    """(n, 3) calibrated probabilities of a student."""
    line = json.loads((out / f"round{number}" / "round.json").read_text())["models"][name]
    return softmax(scores_of(out / f"round{number}" / name, texts) / line["temperature"], axis=1)


def test_the_labels_are_those_of_the_round_before(flags, tmp_path):
    selftrain.main(flags(rounds=2, margin=1))
    for number in (1, 2):
        rows = pseudo(tmp_path / "out", number)
        probs = said_by(tmp_path / "out", number - 1, "m", [row["text"] for row in rows])
        assert [row["label"] for row in rows] == [NAMES[k] for k in probs.argmax(axis=1)]
        assert [row["confidence"] for row in rows] == pytest.approx(probs.max(axis=1), abs=2e-6)


def test_the_audit_is_cut_as_the_pool_was(flags, tmp_path):
    selftrain.main(flags(rounds=2, margin=1, quota=0.4, audit_ratio=0.4))
    out = tmp_path / "out"
    audit = lines(out / "parts" / "audit.jsonl")
    for number in (1, 2):
        rows, told = pseudo(out, number), json.loads((out / f"round{number}" / "round.json").read_text())
        lowest = {name: min(row["confidence"] for row in rows if row["label"] == name) for name in NAMES}
        probs = said_by(out, number - 1, "m", [row["text"] for row in audit])
        best = [NAMES[k] for k in probs.argmax(axis=1)]
        passed = [k for k, name in enumerate(best) if probs[k].max() >= lowest[name] - 1e-6]
        right = [best[k] == audit[k]["label"] for k in passed]
        found = told["models"]["m"]["selection"]
        assert found["audit_rows"] == len(right) > 3
        assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def test_quotas_follow_the_labelled_rows(flags, tmp_path):
    rows = [row for row in toy_rows(240) if row["label"] != "blue"][:90] + [
        row for row in toy_rows(240) if row["label"] == "blue"
    ][:10]
    path = write_jsonl(tmp_path / "uneven.jsonl", rows)
    selftrain.main(flags(train_data=path, rounds=1, quota=0.2, least_confidence=0))
    labelled = lines(tmp_path / "out" / "parts" / "labelled.jsonl")
    prior = np.array([sum(row["label"] == name for row in labelled) for name in NAMES])
    num_pool = len(lines(tmp_path / "out" / "parts" / "pool.jsonl"))
    quotas = class_quotas(prior, int(0.2 * num_pool))
    told = [row["label"] for row in pseudo(tmp_path / "out", 1)]
    found = [told.count(name) for name in NAMES]
    assert (np.array(found) <= quotas).all()
    assert found[1:] == quotas[1:].tolist()


def test_no_audit_row_is_learnt_from(flags, tmp_path):
    given = flags(rounds=2, margin=1)
    pool = tmp_path / "pool.jsonl"
    pool.write_text(pool.read_text() + (tmp_path / "train.jsonl").read_text())
    selftrain.main(given)
    audit = {row["text"] for row in lines(tmp_path / "out" / "parts" / "audit.jsonl")}
    assert len(audit) >= 15
    for path in (tmp_path / "out").glob("round*/*.train.jsonl"):
        assert not audit & {row["text"] for row in lines(path)}


def test_labels_that_the_pool_carries_are_not_read(flags, tmp_path):
    given = flags(rounds=1)
    selftrain.main(given)
    first = (tmp_path / "out" / "round1" / "m.train.jsonl").read_text()
    rows = [row | {"label": "turned", "labels": 3} for row in lines(tmp_path / "pool.jsonl")]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    selftrain.main([*given, f"--output_dir={tmp_path / 'other'}"])
    assert (tmp_path / "other" / "round1" / "m.train.jsonl").read_text() == first


def test_the_audit_estimates_what_the_labels_show(flags):
    found = selftrain.main([*flags(rounds=1), "--check_labels"])
    line = found["rounds"][1]["models"]["m"]
    low, high = line["selection"]["interval"]
    assert low <= line["pool_accuracy"] <= high
    assert line["pool_accuracy"] > 0.5


def test_calibration_rows_fit_the_temperature(flags, tmp_path):
    found = selftrain.main([*flags(rounds=1), f"--calibration_data={tmp_path / 'cal.jsonl'}"])
    assert found["rounds"][0]["models"]["m"]["fitted_on"] == "calibration"


# -- several labels a row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_with_several_labels_every_label_is_sure(flags, tmp_path, kind):
    selftrain.main(flags(kind, rounds=1, quota=0.5, least_confidence=0.6))
    rows = pseudo(tmp_path / "out", 1)
    about = json.loads((tmp_path / "out" / "round0" / "round.json").read_text())["models"]["m"]
    logits = scores_of(tmp_path / "out" / "round0" / "m", [row["text"] for row in rows])
    probs = 1 / (1 + np.exp(-logits / about["temperature"]))
    assert len(rows) > 10
    assert np.maximum(probs, 1 - probs).min() >= 0.6 - 1e-6
    held = [
        row["labels"] if kind == "list" else [n for n, own in row["labels"].items() if own] for row in rows
    ]
    assert held == [[NAMES[c] for c in np.flatnonzero(own >= 0.5)] for own in probs]


def test_rows_without_a_label_have_a_quota_of_their_own(flags, tmp_path):
    found = selftrain.main(flags("list", rounds=1, quota=0.5, least_confidence=0.5))
    counts = found["rounds"][1]["models"]["m"]["per_class"]
    labelled = lines(tmp_path / "out" / "parts" / "labelled.jsonl")
    share = sum(not row["labels"] for row in labelled) / len(labelled)
    num_pool = len(lines(tmp_path / "out" / "parts" / "pool.jsonl"))
    assert 0 < counts["no label"] <= share * 0.5 * num_pool + 1


# -- several models ---------------------------------------------------------------------------------------------

TWO = ["--models", "a=bert:xx", "b=bert:yyyy"]


def test_two_models_learn_from_each_other(flags, tmp_path):
    selftrain.main([*flags(model_name=None, rounds=1), *TWO])
    out = tmp_path / "out"
    for name, other in (("a", "b"), ("b", "a")):
        rows = pseudo(out, 1, name)
        probs = said_by(out, 0, other, [row["text"] for row in rows])
        assert [row["confidence"] for row in rows] == pytest.approx(probs.max(axis=1), abs=2e-6)


def test_agreement_is_of_all_models(flags, tmp_path):
    selftrain.main([*flags(model_name=None, rounds=1, teach="agreement"), *TWO])
    both = [pseudo(tmp_path / "out", 1, name) for name in "ab"]
    assert both[0] == both[1] != []
    texts = [row["text"] for row in both[0]]
    probs = [said_by(tmp_path / "out", 0, name, texts) for name in "ab"]
    for own in probs:
        assert [NAMES[k] for k in own.argmax(axis=1)] == [row["label"] for row in both[0]]
    least = np.min([own.max(axis=1) for own in probs], axis=0)
    assert [row["confidence"] for row in both[0]] == pytest.approx(least, abs=2e-6)


# -- trials -----------------------------------------------------------------------------------------------------


def test_a_trial_hides_the_labels_of_the_rest(flags, tmp_path):
    given = flags(rounds=1, unlabelled=None, labelled_share=0.4)
    found = selftrain.main(given)
    trial, rows = tmp_path / "out" / "trial", lines(tmp_path / "train.jsonl")
    sides = [lines(trial / f"{name}.jsonl") for name in ("labelled", "pool")]
    assert sorted(row["text"] for side in sides for row in side) == sorted(row["text"] for row in rows)
    assert len(sides[0]) == pytest.approx(0.4 * len(rows), abs=2)
    assert found["parts"]["labelled"] + found["parts"]["audit"] == len(sides[0])
    assert "pool_accuracy" in found["rounds"][1]["models"]["m"]
    rival = json.loads((tmp_path / "out" / "all_labelled" / "m" / "run.json").read_text())
    assert rival["arguments"]["train_data"] == str(trial / "labelled.jsonl")
    assert result_of(selftrain.main(given)) == result_of(found)


def test_a_trial_needs_no_pool(flags):
    with pytest.raises(UserError, match="--labelled_share: makes a pool of --train_data"):
        selftrain.main(flags(labelled_share=0.4))


# -- restart ----------------------------------------------------------------------------------------------------


def result_of(found: dict) -> dict:
    """Without times, and where it was written."""
    rounds = [
        {name: {k: v for k, v in line.items() if k != "run"} for name, line in one["models"].items()}
        for one in found["rounds"]
    ]
    gain = {k: v for k, v in found["gain"].items() if k != "over"}
    return {"rounds": rounds, "gain": gain, "best": found["best_round"], "stopped": found["stopped"]}


def test_killed_at_any_instant_the_same_command_goes_on(flags, tmp_path):
    wanted = result_of(selftrain.main([*flags(rounds=1), f"--output_dir={tmp_path / 'straight'}"]))
    call, was_killed = 0, True
    while was_killed:
        out = tmp_path / f"killed{call}"
        given = [*flags(rounds=1), f"--output_dir={out}"]
        try:
            with killed_at(call):
                selftrain.main(given)
            was_killed = False
        except Killed:
            assert result_of(selftrain.main(given)) == wanted
        call += 7
    assert call > 21


def test_what_is_there_is_not_made_again(flags, tmp_path):
    given = flags(rounds=2, margin=1)
    first = selftrain.main(given)
    assert result_of(selftrain.main(given)) == result_of(first)
    assert set(starts(tmp_path / "out").values()) == {1}


def test_more_rounds_go_on_from_the_last(flags, tmp_path):
    straight = selftrain.main([*flags(rounds=2, margin=1), f"--output_dir={tmp_path / 'straight'}"])
    given = flags(rounds=1, margin=1)
    selftrain.main(given)
    assert result_of(selftrain.main([*given, "--rounds=2"])) == result_of(straight)
    assert set(starts(tmp_path / "out").values()) == {1}


def test_another_command_in_the_same_folder_is_refused(flags):
    given = flags(rounds=1)
    selftrain.main(given)
    with pytest.raises(UserError, match=r"holds another self-training: --quota was 0\.2, now 0\.3"):
        selftrain.main([*given, "--quota=0.3"])


def test_a_refused_start_leaves_nothing_that_refuses_the_next(flags):
    with pytest.raises(UserError, match="no audit row"):
        selftrain.main(flags(labelled_share=0.2, unlabelled=None, audit_ratio=0.0001, rounds=1))
    assert selftrain.main(flags(labelled_share=0.5, unlabelled=None, rounds=1))["parts"]["labelled"] > 15


def test_a_file_that_changed_is_refused(flags, tmp_path):
    given = flags(rounds=1)
    selftrain.main(given)
    write_jsonl(tmp_path / "pool.jsonl", toy_rows(30, 9))
    with pytest.raises(UserError, match=r"--unlabelled .*pool.jsonl has changed"):
        selftrain.main(given)


def test_a_failed_training_is_told(flags, monkeypatch):
    monkeypatch.setattr(selftrain_rounds, "train_all", lambda cells, gpus: {cells[0].folder: "no room"})
    with pytest.raises(UserError, match=r"round0/m: no room\. The same command goes on from here"):
        selftrain.main(flags(rounds=1))


# -- which round, and what it gains -----------------------------------------------------------------------------


def spoil(monkeypatch, first: int) -> None:
    """From a round on, students know nothing of the audit."""

    def scored(run: Path, paths: list[str], device: str | None) -> list[np.ndarray]:
        found = score_students(run, paths, device)
        spoilt = int(run.parent.name.removeprefix("round")) >= first
        return [
            -logits if spoilt and "audit" in path else logits
            for path, logits in zip(paths, found, strict=True)
        ]

    monkeypatch.setattr(selftrain_rounds, "score_files", scored)


def test_it_stops_when_the_audit_falls_and_keeps_the_best(flags, tmp_path, monkeypatch):
    spoil(monkeypatch, 2)
    found = selftrain.main(flags(rounds=4))
    assert len(found["rounds"]) == 3
    assert found["best_round"] < 2
    assert found["stopped"] == "the audit's macro F1 had fallen in round 2"
    assert found["run"] == str(tmp_path / "out" / f"round{found['best_round']}" / "m")


def test_patience_waits_another_round(flags, monkeypatch):
    spoil(monkeypatch, 1)
    found = selftrain.main(flags(rounds=4, patience=2))
    assert len(found["rounds"]) == 3
    assert found["best_round"] == 0


def test_a_pool_of_unsure_rows_ends_it(flags):
    found = selftrain.main(flags(rounds=3, least_confidence=1))
    assert found["best_round"] == 0
    assert found["stopped"] == "no row of the pool was as sure as 1 in round 1"
    assert found["gain"]["macro_f1"] == 0


def test_runs_that_are_no_result_lose_their_weights(flags, tmp_path, monkeypatch):
    spoil(monkeypatch, 2)
    found = selftrain.main(flags(rounds=2))
    best, out = found["best_round"], tmp_path / "out"
    for number in range(3):
        assert (out / f"round{number}" / "m" / "best_model").is_dir() == (number in (0, best))
    assert (out / "all_labelled" / "m" / "best_model").is_dir()


def test_the_gain_is_over_labelled_alone_and_over_all_labelled(flags, tmp_path):
    found = selftrain.main(flags(rounds=1))
    out = tmp_path / "out"
    assert found["gain"]["over"] == str(out / "round0" / "m")
    assert found["gain_over_all_labelled"]["over"] == str(out / "all_labelled" / "m")
    told = [json.loads((Path(run) / "run.json").read_text()) for run in (found["run"], out / "round0" / "m")]
    scores = [record["metrics"]["validation"]["macro_f1"] for record in told]
    assert found["gain"]["macro_f1"] == pytest.approx(scores[0] - scores[1])
    assert (found["gain"]["on"], found["gain"]["n"]) == ("validation", SIZES["val"])


def test_without_a_rival_there_is_none(flags, tmp_path):
    found = selftrain.main([*flags(rounds=1), "--no_rival"])
    assert found["gain_over_all_labelled"] is None
    assert not (tmp_path / "out" / "all_labelled").exists()


def test_test_rows_are_looked_at_once_at_the_end(flags, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        selftrain, "score_test", lambda runs, path, device: seen.append([run.name for run in runs])
    )
    none = {"macro_f1": 0.0, "interval": [0, 0], "accuracy": 0.0, "accuracy_interval": [0, 0]}
    monkeypatch.setattr(selftrain, "gain_over", lambda run, rival, split, *rest: none | {"on": split, "n": 1})
    found = selftrain.main([*flags(rounds=1), f"--test_data={tmp_path / 'test.jsonl'}"])
    assert seen == [["m"] * (2 + (found["best_round"] > 0))]
    assert found["gain"]["on"] == "test"


def test_the_last_line_is_json(flags, capsys):
    found = selftrain.main(flags(rounds=1))
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {name: found[name] for name in ("run", "best_round", "gain", "gain_over_all_labelled")}


def test_the_summary_ends_its_table_with_the_gain(flags, tmp_path):
    found = selftrain.main(flags(rounds=1))
    table = [line for line in (tmp_path / "out" / "summary.md").read_text().splitlines() if line[:1] == "|"]
    assert table[-1].startswith(f"| gain of {found['best_round']} | over labelled alone |")
    assert f"{found['gain']['macro_f1']:+.4f}" in table[-1]


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--unlabelled="], "--unlabelled: no file given"),
        (["--unlabelled=none.jsonl"], "--unlabelled none.jsonl: no such file"),
        (["--quota=0"], "--quota"),
        (["--teach=others"], "--teach others: needs several models"),
        (["--flags=--seed 3"], "--seed is given by the grid"),
        (["--flags=--calibration_data x"], "--calibration_data does not go there"),
        (["--flags=--no_such_flag"], "m: train.py: unrecognized arguments: --no_such_flag"),
        (["--models", "m=bert:xx"], "a second model of the name m"),
        (["--gpus=0"], "no CUDA device is visible"),
    ],
)
def test_bad_flags(flags, more, message):
    with pytest.raises(UserError, match=message):
        selftrain.main([*flags(), *more])


def test_several_labels_want_half_at_least(flags):
    with pytest.raises(UserError, match=r"several labels a row want 0\.5 or more"):
        selftrain.main(flags("list", least_confidence=0.4))
