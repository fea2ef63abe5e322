"""Tables of every format, whole or spoilt, and what is held out of them."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pytest
from helpers import texts_of, write_table
from pyarrow import parquet
from transformers import AutoTokenizer

from data import load_task, load_tokenizer
from support.files import InputError

GOOD, BAD = "Good, \"very\" 'good'", '"007" bad 1.0'
TABLE = {"text": [f"{GOOD} {i}" for i in range(20)] + [f"{BAD} {i}" for i in range(20)]}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("labels", [["positive", "negative"], [1, 0]], ids=["names", "numbers"])
def test_single_file(tmp_path, suffix, labels):
    path = write_table(
        tmp_path / f"reviews.{suffix}", TABLE | {"label": [labels[0]] * 20 + [labels[1]] * 20}
    )
    task = load_task(path)
    train, validation = texts_of(task.train), texts_of(task.validation)
    assert (len(train), len(validation), task.metric) == (36, 4, "accuracy")
    assert sorted(train + validation) == sorted((text,) for text in TABLE["text"])
    assert task.label_names == (
        ["negative", "positive"] if labels[0] == "positive" else ["LABEL_0", "LABEL_1"]
    )
    for split in task.train, task.validation:
        assert split.labels.tolist() == [
            int(text.startswith("Good")) for (text,) in texts_of(split)
        ]
    assert texts_of(load_task(path).validation) == validation


def test_csv_of_a_spreadsheet(tmp_path):
    """A byte-order mark, Windows line ends, quotes, commas and line breaks inside a text, a column
    too many."""
    content = '\ufeffid,text,label\r\n1,"one, ""two""\r\nthree",yes\r\n2,NA,no\r\n3,007,yes\r\n'
    (tmp_path / "a.csv").write_bytes(content.encode())
    task = load_task(str(tmp_path / "a.csv"))
    assert sorted(texts_of(task.train) + texts_of(task.validation)) == [
        ("007",),
        ("NA",),
        ('one, "two"\r\nthree',),
    ]
    for split in task.train, task.validation:
        assert [task.label_names[n] for n in split.labels] == [
            "no" if t == "NA" else "yes" for (t,) in texts_of(split)
        ]


def test_hold_out_has_no_text_on_both_sides(tmp_path):
    texts = [f"text {i % 50}" for i in range(200)]
    task = load_task(
        write_table(tmp_path / "repeats.csv", {"text": texts, "label": [i % 2 for i in range(200)]})
    )
    assert len(task.train.labels) + len(task.validation.labels) == 200
    assert not set(texts_of(task.train)) & set(texts_of(task.validation))
    assert len(set(texts_of(task.validation))) == 5


@pytest.mark.parametrize("max_length", [128, 5])
def test_hold_out_has_no_tokens_on_both_sides(minilm, tmp_path, max_length):
    """Texts that differ only in what BERT does not see: case, spaces, marks of no width, what is
    cut off."""
    plain = [f"film {i} is {word}, as they say" for i in range(30) for word in ("good", "bad")]
    texts = [
        *plain,
        *(t.upper() for t in plain),
        *(t.replace(" ", "  ") for t in plain),
        *(t + "\u200b" for t in plain),
    ]
    labels = ["good" if "good" in text.lower() else "bad" for text in texts]
    task = load_task(
        write_table(tmp_path / "a.jsonl", {"text": texts, "label": labels}),
        load_tokenizer(minilm, max_length),
    )
    theirs = AutoTokenizer.from_pretrained(minilm)
    seen = lambda split: {
        tuple(theirs(text, truncation=True, max_length=max_length)["input_ids"])
        for (text,) in texts_of(split)
    }
    assert not seen(task.train) & seen(task.validation)
    assert len(seen(task.validation)) == (6 if max_length == 128 else 3)
    assert len(task.train.labels) + len(task.validation.labels) == 240


@pytest.mark.parametrize("labels, names", [
    (["+", "-", "+"], ["+", "-"]),
    (["1.0", "1.1", "b"], ["1.0", "1.1", "b"]),
    ([True, False, True], ["false", "true"]),
    ([1.0, 0.0, 1.0], ["LABEL_0", "LABEL_1"]),
    (["1.0", "0.0", "1.0"], ["LABEL_0", "LABEL_1"]),
    (["1", "2", "other"], ["1", "2", "other"]),
    (["yes", "no", "NA"], ["NA", "no", "yes"]),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_labels_that_can_be_understood(tmp_path, suffix, labels, names):
    texts = [f"{label} {i}" for i, label in enumerate(labels * 20)]
    if suffix == "csv" and not isinstance(labels[0], str):
        labels = [str(label).lower() for label in labels]  # as pandas and Arrow write them
    task = load_task(write_table(tmp_path / f"a.{suffix}", {"text": texts, "label": labels * 20}))
    assert task.label_names == names
    for (text,), number in zip(texts_of(task.train), task.train.labels, strict=True):
        label = text.split()[0].lower() if "true" in names else text.split()[0]
        assert label == names[number] or (names[0] == "LABEL_0" and float(label) == number)


def split_table(folder, train, validation, suffix="csv"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in ("train", train), ("validation", validation):
        write_table(
            folder / f"{split}.{suffix}",
            {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels},
        )
    return str(folder)


def test_the_training_split_alone_decides_the_classes(tmp_path):
    task = load_task(split_table(tmp_path / "a", ["1", "2", "3", "other"], ["1", "3", "2"]))
    assert (task.label_names, task.validation.labels.tolist()) == (
        ["1", "2", "3", "other"],
        [0, 2, 1],
    )
    assert load_task(
        split_table(tmp_path / "b", ["0", "1", "2"], ["2", "2"])
    ).validation.labels.tolist() == [2, 2]
    for train, validation in (
        (["no", "yes"], ["no", "maybe"]),
        (["0", "1"], ["1", "2"]),
        (["0", "1"], ["0", "yes"]),
    ):
        with pytest.raises(
            InputError, match=r"validation.csv: row 2 has the label .*, as in the training split"
        ):
            load_task(split_table(tmp_path / "c", train, validation))


def with_schema(path, table, names):
    """A parquet file as the Hub's data sets write it: the names of the classes stand in its
    schema."""
    features = {
        "label": {"names": names, "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(pa.table(table).replace_schema_metadata(told), path)


def test_names_and_metric_come_from_the_file_the_folder_or_the_user(tmp_path, monkeypatch):
    names, table = (
        ["unacceptable", "acceptable"],
        {"text": ["one", "two", "three"], "label": [1, 0, 1]},
    )
    cola = split_table(tmp_path / "x@y" / "cola", [1, 0], [1], "parquet")
    copied = tmp_path / "my copy"
    copied.mkdir()
    for split in "train", "validation":
        with_schema(copied / f"{split}.parquet", table, names)
    told = lambda *args, **more: (lambda task: (task.label_names, task.metric))(
        load_task(*args, **more)
    )
    assert told(cola) == told(f"{cola}/") == told(str(copied)) == (names, "matthews_correlation")
    monkeypatch.chdir(cola)
    assert told(".") == (names, "matthews_correlation")
    assert told(cola, label_names=["bad", "good"]) == (["bad", "good"], "matthews_correlation")
    assert told(cola, metric="f1") == (names, "f1")
    with_schema(copied / "validation.parquet", table, names[::-1])
    with pytest.raises(
        InputError, match="names the classes acceptable, unacceptable, but the training split"
    ):
        load_task(str(copied))
    stars = split_table(tmp_path / "stars", ["1", "2", "3"], ["3"])
    with pytest.raises(InputError, match=r"label 3, expected 0 to 2 .*--label-names=1,2,3"):
        load_task(stars)
    assert load_task(stars, label_names=["1", "2", "3"]).validation.labels.tolist() == [2]
    with pytest.raises(InputError, match="--metric f1 is one of two classes, and the data has 3"):
        load_task(stars, label_names=["1", "2", "3"], metric="f1")


def test_files_that_lack_or_contradict_each_other_are_named(tmp_path):
    table = {"text": ["one", "two", "three"], "label": [1, 0, 1]}
    for name in "train-00000-of-00003.csv", "train-00002-of-00003.csv", "validation.csv":
        write_table(tmp_path / name, table)
    with pytest.raises(
        InputError, match=r"one of 3 parts, of which train-00001-of-00003.csv is missing"
    ):
        load_task(str(tmp_path))
    write_table(tmp_path / "train-00001-of-00003.csv", table | {"label": [1, None, 1]})
    with pytest.raises(InputError, match=r"train-00001-of-00003.csv: row 2 has no label"):
        load_task(str(tmp_path))
    write_table(tmp_path / "train-00001-of-00003.csv", {"word": ["one"], "label": [1]})
    with pytest.raises(InputError, match=r"train-00001-of-00003.csv: cannot be read"):
        load_task(str(tmp_path))
    write_table(tmp_path / "train-00001-of-00003.csv", table)
    assert len(load_task(str(tmp_path)).train.labels) == 9
    for other in (
        "train.parquet",
        "train.csv",
        "train-00000-of-00002.csv",
        "validation_matched.csv",
        "Train.csv",
    ):
        path = tmp_path / other
        write_table(path, table)
        with pytest.raises(InputError, match="only one of them can be meant"):
            load_task(str(tmp_path))
        os.remove(path)


def test_numbers_are_indices_of_the_names_that_a_file_tells(tmp_path):
    """Also where the names are numbers themselves: 2 is the third name, which here is "10"."""
    names = sorted(map(str, range(11)))
    for split in "train", "validation":
        table = {"text": [f"{split} {name}" for name in names], "label": list(range(11))}
        with_schema(tmp_path / f"{split}.parquet", table, names)
    task = load_task(str(tmp_path))
    assert [task.label_names[n] for n in task.train.labels] == names


@pytest.mark.parametrize(
    "labels",
    [["1", "2", "3"], ["1.0", "2.0", "3.0"], ["01", "+2", "3."], [1, 2, 3], [1.0, 2.0, 3.0]],
)
def test_numbers_mean_the_same_however_they_are_written(tmp_path, labels):
    stars = split_table(tmp_path / "stars", labels, labels, "parquet")
    task = load_task(stars, label_names=["1", "2", "3", "4"])
    assert task.train.labels.tolist() == [0, 1, 2]


def test_classes_that_cannot_be_told_apart_are_refused(tmp_path):
    folder = split_table(tmp_path / "a", ["0", "1"], ["0", "1"])
    for names in ["a", "a"], ["1", "1.0"], ["a", " "]:
        with pytest.raises(InputError, match="each needs a name of its own"):
            load_task(folder, label_names=names)
    alike = [
        ("1", "1.0", "x"),
        ("caf\u00e9", "cafe\u0301"),
        ("very good", "very  good"),
        ("\uff11", "1", "x"),
    ]
    alike += [("\u2764", "\u2764\ufe0f"), ("'a'", "a"), ("-1", "pos")]
    for n, pair in enumerate(alike):
        with pytest.raises(InputError, match=r"row .* has the label"):
            load_task(split_table(tmp_path / str(n), list(pair), list(pair)))


def test_validation_reads_the_columns_that_training_reads(tmp_path):
    texts = {"text": ["good", "bad"], "label": [1, 0]}
    write_table(tmp_path / "train.csv", texts)
    write_table(tmp_path / "validation.csv", texts | {"sentence": ["id0", "id1"]})
    assert texts_of(load_task(str(tmp_path)).validation) == [("good",), ("bad",)]
    write_table(
        tmp_path / "train.csv", {"question": ["a", "b"], "sentence": ["c", "d"], "label": [1, 0]}
    )
    with pytest.raises(InputError, match=r"validation.csv: no column 'question'"):
        load_task(str(tmp_path))
    for columns in ["label"], ["sentence", "label"], ["sentence", "sentence"]:
        with pytest.raises(InputError, match="must be different columns"):
            load_task(str(tmp_path), text_columns=columns)


def test_parts_that_tell_other_classes_are_refused(tmp_path):
    table = {"text": ["one", "two"], "label": [1, 0]}
    for n, names in enumerate([["negative", "positive"], ["positive", "negative"]]):
        with_schema(tmp_path / f"train-0000{n}-of-00002.parquet", table, names)
    with_schema(tmp_path / "validation.parquet", table, ["negative", "positive"])
    with pytest.raises(
        InputError, match=r"train-00001-of-00002.parquet: tells of other columns or classes"
    ):
        load_task(str(tmp_path))


def test_a_class_that_is_held_out_whole_is_refused(tmp_path):
    texts = [f"text {i}" for i in range(20)]
    for row in range(20):
        labels = ["rare" if i == row else "common" if i % 2 else "other" for i in range(20)]
        path = write_table(tmp_path / "a.csv", {"text": texts, "label": labels})
        try:
            assert set(load_task(path).train.labels) == {0, 1, 2}
        except InputError as error:
            assert "the few rows of the class 'rare' are all held out" in str(error)
            break
    else:
        pytest.fail("no row was held out")


TWO = {"sentence": ["good", "bad"], "label": [1, 0]}


@pytest.mark.parametrize("name, table, problem", [
    ("a.parquet", {"words": ["good"], "label": [1]}, "no column 'sentence'"),
    ("b.csv", {"sentence": ["good"], "stars": [1]}, "no column 'label'"),
    ("c.parquet", TWO | {"label": [0, -1]}, "row 2 .*label -1"),
    ("d.csv", TWO | {"label": [-1, 0]}, "row 1 .*label -1"),
    ("e.jsonl", TWO | {"label": [0, 2]}, "row 2 .*label 2"),
    ("f.parquet", TWO | {"label": [0.0, 0.5]}, "row 2 .*label 0.5, expected a whole number or a name"),
    ("g.parquet", TWO | {"label": [None, 1]}, "row 1 has no label"),
    ("g.parquet", TWO | {"label": [1, None]}, "row 2 has no label"),
    ("g.parquet", TWO | {"label": [1.0, float("nan")]}, "row 2 has no label"),
    ("g.parquet", TWO | {"label": [[1], [0]]}, r"row 1 has the label \[1\], expected a whole number or a name"),
    ("g.csv", TWO | {"label": ["good", ""]}, "row 2 has no label"),
    ("g.csv", TWO | {"label": ["good", " "]}, "row 2 has no label"),
    ("g.csv", TWO | {"label": ["1", "NA"]}, "row 2 has the label 'NA' among others"),
    ("g.csv", TWO | {"label": ["1", " 0"]}, "row 2 has the label ' 0', a number with spaces"),
    ("g.csv", TWO | {"label": ["good", "Good "]}, "row 2 has the label 'Good ', others 'good'; .*--label-names"),
    ("g.csv", TWO | {"label": ["good", "go\u200bod"]}, "row 2 has the label .*, others 'good'"),
    ("g.csv", {"sentence": [f"text {i}" for i in range(50)], "label": [f"id {i}" for i in range(50)]},
     "50 different labels in 50 rows"),
    ("g.csv", b"sentence,sentence,label\ngood,x,1\nbad,y,0\n", "2 columns 'sentence'"),
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


# Numbers instead of classes.

SCORES = {"train": [4.25, 0.0, 5.0, 1.5, 3.0, 2.25], "validation": [1.25, 4.0]}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_the_labels_of_a_regression_stand_for_themselves(tmp_path, suffix):
    """With --metric pearson or spearman, or in a folder that is called stsb; whole numbers too."""
    for name, metric in ("mine", "pearson"), ("mine", "spearman"), ("stsb", ""):
        folder = split_table(tmp_path / name, *SCORES.values(), suffix)
        task = load_task(folder, text_columns=["text"], metric=metric)
        assert (task.metric, task.label_names) == (metric or "pearson", ["LABEL_0"])
        for split in SCORES:
            labels = getattr(task, split).labels
            assert labels.dtype == np.float32 and labels.tolist() == SCORES[split]
    folder = split_table(tmp_path / "whole", [1, 2, 5], [3, 4], suffix)
    assert load_task(folder, metric="pearson").validation.labels.tolist() == [3, 4]


def test_a_regression_is_not_guessed(tmp_path):
    """Fractions are refused with the ways out, whatever the format; both ways lead out."""
    ways = r"--metric pearson trains a regression on such numbers"
    for suffix in "parquet", "jsonl":
        with pytest.raises(
            InputError,
            match=rf"train.{suffix}: row 1 has the label 4.25, expected a whole .*{ways}",
        ):
            load_task(split_table(tmp_path / suffix, SCORES["train"], [1.5, 2.5], suffix))
    for suffix in "csv", "tsv":
        with pytest.raises(
            InputError,
            match=rf"train.{suffix}: row 1 has the label 4.25, a number that is .*{ways}",
        ):
            load_task(split_table(tmp_path / suffix, SCORES["train"], [1.5, 2.5], suffix))
    many = [f"{n / 7:.4f}" for n in range(100)]
    with pytest.raises(
        InputError, match=rf"a number that is not whole: {ways}, --label-names takes them as names"
    ):
        load_task(split_table(tmp_path / "many", many, many))
    versions = split_table(tmp_path / "versions", ["1.0", "1.1", "1.0"], ["1.1", "1.0"])
    with pytest.raises(
        InputError, match=r"row 2 has the label 1.1, .* --label-names=1.0,1.1 takes them as names"
    ):
        load_task(versions)
    assert load_task(versions, label_names=["1.0", "1.1"]).train.labels.tolist() == [0, 1, 0]
    assert (
        load_task(versions, metric="pearson").train.labels.tolist()
        == np.float32([1.0, 1.1, 1.0]).tolist()
    )
    stsb = split_table(tmp_path / "stsb", SCORES["train"], [1.5, 2.5], "parquet")
    with pytest.raises(
        InputError, match=r"row 1 has the label 4.25, expected a whole number or a name"
    ):
        load_task(stsb, text_columns=["text"], metric="accuracy")


def test_stsb_has_numbers_from_0_to_5(tmp_path):
    """GLUE's -1, which says that there is no label, is trained on in no row; elsewhere a number may
    be negative."""
    expected = "expected one from 0 to 5, as of STS-B"
    for wrong, problem in (-1.0, rf"-1, {expected} \(GLUE marks rows"), (5.5, f"5.5, {expected}"):
        stsb = split_table(tmp_path / "stsb", [4.25, wrong, 3.0], [1.5, 2.5])
        with pytest.raises(InputError, match=f"train.csv: row 2 has the label {problem}"):
            load_task(stsb, text_columns=["text"])
        assert load_task(stsb, text_columns=["text"], metric="pearson").train.labels[1] == wrong
        mine = split_table(tmp_path / "a", [4.25, wrong], [1.5, 2.5])
        assert load_task(mine, metric="pearson").train.labels[1] == wrong


@pytest.mark.parametrize("task", ["mrpc", "qqp", "mnli", "qnli", "rte", "wnli", "stsb"])
def test_a_task_of_pairs_is_not_trained_on_one_text(tmp_path, task):
    """Though its other column is there, or a column that texts usually have."""
    texts = ["one", "two", "three"]
    (tmp_path / task).mkdir()
    for split in "train", "validation":
        write_table(
            tmp_path / task / f"{split}.csv", {"sentence": texts, "text": texts, "label": [0, 1, 1]}
        )
    with pytest.raises(
        InputError, match=r"no column .* among sentence, text, label; say which to read"
    ):
        load_task(str(tmp_path / task))
    assert load_task(str(tmp_path / task), text_columns=["text"]).train.columns == [
        "text"
    ]  # it was said


@pytest.mark.parametrize("label", ["", "NA", "4,2", "nan", "inf", "1e99", "1_000", "0x1", "\u0664", "four", True, None,
                                   float("nan"), float("inf"), 10**16, [1.0]])  # fmt: skip
def test_what_is_no_number_is_named(tmp_path, label):
    others = {str: ["4.5", "1"], bool: [True, False], list: [[4.5], [2.0]], int: [4, 1]}
    rows = [*others.get(type(label), [4.5, 1.0]), label]
    suffix = "jsonl" if isinstance(label, str) else "parquet"
    row = 1 if isinstance(label, (bool, list)) else 3
    with pytest.raises(
        InputError,
        match=rf"train.{suffix}: row {row} has (the label .*, expected a number|no label)",
    ):
        load_task(split_table(tmp_path / "a", rows, [1.0, 2.0], suffix), metric="pearson")


def test_labels_that_are_all_the_same_are_refused(tmp_path):
    """No correlation with them is defined, on either side."""
    with pytest.raises(
        InputError,
        match=r"train.csv: row 1 and every other has the label 2.5; nothing can be compared",
    ):
        load_task(split_table(tmp_path / "a", [2.5] * 3, [1.5, 2.5]), metric="pearson")
    with pytest.raises(
        InputError, match=r"validation.csv: row 1 and every .* label -1; .*GLUE marks rows"
    ):
        load_task(split_table(tmp_path / "b", [1.5, 2.5], [-1.0, -1.0]), metric="pearson")
    texts = [f"text {i}" for i in range(30)]
    one = write_table(tmp_path / "one.csv", {"text": texts, "label": [1.5] + [2.5] * 29})
    with pytest.raises(
        InputError, match=r"one.csv: all the rows (held out|left to train on) have the same label"
    ):
        load_task(one, metric="pearson")
    path = write_table(tmp_path / "all.csv", {"text": texts, "label": [n / 4 for n in range(30)]})
    task = load_task(path, metric="pearson")
    for split, rows in (task.train, 27), (task.validation, 3):
        assert (
            split.labels.tolist() == [int(text.split()[1]) / 4 for (text,) in texts_of(split)]
            and len(split.labels) == rows
        )


def test_a_regression_has_no_classes(tmp_path):
    folder = split_table(tmp_path / "a", [1.5, 2.5], [1.5, 2.5])
    with pytest.raises(
        InputError,
        match="classes are a, b, but a regression is on numbers; leave out --label-names",
    ):
        load_task(folder, label_names=["a", "b"], metric="spearman")
    told = tmp_path / "told.parquet"
    with_schema(told, {"text": ["one", "two"], "label": [0, 1]}, ["no", "yes"])
    with pytest.raises(InputError, match="classes are no, yes, but a regression is on numbers"):
        load_task(str(told), metric="pearson")


def test_mismatched_is_read_where_matched_is(tmp_path):
    """By the classes of the training split. A file of another name, which would not be read, is
    refused."""
    folder = tmp_path / "mine"
    split_table(folder, ["a", "b", "c"], ["a"])
    assert load_task(str(folder)).mismatched is None
    for name in (
        "validation_mismatched.txt",
        "Validation_Mismatched.csv",
        "validation-mismatched.csv",
    ):
        (folder / name).write_text("text,label\nx,c\n")
        with pytest.raises(
            InputError, match=f"{name}: not read, as its name is none of validation_mismatched.csv"
        ):
            load_task(str(folder))
        (folder / name).unlink()
    write_table(folder / "validation_mismatched.csv", {"text": ["x", "y"], "label": ["c", "b"]})
    for name in "validation.csv", "validation_matched.csv":
        (folder / "validation.csv").rename(folder / name)
        task = load_task(str(folder))
        assert (task.validation.labels.tolist(), task.mismatched.labels.tolist()) == ([0], [2, 1])
    write_table(folder / "validation_mismatched.csv", {"text": ["x", "y"], "label": ["c", "d"]})
    with pytest.raises(InputError, match=r"validation_mismatched.csv: row 2 has the label 'd'"):
        load_task(str(folder))
