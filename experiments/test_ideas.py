"""The ideas of experiments/ideas.py, against transformers, peft and PyTorch."""

import math
from types import SimpleNamespace

import ideas
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft.optimizers import create_loraplus_optimizer
from torch import nn

import train
from data import make_batch
from lora import LinearWithLoRA
from runtime.run import Run
from support.errors import InputError

REPLACED = ("set_up", "evaluate", "learning_rate", "plan_batches", "train_step")
PEFT = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}


@pytest.fixture(autouse=True)
def taken_back(monkeypatch):
    """What the ideas put into train.py is taken out again."""
    for name in REPLACED:
        monkeypatch.setattr(train, name, getattr(train, name))
    monkeypatch.setattr(Run, "save_model", Run.save_model)


@pytest.fixture
def options(tiny, some_reviews, tmp_path) -> dict:
    return {
        "model": str(tiny),
        "data": str(some_reviews),
        "max_length": 12,
        "batch_size": 16,
        "lr": 1e-2,
        "dropout": 0.0,
        "device": "cpu",
        "out": str(tmp_path),
    }


@pytest.fixture
def set_up(options):
    """A Setup with the ideas in it: set_up("cosine", epochs=1)."""

    def set_up(words: str = "", **others) -> train.Setup:
        return ideas.set_up(ideas.Config(**options | others, ideas=words))

    return set_up


def open_plain(tiny):
    opener = transformers.AutoModelForSequenceClassification
    return opener.from_pretrained(tiny, num_labels=2)


def open_in_peft(tiny, **settings) -> peft.PeftModel:
    return peft.get_peft_model(open_plain(tiny), peft.LoraConfig(**PEFT | settings))


def lora_layers(model) -> list[LinearWithLoRA]:
    return [module for module in model.modules() if isinstance(module, LinearWithLoRA)]


def layers_of_peft(model) -> list:
    return [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear)]


def take_steps(setup: train.Setup, count: int, after=None) -> None:
    setup.model.train()
    for step in range(count):
        train.train_step(setup, np.arange(16), step)
        if after:
            after(setup)


@pytest.mark.parametrize("decay", [None, 0.5, 0.2])
def test_the_schedules_are_those_of_transformers(decay):
    config = train.Config(lr=2e-3, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    if decay:
        ideas.stable(None, decay)
        settings = {"num_warmup_steps": 10, "num_decay_steps": round(90 * decay)}
        settings |= {"num_training_steps": 100, "decay_type": "1-sqrt"}
        schedule = transformers.get_wsd_schedule(optimizer, **settings)
    else:
        ideas.cosine(None)
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 10, 100)
    for step in range(100):
        rate = train.learning_rate(config, step, 100)
        assert math.isclose(rate, optimizer.param_groups[0]["lr"], abs_tol=1e-9)
        optimizer.step()
        schedule.step()


def rates_of_matrices(optimizer) -> dict:
    """By shape. peft counts the classifier's bias among the fast ones, which the paper does not
    speak of."""
    rates = {}
    for group in optimizer.param_groups:
        rates |= {p.shape: group["lr"] for p in group["params"] if p.ndim > 1}
    return rates


def test_loraplus_gives_the_rates_of_peft(set_up, tiny):
    setup = set_up("loraplus_lr_ratio=16")
    take_steps(setup, 4)
    lr = train.learning_rate(setup.config, 3, setup.steps)
    settings = {"lr": lr, "loraplus_lr_ratio": 16}
    theirs = create_loraplus_optimizer(open_in_peft(tiny), torch.optim.AdamW, **settings)
    ours = rates_of_matrices(setup.optimizer)
    expected = rates_of_matrices(theirs)
    assert ours.keys() == expected.keys() and len(ours) == 3  # A, B, the classifier
    assert all(math.isclose(ours[shape], expected[shape]) for shape in ours)


def test_beta2_is_adamws(set_up):
    for group in set_up("adam_beta2=0.98").optimizer.param_groups:
        assert group["betas"] == (0.9, 0.98)


