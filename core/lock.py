"""One process a run folder: a lock that its process takes to the grave, so that a dead one never holds it."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from core.errors import UserError

HELD: dict[Path, IO] = {}


def lock_run(folder: Path) -> None:
    """Take the lock of a run folder, made if need be; a second call in the same run is none.

    The lock is flock's, on FOLDER/lock: the kernel drops it when the process ends, however it ends.
    Raises: UserError when another process has it; the message says which.
    """
    folder = Path(folder)
    if folder in HELD:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115 open for as long as it is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"{folder}: {holder} is training this run; wait for its end, or give another --output_dir"
        ) from None
    except OSError:  # a file system without locks: better to train than to refuse
        pass
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    HELD[folder] = file


def unlock_runs() -> None:
    """Give back what this process holds: at the end of each run, also of one that failed."""
    while HELD:
        HELD.popitem()[1].close()
