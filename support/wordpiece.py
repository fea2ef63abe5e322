"""The tokenizer that a BERT brings: WordPiece, read from its files as transformers 5 reads them.

    tokenizer.json          the vocabulary, and added tokens
    vocab.txt               the vocabulary, where there is no tokenizer.json
    tokenizer_config.json   do_lower_case, strip_accents, tokenize_chinese_chars, added tokens
    added_tokens.json, special_tokens_map.json    the same in older checkpoints

Where tokenizer_class says PreTrainedTokenizerFast, tokenizer.json decides all of it. What would
make other tokens, and is not known here, is refused by the name of its field.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import BertProcessing, TemplateProcessing

from support.errors import InputError, reading
from support.files import read_json, write_json

# Names of BERT's tokenizer in transformers 5, and of one that takes tokenizer.json as it is.
BERT_NAMES = ("Bert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")
BERT_CLASSES = [f"{name}Tokenizer{end}" for name in BERT_NAMES for end in ("", "Fast")]
FILE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")

# What tokenizer_config.json says, if it says nothing, in the order in which tokens are numbered.
NAMES = {f"{part}_token": f"[{part.upper()}]" for part in ("unk", "sep", "pad", "cls", "mask")}
RULES = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
USUAL = {"bos_token": "", "eos_token": "", **NAMES, **RULES}
# And what it may say.
SUPPORTED = {
    "tokenizer_class": (*BERT_CLASSES, *FILE_CLASSES),
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),  # None: as do_lower_case
    "tokenize_chinese_chars": (True, False),
    "word_tokenizer_type": ("basic",),
    "subword_tokenizer_type": ("wordpiece",),
    "split_special_tokens": (False,),
    "truncation_side": ("right",),
    "auto_map": (None,),
}
# What tokenizer.json may say. Files of 2020 do not name the model's type.
PARTS = {
    "model": {
        "type": "WordPiece",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    },
    "normalizer": {"type": "BertNormalizer", "clean_text": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "truncation": {"direction": "Right"},
}


def load_tokenizer(folder: str | Path, max_length: int | None = None) -> Tokenizer:
    """The tokenizer of a model's directory.

    Texts are cut to `max_length` tokens, [CLS] and [SEP] included; nothing is padded. Raises
    InputError for a tokenizer of another kind, or with tokens that the model does not know.
    """
    tokenizer, _ = read_tokenizer(Path(folder))
    if max_length:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def copy_tokenizer(source: Path, target: Path, max_length: int | None = None) -> None:
    """Writes the tokenizer of `source` into `target`, in the files that any engine may read.

    They say the same, so that an engine that reads tokenizer.json alone makes the same tokens as
    one that takes only the vocabulary from there. They tell it to cut texts to `max_length` tokens,
    or to the model's positions.
    """
    tokenizer, settings = read_tokenizer(source)
    settings["model_max_length"] = max_length or settings["model_max_length"]
    tokenizer.save(str(target / "tokenizer.json"))
    write_json(target / "tokenizer_config.json", settings)
    if (source / "vocab.txt").is_file():
        shutil.copyfile(source / "vocab.txt", target / "vocab.txt")


def read_tokenizer(folder: Path) -> tuple[Tokenizer, dict]:
    """The tokenizer, and what a tokenizer_config.json must say to mean the same."""
    config = read_if_there(folder / "config.json")
    rows = config.get("vocab_size", 30522)
    settings = read_settings(folder, config)
    of_json = settings["tokenizer_class"] in FILE_CLASSES  # tokenizer.json decides all of it
    path = folder / "tokenizer.json"
    if not path.is_file() and not of_json:
        path = folder / "vocab.txt"
    if not path.is_file():
        raise InputError(f"{folder}: holds no tokenizer; {path.name} is missing")
    with reading(path):
        if path.suffix == ".json":
            values = read_json(path)
        else:
            values = {"model": {"vocab": models.WordPiece.read_file(str(path))}}
        for part, wanted in PARTS.items():
            check_part(path, part, values.get(part), wanted)
        if of_json:
            settings |= read_rules(path, values)
        vocab = values["model"]["vocab"]
        tokenizer = assemble(vocab, settings)
        listed = listed_tokens(folder, settings, values)
        add_tokens(tokenizer, listed, special_tokens(settings), rows)
        found: Any = values.get("post_processor")
        frame = make_frame(tokenizer, settings, found)
        check_part(path, "post_processor", found, json.loads(frame.__getstate__()))
        tokenizer.post_processor = frame
        check_numbers(path, tokenizer, vocab, listed, rows)
    length = config.get("max_position_embeddings", 512)
    written = {"tokenizer_class": "BertTokenizer", "model_max_length": length}
    return tokenizer, written | {name: settings[name] for name in (*RULES, *NAMES)}


def read_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def content(token: Any) -> str:
    """The text of a special token, which stands as it is or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return str(token or "")


