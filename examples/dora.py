"""DoRA (Liu et al., 2024, arXiv:2402.09353, section 4): LoRA turns a weight, a magnitude sizes it.

LoRA adds ΔW = α/R · BA to a frozen W. DoRA (weight-decomposed low-rank adaptation) takes of W + ΔW
the direction alone: each of its rows, which makes one output, is divided by its length and
multiplied by a learned number m of its own:

    y = m/‖W + ΔW‖ ⊙ (W + ΔW)x + b     (‖·‖: the lengths of the rows; ⊙: output by output)

m starts as ‖W‖, so that training starts from the base model itself. In the gradient ‖W + ΔW‖ is a
constant (section 4.3), which spares memory. Trained beside A and B: m, a number for each output,
4,608 in MiniLM. Dropout falls on what A reads, as in LoRA; PEFT's also falls on the x of its part
(m/‖W + ΔW‖ − 1)Wx.

    python -m examples.dora --epochs 1    # the offline reviews, after LoRA; leaves out-dora/
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lora
from bert import BertForSequenceClassification
from examples.beside_lora import train_beside_lora
from support.errors import run_main


class LinearWithDoRA(lora.LinearWithLoRA):
    """A frozen nn.Linear, LoRA beside it, and the magnitude of each output."""

    def __init__(self, linear: nn.Linear, lora: lora.LoRALayer):
        super().__init__(linear, lora)
        lora.lora_magnitude_vector = nn.Parameter(self.lengths())  # m (out,), under PEFT's name

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """‖W + ΔW‖ (out,), a constant in the gradient."""
        return (self.linear.weight + self.lora.delta()).norm(dim=1)

    def scale(self) -> Tensor:
        return self.lora.lora_magnitude_vector / self.lengths()  # (out,)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.linear.weight) + self.lora(x)  # (…, in) -> (…, out)
        return self.scale() * y + self.linear.bias  # (…, out)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One nn.Linear with m/‖W + ΔW‖ ⊙ (W + ΔW) for its weight; W stays as it is."""
        linear = super().merged()
        linear.weight *= self.scale()[:, None]
        return linear


def apply_dora_to_model(model: nn.Module) -> nn.Module:
    """Gives, in place, each layer that apply_lora_to_model has rewritten its magnitude."""
    for name, module in list(model.named_modules()):
        if isinstance(module, lora.LinearWithLoRA):
            model.set_submodule(name, LinearWithDoRA(module.linear, module.lora))
    model.lora_config["use_dora"] = True  # with that save_adapter writes PEFT's format
    return model


def open_dora(adapter: str | Path, base: str) -> nn.Module:
    """lora.open_adapter for a DoRA adapter, ours or PEFT's, in its base."""
    folder = Path(adapter)
    config = lora.read_adapter_config(folder, known={"use_dora"})
    state = lora.read_adapter_tensors(folder)
    model = BertForSequenceClassification.from_pretrained(base)
    lora.replace_classifier(model, folder, state)
    lora.apply_lora_to_model(
        model,
        config["target_modules"],
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config.get("lora_dropout", 0.0),
        use_rslora=config.get("use_rslora", False),
    )
    apply_dora_to_model(model)
    lora.load_lora_state_dict(model, state)
    return model.eval()


def main() -> None:
    train_beside_lora("DoRA", apply_dora_to_model, lora.save_adapter)


if __name__ == "__main__":
    run_main(main)
