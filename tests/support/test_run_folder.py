"""What may be replaced in --out, and what may not; going on with what is there by its own
options."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from pyarrow import parquet

from support import offline, run_folder
from support.options import parse_options
from train import Config

WEIGHTS = "best/adapter_model.safetensors"
FOREIGN = ["best/notes.txt", "best/adapter_config.json", "final/README.md", "checkpoint/checkpoint.safetensors",
           ".lock", "config.toml", "metrics.jsonl", "training_log.txt", "training_curves.png",
           ".config.toml.tmp"]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unfinished(quick, out: Path, *options) -> Path:
    """A run as one that was killed at its end leaves it."""
    quick(out, *options)
    shutil.rmtree(out / "final")
    return out


@pytest.fixture
def common(tiny, some_reviews) -> list:
    return [
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
    ]


def test_a_finished_or_unfinished_run_is_kept(quick, refused, some_reviews, tmp_path):
    out, table = tmp_path / "out", Path(shutil.copy(some_reviews, tmp_path))
    quick(out, "--data", table)
    kept, again = (out / WEIGHTS).read_bytes(), ["--config", out / "config.toml"]
    assert "finished run: --overwrite" in refused(*again)
    assert "finished run: --overwrite" in refused(*again, "--resume")
    shutil.copytree(out, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "final")
    shutil.rmtree(tmp_path / "copy" / "checkpoint")  # to save space, say
    for options in [], ["--resume"]:
        assert "finished run: --overwrite" in refused(*again, "--out", tmp_path / "copy", *options)
    shutil.rmtree(out / "final")  # what a run looks like that was killed at its end
    assert "unfinished run: --resume" in refused(*again)
    for other in "lr=1e-4", "seed=7", "rank=4", "max_length=12", "eval_every=2":
        assert f"started with {other.split('=')[0]} " in refused(*again, "--resume", f"--{other}")
    table.write_text(some_reviews.read_text().replace(" the ", " a "))
    assert "other weights or data" in refused(*again, "--resume")
    table.write_text(some_reviews.read_text().replace("positive", "praise"))
    assert "started with classes ['negative', 'positive'], not ['negative', 'praise']" in refused(
        *again, "--resume"
    )
    shutil.copy(some_reviews, table)
    assert (out / WEIGHTS).read_bytes() == kept
    quick(out, "--data", table, "--resume")
    assert (out / "final").exists() and (out / WEIGHTS).read_bytes() == kept
    quick(out, "--data", table, "--overwrite", "--seed", 7)
    assert (out / WEIGHTS).read_bytes() != kept


# The user's own files.


@pytest.mark.parametrize("name", FOREIGN)
def test_what_no_run_left_is_named_and_stays(refused, common, tmp_path, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    (out / "thesis.txt").write_text("mine")
    before = contents(out)
    for options in [], ["--resume"], ["--overwrite"], ["--resume", "--overwrite"]:
        assert f"{out / name.replace('/notes.txt', '')} is in the way" in refused(
            *common, "--out", out, *options
        )
    assert contents(out) == before


def test_the_current_directory_of_a_real_process(run, common, tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "novel.txt").write_text("mine")
    (tmp_path / "thesis.txt").write_text("mine")
    command = [ROOT / "train.py", *common, "--out", ".", "--overwrite"]
    done = run(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (
        2,
        "",
        1,
    ) and "best is in the way" in done.stderr
    assert contents(tmp_path) == {"best/novel.txt": b"mine", "thesis.txt": b"mine"}
    (tmp_path / "best").rename(tmp_path / "mine")
    assert run(*command, cwd=tmp_path).returncode == 0
    assert run(*command, cwd=tmp_path).returncode == 0  # this one's own are replaced
    assert (tmp_path / WEIGHTS).exists() and (tmp_path / "mine" / "novel.txt").read_text() == "mine"
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_put_among_a_runs_own_is_left_and_named(quick, tmp_path):
    out = tmp_path / "out"
    quick(out, "--rank", 0)
    for name in "best/novel.txt", "thesis.txt":
        (out / name).write_text("mine")
    quick(out, "--overwrite")
    assert {p.name for p in (out / "best").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "config.json",
        # fmt: skip
        "adapter_model.safetensors",
        "novel.txt",
    }
    assert (out / "best" / "novel.txt").read_text() == (out / "thesis.txt").read_text() == "mine"
    assert (
        f"left as it is, as no run wrote it: {out / 'best' / 'novel.txt'}\n"
        in (out / run_folder.LOG).read_text()
    )


def test_an_input_that_would_be_replaced_is_refused(quick, refused, common, some_reviews, tmp_path):
    out = tmp_path / "out"
    quick(out, "--rank", 0)
    shutil.copy(some_reviews, out / "final" / "reviews.csv")
    shutil.copy(some_reviews, out / "reviews.csv")
    (tmp_path / "link").symlink_to(out / "best")
    (tmp_path / "linked").mkdir()
    for name in "config.json", "model.safetensors", "tokenizer.json":
        (tmp_path / "linked" / name).symlink_to(out / "best" / name)
    before = contents(out)
    places = {"--model": [out / "best", f"{out}/../out/best/", tmp_path / "link", tmp_path / "linked"],
              "--data": [out / "final" / "reviews.csv", out / "final"], "--init-adapter": [out / "best"]}  # fmt: skip
    for flag, value in ((flag, value) for flag, values in places.items() for value in values):
        for options in [], ["--overwrite"], ["--resume"]:
            assert f"{flag} {value} lies in what --out" in refused(
                *common, "--out", out, flag, value, *options
            )
    assert contents(out) == before
    quick(out, "--data", out / "reviews.csv", "--overwrite")  # beside what is replaced


def test_its_own_config_may_be_what_a_run_is_replaced_by(run, quick, tmp_path):
    quick(tmp_path / "out", "--seed", 7)
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    done = run(
        "train.py",
        "--config",
        tmp_path / "out" / "config.toml",
        "--overwrite",
        env={"OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before


def test_an_out_that_is_no_utf8_is_one_line_before_the_training(run, common, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    command = [sys.executable, "train.py", *map(str, common), "--out", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert rb"caf\udce9' is not UTF-8" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["\N{GRINNING FACE} café", 'a "quoted" \\ one', "del\x7f tab\t line\n"]
)
def test_any_name_is_read_again_from_the_config(tmp_path, name):
    out = tmp_path / name
    out.mkdir()
    config = Config(out=str(out), model=name, resume=True, weight_decay=1e300, lr=1e-9)
    run_folder.write_options(vars(config))
    assert tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))["model"] == name
    assert Config(**parse_options(Config, ["--config", str(out / "config.toml")])) == config


# Going on.


def test_resume_alone_goes_on_with_that_runs_options(run, quick, tmp_path):
    """A real process, without a Hub: with other options, or the defaults, it could but fail."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--seed", 7, "--rank", 2, "--lr", 1e-3, "--max-length", 12]
    quick(whole, *options)
    unfinished(quick, out, *options)
    done = run("train.py", "--resume", "--out", out, env={"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0 and "resuming at step 4 of 4" in done.stdout, done.stderr
    assert (out / "final" / "adapter_model.safetensors").read_bytes() == (
        whole / "final" / "adapter_model.safetensors"
    ).read_bytes()
    done = run("train.py", "--resume", "--out", out)
    assert done.returncode == 2 and "finished run" in done.stderr and "Hub" not in done.stderr
    done = run(
        "train.py", "--resume", "--out", unfinished(quick, tmp_path / "third"), "--lr", "1e-4"
    )
    assert done.returncode == 2 and "started with lr 0.0005, not 0.0001" in done.stderr


def test_make_train_asks_no_hub_where_there_is_a_run(run, hub, environment, quick, tmp_path):
    out = unfinished(quick, tmp_path / "out", "--offline-fallback")
    for status in 0, 2:  # the second finds a finished run
        done = run("train.py", "--offline-fallback", "--resume", "--out", out, env=environment)
        assert done.returncode == status, done.stderr
    assert "finished run" in done.stderr and not hub.served


def test_the_offline_pair_is_gone_on_with_by_name_only(quick, tmp_path, monkeypatch):
    out = tmp_path / "out"
    quick(out, "--offline-fallback")
    text = (out / "config.toml").read_text()
    model, data = offline.DIRECTORIES
    monkeypatch.chdir(tmp_path)
    lines = [line for line in text.splitlines() if not line.startswith(("model", "data"))]
    (out / "config.toml").write_text("\n".join([*lines, f'model = "{model}"', f'data = "{data}"']))
    former, notice = run_folder.former_options(Config(resume=True))
    assert former["model"] == model and "does NOT train bert-base-uncased" in notice
    shutil.rmtree(out / "checkpoint")  # nothing to go on with: the Hub may be asked again
    assert run_folder.former_options(Config(resume=True)) == ({}, "")


def test_spellings_the_log_and_the_same_device_may_change(
    quick, tiny, some_reviews, tmp_path, monkeypatch
):
    out = unfinished(quick, tmp_path / "out", "--device", "auto")
    monkeypatch.chdir(tiny.parent)
    before = (out / WEIGHTS).read_bytes()
    same = ["--model", f"./{tiny.name}/", "--data", os.path.relpath(some_reviews), "--log-every", 3]
    quick(
        out,
        *same,
        "--resume",
        "--device",
        "cuda" if torch.cuda.is_available() else "cpu",
        "--dtype",
        "auto",
    )
    assert (out / "final").exists() and (out / WEIGHTS).read_bytes() == before
    (tmp_path / "moved").symlink_to(tiny)
    shutil.rmtree(out / "final")
    quick(out, "--model", tmp_path / "moved", "--text-columns", "sentence", "--resume")
    assert (out / "final").exists() and (out / WEIGHTS).read_bytes() == before


def test_another_number_of_threads_is_said(run, quick, tmp_path):
    out = unfinished(quick, tmp_path / "out")
    assert torch.get_num_threads() == 2  # here; in the other process there is one
    done = run("train.py", "--resume", "--out", out, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (
        "the number of CPU threads is 1, and was 2 until here: OMP_NUM_THREADS=2 would"
        in done.stdout
    )
    assert "OMP_NUM_THREADS=1\n" in (out / "config.toml").read_text()
    shutil.rmtree(out / "final")
    quick(out, "--resume")
    assert (out / "training_log.txt").read_text().count("the number of CPU threads is") == 1


def test_a_finished_run_takes_more_epochs(run, quick, tmp_path):
    """Killed in them it goes on to the same bytes; best/ stays until something is better."""
    out, again, environment = tmp_path / "out", tmp_path / "again", {"OMP_NUM_THREADS": "2"}
    quick(out, "--epochs", 2, "--seed", 3)
    shutil.copytree(out, again)
    done = run(
        "train.py", "--resume", "--out", out, "--epochs", 4, "--log-every", 1, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (
        "4 epochs instead of 2: the learning rate's line is drawn anew over all steps"
        in done.stdout
    )
    assert (
        "resuming at step 8 of 16" in done.stdout
        and "(best so far)" in (again / "training_log.txt").read_text()
    )
    kill = (
        "import os, sys, train\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "evaluate = train.evaluate\n"
        "train.evaluate = lambda run: os._exit(9) if run.progress.step == 16 else evaluate(run)\n"
        "train.main()\n"
    )
    killed = run(
        "-c", kill, "--resume", "--out", again, "--epochs", 4, "--log-every", 1, env=environment
    )
    assert killed.returncode == 9 and not (again / "final" / "README.md").exists()
    done = run("train.py", "--resume", "--out", again, env=environment)
    assert done.returncode == 0 and "resuming at step 12 of 16" in done.stdout, done.stderr
    for name in WEIGHTS, "final/adapter_model.safetensors", "metrics.jsonl":
        assert (out / name).read_bytes() == (again / name).read_bytes(), name
    done = run("train.py", "--resume", "--out", out, "--epochs", 3)
    assert (
        done.returncode == 2
        and "finished run" in done.stderr
        and "more --epochs than 4" in done.stderr
    )


@pytest.mark.slow
def test_a_moved_checkout_finds_its_offline_pair_again(run, tiny, reviews, tmp_path):
    """The adapter and config.toml name directories that are gone: they lie in this checkout now.
    (The pair is a small one under the names of the real one.)"""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    for name in "bert.py", "lora.py", "data.py", "train.py", "sample.py", "support":
        path = ROOT / name
        shutil.copytree(path, here / name) if path.is_dir() else shutil.copy(path, here)
    shutil.copytree(tiny, here / "offline" / "all-MiniLM-L6-v2")
    (here / "offline" / "movie-reviews").mkdir()
    for file in Path(reviews).iterdir():
        parquet.write_table(
            parquet.read_table(file).slice(0, 40), here / "offline" / "movie-reviews" / file.name
        )
    model, data = (here / "offline" / Path(place).name for place in offline.offline_pair())
    options = [
        "--model",
        model,
        "--data",
        data,
        "--max-length",
        8,
        "--batch-size",
        20,
        "--epochs",
        1,
        "--rank",
        1,
    ]
    environment = {"OMP_NUM_THREADS": "2"}
    done = run("train.py", *options, cwd=here, env=environment)
    assert done.returncode == 0, done.stderr
    here.rename(there)
    done = run("sample.py", "great film", cwd=there)
    assert done.returncode == 0 and "great film" in done.stdout, done.stderr
    shutil.rmtree(there / "out" / "final")
    done = run("train.py", "--resume", "--out", "out", cwd=there, env=environment)
    assert done.returncode == 0 and "resuming at step 2 of 2" in done.stdout, done.stderr
