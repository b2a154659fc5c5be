"""Files and folders that are either whole or not there: written under another name, renamed when done."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_json(path: Path, value: object) -> None:
    """Write JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, atomically: to a file beside it that is renamed when it is on disk.

    Half a surrogate pair, which no UTF-8 can hold, is written as the escape that JSON has for it.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file as it is, atomically."""
    part = path.with_name(path.name + ".part")
    try:
        shutil.copyfile(source, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_array(path: Path, array: np.ndarray) -> None:
    """np.save, whole or not at all, and a full disk raises: numpy's own file writing (tofile too) can lose the end in
    silence (2.4.6)."""
    whole, part = io.BytesIO(), path.with_name(path.name + ".part")
    np.save(whole, array)
    try:
        part.write_bytes(whole.getbuffer())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError, where the library has an error of its own.

    Cost: D2H of every tensor.
    """
    try:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        raise as_os_error(error, path) from None


def as_os_error(error: Exception, path: Path) -> OSError:
    """An I/O error that a Rust library (safetensors, tokenizers) reports, as the OSError it was."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number.group(1)) if number else 5, str(error), str(path))


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let fill(part) write a folder, then put it in the place of the old one.

    A kill leaves the old folder or the new one, at worst the old one as NAME.old (found_folder takes it then).
    """
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        fill(part)
        sync_folder(part)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if "os error" in str(error):  # safetensors and tokenizers wrap a full disk in errors of their own
            raise as_os_error(error, folder) from None
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def found_folder(folder: Path) -> Path:
    """The folder, or its .old one when a kill came between write_folder's two renames."""
    old = folder.with_name(folder.name + ".old")
    return old if not folder.exists() and old.exists() else folder


def sync_path(folder: Path) -> None:
    """Force a folder's own list of names to disk, so that a rename in it outlives a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(folder: Path) -> None:
    """Force a folder's files to disk, so that the rename after it never shows a hollow one."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
