"""Metrics against scikit-learn's and scipy's."""

import json

import numpy as np
import pytest
import scipy.stats
import sklearn.calibration
import sklearn.metrics

from support.metrics import (
    NUMBER_METRICS,
    SET_METRICS,
    TWO_CLASS_METRICS,
    calibration,
    class_figures,
    confusion,
)

A, B = np.random.default_rng(0).integers(0, 2, (2, 500))


@pytest.mark.parametrize("predicted", [A, B, 1 - A, A * 0, A * 0 + 1],
                         ids=["a", "b", "not a", "zeros", "ones"])  # fmt: skip
@pytest.mark.parametrize("labels", [A, A | B, A * 0, A * 0 + 1],
                         ids=["a", "a or b", "zeros", "ones"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:A single label")
def test_metrics_of_classes_are_those_of_sklearn(predicted, labels):
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "f1": sklearn.metrics.f1_score(labels, predicted, zero_division=0),
        "macro_f1": sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, predicted),
    }
    assert expected.keys() == TWO_CLASS_METRICS.keys()
    for metric, score in expected.items():
        assert TWO_CLASS_METRICS[metric](predicted, labels) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("rows, most, least", [(500, 9, 0), (40, 9, 0), (1, 3, 0), (30, 3, 2)])
def test_macro_f1_of_many_classes_is_that_of_sklearn(rows, most, least):
    """Some classes are no labels, some are never predicted, and some are neither."""
    random = np.random.default_rng(rows)
    for predicted, labels in random.integers(0, 9, (50, 2, rows)):
        predicted, labels = np.minimum(predicted, most), np.maximum(labels, least)
        score = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
        assert TWO_CLASS_METRICS["macro_f1"](predicted, labels) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("rows", [1, 300])
def test_metrics_of_several_labels_are_those_of_sklearn(share, rows):
    random = np.random.default_rng(rows)
    labels = random.random((rows, 7)) < np.linspace(0, 1, 7)  # one never, one always
    for predicted in (random.random((rows, 7)) < share, labels, ~labels):
        expected = {"accuracy": sklearn.metrics.accuracy_score(labels, predicted)}
        for average in "macro", "micro":
            score = sklearn.metrics.f1_score(labels, predicted, average=average, zero_division=0)
            expected[f"{average}_f1"] = score
        found = {name: score(predicted, labels) for name, score in SET_METRICS.items()}
        assert found == pytest.approx(expected, abs=1e-12)


def number_scores(predicted, labels):
    return {name: score(predicted, labels) for name, score in NUMBER_METRICS.items()}


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
def test_correlations_are_those_of_scipy(name):
    predicted, labels = NUMBERS[name]
    in_double = [x.astype(np.float64) for x in (predicted, labels)]
    expected = {
        "pearson": scipy.stats.pearsonr(*in_double).statistic,
        "spearman": scipy.stats.spearmanr(predicted, labels).statistic,
    }
    found = number_scores(predicted, labels)
    assert found == pytest.approx(expected, abs=1e-9)
    assert all(abs(value) <= 1 for value in found.values())


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1e6 + 0.1])
@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_a_constant_correlates_with_nothing(constant):
    """scipy says that it is not defined, and so does numpy, save for the rounding of the mean."""
    predicted = np.full(len(X), constant)
    assert np.isnan(scipy.stats.pearsonr(predicted, X).statistic)
    assert np.isnan(scipy.stats.spearmanr(predicted, X).statistic)
    nothing = {"pearson": 0.0, "spearman": 0.0}
    assert number_scores(predicted, X) == number_scores(X, predicted) == nothing


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_passed_on_without_a_warning(value):
    predicted = np.where(np.arange(1000) == 3, value, X)
    assert np.isnan(number_scores(predicted, NOISE)["pearson"])


# Figures of a report.


@pytest.mark.parametrize("rows, most, least", [(500, 9, 0), (40, 9, 0), (1, 3, 0), (30, 3, 2)])
def test_figures_of_each_class_are_those_of_sklearn(rows, most, least):
    """Some classes are no labels, some are never predicted, and some are neither."""
    random = np.random.default_rng(rows)
    for predicted, labels in random.integers(0, 9, (50, 2, rows)):
        predicted, labels = np.minimum(predicted, most), np.maximum(labels, least)
        sets = [each[:, None] == np.arange(10) for each in (predicted, labels)]
        expected = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(10), zero_division=0
        )
        figures = json.loads(json.dumps(class_figures(*sets)))
        found = [[*figures_of_class.values()] for figures_of_class in figures]
        assert np.array(found) == pytest.approx(np.array(expected).T, abs=1e-12)
        table = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(10))
        assert confusion(predicted, labels, 10).tolist() == table.tolist()


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_calibration_is_that_of_sklearn(rows):
    """The bins of its reliability curve; the error is their mean distance, by rows."""
    random = np.random.default_rng(rows)
    for power in 0.2, 1, 5:
        confidence = random.random(rows) ** power
        confidence[:2] = [0.2, 1.0][:rows]  # an edge of two bins, and the last
        right = random.random(rows) < 0.6
        found = calibration(confidence, right)
        bins = found["calibration"]
        expected = sklearn.calibration.calibration_curve(right, confidence, n_bins=15)
        full = np.array(bins["rows"]) > 0
        assert sum(bins["rows"]) == rows
        assert np.array(bins["right"])[full] == pytest.approx(expected[0], abs=1e-12)
        assert np.array(bins["confidence"])[full] == pytest.approx(expected[1], abs=1e-12)
        share = np.array(bins["rows"])[full] / rows
        error = (share * abs(expected[0] - expected[1])).sum()
        assert found["calibration_error"] == pytest.approx(error, abs=1e-12)


def test_who_is_always_right_and_sure_errs_in_nothing():
    found = calibration(np.ones(3), np.ones(3, dtype=bool))
    assert found["calibration_error"] == 0
    assert found["calibration"]["rows"] == [0] * 14 + [3]
    half = calibration(np.ones(4), np.array([True, False, True, False]))
    assert half["calibration_error"] == 0.5
