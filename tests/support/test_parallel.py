"""Several processes that work as one, under torchrun: tests/two_processes.py says what they do.

tests/test_distributed.py trains in such processes.
"""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from support import parallel

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def torchrun(task: str, folder, *flags: str) -> tuple[int, str, list[str]]:
    """The exit status, the standard output, and the lines of our own errors."""
    words = [*TORCHRUN, *flags, str(ROOT / "tests" / "two_processes.py"), task, str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return done.returncode, done.stdout, errors


def test_two_processes_do_what_pytorch_does(tmp_path):
    """Gradients are those of DistributedDataParallel; values travel; the first alone prints."""
    assert torchrun("work", tmp_path) == (0, "0 says this\n0 prints this\n", [])
    assert (tmp_path / "made").read_text() == "by 0\n"


def test_a_lost_process_is_one_line_and_a_restart_finds_the_new_ones(tmp_path):
    """torchrun's store still has the addresses of the lost ones."""
    ended = torchrun("go_on_after_losses", tmp_path, "--max-restarts=2")
    assert ended == (0, "whole in start 2\n", [f"error: {parallel.LOST}"])


def test_in_one_process_nothing_happens(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    parallel.start()
    tensor = torch.arange(3.0)
    parameter = torch.nn.Parameter(torch.ones(2))
    assert (parallel.RANK, parallel.SIZE, parallel.is_first()) == (0, 1, True)
    assert parallel.mine([1, 2, 3]) == [1, 2, 3]
    assert parallel.all_sum(tensor) is tensor and parallel.all_gather(tensor)[0] is tensor
    assert parallel.sum_gradients([parameter], tensor[1]) == [1] and parameter.grad is None
    assert parallel.all_max(3, -1) == [3, -1]
    assert parallel.broadcast("x") == parallel.broadcast(lambda: "x") == "x"
    assert parallel.broadcast_tensors([tensor]) == [tensor]
    parallel.same_everywhere("x")
    parallel.barrier()
    assert parallel.launcher() == [sys.executable]
    with pytest.raises(ZeroDivisionError):
        parallel.broadcast(lambda: 1 / 0)


def test_the_command_to_go_on_names_all_machines(monkeypatch):
    """One machine of two processes; two machines, of two processes and of one."""
    monkeypatch.setattr(parallel, "SIZE", 2)
    monkeypatch.setattr(parallel, "LOCAL_SIZE", 2)
    assert parallel.launcher() == ["torchrun", "--nproc-per-node=2"]
    monkeypatch.setattr(parallel, "SIZE", 3)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert parallel.launcher() == [
        "torchrun",
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=HOST:29400",
        "--nproc-per-node=2",
    ]
