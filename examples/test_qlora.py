"""qlora.py against bitsandbytes' own layer, peft's QLoRA on it, and the paper's formulas."""

import gc
import subprocess
import sys

import bitsandbytes
import peft
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from helpers import ROOT, adapted, difference, gradients, inputs, open_theirs, saved_base
from peft.utils import set_peft_model_state_dict
from pyarrow import csv, parquet
from scipy.stats import norm
from torch import nn

from bert import BertForSequenceClassification
from examples import qlora
from lora import LinearWithLoRA, get_lora_state_dict, open_adapter, save_adapter
from support.errors import run_main
from support.offline import offline_pair

TARGETS = ["query", "value"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    return saved_base(folder, hidden_size=64, intermediate_size=128)


def in_bitsandbytes(linear: nn.Linear) -> bitsandbytes.nn.Linear4bit:
    """Their layer, in training mode: in eval mode newer processors would compute in bfloat16."""
    theirs = bitsandbytes.nn.Linear4bit(linear.in_features, linear.out_features, quant_type="nf4")
    weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    theirs.weight = weight
    theirs.bias = linear.bias
    return theirs.to("cpu").train()


def test_weights_are_those_of_bitsandbytes():
    minilm = BertForSequenceClassification.from_pretrained(offline_pair()[0])
    reference, before = {}, {}
    for name, module in minilm.named_modules():
        if isinstance(module, nn.Linear) and name != "classifier":
            reference[name] = in_bitsandbytes(module).weight
            before[name] = module.weight.clone()
    minilm.requires_grad_(False).classifier.requires_grad_(True)
    qlora.quantise(minilm)
    assert len(reference) == 37
    for name, theirs in reference.items():
        ours = minilm.get_submodule(name)
        unpacked = dequantize_4bit(ours.packed, ours.state)
        assert torch.equal(unpacked, dequantize_4bit(theirs.data, theirs.quant_state))
        error = (unpacked - before[name]).norm() / before[name].norm()
        assert 0.05 < error < 0.12
    assert type(minilm.classifier) is nn.Linear


def nf4_levels() -> torch.Tensor:
    """Appendix E's 16 levels: quantiles of the normal distribution, of which 1 is the largest."""
    edge = (1 - 1 / 32 + 1 - 1 / 30) / 2
    below, above = (norm.ppf(torch.linspace(edge, 0.5, n + 1)[:-1]) for n in (7, 8))
    levels = torch.tensor([*-below, 0.0, *above], dtype=torch.float32)
    return levels.sort().values / norm.ppf(edge)


def test_weights_are_those_of_the_paper():
    """The nearest level stands for w / s; s in blocks of 64, in 8 bits in blocks of 256."""
    linear = nn.Linear(512, 300)
    nn.init.normal_(linear.weight, std=0.05)
    blocks = linear.weight.detach().view(-1, 64)
    s = blocks.abs().amax(1)
    layer = qlora.FourBitLinear(linear)
    state = layer.state
    second = state.state2.absmax.repeat_interleave(256)[: len(s)]
    rounded = state.state2.code[state.absmax.long().flatten()] * second + state.offset
    assert state.absmax.dtype == torch.uint8
    assert difference(rounded, s) < 0.02 * s.max()
    levels = nf4_levels()
    nearest = (blocks / s[:, None])[..., None].sub(levels).abs().argmin(-1)
    expected = (levels[nearest] * rounded[:, None]).view(300, 512)
    unpacked = dequantize_4bit(layer.packed, state)
    same = (unpacked - expected).abs() < 1e-6
    assert same.float().mean() > 0.9999  # a weight half-way between two levels may go to either


def test_bytes():
    linear = nn.Linear(1024, 1024, bias=False).requires_grad_(False)
    tables = 4 * (16 + 256 + 1)
    assert qlora.base_bytes(nn.Sequential(linear)) == 4 * 2**20
    bits = 8 * (qlora.base_bytes(qlora.quantise(nn.Sequential(linear))) - tables) / 2**20
    assert 4.126 < bits < 4.129  # the paper's 4 + 8/64 + 32/(64 · 256), and a few bytes of names


def test_logits_and_gradients_are_those_of_peft_on_bitsandbytes(base):
    ours = adapted(base, TARGETS, rank=4)
    state = get_lora_state_dict(ours)
    qlora.quantise(ours)
    theirs = open_theirs(base)
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.Linear) and name != "classifier":
            theirs.set_submodule(name, in_bitsandbytes(module))
    theirs.is_loaded_in_4bit = True  # as from_pretrained leaves it, and peft asks for it
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="SEQ_CLS", **ours.lora_config))
    set_peft_model_state_dict(theirs, state)
    assert sum(isinstance(m, peft.tuners.lora.bnb.Linear4bit) for m in theirs.modules()) == 4
    assert sum(isinstance(m, qlora.FourBitLinear) for m in ours.modules()) == 13
    assert all(
        isinstance(m.linear, qlora.FourBitLinear)
        for m in ours.modules()
        if isinstance(m, LinearWithLoRA)
    )
    input_ids, mask = inputs(60, [9, 4, 17])
    labels = torch.tensor([0, 1, 1])
    logits = ours(input_ids, mask)
    expected = theirs(input_ids, mask).logits
    plain = open_theirs(base)(input_ids, mask).logits
    assert difference(logits, expected) < 1e-5
    assert difference(logits, plain) > 1e-3
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    ours = gradients(ours)
    theirs = gradients(theirs)
    assert ours.keys() == theirs.keys() and len(ours) == 10
    for name, gradient in theirs.items():
        assert difference(ours[name], gradient) < 1e-5 * gradient.abs().max()


