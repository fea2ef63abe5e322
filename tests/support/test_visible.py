"""What counts as a text with nothing in it."""

import sys
import unicodedata

import pytest

from support.visible import is_blank

BLANK = ["", " ", "\t\r\n", "\0", "\x01", "\x7f", "\x85", "\xa0", "\xad", "\u200b", "\u200d"]
BLANK += ["\ufeff", "\u2060", "\u202e", "\u2028", "\u3000", "\u0301", "\ufe0f", "\u20dd", "\u0903"]
BLANK += ["\u115f\u3164\uffa0", "\u2800", "\ud800", "\U000e0041", " \u200b\0\u0301\ufeff"]
VISIBLE = [
    "a",
    "0",
    ".",
    "-",
    "\u200ba",
    "\ufeff!",
    "e\u0301",
    "中",
    "👩\u200d👧",
    "🫨",
    "\ufffd",
    "\ue000",
]


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_blank(text):
    assert is_blank(text) and is_blank(text * 1000)


@pytest.mark.parametrize("text", VISIBLE, ids=ascii)
def test_visible(text):
    assert not is_blank(text) and not is_blank("\u200b" * 1000 + text)


def test_as_python_prints_it():
    """Of all letters, digits and signs that str.isprintable knows, the fillers alone are blank."""
    signs = filter(str.isprintable, map(chr, range(sys.maxunicode + 1)))
    blank = [c for c in signs if is_blank(c) and unicodedata.category(c)[0] not in "MZ"]
    assert blank == [*"\u115f\u1160\u2800\u3164\uffa0"]
