"""Texts of many askers, each for an adapter of its own, answered by one pass through the base.

A pass over sixteen texts takes far less than sixteen passes over one, so a text waits a few milliseconds for others.
And while a pass runs, the next texts gather: the more there is to do, the larger the batches.
"""

import asyncio
from pathlib import Path

import numpy as np
import torch
from prometheus_client import Histogram
from tokenizers import Tokenizer

from data import Encoded, encode, load_tokenizer, make_batch
from lora import AdapterBank
from support.files import InputError
from support.texts import checked_texts

MAX_TOKENS, MAX_WAITING = 256, 1024  # of a text, as a longer one keeps its whole batch waiting; texts in the queue
SIZES = Histogram("bert_lora_batch_texts", "Texts in a pass through the base", buckets=(1, 2, 4, 8, 16, 32, 64))


def open_bank(base: str, adapters: list[str]) -> tuple[AdapterBank, Tokenizer]:
    """The adapters "name=directory" on the base in the directory `base`; nothing is loaded from the Hub."""
    named = {name or folder: folder for name, _, folder in (adapter.rpartition("=") for adapter in adapters)}
    for folder in (base, *named.values()):
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such directory")
    bank = AdapterBank(base)
    for name, folder in named.items():
        bank.load(name, folder)
    return bank, load_tokenizer(base)


class Gatherer:
    """At most `most` texts make a batch, after `seconds` of waiting for them; with most=1 none waits for another."""

    def __init__(self, bank: AdapterBank, tokenizer: Tokenizer, most: int = 32, seconds: float = 0.003):
        self.bank, self.tokenizer, self.most, self.seconds = bank, tokenizer, most, seconds if most > 1 else 0.0
        self.labels = {name: list(model.config.id2label.values()) for name, model in bank.models.items()}
        self.max_tokens = min(MAX_TOKENS, bank.base.config.max_position_embeddings)
        self.queue = asyncio.Queue()  # of (adapter, token ids, the future of the probabilities)

    async def ask(self, adapter: str, texts: list[str]) -> list[dict[str, float]]:
        """The probability of each class, for each text. Raises InputError for a bad question, QueueFull when busy."""
        if adapter not in self.labels:
            raise InputError("no such adapter; GET /adapters lists them")
        encoded = encode(self.tokenizer, [checked_texts(texts)])
        if (longest := encoded.lengths.max()) > self.max_tokens:
            raise InputError(f"text {encoded.lengths.argmax() + 1} has {longest} tokens, more than {self.max_tokens}")
        if self.queue.qsize() + len(texts) > MAX_WAITING:
            raise asyncio.QueueFull("too many texts are waiting; try again in a second")
        futures = [asyncio.get_running_loop().create_future() for _ in texts]
        for ids, future in zip(encoded.input_ids.split(encoded.lengths.tolist()), futures, strict=True):
            self.queue.put_nowait((adapter, ids, future))
        return [dict(zip(self.labels[adapter], p, strict=True)) for p in await asyncio.gather(*futures)]

    async def run(self) -> None:
        """Answers until it is cancelled."""
        while True:
            rows = [await self.queue.get()]
            await asyncio.sleep(self.seconds)
            rows += [self.queue.get_nowait() for _ in range(min(self.queue.qsize(), self.most - 1))]
            SIZES.observe(len(rows))
            names, ids, futures = (list(column) for column in zip(*rows, strict=True))
            try:
                answers = await asyncio.to_thread(self.answer, names, ids)  # in a thread: meanwhile requests are read
            except Exception as error:  # the askers', not ours: there will be a next batch
                answers = [error] * len(rows)
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():  # its asker may have gone
                    future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

    def answer(self, names: list[str], ids: list[torch.Tensor]) -> list[list[float]]:
        """The probabilities (C,) of each row, in one pass."""
        lengths = np.array([len(row) for row in ids])
        encoded = Encoded(torch.cat(ids), None, np.cumsum(lengths) - lengths, lengths, None)
        batch = make_batch(encoded, np.arange(len(ids)), self.bank.base.config.pad_token_id)
        return [logits.softmax(-1).tolist() for logits in self.bank.forward_rows(names, *batch[:3])]
