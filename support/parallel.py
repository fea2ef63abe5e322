"""Several processes that work as one, as torchrun starts them: sums over all, values of the first.

torch.distributed carries it, nccl between GPUs and gloo between CPUs; what is no tensor travels as
JSON. In one process nothing here does anything.
"""

import contextlib
import datetime
import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from support.errors import InputError, is_out_of_memory

RANK = LOCAL_RANK = 0  # which process this is, of all, and on this machine
SIZE = LOCAL_SIZE = 1  # how many there are
LOST = "another process of this run was lost; go on with --resume, from the last checkpoint"


@contextlib.contextmanager
def noticing_loss():
    """Turns what a message to a lost process ends in into InputError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise InputError(LOST) from error


def start() -> None:
    """Joins the other processes, where torchrun has started several. Only the first one prints."""
    global RANK, SIZE, LOCAL_RANK, LOCAL_SIZE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # torchrun's
    if not {*names, "MASTER_ADDR"} <= os.environ.keys() or os.environ["WORLD_SIZE"] == "1":
        return
    RANK, SIZE, LOCAL_RANK, LOCAL_SIZE = (int(os.environ[name]) for name in names)
    if RANK:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(LOCAL_RANK % torch.cuda.device_count())
    # One process may work much longer than another; a lost one is noticed at once all the same.
    patience: dict[str, Any] = {"timeout": datetime.timedelta(days=30)}
    with noticing_loss():
        store = next(distributed.rendezvous("env://", **patience))[0]
        store = distributed.PrefixStore(agree_on_name(store), store)
        distributed.init_process_group(backend, store=store, rank=RANK, world_size=SIZE, **patience)


def agree_on_name(store) -> str:
    """A name that all processes of this start, and none of an earlier one, agree on.

    After torchrun's --max-restarts its store still says where the lost processes listened. So each
    process shows itself under the first's name, and goes on when the first has seen it there.
    """
    mine = uuid.uuid4().hex
    if RANK == 0:
        store.set("name", mine)
        seen = [store.get(f"{mine} {rank}").decode() for rank in range(1, SIZE)]
        store.set(f"{mine} seen", " ".join(seen))
        return mine
    while True:
        name = store.get("name").decode()  # perhaps an earlier start's
        store.set(f"{name} {RANK}", mine)
        if store.check([f"{name} seen"]) and mine in store.get(f"{name} seen").decode():
            return name
        time.sleep(0.02)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return RANK == 0


def launcher() -> list[str]:
    """The words of a command line that start a program in as many processes."""
    machines = []
    if SIZE > LOCAL_SIZE:
        count = os.environ.get("GROUP_WORLD_SIZE", SIZE // LOCAL_SIZE)
        machines = [f"--nnodes={count}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:29400"]
    several = ["torchrun", *machines, f"--nproc-per-node={LOCAL_SIZE}"]
    return several if SIZE > 1 else [sys.executable]


def mine(items: Sequence) -> Sequence:
    """Those of the items that are this process's: of N processes every N-th."""
    return items[RANK::SIZE]


@noticing_loss()
def all_sum(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, of one shape, in place."""
    if SIZE > 1:
        distributed.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: list[Tensor], *counts: Tensor) -> list[Tensor]:
    """Adds all processes' gradients up, in one message, and returns the sums of scalar counts.

    A process without a part of the batch has no gradients, which is zeros.
    """
    if SIZE == 1:
        return list(counts)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts = [*gradients, torch.stack(counts)]
    flat = all_sum(torch.cat([part.flatten() for part in parts]))
    *sums, counts = flat.split([part.numel() for part in parts])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total.view_as(parameter)
    return list(counts)


@noticing_loss()
def all_gather(tensor: Tensor) -> list[Tensor]:
    """All processes' tensors, of one shape and type."""
    if SIZE == 1:
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(SIZE)]
    distributed.all_gather(tensors, tensor)
    return tensors


def all_max(*values: int) -> list[int]:
    """The largest of all processes' values, each for itself. No GPU is waited for."""
    return torch.stack(all_gather(torch.tensor(values))).amax(0).tolist()


def barrier() -> None:
    """Waits until all processes are here."""
    all_max(0)


def same_everywhere(text: str) -> None:
    """Raises InputError unless all processes, perhaps on several machines, give the same text."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    if all_max(number, -number) != [number, -number]:
        what = "other options, weights or data"
        raise InputError(f"the processes were given {what}; give all of them the same")


@noticing_loss()
def broadcast_tensors(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, in place, as the first process has them."""
    for tensor in tensors if SIZE > 1 else []:
        distributed.broadcast(tensor, 0)
    return tensors


def broadcast(value):
    """The first process's value, of JSON's kinds; a function is called there alone.

    Where it fails, the first process raises the error, and the others end quietly.
    """
    if SIZE == 1:
        return value() if callable(value) else value
    text = b""
    failure = None
    try:
        if is_first():
            text = json.dumps(value() if callable(value) else value).encode()
    except Exception as error:
        failure = error
    size = all_max(len(text))[0]
    if failure:
        raise failure
    if not size:
        sys.exit(2)
    content = torch.tensor([*(text or bytes(size))], dtype=torch.uint8)
    return json.loads(bytes(broadcast_tensors([content])[0].tolist()))
