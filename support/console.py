"""A program and its terminal: errors in one line, signals, the progress bar and the log."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from support.files import InputError, first_line


def run_main(main) -> None:
    """Runs a program's main(). Known errors become one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output (head, less) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except OSError as error:
        message = f"{error.filename or 'writing'}: {error.strerror or first_line(error)}"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)


def catch_signals() -> list[int]:
    """The list into which the first SIGINT or SIGTERM goes; a second one ends the process at once."""
    stop: list[int] = []

    def note(number: int, _) -> None:
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return stop


def command_to_resume(out: str) -> str:
    """The command line that goes on with the run in `out`."""
    return shlex.join([sys.executable, sys.argv[0], "--resume", f"--out={out}"])


def prompt(answer, switch) -> None:
    """Asks for texts until the end of the input: answer(text), or switch(name) for a line "/adapter name".

    An InputError of either costs a message and no more.
    """
    print("Type a text; /adapter NAME switches; Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            text = input("> ").strip()
            if text.startswith("/adapter "):
                switch(text.removeprefix("/adapter ").strip())
            elif text:
                answer(text)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return


class Log:
    """What a run says: lines that are printed and kept in a file, and a bar where there is a terminal."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def say(self, text: str) -> None:
        """Prints a line above the progress bar, and keeps it in the file."""
        tqdm.write(text)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def start(self, total: int, done: int) -> None:
        """Shows a bar of `total` sentences, of which so many are `done` already."""
        self.begun, self.done, self.left = time.perf_counter(), 0, total - done
        shown = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit=" sentences", disable=not shown, dynamic_ncols=True)

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
