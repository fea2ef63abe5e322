"""The Hub's own client against a server on 127.0.0.1: names that become folders, the cache, what is
uploaded, and every way to fail."""

import contextlib
import filecmp
import os
import resource
import shlex
import shutil
import socket
import time
from pathlib import Path

import pytest
from helpers import go
from hub_server import PATTERN, UploadHandler
from hub_server import Hub as Server
from huggingface_hub import close_session, constants, hf_hub_download

from support import hub as hub_module
from support.errors import InputError
from support.hub import check_login, data_folder, folder, push
from support.splits import find_splits

ONE, TWO = "1" * 40, "2" * 40


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


def assert_same_files(found: Path, *names: str, source: Path) -> None:
    """Of the source's files these were downloaded, and no others."""
    paths = [path.relative_to(found) for path in found.rglob("*") if path.is_file()]
    assert sorted(map(str, paths)) == sorted(names)
    for name in names:
        assert filecmp.cmp(found / name, source / name, shallow=False)


def whole_files(tmp_path) -> list[Path]:
    """What is in the cache, except for what was broken off."""
    return [path for path in tmp_path.glob("cache/*/blobs/*") if path.suffix != ".incomplete"]


def refused(ask, *arguments) -> str:
    """The one line with which a name is refused."""
    with pytest.raises(InputError) as error:
        ask(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Names that become folders.


def test_a_directory_is_returned_as_it_is(model, monkeypatch):
    monkeypatch.setattr("support.hub.client", pytest.fail)
    assert folder(model) == folder(str(model)) == model
    assert data_folder(model) == model
    assert data_folder(str(model / "x.bin")) == model / "x.bin"
    assert folder("..") == Path("..") and data_folder("") == Path()


def test_the_files_of_a_model_come_by_name_once_and_no_others(hub, model):
    hub.add("me/tiny", model)
    found = folder("me/tiny")
    assert_same_files(found, "config.json", "model.safetensors", "vocab.txt", source=model)
    asked = len(hub.served)
    assert folder("me/tiny") == found and len(hub.served) == asked
    hub.forget()
    downloads = hub.gets("model.safetensors")
    assert folder("me/tiny") == found and len(hub.served) > asked  # whether there is a newer one
    assert hub.gets("model.safetensors") == downloads


def test_a_revision_is_one_commit_and_none_is_the_newest(hub, model, tmp_path):
    newer = write_files(tmp_path / "newer", "config.json", "model.safetensors", seed=1)
    hub.add("tiny", model, ONE)
    hub.add("tiny", newer, TWO)
    for name in f"tiny@{TWO}", "tiny@main", "tiny":
        assert_same_files(folder(name), "config.json", "model.safetensors", source=newer)
    names = ["config.json", "model.safetensors", "vocab.txt"]
    assert_same_files(folder(f"tiny@{ONE}"), *names, source=model)


TRAIN, VALIDATION = "train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"
PARTS = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
MNLI = [*PARTS, "validation_matched-0.parquet", "validation_mismatched-0.parquet"]
LAYOUTS = {  # what is asked for: the folder that is returned, and the files in it
    "me/glue/sst2": ("sst2", [TRAIN, VALIDATION]),
    "me/glue/sst2/": ("sst2", [TRAIN, VALIDATION]),
    "me/glue/mnli@main": ("mnli", MNLI),
    "me/root": (".", [TRAIN, VALIDATION]),
    f"me/data@{ONE}": ("data", [TRAIN, VALIDATION]),
    f"me/deep/a/b-c@{ONE}": ("a/b-c", ["train.parquet", "validation.parquet"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_comes_by_name_and_folder(hub, tmp_path, name):
    inside, files = LAYOUTS[name]
    wanted = [os.path.normpath(f"{inside}/{file}") for file in files]
    source = write_files(tmp_path / "data", *wanted, "x/test.parquet", "README.md")
    repository = "/".join(name.partition("@")[0].split("/")[:2])
    hub.add(f"datasets/{repository}", source, ONE)
    assert_same_files(data_folder(name), *files, source=source / inside)
    wanted = f"{repository}/cola: the Hub's repository has none of cola/train*.parquet, "
    assert refused(data_folder, f"{repository}/cola").startswith(wanted)


def test_all_parts_of_a_data_set_come(hub, tmp_path):
    """As the Hub's own data sets have them, of today and of some years ago."""
    for n, end in enumerate(["", "-b42a775f407cee45"]):
        parts = [f"data/train-0000{part}-of-00003{end}.parquet" for part in range(3)]
        names = [*parts, f"data/validation-00000-of-00001{end}.parquet"]
        source = write_files(
            tmp_path / f"data{n}", *names, f"data/test-00000-of-00001{end}.parquet"
        )
        hub.add(f"datasets/me/large{n}", source)
        files = [name.removeprefix("data/") for name in names]
        found = data_folder(f"me/large{n}")
        assert_same_files(found, *files, source=source / "data")
        splits = find_splits(found)
        assert [[path.name for path in paths] for paths in splits.values()] == [
            files[:3],
            files[3:],
        ]


FORM = "owner/name/folder, such as nyu-mll/glue/sst2"
NO_DATA = f"no such file, directory or Hub data set ({FORM})"
NO_NAME = "no such directory, and no name of a Hub repository"


@pytest.mark.parametrize("ask, problem, names", [
    (data_folder, NO_DATA, ["sst2", "a.csv", "/no/where", "a//b", "./a/b", "a/../b", "a/-b/c"]),
    (data_folder, NO_NAME, ["a/b*", "a/b\0", "a/b--c/d.csv"]),
    (folder, NO_NAME, ["me/tiny/extra", "/no/where", "./me", "a b", "me/ti*ny"]),
])  # fmt: skip
def test_what_is_no_repository_is_not_asked_for(hub, monkeypatch, tmp_path, ask, problem, names):
    monkeypatch.chdir(tmp_path)
    for name in names:
        assert refused(ask, name) == f"{name}: {problem}"
    assert not hub.served


def test_a_pickle_is_refused_with_the_command_that_converts_it(hub, model, tmp_path):
    hint = "is a pickle, which can run code, and is not read here: convert it with: python -m "
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    command = f"runtime.convert {model} NEW_FOLDER"
    found = refused(folder, str(model))
    assert found == f"{model}: has no model.safetensors; pytorch_model.bin {hint}{command}"
    assert folder(str(model), pickles=True) == model
    hub.add("me/old", model, ONE)
    assert refused(folder, "me/old").endswith(f"{hint}runtime.convert me/old NEW_FOLDER")
    assert not hub.gets("pytorch_model.bin")
    assert (folder("me/old", pickles=True) / "pytorch_model.bin").is_file()
    adapter = write_files(tmp_path / "adapter", "adapter_config.json", "adapter_model.bin")
    assert "has no adapter_model.safetensors; adapter_model" in refused(folder, str(adapter))


# The cache.


@pytest.mark.parametrize("how", ["refused", "offline", "503"])
@pytest.mark.parametrize("revision", ["", f"@{ONE}"])
def test_the_cache_does_when_the_hub_is_gone(hub, model, tmp_path, monkeypatch, how, revision):
    """Also for what the repository lacks: nobody asks for the files that it does not have."""
    data = write_files(tmp_path / "data", f"sst2/{TRAIN}", f"sst2/{VALIDATION}")
    hub.add("me/tiny", model, ONE)
    hub.add("datasets/me/glue", data, ONE)
    found = folder(f"me/tiny{revision}"), data_folder(f"me/glue/sst2{revision}")
    go(hub, how, monkeypatch)
    hub.forget()
    assert (folder(f"me/tiny{revision}"), data_folder(f"me/glue/sst2{revision}")) == found
    assert "nor in the cache, and the Hub cannot be reached" in refused(folder, "me/other")


def test_a_pinned_commit_in_the_cache_asks_nobody(hub, model, monkeypatch):
    hub.add("me/tiny", model, ONE)
    found = folder(f"me/tiny@{ONE}")
    asked = len(hub.served)
    hub.forget()
    assert folder(f"me/tiny@{ONE}") == found and len(hub.served) == asked


@pytest.mark.parametrize("part", ["by another program", "by an interrupted download"])
def test_a_part_of_a_commit_in_the_cache_is_no_whole(hub, model, part):
    hub.add("me/tiny", model, ONE)
    if part == "by another program":
        hf_hub_download("me/tiny", "config.json", revision=ONE)
    else:
        hub.faults["vocab.txt"] = 500
        refused(folder, f"me/tiny@{ONE}")
        hub.faults.clear()
        hub.forget()
    found = folder(f"me/tiny@{ONE}")
    assert_same_files(found, "config.json", "model.safetensors", "vocab.txt", source=model)


# Faults.


@pytest.mark.parametrize("file, fault, problem", [
    ("model.safetensors", 401, "neither a directory here nor a public Hub repository"),
    ("model.safetensors", 403, "accept its terms"),
    ("model.safetensors", 404, "cannot be reached"),
    ("model.safetensors", 500, "cannot be reached"),
    ("model.safetensors", "portal", "cannot be reached"),
    ("model.safetensors", "cut", "try again"),
    ("model.safetensors", "short", "try again"),
    ("*", 401, "neither a directory here nor a public Hub repository"),
    ("*", 403, "accept its terms"),
    ("*", 500, "cannot be reached"),
    ("*", "portal", "did not answer as it should"),
])  # fmt: skip
def test_a_fault_is_one_line_and_leaves_no_half_file(hub, model, tmp_path, file, fault, problem):
    hub.add("me/tiny", model)
    hub.faults[file] = fault
    said = refused(folder, "me/tiny")
    assert said.startswith("me/tiny: ") and problem in said
    sources = [path.read_bytes() for path in model.iterdir()]
    assert all(path.read_bytes() in sources for path in whole_files(tmp_path))
    hub.faults.clear()
    hub.forget()
    names = ("config.json", "model.safetensors", "vocab.txt")
    assert_same_files(folder("me/tiny"), *names, source=model)


def test_files_that_another_server_refuses_are_one_line(hub, model, monkeypatch):
    """The Hub answers, and what it stores files on does not."""
    hub.add("me/tiny", model)
    refusing = f"http://127.0.0.1:9{PATTERN}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", refusing)
    assert "cannot be reached" in refused(folder, "me/tiny")


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
    said = refused(folder, name)
    assert said.startswith(f"{name}: ") and problem in said


def test_a_broken_connection_is_taken_up_where_it_broke(hub, tmp_path):
    source = tmp_path / "big"
    source.mkdir()
    (source / "model.safetensors").write_bytes(os.urandom(20 * 2**20))
    hub.add("me/big", source)
    hub.faults["model.safetensors"] = "cut once"
    assert_same_files(folder("me/big"), "model.safetensors", source=source)
    assert 206 in [status for path, status in hub.served if path.endswith("/model.safetensors")]


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


@pytest.mark.parametrize("how", ["no such name", "refused", "silent", "full"])
def test_a_hub_out_of_reach_is_soon_decided(hub, monkeypatch, how):
    """For a download and for an upload."""
    assert hub_module.SECONDS <= 8
    monkeypatch.setattr(hub_module, "SECONDS", 0.5)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with dead(how) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        begun = time.monotonic()
        assert "the Hub cannot be reached" in refused(folder, "me/tiny")
        assert refused(check_login, "you/tiny").startswith("you/tiny: the Hub did not answer")
        assert time.monotonic() - begun < 3


PROGRAM = """
import sys
from support import hub
from support.errors import run_main
hub.SECONDS = 0.5
run_main(lambda: hub.folder(sys.argv[1]))
"""


def test_a_download_is_quiet_and_an_error_one_line_of_a_real_process(
    run, hub, environment, model, tmp_path
):
    """The disk is too small for one of the models: a limit on the size of a file ends its download
    as a full disk does. A look-up that nobody answers keeps no process."""
    hub.add("me/tiny", model)
    hub.add("me/big", write_files(tmp_path / "big", "model.safetensors"))
    with open(tmp_path / "big" / "model.safetensors", "ab") as file:
        file.write(bytes(2 * 2**20))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = run("-c", PROGRAM, "me/tiny", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run("-c", PROGRAM, "me/big", env=environment, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: me/big: File too large: /")
    assert str(tmp_path) in done.stderr and "HF_HOME" in done.stderr
    with dead("silent") as url:
        done = run("-c", PROGRAM, "me/tiny", env=environment | {"HF_ENDPOINT": url}, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")  # out of the cache


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


def test_a_login_that_cannot_push_is_one_line(uploads, monkeypatch):
    check_login("you/sst2")
    uploads.role = "read"
    assert "you/sst2: your token can only read" in refused(check_login, "you/sst2")
    uploads.role = "write"
    for token in "hf_wrong", "":
        monkeypatch.setenv("HF_TOKEN", token)
        assert "hf auth login" in refused(check_login, "you/sst2")
    assert uploads.created is None


@pytest.mark.parametrize("private", [False, True])
def test_files_are_pushed_as_one_commit(uploads, model, tmp_path, capsys, private):
    curves = write_files(tmp_path, "training_curves.png") / "training_curves.png"
    files = [model / "config.json", curves]
    push(files, "you/sst2", private=private)
    assert uploads.created["name"] == "sst2"
    assert (uploads.created.get("visibility") == "private") == private
    assert uploads.files == {file.name: file.read_bytes() for file in files}
    assert [path for path, _ in uploads.served if path.endswith("/commit/main")]
    assert "you/sst2" in capsys.readouterr().out


def test_a_push_that_fails_says_how_it_succeeds_later(uploads, model, tmp_path):
    uploads.full = True
    place = shutil.copytree(model, tmp_path / "my run" / "best")
    said = refused(push, [place / "config.json"], "you/sst2")
    text, _, command = said.partition(" goes there with: ")
    assert text.startswith("you/sst2: ") and f"{place} is kept" in text
    words = ["python", "-m", "runtime.adapters", "push", str(place), "you/sst2"]
    assert shlex.split(command) == words


# In real processes.


def test_a_run_is_pushed_whole_and_comes_back(run, uploads, base, table, tmp_path):
    """The login is checked before the training. Where the upload fails after it nothing is lost,
    and the line that says how the adapter gets to the Hub later is right."""
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_right"}
    environment = {"HF_ENDPOINT": uploads.url, **home}
    out = tmp_path / "out"
    words = ["train.py", "--model", base, "--data", table, "--out", out, "--epochs", 1]
    words += ["--max-length", 12, "--push-to-hub", "--hub-model-id", "you/sst2", "--hub-private"]

    uploads.role = "read"
    done = run(*words, env=environment)
    assert done.returncode == 2 and not out.exists()
    assert done.stderr.startswith("error: you/sst2: your token can only read")
    uploads.role = "write"
    uploads.full = True
    done = run(*words, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: you/sst2: "), done.stderr
    assert done.stderr.count("\n") == 1 and (out / "final" / "README.md").exists()
    uploads.full = False
    command = done.stderr.strip().rpartition(" goes there with: python ")[2]
    done = run(*shlex.split(command), "--private", env=environment)
    assert done.returncode == 0, done.stderr

    assert uploads.created["name"] == "sst2" and uploads.created["visibility"] == "private"
    best = {path.name: path.read_bytes() for path in (out / "best").iterdir()}
    best["training_curves.png"] = (out / "training_curves.png").read_bytes()
    assert uploads.files == best
    text = uploads.files["README.md"].decode()
    assert 'library_name: "peft"' in text and "--adapter you/sst2" in text and "accuracy" in text
    (tmp_path / "pushed").mkdir()
    for name, content in uploads.files.items():
        (tmp_path / "pushed" / name).write_bytes(content)
    uploads.add("you/sst2", tmp_path / "pushed")
    answers = [
        run("sample.py", "--adapter", adapter, "great film", env=environment)
        for adapter in ("you/sst2", out / "best")
    ]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout != ""

    (tmp_path / "empty").mkdir()
    words = ("-m", "runtime.adapters", "push", tmp_path / "empty", "you/sst2")
    done = run(*words, env=environment)
    assert done.returncode == 2 and "holds no adapter" in done.stderr
