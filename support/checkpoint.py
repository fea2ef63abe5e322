"""A run's state as one file, exactly: its tensors by name, the random state, and in the header plain values.

The file is replaced whole. Its hash is checked before anything in it is believed, and everything in it before
anything is changed, so that a damaged file, or another run's, costs one clear line.
"""

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from support import distributed
from support.files import InputError, is_out_of_memory, write_tensors
from support.hub import find_file
from support.progress import Progress

# Where a run reads from. What it reads is hashed: the same read in another place, or by another name, is the same.
SOURCES = ("model", "data", "init_adapter", "text_columns", "label_column", "label_names")


def fingerprint(model: str, adapter: str, splits: list[dict]) -> str:
    """One hash of what a run is started with: a base, an adapter or "", and splits of data, each as tensors, arrays
    and None by name, on a CPU."""
    files = [find_file(model, "config.json"), find_file(model, "model.safetensors")]
    if adapter:
        files += [
            find_file(adapter, "adapter_config.json"),
            find_file(adapter, "adapter_model.safetensors"),
        ]
    sha256 = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            sha256.update(hashlib.file_digest(file, "sha256").digest())
    for name, values in (
        (name, values) for split in splits for name, values in split.items() if values is not None
    ):
        sha256.update(f"{name} {len(values)}".encode())
        sha256.update(memoryview(values.numpy() if isinstance(values, Tensor) else values))
    return sha256.hexdigest()


def random_states(on_cuda: bool) -> dict[str, Tensor]:
    """The states of all processes' generators: random.cpu.0, random.cpu.1, … and random.cuda.0, …"""
    states = {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state()} if on_cuda else {}
    )
    gathered = {kind: distributed.gathered(state) for kind, state in states.items()}
    return {
        f"random.{kind}.{rank}": state
        for kind, every in gathered.items()
        for rank, state in enumerate(every)
    }


