"""How fast a whole table is labelled, beside transformers' pipeline and ONNX Runtime; and in how
much memory.

    python benchmarks/labelling.py --adapter out/best                   # make examples has installed ONNX Runtime
    python benchmarks/labelling.py --parts memory --rows 1000000

Speed: the same reviews with the same merged weights in float32, in one process, in turn. The
pipeline gets its texts sorted by length and the best of several batch sizes; ONNX Runtime gets our
own batches, on this project's graph and on that of transformers' model. A figure is the median of
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
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from compare_hf import HERE, save_results
from pyarrow import parquet

from bert import BertConfig, BertForSequenceClassification
from data import encode, load_task, load_tokenizer
from lora import merge_lora_weights, open_adapter
from sample import probabilities
from support import base_files, faster
from support.console import run_main
from support.files import InputError
from support.offline import offline_pair
from support.options import OneLineParser

WATCH = """
import re, runpy, sys
sys.path.insert(0, {root!r})
sys.argv = sys.argv[1:]
try:
    runpy.run_path({root!r} + "/sample.py", run_name="__main__")
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def contenders(s: SimpleNamespace) -> dict:
    """Functions that label all texts once, and return probabilities (N, C)."""
    import onnxruntime
    import transformers

    sys.path.insert(0, str(HERE.parent))
    from examples.export_onnx import OnnxModel, export

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, tokenizer = (
        merge_lora_weights(open_adapter(s.adapter, s.base)),
        load_tokenizer(s.base, 512),
    )
    model.save_pretrained(merged := f"{s.scratch}/merged")
    base_files.copy_tokenizer(s.base, merged)
    pipe = transformers.pipeline("text-classification", model=merged, device="cpu")
    export(model, path := Path(s.scratch) / "ours.onnx")
    ours = {"ONNX Runtime, our graph": OnnxModel(path, model)}
    theirs, path = pipe.model.eval(), Path(s.scratch) / "theirs.onnx"
    batch = tuple(torch.ones(2, 8, dtype=torch.long) for _ in range(3))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    free = {name: {0: torch.export.Dim("B"), 1: torch.export.Dim("S", max=512)} for name in names}
    inputs = {
        "kwargs": dict(zip(names, batch, strict=True)),
        "input_names": names,
        "output_names": ["logits"],
    }
    torch.onnx.export(
        theirs,
        (),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=free,
        **inputs,
    )
    ours["ONNX Runtime, transformers' graph"] = OnnxModel(path, model)
    print(
        f"onnxruntime {onnxruntime.__version__}, transformers {transformers.__version__}",
        file=sys.stderr,
    )
    order = np.argsort([len(text) for text in s.texts_there], kind="stable")
    by_length = [s.texts_there[i] for i in order]

    def pipeline(size: int = 0) -> np.ndarray:
        result = np.empty((len(order), model.config.num_labels), dtype=np.float32)
        found = pipe(by_length, top_k=None, batch_size=size or best)
        numbers = {name: number for number, name in model.config.id2label.items()}
        for row, entries in zip(order, found, strict=True):
            for entry in entries:
                result[row, numbers[entry["label"]]] = entry["score"]
        return result

    best = min(
        (8, 16, 32, 64),
        key=lambda size: cpu_seconds(pipe, by_length[::10], top_k=None, batch_size=size)[0],
    )
    own = BertForSequenceClassification.from_pretrained(merged).requires_grad_(False)
    faster.pack(own)
    label = lambda model: (
        lambda: probabilities(model, encode(tokenizer, [s.texts_there]), s.batch_tokens)
    )
    functions = {"sample.py --out": label(own), "the same, weights not packed": label(model)}
    functions |= {f"transformers' pipeline, sorted, {best} in a batch": pipeline}
    return functions | {name: label(each) for name, each in ours.items()}


def cpu_seconds(function, *arguments, **more) -> tuple[float, object]:
    begun = time.process_time()
    result = function(*arguments, **more)
    return time.process_time() - begun, result


def speed(s: SimpleNamespace) -> dict[str, list[float]]:
    """CPU seconds of each contender in each round; their answers must agree."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # the exporter's remarks on its own workings
    s.texts_there = load_task(s.data).train.texts[0].to_pylist()[: s.texts]
    functions, seconds = contenders(s), {}
    for number in range(s.rounds + 1):
        answers = []
        for name, function in functions.items():
            took, answer = cpu_seconds(function)
            answers.append(answer)
            if number:  # the first round warms up
                seconds.setdefault(name, []).append(took)
        if max(np.abs(answer - answers[0]).max() for answer in answers) > 1e-4:
            raise InputError("the contenders do not agree")
    return seconds


def memory(s: SimpleNamespace) -> dict[str, list[float]]:
    """Peak megabytes and seconds of sample.py --out on ten thousand generated reviews, and on
    s.rows."""
    words = [
        "a",
        "good",
        "bad",
        "film",
        "is",
        "not",
        "very",
        "long",
        "so",
        "dull",
        "but",
        "gripping",
        "and",
        "odd",
    ]
    model = BertForSequenceClassification(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                                     intermediate_size=64, max_position_embeddings=64))  # fmt: skip
    model.save_pretrained(f"{s.scratch}/small")
    base_files.copy_tokenizer(s.base, f"{s.scratch}/small")
    found, generator = {}, np.random.default_rng(0)
    for rows in (10_000, s.rows):
        path = f"{s.scratch}/{rows}.parquet"
        texts = np.array(words)[generator.integers(0, len(words), (rows, 6))]
        table = pa.table({"id": np.arange(rows), "text": [" ".join(text) for text in texts]})
        parquet.write_table(table, path, row_group_size=rows)  # one row group, the worst case
        del texts, table
        command = [
            sys.executable,
            "-c",
            WATCH.format(root=str(HERE.parent)),
            "sample.py",
            "--file",
            path,
        ]
        command += ["--model", f"{s.scratch}/small", "--out", f"{path}.out.parquet"]
        begun = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        if done.returncode or parquet.ParquetFile(f"{path}.out.parquet").metadata.num_rows != rows:
            raise InputError(f"sample.py failed: {done.stderr[-300:]}")
        peak = int(re.search(r"\d+", done.stdout)[0]) / 1024
        found[f"{rows:,} rows"] = [peak, time.perf_counter() - begun]
        print(json.dumps(found), file=sys.stderr)
    return found


PARTS = {"speed": speed, "memory": memory}


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapter", default="out/best", help="of single texts (default: out/best)")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="what to measure (default: %(default)s)"
    )
    options = {"rounds": 3, "texts": 1000, "rows": 1_000_000, "threads": 1, "batch-tokens": 1024}
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    s = SimpleNamespace(**vars(parser.parse_args()), device="cpu")
    torch.set_num_threads(s.threads)
    os.environ["OMP_NUM_THREADS"] = str(s.threads)
    s.base, s.data = offline_pair()
    settings = {
        name: value for name, value in vars(s).items() if name not in ("adapter", "base", "data")
    }
    with tempfile.TemporaryDirectory() as s.scratch:
        parts = {name: PARTS[name](s) for name in s.parts.split(",")}
    for name, values in parts.get("speed", {}).items():
        ratio = median(
            b / a for a, b in zip(parts["speed"]["sample.py --out"], values, strict=True)
        )
        print(f"| {name} | {s.texts / median(values):.0f} rows a CPU second | {ratio:.2f} |")
    for name, (peak, seconds) in parts.get("memory", {}).items():
        print(f"| {name} | {peak:.0f} MiB | {seconds:.0f} s |")
    save_results("labelling", s, settings, **parts)


if __name__ == "__main__":
    run_main(main)
