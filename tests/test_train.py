"""Training as a user meets it: the files it leaves, the same bytes again, interruptions, one line
for a mistake."""

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
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import transformers
from helpers import ROOT, edit_json
from pyarrow import csv, parquet
from safetensors.torch import load_file, save_file

from train import Config, learning_rate, set_up, train_step

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
WEIGHTS = "best/adapter_model.safetensors"
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


# Real processes, on MiniLM.

STEPS = [
    "--max-length",
    "16",
    "--epochs",
    "2",
    "--batch-size",
    "4",
    "--log-every",
    "1",
    "--eval-every",
    "10",
]


@pytest.fixture(scope="module")
def finished(minilm, some_reviews, tmp_path_factory) -> Path:
    """The --out of a run of 30 steps, with what it printed."""
    out = tmp_path_factory.mktemp("finished")
    command = [
        sys.executable,
        "train.py",
        "--model",
        minilm,
        "--data",
        some_reviews,
        "--out",
        out,
        *STEPS,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    (out / "stdout").write_text(done.stdout, encoding="utf-8")
    return out


def test_a_run_leaves_everything(finished, minilm, some_reviews):
    for folder in "best", "final":
        names = {path.name for path in (finished / folder).iterdir()}
        assert names >= {
            "adapter_config.json",
            "adapter_model.safetensors",
            "config.json",
            "README.md",
        }
    assert (finished / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    printed = (finished / "stdout").read_text(encoding="utf-8")
    assert (finished / "training_log.txt").read_text(encoding="utf-8") == printed
    assert "58 sentences to train on, 6 to validate" in printed and "73,728" in printed
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "train_loss" in r] == list(range(1, 31))
    assert [r["step"] for r in records if "validation_accuracy" in r] == [10, 15, 20, 30]
    config = tomllib.loads((finished / "config.toml").read_text())
    assert config == config | {
        "model": minilm,
        "data": str(some_reviews),
        "batch_size": 4,
        "lr": 5e-4,
        "seed": 42,
    }


def assert_same_run(first, second):
    for name in WEIGHTS, "final/adapter_model.safetensors", "metrics.jsonl":
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_run_repeats_from_its_config_to_the_byte(run, finished, tmp_path):
    done = run("train.py", "--config", finished / "config.toml", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, tmp_path)


def interrupt(command: list[str], step: int, number: int) -> tuple[int, str]:
    """Sends the signal when the log has come to the step; returns the exit status and the last
    line."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    next(line for line in process.stdout if line.startswith(f"step {step}/"))
    process.send_signal(number)
    return process.wait(60), process.stdout.read().splitlines()[-1]


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    run, finished, minilm, some_reviews, tmp_path
):
    command = [
        sys.executable,
        "train.py",
        "--model",
        minilm,
        "--data",
        str(some_reviews),
        "--out",
        str(tmp_path),
        *STEPS,
    ]
    for step, number, status in (3, signal.SIGTERM, 143), (17, signal.SIGINT, 130):
        code, last = interrupt(command, step, number)
        assert code == status and not (tmp_path / "final").exists()
        stopped, command = re.fullmatch(r"stopped at step (\d+) of 30.*?: (.*)", last).groups()
        command = shlex.split(command)
        assert command[0] == sys.executable and step <= int(stopped) < 30
    done = run(*command[1:])
    assert done.returncode == 0 and f"resuming at step {stopped} of 30" in done.stdout, done.stderr
    assert_same_run(finished, tmp_path)


def test_a_terminal_gets_a_bar(tiny, some_reviews, finished, tmp_path):
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [
        sys.executable,
        "train.py",
        "--model",
        tiny,
        "--data",
        some_reviews,
        "--out",
        tmp_path,
        "--max-length",
        "16",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=terminal
    )
    timer = threading.Timer(60, process.kill)
    timer.start()
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while chunk := os.read(screen, 4096):
            shown += chunk
    timer.cancel()
    assert process.wait(60) == 0 and b"174/174" in shown and b"100%|" in shown
    assert (
        b"step " not in process.stdout.read()
        and "\nstep 30/30  loss " in (finished / "stdout").read_text()
    )


def test_a_bad_input_is_one_line_of_a_real_process(run, some_reviews, tmp_path):
    done = run("train.py", "--model", tmp_path, "--data", some_reviews, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert re.fullmatch(r"error: .*the directory has no .*\n", done.stderr)


# The same in this process, on a tiny BERT.


def test_the_seed_decides_the_bytes(quick, tmp_path):
    for name, targets in ("1", "query,value"), ("1 again", "query, value"), ("2", "query,value"):
        quick(tmp_path / name, "--seed", name[0], "--targets", targets)
    one, again, two = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("1", "1 again", "2"))
    assert one == again != two


def test_accumulated_batches_train_as_one(tiny, quick, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    edit_json(base / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    whole = quick(tmp_path / "16", "--model", base, "--dropout", 0, "--batch-size", 16)
    parts = quick(
        tmp_path / "8 x 2", "--model", base, "--dropout", 0, "--batch-size", 8, "--grad-accum", 2
    )
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=0)


def test_rank_0_trains_everything(quick, tiny, tmp_path):
    quick(tmp_path, "--rank", 0)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model, info = load(tmp_path / "best", output_loading_info=True)
    assert type(model) is transformers.BertForSequenceClassification and not any(info.values())
    base = load_file(tiny / "model.safetensors")
    assert not [
        name for name, tensor in model.state_dict().items() if torch.equal(tensor, base[name])
    ]


def test_going_on_from_an_adapter(run, quick, refused, tiny, some_reviews, tmp_path):
    """Its base, rank, alpha and targets stay; its dropout too, unless told; its classes keep their
    names."""
    quick(tmp_path / "a", "--rank", 4, "--targets", "query", "--dropout", 0.1)
    common = [
        "--init-adapter",
        tmp_path / "a" / "best",
        "--max-length",
        16,
        "--epochs",
        1,
        "--batch-size",
        16,
    ]
    for option, value in ("rank", "0"), ("rank", "8"), ("alpha", "3.0"), ("targets", "query,value"):
        problem = refused(
            *common, "--data", some_reviews, "--out", tmp_path / "out", f"--{option}={value}"
        )
        assert f"--{option} {value} does not go with --init-adapter" in problem
    numbers = tmp_path / "numbers.csv"
    numbers.write_text(
        re.sub(
            '"(positive|negative)"',
            lambda m: str(int(m[1] == "positive")),
            some_reviews.read_text(),
        )
    )
    for name, dropout, data in ("kept", [], numbers), ("told", ["--dropout", "0.5"], some_reviews):
        done = run("train.py", *common, *dropout, "--data", data, "--out", tmp_path / name)
        assert done.returncode == 0 and "classes negative, positive" in done.stdout, done.stderr
        options = tomllib.loads((tmp_path / name / "config.toml").read_text())
        wanted = {
            "model": str(tiny),
            "rank": 4,
            "targets": "query",
            "dropout": float(dropout[1] if dropout else 0.1),
        }
        assert options == options | wanted
        written = json.loads((tmp_path / name / "best" / "adapter_config.json").read_text())
        assert (written["r"], written["lora_dropout"]) == (4, wanted["dropout"])
    losses = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()[0] for name in ("kept", "told")
    ]
    assert losses[0] != losses[1]
    others = tmp_path / "others.csv"
    others.write_text(
        some_reviews.read_text().replace('"positive"', '"ham"').replace('"negative"', '"spam"')
    )
    problem = refused(*common, "--data", others, "--out", tmp_path / "out")
    assert "has the 2 classes negative, positive, but the data the 2 ham, spam" in problem


def test_a_run_whose_classes_were_renamed_is_not_gone_on_with(
    quick, refused, some_reviews, tmp_path
):
    rows = csv.read_csv(some_reviews)
    numbers = rows.set_column(
        rows.column_names.index("label"), "label", pc.equal(rows["label"], "positive").cast("int8")
    )
    for names in ["negative", "positive"], ["positive", "negative"]:
        told = {
            b"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()
        }
        parquet.write_table(numbers.replace_schema_metadata(told), tmp_path / "reviews.parquet")
        if names[0] == "negative":
            quick(tmp_path / "out", "--data", tmp_path / "reviews.parquet")
            shutil.rmtree(tmp_path / "out" / "final")
    problem = refused("--config", tmp_path / "out" / "config.toml", "--resume")
    assert "started with classes ['negative', 'positive'], not ['positive', 'negative']" in problem


@pytest.mark.parametrize("rank", [0, 4])
def test_recomputed_layers_train_to_the_same_bytes(quick, tmp_path, rank):
    """With dropout; and the forward pass keeps less than half of what it keeps otherwise."""
    kept = []
    for name, more in ("kept", []), ("recomputed", ["--gradient-checkpointing"]):
        sizes = []
        count = lambda tensor, sizes=sizes: sizes.append(tensor.nbytes) or tensor
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            quick(tmp_path / name, "--rank", rank, *more)
        kept.append(sum(sizes))
    for file in "metrics.jsonl", f"best/{'adapter_' * bool(rank)}model.safetensors":
        assert (tmp_path / "kept" / file).read_bytes() == (
            tmp_path / "recomputed" / file
        ).read_bytes()
    assert kept[1] < kept[0] / 2, kept


@pytest.mark.parametrize("arguments, problem", [
    ("--rank -1", "--rank -1 is not at least 0"),
    ("--batch-size 0", "--batch-size 0 is not at least 1"),
    ("--dropout 1", "--dropout 1.0 is not at least 0 and below 1"),
    ("--warmup-ratio 1.5", "--warmup-ratio 1.5 is not from 0 to 1"),
    ("--lr nan", "--lr nan is not a finite number"),
    ("--rank 33", "--rank 33 is more than 32, the rank of a whole weight"),
    (f"--rank {10**18}", "is more than 32"),
    ("--epochs many", "invalid int value: 'many'"),
    ("--learnrate 1", "unrecognized arguments: --learnrate"),
    ("--config nowhere.toml", "nowhere.toml: No such file"),
    ("--data nowhere.csv", "nowhere.csv: no such file"),
    ("--data nowhere", "nowhere: no such file"),
    ("--model no/where/at/all", "no such directory"),
    ("--targets querry,value", "'querry' matches no linear layer of this model; closest: query"),
    ("--max-length 41", "--max-length 41 is more than the 40 positions"),
    ("--text-columns words", "no column 'words'"),
    ("--out=", "--out '' is not the name of a directory"),
    ("--out=/", "--out / is not the name of a directory"),
    ("--metric f2", "--metric f2 is not one of"),
    ("--label-names no,yes", "row 1 has the label 'negative', expected 0 to 1"),
    ("--text-columns a,b,c", "--text-columns a,b,c: give one column, or the two of a pair"),
    pytest.param("--device cuda", "--device cuda cannot be used", marks=no_cuda),
])  # fmt: skip
def test_bad_options_are_one_line(refused, tiny, some_reviews, tmp_path, arguments, problem):
    common = [
        "--model",
        tiny,
        "--data",
        some_reviews,
        "--out",
        tmp_path / "out",
        "--max-length",
        16,
    ]
    assert problem in refused(*common, *arguments.split()) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage, problem", [
    (lambda model: model.joinpath("config.json").unlink(), "the directory has no config.json"),
    (lambda model: model.joinpath("model.safetensors").rename(model / "pytorch_model.bin"), "is a pickle"),
    (lambda model: os.truncate(model / "model.safetensors", 1_000_000), "not a whole safetensors file"),
    (lambda model: save_file({"wte.weight": torch.zeros(2)}, model / "model.safetensors"), "surplus tensor wte.weight"),
    (lambda model: edit_json(model / "config.json", hidden_size=16), "has the shape [32], expected [16]"),
], ids=["empty", "pickle", "truncated", "foreign", "narrower"])  # fmt: skip
def test_a_damaged_model_is_one_line(refused, tiny, some_reviews, tmp_path, damage, problem):
    model = shutil.copytree(tiny, tmp_path / "model")
    damage(model)
    assert problem in refused(
        "--model", model, "--data", some_reviews, "--out", tmp_path / "out", "--max-length", 16
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Options, rates and scores.


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("ratio", [0.0, 0.06, 0.5, 1.0])
def test_the_learning_rate_is_transformers(ratio, steps):
    config = Config(lr=3e-4, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, math.ceil(ratio * steps), steps
    )
    for step in range(steps):
        assert learning_rate(config, step, steps) == pytest.approx(
            schedule.get_last_lr()[0], rel=1e-12, abs=0
        )
        optimizer.step()
        schedule.step()


# Another method, as in examples/.


def test_what_is_trained_is_what_rewriting_leaves(tiny, some_reviews):
    """BitFit (Zaken et al., 2022), the biases alone, in two lines."""

    def biases(model):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        return model

    run = set_up(Config(str(tiny), str(some_reviews), rank=0, max_length=16, device="cpu"), biases)
    before = {name: parameter.clone() for name, parameter in run.model.named_parameters()}
    for rows in np.arange(8).reshape(4, 2):
        train_step(run, rows)
        run.progress.step += 1
    changed = {
        name
        for name, parameter in run.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == {name for name in before if name.endswith("bias")}
