"""The token budget of a cut: from a memory model fitted to a few probes, and lowered when memory ends all the same.

Bytes at the peak = a + b x tokens + c x squares: a is what stands still (weights, gradients, optimiser state), b what
every token costs, c what attention costs. squares: the sum of squared lengths of the rows; padded, of the padded ones.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from core.dist import worst_of_ranks
from core.errors import UserError
from core.files import write_json
from core.memory import memory_limit, reset_peak
from core.plan import Plan
from core.runs import RunRecord

PROBE_S = 10.0  # seconds that the probes may take before the last of them is begun
SHARE = 0.9  # of the free memory that a cut may take
TIE = 0.95  # on CPU a smaller budget must be faster by this factor to be taken: timing is noisy, fewer cuts are not
CPU_SIZES, CUDA_SIZE = (1024, 2048, 4096), 4096  # tokens of the probes


class Probe(NamedTuple):
    """What one cut cost."""

    tokens: int
    squares: int
    peak: float  # bytes, all of the process's; inf where memory ended
    seconds: float


class MemoryModel(NamedTuple):
    """Bytes at the peak as a function of a cut."""

    a: float
    b: float
    c: float

    def peak(self, tokens: int, squares: int) -> float:
        """Bytes."""
        return self.a + self.b * tokens + self.c * squares

    def most_tokens(self, limit: float, longest: int) -> int:
        """The largest budget whose worst cut, all rows as long as the longest, stays below limit bytes."""
        return int(max(0.0, limit - self.a) / max(1.0, self.b + self.c * longest))


def fit_memory(probes: list[Probe]) -> MemoryModel:
    """The model of least squared error whose coefficients are not negative; a cost that the probes do not tell apart
    (rows of one length) is left at 0."""
    good = [probe for probe in probes if np.isfinite(probe.peak)]
    if not good:
        return MemoryModel(0.0, 0.0, 0.0)
    columns = np.array([[1.0, probe.tokens, probe.squares] for probe in good])
    peaks = np.array([probe.peak for probe in good])
    best, error = MemoryModel(float(peaks.max()), 0.0, 0.0), np.inf
    for used in ([0, 1, 2], [0, 1], [0, 2]):
        part = columns[:, used] / columns[:, used].max(axis=0)
        if np.linalg.matrix_rank(part, tol=1e-3) < len(used):
            continue
        found = np.linalg.lstsq(part, peaks, rcond=None)[0]
        missed = float(((part @ found - peaks) ** 2).sum())
        if (found >= 0).all() and missed < error:
            whole = np.zeros(3)
            whole[used] = found / columns[:, used].max(axis=0)
            best, error = MemoryModel(*map(float, whole)), missed
    return best


def squares(plan: Plan, cuts: list[np.ndarray]) -> int:
    """Sum of squared lengths of the cuts' rows, as attention pays for them."""
    lengths = [plan.lengths[cut].astype(np.int64) for cut in cuts]
    if plan.packed:
        return int(sum((length**2).sum() for length in lengths))
    return int(sum(len(length) * length[0] ** 2 for length in lengths))


def probe_cuts(plan: Plan, device_type: str, world: int) -> list[np.ndarray]:
    """Rows for the probes, smallest cut first: rows as they come, and long ones (on CUDA short ones too), so that what
    tokens and what squares cost can be told apart. None is larger than a rank's share of a logical batch."""
    lengths = plan.lengths.astype(np.int64)
    most = largest_share(plan, world)
    by_length, mixed = np.argsort(-lengths, kind="stable"), plan.rows(0)
    sizes = CPU_SIZES if device_type != "cuda" else (CUDA_SIZE, 2 * CUDA_SIZE)
    sizes = sorted({min(size, most) for size in sizes})
    cuts = [_first(by_length, plan, sizes[0])]
    if device_type == "cuda":
        cuts.insert(0, _first(by_length[::-1], plan, sizes[0]))
    cuts += [_first(mixed, plan, size) for size in sizes]
    return cuts * 2 if device_type == "cpu" else cuts  # the second time the memory is there already


def in_time(probes: Iterable[Probe]) -> list[Probe]:
    """The probes, made one after another until they have taken PROBE_S seconds: all of them can take a large model on
    a CPU minutes."""
    made: list[Probe] = []
    for probe in probes:
        made.append(probe)
        if sum(p.seconds for p in made) > PROBE_S:
            break
    return made


