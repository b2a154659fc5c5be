"""A logical batch in cuts that fit; where memory ends, all of it again in smaller ones, on all ranks alike."""

import math
from collections.abc import Callable

import numpy as np
import torch

from core.batches import Feed
from core.budget import Budget, single_row_error
from core.dist import on_main, worst_of_ranks
from core.interrupt import agree
from core.logs import Meter
from core.memory import peak_memory, release_cached
from core.plan import Plan
from core.runs import RunRecord


class Replay:
    """Call it with the rows of a batch and with what is to be done to each cut of them."""

    def __init__(
        self,
        plan: Plan,
        feed: Feed,
        budget: Budget,
        meter: Meter,
        ranks: tuple[int, int],
        amp_dtype: torch.dtype | None,
        record: RunRecord | None,
        say: Callable[[str], None],
        flag: str = "--train_data",
    ):
        """ranks: this one and their number | amp_dtype: of autocast, None for none | record: takes the changes of the
        budget before an update is made of smaller cuts; None: a dry run's | flag: names the rows' file in an error."""
        self.flag = flag
        self.plan, self.feed, self.budget, self.meter, self.ranks = plan, feed, budget, meter, ranks
        self.amp_dtype, self.record, self.say = amp_dtype, record, say
        self.asked = 0  # the signal by which any rank was asked to end, as of the last batch

    def __call__(self, rows: np.ndarray, step: float, params: list, work: Callable, *more) -> list:
        """work(cut, its rows' numbers, *more) of each of this rank's cuts, in order.

        Args:   rows: numbers of a logical batch, over all ranks | step: optimiser steps done: whose budget counts; a
                rollout before step n stands at n - 0.5, so that a change within the step does not reach back to it |
                params: their gradients are dropped before all is done again.
        Raises: UserError when memory ends on a single row.
        Cost:   H2D a cut, one ahead; COMM over gloo, so no device waits.
        """
        device, budget = self.feed.device, self.budget
        while True:  # once, unless memory ends
            cuts, found, fault = self.plan.cuts(rows, budget.at(step), *self.ranks), [], 0
            try:
                with torch.autocast(device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                    for index, cut in zip(cuts, self.feed(cuts), strict=True):  # each weight is cast once
                        found.append(work(cut, index, *more))
            except torch.OutOfMemoryError:
                failed = cuts[len(found)]
                fault = 1 if len(failed) > 1 else 2 + int(failed[0])  # to be split; or the row that cannot be
            fault, self.asked = agree(fault)
            if not fault:
                break
            if fault > 1:
                peak_mib = peak_memory(device)["mem/peak_mib"]
                raise single_row_error(fault - 2, self.plan.lengths[fault - 2], peak_mib, self.flag)
            for param in params:
                param.grad = None
            release_cached(device)
            dearest = worst_of_ranks(max((self.plan.cost([cut]) for cut in cuts), default=0))
            changes = budget.lower(step, dearest)
            if self.record is not None:
                on_main(lambda: self.record.write(budget_changes=changes))  # on disk before the update  # noqa: B023
            self.say(
                f"step {math.ceil(step)}: out of memory, done again with cuts of at most {budget.at(step)} tokens"
            )
        size, predicted = budget.at(step), budget.predicted_mib(self.plan, cuts)
        self.meter.add(self.plan.cost(cuts), size * len(cuts), predicted)
        return found
