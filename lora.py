"""LoRA, low-rank adaptation (Hu et al., 2021, arXiv:2106.09685), by explicit module rewriting.

A frozen layer y = Wx + b gets a trained path beside it. Only A and B learn:

           x (D) ──────────┬──────────────────┐
                           │                  │ dropout
                 W (D, D) frozen         A (R, D)  drawn as nn.Linear draws     R = 8, D = 768:
                           │                  │                                 12,288 numbers
                           │             B (D, R)  starts at zero               instead of 589,824
                           │                  │ · α/R
           y (D) ──────────┴──── + ───────────┘

    apply_lora_to_model(model, ["query", "value"], rank=8, alpha=16, dropout=0.05)
    mark_only_lora_as_trainable(model)      # then train, and
    save_adapter(model, "out/best", base)   # adapter_config.json, adapter_model.safetensors: PEFT's format

print(model) shows each rewritten layer. On the command line:

    python lora.py merge out/best merged/           # the adapter folded into its base: a plain checkpoint
    python lora.py push out/best you/bert-lora      # to the Hugging Face Hub, with its model card
"""

import argparse
import copy
import difflib
import functools
import math
import re
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert import (
    BertConfig,
    BertForSequenceClassification,
    InputError,
    OneLineParser,
    draw_kept,
    find_file,
    hub_errors,
    listing,
    open_safetensors,
    read_json,
    read_tensor,
    run_main,
    write_json,
    write_tensors,
    written_whole,
)


