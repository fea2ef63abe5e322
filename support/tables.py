"""Tables: parquet, csv, tsv and jsonl, whole or streamed.

pyarrow takes a while to import: this file is imported late, where there is a table to read.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from support import glue
from support.dialects import USUAL, find_dialect
from support.encodings import open_utf8, reading_table
from support.errors import InputError, listing, reading
from support.visible import is_blank

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
BLANKS = " \t\r\n\xa0\u200b\ufeff"  # around the names of columns
# What stands in a column for a label, of several labels a text; None is an empty cell.
MARKS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True, None: None}

# What Arrow has freed, tensors reuse; its own pool would keep it.
pa.set_memory_pool(pa.system_memory_pool())


class Table:
    """A file of rows: the pa.Schema of its columns, and the rows.

    Every column of a .csv or .tsv is text. A .jsonl or .txt has one, "line": its lines as they
    stand, without their ends; blank ones of .jsonl are left out. Raises InputError.
    """

    def __init__(self, path: Path):
        self.path = path
        self.dialect = None  # of a .csv or .tsv
        if path.suffix not in (*SUFFIXES, ".txt"):
            raise InputError(f"{path}: the name must end in {', '.join(SUFFIXES)} or .txt")
        with reading_table(path):
            if path.suffix == ".parquet":
                self.schema = parquet.read_schema(path)
            elif path.suffix in USUAL:
                self.dialect = find_dialect(path)
                names = [name.strip(BLANKS) for name in self.dialect.open(path).schema.names]
                self.schema = pa.schema([(name, pa.string()) for name in names])
            else:
                self.schema = pa.schema([("line", pa.string())])
        names = self.schema.names
        for name in filter(None, names):
            if names.count(name) > 1:
                raise InputError(f"{path}: two columns are called {name!r}; rename one")

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order, in batches of a bounded size; of all columns, or of some.

        Raises InputError, also in the middle.
        """
        with reading_table(self.path):
            if self.dialect:
                batches = self.dialect.open(self.path, self.schema.names, columns)
            elif self.path.suffix == ".parquet":
                file = parquet.ParquetFile(self.path, buffer_size=2**20)  # else by row groups
                batches = file.iter_batches(4096, columns=columns)
            else:
                batches = read_lines(self.path)
            for batch in batches:
                batch.validate(full=True)  # text that is no UTF-8, above all
                yield batch

    def read(self) -> dict:
        """All columns by their names; those of a .jsonl are lists. Raises InputError."""
        if self.path.suffix == ".jsonl":
            lines = (line for batch in self.batches() for line in batch["line"].to_pylist())
            rows = [parse_line(line, self.path, row) for row, line in enumerate(lines, 1)]
            names = dict.fromkeys(name for row in rows for name in row)
            columns = {name.strip(BLANKS): [row.get(name) for row in rows] for name in names}
        else:
            rows = pa.Table.from_batches(self.batches(), self.schema)
            columns = dict(zip(self.schema.names, rows.columns, strict=True))
        if not len(rows):
            raise InputError(f"{self.path}: holds no rows")
        return columns

    def class_names(self, column: str) -> list[str]:
        """The names of the classes that a parquet file of the Hub tells of a column, or []."""
        try:
            told = json.loads(self.schema.metadata[b"huggingface"])
            return names_in(told["info"]["features"][column])
        except (KeyError, TypeError, ValueError, RecursionError):
            return []


def read_lines(path: Path) -> Iterator[pa.RecordBatch]:
    with io.TextIOWrapper(open_utf8(path), encoding="utf-8-sig", newline="\n") as file:
        while lines := file.readlines(2**20):
            if path.suffix == ".jsonl":
                lines = filter(str.strip, lines)
            texts = pa.array([line.rstrip("\r\n") for line in lines], pa.string())
            yield pa.record_batch({"line": texts})


def parse_line(line: str, path: Path, row: int) -> dict:
    """The JSON object in a line. Raises InputError, whatever the line holds."""
    with reading(f"{path}: row {row}"):
        return {**json.loads(line)}


def names_in(feature) -> list[str]:
    """The names of a ClassLabel, or of one in a list, in all ways in which `datasets` wrote it."""
    match feature:
        case {"names": [*names]}:
            return [*map(str, names)]
        case {"feature": inner} | [inner]:
            return names_in(inner)
    return []


def choose_columns(path: Path, existing: list[str], candidates: list[list[str]]) -> list[str]:
    """The first of the `candidates` that are all columns of a table. Raises InputError."""
    for columns in candidates:
        if set(columns) <= set(existing):
            return columns
    wanted = " or ".join(map("+".join, candidates))
    flags = "--text-columns and --label-column"
    raise InputError(f"{path}: no column {wanted} among {listing(existing)}; name yours by {flags}")


