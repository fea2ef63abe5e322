"""The metrics of GLUE against scikit-learn's and scipy's, what one guess for all rows would give
too."""

import re

import numpy as np
import pytest
import scipy.stats
import sklearn.dummy
import sklearn.metrics

from support.glue import METRICS, TASKS, by_guessing, score

A, B = np.random.default_rng(0).integers(0, 2, (2, 500))


@pytest.mark.parametrize(
    "predicted", [A, B, 1 - A, A * 0, A * 0 + 1], ids=["a", "b", "not a", "zeros", "ones"]
)
@pytest.mark.parametrize(
    "labels", [A, A | B, A * 0, A * 0 + 1], ids=["a", "a or b", "zeros", "ones"]
)
@pytest.mark.filterwarnings("ignore:A single label")
def test_scores_are_those_of_sklearn(predicted, labels):
    accuracy = sklearn.metrics.accuracy_score(labels, predicted)
    f1 = sklearn.metrics.f1_score(labels, predicted, zero_division=0)
    matthews = sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert score("accuracy", predicted * 3, labels * 3) == pytest.approx({"accuracy": accuracy})
    assert score("f1", predicted, labels) == pytest.approx({"accuracy": accuracy, "f1": f1})
    expected = {"accuracy": accuracy, "matthews_correlation": matthews}
    assert score("matthews_correlation", predicted, labels) == pytest.approx(expected, abs=1e-12)
    for task, name, value in (
        ("mrpc", "f1", f1),
        ("qqp", "f1", f1),
        ("cola", "matthews_correlation", matthews),
    ):
        both = score(
            "accuracy", predicted.astype(float), labels, TASKS[task][1]
        )  # whatever best/ is best by
        assert both == pytest.approx({"accuracy": accuracy, name: value}, abs=1e-12)
    assert [*score("accuracy", predicted, labels, TASKS["rte"][1])] == ["accuracy"]


draw = np.random.default_rng(1).normal
X, NOISE = draw(size=1000), draw(size=1000)
NUMBERS = {
    "random": (X, NOISE),
    "alike": (X, 3 * X + NOISE),
    "the same": (X, X),
    "the other way round": (X, -2 * X + 5),
    "many ties, as STS-B's labels": (X + NOISE, np.round(X * 2) / 2),
    "two values": (X + NOISE, (X > 0) * 1.0),
    "single precision": (X.astype(np.float32), (X + NOISE).astype(np.float32)),
    "far from 0": (X + 1e6, X + NOISE - 1e6),
    "tiny": (X * 1e-30, NOISE + X),
    "two rows": (np.array([1.0, 2.0]), np.array([5.0, 3.0])),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_correlations_are_those_of_scipy(metric, name):
    predicted, labels = NUMBERS[name]
    expected = {
        "pearson": scipy.stats.pearsonr(
            predicted.astype(np.float64), labels.astype(np.float64)
        ).statistic,
        "spearman": scipy.stats.spearmanr(predicted, labels).statistic,
    }
    assert score(metric, predicted, labels) == pytest.approx(expected, abs=1e-9)
    assert all(abs(value) <= 1 for value in score(metric, predicted, labels).values())


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e6 + 0.1])
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_a_constant_correlates_with_nothing(constant):
    """scipy says that it is not defined, and so does numpy, but for the rounding of the mean."""
    predicted = np.full(len(X), constant)
    assert np.isnan(scipy.stats.pearsonr(predicted, X).statistic)
    assert np.isnan(scipy.stats.spearmanr(predicted, X).statistic)
    assert (
        score("pearson", predicted, X)
        == score("spearman", X, predicted)
        == {"pearson": 0.0, "spearman": 0.0}
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_passed_on_without_a_warning(value):
    assert np.isnan(score("pearson", np.where(np.arange(1000) == 3, value, X), NOISE)["pearson"])


@pytest.mark.filterwarnings("ignore:A single label")
@pytest.mark.parametrize("task", [name for name in TASKS if name != "stsb"])
def test_one_guess_is_that_of_a_dummy(task):
    """The commonest class of the training split, scored on the validation split by scikit-learn."""
    metric, names, _ = TASKS[task]
    train, labels = (A | B)[:300], (A & B)[300:]  # mostly 1, and mostly 0
    dummy = sklearn.dummy.DummyClassifier(strategy="most_frequent").fit(train, train)
    predicted = dummy.predict(labels)
    text = by_guessing(metric, train, labels, names)
    assert text.startswith(f"always guessing {names[1]} would give ")
    found = dict(re.findall(r"(accuracy|f1|matthews correlation) (-?[\d.]+)", text))
    expected = {"accuracy": sklearn.metrics.accuracy_score(labels, predicted)}
    if metric == "f1":
        expected["f1"] = sklearn.metrics.f1_score(labels, predicted)
    if metric == "matthews_correlation":
        expected["matthews correlation"] = sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert found == {name: f"{value:.4f}" for name, value in expected.items()}


def test_one_guess_of_a_regression_is_that_of_a_dummy():
    train, labels = (X[:600] + 2).astype(np.float32), (X[600:] + 2).astype(np.float32)
    dummy = sklearn.dummy.DummyRegressor(strategy="mean").fit(train, train)
    loss = sklearn.metrics.mean_squared_error(labels, dummy.predict(labels))
    expected = f"always guessing the mean, {dummy.constant_.item():.3f}, would give loss {loss:.4f}  pearson 0.0000"
    assert by_guessing("spearman", train, labels, ["LABEL_0"]) == f"{expected}  spearman 0.0000"


def test_every_task_has_one_of_the_metrics():
    assert len(TASKS) == 9 and {metric for metric, _, _ in TASKS.values()} < {*METRICS}
