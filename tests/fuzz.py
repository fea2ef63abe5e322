"""Feeds every reader damaged and hostile files: it takes them, or says one line that begins with
"error:".

    python tests/fuzz.py                          # crafted files, and 100 truncations and 1,000 flips for each reader
    python tests/fuzz.py --cases 10000 --seed 0   # that many flips over all readers, drawn with that seed
    python tests/fuzz.py --only vocab.txt         # one reader

A reader works in a forked child, so that a crash or a hang is seen and counted. What fails is any
other exception or exit, more than 10 seconds of work, memory beyond twice the file's size, or a
file that is left half-written.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pyarrow
from faults import (
    FORWARD,
    HOME,
    OPTIONS,
    SMALL,
    at_call,
    bert,
    die,
    fail,
    finish,
    sample,
    start,
    torch,
    train,
    train_in,
)
from matplotlib.figure import Figure
from pyarrow import csv, parquet
from safetensors.torch import load, save
from tokenizers.implementations import BertWordPieceTokenizer

import data
from support.checkpoint import digest
from support.console import open_streams, run_main
from support.files import InputError, first_line, read_json, write_json
from support.offline import offline_pair
from support.options import parse_options

ROOT = Path(bert.__file__).parent
SECONDS, ROOM, BATCH = (
    10,
    128 * 2**20,
    50,
)  # ROOM: for the pools of PyTorch and Arrow, and what is imported late
TEXTS = ["great film", "dull , and not good at all", "\x07\u200b"]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefghijklmnopqrstuvwxyz,.",
    "great",
    "film",
    "good",
    "##s",
]


# The readers: a file, and what is done with it, in a folder that holds copies of all good files.


def classify(*options, texts=TEXTS) -> None:
    sys.argv = ["sample.py", *options, *texts]
    sample.main()


def read_table(path: str) -> None:
    task = data.load_task(path)
    tokenizer = data.load_tokenizer("base", max_length=16)
    encoded = data.encode(tokenizer, task.validation.texts, task.validation.labels)
    for rows in data.plan_batches(encoded.lengths, 32, seed=0, epoch=0):
        data.make_batch(encoded, rows, pad_id=0)


def label_table(path: str) -> None:
    """Every row of what is taken comes out once."""
    out = "labelled." + path.partition(".")[2].replace("txt", "csv")
    Path(out).unlink(missing_ok=True)
    classify("--model", "base", "--file", path, "--prefix", "p_", "--out", out, texts=[])
    assert not Path(f"{out}.parts").exists() and Path(out).stat().st_size


def same(label: str) -> str:
    """A whole number in one spelling: 1 and 1.0 are the same class."""
    try:
        return str(int(label)) if float(label).is_integer() and "e" not in label else label
    except ValueError:
        return str(int(float(label))) if re.fullmatch(r"[-+]?[0-9]{1,15}\.0*", label) else label


def read_labels(path: str) -> None:
    """Two splits with these labels: each that is taken must be a class of the training split, the
    one it says."""
    tables = read_json(path)
    shutil.rmtree("labels")
    os.mkdir("labels")
    for split in ("train", "validation"):
        labels = tables.get(split) if isinstance(tables.get(split), list) else []
        if tables.get("kind") == "csv":  # which knows only text
            tables[split] = labels = ["" if label is None else str(label) for label in labels]
        table = {"text": [f"text {i}" for i in range(len(labels))], "label": labels}
        try:
            if tables.get("kind") == "jsonl":
                rows = zip(*table.values(), strict=True)
                lines = "".join(
                    json.dumps({"text": text, "label": label}) + "\n" for text, label in rows
                )
                Path(f"labels/{split}.jsonl").write_text(lines)
            elif tables.get("kind") == "csv":
                csv.write_csv(pyarrow.table(table), f"labels/{split}.csv")
            else:
                parquet.write_table(pyarrow.table(table), f"labels/{split}.parquet")
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise InputError(f"no such table: {first_line(error)}") from None
    task = data.load_task("labels")
    names, seen = task.label_names, [word.strip().casefold() for word in task.label_names]
    assert len(set(seen)) == len(names) > 1 and all(seen), names
    for split, found in ("train", task.train.labels), ("validation", task.validation.labels):
        for label, number in zip(tables[split], found, strict=True):
            meant = str(label).lower() if isinstance(label, bool) else label
            unnamed = names[0] == "LABEL_0" and float(meant) == number
            assert unnamed or same(names[number]) == same(str(meant)), (label, names)
    assert set(task.train.labels) == set(range(len(names))), "a class without a row"


def resume() -> None:
    shutil.copytree(
        HOME / "out", "out", ignore=shutil.ignore_patterns("checkpoint*"), dirs_exist_ok=True
    )
    shutil.rmtree("out/final", ignore_errors=True)
    Figure.savefig = lambda self, file, **_: None  # drawing takes longer than all the rest
    sys.argv = ["train.py", *OPTIONS, "--out", "out", "--resume"]
    train.main()


def read_texts() -> None:
    text = Path("text").read_bytes()
    model = bert.BertForSequenceClassification.from_pretrained("base")
    found = sample.classify(model, data.load_tokenizer("base", 64), [text.decode(errors="replace")])
    assert np.isfinite(found).all()
    if b"\0" not in text:
        classify("--model", "base", "--", texts=[os.fsdecode(text)])
    classify("--model", "base", "--json", "--file", "text", texts=[])


def print_answers() -> None:
    """Hostile class names and texts on a terminal of some encoding: only text reaches it, and JSON
    stays JSON."""
    case = read_json("terminal")
    try:
        encoding, label, text = (str(case[key]) for key in ("encoding", "label", "text"))
        "".encode(encoding)
    except (KeyError, LookupError, ValueError) as error:
        raise InputError(f"no case: {error}") from None
    config = read_json("adapter/config.json") | {"id2label": {"0": label, "1": f"not {label}"}}
    write_json("adapter/config.json", config)
    for more in [], ["--json"]:
        with open("screen", "wb") as file, contextlib.redirect_stdout(None):
            os.dup2(file.fileno(), 1)
            sys.stdout = sys.__stdout__ = io.TextIOWrapper(open(1, "wb", closefd=False), encoding)  # noqa: SIM115
            open_streams()
            classify("--adapter", "adapter", *more, "--", texts=[text])
            sys.stdout.flush()
        said = Path("screen").read_bytes().decode(encoding)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said) and said.count("\n") == 1, said
        if more:
            answer = json.loads(said)
            assert answer["text"] == text and set(answer["scores"]) == {label, f"not {label}"}, said


class Begun(Exception):
    """The first batch of a training."""


def begin_training() -> None:
    """train.py with these flags, up to the first batch."""
    flags = read_json("flags").get("flags")
    if not isinstance(flags, list) or not all(
        isinstance(flag, str) and flag.startswith("--") for flag in flags
    ):
        raise InputError("no flags")
    bert.BertForSequenceClassification.forward = lambda *_: fail(Begun())
    sys.argv = ["train.py", *OPTIONS, "--overwrite", *flags, "--out=run"]
    with contextlib.suppress(Begun):
        train.main()


READERS = {
    "terminal": print_answers, "flags": begin_training,
    "base/config.json": lambda: classify("--model", "base"),
    "base/model.safetensors": lambda: classify("--model", "base"),
    "base/tokenizer.json": lambda: classify("--model", "base"), "vocab/vocab.txt": lambda: classify("--model", "vocab"),
    "vocab/tokenizer_config.json": lambda: classify("--model", "vocab"),
    "adapter/adapter_config.json": lambda: classify("--adapter", "adapter"),
    "adapter/adapter_model.safetensors": lambda: classify("--adapter", "adapter"),
    "adapter/config.json": lambda: classify("--adapter", "adapter"), "out/checkpoint/checkpoint.safetensors": resume,
    **{f"reviews.{kind}": functools.partial(read_table, f"reviews.{kind}")
       for kind in ("parquet", "csv", "tsv", "jsonl")},
    **{f"whole.{kind}": functools.partial(label_table, f"whole.{kind}")
       for kind in ("parquet", "csv", "tsv", "jsonl", "txt")},
    "labels.json": functools.partial(read_labels, "labels.json"),
    "config.toml": lambda: train.Config(**parse_options(train.Config, ["--config", "config.toml"])), "text": read_texts,
}  # fmt: skip


def write_good_files() -> None:
    """One good file for every reader, but for what a run leaves."""
    model = bert.BertForSequenceClassification(
        bert.BertConfig(len(WORDS), **SMALL, max_position_embeddings=64)
    )
    for folder in ("base", "vocab"):
        model.save_pretrained(HOME / folder)
    (HOME / "vocab" / "vocab.txt").write_text("\n".join(WORDS))
    (HOME / "vocab" / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 64}'
    )
    BertWordPieceTokenizer(str(HOME / "vocab" / "vocab.txt")).save(
        str(HOME / "base" / "tokenizer.json")
    )
    texts = parquet.read_table(next(Path(offline_pair()[1]).glob("train-*.parquet")))["sentence"][
        :100
    ]
    table = pyarrow.table({"sentence": texts, "label": [i % 2 for i in range(100)]})
    parquet.write_table(table, HOME / "reviews.parquet")
    csv.write_csv(table, HOME / "reviews.csv")
    rows = "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts))
    (HOME / "reviews.tsv").write_text("sentence\tlabel\n" + rows)
    (HOME / "reviews.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    )
    for kind in "parquet", "csv", "tsv", "jsonl":
        shutil.copy(HOME / f"reviews.{kind}", HOME / f"whole.{kind}")
    (HOME / "whole.txt").write_text("".join(f"{text}\n" for text in texts))
    (HOME / "labels").mkdir()
    (HOME / "labels.json").write_text(
        json.dumps({"kind": "csv", "train": ["no", "yes"], "validation": ["yes"]})
    )
    (HOME / "config.toml").write_text(
        'model = "base"\nlr = 5e-4\nepochs = 3\nresume = true\ntargets = "query"\n'
    )
    (HOME / "text").write_text("great film, good film")
    (HOME / "terminal").write_text(
        json.dumps({"encoding": "ascii", "label": "na\u00efve", "text": "gr\u00e9at film"})
    )
    (HOME / "flags").write_text(
        json.dumps({"flags": ["--lr=1e-3", "--epochs=2", "--targets=query"]})
    )
    sys.exit(0)


def prepare() -> None:
    result = finish(start(inside=write_good_files))
    assert result == (0, ""), result
    result = train_in(HOME / "out", inside=at_call(*FORWARD, 7, die))
    assert result[0] == -signal.SIGKILL, result
    shutil.copytree(HOME / "out" / "best", HOME / "adapter")


# Crafted files: what, and the content. "=" before what must be taken, "?" before what may be; the
# rest is refused.


def odd_json(good: bytes) -> dict[str, bytes]:
    start, deep = good.rstrip()[:-1], b"[" * 10**4 + b"]" * 10**4
    return {
        "empty": b"", "null": b"null", "list": b"[]", "string": b'"x"', "NUL": b"\0" + good, "deep": deep,
        "?BOM": b"\xef\xbb\xbf" + good, "UTF-16": good.decode().encode("utf-16"), "latin-1": start + b',"x":"\xe9"}',
        "deep value": start + b',"x":' + deep + b"}", "?less deep": start + b',"x":' + b"[" * 900 + b"]" * 900 + b"}",
        "5,000 digits": start + b',"x":' + b"9" * 5000 + b"}",
        "?10 MB in a line": start + b',"x":"' + b"a" * 10**7 + b'"}', "?a key twice": start + b',"x":1,"x":2}',
        "surrogate": start + b',"x":"\\ud800"}',
    }  # fmt: skip


def edits(good: bytes, changes: dict) -> dict[str, bytes]:
    """A JSON file with one field changed, for each field and value; what a value in a 1-tuple makes
    may be taken."""
    crafted = {}
    for field, values in changes.items():
        for value in values:
            mark, plain = ("?", value[0]) if isinstance(value, tuple) else ("", value)
            what = f"{mark}{field} = {str(plain)[:30]} {len(crafted)}"
            crafted[what] = json.dumps(json.loads(good) | {field: plain}).encode()
    return crafted


NAN, INF = float("nan"), float("inf")
WHOLE = [0, -1, 1.5, "x", True, [], {}, 10**30, 2**31 - 1]
CONFIG = {
    **dict.fromkeys(["vocab_size", "num_attention_heads", "intermediate_size", "type_vocab_size"], WHOLE),
    "hidden_size": [*WHOLE, 2**30], "num_hidden_layers": [*WHOLE, 1000], "max_position_embeddings": [*WHOLE, 1, 2],
    "pad_token_id": [-1, 1.5, "x", 10**9, 2**31 - 1], "layer_norm_eps": ["x", -1, INF, NAN, [], True],
    "hidden_dropout_prob": ["x", 1, INF, NAN, []], "hidden_act": ["relu", 5, [], {}, "x" * 10**6],
    "model_type": ["gpt2", 5, "a\nb"], "is_decoder": [True, "x"],
    "id2label": [[], {}, 5, "ab", ["a", "b"], {"a": "b"}, {"1": "a", "2": "b"}, {"0": "a"}, {"0": "\ud800", "1": "b"},
                 {str(i): str(i) for i in range(10**5)}, ({"0": "a", "00": "b", "1": "c"},), ({"0": 5, "1": ["y"]},),
                 ({"0": "a\nb", "1": "\0"},), ({"0": "a" * 10**6, "1": None},)],
}  # fmt: skip
ADAPTER_CONFIG = {
    "r": [0, -1, 10**6, 10**30, 2.5, "8", True, None, [8]],
    "lora_alpha": [0, -1, "x", NAN, INF, True, [], None, 1e308, 10**400], "lora_dropout": [1.0, 2, "x", NAN, -1, ["x"]],
    "use_rslora": ["yes", [1], 5], "peft_type": ["LOHA", 5],
    "target_modules": ["", [], [1], {"a": 1}, ["x"], [""], 5, ["x" * 10**6], [f"a{i}" for i in range(10**5)],
                       ["\ud800"], ["(" * 10**4], ["a\nb"], (["query", "query", "value"],), ("[",),
                       ("(?P<a>x)(?P<a>y)",), (r"((\w+\.?)+)+!",), (".*" * 30 + "!",), ("(" * 10**4,),
                       ("a{1,4294967295}",)],
    "base_model_name_or_path": [5, None, "", "..", "/", "/dev/null", "a\0b", "a\nb", "x" * 5000, "a/b@c@d", "\ud800"],
    "revision": [5, "../../x", "a\nb", ["x"], (None,)], "rank_pattern": [{"query": 4}], "modules_to_save": [["x"], "x"],
    "\n": [5],
}  # fmt: skip
REPLACE = {"type": "Replace", "pattern": {"Regex": "(("}, "content": ""}
FLAGS = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
TOKENIZER = {
    "model": [None, {}, {"type": "BPE", "vocab": {}, "merges": []}, {"type": "x"}, {"type": "Unigram", "vocab": []}],
    "normalizer": [(None,), REPLACE, {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
                   (REPLACE | {"pattern": {"Regex": "((\\w+ ?)+)+!"}},)],
    "pre_tokenizer": [(None,), ({"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False},)],
    "post_processor": [(None,), {"type": "BertProcessing", "sep": ["x", 10**6], "cls": ["y", 2**32 - 1]}],
    "truncation": [({"max_length": 0, "stride": 9, "strategy": "LongestFirst", "direction": "Right"},)],
    "padding": [({"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                  "pad_type_id": 0, "pad_token": "x"},)],
    "added_tokens": [([{"id": 10**6, "content": "film"} | FLAGS],), ["x"]],
}  # fmt: skip


def odd_tokenizers(good: bytes) -> dict[str, bytes]:
    model, crafted = json.loads(good)["model"], odd_json(good) | edits(good, TOKENIZER)
    vocabularies = {}, model["vocab"] | {"great": 10**6}, {"great": -1}, {"a": 0}
    fine = {"unk_token": "x"}, {"max_input_chars_per_word": 0}, {"continuing_subword_prefix": ""}
    models = [
        *(model | {"vocab": vocabulary} for vocabulary in vocabularies),
        *((model | change,) for change in fine),
    ]
    return crafted | {
        f"{what} of ours": content for what, content in edits(good, {"model": models}).items()
    }


def odd_vocabularies(good: bytes) -> dict[str, bytes]:
    return {
        "empty": b"", "NUL": b"\0", "latin-1": good + b"\n\xe9\n", "UTF-16": good.decode().encode("utf-16"),
        "10 MB": b"a" * 10**7, "no [UNK]": good.replace(b"[UNK]", b"x"), "no [SEP]": good.replace(b"[SEP]", b"x"),
        "?BOM": b"\xef\xbb\xbf" + good, "100,000 tokens": good.replace(b"great", b"x\n" * 10**5 + b"great"),
        "=CRLF": good.replace(b"\n", b"\r\n"), "?twice": good + b"\ngreat",
    }  # fmt: skip


def taken_apart(content: bytes) -> tuple[dict, bytes]:
    """The header and the body of a safetensors file."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def packed(head, body: bytes = b"") -> bytes:
    """A safetensors file of a header, given as JSON or as raw bytes."""
    head = head if isinstance(head, bytes) else json.dumps(head).encode()
    return len(head).to_bytes(8, "little") + head + body


