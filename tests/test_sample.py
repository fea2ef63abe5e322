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
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, adapted, saved_base
from pyarrow import parquet
from safetensors.torch import load_file, save_file

import sample
from data import batches_by_length, encode, load_tokenizer, predict
from lora import save_adapter
from support.errors import run_main

TEXTS = [
    "a gripping, beautifully acted film",
    "dull",
    "the [MASK] of a user, 中文 👩‍👩‍👧 \u202eעולם\x07\u200b",
    "so-so, though it takes its time, and then some more of it",
]
PAIRS = [("it rains", "the street is wet"), ("dull", "a gripping film, and a long one")]


def make_adapter(folder: Path, base: str, names: list[str], pairs: bool | None) -> str:
    """An adapter of random A and B for these classes, or for a regression of no names."""
    model = adapted(base, ["query", "value"])
    D, C = model.config.hidden_size, len(names) or 1
    model.classifier = torch.nn.Linear(D, C)
    model.config.id2label = dict(enumerate(names or ["LABEL_0"]))
    model.config.problem_type = None if names else "regression"
    model.config.text_pairs = pairs
    save_adapter(model, folder, base)
    return str(folder)


@pytest.fixture(scope="session")
def adapter(minilm, made_once) -> str:
    """Of single texts, on MiniLM."""

    def make(folder: Path) -> None:
        make_adapter(folder, minilm, ["negative", "positive"], pairs=False)

    return str(made_once("adapter-of-reviews", make))


@pytest.fixture(scope="session")
def of_pairs(tiny, made_once) -> str:
    def make(folder: Path) -> None:
        make_adapter(folder, str(tiny), ["same", "other"], pairs=True)

    return str(made_once("adapter-of-pairs", make))


@pytest.fixture(scope="session")
def of_numbers(tiny, made_once) -> str:
    """A regression on pairs."""

    def make(folder: Path) -> None:
        make_adapter(folder, str(tiny), [], pairs=True)

    return str(made_once("adapter-of-numbers", make))


@pytest.fixture(scope="session")
def whole(minilm, made_once) -> str:
    """A whole fine-tuned model of other shapes than MiniLM's."""

    def make(folder: Path) -> None:
        saved_base(folder, vocab_size=30522, max_position_embeddings=512)
        shutil.copy(f"{minilm}/tokenizer.json", folder)

    return str(made_once("whole-of-512", make))


@pytest.fixture
def says(monkeypatch, capsys):
    """What sample.py prints with these arguments and this standard input."""

    def says(*arguments, stdin: bytes = b"") -> str:
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        run_main(sample.main)
        return capsys.readouterr().out

    return says


@pytest.fixture
def fails(says, refusal):
    """The one line on stderr with which sample.py refuses these arguments."""
    return partial(refusal, says)


