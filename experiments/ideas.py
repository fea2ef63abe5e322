"""train.py with ideas of others in it, to measure what each is worth; none is in the five files.

    python experiments/ideas.py loraplus_lr_ratio=16 --lr 5e-4           # all options of train.py
    python experiments/ideas.py cosine base_dropout=0 --targets all-linear

A word without -- is one of the functions below, and what stands after = its number. Each takes the place of one line of
train.py or stands around it, so that a reader sees what the idea is.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from bert import Dropout
from lora import LinearWithLoRA, LoRALayer
from support import faster
from support.console import run_main
from support.files import InputError


def after_set_up(alter) -> None:
    """`alter` changes the run that train.set_up has put together."""
    set_up = train.set_up

    def changed(*arguments):
        run = set_up(*arguments)
        alter(run)
        return run

    train.set_up = changed


def loraplus_lr_ratio(ratio: float) -> None:
    """B learns by so many times --lr, which A and the classifier keep (LoRA+, Hayou et al., 2024, arXiv:2402.12354)."""

    def alter(run):
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        group = run.optimizer.param_groups[0]
        of_B = [parameter for parameter in group["params"] if "lora_B" in names[parameter]]
        group["params"] = [parameter for parameter in group["params"] if "lora_B" not in names[parameter]]
        run.optimizer.add_param_group({**group, "params": of_B})

        def faster(optimizer, *_):
            optimizer.param_groups[-1]["lr"] *= ratio  # train_step has just set it to what the others have

        run.optimizer.register_step_pre_hook(faster)

    after_set_up(alter)


def adam_beta2(beta2: float) -> None:
    """AdamW's memory of squared gradients, else 0.999; 0.98 forgets those of the first steps sooner (RoBERTa, Liu et
    al., 2019, arXiv:1907.11692, section 3.1)."""
    if not 0 <= beta2 < 1:
        raise ValueError

    def alter(run):
        for group in run.optimizer.param_groups:
            group["betas"] = (group["betas"][0], beta2)

    after_set_up(alter)


def schedule(shape) -> None:
    """`shape` says what part of the rate is left after a part of the steps that follow the warm-up."""

    def learning_rate(config, step: int, steps: int) -> float:
        warmup = math.ceil(config.warmup_ratio * steps)
        return config.lr * (step / warmup if step < warmup else shape((step - warmup) / max(1, steps - warmup)))

    train.learning_rate = learning_rate


def cosine() -> None:
    """The rate falls as half a cosine (Loshchilov & Hutter, 2017, arXiv:1608.03983)."""
    schedule(lambda part: (1 + math.cos(math.pi * part)) / 2)


def stable(decay: float) -> None:
    """Warm-up, stable, decay: the full rate, and at the end, for such a part of the steps, 1 - √ (Hägele et al., 2024,
    arXiv:2405.18392)."""
    if not 0 < decay <= 1:
        raise ValueError
    schedule(lambda part: 1 - math.sqrt(max(0, (part - 1 + decay) / decay)))


def label_smoothing(amount: float) -> None:
    """The loss asks for 1 - amount, not for 1 (Szegedy et al., 2016, arXiv:1512.00567)."""
    plain = train.F.cross_entropy

    def cross_entropy(logits, labels, **options):
        return plain(logits, labels, label_smoothing=amount if torch.is_grad_enabled() else 0.0, **options)

    train.F = type("F", (), {"cross_entropy": staticmethod(cross_entropy), "mse_loss": train.F.mse_loss})


def base_dropout(p: float) -> None:
    """Another dropout in the base than its config's 0.1; --dropout is the adapters' own."""
    build_model = train.build_model

    def changed(*arguments, **options):
        model = build_model(*arguments, **options)
        own = {module.dropout for module in model.modules() if isinstance(module, LoRALayer)}
        for module in model.modules():
            if isinstance(module, Dropout) and module not in own:
                module.p = p
        return model

    train.build_model = changed


def average(memory: float) -> None:
    """What is scored and kept is a mean of the weights, in which a step counts `memory` times as much as the next one
    (an exponential moving average; Polyak & Juditsky, 1992); what is trained is not changed by it."""

    def alter(run):
        run.trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
        run.means = [parameter.detach().clone() for parameter in run.trained]

        def follow(*_):
            weight = max(1 - memory, 1 / (1 + run.progress.step))  # of the first steps the plain mean
            torch._foreach_lerp_(run.means, [parameter.detach() for parameter in run.trained], weight)

        run.optimizer.register_step_post_hook(follow)
        run.checkpoint.trained |= {f"mean {number}": mean for number, mean in enumerate(run.means)}

    def of_the_means(function):
        @torch.no_grad()
        def changed(run, *arguments):
            trained = [parameter.clone() for parameter in run.trained]
            torch._foreach_copy_(run.trained, run.means)
            try:
                return function(run, *arguments)
            finally:
                torch._foreach_copy_(run.trained, trained)

        return changed

    after_set_up(alter)
    train.evaluate, train.save_model = of_the_means(train.evaluate), of_the_means(train.save_model)


def pissa() -> None:
    """A and B start as W's largest singular directions, and W without these is frozen (PiSSA, Meng et al., 2024,
    arXiv:2404.02948). What is saved fits that W alone: this is for the scores."""
    apply = train.apply_lora_to_model

    @torch.no_grad()
    def changed(model, *arguments):
        for module in apply(model, *arguments).modules():
            if isinstance(module, LinearWithLoRA):
                lora, W = module.lora, module.linear.weight
                U, S, V = torch.linalg.svd(W, full_matrices=False)
                R, root = len(lora.lora_A.weight), S.sqrt() / math.sqrt(lora.scaling)
                lora.lora_A.weight.copy_(root[:R, None] * V[:R])
                lora.lora_B.weight.copy_(U[:, :R] * root[:R])
                W -= lora.delta()
        return model

    train.apply_lora_to_model = changed


def lora_ga(batches: float) -> None:
    """A and B start as the largest singular directions of the gradient of W over so many batches, and W without BA is
    frozen (LoRA-GA, Wang et al., 2024, arXiv:2407.05000, with its γ = 16). As with pissa, this is for the scores."""

    def alter(run):
        adapted = [module for module in run.model.modules() if isinstance(module, LinearWithLoRA)]
        weights = [module.linear.weight.requires_grad_(True) for module in adapted]
        gradients, faster.ENABLED = [0.0] * len(weights), False  # the faster forms have no gradient of W
        for rows in train.plan_batches(run.train.lengths, run.config.batch_size, run.config.seed, 0)[: int(batches)]:
            loss = train.forward(run, run.train, rows)[0]
            gradients = [sum(pair) for pair in zip(gradients, torch.autograd.grad(loss, weights), strict=True)]
        faster.ENABLED = True
        for module, W, gradient in zip(adapted, weights, gradients, strict=True):
            W.requires_grad_(False)
            U, _, V = torch.linalg.svd(gradient, full_matrices=False)
            lora, scale = module.lora, len(W) ** 0.25 / 16**0.5
            R = len(lora.lora_A.weight)
            with torch.no_grad():
                lora.lora_A.weight.copy_(scale * V[:R])
                lora.lora_B.weight.copy_(scale * U[:, R : 2 * R])
                W -= lora.delta()

    after_set_up(alter)


def classifier_alone() -> None:
    """The adapters are there, but B stays zero, so that they add nothing: what the frozen base gives by itself."""

    def mark_only_the_classifier(model) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier."))

    train.mark_only_lora_as_trainable = mark_only_the_classifier


def growing_batch(factor: float) -> None:
    """In the second half of an epoch so many batches make one step (Smith et al., 2018, arXiv:1711.00489)."""
    plan_batches, factor = train.plan_batches, int(factor)

    def changed(*arguments):
        plan = plan_batches(*arguments)
        half = len(plan) // 2
        return plan[:half] + [np.concatenate(plan[i : i + factor]) for i in range(half, len(plan), factor)]

    def steps_per_epoch(run) -> int:
        whole = math.ceil(len(run.train.lengths) / run.sentences_per_step)
        return whole // 2 + math.ceil((whole - whole // 2) / factor)

    train.plan_batches, train.Run.steps_per_epoch = changed, property(steps_per_epoch)


def freezing(part: float) -> None:
    """After such a part of the steps the lower half of the layers is trained no more, and gradients end above them
    (after FreezeOut, Brock et al., 2017, arXiv:1706.04983)."""
    if not 0 <= part <= 1:
        raise ValueError
    train_step = train.train_step

    def changed(run, rows):
        if run.progress.step >= part * run.steps:
            layers = run.model.bert.encoder.layer
            layers[: len(layers) // 2].requires_grad_(False)
        return train_step(run, rows)

    train.train_step = changed


EVERY = (loraplus_lr_ratio, adam_beta2, cosine, stable, label_smoothing, base_dropout, average)
EVERY += (pissa, lora_ga, classifier_alone, growing_batch, freezing)
IDEAS = {function.__name__: function for function in EVERY}


def take(words: list[str]) -> None:
    """Changes train.py by each word, NAME or NAME=NUMBER. Raises InputError for one that is not so."""
    for name, _, number in (word.partition("=") for word in words):
        try:
            IDEAS[name](*([float(number)] if number else []))
        except (TypeError, ValueError):
            asked = "a number that experiments/ideas.py says what it is for, or none, as cosine and pissa"
            raise InputError(f"{name}={number}: takes {asked}") from None


def main() -> None:
    words = [word for word in sys.argv[1:] if word.partition("=")[0] in IDEAS]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in words]
    take(words)
    identity, again = train.options.identity, train.console.command_to_resume
    train.options.identity = lambda *given: identity(*given) | {"ideas": words}
    train.console.command_to_resume = lambda out: f"{again(out)} {' '.join(words)}"
    train.main()


if __name__ == "__main__":
    run_main(main)
