"""Turns a pickle of PyTorch into safetensors, so that what has no other file can be opened.

python -m runtime.convert some/model           # model.safetensors beside its pytorch_model.bin
python -m runtime.convert some/adapter         # adapter_model.safetensors beside adapter_model.bin
python -m runtime.convert owner/name a/folder  # of the Hub: with its other files, in a new folder

A pickle can hold a program. No other program of this project reads one, and here
torch.load, with weights_only, reads tensors alone: it runs nothing, and refuses whatever asks for
more.
"""

import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bert import BertConfig, BertModel, read_weights
from lora import read_adapter_config
from support import errors, files, hub
from support.errors import InputError
from support.options import OneLineParser


def convert(source: str, target: str = "") -> None:
    """Writes the tensors of `source`, a directory or a Hub repository, as safetensors.

    `target` is a new folder, which gets the other files too; a directory needs none. Raises
    InputError for a file with anything but tensors, or with those of another model.
    """
    folder = hub.folder(source, pickles=True)
    if not target and not Path(source).is_dir():
        raise InputError(f"{source}: is on the Hub; name a new folder for what is converted, too")
    is_adapter = (folder / "adapter_config.json").is_file()
    name, pickled = hub.WEIGHTS[is_adapter]
    state = read_tensors(folder / pickled)
    with files.written_whole(target or folder / name, new=True) as temporary:
        weights = temporary / name if target else temporary
        if target:
            temporary.mkdir()
            for other in (*hub.MODEL_FILES, "README.md"):
                if (folder / other).is_file():
                    shutil.copyfile(folder / other, temporary / other)
        save_file(state, weights, {"format": "pt"})
        try:
            check(folder, weights, is_adapter)
        except ValueError as error:
            raise InputError(str(error).replace(str(weights), str(folder / pickled))) from error
    errors.say(f"wrote {Path(target or folder, name)}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a pickle by name, each in memory of its own."""
    with errors.reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old and new forms of the file
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            if type(error).__name__ != "UnpicklingError":
                raise
            problem = "is not a file of tensors alone, and nothing of it was run"
            raise InputError(f"{path}: {problem}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # other programs save more beside it
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds no tensors by name, but a {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(f"{path}: {name!r:.60} is no plain tensor")
    # Two names may share their numbers, as a tied decoder does, but not a thousand.
    if sum(tensor.nbytes for tensor in state.values()) > 4 * path.stat().st_size:
        raise InputError(f"{path}: says that it holds more numbers than it does")
    return {str(name): tensor.detach().clone().contiguous() for name, tensor in state.items()}


def check(folder: Path, weights: Path, is_adapter: bool) -> None:
    """Raises ValueError for tensors without the names and shapes that the folder's config means."""
    if is_adapter:
        rank = read_adapter_config(folder)["r"]
        tensors = load_file(weights).items()
        if {len(tensor) for name, tensor in tensors if "lora_A" in name} != {rank}:
            raise ValueError(f"{weights}: its tensors are not of rank {rank}")
    else:
        wanted = BertModel(BertConfig.from_json(folder / "config.json")).state_dict()
        lacking = wanted.keys() - read_weights(weights, wanted).keys()
        if lacking - {"pooler.dense.weight", "pooler.dense.bias"}:
            raise ValueError(f"{weights}: lacks {min(lacking)}")


def main() -> None:
    parser = OneLineParser(prog="python -m runtime.convert", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("source", help="a directory, or a Hub repository")
    add("target", nargs="?", default="", help="a new folder (default: into the directory)")
    given = parser.parse_args()
    convert(given.source, given.target)


if __name__ == "__main__":
    errors.run_main(main)