@torch.inference_mode()
def expected(model, folder: str, texts: list[str]) -> np.ndarray:
    """The probabilities of a model of transformers or peft, a text at a time."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(t, truncation=True, max_length=512, return_tensors="pt") for t in texts]
    return torch.cat([model.eval()(**row).logits.softmax(-1) for row in rows]).numpy()


def open_in_peft(adapter: str, base: str, **settings):
    import peft
    import transformers

    open_theirs = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs = open_theirs(base, **settings or {"num_labels": 2})
    return peft.PeftModel.from_pretrained(theirs, adapter).eval()


def records(lines: str) -> list[dict]:
    return [json.loads(line) for line in lines.splitlines()]


def scores(lines: str) -> np.ndarray:
    return np.array([[*record["scores"].values()] for record in records(lines)])


# The numbers.


def test_probabilities_are_those_of_transformers_with_peft(adapter, minilm, reviews):
    table = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet")
    given = TEXTS + table["sentence"].to_pylist()[:40]
    theirs = expected(open_in_peft(adapter, minilm), minilm, given)
    assert np.ptp(theirs[:, 0]) > 0.01  # they do depend on the text
    model = sample.open_model(adapter)
    encoded = encode(model.tokenizer, [(text,) for text in given])
    for batch_tokens in 1, 100, 4096:
        batches = batches_by_length(encoded.lengths, batch_tokens)
        logits = predict(model.network, encoded, batches, model.placement.autocast)
        assert np.abs(logits.softmax(-1).numpy() - theirs).max() < 1e-5
    answers = sample.classify(model, [(text,) for text in given])
    ours = np.array([[*answer["scores"].values()] for answer in answers])
    assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("option", ["--model", "--adapter"])
def test_a_whole_model_is_used_as_it_is(says, whole, option):
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(whole)
    given = [*TEXTS, "no " * 2000]
    ours = scores(says(option, whole, "--json", *given))
    assert np.abs(ours - expected(model, whole, given)).max() < 1e-5


def test_another_base_of_the_same_shapes(says, adapter, minilm, tmp_path):
    moved = shutil.copytree(minilm, tmp_path / "moved")
    with_moved = says("--adapter", adapter, "--model", moved, *TEXTS)
    assert with_moved == says("--adapter", adapter, *TEXTS)


def test_an_adapter_that_peft_saved(says, adapter, minilm, tmp_path):
    open_in_peft(adapter, minilm).save_pretrained(tmp_path)
    ours, theirs = (says("--adapter", path, "--json", *TEXTS) for path in (adapter, tmp_path))
    assert (scores(ours) == scores(theirs)).all()


def test_a_merged_adapter_answers_the_same(adapter):
    given = [(text,) for text in TEXTS]
    plain, merged = (sample.open_model(adapter, merge=merge) for merge in (False, True))
    assert not [name for name, _ in merged.network.named_parameters() if "lora" in name]
    for one, other in zip(
        sample.classify(plain, given), sample.classify(merged, given), strict=True
    ):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_adapters_share_their_base(adapter, minilm, tmp_path):
    second = make_adapter(tmp_path, minilm, ["bad", "fair", "good"], pairs=False)
    bases = {}
    one, other = (sample.open_model(name, bases=bases) for name in (adapter, second))
    names = {name for name, _ in one.network.named_parameters() if ".lora." not in name}
    assert len(bases) == 1 and len(names) > 90
    for name in names - {"classifier.weight", "classifier.bias"}:
        assert one.network.get_parameter(name) is other.network.get_parameter(name)


# Ways to give texts.


def test_every_way_to_give_texts_says_the_same(says, whole, tmp_path):
    one = [says("--model", whole, text) for text in TEXTS]
    for line, text in zip(one, TEXTS, strict=True):
        for steering in "\x07\u202e":
            line = line.replace(f"\\u{ord(steering):04x}", steering)
        assert re.fullmatch(rf"LABEL_[01] +\d+\.\d%  {re.escape(text)}\n", line)
    lines = "".join(f"{text}\n" for text in TEXTS).encode()
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    assert says("--model", whole, *TEXTS) == "".join(one)
    assert says("--model", whole, "--file", path) == "".join(one)
    assert says("--model", whole, "-", stdin=lines) == "".join(one)
    assert says("--model", whole, stdin=lines.removesuffix(b"\n")) == "".join(one)


def test_json_holds_the_probability_of_every_class(says, adapter):
    shown = records(says("--adapter", adapter, "--json", *TEXTS))
    assert [record["text"] for record in shown] == TEXTS
    for record in shown:
        assert list(record["scores"]) == ["negative", "positive"]
        best = max(record["scores"].values())
        assert record["scores"][record["label"]] == best == record["confidence"]
        assert sum(record["scores"].values()) == pytest.approx(1, abs=2e-6)


def test_the_adapter_of_the_last_training_answers(says, adapter, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best").symlink_to(adapter)
    monkeypatch.chdir(tmp_path)
    assert says("great film").endswith("%  great film\n")


def test_several_adapters_answer_each_text(says, adapter, whole):
    lines = says("--adapter", adapter, "--adapter", whole, *TEXTS[:2]).splitlines()
    each = [says("--adapter", name, *TEXTS[:2]).splitlines() for name in (adapter, whole)]
    named = [
        line.replace("%  ", f"%  {name}: ")
        for answers in zip(*each, strict=True)
        for name, line in zip((adapter, whole), answers, strict=True)
    ]
    assert lines == named
    shown = records(says("--adapter", adapter, "--adapter", whole, "--json", "a film"))
    assert [record["adapter"] for record in shown] == [adapter, whole]


def test_pairs(says, fails, of_pairs, adapter, tiny, tmp_path):
    model, tokenizer = open_in_peft(of_pairs, str(tiny)), load_tokenizer(tiny)
    with torch.inference_mode():
        coded = [tokenizer.encode(*pair) for pair in PAIRS]
        logits = [
            model(torch.tensor([e.ids]), token_type_ids=torch.tensor([e.type_ids])).logits
            for e in coded
        ]
    theirs = torch.cat(logits).softmax(-1).numpy()
    asked = [word for pair in PAIRS for word in ("--pair", *pair)]
    shown = says("--adapter", of_pairs, "--json", *asked)
    assert [(record["text"], record["text_pair"]) for record in records(shown)] == PAIRS
    assert np.abs(scores(shown) - theirs).max() < 1e-5
    lines = "".join("\t".join(pair) + "\n" for pair in PAIRS)
    (tmp_path / "pairs.tsv").write_text(lines)
    plain = says("--adapter", of_pairs, *asked)
    assert "it rains | the street is wet" in plain
    assert plain == says("--adapter", of_pairs, "--file", tmp_path / "pairs.tsv")
    assert plain == says("--adapter", of_pairs, "-", stdin=lines.encode())
    for single in "great film", "a\tb":
        error = fails("--adapter", of_pairs, single)
        assert "text 1: " in error and "classifies pairs of texts; give --pair" in error
    assert "line 1 is empty" in fails("--adapter", of_pairs, "-", stdin=b"a\t ")
    assert "classifies single texts, not pairs" in fails("--adapter", adapter, "--pair", "a", "b")
    assert "text 1 is empty" in fails("--adapter", of_pairs, "--pair", "a", " ")


def test_classes_keep_their_names_and_their_number(says, minilm, tmp_path):
    labels = {0: "bad", 1: "fair", 2: "good"}
    numbers = {name: number for number, name in labels.items()}
    saved_base(tmp_path, vocab_size=30522, id2label=labels, label2id=numbers)
    shutil.copy(f"{minilm}/tokenizer.json", tmp_path)
    record = records(says("--model", tmp_path, "--json", "so"))[0]
    assert list(record["scores"]) == ["bad", "fair", "good"]


def test_a_regression_answers_with_its_number(says, of_numbers, of_pairs, tiny):
    """That of peft; beside an adapter of classes as well."""
    import transformers

    pairs = [*PAIRS, ("no", "no")]
    config = transformers.AutoConfig.from_pretrained(of_numbers)
    model = open_in_peft(of_numbers, tiny, config=config, ignore_mismatched_sizes=True)
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


# The prompt.


def test_the_prompt_survives_odd_texts(whole, adapter):
    screen, terminal = pty.openpty()
    command = [sys.executable, "sample.py", "--model", whole]
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = subprocess.Popen(command, cwd=ROOT, **streams)
    timer = threading.Timer(60, process.kill)
    timer.start()
    os.close(terminal)
    typed = "great film\n\n \t\n[MASK] 中文 👩‍👩‍👧 \u202e\n\u200b\n".encode() + b"caf\xe9\n"
    os.write(screen, typed + f"/adapter nowhere\n/adapter {adapter}\ndull film\n\x04".encode())
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while chunk := os.read(screen, 4096):
            shown += chunk
    timer.cancel()
    shown = shown.decode(errors="replace")
    assert process.wait(30) == 0 and "Traceback" not in shown
    for text in "great film", "[MASK] 中文 👩‍👩‍👧", "dull film":
        assert any("%" in line and text in line for line in shown.splitlines()), shown
    assert "error: nowhere: " in shown
    assert re.search("(negative|positive).*%  dull film", shown)  # by the new adapter


# One line for a mistake.


def test_no_adapter_yet_is_one_line_of_a_real_process(run, tmp_path):
    done = run(ROOT / "sample.py", "great film", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    hint = "no adapter yet; `make train`, or name one with --adapter"
    assert done.stderr == f"error: out/best: {hint}\n"


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"good\ncaf\xe9\n", "cannot be read"),
        (b"good\n\nbad\n", "line 2 is empty"),
        (b"good\n \t\n", "line 2 is empty"),
        (b"", "line 1 is empty"),
    ],
    ids=range(4),
)
def test_a_bad_file_is_one_line(fails, whole, tmp_path, content, problem):
    (tmp_path / "texts.txt").write_bytes(content)
    error = fails("--model", whole, "--file", tmp_path / "texts.txt")
    assert "texts.txt" in error and problem in error
    error = fails("--model", whole, "-", stdin=content)
    assert "standard input" in error and problem in error


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ([""], "text 1 is empty"),
        (["good", " "], "text 2 is empty"),
        (["caf\udce9"], "UTF-8"),
        (["--file", "nowhere.txt"], "nowhere.txt: cannot be read (No such file"),
        (["--max-length", "2", "good"], "--max-length 2"),
        (["--max-length", str(2**31), "good"], "--max-length 2147483648"),
        (["--max-length", "many", "good"], "invalid int value: 'many'"),
        (["--jsn", "good"], "unrecognized arguments: --jsn"),
        (["--device", "cuda", "good"], "--device cuda cannot be used here"),
        (["great", "--text-column", "a"], "--text-column goes with --score or --out"),
        (["great", "--prefix", "a"], "--prefix goes with --out alone"),
        (["--file", "a.csv", "--out", "b.csv", "--label-names", "a,b"], "--label-names goes with"),
        (["--file", "a.csv", "--out", "b.csv", "--json"], "--json goes with --score alone"),
        (["--file", "a.csv", "--score", "--scores"], "--scores goes with --out alone"),
        (["--file", "a.parquet"], "a.parquet: a table; --out labels it, and --score scores it"),
        (["good", "--out", "b.csv"], "--out takes a whole --file, and one --adapter"),
    ],
    ids=range(16),
)
def test_bad_arguments_are_one_line(fails, whole, arguments, problem):
    if "cuda" not in arguments or not torch.cuda.is_available():
        assert problem in fails("--model", whole, *arguments)


def test_more_tokens_than_positions_are_refused_before_the_first_text(fails, tiny):
    error = fails("--model", tiny, "--max-length", "41", "a short one")
    assert f"--max-length 41: {tiny} takes from 3 to 40 tokens" in error


def test_a_bad_model_or_adapter_is_one_line(fails, adapter, whole, minilm, tmp_path):
    assert "no such directory" in fails("--adapter", tmp_path / "nowhere", "good")
    assert "config.json" in fails("--adapter", tmp_path, "good")
    assert "adapter" in fails("--adapter", adapter, "--model", whole, "good")
    assert "no trained classifier" in fails("--model", minilm, "good")
    assert "is a whole model" in fails("--adapter", whole, "--model", minilm, "good")
    broken = shutil.copytree(adapter, tmp_path / "broken")
    os.truncate(broken / "adapter_model.safetensors", 1000)
    error = fails("--adapter", broken, "good")
    assert str(broken) in error and "cannot be read" in error


@pytest.mark.parametrize("ways", ["--file f great", "--pair a b great", "--pair a b --file f"])
def test_texts_given_in_two_ways_are_refused(fails, whole, ways):
    assert "not allowed with argument" in fails("--model", whole, *ways.split())


@pytest.mark.parametrize("kind", [".lora_A", ".lora_B"])
def test_absurd_weights_give_no_answer(fails, adapter, tmp_path, kind):
    broken = shutil.copytree(adapter, tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors = {name: tensor * (3e37 if kind in name else 1) for name, tensor in tensors.items()}
    save_file(tensors, broken / "adapter_model.safetensors")
    for options in [], ["--json"]:
        assert "no finite numbers" in fails("--adapter", broken, *options, "good")