# The values of a column, which is an Arrow array or, of a .jsonl, a list.


def as_texts(column) -> list[str | None]:
    """As texts. Raises ValueError for lists and objects."""
    if isinstance(column, list):
        column = pa.array(column)
    return column.cast(pa.string()).to_pylist()


def as_labels(column) -> list:
    """As labels: texts, numbers, None; or lists of such. Raises ValueError for anything else."""
    labels = column if isinstance(column, list) else column.to_pylist()
    for label in labels:
        for part in label if isinstance(label, list) else [label]:
            if isinstance(part, list | dict):
                raise ValueError(f"expected labels, found a {type(part).__name__}")
            str(part).encode()  # which a half of a surrogate cannot be
    return [str(label).lower() if isinstance(label, bool) else label for label in labels]


def as_marks(column, where: str) -> list[bool | None]:
    """As 0 or 1, or None for an empty cell. Raises InputError for anything else."""
    marks = []
    for row, cell in enumerate(as_labels(column), 1):
        mark = None if is_missing(cell) else str(cell).lower()
        if mark not in MARKS:
            raise InputError(f"{where} has {cell!r:.40} in row {row}, expected 0 or 1")
        marks.append(MARKS[mark])
    return marks


def separated(label, separator: str) -> list[str]:
    """The labels in one that has separators between them; an empty one has none."""
    if isinstance(label, list):
        raise ValueError("the labels are lists already; leave out --label-separator")
    parts = [] if is_missing(label) else str(label).split(separator)
    return [part.strip() for part in parts if not is_blank(part)]


def is_missing(label) -> bool:
    """Whether a label is an empty cell: nothing that can be seen, a NaN, or how one is written."""
    if isinstance(label, str):
        return is_blank(label) or label.strip().lower() in ("nan", "null", "<na>")
    return label is None or label != label


@dataclass
class Rows:
    """N rows of a table."""

    source: str  # its files
    columns: list[str]  # where the texts stood
    texts: list[tuple[str, ...]] = field(default_factory=list)  # one string each, or a pair
    labels: list = field(default_factory=list)  # as they stand there; of several a text, lists
    splits: list = field(default_factory=list)  # what a column "split" says, if there is one
    numbers: Sequence[int] = ()  # of the rows, from 1
    class_names: list[str] = field(default_factory=list)  # that a parquet file of the Hub tells
    notes: list[str] = field(default_factory=list)  # on how the files were read

    @property
    def different(self) -> list:
        """The labels, in the order of their first rows."""
        return list(dict.fromkeys(self.labels))

    def select(self, chosen) -> "Rows":
        """The rows where `chosen` (N,) is true."""
        return replace(
            self,
            texts=[*compress(self.texts, chosen)],
            labels=[*compress(self.labels, chosen)],
            splits=[*compress(self.splits, chosen)],
            numbers=[*compress(self.numbers, chosen)],
        )

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
    if label_columns and (separator or label_column != "label"):
        raise InputError("--label-columns go without --label-column and --label-separator")
    labelled = [*label_columns] or [label_column]
    rows = Rows(source=listing([*map(str, paths)]), columns=columns)
    for path in paths:
        table = Table(path)
        found = table.read()
        columns = choose_columns(path, [*found], [columns] if columns else glue.TEXT_COLUMNS)
        choose_columns(path, [*found], [labelled])
        if len(columns) > 2 or len({*columns, *labelled}) < len(columns) + len(labelled):
            flags = f"--text-columns {','.join(columns)} --label-column {','.join(labelled)}"
            raise InputError(f"{flags}: name one or two columns of texts, and others of labels")
        with reading(path):
            texts = [as_texts(found[name]) for name in columns]
            if label_columns:
                marks = [as_marks(found[name], f"{path}: the column {name}") for name in labelled]
                marks = zip(*marks, strict=True)
                labels = [None if None in row else [*compress(labelled, row)] for row in marks]
            else:
                labels = as_labels(found[label_column])
            if separator:
                labels = [separated(label, separator) for label in labels]
            if "split" in found.keys() - {*columns, *labelled}:
                rows.splits += as_labels(found["split"])
        names = table.class_names(label_column)
        if names != rows.class_names and rows.texts:
            raise InputError(f"{rows.source}: the parts have different classes")
        rows.class_names = names
        rows.columns = columns
        rows.texts += zip(*texts, strict=True)
        rows.labels += labels
        if table.dialect:
            rows.notes += table.dialect.notes(path)
    if len(rows.splits) not in (0, len(rows.texts)):
        raise InputError(f"{rows.source}: some have a column split, and some have none")
    rows.numbers = range(1, len(rows.texts) + 1)
    return rows
