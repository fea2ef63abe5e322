"""A table of any size in pieces: its rows, the texts in them, and a file of rows with answers."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa
from pyarrow import parquet

from support import glue, tables
from support.dialects import find_dialect
from support.errors import InputError

PIECE = 16384  # rows: enough for batches of one length, and minutes at most to repeat after a kill


class Table:
    """The rows of a file, to which columns of answers are to be added.

    A row of a .jsonl or .txt is a line as it stands. `pairs` says whether its texts are pairs, or
    None where either will do. Raises InputError for a file that cannot be labelled.
    """

    def __init__(self, path: Path, text_columns: list[str], pairs: bool | None, answers: pa.Schema):
        if not path.is_file():
            raise InputError(f"{path}: is no file; --out labels a whole one")
        self.path = path
        self.pairs = pairs
        self.answers = answers
        self.stamp = stamp(path)
        self.schema, batches = tables.stream(path)
        names = self.schema.names
        if path.suffix == ".jsonl":
            first = next((batch["line"][0].as_py() for batch in batches if batch.num_rows), "{}")
            names = [*self.parse(first, row=0)]
        self.refuse_taken(names, path)
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"{path}: two columns are called {name!r}; rename one")
        self.columns = names
        if path.suffix != ".txt":
            self.columns = self.choose_columns(names, text_columns)

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

    def refuse_taken(self, names: Iterable[str], where) -> None:
        for name in self.answers.names:
            if name in names:
                hint = f"as the answer would; --prefix predicted_ makes it predicted_{name}"
                raise InputError(f"{where}: has a column {name!r}, {hint}")

    def refuse_changed(self) -> None:
        if stamp(self.path) != self.stamp:
            raise InputError(f"{self.path}: was changed while it was labelled")

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

    def texts(self, piece: pa.Table, first_row: int) -> list[tuple]:
        """The texts of a piece, tuples of one or two; where there is none, it is empty or None."""
        if self.path.suffix == ".jsonl":
            lines = enumerate(piece["line"].to_pylist(), first_row)
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

    def count_rows(self) -> int:
        """Reads everything once: a row that cannot be read must not end a run after hours."""
        count = 0
        for piece in self.pieces(self.columns):
            count += len(self.texts(piece, first_row=count))
        if not count:
            raise InputError(f"{self.path}: holds no rows")
        return count


def piece_sizes(rows: int) -> list[int]:
    return [min(PIECE, rows - start) for start in range(0, rows, PIECE)]


def stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # a category of pandas
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


# Writing.


def check_kind(out: Path, table: Table) -> None:
    """Raises InputError if a file of the name `out` cannot hold all that the table's rows hold."""
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


def write(parts: Iterator[pa.Table], table: Table, path: Path, kind: str) -> None:
    """Writes the table's rows with their answers as a file of this kind, a name's end."""
    if kind == ".parquet":
        write_parquet(parts, table, path)
    elif kind == ".jsonl":
        write_jsonl(parts, table, path)
    else:
        write_csv(parts, table, path, kind)


def write_parquet(parts: Iterator[pa.Table], table: Table, path: Path) -> None:
    schema = table.schema
    for field in table.answers:
        schema = schema.append(field)
    known = tables.features(schema)
    if known:  # what the file tells Hugging Face's `datasets` of its columns
        for field in table.answers:
            kind = str(field.type).replace("double", "float64")
            known[field.name] = {"dtype": kind, "_type": "Value"}
        told = json.loads(schema.metadata[b"huggingface"])
        told["info"]["features"] = known
        schema = schema.with_metadata(schema.metadata | {b"huggingface": json.dumps(told)})
    with parquet.ParquetWriter(path, schema) as writer:
        for part in parts:
            writer.write_table(part.replace_schema_metadata(schema.metadata))


def write_jsonl(parts: Iterator[pa.Table], table: Table, path: Path) -> None:
    """A line of a .jsonl stays as it stands, so that no number changes its digits."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for part in parts:
            for row in part.to_pylist():
                line = row.pop("line") if table.path.suffix == ".jsonl" else "{}"
                start = line.rstrip().removesuffix("}").rstrip()
                comma = "" if start.endswith("{") else ", "
                file.write(start + comma + json.dumps(row, ensure_ascii=False)[1:] + "\n")


class LineFeeds:
    """A file for csv.writer, which ends lines with two signs and quotes texts with either of them.

    In the file a line ends with the second sign alone.
    """

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


def write_csv(parts: Iterator[pa.Table], table: Table, path: Path, kind: str) -> None:
    """In a .tsv nothing is quoted, as in GLUE's, unless fields of the table were."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(LineFeeds(file))
        if kind == ".tsv" and find_dialect(table.path).is_quoted:
            writer = csv.writer(LineFeeds(file), "excel-tab")
        elif kind == ".tsv":
            plain = csv.QUOTE_NONE
            writer = csv.writer(LineFeeds(file), "excel-tab", quoting=plain, quotechar=None)
        writer.writerow([*table.schema.names, *table.answers.names])
        for part in parts:
            columns = [column.to_pylist() for column in part.columns]
            writer.writerows(zip(*columns, strict=True))
