"""Metrics of predicted and true labels, as scikit-learn and scipy compute them.

Of one class for each of N texts both are the numbers of the classes (N,); of several labels for
each both are (N, C), true where a text has the label; of a regression both are numbers (N,).
"""

import numpy as np


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of the texts that are right, with all of their labels (subset accuracy)."""
    is_right = (predicted == labels).reshape(len(labels), -1)
    return float(np.mean(is_right.all(-1)))


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of 1, of zeros and ones: 2PR / (P + R) of precision P and recall R; 0 for 0/0.

    Of several labels (N, C) it is the micro F1, of all decisions.
    """
    both = np.logical_and(predicted, labels).sum()
    ones = np.count_nonzero(predicted) + np.count_nonzero(labels)
    return float(2 * both / max(1, ones))


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 of the classes that are labels or are predicted, as scikit-learn has it."""
    classes = np.union1d(predicted, labels)
    return macro_f1_of_sets(predicted[:, None] == classes, labels[:, None] == classes)


def macro_f1_of_sets(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 of the C labels, each of which counts alike."""
    pairs = zip(predicted.T, labels.T, strict=True)
    return float(np.mean([f1(found, wanted) for found, wanted in pairs]))


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


# Figures of a report.

CALIBRATION_BINS = 15


def class_figures(predicted: np.ndarray, labels: np.ndarray) -> list[dict]:
    """Precision, recall, F1 and support (rows) of each of C classes; both true or false, (N, C).

    A fraction whose denominator is 0 is 0, as with scikit-learn's zero_division=0.
    """
    figures = []
    for found, wanted in zip(predicted.T, labels.T, strict=True):  # (N,), (N,)
        both = int((found & wanted).sum())
        support = int(wanted.sum())
        figures.append(
            {
                "precision": both / max(1, int(found.sum())),
                "recall": both / max(1, support),
                "f1": f1(found, wanted),
                "support": support,
            }
        )
    return figures


def confusion(predicted: np.ndarray, labels: np.ndarray, C: int) -> np.ndarray:
    """How often a class (a row) was answered by which (a column): (C, C) of classes (N,)."""
    return np.bincount(labels * C + predicted, minlength=C * C).reshape(C, C)


def calibration(confidence: np.ndarray, right: np.ndarray) -> dict:
    """The expected calibration error: how far confidence and fraction right are apart, by rows.

    And what it is computed of: bins of M answers by their confidence, with the rows, the mean
    confidence and the fraction right of each. `confidence` (M,) is a probability, `right` (M,)
    true or false (Guo et al., 2017, arXiv:1706.04599, section 2).
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    place = np.searchsorted(edges, confidence)  # (M,)
    rows = np.bincount(place, minlength=CALIBRATION_BINS)
    confidence_sums = np.bincount(place, confidence, minlength=CALIBRATION_BINS)
    right_sums = np.bincount(place, right, minlength=CALIBRATION_BINS)
    distance = np.abs(confidence_sums - right_sums).sum()
    bins = {
        "rows": rows.tolist(),
        "confidence": (confidence_sums / np.maximum(1, rows)).tolist(),
        "right": (right_sums / np.maximum(1, rows)).tolist(),
    }
    return {"calibration_error": float(distance / rows.sum()), "calibration": bins}


CLASS_METRICS = {"accuracy": accuracy, "macro_f1": macro_f1}
TWO_CLASS_METRICS = CLASS_METRICS | {"f1": f1, "matthews_correlation": pearson}
SET_METRICS = {"macro_f1": macro_f1_of_sets, "micro_f1": f1, "accuracy": accuracy}
NUMBER_METRICS = {"pearson": pearson, "spearman": spearman}
METRICS = [*TWO_CLASS_METRICS | SET_METRICS | NUMBER_METRICS]
