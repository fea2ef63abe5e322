"""Tables: parquet, csv, tsv and jsonl, whole or streamed.

pyarrow takes a while to import: this file is imported late, where there is a table to read.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from support import glue
from support.dialects import dialect_note, find_dialect
from support.encodings import open_utf8, reading_text
from support.errors import InputError, listing, reading
from support.visible import is_blank

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
BLANKS = " \t\r\n\xa0\u200b\ufeff"  # around the names of columns
# What stands in a column for a label, of several labels a text.
MARKS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}

# What Arrow has freed, tensors reuse; its own pool would keep it.
pa.set_memory_pool(pa.system_memory_pool())


def stream(path: Path, columns: list[str] | None = None) -> tuple:
    """The pa.Schema of a table, and an iterator of pa.RecordBatches of a bounded size.

    Every column of a .csv or .tsv is text. A .jsonl or .txt has one, "line": its lines as they
    stand, without their ends; blank ones of .jsonl are left out. With `columns` the batches hold
    these alone. Raises InputError, also in the middle.
    """
    if path.suffix == ".parquet":
        with reading(path):
            file = parquet.ParquetFile(path, buffer_size=2**20)  # without, it reads a row group
            batches = file.iter_batches(4096, columns=columns)
        return file.schema_arrow, validated(path, batches)
    with reading_text(path):
        if path.suffix in (".csv", ".tsv"):
            schema, batches = stream_csv(path, columns)
        elif path.suffix in (".jsonl", ".txt"):
            schema = pa.schema([("line", pa.string())])
            batches = stream_lines(path)
        else:
            raise InputError(f"{path}: the name must end in .parquet, .csv, .tsv, .jsonl or .txt")
    return schema, validated(path, batches)


def stream_csv(path: Path, columns: list[str] | None) -> tuple:
    dialect = find_dialect(path)
    written = dialect.open(path).schema.names
    names = [name.strip(BLANKS) for name in written]
    wanted = columns and [written[names.index(name)] for name in columns]
    types = pa.schema([(name, pa.string()) for name in written])  # "007" is no number
    convert = csv.ConvertOptions(column_types=types, include_columns=wanted)
    batches = dialect.open(path, convert)
    schema = pa.schema([(name, pa.string()) for name in names])
    return schema, (batch.rename_columns(columns or names) for batch in batches)


def stream_lines(path: Path) -> Iterator:
    with io.TextIOWrapper(open_utf8(path), encoding="utf-8-sig", newline="\n") as file:
        while lines := file.readlines(2**20):
            if path.suffix == ".jsonl":
                lines = filter(str.strip, lines)
            lines = [line.rstrip("\r\n") for line in lines]
            yield pa.record_batch({"line": pa.array(lines, pa.string())})


def validated(path: Path, batches: Iterable) -> Iterator:
    with reading(path) if path.suffix == ".parquet" else reading_text(path):
        for batch in batches:
            batch.validate(full=True)  # text that is no UTF-8, above all
            yield batch


def features(schema: pa.Schema) -> dict:
    """What a parquet file of the Hub tells of its columns; of any other {}."""
    try:
        return dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def read_columns(path: Path) -> tuple[dict[str, Any], dict]:
    """All columns of a table by their names, and features(); those of a .jsonl are lists."""
    schema, batches = stream(path)
    if path.suffix == ".jsonl":
        lines = (line for batch in batches for line in batch["line"].to_pylist())
        rows = [parse_line(line, f"{path}: row {number}") for number, line in enumerate(lines, 1)]
        names = dict.fromkeys(name for row in rows for name in row)
        if not rows:
            raise InputError(f"{path}: holds no rows")
        return {name.strip(BLANKS): [row.get(name) for row in rows] for name in names}, {}
    table = pa.Table.from_batches(batches, schema)
    names = [name.strip(BLANKS) for name in table.column_names]
    for name in filter(None, names):
        if names.count(name) > 1:
            raise InputError(f"{path}: two columns are called {name!r}; rename one")
    return dict(zip(names, table.columns, strict=True)), features(schema)


def parse_line(line: str, where: str) -> dict:
    """The JSON object in a line. Raises InputError, whatever the line holds."""
    with reading(where):
        values = json.loads(line)
    if not isinstance(values, dict):
        raise InputError(f"{where}: is a JSON {type(values).__name__}, expected an object")
    return values


def as_texts(column) -> list[str | None]:
    """The values of a column as texts. Raises ValueError for lists and objects."""
    if not isinstance(column, list):
        return column.cast(pa.string()).to_pylist()
    for value in column:
        if isinstance(value, list | dict):
            raise ValueError(f"expected texts, found a {type(value).__name__}")
    texts = [value if value is None else str(value) for value in column]
    return pa.array(texts, pa.string()).to_pylist()  # as UTF-8, which has no halves of surrogates


def as_labels(column) -> list:
    """The values of a column as labels: texts, numbers, None; or lists of such."""
    labels = column if isinstance(column, list) else column.to_pylist()
    labels = [str(label).lower() if isinstance(label, bool) else label for label in labels]
    for label in labels:
        for part in label if isinstance(label, list) else [label]:
            if isinstance(part, list | dict):
                raise ValueError(f"expected labels, found a {type(part).__name__}")
            str(part).encode()
    return labels


def marked(cells: Sequence, names: Sequence[str], where: str) -> list[str] | None:
    """The names of the cells that are 1; None where one is empty. Raises InputError."""
    if any(map(is_missing, cells)):
        return None
    for name, cell in zip(names, cells, strict=True):
        if str(cell) not in MARKS:
            raise InputError(f"{where} has {cell!r:.40} in the column {name}, expected 0 or 1")
    return [name for name, cell in zip(names, cells, strict=True) if MARKS[str(cell)]]


def separated(label, separator: str) -> list[str]:
    """The labels in one that has separators between them; an empty one has none."""
    if isinstance(label, list):
        raise ValueError("the labels are lists already; leave out --label-separator")
    parts = [] if is_missing(label) else str(label).split(separator)
    return [part.strip() for part in parts if not is_blank(part)]


def class_names(feature) -> list[str]:
    """The names of the classes, or of the labels in a list, that a column's feature tells."""
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    if isinstance(feature, dict):
        feature = feature.get("feature", feature)
    names = feature.get("names") if isinstance(feature, dict) else None
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if are_names else []


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
    """N rows of a table."""

    source: str  # its files
    columns: list[str]  # where the texts stood
    texts: list[tuple[str, ...]]  # of one string each, or of the two of a pair
    labels: list  # as they stand there; where a text has several, lists
    numbers: Sequence[int]  # of the rows, from 1
    class_names: list[str]  # that a parquet file of the Hub tells, or []
    splits: list  # what a column "split" says, or []
    notes: list[str]  # on how the files were read

    @property
    def different(self) -> list:
        """The labels, in the order of their first rows."""
        return list(dict.fromkeys(self.labels))

    def select(self, chosen) -> "Rows":
        """The rows where `chosen` (N,) is true."""
        columns = {name: getattr(self, name) for name in ("texts", "labels", "numbers", "splits")}
        return replace(self, **{name: [*compress(all_, chosen)] for name, all_ in columns.items()})

    def refuse_missing(self, names: Sequence[str] = ()) -> None:
        """Raises InputError that counts the rows without a text or a label, and names the first.

        What is in `names` is a label, though it may look like none.
        """
        without = {
            "text": [any(text is None or is_blank(text) for text in row) for row in self.texts],
            "label": [is_missing(label) and label not in names for label in self.labels],
        }
        problems = []
        for what, is_without in without.items():
            rows = [f"{number:,}" for number in compress(self.numbers, is_without)]
            if rows:
                count = f"{len(rows):,} of {len(self.texts):,} rows"
                problems.append(f"{count} without a {what} (row {listing(rows)})")
        if problems:
            found = " and ".join(problems)
            raise InputError(f"{self.source}: {found}; fill them in, or remove them")


