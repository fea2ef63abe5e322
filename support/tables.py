"""Tables: parquet, csv, tsv and jsonl, as texts and labels in memory, or streamed.

pyarrow reads. It is imported late: it takes a while, and an answer to one text needs no table.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from support.errors import InputError, listing, reading

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
SPLITS = ("train", "validation", "validation_mismatched")
BLOCK = 2**22  # bytes: no row of a .csv or .jsonl is longer

# Which files.


def find_splits(path: Path) -> dict[str, list[Path]]:
    """The files of each split: "train", "validation", maybe "validation_mismatched".

    A single file is "train" alone. Raises InputError for a split that is missing or ambiguous.
    """
    if path.is_file():
        return {"train": [path]}
    if not path.is_dir():
        raise InputError(f"{path}: no such file or directory")
    splits = {}
    for file in sorted(path.iterdir()):
        name = re.sub(r"(_matched)?(-\d+-of-\d+)?$", "", file.stem)
        if name in SPLITS and file.suffix in SUFFIXES:
            splits.setdefault(name, []).append(file)
        elif name.lower().replace("-", "_") in SPLITS and file.suffix.lower() in SUFFIXES:
            raise InputError(f"{file}: not read; the names are train.csv, validation.csv, …")
    for split in "train", "validation":
        if split not in splits:
            usual = f"{split}.csv or {split}-00000-of-00001.parquet"
            raise InputError(f"{path}: no {split} file there, such as {usual}")
    for files in splits.values():
        kinds = {re.sub(r"-\d+-of-", "-of-", file.name) for file in files}
        part = re.search(r"-of-(\d+)\.", files[0].name)
        parts = int(part[1]) if part else 1
        if len(kinds) > 1 or len(files) != parts:
            names = listing([file.name for file in files])
            raise InputError(f"{path}: {names}: expected one file, or all the parts of one")
    return splits


# Reading.


def csv_options(path: Path) -> dict:
    """How Arrow is to take a .csv or a .tsv apart. In .tsv quotes are plain text, as in GLUE's."""
    from pyarrow import csv

    if path.suffix == ".tsv":
        return {"parse_options": csv.ParseOptions(delimiter="\t", quote_char=False)}
    return {"parse_options": csv.ParseOptions(newlines_in_values=True)}


@contextlib.contextmanager
def reading_rows(path: Path):
    with reading(path):
        try:
            yield
        except ValueError as error:
            if "straddling" not in str(error):
                raise
            problem = f"a row is longer than {BLOCK >> 20} MiB, or a quotation mark is not closed"
            raise InputError(f"{path}: {problem}") from error


def stream(
    path: Path, columns: list[str] | None = None
) -> tuple["pyarrow.Schema", Iterator["pyarrow.RecordBatch"]]:
    """The columns of a table, and its rows as record batches of a bounded size.

    Every column of a .csv or .tsv is text. A .jsonl or .txt has one, "line": its lines as they
    stand, without their ends; blank ones of .jsonl are left out. With `columns` the batches hold
    these alone. Raises InputError, also in the middle.
    """
    import pyarrow
    from pyarrow import parquet

    # What Arrow has freed, tensors reuse; its own pool would keep it.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    with reading_rows(path):
        if path.suffix == ".parquet":
            file = parquet.ParquetFile(path, buffer_size=2**20)  # without, it reads a row group
            schema = file.schema_arrow
            batches = file.iter_batches(4096, columns=columns)
        elif path.suffix in (".csv", ".tsv"):
            schema, batches = stream_csv(path, columns)
        elif path.suffix in (".jsonl", ".txt"):
            schema = pyarrow.schema([("line", pyarrow.string())])
            batches = stream_lines(path)
        else:
            raise InputError(f"{path}: the name must end in {', '.join(SUFFIXES)} or .txt")
    return schema, validated(path, batches)


def stream_csv(path: Path, columns: list[str] | None) -> tuple:
    import pyarrow
    from pyarrow import csv

    options = {"read_options": csv.ReadOptions(block_size=BLOCK), **csv_options(path)}
    with csv.open_csv(path, **options) as file:
        names = file.schema.names
    types = dict.fromkeys(names, pyarrow.string())  # "007" is no number
    convert = csv.ConvertOptions(column_types=types, include_columns=columns)
    file = csv.open_csv(path, convert_options=convert, **options)
    return pyarrow.schema([(name, pyarrow.string()) for name in names]), file


