"""core/baselines.py by hand, on texts that can be learnt, and on what cannot be learnt."""

import warnings

import numpy as np
import pytest
from scipy.special import expit

from core.baselines import majority_scores, tfidf_scores
from core.metrics import classification_metrics, probabilities

WORDS = ["apple pear", "iron steel", "river lake"]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _texts(num_rows, seed=0):
    """Rows whose class is told by two words among fillers; (texts, (n,) labels)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num_rows)
    return [f"filler{rng.integers(9)} {WORDS[c]} filler{rng.integers(9)}" for c in labels], labels


def test_majority_single_by_hand():
    # counts 2, 1, 0 with half a row each: 2.5, 1.5, 0.5 of 4.5
    scores = majority_scores(np.array([0, 1, 0]), num_rows=2, num_classes=3, multi_label=False)
    np.testing.assert_allclose(scores, np.log([[2.5 / 4.5, 1.5 / 4.5, 0.5 / 4.5]] * 2))
    np.testing.assert_allclose(probabilities(scores, False).sum(axis=1), 1.0)


def test_majority_multi_by_hand():
    # 3 of 3 and 0 of 3 rows: log-odds log(3.5 / 0.5) and its negative
    scores = majority_scores(np.array([[1, 0]] * 3), num_rows=1, num_classes=2, multi_label=True)
    np.testing.assert_allclose(scores, [[np.log(7), -np.log(7)]])
    np.testing.assert_allclose(expit(scores), [[3.5 / 4, 0.5 / 4]])


def test_majority_in_the_table():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    got = classification_metrics(majority_scores(labels, 10, 3, False), labels, ["a", "b", "c"], False)
    assert got["accuracy"] == 0.6
    assert got["roc_auc"] == 0.5
    assert got["average_precision"] == pytest.approx((0.6 + 0.3 + 0.1) / 3)


@pytest.mark.parametrize("num_rows", [30, 300])  # without and with a least number of rows a word
def test_tfidf_learns_what_words_tell(num_rows):
    train_texts, train_labels = _texts(num_rows)
    texts, labels = _texts(60, seed=1)
    scores = tfidf_scores(train_texts, train_labels, texts, 3, multi_label=False)
    assert scores.shape == (60, 3)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1.0)
    assert (scores.argmax(axis=1) == labels).all()


def test_shuffled_labels_teach_nothing():
    """Bite: the test above fails when text and label do not belong together."""
    train_texts, train_labels = _texts(300)
    texts, labels = _texts(200, seed=1)
    shuffled = np.random.default_rng(0).permutation(train_labels)
    scores = tfidf_scores(train_texts, shuffled, texts, 3, multi_label=False)
    assert (scores.argmax(axis=1) == labels).mean() < 0.7


def test_tfidf_with_several_labels():
    train_texts, train_labels = _texts(200)
    texts, labels = _texts(60, seed=1)
    train_onehot, onehot = np.eye(5, dtype=int)[train_labels], np.eye(5, dtype=int)[labels]
    train_onehot[:, 4] = 1  # class 3 has no row, class 4 every row
    scores = tfidf_scores(train_texts, train_onehot, texts, 5, multi_label=True)
    np.testing.assert_array_equal(scores[:, :3] > 0, onehot[:, :3] == 1)
    prior = majority_scores(train_onehot, 60, 5, multi_label=True)
    np.testing.assert_array_equal(scores[:, 3:], prior[:, 3:])
    assert (scores[:, 3] < 0).all()
    assert (scores[:, 4] > 0).all()


def test_a_class_without_training_rows_keeps_its_prior():
    train_texts, train_labels = _texts(100)
    scores = tfidf_scores(train_texts, train_labels * 2, ["apple pear", "iron"], 6, multi_label=False)
    assert scores.argmax(axis=1).tolist() == [0, 2]
    np.testing.assert_allclose(scores[:, [1, 3, 5]], np.log(0.5 / 103))  # half a row of 100 + 6 halves
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(
    "train_texts, texts",
    [
        ([], ["a text"]),
        (["", "!?", "a"], ["a text"]),
        (["some", "more", "texts"], []),
        ([f"only{row}" for row in range(200)], ["only7"]),
    ],
)
def test_nothing_to_learn_from_gives_the_prior(multi_label, train_texts, texts):
    labels = np.arange(len(train_texts)) % 2
    labels = np.eye(2, dtype=int)[labels] if multi_label else labels
    scores = tfidf_scores(train_texts, labels, texts, 2, multi_label)
    np.testing.assert_array_equal(scores, majority_scores(labels, len(texts), 2, multi_label))


def test_one_class_alone_gives_the_prior():
    scores = tfidf_scores(["some text", "more text"], np.array([1, 1]), ["text"], 2, multi_label=False)
    np.testing.assert_allclose(scores, np.log([[0.5 / 3, 2.5 / 3]]))


def test_same_rows_same_scores():
    train_texts, train_labels = _texts(100)
    one, two = (tfidf_scores(train_texts, train_labels, train_texts, 3, False, seed=s) for s in (0, 1))
    np.testing.assert_array_equal(one, two)
    order = np.random.default_rng(0).permutation(100)
    mixed = tfidf_scores([train_texts[i] for i in order], train_labels[order], train_texts, 3, False)
    np.testing.assert_allclose(mixed, one, atol=1e-3)  # the solver stops at TOLERANCE


@pytest.mark.parametrize(
    "labels, multi_label", [(np.array([0, 3]), False), (np.array([0, -1]), False), (np.array([[0, 2]]), True)]
)
def test_labels_that_do_not_fit_are_refused(labels, multi_label):
    with pytest.raises(ValueError, match="train_labels must be"):
        majority_scores(labels, 1, 2, multi_label)


def test_texts_without_labels_are_refused():
    with pytest.raises(ValueError, match="2 training texts but 1 rows"):
        tfidf_scores(["a", "b"], np.array([0]), ["c"], 2, multi_label=False)
