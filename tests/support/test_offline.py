"""The pair that `make train` takes: the official one where the Hub answers, the offline one where
it does not."""

import filecmp
import time

import pytest
from helpers import assert_same_model, go, tokens

from data import load_task
from support.offline import OFFICIAL_DATA, OFFICIAL_MODEL, official_or_offline


def add_official(hub, model, data):
    hub.add(OFFICIAL_MODEL.split("@")[0], model, OFFICIAL_MODEL.split("@")[1])
    hub.add("datasets/nyu-mll/glue", data, OFFICIAL_DATA.split("@")[1])


def test_the_official_pair_where_the_hub_answers_or_its_files_are_there(hub, tiny, sst2):
    add_official(hub, tiny, sst2)
    assert official_or_offline(5) == ({}, "")
    assert_same_model(OFFICIAL_MODEL, tiny)
    tokens(OFFICIAL_MODEL)
    load_task(OFFICIAL_DATA)
    hub.close()
    assert official_or_offline(0.5) == ({}, "")


@pytest.mark.parametrize("fault", ["silent", "drip", "refused", "offline", "portal", 401, 500])
def test_the_offline_pair_where_it_does_not(hub, tiny, sst2, minilm, reviews, monkeypatch, fault):
    add_official(hub, tiny, sst2)
    hub.faults["*"] = fault
    if fault in ("refused", "offline"):
        go(hub, fault, monkeypatch)
    since = time.perf_counter()
    options, notice = official_or_offline(0.5)
    assert time.perf_counter() - since < 3
    assert (options["model"], options["data"]) == (minilm, reviews)
    assert "CANNOT BE REACHED" in notice


def test_make_train_takes_the_official_pair(run, hub, environment, minilm, sst2, tmp_path):
    """Through two real processes, the second with the Hub gone."""
    add_official(hub, minilm, sst2)
    for out in "first", "second":
        options = ["--epochs", 1, "--batch-size", 16, "--max-length", 16, "--out", tmp_path / out]
        done = run("train.py", "--offline-fallback", "--resume", *options, env=environment)
        assert done.returncode == 0, done.stderr
        assert f"model  {OFFICIAL_MODEL}" in done.stdout and "64 sentences" in done.stdout
        hub.close()
    first, second = (
        tmp_path / out / "best" / "adapter_model.safetensors" for out in ("first", "second")
    )
    assert filecmp.cmp(first, second, shallow=False)
