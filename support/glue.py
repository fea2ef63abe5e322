"""GLUE's nine tasks (Wang et al., 2018, table 1): their columns, the names of their classes, their metrics."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from support.console import plain
from support.files import InputError, listing

# The metric of each task by which the best model is kept, the names of its classes, the columns of its texts; STS-B has
# numbers from 0 to 5 instead of classes.
TASKS = {
    "sst2": ("accuracy", ["negative", "positive"], ["sentence"]),
    "cola": ("matthews_correlation", ["unacceptable", "acceptable"], ["sentence"]),
    "mrpc": ("f1", ["not_equivalent", "equivalent"], ["sentence1", "sentence2"]),
    "qqp": ("f1", ["not_duplicate", "duplicate"], ["question1", "question2"]),
    "mnli": ("accuracy", ["entailment", "neutral", "contradiction"], ["premise", "hypothesis"]),
    "qnli": ("accuracy", ["entailment", "not_entailment"], ["question", "sentence"]),
    "rte": ("accuracy", ["entailment", "not_entailment"], ["sentence1", "sentence2"]),
    "wnli": ("accuracy", ["not_entailment", "entailment"], ["sentence1", "sentence2"]),
    "stsb": ("pearson", [], ["sentence1", "sentence2"]),
}
OF_NUMBERS = ["pearson", "spearman"]  # the metrics of a regression
METRICS = ["accuracy", "f1", "matthews_correlation", *OF_NUMBERS]
# Of a table the first whose columns are all there; pairs first, as QNLI has a "sentence" too.
TEXT_COLUMNS = [
    ["sentence1", "sentence2"],
    ["question1", "question2"],
    ["premise", "hypothesis"],
    ["question", "sentence"],
    ["sentence"],
    ["text"],
    ["review"],
]


def task_of(data: str, text_columns=()) -> tuple[str, list[str], list[list[str]]]:
    """The metric, the names of the classes, and what the columns of the texts can be, of the GLUE task that a directory
    or the folder of a Hub data set is named after: single texts or pairs, as the task has them, its own columns first.

    Of any other data "", [] and TEXT_COLUMNS. `text_columns` win.
    """
    name = Path(os.path.abspath(data) if Path(data).exists() else data.partition("@")[0]).name
    metric, names, own = TASKS.get(name, ("", [], []))
    others = [
        columns
        for columns in TEXT_COLUMNS
        if len(columns) == len(own or columns) and columns != own
    ]
    return (
        metric,
        names,
        [list(text_columns)] if text_columns else [own, *others] if own else others,
    )


def bounds(metric: str, usual: str) -> tuple[float, float] | None:
    """Between which numbers the labels lie: any, where `metric` says that it is a regression; from 0 to 5 of STS-B,
    where the task's `usual` one does and nobody has given another; None of classes."""
    if (metric or usual) not in OF_NUMBERS:
        return None
    return (-math.inf, math.inf) if metric else (0, 5)


def checked_metric(metric: str, names: list[str]) -> str:
    """The metric, or for "" that of the GLUE task with classes of these names, or else the accuracy.

    Raises InputError for a metric of two classes where there are others.
    """
    metric = metric or next(
        (usual for usual, classes, _ in TASKS.values() if classes == names != []), "accuracy"
    )
    if metric in ("f1", "matthews_correlation") and len(names) != 2:
        raise InputError(
            f"--metric {metric} is one of two classes, and the data has {len(names)}: {listing(names)}"
        )
    return metric


def score(
    metric: str, predicted: np.ndarray, labels: np.ndarray, names: Iterable[str] = ()
) -> dict[str, float]:
    """The scores of predictions (N,), class numbers or the numbers of a regression, as GLUE reports them.

    Of a regression pearson and spearman; of classes accuracy, and the `metric` of f1 and matthews_correlation, of the
    classes 0 and 1, also where it is that of the GLUE task with classes of these `names`.
    """
    if metric in OF_NUMBERS:
        return {
            "pearson": pearson(predicted, labels),
            "spearman": pearson(ranks(predicted), ranks(labels)),
        }
    scores = {"accuracy": float(np.mean(predicted == labels))}
    # Counts as Python's numbers, which do not overflow: true and false, positive and negative.
    tp, tn = (int(np.sum((predicted == labels) & (labels == c))) for c in (1, 0))
    fp, fn = (int(np.sum((predicted != labels) & (labels == c))) for c in (0, 1))
    reported = {metric, checked_metric("", list(names))}
    if "f1" in reported:
        scores["f1"] = 2 * tp / max(1, 2 * tp + fp + fn)
    if "matthews_correlation" in reported:
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        scores["matthews_correlation"] = (tp * tn - fp * fn) / math.sqrt(product or 1)
    return scores


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of x (N,) and y (N,), and 0 where one of them is constant.

    There it is not defined, and scipy says NaN; but NaN is neither better nor worse than a score, and a model that
    always says the same is worth what Matthews gives it, 0.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    with np.errstate(
        invalid="ignore"
    ):  # of infinite predictions NaN comes out; the loss is refused then
        x, y = x - x.mean(), y - y.mean()
        return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def ranks(x: np.ndarray) -> np.ndarray:
    """The places (N,) from 1 that the numbers x (N,) have when sorted; equals share the mean of theirs."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def by_guessing(metric: str, train: np.ndarray, labels: np.ndarray, names: list[str]) -> str:
    """What one guess for every row scores: the commonest class of the labels `train`, or of a regression their mean.

    A text, with the scores on the validation split's `labels` (N,).
    """
    if metric in OF_NUMBERS:
        guess = train.mean(dtype=np.float64)
        what, scores = f"the mean, {guess:.3f},", {"loss": float(np.mean((guess - labels) ** 2))}
    else:
        guess = np.bincount(train).argmax()
        what, scores = plain(names[guess]), {}
    scores |= score(metric, np.full(len(labels), guess), labels, names)
    shown = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
    return f"always guessing {what} would give {shown}"
