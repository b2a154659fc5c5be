"""rank_predict.py: a finished ranker in Python and from the shell, the scores of the run, the faults of a user."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import predict
import rank_predict
import rank_train
from archs.ranker import Ranker
from core.errors import UserError
from jobs import merge
from tests.conftest import rank_rows, write_jsonl
from tests.helpers import rank_flags, replaced

KINDS = {"causal": "adapters", "whole": "a decoder", "bert": "an encoder"}
ROWS = rank_rows(40, 1)  # those that the runs were evaluated on


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Runs of four steps."""
    folder, found = tmp_path_factory.mktemp("rank"), {}
    with pytest.MonkeyPatch.context() as patch:  # figures take more time than everything else
        patch.setattr("core.rank_report.save_png", lambda figure, path: None)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *args: None)
        for kind in KINDS:
            found[kind] = folder / "runs" / kind
            rank_train.main(replaced(rank_flags(folder, kind), output_dir=found[kind]))
    found["val"] = folder / "val.jsonl"
    return found


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def close(a: list[dict], b: list[dict]) -> bool:
    """Same choices, scores to 1e-5 (cuts of other shapes sum in another order)."""
    return all(
        x["choice"] == y["choice"] and np.allclose(x["scores"], y["scores"], rtol=1e-5, atol=1e-5)
        for x, y in zip(a, b, strict=True)
    )


TOO_LARGE = SimpleNamespace(ids=torch.zeros(1, 500))


# -- the scores of the run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_python_shell_and_the_run_agree(runs, tmp_path, kind):
    predictor, logits = predict.load(runs[kind]), np.load(runs[kind] / "validation" / "logits.npy")
    assert predictor.layout == ("packed" if kind == "bert" else "shared")
    found = predictor(ROWS)
    for row, wanted in zip(found, logits, strict=True):
        np.testing.assert_allclose(row["scores"], wanted[~np.isnan(wanted)], rtol=1e-5, atol=2e-6)
        assert row["choice"] == np.nanargmax(wanted)
    assert close(found, read_jsonl(runs[kind] / "validation" / "predictions.jsonl"))
    assert close(found, [predictor([row])[0] for row in ROWS])
    assert close(found, predict.load(runs[kind] / "best_model")(ROWS))  # the model folder alone
    out = tmp_path / "out.jsonl"
    result = predict.main(
        [str(runs[kind]), "--data", str(runs["val"]), "--output", str(out), "--max_tokens", "70"]
    )
    assert close(read_jsonl(out), found)
    assert result["n"] == 40
    assert not close(found[::-1], found)  # the check itself bites


def test_order_is_kept_over_windows_of_questions_of_several_sizes(runs, tmp_path, monkeypatch):
    rows = sorted(
        ROWS, key=lambda row: len(row["candidates"])
    )  # whole windows of two candidates, then of three
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    wanted = predict.load(runs["causal"])(rows)
    monkeypatch.setattr(rank_predict, "WINDOW", 7)
    assert close(predict.load(runs["causal"])(rows), wanted)
    call = [str(runs["causal"]), "--data", data, "--output", str(out), "--evaluate"]
    found = predict.main(call)
    assert close(read_jsonl(out), wanted)
    metrics = json.loads((runs["causal"] / "validation" / "metrics.json").read_text())
    assert found["accuracy"] == pytest.approx(metrics["accuracy"])


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_gives_the_metrics_of_the_run(runs, tmp_path, kind, capsys):
    call = [
        str(runs[kind]),
        "--data",
        str(runs["val"]),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--evaluate",
    ]
    found = predict.main(call)
    expected = json.loads((runs[kind] / "validation" / "metrics.json").read_text())
    for metric in ("accuracy", "reward_ratio", "average_reward", "mrr", "map", "ndcg", "loss", "n"):
        assert found[metric] == pytest.approx(expected[metric], abs=1e-5)
    assert "reward_ratio" in capsys.readouterr().out


