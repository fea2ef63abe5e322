"""Labels a table on a cluster with Spark: the same Labeller as on Ray, in mapInPandas.

    pip install -r requirements-cluster.txt          # and Java 17 or newer
    spark-submit examples/label_on_spark.py out/best reviews/ labelled/ --text-column review

Each task of Spark opens one model and labels its partition with it, so that partitions should be
large.
"""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # spark-submit knows the folder of this file alone

from examples.label_on_ray import Labeller, parse
from support.console import run_main
from support.options import OneLineParser


def label(frame, **settings):
    """A Spark table with the columns label and confidence added. `settings` are those of
    Labeller."""

    def partition(frames):
        labeller = Labeller(**settings)  # made where it works: one for each task
        yield from map(labeller, frames)

    schema = ", ".join(
        f"`{field.name}` {field.dataType.simpleString()}" for field in frame.schema.fields
    )
    return frame.mapInPandas(partition, f"{schema}, label string, confidence double")


def main() -> None:
    given, settings = parse(OneLineParser(description=__doc__.partition("\n")[0]))
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    label(spark.read.parquet(given.source), **settings).write.parquet(given.target)


if __name__ == "__main__":
    run_main(main)
