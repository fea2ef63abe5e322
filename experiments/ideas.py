"""train.py with ideas of others in it, to measure what each is worth; none is in the five files.

    python experiments/ideas.py loraplus_lr_ratio=16 --lr 5e-4      # all options of train.py
    python experiments/ideas.py cosine base_dropout=0 --targets all-linear

The words before the options, NAME or NAME=NUMBER, are functions below. Together they are the option
--ideas, which config.toml keeps as any other. Each changes the Setup that train.set_up has put
together: the optimizer by a hook, the task by another loss, a number in a layer. Where that is not
enough it puts another function in the place of one of train.py's.
"""

import contextlib
import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from data import make_batch
from lora import LinearWithLoRA, LoRALayer
from runtime import checkpoint
from runtime.run import Run
from support import files, parallel
from support.errors import InputError, run_main
from support.options import LIMITS, option
from support.tasks import Classification

# What is learned, and how fast.


def loraplus_lr_ratio(setup: train.Setup, ratio: float) -> None:
    """B learns by so many times --lr, which A and the classifier keep (LoRA+, Hayou et al., 2024,
    arXiv:2402.12354)."""
    names = {parameter: name for name, parameter in setup.model.named_parameters()}
    matrices = setup.optimizer.param_groups[0]
    of_B = [p for p in matrices["params"] if "lora_B" in names[p]]
    matrices["params"] = [p for p in matrices["params"] if "lora_B" not in names[p]]
    setup.optimizer.add_param_group({**matrices, "params": of_B})
    group = setup.optimizer.param_groups[-1]

    def raise_rate(*_) -> None:
        group["lr"] *= ratio  # train_step has just set it to what the others have

    setup.optimizer.register_step_pre_hook(raise_rate)


def adam_beta2(setup: train.Setup, beta2: float) -> None:
    """AdamW's memory of squared gradients, else 0.999; 0.98 forgets those of the first steps sooner
    (RoBERTa, Liu et al., 2019, arXiv:1907.11692, section 3.1)."""
    for group in setup.optimizer.param_groups:
        group["betas"] = (group["betas"][0], beta2)


def cosine(setup: train.Setup) -> None:
    """The rate falls as half a cosine (Loshchilov & Hutter, 2017, arXiv:1608.03983)."""

    def fall(part: float) -> float:
        return (1 + math.cos(math.pi * part)) / 2

    change_schedule(fall)


def stable(setup: train.Setup, decay: float) -> None:
    """Warm-up, stable, decay: the full rate, and at the end, for such a part of the steps, 1 - √
    (Hägele et al., 2024, arXiv:2405.18392)."""

    def fall(part: float) -> float:
        return 1 - math.sqrt(max(0, (part - 1 + decay) / decay))

    change_schedule(fall)


def change_schedule(fall) -> None:
    """`fall(part)` is what is left of --lr after a part of the steps that follow the warm-up."""

    def learning_rate(config: train.Config, step: int, steps: int) -> float:
        warmup = math.ceil(config.warmup_ratio * steps)
        if step < warmup:
            return config.lr * step / warmup
        return config.lr * fall((step - warmup) / max(1, steps - warmup))

    train.learning_rate = learning_rate


def label_smoothing(setup: train.Setup, amount: float) -> None:
    """The loss asks for 1 - amount, not for 1 (Szegedy et al., 2016, arXiv:1512.00567)."""
    if not isinstance(setup.task, Classification):
        raise InputError("label_smoothing is for classes; this is a regression")
    setup.task.label_smoothing = amount


def base_dropout(setup: train.Setup, p: float) -> None:
    """Another dropout in the base than its config's 0.1; --dropout is the adapters' own."""
    own = [module.dropout for module in setup.model.modules() if isinstance(module, LoRALayer)]
    for module in setup.model.modules():
        if isinstance(module, nn.Dropout) and module not in own:
            module.p = p


