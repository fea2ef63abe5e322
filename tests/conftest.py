"""What the tests share: a real BERT and real reviews out of the package index, real GLUE tables
where there are any."""

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # threads that wait leave their core to the other processes

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forking import Forks
from hub_server import Hub, UploadHandler
from pyarrow import csv, parquet
from safetensors.torch import load_file

import train
from support.console import run_main
from support.offline import offline_pair
from support.options import parse_options

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = [ROOT / name for name in ("train.py", "sample.py", "lora.py")]
torch.set_num_threads(2)


@pytest.fixture(scope="session")
def minilm() -> str:
    """The directory of all-MiniLM-L6-v2, a real BERT."""
    return offline_pair()[0]


@pytest.fixture(scope="session")
def reviews() -> str:
    """The directory of 10,070 real movie-review sentences in GLUE's layout."""
    return offline_pair()[1]


@pytest.fixture(scope="session")
def tiny(minilm, tmp_path_factory) -> Path:
    """A random BERT of 40 positions that takes milliseconds, with a real tokenizer."""
    from helpers import saved_base  # late: transformers takes seconds to import

    folder = saved_base(tmp_path_factory.mktemp("tiny"), vocab_size=30522)
    shutil.copy(f"{minilm}/tokenizer.json", folder)
    return folder


@pytest.fixture(scope="session")
def glue() -> Path:
    """The directory of GLUE's tasks in the Hub's layout: sst2/train-00000-of-00001.parquet and so
    on."""
    folder = os.environ.get("GLUE_DIR")
    if not folder:
        pytest.skip("needs GLUE's parquet files: set GLUE_DIR to their directory")
    return Path(folder)


@pytest.fixture(scope="session")
def some_reviews(reviews, tmp_path_factory) -> Path:
    """A table of 64 reviews."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    csv.write_csv(parquet.read_table(f"{reviews}/train-00000-of-00001.parquet").slice(0, 64), path)
    return path


@pytest.fixture(scope="session")
def quick(tiny, some_reviews):
    """Trains in this process: quick(out, "--rank", "4")."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def quick(out, *arguments) -> dict:
        common = [
            "--model",
            tiny,
            "--data",
            some_reviews,
            "--max-length",
            16,
            "--epochs",
            1,
            "--batch-size",
            16,
            "--out",
            out,
        ]
        train.train(
            train.Config(
                **parse_options(train.Config, [str(argument) for argument in [*common, *arguments]])
            )
        )
        for number, handler in before.items():
            signal.signal(number, handler)
        return load_file(next((out / "best").glob("*model.safetensors")))

    return quick


@pytest.fixture
def refused(monkeypatch, capsys):
    """The one line on stderr with which train.py refuses these arguments."""

    def refused(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            run_main(train.main)
        error = capsys.readouterr().err
        assert exit.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, (
            error
        )
        return error

    return refused


@pytest.fixture
def table(reviews, tmp_path) -> Path:
    """A few reviews to train on."""
    rows = parquet.read_table(f"{reviews}/validation-00000-of-00001.parquet").slice(0, 40)
    csv.write_csv(rows, tmp_path / "few.csv")
    return tmp_path / "few.csv"


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
    """Runs one of the project's programs in a process of its own: run("train.py", "--rank", "4").

    A program of this checkout is forked (tests/forking.py); anything else, as "-c", starts from
    nothing.
    """

    def run(*arguments, env=None, **options) -> subprocess.CompletedProcess:
        words = list(map(str, arguments))
        environment = os.environ | {"HF_HUB_OFFLINE": "1"} | (env or {})
        options = {"cwd": ROOT, "timeout": 120} | options
        program = (Path(options["cwd"]) / words[0]).resolve()
        python = any(
            name.startswith("PYTHON") for name in env or {}
        )  # what Python reads when it starts
        if program in PROGRAMS and options.keys() == {"cwd", "timeout"} and not python:
            return forks.run([str(program), *words[1:]], env=environment, **options)
        return subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, **options
        )

    return run
