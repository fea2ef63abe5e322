"""How fast a table is labelled, beside transformers' pipeline, ONNX Runtime and OpenVINO; in how
much memory.

    python benchmarks/labelling.py --adapter out/best    # make examples has installed the others
    python benchmarks/labelling.py --adapter out/best --dtype bfloat16
    python benchmarks/labelling.py --parts memory --rows 1000000

Speed: the same reviews with the same merged weights, in one process, in turn. The pipeline gets its
texts sorted by length and the best of several batch sizes; ONNX Runtime and OpenVINO get our own
batches, on this project's graph and on that of transformers' model. ONNX Runtime has no bfloat16 on
a CPU: there it stays in float32. A figure is the median of
the rounds, in rows a second of this process's CPU time, as other work may share the cores. Memory:
sample.py --out in processes of its own, on ten thousand and on a million generated reviews, by a
random BERT of two small layers, as what is measured there is the way and not the model.
"""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from compare_hf import HERE, save_results
from pyarrow import parquet

from bert import BertConfig, BertForSequenceClassification
from data import encode, load_data
from lora import merge_lora_weights, open_adapter
from runtime import labelling
from runtime.adapters import copy_tokenizer
from runtime.texts import compute_logits
from sample import Model, open_model
from support import hub
from support.errors import InputError, run_main
from support.offline import offline_pair
from support.options import OneLineParser

