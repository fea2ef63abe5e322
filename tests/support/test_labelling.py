"""Labelling whole tables, beside transformers' pipeline; killed by force, and in several
processes."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from helpers import ROOT, saved_base, write_table
from pyarrow import parquet
from tqdm import tqdm

import sample
from bert import BertForSequenceClassification
from data import encode, load_tokenizer, make_batch
from support import labelling
from support.console import run_main
from support.texts import batches_by_length

# A program that is sample.py, but for pieces of 16 rows and, where it is told so, a pause after
# each batch.
PROGRAM = """
import os, sys, time
sys.path.insert(0, {root!r})
import torch
import sample
from support import labelling
from support.console import run_main
labelling.PIECE = 16
pause, classify = float(os.environ.get("PAUSE", 0)), sample.probabilities
sample.probabilities = lambda *arguments: (time.sleep(pause), classify(*arguments))[1]
run_main(sample.main)
"""


@pytest.fixture(scope="session")
def model(minilm, texts, tmp_path_factory) -> str:
    """A random BERT of three classes, with a real tokenizer, which takes milliseconds."""
    labels = {0: "bad", 1: "fair", 2: "good"}
    folder = saved_base(
        tmp_path_factory.mktemp("labels"),
        vocab_size=30522,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    for name in "tokenizer.json", "tokenizer_config.json":
        (folder / name).write_bytes(Path(minilm, name).read_bytes())
    classes = BertForSequenceClassification.from_pretrained(str(folder))
    tokens = encode(load_tokenizer(str(folder), 40), [texts])
    with torch.inference_mode():  # decided, and not always for one class
        pooled = torch.cat(
            [classes.bert(make_batch(tokens, np.array([row]), 0)[0])[1] for row in range(40)]
        ).mean(0)
        classes.classifier.weight *= 30
        classes.classifier.bias.copy_(-classes.classifier.weight @ pooled)
    classes.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def texts(reviews) -> list[str]:
    column = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet")[
        "sentence"
    ].to_pylist()
    return [*column[:197], 'a, "quoted" text', "007", "naïve 中文 👩‍👩‍👧"]


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM.format(root=str(ROOT)))
    return str(path)


@pytest.fixture
def labels(monkeypatch, capsys, model):
    """Labels a table in this process, in pieces of 16 rows: labels(path, out, "--option"). Returns
    what it says.

    On one thread, as the processes that are killed: another number of threads gives other last
    digits.
    """
    monkeypatch.setattr(labelling, "PIECE", 16)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def labels(path, out, *arguments) -> str:
        words = ["sample.py", "--model", model, "--file", path, "--out", out, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            run_main(sample.main)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            torch.set_num_threads(threads)
        return capsys.readouterr().err

    return labels


@pytest.fixture
def refuses(labels, capsys):
    """The one line with which labelling is refused."""

    def refuses(*arguments) -> str:
        with pytest.raises(SystemExit) as exit:
            labels(*arguments)
        error = capsys.readouterr().err
        *before, error = (
            error.splitlines()
        )  # before it "going on" and a bar, where work was under way
        before = [line for line in before if line.strip() and "%|" not in line]
        assert (
            exit.value.code == 2
            and error.startswith("error: ")
            and not (before and "going on" not in before[0])
        )
        return error

    return refuses


def rows_in(path: Path) -> list[dict]:
    """The rows of a file, by other readers than ours."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with open(path, encoding="utf-8", newline="") as file:
        how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        return list(csv.DictReader(file, **how))


def pipeline(model: str, texts: list) -> list[dict]:
    pipe = transformers.pipeline("text-classification", model=model, device="cpu")
    return pipe(texts, truncation=True, max_length=40)


@pytest.fixture(scope="session")
def theirs(model, texts) -> list[dict]:
    return pipeline(model, texts)


