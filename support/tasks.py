"""Tasks: each knows its loss, its answers and its scores, and nobody else asks which kind it is.

The letters of the shapes are explained in bert.py.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support import glue
from support.errors import InputError, listing


class Classification:
    """One of C classes for each text."""

    problem_type = "single_label_classification"  # in config.json
    step_metric = "accuracy"  # what count_right counts, for the log of the training

    def __init__(self, names: list[str], metric: str = ""):
        usual = glue.usual_metric(names)
        self.names = names
        self.metric = metric or usual
        self.metrics = dict.fromkeys(["accuracy", self.metric, usual])
        if len(names) < 2:
            raise InputError(f"a classification has two classes or more, not {len(names)}")
        if self.metric not in glue.CLASS_METRICS:
            raise InputError(f"--metric {self.metric} is one of numbers, and the data has classes")
        if self.metric != "accuracy" and len(names) != 2:
            raise InputError(f"--metric {self.metric} takes two classes; the data has {len(names)}")

    def describe(self) -> str:
        return f"classes {listing(self.names)}"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of logits (B, C) and labels (B,), summed over the batch."""
        return F.cross_entropy(logits, labels, reduction="sum")

    def predict(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)  # (N, C) -> (N,)

    def count_right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (self.predict(logits) == labels).sum()

    def scores(self, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """By name, of classes (N,): the accuracy, the metric, and what GLUE reports of the task."""
        return {name: glue.METRICS[name](predicted, labels) for name in self.metrics}

    def constant_scores(self, train: np.ndarray, labels: np.ndarray) -> tuple[str, dict]:
        """The commonest class of the labels `train` (M,): its name, and how it does on (N,)."""
        number = np.bincount(train).argmax()
        predicted = np.full(len(labels), number)
        return self.names[number], self.scores(predicted, labels)

    def answer(self, logits: Tensor) -> dict:
        """What is said of one text, with the probability of each class; logits (C,)."""
        probabilities = [round(p, 6) for p in logits.softmax(-1).tolist()]
        scores = dict(zip(self.names, probabilities, strict=True))
        best = self.names[logits.argmax()]
        return {"label": best, "confidence": scores[best], "scores": scores}

    def as_text(self, answer: dict) -> str:
        return f"{answer['label']:<10} {answer['confidence']:6.1%}"

    def columns(self, logits: Tensor) -> dict[str, list]:
        """What a labelled table says of N texts: the most probable class, and how probable."""
        probabilities, best = logits.softmax(-1).max(-1)  # (N,), (N,)
        return {
            "label": [self.names[number] for number in best.tolist()],
            "confidence": [round(p, 6) for p in probabilities.tolist()],
        }


class Regression:
    """A number for each text, as STS-B's similarity from 0 to 5."""

    problem_type = "regression"
    step_metric = None

    def __init__(self, names: list[str], metric: str = ""):
        self.names = names  # one, as transformers has it
        self.metric = metric or "pearson"
        if len(names) != 1:
            raise InputError(f"a regression has one number, not {len(names)}: {listing(names)}")

    def describe(self) -> str:
        return "one number, a regression"

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The squared error of logits (B, 1) and labels (B,), summed over the batch."""
        return F.mse_loss(self.predict(logits), labels, reduction="sum")

    def predict(self, logits: Tensor) -> Tensor:
        return logits[:, 0]  # (N, 1) -> (N,)

    def count_right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros((), device=logits.device)

    def scores(self, predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """By name, of numbers (N,)."""
        return {name: glue.METRICS[name](predicted, labels) for name in glue.NUMBER_METRICS}

    def constant_scores(self, train: np.ndarray, labels: np.ndarray) -> tuple[str, dict]:
        """The mean of the labels `train` (M,), in words, and how it does on (N,)."""
        mean = train.mean(dtype=np.float64)
        predicted = np.full(len(labels), mean)
        loss = float(np.mean((predicted - labels) ** 2))
        return f"the mean, {mean:.3f},", {"loss": loss, **self.scores(predicted, labels)}

    def answer(self, logits: Tensor) -> dict:
        return {"score": round(float(logits[0]), 6)}

    def as_text(self, answer: dict) -> str:
        return f"{answer['score']:<17.3f}"

    def columns(self, logits: Tensor) -> dict[str, list]:
        return {"score": [round(number, 6) for number in logits[:, 0].tolist()]}


TASKS = {task.problem_type: task for task in (Classification, Regression)}


def task_of(config) -> Classification | Regression:
    """The task of a model, by its BertConfig. Raises InputError for one that is not known here."""
    usual = Regression if config.num_labels == 1 else Classification
    problem_type = config.problem_type or usual.problem_type
    if problem_type not in TASKS:
        raise InputError(f"config.json: problem_type {problem_type!r:.40} is not supported")
    return TASKS[problem_type]([*config.id2label.values()])
