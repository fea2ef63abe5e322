"""Each faster form against the plain one: values, gradients and random draws."""

import copy

import pytest
import torch
from helpers import adapted, difference, draw, gradients, inputs
from torch import nn

from bert import BertForSequenceClassification, Dropout
from lora import LinearWithLoRA, LoRALayer
from support import devices, faster
from support.faster import FrozenPlusLowRank, draw_kept


@pytest.mark.parametrize("p", [0.1, 0.05, 0.001])
def test_draw_kept(p):
    torch.manual_seed(0)
    draws = [draw_kept(torch.empty(100, 104), p) for _ in range(400)]
    assert torch.stack(draws).unique().tolist() == [0, 1]
    dropped = torch.stack(draws) == 0  # (400, 100, 104)
    assert dropped.float().mean().item() == pytest.approx(p, abs=4e-4)
    eighths = dropped.view(-1, 8).float().mean(0)  # eight numbers come out of one draw
    assert eighths.tolist() == pytest.approx([p] * 8, abs=1e-3)
    pairs = (
        (dropped[:, :, 1:] & dropped[:, :, :-1]).float().mean().item()
    )  # neighbours are independent
    assert pairs == pytest.approx(p * p, abs=2e-4)
    torch.manual_seed(0)
    kept = draw_kept(torch.empty(1000, 1000), p)
    torch.manual_seed(0)
    assert torch.equal(kept, draw_kept(torch.empty(1000, 1000), p))
    assert not torch.equal(kept, draw_kept(torch.empty(1000, 1000), p))


def test_dropout_in_training_and_in_eval():
    x, dropout = torch.randn(7, 9, requires_grad=True), Dropout(0.4)
    torch.manual_seed(0)
    dropped = dropout(x)
    dropped.backward(dy := torch.randn(7, 9))
    torch.manual_seed(0)
    kept = draw_kept(x, 0.4)
    assert not kept.all() and kept.any()
    assert difference(dropped, x * kept / 0.6) < 1e-6
    assert difference(x.grad, dy * kept / 0.6) < 1e-6
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_linear_with_lora_is_the_sum_of_its_parts(use_rslora):
    linear = nn.Linear(20, 30)
    path = LoRALayer(20, 30, rank=4, alpha=12, dropout=0.0, use_rslora=use_rslora)
    assert path.scaling == (6 if use_rslora else 3)
    assert not path.lora_B.weight.any()
    draw(path)
    both, found = LinearWithLoRA(linear, path).double(), []
    assert not linear.weight.requires_grad
    assert not linear.bias.requires_grad
    for forward in both, lambda x: linear(x) + path(x):
        torch.manual_seed(0)
        x = torch.randn(2, 5, 20, dtype=torch.float64, requires_grad=True)
        y = forward(x)
        grads = torch.autograd.grad(
            y, [x, path.lora_A.weight, path.lora_B.weight], torch.randn_like(y)
        )
        found.append([y, *grads])
    assert all(difference(a, b) < 1e-12 for a, b in zip(*found, strict=True))
    assert difference(x @ path.delta().T, path(x)) < 1e-12


