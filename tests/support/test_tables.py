"""Tables of every format, whole or spoilt, at once and streamed."""

import json
import re
import subprocess
import sys
import tracemalloc

import pandas
import pyarrow as pa
import pytest
from helpers import ROOT, write_table
from pyarrow import parquet

from data import load_data
from support.dialects import BLOCK
from support.errors import InputError
from support.splits import find_splits
from support.tables import Table

GOOD = "Good, \"very\" 'good'"
BAD = '"007" bad 1.0'
TABLE = {"text": [f"{GOOD} {i}" for i in range(20)] + [f"{BAD} {i}" for i in range(20)]}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("labels", [["positive", "negative"], [1, 0]], ids=["names", "numbers"])
def test_single_file(tmp_path, suffix, labels):
    table = TABLE | {"label": [labels[0]] * 20 + [labels[1]] * 20}
    data = load_data(write_table(tmp_path / f"reviews.{suffix}", table))
    assert sorted(data.train.texts + data.validation.texts) == sorted((t,) for t in TABLE["text"])
    assert (len(data.train.texts), len(data.validation.texts)) == (36, 4)
    names = sorted(labels) if labels[0] == "positive" else ["LABEL_0", "LABEL_1"]
    assert (data.task.names, data.task.metric, data.columns) == (names, "accuracy", ["text"])
    for split in data.train, data.validation:
        assert split.labels.tolist() == [int(text.startswith("Good")) for (text,) in split.texts]


def test_csv_of_a_spreadsheet(tmp_path):
    """A byte-order mark, Windows line ends, quotes, commas and line breaks inside a text, a column
    too many."""
    content = '\ufeffid,text,label\r\n1,"one, ""two""\r\nthree",yes\r\n2,NA,no\r\n3,007,yes\r\n'
    (tmp_path / "a.csv").write_bytes(content.encode())
    data = load_data(tmp_path / "a.csv")
    found = {}
    for split in data.train, data.validation:
        for (text,), number in zip(split.texts, split.labels, strict=True):
            found[text] = data.task.names[number]
    assert found == {'one, "two"\r\nthree': "yes", "NA": "no", "007": "yes"}


# Which files, and which columns.


def write_tables(folder, names):
    for name in names:
        write_table(folder / name, {"text": [f"{name} a", "b"], "label": ["no", "yes"]})


@pytest.mark.parametrize("names", [
    ("train.csv", "validation.csv"),
    ("train.jsonl", "validation.parquet"),
    ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
    ("train.tsv", "validation_matched.tsv"),
    ("train.csv", "validation_matched-00000-of-00001.csv", "validation_mismatched.csv"),
])  # fmt: skip
def test_directory(tmp_path, names):
    """Files of a test split, and others, are not read."""
    write_tables(tmp_path, names)
    for other in "test.csv", "test_matched.csv", "notes.txt", "train.py":
        (tmp_path / other).write_text("not for training")
    data = load_data(tmp_path)
    splits = [data.train, data.validation, data.mismatched][: len(names)]
    for name, split in zip(names, splits, strict=True):
        assert split.texts == [(f"{name} a",), ("b",)] and split.labels.tolist() == [0, 1]
    assert data.task.names == ["no", "yes"] and (data.mismatched is None) == (len(names) == 2)


def test_files_that_are_missing_or_contradict_each_other_are_named(tmp_path):
    write_tables(tmp_path, ["train-00000-of-00003.csv", "train-00002-of-00003.csv"])
    write_tables(tmp_path, ["validation.csv"])
    with pytest.raises(InputError, match=r"or all of its parts, found train-00000"):
        find_splits(tmp_path)
    write_tables(tmp_path, ["train-00001-of-00003.csv"])
    assert len(load_data(tmp_path).train.labels) == 6
    for other in (
        "train.parquet",
        "train.csv",
        "train-00000-of-00002.csv",
        "train-00001-of-00003.tsv",
        "validation_matched.csv",
    ):
        write_tables(tmp_path, [other])
        with pytest.raises(InputError, match=f"expected .*, found .*{other}|and 1 more"):
            find_splits(tmp_path)
        (tmp_path / other).unlink()
    (tmp_path / "validation.csv").unlink()
    assert [*find_splits(tmp_path)] == ["train"]
    for path in tmp_path.glob("train*"):
        path.unlink()
    with pytest.raises(InputError, match=r"expected one train.csv, .*, found none"):
        find_splits(tmp_path)


