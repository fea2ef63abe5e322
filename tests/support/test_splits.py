"""Which rows are validated on: by files, by a column "split", or held out."""

import numpy as np
import pytest
from helpers import write_table
from sklearn.model_selection import StratifiedShuffleSplit

from data import load_data
from support.dataset import DataOptions
from support.errors import InputError
from support.splits import find_splits, hold_out

# Files.


def table_of(word: str, rows: int = 6) -> dict:
    return {"text": [f"{word} {n}" for n in range(rows)], "label": ["no", "yes"] * (rows // 2)}


def first_words(split) -> set:
    return {text.split()[0] for (text,) in split.texts}


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation"])
def test_other_names_of_the_validation_split(tmp_path, name):
    for split in "train", name, "test":
        write_table(tmp_path / f"{split}.csv", table_of(split))
    data = load_data(tmp_path)
    assert (first_words(data.train), first_words(data.validation)) == ({"train"}, {name})


def test_a_sharded_data_set_of_the_hub_is_read_whole(tmp_path):
    """Its older ones have a hash in each name."""
    for n, digits in enumerate(["b42a775f407cee45", "0123456789abcdef", "ffffffffffffffff"]):
        write_table(tmp_path / f"train-0000{n}-of-00003-{digits}.parquet", table_of(f"part{n}"))
    write_table(tmp_path / "validation-00000-of-00001-b42a775f407cee45.parquet", table_of("v"))
    assert first_words(load_data(tmp_path).train) == {"part0", "part1", "part2"}
    (tmp_path / "train-00001-of-00003-0123456789abcdef.parquet").unlink()
    with pytest.raises(InputError, match=r"or all of its parts, found train-00000"):
        find_splits(tmp_path)


@pytest.mark.parametrize("others", [[], ["test"], ["test", "notes"]])
def test_without_a_validation_split_a_part_of_train_is_held_out(tmp_path, others):
    """Never of test."""
    for split in "train", *others:
        write_table(tmp_path / f"{split}.csv", table_of(split, rows=60))
    data = load_data(tmp_path)
    assert first_words(data.train) == first_words(data.validation) == {"train"}
    assert (len(data.train.texts), len(data.validation.texts)) == (54, 6)
    assert data.notes == ["held out to validate on: 6 of 60 rows (--holdout 0.1)"]


def test_a_file_to_validate_on(tmp_path):
    mine = write_table(tmp_path / "a.csv", table_of("mine"))
    other = write_table(tmp_path / "b.jsonl", table_of("other"))
    data = load_data(mine, validation=other)
    assert len(data.train.texts) == 6 and first_words(data.validation) == {"other"}
    assert data.notes == []
    options = DataOptions(validation=other, metric="f1")
    data = load_data(mine, options=options, holdout=0.3)  # both count
    assert data.task.metric == "f1" and first_words(data.validation) == {"other"}
    assert data.notes == ["--holdout is not used, as there are rows to validate on"]
    write_table(tmp_path / "train.csv", table_of("t"))
    write_table(tmp_path / "validation.csv", table_of("v"))
    with pytest.raises(InputError, match=r"--validation .* has a validation split of its own"):
        load_data(tmp_path, validation=other)
    with pytest.raises(InputError, match=r"nowhere.csv: cannot be read \(No such file"):
        load_data(mine, validation=str(tmp_path / "nowhere.csv"))


# A column.


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("names", [
    ("train", "validation", "test"), ("Train", "dev", "TEST "), ("training", "val", "test"),
])  # fmt: skip
def test_a_column_that_tells_the_splits_is_honoured(tmp_path, suffix, names):
    """What is to test may lack labels, and is left out; rows are counted in the file."""
    table = table_of("x", rows=8) | {"split": [*(names * 2), names[0], names[1]]}
    table["label"][2] = table["text"][5] = ""
    data = load_data(write_table(tmp_path / f"a.{suffix}", table))
    assert [text for (text,) in data.train.texts] == ["x 0", "x 3", "x 6"]
    assert [text for (text,) in data.validation.texts] == ["x 1", "x 4", "x 7"]
    assert data.notes == [
        "the column split has 3 rows train, 3 rows validation, 2 rows test; test is not used"
    ]
    table["label"][7] = "maybe"
    with pytest.raises(InputError, match="row 8 has the label 'maybe'"):
        load_data(write_table(tmp_path / f"b.{suffix}", table))
    table["label"][7] = None if suffix == "jsonl" else ""
    with pytest.raises(InputError, match=r"1 of 3 rows without a label \(row 8\)"):
        load_data(write_table(tmp_path / f"b.{suffix}", table))


def test_a_column_without_validation_rows_leaves_train_to_hold_out(tmp_path):
    table = table_of("x", rows=60) | {"split": ["train", "train", "test"] * 20}
    data = load_data(write_table(tmp_path / "a.csv", table))
    both = {text for (text,) in data.train.texts + data.validation.texts}
    assert both == {f"x {n}" for n in range(60) if n % 3 < 2} and len(data.validation.texts) == 4


@pytest.mark.parametrize("split, problem", [
    (["train", "dev", "", "dev", "train", "train"], "split has '' in row 3, expected train, val"),
    (["train", "dev", "x", "dev", "train", "train"], "split has 'x' in row 3"),
    (["dev"] * 6, "split has no train in any row"),
])  # fmt: skip
def test_a_column_that_tells_some_splits_is_refused(tmp_path, split, problem):
    path = write_table(tmp_path / "a.csv", table_of("x") | {"split": split})
    with pytest.raises(InputError, match=f"a.csv: the column {problem}"):
        load_data(path)


def test_a_column_that_tells_something_else_is_named(tmp_path):
    table = table_of("x") | {"split": ["banana"] * 6}
    data = load_data(write_table(tmp_path / "a.csv", table))
    assert "the column split is not used: 'banana' is not train" in data.notes[0]
    table["split"][:2] = ["a", "b"]
    data = load_data(write_table(tmp_path / "a.csv", table), label_column="split", holdout=0.5)
    assert "not used" not in data.notes[0] and data.task.names == ["a", "b", "banana"]
    with pytest.raises(InputError, match="has 'a' in row 1"):
        load_data(write_table(tmp_path / "a.csv", table | {"split": ["a", *["train"] * 5]}))


def test_two_ways_to_say_what_to_validate_on_are_refused(tmp_path):
    table = table_of("x") | {"split": ["train", "dev"] * 3}
    path = write_table(tmp_path / "a.csv", table)
    other = write_table(tmp_path / "b.csv", table_of("other"))
    with pytest.raises(InputError, match="the column split names rows to validate on, and so does"):
        load_data(path, validation=other)
    table["split"] = ["train", "train", "test"] * 2
    write_table(tmp_path / "a.csv", table)
    assert first_words(load_data(path, validation=other).validation) == {"other"}


# Holding out.


def test_the_same_rows_are_held_out_as_ever(tmp_path):
    """Else a score on them could no longer be compared."""
    table = {"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    data = load_data(write_table(tmp_path / "a.csv", table))
    assert data.validation.texts == [("text 2",), ("text 6",), ("text 9",), ("text 19",)]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 0.9])
def test_classes_are_held_out_as_scikit_learn_does(fraction):
    """Of every class as many as there, but for one row that is rounded."""
    draw = np.random.default_rng(1)
    classes = draw.choice(5, size=2000, p=[0.5, 0.3, 0.15, 0.03, 0.02])
    mask = hold_out(range(2000), classes[:, None].tolist(), fraction)
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=0)
    _, theirs = next(splitter.split(classes, classes))
    found = np.bincount(classes[mask], minlength=5)
    assert np.abs(found - np.bincount(classes[theirs], minlength=5)).max() <= 1
    assert np.array_equal(mask, hold_out(range(2000), classes[:, None].tolist(), fraction))


