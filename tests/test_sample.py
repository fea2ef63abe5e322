"""Classifying text: every way to give it, the probabilities of transformers with peft, and one line
for a mistake."""

import contextlib
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from helpers import ROOT, saved_base, write_table
from safetensors.torch import load_file, save_file

import sample
import train
from data import encode, load_task, load_tokenizer
from lora import open_adapter
from support.console import run_main
from support.options import parse_options

TEXTS = [
    "a gripping, beautifully acted film",
    "dull",
    "the [MASK] of a user, 中文 👩‍👩‍👧 \u202eעולם\x07\u200b",
    "so-so, though it takes its time, and then some more of it",
]


@pytest.fixture(scope="session")
def adapter(minilm, reviews, tmp_path_factory) -> str:
    """The adapter of a small real run."""
    folder = tmp_path_factory.mktemp("run")
    task = load_task(reviews)
    rows = zip(task.train.texts[0][:96].to_pylist(), task.train.labels[:96], strict=True)
    lines = [
        json.dumps({"text": text, "label": task.label_names[label]}) + "\n" for text, label in rows
    ]
    (folder / "reviews.jsonl").write_text("".join(lines), encoding="utf-8")
    options = [
        "--model",
        minilm,
        "--data",
        f"{folder}/reviews.jsonl",
        "--out",
        f"{folder}/out",
        "--lr",
        "5e-3",
    ]
    options += ["--max-length", "16", "--epochs", "1", "--batch-size", "8"]
    train.train(train.Config(**parse_options(train.Config, options)))
    return f"{folder}/out/best"


@pytest.fixture(scope="session")
def whole(minilm, tmp_path_factory) -> str:
    """A whole fine-tuned model of other shapes than MiniLM's."""
    folder = saved_base(
        tmp_path_factory.mktemp("whole"), vocab_size=30522, max_position_embeddings=512
    )
    shutil.copy(f"{minilm}/tokenizer.json", folder)
    return str(folder)


