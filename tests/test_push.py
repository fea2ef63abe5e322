"""Pushing an adapter: the Hub's own client against a server on 127.0.0.1 that keeps what a commit
brings."""

import shlex
import shutil
from pathlib import Path

import pytest

from support.hub import content_for

CARD = '---\nlibrary_name: peft\n---\nA card.\n\n    python sample.py --adapter out/best "great film"\n'


def train(run, minilm, table, out, hub, *more):
    short = ("--epochs", 1, "--max-length", 12, "--batch-size", 16)
    where = ("--model", minilm, "--data", table, "--out", out, "--push-to-hub")
    return run("train.py", *where, *short, *more, env=hub.environment)


def test_a_run_is_pushed_whole_and_comes_back(run, hub, minilm, table, tmp_path):
    out = tmp_path / "out"
    done = train(run, minilm, table, out, hub, "--hub-model-id", "you/sst2", "--hub-private")
    assert done.returncode == 0, done.stderr
    assert hub.created["name"] == "sst2" and hub.created["visibility"] == "private"
    best = {path.name: path.read_bytes() for path in (out / "best").iterdir()}
    assert hub.files == best | {"training_curves.png": (out / "training_curves.png").read_bytes()}
    card = hub.files["README.md"].decode()
    assert "library_name: peft" in card and "--adapter you/sst2" in card and "accuracy" in card
    (tmp_path / "pushed").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    hub.add("you/sst2", tmp_path / "pushed")
    answers = [
        run("sample.py", "--adapter", a, "great film", env=hub.environment)
        for a in ("you/sst2", out / "best")
    ]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout


@pytest.mark.parametrize("token, role, repository, problem", [
    ("hf_wrong", "write", "you/sst2", "hf auth login"),
    ("hf_right", "read", "you/sst2", "your token can only read"),
    ("hf_right", "read", "us/sst2", "your token can only read"),
    ("hf_right", "write", "them/sst2", "you are you on the Hub, who cannot push to what is them's"),
])  # fmt: skip
def test_the_login_is_checked_before_training(
    run, hub, minilm, table, tmp_path, token, role, repository, problem
):
    hub.environment["HF_TOKEN"], hub.role = token, role
    done = train(run, minilm, table, tmp_path / "out", hub, "--hub-model-id", repository)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith(f"error: {repository}: ") and done.stderr.count("\n") == 1
    assert problem in done.stderr


@pytest.mark.parametrize("name", ["out/best", "a run/best", "best", "best/a"])
def test_a_card_names_the_repository_and_is_else_as_it_was(quick, tmp_path, name, monkeypatch):
    """Of a run in a folder whose name stands in other words of the card too."""
    monkeypatch.chdir(tmp_path)
    out = Path(name).parent
    quick(out)
    card = (out / "best" / "README.md").read_bytes()
    sent = content_for("you/sst2", out / "best" / "README.md")
    place = "best" if out == Path(".") else f"{out}/best"
    assert (
        sent.count(b"you/sst2")
        == card.count(place.encode() + b'"') + card.count(f"{shlex.quote(place)} ".encode())
        > 2
    )
    assert sent.replace(b"you/sst2", place.encode()) == card.replace(
        shlex.quote(place).encode(), place.encode()
    )


def test_push_later(run, hub, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    done = run("lora.py", "push", folder, "you/sst2", env=hub.environment)
    assert done.returncode == 2 and "holds no adapter" in done.stderr
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text(CARD)
    done = run("lora.py", "push", folder, "you/sst2", env=hub.environment)
    assert done.returncode == 0, done.stderr
    assert hub.files.keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert hub.files["README.md"].decode() == CARD.replace("out/best", "you/sst2")
    assert hub.created.get("visibility") != "private"
    shutil.rmtree(folder)


def test_a_push_that_fails_after_the_training_loses_nothing(run, hub, minilm, table, tmp_path):
    """The adapter is whole in --out, and the line says how it gets to the Hub later: that works."""
    out = tmp_path / "out"
    hub.full = True
    done = train(run, minilm, table, out, hub, "--hub-model-id", "you/sst2")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: you/sst2: ")
        and done.stderr.count("\n") == 1
    )
    assert (out / "final" / "README.md").exists()
    hub.full = False
    again = done.stderr.strip().rpartition(" goes there with: python ")[2]
    assert run(*shlex.split(again), env=hub.environment).returncode == 0
    assert "adapter_model.safetensors" in hub.files
