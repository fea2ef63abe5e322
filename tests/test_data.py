"""Text to batches: tokens as transformers makes them, tables of every format, batches that hold each row once."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import edit_json
from pyarrow import csv, parquet
from transformers import AutoTokenizer

from data import encode, load_task, load_tokenizer, make_batch, padding_fraction, plan_batches
from support.files import InputError

AWKWARD = [
    "Café, naïve, ÀÉÎÕÜ, Ångström, façade",
    "e\u0301 cafe\u0301 a\u030a n\u0303, x\u0336y\u0336 combining",
    "中文字符 mixed with English 日本語テキスト 한국어 \U00020000",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 👍🏽 emoji",
    "שלום עולם مرحبا بالعالم \u202eright to left\u202c",
    "tab\tline\nreturn\rfeed\x0c bell\x07 nul\x00 del\x7f c1\x85",
    "the [MASK] and [SEP] of a user, [CLS][PAD] [UNK] [mask] ##ing",
    "x" * 100 + " " + "y" * 101 + " " + "z" * 5000,
    "ｆｕｌｌ ｗｉｄｔｈ ﬁ ﬂ ligatures Ⅷ ½ ℃",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeff soft\u00adhyphen",
    "ß ẞ İ ı ǅ ς Σ ŉ",
    "\u00a0no-break\u2009thin\u3000ideographic\u2028line",
    "don't... 3.14!!! $5 a_b a-b `c` ~d^ ¿qué? «oui» — “quotes”",
    "𝕸𝖆𝖙𝖍 हिन्दी ไทย \ufffd \ue000 \U0010ffff",
    "",
    " ",
]


def ids(encoded, row):
    return encoded.input_ids[encoded.starts[row] :][: encoded.lengths[row]].tolist()


def assert_same_tokens(folder, *texts, max_length=512):
    """One column of texts, or two for pairs, through encode and through transformers."""
    columns = [list(column) for column in texts]
    expected = AutoTokenizer.from_pretrained(folder)(*columns, truncation=True, max_length=max_length)
    encoded = encode(load_tokenizer(str(folder), max_length), columns)
    for row, tokens in enumerate(expected["input_ids"]):
        assert ids(encoded, row) == tokens, [column[row] for column in columns]
    if len(columns) == 2:
        assert encoded.token_type_ids.tolist() == [kind for row in expected["token_type_ids"] for kind in row]


def texts_of(split):
    return list(zip(*(column.to_pylist() for column in split.texts), strict=True))


@pytest.fixture(params=["tokenizer.json", "vocab.txt", "uncased vocab.txt", "cased vocab.txt"])
def folder(request, minilm, tmp_path):
    """A model directory that holds the tokenizer in one form only."""
    file = request.param.split()[-1]
    shutil.copy(f"{minilm}/{file}", tmp_path)
    shutil.copy(f"{minilm}/config.json", tmp_path)
    if " " in request.param:
        lowercase = request.param.startswith("uncased")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
        with open(tmp_path / file, "a", encoding="utf-8") as vocabulary:
            vocabulary.write("Café\nThe\nÀ\n##É\n")
        edit_json(tmp_path / "config.json", vocab_size=30526)
    return tmp_path


@pytest.mark.parametrize("max_length", [512, 8])
def test_awkward_unicode_gives_transformers_tokens(folder, max_length):
    assert_same_tokens(folder, AWKWARD, max_length=max_length)
    assert_same_tokens(folder, AWKWARD, AWKWARD[::-1], max_length=max_length)


@pytest.mark.parametrize("max_length", [128, 16])
def test_reviews_give_transformers_tokens(minilm, reviews, max_length):
    texts = [text for (text,) in texts_of(load_task(reviews).train)]
    assert_same_tokens(minilm, texts[:2000], max_length=max_length)
    assert_same_tokens(minilm, texts[:500], texts[500:1000], max_length=max_length)


def test_very_long_texts_give_transformers_tokens(minilm):
    texts = ["very good, " * 50_000, "a" * 1_000_000, f"good {'x' * 1_000_000}", "so" + " " * 9000 + "good"]
    assert_same_tokens(minilm, texts, max_length=16)
    assert_same_tokens(minilm, texts, texts[::-1], max_length=16)


def test_sst2_gives_transformers_tokens(minilm, glue):
    task = load_task(str(glue / "sst2"))
    assert_same_tokens(minilm, [text for (text,) in texts_of(task.validation) + texts_of(task.train)[:5000]])


GOOD, BAD = "Good, \"very\" 'good'", '"007" bad 1.0'
TABLE = {"text": [f"{GOOD} {i}" for i in range(20)] + [f"{BAD} {i}" for i in range(20)]}


def write(path, table):
    table = pa.table(table)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".tsv":
        rows = [table.column_names, *(row.values() for row in table.to_pylist())]
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("labels", [["positive", "negative"], [1, 0]], ids=["names", "numbers"])
def test_single_file(tmp_path, suffix, labels):
    path = write(tmp_path / f"reviews.{suffix}", TABLE | {"label": [labels[0]] * 20 + [labels[1]] * 20})
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


@pytest.mark.parametrize("names", [("train.csv", "validation.csv"), ("train.jsonl", "validation.parquet"),
                                   ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
                                   ("train.tsv", "validation_matched.tsv")])  # fmt: skip
def test_directory(tmp_path, names):
    for name in names:
        write(tmp_path / name, {"premise": [f"{name} a", "b"], "hypothesis": ["c", "d"], "label": ["no", "yes"]})
    task = load_task(str(tmp_path))
    assert texts_of(task.train) == [(f"{names[0]} a", "c"), ("b", "d")]
    assert texts_of(task.validation)[0] == (f"{names[1]} a", "c")
    assert (task.label_names, task.validation.labels.tolist()) == (["no", "yes"], [0, 1])


def test_shards_and_chosen_columns(tmp_path):
    for n in range(3):
        write(tmp_path / f"train-0000{n}-of-00003.parquet", {"sentence": ["x"], "mine": [f"part {n}"], "stars": [n]})
    write(tmp_path / "validation.csv", {"mine": ["part 9"], "stars": [2]})
    task = load_task(str(tmp_path), text_columns=["mine"], label_column="stars")
    assert texts_of(task.train) == [("part 0",), ("part 1",), ("part 2",)]
    assert (task.train.labels.tolist(), task.validation.labels.tolist()) == ([0, 1, 2], [2])


def test_hold_out_has_no_text_on_both_sides(tmp_path):
    texts = [f"text {i % 50}" for i in range(200)]
    task = load_task(write(tmp_path / "repeats.csv", {"text": texts, "label": [i % 2 for i in range(200)]}))
    assert len(task.train.labels) + len(task.validation.labels) == 200
    assert not set(texts_of(task.train)) & set(texts_of(task.validation))
    assert len(set(texts_of(task.validation))) == 5


@pytest.mark.parametrize("name, metric, labels, rows, columns", [
    ("sst2", "accuracy", ["negative", "positive"], (67349, 872), 1),
    ("cola", "matthews_correlation", ["unacceptable", "acceptable"], (8551, 1043), 1),
    ("rte", "accuracy", ["entailment", "not_entailment"], (2490, 277), 2),
])  # fmt: skip
def test_glue(glue, name, metric, labels, rows, columns):
    task = load_task(str(glue / name))
    assert (task.metric, task.label_names, len(task.train.texts)) == (metric, labels, columns)
    assert (len(task.train.labels), len(task.validation.labels)) == rows
    source = parquet.read_table(glue / name / "validation-00000-of-00001.parquet")
    assert task.validation.labels.tolist() == source["label"].to_pylist()


LENGTHS = np.random.default_rng(1).geometric(0.1, 3000) + 2


def test_each_epoch_holds_every_row_once_in_another_order():
    epochs = [np.concatenate(plan_batches(LENGTHS, 32, seed=42, epoch=epoch)) for epoch in range(3)]
    for order in epochs:
        assert np.array_equal(np.sort(order), np.arange(3000))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


def test_a_plan_depends_on_the_seed_alone():
    first, again, other = (np.concatenate(plan_batches(LENGTHS, 32, seed, epoch=1)) for seed in (7, 7, 8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_batches_are_of_one_length_but_come_in_no_order_of_length():
    batches = plan_batches(LENGTHS, 32, seed=0, epoch=0)
    assert sorted(map(len, batches)) == [3000 % 32] + [32] * (3000 // 32)
    means = [LENGTHS[rows].mean() for rows in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    spread = [np.ptp(LENGTHS[rows]) for rows in batches]
    assert np.median(spread) <= 1


@pytest.mark.parametrize("source", ["reviews", "sst2"])
def test_less_than_a_percent_is_padding(request, minilm, source):
    data = request.getfixturevalue("reviews") if source == "reviews" else request.getfixturevalue("glue") / "sst2"
    lengths = encode(load_tokenizer(minilm, 128), load_task(str(data)).train.texts).lengths
    batches = plan_batches(lengths, 32, seed=42, epoch=0)
    computed = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)
    assert padding_fraction(lengths, batches) == pytest.approx(1 - sum(lengths) / computed)
    assert padding_fraction(lengths, batches) < 0.01


@pytest.mark.parametrize("columns", [1, 2], ids=["texts", "pairs"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_agree_with_a_naive_reference(minilm, columns, multiple):
    texts = [["good film", "a b c d e", "bad", "so so", "x y"]] + [["no", "it is", "q", "r s t", "u"]] * (columns - 1)
    tokenizer, truth = load_tokenizer(minilm), np.array([1, 0, 0, 1, 1])
    data, rows = encode(tokenizer, texts, truth), np.array([3, 0, 1])
    expected = [tokenizer.encode(*(column[row] for column in texts)) for row in rows]
    S = -(-max(map(len, expected)) // multiple) * multiple
    pad = lambda values, filler: list(values) + [filler] * (S - len(values))
    input_ids, mask, types, labels = make_batch(data, rows, pad_id=99, multiple=multiple)
    assert input_ids.tolist() == [pad(e.ids, 99) for e in expected]
    assert mask.long().tolist() == [pad([1] * len(e), 0) for e in expected]
    assert (types is None) if columns == 1 else (types.tolist() == [pad(e.type_ids, 0) for e in expected])
    assert torch.equal(labels, torch.tensor(truth[rows]))


def test_a_batch_without_padding_carries_no_mask(minilm):
    data = encode(load_tokenizer(minilm), [["good film", "bad film", "no"]])
    input_ids, mask, types, labels = make_batch(data, np.array([1, 0]), pad_id=0)
    assert (input_ids.shape, mask, types, labels) == ((2, 4), None, None, None)
    assert make_batch(data, np.array([1, 2]), pad_id=0)[1] is not None


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
        write(path, table)
    elif table == "truncated":
        write(path, TWO)
        path.write_bytes(path.read_bytes()[:-9])
    elif table is not None:
        path.write_bytes(table)
    with pytest.raises(InputError) as error:
        load_task(str(path))
    assert re.search(f"{name}: .*{problem}", str(error.value)) and "\n" not in str(error.value)
