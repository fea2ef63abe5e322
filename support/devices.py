"""Where and how a model computes: its device, bfloat16, torch.compile; and knowing an out-of-memory error."""

import errno
import functools
import re

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from support.files import InputError, first_line


def choose_device(wanted: str) -> str:
    """cuda, mps or cpu: what is wanted, or for "auto" the best that is there."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def chosen(option: str, device: str) -> bool:
    """Whether --dtype or --compile asks for bfloat16 or torch.compile; "auto" does on CUDA."""
    return option in ("bfloat16", "yes") or (option == "auto" and device == "cuda")


def place(
    model: nn.Module, repeated: list[nn.Module], device: str, dtype: str, compile: str, recompute: bool = False
) -> None:
    """Moves the model to its device, in place, with bfloat16 and torch.compile where they are chosen.

    The layers `repeated` share their code, so that it is compiled once, for every length. With `recompute` none of
    them keeps what it computed in training but its input: the backward pass computes it again, with the same dropout,
    as the random state is kept too (Chen et al., 2016, arXiv:1604.06174). The same numbers, in less memory.
    """
    device = choose_device(device)
    move(model, device)
    if chosen(dtype, device):
        for module in model.modules():  # frozen: no float32 original is needed, and no conversion in each step
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
    if recompute:
        for layer in repeated:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    if chosen(compile, device):
        for layer in repeated:
            layer.compile(fullgraph=True, dynamic=True)


def move(model: nn.Module, device: str) -> None:
    """Moves the model, in place. Raises InputError if this PyTorch or this machine has no such device."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"--device {device} cannot be used here: {first_line(error)}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, on a device or here, or a size that no memory has.

    CUDA and MPS say "out of memory", the CPU's allocator "can't allocate memory", C++ "std::bad_alloc", each in a
    RuntimeError; Python and Arrow have a MemoryError, the operating system ENOMEM.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    said = "out of memory|allocate memory|bad_alloc|size calculation overflowed"
    return isinstance(error, RuntimeError) and bool(re.search(said, str(error)))
