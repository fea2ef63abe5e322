"""The contenders of compare_hf.py: each as a process that trains when it is told to.

    hf-padded-128  transformers' model with peft's LoRA, every sentence padded to 128 tokens, as in tutorials
    hf-longest     the same, padded to the longest sentence of a shuffled batch
    hf-grouped     the same, grouped by length as transformers' Trainer does with group_by_length
    hf-our-batches the same, in the very batches of `ours`
    hf-trainer     as hf-longest, in transformers' Trainer
    ours           train.py's own step
    ours-full      the same with --rank 0: every weight is trained
    ours-free      the same if LoRA cost nothing: see build_ours
    matmul         the machine's limit: the matrix products of the linear layers, and nothing else

A process builds one of them, says what it computes on a few sentences, and then trains a round for
each "go".
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from bert import BertConfig
from data import Encoded, encode, load_task, load_tokenizer, make_batch, plan_batches
from lora import LinearWithLoRA, load_lora_state_dict
from support import faster
from support.files import InputError, first_line

SHUFFLED = ["hf-padded-128", "hf-longest", "hf-trainer"]
CONTENDERS = [
    *SHUFFLED[:2],
    "hf-grouped",
    "hf-our-batches",
    "hf-trainer",
    "ours",
    "ours-full",
    "ours-free",
    "matmul",
]
SEED, MAX_LENGTH, ALPHA, LR, WEIGHT_DECAY, MAX_GRAD_NORM = 42, 128, 16.0, 5e-4, 0.01, 1.0


# Models. `s` holds the command line's settings and the folders that compare_hf.write_base wrote.


@dataclass
class Contender:
    data: Encoded
    step: Callable  # trains on the rows of a batch
    forward: Callable | None = None  # the rows of a batch to (loss, logits)
    model: torch.nn.Module | None = None


def hf_output(model, data: Encoded, rows: np.ndarray, multiple: int):
    """What transformers' model says of a batch of the rows, the mean loss with it; and the labels
    (B,)."""
    ids, mask, types, labels = make_batch(data, rows, model.config.pad_token_id, multiple)
    mask = torch.ones_like(ids) if mask is None else mask.long()
    types = torch.zeros_like(ids) if types is None else types
    return model(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels), labels


def build_hf(name: str, s: SimpleNamespace) -> Contender:
    """transformers + peft at their best: tokens ready on the device, fused AdamW, nothing waits for
    the loss."""
    import transformers
    from peft import PeftModel

    model = transformers.AutoModelForSequenceClassification.from_pretrained(s.base)
    model = PeftModel.from_pretrained(model, s.adapter, is_trainable=True).to(s.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LR, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 10, 1_000_000)
    multiple = MAX_LENGTH if name == "hf-padded-128" else 8 if s.device == "cuda" else 1
    data = read_data(s)

    def forward(rows):
        with torch.autocast(s.device, torch.bfloat16, enabled=s.dtype == "bfloat16"):
            output, _ = hf_output(model, data, rows, multiple)
        return output.loss, output.logits

    def step(rows):
        forward(rows)[0].backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return Contender(data, step, forward, model)


def build_ours(name: str, s: SimpleNamespace) -> Contender:
    """train.py's step. `ours-full` trains every weight; of `ours-free` the adapters are taken out
    again.

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
        # fmt: skip
        targets=s.targets,
        max_length=MAX_LENGTH,
        seed=SEED,
        device=s.device,
        dtype=s.dtype,
    )
    run = train.set_up(config)
    if config.rank:
        load_lora_state_dict(run.model, load_file(Path(s.adapter) / "adapter_model.safetensors"))
    if name == "ours-free":
        for path, module in list(run.model.named_modules()):
            if isinstance(module, LinearWithLoRA):
                parent, _, child = path.rpartition(".")
                setattr(run.model.get_submodule(parent), child, module.linear)
                module.linear.bias.requires_grad_(True)
        trained = [p for p in run.model.parameters() if p.requires_grad]
        run.optimizer = torch.optim.AdamW(trained, LR, weight_decay=WEIGHT_DECAY, fused=True)
    run.model.train()

    def forward(rows):
        ids, mask, types, labels = make_batch(
            run.train, rows, run.model.config.pad_token_id, run.length_multiple
        )
        with torch.autocast(s.device, torch.bfloat16, enabled=s.dtype == "bfloat16"):
            logits = run.model(ids, mask, types).float()  # (B, C)
        return F.cross_entropy(logits, labels), logits

    def step(rows):
        train.train_step(run, rows)
        run.progress.step += 1

    return Contender(run.train, step, forward, run.model)


def build_matmul(name: str, s: SimpleNamespace) -> Contender:
    """The products of all linear layers, forward and backward: the fastest there are. On CUDA they
    are one graph."""
    config, data, graphs = BertConfig.from_json(Path(s.base) / "config.json"), read_data(s), {}
    draw = lambda *shape: torch.randn(*shape, device=s.device).to(getattr(torch, s.dtype))
    weights = [draw(n_out, n_in) for n_in, n_out in linear_shapes(config)]
    widths = {config.hidden_size, config.intermediate_size}
    x, y = ({width: draw(s.batch_size * MAX_LENGTH, width) for width in widths} for _ in range(2))

    def products(N):
        for W in weights:
            n_out, n_in = W.shape
            if s.device == "cpu":
                faster.product(x[n_in][:N], W)  # y = x Wᵀ
                faster.product(x[n_out][:N], W.t())  # dx = dy W
            else:
                torch.mm(x[n_in][:N], W.t(), out=y[n_out][:N])
                torch.mm(x[n_out][:N], W, out=y[n_in][:N])

    def step(rows):
        N = len(rows) * int(data.lengths[rows].max())
        graphs[N].replay() if graphs else products(N)

    if s.device == "cuda":  # else the limit would be how fast Python starts kernels
        products(s.batch_size)
        for N in s.batch_size * np.unique(data.lengths):
            graphs[int(N)] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graphs[int(N)]):
                products(int(N))
    return Contender(data, step)


