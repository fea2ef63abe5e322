"""Two processes of torchrun that compare support/distributed.py with PyTorch's own;
test_distributed.py starts them."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import distributed

folder = Path(sys.argv[1])


def main() -> None:
    distributed.start()
    torch.manual_seed(0)
    layer, x = nn.Linear(7, 5), torch.randn(2, 11, 7)
    theirs = DistributedDataParallel(nn.Linear(7, 5))
    theirs.module.load_state_dict(layer.state_dict())
    mine = x[distributed.RANK]
    theirs(mine).square().sum().backward()
    loss = layer(mine).square().sum()
    (loss / 2).backward()  # DistributedDataParallel takes the mean over the processes
    total, count = distributed.sum_gradients(
        [*layer.parameters()], loss.detach(), torch.tensor(11.0)
    )
    for ours, other in zip(layer.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours.grad, other.grad, rtol=1e-6, atol=1e-7)
    assert count == 22 and torch.isclose(total, layer(x).square().sum(), rtol=1e-6)
    silent = nn.Linear(3, 2)  # a process without a part of the batch
    if distributed.RANK == 1:
        silent(torch.ones(1, 3)).sum().backward()
    distributed.sum_gradients([*silent.parameters()], torch.zeros(()))
    assert silent.weight.grad.eq(1).all() and silent.bias.grad.eq(1).all()

    def make() -> tuple:
        with open(folder / "read", "a") as file:
            file.write("once\n")
        return {"names": ["a", "b"]}, [
            {"ids": torch.arange(9), "starts": np.arange(4), "types": None},
            {},
        ]

    told, (first, second) = distributed.once_a_machine(make)
    assert told == {"names": ["a", "b"]} and second == {} and first["types"] is None
    assert torch.equal(first["ids"], torch.arange(9)) and np.array_equal(
        first["starts"], np.arange(4)
    )
    assert (
        "made.safetensors" in Path("/proc/self/maps").read_text()
    )  # one copy in memory, whoever reads it
    assert isinstance(first["starts"], np.ndarray)

    rank = distributed.RANK
    assert distributed.from_first(lambda: [rank, "é"]) == [0, "é"] and distributed.largest(
        rank, -rank
    ) == [1, 0]
    assert [int(tensor) for tensor in distributed.gathered(torch.tensor(rank))] == [0, 1]
    told, tensors = distributed.tensors_from_first(
        lambda: ({"rank": rank}, {"a": torch.full((3,), rank)})
    )
    assert told == {"rank": 0} and tensors["a"].tolist() == [0, 0, 0]
    assert distributed.sums(np.full(3, rank + 0.5)).tolist() == [2, 2, 2]


main()
os._exit(0)  # as distributed.leave()
