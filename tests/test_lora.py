"""lora.py against peft: the same numbers, gradients, losses and files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import (
    adapted,
    difference,
    draw,
    edit_json,
    gradients,
    in_peft,
    inputs,
    losses_beside_peft,
    open_theirs,
    saved_base,
    silence,
)
from safetensors.torch import load_file, save_file
from torch import nn

import lora
import train
from bert import BertConfig, BertForSequenceClassification
from lora import AdapterBank, LinearWithLoRA, LoRALayer, apply_lora_to_model, open_adapter
from support import devices, faster
from support.files import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated"
)  # peft's own affair
QUERY_VALUE = ["query", "value"]
REGEX = r"bert\.encoder\.layer\.[01]\.(attention\.self\.(query|key)|intermediate\.dense)"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The directory of a tiny random classifier with three classes."""
    return saved_base(tmp_path_factory.mktemp("base") / "base", num_labels=3)


# The layer.


@pytest.mark.parametrize("lengths", [[14, 14, 14], [14, 9, 2]], ids=["no padding", "padding"])
@pytest.mark.parametrize("targets", [QUERY_VALUE, "all-linear"], ids=str)
def test_logits_and_gradients_equal_peft(minilm, targets, lengths):
    ours = adapted(minilm, targets)
    theirs = in_peft(ours, minilm)
    input_ids, mask = inputs(30522, lengths)
    labels = torch.tensor([0, 1, 1])
    logits = ours(input_ids, None if mask.all() else mask)
    output = theirs(input_ids, mask, labels=labels)
    assert difference(logits, output.logits) < 1e-5
    F.cross_entropy(logits, labels).backward()
    output.loss.backward()
    mine, expected = gradients(ours), gradients(theirs)
    assert mine.keys() == expected.keys()
    assert len(mine) == 2 + 2 * (12 if targets == QUERY_VALUE else 37)
    assert all(gradient.abs().max() > 1e-5 for gradient in mine.values())
    assert max(difference(mine[name], expected[name]) for name in mine) < 1e-5


def test_adapter_dropout_is_on_the_path_alone(monkeypatch):
    both = LinearWithLoRA(nn.Linear(6, 6), LoRALayer(6, 6, rank=2, alpha=2, dropout=0.5))
    draw(both)
    x = torch.randn(4, 6)
    kept = torch.randint(0, 2, (4, 6))
    monkeypatch.setattr(faster, "draw_kept", lambda x, p: kept)
    assert difference(both(x), both.linear(x) + both.lora.eval()(x * kept * 2)) < 1e-5
    assert difference(both.eval()(x), both.linear(x) + both.lora(x)) < 1e-5


# Merging.