def saved(tensors: dict, metadata: dict | None = None) -> bytes:
    return save({name: tensor.clone() for name, tensor in tensors.items()}, metadata)


def odd_safetensors(good: bytes) -> dict[str, bytes]:
    (head, body), tensors = taken_apart(good), load(good)
    name = next(key for key in head if key.endswith("weight") and head[key]["data_offsets"][0])
    meta, tensor, end = head.get("__metadata__"), tensors[name], head[name]["data_offsets"][1]
    changed = lambda **changes: packed(head | {name: head[name] | changes}, body)
    replaced = lambda new: saved(tensors | {name: new}, meta)
    shapes = [0, 2**64 - 1], [2**63, 2], [1] * 100, [], [-1], ["x"], 2**64
    names = (
        "../../x",
        "/etc/x",
        "a\nb",
        "a\0b",
        "\ud800",
        "",
        "x" * 10**6,
        f"{name}.default.x",
        f"{name}\n",
    )
    dtypes = (
        "int8",
        "bool",
        "complex64",
        "?float8_e4m3fn",
        "?float64",
        "?float16",
        "?bfloat16",
        "int64",
    )
    sizes = (), (0,), (1, 2, 3), (10**6,), (tensor.shape[0] + 1, *tensor.shape[1:])
    return {
        "empty": b"", "a terabyte of header": (2**40).to_bytes(8, "little") + b"{}", "no tensors": packed({}),
        "NULs": packed(b"\0" * 100), "deep": packed(b"[" * 10**4), "no JSON": packed(b"{" * 100),
        "a terabyte of tensor": changed(shape=[2**38], data_offsets=[0, 2**40]),
        "overlap": changed(data_offsets=[0, end - head[name]["data_offsets"][0]]),
        "metadata of numbers": packed(head | {"__metadata__": {"format": 5}}, body),
        "empty, and too wide": packed(
            head | {"x": {"dtype": "F32", "shape": [0, 2**64 - 1], "data_offsets": [len(body)] * 2}}, body),
        "a key twice": packed(json.dumps(head).encode()[:-1] + b',"' + name.encode() + b'":{}}', body),
        "surplus": saved(tensors | {"bert.x": tensor}, meta),
        "missing": saved({key: value for key, value in tensors.items() if key != name}, meta),
        **{f"claims the shape {str(shape)[:30]}": changed(shape=shape) for shape in shapes},
        **{f"named {new[:12]!r}": packed({new if k == name else k: v for k, v in head.items()}, body) for new in names},
        **{dtype: replaced(tensor.to(getattr(torch, dtype.strip("?")))) for dtype in dtypes},
        **{f"holds {value}": replaced(tensor.index_fill(0, torch.tensor(0), value)) for value in (NAN, INF, -INF)},
        **{f"has the shape {shape}": replaced(torch.zeros(shape)) for shape in sizes},
    }  # fmt: skip


