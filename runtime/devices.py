"""Where and how a model computes, decided once: its device, its type, torch.compile."""

import functools
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bert import BertForSequenceClassification
from data import Encoded
from runtime import fast, graphs
from support import parallel
from support.errors import InputError, first_line, is_out_of_memory

DTYPES = ["float32", "bfloat16", "float16"]


@dataclass
class Placement:
    device: torch.device
    dtype: torch.dtype  # of matrix products
    why: str  # it is that one
    autocast: torch.autocast  # a context, entered again for each batch
    scaler: torch.amp.GradScaler  # of the loss, in float16; else it does nothing
    compiled: bool
    multiple: int  # a batch's length is padded to one of this
    always_mask: bool  # whether a batch has a mask also where nothing is padded
    batch_tokens: int  # the most in a batch of texts to answer
    notes: list[str]  # what a user should know of it

    def move(self, encoded: Encoded) -> Encoded:
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
    gpus = torch.cuda.device_count() if on_cuda else 1
    # A single GPU in sight may be each process's own. If it is not, NCCL says so.
    if device == "mps" or gpus > 1:
        refuse_sharing(device, gpus)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"--device {device} cannot be used here: {first_line(error)}") from None
    is_trained = any(parameter.requires_grad for parameter in model.parameters())
    product_dtype, why = choose_dtype(dtype, device, is_trained)
    is_half = product_dtype != torch.float32
    compiled = compile == "yes"
    notes = []
    if compile == "auto" and on_cuda:
        reason = why_not_compiled(device, product_dtype)
        compiled = not reason
        if reason:
            notes.append(f"the layers are not compiled, which would be faster: {reason}")
    for module in model.modules() if is_half else ():
        # Frozen: no float32 original is needed, and no conversion in each step.
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.to(product_dtype)
    notes += fast.rewrite(model, on_cpu=device == "cpu" and not compiled)
    if compiled:
        compile_once()
    for layer in model.bert.encoder.layer[:-1]:  # the last one may compute [CLS] alone
        if recompute:
            layer.forward = functools.partial(recomputed, layer.forward)
        if compiled:  # the layers share their code, so that it is compiled once, for every length
            layer.compile(fullgraph=True, dynamic=True)
    # NCCL's own thread must not disturb a recording, nor one layer draw its random numbers anew.
    recorded = on_cuda and compile != "no" and parallel.SIZE == 1 and not recompute
    if recorded:
        model.forward = graphs.Recorded(model)
    scaler = torch.amp.GradScaler(device, enabled=product_dtype == torch.float16)
    # It begins here: of several processes one may have no part in the first step.
    scaler.scale(torch.zeros((), device=device))
    # On CUDA few lengths mean few kernels; elsewhere padding only costs.
    few_lengths = on_cuda and model.config.max_position_embeddings % 8 == 0
    return Placement(
        device=torch.device(device),
        dtype=product_dtype,
        why=why,
        # A graph cannot hold what autocast has kept. A and B are converted once in a step anyway.
        autocast=torch.autocast(device, product_dtype, enabled=is_half, cache_enabled=not recorded),
        scaler=scaler,
        compiled=compiled,
        multiple=8 if few_lengths else 1,
        always_mask=compiled or recorded,  # with and without a mask would be two compilations
        batch_tokens=1024 if device == "cpu" else 16 * 1024,
        notes=[f"note: {text}" for text in notes],
    )


def refuse_sharing(device: str, gpus: int) -> None:
    if gpus < parallel.LOCAL_SIZE:
        raise InputError(f"--device {device}: each of {parallel.LOCAL_SIZE} processes takes a GPU")


def choose_dtype(dtype: str, device: str, is_trained=True) -> tuple[torch.dtype, str]:
    """The type of the matrix products, and why it is that one.

    bfloat16 reaches as far as float32 does. float16 ends at 65,504 and below at 6e-8, so that the
    loss is multiplied to keep its gradients within (Micikevicius et al., 2018, arXiv:1710.03740).
    A CPU that has bfloat16 trains in it, as accurately and sooner (docs/results.md), and answers in
    float32: of a thousand labels bfloat16 changes one or two.
    """
    if dtype != "auto":
        return getattr(torch, dtype), "as asked"
    if device == "cpu" and is_trained and cpu_has_bfloat16():
        return torch.bfloat16, "which this CPU multiplies"
    if device != "cuda":
        return torch.float32, "the usual type there"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "which this GPU has"
    return torch.float16, "as this GPU has no bfloat16"  # those before Ampere only emulate it


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products of its own. Those that are emulated are slower."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def why_not_compiled(device: str, dtype: torch.dtype) -> str:
    """Why torch.compile does not work on the device, or "": found out by compiling an addition."""
    number = time.time_ns() % 2**20  # another each time, as what was compiled once is kept
    try:
        compiled = torch.compile(lambda x: x + number, fullgraph=True, dynamic=False)
        compiled(torch.ones(2, device=device, dtype=dtype))
    except Exception as error:  # as without a C++ compiler, or on CUDA Triton and Python's headers
        if is_out_of_memory(error):
            raise
        return first_line(error)
    return ""


def compile_once() -> None:
    """Lets torch.compile take one compilation for all lengths of a batch."""
    import torch._dynamo.config  # late: it takes a second to import
    import torch.fx.experimental._config

    # LoRA's scaling would be a tensor in main memory, which each layer reads on its way.
    torch._dynamo.config.specialize_float = True  # ty: ignore[invalid-assignment]
    # A first batch of as many texts as tokens would be compiled as a square.
    torch.fx.experimental._config.use_duck_shape = False  # ty: ignore[invalid-assignment]
    # Training with and without a gradient of x, answering, each also for a batch of one text: six
    # for an adapter. Beyond the limit it would be an error.
    torch._dynamo.config.recompile_limit = 16  # ty: ignore[invalid-assignment]


def recomputed(forward, *inputs):
    """A function of our own around the layer's: torch.compile skips PyTorch's."""
    return checkpoint(forward, *inputs, use_reentrant=False)
