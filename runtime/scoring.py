"""How good a model is on texts with labels: its figures, its classes and its mistakes.

They come as text, as JSON, as a table with a line for each row, and as a picture. What a figure is
stands in support/tasks.py and support/metrics.py.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv
from torch import Tensor

from data import encode
from runtime import texts
from runtime.adapters import same_classes
from runtime.labelling import pack
from runtime.report import draw
from runtime.texts import Text
from support import files, parallel, tables
from support.errors import InputError, listing, plain
from support.options import split_list
from support.tasks import Task

WORST = 10  # rows that are shown
MOST_CLASSES = 20  # of a confusion matrix that is shown
WIDTH = 80  # of a text that is shown
NAME_WIDTH = 20  # of a class's name that heads a column


def score(model, given) -> None:
    """Scores a Model of sample.py on the table `given.file`, and prints the report.

    `given` has sample.py's other options too. Raises InputError for a table that cannot be read, or
    whose labels the model does not know.
    """
    if given.out:
        files.refuse_unwritable(Path(given.out))
        if not given.out.endswith(".csv"):
            raise InputError(f"--out {given.out}: of --score the name must end in .csv")
    if given.label_names:
        names = dict.fromkeys(split_list(given.label_names))
        model.task.names = same_classes(model.name, model.task.names, [*names])
    marked = split_list(given.label_columns)
    if marked and sorted(marked) != sorted(model.task.names):
        raise InputError(f"--label-columns: the model has the labels {listing(model.task.names)}")
    rows = tables.gather_rows(
        [Path(given.file)],
        split_list(given.text_column),
        given.label_column or "label",
        label_columns=marked,
        separator=given.label_separator,
    )
    rows.refuse_missing(model.task.names)
    texts.refuse_other_kind(model.name, model.network.config, rows.texts)
    labels = torch.from_numpy(model.task.read_labels(rows))  # (N,), or of several labels (N, C)
    if rows.splits:
        rows.notes.append("all rows are scored, whatever the column split says")
    for note in rows.notes:
        print(f"note: {note}", file=sys.stderr)

    pack(model)
    logits = texts.compute_logits(model, encode(model.tokenizer, rows.texts), given.batch_tokens)
    report, worst = assess(model.task, rows.texts, logits, labels)
    if not parallel.is_first():
        return
    if given.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(as_text(report, worst))
    if given.out:
        with files.written_whole(given.out, new=True) as path:
            csv.write_csv(worst, path)


def report_run(setup, logits: Tensor, out: Path) -> str:
    """The report of best/ as text, by its `logits` (N, C) of the validation rows.

    Writes it as report.json and report.png, and the rows into validation_predictions.csv. `setup`
    is a train.Setup.
    """
    labels = setup.validation_set.labels.cpu()
    report, worst = assess(setup.task, setup.data.validation.texts, logits, labels)
    files.write_json(out / "report.json", report)
    with files.written_whole(out / "validation_predictions.csv") as temporary:
        csv.write_csv(worst, temporary)
    problem = draw(out / "report.png", partial(paint, report, worst))
    lines = ["best/ on the validation rows:", as_text(report, worst), problem]
    return "\n".join(filter(None, lines))


def assess(task: Task, given: list[Text], logits: Tensor, labels: Tensor) -> tuple[dict, pa.Table]:
    """All figures of N rows, as JSON holds them, and a table with a line for each row.

    A line has the number of the row, label, answer, confidence, loss and text; those of the highest
    loss come first.
    """
    columns = {
        "row": range(1, len(given) + 1),
        "label": joined(task.spell(labels)),
        "answer": joined(task.spell(task.predict(logits))),
        "confidence": task.columns(logits).get("confidence"),  # of a number there is none
        "loss": task.row_losses(logits, labels).tolist(),
        "text": [text[0] for text in given],
        "text_pair": [text[1] for text in given] if len(given[0]) == 2 else None,
    }
    table = pa.table({name: column for name, column in columns.items() if column})
    worst = table.sort_by([("loss", "descending"), ("row", "ascending")])
    return {"rows": len(given), **task.report(logits, labels)}, worst


def joined(labels: list) -> list:
    """Of several labels a text one cell of a .csv, with commas between them."""
    return [",".join(label) if isinstance(label, list) else label for label in labels]


# The picture.


def paint(report: dict, table: pa.Table, left, right) -> None:
    """Draws which class was answered for which, and how often the model was as sure as right; of
    numbers the answers and their errors."""
    if "classes" in report:
        paint_classes(left, report)
        paint_calibration(right, report)
    else:
        labels, answers = (np.array(table[name]) for name in ("label", "answer"))
        left.scatter(labels, answers, s=8, alpha=0.4)
        left.axline((labels.mean(), labels.mean()), slope=1, color="0.6")
        left.set(xlabel="label", ylabel="answer")
        right.hist(answers - labels, bins=40, color="0.6")
        right.set(xlabel="answer - label", ylabel="rows", title="errors")
    left.set(title=f"{report['rows']:,} validation rows")


def paint_classes(axis, report: dict) -> None:
    """The confusion matrix, or of several labels a text the figures of each."""
    names = [spell(name, NAME_WIDTH) for name in report["classes"]]
    if "confusion" in report:
        heads = names
        numbers = np.array(report["confusion"])  # (C, C)
        shares = numbers / np.maximum(1, numbers.sum(1, keepdims=True))
        axis.set(xlabel="answer", ylabel="label")
    else:
        heads = ["precision", "recall", "f1"]
        figures = report["classes"].values()
        shares = np.array([[of_class[head] for head in heads] for of_class in figures])  # (C, 3)
        numbers = shares.round(2)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1.5, aspect="auto")  # no darker than its figures
    style = {"fontsize": min(10, 240 / len(names)), "parse_math": False}  # a dollar is no formula
    axis.set_xticks(range(len(heads)), heads, rotation=45, **style)
    axis.set_yticks(range(len(names)), names, **style)
    if len(names) <= MOST_CLASSES:
        for (row, column), number in np.ndenumerate(numbers):
            axis.text(column, row, number, ha="center", va="center")


def paint_calibration(axis, report: dict) -> None:
    """A reliability diagram (Guo et al., 2017, figure 1)."""
    right = report["calibration"]["right"]
    width = 1 / len(right)
    middles = (np.arange(len(right)) + 0.5) * width
    axis.bar(middles, right, width, edgecolor="white")
    axis.plot([0, 1], [0, 1], color="0.6")
    title = f"expected calibration error {report['calibration_error']:.3f}"
    axis.set(xlabel="confidence", ylabel="fraction right", xlim=(0, 1), ylim=(0, 1), title=title)


# As text.


def as_text(report: dict, worst: pa.Table) -> str:
    """A report for people; `worst` is a table with the worst rows first."""
    lines = aligned([[name, value] for name, value in report.items() if np.isscalar(value)])
    classes = report.get("classes", {})
    if classes:
        heads = ["class", "precision", "recall", "f1", "rows"]
        figures = [[name, *of_class.values()] for name, of_class in classes.items()]
        lines += ["", *aligned([heads, *figures])]
    if "confusion" in report and len(classes) <= MOST_CLASSES:
        heads = ["", *(spell(name, NAME_WIDTH) for name in classes)]
        counts = [[name, *row] for name, row in zip(classes, report["confusion"], strict=True)]
        lines += ["", "a row for each label, a column for each answer:"]
        lines += aligned([heads, *counts])
    shown = [[*row.values()] for row in worst[:WORST].to_pylist()]
    lines += ["", f"the {len(shown)} rows of the highest loss:"]
    lines += aligned([worst.column_names, *shown])
    return "\n".join(lines)


def aligned(rows: list[list]) -> list[str]:
    """Lines whose cells stand in columns: numbers on the right, words on the left."""
    columns = []
    for cells in zip(*rows, strict=True):
        words = [spell(cell) for cell in cells]
        width = max(map(len, words))
        is_text = isinstance(cells[-1], str)
        columns.append([word.ljust(width) if is_text else word.rjust(width) for word in words])
    return ["  ".join(words).rstrip() for words in zip(*columns, strict=True)]


def spell(value, width: int = WIDTH) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = plain(str(value))
    return text if len(text) <= width else text[: width - 1] + "…"
