"""core/pseudo_labels.py by hand, against slow loops, and what must hold for any rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.pseudo_labels import (
    UNDECIDED,
    class_quotas,
    consult,
    decide,
    is_above,
    label_groups,
    select,
)

# -- decisions --------------------------------------------------------------------------------------------------


def test_one_label_is_the_most_probable_class():
    chosen, confidence = decide(np.array([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]]), False)
    assert chosen.tolist() == [[False, True, False], [True, False, False]]
    assert confidence.tolist() == [0.7, 0.5]


def test_several_labels_are_as_sure_as_the_least_sure_decision():
    chosen, confidence = decide(np.array([[0.9, 0.2, 0.05], [0.1, 0.02, 0.03], [0.5, 0.99, 0.0]]), True)
    assert chosen.tolist() == [[True, False, False], [False] * 3, [True, True, False]]
    assert confidence == pytest.approx([0.8, 0.9, 0.5])


def test_the_mean_of_two_models_decides():
    probs = np.array([[[0.9, 0.1]], [[0.3, 0.7]]])
    chosen, confidence = consult(probs, False)
    assert chosen.tolist() == [[True, False]]
    assert confidence == pytest.approx([0.6])


def test_agreement_is_as_sure_as_the_least_sure_model():
    probs = np.array([[[0.9, 0.1], [0.8, 0.2]], [[0.3, 0.7], [0.6, 0.4]]])
    chosen, confidence = consult(probs, False, agree=True)
    assert confidence.tolist() == [UNDECIDED, 0.6]
    assert chosen[1].tolist() == [True, False]


def test_agreement_on_several_labels_is_on_all_of_them():
    probs = np.array([[[0.9, 0.1, 0.9]], [[0.8, 0.2, 0.4]]])
    assert consult(probs, True, agree=True)[1].tolist() == [UNDECIDED]
    assert consult(probs[..., :2], True, agree=True)[1] == pytest.approx([0.8])


def test_a_row_on_which_models_differ_is_never_taken():
    taken, _ = select(np.array([0]), np.array([UNDECIDED]), np.array([5]), least=0.0)
    assert not taken.any()


# -- groups and quotas ------------------------------------------------------------------------------------------


def test_groups_are_the_rarest_label_or_none():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    assert label_groups(labels, np.array([50, 5, 20])).tolist() == [0, 1, 1, 3]


def test_quotas_by_hand():
    assert class_quotas(np.array([5, 3, 2]), 7).tolist() == [4, 2, 1]  # 3.5, 2.1, 1.4: the half goes first
    assert class_quotas(np.array([1, 1, 0]), 3).tolist() == [2, 1, 0]


def test_a_whole_share_is_not_lost_to_rounding():
    assert class_quotas(np.array([1, 9]), 30).tolist() == [3, 27]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), st.integers(0, 300))
def test_quotas_share_out_exactly_and_nearly_in_proportion(prior, num_rows):
    prior = np.array(prior)
    quotas = class_quotas(prior, num_rows)
    assert quotas.sum() == num_rows
    assert (np.abs(quotas - prior / prior.sum() * num_rows) < 1).all()


# -- selection --------------------------------------------------------------------------------------------------

GROUPS = np.array([0, 1, 0, 0, 1, 0])
SURE = np.array([0.9, 0.6, 0.95, 0.7, 0.99, 0.8])


def test_the_most_confident_of_each_group():
    taken, cuts = select(GROUPS, SURE, np.array([2, 1]), 0.5)
    assert np.flatnonzero(taken).tolist() == [0, 2, 4]
    assert cuts.tolist() == [0.9, 0.99]


def test_what_a_group_lacks_goes_to_no_other():
    taken, cuts = select(GROUPS, SURE, np.array([1, 5, 3]), 0.5)
    assert np.flatnonzero(taken).tolist() == [1, 2, 4]
    assert cuts.tolist() == [0.95, 0.6, np.inf]


def test_none_below_the_least_confidence():
    taken, cuts = select(GROUPS, SURE, np.array([9, 9]), 0.8)
    assert np.flatnonzero(taken).tolist() == [0, 2, 4, 5]
    assert cuts.tolist() == [0.8, 0.99]


def test_of_equal_rows_the_first():
    taken, _ = select(np.zeros(4, int), np.array([0.7, 0.9, 0.9, 0.9]), np.array([2]), 0.0)
    assert np.flatnonzero(taken).tolist() == [1, 2]


def test_the_cuts_are_the_same_rule_on_other_rows():
    _, cuts = select(GROUPS, SURE, np.array([2, 1, 0]), 0.5)
    groups, sure = np.array([0, 0, 1, 1, 2]), np.array([0.9, 0.89, 0.99, 0.98, 1.0])
    assert is_above(groups, sure, cuts).tolist() == [True, False, True, False, False]


@given(st.integers(0, 10_000), st.integers(0, 40), st.floats(0, 1))
def test_selection_is_the_slow_one(seed, num_rows, least):
    rng = np.random.default_rng(seed)
    groups, sure, quotas = rng.integers(3, size=num_rows), rng.random(num_rows), rng.integers(0, 9, 3)
    taken, cuts = select(groups, sure, quotas, least)
    room, wanted = quotas.tolist(), set()
    for row in sorted(range(num_rows), key=lambda k: -sure[k]):
        if sure[row] >= least and room[groups[row]]:
            wanted.add(row)
            room[groups[row]] -= 1
    assert set(np.flatnonzero(taken)) == wanted
    assert np.array_equal(is_above(groups, sure, cuts), taken)
