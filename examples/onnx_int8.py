"""The exported model in 8 bits, by ONNX Runtime's own tool; size, accuracy and speed beside ours.

    python -m examples.export_onnx out/best onnx
    python -m examples.onnx_int8 out/best onnx      # leaves onnx/model_quantized.onnx; a table

A weight w becomes the integer nearest to w / s, from -127 to 127, with one s for each matrix. What
flows into a product is rounded so too, by a scale that is measured as it flows (dynamic
quantisation), so that no texts are needed beforehand. Integers are a quarter of the bytes to read,
and newer processors multiply four at a time.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

from onnxruntime.quantization import QuantType, quantize_dynamic

from data import load_data
from examples.export_onnx import OnnxModel
from lora import named_base
from sample import classify, open_model
from support import hub
from support.errors import InputError, run_main
from support.files import written_whole
from support.offline import offline_pair
from support.options import OneLineParser


def quantise(folder: Path) -> Path:
    """Writes model_quantized.onnx beside model.onnx: optimum's name."""
    source = folder / "model.onnx"
    if not source.is_file():
        raise InputError(f"{folder}: has no model.onnx; python -m examples.export_onnx makes it")
    with written_whole(folder / "model_quantized.onnx") as path:
        quantize_dynamic(source, path, weight_type=QuantType.QInt8)
    return folder / "model_quantized.onnx"


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("adapter", help="the adapter that was exported")
    parser.add_argument("folder", type=Path, help="where its model.onnx is")
    parser.add_argument("--rounds", type=int, default=5, help="of timing (default: 5)")
    given = parser.parse_args()
    # The tool would have us simplify the graph first, which torch.onnx has done.
    logging.disable(logging.WARNING)
    reviews = load_data(offline_pair()[1])
    texts = reviews.validation.texts
    truth = [reviews.task.names[label] for label in reviews.validation.labels]
    ours = open_model(given.adapter, merge=True)
    if ours.task.names != reviews.task.names:
        classes = ", ".join(reviews.task.names)
        raise InputError(f"{given.adapter}: has not the classes of the reviews, {classes}")
    base = hub.folder(named_base(hub.folder(given.adapter)))
    files = {
        "sample.py, merged": base / "model.safetensors",
        "ONNX Runtime": given.folder / "model.onnx",
        "ONNX Runtime, int8": quantise(given.folder),
    }
    config = ours.network.config
    models = {
        name: replace(ours, network=OnnxModel(path, config)) if path.suffix == ".onnx" else ours
        for name, path in files.items()
    }
    seconds = {name: [] for name in models}
    accuracy = {}
    for _ in range(given.rounds + 1):  # in turn: what else the machine does strikes all alike
        for name, model in models.items():
            begun = time.perf_counter()
            answers = classify(model, texts)
            seconds[name].append(time.perf_counter() - begun)
            labels = [answer["label"] for answer in answers]
            accuracy[name] = mean(a == b for a, b in zip(labels, truth, strict=True))
    print("                        MB  accuracy  sentences/s")
    for name, path in files.items():
        size = path.stat().st_size / 1e6
        speed = len(texts) / median(seconds[name][1:])  # the first round warms up
        print(f"{name:<18} {size:7.1f} {accuracy[name]:9.1%} {speed:12.0f}")


if __name__ == "__main__":
    run_main(main)
