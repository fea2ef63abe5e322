"""The nine tasks as the Hub has them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from helpers import GLUE_SCHEMAS
from pyarrow import parquet

from data import load_data
from support.glue import TASKS, name_of, usual_metric
from support.metrics import METRICS

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
