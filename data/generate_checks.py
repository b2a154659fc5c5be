"""What generated rows must not be: near-duplicates, of rows to be scored on too, or of a label that a run doubts."""

import numpy as np

from core.spent import row_hash
from data.check_run import predicted_labels
from data.generate_answers import Counts
from data.held_out import HeldOut, why_held_out
from data.near_duplicates import near_pairs, word_sets
from data.splits import find_near

NO_CHECK = "not checked"


# Near-duplicates


class Novelty:
    """Takes the texts that are near to none of the training rows, of the rows to be scored on, and of those taken."""

    def __init__(self, training: list[str], held_out: HeldOut, near: float):
        self.training, self.held_out, self.near = training, held_out, near
        self.taken: list[str] = []

    def take(self, texts: list[str], counts: Counts) -> list[bool]:
        """For each text whether it is new; one that is will be compared with the next. counts: takes the others."""
        reasons = why_held_out(texts, [row_hash(text) for text in texts], self.held_out, self.near)
        others = {"near-duplicate of a training row": self.training}
        others |= {"near-duplicate of a generated row": self.taken}
        for reason, known in others.items():
            for i, k in enumerate(find_near(texts, known, self.near) if known and texts else []):
                reasons[i] = reasons[i] or reason * (k >= 0)
        first = [i for i, reason in enumerate(reasons) if not reason]
        for i, is_new in zip(first, first_of_each([texts[i] for i in first], self.near), strict=True):
            reasons[i] = "" if is_new else "near-duplicate of a generated row"
        for text, reason in zip(texts, reasons, strict=True):
            if reason:
                counts.add(reason, text)
            else:
                self.taken.append(text)
        return [not reason for reason in reasons]


def first_of_each(texts: list[str], near: float) -> list[bool]:
    """For each text whether no kept one before it is near to it."""
    sets, own = word_sets(texts)
    beside: list[set[int]] = [{k} for k in range(len(sets))]
    for k, j in near_pairs(sets, near, lambda k, others: np.ones(len(others), bool)):
        beside[k].add(j)
        beside[j].add(k)
    closed, kept = set(), []
    for k in own.tolist():
        kept.append(k not in closed)
        if k >= 0 and kept[-1]:
            closed |= beside[k]
    return kept


# Labels


def verdict(prediction: dict, labels: tuple[str, ...], least: float) -> dict:
    """What a prediction says of a row's labels.

    Returns: {"verdict", "probability", "predicted"}: "agrees", "another label" when the most probable label is none of
             the row's (with several a row: when others hold), "unsure" when the least probable of them is below
             least; that probability; the label or labels predicted.
    """
    probability = min(prediction["probabilities"][name] for name in labels)
    predicted = prediction.get("labels", prediction["label"])
    is_same = predicted_labels(prediction) == set(labels)
    told = "another label" if not is_same else "unsure" if probability < least else "agrees"
    return {"verdict": told, "probability": probability, "predicted": predicted}
