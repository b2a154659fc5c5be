"""core/calibration.py: each fit against a reference, each map's promises, and that no row helps to measure itself."""

import json

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, softmax
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from core.calibration import (
    METHODS,
    apply_calibration,
    choose_method,
    compare_calibration,
    cross_fitted_logits,
    ece_by_chance,
    fit_calibration,
    fit_name,
    log_odds,
    read_fit,
    row_losses,
)
from core.errors import UserError
from core.files import write_json
from core.metrics import bin_numbers, calibration_summary, probabilities

FITTED = METHODS[1:]


def made_up(num_rows, num_classes, multi_label, seed=0, temperature=1.0):
    """Logits whose probabilities are right once they are divided by the temperature, and what came true."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (num_rows, num_classes)) - multi_label * np.linspace(0, 2, num_classes)
    if multi_label:
        return logits * temperature, rng.random(logits.shape) < expit(logits)
    drawn = rng.random((num_rows, 1)) < softmax(logits, axis=1).cumsum(axis=1)
    return logits * temperature, drawn.argmax(axis=1)[:, None] == np.arange(num_classes)


BOTH = pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "several"])


# -- the fits ---------------------------------------------------------------------------------------------------


@BOTH
def test_temperature_is_where_the_slope_of_the_nll_is_zero(multi_label):
    logits, truth = made_up(4000, 4, multi_label, temperature=2.0)

    def slope(beta):  # of the NLL in beta = 1 / T, written out: sum of (p - y) z
        return ((probabilities(logits * beta, multi_label) - truth) * logits).sum()

    found = fit_calibration("temperature", logits, truth, multi_label)["temperature"]
    assert found == pytest.approx(1 / brentq(slope, 0.01, 10), rel=1e-6)
    assert found == pytest.approx(2.0, rel=0.05)


def test_rows_that_are_all_right_have_no_temperature():
    truth = np.eye(3, dtype=bool)[np.arange(30) % 3]
    assert fit_calibration("temperature", truth * 4.0, truth, False) == {"temperature": 1.0}
    truth[0] = [False, True, False]  # one wrong row, and there is one
    assert (
        fit_calibration("temperature", np.eye(3)[np.arange(30) % 3] * 4.0, truth, False)["temperature"] != 1.0
    )


def test_platt_is_scikit_learns():
    logits, truth = made_up(300, 3, True, seed=1, temperature=1.7)
    found = fit_calibration("platt", logits, truth, True)
    for c in range(3):
        reference = _SigmoidCalibration().fit(logits[:, c], truth[:, c].astype(int))
        assert found["scale"][c] == pytest.approx(-reference.a_, rel=1e-4)
        assert found["bias"][c] == pytest.approx(-reference.b_, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(
            expit(apply_calibration("platt", found, logits, True)[:, c]),
            reference.predict(logits[:, c]),
            rtol=1e-4,
        )


def test_platt_does_not_turn_a_ranking_round():
    logits, truth = np.array([[2.0], [1.0], [0.0], [-1.0]]), np.array([[False], [False], [True], [True]])
    found = fit_calibration("platt", logits, truth, True)
    # Platt's targets are 3/4 for two positive rows and 1/4 for two negative ones: one half on the mean.
    assert found == {"scale": [0.0], "bias": [pytest.approx(0.0)]}


def test_platt_stays_finite_for_a_class_without_rows():
    logits, _ = made_up(50, 2, True)
    found = fit_calibration("platt", logits, np.zeros((50, 2), bool), True)
    after = expit(apply_calibration("platt", found, logits, True))
    np.testing.assert_allclose(after.mean(axis=0), 1 / 52, rtol=1e-3)  # his target for 50 negative rows


def test_isotonic_is_scikit_learns_kept_away_from_0_and_1():
    logits, truth = made_up(200, 2, True, seed=2)
    found = fit_calibration("isotonic", logits, truth, True)
    after = expit(apply_calibration("isotonic", found, logits, True))
    beyond = expit(apply_calibration("isotonic", found, np.array([[-30.0] * 2, [30.0] * 2]), True))
    for c in range(2):
        reference = IsotonicRegression(out_of_bounds="clip").fit(logits[:, c], truth[:, c])
        expected = reference.predict(logits[:, c])
        np.testing.assert_allclose(after[:, c], expected.clip(1 / 202, 201 / 202))
        np.testing.assert_allclose(beyond[:, c], reference.predict([-30, 30]).clip(1 / 202, 201 / 202))
    assert after.min() == pytest.approx(1 / 202)


def test_isotonic_by_hand():
    # In the order of the scores 0, 1, 0, 1 came true: the middle two pool to a half; clipped to 1/6 and 5/6.
    logits, truth = np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([[False], [True], [False], [True]])
    found = fit_calibration("isotonic", logits, truth, True)
    assert found["log_odds"] == [[-2.0, -1.0, 1.0, 2.0]]
    assert found["probability"] == [pytest.approx([1 / 6, 0.5, 0.5, 5 / 6])]
    halfway = apply_calibration("isotonic", found, np.array([[-1.5]]), True)
    assert expit(halfway) == pytest.approx((1 / 6 + 0.5) / 2)


def test_one_label_a_row_is_each_class_against_the_rest_over_their_sum():
    logits, truth = made_up(400, 3, False, seed=3, temperature=2.0)
    odds = log_odds(logits, False)
    curves = [
        _SigmoidCalibration().fit(odds[:, c], truth[:, c].astype(int)).predict(odds[:, c]) for c in range(3)
    ]
    expected = np.stack(curves, axis=1)
    found = apply_calibration("platt", fit_calibration("platt", logits, truth, False), logits, False)
    np.testing.assert_allclose(
        softmax(found, axis=1), expected / expected.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )


def test_two_classes_are_platts_own_method():
    logits, truth = made_up(300, 2, False, seed=4)
    difference = logits[:, 1] - logits[:, 0]
    reference = _SigmoidCalibration().fit(difference, truth[:, 1].astype(int)).predict(difference)
    found = apply_calibration("platt", fit_calibration("platt", logits, truth, False), logits, False)
    np.testing.assert_allclose(softmax(found, axis=1)[:, 1], reference, rtol=1e-4)


def test_log_odds_by_hand():
    logits = np.log([[0.5, 0.3, 0.2]])
    np.testing.assert_allclose(
        log_odds(logits, False), np.log([[0.5 / 0.5, 0.3 / 0.7, 0.2 / 0.8]]), atol=1e-12
    )
    np.testing.assert_allclose(
        log_odds([[60.0, 0.0, 0.0]], False)[0, 0], 60 - np.log(2)
    )  # 1 - p is 0 in floats
    assert np.isfinite(log_odds([[9000.0, 0.0]], False)).all()
    assert log_odds([[60.0, 0.0]], True).tolist() == [[60.0, 0.0]]


# -- what every map promises ------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_a_fit_survives_json_and_gives_probabilities(method, multi_label):
    logits, truth = made_up(120, 3, multi_label, seed=5)
    fitted = fit_calibration(method, logits, truth, multi_label)
    after = apply_calibration(method, json.loads(json.dumps(fitted)), logits, multi_label)
    np.testing.assert_array_equal(after, apply_calibration(method, fitted, logits, multi_label))
    assert np.isfinite(row_losses(after, truth, multi_label)).all()
    if not multi_label:
        np.testing.assert_allclose(probabilities(after, False).sum(axis=1), 1)


@pytest.mark.parametrize("method", FITTED)
def test_a_class_keeps_its_ranking(method):
    logits, truth = made_up(200, 3, True, seed=6, temperature=3.0)
    after = apply_calibration(method, fit_calibration(method, logits, truth, True), logits, True)
    for c in range(3):
        assert (np.diff(after[np.argsort(logits[:, c]), c]) >= 0).all()


def test_temperature_changes_no_label():
    logits, truth = made_up(300, 4, False, seed=7, temperature=3.0)
    after = apply_calibration(
        "temperature", fit_calibration("temperature", logits, truth, False), logits, False
    )
    np.testing.assert_array_equal(after.argmax(axis=1), logits.argmax(axis=1))
    logits, truth = made_up(300, 4, True, seed=7, temperature=3.0)
    after = apply_calibration(
        "temperature", fit_calibration("temperature", logits, truth, True), logits, True
    )
    np.testing.assert_array_equal(after >= 0, logits >= 0)


def test_where_two_classes_tie_the_scores_decide():
    flat = {"log_odds": [[0.0], [0.0], [0.0]], "probability": [[0.4], [0.4], [0.2]]}
    after = apply_calibration("isotonic", flat, np.array([[1.0, 2.0, 9.0], [2.0, 1.0, 9.0]]), False)
    assert after.argmax(axis=1).tolist() == [1, 0]
    np.testing.assert_allclose(softmax(after, axis=1), [[0.4, 0.4, 0.2]] * 2, rtol=1e-7)


# -- cross-fitting and the choice -------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", FITTED)
def test_no_row_helps_to_calibrate_itself(method, multi_label):
    logits, truth = made_up(43, 3, multi_label, seed=8)
    before = cross_fitted_logits(method, logits, truth, multi_label)
    for row in range(0, 43, 7):
        changed = truth.copy()
        changed[row] = ~truth[row] if multi_label else np.roll(truth[row], 1)
        after = cross_fitted_logits(method, logits, changed, multi_label)
        np.testing.assert_array_equal(after[row], before[row])
        assert (after != before).any()  # the others of its fold aside


@pytest.mark.parametrize("method", FITTED)
def test_fitting_on_all_rows_would_let_a_row_calibrate_itself(method):
    """Bite: the test above fails for a fit on all rows."""
    logits, truth = made_up(43, 3, True, seed=8)
    changed = truth.copy()
    changed[0] = ~truth[0]
    found = [
        apply_calibration(method, fit_calibration(method, logits, labels, True), logits, True)[0]
        for labels in (truth, changed)
    ]
    assert (found[0] != found[1]).any()


def test_the_simplest_within_one_standard_error_is_chosen():
    noise = np.tile([-0.1, 0.1], 50)  # the mean of 100 of these has a standard error of 0.01
    lowest, flat = np.full(100, 0.5), np.zeros(100)
    method, table = choose_method(
        {"a": lowest + 0.1 + flat, "b": lowest + 0.005 + noise, "c": lowest}, 2000, 0
    )
    assert method == "b"  # 0.005 above the lowest, within 0.01; a is above it by 0.1, with no error at all
    assert table["b"]["behind"] == pytest.approx(0.005)
    assert table["b"]["standard_error"] == pytest.approx(0.01, rel=0.1)
    assert choose_method({"a": lowest + 0.1, "b": lowest + 0.02 + noise, "c": lowest}, 2000, 0)[0] == "c"
    assert choose_method({"a": lowest, "b": lowest}, 200, 0)[0] == "a"


@BOTH
def test_what_is_calibrated_already_is_left_alone(multi_label):
    chosen, harm = [], []
    fresh = made_up(4000, 3, multi_label, seed=99)
    for seed in range(8):
        logits, truth = made_up(250, 3, multi_label, seed=seed)
        losses = {
            method: row_losses(cross_fitted_logits(method, logits, truth, multi_label), truth, multi_label)
            for method in METHODS
        }
        method, _ = choose_method(losses, 300, seed)
        after = apply_calibration(
            method, fit_calibration(method, logits, truth, multi_label), fresh[0], multi_label
        )
        chosen.append(method)
        harm.append((row_losses(after, fresh[1], multi_label) - row_losses(*fresh, multi_label)).mean())
    assert chosen.count("none") >= 6
    assert "isotonic" not in chosen
    assert np.mean(harm) < 0.003


def test_what_is_overconfident_is_mended():
    logits, truth = made_up(400, 3, False, seed=1, temperature=3.0)
    losses = {
        method: row_losses(cross_fitted_logits(method, logits, truth, False), truth, False)
        for method in METHODS
    }
    assert choose_method(losses, 300, 0)[0] == "temperature"


# -- the measures -----------------------------------------------------------------------------------------------


@BOTH
def test_the_measures_are_those_of_a_summary(multi_label):
    logits, truth = made_up(150, 3, multi_label, seed=9, temperature=3.0)
    labels = truth.astype(int) if multi_label else truth.argmax(axis=1)
    found = compare_calibration(logits, logits / 3, truth, multi_label, 400, 0)
    for name, scores in (("before", logits), ("after", logits / 3)):
        summary = calibration_summary(scores, labels, multi_label)
        assert {key: found[name][key] for key in summary} == summary
        for measure, (low, high) in found[name]["intervals"].items():
            assert low < summary[measure] < high
    for measure, change in found["change"].items():
        assert change["difference"] == pytest.approx(found["after"][measure] - found["before"][measure])
        assert change["low"] < change["difference"] < change["high"]
    assert found["change"]["nll"]["high"] < 0


def test_an_interval_is_as_wide_as_its_standard_error_says():
    logits, truth = made_up(400, 3, False, seed=10)
    low, high = compare_calibration(logits, logits, truth, False, 4000, 0)["before"]["intervals"]["nll"]
    losses = row_losses(logits, truth, False)
    assert high - low == pytest.approx(2 * 1.96 * losses.std() / 20, rel=0.07)


def test_the_change_is_paired():
    logits, truth = made_up(400, 3, False, seed=11)
    found = compare_calibration(logits, logits, truth, False, 200, 0)
    assert found["change"] == {
        name: {"difference": 0.0, "low": 0.0, "high": 0.0} for name in ("ece", "brier", "nll")
    }


def test_ece_by_hand():
    # Two values of confidence, so two bins: 0.8, of which one in two came true, and 0.6, of which all did.
    logits = np.log([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6]])
    truth = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], bool)
    found = compare_calibration(logits, logits, truth, False, 10, 0)["before"]
    assert found["ece"] == pytest.approx((2 * 0.3 + 2 * 0.4) / 4)
    assert found["brier"] == pytest.approx((0.08 + 1.28 + 0.32 + 0.32) / 4)
    assert found["nll"] == pytest.approx(-np.log(0.8 * 0.2 * 0.6 * 0.6) / 4)


def test_equal_scores_share_a_bin():
    assert bin_numbers(np.array([0.5, 0.5, 0.1, 0.5, 0.9])).tolist() == [1, 1, 0, 1, 2]
    counts = np.bincount(bin_numbers(np.random.default_rng(0).random(150)))
    assert counts.tolist() == [10] * 15


def test_chance_alone_gives_an_ece():
    # One bin of n scores of a half: the mean of |share - 1/2| is sqrt(2 / pi) times its standard deviation.
    found = ece_by_chance(np.zeros((400, 1)), True, 0)
    assert found["mean"] == pytest.approx(np.sqrt(2 / np.pi) * 0.5 / 20, rel=0.15)
    assert found["high"] == pytest.approx(1.96 * 0.5 / 20, rel=0.15)
    logits, truth = made_up(500, 3, False, seed=12)
    assert (
        calibration_summary(logits, truth.argmax(axis=1), False)["ece"]
        < ece_by_chance(logits, False, 0)["high"]
    )
    wrong, truth = made_up(500, 3, False, seed=12, temperature=4.0)
    assert (
        calibration_summary(wrong, truth.argmax(axis=1), False)["ece"]
        > ece_by_chance(wrong, False, 0)["high"]
    )


# -- what a folder holds ----------------------------------------------------------------------------------------


def test_a_folder_of_no_fit_leaves_scores_as_they_are(tmp_path):
    nothing = {"method": "none", "parameters": {}}
    assert read_fit(tmp_path, ["a"]) == (nothing, None)
    own = {"thresholds": {"a": 0.3}, "tuned_on": "x"}
    write_json(tmp_path / "thresholds.json", own)
    write_json(
        tmp_path / "calibration.json", {"ece": 0.1, "temperature": 1.0, "method": "none"}
    )  # a run's own
    assert read_fit(tmp_path, ["a"]) == (nothing, own)
    assert read_fit(tmp_path, ["a"], raw=True) == (nothing, own)


def test_the_two_files_belong_together(tmp_path):
    parameters = {"temperature": 2.0}
    tuned = {"thresholds": {"a": 0.4}, "tuned_on": "rows", "fit": fit_name("temperature", parameters)}
    own = {"thresholds": {"a": 0.3}, "tuned_on": "rows"}
    calibration = {"method": "temperature", "parameters": parameters, "label_names": ["a"]}
    write_json(tmp_path / "thresholds.uncalibrated.json", own)
    write_json(tmp_path / "thresholds.json", tuned)
    write_json(tmp_path / "calibration.json", calibration)
    assert read_fit(tmp_path, ["a"]) == ({"method": "temperature", "parameters": parameters}, tuned)
    assert read_fit(tmp_path, ["a"], raw=True)[1] == own
    with pytest.raises(UserError, match=r"thresholds.json.*: is not whole: no 'b'"):
        read_fit(tmp_path, ["b"])
    write_json(tmp_path / "calibration.json", calibration | {"parameters": {"temperature": 2.1}})
    with pytest.raises(UserError, match="are not of one fit"):
        read_fit(tmp_path, ["a"])


def test_raw_thresholds_are_the_runs_own_even_when_nothing_was_fitted(tmp_path):
    """jobs.calibrate may choose no map and still find other thresholds."""
    own, found = (
        {"thresholds": {"a": cut, "b": cut}, "tuned_on": "rows", "fit": "none"} for cut in (0.3, 0.6)
    )
    (tmp_path / "thresholds.uncalibrated.json").write_text(json.dumps(own))
    (tmp_path / "thresholds.json").write_text(json.dumps(found))
    assert read_fit(tmp_path, ["a", "b"], raw=True)[1] == own
    assert read_fit(tmp_path, ["a", "b"])[1] == found
