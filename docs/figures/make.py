"""The pictures of docs/guide.md, each from real runs: `make figures`.

It takes about a quarter of an hour on two CPU cores. A run that is finished is not run again; one
that was stopped goes on. The runs lie in out-figures/.
"""

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch
from pyarrow import parquet

from bert import BertForSequenceClassification
from data import batches_by_length, encode, load_data, load_tokenizer, predict
from lora import LinearWithLoRA, LoRALayer, find_targets, open_adapter
from support.offline import offline_pair

OUT = "out-figures"
SENTENCE = "A flawed but engrossing thriller."
FEW = "out-figures/few"
MINILM = "offline/all-MiniLM-L6-v2"
REVIEWS = "offline/movie-reviews"
# By rate how its curve looks: told apart by width and dashes too, not by the colour alone.
RATES = {
    "1e-4": {"color": "#56b4e9", "linewidth": 5},  # lies under 3e-2
    "1e-3": {"color": "#0072b2"},
    "1e-2": {"color": "#e69f00", "linestyle": "--"},
    "3e-2": {"color": "black", "linestyle": ":", "linewidth": 2},
}
RUNS = {  # the options of train.py
    f"lr-{lr}": f"--data {REVIEWS} --epochs 1 --eval-every 40 --log-every 10 --lr {lr}"
    for lr in RATES
}
RUNS["long"] = f"--data {FEW} --epochs 12 --log-every 8 --rank 0 --lr 1e-4"
RUNS["full"] = f"--data {REVIEWS} --epochs 1 --rank 0 --lr 5e-5"
SPECTRA = {  # how the line of each looks
    "W": {"label": "W, the base", "color": "0.6"},
    "full": {"label": "ΔW, every weight trained", "color": "#0072b2"},
    "lora": {"label": "ΔW, LoRA of rank 8", "color": "#e69f00", "marker": "o", "markersize": 5},
}


def write_few() -> None:
    """The first 1,000 reviews to train on, beside all that are held out."""
    (ROOT / FEW).mkdir(parents=True, exist_ok=True)
    for split, rows in ("train", 1000), ("validation", None):
        table = parquet.read_table(ROOT / REVIEWS / f"{split}-00000-of-00001.parquet")
        parquet.write_table(table.slice(0, rows), ROOT / FEW / f"{split}.parquet")


def run(name: str) -> None:
    if not (ROOT / OUT / name / "final" / "README.md").exists():  # a run's last file
        words = ["train.py", "--model", MINILM, *RUNS[name].split()]
        words += ["--out", f"{OUT}/{name}", "--resume"]
        print("python", *words, flush=True)
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def history(name: str, quantity: str) -> tuple[list[int], list[float]]:
    """The steps of a run at which `quantity` was noted, and its values."""
    lines = (ROOT / OUT / name / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if quantity in record]
    return [record["step"] for record in records], [record[quantity] for record in records]


def figure(columns: int, height: float = 3.6):
    from matplotlib.figure import Figure  # late, as the runs need no picture

    drawn = Figure(figsize=(10, height), layout="constrained")
    axes = drawn.subplots(1, columns)
    for axis in axes:
        axis.grid(alpha=0.3)
    return drawn, axes


def save(drawn, name: str) -> None:
    drawn.savefig(Path(__file__).with_name(name), dpi=90)


def draw_rates() -> None:
    drawn, axes = figure(2)
    for lr, style in RATES.items():
        for axis, quantity in zip(axes, ("train_loss", "validation_accuracy"), strict=True):
            axis.plot(*history(f"lr-{lr}", quantity), label=f"--lr {lr}", **style)
            axis.set(xlabel="step", title=quantity.replace("_", " "))
    axes[0].set_ylim(0.2, 1.0)
    axes[0].legend(handlelength=4)
    save(drawn, "learning_rate.png")


def draw_long() -> None:
    drawn, axes = figure(2)
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for split, color in ("train", "0.6"), ("validation", "C0"):
            steps, values = history("long", f"{split}_{name}")
            epochs = [step / 32 for step in steps]  # 1,000 reviews in batches of 32
            axis.plot(epochs, values, color=color, label=split)
        axis.set(xlabel="epoch", title=name)
        axis.legend()
    save(drawn, "too_long.png")


def weight(model: torch.nn.Module, name: str) -> torch.Tensor:
    """W + ΔW of a linear layer, with or without an adapter."""
    layer = model.get_submodule(name)
    linear = layer.merged() if isinstance(layer, LinearWithLoRA) else layer
    return linear.weight.detach()


def spectra() -> dict[str, dict[str, torch.Tensor]]:
    """By layer the singular values (D,), largest first, of W, and of ΔW as both runs found it."""
    base = BertForSequenceClassification.from_pretrained(MINILM)
    full = BertForSequenceClassification.from_pretrained(f"{OUT}/full/final")
    lora = open_adapter(f"{OUT}/lr-1e-3/final")
    found = {}
    for n in range(base.config.num_hidden_layers):
        for kind in "query", "value":
            name = f"bert.encoder.layer.{n}.attention.self.{kind}"
            W = weight(base, name)
            found[f"{kind} {n}"] = {
                "W": torch.linalg.svdvals(W),
                "full": torch.linalg.svdvals(weight(full, name) - W),
                "lora": torch.linalg.svdvals(weight(lora, name) - W),
            }
    return found