@pytest.fixture
def says(monkeypatch, capsys):
    """What sample.py prints with these arguments and this standard input."""

    def says(*arguments, stdin: bytes = b"") -> str:
        monkeypatch.setattr(sys, "argv", ["sample.py", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        run_main(sample.main)
        return capsys.readouterr().out

    return says


@pytest.fixture
def fails(says, capsys):
    """The one line on stderr with which sample.py refuses these arguments."""

    def fails(*arguments, **stdin) -> str:
        with pytest.raises(SystemExit) as exit:
            says(*arguments, **stdin)
        shown = capsys.readouterr()
        assert (exit.value.code, shown.out) == (2, "")
        assert shown.err.startswith("error: ") and shown.err.count("\n") == 1, shown.err
        return shown.err

    return fails


@torch.inference_mode()
def expected(model, folder: str, texts: list[str]) -> np.ndarray:
    """The probabilities of a model of transformers or peft, a text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text, truncation=True, max_length=512, return_tensors="pt") for text in texts]
    return torch.cat([model.eval()(**row).logits.softmax(-1) for row in rows]).numpy()


def records(lines: str) -> list[dict]:
    return [json.loads(line) for line in lines.splitlines()]


def test_probabilities_are_those_of_transformers_with_peft(adapter, minilm, reviews):
    texts = TEXTS + load_task(reviews).validation.texts[0][:40].to_pylist()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    theirs = expected(peft.PeftModel.from_pretrained(base, adapter), minilm, texts)
    model, tokenizer = open_adapter(adapter), load_tokenizer(minilm, 512)
    for batch_tokens in 1, 100, 4096:
        ours = sample.probabilities(model, encode(tokenizer, [texts]), batch_tokens)
        assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(sample.classify(model, tokenizer, texts) - theirs).max() < 1e-5
    assert np.ptp(theirs[:, 0]) > 0.01  # they do depend on the text


@pytest.mark.parametrize("option", ["--model", "--adapter"])
def test_a_whole_model_is_used_as_it_is(says, whole, option):
    model, texts = (
        transformers.AutoModelForSequenceClassification.from_pretrained(whole),
        [*TEXTS, "no " * 2000],
    )
    scores = [list(r["scores"].values()) for r in records(says(option, whole, "--json", *texts))]
    assert np.abs(np.array(scores) - expected(model, whole, texts)).max() < 1e-5


def test_every_way_to_give_texts_says_the_same(says, whole, tmp_path):
    one = [says("--model", whole, text) for text in TEXTS]
    for line, text in zip(one, TEXTS, strict=True):
        assert re.fullmatch(
            rf"LABEL_[01] +\d+\.\d%  {re.escape(text)}\n", line.replace("\\u0007", "\x07")
        )
    lines = "".join(f"{text}\n" for text in TEXTS).encode()
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    assert says("--model", whole, *TEXTS) == "".join(one)
    assert says("--model", whole, "--file", str(tmp_path / "texts.txt")) == "".join(one)
    assert says("--model", whole, "-", stdin=lines) == "".join(one)
    assert says("--model", whole, stdin=lines.removesuffix(b"\n")) == "".join(one)


def test_json_holds_the_probability_of_every_class(says, adapter):
    shown = records(says("--adapter", adapter, "--json", *TEXTS))
    assert [record["text"] for record in shown] == TEXTS
    for record in shown:
        assert list(record["scores"]) == ["negative", "positive"]
        assert (
            record["scores"][record["label"]]
            == max(record["scores"].values())
            == record["confidence"]
        )
        assert sum(record["scores"].values()) == pytest.approx(1, abs=2e-6)


def test_demo(says, adapter, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best").symlink_to(adapter)
    monkeypatch.chdir(tmp_path)
    assert len(says("--demo").splitlines()) == 4


def test_another_base_of_the_same_shapes(says, adapter, minilm, tmp_path):
    moved = shutil.copytree(minilm, tmp_path / "moved")
    assert says("--adapter", adapter, "--model", str(moved), *TEXTS) == says(
        "--adapter", adapter, *TEXTS
    )


def test_an_adapter_that_peft_saved(says, adapter, minilm, tmp_path):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=2)
    peft.PeftModel.from_pretrained(base, adapter).save_pretrained(tmp_path)
    ours, theirs = (
        records(says("--adapter", path, "--json", *TEXTS)) for path in (adapter, str(tmp_path))
    )
    assert [list(r["scores"].values()) for r in ours] == [
        list(r["scores"].values()) for r in theirs
    ]


def test_the_prompt_survives_odd_texts(whole):
    screen, terminal = pty.openpty()
    command = [sys.executable, "sample.py", "--model", whole]
    process = subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    timer = threading.Timer(60, process.kill)
    timer.start()
    os.close(terminal)
    os.write(
        screen,
        "great film\n\n \t\n[MASK] 中文 👩‍👩‍👧 \u202e\n\u200b\n".encode()
        + b"caf\xe9\ndull film\n\x04",
    )
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while chunk := os.read(screen, 4096):
            shown += chunk
    timer.cancel()
    shown = shown.decode(errors="replace")
    assert process.wait(30) == 0 and "Traceback" not in shown
    for text in "great film", "[MASK] 中文 👩‍👩‍👧", "dull film":
        assert any("%" in line and text in line for line in shown.splitlines()), shown


def test_no_adapter_yet_is_one_line_of_a_real_process(run, tmp_path):
    done = run(ROOT / "sample.py", "great film", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: out/best: no adapter yet; train one with `make train`, or name one with --adapter\n"
    )


@pytest.mark.parametrize("content, problem", [
    (b"good\ncaf\xe9\n", "not UTF-8 text (byte 8)"),
    (b"good\n\nbad\n", "line 2 is empty"),
    (b"good\n \t\n", "line 2 is empty"),
    (b"", "line 1 is missing"),
])  # fmt: skip
def test_a_bad_file_is_one_line(fails, adapter, tmp_path, content, problem):
    (tmp_path / "texts.txt").write_bytes(content)
    error = fails("--adapter", adapter, "--file", str(tmp_path / "texts.txt"))
    assert "texts.txt" in error and problem in error
    assert problem in fails("--adapter", adapter, "-", stdin=content)


@pytest.mark.parametrize("arguments, problem", [
    ([""], "text 1 is empty"),
    (["good", " "], "text 2 is empty"),
    (["caf\udce9"], "UTF-8"),
    (["--file", "nowhere.txt"], "nowhere.txt: No such file"),
    (["--max-length", "-1", "good"], "max-length"),
    (["--max-length", "many", "good"], "invalid int value: 'many'"),
    (["--jsn", "good"], "unrecognized arguments: --jsn"),
])  # fmt: skip
def test_bad_arguments_are_one_line(fails, adapter, arguments, problem):
    assert problem in fails("--adapter", adapter, *arguments)


def test_a_bad_model_or_adapter_is_one_line(fails, adapter, whole, minilm, tmp_path):
    assert "no such directory" in fails("--adapter", str(tmp_path / "nowhere"), "good")
    assert "the directory has no" in fails("--adapter", str(tmp_path), "good")
    assert "adapter" in fails("--adapter", adapter, "--model", whole, "good")
    assert "no trained classifier" in fails("--model", minilm, "good")
    broken = shutil.copytree(adapter, tmp_path / "broken")
    os.truncate(broken / "adapter_model.safetensors", 1000)
    assert "not a whole safetensors file" in fails("--adapter", str(broken), "good")


@pytest.fixture(scope="session")
def of_pairs(quick, reviews, tmp_path_factory) -> str:
    """The adapter of a quick run on pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    texts = load_task(reviews).validation.texts[0][:40].to_pylist()
    table = {"sentence1": texts, "sentence2": texts[::-1], "label": ["same", "other"] * 20}
    quick(
        folder / "out",
        "--data",
        write_table(folder / "pairs.jsonl", table),
        "--max-length",
        40,
        "--lr",
        "0.01",
    )
    return str(folder / "out" / "best")


def test_pairs(says, fails, of_pairs, adapter, tiny, tmp_path):
    pairs = [("it rains", "the street is wet"), ("dull", "a gripping film, and a long one")]
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2),
        of_pairs,
    )
    tokenizer = load_tokenizer(tiny)
    with torch.inference_mode():
        coded = [tokenizer.encode(*pair) for pair in pairs]
        logits = [
            model.eval()(torch.tensor([e.ids]), token_type_ids=torch.tensor([e.type_ids])).logits
            for e in coded
        ]
    theirs = torch.cat(logits).softmax(-1).numpy()
    asked = [word for pair in pairs for word in ("--pair", *pair)]
    shown = records(says("--adapter", of_pairs, "--json", *asked))
    assert [(record["text"], record["text_pair"]) for record in shown] == pairs
    assert (
        np.abs(np.array([list(record["scores"].values()) for record in shown]) - theirs).max()
        < 1e-5
    )
    lines = "".join("\t".join(pair) + "\n" for pair in pairs)
    (tmp_path / "pairs.tsv").write_text(lines)
    plain = says("--adapter", of_pairs, *asked)
    assert "it rains | the street is wet" in plain
    assert plain == says("--adapter", of_pairs, "--file", str(tmp_path / "pairs.tsv"))
    assert plain == says("--adapter", of_pairs, "-", stdin=lines.encode())
    for single in ["great film"], ["--demo"], ["a\tb\tc"], ["a\t "]:
        assert "classifies pairs of texts; give --pair" in fails("--adapter", of_pairs, *single)
    assert "classifies single texts, not pairs" in fails("--adapter", adapter, "--pair", "a", "b")
    assert "text 2 is empty" in fails("--adapter", of_pairs, "--pair", "a", " ")


