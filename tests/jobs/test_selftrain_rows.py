"""jobs/selftrain_rows.py: what is cut from what, which pool rows are left out, how pseudo-labels are written."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.files import save_array
from core.rows import RowFormat
from core.spent import row_hashes
from jobs.selftrain_rows import Parts, open_parts
from tests.conftest import toy_rows, write_jsonl

FORMAT = RowFormat()


@pytest.fixture
def cut(tmp_path):
    """Cuts parts of files; rows by file, the toy ones where none are given."""

    def make(
        row_format: RowFormat = FORMAT, kind: str = "one", ratio: float = 0.3, check=False, **rows
    ) -> Parts:
        given = {"calibration_data": "", "test_data": "", "audit_ratio": ratio, "seed": 0, "near": 0.7}
        given |= {"least_confidence": 0.7}
        for seed, (name, size) in enumerate({"train_data": 60, "unlabelled": 40, "val_data": 10}.items()):
            rows.setdefault(name, toy_rows(size, seed, kind))
        for name, own in rows.items():
            (tmp_path / name).mkdir(exist_ok=True)
            given[name] = write_jsonl(tmp_path / name / "rows.jsonl", own)
        return open_parts(Namespace(**given, check_labels=check), row_format, tmp_path / "parts", {})

    return make


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_audit_is_cut_once_with_labels_level(cut):
    rows = toy_rows(200, 3)
    parts = cut(train_data=rows)
    both = lines(parts.path("labelled")) + lines(parts.path("audit"))
    assert sorted(row["text"] for row in both) == sorted(row["text"] for row in rows)
    shares = parts.audit.sum(axis=0) / (parts.audit.sum(axis=0) + parts.counts)
    assert shares == pytest.approx([0.3] * 3, abs=0.04)


def test_copies_and_near_copies_are_on_one_side(cut):
    words = "one two three four five six seven eight".split()  # noqa: SIM905
    rows = [
        {"text": " ".join([f"text{k}", f"of{k}", f"its{k}", f"own{k}", *words[:j]]), "label": k % 2}
        for k in range(30)
        for j in (0, 0, 1)
    ]
    parts = cut(train_data=rows)
    sides = [{row["text"].split()[0] for row in lines(parts.path(name))} for name in ("labelled", "audit")]
    assert len(sides[1]) == pytest.approx(9, abs=2)
    assert not sides[0] & sides[1]


def test_each_label_keeps_a_row_to_learn_from(cut):
    rows = [{"text": f"some text of number {k}", "label": "rare" if k == 0 else k % 2} for k in range(40)]
    parts = cut(train_data=rows, ratio=0.9)
    assert parts.label_names == ["0", "1", "rare"]


def test_what_the_pool_loses(cut):
    train, val = toy_rows(60, 0), [{"text": "alpha beta gamma delta epsilon zeta eta", "label": "red"}]
    test = [{"text": "some other words in the test", "label": "red"}]
    pool = [
        {"text": train[0]["text"]},
        {"text": "alpha beta gamma delta epsilon zeta"},
        {"text": "words in the test some other"},
        {"text": "a new one"},
        {"text": "a  new one"},
        {"text": "another one"},
    ]
    parts = cut(train_data=train, val_data=val, unlabelled=pool, test_data=test)
    assert parts.pool == [{"text": "a new one"}, {"text": "another one"}]
    left_out = list(parts.about["left_out"].values())
    assert left_out[2] == 1
    assert sorted(left_out[:2]) in ([0, 3], [1, 2])  # the copy of a training row may be an audit row


def test_pool_rows_near_an_audit_row_are_left_out(cut):
    words = [f"one{k} two{k} three{k} four{k} five{k} six{k}" for k in range(40)]
    train = [{"text": text, "label": k % 2} for k, text in enumerate(words)]
    parts = cut(train_data=train, unlabelled=[{"text": f"{text} more"} for text in words])
    wanted = [row["text"] + " more" for row in lines(parts.path("labelled"))]
    assert sorted(row["text"] for row in parts.pool) == sorted(wanted)
    assert len(wanted) == pytest.approx(28, abs=1)


def test_pool_rows_keep_their_text_and_id_alone(cut):
    row_format = RowFormat("title,body", "other", "kind")
    train = [{"title": f"t{k}", "body": f"b{k}", "other": f"o{k}", "kind": k % 2} for k in range(20)]
    pool = [{"title": "t", "body": "b", "other": "o", "kind": 1, "id": 7, "label": 3, "more": []}]
    val = [{"title": "u", "body": "v", "other": "w", "kind": 1}]
    parts = cut(row_format, train_data=train, unlabelled=pool, val_data=val)
    assert parts.pool == [{"title": "t", "body": "b", "other": "o", "id": 7}]
    made = parts.pseudo_rows(np.array([0]), np.array([[False, True]]), np.array([0.87654321]))
    assert made == [{**parts.pool[0], "kind": "1", "pseudo": True, "confidence": 0.876543}]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("one", "label", "green"),
        ("list", "labels", ["green"]),
        ("dict", "labels", {"blue": 0, "green": 1, "red": 0}),
    ],
)
def test_pseudo_labels_are_of_the_labelled_rows_kind(cut, kind, name, value):
    parts = cut(kind=kind)
    labels = np.array([[False, True, False]])
    made = parts.pseudo_rows(np.array([2]), labels, np.array([0.9]))
    assert made == [parts.pool[2] | {name: value, "pseudo": True, "confidence": 0.9}]


def test_the_prior_is_of_rarest_labels_and_of_none(cut):
    rows = [{"text": f"row of text {k}", "labels": ["a", "b"]} for k in range(4)]
    rows += [{"text": f"line with words {k}", "labels": ["a"]} for k in range(10)]
    rows += [{"text": f"nothing is in here {k}", "labels": []} for k in range(6)]
    parts = cut(train_data=rows, val_data=rows[:1], ratio=0.05)
    assert parts.counts.sum() == sum(len(row["labels"]) for row in lines(parts.path("labelled")))
    kept = [tuple(row["labels"]) for row in lines(parts.path("labelled"))]
    wanted = [kept.count(("a",)), kept.count(("a", "b")), kept.count(())]
    assert parts.group_counts.tolist() == wanted


def test_hidden_labels_are_read_when_asked_for(cut):
    pool = toy_rows(30, 5)
    assert cut(unlabelled=pool, check=True).pool_truth.shape[1] == 3


def test_without_asking_they_are_not(cut):
    assert cut(unlabelled=toy_rows(30, 5)).pool_truth is None


@pytest.mark.parametrize("flag", ["train_data", "unlabelled", "val_data"])
@pytest.mark.parametrize("beside", ["train_data", "unlabelled"])
def test_test_rows_of_a_split_are_refused(cut, tmp_path, flag, beside):
    rows = {"train_data": toy_rows(60, 0), "unlabelled": toy_rows(40, 1), "val_data": toy_rows(10, 2)}
    tested = row_hashes([rows[flag][3]["text"]])
    (tmp_path / beside / "rows").mkdir(parents=True)
    save_array(tmp_path / beside / "rows" / "test.npy", tested)
    with pytest.raises(UserError, match=rf"--{flag} .* rows are test rows of"):
        cut(**rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train_data": [{"text": "a", "label": 1}] * 9}, "expected two at least"),
        ({"unlabelled": [{"text": "a"}, {"txt": "b"}]}, "line 2: no field 'text'"),
        ({"unlabelled": [{"text": ""}]}, "line 1: field 'text' is empty"),
        ({"unlabelled": toy_rows(60, 0)}, "no row is left of 60: .* labelled already"),
        ({"train_data": toy_rows(60, 0)[:1] * 30 + [{"text": "b", "label": "red"}]}, "leaves no audit row"),
        ({"check": True, "unlabelled": [{"text": "new"}]}, "line 1: --check_labels: no field 'label'"),
        ({"check": True, "unlabelled": [{"text": "new", "label": 9}]}, "labels without a training row: 9"),
        ({"check": True, "unlabelled": [{"text": "new", "label": ["red"]}]}, "another kind of labels"),
    ],
)
def test_bad_rows(cut, rows, message):
    with pytest.raises(UserError, match=message):
        cut(**rows)


def test_a_row_that_utf8_cannot_say_is_kept_escaped(cut):
    rows = toy_rows(60, 0)
    parts = cut(train_data=[row | {"note": "\ud800"} for row in rows])
    assert lines(parts.path("labelled"))[0]["note"] == "\ud800"
