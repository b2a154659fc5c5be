"""core/files.py: whatever happens while it is written, a file or folder is the old one or the new one."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from core import files
from core.errors import UserError, disk_error, disk_errors
from core.files import as_os_error, found_folder, save_tensors, write_folder, write_json, write_text
from tests.conftest import Killed, full_disk, killed_at


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)


OLD, NEW = {"a": "old a", "b": "old b"}, {"b": "new b", "c": "new c"}


def filling(names: dict[str, str]):
    """What fills a folder with these files."""

    def fill(part: Path) -> None:
        for name, text in names.items():
            (part / name).write_text(text)

    return fill


def folder_content(folder: Path) -> dict[str, str] | None:
    folder = found_folder(folder)
    return {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else None


def check_killed_anywhere(write, read, tmp_path: Path) -> None:
    """Kill a writer before each of its changes: what is found is the old or the new, and writing goes on after it.

    Args: write: (path, new: bool) writes | read: (path) finds what is there; None is nothing.
    """
    refused, call, found = True, 0, []
    while refused:
        path = tmp_path / str(call) / "thing"
        path.parent.mkdir()
        write(path, new=False)
        old = read(path)
        refused = False
        try:
            with killed_at(call):
                write(path, new=True)
        except Killed:
            refused = True
        found.append(read(path))
        write(path, new=True)  # the next start finds nothing in its way
        new = read(path)
        assert os.listdir(path.parent) == ["thing"]
        assert found[-1] in (old, new), f"killed at change {call}"
        call += 1
    assert found[-1] == new != old == found[0]
    assert call > 2


# -- files ---------------------------------------------------------------------------------------------------


def test_text_and_json(tmp_path):
    write_text(tmp_path / "a", "gr\xfcn\r\n\u2028")
    assert (tmp_path / "a").read_bytes() == "gr\xfcn\r\n\u2028".encode()
    value = {"\xe4": [1, 2.5, None, True], "b": {}}
    write_json(tmp_path / "b.json", value)
    assert json.loads((tmp_path / "b.json").read_bytes()) == value
    assert "\xe4" in (tmp_path / "b.json").read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["a", "b.json"]


def test_a_file_killed_anywhere(tmp_path):
    def write(path, new):
        write_text(path, "new text" if new else "old text")

    check_killed_anywhere(write, Path.read_text, tmp_path)


def test_an_exception_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, ["old"])
    with pytest.raises(TypeError):
        write_json(path, ["new", object()])
    with pytest.raises(OSError, match="File too large"), full_disk(100):
        write_json(path, ["new"] * 100)
    monkeypatch.setattr(files.os, "replace", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_json(path, ["new"])
    assert json.loads(path.read_text()) == ["old"]
    assert os.listdir(tmp_path) == ["a.json"]


# -- folders -------------------------------------------------------------------------------------------------


def write_either(path: Path, new: bool) -> None:
    write_folder(path, filling(NEW if new else OLD))


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "deep" / "er" / "folder"
    for content in (OLD, NEW):
        write_folder(folder, filling(content))
        assert folder_content(folder) == content
        assert os.listdir(folder.parent) == ["folder"]


def test_a_folder_killed_anywhere(tmp_path):
    check_killed_anywhere(write_either, folder_content, tmp_path)


def test_bite_a_folder_written_in_place_is_caught(tmp_path):
    def write(path, new):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        filling(NEW if new else OLD)(path)
        files.sync_folder(path)

    with pytest.raises(AssertionError, match="killed at change"):
        check_killed_anywhere(write, folder_content, tmp_path)


def test_bite_a_reader_that_forgets_the_old_folder_is_caught(tmp_path):
    def read(path):
        return {file.name: file.read_text() for file in path.iterdir()} if path.exists() else None

    with pytest.raises(AssertionError, match="killed at change"):
        check_killed_anywhere(write_either, read, tmp_path)


def test_an_exception_in_the_middle_leaves_the_old_folder(tmp_path):
    def fill(part):
        filling(NEW)(part)
        raise ValueError("in the middle")

    write_folder(tmp_path / "folder", filling(OLD))
    with pytest.raises(ValueError, match="in the middle"):
        write_folder(tmp_path / "folder", fill)
    with pytest.raises(OSError, match="File too large"), full_disk(3):
        write_folder(tmp_path / "folder", filling(NEW))
    assert folder_content(tmp_path / "folder") == OLD
    assert os.listdir(tmp_path) == ["folder"]


def test_files_are_on_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files.os, "fsync", lambda number: order.append("fsync"))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: (order.append(to.name), rename(self, to)))

    def fill(part):
        filling(NEW)(part)
        (part / "inner").mkdir()
        (part / "inner" / "d").write_text("d")

    write_folder(tmp_path / "folder", fill)
    write_folder(tmp_path / "folder", fill)
    assert order == [*["fsync"] * 3, "folder", *["fsync"] * 3, "folder.old", "folder"]


def test_the_folder_that_is_found(tmp_path):
    folder, old = tmp_path / "folder", tmp_path / "folder.old"
    assert found_folder(folder) == folder  # neither is there: its name stands in the reader's message
    old.mkdir()
    assert found_folder(folder) == old
    folder.mkdir()
    assert found_folder(folder) == folder


# -- tensors and the messages of a full disk -----------------------------------------------------------------


def test_tensors_come_back_bitwise(tmp_path):
    param = torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    tensors = {
        "t": param.t(),
        "h": torch.tensor([0.1, float("nan")], dtype=torch.bfloat16),
        "s": torch.tensor(7),
    }
    save_tensors(tensors, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        a, b = (x.detach().reshape(-1).view(torch.uint8) for x in (found[name], value))
        assert torch.equal(a, b)


@pytest.mark.parametrize("limit", [0, 10, 1000, 100_000])
def test_tensors_on_a_full_disk(tmp_path, limit):
    path = tmp_path / "x.safetensors"
    with pytest.raises(OSError) as caught, full_disk(limit):
        save_tensors({"x": torch.zeros(50_000)}, path)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    with (
        pytest.raises(OSError),
        full_disk(limit),
    ):  # transformers' own save_pretrained does not go through ours
        write_folder(tmp_path / "m", lambda part: save_file({"x": torch.zeros(50_000)}, part / "y"))
    assert not (tmp_path / "m").exists()


def test_errors_of_safetensors_are_os_errors(tmp_path):
    error = as_os_error(SafetensorError("I/O error: No space left on device (os error 28)"), tmp_path / "x")
    assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert as_os_error(SafetensorError("something else"), tmp_path).errno == errno.EIO


@pytest.mark.parametrize(("number", "why"), [
    (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EFBIG, "the disk is full"),
    (errno.EROFS, "Read-only file system"), (None, "Input/output error"),
])  # fmt: skip
def test_the_message_of_a_failed_write(number, why):
    error = OSError(number, "x") if number else OSError("x")
    wanted = f"runs/a: cannot be written: {why}. Free some space or give another folder with --output_dir."
    assert str(disk_error(error, "runs/a", "--output_dir")) == wanted
    with pytest.raises(UserError) as caught, disk_errors("runs/a", "--output_dir"):
        raise error
    assert str(caught.value) == wanted


def test_the_message_names_the_file(tmp_path):
    wanted = f"{tmp_path / 'no' / 'a.json.part'}: cannot be written: No such file or directory."
    with pytest.raises(UserError) as caught, disk_errors(tmp_path, "--output_dir"):
        write_json(tmp_path / "no" / "a.json", {})
    assert str(caught.value).startswith(wanted)
    with pytest.raises(ValueError, match="other"), disk_errors(tmp_path, "--output_dir"):
        raise ValueError("other")