def test_rows_need_neither_context_nor_rewards(runs):
    predictor = predict.load(runs["causal"])
    bare = [{"question": row["question"], "candidates": row["candidates"]} for row in ROWS[:5]]
    found = predictor(bare)
    assert [len(row["scores"]) for row in found] == [len(row["candidates"]) for row in bare]
    assert not close(found, predictor(ROWS[:5]))  # the context counts
    assert close(predictor([row | {"context": None} for row in bare]), found)
    one = predictor([ROWS[0] | {"candidates": ROWS[0]["candidates"][:1], "rewards": [1.0]}])
    assert close(one, [{"choice": 0, "scores": predictor(ROWS[:1])[0]["scores"][:1]}])
    assert predictor([]) == []


def test_the_order_of_candidates_does_not_matter(runs):
    for kind in KINDS:
        predictor = predict.load(runs[kind])
        turned = [
            row | {"candidates": row["candidates"][::-1], "rewards": row["rewards"][::-1]} for row in ROWS
        ]
        for found, other in zip(predictor(ROWS), predictor(turned), strict=True):
            np.testing.assert_allclose(found["scores"], other["scores"][::-1], rtol=1e-5, atol=2e-6)


# -- files ------------------------------------------------------------------------------------------------------


def test_csv_in_and_out_and_kept_columns(runs, tmp_path):
    data, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    with open(data, "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "question", "context", "candidates"])
        writer.writeheader()
        for k, row in enumerate(ROWS[:9]):
            cells = {"id": k, "candidates": json.dumps(row["candidates"])}
            writer.writerow(cells | {name: row[name] for name in ("question", "context")})
    predict.main([str(runs["bert"]), "--data", str(data), "--output", str(out), "--keep", "id"])
    found, wanted = list(csv.DictReader(io.StringIO(out.read_text()))), predict.load(runs["bert"])(ROWS[:9])
    assert list(found[0]) == ["id", "choice", "scores"]
    assert [row["id"] for row in found] == [str(k) for k in range(9)]
    read = [
        {"choice": int(row["choice"]), "scores": [float(x) for x in row["scores"].split(";")]}
        for row in found
    ]
    assert close(read, wanted)
    out = tmp_path / "out.jsonl"
    predict.main([str(runs["bert"]), "--data", str(data), "--output", str(out), "--keep", "id,nothing"])
    assert [(row["id"], row["nothing"]) for row in read_jsonl(out)] == [(str(k), None) for k in range(9)]


def test_standard_input_and_output(runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(runs["val"].read_bytes())))
    predict.main([str(runs["causal"]), "--data", "-", "--output", "-", "--evaluate"])
    said = capsys.readouterr()
    assert close([json.loads(line) for line in said.out.splitlines()], predict.load(runs["causal"])(ROWS))
    assert "reward_ratio" in said.err  # the table goes where it does not mix with rows


# -- faults -----------------------------------------------------------------------------------------------------

LONG = {"question": "it " * 60, "candidates": ["red", "blue"], "rewards": [0, 1]}
FILES = {  # case: (rows, flags, message)
    "no candidates": ([{"question": "is it"}], [], "line 2: no field 'candidates'; expected a list of texts"),
    "no question": ([{"candidates": ["a", "b"]}], [], r"line 2: no field 'question' \(found: candidates\)"),
    "an empty candidate": (
        [ROWS[0] | {"candidates": ["red", ""]}],
        [],
        "line 2: field 'candidates': number 2 is",
    ),
    "no token": (
        [ROWS[0] | {"candidates": ["\u200b"], "rewards": [0]}],
        [],
        "line 2: candidate 1 has no token",
    ),
    "too long": ([LONG], [], "line 2: question and longest candidate .1 tokens. do not fit --max_length 40"),
    "odd rewards": ([ROWS[0] | {"rewards": [1]}], [], "line 2: 1 rewards for . candidates"),
    "no rewards": ([{"question": "it", "candidates": ["a"]}], ["--evaluate"], "line 2: no field 'rewards'"),
    "generate": ([], ["--generate"], "--generate: this run is a ranker; it answers with a choice"),
    "a text field": ([], ["--text_field", "x"], "--text_field: this run is a ranker; its rows have question"),
    "a column twice": ([], ["--keep", "scores"], "--keep scores: the output has columns choice and scores"),
}


