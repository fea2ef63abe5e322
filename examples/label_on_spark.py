"""Labels a table on a cluster with Spark: the same Labeller as on Ray, in mapInPandas.

    pip install -r examples/requirements-cluster.txt          # and Java 17 or newer
    spark-submit examples/label_on_spark.py out/best reviews/ labelled/ --text-column review

Each task of Spark opens one model and labels its partition with it, so that partitions should be
large.
"""

import sys
from pathlib import Path

# spark-submit knows the folder of this file alone.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.label_on_ray import Labeller, parse
from runtime import labelling
from support.errors import run_main
from support.options import OneLineParser

TYPES = {str: "string", float: "double", list: "array<string>"}


def label(frame, **settings):
    """A Spark table with the columns of the answers. `settings` are those of Labeller."""

    def label_partition(frames):
        labeller = Labeller(**settings)  # made where it works: one for each task
        yield from map(labeller, frames)

    labeller = Labeller(**settings)  # here too, as its answers tell the types of the new columns
    answers = labelling.answer_columns(labeller.model, [("a text",) * len(labeller.columns)])
    columns = [f"`{field.name}` {field.dataType.simpleString()}" for field in frame.schema.fields]
    columns += [f"`{name}` {TYPES[type(values[0])]}" for name, values in answers.items()]
    return frame.mapInPandas(label_partition, ", ".join(columns))


def main() -> None:
    given, settings = parse(OneLineParser(description=__doc__))
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    labelled = label(spark.read.parquet(given.source), **settings)
    labelled.write.parquet(given.target)


if __name__ == "__main__":
    run_main(main)
