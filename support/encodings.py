"""Files of text: UTF-8, UTF-16 by its mark, and the likely name of what is neither."""

import codecs
import contextlib
import io
import shlex
from functools import partial
from pathlib import Path
from typing import BinaryIO

from support.errors import InputError, reading

MARKS = {  # the longer before the shorter, which begins it
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
# The commonest characters of what is written in an encoding: decoded by another one, a text has
# hardly any of them.
COMMON = {
    "CP1252": "éèêëàâáçñöäüßíóúôîïøåæÉÖÄÜ’‘“”–…€°£",
    "CP1250": "ąęłśżźćńóáéíýčďěňřšťúůžőű’„”–…€",
    "CP1251": "оеаинтсрвлкмдпуяыьгзбчй",
    "CP1253": "αοιετσνηυρπκμλςάέίόή",
    "CP1254": "ığşçöüİĞŞÇÖÜ’“”",
    "KOI8-R": "оеаинтсрвлкмдпуяыьгзбчй",
    "BIG5": "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會也你對生能而子得於看好",
    "GB18030": "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会也你对生能而子得于看好",
    "SHIFT_JIS": "のにはをたがでてとしれさいるなかっもくまよ。、",
    "EUC-JP": "のにはをたがでてとしれさいるなかっもくまよ。、",
    "EUC-KR": "이다는을의에가지고하로한은도를기사어나자서",
}


def open_utf8(path: Path) -> BinaryIO:
    """The bytes of a text file as UTF-8, as they stand, or of UTF-16 or UTF-32 with its mark.

    What has a mark comes from a spreadsheet, and is small enough to be held in memory.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    for name, marks in MARKS.items():
        if start.startswith(marks):
            return io.BytesIO(path.read_bytes().decode(name).encode())
    return open(path, "rb")


@contextlib.contextmanager
def reading_table(path: Path):
    """errors.reading(path), whose InputError names the likely encoding of what is no UTF-8."""
    try:
        with reading(path):
            yield
    except InputError:
        if path.suffix != ".parquet":
            refuse_other(path)
        raise


def refuse_other(path: Path) -> None:
    """Raises InputError for a file with what is no UTF-8 in it."""
    with reading(path), open_utf8(path) as file:
        while lines := b"".join(file.readlines(2**20)):
            try:
                lines.decode()
            except UnicodeDecodeError:
                name = max(COMMON, key=partial(likelihood, lines))
                old, new = map(shlex.quote, [str(path), str(path.with_stem(f"{path.stem}-utf8"))])
                command = f"iconv -f {name} -t UTF-8 {old} > {new}"
                problem = f"is no UTF-8, and probably {name}; convert it: {command}"
                raise InputError(f"{path}: {problem}") from None


def likelihood(sample: bytes, name: str) -> float:
    """How common the characters beyond ASCII are; the fewer there are, each of more bytes, the
    less it is by chance."""
    try:
        foreign = [character for character in sample.decode(name) if not character.isascii()]
    except UnicodeDecodeError:
        return 0.0
    return sum(character in COMMON[name] for character in foreign) / len(foreign) ** 2
