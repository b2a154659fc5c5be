"""core/ensembles.py: no row chooses its own weights, the mean is left only for a real gain, each member's worth."""

from dataclasses import replace

import numpy as np
import pytest

from core.calibration import row_losses
from core.ensembles import (
    METHODS,
    METRICS,
    NUM_FOLDS,
    Members,
    choose_method,
    combine,
    decide,
    disagreement,
    fair_logits,
    fit,
    leave_one_out,
    member_weights,
    resample,
    score,
)
from core.metrics import classification_metrics, probabilities
from core.mixing import f1_weights
from core.stacking import fit_stacking
from core.thresholds import cross_fitted, deal_folds


def some_members(num_rows=60, multi_label=False, skills=(1.0, 2.0, 0.0), num_classes=3, seed=0) -> Members:
    rng = np.random.default_rng(seed)
    if multi_label:
        truth = rng.random((num_rows, num_classes)) < 0.3
    else:
        truth = rng.integers(num_classes, size=num_rows)[:, None] == np.arange(num_classes)
    logits = np.stack([skill * truth + rng.normal(size=truth.shape) for skill in skills])
    return Members(logits.astype(np.float32), truth, multi_label, strength=0.1)


def leaking_rows(method: str, members: Members) -> list[int]:
    """Of the first 8 rows, those whose own label changes their own scores."""
    before, found = fair_logits(method, members), []
    for row in range(8):
        truth = members.truth.copy()
        truth[row] = ~truth[row] if members.multi_label else np.roll(truth[row], 1)
        after = fair_logits(method, replace(members, truth=truth))
        if not np.array_equal(before[row], after[row]):
            found.append(row)
    return found


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_no_row_chooses_its_own_combination(method, multi_label):
    assert leaking_rows(method, some_members(multi_label=multi_label)) == []


@pytest.mark.parametrize("method", ["weighted", "greedy", "stacking"])
def test_bite_rows_that_choose_for_themselves(method, monkeypatch):
    members = some_members()
    monkeypatch.setattr(Members, "rows", lambda self, kept: self)
    assert leaking_rows(method, members)


@pytest.mark.parametrize("method", ["weighted", "greedy", "stacking"])
def test_each_fold_is_combined_as_the_others_choose(method):
    members = some_members()
    fold, found = deal_folds(60, NUM_FOLDS, 0), fair_logits(method, members)
    for k in range(NUM_FOLDS):
        others = replace(members, logits=members.logits[:, fold != k], truth=members.truth[fold != k])
        expected = combine(members.logits[:, fold == k], fit(method, others), False)
        assert np.allclose(found[fold == k], expected)


def test_a_mean_is_combined_at_once():
    members = some_members()
    expected = np.log(np.mean([probabilities(own, False) for own in members.logits], axis=0))
    assert np.allclose(fair_logits("mean", members), expected)


def test_weighted_takes_the_weights_of_f1():
    members = some_members()
    probs = np.stack([probabilities(own, False) for own in members.logits])
    assert np.allclose(fit("weighted", members), f1_weights(probs, members.truth, False))


def test_a_meta_learner_of_out_of_fold_rows_sees_no_other():
    members, trained_on = some_members(), some_members(seed=1)
    members = replace(members, oof=(trained_on.logits, trained_on.truth))
    table = fit_stacking(trained_on.logits, trained_on.truth, False, 0.1)
    assert np.allclose(fit("stacking", members), table)
    assert np.allclose(fair_logits("stacking", members), combine(members.logits, table, False))


def test_out_of_fold_scores_lose_the_member_too():
    members, trained_on = some_members(), some_members(seed=1)
    members = replace(members, oof=(trained_on.logits, trained_on.truth))
    table = fit_stacking(trained_on.logits[[0, 2]], trained_on.truth, False, 0.1)
    assert np.allclose(fit("stacking", members.without(1)), table)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_metrics_json(metric, multi_label):
    members = replace(some_members(multi_label=multi_label), metric=metric)
    logits = members.logits[0]
    labels = members.truth.astype(int) if multi_label else members.truth.argmax(axis=1)
    tuned = cross_fitted(probabilities(logits, True), members.truth) if multi_label else None
    metrics = classification_metrics(logits, labels, list("abc"), multi_label, tuned)
    name = {"macro_f1": "macro_f1_tuned", "accuracy": "subset_accuracy_tuned"}[metric] if (
        multi_label and metric != "loss"
    ) else metric  # fmt: skip
    assert score(logits, members) == pytest.approx(metrics[name])


