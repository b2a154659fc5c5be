"""What a user can get wrong: one clear message, a non-zero exit, no traceback."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """Input that the user can mend. The message says what, where, what was expected, and which flag.

    is_own: this rank alone raises it, so that it is this rank's to say.
    """

    def __init__(self, message: str, is_own: bool = False):
        super().__init__(message)
        self.is_own = is_own


def disk_error(error: OSError, path: str | Path, flag: str) -> UserError:
    """The message for a write that failed: what was being written, why, and which flag moves it."""
    why = "the disk is full" if error.errno in FULL else os.strerror(error.errno or errno.EIO)
    return UserError(f"{path}: cannot be written: {why}. Free some space or give another folder with {flag}.")


@contextmanager
def disk_errors(folder: str | Path, flag: str) -> Iterator[None]:
    """Turn an OSError of the block into the message of disk_error; a reader that has gone is no fault of the disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise disk_error(error, error.filename or folder, flag) from None


def run_main(main: Callable[[], object]) -> None:
    """Call main() as the shell does: UserError becomes one line on stderr and exit status 2."""
    # a log file shows each line when it is printed, and what its encoding does not have as an escape
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except UserError as error:
        if error.is_own or os.environ.get("RANK", "0") == "0":  # else every rank raises it, and one says it
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        sys.exit(130)
