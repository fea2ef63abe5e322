"""A program and its terminal: what is printed, errors in one line, signals, the progress bar and the log."""

import codecs
import contextlib
import io
import os
import select
import shlex
import signal
import sys
import time
import traceback
from pathlib import Path

from tqdm import tqdm

from support import distributed
from support.files import InputError, first_line, is_out_of_memory

# Standard input, output and error.

CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
OUTPUT = "standard output"


class OutputLost(Exception):
    """Standard output takes no more: its reader has left, or there is no room; with the OSError that says so."""


class Channel(io.FileIO):
    """Standard output or error. After the first failed write the rest is dropped: there is nobody to read it.

    Where `raising` is true, as for the output of a program whose only result it is, that write raises OutputLost.
    """

    raising, lost = False, False

    def write(self, data) -> int:
        try:
            while (
                not self.lost and (written := super().write(data)) is None
            ):  # a terminal set not to block
                select.select((), (self,), ())
            return len(data) if self.lost else written
        except OSError as error:
            self.lost = True
            if self.raising:
                raise OutputLost(error) from None
            return len(data)


class Screen(io.TextIOWrapper):
    """Standard output. Control characters, which could steer a terminal, are shown as JSON writes them: \\u001b."""

    def write(self, text: str) -> int:
        return super().write(text.translate(SHOWN))


SHOWN = {code: escape for code, escape in CONTROLS.items() if chr(code) not in "\t\n"}


def plain(text: str) -> str:
    """The text in one line, without anything that could steer a terminal."""
    return text.translate(CONTROLS)


def escape_as_json(error: UnicodeError) -> tuple[str, int]:
    """Characters that a terminal's encoding lacks: \\u00ef is readable, and in JSON it is the same text."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)), error.end


codecs.register_error("escape_as_json", escape_as_json)


def open_streams() -> None:
    """Makes standard input, output and error ones that can be used, whatever they were when the program was started.

    What was closed takes the place of a file that is empty or takes nothing: were its number left free, the next file
    to be opened would get it, and with it all that is printed. Each line is written at once, in the terminal's
    encoding; what that lacks is escaped. What is typed is read as UTF-8 where that encoding is ASCII.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)
    for name, number, kind in ("stdout", 1, Screen), ("stderr", 2, io.TextIOWrapper):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # not where a test has put its own
            with contextlib.suppress(OSError, AttributeError):
                stream.flush()
            encoding = stream.encoding if stream else "utf-8"
            buffer = io.BufferedWriter(Channel(number, "w", closefd=False))
            setattr(sys, name, kind(buffer, encoding, "escape_as_json", line_buffering=True))
            buffer.raw.raising = name == "stdout"
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    if sys.stdin is sys.__stdin__ or sys.__stdin__ is None:
        ascii_only = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if ascii_only else None, errors="surrogateescape")


def outlive_output() -> None:
    """From here on nothing ends because what it prints finds no reader or no room: its files are the result."""
    for channel in (
        getattr(getattr(stream, "buffer", None), "raw", None) for stream in (sys.stdout, sys.stderr)
    ):
        if isinstance(channel, Channel):
            channel.raising = False


# How a program ends.


def run_main(main) -> None:
    """Runs a program's main(). Every error becomes one line on stderr, and exit status 2.

    A reader of the output that leaves early (head, less) ends the program with status 0.
    """
    open_streams()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit:
        raise
    except BaseException as error:  # not Exception: a panic in Rust is none
        if isinstance(error, OutputLost) and isinstance(error.args[0], BrokenPipeError):
            sys.exit(0)
        complain(error)
        sys.exit(2)
    finally:
        distributed.leave()


def complain(error: BaseException) -> None:
    """Prints the one line that says what went wrong; BERT_LORA_DEBUG=1 shows before it where."""
    if not distributed.may_complain(error):
        return
    if os.environ.get("BERT_LORA_DEBUG"):
        traceback.print_exception(error)
    print("error:", plain(" ".join(explain(error).splitlines())), file=sys.stderr)


def explain(error: BaseException) -> str:
    """What went wrong: in the error's own words if it was foreseen, and else whose fault it is."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OutputLost):
        return f"{OUTPUT}: {error.args[0].strerror}; what was to be printed there is lost"
    if is_out_of_memory(error):
        return (
            f"out of memory ({first_line(error)}): try a smaller --rank, --batch-size, --max-length or base model, "
            "or a machine (or a limit, ulimit -v) with more"
        )
    if isinstance(error, OSError):
        return f"{error.filename or 'writing'}: {error.strerror or first_line(error)}"
    if isinstance(error, ImportError):
        return (
            f"{first_line(error)}: install what requirements.txt lists, or start with `make train`"
        )
    if isinstance(error, UnicodeError):
        return f"{first_line(error)}: give files names in UTF-8, and the terminal a locale of UTF-8 (LC_ALL=C.UTF-8)"
    what = f"{type(error).__name__}: {first_line(error)}"
    return f"{what}. This should not happen: please report it, with what BERT_LORA_DEBUG=1 shows"


def catch_signals() -> list[int]:
    """The list into which the first SIGINT or SIGTERM goes; a second one ends the process at once.

    Under torchrun a second one is nothing: it sends on what the whole group of processes has got already.
    """
    stop: list[int] = []

    def note(number: int, _) -> None:
        stop.append(number)
        signal.signal(
            number, signal.SIG_IGN if "TORCHELASTIC_RUN_ID" in os.environ else signal.SIG_DFL
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return stop


def command_to_resume(out: str) -> str:
    """The command line that goes on with the run in `out`."""
    return shlex.join([*distributed.launcher(), sys.argv[0], "--resume", f"--out={out}"])


def prompt(answer, switch) -> None:
    """Asks for texts until the end of the input: answer(text), or switch(name) for a line "/adapter name".

    An error of either costs a message and no more.
    """
    print("Type a text; /adapter NAME switches; exit, quit or Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            text = input("> " if sys.stdout.isatty() else "").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if text in ("exit", "quit"):
            return
        try:
            if text == "/adapter":
                raise InputError("/adapter takes the name of one, as in /adapter out/best")
            if text.startswith("/adapter "):
                switch(text.removeprefix("/adapter ").strip())
            elif text:
                answer(text)
        except OutputLost:
            raise
        except Exception as error:
            complain(error)


class Log:
    """What a run says: lines that are printed and kept in a file, and a bar where there is a terminal."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def say(self, text: str) -> None:
        """Prints a line above the progress bar, and keeps it in the file."""
        if not distributed.is_first():
            return
        text = text.translate(SHOWN)
        tqdm.write(text)
        with open(self.path, "a", encoding="utf-8", errors="escape_as_json") as file:
            file.write(text + "\n")

    def start(self, total: int, done: int) -> None:
        """Shows a bar of `total` sentences, of which so many are `done` already."""
        self.begun, self.done, self.left = time.perf_counter(), 0, total - done
        shown = sys.stderr.isatty() and distributed.is_first()
        self.bar = tqdm(
            total=total, initial=done, unit=" sentences", disable=not shown, dynamic_ncols=True
        )

    def advance(self, sentences: int) -> None:
        self.done += sentences
        self.left -= sentences
        self.bar.update(sentences)

    def show(self, where: str, text: str) -> None:
        """Puts `text` beside the bar; where there is no bar it is a line, with the speed and the time left."""
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            speed = self.done / (time.perf_counter() - self.begun)
            self.say(f"{where}  {text}  {speed:.0f} sentences/s  {self.left / speed:.0f} s left")

    def close(self) -> None:
        self.bar.close()
