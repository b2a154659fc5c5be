"""Ranking rows: a question, its context, K candidates and their rewards, tokenised once into a memory-mapped cache.

A row is held in two parts: the prefix (question and context, as the prompt arranges them) and the candidates behind it.
A decoder reads the prefix once for all of them, an encoder once with each.
"""

import contextlib
import json
from array import array
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from core.cache import cache_folder, write_cache
from core.dist import on_main
from core.errors import UserError
from core.files import save_array
from core.rows import BadRows, RowError, half_pair, read_rows, show
from core.tokens import Template, cut_ids, special_template

WINDOW = 256  # rows a tokenizer call: a row is a page and its candidates
LARGEST = float(np.finfo(np.float32).max)  # of a reward
CONTEXT, QUESTION = "{context}", "{question}"
DEFAULT = {"causal": "{context}\n\nQuestion: {question}\nAnswer:", "bert": "{question} {context}"}


@dataclass(frozen=True)
class RankRow:
    """One checked row."""

    question: str
    context: str
    candidates: list[str]
    rewards: list[float] | None  # None where the row has none
    group: str = ""


def parse_rank_row(row: dict, needs_rewards: bool = True, group_field: str = "") -> RankRow:
    """A row as read, checked. Raises RowError: field, found, expected."""
    if not isinstance(row, dict):  # given in Python: a file's rows were seen to
        raise RowError(f"the row is {show(row)}; expected an object")
    if "question" not in row:
        raise RowError(f"no field 'question' (found: {', '.join(map(str, row)) or 'none'})")
    question, context = row["question"], row.get("context") or ""
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or (name == "question" and not value.strip()):
            raise RowError(f"field {name!r} is {show(value)}; expected text")
        if half_pair(value):
            raise RowError(f"field {name!r}: {half_pair(value)}")
    candidates, rewards = _list(row, "candidates"), row.get("rewards")
    if candidates is None:
        raise RowError("no field 'candidates'; expected a list of texts")
    if not candidates:
        raise RowError("field 'candidates' is empty; expected two texts or more")
    for k, text in enumerate(candidates, 1):
        if not isinstance(text, str) or not text.strip():
            raise RowError(f"field 'candidates': number {k} is {show(text)}; expected text")
        if half_pair(text):
            raise RowError(f"field 'candidates': number {k}: {half_pair(text)}")
    if needs_rewards or rewards is not None:
        rewards = _list(row, "rewards")
        if rewards is None:
            raise RowError("no field 'rewards'; expected a number for each candidate")
        if len(rewards) != len(candidates):
            raise RowError(f"{len(rewards)} rewards for {len(candidates)} candidates; expected one for each")
        for value in rewards:
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
                raise RowError(f"field 'rewards' holds {show(value)}; expected finite numbers")
    if group_field and group_field not in row:
        raise RowError(f"no field {group_field!r} (--group_field)")
    return RankRow(question, context, candidates, rewards, str(row[group_field]) if group_field else "")


def _list(row: dict, name: str) -> list | None:
    """A list, or a CSV cell that holds one as JSON; None where there is no such field."""
    value = row.get(name)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if value is not None and not isinstance(value, list):
        raise RowError(f"field {name!r} is {show(value)}; expected a list")
    return value


