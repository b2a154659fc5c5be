"""jobs/selftrain_choice.py: scores by hand, what counts as a fall, which round is kept."""

import numpy as np
import pytest

from jobs.selftrain_choice import Judged, best_round, has_fallen, judge


def at(*scores: float, validation: tuple = ()) -> list[Judged]:
    """Rounds of given macro F1, without a spread."""
    validation = validation or (0.5,) * len(scores)
    return [Judged(score, own, np.full(5, score)) for score, own in zip(scores, validation, strict=True)]


def with_errors(num_rows: int, wrong: list[int], validation: float = 0.5) -> Judged:
    """A round of one model that has these rows of two classes wrong."""
    labels = np.arange(num_rows) % 2
    said = labels.copy()
    said[wrong] = 1 - said[wrong]
    truth, chosen = (own[:, None] == np.arange(2) for own in (labels, said))
    return judge(truth, chosen[None], validation, 500, 0)


def test_macro_f1_is_over_labels_that_an_audit_row_has():
    truth = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
    chosen = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)
    assert judge(truth, chosen[None], 0.0, 100, 0).macro_f1 == pytest.approx((2 / 3 + 1) / 2)


def test_several_models_count_as_their_mean():
    truth = np.eye(2, dtype=bool)
    assert judge(truth, np.stack([truth, ~truth]), 0.0, 100, 0).macro_f1 == 0.5


def test_a_fall_ends_the_rounds():
    assert not has_fallen(at(0.5), 0.0, 1)
    assert not has_fallen(at(0.5, 0.5), 0.0, 1)
    assert has_fallen(at(0.5, 0.49), 0.0, 1)
    assert has_fallen(at(0.5, 0.6, 0.55), 0.0, 1)


def test_a_fall_is_from_the_best_round_not_from_the_last():
    assert has_fallen(at(0.5, 0.6, 0.58, 0.59), 0.0, 2)


def test_a_fall_within_the_margin_is_none():
    assert not has_fallen(at(0.5, 0.49), 0.02, 1)
    assert has_fallen(at(0.5, 0.47), 0.02, 1)


def test_patience_counts_rounds_in_a_row():
    assert not has_fallen(at(0.5, 0.4), 0.0, 2)
    assert not has_fallen(at(0.5, 0.4, 0.6, 0.5), 0.0, 2)
    assert has_fallen(at(0.5, 0.4, 0.45), 0.0, 2)


def test_the_automatic_margin_is_that_of_a_95_percent_interval():
    rng = np.random.default_rng(0)
    one, other = (rng.normal(0.5, 0.1, 1000) for _ in range(2))
    spread = 1.96 * (one - other).std()
    pair = [Judged(0.5, 1.0, one), Judged(0.5 - spread + 1e-9, 1.0, other)]
    assert not has_fallen(pair, "auto", 1)
    assert has_fallen([pair[0], Judged(0.5 - spread - 1e-9, 1.0, other)], "auto", 1)


def test_one_row_is_chance_and_ten_are_none():
    assert not has_fallen([with_errors(60, []), with_errors(60, [3])], "auto", 1)
    assert has_fallen([with_errors(60, []), with_errors(60, list(range(10)))], "auto", 1)


def test_the_best_round_has_the_highest_score():
    assert best_round(at(0.5, 0.7, 0.6, validation=(0.9, 0.1, 0.9)), 0.0) == 1


def test_between_rounds_of_like_score_the_validation_rows_decide():
    assert best_round(at(0.69, 0.7, 0.6, validation=(0.5, 0.4, 0.9)), 0.02) == 0
    assert best_round([with_errors(60, [], 0.4), with_errors(60, [3], 0.6)], "auto") == 1


def test_of_equal_rounds_the_first_is_kept():
    assert best_round(at(0.7, 0.7), 0.0) == 0


def test_a_round_without_weights_is_not_kept():
    rounds = at(0.5, 0.7, 0.69, validation=(0.1, 0.9, 0.5))
    assert best_round(rounds, 0.02, [True, False, True]) == 2
    assert best_round(rounds, 0.02, [True, False, False]) == 0
