"""core/finite.py: when a run of bad steps ends, and what it says."""

import numpy as np
import pytest

from core.errors import UserError
from core.finite import check_streak

ROWS = np.array([4, 0, 2])


@pytest.mark.parametrize(("streak", "most"), [(0, 3), (2, 3), (50, 0)])
def test_few_bad_steps_are_no_end(streak, most):
    check_streak(streak, most, 9, ROWS, "a.jsonl")


def test_the_rows_are_named_as_people_count():
    with pytest.raises(
        UserError, match=r"3 steps in a row .* up to step 10 with the rows 1, 3, 5 of a.jsonl"
    ):
        check_streak(3, 3, 9, ROWS, "a.jsonl")


def test_a_large_batch_is_not_named_whole():
    with pytest.raises(UserError, match=r"39, 40 and 60 more of"):
        check_streak(3, 3, 9, np.arange(100), "a.jsonl")
