"""Labels: from what stands in a table to classes, or to the numbers of a regression."""

import math
import shlex
import unicodedata
from dataclasses import replace

import numpy as np

from support.errors import InputError, listing
from support.tables import Rows
from support.tasks import unnamed

MISSING = {"na", "n/a", "nan", "nil", "none", "null", "?", "-", "--", ".", "-1"}


def parse_number(label) -> float:
    """The number that a label is, or NaN."""
    text = str(label)
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def canonical(label) -> int | str:
    """The label, as a whole number if it is one, written as 1, +1 or 1.0; and "" for none."""
    if label is None or label != label:
        return ""
    number = parse_number(label)
    if number % 1 == 0 and abs(number) < 2**53:
        return int(number)
    return str(label)


def refusal(rows: Rows, label, why: str) -> InputError:
    """An error that names the first row with the label."""
    row = rows.numbers[rows.labels.index(label)]
    return InputError(f"{rows.source}: row {row} has the label {label!r:.40}, {why}")


class ClassLabels:
    """The classes 0, 1, …, decided on the training split.

    Their `names` are those that are given, or told by the file, or usual, or else found there.
    """

    def __init__(self, train: Rows, given: list[str], usual: list[str]):
        labels = {canonical(label): label for label in train.different}
        if not labels:
            raise InputError(f"{train.source}: no row has a label")
        if len(labels) == 1:
            raise refusal(train, train.labels[0], "as all others; there is nothing to learn")
        self.given = given
        self.names = given or train.class_names or usual or found_names(train, labels)
        self.numbers = {canonical(name): number for number, name in enumerate(self.names)}
        if len(self.numbers) < len(self.names):
            raise InputError(f"the classes {listing(self.names)}: each needs a name of its own")
        # Numbers are indices of the names that a file tells, also of names such as "2".
        are_indices = train.class_names and not given
        if are_indices or not labels.keys() <= self.numbers.keys():
            self.numbers = {number: number for number in range(len(self.names))}

    def read(self, rows: Rows) -> np.ndarray:
        """The classes (N,) of the rows, int64. Raises InputError for a label that is none."""
        if rows.class_names not in ([], self.names) and not self.given:
            names = listing(rows.class_names)
            raise InputError(f"{rows.source}: names the classes {names}, the training split others")
        classes = {}
        for label in rows.different:
            classes[label] = self.numbers.get(canonical(label))
            if classes[label] is None:
                names = listing([*map(str, self.numbers)])
                hint = "--label-names says which classes there are"
                raise refusal(rows, label, f"expected one of {names}; {hint}")
        return np.array([classes[label] for label in rows.labels])

    def groups(self, labels: np.ndarray) -> list[list[int]]:
        """The classes of each row, of which a part is held out."""
        return labels[:, None].tolist()

    def check_held_out(self, kept: np.ndarray, held: np.ndarray) -> None:
        """Raises InputError if a class has been held out whole."""
        missing = np.setdiff1d(held, kept)
        if len(missing):
            raise held_out_whole(self.names[missing[0]])


def held_out_whole(name: str) -> InputError:
    return InputError(f"the few rows of the class {name!r:.40} are all held out; add some")


class LabelSets:
    """Any of the classes for each row: 0 or 1 of each, as a reader of classes has them."""

    def __init__(self, classes: "ClassLabels | KnownClasses"):
        self.classes = classes
        self.names = classes.names

    def read(self, rows: Rows) -> np.ndarray:
        """Which classes the rows have (N, C), float32. Raises InputError for a label of none."""
        marks = np.zeros((len(rows.labels), len(self.names)), dtype=np.float32)  # (N, C)
        each = each_label(rows)
        if each.labels:
            sizes = [len(labels) for labels in rows.labels]
            marks[np.repeat(np.arange(len(sizes)), sizes), self.classes.read(each)] = 1
        return marks

    def groups(self, labels: np.ndarray) -> list[list[int]]:
        """The classes of each row, of which a part is held out; those of none are -1."""
        return [np.flatnonzero(row).tolist() or [-1] for row in labels]

    def check_held_out(self, kept: np.ndarray, held: np.ndarray) -> None:
        """Raises InputError if a class has been held out whole."""
        missing = np.flatnonzero(held.any(0) & ~kept.any(0))
        if len(missing):
            raise held_out_whole(self.names[missing[0]])


def each_label(rows: Rows) -> Rows:
    """The rows with several labels, once for each of them.

    Raises InputError for lists of marks, 0 or 1 for each label, as for what is no list.
    """
    columns = "marks of 0 and 1 go into columns: --label-columns"
    for label in rows.labels:
        if not isinstance(label, list):
            raise refusal(rows, label, "and no list of labels; see --label-separator")
        if len({*map(str, label)}) < len(label):
            raise refusal(rows, label, f"in which one stands twice; {columns}")
    sizes = [len(labels) for labels in rows.labels]
    different = {str(mark).lower() for labels in rows.labels for mark in labels}
    if {*sizes} == {2} and different <= {"0", "1", "0.0", "1.0", "true", "false"}:
        raise refusal(rows, rows.labels[0], f"as all others, both labels; {columns}")
    return replace(
        rows,
        labels=[label for labels in rows.labels for label in labels],
        numbers=np.repeat(rows.numbers, sizes).tolist(),
    )


