"""Tasks: each knows its loss, its answers and its scores, and nobody else asks which kind it is.

The letters of the shapes are explained in bert.py.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from support import glue
from support.errors import InputError, listing


def rounded(numbers: Tensor) -> list:
    return [round(number, 6) for number in numbers.tolist()]


class Classification:
    """One of C classes for each text."""

    problem_type = "single_label_classification"  # in config.json
    step_metric = "accuracy"  # what count_right counts, for the log of the training
    as_text = "{label:<10} {confidence:6.1%}".format_map  # of an answer

    def __init__(self, names: list[str], metric: str = ""):
        usual = glue.usual_metric(names)
        self.names = names
        self.metric = metric or usual
        self.metrics = dict.fromkeys(["accuracy", self.metric, usual])  # as far as GLUE reports
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
        return (logits.argmax(-1) == labels).sum()

    def scores(self, predicted: np.ndarray, labels: np.ndarray) -> dict:
        return {name: glue.METRICS[name](predicted, labels) for name in self.metrics}

    def constant_scores(self, train: np.ndarray, labels: np.ndarray) -> tuple:
        """The commonest class of the labels `train` (M,): its name, and how it does on (N,)."""
        number = np.bincount(train).argmax()
        predicted = np.full_like(labels, number)
        return self.names[number], self.scores(predicted, labels)

    def answer(self, logits: Tensor) -> dict:
        """What is said of one text, with the probability of each class; logits (C,)."""
        probabilities = rounded(logits.softmax(-1))
        return {
            "label": self.names[logits.argmax()],
            "confidence": max(probabilities),
            "scores": dict(zip(self.names, probabilities, strict=True)),
        }

    def columns(self, logits: Tensor) -> dict:
        """What a labelled table says of N texts: the most probable class, and how probable."""
        probabilities, best = logits.softmax(-1).max(-1)  # (N,), (N,)
        return {
            "label": [self.names[number] for number in best.tolist()],
            "confidence": rounded(probabilities),
        }


class Regression:
    """A number for each text, as STS-B's similarity from 0 to 5."""

    problem_type = "regression"
    step_metric = None
    as_text = "{score:<17.3f}".format_map

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

    def predict(self, logits: Tensor) -> Tensor:
        return logits[:, 0]  # (N, 1) -> (N,)

    def count_right(self, logits: Tensor, labels: Tensor) -> Tensor:
        return labels.new_zeros(())

    def scores(self, predicted: np.ndarray, labels: np.ndarray) -> dict:
        return {name: glue.METRICS[name](predicted, labels) for name in glue.NUMBER_METRICS}

    def constant_scores(self, train: np.ndarray, labels: np.ndarray) -> tuple:
        """The mean of the labels `train` (M,), in words, and how it does on (N,)."""
        mean = train.mean(dtype=np.float64)
        scores = dict.fromkeys(["loss", *glue.NUMBER_METRICS], 0.0)
        scores["loss"] = float(np.mean((mean - labels) ** 2))
        return f"the mean, {mean:.3f},", scores

    def answer(self, logits: Tensor) -> dict:
        return {"score": rounded(logits)[0]}

    def columns(self, logits: Tensor) -> dict:
        return {"score": rounded(self.predict(logits))}


def task_of(config) -> Classification | Regression:
    """The task of a model, by its BertConfig. Raises InputError for one that is not known here."""
    task = Regression if config.num_labels == 1 else Classification
    told = config.problem_type
    if told and told != task.problem_type:
        problem = f"problem_type {told!r:.40} with {config.num_labels} labels"
        raise InputError(f"config.json: {problem} is not supported")
    return task([*config.id2label.values()])
