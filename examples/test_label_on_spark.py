"""The real Spark on this machine: every row as sample.py labels it, once."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from pyarrow import parquet
from test_label_on_ray import labelled, model, same  # noqa: F401, the fixtures

from examples import label_on_spark
from support.console import run_main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def spark(monkeypatch):
    if not shutil.which("java"):
        pytest.skip("Spark needs Java")
    from pyspark.sql import SparkSession  # late: the other examples need none

    for name, value in {
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
    }
    builder = SparkSession.builder.master("local[2]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    yield
    spark.stop()


def test_every_row_is_labelled_once(spark, labelled, model, tmp_path, monkeypatch):  # noqa: F811
    source, expected = labelled
    words = ["label_on_spark.py", model, source, str(tmp_path / "out"), "--text-column", "sentence"]
    monkeypatch.setattr(sys, "argv", words)
    run_main(label_on_spark.main)
    found = parquet.read_table(tmp_path / "out").to_pylist()
    same(found, expected)
    assert os.path.exists(tmp_path / "out" / "_SUCCESS")
