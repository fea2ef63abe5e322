"""Fine-tunes BERT with LoRA on a task of classification or regression.

    python train.py                                               # bert-base-uncased on SST-2, from the Hub
    python train.py --model DIR --data reviews.csv --epochs 5     # your own
    python train.py --config out/config.toml --out again          # a former run, repeated
    torchrun --nproc-per-node 2 train.py --batch-size 16          # the steps of --grad-accum 2, on two CPUs or GPUs

It leaves in --out: best/ and final/ (adapters in PEFT's format), training_curves.png, training_log.txt,
metrics.jsonl, config.toml, and checkpoint/, from which --resume goes on. The story of a run is train(), at the end.
"""

import math
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bert import BertForSequenceClassification
from data import (
    Encoded,
    encode,
    load_task,
    load_tokenizer,
    make_batch,
    padding_fraction,
    plan_batches,
)
from lora import (
    apply_lora_to_model,
    mark_only_lora_as_trainable,
    open_adapter,
    save_adapter,
    trained_whole,
)
from support import (
    adapter_files,
    base_files,
    console,
    devices,
    distributed,
    hub,
    options,
    report,
    run_folder,
)
from support.checkpoint import Checkpoint, fingerprint
from support.console import Log
from support.files import write_text
from support.glue import METRICS, score
from support.offline import OFFICIAL_DATA, OFFICIAL_MODEL, official_or_offline
from support.options import (
    ABOVE_0,
    AT_LEAST_0,
    AT_LEAST_1,
    AT_LEAST_3,
    BELOW_1,
    FRACTION,
    INT64,
    Surroundings,
    option,
)
from support.progress import Progress, advice


@dataclass
class Config(Surroundings):
    """Every field is a flag (--batch-size) and a key of the --config file (batch_size); the flag wins.

    Surroundings adds what decides nothing about the training, such as --out and --resume (support/options.py).
    """

    model: str = option(
        OFFICIAL_MODEL, "base model: a directory, or owner/name[@revision] on the Hub"
    )
    data: str = option(
        OFFICIAL_DATA,
        "a directory or a Hub data set in GLUE's layout, or a .parquet .csv .tsv .jsonl",
    )
    text_columns: str = option(
        "", "the column of the text, or the two of a pair: a,b (default: GLUE's names, text)"
    )
    label_column: str = option(
        "label", "the column of the label: numbers from 0, or names; any number in a regression"
    )
    label_names: str = option(
        "", "the names of the classes 0, 1, …: a,b,c (default: what the data tells)"
    )
    metric: str = option(
        "",
        "what best/ is best by (default: GLUE's or accuracy); pearson: regression",
        ["", *METRICS],
    )
    init_adapter: str = option(
        "", "go on training this adapter, a directory or a Hub repository: its rank and targets"
    )
    epochs: int = option(3, "passes over the training data", AT_LEAST_1, also="num-epochs")
    batch_size: int = option(32, "sentences in a batch", AT_LEAST_1)
    grad_accum: int = option(
        1, "batches per step: N of them train as one of N times the size", AT_LEAST_1
    )
    processes: int = option(
        1, "the steps of so many processes, --grad-accum each (torchrun sets it)", AT_LEAST_1
    )
    # Rate, warm-up, rank and alpha are those of the LoRA authors' script for RoBERTa-base on SST-2 (microsoft/LoRA,
    # NLU/roberta_base_sst2.sh). A smaller base takes a higher rate: MiniLM 1e-3 (support/offline.py, docs/results.md).
    lr: float = option(5e-4, "the learning rate at its peak", ABOVE_0, also="learning-rate")
    warmup_ratio: float = option(
        0.06, "the part of the steps in which the learning rate rises", FRACTION
    )
    weight_decay: float = option(0.01, "AdamW's weight decay, on matrices", AT_LEAST_0)
    max_grad_norm: float = option(1.0, "gradients longer than this are clipped to it", ABOVE_0)
    rank: int = option(
        8, "LoRA's rank R; 0 trains every weight and no adapter", AT_LEAST_0, also="lora-rank"
    )
    alpha: float = option(
        16.0, "LoRA's alpha: the adapter is scaled by alpha / rank", ABOVE_0, also="lora-alpha"
    )
    dropout: float = option(0.05, "dropout on what the adapters read", BELOW_1, also="lora-dropout")
    targets: str = option(
        "query,value", "the layers to adapt, by the ends of their names, or all-linear"
    )
    max_length: int = option(128, "tokens that a text is cut to", AT_LEAST_3)
    seed: int = option(
        42, "of everything random: the same bytes on as many CPU threads (OMP_NUM_THREADS)", INT64
    )
    device: str = option("auto", "cuda, mps or cpu", ["auto", "cuda", "mps", "cpu"])
    dtype: str = option("auto", "of the matrix products", ["auto", "float32", "bfloat16"])
    compile: str = option(
        "auto", "torch.compile: on CUDA only, always or never", ["auto", "yes", "no"]
    )
    eval_every: int = option(
        0, "steps between evaluations, beside those that end the epochs", AT_LEAST_0
    )
    log_every: int = option(20, "steps between lines of the log", AT_LEAST_1, also="logging-steps")


