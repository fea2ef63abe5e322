"""lora.py against peft: the same numbers, gradients, losses and files."""

import copy
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
from bert import BertConfig, BertForSequenceClassification
from lora import LinearWithLoRA, LoRALayer, apply_lora_to_model, open_adapter
from runtime import adapters
from support.errors import InputError
from support.tasks import task_of

# peft's own affair.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
QUERY_VALUE = ["query", "value"]
REGEX = r"bert\.encoder\.layer\.[01]\.(attention\.self\.(query|key)|intermediate\.dense)"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The directory of a tiny random classifier with three classes."""
    return saved_base(tmp_path_factory.mktemp("base") / "base", num_labels=3)


def layers_with_lora(model: nn.Module) -> dict[str, LinearWithLoRA]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LinearWithLoRA)}


def of_peft(base: Path, **settings) -> peft.PeftModel:
    config = peft.LoraConfig(task_type="SEQ_CLS", **settings)
    return peft.get_peft_model(open_theirs(base), config)


# The layer.


@pytest.mark.parametrize("use_rslora", [False, True])
def test_linear_with_lora_is_the_sum_of_its_parts(use_rslora):
    linear = nn.Linear(20, 30)
    path = LoRALayer(20, 30, rank=4, alpha=12, dropout=0.0, use_rslora=use_rslora)
    both = LinearWithLoRA(linear, path)
    x = torch.randn(2, 5, 20)
    assert torch.equal(both(x), linear(x))  # B is zero at first
    draw(path)
    scaling = 6 if use_rslora else 3
    A, B = path.lora_A.weight, path.lora_B.weight
    assert A.shape == (4, 20) and B.shape == (30, 4)
    assert difference(both(x), linear(x) + scaling * x @ A.T @ B.T) < 1e-5
    assert difference(path.delta(), scaling * B @ A) < 1e-6
    trained = {name for name, parameter in both.named_parameters() if parameter.requires_grad}
    assert trained == {"lora.lora_A.weight", "lora.lora_B.weight"}


def test_a_starts_as_in_peft(base):
    """A uniform within ±1/√in, and B zero."""
    model = BertForSequenceClassification.from_pretrained(base)
    ours = apply_lora_to_model(model, ["query"], rank=8).state_dict()
    theirs = of_peft(base, target_modules=["query"], r=8).state_dict()
    for state in ours, theirs:
        drawn = torch.stack([tensor for name, tensor in state.items() if "lora_A" in name])
        assert drawn.shape == (2, 8, 32)
        assert 0.95 / 32**0.5 < drawn.abs().max().item() < 1 / 32**0.5
        assert drawn.std().item() == pytest.approx(1 / 96**0.5, rel=0.1)
        assert not any(tensor.any() for name, tensor in state.items() if "lora_B" in name)


@pytest.mark.parametrize("lengths", [[14, 14, 14], [14, 9, 2]], ids=["no padding", "padding"])
@pytest.mark.parametrize("targets", [QUERY_VALUE, "all-linear"], ids=str)
@pytest.mark.parametrize("which", ["tiny", "minilm"])
def test_logits_and_gradients_equal_peft(request, which, targets, lengths):
    base = request.getfixturevalue(which)
    ours = adapted(base, targets)
    theirs = in_peft(ours, base)
    input_ids, mask = inputs(30522, lengths)
    labels = torch.tensor([0, 1, 1])
    logits = ours(input_ids, None if mask.all() else mask)
    output = theirs(input_ids, mask, labels=labels)
    assert difference(logits, output.logits) < 1e-5
    F.cross_entropy(logits, labels).backward()
    output.loss.backward()
    mine, expected = gradients(ours), gradients(theirs)
    assert mine.keys() == expected.keys()
    layers = ours.config.num_hidden_layers
    adapted_layers = 2 * layers if targets == QUERY_VALUE else 6 * layers + 1  # and the pooler
    assert len(mine) == 2 * adapted_layers + 2
    assert all(gradient.abs().max() > 1e-5 for gradient in mine.values())
    assert max(difference(mine[name], expected[name]) for name in mine) < 1e-5


def test_gradients_of_several_labels_equal_peft(tmp_path):
    """Their loss is chosen by the problem_type of the base, as unitary/toxic-bert has it."""
    names = {number: f"label {number}" for number in range(6)}
    kind = "multi_label_classification"
    base = saved_base(tmp_path, vocab_size=30522, id2label=names, problem_type=kind)
    ours = adapted(base, "all-linear")
    task = task_of(ours.config)
    assert task.problem_type == kind and task.names == [*names.values()]
    theirs = in_peft(ours, base)
    input_ids, mask = inputs(30522, [14, 9, 2])
    labels = torch.tensor([[0.0] * 6, [1.0, 0, 1, 0, 0, 1], [1.0] * 6])
    logits = ours(input_ids, mask)
    output = theirs(input_ids, mask, labels=labels)
    assert difference(logits, output.logits) < 1e-5
    loss = task.training_loss(logits, labels) / len(labels)
    assert difference(loss, output.loss) < 1e-6
    loss.backward()
    output.loss.backward()
    mine, expected = gradients(ours), gradients(theirs)
    assert mine.keys() == expected.keys()
    assert all(gradient.abs().max() > 1e-5 for gradient in mine.values())
    assert max(difference(mine[name], expected[name]) for name in mine) < 1e-5


def test_adapter_dropout_is_on_the_path_alone(monkeypatch):
    both = LinearWithLoRA(nn.Linear(6, 6), LoRALayer(6, 6, rank=2, alpha=2, dropout=0.5))
    draw(both)
    x = torch.randn(4, 6)
    kept = torch.randint(0, 2, (4, 6))

    def dropout(x, p, training, inplace):
        return x * kept / (1 - p) if training else x

    monkeypatch.setattr(F, "dropout", dropout)
    linear, path = both.linear, copy.deepcopy(both.lora).eval()
    assert difference(both(x), linear(x) + path(x * kept * 2)) < 1e-5
    assert difference(both.eval()(x), linear(x) + path(x)) < 1e-5


def test_beside_a_layer_that_holds_no_plain_weight():
    """As one in four bits does not: the sum and its gradients are the same."""
    linear = nn.Linear(6, 5)
    path = LoRALayer(6, 5, rank=2, alpha=4, dropout=0.0)
    draw(path)
    x = torch.randn(3, 6, requires_grad=True)
    results = []
    for frozen in linear, nn.Sequential(linear):
        y = LinearWithLoRA(frozen, path)(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *path.parameters()])])
    assert all(difference(a, b) < 1e-5 for a, b in zip(*results, strict=True))


def test_rewriting_keeps_the_mode(base):
    model = BertForSequenceClassification.from_pretrained(base)
    for mode, target in (True, "key"), (False, "query"):
        apply_lora_to_model(model.train(mode), [target])
        assert {module.training for module in model.modules()} == {mode}


# Merging.


@pytest.mark.parametrize("targets", [QUERY_VALUE, "all-linear"], ids=str)
@torch.inference_mode()
def test_merging(minilm, targets):
    model = adapted(minilm, targets)
    theirs = in_peft(model, minilm)
    plain = BertForSequenceClassification.from_pretrained(minilm)
    input_ids, mask = inputs(30522, [14, 9, 2])
    before = model(input_ids, mask)
    layers = layers_with_lora(model)
    originals = {name: layer.linear.weight.clone() for name, layer in layers.items()}
    merged = lora.merge_lora_weights(model)
    assert merged is model
    after = model(input_ids, mask)
    assert difference(after, before) < 1e-5
    expected = theirs.merge_and_unload()(input_ids, mask).logits
    assert difference(after, expected) < 1e-5
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    for name, layer in layers.items():  # a base in memory may be that of other adapters too
        assert torch.equal(layer.linear.weight, originals[name])
        assert not torch.equal(model.get_submodule(name).weight, originals[name])


def test_one_layer_merged(base):
    layer = adapted(base, ["query"]).bert.encoder.layer[0].attention.self.query
    x = torch.randn(5, 32)
    W = layer.linear.weight.clone()
    linear = layer.merged()
    assert type(linear) is nn.Linear
    assert difference(linear(x), layer(x)) < 1e-5
    assert torch.equal(layer.linear.weight, W)
    assert linear.weight.data_ptr() != layer.linear.weight.data_ptr()


def test_merging_does_not_depend_on_dropout(base):
    model = adapted(base, QUERY_VALUE, dropout=0.5)
    input_ids, mask = inputs(60, [9, 4])
    before = model(input_ids, mask)
    lora.merge_lora_weights(model.train())
    assert difference(model.eval()(input_ids, mask), before) < 1e-5


class EmbeddingWithLoRA(nn.Module):
    """What a reader may write, and merging has never heard of."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.embedding = embedding
        self.lora = LoRALayer(embedding.embedding_dim, embedding.embedding_dim, rank=2, alpha=2)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        return x + self.lora(x)


