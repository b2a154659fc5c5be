"""data/check_run.py: the command that is run, runs that cannot judge the rows, and a real one."""

import json
import subprocess
import sys

import pytest

import train
from core.errors import UserError
from data import check_run
from data.check_run import PREDICT, predict, predicted_labels, refuse_other_labels
from predict import load
from tests.helpers import replaced

BOTH = {"a": 0.5, "b": 0.5}


@pytest.fixture
def commands(monkeypatch) -> list[dict]:
    """What would be run; it predicts what stands in each row, "says"."""
    found = []

    def instead(command: list[str], env: dict, **kwargs) -> subprocess.CompletedProcess:
        source, target = (command[command.index(name) + 1] for name in ("--data", "--output"))
        with open(source) as file:
            rows = [json.loads(line) for line in file]
        with open(target, "w") as file:
            file.writelines(json.dumps(row["says"], ensure_ascii=False) + "\n" for row in rows)
        found.append({"command": command, "env": env, "rows": rows})
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(check_run.subprocess, "run", instead)
    return found


def test_rows_go_in_and_predictions_come_out(commands):
    rows = [{"post": "a\u2028b \ud800", "says": {"label": "\u2028"}}, {"post": "c", "says": {"label": "d"}}]
    assert predict("RUN", rows, "post", "answer", "cpu") == [{"label": "\u2028"}, {"label": "d"}]
    assert commands[0]["rows"] == rows
    command = commands[0]["command"]
    assert command[:3] == [sys.executable, str(PREDICT), "RUN"]
    assert command[-4:] == ["--text_field=post", "--pair_field=answer", "--device", "cpu"]


def test_the_key_is_not_handed_on(commands, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-others")
    monkeypatch.setenv("OTHER", "stays")
    predict("RUN", [{"text": "a", "says": {}}], "text")
    assert "OPENAI_API_KEY" not in commands[0]["env"]
    assert commands[0]["env"]["OTHER"] == "stays"


def test_for_no_rows_nothing_is_run(commands):
    assert predict("RUN", [], "text") == []
    assert commands == []


@pytest.mark.parametrize(
    "said, told", [("warning\nerror: no run here\n", "no run here$"), ("", "it printed nothing$")]
)
def test_a_run_that_cannot_predict_is_told(monkeypatch, said, told):
    failed = subprocess.CompletedProcess([], 2, stderr=said)
    monkeypatch.setattr(check_run.subprocess, "run", lambda command, **kwargs: failed)
    with pytest.raises(UserError, match=rf"^--check_run RUN: predict\.py: {told}"):
        predict("RUN", [{"text": "a"}], "text")


def test_a_ranker_is_refused():
    with pytest.raises(UserError, match="--check_run RUN: is no classifier's run"):
        refuse_other_labels("RUN", {"choice": 0, "scores": [1.0]}, ["a"], "one")


def test_a_run_with_other_labels_is_refused():
    with pytest.raises(UserError, match="--check_run RUN: does not know the label 'c'; it knows a, b"):
        refuse_other_labels("RUN", {"label": "a", "probabilities": BOTH}, ["b", "c", "d"], "one")


@pytest.mark.parametrize("kind", ["one", "list", "dict"])
def test_a_run_of_another_kind_is_refused(kind):
    one = {"label": "a", "probabilities": BOTH}
    own, other = (one, one | {"labels": []}) if kind == "one" else (one | {"labels": []}, one)
    refuse_other_labels("RUN", own, ["a", "b"], kind)
    with pytest.raises(
        UserError, match=r"label.? a row, the rows have .*; give a run that was trained on such rows"
    ):
        refuse_other_labels("RUN", other, ["a", "b"], kind)


def test_predicted_labels_are_those_that_hold():
    assert predicted_labels({"label": "a"}) == {"a"}
    assert predicted_labels({"label": "a", "labels": []}) == set()
    assert predicted_labels({"label": "a", "labels": ["b", "a"]}) == {"a", "b"}


@pytest.mark.slow  # it trains, and loads torch twice more
def test_a_real_run_by_its_command(toy_flags, tmp_path):
    train.main(replaced(toy_flags, epochs=1))
    run, texts = str(tmp_path / "run"), ["the rose of her", "the sea of her"]
    found = predict(run, [{"post": text} for text in texts], "post")
    assert found == load(run)(texts)
    refuse_other_labels(run, found[0], ["red", "green", "blue"], "one")
