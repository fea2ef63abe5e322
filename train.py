"""Fine-tunes BERT with LoRA on a classification task.

    python train.py                                               # bert-base-uncased on SST-2, from the Hub
    python train.py --model DIR --data reviews.csv --epochs 5     # your own
    python train.py --config out/config.toml --out again          # a former run, repeated

It leaves in --out: best/ and final/ (adapters in PEFT's format), training_curves.png,
training_log.txt, metrics.jsonl, config.toml, and checkpoint/, from which --resume goes on.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import shlex
import shutil
import signal
import sys
import time
import tomllib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from bert import (
    BertForSequenceClassification,
    InputError,
    OneLineParser,
    find_file,
    first_line,
    open_safetensors,
    run_main,
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
from lora import apply_lora_to_model, count_lora_parameters, mark_only_lora_as_trainable, save_adapter

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
    save_every: int = option(200, "steps between checkpoints, beside those at evaluations", AT_LEAST_1)
    resume: bool = option(False, "go on from the checkpoint in --out, if there is one")
    overwrite: bool = option(False, "replace a finished run in --out")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if f.type is float and type(value) is int:
                setattr(self, f.name, value := float(value))
            if type(value) is not f.type:
                raise InputError(f"{f.name} must be of type {f.type.__name__}, not {value!r}")
            if allowed and not allowed[1](value):
                raise InputError(f"--{f.name.replace('_', '-')} {value} is not {allowed[0]}")


def parse_config(arguments: list[str]) -> Config:
    """The Config that a command line and its --config file ask for. Underscores work as dashes do."""
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", metavar="FILE", help="a TOML file of these options; a flag given beside it wins")
    for f in dataclasses.fields(Config):
        names = [f"--{name.replace('_', '-')}" for name in (f.name, f.metadata["also"]) if name]
        kind = {"action": "store_true"} if f.type is bool else {"type": f.type, "metavar": f.type.__name__.upper()}
        shown = f" (default: {f.default})" if f.default not in ("", False) else ""
        parser.add_argument(*names, dest=f.name, default=None, help=f.metadata["help"] + shown, **kind)
    dashed = [a.partition("=") for a in arguments]
    dashed = [(a.replace("_", "-") if a.startswith("--") else a) + equals + value for a, equals, value in dashed]
    flags = {name: value for name, value in vars(parser.parse_args(dashed)).items() if value is not None}
    path = flags.pop("config", None)
    try:
        keys = tomllib.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a TOML file ({first_line(error)})") from None
    known = [f.name for f in dataclasses.fields(Config)]
    for name in keys.keys() - set(known):
        close = difflib.get_close_matches(name, known, 1)
        raise InputError(f"{path}: unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return Config(**keys | flags)


@dataclass
class Progress:
    """Where a run stands. With the tensors and the random state of a checkpoint: all that resuming takes."""

    step: int = 0
    best: float | None = None  # the best validation metric so far
    window: list = field(default_factory=list)  # [loss sum, correct, sentences] of the steps since the last log line
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
    fingerprint: str  # of the base's weights and of the tokens: a checkpoint belongs to one pair
    progress: Progress
    say: object  # prints a line, and keeps it in training_log.txt

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train.lengths) // (self.config.batch_size * self.config.grad_accum))

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs


def build_model(config: Config, label_names: list[str]) -> BertForSequenceClassification:
    """The base with fresh adapters and classifier, on its device, compiled where that pays."""
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    model = BertForSequenceClassification.from_pretrained(config.model, num_labels=len(label_names))
    model.config.id2label = dict(enumerate(label_names))
    if config.rank:
        targets = config.targets if config.targets == "all-linear" else config.targets.split(",")
        apply_lora_to_model(model, targets, config.rank, config.alpha, config.dropout)
        mark_only_lora_as_trainable(model)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} cannot be used here: {first_line(error)}") from None
    if use_bfloat16(config, device):
        for module in model.modules():  # frozen: no float32 original is needed, and no cast in each step
            if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)
    if config.compile == "yes" or (config.compile == "auto" and device == "cuda"):
        for layer in model.bert.encoder.layer:  # they share their code: it is compiled once, for every length
            layer.compile(fullgraph=True, dynamic=True)
    return model


def use_bfloat16(config: Config, device: str) -> bool:
    return config.dtype == "bfloat16" or (config.dtype == "auto" and device == "cuda")


def parameter_table(model: BertForSequenceClassification) -> str:
    """How many parameters there are, and how many are trained."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora, classifier = count_lora_parameters(model), sum(p.numel() for p in model.classifier.parameters())
    rows = [
        ("BERT", total - lora - classifier, "frozen" if lora else "trained"),
        ("LoRA", lora, "trained"),
        ("classifier", classifier, "trained, new" if model.classifier_is_new else "trained"),
        ("total", total, f"{trained:,} trained = {trained / total:.2%}"),
    ]
    return "\n".join(f"{name:<12}{count:>12,}  {state}" for name, count, state in rows if count)


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Linear warm-up from 0 to lr, then linear decay to 0: the rate of step 0, 1, …, as transformers has it."""
    warmup = math.ceil(config.warmup_ratio * steps)
    return config.lr * (step / warmup if step < warmup else (steps - step) / max(1, steps - warmup))


def forward(run: Run, data: Encoded, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits (B, C) in float32, and labels (B,)."""
    device = data.input_ids.device.type
    # On CUDA few lengths mean few kernels; elsewhere padding only costs.
    batch = make_batch(data, rows, run.model.config.pad_token_id, multiple=8 if device == "cuda" else 1)
    with torch.autocast(device, torch.bfloat16, enabled=use_bfloat16(run.config, device)):
        return run.model(*batch[:3]).float(), batch[3]


