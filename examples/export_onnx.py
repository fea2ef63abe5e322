"""An adapter in ONNX, the format that other languages and runtimes read: merged into its base,
exported, checked.

    python -m examples.export_onnx out/best onnx      # leaves onnx/model.onnx, and what belongs beside it

torch.onnx follows one batch through the model and writes down each product and sum that it meets;
of LoRA nothing is left. The names of the files are those of optimum, Hugging Face's library for
ONNX, which opens the folder as it is.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from data import Encoded, encode, load_task, load_tokenizer, make_batch
from lora import merge_lora_weights, open_adapter
from support import base_files
from support.console import run_main
from support.files import InputError
from support.offline import offline_pair
from support.options import OneLineParser

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class OnnxModel:
    """Called as `model` is, token ids (B, S) to logits (B, C), so that sample.py's classify takes
    it for one."""

    def __init__(self, path: Path, model: nn.Module):
        options, self.config, self.classifier = (
            onnxruntime.SessionOptions(),
            model.config,
            model.classifier,
        )
        options.intra_op_num_threads = torch.get_num_threads()  # as many as our model has
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, input_ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        mask = torch.ones_like(input_ids) if mask is None else mask  # (B, S)
        types = torch.zeros_like(input_ids) if types is None else types  # (B, S)
        feed = {
            name: t.long().numpy() for name, t in zip(INPUTS, (input_ids, mask, types), strict=True)
        }
        return torch.from_numpy(self.session.run(["logits"], feed)[0])  # (B, C)


def export(model: nn.Module, path: Path) -> None:
    """Writes a plain BERT as ONNX, for any B, and any S up to its positions."""
    free = {
        0: torch.export.Dim("B"),
        1: torch.export.Dim("S", max=model.config.max_position_embeddings),
    }
    batch = tuple(torch.ones(2, 8, dtype=torch.long) for _ in INPUTS)  # (B, S), the one to follow
    names = {
        "input_names": INPUTS,
        "output_names": ["logits"],
        "dynamic_shapes": [free] * len(INPUTS),
    }
    torch.onnx.export(model, batch, path, **names, dynamo=True, external_data=False, verbose=False)


def largest_difference(a, b, texts: Encoded) -> float:
    """Of the logits of two models, in padded batches of eight."""
    N = len(texts.lengths)
    batches = (
        make_batch(texts, rows, a.config.pad_token_id)[:3]
        for rows in np.split(np.arange(N), range(8, N, 8))
    )
    return max((a(*batch) - b(*batch)).abs().max().item() for batch in batches)


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapter", help="a directory such as out/best, or a Hub repository")
    parser.add_argument("folder", type=Path, help="where the files go")
    given = parser.parse_args()
    if given.folder.exists():
        raise InputError(f"{given.folder} is there already: remove it, or name another folder")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # the exporter's remarks on its own workings
    model = open_adapter(given.adapter)
    base, reviews = (
        model.lora_config["base_model_name_or_path"],
        load_task(offline_pair()[1]).validation.texts[0],
    )
    given.folder.mkdir(parents=True)
    export(merge_lora_weights(model), path := given.folder / "model.onnx")
    model.config.to_json(given.folder / "config.json", architectures=[type(model).__name__])
    base_files.copy_tokenizer(base, given.folder)
    texts = encode(load_tokenizer(base, model.config.max_position_embeddings), [reviews])
    off = largest_difference(model, OnnxModel(path, model), texts)
    print(f"{path}: its logits of {len(reviews)} reviews are ours within {off:.1e}")


if __name__ == "__main__":
    run_main(main)
