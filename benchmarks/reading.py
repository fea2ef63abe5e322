"""How fast this project starts, reads and classifies, beside transformers' pipeline.

    python benchmarks/reading.py                             # MiniLM and movie reviews
    python benchmarks/reading.py --rounds 3 --texts 1000     # sooner
    python benchmarks/reading.py --parts tenfold --data SST2_DIR

It measures a cold start, a file of reviews, and training on the data ten times over. The pipeline's
model is base and adapter merged by peft. What is compared runs in turn, round by round, and each
answer must be the other's. The table goes to standard output, every number to benchmarks/results/.
"""

import itertools
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
from compare_hf import HERE, find_base_and_data, save_results, write_base
from contenders import SEED, plan_rounds
from pyarrow import parquet

import train
from data import load_data, plan_batches
from sample import classify, open_model
from support.errors import InputError, run_main
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


def run_python(*arguments: object) -> str:
    """What a Python process of these arguments prints; its failure becomes an InputError."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def timed(function, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def scores_of(entries: list[dict]) -> dict[str, float]:
    """Of the pipeline's answer to one text."""
    return {entry["label"]: entry["score"] for entry in entries}


def refuse_difference(ours: dict[str, float], theirs: dict[str, float]) -> None:
    if max(abs(ours[label] - theirs[label]) for label in ours) > 1e-4:
        raise InputError(f"sample.py and the pipeline do not agree: {ours} and {theirs}")


def measure_start(s: SimpleNamespace) -> dict[str, list[float]]:
    """Seconds from the command to the answer, and of the imports."""
    seconds = {"sample.py": [], "pipeline": [], "import torch": [], "import bert, lora, data": []}
    sample = [HERE.parent / "sample.py", "--adapter", s.adapter, "--json", TEXT]
    for number in range(s.rounds + 1):
        a, ours = timed(run_python, *sample)
        b, theirs = timed(run_python, "-c", PIPELINE, s.merged, TEXT)
        refuse_difference(json.loads(ours)["scores"], scores_of(json.loads(theirs)))
        imports = map(float, run_python("-c", IMPORTS).split())
        if number:  # the first round reads the files into the page cache
            for name, value in zip(seconds, (a, b, *imports), strict=True):
                seconds[name].append(value)
    return seconds


