"""What ia3.py, dora.py and adalora.py share: training on the offline reviews, LoRA first, then the
other method."""

from pathlib import Path

from torch import nn
from tqdm import tqdm

import train
from data import plan_batches
from support.files import InputError
from support.offline import offline_pair
from support.options import OneLineParser


def train_beside_lora(
    method: str, rewrite, save, prepare=None, lr: float = 1e-3, **settings
) -> nn.Module:
    """Trains MiniLM on the reviews with LoRA, then with `method`; prints the accuracy and what is
    trained of each.

    `rewrite(model)` turns the model that train.py makes of `settings` into one of the method, whose
    model is returned; `save(model, folder, base)` writes its adapter; `prepare(run)`, if given,
    returns another train_step for it.
    """
    parser = OneLineParser(description=f"Trains {method} on the offline reviews, beside LoRA.")
    parser.add_argument(
        "--epochs", type=int, default=3, help="passes over the 9,070 sentences (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of everything random (default: 42)")
    parser.add_argument(
        "--lr", type=float, default=lr, help=f"the method's learning rate (default: {lr:g})"
    )
    parser.add_argument(
        "--out",
        default=f"out-{method.lower()}",
        help="where its adapter goes (default: %(default)s)",
    )
    parser.add_argument("--alone", action="store_true", help="train no LoRA before it")
    given = parser.parse_args()
    if Path(given.out).exists():
        raise InputError(f"{given.out} is there already: remove it, or give another --out")
    base, data = offline_pair()
    common = {
        "model": base,
        "data": data,
        "device": "cpu",
        "epochs": given.epochs,
        "seed": given.seed,
    }
    if not given.alone:
        fit("LoRA", train.set_up(train.Config(**common, lr=1e-3)))
    run = train.set_up(train.Config(**common, lr=given.lr, **settings), rewrite)
    fit(method, run, prepare(run) if prepare else train.train_step)
    save(run.model, given.out, base)
    print(f"the adapter is in {given.out}")
    return run.model


def fit(method: str, run: train.Run, train_step=train.train_step) -> None:
    """All steps of a run, and nothing else of train.fit; then what has come of it."""
    run.model.train()
    for epoch in range(run.config.epochs):
        plan = plan_batches(run.train.lengths, run.sentences_per_step, run.config.seed, epoch)
        for rows in tqdm(
            plan, f"{method}, epoch {epoch + 1}", unit=" steps", leave=False, disable=None
        ):
            train_step(run, rows)
            run.progress.step += 1
    accuracy = train.evaluate(run)["accuracy"]
    sizes = {name: p.numel() for name, p in run.model.named_parameters() if p.requires_grad}
    classifier = sum(size for name, size in sizes.items() if name.startswith("classifier."))
    print(
        f"{method:<8} accuracy {accuracy:.1%}  trained {sum(sizes.values()) - classifier:,} + {classifier}",
        flush=True,
    )
