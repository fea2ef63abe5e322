"""The real Spark on this machine: every row as sample.py labels it, once."""

import shutil
import sys
from pathlib import Path

import pytest
from pyarrow import parquet
from test_label_on_ray import assert_same_rows, labelled, model  # noqa: F401, the fixtures

from examples import label_on_spark
from support.errors import run_main

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
}


@pytest.fixture
def spark(monkeypatch):
    if not shutil.which("java"):
        pytest.skip("Spark needs Java")
    from pyspark.sql import SparkSession  # late: the other examples need none

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    builder = SparkSession.builder.master("local[2]")
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    yield
    spark.stop()


def test_every_row_is_labelled_once(spark, labelled, model, tmp_path, monkeypatch):  # noqa: F811
    source, expected = labelled
    out = tmp_path / "out"
    words = ["label_on_spark.py", model, source, str(out), "--text-column", "sentence"]
    monkeypatch.setattr(sys, "argv", words)
    run_main(label_on_spark.main)
    assert_same_rows(parquet.read_table(out).to_pylist(), expected)
    assert (out / "_SUCCESS").exists()
