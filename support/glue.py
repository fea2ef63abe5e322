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

BINARY_METRICS = ["f1", "matthews_correlation"]  # of the classes 0 and 1
CLASS_METRICS = ["accuracy", *BINARY_METRICS]
NUMBER_METRICS = ["pearson", "spearman"]
METRICS = [*CLASS_METRICS, *NUMBER_METRICS]

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


def text_columns(own: list[str]) -> list[list[str]]:
    """Where texts may stand: in a task's `own` columns, or in as many others; or in any."""
    if not own:
        return TEXT_COLUMNS
    others = [columns for columns in TEXT_COLUMNS if len(columns) == len(own)]
    return [own, *others]


def class_scores(
    predicted: np.ndarray, labels: np.ndarray, metric: str, names: list[str]
) -> dict[str, float]:
    """The accuracy of classes (N,), and f1 and Matthews' correlation as far as GLUE reports them.

    That is: where one is the `metric`, or that of the task with classes of these `names`.
    """
    reported = [metric, usual_metric(names)]
    scores = {"accuracy": float(np.mean(predicted == labels))}
    if "f1" in reported:
        is_one = labels == 1
        said_one = predicted == 1
        ones = is_one.sum() + said_one.sum()
        scores["f1"] = float(2 * (is_one & said_one).sum() / max(1, ones))
    if "matthews_correlation" in reported:  # of two classes it is Pearson's, of 0 and 1
        scores["matthews_correlation"] = pearson(predicted, labels)
    return scores


def number_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The correlations of numbers (N,): Pearson's, and Spearman's, which is that of their ranks."""
    return {
        "pearson": pearson(predicted, labels),
        "spearman": pearson(ranks(predicted), ranks(labels)),
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of x (N,) and y (N,), and 0 where one of them is constant.

    There it is not defined, and scipy says NaN. But NaN is neither better nor worse than a score,
    and a model that always says the same is worth what Matthews gives it, 0.
    """
    x = x.astype(np.float64)
    y = y.astype(np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    with np.errstate(invalid="ignore"):  # infinite predictions give NaN
        x = x - x.mean()
        y = y - y.mean()
        cosine = (x / np.linalg.norm(x)) @ (y / np.linalg.norm(y))
    return float(np.clip(cosine, -1, 1))


def ranks(x: np.ndarray) -> np.ndarray:
    """The places (N,) from 1 that the numbers x (N,) have when sorted; equals share their mean."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