@pytest.mark.parametrize("several", [False, True])
def test_each_class_of_two_texts_stands_on_both_sides(several):
    """And no text does, whatever its rows are called; with rare classes, and several a row."""
    for seed in range(200):
        draw = np.random.default_rng(seed)
        keys = draw.integers(30, size=60)
        of_key = draw.geometric(0.4, size=30) - 1
        classes = [[number] for number in of_key[keys].tolist()]
        if several:
            classes = [[*range(number % 3), number + 3] for (number,) in classes]
        mask = hold_out(keys.tolist(), classes, fraction=0.1)
        assert not set(keys[mask]) & set(keys[~mask])
        texts = {}
        for key, of_row in zip(keys, classes, strict=True):
            for each in of_row:
                texts.setdefault(each, set()).add(key)
        for each, members in texts.items():
            held = members & set(keys[mask])
            if len(members) == 1:
                assert not held  # it is learnt from
            elif not 0 < len(held) < len(members):
                alone = {key for found in texts.values() if len(found) == 1 for key in found}
                assert several and not held and members <= alone, (seed, each)


def test_a_class_of_one_text_stays_in_training(tmp_path):
    labels = ["common", "other"] * 10
    labels[7] = "rare"
    table = {"text": [f"text {i}" for i in range(20)], "label": labels}
    data = load_data(write_table(tmp_path / "a.csv", table))
    assert set(data.train.labels) == {0, 1, 2} and set(data.validation.labels) == {0, 1}


def test_one_text_a_class_cannot_be_held_out(tmp_path):
    path = write_table(tmp_path / "a.csv", {"text": ["good", "bad", "bad"], "label": [1, 0, 0]})
    with pytest.raises(InputError, match=r"no class has two different texts, .*--validation"):
        load_data(path)


def test_ten_thousand_classes_take_no_time():
    """Linear: as long for 100,000 rows of 10,000 classes as for those of 10."""
    import time

    seconds = []
    for count in 10, 10_000:
        classes = [[n % count] for n in range(100_000)]
        begun = time.process_time()
        mask = hold_out(range(100_000), classes, fraction=0.1)
        seconds.append(time.process_time() - begun)
        assert mask.sum() == 10_000
    assert seconds[1] < 5 * seconds[0] + 1