@pytest.mark.parametrize("case", FILES)
def test_faults_leave_no_output(runs, tmp_path, case):
    rows, flags, message = FILES[case]
    data = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], *rows])
    with pytest.raises(UserError, match=message):
        predict.main([str(runs["causal"]), "--data", data, "--output", str(tmp_path / "out.jsonl"), *flags])
    assert not list(tmp_path.glob("out.jsonl*"))


def test_faults_in_python(runs, tmp_path):
    predictor = predict.load(runs["causal"])
    with pytest.raises(
        UserError, match=r"rows: 2 bad rows:\n  line 1: no field 'candidates'.*\n  line 3: .*'question'"
    ):
        predictor([{"question": "a"}, ROWS[0], {"candidates": ["a"]}])
    with pytest.raises(UserError, match="rows: 1 bad row:\n  line 2: question and longest candidate"):
        predictor([ROWS[0], LONG])
    with pytest.raises(UserError, match="is a ranker; only classifiers are merged"):
        merge.main([str(runs["causal"])])
    broken = shutil.copytree(runs["bert"] / "best_model", tmp_path / "broken")
    (broken / "score_head.safetensors").unlink()
    with pytest.raises(UserError, match=r"score_head\.safetensors"):
        predict.load(broken)


def test_scores_that_are_not_finite_are_named_by_their_lines(runs, tmp_path, monkeypatch):
    data, predictor = write_jsonl(tmp_path / "rows.jsonl", ROWS[:8]), predict.load(runs["bert"], "cpu")
    forward = Ranker.forward

    def one_is_nan(model, cut):
        scores, sizes = forward(model, cut), cut.keep.sum(dim=1)
        owners = cut.questions[sizes.cumsum(0) - sizes]
        return torch.where((owners == 4)[:, None], torch.nan, scores)

    monkeypatch.setattr(Ranker, "forward", one_is_nan)
    with pytest.raises(UserError, match="rows: 1 bad row:\n  line 5: a score is not finite"):
        predictor(ROWS[:8])
    with pytest.raises(UserError, match=r"rows\.jsonl: 1 bad row:\n  line 5: a score is not finite"):
        predict.main([str(runs["bert"]), "--data", data, "--output", str(tmp_path / "out.jsonl")])
    assert not list(tmp_path.glob("out.jsonl*"))


def test_texts_for_a_ranker_are_refused(runs):
    with pytest.raises(UserError, match='line 1: the row is "a text"; expected an object'):
        predict.load(runs["causal"])(["a text"])


def test_cuts_are_halved_for_good_where_memory_ends(runs, monkeypatch):
    predictor, forward, raised = predict.load(runs["causal"], "cpu", max_tokens=400), Ranker.forward, []
    wanted = predictor(ROWS)

    def limited(model, cut):
        if cut.tokens.ids.numel() > 150:
            raised.append(cut)
            raise torch.OutOfMemoryError("injected")
        return forward(model, cut)

    monkeypatch.setattr(Ranker, "forward", limited)
    for _ in range(2):
        assert close(predictor(ROWS), wanted)
        assert len(raised) == 2  # at 400 and 200
    assert not predictor.model.training
    monkeypatch.setattr(Ranker, "forward", lambda model, cut: limited(model, cut._replace(tokens=TOO_LARGE)))
    with pytest.raises(UserError, match="out of memory on a single row of rows while it is scored"):
        predictor(ROWS[:1])


def test_the_type_of_a_run(runs, tmp_path):
    found, wanted = predict.load(runs["causal"], amp="bf16")(ROWS), predict.load(runs["causal"])(ROWS)
    apart = max(abs(a - b) for x, y in zip(found, wanted) for a, b in zip(x["scores"], y["scores"]))
    assert 0 < apart < 0.1
    assert predict.load(runs["causal"], amp="run").amp_dtype is None
