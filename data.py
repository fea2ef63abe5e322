"""Text to batches: read the table, tokenize, group sentences of similar length.

    tokenizer = load_tokenizer("offline/all-MiniLM-L6-v2", max_length=128)
    data = load_data("reviews.csv", tokenizer)  # or a directory of .parquet .csv .tsv .jsonl files
    train_set = encode(tokenizer, data.train.texts, data.train.labels)
    for rows in plan_batches(train_set.lengths, batch_size=32, seed=42, epoch=0):
        input_ids, attention_mask, token_type_ids, labels = make_batch(train_set, rows)

The first two sentences of SST-2, both negative (label 0), on their way:

    texts    hide new secretions from the parental units      contains no wit , only labored gags
    tokens   [CLS] hide new secret ##ions from the parental units [SEP]
             [CLS] contains no wit , only labor ##ed gag ##s [SEP]
    encoded  input_ids 101 5342 2047 3595 8496 2013 1996 18643 3197 102 101 3397 2053 15966 … 102
             starts 0 10    lengths 10 11    labels 0 0
    batch    input_ids 101 5342 2047 3595 8496 2013 1996 18643 3197  102    0
                       101 3397 2053 15966 1010 2069 4450 2098 18201 2015 102
             attention_mask   1 1 1 1 1 1 1 1 1 1 0
                              1 1 1 1 1 1 1 1 1 1 1

The tokens of all N sentences lie in one flat array of T numbers, 4 bytes a token. The sentences of
a batch nearly always have the same length, so that nearly nothing is padded (on a CPU 0.12 % of
the tokens of SST-2, in batches of 32). (The letters of the shapes are explained in bert.py.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from support import dataset
from support.dataset import Data, DataOptions
from support.excerpts import excerpts
from support.wordpiece import load_tokenizer as load_tokenizer  # to be imported from here

# Reading.


def load_data(
    path: str | Path,
    tokenizer: Tokenizer | None = None,
    options: DataOptions | None = None,
    name: str = "",
    **more,
) -> Data:
    """Reads what is trained on and what is validated on.

    `path` is a directory with train and validation files (train.csv, train-00000-of-00001.parquet)
    or one file, which may tell in a column "split" what is what. Without validation rows a
    fraction, `holdout`, of the distinct texts of every class is held out, always the same ones;
    with a `tokenizer` texts of the same tokens count as one. `options` are train.py's, and `more`
    gives some of them by name. GLUE's tasks are known by `name`, or else by that of the path.
    Raises InputError.
    """
    options = replace(options or DataOptions(), **more)
    data = dataset.load(Path(path), options, name)
    if not data.validation.texts:
        texts = data.train.texts
        data.hold_out(row_keys(encode(tokenizer, texts)) if tokenizer else texts, options.holdout)
    elif options.holdout != DataOptions.holdout:
        data.notes.append("--holdout is not used, as there are rows to validate on")
    return data


# Tokens.


@dataclass
class Encoded:
    """Tokenized texts: sentence n is input_ids[starts[n] : starts[n] + lengths[n]]."""

    input_ids: Tensor  # (T,) int32, [CLS] and [SEP] included
    token_type_ids: Tensor | None  # (T,) uint8; None unless the texts are pairs
    starts: np.ndarray  # (N,) int64
    lengths: np.ndarray  # (N,) int64
    labels: Tensor | None  # (N,) int64; float32 of a regression, and (N, C) of several labels
    multiple: int = 1  # S is a multiple of this (8 on CUDA: fewer different S, fewer kernels)
    always_mask: bool = False  # also where nothing is padded

    def to(self, device: str | torch.device, **settings) -> "Encoded":
        """The same with its tensors on `device`.

        Starts and lengths stay in main memory, so that planning a batch never waits for a GPU.
        """
        tensors = {
            name: tensor.to(device)
            for name, tensor in vars(self).items()
            if isinstance(tensor, Tensor)
        }
        return replace(self, **tensors, **settings)


def encode(tokenizer: Tokenizer, texts: list[tuple[str, ...]], labels=None) -> Encoded:
    """Tokenizes N texts or pairs; `labels` (N, …) go along."""
    pairs = len(texts[0]) == 2
    ids = []
    types = []
    for start in range(0, len(texts), 512):  # in pieces: an encoding takes a kilobyte, or far more
        piece = excerpts(tokenizer, texts[start : start + 512])
        encodings = tokenizer.encode_batch_fast(piece if pairs else [text for (text,) in piece])
        for encoding in encodings:
            ids.append(np.array(encoding.ids, dtype=np.int32))
            if pairs:
                types.append(np.array(encoding.type_ids, dtype=np.uint8))
    lengths = np.array([len(row) for row in ids])  # (N,)
    return Encoded(
        input_ids=torch.from_numpy(np.concatenate(ids)),
        token_type_ids=torch.from_numpy(np.concatenate(types)) if pairs else None,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        labels=None if labels is None else torch.from_numpy(labels),
    )


def row_keys(data: Encoded) -> list[bytes]:
    """What a model sees of each text: its tokens."""
    ids = data.input_ids.cpu().numpy()
    return [row.tobytes() for row in np.split(ids, data.starts[1:])]


# Batches.


def plan_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Which rows form which batch in an epoch.

    A function of its arguments alone, so that a run can be resumed anywhere:

    1. shuffle the rows;
    2. sort them by length, stably: rows of equal length stay shuffled;
    3. cut them into batches;
    4. shuffle the batches.

    So a batch is a random draw among sentences of its length, another in each epoch, and lengths
    come in random order. Where labels hardly depend on the length such a batch teaches as much as
    any other: on movie reviews the accuracy was no lower (docs/results.md).
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]


def batches_by_length(lengths: np.ndarray, batch_tokens: int = 1024) -> list[np.ndarray]:
    """For answering: rows of similar length together, the longest first.

    A batch has at most `batch_tokens` tokens, padding included, or is one row.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    while len(order):
        size = max(1, batch_tokens // int(lengths[order[0]]))
        batches.append(order[:size])
        order = order[size:]
    return batches


def make_batch(data: Encoded, rows: np.ndarray) -> tuple:
    """The rows as `(input_ids, attention_mask, token_type_ids, labels)`.

    The shapes are (B, S), (B, S), (B, S) and (B,) or, of several labels, (B, C). S is the longest
    row's length, rounded up to `data.multiple`. The mask is true on tokens and false on padding,
    and None where nothing is padded, unless `data.always_mask`; token_type_ids is None unless the
    texts are pairs.
    """
    device = data.input_ids.device
    lengths = data.lengths[rows]  # (B,)
    S = math.ceil(lengths.max() / data.multiple) * data.multiple
    needs_mask = data.always_mask or lengths.min() < S
    numbers = torch.from_numpy(np.stack([rows, data.starts[rows], lengths]))  # (3, B)
    row, start, length = numbers.to(device, non_blocking=True)  # in one copy; each (B,)
    position = torch.arange(S, device=device)  # (S,)
    mask = position < length[:, None]  # (B, S)
    place = (start[:, None] + position).where(mask, 0)  # (B, S), in the flat array
    input_ids = data.input_ids[place].where(mask, 0)  # (B, S); 0 is [PAD] in BERT's vocabularies
    types = data.token_type_ids
    return (
        input_ids,
        mask if needs_mask else None,
        None if types is None else types[place].long(),
        None if data.labels is None else data.labels[row],
    )


@torch.inference_mode()
def predict(model, data: Encoded, batches: Sequence[np.ndarray], autocast) -> Tensor:
    """The logits (N, C) of the rows in `batches`, in float32 on the CPU; other rows are zeros.

    The one loop that evaluating, answering and labelling share. `autocast` is the context in
    which the model computes (torch.autocast). A GPU is waited for only at the end.
    """
    was_training = model.training
    model.eval()
    logits = torch.zeros(len(data.lengths), model.config.num_labels)  # (N, C)
    computed = []
    for rows in batches:
        input_ids, mask, token_type_ids, _ = make_batch(data, rows)  # (B, S)
        with autocast:
            computed.append(model(input_ids, mask, token_type_ids))  # (B, C)
    if computed:
        logits[np.concatenate(batches)] = torch.cat(computed).float().cpu()
    model.train(was_training)
    return logits
