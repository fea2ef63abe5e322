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
from support.files import InputError

TARGETS = [["query", "value"], "all-linear"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return saved_base(tmp_path_factory.mktemp("base") / "base", num_labels=3)


def drawn(base, targets) -> torch.nn.Module:
    """A base with random A, B, magnitudes and classifier."""
    model = apply_dora_to_model(adapted(base, targets, rank=4, alpha=6))
    for seed, layer in enumerate(m.lora for m in model.modules() if isinstance(m, LinearWithDoRA)):
        m = layer.lora_magnitude_vector
        m.data *= torch.empty_like(m).normal_(
            1.0, 0.3, generator=torch.Generator().manual_seed(seed)
        )
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
        theirs = peft.PeftModel.from_pretrained(
            open_theirs(base), tmp_path, is_trainable=True
        ).eval()
    input_ids, mask = inputs(60, [9, 9, 4])
    labels = torch.tensor([0, 1, 2])
    logits, output = ours(input_ids, mask), theirs(input_ids, mask, labels=labels)
    assert difference(logits, output.logits) < 1e-5
    F.cross_entropy(logits, labels).backward()
    output.loss.backward()
    mine, expected = gradients(ours), gradients(theirs)
    expected = {
        name.replace("_vector.weight", "_vector"): gradient for name, gradient in expected.items()
    }
    assert mine.keys() == expected.keys() and len(mine) == 2 + 3 * (
        4 if targets == TARGETS[0] else 13
    )
    assert all(gradient.abs().max() > 1e-5 for gradient in mine.values())
    assert max(difference(mine[name], expected[name]) for name in mine) < 1e-5


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_opens_an_adapter_of_peft(base, tmp_path, targets):
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules=targets, r=3, init_lora_weights=False, use_dora=True
    )
    theirs = peft.get_peft_model(open_theirs(base), config)
    draw(theirs.base_model.model.classifier.modules_to_save)
    for parameter in (p for name, p in theirs.named_parameters() if "magnitude" in name):
        parameter.data *= torch.rand(parameter.shape) + 0.5
    theirs.save_pretrained(tmp_path / "theirs")
    input_ids, mask = inputs(60, [9, 4])
    expected = theirs.eval()(input_ids, mask).logits
    ours = open_dora(str(tmp_path / "theirs"), str(base))
    assert difference(ours(input_ids, mask), expected) < 1e-5
    save_adapter(ours, tmp_path / "ours", str(base))
    files = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")]
    assert files[0].keys() == files[1].keys() and all(
        torch.equal(files[0][name], files[1][name]) for name in files[0]
    )


@torch.inference_mode()
def test_merging(base, tmp_path):
    ours = drawn(base, "all-linear")
    save_adapter(ours, tmp_path, str(base))
    theirs = peft.PeftModel.from_pretrained(open_theirs(base), tmp_path).merge_and_unload()
    input_ids, mask = inputs(60, [9, 4])
    before = ours(input_ids, mask)
    layers = [module for module in ours.modules() if isinstance(module, LinearWithDoRA)]
    for layer in layers:
        layer.merge_weights()
        layer.merge_weights()  # twice is once
    assert difference(ours(input_ids, mask), before) < 1e-5
    for layer in layers:
        layer.unmerge_weights()
    assert torch.equal(ours(input_ids, mask), before)
    merged, expected = merge_lora_weights(ours).state_dict(), theirs.state_dict()
    assert all(difference(merged[name], expected[name]) < 1e-5 for name in merged)


def test_is_not_taken_for_a_lora_nor_a_lora_for_it(base, tmp_path):
    save_adapter(adapted(base, ["query"]), tmp_path / "lora", str(base))
    save_adapter(drawn(base, ["query"]), tmp_path / "dora", str(base))
    with pytest.raises(InputError, match="use_dora = True is not supported"):
        open_adapter(str(tmp_path / "dora"))
    with pytest.raises(InputError, match=r"lacks .*magnitude"):
        open_dora(str(tmp_path / "lora"), str(base))
