"""Text to batches: tokens as transformers makes them, tables of every format, batches that hold
each row once."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import edit_json, texts_of, write_table
from pyarrow import parquet
from transformers import AutoTokenizer

from data import encode, load_task, load_tokenizer, make_batch, padding_fraction, plan_batches

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
    expected = AutoTokenizer.from_pretrained(folder)(
        *columns, truncation=True, max_length=max_length
    )
    encoded = encode(load_tokenizer(str(folder), max_length), columns)
    for row, tokens in enumerate(expected["input_ids"]):
        assert ids(encoded, row) == tokens, [column[row] for column in columns]
    if len(columns) == 2:
        assert encoded.token_type_ids.tolist() == [
            kind for row in expected["token_type_ids"] for kind in row
        ]


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
    texts = [
        "very good, " * 50_000,
        "a" * 1_000_000,
        f"good {'x' * 1_000_000}",
        "so" + " " * 9000 + "good",
    ]
    assert_same_tokens(minilm, texts, max_length=16)
    assert_same_tokens(minilm, texts, texts[::-1], max_length=16)


def test_sst2_gives_transformers_tokens(minilm, glue):
    task = load_task(str(glue / "sst2"))
    assert_same_tokens(
        minilm, [text for (text,) in texts_of(task.validation) + texts_of(task.train)[:5000]]
    )


@pytest.mark.parametrize("names", [("train.csv", "validation.csv"), ("train.jsonl", "validation.parquet"),
                                   ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
                                   ("train.tsv", "validation_matched.tsv")])  # fmt: skip
def test_directory(tmp_path, names):
    for name in names:
        write_table(
            tmp_path / name,
            {"premise": [f"{name} a", "b"], "hypothesis": ["c", "d"], "label": ["no", "yes"]},
        )
    task = load_task(str(tmp_path))
    assert texts_of(task.train) == [(f"{names[0]} a", "c"), ("b", "d")]
    assert texts_of(task.validation)[0] == (f"{names[1]} a", "c")
    assert (task.label_names, task.validation.labels.tolist()) == (["no", "yes"], [0, 1])


def test_shards_and_chosen_columns(tmp_path):
    for n in range(3):
        write_table(
            tmp_path / f"train-0000{n}-of-00003.parquet",
            {"sentence": ["x"], "mine": [f"part {n}"], "stars": [n]},
        )
    write_table(tmp_path / "validation.csv", {"mine": ["part 9"], "stars": [2]})
    task = load_task(str(tmp_path), text_columns=["mine"], label_column="stars")
    assert texts_of(task.train) == [("part 0",), ("part 1",), ("part 2",)]
    assert (task.train.labels.tolist(), task.validation.labels.tolist()) == ([0, 1, 2], [2])


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
    first, again, other = (
        np.concatenate(plan_batches(LENGTHS, 32, seed, epoch=1)) for seed in (7, 7, 8)
    )
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
    data = (
        request.getfixturevalue("reviews")
        if source == "reviews"
        else request.getfixturevalue("glue") / "sst2"
    )
    lengths = encode(load_tokenizer(minilm, 128), load_task(str(data)).train.texts).lengths
    batches = plan_batches(lengths, 32, seed=42, epoch=0)
    computed = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)
    assert padding_fraction(lengths, batches) == pytest.approx(1 - sum(lengths) / computed)
    assert padding_fraction(lengths, batches) < 0.01


@pytest.mark.parametrize("columns", [1, 2], ids=["texts", "pairs"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_agree_with_a_naive_reference(minilm, columns, multiple):
    texts = [["good film", "a b c d e", "bad", "so so", "x y"]] + [
        ["no", "it is", "q", "r s t", "u"]
    ] * (columns - 1)
    tokenizer, truth = load_tokenizer(minilm), np.array([1, 0, 0, 1, 1])
    data, rows = encode(tokenizer, texts, truth), np.array([3, 0, 1])
    expected = [tokenizer.encode(*(column[row] for column in texts)) for row in rows]
    S = -(-max(map(len, expected)) // multiple) * multiple
    pad = lambda values, filler: list(values) + [filler] * (S - len(values))
    input_ids, mask, types, labels = make_batch(data, rows, pad_id=99, multiple=multiple)
    assert input_ids.tolist() == [pad(e.ids, 99) for e in expected]
    assert mask.long().tolist() == [pad([1] * len(e), 0) for e in expected]
    assert (
        (types is None)
        if columns == 1
        else (types.tolist() == [pad(e.type_ids, 0) for e in expected])
    )
    assert torch.equal(labels, torch.tensor(truth[rows]))


def test_a_batch_without_padding_carries_no_mask(minilm):
    data = encode(load_tokenizer(minilm), [["good film", "bad film", "no"]])
    input_ids, mask, types, labels = make_batch(data, np.array([1, 0]), pad_id=0)
    assert (input_ids.shape, mask, types, labels) == ((2, 4), None, None, None)
    assert make_batch(data, np.array([1, 2]), pad_id=0)[1] is not None
