"""How fast this project trains, beside transformers + peft on the same work.

    make bench                                                        # MiniLM on real sentences
    make bench ARGS="--contenders ours,hf-grouped --targets all-linear --data SST2_DIR"
    python benchmarks/compare_hf.py --device cuda --shape bert-base   # bert-base's shape, random

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
from data import load_data
from lora import apply_lora_to_model, find_targets, save_adapter
from runtime.adapters import copy_tokenizer
from support import hub
from support.errors import InputError, run_main
from support.offline import offline_pair
from support.options import OneLineParser

HERE = Path(__file__).resolve().parent


@torch.no_grad()
def write_base(s: SimpleNamespace) -> None:
    """Writes what all start from: a base with a classifier, and an adapter with B not zero."""
    torch.manual_seed(SEED)
    label_names = load_data(s.data).task.names
    if s.shape == "bert-base":
        model = BertForSequenceClassification(BertConfig(id2label=dict(enumerate(label_names))))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.02)
    else:
        model = BertForSequenceClassification.from_pretrained(s.model, label_names)
    s.base = f"{s.scratch}/base"
    s.adapter = f"{s.scratch}/adapter"
    model.save_pretrained(s.base)
    copy_tokenizer(Path(s.model), Path(s.base))
    targets = s.targets if s.targets == "all-linear" else s.targets.split(",")
    s.adapted = [*find_targets(model, targets)]
    apply_lora_to_model(model, targets, rank=s.rank, alpha=ALPHA, dropout=s.dropout)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    save_adapter(model, s.adapter, s.base)


def begin(program: str, name: str, s: SimpleNamespace) -> subprocess.Popen:
    """A process of the contender `name`, which answers a line of JSON when it is ready, and to each
    message."""
    return subprocess.Popen(
        [sys.executable, HERE / program, name, json.dumps(vars(s))],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(s.threads)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ask(workers: dict[str, subprocess.Popen], name: str, message: str = "") -> dict:
    """The next answer of a contender. Raises InputError if it is an error, or the process has
    ended."""
    with contextlib.suppress(BrokenPipeError):  # a dead worker: the missing answer says so
        workers[name].stdin.write(message)
        workers[name].stdin.flush()
    line = workers[name].stdout.readline()
    if not line:
        raise InputError(f"{name}: ended with exit status {workers[name].wait()}")
    answer = json.loads(line)
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
    workers, checks = {}, {}
    answers = {name: [] for name in names}
    try:
        for name in names:
            workers[name] = begin("contenders.py", name, s)
            checks[name] = ask(workers, name)
        compare(checks, s.dtype)
        s.computes = {name: checks[name].get("computes") for name in names}
        for number in range(s.rounds + 1):
            rates = []
            for name in turn(names, number):
                answer = ask(workers, name, "go\n")
                rates.append(f"{name} {s.steps * s.batch_size / answer['seconds']:.4g}")
                if number:
                    answers[name].append(answer)
            said = ", ".join(rates) if number else "warm-up"
            print(f"round {number}/{s.rounds}: {said}", file=sys.stderr)
    finally:
        end(workers)
    return answers


def compare(checks: dict[str, dict], dtype: str) -> None:
    """Refuses contenders that do not compute the same logits, or the same gradient."""
    most = 1e-4 if dtype == "float32" else 0.05
    without_adapter = [name for name in checks if name in ("ours-full", "ours-free")]
    with_adapter = [name for name in checks if name not in without_adapter and checks[name]]
    for names in with_adapter, without_adapter:
        for name in names[1:]:
            error = largest_error(checks[names[0]], checks[name])
            if not error <= most:
                apart = f"they differ by {error:.2g}"
                raise InputError(f"{names[0]} and {name} do not compute the same: {apart}")


def largest_error(one: dict, other: dict) -> float:
    return max(
        abs(one["loss"] - other["loss"]),
        np.abs(np.subtract(one["logits"], other["logits"])).max(),
        abs(one["gradient"] - other["gradient"]) / (one["gradient"] or 1.0),
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
    D, inner = config.hidden_size, config.intermediate_size
    B, T, S2 = len(lengths), int(lengths.sum()), int((lengths**2).sum())
    total = 0

    def linear(name: str, N: int, sizes: tuple[int, int], below: bool) -> bool:
        """Adds its operations, and returns whether its output depends on something adapted."""
        nonlocal total
        n_in, n_out = sizes
        r = R if name in adapted else 0
        total += 2 * N * (n_in * n_out * (1 + below) + r * (2 * n_in + 3 * n_out + n_in * below))
        return below or r > 0

    below = False
    for number in range(config.num_hidden_layers):
        is_last = number == config.num_hidden_layers - 1
        N = B if is_last else T
        pairs = T if is_last else S2  # of tokens that attend
        layer = f"bert.encoder.layer.{number}"
        q = linear(f"{layer}.attention.self.query", N, (D, D), below)
        k = linear(f"{layer}.attention.self.key", T, (D, D), below)
        v = linear(f"{layer}.attention.self.value", T, (D, D), below)
        total += 2 * pairs * D * (2 + (q or k) + q + k + v)
        below = linear(f"{layer}.attention.output.dense", N, (D, D), q or k or v)
        below = linear(f"{layer}.intermediate.dense", N, (D, inner), below)
        below = linear(f"{layer}.output.dense", N, (inner, D), below)
    below = linear("bert.pooler.dense", B, (D, D), below)
    return total + 2 * B * D * config.num_labels * (2 + below)


def report_limit(answers: dict[str, list[dict]], s: SimpleNamespace) -> str:
    """Which part of the machine's matrix products `ours` turns into needed ones."""
    config = BertConfig.from_json(f"{s.base}/config.json")
    weights = sum(n_in * n_out for n_in, n_out in linear_shapes(config))
    lengths = read_data(s).lengths
    needed, ours, alone = [], [], []
    for number, batches in enumerate(plan_rounds(lengths, s)[1:]):  # each (steps, B)
        of_round = lengths[batches]
        needed.append(needed_operations(config, s.adapted, s.rank, of_round.ravel()))
        done = 4 * s.batch_size * int(of_round.max(1).sum()) * weights
        ours.append(needed[-1] / answers["ours"][number]["seconds"] / 1e9)
        alone.append(done / answers["matmul"][number]["seconds"] / 1e9)
    part = [a / b for a, b in zip(ours, alone, strict=True)]
    sentence = sum(needed) / (s.rounds * s.steps * s.batch_size) / 1e9
    return (
        f"An exact LoRA step takes {sentence:.3g} GFLOP of matrix products a sentence, of "
        f"{lengths.mean():.1f} tokens. `ours` does {median(ours):.4g} GFLOP/s of them: "
        f"{median(part):.0%} [{min(part):.0%}–{max(part):.0%}] of the {median(alone):.4g} GFLOP/s "
        f"that {s.dtype} products of these shapes reach alone."
    )