def test_given_thresholds_decide():
    logits, truth = np.array([[0.0, 2.0]]), np.array([[True, False]])
    assert decide(logits, truth, True, np.array([0.4, 0.9])).tolist() == [[True, False]]


@pytest.mark.parametrize("metric", METRICS)
def test_resampled_scores_lie_around_the_score_and_are_paired(metric):
    members = replace(some_members(200), metric=metric)
    found = resample(members.logits[0], members)
    assert found.mean() == pytest.approx(score(members.logits[0], members), abs=0.02)
    assert np.array_equal(found, resample(members.logits[0], members))


def test_standard_error_of_a_mean():
    members = replace(some_members(400), metric="loss")
    losses = row_losses(members.logits[0], members.truth, False)
    assert resample(members.logits[0], members).std() == pytest.approx(losses.std() / 20, rel=0.1)


def choose(members: Members) -> tuple:
    return choose_method({method: fair_logits(method, members) for method in METHODS}, members)


def test_the_mean_stays_where_nothing_gains():
    method, told = choose(some_members(100, skills=(1.0, 1.0)))
    assert method == "mean"
    assert told["mean"] == {"value": told["mean"]["value"], "gain": 0.0, "gain_se": 0.0}


def test_a_real_gain_is_taken():
    members = some_members(300, skills=(4.0, 0.0, 0.0, 0.0))  # one knows, three guess loudly
    loud = members.logits.copy()
    loud[1:] *= 4
    method, told = choose(replace(members, logits=loud))
    assert method in ("greedy", "stacking")
    assert told[method]["gain"] > told[method]["gain_se"] > 0
    assert told[method]["gain"] == pytest.approx(told[method]["value"] - told["mean"]["value"])


def test_a_gain_within_its_standard_error_is_none():
    members = some_members(100)
    fair = {"mean": members.logits[1], "greedy": members.logits[1].copy()}
    right = members.truth.argmax(axis=1)
    wrong = np.flatnonzero(fair["greedy"].argmax(axis=1) != right)[0]
    fair["greedy"][wrong, right[wrong]] = 99  # one row of a hundred better
    method, told = choose_method(fair, replace(members, metric="accuracy"))
    assert told["greedy"]["gain"] == pytest.approx(0.01)
    assert told["greedy"]["gain_se"] == pytest.approx(0.01, rel=0.1)  # binomial: sqrt(0.01 * 0.99 / 100)
    assert method == ("greedy" if told["greedy"]["gain"] > told["greedy"]["gain_se"] else "mean")


def test_a_lower_loss_is_a_gain():
    members = replace(some_members(200, skills=(3.0, 0.0)), metric="loss")
    told = choose_method({"mean": members.logits[1], "greedy": members.logits[0]}, members)
    assert told[0] == "greedy"
    assert told[1]["greedy"]["value"] < told[1]["mean"]["value"]
    assert told[1]["greedy"]["gain"] > 0


def test_without_a_member_the_others_are_the_ensemble():
    members = some_members(skills=(1.0, 2.0))
    alone = [score(members.logits[m], members) for m in (1, 0)]
    assert leave_one_out("mean", members) == pytest.approx(alone)


def test_leaving_out_a_copy_costs_little_and_the_one_that_knows_much():
    members = some_members(200, skills=(3.0, 0.0, 0.0))
    without = leave_one_out("greedy", members)
    assert without[0] < min(without[1:]) - 0.2


def test_disagreement_by_hand():
    chosen = np.array([[[1, 0], [1, 0]], [[1, 0], [0, 1]], [[0, 1], [0, 1]]], bool)
    assert disagreement(chosen).tolist() == [[0, 0.5, 1], [0.5, 0, 0.5], [1, 0.5, 0]]


def test_weights_of_a_mean_are_its_own():
    assert member_weights(np.array([0.25, 0.75]), 2, False).tolist() == [0.25, 0.75]