def refuse_to_merge(model: nn.Module, message: str) -> None:
    """Merging is refused, and the model computes what it did before."""
    input_ids, mask = inputs(60, [9, 4])
    before = model(input_ids, mask)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        lora.merge_lora_weights(model)
    assert torch.equal(model(input_ids, mask), before)
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors)


def test_lora_that_merging_does_not_know_is_refused(base):
    model = adapted(base, QUERY_VALUE)
    embeddings = model.bert.embeddings
    embeddings.word_embeddings = EmbeddingWithLoRA(embeddings.word_embeddings)
    draw(embeddings.word_embeddings.lora)
    refuse_to_merge(model, r"embeddings\.word_embeddings\.lora\.")


def with_relu(self, x):
    return self.lora_B(F.relu(self.lora_A(x))) * self.scaling


def with_relu_outside(self, x):
    return F.relu(self.lora_B(self.lora_A(x))) * 1000


def without_scaling(self, x):
    return self.lora_B(self.lora_A(x))


def of_normed_input(self, x):
    x = x / x.abs().max()
    return self.lora_B(self.lora_A(x)) * self.scaling


@pytest.mark.parametrize("edit", [with_relu, with_relu_outside, without_scaling, of_normed_input])
def test_a_path_that_was_edited_is_not_merged(base, monkeypatch, edit):
    model = adapted(base, QUERY_VALUE)
    monkeypatch.setattr(LoRALayer, "forward", edit)
    refuse_to_merge(model, "cannot be merged")


