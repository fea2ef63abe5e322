"""Feeds broken and hostile files to all that reads one: it takes them, or says one line.

    python tests/fuzz.py                          # crafted files, and 1,000 flips a reader
    python tests/fuzz.py --cases 10000 --seed 0   # so many flips over all, drawn with that seed
    python tests/fuzz.py --only vocab.txt         # the readers of files with this in their names

A reader works in a forked child, so that a crash or a hang is seen and counted. What fails is any
exception or exit other than one line that begins with "error:" and status 2; more than 10 seconds
of work; memory beyond twice the file's size; what could steer a terminal; a file that is left
half-written; and a label that is taken for another one.
"""

import argparse
import collections
import contextlib
import dataclasses
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
from functools import partial
from pathlib import Path

import faults
import pyarrow as pa
import torch
from faults import CHECKPOINT, HOME
from helpers import write_table
from pyarrow import parquet
from safetensors.torch import load, save
from tokenizers.processors import TemplateProcessing

import data
import sample
import train
from runtime import convert
from support import errors

SECONDS = 10
BATCH = 50  # cases for a child
ROOM = 192 * 2**20  # bytes, for the pools of PyTorch and Arrow, and what is imported late
TABLES = ("parquet", "csv", "tsv", "jsonl")
TRAINING = [*map(str, faults.OPTIONS), "--out", "new"]
TOKEN = {"content": "[MASK]", "lstrip": False, "normalized": False, "rstrip": False}
SETTINGS = {
    "do_lower_case": True,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "tokenizer_class": "BertTokenizer",
    "word_tokenizer_type": "basic",
    "truncation_side": "right",
    "unk_token": "[UNK]",
    "cls_token": {"content": "[CLS]"},
    "additional_special_tokens": ["[PAD]"],
}
TEXTS = ["great film", "dull , and not good at all", "\x07\u200ba"]


# The readers, each in a folder of its own that holds copies of all good files.


class Begun(Exception):
    """The first step of a training."""


def classify(*words: str) -> None:
    sys.argv = ["sample.py", *words]
    sample.main()


def begin_training(*words: str) -> None:
    def begin(setup, rows, step):
        raise Begun

    train.train_step = begin
    shutil.rmtree("new", ignore_errors=True)
    sys.argv = ["train.py", *words]
    with contextlib.suppress(Begun):
        train.main()


def resume(tried: str) -> None:
    others = shutil.ignore_patterns(tried)
    shutil.copytree(HOME / "half" / "out", "out", ignore=others, dirs_exist_ok=True)
    begin_training("--resume", "--out", "out")


def label_table(path: str) -> None:
    out = path.replace("whole", "labelled").replace("txt", "csv")
    Path(out).unlink(missing_ok=True)
    shutil.rmtree(f"{out}.parts", ignore_errors=True)
    classify("--model", "base", "--file", path, "--prefix", "p_", "--out", out)
    assert Path(out).stat().st_size and not Path(f"{out}.parts").exists()


def go_on_labelling() -> None:
    """A labelling that was killed goes on with one of its parts: the table is the same."""
    shutil.rmtree("begun", ignore_errors=True)
    shutil.copytree(HOME / "begun", "begun")
    shutil.copy("part", min(Path("begun").glob("out.csv.parts/0*.part")))
    sys.argv = ["sample.py", *map(str, faults.LABEL), "begun/out.csv"]
    sample.main()
    assert Path("begun/out.csv").read_bytes() == (HOME / "labelled.csv").read_bytes()


def convert_pickle() -> None:
    """A pickle becomes safetensors, or nothing is written."""
    converted = Path("converted")
    shutil.rmtree(converted, ignore_errors=True)
    sys.argv = ["convert.py", "old", str(converted)]
    try:
        convert.main()
    finally:
        assert sys.exception() is None or not converted.exists()


def read_words(path: str, read) -> None:
    """A file's content as the last word of a command line."""
    word = os.fsdecode(Path(path).read_bytes()[: 10**5])
    if "\0" in word:
        raise errors.InputError("no word")
    read(word)