def train_step(run: Run, rows: np.ndarray) -> list:
    """One optimizer step on a batch; returns [loss sum, correct, sentences]. Nothing here waits for the GPU."""
    loss_sum = correct = 0
    for part in np.array_split(rows, range(run.config.batch_size, len(rows), run.config.batch_size)):
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


@torch.inference_mode()
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
    """Accuracy, and for two classes f1 or matthews_correlation where that is the task's metric."""
    scores = {"accuracy": float(np.mean(predicted == labels))}
    tp, tn = np.sum((predicted == 1) & (labels == 1)), np.sum((predicted == 0) & (labels == 0))
    fp, fn = np.sum((predicted == 1) & (labels == 0)), np.sum((predicted == 0) & (labels == 1))
    if metric == "f1":
        scores["f1"] = float(2 * tp / max(1, 2 * tp + fp + fn))
    if metric == "matthews_correlation":
        product = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
        scores[metric] = float(tp * tn - fp * fn) / math.sqrt(product) if product else 0.0
    return scores


def fit(run: Run, stop: list[int]) -> None:
    """The loop, from run.progress to the last step, or to the end of the step in which `stop` received a signal."""
    progress, config = run.progress, run.config
    run.model.train()
    plan, sentences, since = None, 0, time.perf_counter()
    bar = tqdm(total=config.epochs * len(run.train.lengths), unit="sentence", disable=not sys.stderr.isatty())
    bar.update(min(progress.step * config.batch_size * config.grad_accum, bar.total))
    while progress.step < run.steps and not stop:
        epoch, index = divmod(progress.step, run.steps_per_epoch)
        if plan is None or index == 0:
            plan = plan_batches(run.train.lengths, config.batch_size * config.grad_accum, config.seed, epoch)
        progress.window.append(train_step(run, plan[index]))
        progress.step += 1
        sentences += len(plan[index])
        bar.update(len(plan[index]))
        evaluating = progress.step % run.steps_per_epoch == 0
        evaluating |= bool(config.eval_every) and progress.step % config.eval_every == 0
        logging = progress.step % config.log_every == 0
        saving = evaluating or progress.step % config.save_every == 0 or bool(stop)
        if logging or saving or run.train.input_ids.device.type == "cpu":
            read_window(run)
        if logging:
            record = log_window(run)
            rate = sentences / (time.perf_counter() - since)
            bar.set_postfix_str(f"loss {record['train_loss']:.3f}, accuracy {record['train_accuracy']:.1%}")
            if bar.disable:
                left = (config.epochs * len(run.train.lengths) * (1 - progress.step / run.steps)) / rate
                run.say(
                    f"step {progress.step}/{run.steps}  loss {record['train_loss']:.4f}  "
                    f"accuracy {record['train_accuracy']:.1%}  {rate:.0f} sentences/s  {left:.0f} s left"
                )
        if evaluating:
            note_evaluation(run)
        if saving:
            save_checkpoint(run)
    bar.close()


def read_window(run: Run) -> None:
    """Brings the losses of the last steps over from the device. Raises InputError for one that is not finite."""
    window = run.progress.window
    for i, (loss, correct, count) in enumerate(window):
        window[i] = [float(loss), int(correct), count]
        if not math.isfinite(window[i][0]):
            step = run.progress.step - len(window) + i
            rate = learning_rate(run.config, step, run.steps)
            raise InputError(f"the loss is {window[i][0]} at step {step + 1}, learning rate {rate:.3g}: try a lower --lr; "
                             f"what was best so far is kept in {run.config.out}")  # fmt: skip