class RankEncoder:
    """Rows in; the prefix's and the candidates' token ids out. Parts are tokenised each for itself and joined as ids,
    so that a prefix is the same tokens whatever stands behind it.

    Too long a row loses the middle of its context, never its question or a candidate.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, prompt: str, architecture: str):
        """prompt: holds {question} once and {context} once or never; "" is the architecture's default."""
        self.tokenizer, self.max_length, self.architecture = tokenizer, max_length, architecture
        self.prompt = (prompt or DEFAULT[architecture]).replace("\\n", "\n")
        counts = self.prompt.count(QUESTION), self.prompt.count(CONTEXT)
        if counts[0] != 1 or counts[1] > 1:
            raise UserError(
                f"--prompt {show(self.prompt)}: expected {{question}} once and {{context}} at most once, found "
                f"{counts[0]} and {counts[1]}"
            )
        self.pair = architecture == "bert"
        found = special_template(tokenizer, self.pair)
        # a decoder's end token would end the text before the answer; an encoder has a pair: the prefix, the candidate
        self.template = found if self.pair else Template(found.prefix, (), (), False)
        self.typed = found.typed
        self.lead = "" if self.pair or self.prompt[-1].isspace() else " "

    def options(self) -> list:
        """What the cache's key must hold."""
        return ["rank", self.max_length, self.prompt, self.architecture, asdict(self.template)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(
            texts, add_special_tokens=False, truncation=False, padding=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )["input_ids"]  # fmt: skip

    def parts(self, row: RankRow) -> tuple[str, str, str]:
        """The prompt's text before the context, the context, the text behind it."""
        if CONTEXT not in self.prompt or not row.context.strip():
            whole = self.prompt.replace(CONTEXT, "").lstrip()
            return whole.replace(QUESTION, row.question), "", ""
        before, _, after = self.prompt.partition(CONTEXT)
        return before.replace(QUESTION, row.question), row.context, after.replace(QUESTION, row.question)

    def __call__(self, rows: list[RankRow]) -> list[tuple[list[int], list[list[int]], int]]:
        """For each row: the prefix's ids, each candidate's ids, how many tokens of the context were left out.

        The prefix is empty where question or candidates alone are longer than max_length; a candidate without a token
        is empty.
        """
        texts, candidates = [], []
        for row in rows:
            texts += self.parts(row)
            candidates += [self.lead + text for text in row.candidates]
        coded, coded_candidates = iter(self._ids(texts)), iter(self._ids(candidates))
        out = []
        for row in rows:
            before, context, after = (next(coded) for _ in range(3))
            suffix = list(self.template.suffix)
            branches = [next(coded_candidates) for _ in row.candidates]
            branches = [ids + suffix if ids else [] for ids in branches]
            front, back = [*self.template.prefix, *before], [*after, *self.template.middle]
            room = self.max_length - len(front) - len(back) - max(map(len, branches))
            if room < 0 or not before + after:
                out.append(([], branches, 0))
                continue
            kept = list(cut_ids(context, room, "head_tail"))
            out.append(([*front, *kept, *back], branches, len(context) - len(kept)))
        return out


@dataclass
class RankRows:
    """The tokenised questions of one file; ids are memory-mapped. n questions, M candidates of all of them."""

    prefix_ids: np.ndarray  # (sum of prefixes,) int32
    candidate_ids: np.ndarray  # (sum of candidates,) int32
    prefix_starts: np.ndarray  # (n + 1,) int64 into prefix_ids
    candidate_starts: np.ndarray  # (M + 1,) int64 into candidate_ids
    first: np.ndarray  # (n + 1,) int64: each question's first candidate
    rewards: np.ndarray  # (M,) float32
    lines: np.ndarray  # (n,) int32: line in the file
    groups: np.ndarray  # (n,) int32 into meta["group_names"]
    meta: dict  # path, sha256, num_cut, ...
    prefix_lengths: np.ndarray  # (n,) int64, in memory
    sizes: np.ndarray  # (n,) int64: candidates of each question, in memory

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_candidates(self) -> int:
        """K of the widest question."""
        return int(self.sizes.max())

    @property
    def num_tokens(self) -> int:
        """Tokens of all questions, each prefix once."""
        return len(self.prefix_ids) + len(self.candidate_ids)

    def branch_lengths(self, question: int) -> np.ndarray:
        """(K,) tokens of each candidate of a question."""
        first, last = self.first[question], self.first[question + 1]
        return np.diff(self.candidate_starts[first : last + 1])

    def question(self, k: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The prefix's ids, and each candidate's."""
        prefix = self.prefix_ids[self.prefix_starts[k] : self.prefix_starts[k + 1]]
        starts = self.candidate_starts[self.first[k] : self.first[k + 1] + 1]
        return prefix, [self.candidate_ids[a:b] for a, b in zip(starts, starts[1:])]

    def table(self, values: np.ndarray, fill: float = np.nan) -> np.ndarray:
        """(n, K) float32 of one value a candidate; fill where a question has fewer."""
        out = np.full((len(self), self.num_candidates), fill, np.float32)
        out[np.arange(self.num_candidates) < self.sizes[:, None]] = values
        return out

    def summary(self) -> str:
        """One line for the log."""
        meta, sizes = self.meta, self.sizes
        equal = f", {meta['num_equal']} with one reward for all: " if meta["num_equal"] else ""
        equal += ("left out" if meta["is_training"] else "not in the metrics") if equal else ""
        sizes = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else sizes.max()
        return (
            f"{len(self)} questions of {sizes} candidates, {len(self.prefix_ids)} + {len(self.candidate_ids)} tokens, "
            f"longest {int(self.prefix_lengths.max())}, {meta['num_cut']} contexts cut ({meta['num_lost']} tokens) to "
            f"{meta['max_length']}{equal}, {meta['path']}"
        )


def rows_in_memory(
    coded: list[tuple[list[int], list[list[int]], int]], rewards: list[list[float]], path: str
) -> RankRows:
    """The questions of RankEncoder's output, with a reward for each candidate, without a cache.

    path: named in messages.
    """
    prefixes, branches = [prefix for prefix, _, _ in coded], [ids for _, own, _ in coded for ids in own]
    sizes = np.array([len(own) for _, own, _ in coded])
    lengths = np.array([len(prefix) for prefix in prefixes])

    def starts(counts) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    return RankRows(
        prefix_ids=np.concatenate(prefixes).astype(np.int32),
        candidate_ids=np.concatenate(branches).astype(np.int32),
        prefix_starts=starts(lengths),
        candidate_starts=starts([len(ids) for ids in branches]),
        first=starts(sizes),
        rewards=np.concatenate(rewards).astype(np.float32),
        lines=np.arange(1, len(coded) + 1),
        groups=np.zeros(len(coded), np.int32),
        meta={"path": path, "group_names": [""]},
        prefix_lengths=lengths,
        sizes=sizes,
    )


COLUMNS = ("prefix_starts", "candidate_starts", "first", "rewards", "lines", "groups")


def tokenise_rank_file(
    path: str,
    flag: str,
    encoder: RankEncoder,
    cache_dir: str,
    group_field: str = "",
    is_training: bool = False,
    most_rows: int = 0,
) -> RankRows:
    """The questions of a file, tokenised, from the cache where they are there already.

    Args:    group_field: whose values name groups of questions, "" for none | is_training: leave out, and count,
             questions whose candidates have one reward: they teach nothing | most_rows: read no more; 0: all.
    Raises:  UserError with all bad rows of the file, or when no question is left.
    """
    options = [*encoder.options(), group_field, is_training, most_rows]
    folder, sha256 = cache_folder(path, flag, encoder.tokenizer, options, cache_dir)
    if not (folder / "meta.json").exists():

        def fill(part: Path) -> dict:
            meta = _tokenise(path, flag, encoder, group_field, is_training, most_rows, part)
            return meta | {"sha256": sha256, "max_length": encoder.max_length}

        write_cache(folder, fill)
    meta = json.loads((folder / "meta.json").read_text()) | {"path": str(path)}
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in COLUMNS}
    ids = {n: np.memmap(folder / f"{n}.bin", np.int32, "r") for n in ("prefix_ids", "candidate_ids")}
    lengths, sizes = np.diff(columns["prefix_starts"]), np.diff(columns["first"])
    rows = RankRows(**ids, **columns, meta=meta, prefix_lengths=lengths, sizes=sizes)
    return rows


def open_rank_rows(path: str, flag: str, *args, **kwargs) -> RankRows:
    """tokenise_rank_file on every rank: rank 0 writes the cache where there is none, then all ranks map it."""
    call = partial(tokenise_rank_file, path, flag, *args, **kwargs)
    on_main(lambda: bool(call()))
    return call()


def _tokenise(
    path: str,
    flag: str,
    encoder: RankEncoder,
    group_field: str,
    is_training: bool,
    most_rows: int,
    part: Path,
) -> dict:
    """Read, check and tokenise; ids are written as they come, then the columns. Returns what meta.json holds."""
    bad, names = BadRows(path), {}
    prefix_starts, candidate_starts, first = array("q", [0]), array("q", [0]), array("q", [0])
    rewards, lines, groups, num_cut, num_lost, num_equal = array("f"), array("i"), array("i"), 0, 0, 0
    source = islice(read_rows(path, bad, flag), most_rows or None)
    with (
        open(part / "prefix_ids.bin", "wb") as prefixes,
        open(part / "candidate_ids.bin", "wb") as candidates,
        tqdm(desc=f"tokenise {path}", unit=" rows", disable=None, leave=False) as bar,
    ):
        while window := list(islice(source, WINDOW)):
            kept = []
            for line, row in window:
                try:
                    kept.append((line, parse_rank_row(row, True, group_field)))
                except RowError as error:
                    bad.add(line, str(error))
            for (line, row), coded in zip(kept, encoder([row for _, row in kept]), strict=True):
                fault = fault_of(coded, encoder.max_length)
                if fault:
                    bad.add(line, fault)
                    continue
                is_equal = len(set(array("f", row.rewards))) == 1
                num_equal += is_equal
                if is_training and is_equal:
                    continue
                prefix, branches, lost = coded
                prefixes.write(np.asarray(prefix, np.int32).tobytes())
                prefix_starts.append(prefix_starts[-1] + len(prefix))
                for ids in branches:
                    candidates.write(np.asarray(ids, np.int32).tobytes())
                    candidate_starts.append(candidate_starts[-1] + len(ids))
                first.append(first[-1] + len(branches))
                rewards.extend(row.rewards)
                lines.append(line)
                groups.append(names.setdefault(row.group, len(names)))
                num_cut, num_lost = num_cut + (lost > 0), num_lost + lost
            bar.update(len(window))
    bad.raise_if_any()
    if not lines or (num_equal == len(lines) and not is_training):
        why = (
            f"the candidates of all {num_equal} have one and the same reward" if num_equal else "it has none"
        )
        raise UserError(f"{flag} {path}: no question to rank: {why}")
    for name, column in zip(
        COLUMNS, (prefix_starts, candidate_starts, first, rewards, lines, groups), strict=True
    ):
        save_array(part / f"{name}.npy", np.array(column))
    counts = {"num_cut": num_cut, "num_lost": num_lost, "num_equal": num_equal, "is_training": is_training}
    return counts | {"group_names": list(names)}


def fault_of(coded: tuple[list[int], list[list[int]], int], max_length: int) -> str:
    """What is wrong with an encoded row, "" for nothing."""
    prefix, branches, _ = coded
    empty = next((k for k, ids in enumerate(branches, 1) if not ids), 0)
    if empty:
        return f"candidate {empty} has no token: empty after tokenisation"
    if not prefix:
        longest = max(map(len, branches))
        return (
            f"question and longest candidate ({longest} tokens) do not fit --max_length {max_length}, even without "
            "the context"
        )
    return ""
