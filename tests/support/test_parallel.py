"""Several processes that work as one: tests/two_processes.py says what they do.

tests/test_distributed.py trains in such processes.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import ROOT
from torch.distributed import TCPStore

from support import parallel
from support.errors import InputError

PROGRAM = str(ROOT / "tests" / "two_processes.py")


@pytest.fixture
def started(forks):
    """What two processes end in that torchrun has started for the n-th time: started(n, task).

    torchrun's own store is there at each start, with what is left from the starts before.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    names |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    names |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
    names |= {"TORCH_CPP_LOG_LEVEL": "FATAL"}

    def started(start: int, task: str, folder) -> list[subprocess.CompletedProcess]:
        def one(rank: int) -> subprocess.CompletedProcess:
            which = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = os.environ | names | which | {"TORCHELASTIC_RESTART_COUNT": str(start)}
            return forks.run([PROGRAM, task, str(folder)], cwd=ROOT, env=environment, timeout=60)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    yield started
    del store  # till here it is kept


def test_two_processes_do_what_pytorch_does(tmp_path):
    """Under torchrun itself. Gradients are those of DistributedDataParallel; values travel; the
    first process alone prints."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [sys.executable, *torchrun, PROGRAM, "work", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0 says this\n0 prints this\n"), done.stderr
    assert (tmp_path / "made").read_text() == "by 0\n"


def test_an_error_of_all_processes_is_one_line_and_others_are_all_seen(started, tmp_path):
    ended = started(0, "refuse", tmp_path)
    assert [process.returncode for process in ended] == [2, 2]
    said = [process.stderr for process in ended]
    assert sorted(said) == ["", f"error: {tmp_path}: no such file\n"]
    said = [process.stderr for process in started(1, "refuse", tmp_path / "none")]
    assert said == ["error: no such file 0\n", "error: no such file 1\n"]


def test_a_lost_process_is_one_line_and_a_restart_finds_the_new_ones(started, tmp_path):
    """torchrun's store still has the addresses of the lost ones."""
    first, second = started(0, "go_on_after_losses", tmp_path)
    assert (first.returncode, second.returncode) == (2, -9)
    assert first.stderr == f"error: {parallel.LOST}\n" and not first.stdout
    with pytest.raises(subprocess.TimeoutExpired):  # so it says of SIGALRM
        started(1, "go_on_after_losses", tmp_path)
    first, second = started(2, "go_on_after_losses", tmp_path)
    assert (first.returncode, first.stdout, first.stderr) == (0, "whole in start 2\n", "")
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_an_error_of_nccl_is_no_lost_process_unless_it_says_so(monkeypatch):
    monkeypatch.setattr(parallel, "SIZE", 2)
    head = "NCCL error in: ProcessGroupNCCL.cpp:3690, invalid usage, NCCL version 2.29.7\n"
    duplicate = "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000"
    exited = (
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exited"
    )
    distributed = torch.distributed
    for error, line in (
        (distributed.DistBackendError(head + duplicate), f"their GPUs together: {duplicate}$"),
        (distributed.DistBackendError(head + exited), "^another process of this run was lost"),
        (RuntimeError("Connection closed by peer"), "^another process of this run was lost"),
    ):
        with pytest.raises(InputError, match=line):
            parallel.collective(raise_error, error)
    for error in torch.AcceleratorError("CUDA error: misaligned address"), MemoryError():
        with pytest.raises(type(error)):
            parallel.collective(raise_error, error)


def raise_error(error: Exception) -> None:
    raise error


def test_in_one_process_nothing_happens(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    parallel.start()
    tensor = torch.arange(3.0)
    parameter = torch.nn.Parameter(torch.ones(2))
    assert (parallel.RANK, parallel.SIZE, parallel.is_first()) == (0, 1, True)
    assert parallel.own_part([1, 2, 3]) == [1, 2, 3]
    assert parallel.all_sum(tensor) is tensor
    parallel.sum_gradients([parameter], tensor[1])
    assert tensor[1] == 1 and parameter.grad is None
    assert parallel.all_max(3, -1) == [3, -1]
    assert parallel.broadcast("é") == parallel.broadcast(lambda: "é") == "é"
    assert parallel.broadcast_tensors([tensor]) == [tensor]
    parallel.same_everywhere("x")
    parallel.barrier()
    with pytest.raises(ZeroDivisionError):
        parallel.broadcast(lambda: 1 / 0)
