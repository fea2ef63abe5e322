"""The Hub's own client against a server on 127.0.0.1: files by name and revision, the cache, and every way to fail."""

import filecmp
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import saved_base
from hub_server import Hub
from huggingface_hub import constants
from pyarrow import parquet

from bert import BertForSequenceClassification
from data import encode, load_task, load_tokenizer
from lora import apply_lora_to_model, open_adapter, save_adapter
from support.files import InputError
from support.hub import find_file
from support.offline import OFFICIAL_DATA, OFFICIAL_MODEL, official_or_offline

ONE, TWO = "1" * 40, "2" * 40
PATTERN = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, and the client of this process pointed at it, with an empty cache, and patient without waiting."""
    with Hub() as hub:
        settings = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + PATTERN,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "AGENT_HARNESSES_PATH": str(tmp_path / "harnesses"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def sst2(reviews, tmp_path_factory) -> Path:
    """A data set of 64 and 8 reviews that passes for GLUE."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "sst2").mkdir()
    for split, rows in ("train", 64), ("validation", 8):
        name = f"{split}-00000-of-00001.parquet"
        parquet.write_table(parquet.read_table(f"{reviews}/{name}").slice(0, rows), folder / "sst2" / name)
    return folder


def assert_same_model(name, folder):
    ours, local = (BertForSequenceClassification.from_pretrained(str(n)).state_dict() for n in (name, folder))
    assert ours.keys() == local.keys() and all(torch.equal(ours[key], local[key]) for key in local)


def tokens(name) -> list[int]:
    return encode(load_tokenizer(str(name), 16), [["a gripping, beautifully acted film"]]).input_ids.tolist()


def cached(tmp_path) -> list[Path]:
    """The contents in the cache, whole or not."""
    return list(tmp_path.glob("cache/models--*/blobs/*"))


def test_a_model_and_its_tokenizer_come_by_name(hub, tiny):
    hub.add("me/tiny", tiny)
    assert_same_model("me/tiny", tiny)
    assert tokens("me/tiny") == tokens(tiny)


def test_a_file_is_downloaded_once(hub, tiny):
    hub.add("me/tiny", tiny)
    for _ in range(3):
        BertForSequenceClassification.from_pretrained("me/tiny")
    url = "/me/tiny/resolve/main/model.safetensors"
    heads_and_gets = [path for path, _ in hub.served if path == url]
    assert len(heads_and_gets) == 4  # whether it is new is asked three times


def test_a_revision_is_one_commit_and_none_is_the_newest(hub, tiny, tmp_path):
    newer = saved_base(tmp_path / "newer", seed=1, vocab_size=30522)
    hub.add("me/tiny", tiny, ONE)
    hub.add("me/tiny", newer, TWO)
    assert_same_model(f"me/tiny@{ONE}", tiny)
    assert_same_model(f"me/tiny@{TWO}", newer)
    assert_same_model("me/tiny", newer)


@pytest.mark.parametrize("revision", ["", f"@{ONE}"])
def test_a_data_set_comes_by_name_and_folder(hub, sst2, revision):
    hub.add("datasets/me/glue", sst2, ONE)
    task = load_task(f"me/glue/sst2{revision}")
    assert (len(task.train.labels), len(task.validation.labels)) == (64, 8)
    assert task.label_names == ["negative", "positive"]
    with pytest.raises(InputError, match="no train file"):
        load_task(f"me/glue/cola{revision}")


def test_an_adapter_names_its_base_and_the_revision(hub, tiny, tmp_path):
    model = apply_lora_to_model(BertForSequenceClassification.from_pretrained(str(tiny)))
    hub.add("me/tiny", tiny, ONE)
    hub.add("me/tiny", saved_base(tmp_path / "newer", seed=1, vocab_size=30522), TWO)
    save_adapter(model, tmp_path / "adapter", f"me/tiny@{ONE}")
    hub.add("me/adapter", tmp_path / "adapter")
    theirs, input_ids = open_adapter("me/adapter"), torch.tensor([[101, 2307, 2143, 102]])
    assert torch.equal(theirs(input_ids), model.eval()(input_ids))


def go(hub, how, monkeypatch):
    hub.close() if how == "refused" else hub.faults.update({"*": 503})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")


