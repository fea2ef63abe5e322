"""Labels: from what stands in a table to classes, or to the numbers of a regression; holding out.

What is checked saves a user from a silent mistake. Which classes there are is decided once, on
the training split.
"""

import unicodedata
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NoReturn

import numpy as np
from tokenizers import Tokenizer

from support.errors import InputError, listing, reading
from support.tables import Rows

MISSING = {"na", "n/a", "nan", "nil", "none", "null", "?", "-", "--", ".", -1}
UNLABELLED = "(GLUE marks rows without a label by -1)"
Label = int | float | str


def read_labels(rows: Rows) -> list[Label]:
    """The labels (N,) of the rows. Raises InputError for a row without one."""
    with reading(rows.path):  # a list, for one, is no label
        different = dict.fromkeys(rows.labels)
    forms: dict = {value: as_label(value) for value in different}
    labels = [forms[value] for value in rows.labels]
    if None in labels:
        raise InputError(f"{rows.place(labels.index(None))} has no label; remove the row")
    return labels


def as_label(value) -> Label | None:
    """A value of a table: 1.0 is 1, and True is "true"; None where there is no label."""
    if value is None or value != value or not str(value).strip():
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (int, float)):
        return value
    return str(value)


def parse_number(label: Label) -> float | None:
    """The number that a label is; None of a name, of infinity, and of 1_000, which Python reads."""
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= 1e15 and "_" not in str(label) else None


def canonical(label: Label) -> int | str:
    """The label, as a whole number if it is one, written as 1, +1 or 1.0."""
    number = parse_number(label)
    if number is None or number != int(number):
        return str(label)
    return int(number)


def visible_form(label: Label) -> int | str:
    """What a reader sees: one case, one width, one kind of space, and no marks without width."""
    text = unicodedata.normalize("NFKC", str(label))
    words = text.casefold().split()
    text = "".join(c for c in " ".join(words) if c.isprintable())
    return canonical(text)


def refuse(rows: Rows, label: Label, why: str) -> NoReturn:
    """Raises InputError that names the first row with the label."""
    row = read_labels(rows).index(label)
    raise InputError(f"{rows.place(row)} has the label {label!r:.40}, {why}")


class ClassLabels:
    """The classes 0, 1, …, decided on the training split.

    Their `names` are those that the user gives, or the file tells, or the task usually has; or
    else those that stand there, or LABEL_0, LABEL_1, … if what stands there are numbers. Raises
    InputError where it is not clear what is meant.
    """

    def __init__(self, train: Rows, names: list[str], usual_names: list[str]):
        self.train = train
        self.are_given = bool(names)
        labels = list(dict.fromkeys(read_labels(train)))  # the different ones
        keys = {canonical(label) for label in labels}
        if len(keys) < 2:
            refuse(train, labels[0], "as all others; there is nothing to learn")
        if not names:
            refuse_unlikely(train, labels)
            names = train.class_names or usual_names or found_names(train, labels)
        self.names = names
        self.numbers: dict[int | str, int] = {}
        for number, name in enumerate(names):
            self.numbers[canonical(name)] = number
        if len(self.numbers) < len(names) or "" in map(str.strip, names):
            raise InputError(f"the classes {listing(names)}: each needs a name of its own")
        # Numbers are indices of the names that a file tells, also of names such as "2".
        are_indices = train.class_names and not self.are_given
        if are_indices or not keys <= self.numbers.keys():
            self.numbers = {number: number for number in range(len(names))}

    def read(self, rows: Rows) -> np.ndarray:
        """The classes (N,) of the rows, int64. Raises InputError for a label that is none."""
        if rows.class_names not in ([], self.names) and not self.are_given:
            theirs = listing(rows.class_names)
            ours = listing(self.names)
            raise InputError(f"{rows.path}: names the classes {theirs}, the training split {ours}")
        labels = read_labels(rows)
        classes = {}
        for label in dict.fromkeys(labels):
            classes[label] = self.numbers.get(canonical(label))
            if classes[label] is None:
                refuse(rows, label, self.expected(rows))
        return np.array([classes[label] for label in labels], dtype=np.int64)

    def expected(self, rows: Rows) -> str:
        names = listing([str(name) for name in self.numbers])
        found = {str(label) for label in read_labels(rows)}
        expected = f"expected one of {names}"
        if "-1" in found:
            return f"{expected} {UNLABELLED}"
        if rows is not self.train:
            return f"{expected}, as in the training split"
        if len(found) > 10:
            return expected
        return f"{expected}; --label-names={','.join(sorted(found))} takes these as names"

    def check_held_out(self, kept: np.ndarray, held: np.ndarray, path: Path) -> None:
        """Raises InputError if a class has been held out whole."""
        missing = np.setdiff1d(held, kept)
        if len(missing):
            rare = f"the few rows of the class {self.names[missing[0]]!r:.40} are all held out"
            raise InputError(f"{path}: {rare}; add rows of it, or drop it")


