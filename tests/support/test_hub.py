"""The Hub's own client against a server on 127.0.0.1: names that become folders, the cache, what is
uploaded, and every way to fail."""

import contextlib
import filecmp
import json
import os
import resource
import shlex
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import go
from hub_server import PATTERN, UploadHandler
from hub_server import Hub as Server
from huggingface_hub import close_session, constants, hf_hub_download

from support import hub as hub_module
from support.errors import InputError
from support.hub import check_login, content_for, data_folder, folder, out_of_reach, push, require

ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def again():
    """Makes this process forget what it has asked the Hub."""

    def again() -> None:
        hub_module.snapshot.cache_clear()
        out_of_reach.cache_clear()

    again()
    yield again
    again()


@pytest.fixture
def hub(hub, again):
    return hub


@pytest.fixture
def model(tmp_path) -> Path:
    """The files of a model, and others."""
    return write_files(tmp_path / "model", "config.json", "model.safetensors", "vocab.txt", "x.bin")


def write_files(place: Path, *names: str, seed: int = 0) -> Path:
    """Files of 100 kB, each with content of its own."""
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(f"{name} {seed}\n".encode() * 7000)
    return place


def names_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def assert_same_files(found: Path, *names: str, source: Path) -> None:
    """Of the source's files these were downloaded, and no others."""
    assert names_in(found) == sorted(names)
    for name in names:
        assert filecmp.cmp(found / name, source / name, shallow=False)


def contents(tmp_path) -> list[Path]:
    """What is in the cache, whole or not."""
    return [*tmp_path.glob("cache/*/blobs/*")]


# Names that become folders.


def test_a_directory_is_returned_as_it_is(model, monkeypatch):
    monkeypatch.setattr("support.hub.client", pytest.fail)
    assert folder(model) == folder(str(model)) == model
    assert data_folder(model) == model
    assert data_folder(str(model / "x.bin")) == model / "x.bin"


def test_the_files_of_a_model_come_by_name_and_no_others(hub, model):
    hub.add("me/tiny", model)
    found = folder("me/tiny")
    assert_same_files(found, "config.json", "model.safetensors", "vocab.txt", source=model)
    hub.add("tiny", model)
    assert_same_files(folder("tiny", files=["x.*"]), "x.bin", source=model)


def test_a_file_is_downloaded_once(hub, model, again):
    hub.add("me/tiny", model)
    found = folder("me/tiny")
    asked = len(hub.served)
    assert folder("me/tiny") == found and len(hub.served) == asked
    again()
    downloads = hub.gets("model.safetensors")
    assert folder("me/tiny") == found and len(hub.served) > asked  # whether there is a newer one
    assert hub.gets("model.safetensors") == downloads


def test_a_revision_is_one_commit_and_none_is_the_newest(hub, model, tmp_path):
    newer = write_files(tmp_path / "newer", "config.json", seed=1)
    hub.add("me/tiny", model, ONE)
    hub.add("me/tiny", newer, TWO)
    assert_same_files(folder(f"me/tiny@{TWO}"), "config.json", source=newer)
    assert_same_files(folder("me/tiny@main"), "config.json", source=newer)
    assert_same_files(folder("me/tiny"), "config.json", source=newer)
    old = folder(f"me/tiny@{ONE}", files=["config.json"])
    assert_same_files(old, "config.json", source=model)


TRAIN, VALIDATION = "train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"
LAYOUTS = {  # what is asked for: the folder that is returned, and the files in it
    "me/glue/sst2": ("sst2", [TRAIN, VALIDATION]),
    "me/glue/sst2/": ("sst2", [TRAIN, VALIDATION]),
    "me/glue/mnli": ("mnli", [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation_matched-00000-of-00001.parquet",
        "validation_mismatched-00000-of-00001.parquet",
    ]),
    "me/root": (".", [TRAIN, VALIDATION]),
    "me/data": ("data", [TRAIN, VALIDATION]),
    "me/deep/a/b-c": ("a/b-c", ["train.parquet", "validation.parquet"]),
}  # fmt: skip


