"""The notebooks run as they stand, on the offline pair; the two languages have the same cells."""

import os
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT

nbformat = pytest.importorskip("nbformat")
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = " --epochs 1 --max-length 8 --log-every 100"


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_of(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_ten_cells_each_after_a_sentence_and_without_outputs(path):
    cells = read(path).cells
    assert [cell.cell_type for cell in cells] == ["markdown", "code"] * 10
    assert not any(cell.outputs or cell.execution_count for cell in cells[1::2])
    for number, cell in enumerate(cells[::2], 1):
        assert f"**{number}.** " in cell.source
        for target in re.findall(r"\]\((.*?)\)", cell.source):
            assert (path.parent / target).exists()
    assert code_of(path) == code_of(PAGES[0])


def test_the_commands_are_those_of_the_readme():
    code = "\n".join(code_of(PAGES[0]))
    assert '!python sample.py "great film" "two hours I will not get back"\n' in code
    assert 'python sample.py "great film" "two hours I will not get back"\n' in README
    snippet = code_of(PAGES[0])[-1]
    assert snippet in README
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "!python train.py --offline-fallback --resume " in code
    assert "train.py --offline-fallback --resume " in makefile


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_notebook_runs(path, minilm, tmp_path, monkeypatch):
    """With fewer steps; on what make train takes where there is no Hub."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name in ("bert.py", "lora.py", "data.py", "train.py", "sample.py", "support", "runtime"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "requirements.txt").touch()  # nothing is installed
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(path)
    for cell in notebook.cells:
        if cell.source.startswith("!python train.py"):
            cell.source += FEW
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(tmp_path / "notebooks"))
    outputs = [cell.get("outputs", []) for cell in notebook.cells[1::2]]
    text = ["".join(o.get("text", "") for o in of_cell) for of_cell in outputs]
    assert "best validation accuracy" in text[3] and "error:" not in text[3]
    assert re.search(r"LoRA +73,728 +trained: rank 8", text[4])
    assert "image/png" in outputs[5][0]["data"] and "image/png" in outputs[7][-1]["data"]
    assert "Validation: loss" in outputs[6][0]["data"]["text/markdown"]
    assert re.search(r"\d%  great film\r?\n.*\d%  two hours I will not get back", text[8])
    assert "'label': " in text[9]
