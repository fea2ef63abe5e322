"""Labelling whole tables, beside transformers' pipeline; killed by force, and in two processes."""

import csv
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import ROOT, adapted, draw, saved_base, write_table
from pyarrow import parquet
from tqdm import tqdm

import lora
import runtime.texts
import sample
from bert import BertForSequenceClassification
from data import encode, load_tokenizer, make_batch
from runtime import labelling
from support import dialects, files, parallel, pieces
from support.errors import run_main

# sample.py with pieces of 16 rows and, where it is told so, a pause in each of them.
PROGRAM = """
import os, shutil, sys, time
sys.path.insert(0, {root!r})
import sample
from runtime import texts
from support import pieces
from support.errors import run_main

pieces.PIECE = 16
predict = texts.predict

def slow_predict(*arguments):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    return predict(*arguments)

texts.predict = slow_predict
"""
RUN = "run_main(sample.main)\n"
# The same in one child after the other, each killed before another change of the file system, and
# then in one that goes on. It prints the status of each.
KILLED_EVERYWHERE = """
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}

def die_at(number):
    count = iter(range(10**9))

    def hook(event, arguments):
        writing = event == "open" and str(arguments[1])[:1] in "wax"
        changes = (event in CHANGES or writing) and out in str(arguments)
        if changes and next(count) == number:
            os._exit(9)

    sys.addaudithook(hook)

def run(number=None):
    child = os.fork()
    if not child:
        if number is not None:
            die_at(number)
        try:
            run_main(sample.main)
        except BaseException as stop:
            os._exit(getattr(stop, "code", 1) or 0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def reopen(*names, **settings):
    return opened

out = sys.argv[sys.argv.index("--out") + 1]
opened = sample.open_model(sys.argv[2], device="auto", dtype="auto", merge=True)
sample.open_model = reopen
number = 0
while True:
    status = run(number)
    finished = status == 0
    if not finished:
        status = run()
    if os.path.exists(f"{out}.parts"):
        status = "parts that are left"
        shutil.rmtree(f"{out}.parts")
    print("ended with", status, flush=True)
    os.rename(out, f"{out}.{number}")
    if finished:
        break
    number += 1
"""


@pytest.fixture(scope="session")
def texts(reviews) -> list[str]:
    table = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet")
    odd = ['a, "quoted" text', "007", "naïve 中文 👩‍👩‍👧"]
    return [*table["sentence"].to_pylist()[:197], *odd]


@pytest.fixture(scope="session")
def model(minilm, texts, made_once) -> str:
    """A random BERT of three classes, with a real tokenizer, which takes milliseconds."""

    @torch.no_grad()
    def make(folder: Path) -> None:
        labels = {0: "bad", 1: "fair", 2: "good"}
        numbers = {name: number for number, name in labels.items()}
        saved_base(folder, vocab_size=30522, id2label=labels, label2id=numbers)
        for name in "tokenizer.json", "tokenizer_config.json":
            shutil.copy(f"{minilm}/{name}", folder)
        classifier = BertForSequenceClassification.from_pretrained(folder)
        tokens = encode(load_tokenizer(folder, 40), [(text,) for text in texts])
        inputs = [make_batch(tokens, np.array([row]))[0] for row in range(40)]
        pooled = torch.cat([classifier.bert(ids)[1] for ids in inputs]).mean(0)
        classifier.classifier.weight *= 30  # decided, and not always for one class
        classifier.classifier.bias.copy_(-classifier.classifier.weight @ pooled)
        classifier.save_pretrained(folder)

    return str(made_once("three-classes", make))


@pytest.fixture(scope="session")
def adapter(model, made_once) -> str:
    """An adapter on that model, of random A and B."""

    def make(folder: Path) -> None:
        one = adapted(model, ["query", "value"])
        draw(one.bert.encoder.layer[0].attention.self.query.lora, std=0.5)
        lora.save_adapter(one, folder, model)

    return str(made_once("on-three-classes", make))


