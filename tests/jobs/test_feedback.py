"""jobs/feedback.py: the most uncertain rows first, by hand; a simulated person errs as often as it is told to."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import predict
import rank_train
import train
from core.errors import UserError
from core.feedback import read_feedback, row_accuracies
from jobs import feedback
from tests.conftest import save_tiny, toy_rows, write_jsonl
from tests.helpers import rank_flags

ROOT = Path(__file__).parent.parent.parent
NAMES = ["blue", "green", "red"]


# -- collect: by hand -------------------------------------------------------------------------------------------


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_uncertainty_by_hand():
    probs = np.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1.0, 1e-300, 1e-300]])
    expected = [0.5 * math.log(2) + 0.5 * math.log(4), math.log(3), 0.0]
    np.testing.assert_allclose(feedback.uncertainty(np.log(probs), False), expected, rtol=1e-12, atol=1e-12)
    logits = np.array([[0.0, logit(0.9)], [0.0, 0.0], [800.0, -800.0]])
    one = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    expected = [(math.log(2) + one) / 2, math.log(2), 0.0]
    np.testing.assert_allclose(feedback.uncertainty(logits, True), expected, rtol=1e-12, atol=1e-12)
    nearly = feedback.uncertainty(np.array([[40.0]]), True)  # 1 - p is 0 in float64, its entropy is not
    np.testing.assert_allclose(nearly, [41 * math.exp(-40)], rtol=1e-6)


def test_the_most_uncertain_row_comes_first():
    probs = np.array([[0.9, 0.05, 0.05], [0.3, 0.3, 0.4], [0.1, 0.6, 0.3], [0.05, 0.9, 0.05]])
    rows = [{"id": k, "text": f"t{k}", "true_labels": None} for k in range(4)]
    made = feedback.rows_to_fill(rows, np.log(probs), NAMES, False, None)
    assert [row["id"] for row in made] == [1, 2, 0, 3]  # 0 and 3 are equal: as they came
    assert made[0] == {
        "id": 1,
        "text": "t1",
        "true_labels": None,
        "predicted_labels": "red",
        "probabilities": {"red": 0.4, "blue": 0.3, "green": 0.3},
        "uncertainty": round(-(0.6 * math.log(0.3) + 0.4 * math.log(0.4)), 6),
        "feedback": None,
    }
    assert list(made[1]["probabilities"].items()) == [("green", 0.6), ("red", 0.3), ("blue", 0.1)]
    assert feedback.rows_to_fill(rows, np.log(probs), NAMES, False, None, num_rows=2) == made[:2]
    assert "feedback" not in rows[0]  # what was given is left as it is


def test_label_sets_hold_from_their_thresholds():
    logits = np.array([[logit(0.95), logit(0.3), logit(0.05)], [logit(0.5), logit(0.4), logit(0.6)]])
    rows = [{"text": "a"}, {"text": "b"}]
    made = feedback.rows_to_fill(rows, logits, NAMES, True, np.array([0.5, 0.25, 0.7]))
    assert [row["text"] for row in made] == ["b", "a"]
    assert [row["predicted_labels"] for row in made] == [["blue", "green"], ["blue", "green"]]
    assert list(made[0]["probabilities"]) == ["red", "blue", "green"]
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.95, 0.3, 0.05)]
    assert made[1]["uncertainty"] == pytest.approx(sum(entropy) / 3, abs=1e-6)
    plain = feedback.rows_to_fill(rows, logits, NAMES, True, None)
    assert [row["predicted_labels"] for row in plain] == [["blue", "red"], ["blue"]]


# -- collect: with runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run with one label a row, one with several, one that takes pairs of joined columns."""
    folder = tmp_path_factory.mktemp("runs")
    model, found = save_tiny(folder / "tiny"), {}
    for name, kind in (("one", "one"), ("several", "list"), ("pairs", "one")):
        rows = [
            row | {"id": k, "title": f"it is {k}", "second": "the sea"}
            for k, row in enumerate(toy_rows(40, 3, kind))
        ]
        data = write_jsonl(folder / f"{name}.jsonl", rows)
        more = ("--text_field", "title,text", "--pair_field", "second") if name == "pairs" else ()
        flags = ["--model_name", model, "--train_data", data, "--val_data", data, *more]
        flags += ["--cache_dir", str(folder / "cache"), "--output_dir", str(folder / name)]
        flags += ["--max_length", "32", "--learning_rate", "1e-2", "--amp", "off", "--batch_size", "16"]
        train.main([*flags, "--max_steps", "4"])
        found[name], found[f"{name}-data"] = folder / name, Path(data)
    return found


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["one", "several"])
def test_collect_writes_what_the_run_predicts(runs, tmp_path, name, capsys, monkeypatch):
    monkeypatch.setattr(feedback, "WINDOW", 7)  # order is over the file, not over a window
    data, out = runs[f"{name}-data"], tmp_path / "new" / "feedback.json"
    result = feedback.main(["collect", str(runs[name]), "--data", str(data), "--output", str(out)])
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == result
    assert "40 rows, 40 with true labels" in printed
    assert "1 right, 0 wrong" in printed
    made, given = json.loads(out.read_text()), read_jsonl(data)
    assert result["rows"] == result["rows_read"] == len(made) == 40
    assert not list(out.parent.glob("*.part"))
    several, by_id = name == "several", {row["id"]: row for row in made}
    assert sorted(by_id) == list(range(40))
    predicted = predict.load(runs[name])([row["text"] for row in given])
    for row, expected in zip(given, predicted, strict=True):
        found = by_id[row["id"]]
        keys = ["id", "text", "true_labels", "predicted_labels", "probabilities", "uncertainty", "feedback"]
        assert list(found) == keys
        assert (found["text"], found["feedback"]) == (row["text"], None)
        assert found["true_labels"] == row["labels" if several else "label"]
        assert found["predicted_labels"] == expected["labels" if several else "label"]
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=6e-5)
    unsure = [row["uncertainty"] for row in made]
    assert unsure == sorted(unsure, reverse=True)
    assert len(set(unsure)) > 20
    assert result["mean_uncertainty"] == pytest.approx(sum(unsure) / 40, abs=1e-6)
    assert result["mean_uncertainty_read"] == pytest.approx(sum(unsure) / 40, abs=1e-5)
    for row in made:
        row["feedback"] = 0.5
    out.write_text(json.dumps(made))
    rows = read_feedback(str(out), "--x", NAMES, several)  # what was written is what is read
    assert rows.texts == [row["text"] for row in made]
    assert rows.has_truth.all()


