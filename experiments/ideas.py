"""train.py with ideas of others in it, to measure what each is worth; none is in the five files.

    python experiments/ideas.py loraplus_lr_ratio=16 --lr 5e-4           # all options of train.py
    python experiments/ideas.py cosine base_dropout=0 --targets all-linear

The words before the options are functions below, and what stands after = their number; --help lists
them. Each takes the place of functions of train.py or stands around them, so that a reader sees
what the idea is.
"""

import contextlib
import itertools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from bert import Dropout
from lora import LinearWithLoRA, LoRALayer
from support import distributed, faster
from support.console import run_main
from support.files import InputError, write_text
from support.options import ABOVE_0, BELOW_1, FRACTION


def after_set_up(alter) -> None:
    """`alter` changes the run that train.set_up has put together."""
    set_up = train.set_up

    def changed(*arguments):
        run = set_up(*arguments)
        alter(run)
        return run

    train.set_up = changed


def loraplus_lr_ratio(ratio: float) -> None:
    """B learns by so many times --lr, which A and the classifier keep (LoRA+, Hayou et al., 2024,
    arXiv:2402.12354)."""

    def alter(run):
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        group = run.optimizer.param_groups[0]
        of_B = [parameter for parameter in group["params"] if "lora_B" in names[parameter]]
        group["params"] = [
            parameter for parameter in group["params"] if "lora_B" not in names[parameter]
        ]
        run.optimizer.add_param_group({**group, "params": of_B})

        def raise_rate(optimizer, *_):
            optimizer.param_groups[-1]["lr"] *= (
                ratio  # train_step has just set it to what the others have
            )

        run.optimizer.register_step_pre_hook(raise_rate)

    after_set_up(alter)


def adam_beta2(beta2: float) -> None:
    """AdamW's memory of squared gradients, else 0.999; 0.98 forgets those of the first steps sooner
    (RoBERTa, Liu et al., 2019, arXiv:1907.11692, section 3.1)."""

    def alter(run):
        for group in run.optimizer.param_groups:
            group["betas"] = (group["betas"][0], beta2)

    after_set_up(alter)


def schedule(shape) -> None:
    """`shape` says what part of the rate is left after a part of the steps that follow the
    warm-up."""

    def learning_rate(config, step: int, steps: int) -> float:
        warmup = math.ceil(config.warmup_ratio * steps)
        return config.lr * (
            step / warmup if step < warmup else shape((step - warmup) / max(1, steps - warmup))
        )

    train.learning_rate = learning_rate


def cosine() -> None:
    """The rate falls as half a cosine (Loshchilov & Hutter, 2017, arXiv:1608.03983)."""
    schedule(lambda part: (1 + math.cos(math.pi * part)) / 2)


def stable(decay: float) -> None:
    """Warm-up, stable, decay: the full rate, and at the end, for such a part of the steps, 1 - √
    (Hägele et al., 2024, arXiv:2405.18392)."""
    schedule(lambda part: 1 - math.sqrt(max(0, (part - 1 + decay) / decay)))


def label_smoothing(amount: float) -> None:
    """The loss asks for 1 - amount, not for 1 (Szegedy et al., 2016, arXiv:1512.00567)."""
    plain = train.F.cross_entropy

    def refuse_regression(run):
        if run.model.config.problem_type == "regression":
            raise InputError("label_smoothing is for classes; this is a regression")

    def cross_entropy(logits, labels, **options):
        return plain(
            logits, labels, label_smoothing=amount if torch.is_grad_enabled() else 0.0, **options
        )

    after_set_up(refuse_regression)
    train.F = SimpleNamespace(**vars(train.F) | {"cross_entropy": cross_entropy})


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
    """What is scored and kept is a mean of the weights, in which a step counts `memory` times as
    much as the next one (an exponential moving average; Polyak & Juditsky, 1992); what is trained
    is not changed by it."""

    def alter(run):
        run.trained = [
            parameter for group in run.optimizer.param_groups for parameter in group["params"]
        ]
        run.means = [parameter.detach().clone() for parameter in run.trained]

        def follow(*_):
            weight = max(
                1 - memory, 1 / (1 + run.progress.step)
            )  # of the first steps the plain mean
            torch._foreach_lerp_(
                run.means, [parameter.detach() for parameter in run.trained], weight
            )

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


