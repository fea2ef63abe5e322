"""Tables: parquet, csv, tsv and jsonl to texts and numbered labels; holding out.

pyarrow reads; what is checked here is that every row has a text and a label that mean something. Which labels there
are is decided once, on the training split: a label of the validation split that is none of them is an error. The
labels of a regression are numbers that stand for themselves.
"""

import bisect
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from support.files import InputError, first_line, listing, misread
from support.hub import find_file

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
MISSING = {
    "na",
    "n/a",
    "nan",
    "nil",
    "none",
    "null",
    "?",
    "-",
    "--",
    ".",
}  # what programs write where there is nothing

Place = Callable[[int], str]  # where the row of a number stands, from 0: "train.csv: row 8"


@dataclass
class Classes:
    """The names of the classes 0, 1, …, and whether a table tells a class by its name; if not, by its number."""

    names: list[str]
    by_name: bool

    def number(self, label: str) -> int | None:
        """The class that a label means, or None. Of names that are whole numbers 1, 01 and 1.0 are the same."""
        if self.by_name:
            return next(
                (number for number, name in enumerate(self.names) if same(name) == same(label)),
                None,
            )
        return (
            number
            if (number := whole(label)) is not None and 0 <= number < len(self.names)
            else None
        )


@dataclass
class Split:
    """Rows of a table: `texts` holds one Arrow column, or two for pairs; `labels` (N,) are classes, int64, or the
    numbers of a regression, float32."""

    texts: list
    labels: np.ndarray
    classes: Classes
    columns: list[str]  # where the texts stood


# Which files.


def find_split(data: str, split: str, required: bool = True) -> list[Path]:
    """The files of the split "train" or "validation" of a directory, or of the Hub's owner/name/folder[@revision].

    Of MNLI's two validation splits "validation" is the matched one; the other is "validation_mismatched". Where there
    is none, InputError is raised, or [] returned if none is `required`.
    """
    path, name = Path(data), data.partition("@")[0].rstrip("/")
    if path.is_dir():
        pattern = rf"{split}(_matched)?(-\d+-of-\d+)?\.(parquet|csv|tsv|jsonl)"
        files = sorted(file for file in path.iterdir() if re.fullmatch(pattern, file.name))
        called = lambda file: file.name.lower().replace("-", "_").split(".")[0]
        odd = [file for file in path.iterdir() if called(file) == split and file not in files]
        refuse_other_files(files + odd)
        if odd and not files:
            raise InputError(
                f"{odd[0]}: not read, as its name is none of {split}.csv, {split}.parquet and the like"
            )
    elif path.suffix in SUFFIXES or name.count("/") < 1:
        raise InputError(
            f"{data}: no such file or directory, and no Hub data set (owner/name/folder)"
        )
    else:
        owner, repository, *folder = name.split("/")
        source = data.replace(name, f"{owner}/{repository}", 1)  # the revision stays
        splits = (split, f"{split}_matched") if required else (split,)
        names = ("/".join([*folder, f"{s}-00000-of-00001.parquet"]) for s in splits)
        found = (find_file(source, name, "dataset", required=False) for name in names)
        files = list(
            islice(filter(None, found), 1)
        )  # the second is not looked for where there is the first
    if required and not files:
        raise InputError(
            f"{data}: no {split} file there, such as {split}-00000-of-00001.parquet or {split}.csv"
        )
    return files


def refuse_other_files(files: list[Path]) -> None:
    """Raises InputError unless the files of a split are one file, or all the parts of one."""
    for file in files[1:]:
        kinds = [re.sub(r"-\d+-of-", "-of-", name) for name in (files[0].name, file.name)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"{file}: beside {files[0].name}, and only one of them can be meant; move the other away"
            )
    for file in files:
        if counted := re.search(r"-(\d+)-of-(\d+)\.", file.name):
            digits, parts = len(counted[1]), int(counted[2])
            wanted = (
                file.name.replace(counted[0], f"-{n:0{digits}}-of-{counted[2]}.")
                for n in range(parts)
            )
            lacking = next((name for name in wanted if not file.with_name(name).is_file()), None)
            if lacking or len(files) != parts:
                raise InputError(
                    f"{file}: one of {parts} parts, of which {lacking or 'another number'} is missing"
                )


# Reading them.


def csv_options(path: Path) -> dict:
    """How Arrow is to take a .csv or a .tsv apart. In .tsv quotes are plain text, as in GLUE's."""
    from pyarrow import csv

    separator, quote = ("\t", False) if path.suffix == ".tsv" else (",", '"')
    return {
        "parse_options": csv.ParseOptions(
            delimiter=separator, quote_char=quote, newlines_in_values=bool(quote)
        )
    }


BLOCK = 2**20  # bytes of a .csv that Arrow reads at once, unless it is told otherwise


