"""jobs/report.py: the page and the Markdown of a pipeline and of a run; their numbers, their words, what they hide."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import train
from core.errors import UserError
from jobs import report
from jobs.report import write_report
from jobs.report_facts import gather
from jobs.report_words import score
from tests.conftest import full_disk
from tests.jobs.html_page import Page
from tests.jobs.invented_pipeline import NAMES, ODD, SCRIPT, made_up_output


@pytest.fixture(scope="module", params=[False, True], ids=["one", "several"])
def output(request, tmp_path_factory) -> Path:
    """A pipeline's folder with its report: one label a row, and several."""
    with pytest.MonkeyPatch.context() as patch:  # the runs' own plots are most of the time
        patch.setattr("core.evaluate.save_png", lambda *_: None)
        folder = made_up_output(tmp_path_factory.mktemp("pipeline") / "output", request.param)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(output) -> Page:
    return Page((output / "report.html").read_text())


@pytest.fixture
def copy(output, tmp_path, monkeypatch) -> Path:
    """A copy of the folder to break; the pictures are left out, which are most of a report's time."""
    blank = {
        "kind": "picture",
        "uri": "data:image/svg+xml;base64,",
        "alt": "a picture",
        "caption": "",
        "width": 9,
    }
    for room in ("sections", "data", "result"):
        monkeypatch.setattr(f"jobs.report_{room}.picture", lambda *_: blank)
    return Path(shutil.copytree(output, tmp_path / "copy"))


def change(folder: Path, **values) -> dict:
    """Change pipeline.json; returns it."""
    found = json.loads((folder / "pipeline.json").read_text()) | values
    (folder / "pipeline.json").write_text(json.dumps(found))
    return found


def written(folder: Path, **flags) -> Page:
    write_report(folder, **flags)
    return Page((folder / "report.html").read_text())


# -- the page ---------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_nothing_of_the_network(page):
    assert page.faults == []
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize(
    "source",
    [
        "<p>open",
        "<p><b>a</p></b>",
        "<img src='http://x.example/a.png'>",
        "<a href='//x.example'>a</a>",
        "<p onclick='x'>a</p>",
        "<style>@import 'a.css';</style>",
        "<style>p { background: url(x.png) }</style>",
    ],
)
def test_bite_faults(source):
    assert Page(source).faults


def test_pictures_say_what_they_show(page, output):
    assert len(page.images) == 6 + json.loads((output / "pipeline.json").read_text())["multi_label"]
    for image in page.images:
        assert image["src"].startswith("data:image/svg+xml;base64,")
        assert len(image["alt"]) > 40
    assert "ensemble" in next(image["alt"] for image in page.images if "each line" in image["alt"])


def test_headings_contents_and_heads_of_tables(page):
    assert page.headings[0] == 1
    assert max(later - former for former, later in zip(page.headings, page.headings[1:])) == 1
    assert page.headings.count(1) == 1
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == ["asked", "data", "stages", "classes", "probabilities", "errors", "card"]
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in page.tags if tag == "th")


def test_it_fits_paper_phones_and_the_dark(output):
    source = (output / "report.html").read_text()
    assert 'name="viewport"' in source
    for words in ("@media print", "@page { size: A4", "prefers-color-scheme: dark", "max-width: 40rem"):
        assert words in source


def test_the_same_folder_gives_the_same_page(output, copy, monkeypatch):
    monkeypatch.undo()
    first = (output / "report.html").read_text()
    again = write_report(output)["report"]
    times = re.compile(r"written [\d: -]+")
    assert times.sub("", Path(again).read_text()) == times.sub("", first)


# -- hostile names and texts ------------------------------------------------------------------------------------


def test_hostile_texts_are_shown_and_not_run(copy):
    page = written(copy, examples=1000, text_length=5000)
    assert page.faults == []
    assert SCRIPT in page.text
    assert not any(char in page.text for char in "\x00\x07\u202e")
    assert "\u65e5\u672c\u8a9e" in page.text
    names = NAMES[: 5 + ("multi_label" in copy.name)]
    assert all(name in page.text for name in names)


def test_the_markdown_holds_them_too(copy):
    write_report(copy, examples=1000, text_length=5000)
    lines = (copy / "report.md").read_text().split("\n")
    assert not any("<script" in line or "<img" in line for line in lines)
    for start in (k for k, line in enumerate(lines) if re.fullmatch(r"\|( -+:? \|)+", line)):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in (lines[start - 1], lines[start])]
        assert bars[0] == bars[1]
        for line in lines[start + 1 :]:
            if not line.startswith("|"):
                break
            assert len(re.findall(r"(?<!\\)\|", line)) == bars[0]


