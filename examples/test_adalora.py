"""adalora.py against peft's AdaLoRA: the same gradients make the same ranks; files; the loss.

PYTHONPATH=tests python -m examples.test_adalora --epochs 1    # peft's own on the reviews
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
import torch.nn.functional as F
from helpers import difference, draw, gradients, inputs, open_theirs, saved_base
from safetensors.torch import load_file

from bert import BertForSequenceClassification
from data import make_batch
from examples.adalora import (
    SETTINGS,
    RankAllocator,
    apply_adalora_to_model,
    save_adalora,
    svd_layers,
)
from examples.beside_lora import train_beside_lora
from lora import merge_lora_weights
from support.errors import run_main
from support.offline import offline_pair
from train import learning_rate

STEPS = 60
SCHEDULE = {"tinit": STEPS // 8, "tfinal": STEPS * 2 // 5, "deltaT": 3, "total_step": STEPS}
PEFT = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return saved_base(tmp_path_factory.mktemp("base") / "base", num_labels=3)


def trained(model) -> dict[str, torch.nn.Parameter]:
    names = re.compile(r"base_model\.model\.|\.modules_to_save|\.default|\.lora(?=\.)")
    return {names.sub("", name): p for name, p in model.named_parameters() if p.requires_grad}


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(difference(a[name], b[name]) for name in a)


@pytest.fixture
def both(base) -> tuple[torch.nn.Module, peft.PeftModel]:
    """The same random P, Λ, Q here and in peft; in float64, so that no two scores tie."""
    plain = BertForSequenceClassification.from_pretrained(base)
    ours = apply_adalora_to_model(plain, settings=SETTINGS | SCHEDULE)
    for seed, layer in enumerate(svd_layers(ours).values()):
        draw(layer, seed)
    config = peft.AdaLoraConfig(**PEFT | SETTINGS | SCHEDULE)
    theirs = peft.get_peft_model(open_theirs(base), config)
    copy(ours, theirs)
    return ours.double().eval(), theirs.double().eval()


@torch.no_grad()
def copy(ours, theirs) -> None:
    mine = trained(ours)
    for name, parameter in trained(theirs).items():
        parameter.copy_(mine.pop(name))
    assert not mine


def test_same_gradients_same_ranks(base, both, tmp_path):
    """In 60 steps of both the parameters stay the same, and so do the triplets that are kept."""
    ours, theirs = both
    optimizers = [torch.optim.AdamW(trained(model).values(), lr=0.02) for model in both]
    allocator = RankAllocator(SimpleNamespace(model=ours, optimizer=optimizers[0], steps=STEPS))
    budgets = set()
    noted = {}
    for step in range(STEPS):
        allocator.step = step
        input_ids, mask = inputs(60, [9, 9, 7, 4], seed=step)
        labels = input_ids[:, 1] % 3
        logits = ours(input_ids, mask)
        expected = theirs(input_ids, mask).logits
        assert difference(logits, expected) < 1e-5
        (F.cross_entropy(logits, labels) + F.cross_entropy(expected, labels)).backward()
        assert largest_difference(gradients(ours), gradients(theirs)) < 1e-5
        for optimizer in optimizers:
            optimizer.step()  # and here ours allocates
        theirs.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        assert largest_difference(trained(ours), trained(theirs)) < 1e-5
        # Emptied once the choice is final.
        noted = dict(theirs.base_model.rankallocator.exp_avg_ipt) or noted
        pattern = theirs.peft_config["default"].rank_pattern or {}
        assert [kept.tolist() for kept in allocator.kept] == [*pattern.values()]
        budgets.add(sum(sum(kept) for kept in pattern.values()))
    ranks = [sum(kept) for kept in pattern.values()]
    assert sum(ranks) == 4 * SETTINGS["target_r"] and len(set(ranks)) > 1  # they moved
    assert len(budgets) > 4  # the budget fell
    means = {
        f"{name}.default": allocator.importance[p]
        for name, p in trained(ours).items()
        if p in allocator.importance
    }
    assert largest_difference(means, noted) < 1e-7

    ours.float()
    theirs.float()
    theirs.save_pretrained(tmp_path / "theirs")
    logits = ours(input_ids, mask)
    save_adalora(ours, tmp_path / "ours", str(base))
    tensors, configs = [], []
    for who in "ours", "theirs":
        tensors.append(load_file(tmp_path / who / "adapter_model.safetensors"))
        configs.append(json.loads((tmp_path / who / "adapter_config.json").read_text()))
        opened = peft.PeftModel.from_pretrained(open_theirs(base), tmp_path / who).eval()
        assert difference(opened(input_ids, mask).logits, logits) < 1e-5
    assert largest_difference(*tensors) < 1e-5
    for name in [*SETTINGS, *SCHEDULE, "rank_pattern"]:
        assert configs[0][name] == configs[1][name]
    assert difference(merge_lora_weights(ours)(input_ids, mask), logits) < 1e-5


def test_the_term_of_the_loss(both):
    """The paper adds up squares, and peft averages lengths: where one matrix of eight is not
    orthogonal, one follows from the other."""
    ours, theirs = both
    layers = [*svd_layers(ours).values()]
    matrices = [matrix for layer in layers for matrix in (layer.lora_A, layer.lora_B)]
    input_ids, mask = inputs(60, [9, 4])
    labels = torch.tensor([0, 2])
    for odd in layers[1].lora_A, layers[2].lora_B:
        for matrix in matrices:
            torch.nn.init.orthogonal_(matrix)
        torch.nn.init.normal_(odd)
        copy(ours, theirs)
        output = theirs(input_ids, mask, labels=labels)
        term = output.loss - F.cross_entropy(output.logits, labels)
        length = 8 * term / SETTINGS["orth_reg_weight"]
        assert length > 1
        assert difference(sum(layer.orthogonality() for layer in layers), length.square()) < 1e-5


def test_the_term_is_in_the_gradients(both, monkeypatch):
    """Of γ‖QQᵀ − I‖² that is 4γ(QQᵀ − I)Q, scaled as the loss is in float16; the rest of the step
    is train.py's, and left out."""
    monkeypatch.setattr("train.train_step", lambda setup, rows, step: None)
    model, _ = both
    optimizer = torch.optim.AdamW(model.parameters())
    placement = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    setup = SimpleNamespace(model=model, steps=STEPS, optimizer=optimizer, placement=placement)
    RankAllocator(setup)(setup, rows=[], step=0)
    eye = torch.eye(SETTINGS["init_r"])
    for layer in svd_layers(model).values():
        P, Q = layer.lora_B, layer.lora_A
        for matrix, gradient in (Q, Q.grad), (P.T, P.grad.T):
            expected = 4 * 4 * SETTINGS["orth_reg_weight"] * (matrix @ matrix.T - eye) @ matrix
            assert difference(gradient, expected) < 1e-5


