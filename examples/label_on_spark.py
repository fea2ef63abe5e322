"""Labels a table on a cluster with Spark: the same Labeller as on Ray, in mapInPandas.

    pip install -r requirements-cluster.txt          # and Java 17 or newer
    spark-submit examples/label_on_spark.py out/best reviews/ labelled/ --text-column review

Each task of Spark opens one model and labels its partition with it, so that partitions should be large.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # spark-submit knows the folder of this file alone

from examples.label_on_ray import Labeller
from support.console import run_main
from support.files import InputError
from support.options import OneLineParser


def label(frame, **settings):
    """A Spark table with the columns label and confidence added. `settings` are those of Labeller."""

    def partition(frames):
        labeller = Labeller(**settings)  # made where it works: one for each task
        yield from map(labeller, frames)

    schema = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in frame.schema.fields)
    return frame.mapInPandas(partition, f"{schema}, label string, confidence double")


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapter", help="a directory that every machine sees, or a Hub repository")
    parser.add_argument("source", help="a parquet file, or a folder of some")
    parser.add_argument("target", help="a new folder, for parquet files")
    parser.add_argument("--text-column", default="text", help="the column of the text, or the two of a pair: a,b")
    parser.add_argument("--model", help="another base than the adapter names")
    given = parser.parse_args()
    if Path(given.target).exists():
        raise InputError(f"{given.target} is there already: remove it, or name another folder")
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    settings = {"adapter": given.adapter, "text_column": given.text_column, "base": given.model}
    label(spark.read.parquet(given.source), **settings).write.parquet(given.target)


if __name__ == "__main__":
    run_main(main)
