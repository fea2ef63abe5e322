"""The contenders of compare_hf.py: each as a process that trains when it is told to.

    hf-padded-128  transformers' model with peft's LoRA, every sentence padded to 128 tokens
    hf-longest     the same, padded to the longest sentence of a shuffled batch
    hf-grouped     the same, grouped by length as transformers' Trainer does with group_by_length
    hf-compiled    the same through torch.compile, for any length, its frozen weights in the type
                   of the products, as those of `ours`
    hf-our-batches the same as hf-grouped, in the very batches of `ours`
    hf-trainer     as hf-longest, in transformers' Trainer
    ours           train.py's own step
    ours-eager     the same with --compile no
    ours-full      the same with --rank 0: every weight is trained
    ours-free      the same if LoRA cost nothing: see build_ours
    matmul         the machine's limit: the matrix products of the linear layers, and nothing else

A process builds one of them, says what it computes on a few sentences, and then trains a round for
each "go".
"""

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from bert import BertConfig
from data import Encoded, encode, load_data, load_tokenizer, make_batch, plan_batches
from lora import LinearWithLoRA, load_lora_state_dict
from runtime.kernels import product
from support.errors import InputError, first_line

SHUFFLED = ["hf-padded-128", "hf-longest", "hf-trainer"]
CONTENDERS = [
    *SHUFFLED[:2],
    "hf-grouped",
    "hf-compiled",
    "hf-our-batches",
    "hf-trainer",
    "ours",
    "ours-eager",
    "ours-full",
    "ours-free",
    "matmul",
]
SEED = 42
MAX_LENGTH = 128
ALPHA = 16.0
LR = 5e-4
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


# Models. `s` holds the command line's settings and the folders that compare_hf.write_base wrote.


@dataclass
class Contender:
    data: Encoded
    step: Callable  # trains on the rows of a batch
    forward: Callable | None = None  # the rows of a batch to (loss, logits)
    model: torch.nn.Module | None = None
    computes: dict = field(default_factory=dict)  # in what, and how, for the record


def hf_output(model, data: Encoded, rows: np.ndarray):
    """What transformers' model says of a batch of the rows, with the mean loss; the labels (B,).

    Where nothing is padded it gets no mask, as ours: it would ask the GPU whether all of it is 1.
    """
    ids, mask, types, labels = make_batch(data, rows)
    mask = None if mask is None else mask.long()
    types = torch.zeros_like(ids) if types is None else types
    return model(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels), labels