def _first(rows: np.ndarray, plan: Plan, tokens: int) -> np.ndarray:
    """The first rows that cost this many tokens, longest first."""
    lengths = plan.lengths[rows].astype(np.int64)
    costs = np.cumsum(lengths)
    if not plan.packed:
        costs = np.maximum.accumulate(lengths) * np.arange(1, len(lengths) + 1)
    count = int(np.searchsorted(costs, tokens)) + 1
    if 1 < count <= len(costs) and costs[count - 1] >= tokens + lengths.max():
        count -= 1  # a long row would pad all before it
    rows = rows[:count]
    return rows[np.argsort(-plan.lengths[rows].astype(np.int64), kind="stable")]


def largest_share(plan: Plan, world: int) -> int:
    """Tokens a rank of the largest logical batch of the first epoch (1,000 steps at most): more does nothing."""
    num_rows = min(len(plan.lengths), plan.batch_size * plan.steps_per_epoch)
    order = np.concatenate([plan.rows(step) for step in range(min(plan.steps_per_epoch, 1000))])[:num_rows]
    sums = np.add.reduceat(plan.lengths[order].astype(np.int64), np.arange(0, len(order), plan.batch_size))
    return max(int(plan.lengths.max()), -(-int(sums.max()) // world))


def coarse(tokens: int) -> int:
    """tokens, rounded down to 4, 5, 6 or 7 times a power of two, so that two starts agree on a probed budget."""
    if tokens < 8:
        return max(1, tokens)
    step = 1 << (tokens.bit_length() - 3)
    return tokens // step * step


def choose_budget(
    probes: list[Probe], model: MemoryModel, limit: float, longest: int, most: int, device_type: str
) -> int:
    """Tokens a cut: on CUDA the most that fits, on CPU the largest of the probed sizes that fits and is not slower.

    Args: limit: bytes that the process may reach | longest: tokens of the longest row | most: tokens a larger budget
          than which would do nothing.
    """
    fits = model.most_tokens(limit, longest)
    for probe in probes:
        if not np.isfinite(probe.peak):
            fits = min(fits, probe.tokens // 2)
    if device_type == "cuda":
        return max(longest, coarse(min(fits, most + longest)))
    rate: dict[int, float] = {}  # tokens a second at each size; of two timings the better
    for probe in probes:
        size = cpu_size(probe.tokens)
        if probe.tokens <= max(fits, longest):
            rate[size] = max(rate.get(size, 0.0), probe.tokens / probe.seconds)
    if not rate:
        return max(longest, coarse(fits))
    best = max(size for size, found in rate.items() if found >= TIE * max(rate.values()))
    return max(longest, min(best, coarse(fits)))


def cpu_size(tokens: int) -> int:
    """The budget that a probe of about so many tokens stands for: a cut ends with a whole row, or with the batch."""
    return next((size for size in CPU_SIZES if tokens <= 1.25 * size), CPU_SIZES[-1])


class Budget:
    """Tokens a cut, and what became of it. A change belongs to a step, so that a resumed run makes it there again."""

    def __init__(self, tokens: int, memory: MemoryModel | None = None, changes: list[dict] | None = None):
        """memory: None where nothing was probed | changes: {"step", "old", "new"}, as run.json keeps them."""
        self.tokens, self.memory, self.changes = tokens, memory, list(changes or [])

    def at(self, step: float) -> int:
        """The budget of a step."""
        return min([self.tokens, *(change["new"] for change in self.changes if change["step"] <= step)])

    def lower(self, step: float, cost: int) -> list[dict]:
        """Half of what the dearest cut cost from this step on; returns all changes, to be written before the update."""
        old = self.at(step)
        self.changes.append({"step": step, "old": old, "new": coarse(max(1, min(old, cost) // 2))})
        return self.changes

    def predicted_mib(self, plan: Plan, cuts: list[np.ndarray]) -> float:
        """The memory model's peak for the dearest of these cuts; 0 where nothing was probed."""
        if self.memory is None:
            return 0.0
        return max((self.memory.peak(plan.cost([c]), squares(plan, [c])) for c in cuts), default=0.0) / 2**20


def settle_budgets(
    max_tokens: int | str,
    stored: dict | None,
    probe: Callable[[np.ndarray, bool], Probe],
    plan: Plan,
    longest: int,
    num_trained: int,
    device: torch.device,
    world: int,
) -> tuple[Budget, Budget]:
    """The budgets of training and evaluation: a resumed run's own, those that were given, or found by probes.

    Args:  max_tokens: tokens a cut, or auto | stored: a resumed run's record | probe: called with rows, and whether the
           backward pass belongs to it | longest: tokens of the longest row of any split | num_trained: parameters
           whose moments this rank keeps.
    Cost:  with auto GPU and SYNC a probe, COMM.
    """
    if stored is not None:
        return stored_budgets(stored)
    if max_tokens != "auto":
        return Budget(max_tokens), Budget(max_tokens)
    state_bytes, limit = 8 * num_trained, memory_limit(device, SHARE, world)  # AdamW's moments come later
    cuts = probe_cuts(plan, device.type, world)
    trained = in_time(probe(index, True) for index in cuts)
    scored = trained  # on CPU evaluation takes the same cuts
    if device.type == "cuda":
        scored = in_time(probe(index, False) for index in cuts)
    found = probed_budgets(trained, scored, limit, state_bytes, plan, longest, device.type, world)
    reset_peak(device)
    return found


def probed_budgets(
    trained: list[Probe],
    scored: list[Probe],
    limit: float,
    state_bytes: int,
    plan: Plan,
    longest: int,
    device_type: str,
    world: int,
) -> tuple[Budget, Budget]:
    """The budgets of training and evaluation, the same on every rank.

    Args:  trained, scored: probes with and without a backward pass | limit: bytes that the process may reach |
           state_bytes: of optimiser state that does not exist yet | longest: tokens of the longest row of any split.
    Cost:  COMM, the smallest of the ranks' budgets holds for all.
    """
    most, found = largest_share(plan, world), []
    for probes in (trained, scored):
        memory = fit_memory(probes)
        tokens = choose_budget(probes, memory, limit - state_bytes, longest, most, device_type)
        found.append(Budget(-worst_of_ranks(-tokens), memory._replace(a=memory.a + state_bytes)))
    return tuple(found)


def stored_budgets(record: dict) -> tuple[Budget, Budget]:
    """The budgets in a run's record: never probed again. Raises UserError when the record has none."""
    try:
        memory, tokens = record["memory_model"], record["max_tokens"]
        memory = memory and MemoryModel(*memory)
        return Budget(tokens["train"], memory, record["budget_changes"]), Budget(tokens["eval"], memory)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"--resume: run.json holds no budgets ({error!r}): it is of another version"
        ) from None


def single_row_error(row: int, tokens: int, peak_mib: float, flag: str = "--train_data") -> UserError:
    """Memory ended on a cut of one row: nothing is left to split."""
    return UserError(
        f"out of memory on a single row: row {row} of {flag}, {tokens} tokens, after a peak of "
        f"{peak_mib:.0f} MiB: lower --max_length, add --gradient_checkpointing, or use --amp bf16"
    )


def overlap_error() -> UserError:
    """Memory ended while gradients were on their way: the step cannot be done again."""
    return UserError(
        "out of memory, and with --overlap a step cannot be done again: give a lower --max_tokens, or drop --overlap",
        is_own=True,
    )


def shard_error(at: str = "") -> UserError:
    """Memory ended with --shard, while the other ranks are inside a pass: nothing can be done again.

    Args: at: what a resumed run will do about it.
    """
    return UserError(
        "out of memory, and with --shard a step cannot be done again, since all ranks run it together: "
        + (at or "give a lower --max_tokens"),
        is_own=True,
    )


def lower_for_resume(folder: Path, budget: Budget, step: int, rank: int) -> str:
    """Halve the budget from a step on in the run.json of a run that cannot go on; returns that in words.

    Any rank can be the one, or several at once, so each writes a file of its own and renames it.
    """
    if not (folder / "run.json").exists():  # a dry run
        return ""
    part = folder / f"run.json.{rank}"
    write_json(part, RunRecord.read(folder).record | {"budget_changes": budget.lower(step, budget.at(step))})
    os.replace(part, folder / "run.json")
    return f"--resume {folder} goes on from its last checkpoint with cuts of at most {budget.at(step)} tokens"
