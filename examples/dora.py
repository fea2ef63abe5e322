"""DoRA (Liu et al., 2024, arXiv:2402.09353, section 4): LoRA turns a weight, and a learned
magnitude sizes it.

LoRA adds ΔW = α/R · BA to a frozen W. DoRA (weight-decomposed low-rank adaptation) takes of W + ΔW
the direction alone: each of its rows, which makes one output, is divided by its length and
multiplied by a learned number m of its own:

    y = m/‖W + ΔW‖ ⊙ (W + ΔW)x + b        (‖·‖: the lengths of the rows; ⊙: output by output)

m starts as ‖W‖, so that training starts from the base model itself. In the gradient ‖W + ΔW‖ is a
constant (section 4.3), which spares memory. Trained beside A and B: m, a number for each output,
4,608 in MiniLM. Dropout falls on what A reads, as in LoRA; PEFT's also falls on the x of its part
(m/‖W + ΔW‖ − 1)Wx.

    python -m examples.dora --epochs 1       # MiniLM on the offline reviews, after LoRA; leaves out-dora/
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lora as book
from bert import BertForSequenceClassification
from examples.beside_lora import train_beside_lora
from support.adapter_files import adapted, read_config, read_tensors
from support.console import run_main


class LinearWithDoRA(book.LinearWithLoRA):
    """A frozen nn.Linear, LoRA beside it, and the magnitude of each output."""

    def __init__(self, linear: nn.Linear, lora: book.LoRALayer):
        super().__init__(linear, lora)
        lora.lora_magnitude_vector = nn.Parameter(self.lengths())  # m (out,), under PEFT's name

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """‖W + ΔW‖ (out,), a constant in the gradient."""
        return (self.linear.weight + self.lora.delta()).norm(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.unmerged_weight is not None:
            return self.linear(x)  # (…, out)
        scale = self.lora.lora_magnitude_vector / self.lengths()  # (out,)
        return (
            scale * (F.linear(x, self.linear.weight) + self.lora(x)) + self.linear.bias
        )  # (…, in) -> (…, out)

    @torch.no_grad()
    def merge_weights(self) -> None:
        """Puts m/‖W + ΔW‖ ⊙ (W + ΔW) in the place of W; unmerge_weights puts W back."""
        if self.unmerged_weight is None:
            scale = self.lora.lora_magnitude_vector / self.lengths()  # (out,)
            super().merge_weights()
            self.linear.weight *= scale[:, None]


def apply_dora_to_model(model: nn.Module) -> nn.Module:
    """Gives, in place, every LoRA layer of a model that apply_lora_to_model has rewritten its
    magnitude."""
    for name, module in list(model.named_modules()):
        if isinstance(module, book.LinearWithLoRA):
            model.set_submodule(name, LinearWithDoRA(module.linear, module.lora))
    model.lora_config["use_dora"] = True  # and with that save_adapter writes PEFT's format
    return model


def open_dora(adapter: str, base: str) -> nn.Module:
    """The base with a DoRA adapter, ours or PEFT's: lora.open_adapter, and apply_dora_to_model in
    it."""
    config = read_config(adapter, frozenset({"use_dora"}))
    state = read_tensors(adapter, config["r"])
    model = BertForSequenceClassification.from_pretrained(base)
    book.replace_heads(model, adapter, state)
    layers, _ = adapted(state, book.find_targets(model, "all-linear"), config["target_modules"])
    settings = [config[name] for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")]
    apply_dora_to_model(book.apply_lora_to_model(model, layers, *settings))
    book.load_lora_state_dict(model, state)
    return model.eval()


if __name__ == "__main__":
    run_main(lambda: train_beside_lora("DoRA", apply_dora_to_model, book.save_adapter))
