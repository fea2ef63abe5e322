"""LoRA, low-rank adaptation (Hu et al., 2021, arXiv:2106.09685), by explicit module rewriting.

A frozen layer y = Wx + b gets a trained path beside it. Only A and B learn:

           x (D) ──────────┬──────────────────┐
                           │                  │ dropout
                 W (D, D) frozen         A (R, D)  drawn at random             R = 8, D = 768:
                           │                  │                                12,288 numbers
                           │             B (D, R)  starts at zero              instead of 589,824
                           │                  │ · α/R
           y (D) ──────────┴──── + ───────────┘

    apply_lora_to_model(model, ["query", "value"], rank=8, alpha=16, dropout=0.05)
    mark_only_lora_as_trainable(model)      # then train, and
    save_adapter(model, "out/best", base)   # adapter_config.json, adapter_model.safetensors

All A and B together with the classifier are the adapter; the model beside which it was trained is its base. The files
are those of PEFT, Hugging Face's library for adapters. print(model) shows each rewritten layer. On the command line:

    python lora.py merge out/best merged/           # the adapter folded into its base: a plain checkpoint
    python lora.py push out/best you/bert-lora      # to the Hugging Face Hub, with its model card
"""

import copy
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from bert import BertConfig, BertForSequenceClassification, Dropout
from support import adapter_files, base_files, faster, hub
from support.console import run_main
from support.files import InputError
from support.options import OneLineParser


