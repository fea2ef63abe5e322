"""Fine-tunes BERT with LoRA on a classification task.

    python train.py                                               # bert-base-uncased on SST-2, from the Hub
    python train.py --model DIR --data reviews.csv --epochs 5     # your own
    python train.py --config out/config.toml --out again          # a former run, repeated

It leaves in --out: best/ and final/ (adapters in PEFT's format), training_curves.png,
training_log.txt, metrics.jsonl, config.toml, and checkpoint/, from which --resume goes on.
"""

import difflib
import fcntl
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from bert import (
    BertForSequenceClassification,
    InputError,
    OneLineParser,
    find_file,
    first_line,
    hub_errors,
    open_safetensors,
    run_main,
    write_tensors,
    written_whole,
)
from data import (
    OFFICIAL_DATA,
    OFFICIAL_MODEL,
    Encoded,
    encode,
    load_task,
    load_tokenizer,
    make_batch,
    official_or_offline,
    padding_fraction,
    plan_batches,
)
from lora import (
    apply_lora_to_model,
    copy_tokenizer,
    count_lora_parameters,
    mark_only_lora_as_trainable,
    open_adapter,
    push_to_hub,
    save_adapter,
    trained_whole,
)

AT_LEAST_0 = ("at least 0", lambda value: value >= 0)
AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
ABOVE_0 = ("above 0", lambda value: 0 < value < math.inf)
BELOW_1 = ("at least 0 and below 1", lambda value: 0 <= value < 1)
FRACTION = ("from 0 to 1", lambda value: 0 <= value <= 1)


def option(default, help: str, allowed=None, also: str = ""):
    """A field of Config: its flag's help, the values it takes, and another name that people know it by."""
    if isinstance(allowed, list):
        allowed = (f"one of {', '.join(allowed)}", allowed.__contains__)
    return field(default=default, metadata={"help": help, "allowed": allowed, "also": also})


