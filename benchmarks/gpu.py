"""What one GPU does with this project, in eight minutes at most, and nothing is downloaded.

    make gpu ARGS="--data SST2_DIR --model MINILM_DIR"    # PYTHON=python3: with that one's packages
    python benchmarks/gpu.py --quick                      # every part, small, also on a CPU

Each part is a process of its own and says its figures as it goes. When the time is over it is
ended, and what it has said is kept. The table goes to standard output, all of it to
benchmarks/results/. With --quick, and on a CPU, the figures mean nothing: they show that it runs.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from compare_hf import HERE, ask, begin, end, find_base_and_data, save_results, turn, write_base
from contenders import LR, hf_output
from labelling import write_texts

import train
from data import plan_batches
from lora import load_lora_state_dict
from support.errors import first_line, run_main
from support.options import OneLineParser

ROOT = HERE.parent


def modes(s: SimpleNamespace) -> dict[str, str]:
    """The ways of computing, by their --compile."""
    return {"auto": "auto"} if s.device == "cpu" else {"eager": "no", "auto": "auto"}


def run_tests(s: SimpleNamespace) -> Iterator[dict]:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/runtime/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()] or ["nothing"]
    yield {"what": "tests marked cuda", "figure": lines[-1], "status": done.returncode}


def make_setup(s: SimpleNamespace, **options) -> train.Setup:
    """A training from the base and the adapter on disk, without LoRA's dropout."""
    common = {"model": s.base, "data": s.data, "max_length": s.max_length, "dropout": 0.0}
    common |= {"batch_size": 8, "epochs": 1, "lr": LR, "device": s.device}
    setup = train.set_up(train.Config(**common | options))
    from safetensors.torch import load_file

    load_lora_state_dict(setup.model, load_file(f"{s.adapter}/adapter_model.safetensors"))
    for module in setup.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    setup.model.train()
    return setup


def batches_of(setup: train.Setup, count: int) -> list[np.ndarray]:
    """So many whole batches of the training data."""
    plan = plan_batches(setup.train_set.lengths, setup.config.batch_size, seed=0, epoch=0)
    whole = [rows for rows in plan if len(rows) == setup.config.batch_size]
    return [*itertools.islice(itertools.cycle(whole), count)]


def take_steps(setup: train.Setup, count: int) -> np.ndarray:
    """The mean losses of so many steps."""
    losses = []
    for step, rows in enumerate(batches_of(setup, count)):
        loss_sum = train.train_step(setup, rows, step)
        losses.append(loss_sum / len(rows))
    return torch.stack(losses).cpu().numpy()


def their_losses(s: SimpleNamespace, setup: train.Setup, count: int) -> np.ndarray:
    """Those of transformers + peft on the same batches, in float32, at the same rates."""
    import transformers
    from peft import PeftModel

    base = transformers.AutoModelForSequenceClassification.from_pretrained(s.base)
    model = PeftModel.from_pretrained(base, s.adapter, is_trainable=True).to(s.device).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": setup.config.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LR, fused=True)
    losses = []
    for step, rows in enumerate(batches_of(setup, count)):
        output, _ = hf_output(model, setup.train_set, rows)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, setup.config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate(setup.config, step, setup.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.detach())
    return torch.stack(losses).cpu().numpy()


def measure_parity(s: SimpleNamespace) -> Iterator[dict]:
    """Fifty losses beside those of a CPU in float32, and of transformers + peft on the device."""
    count = 4 if s.quick else 50
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu = take_steps(make_setup(s, device="cpu", dtype="float32"), count)
    plain = make_setup(s, dtype="float32", compile="no")
    yield far_apart("float32, transformers + peft", their_losses(s, plain, count), on_cpu)
    yield far_apart("float32", take_steps(plain, count), on_cpu)
    for dtype in ("float32", "bfloat16", "float16"):
        setup = make_setup(s, dtype=dtype)
        yield far_apart(f"{dtype}, --compile auto", take_steps(setup, count), on_cpu)


def far_apart(what: str, losses: np.ndarray, on_cpu: np.ndarray) -> dict:
    error = float(np.abs(losses - on_cpu).max())
    figure = f"{error:.2g}"
    return {"what": f"{len(losses)} losses, {what}, beside the CPU's", "figure": figure}


