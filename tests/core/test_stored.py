"""core/stored.py: JSON and arrays read back, each with what is wrong in one message."""

import json

import numpy as np
import pytest

from core.errors import UserError
from core.stored import ANY, NUMBER, check_shape, read_array, read_json

SHAPE = {"name": str, "sizes": [int], "inner": {"share": NUMBER}, ANY: ANY}
GOOD = {"name": "a", "sizes": [1, 2], "inner": {"share": 0.5}, "more": {"b": 1}}


def test_a_whole_file_comes_back_as_it_was(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    assert read_json(tmp_path / "a.json", SHAPE) == GOOD


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not whole: invalid JSON"),
        ("{", "is not whole: invalid JSON"),
        ("\udcff", "is not whole: invalid JSON"),
        ("[" * 100_000, "is not whole: invalid JSON"),
        ('{"a":' + "[" * 200 + "]" * 200 + "}", "without end in one another"),
        ("[]", r"is \[\]; expected an object"),
        ("null", "is null; expected an object"),
        ('{"name": 1}', 'a.json: "name": is 1; expected text'),
        ('{"sizes": [1, "2"]}', '"sizes", number 2: is "2"; expected a whole number'),
        ('{"sizes": [true]}', "is true; expected a whole number"),
        ('{"sizes": {}}', "expected a list"),
        ('{"inner": {"share": NaN}}', "is NaN; expected a whole number or a number"),
        ('{"inner": {"other": 1}}', 'has the key "other"; expected some of share'),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", SHAPE)


def test_a_missing_key_is_the_files_fault(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    found = read_json(tmp_path / "a.json", SHAPE)
    with pytest.raises(UserError, match=r"a.json: \"inner\": is not whole: no 'gone'"):
        found["inner"]["gone"]
    assert found.get("gone") is None


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_json(tmp_path, SHAPE)


def test_a_shape_alone():
    assert check_shape([1], [int], "here") == [1]
    with pytest.raises(UserError, match=r"^here: is 1.5; expected a whole number$"):
        check_shape(1.5, int, "here")


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    assert read_array(tmp_path / "a.npy", "f", 2).shape == (2, 3)
    for kinds, ndim, message in (("u", 2, "array of numbers"), ("f", 1, "has 2 dimensions, expected 1")):
        with pytest.raises(UserError, match=message):
            read_array(tmp_path / "a.npy", kinds, ndim)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00((((((((((((((((", b"PK\x03\x04", b"\x80\x04."]
)
def test_what_is_no_array(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"a.npy: is not whole"):
        read_array(tmp_path / "a.npy")


def test_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a.npy: is not whole: Object arrays cannot be loaded"):
        read_array(tmp_path / "a.npy")
