"""Where and how a model computes; torch.compile where it works and where it does not."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partialmethod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, draw

from bert import BertConfig, BertForSequenceClassification
from data import Encoded
from lora import LinearWithLoRA, LoRALayer, apply_lora_to_model, mark_only_lora_as_trainable
from runtime import devices, fast, graphs
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


def test_on_a_cpu(model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    placement = devices.place(model, device="cpu")
    assert (placement.dtype, placement.why) == (torch.float32, "the usual type there")
    assert not (placement.scaler.is_enabled() or placement.compiled or placement.always_mask)
    assert (placement.multiple, placement.batch_tokens) == (1, 1024)
    with placement.autocast:
        assert not torch.is_autocast_enabled("cpu")
    assert type(model.bert.embeddings.dropout) is not torch.nn.Dropout  # a faster form


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_that_has_bfloat16_trains_in_it_and_answers_in_float32(model, monkeypatch, feature):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})
    placement = devices.place(copy.deepcopy(model), device="cpu")
    assert (placement.dtype, placement.why) == (torch.bfloat16, "which this CPU multiplies")
    assert devices.place(copy.deepcopy(model), "cpu", dtype="float32").dtype == torch.float32
    placement = devices.place(model.requires_grad_(False), device="cpu")
    assert (placement.dtype, placement.why) == (torch.float32, "the usual type there")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_shorter_type_takes_frozen_weights_and_the_products(model, dtype):
    placement = devices.place(model, device="cpu", dtype=dtype)
    half = getattr(torch, dtype)
    assert (placement.dtype, placement.why) == (half, "as asked")
    assert placement.scaler.is_enabled() == (dtype == "float16")
    for name, parameter in model.named_parameters():
        is_matrix = "LayerNorm" not in name and "embeddings" not in name
        frozen = is_matrix and not parameter.requires_grad
        assert parameter.dtype == (half if frozen else torch.float32), name
    for _ in range(2):  # it can be entered again
        with placement.autocast:
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == half


CAPABILITIES = {(7, 5): "float16", (8, 0): "bfloat16", (9, 0): "bfloat16"}  # a T4, A100, H100


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_auto_is_bfloat16_where_the_gpu_has_it_and_float16_elsewhere(monkeypatch, capability):
    """As PyTorch itself asks a GPU, by its capability."""
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    dtype, why = devices.choose_dtype("auto", "cuda")
    assert dtype == getattr(torch, CAPABILITIES[capability])
    assert why == ("as this GPU has no bfloat16" if capability < (8, 0) else "which this GPU has")
    assert devices.choose_dtype("float32", "cuda") == (torch.float32, "as asked")


@no_cuda
@pytest.mark.filterwarnings("ignore:torch.amp.GradScaler|User provided device_type of 'mps'")
def test_auto_is_mps_in_float32_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None: zeros(*size))
    placement = devices.place(passing_for_a_gpu(positions=40))
    assert placement.device.type == "mps"
    assert placement.dtype == torch.float32 and not placement.scaler.is_enabled()
    assert (placement.multiple, placement.batch_tokens) == (1, 16 * 1024)


def test_encoded_texts_go_where_the_model_is():
    lengths = np.array([2, 1])
    encoded = Encoded(torch.arange(3), None, np.array([0, 2]), lengths, torch.tensor([0, 1]))
    placement = devices.Placement(
        device=torch.device("meta"),
        dtype=torch.bfloat16,
        why="",
        autocast=None,
        scaler=None,
        compiled=True,
        multiple=8,
        always_mask=True,
        batch_tokens=1,
        notes=[],
    )
    put = placement.move(encoded)
    assert put.input_ids.is_meta and put.labels.is_meta and put.lengths is lengths
    assert (put.multiple, put.always_mask) == (8, True)


def passing_for_a_gpu(positions: int) -> BertForSequenceClassification:
    """A model that passes for one on a GPU."""
    model = BertForSequenceClassification(
        BertConfig(**TINY | {"max_position_embeddings": positions})
    )
    model.to = lambda *_: model
    return model


@no_cuda
@pytest.mark.filterwarnings(
    "ignore:User provided device_type of|CUDA is not available|torch.cuda.amp"
)
def test_what_is_decided_for_cuda(monkeypatch):
    """Where torch.compile does not work, as here, "auto" goes on with a note."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None: zeros(*size))
    for positions, multiple in (40, 8), (42, 1):
        placement = devices.place(passing_for_a_gpu(positions), device="cuda", compile="auto")
        assert (placement.multiple, placement.batch_tokens) == (multiple, 16 * 1024)
        assert (placement.compiled, placement.always_mask) == (False, True)
    (note,) = placement.notes
    assert note.startswith("note: the layers are not compiled, which would be faster: ")


