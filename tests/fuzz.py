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

import faults
import numpy as np
import pyarrow as pa
import torch
from faults import CHECKPOINT, HOME, OPTIONS
from helpers import write_table
from pyarrow import parquet
from safetensors.torch import load, save

import data
import sample
import train
from support import errors

SECONDS = 10
ROOM = 128 * 2**20  # bytes, for the pools of PyTorch and Arrow, and what is imported late
ROOT = Path(data.__file__).parent
BATCH = 50  # cases for a child
TEXTS = ["great film", "dull , and not good at all", "\x07\u200b"]


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
    sys.argv = ["train.py", *map(str, [*OPTIONS, "--out", "new", *words])]
    with contextlib.suppress(Begun):
        train.main()


def resume() -> None:
    hidden = shutil.ignore_patterns("checkpoint")
    shutil.copytree(HOME / "half" / "out", "out", ignore=hidden, dirs_exist_ok=True)
    begin_training("--resume", "--out", "out")


def label_table(path: str) -> None:
    out = f"labelled{Path(path).suffix.replace('txt', 'csv')}"
    Path(out).unlink(missing_ok=True)
    classify("--model", "base", "--file", path, "--prefix", "p_", "--out", out)
    assert not Path(f"{out}.parts").exists() and Path(out).stat().st_size


def read_flags() -> None:
    flags = [line.decode(errors="surrogateescape") for line in Path("flags").read_bytes().split()]
    if b"\0" in Path("flags").read_bytes() or not all(flag.startswith("--") for flag in flags):
        raise errors.InputError("no flags")
    begin_training(*flags)


def read_argument() -> None:
    content = Path("argument").read_bytes()
    if b"\0" in content:
        raise errors.InputError("no argument")
    classify("--model", "base", "--", os.fsdecode(content))


def read_labels() -> None:
    """Two splits with the labels of labels.json: each that is taken must be the class it says."""
    tables = json.loads(Path("labels.json").read_bytes())
    shutil.rmtree("labels", ignore_errors=True)
    os.mkdir("labels")
    for split in "train", "validation":
        if tables["kind"] == "csv":  # which knows only text
            tables[split] = ["" if label is None else str(label) for label in tables[split]]
        rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(tables[split])]
        path = Path("labels", f"{split}.{tables['kind']}")
        if tables["kind"] == "jsonl":  # which may mix them
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            continue
        try:
            write_table(path, {name: [row[name] for row in rows] for name in ("text", "label")})
        except (pa.ArrowException, OverflowError) as error:
            raise errors.InputError("no such table") from error
    found = data.load_data("labels")
    names = found.task.names
    assert len({name.strip().casefold() for name in names} - {""}) == len(names) > 1, names
    for split, numbers in ("train", found.train.labels), ("validation", found.validation.labels):
        for label, number in zip(tables[split], numbers, strict=True):
            meant = str(label).lower() if isinstance(label, bool) else str(label)
            name = str(number) if names[0] == "LABEL_0" else names[number]
            assert name == meant or float(name) == float(meant), (label, names)
    assert {*found.train.labels} == {*range(len(names))}, "a class without a row"


TABLES = ("parquet", "csv", "tsv", "jsonl")
READERS = {
    "base/config.json": functools.partial(classify, "--model", "base", *TEXTS),
    "base/model.safetensors": functools.partial(classify, "--model", "base", *TEXTS),
    "base/tokenizer.json": functools.partial(classify, "--model", "base", *TEXTS),
    "vocab/vocab.txt": functools.partial(classify, "--model", "vocab", *TEXTS),
    "vocab/tokenizer_config.json": functools.partial(classify, "--model", "vocab", *TEXTS),
    "best/adapter_config.json": functools.partial(classify, "--adapter", "best", *TEXTS),
    "best/adapter_model.safetensors": functools.partial(classify, "--adapter", "best", *TEXTS),
    "best/config.json": functools.partial(classify, "--adapter", "best", "--json", *TEXTS),
    "out/config.toml": resume,
    f"out/{CHECKPOINT}": resume,
    "options.toml": functools.partial(begin_training, "--config", "options.toml"),
    "flags": read_flags,
    "argument": read_argument,
    "lines.txt": functools.partial(classify, "--model", "base", "--json", "--file", "lines.txt"),
    "labels.json": read_labels,
}
for kind in TABLES:
    READERS[f"train.{kind}"] = functools.partial(begin_training, "--data", f"train.{kind}")
for kind in (*TABLES, "txt"):
    READERS[f"whole.{kind}"] = functools.partial(label_table, f"whole.{kind}")