def stream_lines(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow

    with open(path, encoding="utf-8-sig", newline="\n") as file:
        while lines := file.readlines(2**20):
            lines = [line.removesuffix("\n").removesuffix("\r") for line in lines]
            if path.suffix == ".jsonl":
                lines = [line for line in lines if line.strip()]
            yield pyarrow.record_batch([pyarrow.array(lines, pyarrow.string())], ["line"])


def validated(path: Path, batches) -> Iterator["pyarrow.RecordBatch"]:
    with reading_rows(path):
        for batch in batches:
            batch.validate(full=True)  # text that is no UTF-8, above all
            yield batch


def read_table(path: Path) -> "pyarrow.Table":
    import pyarrow
    from pyarrow import json as arrow_json

    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the name must end in {', '.join(SUFFIXES)}")
    if path.suffix == ".jsonl":
        with reading_rows(path):
            return arrow_json.read_json(path, arrow_json.ReadOptions(block_size=BLOCK))
    schema, batches = stream(path)
    return pyarrow.Table.from_batches(batches, schema)


def features(schema: "pyarrow.Schema") -> dict:
    """What a parquet file of the Hub tells of its columns; of any other {}."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def is_blank(column: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray":
    """Whether each of N texts is missing, or nothing but spaces."""
    import pyarrow.compute as compute

    trimmed = compute.utf8_trim_whitespace(compute.fill_null(column, ""))
    return compute.equal(trimmed, "")


# Rows.


@dataclass
class Rows:
    """The N rows of a split."""

    texts: list[tuple[str, ...]]  # of one string each, or of the two of a pair
    labels: list  # as they stand in the table
    columns: list[str]  # where the texts stood
    class_names: list[str]  # that a parquet file of the Hub tells, or []
    sizes: dict[Path, int]  # how many rows each file has

    @property
    def path(self) -> Path:
        """The first file."""
        return next(iter(self.sizes))

    def place(self, row: int) -> str:
        """Where a row stands: "train.csv: row 8" is that of number 7."""
        for path, size in self.sizes.items():
            if row < size:
                return f"{path}: row {row + 1}"
            row -= size
        raise IndexError(row)


def read_rows(paths: list[Path], candidates: list[list[str]], label_column: str) -> Rows:
    """Reads the files of a split. The texts stand in the first `candidates` that are all there.

    Raises InputError that names the column or the row which cannot be used.
    """
    with reading(paths[0]):
        tables = {path: read_table(path) for path in paths}
        rows, table = join_tables(tables, candidates, label_column)
        check_rows(rows, table)
    return rows


def join_tables(
    tables: dict[Path, "pyarrow.Table"], candidates: list[list[str]], label_column: str
) -> tuple[Rows, "pyarrow.Table"]:
    import pyarrow

    path = next(iter(tables))
    schema = tables[path].schema
    for other, table in tables.items():
        if table.schema != schema or features(table.schema) != features(schema):
            raise InputError(f"{other}: has other columns or classes than {path.name}")
    columns = choose_columns(path, schema.names, candidates)
    choose_columns(path, schema.names, [[label_column]])
    if len(columns) > 2 or len({*columns, label_column}) <= len(columns):
        flags = f"--text-columns {','.join(columns)} --label-column {label_column}"
        raise InputError(f"{flags}: name one or two columns of texts, and another of labels")
    table = pyarrow.concat_tables(tables.values())
    texts = [table[column].to_pylist() for column in columns]
    names = features(schema).get(label_column, {}).get("names") or []
    rows = Rows(
        texts=list(zip(*texts, strict=True)),
        labels=table[label_column].to_pylist(),
        columns=columns,
        class_names=[str(name) for name in names],
        sizes={path: table.num_rows for path, table in tables.items()},
    )
    return rows, table


def choose_columns(path: Path, existing: list[str], candidates: list[list[str]]) -> list[str]:
    """The first of the `candidates` that are all columns of a table."""
    for columns in candidates:
        if set(columns) <= set(existing):
            return columns
    wanted = " or ".join("+".join(columns) for columns in candidates)
    flags = "--text-columns and --label-column"
    raise InputError(f"{path}: no column {wanted} among {listing(existing)}; name yours by {flags}")


def check_rows(rows: Rows, table: "pyarrow.Table") -> None:
    """Raises InputError for a row without a text."""
    import pyarrow.compute as compute

    if not rows.labels:
        raise InputError(f"{rows.path}: holds no rows")
    for column in rows.columns:
        kind = str(table[column].type)
        if kind not in ("string", "large_string"):
            raise InputError(f"{rows.path}: the column {column!r} is {kind}, expected text")
        row = compute.index(is_blank(table[column]), True).as_py()
        if row >= 0:
            raise InputError(f"{rows.place(row)} has no text in {column!r}; remove the row")
