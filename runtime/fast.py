"""The same results, sooner: a faster form is a rewriting of a finished model, never a branch.

    for note in rewrite(model):  # rewrite(model, on_cpu=False) on a GPU and for torch.compile
        print(note)

bert.py and lora.py hold the plain lines alone. The subclasses below compute the same in less time.
rewrite puts them in place by assigning `module.__class__`: names, parameters, the state dict and
the optimizer's references stay as they are.

    plain form                    faster form
    the last BertLayer            ClsOnlyLayer
    BertSelfAttention             FastAttention
    LinearWithLoRA, LoRALayer     CpuLinearWithLoRA
    nn.Linear, if frozen          CpuLinear
    nn.Dropout                    CpuDropout

pack goes further with a model that is merged and only read:

    FastAttention                 PackedAttention, but for the last layer
    BertIntermediate, BertOutput  PackedIntermediate, PackedOutput
    nn.Linear                     PackedLinear

They were written for the lines in PLAIN. Where one of these was edited in its file, where a module
has a hook of its own or is of a class unknown here, the form steps aside, so that every edit takes
effect. Numbers may change after the rewriting: a scaling, a rate of dropout, what is trained.
Hooks, and layers of other kinds, must be there before it. The letters of the shapes are those of
bert.py.
"""

import ast
import functools
import inspect
import os
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bert
from bert import BertForSequenceClassification, BertModel, BertSelfAttention
from lora import LinearWithLoRA, LoRALayer
from runtime import kernels

PLAIN: dict[type[nn.Module], str] = {
    LoRALayer: "return self.lora_B(self.lora_A(self.dropout(x))) * self.scaling",
    LinearWithLoRA: "return self.linear(x) + self.lora(x)",
    BertSelfAttention: """
        q = self.split_heads(self.query(x))
        k = self.split_heads(self.key(x))
        v = self.split_heads(self.value(x))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        probabilities = self.dropout(scores.softmax(-1))
        context = probabilities @ v
        return context.transpose(1, 2).flatten(2)""",
    bert.BertOutput: "return self.LayerNorm(self.dropout(self.dense(x)) + residual)",
    bert.BertAttention: "return self.output(self.self(x, mask), residual=x)",
    bert.BertIntermediate: "return self.activation(self.dense(x))",
    bert.BertLayer: """
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), residual=x)""",
    bert.BertEncoder: """
        for layer in self.layer:
            x = layer(x, mask)
        return x""",
    bert.BertPooler: "return torch.tanh(self.dense(x[:, 0]))",
    BertModel: """
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids, token_type_ids)
        x = self.encoder(x, mask)
        return x, self.pooler(x)""",
    BertForSequenceClassification: """
        _, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        return self.classifier(self.dropout(pooled))""",
}
Layer = nn.Linear | LinearWithLoRA
TORCH = {nn.Dropout, nn.LayerNorm, nn.Linear}  # PyTorch's own, which nobody edits
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


class ClsOnlyLayer(bert.BertLayer):
    """The row of [CLS] alone, (B, S, D) to (B, 1, D), where nobody reads another one.

    It is exact: that row attends to all tokens, and after attention each row is computed without
    the others. Only the last layer may leave the others out: a next one would attend to them.
    """

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        cls = x[:, :1]  # (B, 1, D)
        attention = self.attention.self
        assert isinstance(attention, FastAttention)
        q = attention.query(cls)  # (B, 1, D)
        k = attention.key(x)  # (B, S, D)
        v = attention.value(x)  # (B, S, D)
        context = attention.attend(q, k, v, mask)  # (B, 1, D)
        attended = self.attention.output(context, residual=cls)  # (B, 1, D)
        return self.output(self.intermediate(attended), residual=attended)  # (B, 1, D)


