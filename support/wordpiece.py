"""The tokenizer that a BERT brings: WordPiece, in tokenizer.json or vocab.txt."""

from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer

from support.errors import InputError, reading
from support.files import read_json


def load_tokenizer(folder: str | Path, max_length: int | None = None) -> Tokenizer:
    """The tokenizer of a model's directory: tokenizer.json, or else vocab.txt with BERT's rules.

    Texts are cut to `max_length` tokens, [CLS] and [SEP] included; nothing is padded. Raises
    InputError for a tokenizer of another kind, or with tokens that the model does not know.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        path = path.with_name("vocab.txt")
    if not path.is_file():
        raise InputError(f"{folder}: holds no tokenizer, in tokenizer.json or vocab.txt")
    with reading(path):
        tokenizer = from_json(path) if path.suffix == ".json" else from_vocabulary(path)
        tokenizer.no_padding()  # files come with settings of their own
        tokenizer.no_truncation()
        ids = [*tokenizer.get_vocab().values(), *tokenizer.encode("\U00013000").ids]  # [UNK] too
        known = read_json(path.with_name("config.json")).get("vocab_size", 30522)
        if max(ids) >= known:
            raise InputError(f"{path}: has a token of number {max(ids)}; the model knows {known}")
    if max_length:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def from_json(path: Path) -> Tokenizer:
    values = read_json(path)
    parts = [values.get(part) or {} for part in ("model", "normalizer", "pre_tokenizer")]
    kinds = [part.get("type") for part in parts]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise InputError(f"{path}: not a BERT tokenizer, but one of {kinds}")
    return Tokenizer.from_file(str(path))


def from_vocabulary(path: Path) -> Tokenizer:
    settings = path.with_name("tokenizer_config.json")
    values = read_json(settings) if settings.is_file() else {}
    tokenizer = BertWordPieceTokenizer(
        str(path),
        lowercase=values.get("do_lower_case", True),
        strip_accents=values.get("strip_accents"),
        handle_chinese_chars=values.get("tokenize_chinese_chars", True),
    )
    return Tokenizer.from_str(tokenizer.to_str())