def test_pissa_begins_where_peft_does(set_up, tiny):
    ours = lora_layers(set_up("pissa").model)
    theirs = layers_of_peft(open_in_peft(tiny, init_lora_weights="pissa"))
    assert len(ours) == len(theirs) > 1
    for our, layer in zip(ours, theirs, strict=True):
        assert torch.allclose(our.linear.weight, layer.base_layer.weight, atol=1e-5)
        assert torch.allclose(our.lora.delta(), layer.get_delta_weight("default"), atol=1e-5)


def test_lora_ga_begins_in_the_directions_of_peft(set_up, tiny):
    """peft's B is longer by the gradient's singular values, which are neither in the paper nor in
    its authors' code."""
    plain = set_up()
    setup = set_up("lora_ga=2")
    state = {}
    for name, tensor in plain.model.state_dict().items():
        if ".lora." not in name:
            state[name.replace(".linear.", ".")] = tensor
    model = open_plain(tiny)
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # LoRA-GA of peft looks at the gradients in training mode

    def train_step():
        lengths = setup.train_set.lengths
        for rows in train.plan_batches(lengths, 16, setup.config.seed, 0)[:2]:
            ids, mask, types, labels = make_batch(setup.train_set, rows)
            logits = model(ids, mask, types).logits
            F.cross_entropy(logits, labels, reduction="sum").backward()

    settings = {"init_lora_weights": "lora_ga", "lora_ga_config": peft.LoraGAConfig()}
    config = peft.LoraConfig(**PEFT | settings)
    peft.tuners.lora.preprocess_loraga(model, config, train_step)
    torch.manual_seed(0)  # peft's svd_lowrank draws
    theirs = layers_of_peft(peft.get_peft_model(model, config))
    ours = lora_layers(setup.model)
    befores = lora_layers(plain.model)
    assert len(ours) == len(theirs) > 1
    for our, layer, before in zip(ours, theirs, befores, strict=True):
        A, B = our.lora.lora_A.weight, our.lora.lora_B.weight
        pairs = [
            (A, layer.lora_A["default"].weight),
            (B.t(), layer.lora_B["default"].weight.t()),
        ]
        for mine, other in pairs:
            cosines = F.cosine_similarity(mine, other, dim=1).abs()
            # Those of the larger singular values: peft's are approximate.
            assert (cosines[:4] > 0.99).all()
            length = torch.tensor(len(B) ** 0.25 / 4)
            assert torch.allclose(mine.norm(dim=1), length, atol=1e-4)
        assert torch.allclose(our.linear.weight + our.lora.delta(), before.linear.weight, atol=1e-5)
        assert not our.linear.weight.requires_grad


def test_batches_grow_and_leave_no_row_out(set_up):
    setup = set_up("growing_batch=2", batch_size=4, epochs=1)
    N = len(setup.train_set.lengths)
    plan = train.plan_batches(setup.train_set.lengths, 4, setup.config.seed, 0)
    assert sorted(np.concatenate(plan)) == list(range(N))
    assert len(plan) == setup.steps_per_epoch == setup.steps
    sizes = [len(rows) for rows in plan]
    half = math.ceil(N / 4) // 2
    assert set(sizes[:half]) <= {4, N % 4}
    assert sizes[half:].count(8) >= len(sizes[half:]) - 2 > 0


