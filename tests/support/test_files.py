"""Files that are whole or not there at all, and one line for those that are not what their name
says."""

import json
from pathlib import Path

import pytest
import torch
from helpers import saved_base
from safetensors.torch import load_file

from bert import BertModel
from support.files import (
    InputError,
    is_out_of_memory,
    read_json,
    write_json,
    write_tensors,
    written_whole,
)


@pytest.fixture
def base(tmp_path) -> Path:
    """The directory of a tiny random classifier."""
    return saved_base(tmp_path / "base")


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_truncated_file_is_refused(base, size):
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        BertModel.from_pretrained(base)


def test_what_fails_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": "ü"})
    with pytest.raises(KeyboardInterrupt), written_whole(path) as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and json.loads(path.read_text()) == {
        "a": "ü"
    }


def test_a_link_in_the_way_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.json.tmp").symlink_to(tmp_path / "mine")
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "mine").read_text() == "mine" and read_json(tmp_path / "a.json") == {"a": 1}


def test_safetensors_reads_what_was_written(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.arange(5)}  # the first is not contiguous
    write_tensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys() and all(
        torch.equal(found[name], tensors[name]) for name in tensors
    )


@pytest.mark.parametrize(
    "content", ["", "[1]", "null", '{"a": "\\ud800"}', "[" * 10**5, '{"a": 1', "{'a': 1}"]
)
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json: (not a JSON file|holds a JSON)"):
        read_json(tmp_path / "a.json")


def test_an_out_of_memory_error_is_known():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    )
    with pytest.raises(RuntimeError) as error:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(error.value)


def test_more_errors_of_memory():
    for error in (
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ):
        assert is_out_of_memory(error)
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**61, 2**61)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(OSError(28, "No space left on device"))
