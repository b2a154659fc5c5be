"""The faults of bench.chaos, but for kills: the run must end as the undisturbed one, or say why it does not.

A fault is a function of (case, rng) that yields (what was done, what was lost: lines, none when all was well).
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.kill import Case
from bench.kill_compare import differences, records, steady
from bench.kill_sight import status_of
from bench.kill_starts import Start, begin, clean_environment, end_others, exited, free_port, ranks_of, wait
from bench.tiny import SCRIPTS, text_rows, write_rows
from core.checkpoint import damage

Found = Iterator[tuple[str, list[str]]]
SAME = 2e-6  # STYLE.md, section 6


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoint").glob("step_*"))


def killed_after(case: Case, name: str, step: int = 6) -> Path:
    """A run that was killed once it had a checkpoint of this step, and the one before it."""
    run = case.folder / name
    start, codes = case.start(run), {}
    while not any(int(path.name[5:]) >= step for path in checkpoints(run)) and exited(start.pids[0]) is None:
        time.sleep(0.0005)
    os.kill(start.pids[0], signal.SIGKILL)
    end_others(start, codes)
    return run


def ended(case: Case, run: Path, codes: list[int], *words: str, before=None) -> list[str]:
    """Go on with a run; what is wrong with how that ends.

    codes: the exit status, one of them | words: that it says | before: see forked.
    """
    said = case.said(run)
    said.unlink(missing_ok=True)
    start = begin(case.loop, case.argv(run), said, before=before)
    (code,) = wait(start, {}).values()
    text = said.read_text(errors="replace")
    found = [] if code in codes else [f"exit status {code}: {text[-300:]!r}"]
    found += [f"does not say {word!r}: {text[-300:]!r}" for word in words if word not in text]
    return found + ["a traceback"] * ("Traceback" in text)


def same_end(case: Case, run: Path, *words: str) -> list[str]:
    """Go on to the end; what differs from the undisturbed run then."""
    found = ended(case, run, [0], *words) or differences(case.straight, run)
    if not found:
        case.remove(run)
    return found


# -- checkpoints ------------------------------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def of_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def one_bit_flipped(path: Path) -> None:
    found = bytearray(path.read_bytes())
    found[len(found) * 3 // 4] ^= 4
    path.write_bytes(found)


HARMS = (cut_short, emptied, of_zeros, one_bit_flipped, Path.unlink)


def damaged_checkpoints(case: Case, rng: random.Random) -> Found:
    """The newest one in five ways, each in another file; then all of them."""
    killed = killed_after(case, "damage")
    names = sorted(path.name for path in checkpoints(killed)[-1].iterdir())
    for harm in HARMS:
        run = shutil.copytree(killed, case.folder / f"damage-{harm.__name__}")
        name = rng.choice(names)
        harm(checkpoints(run)[-1] / name)
        yield f"{harm.__name__} {name}", same_end(case, run, "is damaged")
    for path in checkpoints(killed):
        emptied(path / "state.json")
    yield "all of them", ended(case, killed, [2], "none of its 2 checkpoints is whole")


LIMITS = (4_000, 29_000, 45_000, 70_000)  # bytes a file: run.json, model, optimiser, a plot do not fit


def full_disk(case: Case, rng: random.Random) -> Found:
    """No file grows beyond a limit: writes fail as on a full disk. From the beginning, and from a checkpoint on."""
    killed = killed_after(case, "full")
    for limit in LIMITS:
        for name, is_begun in (("new", False), ("begun", True)):
            run = case.folder / f"full-{name}-{limit}"
            if is_begun:
                shutil.copytree(killed, run)
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            sizes = resource.RLIMIT_FSIZE, (limit, hard)
            found = ended(
                case, run, [2], "disk is full", before=lambda sizes=sizes: resource.setrlimit(*sizes)
            )
            found += [f"{path.name} is not whole" for path in checkpoints(run) if damage(path)]
            found += ["no checkpoint is left"] * (is_begun and not checkpoints(run))
            yield f"{limit} bytes a file, {name}", found or same_end(case, run)
    case.remove(killed)


# -- not a number -----------------------------------------------------------------------------------------------

DIVERGES = {"learning_rate": "1e30", "max_grad_norm": 0, "warmup": 0, "max_bad_steps": 3, "log_steps": 1}


def not_a_number(case: Case, rng: random.Random) -> Found:
    """Steps so long that there is soon no finite gradient: the run ends by itself, and its checkpoints are finite."""
    bad = Case(case.loop, case.folder, is_run=False, **DIVERGES, save_steps=1)
    run = case.folder / f"nan-{case.loop}"
    found = ended(bad, run, [2], "finite")
    for path in checkpoints(run):
        if damage(path):
            found.append(f"{path.name} is not whole")
        elif not all(value.isfinite().all() for value in load_file(path / "model.safetensors").values()):
            found.append(f"{path.name} is not finite")
    yield f"{case.loop}, a learning rate of 1e30", found


# -- two processes ----------------------------------------------------------------------------------------------


def two_processes(case: Case, rng: random.Random) -> Found:
    """A second process is refused, whether it begins the same run or resumes it, and the first does not notice."""
    for how in ("the same command", "--resume"):
        run = case.folder / f"two {how[:4].strip('-')}"
        argv = case.argv(run)
        first = case.start(run)
        while not (run / ("training_logs.jsonl" if how == "--resume" else "lock")).exists():
            time.sleep(0.001)
        argv = case.argv(run) if how == "--resume" else argv
        said = case.folder / "second.txt"
        (code,) = wait(begin(case.loop, argv, said), {}).values()
        text = said.read_text()
        said.unlink()
        found = [] if code == 2 and "error: " in text else [f"the second ended with {code}: {text[-300:]!r}"]
        found += ["a traceback"] * ("Traceback" in text)
        case.run_to_end(run, first)
        yield how, found + differences(case.straight, run)
        case.remove(run)


# -- several processes ------------------------------------------------------------------------------------------


def torchrun(case: Case, run: Path, *flags: str, **environment: str) -> Start:
    """An agent of torchrun with this case's command."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *flags,
        f"{SCRIPTS[case.loop]}.py",
        *case.argv(run),
    ]
    where = Path(__file__).resolve().parent.parent
    with open(case.said(run), "ab") as file:
        process = subprocess.Popen(
            command, cwd=where, stdout=file, stderr=file, env=clean_environment() | environment
        )
    process.returncode = 0  # waited for by wait()
    return Start([], process.pid)