def test_only_the_most_uncertain_and_jsonl(runs, tmp_path):
    call = ["collect", str(runs["one"]), "--data", str(runs["one-data"]), "--output"]
    feedback.main([*call, str(tmp_path / "all.json")])
    result = feedback.main([*call, str(tmp_path / "few.jsonl"), "--num_rows", "5"])
    assert read_jsonl(tmp_path / "few.jsonl") == json.loads((tmp_path / "all.json").read_text())[:5]
    assert (result["rows"], result["rows_read"]) == (5, 40)
    assert result["mean_uncertainty"] > result["mean_uncertainty_read"]


def test_pairs_of_joined_columns_in_csv_without_labels(runs, tmp_path):
    data, out = tmp_path / "rows.csv", tmp_path / "feedback.json"
    data.write_text("title,text,second,label\nit,a rose,the sea,\nas,the sky,of ink,red\n")
    feedback.main(["collect", str(runs["pairs"]), "--data", str(data), "--output", str(out)])
    found = {row["pair"]: row for row in json.loads(out.read_text())}
    assert found["the sea"]["text"] == "title: it\ntext: a rose"
    assert found["the sea"]["true_labels"] is None
    assert found["of ink"]["text"] == "title: as\ntext: the sky"
    assert found["of ink"]["true_labels"] == "red"
    assert "id" not in found["of ink"]
    texts = [found[pair]["text"] for pair in found]
    expected = predict.load(runs["pairs"])(texts, list(found))
    assert [row["predicted_labels"] for row in found.values()] == [row["label"] for row in expected]
    for row, other in zip(found.values(), expected, strict=True):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=6e-5)  # token types too
    rows = [row | {"feedback": 1} for row in found.values()]
    path = write_jsonl(tmp_path / "filled.jsonl", rows)
    assert read_feedback(path, "--x", NAMES, False, pair=True).pairs == list(found)


