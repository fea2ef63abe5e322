"""Texts to classify: from the command line, a file or standard input, each of them checked.

A text is a string, or a tuple of two for a pair; in a line the two of a pair stand with a tab between them.
"""

import os
import sys
from pathlib import Path

import numpy as np

from support.files import InputError

DEMO = [
    "a gripping, beautifully acted film that stays with you",
    "two hours of my life that nobody will give back",
    "not bad at all, though it takes its time",
    "the plot is thin, the jokes are thinner",
]


BATCH_TOKENS = (
    1024  # in a batch on a CPU, padding included: docs/scaling.md has the speeds of others
)


def parse(parser):
    """The options of a command line, checked: the parser's, and those of labelling a whole table."""
    group = parser.add_argument_group(
        "labelling a whole table, of any size (the same command goes on after a kill)"
    )
    group.add_argument(
        "--out",
        help="label --file, a .parquet, .csv, .tsv, .jsonl or .txt file, into this new file",
    )
    group.add_argument(
        "--text-column", default="", help="the column of the text, or the two of a pair: a,b"
    )
    group.add_argument(
        "--prefix",
        default="",
        help="put before the names of the added columns label and confidence",
    )
    tokens = f"in a batch, padding included (default: {BATCH_TOKENS} on a CPU, {16 * BATCH_TOKENS} on a GPU)"
    group.add_argument("--batch-tokens", type=int, help=tokens)
    group.add_argument(
        "--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help="(default: auto)"
    )
    dtypes = "of the matrix products (default: auto, bfloat16 on CUDA)"
    group.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help=dtypes
    )
    given = parser.parse_args()
    around = ("text_column", "prefix", "batch_tokens", "device", "dtype")
    if given.out is None:
        if alone := [name for name in around if getattr(given, name) != parser.get_default(name)]:
            raise InputError(f"--{alone[0].replace('_', '-')} is of use with --file and --out only")
        if given.file and given.file.lower().endswith((".parquet", ".csv", ".jsonl")):
            raise InputError(
                f"{given.file}: a table, whose answers need a file of their own: give --out too"
            )
        return given
    others = {
        "texts": given.texts,
        "--pair": given.pair,
        "--demo": given.demo,
        "--json": given.json,
    }
    if beside := [name for name, value in others.items() if value]:
        raise InputError(f"--out labels a whole --file, and goes without {beside[0]}")
    if given.file is None or len(given.adapter or []) > 1:
        lacking = "give the file" if given.file is None else "several were given"
        raise InputError(f"--out labels one whole --file by one --adapter; {lacking}")
    if given.batch_tokens is not None and not 1 <= given.batch_tokens < 2**31:
        raise InputError(f"--batch-tokens {given.batch_tokens} is not at least 1 and below 2**31")
    return given


def batches_by_length(lengths: np.ndarray, batch_tokens: int = 0) -> list[np.ndarray]:
    """Rows of similar length together, the longest first, so that rows · longest ≤ batch_tokens, or one row is."""
    batch_tokens = batch_tokens or BATCH_TOKENS
    order, batches = np.argsort(-lengths, kind="stable"), []
    while len(order):
        rows = max(1, batch_tokens // int(lengths[order[0]]))
        batches.append(order[:rows])
        order = order[rows:]
    return batches


def given_texts(
    texts: list[str], pairs: list[list[str]] | None, file: str | None, demo: bool
) -> list:
    """The texts of a command line, of a file, or of standard input: for "-", and for none where no person types.

    Raises InputError if they are given in two ways at once, as one of them would be left out.
    """
    if len(texts) > 1 and "-" in texts:
        raise InputError(
            '"-" reads standard input, and stands alone; leave it out, or the other texts'
        )
    ways = {"texts": texts or None, "--pair": pairs, "--file": file, "--demo": demo or None}
    if len(given := [way for way, value in ways.items() if value is not None]) > 1:
        raise InputError(f"{' and '.join(given)} are two ways to give texts; take one of them")
    if pairs:
        texts = iter(checked_texts([decoded(text) for pair in pairs for text in pair]))
        return list(zip(texts, texts, strict=True))
    if file is not None or texts == ["-"]:
        return read_lines("-" if file is None else file)
    if texts or demo:
        return checked_texts([decoded(text) for text in texts or DEMO])
    return [] if sys.stdin.isatty() else read_lines("-")


def decoded(text: str) -> str:
    """An argument as the UTF-8 that was typed, where Python took the terminal's encoding for ASCII."""
    try:
        return text if text.isascii() else os.fsencode(text).decode()
    except UnicodeError:
        return text


def fitting(texts: list, config, name: str) -> list:
    """The texts as the model `name` takes them: its config says pairs, single ones, or nothing, and then either goes.

    Raises InputError for a text of the other kind, and for pairs where the model knows no second text.
    """
    if config.text_pairs:
        texts = [tuple(text.split("\t")) if isinstance(text, str) else text for text in texts]
        for number, text in enumerate(texts, 1):
            if len(text) != 2 or not all(part.strip() for part in text):
                hint = "give --pair TEXT TEXT, or lines with one tab between the two"
                raise InputError(f"text {number}: {name} classifies pairs of texts; {hint}")
    elif any(isinstance(text, tuple) for text in texts) and (
        config.text_pairs is False or config.type_vocab_size < 2
    ):
        raise InputError(f"{name} classifies single texts, not pairs; leave out --pair")
    return texts


def columns(texts: list) -> list[list[str]]:
    """One column of texts, or two for pairs."""
    return (
        [list(column) for column in zip(*texts, strict=True)]
        if isinstance(texts[0], tuple)
        else [texts]
    )


def fields(text: str | tuple[str, str]) -> dict[str, str]:
    """A text under the names that Hugging Face's pipelines give it."""
    return (
        {"text": text}
        if isinstance(text, str)
        else dict(zip(("text", "text_pair"), text, strict=True))
    )


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
