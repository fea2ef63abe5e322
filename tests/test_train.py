"""Training as a user meets it: the files it leaves, the same bytes again, interruptions, one line for a mistake."""

import contextlib
import json
import math
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import threading
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import transformers
from conftest import ROOT
from helpers import edit_json
from pyarrow import csv, parquet
from safetensors.torch import load_file, save_file

import train
from support.console import run_main
from support.files import InputError
from support.glue import score
from support.options import parse_options
from train import Config, learning_rate

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
WEIGHTS = "best/adapter_model.safetensors"
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


@pytest.fixture(scope="module")
def data(reviews, tmp_path_factory) -> Path:
    """A table of 64 reviews."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    csv.write_csv(parquet.read_table(f"{reviews}/train-00000-of-00001.parquet").slice(0, 64), path)
    return path


@pytest.fixture(scope="module")
def quick(tiny, data):
    """Trains in this process: quick(out, "--rank", "4")."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def quick(out, *arguments) -> dict:
        common = ["--model", tiny, "--data", data, "--max-length", 16, "--epochs", 1, "--batch-size", 16, "--out", out]
        train.train(Config(**parse_options(Config, [str(argument) for argument in [*common, *arguments]])))
        for number, handler in before.items():
            signal.signal(number, handler)
        return load_file(next((out / "best").glob("*model.safetensors")))

    return quick


