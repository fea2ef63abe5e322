"""QLoRA (Dettmers et al., 2023, arXiv:2305.14314): LoRA on a base whose frozen linear layers are
kept in four bits.

    python -m examples.qlora                              # MiniLM on the offline reviews; --bits 32 to compare
    python sample.py --adapter out-qlora "great film"     # what it leaves is an adapter like any other

A frozen weight is only read, so it may be coarse. Of each block of 64 weights the largest size s is
kept, and of each w / s only which of 16 levels is nearest: 4 bits. NF4's levels lie close where
normally distributed weights are many. The s, 32 bits for 64 weights, are rounded in turn, to 8 bits
in blocks of 256 ("double quantisation"): 4.127 bits a weight. A and B stay in float32, and learn
around the rounding. bitsandbytes, by the paper's authors, packs and unpacks.
"""

from pathlib import Path

from bitsandbytes import matmul_4bit
from bitsandbytes.functional import quantize_4bit
from torch import Tensor, nn
from tqdm import tqdm

import train
from data import plan_batches
from lora import open_adapter, save_adapter
from support.console import run_main
from support.files import InputError
from support.offline import offline_pair
from support.options import OneLineParser


class FourBitLinear(nn.Module):
    """A frozen nn.Linear with its W in NF4, unpacked for each product, and once more on the way
    back."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias, how = (
            linear.bias,
            {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True},
        )
        self.packed, self.state = quantize_4bit(
            linear.weight.data, **how
        )  # two weights in a byte; the s

    def forward(self, x: Tensor) -> Tensor:
        return matmul_4bit(x, self.packed, self.state, bias=self.bias)  # (…, in) -> (…, out)


def quantise(model: nn.Module) -> nn.Module:
    """Rewrites, in place, every frozen linear layer, with an adapter beside it or not."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            model.set_submodule(name, FourBitLinear(module))
    return model


def base_bytes(model: nn.Module) -> int:
    """The memory of everything frozen."""
    tensors = [p for p in model.parameters() if not p.requires_grad]
    layers = [module for module in model.modules() if isinstance(module, FourBitLinear)]
    tensors += [
        tensor for m in layers for tensor in (m.packed, *m.state.as_dict(packed=True).values())
    ]
    return sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    parser = OneLineParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--bits", type=int, choices=[4, 32], default=4, help="of a frozen weight (default: 4)"
    )
    parser.add_argument(
        "--epochs", type=int, default=3, help="passes over the reviews (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of everything random (default: 42)")
    parser.add_argument(
        "--out", default="out-qlora", help="where the adapter goes (default: out-qlora)"
    )
    given = parser.parse_args()
    if Path(given.out).exists():
        raise InputError(f"{given.out} is there already: remove it, or give another --out")
    run = train.set_up(
        train.Config(*offline_pair(), lr=1e-3, device="cpu", epochs=given.epochs, seed=given.seed)
    )
    if given.bits == 4:
        quantise(run.model)
    run.model.train()
    for epoch in range(given.epochs):
        for rows in tqdm(
            plan_batches(run.train.lengths, run.config.batch_size, given.seed, epoch), unit=" steps"
        ):
            train.train_step(run, rows)
            run.progress.step += 1
    print(
        f"{given.bits} bits: {base_bytes(run.model):,} bytes frozen, accuracy {train.evaluate(run)['accuracy']:.1%}"
    )
    save_adapter(run.model, given.out, run.config.model)
    run.model = open_adapter(given.out)
    print(f"{given.out} on the base in 32 bits: accuracy {train.evaluate(run)['accuracy']:.1%}")


if __name__ == "__main__":
    run_main(main)
