"""The exported model in 8 bits, by ONNX Runtime's own tool; then size, accuracy and speed beside
sample.py.

    python -m examples.export_onnx out/best onnx
    python -m examples.onnx_int8 out/best onnx        # leaves onnx/model_quantized.onnx, and prints a table

A weight w becomes the integer nearest to w / s, from -127 to 127, with one s for each matrix. What
flows into a product is rounded so too, by a scale that is measured as it flows (dynamic
quantisation), so that no texts are needed beforehand. Integers are a quarter of the bytes to read,
and newer processors multiply four at a time.
"""

import logging
import time
from pathlib import Path
from statistics import median

from onnxruntime.quantization import QuantType, quantize_dynamic

from data import load_task, load_tokenizer
from examples.export_onnx import OnnxModel
from lora import merge_lora_weights, open_adapter
from sample import classify
from support.console import run_main
from support.files import InputError, written_whole
from support.hub import find_file
from support.offline import offline_pair
from support.options import OneLineParser


def quantise(folder: Path) -> Path:
    """Writes model_quantized.onnx beside model.onnx: optimum's name."""
    if not (folder / "model.onnx").is_file():
        raise InputError(
            f"{folder}: has no model.onnx; make it with python -m examples.export_onnx"
        )
    with written_whole(folder / "model_quantized.onnx") as path:
        quantize_dynamic(folder / "model.onnx", path, weight_type=QuantType.QInt8)
    return folder / "model_quantized.onnx"


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapter", help="the adapter that was exported")
    parser.add_argument("folder", type=Path, help="where its model.onnx is")
    parser.add_argument(
        "--rounds", type=int, default=5, help="of the measurement of speed (default: 5)"
    )
    given = parser.parse_args()
    logging.disable(
        logging.WARNING
    )  # the tool would have us simplify the graph first, which torch.onnx has done
    model = open_adapter(given.adapter)
    base, reviews = (
        model.lora_config["base_model_name_or_path"],
        load_task(offline_pair()[1]).validation,
    )
    tokenizer, texts = (
        load_tokenizer(base, model.config.max_position_embeddings),
        reviews.texts[0].to_pylist(),
    )
    if reviews.classes.names != list(model.config.id2label.values()):
        raise InputError(
            f"{given.adapter}: has not the classes of the reviews, {', '.join(reviews.classes.names)}"
        )
    merge_lora_weights(model)  # as the exported one is
    files = [
        find_file(base, "model.safetensors"),
        given.folder / "model.onnx",
        quantise(given.folder),
    ]
    models = [model, *(OnnxModel(path, model) for path in files[1:])]
    seconds, correct = [[], [], []], [0, 0, 0]
    for _ in range(
        given.rounds + 1
    ):  # in turn, so that what else the machine does strikes all alike
        for i, each in enumerate(models):
            begun = time.perf_counter()
            predicted = classify(each, tokenizer, texts).argmax(-1)  # (N,)
            seconds[i].append(time.perf_counter() - begun)
            correct[i] = int((predicted == reviews.labels).sum())
    print("                        MB  accuracy  sentences/s")
    for i, name in enumerate(["sample.py, merged", "ONNX Runtime", "ONNX Runtime, int8"]):
        speed = len(texts) / median(seconds[i][1:])  # the first round warms up
        print(
            f"{name:<18} {files[i].stat().st_size / 1e6:7.1f} {correct[i] / len(texts):9.1%} {speed:12.0f}"
        )


if __name__ == "__main__":
    run_main(main)