def test_no_unpacked_weight_waits_for_the_backward_pass():
    layer = qlora.FourBitLinear(nn.Linear(1024, 1024).requires_grad_(False))
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(torch.ones(2, 1024, requires_grad=True))
    alive = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.shape == (1024, 1024)]
    assert y.requires_grad and not alive and sum(tensor.nbytes for tensor in kept) < 2**20


def test_it_leaves_an_ordinary_adapter(tmp_path, monkeypatch, capsys):
    """On MiniLM and a few reviews: sample.py and peft open it, and say the same."""
    minilm, reviews = offline_pair()
    table = parquet.read_table(f"{reviews}/train-00000-of-00001.parquet").slice(0, 200)
    csv.write_csv(table, tmp_path / "few.csv")
    monkeypatch.setattr(qlora, "offline_pair", lambda: (minilm, str(tmp_path / "few.csv")))
    out = tmp_path / "adapter"
    monkeypatch.setattr(sys, "argv", ["qlora.py", "--epochs", "1", "--out", str(out)])
    run_main(qlora.main)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("4 bits   accuracy ")
    assert said[1] == "53,395,191 bytes are frozen"
    text = "a gripping, beautifully acted film"
    command = [sys.executable, "sample.py", "--adapter", out, "--json", text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and '"scores"' in done.stdout, done.stderr
    theirs = peft.PeftModel.from_pretrained(open_theirs(minilm), out).eval()
    input_ids, mask = inputs(30000, [12, 30])
    with torch.inference_mode():
        ours = open_adapter(out)(input_ids, mask)
        assert difference(ours, theirs(input_ids, mask).logits) < 1e-5
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_main(qlora.main)
    assert capsys.readouterr().err.startswith(f"error: {out}: is there already")


def test_an_adapter_trained_in_four_bits_is_the_one_that_is_saved(base, tmp_path):
    model = qlora.quantise(adapted(base, "all-linear", rank=2))
    save_adapter(model, tmp_path / "adapter", str(base))
    saved = get_lora_state_dict(open_adapter(tmp_path / "adapter"))
    ours = get_lora_state_dict(model)
    assert saved.keys() == ours.keys()
    assert all(torch.equal(saved[name], ours[name]) for name in ours)
