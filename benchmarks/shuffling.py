"""Does grouping sentences of like length cost accuracy? Trains both ways with several seeds.

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
from support import options
from support.errors import run_main
from support.offline import offline_pair

SEEDS = (1, 2, 3)


def uniform_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    return np.split(order, range(batch_size, len(order), batch_size))


def best_accuracy(given: dict, plan) -> float:
    """The best validation accuracy of one run with this way of making batches."""
    train.plan_batches = plan
    with tempfile.TemporaryDirectory() as folder:
        train.train(train.Config(**given, out=folder))
        lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    scores = [record.get("validation_accuracy") for record in records]
    return max(score for score in scores if score is not None)


def main() -> None:
    model, data = offline_pair()
    given = {"model": model, "data": data} | options.parse(train.Config, sys.argv[1:], __doc__)
    ways = {"grouped": plan_batches, "uniform": uniform_batches}
    results = {"arguments": sys.argv[1:], "seeds": SEEDS} | {name: [] for name in ways}
    for seed in SEEDS:
        for name, plan in ways.items():
            results[name].append(best_accuracy(given | {"seed": seed}, plan))
    for name in ways:
        values = results[name]
        each = " ".join(f"{value:.4f}" for value in values)
        mean = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
        print(f"| {name} | {each} | {mean} |")
    path = Path(__file__).parent / "results" / "shuffling.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_main(main)
