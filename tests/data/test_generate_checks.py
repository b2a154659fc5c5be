"""data/generate_checks.py: near-duplicates against a slow search, and verdicts."""

import random

import pytest

from data.generate_answers import Counts
from data.generate_checks import Novelty, first_of_each, verdict
from data.held_out import HeldOut


def jaccard(a: str, b: str) -> float:
    one, other = set(a.lower().split()), set(b.lower().split())
    return len(one & other) / len(one | other)


def test_the_first_of_near_texts_is_kept_as_a_slow_search_does():
    rng = random.Random(0)
    texts = [" ".join(rng.sample("abcdefgh", rng.randint(3, 6))) for _ in range(200)]
    kept, expected = [], []
    for text in texts:
        expected.append(all(jaccard(text, other) < 0.7 for other in kept))
        kept += [text] if expected[-1] else []
    assert first_of_each(texts, 0.7) == expected
    assert 0 < sum(expected) < 200


def test_what_was_taken_counts_in_the_next_round():
    novelty, counts = Novelty(["in training"], HeldOut(["in the test"]), 0.7), Counts()
    assert novelty.take(["a new one", "In Training", "in the test", "A new one!"], counts) == [
        True,
        False,
        False,
        False,
    ]
    assert novelty.take(["a new one", "another of them"], counts) == [False, True]
    assert {name: found["count"] for name, found in counts.summary().items()} == {
        "near-duplicate of a generated row": 2,
        "near-duplicate of a training row": 1,
        "near-duplicate of a row to be scored on": 1,
    }


def test_nothing_is_near_to_nothing():
    assert Novelty([], HeldOut(), 0.7).take([], Counts()) == []


@pytest.mark.parametrize(
    "prediction, labels, told",
    [
        ({"label": "a", "probabilities": {"a": 0.7, "b": 0.3}}, ("a",), ("agrees", 0.7)),
        ({"label": "a", "probabilities": {"a": 0.6, "b": 0.4}}, ("a",), ("unsure", 0.6)),
        ({"label": "b", "probabilities": {"a": 0.3, "b": 0.7}}, ("a",), ("another label", 0.3)),
        (
            {"label": "a", "labels": ["b", "a"], "probabilities": {"a": 0.9, "b": 0.8}},
            ("a", "b"),
            ("agrees", 0.8),
        ),
        (
            {"label": "a", "labels": ["a", "b"], "probabilities": {"a": 0.9, "b": 0.8}},
            ("a",),
            ("another label", 0.9),
        ),
        (
            {"label": "a", "labels": ["a"], "probabilities": {"a": 0.9, "b": 0.2}},
            ("a", "b"),
            ("another label", 0.2),
        ),
    ],
)
def test_verdicts(prediction, labels, told):
    found = verdict(prediction, labels, 0.65)
    assert (found["verdict"], found["probability"]) == told
