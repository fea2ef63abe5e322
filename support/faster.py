"""The same results, sooner: what a plain line of the five files says, in fewer passes over the memory of a CPU.

The five files name each of these beside its plain form, and tests/support/test_faster.py holds the two equal:

    plain line                       on a CPU                   on a GPU, and under torch.compile
    Dropout.forward                  dropout                    the plain line
    LinearWithLoRA.forward           linear_plus_lora           the plain line
    BertSelfAttention.forward:       read_together, in          the plain line
      query, key and value           training
    RoutedLinear.forward             add_low_rank               the plain line
    BertSelfAttention.forward:       the plain line in          PyTorch's fused kernel
      attention itself               training; else fused
    nn.Linear.forward                frozen_linear, where       the plain line
                                     training froze W; pack,
                                     where a table is labelled

To try a change of LoRALayer or Dropout on a CPU, set ENABLED to False: then their plain lines run there too.
The letters of the shapes are those of bert.py.
"""

import contextlib
import functools
import itertools
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ENABLED = True


def on_cpu(x: Tensor) -> bool:
    """Whether the forms below are to be taken for x: on a CPU, outside torch.compile."""
    return ENABLED and x.device.type == "cpu" and not torch.compiler.is_compiling()


# Dropout.


def draw_kept(x: Tensor, p: float) -> Tensor:
    """What dropout keeps of x: an int8 tensor of its shape that is 0 with probability p, and 1 elsewhere.

    PyTorch's own Bernoulli draws take a sixth of a training step on a CPU; these cost a tenth of them. 64 random bits
    at a time are cut into eight numbers from -128 to 127, of which the lowest p · 256 are dropped. A fraction of one
    is rounded up or down at random, so that the rate is p on average.
    """
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    lowest_kept = min(int(p * 256 + torch.rand(()).item()), 255) - 128
    return bits.view(torch.int8)[: x.numel()].view(x.shape).ge_(lowest_kept)


class Dropout(torch.autograd.Function):
    """kept · x / (1 - p). By hand, as `kept` is a quarter of what autograd would hold in memory for the way back."""

    @staticmethod
    def forward(ctx, x, p):
        kept, ctx.scale = draw_kept(x, p), 1 / (1 - p)
        ctx.save_for_backward(kept)
        return kept.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, dy):
        (kept,) = ctx.saved_tensors
        return kept.to(dy.dtype).mul_(dy).mul_(ctx.scale), None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """F.dropout(x, p, training), with cheaper draws."""
    return Dropout.apply(x, p) if training and p else x


# A frozen linear layer.

# PyTorch takes float32 products by MKL; oneDNN, which comes with it too, needs 0.9 of its time on an AMD EPYC.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """F.linear(x, W, b), by oneDNN where it is to be had, without gradients."""
    if ONEDNN and x.dtype == torch.float32:  # bfloat16 products are oneDNN's already
        return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")  # (…, in) -> (…, out)
    return F.linear(x, W, b)  # (…, in) -> (…, out)


class Frozen(torch.autograd.Function):
    """Wx + b for T tokens at once, and its gradients for x and b."""

    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(W)
        return product(x, W, b)

    @staticmethod
    def backward(ctx, dy):
        (W,) = ctx.saved_tensors
        dx = product(dy, W.t()) if ctx.needs_input_grad[0] else None  # (T, in)
        return dx, None, dy.sum(0) if ctx.needs_input_grad[2] else None


def frozen_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """linear(x), in the type that autocast asks for; by the plain line if W is trained after all."""
    W, b = linear.weight, linear.bias
    if W.requires_grad or not on_cpu(x):
        return F.linear(x, W, b)  # (…, in) -> (…, out)
    dtype = autocast_dtype(x)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (T, in)
    return Frozen.apply(rows, W.to(dtype), None if b is None else b.to(dtype)).view(
        *x.shape[:-1], -1
    )  # (…, out)


def autocast_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def speed_up_frozen(model: nn.Module) -> None:
    """From here on the frozen float32 linear layers take frozen_linear, on a CPU."""
    for module in model.modules():
        if (
            type(module) is nn.Linear
            and not module.weight.requires_grad
            and module.weight.dtype == torch.float32
        ):
            module.forward = functools.partial(frozen_linear, module)
            # oneDNN keeps what it compiled for a product and a number of tokens, half a MiB each, a thousand of them.
            # Here the last 64 do, as a step has six products and a new one takes a third of a millisecond; in bfloat16,
            # where oneDNN takes A's and B's products too, so few would cost a tenth of the time.
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


# A frozen linear layer with LoRA beside it.