def too_long(error: Exception, block: int) -> str:
    """What Arrow's error says of a row of a .csv that is longer than a block; of any other error ""."""
    long = f"a row is longer than {block >> 20} MiB, or a quotation mark is not closed"
    return long if "straddling" in str(error) else ""


def read_table(paths: list[Path]) -> tuple:
    """One Arrow table out of files of one kind, and a function that says where the row of a number stands."""
    import pyarrow  # late: sample.py reads no tables, and Arrow takes a while to import
    from pyarrow import csv, json, parquet

    pyarrow.set_memory_pool(
        pyarrow.system_memory_pool()
    )  # Arrow's own keeps what it has freed; here tensors reuse it

    def read(path: Path):
        if path.suffix == ".parquet":
            return parquet.ParquetFile(path).read()
        if path.suffix == ".jsonl":
            return json.read_json(path)
        with csv.open_csv(
            path, **csv_options(path)
        ) as file:  # every column stays text: "007" is no number
            types = dict.fromkeys(file.schema.names, pyarrow.string())
        return csv.read_csv(
            path, **csv_options(path), convert_options=csv.ConvertOptions(column_types=types)
        )

    tables, ends = [], []
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path}: the name must end in {', '.join(SUFFIXES)}")
        try:
            tables.append(read(path))
            tables[-1].validate(full=True)  # text that is no UTF-8, above all
            if features(tables[-1].schema) != features(tables[0].schema):
                raise InputError(
                    f"{path}: tells of other columns or classes than {paths[0].name}; they do not fit"
                )
            tables = [pyarrow.concat_tables(tables)]
            ends.append(tables[0].num_rows)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            what = too_long(error, BLOCK) or first_line(error)
            raise misread(error, f"{path}: cannot be read as {path.suffix[1:]} ({what})") from None

    def place(row: int) -> str:
        part = bisect.bisect_right(ends, row)
        return f"{paths[part]}: row {row - [0, *ends][part] + 1}"

    return tables[0], place


def refuse_unless_once(where: Path, column: str, there: list[str], flags: str) -> None:
    """Raises InputError unless there is just one column of that name."""
    if (count := there.count(column)) > 1:
        raise InputError(f"{where}: {count} columns {column!r}; rename one of them")
    if count == 0:
        raise InputError(
            f"{where}: no column {column!r} among {listing(there)}; say which to read with {flags}"
        )


def read_split(
    paths: list[Path],
    candidates: list[list[str]],
    label_column: str = "label",
    names: list[str] = (),
    usual: list[str] = (),
    bounds: tuple[float, float] | None = None,
    train: Split | None = None,
) -> Split:
    """The files of one split as texts and labels; an InputError says which column or row cannot be used.

    The columns of the texts are the first of the `candidates` that are all there. The names of the classes are
    `names`, or those that the file itself tells, or the `usual` ones, or what is found. Of a validation split columns
    and classes are those of the split `train`. With `bounds` the labels are numbers between them, of a regression, and
    there is one "class", LABEL_0, as in transformers.
    """
    candidates, trained = ([train.columns], train.classes) if train else (candidates, None)
    if len(candidates[0]) > 2:
        raise InputError(
            f"--text-columns {','.join(candidates[0])}: give one column, or the two of a pair"
        )
    (table, place), where = read_table(paths), paths[0]
    there = table.column_names
    columns = next((wanted for wanted in candidates if set(wanted) <= set(there)), None)
    columns = columns or (candidates[0] if len({*map(len, candidates)}) == 1 else ["sentence"])
    if len({*columns, label_column}) <= len(columns):
        raise InputError(
            f"{where}: {', '.join(columns)} and {label_column} must be different columns"
        )
    for column in [*columns, label_column]:
        refuse_unless_once(where, column, there, "--text-columns and --label-column")
    if not table.num_rows:
        raise InputError(f"{where}: holds no rows")
    for column in columns:
        if str(table[column].type) not in ("string", "large_string"):
            raise InputError(
                f"{where}: the column {column!r} is {table[column].type}, expected text"
            )
        for row, text in enumerate(table[column].to_pylist()):
            if not text or text.isspace():
                raise InputError(f"{place(row)} has no text in {column!r}; remove the row")
    labels, told = table[label_column].to_pylist(), names_in_schema(table.schema, label_column)
    if bounds:
        if names or told:
            problem = f"the classes are {listing(names or told)}, but a regression is on numbers"
            raise InputError(f"{where}: {problem}; leave out --label-names, or --metric")
        numbers = as_numbers(labels, place, *bounds)
        return Split(
            [table[column] for column in columns],
            numbers,
            Classes(["LABEL_0"], by_name=False),
            columns,
        )
    labels = as_text(labels, place)
    if trained and told and not names and told != trained.names:
        raise InputError(
            f"{where}: names the classes {listing(told)}, but the training split {listing(trained.names)}"
        )
    if not (trained or names or told):
        refuse_fractions(labels, place)
    if not (trained or names) and len(set(labels)) > max(20, len(labels) / 2):
        raise InputError(
            f"{where}: {len(set(labels))} different labels in {len(labels)} rows; is that their column?"
        )
    indices = (
        bool(told) and not names and str(table[label_column].type) in INTEGERS
    )  # of the names that it tells
    classes = trained or find_classes(labels, names or told or usual, indices, place)
    numbers = numbered(labels, classes, place, trained is not None)
    if not trained and len(set(labels)) < 2:
        raise InputError(f"{where}: every row has the same label; there is nothing to learn")
    return Split([table[column] for column in columns], numbers, classes, columns)


