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
from tokenizers.processors import TemplateProcessing

from support.errors import InputError, reading
from support.files import read_json, write_json

# Names of BERT's tokenizer in transformers 5, and of one that takes tokenizer.json as it is.
BERT_CLASSES = ("Bert", "Electra", "LayoutLM", "Lxmert", "MobileBert", "SqueezeBert")
FILE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
SUPPORTED = {  # what tokenizer_config.json may say, if it says anything
    "word_tokenizer_type": "basic",
    "subword_tokenizer_type": "wordpiece",
    "split_special_tokens": False,
    "truncation_side": "right",
    "auto_map": None,
}
RULES = {  # of BERT's normalizer: tokenizer_config.json's name, tokenizer.json's, the usual value
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),  # None: as do_lower_case
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
NAMES = {f"{part}_token": f"[{part.upper()}]" for part in ("unk", "sep", "pad", "cls", "mask")}
FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


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
    tokens = tokenizer.get_added_tokens_decoder()
    settings["added_tokens_decoder"] = {
        str(number): {name: getattr(token, name) for name in FIELDS}
        for number, token in tokens.items()
    }
    write_json(target / "tokenizer_config.json", settings)
    if (source / "vocab.txt").is_file():
        shutil.copyfile(source / "vocab.txt", target / "vocab.txt")


def read_tokenizer(folder: Path) -> tuple[Tokenizer, dict]:
    """The tokenizer, and what a tokenizer_config.json must say to mean the same."""
    config = read_if_there(folder / "config.json")
    settings = read_settings(folder, config)
    of_json = settings["tokenizer_class"] in FILE_CLASSES  # tokenizer.json decides all of it
    path = folder / "tokenizer.json"
    if not path.is_file() and not of_json:
        path = folder / "vocab.txt"
    if not path.is_file():
        files = "tokenizer.json" if of_json else "tokenizer.json or vocab.txt"
        raise InputError(f"{folder}: holds no tokenizer, in {files}")
    with reading(path):
        if path.suffix == ".json":
            values = read_json(path)
            check_parts(path, values)
            vocab = values["model"]["vocab"]
        else:
            values = {}
            vocab = models.WordPiece.read_file(str(path))
        names = {key: content(settings.get(key, usual)) for key, usual in NAMES.items()}
        rules = {key: settings.get(key, usual) for key, (_, usual) in RULES.items()}
        if of_json:
            rules = {key: values["normalizer"].get(name) for key, (name, _) in RULES.items()}
        tokenizer = assemble(vocab, names, rules)
        listed = listed_tokens(folder, settings, values)
        rows = config.get("vocab_size", 30522)
        add_tokens(tokenizer, listed, special_tokens(settings), rows)
        template = set_template(tokenizer, names)
        if of_json or values.get("post_processor"):
            check_template(path, values.get("post_processor") or {}, template)
        check_numbers(path, tokenizer, vocab, listed, rows)
    length = config.get("max_position_embeddings", 512)
    written = {"tokenizer_class": "BertTokenizer", "model_max_length": length}
    return tokenizer, written | rules | names


def read_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def read_settings(folder: Path, config: dict) -> dict:
    """tokenizer_config.json, with special_tokens_map.json where that counts."""
    path = folder / "tokenizer_config.json"
    settings = read_if_there(path)
    if not settings.get("tokenizer_class"):
        settings["tokenizer_class"] = config.get("tokenizer_class") or "BertTokenizer"
    kind = str(settings["tokenizer_class"])
    bert_kind = kind.removesuffix("Fast").removesuffix("Tokenizer")
    if kind not in FILE_CLASSES and bert_kind not in BERT_CLASSES:
        raise InputError(f"{path}: tokenizer_class {kind!r:.60} is not supported")
    for name, supported in SUPPORTED.items():
        if settings.get(name, supported) != supported:
            raise InputError(f"{path}: {name} {settings[name]!r:.60} is not supported")
    for name, (_, usual) in RULES.items():
        value = settings.get(name, usual)
        if not isinstance(value, bool) and value is not usual:
            raise InputError(f"{path}: {name} {value!r:.60} must be true or false")
    if settings.get("added_tokens_decoder") is None:
        settings |= read_if_there(folder / "special_tokens_map.json")
    for name in ("unk_token", "cls_token", "sep_token"):
        if not content(settings.get(name, NAMES[name])):
            raise InputError(f"{path}: {name} {settings[name]!r:.60} is no token")
    return settings


