"""Texts to classify: from the command line, a file, standard input, a prompt.

A text is a tuple of one string, or of the two of a pair. In a line of a file the two of a pair
stand with a tab between them.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from support import errors
from support.errors import InputError

Text = tuple[str, ...]

DEMO = [
    "a gripping, beautifully acted film that stays with you",
    "two hours of my life that nobody will give back",
    "not bad at all, though it takes its time",
    "the plot is thin, the jokes are thinner",
]


def read_lines(name: str, pairs: bool) -> list[Text]:
    """The lines of a UTF-8 file, or of standard input for "-"; with `pairs` two texts a line."""
    where = "standard input" if name == "-" else name
    with errors.reading(where):
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    return checked([split_line(line, pairs) for line in lines], f"{where}: line")


def split_line(line: str, pairs: bool) -> Text:
    return tuple(line.split("\t")) if pairs else (line,)


def checked(texts: list[Text], where: str = "text") -> list[Text]:
    """The texts. Raises InputError for one with nothing in it, or with more than a pair."""
    for number, text in enumerate(texts, 1):
        if not all(map(is_text, text)):
            raise InputError(f"{where} {number} is empty, or no UTF-8; give a text to classify")
        if len(text) > 2:
            raise InputError(f"{where} {number} has {len(text)} texts; a pair has one tab in it")
    return texts


def is_text(value) -> bool:
    """Whether a value is a string with something in it that can be written as UTF-8."""
    if not isinstance(value, str) or not value.strip():
        return False
    return value.isascii() or not re.search("[\ud800-\udfff]", value)  # half a surrogate pair


def refuse_other_kind(name: str, config, texts: list[Text]) -> None:
    """Raises InputError for single texts where the model `name` takes pairs, or the reverse."""
    for number, text in enumerate(texts, 1):
        if len(text) == 1 and config.text_pairs:
            hint = "give --pair TEXT TEXT, or lines with a tab between the two"
            raise InputError(f"text {number}: {name} classifies pairs of texts; {hint}")
        if len(text) == 2 and (config.text_pairs is False or config.type_vocab_size < 2):
            raise InputError(f"{name} classifies single texts, not pairs; leave out --pair")


def prompt(answer: Callable[[str], None], switch: Callable[[str], None]) -> None:
    """Asks for texts until the end of the input: answer(text), or switch(name) for "/adapter NAME".

    An error of either costs a line and no more.
    """
    print("Type a text; /adapter NAME switches; exit, quit or Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
            if line in ("exit", "quit"):
                return
            command, _, name = line.partition(" ")
            if command == "/adapter":
                switch(name.strip())
            elif line:
                answer(line)
        except EOFError:
            print(file=sys.stderr)
            return
        except BrokenPipeError:
            raise
        except Exception as error:
            errors.complain(error)