def refuse_unlikely(train: Rows, labels: list[Label]) -> None:
    """Raises InputError for labels that may be quantities, or stand in another column."""
    fractions = [label for label in labels if isinstance(canonical(label), str)]
    if fractions and None not in map(parse_number, labels):
        regression = "--metric pearson trains a regression on such numbers"
        names = "--label-names takes them as names"
        refuse(train, fractions[0], f"a number that is not whole: {regression}, {names}")
    count = len(train.labels)
    if len(labels) > max(20, count / 2):
        many = f"{len(labels)} different labels in {count} rows"
        raise InputError(f"{train.path}: {many}; is that their column?")


def found_names(train: Rows, labels: list[Label]) -> list[str]:
    """The labels as names, or LABEL_0, LABEL_1, … if they are numbers.

    Raises InputError for names that look the same, and for a word that says that there is none.
    """
    keys = {canonical(label) for label in labels}
    numbers = {key for key in keys if isinstance(key, int)}
    if numbers == keys:
        return [f"LABEL_{number}" for number in range(len(keys))]
    outright = "or name the classes outright by --label-names"
    forms = {}
    for label in labels:
        form = visible_form(label)
        other = forms.setdefault(form, label)
        if other != label:
            refuse(train, label, f"others {other!r:.40}; make them the same, {outright}")
        if numbers and form in MISSING:
            refuse(train, label, f"among others; remove the row, {outright}")
    return sorted(map(str, labels))


class NumberLabels:
    """The numbers of a regression, from `low` to `high`."""

    def __init__(self, low: float, high: float):
        self.low = low
        self.high = high

    def read(self, rows: Rows) -> np.ndarray:
        """The numbers (N,) of the rows, float32. Raises InputError for a label that is none."""
        if rows.class_names:
            names = listing(rows.class_names)
            raise InputError(f"{rows.path}: names the classes {names}; a regression is on numbers")
        labels = read_labels(rows)
        numbers = []
        for label in labels:
            number = parse_number(label)
            if number is None:
                refuse(rows, label, "expected a number, as of any regression")
            if not self.low <= number <= self.high:
                limits = f"expected one from {self.low:g} to {self.high:g}, as of STS-B"
                hint = UNLABELLED if number == -1 else ""
                refuse(rows, label, f"{limits} {hint}; --metric pearson takes any number")
            numbers.append(number)
        if len(set(numbers)) < 2:
            refuse(rows, labels[0], "as all others; nothing can be compared")
        return np.array(numbers, dtype=np.float32)

    def check_held_out(self, kept: np.ndarray, held: np.ndarray, path: Path) -> None:
        """Raises InputError if one of the two parts has the same label everywhere."""
        if np.ptp(kept) == 0 or np.ptp(held) == 0:
            problem = "all rows held out, or all others, have the same label"
            raise InputError(f"{path}: {problem}; add rows with others")


def hold_out(split, tokenizer: Tokenizer | None, path: Path) -> tuple:
    """A split (data.Split) as one to train on and one to validate on.

    A tenth of the different texts is held out, always the same ones; no text stands on both
    sides. With a tokenizer texts of the same tokens count as one, as a model sees no more of them:
    no upper case, no spaces, nothing that is cut off.
    """
    keys = token_keys(split.texts, tokenizer) if tokenizer else split.texts
    different = list(dict.fromkeys(keys))
    if len(different) < 2:
        raise InputError(f"{path}: needs two different texts at least, one of them to validate on")
    order = np.random.default_rng(0).permutation(len(different))
    chosen = order[: len(different) // 10 or 1]
    held = {different[number] for number in chosen}
    is_held = np.array([key in held for key in keys])  # (N,)
    parts = []
    for mask in ~is_held, is_held:
        texts = list(compress(split.texts, mask))
        parts.append(replace(split, texts=texts, labels=split.labels[mask]))
    return tuple(parts)


def token_keys(texts: list[tuple[str, ...]], tokenizer: Tokenizer) -> list[bytes]:
    """The tokens of each text, as bytes."""
    keys = []
    for start in range(0, len(texts), 4096):  # in pieces: encodings are large
        piece = texts[start : start + 4096]
        if len(piece[0]) == 1:
            piece = [text for (text,) in piece]
        for encoding in tokenizer.encode_batch_fast(piece):
            ids = np.array(encoding.ids, dtype=np.int32)
            keys.append(ids.tobytes())
    return keys
