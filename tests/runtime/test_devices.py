"""Where and how a model computes; torch.compile where it works and where it does not."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, draw

from bert import BertConfig, BertForSequenceClassification
from data import Encoded
from lora import apply_lora_to_model, mark_only_lora_as_trainable
from runtime import devices, fast
from support import parallel
from support.errors import InputError

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


@pytest.fixture
def model() -> BertForSequenceClassification:
    model = BertForSequenceClassification(BertConfig(**TINY))
    apply_lora_to_model(model)
    mark_only_lora_as_trainable(model)
    draw(model)
    return model


def test_auto_is_what_pytorch_has(model):
    best = "mps" if torch.backends.mps.is_available() else "cpu"
    best = "cuda" if torch.cuda.is_available() else best
    placement = devices.place(model)
    assert placement.device.type == best and model.classifier.weight.device.type == best


def test_on_a_cpu(model):
    placement = devices.place(model, device="cpu")
    assert (placement.bfloat16, placement.compiled, placement.always_mask) == (False,) * 3
    assert (placement.multiple, placement.batch_tokens) == (1, 1024)
    with placement.autocast:
        assert not torch.is_autocast_enabled("cpu")
    assert type(model.bert.embeddings.dropout) is not torch.nn.Dropout  # a faster form


def test_bfloat16_takes_frozen_weights_and_the_products(model):
    placement = devices.place(model, device="cpu", dtype="bfloat16")
    assert placement.bfloat16
    for name, parameter in model.named_parameters():
        is_matrix = "LayerNorm" not in name and "embeddings" not in name
        frozen = is_matrix and not parameter.requires_grad
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32), name
    for _ in range(2):  # it can be entered again
        with placement.autocast:
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_encoded_texts_go_where_the_model_is():
    lengths = np.array([2, 1])
    encoded = Encoded(torch.arange(3), None, np.array([0, 2]), lengths, torch.tensor([0, 1]))
    placement = devices.Placement(
        device=torch.device("meta"),
        autocast=None,
        bfloat16=True,
        compiled=True,
        multiple=8,
        always_mask=True,
        batch_tokens=1,
        notes=[],
    )
    put = placement.put(encoded)
    assert put.input_ids.is_meta and put.labels.is_meta and put.lengths is lengths
    assert (put.multiple, put.always_mask) == (8, True)


def on_cuda(positions: int) -> BertForSequenceClassification:
    """A model that passes for one on CUDA."""
    model = BertForSequenceClassification(
        BertConfig(**TINY | {"max_position_embeddings": positions})
    )
    model.to = lambda *_: model
    return model


@no_cuda
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_what_is_decided_for_cuda():
    """Where torch.compile does not work, as here, "auto" goes on with a note."""
    for positions, multiple in (40, 8), (42, 1):
        placement = devices.place(on_cuda(positions), device="cuda", compile="auto")
        assert (placement.multiple, placement.batch_tokens) == (multiple, 16 * 1024)
        assert (placement.compiled, placement.always_mask) == (False, False)
    (note,) = placement.notes
    assert note.startswith("note: the layers are not compiled, which would be faster: ")


def test_where_a_faster_form_steps_aside_is_noted(model, monkeypatch):
    monkeypatch.setattr(fast, "rewrite", lambda *_, **__: ["LoRALayer.forward was edited"])
    assert devices.place(model, device="cpu").notes == ["note: LoRALayer.forward was edited"]


# What is not there.


@no_cuda
def test_a_device_that_is_not_there_is_named(model):
    with pytest.raises(InputError, match=r"^--device cuda cannot be used here: "):
        devices.place(model, device="cuda")


def test_too_little_memory_is_no_missing_device(model, monkeypatch):
    monkeypatch.setattr(model, "to", lambda *_: torch.empty(2**50))
    with pytest.raises(RuntimeError, match="allocate memory"):
        devices.place(model, device="cpu")


def test_several_processes_take_a_gpu_each(model, monkeypatch):
    monkeypatch.setattr(parallel, "LOCAL_SIZE", 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in "mps", "cuda":
        with pytest.raises(
            InputError, match=f"^--device {device}: each of 4 processes takes a GPU$"
        ):
            devices.place(model, device=device)
    devices.place(model, device="cpu")


# torch.compile.

COMPILED = """
import sys, torch
from bert import BertConfig, BertForSequenceClassification
from runtime import devices
from support import errors
def main():
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"intermediate_size": 24, "vocab_size": 30, "hidden_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(**settings, attention_probs_dropout_prob=0.0))
    compile, recompute, step = sys.argv[1:]
    placement = devices.place(
        model, device="cpu", compile=compile, recompute=recompute == "recompute"
    )
    print(placement.compiled, model.bert.encoder.layer[0]._compiled_call_impl is not None)
    if step == "step":
        ids = torch.arange(15).view(3, 5)
        model.train()(ids, torch.ones_like(ids)).square().sum().backward()
        print(*(p.grad.norm().item() for p in model.parameters()))
errors.run_main(main)
"""


def placed(*words: str, **env) -> tuple[int, str, str]:
    command = [sys.executable, "-c", COMPILED, *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_compiled_layers_can_be_computed_again():
    """The gradients are those of the plain layers."""
    path = {"PATH": "/usr/bin:/bin"}
    status, said, error = placed("yes", "recompute", "step", **path)
    assert status == 0, error
    first, ours = said.splitlines()
    assert first == "True True"
    first, plain = placed("no", "", "step", **path)[1].splitlines()
    assert first == "False False"
    ours, plain = (torch.tensor([*map(float, norms.split())]) for norms in (ours, plain))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
