"""What the README and the documents tell people to type, typed; and what they point at, there."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from helpers import ROOT, write_table

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMPATIBILITY = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README + COMPATIBILITY, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if not kind
    for line in block.splitlines()
    if line.startswith("python ")
]
SNIPPETS = [block for kind, block in BLOCKS if kind == "python"]
TRAINED = ["--epochs", "1", "--max-length", "12", "--batch-size", "16"]


@pytest.fixture
def home(run, minilm, table, tmp_path, hub):
    """A folder that looks like the project's after `make train`, and a function that runs a program
    there."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("bert.py", "lora.py", "data.py", "train.py", "sample.py", "support"):
        (home / name).symlink_to(ROOT / name)
    (home / "offline").symlink_to(ROOT / "offline")
    (home / "all-MiniLM-L6-v2").symlink_to(
        minilm
    )  # as a card names a base that lies on somebody's machine
    shutil.copy(table, home / "reviews.csv")
    (home / "reviews.txt").write_text("great film\ntwo hours I will not get back\n")

    def typed(*arguments: str) -> str:
        more = {"PYTHONPATH": str(ROOT)} if arguments[0] == "-c" else {}
        done = run(*arguments, cwd=home, env=hub.environment | more)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    typed("train.py", "--model", minilm, "--data", "reviews.csv", *TRAINED)
    shutil.copytree(home / "out" / "best", home / "out-cola" / "best")
    typed("lora.py", "merge", "out/best", "merged/")
    return home, typed


def test_the_commands(home, minilm):
    """As written, but for the names that a reader is to replace."""
    home, run = home
    shutil.copytree(home / "out", home / "whole")
    pairs = {
        "sentence1": [f"film {i}" for i in range(20)],
        "sentence2": ["it is"] * 20,
        "label": [0, 1] * 10,
    }
    run(
        "train.py",
        "--model",
        minilm,
        "--data",
        write_table(home / "pairs.jsonl", pairs),
        "--out",
        "out-rte",
        *TRAINED,
    )
    assert len(COMMANDS) == 12
    for line in COMMANDS:
        words = shlex.split(line.replace("DIR_OR_HUB_ID", minilm), comments=True)[1:]
        if "--resume" in words:  # with no other options
            shutil.rmtree(home / "out" / "final")
        if "merge" in words:
            shutil.rmtree(home / "merged")
        said = run(*words)
        if "great film" in words:
            assert all(
                re.match(r"(positive|negative) +\d", answer) for answer in said.splitlines()
            ), said
    files = ("best/adapter_model.safetensors", "final/adapter_model.safetensors")
    for folder in "again", "out":
        assert all(
            (home / folder / name).read_bytes() == (home / "whole" / name).read_bytes()
            for name in files
        )


def test_the_snippets(home):
    home, run = home
    card = (home / "out" / "best" / "README.md").read_text(encoding="utf-8")
    snippets = [*SNIPPETS, re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]]
    assert len(snippets) == 3
    shows = [
        "print(classify('great film', top_k=None)[0])",
        "print([len(row) for row in logits])",
        "print(type(model))",
    ]
    said = [run("-c", snippet + show) for snippet, show in zip(snippets, shows, strict=True)]
    label, confidence = run("sample.py", "great film").split()[:2]
    theirs = float(re.search(r"0\.\d+", said[0])[0])
    assert label in said[0] and f"{theirs:.1%}" == confidence
    assert said[1] == "[2, 2]\n"
    assert "PeftModelForSequenceClassification" in said[2]


@pytest.mark.parametrize(
    "target", ["train", "test", "test-cluster", "figures", "bench", "fuzz", "faults", "merge"]
)
def test_make_with_a_python_of_ones_own_installs_nothing(target):
    """`make -n` shows what would be run: what the Makefile's head promises for PYTHON=."""
    environment = {"PATH": os.environ["PATH"]}  # not that of the make which runs the tests
    command = ["make", "-n", target, "PYTHON=/my/python"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(
        line.startswith("/my/python ") and "pip" not in line for line in done.stdout.splitlines()
    )
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_at_something(page):
    prose = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    links = re.findall(r"\]\(([^)#]+)\)", prose)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_reading_path_names_what_is_there():
    rows = re.findall(r"^\| (`.+`) \| \[(\w+\.py)\]\(\2\)", README, re.MULTILINE)
    path = [(symbol, file) for symbols, file in rows for symbol in re.findall(r"\w+", symbols)]
    assert len(path) == 10
    for symbol, file in path:
        assert re.search(
            rf"^(class|def) {symbol}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
        ), symbol


def test_the_readme_is_a_screen_and_a_half():
    assert len(README.splitlines()) <= 110