@pytest.fixture
def fails(monkeypatch, capsys):
    """The one line on stderr with which train.py refuses these arguments."""

    def fails(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            run_main(train.main)
        error = capsys.readouterr().err
        assert exit.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return fails


# Real processes, on MiniLM.

STEPS = ["--max-length", "16", "--epochs", "2", "--batch-size", "4", "--log-every", "1", "--eval-every", "10"]


@pytest.fixture(scope="module")
def finished(minilm, data, tmp_path_factory) -> Path:
    """The --out of a run of 30 steps, with what it printed."""
    out = tmp_path_factory.mktemp("finished")
    command = [sys.executable, "train.py", "--model", minilm, "--data", data, "--out", out, *STEPS]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    (out / "stdout").write_text(done.stdout, encoding="utf-8")
    return out


def test_a_run_leaves_everything(finished, minilm, data):
    for folder in "best", "final":
        names = {path.name for path in (finished / folder).iterdir()}
        assert names >= {"adapter_config.json", "adapter_model.safetensors", "config.json", "README.md"}
    assert (finished / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    printed = (finished / "stdout").read_text(encoding="utf-8")
    assert (finished / "training_log.txt").read_text(encoding="utf-8") == printed
    assert "58 sentences to train on, 6 to validate" in printed and "73,728" in printed
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train_loss" in r] == list(range(1, 31))
    assert [r["step"] for r in records if "validation_accuracy" in r] == [10, 15, 20, 30]
    config = tomllib.loads((finished / "config.toml").read_text())
    assert config == config | {"model": minilm, "data": str(data), "batch_size": 4, "lr": 5e-4, "seed": 42}


def assert_same_run(first, second):
    for name in WEIGHTS, "final/adapter_model.safetensors", "metrics.jsonl":
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_run_repeats_from_its_config_to_the_byte(run, finished, tmp_path):
    done = run("train.py", "--config", finished / "config.toml", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, tmp_path)


def interrupt(command: list[str], step: int, number: int) -> tuple[int, str]:
    """Sends the signal when the log has come to the step; returns the exit status and the last line."""
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    next(line for line in process.stdout if line.startswith(f"step {step}/"))
    process.send_signal(number)
    return process.wait(60), process.stdout.read().splitlines()[-1]


def test_an_interrupted_run_goes_on_to_the_same_bytes(run, finished, minilm, data, tmp_path):
    command = [sys.executable, "train.py", "--model", minilm, "--data", str(data), "--out", str(tmp_path), *STEPS]
    for step, number, status in (3, signal.SIGTERM, 143), (17, signal.SIGINT, 130):
        code, last = interrupt(command, step, number)
        assert code == status and not (tmp_path / "final").exists()
        stopped, command = re.fullmatch(r"stopped at step (\d+) of 30.*?: (.*)", last).groups()
        command = shlex.split(command)
        assert command[0] == sys.executable and step <= int(stopped) < 30
    done = run(*command[1:])
    assert done.returncode == 0 and f"resuming at step {stopped} of 30" in done.stdout, done.stderr
    assert_same_run(finished, tmp_path)


def test_a_terminal_gets_a_bar(tiny, data, finished, tmp_path):
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [sys.executable, "train.py", "--model", tiny, "--data", data, "--out", tmp_path, "--max-length", "16"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=terminal)
    timer = threading.Timer(60, process.kill)
    timer.start()
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while chunk := os.read(screen, 4096):
            shown += chunk
    timer.cancel()
    assert process.wait(60) == 0 and b"174/174" in shown and b"100%|" in shown
    assert b"step " not in process.stdout.read() and "\nstep 30/30  loss " in (finished / "stdout").read_text()


def test_a_bad_input_is_one_line_of_a_real_process(run, data, tmp_path):
    done = run("train.py", "--model", tmp_path, "--data", data, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert re.fullmatch(r"error: .*the directory has no .*\n", done.stderr)


# The same in this process, on a tiny BERT.


def test_the_seed_decides_the_bytes(quick, tmp_path):
    for name in "1", "1 again", "2":
        quick(tmp_path / name, "--seed", name[0])
    one, again, two = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("1", "1 again", "2"))
    assert one == again != two


def test_accumulated_batches_train_as_one(tiny, quick, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    edit_json(base / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    whole = quick(tmp_path / "16", "--model", base, "--dropout", 0, "--batch-size", 16)
    parts = quick(tmp_path / "8 x 2", "--model", base, "--dropout", 0, "--batch-size", 8, "--grad-accum", 2)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=0)


def test_rank_0_trains_everything(quick, tiny, tmp_path):
    quick(tmp_path, "--rank", 0)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model, info = load(tmp_path / "best", output_loading_info=True)
    assert type(model) is transformers.BertForSequenceClassification and not any(info.values())
    base = load_file(tiny / "model.safetensors")
    assert not [name for name, tensor in model.state_dict().items() if torch.equal(tensor, base[name])]


def test_a_finished_or_unfinished_run_is_kept(quick, fails, data, tmp_path):
    out, table = tmp_path / "out", Path(shutil.copy(data, tmp_path))
    quick(out, "--data", table)
    kept, again = (out / WEIGHTS).read_bytes(), ["--config", out / "config.toml"]
    assert "finished run: --overwrite" in fails(*again)
    assert "finished run: --overwrite" in fails(*again, "--resume")
    shutil.rmtree(out / "final")  # what a run looks like that was killed at its end
    assert "unfinished run: --resume" in fails(*again)
    for other in "lr=1e-4", "seed=7", "rank=4", "max_length=12":
        assert f"started with {other.split('=')[0]} " in fails(*again, "--resume", f"--{other}")
    table.write_text(data.read_text().replace(" the ", " a "))
    assert "other weights or data" in fails(*again, "--resume")
    shutil.copy(data, table)
    assert (out / WEIGHTS).read_bytes() == kept
    quick(out, "--data", table, "--resume")
    assert (out / "final").exists() and (out / WEIGHTS).read_bytes() == kept
    quick(out, "--data", table, "--overwrite", "--seed", 7)
    assert (out / WEIGHTS).read_bytes() != kept


@pytest.mark.parametrize("arguments, problem", [
    ("--rank -1", "--rank -1 is not at least 0"),
    ("--batch-size 0", "--batch-size 0 is not at least 1"),
    ("--dropout 1", "--dropout 1.0 is not at least 0 and below 1"),
    ("--warmup-ratio 1.5", "--warmup-ratio 1.5 is not from 0 to 1"),
    ("--lr nan", "--lr nan is not above 0"),
    ("--epochs many", "invalid int value: 'many'"),
    ("--learnrate 1", "unrecognized arguments: --learnrate"),
    ("--config nowhere.toml", "nowhere.toml: No such file"),
    ("--data nowhere.csv", "nowhere.csv: no such file"),
    ("--data nowhere", "nowhere: no such file"),
    ("--model no/where/at/all", "no such directory"),
    ("--targets querry,value", "'querry' matches no linear layer of this model; closest: query"),
    ("--max-length 41", "--max-length 41 is more than the 40 positions"),
    ("--text-columns words", "no column 'words'"),
    pytest.param("--device cuda", "--device cuda cannot be used", marks=no_cuda),
])  # fmt: skip
def test_bad_options_are_one_line(fails, tiny, data, tmp_path, arguments, problem):
    common = ["--model", tiny, "--data", data, "--out", tmp_path / "out", "--max-length", 16]
    assert problem in fails(*common, *arguments.split()) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage, problem", [
    (lambda model: model.joinpath("config.json").unlink(), "the directory has no config.json"),
    (lambda model: model.joinpath("model.safetensors").rename(model / "pytorch_model.bin"), "is a pickle"),
    (lambda model: os.truncate(model / "model.safetensors", 1_000_000), "not a whole safetensors file"),
    (lambda model: save_file({"wte.weight": torch.zeros(2)}, model / "model.safetensors"), "surplus tensor wte.weight"),
    (lambda model: edit_json(model / "config.json", hidden_size=16), "has the shape [32], expected [16]"),
], ids=["empty", "pickle", "truncated", "foreign", "narrower"])  # fmt: skip
def test_a_damaged_model_is_one_line(fails, tiny, data, tmp_path, damage, problem):
    model = shutil.copytree(tiny, tmp_path / "model")
    damage(model)
    assert problem in fails("--model", model, "--data", data, "--out", tmp_path / "out", "--max-length", 16)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Options, rates and scores.


def test_every_option_has_its_flag_and_its_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_options(Config, ["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{f.name.replace('_', '-')}" in shown and f.metadata["help"][:20] in shown for f in fields(Config))


@pytest.mark.parametrize("line", [
    "--batch-size 8 --lr 1e-3 --epochs 5 --rank 4 --alpha 2 --dropout 0.2 --out a_b --log-every 2",
    "--batch_size 8 --learning_rate 1e-3 --num_epochs 5 --lora_rank 4 --lora_alpha 2 --lora_dropout 0.2 "
    "--output_dir a_b --logging_steps 2",
    "--batch-size=8 --learning-rate=0.001 --num-epochs=5 --lora-rank=4 --alpha=2.0 --dropout=.2 --out=a_b "
    "--logging-steps=2",
])  # fmt: skip
def test_flags_go_by_several_names(line):
    wanted = Config(batch_size=8, lr=1e-3, epochs=5, rank=4, alpha=2.0, dropout=0.2, out="a_b", log_every=2)
    assert Config(**parse_options(Config, line.split())) == wanted


def test_a_flag_wins_over_the_file(tmp_path):
    (tmp_path / "a.toml").write_text('lr = 1\nseed = 7\nmodel = "x"\nresume = true\n')
    config = Config(**parse_options(Config, ["--seed", "8", "--config", str(tmp_path / "a.toml")]))
    assert config == Config(lr=1.0, seed=8, model="x", resume=True)


@pytest.mark.parametrize("content, problem", [("learnrate = 1", "unknown option 'learnrate'"),
    ("batchsize = 1", "did you mean 'batch_size'?"), ("epochs = 2.5", "epochs must be of type int"),
    ("dropout = 1", "--dropout 1.0 is not"), ("a = b", "not a TOML file"), ("resume = 1", "of type bool"),
    ("a." * 10**5 + "a = 1", "too long for one of options")])  # fmt: skip
def test_a_bad_file_of_options_is_named(tmp_path, content, problem):
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(InputError, match=re.escape(problem)):
        Config(**parse_options(Config, ["--config", str(tmp_path / "a.toml")]))


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("ratio", [0.0, 0.06, 0.5, 1.0])
def test_the_learning_rate_is_transformers(ratio, steps):
    config = Config(lr=3e-4, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, math.ceil(ratio * steps), steps)
    for step in range(steps):
        assert learning_rate(config, step, steps) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12, abs=0)
        optimizer.step()
        schedule.step()


A, B = np.random.default_rng(0).integers(0, 2, (2, 500))


@pytest.mark.parametrize("predicted", [A, B, 1 - A, A * 0, A * 0 + 1], ids=["a", "b", "not a", "zeros", "ones"])
@pytest.mark.parametrize("labels", [A, A | B, A * 0, A * 0 + 1], ids=["a", "a or b", "zeros", "ones"])
@pytest.mark.filterwarnings("ignore:A single label")
def test_scores_are_those_of_sklearn(predicted, labels):
    accuracy = sklearn.metrics.accuracy_score(labels, predicted)
    f1 = sklearn.metrics.f1_score(labels, predicted, zero_division=0)
    matthews = sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert score("accuracy", predicted * 3, labels * 3) == pytest.approx({"accuracy": accuracy})
    assert score("f1", predicted, labels) == pytest.approx({"accuracy": accuracy, "f1": f1})
    expected = {"accuracy": accuracy, "matthews_correlation": matthews}
    assert score("matthews_correlation", predicted, labels) == pytest.approx(expected, abs=1e-12)
