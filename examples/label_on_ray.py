"""Labels a table on a cluster with Ray: a model in each actor; one that dies is started again.

    pip install -r examples/requirements-cluster.txt
    python -m examples.label_on_ray out/best reviews/ labelled/ --text-column review --actors 8

sample.py --out needs no cluster: on one machine, or on several under torchrun that see one file
system, it does as much. Ray is for machines that come and go, and for tables in an object store
(s3://…), which it reads itself. Labeller is all that it needs from here, and what Spark needs too
(label_on_spark.py).
"""

from runtime import labelling
from sample import open_model
from support.errors import InputError, run_main
from support.files import refuse_existing
from support.options import OneLineParser, split_list

# In a piece: what an actor is given, and does again if it dies. Rows of similar length share a
# batch.
ROWS = 4096


class Labeller:
    """Holds one model. Called with a table of pandas, it returns it with columns of answers."""

    def __init__(self, adapter: str, text_column: str, base: str = ""):
        self.model = open_model(adapter, base, device="auto", dtype="auto", merge=True)
        labelling.pack(self.model)
        self.columns = split_list(text_column)

    def __call__(self, frame):
        columns = [frame[column].tolist() for column in self.columns]
        texts = list(zip(*columns, strict=True))
        answers = labelling.answer_columns(self.model, texts)
        clash = answers.keys() & {*frame.columns}
        if clash:
            problem = f"a column {min(clash)!r} already, as the answer would be called"
            raise InputError(f"the table has {problem}; rename it")
        return frame.assign(**answers)


def label(source: str, target: str, actors: int, cpus: float, gpus: float, **settings) -> None:
    """Reads parquet, labels it in so many actors, writes parquet: every row once.

    `settings` are those of Labeller. Ray's writer keeps no order of rows: sort by a column of yours
    where that matters. Some of the cluster's CPUs must be left to read and to write, or everything
    waits for them.
    """
    import ray  # late, so that Spark needs no Ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    table = ray.data.read_parquet(source)
    table = table.repartition(target_num_rows_per_block=ROWS)  # Ray's own blocks are hours long
    table = table.map_batches(
        Labeller,
        fn_constructor_kwargs=settings,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus,
        batch_format="pandas",
        batch_size=ROWS,
    )
    table.write_parquet(target)


def parse(parser: OneLineParser) -> tuple:
    """The command line, with what Spark's program takes too, and the settings of a Labeller."""
    add = parser.add_argument
    add("adapter", help="a directory that every machine sees, or a Hub repository")
    add("source", help="a parquet file, or a folder of some; on Ray also s3://…")
    add("target", help="a new folder, for parquet files")
    add("--text-column", default="text", help="the column of the text, or of a pair: a,b")
    add("--model", default="", help="another base than the adapter names")
    given = parser.parse_args()
    refuse_existing(given.target)
    return given, {"adapter": given.adapter, "text_column": given.text_column, "base": given.model}


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=2, help="models at work at once (default: 2)")
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of an actor (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of an actor (default: 0)")
    given, settings = parse(parser)
    resources = {"actors": given.actors, "cpus": given.cpus, "gpus": given.gpus}
    label(given.source, given.target, **resources, **settings)


if __name__ == "__main__":
    run_main(main)
