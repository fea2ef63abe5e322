"""Labels a whole table, of any size, in pieces; the same command goes on after a kill.

    OUT.parts/of.json         of which model, options and input; another run is refused
    OUT.parts/000017.arrow    the rows of piece 17 with their answers: whole, or not there
    OUT                       all rows with their answers, once all pieces are there

Which rows are a piece depends on nothing else, and the answers to a piece on no other piece. So
the same bytes come out however often a run was stopped, and in however many processes it ran:
those that torchrun starts share the pieces, and the first one joins them.
"""

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import ipc
from tqdm import tqdm

from data import Encoded, encode
from runtime import fast
from runtime.checkpoint import hash_arrays
from runtime.texts import Text, compute_logits, is_text
from support import errors, files, parallel, pieces
from support.errors import InputError
from support.options import split_list


def label(model, given) -> None:
    """Labels the table `given.file` into the new file `given.out`, by a Model of sample.py.

    `given` has sample.py's options text_column, prefix and batch_tokens too. Raises InputError for
    a table that cannot be read, or cannot stand in such a file with its answers.
    """
    config = model.model.config
    table = pieces.Table(
        path=Path(given.file),
        text_columns=split_list(given.text_column),
        pairs=config.text_pairs if config.type_vocab_size > 1 else False,
        answers=answer_schema(model, given.prefix),
    )
    out = Path(given.out)
    pieces.check_kind(out, table)
    parts = Parts(out, table, identity(model))
    pack(model)
    with contextlib.ExitStack() as claim:

        def begin() -> int:
            claim.enter_context(parts.claimed())
            return 0 if out.exists() else table.count_rows()

        rows = parallel.broadcast(begin)
        try:
            answer_pieces(model, parts, rows, given.batch_tokens)
        except KeyboardInterrupt:
            errors.say("stopped; the same command goes on")
            raise
        parallel.barrier()
        if rows and parallel.is_first():
            parts.join(rows)
    if parallel.is_first():
        parts.tidy_up()
        blank = f", {parts.blank:,} of them without a text" if parts.blank else ""
        said = f"{rows:,} rows labelled{blank}" if rows else "a former run finished it"
        errors.say(f"{out}: {said}")


# Answering.


def answer_columns(model, texts: list[Text], batch_tokens: int | None = None) -> dict[str, list]:
    """The columns that N texts get in a table: label and confidence, or of a regression score.

    `model` is a Model of sample.py. A text with nothing in it, or with what is no string, is none,
    and its answers are None.
    """
    rows, encoded = encode_texts(model, texts)
    answers = answer_encoded(model, encoded, batch_tokens)
    return {name: spread(values, rows, len(texts)) for name, values in answers.items()}


def encode_texts(model, texts: list[Text]) -> tuple[list[int], Encoded | None]:
    """Which of the texts are there, and their tokens."""
    rows = [row for row, text in enumerate(texts) if all(map(is_text, text))]
    existing = [texts[row] for row in rows]
    encoded = encode(model.tokenizer, existing) if existing else None
    return rows, encoded


def answer_encoded(model, encoded: Encoded | None, batch_tokens: int | None) -> dict[str, list]:
    if encoded is None:
        logits = torch.zeros(0, model.model.config.num_labels)  # (0, C)
    else:
        logits = compute_logits(model, encoded, batch_tokens)  # (N, C)
    return model.task.columns(logits)


def spread(values: list, rows: list[int], count: int) -> list:
    """The values at their rows, and None elsewhere."""
    spread = [None] * count
    for row, value in zip(rows, values, strict=True):
        spread[row] = value
    return spread


def answer_schema(model, prefix: str) -> pa.Schema:
    logits = torch.zeros(1, model.model.config.num_labels)  # (1, C)
    table = pa.table(model.task.columns(logits))
    names = [prefix + name for name in table.column_names]
    return table.rename_columns(names).schema


def pack(model) -> None:
    """Makes a Model that open_model has merged faster on a CPU; it cannot be trained any more."""
    names = [name for name, _ in model.model.named_parameters() if ".lora." in name]
    if not names and model.placement.device.type == "cpu":
        fast.pack(model.model)


def identity(model) -> str:
    """A hash of all that decides an answer: weights, classes, tokenizer; where, and in what."""
    placement = model.placement
    told = [model.model.config, model.tokenizer.to_str(), placement.device, placement.dtype]
    weights = hash_arrays(model.model.state_dict())
    return hashlib.sha256(repr([told, weights]).encode()).hexdigest()


# Pieces.