def odd_checkpoints(good: bytes) -> dict[str, bytes]:
    (head, body), tensors = taken_apart(good), load(good)
    meta = head.pop("__metadata__")
    written = lambda **new: packed(head | {"__metadata__": meta | new}, body)
    progress = next(key for key, value in meta.items() if '"step"' in value)
    surplus = "random.x", "parameter.x", "exp_avg.x", "x.bert", "x"
    odd = [
        None,
        "x",
        -1,
        10**9,
        10**30,
        2.5,
        [],
        [5],
        [[5]],
        ["x"],
        [{"step": "x"}],
        {},
        {"a": 1},
        NAN,
    ]
    wholes = "", "[]", "5", "null", "[" * 10**4, "\ud800", '{"x": 1}'
    state = next(name for name in tensors if name.startswith("random"))
    states = (
        torch.zeros(5),
        torch.zeros(5, dtype=torch.uint8),
        tensors[state].float(),
        tensors[state][:-8],
    )
    fields = {f"?{field} = {value}": json.dumps(json.loads(meta[progress]) | {field: value})
              for field in json.loads(meta[progress]) for value in odd}  # fmt: skip
    names = [*tensors, *surplus]

    def forged(progress_text: str = meta[progress], **new) -> bytes:
        """Another progress or other tensors, and a hash that is right for them."""
        header = meta | {progress: progress_text}
        return saved(tensors | new, header | {"sha256": digest(header, tensors | new)})

    return odd_safetensors(good) | {
        **{f"?forged {what[1:]}": forged(new) for what, new in fields.items()},
        **{f"forged {new[:20]}": forged(new) for new in wholes if new.isascii()},
        **{f"forged {name} empty": forged(**{name: torch.zeros(0)}) for name in names},
        **{f"forged {name} int": forged(**{name: tensors.get(name, states[0]).int()}) for name in names},
        **{f"forged random state {i}": forged(**{state: new}) for i, new in enumerate(states)},
        "no metadata": packed(head, body),
        **{f"no {n}": packed(head | {"__metadata__": {k: meta[k] for k in meta if k != n}}, body) for n in meta},
        **{f"{name} = {new[:20]}": written(**{name: new}) for name in meta for new in wholes},
        **{what: written(**{progress: new}) for what, new in fields.items()},
        **{f"random state {i}": saved(tensors | {state: new}, meta) for i, new in enumerate(states)},
        **{f"without {name}": saved({k: v for k, v in tensors.items() if k != name}, meta) for name in tensors},
        **{f"{name} empty": saved(tensors | {name: torch.zeros(0)}, meta) for name in tensors},
        **{f"surplus {name}": saved(tensors | {name: torch.zeros(3)}, meta) for name in surplus},
    }  # fmt: skip