def energy(values: torch.Tensor, rank: int) -> float:
    """The part of a matrix's squared norm that its best approximation of this rank keeps."""
    return (values[:rank].square().sum() / values.square().sum()).item()


def accuracy(model: BertForSequenceClassification) -> float:
    """On the 1,000 reviews that are held out."""
    reviews = load_data(REVIEWS).validation
    encoded = encode(load_tokenizer(MINILM, 128), reviews.texts)
    batches = batches_by_length(encoded.lengths)
    logits = predict(model, encoded, batches, torch.autocast("cpu", enabled=False))  # (N, 2)
    return (logits.argmax(-1).numpy() == reviews.labels).mean().item()


@torch.no_grad()
def print_truncated() -> None:
    """The model with every weight trained, where ΔW of each layer's six linear layers is cut to a
    low rank."""
    base = BertForSequenceClassification.from_pretrained(MINILM)
    for rank in 0, 1, 2, 4, 8, 384:
        model = BertForSequenceClassification.from_pretrained(f"{OUT}/full/final")
        for name in find_targets(model, "all-linear"):
            if ".encoder." in name:
                layer, W = model.get_submodule(name), base.get_submodule(name).weight
                U, S, Vt = torch.linalg.svd(layer.weight - W, full_matrices=False)
                layer.weight.copy_(W + U[:, :rank] * S[:rank] @ Vt[:rank])
        print(f"every weight trained, ΔW cut to rank {rank:>3}: accuracy {accuracy(model):.1%}")


def draw_inside() -> None:
    """Attention before and after training, by examples/look_inside.py."""
    inside = ROOT / OUT / "inside"
    shutil.rmtree(inside, ignore_errors=True)
    words = ["-m", "examples.look_inside", f"{OUT}/lr-1e-3/final", SENTENCE, "--out", str(inside)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    shutil.copy(inside / "attention.png", Path(__file__).with_name("attention.png"))


def draw_spectra() -> None:
    found = spectra()
    drawn, axes = figure(2)
    for axis, layer in zip(axes, ("query 5", "value 5"), strict=True):
        for kind, style in SPECTRA.items():
            values = found[layer][kind]
            kept = values[:8] if kind == "lora" else values
            axis.loglog(range(1, len(kept) + 1), kept, **{"marker": "."} | style)
        axis.set_ylim(1e-4, 10)
        axis.set(
            xlabel="number of the singular value, the largest first", title=f"{layer[:5]}, layer 5"
        )
    axes[0].set_ylabel("singular value")
    axes[0].annotate(
        "rank 8: eight values,\nthe other 376 are 0",
        xy=(8, found["query 5"]["lora"][7]),
        xytext=(14, 0.15),
        arrowprops={"arrowstyle": "->"},
    )
    axes[0].legend(loc="lower left")
    save(drawn, "singular_values.png")
    for layer, values in found.items():
        print(layer, *(f"{kind} {values[kind][0]:.2f}" for kind in SPECTRA))
    print("The part of the squared norm in so many singular values, the mean of 12 matrices:")
    print("rank   W     ΔW full  ΔW LoRA")
    for rank in 1, 8, 32, 96:
        means = []
        for kind in SPECTRA:
            parts = [energy(values[kind], rank) for values in found.values()]
            means.append(f"{sum(parts) / len(parts):6.1%}")
        print(f"{rank:>4}", *means)


@torch.no_grad()
def print_sizes() -> None:
    """What becomes of the two ΔW where they are merged: new directions, rounding, halves."""
    base = BertForSequenceClassification.from_pretrained(MINILM)
    full = BertForSequenceClassification.from_pretrained(f"{OUT}/full/final")
    lora = open_adapter(f"{OUT}/lr-1e-3/final")
    names = find_targets(base, ["query", "value"])
    for kind, model in ("full", full), ("lora", lora):
        relative, familiar, lost = [], [], []
        for name in names:
            W = weight(base, name)
            both = weight(model, name)
            delta = both - W
            relative.append(delta.norm() / W.norm())
            # How near the first direction of W + ΔW is to any of the 384 of W (1: one of them).
            first = torch.linalg.svd(both).U[:, 0]
            familiar.append((torch.linalg.svd(W).U.T @ first).abs().max())
            lost.append((both.bfloat16().float() - both).norm() / delta.norm())
        means = [sum(values) / len(values) for values in (relative, familiar, lost)]
        print(f"{kind}: ‖ΔW‖/‖W‖ {means[0]:.3f}, cosine {means[1]:.2f}, ", end="")
        print(f"part of ΔW that bfloat16 loses {means[2]:.1%}")
    for part in 1.0, 0.5, 0.25:
        print(f"ΔW of LoRA times {part}: accuracy {accuracy(scaled(lora, part)):.1%}")


def scaled(model: torch.nn.Module, part: float) -> torch.nn.Module:
    """A copy that adds only a part of each ΔW."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, LoRALayer):
            module.scaling *= part
    return copied


DRAW = draw_rates, draw_long, draw_inside, draw_spectra, print_sizes, print_truncated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    listed = ", ".join(RUNS)
    parser.add_argument("names", nargs="*", help=f"of {listed}: those runs alone, and no picture")
    names = parser.parse_args().names
    os.chdir(ROOT)
    offline_pair()
    write_few()
    for name in names or RUNS:
        run(name)
    if not names:
        for draw in DRAW:
            draw()


if __name__ == "__main__":
    main()
