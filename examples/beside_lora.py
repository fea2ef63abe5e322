"""What ia3.py, dora.py, adalora.py and qlora.py share: training on the offline reviews."""

from torch import nn
from tqdm import tqdm

import train
from data import plan_batches
from support.files import refuse_existing
from support.offline import offline_pair
from support.options import OneLineParser


def train_beside_lora(method: str, rewrite, save, prepare=None, lr=1e-3, **settings) -> nn.Module:
    """Trains MiniLM with LoRA, then with `method`, and prints what has come of both.

    `rewrite(model)` turns the model that train.py makes of the options `settings` into one of the
    method, which is returned; `save(model, folder, base)` writes its adapter; `prepare(setup)`, if
    given, returns another train_step for it.
    """
    given = parse(method, lr)
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
    config = train.Config(**common, lr=given.lr, **settings)
    tokenizer, data, model = train.prepare(config)
    setup = train.place(config, tokenizer, data, rewrite(model))
    fit(method, setup, prepare(setup) if prepare else train.train_step)
    save(setup.model, given.out, base)
    print(f"the adapter is in {given.out}")
    return setup.model


def parse(method: str, lr: float):
    parser = OneLineParser(description=f"Trains {method} on the offline reviews, beside LoRA.")
    add = parser.add_argument
    add("--epochs", type=int, default=3, help="passes over the 9,070 sentences (default: 3)")
    add("--seed", type=int, default=42, help="of everything random (default: 42)")
    add("--lr", type=float, default=lr, help=f"the method's learning rate (default: {lr:g})")
    add("--out", default=f"out-{method.lower()}", help="a new folder (default: %(default)s)")
    add("--alone", action="store_true", help="train no LoRA before it")
    given = parser.parse_args()
    refuse_existing(given.out)
    return given


def fit(method: str, setup: train.Setup, train_step=train.train_step) -> None:
    """The loop of train.fit with nothing around the steps; then prints what has come of it."""
    config = setup.config
    step = 0
    setup.model.train()
    for epoch in range(config.epochs):
        plan = plan_batches(setup.train_set.lengths, config.step_rows, config.seed, epoch)
        what = f"{method}, epoch {epoch + 1}"
        for rows in tqdm(plan, what, unit=" steps", leave=False, disable=None):
            train_step(setup, rows, step)
            step += 1
    accuracy = train.evaluate(setup, setup.validation_set)[0]["accuracy"]
    classifier = sum(p.numel() for p in setup.model.classifier.parameters())
    trained = sum(p.numel() for p in setup.model.parameters() if p.requires_grad) - classifier
    print(f"{method:<8} accuracy {accuracy:.1%}  trained {trained:,} + {classifier}", flush=True)
