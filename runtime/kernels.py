"""What a CPU computes in fewer passes over the memory, with gradients written by hand.

Dropout by cheaper draws, the products of frozen weights by oneDNN, and layers with LoRA beside
them. These are functions of tensors; fast.py makes modules of them. The letters of the shapes are
those of bert.py.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_kept(x: Tensor, p: float) -> Tensor:
    """What dropout keeps of x: int8, of x's shape, 0 with probability p and 1 elsewhere.

    PyTorch's own Bernoulli draws take a sixth of a training step on a CPU; these cost a tenth of
    them. 64 random bits at a time are cut into eight numbers from -128 to 127. The lowest p · 256
    are dropped. A fraction is rounded up or down at random, so that the rate is p on average.
    """
    bits = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    numbers = bits.view(torch.int8)[: x.numel()].view(x.shape)
    lowest_kept = min(int(p * 256 + torch.rand(()).item()), 255) - 128
    return numbers.ge_(lowest_kept)


class Dropout(torch.autograd.Function):
    """kept · x / (1 - p). By hand, as `kept` is a quarter of what autograd would hold in memory."""

    @staticmethod
    def forward(ctx, x, p):
        kept = draw_kept(x, p)
        ctx.scale = 1 / (1 - p)
        ctx.save_for_backward(kept)
        return kept.to(x.dtype).mul_(x).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, dy):
        (kept,) = ctx.saved_tensors
        return kept.to(dy.dtype).mul_(dy).mul_(ctx.scale), None


# PyTorch takes float32 products by MKL. oneDNN, which comes with it, needs 0.9 of its time on an
# AMD EPYC. Products in bfloat16 are oneDNN's anyway.
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """F.linear(x, W, b), by oneDNN where it is to be had, without gradients."""
    if ONEDNN and x.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")  # (…, in) -> (…, out)
    return F.linear(x, W, b)  # (…, in) -> (…, out)


def packed_product(x: Tensor, packed: Tensor, b: Tensor | None, activation="none") -> Tensor:
    """Wx + b, or an activation of it, by a weight in oneDNN's own order: (…, in) to (…, out)."""
    x = x.to(packed.dtype)
    return torch.ops.mkldnn._linear_pointwise(x, packed, b, activation, [], "none")


def packed_product_plus(x: Tensor, packed: Tensor, b: Tensor, residual: Tensor) -> Tensor:
    """Wx + b + residual, the same way; the residual is (…, out)."""
    residual = residual.to(packed.dtype)
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, b, "add")


def autocast_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


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
        db = dy.sum(0) if ctx.needs_input_grad[2] else None  # (out,)
        return dx, None, db


class LinearsPlusLoRA(torch.autograd.Function):
    """y = Wx + b + scaling · B(A(kept · x)) of each layer that reads x, for T tokens.

    `weights` are first every W, then every b, A and B. A layer without an adapter has A and B of
    rank 0. `multiply` computes Wx + b.

    By hand, because autograd adds up three tensors of x's size that are one here, and takes the
    products with R columns in an order that is three times slower on a CPU. They wait for kept · x
    rather than for numbers, so the A of all layers stand above each other and take it once.
    """

    @staticmethod
    def forward(ctx, x, kept, scaling, multiply, *weights):
        Ws, bs, As, Bs = in_four(weights)
        needed = in_four(ctx.needs_input_grad[4:])
        ctx.scaling = scaling
        ctx.ranks = [len(A) for A in As]
        h = x if kept is None else kept.to(x.dtype).mul_(x)  # (T, in)
        A = torch.cat(As)  # (all R, in)
        z = (A @ h.t()).mul_(scaling)  # (all R, T)
        ys = [multiply(x, W, b) for W, b in zip(Ws, bs, strict=True)]  # (T, out)
        for y, z_one, B in zip(ys, z.split(ctx.ranks), Bs, strict=True):
            y.addmm_(z_one.t(), B.t())  # (T, out)
        for_W = x if any(needed[0]) else None
        ctx.save_for_backward(h, kept, z, A, for_W, *Ws, *Bs)
        if not ctx.needs_input_grad[0]:  # in the first layer: nothing asks for some gradients
            untrained = [not any(layer) for layer in zip(*needed, strict=True)]
            ctx.mark_non_differentiable(*itertools.compress(ys, untrained))
        return tuple(ys)

    @staticmethod
    def backward(ctx, *dys):
        h, kept, z, A, x, *weights = ctx.saved_tensors
        Ws, Bs = weights[: len(dys)], weights[len(dys) :]
        for_W, for_b, _, _ = in_four(ctx.needs_input_grad[4:])
        dz = torch.empty_like(z)  # (all R, T)
        dBs = []
        z_parts, dz_parts = z.split(ctx.ranks), dz.split(ctx.ranks)
        for dy, z_one, dz_one, B in zip(dys, z_parts, dz_parts, Bs, strict=True):
            torch.mm(B.t(), dy.t(), out=dz_one)  # (R, T)
            dBs.append((z_one @ dy).t())  # (out, R)
        dAs = (dz.mul_(ctx.scaling) @ h).split(ctx.ranks)  # (R, in)
        dWs = [dy.t() @ x if asked else None for dy, asked in zip(dys, for_W, strict=True)]
        dbs = [dy.sum(0) if asked else None for dy, asked in zip(dys, for_b, strict=True)]
        dx = None
        if ctx.needs_input_grad[0]:  # nothing below the first layer is trained
            dx, *others = [product(dy, W.t()) for dy, W in zip(dys, Ws, strict=True)]  # (T, in)
            for other in others:
                dx.add_(other)
            if kept is None:
                dx.addmm_(dz.t(), A)
            else:
                dx.add_((dz.t() @ A).mul_(kept))
        return dx, None, None, None, *dWs, *dbs, *dAs, *dBs


def in_four(values: tuple) -> list[tuple]:
    """What belongs to every W, to every b, to every A and to every B."""
    n = len(values) // 4
    return [values[:n], values[n : 2 * n], values[2 * n : 3 * n], values[3 * n :]]