@dataclass
class Run:
    """What the loop works with."""

    config: Config
    device: torch.device
    model: BertForSequenceClassification
    optimizer: torch.optim.Optimizer
    train: Encoded
    validation: Encoded
    mismatched: Encoded | None  # MNLI's second validation split, which is scored too
    metric: str
    columns: list[str]  # of the texts
    log: Log
    checkpoint: Checkpoint
    progress: Progress = field(
        default_factory=Progress
    )  # step, best, window (losses not yet logged), history

    @property
    def length_multiple(self) -> int:
        """On CUDA few lengths mean few kernels, if none exceeds the positions; elsewhere padding only costs."""
        return (
            8
            if self.device.type == "cuda" and self.model.config.max_position_embeddings % 8 == 0
            else 1
        )

    @property
    def sentences_per_step(self) -> int:
        return self.config.batch_size * self.config.grad_accum * self.config.processes

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train.lengths) / self.sentences_per_step)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs


def read_data(config: Config) -> tuple[dict, list[dict]]:
    """What is said about the data, and its splits, encoded, as dictionaries: empty ones of what is not there."""
    tokenizer = load_tokenizer(config.model, config.max_length)
    columns, names = (options.listed(text) for text in (config.text_columns, config.label_names))
    task = load_task(config.data, tokenizer, columns, config.label_column, names, config.metric)
    splits = (task.train, task.validation, task.mismatched)
    splits = [
        vars(encode(tokenizer, split.texts, split.labels)) if split else {} for split in splits
    ]
    told = {"classes": task.label_names, "metric": task.metric, "columns": task.train.columns}
    return told | {"contents": fingerprint(config.model, config.init_adapter, splits)}, splits


def set_up(config: Config, rewrite=lambda model: model) -> Run:
    """Reads data and model, which `rewrite` may change (examples/), and puts together all that the loop needs."""
    told, splits = distributed.once_a_machine(lambda: read_data(config))
    splits = [Encoded(**split) if split else None for split in splits]
    torch.manual_seed(config.seed)
    model = rewrite(build_model(config, told["classes"], pairs=len(told["columns"]) == 2))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Decay pulls A and B, and with them ΔW, towards zero. Biases and LayerNorms are left out, as in BERT's own code.
    matrices, vectors = (
        [p for p in trained.values() if p.ndim > 1],
        [p for p in trained.values() if p.ndim == 1],
    )
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    device, log, out = (
        model.classifier.weight.device,
        Log(Path(config.out) / run_folder.LOG),
        Path(config.out),
    )
    identity = options.identity(config, device.type) | {
        name: told[name] for name in ("metric", "contents")
    }
    identity["classes"] = list(model.config.id2label.values())
    distributed.begin(identity, list(trained.values()), config.seed)
    kept = Checkpoint(out / run_folder.CHECKPOINT, identity, config.save_every, trained, optimizer)
    data = (split and split.to(device) for split in splits)
    return Run(config, device, model, optimizer, *data, told["metric"], told["columns"], log, kept)


def build_model(
    config: Config, label_names: list[str], pairs: bool = False
) -> BertForSequenceClassification:
    """The base with adapters, fresh or those of --init-adapter, and the rest frozen; on its device."""
    if config.init_adapter:
        model = open_adapter(config.init_adapter, config.model, config.dropout)
        found = list(model.config.id2label.values())
        label_names = adapter_files.same_classes(config.init_adapter, found, label_names)
    else:
        model = BertForSequenceClassification.from_pretrained(config.model, label_names)
    base_files.refuse_misfit(model.config, pairs, **asdict(config))
    if config.rank and not config.init_adapter:
        targets = (
            config.targets if config.targets == "all-linear" else options.listed(config.targets)
        )
        apply_lora_to_model(model, targets, config.rank, config.alpha, config.dropout)
    model.config.id2label, model.config.text_pairs = dict(enumerate(label_names)), pairs
    if config.rank:
        mark_only_lora_as_trainable(model)
    repeated = model.bert.encoder.layer[
        :-1
    ]  # the last one, for [CLS] alone, is another computation
    devices.place(
        model, repeated, config.device, config.dtype, config.compile, config.gradient_checkpointing
    )
    return model


