"""How a program ends: one line, and a status that says why; and the prompt, which a mistake does
not end."""

import io
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from helpers import ROOT

from support import console
from support.files import InputError

ENDS = {  # what main does, in a real process: the exit status, and what is on standard error
    "pass": (0, ""),
    "raise InputError('a.csv: no\\nrows')": (2, "error: a.csv: no rows\n"),
    "open('/nowhere/x')": (2, "error: /nowhere/x: No such file or directory\n"),
    "raise OSError(28, 'No space left on device')": (
        2,
        "error: writing: No space left on device\n",
    ),
    "raise MemoryError": (2, r"error: out of memory \(MemoryError\): try a smaller --rank, .*\n"),
    "torch.empty(2**50)": (2, r"error: out of memory \(.*can't allocate memory.*\): try .*\n"),
    "raise OSError(12, 'Cannot allocate memory')": (2, r"error: out of memory .*\n"),
    "open('\\udcff\\ud800')": (2, "error: 'utf-8' codec .*LC_ALL=C.UTF-8.*\n"),
    "import numby": (
        2,
        "error: No module named 'numby': install what requirements.txt lists, .*\n",
    ),
    "[][0]": (
        2,
        "error: IndexError: list index out of range. .* report it, with what BERT_LORA_DEBUG=1 shows\n",
    ),
    "raise GeneratorExit('a\\x1b[31mb')": (2, r"error: GeneratorExit: a\\u001b\[31mb\. .*\n"),
    "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)": (130, ""),
    "stop = catch_signals(); os.kill(os.getpid(), 15); print(stop[0], file=sys.stderr)": (
        0,
        "15\n",
    ),
    "catch_signals(); os.kill(os.getpid(), 15); os.kill(os.getpid(), 15)": (-signal.SIGTERM, ""),
}


@pytest.mark.parametrize("body", ENDS)
def test_ends(body):
    code = f"""
import os, signal, sys, time, torch
from support.console import catch_signals, run_main
from support.files import InputError
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests are run in the background
def main():
    {body}
run_main(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    status, said = ENDS[body]
    assert (done.returncode, done.stdout) == (status, "") and re.fullmatch(said, done.stderr), (
        done.stderr
    )


def test_a_line_is_read_when_it_is_printed_and_not_at_the_end():
    code = "import time; from support.console import run_main; run_main(lambda: (print('now'), time.sleep(60)))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    ) as process:
        timer = threading.Timer(30, process.kill)
        timer.start()
        assert process.stdout.readline() == b"now\n"
        timer.cancel()
        process.kill()


def test_a_file_does_not_get_the_number_of_a_closed_stream():
    """What a library prints to standard error would be written into it."""
    code = "from support.console import run_main; run_main(lambda: exit(open('/dev/null').fileno() < 3))"
    assert (
        subprocess.run(
            ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code], cwd=ROOT
        ).returncode
        == 0
    )


def test_a_reader_that_has_had_enough_ends_nothing_loudly(tmp_path):
    code = "from support.console import run_main; run_main(lambda: [print('x' * 1000) for _ in range(10000)])"
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mistake_does_not_end_the_prompt(monkeypatch, capsys):
    lines = "good\n\nbad\n/adapter  other \n/adapter nowhere\nlast\nexit\nlate"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    done = []

    def note(what: str) -> None:
        done.append(what)
        if what in ("bad", "nowhere"):
            raise {"bad": InputError, "nowhere": RuntimeError}[what](f"{what} is refused")

    console.prompt(note, note)
    assert done == ["good", "bad", "other", "nowhere", "last"]
    assert capsys.readouterr().err.count("error: ") == 2


def test_the_command_to_resume(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--config", "run.toml", "--overwrite"]
    )  # or the file says overwrite
    assert (
        console.command_to_resume("my run") == f"{sys.executable} train.py --resume '--out=my run'"
    )
