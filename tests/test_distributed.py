"""Several processes that train as one: the same steps, whatever their number, and a run that
outlives its processes.

tests/faults.py kills such processes for real, under torchrun.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from pyarrow import csv, parquet
from safetensors.torch import load_file
from torch.distributed import TCPStore

from support import distributed

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = "final/adapter_model.safetensors"
OPTIONS = (
    "--max-length 32 --lr 1e-3 --device cpu --batch-size 8 --log-every 1 --save-every 5".split()
)  # noqa: SIM905


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """A random BERT without dropout, so that nothing but sums can differ."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config | still))
    return folder


@pytest.fixture(scope="module")
def some(reviews, tmp_path_factory) -> Path:
    """A table of which 207 reviews are trained on: of 24 at a time 8 * 24 + 15, of which 7 and 8
    are no whole batch."""
    path = tmp_path_factory.mktemp("some") / "reviews.csv"
    csv.write_csv(parquet.read_table(f"{reviews}/train-00000-of-00001.parquet").slice(0, 229), path)
    return path


@pytest.fixture
def together(run, base, some):
    """Runs train.py in so many processes, each as torchrun would start it; returns how each
    ended."""

    def together(number: int, *arguments, program=("train.py",), given=None, ranks=None) -> list:
        table = TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )  # torchrun keeps one for its processes
        names = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(table.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        names |= {
            "WORLD_SIZE": str(number),
            "LOCAL_WORLD_SIZE": str(number),
            "OMP_NUM_THREADS": "1",
        }
        names["TORCHELASTIC_RUN_ID"] = "none"
        names["TORCH_CPP_LOG_LEVEL"] = (
            "FATAL"  # the first keeps torchrun's table here, and it is missed when it is gone
        )
        common = [*OPTIONS, "--model", base, "--data", some, "--dropout", 0.0, "--epochs", 6]

        def one(rank: int) -> subprocess.CompletedProcess:
            words = [
                *program,
                *(common if given is None else given),
                *arguments,
                *(ranks or {}).get(rank, []),
            ]
            return run(*words, env=names | {"RANK": str(rank), "LOCAL_RANK": str(rank)})

        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(one, range(number)))

    return together


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def apart(one: Path, other: Path) -> tuple[float, float]:
    """How far two runs' losses are apart, and their adapters."""
    pairs = list(zip(records(one), records(other), strict=True))
    losses = max(abs(a[name] - b[name]) for a, b in pairs for name in a)
    ours, theirs = (load_file(out / "final" / "adapter_model.safetensors") for out in (one, other))
    return losses, max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_take_the_steps_of_one(together, tmp_path, number):
    """Each with --batch-size 8, as one process with --grad-accum; the last step has fewer batches
    than processes."""
    ended = together(number, "--out", tmp_path / "many")
    assert [process.returncode for process in ended] == [0] * number, ended[0].stderr
    assert "best validation" in ended[0].stdout and not any(
        process.stdout + process.stderr for process in ended[1:]
    )
    assert together(1, "--out", tmp_path / "one", "--grad-accum", number)[0].returncode == 0
    losses, adapters = apart(tmp_path / "one", tmp_path / "many")
    steps = [record for record in records(tmp_path / "many") if "train_loss" in record]
    assert len(steps) == {2: 78, 3: 54}[number] and losses < 1e-6 and adapters < 1e-5
    assert steps[0]["train_loss"] != steps[-1]["train_loss"]


STOPS = """
import os, signal, train
step = train.train_step
def train_step(run, rows):
    if run.progress.step == 12 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # to the whole group of processes, and once more, sent on by torchrun
    return step(run, rows)
train.train_step = train_step
train.console.run_main(train.main)
"""


def test_a_stopped_run_goes_on_in_as_many_processes_or_in_others(together, tmp_path):
    """To the same bytes in as many. The signal reaches one process alone, and all stop at one
    step."""
    dropout = ["--dropout", 0.3]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert together(2, "--out", whole, *dropout)[0].returncode == 0
    ended = together(2, "--out", stopped, *dropout, program=["-c", STOPS])
    assert [process.returncode for process in ended] == [143, 143], ended[0].stderr
    assert "stopped at step 13 of 78; to go on: torchrun --nproc-per-node=2 " in ended[0].stdout
    states = load_file(stopped / "checkpoint" / "checkpoint.safetensors")
    assert not torch.equal(states["random.cpu.0"], states["random.cpu.1"])
    for number in 2, 3, 1:
        out = shutil.copytree(stopped, tmp_path / str(number))
        again = together(number, "--resume", "--out", out, given=[])
        assert again[0].returncode == 0 and "resuming at step 13 of 78" in again[0].stdout, again[
            0
        ].stderr
        assert ("the number of processes is" in again[0].stdout) == (number != 2)
        assert [record["step"] for record in records(out)] == [
            record["step"] for record in records(whole)
        ]
        same = [
            (out / name).read_bytes() == (whole / name).read_bytes()
            for name in ("metrics.jsonl", ADAPTER)
        ]
        assert same == [number != 1] * 2  # a third process has nothing to do in steps of two
        losses, _ = apart(out, whole)
        assert losses < 0.5  # no loss is far from what the same sentences gave


