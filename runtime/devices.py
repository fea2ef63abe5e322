"""Where and how a model computes, decided once: its device, bfloat16, torch.compile."""

import functools
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bert import BertForSequenceClassification
from data import Encoded
from runtime import fast
from support import parallel
from support.errors import InputError, first_line, is_out_of_memory


@dataclass
class Placement:
    device: torch.device
    autocast: torch.autocast  # a context, entered again for each batch
    bfloat16: bool
    compiled: bool
    multiple: int  # a batch's length is padded to one
    always_mask: bool  # whether a batch has a mask also where nothing is padded
    batch_tokens: int  # the most in a batch of texts to answer
    notes: list[str]  # what a user should know of it

    def put(self, encoded: Encoded) -> Encoded:
        return encoded.to(self.device, multiple=self.multiple, always_mask=self.always_mask)


def place(
    model: BertForSequenceClassification, device="auto", dtype="auto", compile="no", recompute=False
) -> Placement:
    """Moves the model to its device, in place, in the fastest form that it has there.

    With `recompute` the backward pass computes again what the layers need, with the same dropout
    (Chen et al., 2016, arXiv:1604.06174). Raises InputError for what this machine does not have.
    """
    if device == "auto":
        best = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else best
    on_cuda = device == "cuda"
    if device != "cpu" and max(1, torch.cuda.device_count()) < parallel.LOCAL_SIZE:
        raise InputError(f"--device {device}: each of {parallel.LOCAL_SIZE} processes takes a GPU")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"--device {device} cannot be used here: {first_line(error)}") from None
    # GPUs before Ampere have no bfloat16 of their own.
    native = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    bfloat16 = dtype == "bfloat16" or (dtype == "auto" and native)
    compiled = compile == "yes"
    notes = []
    if compile == "auto" and on_cuda:
        reason = why_not_compiled(device)
        compiled = not reason
        if reason:
            notes.append(f"the layers are not compiled, which would be faster: {reason}")
    for module in model.modules() if bfloat16 else ():
        # Frozen: no float32 original is needed, and no conversion in each step.
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(torch.bfloat16)
    notes += fast.rewrite(model, on_cpu=device == "cpu" and not compiled)
    for layer in model.bert.encoder.layer[:-1]:  # the last one may compute [CLS] alone
        if recompute:
            layer.forward = functools.partial(recomputed, layer.forward)
        if compiled:  # the layers share their code, so that it is compiled once, for every length
            layer.compile(fullgraph=True, dynamic=True)
    # On CUDA few lengths mean few kernels; elsewhere padding only costs.
    few_lengths = on_cuda and model.config.max_position_embeddings % 8 == 0
    return Placement(
        device=torch.device(device),
        autocast=torch.autocast(device, torch.bfloat16, enabled=bfloat16),
        bfloat16=bfloat16,
        compiled=compiled,
        multiple=8 if few_lengths else 1,
        always_mask=compiled,  # with and without a mask would be two compilations
        batch_tokens=1024 if device == "cpu" else 16 * 1024,
        notes=[f"note: {text}" for text in notes],
    )


def why_not_compiled(device: str) -> str:
    """Why torch.compile does not work on the device, or "": found out by compiling an addition."""
    number = time.time_ns() % 2**20  # another each time, as what was compiled once is kept
    try:
        compiled = torch.compile(lambda x: x + number, fullgraph=True, dynamic=False)
        compiled(torch.ones(2, device=device))
    except Exception as error:  # as without a C++ compiler, or on CUDA Triton and Python's headers
        return first_line(error)
    return ""


def recomputed(forward, *inputs):
    """A function of our own around the layer's: torch.compile skips PyTorch's."""
    return checkpoint(forward, *inputs, use_reentrant=False)
