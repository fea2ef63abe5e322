"""The order of the house: each file imports only what is read before it, and the book is read in
one sitting."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

ORDER = ["bert", "lora", "data", "train", "sample"]
EXAMPLES = [
    path
    for path in (ROOT / "examples").glob("*.py")
    if not path.stem.startswith(("test_", "conftest"))
]
ROOMS = sorted(path.stem for path in (ROOT / "support").glob("*.py") if path.stem != "__init__")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at its head or late: "os", "support.files"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", ORDER)
def test_imports(run, module):
    done = run("-c", f"import sys, {module}; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert module in loaded, done.stderr
    assert not loaded & {"transformers", "peft", "examples"}
    before = ORDER[:3] if module == "sample" else ORDER[: ORDER.index(module)]
    assert loaded & set(ORDER) <= {module, *before}


ALONE = """
import importlib, os, sys, torch
for room in sys.argv[1:]:
    sys.stdout.flush()
    if not os.fork():  # a process that has imported nothing of ours
        importlib.import_module(f"support.{room}")
        print(room, *sys.modules)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, set[str]]:
    """By room the modules that are there when it is imported first of all."""
    command = [sys.executable, "-c", ALONE, *ROOMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {room: set(modules) for room, *modules in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_stands_alone(loaded_by, room):
    """It can be imported first of all, and neither then nor later does it call upstairs."""
    never = {*ORDER, "transformers", "peft", "examples"}
    assert f"support.{room}" in loaded_by[room] and not loaded_by[room] & never
    assert not imported(ROOT / "support" / f"{room}.py") & never


def test_every_room_says_at_its_door_what_it_is_for():
    doors = {
        room: ast.get_docstring(ast.parse((ROOT / "support" / f"{room}.py").read_text()))
        for room in ROOMS
    }
    assert all(doors.values()), doors
    listed = re.findall(
        r"^    (\w+) ", (ROOT / "support" / "__init__.py").read_text(), re.MULTILINE
    )
    assert sorted(listed) == ROOMS


def test_the_book_is_read_in_one_sitting():
    lines = {
        module: len((ROOT / f"{module}.py").read_text(encoding="utf-8").splitlines())
        for module in ORDER
    }
    assert max(lines.values()) <= 400 and sum(lines.values()) <= 1_316, lines


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_screen_that_the_table_knows(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (120 if path.stem == "adalora" else 80)
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    row = re.search(
        rf"^\| \[{path.name}\].*$",
        (ROOT / "examples" / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert row and row[0].split(" | ")[2] == str(lines)
    assert (path.parent / f"test_{path.name}").exists()


def test_every_test_that_the_code_names_is_there():
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in [*ROOT.glob("*.py"), *ROOT.glob("support/*.py")]
    )
    named = set(re.findall(r"\b(?:test_\w+)\.py", code))
    assert named and named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
