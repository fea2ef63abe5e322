"""How good a model is on texts with labels: its figures, its classes and its mistakes.

They come as text, as JSON, as a table with a line for each row, and as a picture. What a figure is
stands in support/tasks.py and support/metrics.py.
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from data import encode
from runtime import texts
from runtime.labelling import pack
from runtime.texts import Text
from support import errors, files, parallel, tables
from support.errors import InputError, plain
from support.options import split_list
from support.tasks import Task

WORST = 10  # rows that are shown
MOST_CLASSES = 20  # of a confusion matrix that is shown
WIDTH = 80  # of a text that is shown
FORMATS = (".csv", ".parquet", ".jsonl")


def score(model, given) -> None:
    """Scores a Model of sample.py on the table `given.file`, and prints the report.

    `given` has sample.py's options text_column, label_column, label_names, json, out and
    batch_tokens too. Raises InputError for a table that cannot be read, or whose labels the model
    does not know.
    """
    out = Path(given.out) if given.out else None
    if out:
        files.refuse_existing(out)
        if out.suffix not in FORMATS:
            raise InputError(f"--out {out}: of --score the name must end in {', '.join(FORMATS)}")
    names = split_list(given.label_names)
    if names and len(names) != len(model.task.names):
        raise InputError(f"--label-names: the model has {len(model.task.names)} classes")
    model.task.names = names or model.task.names

    columns = split_list(given.text_column)
    rows = tables.read_rows([Path(given.file)], columns, given.label_column or "label")
    texts.refuse_other_kind(model.name, model.model.config, rows.texts)
    reader = model.task.reader()
    labels = torch.from_numpy(reader.read(rows))  # (N,), or of several labels (N, C)
    if reader.note:
        print(f"note: {reader.note}", file=sys.stderr)

    pack(model)
    logits = texts.compute_logits(model, encode(model.tokenizer, rows.texts), given.batch_tokens)
    report = make_report(model.task, logits, labels)
    table = make_table(model.task, rows.texts, logits, labels)
    if not parallel.is_first():
        return
    if given.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        errors.say(as_text(report, worst_first(table)))
    if out:
        with files.written_whole(out, new=True) as path:
            write_table(table, path, out.suffix)


def make_report(task: Task, logits: Tensor, labels: Tensor) -> dict:
    """All figures of N rows, as JSON holds them: `rows`, and what the task reports."""
    return {"rows": len(labels), **task.report(logits, labels)}


def make_table(task: Task, given: list[Text], logits: Tensor, labels: Tensor) -> pa.Table:
    """A line for each row: its number, label, answer, confidence, loss and text."""
    answers = task.columns(logits)
    answer = answers.pop(next(iter(answers)))
    columns = zip(("text", "text_pair"), zip(*given, strict=True), strict=False)
    table = {
        "row": range(1, len(given) + 1),
        "label": task.spell(labels),
        "answer": answer,
        **answers,
        "loss": task.row_losses(logits, labels).tolist(),
        **dict(columns),
    }
    return pa.table(table)


def worst_first(table: pa.Table) -> pa.Table:
    return table.sort_by([("loss", "descending"), ("row", "ascending")])


def write_table(table: pa.Table, path: Path, kind: str) -> None:
    """Writes a table as a file of this kind, a name's end."""
    if kind == ".csv":
        csv.write_csv(table, path)
    elif kind == ".parquet":
        parquet.write_table(table, path)
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()]
        path.write_text("".join(lines), encoding="utf-8")


# As text.


def as_text(report: dict, worst: pa.Table) -> str:
    """A report for people; `worst` is a table with the worst rows first."""
    figures = {name: value for name, value in report.items() if isinstance(value, int | float)}
    parts = [aligned([[name, value] for name, value in figures.items()])]
    classes = report.get("classes", {})
    if classes:
        heads = ["class", "precision", "recall", "f1", "rows"]
        rows = [[name, *figures.values()] for name, figures in classes.items()]
        parts.append(aligned([heads, *rows]))
    if 0 < len(report.get("confusion", [])) <= MOST_CLASSES:
        rows = [[name, *row] for name, row in zip(classes, report["confusion"], strict=True)]
        parts.append(["a row for each label, a column for each answer:"])
        parts[-1] += aligned([["", *classes], *rows])
    rows = worst[:WORST].to_pylist()
    parts.append([f"the {len(rows)} rows of the highest loss:"])
    parts[-1] += aligned([[*rows[0]], *([*row.values()] for row in rows)])
    return "\n\n".join("\n".join(part) for part in parts)


def aligned(rows: list[list]) -> list[str]:
    """Lines whose cells stand in columns: numbers on the right, words on the left."""
    cells = [[spell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [isinstance(value, int | float) for value in rows[-1]]
    lines = []
    for row in cells:
        columns = zip(row, widths, is_number, strict=True)
        lines.append("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in columns))
    return [line.rstrip() for line in lines]


def spell(value) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = plain(",".join(value) if isinstance(value, list) else str(value))
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
