"""Choosing a device, and knowing an out-of-memory error by what PyTorch itself says."""

import pytest
import torch
from torch import nn

from support import devices
from support.files import InputError


def test_auto_is_what_pytorch_has():
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert devices.choose_device("auto") == best and devices.choose_device("cpu") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="--device cuda cannot be used here"):
        devices.move(nn.Linear(2, 2), "cuda")


def test_an_out_of_memory_error_is_known():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert devices.is_out_of_memory(error.value)
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    with pytest.raises(RuntimeError) as error:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not devices.is_out_of_memory(error.value)
