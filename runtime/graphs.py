"""A training step as CUDA graphs: the kernels of a pass are started at once, not one by one.

A step of bert-base is about a thousand small kernels, which a GPU ends sooner than Python can start
them. One graph holds those of the forward pass for batches of one shape (B, S), another one those
of the backward pass; PyTorch records and replays them (torch.cuda.make_graphed_callables). Loss,
clipping and AdamW stay plain: a few kernels more. It is the model's own forward that is recorded,
with every edit of it; what Python does meanwhile, as a hook, is done at the recording alone.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bert import BertForSequenceClassification
from support import errors
from support.errors import first_line, is_out_of_memory


class Recorded:
    """A model's forward: in training by a graph for each shape (B, S) that comes a second time.

    A graph reads its inputs where they lay when it was recorded, so they are copied there, and
    leaves the gradients in one place until the next step. Dropout draws what it draws without a
    graph: seed and offset are no part of it.
    """

    def __init__(self, model: BertForSequenceClassification):
        self.model = model
        self.plain = model.forward
        self.graphs: dict[tuple, Callable] = {}

    @functools.cached_property
    def pool(self):
        """The memory in which all graphs work, in turn."""
        return torch.cuda.graph_pool_handle()

    def __call__(self, input_ids: Tensor, attention_mask=None, token_type_ids=None) -> Tensor:
        # Gradients that are there would be overwritten: of an accumulated step's later batches.
        if not self.model.training or attention_mask is None or has_gradients(self.model):
            return self.plain(input_ids, attention_mask, token_type_ids)
        given = [input_ids, attention_mask]
        if token_type_ids is not None:
            given.append(token_type_ids)
        shape = (len(given), *input_ids.shape)
        if shape not in self.graphs:  # perhaps a remainder, which comes once
            self.graphs[shape] = self.plain
        elif self.graphs[shape] == self.plain:
            self.graphs[shape] = self.record(given)
        return self.graphs[shape](*given)

    def record(self, given: list[Tensor]) -> Callable:
        samples = tuple(tensor.clone() for tensor in given)
        try:
            # Recording runs the model some times, and draws random numbers.
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                return torch.cuda.make_graphed_callables(
                    Forward(self.model, self.plain),
                    samples,
                    allow_unused_input=True,
                    pool=self.pool,
                )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            errors.say(f"note: no CUDA graph, which would be faster: {first_line(error)}")
            self.model.forward = self.plain
            return self.plain


class Forward(nn.Module):
    """A module around a model, whose forward PyTorch may put its own in place of."""

    def __init__(self, model: nn.Module, forward: Callable):
        super().__init__()
        self.model = model
        self.plain = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.plain(*inputs)


def has_gradients(model: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in model.parameters())
