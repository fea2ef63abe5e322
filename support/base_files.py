"""The files of a base model beside its weights, as others wrote them: config.json and the tokenizer, checked.

What this project computes is one architecture, BERT's, with its own tokenizer; a file of anything
else is refused by the name of the field.
"""

import contextlib
import fcntl
import os
import shutil
from dataclasses import fields
from pathlib import Path

from tokenizers import Tokenizer

from support.files import (
    InputError,
    first_line,
    lies_in,
    listing,
    misread,
    read_json,
    temporary_for,
    write_json,
    written_whole,
)
from support.hub import find_file

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    *TOKENIZER_FILES,
)  # all that a model of ours consists of
TOKENIZER_PARTS = {
    "model": "WordPiece",
    "normalizer": "BertNormalizer",
    "pre_tokenizer": "BertPreTokenizer",
}
# What config.json may say of what is no field of BertConfig; what an absent one means comes first.
SUPPORTED = {
    "model_type": ["bert"],
    "hidden_act": ["gelu"],
    "position_embedding_type": ["absolute"],
    "is_decoder": [False],
    "add_cross_attention": [False],
}


def read_config(path: str | Path, cls: type) -> dict:
    """The fields of the dataclass `cls` in a config.json. Raises InputError naming a value that is out of range:

    a whole number must be 1 or more (pad_token_id 0 or more), a fraction at least 0 and below 1.
    """
    raw = read_json(path)
    for name, values in SUPPORTED.items():
        if raw.get(name, values[0]) not in values:
            raise InputError(f"{path}: {name} {raw[name]!r} is not supported, only {values[-1]!r}")
    found = {f.name: raw[f.name] for f in fields(cls) if raw.get(f.name) is not None}
    if "id2label" in found:
        found["id2label"] = read_label_names(path, found["id2label"])
    for f in fields(cls):
        value, low = found.get(f.name, f.default), int(f.name != "pad_token_id")
        if f.type is int and not (type(value) is int and low <= value < 2**31):
            raise InputError(
                f"{path}: {f.name} must be a whole number from {low}, not {value!r:.40}"
            )
        fraction = f.type in (float, float | None) and value is not None
        if fraction and not (type(value) in (int, float) and 0 <= value < 1):
            raise InputError(f"{path}: {f.name} must be at least 0 and below 1, not {value!r:.40}")
        if f.type == (bool | None) and type(value) not in (bool, type(None)):
            raise InputError(f"{path}: {f.name} must be true or false, not {value!r:.40}")
    refuse_other_problem(path, raw.get("problem_type"), len(found.get("id2label", "ab")))
    whole = {f.name: f.default for f in fields(cls)} | found
    if whole["hidden_size"] % whole["num_attention_heads"] or whole["num_hidden_layers"] > 200:
        raise InputError(
            f"{path}: hidden_size must be a multiple of num_attention_heads, and layers at most 200"
        )
    if whole["pad_token_id"] >= whole["vocab_size"]:
        raise InputError(
            f"{path}: pad_token_id {whole['pad_token_id']} is none of the {whole['vocab_size']} tokens"
        )
    return found


def problem_type(labels: int) -> str:
    """What so many labels mean, in transformers' names; there too a single one is a number, with no softmax."""
    return "regression" if labels == 1 else "single_label_classification"


def refuse_other_problem(path: str | Path, told: str | None, labels: int) -> None:
    """Raises InputError for a problem_type that so many labels do not mean here; None, as in most files, is
    either."""
    meant = problem_type(labels)
    if told not in (None, meant):
        raise InputError(
            f"{path}: problem_type {told!r:.40} with {labels} labels is not supported, only {meant!r}"
        )


def refuse_misfit(config, pairs: bool, model: str, max_length: int, rank: int = 0, **_) -> None:
    """Raises InputError for options that the base `model` of this config has no positions, segments or room for."""
    if max_length > (positions := config.max_position_embeddings):
        raise InputError(
            f"--max-length {max_length} is more than the {positions} positions of {model}"
        )
    if pairs and config.type_vocab_size < 2:
        raise InputError(
            f"{model} cannot read pairs of texts: its type_vocab_size is 1, so it has no second segment"
        )
    if rank > (most := config.hidden_size):  # (D, D) has no higher one
        raise InputError(
            f"--rank {rank} is more than {most}, the rank of a whole weight of {model}"
        )


def unnamed(classes: list) -> list[str]:
    """What so many classes are called where nobody has named them."""
    return [f"LABEL_{number}" for number in range(len(classes))]


def other_classes(some: list[str], others: list[str]) -> bool:
    """Whether these are different classes: in number, or where both have names in those."""
    return len(some) != len(others) or (some != others and unnamed(some) not in (some, others))


def read_label_names(path: str | Path, id2label) -> dict[int, str]:
    """The names of the classes 0, 1, 2, …, whose numbers are strings in JSON."""
    try:
        names = {int(number): str(label) for number, label in id2label.items()}
    except (AttributeError, ValueError):
        names = {}
    if not names or sorted(names) != list(range(len(names))):
        raise InputError(f"{path}: id2label must name the classes 0, 1, 2, …")
    if len(set(names.values())) < len(names):
        raise InputError(f"{path}: id2label gives two classes one name")
    return dict(sorted(names.items()))  # JSON's own order has "10" before "2"


