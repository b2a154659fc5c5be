"""jobs/audit_page.py: a page that leads nowhere, escapes all, and asks for a verdict on every row."""

import hashlib
import re
from argparse import Namespace
from base64 import b64encode

import numpy as np
import pytest

from jobs import audit_page as page_module
from jobs.audit_page import audit_page, noise_figure, noise_table
from jobs.audit_rows import read_audited
from tests.conftest import write_jsonl
from tests.jobs.html_page import Page

EVIL = "<script>alert('x')</script> & \"quoted\" \u202ereversed https://example.org"
LABEL = EVIL.partition(" https")[0]
SUMMARY = {
    "rows": 3, "judged": 3, "folds": 5, "method": "both", "near": 0.7, "estimated_wrong_frac": 0.25,
    "found": {"label": 1, "duplicate": 1, "test": 1, "validation": 0}, "compared_with": {"test": EVIL},
}  # fmt: skip
JOINT = np.array([[2, 1], [0, 3]])


def a_row(number: int, kinds: list[str], **more) -> dict:
    row = {
        "verdict": "",
        "given": "a",
        "suggested": "b",
        "given_probability": 0.05,
        "suggested_probability": 0.9,
    }
    row |= {"score": 0.05, "kinds": kinds, "text": EVIL, "why": EVIL, "row": number, "line": number}
    return row | more


def make_page(tmp_path, rows: list[dict], labels=("a", LABEL), joint=JOINT, summary=SUMMARY) -> str:
    data = [{"text": f"t{k}", "label": name} for k, name in enumerate(labels)]
    if joint is not None and joint.ndim == 3:
        data = [{"text": f"t{k}", "labels": [name]} for k, name in enumerate(labels)]
    path = write_jsonl(tmp_path / "train.jsonl", data)
    return audit_page(
        read_audited(Namespace(run="", train_data=path, val_data="", flags="", folds=0)), rows, summary, joint
    )


@pytest.fixture
def page(tmp_path) -> Page:
    nobody = {"score": None, "suggested": None, "given_probability": None, "suggested_probability": None}
    rows = [a_row(1, ["label", "test"]), a_row(2, ["duplicate"], given=EVIL), a_row(3, ["test"], **nobody)]
    return Page(make_page(tmp_path, rows))


def test_the_page_is_whole_and_leads_nowhere(page):
    assert page.faults == []
    assert len(page.ids) == len(set(page.ids))


def test_what_rows_say_is_text(page):
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert scripts == [{}]
    assert page.text.count("<script>alert('x')</script>") >= 3
    assert "\u202e" not in page.text


def test_its_policy_lets_its_own_script_alone_run(tmp_path):
    source = make_page(tmp_path, [a_row(1, ["label"])])
    script = re.search(r"<script>(.*?)</script>", source[source.index("</main>") :], re.DOTALL).group(1)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source).group(1)
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_row_has_a_field_and_every_label_an_offer(page):
    fields = [attrs["data-row"] for tag, attrs in page.tags if tag == "input"]
    assert fields == ["1", "2", "3"]
    offers = [attrs["value"] for tag, attrs in page.tags if tag == "option"]
    assert offers[:3] == ["keep", "fix", "drop"]
    assert offers[4] == "fix/a"


def test_a_section_for_each_kind_that_was_found(page):
    assert {"label", "duplicate", "test"} <= set(page.ids)
    assert "validation" not in page.ids


def test_a_long_section_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_ROWS", 2)
    page = Page(make_page(tmp_path, [a_row(k, ["label"]) for k in range(1, 6)]))
    assert "The first 2 of 5; audit.csv has all." in page.text
    assert sum(tag == "input" for tag, _ in page.tags) == 2


def test_without_a_model(tmp_path):
    summary = SUMMARY | {"folds": 0, "judged": 0}
    page = Page(make_page(tmp_path, [a_row(1, ["duplicate"])], joint=None, summary=summary))
    assert "no model was asked" in page.text
    assert "noise" not in page.ids


def test_the_noise_by_hand():
    head, lines = noise_table(np.array([[2, 1, 1], [0, 5, 0], [3, 0, 1]]), ["a", "b", "c"])
    assert head == ["given label", "rows", "estimated wrong", "share", "most often"]
    assert lines == [
        ["c", "4", "3", "75.0%", "a (3)"],
        ["a", "4", "2", "50.0%", "b (1)"],
        ["b", "5", "0", "0.0%", "-"],
    ]


def test_the_noise_of_several_labels_by_hand(tmp_path):
    joint = np.array([[[6, 2], [0, 2]], [[5, 0], [1, 4]]])  # label 1 is missing in 2 rows, label 2 wrong in 1
    head, lines = noise_table(joint, ["a", "b"])
    assert head == ["label", "rows", "wrongly given", "missing", "share of all rows"]
    assert lines == [["a", "2", "0", "2", "20.0%"], ["b", "5", "1", "0", "10.0%"]]
    bars = noise_figure(joint, ["a", "b"]).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx(
        [10, 0, 0, 20]
    )  # b, a: wrongly given, then missing
    assert (
        Page(make_page(tmp_path, [a_row(1, ["label"], given=["a"], suggested=[])], joint=joint)).faults == []
    )


def test_the_joint_is_drawn_by_given_label():
    axes = noise_figure(JOINT, ["a", "b"]).axes
    assert (axes[0].get_ylabel(), axes[0].get_xlabel()) == ("Given label", "Estimated true label")
    np.testing.assert_allclose(axes[0].images[0].get_array(), [[2 / 3, 1 / 3], [0, 1]])
