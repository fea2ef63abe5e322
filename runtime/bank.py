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

from bert import BertForSequenceClassification
from lora import LinearWithLoRA, LoRALayer, find_targets, open_adapter, shared_copy
from runtime import fast


class RoutedLinear(nn.Module):
    """A frozen nn.Linear, and beside it the path of each adapter for the rows of the adapter.

    Wx is computed for all rows at once, and BAx is added to it. Gradients are not kept.
    """

    def __init__(self, linear: nn.Linear, routes: dict[str, slice]):
        super().__init__()
        self.linear = linear
        self.routes = routes
        self.paths: dict[str, LoRALayer] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (B, …, out)
        for name in self.routes.keys() & self.paths.keys():
            rows = self.routes[name]
            lora = self.paths[name]
            z = F.linear(x[rows], lora.lora_A.weight).flatten(0, -2)  # (T, R)
            y[rows].flatten(0, -2).addmm_(z, lora.lora_B.weight.t(), alpha=lora.scaling)  # (T, out)
        return y


class AdapterBank:
    """Adapters by name on the base in a directory, whatever their ranks, targets and classes.

    `notes` has a line for each form of fast.py that stepped aside.
    """

    def __init__(self, base: str):
        self.base = BertForSequenceClassification.from_pretrained(base)
        self.models: dict[str, BertForSequenceClassification] = {}
        self.routes: dict[str, slice] = {}  # each adapter's rows of the batch at hand
        self.is_mixing = True  # whether rows of several adapters share a pass
        self.mixed = shared_copy(self.base.bert)
        self.notes = fast.rewrite(self.mixed, on_cpu=False) + fast.compute_cls_alone(self.mixed)
        for name in find_targets(self.mixed, "all-linear"):
            linear = self.mixed.get_submodule(name)
            self.mixed.set_submodule(name, RoutedLinear(linear, self.routes))

    def load(self, name: str, adapter: str) -> BertForSequenceClassification:
        """Adds an adapter, or puts it in the place of the one of that name; returns its model."""
        model = open_adapter(adapter, self.base)
        if name in self.models:
            self.remove(name)
        self.models[name] = model
        parts: list[nn.Module] = [self.base]
        for path, module in model.bert.named_modules():
            if isinstance(module, LinearWithLoRA):
                parts += module.modules()
                self.mixed.get_submodule(path).paths[name] = module.lora
        # What was edited there is not what RoutedLinear and forward_rows compute.
        reason = fast.why_not(parts)
        if reason:
            self.is_mixing = False
            self.notes.append(f"{reason}: each adapter has a pass of its own, which is slower")
        self.notes = [*dict.fromkeys(self.notes + fast.rewrite(model))]
        return model

    def remove(self, name: str) -> None:
        del self.models[name]
        for module in self.mixed.modules():
            if isinstance(module, RoutedLinear):
                module.paths.pop(name, None)

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
        inputs = select([input_ids, attention_mask, token_type_ids], order)
        start = 0
        self.routes.clear()
        for name, count in sorted(Counter(names).items()):
            self.routes[name] = slice(start, start + count)
            start += count
        x = self.mixed(*inputs)[0] if self.is_mixing else None  # (B, S or 1, D)
        logits = []
        for name, rows in self.routes.items():
            model = self.models[name]
            if x is None:
                logits += model(*select(inputs, rows))
            else:
                logits += model.classifier(model.bert.pooler(x[rows]))  # (rows of the adapter, C)
        of_row = dict(zip(order, logits, strict=True))
        return [of_row[row] for row in range(len(names))]


def select(inputs: list[Tensor | None], rows: list[int] | slice) -> list[Tensor | None]:
    return [None if tensor is None else tensor[rows] for tensor in inputs]
