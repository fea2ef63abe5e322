"""A run's state as one safetensors file: tensors, and in its header what else resuming takes.

Random numbers are not kept: each batch has its own, by its number (train.train_step).
"""

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from runtime import run_folder
from support import errors, files, hub, parallel
from support.errors import InputError

# What these come to is compared: the same in another place, or by another name, is the same.
INDIRECT = ["model", "data", "init_adapter", "text_columns", "label_column", "label_names"]
INDIRECT += ["device", "dtype", "compile"]
CODE = ("bert.py", "lora.py", "data.py", "train.py")
MAY_CHANGE = ("epochs", "patience", "number of", "device", "code of")  # and is said then


def describe(setup) -> dict:
    """What a run is, which is compared where it goes on."""
    place = setup.placement
    # The files, as the model may be in another type in memory.
    base = hash_file(hub.folder(setup.config.model) / "model.safetensors")
    adapter = ""
    if setup.config.init_adapter:
        adapter = hash_file(hub.folder(setup.config.init_adapter) / "adapter_model.safetensors")
    splits = (setup.train_set, setup.validation_set, setup.mismatched_set)
    facts = run_folder.deciding(setup.config)
    for name in INDIRECT:
        del facts[name]
    facts |= {
        "metric": setup.task.metric,
        "classes": setup.task.names,
        "contents of --model": base,
        "contents of --init-adapter": adapter,
        "contents of --data": [hash_arrays(vars(split)) for split in splits if split],
        "device, dtype, compiled": [place.device.type, str(place.dtype), place.compiled],
        "number of processes": parallel.SIZE,
        "number of CPU threads": torch.get_num_threads(),
    }
    return facts | {f"code of {name}": hash_code(name) for name in CODE}


def hash_file(path: Path) -> str:
    """The first digits of a file's hash."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def hash_arrays(values: dict) -> str:
    """The first digits of a hash of the tensors and arrays among the values, by name."""
    sha256 = hashlib.sha256()
    for name, value in sorted(values.items()):
        if isinstance(value, Tensor | np.ndarray):
            sha256.update(name.encode())
            array = torch.as_tensor(value).detach().cpu().flatten()
            sha256.update(array.view(torch.uint8).numpy())
    return sha256.hexdigest()[:16]


def hash_code(name: str) -> str:
    """The first digits of a hash of what a file does: comments and blanks do not count."""
    source = Path(__file__).parent.with_name(name).read_text(encoding="utf-8")
    return hashlib.sha256(ast.dump(ast.parse(source)).encode()).hexdigest()[:8]


def compare(path: Path, former: dict, now: dict) -> list[str]:
    """A line on each thing that has changed since. Raises InputError for what may not change."""
    effect = "from here on the bytes may be others than those of a run that never stopped"
    notes = []
    for name, value in now.items():
        before = former.get(name, value)  # there may be new options since
        if before != value and name.startswith(MAY_CHANGE):
            notes.append(f"{name}: {value}, and was {before}; {effect}")
        elif before != value:
            what = f"{name} {before!r}, not {value!r}"
            raise InputError(f"{path}: that run was started with {what}; {run_folder.OTHER}")
    return notes


def run_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The very tensors that a run changes: parameter.NAME, exp_avg.NAME, step.NAME, …"""
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            if not state:  # before the first step: what AdamW itself begins with
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            tensors[f"parameter.{name}"] = parameter.detach()
            tensors |= {f"{kind}.{name}": tensor for kind, tensor in state.items()}
    return tensors


def write(path: Path, facts: dict, progress: dict, tensors: dict[str, Tensor]) -> None:
    """Writes what describe says of a run, where it stands, and its tensors."""
    run = {"facts": facts, "progress": progress, "sha256": digest(progress, tensors)}
    header = {"run": json.dumps(run)}  # one entry: several would come in a random order
    path.parent.mkdir(exist_ok=True)
    with files.written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, header))  # save_file may leave a file of its own


def digest(progress: dict, tensors: dict[str, Tensor]) -> str:
    text = json.dumps(progress) + hash_arrays(tensors)
    return hashlib.sha256(text.encode()).hexdigest()


def restore(path: Path, facts: dict, tensors: dict[str, Tensor]) -> tuple[dict, list[str]]:
    """Copies what was written into `tensors`. Returns the progress, {} without a file, and notes.

    Raises InputError for a file that is damaged, or of a run of other `facts`.
    """
    if not path.exists():
        return {}, []
    with errors.reading(path):
        with safe_open(path, "pt") as file:
            run = json.loads(file.metadata()["run"])
            saved = {name: file.get_tensor(name) for name in file.keys()}
        if run["sha256"] != digest(run["progress"], saved):
            raise InputError(f"{path}: is damaged; {run_folder.OTHER}")
        notes = compare(path, run["facts"], facts)
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
        return run["progress"], notes
