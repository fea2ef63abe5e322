"""The models, inputs, tables and measures that several test files share.

transformers and peft, which take seconds to import, are imported by the functions that need them.
"""

import contextlib
import json
import logging
import math
import re
import signal
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub import constants
from pyarrow import csv, parquet
from safetensors.torch import save_file
from torch import Tensor, nn

from bert import BertConfig, BertForSequenceClassification, BertModel
from lora import LoRALayer, apply_lora_to_model, get_lora_state_dict, mark_only_lora_as_trainable

ROOT = Path(__file__).resolve().parent.parent
# What the Hub's files (nyu-mll/glue) tell: the columns, and the names of the classes. STS-B has
# numbers for labels.
GLUE_SCHEMAS = {
    "sst2": (["sentence"], ["negative", "positive"]),
    "cola": (["sentence"], ["unacceptable", "acceptable"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"]),
    "stsb": (["sentence1", "sentence2"], []),
}
TINY = {  # a BERT that takes milliseconds
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


# Models.


@torch.no_grad()
def draw(module: nn.Module, seed: int = 0, std: float = 0.1) -> None:
    """Draws every parameter anew, so that none is 0 or 1 and drops out of a comparison."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        parameter.normal_(center, std, generator=generator)


def saved_base(folder: Path, seed: int = 0, **settings) -> Path:
    """A random classifier of the shapes TINY | settings, written by transformers."""
    import transformers

    config = transformers.BertConfig(**TINY | settings)
    model = transformers.BertForSequenceClassification(config)
    draw(model, seed)
    model.save_pretrained(folder)
    return folder


def official_names(state: dict) -> dict:
    """The tensors of a BertModel under the names of bert-base-uncased's own file, with the heads
    of pre-training."""
    D, vocab_size = len(state["pooler.dense.bias"]), len(state["embeddings.word_embeddings.weight"])
    official = {
        "cls.predictions.bias": torch.randn(vocab_size),
        "cls.predictions.transform.dense.weight": torch.randn(D, D),
        "cls.predictions.transform.dense.bias": torch.randn(D),
        "cls.predictions.transform.LayerNorm.gamma": torch.randn(D),
        "cls.predictions.transform.LayerNorm.beta": torch.randn(D),
        "cls.seq_relationship.weight": torch.randn(2, D),
        "cls.seq_relationship.bias": torch.randn(2),
    }
    for name, tensor in state.items():
        name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
        name = re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)
        official[f"bert.{name}"] = tensor
    return official


def official_base(folder: Path) -> Path:
    """The first layers of a random bert-base, written as the official one is."""
    folder.mkdir()
    config = BertConfig(vocab_size=1000, num_hidden_layers=3)
    model = BertModel(config)
    draw(model, std=0.03)
    config.to_json(folder / "config.json", "BertForMaskedLM")
    tensors = official_names(model.state_dict())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def open_theirs(base: str | Path, **settings):
    import transformers

    opener = transformers.AutoModelForSequenceClassification
    return opener.from_pretrained(base, **settings).eval()


def adapted(base: str | Path, targets: list[str] | str, **settings):
    """A base with random A and B, in eval mode."""
    model = BertForSequenceClassification.from_pretrained(base)
    apply_lora_to_model(model, targets, **{"dropout": 0.0} | settings)
    mark_only_lora_as_trainable(model)
    layers = [module for module in model.modules() if isinstance(module, LoRALayer)]
    for seed, layer in enumerate(layers):
        draw(layer, seed, std=0.05)
    return model.eval()


def in_peft(model: BertForSequenceClassification, base: str | Path):
    """The same in peft: on the same base, with A, B and the classifier copied over."""
    import peft

    settings = peft.LoraConfig(task_type="SEQ_CLS", **model.lora_config)
    plain = open_theirs(base, num_labels=model.config.num_labels)
    theirs = peft.get_peft_model(plain, settings)
    report = peft.set_peft_model_state_dict(theirs, get_lora_state_dict(model))
    assert not report.unexpected_keys
    copied = [name for name in report.missing_keys if "lora" in name or "modules_to_save" in name]
    assert not copied
    return theirs.eval()


# Runs.


@contextlib.contextmanager
def signals_restored():
    """A run takes over two signals, which pytest needs again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_here(*arguments) -> None:
    """train.py with these arguments, in this process."""
    import train

    words = ["train.py", *map(str, arguments)]
    with mock.patch.object(sys, "argv", words), signals_restored():
        train.main()


# Measures.


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape; NaN where either has NaN."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every trained parameter, under the name that PEFT saves it by."""
    parts = r"base_model\.model\.|\.modules_to_save|\.default|\.lora(?=\.)"
    return {
        re.sub(parts, "", name): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def losses_beside_peft(setup, base: str | Path) -> tuple[np.ndarray, np.ndarray, object]:
    """The loss of each step of a run without dropout: by train_step, and in transformers + peft.

    `setup` is train.set_up's. The third is the config of their model.
    """
    import transformers

    import train
    from data import make_batch, plan_batches

    config = setup.config
    theirs = in_peft(setup.model, base).train()
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim == 2]
    vectors = [p for p in trained if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.01},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    warmup = math.ceil(0.06 * setup.steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, setup.steps)
    setup.model.train()
    ours, expected = [], []
    for epoch in range(config.epochs):
        lengths = setup.train_set.lengths
        for rows in plan_batches(lengths, config.batch_size, config.seed, epoch):
            loss_sum = train.train_step(setup, rows, step=len(ours))
            ours.append(loss_sum.item() / len(rows))
            input_ids, mask, types, labels = make_batch(setup.train_set, rows)
            loss = theirs(input_ids, mask, token_type_ids=types, labels=labels).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            expected.append(loss.item())
    return np.array(ours), np.array(expected), theirs.config


@contextlib.contextmanager
def silence():
    """Fails if the block warns, or transformers, peft or the Hub's client logs a warning.

    Deprecations do not count: they are between peft and transformers.
    """
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("transformers", "peft", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for logger in loggers:
        logger.removeHandler(handler)
    deprecations = (FutureWarning, DeprecationWarning)
    said += [str(w.message) for w in caught if not issubclass(w.category, deprecations)]
    assert not said, said


# Inputs and files.


def inputs(vocab_size: int, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids (B, S) and the attention mask (B, S) of sentences of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    input_ids = torch.randint(1, vocab_size, shape, generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return input_ids * mask, mask


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_table(path: Path, table: dict) -> str:
    """A table in the format that the path's ending says."""
    table = pa.table(table)
    rows = table.to_pylist()
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".tsv":
        lines = [table.column_names, *(row.values() for row in rows)]
        text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# The Hub.


def assert_same_model(some: str | Path, other: str | Path) -> None:
    """Two directories hold the same weights."""
    ours, theirs = (
        BertForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (some, other)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def tokens(folder: str | Path) -> list[int]:
    """What the tokenizer of a directory makes of a sentence."""
    from data import encode, load_tokenizer

    tokenizer = load_tokenizer(folder, 16)
    return encode(tokenizer, [("a gripping, beautifully acted film",)]).input_ids.tolist()


def go(hub, how: str, monkeypatch) -> None:
    """The Hub goes: "refused", "offline" by HF_HUB_OFFLINE, or else it answers with errors."""
    if how == "refused":
        hub.close()
    else:
        hub.faults["*"] = 503
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_cpu():
    """What is compared with transformers and peft to 1e-5 must not depend on the CPU's types."""
    capabilities = torch.cpu.get_capabilities()
    without = {name: has for name, has in capabilities.items() if not name.endswith("_bf16")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: without)
        yield