def build_hf(name: str, s: SimpleNamespace) -> Contender:
    """transformers + peft at their best: tokens ready on the device, fused AdamW, nothing waits for
    the loss; transformers itself waits for the GPU in each step that has a mask."""
    import transformers
    from peft import PeftModel

    model = transformers.AutoModelForSequenceClassification.from_pretrained(s.base)
    model = PeftModel.from_pretrained(model, s.adapter, is_trainable=True).to(s.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 10, 1_000_000)
    usual = 8 if s.device == "cuda" else 1
    data = read_data(s, multiple=MAX_LENGTH if name == "hf-padded-128" else usual)
    dtype = getattr(torch, s.dtype)
    is_compiled = name == "hf-compiled"
    if is_compiled:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
                module.to(dtype)
        model.compile(dynamic=True)

    def forward(rows):
        with torch.autocast(s.device, dtype, enabled=dtype != torch.float32):
            output, _ = hf_output(model, data, rows)
        return output.loss, output.logits

    def step(rows):
        loss, _ = forward(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return Contender(data, step, forward, model, described(model, is_compiled))


def described(model: torch.nn.Module, is_compiled: bool, notes=()) -> dict:
    frozen = {str(p.dtype) for p in model.parameters() if p.ndim == 2 and not p.requires_grad}
    return {"compiled": is_compiled, "frozen matrices": sorted(frozen), "notes": [*notes]}


def build_ours(name: str, s: SimpleNamespace) -> Contender:
    """train.py's step. `ours-full` trains every weight; `ours-free` has its adapters taken out.

    In `ours-free` each adapted layer is its frozen linear again, with a bias that is trained. So
    the gradient flows as far down as it does with adapters, through the same frozen products; what
    is left out is all that LoRA adds: the products with A and B, the dropout on what A reads, A and
    B in clipping and AdamW. Instead it sums dy over the rows, for the bias: less than any other way
    to train the layer takes.
    """
    config = train.Config(
        model=s.base,
        data=s.data,
        batch_size=s.batch_size,
        epochs=1000,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        rank=0 if name == "ours-full" else s.rank,
        alpha=ALPHA,
        dropout=s.dropout,
        targets=s.targets,
        max_length=MAX_LENGTH,
        seed=SEED,
        device=s.device,
        dtype=s.dtype,
        compile="no" if name == "ours-eager" else "auto",
    )
    setup = train.set_up(config)
    if config.rank:
        load_lora_state_dict(setup.model, load_file(f"{s.adapter}/adapter_model.safetensors"))
    if name == "ours-free":
        take_adapters_out(setup)
    setup.model.train()
    steps = itertools.count()

    def forward(rows):
        *inputs, labels = make_batch(setup.train_set, rows)
        with setup.placement.autocast:
            logits = setup.model(*inputs).float()  # (B, C)
        return F.cross_entropy(logits, labels), logits

    def step(rows):
        train.train_step(setup, rows, next(steps))

    place = setup.placement
    computes = described(setup.model, place.compiled, place.notes)
    return Contender(setup.train_set, step, forward, setup.model, computes)


def take_adapters_out(setup: train.Setup) -> None:
    for path, module in list(setup.model.named_modules()):
        if isinstance(module, LinearWithLoRA):
            setup.model.set_submodule(path, module.linear)
            module.linear.bias.requires_grad_(True)
    trained = [p for p in setup.model.parameters() if p.requires_grad]
    setup.optimizer = torch.optim.AdamW(trained, LR, weight_decay=WEIGHT_DECAY, fused=True)


def build_matmul(name: str, s: SimpleNamespace) -> Contender:
    """The products of all linear layers, forward and backward: the fastest there are. On CUDA they
    are one graph."""
    config = BertConfig.from_json(f"{s.base}/config.json")
    data = read_data(s)
    graphs = {}

    def draw(*shape):
        return torch.randn(*shape, device=s.device).to(getattr(torch, s.dtype))

    weights = [draw(n_out, n_in) for n_in, n_out in linear_shapes(config)]
    widths = {config.hidden_size, config.intermediate_size}
    x, y = ({width: draw(s.batch_size * MAX_LENGTH, width) for width in widths} for _ in range(2))

    def multiply(N):
        for W in weights:
            n_out, n_in = W.shape
            if s.device == "cpu":
                product(x[n_in][:N], W)  # y = x Wᵀ
                product(x[n_out][:N], W.t())  # dx = dy W
            else:
                torch.mm(x[n_in][:N], W.t(), out=y[n_out][:N])
                torch.mm(x[n_out][:N], W, out=y[n_in][:N])

    def step(rows):
        N = len(rows) * int(data.lengths[rows].max())
        if graphs:
            graphs[N].replay()
        else:
            multiply(N)

    if s.device == "cuda":  # else the limit would be how fast Python starts kernels
        multiply(s.batch_size)
        for N in s.batch_size * np.unique(data.lengths):
            graphs[int(N)] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[int(N)]):
                multiply(int(N))
    return Contender(data, step)


def linear_shapes(config: BertConfig) -> list[tuple[int, int]]:
    """(in, out) of query, key, value and the three dense layers, of all layers."""
    D, inner = config.hidden_size, config.intermediate_size
    return [*[(D, D)] * 4, (D, inner), (inner, D)] * config.num_hidden_layers


def read_data(s: SimpleNamespace, multiple: int = 1) -> Encoded:
    split = load_data(s.data).train
    encoded = encode(load_tokenizer(s.base, MAX_LENGTH), split.texts, split.labels)
    return encoded.to(s.device, multiple=multiple)


def plan_rounds(lengths: np.ndarray, s: SimpleNamespace, name: str = "ours") -> list[np.ndarray]:
    """The batches of each round, (steps, B) rows; the first round is the warm-up, with the longest
    batch in it.

    A round takes every n-th of plan_batches' batches in the order of their lengths, starting
    elsewhere in each round: so 20 steps hold all lengths in the data's proportions. The shuffled
    contenders are dealt the same sentences anew. transformers' sampler makes batches of its own, of
    which every n-th is taken alike.
    """
    if name in ("hf-grouped", "hf-compiled"):
        from transformers.trainer_pt_utils import LengthGroupedSampler

        drawn = torch.Generator().manual_seed(SEED)
        sampler = LengthGroupedSampler(s.batch_size, lengths=lengths.tolist(), generator=drawn)
        order = np.array([*sampler])
        batches = np.split(order, range(s.batch_size, len(order), s.batch_size))
    else:
        batches = plan_batches(lengths, s.batch_size, SEED, epoch=0)
    batches = [rows for rows in batches if len(rows) == s.batch_size]
    if not batches:
        raise InputError(f"{s.data}: fewer sentences than --batch-size {s.batch_size}")
    batches.sort(key=lambda rows: lengths[rows].max())
    plan = []
    for number in range(s.rounds + 1):
        steps = s.steps if number else s.warmup
        start = number * 0.618 % 1 if number else 0.999
        chosen = ((np.arange(steps) + start) * len(batches) / steps).astype(int)
        generator = np.random.default_rng([SEED, number])
        rows = np.stack([batches[i] for i in generator.permutation(chosen)])  # (steps, B)
        if name in SHUFFLED:
            rows = generator.permutation(rows.ravel()).reshape(rows.shape)
        plan.append(rows)
    return plan


