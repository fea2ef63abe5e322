"""Texts to classify: from a file, standard input, a prompt; and what a model makes of them.

A text is a tuple of one string, or of the two of a pair, with a tab between them in a line.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from data import Encoded, batches_by_length, predict
from support import errors
from support.errors import InputError
from support.visible import is_blank

Text = tuple[str, ...]


def read(given, pairs: bool) -> list[Text] | None:
    """The texts that sample.py's options give, or None where it is to ask for them."""
    if given.pair:
        return checked([tuple(pair) for pair in given.pair])
    if given.texts not in ([], ["-"]):
        return checked([(text,) for text in given.texts])
    if not given.file and sys.stdin is None:
        raise InputError("standard input is closed; give texts, or --file")
    if given.file or given.texts or not sys.stdin.isatty():
        return read_lines(given.file or "-", pairs)
    return None


def read_lines(name: str, pairs: bool) -> list[Text]:
    """The lines of a UTF-8 file, or of standard input for "-"; with `pairs` two texts a line."""
    where = "standard input" if name == "-" else name
    with errors.reading(where):
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n")
    return checked([split_line(line, pairs) for line in text.split("\n")], f"{where}: line")


def split_line(line: str, pairs: bool) -> Text:
    return tuple(line.split("\t")) if pairs else (line,)


def checked(texts: list[Text], where: str = "text") -> list[Text]:
    """The texts. Raises InputError for one with nothing in it, or with more than a pair."""
    for number, text in enumerate(texts, 1):
        if not all(map(is_text, text)) or len(text) > 2:
            raise InputError(f"{where} {number} is empty, no UTF-8, or more than a pair")
    return texts


def is_text(value) -> bool:
    """Whether a value is a string of UTF-8 in which something can be seen."""
    try:
        return bool(value.encode()) and not is_blank(value)
    except (AttributeError, UnicodeEncodeError):
        return False


def refuse_other_kind(name: str, config, texts: list[Text]) -> None:
    """Raises InputError for single texts where the model `name` takes pairs, or the reverse."""
    for number, text in enumerate(texts, 1):
        if isinstance(text, str):
            raise InputError(f"text {number}: expected a tuple, as in [({text!r:.40},)]")
        is_pair = len(text) == 2
        if config.text_pairs not in (None, is_pair) or (is_pair and config.type_vocab_size < 2):
            kind = "single texts, not pairs" if is_pair else "pairs of texts; give --pair, or tabs"
            raise InputError(f"text {number}: {name} classifies {kind}")


def compute_logits(model, encoded: Encoded, batch_tokens: int | None = None) -> Tensor:
    """The logits (N, C) of encoded texts, by a Model of sample.py, in batches of similar length.

    Raises InputError where they are no finite numbers.
    """
    encoded = model.placement.move(encoded)
    batches = batches_by_length(encoded.lengths, batch_tokens or model.placement.batch_tokens)
    logits = predict(model.network, encoded, batches, model.placement.autocast)  # (N, C)
    if not logits.isfinite().all():
        raise InputError(f"{model.name}: gives no finite numbers; its weights are damaged")
    return logits


def typed() -> Iterator[str]:
    """The lines that a user types at a prompt, without blank ones, until the end."""
    if None in (sys.stdout, sys.stderr):
        raise InputError("a prompt needs standard output and error, and one of them is closed")
    print("Type a text; /adapter NAME switches; exit, quit or Ctrl-D leaves.", file=sys.stderr)
    while True:
        line = ""
        try:
            line = input("> ").strip()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            errors.complain(error)
        if line in ("exit", "quit"):
            return
        if line:
            yield line


@contextlib.contextmanager
def forgiven():
    """What goes wrong inside costs a line: it is said, and the program goes on."""
    try:
        yield
    except OSError:  # the answers cannot be written
        raise
    except Exception as error:
        errors.complain(error)