def agree(rows: list[dict], theirs: list[dict], prefix: str = "") -> None:
    assert [row[f"{prefix}label"] for row in rows] == [answer["label"] for answer in theirs]
    ours = np.array([float(row[f"{prefix}confidence"]) for row in rows])
    assert np.abs(ours - [answer["score"] for answer in theirs]).max() < 1e-4


def test_the_answers_of_the_pipeline_are_not_all_alike(theirs):
    assert (
        len({answer["label"] for answer in theirs}) > 1
        and np.ptp([answer["score"] for answer in theirs]) > 0.01
    )


@pytest.mark.parametrize("kind, to", [
    ("parquet", "parquet"), ("parquet", "csv"), ("parquet", "jsonl"), ("csv", "csv"), ("csv", "parquet"),
    ("csv", "jsonl"), ("tsv", "tsv"), ("tsv", "csv"), ("jsonl", "jsonl"), ("txt", "csv"), ("txt", "parquet"),
    ("txt", "jsonl"),
])  # fmt: skip
def test_every_row_is_there_once_in_order_as_transformers_labels_it(
    labels, texts, theirs, tmp_path, kind, to
):
    path, out, several = tmp_path / f"a.{kind}", tmp_path / f"b.{to}", kind != "txt"
    if several:
        write_table(path, {"id": [f"{i:03}" for i in range(len(texts))], "review": texts})
    else:
        path.write_text("".join(text + "\r\n" for text in texts), encoding="utf-8")
    said = labels(path, out, *(["--text-column", "review"] if several else []))
    rows = rows_in(out)
    assert "200 rows labelled" in said and list(tmp_path.iterdir()) in ([path, out], [out, path])
    assert [row["review" if several else "text"] for row in rows] == texts
    if several:
        assert [row["id"] for row in rows] == [f"{i:03}" for i in range(len(texts))]
    assert list(rows[0])[-2:] == ["label", "confidence"]
    agree(rows, theirs)


def test_jsonl_keeps_each_line_as_it_stands(labels, tmp_path):
    lines = [
        '{"text": "good", "n": 1.50, "big": 123456789012345678901234567890, "at": "2020-01-01"} ',
        "",
        '{"text":"bad","x":{}}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    labels(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    found = (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()
    for line, given in zip(found, [lines[0], lines[2]], strict=True):
        assert line.startswith(given.rstrip()[:-1] + ', "label": ') and set(json.loads(line)) > {
            "label",
            "confidence",
        }


def test_parquet_keeps_every_type_and_tells_datasets_of_the_new_columns(labels, texts, tmp_path):
    table = pa.table(
        {
            "text": texts,
            "at": pa.array(range(200), pa.timestamp("s")),
            "list": [[1, i] for i in range(200)],
        }
    )
    features = {"text": {"dtype": "string", "_type": "Value"}}
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode(), b"mine": b"kept"}
    parquet.write_table(
        table.replace_schema_metadata(told), tmp_path / "a.parquet", row_group_size=37
    )
    labels(tmp_path / "a.parquet", tmp_path / "b.parquet")
    before, after = (parquet.read_table(tmp_path / f"{name}.parquet") for name in "ab")
    assert after.select(before.column_names).cast(before.schema).equals(before)
    assert set(json.loads(after.schema.metadata[b"huggingface"])["info"]["features"]) == {
        "text",
        "label",
        "confidence",
    }
    assert after.schema.metadata[b"mine"] == b"kept"


