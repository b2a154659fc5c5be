"""core/errors.py: which faults of a file become one line."""

import pytest

from core.errors import UserError, disk_errors


def test_a_full_disk_is_one_line_and_a_reader_that_has_gone_is_none():
    with pytest.raises(UserError, match="--output"), disk_errors("out.jsonl", "--output"):
        raise OSError(28, "No space left on device")
    with pytest.raises(BrokenPipeError), disk_errors("-", "--output"):  # predict.py ... --output - | head
        raise BrokenPipeError(32, "Broken pipe")
