"""The ideas of experiments/ideas.py, against transformers, peft and PyTorch."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import ROOT
from peft.optimizers import create_loraplus_optimizer

import train
from lora import LinearWithLoRA
from support.files import InputError

PATCHED = (
    "set_up",
    "evaluate",
    "save_model",
    "learning_rate",
    "F",
    "build_model",
    "mark_only_lora_as_trainable",
)
PATCHED += ("plan_batches", "train_step")


@pytest.fixture
def ideas(monkeypatch):
    """The module, whose changes of train are taken back afterwards."""
    for name in PATCHED:
        monkeypatch.setattr(train, name, getattr(train, name))
    monkeypatch.setattr(train.Run, "steps_per_epoch", train.Run.steps_per_epoch)
    monkeypatch.setattr(train.report, "model_card", train.report.model_card)
    spec = importlib.util.spec_from_file_location("ideas", ROOT / "experiments" / "ideas.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.fixture
def config(tiny, some_reviews, tmp_path) -> train.Config:
    words = {
        "max_length": 12,
        "batch_size": 16,
        "lr": 1e-2,
        "dropout": 0.0,
        "device": "cpu",
        "out": str(tmp_path),
    }
    return train.Config(str(tiny), str(some_reviews), **words)


def theirs(tiny, **settings) -> peft.PeftModel:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
    how = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    return peft.get_peft_model(model, peft.LoraConfig(**how | settings))


def step(run: train.Run) -> None:
    train.train_step(run, np.arange(16))
    run.progress.step += 1


@pytest.mark.parametrize("decay", [None, 0.5, 0.2])
def test_the_schedules_are_those_of_transformers(ideas, decay):
    config = train.Config(lr=2e-3, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    if decay:
        ideas.stable(decay)
        schedule = transformers.get_wsd_schedule(
            optimizer, 10, round(90 * decay), 100, decay_type="1-sqrt"
        )
    else:
        ideas.cosine()
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 10, 100)
    for number in range(100):
        assert math.isclose(
            train.learning_rate(config, number, 100), optimizer.param_groups[0]["lr"], abs_tol=1e-9
        )
        optimizer.step()
        schedule.step()


def test_loraplus_gives_the_rates_of_peft(ideas, config, tiny):
    ideas.loraplus_lr_ratio(16)
    run = train.set_up(config)
    for _ in range(4):
        step(run)
    lr, optimizer = train.learning_rate(config, 3, run.steps), None
    optimizer = create_loraplus_optimizer(
        theirs(tiny), torch.optim.AdamW, lr=lr, loraplus_lr_ratio=16
    )
    # Of matrices: peft counts the classifier's bias among the fast ones, which the paper does not
    # speak of.
    rates = lambda groups: {
        p.shape: group["lr"] for group in groups for p in group["params"] if p.ndim > 1
    }
    ours, expected = (rates(o.param_groups) for o in (run.optimizer, optimizer))
    assert ours.keys() == expected.keys() and len(ours) == 3  # A, B, the classifier
    assert all(math.isclose(ours[shape], expected[shape]) for shape in ours)


def test_pissa_begins_where_peft_does(ideas, config, tiny):
    ideas.pissa()
    ours = [m for m in train.set_up(config).model.modules() if isinstance(m, LinearWithLoRA)]
    layers = [
        m
        for m in theirs(tiny, init_lora_weights="pissa").modules()
        if isinstance(m, peft.tuners.lora.Linear)
    ]
    assert len(ours) == len(layers) > 1
    for our, layer in zip(ours, layers, strict=True):
        assert torch.allclose(our.linear.weight, layer.base_layer.weight, atol=1e-5)
        assert torch.allclose(our.lora.delta(), layer.get_delta_weight("default"), atol=1e-5)


def test_lora_ga_begins_in_the_directions_of_peft(ideas, config, tiny):
    """peft's B is longer by the gradient's singular values, which are neither in the paper nor in
    its authors' code."""
    plain = train.set_up(config)
    ideas.lora_ga(2)
    run = train.set_up(config)
    state = {
        name.replace(".linear.", "."): tensor for name, tensor in plain.model.state_dict().items()
    }
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
    model.load_state_dict(
        {name: tensor for name, tensor in state.items() if ".lora." not in name}, strict=False
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # LoRA-GA of peft looks at the gradients in training mode

    def train_step():
        for rows in train.plan_batches(run.train.lengths, 16, config.seed, 0)[:2]:
            ids, mask, types, labels = train.make_batch(run.train, rows, 0)
            F.cross_entropy(model(ids, mask, types).logits, labels, reduction="sum").backward()

    how = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    how = peft.LoraConfig(init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig(), **how)
    peft.tuners.lora.preprocess_loraga(model, how, train_step)
    torch.manual_seed(0)  # peft's svd_lowrank draws
    layers = [
        m
        for m in peft.get_peft_model(model, how).modules()
        if isinstance(m, peft.tuners.lora.Linear)
    ]
    ours = [m for m in run.model.modules() if isinstance(m, LinearWithLoRA)]
    assert len(ours) == len(layers) > 1
    befores = [m for m in plain.model.modules() if isinstance(m, LinearWithLoRA)]
    for our, layer, before in zip(ours, layers, befores, strict=True):
        A, B = our.lora.lora_A.weight, our.lora.lora_B.weight
        scale = len(B) ** 0.25 / 4
        for mine, other in (
            (A, layer.lora_A["default"].weight),
            (B.t(), layer.lora_B["default"].weight.t()),
        ):
            cosines = F.cosine_similarity(mine, other, dim=1).abs()
            assert (
                cosines[:4] > 0.99
            ).all()  # those of the larger singular values: peft's are approximate
            assert torch.allclose(mine.norm(dim=1), torch.tensor(scale), atol=1e-4)
        assert torch.allclose(our.linear.weight + our.lora.delta(), before.linear.weight, atol=1e-5)
        assert not our.linear.weight.requires_grad


def test_batches_grow_and_leave_no_row_out(ideas, config):
    ideas.growing_batch(2)
    config.batch_size, config.epochs = 4, 1
    run = train.set_up(config)
    N, plan = len(run.train.lengths), train.plan_batches(run.train.lengths, 4, config.seed, 0)
    assert sorted(np.concatenate(plan)) == list(range(N)) and len(plan) == run.steps_per_epoch
    sizes, half = [len(rows) for rows in plan], math.ceil(N / 4) // 2
    assert set(sizes[:half]) <= {4, N % 4} and sizes[half:].count(8) >= len(sizes[half:]) - 2 > 0
    assert {
        len(rows) for rows in train.plan_batches(run.train.lengths.copy(), 4, config.seed, 0)
    } <= {4, N % 4}


def test_what_is_frozen_moves_no_more(ideas, config):
    ideas.freezing(0.5)
    config.epochs = 1
    run = train.set_up(config)
    seen = []
    for _ in range(run.steps):
        step(run)
        seen.append(
            {
                name: p.detach().clone()
                for name, p in run.model.named_parameters()
                if ".lora." in name
            }
        )
    middle = -(-run.steps // 2)
    for name in seen[0]:
        still = torch.equal(seen[middle - 1][name], seen[-1][name])
        assert still == (".layer.0." in name), name
        assert not torch.equal(seen[0][name], seen[middle - 1][name])
    held = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert held == {
        id(parameter) for parameter in run.model.parameters() if parameter.requires_grad
    }


def test_label_smoothing_is_pytorchs_and_in_training_alone(ideas, config):
    ideas.label_smoothing(0.1)
    run, rows = train.set_up(config), np.arange(16)
    run.model.eval()
    ids, mask, types, labels = train.make_batch(run.train, rows, 0)
    with torch.no_grad():
        logits = run.model(ids, mask, types)
        plain = train.forward(run, run.train, rows)[0]
    assert torch.isclose(plain, F.cross_entropy(logits, labels, reduction="sum"))
    smooth = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    assert torch.isclose(train.forward(run, run.train, rows)[0], smooth) and not torch.isclose(
        plain, smooth
    )


def test_base_dropout_leaves_the_adapters_own(ideas, config):
    ideas.base_dropout(0.3)
    config.dropout = 0.2
    found = {
        name: m.p
        for name, m in train.set_up(config).model.named_modules()
        if isinstance(m, torch.nn.Dropout)
    }
    assert {p for name, p in found.items() if ".lora." in name} == {0.2}
    assert {p for name, p in found.items() if ".lora." not in name} == {0.3}


def test_what_is_scored_and_kept_is_the_mean(ideas, config, monkeypatch):
    """Of the first steps plainly, later weighed; and the weights go on from where they were."""
    names = lambda run: {
        n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad
    }
    found = []
    monkeypatch.setattr(train, "evaluate", lambda run: found.append(names(run)))
    monkeypatch.setattr(train, "save_model", lambda run, folder: found.append(names(run)))
    ideas.average(0.5)
    run = train.set_up(config)
    seen = [names(run)]
    for _ in range(3):
        step(run)
        seen.append(names(run))
    train.evaluate(run)
    train.save_model(run, config.out)
    for name, parameter in names(run).items():
        mean = seen[1][name]  # the first step counts 1, each later one half of what is to be
        for later in seen[2:]:
            mean = (mean + later[name]) / 2
        assert (
            all(torch.allclose(weights[name], mean, atol=1e-6) for weights in found)
            and len(found) == 2
        )
        assert torch.equal(parameter, seen[-1][name])


@pytest.mark.parametrize(
    ("words", "dtype", "apart"),
    [
        (["pissa"], "float32", 1e-5),
        (["lora_ga=2", "average=0.5"], "float32", 1e-5),
        (["lora_ga=2"], "bfloat16", 5e-3),
    ],
)
def test_what_is_saved_opens_in_peft_on_the_plain_base(ideas, config, tiny, words, dtype, apart):
    """Although W was another in training: BA - B₀A₀ is an adapter of rank 2R."""
    ideas.take(words)
    config.dtype = dtype
    run = train.set_up(config)
    for _ in range(3):
        step(run)
    before = [p.detach().clone() for p in run.model.parameters()]
    loss = train.evaluate(run)["loss"]
    run.progress.history.append({"step": 3, "validation_loss": loss})
    folder = Path(config.out) / "best"
    train.save_model(run, folder)
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))
    assert run.model.lora_config["r"] == 8
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    assert model.peft_config["default"].r == 16
    ids, mask, types, labels = train.make_batch(
        run.validation, np.arange(len(run.validation.lengths)), 0
    )
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert math.isclose(F.cross_entropy(logits, labels).item(), loss, abs_tol=apart)
    assert "LoRA (saved as rank 16; rank 8" in (folder / "README.md").read_text()