def twice(self, x):
    return self.linear(x) + 2 * self.lora(x)


def one_after_the_other(self, x):
    y = self.linear(x)
    return y + self.lora(y)


@pytest.mark.parametrize("edit", [twice, one_after_the_other])
def test_a_sum_that_was_edited_is_not_merged(base, monkeypatch, edit):
    model = adapted(base, QUERY_VALUE)
    monkeypatch.setattr(LinearWithLoRA, "forward", edit)
    refuse_to_merge(model, "cannot be merged")


def test_a_layer_that_holds_no_plain_weight_is_not_merged(base):
    model = adapted(base, QUERY_VALUE)
    for layer in layers_with_lora(model).values():
        layer.linear = nn.Sequential(layer.linear)
    refuse_to_merge(model, "cannot be merged")


# Training.


def test_fifty_steps_equal_peft(minilm, reviews, tmp_path):
    """Of the first layers of a real BERT, without dropout, on short reviews."""
    import train

    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    first = transformers.AutoModel.from_pretrained(minilm, num_hidden_layers=2, **rates)
    first.save_pretrained(tmp_path)
    shutil.copy(f"{minilm}/tokenizer.json", tmp_path)
    options = {"epochs": 1, "batch_size": 16, "lr": 5e-3, "dropout": 0.0, "device": "cpu"}
    setup = train.set_up(train.Config(model=str(tmp_path), data=reviews, **options))
    train_set = setup.train_set
    short = np.flatnonzero(train_set.lengths <= 16)[: 50 * 16]
    setup.train_set = replace(
        train_set,
        starts=train_set.starts[short],
        lengths=train_set.lengths[short],
        labels=train_set.labels[short],
    )
    assert setup.steps == 50
    ours, expected, _ = losses_beside_peft(setup, tmp_path)
    assert np.abs(ours - expected).max() < 1e-5
    assert ours[-10:].mean() < ours[:10].mean() - 0.05  # something was learnt


# Compilation.