def test_texts_are_cut_or_left_out(copy):
    longest = ODD[2]
    assert longest in written(copy, examples=1000, text_length=5000).text
    page = written(copy, examples=1000, text_length=40)
    assert longest[:38] in page.text
    assert longest[:60] not in page.text
    assert "characters)" in page.text
    hidden = written(copy, examples=0).text + (copy / "report.md").read_text()
    texts = [json.loads(line)["text"] for line in (copy / "split" / "test.jsonl").read_text().splitlines()]
    assert not [text for text in texts if " ".join(text.split())[:30] in hidden]


def test_no_secret_is_shown(output):
    for name in ("report.html", "report.md"):
        assert "abcdefghijklmnop" not in (output / name).read_text()


# -- numbers and words ------------------------------------------------------------------------------------------


def test_the_lines_of_the_stages_are_those_of_pipeline_json(page, output):
    found = json.loads((output / "pipeline.json").read_text())
    metric = found["metric"]
    for stage in found["stages"]:
        cells = page.line("Macro F1", stage["name"])
        assert stage["what"] in cells[0]
        if stage["test"]:
            low, high = stage["test_interval"]["macro_f1"]
            assert cells[1].startswith(f"{stage['validation'][metric]:.3f}")
            assert cells[2] == f"{stage['test'][metric]:.3f} ({low:.3f} to {high:.3f})"
            assert ("cross-fitted" in cells[1]) == stage["is_cross_fitted"]
    cells = page.line("Macro F1", "TF-IDF")
    assert cells[1:3] == ["0.410", "0.432 (0.380 to 0.480)"]


def test_gains_are_said_in_words(page, output):
    found = {stage["key"]: stage for stage in json.loads((output / "pipeline.json").read_text())["stages"]}
    for key, name, word in (("search", "search", "no gain shown"), ("ensemble", "ensemble", "gain")):
        gain = found[key]["gain"]
        cell = page.line("Macro F1", name)[3]
        assert cell.startswith(f"{gain['macro_f1']:+.3f} (" if abs(gain["macro_f1"]) >= 0.0005 else "0.000 (")
        assert cell.endswith(f"over single model {word}")
    assert "search: no gain shown" in page.text
    assert "ensemble: no gain" not in page.text


def test_what_was_not_done_says_why(page):
    assert "architectures failed" in page.line("Macro F1", "architectures")[0]
    assert "Why: out of memory on a single row" in page.line("Macro F1", "architectures")[0]
    assert "feedback no time Why: 0.4 min were left" in page.line("Macro F1", "feedback")[0]
    assert "selftrain skipped Why: no --unlabelled" in page.line("Macro F1", "selftrain")[0]
    assert page.line("Macro F1", "architectures")[1:] == ["-", "-", "-", "30 s"]
    assert page.line("Macro F1", "feedback")[4] == "-"


def test_the_first_screen(page, output):
    found = json.loads((output / "pipeline.json").read_text())
    final = found["stages"][-1]
    screen = page.text[: page.text.index("What was asked")]
    low, high = final["test_interval"]["macro_f1"]
    assert f"{final['test'][found['metric']]:.3f} macro F1" in screen
    assert f"{low:.3f} to {high:.3f}" in screen
    assert "On 60 test rows" in screen
    assert "majority class 0.120 and TF-IDF + logistic 0.432" in screen
    assert "28 min" in screen
    assert "architectures failed: out of memory" in screen
    assert "Test on more than 60 rows: four times as many halve the interval." in screen


def test_the_table_by_class_is_that_of_metrics_json(page, output):
    metrics = json.loads((output / "runs" / "ensemble" / "test" / "metrics.json").read_text())
    several = "macro_f1_tuned" in metrics
    cuts = (
        json.loads((output / "runs" / "ensemble" / "validation" / "thresholds.json").read_text())
        if several
        else {}
    )
    split = json.loads((output / "split" / "split.json").read_text())
    for name, own in metrics["per_class"].items():
        kinds = (
            ("precision_tuned", "recall_tuned", "f1_tuned", "f1")
            if several
            else ("precision", "recall", "f1")
        )
        wanted = [
            name,
            str(own["support"]),
            str(split["labels"][name]["train"]),
            *(score(own[key]) for key in kinds),
        ]
        wanted += [score(cuts["thresholds"][name])] if several else []
        assert page.line("By class", name) == [*wanted, score(own["average_precision"])]


