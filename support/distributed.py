"""Several processes that work as one, as torchrun starts them: sums over all, and what one does or says for all.

torch.distributed carries it, nccl between GPUs and gloo between CPUs. Values that are no tensors travel as JSON. In one
process nothing here does anything, and torch.distributed is not imported.
"""

import contextlib
import datetime
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from support.files import InputError, first_line, is_out_of_memory

RANK, SIZE = 0, 1  # which process this is, and how many there are
LOCAL_RANK, LOCAL_SIZE = 0, 1  # the same on this machine
STORE = None  # a table that all processes see
TABLE = None  # the same, as those see it too that torchrun starts after a loss (--max-restarts)
LOST = "another process of this run was lost; go on with --resume, from the last checkpoint"


def start() -> None:
    """Joins the other processes, where torchrun has started several."""
    global RANK, SIZE, LOCAL_RANK, LOCAL_SIZE, STORE, TABLE
    wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # torchrun's names
    if not {*wanted, "MASTER_ADDR"} <= os.environ.keys():
        return
    alone = os.environ["WORLD_SIZE"] == "1"
    if alone and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    from torch import distributed

    RANK, SIZE, LOCAL_RANK, LOCAL_SIZE = (int(os.environ[name]) for name in wanted)
    if RANK:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, one --help is enough
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(LOCAL_RANK % torch.cuda.device_count())
    patience = datetime.timedelta(
        days=30
    )  # one may work much longer than another; who is lost is noticed at once
    with carried():
        TABLE = next(distributed.rendezvous("env://", timeout=patience))[0]
        if alone:
            return
        STORE = distributed.PrefixStore(*agreed(TABLE))
        distributed.init_process_group(
            backend, store=STORE, rank=RANK, world_size=SIZE, timeout=patience
        )


def agreed(table) -> tuple:
    """A name that all processes of this start, and none of an earlier one, agree on; with torchrun's table.

    After a restart the table still says where the lost processes listened, which would be taken for the new ones.
    """
    mine = uuid.uuid4().hex
    if RANK == 0:
        table.set("name", mine)
        table.set(
            f"{mine} known",
            json.dumps([table.get(f"{mine} {rank}").decode() for rank in range(1, SIZE)]),
        )
        return mine, table
    while True:
        name = table.get(
            "name"
        ).decode()  # perhaps an earlier start's, where nobody waits for this process
        table.set(f"{name} {RANK}", mine)
        if table.check([f"{name} known"]) and mine in table.get(f"{name} known").decode():
            return name, table
        time.sleep(0.02)


def leave() -> None:
    """Ends one of several processes at once, with the status of the SystemExit at hand, or 0.

    On its usual way out PyTorch 2.13 now and then aborts after such work, which torchrun takes for a loss.
    """
    if SIZE > 1:
        stop = sys.exc_info()[1]
        for stream in sys.stdout, sys.stderr:
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(stop.code or 0 if isinstance(stop, SystemExit) else 0)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return RANK == 0


def options_after_restart() -> dict:
    """What torchrun --max-restarts means by starting the processes again, after one was lost: go on, if the run had
    begun. Where it was refused, which the first start has said, the same would follow: it ends."""
    if TABLE is None or largest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))) == [0]:
        return {}  # the largest, as only its machine counts a loss
    if TABLE.check(["refused"]):
        sys.exit(2)
    return {"resume": True, "overwrite": False} if TABLE.check(["begun"]) else {}


def note_begun() -> None:
    """Notes that --out is this run's, so that a restart may go on there."""
    if TABLE is not None:
        TABLE.set("begun", "")


