"""Labels: from what stands in a table to classes, or to the numbers of a regression."""

import math
import shlex
import unicodedata
from dataclasses import replace
from itertools import product

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
    """The classes 0, 1, … by their names, or by their numbers if none of the `rows` has a name.

    Where a file tells names, its numbers are those of its own; the file of the `rows` speaks for
    files that tell none. Raises InputError for two names that are one.
    """

    def __init__(self, names: list[str], rows: Rows):
        self.names = names
        self.told = rows.class_names
        self.is_unnamed = names == unnamed(len(names))
        self.numbers: dict = {canonical(name): number for number, name in enumerate(names)}
        if len(self.numbers) < len(names):
            raise InputError(f"the classes {listing(names)}: each needs a name of its own")
        found = {*self.forms(rows).values()}
        numbers = range(len(names))
        if found.isdisjoint(self.numbers) and not found.isdisjoint(numbers):
            self.numbers = {number: number for number in numbers}
            if not self.is_unnamed:
                note = f"the labels are taken as numbers of {listing(names)}"
                rows.notes.append(f"{rows.source}: {note}")

    def forms(self, rows: Rows) -> dict:
        """The different labels as names or numbers, in their canonical form."""
        for label in rows.labels:
            if isinstance(label, list):
                raise refusal(rows, label, "but the model gives one class a text")
        forms = {label: canonical(label) for label in rows.different}
        told = [] if self.is_unnamed else rows.class_names or self.told
        for label, form in forms.items():
            if form in range(len(told)):
                forms[label] = canonical(told[form])
        return forms

    def read(self, rows: Rows) -> np.ndarray:
        """The classes (N,) of the rows, int64. Raises InputError for a label that is none."""
        forms = self.forms(rows)
        for label, form in forms.items():
            if form not in self.numbers:
                names = listing([*map(str, self.numbers)])
                hint = "; --label-names says which classes there are" if self.is_unnamed else ""
                raise refusal(rows, label, f"expected one of {names}{hint}")
        return np.array([self.numbers[forms[label]] for label in rows.labels], dtype=np.int64)

    def read_sets(self, rows: Rows) -> np.ndarray:
        """Which classes rows with lists of labels have (N, C), float32. Raises InputError too."""
        classes = self.read(each_label(rows))
        sizes = [len(labels) for labels in rows.labels]
        marks = np.zeros((len(sizes), len(self.names)), dtype=np.float32)  # (N, C)
        marks[np.repeat(np.arange(len(sizes)), sizes), classes] = 1
        return marks


def read_numbers(rows: Rows, low: float = -1e15, high: float = 1e15) -> np.ndarray:
    """The numbers (N,) of a regression, float32. Raises InputError for one that is not within."""
    numbers = np.array([parse_number(label) for label in rows.labels])
    is_within = (low <= numbers) & (numbers <= high)
    if not is_within.all():
        label = rows.labels[is_within.argmin()]
        raise refusal(rows, label, f"expected a number from {low:g} to {high:g}")
    return numbers.astype(np.float32)


def each_label(rows: Rows) -> Rows:
    """The rows with several labels, once for each of them. Raises InputError for what is no list.

    In a list of marks, 0 or 1 for each label, one stands twice.
    """
    for label in rows.labels:
        if not isinstance(label, list):
            raise refusal(rows, label, "and no list of labels; see --label-separator")
        if len({*map(str, label)}) < len(label):
            hint = "marks of 0 and 1 go into columns: --label-columns"
            raise refusal(rows, label, f"in which one stands twice; {hint}")
    sizes = [len(labels) for labels in rows.labels]
    return replace(
        rows,
        labels=[label for labels in rows.labels for label in labels],
        numbers=np.repeat(rows.numbers, sizes).tolist(),
    )


def found_names(rows: Rows) -> list[str]:
    """The different labels as the names of classes; or LABEL_0, LABEL_1, … of whole numbers.

    Raises InputError for labels that look like a regression's, or like none, or are no labels.
    """
    labels = {canonical(label): label for label in rows.different}
    words = [label for form, label in labels.items() if isinstance(form, str)]
    if words and not any(math.isnan(parse_number(label)) for label in words):
        regression = "--metric pearson trains a regression on such numbers"
        names = "--label-names takes them as names"
        raise refusal(rows, words[0], f"a number that is not whole: {regression}, {names}")
    count = len(rows.labels)
    if len(labels) > max(20, count / 2):
        many = f"{len(labels)} different labels in {count} rows"
        raise InputError(f"{rows.source}: {many}; is that their column?")
    if not words:
        return unnamed(len(labels))
    seen = {"", *MISSING} if len(words) < len(labels) else {""}  # beside numbers
    for form, label in labels.items():
        looks = visible_form(str(form))
        if looks in seen:
            hint = "mend it, or name the classes by --label-names"
            raise refusal(rows, label, f"which looks like another, or like none; {hint}")
        seen.add(looks)
    return sorted(map(str, labels.values()))


def visible_form(text: str) -> str:
    """The same for all texts that look alike: without regard to case, blanks and formats."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(text.casefold().split())


def lists_of_others(labels: list) -> list[str]:
    """What to do about a label that holds others, as "insult,toxic" does beside these two."""
    words = dict.fromkeys(label.strip() for label in labels if isinstance(label, str))
    for word, sign in product(words, ",;|/"):
        parts = {part.strip() for part in word.split(sign)}
        if len(parts) > 1 and parts <= words.keys():
            hint = f"--label-separator {shlex.quote(sign)} takes it for several"
            return [f"the label {word!r:.40} is one class, though its parts are labels: {hint}"]
    return []
