"""What is recorded as a CUDA graph and what is not, with a stand-in for PyTorch's recording: it
runs the model on the buffers that a graph would read, and leaves the gradients where one would.

On a GPU: tests/runtime/test_cuda.py.
"""

from collections import Counter

import pytest
import torch

import train
from runtime import graphs


class Replay(torch.autograd.Function):
    """The passes over a batch in `samples`, whose gradients lie in `places` till the next ones."""

    @staticmethod
    def forward(ctx, module, samples, places, *parameters):
        with torch.enable_grad():
            ctx.logits = module(*samples)
        ctx.parameters, ctx.places = parameters, places
        return ctx.logits.detach()

    @staticmethod
    def backward(ctx, dy):
        gradients = torch.autograd.grad(ctx.logits, ctx.parameters, dy)
        for place, gradient in zip(ctx.places, gradients, strict=True):
            place.copy_(gradient)
        return None, None, None, *[place.detach() for place in ctx.places]


@pytest.fixture
def replayed(monkeypatch) -> Counter:
    """How often the graph of each shape was replayed."""
    counts = Counter()

    def make_graphed_callables(module, samples, allow_unused_input, pool):
        module(*samples)  # tried out, which draws random numbers
        trained = [p for p in module.parameters() if p.requires_grad]
        places = [torch.empty_like(p) for p in trained]

        def graph(*inputs):
            counts[tuple(inputs[0].shape)] += 1
            for sample, tensor in zip(samples, inputs, strict=True):
                sample.copy_(tensor)
            return Replay.apply(module, samples, places, *trained)

        return graph

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return counts


@pytest.fixture
def losses(tiny, some_reviews):
    """losses(recorded=True): those of 32 steps on a few lengths, the trained weights after them."""

    def losses(recorded: bool, **options) -> tuple[list[float], list[torch.Tensor]]:
        common = {"max_length": 16, "batch_size": 4, "device": "cpu", "lr": 5e-3}
        setup = train.set_up(train.Config(str(tiny), str(some_reviews), **common | options))
        setup.train_set.always_mask = True
        setup.train_set.multiple = 2
        if recorded:
            setup.model.forward = graphs.Recorded(setup.model)
        setup.model.train()
        size = setup.config.step_rows
        plan = train.plan_batches(setup.train_set.lengths, size, seed=1, epoch=0)
        found = []
        for step in range(32):
            loss_sum = train.train_step(setup, plan[step % len(plan)], step)
            found.append(loss_sum.item())
            if step == 9:  # answers in between are plain
                train.evaluate(setup, setup.validation_set)
        return found, [p.detach() for p in setup.model.parameters() if p.requires_grad]

    return losses


def assert_same(some, others) -> None:
    assert some[0] == others[0]
    assert all(torch.equal(a, b) for a, b in zip(some[1], others[1], strict=True))


def test_recorded_steps_are_the_plain_steps(replayed, losses):
    """With dropout, to the bit; a shape is recorded when it comes again, and a remainder of two
    texts too, if it does."""
    plain = losses(recorded=False)
    assert not replayed
    assert_same(losses(recorded=True), plain)
    assert len({S for _, S in replayed}) > 1 and {B for B, _ in replayed} == {2, 4}
    assert 20 < replayed.total() < 32


def test_accumulated_gradients_are_not_overwritten(replayed, losses):
    """Of a step the first batch alone is replayed: the next adds to gradients that are there."""
    assert_same(
        losses(recorded=True, grad_accum=3, batch_size=2),
        losses(recorded=False, grad_accum=3, batch_size=2),
    )
    assert 0 < replayed.total() <= 32


def test_float16_is_scaled_around_a_graph(replayed, losses):
    options = {"dtype": "float16"}
    assert_same(losses(recorded=True, **options), losses(recorded=False, **options))
    assert replayed


def test_what_cannot_be_recorded_runs_plain_and_is_said_once(replayed, losses, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors")

    plain = losses(recorded=False)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    assert_same(losses(recorded=True), plain)
    said = capsys.readouterr().out
    line = "note: no CUDA graph, which would be faster: operation not permitted when stream is"
    assert said.startswith(line) and said.count("\n") == 1

    def fail_for_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail_for_memory)
    with pytest.raises(torch.OutOfMemoryError):
        losses(recorded=True)
