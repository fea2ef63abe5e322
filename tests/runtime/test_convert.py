"""Pickles become safetensors, by a program of their own that runs nothing of them."""

import os
import pickle

import pytest
import torch
import zoo
from helpers import adapted, difference, open_theirs
from safetensors.torch import load_file

from bert import BertForSequenceClassification
from lora import open_adapter, save_adapter
from support.errors import InputError
from support.hub import folder

CONVERT = ("-m", "runtime.convert")


@pytest.fixture
def old(tmp_path):
    """A model as of 2019: vocab.txt, and a pickle in the format of that year."""
    (tmp_path / "old").mkdir()
    zoo.build("ProsusAI/finbert", tmp_path / "old")
    return tmp_path / "old"


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_line_of_the_refusal_converts(run, old, tmp_path):
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle") as refused:
        folder(old)
    command = str(refused.value).partition("convert it with: python ")[2]
    new = tmp_path / "new"
    command = command.replace("NEW_FOLDER", str(new)).split()
    before = contents(old)
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == f"wrote {new}/model.safetensors\n"
    assert contents(old) == before
    del before["pytorch_model.bin"]
    found = contents(new)
    del found["model.safetensors"]
    assert found == before
    model = BertForSequenceClassification.from_pretrained(folder(new))
    assert model.newly_initialized == ()
    input_ids = torch.arange(20, 40).view(2, 10)
    assert difference(model(input_ids), open_theirs(old)(input_ids).logits) < 1e-5
    done = run(*command)  # a second time: nothing is replaced
    assert done.returncode == 2 and "new: is there already" in done.stderr


def test_an_adapter_is_converted(run, tiny, tmp_path):
    model = adapted(tiny, ["query"], rank=3, alpha=6)
    adapter = tmp_path / "adapter"
    save_adapter(model, adapter, str(tiny))
    state = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(state, adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin is a pickle"):
        folder(adapter)
    assert run(*CONVERT, adapter, tmp_path / "new").returncode == 0
    input_ids = torch.arange(1000, 1012).view(2, 6)
    assert torch.equal(open_adapter(tmp_path / "new")(input_ids), model(input_ids))


class Program:
    """Runs when it is unpickled by a reader that trusts it."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def blown_up(state: dict) -> dict:
    return state | {"cls.big": torch.ones(1).expand(10**9)}


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda state: state | {"extra": Program()}, "is not a file of tensors alone"),
        (lambda state: [1, 2], "cannot be read ('list' object has no attribute"),
        (lambda state: state | {"step": 7}, "'step' is no plain tensor"),
        (lambda state: state | {"x": torch.eye(3).to_sparse()}, "'x' is no plain tensor"),
        (lambda state: state | {"x": torch.ones(3, device="meta")}, "'x' is no plain tensor"),
        (blown_up, "'cls.big' is no plain tensor"),
    ],
)
def test_what_is_no_tensors_is_one_line(run, old, tmp_path, change, problem):
    state = torch.load(old / "pytorch_model.bin", weights_only=True)
    torch.save(change(state), old / "pytorch_model.bin")
    done = run(*CONVERT, old, tmp_path / "new")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {old}/pytorch_model.bin: ") and problem in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["old"] and not os.path.exists("ran")


def test_files_that_are_no_pickle_are_one_line(run, old, tmp_path):
    content = (old / "pytorch_model.bin").read_bytes()
    for spoilt in b"", b"no pickle", content[:5000], pickle.dumps(Program()):
        (old / "pytorch_model.bin").write_bytes(spoilt)
        done = run(*CONVERT, old, tmp_path / "new")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"{old}/pytorch_model.bin: " in done.stderr
    (old / "pytorch_model.bin").unlink()
    done = run(*CONVERT, old, tmp_path / "new")
    assert f"{old}/pytorch_model.bin: cannot be read (No such file" in done.stderr


def test_a_model_of_the_hub(run, hub, old, tmp_path):
    hub.add("me/old", old)
    alone = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = run(*CONVERT, "me/old", tmp_path / "new", env=alone)
    assert done.returncode == 0, done.stderr
    model = BertForSequenceClassification.from_pretrained(tmp_path / "new")
    assert model.newly_initialized == ()
