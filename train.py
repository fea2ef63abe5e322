"""Fine-tunes BERT with LoRA on a task of classification or regression.

    python train.py                                               # bert-base-uncased on SST-2
    python train.py --model DIR --data reviews.csv --epochs 5     # your own
    python train.py --config out/config.toml --out again          # a former run, repeated
    torchrun --nproc-per-node 2 train.py --batch-size 16          # two processes, one run

It leaves in --out best/ and final/, adapters in PEFT's format, checkpoint/, from which --resume
goes on, and a report. This file reads as a run goes: the options, the set-up, a step, the loop,
the evaluation.
"""

from support import errors

errors.explain_from_here(__name__)  # the imports take a second, in which much can go wrong

import functools
import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from bert import BertForSequenceClassification
from data import (
    Encoded,
    batches_by_length,
    encode,
    load_data,
    load_tokenizer,
    make_batch,
    plan_batches,
    predict,
)
from lora import apply_lora_to_model, mark_only_lora_as_trainable
from runtime import adapters, devices, report, run_folder
from runtime.data_notes import data_notes
from runtime.run import Run, open_run
from runtime.run_folder import RunOptions
from support import glue, hub, offline, options, parallel
from support.dataset import Data, DataOptions, Split
from support.options import option
from support.tasks import Task


@dataclass
class Config(RunOptions, DataOptions):
    """Every field is a flag (--batch-size) and a key of the --config file (batch_size).

    DataOptions are those of the tables, RunOptions those of the run's folder, its log, and memory.
    """

    model: str = option(offline.OFFICIAL_MODEL, "base model: a directory, or owner/name[@revision]")
    data: str = option(offline.OFFICIAL_DATA, "a table, a directory of tables, a Hub data set")
    init_adapter: str = option("", "adapter to go on training: a directory, or owner/name")
    epochs: int = option(3, "passes over the training data", at_least=1, also="num-epochs")
    batch_size: int = option(32, "sentences in a batch", at_least=1)
    patience: int = option(0, "stop after so many evaluations without a better one", at_least=0)
    grad_accum: int = option(1, "batches whose gradients are accumulated for a step", at_least=1)
    processes: int = option(1, "processes that share a step (torchrun sets it)", at_least=1)
    # Rate, warm-up, rank and alpha are those of the LoRA authors' script for RoBERTa-base on SST-2
    # (microsoft/LoRA, NLU/roberta_base_sst2.sh). A smaller base takes a higher rate: MiniLM 1e-3.
    lr: float = option(5e-4, "learning rate at its peak", above=0, also="learning-rate")
    warmup_ratio: float = option(0.06, "fraction of steps of warm-up", at_least=0, at_most=1)
    weight_decay: float = option(0.01, "AdamW's weight decay, on matrices", at_least=0)
    class_weights: str = option("", "of the loss: balanced, or a number for each class: 1,1,5")
    label_smoothing: float = option(0.0, "of the labels, in the loss", at_least=0, below=1)
    max_grad_norm: float = option(1.0, "gradients of a larger norm are clipped to it", above=0)
    rank: int = option(8, "LoRA's rank; 0 trains every weight", at_least=0, also="lora-rank")
    alpha: float = option(16.0, "LoRA is scaled by alpha / rank", above=0, also="lora-alpha")
    dropout: float = option(0.05, "on LoRA's input", at_least=0, below=1, also="lora-dropout")
    use_rslora: bool = option(False, "LoRA is scaled by alpha / √rank, for high ranks")
    targets: str = option("query,value", "layers to adapt, by the ends of their names; all-linear")
    max_length: int = option(128, "tokens that a text is cut to", at_least=3, at_most=2**16)
    seed: int = option(42, "of all random numbers, except of what is held out", at_least=0)
    device: str = option("auto", "where to compute", choices=["auto", "cuda", "mps", "cpu"])
    dtype: str = option("auto", "of matrix products", choices=["auto", *devices.DTYPES])
    compile: str = option("auto", "torch.compile; auto: on CUDA", choices=["auto", "yes", "no"])
    eval_every: int = option(0, "steps between evaluations within an epoch", at_least=0)

    @property
    def step_rows(self) -> int:
        """How many rows a step takes, in all its batches and processes."""
        return self.batch_size * self.grad_accum * self.processes