@pytest.fixture
def counters(monkeypatch):
    """Lets Module.compile trace as ever, but generate no code, which is quick; and counts."""
    compile = nn.Module.compile

    def compile_quickly(self, **settings):
        compile(self, backend="eager", **settings)

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_layers_compile_once_for_every_length(counters, tmp_path, monkeypatch):
    from runtime import devices

    monkeypatch.setattr(devices, "why_not_compiled", lambda device: "")
    base = saved_base(tmp_path / "base", num_hidden_layers=4)
    plain, compiled = (adapted(base, QUERY_VALUE, dropout=0.1) for _ in range(2))
    devices.place(compiled, device="cpu", compile="yes")
    batches = [inputs(60, lengths) for lengths in ([6, 6], [9, 8, 4], [17, 17], [30, 2, 2, 30])]
    for batch in batches:
        logits, expected = compiled(*batch), plain(*batch)
        assert difference(logits, expected) < 1e-5
        logits.logsumexp(1).mean().backward()
        expected.logsumexp(1).mean().backward()
    found, expected = gradients(compiled), gradients(plain)
    assert max(difference(found[name], expected[name]) for name in expected) < 1e-5
    # The first layer, whose input has no gradient, and the others.
    assert counters["stats"]["unique_graphs"] == 2
    for batch in batches:
        compiled.train()(*batch).sum().backward()  # with dropout
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


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
    others = {name for name in trained if ".lora." not in name}
    assert others == {"classifier.weight", "classifier.bias"}


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
    assert sorted(layers_with_lora(ours)) == sorted(theirs.targeted_module_names)


NO_MATCH = ["valeu", "uery", "attention.self", "LayerNorm", "encoder.layer.2.output.dense"]


@pytest.mark.parametrize("target", NO_MATCH)
def test_targets_without_a_match_are_refused(base, target):
    """With the names that there are."""
    model = BertForSequenceClassification.from_pretrained(base)
    for targets in ["query", target], target:  # in a list, and as a regular expression
        message = f"'{target}' matches no linear layer.*dense, key, query, value"
        with pytest.raises(ValueError, match=message):
            apply_lora_to_model(model, targets)
    assert not layers_with_lora(model)


# Files.

OF_PEFT = [
    {"target_modules": QUERY_VALUE, "r": 8, "lora_alpha": 16},
    {"target_modules": REGEX, "r": 3, "lora_alpha": 5, "lora_dropout": 0.1},
    {"target_modules": "all-linear", "r": 4, "lora_alpha": 2, "use_rslora": True},
    {"target_modules": ["dense"], "r": 1, "lora_alpha": 1, "modules_to_save": ["classifier"]},
]


@pytest.mark.parametrize("settings", OF_PEFT, ids=str)
def test_opens_an_adapter_of_peft(base, tmp_path, settings):
    model = of_peft(base, init_lora_weights=False, **settings)
    draw(model.base_model.model.classifier.modules_to_save)
    model.save_pretrained(tmp_path)
    input_ids, mask = inputs(60, [9, 4])
    expected = model.eval()(input_ids, mask).logits
    assert difference(expected, open_theirs(base)(input_ids, mask).logits) > 0.01
    assert difference(open_adapter(tmp_path)(input_ids, mask), expected) < 1e-5
    path = tmp_path / "adapter_model.safetensors"  # the names of older files
    state = load_file(path)
    for old, new in (
        ("classifier", "classifier.modules_to_save.default"),
        ("base_model.model.", "_orig_mod.base_model.model."),
        ("base_model.model.", "base_model.model._orig_mod."),
    ):
        save_file({name.replace(old, new): tensor for name, tensor in state.items()}, path)
        assert difference(open_adapter(tmp_path)(input_ids, mask), expected) < 1e-5


OURS = [(QUERY_VALUE, 8, 16, False), (REGEX, 3, 5, False), ("all-linear", 4, 2, True)]


@pytest.mark.parametrize(("targets", "rank", "alpha", "use_rslora"), OURS)
def test_peft_opens_our_adapter(base, tmp_path, targets, rank, alpha, use_rslora):
    settings = {"rank": rank, "alpha": alpha, "use_rslora": use_rslora, "dropout": 0.1}
    ours = adapted(base, targets, **settings)
    draw(ours.classifier)
    lora.save_adapter(ours, tmp_path, str(base))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert lora.named_base(tmp_path) == str(base)
    plain = open_theirs(base)
    input_ids, mask = inputs(60, [9, 4])
    with silence():
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    assert difference(theirs(input_ids, mask).logits, ours(input_ids, mask)) < 1e-5
    again = open_adapter(tmp_path)
    assert torch.equal(again(input_ids, mask), ours(input_ids, mask))
    assert again.config.id2label == ours.config.id2label
    assert again.lora_config == ours.lora_config