class FastAttention(BertSelfAttention):
    """PyTorch's fused kernel; in training on a CPU, where that is slower, the plain lines.

    There query, key and value also read x together, if their adapters are alike. They share one
    dropout then, as in the code of LoRA's paper.
    """

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        layers = [self.query, self.key, self.value]
        if self.training and are_alike(layers):
            q, k, v = linears_plus_lora(x, layers)  # (B, S, D)
        else:
            q, k, v = [layer(x) for layer in layers]  # (B, S, D)
        return self.attend(q, k, v, mask)  # (B, S, D)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """`q` (B, S, D) or (B, 1, D) attends to `k` and `v` (B, S, D); the result is as `q`."""
        q = self.split_heads(q)  # (B, H, S or 1, d)
        k = self.split_heads(k)  # (B, H, S, d)
        v = self.split_heads(v)  # (B, H, S, d)
        if self.training and q.device.type == "cpu":
            # In bfloat16 too: oneDNN's products of many small matrices are slower than MKL's.
            dtype = torch.promote_types(q.dtype, torch.float32)
            with torch.autocast("cpu", enabled=False):
                scores = (q.to(dtype) @ k.to(dtype).transpose(-2, -1)).mul_(q.shape[-1] ** -0.5)
                if mask is not None:
                    scores = scores.masked_fill(~mask, -torch.inf)  # (B, H, S or 1, S)
                context = self.dropout(scores.softmax(-1)) @ v.to(dtype)  # (B, H, S or 1, d)
        else:
            p = dropout_rate(self)
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return context.transpose(1, 2).flatten(2)  # (B, S or 1, D)


def are_alike(layers: Sequence[Layer]) -> bool:
    """Whether some of these layers have adapters, alike except for A and B, and none is unknown."""
    loras = [layer.lora for layer in layers if type(layer) is CpuLinearWithLoRA]
    linears = [layer for layer in layers if type(layer) in (nn.Linear, CpuLinear)]
    settings = {(dropout_rate(lora), lora.scaling) for lora in loras}
    return len(settings) == 1 and len(loras) + len(linears) == len(layers)


def dropout_rate(module: BertSelfAttention | LoRALayer) -> float:
    return module.dropout.p if module.dropout.training else 0.0


class CpuDropout(nn.Dropout):
    """Dropout with cheaper draws."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1:
            return kernels.Dropout.apply(x, self.p)
        return super().forward(x)


class CpuLinear(nn.Linear):
    """A frozen layer by oneDNN, in the type that autocast asks for."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad:  # it is trained after all
            return super().forward(x)
        dtype = kernels.autocast_dtype(x)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (T, in)
        W = self.weight.to(dtype)
        b = None if self.bias is None else self.bias.to(dtype)
        return kernels.Frozen.apply(rows, W, b).view(*x.shape[:-1], -1)  # (…, out)


class PackedLinear(nn.Linear):
    """A layer that is only read, with its weight in the order that oneDNN wants, in `packed`."""

    packed: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return kernels.packed_product(x, self.packed, self.bias)  # (…, in) -> (…, out)


class PackedAttention(FastAttention):
    """Query, key and value by one product."""

    qkv: PackedLinear

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, S, D)
        return self.attend(q, k, v, mask)  # (B, S, D)


class PackedIntermediate(bert.BertIntermediate):
    """GELU inside the product."""

    dense: PackedLinear

    def forward(self, x: Tensor) -> Tensor:
        return kernels.packed_product(x, self.dense.packed, self.dense.bias, "gelu")  # (B, S, I)


class PackedOutput(bert.BertOutput):
    """The residual added inside the product."""

    dense: PackedLinear

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        packed, bias = self.dense.packed, self.dense.bias
        return self.LayerNorm(kernels.packed_product_plus(x, packed, bias, residual))  # (B, S, D)


