"""Many adapters on one base in memory: a model for each, and one pass for the rows of several.

    bank = AdapterBank("offline/all-MiniLM-L6-v2")
    bank.load("sst2", "out/best")
    logits = bank.models["sst2"](input_ids)  # switching is picking another model
    logits = bank.forward_rows(["sst2", "cola"], input_ids)  # an adapter for each row

The letters of the shapes are explained in bert.py.
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert import BertForSequenceClassification, BertLayer
from lora import LinearWithLoRA, find_targets, open_adapter, shared_copy
from runtime import fast


class RoutedLinear(nn.Module):
    """A frozen nn.Linear, and in its place that of each adapter for the rows of the adapter."""

    def __init__(self, linear: nn.Linear, routes: dict[str, slice]):
        super().__init__()
        self.linear = linear
        self.routes = routes
        self.adapted: dict[str, LinearWithLoRA] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (B, …, out)
        for name in self.routes.keys() & self.adapted.keys():
            rows = self.routes[name]
            y[rows] = self.adapted[name](x[rows])
        return y


class FastRoutedLinear(RoutedLinear):
    """Wx is computed for all rows at once, and BAx is added to it. Gradients are not kept."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (B, …, out)
        for name in self.routes.keys() & self.adapted.keys():
            rows = self.routes[name]
            lora = self.adapted[name].lora
            z = F.linear(x[rows], lora.lora_A.weight).flatten(0, -2)  # (T, R)
            y[rows].flatten(0, -2).addmm_(z, lora.lora_B.weight.t(), alpha=lora.scaling)  # (T, out)
        return y


fast.FORMS[FastRoutedLinear] = 1.5
fast.PLAIN[RoutedLinear] = """
    y = self.linear(x)
    for name in self.routes.keys() & self.adapted.keys():
        rows = self.routes[name]
        y[rows] = self.adapted[name](x[rows])
    return y"""


class AdapterBank:
    """Adapters by name on the base in a directory, whatever their ranks, targets and classes.

    `notes` has a line for each form of fast.py that stepped aside.
    """

    def __init__(self, base: str):
        self.base = BertForSequenceClassification.from_pretrained(base)
        self.models: dict[str, BertForSequenceClassification] = {}
        self.routes: dict[str, slice] = {}  # each adapter's rows of the batch at hand
        self.mixed = shared_copy(self.base.bert)
        self.notes = fast.rewrite(self.mixed, on_cpu=False) + fast.compute_cls_alone(self.mixed)
        for name in find_targets(self.mixed, "all-linear"):
            linear = self.mixed.get_submodule(name)
            self.mixed.set_submodule(name, FastRoutedLinear(linear, self.routes))

    def load(self, name: str, adapter: str) -> BertForSequenceClassification:
        """Adds an adapter, or puts it in the place of the one of that name; returns its model."""
        model = open_adapter(adapter, self.base)
        if name in self.models:
            self.remove(name)
        self.models[name] = model
        for path, module in model.bert.named_modules():
            if isinstance(module, LinearWithLoRA):
                routed = self.mixed.get_submodule(path)
                routed.adapted[name] = module
                reason = fast.why_not([routed, *module.modules()])
                if reason:  # then it is unknown, too, which rows of x it reads
                    routed.__class__ = RoutedLinear
                    self.mixed.encoder.layer[-1].__class__ = BertLayer
                    self.notes.append(fast.note(FastRoutedLinear, reason))
        self.notes = [*dict.fromkeys(self.notes + fast.rewrite(model))]
        return model

    def remove(self, name: str) -> None:
        del self.models[name]
        for module in self.mixed.modules():
            if isinstance(module, RoutedLinear):
                module.adapted.pop(name, None)

    @torch.inference_mode()
    def forward_rows(
        self, names: list[str], input_ids: Tensor, attention_mask=None, token_type_ids=None
    ) -> list[Tensor]:
        """For each row of a batch (B, S) the logits (C,) of its adapter, all rows in one pass.

        `names` has the adapter of each row. Those of an adapter stand together on the way, as a
        view of them takes no copy.
        """
        if len(names) != len(input_ids):
            raise ValueError(f"{len(names)} names of adapters for a batch of {len(input_ids)} rows")
        order = sorted(range(len(names)), key=names.__getitem__)
        inputs = [input_ids, attention_mask, token_type_ids]
        inputs = [None if t is None else t[order] for t in inputs]
        start = 0
        self.routes.clear()
        for name, count in sorted(Counter(names).items()):
            self.routes[name] = slice(start, start + count)
            start += count
        logits = []
        if fast.why_not([self.base]):  # another forward of the classifier: each adapter alone
            for name, rows in self.routes.items():
                logits += self.models[name](*[None if t is None else t[rows] for t in inputs])
        else:
            x, _ = self.mixed(*inputs)  # (B, S or 1, D)
            for name, rows in self.routes.items():
                model = self.models[name]
                logits += model.classifier(model.bert.pooler(x[rows]))  # (rows of the adapter, C)
        of_row = dict(zip(order, logits, strict=True))
        return [of_row[row] for row in range(len(names))]
