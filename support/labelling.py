"""A whole table labelled: read, answered and written in pieces, so that memory does not grow with the file.

    OUT.parts/plan.json       what is labelled by what: a run goes on with the pieces of the same plan, and no others
    OUT.parts/000017.arrow    the answers to piece 17, rows 17 · 16384 to 18 · 16384; whole, or not there
    OUT.parts/whole           the input's rows with their answers; once it is whole it becomes OUT

A kill at any moment costs the piece at hand. Which rows are a piece depends on nothing else, and the answers to a piece
on no other piece: so the same bytes come out however often a run was stopped, and in however many processes it ran.
The processes that torchrun starts share the missing pieces; the first one checks the table before, and joins after.
"""

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import csv as arrow_csv
from pyarrow import ipc, parquet
from tokenizers import Tokenizer
from tqdm import tqdm

from support import devices, distributed, faster
from support.files import (
    InputError,
    first_line,
    listing,
    misread,
    read_json,
    temporary_for,
    write_json,
    written_whole,
)
from support.glue import TEXT_COLUMNS
from support.options import listed
from support.tables import SUFFIXES, csv_options, features, refuse_unless_once, too_long
from support.texts import BATCH_TOKENS

PIECE = 16384  # rows: enough for batches of one length, and minutes at most to compute again after a kill
BLOCK = 2**22  # bytes of a .csv that Arrow reads at once: the longest row
PLAN, WHOLE, LOCK = "plan.json", "whole", ".lock"
PLAIN = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
)

# Reading.


