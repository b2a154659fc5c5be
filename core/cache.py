"""Tokenise once, in batches, into a memory-mapped cache keyed by the file's content, the tokenizer and the options.

A folder of the cache holds ids.bin (all rows' tokens, one after the other), and by row: where it starts, its
line in the file, where its second part begins, its labels. Nothing of it is copied into memory but the lengths.
"""

import hashlib
import json
import os
import shutil
import uuid
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from core.dist import on_main
from core.errors import UserError, disk_error
from core.files import save_array, sync_folder
from core.prompts import PromptEncoder
from core.rows import BadRows, RowError, RowFormat, file_sha256, read_rows, show, sort_names
from core.spent import row_hash, row_hashes
from core.tokens import Encoder

CACHE_VERSION = 2
WINDOW = (
    2048  # rows a tokenizer call: large enough for its threads, small enough to stay in cache (assumption)
)


@dataclass
class TokenRows:
    """The tokenised rows of one file; ids, starts, pairs, lines and hashes are memory-mapped."""

    ids: np.ndarray  # (sum of lengths,) int32
    starts: np.ndarray  # (n + 1,) int64
    pairs: np.ndarray  # (n,) int32: index at which token type 1 begins, 0 for nowhere
    lines: np.ndarray  # (n,) int32: line in the file
    hashes: np.ndarray  # (n,) uint64 of the texts (core/spent.py)
    labels: np.ndarray  # (n,) int32, or (n, C) uint8 with several labels a row
    label_names: list[str]
    multi_label: bool
    meta: dict  # path, sha256, num_truncated, ...
    lengths: np.ndarray  # (n,) int32, in memory

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.lengths.sum())

    def onehot(self) -> np.ndarray:
        """(n, C) of 0 and 1: the labels, whatever their kind."""
        labels = np.asarray(self.labels)
        return labels if self.multi_label else labels[:, None] == np.arange(len(self.label_names))

    def summary(self) -> str:
        """One line for the log."""
        meta = self.meta
        return (
            f"{len(self)} rows, {self.lengths.sum()} tokens, longest {self.lengths.max()}, "
            f"{meta['num_truncated']} cut to {meta['max_length']} ({meta['truncate']}), {meta['path']}"
        )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what decides how a tokenizer splits text; truncation and padding state left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = [type(tokenizer).__name__, tokenizer.get_vocab(), str(tokenizer.init_kwargs)]
    else:
        state = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


def tokenise_file(
    path: str,
    flag: str,
    encoder: Encoder | PromptEncoder,
    row_format: RowFormat,
    cache_dir: str,
    train: "TokenRows | None" = None,
) -> TokenRows:
    """The rows of a file, tokenised, from the cache where they are there already.

    Args:    flag: names the file in errors | train: the training rows, whose label names these must be among;
             None: these are the training rows, and every name must have a row.
    Raises:  UserError with all bad rows of the file, before anything is left in the cache.
    Cost:    one pass over the file to hash it, one to read and tokenise it the first time.
    """
    options = [asdict(row_format), encoder.max_length, encoder.truncate, asdict(encoder.template)]
    folder, sha256 = cache_folder(path, flag, encoder.tokenizer, options, cache_dir)
    if not (folder / "meta.json").exists():

        def fill(part: Path) -> dict:
            columns, meta = tokenise_rows(path, flag, encoder, row_format, part / "ids.bin")
            for name, column in columns.items():
                save_array(part / f"{name}.npy", column)
            return meta | {"sha256": sha256, "max_length": encoder.max_length, "truncate": encoder.truncate}

        write_cache(folder, fill)
    rows = read_cache(folder)
    rows.meta = rows.meta | {"path": str(path)}
    if train is None:
        return check_classes(rows, path, flag)
    return match_labels(rows, path, flag, train)


@dataclass(frozen=True)
class RowSource:
    """How files become token rows: encoder, columns and cache of a run."""

    encoder: Encoder | PromptEncoder
    row_format: RowFormat
    cache_dir: str

    def open(self, path: str, flag: str, train: TokenRows | None = None) -> TokenRows:
        """tokenise_file on every rank: rank 0 writes the cache where there is none, then all ranks map it."""
        call = partial(tokenise_file, path, flag, self.encoder, self.row_format, self.cache_dir, train)
        on_main(lambda: bool(call()))
        return call()


