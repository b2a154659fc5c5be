"""losses/classification.py: the weights of classes by hand and against scikit-learn, and which loss fits which rows."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from core.errors import UserError
from losses.classification import choose_loss, class_weights

ONE = np.array([0, 0, 0, 0, 1, 1, 2, 0], np.int32)  # counts 5, 2, 1
SEVERAL = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [0, 1]], np.uint8)  # positives 2, 3 of 5


def test_no_weights():
    assert class_weights("none", ONE, 3) is None
    assert class_weights("none", SEVERAL, 2) is None


def test_balanced_by_hand_and_against_scikit_learn():
    found = class_weights("balanced", ONE, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [8 / (3 * 5), 8 / (3 * 2), 8 / 3], rtol=1e-6)
    reference = compute_class_weight("balanced", classes=np.arange(3), y=ONE)
    np.testing.assert_allclose(found, reference, rtol=1e-6)
    # the weighted rows of each class weigh the same, n / C in all
    np.testing.assert_allclose(np.bincount(ONE, found[ONE]), [8 / 3] * 3, rtol=1e-6)


def test_balanced_with_several_labels_is_scikit_learns_for_each_class():
    found = class_weights("balanced", SEVERAL, 2)
    np.testing.assert_allclose(found, [[5 / 6, 5 / 4], [5 / 4, 5 / 6]], rtol=1e-6)
    for c in range(2):
        reference = compute_class_weight("balanced", classes=np.arange(2), y=SEVERAL[:, c])
        np.testing.assert_allclose(found[:, c], reference, rtol=1e-6)


def test_balanced_of_level_classes_is_none():
    assert class_weights("balanced", np.array([0, 1, 0, 1]), 2) is None


def test_a_class_without_rows_has_a_finite_weight():
    for kind in ("balanced", "effective"):
        assert np.isfinite(class_weights(kind, np.array([0, 0, 2]), 3)).all()


def test_effective_by_hand():
    # n = 4, b = 3/4, counts 3 and 1: (1/4) / (1 - 27/64) = 16/37 and 1, over their mean 53/74
    found = class_weights("effective", np.array([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(found, [32 / 53, 74 / 53], rtol=1e-6)
    # several labels: the same two counts in one column, negatives first
    found = class_weights("effective", np.array([[0], [0], [0], [1]]), 1)
    np.testing.assert_allclose(found, [[32 / 53], [74 / 53]], rtol=1e-6)
    # each class's two weights have mean 1 of their own: b = 4/5; counts 3, 2 and 2, 3 of 5
    found = class_weights("effective", np.array([[1, 0], [1, 1], [0, 1], [0, 0], [0, 1]]), 2)
    raw = 0.2 / (1 - 0.8 ** np.array([[3, 2], [2, 3]]))
    np.testing.assert_allclose(found, raw / raw.mean(axis=0), rtol=1e-6)
    found = class_weights("effective", np.array([[1, 0], [1, 1], [1, 0], [1, 0], [0, 1]]), 2)
    np.testing.assert_allclose(found.mean(axis=0), [1, 1], rtol=1e-6)
    assert class_weights("effective", ONE, 3).mean() == pytest.approx(1, rel=1e-6)


def test_effective_lies_between_none_and_balanced():
    labels = np.repeat([0, 1], [90, 10])
    balanced, effective = (class_weights(kind, labels, 2) for kind in ("balanced", "effective"))
    assert 1 < effective[1] / effective[0] < balanced[1] / balanced[0]


def test_given_weights():
    np.testing.assert_array_equal(class_weights("w.json", ONE, 3, [1.0, 2.0, 4.5]), [1, 2, 4.5])
    # with several labels a row they weigh the positives
    np.testing.assert_array_equal(class_weights("w.json", SEVERAL, 2, [2.0, 3.0]), [[1, 1], [2, 3]])
    assert class_weights("w.json", ONE, 3, [1.0, 1.0, 1.0]) is None


def test_alpha_weighs_positives():
    labels = np.array([0, 1, 1])
    np.testing.assert_allclose(class_weights("none", labels, 2, alpha=0.25), [0.75, 0.25])
    np.testing.assert_allclose(class_weights("none", SEVERAL, 2, alpha=0.25), [[0.75] * 2, [0.25] * 2])
    # on top of balanced: 3 / (2 * 1), 3 / (2 * 2)
    np.testing.assert_allclose(class_weights("balanced", labels, 2, alpha=0.25), [0.75 * 1.5, 0.25 * 0.75])


@pytest.mark.parametrize(
    "name, multi_label, expected",
    [("auto", False, "ce"), ("auto", True, "bce"), ("focal", False, "focal"), ("focal", True, "focal")],
)
def test_choose_loss(name, multi_label, expected):
    assert choose_loss(name, multi_label, 3, None) == expected


@pytest.mark.parametrize(
    "name, multi_label, message",
    [
        ("bce", False, r"--loss bce: the rows have one label a row; expected ce or focal"),
        ("ce", True, r"--loss ce: the rows have several labels a row; expected bce or focal"),
    ],
)
def test_choose_loss_refuses_the_other_kind_of_rows(name, multi_label, message):
    with pytest.raises(UserError, match=message):
        choose_loss(name, multi_label, 3, None)


@pytest.mark.parametrize(
    "name, multi_label, num_classes", [("ce", False, 2), ("bce", True, 2), ("focal", False, 3)]
)
def test_alpha_needs_focal_and_two_outcomes(name, multi_label, num_classes):
    with pytest.raises(UserError, match="--focal_alpha"):
        choose_loss(name, multi_label, num_classes, 0.25)


@pytest.mark.parametrize("multi_label, num_classes", [(False, 2), (True, 5)])
def test_alpha_is_taken(multi_label, num_classes):
    assert choose_loss("focal", multi_label, num_classes, 0.25) == "focal"
