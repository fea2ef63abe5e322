"""IA³ (Liu et al., 2022, arXiv:2205.05638, section 3.3): vectors that scale activations.

LoRA adds a path: Wx + b + α/R · BAx. IA³ (infused adapter by inhibiting and amplifying inner
activations) adds nothing. It makes each number larger or smaller by a learned one, in three places
of every BERT layer:

    keys, values   l ⊙ (Wx + b)      (⊙: number by number; l starts at one, which is the base)
    feed-forward   W(l ⊙ gelu(…)) + b

These are D + D + I numbers a layer: 13,824 in MiniLM, where LoRA of rank 8 on query and value has
73,728.

    python -m examples.ia3 --epochs 1    # the offline reviews, after LoRA; leaves out-ia3/
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bert import BertForSequenceClassification, write_json
from examples.beside_lora import train_beside_lora
from lora import (
    POOLER,
    find_targets,
    fully_trained,
    mark_only_lora_as_trainable,
    peft_name,
    read_adapter_tensors,
    replace_classifier,
)
from support.errors import run_main

KEYS_AND_VALUES = r".*\.(key|value)"
FEED_FORWARD = r".*\.layer\.\d+\.output\.dense"  # the second layer: it reads what gelu gave


class LinearWithIA3(nn.Module):
    """A frozen nn.Linear with a learned vector on what it reads, or on what it gives."""

    def __init__(self, linear: nn.Linear, on_input: bool):
        super().__init__()
        self.linear = linear
        self.on_input = on_input
        shape = (1, linear.in_features) if on_input else (linear.out_features, 1)  # PEFT's
        self.ia3_l = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten()  # (in,) or (out,)
        if self.on_input:
            return self.linear(x * scale)  # (…, in) -> (…, out)
        return self.linear(x) * scale  # (…, in) -> (…, out)


def apply_ia3_to_model(
    model: nn.Module,
    on_output: list[str] | str = KEYS_AND_VALUES,
    on_input: list[str] | str = FEED_FORWARD,
) -> nn.Module:
    """Rewrites, in place, the layers that find_targets finds, and freezes the rest."""
    mark_only_lora_as_trainable(model)  # there is none: the classifier alone
    for name in find_targets(model, on_output):
        model.set_submodule(name, LinearWithIA3(model.get_submodule(name), on_input=False))
    for name in find_targets(model, on_input):
        model.set_submodule(name, LinearWithIA3(model.get_submodule(name), on_input=True))
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained and saved, under PEFT's names."""
    return {peft_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def save_ia3(model: nn.Module, folder: str, base: str) -> None:
    """Writes the adapter of `model`, trained on the base in a directory, in PEFT's format."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LinearWithIA3)}
    config = {
        "peft_type": "IA3",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": [*layers],
        "feedforward_modules": [name for name, layer in layers.items() if layer.on_input],
        "modules_to_save": ["classifier"] + ["pooler"] * (POOLER in fully_trained(model)),
    }
    tensors = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
    Path(folder).mkdir(parents=True)
    model.config.to_json(Path(folder, "config.json"), type(model).__name__)
    write_json(Path(folder, "adapter_config.json"), config)
    save_file(tensors, Path(folder, "adapter_model.safetensors"), {"format": "pt"})


@torch.no_grad()
def open_ia3(folder: str, base: str) -> nn.Module:
    """The base with an adapter, ours or PEFT's. The shape of a vector says where it scales.

    Raises ValueError for an adapter of another kind.
    """
    state = read_adapter_tensors(Path(folder))
    model = BertForSequenceClassification.from_pretrained(base)
    replace_classifier(model, Path(folder), state)
    on_output, on_input = [], []
    for name, tensor in state.items():
        if name.endswith(".ia3_l"):
            layer = name.removeprefix("base_model.model.").removesuffix(".ia3_l")
            (on_input if len(tensor) == 1 else on_output).append(layer)
    apply_ia3_to_model(model, on_output, on_input)
    wanted = trained_parameters(model)
    for name in sorted(wanted.keys() ^ state.keys()):
        raise ValueError(f"{folder}: {name} is missing, or surplus; is it IA³ on such a base?")
    for name, parameter in wanted.items():
        parameter.copy_(state[name])
    return model.eval()


def main() -> None:
    # Rank 0: no LoRA. No decay: it would pull l towards zero, not towards one.
    settings = {"rank": 0, "weight_decay": 0.0}
    train_beside_lora("IA3", apply_ia3_to_model, save_ia3, lr=1e-2, **settings)


if __name__ == "__main__":
    run_main(main)
