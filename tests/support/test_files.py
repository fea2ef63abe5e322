"""Files that are whole or not there at all, that replace nothing they should not, and locks."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from support.errors import InputError
from support.files import locked, read_json, write_json, write_text, written_whole


@pytest.mark.parametrize("new", [False, True])
def test_what_fails_in_the_middle_leaves_what_was_there(tmp_path, new):
    if not new:
        write_json(tmp_path / "a.json", {"a": "ü"})
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a.json", new) as temporary:
        temporary.write_text("half of")
        raise KeyboardInterrupt
    if not new:
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "ü"}
        (tmp_path / "a.json").unlink()
    assert not [*tmp_path.iterdir()]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / ".a.tmp").write_text("half of")
    (tmp_path / ".b.tmp").mkdir()
    (tmp_path / ".b.tmp" / "half").touch()
    for name in "a", "b":
        with written_whole(tmp_path / name, new=True) as temporary:
            temporary.write_text("whole")
        assert (tmp_path / name).read_text() == "whole"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_folder_that_is_there_keeps_its_other_files(tmp_path):
    """And each of its files is whole, though the process dies while the new ones are written."""
    best = tmp_path / "best"
    best.mkdir()
    for name in "mine", "a", "b":
        (best / name).write_text("old")
    write = "import os, sys, support.files as f\nwith f.written_whole(sys.argv[1]) as new:\n"
    write += " new.mkdir(); (new / 'a').write_text('new'); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", write, best], cwd=ROOT).returncode == 9
    assert {path.read_text() for path in best.iterdir()} == {"old"}
    with written_whole(best) as temporary:
        temporary.mkdir()
        for name in "a", "b":
            (temporary / name).write_text("new")
    found = {path.name: path.read_text() for path in best.iterdir()}
    assert found == {"mine": "old", "a": "new", "b": "new"}
    assert os.listdir(tmp_path) == ["best"]


def test_a_link_in_the_way_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.json.tmp").symlink_to(tmp_path / "mine")
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "mine").read_text() == "mine"
    assert read_json(tmp_path / "a.json") == {"a": 1} and not (tmp_path / "a.json").is_symlink()


@pytest.mark.parametrize("existing", ["a file", "a folder", "a dangling link"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_nothing_is_ever_replaced(tmp_path, existing, when):
    path = tmp_path / "x"

    def appear():
        if existing == "a file":
            path.write_text("mine")
        elif existing == "a folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "nowhere")

    if when == "before":
        appear()
    refused = pytest.raises(InputError, match="x: is there already")
    with refused, written_whole(path, new=True) as temporary:
        assert when == "meanwhile"
        temporary.write_text("new")
        appear()
    assert os.listdir(tmp_path) == ["x"]
    assert {"a file": path.is_file(), "a folder": path.is_dir()}.get(existing, path.is_symlink())
    assert existing != "a file" or path.read_text() == "mine"


def test_a_folder_is_there_whole(tmp_path):
    with written_whole(tmp_path / "model", new=True) as folder:
        (folder / "in").mkdir(parents=True)
        write_text(folder / "in" / "a.txt", "a")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "in" / "a.txt").read_text() == "a"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("content", [
    b"[1]", b"null", b"3", b"", b"[" * 10**5, b'{"a": 1', b"{'a': 1}", b'{"a": "\xff"}',
    b'{"a": ' + b"9" * 5000 + b"}",
])  # fmt: skip
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: cannot be read"):
        read_json(tmp_path / "a.json")


HOLDS = """
import sys
from pathlib import Path
from support.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_other_processes_out_and_ends_with_its_process(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=": another process"), locked(tmp_path):
            pass
        process.kill()
    for _ in range(2):
        with locked(tmp_path):
            pass
