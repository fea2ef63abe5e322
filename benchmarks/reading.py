"""How fast this project starts, reads and classifies, beside transformers' pipeline with the same weights.

    python benchmarks/reading.py                             # MiniLM and movie reviews
    python benchmarks/reading.py --rounds 3 --texts 1000     # sooner

The pipeline's model is base and adapter merged by peft. What is compared runs in turn, round by round, and
each answer must be the other's. The table goes to standard output, every number to benchmarks/results/.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from types import SimpleNamespace

import torch
from compare_hf import HERE, save_results, write_base

from bert import InputError, OneLineParser, run_main
from data import load_task, load_tokenizer, offline_pair
from lora import open_adapter
from sample import classify

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
TOKENS = """
import json, re, sys, time
from pathlib import Path
import torch
from data import encode, load_task, load_tokenizer
memory = lambda name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
texts = load_task(sys.argv[2]).train.texts[0].to_pylist() * 10
tokenizer, before, start = load_tokenizer(sys.argv[1], 128), memory("VmRSS"), time.perf_counter()
if sys.argv[3] == "ours":
    encoded = encode(tokenizer, [texts])
else:
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    before, start = memory("VmRSS"), time.perf_counter()
    encoded = tokenizer(texts, truncation=True, max_length=128)
seconds = time.perf_counter() - start
print((memory("VmRSS") - before) / len(texts), (memory("VmHWM") - before) / len(texts), seconds / len(texts))
"""


def python(*arguments: object) -> str:
    """What a Python process of these arguments prints; its failure becomes an InputError."""
    command, environment = [sys.executable, *map(str, arguments)], os.environ | {"PYTHONPATH": str(HERE.parent)}
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
        must_agree(json.loads(ours)["scores"], {entry["label"]: entry["score"] for entry in json.loads(theirs)})
        imports = map(float, python("-c", IMPORTS).split())
        if number:  # the first round reads the files into the page cache
            for name, value in zip(seconds, (a, b, *imports), strict=True):
                seconds[name].append(value)
    return seconds


def must_agree(ours: dict[str, float], theirs: dict[str, float]) -> None:
    if max(abs(ours[label] - theirs[label]) for label in ours) > 1e-4:
        raise InputError(f"sample.py and the pipeline do not agree: {ours} and {theirs}")


def many_texts(s: SimpleNamespace) -> dict[str, list[float]]:
    """Seconds for s.texts reviews: classify, and the pipeline at the best of several batch sizes."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    texts = load_task(s.data).train.texts[0].to_pylist()[: s.texts]
    by_length = sorted(texts, key=len)
    pipe = transformers.pipeline("text-classification", model=s.merged, device="cpu")
    model, tokenizer = open_adapter(s.adapter), load_tokenizer(s.base, 512)
    run = lambda texts, size: pipe(texts, top_k=None, batch_size=size)
    best = min((1, 4, 8, 16, 32, 64), key=lambda size: timed(run, texts[: s.texts // 10], size)[0])
    best_by_length = min((8, 16, 32, 64, 128), key=lambda size: timed(run, by_length[::10], size)[0])
    names = "classify", f"pipeline, batch size {best}", f"pipeline, batch size {best_by_length}, sorted by length"
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


def tokens(s: SimpleNamespace) -> dict[str, list[list[float]]]:
    """For the data ten times over, a sentence: the bytes that the process grew by, those at its peak, and seconds."""
    answers = {"ours": [], "transformers": []}
    for _ in range(s.rounds):
        for name, values in answers.items():
            values.append([float(value) for value in python("-c", TOKENS, s.base, s.data, name).split()])
    return answers


def report(starts: dict, many: dict, token: dict, s: SimpleNamespace) -> str:
    spread = lambda values, unit: f"{median(values):.4g} {unit} [{min(values):.4g}–{max(values):.4g}]"
    lines = ["| | |", "| --- | ---: |"]
    for name, values in starts.items():
        what = name if name.startswith("import") else f'{name}, from the command to the answer on "{TEXT}"'
        lines.append(f"| {what} | {spread(values, 's')} |")
    for name, values in many.items():
        lines.append(f"| {name}: {s.texts:,} reviews | {spread([s.texts / v for v in values], 'reviews/s')} |")
    for name, values in token.items():
        kept, peak, seconds = (median(column) for column in zip(*values, strict=True))
        cell = f"{seconds * 1e6:.1f} µs, {kept:.0f} B, {peak:.0f} B at the peak"
        lines.append(f"| a sentence's tokens, {name}, of the data ten times over | {cell} |")
    return "\n".join(lines)


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a directory or a Hub repository (default: MiniLM)")
    parser.add_argument("--data", help="as train.py's, of single texts (default: movie reviews)")
    for name, default in ("rounds", 7), ("texts", 5000), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    s = SimpleNamespace(**vars(parser.parse_args()), device="cpu")
    if min(s.rounds, s.threads) < 1 or s.texts < 10:
        raise InputError("--rounds and --threads must be at least 1, --texts at least 10")
    if not s.data or not s.model:
        s.model, s.data = (given or offline for given, offline in zip((s.model, s.data), offline_pair(), strict=True))
    settings = vars(s).copy()
    torch.set_num_threads(s.threads)
    os.environ |= {"OMP_NUM_THREADS": str(s.threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as s.scratch:
        s.shape, s.targets, s.rank, s.dropout, s.merged = None, "query,value", 8, 0.0, f"{s.scratch}/merged"
        write_base(s)
        python("-c", MERGE, s.base, s.adapter, s.merged)
        parts = cold_start(s), many_texts(s), tokens(s)
    print(report(*parts, s))
    names = "cold_start", "many_texts", "tokens"
    save_results("reading", s, settings, **dict(zip(names, parts, strict=True)))


if __name__ == "__main__":
    run_main(main)
