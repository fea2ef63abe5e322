"""Every program with every kind of terminal: streams that are closed or full, encodings that lack
what is to be said.

Each case is a real process. A training never ends because of what it prints to; the other programs
end quietly where their reader has had enough, and with one line where their output is lost.
"""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from safetensors.torch import load_file
from torch import equal

TEXT = "naïve, 素敵 😀 and \x1b[31mred"
NAMES = ["naïve \x9b31m", "\x1b]0;owned\x07good\nforged  99.9%"]
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FINE, LOST = (0, r""), (2, r"error: standard output: [^\n]+\n")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "reviews.jsonl"
    rows = [{"text": f"text number {i}", "label": NAMES[i % 2]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(quick, table, tmp_path_factory) -> Path:
    """A run with every stream in order; its adapter's classes have hostile names."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    quick(out, "--data", table)
    return out


@pytest.fixture
def programs(undisturbed, table, tiny, tmp_path):
    small = ["--max-length", 16, "--epochs", 1, "--batch-size", 16, "--device", "cpu"]
    adapter = ["--adapter", undisturbed / "best"]
    return {
        "train": ["train.py", "--model", tiny, "--data", table, *small, "--out", tmp_path / "out"],
        "sample": ["sample.py", *adapter, TEXT],
        "json": ["sample.py", *adapter, "--json", TEXT],
        "help": ["sample.py", "--help"],
        "standard input": ["sample.py", *adapter],
        "merge": ["lora.py", "merge", undisturbed / "best", tmp_path / "naïve"],
    }


def in_shell(command: list, redirected: str = "", **env) -> tuple[int, bytes, str]:
    """The exit status of a program whose streams a shell has redirected, and what came out of the
    other ones."""
    shell = [
        "bash",
        "-c",
        f'"$@" {redirected}; exit ${{PIPESTATUS[0]}}',
        "bash",
        sys.executable,
        *map(str, command),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"} | env
    done = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.parametrize("program, redirected, end", [
    ("train", "| head -1", FINE),
    ("train", "> /dev/full 2>&1", FINE),
    ("train", "<&- >&- 2>&-", FINE),
    ("sample", "| (exec <&-; sleep 1)", FINE),
    ("sample", "> /dev/full", LOST),
    ("sample", ">&-", LOST),
    ("sample", "2>&-", FINE),
    ("sample", "<&- 2> /dev/full", FINE),
    ("help", "> /dev/full", LOST),
    ("help", "| true", FINE),
    ("standard input", "<&-", (2, r"error: standard input: line 1 is missing[^\n]+\n")),
    ("standard input", "<&- 2>&-", (2, r"")),
    ("merge", "> /dev/full", LOST),
    ("merge", "<&- >&- 2>&-", (2, r"")),
])  # fmt: skip
def test_streams(programs, undisturbed, tmp_path, program, redirected, end):
    status, _, error = in_shell(programs[program], redirected)
    assert status == end[0] and re.fullmatch(end[1], error), (status, error)
    if program == "train":
        ours, theirs = (
            load_file(out / "final/adapter_model.safetensors")
            for out in (tmp_path / "out", undisturbed)
        )
        assert all(equal(ours[name], theirs[name]) for name in theirs)
        log = (tmp_path / "out" / "training_log.txt").read_text(encoding="utf-8")
        assert "best validation accuracy" in log and not CONTROL.search(log)
    if program == "merge":
        assert (tmp_path / "naïve" / "model.safetensors").exists()


@pytest.mark.parametrize("program, encoding", [
    *(("sample", encoding) for encoding in ENCODINGS), *(("json", encoding) for encoding in ENCODINGS),
    ("merge", "ascii"), ("merge", "C"), ("train", "C"),
])  # fmt: skip
def test_encodings(programs, program, encoding):
    status, said, error = in_shell(programs[program], **ENCODINGS[encoding])
    assert (status, error) == (0, "")
    said = said.decode("latin-1" if encoding == "latin-1" else "utf-8")
    assert not CONTROL.search(said) and said.isascii() == (encoding in ("ascii", "C"))
    if program == "sample":
        assert said.count("\n") == 1 and said.split("  ")[-1].startswith("na")
    if program == "json":
        answer = json.loads(said)
        assert answer["text"] == TEXT and list(answer["scores"]) == sorted(NAMES)


@pytest.mark.parametrize("encoding", ["C", "UTF-8"])
def test_the_prompt(programs, encoding):
    """A text in UTF-8, one that is none, a name that is too long, and the way out."""
    screen, terminal = pty.openpty()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | ENCODINGS[encoding]
    command = [sys.executable, *map(str, programs["standard input"])]
    streams = {"stdin": terminal, "stdout": terminal, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **streams)
    os.close(terminal)
    lines = [
        "naïve 😀",
        "caf\udce9",
        "/adapter " + "x" * 300,
        "/adapter a\x01b",
        "dull \x1b[31mfilm",
        "exit",
        "late",
    ]
    os.write(screen, "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
    said = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(screen, 4096):
            said += chunk
    errors = process.stderr.read().decode()
    assert process.wait(60) == 0, errors
    assert re.findall(r"\.\d%  (na|dull|late|caf)", said.decode(errors="replace")) == [
        "na",
        "dull",
    ], said
    assert (
        errors.count("error: ") == 3
        and "File name too long" in errors
        and "Traceback" not in errors
    ), errors


@pytest.mark.parametrize("debug", ["", "1"])
def test_what_nobody_foresaw_is_one_line_and_a_traceback_for_developers(debug):
    code = "from support.console import run_main; run_main(lambda: {}['\\x1b[31mkey'])"
    status, said, error = in_shell(["-c", code], BERT_LORA_DEBUG=debug)
    *before, last = error.splitlines()
    assert (status, said) == (2, b"")
    assert re.fullmatch(
        r"error: KeyError: '\\x1b\[31mkey'\. .*report it.*BERT_LORA_DEBUG=1.*", last
    )
    assert bool(debug) == bool(before) == ("Traceback" in error)