def begin_at(directions) -> None:
    """A and B begin as `directions` says, and W without their ΔW is frozen, so that nothing changes
    at first.

    What is saved is what was learned since, BA - B₀A₀: an adapter of rank 2R on the plain base, as
    PEFT makes of it. Take --dropout 0: what A reads is now a part of what the base itself says.
    """

    @torch.no_grad()
    def alter(run):
        layers = [module for module in run.model.modules() if isinstance(module, LinearWithLoRA)]
        run.begun = []
        for layer, start in zip(layers, directions(run, layers), strict=True):
            A, B = distributed.copied(list(start))
            layer.lora.lora_A.weight.copy_(A)
            layer.lora.lora_B.weight.copy_(B)
            layer.linear.weight -= layer.lora.delta()
            run.begun.append(
                (layer.lora, layer.lora.lora_A.weight.clone(), layer.lora.lora_B.weight.clone())
            )

    @contextlib.contextmanager
    def on_the_plain_base(run):
        linears = [linear for lora, *_ in run.begun for linear in (lora.lora_A, lora.lora_B)]
        learned, settings = [linear.weight for linear in linears], run.model.lora_config
        run.model.lora_config = settings | {
            name: 2 * settings[name] for name in ("r", "lora_alpha")
        }
        for lora, A, B in run.begun:
            lora.lora_A.weight = torch.nn.Parameter(torch.cat([lora.lora_A.weight, A]))  # (2R, in)
            lora.lora_B.weight = torch.nn.Parameter(
                torch.cat([lora.lora_B.weight, -B], 1)
            )  # (out, 2R)
        try:
            yield
        finally:
            run.model.lora_config = settings
            for linear, weight in zip(linears, learned, strict=True):
                linear.weight = weight

    save_model, model_card = train.save_model, train.report.model_card

    def changed(run, folder):
        with on_the_plain_base(run):
            save_model(run, folder)

    def card(config, *others):
        return model_card(config, *others).replace(
            "LoRA (rank", f"LoRA (saved as rank {2 * config.rank}; rank", 1
        )

    after_set_up(alter)
    train.save_model, train.report.model_card = changed, card


def pissa() -> None:
    """A and B begin as W's largest singular directions (PiSSA, Meng et al., 2024,
    arXiv:2404.02948)."""

    def directions(run, layers):
        for layer in layers:
            U, S, V = torch.linalg.svd(layer.linear.weight.float(), full_matrices=False)
            R, root = len(layer.lora.lora_A.weight), S.sqrt() / math.sqrt(layer.lora.scaling)
            yield root[:R, None] * V[:R], U[:, :R] * root[:R]

    begin_at(directions)


def lora_ga(batches: float) -> None:
    """A begins as the R largest singular directions of the gradient of W over so many batches, B as
    the R next (LoRA-GA, Wang et al., 2024, arXiv:2407.05000, with its γ = 16)."""

    def directions(run, layers):
        weights = [layer.linear.weight.requires_grad_(True) for layer in layers]
        gradients, faster.ENABLED = (
            [0.0] * len(weights),
            False,
        )  # the faster forms have no gradient of W
        plan = train.plan_batches(run.train.lengths, run.config.batch_size, run.config.seed, 0)
        for rows in plan[: int(batches)]:
            with torch.enable_grad():
                loss = train.forward(run, run.train, rows)[0]
            gradients = [
                sum(pair)
                for pair in zip(gradients, torch.autograd.grad(loss, weights), strict=True)
            ]
        faster.ENABLED = True
        for layer, W, gradient in zip(layers, weights, gradients, strict=True):
            W.requires_grad_(False)
            U, _, V = torch.linalg.svd(gradient.float(), full_matrices=False)
            R, scale = len(layer.lora.lora_A.weight), len(W) ** 0.25 / 16**0.5
            if len(V) < 2 * R:
                raise InputError(
                    f"--rank {R}: lora_ga takes 2R directions, and a layer here has {len(V)}"
                )
            yield scale * V[:R], scale * U[:, R : 2 * R]

    begin_at(directions)


