"""jobs/audit_table.py: what is listed, in which order and words; cells that a spreadsheet shows and does not run."""

import csv
import io
from argparse import Namespace

import numpy as np
import pytest

from jobs.audit_rows import Audited, Others, read_audited
from jobs.audit_table import as_csv, guard, show_labels, suspect_labels, table_rows
from tests.conftest import write_jsonl


def audited_rows(tmp_path, rows: list[dict], flags: str = "") -> Audited:
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    return read_audited(Namespace(run="", train_data=path, val_data="", flags=flags, folds=0))


def rows_of(
    audited: Audited, probs: list, conflicts=None, leaks=(), is_test=None, ranking="self_confidence"
) -> list:
    n = len(probs)
    probs = np.array(probs, float)
    issues, scores = suspect_labels(probs, audited, "prune_by_noise_rate", ranking)
    conflicts = np.full(n, -1) if conflicts is None else np.array(conflicts)
    is_test = np.zeros(n, bool) if is_test is None else np.array(is_test)
    return table_rows(audited, probs, issues, scores, conflicts, list(leaks), is_test)


PROBS = [[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1]]


def one_label(tmp_path) -> Audited:
    rows = [{"text": f"t{k}", "label": name} for k, name in enumerate("aaabbb")]
    return audited_rows(tmp_path, rows)


def test_suspects_with_both_probabilities(tmp_path):
    found = rows_of(one_label(tmp_path), PROBS)
    assert [row["row"] for row in found] == [3, 6]  # the lowest score first
    assert found[0] == {
        "verdict": "", "given": "a", "suggested": "b", "given_probability": 0.05, "suggested_probability": 0.95,
        "score": 0.05, "kinds": ["label"], "text": "t2", "why": "the label is doubted", "row": 3, "line": 3,
    }  # fmt: skip


def test_the_ranking_is_the_score(tmp_path):
    found = rows_of(one_label(tmp_path), PROBS, ranking="normalised_margin")
    assert [row["score"] for row in found] == pytest.approx([(0.05 - 0.95 + 1) / 2, (0.1 - 0.9 + 1) / 2])


def test_a_row_has_all_its_kinds_and_stands_once(tmp_path):
    leak = Others("test", "test.jsonl", [7], ["far  off"], [1])
    places = [(-1, False)] * 6
    places[1], places[2] = (0, True), (0, False)
    conflicts = [-1, -1, 3, 2, -1, -1]
    found = rows_of(one_label(tmp_path), PROBS, conflicts, [(leak, places)], [True, True] + [False] * 4)
    assert [(row["row"], row["kinds"]) for row in found] == [
        (3, ["label", "duplicate", "test"]), (6, ["label"]), (4, ["duplicate"]), (2, ["test"]), (1, ["test"])
    ]  # fmt: skip
    assert (
        found[0]["why"]
        == "the label is doubted; near line 4, given b: t3; near line 7 of test.jsonl: far off"
    )
    assert found[3]["why"] == "the text of line 7 of test.jsonl"
    assert found[4]["why"] == "a test row of the run or of the split, by its text"


def test_rows_that_nobody_judged(tmp_path):
    probs = [*PROBS[:5], [np.nan, np.nan]]
    found = rows_of(one_label(tmp_path), probs, [-1] * 5 + [0])
    assert [row["row"] for row in found] == [3, 6]
    last = found[-1]
    assert (last["given"], last["suggested"], last["score"], last["given_probability"]) == (
        "b",
        None,
        None,
        None,
    )


def test_several_labels_are_toggled_where_they_are_doubted(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.random((60, 2)) < 0.5
    given = truth.copy()
    given[4] = [not truth[4, 0], truth[4, 1]]
    given[9] = ~truth[9]
    rows = [
        {"text": f"t{k}", "labels": [n for n, has in zip("ab", row, strict=True) if has]}
        for k, row in enumerate(given)
    ]
    audited = audited_rows(tmp_path, rows)
    probs = np.where(truth, 0.9, 0.1)
    found = {row["row"]: row for row in rows_of(audited, probs.tolist())}
    assert sorted(found) == [5, 10]
    for number in found:
        names = [n for n, has in zip("ab", truth[number - 1], strict=True) if has]
        assert found[number]["suggested"] == names
        assert found[number]["given_probability"] == pytest.approx(0.1)
    word = "drop" if given[4, 0] else "add"
    assert found[5]["why"] == f"{word} a (p {probs[4, 0]:.2f})"
    assert found[10]["why"].count("(p ") == 2


def test_the_csv_is_read_back(tmp_path):
    rows = rows_of(one_label(tmp_path), PROBS)
    rows[0] |= {"text": 'a "b",\nc', "given": ["a", "b"], "suggested": ["a", "b,c"]}
    text = as_csv(rows, has_pair=False)
    assert text.startswith("\ufeffverdict,given,suggested,")
    found = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert (found[0]["text"], found[0]["given"], found[0]["suggested"]) == (
        'a "b",\nc',
        "a, b",
        '["a", "b,c"]',
    )
    assert (found[0]["kinds"], found[0]["row"], found[0]["score"]) == ("label", "3", "0.05")
    assert "pair" not in found[0]


def test_pairs_have_a_column(tmp_path):
    rows = [{"text": f"t{k}", "other": f"o{k}", "label": name} for k, name in enumerate("aaabbb")]
    found = rows_of(audited_rows(tmp_path, rows, "--pair_field other"), PROBS)
    assert found[0]["pair"] == "o2"
    assert next(csv.DictReader(io.StringIO(as_csv(found, True).removeprefix("\ufeff"))))["pair"] == "o2"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\tx", "\rx"])
def test_no_cell_is_a_formula(text):
    assert guard(text) == "'" + text


def test_other_cells_are_as_they_are():
    assert (guard("a=1"), guard(-1), guard(None)) == ("a=1", -1, None)
    assert (show_labels([]), show_labels(None), show_labels("a, b")) == ("", "", "a, b")
