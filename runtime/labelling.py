"""Labels a whole table, of any size, in pieces; the same command goes on after a kill.

    OUT.parts/000017-5e0d….part   the logits of piece 17, with a checksum: whole, or not there
    OUT                           all rows with their answers, once all pieces are there

A part is named after what it answers: the number of the piece, and a hash of the model and of its
texts. What does not fit, being damaged or of another model or table, is not taken, and its piece
is answered again. The answers to a piece depend on no other piece. So the same bytes come out
however often a run was stopped, and in however many processes it ran: those that torchrun starts
share the pieces, and the first one reads the table again and joins its rows with their answers.
"""

import contextlib
import hashlib
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from data import Encoded, encode
from runtime import fast
from runtime.checkpoint import hash_arrays, hash_code
from runtime.data_notes import token_notes
from runtime.texts import Text, compute_logits, is_text
from support import errors, files, parallel, pieces
from support.errors import InputError
from support.options import split_list

PARTS = "*-????????????????????????????????.part"  # the names: numbers, and hashes


def label(model, given) -> None:
    """Labels the table `given.file` into the new file `given.out`, by a Model of sample.py.

    `given` has sample.py's options text_column, prefix, scores and batch_tokens too. Raises
    InputError for a table that cannot be read, or cannot stand in such a file with its answers.
    """
    work = Labelling(model, given)
    parallel.same_everywhere(repr([work.identity.digest(), work.table.path.stat().st_size]))
    pack(model)
    with contextlib.ExitStack() as at_end:
        missing = parallel.broadcast(lambda: work.begin(at_end))
        work.answer(dict(parallel.own_part(missing)))
        parallel.barrier()
        if parallel.is_first():
            work.join()


# Answering.


def pack(model) -> None:
    """Makes a Model that open_model has merged faster on a CPU; it cannot be trained any more."""
    names = [name for name, _ in model.network.named_parameters() if ".lora." in name]
    if not names and model.placement.device.type == "cpu":
        for note in fast.pack(model.network):
            errors.say(f"note: {note}")


def answer_columns(model, texts: list[Text]) -> dict[str, list]:
    """The columns that N texts get in a table: label and confidence, or of a regression score.

    `model` is a Model of sample.py. A text in which nothing can be seen, or that is no string,
    gets None.
    """
    rows, encoded = encode_texts(model, texts)
    logits = logits_of(model, len(texts), rows, encoded)  # (N, C)
    columns = model.task.columns(logits)
    return {name: masked(values, logits).to_pylist() for name, values in columns.items()}


def encode_texts(model, texts: list[Text]) -> tuple[list[int], Encoded | None]:
    """Which of the texts are there, and their tokens."""
    rows = [row for row, text in enumerate(texts) if all(map(is_text, text))]
    if not rows:
        return rows, None
    return rows, encode(model.tokenizer, [texts[row] for row in rows])


def logits_of(model, count: int, rows: list[int], encoded, batch_tokens=None) -> Tensor:
    """Logits (N, C) of so many texts: NaN, except in the `rows` that are encoded."""
    logits = torch.full((count, model.network.config.num_labels), math.nan)
    if rows:
        logits[rows] = compute_logits(model, encoded, batch_tokens)
    return logits


def masked(values: list, logits: Tensor, kind: pa.DataType | None = None) -> pa.Array:
    """A column of answers, null where the logits are NaN."""
    return pa.array(values, kind, mask=logits[:, 0].isnan().numpy())


# Pieces.


