"""Labels a table on a cluster with Ray: a model in each actor, and an actor that dies is begun
anew.

    pip install -r requirements-cluster.txt
    python -m examples.label_on_ray out/best reviews/ labelled/ --text-column review --actors 8

sample.py --out needs no cluster: on one machine, or on several under torchrun that see one file
system, it does as much. Ray is for machines that come and go, and for tables in an object store
(s3://…), which it reads itself. Labeller is all that it needs from here, and what Spark needs too
(label_on_spark.py).
"""

from pathlib import Path

from data import encode
from lora import merge_lora_weights
from sample import open_model, probabilities
from support import labelling
from support.console import run_main
from support.files import InputError
from support.options import OneLineParser

# in a piece: what an actor is given, and does again if it dies; rows of similar length share a
# batch
ROWS = 4096


class Labeller:
    """Called with a table of pandas, it returns it with the columns of the answers. It holds one
    model."""

    def __init__(
        self, adapter: str, text_column: str, base: str | None = None, max_length: int | None = None
    ):
        self.model, self.tokenizer = open_model(adapter, {}, base, max_length)
        labelling.place(merge_lora_weights(self.model), "auto", "auto")
        self.columns = text_column.split(",")

    def __call__(self, frame):
        texts = [frame[column].tolist() for column in self.columns]
        found = labelling.answers(
            self.model.config, probabilities(self.model, encode(self.tokenizer, texts))
        )
        if clash := found.keys() & {*frame.columns}:
            raise InputError(
                f"the table has a column {min(clash)!r} already, as the answer would; rename it"
            )
        return frame.assign(**found)


def label(source: str, target: str, actors: int, cpus: float, gpus: float, **settings) -> None:
    """Reads parquet, labels it in so many actors, writes parquet: every row once, with all its
    columns.

    Ray's writer keeps no order of rows: sort by a column of yours where that matters. Some of the
    cluster's CPUs must be left to read and to write, or everything waits for them.
    """
    import ray  # late, so that Spark needs no Ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    table = ray.data.read_parquet(source).repartition(
        target_num_rows_per_block=ROWS
    )  # Ray's own blocks are hours long
    how = {"compute": ray.data.ActorPoolStrategy(size=actors), "num_cpus": cpus, "num_gpus": gpus}
    how |= {"batch_format": "pandas", "batch_size": ROWS}
    table = table.map_batches(Labeller, fn_constructor_kwargs=settings, **how)
    table.write_parquet(target)


def parse(parser: OneLineParser) -> tuple:
    """The command line, with what Spark's program is told too; and of it the settings of a
    Labeller."""
    parser.add_argument("adapter", help="a directory that every machine sees, or a Hub repository")
    parser.add_argument("source", help="a parquet file, or a folder of some; on Ray also s3://…")
    parser.add_argument("target", help="a new folder, for parquet files")
    parser.add_argument(
        "--text-column", default="text", help="the column of the text, or the two of a pair: a,b"
    )
    parser.add_argument("--model", help="another base than the adapter names")
    given = parser.parse_args()
    if Path(given.target).exists():
        raise InputError(f"{given.target} is there already: remove it, or name another folder")
    return given, {"adapter": given.adapter, "text_column": given.text_column, "base": given.model}


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--actors", type=int, default=2, help="models at work at once (default: 2)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of an actor (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor (default: 0)")
    given, settings = parse(parser)
    label(given.source, given.target, given.actors, given.cpus, given.gpus, **settings)


if __name__ == "__main__":
    run_main(main)
