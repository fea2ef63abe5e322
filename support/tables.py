"""Tables: parquet, csv, tsv and jsonl to texts and numbered labels; holding out.

pyarrow reads; what is checked here is that every row has a text and a label that mean something.
"""

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from support.files import InputError, first_line, listing
from support.hub import find_file

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")


@dataclass
class Split:
    """Rows of a table: `texts` holds one Arrow column, or two for pairs; `labels` (N,) index `label_names`."""

    texts: list
    labels: np.ndarray
    label_names: list[str]


def find_split(data: str, split: str) -> list[Path]:
    """The files of the split "train" or "validation" of a directory, or of the Hub's owner/name/folder[@revision]."""
    path, name = Path(data), data.partition("@")[0].rstrip("/")
    if path.is_dir():
        pattern = rf"{split}(_matched)?(-\d+-of-\d+)?\.(parquet|csv|tsv|jsonl)"
        files = sorted(file for file in path.iterdir() if re.fullmatch(pattern, file.name))
    elif path.suffix in SUFFIXES or name.count("/") < 1:
        raise InputError(f"{data}: no such file or directory, and no Hub data set (owner/name/folder)")
    else:
        owner, repository, *folder = name.split("/")
        source = data.replace(name, f"{owner}/{repository}", 1)  # the revision stays
        names = ("/".join([*folder, f"{s}-00000-of-00001.parquet"]) for s in (split, f"{split}_matched"))
        found = (find_file(source, name, "dataset", required=False) for name in names)
        files = list(islice(filter(None, found), 1))  # the second is not looked for where there is the first
    if not files:
        raise InputError(f"{data}: no {split} file there, such as {split}-00000-of-00001.parquet or {split}.csv")
    return files


def read_table(paths: list[Path]):
    """One Arrow table out of files of one kind. In .tsv quotes are plain text, as in GLUE's."""
    import pyarrow  # late: sample.py reads no tables, and Arrow takes a while to import
    from pyarrow import csv, json, parquet

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # Arrow's own keeps what it has freed; here tensors reuse it

    def read(path: Path):
        if path.suffix == ".parquet":
            return parquet.ParquetFile(path).read()
        if path.suffix == ".jsonl":
            return json.read_json(path)
        separator, quote = ("\t", False) if path.suffix == ".tsv" else (",", '"')
        how = csv.ParseOptions(delimiter=separator, quote_char=quote, newlines_in_values=bool(quote))
        with csv.open_csv(path, parse_options=how) as file:  # every column stays text: "007" is no number
            types = dict.fromkeys(file.schema.names, pyarrow.string())
        return csv.read_csv(path, parse_options=how, convert_options=csv.ConvertOptions(column_types=types))

    if paths[0].suffix not in SUFFIXES:
        raise InputError(f"{paths[0]}: the name must end in {', '.join(SUFFIXES)}")
    try:
        table = pyarrow.concat_tables(read(path) for path in paths)
        table.validate(full=True)  # text that is no UTF-8, above all
        return table
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{paths[0]}: cannot be read as {paths[0].suffix[1:]} ({first_line(error)})") from None


def read_split(paths: list[Path], candidates: list[list[str]], label_column: str, label_names: list[str]) -> Split:
    """The files of one split as texts and labels; an InputError says which column or row cannot be used.

    The columns of the texts are the first of the `candidates` that are all there.
    """
    table, where = read_table(paths), paths[0]
    there = table.column_names
    columns = next((names for names in candidates if set(names) <= set(there)), None)
    columns = columns or (candidates[0] if len(candidates) == 1 else ["sentence"])
    for name in [*columns, label_column]:
        if there.count(name) != 1:
            hint = "say which to read with --text-columns and --label-column"
            raise InputError(f"{where}: no column {name!r} among {listing(there)}; {hint}")
    if not table.num_rows:
        raise InputError(f"{where}: holds no rows")
    for name in columns:
        if str(table[name].type) not in ("string", "large_string"):
            raise InputError(f"{where}: the column {name!r} is {table[name].type}, expected text")
        for row, text in enumerate(table[name].to_pylist(), 1):
            if not text or text.isspace():
                raise InputError(f"{where}: row {row} has no text in {name!r}; remove the row")
    labels, label_names = number_labels(table[label_column].to_pylist(), label_names, where)
    return Split([table[name] for name in columns], labels, label_names)


def number_labels(labels: list, label_names: list[str], where: Path) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers from 0, and the names of the classes: `label_names`, or where that is empty, what is found."""
    if all(isinstance(label, str) for label in labels):
        if all(re.fullmatch(r"[-+.\d]{1,20}", label) for label in labels):  # numbers, in a file that knows only text
            labels = [int(label) if re.fullmatch(r"-?\d+", label) else label for label in labels]
        else:
            label_names = label_names or sorted(set(labels))
            numbers = {name: number for number, name in enumerate(label_names)}
            labels = [numbers.get(label, label) for label in labels]
    if not label_names and all(type(label) is int for label in labels):
        label_names = [f"LABEL_{number}" for number in range(len(set(labels)))]  # so that a gap shows below
    for row, label in enumerate(labels, 1):
        if type(label) is not int or not 0 <= label < len(label_names):
            names = f"one of {listing(label_names)}" if label_names else "a name"
            raise InputError(
                f"{where}: row {row} has the label {label!r:.40}, expected 0 to n-1 without a gap, or {names}"
            )
    if len(label_names) < 2:
        raise InputError(f"{where}: every row has the same label; there is nothing to learn")
    return np.array(labels, dtype=np.int64), label_names


def hold_out(split: Split, where: str) -> tuple[Split, Split]:
    """Training and validation: a tenth of the distinct texts, always the same ones; no text stands on both sides."""
    keys = list(zip(*(column.to_pylist() for column in split.texts), strict=True))
    distinct = list(dict.fromkeys(keys))
    chosen = np.random.default_rng(0).permutation(len(distinct))[: len(distinct) // 10 or 1]
    held = {distinct[i] for i in chosen}
    side = np.array([key in held for key in keys])
    if side.all():
        raise InputError(f"{where}: needs two different texts at least, one of them to validate on")
    part = lambda mask: Split([column.filter(mask) for column in split.texts], split.labels[mask], split.label_names)
    return part(~side), part(side)
