"""A run's state as one safetensors file: tensors, and in its header what else resuming takes.

Random numbers are not kept: those of a step are drawn from its number alone (Run.seed_step).
"""

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from runtime import run_folder
from support import errors, files, hub, parallel

# What these name is hashed: the same in another place, or by another name, is the same.
SOURCES = ("model", "data", "init_adapter", "text_columns", "label_column", "label_names")
FILES = ("config.json", "model.safetensors", *hub.ADAPTER_FILES)
CODE = ("bert.py", "lora.py", "data.py", "train.py")
CONSEQUENCES = {  # of what may change from one start of a run to the next
    "number of processes": "the same steps on the same sentences, but not the same bytes",
    "number of CPU threads": "a CPU gives the same bytes only with as many",
    "number of epochs": "the learning rate's line is drawn anew, so that the rate goes up here",
}
EDITED = "from here on the run is another one"


# What a run is.


def describe(setup) -> dict:
    """A run's identity, as it comes to on this device, and what may change, which is said then."""
    changing = {
        "number of processes": parallel.SIZE,
        "number of CPU threads": torch.get_num_threads(),
        "number of epochs": setup.config.epochs,
    }
    changing |= {f"code of {name}": hash_code(name) for name in CODE}
    return {"identity": identify(setup), "changing": changing}


def identify(setup) -> dict:
    config = setup.config
    placement = setup.placement
    splits = [setup.train_set, setup.validation_set, setup.mismatched_set]
    identity = run_folder.deciding(config)
    for name in SOURCES:
        del identity[name]
    return identity | {
        "device": placement.device.type,
        "dtype": "bfloat16" if placement.bfloat16 else "float32",
        "compile": "yes" if placement.compiled else "no",
        "metric": setup.task.metric,
        "classes": setup.task.names,
        "contents of --model": hash_files(config.model),
        "contents of --init-adapter": hash_files(config.init_adapter),
        "contents of --data": [hash_arrays(vars(split)) for split in splits if split],
    }


def hash_files(name: str) -> list[str]:
    """Hashes of the files of a model or an adapter; none of ""."""
    folder = hub.folder(name) if name else Path("nowhere")
    hashes = []
    for path in [folder / filename for filename in FILES]:
        if path.is_file():
            with open(path, "rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes


def hash_arrays(values: dict) -> str:
    """A hash of the tensors and arrays among the values, by name."""
    sha256 = hashlib.sha256()
    for name, value in sorted(values.items()):
        if isinstance(value, Tensor | np.ndarray):
            sha256.update(name.encode())
            sha256.update(torch.as_tensor(value).cpu().contiguous().numpy())
    return sha256.hexdigest()


def hash_code(name: str) -> str:
    """The first digits of a hash of what a file does: comments and blanks do not count."""
    path = Path(__file__).parent.parent / name
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:8]


def changes(former: dict, now: dict) -> list[str]:
    """A line on each thing that has changed since, where a run goes on all the same."""
    lines = []
    for name, value in now["changing"].items():
        before = former["changing"].get(name)
        if before != value:
            consequence = CONSEQUENCES.get(name, EDITED)
            lines.append(f"the {name} is {value}, and was {before}: {consequence}")
    return lines


# The file.


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


def write(path: Path, metadata: dict, tensors: dict[str, Tensor]) -> None:
    """Writes tensors and plain values."""
    header = {"metadata": json.dumps(metadata), "sha256": hash_arrays(tensors)}
    path.parent.mkdir(exist_ok=True)
    with files.written_whole(path) as temporary:
        save_file(tensors, temporary, header)


def restore(path: Path, now: dict, tensors: dict[str, Tensor]) -> dict:
    """Copies what was saved into `tensors`, and returns its metadata; {} if there is no file.

    Raises InputError for a file that is damaged, or of another run than what describe says `now`.
    """
    if not path.exists():
        return {}
    with errors.reading(path):
        with safe_open(path, "pt") as file:
            header = file.metadata()
            saved = {name: file.get_tensor(name) for name in file.keys()}
        if header["sha256"] != hash_arrays(saved):
            raise ValueError(f"{path}: is damaged; {run_folder.OTHER}")
        metadata = json.loads(header["metadata"])
        run_folder.refuse_another_run(path, metadata["identity"], now["identity"])
        if saved.keys() != tensors.keys():
            raise ValueError(f"{path}: that run trained other parameters; {run_folder.OTHER}")
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])
        return metadata