def answer_pieces(model, parts: "Parts", rows: int, batch_tokens: int | None) -> None:
    """Answers this process's pieces, while a thread reads and tokenizes the next one."""
    sizes = pieces.piece_sizes(rows)
    mine = parallel.mine(range(len(sizes)))
    missing = [number for number in mine if not parts.path(number).exists()]
    if missing and parts.count():
        errors.say(f"going on: {parts.count()} of {len(sizes)} pieces are there")

    def tokenized() -> Iterator:
        for number, piece in enumerate(parts.table.pieces()):
            if number in missing:
                texts = parts.table.texts(piece, first_row=number * pieces.PIECE)
                yield number, piece, *encode_texts(model, texts)
            if number == missing[-1]:
                return

    def advance(module, inputs, logits) -> None:  # what a hook returns would replace the logits
        bar.update(len(logits))

    total = sum(sizes[number] for number in missing)
    has_terminal = sys.stderr is not None and sys.stderr.isatty()
    hidden = not (missing and has_terminal and parallel.is_first())
    bar = tqdm(total=total, unit=" rows", disable=hidden, dynamic_ncols=True)
    hook = model.model.register_forward_hook(advance)
    for number, piece, with_text, encoded in ahead(tokenized()) if missing else ():
        answers = answer_encoded(model, encoded, batch_tokens)
        parts.write(number, piece, with_text, answers)
        bar.update(piece.num_rows - len(with_text))
        if not has_terminal:
            errors.say(f"{parts.count()} of {len(sizes)} pieces are there")
    hook.remove()
    bar.close()


def ahead(items: Iterator) -> Iterator:
    """The items, each of them made in a thread while the one before it is at work."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(next, items, None)
        while (item := made.result()) is not None:
            made = pool.submit(next, items, None)
            yield item


class Parts:
    """The folder OUT.parts, and how it becomes OUT."""

    def __init__(self, out: Path, table: pieces.Table, model: str):
        self.out = out
        self.table = table
        self.folder = out.with_name(f"{out.name}.parts")
        self.note = self.folder / "of.json"
        self.of = {
            "model": model,
            "input": [table.path.name, *table.stamp],
            "text column": table.columns,
            "prefix": table.answers.names,
            "size of a piece": pieces.PIECE,
        }
        self.blank = 0  # rows without a text

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06}.arrow"

    def count(self) -> int:
        return len([*self.folder.glob("[0-9]*.arrow")])

    @contextlib.contextmanager
    def claimed(self):
        """Keeps other runs out of the folder; what stands at OUT inside is this run's own.

        Raises InputError for a folder of another run, and for a file at OUT.
        """
        if not self.folder.is_dir():
            files.refuse_existing(self.out)
            self.folder.mkdir()
        with files.locked(self.folder):
            former = files.read_json(self.note) if self.note.exists() else {}
            if not former and any(self.folder.glob("[!.]*")):
                files.refuse_existing(self.folder)
            for name, value in self.of.items():
                if former and former.get(name) != value:
                    hint = "give that again, give another --out, or remove the folder"
                    raise InputError(f"{self.folder}: was begun with another {name}; {hint}")
            if not self.out.exists() or former.get("joined") != pieces.stamp(self.out):
                files.refuse_existing(self.out)
            files.write_json(self.note, former or self.of)
            try:
                yield
            finally:
                if not self.count():
                    self.tidy_up()

    def write(self, number: int, piece: pa.Table, rows: list[int], answers: dict) -> None:
        """Adds the answers to some of a piece's rows, and keeps it."""
        for field, values in zip(self.table.answers, answers.values(), strict=True):
            values = spread(values, rows, piece.num_rows)
            piece = piece.append_column(field, pa.array(values, field.type))
        self.table.refuse_changed()
        options = ipc.IpcWriteOptions(compression="lz4")
        with (
            files.written_whole(self.path(number)) as path,
            ipc.new_stream(str(path), piece.schema, options=options) as stream,
        ):
            stream.write_table(piece)

    def read(self, rows: int) -> Iterator[pa.Table]:
        for number, size in enumerate(pieces.piece_sizes(rows)):
            path = self.path(number)
            with errors.reading(path), open(path, "rb") as file:
                piece = ipc.open_stream(file).read_all()
            if piece.num_rows != size:
                raise InputError(f"{path}: is damaged; remove it, and give the same command again")
            self.blank += piece[-1].null_count
            yield piece

    def join(self, rows: int) -> None:
        """Makes OUT of the parts."""
        with files.written_whole(self.out, new=True) as path:
            pieces.write(self.read(rows), self.table, path, self.out.suffix)
            # A run that is killed after this finds at OUT what it knows for its own.
            files.write_json(self.note, self.of | {"joined": pieces.stamp(path)})

    def tidy_up(self) -> None:
        """Removes what runs have left: the note last, so that the same command can end a kill."""
        for pattern in ("*.arrow*", ".lock", "*of.json*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody else's file in it
            self.folder.rmdir()
