"""One process against several, as torchrun starts them: sentences a second, and what a message
between them costs.

    python benchmarks/processes.py                   # MiniLM: 1 x 2 threads against 2 x 1
    python benchmarks/processes.py --shape base      # the same with bert-base's shapes, at random

Every contender trains real steps of train.py in processes of its own, in turn; the medians of the
rounds are shown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train
from bert import BertConfig, BertForSequenceClassification
from data import plan_batches
from runtime.adapters import copy_tokenizer
from support import parallel
from support.offline import offline_pair

WAYS = {  # processes, threads of each, how the gradients are added up
    "1 process, 2 threads": (1, 2, "flat"),
    "2 processes, 1 thread each": (2, 1, "flat"),
    "the same with DistributedDataParallel": (2, 1, "ddp"),
}


def measure(config: train.Config, steps: int, way: str) -> dict:
    """Seconds a step of this process, and those of its parts.

    With "ddp" PyTorch's own class adds the gradients up.
    """
    setup = train.set_up(config)
    if way == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        setup.model.bert = DistributedDataParallel(setup.model.bert)
    plan = plan_batches(setup.train_set.lengths, config.step_rows, seed=0, epoch=0)
    waited = []
    sum_gradients = parallel.sum_gradients

    def timed(parameters, loss_sum) -> None:
        begun = time.perf_counter()
        if way != "ddp":
            sum_gradients(parameters, loss_sum)
        waited.append(time.perf_counter() - begun)

    parallel.sum_gradients = timed
    setup.model.train()
    for step, rows in enumerate(plan[:3]):
        train.train_step(setup, rows, step)
    waited.clear()
    parallel.barrier()
    begun = time.perf_counter()
    for step, rows in enumerate(plan[3 : 3 + steps], 3):
        train.train_step(setup, rows, step)
        parallel.all_max(0, 0)  # as after each step of a run: is there a signal?
    seconds = time.perf_counter() - begun
    parameters = [p for group in setup.optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    alone = []
    for _ in range(20):
        parallel.barrier()
        begun = time.perf_counter()
        sum_gradients(parameters, torch.zeros(()))
        alone.append(time.perf_counter() - begun)
    return {
        "sentences": sum(map(len, plan[3 : 3 + steps])) / seconds,
        "step": seconds / steps,
        "waited": sum(waited) / steps,
        "bytes": 4 * sum(p.numel() for p in parameters),
        "alone": statistics.median(alone),
    }


def work(given: argparse.Namespace) -> None:
    """One of the processes that torchrun starts."""
    parallel.start()
    config = train.Config(
        model=given.model,
        data=given.data,
        processes=parallel.SIZE,
        batch_size=32 // parallel.SIZE,
        device="cpu",
        lr=1e-3,
        max_length=given.max_length,
        targets=given.targets,
        rank=given.rank,
    )
    found = measure(config, given.steps, given.worker)
    if parallel.is_first():
        Path(given.result).write_text(json.dumps(found))
    os._exit(0)


def start(name: str, words: list[str], scratch: str) -> dict:
    """What a contender measures, by its processes under torchrun."""
    processes, threads, way = WAYS[name]
    result = Path(scratch, "result.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun.append(f"--nproc-per-node={processes}")
    worker = [__file__, *words, f"--worker={way}", f"--result={result}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([*torchrun, *worker], env=environment, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode(errors="replace"))
    return json.loads(result.read_text())


def write_base(folder: str, model: str) -> None:
    """A BERT of bert-base's shapes with random weights, and a real tokenizer."""
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig()).save_pretrained(folder)
    copy_tokenizer(Path(model), Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--shape", choices=["minilm", "base"], default="minilm")
    add("--data", help="a data set (default: the offline reviews)")
    add("--model", help=argparse.SUPPRESS)
    add("--steps", type=int, default=40)
    add("--rounds", type=int, default=3)
    add("--max-length", type=int, default=128)
    add("--targets", default="query,value")
    add("--rank", type=int, default=8)
    add("--worker", help=argparse.SUPPRESS)
    add("--result", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given)
    model, reviews = offline_pair()
    results = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        if given.shape == "base":
            write_base(scratch, model)
            model = scratch
        words = [f"--model={model}", f"--data={given.data or reviews}", f"--steps={given.steps}"]
        words += [f"--max-length={given.max_length}", f"--targets={given.targets}"]
        words.append(f"--rank={given.rank}")
        for _ in range(given.rounds):
            for name in WAYS:
                results[name].append(start(name, words, scratch))
    for name, rounds in results.items():
        of = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
        speed = f"{of['sentences']:7.1f} sentences/s; a step {1e3 * of['step']:.1f} ms"
        alone = f"{1e3 * of['alone']:.2f} ms alone, {of['bytes'] / 1e6:.2f} MB"
        print(f"{name:<38} {speed}, with {1e3 * of['waited']:.1f} ms of adding up ({alone})")


if __name__ == "__main__":
    main()
