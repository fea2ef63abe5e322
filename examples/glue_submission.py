"""The answers of a labelled table as GLUE's server takes them: "index<tab>prediction" in a line.

    python sample.py --adapter out-rte/best --file rte.parquet --prefix predicted_ --out a.parquet
    python -m examples.glue_submission a.parquet RTE.tsv

The name of the file says for which task, as on https://gluebenchmark.com/faq: SST-2.tsv, AX.tsv.
"""

from pathlib import Path

from support import errors, files, tables
from support.errors import InputError, listing
from support.glue import STSB_RANGE, TASKS
from support.options import OneLineParser

SUBMISSIONS = {
    "CoLA": "cola",
    "SST-2": "sst2",
    "MRPC": "mrpc",
    "QQP": "qqp",
    "STS-B": "stsb",
    "MNLI-m": "mnli",
    "MNLI-mm": "mnli",
    "QNLI": "qnli",
    "RTE": "rte",
    "WNLI": "wnli",
    "AX": "mnli",  # the diagnostic set
}
NAMED = ("mnli", "qnli", "rte")  # whose answers it takes by name, and those of the others by number


def submit(labelled: str, out: str) -> None:
    """Writes the answers of the table `labelled` into the new file `out`."""
    task = SUBMISSIONS.get(Path(out).stem)
    if not task or not out.endswith(".tsv"):
        raise InputError(f"{out}: GLUE's files are called {', '.join(SUBMISSIONS)}, each with .tsv")
    _, classes, _ = TASKS[task]
    name = "predicted_label" if classes else "predicted_score"
    columns = tables.Table(Path(labelled)).read()
    if name not in columns:
        raise InputError(f"{labelled}: has no column {name}, which {task} takes")
    lines = ["index\tprediction"]
    for row, answer in enumerate(tables.as_labels(columns[name])):
        if answer is None or (classes and answer not in classes):
            takes = listing(classes) or "a number"
            raise InputError(f"{labelled}: row {row + 1} has {answer!r}, and {task} takes {takes}")
        if not classes:
            low, high = STSB_RANGE
            answer = f"{min(max(float(answer), low), high):.3f}"
        elif task not in NAMED:
            answer = classes.index(answer)
        lines.append(f"{row}\t{answer}")
    with files.written_whole(out, new=True) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("labelled", help="a table that sample.py --prefix predicted_ has labelled")
    parser.add_argument("out", help="a new file, called as GLUE's server wants it: SST-2.tsv")
    given = parser.parse_args()
    submit(given.labelled, given.out)


if __name__ == "__main__":
    errors.run_main(main)
