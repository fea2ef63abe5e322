"""adalora.py against peft's AdaLoRA: the same gradients make the same ranks; and its files and its
term of the loss.

PYTHONPATH=tests python -m examples.test_adalora --epochs 1    # peft's own on the reviews, after LoRA
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
from examples.adalora import SETTINGS, RankAllocator, SVDLayer, apply_adalora_to_model, save_adalora
from examples.beside_lora import train_beside_lora
from lora import merge_lora_weights
from support.console import run_main
from support.offline import offline_pair
from train import learning_rate

STEPS = 60
SCHEDULE = {"tinit": STEPS // 8, "tfinal": STEPS * 2 // 5, "deltaT": 3, "total_step": STEPS}


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
    """The same random P, Λ, Q here and in peft; in float64, so that no order of two scores is an
    accident."""
    ours = apply_adalora_to_model(
        BertForSequenceClassification.from_pretrained(base), settings=SETTINGS | SCHEDULE
    )
    for seed, layer in enumerate(m for m in ours.modules() if isinstance(m, SVDLayer)):
        draw(layer, seed)
    settings = peft.AdaLoraConfig(
        task_type="SEQ_CLS", target_modules=["query", "value"], **SETTINGS | SCHEDULE
    )
    theirs = peft.get_peft_model(open_theirs(base), settings)
    copy(ours, theirs)
    return ours.double().eval(), theirs.double().eval()


@torch.no_grad()
def copy(ours, theirs) -> None:
    mine = trained(ours)
    for name, parameter in trained(theirs).items():
        parameter.copy_(mine.pop(name))
    assert not mine


def test_same_gradients_same_ranks(base, both, tmp_path):
    """60 steps of both beside each other: the parameters stay the same, and so does which triplets
    are kept."""
    ours, theirs = both
    optimizers = [torch.optim.AdamW(trained(model).values(), lr=0.02) for model in both]
    run = SimpleNamespace(
        model=ours, optimizer=optimizers[0], steps=STEPS, progress=SimpleNamespace(step=0)
    )
    allocator, seen, noted = RankAllocator(run), set(), {}
    for run.progress.step in range(STEPS):
        input_ids, mask = inputs(60, [9, 9, 7, 4], seed=run.progress.step)
        labels = input_ids[:, 1] % 3
        logits, expected = ours(input_ids, mask), theirs(input_ids, mask).logits
        assert difference(logits, expected) < 1e-5
        (F.cross_entropy(logits, labels) + F.cross_entropy(expected, labels)).backward()
        assert largest_difference(gradients(ours), gradients(theirs)) < 1e-5
        for optimizer in optimizers:
            optimizer.step()  # and here ours allocates
        theirs.base_model.update_and_allocate(run.progress.step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        assert largest_difference(trained(ours), trained(theirs)) < 1e-5
        noted = (
            dict(theirs.base_model.rankallocator.exp_avg_ipt) or noted
        )  # emptied once the choice is final
        pattern = theirs.peft_config["default"].rank_pattern or {}
        assert [kept.tolist() for kept in allocator.kept] == list(pattern.values())
        seen.add(tuple(sum(kept) for kept in pattern.values()))
    ranks = [sum(kept) for kept in pattern.values()]
    assert sum(ranks) == 4 * SETTINGS["target_r"] and len(set(ranks)) > 1  # they moved
    assert len({sum(ranks) for ranks in seen}) > 4  # the budget fell
    mine = {
        f"{name}.default": allocator.I[p] for name, p in trained(ours).items() if p in allocator.I
    }
    assert largest_difference(mine, noted) < 1e-7

    ours.float(), theirs.float()
    theirs.save_pretrained(tmp_path / "theirs")
    save_adalora(ours, tmp_path / "ours", str(base))
    files, configs, logits = [], [], [ours(input_ids, mask)]
    for who in "ours", "theirs":
        files.append(load_file(tmp_path / who / "adapter_model.safetensors"))
        configs.append(json.loads((tmp_path / who / "adapter_config.json").read_text()))
        opened = peft.PeftModel.from_pretrained(open_theirs(base), tmp_path / who).eval()
        logits.append(opened(input_ids, mask).logits)
    assert largest_difference(*files) < 1e-5
    assert all(
        configs[0][name] == configs[1][name] for name in [*SETTINGS, *SCHEDULE, "rank_pattern"]
    )
    logits.append(merge_lora_weights(ours)(input_ids, mask))
    assert all(difference(other, logits[0]) < 1e-5 for other in logits[1:])


def test_the_term_of_the_loss(both):
    """The paper adds up squares, and peft averages lengths: where one matrix of eight is not
    orthogonal, one is told by the other."""
    ours, theirs = both
    layers = [m for m in ours.modules() if isinstance(m, SVDLayer)]
    input_ids, mask = inputs(60, [9, 4])
    for odd in layers[1].lora_A, layers[2].lora_B:
        for matrix in (matrix for layer in layers for matrix in (layer.lora_A, layer.lora_B)):
            torch.nn.init.orthogonal_(matrix)
        torch.nn.init.normal_(odd)
        copy(ours, theirs)
        output = theirs(input_ids, mask, labels=torch.tensor([0, 2]))
        term = output.loss - F.cross_entropy(output.logits, torch.tensor([0, 2]))
        lengths = 8 * term / SETTINGS["orth_reg_weight"]
        assert lengths > 1
        assert difference(sum(layer.orthogonality() for layer in layers), lengths.square()) < 1e-5


def test_the_term_is_in_the_gradients(both, monkeypatch):
    """Of γ‖QQᵀ − I‖² that is 4γ(QQᵀ − I)Q; the rest of the step, which is train.py's, is left out
    here."""
    monkeypatch.setattr("train.train_step", lambda run, rows: None)
    run = SimpleNamespace(
        model=both[0], steps=STEPS, optimizer=torch.optim.AdamW(both[0].parameters())
    )
    RankAllocator(run)(run, rows=[])
    for layer in (module for module in both[0].modules() if isinstance(module, SVDLayer)):
        for Q, gradient in (layer.lora_A, layer.lora_A.grad), (layer.lora_B.T, layer.lora_B.grad.T):
            expected = (
                4 * SETTINGS["orth_reg_weight"] * (Q @ Q.T - torch.eye(SETTINGS["init_r"])) @ Q
            )
            assert difference(gradient, expected) < 1e-5


class Theirs(torch.nn.Module):
    """peft's AdaLoRA in the place of train.py's model, with what its orthogonality weighs by
    default."""

    def __init__(self, ours):
        super().__init__()
        config = peft.AdaLoraConfig(
            task_type="SEQ_CLS",
            target_modules=["query", "value"],
            **SETTINGS | SCHEDULE | {"orth_reg_weight": 0.5},
        )
        theirs = peft.get_peft_model(
            open_theirs(offline_pair()[0], num_labels=ours.config.num_labels), config
        )
        self.config, self.classifier = (
            ours.config,
            theirs.base_model.model.classifier.modules_to_save["default"],
        )
        self.theirs = theirs

    def forward(self, input_ids, mask, token_type_ids):
        return self.theirs(input_ids, mask, token_type_ids=token_type_ids).logits


def their_train_step(run):
    config, T = run.model.theirs.peft_config["default"], run.steps
    config.total_step, config.tinit, config.tfinal, config.deltaT = (
        T,
        T // 8,
        T * 2 // 5,
        SETTINGS["deltaT"],
    )

    def train_step(run, rows) -> None:
        input_ids, mask, _, labels = make_batch(run.train, rows, pad_id=0)
        run.model.theirs(input_ids, mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in run.model.parameters() if p.requires_grad], 1.0)
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(run.config, run.progress.step, run.steps)
        run.optimizer.step()
        run.model.theirs.base_model.update_and_allocate(run.progress.step)
        run.optimizer.zero_grad()

    return train_step


def save_theirs(model, folder, base) -> None:
    for name, kept in model.theirs.peft_config["default"].rank_pattern.items():
        print(f"rank {sum(kept):2} of {name}")
    model.theirs.save_pretrained(folder)


if __name__ == "__main__":
    run_main(lambda: train_beside_lora("peft", Theirs, save_theirs, their_train_step, 5e-3, rank=0))
