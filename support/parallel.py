"""Several processes that work as one, as torchrun starts them: sums over all, values of the first.

torch.distributed carries it; what is no tensor travels as JSON. In one process nothing is sent.
"""

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
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from support import errors
from support.errors import InputError, is_out_of_memory

RANK = 0  # which process this is
SIZE = LOCAL_SIZE = 1  # how many there are in all, and on this machine
LOST_FOR_NCCL = "remote process exited"
LOST = "another process of this run was lost; go on with --resume, from the last checkpoint"


def start() -> None:
    """Joins the other processes, where torchrun has started several. Only the first one prints."""
    global RANK, SIZE, LOCAL_SIZE
    if not distributed.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
    RANK, SIZE, LOCAL_SIZE, local_rank = (int(os.environ[name]) for name in names)
    if RANK:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    # One process may work much longer than another; a lost one is noticed at once all the same.
    patience: dict[str, Any] = {"timeout": datetime.timedelta(days=30)}
    store = next(distributed.rendezvous("env://", **patience))[0]
    store = distributed.PrefixStore(agree_on_name(store), store)
    distributed.init_process_group(backend, store=store, rank=RANK, world_size=SIZE, **patience)
    errors.shared_store = store


def agree_on_name(store) -> str:
    """A name that all processes of this start, and none of an earlier one, agree on.

    After torchrun's --max-restarts its store still says where the lost processes listened. So each
    process writes its own name under the first's, and goes on when that has answered.
    """
    mine = uuid.uuid4().hex
    if RANK == 0:
        store.set("name", mine)
        for rank in range(1, SIZE):
            other = store.get(f"{mine} {rank}").decode()
            store.set(other, mine)
        return mine
    while not store.check([mine]):
        name = store.get("name").decode()  # perhaps an earlier start's
        store.set(f"{name} {RANK}", mine)
        time.sleep(0.02)
    return store.get(mine).decode()


def collective(operation, *arguments) -> None:
    """Does what all processes do together.

    Raises InputError if one of them was lost, or if NCCL cannot use their GPUs together.
    """
    if SIZE == 1:
        return
    try:
        operation(*arguments)
    except RuntimeError as error:
        if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
            raise
        line = LOST
        if isinstance(error, distributed.DistBackendError) and LOST_FOR_NCCL not in str(error):
            reason = str(error).strip().splitlines()[-1]  # the first is a line of PyTorch's source
            line = f"the processes cannot use their GPUs together: {reason}"
        raise InputError(line) from error


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return RANK == 0


def own_part(items: Sequence) -> Sequence:
    """Those of the items that are this process's: of N processes every N-th."""
    return items[RANK::SIZE]


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, of one shape, in place."""
    collective(distributed.all_reduce, tensor)
    return tensor


def sum_gradients(parameters: list[Tensor], loss_sum: Tensor) -> None:
    """Adds all processes' gradients and losses up, in one message and in place.

    A process without a part of the batch has no gradients, which is zeros.
    """
    if SIZE == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    tensors = [*gradients, loss_sum]
    vector_to_parameters(all_sum(parameters_to_vector(tensors)), tensors)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def all_max(*values: int) -> list[int]:
    """The largest of all processes' values, each for itself. No GPU is waited for."""
    if SIZE == 1:
        return [*values]
    tensor = torch.tensor(values)
    collective(distributed.all_reduce, tensor, distributed.ReduceOp.MAX)
    return tensor.tolist()


def barrier() -> None:
    """Waits until all processes are here."""
    all_max(0)


def same_everywhere(text: str) -> None:
    """Raises InputError unless all processes, perhaps on several machines, give the same text."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    if all_max(number, -number) != [number, -number]:
        what = "other options, weights or data"
        raise InputError(f"the processes were given {what}; give all of them the same")


def broadcast_tensors(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, in place, as the first process has them."""
    for tensor in tensors:
        collective(distributed.broadcast, tensor, 0)
    return tensors


def broadcast(value):
    """The first process's value, of JSON's kinds; a function is called there alone.

    Where it fails, the first process raises the error, and the others end quietly.
    """
    text = b""
    try:
        if is_first():
            text = json.dumps(value() if callable(value) else value).encode()
    finally:
        (size,) = all_max(len(text))
    if not size:
        sys.exit(2)
    content = torch.frombuffer(bytearray(text or bytes(size)), dtype=torch.uint8)
    broadcast_tensors([content])
    return json.loads(content.numpy().tobytes())
