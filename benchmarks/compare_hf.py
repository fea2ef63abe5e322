"""How fast this project trains, beside transformers + peft on the same work.

    make bench                                                        # MiniLM on real sentences
    make bench ARGS="--contenders ours,hf-grouped --targets all-linear --data SST2_DIR"
    python benchmarks/compare_hf.py --device cuda --shape bert-base   # random weights of bert-base-uncased's shape

Every contender is a process of its own, and only one works at a time: in each round each of them,
in turn, trains --steps steps. The sentences of a round are the same for all; only how they form
batches differs. All start from one base and one adapter on disk, and before the first round their
losses, logits and gradients on one batch must agree. The table goes to standard output, every
number to benchmarks/results/. contenders.py says what each of them is.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from contenders import ALPHA, CONTENDERS, SEED, linear_shapes, plan_rounds, read_data

from bert import BertConfig, BertForSequenceClassification
from data import load_task
from lora import apply_lora_to_model, find_targets, save_adapter
from support.console import run_main
from support.files import InputError
from support.hub import find_file
from support.offline import offline_pair
from support.options import OneLineParser

HERE = Path(__file__).resolve().parent


def write_base(s: SimpleNamespace) -> None:
    """Writes what all start from: the base, with a classifier, and an adapter whose B is not
    zero."""
    torch.manual_seed(SEED)
    label_names = load_task(s.data).label_names
    if s.shape == "bert-base":
        model = BertForSequenceClassification(BertConfig(id2label=dict(enumerate(label_names))))
        for matrix in (p for p in model.parameters() if p.ndim > 1):
            torch.nn.init.normal_(matrix, std=0.02)
    else:
        model = BertForSequenceClassification.from_pretrained(s.model, num_labels=len(label_names))
    s.base, s.adapter = f"{s.scratch}/base", f"{s.scratch}/adapter"
    model.save_pretrained(s.base)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if path := find_file(s.model, file, required=False):
            shutil.copy(path, s.base)
    targets = s.targets if s.targets == "all-linear" else s.targets.split(",")
    s.adapted = find_targets(model, targets)
    apply_lora_to_model(model, targets, s.rank, ALPHA, s.dropout)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    save_adapter(model, s.adapter, s.base)


def begin(program: str, name: str, s: SimpleNamespace) -> subprocess.Popen:
    """A process of the contender `name`, which answers a line of JSON when it is ready, and to each
    message."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(s.threads)}
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    command = [sys.executable, HERE / program, name, json.dumps(vars(s))]
    return subprocess.Popen(command, env=environment, **pipes)


def ask(workers: dict[str, subprocess.Popen], name: str, message: str = "") -> dict:
    """The next answer of a contender. Raises InputError if it is an error, or the process has
    ended."""
    with contextlib.suppress(BrokenPipeError):  # a dead worker: the missing answer says so
        workers[name].stdin.write(message)
        workers[name].stdin.flush()
    line = workers[name].stdout.readline()
    answer = (
        json.loads(line) if line else {"error": f"ended with exit status {workers[name].wait()}"}
    )
    if "error" in answer:
        raise InputError(f"{name}: {answer['error']}")
    return answer


def end(workers: dict[str, subprocess.Popen]) -> None:
    for worker in workers.values():
        worker.kill()
        worker.wait()


def turn(names: list[str], number: int) -> list[str]:
    """The order of round `number`: another one goes first in each."""
    return names[number % len(names) :] + names[: number % len(names)]


def measure(names: list[str], s: SimpleNamespace) -> dict[str, list[dict]]:
    """Starts the workers, compares them, and goes round: the answers of each, round by round."""
    workers, checks, answers = {}, {}, {name: [] for name in names}
    try:
        for name in names:
            workers[name] = begin("contenders.py", name, s)
            checks[name] = ask(workers, name)
        compare(checks, s.dtype)
        for number in range(s.rounds + 1):
            for name in turn(names, number):
                answers[name].append(ask(workers, name, "go\n"))
            rates = [
                f"{name} {s.steps * s.batch_size / a[-1]['seconds']:.4g}"
                for name, a in answers.items()
            ]
            print(
                f"round {number}/{s.rounds}: {', '.join(rates) if number else 'warm-up'}",
                file=sys.stderr,
            )
    finally:
        end(workers)
    return {name: a[1:] for name, a in answers.items()}