@pytest.mark.parametrize("with_dropout", [False, True])
def test_hand_written_gradients(with_dropout):
    torch.manual_seed(0)
    x, W, b, A, B = (
        torch.randn(*shape, dtype=torch.float64) for shape in [(3, 4), (5, 4), (5,), (2, 4), (5, 2)]
    )
    kept = torch.tensor([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]) if with_dropout else None
    y = FrozenPlusLowRank.apply(x, kept, 1.7, nn.functional.linear, W, b, A, B)[0]
    assert difference(y, x @ W.T + b + 1.7 * (x if kept is None else x * kept) @ A.T @ B.T) < 1e-12
    trained = [tensor.requires_grad_() for tensor in (x, A, B)]
    path = lambda x, A, B: FrozenPlusLowRank.apply(x, kept, 1.7, nn.functional.linear, W, b, A, B)
    assert torch.autograd.gradcheck(path, trained)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 7, 24), (8, 24), (24,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_plain_lines_are_equal_with_dropout_too(monkeypatch, shape, p, bias):
    """In the plain line only the draws are those of the faster form, so that both keep the same
    numbers."""
    both = LinearWithLoRA(
        nn.Linear(24, 16, bias=bias), LoRALayer(24, 16, rank=3, alpha=6, dropout=p)
    ).double()
    draw(both.lora)
    x = torch.randn(*shape, dtype=torch.float64).requires_grad_()
    found = []
    for plain in False, True:
        if plain:
            monkeypatch.setattr(faster, "ENABLED", False)
            monkeypatch.setattr(faster, "linear_plus_lora", None)
            monkeypatch.setattr(
                both.lora.dropout, "forward", lambda x: faster.dropout(x, p, training=True)
            )
        torch.manual_seed(0)
        y = both(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *both.lora.parameters()])])
    assert all(difference(a, b) < 1e-12 for a, b in zip(*found, strict=True))


def three_layers(p: float, adapters: str) -> list[nn.Module]:
    """A query, key and value of 24 features, of which those in `adapters` have one, of ranks 2, 3
    and 4."""
    layers = [nn.Linear(24, out).requires_grad_(False) for out in (16, 8, 24)]
    for i, name in enumerate("qkv"):
        if name in adapters:
            rank = 2 + i
            layers[i] = LinearWithLoRA(
                layers[i], LoRALayer(24, layers[i].out_features, rank, 2 * rank, p)
            )
            draw(layers[i].lora)
    return [layer.double() for layer in layers]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("adapters", ["q", "qv", "k", "qkv"])
def test_layers_that_read_together_are_the_plain_lines(monkeypatch, adapters, p):
    layers = three_layers(p, adapters)
    x = torch.randn(5, 7, 24, dtype=torch.float64).requires_grad_()
    trained = [
        parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad
    ]
    torch.manual_seed(0)
    kept, found = (
        draw_kept(x.detach().flatten(0, 1), p).view(x.shape).double() / (1 - p) if p else 1.0,
        [],
    )
    for plain in False, True:
        if plain:  # with the numbers that were kept before, in all of them
            monkeypatch.setattr(faster, "ENABLED", False)
            for layer in layers:
                if hasattr(layer, "lora"):
                    monkeypatch.setattr(layer.lora.dropout, "forward", lambda x: x * kept)
        torch.manual_seed(0)
        ys = [layer(x) for layer in layers] if plain else faster.read_together(x, *layers)
        loss = sum((i + 1) * y.square().sum() for i, y in enumerate(ys))
        found.append([*ys, *torch.autograd.grad(loss, [x, *trained])])
    assert all(difference(a, b) < 1e-12 for a, b in zip(*found, strict=True))


class Heir(LinearWithLoRA):
    pass


def unlike(layers: list[nn.Module], how: str) -> None:
    """Something for which the layers must be asked one by one."""
    if how == "merged":
        layers[0].merge_weights()
    elif how == "hook":
        layers[1].register_forward_hook(lambda *_: None)
    elif how in ("weight", "bias"):  # is trained after all
        layers[1].get_parameter(how).requires_grad_()
    elif how == "heir":
        layers[0].__class__ = Heir
    elif how == "scaling":
        layers[0].lora.scaling = 3.0
    elif how == "dropout":
        layers[0].lora.dropout.p = 0.2
    elif how == "evaluated":
        layers[0].eval()


@pytest.mark.parametrize(
    "how", ["", "merged", "hook", "weight", "bias", "heir", "scaling", "dropout", "evaluated"]
)
def test_layers_that_are_not_alike_are_asked_one_by_one(monkeypatch, how):
    layers, together = three_layers(0.0, "qv"), []
    unlike(layers, how)
    plain = faster.linear_plus_lora
    monkeypatch.setattr(
        faster,
        "linear_plus_lora",
        lambda x, *layers: together.append(len(layers)) or plain(x, *layers),
    )
    x = torch.randn(5, 24, dtype=torch.float64)
    torch.manual_seed(0)
    ys = faster.read_together(x, *layers)
    assert max(together) == (1 if how else 3)
    torch.manual_seed(0)
    assert all(difference(y, layer(x)) < 1e-12 for y, layer in zip(ys, layers, strict=True))