def write_good_files() -> None:
    """One good file for every reader."""
    faults.write_inputs()
    killed = faults.go("a training", HOME / "half" / "out", inside=faults.at_step(8, faults.die))
    assert killed == (-signal.SIGKILL, ""), killed
    shutil.copytree(HOME / "half" / "out", HOME / "out")
    shutil.copytree(HOME / "out" / "best", HOME / "best")
    ignored = shutil.ignore_patterns("tokenizer.json")
    shutil.copytree(HOME / "base", HOME / "vocab", ignore=ignored)
    (HOME / "vocab.txt").rename(HOME / "vocab" / "vocab.txt")
    (HOME / "vocab" / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    texts = parquet.read_table(HOME / "reviews.parquet")["sentence"][:100].to_pylist()
    table = {"sentence": texts, "label": [i % 2 for i in range(100)]}
    for name in "train", "whole":
        for kind in TABLES:
            write_table(HOME / f"{name}.{kind}", table)
    for name in "whole.txt", "lines.txt":
        (HOME / name).write_text("".join(f"{text}\n" for text in texts[:50]))
    (HOME / "labels.json").write_text('{"kind":"csv","train":["no","yes"],"validation":["yes"]}')
    (HOME / "options.toml").write_text('lr = 5e-4\nepochs = 3\nresume = true\ntargets = "query"\n')
    (HOME / "flags").write_text("--lr=1e-3 --epochs=2 --targets=query")
    (HOME / "argument").write_text("great film, good film")


# Crafted files: pairs of what, and the content.

NAN, INF = float("nan"), float("inf")
HOSTILE = ["", " ", "x", "..", "/", "a@b@c", "-x", "%s {0}", "naïve", "中文", "😀", "\u202eשלום"]
HOSTILE += ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "a\nb", "a\r\rb", "\x7f\b", "a\tb", "\0"]
HOSTILE += ["\u2028", "\ufeff", "\ud800", '"}\n{"', "[SEP] [PAD]", "a" * 10**6, "word " * 10**5]
NUMBERS = [0, -1, 1.5, NAN, INF, -INF, 1000, 10**9, 2**31 - 1, 2**63, 10**30, 10**400, 1e308]
ODD = [None, True, False, [], [1], ["x"], {}, {"a": 1}, {"0": "a"}, *NUMBERS, *HOSTILE]
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
    yield "10 MB of lines", good + b"a b\n" * 2500000
    yield "digits", b"9" * 5000
    for start, end in (b"[", b"]"), (b'{"a":', b"}"), (b"a.", b"=1"), (b"(", b")"), (b"x=[", b"]"):
        yield f"deep {start}", start * 10**4 + b"1" + end * 10**4


def odd_json(good: bytes, more: dict):
    """A field after the other is another value; `more` has values for some of them."""
    values = json.loads(good)
    for name in values:
        for number, odd in enumerate([*ODD, *more.get(name, [])]):
            yield f"{name} = {odd!r:.30} {number}", json.dumps(values | {name: odd}).encode()
    start = good.rstrip()[:-1]
    for value in (
        b"[" * 900 + b"]" * 900,
        b"[" * 10**5,
        b"9" * 5000,
        b'"\xe9"',
        b'"\\ud800"',
        b"1,}",
    ):
        yield f"x = {value[:10]}", start + b',"x":' + value + b"}"


def odd_tokenizers(good: bytes) -> dict:
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
        "post_processor": [
            {"type": "BertProcessing", "sep": ["x", 10**6], "cls": ["y", 2**32 - 1]}
        ],
        "truncation": [side | {"max_length": 0, "stride": 9, "strategy": "LongestFirst"}],
        "padding": [side | padding | {"strategy": {"Fixed": 10**9}}],
        "added_tokens": [[flags | {"id": 10**6, "content": "film"}]],
    }