def check_parts(path: Path, values: dict) -> None:
    """Raises InputError for a tokenizer.json of another kind."""
    parts = [values.get(part) or {} for part in ("model", "normalizer", "pre_tokenizer")]
    kinds = [part.get("type") for part in parts]
    if kinds[0] is None and "continuing_subword_prefix" in parts[0]:
        kinds[0] = "WordPiece"  # files of 2020 do not name it
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise InputError(f"{path}: not a BERT tokenizer, but one of {kinds}")
    usual = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    usual |= {"clean_text": True, "direction": "Right"}
    for part in (*parts[:2], values.get("truncation") or {}):
        for name in usual.keys() & part.keys():
            if part[name] != usual[name]:
                raise InputError(f"{path}: {name} {part[name]!r:.60} is not supported")


def assemble(vocab: dict[str, int], names: dict, rules: dict) -> Tokenizer:
    """BERT's tokenizer of a vocabulary, without added tokens and without [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=names["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=rules["do_lower_case"],
        strip_accents=rules["strip_accents"],
        handle_chinese_chars=rules["tokenize_chinese_chars"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def content(token: Any) -> str:
    """The text of a special token, which stands as it is or as an object."""
    return str(token.get("content") or "") if isinstance(token, dict) else str(token or "")


def special_tokens(settings: dict) -> list[str]:
    """All that tokenizer_config.json calls special, in the order in which they are numbered."""
    named = {"bos_token": "", "eos_token": "", **NAMES}
    named |= {key: value for key, value in settings.items() if key.endswith("_token")}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    tokens = [*named.values(), *(extra.values() if isinstance(extra, dict) else extra)]
    return [content(token) for token in tokens]


def listed_tokens(folder: Path, settings: dict, values: dict) -> dict[int, AddedToken]:
    """The added tokens that the files number; tokenizer.json's are in its `values`."""
    of_json = {}
    for token in values.get("added_tokens") or []:
        of_json[int(token["id"])] = AddedToken(**{name: token[name] for name in FIELDS})
    if settings.get("added_tokens_decoder") is not None:
        decoder = settings["added_tokens_decoder"].items()
        own = {int(number): AddedToken(**token) for number, token in decoder}
        return of_json | own if settings["tokenizer_class"] in FILE_CLASSES else own
    special = special_tokens(settings)
    own = {}
    for text, number in read_if_there(folder / "added_tokens.json").items():
        is_special = text in special
        own[int(number)] = AddedToken(text, normalized=not is_special, special=is_special)
    return own | of_json


def add_tokens(
    tokenizer: Tokenizer, listed: dict[int, AddedToken], special: list[str], rows: int
) -> None:
    """Adds the tokens in the order of their numbers, then the special ones that are not listed.

    One that the vocabulary lacks, as some do [MASK], needs one of the model's `rows`.
    """
    tokens = [listed[number] for number in sorted(listed)]
    texts = [token.content for token in tokens]
    for token in tokens:
        token.special = token.special or token.content in special
    tokenizer.add_tokens(tokens)
    for text in dict.fromkeys(special):
        has_row = tokenizer.token_to_id(text) is not None or tokenizer.get_vocab_size() < rows
        if text and text not in texts and has_row:
            tokenizer.add_tokens([AddedToken(text, special=True)])


def set_template(tokenizer: Tokenizer, names: dict) -> dict:
    """[CLS] A [SEP] B [SEP]; returns it as tokenizer.json has it."""
    cls, sep = names["cls_token"], names["sep_token"]
    template = TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    tokenizer.post_processor = template
    return json.loads(template.__getstate__())


def check_template(path: Path, found: dict, wanted: dict) -> None:
    """Raises InputError for a tokenizer.json that frames the texts in another way than BERT."""
    kind = found.get("type")
    ids = {name: token["ids"] for name, token in wanted["special_tokens"].items()}
    if kind == "TemplateProcessing":
        theirs = {name: found["special_tokens"].get(name, {}).get("ids") for name in ids}
        good = theirs == ids and all(found[form] == wanted[form] for form in ("single", "pair"))
    else:
        cls, sep = [[name, number] for name, (number,) in ids.items()]
        good = kind == "BertProcessing" and (found["cls"], found["sep"]) == (cls, sep)
    if not good:
        raise InputError(f"{path}: post_processor {kind!s:.40} is not BERT's [CLS] A [SEP] B [SEP]")


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
