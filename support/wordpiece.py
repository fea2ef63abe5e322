"""The tokenizer that a BERT brings: WordPiece, in tokenizer.json or vocab.txt."""

from pathlib import Path

from tokenizers import Tokenizer

from support.errors import InputError, reading
from support.files import read_json

PARTS = {
    "model": "WordPiece",
    "normalizer": "BertNormalizer",
    "pre_tokenizer": "BertPreTokenizer",
}
# A letter, and a sign that no vocabulary has: so the tokens [CLS], [SEP] and [UNK] come up too.
PROBE = "a \N{EGYPTIAN HIEROGLYPH A001}"


def load_tokenizer(folder: str | Path, max_length: int | None = None) -> Tokenizer:
    """The tokenizer of a directory: tokenizer.json, or else vocab.txt with BERT's own rules.

    Texts are cut to `max_length` tokens, [CLS] and [SEP] included; nothing is padded. Raises
    InputError for a tokenizer of another kind, or with tokens that the model does not know.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        path = path.with_name("vocab.txt")
    if not path.is_file():
        raise InputError(f"{folder}: holds no tokenizer, in tokenizer.json or vocab.txt")
    with reading(path):
        if path.suffix == ".json":
            check_kind(path)
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = from_vocabulary(path)
        tokenizer.no_padding()  # files come with settings of their own
        tokenizer.no_truncation()
        ids = [*tokenizer.get_vocab().values(), *tokenizer.encode(PROBE).ids]
    config = path.with_name("config.json")
    known = read_json(config).get("vocab_size") if config.is_file() else None
    if isinstance(known, int) and max(ids) >= known:
        raise InputError(f"{path}: has a token of number {max(ids)}; the model knows {known}")
    if max_length:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def check_kind(path: Path) -> None:
    """Raises InputError unless a tokenizer.json holds a BERT's."""
    values = read_json(path)
    for part, kind in PARTS.items():
        found = (values.get(part) or {}).get("type")
        if found != kind:
            raise InputError(f"{path}: not a BERT tokenizer: its {part} is {found}, not {kind}")


def from_vocabulary(path: Path) -> Tokenizer:
    """The tokenizer of a vocab.txt; tokenizer_config.json says whether it keeps upper case."""
    from tokenizers.implementations import BertWordPieceTokenizer

    settings = path.with_name("tokenizer_config.json")
    values = read_json(settings) if settings.is_file() else {}
    tokenizer = BertWordPieceTokenizer(
        str(path),
        lowercase=values.get("do_lower_case", True),
        strip_accents=values.get("strip_accents"),
        handle_chinese_chars=values.get("tokenize_chinese_chars", True),
    )
    return Tokenizer.from_str(tokenizer.to_str())
