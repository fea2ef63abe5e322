"""What the README and the documents tell people to type, typed; and what they point at, there."""

import ast
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
TYPED = [
    block.splitlines() for kind, block in BLOCKS if not kind and not block.startswith("model ")
]
COMMANDS = [line for lines in TYPED for line in lines if line.startswith("python ")]
SNIPPETS = [block for kind, block in BLOCKS if kind == "python"]
TRAINING = [block for block in SNIPPETS if block.startswith("from train ")]
BASE = "offline/all-MiniLM-L6-v2"
FEW = ["--epochs", "1", "--max-length", "12", "--batch-size", "16"]


@pytest.fixture
def home(run, tiny, table, tmp_path, hub):
    """A folder that looks like the project's after `make train`, and a function that runs there.

    Its base is a small random BERT.
    """
    home = tmp_path / "home"
    home.mkdir()
    for name in ("bert.py", "lora.py", "data.py", "train.py", "sample.py", "support", "runtime"):
        (home / name).symlink_to(ROOT / name)
    (home / "offline").mkdir()
    (home / BASE).symlink_to(tiny)
    (home / "all-MiniLM-L6-v2").symlink_to(tiny)  # as a card names a base of another machine
    shutil.copy(table, home / "reviews.csv")
    (home / "reviews.txt").write_text("great film\ntwo hours I will not get back\n")

    def typed(*arguments: str) -> str:
        done = run(*arguments, cwd=home, env=hub.environment)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    typed("train.py", "--model", BASE, "--data", "reviews.csv", *FEW)
    shutil.copytree(home / "out" / "best", home / "out-cola" / "best")
    return home, typed


def test_every_command_is_run_here_or_is_known():
    assert {"train.py", "sample.py", "-m"} == {line.split()[1] for line in COMMANDS}
    others = {line.split()[0] for lines in TYPED for line in lines if line not in COMMANDS}
    assert others == {"make", ".", "torchrun"}  # the last: tests/test_distributed.py


def test_the_commands(home):
    """As written, but for the names that a reader is to replace."""
    home, run = home
    shutil.copytree(home / "out", home / "whole")
    pairs = {
        "sentence1": [f"film {i}" for i in range(20)],
        "sentence2": ["it is"] * 20,
        "label": [0, 1] * 10,
    }
    of_pairs = write_table(home / "pairs.jsonl", pairs)
    run("train.py", "--model", BASE, "--data", of_pairs, "--out", "out-rte", *FEW)
    for line in COMMANDS:
        words = shlex.split(line, comments=True)[1:]
        if "DIR_OR_HUB_ID" in words:
            words = [BASE if word == "DIR_OR_HUB_ID" else word for word in words] + FEW
        if "--resume" in words:  # goes on with a run that was killed before it was finished
            shutil.rmtree(home / "out" / "final")
        said = run(*words)
        if "great film" in words:
            assert re.fullmatch(r"((\S+: +)?(positive|negative) +\d.*\n)+", said), said
    for folder in "again", "out":
        for name in ("best/adapter_model.safetensors", "final/adapter_model.safetensors"):
            assert (home / folder / name).read_bytes() == (home / "whole" / name).read_bytes()
    assert "--resume" in "".join(COMMANDS)


def test_the_snippets(home):
    """Each by itself; they give the same answer as sample.py, or logits of the right shape."""
    home, run = home
    run("-m", "runtime.adapters", "merge", "out/best", "merged")
    card = (home / "out" / "best" / "README.md").read_text(encoding="utf-8")
    run("-c", *TRAINING)
    assert (home / "out-python" / "best" / "adapter_model.safetensors").exists()
    others = [block for block in SNIPPETS if block not in TRAINING]
    snippets = [*others, re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]]
    shows = [
        "",  # the README's prints its answer
        "print(classify('great film', top_k=None))",
        "print([len(row) for row in logits])",
        "print(type(model))",
    ]
    programs = [snippet + show for snippet, show in zip(snippets, shows, strict=True)]
    # In one process, as transformers takes seconds to import; with nothing of each other's.
    said = run("-c", "\n".join(f"exec({program!r}, {{}})" for program in programs))
    ours, pipeline, bank, peft = said.splitlines()
    label, confidence = run("sample.py", "great film").split()[:2]
    answer, theirs = ast.literal_eval(ours)[0], ast.literal_eval(pipeline)[0]
    assert label == answer["label"] == theirs["label"]
    assert confidence == f"{answer['confidence']:.1%}" == f"{theirs['score']:.1%}"
    assert bank == "[2, 2]"
    assert "PeftModelForSequenceClassification" in peft


@pytest.mark.parametrize(
    "target",
    ["train", "test", "test-cluster", "figures", "bench", "gpu", "fuzz", "faults", "merge"],
)
def test_make_with_a_python_of_ones_own_installs_nothing(target):
    """`make -n` shows what would be run: what the Makefile's head promises for PYTHON=."""
    environment = {"PATH": os.environ["PATH"]}  # not that of the make which runs the tests
    command = ["make", "-n", target, "PYTHON=/my/python"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for line in done.stdout.splitlines():
        assert line.startswith("/my/python ") and "pip" not in line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_at_something(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+)\)", prose)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_reading_table_names_what_is_there():
    table = README.partition("| file | look at | for |\n")[2].partition("\n\n")[0]
    source, names = "", []
    for row in table.splitlines()[1:]:
        _, file, symbols, *_ = row.split("|")
        if file.strip():  # else the row goes on with the file of the one above
            name = re.search(r"\((\S+)\)", file)[1]
            source = (ROOT / name).read_text(encoding="utf-8")
        names += re.findall(r"`(\w+)`", symbols)
        for symbol in re.findall(r"`(\w+)`", symbols):
            assert re.search(rf"^(class|def) {symbol}\b", source, re.MULTILINE), symbol
    assert names