def lists_of_others(labels: list) -> list[str]:
    """What to do about labels that hold others, as "insult,toxic" does beside these two."""
    words = dict.fromkeys(label.strip() for label in labels if isinstance(label, str))
    for word in words:
        for sign in ",;|/":
            parts = [part.strip() for part in word.split(sign)]
            if len(parts) > 1 and words.keys() >= {*parts}:
                hint = f"--label-separator {shlex.quote(sign)} takes it for several"
                return [f"the label {word!r:.40} is one class, though its parts are labels: {hint}"]
    return []


def found_names(train: Rows, labels: dict) -> list[str]:
    """The labels, by their canonical form, as names; or LABEL_0, LABEL_1, … of numbers."""
    words = [label for form, label in labels.items() if isinstance(form, str)]
    numbers = [parse_number(label) for label in words]
    if words and not any(map(math.isnan, numbers)):
        regression = "--metric pearson trains a regression on such numbers"
        names = "--label-names takes them as names"
        raise refusal(train, words[0], f"a number that is not whole: {regression}, {names}")
    count = len(train.labels)
    if len(labels) > max(20, count / 2):
        many = f"{len(labels)} different labels in {count} rows"
        raise InputError(f"{train.source}: {many}; is that their column?")
    if not words:
        return unnamed(len(labels))
    seen = {""}
    if len(words) < len(labels):  # some are numbers
        seen |= MISSING
    for form, label in labels.items():
        text = unicodedata.normalize("NFKC", str(form))
        text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf"))
        text = " ".join(text.casefold().split())
        if text in seen:
            hint = "mend it, or name the classes by --label-names"
            raise refusal(train, label, f"which looks like another, or like none; {hint}")
        seen.add(text)
    return sorted(map(str, labels.values()))


class NumberLabels:
    """The numbers of a regression, from `low` to `high`."""

    def __init__(self, low: float = -1e15, high: float = 1e15):
        self.low = low
        self.high = high

    def read(self, rows: Rows) -> np.ndarray:
        """The numbers (N,) of the rows, float32. Raises InputError for a label that is none."""
        numbers = np.array([parse_number(label) for label in rows.labels])
        is_within = (self.low <= numbers) & (numbers <= self.high)
        if not is_within.all():
            label = rows.labels[is_within.argmin()]
            expected = f"expected a number from {self.low:g} to {self.high:g}"
            raise refusal(rows, label, expected)
        self.check_held_out(numbers, numbers)
        return numbers.astype(np.float32)

    def groups(self, labels: np.ndarray) -> list[list[int]]:
        """All rows are of one kind."""
        return [[0]] * len(labels)

    def check_held_out(self, kept: np.ndarray, held: np.ndarray) -> None:
        """Raises InputError if one of the two parts has the same label everywhere."""
        if np.ptp(kept) == 0 or np.ptp(held) == 0:
            hint = "give more rows, a larger --holdout, or --validation"
            raise InputError(f"all labels of a regression are the same on one side; {hint}")


class KnownClasses:
    """The labels of a file as the classes of a model, by name: never numbered by the file.

    They are the numbers of the classes where no label at all is a name; a note says so then.
    """

    def __init__(self, names: list[str]):
        self.names = names
        self.is_unnamed = names == unnamed(len(names))

    def read(self, rows: Rows) -> np.ndarray:
        """The classes (N,) of the rows, int64. Raises InputError for what is no class of these."""
        for label in rows.labels:
            if isinstance(label, list):
                raise refusal(rows, label, "but the model gives one class a text")
        forms = {label: canonical(label) for label in rows.different}
        told = rows.class_names
        if self.is_unnamed and len(told) == len(self.names):
            told = []
        if told:  # the numbers are those of the file's own names, in its own order
            forms = {
                label: canonical(told[int(form)]) if form in range(len(told)) else form
                for label, form in forms.items()
            }
        known: dict = {canonical(name): number for number, name in enumerate(self.names)}
        are_numbers = not known.keys() & forms.values() and {*forms.values()} <= {*known.values()}
        if are_numbers and not told:
            known = {number: number for number in known.values()}
            if not self.is_unnamed:
                classes = listing(self.names)
                rows.notes.append(f"{rows.source}: the labels are taken as numbers of {classes}")
        for label, form in forms.items():
            if form not in known:
                hint = "; --label-names names the model's classes" if self.is_unnamed else ""
                why = f"which is no class of the model: {listing(self.names)}{hint}"
                raise refusal(rows, label, why)
        return np.array([known[forms[label]] for label in rows.labels])


class KnownNumbers(NumberLabels):
    """The numbers of a file to score, which may all be the same."""

    def check_held_out(self, kept: np.ndarray, held: np.ndarray) -> None:
        pass