class LoRALayer(nn.Module):
    """The trained path: lora(x) = scaling · B(A(dropout(x))) (section 4.1)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        dropout: float,
        use_rslora: bool = False,
    ):
        super().__init__()
        # BA is a sum of R products, a column of B by a row of A; divided by R it is their mean. Of products that are
        # alike the mean stays as large when R doubles, and the best learning rate stays too (section 4.1). Of unrelated
        # ones it falls to 1/√2 of its size, unless one divides by √R: rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732).
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.dropout = Dropout(dropout)
        self.lora_A = nn.Linear(
            in_features, rank, bias=False
        )  # drawn uniformly within ±1/√in, as in the paper's code
        self.lora_B = nn.Linear(rank, out_features, bias=False)
        # B is zero, so that training starts from the base model itself. A is not: the gradient of B is made of Ax, and
        # that of A of B, so that with both at zero neither would ever move; and it is random, so that its rows differ.
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        # This runs on a GPU. On a CPU LinearWithLoRA takes a faster form of it, unless you set faster.ENABLED = False.
        return (
            self.lora_B(self.lora_A(self.dropout(x))) * self.scaling
        )  # (…, in) -> (…, R) -> (…, out)

    def delta(self) -> Tensor:
        """What the path adds to the weight matrix: ΔW = scaling · BA, (out, in)."""
        return self.lora_B.weight @ self.lora_A.weight * self.scaling


class LinearWithLoRA(nn.Module):
    """A frozen nn.Linear with a LoRALayer beside it: y = linear(x) + lora(x)."""

    def __init__(self, linear: nn.Linear, lora: LoRALayer):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora = lora
        self.unmerged_weight: nn.Parameter | None = (
            None  # W itself, kept while W + ΔW stands in its place
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.unmerged_weight is not None:
            return self.linear(x)  # (…, out)
        if type(self.linear) is not nn.Linear or not faster.on_cpu(
            x
        ):  # layers of another kind may hold no plain W
            return self.linear(x) + self.lora(x)  # (…, out)
        # On a CPU the same sum, with its gradients written by hand; tests/support/test_faster.py holds the two equal.
        return faster.linear_plus_lora(x, self)[0]  # (…, out)

    @torch.no_grad()
    def merge_weights(self) -> None:
        """Folds the adapter into W: one matrix product again. train() and eval() never do so by themselves."""
        if self.unmerged_weight is None:
            merged = self.linear.weight + self.lora.delta().to(self.linear.weight.dtype)
            self.unmerged_weight = self.linear.weight
            self.linear.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge_weights(self) -> None:
        """Puts W back, the very tensor that was there: bit for bit."""
        if self.unmerged_weight is not None:
            self.linear.weight = self.unmerged_weight
            self.unmerged_weight = None


# Rewriting a model.

POOLER = "bert.pooler.dense"


def trained_whole(model: nn.Module) -> set[str]:
    """The layers that are trained in full: the classifier, and the pooler if the base's file lacked one.

    Drawn at random, they leave nothing to adapt; and a classifier, even one that the base brings, is only C · (D + 1)
    numbers.
    """
    return {"classifier", *model.new_modules}


def find_targets(model: nn.Module, target_modules: list[str] | str) -> list[str]:
    """The names of the linear layers that `target_modules` means, as in PEFT.

    A list holds names, or ends of names after a dot; a string is a regular expression on the whole name, but for
    "all-linear": every linear layer but those trained in full. Raises InputError for a target that matches nothing.
    """
    whole = trained_whole(model)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in whole]
    return (
        linears
        if target_modules == "all-linear"
        else adapter_files.match_targets(linears, target_modules)
    )


def apply_lora_to_model(
    model: nn.Module,
    target_modules: list[str] | str = ("query", "value"),
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.05,
    use_rslora: bool = False,
) -> nn.Module:
    """Rewrites, in place, the layers that find_targets finds into LinearWithLoRA; returns the model.

    Query and value are the default, as in the paper, which found no better use of as many numbers (section 7.1, table
    5). All of attention, or every linear layer, is larger, and was better on SST-2 (docs/results.md).
    """
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise InputError(
            "LoRA takes a rank of at least 1, an alpha above 0, a dropout of at least 0 and below 1"
        )
    names = find_targets(model, target_modules)
    for name in names:
        linear = model.get_submodule(name)
        lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, dropout, use_rslora)
        model.set_submodule(
            name, LinearWithLoRA(linear, lora.to(linear.weight.device)).train(linear.training)
        )
    if POOLER in trained_whole(model):
        target_modules = (
            names  # the layers themselves: PEFT would count the pooler among "all-linear"
        )
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    model.lora_config = {"target_modules": targets, "r": rank, "lora_alpha": alpha}  # PEFT's names
    model.lora_config |= {"lora_dropout": dropout, "use_rslora": use_rslora}
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained and saved, by name: A, B and the layers that are trained in full."""
    whole = trained_whole(model)
    return {
        n: p for n, p in model.named_parameters() if ".lora." in n or n.rpartition(".")[0] in whole
    }


def mark_only_lora_as_trainable(model: nn.Module) -> None:
    """Freezes everything but A, B and the layers that are trained in full."""
    model.requires_grad_(False)
    for parameter in trained_parameters(model).values():
        parameter.requires_grad_(True)


def count_lora_parameters(model: nn.Module) -> int:
    """The numbers in A and B. For bert-base, 12 layers × 2 targets × rank 8 × (768 in + 768 out) = 294,912."""
    return sum(p.numel() for name, p in model.named_parameters() if ".lora." in name)


def merge_lora_weights(model: nn.Module) -> nn.Module:
    """Folds every adapter into its layer and puts the plain nn.Linear back: the model is a plain BERT again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearWithLoRA):
            module.merge_weights()
            model.set_submodule(name, module.linear)
    return model


# Adapters in memory and on disk, under PEFT's names.


def get_lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A, B and the classifier under PEFT's names: base_model.model.….query.lora_A.weight (R, in)."""
    parameters = trained_parameters(model)
    return {
        adapter_files.peft_name(name): tensor.detach().cpu() for name, tensor in parameters.items()
    }


