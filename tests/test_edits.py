"""The line that a reader sees is the line that runs: edits of a copy take effect, on a CPU too.

Each edit is made in a copy of the checkout. There train.py trains, and sample.py answers and labels
by the adapter that the unedited train.py made. All runs are forked from one process that has
imported PyTorch, but nothing of ours.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

EDITS = {
    "LoRA times 1000": {
        "lora.py": [("(x))) * self.scaling  #", "(x))) * self.scaling * 1000  #")],
    },
    "dropout after A": {
        "lora.py": [("self.lora_A(self.dropout(x))", "self.dropout(self.lora_A(x))")],
    },
    "scores divided by 2": {
        "bert.py": [("/ math.sqrt(q.shape[-1])", "/ math.sqrt(q.shape[-1]) / 2")],
    },
    "mean instead of [CLS]": {
        "bert.py": [("self.dense(x[:, 0])", "self.dense(x.mean(1))")],
    },
    "ReLU in one layer": {
        "bert.py": [
            (
                "    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:\n"
                "        for layer in self.layer:\n",
                "        self.layer[0].intermediate = Relu(config)\n\n"
                "    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:\n"
                "        for layer in self.layer:\n",
            ),
            (
                "class BertEncoder(",
                "class Relu(BertIntermediate):\n"
                "    def forward(self, x):\n"
                "        return self.dense(x).relu()\n\n\n"
                "class BertEncoder(",
            ),
        ],
    },
    "ReLU in every layer": {"bert.py": [('"gelu": F.gelu', '"gelu": F.relu')]},
    "a hook on lora_A": {
        "lora.py": [
            (
                "        nn.init.zeros_(self.lora_B.weight)\n",
                "        nn.init.zeros_(self.lora_B.weight)\n"
                "        self.lora_A.register_forward_hook(lambda module, given, y: 3 * y)\n",
            ),
        ],
    },
    "a subclass of LoRALayer": {
        "lora.py": [
            (
                "class LinearWithLoRA(",
                "class Louder(LoRALayer):\n"
                "    def forward(self, x):\n"
                "        return 3 * super().forward(x)\n\n\n"
                "class LinearWithLoRA(",
            ),
            ("lora = LoRALayer(", "lora = Louder("),
        ],
    },
}
SAME_ANSWERS = {"dropout after A"}  # nothing is dropped when answering

FORKS = """
import json, os, runpy, sys
import numpy, safetensors.torch, tokenizers, torch, torch.nn.functional
runs = json.load(sys.stdin)
for run in runs:
    if not os.fork():
        os.chdir(run["cwd"])
        sys.path.insert(0, run["cwd"])
        for number, name in (1, "stdout"), (2, "stderr"):
            os.dup2(os.open(f"{run['log']}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = run["words"]
        status = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            open(f"{run['log']}.status", "w").write(str(status))
            os._exit(0)
    os.wait()
"""
BANK = """
import json, torch
from runtime import fast
from runtime.bank import AdapterBank
bank = AdapterBank({base!r})
bank.load("a", {adapter!r})
ids = torch.arange(60).view(3, 20) + 1000
print(json.dumps([row.tolist() for row in bank.forward_rows(["a", "a", "a"], ids)]))
"""
TEXTS = ["great film", "a dull and endless story of nothing", "the plot is thin"]


def edited_copy(folder: Path, edit: dict) -> Path:
    """The checkout's own files, with the replacements of an edit made in them."""
    folder.mkdir()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("support/*"), *ROOT.glob("runtime/*")]:
        if path.is_file():
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    for name, replacements in edit.items():
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in replacements:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def results(tiny, some_reviews, tmp_path_factory) -> dict[str, dict]:
    """By edit, and for "none": the trained adapter, the answers, the labelled table, the bank's."""
    top = tmp_path_factory.mktemp("edits")
    (top / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    adapter = f"{top}/none/out/best"
    runs = []

    def run(name: str, door: str, *words) -> None:
        log = f"{top}/{name}.{door}"
        runs.append({"cwd": f"{top}/{name}", "words": [*map(str, words)], "log": log})

    for name, edit in {"none": {}, **EDITS}.items():
        copy = edited_copy(top / name, edit)
        (copy / "bank.py").write_text(BANK.format(base=str(tiny), adapter=adapter))
        settings = ["--epochs", 1, "--batch-size", 8, "--lr", 0.01, "--max-length", 16]
        run(name, "train", "train.py", "--model", tiny, "--data", some_reviews, *settings)
        run(name, "answer", "sample.py", "--adapter", adapter, "--json", *TEXTS)
        run(name, "bank", "bank.py")
        table = ["--file", f"{top}/texts.txt", "--out", f"{top}/{name}.csv"]
        run(name, "label", "sample.py", "--adapter", adapter, *table)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FORKS]
    given = json.dumps(runs)
    subprocess.run(command, input=given, text=True, env=environment, timeout=300, check=True)
    for one in runs:
        log = Path(one["log"])
        assert Path(f"{log}.status").read_text() == "0", Path(f"{log}.stderr").read_text()
    return {
        name: {
            "train": (top / name / "out" / "best" / "adapter_model.safetensors").read_bytes(),
            "answer": Path(f"{top}/{name}.answer.stdout").read_text(),
            "bank": Path(f"{top}/{name}.bank.stdout").read_text(),
            "label": (top / f"{name}.csv").read_text(),
            "said": Path(f"{top}/{name}.train.stdout").read_text(),
        }
        for name in ("none", *EDITS)
    }


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_takes_effect_in_training(results, edit):
    assert results[edit]["train"] != results["none"]["train"]


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit not in SAME_ANSWERS])
@pytest.mark.parametrize("door", ["answer", "bank", "label"])
def test_an_edit_takes_effect_in_answering(results, edit, door):
    assert results[edit][door] != results["none"][door]


def test_a_fast_form_that_steps_aside_says_so(results):
    assert "LoRALayer.forward was edited" in results["LoRA times 1000"]["said"]
    assert "BertPooler.forward was edited" in results["mean instead of [CLS]"]["said"]
    assert "edited" not in results["none"]["said"]