def read_labels() -> None:
    """Two splits with the labels of labels.json: each that is taken must be the class it says."""
    shutil.rmtree("labels", ignore_errors=True)
    os.mkdir("labels")
    with errors.reading("labels.json"):
        tables = json.loads(Path("labels.json").read_bytes())
        for split in "train", "validation":
            path = Path("labels", f"{split}.{tables['kind']}")
            texts = [f"text {row}" for row in range(len(tables[split]))]
            path.write_bytes(table_bytes(tables["kind"], texts, tables[split]))
    found = data.load_data("labels")
    names = found.task.names
    assert len({name.strip().casefold() for name in names} - {""}) == len(names) > 1, names
    assert {*found.train.labels} == {*range(len(names))}, "a class without a row"
    for split in "train", "validation":
        for label, number in zip(tables[split], getattr(found, split).labels, strict=True):
            meant = str(label).lower() if isinstance(label, bool) else str(label)
            name = str(number) if names[0] == "LABEL_0" else names[number]
            assert name == meant or float(name) == float(meant), (label, names)


ON_BASE = partial(classify, "--model", "base")
READERS = {
    "base/config.json": partial(ON_BASE, *TEXTS),
    "base/model.safetensors": partial(ON_BASE, *TEXTS),
    "base/tokenizer.json": partial(ON_BASE, *TEXTS),
    "vocab/vocab.txt": partial(classify, "--model", "vocab", *TEXTS),
    "vocab/tokenizer_config.json": partial(classify, "--model", "vocab", *TEXTS),
    "vocab/added_tokens.json": partial(classify, "--model", "vocab", *TEXTS),
    "vocab/special_tokens_map.json": partial(classify, "--model", "vocab", *TEXTS),
    "old/pytorch_model.bin": convert_pickle,
    "best/adapter_config.json": partial(classify, "--adapter", "best", *TEXTS),
    "best/adapter_model.safetensors": partial(classify, "--adapter", "best", *TEXTS),
    "best/config.json": partial(classify, "--adapter", "best", "--json", *TEXTS),
    "out/config.toml": partial(resume, "config.toml"),
    f"out/{CHECKPOINT}": partial(resume, CHECKPOINT.name),
    "options.toml": partial(begin_training, "--config", "options.toml", *TRAINING),
    "flag": partial(read_words, "flag", partial(begin_training, *TRAINING)),
    "text": partial(read_words, "text", partial(ON_BASE, "--")),
    "lines.txt": partial(ON_BASE, "--json", "--file", "lines.txt"),
    "labels.json": read_labels,
    "part": go_on_labelling,
}
SHAPED = {  # tables of other shapes than a text and a label, and what reads them
    "sets.jsonl": ("--data", "sets.jsonl"),
    "commas.tsv": ("--data", "commas.tsv", "--label-separator", ","),
    "marks.csv": ("--data", "marks.csv", "--label-columns", "other,label"),
    "split.csv": ("--data", "split.csv"),
    "other.csv": ("--data", "train.csv", "--validation", "other.csv"),
}
for name, options in SHAPED.items():
    READERS[name] = partial(begin_training, *TRAINING, *options)
for kind in TABLES:
    READERS[f"train.{kind}"] = partial(begin_training, *TRAINING, "--data", f"train.{kind}")
for kind in (*TABLES, "txt"):
    READERS[f"whole.{kind}"] = partial(label_table, f"whole.{kind}")


def quoted(text: str, *others) -> str:
    return ";".join(['"' + text.replace('"', '""') + '"', *map(str, others)])