@dataclass
class Setup:
    """What a run computes with, and the data that its report names."""

    config: Config
    data: Data  # without the training texts, of which the tokens are enough
    task: Task
    model: BertForSequenceClassification
    optimizer: torch.optim.Optimizer
    placement: devices.Placement
    train_set: Encoded
    validation_set: Encoded
    mismatched_set: Encoded | None  # MNLI's second validation split, which is scored too

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_set.lengths) / self.config.step_rows)

    @functools.cached_property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs


def set_up(config: Config) -> Setup:
    """Reads data and model, and puts them where they compute."""
    return place(config, *prepare(config))


def prepare(config: Config) -> tuple[Tokenizer, Data, BertForSequenceClassification]:
    """The data, and the base with adapters, fresh or those of --init-adapter, and the rest frozen.

    Another method than LoRA rewrites the model between this and place.
    """
    base = hub.folder(config.model)
    tokenizer = load_tokenizer(base, config.max_length)
    data_folder = hub.data_folder(config.data)
    data = load_data(data_folder, tokenizer, config, name=glue.name_of(config.data))
    torch.manual_seed(config.seed)
    model = adapters.open_to_train(config, base, data)
    if config.rank and not config.init_adapter:
        apply_lora_to_model(
            model,
            adapters.target_modules(config.targets),
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            use_rslora=config.use_rslora,
        )
    if config.rank:
        mark_only_lora_as_trainable(model)
    return tokenizer, data, model


def place(
    config: Config, tokenizer: Tokenizer, data: Data, model: BertForSequenceClassification
) -> Setup:
    """Puts model and tokens where they compute, and notes what is odd in the data."""
    placement = devices.place(
        model,
        device=config.device,
        dtype=config.dtype,
        compile=config.compile,
        recompute=config.gradient_checkpointing,
    )
    data.task.adjust_loss(config.class_weights, config.label_smoothing, data.train.labels)

    def encoded(split: Split) -> Encoded:
        return placement.move(encode(tokenizer, split.texts, split.labels))

    train_set = encoded(data.train)
    validation_set = encoded(data.validation)
    data.notes = data_notes(data, tokenizer, train_set, validation_set)
    data.train.texts.clear()
    return Setup(
        config=config,
        data=data,
        task=data.task,
        model=model,
        optimizer=make_optimizer(config, model),
        placement=placement,
        train_set=train_set,
        validation_set=validation_set,
        mismatched_set=encoded(data.mismatched) if data.mismatched else None,
    )


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, 2017, arXiv:1711.05101) on all that is trained.

    Decay pulls A and B, and with them ΔW, towards zero. Biases and LayerNorms are left out, as in
    BERT's own code.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Linear warm-up from 0, the rate of the first step, to lr, then linear decay to 0.

    Warm-up, because AdamW's first steps divide by a variance that it knows from few gradients (Liu
    et al., 2019, arXiv:1908.03265), and those of the new classifier are large. Decay, because
    smaller steps come nearer to a minimum. transformers has the same schedule.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * step / warmup
    return config.lr * (steps - step) / max(1, steps - warmup)