class Table:
    """The rows of a file in pieces. Of a text file each line is a row; of .jsonl a row is its line, as it stands."""

    def __init__(self, path: str, text_column: str, pairs: bool | None):
        self.path, self.pairs, self.kind = Path(path), pairs, Path(path).suffix or ".txt"
        if not self.path.is_file():
            here = (
                "no file that can be read twice"
                if path == "-" or self.path.exists()
                else "no such file"
            )
            raise InputError(f"{path}: {here}; --out labels a whole file")
        if self.kind not in (*SUFFIXES, ".txt"):
            kinds = f"{', '.join(SUFFIXES)}, or .txt where each line is a text"
            raise InputError(f"{path}: the name must say what it is, by ending in {kinds}")
        if self.kind == ".txt" and text_column:
            raise InputError(
                f"{path}: --text-column names a column of a {', '.join(SUFFIXES)} file"
            )
        with self.reading():
            self.schema = self.read_schema()
        self.columns = self.choose_columns(listed(text_column))

    @contextlib.contextmanager
    def reading(self):
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeError) as error:
            what = too_long(error, BLOCK) or first_line(error)
            raise misread(
                error, f"{self.path}: cannot be read as {self.kind[1:]} ({what})"
            ) from None

    def read_schema(self) -> pa.Schema:
        if self.kind == ".parquet":
            return parquet.ParquetFile(self.path).schema_arrow
        if self.kind in (".csv", ".tsv"):
            with arrow_csv.open_csv(
                self.path, arrow_csv.ReadOptions(block_size=BLOCK), **csv_options(self.path)
            ) as file:
                return pa.schema([(name, pa.string()) for name in file.schema.names])
        if self.kind == ".txt":
            names = (
                ["text", "text_pair"] if self.pairs else ["text"]
            )  # as Hugging Face's pipelines name them
            return pa.schema([(name, pa.string()) for name in names])
        first = next((batch for batch in self.lines() if batch.num_rows), None)
        if first is None:
            raise InputError(f"{self.path}: holds no rows")
        return pa.schema([(name, pa.string()) for name in self.parsed(first["line"][0].as_py(), 0)])

    def choose_columns(self, given: list[str]) -> list[str]:
        """The column of the texts, or the two of the pairs: those given, or the first of GLUE's that are all there."""
        there, kinds = self.schema.names, {None: (1, 2), True: (2,), False: (1,)}[self.pairs]
        if self.kind == ".txt":
            return there
        usual = (
            columns
            for columns in TEXT_COLUMNS
            if len(columns) in kinds and set(columns) <= set(there)
        )
        columns = given or next(usual, None)
        if not there:
            raise InputError(f"{self.path}: holds no columns")
        if columns is None:
            raise InputError(
                f"{self.path}: of the columns {listing(there)} name the text's with --text-column"
            )
        if len(columns) not in kinds:
            what = {
                None: "one text or a pair: a or a,b",
                True: "pairs of texts: a,b",
                False: "single texts",
            }[self.pairs]
            raise InputError(f"--text-column {','.join(columns)}: the model classifies {what}")
        if len(set(columns)) < len(columns):
            raise InputError(f"--text-column {','.join(columns)}: a pair is of two columns")
        for column in columns:
            refuse_unless_once(self.path, column, there, "--text-column")
            if (type := self.schema.field(column).type) not in (pa.string(), pa.large_string()):
                raise InputError(f"{self.path}: the column {column!r} is {type}, expected text")
        return columns

    def place(self, row: int) -> str:
        return f"{self.path}: {'line' if self.kind == '.txt' else 'row'} {row + 1}"

    def lines(self) -> Iterator[pa.RecordBatch]:
        """The lines of a text file as texts, or as pairs with a tab between; of .jsonl those that are not blank."""
        with open(self.path, "rb") as file:
            for start in range(0, sys.maxsize, 4096):
                if not (lines := list(islice(file, 4096))):
                    return
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf") if start == 0 else lines[0]
                try:
                    lines = [
                        line.removesuffix(b"\n").removesuffix(b"\r").decode() for line in lines
                    ]
                except UnicodeDecodeError:
                    bad = next(
                        n
                        for n, line in enumerate(lines)
                        if line != line.decode(errors="ignore").encode()
                    )
                    where = f"{self.path}: line {start + bad + 1}"
                    raise InputError(f"{where} is not UTF-8; save the file as UTF-8") from None
                if self.kind == ".jsonl":
                    columns, names = [[line for line in lines if line.strip()]], ["line"]
                else:
                    rows, names = (
                        [line.split("\t") if self.pairs else [line] for line in lines],
                        self.schema.names,
                    )
                    odd = next(
                        (number for number, row in enumerate(rows) if len(row) != len(names)), None
                    )
                    if odd is not None:
                        raise InputError(
                            f"{self.place(start + odd)} is no pair: two texts with one tab between them"
                        )
                    columns = zip(*rows, strict=True)
                yield pa.record_batch([pa.array(column, pa.string()) for column in columns], names)

    def batches(self, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        """All rows in order, of all columns or of some."""
        if self.kind == ".parquet":  # with a buffer, as else it reads a whole column of a row group
            yield from parquet.ParquetFile(self.path, buffer_size=2**20).iter_batches(
                4096, columns=columns
            )
        elif self.kind in (".csv", ".tsv"):
            types = {
                "column_types": dict.fromkeys(self.schema.names, pa.string()),
                "include_columns": columns or [],
            }
            how = {"convert_options": arrow_csv.ConvertOptions(**types), **csv_options(self.path)}
            with arrow_csv.open_csv(
                self.path, arrow_csv.ReadOptions(block_size=BLOCK), **how
            ) as file:
                yield from file
        else:
            yield from self.lines()

    def pieces(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, in pieces of PIECE rows."""
        held, rows = [], 0
        with self.reading():
            for batch in self.batches(columns):
                while batch.num_rows:
                    held.append(batch.slice(0, PIECE - rows))
                    batch, rows = batch.slice(PIECE - rows), rows + held[-1].num_rows
                    if rows == PIECE:
                        yield pa.Table.from_batches(held)
                        held, rows = [], 0
        if held:
            yield pa.Table.from_batches(held)

    def parsed(self, line: str, row: int) -> dict:
        """A row of .jsonl."""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise misread(error, f"{self.place(row)} is no JSON ({first_line(error)})") from None
        if not isinstance(value, dict):
            raise InputError(
                f"{self.place(row)} is a JSON {type(value).__name__}, expected an object"
            )
        return value

    def texts(
        self, piece: pa.Table, start: int = 0, taken: list[str] = ()
    ) -> list[pa.ChunkedArray]:
        """A column of texts, or two for pairs, with nothing where there is no text. `start` is the piece's first row.

        Raises InputError for a line of .jsonl that is no JSON, or has a field of the names `taken`.
        """
        if self.kind != ".jsonl":
            return [piece[name] for name in self.columns]
        rows = [self.parsed(line, row) for row, line in enumerate(piece["line"].to_pylist(), start)]
        for number, row in enumerate(rows if taken else (), start):
            refuse_taken(self.place(number), row, taken)
        columns = ([text_in(row.get(name)) for row in rows] for name in self.columns)
        return [pa.chunked_array([pa.array(column, pa.string())]) for column in columns]

    def check(self, taken: list[str]) -> int:
        """Reads everything, and returns the number of rows; so that no hours are lost to a row that has no text."""
        refuse_taken(self.path, self.schema.names, taken)
        rows = 0
        for piece in self.pieces():
            with self.reading():
                piece.validate(full=True)
            for name, column in zip(self.columns, self.texts(piece, rows, taken), strict=True):
                bare = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "")
                if (at := pc.index(bare, True).as_py()) >= 0:
                    where = self.place(rows + at)
                    raise InputError(
                        f"{where} has no text{'' if self.kind == '.txt' else f' in {name!r}'}; remove it"
                    )
            rows += piece.num_rows
        if not rows:
            raise InputError(f"{self.path}: holds no rows")
        return rows


def text_in(value) -> str | None:
    """A JSON value, if it is a text; half a surrogate pair, which JSON can hold, makes it none."""
    return (
        value
        if isinstance(value, str) and (value.isascii() or not re.search("[\ud800-\udfff]", value))
        else None
    )


def refuse_taken(where, names, taken: list[str]) -> None:
    """Raises InputError if a column of the answers is in the input already: it would be lost, or be there twice."""
    if clash := [name for name in taken if name in names]:
        hint = f"--prefix predicted_ makes it predicted_{clash[0]}"
        raise InputError(f"{where} has a column {clash[0]!r}, as the answer would have; {hint}")


# Writing.


def refuse_kind(out: Path, table: Table, words: list[str]) -> None:
    """Raises InputError if a file of the name `out` cannot hold what the table holds, or the `words` of the answers."""
    kinds = {".jsonl": [".jsonl"], ".tsv": list(SUFFIXES)}.get(
        table.kind, [".parquet", ".csv", ".jsonl"]
    )
    if out.suffix not in kinds:
        raise InputError(
            f"--out {out}: of a {table.kind} file the name must end in {', '.join(kinds)}"
        )
    if out.suffix == ".tsv" and (
        odd := next((word for word in words if re.search("[\t\r\n]", word)), None)
    ):
        raise InputError(
            f"--out {out}: {odd!r} has a tab or an end of line in it, which .tsv cannot hold"
        )
    if out.suffix != ".parquet":
        for field in table.schema:
            if not any(is_plain(field.type) for is_plain in PLAIN):
                raise InputError(
                    f"{table.path}: {field.name!r} is {field.type}, which only .parquet holds; see --out"
                )
        if len(set(table.schema.names)) < len(table.schema.names):
            raise InputError(
                f"{table.path}: has two columns of one name, which only .parquet holds; see --out"
            )


END = "\r\n"


def write_rows(
    path: Path, kind: str, table: Table, pieces: Iterator[tuple[pa.Table, pa.Table]]
) -> None:
    """Rows and their answers, piece by piece, as one file of the kind."""
    if kind == ".parquet":
        writer = None
        for piece, answers in pieces:
            for field, column in zip(answers.schema, answers.columns, strict=True):
                piece = piece.append_column(field, column)
            piece = piece.replace_schema_metadata(told(piece.schema, answers.schema))
            writer = writer or parquet.ParquetWriter(path, piece.schema)
            writer.write_table(piece)
        return writer.close()
    with open(path, "w", encoding="utf-8", newline="") as file:
        quoting = (
            {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
            if kind == ".tsv"
            else {}
        )
        ends = SimpleNamespace(write=lambda row: file.write(f"{row.removesuffix(END)}\n"))
        write = csv.writer(
            ends, lineterminator=END, **quoting
        )  # so that it quotes a text with either sign in it
        for number, (piece, answers) in enumerate(pieces):
            columns = [column.to_pylist() for column in (*piece.columns, *answers.columns)]
            names = [*piece.column_names, *answers.column_names]
            if kind != ".jsonl":
                write.writerows([*([names] if number == 0 else []), *zip(*columns, strict=True)])
            elif table.kind != ".jsonl":
                rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:  # the line as it stands, so that no number changes its digits
                for line, answer in zip(columns[0], answers.to_pylist(), strict=True):
                    file.write(
                        f"{line.rstrip()[:-1].rstrip()}, {json.dumps(answer, ensure_ascii=False)[1:]}\n"
                    )


def told(schema: pa.Schema, added: pa.Schema) -> dict:
    """The schema's metadata; where they tell Hugging Face's `datasets` of the columns, then of those added too."""
    if not (known := features(schema)):
        return schema.metadata
    values = {
        field.name: {"dtype": str(field.type).replace("double", "float64"), "_type": "Value"}
        for field in added
    }
    whole = json.loads(schema.metadata[b"huggingface"])
    whole["info"]["features"] = known | values
    return schema.metadata | {b"huggingface": json.dumps(whole)}


# The folder of the parts.


class Parts:
    """OUT.parts: the plan, the answers so far, and the whole."""

    def __init__(self, out: Path):
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self.plan, self.whole = self.folder / PLAN, self.folder / WHOLE

    def part(self, number: int) -> Path:
        return self.folder / f"{number:06}.arrow"

    def is_done(self) -> bool:
        """Whether OUT is there, and is this run's. Raises InputError if it is somebody else's."""
        if not os.path.lexists(self.out):
            return False
        if self.whole.exists() and self.out.samefile(self.whole):  # killed before it had tidied up
            return True
        raise InputError(
            f"{self.out}: is there already, and is not replaced; remove it, or give another --out"
        )

    @contextlib.contextmanager
    def claimed(self):
        """Keeps a second run out of the folder inside the block."""
        strange = (
            set(os.listdir(self.folder)) - {LOCK, temporary_for(self.plan).name}
            if self.folder.exists()
            else ()
        )
        if strange and not self.plan.exists():
            raise InputError(
                f"{self.folder}: holds {listing(sorted(strange))}, which no run left; give another --out"
            )
        self.folder.mkdir(exist_ok=True)
        with os.fdopen(
            os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        ) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.out}: another run is at work on it; wait for it") from None
            try:
                self.is_done()  # by a run that ended in the meantime
                yield
            finally:
                if not self.plan.exists():  # refused before it began
                    self.remove(0)

    def resume(self, plan: dict) -> int:
        """The number of rows that the plan there counts, or 0. Raises InputError if it is another plan."""
        if not self.plan.exists():
            return 0
        then = read_json(self.plan)
        for name, now in plan.items():
            if then.get(name) != now:
                hint = "give that again, give another --out, or remove the directory"
                raise InputError(
                    f"{self.folder}: was begun with another {name.replace('_', ' ')}; {hint}"
                )
        return int(then["rows"])

    def count(self, rows: int) -> tuple[list[int], list[int]]:
        """The numbers of the pieces that are there, and of those that are missing."""
        names, numbers = set(os.listdir(self.folder)), range(-(-rows // PIECE))
        there = [number for number in numbers if self.part(number).name in names]
        return there, sorted(set(numbers) - set(there))

    def write(self, number: int, answers: dict) -> None:
        table = pa.table(answers)
        with written_whole(self.part(number)) as path, ipc.new_file(path, table.schema) as file:
            file.write_table(table)

    def read(self, number: int, rows: int) -> pa.Table:
        try:
            with pa.OSFile(str(self.part(number))) as file:
                table = ipc.open_file(file).read_all()
        except (pa.ArrowException, OSError) as error:
            table = misread(error, "")
        if not isinstance(table, pa.Table) or table.num_rows != rows:
            raise InputError(
                f"{self.part(number)}: is damaged; remove it, and the same command answers it again"
            )
        return table

    def publish(self) -> None:
        """`whole` becomes OUT, unless somebody has put a file there; a second name for it shows that OUT is ours."""
        try:
            os.link(self.whole, self.out)
        except FileExistsError:
            self.is_done()
        except OSError:  # a file system without links
            if not self.is_done():
                os.rename(self.whole, self.out)

    def remove(self, rows: int) -> None:
        """Takes away what runs have left, in an order in which a kill in between leaves a run that is_done."""
        names = [self.part(number) for number in range(-(-rows // PIECE))]
        for path in (*names, self.plan, self.whole, self.folder / LOCK):
            temporary_for(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # with something of somebody else's in it, it stays
            self.folder.rmdir()


# The run.


def identity(model: torch.nn.Module, tokenizer: Tokenizer, device: str, dtype: str) -> dict:
    """All that decides an answer: one hash of weights, classes and tokenizer with its length; where, and in what."""
    device = devices.choose_device(device)
    sha256 = hashlib.sha256(f"{model.config} {tokenizer.to_str()}".encode())
    for name, tensor in model.state_dict().items():
        sha256.update(name.encode())
        sha256.update(tensor.contiguous().numpy())
    return {
        "model": sha256.hexdigest(),
        "device": device,
        "bfloat16": devices.chosen(dtype, device),
    }


def place(model: torch.nn.Module, device: str, dtype: str) -> None:
    """Moves the model to its device, for answers alone."""
    devices.place(model.requires_grad_(False), [], device, dtype, "no")
    if model.classifier.weight.device.type == "cpu":
        faster.pack(model)


def wait() -> None:
    """Until every process has come here."""
    try:
        distributed.largest(0)
    except InputError:
        raise InputError("another process has ended; the same command goes on") from None


@contextlib.contextmanager
def unchanged(table: Table, parts: Parts, plan: dict):
    """Raises InputError, whatever else has been raised inside the block, if the table became another meanwhile."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            stat = os.stat(table.path)
            if plan["input"][1:] == [stat.st_size, stat.st_mtime_ns]:
                table = None
        if table:
            problem = f"{table.path}: was changed while it was labelled; remove {parts.folder}, and begin anew"
            raise InputError(problem) from None


@contextlib.contextmanager
def stoppable(say: Callable, parts: Parts, rows: int):
    """Inside the block SIGINT and SIGTERM end the process, with a line that says how to go on."""

    def stop(number: int, _) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield
    except SystemExit:
        there, missing = parts.count(rows)
        so_far = f"{len(there)} of {len(there) + len(missing)} pieces are in {parts.folder}"
        say(f"stopped: {so_far}; the same command goes on")
        raise


def ahead(items: Iterator) -> Iterator:
    """The items of an iterator, each of them made in a thread while the one before it is at work."""
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(next, items, None)
        while (item := made.result()) is not None:
            made = pool.submit(next, items, None)
            yield item


def answers(config, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """The columns that a row gets for its probabilities (N, C), the class and how probable it is; or for its number."""
    if config.problem_type == "regression":
        return {"score": probabilities[:, 0].astype(float).round(6)}
    names = np.array(list(config.id2label.values()))  # (C,)
    return {
        "label": names[probabilities.argmax(-1)],
        "confidence": probabilities.max(-1).astype(float).round(6),
    }


def run(
    given,
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    merge: Callable,
    encode: Callable,
    classify: Callable,
):
    """Labels the table that the options `given` of sample.py name, in as many processes as there are.

    merge(model) folds an adapter in, encode(tokenizer, columns) makes tokens of texts, and classify(model, tokens,
    batch_tokens) makes probabilities (N, C) of them.
    """
    config = model.config
    table = Table(
        given.file, given.text_column, config.text_pairs if config.type_vocab_size > 1 else False
    )
    plan = identity(model, tokenizer, given.device, given.dtype)
    place(merge(model), given.device, given.dtype)
    named = lambda columns: {given.prefix + name: column for name, column in columns.items()}
    taken = list(named(answers(config, np.zeros((1, config.num_labels)))))
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what it has freed
    parts, stat = Parts(Path(given.out)), os.stat(table.path)
    plan |= {
        "input": [table.path.name, stat.st_size, stat.st_mtime_ns],
        "text_column": table.columns,
    }
    plan |= {"prefix": given.prefix, "rows_of_a_piece": PIECE}
    batch_tokens = given.batch_tokens or BATCH_TOKENS * (1 if plan["device"] == "cpu" else 16)
    steps = (model, lambda texts: encode(tokenizer, texts))
    steps += (lambda tokens: named(answers(config, classify(model, tokens, batch_tokens))),)
    rank, size = distributed.RANK, distributed.SIZE
    with contextlib.ExitStack() as claim:
        say = lambda text: print(text, file=sys.stderr) if rank == 0 else None
        if rank == 0:
            refuse_kind(parts.out, table, [*taken, *config.id2label.values()])
            if not parts.is_done():
                claim.enter_context(parts.claimed())
                if not parts.resume(plan):
                    write_json(parts.plan, plan | {"rows": table.check(taken)})
        wait()
        done, rows = parts.is_done(), parts.resume(plan)
        there, missing = ([], []) if done else parts.count(rows)
        wait()  # until everybody has counted the same
        if there:
            say(f"going on: {len(there)} of {len(there) + len(missing)} pieces are there")
        with stoppable(say, parts, rows):
            with contextlib.nullcontext() if done else unchanged(table, parts, plan):
                work(table, parts, missing[rank::size], rows, rank, *steps)
                wait()
                if rank == 0 and not done and not parts.whole.exists():
                    join(table, parts)
            if rank == 0:
                if not done:
                    parts.publish()
                parts.remove(rows)
                say(
                    f"{parts.out}: {rows:,} rows labelled"
                    if rows
                    else f"{parts.out}: a former run finished it"
                )


def work(
    table: Table, parts: Parts, share: list[int], rows: int, rank: int, model, encode, answer
) -> None:
    """Answers the pieces of the numbers `share`; the bar is the first process's own."""

    def encoded() -> Iterator:
        wanted = set(share)
        for number, piece in enumerate(
            table.pieces(None if table.kind == ".jsonl" else table.columns)
        ):
            if number in wanted:
                yield number, encode(table.texts(piece))
            if number == share[-1]:
                return

    total = sum(min(PIECE, rows - number * PIECE) for number in share)
    often = 0.1 if sys.stderr.isatty() else 60  # seconds
    with tqdm(
        total=total, unit=" rows", disable=rank > 0, mininterval=often, dynamic_ncols=True
    ) as bar:

        def advance(
            module, inputs, logits
        ) -> None:  # None, or it would take the place of the logits
            bar.update(len(logits))

        hook = model.register_forward_hook(advance)
        for number, tokens in ahead(encoded()) if share else ():
            parts.write(number, answer(tokens))
        hook.remove()


def join(table: Table, parts: Parts) -> None:
    """Writes `whole` from the input's rows and the parts."""

    def pieces() -> Iterator:
        for number, piece in enumerate(table.pieces()):
            yield piece, parts.read(number, piece.num_rows)

    with written_whole(parts.whole) as path:
        write_rows(path, parts.out.suffix, table, pieces())
