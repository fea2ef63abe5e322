"""Labels of every kind, mistakes in them, and what is held out."""

import json

import numpy as np
import pandas
import pyarrow as pa
import pytest
from helpers import write_table
from pyarrow import parquet
from sklearn.preprocessing import MultiLabelBinarizer
from transformers import AutoTokenizer

from data import load_data, load_tokenizer
from support.errors import InputError


def split_table(folder, train, validation, suffix="csv"):
    """A directory with the two splits, of these labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in ("train", train), ("validation", validation):
        texts = [f"{split} {i}" for i in range(len(labels))]
        write_table(folder / f"{split}.{suffix}", {"sentence": texts, "label": labels})
    return folder


def with_names(path, table, names):
    """A parquet file as the Hub's data sets write it: the names of the classes in its schema."""
    features = {
        "label": {"names": names, "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(pa.table(table).replace_schema_metadata(metadata), path)


# Classes.


@pytest.mark.parametrize("labels, names", [
    (["+", "-", "+"], ["+", "-"]),
    (["1.0", "1.1", "b"], ["1.0", "1.1", "b"]),
    ([True, False, True], ["false", "true"]),
    ([1, 0, 1], ["LABEL_0", "LABEL_1"]),
    ([1.0, 0.0, 1.0], ["LABEL_0", "LABEL_1"]),
    (["1.0", "0.0", "1.0"], ["LABEL_0", "LABEL_1"]),
    (["1", " 0", "1"], ["LABEL_0", "LABEL_1"]),
    (["1", "2", "other"], ["1", "2", "other"]),
    (["yes", "no", "NA"], ["NA", "no", "yes"]),
    (["None", "one", "two"], ["None", "one", "two"]),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_labels_that_can_be_understood(tmp_path, suffix, labels, names):
    texts = [f"{label} {i}" for i, label in enumerate(labels * 20)]
    if suffix == "csv" and not isinstance(labels[0], str):
        labels = [str(label).lower() for label in labels]  # as pandas and Arrow write them
    table = {"text": texts, "label": labels * 20}
    data = load_data(write_table(tmp_path / f"a.{suffix}", table))
    assert data.task.names == names
    for (text,), number in zip(data.train.texts, data.train.labels, strict=True):
        label = text.split()[0]
        if names[0] == "LABEL_0":
            assert float(label) == number
        else:
            assert names[number] in (label, label.lower())


@pytest.mark.parametrize("type", ["int8", "uint64", "int64", "float16", "float64"])
def test_numbers_of_every_type_are_classes(tmp_path, type):
    table = pa.table({"text": list("abcd"), "label": np.array([2, 0, 1, 1], dtype=type)})
    for split in "train", "validation":
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    labels = load_data(tmp_path).train.labels
    assert labels.dtype == np.int64 and labels.tolist() == [2, 0, 1, 1]


def test_the_training_split_alone_decides_the_classes(tmp_path):
    data = load_data(split_table(tmp_path / "a", ["1", "2", "3", "other"], ["1", "3", "2"]))
    assert data.task.names == ["1", "2", "3", "other"]
    assert data.validation.labels.tolist() == [0, 2, 1]
    data = load_data(split_table(tmp_path / "b", ["0", "1", "2"], ["2", "2"]))
    assert data.validation.labels.tolist() == [2, 2]
    for train, validation in [
        (["no", "yes"], ["no", "maybe"]),
        (["0", "1"], ["1", "2"]),
        (["0", "1"], ["0", "yes"]),
        ([0, 1], [1, 3]),
    ]:
        folder = split_table(tmp_path / "c", train, validation)
        problem = rf"row 2 has the label '{validation[1]}', expected one of {train[0]}, {train[1]}"
        with pytest.raises(InputError, match=f"validation.csv: {problem}"):
            load_data(folder)
    whole = split_table(tmp_path / "d", ["a", "b", "c"], ["a", "c"])
    write_table(whole / "validation_mismatched.csv", {"sentence": ["x", "y"], "label": ["c", "b"]})
    assert load_data(whole).mismatched.labels.tolist() == [2, 1]
    write_table(whole / "validation_mismatched.csv", {"sentence": ["x", "y"], "label": ["c", "d"]})
    with pytest.raises(InputError, match=r"validation_mismatched.csv: row 2 has the label 'd'"):
        load_data(whole)


def test_names_and_metric_come_from_the_file_the_folder_or_the_user(tmp_path, monkeypatch):
    def told(path, **settings):
        task = load_data(path, **settings).task
        return task.names, task.metric

    names = ["unacceptable", "acceptable"]
    cola = split_table(tmp_path / "x@y" / "cola", [1, 0], [1], "parquet")
    copied = tmp_path / "my copy"
    copied.mkdir()
    table = {"sentence": ["one", "two", "three"], "label": [1, 0, 1]}
    for split in "train", "validation":
        with_names(copied / f"{split}.parquet", table, names)
    expected = (names, "matthews_correlation")
    assert told(cola) == told(f"{cola}/") == told(copied) == expected
    assert told(tmp_path / "my copy", name="sst2") == (names, "accuracy")
    monkeypatch.chdir(cola)
    assert told(".") == expected
    assert told(cola, label_names=["bad", "good"]) == (["bad", "good"], "matthews_correlation")
    assert told(cola, metric="f1") == (names, "f1")
    with_names(copied / "validation.parquet", table, names[::-1])
    assert load_data(copied).validation.labels.tolist() == [0, 1, 0]  # in its own order
    assert load_data(copied, label_names=["no", "yes"]).validation.labels.tolist() == [1, 0, 1]


def test_numbers_are_indices_of_the_names_that_a_file_tells(tmp_path):
    """Also where the names are numbers themselves: 2 is the third name, which here is "10"."""
    names = sorted(map(str, range(11)))
    for split in "train", "validation":
        table = {"text": [f"{split} {name}" for name in names], "label": list(range(11))}
        with_names(tmp_path / f"{split}.parquet", table, names)
    data = load_data(tmp_path)
    assert [data.task.names[n] for n in data.train.labels] == names


def test_a_file_without_names_has_the_numbers_of_the_training_file(tmp_path):
    """Or its names, in whatever order."""
    table = {"text": ["one", "two", "three"], "label": [1, 0, 1]}
    with_names(tmp_path / "train.parquet", table, ["unhappy", "happy"])
    for labels in ["1", "0", "1.0"], ["happy", "unhappy", "happy"]:
        write_table(tmp_path / "validation.csv", table | {"label": labels})
        data = load_data(tmp_path)
        assert data.task.names == ["unhappy", "happy"]
        assert data.validation.labels.tolist() == data.train.labels.tolist() == [1, 0, 1]
    write_table(tmp_path / "validation.csv", table | {"label": ["1", "0", "2"]})
    with pytest.raises(InputError, match=r"row 3 has the label '2', expected one of unhappy, happ"):
        load_data(tmp_path)
    (tmp_path / "validation.csv").unlink()
    write_table(tmp_path / "validation.jsonl", table | {"label": [["happy"], [], []]})
    with pytest.raises(InputError, match=r"row 1 has the label \['happy'\], but the model gives"):
        load_data(tmp_path)


def test_parts_that_tell_other_classes_are_refused(tmp_path):
    table = {"text": ["one", "two"], "label": [1, 0]}
    for n, names in enumerate([["negative", "positive"], ["positive", "negative"]]):
        with_names(tmp_path / f"train-0000{n}-of-00002.parquet", table, names)
    with_names(tmp_path / "validation.parquet", table, ["negative", "positive"])
    with pytest.raises(InputError, match=r"-00002.parquet: the parts have different classes"):
        load_data(tmp_path)


@pytest.mark.parametrize("labels", [
    ["1", "2", "3"], ["1.0", "2.0", "3.0"], ["01", "+2", "3."], [1, 2, 3], [1.0, 2.0, 3.0],
])  # fmt: skip
def test_numbers_mean_the_same_however_they_are_written(tmp_path, labels):
    """Without names 1, 2, 3 have a gap at 0, and the way out is said."""
    stars = split_table(tmp_path / "stars", labels, labels, "parquet")
    data = load_data(stars, label_names=["1", "2", "3", "4"])
    assert data.train.labels.tolist() == data.validation.labels.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"row 3 has .* expected one of 0, 1, 2; --label-names"):
        load_data(stars)


@pytest.mark.parametrize("labels", [
    ("caf\u00e9", "cafe\u0301"), ("so so", "so  so"), ("Good", "good "), ("\uff47ood", "good"),
    ("good", "go\u200bod"), ("so-so", "so\u00ad-so"),
])  # fmt: skip
def test_names_that_look_the_same_are_refused(tmp_path, labels):
    folder = split_table(tmp_path, labels, labels)
    with pytest.raises(InputError, match=r"row 2 has the label .*, which looks like another"):
        load_data(folder)
    assert load_data(folder, label_names=labels).train.labels.tolist() == [0, 1]


TWO = {"sentence": ["good", "bad"], "label": [1, 0]}
NO_LABEL = r"1 of 2 rows without a label \(row %s\)"


@pytest.mark.parametrize("name, labels, problem", [
    ("a.parquet", [0, -1], r"row 2 has the label -1, expected one of 0, 1"),
    ("a.csv", [-1, 0], "row 1 has the label '-1', expected"),
    ("a.csv", ["-1", "positive"], "row 1 has the label '-1', which looks like .* none"),
    ("a.csv", ["1", "NA"], "row 2 has the label 'NA', which looks like .* none"),
    ("a.jsonl", [0, 2], "row 2 has the label 2, expected one of 0, 1; --label-names"),
    ("a.parquet", [0.0, 0.5], "row 2 has the label 0.5, a number that is not whole"),
     ("a.parquet", [None, 1], NO_LABEL % 1),
    ("a.parquet", [1.0, float("nan")], NO_LABEL % 2),
    ("a.csv", ["good", "nan"], NO_LABEL % 2),
    ("a.csv", ["NULL", "good"], NO_LABEL % 1),
    ("a.csv", ["good", "\ufeff\u200b"], NO_LABEL % 2),
    ("a.csv", ["\x01", "good"], NO_LABEL % 1),
    ("a.jsonl", ["good", None], NO_LABEL % 2),
    ("a.csv", ["good", ""], NO_LABEL % 2),
    ("a.csv", ["good", " "], NO_LABEL % 2),
    ("a.csv", ["0", "0.0"], "all labels are the same"),
    ("a.parquet", [{"a": 1}, {"a": 0}], r"cannot be read \(expected labels, found a dict"),
    ("a.csv", ["0", "0"], "all labels are the same"),
    ("a.csv", ["bad", "bad"], "all labels are the same"),
])  # fmt: skip
def test_mistakes_are_named_in_one_line(tmp_path, name, labels, problem):
    write_table(tmp_path / name, TWO | {"label": labels})
    with pytest.raises(InputError, match=f"{name}: {problem}") as error:
        load_data(tmp_path / name)
    assert "\n" not in str(error.value)


def test_another_column_is_not_taken_for_labels(tmp_path):
    labels = [f"id {i}" for i in range(50)]
    folder = split_table(tmp_path / "a", labels, labels)
    with pytest.raises(InputError, match=r"train.csv: 50 different labels in 50 rows; is that"):
        load_data(folder)
    assert load_data(folder, label_names=labels).train.labels.tolist() == list(range(50))


# Numbers.

SCORES = {"train": [4.25, 0.0, 5.0, 1.5, 3.0, 2.25], "validation": [1.25, 4.0]}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_the_labels_of_a_regression_stand_for_themselves(tmp_path, suffix):
    """With --metric pearson or spearman, or in a folder that is called stsb; whole numbers too."""
    for name, metric in ("mine", "pearson"), ("mine", "spearman"), ("stsb", ""):
        folder = split_table(tmp_path / name, *SCORES.values(), suffix)
        data = load_data(folder, text_columns=["sentence"], metric=metric)
        assert (data.task.metric, data.task.names) == (metric or "pearson", ["LABEL_0"])
        for split in SCORES:
            labels = getattr(data, split).labels
            assert labels.dtype == np.float32 and labels.tolist() == SCORES[split]
    folder = split_table(tmp_path / "whole", [1, 2, 5], [3, 4], suffix)
    assert load_data(folder, metric="pearson").validation.labels.tolist() == [3, 4]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
def test_a_regression_is_not_guessed(tmp_path, suffix):
    """Fractions are refused with the ways out, whatever the format; both ways lead out."""
    ways = "--metric pearson trains a regression on such numbers, --label-names takes them as names"
    for scores in SCORES["train"], [n / 7 for n in range(100)]:
        folder = split_table(tmp_path / "a", scores, scores, suffix)
        with pytest.raises(InputError, match=f"train.{suffix}: row . has the label .*{ways}"):
            load_data(folder)
    texts = ["1.0", "1.1", "1.0"] if suffix in ("csv", "tsv") else [1.0, 1.1, 1.0]
    versions = split_table(tmp_path / "versions", texts, texts, suffix)
    names = load_data(versions, label_names=["1.0", "1.1"])
    assert names.train.labels.tolist() == [0, 1, 0]
    numbers = load_data(versions, metric="pearson")
    assert numbers.train.labels.tolist() == np.float32([1.0, 1.1, 1.0]).tolist()
    stsb = split_table(tmp_path / "stsb", SCORES["train"], [1.5, 2.5], suffix)
    with pytest.raises(InputError, match=r"row 1 has the label .*, a number that is not whole"):
        load_data(stsb, text_columns=["sentence"], metric="accuracy")


def test_versions_are_names(tmp_path):
    """1.1 and 1.10 are two of them, though they are one number; so are digits beyond a float's."""
    for n, labels in enumerate([["1.1", "1.10", "1.2"], [str(10**17), str(10**17 + 1), "0"]]):
        folder = split_table(tmp_path / str(n), labels, labels)
        assert load_data(folder, label_names=labels).train.labels.tolist() == [0, 1, 2]


def test_stsb_has_numbers_from_0_to_5(tmp_path):
    """GLUE's -1, which says that there is no label, is trained on in no row; elsewhere a number may
    be negative."""
    for wrong in -1.0, 5.5:
        stsb = split_table(tmp_path / "stsb", [4.25, wrong, 3.0], [1.5, 2.5], "parquet")
        problem = f"row 2 has the label {wrong}, expected a number from 0 to 5"
        with pytest.raises(InputError, match=f"train.parquet: {problem}"):
            load_data(stsb, text_columns=["sentence"])
        for folder in stsb, split_table(tmp_path / "a", [4.25, wrong, 3.0], [1.5, 2.5]):
            data = load_data(folder, text_columns=["sentence"], metric="pearson")
            assert data.train.labels[1] == wrong


@pytest.mark.parametrize("label", [
    "", "NA", "4,2", "nan", "inf", "1e99", "0x1", "four", True, None, float("nan"), float("inf"),
    10**16,
])  # fmt: skip
def test_what_is_no_number_is_named(tmp_path, label):
    others = {str: ["4.5", "1"], bool: [True, False], int: [4, 1]}
    rows = [*others.get(type(label), [4.5, 1.0]), label]
    suffix = "jsonl" if isinstance(label, str) else "parquet"
    folder = split_table(tmp_path / "a", rows, [1.0, 2.0], suffix)
    row = 1 if isinstance(label, bool) else 3
    problem = rf"row {row} has the label .*, expected a number|1 of 3 rows without a label"
    with pytest.raises(InputError, match=f"train.{suffix}: ({problem})"):
        load_data(folder, metric="pearson")


def test_labels_that_are_all_the_same_are_refused(tmp_path):
    """There is nothing to learn, of a regression too."""
    folder = split_table(tmp_path, [2.5] * 3, [1.5, 2.5])
    with pytest.raises(InputError, match=r"train.csv: all labels are the same"):
        load_data(folder, metric="pearson")


def test_a_regression_has_no_classes(tmp_path):
    folder = split_table(tmp_path / "a", [1.5, 2.5], [1.5, 2.5])
    with pytest.raises(InputError, match="a regression has one number, and no classes a, b"):
        load_data(folder, label_names=["a", "b"], metric="spearman")


# Holding out.


def test_hold_out_has_no_text_on_both_sides(tmp_path):
    texts = [f"text {i % 50}" for i in range(200)]
    table = {"text": texts, "label": [i % 50 % 7 / 4 for i in range(200)]}
    data = load_data(write_table(tmp_path / "repeats.csv", table), metric="pearson")
    assert len(data.train.labels) + len(data.validation.labels) == 200
    assert not set(data.train.texts) & set(data.validation.texts)
    assert len(set(data.validation.texts)) == 5
    for split in data.train, data.validation:
        assert split.labels.tolist() == [int(text[5:]) % 7 / 4 for (text,) in split.texts]


@pytest.mark.parametrize("max_length", [128, 5])
def test_hold_out_has_no_tokens_on_both_sides(minilm, tmp_path, max_length):
    """Texts that differ only in what BERT does not see: case, spaces, marks of no width, what is
    cut off."""
    plain = [f"film {i} is {word}, as they say" for i in range(30) for word in ("good", "bad")]
    texts = [*plain]
    texts += [text.upper() for text in plain]
    texts += [text.replace(" ", "  ") for text in plain]
    texts += [text + "\u200b" for text in plain]
    labels = ["good" if "good" in text.lower() else "bad" for text in texts]
    path = write_table(tmp_path / "a.jsonl", {"text": texts, "label": labels})
    data = load_data(path, load_tokenizer(minilm, max_length))
    theirs = AutoTokenizer.from_pretrained(minilm)
    seen = []
    for split in data.train, data.validation:
        found = theirs([text for (text,) in split.texts], truncation=True, max_length=max_length)
        seen.append({tuple(ids) for ids in found["input_ids"]})
    assert not seen[0] & seen[1]
    assert len(seen[1]) == (6 if max_length == 128 else 3)
    assert len(data.train.labels) + len(data.validation.labels) == 240


# Several labels a text.

SETS = [["toxic"], [], ["insult", "toxic"], ["threat"], ["toxic"], ["insult"], []] * 6
KINDS = ["insult", "threat", "toxic"]


def set_table(folder, form):
    """SETS in a file of that form, and the options that read it."""
    texts = [f"text {n}" for n in range(len(SETS))]
    columns, options = {"labels": SETS}, {"label_column": "labels"}
    if form in ("csv", "tsv"):
        columns = {"labels": [" ;".join(labels) for labels in SETS]}
        options["label_separator"] = ";"
    elif form == "marks":
        columns = {name: [int(name in labels) for labels in SETS] for name in KINDS}
        options, form = {"label_columns": KINDS}, "csv"
    elif form == "truths":
        columns = {name: [name in labels for labels in SETS] for name in KINDS}
        options, form = {"label_columns": KINDS}, "parquet"
    return write_table(folder / f"a.{form}", {"text": texts, **columns}), options


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "tsv", "marks", "truths"])
def test_several_labels_are_those_of_scikit_learn(tmp_path, form):
    path, options = set_table(tmp_path, form)
    data = load_data(path, **options)
    assert data.task.names == KINDS
    assert data.task.problem_type == "multi_label_classification"
    binarizer = MultiLabelBinarizer(classes=KINDS)
    theirs = binarizer.fit_transform(SETS).tolist()
    found = 0
    for split in data.train, data.validation:
        assert split.labels.dtype == np.float32 and split.labels.shape == (len(split.texts), 3)
        assert (split.labels.sum(0) > 0).all() and (split.labels.sum(1) == 0).any()
        for (text,), row in zip(split.texts, split.labels, strict=True):
            assert row.tolist() == theirs[int(text.split()[1])]
            found += 1
    assert found == len(SETS)


def test_numbers_in_lists_are_the_classes_that_the_hubs_file_tells(tmp_path):
    """As go_emotions has them; what its `datasets` wrote in three ways over the years."""
    feature = {"names": ["admiration", "anger", "joy"], "_type": "ClassLabel"}
    for told in {"feature": feature, "_type": "Sequence"}, {"feature": feature}, [feature]:
        table = pa.table({"text": list("abcdefgh"), "labels": [[0], [2, 0], [1], []] * 2})
        features = json.dumps({"info": {"features": {"labels": told}}})
        table = table.replace_schema_metadata({b"huggingface": features.encode()})
        for split in "train", "validation":
            parquet.write_table(table, tmp_path / f"{split}.parquet")
        data = load_data(tmp_path, label_column="labels")
        assert data.task.names == feature["names"]
        rows = [[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]] * 2
        assert data.validation.labels.tolist() == rows


@pytest.mark.parametrize("name, labels, options, problem", [
    ("a.jsonl", [["a"], ["b"], None, ["a"]], {}, r"1 of 4 rows without a label \(row 3\)"),
    ("a.jsonl", [["a"], ["b"], "a", ["a"]], {}, "row 3 has the label 'a', and no list of labels"),
    ("a.jsonl", [["a"], [["b"]], [], ["a"]], {}, "cannot be read .expected labels, found a list"),
    ("a.jsonl", [["a"], [None, "b"], [], ["a"]], {}, "row 2 has the label None, which looks like"),
    ("a.jsonl", [["a"], ["A", "b"], [], ["a"]], {}, "row 2 has the label 'A', which looks like an"),
    ("a.jsonl", [["a"], [], [], ["a"]], {}, "all labels are the same"),
    ("a.jsonl", [[], [], [], []], {}, "all labels are the same, or there are none"),
    ("a.jsonl", [[1, 0, 0], [0, 1, 0]] * 2, {}, "row 1 has the label .1, 0, 0., in which one st"),
    ("a.jsonl", [[1, 0], [False, True]] * 2, {}, "all labels are the same"),
    ("a.jsonl", [["a", "b"], ["b", "a"]] * 2, {}, "all labels are the same"),
    ("a.jsonl", [["a"], ["b"]] * 2, {"label_separator": ","}, "cannot be read .the labels are lis"),
    ("a.csv", ["0", "1", "2", "0"], {"label_columns": ["label", "n"]}, "the column label has '2'"),
    ("a.csv", ["0", "1", "", "0"], {"label_columns": ["label", "n"]}, "1 of 4 rows without"),
])  # fmt: skip
def test_mistakes_in_several_labels_are_named(tmp_path, name, labels, options, problem):
    table = {"text": ["w", "x", "y", "z"], "label": labels, "n": [0, 1, 0, 1]}
    path = tmp_path / name
    pandas.DataFrame(table).to_csv(path, index=False)
    if path.suffix == ".jsonl":
        rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"{name}: {problem}") as error:
        load_data(path, **options)
    assert "\n" not in str(error.value)


def test_a_label_of_the_validation_split_alone_is_refused(tmp_path):
    table = {"text": ["x", "y"], "label": ["a,b", "c"]}
    write_table(tmp_path / "train.csv", table)
    write_table(tmp_path / "validation.csv", table | {"label": ["a", "b,d"]})
    with pytest.raises(InputError, match=r"validation.csv: row 2 has the label 'd', expected one"):
        load_data(tmp_path, label_separator=",")


@pytest.mark.parametrize("sign", [",", ";", "|", "/"])
def test_a_label_that_holds_others_is_announced(tmp_path, sign):
    labels = ["insult", "toxic", f"insult{sign} toxic", "a,b", "fine"] * 4
    table = {"text": [f"text {n}" for n in range(20)], "label": labels}
    path = write_table(tmp_path / "a.jsonl", table)
    notes = load_data(path).notes
    flag = f"--label-separator {sign if sign in ',/' else repr(sign)} takes it for several"
    said = f"the label 'insult{sign} toxic' is one class, though its parts are labels: {flag}"
    assert [note for note in notes if "--label-separator" in note] == [said]
    assert not any("--label-sep" in n for n in load_data(path, label_separator=sign).notes)
