"""Errors in one line: what a user reads when a file, a flag or a folder cannot be used."""

import contextlib
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What could steer a terminal, or turn the direction of writing, as JSON writes it.
CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
ESCAPES = {code: f"\\u{code:04x}" for code in CONTROLS}
ESCAPES_IN_LINES = ESCAPES | {ord("\t"): "\t", ord("\n"): "\n"}
# What CUDA and MPS, cuBLAS and cuDNN, the CPU's allocator, C++, PyTorch, oneDNN, the loader and
# OpenMP say.
OUT_OF_MEMORY = (
    "(?i)out of memory|STATUS_ALLOC_FAILED|allocate memory|bad_alloc|size calculation overflowed"
    "|could not create a primitive|failed to map segment|launch worker thread|start new thread"
)
shared_store: Any = None  # of torchrun's processes, where parallel.start has joined them


class InputError(ValueError):
    """A user has a choice to make; the message is the one line that they read."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, on a device or here, or a size that no memory has."""
    if isinstance(error, ValueError):
        return False
    return isinstance(error, MemoryError) or bool(re.search(OUT_OF_MEMORY, str(error)))


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def listing(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@contextlib.contextmanager
def reading(path: str | Path):
    """Around the reading of a user's file: InputError names the file, whatever a library raises.

    A plain ValueError that begins with the path keeps its text; want of memory passes as it is.
    """
    try:
        yield
    except Exception as error:  # tokenizers raises bare Exceptions
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        if type(error) is ValueError and str(error).startswith(str(path)):
            raise InputError(str(error)) from error
        file = getattr(error, "filename", None) or path  # one in the folder `path`
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: cannot be read ({reason})") from error


def plain(text: str) -> str:
    """The text in one line, its control characters as JSON writes them: \\u001b."""
    return text.translate(ESCAPES)


def say(text: str) -> None:
    """Prints lines that a terminal can bear. A run outlives its output: nothing is raised."""
    with contextlib.suppress(OSError):
        print(text.translate(ESCAPES_IN_LINES))


def explain_from_here(name: str) -> None:
    """Makes one line of what ends the program `name` before its run_main, as a Ctrl-C does while
    it imports. A module that is only imported changes nothing."""

    def leave(kind, error, trace) -> None:
        os._exit(end(error))

    if name == "__main__":
        sys.excepthook = leave


def run_main(main) -> None:
    """Runs a program's main(). Every error becomes one line on stderr, and exit status 2.

    Texts are printed in UTF-8, and what it has no form for as \\ud83d, so that JSON stays JSON.
    """
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    for stream in streams:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    status = 0
    try:
        main()
    except BaseException as error:  # not Exception: a panic in Rust is none
        status = end(error)
    for stream in streams:
        try:
            stream.flush()
        except OSError:  # nobody takes the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    is_program = main is getattr(sys.modules["__main__"], "main", None)  # else its caller goes on
    if (status and is_program) or os.environ.get("WORLD_SIZE", "1") != "1":
        # On the usual way out a library's thread may abort the process: Arrow's, which still reads
        # a table that was refused, and of torchrun's processes PyTorch's (2.13).
        os._exit(status)
    if status:
        sys.exit(status)


def end(error: BaseException) -> int:
    """The exit status of a program that ends so; it prints the line that says why."""
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):  # the reader of the output (head, less) has left
        return 0
    complain(error)
    return 2


def complain(error: BaseException) -> None:
    """Prints the one line that says what went wrong; of several processes one prints it."""
    line = plain(" ".join(explain(error).splitlines()))
    with contextlib.suppress(Exception):  # the store may be lost
        if shared_store and shared_store.add(line, 1) > 1:
            time.sleep(0.5)  # torchrun ends the other, which prints it, when this one has ended
            return
    with contextlib.suppress(OSError):
        if os.environ.get("BERT_LORA_DEBUG"):
            traceback.print_exception(error)
        if sys.stderr:  # else it would be printed among the answers
            print(f"error: {line}\n", end="", file=sys.stderr)  # in one piece


def explain(error: BaseException) -> str:
    what = first_line(error)
    if is_out_of_memory(error):
        less = "a smaller --rank, --batch-size or --max-length, --gradient-checkpointing"
        return f"out of memory ({what}): try {less}, or a machine (or a limit, ulimit -v) with more"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile failed: {what}; --compile no does without"
    if isinstance(error, ValueError):
        return str(error) or what
    if isinstance(error, OSError):
        return f"{error.filename or 'writing'}: {error.strerror or what}"
    if isinstance(error, ImportError):
        return f"{what}: install what requirements.txt lists, or start with `make train`"
    return f"{type(error).__name__}: {what}. Please report it, with what BERT_LORA_DEBUG=1 shows"
