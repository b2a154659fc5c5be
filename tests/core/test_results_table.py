"""core/results_table.py: the exact text of small tables, and that none is wider than 110 columns."""

import math

import pytest

from core.results_table import WIDTH, format_per_class, format_table


def test_by_hand():
    rows = [
        ("majority", {"accuracy": 0.5, "n": 200, "roc_auc": None}),
        ("bert", {"accuracy": 0.98765, "n": 1234567, "roc_auc": 1.0}),
    ]
    assert format_table(rows, ["accuracy", "roc_auc", "n"]) == "\n".join(
        [
            "name      accuracy  roc_auc        n",
            "------------------------------------",
            "majority    0.5000        -      200",
            "bert        0.9877   1.0000  1234567",
        ]
    )


@pytest.mark.parametrize("metrics", [{}, {"x": None}, {"x": math.nan}])
def test_what_is_not_there_is_a_dash(metrics):
    assert format_table([("a", metrics)], ["x"]).splitlines()[-1] == "a     -"


def test_wide_tables_go_on_below():
    columns = [f"a_long_metric_{i}" for i in range(12)]
    table = format_table([("r" * 90, dict.fromkeys(columns, 0.5)), ("short", {})], columns)
    assert max(map(len, table.splitlines())) <= WIDTH
    assert table.count("short") == len(table.split("\n\n")) > 1
    assert [word for word in table.split() if word.startswith("a_long")] == columns


def test_long_names_keep_both_ends():
    name = "runs/bert/a_source_with_a_name/a_run_with_a_long_name_seed3"
    line = format_table([(name, {})], []).splitlines()[-1]
    assert len(line) == 40
    assert line.startswith("runs/bert/")
    assert "..." in line
    assert line.endswith("_seed3")


def test_cutting_the_end_off_would_make_two_runs_look_alike():
    """Bite: names that differ in their last character stay different."""
    names = ["x" * 60 + end for end in "12"]
    assert names[0][:40] == names[1][:40]
    lines = format_table([(name, {}) for name in names], []).splitlines()[2:]
    assert len(set(lines)) == 2


def test_no_rows_is_only_a_head():
    assert format_table([], ["n"]) == "name  n\n-------"


def _per_class(supports, **more):
    return {
        f"c{i}": {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": s} | more
        for i, s in enumerate(supports)
    }


def test_per_class_by_hand():
    table = format_per_class({"per_class": _per_class([3, 20]), "accuracy": 0.5})
    assert table == "\n".join(
        [
            "name  precision  recall      f1  support",
            "----------------------------------------",
            "c1       0.5000  1.0000  0.6667       20",
            "c0       0.5000  1.0000  0.6667        3",
        ]
    )


def test_per_class_shows_tuned_and_says_what_is_left_out():
    table = format_per_class({"per_class": _per_class([5, 4, 9, 1], f1_tuned=0.75)}, most=2)
    assert "f1_tuned" in table
    assert table.splitlines()[2].startswith("c2")
    assert table.splitlines()[-1] == "... and 2 more, none with a support over 4"