def test_parts_and_chosen_columns(tmp_path):
    """A row is counted from the start of the first part."""
    parts = [tmp_path / f"train-0000{n}-of-00003.parquet" for n in range(3)]
    for n, part in enumerate(parts):
        write_table(part, {"sentence": ["x"], "mine": [f"part {n}"], "stars": [n]})
    write_table(tmp_path / "validation.csv", {"mine": ["part 9"], "stars": [2]})
    chosen = {"text_columns": ["mine"], "label_column": "stars"}
    data = load_data(tmp_path, **chosen)
    assert data.train.texts == [("part 0",), ("part 1",), ("part 2",)]
    assert (data.train.labels.tolist(), data.validation.labels.tolist()) == ([0, 1, 2], [2])
    for table, problem in [
        ({"sentence": ["x"], "mine": [""], "stars": [2]}, r"1 of 3 rows without a text \(row 3\)"),
        ({"sentence": ["x"], "mine": ["y"], "stars": [4]}, "row 3 has the label 4"),
    ]:
        write_table(parts[2], table)
        with pytest.raises(InputError, match=f"^{parts[0]}, {parts[1]}, {parts[2]}: {problem}"):
            load_data(tmp_path, **chosen)


def test_parts_need_the_columns_that_are_read_and_no_others(tmp_path):
    """In whatever order."""
    rows = [{"text": "a", "label": 0, "x": 1}, {"label": 1, "text": "b"}, {"text": "c", "y": 2}]
    for n, row in enumerate(rows):
        path = tmp_path / f"train-0000{n}-of-00003.jsonl"
        path.write_text(json.dumps(row | {"label": n % 2}) + "\n")
    data = load_data(tmp_path, holdout=0.4)
    texts = data.train.texts + data.validation.texts
    assert sorted(texts) == [("a",), ("b",), ("c",)]
    path.write_text('{"text": "c"}\n')
    with pytest.raises(InputError, match=r"00002-of-00003.jsonl: no column label among text"):
        load_data(tmp_path)


def test_validation_reads_the_columns_that_training_reads(tmp_path):
    texts = {"text": ["good", "bad"], "label": [1, 0]}
    write_table(tmp_path / "train.csv", texts)
    write_table(tmp_path / "validation.csv", texts | {"sentence": ["id0", "id1"]})
    assert load_data(tmp_path).validation.texts == [("good",), ("bad",)]
    pairs = {"question": ["a", "b"], "sentence": ["c", "d"], "label": [1, 0], "a": ["x", "y"]}
    write_table(tmp_path / "train.csv", pairs)
    with pytest.raises(InputError, match=r"validation.csv: no column question\+sentence among"):
        load_data(tmp_path)
    for columns in (
        ["label"],
        ["sentence", "label"],
        ["sentence"] * 2,
        ["question", "sentence", "a"],
    ):
        with pytest.raises(InputError, match="name one or two columns of texts"):
            load_data(tmp_path, text_columns=columns)


@pytest.mark.parametrize("task", ["mrpc", "qqp", "mnli", "qnli", "rte", "wnli", "stsb"])
def test_a_task_of_pairs_is_not_trained_on_one_text(tmp_path, task):
    """Though its other column is there, or a column that texts usually have."""
    texts = ["one", "two", "three"]
    (tmp_path / task).mkdir()
    for split in "train", "validation":
        table = {"sentence": texts, "text": texts, "label": [0, 1, 2]}
        write_table(tmp_path / task / f"{split}.csv", table)
    with pytest.raises(InputError, match=r"no column .* among sentence, text, label; name yours"):
        load_data(tmp_path / task)
    names = ["a", "b", "c"]
    data = load_data(tmp_path / task, text_columns=["text"], label_names=names, metric="accuracy")
    assert data.columns == ["text"]  # it was said


# Spoilt tables.

TWO = {"sentence": ["good", "bad"], "label": [1, 0]}
# Not valid UTF-8; Arrow does not look at it when it reads a parquet file.
LATIN = pa.StringArray.from_buffers(2, *pa.array([b"good", b"\xff\xfe"]).buffers()[1:])