def test_all_bad_rows_are_named_and_nothing_is_written(runs, tmp_path):
    rows = [
        {"text": "red"},
        {"content": "red"},
        {"text": "red", "label": "pink"},
        {"text": "red", "label": ["red", "blue"]},
        {"text": "\u200b"},
        {"text": "red", "label": None},
        {"text": "red", "label": "red", "id": "\ud83d"},
    ]
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.json"
    with pytest.raises(UserError) as error:
        feedback.main(["collect", str(runs["one"]), "--data", data, "--output", str(out)])
    said = str(error.value).splitlines()
    assert said[0] == f"{data}: 5 bad rows:"
    assert said[1].startswith("  line 2: no field 'text'")
    assert said[2] == "  line 3: field 'label': the model has no label \"pink\"; it has blue, green, red"
    assert said[3].startswith('  line 4: field \'label\' is ["red", "blue"]; expected one label')
    assert said[4] == "  line 5: the text has no token: empty after tokenisation"
    assert said[5].startswith("  line 7: field 'id': character 2 is '\\ud83d', half of a surrogate pair")
    assert not list(tmp_path.glob("out*"))


def test_a_run_that_has_diverged_is_named(runs, tmp_path, monkeypatch):
    def diverged(self, ids, starts):
        logits = np.zeros((len(ids), 3), np.float32)
        logits[4, 1] = np.nan
        return logits

    monkeypatch.setattr(predict.Predictor, "score_ids", diverged)
    call = [
        "collect",
        str(runs["one"]),
        "--data",
        str(runs["one-data"]),
        "--output",
        str(tmp_path / "o.json"),
    ]
    with pytest.raises(UserError, match="1 bad row:\n  line 5: a score is not finite"):
        feedback.main(call)
    assert not list(tmp_path.glob("o.json*"))


def test_device_and_amp_are_passed_on(monkeypatch, tmp_path):
    def load(*args):
        raise UserError(f"{args}")

    monkeypatch.setattr(feedback, "load", load)
    call = ["collect", "RUN", "--data", "a.jsonl", "--output", str(tmp_path / "o.json")]
    with pytest.raises(UserError, match=r"^\('RUN', None, 'off'\)$"):
        feedback.main(call)
    with pytest.raises(UserError, match=r"^\('RUN', 'cpu', 'run'\)$"):
        feedback.main([*call, "--device", "cpu", "--amp", "run"])


def test_rankers_are_refused(tmp_path, no_figures):
    rank_train.main(
        [*rank_flags(tmp_path, "bert"), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    )
    data = str(tmp_path / "val.jsonl")
    with pytest.raises(UserError, match="is a ranker; expected a classifier's run"):
        feedback.main(
            ["collect", str(tmp_path / "run"), "--data", data, "--output", str(tmp_path / "o.json")]
        )
    assert not (tmp_path / "o.json").exists()


# -- simulate ---------------------------------------------------------------------------------------------------


def simulate(tmp_path, rows: list[dict], *flags: str) -> list[dict]:
    source = write_jsonl(tmp_path / "feedback.jsonl", rows)
    feedback.main(["simulate", source, "--output", str(tmp_path / "filled.json"), *flags])
    return json.loads((tmp_path / "filled.json").read_text())


def answers(rows: list[dict]) -> list[float]:
    return [row["feedback"] for row in rows]


PROBS = {"red": 0.9, "blue": 0.6, "green": 0.1, "grey": 0.1}
ROWS = {  # case: (true, predicted, probabilities, feedback without errors)
    "right": ("red", "red", PROBS, 1),
    "wrong": ("blue", "red", PROBS, 0),
    "an integer, a list of one": (3, ["3"], None, 1),
    "sets: one of four is wrong": (["red"], ["red", "blue"], PROBS, 0.75),
    "sets: all right": (["blue", "red"], ["red", "blue"], PROBS, 1),
    "sets: all wrong": (["green", "grey"], {"red": 1, "blue": 1}, PROBS, 0),
    "sets: 0/1": ({"red": 0, "grey": 1}, ["grey", "blue"], PROBS, 0.75),
    "sets: of the names in the row": (["red"], ["red", "blue"], None, 0.5),
    "sets: names that are 0 count": ({"red": 1, "grey": 0}, ["red", "blue"], None, 0.666667),
    "sets: no name at all": ([], [], None, 1),
    "sets: no label holds": ([], [], PROBS, 1),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_person_who_never_errs(case, tmp_path, capsys):
    true, predicted, probs, expected = ROWS[case]
    row = {"id": 3, "text": "a", "true_labels": true, "predicted_labels": predicted, "feedback": None}
    row |= {} if probs is None else {"probabilities": probs}
    found = simulate(tmp_path, [row])
    assert found == [row | {"feedback": expected}]  # all else is as it was
    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1]) == {
        "output": str(tmp_path / "filled.json"), "rows": 1, "wrong": 0, "mean_feedback": expected
    }  # fmt: skip
    assert answers(simulate(tmp_path, [row], "--error_rate", "1")) == [pytest.approx(1 - expected)]


