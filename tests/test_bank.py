"""Many adapters on one base: each alone, mixed in one batch, and as the real peft library computes them."""

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from lora import AdapterBank

ADAPTERS = {
    "two": {"r": 4, "target_modules": ["query", "value"], "labels": 2},
    "five": {"r": 8, "target_modules": "all-linear", "labels": 5},
    "keys": {"r": 16, "target_modules": ["key"], "labels": 2},
}


@pytest.fixture(scope="module")
def bank(minilm, tmp_path_factory):
    """A bank of three adapters made by peft, and for each the peft model itself."""
    bank, peft_models = AdapterBank(minilm), {}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=settings["labels"])
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=settings["r"], target_modules=settings["target_modules"], lora_alpha=16
        )
        model = get_peft_model(base, config).eval()
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.05)
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folder)
        bank.load(name, str(folder))
        peft_models[name] = model
    return bank, peft_models


@torch.no_grad()
def test_each_row_gets_its_adapter(bank):
    bank, peft_models = bank
    names = ["five", "two", "keys", "two", "five", "keys", "two"]
    input_ids = torch.randint(1000, 20000, (len(names), 12))
    mask = (torch.arange(12) < torch.tensor([12, 5, 9, 12, 3, 12, 7])[:, None]).long()
    mixed = bank.forward_rows(names, input_ids, mask)
    for i, name in enumerate(names):
        row = {"input_ids": input_ids[i : i + 1], "attention_mask": mask[i : i + 1]}
        torch.testing.assert_close(mixed[i], bank.models[name](**row)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed[i], peft_models[name](**row).logits[0], atol=1e-5, rtol=0)


def test_the_base_is_in_memory_once(bank):
    bank, _ = bank
    base = {p.data_ptr() for p in bank.base.bert.parameters()}
    for model in [*(model.bert for model in bank.models.values()), bank.mixed]:
        frozen = {p.data_ptr() for name, p in model.named_parameters() if ".lora." not in name}
        assert frozen == base


def test_removing_an_adapter_leaves_the_others(bank, minilm):
    bank, _ = bank
    input_ids = torch.randint(1000, 20000, (2, 9))
    before = bank.forward_rows(["two", "keys"], input_ids)
    five = bank.models["five"]
    bank.remove("five")
    after = bank.forward_rows(["two", "keys"], input_ids)
    bank.models["five"] = five
    del bank.mixed
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
