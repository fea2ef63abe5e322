"""How the columns of a .csv or .tsv are parted: by which sign, and quoted or not."""

import io
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from support.encodings import open_utf8

BLOCK = 2**22  # bytes: no row is longer
USUAL = {".csv": ",", ".tsv": "\t"}
SEPARATORS = ",;\t|"
SEP_LINE = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([,;|\t])"?\n?')  # Excel's own first line
# A file in which each quotation mark is a sign of quoting. Nothing in it is tried twice, so that
# the time grows with the length alone.
QUOTED = re.compile(
    rb'(?:\xef\xbb\xbf)?(?:(?:"[^"]*+(?:""[^"]*+)*+"|[^"\t\r\n]*+)(?:[\t\r\n]|\Z))*+'
)
# Such a mark in the first line, or around a field that needs it.
QUOTES = re.compile(rb'\A[^\n]*"|[\t\r\n]"[^"\t\r\n]*+(?:""|[\t\r\n])')


@dataclass(frozen=True)
class Dialect:
    separator: str
    is_quoted: bool = True
    skipped: int = 0  # lines before the names of the columns

    def open(self, path: Path, names=None, columns=None) -> csv.CSVStreamingReader:
        """Batches of rows. With `names` these are the columns' own, and all columns are texts;
        with `columns` there are these alone."""
        read = csv.ReadOptions(
            block_size=BLOCK,
            skip_rows=self.skipped,
            column_names=names,
            skip_rows_after_names=1 if names else 0,
        )
        parse = csv.ParseOptions(
            delimiter=self.separator,
            quote_char='"' if self.is_quoted else False,
            newlines_in_values=self.is_quoted,
        )
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(names or [], pa.string()),  # "007" is no number
            include_columns=columns,
        )
        return csv.open_csv(open_utf8(path), read, parse, convert)

    def notes(self, path: Path) -> list[str]:
        """What is not usual in how the columns of a file are parted."""
        if self.separator != USUAL[path.suffix]:
            return [f"{path}: {self.separator!r} stands between the columns"]
        if self.is_quoted and path.suffix == ".tsv":
            return [f"{path}: the fields are quoted; the quotation marks are no part of them"]
        return []


def find_dialect(path: Path) -> Dialect:
    """The usual one, unless the first line has another separator, and this one alone."""
    with open_utf8(path) as file:
        first = file.readline(BLOCK).partition(b"\r")[0]
    if told := SEP_LINE.fullmatch(first):
        return Dialect(told[1].decode(), skipped=1)
    usual = USUAL[path.suffix]
    found = [sign for sign in SEPARATORS if sign.encode() in first]
    if len(found) == 1 and found != [usual]:
        return Dialect(found[0])
    return Dialect(usual, is_quoted=path.suffix == ".csv" or is_quoted_tsv(path))


def is_quoted_tsv(path: Path) -> bool:
    """Whether quotation marks are signs of quoting, as in what pandas writes.

    In GLUE's own files they are part of the texts. So every mark has to be a sign of quoting, and
    besides the names of the columns are quoted, or a field that needs it: for a mark within, which
    is doubled, a tab or a line break.
    """
    with open_utf8(path) as file:
        if isinstance(file, io.BytesIO):
            content = file.read()
        else:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # of any size
        return bool(QUOTES.search(content) and QUOTED.fullmatch(content))