class Theirs(torch.nn.Module):
    """peft's AdaLoRA in the place of train.py's model, its orthogonality at peft's own 0.5."""

    def __init__(self, ours):
        super().__init__()
        settings = PEFT | SETTINGS | SCHEDULE | {"orth_reg_weight": 0.5}
        plain = open_theirs(offline_pair()[0], num_labels=ours.config.num_labels)
        theirs = peft.get_peft_model(plain, peft.AdaLoraConfig(**settings))
        self.config = ours.config
        self.theirs = theirs
        self.bert = theirs.base_model.model.bert
        self.classifier = theirs.base_model.model.classifier.modules_to_save["default"]

    def forward(self, input_ids, mask, token_type_ids):
        return self.theirs(input_ids, mask, token_type_ids=token_type_ids).logits


def their_train_step(setup):
    T = setup.steps
    config = setup.model.theirs.peft_config["default"]
    config.total_step = T
    config.tinit = T // 8
    config.tfinal = T * 2 // 5
    config.deltaT = SETTINGS["deltaT"]
    parameters = [p for p in setup.model.parameters() if p.requires_grad]

    def train_step(setup, rows, step) -> None:
        input_ids, mask, _, labels = make_batch(setup.train_set, rows)
        setup.model.theirs(input_ids, mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in setup.optimizer.param_groups:
            group["lr"] = learning_rate(setup.config, step, T)
        setup.optimizer.step()
        setup.model.theirs.base_model.update_and_allocate(step)
        setup.optimizer.zero_grad()

    return train_step


def save_theirs(model, folder, base) -> None:
    for name, kept in model.theirs.peft_config["default"].rank_pattern.items():
        print(f"rank {sum(kept):2} of {name}")
    model.theirs.save_pretrained(folder)


def main() -> None:
    methods = {"rewrite": Theirs, "save": save_theirs, "prepare": their_train_step}
    train_beside_lora("peft", **methods, lr=5e-3, rank=0)


if __name__ == "__main__":
    run_main(main)
