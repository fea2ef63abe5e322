"""AdaLoRA (Zhang et al., 2023, arXiv:2303.10512): LoRA whose ranks move while it trains.

LoRA adds to each layer ΔW = α/R · BA of the same rank R. AdaLoRA's ΔW is nearly a singular value
decomposition, kept so by a term of the loss (section 3.1):

    ΔW = α/R · PΛQ      P (out, R), Q (R, in) drawn at random; Λ diagonal: R zeros at the start
    loss + γ · Σ (‖PᵀP − I‖² + ‖QQᵀ − I‖²)

So each triplet, a column of P, a number λ and a row of Q, can be left out by itself, as λ = 0, and
come back. How important one is, the gradients say of each of its parameters w, smoothed over the
steps (section 3.2):

    I = |w · ∂loss/∂w|    Ī ← β₁Ī + (1 − β₁)I    Ū ← β₂Ū + (1 − β₂)|I − Ī|    s(w) = Ī · Ū
    S = s(λ) + the mean of s over the column of P + that over the row of Q

At every ΔT-th step t the b(t) triplets of the highest S in all layers together stay (section 3.3):
b is 12 a layer for t_i steps, falls to 8 as (1 − (t − t_i)/(T − t_i − t_f))³ does to 0, and for the
last t_f steps the choice is final.

    python -m examples.adalora --epochs 1    # the offline reviews, after LoRA; leaves out-adalora/
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lora
import train
from examples.beside_lora import train_beside_lora
from support.errors import run_main

# Under PEFT's names, with γ, β₁, β₂, ΔT. α/R = 8 and these are those of the authors'
# run_debertav3_sst2.sh, where ΔT is 100.
SETTINGS = {
    "peft_type": "ADALORA",
    "init_r": 12,
    "target_r": 8,
    "lora_alpha": 96,
    "lora_dropout": 0.05,
    "orth_reg_weight": 0.1,
    "beta1": 0.85,
    "beta2": 0.85,
    "deltaT": 10,
}


class SVDLayer(nn.Module):
    """The trained path α/R · P(Λ(Q(dropout(x)))), with PEFT's names for Q, Λ and P."""

    def __init__(self, linear: nn.Linear, settings: dict):
        super().__init__()
        R = settings["init_r"]
        self.scaling = settings["lora_alpha"] / R  # of the rank at first, as in PEFT
        self.dropout = nn.Dropout(settings["lora_dropout"])
        self.lora_A = nn.Parameter(0.02 * torch.randn(R, linear.in_features))
        self.lora_E = nn.Parameter(torch.zeros(R, 1))
        self.lora_B = nn.Parameter(0.02 * torch.randn(linear.out_features, R))

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(self.dropout(x), self.lora_A * self.lora_E)  # (…, in) -> (…, R)
        return F.linear(z, self.lora_B) * self.scaling  # (…, out)

    def delta(self) -> Tensor:
        return self.lora_B @ (self.lora_A * self.lora_E) * self.scaling  # ΔW (out, in)

    def orthogonality(self) -> Tensor:
        """‖PᵀP − I‖² + ‖QQᵀ − I‖²."""
        eye = torch.eye(len(self.lora_E))  # (R, R)
        P_part = self.lora_B.T @ self.lora_B - eye
        Q_part = self.lora_A @ self.lora_A.T - eye
        return P_part.square().sum() + Q_part.square().sum()


def svd_layers(model: nn.Module) -> dict[str, SVDLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SVDLayer)}


def apply_adalora_to_model(
    model: nn.Module, targets=("query", "value"), settings=SETTINGS
) -> nn.Module:
    """Rewrites, in place, the layers that find_targets finds, and freezes the rest."""
    lora.mark_only_lora_as_trainable(model)  # there is none yet: the classifier alone
    for name in lora.find_targets(model, targets):
        linear = model.get_submodule(name)
        both = lora.LinearWithLoRA(linear, SVDLayer(linear, settings))
        model.set_submodule(name, both)
    model.lora_config = {"target_modules": [*targets], **settings}  # save_adapter writes these
    return model