def test_a_model_without_the_faster_forms_gives_the_same(minilm, monkeypatch):
    model, (input_ids, mask) = adapted(minilm, "all-linear"), inputs(30522, [14, 9, 2])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    found = []
    for enabled in True, False:
        monkeypatch.setattr(faster, "ENABLED", enabled)
        logits = model.train()(input_ids, mask)
        logits.logsumexp(1).mean().backward()
        found.append([logits, *gradients(model).values()])
        model.zero_grad()
    assert all(difference(a, b) < 1e-5 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 24), (8, 24), (24,)], ids=str)
def test_a_frozen_linear_layer_is_the_plain_one(shape, bias):
    """Beside the same numbers in float64; a CPU with oneDNN is needed to tell."""
    assert faster.ONEDNN
    linear, x = nn.Linear(24, 16, bias=bias).requires_grad_(False), torch.randn(*shape)
    wide, dy, found = copy.deepcopy(linear).double(), torch.randn(*shape[:-1], 16), []
    faster.speed_up_frozen(nn.Sequential(linear))
    assert "forward" in vars(linear)
    for module in linear, wide:
        x = x.detach().to(module.weight.dtype).requires_grad_()
        y = module(x)
        found.append(
            [
                y,
                *torch.autograd.grad(y, x, dy.to(y.dtype)),
                *torch.autograd.grad(module(x).sum(), x),
            ]
        )
    assert all(difference(a, b) < 1e-5 for a, b in zip(*found, strict=True))


def test_a_linear_layer_that_is_thawed_gets_its_gradients():
    linear, x = nn.Linear(6, 4).requires_grad_(False), torch.randn(3, 6)
    faster.speed_up_frozen(nn.Sequential(linear))
    for thawed in linear.bias, linear.weight:
        thawed.requires_grad_()
        linear(x).sum().backward()
    assert torch.equal(linear.bias.grad, torch.full((4,), 6.0))
    assert difference(linear.weight.grad, x.sum(0).expand(4, 6)) < 1e-6


def test_training_takes_the_faster_frozen_layers(minilm):
    model = adapted(minilm, ["query", "value"])
    devices.place(model, [], "cpu", "float32", "no")
    faster_ones = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if "forward" in vars(module)
    }
    assert faster_ones == {
        "key",
        "dense",
        "linear",
    }  # and not the classifier, A and B, which are trained


@torch.no_grad()
def test_adding_the_path_to_some_rows_is_the_sum():
    lora, x, y = (
        LoRALayer(24, 16, rank=3, alpha=6, dropout=0.5).eval(),
        torch.randn(6, 5, 24),
        torch.randn(6, 5, 16),
    )
    draw(lora)
    expected = y.clone()
    expected[2:4] += lora(x[2:4])
    faster.add_low_rank(y[2:4], x[2:4], lora.lora_A.weight, lora.lora_B.weight, lora.scaling)
    assert difference(y, expected) < 1e-6


def test_packed_linear_layers_are_the_plain_ones(minilm):
    """What a whole table is labelled by, beside the plain products; a CPU with oneDNN is needed to
    tell."""
    assert torch.backends.mkldnn.is_available()
    plain, packed = (
        BertForSequenceClassification.from_pretrained(minilm, num_labels=3) for _ in range(2)
    )
    packed.load_state_dict(plain.state_dict())
    faster.pack(packed.requires_grad_(False))
    assert (
        sum("forward" in vars(module) for module in packed.modules()) == 6 * 6 + 1
    )  # of the layers, and the pooler
    with torch.inference_mode():
        for lengths in [9], [9, 5], [40] * 30:
            input_ids, mask = inputs(30522, lengths)
            assert difference(plain(input_ids, mask), packed(input_ids, mask)) < 1e-5