def measure_file(s: SimpleNamespace) -> dict[str, list[float]]:
    """Seconds for s.texts reviews: classify, and the pipeline at its best batch sizes."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    reviews = load_data(s.data).train.texts[: s.texts]
    texts = [text for (text,) in reviews]
    by_length = sorted(texts, key=len)
    pipe = transformers.pipeline("text-classification", model=s.merged, device="cpu")
    model = open_model(s.adapter, max_length=512)

    def run_pipeline(texts: list[str], size: int) -> list:
        return pipe(texts, top_k=None, batch_size=size)

    def best_size(texts: list[str], sizes: tuple[int, ...]) -> int:
        return min(sizes, key=lambda size: timed(run_pipeline, texts, size)[0])

    size = best_size(texts[: s.texts // 10], (1, 4, 8, 16, 32, 64))
    sorted_size = best_size(by_length[::10], (8, 16, 32, 64, 128))
    unsorted_name = f"pipeline, batch size {size}"
    sorted_name = f"pipeline, batch size {sorted_size}, sorted by length"
    seconds = {"classify": [], unsorted_name: [], sorted_name: []}
    for _ in range(s.rounds):
        a, ours = timed(classify, model, reviews)
        b, theirs = timed(run_pipeline, texts, size)
        c, _ = timed(run_pipeline, by_length, sorted_size)
        for answer, entries in zip(ours, theirs, strict=True):
            refuse_difference(answer["scores"], scores_of(entries))
        for name, value in zip(seconds, (a, b, c), strict=True):
            seconds[name].append(value)
    return seconds


def write_times(data, times: int, folder: Path) -> None:
    """The data set with its training split so many times over."""
    folder.mkdir()
    for name, split, copies in ("train", data.train, times), ("validation", data.validation, 1):
        texts = [text for (text,) in split.texts]
        table = pyarrow.table({"sentence": texts, "label": split.labels})
        parquet.write_table(pyarrow.concat_tables([table] * copies), folder / f"{name}.parquet")


def measure_tenfold(s: SimpleNamespace) -> dict[str, list]:
    """Of the data once and ten times over: seconds of train.py's set_up, bytes a token, and seconds
    a sentence.

    The last are of training on batches of all lengths, with the planning of an epoch shared among
    its sentences.
    """
    data = load_data(s.data)
    numbers, setups, plans = {}, {}, {}
    for times in (1, 10):
        folder = Path(s.scratch, f"times-{times}")
        write_times(data, times, folder)
        config = train.Config(model=s.base, data=str(folder), epochs=1000)
        seconds, setup = timed(train.set_up, config)
        encoded = setup.train_set
        arrays = (encoded.input_ids, encoded.starts, encoded.lengths, encoded.labels)
        kept = sum(array.nbytes for array in arrays)
        numbers[f"set up, {times} x"] = [seconds]
        numbers[f"bytes a token, {times} x"] = [kept / int(encoded.lengths.sum())]
        numbers[f"sentence, {times} x"] = []
        setups[times] = setup
        plans[times] = plan_rounds(encoded.lengths, s)
        setup.model.train()
    steps = itertools.count()

    def train_on(setup: train.Setup, batches: np.ndarray) -> None:
        for rows in batches:
            train.train_step(setup, rows, next(steps))

    for number in range(s.rounds + 1):
        for times, setup in setups.items():
            lengths = setup.train_set.lengths
            planning, _ = timed(plan_batches, lengths, s.batch_size, SEED, number)
            batches = plans[times][number]  # (steps, B)
            seconds, _ = timed(train_on, setup, batches)
            if number:  # the first round warms up
                each = planning / len(lengths) + seconds / batches.size
                numbers[f"sentence, {times} x"].append(each)
    return numbers


PARTS = {"start": measure_start, "file": measure_file, "tenfold": measure_tenfold}


def spread(values: list[float], unit: str) -> str:
    return f"{median(values):.4g} {unit} [{min(values):.4g}–{max(values):.4g}]"


def report(parts: dict[str, dict], s: SimpleNamespace) -> str:
    rows = {}
    for name, values in parts.get("start", {}).items():
        to_answer = f'{name}, from the command to the answer on "{TEXT}"'
        rows[name if name.startswith("import") else to_answer] = spread(values, "s")
    for name, values in parts.get("file", {}).items():
        rates = [s.texts / seconds for seconds in values]
        rows[f"{name}: {s.texts:,} reviews"] = spread(rates, "reviews/s")
    for name, values in parts.get("tenfold", {}).items():
        unit = "B" if name.startswith("bytes") else "s"
        rows[f"{name} the data"] = spread(values, unit)
    lines = [f"| {what} | {figure} |" for what, figure in rows.items()]
    return "\n".join(["| | |", "| --- | ---: |", *lines])


def main() -> None:
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    parts = ",".join(PARTS)
    add("--model", help="a directory or a Hub repository (default: MiniLM)")
    add("--data", help="as train.py's, of single texts (default: movie reviews)")
    add("--parts", default=parts, help="what to measure (default: %(default)s)")
    for name, default in ("rounds", 7), ("texts", 5000), ("threads", 2):
        add(f"--{name}", type=int, default=default, help=f"(default: {default})")
    fixed = {"device": "cpu", "batch_size": 32, "steps": 20, "warmup": 3}
    s = SimpleNamespace(**vars(parser.parse_args()), **fixed)
    if min(s.rounds, s.threads) < 1 or s.texts < 10:
        raise InputError("--rounds and --threads must be at least 1, --texts at least 10")
    for name in s.parts.split(","):
        if name not in PARTS:
            raise InputError(f"--parts {name}: not one of {parts}")
    settings = vars(s).copy()
    find_base_and_data(s)
    torch.set_num_threads(s.threads)
    os.environ |= {"OMP_NUM_THREADS": str(s.threads), "HF_HUB_OFFLINE": "1"}
    vars(s).update(shape=None, targets="query,value", rank=8, dropout=0.0)
    with tempfile.TemporaryDirectory() as s.scratch:
        s.merged = f"{s.scratch}/merged"
        write_base(s)
        if s.parts != "tenfold":  # the pipeline's model
            run_python("-c", MERGE, s.base, s.adapter, s.merged)
        found = {name: PARTS[name](s) for name in s.parts.split(",")}
    print(report(found, s))
    save_results("reading", s, settings, **found)


if __name__ == "__main__":
    run_main(main)