def test_an_error_is_one_line_of_all_processes_and_ends_all(together, tmp_path):
    ended = together(3, "--out", tmp_path, "--data", tmp_path / "none.csv")
    assert [process.returncode for process in ended] == [2] * 3 and not any(
        process.stdout for process in ended
    )
    said = "".join(process.stderr for process in ended)
    assert said.startswith("error: ") and said.count("\n") == 1 and "none.csv: no such file" in said
    ended = together(2, "--out", tmp_path, ranks={1: ["--lr", 2e-3]})  # as on another machine
    assert [process.returncode for process in ended] == [2] * 2
    said = "".join(process.stderr for process in ended)
    assert (
        said
        == "error: the processes were given other options, weights or data; give all of them the same\n"
    )
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.slow
def test_two_launchers_train_one_run(together, base, some, tmp_path):
    """As on two machines, which here have one address: each has a process, and the second needs no
    --out of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-id=1",
    ]
    launcher += [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--local-addr=127.0.0.1",
    ]
    words = ["train.py", *OPTIONS, "--model", base, "--data", some, "--dropout", 0.0, "--epochs", 2]
    start = lambda: subprocess.Popen(
        list(map(str, [*launcher, *words, "--out", tmp_path / "many"])),
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    ended = [(process, *process.communicate(timeout=120)) for process in [start(), start()]]
    assert [process.returncode for process, *_ in ended] == [0, 0], ended
    assert sorted("best validation" in said for _, said, _ in ended) == [False, True]
    assert (
        together(1, *words[1:], "--out", tmp_path / "one", "--grad-accum", 2, given=[])[
            0
        ].returncode
        == 0
    )
    losses, adapters = apart(tmp_path / "one", tmp_path / "many")
    assert losses < 1e-6 and adapters < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_what_is_refused_stays_refused_by_a_restart(together, base, some, tmp_path, number):
    """And is said once. Neither an unfinished run nor a finished one is gone on with, as nobody
    said --resume."""
    stopped = tmp_path / "stopped"
    words = ["--model", base, "--data", some, *OPTIONS, "--epochs", 2, "--out", stopped]
    assert together(1, *words, given=[])[0].returncode == 0
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={number}",
    ]
    command = [*launcher, "--max-restarts=1", "train.py", *words, "--epochs", 3]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and done.stderr.count("error: ") == 1, done.stderr
    assert f"error: {stopped} holds a finished run" in done.stderr
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_lost_process_is_replaced_by_a_restart(base, some, tmp_path):
    """Of one process alone too; --overwrite, given for the former run, does not undo what the first
    start did."""
    (tmp_path / "dies.py").write_text(DIES)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        "--max-restarts=1",
    ]
    command += [
        tmp_path / "dies.py",
        *OPTIONS,
        "--model",
        base,
        "--data",
        some,
        "--epochs",
        1,
        "--out",
        tmp_path / "out",
    ]
    command += ["--overwrite"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    how = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120, "env": environment}
    done = subprocess.run(list(map(str, command)), **how)
    assert done.returncode == 0 and "resuming at step 10 of 26" in done.stdout, done.stderr


DIES = """
import os, signal, train
step = train.train_step
def train_step(run, rows):
    if run.progress.step == 12 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run, rows)
train.train_step = train_step
train.console.run_main(train.main)
"""


def test_help_is_printed_once(together):
    ended = together(2, "--help", given=[])
    assert [process.returncode for process in ended] == [0, 0]
    assert "--batch-size" in ended[0].stdout and not ended[1].stdout


def test_the_command_to_go_on_names_all_machines(monkeypatch):
    """Two machines, of two processes and of one."""
    for name, value in {"SIZE": 3, "LOCAL_SIZE": 2}.items():
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    words = [
        "torchrun",
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=HOST:29400",
        "--nproc-per-node=2",
    ]
    assert distributed.launcher() == words


def test_the_room_does_what_pytorch_does(tmp_path):
    """Gradients as of DistributedDataParallel, and what is read once is there once."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    words = [*torchrun, str(Path(__file__).with_name("two_processes.py")), str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "read").read_text() == "once\n"
