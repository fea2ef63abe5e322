"""Tables as other programs write them: pandas, Python's csv, spreadsheets, GLUE's own files."""

import csv
import io

import pandas
import pytest

from data import load_data
from support.dialects import find_dialect
from support.errors import InputError
from support.tables import Table

TEXTS = ["good, very; good", 'she said "hi"', '"quoted"', "two\nlines", "a\ttab", "plain", "a|b"]
TABLE = pandas.DataFrame({"text": TEXTS * 3, "label": ["yes", "no", "maybe"] * 7})


def read_back(path) -> dict:
    table = Table(path)
    found = {name: [] for name in table.schema.names}
    for batch in table.batches():
        for name, values in batch.to_pydict().items():
            found[name] += values
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_tsv_whose_fields_are_all_quoted(tmp_path, encoding):
    """Though none of them needs it: the names of the columns are quoted too."""
    path = tmp_path / "a.tsv"
    table = pandas.DataFrame({"text": ["good", "", "bad"], "label": ["yes", "no", "no"]})
    table.to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_ALL, encoding=encoding)
    assert read_back(path) == table.to_dict("list")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", ["MINIMAL", "ALL", "NONNUMERIC"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_pandas_writes_is_read_back(tmp_path, suffix, separator, quoting, encoding):
    path = tmp_path / f"a.{suffix}"
    form = {"sep": separator, "quoting": getattr(csv, f"QUOTE_{quoting}"), "encoding": encoding}
    TABLE.to_csv(path, index=False, **form)
    assert read_back(path) == TABLE.to_dict("list")
    data = load_data(path)
    texts = {text for (text,) in data.train.texts + data.validation.texts}
    assert texts == set(TEXTS) and data.task.names == ["maybe", "no", "yes"]
    usual = {"csv": ",", "tsv": "\t"}[suffix]
    said = "stands between the columns" if separator != usual else "the fields are quoted"
    expected = separator != usual or suffix == "tsv"
    assert any(said in note for note in data.notes) == expected


def test_a_spreadsheet_of_europe(tmp_path):
    """Excel's own first line, Windows' line ends, blanks around the names, rows with commas."""
    content = (
        "sep=;\r\n\xa0text ;\u200blabel \r\ngut, sehr gut;ja\r\n schlecht;nein\r\nja, ja;ja\r\n"
    )
    plain = content.partition("\n")[2]
    for number, text in enumerate([content, plain, plain.replace("\r\n", "\r")]):
        path = tmp_path / f"{number}.csv"
        path.write_bytes(text.encode())
        found = {"text": ["gut, sehr gut", " schlecht", "ja, ja"], "label": ["ja", "nein", "ja"]}
        assert read_back(path) == found
        table = Table(path)
        assert table.schema.names == ["text", "label"]
        some = [batch.to_pydict() for batch in table.batches(["label"])]
        assert some == [{"label": ["ja", "nein", "ja"]}]


@pytest.mark.parametrize("content, problem", [
    ("text;label\na;b;1\nc;0\n", "cannot be read .*Expected 2 columns, got 3: a;b;1"),
    ("text|part;label\na|b;1\nc|d;0\n", "no column .* among text|part;label"),
])  # fmt: skip
def test_a_separator_that_does_not_fit_every_row_is_named(tmp_path, content, problem):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=problem):
        load_data(path)


def test_one_column_is_no_matter_of_separators(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\na; b\n|\nc; d\n")
    assert read_back(path) == {"text": ["a; b", "|", "c; d"]}


# Quotation marks in a .tsv.


@pytest.mark.parametrize("texts", [
    ['"good film"', "plain"],
    ['"good" he said', 'a 5" disk'],
    ['it is "doubled ""here"" once"', '"left open'],
    ['an ""odd"" one', '""'],
    ['"a', 'b"', '"c ""d"" e"', 'f"'],
])  # fmt: skip
def test_glues_quotation_marks_are_part_of_the_texts(tmp_path, texts):
    """In its own files no field is quoted, as Python's csv says with QUOTE_NONE."""
    path = tmp_path / "a.tsv"
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts))
    assert not find_dialect(path).is_quoted
    with open(path, newline="") as file:
        theirs = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    found = read_back(path)
    assert found["sentence"] == [row["sentence"] for row in theirs] == texts


def test_random_tables_are_read_as_they_were_written(tmp_path):
    """By Python's csv in three ways; in a raw one every row is one line without tabs."""
    import random

    draw = random.Random(0)
    path = tmp_path / "a.tsv"
    for _ in range(200):
        texts = ["".join(draw.choices('ab" \t\n,', k=draw.randrange(1, 9))) for _ in range(6)]
        quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        file = io.StringIO()
        writer = csv.writer(file, "excel-tab", quoting=quoting, lineterminator="\n")
        writer.writerows([("text", "label"), *((text, "x") for text in texts)])
        path.write_text(file.getvalue(), newline="")
        assert read_back(path)["text"] == texts, file.getvalue()