@torch.no_grad()
def load_lora_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of get_lora_state_dict. Raises InputError naming what is missing, surplus or of another shape."""
    wanted = {
        adapter_files.peft_name(name): parameter
        for name, parameter in trained_parameters(model).items()
    }
    adapter_files.refuse_another_model(state, wanted)
    for name, parameter in wanted.items():
        parameter.copy_(state[name])


def save_adapter(model: nn.Module, folder: str | Path, base: str) -> None:
    """Writes the adapter of `model`, trained on the base `base`, a directory or `owner/name[@revision]`.

    config.json beside it keeps the base's shapes and the names of the classes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.to_json(folder / "config.json", architectures=[type(model).__name__])
    adapter_files.write(
        folder, base, model.lora_config, get_lora_state_dict(model), POOLER in trained_whole(model)
    )


def open_adapter(
    adapter: str, base: str | nn.Module | None = None, dropout: float | None = None
) -> BertForSequenceClassification:
    """Loads the adapter of a directory or Hub repository; returns its base model with it, in eval mode.

    `base` is another base than the one that the adapter names: a directory, a Hub repository, or a model in memory,
    whose tensors the result then shares. `dropout` is another than the adapter's, for going on with its training.
    """
    config = adapter_files.read_config(adapter)
    state = adapter_files.read_tensors(adapter, config["r"])
    base = base or adapter_files.named_base(adapter)
    in_memory = isinstance(base, nn.Module)
    model = shared_copy(base) if in_memory else BertForSequenceClassification.from_pretrained(base)
    replace_heads(model, adapter, state)
    layers, targets = adapter_files.adapted(
        state, find_targets(model, "all-linear"), config["target_modules"]
    )
    dropout = config["lora_dropout"] if dropout is None else dropout
    settings = (config["r"], config["lora_alpha"], dropout, config["use_rslora"])
    apply_lora_to_model(model, layers if isinstance(targets, str) else targets, *settings)
    load_lora_state_dict(model, state)
    model.lora_config |= {
        "target_modules": targets,
        "base_model_name_or_path": None if in_memory else base,
    }
    return model.eval()


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules, which shares all tensors with `model`."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def replace_heads(
    model: BertForSequenceClassification, adapter: str, state: dict[str, Tensor]
) -> None:
    """Gives the model a classifier for the adapter's classes, and a pooler if the adapter has one."""
    C, has_pooler = adapter_files.heads(state)
    path = hub.find_file(adapter, "config.json", required=False)
    told = BertConfig.from_json(path) if path else BertConfig(id2label={})
    model.config.id2label = (
        told.id2label if told.num_labels == C else {i: f"LABEL_{i}" for i in range(C)}
    )
    model.config.text_pairs = told.text_pairs
    D, device = model.config.hidden_size, model.classifier.weight.device
    model.classifier = nn.Linear(D, C, device=device)
    if has_pooler:
        model.bert.pooler.dense = nn.Linear(D, D, device=device)
    model.new_modules = (POOLER,) if has_pooler or POOLER in model.new_modules else ()


class RoutedLinear(nn.Module):
    """A frozen nn.Linear and the LoRALayers of several adapters, each for its own rows of the batch."""

    def __init__(self, linear: nn.Linear, routes: dict[str, slice]):
        super().__init__()
        self.linear, self.routes = linear, routes
        self.loras: dict[str, LoRALayer] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (B, …, out)
        for name in self.routes.keys() & self.loras.keys():
            rows, lora = self.routes[name], self.loras[name]
            if not faster.on_cpu(x):
                y[rows] += lora(x[rows])
            else:  # the same, added in one product: tests/support/test_faster.py
                faster.add_low_rank(
                    y[rows], x[rows], lora.lora_A.weight, lora.lora_B.weight, lora.scaling
                )
        return y


