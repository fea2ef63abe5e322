"""Several processes that work as one: the same steps in any number, and a run that outlives them.

Most are forked, with what torchrun gives its processes (tests/forking.py). tests/faults.py kills
them at random moments.
"""

import json
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import ROOT, saved_base
from pyarrow import csv, parquet
from safetensors.torch import load_file
from torch.distributed import TCPStore

from support import parallel

ADAPTER = "final/adapter_model.safetensors"
OPTIONS = ["--max-length", 32, "--lr", 1e-3, "--device", "cpu", "--batch-size", 8]
OPTIONS += ["--epochs", 2, "--log-every", 1, "--save-every", 5]
# A program in which the second process gets a signal in the seventh step, unless it was restarted.
# As torchrun does, it sends a signal to the whole group and then once more.
INTERRUPTED = """
import os, signal, train
from support import errors

def interrupted(setup, rows, step):
    is_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if step == 6 and os.environ["RANK"] == "1" and not is_restarted:
        os.kill(os.getpid(), signal.{name})
        os.kill(os.getpid(), signal.{name})
    return train_step(setup, rows, step)

train_step = train.train_step
train.train_step = interrupted
errors.run_main(train.main)
"""
LABELS = """
import sample
from support import errors, pieces

pieces.PIECE = 16
errors.run_main(sample.main)
"""


@pytest.fixture(scope="module")
def base(minilm, tmp_path_factory) -> Path:
    """A random BERT without dropout, so that nothing but sums can differ."""
    folder = tmp_path_factory.mktemp("base") / "still"
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    saved_base(folder, vocab_size=30522, **still)
    shutil.copy(f"{minilm}/tokenizer.json", folder)
    return folder


@pytest.fixture(scope="module")
def some(reviews, tmp_path_factory) -> Path:
    """A table of which 207 reviews are trained on.

    Of 24 at a time these are 8 * 24 + 15: a whole batch, and one of 7 for the second process.
    """
    path = tmp_path_factory.mktemp("some") / "reviews.csv"
    csv.write_csv(parquet.read_table(f"{reviews}/train-00000-of-00001.parquet").slice(0, 229), path)
    return path


@pytest.fixture(scope="module")
def training(base, some) -> list:
    return [*OPTIONS, "--model", base, "--data", some]


@pytest.fixture(scope="module")
def together(forks):
    """Runs a program in so many processes, each as torchrun would start it: how each ended.

    `ranks` holds what some of them are given in addition.
    """

    def together(number: int, *words, program=ROOT / "train.py", ranks=None) -> list:
        # torchrun keeps such a store for its processes.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "WORLD_SIZE": str(number),
            "LOCAL_WORLD_SIZE": str(number),
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_CPP_LOG_LEVEL": "FATAL",  # the store goes before the last process does
        }

        def one(rank: int) -> subprocess.CompletedProcess:
            given = [program, *words, *(ranks or {}).get(rank, [])]
            env = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return forks.run([*map(str, given)], cwd=ROOT, env=env, timeout=60)

        with ThreadPoolExecutor(number) as pool:
            return [*pool.map(one, range(number))]

    return together


