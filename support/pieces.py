"""A table of any size in pieces: its rows, the texts in them, and a file of rows with answers."""

import csv
import json
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TextIO

import pyarrow as pa
from pyarrow import parquet

from support import glue, tables
from support.dialects import find_dialect
from support.errors import InputError

STRINGS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
PIECE = 16384  # rows: enough for batches of one length, and minutes at most to repeat after a kill


class Table:
    """The rows of a file, to which the columns `answers` are to be added.

    A row of a .jsonl or .txt is a line as it stands. `pairs` says whether its texts are pairs, or
    None where either will do. Raises InputError for a file that cannot be labelled.
    """

    def __init__(self, path: Path, text_columns: list[str], pairs: bool | None, answers: pa.Schema):
        if not path.is_file():
            raise InputError(f"{path}: is no file; --out labels a whole one")
        self.path = path
        self.pairs = pairs
        self.answers = answers
        self.schema, batches = tables.stream(path)
        names = self.schema.names
        if path.suffix == ".jsonl":
            first = next((batch["line"][0].as_py() for batch in batches if batch.num_rows), "{}")
            names = [*self.parse(first, row=0)]
        self.refuse_taken(names, path)
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{path}: two columns are called {name!r}; rename one")
        self.columns = names if path.suffix == ".txt" else self.choose_columns(names, text_columns)

    def choose_columns(self, names: list[str], given: list[str]) -> list[str]:
        """The column of the texts, or the two of the pairs."""
        counts = {None: [1, 2], True: [2], False: [1]}[self.pairs]
        usual = [columns for columns in glue.TEXT_COLUMNS if len(columns) in counts]
        columns = tables.choose_columns(self.path, names, [given] if given else usual)
        if len(columns) not in counts or len(set(columns)) < len(columns):
            wanted = {None: "one text or a pair: a,b", True: "pairs: a,b", False: "single texts"}
            flag = f"--text-column {','.join(columns)}"
            raise InputError(f"{flag}: the model classifies {wanted[self.pairs]}")
        for field in self.schema:
            if field.name in columns and not is_string(field.type):
                problem = f"is {field.type}, expected text"
                raise InputError(f"{self.path}: the column {field.name!r} {problem}")
        return columns

    def refuse_taken(self, names, where) -> None:
        for name in self.answers.names:
            if name in names:
                hint = f"as the answer would; --prefix predicted_ makes it predicted_{name}"
                raise InputError(f"{where}: has a column {name!r}, {hint}")

    def pieces(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, PIECE at a time; of all columns, or of some."""
        held = []
        count = 0
        _, batches = tables.stream(self.path, columns)
        for batch in batches:
            held.append(batch)
            count += batch.num_rows
            while count >= PIECE:
                rows = pa.Table.from_batches(held)
                yield rows[:PIECE]
                held = rows[PIECE:].to_batches()
                count -= PIECE
        if count:
            yield pa.Table.from_batches(held)

    def texts(self, piece: pa.Table, first: int) -> list[tuple]:
        """The texts of a piece, tuples of one or two: strings, or whatever else stands there.

        `first` is the number of the piece's first row.
        """
        if self.path.suffix == ".jsonl":
            lines = enumerate(piece["line"].to_pylist(), first)
            rows = [self.parse(line, row) for row, line in lines]
            return [tuple(row.get(name) for name in self.columns) for row in rows]
        if self.path.suffix == ".txt" and self.pairs:
            return [line.partition("\t")[::2] for line in piece["line"].to_pylist()]
        columns = [piece[name].to_pylist() for name in self.columns]
        return list(zip(*columns, strict=True))

    def parse(self, line: str, row: int) -> dict:
        """A line of a .jsonl. Raises InputError unless it is an object without an answer in it."""
        where = f"{self.path}: row {row + 1}"
        values = tables.parse_line(line, where)
        self.refuse_taken(values, where)
        return values


def is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(check(kind) for check in STRINGS)


# Writing.


def check_out(out: Path, table: Table, labels: list[str]) -> None:
    """Raises InputError if a file named `out` cannot hold the table's rows and these labels."""
    kinds = {".jsonl": [".jsonl"], ".tsv": [*tables.SUFFIXES]}
    kinds = kinds.get(table.path.suffix, [".parquet", ".csv", ".jsonl"])
    if out.suffix not in kinds:
        source = f"of a {table.path.suffix} file"
        raise InputError(f"--out {out}: {source} the name must end in {', '.join(kinds)}")
    for field in table.schema if out.suffix != ".parquet" else ():
        is_number = pa.types.is_primitive(field.type) and not pa.types.is_temporal(field.type)
        if not (is_number or is_string(field.type)):
            problem = f"the column {field.name!r} is {field.type}, which only .parquet holds"
            raise InputError(f"{table.path}: {problem}; see --out")
    signs = "" if is_quoted(table, out.suffix) else "\t\r\n"
    if out.suffix in (".csv", ".tsv") and any(map(pa.types.is_list, table.answers.types)):
        signs += ","  # between the labels of a text
    for name in [*labels, *table.answers.names]:
        if set(signs) & set(name):
            hint = "a .parquet or .jsonl can"
            raise InputError(f"--out {out}: cannot hold the name {name!r}; {hint}")


def is_quoted(table: Table, kind: str) -> bool:
    """Whether fields that need it are quoted; in a .tsv only if they were. GLUE's are not."""
    return kind != ".tsv" or find_dialect(table.path).is_quoted


def write(parts: Iterator[pa.Table], table: Table, path: Path, kind: str) -> None:
    """Writes the table's rows with their answers as a file of this kind, a name's end."""
    if kind == ".parquet":
        schema = pa.schema([*table.schema, *table.answers], table.schema.metadata)
        with parquet.ParquetWriter(path, schema) as writer:
            for part in parts:
                writer.write_table(part.replace_schema_metadata(schema.metadata))
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        if kind == ".jsonl":
            for row in chain.from_iterable(part.to_pylist() for part in parts):
                line = row.pop("line") if table.path.suffix == ".jsonl" else "{}"
                file.write(extended(line, row))
            return
        writer = csv.writer(
            LineFeeds(file),
            delimiter="\t" if kind == ".tsv" else ",",
            quotechar='"' if is_quoted(table, kind) else None,
            quoting=csv.QUOTE_MINIMAL if is_quoted(table, kind) else csv.QUOTE_NONE,
        )
        writer.writerow([*table.schema.names, *table.answers.names])
        for part in parts:
            columns = [map(as_cell, column.to_pylist()) for column in part.columns]
            writer.writerows(zip(*columns, strict=True))


class LineFeeds:
    """A file for csv.writer, which quotes texts with either of the two signs that end its lines.

    In the file a line ends with the second sign alone.
    """

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def extended(line: str, row: dict) -> str:
    """A line of a .jsonl with more in it; it stays as it stands, so that no number changes digits.

    NaN and Infinity, which JSON has not, become null.
    """
    if "NaN" in line or "Infinity" in line:
        constants = []
        values = json.loads(line, parse_constant=constants.append)
        line = json.dumps(values) if constants else line
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            row[name] = None
    start = line.rstrip().removesuffix("}").rstrip()
    comma = "" if start.endswith("{") else ", "
    return start + comma + json.dumps(row, ensure_ascii=False)[1:] + "\n"


def as_cell(value):
    """A value for a cell of a .csv: several labels with commas between them."""
    return ",".join(value) if isinstance(value, list) else value
