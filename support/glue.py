"""GLUE's tasks (Wang et al., 2018, table 1): the columns of their tables, the names of their classes, their metrics."""

import math

import numpy as np

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
OTHER_TASK = ("accuracy", [])
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
