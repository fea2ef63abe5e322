"""How a program ends: one line, and a status that says why; and a run that outlives its output."""

import json
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from helpers import ROOT
from pyarrow import parquet
from safetensors import safe_open
from tokenizers import Tokenizer

from support.errors import InputError, explain, is_out_of_memory, listing, plain, reading

PROGRAM = """
import os, signal, sys, time
from support.errors import InputError, reading, run_main, say
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in background
def main():
    {}
run_main(main)
"""
ENDS = {  # what main does: the exit status, and what is on standard error
    "pass": (0, ""),
    "sys.exit(3)": (3, ""),
    "raise InputError('a.csv: no\\nrows')": (2, "error: a.csv: no rows\n"),
    "raise ValueError('x.json: no config')": (2, "error: x.json: no config\n"),
    "raise ValueError": (2, "error: ValueError\n"),
    "open('/nowhere/x')": (2, "error: /nowhere/x: No such file or directory\n"),
    "open('\\udcff\\ud800')": (2, "error: 'utf-8' codec can't encode .*\n"),
    "raise OSError(28, 'No space left on device')": (2, "error: writing: No space left .*\n"),
    "raise OSError(12, 'Cannot allocate memory')": (2, r"error: out of memory .*\n"),
    "raise MemoryError": (2, r"error: out of memory \(MemoryError\): try a smaller --rank, .*\n"),
    'raise RuntimeError("can\'t start new thread")': (2, "error: out of memory .*try .*\\n"),
    "raise RuntimeError('bad_alloc')": (2, r"error: out of memory \(bad_alloc\): try .*\n"),
    "import numby": (2, "error: No module named 'numby': install what requirements.txt .*\n"),
    "[][0]": (2, "error: IndexError: list index out of range. .*report it.*BERT_LORA_DEBUG=1.*\n"),
    "raise GeneratorExit('a\\x1b[31mb')": (2, r"error: GeneratorExit: a\\u001b\[31mb\. .*\n"),
    "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)": (130, ""),
}


def run_body(body: str, shell: str = '"$@"', **env) -> subprocess.CompletedProcess:
    """A program whose main() has this body, in a shell's command line."""
    command = ["bash", "-c", shell, "bash", sys.executable, "-c", PROGRAM.format(body)]
    environment = os.environ | {"BERT_LORA_DEBUG": ""} | env
    captured = {"capture_output": True, "encoding": "utf-8"}
    return subprocess.run(command, env=environment, **captured, cwd=ROOT, timeout=60)


IMPORTS = {  # what goes wrong while a program imports: the exit status, standard error
    "raise KeyboardInterrupt": (130, ""),
    "raise MemoryError": (2, r"error: out of memory \(MemoryError\): try .*\n"),
    "import numby": (2, "error: No module named 'numby': install what requirements.txt .*\n"),
}


@pytest.mark.parametrize("program", ["train.py", "sample.py"])
@pytest.mark.parametrize("code", IMPORTS)
def test_what_goes_wrong_while_a_program_imports(run, tmp_path, code, program):
    (tmp_path / "tokenizers.py").write_text(code)
    done = run(program, "--help", env={"PYTHONPATH": tmp_path})
    status, message = IMPORTS[code]
    assert done.returncode == status and re.fullmatch(message, done.stderr), done.stderr


def test_an_import_of_a_program_leaves_tracebacks_as_they_are(run):
    done = run("-c", "import sample; [][0]", env={"PYTHONPATH": ROOT})
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("body", ENDS)
def test_every_end_has_its_status_and_at_most_one_line(body):
    done = run_body(body)
    status, said = ENDS[body]
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert re.fullmatch(said, done.stderr), done.stderr


def test_a_traceback_is_for_developers():
    done = run_body("{}['\\x1b[31mkey']", BERT_LORA_DEBUG="1")
    *before, last = done.stderr.splitlines()
    assert done.returncode == 2 and before[0].startswith("Traceback")
    assert re.fullmatch(r"error: KeyError: '\\x1b\[31mkey'\. .*report it.*", last)


@pytest.mark.parametrize("body", ["sys.exit(3)", "raise InputError('no')", "print('said')"])
def test_one_of_several_processes_leaves_at_once(body):
    """With what it has printed, and the status: what runs at a usual exit does not run.

    A program alone leaves so where it has failed.
    """
    late = f"import atexit; atexit.register(os._exit, 99); {body}"
    alone = run_body(late)
    several = run_body(late, WORLD_SIZE="2")
    assert alone.returncode == {"s": 3, "r": 2, "p": 99}[body[0]]
    assert several.returncode == {"s": 3, "r": 2, "p": 0}[body[0]]
    assert (several.stdout, several.stderr) == (alone.stdout, alone.stderr)


