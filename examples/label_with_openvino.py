"""Labels a table by OpenVINO, which answers faster than PyTorch does on many CPUs.

    python -m examples.export_onnx out/best onnx
    python -m examples.label_with_openvino out/best onnx --file reviews.csv --out labelled.csv

All but the model is that of sample.py: what it reads and writes, its options for a table, and that
the same command goes on after a kill.
"""

from dataclasses import replace
from pathlib import Path

import openvino
import torch
from torch import Tensor, nn

from examples.export_onnx import as_inputs
from runtime import labelling, whole_table
from sample import open_model
from support.errors import InputError, run_main
from support.options import OneLineParser

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class OpenVinoModel(nn.Module):
    """A file of ONNX, called as our models are: token ids (B, S) to logits (B, C)."""

    def __init__(self, path: Path, config, dtype="float32"):
        super().__init__()
        self.config = config
        # In the state dict, by which labelling knows one model from another.
        content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        self.register_buffer("file", content)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # as many as our model has
            "INFERENCE_PRECISION_HINT": HINTS[dtype],
        }
        self.compiled = openvino.Core().compile_model(path, "CPU", settings)

    def forward(self, input_ids: Tensor, mask=None, types=None) -> Tensor:
        logits = self.compiled(as_inputs(input_ids, mask, types))["logits"]
        return torch.from_numpy(logits.copy())  # (B, C); the next batch would overwrite it


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("adapter", nargs=1, help="the adapter that was exported")
    parser.add_argument("folder", type=Path, help="where its model.onnx is")
    parser.add_argument("--file", help="a table, or texts, one a line")
    parser.add_argument("--dtype", choices=HINTS, default="float32", help="of the matrix products")
    whole_table.add_options(parser)
    parser.set_defaults(json=False)  # of sample.py's options it is not one here
    given = parser.parse_args()
    if whole_table.choose_work(given) is not labelling.label:
        raise InputError("this only labels: give --file and --out, and score with sample.py")
    path = given.folder / "model.onnx"
    if not path.is_file():
        raise InputError(f"{path}: is not there; python -m examples.export_onnx makes it")
    ours = open_model(given.adapter[0], merge=True, dtype=given.dtype)
    labelling.label(
        replace(ours, network=OpenVinoModel(path, ours.network.config, given.dtype)), given
    )


if __name__ == "__main__":
    run_main(main)