def test_what_is_frozen_moves_no_more(set_up):
    setup = set_up("freezing=0.5", epochs=1)
    seen = []

    def note(setup):
        named = setup.model.named_parameters()
        seen.append({name: p.detach().clone() for name, p in named if ".lora." in name})

    take_steps(setup, setup.steps, after=note)
    middle = -(-setup.steps // 2)
    for name in seen[0]:
        is_still = torch.equal(seen[middle - 1][name], seen[-1][name])
        assert is_still == (".layer.0." in name), name
        assert not torch.equal(seen[0][name], seen[middle - 1][name])
    held = {id(p) for group in setup.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in setup.model.parameters() if p.requires_grad}


def test_label_smoothing_is_pytorchs_and_in_training_alone(set_up):
    plain = set_up()
    setup = set_up("label_smoothing=0.1")
    assert setup.task.names == plain.task.names and setup.task.metric == plain.task.metric
    logits = torch.randn(16, 2)
    labels = torch.arange(16) % 2
    smooth = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    assert setup.task.evaluation(logits, labels) == plain.task.evaluation(logits, labels)
    assert torch.equal(setup.task.training_loss(logits, labels), smooth)
    lossy = train.evaluate(setup, setup.validation_set)[0]["loss"]
    assert lossy == train.evaluate(plain, plain.validation_set)[0]["loss"]
    rows = np.arange(16)
    plain_loss = train.train_step(plain, rows, 0)
    smooth_loss = train.train_step(setup, rows, 0)
    assert abs(smooth_loss - plain_loss) > 1e-4


def test_base_dropout_leaves_the_adapters_own(set_up):
    setup = set_up("base_dropout=0.3", dropout=0.2)
    for name, module in setup.model.named_modules():
        if isinstance(module, nn.Dropout):
            assert module.p == (0.2 if ".lora." in name else 0.3)


def trained(setup: train.Setup) -> dict[str, torch.Tensor]:
    parameters = setup.model.named_parameters()
    return {name: p.detach().clone() for name, p in parameters if p.requires_grad}


def test_what_is_scored_and_kept_is_the_mean(set_up, monkeypatch):
    """Of the first steps plainly, later weighed; and the weights go on from where they were."""
    found = []
    monkeypatch.setattr(train, "evaluate", lambda setup, data: found.append(trained(setup)))
    monkeypatch.setattr(Run, "save_model", lambda run, *_: found.append(trained(run.setup)))
    setup = set_up("average=0.5")
    seen = []
    take_steps(setup, 3, after=lambda setup: seen.append(trained(setup)))
    train.evaluate(setup, setup.validation_set)
    Run.save_model(SimpleNamespace(setup=setup), "best")
    assert len(found) == 2
    for name, parameter in trained(setup).items():
        mean = seen[0][name]  # the first step counts 1, each later one half of what is to be
        for later in seen[1:]:
            mean = (mean + later[name]) / 2
        assert all(torch.allclose(weights[name], mean, atol=1e-6) for weights in found)
        assert torch.equal(parameter, seen[-1][name])


SAVED = [
    ("pissa", "float32", 1e-5),
    ("lora_ga=2 average=0.5", "float32", 1e-5),
    ("lora_ga=2", "bfloat16", 5e-3),
]


@pytest.mark.parametrize(("words", "dtype", "apart"), SAVED)
def test_what_is_saved_opens_in_peft_on_the_plain_base(
    set_up, monkeypatch, tiny, tmp_path, words, dtype, apart
):
    """Although W was another in training: BA - B₀A₀ is an adapter of rank 2R."""
    monkeypatch.setattr(Run, "save_model", ideas.save_model)
    setup = set_up(words, dtype=dtype)
    take_steps(setup, 3)
    before = [p.detach().clone() for p in setup.model.parameters()]
    loss = train.evaluate(setup, setup.validation_set)[0]["loss"]
    run = Run(setup, {}, {})
    run.history = [{"step": 3, "validation_loss": loss}]
    run.out = tmp_path
    run.save_model("best")
    folder = tmp_path / "best"
    assert all(torch.equal(p, q) for p, q in zip(setup.model.parameters(), before, strict=True))
    assert setup.model.lora_config["r"] == 8
    model = peft.PeftModel.from_pretrained(open_plain(tiny), folder).eval()
    assert model.peft_config["default"].r == 16
    rows = np.arange(len(setup.validation_set.lengths))
    ids, mask, types, labels = make_batch(setup.validation_set, rows)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert math.isclose(F.cross_entropy(logits, labels).item(), loss, abs_tol=apart)
    card = (folder / "README.md").read_text()
    assert "LoRA (saved as rank 16; rank 8" in card
    assert "    python experiments/ideas.py " in card and f"--ideas={words}" in card


def test_the_classifier_alone_is_that_of_the_frozen_base(set_up, tiny):
    setup = set_up("classifier_alone")
    take_steps(setup, 3)
    assert list(trained(setup)) == ["classifier.weight", "classifier.bias"]
    model = open_plain(tiny).eval()
    model.classifier.load_state_dict(setup.model.classifier.state_dict())
    ids, mask, types, _ = make_batch(setup.train_set, np.arange(8))
    with torch.no_grad():
        ours = setup.model.eval()(ids, mask, types)
        assert torch.allclose(ours, model(ids, mask, types).logits, atol=1e-5)


REFUSED = {
    "average": "average: average takes a number, average=NUMBER, at least 0 and below 1",
    "average=nan": "average=nan: average takes a number",
    "cosine=3": "cosine=3: cosine takes no number",
    "stable=0": "above 0 and at most 1",
    "growing_batch=1.5": "a whole number",
    "growing_batch=inf": "a whole number",
    "cosine cosine": "given twice",
    "cosine stable=0.2": "at odds",
    "classifier_alone freezing=0.5": "at odds",
}


@pytest.mark.parametrize(("words", "says"), REFUSED.items())
def test_words_that_cannot_be_meant_are_refused(words, says):
    with pytest.raises(InputError, match=says):
        ideas.Config(ideas=words, epochs=1)


UNFIT = [
    ("pissa", {"rank": 0}, "pissa: nothing to do without adapters"),
    ("growing_batch=2", {"epochs": 2}, "growing_batch is for one epoch"),
    ("classifier_alone", {"init_adapter": "out/best"}, "begins with fresh adapters"),
    ("lora_ga=1", {"rank": 20}, "--rank 20: lora_ga takes 2R directions, .* here has 32"),
]


@pytest.mark.parametrize(("words", "changed", "says"), UNFIT)
def test_an_idea_that_a_run_cannot_have_is_refused(set_up, words, changed, says):
    with pytest.raises(InputError, match=says):
        set_up(words, **changed)


def test_labels_that_are_numbers_are_not_smoothed(set_up, tmp_path):
    data = tmp_path / "numbers.csv"
    lines = [f"word {number},{number}.5\n" for number in range(20)]
    data.write_text("text,label\n" + "".join(lines))
    with pytest.raises(InputError, match="label_smoothing is for classes"):
        set_up("label_smoothing=0.1", data=str(data), metric="pearson")


def test_a_mistyped_idea_is_one_line(run):
    done = run("experiments/ideas.py", "cosin", "--epochs", "1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: cosin: none of the ideas, which are loraplus_lr_ratio")


STOPPED = """
import os, signal, sys
sys.path.insert(0, "experiments")
import ideas, train
step_of_train = train.train_step
def train_step(setup, rows, step):
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return step_of_train(setup, rows, step)
train.train_step = train_step
sys.argv[0] = "experiments/ideas.py"
ideas.run_main(ideas.main)
"""


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_its_ideas_alone(run, options, tmp_path):
    """To the same bytes; without them it is another run."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    given = options | {"epochs": 2}
    del given["out"]
    words = ["average=0.9", "loraplus_lr_ratio=4"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    done = run("experiments/ideas.py", *words, "--out", whole)
    assert done.returncode == 0, done.stderr
    done = run("-c", STOPPED, *words, "--out", out)
    assert done.returncode == 143, done.stderr
    assert "the same command with --resume goes on" in done.stdout
    refused = run("train.py", "--resume", "--out", out)
    assert refused.returncode == 2 and "--ideas=loraplus" in refused.stderr, refused.stderr
    other = run("experiments/ideas.py", "average=0.8", "--resume", "--out", out)
    assert other.returncode == 2 and "started with ideas 'loraplus_lr_ratio=4" in other.stderr
    done = run("experiments/ideas.py", "--resume", "--out", out)
    assert done.returncode == 0, done.stderr
    card = (out / "best" / "README.md").read_text()
    assert "python experiments/ideas.py --model" in card
    assert "'--ideas=loraplus_lr_ratio=4 average=0.9'" in card
    config = (out / "config.toml").read_text()
    assert 'ideas = "loraplus_lr_ratio=4 average=0.9"\n' in config
    for name in "metrics.jsonl", "final/adapter_model.safetensors":
        assert (out / name).read_bytes() == (whole / name).read_bytes()
