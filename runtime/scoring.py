"""How good a model is on texts with labels: its figures, its classes and its mistakes.

They come as text, as JSON, as a table with a line for each row, and as a picture. What a figure is
stands in support/tasks.py and support/metrics.py.
"""

import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv, parquet
from torch import Tensor

from data import encode
from runtime import texts
from runtime.labelling import answer_columns, pack
from runtime.report import draw
from runtime.texts import Text
from support import errors, files, glue, parallel, pieces, tables
from support.errors import InputError, listing, plain
from support.options import split_list
from support.tasks import Task, unnamed

WORST = 10  # rows that are shown
MOST_CLASSES = 20  # of a confusion matrix that is shown
WIDTH = 80  # of a text that is shown
NAME_WIDTH = 20  # of a class's name that heads a column
FORMATS = (".csv", ".parquet", ".jsonl")


def score(model, given) -> None:
    """Scores a Model of sample.py on the table `given.file`, and prints the report.

    `given` has sample.py's other options too. Raises InputError for a table that cannot be read, or
    whose labels the model does not know.
    """
    out = Path(given.out) if given.out else None
    if out:
        files.refuse_unwritable(out)
        if out.suffix not in FORMATS:
            raise InputError(f"--out {out}: of --score the name must end in {', '.join(FORMATS)}")
    names = split_list(given.label_names)
    if names and len(names) != len(model.task.names):
        raise InputError(f"--label-names: the model has {len(model.task.names)} classes")
    if len({*names}) < len(names):
        raise InputError(f"--label-names {given.label_names}: each needs a name of its own")
    if names and model.task.names not in (names, unnamed(len(names))):
        raise InputError(f"--label-names: the model has names, {listing(model.task.names)}")
    model.task.names = names or model.task.names

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
    texts.refuse_other_kind(model.name, model.model.config, rows.texts)
    labels = torch.from_numpy(model.task.reader().read(rows))  # (N,), or of several labels (N, C)
    ignored = ["all rows are scored, whatever the column split says"] * bool(rows.splits)
    for note in [*rows.notes, *ignored]:
        print(f"note: {note}", file=sys.stderr)

    pack(model)
    logits = texts.compute_logits(model, encode(model.tokenizer, rows.texts), given.batch_tokens)
    report = make_report(model.task, logits, labels)
    if not math.isfinite(report["loss"]):
        raise InputError(f"{model.name}: its loss here is not finite; its weights are damaged")
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


def submit(model, given) -> None:
    """Answers the table `given.file` as GLUE's server takes it: "index<tab>prediction" in a line.

    The name of the file `given.out` says for which task, as on https://gluebenchmark.com/faq:
    SST-2.tsv, MNLI-mm.tsv. Raises InputError for another name, and for a model of another task.
    """
    out = Path(given.out)
    files.refuse_unwritable(out)
    if out.suffix != ".tsv" or out.stem not in glue.SUBMISSIONS:
        known = ", ".join(f"{name}.tsv" for name in glue.SUBMISSIONS)
        raise InputError(f"--out {out}: GLUE's files are called {known}")
    table = pieces.Table(
        path=Path(given.file),
        text_columns=split_list(given.text_column),
        pairs=model.model.config.text_pairs,
        answers=pa.schema([]),
    )
    task = glue.SUBMISSIONS[out.stem]
    glue.check_submission(task, model.task.names)
    pack(model)
    lines = ["index\tprediction\n"]
    for piece in table.pieces():
        answers = answer_columns(model, table.texts(piece, len(lines) - 1))
        for answer in next(iter(answers.values())):
            if answer is None:
                raise InputError(f"{given.file}: row {len(lines)} has no text to answer")
            lines.append(f"{len(lines) - 1}\t{glue.submission_label(task, answer)}\n")
    if len(lines) == 1:
        raise InputError(f"{given.file}: holds no rows")
    if parallel.is_first():
        with files.written_whole(out, new=True) as path:
            path.write_text("".join(lines), encoding="utf-8")
        errors.say(f"{out}: {len(lines) - 1:,} rows answered")


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
        columns = {name: table[name] for name in table.column_names}
        for name, column in columns.items():
            if pa.types.is_list(column.type):  # several labels
                columns[name] = [*map(pieces.as_cell, column.to_pylist())]
        csv.write_csv(pa.table(columns), path)
    elif kind == ".parquet":
        parquet.write_table(table, path)
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()]
        path.write_text("".join(lines), encoding="utf-8")