def compare(checks: dict[str, dict], dtype: str) -> None:
    """Refuses contenders that do not compute the same logits, or the same gradient."""
    without_adapter = [name for name in checks if name in ("ours-full", "ours-free")]
    with_adapter = [name for name in checks if name not in without_adapter and checks[name]]
    for names in with_adapter, without_adapter:
        for name in names[1:]:
            one, other = checks[names[0]], checks[name]
            error = max(
                abs(one["loss"] - other["loss"]),
                np.abs(np.subtract(one["logits"], other["logits"])).max(),
            )
            error = max(error, abs(one["gradient"] - other["gradient"]) / (one["gradient"] or 1.0))
            if not error <= (1e-4 if dtype == "float32" else 0.05):
                raise InputError(
                    f"{names[0]} and {name} do not compute the same: they differ by {error:.2g}"
                )


def needed_operations(config: BertConfig, adapted: list[str], R: int, lengths: np.ndarray) -> int:
    """Multiplications and additions in the matrix products of one exact LoRA step on sentences of
    these lengths.

    In the letters of bert.py, with N rows of a layer's input: Wx takes 2·N·in·out, and Wᵀdy as
    much, but is needed only where something adapted lies below. LoRA's path takes 2·N·R·(in + out)
    forward, as much for dA and dB, 2·N·R·out for dz, 2·N·R·in for its part of dx. Attention takes
    2·S²·D for each of QKᵀ, PV, and backward dP, dQ, dK, dV. In the last layer, keys and values are
    needed of all tokens, the rest for [CLS] alone. Not counted: what is no matrix product, padding,
    and what is computed twice to save memory.
    """
    D, inner, last = config.hidden_size, config.intermediate_size, config.num_hidden_layers - 1
    B, T, S2 = len(lengths), int(lengths.sum()), int((lengths**2).sum())
    total = 0

    def linear(name: str, N: int, n_in: int, n_out: int, below: bool) -> bool:
        """Adds its operations, and returns whether its output depends on something adapted."""
        nonlocal total
        r = R if name in adapted else 0
        total += 2 * N * (n_in * n_out * (1 + below) + r * (2 * n_in + 3 * n_out + n_in * below))
        return below or r > 0

    below = False
    for number in range(last + 1):
        layer, N, pairs = f"bert.encoder.layer.{number}", *((T, S2) if number < last else (B, T))
        q = linear(f"{layer}.attention.self.query", N, D, D, below)
        k = linear(f"{layer}.attention.self.key", T, D, D, below)
        v = linear(f"{layer}.attention.self.value", T, D, D, below)
        total += 2 * pairs * D * (2 + (q or k) + q + k + v)
        below = linear(f"{layer}.attention.output.dense", N, D, D, q or k or v)
        below = linear(f"{layer}.intermediate.dense", N, D, inner, below)
        below = linear(f"{layer}.output.dense", N, inner, D, below)
    below = linear("bert.pooler.dense", B, D, D, below)
    return total + 2 * B * D * config.num_labels * (2 + below)


def report_limit(answers: dict[str, list[dict]], s: SimpleNamespace) -> str:
    """Which part of the machine's matrix products `ours` turns into needed ones."""
    config, lengths = BertConfig.from_json(f"{s.base}/config.json"), read_data(s).lengths
    rounds = [lengths[batches] for batches in plan_rounds(lengths, s)[1:]]  # each (steps, B)
    needed = [needed_operations(config, s.adapted, s.rank, round.ravel()) for round in rounds]
    done = [
        4 * s.batch_size * int(r.max(1).sum()) * sum(i * o for i, o in linear_shapes(config))
        for r in rounds
    ]
    ours = [n / a["seconds"] / 1e9 for n, a in zip(needed, answers["ours"], strict=True)]
    alone = [n / a["seconds"] / 1e9 for n, a in zip(done, answers["matmul"], strict=True)]
    part = [a / b for a, b in zip(ours, alone, strict=True)]
    sentence = sum(needed) / sum(r.size for r in rounds) / 1e9
    return (
        f"An exact LoRA step takes {sentence:.3g} GFLOP of matrix products a sentence, of {lengths.mean():.1f} tokens. "
        f"`ours` does {median(ours):.4g} GFLOP/s of them: {median(part):.0%} [{min(part):.0%}–{max(part):.0%}] of the "
        f"{median(alone):.4g} GFLOP/s that {s.dtype} products of these shapes reach alone."
    )