@pytest.mark.parametrize("revision", ["", f"@{ONE}", "@main"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_comes_by_name_and_folder(hub, tmp_path, name, revision):
    inside, files = LAYOUTS[name]
    wanted = [os.path.normpath(f"{inside}/{file}") for file in files]
    source = write_files(tmp_path / "data", *wanted, "x/test.parquet", "README.md")
    hub.add("datasets/" + "/".join(name.split("/")[:2]), source, ONE)
    found = data_folder(name + revision)
    assert_same_files(found, *files, source=source / inside)
    with pytest.raises(InputError, match=r"has none of cola/train\*\.parquet"):
        data_folder("/".join(name.split("/")[:2]) + f"/cola{revision}")


def test_a_local_folder_above_the_data_is_no_data_set(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "me" / "glue", "sst2/train.parquet")
    assert data_folder("me/glue/sst2") == Path("me/glue/sst2")
    with pytest.raises(InputError, match="me/glue: neither a directory here"):
        data_folder("me/glue/sst3")


@pytest.mark.parametrize("name", [
    "reviews.csv", "my/reviews.csv", "my/data/x.parquet", "/no/where", "./a/b", "../a/b", "a", "",
    "a/../b", "a/b/../../c", "a//b", "a/b\0", "a/b*",
])  # fmt: skip
def test_what_is_no_data_set_is_not_asked_for(monkeypatch, name):
    monkeypatch.setattr("support.hub.client", pytest.fail)
    if name == "":
        assert data_folder(name) == Path()  # the current directory
    else:
        with pytest.raises(InputError, match="no such file, directory or Hub data set"):
            data_folder(name)


@pytest.mark.parametrize("name", ["me/tiny/extra", "/no/where", "./me", "a b", "..", "me/ti*ny"])
def test_what_is_no_repository_is_not_asked_for(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path / "..")
    monkeypatch.setattr("support.hub.client", pytest.fail)
    if name == "..":
        assert folder(name) == Path("..")
    else:
        with pytest.raises(InputError) as error:
            folder(name)
        wanted = "no such directory, and no name of a Hub repository"
        assert str(error.value) == f"{name}: {wanted}"


def test_pickle_is_refused_with_a_hint(model):
    assert require(model, "config.json") == model / "config.json"
    with pytest.raises(InputError, match=r"model: has no tokenizer\.json$"):
        require(model, "tokenizer.json")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle.*convert it"):
        require(model, "model.safetensors")


# The cache.


@pytest.mark.parametrize("how", ["refused", "offline", "503"])
@pytest.mark.parametrize("revision", ["", f"@{ONE}"])
def test_the_cache_does_when_the_hub_is_gone(
    hub, model, tmp_path, monkeypatch, again, how, revision
):
    """Also for what the repository lacks: nobody asks for the files that it does not have."""
    data = write_files(tmp_path / "data", f"sst2/{TRAIN}", f"sst2/{VALIDATION}")
    hub.add("me/tiny", model, ONE)
    hub.add("datasets/me/glue", data, ONE)
    found = folder(f"me/tiny{revision}"), data_folder(f"me/glue/sst2{revision}")
    go(hub, how, monkeypatch)
    again()
    assert (folder(f"me/tiny{revision}"), data_folder(f"me/glue/sst2{revision}")) == found
    with pytest.raises(InputError, match="nor is it in the cache"):
        folder("me/other")


def test_a_pinned_commit_in_the_cache_asks_nobody(hub, model, again, monkeypatch):
    hub.add("me/tiny", model, ONE)
    found = folder(f"me/tiny@{ONE}")
    asked = len(hub.served)
    again()
    monkeypatch.setattr("support.hub.out_of_reach", pytest.fail)
    assert folder(f"me/tiny@{ONE}") == found and len(hub.served) == asked


@pytest.mark.parametrize("part", ["by another program", "by an interrupted download"])
def test_a_part_of_a_commit_in_the_cache_is_no_whole(hub, model, again, part):
    hub.add("me/tiny", model, ONE)
    if part == "by another program":
        hf_hub_download("me/tiny", "config.json", revision=ONE)
    else:
        hub.faults["vocab.txt"] = 500
        with pytest.raises(InputError):
            folder(f"me/tiny@{ONE}")
        hub.faults.clear()
        again()
    found = folder(f"me/tiny@{ONE}")
    assert_same_files(found, "config.json", "model.safetensors", "vocab.txt", source=model)


# Faults.


@pytest.mark.parametrize("fault, problem", [
    (401, "neither a directory here nor a public Hub repository"),
    (403, "accept its terms"),
    (404, "cannot be reached"),
    (500, "cannot be reached"),
    (503, "cannot be reached"),
    ("refused", "cannot be reached"),
    ("portal", "cannot be reached"),
    ("cut", "try again"),
    ("short", "try again"),
])  # fmt: skip
def test_a_fault_is_one_line_and_leaves_no_half_file(
    hub, model, tmp_path, monkeypatch, again, fault, problem
):
    hub.add("me/tiny", model)
    if fault == "refused":
        refusing = f"http://127.0.0.1:9{PATTERN}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", refusing)
    hub.faults["model.safetensors"] = fault
    with pytest.raises(InputError) as error:
        folder("me/tiny")
    assert str(error.value).startswith("me/tiny: ") and problem in str(error.value)
    assert "\n" not in str(error.value)
    sources = [path.read_bytes() for path in model.iterdir()]
    whole = [path for path in contents(tmp_path) if path.suffix != ".incomplete"]
    assert all(path.read_bytes() in sources for path in whole)
    hub.faults.clear()
    again()
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + PATTERN)
    found = folder("me/tiny")
    assert_same_files(found, "config.json", "model.safetensors", "vocab.txt", source=model)