# sample.py, and then its peak of memory in kB.
WATCH = """
import re, runpy, sys
sys.path.insert(0, {root!r})
sys.argv = sys.argv[1:]
try:
    runpy.run_path({root!r} + "/sample.py", run_name="__main__")
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
WORDS = "a good bad film is not very long so dull but gripping and odd"
BATCH_SIZES = (8, 16, 32, 64)  # of the pipeline


def probabilities(model: Model, s: SimpleNamespace) -> np.ndarray:
    """What sample.py --out computes of the texts: (N, C)."""
    encoded = encode(model.tokenizer, s.reviews)
    return compute_logits(model, encoded, s.batch_tokens).softmax(-1).numpy()


def contenders(s: SimpleNamespace) -> dict:
    """Functions that label all texts once, and return probabilities (N, C)."""
    from examples.export_onnx import OnnxModel, export
    from examples.label_with_openvino import OpenVinoModel

    merged = f"{s.scratch}/merged"
    plain = merge_lora_weights(open_adapter(s.adapter, s.base))
    plain.save_pretrained(merged)
    copy_tokenizer(Path(s.base), Path(merged))
    pipe = open_pipeline(merged)
    export(plain, Path(s.scratch, "ours.onnx"))
    export_theirs(pipe.model.eval(), Path(s.scratch, "theirs.onnx"))
    pipe.model.to(getattr(torch, s.dtype))

    unpacked = open_model(merged, max_length=512, dtype=s.dtype)
    ours = open_model(merged, max_length=512, dtype=s.dtype)
    labelling.pack(ours)
    models = {"sample.py --out": ours, "the same, weights not packed": unpacked}
    for whose, name in ("our", "ours.onnx"), ("transformers'", "theirs.onnx"):
        path = Path(s.scratch, name)
        runtimes = {
            "ONNX Runtime": OnnxModel(path, plain.config),
            "OpenVINO": OpenVinoModel(path, plain.config, s.dtype),
        }
        for runtime, model in runtimes.items():
            models[f"{runtime}, {whose} graph"] = replace(ours, network=model)

    order = np.argsort([len(text) for (text,) in s.reviews], kind="stable")
    by_length = [s.reviews[row][0] for row in order]
    numbers = {name: number for number, name in plain.config.id2label.items()}

    def run_pipeline(size: int) -> np.ndarray:
        result = np.empty((len(order), len(numbers)), dtype=np.float32)
        found = pipe(by_length, top_k=None, batch_size=size)
        for row, entries in zip(order, found, strict=True):
            for entry in entries:
                result[row, numbers[entry["label"]]] = entry["score"]
        return result

    def time_pipeline(size: int) -> float:
        return cpu_seconds(lambda: pipe(by_length[::10], top_k=None, batch_size=size))[0]

    best = min(BATCH_SIZES, key=time_pipeline)
    functions = {}
    for name, model in models.items():
        functions[name] = lambda model=model: probabilities(model, s)
    pipeline = f"transformers' pipeline, sorted, {best} in a batch"
    return functions | {pipeline: lambda: run_pipeline(best)}


def open_pipeline(folder: str):
    import onnxruntime
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    versions = f"onnxruntime {onnxruntime.__version__}, transformers {transformers.__version__}"
    print(versions, file=sys.stderr)
    return transformers.pipeline("text-classification", model=folder, device="cpu")


def export_theirs(model, path: Path) -> None:
    """Writes transformers' model as ONNX, for any number of texts up to 512 tokens."""
    names = ["input_ids", "attention_mask", "token_type_ids"]
    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("S", max=512)}
    torch.onnx.export(
        model,
        (),
        path,
        kwargs={name: torch.ones(2, 8, dtype=torch.long) for name in names},
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(names, sizes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def cpu_seconds(function) -> tuple[float, object]:
    begun = time.process_time()
    result = function()
    return time.process_time() - begun, result


def measure_speed(s: SimpleNamespace) -> dict[str, list[float]]:
    """CPU seconds of each contender in each round; their answers must agree."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # the exporter's remarks on its own workings
    s.reviews = load_data(s.data).train.texts[: s.texts]
    functions = contenders(s)
    seconds = {name: [] for name in functions}
    for number in range(s.rounds + 1):
        answers = []
        for name, function in functions.items():
            took, answer = cpu_seconds(function)
            answers.append(answer)
            if number:  # the first round warms up
                seconds[name].append(took)
        most = 1e-4 if s.dtype == "float32" else 0.1
        if max(np.abs(answer - answers[0]).max() for answer in answers) > most:
            raise InputError("the contenders do not agree")
    return seconds


def write_small_model(base: str, folder: str) -> None:
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    copy_tokenizer(Path(base), Path(folder))


def write_texts(rows: int, path: str) -> None:
    generator = np.random.default_rng(0)
    words = np.array(WORDS.split())
    chosen = words[generator.integers(0, len(words), (rows, 6))]
    texts = [" ".join(text) for text in chosen]
    table = pa.table({"id": np.arange(rows), "text": texts})
    parquet.write_table(table, path, row_group_size=rows)  # one row group, the worst case


def measure_memory(s: SimpleNamespace) -> dict[str, list[float]]:
    """Peak MiB and seconds of sample.py --out on ten thousand generated reviews, and on s.rows."""
    model = f"{s.scratch}/small"
    write_small_model(s.base, model)
    watched = [sys.executable, "-c", WATCH.format(root=str(HERE.parent)), "sample.py"]
    found = {}
    for rows in (10_000, s.rows):
        path = f"{s.scratch}/{rows}.parquet"
        out = f"{s.scratch}/{rows}.out.parquet"
        write_texts(rows, path)
        command = [*watched, "--model", model, "--file", path, "--out", out]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - begun
        if done.returncode or parquet.ParquetFile(out).metadata.num_rows != rows:
            raise InputError(f"sample.py failed: {done.stderr[-300:]}")
        peak = int(re.findall(r"^\d+$", done.stdout, re.MULTILINE)[-1]) / 1024
        found[f"{rows:,} rows"] = [peak, seconds]
        print(json.dumps(found), file=sys.stderr)
    return found


PARTS = {"speed": measure_speed, "memory": measure_memory}


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parts = ",".join(PARTS)
    parser.add_argument("--adapter", default="out/best", help="of single texts (default: out/best)")
    parser.add_argument("--parts", default=parts, help="what to measure (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = {"rounds": 3, "texts": 1000, "rows": 1_000_000, "threads": 1, "batch-tokens": 1024}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    s = SimpleNamespace(**vars(parser.parse_args()), device="cpu")
    torch.set_num_threads(s.threads)
    os.environ["OMP_NUM_THREADS"] = str(s.threads)
    settings = {name: value for name, value in vars(s).items() if name != "adapter"}
    s.base, s.data = offline_pair()
    found = {}
    with tempfile.TemporaryDirectory() as s.scratch:
        for name in s.parts.split(","):
            if name == "speed":
                s.adapter = hub.folder(s.adapter)
            found[name] = PARTS[name](s)
    for name, seconds in found.get("speed", {}).items():
        ours = found["speed"]["sample.py --out"]
        ratio = median(b / a for a, b in zip(ours, seconds, strict=True))
        print(f"| {name} | {s.texts / median(seconds):.0f} rows a CPU second | {ratio:.2f} |")
    for name, (peak, seconds) in found.get("memory", {}).items():
        print(f"| {name} | {peak:.0f} MiB | {seconds:.0f} s |")
    save_results("labelling", s, settings, **found)


if __name__ == "__main__":
    run_main(main)