def ends_by_itself(case: Case, run: Path, agents: list[Start]) -> list[str]:
    """Kill a rank of the last agent once there is a checkpoint; what differs when all have ended."""
    until = time.monotonic() + 120
    while len(checkpoints(run)) < 1 and time.monotonic() < until:
        time.sleep(0.002)
    found = ranks_of(agents[-1])
    if not found:
        return ["there was no rank to kill"]
    os.kill(found[-1], signal.SIGKILL)
    codes = {}
    for agent in agents:
        codes |= wait(agent, {}, 240)
    if set(codes.values()) != {0}:
        return [f"ended with {codes}: {case.said(run).read_text()[-1500:]}"]
    odd = differences(case.straight, run)
    starts = len(json.loads((run / "run.json").read_text()).get("resumed", []))
    odd += [f"was resumed {starts} times, not once"] * (starts != 1)
    return odd


def rank_dies(case: Case, rng: random.Random) -> Found:
    """Under torchrun --max_restarts=1: the run goes on by itself."""
    run = case.folder / "dies"
    agent = torchrun(case, run, "--standalone", "--nproc_per_node=2", "--max_restarts=1")
    yield "two ranks, one agent", ends_by_itself(case, run, [agent])


def two_agents(case: Case, rng: random.Random) -> Found:
    """As two machines, that meet by c10d's rendezvous: to the end, and with a rank of the second killed."""
    for is_killed in (False, True):
        run, port = case.folder / f"agents-{int(is_killed)}", free_port()
        flags = [
            "--nnodes=2",
            "--nproc_per_node=1",
            "--rdzv_backend=c10d",
            f"--rdzv_id={port}",
            "--max_restarts=1",
        ]
        flags += [f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1"]
        agents = [torchrun(case, run, *flags, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1") for _ in range(2)]
        if is_killed:
            yield "one rank killed", ends_by_itself(case, run, agents)
        else:
            codes = [wait(agent, {}, 240) for agent in agents]
            bad = [f"ended with {codes}"] if any(code for found in codes for code in found.values()) else []
            yield "to the end", bad or differences(case.straight, run)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """||a - b|| / ||a|| over all weights together, but for BERT's key biases: their gradient is rounding alone."""
    a = {name: value.double() for name, value in a.items() if not name.endswith("key.bias")}
    apart = sum(float((value - b[name].double()).square().sum()) for name, value in a.items())
    return (apart / sum(float(value.square().sum()) for value in a.values())) ** 0.5


def other_world_sizes(case: Case, rng: random.Random) -> Found:
    """One rank, killed; two, killed; one: the same logical batches, so the same weights but for summation order."""
    made = [Case(case.loop, case.folder, ranks, is_run=False, dropout=0) for ranks in (1, 2)]
    straight, run = case.folder / "world-straight", case.folder / "world"
    made[0].run_to_end(straight, made[0].start(straight))
    for ranks, step in ((1, 6), (2, 12)):
        start, codes = made[ranks - 1].start(run), {}
        while not any(int(path.name[5:]) >= step for path in checkpoints(run)):
            if status_of(run) == "finished" or any(exited(pid) is not None for pid in start.pids[:1]):
                yield "1, 2, 1 ranks", [f"ended too early: {case.said(run).read_text()[-500:]}"]
                return
            time.sleep(0.001)
        os.kill(rng.choice(start.pids), signal.SIGKILL)
        end_others(start, codes)
    made[0].run_to_end(run, made[0].start(run))
    weights = [load_file(path / "final_model" / "model.safetensors") for path in (straight, run)]
    apart, found = distance(*weights), []
    if not apart <= SAME:
        found.append(f"final weights are {apart:.1e} apart, more than {SAME:.0e}")
    logs = [[(r["step"], sorted(r)) for r in steady(records(path))] for path in (straight, run)]
    yield f"1, 2, 1 ranks: {apart:.1e} apart", found + ["another log"] * (logs[0] != logs[1])


# -- bad rows ---------------------------------------------------------------------------------------------------

ROW = json.dumps(text_rows(1, 0)[0])
BAD_ROWS = {
    "cut short": (ROW + "\n" + ROW[:20]).encode(),
    "binary": bytes(range(256)) * 20,
    "text is NaN": (ROW + '\n{"text": NaN, "label": "red"}\n').encode(),
    "label is NaN": (ROW + '\n{"text": "the", "label": NaN}\n').encode(),
    "no field": (ROW + '\n{"words": "the"}\n').encode(),
    "empty": b"",
    "a list": b"[1, 2]\n",
    "half a pair": (ROW + '\n{"text": "\\ud800 red", "label": "red"}\n').encode(),
    "no words": (ROW + '\n{"text": "\\u0600 \\ufeff", "label": "red"}\n').encode(),
}
ODD_ROWS = {"NUL in a text": "the \0 red", "right to left": "\u202ered"}


def bad_rows(case: Case, rng: random.Random) -> Found:
    """One message that names the file, and no run; odd ones that are text all the same are trained on."""
    for name, content in BAD_ROWS.items():
        path = case.folder / "bad.jsonl"
        path.write_bytes(content)
        bad = Case(case.loop, case.folder, is_run=False, train_data=path)
        run = case.folder / "bad"
        found = ended(bad, run, [2], "error: ", str(path))
        yield name, found + ["left a run"] * (run / "run.json").exists()
    for name, text in ODD_ROWS.items():
        path = case.folder / "odd.jsonl"
        write_rows(path, [*text_rows(24, 0), {"text": text, "label": "red"}])
        odd = Case(case.loop, case.folder, is_run=False, train_data=path, max_steps=4)
        run = case.folder / "odd"
        yield name, ended(odd, run, [0])
        case.remove(run)
