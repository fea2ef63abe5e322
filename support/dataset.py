"""A data set: which rows are trained and validated on, with which labels, for which task."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np

from support import glue
from support.errors import InputError
from support.metrics import METRICS, NUMBER_METRICS
from support.options import option, split_list
from support.tasks import Classification, MultiLabel, Regression, Task


@dataclass(kw_only=True)
class DataOptions:
    """How a data set is read: train.py's options for data.load_data.

    From Python a list may be given where a flag takes names with commas between them.
    """

    text_columns: str = option("", "column of the text, or of a pair: a,b", also="text-column")
    label_column: str = option("label", "column of the label: a number from 0, or a name")
    label_names: str = option("", "names of the classes 0, 1, …: a,b,c (default: the data's)")
    label_separator: str = option("", "sign between several labels of a text")
    label_columns: str = option("", "columns of 0 and 1, one for each of several labels: a,b,c")
    validation: str = option("", "file to validate on")
    holdout: float = option(0.1, "fraction to validate on where nothing else is", above=0, below=1)
    metric: str = option(
        "", "chooses best/; pearson and spearman train a regression", choices=["", *METRICS]
    )


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
    validation: Split  # without rows until hold_out, where the tables have none
    mismatched: Split | None = None  # MNLI's second validation split, from other sources
    notes: list[str] = field(default_factory=list)  # on how the tables were read

    def hold_out(self, keys: Sequence[Hashable], fraction: float) -> None:
        """Moves training rows to the validation: about a `fraction` of the `keys` of each class.

        Rows of equal `keys` (N,) count as one text. Raises InputError where there are too few.
        """
        from support import splits  # late, as below

        whole = self.train
        is_held = splits.hold_out(keys, splits.classes_of(whole.labels), fraction)
        self.train = whole.select(~is_held)
        self.validation = whole.select(is_held)
        rows = f"{is_held.sum():,} of {len(is_held):,} rows"
        self.notes.append(f"held out to validate on: {rows} (--holdout {fraction:g})")


def load(path: Path, options: DataOptions, name: str = "") -> Data:
    """All that data.load_data does, except holding out."""
    from support import labels, splits, tables  # late: Arrow takes a while to import

    label_names = split_list(options.label_names)
    label_columns = split_list(options.label_columns)
    metric = options.metric
    validation = options.validation
    task_name = name or glue.name_of(str(path))
    usual_metric, usual_names, usual_columns = glue.TASKS.get(task_name, ("", [], []))
    files = splits.find_splits(path)
    if label_names and label_columns:
        raise InputError("--label-columns name the labels themselves; leave out --label-names")
    if len(label_columns) == 1:
        raise InputError("--label-columns: one column is no choice of several; see --label-column")
    if validation:
        if "validation" in files:
            raise InputError(f"--validation {validation}: {path} has a validation split of its own")
        files["validation"] = [Path(validation)]

    # The rows of each split, with the same columns.
    rows = {}
    columns = split_list(options.text_columns) or usual_columns
    for split, paths in files.items():
        rows[split] = tables.gather_rows(
            paths,
            columns,
            options.label_column,
            label_columns=label_columns,
            separator=options.label_separator,
        )
        columns = rows[split].columns
    notes = [note for each in rows.values() for note in each.notes]
    unread = [each.source for split, each in rows.items() if split != "train" and each.splits]
    notes += [f"all rows of {source} count, whatever its column split says" for source in unread]
    rows = splits.by_column(rows, notes)
    for each in rows.values():
        each.refuse_missing(label_names)
        if label_names:  # numbers are those of these
            each.class_names = []

    # The task, and the labels as it takes them.
    train = rows["train"]
    has_lists = any(isinstance(label, list) for label in train.labels)
    each = labels.each_label(train) if has_lists else train
    names = label_names or label_columns
    if (metric or usual_metric) in NUMBER_METRICS and not has_lists:
        task = Regression(names or ["LABEL_0"], metric or usual_metric)
        low, high = glue.STSB_RANGE
        read = labels.read_numbers if metric else partial(labels.read_numbers, low=low, high=high)
    else:
        usual_names = [] if has_lists else usual_names
        names = names or train.class_names or usual_names or labels.found_names(each)
        classes = labels.ClassLabels(names, each)
        if has_lists:
            task = MultiLabel(names, metric)
            read = classes.read_sets
        else:
            task = Classification(names, metric or usual_metric)
            read = classes.read
            notes += labels.lists_of_others(train.different)
    found = {split: Split(each.texts, read(each)) for split, each in rows.items()}
    known = found["train"].labels
    if (known == known[:1]).all() or known.shape[1:] == (1,):
        problem = "all labels are the same, or there are none; there is nothing to learn"
        raise InputError(f"{train.source}: {problem}")

    return Data(
        task=task,
        columns=columns,
        train=found["train"],
        validation=found.get("validation", Split([], np.zeros(0))),
        mismatched=found.get("validation_mismatched"),
        notes=notes,
    )
