"""GLUE's tasks (Wang et al., 2018, table 1): the columns of their tables, the names of their classes, their metrics."""

import math
import os
from pathlib import Path

import numpy as np

from support.files import InputError, listing

# The metric of each task, and the names of its classes.
TASKS = {
    "sst2": ("accuracy", ["negative", "positive"]),
    "cola": ("matthews_correlation", ["unacceptable", "acceptable"]),
    "mrpc": ("f1", ["not_equivalent", "equivalent"]),
    "qqp": ("f1", ["not_duplicate", "duplicate"]),
    "mnli": ("accuracy", ["entailment", "neutral", "contradiction"]),
    "qnli": ("accuracy", ["entailment", "not_entailment"]),
    "rte": ("accuracy", ["entailment", "not_entailment"]),
    "wnli": ("accuracy", ["not_entailment", "entailment"]),
}
METRICS = ["accuracy", "f1", "matthews_correlation"]
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


def task_of(data: str) -> tuple[str, list[str]]:
    """The metric and the names of the classes of the GLUE task that a directory, or the folder of a Hub data set, is
    named after; of any other data "" and []."""
    return TASKS.get(Path(os.path.abspath(data) if Path(data).exists() else data.partition("@")[0]).name, ("", []))


def checked_metric(metric: str, names: list[str]) -> str:
    """The metric, or for "" that of the GLUE task with classes of these names, or else the accuracy.

    Raises InputError for a metric of two classes where there are others.
    """
    metric = metric or next((usual for usual, classes in TASKS.values() if classes == names), "accuracy")
    if metric != "accuracy" and len(names) != 2:
        raise InputError(f"--metric {metric} is one of two classes, and the data has {len(names)}: {listing(names)}")
    return metric


def score(metric: str, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and where it is the task's metric f1 or matthews_correlation, of the classes 0 and 1; inputs (N,)."""
    scores = {"accuracy": float(np.mean(predicted == labels))}
    # Counts as Python's numbers, which do not overflow: true and false, positive and negative.
    tp, tn = (int(np.sum((predicted == labels) & (labels == c))) for c in (1, 0))
    fp, fn = (int(np.sum((predicted != labels) & (labels == c))) for c in (0, 1))
    if metric == "f1":
        scores["f1"] = 2 * tp / max(1, 2 * tp + fp + fn)
    if metric == "matthews_correlation":
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        scores[metric] = (tp * tn - fp * fn) / math.sqrt(product or 1)
    return scores