def odd_parquet(good: bytes) -> dict[str, bytes]:
    texts, labels, array = [f"text {i}" for i in range(20)], [0, 1] * 10, pyarrow.array
    broken = array([b"\xff"] * 20).view(pyarrow.string())
    tables = {
        "text int": (labels, labels), "text bytes": ([b"x"] * 20, labels), "text lists": ([["x"]] * 20, labels),
        "text null": ([None] * 20, labels), "a null": ([*texts[1:], None], labels),
        "an empty text": ([*texts[1:], ""], labels), "text not UTF-8": (broken, labels),
        "text structs": ([{"a": "b"}] * 20, labels), "no rows": (texts[:0], labels[:0]),
        "label floats": (texts, [0.5] * 20), "label NaN": (texts, [NAN] * 20),
        "label whole floats": (texts, [1.0] * 20), "label null": (texts, [None] * 20),
        "a label null": (texts, [*labels[1:], None]), "label date": (texts, array(labels, pyarrow.date32())),
        "label lists": (texts, [[0]] * 20), "label decimal": (texts, array(labels).cast(pyarrow.decimal128(20))),
        "=label bool": (texts, [True, False] * 10), "label negative": (texts, [-1] * 20),
        "label 2**64 - 1": (texts, array([2**64 - 1] * 20, pyarrow.uint64())),
        "label structs": (texts, [{"a": 0}] * 20), "label gap": (texts, [0, 5] * 10),
        "label not UTF-8": (texts, broken), "label bytes": (texts, [b"0"] * 20), "one text": (["x"] * 20, labels),
        "?one class": (texts, [0] * 20), "=large strings": (array(texts, pyarrow.large_string()), labels),
        "?view": (array(texts, pyarrow.string_view()), labels),
        "?dictionary": (array(texts).dictionary_encode(), array(map(str, labels)).dictionary_encode()),
        "=100,000 words": ([*texts[1:], "a " * 10**5], labels),
        "?100,000 classes": ([f"t{i}" for i in range(10**5)], range(10**5)),
    }  # fmt: skip
    files = {
        "empty": b"",
        "PAR1": b"PAR1PAR1",
        "a CSV": b"sentence,label\nx,0\n",
        "footer": good[:-8] + b"\xff" * 4 + b"PAR1",
    }
    twice = pyarrow.Table.from_arrays(
        [array(texts)] * 2 + [array(labels)], ["sentence", "sentence", "label"]
    )
    tables = {
        what: pyarrow.table({"sentence": text, "label": label})
        for what, (text, label) in tables.items()
    }
    for what, table in {**tables, "a column twice": twice}.items():
        parquet.write_table(table, file := io.BytesIO())
        files[what] = file.getvalue()
    return files