def test_pairs(labels, refuses, model, texts, tmp_path):
    pairs = [{"text": a, "text_pair": b} for a, b in zip(texts[:40], texts[40:80], strict=True)]
    write_table(tmp_path / "a.jsonl", {"premise": texts[:40], "hypothesis": texts[40:80]})
    labels(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--text-column", "premise,hypothesis")
    agree(rows_in(tmp_path / "b.jsonl"), pipeline(model, pairs))
    labels(tmp_path / "a.jsonl", tmp_path / "c.jsonl")  # the names of MNLI are known
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
    assert "one text or a pair" in refuses(
        tmp_path / "a.jsonl", tmp_path / "d.jsonl", "--text-column", "a,b,c"
    )


@pytest.mark.parametrize("name, content, problem", [
    ("a.csv", "text\ngood\n \n", "row 2 has no text in 'text'; remove"),
    ("a.jsonl", '{"text": "good"}\n{"text": null}\n', "row 2 has no text"),
    ("a.jsonl", '{"text": "good"}\n{"text": 5}\n', "row 2 has no text"),
    ("a.jsonl", '{"text": "good"}\n{"text": "\\ud800"}\n', "row 2 has no text"),
    ("a.jsonl", '{"text": "good"}\n["bad"]\n', "row 2 is a JSON list, expected an object"),
    ("a.jsonl", '{"text": "good"}\n{"text"\n', "row 2 is no JSON"),
    ("a.jsonl", '{"text": "good"}\n{"text": "a", "label": 1}\n', "row 2 has a column 'label', as the answer would"),
    ("a.csv", "text,label\na,b\n", "has a column 'label', as the answer would have; --prefix predicted_ makes it"),
    ("a.csv", "text,b\na,b\nc\n", "cannot be read as csv"),
    ("a.csv", "text\n", "holds no rows"),
    ("a.txt", "", "holds no rows"),
    ("a.txt", "good\n\nbad\n", "line 2 has no text"),
    ("a.txt", b"good\ncaf\xe9\n", "line 2 is not UTF-8"),
    ("a.csv", b"text\ncaf\xe9\n", "cannot be read as csv"),
    ("a.csv", "words\ngood\n", "of the columns words name the text's with --text-column"),
    ("a.csv", "text,text\na,b\n", "2 columns 'text'"),
    ("a.parquet", "no parquet", "cannot be read as parquet"),
])  # fmt: skip
def test_what_cannot_be_labelled_is_one_line_and_leaves_nothing(
    refuses, tmp_path, name, content, problem
):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert problem in refuses(
        path, tmp_path / "out.jsonl" if name == "a.jsonl" else tmp_path / "out.parquet"
    )
    assert list(tmp_path.iterdir()) == [path]


def test_a_label_that_is_there_already_makes_room_for_another(labels, texts, theirs, tmp_path):
    write_table(tmp_path / "a.csv", {"text": texts, "label": ["x"] * len(texts)})
    labels(tmp_path / "a.csv", tmp_path / "b.csv", "--prefix", "predicted_")
    rows = rows_in(tmp_path / "b.csv")
    agree(rows, theirs, "predicted_")
    assert {row["label"] for row in rows} == {"x"}


@pytest.mark.parametrize("arguments, problem", [
    (["--text-column", ","], "',': an option's list of names with an empty place"),
    (["--text-column", "text,text"], "a pair is of two columns"),
    (["--text-column", "other"], "no column 'other' among text"),
    (["--text-column", "number"], "the column 'number' is int64, expected text"),
    (["--batch-tokens", "0"], "--batch-tokens 0 is not at least 1"),
    (["great film"], "--out labels a whole --file, and goes without texts"),
    (["--json"], "goes without --json"),
    (["--adapter", "a", "--adapter", "b"], "one whole --file by one --adapter"),
    (["--out", "b.txt"], "the name must end in .parquet, .csv, .jsonl"),
    (["--out", "b.csv"], "'list' is list<element: int64>, which only .parquet holds"),
    (["--device", "cuda"], "--device cuda cannot be used here"),
])  # fmt: skip
def test_bad_arguments_are_one_line(refuses, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    parquet.write_table(pa.table({"text": ["a"], "number": [1], "list": [[1]]}), "a.parquet")
    if "cuda" not in arguments or not torch.cuda.is_available():
        assert problem in refuses("a.parquet", "b.parquet", *arguments)
        assert os.listdir() == ["a.parquet"]


def test_table_options_without_a_table_are_refused(run):
    done = run(ROOT / "sample.py", "great film", "--text-column", "a")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --text-column is of use with --file and --out only\n",
    )
    assert "give --out too" in run(ROOT / "sample.py", "--file", "a.parquet").stderr


@pytest.mark.parametrize(("name", "content", "problem"), [
    ("a.CSV", "text\na\n", "the name must say what it is, by ending in .parquet, .csv, .tsv, .jsonl, or .txt"),
    ("a.json", "[]", "the name must say what it is"),
    ("a.csv.gz", "text\na\n", "the name must say what it is"),
    ("a.jsonl", "", "a.jsonl: holds no rows"),
    ("a.jsonl", "\n" * 5000, "a.jsonl: holds no rows"),
    ("a.csv", "text,text\na,b\n", "2 columns 'text'; rename one of them"),
    ("a.csv", "text\n" + "long " * 2 * 10**6 + "\n", "a row is longer than 4 MiB, or a quotation mark is not closed"),
], ids=range(7))  # fmt: skip
def test_odd_files_are_one_line(refuses, tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    assert problem in refuses(tmp_path / name, tmp_path / "b.parquet")
    assert os.listdir(tmp_path) == [name]


def test_a_row_of_a_csv_may_have_four_megabytes(labels, tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "long " * 700_000 + "\n")
    assert "1 rows labelled" in labels(tmp_path / "a.csv", tmp_path / "b.parquet")


def test_what_is_no_file_to_read_twice_is_one_line(refuses, tmp_path):
    for path in tmp_path, "-", "/dev/null":
        assert "no file that can be read twice" in refuses(path, tmp_path / "b.csv")
    assert "no such file" in refuses(tmp_path / "a.csv", tmp_path / "b.csv")


def test_rows_after_many_blank_lines_are_found(labels, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" * 5000 + '{"text": "a fine film"}\n')
    labels(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert [row["text"] for row in rows_in(tmp_path / "b.jsonl")] == ["a fine film"]


def test_ends_of_lines_in_a_text_stay_in_it(labels, tmp_path):
    texts = ["hello\rbye", "hello\nbye", "hello\r\nbye", "bye\r", '"\r"', "plain"]
    parquet.write_table(pa.table({"text": texts, "number": range(6)}), tmp_path / "a.parquet")
    labels(tmp_path / "a.parquet", tmp_path / "b.csv")
    labels(tmp_path / "b.csv", tmp_path / "c.csv", "--prefix", "p_")
    for name in "b.csv", "c.csv":
        content = (tmp_path / name).read_bytes()
        assert [row["text"] for row in rows_in(tmp_path / name)] == texts and content.endswith(
            b"\n"
        )
        assert b"plain,5" in content and b"\r\n" not in content.replace(b"hello\r\nbye", b"")


def test_an_answer_that_a_tsv_cannot_hold_is_refused_before(refuses, tmp_path):
    (tmp_path / "a.tsv").write_text("text\na\n")
    for prefix in "a\t", "a\nb":
        assert "which .tsv cannot hold" in refuses(
            tmp_path / "a.tsv", tmp_path / "b.tsv", "--prefix", prefix
        )
    assert os.listdir(tmp_path) == ["a.tsv"]


@pytest.mark.parametrize("when", ["encode", "write_rows"])
@pytest.mark.parametrize("change", ["others", "fewer", "more", "no texts"])
def test_a_table_that_changes_meanwhile_is_named(
    refuses, labels, texts, tmp_path, monkeypatch, when, change
):
    """While it is answered, or written out; and when it is what it was, or its parts are away, all
    is well."""
    path, out = tmp_path / "a.parquet", tmp_path / "b.parquet"
    write = lambda texts: parquet.write_table(
        pa.table({"text": pa.array(texts, pa.string())}), path
    )
    write(texts)
    changed = {
        "others": texts[::-1],
        "fewer": texts[:96],
        "more": texts * 2,
        "no texts": [None] * len(texts),
    }[change]
    owner = sample if when == "encode" else labelling
    done, whole = [], getattr(owner, when)

    def changing(*arguments):
        if not done:
            done.append(write(changed))
        return whole(*arguments)

    monkeypatch.setattr(owner, when, changing)
    assert f"a.parquet: was changed while it was labelled; remove {out}.parts" in refuses(path, out)
    assert not out.exists()
    assert "was begun with another input" in refuses(path, out)
    shutil.rmtree(f"{out}.parts")
    write(texts[:20])
    assert "20 rows labelled" in labels(path, out)


def test_one_run_at_a_time(refuses, labels, texts, tmp_path):
    write_table(tmp_path / "a.csv", {"text": texts})
    with labelling.Parts(tmp_path / "b.csv").claimed():
        assert "another run is at work on it" in refuses(tmp_path / "a.csv", tmp_path / "b.csv")
    labels(tmp_path / "a.csv", tmp_path / "b.csv")


def test_nothing_of_somebody_elses_is_replaced(labels, refuses, texts, tmp_path):
    path, out, parts = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "b.csv.parts"
    write_table(path, {"text": texts})
    out.write_text("mine")
    assert "is there already, and is not replaced" in refuses(path, out)
    out.unlink()
    parts.mkdir()
    (parts / "000000.arrow").write_text("mine")
    assert "holds 000000.arrow, which no run left" in refuses(path, out)
    assert (parts / "000000.arrow").read_text() == "mine" and not out.exists()


def test_batches_hold_rows_of_one_length_and_no_more_than_so_many_tokens():
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    batches = batches_by_length(lengths, 128)
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert all(len(rows) * lengths[rows].max() <= 128 for rows in batches)
    assert [len(rows) for rows in batches_by_length(lengths, 1)] == [1] * 500


def test_a_bar_that_moves_changes_nothing(labels, texts, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        labelling, "tqdm", lambda **how: tqdm(**how | {"mininterval": 0, "miniters": 1})
    )
    write_table(tmp_path / "a.csv", {"text": texts})
    assert "200/200" in labels(tmp_path / "a.csv", tmp_path / "b.csv", "--batch-tokens", "64")
    agree(rows_in(tmp_path / "b.csv"), theirs)


# Killed.


@pytest.fixture
def killed(program, model, texts, tmp_path):
    """Begins to label 200 texts in 13 pieces of half a second, and kills that when `kept` pieces
    are there."""
    write_table(tmp_path / "a.parquet", {"text": texts})
    words = [sys.executable, program, "--model", model, "--file", "a.parquet", "--out", "b.csv"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def killed(
        kept: int, number: int, pause: float = 0.3, launcher=(), victim=lambda process: process.pid
    ):
        command = [*launcher, *words[1 if launcher else 0 :]]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment | {"PAUSE": str(pause)},
            stderr=subprocess.PIPE,
            text=True,
        )
        parts = tmp_path / "b.csv.parts"
        while process.poll() is None and not (
            parts.exists() and len(list(parts.glob("0*.arrow"))) >= kept
        ):
            time.sleep(0.01)
        os.kill(victim(process), number)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said, sorted(path.name for path in parts.glob("0*.arrow"))

    return killed


def finish(labels, tmp_path, theirs, *arguments) -> str:
    """Labels what is left, here; the result must be that of a run which nobody disturbed."""
    said = labels("a.parquet", "b.csv", *arguments)
    labels("a.parquet", "whole.csv", *arguments)
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    agree(rows_in(tmp_path / "b.csv"), theirs)
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "b.csv", "whole.csv"]
    return said


@pytest.mark.slow
def test_killed_again_and_again(killed, labels, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = random.Random(time.time_ns())
    for kept in 2, 5, 8:
        status, _, parts = killed(kept, signal.SIGKILL, draw.uniform(0.1, 0.3))
        assert status == -signal.SIGKILL and kept <= len(parts) < 13
    assert "going on: " in finish(labels, tmp_path, theirs)


def test_stopped(killed, labels, theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kept, number in (2, signal.SIGTERM), (4, signal.SIGINT):
        status, said, parts = killed(kept, number)
        assert status == 128 + number and "Traceback" not in said
        assert (
            said.splitlines()[-1]
            == f"stopped: {len(parts)} of 13 pieces are in b.csv.parts; the same command goes on"
        )
    assert f"going on: {len(parts)} of 13" in finish(labels, tmp_path, theirs)


def test_another_run_does_not_go_on_with_these_pieces(
    killed, labels, refuses, model, theirs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    killed(1, signal.SIGKILL)
    assert "b.csv.parts: was begun with another model" in refuses(
        "a.parquet", "b.csv", "--max-length", "7"
    )
    assert "b.csv.parts: was begun with another prefix" in refuses(
        "a.parquet", "b.csv", "--prefix", "x"
    )
    table = (tmp_path / "a.parquet").read_bytes()
    stat = os.stat("a.parquet")
    write_table(tmp_path / "a.parquet", {"text": ["another"]})
    assert "b.csv.parts: was begun with another input" in refuses("a.parquet", "b.csv")
    (tmp_path / "a.parquet").write_bytes(table)
    os.utime("a.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    part = next((tmp_path / "b.csv.parts").glob("0*.arrow"))
    part.write_bytes(part.read_bytes()[:100])
    assert f"{part.name}: is damaged; remove it" in refuses("a.parquet", "b.csv")
    part.unlink()
    finish(labels, tmp_path, theirs)


def test_killed_while_it_tidies_up(labels, theirs, texts, tmp_path, monkeypatch):
    """Before each removal in turn; and a file that somebody else has put at OUT meanwhile is left
    alone."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.parquet", {"text": texts})
    unlink = Path.unlink
    for n in range(1, 40, 3):
        count = iter(range(10**6))

        def counted(path, missing_ok=False, count=count, n=n):
            if ".parts" in str(path) and not path.name.startswith(".") and next(count) == n:
                raise SystemExit(9)
            unlink(path, missing_ok)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(Path, "unlink", counted)
            labels("a.parquet", "b.csv")
            raise SystemExit  # more than there are
        if (tmp_path / "b.csv.parts" / "whole").exists():
            labels("a.parquet", "b.csv")
        agree(rows_in(tmp_path / "b.csv"), theirs)
        assert not (tmp_path / "b.csv.parts" / "plan.json").exists()
        (tmp_path / "b.csv").unlink()
        for path in (tmp_path / "b.csv.parts").glob(".*"):
            path.unlink()


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed(
    killed, program, model, labels, theirs, tmp_path, monkeypatch
):
    """The other one ends too; then two go on, and are stopped; then one does the rest."""
    monkeypatch.chdir(tmp_path)
    launcher = [sys.executable, *TORCHRUN]
    children = lambda process: (
        Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    )
    status, said, parts = killed(
        3, signal.SIGKILL, 0.5, launcher, lambda process: int(children(process)[-1])
    )
    assert status != 0 and 3 <= len(parts) < 13, said
    status, said, more = killed(len(parts) + 2, signal.SIGTERM, 0.5, launcher)
    assert status != 0 and set(parts) < set(more) and f"going on: {len(parts)} of 13" in said, said
    finish(labels, tmp_path, theirs)


def test_two_processes_make_the_same_bytes(program, model, labels, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "a.csv", {"text": texts})
    words = [program, "--model", model, "--file", "a.csv", "--out"]
    command = [sys.executable, *TORCHRUN, *words, "two.csv"]
    threads = os.environ | {"OMP_NUM_THREADS": "1"}  # as labels() has
    done = subprocess.run(command, env=threads, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("200 rows labelled") == 1
    labels("a.csv", "one.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