def write_config(path: str | Path, config: dict) -> None:
    """A config.json that transformers reads."""
    label2id = {label: number for number, label in config["id2label"].items()}
    problem = (
        {"problem_type": "regression"} if len(label2id) == 1 else {}
    )  # its pipeline would show a sigmoid else
    write_json(
        path,
        {"model_type": "bert", "hidden_act": "gelu", **config, **problem, "label2id": label2id},
    )


def open_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """The tokenizer of a directory or Hub repository: tokenizer.json, or else vocab.txt with BERT's own rules.

    Raises InputError for one of another kind, or with tokens that a model of `vocab_size` tokens does not know.
    """
    path = find_file(name, "tokenizer.json", required=False) or find_file(name, "vocab.txt")
    try:
        tokenizer = from_json(path) if path.suffix == ".json" else from_vocabulary(name, path)
        tokenizer.no_padding()  # files come with settings of their own
        tokenizer.no_truncation()
        probe = tokenizer.encode(
            "a \N{EGYPTIAN HIEROGLYPH A001}"
        ).ids  # the second is unknown to it
    except InputError:
        raise
    except Exception as error:  # the tokenizers package raises bare Exceptions
        raise misread(error, f"{path}: not a BERT tokenizer ({first_line(error)})") from None
    if (highest := max([*probe, *tokenizer.get_vocab().values()], default=0)) >= vocab_size:
        raise InputError(
            f"{path}: has a token of number {highest}, but the model knows {vocab_size} tokens"
        )
    return tokenizer


def from_json(path: Path) -> Tokenizer:
    raw = read_json(path)
    kinds = [(raw.get(part) or {}).get("type") for part in TOKENIZER_PARTS]
    if kinds != list(TOKENIZER_PARTS.values()):
        raise InputError(f"{path}: not a BERT tokenizer, but one of {kinds}")
    return Tokenizer.from_file(str(path))


def from_vocabulary(name: str, path: Path) -> Tokenizer:
    from tokenizers.implementations import BertWordPieceTokenizer

    settings = find_file(name, "tokenizer_config.json", required=False)
    settings = read_json(settings) if settings else {}
    lowercase, chinese = (
        settings.get("do_lower_case", True),
        settings.get("tokenize_chinese_chars", True),
    )
    rules = {"lowercase": lowercase, "strip_accents": settings.get("strip_accents")}
    return Tokenizer.from_str(
        BertWordPieceTokenizer(str(path), handle_chinese_chars=chinese, **rules).to_str()
    )


def copy_tokenizer(base: str, folder: str | Path) -> None:
    """Puts the base's tokenizer files into `folder`, so that the model there is whole."""
    for name in TOKENIZER_FILES:
        if (source := find_file(base, name, required=False)) is not None:
            with written_whole(Path(folder) / name) as path:
                shutil.copyfile(source, path)


# A whole model.


@contextlib.contextmanager
def model_written_whole(folder: str, sources: list[Path], overwrite: bool):
    """Yields a temporary directory beside `folder`; what the block writes there becomes `folder` whole, or not at all.

    Raises InputError where something stands there already, but with `overwrite` for files of a plain model and no
    others. A directory in which one of the files `sources` lies, which the block reads, is never replaced.
    """
    target = Path(os.path.realpath(folder))
    if not folder or not target.name:
        raise InputError(f"{folder!r}: no name of a directory for a model; give another directory")
    temporary, old = temporary_for(target), target.with_name(f".{target.name}.old")
    refuse_to_replace(folder, target, sources, overwrite)
    temporary.mkdir(parents=True, exist_ok=True)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{folder}: another process is writing it; wait for it") from None
    try:
        remove_model(temporary, only_files=True)  # of one that was killed
        if names := os.listdir(temporary):
            raise InputError(f"{temporary}: holds {listing(names)}, and should be empty; move it")
        if old.is_dir() and not target.exists():  # killed between the two renames below
            old.rename(target)
        remove_model(old)
        refuse_to_replace(folder, target, sources, overwrite)
        yield temporary
        refuse_to_replace(folder, target, sources, overwrite)  # what has come there in the meantime
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        remove_model(old)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_model(temporary)
        raise
    finally:
        os.close(lock)


def refuse_to_replace(folder: str, target: Path, sources: list[Path], overwrite: bool) -> None:
    """Raises InputError if the directory `target`, given as `folder`, must stay as it is."""
    for path in sources:
        if lies_in(path.parent, target) or lies_in(path, target):
            raise InputError(f"{folder}: holds {path}, which is to be read; give another directory")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise InputError(f"{folder}: a file; give another directory")
    names = sorted(path.name for path in target.iterdir())
    foreign = [name for name in names if name not in MODEL_FILES or not (target / name).is_file()]
    if foreign:
        raise InputError(
            f"{folder}: holds {listing(foreign)}, which no merge wrote; give another directory"
        )
    if names and not overwrite:
        raise InputError(
            f"{folder}: holds a model; --overwrite replaces it, another directory keeps it"
        )
    if target == Path.cwd():
        raise InputError(
            f"{folder}: the directory you are in, which cannot be replaced; give another"
        )


def remove_model(folder: Path, only_files: bool = False) -> None:
    """Removes what a model consists of from a directory, and unless `only_files` the directory.

    Raises OSError where there is more in it.
    """
    for name in MODEL_FILES:
        for path in (folder / name, temporary_for(folder / name)):
            path.unlink(missing_ok=True)
    if not only_files and folder.is_dir():
        folder.rmdir()
