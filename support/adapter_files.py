"""An adapter's files in PEFT's format: adapter_config.json as plain settings, adapter_model.safetensors as tensors.

The names of the fields are PEFT's: r, lora_alpha, lora_dropout, use_rslora, target_modules. A field that
means more than a plain LoRA is refused by its name.
"""

import difflib
import re
from pathlib import Path

from torch import Tensor

from support.base_files import other_classes, unnamed
from support.files import (
    InputError,
    listing,
    open_safetensors,
    read_json,
    read_tensor,
    write_json,
    write_tensors,
)
from support.hub import find_file
from support.offline import found_again
from support.options import listed

PREFIX = "base_model.model."
KNOWN = {
    "target_modules",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "base_model_name_or_path",
    "revision",
}
IRRELEVANT = {"auto_mapping", "inference_mode", "peft_version"}
WITH_POOLER = [
    "classifier",
    "pooler",
    "score",
]  # modules_to_save, where the base's file has no pooler
# What the other fields may say without changing what is computed; the first is what is written.
HARMLESS = {
    "bias": ["none"],
    "init_lora_weights": [True, False, "gaussian", "orthogonal", "eva"],
    "megatron_core": ["megatron.core"],
    "modules_to_save": [["classifier", "score"], ["classifier"], WITH_POOLER],
    "peft_type": ["LORA"],
    "qalora_group_size": [16],
    "task_type": ["SEQ_CLS"],
}


def match_targets(names: list[str], target_modules: list[str] | str) -> list[str]:
    """Those of the layers `names` that target_modules means: PEFT's rule.

    Each entry of a list stands for a whole name or for the end of one after a dot; a string is a regular expression
    on the whole name. Raises InputError, with the closest names, for a target that matches nothing.
    """
    if isinstance(target_modules, str):
        patterns = {target_modules: target_modules}
    else:
        patterns = {target: rf"(.*\.)?{re.escape(target)}" for target in target_modules}
    matched = set()
    for target, pattern in patterns.items():
        try:
            found = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise InputError(f"the target {target!r} is no regular expression: {error}") from None
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in names})
            close = difflib.get_close_matches(target, ends + names, cutoff=0.5) or ends
            raise InputError(
                f"the target {target!r} matches no linear layer of this model; closest: {listing(close)}"
            )
        matched.update(found)
    return [name for name in names if name in matched]


def write(
    folder: Path, base: str, settings: dict, tensors: dict[str, Tensor], with_pooler: bool
) -> None:
    """Writes both files; the base is a directory or `owner/name[@revision]`."""
    name, _, revision = (
        (str(Path(base).absolute()), "", "") if Path(base).is_dir() else base.partition("@")
    )
    config = {field: values[0] for field, values in HARMLESS.items()} | settings
    config |= {
        "base_model_name_or_path": name,
        "revision": revision or None,
        "inference_mode": True,
    }
    if with_pooler:
        config["modules_to_save"] = WITH_POOLER
    write_json(folder / "adapter_config.json", config)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})


def read_config(adapter: str, known: frozenset = frozenset()) -> dict:
    """The adapter_config.json of a directory or Hub repository. InputError names any field that means more than a plain
    LoRA, but for those that the caller says are `known` to it."""
    path = find_file(adapter, "adapter_config.json")
    config = read_json(path)
    if isinstance(config.get("modules_to_save"), list):  # PEFT repeats itself there
        config["modules_to_save"] = sorted({str(module) for module in config["modules_to_save"]})
    for field, value in config.items():
        nothing = (
            value in (None, "", [], {}) or value is False
        )  # but not 0, which may be a layer's number
        harmless = (
            field in KNOWN | IRRELEVANT | known or value in HARMLESS.get(field, []) or nothing
        )
        if not harmless:
            raise InputError(f"{path}: {field} = {value!r:.60} is not supported")
    targets, rank, alpha = config.get("target_modules"), config.get("r"), config.get("lora_alpha")
    named = isinstance(targets, str) or (
        isinstance(targets, list) and all(isinstance(t, str) for t in targets)
    )
    if not targets or not named:
        raise InputError(f"{path}: target_modules must be a list of names, or a regular expression")
    if (
        type(rank) is not int
        or rank < 1
        or type(alpha) not in (int, float)
        or not 0 < alpha < 1e300
    ):
        raise InputError(
            f"{path}: r and lora_alpha must be positive numbers, and no absurd ones, not {rank!r:.20} and {alpha!r:.20}"
        )
    dropout, rslora = config.get("lora_dropout") or 0.0, config.get("use_rslora") or False
    if type(dropout) not in (int, float) or not 0 <= dropout < 1 or type(rslora) is not bool:
        raise InputError(
            f"{path}: lora_dropout {dropout!r:.20} or use_rslora {rslora!r:.20} is not of its kind"
        )
    return config | {"lora_dropout": dropout, "use_rslora": rslora}


def named_base(adapter: str) -> str:
    """The base model that an adapter names: a directory, or `owner/name[@revision]`."""
    config = read_config(adapter)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{adapter}: adapter_config.json names no base model; give one with --model"
        )
    return f"{base}@{revision}" if revision else found_again(base)


def as_options(adapter: str, given: dict) -> dict:
    """The options of train.py that an adapter decides when training goes on from it: its rank, alpha and targets.

    Its base and its dropout are taken unless others are among the `given` options. Raises InputError for a given one
    that an adapter cannot change.
    """
    config = read_config(adapter)
    targets = config["target_modules"]
    targets = targets if isinstance(targets, str) else ",".join(targets)
    own = {"rank": config["r"], "alpha": float(config["lora_alpha"]), "targets": targets}
    for name, value in own.items():
        if (wanted := given.get(name, value)) != value and set(listed(str(wanted))) != set(
            str(value).split(",")
        ):
            raise InputError(
                f"--{name} {wanted} does not go with --init-adapter: {adapter} has {value}"
            )
    dropout = given.get("dropout", float(config["lora_dropout"]))
    return own | {"dropout": dropout, "model": given.get("model") or named_base(adapter)}


