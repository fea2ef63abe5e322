"""Tasks: each knows its loss, its answers and its scores, and nobody else asks which kind it is.

The letters of the shapes are explained in bert.py.
"""

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


def score_columns(names: list[str], probabilities: Tensor) -> dict[str, list]:
    """The probabilities (N, C) as columns of a labelled table, one a class."""
    columns = zip(names, probabilities.T, strict=True)
    return {f"score_{name}": rounded(column) for name, column in columns}


def refuse_adjusting(self, class_weights: str, label_smoothing: float, **_) -> None:
    """Raises InputError for what only the loss of a classification knows."""
    if class_weights or label_smoothing:
        flags = "--class-weights and --label-smoothing"
        raise InputError(f"{flags} are for texts of one class each, and not for {self.describe()}")


def parse_weights(text: str) -> np.ndarray:
    """The positive numbers of "1,1,5"; none for any other text."""
    try:
        weights = np.array(text.replace("_", "x").split(","), dtype=float)
    except ValueError:
        return np.zeros(0)
    return weights if np.isfinite(weights).all() and (weights > 0).all() else np.zeros(0)


class Classification:
    """One of C classes for each text.

    `weights` (C,), on the device of the logits, and `label_smoothing` are for the training alone.
    """

    problem_type = "single_label_classification"
    step_metric = "accuracy"

    def __init__(self, names: list[str], metric: str = ""):
        usual = glue.usual_metric(names)
        self.names = names
        self.metric = metric or usual
        self.metrics = dict.fromkeys(["accuracy", self.metric, usual])  # as far as GLUE reports
        self.weights: Tensor | None = None
        self.label_smoothing = 0.0
        if self.metric not in metrics.CLASS_METRICS:
            raise InputError(f"--metric {self.metric} takes no classes, one of them a text")
        if self.metric in metrics.TWO_CLASS_METRICS and len(names) != 2:
            raise InputError(f"--metric {self.metric} takes two classes; the data has {len(names)}")

    def describe(self) -> str:
        return f"classes {listing(self.names)}"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of logits (B, C) and labels (B,), summed over the batch."""
        return F.cross_entropy(logits, labels, reduction="sum")

    def training_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The same, each row times the weight of its class, and with smoothed labels.

        Label smoothing (Szegedy et al., 2016, section 7) gives a class 1 - ε and shares ε out.
        """
        return F.cross_entropy(
            logits,
            labels,
            weight=self.weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def adjust_loss(self, class_weights: str, label_smoothing: float, labels, device) -> None:
        """Sets what training_loss weighs and smooths, for the labels (N,) of the training rows.

        `class_weights` is "balanced", by which all classes weigh the same in sum, or a number for
        each, "1,1,5". They are scaled so that the mean weight of a row is 1, and the learning rate
        keeps its meaning. Raises InputError for any other text.
        """
        self.label_smoothing = label_smoothing
        if not class_weights:
            return
        counts = np.bincount(labels, minlength=len(self.names))  # (C,)
        if class_weights == "balanced":
            weights = 1 / np.maximum(counts, 1)  # (C,)
        else:
            weights = parse_weights(class_weights)
        if len(weights) != len(counts):
            classes = f"{len(counts)} positive numbers, for {listing(self.names)}"
            raise InputError(f"--class-weights {class_weights}: expected balanced, or {classes}")
        weights = weights / weights.max()
        weights = weights * len(labels) / (weights * counts).sum()
        self.weights = torch.tensor(weights, dtype=torch.float32, device=device)
        if not ((self.weights > 1e-6) & (self.weights < 1e6)).all():
            raise InputError(f"--class-weights {class_weights}: are too far from each other")

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)  # (N, C) -> (N,)

    def count_right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(-1) == labels).sum()

    def rows_of_classes(self, labels: np.ndarray) -> dict[str, int]:
        """How many of the rows (N,) each class has."""
        counts = np.bincount(labels, minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def scores(self, predicted: np.ndarray, labels: np.ndarray) -> dict:
        return {name: metrics.CLASS_METRICS[name](predicted, labels) for name in self.metrics}

    def constant_scores(self, train: np.ndarray, labels: np.ndarray) -> tuple:
        """The commonest class of the labels `train` (M,): its name, and how it does on (N,)."""
        number = np.bincount(train).argmax()
        predicted = np.full_like(labels, number)
        return self.names[number], self.scores(predicted, labels)

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")  # (N,)

    def report(self, logits: Tensor, labels: Tensor) -> dict:
        """All figures of logits (N, C) and labels (N,), as JSON holds them."""
        C = len(self.names)
        predicted, wanted = self.predict(logits).numpy(), labels.numpy()  # (N,), (N,)
        confidence = logits.double().softmax(-1).amax(-1).numpy()  # (N,)
        classes = np.arange(C)
        figures = metrics.class_figures(predicted[:, None] == classes, wanted[:, None] == classes)
        bins = metrics.calibration(confidence, predicted == wanted)
        return {
            **evaluation(self, logits, labels),
            "macro_f1": metrics.macro_f1(predicted, wanted),
            "calibration_error": metrics.calibration_error(bins),
            "classes": dict(zip(self.names, figures, strict=True)),
            "confusion": metrics.confusion(predicted, wanted, C).tolist(),
            "calibration": bins,
        }

    def reader(self):
        from support.labels import KnownClasses  # late: Arrow takes a while to import

        return KnownClasses(self.names)

    def spell(self, labels: Tensor) -> list:
        """The names of classes (N,)."""
        return [self.names[number] for number in labels.tolist()]

    def answer(self, logits: Tensor) -> dict:
        """What is said of one text, with the probability of each class; logits (C,)."""
        probabilities = rounded(logits.softmax(-1))
        return {
            "label": self.names[logits.argmax()],
            "confidence": max(probabilities),
            "scores": dict(zip(self.names, probabilities, strict=True)),
        }

    def as_text(self, answer: dict) -> str:
        return "{label:<10} {confidence:6.1%}".format_map(answer)

    def columns(self, logits: Tensor, scores: bool = False) -> dict[str, list]:
        """What a labelled table says of N texts: the most probable class, and how probable.

        With `scores` also how probable each class is.
        """
        probabilities = logits.softmax(-1)  # (N, C)
        highest, best = probabilities.max(-1)  # (N,), (N,)
        columns = {
            "label": self.spell(best),
            "confidence": rounded(highest),
        }
        return columns | (score_columns(self.names, probabilities) if scores else {})


class MultiLabel:
    """Any of C labels for each text, as toxic, insult and threat; they are 0 or 1, float32 (N, C).

    A label is given where its probability is above `threshold`.
    """

    problem_type = "multi_label_classification"
    step_metric = "accuracy"

    def __init__(self, names: list[str], metric: str = "", threshold: float = 0.5):
        self.names = names
        self.metric = metric or "macro_f1"
        self.threshold = threshold
        if self.metric not in metrics.SET_METRICS:
            known = ", ".join(metrics.SET_METRICS)
            raise InputError(f"--metric {self.metric}: of several labels a text it is {known}")

    def describe(self) -> str:
        return f"any of the labels {listing(self.names)}"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The binary cross-entropy of logits and labels (B, C): the mean over the labels, summed
        over the batch."""
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        return total / len(self.names)

    training_loss = loss
    adjust_loss = refuse_adjusting

    def predict(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() > self.threshold  # (N, C)

    def count_right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (self.predict(logits) == labels).all(-1).sum()

    def rows_of_classes(self, labels: np.ndarray) -> dict[str, int]:
        """How many of the rows (N, C) each label has."""
        return dict(zip(self.names, labels.sum(0).astype(int).tolist(), strict=True))

    def scores(self, predicted: np.ndarray, labels: np.ndarray) -> dict:
        labels = labels.astype(bool)
        return {name: score(predicted, labels) for name, score in metrics.SET_METRICS.items()}

    def constant_scores(self, train: np.ndarray, labels: np.ndarray) -> tuple:
        """The labels that most rows of `train` (M, C) have: their names, and how they do."""
        common = train.mean(0) > 0.5  # (C,)
        names = [name for name, is_common in zip(self.names, common, strict=True) if is_common]
        predicted = np.broadcast_to(common, labels.shape)
        return " and ".join(names) or "no label", self.scores(predicted, labels)

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")  # (N, C)
        return loss.mean(-1)  # (N,)

    def report(self, logits: Tensor, labels: Tensor) -> dict:
        """All figures of logits and labels (N, C), as JSON holds them.

        The calibration is that of the N · C probabilities, whatever the threshold.
        """
        predicted, wanted = self.predict(logits).numpy(), labels.bool().numpy()  # (N, C), (N, C)
        figures = metrics.class_figures(predicted, wanted)
        probabilities = logits.double().sigmoid().numpy()  # (N, C)
        bins = metrics.calibration(probabilities.ravel(), wanted.ravel())
        return {
            **evaluation(self, logits, labels),
            "calibration_error": metrics.calibration_error(bins),
            "classes": dict(zip(self.names, figures, strict=True)),
            "calibration": bins,
        }

    def reader(self):
        from support.labels import KnownClasses, LabelSets  # late: Arrow takes a while to import

        return LabelSets(KnownClasses(self.names))

    def spell(self, labels: Tensor) -> list:
        """The names of the labels (N, C) of each text."""
        names = np.array(self.names, dtype=object)
        return [names[row].tolist() for row in labels.bool().numpy()]

    def answer(self, logits: Tensor) -> dict:
        """All labels above the threshold, and the probability of each; logits (C,)."""
        given = self.predict(logits).tolist()
        return {
            "labels": [name for name, is_given in zip(self.names, given, strict=True) if is_given],
            "scores": dict(zip(self.names, rounded(logits.sigmoid()), strict=True)),
        }

    def as_text(self, answer: dict) -> str:
        shown = [f"{label} {answer['scores'][label]:.1%}" for label in answer["labels"]]
        return f"{', '.join(shown) or '-':<17}"

    def columns(self, logits: Tensor, scores: bool = False) -> dict[str, list]:
        """What a labelled table says of N texts: lists of labels, and how probable the least
        certain of the C decisions is; with `scores` also how probable each label is."""
        probabilities = logits.sigmoid()  # (N, C)
        given = self.predict(logits)  # (N, C)
        decided = probabilities.where(given, 1 - probabilities)
        columns = {
            "label": self.spell(given),
            "confidence": rounded(decided.amin(-1)),
        }
        return columns | (score_columns(self.names, probabilities) if scores else {})


class Regression:
    """A number for each text, as STS-B's similarity from 0 to 5."""

    problem_type = "regression"
    step_metric = None

    def __init__(self, names: list[str], metric: str = ""):
        self.names = names  # one, as transformers has it
        self.metric = metric or "pearson"
        if len(names) != 1:
            raise InputError(f"a regression has one number, and no classes {listing(names)}")

    def describe(self) -> str:
        return "one number, a regression"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The squared error of logits (B, 1) and labels (B,), summed over the batch."""
        return F.mse_loss(self.predict(logits), labels, reduction="sum")

    training_loss = loss
    adjust_loss = refuse_adjusting

    def predict(self, logits: Tensor) -> Tensor:
        return logits[:, 0]  # (N, 1) -> (N,)

    def count_right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return labels.new_zeros(())

    def rows_of_classes(self, labels: np.ndarray) -> dict[str, int]:
        return {}

    def scores(self, predicted: np.ndarray, labels: np.ndarray) -> dict:
        return {name: score(predicted, labels) for name, score in metrics.NUMBER_METRICS.items()}

    def constant_scores(self, train: np.ndarray, labels: np.ndarray) -> tuple:
        """The mean of the labels `train` (M,), in words, and how it does on (N,)."""
        mean = train.mean(dtype=np.float64)
        scores = dict.fromkeys(["loss", *metrics.NUMBER_METRICS], 0.0)
        scores["loss"] = float(np.mean((mean - labels) ** 2))
        return f"the mean, {mean:.3f},", scores

    def row_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (self.predict(logits) - labels) ** 2  # (N,)

    def report(self, logits: Tensor, labels: Tensor) -> dict:
        """All figures of logits (N, 1) and labels (N,), as JSON holds them."""
        predicted = self.predict(logits)  # (N,)
        return {
            **evaluation(self, logits, labels),
            "mean_absolute_error": (predicted - labels).abs().double().mean().item(),
        }

    def reader(self):
        from support.labels import KnownNumbers  # late: Arrow takes a while to import

        return KnownNumbers()

    def spell(self, labels: Tensor) -> list:
        return rounded(labels)

    def answer(self, logits: Tensor) -> dict:
        return {"score": rounded(logits)[0]}

    def as_text(self, answer: dict) -> str:
        return "{score:<17.3f}".format_map(answer)

    def columns(self, logits: Tensor, scores: bool = False) -> dict[str, list]:
        """Raises InputError for `scores`, which a number has none of."""
        if scores:
            raise InputError("--scores: a regression has one number, and no classes to score")
        return {"score": self.spell(self.predict(logits))}


Task = Classification | MultiLabel | Regression


def metric_in_words(task: Task) -> str:
    """The metric by which the best model is chosen; F1 of two classes is that of the second."""
    return f"f1 of {task.names[1]!r}" if task.metric == "f1" else task.metric


def evaluation(task: Task, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The mean loss and the scores of logits (N, C), on the CPU, and their labels."""
    loss = task.loss(logits, labels).item() / len(labels)
    return {"loss": loss, **task.scores(task.predict(logits).numpy(), labels.numpy())}


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
        if not isinstance(task, MultiLabel) or not 0 < threshold < 1:
            raise InputError(
                f"--threshold {threshold:g}: between 0 and 1, of several labels a text"
            )
        task.threshold = threshold
    return task
