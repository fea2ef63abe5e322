"""Trained adapters: folding one into its base, uploading one, going on with the training of one.

python -m runtime.adapters merge out/best merged        # a plain BERT, in a new folder
python -m runtime.adapters push out/best you/my-adapter  # to the Hugging Face Hub
"""

from dataclasses import fields
from pathlib import Path

import torch

from bert import BertConfig, BertForSequenceClassification
from lora import (
    merge_lora_weights,
    named_base,
    open_adapter,
    read_adapter_config,
    read_adapter_tensors,
)
from support import errors, files, hub, options, parallel
from support.dataset import Data
from support.errors import InputError, listing
from support.options import OneLineParser
from support.tasks import unnamed
from support.wordpiece import copy_tokenizer


def options_of(given: dict) -> dict:
    """The options that --init-adapter decides. InputError for one that is `given` otherwise."""
    if not given.get("init_adapter"):
        return {}
    folder = hub.folder(given["init_adapter"])
    with errors.reading(folder):
        config = read_adapter_config(folder)
        targets = config["target_modules"]
        own = {
            "rank": config["r"],
            "alpha": float(config["lora_alpha"]),
            "targets": targets if isinstance(targets, str) else ",".join(targets),
            "use_rslora": bool(config.get("use_rslora")),
        }
        model = given.get("model") or named_base(folder)
    for name, value in own.items():
        if given.get(name, value) != value:
            raise InputError(
                f"{options.flag(name)} {given[name]}: --init-adapter has {value}, and keeps it"
            )
    dropout = given.get("dropout", config.get("lora_dropout", 0.0))
    return own | {"dropout": dropout, "model": model}


def open_to_train(config, base: Path, data: Data) -> BertForSequenceClassification:
    """The base, or the --init-adapter on it, with a classifier for the task of the data.

    The task takes the names that the adapter's classes have. Raises InputError for an adapter of
    other classes, or of another kind of task, and for texts that the base cannot take.
    """
    task = data.task
    if config.init_adapter:
        adapter = hub.folder(config.init_adapter)
        model = open_on(base, adapter, config.dropout)
        task.names = same_classes(adapter, [*model.config.id2label.values()], task.names)
        told = model.config.problem_type
        if told not in (None, task.problem_type):
            raise InputError(f"{adapter}: is of {told}, and the data of {task.problem_type}")
    else:
        model = open_base(base, task.names)
    model.config.id2label = dict(enumerate(task.names))
    model.config.problem_type = task.problem_type
    model.config.text_pairs = len(data.columns) == 2
    model.config.model_max_length = config.max_length
    check_fit(model.config, config)
    return model


def target_modules(targets: str) -> str | list[str]:
    """--targets as apply_lora_to_model takes it; what names no layer is a name that none has."""
    names = options.split_list(targets) or [""]
    return "all-linear" if names == ["all-linear"] else names


def same_classes(adapter: str | Path, theirs: list[str], found: list[str]) -> list[str]:
    """The names of the classes, of which one side may have numbers alone; or InputError."""
    numbers = unnamed(len(found))
    if len(theirs) != len(found) or (theirs != found and numbers not in (theirs, found)):
        classes = f"{listing(theirs)} ({len(theirs)}), and the data {listing(found)} ({len(found)})"
        raise InputError(f"{adapter}: has the classes {classes}; see --label-names and --metric")
    return found if theirs == numbers else theirs


def check_fit(model_config: BertConfig, config) -> None:
    """Raises InputError for texts that the base has no positions or segments for."""
    positions = model_config.max_position_embeddings
    if config.max_length > positions:
        raise InputError(f"--max-length {config.max_length}: the base has {positions} positions")
    if model_config.text_pairs and model_config.type_vocab_size < 2:
        raise InputError(f"{config.model} takes no pairs of texts: it has no second segment")


def text_length(config: BertConfig, source: Path, asked: int | None = None) -> int:
    """The tokens that a text is cut to.

    As many as `asked` for, or as in the training (config.json), or as the tokenizer in the folder
    `source` says, and at most the positions. Raises InputError where `asked` cannot be honoured.
    """
    positions = config.max_position_embeddings
    if asked is not None:
        if not 3 <= asked <= positions:  # [CLS], a token and [SEP]
            raise InputError(f"--max-length {asked}: {source} takes from 3 to {positions} tokens")
        return asked
    settings = source / "tokenizer_config.json"
    told = config.model_max_length
    if told is None and settings.is_file():
        told = files.read_json(settings).get("model_max_length")
    if isinstance(told, int) and told >= 3:
        return min(told, positions)
    return positions