def classifier_alone() -> None:
    """The adapters are there, but B stays zero, so that they add nothing: what the frozen base
    gives by itself."""

    def mark_only_the_classifier(model) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier."))

    train.mark_only_lora_as_trainable = mark_only_the_classifier


def growing_batch(factor: float) -> None:
    """In the second half of the one epoch so many batches make one step (Smith et al., 2018,
    arXiv:1711.00489)."""
    plan_batches, factor, trained = train.plan_batches, int(factor), []

    def note(run):
        if run.config.epochs > 1:
            raise InputError(
                f"growing_batch is for one epoch, not for --epochs {run.config.epochs}"
            )
        trained.append(run.train.lengths)

    def changed(lengths, *others, **named):
        plan = plan_batches(lengths, *others, **named)
        if not any(lengths is those for those in trained):  # of an evaluation
            return plan
        half = len(plan) // 2
        return plan[:half] + [
            np.concatenate(plan[i : i + factor]) for i in range(half, len(plan), factor)
        ]

    def steps_per_epoch(run) -> int:
        whole = math.ceil(len(run.train.lengths) / run.sentences_per_step)
        return whole // 2 + math.ceil((whole - whole // 2) / factor)

    after_set_up(note)
    train.plan_batches, train.Run.steps_per_epoch = changed, property(steps_per_epoch)


