"""A training step and an answer on a CUDA device that is not there: see tests/runtime/test_cuda.py.

    LD_PRELOAD=fake_cuda.so python tests/on_fake_cuda.py MODEL DATA 8 auto 7 float16

Under FakeTensorMode nothing is computed, but each operation refuses tensors on several devices, of
types or shapes that do not fit, and whatever would have to wait for a number from the GPU. Prints
how often tensors went to the GPU and came back.
"""

import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from data import Encoded, batches_by_length, predict

GPU = torch.device("cuda:0")


class Copies(TorchDispatchMode):
    """Counts the operations that copy from one device to another, by whether they wait."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, inputs=(), options=None):
        options = options or {}
        result = function(*inputs, **options)
        source = next((leaf.device for leaf in tree_leaves(inputs) if torch.is_tensor(leaf)), None)
        if source and torch.is_tensor(result) and result.device != source:
            waits = not any(value is True for value in (*inputs, options.get("non_blocking")))
            self.counts[f"{source.type} to {result.device.type}", waits] += 1
        return result


def read_for_real(function):
    """The function without the mode, as it reads files; then its tensors become fake ones."""

    def read(*given, **options):
        with unset_fake_temporarily():
            result = function(*given, **options)
        for part in result if isinstance(result, tuple) else ():
            if isinstance(part, nn.Module):
                replace_parameters(part, fake_copy)
        if isinstance(result, Encoded):
            tensors = {n: fake_copy(t) for n, t in vars(result).items() if torch.is_tensor(t)}
            return replace(result, **tensors)
        return result

    return read


def fake_copy(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def replace_parameters(model: nn.Module, convert) -> None:
    for module in model.modules():
        for name, p in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(convert(p), p.requires_grad))


def to(self: nn.Module, target) -> nn.Module:
    """nn.Module.to, which swaps a fake tensor's inside only if nobody else holds it."""
    replace_parameters(self, lambda p: p.detach().to(target))
    return self


def main(model: str, data: str, capability: str, dtype: str) -> None:
    properties = SimpleNamespace(major=int(capability), minor=0)
    cuda = {"is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0}
    cuda["get_device_properties"] = lambda _: properties
    config = train.Config(
        model=model,
        data=data,
        max_length=16,
        batch_size=8,
        device="cuda",
        dtype=dtype,
        compile="no",
    )
    names = ("prepare", "encode")
    read = {name: read_for_real(getattr(train, name)) for name in names}
    read["data_notes"] = lambda *_: []  # on the texts, whose tokens are fake
    with mock.patch.multiple(torch.cuda, **cuda), FakeTensorMode():
        with mock.patch.multiple(train, **read), mock.patch.object(nn.Module, "to", to):
            setup = train.set_up(config)
        print(setup.placement.dtype, setup.placement.scaler.is_enabled())
        setup.model.train()
        for step, rows in enumerate(np.split(np.arange(21), [8, 16])):
            with Copies() as copies:
                loss_sum = train.train_step(setup, rows, step)
            print(dict(copies.counts))
            assert loss_sum.device == GPU
        for name, parameter in setup.model.named_parameters():
            assert parameter.device == GPU, name
            if parameter.requires_grad:
                state = setup.optimizer.state[parameter]
                assert {t.device for t in state.values()} == {GPU}
                assert {t.dtype for t in (parameter, *state.values())} == {torch.float32}, name
        with Copies() as copies:
            found = setup.validation_set
            batches = batches_by_length(found.lengths, 64)
            logits = predict(setup.model, found, batches, setup.placement.autocast)
        print(len(batches), dict(copies.counts))
        assert logits.shape == (len(found.lengths), 2) and logits.dtype == torch.float32


if __name__ == "__main__":
    for capability, dtype in zip(sys.argv[3::2], sys.argv[4::2], strict=True):
        main(sys.argv[1], sys.argv[2], capability, dtype)
