"""Turns a pickle of PyTorch into safetensors, so that what has no other file can be opened.

python -m runtime.convert some/model a/folder    # its pytorch_model.bin, and its other files
python -m runtime.convert some/adapter a/folder  # its adapter_model.bin, likewise
python -m runtime.convert owner/name a/folder    # one on the Hub

A pickle can hold a program. No other program of this project reads one, and here
torch.load, with weights_only, reads tensors alone: it runs nothing, and refuses whatever asks for
more.
"""

import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from support import errors, files, hub
from support.errors import InputError
from support.options import OneLineParser


def convert(source: str, target: str) -> None:
    """Writes a model or an adapter, a directory or a Hub repository, into the new folder `target`.

    Its tensors become safetensors, its other files are copied. Raises InputError for a file with
    anything but tensors. Whether they are those of a BERT is seen where the folder is opened.
    """
    folder = hub.folder(source, pickles=True)
    is_adapter = (folder / "adapter_config.json").is_file()
    name, pickled = hub.WEIGHTS[is_adapter]
    tensors = read_tensors(folder / pickled)
    with files.written_whole(target, new=True) as temporary:
        temporary.mkdir()
        for other in (*hub.MODEL_FILES, "README.md"):
            if (folder / other).is_file():
                shutil.copyfile(folder / other, temporary / other)
        save_file(tensors, temporary / name, {"format": "pt"})
    errors.say(f"wrote {Path(target, name)}")


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
        for name, tensor in state.items():
            is_plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
            # A view that repeats its numbers would fill the disk.
            if not is_plain or tensor.nbytes > tensor.untyped_storage().nbytes() or tensor.is_meta:
                raise InputError(f"{path}: {name!r:.60} is no plain tensor")
        return {str(name): tensor.detach().clone().contiguous() for name, tensor in state.items()}


def main() -> None:
    parser = OneLineParser(prog="python -m runtime.convert", description=__doc__)
    parser.add_argument("source", help="a directory, or a Hub repository")
    parser.add_argument("target", help="a new folder")
    given = parser.parse_args()
    convert(given.source, given.target)


if __name__ == "__main__":
    errors.run_main(main)
