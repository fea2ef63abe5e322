"""Labels: from what stands in a table to classes, or to the numbers of a regression; holding out.

What is checked saves a user from a silent mistake. Which classes there are is decided once, on
the training split.
"""

import math
import unicodedata
from dataclasses import dataclass

import numpy as np

from support.errors import InputError, listing
from support.tables import Rows

MISSING = {"na", "n/a", "nan", "nil", "none", "null", "?", "-", "--", ".", "-1"}


def parse_number(label) -> float:
    """The number that a label is; NaN of a name, of infinity, and of 1_000, which Python reads."""
    text = str(label)
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if abs(number) <= 1e15 and "_" not in text else math.nan


def canonical(label) -> int | str:
    """The label, as a whole number if it is one, written as 1, +1 or 1.0."""
    number = parse_number(label)
    return int(number) if number % 1 == 0 else str(label)


def refusal(rows: Rows, label, why: str) -> InputError:
    """The error that names the first row with the label."""
    row = rows.labels.index(label) + 1
    return InputError(f"{rows.source}: row {row} has the label {label!r:.40}, {why}")


def look_up(rows: Rows, numbers: dict, expected: str) -> np.ndarray:
    """The numbers (N,) of the labels, by their canonical form. Raises InputError for another."""
    found = {}
    for label in dict.fromkeys(rows.labels):
        found[label] = numbers.get(canonical(label))
        if found[label] is None:
            raise refusal(rows, label, f"expected {expected}")
    return np.array([found[label] for label in rows.labels])


class ClassLabels:
    """The classes 0, 1, …, decided on the training split.

    Their `names` are those that the user gives, or the file tells, or the task usually has; or
    else those that stand there, or LABEL_0, LABEL_1, … if what stands there are numbers. Raises
    InputError where it is not clear what is meant.
    """

    def __init__(self, train: Rows, given: list[str], usual: list[str]):
        labels = {canonical(label): label for label in dict.fromkeys(train.labels)}
        if len(labels) == 1:
            raise refusal(train, train.labels[0], "as all others; there is nothing to learn")
        self.are_given = bool(given)
        self.names = given or train.class_names or usual or found_names(train, labels)
        self.numbers = {canonical(name): number for number, name in enumerate(self.names)}
        if len(self.numbers) < len(self.names) or "" in map(str.strip, self.names):
            raise InputError(f"the classes {listing(self.names)}: each needs a name of its own")
        # Numbers are indices of the names that a file tells, also of names such as "2".
        are_indices = train.class_names and not given
        if are_indices or not labels.keys() <= self.numbers.keys():
            self.numbers = {number: number for number in range(len(self.names))}

    def read(self, rows: Rows) -> np.ndarray:
        """The classes (N,) of the rows, int64. Raises InputError for a label that is none."""
        if rows.class_names not in ([], self.names) and not self.are_given:
            names = listing(rows.class_names)
            raise InputError(f"{rows.source}: names the classes {names}, the training split others")
        names = listing([str(name) for name in self.numbers])
        expected = f"one of {names}; --label-names says which classes there are"
        return look_up(rows, self.numbers, expected)

    def check_held_out(self, kept: np.ndarray, held: np.ndarray) -> None:
        """Raises InputError if a class has been held out whole."""
        missing = np.setdiff1d(held, kept)
        if len(missing):
            rare = f"the few rows of the class {self.names[missing[0]]!r:.40} are all held out"
            raise InputError(f"{rare}; add rows of it, or drop it")


def found_names(train: Rows, labels: dict) -> list[str]:
    """The labels, by their canonical form, as names; or LABEL_0, LABEL_1, … if they are numbers.

    Raises InputError for quantities, for what is no column of labels, and for look-alikes.
    """
    if len(labels) > max(20, len(train.labels) / 2):
        many = f"{len(labels)} different labels in {len(train.labels)} rows"
        raise InputError(f"{train.source}: {many}; is that their column?")
    words = [label for form, label in labels.items() if isinstance(form, str)]
    if not words:
        return [f"LABEL_{number}" for number in range(len(labels))]
    if not any(math.isnan(parse_number(label)) for label in words):
        regression = "--metric pearson trains a regression on such numbers"
        names = "--label-names takes them as names"
        raise refusal(train, words[0], f"a number that is not whole: {regression}, {names}")
    seen = set(MISSING) if len(words) < len(labels) else set()
    for label in labels.values():
        text = unicodedata.normalize("NFKC", label).casefold()
        form = " ".join(text.split())
        if form in seen:
            problem = "which looks like another, or like none"
            raise refusal(train, label, f"{problem}; mend it, or name the classes by --label-names")
        seen.add(form)
    return sorted(labels.values())


@dataclass
class NumberLabels:
    """The numbers of a regression."""

    low: float
    high: float

    def read(self, rows: Rows) -> np.ndarray:
        """The numbers (N,) of the rows, float32. Raises InputError for a label that is none."""
        numbers = {}
        for label in dict.fromkeys(rows.labels):
            number = parse_number(label)
            if self.low <= number <= self.high:
                numbers[canonical(label)] = number
        expected = f"a number from {self.low:g} to {self.high:g}"
        labels = look_up(rows, numbers, expected)
        self.check_held_out(labels, labels)
        return labels.astype(np.float32)

    def check_held_out(self, kept: np.ndarray, held: np.ndarray) -> None:
        """Raises InputError if one of the two parts has the same label everywhere."""
        if np.ptp(kept) == 0 or np.ptp(held) == 0:
            raise InputError("all labels of a regression are the same, of training or validation")


def hold_out(keys: list) -> np.ndarray:
    """Whether each of N rows is held out (N,): a tenth of the different keys, always the same.

    Raises InputError if there are less than two.
    """
    different = list(dict.fromkeys(keys))
    if len(different) < 2:
        raise InputError("needs two different texts at least, one of them to validate on")
    order = np.random.default_rng(0).permutation(len(different))
    held = {different[number] for number in order[: len(different) // 10 or 1]}
    return np.array([key in held for key in keys])
