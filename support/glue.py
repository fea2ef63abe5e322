"""GLUE's nine tasks (Wang et al., 2018, table 1): their columns, classes and metrics."""

from pathlib import Path

import numpy as np

# By the name of a task: the metric by which the best model is kept, the names of the classes, the
# columns of the texts. STS-B has numbers from 0 to 5 instead of classes.
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
STSB_RANGE = (0, 5)

# Of another table the first whose columns are all there; pairs first, as QNLI has a "sentence" too.
TEXT_COLUMNS = [
    ["sentence1", "sentence2"],
    ["question1", "question2"],
    ["premise", "hypothesis"],
    ["question", "sentence"],
    ["sentence"],
    ["text"],
    ["review"],
]


def name_of(data: str) -> str:
    """The last part of the path of a data set, here or on the Hub, without @revision."""
    if not Path(data).exists():
        data = data.partition("@")[0]
    return Path(data).absolute().name


def usual_metric(names: list[str]) -> str:
    """The metric of the task with classes of these names, or else the accuracy."""
    for metric, classes, _ in TASKS.values():
        if classes and classes == names:
            return metric
    return "accuracy"


# Metrics, of predicted and true classes (N,) or numbers (N,).


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predicted == labels))


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1, of classes 0 and 1."""
    ones = predicted.sum() + labels.sum()
    return float(2 * (predicted * labels).sum() / max(1, ones))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation, which of classes 0 and 1 is Matthews'; 0 where one is constant.

    There it is not defined, and scipy says NaN. But NaN is neither better nor worse than a score,
    and a model that always says the same is worth what Matthews gives it, 0.
    """
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # infinite predictions give NaN
        return float(np.corrcoef(x, y)[0, 1])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks."""
    return pearson(ranks(x), ranks(y))


def ranks(x: np.ndarray) -> np.ndarray:
    """The places (N,) from 1 that the numbers x (N,) have when sorted; equals share their mean."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


CLASS_METRICS = {"accuracy": accuracy, "f1": f1, "matthews_correlation": pearson}
NUMBER_METRICS = {"pearson": pearson, "spearman": spearman}
METRICS = CLASS_METRICS | NUMBER_METRICS
