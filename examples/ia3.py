"""IA³ (Liu et al., 2022, arXiv:2205.05638, section 3.3): vectors that scale what a frozen layer
reads or gives.

LoRA adds a path: Wx + b + α/R · BAx. IA³ (infused adapter by inhibiting and amplifying inner
activations) adds nothing; it makes each number larger or smaller by a learned one, in three places
of every BERT layer:

    keys, values   l ⊙ (Wx + b)              (⊙: number by number; l starts at one, from the base model itself)
    feed-forward   W(l ⊙ gelu(…)) + b

These are D + D + I numbers a layer: 13,824 in MiniLM, where LoRA of rank 8 on query and value has
73,728.

    python -m examples.ia3 --epochs 1        # MiniLM on the offline reviews, after LoRA; leaves out-ia3/
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from bert import BertForSequenceClassification
from examples.beside_lora import train_beside_lora
from lora import POOLER, find_targets, mark_only_lora_as_trainable, replace_heads
from support.adapter_files import PREFIX, peft_name, read_tensors, refuse_another_model
from support.console import run_main
from support.files import write_json, write_tensors

GIVEN = r".*\.(key|value)"
READ = r".*\.layer\.\d+\.output\.dense"  # by the feed-forward's second layer: what gelu gave


class LinearWithIA3(nn.Module):
    """A frozen nn.Linear with a learned vector on what it reads, or on what it gives."""

    def __init__(self, linear: nn.Linear, on_input: bool):
        super().__init__()
        self.linear, self.on_input = linear, on_input
        shape = (
            (1, linear.in_features) if on_input else (linear.out_features, 1)
        )  # as in PEFT's file
        self.ia3_l = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten()  # (in,) or (out,)
        return (
            self.linear(x * scale) if self.on_input else self.linear(x) * scale
        )  # (…, in) -> (…, out)


def apply_ia3_to_model(
    model: nn.Module, given: list[str] | str = GIVEN, read: list[str] | str = READ
) -> nn.Module:
    """Rewrites, in place, the layers whose outputs (`given`) and inputs (`read`) are scaled, and
    freezes the rest."""
    mark_only_lora_as_trainable(model)  # of which there is none: the classifier alone
    for targets, on_input in (given, False), (read, True):
        for name in find_targets(model, targets):
            model.set_submodule(name, LinearWithIA3(model.get_submodule(name), on_input))
    return model


def save_ia3(model: nn.Module, folder: str, base: str) -> None:
    """Writes the adapter of `model`, trained on the base in the directory `base`, in PEFT's
    format."""
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, LinearWithIA3)
    }
    config = {
        "peft_type": "IA3",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    config |= {
        "target_modules": [*layers],
        "feedforward_modules": [n for n, m in layers.items() if m.on_input],
    }
    config |= {"modules_to_save": ["classifier"] + ["pooler"] * (POOLER in model.new_modules)}
    Path(folder).mkdir(parents=True)
    model.config.to_json(f"{folder}/config.json", architectures=[type(model).__name__])
    write_json(f"{folder}/adapter_config.json", config)
    trained = {
        peft_name(name): p.detach() for name, p in model.named_parameters() if p.requires_grad
    }
    write_tensors(f"{folder}/adapter_model.safetensors", trained, {"format": "pt"})


@torch.no_grad()
def open_ia3(folder: str, base: str) -> nn.Module:
    """The base with an adapter, ours or PEFT's; the shapes of its tensors say which layers are
    scaled, and where."""
    state = read_tensors(folder)
    model = BertForSequenceClassification.from_pretrained(base)
    replace_heads(model, folder, state)
    layers = {
        name.removeprefix(PREFIX).removesuffix(".ia3_l"): len(t)
        for name, t in state.items()
        if "ia3_l" in name
    }
    apply_ia3_to_model(
        model, [n for n in layers if layers[n] != 1], [n for n in layers if layers[n] == 1]
    )
    refuse_another_model(
        state, {peft_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    )
    model.load_state_dict(
        {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}, strict=False
    )
    return model.eval()


if (
    __name__ == "__main__"
):  # rank 0: no LoRA; and no decay, which would pull l towards zero, not towards one
    run_main(
        lambda: train_beside_lora(
            "IA3", apply_ia3_to_model, save_ia3, lr=1e-2, rank=0, weight_decay=0.0
        )
    )
