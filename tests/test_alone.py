"""bert.py, and lora.py with it, work alone in an empty folder: any project can have a copy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from helpers import ROOT, difference, inputs, open_theirs, saved_base

# peft's own affair.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

NOTHING_ELSE = """
import importlib.util
import json
import sys
import torch

for name in ("data", "train", "sample", "support", "runtime", "helpers"):
    assert importlib.util.find_spec(name) is None, name
base, input_ids, mask = json.loads(sys.argv[1])
given = torch.tensor(input_ids), torch.tensor(mask)
"""

ANSWER = """
from bert import BertForSequenceClassification
model = BertForSequenceClassification.from_pretrained(base)
logits = model(*given)
"""

TRAIN = """
from bert import BertForSequenceClassification
from lora import apply_lora_to_model, mark_only_lora_as_trainable, merge_lora_weights
from lora import open_adapter, save_adapter

torch.manual_seed(0)
model = BertForSequenceClassification.from_pretrained(base, ["bad", "fair", "good"])
apply_lora_to_model(model, ["query", "value"], rank=4, alpha=8, dropout=0.0)
mark_only_lora_as_trainable(model)
before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
losses = []
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(*given), torch.tensor([2, 0]))
    losses.append(loss.item())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert losses[2] < losses[1] < losses[0], losses
moved = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
layers = [f"bert.encoder.layer.{n}.attention.self.{m}" for n in (0, 1) for m in ("query", "value")]
expected = {f"{layer}.lora.lora_{letter}.weight" for layer in layers for letter in "AB"}
assert moved == expected | {"classifier.weight", "classifier.bias"}, moved

save_adapter(model, "adapter", base)
logits = model(*given)
opened = open_adapter("adapter")
assert torch.equal(opened(*given), logits)
assert opened.config.id2label == {0: "bad", 1: "fair", 2: "good"}
merge_lora_weights(opened)
assert torch.allclose(opened(*given), logits, atol=1e-5)
opened.save_pretrained("merged")
"""

OFFLINE = """
unneeded = {"huggingface_hub", "pyarrow", "tokenizers", "transformers", "peft"}
assert not unneeded & sys.modules.keys()
"""

SAY = """
print(json.dumps(logits.tolist()))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return saved_base(tmp_path_factory.mktemp("alone") / "base", num_labels=3)


def run_alone(folder: Path, files: list[str], code: str, base: str, **variables) -> torch.Tensor:
    """The logits that the code prints, in a folder with these files and nothing else."""
    folder.mkdir()
    for name in files:
        shutil.copy(ROOT / name, folder)
    (folder / "main.py").write_text(NOTHING_ELSE + code)
    input_ids, mask = inputs(60, [9, 4])
    given = json.dumps([base, input_ids.tolist(), mask.tolist()])
    command = [sys.executable, "-E", "-s", "main.py", given]
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", **variables}
    captured = {"capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run(command, cwd=folder, env=environment, **captured)
    assert done.returncode == 0, done.stderr
    return torch.tensor(json.loads(done.stdout))


@torch.inference_mode()
def test_bert_alone_answers_as_transformers(base, tmp_path):
    logits = run_alone(tmp_path / "new", ["bert.py"], ANSWER + OFFLINE + SAY, str(base))
    assert difference(logits, open_theirs(base)(*inputs(60, [9, 4])).logits) < 1e-5


@torch.inference_mode()
def test_bert_alone_opens_a_repository_of_the_hub(base, tmp_path, hub):
    """By its name the newest commit, with a revision that one; two files and no others."""
    newer = saved_base(tmp_path / "newer", seed=1, num_labels=3)
    for folder in base, newer:
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    hub.add("me/base", base, commit="1" * 40)
    hub.add("me/base", newer, commit="2" * 40)
    for name, folder in ("me/base", newer), ("me/base@" + "1" * 40, base):
        new = tmp_path / name.replace("/", "-")
        logits = run_alone(new, ["bert.py"], ANSWER + SAY, name, **hub.environment)
        assert difference(logits, open_theirs(folder)(*inputs(60, [9, 4])).logits) < 1e-5
    assert not any("pytorch_model.bin" in path for path, _ in hub.served)


@torch.inference_mode()
def test_bert_and_lora_alone_train_an_adapter_that_peft_opens(base, tmp_path):
    folder = tmp_path / "new"
    logits = run_alone(folder, ["bert.py", "lora.py"], TRAIN + OFFLINE + SAY, str(base))
    given = inputs(60, [9, 4])
    theirs = peft.PeftModel.from_pretrained(open_theirs(base), folder / "adapter").eval()
    assert difference(theirs(*given).logits, logits) < 1e-5
    assert difference(open_theirs(folder / "merged")(*given).logits, logits) < 1e-5
    assert theirs.peft_config["default"].base_model_name_or_path == str(base)
