"""The metrics of GLUE against scikit-learn's."""

import numpy as np
import pytest
import sklearn.metrics

from support.glue import score

A, B = np.random.default_rng(0).integers(0, 2, (2, 500))


@pytest.mark.parametrize("predicted", [A, B, 1 - A, A * 0, A * 0 + 1], ids=["a", "b", "not a", "zeros", "ones"])
@pytest.mark.parametrize("labels", [A, A | B, A * 0, A * 0 + 1], ids=["a", "a or b", "zeros", "ones"])
@pytest.mark.filterwarnings("ignore:A single label")
def test_scores_are_those_of_sklearn(predicted, labels):
    accuracy = sklearn.metrics.accuracy_score(labels, predicted)
    f1 = sklearn.metrics.f1_score(labels, predicted, zero_division=0)
    matthews = sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert score("accuracy", predicted * 3, labels * 3) == pytest.approx({"accuracy": accuracy})
    assert score("f1", predicted, labels) == pytest.approx({"accuracy": accuracy, "f1": f1})
    expected = {"accuracy": accuracy, "matthews_correlation": matthews}
    assert score("matthews_correlation", predicted, labels) == pytest.approx(expected, abs=1e-12)