def write_good_files() -> None:
    """One good file for every reader."""
    faults.write_inputs()
    killed = faults.go("a training", HOME / "half" / "out", inside=faults.at_step(8, faults.die))
    assert killed == (-signal.SIGKILL, ""), killed
    shutil.copytree(HOME / "half" / "out", HOME / "out")
    shutil.copytree(HOME / "out" / "best", HOME / "best")
    dying = faults.at_change(HOME, 40, faults.die)
    assert faults.go("a labelling", HOME / "labelled.csv") == (0, "")
    (HOME / "begun").mkdir()
    killed = faults.go("a labelling", HOME / "begun" / "out.csv", inside=dying)
    assert killed == (-signal.SIGKILL, ""), killed
    shutil.copy(min(HOME.glob("begun/out.csv.parts/0*.part")), HOME / "part")
    others = shutil.ignore_patterns("tokenizer.json")
    shutil.copytree(HOME / "base", HOME / "vocab", ignore=others)
    (HOME / "vocab.txt").rename(HOME / "vocab" / "vocab.txt")
    (HOME / "old").mkdir()
    shutil.copy(HOME / "base" / "config.json", HOME / "old")
    tensors = load((HOME / "base" / "model.safetensors").read_bytes())
    torch.save(tensors, HOME / "old" / "pytorch_model.bin")
    texts = parquet.read_table(HOME / "reviews.parquet")["sentence"][:100].to_pylist()
    for name, kind in itertools.product(("train", "whole"), TABLES):
        table = {"sentence": texts, "label": [row % 2 for row in range(100)]}
        write_table(HOME / f"{name}.{kind}", table)
    sets = [["a", "b"], [], ["b"], ["a"]] * 25
    rows = [(text, row % 2, sets[row]) for row, text in enumerate(texts)]
    told = [(text, n, [("train", "dev")[row % 4 // 2]]) for row, (text, n, _) in enumerate(rows)]
    shaped = {
        "sets.jsonl": [json.dumps({"sentence": t, "label": labels}) for t, _, labels in rows],
        "commas.tsv": ["sentence\tlabel", *(f"{t}\t{','.join(ls)}" for t, _, ls in rows)],
        "marks.csv": ["sentence;other;label", *(quoted(t, 1 - n, n) for t, n, _ in rows)],
        "split.csv": ["sentence;label;split", *(quoted(t, n, *split) for t, n, split in told)],
        "other.csv": ["sentence;label", *(quoted(t, n) for t, n, _ in rows)],
    }
    for name, lines in shaped.items():
        (HOME / name).write_text("".join(f"{line}\n" for line in lines))
    contents = {
        "vocab/tokenizer_config.json": json.dumps(SETTINGS),
        "vocab/added_tokens.json": '{"[MASK]": 103, "film": 2143}',
        "vocab/special_tokens_map.json": json.dumps({"cls_token": "[CLS]", "mask_token": TOKEN}),
        "whole.txt": "".join(f"{text}\n" for text in texts),
        "lines.txt": "".join(f"{text}\n" for text in texts[:50]),
        "labels.json": '{"kind": "csv", "train": ["no", "yes"], "validation": ["yes"]}',
        "options.toml": 'lr = 5e-4\nepochs = 3\nresume = true\ntargets = "query"\n',
        "flag": "--lr=1e-3",
        "text": "great film, good film",
    }
    for name, content in contents.items():
        (HOME / name).write_text(content)
    for path in [*HOME.rglob("*.tmp")]:  # what the two that were killed left
        path.unlink()


# Crafted files: pairs of what, and the content.

NAN, INF = float("nan"), float("inf")
NUMBERS = [0, -1, 1.5, NAN, INF, -INF, 1000, 10**9, 2**31 - 1, 2**63, 10**30, 10**400, 1e308]
ODD = [
    None,
    True,
    [],
    ["x"],
    {},
    {"a": 1},
    *NUMBERS,
    "",
    "x",
    "a\nb\x1b[31m",
    "\ud800",
    "a" * 10**5,
]
HOSTILE = ["", " ", "x", "..", "/", "a@b@c", "-x", "%s {0}", "naïve", "中文", "😀", "\u202eשלום"]
HOSTILE += ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "a\nb", "a\r\rb", "\x7f\b", "a\tb", "\0"]
HOSTILE += ["\u2028", "\ufeff", "\ud800", '"}\n{"', "[SEP] [PAD]", "a" * 10**5, "word " * 10**4]
PATTERNS = ["((", "[", "(?P<a>x)(?P<a>y)", r"((\w+\.?)+)+!", ".*" * 30 + "!", ".*.*.*!", "(a|a)*!"]
PATTERNS += ["a{1,4294967295}", r"(\w|\w)*!", r"(?:(?:\w)*)*!", "(" * 10**4]


def spoilt(good: bytes):
    """What can become of any file."""
    yield "empty", b""
    yield "twice", good * 2
    yield "NULs", b"\0" * 1000
    yield "NUL first", b"\0" + good
    yield "BOM", b"\xef\xbb\xbf" + good
    yield "CRLF", good.replace(b"\n", b"\r\n")
    yield "UTF-16", good.decode("latin-1").encode("utf-16")
    yield "Latin-1", good + b"\xe9\xe9\n"
    yield "10 MB in a line", good + b"a" * 10**7
    yield "many lines", good + b"a b\n" * 5000
    yield "digits", b"9" * 5000
    for start, end in (b"[", b"]"), (b'{"a":', b"}"), (b"a.", b"=1"), (b"(", b")"), (b"x=[", b"]"):
        yield f"deep {start}", start * 10**4 + b"1" + end * 10**4


def odd_json(good: bytes, more: dict):
    """A field after the other has another value; `more` has values for some of them."""
    values = json.loads(good)
    for name in values:
        for number, odd in enumerate([*ODD, *more.get(name, [])]):
            yield f"{name} = {odd!r:.30} {number}", json.dumps(values | {name: odd}).encode()
    deep = b"[" * 900 + b"]" * 900
    for value in deep, b"[" * 10**5, b"9" * 5000, b'"\xe9"', b'"\\ud800"', b"1,}":
        yield f"x = {value[:10]}", good.rstrip()[:-1] + b',"x":' + value + b"}"


def odd_fields(name: str, good: bytes) -> dict:
    """More values for the fields of some files."""
    if not name.endswith("tokenizer.json"):
        classes = [{"1": "a", "0": odd} for odd in [*ODD, *HOSTILE]]
        classes += [{str(i): str(i) for i in range(10**5)}, {"0": "a", "00": "b", "1": "c"}]
        return {"target_modules": PATTERNS, "r": [10**6], "id2label": classes}
    model = json.loads(good)["model"]
    vocabularies = [{}, model["vocab"] | {"great": 10**6}, {"great": -1}, {"a": 0}]
    models = [model | {"vocab": vocabulary} for vocabulary in vocabularies]
    models += [model | {"unk_token": "x"}, model | {"max_input_chars_per_word": 0}]
    models += [{"type": "BPE", "vocab": {}, "merges": []}, {"type": "Unigram", "vocab": []}]
    replace = {"type": "Replace", "content": ""}
    normalizers = [replace | {"pattern": {"Regex": pattern}} for pattern in PATTERNS]
    normalizers += [{"type": "Precompiled", "precompiled_charsmap": "AAAA"}]
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
    side = {"direction": "Right"}
    padding = {"pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    return {
        "model": models,
        "normalizer": normalizers,
        "post_processor": odd_templates(),
        "truncation": [side | {"max_length": 0, "stride": 9, "strategy": "LongestFirst"}],
        "padding": [side | padding | {"strategy": {"Fixed": 10**9}}],
        "added_tokens": [[flags | {"id": 10**6, "content": "film"}]],
    }


def odd_templates() -> list[dict]:
    """Frames of texts in which the library finds no sense, or dies."""
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    ids = [("[CLS]", 101), ("[SEP]", 102)]
    good = TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ids)
    template = json.loads(good.__getstate__())
    others = [{"type": "BertProcessing", "sep": ["x", 10**6], "cls": ["y", 2**32 - 1]}]
    second = {"Sequence": {"id": "B", "type_id": 7}}
    cls = {"id": "[CLS]", "ids": [999999], "tokens": ["[CLS]"]}
    for name, value in (
        ("pair", [*template["pair"][:3], second, template["pair"][-1]]),
        ("pair", []),
        ("single", [second] * 100),
        ("special_tokens", template["special_tokens"] | {"[CLS]": cls}),
        ("special_tokens", {}),
    ):
        others.append(template | {name: value})
    return others


def odd_tensors(good: bytes):
    """A safetensors file whose header says something else, or with other tensors."""
    end = 8 + int.from_bytes(good[:8], "little")
    head = json.loads(good[8:end])
    metadata = head.get("__metadata__", {})
    tensors = {name: tensor.clone() for name, tensor in load(good).items()}
    name = next(key for key in tensors if key.endswith("weight") and tensors[key].ndim == 2)

    def packed(header) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + good[end:]

    yield "a terabyte of header", (2**40).to_bytes(8, "little") + b"{}"
    yield "no tensors", packed({})
    yield "a key twice", packed(good[8:end].rstrip()[:-1] + b',"' + name.encode() + b'":{}}')
    yield "no metadata", packed({key: head[key] for key in tensors})
    for number, odd in enumerate(ODD):
        yield f"metadata {odd!r:.30} {number}", packed(head | {"__metadata__": odd})
        for key in metadata:
            changed = metadata | {key: str(odd)}
            yield f"{key} {odd!r:.30} {number}", packed(head | {"__metadata__": changed})
    shapes = [[0, 2**64 - 1], [2**63, 2], [1] * 100, [-1], 2**64]
    for field, more in ("dtype", []), ("shape", shapes), ("data_offsets", [[0, 2**40], [0, 4]]):
        for number, odd in enumerate([*ODD, *more]):
            yield f"{field} {odd!r:.30} {number}", packed(head | {name: head[name] | {field: odd}})
    for odd in HOSTILE:
        yield f"named {odd!r:.30}", packed({odd if key == name else key: head[key] for key in head})
    tensor = tensors[name]
    dtypes = [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.bfloat16]
    sizes = [(), (0,), (1, 2, 3), (10**6,), (len(tensor) + 1, tensor.shape[1])]
    others = [tensor.index_fill(0, torch.tensor(0), value) for value in (NAN, INF, 1e38)]
    others += [tensor.to(dtype) for dtype in dtypes] + [torch.zeros(size) for size in sizes]
    for number, other in enumerate(others):
        yield f"tensor {number}", save(tensors | {name: other}, metadata)
    yield "surplus", save(tensors | {"bert.x": tensor.clone()}, metadata)
    for missing in tensors:
        kept = {key: tensors[key] for key in tensors if key != missing}
        yield f"without {missing}", save(kept, metadata)


def odd_tables(kind: str):
    """A text or a label of another kind: one, or nearly all of them."""
    texts, labels = [f"text {row}" for row in range(20)], [0, 1] * 10
    for (number, odd), count in itertools.product(enumerate([*ODD, *HOSTILE]), (1, 19)):
        some = [odd] * count
        yield f"texts {odd!r:.30} {number}", table_bytes(kind, some + texts[count:], labels)
        yield f"labels {odd!r:.30} {number}", table_bytes(kind, texts, some + labels[count:])
    if kind != "parquet":
        yield from odd_texts(table_bytes(kind, [f"{text} 很好" for text in texts], labels))
    if kind != "parquet":
        return
    columns = {
        "not UTF-8": pa.array([b"\xff"] * 20).view(pa.string()),
        "large": pa.array(texts, pa.large_string()),
        "views": pa.array(texts, pa.string_view()),
        "dictionary": pa.array(map(str, labels)).dictionary_encode(),
        "dates": pa.array(labels, pa.date32()),
        "decimals": pa.array(labels).cast(pa.decimal128(20)),
        "huge": pa.array([2**64 - 1] * 20, pa.uint64()),
        "nulls": pa.nulls(20),
    }
    for what, column in columns.items():
        yield f"texts {what}", table_bytes(kind, column, labels)
        yield f"labels {what}", table_bytes(kind, texts, column)


def odd_texts(good: bytes):
    """A text file in other encodings, with other separators, quotes and first lines."""
    for encoding in "utf-16", "utf-16-le", "utf-32", "big5", "gb18030", "shift_jis", "cp1252":
        yield encoding, good.decode().encode(encoding, "ignore")
        yield f"in the middle {encoding}", good + good.decode().encode(encoding, "ignore")
    for old, new in itertools.product(
        (b",", b"\t"), (b";", b"|", b"\t", b",", b'"', b'","', b'""')
    ):
        yield f"{old} is {new}", good.replace(old, new)
    for first in (
        b"sep=;\n",
        b"sep=,\n",
        b'"sep=;"\r\n',
        b"\n\n",
        b" ",
        b'"',
        b"\xef\xbb\xbf\xef\xbb\xbf",
    ):
        yield f"first {first}", first + good
    lines = good.split(b"\n")
    yield "quoted", b"\n".join(b'"' + line + b'"' for line in lines)
    yield "a quote a line", b"\n".join(line + b'"' for line in lines)
    yield "more columns", b"\n".join([*lines[:-1], lines[1] * 3])


def odd_cells(name: str, good: bytes):
    """The label of one row, or of nearly all, is something else; and odd_texts."""
    lines = good.decode().splitlines()
    sign = "\t" if name.endswith("tsv") else ";"
    for (number, odd), count in itertools.product(enumerate([*ODD, *HOSTILE]), (1, 19)):
        changed = []
        for line in lines[1 : 1 + count]:
            if name.endswith("jsonl"):
                row = json.loads(line)
                changed.append(json.dumps(row | {"label": row["label"] + [odd]}))
                changed.append(json.dumps(row | {"label": odd}))
            else:
                changed.append(line.rpartition(sign)[0] + sign + str(odd))
        content = "\n".join([lines[0], *changed, *lines[1 + count :]])
        yield f"cells {odd!r:.30} {number}", content.encode("utf-8", "surrogatepass")
    yield from odd_texts(good)


def table_bytes(kind: str, texts, labels) -> bytes:
    """A table in that format; where Arrow has no such column, of its text."""
    if kind == "parquet":
        file = io.BytesIO()
        try:
            table = pa.table({"sentence": texts, "label": labels})
        except (pa.ArrowException, OverflowError, UnicodeError):
            texts, labels = ([ascii(value) for value in column] for column in (texts, labels))
            table = pa.table({"sentence": texts, "label": labels})
        parquet.write_table(table, file)
        return file.getvalue()
    rows = [*zip(texts, labels, strict=True)]
    if kind == "jsonl":
        lines = [json.dumps({"sentence": text, "label": label}) for text, label in rows]
    else:
        sign = {"csv": ",", "tsv": "\t", "txt": "\t"}[kind]
        rows = [("sentence", "label"), *rows]
        lines = [sign.join("" if value is None else str(value) for value in row) for row in rows]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


LABELS = [[0, 1, 2], ["0", "1"], ["a", "b"], ["1", "2", "other"], [True, False], [0.0, 1.0]]
LABELS += [["+", "-"], ["1.0", "1.1"], [-1, 1], ["yes", "no", "maybe"], ["NA", "b", "c"]]
ODD_LABELS = [None, "", " ", "NA", "nan", "?", "1", " 1", "1 ", "01", "+1", "-1", "1.0", "1e0", "²"]
ODD_LABELS += [
    "true",
    "A",
    "a ",
    "a\u200b",
    "LABEL_1",
    0,
    1,
    2,
    -1,
    7,
    10**18,
    0.5,
    1e300,
    NAN,
    INF,
]


def odd_labels():
    """Labels of one kind, among which one or two of another have got."""
    draw = random.Random(0)
    for number in range(400):
        usual = draw.choice(LABELS)
        tables = {"kind": draw.choice(["csv", "csv", "parquet", "jsonl"])}
        for split, rows in ("train", 12), ("validation", 5):
            tables[split] = [draw.choice(usual) for _ in range(rows)]
            for _ in range(draw.choice([0, 1, 1, 2])):
                tables[split][draw.randrange(rows)] = draw.choice(ODD_LABELS)
        yield f"labels {number}", json.dumps(tables).encode()


def odd_options(form: str):
    """Options with values of their kind and of others, except those around a run."""
    around = {"out", "offline_fallback", "push_to_hub", "hub_model_id", "hub_private", "resume"}
    for f in dataclasses.fields(train.Config):
        values = HOSTILE if f.type is str and form.startswith("--") else ODD
        for odd in values if f.name not in around else ():
            value = odd if form.startswith("--") else json.dumps(odd)
            content = form.format(name=f.name, value=value).encode("utf-8", "surrogatepass")
            yield f"{f.name} = {odd!r:.30}", content


def crafted(name: str, good: bytes):
    kind = name.rpartition(".")[2]
    if name == "labels.json":
        return odd_labels()
    if name in SHAPED:
        return odd_cells(name, good)
    if kind == "json":
        return odd_json(good, odd_fields(name, good))
    if kind == "safetensors":
        return odd_tensors(good)
    if kind in TABLES or name == "whole.txt":
        return odd_tables(kind)
    if name in ("options.toml", "flag"):
        return odd_options("--{name}={value}" if name == "flag" else "{name} = {value}\n")
    return [(repr(odd)[:30], odd.encode("utf-8", "surrogatepass")) for odd in HOSTILE]


def cases(name: str, flips: int, cuts: int, draw: random.Random):
    """(what, content) of every case of a reader."""
    good = (HOME / name).read_bytes()
    yield "good", good
    yield from spoilt(good)
    yield from crafted(name, good)
    for number in range(cuts):
        yield f"cut at {number}/{cuts}", good[: len(good) * number // cuts]
    ends = min(len(good), 2048)
    for _ in range(flips):
        flipped = bytearray(good)
        places = (draw.randrange(len(good)), draw.randrange(ends), -1 - draw.randrange(ends))
        place = draw.choice(places)
        flipped[place] = draw.choice((flipped[place] ^ 1 << draw.randrange(8), draw.randrange(256)))
        yield f"byte {place} is {flipped[place]}", bytes(flipped)


# Trials.


def attempt(reader) -> str:
    """What became of it: "taken", "refused", or what went wrong."""
    out, said = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    status = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            errors.run_main(reader)
    except SystemExit as stop:
        status = stop.code
    line = said.buffer.getvalue().decode()
    outcome = f"exit {status}, {line[:150]!r}"
    if (status, line) == (0, ""):
        outcome = "taken"
    elif status == 2 and re.fullmatch(r"error: [^\n\r]+\n", line) and "report it" not in line:
        outcome = "refused"
    printed = out.buffer.getvalue().decode() + line
    steering = re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)
    return f"{outcome}, and printed {steering[0]!r}" if steering else outcome


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def try_each(name: str, batch: list) -> None:
    """Tries the cases, and writes what became of each and its seconds of work into results."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Rust's panics speak
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    for _, content in batch:
        Path(name).write_bytes(content)
        before = peak()
        begun = time.process_time()
        signal.alarm(6 * SECONDS)  # of waiting, on a machine that has more to do
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of work
        outcome = attempt(READERS[name])
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - begun
        grown = peak() - before
        if grown > 2 * len(content) + ROOM:
            outcome += f", and took {grown >> 20} MB"
        left = [path.name for path in Path().rglob("*.tmp")]
        if left:
            outcome += f", and left {left}"
        with open("results", "a") as file:
            file.write(json.dumps([outcome, seconds]) + "\n")


def fuzz(name: str, flips: int, cuts: int, seed: int) -> list:
    """What every case of a reader is, what became of it, and the seconds of work."""
    folder = HOME / f"work-{name.replace('/', '-')}"
    shutil.copytree(HOME, folder, ignore=shutil.ignore_patterns("work-*"))
    os.chdir(folder)
    drawn = cases(name, flips, cuts, random.Random(f"{seed} {name}"))
    results = []
    batch = [*itertools.islice(drawn, BATCH)]
    while batch:
        Path("results").write_text("")
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                try_each(name, batch)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found = [json.loads(line) for line in Path("results").read_text().splitlines()]
        if len(found) < len(batch):  # one that dies costs its case alone
            found.append([f"died: {status}", SECONDS])
        results += [(what, *result) for (what, _), result in zip(batch, found, strict=False)]
        batch = batch[len(found) :] or [*itertools.islice(drawn, BATCH)]
    assert results[0][1] == "taken", results[0]  # the good file
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000 * len(READERS), help="flips over all")
    parser.add_argument("--cuts", type=int, default=100, help="truncations for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="WORD", help="files with this in their names")
    given = parser.parse_args()
    write_good_files()
    names = [name for name in READERS if given.only in name]
    failed = 0
    print("reader                                   | cases | taken | refused | failed | longest")
    flips = given.cases // len(READERS)
    job = partial(fuzz, flips=flips, cuts=given.cuts, seed=given.seed)
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for name, results in zip(names, pool.imap(job, names, chunksize=1), strict=True):
            counts = collections.Counter(outcome for _, outcome, _ in results)
            taken, refused = counts.pop("taken", 0), counts.pop("refused", 0)
            failed += counts.total()
            longest = max(results, key=lambda result: result[2])
            row = (
                f"{name:<40} | {len(results):>5} | {taken:>5} | {refused:>7} | {counts.total():>6}"
            )
            print(f"{row} | {longest[2]:.1f} s, {longest[0][:20]}", flush=True)
            for outcome, count in counts.most_common():
                examples = "; ".join([what for what, found, _ in results if found == outcome][:3])
                print(f"    {count} x {outcome}: {examples}".replace(str(HOME), "HOME"), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