def freezing(part: float) -> None:
    """After such a part of the steps the lower half of the layers is trained no more, and gradients
    end above them (after FreezeOut, Brock et al., 2017, arXiv:1706.04983)."""
    train_step = train.train_step

    def changed(run, rows):
        if run.progress.step >= part * run.steps:
            layers = run.model.bert.encoder.layer
            for still in (run.model.bert.embeddings, layers[: len(layers) // 2]):
                still.requires_grad_(False)
            for group in (
                run.optimizer.param_groups
            ):  # several processes give frozen ones gradients too, of zeros
                group["params"] = [
                    parameter for parameter in group["params"] if parameter.requires_grad
                ]
        return train_step(run, rows)

    train.train_step = changed


WHOLE = ("a whole number from 1 on", lambda value: value >= 1 and value == int(value))
PART = ("above 0 and at most 1", lambda value: 0 < value <= 1)
IDEAS = {  # in the order in which they change train.py; and which numbers they take
    "loraplus_lr_ratio": (loraplus_lr_ratio, ABOVE_0),
    "adam_beta2": (adam_beta2, BELOW_1),
    "cosine": (cosine, None),
    "stable": (stable, PART),
    "label_smoothing": (label_smoothing, BELOW_1),
    "base_dropout": (base_dropout, BELOW_1),
    "pissa": (pissa, None),
    "lora_ga": (lora_ga, WHOLE),
    "classifier_alone": (classifier_alone, None),
    "growing_batch": (growing_batch, WHOLE),
    "freezing": (freezing, FRACTION),
    "average": (average, BELOW_1),  # after those that change what is saved
}
OF_FRESH_ADAPTERS = {"pissa", "lora_ga", "classifier_alone"}
OF_ADAPTERS = OF_FRESH_ADAPTERS | {"loraplus_lr_ratio"}
AT_ODDS = [{"cosine", "stable"}, OF_FRESH_ADAPTERS]
AT_ODDS += [{"classifier_alone", "loraplus_lr_ratio"}, {"classifier_alone", "freezing"}]


def parsed(words: list[str], rank: int = 8, init_adapter: str = "") -> dict[str, list[float]]:
    """The ideas that the words name, each with its number, or none, in the order of IDEAS.

    Raises InputError for a word that is none of them, and for ideas that a run with such adapters
    cannot have.
    """
    found = {}
    for name, _, number in (word.partition("=") for word in words):
        if name not in IDEAS:
            raise InputError(f"{name}: none of the ideas, which are {', '.join(IDEAS)}")
        if name in found:
            raise InputError(f"{name} is given twice; keep one of the two")
        allowed = IDEAS[name][1]
        try:
            found[name] = [float(number)] if number else []
            right = allowed[1](*found[name]) if allowed else not number
        except (TypeError, ValueError, OverflowError):
            right = False
        if not right:
            wanted = (
                f"takes a number, {name}=NUMBER, {allowed[0]}" if allowed else "takes no number"
            )
            raise InputError(f"{name}{'=' * bool(number)}{number}: {name} {wanted}")
    for some in AT_ODDS:
        if len(both := sorted(some & found.keys())) > 1:
            raise InputError(f"{' and '.join(both)} are at odds; take one")
    for name in sorted(OF_ADAPTERS & found.keys()):
        if not rank:
            raise InputError(f"{name}: nothing to do without adapters, as with --rank 0")
        if init_adapter and name in OF_FRESH_ADAPTERS:
            raise InputError(f"{name} begins with fresh adapters; leave out --init-adapter")
    return {name: found[name] for name in IDEAS if name in found}


def spelled(found: dict[str, list[float]]) -> list[str]:
    """The words of such ideas, always the same ones."""
    return [
        "=".join([name, *(repr(number).removesuffix(".0") for number in numbers)])
        for name, numbers in found.items()
    ]


def take(words: list[str]) -> None:
    """Changes train.py by each word, NAME or NAME=NUMBER. Raises InputError for one that is not
    so."""
    for name, numbers in parsed(words).items():
        IDEAS[name][0](*numbers)
    set_up = train.set_up

    def checked(config, *others):
        parsed(words, config.rank, config.init_adapter)
        return set_up(config, *others)

    train.set_up = checked


def sign(words: list[str]) -> None:
    """Everything that names a run's command, and what decides whether a run is the same, has the
    words in it."""
    said, options, console = " ".join(words), train.options, train.console
    identity, again, card = options.identity, console.command_to_resume, train.report.model_card
    write_options = train.run_folder.write_options
    options.identity = lambda *given: identity(*given) | {"ideas": words}
    console.command_to_resume = lambda out: again(out).replace(" --resume", f" {said} --resume", 1)
    ours = f"python experiments/ideas.py {said}"
    train.report.model_card = lambda *given: card(*given).replace(
        "    python train.py", f"    {ours}", 1
    )

    def noted(chosen):
        write_options(chosen)
        if distributed.is_first():
            path = Path(chosen["out"]) / train.run_folder.OPTIONS
            write_text(path, f"{NOTE}{said}\n{path.read_text(encoding='utf-8')}")

    train.run_folder.write_options = noted


NOTE = "# Without these words it is another run: python experiments/ideas.py "


def words_of(folder: Path) -> str:
    """The ideas of the run in a folder, as its config.toml notes them."""
    head = (folder / train.run_folder.OPTIONS).read_text(encoding="utf-8").partition("\n")[0]
    return head.removeprefix(NOTE) if head.startswith(NOTE) else ""


def main() -> None:
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    del sys.argv[1 : 1 + len(words)]
    if {"-h", "--help"} & set(sys.argv):
        for name, (function, allowed) in IDEAS.items():
            print(f"{name}{'=NUMBER' * bool(allowed)}: {' '.join(function.__doc__.split())}\n")
    take(words)
    if words:
        sign(spelled(parsed(words)))
    train.main()


if __name__ == "__main__":
    run_main(main)
