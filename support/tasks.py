"""Tasks: each knows its loss, its answers and its scores, and nobody else asks which kind it is.

The labels of N texts are (N,), or (N, C) where a text has several. A loss is computed on any
device, all else on the CPU. The letters of the shapes are explained in bert.py.
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support import glue, metrics
from support.errors import InputError, listing


def rounded(numbers: Tensor) -> list:
    return [round(number, 6) for number in numbers.tolist()]


def unnamed(count: int) -> list[str]:
    """What transformers calls classes of which nobody has said a name."""
    return [f"LABEL_{number}" for number in range(count)]


class Task(Protocol):
    """What each task says of itself, and what follows from it for all of them."""

    names: list[str]  # of the classes, or of the number
    metric: str  # chooses the best model
    metrics: dict  # all that are computed, by name
    problem_type: str  # as in config.json

    def describe(self) -> str: ...
    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor: ...  # (N,) of logits (N, C)
    def predict(self, logits: Tensor) -> Tensor: ...  # what is answered, in the form of labels
    def commonest(self, labels: Tensor) -> Tensor: ...  # the best constant answer
    def spell(self, labels: Tensor) -> list: ...  # names, lists of names, or numbers
    def report(self, logits: Tensor, labels: Tensor) -> dict: ...  # all figures, as JSON has them
    def columns(self, logits: Tensor, scores: bool = False) -> dict[str, list]: ...
    def as_text(self, answer: dict) -> str: ...  # of 17 characters, or more
    def read_labels(self, rows) -> np.ndarray: ...  # those that tables.Rows say, as loss takes them

    def __init__(self, names: list[str], metric: str, known: dict):
        self.names = names
        self.metric = metric
        self.metrics = known
        if metric not in known:
            raise InputError(f"--metric {metric}: for {self.describe()} it is {', '.join(known)}")

    def training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is minimized: the loss of logits (B, C), summed over the batch."""
        return self.row_losses(logits, labels).sum()

    def adjust_loss(self, class_weights: str, label_smoothing: float, labels: np.ndarray) -> None:
        """Raises InputError for what only the loss of a classification knows."""
        if class_weights or label_smoothing:
            flags = "--class-weights and --label-smoothing"
            raise InputError(f"{flags} are for one class a text, and not for {self.describe()}")

    def scores(self, predicted: Tensor, labels: Tensor) -> dict[str, float]:
        arrays = predicted.numpy(), labels.numpy()
        return {name: metric(*arrays) for name, metric in self.metrics.items()}

    def evaluation(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """The mean loss and the scores of logits (N, C) and their labels."""
        loss = self.row_losses(logits, labels).mean().item()
        return {"loss": loss, **self.scores(self.predict(logits), labels)}

    def constant_scores(self, train: Tensor, labels: Tensor) -> tuple:
        """The answer that suits the labels `train` best, and its scores on other labels."""
        constant = self.commonest(train)
        (spelled,) = self.spell(constant[None])
        return spelled, self.scores(constant.expand_as(labels), labels)

    def rows_of_classes(self, labels: Tensor) -> dict[str, int]:
        """How many of N rows each class has, where there are classes."""
        return {}

    def answer(self, logits: Tensor) -> dict:
        """What is said of one text, of its logits (C,)."""
        return {name: value for name, (value,) in self.columns(logits[None]).items()}


class ClassTask(Task, Protocol):
    """A task with C classes, each of which has a probability."""

    def probabilities(self, logits: Tensor) -> Tensor: ...  # (…, C), float64
    def calibration(self, probabilities: Tensor, labels: Tensor) -> dict: ...

    def marks(self, labels: Tensor) -> Tensor:
        """Whether each of N rows has each of the classes, (N, C)."""
        return labels[:, None] == torch.arange(len(self.names))

    def rows_of_classes(self, labels: Tensor) -> dict[str, int]:
        counts = self.marks(labels).sum(0)
        return dict(zip(self.names, counts.tolist(), strict=True))

    def report(self, logits: Tensor, labels: Tensor) -> dict:
        predicted = self.marks(self.predict(logits))  # (N, C)
        figures = metrics.class_figures(predicted.numpy(), self.marks(labels).numpy())
        return {
            **self.evaluation(logits, labels),
            "classes": dict(zip(self.names, figures, strict=True)),
            **self.calibration(self.probabilities(logits), labels),
        }

    def columns(self, logits: Tensor, scores: bool = False) -> dict[str, list]:
        """What a labelled table says of N texts: the answer, and how probable it is.

        That is how probable the least certain of the decisions for or against a class is. With
        `scores` also how probable each class is.
        """
        predicted = self.predict(logits)
        probabilities = self.probabilities(logits)  # (N, C)
        decided = probabilities.where(self.marks(predicted), 1 - probabilities)  # (N, C)
        columns = {"label": self.spell(predicted), "confidence": rounded(decided.amin(-1))}
        if scores:
            for name, column in zip(self.names, probabilities.T, strict=True):
                columns[f"score_{name}"] = rounded(column)
        return columns

    def answer(self, logits: Tensor) -> dict:
        scores = rounded(self.probabilities(logits))
        return super().answer(logits) | {"scores": dict(zip(self.names, scores, strict=True))}

    def as_text(self, answer: dict) -> str:
        return "{label:<10} {confidence:6.1%}".format_map(answer)


class Classification(ClassTask):
    """One of C classes for each text.

    `weights` (C,) and `label_smoothing` are for the training alone.
    """

    problem_type = "single_label_classification"

    def __init__(self, names: list[str], metric: str = ""):
        usual = glue.usual_metric(names)
        known = metrics.TWO_CLASS_METRICS if len(names) == 2 else metrics.CLASS_METRICS
        super().__init__(names, metric or usual, known)
        self.metrics = {name: known[name] for name in ("accuracy", self.metric, usual)}
        self.weights: Tensor | None = None
        self.label_smoothing = 0.0

    def describe(self) -> str:
        return f"classes {listing(self.names)}"

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    def training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy, each row times the weight of its class, and with smoothed labels.

        Label smoothing (Szegedy et al., 2016, section 7) gives a class 1 - ε and shares ε out.
        """
        if self.weights is not None:
            self.weights = self.weights.to(logits.device)  # once
        return F.cross_entropy(
            logits,
            labels,
            weight=self.weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def adjust_loss(self, class_weights: str, label_smoothing: float, labels: np.ndarray) -> None:
        """Sets what training_loss weighs and smooths, for the labels (N,) of the training rows.

        `class_weights` is "balanced", by which all classes weigh the same in sum, or a number for
        each, "1,1,5". They are scaled so that the mean weight of a row is 1, and the learning rate
        keeps its meaning. Raises InputError for any other text.
        """
        self.label_smoothing = label_smoothing
        if not class_weights:
            return
        if class_weights == "balanced":
            rows = np.bincount(labels, minlength=len(self.names))  # (C,)
            weights = 1 / np.maximum(1, rows)
        else:
            from support.labels import parse_number  # late: Arrow takes a while to import

            weights = np.array([parse_number(weight) for weight in class_weights.split(",")])
        # Negative numbers, infinity and NaN are not between the two either.
        if len(weights) != len(self.names) or not weights.min() > 1e-6 * weights.max():
            wanted = f"{len(self.names)} positive numbers of like sizes, for {listing(self.names)}"
            raise InputError(f"--class-weights {class_weights}: expected balanced, or {wanted}")
        weights = weights / weights.max()
        weights = weights / weights[labels].mean()
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.double().softmax(-1)

    def commonest(self, labels: Tensor) -> Tensor:
        return labels.bincount().argmax()

    def spell(self, labels: Tensor) -> list:
        return [self.names[number] for number in labels.tolist()]

    def calibration(self, probabilities: Tensor, labels: Tensor) -> dict:
        confidence, predicted = probabilities.max(-1)  # (N,), (N,)
        return metrics.calibration(confidence.numpy(), (predicted == labels).numpy())

    def report(self, logits: Tensor, labels: Tensor) -> dict:
        predicted, wanted = self.predict(logits).numpy(), labels.numpy()
        return {
            **super().report(logits, labels),
            "macro_f1": metrics.macro_f1(predicted, wanted),
            "confusion": metrics.confusion(predicted, wanted, len(self.names)).tolist(),
        }

    def read_labels(self, rows) -> np.ndarray:
        from support.labels import ClassLabels  # late: Arrow takes a while to import

        return ClassLabels(self.names, rows).read(rows)


class MultiLabel(ClassTask):
    """Any of C labels for each text, as toxic, insult and threat; they are 0 or 1, float32 (N, C).

    A label is given where its probability is above `threshold`.
    """

    problem_type = "multi_label_classification"

    def __init__(self, names: list[str], metric: str = "", threshold: float = 0.5):
        super().__init__(names, metric or "macro_f1", metrics.SET_METRICS)
        self.threshold = threshold

    def describe(self) -> str:
        return f"any of the labels {listing(self.names)}"

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The binary cross-entropy, the mean over the labels."""
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() > self.threshold

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.double().sigmoid()

    def commonest(self, labels: Tensor) -> Tensor:
        """The labels that most rows have."""
        return labels.mean(0) > 0.5

    def marks(self, labels: Tensor) -> Tensor:
        return labels.bool()

    def spell(self, labels: Tensor) -> list:
        names = np.array(self.names, dtype=object)
        return [names[row].tolist() for row in labels.bool().numpy()]

    def calibration(self, probabilities: Tensor, labels: Tensor) -> dict:
        """That of the N · C probabilities, whatever the threshold."""
        return metrics.calibration(probabilities.flatten().numpy(), labels.flatten().numpy())

    def as_text(self, answer: dict) -> str:
        return super().as_text(answer | {"label": ",".join(answer["label"]) or "-"})

    def read_labels(self, rows) -> np.ndarray:
        from support.labels import ClassLabels, each_label  # late: Arrow takes a while to import

        return ClassLabels(self.names, each_label(rows)).read_sets(rows)


class Regression(Task):
    """A number for each text, as STS-B's similarity from 0 to 5; its logits are (N, 1)."""

    problem_type = "regression"

    def __init__(self, names: list[str], metric: str = ""):
        super().__init__(names, metric or "pearson", metrics.NUMBER_METRICS)
        if len(names) != 1:  # one, as transformers has it
            raise InputError(f"a regression has one number, and no classes {listing(names)}")

    def describe(self) -> str:
        return "one number, a regression"

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (self.predict(logits) - labels) ** 2

    def predict(self, logits: Tensor) -> Tensor:
        return logits[:, 0]

    def commonest(self, labels: Tensor) -> Tensor:
        return labels.double().mean()

    def spell(self, labels: Tensor) -> list:
        return rounded(labels)

    def constant_scores(self, train: Tensor, labels: Tensor) -> tuple:
        mean, scores = super().constant_scores(train, labels)
        return mean, {"loss": F.mse_loss(labels, torch.full_like(labels, mean)).item(), **scores}

    def report(self, logits: Tensor, labels: Tensor) -> dict:
        error = (self.predict(logits) - labels).abs().double().mean().item()
        return {**self.evaluation(logits, labels), "mean_absolute_error": error}

    def columns(self, logits: Tensor, scores: bool = False) -> dict[str, list]:
        """Raises InputError for `scores`, which a number has none of."""
        if scores:
            raise InputError("--scores: a regression has one number, and no classes to score")
        return {"score": self.spell(self.predict(logits))}

    def as_text(self, answer: dict) -> str:
        return "{score:<17.3f}".format_map(answer)

    def read_labels(self, rows) -> np.ndarray:
        from support.labels import read_numbers  # late: Arrow takes a while to import

        return read_numbers(rows)


def metric_in_words(task: Task) -> str:
    """The metric by which the best model is chosen; F1 of two classes is that of the second."""
    return f"f1 of {task.names[1]!r}" if task.metric == "f1" else task.metric


def task_of(config, threshold: float | None = None) -> Task:
    """The task of a model, by its BertConfig; of several labels a text perhaps with a `threshold`.

    Raises InputError for a task that is not known here, and for a threshold where it has none.
    """
    usual = Regression if config.num_labels == 1 else Classification
    kinds = {task.problem_type: task for task in (usual, MultiLabel)}
    names = [*config.id2label.values()]
    if len({*names}) < len(names):
        raise InputError(f"config.json: two of the classes {listing(names)} have one name")
    told = str(config.problem_type or usual.problem_type)
    if told not in kinds:
        problem = f"problem_type {told!r:.40} with {config.num_labels} labels"
        raise InputError(f"config.json: {problem} is not supported")
    task = kinds[told](names)
    if threshold is not None:
        if not isinstance(task, MultiLabel):
            raise InputError(
                f"--threshold: is of several labels a text, and not of {task.describe()}"
            )
        if not 0 < threshold < 1:
            raise InputError(f"--threshold {threshold:g}: expected a number between 0 and 1")
        task.threshold = threshold
    return task