@pytest.fixture(scope="module")
def whole(together, training, tmp_path_factory) -> Path:
    """A run in two processes that nothing disturbed. With dropout each has its own numbers."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert statuses(together(2, *training, "--dropout", 0.3, "--out", out)) == [0, 0]
    return out


def statuses(ended: list) -> list[int]:
    return [process.returncode for process in ended]


def errors_of(ended: list) -> str:
    return "".join(process.stderr for process in ended)


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_steps(one: Path, other: Path) -> None:
    """Two runs' losses and adapters differ by no more than a sum's rounding."""
    for a, b in zip(records(one), records(other), strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    ours = load_file(one / ADAPTER)
    theirs = load_file(other / ADAPTER)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-5


def same_bytes(one: Path, other: Path) -> bool:
    reports = ("report.json", "validation_predictions.csv")
    names = ("metrics.jsonl", ADAPTER, "best/adapter_model.safetensors", *reports)
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def all_bytes(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def interrupted_by(name: str, folder: Path) -> Path:
    program = folder / f"{name}.py"
    program.write_text(INTERRUPTED.format(name=name))
    return program


@pytest.mark.parametrize("number", [2, 3])
def test_processes_take_the_steps_of_one(together, training, tmp_path, number):
    """Each with --batch-size 8, as one process with --grad-accum; the last step has less for each.

    Of three processes one has no part in it.
    """
    words = [*training, "--dropout", 0.3, "--out"]
    ended = together(number, *words, tmp_path / "many")
    assert statuses(ended) == [0] * number, errors_of(ended)
    assert "best validation" in ended[0].stdout
    assert not any(process.stdout + process.stderr for process in ended[1:])
    (alone,) = together(1, *words, tmp_path / "one", "--grad-accum", number)
    assert alone.returncode == 0, alone.stderr
    losses = [r["train_loss"] for r in records(tmp_path / "many") if "train_loss" in r]
    assert len(losses) == {2: 26, 3: 18}[number] and losses[0] != losses[-1]
    assert_same_steps(tmp_path / "one", tmp_path / "many")


def test_a_stopped_run_goes_on_in_as_many_processes_or_in_others(
    together, training, whole, tmp_path
):
    """To the same bytes. The signal reaches one alone, and all stop at one step."""
    stopped = tmp_path / "stopped"
    words = [*training, "--dropout", 0.3, "--out", stopped]
    ended = together(2, *words, program=interrupted_by("SIGTERM", tmp_path))
    assert statuses(ended) == [143, 143], errors_of(ended)
    assert "stopped at step 7; the same command with --resume goes on" in ended[0].stdout
    for number in 2, 3, 1:
        out = shutil.copytree(stopped, tmp_path / str(number))
        ended = together(number, "--resume", "--out", out)
        assert statuses(ended) == [0] * number, errors_of(ended)
        assert "resuming at step 7 of 26" in ended[0].stdout
        assert ("number of processes: " in ended[0].stdout) == (number != 2)
        assert same_bytes(out, whole)  # a step has two batches, and a sum of two no order


def test_a_lost_process_is_one_line_and_the_run_goes_on(together, training, whole, tmp_path):
    out = tmp_path / "out"
    words = [*training, "--dropout", 0.3, "--out", out]
    ended = together(2, *words, program=interrupted_by("SIGKILL", tmp_path))
    assert statuses(ended) == [2, -9]
    assert errors_of(ended) == f"error: {parallel.LOST}\n"
    ended = together(2, "--resume", "--out", out)
    assert statuses(ended) == [0, 0] and "resuming at step 5 of 26" in ended[0].stdout
    assert same_bytes(out, whole)


@pytest.fixture(scope="module")
def torchrun(forks):
    """Runs torchrun itself, whose processes start from nothing."""

    def torchrun(*words) -> subprocess.CompletedProcess:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        given = [Path(torch.distributed.__file__).with_name("run.py"), *words]
        return forks.run([*map(str, given)], cwd=ROOT, env=environment, timeout=120)

    return torchrun


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(torchrun, training, whole, tmp_path):
    launcher = ["--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    words = [*training, "--dropout", 0.3, "--resume", "--out", tmp_path / "out"]
    done = torchrun(*launcher, interrupted_by("SIGKILL", tmp_path), *words)
    assert done.returncode == 0 and "resuming at step 5 of 26" in done.stdout, done.stderr
    assert same_bytes(tmp_path / "out", whole)


@pytest.mark.slow
def test_two_launchers_train_one_run(torchrun, training, whole, tmp_path):
    """As on two machines, which here have one address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=1", "--rdzv-backend=c10d"]
    launcher += ["--local-addr=127.0.0.1", f"--rdzv-endpoint=127.0.0.1:{port}"]
    words = [*training, "--dropout", 0.3, "--out", tmp_path / "out"]
    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(torchrun, *launcher, "train.py", *words) for _ in range(2)]
    ended = [process.result() for process in made]
    assert statuses(ended) == [0, 0], errors_of(ended)
    said = [process.stdout for process in ended]
    assert sorted("best validation" in text for text in said) == [False, True]
    assert same_bytes(tmp_path / "out", whole)


def test_an_error_is_one_line_of_all_processes_and_leaves_nothing(together, training, tmp_path):
    out = tmp_path / "out"
    ended = together(3, *training, "--out", out, "--data", tmp_path / "none.csv")
    assert statuses(ended) == [2, 2, 2] and not any(process.stdout for process in ended)
    error = errors_of(ended)
    assert error.startswith("error: ") and error.count("\n") == 1 and "none.csv: no such" in error
    assert not out.exists()


def test_processes_that_are_given_something_else_are_refused(together, training, some, tmp_path):
    """As may happen on two machines."""
    other = tmp_path / "other.csv"
    other.write_text(some.read_text().replace("film", "movie"))
    for given in ["--lr", 2e-3], ["--data", other]:
        ended = together(2, *training, "--out", tmp_path / "out", ranks={1: given})
        assert statuses(ended) == [2, 2]
        problem = "the processes were given other options, weights or data"
        assert errors_of(ended) == f"error: {problem}; give all of them the same\n"
        assert not (tmp_path / "out").exists()


def test_a_finished_run_is_refused_once_and_stays(together, training, whole):
    before = all_bytes(whole)
    ended = together(2, *training, "--dropout", 0.3, "--out", whole)
    error = errors_of(ended)
    assert statuses(ended) == [2, 2] and error.count("\n") == 1
    assert error.startswith(f"error: {whole} holds a run: ")
    assert all_bytes(whole) == before


def test_help_is_printed_once(together):
    ended = together(2, "--help")
    assert statuses(ended) == [0, 0]
    assert "--batch-size" in ended[0].stdout and not ended[1].stdout


def test_processes_label_one_table(together, base, some, tmp_path):
    program = tmp_path / "labels.py"
    program.write_text(LABELS)
    for number in 1, 2:
        words = ["--model", base, "--file", some, "--prefix", "p_", "--out"]
        ended = together(number, *words, tmp_path / f"{number}.csv", program=program)
        assert statuses(ended) == [0] * number, errors_of(ended)
        assert "229 rows labelled" in ended[0].stdout
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()
    assert not [*tmp_path.glob("*.parts")]