def test_the_files_are_the_same_when_saved_again(base, tmp_path):
    """Opening keeps everything that saving wrote."""
    ours = adapted(base, "all-linear", rank=3, dropout=0.25)
    ours.config.id2label = {0: "böse", 1: "so so", 2: "gut"}
    ours.config.text_pairs = True
    lora.save_adapter(ours, tmp_path / "first", str(base))
    lora.save_adapter(open_adapter(tmp_path / "first"), tmp_path / "second", str(base))
    names = ["adapter_config.json", "adapter_model.safetensors", "config.json"]
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == names
    for name in names:
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_a_directory_is_named_from_the_root(base, tmp_path, monkeypatch):
    """So that the adapter opens wherever it is opened from."""
    monkeypatch.chdir(base.parent)
    lora.save_adapter(adapted(base, QUERY_VALUE), tmp_path / "adapter", base.name)
    monkeypatch.chdir(tmp_path)
    assert lora.named_base(Path("adapter")) == str(base)
    open_adapter("adapter")


def test_a_repository_and_its_revision_stand_apart_in_the_file(base, tmp_path):
    """As peft writes them."""
    ours = adapted(base, QUERY_VALUE)
    lora.save_adapter(ours, tmp_path, "owner/name@0123abc")
    theirs = peft.PeftConfig.from_pretrained(tmp_path)
    assert theirs.base_model_name_or_path == "owner/name"
    assert theirs.revision == "0123abc"
    assert lora.named_base(tmp_path) == "owner/name@0123abc"
    edit_json(tmp_path / "adapter_config.json", revision=None)
    assert lora.named_base(tmp_path) == "owner/name"
    edit_json(tmp_path / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match="names no base model"):
        open_adapter(tmp_path)
    assert torch.equal(open_adapter(tmp_path, base)(*inputs(60, [9])), ours(*inputs(60, [9])))


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """The directory of an adapter that peft saved."""
    of_peft(base, target_modules=QUERY_VALUE).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_base_in_memory_is_shared_and_stays_as_it_was(base, adapter):
    model = BertForSequenceClassification.from_pretrained(base)
    input_ids, mask = inputs(60, [9, 4])
    before = model(input_ids, mask)
    opened = open_adapter(adapter, model)
    assert torch.equal(opened(input_ids, mask), open_adapter(adapter, base)(input_ids, mask))
    shared = {parameter.data_ptr() for parameter in model.bert.parameters()}
    frozen = {
        parameter.data_ptr()
        for name, parameter in opened.bert.named_parameters()
        if ".lora." not in name
    }
    assert frozen == shared
    lora.merge_lora_weights(opened)
    assert torch.equal(model(input_ids, mask), before)


def test_another_dropout_for_going_on_with_the_training(base, tmp_path):
    of_peft(base, target_modules=QUERY_VALUE, lora_dropout=0.3).save_pretrained(tmp_path)
    for dropout, expected in (None, 0.3), (0.1, 0.1), (0.0, 0.0):
        model = open_adapter(tmp_path, dropout=dropout)
        rates = {layer.lora.dropout.p for layer in layers_with_lora(model).values()}
        assert rates == {expected} and model.lora_config["lora_dropout"] == expected


def test_an_adapter_that_brings_a_pooler(base, tmp_path):
    """For a base without one, as a masked language model's."""
    plain = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(base))
    plain.save_pretrained(tmp_path / "base")
    ours = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    assert ours.newly_initialized == ("bert.pooler.dense", "classifier")
    apply_lora_to_model(ours, "all-linear", rank=2)
    lora.mark_only_lora_as_trainable(ours)
    assert ours.bert.pooler.dense.weight.requires_grad
    for parameter in lora.trained_parameters(ours).values():
        nn.init.normal_(parameter, std=0.1)
    lora.save_adapter(ours, tmp_path / "adapter", str(tmp_path / "base"))
    input_ids, mask = inputs(60, [9, 4])
    expected = ours.eval()(input_ids, mask)
    opened = open_adapter(tmp_path / "adapter")
    assert torch.equal(opened(input_ids, mask), expected)
    assert sorted(layers_with_lora(opened)) == sorted(layers_with_lora(ours))
    theirs = open_theirs(tmp_path / "base", num_labels=3)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert difference(theirs(input_ids, mask).logits, expected) < 1e-5
    assert sorted(theirs.targeted_module_names) == sorted(layers_with_lora(ours))
    assert "pooler" in theirs.peft_config["default"].modules_to_save
    # The pooler is the adapter's own: a base in memory keeps another.
    shared = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    before = shared(input_ids, mask)
    assert torch.equal(open_adapter(tmp_path / "adapter", shared)(input_ids, mask), expected)
    assert torch.equal(shared(input_ids, mask), before)


