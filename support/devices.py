"""Where and how a model computes: its device, bfloat16, torch.compile."""

import functools
import sys
import time

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from support import distributed, faster
from support.files import InputError, first_line, is_out_of_memory


def choose_device(wanted: str) -> str:
    """cuda, mps or cpu: what is wanted, or for "auto" the best that is there."""
    if wanted != "auto":
        return wanted
    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def chosen(option: str, device: str) -> bool:
    """Whether --dtype or --compile asks for bfloat16 or torch.compile; "auto" does on CUDA."""
    return option in ("bfloat16", "yes") or (option == "auto" and device == "cuda")


def compiles(option: str, device: str) -> bool:
    """Whether the layers are compiled: as `chosen`, but for "auto" only where torch.compile works."""
    return chosen(option, device) and (option == "yes" or not why_not_compiled(device))


@functools.cache
def why_not_compiled(device: str) -> str:
    """Why torch.compile does not work on the device, or "": found out by compiling an addition.

    It takes more than PyTorch: a C++ compiler, on CUDA Triton and a C compiler with Python's headers.
    """
    number = time.time_ns() % 2**20  # another each time, as what was compiled once is kept
    try:
        torch.compile(lambda x: x + number, fullgraph=True, dynamic=False)(
            torch.ones(2, device=device)
        )
        return ""
    except Exception as error:  # whatever a compiler, or the lack of one, leads to
        return first_line(error)


def place(
    model: nn.Module,
    repeated: list[nn.Module],
    device: str,
    dtype: str,
    compile: str,
    recompute: bool = False,
) -> None:
    """Moves the model to its device, in place, with bfloat16 and torch.compile where they are chosen.

    The layers `repeated` share their code, so that it is compiled once, for every length. With `recompute` none of
    them keeps what it computed in training but its input: the backward pass computes it again, with the same dropout,
    as the random state is kept too (Chen et al., 2016, arXiv:1604.06174). The same numbers, in less memory.
    """
    device = choose_device(device)
    distributed.refuse_device(device)
    move(model, device)
    if chosen(dtype, device):
        for module in (
            model.modules()
        ):  # frozen: no float32 original is needed, and no conversion in each step
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
    if recompute:
        for layer in repeated:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    if chosen(compile, device) and (reason := why_not_compiled(device)):
        if compile == "yes":
            raise InputError(f"--compile yes cannot be used here: {reason}")
        if distributed.is_first():
            print(
                f"note: the layers are not compiled, which would be faster: {reason}",
                file=sys.stderr,
            )
    if compiles(compile, device):
        for layer in repeated:
            layer.compile(fullgraph=True, dynamic=True)
    elif device == "cpu":
        faster.speed_up_frozen(model)


def move(model: nn.Module, device: str) -> None:
    """Moves the model, in place. Raises InputError if this PyTorch or this machine has no such device."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"--device {device} cannot be used here: {first_line(error)}") from None
