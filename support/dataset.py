"""A data set: which rows are trained and validated on, with which labels, for which task."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np

from support import glue
from support.errors import InputError
from support.metrics import NUMBER_METRICS
from support.tasks import Classification, MultiLabel, Regression, Task


@dataclass
class Split:
    """`texts` are N tuples of one string, or of the two of a pair; `labels` (N,) their labels.

    Where a text has several, they are 0 and 1 (N, C).
    """

    texts: list[tuple[str, ...]]
    labels: np.ndarray

    def select(self, chosen: np.ndarray) -> "Split":
        """The rows where `chosen` (N,) is true."""
        return Split(list(compress(self.texts, chosen)), self.labels[chosen])


@dataclass
class Data:
    task: Task
    columns: list[str]  # where the texts stood
    train: Split
    validation: Split
    mismatched: Split | None = None  # MNLI's second validation split, from other sources
    notes: list[str] = field(default_factory=list)  # on how the tables were read


def load(
    path: Path,
    keys: Callable[[list], Sequence[Hashable]],
    *,
    text_columns: Sequence[str] = (),
    label_column: str = "label",
    label_names: Sequence[str] = (),
    label_separator: str = "",
    label_columns: Sequence[str] = (),
    metric: str = "",
    name: str = "",
    validation: str = "",
    holdout: float = 0.1,
) -> Data:
    """data.load_data, which explains the options; texts of the same `keys(texts)` count as one."""
    from support import labels, splits, tables  # late: Arrow takes a while to import

    known = glue.TASKS.get(name or glue.name_of(str(path)))
    usual_metric, usual_names, usual_columns = known or ("", [], [])
    files = splits.find_splits(path)
    if label_names and label_columns:
        raise InputError("--label-columns name the labels themselves; leave out --label-names")
    if validation:
        if "validation" in files:
            raise InputError(f"--validation {validation}: {path} has a validation split of its own")
        files["validation"] = [Path(validation)]

    # The rows of each split, with the same columns.
    rows = {}
    columns = list(text_columns or usual_columns)
    for split, paths in files.items():
        rows[split] = tables.gather_rows(
            paths,
            columns,
            label_column,
            label_columns=label_columns,
            separator=label_separator,
        )
        columns = rows[split].columns
    notes = [note for each in rows.values() for note in each.notes]
    rows = splits.by_column(rows, notes)
    for each in rows.values():
        each.refuse_missing(label_names)

    # The task, and the labels as it takes them.
    train = rows["train"]
    names = [*label_names] or [*label_columns]
    if any(isinstance(label, list) for label in train.labels):
        each = labels.each_label(train)
        reader = labels.LabelSets(labels.ClassLabels(each, names, usual=[]))
        task = MultiLabel(reader.names, metric)
    elif (metric or usual_metric) in NUMBER_METRICS:
        reader = labels.NumberLabels() if metric else labels.NumberLabels(*glue.STSB_RANGE)
        task = Regression(names or ["LABEL_0"], metric or usual_metric)
    else:
        reader = labels.ClassLabels(train, names, usual_names)
        task = Classification(reader.names, metric or usual_metric)
        notes += labels.lists_of_others(train.different)
    read = {split: Split(each.texts, reader.read(each)) for split, each in rows.items()}

    # What is held out.
    if "validation" not in read:
        whole = read["train"]
        is_held = splits.hold_out(keys(whole.texts), reader.groups(whole.labels), holdout)
        read["train"], read["validation"] = whole.select(~is_held), whole.select(is_held)
        reader.check_held_out(read["train"].labels, read["validation"].labels)
        notes.append(f"{is_held.sum():,} rows are held out to validate on (--holdout {holdout:g})")
    mismatched = read.pop("validation_mismatched", None)
    return Data(task=task, columns=columns, mismatched=mismatched, notes=notes, **read)
