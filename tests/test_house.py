"""The order of the house: each file imports only what is read before it, and the book is read in one sitting."""

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

ORDER = ["bert", "lora", "data", "train", "sample"]
EXAMPLES = [path for path in (ROOT / "examples").glob("*.py") if not path.stem.startswith(("test_", "conftest"))]
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


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_stands_alone(run, room):
    """It can be imported first of all, and neither then nor later does it call upstairs."""
    done = run("-c", f"import sys, support.{room}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    never = {*ORDER, "transformers", "peft", "examples"}
    assert not set(done.stdout.split()) & never
    assert not imported(ROOT / "support" / f"{room}.py") & never


def test_every_room_says_at_its_door_what_it_is_for():
    doors = {room: ast.get_docstring(ast.parse((ROOT / "support" / f"{room}.py").read_text())) for room in ROOMS}
    assert all(doors.values()), doors
    listed = re.findall(r"^    (\w+) ", (ROOT / "support" / "__init__.py").read_text(), re.MULTILINE)
    assert sorted(listed) == ROOMS


def test_the_book_is_read_in_one_sitting():
    lines = {module: len((ROOT / f"{module}.py").read_text(encoding="utf-8").splitlines()) for module in ORDER}
    assert max(lines.values()) <= 400 and sum(lines.values()) <= 1268, lines


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_screen_that_the_table_knows(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (120 if path.stem == "adalora" else 80)
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    row = re.search(
        rf"^\| \[{path.name}\].*$", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert row and row[0].split(" | ")[2] == str(lines)
    assert (path.parent / f"test_{path.name}").exists()


def test_every_test_that_the_code_names_is_there():
    code = "".join(path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.py"), *ROOT.glob("support/*.py")])
    named = set(re.findall(r"\b(?:test_\w+)\.py", code))
    assert named and named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