def is_missing(label) -> bool:
    """Whether a label is an empty cell: nothing that can be seen, a NaN, or how one is written."""
    if isinstance(label, str):
        return is_blank(label) or label.strip().lower() in ("nan", "null", "<na>")
    return label is None or label != label


def gather_rows(
    paths: list[Path],
    columns: list[str],
    label_column: str = "label",
    label_columns: Sequence[str] = (),
    separator: str = "",
) -> Rows:
    """The rows of a split's files, with the texts in one or two `columns`, or the usual ones.

    Several labels a text are those of the `label_columns` that are 1; or what stands in the
    label's column, as a list or with a `separator` between. Raises InputError for a column that
    cannot be used.
    """
    source = listing([str(path) for path in paths])
    tables, told = zip(*map(read_columns, paths), strict=True)
    existing = [*tables[0]]
    if any(each != told[0] for each in told):
        raise InputError(f"{source}: the parts have different classes")
    if label_columns and (separator or label_column != "label"):
        raise InputError("--label-columns go without --label-column and --label-separator")
    columns = choose_columns(paths[0], existing, [columns] if columns else glue.TEXT_COLUMNS)
    labelled = [*label_columns] or [label_column]
    for path, table in zip(paths, tables, strict=True):
        for names in columns, labelled:
            choose_columns(path, [*table], [names])
    if len(columns) > 2 or len({*columns, *labelled}) < len(columns) + len(labelled):
        flags = f"--text-columns {','.join(columns)} --label-column {','.join(labelled)}"
        raise InputError(f"{flags}: name one or two columns of texts, and others of labels")

    def joined(name: str, values: Callable) -> list:
        return [value for table in tables for value in values(table[name])]

    with reading(source):
        texts = [*zip(*[joined(name, as_texts) for name in columns], strict=True)]
        cells = [*zip(*[joined(name, as_labels) for name in labelled], strict=True)]
        labels = [cell for cell, *_ in cells]
        if label_columns:
            rows = enumerate(cells, 1)
            labels = [marked(row, labelled, f"{source}: row {number}") for number, row in rows]
        elif separator:
            labels = [separated(label, separator) for label in labels]
        names = [] if label_columns else class_names(told[0].get(label_column))
        has_splits = "split" in {*existing} - {*columns, *labelled}
        splits = joined("split", as_labels) if has_splits else []
    if not texts:
        raise InputError(f"{source}: holds no rows")
    return Rows(
        source=source,
        columns=columns,
        texts=texts,
        labels=labels,
        numbers=range(1, len(texts) + 1),
        class_names=names,
        splits=splits,
        notes=[note for path in paths if (note := dialect_note(path))],
    )