def odd_texts(good: bytes, kind: str) -> dict[str, bytes]:
    """Tables that are text."""
    separator = {"csv": ",", "tsv": "\t", "jsonl": None}[kind]
    as_json = lambda text, label: json.dumps({"sentence": text, "label": label}) + "\n"
    line = (lambda text, label: f"{text}{separator}{label}\n") if separator else as_json
    head = line("sentence", "label") if separator else ""
    table = lambda *rows: (head + "".join(line(*row) for row in rows)).encode(
        "utf-8", "surrogatepass"
    )
    rows = [(f"text {i}", i % 2) for i in range(20)]
    labels = (
        0.5,
        "1e5",
        -1,
        10**12,
        10**30,
        2**63,
        "",
        "nan",
        " 0",
        "0x1",
        "٣",
        None,
        [0],
        {"a": 0},
        True,
    )
    texts = (
        "",
        " ",
        "\ud800",
        '"',
        "'",
        "\r",
        "a\rb",
        "\u2028",
        "a\0b",
        "a,b,c",
        "a\tb",
        5,
        None,
        ["x"],
    )
    return {
        "empty": b"", "header": head.encode(), "newline": b"\n", "UTF-16": good.decode().encode("utf-16"),
        "latin-1": good + b"\xe9\xe9\n", "NULs": b"\0" * 1000, "10 MB": b"a" * 10**7, "?BOM": b"\xef\xbb\xbf" + good,
        "?a line of 10 MB": table(*rows, ("a" * 10**7, 0)),
        "?100,000 classes": table(*((f"t{i}", f"c{i}") for i in range(10**5))),
        "?1,000 columns": ",".join(map(str, range(1000))).encode() + b"\n",
        "?deep": good + b'{"sentence":' + b"[" * 10**4 + b"]" * 10**4 + b',"label":0}\n',
        "a column twice": good.replace(b"label", b"sentence"),
        **{f"?a label {label!r}": table(*rows, ("x", label)) for label in labels},
        **{f"?labels {label!r}": table(*((text, label) for text, _ in rows)) for label in labels},
        **{f"?text {text!r}": table(*rows, (text, 0)) for text in texts},
    }  # fmt: skip


