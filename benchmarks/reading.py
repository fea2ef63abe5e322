"""How fast this project starts, reads and classifies, beside transformers' pipeline with the same
weights.

    python benchmarks/reading.py                             # MiniLM and movie reviews
    python benchmarks/reading.py --rounds 3 --texts 1000     # sooner
    python benchmarks/reading.py --parts tenfold --data SST2_DIR

It measures a cold start, a file of reviews, and training on the data ten times over. The pipeline's
model is base and adapter merged by peft. What is compared runs in turn, round by round, and each
answer must be the other's. The table goes to standard output, every number to benchmarks/results/.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import pyarrow
import torch
from compare_hf import HERE, save_results, write_base
from contenders import SEED, plan_rounds
from pyarrow import parquet

import train
from data import load_task, load_tokenizer, plan_batches
from lora import open_adapter
from sample import classify
from support.console import run_main
from support.files import InputError
from support.offline import offline_pair
from support.options import OneLineParser

TEXT = "great film"
PIPELINE = """
import json, sys
import transformers
transformers.logging.set_verbosity_error()
pipe = transformers.pipeline("text-classification", model=sys.argv[1], device="cpu")
print(json.dumps(pipe([sys.argv[2]], top_k=None)[0]))
"""
MERGE = """
import sys
import peft, transformers
model = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
peft.PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
transformers.AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[3])
"""
IMPORTS = """
import time
start = time.perf_counter()
import torch
between = time.perf_counter()
import bert, lora, data
print(between - start, time.perf_counter() - between)
"""


def python(*arguments: object) -> str:
    """What a Python process of these arguments prints; its failure becomes an InputError."""
    command, environment = (
        [sys.executable, *map(str, arguments)],
        os.environ | {"PYTHONPATH": str(HERE.parent)},
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def timed(function, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def cold_start(s: SimpleNamespace) -> dict[str, list[float]]:
    """Seconds from the command to the answer, and of the imports."""
    seconds = {"sample.py": [], "pipeline": [], "import torch": [], "import bert, lora, data": []}
    for number in range(s.rounds + 1):
        a, ours = timed(python, HERE.parent / "sample.py", "--adapter", s.adapter, "--json", TEXT)
        b, theirs = timed(python, "-c", PIPELINE, s.merged, TEXT)
        must_agree(
            json.loads(ours)["scores"],
            {entry["label"]: entry["score"] for entry in json.loads(theirs)},
        )
        imports = map(float, python("-c", IMPORTS).split())
        if number:  # the first round reads the files into the page cache
            for name, value in zip(seconds, (a, b, *imports), strict=True):
                seconds[name].append(value)
    return seconds


def must_agree(ours: dict[str, float], theirs: dict[str, float]) -> None:
    if max(abs(ours[label] - theirs[label]) for label in ours) > 1e-4:
        raise InputError(f"sample.py and the pipeline do not agree: {ours} and {theirs}")


def many_texts(s: SimpleNamespace) -> dict[str, list[float]]:
    """Seconds for s.texts reviews: classify, and the pipeline at the best of several batch
    sizes."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = load_task(s.data).train.texts[0].to_pylist()[: s.texts]
    by_length = sorted(texts, key=len)
    pipe = transformers.pipeline("text-classification", model=s.merged, device="cpu")
    model, tokenizer = open_adapter(s.adapter), load_tokenizer(s.base, 512)
    run = lambda texts, size: pipe(texts, top_k=None, batch_size=size)
    best = min((1, 4, 8, 16, 32, 64), key=lambda size: timed(run, texts[: s.texts // 10], size)[0])
    best_by_length = min(
        (8, 16, 32, 64, 128), key=lambda size: timed(run, by_length[::10], size)[0]
    )
    names = (
        "classify",
        f"pipeline, batch size {best}",
        f"pipeline, batch size {best_by_length}, sorted by length",
    )
    seconds = {name: [] for name in names}
    for _ in range(s.rounds):
        a, ours = timed(classify, model, tokenizer, texts)
        b, theirs = timed(run, texts, best)
        c, _ = timed(run, by_length, best_by_length)
        for probabilities, entries in zip(ours, theirs, strict=True):
            scores = dict(zip(model.config.id2label.values(), probabilities.tolist(), strict=True))
            must_agree(scores, {entry["label"]: entry["score"] for entry in entries})
        for name, value in zip(names, (a, b, c), strict=True):
            seconds[name].append(value)
    return seconds


def ten_times(s: SimpleNamespace) -> dict[str, list]:
    """Of the data once and ten times over: seconds of train.py's set_up, bytes a token, and seconds
    a sentence.

    The last are of training on batches of all lengths, with the planning of an epoch shared among
    its sentences.
    """

    def train_on(run: train.Run, batches: np.ndarray) -> None:
        for rows in batches:
            train.train_step(run, rows)

    numbers, runs, task = {}, {}, load_task(s.data)
    for times in (1, 10):
        folder = Path(s.scratch) / f"times-{times}"
        folder.mkdir()
        for name, split, copies in ("train", task.train, times), ("validation", task.validation, 1):
            table = pyarrow.table({"sentence": split.texts[0], "label": split.labels})
            parquet.write_table(pyarrow.concat_tables([table] * copies), folder / f"{name}.parquet")
        seconds, run = timed(
            train.set_up, train.Config(model=s.base, data=str(folder), epochs=1000)
        )
        data = run.train
        kept = sum(
            array.nbytes for array in (data.input_ids, data.starts, data.lengths, data.labels)
        )
        numbers |= {
            f"set up, {times} x": [seconds],
            f"bytes a token, {times} x": [kept / int(data.lengths.sum())],
        }
        numbers[f"sentence, {times} x"] = []
        runs[times] = run, plan_rounds(data.lengths, s)
        run.model.train()
    for number in range(s.rounds + 1):
        for times, (run, plan) in runs.items():
            planning, _ = timed(plan_batches, run.train.lengths, s.batch_size, SEED, number)
            seconds, _ = timed(train_on, run, plan[number])
            if number:
                each = planning / len(run.train.lengths) + seconds / plan[number].size
                numbers[f"sentence, {times} x"].append(each)
    return numbers


PARTS = {"start": cold_start, "file": many_texts, "tenfold": ten_times}


def report(parts: dict[str, dict], s: SimpleNamespace) -> str:
    spread = lambda values, unit: (
        f"{median(values):.4g} {unit} [{min(values):.4g}–{max(values):.4g}]"
    )
    lines = ["| | |", "| --- | ---: |"]
    for name, values in parts.get("start", {}).items():
        what = (
            name
            if name.startswith("import")
            else f'{name}, from the command to the answer on "{TEXT}"'
        )
        lines.append(f"| {what} | {spread(values, 's')} |")
    for name, values in parts.get("file", {}).items():
        lines.append(
            f"| {name}: {s.texts:,} reviews | {spread([s.texts / v for v in values], 'reviews/s')} |"
        )
    for name, values in parts.get("tenfold", {}).items():
        unit = "B" if name.startswith("bytes") else "s"
        lines.append(f"| {name} the data | {spread(values, unit)} |")
    return "\n".join(lines)


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a directory or a Hub repository (default: MiniLM)")
    parser.add_argument("--data", help="as train.py's, of single texts (default: movie reviews)")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="what to measure (default: %(default)s)"
    )
    for name, default in ("rounds", 7), ("texts", 5000), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    s = SimpleNamespace(
        **vars(parser.parse_args()), device="cpu", batch_size=32, steps=20, warmup=3
    )
    if min(s.rounds, s.threads) < 1 or s.texts < 10:
        raise InputError("--rounds and --threads must be at least 1, --texts at least 10")
    if unknown := [name for name in s.parts.split(",") if name not in PARTS]:
        raise InputError(f"--parts {unknown[0]}: not one of {', '.join(PARTS)}")
    if not s.data or not s.model:
        s.model, s.data = (
            given or offline
            for given, offline in zip((s.model, s.data), offline_pair(), strict=True)
        )
    settings = vars(s).copy()
    torch.set_num_threads(s.threads)
    os.environ |= {"OMP_NUM_THREADS": str(s.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as s.scratch:
        s.shape, s.targets, s.rank, s.dropout, s.merged = (
            None,
            "query,value",
            8,
            0.0,
            f"{s.scratch}/merged",
        )
        write_base(s)
        if s.parts != "tenfold":  # the pipeline's model
            python("-c", MERGE, s.base, s.adapter, s.merged)
        parts = {name: PARTS[name](s) for name in s.parts.split(",")}
    print(report(parts, s))
    save_results("reading", s, settings, **parts)


if __name__ == "__main__":
    run_main(main)