@pytest.fixture
def labels(monkeypatch, capsys, model):
    """Labels a table in this process, in pieces of 16 rows: labels(path, out, "--option").

    Returns what it says. On one thread, as the processes that are killed: another number of
    threads gives other last digits.
    """
    monkeypatch.setattr(pieces, "PIECE", 16)

    def labels(path, out, *arguments, by=("--model", model)) -> str:
        words = ["sample.py", *by, "--file", path, "--out", out, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run_main(sample.main)
        finally:
            torch.set_num_threads(threads)
        labels.said = capsys.readouterr()
        return labels.said.out

    return labels


@pytest.fixture
def refuses(labels, refusal):
    """The one line with which labelling is refused."""
    return partial(refusal, labels)


def rows_in(path: Path) -> list[dict]:
    """The rows of a file, by other readers than ours."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with open(path, encoding="utf-8", newline="") as file:
        tsv = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        return list(csv.DictReader(file, **(tsv if path.suffix == ".tsv" else {})))


def pipeline(model: str, texts: list, **settings) -> list[dict]:
    import transformers

    pipe = transformers.pipeline("text-classification", model=model, device="cpu")
    return pipe(texts, truncation=True, max_length=40, **settings)


@pytest.fixture(scope="session")
def theirs(model, texts) -> list[dict]:
    return pipeline(model, texts)


def assert_agree(rows: list[dict], theirs: list[dict], prefix: str = "") -> None:
    assert [row[f"{prefix}label"] for row in rows] == [answer["label"] for answer in theirs]
    ours = np.array([float(row[f"{prefix}confidence"]) for row in rows])
    assert np.abs(ours - [answer["score"] for answer in theirs]).max() < 1e-4


# What comes out.


def test_the_answers_of_the_pipeline_are_not_all_alike(theirs):
    assert len({answer["label"] for answer in theirs}) > 1
    assert np.ptp([answer["score"] for answer in theirs]) > 0.01


PAIRS_OF_KINDS = """
    parquet>parquet parquet>csv parquet>jsonl csv>csv csv>parquet csv>jsonl tsv>tsv tsv>csv
    jsonl>jsonl txt>csv txt>parquet txt>jsonl
"""


@pytest.mark.parametrize("kinds", PAIRS_OF_KINDS.split())
def test_every_row_is_there_once_in_order_as_transformers_labels_it(
    labels, texts, theirs, tmp_path, kinds
):
    kind, to = kinds.split(">")
    path, out = tmp_path / f"a.{kind}", tmp_path / f"b.{to}"
    ids = [f"{i:03}" for i in range(len(texts))]
    if kind == "txt":
        path.write_text("".join(text + "\r\n" for text in texts), encoding="utf-8")
        said = labels(path, out)
    else:
        write_table(path, {"id": ids, "review": texts})
        said = labels(path, out, "--text-column", "review")
    assert said.splitlines()[-2:] == ["13 of 13 pieces answered", f"{out}: 200 rows labelled"]
    assert sorted(os.listdir(tmp_path)) == [path.name, out.name]
    rows = rows_in(out)
    assert [row["line" if kind == "txt" else "review"] for row in rows] == texts
    if kind != "txt":
        assert [row["id"] for row in rows] == ids
    assert list(rows[0])[-2:] == ["label", "confidence"]
    assert_agree(rows, theirs)


def test_a_merged_adapter_labels_as_it_answers(labels, texts, adapter, tmp_path):
    write_table(tmp_path / "a.csv", {"text": texts})
    labels(tmp_path / "a.csv", tmp_path / "b.csv", by=["--adapter", adapter])
    plain = sample.open_model(adapter)
    single = [sample.classify(plain, [(text,)])[0] for text in texts]
    rows = rows_in(tmp_path / "b.csv")
    assert [row["label"] for row in rows] == [answer["label"] for answer in single]
    ours = np.array([float(row["confidence"]) for row in rows])
    assert np.abs(ours - [answer["confidence"] for answer in single]).max() < 1e-4


def test_an_edited_layer_is_not_merged(labels, texts, adapter, tmp_path, monkeypatch):
    """It labels as it answers, and says that it is slower."""

    def edited(self, x):
        return self.lora_B(self.lora_A(x).relu()) * self.scaling

    write_table(tmp_path / "a.csv", {"text": texts})
    labels(tmp_path / "a.csv", tmp_path / "plain.csv", by=["--adapter", adapter])
    monkeypatch.setattr(lora.LoRALayer, "forward", edited)
    labels(tmp_path / "a.csv", tmp_path / "b.csv", by=["--adapter", adapter])
    notes = labels.said.err.splitlines()
    assert any("cannot be merged" in note and "slower" in note for note in notes)
    model = sample.open_model(adapter)
    single = [sample.classify(model, [(text,)])[0] for text in texts]
    ours = np.array([float(row["confidence"]) for row in rows_in(tmp_path / "b.csv")])
    assert np.abs(ours - [answer["confidence"] for answer in single]).max() < 1e-4
    assert (tmp_path / "b.csv").read_bytes() != (tmp_path / "plain.csv").read_bytes()


def test_a_regression_gets_a_score(labels, minilm, texts, tmp_path):
    folder = saved_base(tmp_path / "model", vocab_size=30522, num_labels=1)
    shutil.copy(f"{minilm}/tokenizer.json", folder)
    write_table(tmp_path / "a.jsonl", {"text": texts[:40]})
    labels(tmp_path / "a.jsonl", tmp_path / "b.jsonl", by=["--model", folder])
    model = sample.open_model(str(folder))
    scores = [sample.classify(model, [(text,)])[0]["score"] for text in texts[:40]]
    rows = rows_in(tmp_path / "b.jsonl")
    assert [*rows[0]] == ["text", "score"]
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-5)


def test_jsonl_keeps_each_line_as_it_stands(labels, tmp_path):
    lines = [
        '{"text": "good", "n": 1.50, "big": 123456789012345678901234567890, "at": "2020-01-01"} ',
        "",
        '{"text":"bad","x":{}}',
        "{ }",
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    labels(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    found = (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()
    for line, given in zip(found[:2], [lines[0], lines[2]], strict=True):
        assert line.startswith(given.rstrip()[:-1] + ', "label": ')
        assert set(json.loads(line)) > {"label", "confidence"}
    assert found[2:] == ['{"label": null, "confidence": null}']


def test_parquet_keeps_every_type_and_what_it_says_of_its_columns(labels, texts, tmp_path):
    """`datasets` takes a column of which the metadata say nothing by its type."""
    table = pa.table(
        {
            "text": pa.array(texts).dictionary_encode(),
            "at": pa.array(range(200), pa.timestamp("s")),
            "list": [[1, i] for i in range(200)],
            "kind": pa.array([str(i // 30) for i in range(200)]).dictionary_encode(),
        }
    )
    told = {b"huggingface": b'{"info": {"features": {}}}', b"mine": b"kept"}
    path = tmp_path / "a.parquet"
    parquet.write_table(table.replace_schema_metadata(told), path, row_group_size=37)
    labels(path, tmp_path / "b.parquet")
    before, after = (parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert after.select(before.column_names).cast(before.schema).equals(before)
    assert [str(kind) for kind in after.schema.types[-2:]] == ["string", "double"]
    assert told.items() <= after.schema.metadata.items()


@pytest.mark.parametrize("to", ["jsonl", "csv"])
def test_numbers_of_a_parquet_file_in_a_file_of_text(labels, tmp_path, to):
    """Above all NaN, which JSON has not: null."""
    odd = [float("nan"), float("inf"), -float("inf"), 1e308, None, 0.1]
    table = {"text": ["a film"] * 6, "there": [True, False, None] * 2, "big": [2**63 - 1, None] * 3}
    table |= {"x": odd, "y": pa.array(odd, pa.float32()), "z": pa.array(odd, pa.float16())}
    table["kind"] = pa.array(["a", "b", None] * 2).dictionary_encode()
    table["day"] = pa.array([19723] * 6, pa.date32())
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    out = tmp_path / f"b.{to}"
    labels(tmp_path / "a.parquet", out)
    assert {row["day"] for row in rows_in(out)} == {"2024-01-01"}
    if to == "csv":
        assert [row["x"] for row in rows_in(out)] == ["nan", "inf", "-inf", "1e+308", "", "0.1"]
        return
    lines = out.read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["x"] for row in rows] == [None, None, None, 1e308, None, 0.1]
    assert [row["y"] for row in rows][:5] == [None] * 3 + [None if "inf" else 0, None]
    assert [row["big"] for row in rows] == table["big"] and rows[1]["there"] is False
    assert [row["kind"] for row in rows] == ["a", "b", None] * 2


def test_columns_of_scores(labels, refuses, minilm, texts, tmp_path):
    number = saved_base(tmp_path / "number", vocab_size=30522, num_labels=1)
    shutil.copy(f"{minilm}/tokenizer.json", number)
    write_table(tmp_path / "a.parquet", {"text": [*texts, ""]})
    labels(tmp_path / "a.parquet", tmp_path / "b.parquet", "--scores", "--prefix", "p_")
    labels(tmp_path / "a.parquet", tmp_path / "c.parquet", "--prefix", "p_")
    rows = rows_in(tmp_path / "b.parquet")
    names = ["p_score_bad", "p_score_fair", "p_score_good"]
    assert [*rows[0]] == ["text", "p_label", "p_confidence", *names]
    assert {rows[-1][name] for name in names} == {None}
    for row in rows[:-1]:
        scores = [row[name] for name in names]
        assert abs(sum(scores) - 1) < 1e-5 and row["p_confidence"] == max(scores)
        assert names[np.argmax(scores)] == f"p_score_{row['p_label']}"
    plain = parquet.read_table(tmp_path / "c.parquet")
    assert plain.equals(parquet.read_table(tmp_path / "b.parquet").select(plain.column_names))
    write_table(tmp_path / "d.csv", {"text": texts, "score_fair": texts})
    problem = "a column 'score_fair', as the answer would"
    assert problem in refuses(tmp_path / "d.csv", tmp_path / "e.csv", "--scores")
    one = refuses(tmp_path / "a.parquet", tmp_path / "e.csv", "--model", number, "--scores")
    assert "--scores: a regression has one number" in one
    assert not (tmp_path / "e.csv.parts").exists()


@pytest.fixture
def of_labels(model, tmp_path) -> Path:
    """The same model, of several labels a text."""
    folder = shutil.copytree(model, tmp_path / "of-labels")
    config = json.loads((folder / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_several_labels_a_text(labels, refuses, of_labels, texts, tmp_path):
    """A list where the file has lists; or a text with commas between, if no name has one."""
    write_table(tmp_path / "a.parquet", {"text": [*texts, ""]})
    pipe = pipeline(str(of_labels), texts[:60], top_k=None)
    above = [{one["label"] for one in row if one["score"] > 0.5} for row in pipe]
    assert {len(one) for one in above} >= {0, 1, 2}
    for to in "parquet", "jsonl", "csv":
        labels(tmp_path / "a.parquet", tmp_path / f"b.{to}", by=["--model", of_labels])
        rows = rows_in(tmp_path / f"b.{to}")
        found = [row["label"] for row in rows]
        if to == "csv":
            assert not any(isinstance(label, list) for label in found)
            found = [label.split(",") if label else [] for label in found]
        assert [set(label) for label in found[:60]] == above
        assert found[-1] == ([] if to == "csv" else None)
    config = (of_labels / "config.json").read_text()
    (of_labels / "config.json").write_text(config.replace('"fair"', '"fair, or so"'))
    error = refuses(tmp_path / "a.parquet", tmp_path / "c.csv", "--model", of_labels)
    assert "cannot hold the name 'fair, or so'; a .parquet or .jsonl can" in error


def test_pairs(labels, refuses, model, texts, tmp_path):
    pairs = [{"text": a, "text_pair": b} for a, b in zip(texts[:40], texts[40:80], strict=True)]
    write_table(tmp_path / "a.jsonl", {"premise": texts[:40], "hypothesis": texts[40:80]})
    path = tmp_path / "a.jsonl"
    labels(path, tmp_path / "b.jsonl", "--text-column", "premise,hypothesis")
    assert_agree(rows_in(tmp_path / "b.jsonl"), pipeline(model, pairs))
    labels(path, tmp_path / "c.jsonl")  # the names of MNLI are known
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
    three = refuses(path, tmp_path / "d.jsonl", "--text-column", "premise,hypothesis,premise")
    assert "single texts or pairs of texts" in three


def test_pairs_in_lines(labels, model, texts, tmp_path, monkeypatch):
    folder = shutil.copytree(model, tmp_path / "of-pairs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"text_pairs": True}))
    lines = [f"{a}\t{b}" for a, b in zip(texts[:40], texts[40:80], strict=True)]
    (tmp_path / "a.txt").write_text("\n".join([*lines, "no tab", "a\tb\tc\n"]), encoding="utf-8")
    said = labels(tmp_path / "a.txt", tmp_path / "b.csv", by=["--model", folder])
    assert said.endswith("42 rows labelled, 1 of them without a text and left empty\n")
    rows = rows_in(tmp_path / "b.csv")
    assert [row["line"] for row in rows] == [*lines, "no tab", "a\tb\tc"]
    pairs = [dict(zip(("text", "text_pair"), line.split("\t"), strict=True)) for line in lines]
    assert_agree(rows[:40], pipeline(model, pairs))


def test_rows_without_a_text_get_no_answer(labels, model, tmp_path):
    """In any kind of file; a piece may hold nothing else. The rest is as if they were not there."""
    values = ["a fine film", None, "", " \u200b", "dull", *[None, "\ufeff"] * 10, "so so"]
    there = [0, 4, 25]
    write_table(tmp_path / "whole.csv", {"text": [values[row] for row in there]})
    labels(tmp_path / "whole.csv", tmp_path / "answers.jsonl")
    answers = [(row["label"], row["confidence"]) for row in rows_in(tmp_path / "answers.jsonl")]
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    odd = [{"text": value} for value in values[:3]] + [{"text": 5}, {"text": "dull"}]
    odd += [{"text": "\ud800"}, {}, {"text": ["a"]}, *[{"text": "\0"}] * 17, {"text": "so so"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    (tmp_path / "a.txt").write_text("\n".join(value or "" for value in values))
    for path, out in ("a.parquet", "b.parquet"), ("a.jsonl", "b.jsonl"), ("a.txt", "c.parquet"):
        said = labels(tmp_path / path, tmp_path / out)
        said = said.splitlines()[-1].removeprefix(f"{tmp_path / out}: ")
        assert said == "26 rows labelled, 23 of them without a text and left empty"
        rows = [(row["label"], row["confidence"]) for row in rows_in(tmp_path / out)]
        for row, (answer, confidence) in zip(there, answers, strict=True):
            assert rows[row] == (answer, pytest.approx(confidence, abs=1e-5))
        assert {rows[row] for row in {*range(26)} - {*there}} == {(None, None)}
    opened = sample.open_model(model)
    columns = labelling.answer_columns(opened, [("dull",), (None,), (" ",), ("so so",)])
    assert columns["label"] == [answers[1][0], None, None, answers[2][0]]
    assert labelling.answer_columns(opened, [("",)]) == {"label": [None], "confidence": [None]}


def test_a_label_that_is_there_already_makes_room_for_another(labels, texts, theirs, tmp_path):
    write_table(tmp_path / "a.csv", {"text": texts, "label": ["x"] * len(texts)})
    labels(tmp_path / "a.csv", tmp_path / "b.csv", "--prefix", "predicted_")
    rows = rows_in(tmp_path / "b.csv")
    assert_agree(rows, theirs, "predicted_")
    assert {row["label"] for row in rows} == {"x"}


def test_a_tsv_is_searched_for_quotes_once(labels, texts, tmp_path, monkeypatch):
    searched = []
    search = dialects.is_quoted_tsv

    def counting(path):
        searched.append(path)
        return search(path)

    monkeypatch.setattr(dialects, "is_quoted_tsv", counting)
    write_table(tmp_path / "a.tsv", {"text": texts})
    labels(tmp_path / "a.tsv", tmp_path / "b.tsv")
    assert searched == [tmp_path / "a.tsv"]


def test_ends_of_lines_in_a_text_stay_in_it(labels, tmp_path):
    texts = ["hello\rbye", "hello\nbye", "hello\r\nbye", "bye\r", '"\r"', "plain"]
    parquet.write_table(pa.table({"text": texts, "number": range(6)}), tmp_path / "a.parquet")
    labels(tmp_path / "a.parquet", tmp_path / "b.csv")
    labels(tmp_path / "b.csv", tmp_path / "c.csv", "--prefix", "p_")
    for name in "b.csv", "c.csv":
        content = (tmp_path / name).read_bytes()
        assert [row["text"] for row in rows_in(tmp_path / name)] == texts
        assert content.endswith(b"\n") and b"plain,5" in content
        assert b"\r\n" not in content.replace(b"hello\r\nbye", b"")


def test_a_row_of_a_csv_may_have_nearly_four_megabytes(labels, tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "long " * 700_000 + "\n")
    assert "1 rows labelled" in labels(tmp_path / "a.csv", tmp_path / "b.parquet")


def test_rows_after_many_blank_lines_are_found(labels, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" * 2**21 + '{"text": "a fine film"}\n')
    labels(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [row["text"] for row in rows_in(tmp_path / "b.jsonl")] == ["a fine film"]


def test_a_bar_that_moves_changes_nothing(labels, texts, theirs, tmp_path, monkeypatch):
    shown = []

    def bar(**settings):
        shown.append(tqdm(**settings | {"mininterval": 0, "miniters": 1, "disable": False}))
        return shown[0]

    monkeypatch.setattr(labelling, "tqdm", bar)
    write_table(tmp_path / "a.csv", {"text": texts})
    labels(tmp_path / "a.csv", tmp_path / "b.csv", "--batch-tokens", "64")
    assert_agree(rows_in(tmp_path / "b.csv"), theirs)
    assert shown[0].n == shown[0].total == 200


def test_long_texts_and_unknown_tokens_are_named(labels, tmp_path):
    """Once, though there are many pieces."""
    path = tmp_path / "a.csv"
    texts = ["good " * 50, "電影 very good", "bad"] * 20
    path.write_text("text\n" + "".join(f"{text}\n" for text in texts))
    said = labels(path, tmp_path / "b.csv", "--max-length", 20).splitlines()
    long, unknown = [line for line in said if line.startswith("note ")]
    assert long.startswith(
        "note on the first 16 texts: 37.5% of the texts are longer than --max-length 20, and cut"
    )
    assert re.match(r"note on the first 16 texts: \d+\.\d% of the tokens are \[UNK\]", unknown)


@pytest.mark.parametrize("form", ["tsv", "csv", "parquet"])
def test_what_pandas_writes_is_labelled(labels, tmp_path, form):
    """Quoted fields in a .tsv, which stay so; UTF-16 and semicolons; categories."""
    import pandas

    texts = ["good", 'she said "hi"', "two\nlines", "a\ttab; x"] * 10
    path, out = tmp_path / f"a.{form}", tmp_path / f"b.{form}"
    table = pandas.DataFrame({"text": texts, "n": [str(n) for n in range(40)]})
    if form == "parquet":
        table.astype("category").to_parquet(path)
        labels(path, out)
        labels(path, tmp_path / "b.tsv")
        found = pandas.read_parquet(out).astype(str)
        pandas.testing.assert_frame_equal(
            pandas.read_csv(tmp_path / "b.tsv", sep="\t", dtype=str), found
        )
    elif form == "tsv":
        table.to_csv(path, sep="\t", index=False)
        labels(path, out)
        found = pandas.read_csv(out, sep="\t", dtype=str)
    else:
        table.to_csv(path, sep=";", encoding="utf-16", index=False)
        labels(path, out)
        found = pandas.read_csv(out, dtype=str)
    assert found["text"].tolist() == texts and found["n"].tolist() == table["n"].tolist()
    assert set(found["label"]) <= {"bad", "fair", "good"}


# What is refused.


@pytest.mark.parametrize(
    "name, content, problem",
    [
        (
            "a.jsonl",
            '{"text": "good"}\n["bad"]\n',
            "row 2: cannot be read ('list' object is no",
        ),
        (
            "a.jsonl",
            '{"text": "good"}\n' * 19 + "5\n",
            "row 20: cannot be read ('int' object",
        ),
        ("a.jsonl", '{"text": "good"}\n{"text"\n', "row 2: cannot be read (Expecting ':'"),
        ("a.jsonl", '{"text": "a"}\n' + "[" * 10**5, "row 2: cannot be read (maximum recursion"),
        (
            "a.jsonl",
            '{"text": "good"}\n{"text": "a", "label": 1}\n',
            "row 2: has a column 'label', as the answer would",
        ),
        (
            "a.csv",
            "text,label\na,b\n",
            "'label', as the answer would; --prefix predicted_ makes it predicted_label",
        ),
        ("a.csv", "text,b\na,b\nc\n", "a.csv: cannot be read"),
        ("a.csv", "text\n", "holds no rows"),
        ("a.txt", "", "holds no rows"),
        ("a.jsonl", "", "a.jsonl: "),
        ("a.txt", b"good\ncaf\xe9\n", "a.txt: is no UTF-8, and probably CP1252"),
        ("a.csv", b"text\ncaf\xe9\n", "a.csv: is no UTF-8, and probably CP1252"),
        ("a.csv", "words\ngood\n", "words"),
        ("a.csv", "text,text\na,b\n", "two columns are called 'text'"),
        ("a.csv", "text,,\na,b,c\n", "two columns have no name"),
        ("a.parquet", "no parquet", "a.parquet: cannot be read"),
        ("a.CSV", "text\na\n", "the name must end in .parquet, .csv, .tsv, .jsonl or .txt"),
        ("a.csv.gz", "text\na\n", "the name must end in"),
        ("a.csv", "text\n" + "long " * 2 * 10**6 + "\n", "a.csv: "),
    ],
    ids=range(19),
)
def test_what_cannot_be_labelled_is_one_line_and_leaves_nothing(
    refuses, tmp_path, name, content, problem
):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / ("out.jsonl" if name == "a.jsonl" else "out.parquet")
    assert problem in refuses(path, out)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--text-column", "text,text"], "single texts or pairs of texts"),
        (["--text-column", "other"], "no column other among text"),
        (["--text-column", "list"], "a.parquet: cannot be read (Unsupported cast from list"),
        (["--json"], "--json goes with --score alone"),
        (["--adapter", "a", "--adapter", "b"], "--out takes a whole --file, and one --adapter"),
        (["--out", "b.txt"], "the name must end in .parquet, .csv, .tsv, .jsonl"),
        (["--out", "b.csv"], "'list' is list<element: int64>, which only .parquet holds"),
        (["--device", "cuda"], "--device cuda cannot be used here"),
        (["--max-length", "41"], "--max-length 41: MODEL takes from 3 to 40 tokens"),
        (["--batch-tokens", "0"], "--batch-tokens 0: at least 1"),
    ],
)
def test_bad_arguments_are_one_line(refuses, model, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    parquet.write_table(pa.table({"text": ["a"], "number": [1], "list": [[1]]}), "a.parquet")
    if "cuda" not in arguments or not torch.cuda.is_available():
        line = refuses("a.parquet", "b.parquet", *arguments)
        assert problem.replace("MODEL", model) in line
        assert os.listdir() == ["a.parquet"]


def test_what_is_no_file_to_read_is_one_line(refuses, tmp_path):
    for path in tmp_path, "-", "/dev/null", tmp_path / "a.csv":
        assert "is no file" in refuses(path, tmp_path / "b.csv")


def test_weights_that_give_no_numbers_label_nothing(refuses, labels, model, texts, tmp_path):
    broken = BertForSequenceClassification.from_pretrained(model)
    broken.classifier.weight.data *= 1e38
    folder = shutil.copytree(model, tmp_path / "broken")
    broken.save_pretrained(folder)
    write_table(tmp_path / "a.csv", {"text": texts})
    error = refuses(tmp_path / "a.csv", tmp_path / "b.csv", "--model", folder)
    assert "gives no finite numbers" in error
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "broken"]


# The files of others, and the input.


@pytest.mark.parametrize("change", ["others", "fewer", "more", "no texts"])
def test_a_table_that_changes_meanwhile_is_never_half_labelled(
    refuses, labels, texts, tmp_path, monkeypatch, change
):
    path, out = tmp_path / "a.parquet", tmp_path / "b.parquet"

    def write(texts):
        parquet.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)

    write(texts)
    changed = {"fewer": texts[:96], "more": texts * 2, "no texts": [None] * len(texts)}
    changed = changed.get(change, texts[::-1])
    done = []
    predict = runtime.texts.predict

    def changing(*arguments):
        done.append(predict(*arguments))
        if len(done) == 2:
            write(changed)
        return done[-1]

    monkeypatch.setattr(runtime.texts, "predict", changing)
    if change == "fewer":  # what is left of it has been answered
        assert "96 rows labelled" in labels(path, out)
    else:
        error = refuses(path, out)
        assert f"{path} was changed meanwhile; the same command goes on" in error
        assert not out.exists()
        labels(path, out)
    labels(path, tmp_path / "whole.parquet")
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not (tmp_path / "b.parquet.parts").exists()


def test_one_run_at_a_time(refuses, labels, texts, tmp_path):
    write_table(tmp_path / "a.csv", {"text": texts})
    (tmp_path / "b.csv.parts").mkdir()
    with files.locked(tmp_path / "b.csv.parts"):
        error = refuses(tmp_path / "a.csv", tmp_path / "b.csv")
    assert "b.csv.parts: another process" in error
    labels(tmp_path / "a.csv", tmp_path / "b.csv")


def test_nothing_of_somebody_elses_is_replaced(labels, refuses, texts, tmp_path):
    path, out, parts = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "b.csv.parts"
    write_table(path, {"text": texts})
    for target in "mine", "nowhere":
        out.symlink_to(target)
        assert "b.csv: is there already" in refuses(path, out)
        assert os.readlink(out) == target
        out.unlink()
    out.write_text("mine")
    assert "b.csv: is there already" in refuses(path, out)
    assert out.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["a.csv", "b.csv"]
    out.unlink()
    parts.mkdir()
    others = ["000000.part", "notes.txt", "000000-0.part"]
    for name in others:
        (parts / name).write_text("mine")
    assert "200 rows labelled" in labels(path, out)
    assert {name: (parts / name).read_text() for name in os.listdir(parts)} == dict.fromkeys(
        others, "mine"
    )


@pytest.mark.parametrize("when", ["answer", "join"])
def test_a_file_that_comes_to_stand_at_out_stays(
    labels, refuses, texts, tmp_path, monkeypatch, when
):
    path, out = tmp_path / "a.csv", tmp_path / "b.csv"
    write_table(path, {"text": texts})
    former = getattr(labelling.Labelling, when)

    def interrupted(*arguments):
        out.write_text("mine")
        former(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(labelling.Labelling, when, interrupted)
        for _ in range(2):
            assert "b.csv: is there already" in refuses(path, out)
            assert out.read_text() == "mine"
    assert len([*tmp_path.glob("b.csv.parts/0*.part")]) == 13
    labels(path, tmp_path / "whole.csv")
    out.unlink()
    assert "13 of 13 pieces are there" in labels(path, out)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


# Parts that do not fit.


@pytest.fixture
def begun(labels, texts, tmp_path, monkeypatch):
    """A labelling of a.csv into b.csv with its 13 parts, and what it is to become: whole.csv."""
    write_table(tmp_path / "a.csv", {"text": texts, "id": [f"{row:03}" for row in range(200)]})
    labels(tmp_path / "a.csv", tmp_path / "whole.csv")
    with monkeypatch.context() as patch:
        patch.setattr(labelling.Labelling, "join", lambda work: None)
        labels(tmp_path / "a.csv", tmp_path / "b.csv")
    parts = sorted(tmp_path.glob("b.csv.parts/*.part"))
    assert len(parts) == 13
    return parts


def goes_on(labels, tmp_path, there: int, *arguments) -> None:
    """Goes on with so many parts, and ends as if undisturbed."""
    said = labels(tmp_path / "a.csv", tmp_path / "b.csv", *arguments)
    assert f"{there} of 13 pieces are there; after a stop the same command goes on" in said, said
    labels(tmp_path / "a.csv", tmp_path / "anew.csv", *arguments)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "anew.csv").read_bytes()
    assert not (tmp_path / "b.csv.parts").exists()


def test_a_flipped_bit(labels, begun, tmp_path):
    """At 40 places of finished parts, the ends among them: these parts are answered again, unless
    the bit means nothing, as one of a date."""
    draw = random.Random(0)
    path, out, folder = tmp_path / "a.csv", tmp_path / "b.csv", begun[0].parent
    shutil.copytree(folder, tmp_path / "kept")
    whole = (tmp_path / "whole.csv").read_bytes()
    there = []
    for start in 0, 10, 20, 30:
        for place, part in enumerate(draw.sample(begun, 10), start):
            content = bytearray(part.read_bytes())
            content[round(place / 39 * (len(content) - 1))] ^= 1 << draw.randrange(8)
            part.write_bytes(content)
        said = labels(path, out)
        there.append(int(said.partition(" of 13")[0]))
        assert out.read_bytes() == whole
        out.unlink()
        shutil.copytree(tmp_path / "kept", folder)
    assert sum(there) < 24, there  # 12 if every bit had a meaning


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "swapped", "of another number"])
def test_a_damaged_part(labels, begun, tmp_path, damage):
    some, other = begun[3], begun[7]
    content = some.read_bytes()
    if damage == "swapped":
        some.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif damage == "of another number":
        some.rename(some.with_name("000012" + some.name[6:]))
    else:
        some.write_bytes({"cut": content[:-4], "empty": b"", "text": b"no zip"}[damage])
    goes_on(labels, tmp_path, 11 if damage == "swapped" else 12)


def test_a_part_that_is_damaged_before_it_is_joined(labels, refuses, begun, tmp_path, monkeypatch):
    def damaged(*arguments):
        begun[3].write_bytes(b"")
        former(*arguments)

    former = labelling.Labelling.join
    with monkeypatch.context() as patch:
        patch.setattr(labelling.Labelling, "join", damaged)
        error = refuses(tmp_path / "a.csv", tmp_path / "b.csv")
    assert f"{begun[3]}: missing, or damaged; or " in error
    goes_on(labels, tmp_path, 12)


def test_an_input_that_was_swapped(labels, begun, tmp_path):
    """It has the same size and the same time; one text and one number are others."""
    path = tmp_path / "a.csv"
    stat = path.stat()
    lines = path.read_text().splitlines()
    lines[20] = lines[20].replace("a", "e")
    lines[40] = lines[40].replace("039", "XXX")
    path.write_text("\n".join(lines) + "\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    goes_on(labels, tmp_path, 12)
    assert "XXX" in (tmp_path / "b.csv").read_text()
    assert (tmp_path / "b.csv").read_bytes() != (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    "arguments, there", [(["--max-length", "7"], 0), (["--prefix", "p_", "--scores"], 13)]
)
def test_other_options(labels, begun, tmp_path, arguments, there):
    """What decides no logits, as the names of the columns, lets the parts be."""
    goes_on(labels, tmp_path, there, *arguments)


def test_another_model(labels, begun, model, tmp_path):
    other = BertForSequenceClassification.from_pretrained(model)
    other.classifier.bias.data += 0.01
    folder = shutil.copytree(model, tmp_path / "other")
    other.save_pretrained(folder)
    goes_on(labels, tmp_path, 0, "--model", folder)


def test_another_order_of_rows(labels, begun, tmp_path):
    lines = (tmp_path / "a.csv").read_text().splitlines(keepends=True)
    (tmp_path / "a.csv").write_text("".join(lines[:1] + lines[17:33] + lines[1:17] + lines[33:]))
    goes_on(labels, tmp_path, 11)


# Killed.


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM.format(root=str(ROOT)) + RUN)
    return path


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def killed(program, model, texts, tmp_path):
    """Begins to label 200 texts in 13 pieces of half a second, and kills that when `kept` pieces
    are there. Returns the status, what it said, and the pieces."""
    write_table(tmp_path / "a.parquet", {"text": texts})
    parts = tmp_path / "b.csv.parts"
    words = [program, "--model", model, "--file", "a.parquet", "--out", "b.csv"]

    def killed(kept, number, pause=0.3, launcher=(), choose=lambda process: process.pid):
        process = subprocess.Popen(
            [sys.executable, *launcher, *words],
            cwd=tmp_path,
            env=ENVIRONMENT | {"PAUSE": str(pause)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C is ignored by what a shell runs in the background, as these tests may be.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        while process.poll() is None and len(list(parts.glob("0*.part"))) < kept:
            time.sleep(0.01)
        os.kill(choose(process), number)
        said = process.communicate(timeout=60)[0]
        return process.returncode, said, sorted(path.name for path in parts.glob("0*.part"))

    return killed


def finish(labels, tmp_path, theirs, *arguments) -> str:
    """Labels what is left, here; the result is that of a run which nobody disturbed."""
    said = labels("a.parquet", "b.csv", *arguments)
    labels("a.parquet", "whole.csv", *arguments)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert_agree(rows_in(tmp_path / "b.csv"), theirs)
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.csv", "whole.csv"]
    return said


@pytest.mark.slow
def test_killed_again_and_again(killed, labels, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(time.time_ns())
    for kept in 2, 5, 8:
        status, _, parts = killed(kept, signal.SIGKILL, draw.uniform(0.1, 0.3))
        assert status == -signal.SIGKILL and kept <= len(parts) < 13
    assert "0 of 13 pieces" not in finish(labels, tmp_path, theirs)


def test_stopped_by_control_c(killed, labels, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said, parts = killed(3, signal.SIGINT)
    assert status == 130 and "Traceback" not in said
    assert "after a stop the same command goes on" in said
    assert f"{len(parts)} of 13 pieces are there" in finish(labels, tmp_path, theirs)


@pytest.mark.slow
def test_killed_before_every_change_of_the_file_system(model, texts, tmp_path):
    """Also while it joins the parts, and while it tidies up."""
    script = tmp_path / "everywhere.py"
    script.write_text(PROGRAM.format(root=str(ROOT)) + KILLED_EVERYWHERE)
    write_table(tmp_path / "a.parquet", {"text": texts[:32]})
    words = ["--model", model, "--file", "a.parquet", "--out", "b.csv"]
    run = {"cwd": tmp_path, "env": ENVIRONMENT, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, script, *words], **run, timeout=120)
    statuses = re.findall("ended with (.)", done.stdout)
    assert done.returncode == 0, done.stderr
    assert len(statuses) > 15, done.stdout
    # What is killed when OUT is there has left it whole; the same command then tidies up.
    refused = statuses.count("2")
    assert statuses == ["0"] * (len(statuses) - refused - 1) + ["2"] * refused + ["0"], done.stdout
    assert refused < 12 and done.stderr.count("b.csv: is there already") == refused
    contents = {path.read_bytes() for path in tmp_path.glob("b.csv.[0-9]*")}
    assert len(contents) == 1 and contents.pop().count(b"\n") == 33


@pytest.mark.parametrize("output", ["a pipe", "a terminal"])
@pytest.mark.slow
def test_it_outlives_whoever_reads_what_it_says(
    program, model, texts, theirs, tmp_path, monkeypatch, output
):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.csv", {"text": texts})
    reader, writer = os.pipe() if output == "a pipe" else pty.openpty()
    words = [sys.executable, program, "--model", model, "--file", "a.csv", "--out", "b.csv"]
    environment = ENVIRONMENT | {"PAUSE": "0.1"}
    process = subprocess.Popen(words, stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    assert process.wait(60) == 0
    assert_agree(rows_in(tmp_path / "b.csv"), theirs)


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(killed, labels, theirs, tmp_path, monkeypatch):
    """The other one ends too; then two go on, and are stopped; then one does the rest."""
    monkeypatch.chdir(tmp_path)

    def last_child(process) -> int:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return int(children.read_text().split()[-1])

    status, said, parts = killed(3, signal.SIGKILL, 0.5, TORCHRUN, last_child)
    assert status != 0 and 3 <= len(parts) < 13, said
    status, said, more = killed(len(parts) + 2, signal.SIGTERM, 0.5, TORCHRUN)
    assert status != 0 and set(parts) < set(more), said
    assert f"{len(parts)} of 13 pieces are there" in said
    finish(labels, tmp_path, theirs)


def test_two_processes_make_the_same_bytes(program, model, labels, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.csv", {"text": [*texts, ""]})
    words = [*TORCHRUN, program, "--model", model, "--file", "a.csv", "--out", "two.csv"]
    run = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, *words], **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("201 rows labelled, 1 of them without a text and left empty") == 1
    labels("a.csv", "one.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_processes_share_the_pieces(labels, texts, theirs, tmp_path, monkeypatch):
    """By their numbers: what the second one of two would do is missing from the first's."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.csv", {"text": texts})
    monkeypatch.setattr(parallel, "own_part", lambda items: items[1::2])
    with pytest.raises(SystemExit):
        labels("a.csv", "b.csv")
    found = sorted(int(path.stem[:6]) for path in (tmp_path / "b.csv.parts").glob("0*.part"))
    assert found == [1, 3, 5, 7, 9, 11]
