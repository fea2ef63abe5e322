"""The models, inputs, tables and measures that several test files share."""

import contextlib
import json
import logging
import math
import re
import warnings
from pathlib import Path

import numpy as np
import peft
import pyarrow as pa
import torch
import transformers
from huggingface_hub import constants
from pyarrow import csv, parquet
from safetensors.torch import save_file
from torch import Tensor, nn

import train
from bert import BertConfig, BertForSequenceClassification, BertModel
from data import encode, load_tokenizer, make_batch, plan_batches
from lora import LoRALayer, apply_lora_to_model, get_lora_state_dict, mark_only_lora_as_trainable

ROOT = Path(__file__).resolve().parent.parent
TINY = {  # a BERT that takes milliseconds
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape; NaN where either holds NaN."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@torch.no_grad()
def draw(module: nn.Module, seed: int = 0, std: float = 0.1) -> None:
    """Draws every parameter anew, so that none, not even a bias, is 0 or 1 and drops out of a
    comparison."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        parameter.normal_(center, std, generator=generator)


def saved_base(folder: Path, seed: int = 0, **settings) -> Path:
    """A random BertForSequenceClassification of the shapes TINY | settings, written by
    transformers."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TINY | settings))
    draw(model, seed)
    model.save_pretrained(folder)
    return folder


def official_names(state: dict) -> dict:
    """The tensors of a BertModel under the names of bert-base-uncased's own file, with the heads of
    pre-training."""
    state = {
        re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name): tensor
        for name, tensor in state.items()
    }
    state = {
        re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name): tensor
        for name, tensor in state.items()
    }
    D, vocab_size = len(state["pooler.dense.bias"]), len(state["embeddings.word_embeddings.weight"])
    heads = {
        "cls.predictions.bias": torch.randn(vocab_size),
        "cls.predictions.transform.dense.weight": torch.randn(D, D),
        "cls.predictions.transform.dense.bias": torch.randn(D),
        "cls.predictions.transform.LayerNorm.gamma": torch.randn(D),
        "cls.predictions.transform.LayerNorm.beta": torch.randn(D),
        "cls.seq_relationship.weight": torch.randn(2, D),
        "cls.seq_relationship.bias": torch.randn(2),
    }
    return {f"bert.{name}": tensor for name, tensor in state.items()} | heads


def official_base(folder: Path) -> Path:
    """A random bert-base, written as the official one is."""
    folder.mkdir()
    config = BertConfig()
    with torch.device("meta"):
        model = BertModel(config)
    model.to_empty(device="cpu")
    draw(model, std=0.03)
    config.to_json(
        folder / "config.json",
        architectures=["BertForMaskedLM"],
        position_embedding_type="absolute",
    )
    save_file(official_names(model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    return folder


def open_theirs(base: str | Path, **settings) -> transformers.PreTrainedModel:
    return transformers.AutoModelForSequenceClassification.from_pretrained(base, **settings).eval()


def adapted(
    base: str | Path, targets: list[str] | str, **settings
) -> BertForSequenceClassification:
    """A base with random A and B, in eval mode."""
    model = BertForSequenceClassification.from_pretrained(base)
    apply_lora_to_model(model, targets, **{"dropout": 0.0} | settings)
    mark_only_lora_as_trainable(model)
    for seed, layer in enumerate(
        module for module in model.modules() if isinstance(module, LoRALayer)
    ):
        draw(layer, seed, std=0.05)
    return model.eval()


def in_peft(model: BertForSequenceClassification, base: str | Path) -> peft.PeftModel:
    """The same in peft: on the same base, with A, B and the classifier copied over."""
    settings = peft.LoraConfig(task_type="SEQ_CLS", **model.lora_config)
    theirs = peft.get_peft_model(open_theirs(base, num_labels=model.config.num_labels), settings)
    report = peft.set_peft_model_state_dict(theirs, get_lora_state_dict(model))
    assert not report.unexpected_keys
    assert not [name for name in report.missing_keys if "lora" in name or "modules_to_save" in name]
    return theirs.eval()


def losses_beside_peft(run: train.Run, base: str | Path) -> tuple:
    """The loss of each step of a run without dropout, by train_step and in transformers + peft; and
    their config."""
    theirs, config = in_peft(run.model, base).train(), run.config
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim == 2], [p for p in trained if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, math.ceil(0.06 * run.steps), run.steps
    )
    run.model.train()
    losses = []
    for epoch in range(config.epochs):
        for batch in plan_batches(run.train.lengths, config.batch_size, config.seed, epoch):
            loss_sum, _, count = train.train_step(run, batch)
            run.progress.step += 1
            input_ids, mask, types, labels = make_batch(run.train, batch, pad_id=0)
            loss = theirs(input_ids, mask, token_type_ids=types, labels=labels).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append((loss_sum.item() / count, loss.item()))
    return *np.array(losses).T, theirs.config


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every trained parameter, under the name that PEFT saves it by."""
    named = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return {
        re.sub(r"base_model\.model\.|\.modules_to_save|\.default|\.lora(?=\.)", "", n): g
        for n, g in named.items()
    }


def inputs(vocab_size: int, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids (B, S) and the attention mask (B, S) of sentences of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return input_ids * mask, mask


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@contextlib.contextmanager
def silence():
    """Fails if the block warns, through `warnings` or in the log of transformers, peft or the Hub's
    client.

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
    said += [
        str(w.message)
        for w in caught
        if not issubclass(w.category, (FutureWarning, DeprecationWarning))
    ]
    assert not said, said


def texts_of(split):
    return list(zip(*(column.to_pylist() for column in split.texts), strict=True))


def write_table(path, table):
    table = pa.table(table)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".tsv":
        rows = [table.column_names, *(row.values() for row in table.to_pylist())]
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8"
        )
    return str(path)


def assert_same_model(name, folder):
    ours, local = (
        BertForSequenceClassification.from_pretrained(str(n)).state_dict() for n in (name, folder)
    )
    assert ours.keys() == local.keys() and all(torch.equal(ours[key], local[key]) for key in local)


def tokens(name) -> list[int]:
    return encode(
        load_tokenizer(str(name), 16), [["a gripping, beautifully acted film"]]
    ).input_ids.tolist()


def go(hub, how, monkeypatch):
    hub.close() if how == "refused" else hub.faults.update({"*": 503})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