def table(answers: dict[str, list[dict]], s: SimpleNamespace) -> str:
    """Markdown. The ratio is the median of the rounds' own ratios, as the machine's speed drifts
    between rounds."""
    lines = ["| | sentences/s | time, `ours` = 1 | peak memory |", "| --- | ---: | ---: | ---: |"]
    for name, rounds in answers.items():
        rates = [s.steps * s.batch_size / a["seconds"] for a in rounds]
        ratio = [
            a["seconds"] / b["seconds"]
            for a, b in zip(rounds, answers.get("ours", []), strict=False)
        ]
        memory = rounds[-1]["memory"] if name != "matmul" else None
        cells = [
            name,
            f"{median(rates):.4g} [{min(rates):.4g}–{max(rates):.4g}]",
            f"{median(ratio):.2f}" if ratio else "–",
            f"{memory / 2**20:,.0f} MiB" if memory else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(s: SimpleNamespace) -> dict:
    """What the numbers depend on, beside the settings."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    git = [
        "git",
        "-C",
        str(HERE),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=+dirty",
    ]
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if s.device == "cuda" else None,
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def save_results(kind: str, s: SimpleNamespace, settings: dict, **numbers) -> None:
    """Writes every number to benchmarks/results/, with the machine and the settings, of paths the
    last name alone."""
    path = HERE / "results" / f"{kind}-{datetime.now():%Y-%m-%d-%H%M}.json"
    path.parent.mkdir(exist_ok=True)
    named = {key: Path(settings[key]).name for key in ("model", "data") if settings.get(key)}
    record = {"machine": machine(s), "settings": settings | named, **numbers}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"all numbers: {path}", file=sys.stderr)


def parse_arguments() -> SimpleNamespace:
    parser, glue = OneLineParser(description=__doc__.partition("\n")[0]), os.environ.get("GLUE_DIR")
    parser.add_argument(
        "--data",
        default=glue and f"{glue}/sst2",
        help="(default: GLUE_DIR's sst2, or movie reviews)",
    )
    parser.add_argument("--model", help="a directory or a Hub repository (default: MiniLM)")
    parser.add_argument(
        "--shape", choices=["bert-base"], help="random weights of this shape instead of --model's"
    )
    parser.add_argument(
        "--contenders", metavar="NAME,NAME", help=f"of {', '.join(CONTENDERS)} (default: all)"
    )
    for name, default in ("batch-size", 32), ("rank", 8), ("rounds", 7), ("threads", 2):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    parser.add_argument(
        "--steps", type=int, help="of each contender in each round (default: 20, on CUDA 200)"
    )
    parser.add_argument(
        "--targets", default="query,value", help="the adapted layers, or all-linear"
    )
    parser.add_argument("--dropout", type=float, default=0.05, help="LoRA's (default: 0.05)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="(default: float32, on CUDA bfloat16)"
    )
    return SimpleNamespace(**vars(parser.parse_args()))


def main() -> None:
    s = parse_arguments()
    cuda = s.device == "cuda"
    s.dtype = s.dtype or ("bfloat16" if cuda else "float32")
    s.steps, s.warmup = s.steps or (200 if cuda else 20), 50 if cuda else 3
    if min(s.batch_size, s.rank, s.rounds, s.threads, s.steps) < 1:
        raise InputError("--batch-size, --rank, --rounds, --threads and --steps must be at least 1")
    names = (
        s.contenders.split(",")
        if s.contenders
        else [n for n in CONTENDERS if cuda or n != "hf-trainer"]
    )
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise InputError(f"--contenders {unknown[0]}: not one of {', '.join(CONTENDERS)}")
    if not s.data or not s.model:
        s.model, s.data = (
            given or offline
            for given, offline in zip((s.model, s.data), offline_pair(), strict=True)
        )
    settings = vars(s).copy()
    with tempfile.TemporaryDirectory() as s.scratch:
        write_base(s)
        answers = measure(names, s)
        limit = report_limit(answers, s) if {"ours", "matmul"} <= set(names) else ""
    print(table(answers, s), *([limit] if limit else []), sep="\n\n")
    save_results(s.device, s, settings, rounds=answers)


if __name__ == "__main__":
    run_main(main)