def digest(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """What a checkpoint is checked by before anything in it is believed."""
    sha256 = hashlib.sha256(f"{header['identity']}\n{header['progress']}".encode())
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(tensors[name].cpu().contiguous().numpy())
    return sha256.hexdigest()


class Checkpoint:
    """The file that keeps a run's state: trained parameters by name, what AdamW knows of each, the random state.

    `identity` is what must be the same for a run to go on from here. A new one is due after `every` steps, or for 0 as
    often as a hundredth of the time allows.
    """

    def __init__(
        self,
        path: Path,
        identity: dict,
        every: int,
        trained: dict[str, Tensor],
        optimizer: Optimizer,
    ):
        self.path, self.identity, self.every = path, identity, every
        self.trained, self.optimizer = trained, optimizer
        self.on_cuda = any(parameter.is_cuda for parameter in trained.values())
        self.saved, self.cost = time.perf_counter(), 0.0
        self.notes: list[str] = []  # what load() found to be another than it was, and went on with

    def tensors(self) -> dict[str, Tensor]:
        """The very tensors that a run consists of: parameter.NAME, exp_avg.NAME, exp_avg_sq.NAME, step.NAME."""
        tensors = {}
        for name, parameter in self.trained.items():
            state = self.optimizer.state[parameter]
            if not state:  # before the first step: what AdamW itself begins with
                moments = {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
                state |= {"step": torch.zeros((), device=parameter.device), **moments}
            tensors[f"parameter.{name}"] = parameter.detach()
            tensors |= {f"{kind}.{name}": tensor for kind, tensor in state.items()}
        return tensors

    def due(self, step: int) -> bool:
        if self.every:
            return step % self.every == 0
        return distributed.is_first() and time.perf_counter() - self.saved > max(
            20.0, 100 * self.cost
        )

    def save(self, progress: Progress) -> None:
        begun = time.perf_counter()
        tensors = random_states(self.on_cuda) | self.tensors()
        if not distributed.is_first():
            return
        identity = self.identity | {"threads": torch.get_num_threads(), "workers": distributed.SIZE}
        header = {"identity": json.dumps(identity), "progress": json.dumps(asdict(progress))}
        self.path.parent.mkdir(exist_ok=True)
        write_tensors(self.path, tensors, header | {"sha256": digest(header, tensors)})
        self.saved = time.perf_counter()
        self.cost = self.saved - begun

    @torch.no_grad()
    def load(self, steps: int) -> Progress:
        """Copies what was saved to where it came from, and returns the progress; `notes` says what became another.

        Raises InputError if the file is damaged, or was written by a run of another identity or of fewer `steps`.
        """
        try:
            header, found = distributed.tensors_from_first(self.read)
            progress = Progress(**json.loads(header["progress"]))
            then = json.loads(header["identity"])
            self.refuse_another_run(then)
            progress.check(steps)
            self.notes = self.changes(then)
            if ("random.cuda.0" in found) != self.on_cuda:
                there, here = ("a GPU", "a CPU") if "random.cuda.0" in found else ("a CPU", "a GPU")
                raise InputError(f"{self.path}: that run was on {there}, and this one is on {here}")
            states, tensors = (
                {name: found.pop(name) for name in [*found] if name.startswith("random.")},
                self.tensors(),
            )
            kinds = lambda tensors: {
                name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()
            }
            if kinds(found) != kinds(tensors) or len(states) != then["workers"] * (
                1 + self.on_cuda
            ):
                raise ValueError("other tensors")
            rank = distributed.RANK if then["workers"] > distributed.RANK else 0
            torch.set_rng_state(states[f"random.cpu.{rank}"])
            if self.on_cuda:
                torch.cuda.set_rng_state(states[f"random.cuda.{rank}"])
            if rank != distributed.RANK:
                distributed.draw_own(self.identity["seed"], progress.step)
        except (
            SafetensorError,
            OSError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"{self.path}: not a whole checkpoint; --overwrite starts anew"
            ) from None
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
        return progress

    def read(self) -> tuple[dict[str, str], dict[str, Tensor]]:
        """The header and the tensors, where the hash is right; else ValueError or another of those in load."""
        with safe_open(self.path, "pt") as file:
            header, found = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
        if header["sha256"] != digest(header, found):
            raise ValueError("another hash")
        return header, found

    def refuse_another_run(self, then: dict) -> None:
        """Raises InputError, naming the first thing that was another `then`; more epochs may be asked for."""
        names = [*self.identity, *(then.keys() - {*self.identity, "threads", "workers"})]
        differing = [name for name in names if then.get(name) != self.identity.get(name)]
        if "contents" not in differing:
            differing = [name for name in differing if name not in SOURCES]
        if "epochs" in differing and then["epochs"] < self.identity["epochs"]:
            differing.remove("epochs")
        if differing:
            first = differing[0]
            what = f"{first} {then.get(first)!r}, not {self.identity.get(first)!r}"
            what = "other weights or data" if first == "contents" else what
            raise InputError(
                f"{self.path}: that run was started with {what}; --overwrite starts anew"
            )

    def changes(self, then: dict) -> list[str]:
        """Lines on what is another than `then`, but does not keep the run from going on."""
        notes, threads, now = [], then["threads"], torch.get_num_threads()
        if then["workers"] != distributed.SIZE:
            notes.append(
                f"the number of processes is {distributed.SIZE}, and was {then['workers']} until here: the same steps "
                "on the same sentences, but not the same bytes, as other random numbers drop out and sums round"
            )
        if threads != now and not self.on_cuda:
            same = (
                f"OMP_NUM_THREADS={threads} would give the same bytes as a run that never stopped"
            )
            notes.append(
                f"the number of CPU threads is {now}, and was {threads} until here: {same}"
            )
        if then.get("epochs") != self.identity.get("epochs"):
            notes.append(
                f"{self.identity['epochs']} epochs instead of {then['epochs']}: the learning rate's line is drawn anew "
                "over all steps, so that the rate goes up here; not the same as so many epochs from the start"
            )
        return notes
