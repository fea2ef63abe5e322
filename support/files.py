"""Whole files: JSON and safetensors are read with a clear error, and written whole or not at all."""

import contextlib
import errno
import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class InputError(Exception):
    """Something the user gave cannot be used: the message is the one line that they get to read."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, on a device or here, or a size that no memory has.

    CUDA and MPS say "out of memory", the CPU's allocator "can't allocate memory", C++ "std::bad_alloc", oneDNN "could
    not create a primitive"; Python and Arrow have a MemoryError, the operating system ENOMEM; libraries are not loaded
    and threads not started.
    """
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    said = "out of memory|allocate memory|bad_alloc|size calculation overflowed|could not create a primitive"
    said += "|failed to map segment|failed to launch worker thread"
    return not isinstance(error, InputError) and bool(re.search(said, str(error), re.IGNORECASE))


def misread(error: Exception, message: str) -> Exception:
    """InputError(message), to be raised for a file whose reading ended in `error`: unless that was for want of memory,
    which is no fault of the file."""
    return error if is_out_of_memory(error) else InputError(message)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def listing(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def lies_in(path: str | Path, place: str | Path) -> bool:
    """Whether the file or directory `path` is `place` or lies in it, by whatever names and links the two are given."""
    if not (os.path.exists(path) and os.path.exists(place)):
        return False
    real = Path(os.path.realpath(path))
    return any(os.path.samefile(part, place) for part in (real, *real.parents))


# Writing.


def temporary_for(path: str | Path) -> Path:
    """Where the file `path` is written before it takes its place."""
    path = Path(path)
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def written_whole(path: str | Path):
    """Yields a temporary path beside `path`; what the block writes there becomes `path` whole, or not at all."""
    temporary = temporary_for(path)
    try:
        temporary.unlink(missing_ok=True)  # were it a link, it would be written through
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file; `metadata` goes into its header."""
    with written_whole(path) as temporary:
        temporary.write_bytes(
            save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        )


# Reading.


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. Raises InputError for anything else."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        json.dumps(
            raw, ensure_ascii=False
        ).encode()  # half a surrogate pair can be written in JSON, but is no text
    except (ValueError, RecursionError) as error:
        raise misread(error, f"{path}: not a JSON file ({first_line(error)})") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds a JSON {type(raw).__name__}, expected an object")
    return raw


def open_safetensors(path: str | Path):
    """`safe_open`, with InputError for a file that is truncated or no safetensors at all."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise misread(
            error, f"{path}: not a whole safetensors file ({error}); download or save it again"
        ) from None


def read_tensor(file, path: str | Path, key: str, shape: torch.Size | None = None) -> Tensor:
    """One finite floating-point tensor out of an open safetensors file, as float32.

    Raises InputError, naming the tensor, for another kind, NaN or infinity, or another shape than `shape`.
    """
    found = torch.Size(file.get_slice(key).get_shape())
    if shape is not None and found != shape:
        raise InputError(
            f"{path}: tensor {key} has the shape {list(found)}, expected {list(shape)}"
        )
    try:
        tensor = file.get_tensor(key)
    except (SafetensorError, TypeError, RuntimeError) as error:
        raise misread(error, f"{path}: tensor {key} cannot be read ({first_line(error)})") from None
    if not tensor.is_floating_point():
        raise InputError(
            f"{path}: tensor {key} is {tensor.dtype}, expected float32, float16 or bfloat16"
        )
    tensor = tensor.float()
    if not torch.isfinite(tensor.sum()):
        raise InputError(f"{path}: tensor {key} holds NaN or infinity; the file is damaged")
    return tensor