def table(answers: dict[str, list[dict]], s: SimpleNamespace) -> str:
    """Markdown. The ratio is the median of the rounds' own ratios, as the machine's speed drifts
    between rounds."""
    lines = ["| | sentences/s | time, `ours` = 1 | peak memory |", "| --- | ---: | ---: | ---: |"]
    for name, rounds in answers.items():
        rates = [s.steps * s.batch_size / answer["seconds"] for answer in rounds]
        rate = f"{median(rates):.4g} [{min(rates):.4g}–{max(rates):.4g}]"
        beside = zip(rounds, answers.get("ours", []), strict=False)
        ratios = [a["seconds"] / b["seconds"] for a, b in beside]
        ratio = f"{median(ratios):.2f}" if ratios else "–"
        bytes_ = rounds[-1]["memory"] if name != "matmul" else None
        memory = f"{bytes_ / 2**20:,.0f} MiB" if bytes_ else "–"
        lines.append(f"| {name} | {rate} | {ratio} | {memory} |")
    return "\n".join(lines)


def machine(s: SimpleNamespace) -> dict:
    """What the numbers depend on, beside the settings."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    git = ["git", "-C", str(HERE), "describe", "--always", "--exclude=*"]
    git += ["--abbrev=40", "--dirty=+dirty"]
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if s.device == "cuda" else None,
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def save_results(kind: str, s: SimpleNamespace, settings: dict, **numbers) -> None:
    """Writes every number to benchmarks/results/, with the machine and the settings.

    Of paths the last name alone is kept.
    """
    path = HERE / "results" / f"{kind}-{datetime.now():%Y-%m-%d-%H%M}.json"
    path.parent.mkdir(exist_ok=True)
    named = {key: Path(settings[key]).name for key in ("model", "data") if settings.get(key)}
    record = {"machine": machine(s), "settings": settings | named, **numbers}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"all numbers: {path}", file=sys.stderr)


def find_base_and_data(s: SimpleNamespace) -> None:
    """Makes folders of the names in `s`; where there is none, those of the offline pair."""
    if not s.model or not s.data:
        model, data = offline_pair()
        s.model = s.model or model
        s.data = s.data or data
    s.model = str(hub.folder(s.model))
    s.data = str(hub.data_folder(s.data))


def parse_arguments() -> SimpleNamespace:
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    glue = os.environ.get("GLUE_DIR")
    sst2 = f"{glue}/sst2" if glue else None
    cuda = torch.cuda.is_available()
    add("--data", default=sst2, help="(default: GLUE_DIR's sst2, or movie reviews)")
    add("--model", help="a directory or a Hub repository (default: MiniLM)")
    add("--shape", choices=["bert-base"], help="random weights of this shape, not --model's")
    add("--contenders", help=f"NAME,NAME of {', '.join(CONTENDERS)} (default: all)")
    for name, default in ("batch-size", 32), ("rank", 8), ("rounds", 7), ("threads", 2):
        add(f"--{name}", type=int, default=default, help=f"(default: {default})")
    add("--steps", type=int, help="of a contender in a round (default: 20, on CUDA 200)")
    add("--targets", default="query,value", help="the adapted layers, or all-linear")
    add("--dropout", type=float, default=0.05, help="LoRA's (default: 0.05)")
    add("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    add("--dtype", choices=["float32", "bfloat16"], help="(default: float32, on CUDA bfloat16)")
    return SimpleNamespace(**vars(parser.parse_args()))


def main() -> None:
    s = parse_arguments()
    cuda = s.device == "cuda"
    s.dtype = s.dtype or ("bfloat16" if cuda else "float32")
    s.steps = s.steps or (200 if cuda else 20)
    s.warmup = 50 if cuda else 3
    if min(s.batch_size, s.rank, s.rounds, s.threads, s.steps) < 1:
        raise InputError("--batch-size, --rank, --rounds, --threads and --steps must be at least 1")
    names = s.contenders.split(",") if s.contenders else [*CONTENDERS]
    if not s.contenders and not cuda:
        for name in ("hf-trainer", "hf-compiled", "ours-eager"):
            names.remove(name)
    for name in names:
        if name not in CONTENDERS:
            raise InputError(f"--contenders {name}: not one of {', '.join(CONTENDERS)}")
    settings = vars(s).copy()
    find_base_and_data(s)
    with tempfile.TemporaryDirectory() as s.scratch:
        write_base(s)
        answers = measure(names, s)
        limit = report_limit(answers, s) if {"ours", "matmul"} <= set(names) else ""
    print(table(answers, s))
    if limit:
        print(f"\n{limit}")
    save_results(s.device, s, settings, rounds=answers, computes=s.computes)


if __name__ == "__main__":
    run_main(main)
