"""The Hub's own client against a server on 127.0.0.1: files by name and revision, the cache, and
every way to fail."""

import contextlib
import filecmp
import resource
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import assert_same_model, go, saved_base, tokens
from hub_server import PATTERN
from huggingface_hub import constants

from bert import BertForSequenceClassification
from data import load_task
from lora import apply_lora_to_model, open_adapter, save_adapter
from support.files import InputError
from support.hub import find_file

ONE, TWO = "1" * 40, "2" * 40


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
def test_a_fault_is_one_line_and_leaves_no_half_file(
    hub, tiny, tmp_path, monkeypatch, fault, problem
):
    hub.add("me/tiny", tiny)
    if fault == "refused":
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://127.0.0.1:9{PATTERN}"
        )
    hub.faults["model.safetensors"] = fault
    with pytest.raises(InputError) as error:
        BertForSequenceClassification.from_pretrained("me/tiny")
    assert (
        str(error.value).startswith("me/tiny: ")
        and problem in str(error.value)
        and "\n" not in str(error.value)
    )
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
    assert filecmp.cmp(
        find_file("me/minilm", "model.safetensors"), f"{minilm}/model.safetensors", shallow=False
    )
    assert ("/me/minilm/resolve/main/model.safetensors", 206) in hub.served


def test_a_wrong_name_is_one_line_of_a_real_process(run, environment):
    done = run("sample.py", "--adapter", "me/nothing", "great film", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.startswith("error: me/nothing: neither a directory here")
        and done.stderr.count("\n") == 1
    )


def test_pickle_is_refused_with_a_hint(tmp_path):
    base = saved_base(tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin is a pickle.*convert it to safetensors"
    ):
        BertForSequenceClassification.from_pretrained(base)


@contextlib.contextmanager
def dead(how: str):
    """The address of a Hub that is out of reach: nobody listens, answers or accepts, or no such
    name."""
    if how == "no such name":
        yield "http://something.invalid"
        return
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        address = listener.getsockname()
        if how == "silent":
            listener.listen(16)
        if (
            how == "full"
        ):  # the kernel drops what comes when the queue is full, and the client waits
            listener.listen(0)
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"


OUT_OF_REACH = [
    ("no such name", ["sample.py", "--adapter", "me/tiny", "great film"]),
    ("refused", ["sample.py", "--adapter", "me/tiny", "great film"]),
    ("silent", ["sample.py", "--adapter", "me/tiny", "great film"]),
    ("full", ["train.py", "--model", "me/tiny", "--out", "OUT"]),
    ("silent", ["train.py", "--push-to-hub", "--hub-model-id", "you/tiny", "--out", "OUT"]),
    ("full", ["lora.py", "push", "ADAPTER", "you/tiny"]),
]


def test_a_hub_out_of_reach_is_decided_within_ten_seconds(run, tmp_path):
    """All at once, as they do nothing but wait."""
    (tmp_path / "adapter_config.json").write_text("{}")

    def ask(case):
        how, arguments = case
        folders = {
            "ADAPTER": str(tmp_path),
            "OUT": str(tmp_path / "out"),
        }  # not the out/ that `make train` leaves
        arguments = [folders.get(argument, argument) for argument in arguments]
        with dead(how) as url:
            environment = {
                "HF_ENDPOINT": url,
                "HF_HOME": str(tmp_path),
                "HF_HUB_OFFLINE": "0",
                "HF_TOKEN": "hf_right",
            }
            begun = time.monotonic()
            return run(*arguments, env=environment), time.monotonic() - begun

    begun = time.monotonic()
    run("-c", "import huggingface_hub.hf_api")
    started = time.monotonic() - begun
    with ThreadPoolExecutor(len(OUT_OF_REACH)) as pool:
        for done, seconds in pool.map(ask, OUT_OF_REACH):
            assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
            assert done.stderr.count("\n") == 1 and "cannot be reached" in done.stderr, done.stderr
            assert seconds < 10 + len(OUT_OF_REACH) * started


def test_a_pinned_file_in_the_cache_asks_nobody(hub, tiny, monkeypatch):
    hub.add("me/tiny", tiny, ONE)
    find_file(f"me/tiny@{ONE}", "config.json")
    monkeypatch.setattr("support.hub.out_of_reach", pytest.fail)
    assert find_file(f"me/tiny@{ONE}", "config.json").is_file()


def test_a_full_disk_is_not_the_hubs_fault(run, hub, environment, minilm, tmp_path):
    """No file grows beyond a megabyte, which ends a download as a full disk does."""
    hub.add("me/minilm", minilm)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    done = run("sample.py", "--model", "me/minilm", "great film", env=environment, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert (
        "File too large, while me/minilm was downloaded; make room there, or let HF_HOME"
        in done.stderr
    )
    assert str(tmp_path) in done.stderr and "the Hub did not answer" not in done.stderr
