"""Of a training row the prompt that asks a language model for more of its label, or for the same in other words.

The training texts that stand in a prompt are shown as answers that the model gave before: that teaches small models the
form better than a description of it, and costs large ones nothing. Which rows those are depends on the seed, the label
and the number of the request alone, so that a command that goes on asks just what it would have asked.
"""

import hashlib
import json
import random
from dataclasses import dataclass, field

MOST_LABELS = 30  # named in a prompt
END = "###"  # stands alone on a line between the texts of a prompt for a model without a chat template
ANSWER_ALONE = "Answer with"  # of every instruction: an answer that holds it repeats the prompt


@dataclass(frozen=True)
class Prompt:
    """One request."""

    label: str  # whose rows it counts for
    index: int  # of the label's requests, from 0
    labels: tuple[str, ...]  # of the rows that are made of the answer
    messages: list[dict] = field(hash=False)  # {"role", "content"}; the last is the user's
    id: str  # of what is sent: messages, model and sampling
    seed: int  # of the request: --seed, id and index
    source: str | None = None  # the text to say in other words

    @property
    def key(self) -> tuple[str, int, int]:
        """Under which the journal keeps its answer."""
        return self.id, self.index, self.seed


@dataclass(frozen=True)
class Task:
    """What all prompts of a command have in common."""

    texts: list[str]  # training texts that may be shown
    labels: list[tuple[str, ...]]  # of each
    mode: str  # label or paraphrase
    shots: int  # training texts a prompt
    many: int  # texts asked for a prompt
    is_chat: bool  # False: the model goes on with a plain text
    seed: int
    descriptions: dict[str, str] = field(default_factory=dict)  # of labels
    sampling: dict = field(default_factory=dict)  # model and how it is drawn from: part of a prompt's id

    def rows_of(self, label: str) -> list[int]:
        """The rows with a label, in the order in which prompts take them."""
        rows = [i for i, own in enumerate(self.labels) if label in own]
        random.Random(f"{self.seed}\x1f{label}").shuffle(rows)
        return rows

    def prompt(self, label: str, index: int, rows: list[int]) -> Prompt:
        """The index-th request for a label. rows: rows_of(label), each the base of one prompt in turn."""
        base = rows[index % len(rows)]
        labels, source = self.labels[base], self.texts[base] if self.mode == "paraphrase" else None
        shots = []
        if source is None and self.shots:
            alike = [i for i in rows if self.labels[i] == labels and i != base]
            rng = random.Random(f"{self.seed}\x1f{label}\x1f{index}")
            shots = [self.texts[i] for i in (base, *rng.sample(alike, min(self.shots - 1, len(alike))))]
            rng.shuffle(shots)
        write = self._chat if self.is_chat else self._plain
        messages = write(labels, shots, source)
        sent = json.dumps([self.mode, self.sampling, messages], sort_keys=True, ensure_ascii=False)
        name = f"{self.mode}-{_hash(sent):016x}"
        seed = _hash(f"{self.seed} {name} {index}") % 2**31
        return Prompt(label, index, labels, messages, name, seed, source)

    def _chat(self, labels: tuple[str, ...], shots: list[str], source: str | None) -> list[dict]:
        alone = f"{ANSWER_ALONE} the text alone." if self.many == 1 else ""
        as_list = f"{ANSWER_ALONE} a JSON list of {self.many} strings alone." if self.many > 1 else ""
        kind, about = _kind(labels), self._about(labels)
        if source is not None:
            how = "in other words" if self.many == 1 else f"in {self.many} ways, each in other words"
            asked = f"Say the text below {how}: the same meaning, style and length, so that it stays a text {kind}."
            return [_said("user", f"{asked} {about}{alone}{as_list}\n\n{source}")]
        names = list(dict.fromkeys(name for own in self.labels for name in own))
        told = ", ".join(sorted(names)[:MOST_LABELS]) + (", ..." if len(names) > MOST_LABELS else "")
        what = "a new text" if self.many == 1 else f"{self.many} new texts"
        asked = f"Each text here has one or more of these labels: {told}.\n{about}Write {what} {kind}, "
        asked += "in the style and length of such texts, about something else than those before."
        first = _said("user", f"{asked} {alone}{as_list}")
        if not shots:
            return [first]
        answers = shots if self.many == 1 else [json.dumps(shots, ensure_ascii=False)]
        again = f"Another text {kind}." if self.many == 1 else f"{self.many} others {kind}. {as_list}"
        messages = [first]
        for answer in answers:
            messages += [_said("assistant", answer), _said("user", again)]
        return messages

    def _plain(self, labels: tuple[str, ...], shots: list[str], source: str | None) -> list[dict]:
        about = self._about(labels)
        if source is not None:
            told = (
                f"{about}A text {_kind(labels)}, and the same in other words, of the same style and length:"
            )
            shots = [source]
        else:
            told = f"{about}Texts {_kind(labels)}, each about something else:"
        between = f"\n{END}\n"
        return [_said("user", told + between + between.join([*shots, ""]))]

    def _about(self, labels: tuple[str, ...]) -> str:
        """The descriptions of labels, a line each."""
        return "".join(
            f'"{name}": {self.descriptions[name]}\n' for name in labels if name in self.descriptions
        )


def _kind(labels: tuple[str, ...]) -> str:
    return f"with the label{'s' * (len(labels) > 1)} " + " and ".join(f'"{name}"' for name in labels)


def _said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _hash(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