class AdapterBank:
    """Any number of adapters by name on one base in memory, whatever their ranks, targets and classes.

    `bank.load("sst2", "out/best")` adds one. Switching is picking another model: `bank.models["sst2"](input_ids)`;
    `bank.forward_rows(["sst2", "cola"], input_ids)` takes another adapter for each row, in one pass through the base.
    """

    def __init__(self, base: str):
        self.base = BertForSequenceClassification.from_pretrained(base)
        self.models: dict[str, BertForSequenceClassification] = {}
        self.routes: dict[
            str, slice
        ] = {}  # the rows of each adapter in the batch at hand, for every RoutedLinear
        self.mixed = shared_copy(self.base.bert)
        for name in find_targets(self.mixed, "all-linear"):
            self.mixed.set_submodule(
                name, RoutedLinear(self.mixed.get_submodule(name), self.routes)
            )

    def load(self, name: str, adapter: str) -> BertForSequenceClassification:
        """Adds an adapter, or puts it in the place of the one of that name; returns its model."""
        model = open_adapter(adapter, self.base)
        if name in self.models:
            self.remove(name)
        self.models[name] = model
        for path, module in model.bert.named_modules():
            if isinstance(module, LinearWithLoRA):
                self.mixed.get_submodule(path).loras[name] = module.lora
        return model

    def remove(self, name: str) -> None:
        del self.models[name]
        for module in self.mixed.modules():
            if isinstance(module, RoutedLinear):
                module.loras.pop(name, None)

    @torch.inference_mode()
    def forward_rows(
        self,
        names: list[str],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids=None,
    ) -> list[Tensor]:
        """For each row i of a batch (B, S) the logits (C,) of the adapter `names[i]`, in one pass through the base."""
        order = sorted(
            range(len(names)), key=names.__getitem__
        )  # an adapter's rows stand together: a view, no copy
        ordered = [names[i] for i in order]
        self.routes.clear()
        self.routes |= {
            n: slice(ordered.index(n), ordered.index(n) + ordered.count(n))
            for n in dict.fromkeys(ordered)
        }
        inputs = [
            None if t is None else t[order] for t in (input_ids, attention_mask, token_type_ids)
        ]
        x, _ = self.mixed(*inputs, cls_only=True)  # (B, 1, D); each adapter has a pooler of its own
        logits: list[Tensor] = []
        for name, rows in self.routes.items():
            model = self.models[name]
            logits += model.classifier(model.bert.pooler(x[rows]))  # (rows of this adapter, C)
        return [logits[order.index(i)] for i in range(len(names))]


def merge(adapter: str, folder: str, base: str | None, dtype: str, overwrite: bool) -> None:
    """Leaves in `folder` the plain BERT that an adapter makes of its base, with the base's tokenizer."""
    base = base or adapter_files.named_base(adapter)
    sources = [
        hub.find_file(adapter, "adapter_model.safetensors"),
        hub.find_file(base, "model.safetensors"),
    ]
    with base_files.model_written_whole(folder, sources, overwrite) as temporary:
        model = merge_lora_weights(open_adapter(adapter, base))
        model.to(getattr(torch, dtype)).save_pretrained(temporary)
        base_files.copy_tokenizer(base, temporary)
    print(f"{folder}: {adapter} merged into {base}")


def main() -> None:
    parser = OneLineParser(description="Work with a trained adapter.")
    commands = parser.add_subparsers(required=True, metavar="merge|push")
    command = commands.add_parser(
        "merge", help="fold an adapter into its base, as a plain BERT checkpoint"
    )
    command.add_argument("adapter", help="a directory such as out/best, or a Hub repository")
    command.add_argument("folder", help="where the checkpoint goes")
    command.add_argument(
        "--model", dest="base", help="the base model (default: the one that the adapter names)"
    )
    command.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the model in the folder, if it is no source",
    )
    command.set_defaults(run=merge)
    command = commands.add_parser(
        "push", help="upload an adapter and its model card to the Hugging Face Hub"
    )
    command.add_argument("folder", metavar="adapter", help="a directory such as out/best")
    command.add_argument("repository", help="owner/name")
    command.add_argument(
        "--private", action="store_true", help="if the repository is new, make it private"
    )
    command.set_defaults(run=hub.push_adapter)
    arguments = vars(parser.parse_args())
    arguments.pop("run")(**arguments)


if __name__ == "__main__":
    run_main(main)