LABELS = [
    [0, 1],
    [0, 1, 2],
    ["0", "1"],
    ["a", "b"],
    ["1", "2", "other"],
    [True, False],
    [0.0, 1.0],
    ["+", "-"],
    # fmt: skip
    ["1.0", "1.1"],
    [1, 2, 3, 4, 5],
    [-1, 1],
    ["yes", "no", "maybe"],
    ["NA", "b", "c"],
]
ODD_LABELS = [None, "", " ", "NA", "nan", "?", "1", " 1", "1 ", "01", "+1", "-1", "1.0", "1e0", "٣", "²", "true",
              "A", "a ", "a\u200b", "LABEL_1", 0, 1, 2, -1, 7, 10**18, 0.5, 1e300, NAN, INF, True, [1], {}]  # fmt: skip


def odd_labels(good: bytes) -> dict[str, bytes]:
    """Tables of every kind of label, in most of which a row or two of another kind have got."""
    draw, crafted = random.Random(0), {}
    for i in range(400):
        pool, tables = (
            draw.choice(LABELS),
            {"kind": draw.choice(("csv", "csv", "parquet", "jsonl"))},
        )
        for split, rows in ("train", 12), ("validation", 5):
            tables[split] = [draw.choice(pool) for _ in range(rows)]
            for _ in range(draw.choice((0, 1, 1, 2))):
                tables[split][draw.randrange(rows)] = draw.choice(ODD_LABELS)
        crafted[f"?table {i}"] = json.dumps(tables).encode()
    return crafted


TOML = r"""lr = nan; lr = inf; lr = -1.0; lr = "x"; lr = 1979-05-27; epochs = 1.5; epochs = true; epochs = 0; out = 5
resume = 1; seed = 1e3; seed = 9223372036854775808; seed = -1; [model]; model = []; model = {a = 1}; "a\nb" = 1
epochs; device = "tpu"; dropout = 1.0; model = "\ud800"; lr = 1e999; a.b = 1; epochs = 3 4; epochs = 0x"""


def odd_toml(good: bytes) -> dict[str, bytes]:
    lines = [
        *re.split("; |\n", TOML),
        "epochs = 3\nepochs = 4",
        f"seed = {'9' * 5000}",
        f"seed = -{10**30}",
    ]
    return odd_values() | {
        "latin-1": good + b"#\xe9", "UTF-16": good.decode().encode("utf-16"), "NUL": good + b"\0",
        "?BOM": b"\xef\xbb\xbf" + good, "=empty": b"", "deep": b"a = " + b"[" * 10**4 + b"]" * 10**4,
        "dotted": b"a." * 1000 + b"a = 1", "?10 MB": good + b"#" * 10**7, **{x[:30]: x.encode() for x in lines},
    }  # fmt: skip


def odd_rows(good: bytes) -> dict[str, bytes]:
    """For a whole table in any format; what is refused in one may be taken in another."""
    return {"empty": b"", "?NUL": b"\0" + good, "UTF-16": b"\xff\xfe" + good, "latin-1": good[:-9] + b"\xe9\n",
            "?twice": good * 2, "?a blank line": good + b"\n\n", "?CRLF": good.replace(b"\n", b"\r\n"),
            "?deep": good + b'{"sentence": ' + b"[" * 10**4 + b"\n", "?a long line": good + b"a" * 10**7}  # fmt: skip


