"""What the tests of the experiments share: a tiny base, few reviews, and programs to run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, float32_on_every_cpu, saved_base  # noqa: F401
from pyarrow import csv, parquet

from support.offline import offline_pair


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A random BERT of 40 positions that takes milliseconds, with a real tokenizer."""
    folder = saved_base(tmp_path_factory.mktemp("tiny") / "base", vocab_size=30522)
    shutil.copy(f"{offline_pair()[0]}/tokenizer.json", folder)
    return folder


@pytest.fixture(scope="session")
def some_reviews(tmp_path_factory) -> Path:
    """A table of 64 reviews."""
    table = parquet.read_table(f"{offline_pair()[1]}/train-00000-of-00001.parquet")
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    csv.write_csv(table.slice(0, 64), path)
    return path


@pytest.fixture
def run():
    """Runs a program in a process of its own: run("train.py", "--rank", 4)."""

    def run(*arguments, timeout=300) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=timeout,
        )

    return run
