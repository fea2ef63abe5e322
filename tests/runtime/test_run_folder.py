"""--out: nothing in it is ever replaced, and a run there is gone on with by its own options."""

import os
import shutil
import tomllib
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from helpers import ROOT
from safetensors.torch import load_file, save_file

from runtime import run_folder
from support import files, options
from train import Config

WEIGHTS = "best/adapter_model.safetensors"
CHECKPOINT = "checkpoint/checkpoint.safetensors"
FOREIGN = [
    "thesis.txt",
    "best/notes.txt",
    "final/README.md",
    CHECKPOINT,
    "config.toml",
    "metrics.jsonl",
]


def contents(folder: Path, log: bool = True) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    paths = [path for path in paths if log or path.name != "training_log.txt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory) -> Path:
    """A finished run, which nobody may change."""
    out = tmp_path_factory.mktemp("finished") / "out"
    quick(out)
    return out


@pytest.fixture
def unfinished(finished, tmp_path) -> Path:
    """The same as a kill at its end leaves it."""
    out = shutil.copytree(finished, tmp_path / "unfinished")
    shutil.rmtree(out / "final")
    return out


@pytest.fixture
def small(tiny, some_reviews) -> list:
    words = ["--model", tiny, "--data", some_reviews, "--max-length", 16, "--epochs", 1]
    return [*words, "--batch-size", 16]


# What is kept.


def test_a_run_is_kept(refused, small, finished, unfinished):
    ways = "--resume goes on with it; or give another --out, or rm -r "
    for out in finished, unfinished:
        before = contents(out)
        assert f"{out} holds a run: {ways}{out}" in refused(*small, "--out", out)
        assert contents(out) == before


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_that_holds_anything_else_stays_as_it_is(refused, small, tmp_path, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    for more in [], ["--resume"]:
        problem = refused(*small, "--out", out, *more)
        assert f"{out} holds {name.partition('/')[0]}, and no run: give another --out" in problem
    assert contents(out) == {name: b"mine"}


def test_the_current_folder_of_a_real_process(run, small, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = run(ROOT / "train.py", *small, "--out", ".", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert ". holds thesis.txt, and no run" in done.stderr
    assert contents(tmp_path) == {"thesis.txt": b"mine"}
    (tmp_path / "thesis.txt").unlink()
    assert run(ROOT / "train.py", *small, "--out", ".", cwd=tmp_path).returncode == 0
    assert (tmp_path / WEIGHTS).exists()


def test_what_was_put_into_a_runs_folder_stays(quick, unfinished):
    for name in "best/novel.txt", "thesis.txt":
        (unfinished / name).write_text("mine")
    quick(unfinished, "--resume")
    assert (unfinished / "final").exists()
    for name in "best/novel.txt", "thesis.txt":
        assert (unfinished / name).read_text() == "mine"


def test_a_file_is_no_folder(refused, small, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert f"{tmp_path / 'out'}: File exists" in refused(*small, "--out", tmp_path / "out")
    assert contents(tmp_path) == {"out": b"mine"}


def test_one_run_at_a_time(refused, small, unfinished):
    with files.locked(unfinished):
        before = contents(unfinished)
        problem = refused(*small, "--out", unfinished, "--resume")
        assert f"{unfinished}: another process is writing there" in problem
        assert contents(unfinished) == before


def test_a_run_that_another_has_finished_meanwhile_stays(
    refused, small, finished, tmp_path, monkeypatch
):
    """It is looked at again once the folder is this run's alone."""
    import train

    out = tmp_path / "out"
    set_up = train.set_up

    def during(config):
        shutil.copytree(finished, out)
        return set_up(config)

    monkeypatch.setattr(train, "set_up", during)
    assert f"{out} holds a run" in refused(*small, "--out", out)
    assert contents(out) == contents(finished)


# What a start that fails leaves.


def test_a_start_that_fails_leaves_nothing(refused, small, tmp_path):
    (tmp_path / "bad.csv").write_text("sentence,label\n")
    refused(*small, "--data", tmp_path / "bad.csv", "--out", tmp_path / "a" / "b" / "out")
    assert os.listdir(tmp_path) == ["bad.csv"]


def test_a_start_that_fails_leaves_a_run_as_it_was(refused, small, finished, tmp_path):
    """A finished one stays finished, where more epochs were asked for."""
    out = shutil.copytree(finished, tmp_path / "out")
    before = contents(out)
    more = ["--resume", "--out", out, "--epochs", 2]
    assert "nowhere.csv" in refused(*small, *more, "--data", "nowhere.csv")
    assert "started with lr 0.0005, not 0.1" in refused(*small, *more, "--lr", 0.1)
    (out / CHECKPOINT).write_bytes(b"damaged")
    assert f"{out / CHECKPOINT}: cannot be read (" in refused(*small, *more)
    (out / CHECKPOINT).unlink()
    assert "holds a finished run without its checkpoint" in refused(*small, *more)
    del before[CHECKPOINT]
    assert contents(out) == before


# Going on.


def test_resume_alone_goes_on_with_that_runs_options(run, quick, refused, tmp_path):
    """With other options, or the defaults, it could not but fail: there is no Hub."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    quick(whole, "--seed", 7, "--rank", 2, "--lr", 1e-3, "--max-length", 12)
    shutil.copytree(whole, out)
    shutil.rmtree(out / "final")
    assert "started with lr 0.001, not 0.0001" in refused("--resume", "--out", out, "--lr", 1e-4)
    done = run("train.py", "--resume", "--out", out)
    assert done.returncode == 0 and "resuming at step 4 of 4" in done.stdout, done.stderr
    final = "final/adapter_model.safetensors"
    assert (out / final).read_bytes() == (whole / final).read_bytes()


def test_a_finished_run_says_what_comes_next(run, hub, refused, finished, tmp_path):
    """As a second `make train` finds it, which asks no Hub; each thing that it says works."""
    out = shutil.copytree(finished, tmp_path / "out")
    before = contents(out, log=False)
    again = ["--offline-fallback", "--resume"]
    done = run(ROOT / "train.py", *again, cwd=tmp_path, env=hub.environment)
    assert (done.returncode, done.stderr) == (0, "") and not hub.served
    *_, answer, longer, anew, best = done.stdout.splitlines()
    assert answer == "to answer: python sample.py --adapter out/best"
    assert longer == "to train longer: the same command with --resume --epochs 2"
    assert anew == "to start anew: the same command with another --out"
    assert best.startswith("best validation accuracy 0.")
    before["config.toml"] = before["config.toml"].replace(
        b"offline_fallback = false", b"offline_fallback = true"
    )
    assert contents(out, log=False) == before
    words = answer.split()[3:]
    answered = run(ROOT / words[0], *words[1:], "great film", cwd=tmp_path)
    assert answered.returncode == 0 and answered.stdout.endswith("great film\n")
    longer = run(ROOT / "train.py", "--resume", "--epochs", 2, cwd=tmp_path)
    assert longer.returncode == 0 and "resuming at step 4 of 8" in longer.stdout, longer.stderr
    problem = refused("--resume", "--out", out, "--seed", 7)
    assert "started with seed 42, not 7; give another --out" in problem


@pytest.mark.slow
def test_a_finished_run_takes_more_epochs(run, quick, tmp_path):
    """Killed in them it goes on to the same bytes; best/ stays until something is better."""
    out, again = tmp_path / "out", tmp_path / "again"
    quick(out, "--epochs", 2, "--seed", 3)
    shutil.copytree(out, again)
    more = ["--resume", "--epochs", 4, "--log-every", 1]
    done = run("train.py", *more, "--out", out)
    said = "resuming at step 8 of 16\nepochs: 4, and was 2; "
    assert done.returncode == 0 and said in done.stdout, done.stderr
    kill = (
        "import os, sys, train\n"
        "from support import errors\n"
        "step = train.train_step\n"
        "train.train_step = lambda *given: os._exit(9) if given[2] == 14 else step(*given)\n"
        "errors.run_main(train.main)\n"
    )
    killed = run("-c", kill, *more, "--out", again)
    assert killed.returncode == 9 and not (again / "final" / "README.md").exists()
    done = run("train.py", "--resume", "--out", again)
    assert done.returncode == 0 and "resuming at step 12 of 16" in done.stdout, done.stderr
    for name in WEIGHTS, "final/adapter_model.safetensors", "metrics.jsonl":
        assert (out / name).read_bytes() == (again / name).read_bytes(), name


def test_what_a_run_reads_may_have_another_name(quick, unfinished, tiny, some_reviews, tmp_path):
    """And how often it is logged decides nothing; nor does "auto", where it is the same."""
    before = (unfinished / WEIGHTS).read_bytes()
    (tmp_path / "moved").symlink_to(tiny)
    copied = shutil.copy(some_reviews, tmp_path / "copied.csv")
    same = ["--model", tmp_path / "moved", "--data", copied, "--text-columns", "sentence"]
    quick(unfinished, *same, "--log-every", 3, "--device", "cpu", "--dtype", "float32", "--resume")
    assert (unfinished / "final").exists() and (unfinished / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    "written, read, problem",
    [
        (" the ", " a ", "started with contents of --data ["),
        ("positive", "praise", "with classes ['negative', 'positive'], not ['negative', 'praise']"),
    ],
)
def test_other_data_is_refused(
    refused, small, unfinished, some_reviews, tmp_path, written, read, problem
):
    before = contents(unfinished)
    (tmp_path / "other.csv").write_text(some_reviews.read_text().replace(written, read))
    other = [*small, "--data", tmp_path / "other.csv"]
    assert problem in refused(*other, "--out", unfinished, "--resume")
    assert contents(unfinished) == before


def test_other_weights_are_refused(refused, small, unfinished, tiny, tmp_path):
    base = shutil.copytree(tiny, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["bert.pooler.dense.bias"][0] += 1e-6
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    problem = refused(*small, "--model", base, "--out", unfinished, "--resume")
    assert "started with contents of --model '" in problem


def test_another_number_of_threads_is_said(run, unfinished):
    done = run("train.py", "--resume", "--out", unfinished, env={"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    assert "number of CPU threads: 2, and was 1; from here on" in done.stdout


# Options.


@pytest.mark.parametrize("name", ["\N{GRINNING FACE} café", 'a "b" \\ one', "tab\t line\n"])
def test_any_name_is_read_again_from_the_config(tmp_path, name):
    out = tmp_path / name
    out.mkdir()
    config = Config(out=str(out), model=name, weight_decay=1e300, lr=1e-9, resume=True)
    run_folder.write_options(config)
    assert tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))["model"] == name
    given = {"out": str(out), "resume": True}
    assert Config(**run_folder.former_options(Config, given), **given) == config
    assert (
        Config(**options.parse(Config, ["--config", str(out / "config.toml")]), **given) == config
    )
    assert run_folder.former_options(Config, {"out": str(out)}) == {}


def test_what_decides():
    config = Config("base", "data", epochs=5, out="elsewhere", resume=True)
    others = {field.name for field in fields(run_folder.RunOptions)}
    assert run_folder.deciding(config).keys() == asdict(config).keys() - others
    assert run_folder.deciding(config)["epochs"] == 5
    assert run_folder.deciding(Config)["epochs"] == 3
    assert {"out", "resume", "log_every", "license"} < others