def train_step(setup: Setup, rows: np.ndarray, step: int) -> Tensor:
    """One step of the optimizer on these `rows` of the training data.

    Returns the loss, summed over the rows. Nothing here waits for a GPU.
    """
    config = setup.config
    scaler = setup.placement.scaler
    loss_sum = torch.zeros((), device=setup.placement.device)

    # Forward and backward, batch by batch: the gradients add up to that of the mean over all rows.
    batches = np.split(rows, range(config.batch_size, len(rows), config.batch_size))
    for number, batch in parallel.own_part([*enumerate(batches)]):
        # Dropout depends on the seed, the step and the batch's number alone, so that it is the same
        # after --resume and in any process.
        generator = np.random.default_rng([config.seed, step, number])
        torch.manual_seed(int(generator.integers(2**63)))
        *inputs, labels = make_batch(setup.train_set, batch)  # three (B, S) or None, labels (B, …)
        with setup.placement.autocast:
            logits = setup.model(*inputs).float()  # (B, C)
        loss = setup.task.training_loss(logits, labels)
        scaler.scale(loss / len(rows)).backward()
        loss_sum += loss.detach()
    parameters = [p for group in setup.optimizer.param_groups for p in group["params"]]
    parallel.sum_gradients(parameters, loss_sum)

    # In float16 the loss was multiplied, so that no gradient became 0. Else the scaler is idle.
    scaler.unscale_(setup.optimizer)
    # One odd batch must not spoil AdamW's running averages for many steps; the limit of 1 is that
    # of BERT's own code.
    nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)

    for group in setup.optimizer.param_groups:
        group["lr"] = learning_rate(config, step, setup.steps)
    scaler.step(setup.optimizer)  # in float16: unless a gradient overflowed
    scaler.update()
    setup.optimizer.zero_grad()
    return loss_sum


def fit(setup: Setup, run: Run) -> None:
    """Goes on from run.step to the last step, the end of the patience, or a signal."""
    config = setup.config
    setup.model.train()
    while not run.is_over:
        epoch, first = divmod(run.step, setup.steps_per_epoch)
        # Each of these batches is the rows of a step, which train_step may cut again.
        plan = plan_batches(setup.train_set.lengths, config.step_rows, config.seed, epoch)
        for rows in plan[first:]:
            loss_sum = train_step(setup, rows, run.step)
            run.count_step(loss_sum, len(rows))

            # Say how it goes.
            if run.step % config.log_every == 0 or run.step == setup.steps:
                run.log_steps()

            # Evaluate, and keep what is best.
            ends_epoch = run.step % setup.steps_per_epoch == 0
            is_due = config.eval_every > 0 and run.step % config.eval_every == 0
            if ends_epoch or is_due:
                scores, logits = evaluate(setup, setup.validation_set)
                if setup.mismatched_set:
                    others, _ = evaluate(setup, setup.mismatched_set)
                    scores |= {f"mismatched_{name}": score for name, score in others.items()}
                if run.log_scores(scores, logits):
                    run.save_model("best")

            # Save what resuming takes; a signal, or patience that has ended, ends the run here.
            run.save_checkpoint(now=ends_epoch or is_due)
            if run.is_over:
                break


def evaluate(setup: Setup, data: Encoded) -> tuple[dict[str, float], Tensor]:
    """The mean loss and the task's scores on encoded texts with labels, and the logits (N, C)."""
    batches = batches_by_length(data.lengths, setup.placement.batch_tokens)
    batches = parallel.own_part(batches)
    logits = predict(setup.model, data, batches, setup.placement.autocast)  # (N, C)
    logits = parallel.all_sum(logits)
    assert data.labels is not None
    return setup.task.evaluation(logits, data.labels.cpu()), logits


def train(config: Config, notice: str = "") -> None:
    """A whole run, in its folder."""
    run_folder.check_early(config)
    setup = set_up(config)
    with open_run(setup) as run:
        run.say(notice, report.summary(setup), *setup.data.notes, *setup.placement.notes)
        fit(setup, run)
        run.finish()
    if config.push_to_hub:
        adapters.push(run.out / "best", config.hub_model_id, config.hub_private)


def main() -> None:
    parallel.start()
    given = options.parse(Config, sys.argv[1:], __doc__)
    train(*run_folder.complete(Config, given))


if __name__ == "__main__":
    errors.run_main(main)
