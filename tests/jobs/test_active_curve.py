"""jobs/active_curve.py: the labels that a score takes, by hand; what the table and the picture show."""

import json

import numpy as np
import pytest

from jobs.active_curve import COLOURS, curve_figure, markdown, reach, summarise, told_of, write_curve
from jobs.active_scores import ACQUISITIONS
from jobs.retrain import paired_interval

LABELS = [100, 200, 300, 400]


def test_a_score_is_reached_at_the_first_point_that_has_it():
    found = reach(np.array([0.5, 0.7, 0.8, 0.9]), LABELS, 0.7, 400)
    assert found == {"labels": 200, "frac": 0.5, "stays": 200}


def test_a_curve_that_falls_again_does_not_stay():
    found = reach(np.array([0.5, 0.7, 0.6, 0.9]), LABELS, 0.7, 400)
    assert (found["labels"], found["stays"]) == (200, 400)
    assert reach(np.array([0.5, 0.7, 0.6, 0.6]), LABELS, 0.7, 400)["stays"] is None


def test_a_score_that_is_never_reached():
    found = reach(np.array([0.5, 0.6, 0.6, 0.6]), LABELS, 0.7, 400)
    assert found == {"labels": None, "frac": None, "stays": None}


@pytest.fixture
def result() -> dict:
    """Two seeds; margin is at random's last score, 0.7 on average, with 200 of 400 labels."""
    margin = [[0.5, 0.72, 0.78, 0.80], [0.4, 0.68, 0.74, 0.82]]
    random = [[0.5, 0.55, 0.60, 0.72], [0.4, 0.50, 0.62, 0.68]]
    about = {"metric": "accuracy", "scored_on": "dev.jsonl", "is_test": False, "train_data": "all.jsonl"}
    about |= {"num_rows": 1000, "seeds": [0, 1], "labels": LABELS, "full": [0.78, 0.8]}
    return summarise(about | {"curves": {"margin": margin, "random": random}})


def test_targets_are_means_over_the_seeds(result):
    assert result["targets"] == pytest.approx({"random": 0.70, "full": 0.79})


def test_labels_and_shares_by_hand(result):
    line = result["lines"]["margin"]
    assert line["to_random"] == {"labels": 200, "frac": 0.5, "stays": 200}
    assert line["to_full"] == {"labels": 400, "frac": 0.4, "stays": 400}  # of all 1000
    assert line["by_seed"] == [200, 300]  # each seed's own curve, the mean's target
    assert result["lines"]["random"]["by_seed"] == [400, None]


def test_spread_is_lowest_to_highest(result):
    line = result["lines"]["margin"]
    assert (line["low"][1], line["high"][1], line["mean"][1]) == pytest.approx((0.68, 0.72, 0.70))


def test_the_gain_is_paired_over_seeds_without_the_common_first_rows(result):
    gains = [np.mean([0.17, 0.18, 0.08]), np.mean([0.18, 0.12, 0.14])]
    gain = result["lines"]["margin"]["gain"]
    assert gain["mean"] == pytest.approx(np.mean(gains))
    assert (gain["low"], gain["high"]) == pytest.approx(paired_interval(gains))


def test_one_seed_has_no_interval(result):
    curves = {name: rows[:1] for name, rows in result["curves"].items()}
    found = summarise(result | {"curves": curves, "seeds": [0], "full": [0.8]})
    assert found["lines"]["margin"]["gain"]["low"] is None
    assert "1 seed (0)" in markdown(found)


def test_a_simulation_that_is_not_done_has_no_full_score(result):
    found = summarise(result | {"full": None})
    assert found["lines"]["margin"]["to_full"] is None
    assert "All 1000 labels: not trained yet" in markdown(found)


def test_the_table_says_it_all(result):
    text = markdown(result)
    assert "Random choice with 400 labels: 0.7000. All 1000 labels: 0.7900." in text
    assert "| margin | 0.8100 | 200 (50%) | 200 | 200, 300 | 400 (40%) | +14.50" in text
    assert "| 300 | 0.7600 (0.7400 to 0.7800) | 0.6100 (0.6000 to 0.6200) |" in text
    assert "rows that chose the best step of every run too" in text
    assert "rows that no choice has seen" in markdown(result | {"is_test": True})
    assert "200 (50%)" in told_of(result)[1]


def test_the_picture_has_a_line_and_a_ring_where_the_score_is_reached(result):
    (axes,) = curve_figure(result).axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert np.allclose(lines["margin: 50% of the labels"][:, 1], result["lines"]["margin"]["mean"])
    assert np.allclose(lines["random"][:, 0], LABELS)
    rings = [line.get_xydata().tolist() for line in axes.lines if line.get_markersize() == 10]
    assert np.allclose(rings, [[[200, 0.70]]])


def test_every_acquisition_has_a_colour():
    assert set(COLOURS) == set(ACQUISITIONS)


def test_files(result, tmp_path):
    write_curve(tmp_path, result)
    assert json.loads((tmp_path / "curve.json").read_text()) == result
    assert (tmp_path / "curve.md").read_text() == markdown(result)
    assert (tmp_path / "curve.png").stat().st_size > 10_000