def features(schema) -> dict:
    """What a parquet file of the Hub's tells of its columns; of any other {}."""
    try:
        told = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return told if isinstance(told, dict) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def names_in_schema(schema, column: str) -> list[str]:
    """The names of the classes where a parquet file tells them, or []."""
    told = features(schema).get(column)
    names = told.get("names") if isinstance(told, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


# Labels.


def as_text(labels: list, place: Place) -> list[str]:
    """Labels as one kind of value, whatever the file: 1, 1.0 and "1" are "1", True is "true", a name is itself."""
    result = []
    for row, label in enumerate(labels):
        if label is None or label != label or (isinstance(label, str) and not label.strip()):
            raise InputError(f"{place(row)} has no label; remove the row")
        if isinstance(label, bool):
            label = str(label).lower()
        elif isinstance(label, float) and label.is_integer():
            label = int(label)
        if not isinstance(label, (int, str)) or (isinstance(label, int) and abs(label) > 10**15):
            hint = (
                "; --metric pearson trains a regression on such numbers"
                if isinstance(label, float)
                else ""
            )
            raise InputError(
                f"{place(row)} has the label {label!r:.40}, expected a whole number or a name{hint}"
            )
        result.append(str(label))
    return result


NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"


def as_numbers(labels: list, place: Place, low: float, high: float) -> np.ndarray:
    """The labels (N,) of a regression, in float32. Raises InputError for the first that is no number from `low` to
    `high`, and where all are the same, so that nothing could be learnt and no correlation is defined."""
    hint = " (GLUE marks rows without a label by -1)"
    result = np.empty(len(labels), dtype=np.float32)
    for row, label in enumerate(labels):
        number = label.strip() if isinstance(label, str) else label
        if isinstance(number, str) and re.fullmatch(NUMBER, number, re.ASCII | re.IGNORECASE):
            number = float(number)
        if type(number) not in (int, float) or not abs(number) <= 1e15:  # NaN is not
            raise InputError(
                f"{place(row)} has the label {label!r:.40}, expected a number, as of any regression"
            )
        if not low <= number <= high:
            told = f"{place(row)} has the label {number:g}, expected one from {low:g} to {high:g}, as of STS-B"
            raise InputError(
                f"{told}{hint if number == -1 else ''}; --metric pearson takes any number"
            )
        result[row] = number
    if np.ptp(result) == 0:
        told = f"{place(0)} and every other has the label {result[0]:g}; nothing can be compared"
        raise InputError(told + (hint if result[0] == -1 else ""))
    return result


def refuse_fractions(labels: list[str], place: Place) -> None:
    """Raises InputError where the labels of a training split are numbers, and not all whole: they may be meant as the
    names of classes (versions: 1.0, 1.1) or as quantities (scores: 4.2), which only the user knows."""
    if all(re.fullmatch(NUMBER, label, re.ASCII | re.IGNORECASE) for label in labels):
        for row, label in enumerate(labels):
            if not float(label).is_integer():
                names = f"={','.join(sorted(set(labels)))}" if len(set(labels)) <= 10 else ""
                ways = f"--metric pearson trains a regression on such numbers, --label-names{names} takes them as names"
                raise InputError(
                    f"{place(row)} has the label {label}, a number that is not whole: {ways}"
                )


def whole(label: str) -> int | None:
    """The whole number that a label is, written as 1, +1 or 1.0; or None."""
    return int(float(label)) if re.fullmatch(r"[-+]?\d{1,15}(\.0*)?", label, re.ASCII) else None


def same(label: str) -> str:
    """The label, in one spelling if it is a whole number."""
    return label if (number := whole(label)) is None else str(number)


def seen(label: str) -> str:
    """What a reader sees of a label: without marks of no width, in one case, one width and one kind of space."""
    text = unicodedata.normalize("NFKC", label).casefold()
    text = "".join(
        c
        for c in text
        if unicodedata.category(c) not in ("Cf", "Cc") and not "\ufe00" <= c <= "\ufe0f"
    )
    return same(" ".join(text.strip("'\"").split()))


def find_classes(labels: list[str], names: list[str], indices: bool, place: Place) -> Classes:
    """The classes of a training split: the given `names`, or else numbers from 0, or else the names that are found.

    Where labels are `indices` of the names, they are no names, though they look like some.
    """
    first = {label: row for row, label in reversed([*enumerate(labels)])}  # the first row of each
    if names:
        if len({same(name) for name in names}) < len(names) or not all(
            name.strip() for name in names
        ):
            raise InputError(
                f"the classes {', '.join(names):.80}: each needs a name of its own (--label-names)"
            )
        return Classes(
            list(names), by_name=not indices and {*map(same, first)} <= {*map(same, names)}
        )
    numbers = {whole(label) for label in first}
    if None not in numbers:
        return Classes(
            [f"LABEL_{number}" for number in range(len(numbers))], by_name=False
        )  # so that a gap shows
    outright = "or name the classes outright with --label-names"
    alike = {}
    for label, row in sorted(first.items(), key=lambda item: item[1]):
        text = seen(label)
        if label != text and whole(text) is not None and whole(label) is None:
            raise InputError(
                f"{place(row)} has the label {label!a:.40}, a number with spaces or marks; remove them"
            )
        if (text in MISSING and numbers != {None}) or text == "-1":
            raise InputError(
                f"{place(row)} has the label {label!r:.40} among others; remove the row, {outright}"
            )
        if (other := alike.setdefault(text, label)) != label:
            raise InputError(
                f"{place(row)} has the label {label!r:.40}, others {other!r:.40}; make them the same, {outright}"
            )
    return Classes(sorted(first), by_name=True)


def numbered(labels: list[str], classes: Classes, place: Place, is_trained: bool) -> np.ndarray:
    """The classes (N,) of the labels. Raises InputError for the first row that has none of them."""
    numbers = {label: classes.number(label) for label in set(labels)}
    for row, label in enumerate(labels):
        if numbers[label] is None:
            expected = (
                f"one of {listing(classes.names)}"
                if classes.by_name
                else f"0 to {len(classes.names) - 1}"
            )
            hint = (
                ", as in the training split"
                if is_trained
                else " without a gap"
                if not classes.by_name
                else ""
            )
            if label == "-1":
                hint += " (GLUE marks rows without a label by -1)"
            elif not is_trained and len(numbers) <= 10:
                hint += f"; to take all that are there as names: --label-names={','.join(sorted(numbers))}"
            shown = label if whole(label) is not None else f"{label!r:.40}"
            raise InputError(f"{place(row)} has the label {shown}, expected {expected}{hint}")
    return np.array([numbers[label] for label in labels], dtype=np.int64)


# Holding out.


def hold_out(split: Split, tokenizer: Tokenizer | None, where: str) -> tuple[Split, Split]:
    """Training and validation: a tenth of the distinct texts, always the same ones; no text stands on both sides.

    With a tokenizer texts are the same if their tokens are, which is all that a model sees of them: upper and lower
    case, spaces, and what is cut off make no difference then.
    """
    keys = list(zip(*(column.to_pylist() for column in split.texts), strict=True))
    for start in range(0, len(keys) if tokenizer else 0, 4096):  # in pieces, as encodings are large
        texts = keys[start : start + 4096]
        encodings = tokenizer.encode_batch_fast(
            texts if len(split.texts) == 2 else [text for (text,) in texts]
        )
        keys[start : start + 4096] = [
            np.array(encoding.ids, dtype=np.int32).tobytes() for encoding in encodings
        ]
    distinct = list(dict.fromkeys(keys))
    chosen = np.random.default_rng(0).permutation(len(distinct))[: len(distinct) // 10 or 1]
    held = {distinct[i] for i in chosen}
    side = np.array([key in held for key in keys])
    if side.all():
        raise InputError(f"{where}: needs two different texts at least, one of them to validate on")
    if split.labels.dtype == np.float32:
        for rows, what in (~side, "left to train on"), (side, "held out"):
            if np.ptp(split.labels[rows]) == 0:
                raise InputError(
                    f"{where}: all the rows {what} have the same label; add rows with others"
                )
    elif missing := {*split.labels.tolist()} - {*split.labels[~side].tolist()}:
        name = split.classes.names[missing.pop()]
        raise InputError(
            f"{where}: the few rows of the class {name!r:.40} are all held out; add rows of it, or drop it"
        )
    part = lambda mask: replace(
        split, texts=[c.filter(mask) for c in split.texts], labels=split.labels[mask]
    )
    return part(~side), part(side)