class LoRALayer(nn.Module):
    """The trained path: y = scaling · B(A(dropout(x))), scaling = α/R (section 4.1; rsLoRA: α/√R)."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, alpha: float, dropout: float, use_rslora: bool = False
    ):
        super().__init__()
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Linear(in_features, rank, bias=False)  # nn.Linear draws it Kaiming-uniform, a = √5
        self.lora_B = nn.Linear(rank, out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)  # so that training starts from the base model itself

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(self.dropout(x))) * self.scaling  # (…, in) -> (…, R) -> (…, out)

    def delta(self) -> Tensor:
        """What the path adds to the weight matrix: scaling · BA, (out, in)."""
        return self.lora_B.weight @ self.lora_A.weight * self.scaling


class FrozenPlusLowRank(torch.autograd.Function):
    """y = Wx + b + scaling · B(A(kept · x)), and its gradients for x, A and B, with N rows of x at once.

    The very sums of `linear(x) + lora(x)`. By hand, because autograd adds up three tensors of x's size that
    are one here, and takes the products with R columns in an order that is three times slower on a CPU.
    """

    @staticmethod
    def forward(ctx, x, W, b, A, B, scaling, kept):
        h = x if kept is None else kept.to(x.dtype).mul_(x)  # (N, in)
        z = (A @ h.t()).mul_(scaling)  # (R, N)
        y = F.linear(x, W, b).addmm_(z.t(), B.t())  # (N, out)
        ctx.save_for_backward(h, W, A, B, z, kept)
        ctx.scaling = scaling
        return y

    @staticmethod
    def backward(ctx, dy):
        h, W, A, B, z, kept = ctx.saved_tensors
        dz = (B.t() @ dy.t()).mul_(ctx.scaling)  # (R, N)
        dA = dz @ h  # (R, in)
        dB = (z @ dy).t()  # (out, R)
        dx = None
        if ctx.needs_input_grad[0]:  # not in the first layer: nothing below it is trained
            dx = (dy @ W).addmm_(dz.t(), A) if kept is None else (dz.t() @ A).mul_(kept).addmm_(dy, W)  # (N, in)
        return dx, None, None, dA, dB, None, None


class LinearWithLoRA(nn.Module):
    """A frozen nn.Linear with a LoRALayer beside it: y = linear(x) + lora(x)."""

    def __init__(self, linear: nn.Linear, lora: LoRALayer):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora = lora
        self.unmerged_weight: nn.Parameter | None = None  # W itself, kept while W + scaling·BA stands in its place

    def forward(self, x: Tensor) -> Tensor:
        if self.unmerged_weight is not None:
            return self.linear(x)
        device, lora = x.device.type, self.lora
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rows = x.flatten(0, -2).to(dtype)  # (…, in) -> (N, in)
        p = lora.dropout.p if self.training else 0.0
        kept = draw_kept(rows, p) if p else None  # (N, in)
        weights = (self.linear.weight, self.linear.bias, lora.lora_A.weight, lora.lora_B.weight)
        y = FrozenPlusLowRank.apply(rows, *(w.to(dtype) for w in weights), lora.scaling / (1 - p), kept)  # (N, out)
        return y.unflatten(0, x.shape[:-1])  # (…, out)

    @torch.no_grad()
    def merge_weights(self) -> None:
        """Folds the adapter into W: one matrix product again. Never a side effect of eval()."""
        if self.unmerged_weight is None:
            merged = self.linear.weight + self.lora.delta().to(self.linear.weight.dtype)
            self.unmerged_weight = self.linear.weight
            self.linear.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge_weights(self) -> None:
        """Puts W back, the very tensor that was there: bit for bit."""
        if self.unmerged_weight is not None:
            self.linear.weight = self.unmerged_weight
            self.unmerged_weight = None


def find_targets(model: nn.Module, target_modules: list[str] | str) -> list[str]:
    """The names of the linear layers that `target_modules` means, by PEFT's rule.

    Each entry of a list stands for a whole name or for the end of one after a dot; a string is a
    regular expression on the whole name, but for "all-linear", every linear layer except the
    classifier. A target that matches nothing raises InputError with the closest names.
    """
    whole = trained_whole(model)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in whole]
    if target_modules == "all-linear":
        return linears
    if isinstance(target_modules, str):
        patterns = {target_modules: target_modules}
    else:
        patterns = {target: rf"(.*\.)?{re.escape(target)}" for target in target_modules}
    for target, pattern in patterns.items():
        try:
            found = any(re.fullmatch(pattern, name) for name in linears)
        except re.error as error:
            raise InputError(f"the target {target!r} is no regular expression: {error}") from None
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in linears})
            close = difflib.get_close_matches(target, ends + linears, cutoff=0.5) or ends
            raise InputError(f"the target {target!r} matches no linear layer of this model; closest: {listing(close)}")
    return [name for name in linears if any(re.fullmatch(pattern, name) for pattern in patterns.values())]


def apply_lora_to_model(
    model: nn.Module,
    target_modules: list[str] | str = ("query", "value"),
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.05,
    use_rslora: bool = False,
) -> nn.Module:
    """Rewrites, in place, the layers that find_targets finds into LinearWithLoRA; returns the model."""
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise InputError("LoRA takes a rank of at least 1, an alpha above 0, a dropout of at least 0 and below 1")
    names = find_targets(model, target_modules)
    for name in names:
        linear = model.get_submodule(name)
        lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha, dropout, use_rslora)
        model.set_submodule(name, LinearWithLoRA(linear, lora.to(linear.weight.device)).train(linear.training))
    if POOLER in trained_whole(model):
        target_modules = names  # spelt out, as PEFT would adapt the pooler too
    model.lora_config = {  # under the names of adapter_config.json
        "target_modules": target_modules if isinstance(target_modules, str) else list(target_modules),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": use_rslora,
    }
    return model


POOLER = "bert.pooler.dense"


def trained_whole(model: nn.Module) -> set[str]:
    """The layers that learn in full: the classifier, and whatever else the base's file lacked."""
    return {"classifier", *getattr(model, "new_modules", ())}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained and saved, by name: A, B and the layers that learn in full."""
    whole = trained_whole(model)
    return {n: p for n, p in model.named_parameters() if ".lora." in n or n.rpartition(".")[0] in whole}


def mark_only_lora_as_trainable(model: nn.Module) -> None:
    """Freezes everything but A, B and the layers that are new and so learn in full, as the classifier does."""
    model.requires_grad_(False)
    for parameter in trained_parameters(model).values():
        parameter.requires_grad_(True)


def count_lora_parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".lora." in name)


def peft_name(name: str) -> str:
    return f"base_model.model.{name.replace('.lora.', '.')}"


def get_lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A, B and the classifier under PEFT's names: base_model.model.….query.lora_A.weight (R, in)."""
    return {peft_name(name): tensor.detach().cpu() for name, tensor in trained_parameters(model).items()}


