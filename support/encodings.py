"""Files of text: UTF-8, UTF-16 by its mark, and the likely name of what is neither."""

import codecs
import contextlib
import io
import shlex
from pathlib import Path
from typing import BinaryIO

from support.errors import InputError, reading

MARKS = {  # the longer before the shorter, which begins it
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# The commonest characters of what is written in an encoding: decoded by another one, a text has
# hardly any of them. Those of two bytes come first: texts in the others break their rules soon.
WIDE = {
    "BIG5": "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會也你對生能而子得於看好",
    "GB18030": "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会也你对生能而子得于看好",
    "SHIFT_JIS": "のにはをたがでてとしれさいるなかっもくまよ。、",
    "EUC-JP": "のにはをたがでてとしれさいるなかっもくまよ。、",
    "EUC-KR": "이다는을의에가지고하로한은도를기사어나자서",
}
NARROW = {
    "CP1252": "éèêëàâáçñöäüßíóúôîïøåæÉÖÄÜ’‘“”–…€°£",
    "CP1250": "ąęłśżźćńóáéíýčďěňřšťúůžőű’„”–…€",
    "CP1251": "оеаинтсрвлкмдпуяыьгзбчй",
    "KOI8-R": "оеаинтсрвлкмдпуяыьгзбчй",
    "CP1253": "αοιετσνηυρπκμλςάέίόή",
    "CP1254": "ığşçöüİĞŞÇÖÜ’“”",
}


def open_utf8(path: Path) -> BinaryIO:
    """The bytes of a text file as UTF-8, as they stand, or of UTF-16 or UTF-32 with its mark.

    What has a mark comes from a spreadsheet, and is small enough to be held in memory. Raises
    InputError for UTF-16 without its mark.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    for mark, name in MARKS.items():
        if start.startswith(mark):
            return io.BytesIO(path.read_bytes().decode(name).encode())
    if start.count(0) == 2:  # of two letters
        raise convert(path, "UTF-16BE" if start[0] == 0 else "UTF-16LE")
    return open(path, "rb")


@contextlib.contextmanager
def reading_text(path: Path):
    """errors.reading(path), whose InputError names the likely encoding of what is no UTF-8."""
    try:
        with reading(path):
            yield
    except InputError:
        refuse_other(path)
        raise


def refuse_other(path: Path) -> None:
    """Raises InputError for a file with what is no UTF-8 in it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with reading(path), open_utf8(path) as file:
        while lines := file.readlines(2**20):
            try:
                decoder.decode(b"".join(lines))
            except UnicodeDecodeError:
                name = likely(b"".join(lines))
                raise convert(path, name) from None


def convert(path: Path, name: str) -> InputError:
    new = path.with_stem(f"{path.stem}-utf8")
    command = f"iconv -f {name} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
    return InputError(f"{path}: is no UTF-8, and probably {name}; convert it: {command}")


def likely(sample: bytes) -> str:
    """The encoding in which most characters beyond ASCII are common ones of its languages."""
    for names in WIDE, NARROW:
        shares = {name: share(sample, name, common) for name, common in names.items()}
        best = max(shares, key=shares.__getitem__)
        if shares[best] > 0:
            return best
    return "CP1252"


def share(sample: bytes, name: str, common: str) -> float:
    try:
        text = sample.decode(name, "strict" if name in WIDE else "replace")
    except UnicodeDecodeError:
        return 0.0
    foreign = [character for character in text if not character.isascii()]
    return sum(character in common for character in foreign) / len(foreign)
