"""Does grouping sentences of like length cost accuracy? Trains both ways with several seeds and
compares.

    python benchmarks/shuffling.py                        # the offline pair, seeds 1 2 3
    python benchmarks/shuffling.py --data DIR --epochs 1  # any options of train.py

Uniform batches are what a plain shuffled loader gives: any rows, padded to the longest. Everything
else is the same program. Prints a table and writes benchmarks/results/shuffling.json.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from data import plan_batches
from support.console import run_main
from support.offline import offline_pair
from support.options import parse_options

SEEDS = (1, 2, 3)


def uniform_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    return np.split(order, range(batch_size, len(order), batch_size))


def best_accuracy(arguments: list[str], seed: int, plan) -> float:
    """The best validation accuracy of one run with this way of making batches."""
    with tempfile.TemporaryDirectory() as folder:
        config = train.Config(
            **parse_options(train.Config, [*arguments, "--seed", str(seed), "--out", folder])
        )
        train.plan_batches = plan
        train.train(config)
        records = [
            json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()
        ]
    return max(
        record["validation_accuracy"] for record in records if "validation_accuracy" in record
    )


def main() -> None:
    model, data = offline_pair()
    arguments = ["--model", model, "--data", data, *sys.argv[1:]]
    results = {"arguments": sys.argv[1:], "seeds": SEEDS, "grouped": [], "uniform": []}
    for seed in SEEDS:
        results["grouped"].append(best_accuracy(arguments, seed, plan_batches))
        results["uniform"].append(best_accuracy(arguments, seed, uniform_batches))
    for name in ("grouped", "uniform"):
        values = results[name]
        each = " ".join(f"{value:.4f}" for value in values)
        print(
            f"| {name} | {each} | {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} |"
        )
    path = Path(__file__).parent / "results" / "shuffling.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