@torch.no_grad()
def load_lora_state_dict(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of get_lora_state_dict. Raises InputError naming what is missing, surplus or of another shape."""
    # PEFT's running modules, and some of its older files, spell out the adapter's name.
    state = {re.sub(r"\.modules_to_save|\.default(?=\.)", "", name): tensor for name, tensor in state.items()}
    wanted = {peft_name(name): parameter for name, parameter in trained_parameters(model).items()}
    for problem, names in ("lacks", wanted.keys() - state.keys()), ("has the surplus", state.keys() - wanted.keys()):
        if names:
            raise InputError(f"the adapter {problem} {listing(sorted(names))}; is it one for this base model?")
    for name, parameter in wanted.items():
        if parameter.shape != state[name].shape:
            shapes = f"{list(state[name].shape)}, but this base model takes {list(parameter.shape)}"
            raise InputError(f"the adapter's {name} has the shape {shapes}")
        parameter.copy_(state[name])


def merge_lora_weights(model: nn.Module) -> nn.Module:
    """Folds every adapter into its layer and puts the plain nn.Linear back: the model is a plain BERT again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearWithLoRA):
            module.merge_weights()
            model.set_submodule(name, module.linear)
    return model


# Adapters on disk, in PEFT's format.

WITH_POOLER = ["classifier", "pooler", "score"]  # modules_to_save, where the base's file has no pooler
# What other fields of adapter_config.json may say without changing what this file computes.
HARMLESS = {
    "bias": ["none"],
    "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"],
    "megatron_core": ["megatron.core"],
    "modules_to_save": [["classifier", "score"], ["classifier"], WITH_POOLER],
    "peft_type": ["LORA"],
    "qalora_group_size": [16],
    "task_type": ["SEQ_CLS"],
}
KNOWN = {"target_modules", "r", "lora_alpha", "lora_dropout", "use_rslora", "base_model_name_or_path", "revision"}
IRRELEVANT = {"auto_mapping", "inference_mode", "peft_version"}