def odd_tensors(good: bytes):
    """A safetensors file whose header says something else, or with another tensor."""
    end = 8 + int.from_bytes(good[:8], "little")
    head, body = json.loads(good[8:end]), good[end:]
    tensors = {name: tensor.clone() for name, tensor in load(good).items()}
    names = [key for key in tensors if key.endswith("weight") and tensors[key].ndim == 2]
    name = names[0]
    metadata = head.get("__metadata__", {})

    def packed(header, content=body) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content

    yield "a terabyte of header", (2**40).to_bytes(8, "little") + b"{}"
    yield "no tensors", packed({}, b"")
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
    for key in HOSTILE:
        yield f"named {key!r:.30}", packed({key if k == name else k: head[k] for k in head})
    tensor = tensors[name]
    dtypes = [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.bfloat16]
    sizes = [(), (0,), (1, 2, 3), (10**6,), (len(tensor) + 1, tensor.shape[1])]
    others = [tensor.index_fill(0, torch.tensor(0), value) for value in (NAN, INF, 1e38)]
    others += [tensor.to(dtype) for dtype in dtypes] + [torch.zeros(size) for size in sizes]
    for number, other in enumerate(others):
        yield f"tensor {number}", save(tensors | {name: other}, metadata)
    yield "surplus", save(tensors | {"bert.x": tensor}, metadata)
    for missing in tensors:
        kept = {key: tensors[key] for key in tensors if key != missing}
        yield f"without {missing}", save(kept, metadata)


def odd_tables(kind: str):
    """A text or a label of another kind: one, or all of them."""
    for number, odd in enumerate(ODD):
        for texts, labels in ([odd], []), ([odd] * 19, []), ([], [odd]), ([], [odd] * 19):
            texts = [*texts, *(f"text {i}" for i in range(20))][:20]
            labels = [*labels, *([0, 1] * 10)][:20]
            what = f"{odd!r:.30} {number} {len(labels)}"
            with contextlib.suppress(pa.ArrowException, OverflowError, UnicodeError):
                yield what, table_bytes(kind, texts, labels)
    classes = [f"c{i}" for i in range(10**5)]
    yield "100,000 classes", table_bytes(kind, classes, classes)


def table_bytes(kind: str, texts: list, labels: list) -> bytes:
    if kind == "parquet":
        file = io.BytesIO()
        parquet.write_table(pa.table({"sentence": texts, "label": labels}), file)
        return file.getvalue()
    if kind == "jsonl":
        rows = [{"sentence": t, "label": c} for t, c in zip(texts, labels, strict=True)]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "txt":
        return "".join(f"{text}\n" for text in texts).encode("utf-8", "surrogatepass")
    sign = "," if kind == "csv" else "\t"
    rows = [("sentence", "label"), *zip(texts, labels, strict=True)]
    return "".join(f"{t}{sign}{c}\n" for t, c in rows).encode("utf-8", "surrogatepass")


def odd_types():
    """Parquet has types of its own."""
    texts, labels = [f"text {i}" for i in range(20)], [0, 1] * 10
    broken = pa.array([b"\xff"] * 20).view(pa.string())
    columns = {
        "bytes": [b"x"] * 20,
        "not UTF-8": broken,
        "large": pa.array(texts, pa.large_string()),
        "views": pa.array(texts, pa.string_view()),
        "dictionary": pa.array(map(str, labels)).dictionary_encode(),
        "dates": pa.array(labels, pa.date32()),
        "decimals": pa.array(labels).cast(pa.decimal128(20)),
        "huge": pa.array([2**64 - 1] * 20, pa.uint64()),
        "halves": pa.array(np.zeros(20, np.float16)),
        "nulls": pa.nulls(20),
    }
    for what, column in columns.items():
        yield f"texts {what}", table_bytes("parquet", column, labels)
        yield f"labels {what}", table_bytes("parquet", texts, column)
    twice = pa.Table.from_arrays([pa.array(texts)] * 2 + [pa.array(labels)], ["a", "a", "label"])
    parquet.write_table(twice, file := io.BytesIO())
    yield "a column twice", file.getvalue()


LABELS = [[0, 1, 2], ["0", "1"], ["a", "b"], ["1", "2", "other"], [True, False], [0.0, 1.0]]
LABELS += [["+", "-"], ["1.0", "1.1"], [-1, 1], ["yes", "no", "maybe"], ["NA", "b", "c"]]
ODD_LABELS = [
    None,
    "",
    " ",
    "NA",
    "nan",
    "?",
    "1",
    " 1",
    "1 ",
    "01",
    "+1",
    "-1",
    "1.0",
    "1e0",
    "٣",
    "²",
]
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


AROUND = {"out", "offline_fallback", "push_to_hub", "hub_model_id", "hub_private", "resume"}


def odd_options(form: str):
    """Options with values of every kind, except those around a run."""
    names = [f.name for f in dataclasses.fields(train.Config) if f.name not in AROUND]
    for name, odd in itertools.product(names, ODD):
        value = odd if form.startswith("--") else json.dumps(odd)
        content = form.format(name=name, value=value).encode("utf-8", "surrogatepass")
        if len(content) < 10**5:
            yield f"{name} = {odd!r:.30}", content


