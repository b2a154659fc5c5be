"""jobs/report_page.py, report_words.py, report_plots.py: escaping, cutting, numbers in words, pictures."""

import base64
import math
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from jobs.report_page import clean, cut, html_words, markdown_words
from jobs.report_plots import THRESHOLDS, ablation_figure, curves_figure, lengths_figure, picture
from jobs.report_sections import leaves
from jobs.report_words import count, interval, listing, minutes, percent, pick, score, signed, verdict

ODD = "<b>&\"'`|*_[a](b)#"


def test_html_words():
    assert html_words(ODD) == "&lt;b&gt;&amp;&quot;&#x27;`|*_[a](b)#"
    assert (
        html_words(["a ", ("strong", "<i>"), ("data", "&")]) == "a <strong>&lt;i&gt;</strong><bdi>&amp;</bdi>"
    )
    assert html_words([("link", "<x>", "data")]) == '<a href="#data">&lt;x&gt;</a>'
    assert html_words([("good", "gain")]) == '<span class="tag good">gain</span>'


def test_markdown_words():
    assert markdown_words(ODD) == "&lt;b>&amp;\"'\\`\\|\\*\\_\\[a\\](b)\\#"
    assert markdown_words("two\nlines") == "two lines"
    assert markdown_words([("strong", "a*b"), ("link", "x", "data")]) == "**a\\*b**[x](#data)"
    assert markdown_words([("code", "a_b")]) == "`a_b`"
    assert markdown_words([("code", "a|b")]) == "<code>a\\|b</code>"
    assert markdown_words([("code", "a`b")]) == "a\\`b"


def test_clean():
    assert clean("a\x00b \t c\r\nd") == "a\ufffdb c d"
    assert clean("half \ud83d, \u202eturned", False) == "half \ufffd, \ufffdturned"
    assert clean("a\n\n\n b\r\nc", False) == "a\n b\nc"
    assert clean("\U0001f468\u200d\U0001f469") == "\U0001f468\u200d\U0001f469"


def test_cut():
    assert cut("abc", 3) == "abc"
    assert cut("ab cdef" * 200, 3) == "ab\u2026 (1,400 characters)"


@pytest.mark.parametrize(
    "value, shown",
    [(0.12345, "0.123"), (None, "-"), (math.nan, "-"), (-0.0001, "0.000"), (1, "1.000"), ("x", "-")],
)
def test_score(value, shown):
    assert score(value) == shown


@pytest.mark.parametrize(
    "value, shown", [(0.0123, "+0.012"), (-0.0123, "-0.012"), (-0.0001, "0.000"), (None, "-")]
)
def test_signed(value, shown):
    assert signed(value) == shown


def test_interval():
    assert interval([0.1, 0.25]) == "(0.100 to 0.250)"
    assert interval([-0.1, 0.25], signed) == "(-0.100 to +0.250)"
    assert [interval(odd) for odd in (None, [], [0.1], [0.1, None], "ab", {"a": 1})] == [""] * 6


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.5, "30 s"),
        (0.001, "under 1 s"),
        (4.24, "4.2 min"),
        (28.4, "28 min"),
        (130, "2 h 10 min"),
        (None, "-"),
    ],
)
def test_minutes(value, shown):
    assert minutes(value) == shown


@pytest.mark.parametrize(
    "value, shown",
    [(0.5, "50 %"), (1.0, "100 %"), (0.9996, "over 99.9 %"), (0.997, "99.7 %"), (0.9999999, "over 99.9 %"),
     (0.004, "0.4 %"), (0.0001, "under 0.1 %"), (0.0, "0 %")],
)  # fmt: skip
def test_percent(value, shown):
    assert percent(value) == shown


def test_count_and_listing():
    assert [count(1, "row"), count(1200, "row"), count(2, "label has", "labels have")] == [
        "1 row",
        "1,200 rows",
        "2 labels have",
    ]
    assert [listing([]), listing(["a"]), listing(["a", "b", "c"])] == ["", "a", "a, b and c"]


def test_pick():
    assert pick({"macro_f1": 1}, "macro_f1_tuned") == 1
    assert pick({"macro_f1": 1, "macro_f1_tuned": 2}, "macro_f1_tuned") == 2
    assert pick(None, "accuracy") is None


@pytest.mark.parametrize(
    "low, high, metric, word",
    [(0.01, 0.02, "macro_f1", "gain"), (-0.01, 0.02, "macro_f1", "no gain shown"), (-0.02, -0.01, "macro_f1", "worse"),
     (0.0, 0.02, "macro_f1", "no gain shown"), (0.0, 0.0, "macro_f1", "no decision changed"),
     (-0.02, -0.01, "loss", "gain")],
)  # fmt: skip
def test_verdict(low, high, metric, word):
    assert verdict({"interval": [low, high]}, metric)[1] == word


def test_verdict_without_an_interval():
    assert verdict(None, "macro_f1") is None
    assert verdict({"interval": None}, "macro_f1") is None


def test_leaves_of_settings():
    given = {
        "a": {"b": 1, "c": ""},
        "d": [1, 2],
        "e": None,
        "f": {"x": {"v": 0.5}, "y": {"v": 2}},
        "g": {"h": {"i": 3}},
    }
    assert leaves(given) == [
        ("a.b", 1),
        ("d", [1, 2]),
        ("f", [{"name": "x", "v": 0.5}, {"name": "y", "v": 2}]),
        ("g.h.i", 3),
    ]
    assert leaves({}) == []


# -- pictures ---------------------------------------------------------------------------------------------------


def letters_of(figure: Figure) -> str:
    """What stands in a picture; it is well-formed XML."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block = picture(figure, "alt", "caption")
    assert 100 < block["width"] < 1200
    tree = ElementTree.fromstring(base64.b64decode(block["uri"].split(",")[1]))
    return " ".join(tree.itertext())


def test_pictures_keep_letters_of_all_scripts():
    name = "<&> \u4e2d\u6587 $x_1$ \U0001f600"
    lines = [
        {"name": "baseline", "value": 0.4, "interval": None, "is_baseline": True},
        {"name": name, "value": 0.5, "interval": [0.4, 0.6], "is_baseline": False},
    ]
    found = letters_of(ablation_figure(lines, "macro F1"))
    assert name in found
    assert "macro F1" in found
    curve = np.linspace(1, 0, len(THRESHOLDS))
    curves = [{"name": name, "threshold": 0.3, "precision": curve * np.nan, "recall": curve, "f1": curve}]
    found = letters_of(curves_figure(curves * 4))
    assert found.count(name) == 4
    assert "chosen threshold" in found


def test_lengths_figure_of_odd_lengths():
    found = letters_of(
        lengths_figure(
            {"train": np.array([0, 1, 5000]), "test": np.zeros(0, int), "validation": np.ones(3, int)}
        )
    )
    assert "train" in found
    assert "test" not in found
    assert letters_of(lengths_figure({"train": np.zeros(1, int)}))