@pytest.mark.parametrize("how", ["refused", "offline", "503"])
def test_the_cache_does_when_the_hub_is_gone(hub, tiny, sst2, monkeypatch, how):
    hub.add("me/tiny", tiny)
    hub.add("datasets/me/glue", sst2)
    for again in False, True:
        assert_same_model("me/tiny", tiny)
        assert tokens("me/tiny") == tokens(tiny)
        assert len(load_task("me/glue/sst2").train.labels) == 64
        if not again:
            go(hub, how, monkeypatch)


@pytest.mark.parametrize("how", ["refused", "offline", "503"])
def test_the_cache_remembers_what_a_repository_lacks(hub, minilm, sst2, tmp_path, monkeypatch, how):
    """An optional file that was not there when the Hub answered is not needed later either."""
    shutil.copy(f"{minilm}/vocab.txt", tmp_path)
    shutil.copytree(sst2 / "sst2", tmp_path / "mine")
    name = "validation{}-00000-of-00001.parquet"
    (tmp_path / "mine" / name.format("")).rename(tmp_path / "mine" / name.format("_matched"))
    hub.add("me/words", tmp_path)
    hub.add("datasets/me/words", tmp_path)
    for again in False, True:
        assert tokens("me/words") == tokens(minilm)
        assert len(load_task("me/words/mine").validation.labels) == 8
        if not again:
            go(hub, how, monkeypatch)


@pytest.mark.parametrize("fault, problem", [
    (401, "neither a directory here nor a public Hub repository"),
    (403, "accept its terms"),
    (404, ""),
    (500, "cannot be reached"),
    (503, "cannot be reached"),
    ("refused", "cannot be reached"),
    ("portal", ""),
    ("cut", "try again"),
    ("short", "try again"),
])  # fmt: skip
def test_a_fault_is_one_line_and_leaves_no_half_file(hub, tiny, tmp_path, monkeypatch, fault, problem):
    hub.add("me/tiny", tiny)
    if fault == "refused":
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://127.0.0.1:9{PATTERN}")
    hub.faults["model.safetensors"] = fault
    with pytest.raises(InputError) as error:
        BertForSequenceClassification.from_pretrained("me/tiny")
    assert str(error.value).startswith("me/tiny: ") and problem in str(error.value) and "\n" not in str(error.value)
    assert len(cached(tmp_path)) == (fault != "refused")  # config.json
    hub.faults.clear()
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + PATTERN)
    assert_same_model("me/tiny", tiny)


@pytest.mark.parametrize("name, problem", [
    ("me/nothing", "neither a directory here nor a public Hub repository"),
    (f"me/tiny@{TWO}", "no such revision"),
    ("me/empty", "has no config.json"),
    ("me/tiny/extra", "no such directory"),
])  # fmt: skip
def test_a_wrong_name_is_one_line(hub, tiny, tmp_path, name, problem):
    hub.add("me/tiny", tiny)
    hub.add("me/empty", tmp_path / "empty")
    with pytest.raises(InputError) as error:
        BertForSequenceClassification.from_pretrained(name)
    assert name in str(error.value) and problem in str(error.value) and "\n" not in str(error.value)


def test_a_broken_connection_is_taken_up_where_it_broke(hub, minilm):
    hub.add("me/minilm", minilm)
    hub.faults["model.safetensors"] = "cut once"
    assert filecmp.cmp(find_file("me/minilm", "model.safetensors"), f"{minilm}/model.safetensors", shallow=False)
    assert ("/me/minilm/resolve/main/model.safetensors", 206) in hub.served


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


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """What points the client of another process at the Hub."""
    switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", "no_proxy": "127.0.0.1"}
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **switches}


def test_make_train_takes_the_official_pair(run, hub, environment, minilm, sst2, tmp_path):
    """Through two real processes, the second with the Hub gone."""
    add_official(hub, minilm, sst2)
    for out in "first", "second":
        options = ["--epochs", 1, "--batch-size", 16, "--max-length", 16, "--out", tmp_path / out]
        done = run("train.py", "--offline-fallback", "--resume", *options, env=environment)
        assert done.returncode == 0, done.stderr
        assert f"model  {OFFICIAL_MODEL}" in done.stdout and "64 sentences" in done.stdout
        hub.close()
    first, second = (tmp_path / out / "best" / "adapter_model.safetensors" for out in ("first", "second"))
    assert filecmp.cmp(first, second, shallow=False)


def test_a_wrong_name_is_one_line_of_a_real_process(run, environment):
    done = run("sample.py", "--adapter", "me/nothing", "great film", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: me/nothing: neither a directory here") and done.stderr.count("\n") == 1
