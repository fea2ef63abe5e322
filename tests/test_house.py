"""The order of the house: each file imports only what stands below it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGES = ("support", "runtime")
BOOK = ["bert", "lora", "data", "train", "sample"]
BELOW = {  # what each may import of ours
    "support": {"support"},
    "bert": set(),
    "lora": {"bert"},
    "data": {"support"},
    "runtime": {"support", "bert", "lora", "data", "runtime"},
    "train": {"support", "bert", "lora", "data", "runtime"},
    "sample": {"support", "bert", "lora", "data", "runtime"},
}
ABOVE = {"examples", "experiments", "benchmarks", "tests", "transformers", "peft"}


def rooms(package: str) -> list[str]:
    """The modules of a package."""
    return sorted(p.stem for p in (ROOT / package).glob("*.py") if p.stem != "__init__")


FILES = {name: ROOT / f"{name}.py" for name in BOOK}
FILES |= {f"{p}.{room}": ROOT / p / f"{room}.py" for p in PACKAGES for room in rooms(p)}
EXAMPLES = [
    path
    for path in (ROOT / "examples").glob("*.py")
    if not path.stem.startswith(("test_", "conftest"))
]


def imported(path: Path) -> set[str]:
    """The packages and modules that a file imports, at its head or late: "os", "support"."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module.partition(".")[0])
    return names


ALONE = """
import sys
sys.modules["fcntl"] = None  # as on Windows, where there is none
import importlib, os, torch
for module in sys.argv[1:]:
    if not os.fork():  # a process that has imported nothing of ours
        importlib.import_module(module)
        print(module, *sys.modules, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded_by() -> dict[str, set[str]]:
    """By module the modules that are there when it is imported first of all."""
    command = [sys.executable, "-W", "ignore", "-c", ALONE, *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    print(done.stderr)
    lines = map(str.split, done.stdout.splitlines())
    return {module: set(loaded) for module, *loaded in lines}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_downward(module):
    ours = {*BELOW, *ABOVE}
    assert imported(FILES[module]) & ours <= BELOW[module.partition(".")[0]]


@pytest.mark.parametrize("module", FILES)
def test_a_module_can_be_imported_first_of_all(loaded_by, module):
    """Also on Windows, and it brings nothing that stands above it."""
    assert module in loaded_by, f"import {module} fails"
    loaded = loaded_by[module]
    found = {name.partition(".")[0] for name in loaded} & {*BELOW, *ABOVE}
    top = module.partition(".")[0]
    assert found <= BELOW[top] | {top}


@pytest.mark.parametrize("module", ["train", "sample"])
def test_a_program_starts_at_once(loaded_by, module):
    """What an answer to one text does not need is imported late."""
    assert not loaded_by[module] & {"huggingface_hub", "matplotlib", "pyarrow", "sklearn"}


@pytest.mark.parametrize("module", FILES)
def test_nothing_of_unix_alone_and_no_pickle(module):
    """A lock is filelock's, which is there on Windows too; files and messages are data."""
    assert not imported(FILES[module]) & {"fcntl", "resource", "pickle", "marshal", "shelve"}
    source = FILES[module].read_text(encoding="utf-8")
    if module == "runtime.convert":  # the one program for pickles, which reads their tensors alone
        source, count = re.subn(r"torch\.load\([^()]*weights_only=True\)", "", source)
        assert count == 1
    assert not re.search(r"\btorch\.(load|save)\(|_object(_list)?\(|\b(eval|exec)\(\"", source)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_says_at_its_door_what_it_is_for(package):
    for room in rooms(package):
        text = FILES[f"{package}.{room}"].read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), room
    index = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
    assert not imported(ROOT / package / "__init__.py")  # one room does not bring the others
    listed = re.findall(r"^ {4}(\w+) ", index, re.MULTILINE)
    assert sorted(listed) == rooms(package)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_in_the_table_and_has_a_test(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    table = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[{path.name}\]", table, re.MULTILINE)
    assert (path.parent / f"test_{path.name}").exists()


def test_every_test_that_the_code_names_is_there():
    code = "".join(path.read_text(encoding="utf-8") for path in FILES.values())
    named = set(re.findall(r"\b(?:test_\w+)\.py", code))
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
