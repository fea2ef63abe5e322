"""What a CUDA device does, where there is none: devices, types and waiting of a training step.

The tests that are marked `cuda` need a real one; `make gpu` runs them first.
"""

import ast
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

import train
from runtime import graphs

SOURCE = ROOT / "tests" / "fake_cuda.cpp"
GIVEN = {  # capability, --dtype: the type of the products, and whether the loss is scaled
    ("7", "auto"): "torch.float16 True",
    ("8", "auto"): "torch.bfloat16 False",
    ("9", "float32"): "torch.float32 False",
}


@pytest.fixture(scope="module")
def fake_cuda(tmp_path_factory) -> Path:
    """A library that makes a CPU build of PyTorch believe in one CUDA device."""
    if torch.cuda.is_available():
        pytest.skip("a real GPU is there")
    if sys.platform != "linux" or not shutil.which("g++"):
        pytest.skip("needs Linux and g++")
    library = tmp_path_factory.mktemp("fake-cuda") / "fake_cuda.so"
    torch_folder = Path(torch.__file__).parent
    folders = [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}"]
    linked = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    flags = ["-std=c++20", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run(["g++", str(SOURCE), *flags, *folders, *linked], check=True, timeout=300)
    return library


def run_fake(fake_cuda: Path, *words: object) -> list[str]:
    command = [sys.executable, "tests/on_fake_cuda.py", *map(str, words)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"LD_PRELOAD": str(fake_cuda), "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_step_on_cuda_mixes_no_devices_and_waits_for_nothing(fake_cuda, tiny, some_reviews):
    """FakeTensorMode refuses a tensor on another device and a number that the GPU would have to
    be asked for. A step sends the numbers of its rows, without waiting; the answers to all
    batches come back at once."""
    said = run_fake(fake_cuda, tiny, some_reviews, *itertools.chain(*GIVEN))
    rows = {("cpu to cuda", False): 1}
    for number, computes in enumerate(GIVEN.values()):
        first, *steps, last = said[5 * number : 5 * number + 5]
        assert first == computes
        assert [ast.literal_eval(line) for line in steps] == [rows] * 3
        batches, _, copies = last.partition(" ")
        answers = {("cpu to cuda", False): int(batches), ("cuda to cpu", True): 1}
        assert int(batches) > 1 and ast.literal_eval(copies) == answers


# On a GPU.


def train_fifty_steps(device: str, tiny, some_reviews, recorded=False, **options) -> np.ndarray:
    common = {"max_length": 16, "batch_size": 8, "lr": 5e-3, "compile": "no", "device": device}
    setup = train.set_up(train.Config(str(tiny), str(some_reviews), **common | options))
    setup.train_set.always_mask = True
    if recorded:
        setup.model.forward = graphs.Recorded(setup.model)
        dtype = setup.placement.dtype
        setup.placement.autocast = torch.autocast("cuda", dtype, cache_enabled=False)
    setup.model.train()
    plan = train.plan_batches(setup.train_set.lengths, 8, seed=1, epoch=0)
    losses = []
    for step in range(50):
        loss_sum = train.train_step(setup, plan[step % len(plan)], step)
        losses.append(loss_sum / 8)
    if recorded:
        assert setup.model.forward.graphs  # it was no RuntimeError that made it plain
    return torch.stack(losses).cpu().numpy()


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "auto", "float16"])
def test_recorded_steps_are_the_plain_steps(tiny, some_reviews, dtype):
    """With dropout: a graph draws the random numbers that the plain lines draw."""
    plain, recorded = (
        train_fifty_steps("cuda", tiny, some_reviews, recorded, dtype=dtype)
        for recorded in (False, True)
    )
    assert np.abs(plain - recorded).max() < (1e-4 if dtype == "float32" else 2e-2)


@pytest.mark.cuda
@needs_gpu
def test_compiled_and_recorded_steps_train(tiny, some_reviews):
    losses = train_fifty_steps("cuda", tiny, some_reviews, compile="yes")
    assert np.isfinite(losses).all() and losses.std() > 0.01


@pytest.mark.cuda
@needs_gpu
def test_a_step_waits_for_nothing(tiny, some_reviews):
    config = train.Config(str(tiny), str(some_reviews), max_length=16, device="cuda", compile="no")
    setup = train.set_up(config)
    setup.model.train()
    rows = np.arange(32)
    for step in range(3):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one sets up
        train.train_step(setup, rows, step)
    torch.cuda.set_sync_debug_mode("default")
