"""What a run says of its data, beside transformers' tokenizer."""

import re

import numpy as np
import pandas
import pytest
from helpers import train_here, write_table
from transformers import AutoTokenizer

from data import encode, load_data, load_tokenizer
from runtime import data_notes as module
from runtime.data_notes import data_notes, token_notes


def notes_of(folder, path, max_length=32, **options) -> list[str]:
    tokenizer = load_tokenizer(folder, max_length)
    data = load_data(path, tokenizer, **options)
    sets = [encode(tokenizer, split.texts) for split in (data.train, data.validation)]
    return data_notes(data, tokenizer, *sets)


@pytest.mark.parametrize(
    "pairs, max_length, sample", [(False, 20, 10_000), (True, 40, 10_000), (False, 20, 200)]
)
def test_lengths_and_unknown_tokens_are_transformers(
    minilm, reviews, monkeypatch, pairs, max_length, sample
):
    """Exact where all can be counted, near by where a part stands for the rest."""
    monkeypatch.setattr(module, "SAMPLE", sample)
    texts = [text for (text,) in load_data(reviews).train.texts[:1000]]
    texts = [f"{text} 電影 很 好" if n % 3 else text for n, text in enumerate(texts)]
    columns = [texts, texts[::-1]] if pairs else [texts]
    theirs = AutoTokenizer.from_pretrained(minilm)
    lengths = np.array([len(ids) for ids in theirs(*columns)["input_ids"]])
    seen = theirs(*columns, truncation=True, max_length=max_length)
    ids = np.concatenate(seen["input_ids"])
    tokenizer = load_tokenizer(minilm, max_length)
    given = list(zip(*columns, strict=True))
    long, unknown = token_notes(tokenizer, given, encode(tokenizer, given))
    found = re.fullmatch(
        r"(\S+)% of the texts are longer than --max-length (\d+), and cut to it; 99 % have at most "
        r"(\d+) tokens",
        long,
    )
    usual = np.sort(lengths)[int(np.ceil(0.99 * len(lengths))) - 1]
    share = 100 * np.mean(lengths > max_length)
    tolerance = 0.051 if sample == 10_000 else 3
    assert float(found[1]) == pytest.approx(share, abs=tolerance) and int(found[2]) == max_length
    assert int(found[3]) == pytest.approx(usual, abs=0 if sample == 10_000 else 4)
    share = 100 * np.mean(ids == theirs.unk_token_id)
    assert float(unknown.partition("%")[0]) == pytest.approx(share, abs=0.051)
    assert ("choose another --model" in unknown) == (share > 5)


def test_nothing_is_said_where_nothing_is_to_say(minilm, reviews):
    """Of texts that are just so long either."""
    assert notes_of(minilm, reviews, max_length=128) == []
    tokenizer = load_tokenizer(minilm, 5)
    texts = [("a good film",), ("bad",)]
    assert token_notes(tokenizer, texts, encode(tokenizer, texts)) == []
    assert token_notes(load_tokenizer(minilm), texts, encode(tokenizer, texts)) == []


def test_a_language_that_the_vocabulary_lacks_is_named(minilm, tmp_path):
    texts = [f"這部電影真的很好看 {n}" for n in range(40)]
    path = write_table(tmp_path / "a.csv", {"text": texts, "label": ["no", "yes"] * 20})
    expected = r"note: (\d+\.\d)% of the tokens are \[UNK\], .*: it is not of this language"
    found = [re.match(expected, note) for note in notes_of(minilm, path)]
    assert [float(match[1]) > 5 for match in found if match] == [True]


def test_classes_with_few_rows_to_validate_on_are_named(minilm, tmp_path):
    labels = ["a"] * 60 + ["b"] * 50 + ["c"] * 20 + ["d"]
    table = pandas.DataFrame({"text": [f"text {n}" for n in range(131)], "label": labels})
    table.to_csv(tmp_path / "a.csv", index=False)
    assert notes_of(minilm, tmp_path / "a.csv")[1:] == [
        "note: fewer than 5 rows to validate on of c (2), d (0): their figures say little; add rows"
    ]
    table.assign(label=table["label"] + ",all").to_json(
        tmp_path / "b.jsonl", lines=True, orient="records"
    )
    notes = notes_of(minilm, tmp_path / "b.jsonl", label_separator=",")
    assert "of c (2), d (0): their" in notes[1] and len(notes) == 2


@pytest.mark.parametrize("pairs", [False, True])
def test_rows_that_stand_on_both_sides_are_counted(minilm, tmp_path, pairs):
    """By their tokens: upper case and blanks are none."""
    train = pandas.DataFrame({"sentence1": [f"text {n}" for n in range(40)], "label": [0, 1] * 20})
    other = pandas.DataFrame({"sentence1": [f"new {n}" for n in range(30)], "label": [0, 1] * 15})
    other.loc[:2, "sentence1"] = ["TEXT 3", "text  4", "text 4"]
    if pairs:
        train["sentence2"] = other["sentence2"] = "so"
        other.loc[2, "sentence2"] = "no"
    columns = {} if pairs else {"text_columns": ["sentence1"]}
    train.to_csv(tmp_path / "train.csv", index=False)
    other.to_csv(tmp_path / "validation.csv", index=False)
    count = 2 if pairs else 3
    assert notes_of(minilm, tmp_path, **columns) == [
        f"note: {count} of the rows to validate on ({count / 30:.1%}) stand in training too, token "
        "by token: the scores tell less of new texts"
    ]


def test_the_head_of_a_run_has_the_notes(tiny, tmp_path, capsys):
    """And a regression has no classes."""
    texts = [f"{n} text {'long ' * n}" for n in range(20)]
    path = write_table(tmp_path / "a.csv", {"text": texts, "label": [n / 7 for n in range(20)]})
    words = ["--model", tiny, "--data", path, "--metric", "pearson", "--max-length", 8]
    train_here(*words, "--epochs", 1, "--holdout", 0.25, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    log = (tmp_path / "out" / "training_log.txt").read_text()
    for said in printed, log:
        assert "note: held out to validate on: 5 of 20 rows (--holdout 0.25)\n" in said
        assert re.search(r"\nnote: 80.0% of the texts are longer than --max-length 8, and", said)
    assert "fewer than" not in printed
