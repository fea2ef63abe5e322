"""Text to batches: tokens as transformers makes them, batches that hold each row once."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from helpers import saved_base
from pyarrow import parquet
from transformers import AutoTokenizer

from bert import BertForSequenceClassification
from data import (
    batches_by_length,
    encode,
    load_data,
    load_tokenizer,
    make_batch,
    plan_batches,
    predict,
)


def assert_same_tokens(folder, texts, max_length=512):
    """Texts or pairs through encode and through transformers."""
    theirs = AutoTokenizer.from_pretrained(folder)
    columns = [list(column) for column in zip(*texts, strict=True)]
    expected = theirs(*columns, truncation=True, max_length=max_length)
    encoded = encode(load_tokenizer(folder, max_length), texts)
    ids = encoded.input_ids.tolist()
    for row, tokens in enumerate(expected["input_ids"]):
        start = encoded.starts[row]
        assert ids[start : start + encoded.lengths[row]] == tokens, texts[row]
    assert len(ids) == sum(map(len, expected["input_ids"]))
    if len(columns) == 2:
        types = [kind for row in expected["token_type_ids"] for kind in row]
        assert encoded.token_type_ids.tolist() == types


@pytest.mark.parametrize("max_length", [128, 16])
def test_reviews_give_transformers_tokens(minilm, reviews, max_length):
    texts = [text for (text,) in load_data(reviews).train.texts]
    assert_same_tokens(minilm, [(text,) for text in texts[:2000]], max_length)
    assert_same_tokens(minilm, list(zip(texts[:500], texts[500:1000], strict=True)), max_length)


def test_very_long_texts_give_transformers_tokens(minilm):
    texts = [
        "very good, " * 10_000,
        "a" * 200_000,
        f"good {'x' * 200_000}",
        "so" + " " * 9000 + "good",
    ]
    assert_same_tokens(minilm, [(text,) for text in texts], max_length=16)
    assert_same_tokens(minilm, list(zip(texts, texts[::-1], strict=True)), max_length=16)


def test_sst2_gives_transformers_tokens(minilm, glue):
    data = load_data(glue / "sst2")
    assert_same_tokens(minilm, data.validation.texts + data.train.texts[:5000])


@pytest.mark.parametrize("name, metric, labels, rows, columns", [
    ("sst2", "accuracy", ["negative", "positive"], (67349, 872), 1),
    ("cola", "matthews_correlation", ["unacceptable", "acceptable"], (8551, 1043), 1),
    ("rte", "accuracy", ["entailment", "not_entailment"], (2490, 277), 2),
])  # fmt: skip
def test_glue(glue, name, metric, labels, rows, columns):
    data = load_data(glue / name)
    assert (data.task.metric, data.task.names, len(data.columns)) == (metric, labels, columns)
    assert (len(data.train.labels), len(data.validation.labels)) == rows
    source = parquet.read_table(glue / name / "validation-00000-of-00001.parquet")
    assert data.validation.labels.tolist() == source["label"].to_pylist()
    texts = zip(*(source[column].to_pylist() for column in data.columns), strict=True)
    assert data.validation.texts == list(texts)


LENGTHS = np.random.default_rng(1).geometric(0.1, 3000) + 2


def test_each_epoch_holds_every_row_once_in_an_order_of_its_own():
    """It depends on the seed and the epoch alone."""
    orders = []
    for seed, epoch in (42, 0), (42, 1), (42, 2), (7, 1):
        order, again = (
            np.concatenate(plan_batches(LENGTHS, 32, seed=seed, epoch=epoch)) for _ in range(2)
        )
        assert np.array_equal(np.sort(order), np.arange(3000)) and np.array_equal(order, again)
        orders.append(tuple(order))
    assert len(set(orders)) == 4


def test_batches_are_of_one_length_but_come_in_no_order_of_length():
    batches = plan_batches(LENGTHS, 32, seed=0, epoch=0)
    assert sorted(map(len, batches)) == [3000 % 32] + [32] * (3000 // 32)
    means = [LENGTHS[rows].mean() for rows in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    spread = [np.ptp(LENGTHS[rows]) for rows in batches]
    assert np.median(spread) <= 1


def test_answering_takes_every_row_once_the_longest_first():
    lengths = np.array([3, 900, 5, 1200, 3, 4, 500])
    batches = batches_by_length(lengths, batch_tokens=1000)
    assert sorted(np.concatenate(batches)) == list(range(7))
    longest = [lengths[rows].max() for rows in batches]
    assert longest == sorted(longest, reverse=True) == [1200, 900, 500, 4]
    for rows, S in zip(batches, longest, strict=True):
        assert len(rows) * S <= 1000 or len(rows) == 1


@pytest.mark.parametrize("source", ["reviews", "sst2"])
def test_less_than_a_percent_is_padding(request, minilm, source):
    if source == "reviews":
        data = load_data(request.getfixturevalue("reviews"))
    else:
        data = load_data(request.getfixturevalue("glue") / "sst2")
    lengths = encode(load_tokenizer(minilm, 128), data.train.texts).lengths
    batches = plan_batches(lengths, 32, seed=42, epoch=0)
    computed = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert 1 - lengths.sum() / computed < 0.01


TEXTS = [
    ("good film", "no"),
    ("a b c d e", "it is"),
    ("bad", "q"),
    ("so so", "r s t"),
    ("x y", "u"),
]


@pytest.mark.parametrize("columns", [1, 2], ids=["texts", "pairs"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_agree_with_a_naive_reference(minilm, columns, multiple):
    texts = [text[:columns] for text in TEXTS]
    tokenizer = load_tokenizer(minilm)
    truth = np.array([1, 0, 0, 1, 1])
    data = encode(tokenizer, texts, truth).to("cpu", multiple=multiple)
    rows = np.array([3, 0, 1])
    expected = [tokenizer.encode(*texts[row]) for row in rows]
    S = -(-max(map(len, expected)) // multiple) * multiple

    def pad(values: list[int]) -> list[int]:
        return values + [0] * (S - len(values))

    input_ids, mask, types, labels = make_batch(data, rows)
    assert input_ids.tolist() == [pad(e.ids) for e in expected]
    assert mask.dtype == torch.bool and mask.tolist() == [pad([1] * len(e)) for e in expected]
    if columns == 1:
        assert types is None
    else:
        assert types.tolist() == [pad(e.type_ids) for e in expected]
    assert torch.equal(labels, torch.tensor(truth[rows]))


def test_a_batch_without_padding_carries_no_mask(minilm):
    """Unless masks are always wanted."""
    data = encode(load_tokenizer(minilm), [("good film",), ("bad film",), ("no",)])
    input_ids, mask, types, labels = make_batch(data, np.array([1, 0]))
    assert (input_ids.shape, mask, types, labels) == ((2, 4), None, None, None)
    assert make_batch(data, np.array([1, 2]))[1] is not None
    always = data.to("cpu", always_mask=True)
    assert make_batch(always, np.array([1, 0]))[1].all()


def test_predictions_are_those_of_a_row_at_a_time(tmp_path, minilm):
    """In the order of the rows, whatever the batches; rows that are in none of them are 0."""
    saved_base(tmp_path, vocab_size=30522, num_labels=3)
    model = BertForSequenceClassification.from_pretrained(tmp_path).train()
    data = encode(load_tokenizer(minilm), TEXTS)
    batches = batches_by_length(data.lengths, batch_tokens=16)
    assert len(batches) > 1
    logits = predict(model, data, batches, nullcontext())
    assert model.training and logits.shape == (5, 3) and not logits.requires_grad
    half = predict(model, data, batches[:1], nullcontext())
    nothing = predict(model, data, [], nullcontext())
    model.eval()
    with torch.no_grad():
        alone = [model(*make_batch(data, np.array([row]))[:3]) for row in range(5)]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-5)
    others = np.setdiff1d(np.arange(5), batches[0])
    assert torch.equal(half[batches[0]], logits[batches[0]]) and not half[others].any()
    assert not nothing.any() and nothing.shape == (5, 3)
