"""How a program ends: one line, and a status that says why; and the prompt, which a mistake does not end."""

import io
import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from support import console
from support.files import InputError

ENDS = {  # what main does, in a real process: the exit status, and what is on standard error
    "pass": (0, ""),
    "raise InputError('a.csv: no\\nrows')": (2, "error: a.csv: no rows\n"),
    "open('/nowhere/x')": (2, "error: /nowhere/x: No such file or directory\n"),
    "raise OSError(28, 'No space left on device')": (2, "error: writing: No space left on device\n"),
    "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)": (130, ""),
    "stop = catch_signals(); os.kill(os.getpid(), 15); print(stop[0], file=sys.stderr)": (0, "15\n"),
    "catch_signals(); os.kill(os.getpid(), 15); os.kill(os.getpid(), 15)": (-signal.SIGTERM, ""),
}


@pytest.mark.parametrize("body", ENDS)
def test_ends(body):
    code = f"""
import os, signal, sys, time
from support.console import catch_signals, run_main
from support.files import InputError
def main():
    {body}
run_main(main)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (*ENDS[body], "")


def test_a_reader_that_has_had_enough_ends_nothing_loudly(tmp_path):
    code = "from support.console import run_main; run_main(lambda: [print('x' * 1000) for _ in range(10000)])"
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mistake_does_not_end_the_prompt(monkeypatch, capsys):
    lines = "good\n\nbad\n/adapter  other \n/adapter nowhere\nlast"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    done = []

    def note(what: str) -> None:
        done.append(what)
        if what in ("bad", "nowhere"):
            raise InputError(f"{what} is refused")

    console.prompt(note, note)
    assert done == ["good", "bad", "other", "nowhere", "last"]
    assert capsys.readouterr().err.count("error: ") == 2


def test_the_command_to_resume(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "run.toml", "--overwrite"])  # or the file says overwrite
    assert console.command_to_resume("my run") == f"{sys.executable} train.py --resume '--out=my run'"