def measure_speed(s: SimpleNamespace) -> Iterator[dict]:
    """Sentences a second and the peak of memory, of processes that take turns."""
    names = ["ours", "ours-eager", "hf-grouped", *([] if s.quick else ["hf-compiled"])]
    half = "float32" if s.device == "cpu" else "bfloat16"
    for batch_size, dtype in [(size, half) for size in s.sizes] + [(s.sizes[0], "float16")]:
        of = SimpleNamespace(**vars(s) | {"batch_size": batch_size, "dtype": dtype})
        of.targets, of.rank, of.dropout, of.warmup = "query,value", 8, 0.05, 3 if s.quick else 50
        of.steps, of.rounds = (2, 1) if s.quick else (100, 3)
        competing = names if dtype == half else ["ours", "ours-eager"]
        if dtype == half and batch_size == s.sizes[0] and not s.quick:
            competing = [*names, "hf-trainer"]  # their usual recipe
        workers = {name: begin("contenders.py", name, of) for name in competing}
        try:
            computes = {name: ask(workers, name).get("computes") for name in competing}
            rounds = {name: [] for name in competing}
            for number in range(of.rounds + 1):
                for name in turn(competing, number):
                    answer = ask(workers, name, "go\n")
                    if number:
                        rounds[name].append(answer)
        finally:
            end(workers)
        for name, answers in rounds.items():
            beside = zip(answers, rounds["ours"], strict=True)
            ratio = median(a["seconds"] / b["seconds"] for a, b in beside)
            rate = median(of.steps * batch_size / answer["seconds"] for answer in answers)
            memory = answers[-1]["memory"]
            yield {
                "what": f"{name}, {dtype}, batches of {batch_size}",
                "figure": f"{rate:,.0f} sentences/s, time {ratio:.2f}, {memory / 2**20:,.0f} MiB",
                "rounds": answers,
                "computes": computes[name],
            }


def measure_steps(s: SimpleNamespace) -> Iterator[dict]:
    """What it takes until a step is fast, and how much of its time the GPU is at work."""
    from torch._dynamo.utils import counters

    for name, compile in modes(s).items():
        setup = make_setup(s, compile=compile, batch_size=min(32, s.sizes[0]))
        plan = batches_of(setup, 10 if s.quick else 200)
        counters.clear()
        begun = time.perf_counter()
        for step, rows in enumerate(plan):
            train.train_step(setup, rows, step)
        wait_for(s.device)
        seconds = time.perf_counter() - begun
        recorded = getattr(setup.model.forward, "graphs", {})
        yield {
            "what": f"the first {len(plan)} steps, {name}",
            "figure": f"{seconds:.1f} s, {counters['stats']['unique_graphs']} compilations, "
            f"{len(recorded)} shapes",
            "notes": setup.placement.notes,
        }
        yield profile(s, setup, plan[:20], name)


def profile(s: SimpleNamespace, setup: train.Setup, plan: list[np.ndarray], name: str) -> dict:
    from torch.profiler import ProfilerActivity

    on_cuda = s.device == "cuda"
    activities = [ProfilerActivity.CUDA] if on_cuda else [ProfilerActivity.CPU]
    wait_for(s.device)
    begun = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profiler:
        for step, rows in enumerate(plan):
            train.train_step(setup, rows, step)
        wait_for(s.device)
    seconds = time.perf_counter() - begun
    events = profiler.key_averages()
    at_work = sum(e.self_device_time_total if on_cuda else e.self_cpu_time_total for e in events)
    waits = sum(e.count for e in events if "Synchronize" in e.key)
    part = f"{at_work / 1e6 / seconds:.0%} of the time at work"
    figure = f"{1000 * seconds / len(plan):.2f} ms a step, {part}, {waits} waits in all"
    return {"what": f"a step, profiled, {name}", "figure": figure}


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run_program(*words: str) -> tuple[float, subprocess.CompletedProcess]:
    """The seconds that a program of this project takes from its start to its end."""
    begun = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    return time.perf_counter() - begun, done


def measure_programs(s: SimpleNamespace) -> Iterator[dict]:
    """Three epochs from start to saved adapter; an answer; the same bytes again; a table."""
    common = ["--data", s.data, "--device", s.device, "--max-length", str(s.max_length)]
    few = ["--epochs", "1"] if s.quick else []
    bases = {"small": ("the small base", s.model, "1e-3"), "large": (s.shape, s.base, "5e-4")}
    for folder, (name, base, rate) in bases.items():
        out = f"{s.scratch}/out-{folder}"
        words = ["train.py", "--model", base, *common, "--lr", rate, *few, "--out", out]
        seconds, done = run_program(*words)
        best = done.stdout.strip().rpartition("best validation ")[2].partition(",")[0]
        said = best if not done.returncode else done.stderr
        yield {"what": f"training of {name}, whole", "figure": f"{seconds:.1f} s, {said.strip()}"}
    of_model = ["--adapter", f"{s.scratch}/out-small/best", "--device", s.device]
    seconds, done = run_program("sample.py", *of_model, "great film")
    yield {"what": "an answer, from the start", "figure": f"{seconds:.1f} s, {done.stdout.strip()}"}
    rows = 2_000 if s.quick else 1_000_000
    write_texts(rows, f"{s.scratch}/texts.parquet")
    table = ["--file", f"{s.scratch}/texts.parquet", "--out", f"{s.scratch}/labelled.parquet"]
    seconds, done = run_program("sample.py", *of_model, *table)
    said = (done.stderr + done.stdout).strip().splitlines()[-1].replace(s.scratch, "")
    yield {"what": "a table labelled", "figure": f"{rows / seconds:,.0f} rows/s; {said}"}