OTHER_BASES = {
    "wider": ({"hidden_size": 48}, r"has the shape \[.*\], expected \[.*\]"),
    "deeper": ({"num_hidden_layers": 3}, r"lacks .*layer\.2"),
    "flatter": ({"num_hidden_layers": 1}, r"surplus .*layer\.1"),
}


@pytest.mark.parametrize("other", OTHER_BASES)
def test_adapter_of_another_base_is_refused(adapter, tmp_path, other):
    shapes, message = OTHER_BASES[other]
    folder = saved_base(tmp_path / "other", num_labels=3, **shapes)
    with pytest.raises(ValueError, match=message):
        open_adapter(adapter, folder)


@pytest.mark.parametrize("settings", OF_PEFT, ids=str)
def test_an_adapter_that_lacks_a_layer_is_refused(base, tmp_path, settings):
    """Each layer in turn: without it the model would answer, but as another one."""
    of_peft(base, **settings).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    layers = {name.partition(".lora_")[0] for name in whole if ".lora_" in name}
    for layer in layers:
        left = {name: tensor for name, tensor in whole.items() if not name.startswith(layer)}
        save_file(left, path)
        with pytest.raises(ValueError, match=f"lacks .*{layer.rpartition('model.')[2]}"):
            open_adapter(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r".*\.query"},
        {"target_modules": ["query"]},
        {"layers_to_transform": 0},
    ],
    ids=str,
)
def test_an_adapter_with_more_than_its_config_means_is_refused(adapter, changes):
    """PEFT would leave the surplus out, or read another model: so neither is taken."""
    edit_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(ValueError, match=r"surplus|layers_to_transform = 0 is not supported"):
        open_adapter(adapter)


def test_a_target_of_a_list_may_match_nothing(adapter):
    """As in peft."""
    before = open_adapter(adapter)(*inputs(60, [9]))
    edit_json(adapter / "adapter_config.json", target_modules=["c_attn", "query", "value"])
    opened = open_adapter(adapter)
    assert torch.equal(opened(*inputs(60, [9])), before)
    theirs = peft.PeftModel.from_pretrained(open_theirs(lora.named_base(adapter)), adapter)
    assert sorted(layers_with_lora(opened)) == sorted(theirs.targeted_module_names)


def test_contradicting_rank_is_refused(adapter):
    edit_json(adapter / "adapter_config.json", r=4)
    with pytest.raises(ValueError, match=r"lora_A.weight has the shape .*8, 32., expected .4, 32"):
        open_adapter(adapter)
    with pytest.raises(InputError, match=f"^{adapter}: its tensors are not of rank 4"):
        adapters.open_with_base(adapter)


def test_an_adapter_without_its_classifier_is_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "classifier" not in k}, path)
    with pytest.raises(ValueError, match=rf"{adapter}: saved without its head \(PEFT: "):
        open_adapter(adapter)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(x|x)*", ".*.*.*.*query"])
def test_an_expression_that_may_take_forever_is_refused(adapter, pattern):
    edit_json(adapter / "adapter_config.json", target_modules=pattern)
    with pytest.raises(ValueError, match=r"adapter_config\.json: target_modules .*too long"):
        open_adapter(adapter)


UNSUPPORTED = {
    "use_dora": True,
    "bias": "all",
    "rank_pattern": {"query": 4},
    "layers_to_transform": [0],
    "peft_type": "LOHA",
    "init_lora_weights": "pissa",
    "task_type": "TOKEN_CLS",
    "modules_to_save": ["classifier", "embeddings"],
    "odd": 1,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_fields_are_named(adapter, name):
    edit_json(adapter / "adapter_config.json", **{name: UNSUPPORTED[name]})
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {name} = "):
        open_adapter(adapter)


def test_a_field_that_the_caller_knows_is_read(adapter):
    edit_json(adapter / "adapter_config.json", use_dora=True)
    assert lora.read_adapter_config(adapter, {"use_dora"})["use_dora"] is True
    edit_json(adapter / "adapter_config.json", odd=1)
    with pytest.raises(ValueError, match=r"adapter_config\.json: odd = 1"):
        lora.read_adapter_config(adapter, {"use_dora"})


def test_an_unknown_field_that_is_null_is_accepted(adapter):
    edit_json(adapter / "adapter_config.json", odd=None)
    open_adapter(adapter)