def test_the_data_and_its_problems(page, output):
    split = json.loads((output / "split" / "split.json").read_text())
    assert page.line("Rows of each part", "All rows")[1:] == ["240", "60", "60", "60"]
    for name, counts in split["labels"].items():
        assert page.line("Rows of each part", name)[1:] == [str(n) for n in counts.values()]
    assert "1 text stands there with different labels (lines 1, 2)" in page.text
    assert "16 rows are near-duplicates (70 % of the words in common or more), in 7 groups" in page.text
    assert "train has 41.0% of the rows" in page.text
    assert page.line("Words in a text", "train")[4] == "802"  # "word " * 800 with part and number


def test_the_hardest_row_comes_first(copy):
    rows = gather(copy)["result"]["rows"]
    right = np.where(rows.truth, rows.probs, 1 - rows.probs)
    worst = int((np.log(right).mean(axis=1) if rows.multi_label else right[rows.truth]).argmin())
    page = written(copy, examples=1)
    shown = page.text[page.text.index("The hardest rows") : page.text.index("Sure, and contradicted")]
    assert re.findall(r"row (\d+)\b", shown) == [str(worst + 1)]


def test_the_card_and_how_to_load(page, output):
    assert f"load({str(output / 'runs' / 'ensemble')!r})" in page.text
    assert "builtin:minilm" in page.text
    assert "calibrated by: temperature" in page.text
    assert page.text.count("To be filled in") == 2
    assert "before calibration" in page.text


# -- not finished -----------------------------------------------------------------------------------------------


def test_a_pipeline_that_is_still_running(copy):
    found = change(copy, status="running", final=None)
    stages = [stage | {"test": None, "test_interval": None, "gain": None} for stage in found["stages"][:4]]
    change(copy, stages=stages, baselines={})
    page = written(copy)
    assert "This pipeline is still running" in page.text
    assert "The last stage that is done: search." in page.text
    assert "On 60 validation rows, which helped to choose" in page.text
    assert page.line("Macro F1", "search")[2] == "-"
    texts = {json.loads(line)["text"] for line in (copy / "split" / "test.jsonl").read_text().splitlines()}
    assert not [text for text in texts if text in page.text]


def test_a_pipeline_that_has_only_begun(copy):
    change(copy, status="running", final=None, stages=[], baselines={})
    page = written(copy)
    assert page.faults == []
    assert "No run has finished." in page.text
    assert "No stage has finished yet." in page.text


def test_when_nothing_beats_the_baseline(copy):
    found = change(copy)
    metric = found["metric"]
    change(copy, baselines={"TF-IDF + logistic": {"test": {metric: 0.999}}})
    assert "Do not use this yet: TF-IDF + logistic reaches 0.999." in written(copy).text


# -- one run ----------------------------------------------------------------------------------------------------


def test_one_run(copy, capsys):
    run = copy / "runs" / "single"
    found = report.main([str(run), "--examples", "2"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert found["missing"] == []
    page = Page(Path(found["report"]).read_text())
    record = json.loads((run / "run.json").read_text())
    assert page.faults == []
    assert page.line("Macro F1", "this run")[2] == f"{record['metrics']['test'][record['metric']]:.3f}"
    assert "1.5 min" in page.text
    assert page.line("Rows of each part", "All rows")[1:] == ["240", "60", "60", "60"]
    assert "1 text stands there with different labels" in page.text


def test_a_real_run_and_one_without_test_rows(toy_flags, toy_files, tmp_path, monkeypatch):
    monkeypatch.setattr("core.evaluate.save_png", lambda *_: None)
    train.main([*toy_flags, "--baselines"])
    page = written(tmp_path / "run")
    assert page.faults == []
    assert "No test rows were scored" in page.text
    metrics = json.loads((tmp_path / "run" / "validation" / "metrics.json").read_text())
    cells = page.line("Macro F1", "this run")
    assert cells[1] == f"{metrics['macro_f1']:.3f}"
    assert page.line("Macro F1", "TF-IDF")[1] != "-"


def test_a_full_disk(copy):
    (copy / "report.html").write_text("the old one")
    with full_disk(4096), pytest.raises(UserError, match=r"cannot be written: the disk is full"):
        write_report(copy)
    assert (copy / "report.html").read_text() == "the old one"
    assert not list(copy.glob("*.part"))
