"""Texts of many askers, each for an adapter of its own, answered together.

A pass through the base over eight texts takes far less than eight passes over one, so a text waits
a few milliseconds for others. While a pass runs, the next texts gather: the more there is to do,
the fewer passes do it.
"""

import asyncio
from pathlib import Path

import numpy as np
import torch
from prometheus_client import Histogram

from data import Encoded, encode, load_tokenizer, make_batch, plan_batches
from runtime.adapters import text_length
from runtime.bank import AdapterBank
from runtime.texts import checked
from support.errors import InputError

MAX_WAITING = 1024  # texts
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
SIZES = Histogram("bert_lora_batch_texts", "Texts answered together", buckets=BUCKETS)


class Gatherer:
    """Answers up to `most` texts together, by the `adapters` "NAME=DIRECTORY" on one base.

    Nothing is loaded from the Hub. Raises InputError for what is no directory, for a name that is
    given twice, and for an adapter that gives a number instead of classes.
    """

    def __init__(self, base: str, adapters: list[str], most: int = 32):
        folders = {}
        for adapter in adapters:
            name, _, folder = adapter.partition("=")
            folders[name] = folder or name
        for folder in (base, *folders.values()):
            if not Path(folder).is_dir():
                raise InputError(f"{folder}: no such directory")
        if len(folders) < len(adapters):
            raise InputError("two adapters have one name; give each another: NAME=DIRECTORY")
        self.bank = AdapterBank(base)
        self.most = most
        self.labels = {}
        self.tokenizers = {}  # each cuts texts as the training of its adapter did
        for name, folder in folders.items():
            config = self.bank.load(name, folder).config
            if config.num_labels == 1 or config.problem_type == "regression":
                raise InputError(f"{name}: gives a number, and what is served here are classes")
            self.labels[name] = [*config.id2label.values()]
            self.tokenizers[name] = load_tokenizer(base, text_length(config, Path(base)))
        self.queue = asyncio.Queue()  # of (adapter, text, the future of the probabilities)

    async def ask(self, adapter: str, texts: list[str]) -> list[dict[str, float]]:
        """The probability of each class, for each text.

        Raises InputError for a bad question, and QueueFull where too many texts wait already.
        """
        if adapter not in self.labels:
            raise InputError("no such adapter; GET /adapters lists them")
        checked([(text,) for text in texts])
        if self.queue.qsize() + len(texts) > MAX_WAITING:
            raise asyncio.QueueFull("too many texts are waiting; try again in a second")
        futures = [asyncio.get_running_loop().create_future() for _ in texts]
        for text, future in zip(texts, futures, strict=True):
            self.queue.put_nowait((adapter, text, future))
        answers = await asyncio.gather(*futures)
        return [dict(zip(self.labels[adapter], p, strict=True)) for p in answers]

    async def run(self) -> None:
        """Answers until it is cancelled."""
        while True:
            waiting = [await self.queue.get()]
            await asyncio.sleep(0.003 if self.most > 1 else 0)
            while self.queue.qsize() and len(waiting) < self.most:
                waiting.append(self.queue.get_nowait())
            SIZES.observe(len(waiting))
            names, texts, futures = (list(column) for column in zip(*waiting, strict=True))
            error = None
            answers = [None] * len(texts)
            try:  # in a thread, so that requests come in meanwhile
                answers = await asyncio.to_thread(self.answer, names, texts)
            except Exception as raised:  # the askers', not ours: there will be a next time
                error = raised
            for future, answer in zip(futures, answers, strict=True):
                if future.done():  # its asker has gone
                    continue
                if error:
                    future.set_exception(error)
                else:
                    future.set_result(answer)

    def answer(self, names: list[str], texts: list[str]) -> list[list[float]]:
        """The probabilities (C,) of each text; texts of similar length share a pass."""
        pairs = zip(names, texts, strict=True)
        each = [encode(self.tokenizers[name], [(text,)]) for name, text in pairs]
        lengths = np.concatenate([one.lengths for one in each])
        encoded = Encoded(
            input_ids=torch.cat([one.input_ids for one in each]),
            token_type_ids=None,
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            labels=None,
        )
        answers = [[]] * len(texts)
        for rows in plan_batches(encoded.lengths, batch_size=8, seed=0, epoch=0):
            batch = make_batch(encoded, rows)[:3]
            logits = self.bank.forward_rows([names[row] for row in rows], *batch)
            for row, of_row in zip(rows, logits, strict=True):
                answers[row] = of_row.softmax(-1).tolist()
        return answers
