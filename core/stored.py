"""What a run or a job has written, read back: whole and of the shape it was written in, or one message.

A run folder may come from another disk, another version or another person. Nothing in it is unpickled.
"""

import errno
import json
import os
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.rows import is_too_deep, show

ANY = "*"  # as a shape: anything; as a key of one: every other key
NUMBER = (int, float)
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
WORDS |= {dict: "an object", list: "a list"}
ROW_FORMAT = {"text_field": str, "pair_field": str, "label_field": str}


class Stored(dict):
    """A JSON object as read; a key that is not there is the file's fault."""

    def __init__(self, values: dict, where: str):
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> None:
        raise UserError(f"{self.where}: is not whole: no {key!r}")


def read_json(path: Path, shape: dict) -> Stored:
    """A JSON object out of a file.

    Args:    shape: of the keys that are looked at, as in check_shape; {} for none.
    Raises:  UserError when it cannot be read, is no JSON object, or a part is of another shape; and later, when a key
             is asked for that is not there.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {os.strerror(error.errno or errno.EIO)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not whole: invalid JSON: {error}") from None
    if is_too_deep([found]):
        raise UserError(f"{path}: is not whole: lists or objects without end in one another")
    return check_shape(found, shape or {ANY: ANY}, str(path))


def check_shape(value: object, shape: object, where: str) -> object:
    """The value, its objects as Stored.

    Args:    shape: ANY, a type or a tuple of types, [shape] for a list, {key: shape} for an object in which each key
             may be missing; keys that it does not name are allowed only with ANY among them, and are of its shape.
    Raises:  UserError naming the place.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise UserError(f"{where}: is {show(value)}; expected an object")
        odd = [name for name in value if name not in shape and ANY not in shape]
        if odd:
            raise UserError(f"{where}: has the key {show(odd[0])}; expected some of {', '.join(shape)}")
        made = {
            k: check_shape(v, shape.get(k, shape.get(ANY)), f"{where}: {show(k)}") for k, v in value.items()
        }
        return Stored(made, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise UserError(f"{where}: is {show(value)}; expected a list")
        return [check_shape(own, shape[0], f"{where}, number {k}") for k, own in enumerate(value, 1)]
    if shape == ANY:
        return Stored(value, where) if isinstance(value, dict) else value
    kinds = shape if isinstance(shape, tuple) else (shape,)
    is_odd = isinstance(value, bool) and bool not in kinds
    is_odd = is_odd or (isinstance(value, NUMBER) and not abs(value) < float("inf"))
    if is_odd or not isinstance(value, kinds):
        raise UserError(f"{where}: is {show(value)}; expected {' or '.join(WORDS[kind] for kind in kinds)}")
    return Stored(value, where) if isinstance(value, dict) else value


def read_array(path: Path, kinds: str = "f", ndim: int | None = None) -> np.ndarray:
    """An array out of an .npy file; never one of Python objects, which would have to be unpickled.

    Args:    kinds: numpy's letters of the types that it may have: f, i, u, b | ndim: None for any.
    Raises:  UserError when it cannot be read, or is of another kind.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header ends in whatever numpy's parser stumbles over
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: is not whole: {why}") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in kinds:
        raise UserError(f"{path}: is not whole: expected an array of numbers")
    if ndim is not None and found.ndim != ndim:
        raise UserError(f"{path}: is not whole: has {found.ndim} dimensions, expected {ndim}")
    return found
