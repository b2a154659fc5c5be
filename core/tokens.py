"""Texts to token ids: the tokenizer's own special tokens, and truncation from the head, the tail or the middle."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from core.errors import UserError


@dataclass(frozen=True)
class Template:
    """The special tokens around a text or a pair, and where token type 1 begins."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]  # between the parts of a pair
    suffix: tuple[int, ...]
    typed: bool  # the second part of a pair has token type 1

    @property
    def num_special(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)


def special_template(tokenizer: PreTrainedTokenizerBase, pair: bool) -> Template:
    """The tokenizer's own template, read off one encoded probe.

    Raises: UserError when the probe's parts cannot be found again in its encoding.
    """
    words = ["a"] + (["a"] if pair else [])
    inner = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    coded = tokenizer(*words, truncation=False, padding=False, verbose=False)
    ids, types = coded["input_ids"], coded.get("token_type_ids")
    spans = [k for k in range(len(ids) - len(inner) + 1) if ids[k : k + len(inner)] == inner]
    if not inner or len(spans) < len(words):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} changes a text when it adds special tokens"
        )
    first, last = spans[0], spans[-1] if pair else spans[0]
    middle = ids[first + len(inner) : last] if pair else []
    typed = bool(pair and types is not None and types[last] == 1)
    return Template(tuple(ids[:first]), tuple(middle), tuple(ids[last + len(inner) :]), typed)


def cut_ids(ids: Sequence[int], size: int, truncate: str) -> Sequence[int]:
    """At most size of the ids: the first (head), the last (tail), or half from each end (head_tail)."""
    if len(ids) <= size:
        return ids
    if truncate == "head":
        return ids[:size]
    if truncate == "tail":
        return ids[len(ids) - size :]
    front = (size + 1) // 2
    return [*ids[:front], *ids[len(ids) - (size - front) :]]


def fit_pair(len_a: int, len_b: int, room: int) -> tuple[int, int]:
    """How many ids each part of a pair keeps: the longer part gives way first (longest-first truncation).

    Source: tokenizers, truncate_encodings (utils/truncation.rs): where both are cut, an odd id goes to the part
            that was longer, to the second of equals.
    """
    if len_a + len_b <= room:
        return len_a, len_b
    half = room // 2
    if len_a <= half:
        return len_a, room - len_a
    if len_b <= half:
        return room - len_b, len_b
    return (half, room - half) if len_a <= len_b else (room - half, half)


class Encoder:
    """Texts in, token ids with special tokens out; truncates and says where the second part begins."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, truncate: str, pair: bool):
        self.tokenizer, self.max_length, self.truncate = tokenizer, max_length, truncate
        self.template = special_template(tokenizer, pair)
        self.pair = pair
        self.room = max_length - self.template.num_special
        if self.room < 1:
            raise UserError(
                f"--max_length {max_length} leaves no room for text: this tokenizer adds "
                f"{self.template.num_special} special tokens"
            )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        coded = self.tokenizer(
            texts,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return coded["input_ids"]

    def __call__(self, texts: list[str], pairs: list[str] | None = None) -> list[tuple[list[int], int, bool]]:
        """For each row: its ids, the index at which token type 1 begins (0: nowhere), whether it was cut.

        The ids are empty where the text has no token.
        """
        template, out = self.template, []
        if not self.pair:
            for ids in self._ids(texts):
                kept = cut_ids(ids, self.room, self.truncate)
                row = [*template.prefix, *kept, *template.suffix] if ids else []
                out.append((row, 0, len(kept) < len(ids)))
            return out
        for a, b in zip(self._ids(texts), self._ids(pairs), strict=True):
            size_a, size_b = fit_pair(len(a), len(b), self.room)
            front = [*template.prefix, *cut_ids(a, size_a, self.truncate), *template.middle]
            row = [*front, *cut_ids(b, size_b, self.truncate), *template.suffix] if a and b else []
            out.append((row, len(front) if template.typed else 0, size_a + size_b < len(a) + len(b)))
        return out
