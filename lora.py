"""LoRA, low-rank adaptation (Hu et al., 2021, arXiv:2106.09685), by explicit module rewriting.

A frozen layer y = Wx + b gets a trained path beside it. Only A and B learn:

           x (D) ──────────┬──────────────────┐
                           │                  │ dropout
                 W (D, D) frozen         A (R, D)  drawn at random       R = 8, D = 768:
                           │                  │                          12,288 numbers
                           │             B (D, R)  starts at zero        instead of 589,824
                           │                  │ · α/R
           y (D) ──────────┴──── + ───────────┘

    apply_lora_to_model(model, ["query", "value"], rank=8, alpha=16, dropout=0.05)
    mark_only_lora_as_trainable(model)     # then train, and
    save_adapter(model, "out/best", base)  # adapter_config.json, adapter_model.safetensors
    model = open_adapter("out/best")       # the base again, with the adapter in it

All A and B together with the classifier are the adapter; the frozen model beside which it was
trained is its base. The files are those of PEFT, Hugging Face's library for adapters.
print(model) shows each rewritten layer. This file needs bert.py and no other of this project.
"""

import copy
import json
import math
import re
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bert import BertConfig, BertForSequenceClassification, PretrainedModel, write_json


class LoRALayer(nn.Module):
    """The trained path: lora(x) = scaling · B(A(dropout(x))) (section 4.1)."""

    def __init__(self, in_features, out_features, rank, alpha, dropout=0.0, use_rslora=False):
        super().__init__()
        # BA is a sum of R products, a column of B by a row of A. Dividing by R makes it a mean.
        # If the products were equal, the mean would not change when R doubles, and the best
        # learning rate would stay (section 4.1). If they are independent, the mean shrinks by
        # 1/√2 per doubling; rsLoRA divides by √R instead, so that the size stays (Kalajdzievski,
        # 2023, arXiv:2312.03732).
        self.scaling = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.dropout = nn.Dropout(dropout)
        # B is zero, so that training starts exactly at the base. A must not be zero too: the
        # gradient of B needs Ax and that of A needs B, so both would stay zero. A is random, so
        # that its R rows differ: uniform within ±1/√in, as in the paper's code.
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(self.dropout(x))) * self.scaling  # (…, in) -> (…, out)

    def delta(self) -> Tensor:
        """What the path adds to the weight matrix: ΔW = scaling · BA, (out, in)."""
        return self.lora_B.weight @ self.lora_A.weight * self.scaling


class LinearWithLoRA(nn.Module):
    """A frozen nn.Linear with a LoRALayer beside it: y = linear(x) + lora(x)."""

    def __init__(self, linear: nn.Linear, lora: LoRALayer):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora = lora

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora(x)  # (…, out)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One nn.Linear that computes the same, with W + ΔW for its weight; W stays as it is."""
        linear = copy.deepcopy(self.linear)
        linear.weight += self.lora.delta().to(linear.weight.dtype)
        return linear


# Rewriting a model.

POOLER = "bert.pooler.dense"


def fully_trained(model: PretrainedModel) -> set[str]:
    """The layers that are trained in full: the classifier, and a newly initialised pooler.

    A layer initialised at random has nothing worth keeping that an adapter could build on. The
    classifier that a base brings is trained in full too: it is small, C · (D + 1) numbers.
    """
    return {"classifier", *model.newly_initialized}


