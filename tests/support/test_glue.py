"""The nine tasks as the Hub has them, and GLUE's metrics against scikit-learn's and scipy's."""

import json

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import sklearn.metrics
from helpers import GLUE_SCHEMAS
from pyarrow import parquet

from data import load_data
from support.glue import CLASS_METRICS, METRICS, NUMBER_METRICS, TASKS, name_of, usual_metric

# What is reported, by the paper (table 1); accuracy of all others.
REPORTED = {
    "cola": "matthews_correlation",
    "mrpc": "f1",
    "qqp": "f1",
    "stsb": "pearson",
}


def write_split(path, task: str, rows: int) -> list:
    """A split as the Hub has it: the label last but one, then idx, the features in the metadata."""
    columns, names = GLUE_SCHEMAS[task]
    labels = np.arange(rows) % len(names) if names else np.arange(rows) / rows * 5
    if "test" in path.name:
        labels = labels * 0 - 1  # GLUE keeps these to itself
    features = {column: {"dtype": "string", "_type": "Value"} for column in columns}
    features["label"] = {"names": names, "_type": "ClassLabel"}
    if not names:
        features["label"] = {"dtype": "float32", "_type": "Value"}
    features["idx"] = {"dtype": "int32", "_type": "Value"}
    table = {column: [f"{path.stem} {column} {n}" for n in range(rows)] for column in columns}
    table["label"] = pa.array(labels, pa.int64() if names else pa.float32())
    table["idx"] = pa.array(range(rows), pa.int32())
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(pa.table(table).replace_schema_metadata(metadata), path)
    return np.float32(labels).tolist()


@pytest.mark.parametrize("task", GLUE_SCHEMAS)
def test_the_name_of_a_task_is_all_it_takes(tmp_path, task):
    """From the folder, or from `name` where the folder has another; the test split is not read."""
    columns, names = GLUE_SCHEMAS[task]
    kinds = ["_matched", "_mismatched"] if task == "mnli" else [""]
    folder = tmp_path / "snapshot"
    folder.mkdir()
    labels = {"": write_split(folder / "train-00000-of-00001.parquet", task, 12)}
    for kind in kinds:
        write_split(folder / f"test{kind}-00000-of-00001.parquet", task, 9)
        labels[kind] = write_split(folder / f"validation{kind}-00000-of-00001.parquet", task, 9)
    data = load_data(folder, name=task)
    assert data.columns == columns and data.task.names == (names or ["LABEL_0"])
    assert data.task.metric == REPORTED.get(task, "accuracy")
    assert data.train.texts[1] == tuple(f"train-00000-of-00001 {c} 1" for c in columns)
    assert data.validation.labels.tolist() == labels[kinds[0]]
    assert (data.mismatched is not None) == (task == "mnli")
    if data.mismatched:
        assert data.mismatched.texts[0][0] == "validation_mismatched-00000-of-00001 premise 0"
    folder.rename(tmp_path / task)
    again = load_data(tmp_path / task)
    assert again.columns == columns and again.train.labels.tolist() == data.train.labels.tolist()


def test_a_name_is_the_last_part_of_a_path(tmp_path, monkeypatch):
    for data in "nyu-mll/glue/sst2", "nyu-mll/glue/sst2@main", "nyu-mll/glue/sst2@a/b", "my/sst2/":
        assert name_of(data) == "sst2"
    (tmp_path / "x@y").mkdir()
    assert name_of(str(tmp_path / "x@y")) == "x@y"
    monkeypatch.chdir(tmp_path / "x@y")
    assert name_of(".") == "x@y"


def test_every_task_has_one_of_the_metrics():
    assert len(TASKS) == 9
    for task, (metric, names, _) in TASKS.items():
        assert metric in METRICS and metric == REPORTED.get(task, "accuracy")
        assert usual_metric(names) == (metric if names else "accuracy")


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
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(labels, predicted),
    }
    for metric, score in expected.items():
        assert CLASS_METRICS[metric](predicted, labels) == pytest.approx(score, abs=1e-12)


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
