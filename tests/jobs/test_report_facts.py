"""jobs/report_facts.py: what is not there or broken gives a sentence or a clear error, never a traceback."""

import json
import shutil
from pathlib import Path

import pytest

from core.errors import UserError
from jobs import report_data, report_result, report_sections
from jobs.report import write_report
from jobs.report_facts import gather, hide_secrets, read_pipeline
from tests.jobs.invented_pipeline import made_up_output

PICTURE = {
    "kind": "picture",
    "uri": "data:image/svg+xml;base64,",
    "alt": "a picture",
    "caption": "",
    "width": 9,
}


@pytest.fixture(scope="module", params=[False, True], ids=["one", "several"])
def output(request, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.evaluate.save_png", lambda *_: None)
        return made_up_output(tmp_path_factory.mktemp("pipeline") / "output", request.param, size=24)


@pytest.fixture
def copy(output, tmp_path, monkeypatch) -> Path:
    """A copy to break. Its run.json files name the rows of the original."""
    for room in (report_sections, report_data, report_result):  # the pictures are most of a report's time
        for name in vars(room).copy():
            if name.endswith("_figure"):
                monkeypatch.setattr(room, name, lambda *_: None)
        monkeypatch.setattr(room, "picture", lambda *_: PICTURE)
    return Path(shutil.copytree(output, tmp_path / "copy"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def survives(folder: Path) -> str:
    """The report of a broken folder as Markdown, or its one-line error. Anything else is raised."""
    try:
        write_report(folder)
    except UserError as error:
        return str(error)
    return (folder / "report.md").read_text()


# -- what is broken ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "empty", "half", "list", "zeros"])
def test_any_file_may_be_broken(copy, output, how):
    paths = [
        path
        for path in copy.rglob("*")
        if path.is_file() and "single" not in path.parts and "search" not in path.parts
    ]
    names = {path.name for path in paths}
    assert {"pipeline.json", "split.json", "train.jsonl", "run.json", "logits.npy", "metrics.json"} <= names
    for path in paths:
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            broken = {
                "empty": b"",
                "half": content[: len(content) // 2],
                "list": b"[1]",
                "zeros": bytes(len(content)),
            }
            path.write_bytes(broken[how])
        assert survives(copy)
        path.write_bytes(content)
    assert "could not be shown" not in survives(copy)


def test_any_field_of_pipeline_json_may_be_broken(copy):
    path = copy / "pipeline.json"
    whole = json.loads(path.read_text())
    for value in (None, [], {}, "odd", -1.5, True, [None], {"a": None}):
        for key in whole:
            path.write_text(json.dumps(whole | {key: value}))
            assert survives(copy)
        for key in whole["stages"][-1]:
            stages = [*whole["stages"][:-1], whole["stages"][-1] | {key: value}]
            path.write_text(json.dumps(whole | {"stages": stages}))
            assert survives(copy)
        for key in whole["stages"][-1]["gain"]:
            stage = whole["stages"][-1]
            gain = stage["gain"] | {key: value}
            path.write_text(json.dumps(whole | {"stages": [*whole["stages"][:-1], stage | {"gain": gain}]}))
            assert survives(copy)


def test_any_field_of_the_final_run_may_be_missing(copy):
    for name in ("run.json", "test/metrics.json", "validation/calibration.json"):
        path = copy / "runs" / "ensemble" / name
        whole = json.loads(path.read_text())
        for key in whole:
            path.write_text(json.dumps(whole | {key: "odd"}))
            assert survives(copy)
            path.write_text(json.dumps({name: own for name, own in whole.items() if name != key}))
            assert survives(copy)
        path.write_text(json.dumps(whole))


# -- what it says then ------------------------------------------------------------------------------------------


def test_errors_name_the_file_and_what_was_expected(tmp_path, copy):
    with pytest.raises(
        UserError, match=r"nowhere: no such folder; expected one of jobs.pipeline, or a run folder"
    ):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no pipeline.json and no run.json"):
        write_report(tmp_path)
    (copy / "pipeline.json").write_text('{"status": ')
    with pytest.raises(UserError, match=r"pipeline.json: invalid JSON"):
        write_report(copy)
    change_to = {"stages": [{"name": "no key"}]}
    (copy / "pipeline.json").write_text(json.dumps(change_to))
    with pytest.raises(UserError, match=r"stage 1 is .*; expected an object with a key"):
        write_report(copy)
    (copy / "pipeline.json").write_text(json.dumps({"baselines": [1]}))
    with pytest.raises(UserError, match=r"'baselines' is \[1\]; expected what jobs.pipeline writes there"):
        write_report(copy)


def test_a_ranker_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "model": {"task": "rank"}}))
    with pytest.raises(UserError, match=r"is no classifier's run; expected a run of train.py"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(UserError, match=r"has only begun"):
        write_report(tmp_path)


def test_rows_that_have_changed_leave_the_numbers(copy, output):
    run = copy / "runs" / "ensemble"
    test = copy / "changed.jsonl"
    test.write_text((output / "split" / "test.jsonl").read_text() + "\n\n")
    record = json.loads((run / "run.json").read_text())
    change(run / "run.json", arguments=record["arguments"] | {"test_data": str(test)})
    told = survives(copy)
    assert "changed.jsonl, which has changed since" in told
    assert "The rows that were scored cannot be read" in told
    assert "By class" in told


def test_the_final_run_may_be_gone(copy):
    shutil.rmtree(copy / "runs" / "ensemble")
    told = survives(copy)
    assert "The run runs/ensemble of calibrated holds no scores." in told
    assert "Made by: search" in told


def test_without_split_json_the_files_are_counted(copy):
    (copy / "split" / "split.json").unlink()
    pipeline = json.loads((copy / "pipeline.json").read_text())
    parts = {flag: str(copy / "split" / f"{part}.jsonl") for part, flag in
             (("train", "train_data"), ("validation", "val_data"), ("test", "test_data"))}  # fmt: skip
    change(copy / "pipeline.json", arguments=pipeline["arguments"] | parts)
    found = gather(copy)["data"]
    assert found["rows"] == {"train": 96, "validation": 24, "test": 24}
    assert found["exact_duplicates"] == {"rows": 1, "with_different_labels": 1}


def test_a_run_calibrated_after_its_scores_shows_the_calibrated_ones(copy):
    run = copy / "runs" / "ensemble"
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    found = gather(run)["result"]
    assert found["rows"].method == "temperature"
    assert found["metrics"]["loss"] == pytest.approx(metrics["loss"])
    assert found["metrics"]["loss"] == pytest.approx(found["reliability"]["after"]["nll"])
    assert found["reliability"]["before"]["nll"] > found["reliability"]["after"]["nll"]


def test_a_running_pipeline_is_not_scored_on_test_rows(copy):
    change(copy / "pipeline.json", status="running")
    assert gather(copy)["result"]["part"] == "validation"


def test_defaults_of_what_is_missing(tmp_path):
    (tmp_path / "pipeline.json").write_text('{"stages": [{"key": "single", "minutes": null}]}')
    found = read_pipeline(tmp_path / "pipeline.json")
    assert found["stages"][0]["name"] == "single"
    assert found["stages"][0]["status"] == "done"
    assert found["baselines"] == {}


# -- secrets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, shown",
    [
        ({"api_key": "abc", "max_tokens": "auto"}, {"api_key": "***", "max_tokens": "auto"}),
        (
            {"given": {"HF_TOKEN": "abc", "text_field": "token"}},
            {"given": {"HF_TOKEN": "***", "text_field": "token"}},
        ),
        (["--api_key", "abc", "--epochs", "3"], ["--api_key", "***", "--epochs", "3"]),
        (["--api_key=abc", "--data=a=b.jsonl"], ["--api_key=***", "--data=a=b.jsonl"]),
        ("sk-abcdefghijklmnop", "***"),
        ("http://me:secret@server/v1", "http://***server/v1"),
        ({"seed": 3, "password": ""}, {"seed": 3, "password": ""}),
    ],
)
def test_hide_secrets(given, shown):
    assert hide_secrets(given) == shown