def open_base(folder: Path, label_names: list[str] | None = None) -> BertForSequenceClassification:
    """BertForSequenceClassification.from_pretrained, whose errors become InputError.

    Raises it too for numbers that no BERT has: a hostile file would fill the memory.
    """
    with errors.reading(folder):
        path = folder / "config.json"
        config = BertConfig.from_json(path)
        for f in fields(config):
            value = getattr(config, f.name)
            is_number = f.type in (int, float, float | None) and value is not None
            if is_number and not 0 <= value < 2**20:
                raise InputError(f"{path}: {f.name} {value!r:.60} is not supported")
        try:
            model = BertForSequenceClassification.from_pretrained(folder, label_names)
        except RuntimeError as error:  # in many lines, which name the tensors
            if errors.is_out_of_memory(error):
                raise
            problem = " ".join(str(error).split())
            raise InputError(f"{folder}/model.safetensors: {problem:.600}") from error
        if any(parameter.is_complex() for parameter in model.parameters()):
            raise InputError(f"{folder}: model.safetensors holds complex numbers")
        return model


def open_any(name: str, base: str = "", bases: dict | None = None) -> tuple:
    """The adapter `name` in its base, or a whole model; and the folder that has its tokenizer.

    `base` and `bases` are those of open_with_base. Raises InputError for what answers no texts.
    """
    folder = hub.folder(name)
    if (folder / "adapter_config.json").is_file():
        return open_with_base(folder, base, bases)
    if (folder / "best").is_dir():
        raise InputError(f"{name}: is the folder of a run; its model is {name}/best")
    if base:
        raise InputError(f"{name}: is a whole model and no adapter; leave out --model")
    model = open_base(folder)
    if model.newly_initialized:
        kind = ", ".join(model.config.architectures or ["a BERT"])
        problem = f"{kind} has no trained classifier of texts; name an adapter: --adapter"
        raise InputError(f"{name}: {problem}")
    return model, folder


def open_on(base, folder: Path, dropout: float | None = None) -> BertForSequenceClassification:
    """lora.open_adapter, whose errors become InputError.

    Raises it too for a rank that its tensors do not have: a hostile one would fill the memory.
    """
    with errors.reading(folder):
        rank = read_adapter_config(folder)["r"]
        tensors = read_adapter_tensors(folder).items()
        if rank not in {len(tensor) for name, tensor in tensors if "lora_A" in name}:
            raise InputError(f"{folder}: its tensors are not of rank {rank}")
        return open_adapter(folder, base, dropout)


def open_with_base(folder: Path, base: str = "", bases: dict | None = None) -> tuple:
    """The adapter in `folder` on the base that it names, or on another; and the base's folder.

    `bases` holds base models by name: each is in memory once, for all adapters on it.
    """
    bases = {} if bases is None else bases
    with errors.reading(folder):
        base = base or named_base(folder)
    source = hub.folder(base)
    if base not in bases:
        bases[base] = open_base(source)
    return open_on(bases[base], folder), source


def merge_if_plain(model: BertForSequenceClassification) -> list[str]:
    """Merges the adapter, in place; or says why it stays beside its layers."""
    try:
        merge_lora_weights(model)
    except ValueError as error:  # a form of LoRA was edited
        return [f"note: {error}; the adapter stays beside its layers, which is slower"]
    return []


def merge(adapter: str, folder: str, base: str = "", dtype: str = "float32") -> None:
    """Writes the base with the adapter folded in, as a plain BERT, into a new folder."""
    source = hub.folder(adapter)
    model, below = open_with_base(source, base)
    with errors.reading(source):
        model = merge_lora_weights(model)
    model.to(getattr(torch, dtype))
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{name} has numbers that {dtype} cannot hold; see --dtype")
    with files.written_whole(folder, new=True) as temporary:
        model.save_pretrained(temporary)
        copy_tokenizer(below, temporary, text_length(model.config, below))


def check_push(config) -> None:
    """Raises InputError if --push-to-hub could not succeed: better before the training."""
    if not config.rank or not config.hub_model_id:
        raise InputError("--push-to-hub pushes an adapter, and takes --hub-model-id owner/name")
    parallel.broadcast(lambda: hub.check_login(config.hub_model_id))


def push(folder: str | Path, repository: str, private: bool = False) -> None:
    """Uploads an adapter, its model card, and the curves in the folder above."""
    names = (*hub.ADAPTER_FILES, "config.json", "README.md", "../training_curves.png")
    paths = [Path(folder, name) for name in names]
    existing = [path for path in paths if path.is_file()]
    if paths[0] not in existing:
        raise InputError(f"{folder}: holds no adapter to push")
    if parallel.is_first():
        hub.push(existing, repository, private)


def main() -> None:
    parser = OneLineParser(prog="python -m runtime.adapters", description="Works with an adapter.")
    add = parser.add_argument
    add("command", choices=["merge", "push"], help="into its base, as a plain BERT; to the Hub")
    add("adapter", help="a directory such as out/best; of a merge also a Hub repository")
    add("target", help="of a merge a new folder, of a push owner/name")
    add("--model", default="", help="merge: another base than the adapter names")
    add("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="merge")
    add("--private", action="store_true", help="push: make a new repository private")
    given = parser.parse_args()
    if given.command == "merge":
        merge(given.adapter, given.target, given.model, given.dtype)
    else:
        push(given.adapter, given.target, given.private)


if __name__ == "__main__":
    errors.run_main(main)
