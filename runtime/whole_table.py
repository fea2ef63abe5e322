"""What sample.py does with a whole table, its options, and which of them go together."""

from collections.abc import Callable

from support.errors import InputError
from support.options import flag

USES = ("score", "out")  # of several the first one: --score --out writes the scored rows
GO_WITH = {  # the uses of a table by which an option is honoured; "": texts that are no table
    "json": ["", "score"],
    "text_column": ["score", "out"],
    "batch_tokens": ["score", "out"],
    "label_column": ["score"],
    "label_names": ["score"],
    "label_separator": ["score"],
    "label_columns": ["score"],
    "prefix": ["out"],
    "scores": ["out"],
}


def add_options(parser) -> None:
    add = parser.add_argument
    add("--out", help="label --file, a .parquet .csv .tsv .jsonl or .txt, into this new file")
    add("--score", action="store_true", help="say how good the answers to a --file with labels are")
    for option in "--label-column", "--label-names", "--label-separator", "--label-columns":
        add(option, default="", help="with --score: as in train.py")
    add("--text-column", "--text-columns", default="", help="of a table: the column, of pairs a,b")
    add("--prefix", default="", help="with --out: before the new columns' names, as in predicted_")
    add("--scores", action="store_true", help="with --out: also a column for each class")
    tokens = "of a table: tokens in a batch, padding included (default: 1024; of a GPU 16384)"
    add("--batch-tokens", type=int, help=tokens)


def choose_work(given) -> Callable | None:
    """What is done with the table --file: a function of a Model of sample.py and the options.

    It is None for texts that are no table. Raises InputError for options that do not go together.
    """
    use = next((use for use in USES if getattr(given, use)), "")
    for name, uses in GO_WITH.items():
        if getattr(given, name) and use not in uses:
            ways = [flag(way) for way in uses if way]
            raise InputError(f"{flag(name)} goes with {' or '.join(ways)} alone")
    if not use:
        if given.file and given.file.endswith((".parquet", ".csv", ".jsonl")):
            raise InputError(f"{given.file}: a table; --out labels it, and --score scores it")
        return None
    if not given.file or len(given.adapter or []) > 1:
        raise InputError(f"{flag(use)} takes a whole --file, and one --adapter")
    if given.batch_tokens is not None and given.batch_tokens < 1:
        raise InputError(f"--batch-tokens {given.batch_tokens}: at least 1")
    if use == "out":
        from runtime import labelling  # late: Arrow takes a while to import

        return labelling.label
    from runtime import scoring  # late, likewise

    return scoring.score
