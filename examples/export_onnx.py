"""An adapter in ONNX, the format that other languages and runtimes read.

    python -m examples.export_onnx out/best onnx    # leaves onnx/model.onnx, and what goes with it

The adapter is merged into its base first. torch.onnx follows one batch through the model and writes
down each product and sum that it meets; of LoRA nothing is left. The names of the files are those
of optimum, Hugging Face's library for ONNX, which opens the folder as it is.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from data import Encoded, encode, load_data, load_tokenizer, make_batch
from lora import merge_lora_weights, named_base, open_adapter
from runtime import fast
from runtime.adapters import copy_tokenizer, text_length
from support import files, hub
from support.errors import run_main
from support.offline import offline_pair
from support.options import OneLineParser

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class OnnxModel(nn.Module):
    """A file of ONNX, called as our models are: token ids (B, S) to logits (B, C)."""

    def __init__(self, path: Path, config):
        super().__init__()
        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # as many as our model has
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)

    def forward(self, input_ids: Tensor, mask=None, types=None) -> Tensor:
        feed = as_inputs(input_ids, mask, types)
        return torch.from_numpy(self.session.run(["logits"], feed)[0])  # (B, C)


def as_inputs(input_ids: Tensor, mask: Tensor | None, types: Tensor | None) -> dict:
    """What the graph takes, each (B, S)."""
    mask = torch.ones_like(input_ids) if mask is None else mask
    types = torch.zeros_like(input_ids) if types is None else types
    tensors = zip(INPUTS, (input_ids, mask, types), strict=True)
    return {name: tensor.long().numpy() for name, tensor in tensors}


def export(model: nn.Module, path: Path) -> None:
    """Writes a plain BERT as ONNX, for any B, and any S up to its positions."""
    for note in fast.rewrite(model, on_cpu=False):  # the last layer computes [CLS] alone
        print(f"note: {note}")
    sizes = {
        0: torch.export.Dim("B"),
        1: torch.export.Dim("S", max=model.config.max_position_embeddings),
    }
    batch = tuple(torch.ones(2, 8, dtype=torch.long) for _ in INPUTS)  # (B, S), the one to follow
    torch.onnx.export(
        model,
        batch,
        path,
        input_names=INPUTS,
        output_names=["logits"],
        dynamic_shapes=[sizes] * len(INPUTS),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


@torch.inference_mode()
def largest_difference(a: nn.Module, b: nn.Module, texts: Encoded) -> float:
    """Of the logits of two models, in padded batches of eight."""
    N = len(texts.lengths)
    differences = []
    for rows in np.split(np.arange(N), range(8, N, 8)):
        batch = make_batch(texts, rows)[:3]
        differences.append((a(*batch) - b(*batch)).abs().max().item())
    return max(differences)


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("adapter", help="a directory such as out/best, or a Hub repository")
    parser.add_argument("folder", type=Path, help="a new folder for the files")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # the exporter's remarks on its own workings
    with files.written_whole(given.folder, new=True) as folder:
        adapter = hub.folder(given.adapter)
        base = hub.folder(named_base(adapter))
        model = merge_lora_weights(open_adapter(adapter, base))
        folder.mkdir(parents=True)
        export(model, folder / "model.onnx")
        model.config.to_json(folder / "config.json", type(model).__name__)
        length = text_length(model.config, base)
        copy_tokenizer(base, folder, length)
        reviews = load_data(offline_pair()[1]).validation.texts
        tokenizer = load_tokenizer(base, length)
        exported = OnnxModel(folder / "model.onnx", model.config)
        difference = largest_difference(model, exported, encode(tokenizer, reviews))
    where = given.folder / "model.onnx"
    print(f"{where}: its logits of {len(reviews)} reviews are ours within {difference:.1e}")


if __name__ == "__main__":
    run_main(main)
