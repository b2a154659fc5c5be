"""Being asked to end: SIGTERM and SIGINT let a loop finish its step and save, on all ranks alike.

The wish travels in the flag that the ranks agree on in each step anyway, so that no rank stops alone. A second
signal ends the process at once, as does any before the loop's first step and behind its last.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

ASKING = (signal.SIGTERM, signal.SIGINT)
HEARD = {"is_in_loop": False, "signal": 0}  # of this process; a handler can reach nothing else


class Stopped(SystemExit):
    """A run has saved itself since it was asked to end; the exit status is 128 and the signal's number: 143, 130."""

    def __init__(self, number: int):
        super().__init__(128 + number)


@contextmanager
def stop_requests() -> Iterator[None]:
    """In the block the signals are taken by this file; one that the process ignores stays ignored."""
    HEARD.update(is_in_loop=False, signal=0)
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
        before = {s: signal.getsignal(s) for s in ASKING if signal.getsignal(s) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        HEARD.update(is_in_loop=False, signal=0)
        for number, handler in before.items():
            signal.signal(number, handler)


def hear(number: int, _frame: object) -> None:
    """The handler."""
    if HEARD["is_in_loop"] and not HEARD["signal"]:
        HEARD["signal"] = number
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)


def agree(fault: int = 0) -> tuple[int, int]:
    """What the ranks agree on at the end of a step's passes.

    Args:    fault: this rank's, 0 for none; see worst_of_ranks.
    Returns: the largest fault of all ranks, and the signal by which any of them was asked to end, 0 for none.
    Cost:    COMM over gloo, so no device waits.
    """
    HEARD["is_in_loop"] = True
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return fault, HEARD["signal"]
    box = torch.tensor([fault, HEARD["signal"]])
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box[0]), int(box[1])


def end_of_loop() -> None:
    """From here on a signal ends the process at once: the last checkpoint holds all that training did."""
    HEARD["is_in_loop"] = False


def stopped_text(number: int, step: int, folder: object) -> str:
    """What is said before Stopped is raised."""
    return f"{signal.Signals(number).name}: stopped after step {step}, saved; --resume {folder} goes on"
