"""How many labels does a task need? LoRA, every weight, and the classifier alone on few reviews.

    python experiments/few_labels.py                                            # three seeds
    python experiments/few_labels.py --runs experiments/few-labels-runs.jsonl   # the kept ones

A seed draws the rows too, so that the spread of the seeds is that of another small table as well. A
run is a line of --runs, and is not done again. Then a table is printed and the picture drawn. All
take batches of 16: 60 steps, or 3 epochs where those are more.
"""

import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ideas

import train
from data import Encoded, plan_batches
from support.errors import run_main
from support.offline import offline_pair
from support.options import OneLineParser

SIZES = [8, 16, 64, 256, 1024]  # rows of each class
STEPS = 60
DTYPE = "bfloat16"  # takes 0.73 of the time where the CPU has it
# Rates: those that docs/results.md found best where steps are few.
METHODS = {
    "LoRA": {"lr": 3e-3},
    "every weight": {"lr": 1e-4, "rank": 0},
    "the classifier alone": {"lr": 3e-3, "rank": 1},
}
STYLES = {
    "LoRA": {"color": "#0072b2", "marker": "o"},
    "every weight": {"color": "#e69f00", "marker": "s", "linestyle": "--"},
    "the classifier alone": {"color": "0.4", "marker": "^", "linestyle": ":"},
}


def draw_rows(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`size` rows of each class of the labels (N,), shuffled."""
    generator = np.random.default_rng(seed)
    drawn = [
        generator.choice(np.flatnonzero(labels == number), size, replace=False)
        for number in np.unique(labels)
    ]
    return generator.permutation(np.concatenate(drawn))


def take(data: Encoded, rows: np.ndarray) -> Encoded:
    """The same flat array of tokens, of which these rows alone are read."""
    labels = None if data.labels is None else data.labels[torch.from_numpy(rows)]
    return replace(data, starts=data.starts[rows], lengths=data.lengths[rows], labels=labels)


def run(base: str, data: str, method: str, size: int, seed: int) -> dict:
    """One training, and its scores on the held-out reviews."""
    steps_per_epoch = math.ceil(2 * size / 16)
    config = train.Config(
        model=base,
        data=data,
        seed=seed,
        epochs=max(3, math.ceil(STEPS / steps_per_epoch)),
        batch_size=16,
        device="cpu",
        dtype=DTYPE,
        **METHODS[method],
    )
    setup = train.set_up(config)
    if method == "the classifier alone":
        ideas.classifier_alone(setup)
    assert setup.train_set.labels is not None
    rows = draw_rows(setup.train_set.labels.numpy(), size, seed)
    setup.train_set = take(setup.train_set, rows)
    setup.model.train()
    step = 0
    for epoch in range(config.epochs):
        for batch in plan_batches(setup.train_set.lengths, 16, seed, epoch):
            train.train_step(setup, batch, step)
            step += 1
    scores, _ = train.evaluate(setup, setup.validation_set)
    return {"method": method, "rows a class": size, "seed": seed, **scores}


def summarise(runs: list[dict]) -> str:
    """A table: a row for each method, the mean and the standard deviation of the seeds."""
    sizes = sorted({each["rows a class"] for each in runs})
    lines = [f"| rows a class | {' | '.join(map(str, sizes))} |", "| --- |" + " --- |" * len(sizes)]
    for method in METHODS:
        cells = []
        for size in sizes:
            percents = accuracies(runs, method, size)
            spread = f" ± {statistics.stdev(percents):.1f}" if len(percents) > 1 else ""
            cells.append(f"{statistics.mean(percents):.1f}{spread}" if percents else "–")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracies(runs: list[dict], method: str, size: int) -> list[float]:
    """In percent, a number for each seed."""
    chosen = [r for r in runs if (r["method"], r["rows a class"]) == (method, size)]
    return [100 * each["accuracy"] for each in chosen]


def draw(runs: list[dict], path: Path) -> None:
    """Each run as a point, the means of a method as a line."""
    from matplotlib.figure import Figure  # late, as it takes a second to import

    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for method, style in STYLES.items():
        sizes = sorted({r["rows a class"] for r in runs if r["method"] == method})
        means = [statistics.mean(accuracies(runs, method, size)) for size in sizes]
        axis.plot(sizes, means, label=method, **style)
        for size in sizes:
            points = accuracies(runs, method, size)
            single = style | {"linestyle": "", "markersize": 3, "alpha": 0.5}
            axis.plot([size] * len(points), points, **single)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axis.set_xlabel("labelled reviews of each class")
    axis.set_ylabel("accuracy on 1,000 held-out reviews, %")
    axis.axhline(50, color="0.7", linestyle=":", label="a guess")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--runs", type=Path, default=Path("few-labels-runs.jsonl"), help="(default: %(default)s)")
    add("--seeds", type=int, default=3, help="the seeds 1, 2, … (default: %(default)s)")
    add("--sizes", type=int, nargs="+", default=SIZES, help="rows of each class")
    add("--base", default="", help="another base than MiniLM, as out-read-on")
    add("--picture", type=Path, help="where to draw, as few_labels.png")
    given = parser.parse_args()
    base, data = offline_pair()
    lines = given.runs.read_text().splitlines() if given.runs.exists() else []
    runs = [json.loads(line) for line in lines]
    done = {(r["method"], r["rows a class"], r["seed"]) for r in runs}
    for seed in range(1, given.seeds + 1):
        for size in given.sizes:
            for method in METHODS:
                if (method, size, seed) not in done:
                    runs.append(run(given.base or base, data, method, size, seed))
                    print(json.dumps(runs[-1]), flush=True)
                    with open(given.runs, "a") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
    print(summarise(runs))
    if given.picture:
        draw(runs, given.picture)


if __name__ == "__main__":
    run_main(main)