# The loop: one step, all steps, the evaluation, what is kept.


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Linear warm-up from 0, the rate of the first step, to lr, then linear decay to 0, as in transformers.

    Warm-up, because AdamW's first steps divide by a variance that it knows from few gradients (Liu et al., 2019,
    arXiv:1908.03265), and those of the new classifier are large. Decay, because smaller steps come nearer to a minimum.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    return config.lr * (step / warmup if step < warmup else (steps - step) / max(1, steps - warmup))


def forward(run: Run, data: Encoded, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """The loss summed over the rows; what is predicted (B,), classes or a regression's numbers; the labels (B,)."""
    device = run.device.type
    ids, mask, types, labels = make_batch(
        data, rows, run.model.config.pad_token_id, run.length_multiple
    )  # (B, S)
    if mask is None and devices.compiles(run.config.compile, device):
        mask = torch.ones_like(ids)  # with and without a mask would be two compilations
    with torch.autocast(device, torch.bfloat16, enabled=devices.chosen(run.config.dtype, device)):
        logits = run.model(ids, mask, types).float()  # (B, C)
    if run.model.config.problem_type == "regression":
        return F.mse_loss(logits[:, 0], labels, reduction="sum"), logits[:, 0], labels
    return F.cross_entropy(logits, labels, reduction="sum"), logits.argmax(-1), labels


def train_step(run: Run, rows: np.ndarray) -> list:
    """One optimizer step on a batch; returns [loss sum, correct, sentences]. Nothing here waits for the GPU."""
    loss_sum = correct = torch.zeros((), device=run.device)
    for part in distributed.share(
        np.split(rows, range(run.config.batch_size, len(rows), run.config.batch_size))
    ):
        loss, predicted, labels = forward(run, run.train, part)  # (), (B,), (B,)
        (
            loss / len(rows)
        ).backward()  # the parts' gradients add up to that of the mean over all rows
        loss_sum = loss_sum + loss.detach()
        correct = (
            correct + (predicted == labels).sum()
        )  # means nothing in a regression, and is not shown there
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    loss_sum, correct = distributed.sum_gradients(parameters, loss_sum, correct)
    # One odd batch must not spoil AdamW's running averages for many steps; the limit of 1 is that of BERT's own code.
    torch.nn.utils.clip_grad_norm_(parameters, run.config.max_grad_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.config, run.progress.step, run.steps)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return [loss_sum, correct, len(rows)]


def fit(run: Run, stop: list[int]) -> int:
    """Goes from run.progress to the last step, or to the end of the one in which a signal is noted in `stop`.

    Returns the signal, or 0. Several processes share a step's batches, add up the gradients, and all take the step.
    """
    config, progress, plan, stopped = run.config, run.progress, None, 0
    N, (epoch, index) = len(run.train.lengths), divmod(progress.step, run.steps_per_epoch)
    run.log.start(config.epochs * N, epoch * N + index * run.sentences_per_step)
    run.model.train()
    while progress.step < run.steps and not stopped:
        epoch, index = divmod(progress.step, run.steps_per_epoch)
        if plan is None or index == 0:
            plan = plan_batches(run.train.lengths, run.sentences_per_step, config.seed, epoch)

        progress.window.append(train_step(run, plan[index]))
        progress.step += 1

        run.log.advance(len(plan[index]))
        evaluating = index + 1 == run.steps_per_epoch or (
            config.eval_every and progress.step % config.eval_every == 0
        )
        logging = progress.step % config.log_every == 0
        if (
            logging or evaluating or run.device.type == "cpu"
        ):  # rarely on a GPU, where the losses must be waited for
            progress.settle()
        if logging:
            run.log.show(f"step {progress.step}/{run.steps}", progress.note_training(run.metric))
        if evaluating:
            keep_if_best(run, evaluate(run))
        stopped, due = distributed.largest(
            stop[0] if stop else 0, run.checkpoint.due(progress.step)
        )
        if evaluating or due or stopped:
            progress.settle()
            run.checkpoint.save(progress)
    run.log.close()
    return stopped


@torch.no_grad()
def evaluate(run: Run, data: Encoded | None = None) -> dict[str, float]:
    """Loss and the task's metrics on the validation split, or on other `data`."""
    data = data or run.validation
    run.model.eval()
    predicted, labels = np.zeros(len(data.lengths)), data.labels.cpu().numpy()  # both (N,)
    loss_sum = np.zeros(1)
    for rows in distributed.share(
        plan_batches(data.lengths, 64, seed=0, epoch=0)
    ):  # in an order that decides nothing
        loss, answers, _ = forward(run, data, rows)  # (), (B,)
        loss_sum += loss.item()
        predicted[rows] = answers.cpu().numpy()
    run.model.train()
    loss, predicted = distributed.sums(loss_sum).item() / len(labels), distributed.sums(predicted)
    return {
        "loss": loss,
        **score(run.metric, predicted, labels, run.model.config.id2label.values()),
    }


def keep_if_best(run: Run, scores: dict[str, float]) -> None:
    """Keeps the model if it is better than at every evaluation before, and writes metrics.jsonl."""
    out = Path(run.config.out)
    if run.mismatched:
        scores |= {
            f"mismatched_{name}": value for name, value in evaluate(run, run.mismatched).items()
        }
    better, text = run.progress.note_evaluation(scores, run.metric)
    if better:
        save_model(run, out / "best")
    run.progress.write(out / "metrics.jsonl")
    run.log.say(f"epoch {run.progress.step / run.steps_per_epoch:.2f}  validation {text}")


def summary(run: Run) -> str:
    """What is trained on what, and the table of parameters."""
    config, lengths = run.config, run.train.lengths
    plan = plan_batches(lengths, run.sentences_per_step, config.seed, epoch=0)
    padding = padding_fraction(lengths, plan, run.length_multiple)
    sizes = {name: (p.numel(), p.requires_grad) for name, p in run.model.named_parameters()}
    drawn = () if config.init_adapter else run.model.new_modules
    labels = (split.labels.cpu().numpy() for split in (run.train, run.validation))
    what = (
        config.model,
        run.device,
        config.data,
        run.columns,
        list(run.model.config.id2label.values()),
        run.metric,
    )
    head = report.data_lines(*what, *labels, padding)
    return head + report.parameter_table(
        sizes, trained_whole(run.model), drawn, config.rank, config.targets
    )


def save_model(run: Run, folder: Path) -> None:
    """The adapter, or with rank 0 the whole model, and its model card."""
    config = run.config
    if not distributed.is_first():
        return
    if config.rank:
        save_adapter(run.model, folder, config.model)
    else:
        run.model.save_pretrained(folder)
        base_files.copy_tokenizer(config.model, folder)
    write_text(
        folder / "README.md",
        report.model_card(config, folder, run.progress.history, run.steps, run.columns),
    )


def train(config: Config, notice: str = "") -> None:
    """Trains, evaluates and writes everything, as the head of this file says."""
    out = Path(config.out)
    run_folder.refuse_to_overwrite(asdict(config))
    if config.push_to_hub and distributed.is_first():
        hub.check_login(config.hub_model_id if config.rank else "")
    run = set_up(config)
    chosen = options.deciding_options(config) | asdict(config)
    with run_folder.claimed(chosen, run.log.say) as resuming:
        if resuming:
            run.progress = run.checkpoint.load(run.steps)
            run_folder.write_options(chosen)
        run.log.say("\n".join([notice, summary(run)]).strip())
        if resuming:
            run.log.say(
                "\n".join(
                    [f"resuming at step {run.progress.step} of {run.steps}", *run.checkpoint.notes]
                )
            )
        stop = console.catch_signals()
        with advice(
            run.progress, asdict(config), lambda step: learning_rate(config, step, run.steps)
        ):
            stopped = fit(run, stop)
        if run.progress.step < run.steps:
            again = console.command_to_resume(config.out)
            run.log.say(f"stopped at step {run.progress.step} of {run.steps}; to go on: {again}")
            sys.exit(128 + stopped)
        if not distributed.is_first():
            return
        report.plot_curves(run.progress.history, out / "training_curves.png", run.log.say)
        save_model(run, out / "final")
        run.log.say(f"best validation {run.metric} {run.progress.best:.4f}, kept in {out / 'best'}")
    if config.push_to_hub:
        hub.push_adapter(out / "best", config.hub_model_id, config.hub_private)


def main() -> None:
    distributed.start()
    console.outlive_output()
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # in PyTorch's loading code a KeyboardInterrupt can get lost
    given = (
        options.parse_options(Config, sys.argv[1:], __doc__) | distributed.options_after_restart()
    )
    former, notice = run_folder.former_options(Config(**given))
    given = {"processes": distributed.SIZE} | former | given
    config = Config(**given)
    run_folder.refuse_to_overwrite(asdict(config))  # before any download
    if config.offline_fallback and not given.keys() & {"model", "data"}:
        (defaults, notice), _ = distributed.once_a_machine(lambda: (official_or_offline(), []))
        config = Config(**defaults | given)
    if config.init_adapter:
        config = Config(**asdict(config) | adapter_files.as_options(config.init_adapter, given))
    train(config, notice)


if __name__ == "__main__":
    console.run_main(main)