def many(num_rows: int) -> list[dict]:
    """Every third prediction is right."""
    return [
        {"text": f"t{k}", "true_labels": "red", "predicted_labels": "blue" if k % 3 else "red"}
        for k in range(num_rows)
    ]


def test_as_many_errors_as_told_and_the_same_ones_each_time(tmp_path, capsys):
    rows = many(3000)
    right = np.array([k % 3 == 0 for k in range(3000)])
    found = np.array(answers(simulate(tmp_path, rows, "--error_rate", "0.1", "--seed", "5")))
    wrong = found != right
    assert wrong.sum() == 323  # numpy's stream for seed 5; 300 are expected, give or take 16
    assert f"{wrong.sum()} wrong (10.8%; --error_rate 0.1, --seed 5)" in capsys.readouterr().out
    assert set(found) == {0.0, 1.0}
    assert abs(wrong[right].mean() - wrong[~right].mean()) < 0.04  # both ways alike
    again = answers(simulate(tmp_path, rows, "--seed", "5", "--error_rate", "0.1"))
    assert again == found.tolist()
    more = np.array(answers(simulate(tmp_path, rows, "--seed", "5", "--error_rate", "0.3"))) != right
    assert more[wrong].all()  # a higher rate turns the same rows and more
    assert 850 < more.sum() < 950
    other = np.array(answers(simulate(tmp_path, rows, "--seed", "6", "--error_rate", "0.1"))) != right
    assert (other != wrong).any()
    assert answers(simulate(tmp_path, rows, "--error_rate", "0")) == right.tolist()
    assert answers(simulate(tmp_path, rows, "--error_rate", "1")) == (~right).tolist()


def test_the_accuracy_is_the_one_that_rewards_use(runs, tmp_path):
    for name in ("one", "several"):
        out = tmp_path / f"{name}.json"
        feedback.main(["collect", str(runs[name]), "--data", str(runs[f"{name}-data"]), "--output", str(out)])
        feedback.main(["simulate", str(out), "--output", str(tmp_path / "filled.jsonl")])
        rows = read_feedback(str(tmp_path / "filled.jsonl"), "--x", NAMES, name == "several")
        np.testing.assert_allclose(rows.feedback, row_accuracies(rows), atol=1e-6)
        assert 0 < rows.feedback.mean() < 1


def test_feedback_that_was_there_is_replaced_and_said_so(tmp_path, capsys):
    rows = many(4)
    rows[0]["feedback"], rows[1]["feedback"], rows[2]["feedback"] = 0, 0.5, ""
    assert answers(simulate(tmp_path, rows)) == [1, 0, 0, 1]
    assert "4 rows, 2 had feedback before, which is replaced" in capsys.readouterr().out
    simulate(tmp_path, many(4))
    assert "before" not in capsys.readouterr().out


