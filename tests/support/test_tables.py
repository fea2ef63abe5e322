"""Tables of every format, whole or spoilt, and what is held out of them."""

import re

import pytest
from helpers import texts_of, write_table

from data import load_task
from support.files import InputError

GOOD, BAD = "Good, \"very\" 'good'", '"007" bad 1.0'
TABLE = {"text": [f"{GOOD} {i}" for i in range(20)] + [f"{BAD} {i}" for i in range(20)]}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("labels", [["positive", "negative"], [1, 0]], ids=["names", "numbers"])
def test_single_file(tmp_path, suffix, labels):
    path = write_table(tmp_path / f"reviews.{suffix}", TABLE | {"label": [labels[0]] * 20 + [labels[1]] * 20})
    task = load_task(path)
    train, validation = texts_of(task.train), texts_of(task.validation)
    assert (len(train), len(validation), task.metric) == (36, 4, "accuracy")
    assert sorted(train + validation) == sorted((text,) for text in TABLE["text"])
    assert task.label_names == (["negative", "positive"] if labels[0] == "positive" else ["LABEL_0", "LABEL_1"])
    for split in task.train, task.validation:
        assert split.labels.tolist() == [int(text.startswith("Good")) for (text,) in texts_of(split)]
    assert texts_of(load_task(path).validation) == validation


def test_csv_of_a_spreadsheet(tmp_path):
    """A byte-order mark, Windows line ends, quotes, commas and line breaks inside a text, a column too many."""
    content = '\ufeffid,text,label\r\n1,"one, ""two""\r\nthree",yes\r\n2,NA,no\r\n3,007,yes\r\n'
    (tmp_path / "a.csv").write_bytes(content.encode())
    task = load_task(str(tmp_path / "a.csv"))
    assert sorted(texts_of(task.train) + texts_of(task.validation)) == [("007",), ("NA",), ('one, "two"\r\nthree',)]
    for split in task.train, task.validation:
        assert [task.label_names[n] for n in split.labels] == ["no" if t == "NA" else "yes" for (t,) in texts_of(split)]


def test_hold_out_has_no_text_on_both_sides(tmp_path):
    texts = [f"text {i % 50}" for i in range(200)]
    task = load_task(write_table(tmp_path / "repeats.csv", {"text": texts, "label": [i % 2 for i in range(200)]}))
    assert len(task.train.labels) + len(task.validation.labels) == 200
    assert not set(texts_of(task.train)) & set(texts_of(task.validation))
    assert len(set(texts_of(task.validation))) == 5


TWO = {"sentence": ["good", "bad"], "label": [1, 0]}


@pytest.mark.parametrize("name, table, problem", [
    ("a.parquet", {"words": ["good"], "label": [1]}, "no column 'sentence'"),
    ("b.csv", {"sentence": ["good"], "stars": [1]}, "no column 'label'"),
    ("c.parquet", TWO | {"label": [0, -1]}, "row 2 .*label -1"),
    ("d.csv", TWO | {"label": [-1, 0]}, "row 1 .*label -1"),
    ("e.jsonl", TWO | {"label": [0, 2]}, "row 2 .*label 2"),
    ("f.parquet", TWO | {"label": [0.0, 1.0]}, "label 0.0"),
    ("g.parquet", TWO | {"label": [None, 1]}, "row 1 .*label None"),
    ("h.parquet", TWO | {"sentence": [1.5, 2.5]}, "'sentence' is double"),
    ("i.parquet", TWO | {"sentence": ["good", ""]}, "row 2 has no text"),
    ("j.csv", TWO | {"sentence": [" ", "bad"]}, "row 1 has no text"),
    ("k.parquet", TWO | {"sentence": ["good", None]}, "row 2 has no text"),
    ("l.csv", b"", "cannot be read as csv"),
    ("m.jsonl", b"", "cannot be read as jsonl"),
    ("n.csv", b"sentence,label\n", "holds no rows"),
    ("o.csv", "sentence,label\ncaf\xe9,1\nbad,0\n".encode("latin-1"), "cannot be read as csv"),
    ("p.csv", "sentence,label,\xe9\ngood,1,x\nbad,0,y\n".encode("latin-1"), "cannot be read as csv"),
    ("q.csv", b"sentence,label\ngood,1\na,b,c\n", "cannot be read as csv"),
    ("r.parquet", b"PAR1 of no use", "cannot be read as parquet"),
    ("s.parquet", "truncated", "cannot be read as parquet"),
    ("t.txt", b"good\n", "must end in .parquet"),
    ("u.csv", b"sentence,label\ngood,1\ngood,0\n", "two different texts"),
    ("v.csv", b"sentence,label\ngood,0\nbad,0\n", "same label"),
    ("w.csv", None, "no such file"),
])  # fmt: skip
def test_bad_tables_are_named_in_one_line(tmp_path, name, table, problem):
    path = tmp_path / name
    if isinstance(table, dict):
        write_table(path, table)
    elif table == "truncated":
        write_table(path, TWO)
        path.write_bytes(path.read_bytes()[:-9])
    elif table is not None:
        path.write_bytes(table)
    with pytest.raises(InputError) as error:
        load_task(str(path))
    assert re.search(f"{name}: .*{problem}", str(error.value)) and "\n" not in str(error.value)