def odd_lines(good: bytes) -> dict[str, bytes]:
    fine = (
        "\U0001f600" * 50,
        "word " * 10**5,
        "a" * 10**6,
        "[MASK]",
        "[SEP]",
        "[PAD] [CLS]",
        "\x07\x1b",
        "\u200b",
        "-x",
    )
    others = (
        "?שלום مرحبا",
        "?\r",
        "?\ufeffx",
        "?a\0b",
        "?a\u2028b",
        "",
        "   ",
        "\u3000",
        "a\n\nb",
        "great \ud800 film",
    )
    texts = [*(f"={text}" for text in fine), *others]
    crafted = {
        repr(text[:20])[1:-1] or "empty": text.lstrip("=?").encode("utf-8", "surrogatepass")
        for text in texts
    }
    return crafted | {"not UTF-8": b"great \xff film"}


ENCODINGS = (
    "ascii",
    "latin-1",
    "cp1252",
    "cp437",
    "koi8-r",
    "shift_jis",
    "gb18030",
    "utf-8",
    "utf-16",
    "utf-7",
)
HOSTILE = [
    "naïve", "\U0001f600", "\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "a\nforged  99.9%  b", "a\r\rb", "\x7f\x08",
    "a\tb", "\u2028b\x85c", "\u202eright to left", "中文", "\\u001b", '"}\n{"', "%s {0} {{", "\x00", "\ufeff",
    "\x0b\x0c\x1c\x1d\x1e",
]  # fmt: skip


def odd_terminals(good: bytes) -> dict[str, bytes]:
    cases = {}
    for encoding, (i, word) in itertools.product(ENCODINGS, enumerate(HOSTILE)):
        for label, text in (word, "great film"), ("good", word), (word, HOSTILE[i - 1]):
            cases[f"?{encoding} {i} {len(cases)}"] = json.dumps(
                {"encoding": encoding, "label": label, "text": text}
            ).encode()
    return cases


NUMBERS = [
    "1e999",
    "-1e999",
    "nan",
    "1" + "0" * 400,
    *map(str, (2**31, 2**62, 2**63, 2**70, -(2**63))),
    "0",
    # fmt: skip
    "9" * 5000,
    "1_0",
    "٣",
    "0x10",
    "1e3",
    "1.5",
    "",
    " 1",
    "true",
    "1e-400",
    "1e308",
]
STRINGS = [
    "",
    "\0",
    "a\0b",
    "x" * 5000,
    "\x1b[31m",
    "a\nb",
    ",",
    "a,b,c",
    "..",
    "/",
    "a@b@c",
    "\udcff",
    "😀",
    "~",
    "%s",
    "[",
    "-",
]
AROUND = {
    "out",
    "resume",
    "overwrite",
    "offline_fallback",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
}


def odd_options() -> list[tuple[str, str]]:
    """(name, value) of every option but those around a run."""
    named = [(f.name, f.type) for f in dataclasses.fields(train.Config) if f.name not in AROUND]
    return [
        (name, value) for name, kind in named for value in (STRINGS if kind is str else NUMBERS)
    ]


def odd_flags(good: bytes) -> dict[str, bytes]:
    flags = (f"--{name.replace('_', '-')}={value}" for name, value in odd_options())
    return {
        f"?{flag[:30]} {i}": json.dumps({"flags": [flag]}).encode() for i, flag in enumerate(flags)
    }


def odd_values() -> dict[str, bytes]:
    """Every option of TOML with values of every kind, and numbers of every size."""
    plain = [
        *NUMBERS,
        "[]",
        "[1]",
        "{}",
        "{a = 1}",
        "1979-05-27",
        "0x" + "f" * 5000,
        "[0x" + "f" * 5000 + "]",
        "1e400",
        "inf",
    ]
    quoted = [
        json.dumps(value)
        for value in STRINGS
        if value.isprintable() or "\0" in value or "\n" in value
    ]
    names = [f.name for f in dataclasses.fields(train.Config)]
    lines = (f"{name} = {value}" for name in names for value in plain + quoted)
    return {f"?{line[:30]} {i}": line.encode() for i, line in enumerate(lines)}


TOKENIZER_CONFIG = {
    key: ["x", 5, [], {}] for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
}
CRAFTED = {
    "base/config.json": lambda good: odd_json(good) | edits(good, CONFIG), "base/model.safetensors": odd_safetensors,
    "base/tokenizer.json": odd_tokenizers, "vocab/vocab.txt": odd_vocabularies,
    "vocab/tokenizer_config.json": lambda good: odd_json(good) | edits(good, TOKENIZER_CONFIG),
    "adapter/adapter_config.json": lambda good: odd_json(good) | edits(good, ADAPTER_CONFIG),
    "adapter/adapter_model.safetensors": odd_safetensors,
    "adapter/config.json": lambda good: edits(good, {name: [(value,) for value in CONFIG[name]] for name in CONFIG}),
    "out/checkpoint/checkpoint.safetensors": odd_checkpoints, "reviews.parquet": odd_parquet,
    **{f"reviews.{kind}": functools.partial(odd_texts, kind=kind) for kind in ("csv", "tsv", "jsonl")},
    **{f"whole.{kind}": odd_rows for kind in ("parquet", "csv", "tsv", "jsonl", "txt")},
    "labels.json": odd_labels, "config.toml": odd_toml, "text": odd_lines, "terminal": odd_terminals,
    "flags": odd_flags,
}  # fmt: skip