@pytest.mark.parametrize(
    "ways", ["--demo great", "--file f great", "--pair a b great", "--file f -", "--demo --file f"]
)
def test_texts_given_in_two_ways_are_refused(fails, adapter, ways):
    assert "are two ways to give texts; take one" in fails("--adapter", adapter, *ways.split())


@pytest.mark.parametrize("kind", [".lora_A", ".lora_B"])
def test_absurd_weights_give_no_answer(fails, adapter, tmp_path, kind):
    broken = shutil.copytree(adapter, tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors = {name: tensor * (3e37 if kind in name else 1) for name, tensor in tensors.items()}
    save_file(tensors, broken / "adapter_model.safetensors")
    for options in [], ["--json"]:
        assert "no finite numbers" in fails("--adapter", str(broken), *options, "good")


def test_classes_keep_their_names_and_their_number(says, minilm, tmp_path):
    labels = {0: "bad", 1: "fair", 2: "good"}
    saved_base(
        tmp_path,
        vocab_size=30522,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    shutil.copy(f"{minilm}/tokenizer.json", tmp_path)
    assert list(records(says("--model", str(tmp_path), "--json", "so"))[0]["scores"]) == [
        "bad",
        "fair",
        "good",
    ]


@pytest.fixture(scope="session")
def of_numbers(quick, reviews, tmp_path_factory) -> str:
    """The adapter of a quick regression on pairs."""
    folder = tmp_path_factory.mktemp("numbers")
    texts = load_task(reviews).validation.texts[0][:40].to_pylist()
    table = {"sentence1": texts, "sentence2": texts[::-1], "label": [n % 11 / 2 for n in range(40)]}
    data = write_table(folder / "numbers.jsonl", table)
    quick(
        folder / "out",
        "--data",
        data,
        "--metric",
        "spearman",
        "--max-length",
        40,
        "--lr",
        "0.05",
        "--rank",
        2,
    )
    return str(folder / "out" / "best")


def test_a_regression_answers_with_its_number(run, says, of_numbers, of_pairs, tiny, tmp_path):
    """That of peft, and of transformers' own pipeline once it is merged; beside an adapter of
    classes as well."""
    pairs = [
        ("it rains", "the street is wet"),
        ("dull", "a gripping film, and a long one"),
        ("no", "no"),
    ]
    config = transformers.AutoConfig.from_pretrained(of_numbers)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model = peft.PeftModel.from_pretrained(
        load(tiny, config=config, ignore_mismatched_sizes=True), of_numbers
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    with torch.inference_mode():
        theirs = [model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    assert np.ptp(theirs) > 0.01
    asked = [word for pair in pairs for word in ("--pair", *pair)]
    shown = records(says("--adapter", of_numbers, "--json", *asked))
    assert [record.keys() for record in shown] == [{"text", "text_pair", "score"}] * 3
    assert [record["score"] for record in shown] == pytest.approx(theirs, abs=1e-5)
    lines = says("--adapter", of_numbers, *asked).splitlines()
    assert lines == [f"{r['score']:<17.3f}  {r['text']} | {r['text_pair']}" for r in shown]
    both = records(says("--adapter", of_numbers, "--adapter", of_pairs, "--json", *asked))
    assert [list(r)[3:] for r in both] == [["score"], ["label", "confidence", "scores"]] * 3
    assert [r["score"] for r in both[::2]] == [r["score"] for r in shown]

    done = run("lora.py", "merge", of_numbers, tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    pipe = transformers.pipeline(
        "text-classification", model=str(tmp_path / "merged"), device="cpu"
    )
    answers = pipe([{"text": one, "text_pair": two} for one, two in pairs])
    assert [answer["score"] for answer in answers] == pytest.approx(theirs, abs=1e-5)
    whole = records(says("--model", str(tmp_path / "merged"), "--json", *asked))
    assert [record["score"] for record in whole] == pytest.approx(theirs, abs=1e-5)


def test_a_number_is_not_gone_on_with_as_classes(refused, of_numbers, of_pairs, reviews, tmp_path):
    numbers = Path(of_numbers).parent.parent / "numbers.jsonl"
    common = ["--max-length", 16, "--out", tmp_path / "out"]
    error = refused("--init-adapter", of_numbers, "--data", reviews, *common)
    assert (
        "answers with a regression's number, but the data has classes; --metric decides which"
        in error
    )
    error = refused("--init-adapter", of_pairs, "--data", numbers, "--metric", "pearson", *common)
    assert (
        "answers with classes, but the data has a regression's number; --metric decides which"
        in error
    )