@pytest.mark.parametrize("fault, problem", [
    (401, "neither a directory here nor a public Hub repository"),
    (403, "accept its terms"),
    (500, "cannot be reached"),
    ("portal", "did not answer as it should"),
])  # fmt: skip
def test_a_fault_of_all_the_hub_is_one_line(hub, model, tmp_path, fault, problem):
    hub.add("me/tiny", model)
    hub.faults["*"] = fault
    with pytest.raises(InputError, match=f"^me/tiny: .*{problem}") as error:
        folder("me/tiny")
    assert "\n" not in str(error.value) and not contents(tmp_path)


@pytest.mark.parametrize("name, problem", [
    ("me/nothing", "neither a directory here nor a public Hub repository"),
    (f"me/tiny@{TWO}", "no such revision"),
    ("me/tiny@branch", "no such revision"),
    ("me/empty", "the Hub's repository has none of config.json, model.safetensors, "),
    ("me/others", "the Hub's repository has none of config.json"),
])  # fmt: skip
def test_a_wrong_name_is_one_line(hub, model, tmp_path, name, problem):
    hub.add("me/tiny", model)
    hub.add("me/empty", tmp_path / "empty")
    hub.add("me/others", write_files(tmp_path / "others", "README.md"))
    with pytest.raises(InputError) as error:
        folder(name)
    assert str(error.value).startswith(f"{name}: ") and problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_connection_is_taken_up_where_it_broke(hub, tmp_path):
    source = tmp_path / "big"
    source.mkdir()
    (source / "model.safetensors").write_bytes(os.urandom(20 * 2**20))
    hub.add("me/big", source)
    hub.faults["model.safetensors"] = "cut once"
    assert_same_files(folder("me/big"), "model.safetensors", source=source)
    assert 206 in [status for path, status in hub.served if path.endswith("/model.safetensors")]


PROGRAM = """
import sys
from pathlib import Path
from support import hub
from support.errors import run_main
word, *rest = sys.argv[1:]
tasks = {"folder": hub.folder, "login": hub.check_login, "push": hub.push}
run_main(lambda: tasks[word](*([Path(rest[0])], rest[1]) if word == "push" else rest))
"""


