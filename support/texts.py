"""Texts to classify: from the command line, a file or standard input, each of them checked."""

import sys
from pathlib import Path

from support.files import InputError

DEMO = [
    "a gripping, beautifully acted film that stays with you",
    "two hours of my life that nobody will give back",
    "not bad at all, though it takes its time",
    "the plot is thin, the jokes are thinner",
]


def given_texts(texts: list[str], file: str | None) -> list[str]:
    """The texts of a command line, of a file, or of standard input: for "-", and for none where no person types."""
    if file or texts == ["-"]:
        return read_lines(file or "-")
    if texts:
        return checked_texts(texts)
    return [] if sys.stdin.isatty() else read_lines("-")


def read_lines(name: str) -> list[str]:
    """The lines of a UTF-8 file, or of standard input for "-", each of them a text."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    return checked_texts(lines, f"{'standard input' if name == '-' else name}: line")


def checked_texts(texts: list[str], where: str = "text") -> list[str]:
    """The texts, or InputError for one that is empty or no Unicode."""
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InputError(f"{where} {number} is empty; give a text to classify")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{where} {number} is not UTF-8 text")
    if not texts:
        raise InputError(f"{where} 1 is missing; give a text to classify")
    return texts
