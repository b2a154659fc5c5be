"""core/rank_report.py and core/rank_plots.py: what the files, the table and each figure hold."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from core.plots import save_png
from core.rank_metrics import binomial_interval, group_metrics, ranking_baselines, ranking_metrics
from core.rank_plots import confidence_figure, group_figure, position_figure, reward_figure
from core.rank_report import rank_prediction_rows, rank_table, write_rank_evaluation

NAN = np.nan


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _questions(num_questions=90, num_places=8, seed=0):
    """Float32 scores (junk where no candidate is) and rewards, 2..K candidates in the first places, some all 0."""
    rng = np.random.default_rng(seed)
    shape = num_questions, num_places
    rewards = (rng.integers(0, 5, shape) / 4).astype(np.float32)
    rewards[:5] = 0
    scores = (rng.normal(size=shape) + 2 * rewards).astype(np.float32)
    empty = np.arange(num_places) >= rng.integers(2, num_places + 1, num_questions)[:, None]
    return np.where(empty, np.float32(1e9), scores), np.where(empty, np.float32(NAN), rewards)


def _saved(figure, tmp_path):
    """Pixels wide and high of the PNG, read from its header."""
    save_png(figure, str(tmp_path / "figure.png"))
    data = (tmp_path / "figure.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


# -- prediction rows --------------------------------------------------------------------------------------------


def test_prediction_rows_by_hand():
    scores = np.array([[0.5, 0.25, 9.0], [1.0, 3.0, 3.0], [0.1, NAN, NAN]], np.float32)
    assert rank_prediction_rows(scores, np.array([2, 3, 1])) == [
        {"choice": 0, "scores": [0.5, 0.25]},
        {"choice": 1, "scores": [1.0, 3.0, 3.0]},  # the first of the highest
        {"choice": 0, "scores": [0.1]},
    ]
    close = np.array([[0.1234561, 0.1234564]])
    assert rank_prediction_rows(close, np.array([2])) == [{"choice": 1, "scores": [0.123456, 0.123456]}]


@pytest.mark.parametrize(
    "sizes, message",
    [
        ([2], r"found \(2, 3\) and \(1,\)"),
        ([2, 0], "sizes must be in 1..3, found 0 in question 1"),
        ([4, 1], "found 4 in question 0"),
        ([2, 3], "question 1 has a score that is not finite"),
    ],
)
def test_prediction_rows_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        rank_prediction_rows(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, NAN]]), np.array(sizes))


# -- the folder -------------------------------------------------------------------------------------------------


def test_the_folder_holds_everything(tmp_path):
    scores, rewards = _questions()
    metrics, groups = ranking_metrics(scores, rewards), [f"{k % 3} steps" for k in range(len(scores))]
    shown = metrics | {"per_group": group_metrics(scores, rewards, groups)}
    figures = write_rank_evaluation(tmp_path / "runs" / "validation", scores, rewards, shown)
    folder = tmp_path / "runs" / "validation"
    names = ["per_group", "pick_confidence", "pick_rewards", "positions"]
    files = [f"{name}.png" for name in names] + ["logits.npy", "metrics.json", "predictions.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert sorted(figures) == names
    assert json.loads((folder / "metrics.json").read_text()) == shown
    logits = np.load(folder / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(logits), np.isnan(rewards))
    np.testing.assert_array_equal(logits[~np.isnan(rewards)], scores[~np.isnan(rewards)])
    assert ranking_metrics(logits, rewards) == metrics  # evaluation works from the file alone
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [len(line["scores"]) for line in lines] == (~np.isnan(rewards)).sum(axis=1).tolist()
    picked = [rewards[k, line["choice"]] for k, line in enumerate(lines)]
    right = [p == np.nanmax(r) for p, r in zip(picked, rewards) if np.nanmax(r) > np.nanmin(r)]
    assert np.mean(right) == pytest.approx(metrics["accuracy"])
    # bite: with the junk of the empty places read as scores, the choice would be one of those
    wrong = rank_prediction_rows(scores, np.full(len(scores), scores.shape[1]))
    assert [line["choice"] for line in wrong] != [line["choice"] for line in lines]


def test_without_groups_and_without_anything_to_rank(tmp_path):
    scores, rewards = _questions()
    write_rank_evaluation(tmp_path / "a", scores, rewards, ranking_metrics(scores, rewards))
    assert "per_group" not in json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert not (tmp_path / "a" / "per_group.png").exists()
    same = np.where(np.isnan(rewards), rewards, 0)
    figures = write_rank_evaluation(tmp_path / "b", scores, same, ranking_metrics(scores, same))
    assert sorted(figures) == ["pick_rewards", "positions"]
    assert len((tmp_path / "b" / "predictions.jsonl").read_text().splitlines()) == len(scores)


def test_a_candidate_behind_an_empty_place_is_an_error(tmp_path):
    scores, rewards = np.zeros((2, 3)), np.array([[0.0, 1.0, NAN], [0.0, NAN, 1.0]])
    with pytest.raises(ValueError, match="question 1 has a candidate behind an empty place"):
        write_rank_evaluation(tmp_path / "a", scores, rewards, ranking_metrics(scores, rewards))
    assert not (tmp_path / "a").exists()


# -- the table --------------------------------------------------------------------------------------------------


def test_the_table_names_this_run_and_the_baselines():
    scores, rewards = _questions()
    lengths = np.random.default_rng(1).integers(1, 50, scores.shape)
    metrics = ranking_metrics(scores, rewards)
    metrics |= {"per_group": group_metrics(scores, rewards, [f"{k % 12} steps" for k in range(len(scores))])}
    baselines = {f"{k} (validation)": v for k, v in ranking_baselines(rewards, lengths).items()}
    text = rank_table({"validation": metrics} | baselines)
    lines = text.splitlines()
    assert lines[0] == ""
    assert " ".join(lines[1].split()) == "name accuracy reward_ratio average_reward mrr map ndcg loss n"
    shown = [line.split("  ")[0] for line in lines[3:8]]
    assert shown == ["this run (validation)", *baselines]
    assert lines[3].split()[-8:] == [
        f"{metrics[key]:.4f}" if key != "n" else str(metrics[key]) for key in lines[1].split()[1:]
    ]
    assert lines[5].split()[-2] == "-"  # the loss of "first"
    assert f"validation: {metrics['num_skipped']} question(s) that cannot be ranked" in lines[8]
    assert max(map(len, lines)) <= 110
    by_group = lines[lines.index("validation, by group:") + 3 :]
    assert [line.split("  ")[0] for line in by_group[:12]] == [f"{k} steps" for k in range(12)]
    positions = lines[lines.index("validation, share of questions by position:") + 1 :]
    assert positions[0].split() == ["name", *map(str, range(1, 9))]
    assert [line.split()[0] for line in positions[2:]] == ["picks", "best", "chance"]
    assert sum(map(float, positions[2].split()[1:])) == pytest.approx(1, abs=1e-3)


def test_the_table_of_two_splits_of_many_groups_and_places():
    scores, rewards = _questions(200, 40)
    metrics = ranking_metrics(scores, rewards)
    many = metrics | {"per_group": group_metrics(scores, rewards, [str(k % 50) for k in range(200)])}
    text = rank_table({"validation": metrics, "random (validation)": metrics, "test": many})
    assert "this run (validation)" in text
    assert "this run (test)" in text
    assert "... and 20 more, none larger" in text
    assert "by position" not in text
    assert rank_table({"random": metrics}).count("\n") == 4
    nothing = ranking_metrics(np.zeros((3, 2)), np.zeros((3, 2)))
    assert "0.0000" in rank_table({"test": nothing})  # positions; every mean is "-"


# -- the figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_places", [2, 8, 24, 60])
def test_positions(num_places, tmp_path):
    metrics = ranking_metrics(*_questions(200, num_places))
    axes = (figure := position_figure(metrics)).axes[0]
    shares = {
        key: np.array(metrics[f"{key}_by_position"]) / metrics["n"] for key in ("picks", "best", "chance")
    }
    if num_places <= 24:
        shown = dict(zip(("picks", "best"), ([bar.get_height() for bar in bars] for bars in axes.containers)))
        shown["chance"] = [segment[0, 1] for segment in axes.collections[0].get_segments()]
    else:
        shown = {
            key: patch.get_data().values for key, patch in zip(("best", "picks", "chance"), axes.patches)
        }
    for key, values in shares.items():
        np.testing.assert_allclose(shown[key], values)
    assert (
        axes.get_title()
        == f"{metrics['n']} questions, {metrics['num_skipped']} that cannot be ranked left out"
    )
    assert max(_saved(figure, tmp_path)) < 2500


def test_groups(tmp_path):
    groups = {"10 $ and $ 20": {"n": 40, "accuracy": 0.25, "reward_ratio": 0.5}}
    groups |= {"none": {"n": 0, "accuracy": None, "reward_ratio": None}}
    groups |= {"no ratio": {"n": 3, "accuracy": 1.0, "reward_ratio": None}}
    axes = (figure := group_figure(groups)).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [r"10 \$ and \$ 20", "no ratio"]
    intervals = [part.get_segments()[0][:, 0] for part in axes.collections[:2]]
    np.testing.assert_allclose(intervals, [binomial_interval(10, 40), binomial_interval(3, 3)])
    accuracy, ratio = (part.get_offsets() for part in axes.collections[2:4])
    np.testing.assert_allclose(accuracy, [[0.25, 0], [1.0, 1]])
    np.testing.assert_allclose(ratio.filled(NAN)[:, 0], [0.5, NAN])
    assert [text.get_text() for text in axes.texts] == ["40", "3", "questions"]
    _saved(figure, tmp_path)
    _saved(group_figure({}), tmp_path)
    many = {f"group {k}": {"n": k, "accuracy": 0.0, "reward_ratio": -0.5} for k in range(1, 81)}
    axes = (figure := group_figure(many)).axes[0]
    assert axes.get_title() == "the 60 largest of 80 groups"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"group {k}" for k in range(21, 81)]
    assert axes.get_xlim()[0] < -0.5  # rewards below 0
    assert max(_saved(figure, tmp_path)) < 4000


def test_confidence(tmp_path):
    # picks at 5/8 (right), 1/2 and 3/4 (wrong); the last question cannot be ranked
    scores = np.log([[1.0, 2.0, 5.0], [4.0, 2.0, 2.0], [1.0, 3.0, 9.0], [1.0, 1.0, 1.0]])
    rewards = np.array([[0.0, 0.5, 1.0], [0.5, 1.0, 0.0], [0.5, 0.0, NAN], [1.0, 1.0, 1.0]])
    axes = (figure := confidence_figure(scores, rewards)).axes[0]
    discs = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(discs, [[1 / 2, 0], [5 / 8, 1], [3 / 4, 0]])
    assert "bin of 1 question(s)" in [text.get_text() for text in axes.get_legend().get_texts()]
    _saved(figure, tmp_path)
    assert confidence_figure(scores[3:], rewards[3:]) is None


def test_rewards(tmp_path):
    scores, rewards = _questions()
    axes = (figure := reward_figure(scores, rewards)).axes[0]
    bars = {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in axes.containers[0]}
    assert {place for place, height in bars.items() if height} <= {
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
    }  # bins around values
    assert sum(bars.values()) == pytest.approx(1.0)
    assert bars[1.0] > 0.3
    mean = ranking_metrics(scores, rewards)["average_reward"]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(mean)
    _saved(figure, tmp_path)
    below = np.array([[-2.0, 3.0]])
    low, high = reward_figure(below, below).axes[0].get_xlim()
    assert low < -2
    assert high > 3


def test_pyplot_stays_out_of_it():
    code = "import sys, core.rank_report; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