def test_rows_that_cannot_be_judged_are_all_named(tmp_path):
    good = many(1)[0] | {"probabilities": {"red": 0.9, "blue": 0.1}}
    rows = [
        good,
        good | {"true_labels": None},
        {"text": "a", "predicted_labels": "red"},
        {"text": "a", "true_labels": "red"},
        good | {"predicted_labels": ["red", "blue"]},
        good | {"true_labels": "pink"},
        good | {"probabilities": [0.9, 0.1]},
        good | {"text": "\ud83d"},
    ]
    with pytest.raises(UserError) as error:
        simulate(tmp_path, rows)
    said = str(error.value).splitlines()
    assert said[0] == f"{tmp_path / 'feedback.jsonl'}: 7 bad rows:"
    assert said[1] == "  line 2: no 'true_labels'; simulated feedback is made from them"
    assert said[2] == "  line 3: no 'true_labels'; simulated feedback is made from them"
    assert said[3] == "  line 4: no 'predicted_labels'; expected what `collect` wrote"
    assert said[4].startswith('  line 5: field \'predicted_labels\' is ["red", "blue"]; expected one label')
    assert said[5].startswith(
        "  line 6: field 'true_labels': the model has no label \"pink\"; it has red, blue"
    )
    assert said[6].startswith("  line 7: field 'probabilities' is [0.9, 0.1]; expected {name: p}")
    assert said[7].startswith(
        "  line 8: the row as JSON: character 11 is '\\ud83d', half of a surrogate pair"
    )
    assert not (tmp_path / "filled.json").exists()


def test_one_odd_row_does_not_make_all_others_odd(tmp_path):
    several = [{"text": "a", "true_labels": ["red", "blue"], "predicted_labels": []}] * 3
    with pytest.raises(
        UserError, match="1 bad row:\n  line 4: field 'predicted_labels' is \"red\"; expected a list"
    ):
        simulate(tmp_path, [*several, {"text": "a", "true_labels": ["red"], "predicted_labels": "red"}])


# -- flags ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["collect", "simulate"])
def test_an_output_that_cannot_be_is_refused_before_anything_is_read(step, tmp_path):
    source = tmp_path / "rows.jsonl"
    call = [step, "RUN", "--data", str(source)] if step == "collect" else [step, str(source)]
    with pytest.raises(UserError, match=r"--output .*: is a folder; give a file"):
        feedback.main([*call, "--output", str(tmp_path)])
    with pytest.raises(UserError, match=r"--output .*: is the input; give another file"):
        feedback.main([*call, "--output", f"{tmp_path}/../{tmp_path.name}/rows.jsonl"])
    with pytest.raises(
        UserError, match=r"--output .*out\.csv: expected a file of feedback that ends in \.json"
    ):
        feedback.main([*call, "--output", str(tmp_path / "out.csv")])
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written(tmp_path, runs):
    (tmp_path / "file").write_text("")
    call = ["collect", str(runs["one"]), "--data", str(runs["one-data"])]
    with pytest.raises(UserError, match=r"--output .*out.json: lies below a file"):
        feedback.main([*call, "--output", str(tmp_path / "file" / "out.json")])


BAD_FLAGS = {
    "no step": ([], "nothing: no such step; expected one of collect, simulate"),
    "another step": (["fill"], "fill: no such step; expected one of collect, simulate"),
    "no output": (["simulate", "a.json"], "arguments are required: --output"),
    "no data": (["collect", "RUN", "--output", "b.json"], "arguments are required: --data"),
    "a rate above 1": (["simulate", "a.json", "--output", "b.json", "--error_rate", "10"], "a number from 0 to 1"),
    "a flag of the other step": (["collect", "R", "--data", "a", "--output", "b", "--seed", "1"], "--seed 1"),
    "no such file": (["simulate", "a.json", "--output", "b.json"], "FEEDBACK a.json: no such file"),
    "a table": (["simulate", "a.csv", "--output", "b.json"], "FEEDBACK a.csv: expected a file of feedback that"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case, tmp_path, monkeypatch):
    flags, message = BAD_FLAGS[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        feedback.main(flags)
    assert not list(tmp_path.iterdir())


def test_from_the_shell(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", many(3))
    command = [
        sys.executable,
        "-m",
        "jobs.feedback",
        "simulate",
        source,
        "--output",
        str(tmp_path / "o.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 3


def test_hidden_labels_change_no_feedback(tmp_path):
    source, found = write_jsonl(tmp_path / "rows.jsonl", many(40)), []
    for more in ([], ["--hide_labels"]):
        out = tmp_path / f"{len(more)}.json"
        feedback.main(["simulate", source, "--output", str(out), "--error_rate", "0.2", *more])
        found.append(json.loads(out.read_text()))
    assert [row["feedback"] for row in found[0]] == [row["feedback"] for row in found[1]]
    assert all(row["true_labels"] is None for row in found[1])
