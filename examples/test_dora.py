"""dora.py against peft's use_dora=True: the same numbers, gradients, files and merged weights."""

from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from helpers import adapted, difference, draw, gradients, inputs, open_theirs, saved_base, silence
from safetensors.torch import load_file

from examples.dora import LinearWithDoRA, apply_dora_to_model, open_dora
from lora import merge_lora_weights, open_adapter, save_adapter

TARGETS = [["query", "value"], "all-linear"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return saved_base(tmp_path_factory.mktemp("base") / "base", num_labels=3)


def dora_layers(model) -> list[LinearWithDoRA]:
    return [module for module in model.modules() if isinstance(module, LinearWithDoRA)]


@torch.no_grad()
def drawn(base, targets) -> torch.nn.Module:
    """A base with random A, B, magnitudes and classifier."""
    model = apply_dora_to_model(adapted(base, targets, rank=4, alpha=6))
    for seed, layer in enumerate(dora_layers(model)):
        m = layer.lora.lora_magnitude_vector
        generator = torch.Generator().manual_seed(seed)
        m *= torch.empty_like(m).normal_(1.0, 0.3, generator=generator)
    draw(model.classifier)
    return model.eval()


def test_starts_from_what_lora_computes(base):
    model = adapted(base, ["query"])
    input_ids, mask = inputs(60, [9, 4])
    expected = model(input_ids, mask)
    assert difference(apply_dora_to_model(model)(input_ids, mask), expected) < 1e-5


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_peft_opens_ours_with_the_same_logits_and_gradients(base, tmp_path, targets):
    ours = drawn(base, targets)
    save_adapter(ours, tmp_path, str(base))
    with silence():
        theirs = peft.PeftModel.from_pretrained(open_theirs(base), tmp_path, is_trainable=True)
    theirs.eval()
    input_ids, mask = inputs(60, [9, 9, 4])
    labels = torch.tensor([0, 1, 2])
    logits = ours(input_ids, mask)
    output = theirs(input_ids, mask, labels=labels)
    assert difference(logits, output.logits) < 1e-5
    F.cross_entropy(logits, labels).backward()
    output.loss.backward()
    mine = gradients(ours)
    expected = {}
    for name, gradient in gradients(theirs).items():
        expected[name.replace("_vector.weight", "_vector")] = gradient
    layers = 4 if targets == TARGETS[0] else 13
    assert mine.keys() == expected.keys() and len(mine) == 2 + 3 * layers
    assert all(gradient.abs().max() > 1e-5 for gradient in mine.values())
    assert max(difference(mine[name], expected[name]) for name in mine) < 1e-5


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_opens_an_adapter_of_peft(base, tmp_path, targets):
    settings = {"target_modules": targets, "r": 3, "init_lora_weights": False, "use_dora": True}
    config = peft.LoraConfig(task_type="SEQ_CLS", **settings)
    theirs = peft.get_peft_model(open_theirs(base), config)
    draw(theirs.base_model.model.classifier.modules_to_save)
    for name, parameter in theirs.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.rand(parameter.shape) + 0.5
    theirs.save_pretrained(tmp_path / "theirs")
    input_ids, mask = inputs(60, [9, 4])
    expected = theirs.eval()(input_ids, mask).logits
    ours = open_dora(tmp_path / "theirs", str(base))
    assert difference(ours(input_ids, mask), expected) < 1e-5
    save_adapter(ours, tmp_path / "ours", str(base))
    saved, mine = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")
    )
    assert saved.keys() == mine.keys()
    assert all(torch.equal(saved[name], mine[name]) for name in saved)


@torch.inference_mode()
def test_merging(base, tmp_path):
    ours = drawn(base, "all-linear")
    save_adapter(ours, tmp_path, str(base))
    theirs = peft.PeftModel.from_pretrained(open_theirs(base), tmp_path).merge_and_unload()
    input_ids, mask = inputs(60, [9, 4])
    before = ours(input_ids, mask)
    for layer in dora_layers(ours):  # a copy each: the model stays as it is
        layer.merged()
    assert torch.equal(ours(input_ids, mask), before)
    merged = merge_lora_weights(ours)
    assert difference(merged(input_ids, mask), before) < 1e-5
    expected = theirs.state_dict()
    for name, tensor in merged.state_dict().items():
        assert difference(tensor, expected[name]) < 1e-5


def test_is_not_taken_for_a_lora_nor_a_lora_for_it(base, tmp_path):
    save_adapter(adapted(base, ["query"]), tmp_path / "lora", str(base))
    save_adapter(drawn(base, ["query"]), tmp_path / "dora", str(base))
    with pytest.raises(ValueError, match="use_dora = True is not supported"):
        open_adapter(tmp_path / "dora")
    with pytest.raises(ValueError, match=r"lacks .*magnitude"):
        open_dora(tmp_path / "lora", str(base))
