"""Where a model computes: choosing the device, moving there, and knowing an out-of-memory error."""

import re

import torch
from torch import nn

from support.files import InputError, first_line


def choose_device(wanted: str) -> str:
    """cuda, mps or cpu: what is wanted, or for "auto" the best that is there."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def chosen(option: str, device: str) -> bool:
    """Whether --dtype or --compile asks for bfloat16 or torch.compile; "auto" does on CUDA."""
    return option in ("bfloat16", "yes") or (option == "auto" and device == "cuda")


def move(model: nn.Module, device: str) -> None:
    """Moves the model, in place. Raises InputError if this PyTorch or this machine has no such device."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"--device {device} cannot be used here: {first_line(error)}") from None


def is_out_of_memory(error: Exception) -> bool:
    """CUDA and MPS say "out of memory", the CPU's allocator "can't allocate memory"; each is a RuntimeError."""
    return isinstance(error, RuntimeError) and bool(re.search("out of memory|allocate memory", str(error)))