def damaged(name: str, flips: int, cuts: int, draw: random.Random):
    """(what, content) of every case of a reader."""
    good = (HOME / name).read_bytes()
    yield "=good", good
    yield from CRAFTED[name](good).items()
    for i in range(cuts):
        yield f"?cut at {i}/{cuts}", good[: len(good) * i // cuts]
    for _ in range(flips):
        flipped, ends = bytearray(good), min(len(good), 2048)
        place = draw.choice(
            (draw.randrange(len(good)), draw.randrange(ends), -1 - draw.randrange(ends))
        )
        flipped[place] = draw.choice((flipped[place] ^ 1 << draw.randrange(8), draw.randrange(256)))
        yield f"?byte {place} is {flipped[place]}", bytes(flipped)


# Trials.


def attempt(reader) -> str:
    """What became of it: "taken", "refused", or what went wrong."""
    out, said = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")
    )
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            run_main(reader)
        return "taken"
    except SystemExit as stop:
        said.seek(0)
        lines = said.read()
        good = (
            stop.code == 2
            and re.fullmatch(r"error: [^\n\r]+\n", lines)
            and "should not happen" not in lines
        )
        return "refused" if good else f"exit {stop.code} with {lines[:150]!r}"
    except BaseException as error:
        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if ROOT in Path(frame.filename).parents
        ]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}" if ours else "?"
        return f"{type(error).__name__} in {where}: {first_line(error)[:150]}"


def work(name: str, batch: list, report) -> None:
    """What a child does: tries each case, and reports (outcome, seconds, bytes that its peak of
    memory rose by)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Rust's panics speak
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * 2**30, resource.RLIM_INFINITY)
    )
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _, content in batch:
        Path(name).write_bytes(content)
        begun, before = time.monotonic(), peak()
        signal.alarm(6 * SECONDS)  # of waiting, on a machine that has more to do
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of work
        outcome = attempt(READERS[name])
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if (grown := peak() - before) > 2 * len(content) + ROOM:
            outcome = (
                f"grew by more than twice the file's size and {ROOM >> 20} MB, and was {outcome}"
            )
        if left := [path.name for path in Path().rglob("*tmp*")]:
            outcome = f"left {left} behind, and was {outcome}"
        print(json.dumps([outcome, time.monotonic() - begun, grown]), file=report, flush=True)


def tried(name: str, batch: list):
    """Tries cases in children; one that dies costs its case alone."""
    while batch:
        sys.stdout.flush()
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException), open(write, "w") as report:
                work(name, batch, report)
            os._exit(0)
        os.close(write)
        with open(read) as report:
            results = [json.loads(line) for line in report]
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if len(results) < len(batch):
            results.append(
                [f"died: {signal.Signals(-status).name if status < 0 else status}", SECONDS, 0]
            )
        for (what, _), (outcome, seconds, grown) in zip(batch, results, strict=False):
            if (outcome == "refused" and what[0] == "=") or (
                outcome == "taken" and what[0] not in "=?"
            ):
                outcome += ", wrongly"
            yield what, outcome, seconds, grown
        batch = batch[len(results) :]


def fuzz(name: str, flips: int, cuts: int, seed: int) -> list:
    """Every case of one reader, in a folder of its own."""
    folder = HOME / f"work-{name.replace('/', '-')}"
    shutil.copytree(HOME, folder, ignore=shutil.ignore_patterns("work-*"))
    os.chdir(folder)
    cases, results = damaged(name, flips, cuts, random.Random(f"{seed} {name}")), []
    while batch := list(itertools.islice(cases, BATCH)):
        results += tried(name, batch)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--cases", type=int, default=1000 * len(READERS), help="byte flips over all readers"
    )
    parser.add_argument("--cuts", type=int, default=100, help="truncations for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", default="", metavar="WORD", help="the readers whose file has this in its name"
    )
    arguments = parser.parse_args()
    prepare()
    names, failed = [name for name in READERS if arguments.only in name], 0
    print(
        f"{'reader':<38} | cases | taken | refused | failed | longest                       | grew by at most"
    )
    job = functools.partial(
        fuzz, flips=arguments.cases // len(READERS), cuts=arguments.cuts, seed=arguments.seed
    )
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for name, results in zip(names, pool.imap(job, names, chunksize=1), strict=True):
            counts = collections.Counter(outcome for _, outcome, _, _ in results)
            bad = len(results) - counts["taken"] - counts["refused"]
            failed += bad
            (longest, slow), grown = (
                max((r[2], r[0]) for r in results),
                max(r[3] for r in results) / 2**20,
            )
            print(f"{name:<38} | {len(results):>5} | {counts['taken']:>5} | {counts['refused']:>7} | {bad:>6} | "
                  f"{longest:>5.1f} s, {slow[:20]:<20} | {grown:.0f} MB", flush=True)  # fmt: skip
            for outcome, count in counts.most_common():
                if outcome not in ("taken", "refused"):
                    examples = [what for what, found, *_ in results if found == outcome]
                    print(
                        f"    {count} x {outcome}: {'; '.join(examples[:3])}".replace(
                            str(HOME), "HOME"
                        ),
                        flush=True,
                    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
