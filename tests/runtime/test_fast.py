"""Each faster form beside the plain lines: values, gradients, random draws, and stepping aside."""

import copy
import functools
import os
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, difference, draw, inputs
from torch import Tensor, nn
from torch.nn.utils import parametrize

import bert
from bert import BertConfig, BertForSequenceClassification, BertModel, BertSelfAttention
from lora import (
    LinearWithLoRA,
    LoRALayer,
    apply_lora_to_model,
    mark_only_lora_as_trainable,
    merge_lora_weights,
)
from runtime import fast, kernels
from runtime.fast import (
    ClsOnlyLayer,
    CpuDropout,
    CpuLinear,
    CpuLinearWithLoRA,
    FastAttention,
    PackedAttention,
    PackedIntermediate,
    PackedLinear,
    PackedOutput,
    rewrite,
)
from runtime.kernels import LinearsPlusLoRA, draw_kept

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
LENGTHS = [[9, 9, 9], [14, 9, 2], [1]]
TARGETS = [[], ["query"], ["key", "dense"], ["query", "value"], "all-linear"]


def make_model(targets: list[str] | str = ("query", "value"), p: float = 0.0, **settings):
    """A tiny random classifier with adapters, ready to be trained, with dropout of rate p."""
    config = BertConfig(**TINY | settings)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = p
    model = BertForSequenceClassification(config)
    apply_lora_to_model(model, targets, rank=3, alpha=6, dropout=p)
    mark_only_lora_as_trainable(model)
    draw(model)
    return model


def twins(model: nn.Module, **how) -> list[nn.Module]:
    """The model, and a copy of it that is rewritten, without any form that steps aside."""
    other = copy.deepcopy(model)
    assert rewrite(other, **how) == []
    return [model, other]


def results(model: nn.Module, lengths: list[int]) -> list[Tensor]:
    """Logits, and the gradients of all that is trained."""
    input_ids, mask = inputs(TINY["vocab_size"], lengths)
    logits = model(input_ids, None if mask.all() else mask)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [logits, *torch.autograd.grad(logits.logsumexp(1).mean(), trained)]


def assert_equal(some: list[Tensor], others: list[Tensor], within: float = 1e-5) -> None:
    assert max(difference(a, b) for a, b in zip(some, others, strict=True)) < within


def classes(model: nn.Module) -> Counter:
    return Counter(type(module) for module in model.modules() if type(module) in fast.FORMS)


# The whole model.


@pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "elsewhere"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_a_rewritten_model_computes_the_same(targets, lengths, on_cpu):
    plain, faster = twins(make_model(targets), on_cpu=on_cpu)
    for mode in True, False:
        assert_equal(results(plain.train(mode), lengths), results(faster.train(mode), lengths))


SHAPES = [
    {"num_hidden_layers": 1},
    {"num_attention_heads": 1, "num_hidden_layers": 3},
    {"num_attention_heads": 16, "intermediate_size": 100},
]


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_other_shapes(settings):
    plain, faster = twins(make_model("all-linear", **settings))
    assert_equal(results(plain, [12, 7, 1]), results(faster, [12, 7, 1]))


def test_every_weight_trained():
    plain, faster = twins(make_model([]).requires_grad_(True))
    assert CpuLinear not in classes(faster)
    assert_equal(results(plain, [9, 4]), results(faster, [9, 4]))