def freeze(setup: train.Setup, modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.requires_grad_(False)
    for group in setup.optimizer.param_groups:  # or several processes would add up their zeros
        group["params"] = [p for p in group["params"] if p.requires_grad]


def classifier_alone(setup: train.Setup) -> None:
    """The adapters are there, but B stays zero, so that they add nothing: what the frozen base
    gives by itself."""
    freeze(setup, [setup.model.bert])


def freezing(setup: train.Setup, part: float) -> None:
    """After such a part of the steps the lower half of the layers is trained no more, and gradients
    end above them (after FreezeOut, Brock et al., 2017, arXiv:1706.04983)."""
    layers = setup.model.bert.encoder.layer
    lower = [setup.model.bert.embeddings, *layers[: len(layers) // 2]]
    plain = train.train_step

    def train_step(setup: train.Setup, rows: np.ndarray, step: int) -> Tensor:
        if step >= part * setup.steps:
            freeze(setup, lower)
        return plain(setup, rows, step)

    train.train_step = train_step


class GrowingSetup(train.Setup):
    """In the second half of an epoch `factor` batches make one step."""

    factor = 1

    @property
    def steps_per_epoch(self) -> int:
        plain = super().steps_per_epoch
        first = plain // 2
        return first + math.ceil((plain - first) / self.factor)


def growing_batch(setup: train.Setup, factor: float) -> None:
    """In the second half of the one epoch so many batches make one step (Smith et al., 2018,
    arXiv:1711.00489)."""
    factor = int(factor)
    plain = train.plan_batches

    def plan_batches(lengths: np.ndarray, *others) -> list[np.ndarray]:
        plan = plain(lengths, *others)
        half = len(plan) // 2
        later = [plan[i : i + factor] for i in range(half, len(plan), factor)]
        return [*plan[:half], *map(np.concatenate, later)]

    train.plan_batches = plan_batches
    setup.__class__ = GrowingSetup
    setup.factor = factor


# Where A and B begin.


def lora_layers(model: nn.Module) -> list[LinearWithLoRA]:
    return [module for module in model.modules() if isinstance(module, LinearWithLoRA)]


def pissa(setup: train.Setup) -> None:
    """A and B begin as W's largest singular directions (PiSSA, Meng et al., 2024,
    arXiv:2404.02948)."""
    starts = []
    for layer in lora_layers(setup.model):
        U, S, V = torch.linalg.svd(layer.linear.weight.float(), full_matrices=False)
        R = len(layer.lora.lora_A.weight)
        root = (S[:R] / layer.lora.scaling).sqrt()  # (R,)
        starts.append((root[:, None] * V[:R], U[:, :R] * root))
    begin_at(setup, starts)


def lora_ga(setup: train.Setup, batches: float) -> None:
    """A begins as the R largest singular directions of the gradient of W over so many batches, B as
    the R next (LoRA-GA, Wang et al., 2024, arXiv:2407.05000, with its γ = 16)."""
    starts = []
    gradients = gradients_of_W(setup, int(batches))
    for layer, gradient in zip(lora_layers(setup.model), gradients, strict=True):
        U, _, V = torch.linalg.svd(gradient, full_matrices=False)
        R = len(layer.lora.lora_A.weight)
        if len(V) < 2 * R:
            takes = f"lora_ga takes 2R directions, and a layer here has {len(V)}"
            raise InputError(f"--rank {R}: {takes}")
        scale = len(U) ** 0.25 / 16**0.5
        starts.append((scale * V[:R], scale * U[:, R : 2 * R]))
    begin_at(setup, starts)


def gradients_of_W(setup: train.Setup, batches: int) -> list[Tensor]:
    """Those of the layers beside which A and B stand, summed over the first batches."""
    config = setup.config
    weights = [layer.linear.weight.requires_grad_(True) for layer in lora_layers(setup.model)]
    sums = [torch.zeros_like(W, dtype=torch.float32) for W in weights]
    plan = train.plan_batches(setup.train_set.lengths, config.batch_size, config.seed, 0)
    for rows in plan[:batches]:
        *inputs, labels = make_batch(setup.train_set, rows)
        with setup.placement.autocast:
            logits = setup.model(*inputs).float()  # (B, C)
        loss = setup.task.training_loss(logits, labels)
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
            total += gradient
    for W in weights:
        W.requires_grad_(False)
    return sums


@torch.no_grad()
def begin_at(setup: train.Setup, starts: list[tuple[Tensor, Tensor]]) -> None:
    """A (R, in) and B (out, R) of each layer begin so, and W without their ΔW is frozen: nothing
    changes at first.

    What is saved is what was learned since, BA - B₀A₀: an adapter of rank 2R on the plain base, as
    PEFT makes of it. Take --dropout 0: what A reads is now a part of what the base itself says.
    """
    begun = []
    for layer, start in zip(lora_layers(setup.model), starts, strict=True):
        A, B = parallel.broadcast_tensors([tensor.contiguous() for tensor in start])
        layer.lora.lora_A.weight.copy_(A)
        layer.lora.lora_B.weight.copy_(B)
        layer.linear.weight -= layer.lora.delta()
        begun.append((layer.lora, A, B))

    @contextlib.contextmanager
    def on_the_plain_base(setup: train.Setup):
        settings = setup.model.lora_config
        doubled = {name: 2 * settings[name] for name in ("r", "lora_alpha")}
        learned = [(lora.lora_A.weight, lora.lora_B.weight) for lora, _, _ in begun]
        setup.model.lora_config = settings | doubled
        for lora, A, B in begun:
            both_A = torch.cat([lora.lora_A.weight, A])  # (2R, in)
            both_B = torch.cat([lora.lora_B.weight, -B], 1)  # (out, 2R)
            lora.lora_A.weight = nn.Parameter(both_A)
            lora.lora_B.weight = nn.Parameter(both_B)
        try:
            yield
        finally:
            setup.model.lora_config = settings
            for (lora, _, _), (A, B) in zip(begun, learned, strict=True):
                lora.lora_A.weight = A
                lora.lora_B.weight = B

    run_inside(on_the_plain_base, (Run, "save_model"))


# What is scored and kept.


def average(setup: train.Setup, memory: float) -> None:
    """What is scored and kept is a mean of the weights, in which a step counts `memory` times as
    much as the next one (an exponential moving average; Polyak & Juditsky, 1992); what is trained
    is not changed by it."""
    trained = [p for p in setup.model.parameters() if p.requires_grad]
    checkpoint.run_tensors(setup.model, setup.optimizer)  # begins AdamW's states
    states = [setup.optimizer.state[parameter] for parameter in trained]
    for parameter, state in zip(trained, states, strict=True):
        state["mean"] = parameter.detach().clone()  # there a checkpoint keeps it too

    @torch.no_grad()
    def follow(*_) -> None:
        for parameter, state in zip(trained, states, strict=True):
            weight = (1 / state["step"]).clamp(min=1 - memory)  # at first the plain mean
            state["mean"].lerp_(parameter, weight)

    @contextlib.contextmanager
    def with_the_means(setup: train.Setup):
        now = [parameter.detach().clone() for parameter in trained]
        copy(trained, [state["mean"] for state in states])
        try:
            yield
        finally:
            copy(trained, now)

    setup.optimizer.register_step_post_hook(follow)
    run_inside(with_the_means, (train, "evaluate"), (Run, "save_model"))


@torch.no_grad()
def copy(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    torch._foreach_copy_(parameters, values)


def run_inside(context, *places: tuple) -> None:
    """From here on these functions, of train.py or a Run, are run inside context(setup)."""

    def wrapped(function):
        def inside(first, *others):
            with context(getattr(first, "setup", first)):  # of a Run, or the train.Setup
                return function(first, *others)

        return inside

    for owner, name in places:
        setattr(owner, name, wrapped(getattr(owner, name)))


# The words.

POSITIVE = {"above": 0}
BELOW_1 = {"at_least": 0, "below": 1}
PART = {"above": 0, "at_most": 1}
FROM_1 = {"at_least": 1}
IDEAS = {  # in the order in which they are applied; and the limits of their numbers
    loraplus_lr_ratio: POSITIVE,
    adam_beta2: BELOW_1,
    cosine: None,
    stable: PART,
    label_smoothing: BELOW_1,
    base_dropout: BELOW_1,
    pissa: None,
    lora_ga: FROM_1,
    classifier_alone: None,
    growing_batch: FROM_1,
    freezing: {"at_least": 0, "at_most": 1},
    average: BELOW_1,  # after those that change what is saved
}
FUNCTIONS = {function.__name__: function for function in IDEAS}
WHOLE_NUMBERS = {"lora_ga", "growing_batch"}
OF_FRESH_ADAPTERS = {"pissa", "lora_ga", "classifier_alone"}
OF_ADAPTERS = OF_FRESH_ADAPTERS | {"loraplus_lr_ratio"}
AT_ODDS = [
    {"cosine", "stable"},
    OF_FRESH_ADAPTERS,
    {"classifier_alone", "loraplus_lr_ratio"},
    {"classifier_alone", "freezing"},
]


def parse(words: str) -> dict[str, list[float]]:
    """The ideas that the words name, each with its number, or none, in the order of IDEAS.

    Raises InputError for a word that is none of them.
    """
    found = {}
    for word in words.split():
        name, _, number = word.partition("=")
        if name not in FUNCTIONS:
            raise InputError(f"{name}: none of the ideas, which are {', '.join(FUNCTIONS)}")
        if name in found:
            raise InputError(f"{name} is given twice; keep one of the two")
        found[name] = parse_number(word, name, number)
    return {name: found[name] for name in FUNCTIONS if name in found}


def parse_number(word: str, name: str, text: str) -> list[float]:
    limits = IDEAS[FUNCTIONS[name]]
    if limits is None:
        if text:
            raise InputError(f"{word}: {name} takes no number")
        return []
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    fits = [LIMITS[limit](number, bound) for limit, bound in limits.items()]
    is_whole = name not in WHOLE_NUMBERS or number % 1 == 0
    if not math.isfinite(number) or not all(fits) or not is_whole:
        kind = "a whole number" if name in WHOLE_NUMBERS else "a number"
        bounds = [f"{limit.replace('_', ' ')} {bound}" for limit, bound in limits.items()]
        takes = f"{name} takes {kind}, {name}=NUMBER, {' and '.join(bounds)}"
        raise InputError(f"{word}: {takes}")
    return [number]


def spell(found: dict[str, list[float]]) -> str:
    """The words of such ideas, always the same ones."""
    words = []
    for name, numbers in found.items():
        spelled = [repr(number).removesuffix(".0") for number in numbers]
        words.append("=".join([name, *spelled]))
    return " ".join(words)


def refuse_unfit(found: dict[str, list[float]], config: train.Config) -> None:
    """Raises InputError for ideas that do not go with each other, or with the other options."""
    for group in AT_ODDS:
        both = sorted(group & found.keys())
        if len(both) > 1:
            raise InputError(f"{' and '.join(both)} are at odds; take one")
    for name in sorted(OF_ADAPTERS & found.keys()):
        if not config.rank:
            raise InputError(f"{name}: nothing to do without adapters, as with --rank 0")
        if config.init_adapter and name in OF_FRESH_ADAPTERS:
            raise InputError(f"{name} begins with fresh adapters; leave out --init-adapter")
    if "growing_batch" in found and config.epochs > 1:
        raise InputError(f"growing_batch is for one epoch, not for --epochs {config.epochs}")


# The program.


@dataclass
class Config(train.Config):
    """train.py's options, and the ideas."""

    ideas: str = option("", f"NAME or NAME=NUMBER, with spaces between: {', '.join(FUNCTIONS)}")

    def __post_init__(self):
        super().__post_init__()
        found = parse(self.ideas)
        refuse_unfit(found, self)
        self.ideas = spell(found)


plain_set_up = train.set_up
plain_save_model = Run.save_model


def set_up(config: Config) -> train.Setup:
    """train.set_up, and then each idea."""
    setup = plain_set_up(config)
    for name, number in parse(config.ideas).items():
        FUNCTIONS[name](setup, *number)
    return setup


def save_model(run: Run, name: str) -> None:
    """Run.save_model, and then the card says what is so of this program alone."""
    plain_save_model(run, name)
    if not parallel.is_first():
        return
    setup = run.setup
    card = run.out / name / "README.md"
    text = card.read_text(encoding="utf-8")
    text = text.replace("    python train.py", "    python experiments/ideas.py", 1)
    rank = setup.config.rank
    saved_rank = setup.model.lora_config["r"] if rank else 0
    if saved_rank != rank:
        text = text.replace("LoRA (rank", f"LoRA (saved as rank {saved_rank}; rank", 1)
    files.write_text(card, text)


def main() -> None:
    words = [*itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:])]
    if words:
        sys.argv[1 : 1 + len(words)] = [f"--ideas={' '.join(words)}"]
    train.Config = Config
    train.set_up = set_up
    Run.save_model = save_model
    train.main()


if __name__ == "__main__":
    run_main(main)