@pytest.mark.parametrize("name, table, problem", [
    ("a.parquet", {"words": ["good"], "label": [1]}, r": no column .* or sentence or .* words"),
    ("b.csv", {"sentence": ["good"], "stars": [1]}, ": no column label among sentence, stars"),
    ("c.csv", b"sentence,sentence,label\ngood,x,1\n", ": two columns are called 'sentence'"),
    ("d.parquet", TWO | {"sentence": [["good"], ["bad"]]}, ": cannot be read .*list"),
    ("e.parquet", TWO | {"sentence": ["good", ""]}, ": 1 of 2 rows without a text .row 2"),
    ("f.csv", TWO | {"sentence": [" ", "bad"]}, ": 1 of 2 rows without a text .row 1"),
    ("g.parquet", TWO | {"sentence": ["good", None]}, ": 1 of 2 rows without a text .row 2"),
    ("h.jsonl", TWO | {"sentence": ["\u2003\t", "bad"]}, ": 1 of 2 rows without a text .row 1"),
    ("i.csv", b"", ": cannot be read"),
    ("j.jsonl", b"", ": holds no rows"),
    ("k.csv", b"sentence,label\n", ": holds no rows"),
    ("l.csv", "sentence,label\ncaf\xe9,1\nbad,0\n".encode("latin-1"), ": is no UTF-8, .*CP1252"),
    ("m.csv", "sentence,label,\xe9\ngood,1,x\n".encode("latin-1"), ": is no UTF-8, .*CP1252"),
    ("n.csv", b"sentence,label\ngood,1\na,b,c\n", ": cannot be read"),
    ("o.parquet", b"PAR1 of no use", ": cannot be read"),
    ("p.parquet", "truncated", ": cannot be read"),
    ("q.parquet", TWO | {"sentence": pa.array([b"\xff", b"bad"])}, ": cannot be read .*UTF8"),
    ("r.parquet", TWO | {"sentence": LATIN}, r": cannot be read \(.*UTF8"),
    ("s.json", b"{}\n", ": the name must end in .parquet, .csv, .tsv, .jsonl"),
    ("t.csv", b'sentence,label\n"good,1\n' + b"bad,0\n" * 10**6, ": cannot be read .*good"),
    ("u.jsonl", b'{"sentence": "x", "label": 1\n', ": row 1: cannot be read"),
    ("v.jsonl", b'{"sentence": "good", "label": 1}\n[1]\n', ": row 2: cannot be read .'list'"),
    ("w.jsonl", b'{"sentence": ["good"], "label": 1}\n', ": cannot be read .*cast from list"),
    ("x.jsonl", b'{"sentence": "\\ud800", "label": 1}\n', ": cannot be read .*surrogates"),
])  # fmt: skip
def test_spoilt_tables_are_named_in_one_line(tmp_path, name, table, problem):
    path = tmp_path / name
    if path.suffix == ".parquet" and isinstance(table, dict):
        parquet.write_table(pa.table(table), path)
    elif isinstance(table, dict):
        write_table(path, table)
    elif table == "truncated":
        write_table(path, TWO)
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.write_bytes(table)
    with pytest.raises(InputError) as error:
        load_data(path)
    assert re.match(f"{path}{problem}", str(error.value)) and "\n" not in str(error.value)


# Streams.

ROWS = {"text": [f"{GOOD} {i}" for i in range(9000)], "label": [f"00{i}" for i in range(9000)]}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_a_stream_has_all_rows_in_order(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_table(path, ROWS)
    table = Table(path)
    assert table.schema == pa.schema({"text": pa.string(), "label": pa.string()})
    assert pa.Table.from_batches(table.batches()).to_pydict() == ROWS
    assert pa.Table.from_batches(table.batches(["label"])).to_pydict() == {"label": ROWS["label"]}


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_lines_are_streamed_as_they_stand(tmp_path, suffix):
    """Only a byte-order mark and the ends of the lines are left out, and blank lines of .jsonl."""
    lines = ['{"a": 1.00}\t ', "", 'é\u2028 "x\x0cy', "\ttwo\rparts", "last"]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines[:3]).encode() + b"\n")
    with open(path, "ab") as file:
        file.write("\n".join(lines[3:]).encode())
    table = Table(path)
    assert table.schema == pa.schema({"line": pa.string()})
    found = pa.Table.from_batches(table.batches())["line"].to_pylist()
    assert found == [line for line in lines if line or suffix == "txt"]


