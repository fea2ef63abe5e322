"""GLUE's nine tasks (Wang et al., 2018, table 1): their columns, classes and metrics."""

from pathlib import Path

from support.errors import InputError, listing

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

# The files that GLUE's server takes, and the tasks whose answers it takes by name.
SUBMISSIONS = {
    "CoLA": "cola",
    "SST-2": "sst2",
    "MRPC": "mrpc",
    "QQP": "qqp",
    "STS-B": "stsb",
    "MNLI-m": "mnli",
    "MNLI-mm": "mnli",
    "QNLI": "qnli",
    "RTE": "rte",
    "WNLI": "wnli",
    "AX": "mnli",  # the diagnostic set
}
NAMED = ("mnli", "qnli", "rte")

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


def check_submission(task: str, names: list[str]) -> None:
    """Raises InputError for a model whose classes are not those of the task."""
    _, classes, _ = TASKS[task]
    if {*classes} != {*names} and (classes or len(names) > 1):
        takes = listing(classes) or "a number"
        raise InputError(f"the model answers {listing(names)}, and {task} takes {takes}")


def submission_label(task: str, answer: str | float) -> str:
    """An answer as GLUE's server takes it: a name, the number of the class, or of STS-B a score."""
    _, classes, _ = TASKS[task]
    if not isinstance(answer, str):
        low, high = STSB_RANGE
        return f"{min(max(answer, low), high):.3f}"
    return answer if task in NAMED else str(classes.index(answer))


def usual_metric(names: list[str]) -> str:
    """The metric of the task with classes of these names, or else the accuracy."""
    for metric, classes, _ in TASKS.values():
        if classes and classes == names:
            return metric
    return "accuracy"