def save_adapter(model: nn.Module, folder: str | Path, base: str) -> None:
    """Writes the adapter of `model`, trained on the base `base`, a directory or `owner/name[@revision]`.

    config.json beside it keeps the base's shapes and the names of the classes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, _, revision = (str(Path(base).absolute()), "", "") if Path(base).is_dir() else base.partition("@")
    config = {field: values[0] for field, values in HARMLESS.items()} | model.lora_config
    config |= {"base_model_name_or_path": name, "revision": revision or None, "inference_mode": True}
    if POOLER in trained_whole(model):
        config["modules_to_save"] = WITH_POOLER
    model.config.to_json(folder / "config.json", architectures=[type(model).__name__])
    write_json(folder / "adapter_config.json", config)
    write_tensors(folder / "adapter_model.safetensors", get_lora_state_dict(model), {"format": "pt"})


def read_adapter_config(adapter: str) -> dict:
    """The adapter_config.json of a directory or Hub repository. InputError names any field that asks for more."""
    path = find_file(adapter, "adapter_config.json")
    config = read_json(path)
    if isinstance(config.get("modules_to_save"), list):  # PEFT repeats itself there
        config["modules_to_save"] = sorted({str(module) for module in config["modules_to_save"]})
    for field, value in config.items():
        harmless = field in KNOWN | IRRELEVANT or value in HARMLESS.get(field, []) or not value
        if not harmless:
            raise InputError(f"{path}: {field} = {value!r:.60} is not supported")
    targets, rank, alpha = config.get("target_modules"), config.get("r"), config.get("lora_alpha")
    named = isinstance(targets, str) or (isinstance(targets, list) and all(isinstance(t, str) for t in targets))
    if not targets or not named:
        raise InputError(f"{path}: target_modules must be a list of names, or a regular expression")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise InputError(f"{path}: r and lora_alpha must be positive numbers, not {rank!r:.20} and {alpha!r:.20}")
    dropout, rslora = config.get("lora_dropout") or 0.0, config.get("use_rslora") or False
    if type(dropout) not in (int, float) or not 0 <= dropout < 1 or type(rslora) is not bool:
        raise InputError(f"{path}: lora_dropout {dropout!r:.20} or use_rslora {rslora!r:.20} is not of its kind")
    return config | {"lora_dropout": dropout, "use_rslora": rslora}


def adapter_base(adapter: str) -> str:
    """The base model that an adapter names: a directory, or `owner/name[@revision]`."""
    config = read_adapter_config(adapter)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise InputError(f"{adapter}: adapter_config.json names no base model; give one with --model")
    return f"{base}@{revision}" if revision else base


def shared_copy(model: nn.Module) -> nn.Module:
    """Modules of their own around the very tensors of `model`."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def open_adapter(adapter: str, base: str | nn.Module | None = None) -> BertForSequenceClassification:
    """The adapter of a directory or Hub repository on its base, or on another one that is named or already in memory.

    On a base in memory the result is a model of its own, but its frozen tensors are the base's, and cost nothing.
    """
    config = read_adapter_config(adapter)
    path = find_file(adapter, "adapter_model.safetensors")
    with open_safetensors(path) as file:
        state = {key: read_tensor(file, path, key) for key in file.keys()}
    for name, tensor in state.items():  # before anything of the size that r claims is allocated
        if ".lora_A." in name and tensor.shape[:1] != (config["r"],):
            raise InputError(f"{path}: {name} is {list(tensor.shape)}, but adapter_config.json says r = {config['r']}")
    base = base or adapter_base(adapter)
    if isinstance(base, str):
        model, name = BertForSequenceClassification.from_pretrained(base), base
    else:
        model, name = shared_copy(base), None
    labels = find_file(adapter, "config.json", required=False)
    C = next((len(tensor) for name, tensor in state.items() if re.search(r"\.classifier\..*weight$", name)), 2)
    names = BertConfig.from_json(labels).id2label if labels else {}
    model.config.id2label = names if len(names) == C else {i: f"LABEL_{i}" for i in range(C)}
    D = model.config.hidden_size
    model.classifier = nn.Linear(D, C)
    model.new_modules = tuple(module for module in model.new_modules if module == POOLER)
    if any(".pooler." in name and ".lora_" not in name for name in state):  # trained, as the base's file had none
        model.bert.pooler.dense, model.new_modules = nn.Linear(D, D), (POOLER,)
    # The tensors say which layers are meant: no regular expression out of a file is run, and PEFT lets some of a
    # list's targets match nothing.
    adapted = {re.sub(r"^base_model\.model\.|\.lora_A\..*", "", key) for key in state if ".lora_A." in key}
    targets = config["target_modules"]
    if not isinstance(targets, str):
        targets = [target for target in targets if any(f".{layer}".endswith(f".{target}") for layer in adapted)]
    exact = sorted(adapted) if isinstance(targets, str) else targets
    settings = [config[key] for key in ("r", "lora_alpha", "lora_dropout", "use_rslora")]
    apply_lora_to_model(model, exact, *settings)
    load_lora_state_dict(model, state)
    model.lora_config |= {"target_modules": targets, "base_model_name_or_path": name}
    return model.eval()


# Many adapters on one base.


class RoutedLinear(nn.Module):
    """A frozen nn.Linear and the LoRALayers of several adapters, each for its own rows of the batch."""

    def __init__(self, linear: nn.Linear, loras: dict[str, LoRALayer], routes: list[tuple[str, slice]]):
        super().__init__()
        self.linear, self.loras, self.routes = linear, loras, routes

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)  # (B, S, out)
        for name, rows in self.routes:
            if name in self.loras:
                lora = self.loras[name]
                z = lora.lora_A(x[rows]).flatten(0, -2)  # (N, R) for the N tokens of these rows
                y[rows].flatten(0, -2).addmm_(z, lora.lora_B.weight.t(), alpha=lora.scaling)  # a view of y
        return y


