"""Texts to classify: how they are read, and what is refused."""

import io
import os
import pty
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT

from runtime import texts
from support.errors import InputError

LINES = "a film\nnaïve 中文\tand 👩‍👩‍👧\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "open"])
def test_lines_of_a_file_and_of_standard_input(tmp_path, monkeypatch, ends, mark, last):
    content = mark + (LINES if last else LINES[:-1]).replace("\n", ends).encode()
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    expected = [("a film",), ("naïve 中文\tand 👩‍👩‍👧",)]
    assert texts.read_lines(str(path), pairs=False) == expected
    assert texts.read_lines("-", pairs=False) == expected


def test_what_is_no_end_of_a_line_stays_in_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\x0bb\x85c\u2028d\n", encoding="utf-8")
    assert texts.read_lines(str(path), pairs=False) == [("a\x0bb\x85c\u2028d",)]


def test_pairs_stand_with_a_tab_between(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("he slept\the is awake\na\tb\n")
    assert texts.read_lines(str(path), pairs=True) == [("he slept", "he is awake"), ("a", "b")]


@pytest.mark.parametrize(
    "content, pairs, problem",
    [
        (b"good\ncaf\xe9\n", False, "a.txt: cannot be read"),
        (b"good\n\nbad\n", False, "a.txt: line 2 is empty"),
        (b"good\n \t\n", False, "a.txt: line 2 is empty"),
        (b"", False, "a.txt: line 1 is empty"),
        (b"a\tb\na\t \n", True, "a.txt: line 2 is empty"),
        (b"a\tb\na\tb\tc\n", True, "a.txt: line 2 is empty, no UTF-8, or more than a pair"),
    ],
    ids=range(6),
)
def test_a_bad_line_is_named(tmp_path, content, pairs, problem):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{tmp_path}/{problem}"):
        texts.read_lines(str(path), pairs)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.txt: cannot be read \(No such file"):
        texts.read_lines(f"{tmp_path}/nowhere.txt", pairs=False)


@pytest.mark.parametrize("text", [("",), (" \n",), ("a", "\u3000"), ("\u200b\0",), ("caf\udce9",)])
def test_a_text_with_nothing_that_can_be_read_is_refused(text):
    with pytest.raises(InputError, match="text 2 is empty, no UTF-8, or more"):
        texts.checked([("good",), text])


@pytest.mark.parametrize("value", [None, 5, b"a", ["a"], "", "\ufeff", "\ud800", "a \udfff"])
def test_what_is_no_text(value):
    assert not texts.is_text(value)
    assert texts.is_text("naïve \U0001f469")


def test_single_texts_and_pairs_are_not_confused():
    of_pairs = SimpleNamespace(text_pairs=True, type_vocab_size=2)
    of_single = SimpleNamespace(text_pairs=False, type_vocab_size=2)
    unknown = SimpleNamespace(text_pairs=None, type_vocab_size=2)
    one_segment = SimpleNamespace(text_pairs=None, type_vocab_size=1)
    single, pair = ("a film",), ("he slept", "he is awake")
    for config, given in (of_pairs, pair), (of_single, single), (unknown, pair), (unknown, single):
        texts.refuse_other_kind("out/best", config, [given])
    texts.refuse_other_kind("out/best", one_segment, [single])
    with pytest.raises(InputError, match="text 2: out/best classifies pairs of texts; give --pair"):
        texts.refuse_other_kind("out/best", of_pairs, [pair, single])
    for config in of_single, one_segment:
        with pytest.raises(InputError, match="out/best classifies single texts, not pairs"):
            texts.refuse_other_kind("out/best", config, [pair])


# The prompt.


@pytest.mark.parametrize("end", [[], ["exit", "after"], ["quit", "after"]])
def test_the_prompt_takes_lines_until_the_end(monkeypatch, end):
    lines = ["great film", "", "  ", "/adapter you/cola ", " exit the building ", *end]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert [*texts.typed()] == ["great film", "/adapter you/cola", "exit the building"]


def test_what_goes_wrong_is_said_and_forgiven(capsys):
    with texts.forgiven():
        raise InputError("a\x1b[31m\nlong story")
    assert capsys.readouterr().err == "error: a\\u001b[31m long story\n"
    with pytest.raises(BrokenPipeError), texts.forgiven():
        raise BrokenPipeError


PROMPT = """
from runtime import texts
from support import errors

def main():
    for line in texts.typed():
        with texts.forgiven():
            print(line)

errors.run_main(main)
"""


@pytest.mark.parametrize(
    ("redirect", "says"), [(">/dev/full", "No space left"), (">&-", "is closed"), ("2>&-", "")]
)
def test_a_prompt_whose_answers_are_lost_ends(redirect, says):
    """On a terminal: one line and status 2, and no second question."""
    command = f"{sys.executable} -W ignore -c {shlex.quote(PROMPT)} {redirect}"
    theirs, ours = pty.openpty()
    os.write(theirs, b"great film\nanother\n")
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, stdin=ours, capture_output=True, text=True, timeout=60
    )
    os.close(ours)
    os.close(theirs)
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 2 and not done.stdout, done
    assert len(lines) == bool(says) and says in "".join(lines), done


def test_a_string_is_no_list_of_texts():
    config = SimpleNamespace(text_pairs=False, type_vocab_size=2)
    with pytest.raises(InputError, match=r"text 1: expected a tuple, as in \[\('g',\)\]"):
        texts.refuse_other_kind("out/best", config, "great film")
