"""Starts of a loop as processes that can be killed: forked from this one, or commands of their own.

A forked start has everything imported already, so that a run of a second is not six seconds of imports; it is a process
as any other to the kernel, and calls the script's main as the shell does. Several ranks are so many processes with the
environment that torchrun gives them; the commands of their own are torchrun's.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import torch

import ppo
import rank_train
import train
from bench.tiny import SCRIPTS
from core.dist import close_dist
from core.errors import run_main

ROOT = Path(__file__).resolve().parent.parent
MAINS = {"train": train.main, "rank_train": rank_train.main, "ppo": ppo.main}
HOPELESS_S = 300.0  # a start that takes longer hangs


class Start(NamedTuple):
    """pids: of the ranks, in order | agent: torchrun's, 0 for none | children: those to be waited for."""

    pids: list[int]
    agent: int = 0

    @property
    def children(self) -> list[int]:
        return [self.agent] if self.agent else self.pids


def free_port() -> str:
    """A port that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """Of a process on one CPU core, started by no torchrun."""
    ours = ("TORCHELASTIC", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "GROUP_")
    found = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    found |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    return found | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def forked(loop: str, argv: list[str], said: Path, environment: dict[str, str], before=None) -> int:
    """Fork a process that runs a loop's main; returns its id. before: called in it first."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        to = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(to, 1)
        os.dup2(to, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 of the whole process
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(clean_environment() | environment)
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        sys.argv = [f"{SCRIPTS[loop]}.py", *argv]
        if before:
            before()
        run_main(lambda: MAINS[SCRIPTS[loop]](argv))
        close_dist()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def begin(loop: str, argv: list[str], said: Path, ranks: int = 1, fresh: bool = False, before=None) -> Start:
    """Start a loop. said: takes what it prints | fresh: as a command | before: see forked."""
    if fresh:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        command = [sys.executable, *(launcher if ranks > 1 else []), f"{SCRIPTS[loop]}.py", *argv]
        with open(said, "ab") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=clean_environment())
        process.returncode = 0  # waited for by wait() below
        return Start([], process.pid) if ranks > 1 else Start([process.pid])
    if ranks == 1:
        return Start([forked(loop, argv, said, {}, before)])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    return Start([
        forked(loop, argv, said, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, before)
        for rank in range(ranks)
    ])  # fmt: skip


def ranks_of(start: Start) -> list[int]:
    """The ids of the ranks; torchrun's are asked of the kernel, and there are none before it has started them."""
    if not start.agent:
        return start.pids
    with contextlib.suppress(OSError):
        found = []
        for task in Path(f"/proc/{start.agent}/task").iterdir():
            found += [int(pid) for pid in (task / "children").read_text().split()]
        return sorted(pid for pid in found if b".py\0" in cmdline(pid))
    return []


def cmdline(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def exited(pid: int) -> int | None:
    """The exit status of a child (minus a signal's number), None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(start: Start, codes: dict[int, int], limit_s: float = HOPELESS_S) -> dict[int, int]:
    """The exit status of each child. codes: of those that are known. Raises TimeoutError, with all of them ended."""
    until = time.monotonic() + limit_s
    while True:
        for pid in start.children:
            code = None if pid in codes else exited(pid)
            if code is not None:
                codes[pid] = code
        if len(codes) == len(start.children):
            return codes
        if time.monotonic() > until:
            break
        time.sleep(0.005)
    for pid in (*ranks_of(start), *start.children):
        if pid not in codes:
            os.kill(pid, signal.SIGKILL)
    for pid in start.children:
        if pid not in codes:
            os.waitpid(pid, 0)
    raise TimeoutError(f"no end after {limit_s:.0f} s")


def end_others(start: Start, codes: dict[int, int], patience_s: float = 3.0) -> None:
    """What torchrun does when a rank has died: leave the others a while to notice, then SIGTERM, then SIGKILL.

    torchrun itself is only waited for.
    """
    if start.agent:
        wait(start, codes)
        return
    for number, limit_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 10.0), (None, 10.0)):
        until = time.monotonic() + limit_s
        while time.monotonic() < until and len(codes) < len(start.pids):
            for pid in start.pids:
                code = None if pid in codes else exited(pid)
                if code is not None:
                    codes[pid] = code
            time.sleep(0.005)
        for pid in start.pids:
            if pid not in codes and number:
                os.kill(pid, number)
