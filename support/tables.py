"""Tables: parquet, csv, tsv and jsonl, as texts and labels in memory, or streamed.

pyarrow takes a while to import: this file is imported late, where there is a table to read.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as compute
from pyarrow import csv, parquet
from pyarrow import json as arrow_json

from support import glue
from support.errors import InputError, listing, reading

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
SPLITS = ("train", "validation", "validation_mismatched")
BLOCK = 2**22  # bytes: no row of a .csv or .jsonl is longer

# What Arrow has freed, tensors reuse; its own pool would keep it.
pa.set_memory_pool(pa.system_memory_pool())


def find_splits(path: Path) -> dict[str, list[Path]]:
    """The files of each split of SPLITS. A single file is "train" alone. Raises InputError."""
    if path.is_file():
        return {"train": [path]}
    splits = {"train": [], "validation": []}
    for file in sorted(path.iterdir()):
        split = re.sub(r"(_matched)?(-\d{5}-of-\d{5})?$", "", file.stem)
        if split in SPLITS and file.suffix in SUFFIXES:
            splits.setdefault(split, []).append(file)
    for split, files in splits.items():
        names = [file.name for file in files] or ["none"]
        first = names[0] if files else f"{split}.csv"
        parts = re.search(r"-of-(\d{5})", first)
        numbers = range(int(parts[1])) if parts else [0]
        expected = [re.sub(r"\d{5}-of", f"{number:05}-of", first) for number in numbers]
        if names != expected:
            raise InputError(f"{path}: expected {listing(expected)}, found {listing(names)}")
    return splits


def stream(path: Path, columns: list[str] | None = None) -> tuple:
    """The pa.Schema of a table, and an iterator of pa.RecordBatches of a bounded size.

    Every column of a .csv or .tsv is text. A .jsonl or .txt has one, "line": its lines as they
    stand, without their ends; blank ones of .jsonl are left out. With `columns` the batches hold
    these alone. Raises InputError, also in the middle.
    """
    with reading(path):
        if path.suffix == ".parquet":
            file = parquet.ParquetFile(path, buffer_size=2**20)  # without, it reads a row group
            schema = file.schema_arrow
            batches = file.iter_batches(4096, columns=columns)
        elif path.suffix in (".csv", ".tsv"):
            schema, batches = stream_csv(path, columns)
        elif path.suffix in (".jsonl", ".txt"):
            schema = pa.schema([("line", pa.string())])
            batches = stream_lines(path)
        else:
            raise InputError(f"{path}: the name must end in .parquet, .csv, .tsv, .jsonl or .txt")
    return schema, validated(path, batches)


def stream_csv(path: Path, columns: list[str] | None) -> tuple:
    read = csv.ReadOptions(block_size=BLOCK)
    parse = csv.ParseOptions(newlines_in_values=True)
    if path.suffix == ".tsv":
        parse = csv.ParseOptions(delimiter="\t", quote_char=False)  # as GLUE's: quotes are text
    names = csv.open_csv(path, read, parse).schema.names
    schema = pa.schema([(name, pa.string()) for name in names])  # "007" is no number
    convert = csv.ConvertOptions(column_types=schema, include_columns=columns)
    return schema, csv.open_csv(path, read, parse, convert)


def stream_lines(path: Path) -> Iterator:
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        while lines := file.readlines(2**20):
            if path.suffix == ".jsonl":
                lines = filter(str.strip, lines)
            lines = [line.rstrip("\r\n") for line in lines]
            yield pa.record_batch({"line": pa.array(lines, pa.string())})


def validated(path: Path, batches: Iterable) -> Iterator:
    with reading(path):
        for batch in batches:
            batch.validate(full=True)  # text that is no UTF-8, above all
            yield batch


def read_table(path: Path) -> pa.Table:
    """The whole table; every column of a .csv or .tsv is text. Raises InputError."""
    if path.suffix == ".jsonl":
        with reading(path):
            return arrow_json.read_json(path, arrow_json.ReadOptions(block_size=BLOCK))
    schema, batches = stream(path)
    return pa.Table.from_batches(batches, schema)


def features(schema: pa.Schema) -> dict:
    """What a parquet file of the Hub tells of its columns; of any other {}."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def choose_columns(path: Path, existing: list[str], candidates: list[list[str]]) -> list[str]:
    """The first of the `candidates` that are all columns of a table. Raises InputError."""
    for columns in candidates:
        if set(columns) <= set(existing):
            return columns
    wanted = " or ".join(map("+".join, candidates))
    flags = "--text-columns and --label-column"
    raise InputError(f"{path}: no column {wanted} among {listing(existing)}; name yours by {flags}")


@dataclass
class Rows:
    """The N rows of a split."""

    source: str  # its files
    texts: list[tuple[str, ...]]  # of one string each, or of the two of a pair
    labels: list  # as they stand in the table
    different: list  # labels, in the order of their first rows
    columns: list[str]  # where the texts stood
    class_names: list[str]  # that a parquet file of the Hub tells, or []


def read_rows(paths: list[Path], columns: list[str], label_column: str) -> Rows:
    """The rows of a split's files, with the texts in one or two `columns`, or the usual ones.

    Raises InputError for a column that cannot be used, and for a row without a text.
    """
    source = listing([str(path) for path in paths])
    with reading(source):
        parts = [read_table(path) for path in paths]
        table = pa.concat_tables(parts)
        told = features(table.schema)
        if any(features(part.schema) != told for part in parts):
            raise InputError(f"{source}: the parts have different classes")
        candidates = [columns] if columns else glue.TEXT_COLUMNS
        existing = table.column_names
        columns = choose_columns(paths[0], existing, candidates)
        choose_columns(paths[0], existing, [[label_column]])
        if len(columns) > 2 or len({*columns, label_column}) <= len(columns):
            flags = f"--text-columns {','.join(columns)} --label-column {label_column}"
            raise InputError(f"{flags}: name one or two columns of texts, and another of labels")
        if table.num_rows == 0:
            raise InputError(f"{source}: holds no rows")
        texts = [table[name].cast(pa.string()) for name in columns]
        for column in texts:
            is_blank = compute.equal(compute.utf8_trim_whitespace(column), "")
            row = compute.index(compute.fill_null(is_blank, True), True).as_py()
            if row >= 0:
                raise InputError(f"{source}: row {row + 1} has no text; remove the row")
        labels = table[label_column]
        if labels.type == pa.bool_():
            labels = labels.cast(pa.string())  # "true" is no number
        labels = labels.to_pylist()
        return Rows(
            source=source,
            texts=list(zip(*[column.to_pylist() for column in texts], strict=True)),
            labels=labels,
            different=list(dict.fromkeys(labels)),
            columns=columns,
            class_names=told.get(label_column, {}).get("names") or [],
        )