def crafted(name: str, good: bytes):
    kind = name.rpartition(".")[2]
    more = {"target_modules": PATTERNS, "r": [10**6], "revision": ["../../x"]}
    more["id2label"] = [{"1": "a", "0": odd} for odd in ODD] + [{"0": "a", "00": "b", "1": "c"}]
    more["id2label"].append({str(i): str(i) for i in range(10**5)})
    yield "good", good
    yield from spoilt(good)
    if name.endswith("tokenizer.json"):
        yield from odd_json(good, odd_tokenizers(good))
    elif name == "labels.json":
        yield from odd_labels()
    elif kind == "json":
        yield from odd_json(good, more)
    elif kind == "safetensors":
        yield from odd_tensors(good)
    elif kind in ("parquet", "csv", "tsv", "jsonl") or name == "whole.txt":
        yield from odd_tables(kind)
        yield from odd_types() if kind == "parquet" else ()
    elif kind == "toml":
        yield from odd_options("{name} = {value}\n")
    elif name == "flags":
        yield from odd_options("--{name}={value}")
    else:
        for odd in HOSTILE:
            yield repr(odd)[:30], odd.encode("utf-8", "surrogatepass")
            yield f"{odd!r:.30} before", f"{odd}\n".encode("utf-8", "surrogatepass") + good


def cases(name: str, flips: int, cuts: int, draw: random.Random):
    """(what, content) of every case of a reader."""
    good = (HOME / name).read_bytes()
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
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            errors.run_main(reader)
        outcome = "taken"
    except SystemExit as stop:
        line = said.buffer.getvalue().decode()
        is_one = re.fullmatch(r"error: [^\n\r]+\n", line) and "report it" not in line
        outcome = "refused" if stop.code == 2 and is_one else f"exit {stop.code}, {line[:150]!r}"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if str(ROOT) in f.filename]
        outcome = f"{type(error).__name__} in {ours[-1:]}: {errors.first_line(error)[:150]}"
    printed = (out.buffer.getvalue() + said.buffer.getvalue()).decode()
    steering = re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)
    return f"{outcome}, and printed {steering[0]!r}" if steering else outcome


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(name: str, batch: list, report) -> None:
    """A child tries each case: outcome, seconds, and by how many bytes its peak of memory rose."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Rust's panics speak
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for _, content in batch:
        Path(name).write_bytes(content)
        begun = time.monotonic()
        before = peak()
        signal.alarm(6 * SECONDS)  # of waiting, on a machine that has more to do
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of work
        outcome = attempt(READERS[name])
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        grown = peak() - before
        if grown > 2 * len(content) + ROOM:
            outcome += f", and took {grown >> 20} MB"
        left = [path.name for path in Path().rglob("*") if re.search(r"\.tmp$|^new$", path.name)]
        if left:
            outcome += f", and left {left}"
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
            end = signal.Signals(-status).name if status < 0 else status
            results.append([f"died: {end}", SECONDS, 0])
        for (what, _), result in zip(batch, results, strict=False):
            if what == "good" and result[0] == "refused":
                result[0] = "refused, though it is good"
            yield what, *result
        batch = batch[len(results) :]


def fuzz(name: str, flips: int, cuts: int, seed: int) -> list:
    """Every case of one reader, in a folder of its own."""
    folder = HOME / f"work-{name.replace('/', '-')}"
    shutil.copytree(HOME, folder, ignore=shutil.ignore_patterns("work-*"))
    os.chdir(folder)
    drawn = cases(name, flips, cuts, random.Random(f"{seed} {name}"))
    results = []
    while batch := [*itertools.islice(drawn, BATCH)]:
        results += tried(name, batch)
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
    job = functools.partial(fuzz, flips=flips, cuts=given.cuts, seed=given.seed)
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for name, results in zip(names, pool.imap(job, names, chunksize=1), strict=True):
            counts = collections.Counter(outcome for _, outcome, _, _ in results)
            taken, refused = counts.pop("taken", 0), counts.pop("refused", 0)
            failed += counts.total()
            seconds, what = max((seconds, what) for what, _, seconds, _ in results)
            row = (
                f"{name:<40} | {len(results):>5} | {taken:>5} | {refused:>7} | {counts.total():>6}"
            )
            print(f"{row} | {seconds:.1f} s, {what[:20]}", flush=True)
            for outcome, count in counts.most_common():
                examples = "; ".join([what for what, found, *_ in results if found == outcome][:3])
                print(f"    {count} x {outcome}: {examples}".replace(str(HOME), "HOME"), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
