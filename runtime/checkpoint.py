"""A run's state as one file, exactly: tensors, random states, and in the header plain values.

The file is replaced whole. Its hash is checked before anything in it is believed.
"""

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from support import errors, files, hub, options, parallel
from support.errors import InputError

# What these name is hashed: the same in another place, or by another name, is the same.
SOURCES = ("model", "data", "init_adapter", "text_columns", "label_column", "label_names")
CODE = ("bert.py", "lora.py", "data.py", "train.py")
GENERATORS = {"cpu": torch, "cuda": torch.cuda, "mps": torch.mps}  # of random numbers


# What a run is.


def identify(setup) -> dict:
    """What must be the same for a run to go on, as it comes to on this device."""
    config = setup.config
    placement = setup.placement
    identity = options.deciding(config)
    for name in SOURCES:
        del identity[name]
    identity["device"] = placement.device.type
    identity["dtype"] = "bfloat16" if placement.bfloat16 else "float32"
    identity["compile"] = "yes" if placement.compiled else "no"
    identity["metric"] = setup.task.metric
    identity["classes"] = [*setup.model.config.id2label.values()]
    files_of_base = ["config.json", "model.safetensors"]
    files_of_adapter = ["adapter_config.json", "adapter_model.safetensors"]
    identity["contents of --model"] = hash_files(config.model, files_of_base)
    identity["contents of --init-adapter"] = hash_files(config.init_adapter, files_of_adapter)
    splits = [setup.train_set, setup.validation_set, setup.mismatched_set]
    identity["contents of --data"] = [hash_arrays(vars(split)) for split in splits if split]
    return identity


def hash_files(name: str, filenames: list[str]) -> list[str]:
    hashes = []
    for filename in filenames if name else []:
        with open(hub.folder(name) / filename, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes


def hash_arrays(values: dict) -> str:
    """A hash of the tensors and arrays among the values, by name."""
    sha256 = hashlib.sha256()
    for name, value in sorted(values.items()):
        if isinstance(value, Tensor | np.ndarray):
            array = torch.as_tensor(value).cpu().contiguous().numpy()
            sha256.update(f"{name} {array.shape}".encode())
            sha256.update(array)
    return sha256.hexdigest()


def hash_code(path: Path) -> str:
    """A hash of what a file does: comments, docstrings and blanks do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        has_body = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has_body and ast.get_docstring(node):
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def describe(setup) -> dict:
    """A run's identity, and what may change from one start to the next, and is said then."""
    root = Path(__file__).parent.parent
    return {
        "identity": identify(setup),
        "threads": torch.get_num_threads(),
        "processes": parallel.SIZE,
        "code": {name: hash_code(root / name) for name in CODE},
    }


def refuse_another_run(path: Path, former: dict, identity: dict, config) -> None:
    """Raises InputError, naming the first thing in which the `former` identity was another.

    More epochs may be asked for. An option that there was not yet had its default.
    """
    for name in [*identity, *(former.keys() - identity.keys())]:
        before = former.get(name, getattr(type(config), name, None))
        value = identity.get(name)
        if before == value or (name == "epochs" and before < value):
            continue
        what = f"{name} {before!r}, not {value!r}"
        if name.startswith("contents"):
            what = f"other {name}"
        raise InputError(f"{path}: that run was started with {what}; give another --out")


def changes(former: dict, now: dict) -> list[str]:
    """A line on each thing that is different now, where a run goes on all the same."""
    lines = []
    before = former["processes"]
    if before != now["processes"]:
        same = "the same steps on the same sentences, but not the same bytes"
        lines.append(f"the number of processes is {now['processes']}, and was {before}: {same}")
    before = former["threads"]
    if before != now["threads"] and now["identity"]["device"] == "cpu":
        same = f"OMP_NUM_THREADS={before} would give the same bytes as a run that never stopped"
        lines.append(f"the number of CPU threads is {now['threads']}, and was {before}: {same}")
    before = former["identity"]["epochs"]
    epochs = now["identity"]["epochs"]
    if before != epochs:
        rate = "the learning rate's line is drawn anew over all steps, so that the rate goes up"
        lines.append(f"{epochs} epochs instead of {before}: {rate} here")
    edited = [name for name in CODE if former["code"].get(name) != now["code"][name]]
    if edited:
        names = " and ".join(edited)
        lines.append(f"the code of {names} was edited since: from here on the run is another one")
    return lines


# The file.


def run_tensors(trained: dict[str, Tensor], optimizer: Optimizer) -> dict[str, Tensor]:
    """The very tensors that a run consists of: parameter.NAME, exp_avg.NAME, step.NAME, …"""
    tensors = {}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        if not state:  # before the first step: what AdamW itself begins with
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        tensors[f"parameter.{name}"] = parameter.detach()
        tensors |= {f"{kind}.{name}": tensor for kind, tensor in state.items()}
    return tensors


def random_states(device: str) -> dict[str, Tensor]:
    """The states of this device's generators in all processes: random.cpu.0, random.cpu.1, …"""
    states = {}
    for kind in generators(device):
        gathered = parallel.all_gather(GENERATORS[kind].get_rng_state())
        for rank, state in enumerate(gathered):
            states[f"random.{kind}.{rank}"] = state
    return states


def generators(device: str) -> list[str]:
    return ["cpu"] if device == "cpu" else ["cpu", device]


def write(path: Path, metadata: dict, tensors: dict[str, Tensor]) -> None:
    """The `metadata` are plain values."""
    text = json.dumps(metadata)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = {"metadata": text, "sha256": digest(text, tensors)}
    path.parent.mkdir(exist_ok=True)
    with files.written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, header))


def digest(metadata: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256((metadata + hash_arrays(tensors)).encode()).hexdigest()


def read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """What write was given, in all processes, out of the file that the first one sees.

    Raises InputError for a damaged file.
    """
    content = np.empty(0, np.uint8)
    if parallel.is_first():
        content = np.fromfile(path, np.uint8)
    (size,) = parallel.all_max(len(content))
    content = torch.from_numpy(np.resize(content, size))
    parallel.broadcast_tensors([content])
    content = content.numpy().tobytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")  # the header's size comes first
        header = json.loads(content[8:start])["__metadata__"]
        tensors = load(content)
        if header["sha256"] != digest(header["metadata"], tensors):
            raise ValueError("another hash")
        return json.loads(header["metadata"]), tensors
    except Exception as error:
        if errors.is_out_of_memory(error):
            raise
        again = f"rm -r {path.parent.parent}, or give another --out"
        raise InputError(f"{path}: not a whole checkpoint; {again}") from error


@torch.no_grad()
def restore(path: Path, now: dict, config, tensors: dict[str, Tensor]) -> dict:
    """Copies what was saved into `tensors` and the generators, and returns its metadata.

    Raises InputError for a file that is damaged or another run's, before anything is changed.
    """
    metadata, saved = read(path)
    refuse_another_run(path, metadata["identity"], now["identity"], config)
    shapes = {name: saved[name].shape for name in saved if not name.startswith("random.")}
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise InputError(f"{path}: that run trained other parameters; give another --out")
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
    for kind in generators(now["identity"]["device"]):
        state = saved.get(f"random.{kind}.{parallel.RANK}")
        if state is not None:
            GENERATORS[kind].set_rng_state(state)
    return metadata
