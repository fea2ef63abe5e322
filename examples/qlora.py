"""QLoRA (Dettmers et al., 2023, arXiv:2305.14314): LoRA on a base kept in four bits.

    python -m examples.qlora                           # the offline reviews; --bits 32 to compare
    python sample.py --adapter out-qlora "great film"  # it leaves an adapter like any other

A frozen weight is only read, so it may be coarse. Of each block of 64 weights the largest size s is
kept, and of each w / s only which of 16 levels is nearest: 4 bits. NF4's levels lie close where
normally distributed weights are many. The s, 32 bits for 64 weights, are rounded in turn, to 8 bits
in blocks of 256 ("double quantisation"): 4.127 bits a weight. A and B stay in float32, and learn
around the rounding. bitsandbytes, by the paper's authors, packs and unpacks.
"""

from bitsandbytes import matmul_4bit
from bitsandbytes.functional import quantize_4bit
from torch import Tensor, nn

import train
from examples.beside_lora import fit
from lora import open_adapter, save_adapter
from support.errors import run_main
from support.files import refuse_existing
from support.offline import offline_pair
from support.options import OneLineParser


class FourBitLinear(nn.Module):
    """A frozen nn.Linear with its W in NF4, which is unpacked for each product, and once more in
    the backward pass."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        settings = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True}
        # Two weights in a byte; and the s.
        self.packed, self.state = quantize_4bit(linear.weight.data, **settings)

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
    for layer in model.modules():
        if isinstance(layer, FourBitLinear):
            tensors += [layer.packed, *layer.state.as_dict(packed=True).values()]
    return sum(tensor.nbytes for tensor in tensors)


def main() -> None:
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    add("--bits", type=int, choices=[4, 32], default=4, help="of a frozen weight (default: 4)")
    add("--epochs", type=int, default=3, help="passes over the reviews (default: 3)")
    add("--seed", type=int, default=42, help="of everything random (default: 42)")
    add("--out", default="out-qlora", help="a new folder for the adapter (default: %(default)s)")
    given = parser.parse_args()
    refuse_existing(given.out)
    base, reviews = offline_pair()
    settings = {"lr": 1e-3, "device": "cpu", "epochs": given.epochs, "seed": given.seed}
    config = train.Config(model=base, data=reviews, **settings)
    tokenizer, data, model = train.prepare(config)
    if given.bits == 4:
        model = quantise(model)
    setup = train.place(config, tokenizer, data, model)
    fit(f"{given.bits} bits", setup)
    print(f"{base_bytes(setup.model):,} bytes are frozen")
    save_adapter(setup.model, given.out, base)
    setup.model = open_adapter(given.out)
    accuracy = train.evaluate(setup, setup.validation_set)[0]["accuracy"]
    print(f"{given.out} on the base in 32 bits: accuracy {accuracy:.1%}")


if __name__ == "__main__":
    run_main(main)