def measure_resuming(s: SimpleNamespace) -> Iterator[dict]:
    """Whether a run that was stopped in the middle ends in the bytes of one that was not."""
    common = ["train.py", "--model", s.model, "--data", s.data, "--max-length", str(s.max_length)]
    common += ["--device", s.device, "--epochs", "1", "--batch-size", "64"]
    last = "final/adapter_model.safetensors"
    for name, compile in modes(s).items():
        outs = [f"{s.scratch}/{kind}-{name}" for kind in ("through", "stopped")]
        words = [*common, "--compile", compile, "--log-every", "1"]
        _, done = run_program(*words, "--out", outs[0])
        process = subprocess.Popen(
            [sys.executable, *words, "--out", outs[1]],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in process.stdout:
            if re.match(r"step [3-9]/", line):
                process.send_signal(signal.SIGINT)
        process.wait()
        _, done = run_program("train.py", "--resume", "--out", outs[1])
        figure = done.stderr.strip()
        if not done.returncode:
            same = Path(outs[0], last).read_bytes() == Path(outs[1], last).read_bytes()
            figure = "the same bytes" if same else "other bytes"
        yield {"what": f"stopped and gone on with, {name}", "figure": figure}


def measure_memory(s: SimpleNamespace) -> Iterator[dict]:
    """A batch that no GPU holds ends in one line; a smaller one trains after it."""
    if s.device == "cpu":
        yield {"what": "a batch that cannot fit", "figure": "not tried: no GPU"}
        return
    config = train.Config(model=s.base, data=s.data, batch_size=1, device="cuda", compile="no")
    setup = train.set_up(config)
    setup.model.train()
    ids = torch.ones(100_000, s.max_length, dtype=torch.int64, device="cuda")
    figure = "it fitted"
    try:
        setup.model(ids, ids.bool())
    except torch.OutOfMemoryError as error:
        figure = first_line(error)
    del ids
    loss = train.train_step(setup, np.arange(1), 0)
    yield {
        "what": "a batch that cannot fit",
        "figure": f"{figure}; then a loss of {loss.item():.3f}",
    }


PARTS = {
    "tests": run_tests,
    "parity": measure_parity,
    "steps": measure_steps,
    "speed": measure_speed,
    "programs": measure_programs,
    "resuming": measure_resuming,
    "memory": measure_memory,
}


def run_part(name: str, s: SimpleNamespace, seconds: float) -> list[dict]:
    """What a part says in a process of its own, until it ends or its time is over."""
    process = subprocess.Popen(
        [sys.executable, __file__, name, json.dumps(vars(s))],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def stop() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(0.0, seconds), stop)
    timer.start()
    records = []
    for line in process.stdout:
        records.append(json.loads(line))
        print(f"{records[-1]['what']}: {records[-1]['figure']}", file=sys.stderr, flush=True)
    if process.wait() == -signal.SIGKILL:
        records.append({"what": name, "figure": "ended: the time was over"})
    timer.cancel()
    return records


def work(name: str, s: SimpleNamespace) -> None:
    """Prints what a part says, a line of JSON each; an error is one of them."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        for record in PARTS[name](s):
            print(json.dumps(record), file=answers, flush=True)
    except Exception as error:
        figure = f"{type(error).__name__}: {first_line(error)}"
        print(json.dumps({"what": name, "figure": figure}), file=answers, flush=True)


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] in PARTS:
        work(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2])))
        return
    begun = time.perf_counter()
    parser = OneLineParser(description=__doc__)
    glue = os.environ.get("GLUE_DIR")
    sst2 = f"{glue}/sst2" if glue else None
    parser.add_argument("--data", default=sst2, help="(default: GLUE_DIR's sst2, or movie reviews)")
    parser.add_argument("--model", help="a small base (default: MiniLM)")
    parser.add_argument("--minutes", type=float, default=8, help="at most (default: 8)")
    parser.add_argument("--parts", default=",".join(PARTS), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small, to try it; also on a CPU")
    s = SimpleNamespace(**vars(parser.parse_args()))
    s.device = "cuda" if torch.cuda.is_available() else "cpu"
    s.quick = s.quick or s.device == "cpu"
    settings = vars(s).copy()
    s.shape = "the given base" if s.quick else "bert-base"
    s.sizes = [4] if s.quick else [32, 128, 512]
    s.max_length = 24 if s.quick else 128
    s.threads = min(8, os.cpu_count() or 1)
    s.targets, s.rank, s.dropout = "query,value", 8, 0.0
    find_base_and_data(s)
    records = {}
    with tempfile.TemporaryDirectory() as s.scratch:
        write_base(s)
        for name in s.parts.split(","):
            left = 60 * s.minutes - (time.perf_counter() - begun)
            records[name] = run_part(name, s, left)
    print("| what | figure |\n| --- | --- |")
    for record in itertools.chain(*records.values()):
        print(f"| {record['what']} | {record['figure']} |")
    save_results(f"gpu-{s.device}", s, settings, parts=records)


if __name__ == "__main__":
    run_main(main)