def launcher() -> list[str]:
    """The words of a command line that start a program of as many processes."""
    if SIZE == 1:
        return [sys.executable]
    nodes = []
    if SIZE > LOCAL_SIZE:
        number = os.environ.get("GROUP_WORLD_SIZE", SIZE // LOCAL_SIZE)
        nodes = [f"--nnodes={number}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:29400"]
    return ["torchrun", *nodes, f"--nproc-per-node={LOCAL_SIZE}"]


def may_complain(error: BaseException) -> bool:
    """Whether no process has printed an error yet: the others' would be the same, or that one was lost.

    Notes an error that was foreseen, and no loss, for a restart, which would meet it again.
    """
    with contextlib.suppress(RuntimeError):  # whoever keeps the table is gone
        if TABLE is not None and isinstance(error, InputError) and str(error) != LOST:
            TABLE.set("refused", "")
        return STORE is None or STORE.add("errors", 1) == 1
    return is_first()


@contextlib.contextmanager
def carried():
    """Turns what a message to a lost process ends in into InputError."""
    try:
        yield
    except RuntimeError as error:
        raise error if is_out_of_memory(error) else InputError(LOST) from None


# The training.


def refuse_device(device: str) -> None:
    """Raises InputError for a device that cannot be shared out."""
    if SIZE > 1 and device == "mps":
        raise InputError("--device mps takes one process; start it without torchrun")
    if SIZE > 1 and device == "cuda" and 0 < (there := torch.cuda.device_count()) < LOCAL_SIZE:
        raise InputError(
            f"{LOCAL_SIZE} processes for {there} GPUs, and each takes one: --nproc-per-node {there}"
        )


def begin(identity: dict, parameters: list[Tensor], seed: int) -> None:
    """Makes all processes begin with the first's parameters, and each with random numbers of its own.

    Raises InputError unless all, perhaps on several machines, were given the same options, weights and data.
    """
    if SIZE == 1:
        return
    given = {
        name: value
        for name, value in identity.items()
        if name not in ("model", "data", "init_adapter")
    }
    number = int.from_bytes(hashlib.sha256(json.dumps(given, sort_keys=True).encode()).digest()[:7])
    if largest(number, -number) != [number, -number]:
        raise InputError(
            "the processes were given other options, weights or data; give all of them the same"
        )
    copied([parameter.detach() for parameter in parameters])
    draw_own(seed)


def draw_own(seed: int, step: int = 0) -> None:
    """Begins a stream of random numbers, seeded by (seed, rank, step), in each process but the first, which goes on."""
    if RANK:
        torch.manual_seed(
            int(np.random.SeedSequence([seed, RANK, step]).generate_state(1, np.uint64)[0])
        )


def share(items: list) -> list:
    """Those of the items that are this process's: of N processes every N-th."""
    return items[RANK::SIZE]


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, of one shape, in place."""
    if SIZE > 1:
        with carried():
            torch.distributed.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: list[Tensor], *counts: Tensor) -> list[Tensor]:
    """Adds all processes' gradients up, in one message of all, and returns the sums of the `counts`, scalars.

    A process without a part of the batch has no gradients, which is zeros.
    """
    if SIZE > 1:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = summed(torch.cat([part.flatten() for part in (*gradients, torch.stack(counts))]))
        *parts, counts = flat.split([*(p.numel() for p in parameters), len(counts)])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
    return list(counts)


def largest(*values: int) -> list[int]:
    """The largest of all processes' values, so that all do the same. Passes through CPUs: no GPU is waited for."""
    if SIZE == 1:
        return list(values)
    tensor = torch.tensor(values)
    with carried():
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return tensor.tolist()


def sums(array: np.ndarray) -> np.ndarray:
    """The sum of all processes' arrays of float64."""
    return summed(torch.from_numpy(array)).numpy()


def gathered(tensor: Tensor) -> list[Tensor]:
    """All processes' tensors, of one shape and type, on a CPU."""
    tensors = [torch.empty_like(tensor) for _ in range(SIZE)] if SIZE > 1 else [tensor]
    if SIZE > 1:
        with carried():
            torch.distributed.all_gather(tensors, tensor)
    return tensors


# What one does or says for all.


def from_first(make: Callable):
    """What make() returns in the first process, plain values as JSON has them; the others do not call it."""
    if SIZE == 1:
        return make()
    text = json.dumps(make()).encode() if RANK == 0 else b""
    size = summed(torch.tensor(len(text)))
    content = (
        torch.tensor([*text], dtype=torch.uint8)
        if RANK == 0
        else torch.empty(int(size), dtype=torch.uint8)
    )
    return json.loads(copied([content])[0].numpy().tobytes())


def copied(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors, in place, as the first process has them."""
    for tensor in tensors if SIZE > 1 else ():
        with carried():
            torch.distributed.broadcast(tensor, 0)
    return tensors


def tensors_from_first(
    make: Callable[[], tuple[dict, dict[str, Tensor]]],
) -> tuple[dict, dict[str, Tensor]]:
    """What make() returns in the first process, plain values and tensors on a CPU by name."""
    if SIZE == 1:
        return make()
    told, tensors = make() if RANK == 0 else ({}, {})
    kinds = {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in tensors.items()
    }
    told, kinds = from_first(lambda: [told, kinds])
    made = lambda name, shape, dtype: tensors.get(
        name, torch.empty(shape, dtype=getattr(torch, dtype))
    )
    return told, dict(
        zip(kinds, copied([made(name, *kind) for name, kind in kinds.items()]), strict=True)
    )


def once_a_machine(make: Callable[[], tuple]) -> tuple:
    """What make() returns: plain values, and a list of dictionaries of tensors, arrays and None. One process makes it
    for all on its machine, which have it out of one file, mapped into memory, so that it is there once."""
    if SIZE == 1:
        return make()
    key, folder = f"made on machine {os.environ.get('GROUP_RANK', '0')}", None
    try:
        if LOCAL_RANK == 0:
            told, parts = make()
            values = {
                f"{n}.{name}": value for n, part in enumerate(parts) for name, value in part.items()
            }
            shape = [
                told,
                [list(part) for part in parts],
                [n for n, v in values.items() if isinstance(v, np.ndarray)],
            ]
            folder = tempfile.mkdtemp(prefix="bert-lora-")
            tensors = {
                name: torch.as_tensor(value) for name, value in values.items() if value is not None
            }
            try:
                save_file(tensors, f"{folder}/made.safetensors", {"shape": json.dumps(shape)})
            except SafetensorError as error:
                raise InputError(
                    f"{folder}: {first_line(error)}; TMPDIR names another place"
                ) from None
            STORE.set(key, folder)
            del parts, values, tensors
        largest(0)  # until all are written
        with safe_open(f"{STORE.get(key).decode()}/made.safetensors", "pt") as file:
            (told, parts, arrays), found = json.loads(file.metadata()["shape"]), {*file.keys()}
            read = lambda name: (
                file.get_tensor(name).numpy() if name in arrays else file.get_tensor(name)
            )
            value = lambda name: read(name) if name in found else None
            parts = [{name: value(f"{n}.{name}") for name in part} for n, part in enumerate(parts)]
        largest(0)  # until all are opened
    finally:
        if folder:
            shutil.rmtree(folder)
    return told, parts