def test_beside_a_layer_that_holds_no_plain_weight():
    """As one in four bits does not: the sum and its gradients are the same as beside the nn.Linear
    itself."""
    linear = nn.Linear(6, 5)
    draw(path := LoRALayer(6, 5, rank=2, alpha=4, dropout=0.0))
    x = torch.randn(3, 6, requires_grad=True)
    results = []
    for frozen in linear, nn.Sequential(linear):
        y = LinearWithLoRA(frozen, path)(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *path.parameters()])])
    assert all(difference(a, b) < 1e-5 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("targets", [QUERY_VALUE, "all-linear"], ids=str)
@torch.inference_mode()
def test_merging(minilm, targets):
    model = adapted(minilm, targets)
    theirs = in_peft(model, minilm)
    plain = BertForSequenceClassification.from_pretrained(minilm)
    input_ids, mask = inputs(30522, [14, 9, 2])
    before = model(input_ids, mask)
    layers = [module for module in model.modules() if isinstance(module, LinearWithLoRA)]
    originals = [layer.linear.weight.clone() for layer in layers]
    for layer in layers:
        layer.merge_weights()
        layer.merge_weights()  # twice is once
    assert not any(
        torch.equal(layer.linear.weight, W) for layer, W in zip(layers, originals, strict=True)
    )
    assert difference(model(input_ids, mask), before) < 1e-5
    for layer in layers:
        layer.unmerge_weights()
    assert all(
        torch.equal(layer.linear.weight, W) for layer, W in zip(layers, originals, strict=True)
    )
    assert torch.equal(model(input_ids, mask), before)
    lora.merge_lora_weights(model)
    assert difference(model(input_ids, mask), before) < 1e-5
    assert (
        difference(model(input_ids, mask), theirs.merge_and_unload()(input_ids, mask).logits) < 1e-5
    )
    assert [type(module) for module in model.modules()] == [
        type(module) for module in plain.modules()
    ]
    assert list(model.state_dict()) == list(plain.state_dict())


def test_rewriting_keeps_the_mode(base):
    model = BertForSequenceClassification.from_pretrained(base)
    for mode in (True, False):
        apply_lora_to_model(model.train(mode), ["key"] if mode else ["query"])
        assert {module.training for module in model.modules()} == {mode}


def test_eval_and_train_never_merge(base):
    model = adapted(base, QUERY_VALUE)
    layer = model.bert.encoder.layer[0].attention.self.query
    W = layer.linear.weight.clone()
    for mode in (True, False, True):
        model.train(mode)
        assert layer.unmerged_weight is None
        assert torch.equal(layer.linear.weight, W)


# Training.


def test_fifty_steps_equal_peft(minilm, reviews, tmp_path):
    base = shutil.copytree(minilm, tmp_path / "base")
    edit_json(base / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = train.Config(
        str(base), reviews, epochs=1, batch_size=16, lr=2e-3, dropout=0.0, device="cpu"
    )
    run = train.set_up(config)
    short = np.flatnonzero(run.train.lengths <= 16)[: 50 * 16]
    some = {field: getattr(run.train, field)[short] for field in ("starts", "lengths", "labels")}
    run.train = replace(run.train, **some)
    assert run.steps == 50
    ours, expected, _ = losses_beside_peft(run, base)
    assert np.abs(ours - expected).max() < 1e-4
    assert ours[-10:].mean() < ours[:10].mean() - 0.1  # something was learnt


# Which layers.


COUNTS = [(QUERY_VALUE, 294_912), (["query", "key", "value", "dense"], 1_339_392)]


@pytest.mark.parametrize(("targets", "count"), COUNTS)
def test_parameter_counts(targets, count):
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
        total = sum(p.numel() for p in model.parameters())
        apply_lora_to_model(model, targets, rank=8)
    assert lora.count_lora_parameters(model) == count
    assert total == 109_483_778
    if targets == QUERY_VALUE:
        assert round(100 * count / total, 4) == 0.2694
    lora.mark_only_lora_as_trainable(model)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == count + 1538
    assert {name for name in trained if ".lora." not in name} == {
        "classifier.weight",
        "classifier.bias",
    }


TARGETS = [
    ["query"],
    ["output.dense", "query"],
    ["self.key", "pooler.dense"],
    ["bert.encoder.layer.1.output.dense"],
    REGEX,
    r".*\.1\..*dense",
    r"bert\.pooler\.dense",
    r".*(dense|classifier)",  # the classifier is trained in full, and so never adapted
    "all-linear",
]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_targets_match_as_in_peft(base, targets):
    ours = adapted(base, targets)
    theirs = in_peft(ours, base)
    names = [name for name, module in ours.named_modules() if isinstance(module, LinearWithLoRA)]
    assert sorted(names) == sorted(theirs.targeted_module_names)


NO_MATCH = {  # a target, and a name that the message proposes
    "valeu": "value",
    "uery": "query",
    "attention.self": "attention.self.key",
    "LayerNorm": "dense",
    "encoder.layer.2.output.dense": "encoder.layer.1.output.dense",
}


@pytest.mark.parametrize("target", NO_MATCH)
def test_targets_without_a_match_are_refused(base, target):
    model = BertForSequenceClassification.from_pretrained(base)
    for targets in ["query", target], target:  # as an entry of a list, and as a regular expression
        with pytest.raises(
            InputError, match=f"'{target}' matches no linear layer .*{NO_MATCH[target]}"
        ):
            apply_lora_to_model(model, targets)
    assert not any(isinstance(module, LinearWithLoRA) for module in model.modules())


# Files.

OF_PEFT = [
    {"target_modules": QUERY_VALUE, "r": 8, "lora_alpha": 16},
    {"target_modules": REGEX, "r": 3, "lora_alpha": 5, "lora_dropout": 0.1},
    {"target_modules": "all-linear", "r": 4, "lora_alpha": 2, "use_rslora": True},
    {"target_modules": ["dense"], "r": 1, "lora_alpha": 1, "modules_to_save": ["classifier"]},
]


@pytest.mark.parametrize("settings", OF_PEFT, ids=str)
def test_opens_an_adapter_of_peft(base, tmp_path, settings):
    config = peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **settings)
    model = peft.get_peft_model(open_theirs(base), config)
    draw(model.base_model.model.classifier.modules_to_save)
    model.save_pretrained(tmp_path)
    input_ids, mask = inputs(60, [9, 4])
    expected = model.eval()(input_ids, mask).logits
    assert difference(expected, open_theirs(base)(input_ids, mask).logits) > 0.01
    assert difference(open_adapter(str(tmp_path))(input_ids, mask), expected) < 1e-5
    path = tmp_path / "adapter_model.safetensors"  # the names of older files
    spell_out = lambda name: name.replace("classifier", "classifier.modules_to_save.default")
    save_file({spell_out(name): tensor for name, tensor in load_file(path).items()}, path)
    assert difference(open_adapter(str(tmp_path))(input_ids, mask), expected) < 1e-5


OURS = [(QUERY_VALUE, 8, 16, False), (REGEX, 3, 5, False), ("all-linear", 4, 2, True)]


@pytest.mark.parametrize(("targets", "rank", "alpha", "use_rslora"), OURS)
def test_peft_opens_our_adapter(base, tmp_path, targets, rank, alpha, use_rslora):
    ours = adapted(base, targets, rank=rank, alpha=alpha, use_rslora=use_rslora, dropout=0.1)
    draw(ours.classifier)
    lora.save_adapter(ours, tmp_path, str(base))
    assert json.loads((tmp_path / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base)
    plain = open_theirs(base)
    input_ids, mask = inputs(60, [9, 4])
    with silence():
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    assert difference(theirs(input_ids, mask).logits, ours(input_ids, mask)) < 1e-5
    again = open_adapter(str(tmp_path))
    assert torch.equal(again(input_ids, mask), ours(input_ids, mask))
    assert again.config.id2label == ours.config.id2label


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """The directory of an adapter that peft saved."""
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=QUERY_VALUE)
    peft.get_peft_model(open_theirs(base), settings).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


OTHER_BASES = {
    "wider": ({"hidden_size": 48}, r"has the shape \[.*\], but this base model takes \[.*\]"),
    "deeper": ({"num_hidden_layers": 3}, r"lacks .*layer\.2"),
    "flatter": ({"num_hidden_layers": 1}, r"surplus .*layer\.1"),
}


@pytest.mark.parametrize("other", OTHER_BASES)
def test_adapter_of_another_base_is_refused(adapter, tmp_path, other):
    shapes, message = OTHER_BASES[other]
    folder = saved_base(tmp_path / "other", num_labels=3, **shapes)
    with pytest.raises(InputError, match=message):
        open_adapter(str(adapter), str(folder))


@pytest.mark.parametrize("settings", OF_PEFT, ids=str)
def test_an_adapter_that_lacks_a_layer_is_refused(base, tmp_path, settings):
    """Each layer in turn, then all layers of a kind: without them the model would answer, but as
    another one."""
    config = peft.LoraConfig(task_type="SEQ_CLS", **settings)
    peft.get_peft_model(open_theirs(base), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    layers = sorted({name.partition(".lora_")[0] for name in whole if ".lora_" in name})
    for part in [*layers, r".1.output", *{layer.rpartition(".")[2] for layer in layers}]:
        left = {name: tensor for name, tensor in whole.items() if f"{part}.lora_" not in name}
        if left.keys() == whole.keys():
            continue
        save_file(left, path)
        with pytest.raises(
            InputError, match=f"lacks the tensors of .*{part.rpartition('model.')[2]}"
        ):
            open_adapter(str(tmp_path))


def test_an_adapter_with_more_than_its_config_means_is_refused(base, tmp_path):
    """PEFT would leave the surplus out, or read another model: so neither is taken."""
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=QUERY_VALUE)
    peft.get_peft_model(open_theirs(base), config).save_pretrained(tmp_path)
    for changes in (
        {"target_modules": r".*\.query"},
        {"target_modules": ["query"]},
        {"layers_to_transform": 0},
    ):
        before = (tmp_path / "adapter_config.json").read_text()
        edit_json(tmp_path / "adapter_config.json", **changes)
        with pytest.raises(InputError, match=r"surplus|layers_to_transform = 0 is not supported"):
            open_adapter(str(tmp_path))
        (tmp_path / "adapter_config.json").write_text(before)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(x|x)*", ".*.*.*.*query", "(query"])
def test_an_expression_that_may_take_forever_is_refused(adapter, pattern):
    edit_json(adapter / "adapter_config.json", target_modules=pattern)
    with pytest.raises(
        InputError, match=r"target_modules: .*(may take too long|no regular expression)"
    ):
        open_adapter(str(adapter))


def test_a_base_with_a_classifier_of_other_classes_gets_a_new_one(base):
    """As in transformers with ignore_mismatched_sizes: the encoder is the file's, and the
    classifier is drawn."""
    model = BertForSequenceClassification.from_pretrained(base, num_labels=5)
    assert (model.new_modules, model.classifier.weight.shape[0]) == (("classifier",), 5)
    theirs = open_theirs(base, num_labels=5, ignore_mismatched_sizes=True)
    assert all(
        torch.equal(t, model.state_dict()[n])
        for n, t in theirs.state_dict().items()
        if "classifier" not in n
    )
    assert BertForSequenceClassification.from_pretrained(base, num_labels=3).new_modules == ()
    named = shutil.copytree(
        base, base.parent / "named"
    )  # as many classes, but others: their rows mean something else
    edit_json(named / "config.json", id2label={"0": "bad", "1": "fair", "2": "good"})
    for names, new in (["bad", "fair", "good"], ()), (["good", "fair", "bad"], ("classifier",)):
        assert BertForSequenceClassification.from_pretrained(named, names).new_modules == new


# Compilation.


@pytest.fixture
def counters(monkeypatch):
    """Lets Module.compile trace as ever, but generate no code, which is quick; and counts what it
    traces."""
    compile = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **how: compile(self, backend="eager", **how)
    )
    monkeypatch.setattr(devices, "why_not_compiled", lambda device: "")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_layers_compile_once_for_every_length(counters, tmp_path):
    base = saved_base(tmp_path / "base", num_hidden_layers=4)
    configs = [
        train.Config(str(base), device="cpu", compile=choice, max_length=40)
        for choice in ("no", "yes")
    ]
    plain, compiled = (
        train.build_model(config, ["negative", "positive"]).eval() for config in configs
    )
    compiled.load_state_dict(plain.state_dict())
    batches = [inputs(60, lengths) for lengths in ([6, 6], [9, 8, 4], [17, 17], [30, 2, 2, 30])]
    for batch in batches:
        logits, expected = compiled(*batch), plain(*batch)
        assert difference(logits, expected) < 1e-5
        logits.logsumexp(1).mean().backward()
        expected.logsumexp(1).mean().backward()
    found, expected = gradients(compiled), gradients(plain)
    assert max(difference(found[name], expected[name]) for name in expected) < 1e-5
    assert (
        counters["stats"]["unique_graphs"] == 2
    )  # the first layer, whose input has no gradient, and the others
    for batch in batches:
        compiled.train()(*batch).sum().backward()  # with dropout
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


# Many adapters on one base.

ADAPTERS = {
    "two": {"r": 4, "target_modules": ["query", "value"], "labels": 2},
    "five": {"r": 8, "target_modules": "all-linear", "labels": 5},
    "keys": {"r": 16, "target_modules": ["key"], "labels": 2},
    "number": {"r": 2, "target_modules": ["query", "value"], "labels": 1},  # a regression
}


@pytest.fixture(scope="module")
def bank(minilm, tmp_path_factory):
    """A bank of adapters made by peft, and for each the peft model itself."""
    bank, peft_models = AdapterBank(minilm), {}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            minilm, num_labels=settings["labels"]
        )
        config = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=settings["r"],
            target_modules=settings["target_modules"],
            lora_alpha=16,
        )
        model = peft.get_peft_model(base, config).eval()
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
    names = ["five", "two", "keys", "two", "five", "keys", "number", "two"]
    input_ids = torch.randint(1000, 20000, (len(names), 12))
    mask = (torch.arange(12) < torch.tensor([12, 5, 9, 12, 3, 12, 11, 7])[:, None]).long()
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


def test_removing_an_adapter_leaves_the_others(bank, tmp_path):
    bank, peft_models = bank
    input_ids = torch.randint(1000, 20000, (2, 9))
    before = bank.forward_rows(["two", "keys"], input_ids)
    bank.remove("five")
    after = bank.forward_rows(["two", "keys"], input_ids)
    peft_models["five"].save_pretrained(tmp_path)
    bank.load("five", str(tmp_path))  # as it was, for the tests around this one
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@torch.no_grad()
def test_another_adapter_takes_the_place_of_one_of_its_name(bank, tmp_path):
    bank, peft_models = bank
    input_ids = torch.randint(1000, 20000, (2, 9))
    peft_models["keys"].save_pretrained(tmp_path / "keys")
    peft_models["five"].save_pretrained(tmp_path / "five")
    bank.load(
        "five", str(tmp_path / "keys")
    )  # of other layers: those of the former must not be left
    mixed = bank.forward_rows(["five", "two"], input_ids)
    bank.load("five", str(tmp_path / "five"))
    torch.testing.assert_close(
        mixed[0], peft_models["keys"](input_ids).logits[0], atol=1e-5, rtol=0
    )
