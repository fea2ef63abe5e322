"""Texts of many askers, each for an adapter of its own, answered together.

A pass through the base over eight texts takes far less than eight passes over one, so a text waits
a few milliseconds for others. While a pass runs, the next texts gather: the more there is to do,
the fewer passes do it.
"""

import asyncio
from pathlib import Path

from prometheus_client import Histogram

from data import encode, load_tokenizer, make_batch, plan_batches
from lora import AdapterBank
from support.files import InputError
from support.texts import checked_texts

MAX_TOKENS, MAX_WAITING = 256, 1024  # of a text; texts in the queue
SIZES = Histogram(
    "bert_lora_batch_texts", "Texts answered together", buckets=(1, 2, 4, 8, 16, 32, 64)
)


class Gatherer:
    """The adapters "name=directory" on the base in the directory `base`, for `most` texts together,
    or for one alone.

    Nothing is loaded from the Hub. Raises InputError for what is no directory, and for a name that
    is given twice.
    """

    def __init__(self, base: str, adapters: list[str], most: int = 32):
        named = {
            name: folder or name
            for name, _, folder in (adapter.partition("=") for adapter in adapters)
        }
        for folder in (base, *named.values()):
            if not Path(folder).is_dir():
                raise InputError(f"{folder}: no such directory")
        if len(named) < len(adapters):
            raise InputError("two adapters have one name; give each another: NAME=DIRECTORY")
        self.bank, self.tokenizer, self.most = AdapterBank(base), load_tokenizer(base), most
        models = {name: self.bank.load(name, folder) for name, folder in named.items()}
        if numbers := [
            name for name, model in models.items() if model.config.problem_type == "regression"
        ]:
            raise InputError(
                f"{', '.join(numbers)}: gives a number, and what is served here are classes"
            )
        self.labels = {name: list(model.config.id2label.values()) for name, model in models.items()}
        self.max_tokens = min(MAX_TOKENS, self.bank.base.config.max_position_embeddings)
        self.queue = asyncio.Queue()  # of (adapter, text, the future of the probabilities)

    async def ask(self, adapter: str, texts: list[str]) -> list[dict[str, float]]:
        """The probability of each class, for each text. Raises InputError for a bad question,
        QueueFull when busy."""
        if adapter not in self.labels:
            raise InputError("no such adapter; GET /adapters lists them")
        lengths = encode(self.tokenizer, [checked_texts(texts)]).lengths
        if lengths.max() > self.max_tokens:
            raise InputError(
                f"text {lengths.argmax() + 1} has {lengths.max()} tokens, more than {self.max_tokens}"
            )
        if self.queue.qsize() + len(texts) > MAX_WAITING:
            raise asyncio.QueueFull("too many texts are waiting; try again in a second")
        futures = [asyncio.get_running_loop().create_future() for _ in texts]
        for text, future in zip(texts, futures, strict=True):
            self.queue.put_nowait((adapter, text, future))
        return [
            dict(zip(self.labels[adapter], p, strict=True)) for p in await asyncio.gather(*futures)
        ]

    async def run(self) -> None:
        """Answers until it is cancelled."""
        while True:
            waiting = [await self.queue.get()]
            await asyncio.sleep(0.003 if self.most > 1 else 0)
            waiting += [
                self.queue.get_nowait() for _ in range(min(self.queue.qsize(), self.most - 1))
            ]
            SIZES.observe(len(waiting))
            names, texts, futures = (list(column) for column in zip(*waiting, strict=True))
            try:
                answers = await asyncio.to_thread(
                    self.answer, names, texts
                )  # in a thread: requests come in meanwhile
            except Exception as error:  # the askers', not ours: there will be a next time
                answers = [error] * len(texts)
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():  # its asker may have gone
                    future.set_exception(answer) if isinstance(
                        answer, Exception
                    ) else future.set_result(answer)

    def answer(self, names: list[str], texts: list[str]) -> list[list[float]]:
        """The probabilities (C,) of each text. Those of one pass are of similar length, whatever
        their adapters."""
        encoded, answers = encode(self.tokenizer, [texts]), [[]] * len(texts)
        for rows in plan_batches(encoded.lengths, 8, seed=0, epoch=0):
            batch = make_batch(encoded, rows, self.bank.base.config.pad_token_id)[:3]
            logits = self.bank.forward_rows([names[row] for row in rows], *batch)
            for row, of_row in zip(rows, logits, strict=True):
                answers[row] = of_row.softmax(-1).tolist()
        return answers
