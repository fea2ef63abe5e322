"""Runs the project's programs in processes of their own, each forked from one that has imported
PyTorch already.

Importing it takes longer than most of what the tests let a program do. The child is a process as
any other: with an environment, a working directory, streams, signals and an exit status of its own.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Forks:
    """The process that forks. run() is subprocess.run for a program; threads may share it."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, text=True
        )
        self.asking = threading.Lock()  # two threads' lines must not be mixed

    def run(self, words: list[str], cwd: Path, env: dict[str, str], timeout: int):
        """`words` are the program's file and its arguments."""
        with tempfile.TemporaryDirectory() as scratch:
            asked = {
                "words": words,
                "cwd": str(cwd),
                "env": env,
                "timeout": timeout,
                "scratch": scratch,
            }
            with self.asking:
                print(json.dumps(asked), file=self.server.stdin, flush=True)
            ended = Path(scratch, "status")
            while not ended.exists():
                assert self.server.poll() is None, "the process that forks has ended"
                time.sleep(0.01)
            status = int(ended.read_text())
            said = [Path(scratch, name).read_bytes().decode() for name in ("stdout", "stderr")]
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(words, timeout, *said)
        return subprocess.CompletedProcess(words, status, *said)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(30)


def become(asked: dict) -> int:
    """Runs a program in this process, and returns its exit status."""
    signal.alarm(asked["timeout"])
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(f"{asked['scratch']}/{name}", os.O_WRONLY | os.O_CREAT), number)
    # Fresh streams, as the server has read from its own.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode = "w" if number else "r"
        stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
    sys.argv = asked["words"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        asked = json.loads(line)
        if os.fork():
            continue
        # This one waits for the program, and notes how it ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if pid := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            Path(asked["scratch"], "ended").write_text(str(status))
            os.rename(f"{asked['scratch']}/ended", f"{asked['scratch']}/status")
            os._exit(0)
        status = 1
        try:
            status = become(asked)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def import_what_programs_import_late() -> None:
    """What reads no environment, and takes seconds that every program would spend again."""
    for name in "matplotlib.pyplot", "pyarrow.csv", "pyarrow.json", "pyarrow.parquet", "tqdm":
        importlib.import_module(name)
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # imports half of torch.compile


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import torch

    import sample
    import train  # noqa: F401

    # It reads the environment when it is imported: each program's own.
    assert sample and "huggingface_hub" not in sys.modules
    import_what_programs_import_late()
    serve()
    os._exit(0)  # the usual way out takes PyTorch seconds
