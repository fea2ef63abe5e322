"""AdaLoRA (Zhang et al., 2023, arXiv:2303.10512): LoRA whose ranks move, while it trains, to the
layers that use them.

LoRA adds to each layer ΔW = α/R · BA of the same rank R. AdaLoRA's ΔW is nearly a singular value
decomposition, kept so by a term of the loss (section 3.1):

    ΔW = α/R · PΛQ          P (out, R), Q (R, in) drawn at random; Λ diagonal: R numbers that start at zero
    loss + γ · Σ (‖PᵀP − I‖² + ‖QQᵀ − I‖²)

So each triplet, a column of P, a number λ and a row of Q, can be left out by itself, as λ = 0, and
come back. How important one is, the gradients say of each of its parameters w, smoothed over the
steps (section 3.2):

    I = |w · ∂loss/∂w|      Ī ← β₁Ī + (1 − β₁)I      Ū ← β₂Ū + (1 − β₂)|I − Ī|      s(w) = Ī · Ū
    S = s(λ) + the mean of s over the column of P + that over the row of Q

At every ΔT-th step t the b(t) triplets of the highest S in all layers together stay (section 3.3):
b is 12 a layer for t_i steps, falls to 8 as (1 − (t − t_i)/(T − t_i − t_f))³ does to 0, and for the
last t_f steps the choice is final.

    python -m examples.adalora --epochs 1   # MiniLM on the offline reviews, after LoRA; leaves out-adalora/
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lora
import train
from bert import Dropout
from examples.beside_lora import train_beside_lora
from support.console import run_main

# Under PEFT's names, with γ, β₁, β₂, ΔT; α/R = 8 and these are of the authors'
# run_debertav3_sst2.sh, but for ΔT = 100.
SETTINGS = {
    "peft_type": "ADALORA",
    "init_r": 12,
    "target_r": 8,
    "lora_alpha": 96,
    "lora_dropout": 0.05,
}
SETTINGS |= {"orth_reg_weight": 0.1, "beta1": 0.85, "beta2": 0.85, "deltaT": 10}


class SVDLayer(nn.Module):
    """The trained path α/R · P(Λ(Q(dropout(x)))), with PEFT's names for Q, Λ and P."""

    def __init__(self, linear: nn.Linear, settings: dict):
        super().__init__()
        R, self.dropout = settings["init_r"], Dropout(settings["lora_dropout"])
        self.scaling = settings["lora_alpha"] / R  # of the rank at first, as in PEFT
        self.lora_A = nn.Parameter(0.02 * torch.randn(R, linear.in_features))
        self.lora_E = nn.Parameter(torch.zeros(R, 1))
        self.lora_B = nn.Parameter(0.02 * torch.randn(linear.out_features, R))

    def forward(self, x: Tensor) -> Tensor:
        return (
            F.linear(F.linear(self.dropout(x), self.lora_A * self.lora_E), self.lora_B)
            * self.scaling
        )

    def delta(self) -> Tensor:
        return self.lora_B @ (self.lora_A * self.lora_E) * self.scaling  # ΔW (out, in)

    def orthogonality(self) -> Tensor:
        P, Q, eye = self.lora_B, self.lora_A, torch.eye(len(self.lora_E))
        return (P.T @ P - eye).square().sum() + (Q @ Q.T - eye).square().sum()


class LinearWithSVD(lora.LinearWithLoRA):
    def forward(self, x: Tensor) -> Tensor:
        return (
            self.linear(x) if self.unmerged_weight is not None else self.linear(x) + self.lora(x)
        )  # (…, out)


def apply_adalora_to_model(
    model: nn.Module, targets=("query", "value"), settings=SETTINGS
) -> nn.Module:
    """Rewrites, in place, the layers that find_targets finds."""
    lora.mark_only_lora_as_trainable(model)  # of which there is none yet: the classifier alone
    for name in lora.find_targets(model, targets):
        linear = model.get_submodule(name)
        model.set_submodule(name, LinearWithSVD(linear, SVDLayer(linear, settings)))
    model.lora_config = {"target_modules": list(targets), **settings}  # save_adapter writes these
    return model


class RankAllocator:
    """Another train_step: the orthogonality is in its loss, and after it the most important
    triplets are kept."""

    def __init__(self, run: train.Run):
        self.layers = [module for module in run.model.modules() if isinstance(module, SVDLayer)]
        self.I, self.U, self.kept, self.settings = {}, {}, [], run.model.lora_config
        self.settings |= {
            "total_step": run.steps,
            "tinit": run.steps // 8,
            "tfinal": run.steps * 2 // 5,
        }  # T, t_i, t_f
        run.optimizer.register_step_post_hook(
            lambda *_: self.allocate(run.progress.step, **self.settings)
        )

    def __call__(self, run: train.Run, rows) -> None:
        term = self.settings["orth_reg_weight"] * sum(
            layer.orthogonality() for layer in self.layers
        )
        term.backward()  # train_step adds the gradients of its loss to these
        train.train_step(run, rows)

    @torch.no_grad()
    def allocate(
        self, t, *, init_r, target_r, beta1, beta2, deltaT, tinit, tfinal, total_step, **_
    ) -> None:
        end, s = total_step - tfinal, lambda p: self.I[p] * self.U[p]
        for p in [p for layer in self.layers for p in layer.parameters() if t < end]:
            now = (p * p.grad).abs()
            self.I[p] = beta1 * self.I.get(p, 0) + (1 - beta1) * now
            self.U[p] = beta2 * self.U.get(p, 0) + (1 - beta2) * (now - self.I[p]).abs()
        if t == end or (tinit < t < end and t % deltaT == 0):
            falls = len(self.layers) * (init_r - target_r) * (1 - (t - tinit) / (end - tinit)) ** 3
            budget = int(falls + len(self.layers) * target_r)
            S = [
                s(la.lora_E)[:, 0] + s(la.lora_B).mean(0) + s(la.lora_A).mean(1)
                for la in self.layers
            ]  # (R,) of each
            least = torch.cat(S).topk(budget).values[-1]
            self.kept = [scores >= least for scores in S]
        elif t < end:
            return
        for layer, kept in zip(self.layers, self.kept, strict=True):
            layer.lora_E[~kept] = 0


@torch.no_grad()
def save_adalora(model: nn.Module, folder: str, base: str) -> None:
    """Takes the triplets with λ = 0 out of the model for good, says the ranks, and writes PEFT's
    format."""
    pattern = model.lora_config["rank_pattern"] = {}
    for name, layer in ((n, m) for n, m in model.named_modules() if isinstance(m, SVDLayer)):
        kept = layer.lora_E[:, 0] != 0  # (R,)
        pattern[f"{name}_E"] = kept.tolist()  # of ….query.lora_E: which ones were left
        left = layer.lora_A[kept], layer.lora_E[kept], layer.lora_B[:, kept]
        layer.lora_A, layer.lora_E, layer.lora_B = map(nn.Parameter, left)
        print(f"rank {sum(pattern[f'{name}_E']):2} of {name}")
    lora.save_adapter(model, folder, base)


if (
    __name__ == "__main__"
):  # P and Q keep their length, so that ΔW grows by Λ alone: that takes larger steps than LoRA
    run_main(
        lambda: train_beside_lora(
            "AdaLoRA", apply_adalora_to_model, save_adalora, RankAllocator, 5e-3, rank=0
        )
    )