# The process.


def work(name: str, s: SimpleNamespace) -> None:
    """Builds the contender, then answers each "go" on standard input, after a round, with a line of
    JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    since = 0.0

    def answer(**fields) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    def begin() -> None:
        nonlocal since
        if sys.stdin.readline() != "go\n":
            sys.exit()
        since = time.perf_counter()

    def end() -> None:
        if s.device == "cuda":
            torch.cuda.synchronize()
        answer(seconds=time.perf_counter() - since, memory=peak_memory(s.device))

    try:
        torch.set_num_threads(s.threads)
        torch.manual_seed(SEED)
        contender = build(name, s)
        plan = plan_rounds(contender.data.lengths, s, name)
        answer(**check(contender))
        if name == "hf-trainer":
            train_with_trainer(contender, plan, s, begin, end)
        else:
            for number, batches in enumerate(plan):
                begin()
                if number == 1 and s.device == "cuda":  # without what the warm-up compiled
                    torch.cuda.reset_peak_memory_stats()
                for rows in batches:
                    contender.step(rows)
                end()
    except Exception as error:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        answer(error=kind + first_line(error))


def build(name: str, s: SimpleNamespace) -> Contender:
    if name.startswith("hf"):
        return build_hf(name, s)
    if name.startswith("ours"):
        return build_ours(name, s)
    return build_matmul(name, s)


def check(contender: Contender) -> dict:
    """Loss, logits and the length of the adapters' gradient on eight sentences of all lengths,
    without dropout."""
    if contender.model is None:
        return {}
    lengths = contender.data.lengths
    rows = np.argsort(lengths, kind="stable")[:: -(-len(lengths) // 8)]
    contender.model.eval()
    loss, logits = contender.forward(rows)
    loss.backward()
    norms = [torch.zeros(())]
    for name, parameter in contender.model.named_parameters():
        if "lora_" in name and parameter.grad is not None:
            norms.append(parameter.grad.norm().cpu())
    length = torch.stack(norms).norm().item()
    contender.model.zero_grad()
    contender.model.train()
    found = {"loss": loss.item(), "logits": logits.tolist(), "gradient": length}
    return found | {"computes": contender.computes}


def peak_memory(device: str) -> int | None:
    """Bytes on the GPU, or of this process; getrusage's ru_maxrss counts the parent's size in."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024


def train_with_trainer(
    contender: Contender, plan: list[np.ndarray], s: SimpleNamespace, begin, end
) -> None:
    """All rounds in one transformers.Trainer, which is held up wherever a round begins."""
    import transformers

    class HoldUp(transformers.TrainerCallback):
        def on_step_begin(self, arguments, state, control, **more):
            if state.global_step in starts:
                begin()

        def on_step_end(self, arguments, state, control, **more):
            if state.global_step in starts:
                end()

    data = contender.data.to("cpu")
    starts = np.cumsum([0, *map(len, plan)])
    sentences = []
    for row in np.concatenate(plan).ravel():
        ids = data.input_ids[data.starts[row] :][: data.lengths[row]]
        sentences.append({"input_ids": ids.tolist(), "labels": int(data.labels[row])})
    cuda = s.device == "cuda"
    arguments = transformers.TrainingArguments(
        s.scratch,
        per_device_train_batch_size=s.batch_size,
        max_steps=int(starts[-1]),
        learning_rate=LR,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=s.dtype == "bfloat16",
        use_cpu=not cuda,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(s.base)
    multiple = 8 if cuda else None
    collate = transformers.DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)
    trainer = transformers.Trainer(
        contender.model, arguments, collate, sentences, callbacks=[HoldUp()]
    )
    trainer.train()


if __name__ == "__main__":
    work(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2])))
