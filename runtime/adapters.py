"""Trained adapters: folding one into its base, uploading one, going on with the training of one.

python -m runtime.adapters merge out/best merged        # a plain BERT, in a new folder
python -m runtime.adapters push out/best you/my-adapter  # to the Hugging Face Hub
"""

import shutil
from pathlib import Path

import torch

import bert
from bert import BertConfig, BertForSequenceClassification
from lora import merge_lora_weights, named_base, open_adapter, read_adapter_config
from support import errors, files, hub, options, parallel
from support.errors import InputError, listing
from support.options import OneLineParser

# Going on with the training of an adapter: --init-adapter.


def options_of(given: dict) -> dict:
    """What --init-adapter, if it is `given`, decides: rank, alpha, targets.

    The adapter's base and dropout are taken unless others are given. Raises InputError for a given
    option that an adapter cannot change.
    """
    adapter = given.get("init_adapter")
    if not adapter:
        return {}
    folder = hub.folder(adapter)
    with errors.reading(folder):
        config = read_adapter_config(folder)
        base = given.get("model") or named_base(folder)
    targets = config["target_modules"]
    own = {
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "targets": targets if isinstance(targets, str) else ",".join(targets),
    }
    for name, value in own.items():
        wanted = given.get(name, value)
        if {*options.split_list(str(wanted))} != {*options.split_list(str(value))}:
            problem = f"{adapter} has {value}"
            raise InputError(f"--{name} {wanted} does not go with --init-adapter: {problem}")
    dropout = given.get("dropout", config.get("lora_dropout", 0.0))
    return own | {"dropout": dropout, "model": base}


def same_classes(adapter: Path, theirs: list[str], found: list[str]) -> list[str]:
    """The names of the classes that an adapter knows and that were `found` in the data.

    Raises InputError if they are others. Classes that are mere numbers take the other's names.
    """
    if not bert.same_classes(theirs, found):
        classes = f"has the classes {listing(theirs)} ({len(theirs)}), and the data"
        problem = f"{classes} {listing(found)} ({len(found)})"
        raise InputError(f"{adapter}: {problem}; --label-names and --metric say what the data has")
    unnamed = [f"LABEL_{number}" for number in range(len(theirs))]
    return found if theirs == unnamed else theirs


def check_fit(model_config: BertConfig, config, pairs: bool) -> None:
    """Raises InputError for options that the base has no positions, segments or room for."""
    positions = model_config.max_position_embeddings
    width = model_config.hidden_size
    if config.max_length > positions:
        too_long = f"is more than the {positions} positions"
        raise InputError(f"--max-length {config.max_length} {too_long} of {config.model}")
    if pairs and model_config.type_vocab_size < 2:
        lack = "its type_vocab_size is 1, so it has no second segment"
        raise InputError(f"{config.model} cannot read pairs of texts: {lack}")
    if config.rank > width:
        most = f"is more than {width}, the rank of a whole weight"
        raise InputError(f"--rank {config.rank} {most} of {config.model}")


# Afterwards.


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copies the base's tokenizer files, so that the model in `folder` is whole."""
    for name in hub.TOKENIZER_FILES:
        if (base / name).is_file():
            with files.written_whole(folder / name) as temporary:
                shutil.copyfile(base / name, temporary)


def merge(adapter: str, folder: str, base: str = "", dtype: str = "float32") -> None:
    """Writes the base with the adapter folded in, as a plain BERT, into a new or empty folder."""
    source = hub.folder(adapter)
    with errors.reading(source):
        base = base or named_base(source)
    below = hub.folder(base)
    with errors.reading(below):
        model = BertForSequenceClassification.from_pretrained(below)
    with errors.reading(source):
        model = merge_lora_weights(open_adapter(source, model))
    target = Path(folder).absolute()
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    with files.written_whole(target, new=True) as temporary:
        model.to(getattr(torch, dtype)).save_pretrained(temporary)
        copy_tokenizer(below, temporary)


def check_push(config) -> None:
    """Raises InputError if --push-to-hub could not succeed: better before the training."""
    if not config.rank or not config.hub_model_id:
        raise InputError("--push-to-hub pushes an adapter, and takes --hub-model-id owner/name")
    parallel.broadcast(lambda: hub.check_login(config.hub_model_id))


def push(folder: str | Path, repository: str, private: bool = False) -> None:
    """Uploads an adapter, its model card, and the curves in the folder above."""
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: holds no adapter to push")
    names = (*hub.ADAPTER_FILES, "config.json", "README.md", "../training_curves.png")
    found = [folder / name for name in names if (folder / name).is_file()]
    if parallel.is_first():
        hub.push(found, repository, private)


def main() -> None:
    parser = OneLineParser(prog="python -m runtime.adapters", description="Works with an adapter.")
    commands = parser.add_subparsers(required=True, metavar="merge|push")
    command = commands.add_parser("merge", help="fold an adapter into its base, as a plain BERT")
    command.add_argument("adapter", help="a directory such as out/best, or a Hub repository")
    command.add_argument("folder", help="where the plain BERT goes: new, or empty")
    command.add_argument("--model", dest="base", default="", help="another base than it names")
    dtypes = ["float32", "float16", "bfloat16"]
    command.add_argument("--dtype", choices=dtypes, default="float32", help="of the weights")
    command.set_defaults(run=merge)
    command = commands.add_parser("push", help="upload an adapter and its card to the Hub")
    command.add_argument("folder", metavar="adapter", help="a directory such as out/best")
    command.add_argument("repository", help="owner/name")
    command.add_argument("--private", action="store_true", help="if it is new, make it private")
    command.set_defaults(run=push)
    given = vars(parser.parse_args())
    run = given.pop("run")
    run(**given)


if __name__ == "__main__":
    errors.run_main(main)