class AdapterBank:
    """Any number of adapters by name on one base in memory, whatever their ranks, targets and classes.

    `bank.load("sst2", "out/sst2")` adds one. Switching is picking another model: `bank.models["sst2"](input_ids)`;
    `bank.forward_rows(["sst2", "cola"], input_ids)` takes another adapter for each row, in one pass through the base.
    """

    def __init__(self, base: str):
        self.base = BertForSequenceClassification.from_pretrained(base)
        self.models: dict[str, BertForSequenceClassification] = {}
        self.routes: list[tuple[str, slice]] = []

    def load(self, name: str, adapter: str) -> BertForSequenceClassification:
        self.models[name] = open_adapter(adapter, self.base)
        self.__dict__.pop("mixed", None)
        return self.models[name]

    def remove(self, name: str) -> None:
        del self.models[name]
        self.__dict__.pop("mixed", None)

    @functools.cached_property  # made for the first mixed batch after a change: one adapter at a time needs none
    def mixed(self) -> nn.Module:
        """The base with each adapted layer routed to the adapters that have it."""
        mixed = shared_copy(self.base.bert)
        adapted = {key: dict(model.bert.named_modules()) for key, model in self.models.items()}
        for name, linear in list(mixed.named_modules()):
            loras = {key: modules[f"{name}.lora"] for key, modules in adapted.items() if f"{name}.lora" in modules}
            if loras:
                mixed.set_submodule(name, RoutedLinear(linear, loras, self.routes))
        return mixed

    @torch.inference_mode()
    def forward_rows(
        self, names: list[str], input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids=None
    ) -> list[Tensor]:
        """For each row i of a batch (B, S) the logits (C,) of the adapter `names[i]`, in one pass through the base."""
        order = sorted(range(len(names)), key=names.__getitem__)  # an adapter's rows stand together
        ordered = [names[i] for i in order]
        self.routes[:] = [(n, slice(ordered.index(n), ordered.index(n) + ordered.count(n))) for n in set(ordered)]
        inputs = [None if t is None else t[order] for t in (input_ids, attention_mask, token_type_ids)]
        x, _ = self.mixed(*inputs, cls_only=True)  # (B, 1, D)
        results: list = [None] * len(names)
        for name, rows in self.routes:
            model = self.models[name]
            logits = model.classifier(model.bert.pooler(x[rows]))  # (B of this adapter, C)
            for row, its in zip(order[rows], logits, strict=True):
                results[row] = its
        return results


def copy_tokenizer(base: str, folder: str | Path) -> None:
    """Puts the base's tokenizer files into `folder`, so that the model there is whole."""
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        if (source := find_file(base, name, required=False)) is not None:
            with written_whole(Path(folder) / name) as path:
                shutil.copyfile(source, path)


def merge(arguments: argparse.Namespace) -> None:
    model = merge_lora_weights(open_adapter(arguments.adapter, arguments.model))
    model.to(getattr(torch, arguments.dtype)).save_pretrained(arguments.folder)
    copy_tokenizer(model.lora_config["base_model_name_or_path"], arguments.folder)
    print(f"{arguments.folder}: {arguments.adapter} merged into {model.lora_config['base_model_name_or_path']}")


def push_to_hub(folder: str | Path, repository: str, private: bool = False) -> None:
    """Uploads an adapter's files, its model card and the curves in the folder above, as one commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: holds no adapter to push")
    names = ("adapter_config.json", "adapter_model.safetensors", "config.json", "README.md", "../training_curves.png")
    files = [folder / name for name in names if (folder / name).is_file()]
    with hub_errors(repository):
        HfApi().create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(file.name, file) for file in files]
        commit = HfApi().create_commit(repository, operations, commit_message="Upload a LoRA adapter")
    print(f"pushed to {commit.repo_url}")


def main() -> None:
    parser = OneLineParser(description="Work with a trained adapter.")
    commands = parser.add_subparsers(required=True, metavar="merge|push")
    command = commands.add_parser("merge", help="fold an adapter into its base, as a plain BERT checkpoint")
    command.add_argument("adapter", help="a directory such as out/best, or a Hub repository")
    command.add_argument("folder", help="where the checkpoint goes")
    command.add_argument("--model", help="the base model (default: the one that the adapter names)")
    command.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    command.set_defaults(run=merge)
    command = commands.add_parser("push", help="upload an adapter and its model card to the Hugging Face Hub")
    command.add_argument("adapter", help="a directory such as out/best")
    command.add_argument("repository", help="owner/name")
    command.add_argument("--private", action="store_true", help="if the repository is new, make it private")
    command.set_defaults(run=lambda arguments: push_to_hub(arguments.adapter, arguments.repository, arguments.private))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_main(main)
