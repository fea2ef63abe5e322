"""ia3.py against peft's IA3: the same numbers, gradients and files."""

import shutil
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from helpers import difference, draw, gradients, inputs, open_theirs, saved_base, silence
from safetensors.torch import load_file, save_file

from bert import BertForSequenceClassification
from examples.ia3 import LinearWithIA3, apply_ia3_to_model, open_ia3, save_ia3

BERT_DEFAULTS = {
    "target_modules": ["key", "value", "output.dense"],
    "feedforward_modules": ["output.dense"],
}
FILES = ("adapter_model.safetensors", "adapter_config.json", "config.json")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return saved_base(tmp_path_factory.mktemp("base") / "base", num_labels=3)


@pytest.fixture
def ours(base) -> torch.nn.Module:
    """A base with random vectors and a random classifier."""
    model = apply_ia3_to_model(BertForSequenceClassification.from_pretrained(base))
    layers = [module for module in model.modules() if isinstance(module, LinearWithIA3)]
    for seed, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(seed)
        torch.nn.init.normal_(layer.ia3_l, 1.0, 0.3, generator=generator)
    draw(model.classifier)
    return model


def test_starts_from_the_base(base):
    plain = BertForSequenceClassification.from_pretrained(base)
    input_ids, mask = inputs(60, [9, 4])
    expected = plain(input_ids, mask)
    assert difference(apply_ia3_to_model(plain)(input_ids, mask), expected) < 1e-5


def test_peft_opens_ours_with_the_same_logits_and_gradients(base, ours, tmp_path):
    adapter = tmp_path / "adapter"
    save_ia3(ours, str(adapter), str(base))
    with silence():
        theirs = peft.PeftModel.from_pretrained(open_theirs(base), adapter, is_trainable=True)
    theirs.eval()
    assert sum(type(m).__module__ == "peft.tuners.ia3.layer" for m in theirs.modules()) == 2 * 3
    input_ids, mask = inputs(60, [9, 9, 4])
    labels = torch.tensor([0, 1, 2])
    logits = ours(input_ids, mask)
    output = theirs(input_ids, mask, labels=labels)
    assert difference(logits, output.logits) < 1e-5
    assert difference(logits, open_theirs(base)(input_ids, mask).logits) > 0.01
    F.cross_entropy(logits, labels).backward()
    output.loss.backward()
    mine = gradients(ours)
    expected = gradients(theirs)
    assert mine.keys() == expected.keys() and len(mine) == 2 * 3 + 2
    assert all(gradient.abs().max() > 1e-5 for gradient in mine.values())
    assert max(difference(mine[name], expected[name]) for name in mine) < 1e-5


def test_what_is_saved_opens_again(base, ours, tmp_path):
    save_ia3(ours, f"{tmp_path}/adapter", str(base))
    again = open_ia3(f"{tmp_path}/adapter", str(base))
    input_ids, mask = inputs(60, [9, 4])
    assert difference(again(input_ids, mask), ours(input_ids, mask)) < 1e-5
    save_ia3(again, f"{tmp_path}/again", str(base))
    for file in FILES:
        first, second = ((tmp_path / name / file).read_bytes() for name in ("adapter", "again"))
        assert first == second


def test_a_base_without_a_pooler(base, tmp_path):
    bare = shutil.copytree(base, tmp_path / "bare")
    tensors = load_file(bare / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(tensors, bare / "model.safetensors", {"format": "pt"})
    model = apply_ia3_to_model(BertForSequenceClassification.from_pretrained(bare))
    save_ia3(model, f"{tmp_path}/adapter", str(bare))
    theirs = peft.PeftModel.from_pretrained(open_theirs(bare), tmp_path / "adapter").eval()
    assert isinstance(theirs.base_model.model.bert.pooler, peft.utils.ModulesToSaveWrapper)
    input_ids, mask = inputs(60, [9, 4])
    logits = model(input_ids, mask)
    assert difference(theirs(input_ids, mask).logits, logits) < 1e-5
    again = open_ia3(f"{tmp_path}/adapter", str(bare))
    assert difference(again(input_ids, mask), logits) < 1e-5


@pytest.mark.parametrize(
    "settings", [BERT_DEFAULTS, {"target_modules": ["value"], "feedforward_modules": []}], ids=str
)
def test_opens_an_adapter_of_peft(base, tmp_path, settings):
    config = peft.IA3Config(task_type="SEQ_CLS", init_ia3_weights=False, **settings)
    theirs = peft.get_peft_model(open_theirs(base), config)
    draw(theirs.base_model.model.classifier.modules_to_save)
    theirs.save_pretrained(tmp_path)
    input_ids, mask = inputs(60, [9, 4])
    expected = theirs.eval()(input_ids, mask).logits
    assert difference(expected, open_theirs(base)(input_ids, mask).logits) > 0.01
    assert difference(open_ia3(str(tmp_path), str(base))(input_ids, mask), expected) < 1e-5


def test_refuses_what_is_no_ia3(base, tmp_path):
    theirs = peft.get_peft_model(open_theirs(base), peft.LoraConfig(task_type="SEQ_CLS"))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lora_A.weight is missing, or surplus"):
        open_ia3(str(tmp_path), str(base))