class CpuLinearWithLoRA(LinearWithLoRA):
    """linear(x) + lora(x), with gradients written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return linears_plus_lora(x, [self])[0]  # (…, out)


def linears_plus_lora(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """linear(x) + lora(x) of each LinearWithLoRA, linear(x) of an nn.Linear: (…, in) to (…, out).

    They compute in the type that autocast asks for, and all adapters read the same dropout of x.
    Outside training Wx is the base's own product, so that a B of zeros leaves every bit as it is.
    """
    loras = [layer.lora if isinstance(layer, LinearWithLoRA) else None for layer in layers]
    first = next(lora for lora in loras if lora is not None)
    dtype = kernels.autocast_dtype(x)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (T, in)
    p = dropout_rate(first)
    kept = kernels.draw_kept(rows, p) if p else None  # (T, in)
    Ws, bs, As, Bs = [], [], [], []
    for layer, lora in zip(layers, loras, strict=True):
        linear = layer.linear if isinstance(layer, LinearWithLoRA) else layer
        W = linear.weight  # (out, in)
        Ws.append(W)
        bs.append(linear.bias)
        As.append(W.new_empty(0, W.shape[1]) if lora is None else lora.lora_A.weight)  # (R, in)
        Bs.append(W.new_empty(W.shape[0], 0) if lora is None else lora.lora_B.weight)  # (out, R)
    weights = [None if w is None else w.to(dtype) for w in (*Ws, *bs, *As, *Bs)]
    multiply = kernels.product if first.training else F.linear
    ys = kernels.LinearsPlusLoRA.apply(
        rows, kept, first.scaling / (1 - p), multiply, *weights
    )  # (T, out)
    return [y.view(*x.shape[:-1], -1) for y in ys]  # (…, out)


# The rewriting.

# How many times slower a step is where a form steps aside, or of a packed one an answer: MiniLM on
# two cores of an AMD EPYC.
FORMS: dict[type[nn.Module], float] = {
    ClsOnlyLayer: 1.1,
    FastAttention: 1.05,
    CpuLinearWithLoRA: 1.2,
    CpuLinear: 1.5,
    CpuDropout: 1.2,
    PackedLinear: 1.15,
    PackedAttention: 1.01,
    PackedIntermediate: 1.03,
    PackedOutput: 1.02,
}

PACKED = {PackedLinear, PackedAttention, PackedIntermediate, PackedOutput}

# oneDNN and PyTorch both keep what oneDNN compiled for a product and a number of tokens, up to half
# a MiB each, and each up to 1,024 of them. 64 are enough here: a step of MiniLM on reviews takes as
# long by them and 0.90 of the memory in float32, 0.53 in bfloat16, whose thin products are oneDNN's
# too.
KEPT_PRODUCTS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"


def rewrite(model: nn.Module, on_cpu: bool = True) -> list[str]:
    """Puts the faster forms in place, in a model that is finished and on its device.

    `on_cpu` is False for a GPU, and for what torch.compile is to compile. Returns a line for each
    form that stepped aside and why, to be printed. In a BertForSequenceClassification the last
    layer then computes the row of [CLS] alone, also where model.bert is called by itself.
    """
    notes = []
    if on_cpu:
        for limit in KEPT_PRODUCTS:
            os.environ.setdefault(limit, "64")
    for module in reversed([*model.modules()]):  # what is inside comes first
        inside = [*module.modules()]
        if type(module) in FORMS:
            continue
        if isinstance(module, BertSelfAttention):
            parts = [module, getattr(module, "dropout", module)]
            notes += replace(module, FastAttention, parts, inside)
        elif on_cpu and isinstance(module, LinearWithLoRA):
            notes += replace(module, CpuLinearWithLoRA, inside)
        elif on_cpu and isinstance(module, nn.Linear) and is_frozen(module):
            notes += replace(module, CpuLinear, inside)
        elif on_cpu and isinstance(module, nn.Dropout):
            notes += replace(module, CpuDropout, inside)
    if isinstance(model, BertForSequenceClassification):
        notes += compute_cls_alone(model.bert, readers=[model])
    return [*dict.fromkeys(notes)]


def compute_cls_alone(model: BertModel, readers: Iterable[nn.Module] = ()) -> list[str]:
    """Lets the last layer compute [CLS] alone, if the pooler and `readers` read no other row.

    Attention must have its faster form already. Returns what rewrite returns.
    """
    last = model.encoder.layer[-1]
    pooler = getattr(model, "pooler", model)
    return replace(last, ClsOnlyLayer, [*readers, model, model.encoder, pooler, *last.modules()])


def pack(model: nn.Module) -> list[str]:
    """Lets oneDNN take the products of a merged model on a CPU that is not trained.

    It wants a weight in an order of its own, and puts it so before each product unless that is
    done once: here. It also adds a residual and takes GELU while a result is at hand. What each
    gives stands in docs/scaling.md. Where this PyTorch has no oneDNN, or none for the type of the
    weights, the model stays as it is. The plain weights are given up. Returns what rewrite does.
    """
    notes = []
    for layer in [module for module in model.modules() if isinstance(module, bert.BertLayer)]:
        attention = layer.attention.self
        if type(attention) is FastAttention and type(layer) is not ClsOnlyLayer:
            linears = [attention.query, attention.key, attention.value]
            if all(map(is_packable, linears)):
                attention.qkv = joined(linears)
                del attention.query, attention.key, attention.value
                attention.__class__ = PackedAttention
        intermediate = layer.intermediate
        if intermediate.activation is F.gelu and is_packable(intermediate.dense):
            notes += replace(intermediate, PackedIntermediate, [*intermediate.modules()])
        for output in layer.attention.output, layer.output:
            if is_packable(output.dense):
                notes += replace(output, PackedOutput, [*output.modules()])
    for name, linear in model.named_modules():
        if is_packable(linear) and name != "classifier":
            W = linear.weight.detach()
            linear.packed = torch.ops.mkldnn._reorder_linear_weight(W, 1024)  # for so many tokens
            linear.weight = None
            linear.__class__ = PackedLinear
    return [*dict.fromkeys(notes)]


def is_packable(linear: nn.Module) -> bool:
    if type(linear) not in (nn.Linear, CpuLinear) or not kernels.ONEDNN:
        return False
    dtype = linear.weight.dtype
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16)


def joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """A layer of all their outputs, one after the other."""
    one = nn.Linear(1, 1)
    one.weight = nn.Parameter(torch.cat([linear.weight for linear in linears]), False)
    one.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), False)
    return one


def replace(module: nn.Module, form: type[nn.Module], *parts: list[nn.Module]) -> list[str]:
    """Makes `module` one of the form, or returns a line that says why not."""
    reason = why_not(*parts)
    if reason:
        return [note(form, reason)]
    module.__class__ = form
    return []


def note(form: type[nn.Module], reason: str) -> str:
    plain = form.__bases__[0].__name__
    if form is ClsOnlyLayer:
        plain = "the last BertLayer"
    slower = f"about {FORMS[form]} times slower"
    if form not in PACKED:
        slower += ", and in training other numbers drop out"
    return f"{reason}: {plain} runs its plain lines, {slower}"


def is_frozen(linear: nn.Linear) -> bool:
    return not linear.weight.requires_grad and linear.weight.dtype == torch.float32


def why_not(parts: list[nn.Module], inside: Iterable[nn.Module] = ()) -> str:
    """Why a form may not compute what `parts` do, or "" if it may.

    All parts must be known and plain, and neither they nor the modules `inside` have hooks.
    """
    for part in parts:
        cls = plain_class(part)
        if cls not in PLAIN and cls not in TORCH:
            return f"{cls.__name__} is a class of its own"
        if cls in PLAIN and not is_plain(cls.forward, PLAIN[cls]):
            return f"{cls.__name__}.forward was edited"
        if cls.__call__ is not nn.Module.__call__:
            return f"{cls.__name__} has a __call__ of its own"
        if isinstance(part, LinearWithLoRA) and plain_class(part.linear) is not nn.Linear:
            return "a LinearWithLoRA holds something else than an nn.Linear"
        if isinstance(part, LoRALayer) and not is_simple(part):
            return "a LoRALayer has more than A, B and a number for its scaling"
    for module in (*parts, *inside):
        if "forward" in vars(module) or any(getattr(module, hooks) for hooks in HOOKS):
            return f"a {plain_class(module).__name__} has a hook or a forward of its own"
    return ""


def plain_class(module: nn.Module) -> type[nn.Module]:
    cls: Any = type(module)
    while cls in FORMS:
        cls = cls.__bases__[0]
    return cls


@functools.cache
def is_plain(method: Any, lines: str) -> bool:
    """Whether a method is made of these lines, whatever its docstring, comments and annotations.

    Of a decorated one it is the decorator's lines that count. Without a source it is not plain.
    """
    try:
        source = inspect.getsource(method.__code__)
        function = ast.parse(textwrap.dedent(source)).body[0]
        assert isinstance(function, ast.FunctionDef)
        body = function.body[1:] if ast.get_docstring(function) else function.body
    except Exception:  # no function, no file, or a file that has changed since it was imported
        return False
    plain = ast.parse(textwrap.dedent(lines)).body
    return [*map(ast.dump, body)] == [*map(ast.dump, plain)]


def is_simple(lora: LoRALayer) -> bool:
    """Whether a path learns A and B and nothing else, and its scaling is a number."""
    names = [name for name, _ in lora.named_parameters()]
    return names == ["lora_A.weight", "lora_B.weight"] and isinstance(lora.scaling, int | float)