def test_a_wrong_name_is_one_line_of_a_real_process(run, hub, environment):
    done = run("-c", PROGRAM, "folder", "me/nothing", env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: me/nothing: neither a directory here")
    assert done.stderr.count("\n") == 1


def test_a_download_is_quiet_where_there_is_no_terminal(run, hub, environment, model):
    hub.add("me/tiny", model)
    done = run("-c", PROGRAM, "folder", "me/tiny", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_full_disk_is_not_the_hubs_fault(run, hub, environment, tmp_path):
    """No file grows beyond a megabyte, which ends a download as a full disk does."""
    source = tmp_path / "big"
    source.mkdir()
    (source / "model.safetensors").write_bytes(bytes(2 * 2**20))
    hub.add("me/big", source)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = run("-c", PROGRAM, "folder", "me/big", env=environment, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: me/big: File too large: make room in ")
    assert str(tmp_path) in done.stderr and "HF_HOME" in done.stderr


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
        if how == "full":  # the kernel drops what comes when the queue is full; the client waits
            listener.listen(0)
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
        yield f"http://127.0.0.1:{address[1]}"


OUT_OF_REACH = [
    ("no such name", ["folder", "me/tiny"]),
    ("refused", ["folder", "me/tiny"]),
    ("silent", ["folder", "me/tiny"]),
    ("full", ["folder", "me/tiny"]),
    ("silent", ["login", "you/tiny"]),
    ("full", ["push", "out/best/README.md", "you/tiny"]),
]


def test_a_hub_out_of_reach_is_decided_within_ten_seconds(run, tmp_path):
    """All at once, as they do nothing but wait."""

    def ask(case):
        how, arguments = case
        with dead(how) as url:
            home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_right"}
            begun = time.monotonic()
            done = run("-c", PROGRAM, *arguments, env={"HF_ENDPOINT": url, **home})
            return done, time.monotonic() - begun

    begun = time.monotonic()
    run("-c", "import huggingface_hub.hf_api")
    started = time.monotonic() - begun
    with ThreadPoolExecutor(len(OUT_OF_REACH)) as pool:
        for done, seconds in pool.map(ask, OUT_OF_REACH):
            assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
            assert done.stderr.count("\n") == 1 and "cannot be reached" in done.stderr
            assert seconds < 10 + len(OUT_OF_REACH) * started


# What is uploaded.


@pytest.fixture
def uploads(hub, monkeypatch):
    """A Hub that takes uploads from whoever logs in with hf_right, as this process does."""
    with Server(UploadHandler) as server:
        server.files, server.created = {}, None
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        close_session()
        yield server


@pytest.mark.parametrize("token, role, repository, problem", [
    ("hf_wrong", "write", "you/sst2", "hf auth login"),
    ("hf_right", "read", "you/sst2", "your token can only read"),
    ("hf_right", "read", "us/sst2", "your token can only read"),
    ("hf_right", "write", "them/sst2", "you are you on the Hub, who cannot push to what is them's"),
])  # fmt: skip
def test_a_login_that_cannot_push_is_one_line(
    uploads, monkeypatch, token, role, repository, problem
):
    uploads.role = role
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError) as error:
        check_login(repository)
    assert str(error.value).startswith(f"{repository}: ") and problem in str(error.value)


def test_nobody_is_logged_in(uploads, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="you/sst2: nobody is logged in to the Hub"):
        check_login("you/sst2")


def test_a_login_that_can_push(uploads):
    for repository in "you/sst2", "us/sst2", "sst2":
        check_login(repository)
    assert uploads.created is None


CARD = """---
library_name: peft
---
The best adapter of `a run`, out/best it is: best of all.

    python train.py --out=best
    python sample.py --adapter {shell} {example}

```python
config = AutoConfig.from_pretrained({json})
model = PeftModel.from_pretrained(base, {json})
```
"""


def card(name: str, example: str, is_pushed: bool = False) -> str:
    quoted = name if is_pushed else shlex.quote(name)
    return CARD.format(shell=quoted, json=json.dumps(name, ensure_ascii=False), example=example)


@pytest.mark.parametrize("example", ['"great film"', '--pair "He slept well." "He was awake."'])
@pytest.mark.parametrize("name", ["out/best", "a run/best", "best", "best/a", "na\"ïv/it's"])
def test_a_card_names_the_repository_and_is_else_as_it_was(tmp_path, name, example):
    """Of a run in a folder whose name stands in other words of the card too."""
    file = tmp_path / "README.md"
    file.write_text(card(name, example), encoding="utf-8")
    sent = content_for("you/sst2", file).decode()
    assert sent == card("you/sst2", example, is_pushed=True)
    file.rename(tmp_path / "other.md")
    assert content_for("you/sst2", tmp_path / "other.md").decode() == card(name, example)


@pytest.mark.parametrize("private", [False, True])
def test_files_are_pushed_as_one_commit(uploads, model, tmp_path, capsys, private):
    (model / "README.md").write_text(card("out/best", '"great film"'), encoding="utf-8")
    curves = write_files(tmp_path, "training_curves.png") / "training_curves.png"
    files = [model / "config.json", model / "README.md", curves]
    push(files, "you/sst2", private=private)
    assert uploads.created["name"] == "sst2"
    assert (uploads.created.get("visibility") == "private") == private
    assert uploads.files.keys() == {"config.json", "README.md", "training_curves.png"}
    assert uploads.files["config.json"] == (model / "config.json").read_bytes()
    assert uploads.files["training_curves.png"] == curves.read_bytes()
    assert uploads.files["README.md"].decode() == card("you/sst2", '"great film"', is_pushed=True)
    assert [path for path, _ in uploads.served if path.endswith("/commit/main")]
    assert "you/sst2" in capsys.readouterr().out


def test_a_push_that_fails_says_how_it_succeeds_later(uploads, model, tmp_path, monkeypatch):
    uploads.full = True
    place = shutil.copytree(model, tmp_path / "my run" / "best")
    with pytest.raises(InputError) as error:
        push([place / "config.json"], "you/sst2")
    text, _, command = str(error.value).partition(" goes there with: ")
    assert text.startswith("you/sst2: ") and f"{place} is kept" in text
    words = ["python", "-m", "runtime.adapters", "push", str(place), "you/sst2"]
    assert shlex.split(command) == words
    uploads.full = False
    push([place / "config.json"], "you/sst2")
    assert uploads.files.keys() == {"config.json"}


# In real processes.


@pytest.fixture
def train(run, uploads, tiny, table, tmp_path):
    """Runs train.py with --push-to-hub, into tmp_path/out."""
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_right"}
    uploads.environment = {"HF_ENDPOINT": uploads.url, **home}

    def train(*more):
        short = ("--epochs", 1, "--max-length", 12, "--batch-size", 16)
        where = ("--model", tiny, "--data", table, "--out", tmp_path / "out", "--push-to-hub")
        return run("train.py", *where, *short, *more, env=uploads.environment)

    return train


def test_a_run_is_pushed_whole_and_comes_back(run, uploads, train, tmp_path):
    done = train("--hub-model-id", "you/sst2", "--hub-private")
    assert done.returncode == 0, done.stderr
    assert uploads.created["name"] == "sst2" and uploads.created["visibility"] == "private"
    best = {path.name: path.read_bytes() for path in (tmp_path / "out" / "best").iterdir()}
    best["training_curves.png"] = (tmp_path / "out" / "training_curves.png").read_bytes()
    assert uploads.files == best
    text = uploads.files["README.md"].decode()
    assert "library_name: peft" in text and "--adapter you/sst2" in text and "accuracy" in text
    (tmp_path / "pushed").mkdir()
    for name, content in uploads.files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    uploads.add("you/sst2", tmp_path / "pushed")
    answers = [
        run("sample.py", "--adapter", adapter, "great film", env=uploads.environment)
        for adapter in ("you/sst2", tmp_path / "out" / "best")
    ]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout != ""


def test_the_login_is_checked_before_the_training(uploads, train, tmp_path):
    uploads.role = "read"
    done = train("--hub-model-id", "you/sst2")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: you/sst2: your token can only read")
    assert done.stderr.count("\n") == 1


def test_a_push_that_fails_after_the_training_loses_nothing(run, uploads, train, tmp_path):
    """The adapter is whole in --out, and the line says how it gets to the Hub later: that works."""
    uploads.full = True
    done = train("--hub-model-id", "you/sst2")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: you/sst2: ")
    assert (tmp_path / "out" / "final" / "README.md").exists()
    uploads.full = False
    again = done.stderr.strip().rpartition(" goes there with: python ")[2]
    done = run(*shlex.split(again), env=uploads.environment)
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in uploads.files
    (tmp_path / "empty").mkdir()
    words = ("-m", "runtime.adapters", "push", tmp_path / "empty", "you/sst2")
    done = run(*words, env=uploads.environment)
    assert done.returncode == 2 and "holds no adapter" in done.stderr
