"""Steps whose loss or gradient is not a number: skipped without a host wait, counted, in the end the run's end."""

import numpy as np

from core.errors import UserError

MOST_ROWS = 40  # that a message names


def check_streak(streak: int, most: int, step: int, rows: np.ndarray, path: str) -> None:
    """Raise UserError when too many steps in a row were skipped; the weights are those of the last good one.

    Args: streak: steps in a row without a finite gradient, this one the last | most: --max_bad_steps, 0 for no limit |
          step: counted from 0 | rows: of its logical batch, counted from 0 | path: of the rows' file.
    """
    if not most or streak < most:
        return
    named = [str(row + 1) for row in sorted(set(map(int, rows)))]
    told = ", ".join(named[:MOST_ROWS]) + (f" and {len(named) - MOST_ROWS} more" * (len(named) > MOST_ROWS))
    raise UserError(
        f"{streak} steps in a row had a loss or gradient that is not finite, up to step {step + 1} with the rows "
        f"{told} of {path}: look at them, lower --learning_rate, or allow more with --max_bad_steps (0: no limit). "
        "The weights are those before these steps, and the last checkpoint is whole"
    )
