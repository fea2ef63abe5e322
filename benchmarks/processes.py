"""One process against several, as torchrun starts them: sentences a second, and what a message
between them costs.

    python benchmarks/processes.py                          # MiniLM on the reviews: 1 x 2 threads against 2 x 1
    python benchmarks/processes.py --shape base             # the same with bert-base's shapes, random weights
    python benchmarks/processes.py --what reading           # time and memory of the tokens, one process and four

Every contender trains real steps of train.py in processes of its own, in turn; the medians of the
rounds are shown.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train
from bert import BertConfig, BertForSequenceClassification
from data import plan_batches
from support import distributed
from support.offline import offline_pair


def measure(config: train.Config, steps: int, way: str) -> dict:
    """Seconds a step of this process, and those of its parts. With "ddp" PyTorch's own class adds
    the gradients up."""
    run = train.set_up(config)
    if way == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        run.model.bert = DistributedDataParallel(run.model.bert)
        run.model.bert.config = run.model.bert.module.config
    plan = plan_batches(run.train.lengths, run.sentences_per_step, seed=0, epoch=0)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    waited, whole = [], distributed.sum_gradients

    def timed(*given):
        begun = time.perf_counter()
        result = list(given[1:]) if way == "ddp" else whole(*given)
        waited.append(time.perf_counter() - begun)
        return result

    distributed.sum_gradients = timed
    run.model.train()
    for rows in plan[:3]:
        train.train_step(run, rows)
    waited.clear()
    distributed.largest(0)
    begun = time.perf_counter()
    for rows in plan[3 : 3 + steps]:
        train.train_step(run, rows)
        distributed.largest(0, 0)
    seconds = time.perf_counter() - begun
    sentences = sum(map(len, plan[3 : 3 + steps]))
    for p in parameters:
        p.grad = torch.zeros_like(p)
    alone = []
    for _ in range(20):
        distributed.largest(0)
        begun = time.perf_counter()
        whole(parameters, torch.zeros(()))
        alone.append(time.perf_counter() - begun)
    size = 4 * sum(p.numel() for p in parameters)
    told = {
        "sentences": sentences / seconds,
        "step": seconds / steps,
        "waited": sum(waited) / steps,
        "bytes": size,
    }
    return told | {"alone": statistics.median(alone)}


def worker(given: argparse.Namespace) -> None:
    distributed.start()
    config = train.Config(
        given.model, given.data, processes=distributed.SIZE, batch_size=32 // distributed.SIZE, device="cpu",
        lr=1e-3, max_length=given.max_length, targets=given.targets, rank=given.rank,
    )  # fmt: skip
    told = measure(config, given.steps, given.worker)
    if distributed.is_first():
        Path(given.result).write_text(json.dumps(told))
    os._exit(0)


def reader(given: argparse.Namespace) -> None:
    """Seconds of reading and tokenizing, and the private memory that the tokens take in this
    process."""
    distributed.start()
    private = lambda: sum(
        int(line.split()[1])
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
        if "Private" in line
    )
    config = train.Config(given.model, given.data, device="cpu", max_length=given.max_length)
    distributed.largest(0)
    before, begun = private(), time.perf_counter()
    _, splits = distributed.once_a_machine(lambda: train.read_data(config))
    seconds = time.perf_counter() - begun
    tokens = sum(v.nbytes for split in splits for v in split.values() if v is not None)
    # Every page is read, so that a mapped one would count where it is private.
    read = sum(
        int(np.sum(np.asarray(v))) for split in splits for v in split.values() if v is not None
    )
    grown = distributed.sums(np.array([private() - before], dtype=float)).item() * 1024
    if distributed.is_first():
        Path(given.result).write_text(
            json.dumps({"seconds": seconds, "tokens": tokens, "grown": grown, "sum": read})
        )
    os._exit(0)


def start(processes: int, threads: int, more: list[str], scratch: str) -> dict:
    result = f"{scratch}/result.json"
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        __file__,
    ]
    done = subprocess.run(
        [*words, *more, f"--result={result}"],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
    )
    if done.returncode:
        sys.exit(done.stderr.decode(errors="replace"))
    return json.loads(Path(result).read_text())


def write_base(folder: Path, model: str) -> None:
    """A BERT of bert-base's shapes with random weights, and a real tokenizer."""
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig()).save_pretrained(folder)
    shutil.copy(f"{model}/tokenizer.json", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--what", choices=["training", "reading"], default="training")
    parser.add_argument("--shape", choices=["minilm", "base"], default="minilm")
    parser.add_argument("--data", help="a data set (default: the offline reviews)")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--targets", default="query,value")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return reader(given) if given.worker == "reader" else worker(given)
    model, reviews = offline_pair()
    with tempfile.TemporaryDirectory() as scratch:
        if given.shape == "base":
            write_base(Path(scratch), model)
            model = scratch
        more = [f"--model={model}", f"--data={given.data or reviews}", f"--steps={given.steps}"]
        more += [
            f"--max-length={given.max_length}",
            f"--targets={given.targets}",
            f"--rank={given.rank}",
        ]
        ways = {
            "1 process, 2 threads": (1, 2, "flat"),
            "2 processes, 1 thread each": (2, 1, "flat"),
        }
        ways |= {"the same with DistributedDataParallel": (2, 1, "ddp")}
        if given.what == "reading":
            ways = {"1 process": (1, 1, "reader"), "4 processes": (4, 1, "reader")}
        results = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, (processes, threads, way) in ways.items():
                results[name].append(start(processes, threads, [*more, f"--worker={way}"], scratch))
    for name, rounds in results.items():
        middle = {key: statistics.median(told[key] for told in rounds) for key in rounds[0]}
        if given.what == "reading":
            size, grown = middle["tokens"] / 2**20, middle["grown"] / 2**20
            print(
                f"{name:<12} {middle['seconds']:6.2f} s; tokens {size:.2f} MiB, memory grown {grown:.2f} MiB in all"
            )
        else:
            print(
                f"{name:<38} {middle['sentences']:7.1f} sentences/s; a step {1e3 * middle['step']:.1f} ms, of which "
                f"adding up {1e3 * middle['waited']:.1f} ms ({1e3 * middle['alone']:.2f} ms alone, "
                f"{middle['bytes'] / 1e6:.2f} MB)"
            )


if __name__ == "__main__":
    main()