class FrozenPlusLowRank(torch.autograd.Function):
    """y = Wx + b + scaling · B(A(kept · x)) of each layer that reads x, and the gradients for x, A and B, for T tokens.

    By hand, because autograd adds up three tensors of x's size that are one here, and takes the products with
    R columns in an order that is three times slower on a CPU. They wait for kept · x rather than for numbers, so the A
    of all layers stand above each other and take it once. W and b are frozen and get no gradient. A layer without an
    adapter has A and B of rank 0.
    """

    @staticmethod
    def forward(ctx, x, kept, scaling, times, *weights):
        Ws, bs, As, Bs = (weights[i::4] for i in range(4))
        ctx.ranks, ctx.scaling = [len(A) for A in As], scaling
        h = x if kept is None else kept.to(x.dtype).mul_(x)  # (T, in)
        A = torch.cat(As)  # (all R, in)
        z = (A @ h.t()).mul_(scaling)  # (all R, T)
        ys = tuple(times(x, W, b) for W, b in zip(Ws, bs, strict=True))  # (T, out)
        for y, z_one, B in zip(ys, z.split(ctx.ranks), Bs, strict=True):
            y.addmm_(z_one.t(), B.t())  # (T, out)
        ctx.save_for_backward(h, kept, z, A, *Ws, *Bs)
        if not ctx.needs_input_grad[
            0
        ]:  # in the first layer: nothing asks for the gradients of these
            ctx.mark_non_differentiable(*(y for y, R in zip(ys, ctx.ranks, strict=True) if not R))
        return ys

    @staticmethod
    def backward(ctx, *dys):
        h, kept, z, A, *weights = ctx.saved_tensors
        Ws, Bs = weights[: len(dys)], weights[len(dys) :]
        dz, dBs = torch.empty_like(z), []  # (all R, T)
        for dy, z_one, dz_one, B in zip(
            dys, z.split(ctx.ranks), dz.split(ctx.ranks), Bs, strict=True
        ):
            torch.mm(B.t(), dy.t(), out=dz_one)  # (R, T)
            dBs.append((z_one @ dy).t())  # (out, R)
        dAs = (dz.mul_(ctx.scaling) @ h).split(ctx.ranks)  # (R, in)
        dx = None
        if ctx.needs_input_grad[0]:  # nothing below the first layer is trained
            dx, *others = (product(dy, W.t()) for dy, W in zip(dys, Ws, strict=True))  # (T, in)
            for other in others:
                dx.add_(other)
            dx = (
                dx.addmm_(dz.t(), A) if kept is None else dx.add_((dz.t() @ A).mul_(kept))
            )  # (T, in)
        return (
            dx,
            None,
            None,
            None,
            *itertools.chain(*((None, None, dA, dB) for dA, dB in zip(dAs, dBs, strict=True))),
        )


def linear_plus_lora(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """linear(x) + lora(x) of each LinearWithLoRA, linear(x) of an nn.Linear among them: (…, in) to (…, out).

    They compute in the type that autocast asks for, and all adapters read the same dropout of x. Outside training Wx is
    the base's own product, so that a B of zeros leaves every bit as it is.
    """
    loras, dtype = [getattr(layer, "lora", None) for layer in layers], autocast_dtype(x)
    first = next(lora for lora in loras if lora is not None)
    p, times = (first.dropout.p, product) if first.training else (0.0, F.linear)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (T, in)
    kept = draw_kept(rows, p) if p else None  # (T, in)
    weights = []
    for layer, lora in zip(layers, loras, strict=True):
        if lora is None:
            W = layer.weight
            weights += [W, layer.bias, W.new_empty(0, W.shape[1]), W.new_empty(W.shape[0], 0)]
        else:
            weights += [
                layer.linear.weight,
                layer.linear.bias,
                lora.lora_A.weight,
                lora.lora_B.weight,
            ]
    weights = (None if w is None else w.to(dtype) for w in weights)
    ys = FrozenPlusLowRank.apply(rows, kept, first.scaling / (1 - p), times, *weights)  # (T, out)
    return [y.view(*x.shape[:-1], -1) for y in ys]  # (…, out)


def read_together(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """[layer(x) for layer in layers], which are linear_plus_lora of all where that is the same and saves work.

    That is where some have adapters, alike but for A and B, the rest is frozen, and nobody watches a layer by a hook.
    The paper's code too drops the same numbers for query and value.
    """
    adapted = [
        layer for layer in layers if type(layer).__name__ == "LinearWithLoRA"
    ]  # no heir, which may compute more
    linears = [layer.linear if layer in adapted else layer for layer in layers]
    alike = {(layer.lora.training, layer.lora.dropout.p, layer.lora.scaling) for layer in adapted}
    plain = all(type(linear) is nn.Linear for linear in linears)
    thawed = any(parameter.requires_grad for linear in linears for parameter in linear.parameters())
    merged = any(layer.unmerged_weight is not None for layer in adapted)
    watched = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    if len(alike) == 1 and plain and not (thawed or merged or watched):
        return linear_plus_lora(x, *layers)
    return [layer(x) for layer in layers]


def add_low_rank(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float) -> None:
    """y += scaling · B(A(x)), with y (…, out) a view that can be flattened without a copy; gradients are not kept."""
    z = F.linear(x, A).flatten(0, -2)  # (T, R)
    y.flatten(0, -2).addmm_(z, B.t(), alpha=scaling)  # (T, out)


# Linear layers that are only read.


def pack(model: nn.Module) -> None:
    """From here on oneDNN takes the products of the linear layers, of a float32 model on a CPU that is not trained.

    It wants a weight in an order of its own, and puts it so before each product unless that is done once: here. On an
    AMD EPYC its products then are 1.15 times as fast as those that PyTorch takes otherwise (docs/scaling.md). Where
    this PyTorch has no oneDNN the model stays as it is. The plain weights of the layers are given up.
    """
    if not (ENABLED and ONEDNN):
        return
    for name, linear in model.named_modules():
        if (
            type(linear) is nn.Linear
            and name != "classifier"
            and linear.weight.dtype == torch.float32
        ):
            W = torch.ops.mkldnn._reorder_linear_weight(
                linear.weight.detach(), 1024
            )  # for about so many tokens
            linear.forward = functools.partial(product, W=W, b=linear.bias)
            linear.weight = None


# Models that a file fills.


class NoInit(TorchFunctionMode):
    """Inside this context the functions of torch.nn.init do nothing: on meta tensors they would import for a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (
            None
            if getattr(function, "__module__", None) == "torch.nn.init"
            else function(*args, **(kwargs or {}))
        )


@contextlib.contextmanager
def shapes_only():
    """Modules made inside have shapes but no numbers: nothing is drawn or allocated that a file then replaces."""
    with torch.device("meta"), NoInit():
        yield
