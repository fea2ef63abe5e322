"""GLUE's nine tasks (Wang et al., 2018, table 1): their columns, classes and metrics."""

from pathlib import Path

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
