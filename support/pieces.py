"""A table of any size in pieces: its rows, the texts in them, and a file of rows with answers."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from support import glue, tables
from support.dialects import USUAL
from support.errors import InputError, reading

PIECE = 16384  # rows: enough for batches of one length, and minutes at most to repeat after a kill


class Table(tables.Table):
    """The rows of a file, to which the columns `answers` are to be added.

    A row of a .jsonl or .txt is a line as it stands. `pairs` says whether its texts are pairs, or
    None where either will do. Raises InputError for a file that cannot be labelled.
    """

    def __init__(self, path: Path, text_columns: list[str], pairs: bool | None, answers: pa.Schema):
        if not path.is_file():
            raise InputError(f"{path}: is no file; --out labels a whole one")
        super().__init__(path)
        self.pairs = pairs
        self.answers = answers
        names = self.schema.names
        if names.count("") > 1:
            raise InputError(f"{path}: two columns have no name; name them")
        if path.suffix == ".jsonl":
            first = next((batch["line"][0].as_py() for batch in self.batches() if len(batch)), "{}")
            names = [*self.parse(first, row=1)]
        self.refuse_taken(names, path)
        self.columns = names if path.suffix == ".txt" else self.choose_columns(names, text_columns)

    def choose_columns(self, names: list[str], given: list[str]) -> list[str]:
        """The column of the texts, or the two of the pairs."""
        kinds = {1: "single texts", 2: "pairs of texts: a,b"}
        if self.pairs is not None:
            del kinds[1 if self.pairs else 2]
        usual = [columns for columns in glue.TEXT_COLUMNS if len(columns) in kinds]
        columns = tables.choose_columns(self.path, names, [given] if given else usual)
        if len(columns) not in kinds or len(set(columns)) < len(columns):
            flag = f"--text-column {','.join(columns)}"
            raise InputError(f"{flag}: the model classifies {' or '.join(kinds.values())}")
        return columns

    def refuse_taken(self, names, where) -> None:
        for name in self.answers.names:
            if name in names:
                hint = f"as the answer would; --prefix predicted_ makes it predicted_{name}"
                raise InputError(f"{where}: has a column {name!r}, {hint}")

    def pieces(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, PIECE at a time; of all columns, or of some."""
        held = []
        for batch in self.batches(columns):
            held.append(batch)
            while sum(map(len, held)) >= PIECE:
                rows = pa.Table.from_batches(held)
                yield rows[:PIECE]
                held = rows[PIECE:].to_batches()
        if held:
            yield pa.Table.from_batches(held)

    def texts(self, piece: pa.Table, first: int) -> list[tuple]:
        """The texts of a piece, tuples of one or two: strings, or whatever else stands there.

        `first` is how many rows are before the piece.
        """
        if self.path.suffix == ".jsonl":
            lines = enumerate(piece["line"].to_pylist(), first + 1)
            rows = [self.parse(line, row) for row, line in lines]
            return [tuple(row.get(name) for name in self.columns) for row in rows]
        if self.path.suffix == ".txt" and self.pairs:
            return [line.partition("\t")[::2] for line in piece["line"].to_pylist()]
        with reading(self.path):
            columns = [tables.as_texts(piece[name]) for name in self.columns]
        return list(zip(*columns, strict=True))

    def parse(self, line: str, row: int) -> dict:
        """A line of a .jsonl. Raises InputError unless it is an object without an answer in it."""
        values = tables.parse_line(line, self.path, row)
        self.refuse_taken(values, f"{self.path}: row {row}")
        return values


# Writing.


def is_quoted(table: Table, kind: str) -> bool:
    """Whether texts that need it are quoted: not in a .tsv made of a .tsv without quotes."""
    return kind != ".tsv" or table.dialect is None or table.dialect.is_quoted


def check_out(out: Path, table: Table, labels: list[str]) -> None:
    """Raises InputError if a file named `out` cannot hold the table's rows and these labels."""
    kinds = [".jsonl"] if table.path.suffix == ".jsonl" else tables.SUFFIXES
    if out.suffix not in kinds:
        source = f"of a {table.path.suffix} file"
        raise InputError(f"--out {out}: {source} the name must end in {', '.join(kinds)}")
    for field in table.schema if out.suffix != ".parquet" else ():
        if re.search("binary|list|struct|map", str(field.type)):
            problem = f"the column {field.name!r} is {field.type}, which only .parquet holds"
            raise InputError(f"{table.path}: {problem}; see --out")
    signs = "" if is_quoted(table, out.suffix) else "\t\r\n"
    if out.suffix in USUAL and any(map(pa.types.is_list, table.answers.types)):
        signs += ","  # between the labels of a text
    for name in [*labels, *table.answers.names]:
        if set(signs) & set(name):
            hint = "a .parquet or .jsonl can"
            raise InputError(f"--out {out}: cannot hold the name {name!r}; {hint}")


def write(parts: Iterable[pa.Table], table: Table, path: Path, kind: str) -> None:
    """Writes the table's rows with their answers as a file of this kind, a name's end."""
    schema = pa.schema([*table.schema, *table.answers], table.schema.metadata)
    if kind == ".parquet":
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
        heads = pa.table([[name] for name in schema.names], schema.names)
        for part in chain([heads], parts):
            cells = [as_cells(column) for column in part.columns]
            if is_quoted(table, kind):
                cells = [quoted(column, USUAL[kind]) for column in cells]
            lines = pc.binary_join_element_wise(*cells, USUAL[kind])
            file.writelines(f"{line}\n" for line in lines.to_pylist())


def as_cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a column as texts; several labels have commas between them."""
    if pa.types.is_list(column.type):
        column = pc.binary_join(column, ",")
    return column.cast(pa.string()).fill_null("")


def quoted(texts: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """Texts, those in quotation marks that need them in a row with a `separator`."""
    needs_quotes = pc.match_substring_regex(texts, f'["\r\n{separator}]')
    within = pc.replace_substring(texts, '"', '""')
    marked = pc.binary_join_element_wise('"', within, '"', "")
    return pc.if_else(needs_quotes, marked, texts)


def extended(line: str, row: dict) -> str:
    """A line of a .jsonl with more in it; it stays as it stands, so that no number changes digits.

    NaN and Infinity, which JSON has not, become null.
    """
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            row[name] = None
    start = line.rstrip().removesuffix("}").rstrip()
    comma = "" if start.endswith("{") else ", "
    return start + comma + json.dumps(row, ensure_ascii=False, default=str)[1:] + "\n"