def cache_folder(
    path: str, flag: str, tokenizer: PreTrainedTokenizerBase, options: list, cache_dir: str
) -> tuple[Path, str]:
    """The cache folder of a file, by its content, the tokenizer and the options, and the file's sha256.

    Raises: UserError when the file cannot be read; the message names the flag.
    """
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        next(read_rows(path, BadRows(path), flag), None)  # raises the message that fits
        raise UserError(f"{flag} {path}: not a regular file")
    sha256 = file_sha256(path)
    suffix = Path(path).suffix.lower()  # decides how the content is read
    key = json.dumps([CACHE_VERSION, tokenizer_fingerprint(tokenizer), [sha256, *options, suffix]])
    return Path(cache_dir) / hashlib.sha256(key.encode()).hexdigest()[:32], sha256


def write_cache(folder: Path, fill: Callable[[Path], dict]) -> None:
    """Let fill(part) write a cache folder's arrays and return its meta.json; renamed when whole."""
    part = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        (part / "meta.json").write_text(json.dumps(fill(part)))
        sync_folder(part)
        try:
            part.rename(folder)
        except OSError:
            if not (folder / "meta.json").exists():  # else another process was first
                raise
    except OSError as error:
        raise disk_error(error, str(folder), "--cache_dir") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def tokenise_rows(
    path: str, flag: str, encoder: Encoder | PromptEncoder, row_format: RowFormat, ids_path: Path
) -> tuple[dict, dict]:
    """Read, check and tokenise; ids go to ids_path as they come, the rest is returned as columns and meta."""
    bad, labels = BadRows(path), LabelColumn()
    starts, pairs, lines, num_truncated = array("q", [0]), array("i"), array("i"), 0
    hashes = array("Q")
    source = read_rows(path, bad, flag)
    with (
        open(ids_path, "wb") as out,
        tqdm(desc=f"tokenise {path}", unit=" rows", disable=None, leave=False) as bar,
    ):
        while window := list(islice(source, WINDOW)):
            texts, seconds, kept = [], [], []
            for line, row in window:
                try:
                    text, pair = row_format.text(row)
                    labels.add(row_format.labels(row))
                except RowError as error:
                    bad.add(line, str(error))
                    continue
                texts.append(text)
                seconds.append(pair)
                kept.append(line)
            coded = encoder(texts, seconds if encoder.pair else None) if texts else []
            for line, *both, (ids, pair_start, was_cut) in zip(kept, texts, seconds, coded, strict=True):
                if not ids:
                    bad.add(line, "the text has no token: empty after tokenisation")
                    continue
                out.write(np.asarray(ids, dtype=np.int32).tobytes())
                starts.append(starts[-1] + len(ids))
                pairs.append(pair_start)
                lines.append(line)
                hashes.append(row_hash(*both))
                num_truncated += was_cut
            bar.update(len(window))
    bad.raise_if_any()
    names, matrix = labels.finish()
    columns = {
        "starts": np.array(starts),
        "pairs": np.array(pairs),
        "lines": np.array(lines),
        "hashes": np.array(hashes),
        "labels": matrix,
    }
    return columns, {
        "label_names": names,
        "multi_label": labels.kind != "one",
        "num_truncated": num_truncated,
    }


class LabelColumn:
    """Labels as they come, all of one kind; names get their final order at the end."""

    def __init__(self):
        self.kind, self.keys = None, frozenset()  # kind: one, list or dict
        self.index: dict[str, int] = {}
        self.flat, self.starts = array("i"), array("q", [0])

    def add(self, value: str | list | dict) -> None:
        """Add a row's labels. Raises RowError when they are of another kind than the rows' before."""
        kind = {str: "one", list: "list", dict: "dict"}[type(value)]
        if self.kind is None:
            self.kind, self.keys = kind, frozenset(value if kind == "dict" else ())
        words = {"one": "one label", "list": "a list of labels", "dict": "0/1 for each label"}
        if kind != self.kind:
            raise RowError(
                f"labels are {words[kind]} ({show(value)}), in the rows before {words[self.kind]}; "
                "expected one kind in all rows"
            )
        if kind == "dict" and frozenset(value) != self.keys:
            odd = sorted(frozenset(value) ^ self.keys)
            raise RowError(f"labels name other classes than the rows before: {', '.join(odd[:5])}")
        if kind == "dict":
            for name in value:
                self.index.setdefault(name, len(self.index))
            value = [name for name, applies in value.items() if applies]
        elif kind == "one":
            value = [value]
        self.flat.extend(self.index.setdefault(name, len(self.index)) for name in dict.fromkeys(value))
        self.starts.append(len(self.flat))

    def finish(self) -> tuple[list[str], np.ndarray]:
        """Label names in order, and (n,) int32 indices or an (n, C) uint8 matrix."""
        names = sort_names(self.index)
        rank = {name: k for k, name in enumerate(names)}
        order = np.zeros(max(1, len(names)), np.int32)
        for name, k in self.index.items():
            order[k] = rank[name]
        flat = order[np.array(self.flat, dtype=np.int64)]
        if self.kind == "one":
            return names, flat
        counts = np.diff(np.array(self.starts))
        matrix = np.zeros((len(counts), len(names)), np.uint8)
        matrix[np.repeat(np.arange(len(counts)), counts), flat] = 1
        return names, matrix