# Of a run.


def report_run(setup, logits: Tensor, out: Path) -> str:
    """The report of best/ as text, by its `logits` (N, C) of the validation rows.

    Writes it as report.json and report.png, and the rows, the worst first, into
    validation_predictions.csv. `setup` is a train.Setup.
    """
    labels = setup.validation_set.labels.cpu()
    report = make_report(setup.task, logits, labels)
    worst = worst_first(make_table(setup.task, setup.validation_texts, logits, labels))
    files.write_json(out / "report.json", report)
    with files.written_whole(out / "validation_predictions.csv") as temporary:
        write_table(worst, temporary, ".csv")
    problem = draw(out / "report.png", partial(paint, report, worst))
    lines = ["best/ on the validation rows:", as_text(report, worst), problem]
    return "\n".join(filter(None, lines))


def paint(report: dict, table: pa.Table, left, right) -> None:
    """Draws which class was answered for which, and how often the model was as sure as right; of
    numbers the answers and their errors."""
    classes = report.get("classes", {})
    if "confusion" in report:
        counts = np.array(report["confusion"])
        paint_matrix(left, counts, counts / np.maximum(1, counts.sum(1, keepdims=True)), [*classes])
        left.set(xlabel="answer", ylabel="label", title=f"{report['rows']:,} validation rows")
    elif classes:
        heads = ["precision", "recall", "f1"]
        shares = np.array([[figures[name] for name in heads] for figures in classes.values()])
        paint_matrix(left, shares.round(2), shares, heads)
        left.set(title=f"{report['rows']:,} validation rows")
    else:
        labels, answers = (np.array(table[name]) for name in ("label", "answer"))
        left.scatter(labels, answers, s=8, alpha=0.4)
        left.axline((labels.mean(), labels.mean()), slope=1, color="0.6")
        left.set(xlabel="label", ylabel="answer", title=f"{report['rows']:,} validation rows")
        right.hist(answers - labels, bins=40, color="0.6")
        right.set(xlabel="answer - label", ylabel="rows", title="errors")
    if classes:
        names = [spell(name, NAME_WIDTH) for name in classes]
        left.set_yticks(range(len(classes)), names, **tick_style(len(classes)))
        paint_calibration(right, report)


def paint_matrix(axis, numbers: np.ndarray, shares: np.ndarray, heads: list[str]) -> None:
    """A matrix of `numbers`, the darker the larger their `shares` from 0 to 1 are."""
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    names = [spell(name, NAME_WIDTH) for name in heads]
    rotation = 90 if len("".join(names)) > 40 else 0
    axis.set_xticks(range(len(heads)), names, rotation=rotation, **tick_style(len(heads)))
    for (row, column), number in np.ndenumerate(numbers):
        if len(numbers) <= MOST_CLASSES:
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, number, ha="center", va="center", color=color)


def tick_style(count: int) -> dict:
    """How so many names stand at an axis; a dollar in them is no formula."""
    return {"fontsize": min(10, 240 / count), "parse_math": False}


def paint_calibration(axis, report: dict) -> None:
    """A reliability diagram (Guo et al., 2017, figure 1)."""
    bins = report["calibration"]
    width = 1 / len(bins["rows"])
    middles = (np.arange(len(bins["rows"])) + 0.5) * width
    axis.bar(middles, bins["right"], width, edgecolor="white")
    axis.plot([0, 1], [0, 1], color="0.6")
    error = report["calibration_error"]
    title = f"expected calibration error {error:.3f}"
    axis.set(xlabel="confidence", ylabel="fraction right", xlim=(0, 1), ylim=(0, 1), title=title)


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
        parts[-1] += aligned([["", *(spell(name, NAME_WIDTH) for name in classes)], *rows])
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


def spell(value, width: int = WIDTH) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = plain(str(pieces.as_cell(value)))
    return text if len(text) <= width else text[: width - 1] + "…"