def log_window(run: Run) -> dict:
    loss, correct, count = (sum(column) for column in zip(*run.progress.window, strict=True))
    run.progress.window.clear()
    record = {"step": run.progress.step, "train_loss": loss / count, "train_accuracy": correct / count}
    run.progress.history.append(record)
    return record


def note_evaluation(run: Run) -> None:
    """Evaluates, keeps the adapter if it is the best so far, and brings metrics.jsonl up to date."""
    progress, out = run.progress, Path(run.config.out)
    scores = evaluate(run)
    better = progress.best is None or scores[run.metric] > progress.best
    if better:
        progress.best = scores[run.metric]
        save_model(run, out / "best", scores)
    progress.history.append({"step": progress.step, **{f"validation_{name}": v for name, v in scores.items()}})
    with written_whole(out / "metrics.jsonl") as path:
        path.write_text("".join(json.dumps(record) + "\n" for record in progress.history))
    shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    epoch = progress.step / run.steps_per_epoch
    run.say(f"epoch {epoch:.2f}  validation: {shown}" + ("  (best so far, saved)" if better else ""))


def save_model(run: Run, folder: Path, scores: dict[str, float]) -> None:
    """The adapter, or with rank 0 the whole model."""
    if run.config.rank:
        save_adapter(run.model, folder, run.config.model)
    else:
        run.model.save_pretrained(folder)
    with written_whole(folder / "README.md") as path:
        path.write_text(model_card(run.config, scores), encoding="utf-8")


def model_card(config: Config, scores: dict[str, float]) -> str:
    results = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
    return f"""---
base_model: {config.model.partition("@")[0]}
library_name: peft
---
`{config.model}` fine-tuned on `{config.data}` with LoRA (rank {config.rank}, alpha {config.alpha:g}, on {config.targets}).

| validation | |
| --- | --- |
{results}
"""


# Checkpoints: one safetensors file, with the rest as JSON in its header; replaced whole.


def comparable(run: Run) -> dict:
    """What must be the same for a checkpoint to be gone on from."""
    free = ("out", "resume", "overwrite", "offline_fallback", "save_every")
    return {k: v for k, v in asdict(run.config).items() if k not in free} | {"contents": run.fingerprint}


def save_checkpoint(run: Run) -> None:
    tensors = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            tensors[f"parameter.{name}"] = parameter.detach()
            for kind, value in run.optimizer.state[parameter].items():  # step, exp_avg, exp_avg_sq
                tensors[f"{kind}.{name}"] = value
    header = {"config": json.dumps(comparable(run)), "progress": json.dumps(asdict(run.progress))}
    folder = Path(run.config.out) / "checkpoint"
    folder.mkdir(exist_ok=True)
    with written_whole(folder / "checkpoint.safetensors") as path:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, header)


@torch.no_grad()
def load_checkpoint(run: Run, path: Path) -> None:
    """Puts the run where the checkpoint left it. Raises InputError naming the option that differs."""
    with open_safetensors(path) as file:
        header = file.metadata()
        then, now = json.loads(header["config"]), comparable(run)
        for name in now:
            if then.get(name) != now[name]:
                what = f"{then.get(name)!r}, now {now[name]!r}" if name != "contents" else "other base weights or data"
                raise InputError(f"{path}: the run was started with {name} {what}; --overwrite starts anew")
        run.progress = Progress(**json.loads(header["progress"]))
        for key in file.keys():
            kind, _, name = key.partition(".")
            tensor = file.get_tensor(key)
            if kind == "random":
                (torch if name == "cpu" else torch.cuda).set_rng_state(tensor)
            elif kind == "parameter":
                run.model.get_parameter(name).copy_(tensor)
            else:
                parameter = run.model.get_parameter(name)
                run.optimizer.state[parameter][kind] = tensor.to(parameter.device)


def plot_curves(history: list[dict], path: Path) -> None:
    """Loss and accuracy against the step, for training and validation, as a PNG."""
    import matplotlib  # late, as it takes a second to import

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for split, style in ("train", {"color": "0.6", "linewidth": 1}), ("validation", {"color": "C0", "marker": "o"}):
            points = [(r["step"], r[f"{split}_{name}"]) for r in history if f"{split}_{name}" in r]
            axis.plot(*zip(*points, strict=True), label=split, **style) if points else None
        axis.set_xlabel("step")
        axis.set_title(name)
        axis.legend()
        axis.grid(alpha=0.3)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)