def rows_in_memory(
    texts: list[str],
    pairs: list[str] | None,
    labels: np.ndarray,
    label_names: list[str],
    encoder: Encoder | PromptEncoder,
    lines: np.ndarray,
    path: str,
) -> TokenRows:
    """Texts as token rows, without a cache.

    Args:   labels: (n,) int, or (n, C) with several labels a row | lines: (n,) of the rows in their file.
    Raises: UserError naming the lines of texts without a token.
    """
    bad, coded = BadRows(path), encoder(texts, pairs)
    for line, (ids, _, _) in zip(lines, coded, strict=True):
        if not ids:
            bad.add(int(line), "the text has no token: empty after tokenisation")
    bad.raise_if_any()
    lengths = np.array([len(ids) for ids, _, _ in coded], np.int32)
    return TokenRows(
        ids=np.concatenate([ids for ids, _, _ in coded]).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        pairs=np.array([start for _, start, _ in coded], np.int32),
        lines=np.asarray(lines, np.int32),
        hashes=row_hashes(texts, pairs),
        labels=labels,
        label_names=label_names,
        multi_label=labels.ndim == 2,
        meta={"path": path, "sha256": file_sha256(path)},
        lengths=lengths,
    )


def read_cache(folder: Path) -> TokenRows:
    """Open a cache folder; arrays are memory-mapped."""
    meta = json.loads((folder / "meta.json").read_text())
    columns = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in ("starts", "pairs", "lines", "hashes", "labels")
    }
    ids = np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")
    lengths = np.diff(columns["starts"]).astype(np.int32)
    return TokenRows(
        ids=ids,
        **columns,
        label_names=meta["label_names"],
        multi_label=meta["multi_label"],
        meta=meta,
        lengths=lengths,
    )


def check_classes(rows: TokenRows, path: str, flag: str) -> TokenRows:
    """The training rows themselves, when every class has a row. Raises UserError."""
    if not rows.label_names:
        raise UserError(f"{flag} {path}: no row has a label")
    if rows.multi_label:
        counts = rows.labels.sum(axis=0, dtype=np.int64)
    else:
        counts = np.bincount(rows.labels, minlength=len(rows.label_names))
        if len(counts) < 2:
            raise UserError(
                f"{flag} {path}: all rows have the label {rows.label_names[0]!r}; expected 2 or more"
            )
    without = [name for name, count in zip(rows.label_names, counts, strict=True) if count == 0]
    if without:
        raise UserError(
            f"{flag} {path}: classes without a training row: {', '.join(map(repr, without))}; "
            "add rows that have them, or leave these names out of the labels"
        )
    return rows


def match_labels(rows: TokenRows, path: str, flag: str, train: TokenRows) -> TokenRows:
    """Number the labels as the training rows do.

    Raises: UserError for another kind of label, and for names without a training row with the first line of each.
    """
    if rows.multi_label != train.multi_label:
        words = {True: "several labels a row", False: "one label a row"}
        raise UserError(
            f"{flag} {path}: has {words[rows.multi_label]}; the training rows have {words[train.multi_label]}"
        )
    place = {name: k for k, name in enumerate(train.label_names)}
    unknown = [k for k, name in enumerate(rows.label_names) if name not in place]
    if unknown:
        has = (
            rows.labels
            if rows.multi_label
            else np.asarray(rows.labels)[:, None] == np.arange(len(rows.label_names))
        )
        told = [
            f"{rows.label_names[k]!r} (line {int(rows.lines[np.argmax(has[:, k] > 0)])})"
            for k in unknown[:20]
        ]
        raise UserError(
            f"{flag} {path}: labels without a training row: {', '.join(told)}; "
            f"the training rows have {', '.join(train.label_names[:30])}"
        )
    order = np.array([place[name] for name in rows.label_names], dtype=np.int32)
    if rows.multi_label:
        labels = np.zeros((len(rows), len(train.label_names)), np.uint8)
        labels[:, order] = rows.labels
    else:
        labels = order[rows.labels]
    rows.labels, rows.label_names = labels, list(train.label_names)
    return rows
