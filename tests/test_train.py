"""Training as a user meets it: the files it leaves, the same bytes again, interruptions, one line
for a mistake."""

import json
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, edit_json, tokens, write_table
from safetensors.torch import load_file, save_file

from train import Config, learning_rate, place, prepare, set_up, train_step

ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
WEIGHTS = "best/adapter_model.safetensors"
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


# Real processes.

STEPS = ["--max-length", "16", "--epochs", "2", "--batch-size", "4", "--log-every", "1"]
STEPS += ["--eval-every", "10"]


@pytest.fixture(scope="module")
def command(tiny, some_reviews) -> list[str]:
    """A run of 30 steps, without --out."""
    return ["train.py", "--model", str(tiny), "--data", str(some_reviews), *STEPS]


@pytest.fixture(scope="module")
def finished(forks, command, tmp_path_factory) -> Path:
    """The --out of such a run, with what it printed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    words = [str(ROOT / command[0]), *command[1:], "--out", str(out)]
    done = forks.run(words, cwd=ROOT, env=ENVIRONMENT, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    out.with_name("stdout").write_text(done.stdout, encoding="utf-8")
    return out


def assert_same_run(first, second):
    checkpoint = "checkpoint/checkpoint.safetensors"
    reports = ("report.json", "report.png", "validation_predictions.csv")
    for name in WEIGHTS, "final/adapter_model.safetensors", "metrics.jsonl", checkpoint, *reports:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_run_leaves_everything(finished, tiny, some_reviews):
    for folder in "best", "final":
        names = {path.name for path in (finished / folder).iterdir()}
        adapter = {"adapter_config.json", "adapter_model.safetensors", "config.json", "README.md"}
        assert names == adapter
    assert (finished / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    printed = finished.with_name("stdout").read_text(encoding="utf-8")
    assert (finished / "training_log.txt").read_text(encoding="utf-8") == printed
    assert "58 sentences to train on, 6 to validate" in printed and "2,114 trained" in printed
    assert f"best validation accuracy 0.5000, kept in {finished}/best\n" in printed
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if "train_loss" in r] == list(range(1, 31))
    assert [r["step"] for r in records if "validation_accuracy" in r] == [10, 15, 20, 30]
    config = tomllib.loads((finished / "config.toml").read_text())
    wanted = {"model": str(tiny), "data": str(some_reviews), "batch_size": 4, "lr": 5e-4}
    assert config == config | wanted | {"seed": 42}


def test_a_run_repeats_from_its_config_to_the_byte(run, finished, tmp_path):
    done = run("train.py", "--config", finished / "config.toml", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, tmp_path / "out")


def start(command: list[str], **streams) -> subprocess.Popen:
    words = [sys.executable, *map(str, command)]
    streams = {"stdout": subprocess.PIPE} | streams
    return subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, text=True, **streams)


def interrupt(process: subprocess.Popen, step: int, number: int) -> tuple[int, str]:
    """Sends the signal when the log has come to the step; the exit status and the last line."""
    next(line for line in process.stdout if line.startswith(f"step {step}/"))
    process.send_signal(number)
    rest = process.stdout.read().splitlines()
    return process.wait(60), rest[-1] if rest else ""


def test_a_stopped_and_a_killed_run_go_on_to_the_same_bytes(run, finished, command, tmp_path):
    """Stopped by a signal it says how to go on; killed it loses what no checkpoint has."""
    out = tmp_path / "my out"
    process = start([*command, "--out", out, "--save-every", 1])
    code, last = interrupt(process, 3, signal.SIGINT)
    assert code == 130 and not (out / "final").exists()
    pattern = r"stopped at step (\d+); the same command with --resume goes on"
    stopped = re.fullmatch(pattern, last)[1]
    assert 3 <= int(stopped) < 30
    process = start(["train.py", "--resume", "--out", out])
    next(line for line in process.stdout if line == f"resuming at step {stopped} of 30\n")
    assert interrupt(process, 21, signal.SIGKILL)[0] == -9
    done = run("train.py", "--resume", "--out", out)
    resumed = re.search(r"^resuming at step (\d+) of 30$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and int(resumed[1]) >= 20, done.stderr
    assert_same_run(finished, out)


def test_a_run_stops_when_its_patience_ends(run, command, tmp_path):
    """Also a run that was killed: how many evaluations it has waited for is kept."""
    words = [*command, "--epochs", 9, "--lr", 0.05, "--patience", 2, "--save-every", 1]
    done = run(*words, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    records = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    seen = [r for r in records if "validation_loss" in r]
    best = max(seen, key=lambda r: (r["validation_accuracy"], -r["validation_loss"], r["step"]))
    assert seen.index(best) == len(seen) - 3
    last = seen[-1]["step"]
    assert last < 135 and f"step {last}: 2 evaluations without a better one" in done.stdout
    assert "--resume --patience 3" in done.stdout
    process = start([*words, "--out", tmp_path / "killed"])
    interrupt(process, seen[-2]["step"] + 2, signal.SIGKILL)
    done = run("train.py", "--resume", "--out", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "out", tmp_path / "killed")
    longer = run("train.py", "--resume", "--patience", 99, "--out", tmp_path / "killed")
    assert longer.returncode == 0 and "step 135/135" in longer.stdout, longer.stderr


@pytest.mark.slow
def test_a_killed_run_in_float16_goes_on_to_the_same_bytes(run, command, tmp_path):
    outs = [tmp_path / name for name in ("through", "killed")]
    half = [*command, "--dtype", "float16"]
    said = run(*half, "--out", outs[0]).stdout
    assert re.match(r"model  \S+ on cpu in float16, as asked\n", said)
    process = start([*half, "--out", outs[1], "--save-every", 1])
    assert interrupt(process, 11, signal.SIGKILL)[0] == -9
    done = run("train.py", "--resume", "--out", outs[1])
    assert "resuming at step" in done.stdout
    assert_same_run(*outs)


def test_float16_trains_as_float32_does(tiny, some_reviews):
    """Fifty losses, within 2e-3, with dropout."""
    found = {}
    for dtype in "float32", "float16", "bfloat16":
        common = {"max_length": 16, "batch_size": 8, "device": "cpu", "lr": 5e-3}
        setup = set_up(Config(model=str(tiny), data=str(some_reviews), dtype=dtype, **common))
        setup.model.train()
        rows = np.arange(len(setup.train_set.lengths))
        losses = []
        for step in range(50):
            loss_sum = train_step(setup, np.roll(rows, -8 * step)[:8], step)
            losses.append(loss_sum.item() / 8)
        found[dtype] = np.array(losses)
    error = {dtype: np.abs(found["float32"] - found[dtype]).max() for dtype in found}
    assert 0 < error["float16"] < 2e-3 and error["float16"] < error["bfloat16"]
    assert setup.placement.dtype == torch.bfloat16 and found["float32"].std() > 0.01


TWICE = """
import os, signal, sys, train
from support import errors
step = train.train_step
def train_step(*given):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    return step(*given)
train.train_step = train_step
errors.run_main(train.main)
"""


def test_a_second_signal_ends_a_run_at_once(run, command, tmp_path):
    """Nothing of worth is there yet, so that the same command begins anew."""
    done = run("-c", TWICE, *command[1:], "--out", tmp_path / "out")
    assert done.returncode == -signal.SIGINT
    assert not (tmp_path / "out" / "checkpoint").exists()
    done = run(*command, "--out", tmp_path / "out", "--epochs", 1)
    assert done.returncode == 0, done.stderr


def test_an_edit_of_the_code_is_said(run, finished, tmp_path):
    for name in "bert.py", "lora.py", "data.py", "train.py":
        shutil.copy(ROOT / name, tmp_path)
    for name in "support", "runtime":
        (tmp_path / name).mkdir()
        for path in (ROOT / name).glob("*.py"):
            shutil.copy(path, tmp_path / name)
    shutil.copytree(finished, tmp_path / "out")
    model = (tmp_path / "bert.py").read_text()
    edited = model.replace("math.sqrt(q.shape[-1])", "math.sqrt(2 * q.shape[-1])")
    assert edited != model
    (tmp_path / "bert.py").write_text(edited)
    done = run("train.py", "--resume", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    note = r"code of bert.py: \w{8}, and was \w{8}; from here on "
    assert re.search(note, done.stdout)


def test_a_run_outlives_its_terminal(command, finished, tmp_path):
    screen, terminal = pty.openpty()
    process = start([*command, "--out", tmp_path / "out"], stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert os.read(screen, 4096).startswith(b"model  ")
    os.close(screen)
    assert process.wait(60) == 0
    assert_same_run(finished, tmp_path / "out")


@pytest.mark.parametrize("where", ["| head -1", "<&- >&- 2>&-"])
@pytest.mark.slow
def test_a_run_outlives_its_output(command, finished, tmp_path, where):
    shell = f'"$@" {where}; exit ${{PIPESTATUS[0]}}'
    words = ["bash", "-c", shell, "bash", sys.executable, *command, "--out", tmp_path / "out"]
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert_same_run(finished, tmp_path / "out")
    log = (tmp_path / "out" / "training_log.txt").read_text()
    assert log.splitlines()[-1].startswith("best validation accuracy 0.5000, kept in ")


# The same in this process, on a tiny BERT.


def test_the_seed_decides_the_bytes(quick, tmp_path):
    for name, targets in ("1", "query,value"), ("1 again", "query, value"), ("2", "query,value"):
        quick(tmp_path / name, "--seed", name[0], "--targets", targets)
    one, again, two = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("1", "1 again", "2"))
    assert one == again != two


def test_accumulated_batches_train_as_one(tiny, quick, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    edit_json(base / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    common = ["--model", base, "--dropout", 0]
    whole = quick(tmp_path / "16", *common, "--batch-size", 16)
    parts = quick(tmp_path / "8 x 2", *common, "--batch-size", 8, "--grad-accum", 2)
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=0)


def test_rank_0_trains_everything(quick, tiny, tmp_path):
    import transformers

    quick(tmp_path / "out", "--rank", 0)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model, info = load(tmp_path / "out" / "best", output_loading_info=True)
    assert type(model) is transformers.BertForSequenceClassification and not any(info.values())
    base = load_file(tiny / "model.safetensors")
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, base[name])]
    assert not same
    assert tokens(tmp_path / "out" / "best") == tokens(tiny)


@pytest.fixture
def numbers(some_reviews, tmp_path) -> Path:
    """The reviews with the classes 0 and 1."""
    text = some_reviews.read_text().replace('"negative"', "0").replace('"positive"', "1")
    (tmp_path / "numbers.csv").write_text(text)
    return tmp_path / "numbers.csv"


def test_going_on_from_an_adapter(run, quick, refused, tiny, some_reviews, numbers, tmp_path):
    """Its base, rank, alpha and targets stay; its dropout too, unless told; and its classes."""
    quick(tmp_path / "a", "--rank", 4, "--targets", "query", "--dropout", 0.1)
    common = ["--init-adapter", tmp_path / "a" / "best", "--max-length", 16, "--epochs", 1]
    common += ["--batch-size", 16]
    problem = refused(*common, "--data", some_reviews, "--out", tmp_path / "b", "--rank", 8)
    assert "--rank 8: --init-adapter has 4, and keeps it" in problem
    first_lines = []
    for name, dropout, data in (
        ("kept", [], numbers),
        ("told", ["--dropout", "0.5"], some_reviews),
    ):
        out = tmp_path / name
        done = run("train.py", *common, *dropout, "--data", data, "--out", out)
        assert done.returncode == 0 and "classes negative, positive" in done.stdout, done.stderr
        wanted = float(dropout[1]) if dropout else 0.1
        options = tomllib.loads((out / "config.toml").read_text())
        own = {"model": str(tiny), "rank": 4, "targets": "query", "dropout": wanted}
        assert options == options | own
        written = json.loads((out / "best" / "adapter_config.json").read_text())
        assert (written["r"], written["lora_dropout"]) == (4, wanted)
        first_lines.append((out / "metrics.jsonl").read_text().splitlines()[0])
        assert [*json.loads(first_lines[-1])] == ["step", "train_loss"]  # of a run of four steps
    assert first_lines[0] != first_lines[1]

    again = run("train.py", "--resume", "--out", tmp_path / "kept")
    assert again.returncode == 0 and "resuming at step 4 of 4\n" in again.stdout, again.stderr
    other = ["--init-adapter", tmp_path / "kept" / "best"]
    problem = refused("--resume", "--out", tmp_path / "kept", *other)
    assert "that run was started with contents of --init-adapter '" in problem
    others = some_reviews.read_text().replace('"positive"', '"ham"').replace('"negative"', '"spam"')
    (tmp_path / "others.csv").write_text(others)
    problem = refused(*common, "--data", tmp_path / "others.csv", "--out", tmp_path / "b")
    assert "has the classes negative, positive (2), and the data ham, spam (2)" in problem


@pytest.mark.parametrize("rank", [0, 4])
def test_recomputed_layers_train_to_the_same_bytes(quick, tmp_path, rank):
    """With dropout; and the forward pass keeps less than half of what it keeps otherwise."""
    kept = []
    for name, more in ("kept", []), ("recomputed", ["--gradient-checkpointing"]):
        sizes = []

        def count(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            quick(tmp_path / name, "--rank", rank, *more)
        kept.append(sum(sizes))
    weights = "adapter_model.safetensors" if rank else "model.safetensors"
    for file in "metrics.jsonl", f"best/{weights}":
        ours, theirs = ((tmp_path / name / file).read_bytes() for name in ("kept", "recomputed"))
        assert ours == theirs
    assert kept[1] < kept[0] / 2, kept


# Mistakes.


def test_a_bad_input_is_one_line_of_a_real_process(run, some_reviews, tmp_path):
    done = run("train.py", "--model", tmp_path, "--data", some_reviews, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
    assert re.fullmatch(rf"error: {tmp_path}: holds no tokenizer.*\n", done.stderr)


BAD_OPTIONS = [
    ("--rank -1", "--rank -1 is not at least 0"),
    ("--batch-size 0", "--batch-size 0 is not at least 1"),
    ("--dropout 1", "--dropout 1.0 is not below 1"),
    ("--warmup-ratio 1.5", "--warmup-ratio 1.5 is not at most 1"),
    ("--lr nan", "--lr nan is not "),
    (f"--rank {10**18}", "try a smaller --rank"),
    ("--epochs many", "invalid int value: 'many'"),
    ("--learnrate 1", "unrecognized arguments: --learnrate"),
    ("--config nowhere.toml", "nowhere.toml: cannot be read (No such file"),
    ("--data nowhere.csv", "nowhere.csv: no such file"),
    ("--data nowhere", "nowhere: no such file"),
    ("--model no/where/at/all", "no such directory"),
    ("--targets querry,value", "the target 'querry' matches no linear layer; "),
    ("--targets ,", "the target '' matches no linear layer; "),
    ("--max-length 41", "--max-length 41: the base has 40 positions"),
    ("--text-columns words", "no column words among sentence, label"),
    ("--metric f2", "'f2'"),
    ("--label-names no,yes", "row 1 has the label 'negative', expected one of no, yes"),
    ("--text-columns a,b,c", "no column a+b+c among"),
    pytest.param("--device cuda", "--device cuda cannot be used", marks=no_cuda),
]


@pytest.mark.parametrize("arguments, problem", BAD_OPTIONS)
def test_bad_options_are_one_line(refused, tiny, some_reviews, tmp_path, arguments, problem):
    common = ["--model", tiny, "--data", some_reviews, "--out", tmp_path / "out"]
    assert problem in refused(*common, "--max-length", 16, *arguments.split())
    assert not (tmp_path / "out").exists()


DAMAGE = {
    "empty": lambda model: (model / "config.json").unlink(),
    "pickle": lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"),
    "truncated": lambda model: os.truncate(model / "model.safetensors", 1_000_000),
    "foreign": lambda model: save_file({"wte.weight": torch.zeros(2)}, model / "model.safetensors"),
    "narrower": lambda model: edit_json(model / "config.json", hidden_size=16),
    "one segment": lambda model: edit_json(model / "config.json", type_vocab_size=1),
}
PROBLEMS = {
    "empty": "config.json: cannot be read (No such file or directory)",
    "pickle": "is a pickle",
    "truncated": "cannot be read (",
    "foreign": "model.safetensors: Error(s) in loading",
    "narrower": "size mismatch for bert.embeddings",
    "one segment": "[2, 32]) from checkpoint, the shape in current model is torch.Size([1, 32])",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_one_line(refused, tiny, some_reviews, tmp_path, damage):
    model = shutil.copytree(tiny, tmp_path / "model")
    DAMAGE[damage](model)
    words = ["--model", model, "--data", some_reviews, "--out", tmp_path / "out"]
    assert PROBLEMS[damage] in refused(*words, "--max-length", 16)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_pairs_need_a_second_segment(refused, tiny, tmp_path):
    """As in RoBERTa's way to train, which some BERTs follow."""
    base = shutil.copytree(tiny, tmp_path / "base")
    edit_json(base / "config.json", type_vocab_size=1)
    weights = load_file(base / "model.safetensors")
    name = "bert.embeddings.token_type_embeddings.weight"
    weights[name] = weights[name][:1].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    table = {"sentence1": list("abcdefghijkl"), "sentence2": ["b"] * 12, "label": [0, 1] * 6}
    data = write_table(tmp_path / "pairs.csv", table)
    words = ["--model", base, "--data", data, "--max-length", 16, "--out", tmp_path / "out"]
    assert "has no second segment" in refused(*words) and not (tmp_path / "out").exists()


# Rates, and other methods.


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("ratio", [0.0, 0.06, 0.5, 1.0])
def test_the_learning_rate_is_transformers(ratio, steps):
    import transformers

    config = Config(lr=3e-4, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    warmup = math.ceil(ratio * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    for step in range(steps):
        theirs = schedule.get_last_lr()[0]
        assert learning_rate(config, step, steps) == pytest.approx(theirs, rel=1e-12, abs=0)
        optimizer.step()
        schedule.step()


def test_what_is_trained_is_what_rewriting_leaves(tiny, some_reviews):
    """BitFit (Zaken et al., 2022), the biases alone, in two lines; as in examples/."""

    config = Config(str(tiny), str(some_reviews), rank=0, max_length=16, device="cpu")
    tokenizer, data, model = prepare(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    setup = place(config, tokenizer, data, model)
    before = {name: parameter.clone() for name, parameter in setup.model.named_parameters()}
    for step, rows in enumerate(np.arange(8).reshape(4, 2)):
        train_step(setup, rows, step)
    changed = {
        name
        for name, parameter in setup.model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == {name for name in before if name.endswith("bias")}