def set_up(config: Config, say) -> Run:
    """Reads data and model, and puts together all that the loop needs."""
    task = load_task(config.data, [c for c in config.text_columns.split(",") if c] or None, config.label_column)
    tokenizer = load_tokenizer(config.model, config.max_length)
    torch.manual_seed(config.seed)
    model = build_model(config, task.label_names)
    if config.max_length > model.config.max_position_embeddings:
        raise InputError(
            f"--max-length {config.max_length}: {config.model} has {model.config.max_position_embeddings} positions"
        )
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise InputError(f"{config.model}: the tokenizer knows more tokens than the model ({model.config.vocab_size})")
    device = model.classifier.weight.device
    train = encode(tokenizer, task.train.texts, task.train.labels)
    validation = encode(tokenizer, task.validation.texts, task.validation.labels)
    digest = hashlib.sha256()
    for part in (find_file(config.model, "model.safetensors").read_bytes(), train.input_ids.numpy(), task.train.labels,
                 validation.input_ids.numpy(), task.validation.labels):  # fmt: skip
        digest.update(part)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},  # biases and LayerNorms
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
    batches = plan_batches(train.lengths, config.batch_size * config.grad_accum, config.seed, 0)
    say(f"model {config.model}\ndata  {config.data}: {len(train.lengths):,} sentences to train on, "
        f"{len(validation.lengths):,} to validate; padding {padding_fraction(train.lengths, batches):.2%} of the tokens")  # fmt: skip
    say(parameter_table(model))
    return Run(
        config,
        model,
        optimizer,
        train.to(device),
        validation.to(device),
        task.metric,
        digest.hexdigest(),
        Progress(),
        say,
    )


@contextmanager
def claimed(out: Path):
    """Keeps a second run out of `out` while this one is at work there."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another run is at work there; wait for it, or give another --out") from None
        yield


@contextmanager
def caught_signals():
    """Yields a list that SIGINT and SIGTERM are put into, instead of ending the process at once."""
    stop: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


FILES = ["best", "final", "checkpoint", "training_curves.png", "training_log.txt", "metrics.jsonl", "config.toml"]


def refuse_to_overwrite(config: Config) -> None:
    out = Path(config.out)
    if config.overwrite:
        return
    if (out / "final").exists():
        raise InputError(f"{out} holds a finished run: --overwrite replaces it, another --out keeps it")
    if (out / "checkpoint").exists() and not config.resume:
        raise InputError(f"{out} holds an unfinished run: --resume goes on with it, --overwrite starts anew")


def train(config: Config) -> Progress:
    """Trains, evaluates and writes everything, as the head of this file says."""
    refuse_to_overwrite(config)
    notice, out = "", Path(config.out)
    if config.offline_fallback and (config.model, config.data) == (OFFICIAL_MODEL, OFFICIAL_DATA):
        config.model, config.data, notice = official_or_offline()
    lines = []

    def say(text: str) -> None:
        tqdm.write(text)
        lines.append(text)
        if claimed_out:
            with open(out / "training_log.txt", "a", encoding="utf-8") as log:
                log.write("".join(line + "\n" for line in lines))
            lines.clear()

    claimed_out = False
    if notice:
        say(notice)
    run = set_up(config, say)
    with claimed(out), caught_signals() as stop:
        refuse_to_overwrite(config)
        checkpoint = out / "checkpoint" / "checkpoint.safetensors"
        if config.resume and checkpoint.exists():
            load_checkpoint(run, checkpoint)
            say(f"resuming {out} at step {run.progress.step} of {run.steps}")
        else:
            for name in FILES:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
        claimed_out = True
        with written_whole(out / "config.toml") as path:
            path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in asdict(config).items()), encoding="utf-8")
        fit(run, stop)
        if run.progress.step < run.steps:
            command = shlex.join(
                [sys.executable, *[a for a in sys.argv if a not in ("--resume", "--overwrite")], "--resume"]
            )
            say(f"stopped at step {run.progress.step} of {run.steps}, saved; go on with: {command}")
            sys.exit(128 + stop[0])
        plot_curves(run.progress.history, out / "training_curves.png")
        last = {k.removeprefix("validation_"): v for k, v in run.progress.history[-1].items() if k != "step"}
        save_model(run, out / "final", last)
        say(f'best {run.metric} {run.progress.best:.4f}: {out / "best"}; try: python sample.py "great film"')
    return run.progress


def main() -> None:
    train(parse_config(sys.argv[1:]))


if __name__ == "__main__":
    run_main(main)
