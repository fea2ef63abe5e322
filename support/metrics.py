"""Metrics of predicted and true labels, as scikit-learn and scipy compute them.

Of one class for each of N texts both are the numbers of the classes (N,); of several labels for
each both are (N, C), true where a text has the label; of a regression both are numbers (N,).
"""

import numpy as np


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predicted == labels))


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1, of classes 0 and 1: 2PR / (P + R) of precision P and recall R; 0 for 0/0."""
    ones = predicted.sum() + labels.sum()
    return float(2 * (predicted * labels).sum() / max(1, ones))


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 of the classes that are labels or are predicted, as scikit-learn has it."""
    classes = np.union1d(predicted, labels)
    return macro_f1_of_sets(predicted[:, None] == classes, labels[:, None] == classes)


def accuracy_of_sets(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of the texts with all labels (C,) right: subset accuracy."""
    return float(np.mean((predicted == labels).all(-1)))


def macro_f1_of_sets(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 of the C labels, each of which counts alike."""
    return float(np.mean([f1(*of_label) for of_label in zip(predicted.T, labels.T, strict=True)]))


def micro_f1_of_sets(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of all N · C decisions, so that a common label counts more."""
    return f1(predicted, labels)


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


TWO_CLASS_METRICS = {"f1": f1, "matthews_correlation": pearson}
CLASS_METRICS = {"accuracy": accuracy, "macro_f1": macro_f1} | TWO_CLASS_METRICS
SET_METRICS = {
    "macro_f1": macro_f1_of_sets,
    "micro_f1": micro_f1_of_sets,
    "accuracy": accuracy_of_sets,
}
NUMBER_METRICS = {"pearson": pearson, "spearman": spearman}
METRICS = [*dict.fromkeys([*CLASS_METRICS, *SET_METRICS, *NUMBER_METRICS])]