class RankAllocator:
    """Another train_step: orthogonality is in its loss, and after it the best triplets stay."""

    def __init__(self, setup: train.Setup):
        self.layers = [*svd_layers(setup.model).values()]
        self.importance = {}  # Ī of each parameter
        self.uncertainty = {}  # Ū
        self.kept = []  # which triplets (R,) stay, of each layer
        T = setup.steps
        self.settings = setup.model.lora_config
        self.settings |= {"total_step": T, "tinit": T // 8, "tfinal": T * 2 // 5}
        setup.optimizer.register_step_post_hook(self.allocate)

    def __call__(self, setup: train.Setup, rows, step: int) -> None:
        self.step = step
        term = sum(layer.orthogonality() for layer in self.layers)
        setup.placement.scaler.scale(self.settings["orth_reg_weight"] * term).backward()
        train.train_step(setup, rows, step)  # adds the gradients of its loss to these

    @torch.no_grad()
    def allocate(self, *_) -> None:
        """After a step of the optimizer, while the gradients are still there."""
        t, first = self.step, self.settings["tinit"]
        end = self.settings["total_step"] - self.settings["tfinal"]
        if t < end:
            self.follow_gradients()
        if t == end or (first < t < end and t % self.settings["deltaT"] == 0):
            self.choose(left=1 - (t - first) / (end - first))
        elif t < end:
            return
        for layer, kept in zip(self.layers, self.kept, strict=True):
            layer.lora_E[~kept] = 0

    def follow_gradients(self) -> None:
        beta1, beta2 = self.settings["beta1"], self.settings["beta2"]
        for w in (w for layer in self.layers for w in layer.parameters()):
            now = (w * w.grad).abs()
            mean = beta1 * self.importance.get(w, 0) + (1 - beta1) * now
            away = (now - mean).abs()
            self.importance[w] = mean
            self.uncertainty[w] = beta2 * self.uncertainty.get(w, 0) + (1 - beta2) * away

    def choose(self, left: float) -> None:
        """Keeps b(t) triplets, where `left` is the cubed part of the fall from 12 to 8 a layer."""
        target = self.settings["target_r"]
        surplus = (self.settings["init_r"] - target) * left**3
        budget = int(len(self.layers) * surplus + len(self.layers) * target)
        by_layer = [self.score(layer) for layer in self.layers]
        least = torch.cat(by_layer).topk(budget).values[-1]
        self.kept = [scores >= least for scores in by_layer]

    def score(self, layer: SVDLayer) -> Tensor:
        P, Λ, Q = (
            self.importance[w] * self.uncertainty[w]
            for w in (layer.lora_B, layer.lora_E, layer.lora_A)
        )
        return Λ[:, 0] + P.mean(0) + Q.mean(1)  # S (R,)


@torch.no_grad()
def save_adalora(model: nn.Module, folder: str, base: str) -> None:
    """Takes the triplets with λ = 0 out of the model for good, prints the ranks, and saves it."""
    pattern = model.lora_config["rank_pattern"] = {}
    for name, layer in svd_layers(model).items():
        kept = layer.lora_E[:, 0] != 0  # (R,)
        pattern[f"{name}_E"] = kept.tolist()  # of ….query.lora_E: which ones were left
        layer.lora_A = nn.Parameter(layer.lora_A[kept])
        layer.lora_E = nn.Parameter(layer.lora_E[kept])
        layer.lora_B = nn.Parameter(layer.lora_B[:, kept])
        print(f"rank {kept.sum():2} of {name}")
    lora.save_adapter(model, folder, base)


def main() -> None:
    # P and Q keep their length, so that ΔW grows by Λ alone: that takes larger steps than LoRA.
    methods = {"rewrite": apply_adalora_to_model, "save": save_adalora, "prepare": RankAllocator}
    train_beside_lora("AdaLoRA", **methods, lr=5e-3, rank=0)


if __name__ == "__main__":
    run_main(main)
