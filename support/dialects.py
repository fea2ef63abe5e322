"""How the columns of a .csv or .tsv are parted: by which sign, and quoted or not."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from pyarrow import csv

from support.encodings import open_utf8
from support.errors import InputError

BLOCK = 2**22  # bytes: no row is longer
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEP_LINE = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=([,;|\t])"?\n?')  # Excel's own first line
# A field of a row in which each quotation mark is a sign of quoting, and what is within its marks.
FIELD = re.compile(rb'(?:"((?:[^"]|"")*+)"|[^"\t\r\n]*+)(?:\t|\r?\n|\Z)')


@dataclass(frozen=True)
class Dialect:
    separator: str
    is_quoted: bool = True
    skipped: int = 0  # lines before the names of the columns

    def open(self, path: Path, convert: csv.ConvertOptions | None = None) -> csv.CSVStreamingReader:
        read = csv.ReadOptions(block_size=BLOCK, skip_rows=self.skipped)
        parse = csv.ParseOptions(
            delimiter=self.separator,
            quote_char='"' if self.is_quoted else False,
            newlines_in_values=self.is_quoted,
        )
        return csv.open_csv(open_utf8(path), read, parse, convert)

    def width(self, path: Path) -> int:
        """The number of columns; 0 where a row at the beginning has another number of them."""
        try:
            return len(self.open(path).schema.names)
        except ValueError:
            return 0


def find_dialect(path: Path) -> Dialect:
    """That of commas, of a .tsv of tabs, if these make more than one column.

    Or else that of the one other separator which makes as many columns in every row. Raises
    InputError where there are several of them, or where a separator makes columns in the first
    row alone.
    """
    with open_utf8(path) as file:
        first = file.readline(BLOCK).partition(b"\r")[0]
    if told := SEP_LINE.fullmatch(first):
        return Dialect(told[1].decode(), skipped=1)
    is_tsv = path.suffix == ".tsv"
    usual = Dialect("\t", is_quoted=is_quoted_tsv(path)) if is_tsv else Dialect(",")
    if usual.width(path) > 1:
        return usual
    found = [sign for sign in SEPARATORS if sign.encode() in first]
    if usual.separator in found or not found:
        return usual
    fitting = [sign for sign in found if Dialect(sign).width(path) > 1]
    if len(fitting) == 1:
        return Dialect(fitting[0])
    words = " and ".join(SEPARATORS[sign] for sign in fitting or found)
    where = f"{path}: has {words} between its columns"
    raise InputError(f"{where}, not equally many in every row; texts that hold one need quotes")


def dialect_note(path: Path) -> str:
    """What is not as usual in how the columns of a file are parted, or ""."""
    if path.suffix not in (".csv", ".tsv"):
        return ""
    dialect = find_dialect(path)
    is_tsv = path.suffix == ".tsv"
    if dialect.separator != ("\t" if is_tsv else ","):
        return f"{path}: {SEPARATORS[dialect.separator]} stand between the columns"
    if is_tsv and dialect.is_quoted:
        return f"{path}: the fields are quoted; the quotation marks are no part of them"
    return ""


def is_quoted_tsv(path: Path) -> bool:
    """Whether quotation marks are signs of quoting, as in what pandas writes.

    In GLUE's own files they are part of the texts. So every mark has to be a sign of quoting, and
    besides the names of the columns are quoted, or a field that needs it: for a mark within, which
    is doubled, a tab or a line break.
    """
    needed = False
    record, marks, size = [], 0, 0
    with open_utf8(path) as file:
        for number, line in enumerate(file):
            record.append(line.removeprefix(codecs.BOM_UTF8))
            marks += line.count(b'"')
            size += len(line)
            if marks % 2 and size < BLOCK:  # goes on in the next line
                continue
            if marks:
                fields = quoted_fields(b"".join(record))
                if fields is None:
                    return False
                needed |= number == 0 or any(re.search(rb'["\t\r\n]', field) for field in fields)
            record, marks, size = [], 0, 0
    return needed and not record


def quoted_fields(record: bytes) -> list[bytes] | None:
    """What stands within the marks of a row's quoted fields; None unless all marks are quotes."""
    fields = []
    end = 0
    while end < len(record):
        match = FIELD.match(record, end)
        if match is None:
            return None
        fields.append(match[1] or b"")
        end = match.end()
    return fields