class Labelling:
    """A model, a table, and between them the folder OUT.parts."""

    def __init__(self, model, given):
        config = model.network.config
        self.model = model
        self.given = given
        likely = torch.full((1, config.num_labels), 100.0)  # (1, C): of several labels all
        columns = model.task.columns(likely, given.scores)
        self.table = pieces.Table(
            path=Path(given.file),
            text_columns=split_list(given.text_column),
            pairs=config.text_pairs if config.type_vocab_size > 1 else False,
            answers=pa.table({given.prefix + name: columns[name] for name in columns}).schema,
        )
        self.out = Path(given.out)
        self.folder = self.out.with_name(f"{self.out.name}.parts")
        self.done = self.folder / ".done"
        pieces.check_out(self.out, self.table, model.task.names)
        # All that decides an answer: weights, tokenizer, code; where, and in what.
        decides = [config, model.tokenizer.to_str(), hash_arrays(model.network.state_dict())]
        decides += map(hash_code, ("bert.py", "lora.py", "data.py"))
        decides += [model.placement.device, model.placement.dtype]
        self.identity = hashlib.sha256(repr(decides).encode())

    def pieces(self, some=None, columns=None) -> Iterator[tuple[Path, pa.Table, list[Text]]]:
        """The path of each piece's part, its rows and their texts; perhaps of some pieces alone."""
        for number, piece in enumerate(self.table.pieces(columns)):
            if some is None or number in some:
                texts = self.table.texts(piece, first=number * pieces.PIECE)
                key = self.identity.copy()
                for text in texts:
                    key.update(repr(text).encode())
                yield self.folder / f"{number:06}-{key.hexdigest()[:32]}.part", piece, texts

    def begin(self, at_end: contextlib.ExitStack) -> list[tuple[int, int]]:
        """Claims the folder; the numbers of the pieces to answer, each with its number of rows.

        Reads everything: what cannot be read must not end a run after hours.
        """
        self.folder.mkdir(exist_ok=True)
        at_end.enter_context(files.locked(self.folder))
        at_end.callback(lambda: any(self.folder.glob(PARTS)) or self.tidy_up())
        if self.done.exists() and self.out.exists():  # a run was killed while it tidied up
            self.tidy_up()
        files.refuse_existing(self.out)
        count = 0
        missing = []
        for number, (path, _, texts) in enumerate(self.pieces()):
            count += 1
            if read_part(path) is None:
                missing.append((number, len(texts)))
        if not count:
            raise InputError(f"{self.table.path}: holds no rows")
        found = count - len(missing)
        errors.say(f"{found} of {count} pieces are there; after a stop the same command goes on")
        return missing

    def answer(self, sizes: dict[int, int]) -> None:
        """Answers the pieces of these numbers, while a thread reads and tokenizes the next one.

        `sizes` has the number of rows of each, for the bar.
        """

        def encoded() -> Iterator[tuple]:
            for path, _, texts in self.pieces(sizes, self.table.columns):
                yield path, texts, *encode_texts(self.model, texts)

        def advance(module, inputs, logits) -> None:  # what a hook returns would replace the logits
            bar.update(len(logits))

        total = sum(sizes.values())
        is_shown = parallel.is_first() and sys.stderr and sys.stderr.isatty()
        bar = tqdm(total=total, unit=" rows", dynamic_ncols=True, disable=not is_shown)
        with bar, self.model.network.register_forward_hook(advance):
            for done, (path, texts, rows, tokens) in enumerate(ahead(encoded()), 1):
                if done == 1 and tokens and parallel.is_first():
                    first = [texts[row] for row in rows]
                    for note in token_notes(self.model.tokenizer, first, tokens):
                        errors.say(f"note on the first {len(first):,} texts: {note}")
                logits = logits_of(self.model, len(texts), rows, tokens, self.given.batch_tokens)
                write_part(path, logits)
                if not is_shown:
                    errors.say(f"{done} of {len(sizes)} pieces answered")

    def join(self) -> None:
        """Makes OUT of the table and the parts."""
        rows = blank = 0

        def labelled() -> Iterator[pa.Table]:
            nonlocal rows, blank
            for path, piece, texts in self.pieces():
                logits = read_part(path)  # (N, C)
                if logits is None:
                    reason = f"missing, or damaged; or {self.table.path} was changed meanwhile"
                    raise InputError(f"{path}: {reason}; the same command goes on")
                columns = self.model.task.columns(logits, self.given.scores)
                for field, values in zip(self.table.answers, columns.values(), strict=True):
                    piece = piece.append_column(field, masked(values, logits, field.type))
                rows += len(texts)
                blank += int(logits[:, 0].isnan().sum())
                yield piece

        with files.written_whole(self.out, new=True) as path:
            pieces.write(labelled(), self.table, path, self.out.suffix)
            self.done.touch()  # so that a run which is killed from here on leaves nothing of worth
        self.tidy_up()
        empty = f", {blank:,} of them without a text and left empty" if blank else ""
        errors.say(f"{self.out}: {rows:,} rows labelled{empty}")

    def tidy_up(self) -> None:
        """Removes what runs have left in the folder, and it, unless it holds other files too."""
        with contextlib.suppress(OSError):
            for path in [*self.folder.glob(f"{PARTS}*"), self.folder / ".lock", self.done]:
                path.unlink(missing_ok=True)
            self.folder.rmdir()


def ahead(items: Iterator) -> Iterator:
    """The items, each of them made in a thread while the one before it is at work."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(next, items, None)
        while (item := made.result()) is not None:
            made = pool.submit(next, items, None)
            yield item


def write_part(path: Path, logits: Tensor) -> None:
    """Writes logits (N, C) as NumPy's .npz, a zip file, which has a checksum.

    What is in it is called as the part is, so that one under another's name is not taken.
    """
    with files.written_whole(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{path.name: logits.numpy()})


def read_part(path: Path) -> Tensor | None:
    """The logits (N, C) of a part, or None if it is missing or damaged."""
    try:
        return torch.from_numpy(np.load(path)[path.name])
    except Exception:  # whatever a damaged zip file leads to
        return None