def test_a_stream_needs_no_memory_for_the_whole(tmp_path):
    """Nor does a batch come late: the second half of the file is spoilt, and the first is read."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"a film that is long\n".rjust(500) * 10**5 + b"\xff\n")
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a.txt: is no UTF-8, and probably"):
        for batch in Table(path).batches():
            assert batch.num_rows < 10**4
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    row = '"' + "x" * 2**20 + '",0\n'
    too_long = '"' + "x" * 3 * BLOCK + '",1\n'
    (tmp_path / "a.csv").write_text("text,label\n" + row * 20 + too_long)
    sizes = []
    with pytest.raises(InputError, match=r"a.csv: cannot be read \(.*block size"):
        sizes.extend(batch.nbytes for batch in Table(tmp_path / "a.csv").batches())
    assert sum(sizes) > 15 * 2**20 and max(sizes) < 9 * 2**20


def test_arrow_is_imported_with_the_first_table_only():
    """It takes longer than the answer to a text."""
    code = "import sys, sample; print('pyarrow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT) == b"False\n"


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
def test_texts_that_look_like_something_else_are_texts(tmp_path, suffix):
    """Dates, numbers, truths, in all the ways in which pandas writes them; and its categories."""
    texts = ["2024-01-01", "12:30", "007", "1e5", "true", "2024-01-01T00:00:00Z"] * 2
    table = pandas.DataFrame({"text": texts, "label": ["no", "yes"] * 6})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        table.astype("category").to_parquet(path)
    elif suffix == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="," if suffix == "csv" else "\t")
    data = load_data(path)
    assert {text for (text,) in data.train.texts + data.validation.texts} == set(texts)
    assert data.task.names == ["no", "yes"]


def test_a_jsonl_may_hold_anything_beside_what_is_read(tmp_path):
    """Objects, lists, numbers beside texts, in columns of some rows only."""
    others = [{"meta": {"a": [1, {"b": None}]}}, {"meta": 5}, {}, {"n": 1}, {"n": "x"}, {"n": []}]
    rows = [{"text": f"text {n}", "label": n % 2} | row for n, row in enumerate(others)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    data = load_data(path)
    assert len(data.train.texts) + len(data.validation.texts) == 6


@pytest.mark.parametrize("column, bracket", [("text", '{"a":'), ("other", "[")])
def test_nested_brackets_are_one_line_and_no_crash(tmp_path, bracket, column, run):
    """A million of them, in a process of its own."""
    row = {"text": '"good"', "label": "1", "other": "0"} | {column: bracket * 10**6}
    line = "{" + ", ".join(f'"{name}": {value}' for name, value in row.items()) + "}\n"
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "bad", "label": 0}\n' + line)
    code = "import sys, data, support.errors as e; e.run_main(lambda: data.load_data(sys.argv[1]))"
    done = run("-c", code, path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith(f"error: {path}: row 2: cannot be read (maximum recursion")


def test_rows_without_text_or_label_are_all_counted(tmp_path):
    """In one line, those of both kinds; a row is counted from 1."""
    table = {"text": [f"text {n}" for n in range(10_000)], "label": ["no", "yes"] * 5000}
    blanks = ["", " \t", "\u200b\ufeff", "\x01", "\0", "\u00a0\u3000", "\u0301"]
    for n, blank in enumerate(blanks):
        table["text"][n * 1000 + 1] = blank
    table["label"][42] = "NaN"
    table["label"][9999] = ""
    for suffix in "parquet", "jsonl":
        path = write_table(tmp_path / f"a.{suffix}", table)
        with pytest.raises(InputError) as error:
            load_data(path)
        texts = "7 of 10,000 rows without a text (row 2, 1,002, 2,002 and 4 more)"
        labels = "2 of 10,000 rows without a label (row 43, 10,000)"
        expected = f"{path}: {texts} and {labels}; fill them in, or remove them"
        assert str(error.value) == expected


def test_categories_are_labels(tmp_path):
    """As pandas writes them."""
    labels = pa.array(["no", "yes", "no"]).dictionary_encode()
    table = pa.table({"text": ["a", "b", "c"], "label": labels})
    for split in "train", "validation":
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    data = load_data(tmp_path)
    assert (data.task.names, data.train.labels.tolist()) == (["no", "yes"], [0, 1, 0])