@no_cuda
@pytest.mark.filterwarnings("ignore:User provided device|CUDA is not available|torch.cuda.amp")
@pytest.mark.parametrize(
    ("given", "processes", "recorded"),
    [
        ({"compile": "auto"}, 1, True),
        ({"compile": "no"}, 1, False),
        ({"compile": "auto"}, 2, False),
        ({"compile": "auto", "recompute": True}, 1, False),
    ],
)
def test_when_steps_are_recorded(monkeypatch, given, processes, recorded):
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None: zeros(*size))
    monkeypatch.setattr(devices, "why_not_compiled", lambda *_: "no Triton")
    monkeypatch.setattr(parallel, "SIZE", processes)
    model = passing_for_a_gpu(positions=40)
    placement = devices.place(model, device="cuda", **given)
    assert isinstance(model.forward, graphs.Recorded) == recorded == placement.always_mask


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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # perhaps of its own, as by Slurm
    with pytest.raises(InputError, match=r"^--device cuda cannot be used here: "):
        devices.place(model, device="cuda")


# torch.compile.


@pytest.fixture
def compilations(monkeypatch) -> Iterator[list[list]]:
    """The inputs of each graph that torch.compile makes; the graphs run as they are."""
    import torch._dynamo
    import torch.fx.experimental._config as fx

    compiled = []

    def backend(graph, inputs):
        compiled.append(inputs)
        return graph

    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    usual = {"specialize_float": False, "recompile_limit": 8}
    with torch._dynamo.config.patch(usual), fx.patch(use_duck_shape=True):
        yield compiled
    torch._dynamo.reset()


def run_shapes(model: BertForSequenceClassification, shapes: list[tuple[int, int]]) -> None:
    """Trains on batches of these (B, S), and answers them."""
    for train in True, False:
        model.train(train)
        for B, S in shapes:
            input_ids = torch.arange(B * S).view(B, S) % TINY["vocab_size"]
            with torch.inference_mode(not train):
                logits = model(input_ids, input_ids > 3)
            if train:
                logits.sum().backward()


@pytest.mark.slow
def test_few_compilations_serve_all_lengths_and_another_adapter(compilations):
    """Of SST-2 a text has 3 to 66 tokens. The first batch has as many texts as tokens, one has a
    single text."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(**TINY | {"num_hidden_layers": 3, "max_position_embeddings": 72})
    )
    apply_lora_to_model(model, rank=4, alpha=8)
    mark_only_lora_as_trainable(model)
    devices.place(model, device="cpu", compile="yes")
    run_shapes(model, [(8, 8), *((32, S) for S in range(3, 67)), (21, 72)])
    assert len(compilations) == 3  # in training x has no gradient in the first layer; and to answer
    run_shapes(model, [(1, 9), (32, 32)])
    assert len(compilations) == 6
    for layer in model.modules():
        if isinstance(layer, LinearWithLoRA):
            layer.lora = LoRALayer(32, 32, rank=4, alpha=8, dropout=0.05)
    run_shapes(model, [(8, 8), (32, 9)])
    assert len(compilations) == 6
    assert not torch._dynamo.utils.counters["graph_break"]
    for inputs in compilations:  # no number, as LoRA's scaling, is handed over in each step
        assert all(tensor.ndim for tensor in inputs if isinstance(tensor, torch.Tensor))


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


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_compiled_layers_are_computed_again_with_the_same_dropout():
    """Else the gradient would not be the slope of the loss."""
    import torch._dynamo
    import torch.fx.experimental._config as fx

    torch.manual_seed(0)
    config = BertConfig(**TINY | {"num_hidden_layers": 3}, hidden_dropout_prob=0.3)
    model = BertForSequenceClassification(config).double()
    draw(model)
    with (
        torch._dynamo.config.patch({"specialize_float": False, "recompile_limit": 8}),
        fx.patch(use_duck_shape=True),
    ):
        devices.place(model, device="cpu", compile="yes", recompute=True)
        model.train()
        loss = dropped_out(model)
        loss.backward()
        for layer in model.bert.encoder.layer[:2]:
            W = layer.intermediate.dense.weight
            direction = W.grad / W.grad.norm()
            losses = []
            for step in 1e-5, -1e-5:
                with torch.no_grad():
                    W += step * direction
                    losses.append(dropped_out(model).item())
                    W -= step * direction
            slope = (losses[0] - losses[1]) / 2e-5
            assert slope == pytest.approx(W.grad.norm().item(), rel=1e-5)
    torch._dynamo.reset()


def dropped_out(model: BertForSequenceClassification) -> torch.Tensor:
    torch.manual_seed(7)
    input_ids = torch.arange(15).view(3, 5)
    return model(input_ids, torch.ones_like(input_ids)).square().sum()
