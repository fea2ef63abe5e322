"""Two processes that work as one, which tests/support/test_parallel.py starts: a task below.

torchrun --nproc-per-node 2 tests/two_processes.py TASK FOLDER
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import parallel
from support.errors import InputError, run_main, say


def compare_with_pytorch(folder: Path) -> None:
    """Gradients are those of DistributedDataParallel; a silent process adds zeros."""
    torch.manual_seed(0)
    layer, x = nn.Linear(7, 5), torch.randn(2, 11, 7)
    theirs = DistributedDataParallel(nn.Linear(7, 5))
    theirs.module.load_state_dict(layer.state_dict())
    mine = x[parallel.RANK]
    theirs(mine).square().sum().backward()
    loss = layer(mine).square().sum()
    (loss / 2).backward()  # DistributedDataParallel takes the mean over the processes
    total = loss.detach().clone()
    parallel.sum_gradients([*layer.parameters()], total)
    for ours, other in zip(layer.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(total, layer(x).square().sum(), rtol=1e-6, atol=0)
    silent = nn.Linear(3, 2)
    if parallel.RANK == 1:
        silent(torch.ones(1, 3)).sum().backward()
    parallel.sum_gradients([*silent.parameters()], torch.zeros(()))
    assert silent.weight.grad.eq(1).all() and silent.bias.grad.eq(1).all()


def exchange(folder: Path) -> None:
    """Tensors and values of every kind."""
    rank = parallel.RANK
    assert parallel.SIZE == parallel.LOCAL_SIZE == 2
    assert parallel.own_part([*range(5)]) == [[0, 2, 4], [1, 3]][rank]
    assert parallel.all_max(rank, -rank, 7 - 2**62 * rank) == [1, 0, 7]
    assert parallel.all_sum(torch.full((3,), rank + 0.5)).tolist() == [2, 2, 2]
    doubles = parallel.all_sum(torch.full((2,), rank + 2.0**-40, dtype=torch.float64))
    assert doubles.tolist() == [1 + 2.0**-39] * 2
    tensors = [torch.full((3,), rank), torch.full((2, 2), rank, dtype=torch.bfloat16)]
    assert parallel.broadcast_tensors(tensors) is tensors
    assert not any(tensor.any() for tensor in tensors)
    parallel.barrier()

    def make():
        with open(folder / "made", "a") as file:
            file.write(f"by {rank}\n")
        return {"é": [rank, None, 1.5, "😀"]}

    assert parallel.broadcast(make) == {"é": [0, None, 1.5, "😀"]}
    assert parallel.broadcast([rank]) == [0] and parallel.broadcast("") == ""
    parallel.same_everywhere("the same")
    say(f"{rank} says this")
    print(f"{rank} prints this")


def fail(folder: Path) -> None:
    """What differs is refused by all; where the first fails, the others end quietly."""

    def make():
        raise InputError("a.csv: no such file")

    problem = "the processes were given other options, weights or data; give all of them the same"
    try:
        parallel.same_everywhere(f"rank {parallel.RANK}")
    except InputError as error:
        assert str(error) == problem
    else:
        raise AssertionError
    try:
        parallel.broadcast(make)
    except InputError as error:
        assert (parallel.RANK, str(error)) == (0, "a.csv: no such file")
    except SystemExit as stop:
        assert (parallel.RANK, stop.code) == (1, 2)
    else:
        raise AssertionError


def work(folder: Path) -> None:
    parallel.start()
    compare_with_pytorch(folder)
    exchange(folder)
    fail(folder)


def refuse(folder: Path) -> None:
    """All find the same fault, and then each another one."""
    parallel.start()
    if folder.exists():
        raise InputError(f"{folder}: no such file")
    raise InputError(f"no such file {parallel.RANK}")


def go_on_after_losses(folder: Path) -> None:
    """One process is killed: in the first start at work, in the second before it has joined."""
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    second = os.environ["RANK"] == "1"
    if start == 1 and second:
        os.kill(os.getpid(), signal.SIGKILL)
    if start == 1:
        signal.alarm(1)  # as torchrun ends those whose peer is lost
    if start == 2 and not second:
        time.sleep(0.5)  # until then the second sees nothing but what lost processes have left
    parallel.start()
    for step in range(5):
        if step == 3 and start == 0 and second:
            os.kill(os.getpid(), signal.SIGKILL)
        assert parallel.all_sum(torch.ones(1)) == 2
    assert parallel.broadcast(parallel.RANK) == 0
    say(f"whole in start {start}")


TASKS = {"work": work, "refuse": refuse, "go_on_after_losses": go_on_after_losses}


def main() -> None:
    task, folder = sys.argv[1:]
    TASKS[task](Path(folder))


if __name__ == "__main__":
    run_main(main)