def test_the_classifier_alone_is_that_of_the_frozen_base(ideas, config, tiny):
    ideas.take(["classifier_alone"])
    run = train.set_up(config)
    for _ in range(3):
        step(run)
    trained = [name for name, p in run.model.named_parameters() if p.requires_grad]
    assert trained == ["classifier.weight", "classifier.bias"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny, num_labels=2
    ).eval()
    model.classifier.load_state_dict(run.model.classifier.state_dict())
    ids, mask, types, _ = train.make_batch(run.train, np.arange(8), 0)
    with torch.no_grad():
        assert torch.allclose(
            run.model.eval()(ids, mask, types), model(ids, mask, types).logits, atol=1e-5
        )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("average", "average: average takes a number, average=NUMBER, at least 0 and below 1"),
        ("average=nan", "average=nan: average takes a number"),
        ("cosine=3", "cosine=3: cosine takes no number"),
        ("stable=0", "above 0 and at most 1"),
        ("growing_batch=1.5", "a whole number"),
        ("growing_batch=inf", "a whole number"),
        ("cosine cosine", "given twice"),
        ("cosine stable=0.2", "at odds"),
        ("classifier_alone freezing=0.5", "at odds"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(ideas, words, says):
    with pytest.raises(InputError, match=says):
        ideas.take(words.split())


@pytest.mark.parametrize(
    ("word", "changed", "says"),
    [
        ("pissa", {"rank": 0}, "pissa: nothing to do without adapters"),
        ("growing_batch=2", {"epochs": 2}, "growing_batch is for one epoch"),
        (
            "classifier_alone",
            {"init_adapter": "out/best"},
            "classifier_alone begins with fresh adapters",
        ),
        (
            "lora_ga=1",
            {"rank": 20},
            "--rank 20: lora_ga takes 2R directions, and a layer here has 32",
        ),
    ],
)
def test_an_idea_that_a_run_cannot_have_is_refused(ideas, config, word, changed, says):
    ideas.take([word])
    with pytest.raises(InputError, match=says):
        train.set_up(replace(config, **changed))


def test_labels_that_are_numbers_are_not_smoothed(ideas, config, tmp_path):
    (data := tmp_path / "numbers.csv").write_text(
        "text,label\n" + "".join(f"word {i},{i}.5\n" for i in range(20))
    )
    ideas.take(["label_smoothing=0.1"])
    with pytest.raises(InputError, match="label_smoothing is for classes"):
        train.set_up(replace(config, data=str(data), metric="pearson"))


def test_a_mistyped_idea_is_one_line(run):
    done = run("experiments/ideas.py", "cosin", "--epochs", "1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: cosin: none of the ideas, which are loraplus_lr_ratio")


STOPPED = """
import os, signal, sys
sys.path.insert(0, "experiments")
import ideas, train
step = train.train_step
def train_step(run, rows):
    if run.progress.step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(run, rows)
train.train_step = train_step
train.console.run_main(ideas.main)
"""


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_ideas_alone(run, tiny, some_reviews, tmp_path):
    """To the same bytes; without them it is another run."""
    words = [
        "--model",
        tiny,
        "--data",
        some_reviews,
        "--epochs",
        2,
        "--max-length",
        12,
        "--batch-size",
        16,
    ]
    ideas = ["average=0.9", "loraplus_lr_ratio=4"]
    assert run("experiments/ideas.py", *ideas, *words, "--out", tmp_path / "whole").returncode == 0
    done = run("-c", STOPPED, *ideas, *words, "--out", tmp_path / "out")
    assert done.returncode == 143 and "loraplus_lr_ratio=4 average=0.9 --resume" in done.stdout, (
        done.stderr
    )
    refused = run("train.py", "--resume", "--out", tmp_path / "out")
    assert (
        refused.returncode == 2 and "started with ideas ['loraplus_lr_ratio=4'" in refused.stderr
    ), refused.stderr
    assert (
        run("experiments/ideas.py", *ideas, "--resume", "--out", tmp_path / "out").returncode == 0
    )
    assert (
        "python experiments/ideas.py loraplus_lr_ratio=4 average=0.9 --model"
        in (tmp_path / "out/best/README.md").read_text()
    )
    assert (
        "python experiments/ideas.py loraplus_lr_ratio=4 average=0.9\n"
        in (tmp_path / "out/config.toml").read_text()
    )
    for name in "metrics.jsonl", "final/adapter_model.safetensors":
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