def read_settings(folder: Path, config: dict) -> dict:
    """tokenizer_config.json, with special_tokens_map.json where that counts; tokens as texts."""
    path = folder / "tokenizer_config.json"
    settings = USUAL | read_if_there(path)
    settings.setdefault("extra_special_tokens", settings.get("additional_special_tokens"))
    if settings.get("added_tokens_decoder") is None:
        settings |= read_if_there(folder / "special_tokens_map.json")
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class")
    settings["tokenizer_class"] = kind or "BertTokenizer"
    for name, supported in SUPPORTED.items():
        if settings.get(name, supported[0]) not in supported:
            raise InputError(f"{path}: {name} {settings[name]!r:.60} is not supported")
    for name, value in settings.items():
        if name.endswith("_token"):
            settings[name] = content(value)
    return settings


def check_part(path: Path, part: str, found: dict | None, wanted: dict) -> None:
    """Raises InputError for a part of a tokenizer.json that contradicts what BERT's says."""
    for name, value in (found or {}).items():
        if wanted.get(name, value) != value:
            raise InputError(f"{path}: the {part} is not BERT's: {name} {value!r:.60}")


def read_rules(path: Path, values: dict) -> dict:
    """What a tokenizer.json says that decides all of it, as tokenizer_config.json would say it."""
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if not values.get(part):
            raise InputError(f"{path}: has no {part}")
    return {
        "unk_token": values["model"]["unk_token"],
        "do_lower_case": values["normalizer"]["lowercase"],
        "strip_accents": values["normalizer"]["strip_accents"],
        "tokenize_chinese_chars": values["normalizer"]["handle_chinese_chars"],
    }


def assemble(vocab: dict[str, int], settings: dict) -> Tokenizer:
    """BERT's tokenizer of a vocabulary, without added tokens and without [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=settings["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings["do_lower_case"],
        strip_accents=settings["strip_accents"],
        handle_chinese_chars=settings["tokenize_chinese_chars"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def special_tokens(settings: dict) -> list[str]:
    """All that tokenizer_config.json calls special, in the order in which they are numbered."""
    named = [token for name, token in settings.items() if name.endswith("_token")]
    extra = settings["extra_special_tokens"] or settings.get("additional_special_tokens") or []
    more = extra.values() if isinstance(extra, dict) else extra
    return [*named, *map(content, more)]


def listed_tokens(folder: Path, settings: dict, values: dict) -> dict[int, AddedToken]:
    """The added tokens that the files number, a later one in place of an earlier one.

    Those of tokenizer.json are in its `values`.
    """
    listed = {}
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        special = [settings[name] for name in USUAL if name.endswith("_token")]
        special += map(content, settings["extra_special_tokens"] or [])
        for text, number in read_if_there(folder / "added_tokens.json").items():
            listed[number] = AddedToken(text, special=text in special)
    for token in values.get("added_tokens") or []:
        number = token.pop("id")
        listed[number] = AddedToken(**token)
    for number, token in (decoder or {}).items():
        listed[int(number)] = AddedToken(**token)
    return listed


def add_tokens(
    tokenizer: Tokenizer, listed: dict[int, AddedToken], special: list[str], rows: int
) -> None:
    """Adds the tokens in the order of their numbers, then the special ones that are not listed.

    One that the vocabulary lacks, as some do [MASK], needs one of the model's `rows`.
    """
    tokens = [listed[number] for number in sorted(listed)]
    texts = [token.content for token in tokens]
    tokenizer.add_tokens(tokens)
    for text in special:
        has_row = tokenizer.token_to_id(text) is not None or tokenizer.get_vocab_size() < rows
        if text and text not in texts and has_row:
            tokenizer.add_tokens([AddedToken(text, special=True)])


def make_frame(tokenizer: Tokenizer, settings: dict, found: dict | None):
    """What makes [CLS] A [SEP] B [SEP], in the newer form, or in the older one if it is found."""
    cls, sep = settings["cls_token"], settings["sep_token"]
    numbers = tokenizer.get_vocab()
    if found and found.get("type") == "BertProcessing":
        return BertProcessing((sep, numbers[sep]), (cls, numbers[cls]))
    return TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, numbers[cls]), (sep, numbers[sep])],
    )


def check_numbers(path: Path, tokenizer: Tokenizer, vocab, listed: dict, rows: int) -> None:
    """Raises InputError for tokens that the model has no row for, or another one."""
    for number, token in listed.items():
        counted = tokenizer.token_to_id(token.content)
        if token.content not in vocab and counted != number:
            text = f"{token.content!r:.40} has the number {number}, but is number {counted}"
            raise InputError(f"{path}: the added token {text} of its vocabulary")
    ids = [*tokenizer.get_vocab().values(), *tokenizer.encode("\U00013000").ids]  # [UNK] too
    if max(ids) >= rows:
        raise InputError(f"{path}: has a token of number {max(ids)}; the model knows {rows}")
