"""Text to batches: read the table, tokenize once, group sentences of similar length.

    tokenizer = load_tokenizer("google-bert/bert-base-uncased", max_length=128)
    task = load_task("nyu-mll/glue/sst2", tokenizer)    # or a directory, or one .parquet .csv .tsv .jsonl file
    train = encode(tokenizer, task.train.texts, task.train.labels)
    for rows in plan_batches(train.lengths, batch_size=32, seed=42, epoch=0):
        input_ids, attention_mask, token_type_ids, labels = make_batch(train, rows, pad_id=0)

The first two sentences of SST-2, both negative (label 0), on their way:

    texts    hide new secretions from the parental units      contains no wit , only labored gags
    tokens   [CLS] hide new secret ##ions from the parental units [SEP]
             [CLS] contains no wit , only labor ##ed gag ##s [SEP]
    encoded  input_ids 101 5342 2047 3595 8496 2013 1996 18643 3197 102 101 3397 2053 15966 1010 … 102
             starts 0 10    lengths 10 11    labels 0 0
    batch    input_ids 101 5342 2047 3595 8496 2013 1996 18643 3197  102    0    attention_mask 1 1 1 1 1 1 1 1 1 1 0
                       101 3397 2053 15966 1010 2069 4450 2098 18201 2015 102                   1 1 1 1 1 1 1 1 1 1 1

The tokens of all N sentences lie in one flat array of T numbers, 4 bytes a token. The sentences of a batch nearly
always have the same length, so that nearly nothing is padded (on a CPU 0.12 % of the tokens of SST-2, in batches of
32), and a batch without padding has no mask. (The letters of the shapes are explained in bert.py.)
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bert import BertConfig
from support import base_files, glue, hub, tables
from support.tables import Split


@dataclass
class Task:
    train: Split
    validation: Split
    label_names: list[str]
    metric: str
    mismatched: Split | None = (
        None  # MNLI's second validation split, of other sources than its training data
    )


def load_task(
    data: str,
    tokenizer: Tokenizer | None = None,
    text_columns=(),
    label_column="label",
    label_names=(),
    metric="",
) -> Task:
    """Reads a task: classification, or with a `metric` of numbers, as STS-B's pearson, regression.

    `data` is a directory that holds train and validation files, as `train-00000-of-00001.parquet` or `train.csv`;
    or the Hub's `owner/name[/folder][@revision]` in that layout; or one file, of which a tenth of the distinct texts,
    always the same ones, is held out for validation; with a `tokenizer` texts of the same tokens count as one.
    Two `text_columns` are a pair. `label_names` and `metric` win over what a file or the name of a GLUE task tells.
    Raises InputError for whatever is missing, empty, of another type or out of range.
    """
    usual_metric, usual_names, columns = glue.task_of(data, text_columns)
    how = (columns, label_column, label_names, usual_names, glue.bounds(metric, usual_metric))
    metric, mismatched = metric or usual_metric, None
    if Path(data).is_file():
        train, validation = tables.hold_out(tables.read_split([Path(data)], *how), tokenizer, data)
    else:
        train = tables.read_split(tables.find_split(data, "train"), *how)
        validation = tables.read_split(files := tables.find_split(data, "validation"), *how, train)
        if Path(data).is_dir() or "_matched" in files[0].name:
            files = tables.find_split(data, "validation_mismatched", required=False)
            mismatched = tables.read_split(files, *how, train) if files else None
    names = train.classes.names
    return Task(train, validation, names, glue.checked_metric(metric, names), mismatched)


@dataclass
class Encoded:
    """A tokenized split: sentence n is input_ids[starts[n] : starts[n] + lengths[n]], [CLS] and [SEP] included."""

    input_ids: Tensor  # (T,) int32
    token_type_ids: Tensor | None  # (T,) uint8; None unless the texts are pairs
    starts: np.ndarray  # (N,) int64
    lengths: np.ndarray  # (N,) int64
    labels: Tensor | None  # (N,) int64, or float32 numbers of a regression

    def to(self, device: str | torch.device) -> "Encoded":
        """The same with its tensors on `device`; starts and lengths stay, so that no batch waits for the device."""
        move = lambda tensor: None if tensor is None else tensor.to(device)
        moved = (move(self.input_ids), move(self.token_type_ids))
        return Encoded(*moved, self.starts, self.lengths, move(self.labels))


def load_tokenizer(name: str, max_length: int | None = None) -> Tokenizer:
    """The tokenizer of a directory or Hub repository: tokenizer.json, or else vocab.txt with BERT's own rules.

    Texts are cut to `max_length` tokens, [CLS] and [SEP] included; nothing is padded.
    """
    config = hub.find_file(name, "config.json", required=False)
    tokenizer = base_files.open_tokenizer(
        name, BertConfig.from_json(config).vocab_size if config else 2**31
    )
    if max_length:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list, labels: np.ndarray | None = None) -> Encoded:
    """Tokenizes a Split's texts: one sequence of N strings, or two for pairs."""
    N = len(texts[0])
    ids, types, lengths = [], [], np.empty(N, dtype=np.int64)
    most = (
        1000 * tokenizer.truncation["max_length"] if tokenizer.truncation else None
    )  # in characters, never too few
    for start in range(
        0, N, 512
    ):  # in pieces, as the tokenizer's own objects take a kilobyte a sentence, or far more
        columns = [column[start : start + 512] for column in texts]
        columns = [
            [text[:most] for text in (c if isinstance(c, list) else c.to_pylist())] for c in columns
        ]
        encodings = tokenizer.encode_batch_fast(
            columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        )
        lengths[start : start + 512] = [len(encoding) for encoding in encodings]
        ids.append(
            np.concatenate([np.array(encoding.ids, dtype=np.int32) for encoding in encodings])
        )
        if len(columns) == 2:
            types.append(
                np.concatenate(
                    [np.array(encoding.type_ids, dtype=np.uint8) for encoding in encodings]
                )
            )
    return Encoded(
        torch.from_numpy(np.concatenate(ids)),
        torch.from_numpy(np.concatenate(types)) if types else None,
        np.cumsum(lengths) - lengths,
        lengths,
        None if labels is None else torch.from_numpy(labels),
    )