@dataclass
class Config:
    """Every field is a flag (--batch-size) and a key of the --config file (batch_size); the flag wins."""

    model: str = option(OFFICIAL_MODEL, "base model: a directory, or owner/name[@revision] on the Hub")
    data: str = option(OFFICIAL_DATA, "a directory or a Hub data set in GLUE's layout, or a .parquet .csv .tsv .jsonl")
    text_columns: str = option("", "the column of the text, or the two of a pair: a,b (default: GLUE's names, text)")
    label_column: str = option("label", "the column of the label: numbers from 0, or names")
    offline_fallback: bool = option(False, "where the Hub is out of reach, train MiniLM on movie reviews instead")
    out: str = option("out", "where everything goes", also="output-dir")
    init_adapter: str = option("", "go on training this adapter, a directory or a Hub repository: its rank and targets")
    epochs: int = option(3, "passes over the training data", AT_LEAST_1, also="num-epochs")
    batch_size: int = option(32, "sentences in a batch", AT_LEAST_1)
    grad_accum: int = option(1, "batches per step: N of them train as one of N times the size", AT_LEAST_1)
    lr: float = option(5e-4, "the learning rate at its peak", ABOVE_0, also="learning-rate")
    warmup_ratio: float = option(0.06, "the part of the steps in which the learning rate rises", FRACTION)
    weight_decay: float = option(0.01, "AdamW's weight decay, on matrices", AT_LEAST_0)
    max_grad_norm: float = option(1.0, "gradients longer than this are clipped to it", ABOVE_0)
    rank: int = option(8, "LoRA's rank R; 0 trains every weight and no adapter", AT_LEAST_0, also="lora-rank")
    alpha: float = option(16.0, "LoRA's alpha: the adapter is scaled by alpha / rank", ABOVE_0, also="lora-alpha")
    dropout: float = option(0.05, "dropout on what the adapters read", BELOW_1, also="lora-dropout")
    targets: str = option("query,value", "the layers to adapt, by the ends of their names, or all-linear")
    max_length: int = option(128, "tokens that a text is cut to", ("at least 3", lambda value: value >= 3))
    seed: int = option(42, "of everything random", ("from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63))
    device: str = option("auto", "cuda, mps or cpu", ["auto", "cuda", "mps", "cpu"])
    dtype: str = option("auto", "of the matrix products", ["auto", "float32", "bfloat16"])
    compile: str = option("auto", "torch.compile: on CUDA only, always or never", ["auto", "yes", "no"])
    eval_every: int = option(0, "steps between evaluations, beside those that end the epochs", AT_LEAST_0)
    log_every: int = option(20, "steps between lines of the log", AT_LEAST_1, also="logging-steps")
    save_every: int = option(0, "steps between checkpoints; 0: as often as a hundredth of the time allows", AT_LEAST_0)
    resume: bool = option(False, "go on from the checkpoint in --out, if there is one")
    overwrite: bool = option(False, "replace a finished run in --out")
    push_to_hub: bool = option(False, "upload the best adapter to the Hub afterwards, as --hub-model-id")
    hub_model_id: str = option("", "where to push to: owner/name")
    hub_private: bool = option(False, "if that repository is new, make it private")

    def __post_init__(self):
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if f.type is float and type(value) is int:
                setattr(self, f.name, value := float(value))
            if type(value) is not f.type:
                raise InputError(f"{f.name} must be of type {f.type.__name__}, not {value!r}")
            if allowed and not allowed[1](value):
                raise InputError(f"--{f.name.replace('_', '-')} {value} is not {allowed[0]}")


def parse_options(arguments: list[str]) -> dict:
    """The options that a command line and its --config file give. Underscores work as dashes do."""
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", metavar="FILE", help="a TOML file of these options; a flag given beside it wins")
    for f in fields(Config):
        names = [f"--{name.replace('_', '-')}" for name in (f.name, f.metadata["also"]) if name]
        kind = {"action": "store_true"} if f.type is bool else {"type": f.type, "metavar": f.type.__name__.upper()}
        shown = f" (default: {f.default})" if f.default not in ("", False) else ""
        parser.add_argument(*names, dest=f.name, default=None, help=f.metadata["help"] + shown, **kind)
    dashed = [a.partition("=") for a in arguments]
    dashed = [(a.replace("_", "-") if a.startswith("--") else a) + equals + value for a, equals, value in dashed]
    flags = {name: value for name, value in vars(parser.parse_args(dashed)).items() if value is not None}
    path = flags.pop("config", None)
    try:
        text = Path(path).read_text(encoding="utf-8") if path else ""
        if len(text) > 2**16:  # tomllib would take minutes for some
            raise ValueError("it is too long for one of options")
        keys = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file ({first_line(error)})") from None
    known = [f.name for f in fields(Config)]
    for name in keys.keys() - set(known):
        close = difflib.get_close_matches(name, known, 1)
        raise InputError(f"{path}: unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return keys | flags


@dataclass
class Progress:
    """Where a run stands. With the tensors and the random state of a checkpoint: all that resuming takes."""

    step: int = 0
    best: float | None = None  # the best validation metric so far
    window: list = field(default_factory=list)  # [loss sum, correct, sentences] of each step since the last log line
    history: list[dict] = field(default_factory=list)  # the lines of metrics.jsonl


@dataclass
class Run:
    """What the loop works with."""

    config: Config
    model: BertForSequenceClassification
    optimizer: torch.optim.Optimizer
    train: Encoded
    validation: Encoded
    metric: str
    fingerprint: str  # of the base's weights and of the data: a checkpoint belongs to one pair
    progress: Progress = field(default_factory=Progress)

    @property
    def step_size(self) -> int:
        return self.config.batch_size * self.config.grad_accum

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train.lengths) // self.step_size)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def say(self, text: str) -> None:
        """Prints a line above the progress bar, and keeps it in training_log.txt."""
        tqdm.write(text)
        with open(Path(self.config.out) / "training_log.txt", "a", encoding="utf-8") as log:
            log.write(text + "\n")


# Before the loop.


def set_up(config: Config) -> Run:
    """Reads data and model, and puts together all that the loop needs."""
    task = load_task(config.data, [c for c in config.text_columns.split(",") if c], config.label_column)
    tokenizer = load_tokenizer(config.model, config.max_length)
    torch.manual_seed(config.seed)
    model = build_model(config, task.label_names)
    if config.max_length > (most := model.config.max_position_embeddings):
        raise InputError(f"--max-length {config.max_length} is more than the {most} positions of {config.model}")
    train, validation = (encode(tokenizer, s.texts, s.labels) for s in (task.train, task.validation))
    with open(find_file(config.model, "model.safetensors"), "rb") as file:
        contents = hashlib.file_digest(file, "sha256")
    for tensor in (train.input_ids, train.labels, validation.input_ids, validation.labels):
        contents.update(tensor.numpy())
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, spared = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]  # biases, LayerNorms
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    device = model.classifier.weight.device
    return Run(config, model, optimizer, train.to(device), validation.to(device), task.metric, contents.hexdigest())


def build_model(config: Config, label_names: list[str]) -> BertForSequenceClassification:
    """The base with fresh adapters and classifier, on its device, compiled where that pays."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if config.init_adapter:
        model = open_adapter(config.init_adapter, config.model)
        if model.config.num_labels != len(label_names):
            raise InputError(
                f"{config.init_adapter}: has {model.config.num_labels} classes, the data {len(label_names)}"
            )
        targets = model.lora_config["target_modules"]
        config.targets = targets if isinstance(targets, str) else ",".join(targets)
        config.rank, config.alpha = model.lora_config["r"], float(model.lora_config["lora_alpha"])
    else:
        model = BertForSequenceClassification.from_pretrained(config.model, num_labels=len(label_names))
        if config.rank:
            targets = config.targets if config.targets == "all-linear" else config.targets.split(",")
            apply_lora_to_model(model, targets, config.rank, config.alpha, config.dropout)
    model.config.id2label = dict(enumerate(label_names))
    if config.rank:
        mark_only_lora_as_trainable(model)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used here: {first_line(error)}") from None
    if use_bfloat16(config, device):
        for module in model.modules():  # frozen: no float32 original is needed, and no cast in each step
            if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
    if use_compile(config, device):
        for layer in model.bert.encoder.layer[:-1]:  # the last one, for [CLS] alone, is another computation
            layer.compile(fullgraph=True, dynamic=True)  # they share their code: compiled once, for every length
    return model


def use_bfloat16(config: Config, device: str) -> bool:
    return config.dtype == "bfloat16" or (config.dtype == "auto" and device == "cuda")


def use_compile(config: Config, device: str) -> bool:
    return config.compile == "yes" or (config.compile == "auto" and device == "cuda")


def summary(run: Run) -> str:
    """What is trained on what, and the table of parameters."""
    model, lengths = run.model, run.train.lengths
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora, whole = count_lora_parameters(model), {name: model.get_submodule(name) for name in trained_whole(model)}
    whole = {name: sum(p.numel() for p in layer.parameters()) for name, layer in whole.items()}
    drawn = [] if run.config.init_adapter else model.new_modules
    rows = [
        ("BERT", total - lora - sum(whole.values()), "frozen" if lora else "trained"),
        ("LoRA", lora, f"trained: rank {run.config.rank} on {run.config.targets}"),
        *((name, n, "trained, newly drawn" if name in drawn else "trained") for name, n in sorted(whole.items())),
        ("total", total, f"{trained:,} trained, {trained / total:.2%}"),
    ]
    padding = padding_fraction(lengths, plan_batches(lengths, run.step_size, run.config.seed, epoch=0))
    return "\n".join(
        [
            f"model  {run.config.model} on {model.classifier.weight.device}",
            f"data   {run.config.data}",
            f"       {len(lengths):,} sentences to train on, {len(run.validation.lengths):,} to validate on; "
            f"padding {padding:.2%} of the tokens",
            *(f"{name:<10} {count:>12,}  {state}" for name, count, state in rows if count),
        ]
    )


# The loop.


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Linear warm-up from 0 to lr, then linear decay to 0: the rate of step 0, 1, …, as transformers has it."""
    warmup = math.ceil(config.warmup_ratio * steps)
    return config.lr * (step / warmup if step < warmup else (steps - step) / max(1, steps - warmup))


def forward(run: Run, data: Encoded, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits (B, C) in float32, and labels (B,)."""
    device = data.input_ids.device.type
    # On CUDA few lengths mean few kernels; elsewhere padding only costs.
    ids, mask, types, labels = make_batch(data, rows, run.model.config.pad_token_id, 8 if device == "cuda" else 1)
    if mask is None and use_compile(run.config, device):
        mask = torch.ones_like(ids)  # with and without a mask would be two compilations
    with torch.autocast(device, torch.bfloat16, enabled=use_bfloat16(run.config, device)):
        return run.model(ids, mask, types).float(), labels


def train_step(run: Run, rows: np.ndarray) -> list:
    """One optimizer step on a batch; returns [loss sum, correct, sentences]. Nothing here waits for the GPU."""
    loss_sum = correct = 0
    for part in np.split(rows, range(run.config.batch_size, len(rows), run.config.batch_size)):
        logits, labels = forward(run, run.train, part)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (loss / len(rows)).backward()
        loss_sum += loss.detach()
        correct += (logits.detach().argmax(-1) == labels).sum()
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, run.config.max_grad_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.config, run.progress.step, run.steps)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return [loss_sum, correct, len(rows)]


def fit(run: Run, stop: list[int]) -> None:
    """Goes from run.progress to the last step, or to the end of the step in which `stop` received a signal."""
    config, progress, plan = run.config, run.progress, None
    total, before = config.epochs * len(run.train.lengths), progress.step * run.step_size
    bar = tqdm(total=total, initial=before, unit=" sentences", disable=not sys.stderr.isatty(), dynamic_ncols=True)
    since, done = time.perf_counter(), 0
    saved, cost = since, 0.0
    run.model.train()
    while progress.step < run.steps and not stop:
        epoch, index = divmod(progress.step, run.steps_per_epoch)
        if plan is None or index == 0:
            plan = plan_batches(run.train.lengths, run.step_size, config.seed, epoch)
        progress.window.append(train_step(run, plan[index]))
        progress.step += 1
        done += len(plan[index])
        bar.update(len(plan[index]))
        evaluating = index + 1 == run.steps_per_epoch or (config.eval_every and progress.step % config.eval_every == 0)
        pause = time.perf_counter() - saved
        due = progress.step % config.save_every == 0 if config.save_every else pause > max(20.0, 100 * cost)
        saving = evaluating or due
        logging = progress.step % config.log_every == 0
        if logging or saving or run.train.input_ids.device.type == "cpu":
            read_window(run)
        if logging:
            loss, correct, count = (sum(column) for column in zip(*progress.window, strict=True))
            progress.window.clear()
            loss, accuracy, rate = loss / count, correct / count, done / (time.perf_counter() - since)
            progress.history.append({"step": progress.step, "train_loss": loss, "train_accuracy": accuracy})
            text = f"loss {loss:.3f}  accuracy {accuracy:.1%}"
            bar.set_postfix_str(text)
            if bar.disable:
                left = (total - before - done) / rate
                run.say(f"step {progress.step}/{run.steps}  {text}  {rate:.0f} sentences/s  {left:.0f} s left")
        if evaluating:
            note_evaluation(run)
        if saving:
            begun = time.perf_counter()
            save_checkpoint(run)
            cost, saved = time.perf_counter() - begun, time.perf_counter()
    bar.close()
    if stop and progress.step:
        read_window(run)
        save_checkpoint(run)


def read_window(run: Run) -> None:
    """Brings the losses of the last steps over from the device, and looks whether they are finite."""
    window = run.progress.window
    for i, (loss, correct, count) in enumerate(window):
        window[i] = [float(loss), int(correct), count]
        refuse_nonfinite(run, window[i][0], run.progress.step - len(window) + i)


def refuse_nonfinite(run: Run, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        rate = learning_rate(run.config, step, run.steps)
        raise InputError(
            f"the loss is {loss} at step {step + 1}, at a learning rate of {rate:.2g}: try a lower --lr; "
            f"the best adapter so far and the last checkpoint are kept in {run.config.out}"
        )


@torch.no_grad()
def evaluate(run: Run) -> dict[str, float]:
    """Loss, accuracy, and the task's own metric on the validation split."""
    run.model.eval()
    loss_sum, predicted, labels = 0.0, [], []
    for rows in plan_batches(run.validation.lengths, 64, seed=0, epoch=0):
        logits, truth = forward(run, run.validation, rows)
        loss_sum += F.cross_entropy(logits, truth, reduction="sum").item()
        predicted.append(logits.argmax(-1).cpu().numpy())
        labels.append(truth.cpu().numpy())
    run.model.train()
    predicted, labels = np.concatenate(predicted), np.concatenate(labels)
    return {"loss": loss_sum / len(labels), **score(run.metric, predicted, labels)}


def score(metric: str, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and where it is the task's metric f1 or matthews_correlation, of the classes 0 and 1."""
    scores = {"accuracy": float(np.mean(predicted == labels))}
    # Counts as Python's numbers, which do not overflow: true and false, positive and negative.
    tp, tn = (int(np.sum((predicted == labels) & (labels == c))) for c in (1, 0))
    fp, fn = (int(np.sum((predicted != labels) & (labels == c))) for c in (0, 1))
    if metric == "f1":
        scores["f1"] = 2 * tp / max(1, 2 * tp + fp + fn)
    if metric == "matthews_correlation":
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        scores[metric] = (tp * tn - fp * fn) / math.sqrt(product or 1)
    return scores


def note_evaluation(run: Run) -> None:
    """Evaluates, keeps the adapter if it is the best so far, and brings metrics.jsonl up to date."""
    progress, out = run.progress, Path(run.config.out)
    scores = evaluate(run)
    refuse_nonfinite(run, scores["loss"], progress.step - 1)
    progress.history.append({"step": progress.step, **{f"validation_{name}": v for name, v in scores.items()}})
    better = progress.best is None or scores[run.metric] > progress.best
    if better:
        progress.best = scores[run.metric]
        save_model(run, out / "best")
    with written_whole(out / "metrics.jsonl") as path:
        path.write_text("".join(json.dumps(record) + "\n" for record in progress.history))
    shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    epoch = progress.step / run.steps_per_epoch
    run.say(f"epoch {epoch:.2f}  validation {shown}" + ("  (best so far)" if better else ""))


# What is left behind.

# Options that change nothing about what is trained.
OUTWARD = ["out", "resume", "overwrite", "offline_fallback", "save_every", "push_to_hub", "hub_model_id", "hub_private"]


def save_model(run: Run, folder: Path) -> None:
    """The adapter, or with rank 0 the whole model, and its model card."""
    if run.config.rank:
        save_adapter(run.model, folder, run.config.model)
    else:
        run.model.save_pretrained(folder)
        copy_tokenizer(run.config.model, folder)
    with written_whole(folder / "README.md") as path:
        path.write_text(model_card(run), encoding="utf-8")


def model_card(run: Run) -> str:
    """A README.md as the Hub reads it, with the scores of the last evaluation."""
    from huggingface_hub import EvalResult, ModelCardData

    config = run.config
    last = [record for record in run.progress.history if "validation_loss" in record][-1]
    scores = {name.removeprefix("validation_"): value for name, value in last.items() if name != "step"}
    base, data = config.model.partition("@")[0], "/".join(config.data.partition("@")[0].split("/")[:2])
    task = Path(config.data.partition("@")[0]).name
    result = {"task_type": "text-classification", "dataset_type": task, "dataset_name": task}
    metadata = ModelCardData(
        base_model=None if Path(base).is_dir() else base,
        datasets=None if Path(config.data).exists() else [data],
        library_name="peft" if config.rank else "transformers",
        license="apache-2.0",
        pipeline_tag="text-classification",
        metrics=[name for name in scores if name != "loss"],
        model_name=config.hub_model_id or f"{Path(base).name}-{task}",
        eval_results=[EvalResult(**result, metric_type=n, metric_value=round(v, 4)) for n, v in scores.items()],
    )
    changed = [f.name for f in fields(config) if f.name not in OUTWARD and getattr(config, f.name) != f.default]
    flags = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in changed]
    command = shlex.join(["python", "train.py", *flags])
    lora = f"LoRA (rank {config.rank}, alpha {config.alpha:g}, on {config.targets})"
    how = lora if config.rank else "every weight trained"
    name = config.hub_model_id or "out/best"
    usage = (PEFT_USAGE if config.rank else PIPELINE_USAGE).format(name=name, base=base)
    table = "\n".join(f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in scores.items())
    return f"""---
{metadata}
---
`{config.model}`, fine-tuned on `{config.data}` with {how}; {last["step"]} of {run.steps} steps.

| validation | |
| --- | --- |
{table}

    {command}
    python sample.py --adapter {name} "great film"

```python
{usage}
```
"""


PEFT_USAGE = """\
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

config = AutoConfig.from_pretrained("{name}")  # the names of the classes
base = AutoModelForSequenceClassification.from_pretrained("{base}", config=config)
model = PeftModel.from_pretrained(base, "{name}")"""
PIPELINE_USAGE = """\
from transformers import pipeline

classify = pipeline("text-classification", model="{name}")"""


def identity(run: Run) -> dict:
    """What must be the same for a run to go on from a checkpoint."""
    return {k: v for k, v in asdict(run.config).items() if k not in OUTWARD} | {"contents": run.fingerprint}


def save_checkpoint(run: Run) -> None:
    """One safetensors file, with the rest as JSON in its header, replaced whole."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            tensors[f"parameter.{name}"] = parameter.detach()
            for kind, value in run.optimizer.state[parameter].items():  # step, exp_avg, exp_avg_sq
                tensors[f"{kind}.{name}"] = value
    header = {"identity": json.dumps(identity(run)), "progress": json.dumps(asdict(run.progress))}
    folder = Path(run.config.out) / "checkpoint"
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "checkpoint.safetensors", tensors, header | {"sha256": digest(header, tensors)})


def digest(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """What a checkpoint is checked by before anything in it is believed."""
    sha256 = hashlib.sha256(f"{header['identity']}\n{header['progress']}".encode())
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(tensors[name].cpu().contiguous().numpy())
    return sha256.hexdigest()


@torch.no_grad()
def load_checkpoint(run: Run, path: Path) -> None:
    """Puts the run where the checkpoint left it. Raises InputError if it is damaged or another run's."""
    now = identity(run)
    with open_safetensors(path) as file:
        try:
            header = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            intact, then = header["sha256"] == digest(header, tensors), json.loads(header["identity"])
            differing = next((name for name, value in now.items() if then.get(name) != value), None)
            if intact and not differing:
                intact = put_back(run, Progress(**json.loads(header["progress"])), tensors)
        except Exception:  # whatever a damaged or forged file leads to
            intact = False
    if not intact:
        raise InputError(f"{path}: not a whole checkpoint; --overwrite starts anew")
    if differing:
        what = f"{differing} {then.get(differing)!r}, not {now[differing]!r}"
        what = "other weights or data" if differing == "contents" else what
        raise InputError(f"{path}: that run was started with {what}; --overwrite starts anew")


def put_back(run: Run, progress: Progress, tensors: dict[str, Tensor]) -> bool:
    """Takes over what save_checkpoint wrote; False, or an exception, if it is of other names, shapes or kinds."""
    numbers = lambda values: all(type(value) in (int, float) for value in values)
    fits = type(progress.step) is int and 0 < progress.step <= run.steps and type(progress.best) in (float, type(None))
    fits = fits and type(progress.window) is type(progress.history) is list
    fits = fits and all(len(entry) == 3 and numbers(entry) for entry in progress.window)
    fits = fits and all(record["step"] <= progress.step and numbers(record.values()) for record in progress.history)
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            state = {kind: tensors.pop(f"{kind}.{name}") for kind in ("parameter", "exp_avg", "exp_avg_sq", "step")}
            shapes = {kind: () if kind == "step" else parameter.shape for kind in state}
            fits = fits and all(t.shape == shapes[kind] and t.dtype == torch.float32 for kind, t in state.items())
            parameter.copy_(state.pop("parameter"))
            run.optimizer.state[parameter] = {kind: tensor.to(parameter.device) for kind, tensor in state.items()}
    torch.set_rng_state(tensors.pop("random.cpu"))
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors.pop("random.cuda"))
    run.progress = progress
    return fits and not tensors


def plot_curves(history: list[dict], path: Path) -> None:
    """Loss and accuracy against the step, for training and validation, as a PNG."""
    import matplotlib  # late, as it takes a second to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for split, style in ("train", {"color": "0.6", "linewidth": 1}), ("validation", {"color": "C0", "marker": "o"}):
            records = [record for record in history if f"{split}_{name}" in record]
            axis.plot([r["step"] for r in records], [r[f"{split}_{name}"] for r in records], label=split, **style)
        axis.set(xlabel="step", title=name)
        axis.legend()
        axis.grid(alpha=0.3)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


# The program.


def refuse_to_overwrite(config: Config) -> None:
    out = Path(config.out)
    if (out / "final" / "README.md").exists() and not config.overwrite:  # the last file that a run writes
        raise InputError(f"{out} holds a finished run: --overwrite replaces it, another --out keeps it")
    if (out / "checkpoint").exists() and not (config.overwrite or config.resume):
        raise InputError(f"{out} holds an unfinished run: --resume goes on with it, --overwrite starts anew")


def check_login(config: Config) -> None:
    """Raises InputError if --push-to-hub could not succeed: better now than after the training."""
    from huggingface_hub import whoami

    if not config.hub_model_id or not config.rank:
        raise InputError("--push-to-hub pushes an adapter, and takes --hub-model-id owner/name")
    with hub_errors(config.hub_model_id):
        whoami()


def claim(out: Path):
    """Keeps a second run out of `out` for as long as the returned file stays open."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("best", "final", "checkpoint", "training_log.txt"):
        if (out / name).is_symlink():
            raise InputError(f"{out / name}: a symbolic link, which is not written through; remove it")
    lock = os.fdopen(os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{out}: another run is at work there; wait for it, or give another --out") from None
    return lock


def catch_signals() -> list[int]:
    """The list into which the first SIGINT or SIGTERM goes; a second one ends the process at once."""
    stop: list[int] = []

    def note(number: int, _) -> None:
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return stop


def train(config: Config, notice: str = "") -> None:
    """Trains, evaluates and writes everything, as the head of this file says."""
    refuse_to_overwrite(config)
    if config.push_to_hub:
        check_login(config)
    out = Path(config.out)
    run = set_up(config)
    lock = claim(out)
    refuse_to_overwrite(config)  # a run that ended in the meantime
    checkpoint = out / "checkpoint" / "checkpoint.safetensors"
    resuming = config.resume and checkpoint.exists() and not config.overwrite
    if resuming:
        load_checkpoint(run, checkpoint)
    else:
        # In this order a kill in between leaves a whole run, or one that starts anew.
        (out / "final" / "README.md").unlink(missing_ok=True)
        for name in ("checkpoint", "final", "best"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("training_curves.png", "training_log.txt", "metrics.jsonl", "config.toml"):
            (out / name).unlink(missing_ok=True)
    with written_whole(out / "config.toml") as path:
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in asdict(config).items() if name != "overwrite")
        path.write_text("".join(lines), encoding="utf-8")
    run.say("\n".join([notice, summary(run)]).strip())
    if resuming:
        run.say(f"resuming at step {run.progress.step} of {run.steps}")
    stop = catch_signals()
    try:
        fit(run, stop)
    except RuntimeError as error:
        if not re.search("out of memory|allocate memory", str(error)):  # CUDA and MPS say the one, the CPU the other
            raise
        half = max(1, config.batch_size // 2)
        raise InputError(
            f"out of memory at step {run.progress.step + 1}: try --batch-size {half} --grad-accum "
            f"{config.grad_accum * 2}, which trains the same, or a --max-length below {config.max_length}"
        ) from None
    if run.progress.step < run.steps:
        command = [a for a in sys.argv if a not in ("--resume", "--overwrite")]
        again = shlex.join([sys.executable, *command, "--resume"])
        run.say(f"stopped at step {run.progress.step} of {run.steps}; to go on: {again}")
        sys.exit(128 + stop[0])
    plot_curves(run.progress.history, out / "training_curves.png")
    save_model(run, out / "final")
    run.say(f"best validation {run.metric} {run.progress.best:.4f}, kept in {out / 'best'}")
    lock.close()
    if config.push_to_hub:
        push_to_hub(out / "best", config.hub_model_id, config.hub_private)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in PyTorch's loading code a KeyboardInterrupt can get lost
    options, notice = parse_options(sys.argv[1:]), ""
    config = Config(**options)
    if config.offline_fallback and not options.keys() & {"model", "data"}:
        refuse_to_overwrite(config)  # before anything is downloaded
        defaults, notice = official_or_offline()
        config = Config(**defaults | options)
    train(config, notice)


if __name__ == "__main__":
    run_main(main)