def test_a_line_is_read_when_it_is_printed_and_not_at_the_end():
    command = [sys.executable, "-c", PROGRAM.format("print('now'); time.sleep(60)")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        timer = threading.Timer(30, process.kill)
        timer.start()
        assert process.stdout.readline() == b"now\n"
        timer.cancel()
        process.kill()


@pytest.mark.parametrize("how, redirected, end", [
    ("print", "| head -1 >/dev/null", (0, "")),
    ("print", "> /dev/full", (2, "error: writing: No space left on device\n")),
    ("print", "> /dev/full 2>&1", (2, "")),
    ("say", "| head -1 >/dev/null", (7, "")),
    ("say", "> /dev/full", (7, "")),
    ("say", "> /dev/full 2>&1", (7, "")),
    ("say", ">&- 2>&-", (7, "")),
])  # fmt: skip
def test_an_output_that_nobody_takes(how, redirected, end):
    """What prints its result ends there, quietly for head; what says how it goes lives on."""
    shell = f'"$@" {redirected}; exit ${{PIPESTATUS[0]}}'
    done = run_body(f"[{how}('x' * 1000) for _ in range(1000)]; sys.exit(7)", shell)
    assert (done.returncode, done.stderr) == end


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_could_be_steered_by_is_escaped(encoding):
    """As JSON writes it, and all in UTF-8, so that what was printed as JSON is JSON everywhere."""
    body = """say('naïve \\x1b[31mred\\x9b素\\ud800\\n\\tend'); print('{"x": "é素😀\\ud800"}')"""
    done = run_body(body, PYTHONIOENCODING=encoding)
    wanted = "naïve \\u001b[31mred\\u009b素\\ud800\n\tend\n"
    assert done.returncode == 0 and done.stdout.startswith(wanted), done.stderr
    assert json.loads(done.stdout[len(wanted) :]) == {"x": "é素😀\ud800"}


STORE = """
from support import errors
class Store:
    def add(self, key, number):
        {}
errors.shared_store = Store()
raise InputError("a.csv: no rows")
"""


@pytest.mark.parametrize("add, said", [
    ("return 1", "error: a.csv: no rows\n"),
    ("return 2", ""),
    ("raise RuntimeError('the store is lost')", "error: a.csv: no rows\n"),
])  # fmt: skip
def test_several_processes_say_a_line_once(add, said):
    """The first that adds it to what they share; all do where that is lost."""
    body = STORE.format(add).replace("\n", "\n    ")
    done = run_body(body, WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_plain_text_is_one_line_and_a_listing_short():
    assert plain("\u202egpj.exe\u2066") == "\\u202egpj.exe\\u2066"  # directions
    assert plain("a\nb\tc\x1b\x9b é") == "a\\u000ab\\u0009c\\u001b\\u009b é"
    assert json.loads(f'"{plain(chr(27))}"') == "\x1b"
    assert listing(["a", "b", "c"]) == "a, b, c" and listing([*"abcde"]) == "a, b, c and 2 more"


# What libraries raise at the reading of a file that is none of theirs.
READERS = {
    "json": lambda path: json.loads(path.read_bytes()),
    "utf-8": lambda path: path.read_text(encoding="utf-8"),
    "arrow": lambda path: parquet.read_table(path),
    "safetensors": lambda path: safe_open(path, "pt"),
    "tokenizers": lambda path: Tokenizer.from_file(str(path)),
    "a directory": lambda path: path.parent.read_bytes(),
    "a key": lambda path: {}["key"],
    "an attribute": lambda path: path.nothing,
    "a type": lambda path: len(3),
    "torch": lambda path: torch.ones(2, 3) @ torch.ones(2, 3),
    "a plain one": lambda path: int("x"),
    "an empty one": lambda path: next(iter([])),
}


@pytest.mark.parametrize("name", READERS)
def test_reading_names_the_file_in_one_line(tmp_path, name):
    path = tmp_path / "a file"
    path.write_bytes(b"{\xff")
    with pytest.raises(InputError) as error, reading(path):
        READERS[name](path)
    where = path.parent if name == "a directory" else path
    assert re.fullmatch(re.escape(str(where)) + r": cannot be read \(.+\)", str(error.value))
    assert error.value.__cause__ is not None  # for whoever looks for the reason


def test_reading_lets_pass_what_names_the_file_and_want_of_memory():
    with pytest.raises(InputError, match=r"^a: b$"), reading("x"):
        raise InputError("a: b")
    with pytest.raises(InputError, match=r"^x/y: a field$"), reading("x"):
        raise ValueError("x/y: a field")
    with pytest.raises(RuntimeError, match="can't allocate memory"), reading("x"):
        torch.empty(2**50)
    with reading("x"):
        pass


def test_reading_a_folder_names_the_file_in_it(tmp_path):
    with pytest.raises(InputError) as error, reading(tmp_path):
        (tmp_path / "config.json").read_text()
    wanted = f"{tmp_path}/config.json: cannot be read (No such file or directory)"
    assert str(error.value) == wanted


def test_an_out_of_memory_error_is_known():
    for error in (
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ):
        assert is_out_of_memory(error)
    for size in (2**50,), (2**61, 2**61):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(*size)
        assert is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(OSError(28, "No space left on device"))
    assert not is_out_of_memory(InputError("out of memory.csv: no such file"))


def test_want_of_memory_while_compiling_is_no_fault_of_the_compiler():
    from torch._inductor.exc import InductorError  # late: it takes seconds to import

    causes = torch.OutOfMemoryError("CUDA out of memory. Tried"), ValueError("no Triton")
    lines = [explain(InductorError(cause, None)) for cause in causes]
    assert lines[0].startswith("out of memory (OutOfMemoryError: CUDA out of memory. Tried): try a")
    assert lines[1] == "torch.compile failed: ValueError: no Triton; --compile no does without"