def plan_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Which rows form which batch in an epoch: a function of its arguments alone, so a run can be resumed anywhere.

    The rows are shuffled, then sorted by length, stably, so that equals stay shuffled; then cut into batches; then the
    batches are shuffled. So a batch is a random draw among sentences of its length, another in each epoch, and lengths
    come in random order. Where labels hardly depend on the length such a batch tells as much as any: on movie reviews
    the accuracy was no lower (docs/results.md).
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]


def padding_fraction(lengths: np.ndarray, batches: list[np.ndarray], multiple: int = 1) -> float:
    """The fraction of the tokens computed that are padding."""
    computed = sum(
        len(rows) * math.ceil(lengths[rows].max() / multiple) * multiple for rows in batches
    )
    return 1 - int(lengths.sum()) / computed


def make_batch(
    data: Encoded, rows: np.ndarray, pad_id: int, multiple: int = 1
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """`(input_ids, attention_mask, token_type_ids, labels)` of the rows, shapes (B, S), (B, S), (B, S), (B,).

    S is the longest row's length, rounded up to a `multiple`. The mask, true on tokens and false on padding, is None
    where nothing is padded; token_type_ids is None unless the texts are pairs.
    """
    device, lengths = data.input_ids.device, data.lengths[rows]  # lengths (B,)
    move = lambda array: torch.from_numpy(array).to(device, non_blocking=True)
    S = math.ceil(lengths.max() / multiple) * multiple
    position = torch.arange(S, device=device)  # (S,)
    at = move(data.starts[rows])[:, None] + position  # (B, S), places in the flat array
    labels = None if data.labels is None else data.labels[move(rows)]  # (B,)
    types = data.token_type_ids
    if lengths.min() == S:
        return (
            data.input_ids[at],
            None,
            None if types is None else types[at].long(),
            labels,
        )  # (B, S)
    mask = position < move(lengths)[:, None]  # (B, S)
    at = at.where(mask, 0)  # padding reads no place beyond the array
    input_ids = data.input_ids[at].where(mask, pad_id)  # (B, S)
    return input_ids, mask, None if types is None else types[at].long(), labels