def linear_shapes(config: BertConfig) -> list[tuple[int, int]]:
    """(in, out) of query, key, value and the three dense layers, of all layers."""
    D, inner = config.hidden_size, config.intermediate_size
    return [*[(D, D)] * 4, (D, inner), (inner, D)] * config.num_hidden_layers


def read_data(s: SimpleNamespace) -> Encoded:
    split = load_task(s.data).train
    return encode(load_tokenizer(s.base, MAX_LENGTH), split.texts, split.labels).to(s.device)


def plan_rounds(lengths: np.ndarray, s: SimpleNamespace, name: str = "ours") -> list[np.ndarray]:
    """The batches of each round, (steps, B) rows; the first round is the warm-up, with the longest
    batch in it.

    A round takes every n-th of plan_batches' batches in the order of their lengths, starting
    elsewhere in each round: so 20 steps hold all lengths in the data's proportions. The shuffled
    contenders are dealt the same sentences anew. transformers' sampler makes batches of its own, of
    which every n-th is taken alike.
    """
    if name == "hf-grouped":
        from transformers.trainer_pt_utils import LengthGroupedSampler

        drawn = torch.Generator().manual_seed(SEED)
        order = np.array(
            list(LengthGroupedSampler(s.batch_size, lengths=lengths.tolist(), generator=drawn))
        )
        batches = np.split(order, range(s.batch_size, len(order), s.batch_size))
    else:
        batches = plan_batches(lengths, s.batch_size, SEED, epoch=0)
    batches = [rows for rows in batches if len(rows) == s.batch_size]
    if not batches:
        raise InputError(f"{s.data}: fewer sentences than --batch-size {s.batch_size}")
    batches.sort(key=lambda rows: lengths[rows].max())
    plan = []
    for number in range(s.rounds + 1):
        steps, start = (s.steps, number * 0.618 % 1) if number else (s.warmup, 0.999)
        chosen = ((np.arange(steps) + start) * len(batches) / steps).astype(int)
        generator = np.random.default_rng([SEED, number])
        rows = np.stack([batches[i] for i in generator.permutation(chosen)])
        plan.append(
            generator.permutation(rows.ravel()).reshape(rows.shape) if name in SHUFFLED else rows
        )
    return plan


# The process.


def work(name: str, s: SimpleNamespace) -> None:
    """Builds the contender, then answers each "go" on standard input, after a round, with a line of
    JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answer = lambda **fields: print(json.dumps(fields), file=answers, flush=True)

    def begin() -> None:
        nonlocal since
        if sys.stdin.readline() != "go\n":
            sys.exit()
        since = time.perf_counter()

    def end() -> None:
        if s.device == "cuda":
            torch.cuda.synchronize()
        answer(seconds=time.perf_counter() - since, memory=peak_memory(s.device))

    since = 0.0
    try:
        torch.set_num_threads(s.threads)
        torch.manual_seed(SEED)
        build = (
            build_hf
            if name.startswith("hf")
            else build_ours
            if name.startswith("ours")
            else build_matmul
        )
        contender = build(name, s)
        plan = plan_rounds(contender.data.lengths, s, name)
        answer(**check(contender))
        if name == "hf-trainer":
            train_with_trainer(contender, plan, s, begin, end)
        else:
            for batches in plan:
                begin()
                for rows in batches:
                    contender.step(rows)
                end()
    except Exception as error:
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        answer(error=kind + first_line(error))


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
    gradients = [
        p.grad
        for name, p in contender.model.named_parameters()
        if "lora_" in name and p.grad is not None
    ]
    length = torch.stack([g.norm() for g in gradients]).norm().item() if gradients else 0.0
    contender.model.zero_grad()
    contender.model.train()
    return {"loss": loss.item(), "logits": logits.tolist(), "gradient": length}


def peak_memory(device: str) -> int | None:
    """Bytes on the GPU, or of this process (not getrusage's ru_maxrss, which counts the parent's
    size in)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    return (
        int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
        if status.exists()
        else None
    )


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

    data, starts = contender.data.to("cpu"), np.cumsum([0, *map(len, plan)])
    sentences = [
        {
            "input_ids": data.input_ids[data.starts[i] :][: data.lengths[i]].tolist(),
            "labels": int(data.labels[i]),
        }
        for i in np.concatenate(plan).ravel()
    ]
    cuda, tokenizer = s.device == "cuda", transformers.AutoTokenizer.from_pretrained(s.base)
    arguments = transformers.TrainingArguments(
        s.scratch, per_device_train_batch_size=s.batch_size, max_steps=int(starts[-1]), learning_rate=LR,
        weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM, bf16=s.dtype == "bfloat16", use_cpu=not cuda,
        train_sampling_strategy="sequential", save_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=cuda)  # fmt: skip
    collate = transformers.DataCollatorWithPadding(
        tokenizer, pad_to_multiple_of=8 if cuda else None
    )
    transformers.Trainer(
        contender.model, arguments, collate, sentences, callbacks=[HoldUp()]
    ).train()


if __name__ == "__main__":
    work(sys.argv[1], SimpleNamespace(**json.loads(sys.argv[2])))