def same_classes(adapter: str, theirs: list[str], found: list[str]) -> list[str]:
    """The names of the classes where training goes on from an adapter, on data that has the classes `found`.

    Raises InputError if they are others; classes that are mere numbers (LABEL_0) take the other's names.
    """
    if other_classes(theirs, found):
        if 1 in (len(theirs), len(found)):
            kinds = [
                "a regression's number" if len(names) == 1 else "classes"
                for names in (theirs, found)
            ]
            raise InputError(
                f"{adapter}: answers with {kinds[0]}, but the data has {kinds[1]}; --metric decides which"
            )
        problem = f"has the {len(theirs)} classes {listing(theirs)}, but the data the {len(found)} {listing(found)}"
        raise InputError(f"{adapter}: {problem}; --label-names says which the data's are")
    return found if theirs == unnamed(found) else theirs


def read_tensors(adapter: str, rank: int | None = None) -> dict[str, Tensor]:
    """The tensors of an adapter, a LoRA of this rank if one is given, under the names as PEFT saves them today."""
    path = find_file(adapter, "adapter_model.safetensors")
    with open_safetensors(path) as file:
        tensors = {plain_name(key): read_tensor(file, path, key) for key in file.keys()}
    for name, tensor in tensors.items():  # before anything of the size that r claims is allocated
        if rank and ".lora_A." in name and tensor.shape[:1] != (rank,):
            raise InputError(
                f"{path}: {name} is {list(tensor.shape)}, but adapter_config.json says r = {rank}"
            )
    return tensors


def plain_name(key: str) -> str:
    """PEFT's running modules, and some of its older files, spell out modules_to_save and the adapter's name."""
    return re.sub(r"\.modules_to_save|\.default(?=\.)", "", key)


def adapted(
    tensors: dict[str, Tensor], names: list[str], target_modules: list[str] | str
) -> tuple[list, list | str]:
    """The linear layers, of all `names`, that an adapter adapts, and its targets: of a list, those that match any.

    PEFT too lets some of a list's targets match nothing. Raises InputError where the tensors of a layer are lacking
    that the targets mean: without them the model would answer as another one.
    """
    layers = sorted(
        key.removeprefix(PREFIX).partition(".lora_A.")[0] for key in tensors if ".lora_A." in key
    )
    if isinstance(target_modules, list):
        ends = {
            name: {name[start:] for start in [0, *(dot.end() for dot in re.finditer(r"\.", name))]}
            for name in names
        }
        meant = [name for name in names if ends[name].intersection(target_modules)]
        target_modules = [
            target for target in target_modules if target in set().union(*ends.values())
        ]
    elif target_modules == "all-linear":
        meant = names
    else:
        meant = [name for name in names if re.fullmatch(quick_pattern(target_modules), name)]
    if lacking := sorted(set(meant) - set(layers)):
        raise InputError(
            f"the adapter lacks the tensors of {listing(lacking)}, which its target_modules mean"
        )
    if isinstance(target_modules, str) and (surplus := sorted(set(layers) - set(meant))):
        raise InputError(
            f"the adapter has the surplus tensors of {listing(surplus)}, not meant by its target_modules"
        )
    return layers, target_modules


def quick_pattern(pattern: str) -> str:
    """A regular expression out of a file, if it cannot take long: few repetitions, and none of a group."""
    plain = re.sub(r"\\.", "", pattern)
    try:
        if (
            len(re.findall(r"[*+{]", plain)) > 3
            or re.search(r"\)[*+{]", plain)
            or re.compile(pattern).groups > 20
        ):
            raise InputError(
                f"target_modules: the expression {pattern!r:.60} may take too long; list the layers instead"
            )
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"target_modules: {pattern!r:.60} is no regular expression: {error}"
        ) from None
    return pattern


def peft_name(name: str) -> str:
    """The name in PEFT's file of a parameter of ours: PEFT wraps the model, and has no LoRALayer around A and B."""
    return PREFIX + name.replace(".lora.", ".")


def refuse_another_model(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raises InputError for a tensor of an adapter that the model does not want, lacks, or wants in another shape."""
    missing, surplus = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    for problem, names in ("lacks", missing), ("has the surplus", surplus):
        if names:
            raise InputError(
                f"the adapter {problem} {listing(sorted(names))}; is it one for this base model?"
            )
    for name, parameter in wanted.items():
        if parameter.shape != tensors[name].shape:
            shapes = (
                f"{list(tensors[name].shape)}, but this base model takes {list(parameter.shape)}"
            )
            raise InputError(f"the adapter's {name} has the shape {shapes}")


def heads(tensors: dict[str, Tensor]) -> tuple[int, bool]:
    """How many classes the adapter's classifier has, and whether it has a pooler, as for a base without one."""
    classifiers = [t for name, t in tensors.items() if re.search(r"\.classifier\..*weight$", name)]
    if any(t.ndim != 2 or not t.numel() for t in classifiers):
        raise InputError(
            f"the adapter's classifier has the shape {list(classifiers[0].shape)}, expected [classes, hidden size]"
        )
    return next(map(len, classifiers), 2), any(
        ".pooler." in name and ".lora_" not in name for name in tensors
    )