@pytest.mark.parametrize("part", ["linear.bias", "linear.weight"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_trained_beside_the_adapters_gets_its_gradients(part, when):
    def thaw(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith((part, "key." + part.partition(".")[2])):
                parameter.requires_grad_()

    model = make_model(["query", "value"])
    if when == "before":
        thaw(model)
    plain, faster = twins(model)
    if when == "after":
        thaw(plain)
        thaw(faster)
    assert_equal(results(plain, [9, 4]), results(faster, [9, 4]))


@pytest.mark.parametrize("frozen_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", TARGETS[1:], ids=str)
def test_in_bfloat16(targets, frozen_in):
    """Beside float32 the faster forms are no further off than the plain ones."""
    model = make_model(targets)
    exact = results(model, [9, 4])
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(frozen_in)
    plain, faster = twins(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = [results(one, [9, 4]) for one in (plain, faster)]
    assert [tensor.dtype for tensor in found[0]] == [tensor.dtype for tensor in found[1]]
    off = [
        torch.cat([(a - b).flatten() for a, b in zip(exact, one, strict=True)]).norm()
        for one in found
    ]
    assert 0 < off[1] < 1.5 * off[0]


def test_fifty_steps():
    """The losses of a training; the draws of dropout are put aside, which differ."""
    found = []
    for model in twins(make_model()):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for step in range(50):
            input_ids, mask = inputs(TINY["vocab_size"], [9, 9, 4, 2], seed=step % 5)
            loss = F.cross_entropy(model.train()(input_ids, mask), input_ids[:, 0] % 2)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        found.append(losses)
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert sum(found[0][-5:]) < 0.9 * sum(found[0][:5])  # something was learnt


def test_a_seed_decides_every_draw():
    _, model = twins(make_model(p=0.2))
    found = []
    for seed in 0, 0, 1:
        torch.manual_seed(seed)
        found.append(results(model.train(), [9, 4]))
    assert all(torch.equal(a, b) for a, b in zip(*found[:2], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


def test_dropout_is_of_the_plain_rate():
    """The mean of many draws, as from the plain lines, in the logits of one text."""
    plain, faster = twins(make_model("all-linear", p=0.1).train())
    input_ids = torch.randint(1, TINY["vocab_size"], (1, 5)).repeat(4000, 1)
    torch.manual_seed(0)
    expected, found = plain(input_ids).detach(), faster(input_ids).detach()  # (4000, C)
    error = expected.std(0) / len(expected) ** 0.5
    assert ((found.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    assert found.std(0).tolist() == pytest.approx(expected.std(0).tolist(), rel=0.1)


def test_a_zero_B_leaves_every_bit_as_it_is():
    base = BertForSequenceClassification(BertConfig(**TINY)).eval()
    draw(base)
    model = apply_lora_to_model(copy.deepcopy(base), "all-linear", dropout=0.1)
    assert rewrite(base) == rewrite(model) == []
    assert classes(model)[CpuLinearWithLoRA] == 13
    input_ids, mask = inputs(TINY["vocab_size"], [14, 9, 2])
    assert torch.equal(base(input_ids, mask), model(input_ids, mask))


def test_what_is_put_in_place_and_what_stays():
    model = make_model(p=0.1)
    names = [*model.state_dict()]
    tensors = [*model.parameters()]
    rewrite(model, on_cpu=False)
    assert classes(model) == {FastAttention: 2, ClsOnlyLayer: 1}
    model = make_model(p=0.1)
    tensors = [*model.parameters()]
    rewrite(model)
    forms = {FastAttention: 2, ClsOnlyLayer: 1, CpuLinearWithLoRA: 4, CpuLinear: 13, CpuDropout: 12}
    assert classes(model) == forms
    assert type(model.bert.encoder.layer[0]) is bert.BertLayer
    assert {type(layer) for layer in model.modules() if hasattr(layer, "weight")} >= {nn.Linear}
    assert [*model.state_dict()] == names
    assert all(a is b for a, b in zip(model.parameters(), tensors, strict=True))


def test_rewriting_twice_is_once():
    plain, faster = twins(make_model())
    before = classes(faster)
    assert rewrite(faster) == []
    assert classes(faster) == before
    assert_equal(results(plain, [9, 4]), results(copy.deepcopy(faster), [9, 4]))


def test_a_rewritten_model_can_be_merged():
    plain, faster = twins(make_model("all-linear"))
    input_ids, mask = inputs(TINY["vocab_size"], [9, 4])
    expected = plain.eval()(input_ids, mask)
    assert difference(merge_lora_weights(faster).eval()(input_ids, mask), expected) < 1e-5
    assert not any(".lora." in name for name in faster.state_dict())


def test_the_row_of_cls_is_exact():
    model = make_model("all-linear", num_hidden_layers=3)
    plain, faster = [one.bert.eval() for one in twins(model)]
    input_ids, mask = inputs(TINY["vocab_size"], [12, 7, 3, 1])
    states, pooled = plain(input_ids, mask)
    row, pooled_of_row = faster(input_ids, mask)
    assert difference(row, states[:, :1]) < 1e-5
    assert difference(pooled_of_row, pooled) < 1e-5


def test_of_a_bare_encoder_every_row_is_wanted():
    model = BertModel(BertConfig(**TINY)).eval()
    draw(model)
    plain, faster = twins(model)
    input_ids, mask = inputs(TINY["vocab_size"], [12, 7])
    assert_equal(plain(input_ids, mask), faster(input_ids, mask))


# What another program makes of a rewritten model.


@pytest.fixture
def counters():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_layers_compile_once_for_every_length(counters):
    """torch.compile traces as ever, but generates no code, which is quick."""
    plain, faster = twins(make_model(num_hidden_layers=4), on_cpu=False)
    for layer in faster.bert.encoder.layer[:-1]:
        layer.compile(fullgraph=True, dynamic=True, backend="eager")
    batches = [[6, 6, 1], [9, 8, 4], [17, 17, 2], [30, 2, 2, 30]]
    for lengths in batches:
        assert_equal(results(plain.eval(), lengths), results(faster.eval(), lengths))
    # The first layer, whose input has no gradient, and the others.
    assert counters["stats"]["unique_graphs"] == 2
    for lengths in batches:
        assert_equal(results(plain.train(), lengths), results(faster.train(), lengths))
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


@pytest.mark.parametrize("mode", [True, False], ids=["training", "answering"])
def test_the_whole_model_compiles(counters, mode):
    plain, faster = twins(make_model("all-linear").train(mode), on_cpu=False)
    faster.compile(fullgraph=True, dynamic=True, backend="eager")
    for lengths in [9, 4], [7, 7, 2]:
        assert_equal(results(plain, lengths), results(faster, lengths))
    assert not counters["graph_break"]


def test_a_model_can_be_exported():
    """torch.export follows one batch, as torch.onnx does by it, and takes others."""
    model = merge_lora_weights(make_model()).eval()
    plain, faster = twins(model, on_cpu=False)
    free = {0: torch.export.Dim("B"), 1: torch.export.Dim("S", max=40)}
    example = inputs(TINY["vocab_size"], [8, 5])
    exported = torch.export.export(faster, example, dynamic_shapes=[free, free])
    batch = inputs(TINY["vocab_size"], [12, 7, 3])
    assert difference(exported.module()(*batch), plain(*batch)) < 1e-5


# Stepping aside.


def edited(cls: type, monkeypatch) -> None:
    """Gives the class another forward, of other lines that compute the same."""
    plain = cls.forward

    def forward(self, *given, **named):
        return plain(self, *given, **named)

    monkeypatch.setattr(cls, "forward", forward)


NEEDS = {  # the plain lines that a form takes the place of
    FastAttention: {BertSelfAttention},
    CpuLinearWithLoRA: {LinearWithLoRA, LoRALayer},
    ClsOnlyLayer: {
        BertForSequenceClassification,
        BertModel,
        BertSelfAttention,
        bert.BertEncoder,
        bert.BertLayer,
        bert.BertAttention,
        bert.BertIntermediate,
        bert.BertOutput,
        bert.BertPooler,
        LinearWithLoRA,
        LoRALayer,
    },
    CpuLinear: set(),
    CpuDropout: set(),
}
EDITABLE = sorted(set().union(*NEEDS.values()), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", EDITABLE, ids=lambda cls: cls.__name__)
def test_a_form_steps_aside_where_its_plain_lines_were_edited(cls, monkeypatch):
    model = make_model("all-linear", p=0.1)
    edited(cls, monkeypatch)
    notes = rewrite(model)
    aside = {form for form, needed in NEEDS.items() if cls in needed}
    assert not aside & classes(model).keys()
    assert NEEDS.keys() - aside == classes(model).keys()
    plain = {form: form.__base__.__name__ for form in aside} | {ClsOnlyLayer: "the last BertLayer"}
    expected = {f"{cls.__name__}.forward was edited: {plain[form]} runs" for form in aside}
    assert {note.partition(" its plain lines, about 1.")[0] for note in notes} == expected
    assert len(notes) == len(aside)


def test_a_form_steps_aside_for_a_call_of_its_own(monkeypatch):
    model = make_model()
    monkeypatch.setattr(LoRALayer, "__call__", lambda self, x: 3 * self.forward(x))
    plain = copy.deepcopy(model)
    assert any(note.startswith("LoRALayer has a __call__ of its own") for note in rewrite(model))
    batch = inputs(TINY["vocab_size"], [9, 5])
    assert difference(model.eval()(*batch), plain.eval()(*batch)) < 1e-5


def test_every_form_was_asked_for_its_plain_lines():
    assert fast.PLAIN.keys() == {*EDITABLE}
    assert fast.FORMS.keys() == NEEDS.keys() | fast.PACKED


@pytest.mark.parametrize("cls", EDITABLE, ids=lambda cls: cls.__name__)
def test_an_edit_takes_effect(cls, monkeypatch):
    """Whatever a reader makes of a line: here it gives a mean over all tokens, where it can."""
    plain = cls.forward

    def forward(self, *given, **named):
        result = plain(self, *given, **named)
        one = result[1] if isinstance(result, tuple) else result
        mixed = one + 0.5 * one.mean(-2, keepdim=True)
        return (result[0], mixed) if isinstance(result, tuple) else mixed

    model = make_model("all-linear")
    before = results(model, [9, 4])[0]
    monkeypatch.setattr(cls, "forward", forward)
    other = copy.deepcopy(model)
    assert rewrite(other)
    expected = results(model, [9, 4])
    assert difference(expected[0], before) > 1e-3
    assert_equal(results(other, [9, 4]), expected)


class Nonlinear(nn.Module):
    """A layer that has no W to be read."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).relu()


class Doubled(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return 2 * W


def become_heir(module: nn.Module) -> None:
    """Makes of the module one of a subclass that computes more."""
    cls = type(module)

    def forward(self, *given, **named):
        return 1.5 * cls.forward(self, *given, **named)

    module.__class__ = type("Heir", (cls,), {"forward": forward})


def set_forward(module: nn.Module) -> None:
    """Gives the module a forward of its own, as some libraries do."""
    module.forward = functools.partial(type(module).forward, module)


def stack_adapters(both: LinearWithLoRA) -> None:
    both.linear = LinearWithLoRA(both.linear, LoRALayer(32, 32, 2, 2))


def learn_scaling(lora: LoRALayer) -> None:
    del lora.scaling
    lora.scaling = nn.Parameter(torch.ones(32))


def parametrize_weight(linear: nn.Linear) -> None:
    parametrize.register_parametrization(linear, "weight", Doubled())


LORA, ATTENTION, CLS = CpuLinearWithLoRA, FastAttention, ClsOnlyLayer
ODD = [  # a module of the last layer, what is made of it, and the forms that step aside
    ("", become_heir, {CLS}),
    ("output", become_heir, {CLS}),
    ("attention.self", become_heir, {CLS, ATTENTION}),
    ("attention.self.dropout", become_heir, {CLS, ATTENTION}),
    ("attention.self.query", become_heir, {CLS, LORA}),
    ("attention.self.query.lora", become_heir, {CLS, LORA}),
    ("attention.self.query.lora.dropout", become_heir, {CLS, LORA}),
    ("attention.self.query.lora.lora_B", become_heir, {CLS, LORA}),
    ("attention.self.query.lora.lora_A", parametrize_weight, {CLS, LORA}),
    ("attention.self.query", stack_adapters, {CLS, LORA}),
    ("attention.self.query", lambda m: setattr(m, "linear", Nonlinear()), {CLS, LORA}),
    ("attention.self.key.lora", lambda m: setattr(m, "dropout", nn.Identity()), {CLS, LORA}),
    ("attention.self.key.lora", lambda m: setattr(m, "lora_A", nn.Linear(32, 3)), {CLS, LORA}),
    ("attention.self.key.lora", lambda m: setattr(m, "scaling", torch.ones(32)), {CLS, LORA}),
    ("attention.self.key.lora", learn_scaling, {CLS, LORA}),
    ("intermediate.dense.lora", set_forward, {CLS, LORA}),
]


@pytest.mark.parametrize(("name", "change", "aside"), ODD)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "answering"])
def test_what_is_odd_runs_its_own_lines(name, change, aside, mode):
    found = []
    for forms in False, True:
        torch.manual_seed(0)
        model = make_model("all-linear")
        last = model.bert.encoder.layer[-1]
        before = Counter(type(module) for module in last.modules())
        change(last.get_submodule(name))
        model.train(mode)
        if forms:
            notes = rewrite(model)
            assert len(notes) >= len(aside)
            placed = classes(last)
            assert {form for form in (ATTENTION, CLS) if not placed[form]} == aside - {LORA}
            layers = [m for m in last.modules() if isinstance(m, LinearWithLoRA)]
            assert placed[LORA] == len(layers) - (LORA in aside)
        found.append(results(model, [9, 4]))
    assert before[LinearWithLoRA] == 6
    assert_equal(*found)


HOOKS = {
    "forward": lambda module, said: module.register_forward_hook(
        lambda _, given, y: said.append([given[0], y])
    ),
    "forward_pre": lambda module, said: module.register_forward_pre_hook(
        lambda _, given: said.append([given[0]])
    ),
    "backward": lambda module, said: module.register_full_backward_hook(
        lambda _, dx, dy: said.append([dy[0]])
    ),
    "backward_pre": lambda module, said: module.register_full_backward_pre_hook(
        lambda _, dy: said.append([dy[0]])
    ),
}
WATCHED = [
    "bert",
    "bert.encoder",
    "bert.pooler",
    "bert.encoder.layer.1",
    "bert.encoder.layer.1.attention",
    "bert.encoder.layer.1.attention.self",
    "bert.encoder.layer.1.attention.self.key",
    "bert.encoder.layer.0.attention.self.query",
    "bert.encoder.layer.1.attention.self.query.linear",
    "bert.encoder.layer.0.attention.self.query.lora.lora_A",
    "bert.encoder.layer.1.attention.self.query.lora.dropout",
    "bert.encoder.layer.0.attention.self.dropout",
    "bert.encoder.layer.1.output.LayerNorm",
]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("name", WATCHED)
def test_a_hook_sees_what_it_saw(name, kind):
    found = []
    for model in make_model().train(), make_model().train():
        said = []
        HOOKS[kind](model.get_submodule(name), said)
        if found:
            assert any("has a hook" in note for note in rewrite(model))
        results(model, [9, 4])
        flat = [tensor for tensors in said for tensor in tensors]
        found.append([t for t in flat if isinstance(t, Tensor)])
    assert [t.shape for t in found[0]] == [t.shape for t in found[1]]
    assert found[0] or name == "bert"  # which gives two tensors
    assert not found[0] or max(difference(a, b) for a, b in zip(*found, strict=True)) < 1e-5


def commented(self, x: Tensor) -> Tensor:
    """Another docstring."""
    # A comment.
    return (
        self.linear(x)  # more
        + self.lora(x)
    )


def annotated(self, x, unused: int = 3):
    return self.linear(x) + self.lora(x)


@torch.no_grad()
def decorated(self, x):
    return self.linear(x) + self.lora(x)


def wrapped(method: Callable) -> Callable:
    @functools.wraps(method)
    def wrapper(self, x):
        return 2 * method(self, x)

    return wrapper


def swapped(self, x):
    return self.lora(x) + self.linear(x)


def test_what_counts_as_an_edit():
    lines = fast.PLAIN[LinearWithLoRA]
    assert fast.is_plain(commented, lines)
    assert fast.is_plain(annotated, lines)
    without_source = {}
    exec(f"def forward(self, x):\n    {lines}", without_source)
    others = [decorated, swapped, wrapped(annotated), without_source["forward"]]
    others += [lambda self, x: self.linear(x) + self.lora(x), len, functools.partial(annotated)]
    assert not any(fast.is_plain(method, lines) for method in others)
    assert not fast.is_plain(annotated, lines.replace("+", "-"))


def test_a_source_that_has_changed_since_it_was_imported_counts_as_an_edit(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "some_edited_module.py"
    path.write_text("\n\ndef forward(self, x):\n    return self.linear(x) + self.lora(x)\n")
    import some_edited_module

    path.write_text("(\n'''\n" * 9)
    assert not fast.is_plain(some_edited_module.forward, fast.PLAIN[LinearWithLoRA])


def test_numbers_may_change_after_the_rewriting():
    plain, faster = twins(make_model("all-linear", p=0.5))
    for model in plain, faster:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, LoRALayer):
                module.scaling = 0.3
        model.bert.encoder.layer[0].attention.self.value.lora.scaling = 0.7
        model.train()
    assert_equal(results(plain, [9, 4]), results(faster, [9, 4]))


# Dropout.


@pytest.mark.parametrize("p", [0.1, 0.05, 0.001])
def test_draw_kept(p):
    torch.manual_seed(0)
    draws = [draw_kept(torch.empty(100, 104), p) for _ in range(400)]
    assert torch.stack(draws).unique().tolist() == [0, 1]
    dropped = torch.stack(draws) == 0  # (400, 100, 104)
    assert dropped.float().mean().item() == pytest.approx(p, abs=4e-4)
    eighths = dropped.view(-1, 8).float().mean(0)  # eight numbers come out of one draw
    assert eighths.tolist() == pytest.approx([p] * 8, abs=1e-3)
    both = dropped[:, :, 1:] & dropped[:, :, :-1]  # neighbours are independent
    assert both.float().mean().item() == pytest.approx(p * p, abs=2e-4)
    torch.manual_seed(0)
    kept = draw_kept(torch.empty(1000, 1000), p)
    torch.manual_seed(0)
    assert torch.equal(kept, draw_kept(torch.empty(1000, 1000), p))
    assert not torch.equal(kept, draw_kept(torch.empty(1000, 1000), p))


def cpu_dropout(p: float) -> nn.Module:
    model = nn.Sequential(nn.Dropout(p))
    rewrite(model)
    assert type(model[0]) is CpuDropout
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_in_training_and_in_eval(dtype):
    x = torch.randn(7, 9, dtype=dtype, requires_grad=True)
    dropout = cpu_dropout(0.5)
    torch.manual_seed(0)
    dropped = dropout(x)
    dy = torch.randn(7, 9, dtype=dtype)
    dropped.backward(dy)
    torch.manual_seed(0)
    kept = draw_kept(x, 0.5)
    assert not kept.all() and kept.any()
    assert torch.equal(dropped, x * kept * 2)
    assert torch.equal(x.grad, dy * kept * 2)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(cpu_dropout(0.0)(x), x)
    assert not cpu_dropout(1.0)(x).any()


# Layers with LoRA beside them.


def adapted_linear(out: int, rank: int, p: float, bias: bool = True) -> LinearWithLoRA:
    both = LinearWithLoRA(nn.Linear(24, out, bias=bias), LoRALayer(24, out, rank, 2 * rank, p))
    draw(both.lora)
    return both.double()


@pytest.mark.parametrize("with_dropout", [False, True])
@pytest.mark.parametrize("frozen", [True, False])
def test_hand_written_gradients(with_dropout, frozen):
    """By PyTorch's own finite differences: two layers, and one without an adapter."""
    torch.manual_seed(0)
    ranks, outs = [2, 0, 1], [5, 2, 4]
    shapes = [(out, 4) for out in outs] + [(out,) for out in outs]
    shapes += [(rank, 4) for rank in ranks] + [*zip(outs, ranks, strict=True)]
    weights = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    x = torch.randn(3, 4, dtype=torch.float64)
    kept = torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]) if with_dropout else None
    h = x if kept is None else x * kept
    ys = LinearsPlusLoRA.apply(x, kept, 1.7, F.linear, *weights)
    Ws, bs, As, Bs = kernels.in_four(tuple(weights))
    for y, W, b, A, B in zip(ys, Ws, bs, As, Bs, strict=True):
        assert difference(y, x @ W.T + b + 1.7 * h @ A.T @ B.T) < 1e-12
    for tensor in [*As, *Bs] if frozen else weights:
        tensor.requires_grad_(bool(tensor.numel()))
    path = lambda *given: LinearsPlusLoRA.apply(given[0], kept, 1.7, F.linear, *given[1:])  # noqa: E731
    assert torch.autograd.gradcheck(path, [x.requires_grad_(), *weights])
    # In the first layer x has no gradient, and what is frozen needs none.
    ys = path(x.detach(), *weights)
    assert [y.requires_grad for y in ys] == [True, not frozen, True]
    assert torch.autograd.gradcheck(path, [x.detach(), *weights])


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 7, 24), (8, 24), (24,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_plain_lines_with_the_same_draws(shape, p, bias):
    plain, faster = twins(adapted_linear(16, 3, p, bias))
    assert type(faster) is CpuLinearWithLoRA
    rewrite(plain.lora)  # in the plain lines only the draws are those of the faster form
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    found = []
    for both in plain, faster:
        torch.manual_seed(0)
        y = both(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *both.lora.parameters()])])
    assert_equal(*found, within=1e-12)


def three_layers(p: float, adapters: str) -> nn.ModuleList:
    """Query, key and value, of which those in `adapters` have one, of ranks 2, 3 and 4."""
    layers = nn.ModuleList()
    for i, (name, out) in enumerate(zip("qkv", (16, 8, 24), strict=True)):
        both = adapted_linear(out, 2 + i, p)
        layers.append(both if name in adapters else both.linear)
    return layers


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("adapters", ["q", "qv", "k", "qkv"])
def test_layers_that_read_together(adapters, p):
    plain, faster = twins(three_layers(p, adapters))
    assert fast.are_alike(faster)
    x = torch.randn(5, 7, 24, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    kept = draw_kept(x, p).double() / (1 - p) if p else 1.0
    for layer in plain:  # with the numbers that are kept there, in all of them
        if isinstance(layer, LinearWithLoRA):
            layer.lora.dropout.forward = lambda x: x * kept
    torch.manual_seed(0)
    found = []
    for ys in fast.linears_plus_lora(x, faster), [layer(x) for layer in plain]:
        layers = plain if found else faster
        trained = [q for name, q in layers.named_parameters() if "lora_" in name]
        loss = sum((i + 1) * y.square().sum() for i, y in enumerate(ys))
        found.append([*ys, *torch.autograd.grad(loss, [x, *trained])])
    assert_equal(*found, within=1e-12)


UNLIKE = {
    "heir": lambda layers: become_heir(layers[0]),
    "unknown": lambda layers: layers.insert(1, Nonlinear()),
    "scaling": lambda layers: setattr(layers[0].lora, "scaling", 3.0),
    "dropout": lambda layers: setattr(layers[0].lora.dropout, "p", 0.2),
    "evaluated": lambda layers: layers[0].eval(),
    "without dropout": lambda layers: layers[0].lora.dropout.eval(),
    "no adapters": lambda layers: layers.__delitem__(slice(0, 3, 2)),
}


@pytest.mark.parametrize("how", UNLIKE)
def test_layers_that_are_not_alike_are_asked_one_by_one(how):
    layers = three_layers(0.1, "qv")
    rewrite(layers)
    assert fast.are_alike(layers)
    UNLIKE[how](layers)
    assert not fast.are_alike(layers)


@pytest.mark.parametrize("targets", [["query"], ["query", "value"], ["query", "key", "value"]])
def test_attention_reads_together(targets, monkeypatch):
    """In training each layer but the last reads x once; otherwise every layer by itself."""
    read = []
    plain = fast.linears_plus_lora
    monkeypatch.setattr(
        fast, "linears_plus_lora", lambda x, layers: read.append(len(layers)) or plain(x, layers)
    )
    _, model = twins(make_model(targets, num_hidden_layers=3))
    for mode in True, False:
        model.train(mode)(*inputs(TINY["vocab_size"], [9, 4]))
    n = len(targets)
    assert read == [3, 3, *[1] * n, *[1] * 3 * n]


# Frozen layers.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 24), (8, 24), (24,)], ids=str)
def test_a_frozen_linear_layer(shape, bias):
    """Beside the same numbers in float64; a CPU with oneDNN is needed to tell."""
    assert kernels.ONEDNN
    linear = nn.Linear(24, 16, bias=bias).requires_grad_(False)
    wide = copy.deepcopy(linear).double()
    rewrite(linear)
    assert type(linear) is CpuLinear
    x, dy = torch.randn(*shape), torch.randn(*shape[:-1], 16)
    found = []
    for module in linear, wide:
        x = x.detach().to(module.weight.dtype).requires_grad_()
        y = module(x)
        of_sum = torch.autograd.grad(module(x).sum(), x)
        found.append([y, *torch.autograd.grad(y, x, dy.to(y.dtype)), *of_sum])
    assert_equal(*found)


def test_a_linear_layer_that_is_thawed_gets_its_gradients():
    linear, x = nn.Linear(6, 4).requires_grad_(False), torch.randn(3, 6)
    rewrite(linear)
    for thawed in linear.bias, linear.weight:
        thawed.requires_grad_()
        linear(x).sum().backward()
    assert torch.equal(linear.bias.grad, torch.full((4,), 6.0))
    assert difference(linear.weight.grad, x.sum(0).expand(4, 6)) < 1e-6


def test_few_products_are_kept_by_oneDNN(monkeypatch):
    """By the two variables that oneDNN and PyTorch read; a user's own number stays."""
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8")
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    rewrite(nn.Linear(6, 4).requires_grad_(False), on_cpu=False)
    assert "LRU_CACHE_CAPACITY" not in os.environ
    rewrite(nn.Linear(6, 4).requires_grad_(False))
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "8"
    assert os.environ.pop("LRU_CACHE_CAPACITY") == "64"


def merged_twins(dtype=torch.float32, **sizes):
    """A merged model, and the same with its faster forms, to be packed."""
    plain = merge_lora_weights(make_model(hidden_size=48, **sizes)).eval().requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    packed = copy.deepcopy(plain)
    rewrite(packed)
    return plain, packed


# By oneDNN, which a CPU must have to tell.
@pytest.mark.parametrize("rewritten", [False, True])
def test_packed_layers(rewritten):
    """What a whole table is labelled by."""
    assert kernels.ONEDNN
    plain, packed = merged_twins()
    if not rewritten:
        packed = copy.deepcopy(plain)
    assert not fast.pack(packed)
    found = classes(packed)
    assert found[PackedIntermediate] == 2 and found[PackedOutput] == 4
    assert found[PackedAttention] == (
        1 if rewritten else 0
    )  # the last layer reads q of [CLS] alone
    assert found[PackedLinear] == 2 * 6 + 1 - 2 * found[PackedAttention]  # with the pooler
    with torch.inference_mode():
        for lengths in [9], [9, 5], [40] * 30:
            input_ids, mask = inputs(TINY["vocab_size"], lengths)
            assert difference(plain(input_ids, mask), packed(input_ids, mask)) < 1e-5


def test_layers_that_share_their_attention_are_packed_once():
    plain, packed = merged_twins(num_hidden_layers=3)
    for model in plain, packed:
        layers = model.bert.encoder.layer
        layers[1].attention.self = layers[0].attention.self
    fast.pack(packed)
    input_ids, mask = inputs(TINY["vocab_size"], [9, 5])
    with torch.inference_mode():
        assert difference(plain(input_ids, mask), packed(input_ids, mask)) < 1e-5


def test_packed_layers_in_bfloat16():
    """They err no more than the plain lines do under autocast."""
    exact, _ = merged_twins()
    plain, packed = merged_twins(torch.bfloat16)
    assert not fast.pack(packed)
    assert classes(packed)[PackedLinear] == 2 * 6 - 1 or not mkldnn_has_bfloat16()
    input_ids, mask = inputs(TINY["vocab_size"], [40, 31, 9] * 10)
    with torch.inference_mode():
        wanted = exact(input_ids, mask)
        with torch.autocast("cpu", torch.bfloat16):
            error = difference(packed(input_ids, mask).float(), wanted)
            assert 0 < error < 2 * difference(plain(input_ids, mask).float(), wanted)


def mkldnn_has_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("cls", [bert.BertIntermediate, bert.BertOutput])
def test_a_packed_form_steps_aside_where_its_plain_lines_were_edited(cls, monkeypatch):
    plain, packed = merged_twins()
    edited(cls, monkeypatch)
    (note,) = fast.pack(packed)
    assert note.startswith(f"{cls.__name__}.forward was edited: {cls.__name__} runs its plain")
    assert not any(form in fast.PACKED and issubclass(form, cls) for form in classes(packed))
    input_ids, mask = inputs(TINY["vocab_size"], [9, 5])
    with torch.inference_mode():
        assert difference(plain(input_ids, mask), packed(input_ids, mask)) < 1e-5


def test_another_activation_or_a_hook_is_not_packed_away():
    plain, packed = merged_twins()
    for model in plain, packed:
        model.bert.encoder.layer[0].intermediate.activation = F.relu
        model.bert.encoder.layer[0].output.LayerNorm.register_forward_hook(lambda m, x, y: 2 * y)
    (note,) = fast.pack(packed)
    assert note.startswith("a LayerNorm has a hook")
    assert classes(packed)[PackedIntermediate] == 1 and classes(packed)[PackedOutput] == 3
    input_ids, mask = inputs(TINY["vocab_size"], [9, 5])
    with torch.inference_mode():
        assert difference(plain(input_ids, mask), packed(input_ids, mask)) < 1e-5