def find_targets(model: PretrainedModel, target_modules: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that `target_modules` means, as in PEFT, by name.

    An entry of a list is a whole name, or the end of one after a dot. A string is a regular
    expression on the whole name, except "all-linear": every linear layer that is not trained in
    full. Raises ValueError, with the names that there are, for a target that matches nothing.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name in fully_trained(model) & layers.keys():
        del layers[name]
    if target_modules == "all-linear":
        return layers
    if isinstance(target_modules, str):
        found = {target_modules: {n for n in layers if re.fullmatch(target_modules, n)}}
    else:
        found = {target: {n for n in layers if matches(n, target)} for target in target_modules}
    for target, names in found.items():
        if not names:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ValueError(f"the target {target!r} matches no linear layer; they are {ends}")
    chosen = set().union(*found.values())
    return {name: layer for name, layer in layers.items() if name in chosen}


def matches(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def apply_lora_to_model(
    model: PretrainedModel,
    target_modules: Sequence[str] = ("query", "value"),
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.05,
    use_rslora: bool = False,
) -> PretrainedModel:
    """Rewrites the layers that find_targets finds into LinearWithLoRA, in place; returns the model.

    Query and value are the default, as in the paper, which found them the best choice of that
    size (section 7.1, table 5). All of attention, or every linear layer, is larger, and was better
    on SST-2 (docs/results.md).
    """
    for name, linear in find_targets(model, target_modules).items():
        out_features, in_features = linear.weight.shape
        lora = LoRALayer(in_features, out_features, rank, alpha, dropout, use_rslora)
        both = LinearWithLoRA(linear, lora.to(linear.weight.device))
        model.set_submodule(name, both.train(linear.training))  # a new module would drop out
    # PEFT's names of the settings.
    model.lora_config = {
        "target_modules": target_modules if isinstance(target_modules, str) else [*target_modules],
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": use_rslora,
    }
    return model


def trained_parameters(model: PretrainedModel) -> dict[str, nn.Parameter]:
    """What is trained and saved, by name: A, B and the layers that are trained in full."""
    in_full = fully_trained(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".lora." in name or name.rpartition(".")[0] in in_full
    }


def mark_only_lora_as_trainable(model: PretrainedModel) -> None:
    """Freezes everything except A, B and the layers that are trained in full."""
    model.requires_grad_(False)
    for parameter in trained_parameters(model).values():
        parameter.requires_grad_(True)


def count_lora_parameters(model: PretrainedModel) -> int:
    """The numbers in A and B. Of bert-base 12 layers × 2 × rank 8 × (768 + 768) = 294,912."""
    return sum(p.numel() for name, p in model.named_parameters() if ".lora." in name)


@torch.no_grad()
def merge_lora_weights(model: PretrainedModel) -> PretrainedModel:
    """Folds every adapter into its layer, in place: the model is a plain BERT again.

    Raises ValueError for what cannot be folded in, as a layer whose forward was edited; then the
    model is as it was.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LinearWithLoRA)}
    for name, _ in model.named_parameters():
        if ".lora." in name and name.partition(".lora.")[0] not in layers:
            raise ValueError(f"{name} stands in no LinearWithLoRA, and cannot be merged")
    for name, layer in layers.items():
        if not can_be_merged(layer):
            raise ValueError(f"{name} is not Wx + b + scaling · B(A(x)), and cannot be merged")
    for name, layer in layers.items():
        model.set_submodule(name, layer.merged())
    return model


def can_be_merged(layer: LinearWithLoRA) -> bool:
    """Whether the layer, whose forward may have been edited, and its merged form agree."""
    exact = copy.deepcopy(layer).double().eval()
    delta = exact.lora.delta()  # (out, in)
    x = torch.linspace(-1, 2, delta.shape[1]).to(delta)  # (in,), an x like any other
    return isinstance(exact.linear, nn.Linear) and torch.allclose(exact.merged()(x), exact(x))


# Adapters in memory and on disk, under PEFT's names: a format, and nothing new about LoRA.

# What adapter_config.json may say beside KNOWN, as it changes nothing that is computed here.
HARMLESS = {
    "bias": ["none"],
    "inference_mode": [True],
    "init_lora_weights": [True, "gaussian", "orthogonal", "eva"],
    "megatron_core": ["megatron.core"],
    "modules_to_save": ["classifier", "score", "pooler"],
    "peft_type": ["LORA"],
    "qalora_group_size": [16],
    "task_type": ["SEQ_CLS"],
}
KNOWN = {"target_modules", "r", "lora_alpha", "lora_dropout", "use_rslora", "revision"}
KNOWN |= {"base_model_name_or_path", "auto_mapping", "peft_version"}


def peft_name(name: str) -> str:
    """PEFT wraps the model, and has no LoRALayer around A and B."""
    return "base_model.model." + name.replace(".lora.", ".")


def get_lora_state_dict(model: PretrainedModel) -> dict[str, Tensor]:
    """What is trained, under PEFT's names: base_model.model.….query.lora_A.weight (R, in)."""
    return {peft_name(name): p.detach() for name, p in trained_parameters(model).items()}


def load_lora_state_dict(model: PretrainedModel, state: dict[str, Tensor]) -> None:
    """The inverse of get_lora_state_dict. Raises ValueError for tensors of another model."""
    wanted = get_lora_state_dict(model)  # the very tensors of the model, which copy_ writes into
    for name in sorted(wanted.keys() ^ state.keys()):
        problem = "lacks" if name in wanted else "has the surplus"
        raise ValueError(f"the adapter {problem} {name}; is it one for this base model?")
    for name, tensor in wanted.items():
        found = state[name]
        if found.shape != tensor.shape or found.is_complex():
            shapes = f"{list(found.shape)}, expected {list(tensor.shape)}"
            raise ValueError(f"the adapter's {name} has the shape {shapes}")
        tensor.copy_(found)


def save_adapter(model: PretrainedModel, folder: str | Path, base: str) -> None:
    """Writes an adapter for `base`, a directory or `owner/name[@revision]`, with a config.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, _, revision = base.partition("@")
    if Path(base).is_dir():
        name = str(Path(base).absolute())
        revision = ""
    saved = ["classifier", "score"] + ["pooler"] * (POOLER in fully_trained(model))
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "modules_to_save": saved,
        "inference_mode": True,
        **(model.lora_config or {}),
    }
    model.config.to_json(folder / "config.json", type(model).__name__)
    write_json(folder / "adapter_config.json", config)
    tensors = get_lora_state_dict(model)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def open_adapter(adapter: str | Path, base=None, dropout: float | None = None):
    """The adapter of a directory in its base model, in eval mode.

    `base` is another base than the one that the adapter names: a directory, a repository of the
    Hub, or a model in memory, whose tensors the result then shares. `dropout` is another than
    the adapter's, for going on with its training.
    """
    folder = Path(adapter)
    config = read_adapter_config(folder)
    state = read_adapter_tensors(folder)
    if not isinstance(base, nn.Module):
        base = BertForSequenceClassification.from_pretrained(base or named_base(folder))
    model = shared_copy(base)
    replace_classifier(model, folder, state)
    targets = config["target_modules"]
    if isinstance(targets, list):  # PEFT too lets some of a list match nothing
        names = [name for name, _ in model.named_modules()]
        targets = [target for target in targets if any(matches(name, target) for name in names)]
    apply_lora_to_model(
        model,
        targets,
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config.get("lora_dropout", 0.0) if dropout is None else dropout,
        use_rslora=config.get("use_rslora", False),
    )
    load_lora_state_dict(model, state)
    return model.eval()


def read_adapter_config(folder: Path, known: Set[str] = frozenset()) -> dict:
    """adapter_config.json. Raises ValueError naming a field that means more than a plain LoRA,
    except those that the caller says are `known` to it."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_bytes())
    for name, value in config.items():
        parts = value if isinstance(value, list) else [value]
        is_harmless = all(part in HARMLESS.get(name, []) for part in parts)
        is_empty = not value and type(value) is not int  # a 0 may be the number of a layer
        if not is_harmless and not is_empty and name not in KNOWN | known:
            raise ValueError(f"{path}: {name} = {value!r:.60} is not supported")
    # An expression out of a file must not take forever: few repetitions, and none of a group.
    pattern = re.sub(r"\\.", "", str(config["target_modules"]))
    if len(re.findall(r"[*+{]", pattern)) > 3 or re.search(r"\)[*+{]", pattern):
        raise ValueError(f"{path}: target_modules {pattern:.60} may take too long; list the names")
    return config


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """adapter_model.safetensors, under the names that PEFT writes today."""
    # Models in PEFT's memory, compiled ones, and some older files have these parts in their names.
    parts = r"_orig_mod\.|\.modules_to_save|\.default(?=\.)"
    state = load_file(folder / "adapter_model.safetensors")
    return {re.sub(parts, "", name): tensor for name, tensor in state.items()}


def named_base(folder: Path) -> str:
    """The base that an adapter names: a directory, or `owner/name[@revision]`."""
    config = read_adapter_config(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{folder}: adapter_config.json names no base model; give one (--model)")
    revision = config.get("revision")
    return f"{base}@{revision}" if revision else str(base)


def shared_copy(model: nn.Module):
    """A copy of the modules, which shares all tensors with `model`: a base is in memory once."""
    already_copied = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, already_copied)


def replace_classifier(model, folder: Path, state: dict[str, Tensor]) -> None:
    """Gives the model the adapter's classes, their classifier, and a pooler if it brings one."""
    weight = state.get(peft_name("classifier.weight"))
    if weight is None:
        raise ValueError(f"{folder}: saved without its head (PEFT: task_type SEQ_CLS saves it)")
    C, D = weight.shape
    own = BertConfig(id2label={number: f"LABEL_{number}" for number in range(C)})
    if (folder / "config.json").is_file():
        own = BertConfig.from_json(folder / "config.json")
    names = ("id2label", "problem_type", "text_pairs", "model_max_length")
    model.config = replace(model.config, **{name: getattr(own, name) for name in names})
    model.classifier = nn.Linear(D, own.num_labels, device=model.classifier.weight.device)
    if peft_name(f"{POOLER}.weight") in state:
        model.bert.pooler.dense = copy.deepcopy(model.bert.pooler.dense)  # the base keeps its own
        model.newly_initialized += (POOLER,)
