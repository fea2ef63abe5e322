"""Choosing a device, and torch.compile where it works and where it does not."""

import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from torch import nn

from support import devices
from support.files import InputError


def test_auto_is_what_pytorch_has():
    best = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    assert devices.choose_device("auto") == best and devices.choose_device("cpu") == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InputError, match="--device cuda cannot be used here"):
        devices.move(nn.Linear(2, 2), "cuda")


# What the project does where torch.compile is not possible.

PLACE = """
from torch import nn
from support import devices
from support.console import run_main
layers = nn.ModuleList([nn.Linear(2, 2)])
{before}
run_main(lambda: devices.place(layers, list(layers), "cpu", "float32", "{option}"))
print(devices.compiles("{option}", "cpu"), layers[0]._compiled_call_impl is not None)
"""


def placed(option: str, before: str = "", **env) -> tuple[int, str, str]:
    command = [sys.executable, "-c", PLACE.format(option=option, before=before)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_a_compiler_is_used():
    """A real process compiles an addition; the layer itself is compiled when it is first called."""
    assert placed("yes", PATH="/usr/bin:/bin")[:2] == (
        0,
        "True True\n",
    )  # PyTorch itself may warn of a lack of CUDA


def test_without_a_compiler_yes_is_refused():
    status, said, error = placed("yes", PATH="/nowhere")
    assert (status, said) == (2, "") and error.count("\n") == 1
    assert (
        error.startswith("error: --compile yes cannot be used here: ")
        and "No working C++ compiler found" in error
    )


def test_without_a_compiler_auto_goes_on_with_a_note():
    """Where a GPU would be: "auto" is told that it is to compile on a CPU, which has no compiler
    here."""
    before = "devices.chosen = lambda option, device: option == 'auto'"
    status, said, error = placed("auto", before, PATH="/nowhere")
    assert (status, said) == (0, "False False\n")
    assert (
        error.startswith("note: the layers are not compiled, which would be faster: ")
        and error.count("\n") == 1
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_does_not_compile():
    assert devices.why_not_compiled("cuda") and not devices.compiles("auto", "cuda")
