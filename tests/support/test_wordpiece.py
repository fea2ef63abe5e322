"""The tokenizer: tokens as transformers makes them, from every form of file, and spoilt files."""

import json
import shutil

import pytest
from helpers import edit_json
from transformers import AutoTokenizer

from support.errors import InputError
from support.wordpiece import load_tokenizer

AWKWARD = [
    "Café, naïve, ÀÉÎÕÜ, Ångström, façade",
    "e\u0301 cafe\u0301 a\u030a n\u0303, x\u0336y\u0336 combining",
    "中文字符 mixed with English 日本語テキスト 한국어 \U00020000",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 👍🏽 emoji",
    "שלום עולם مرحبا بالعالم \u202eright to left\u202c",
    "tab\tline\nreturn\rfeed\x0c bell\x07 nul\x00 del\x7f c1\x85",
    "the [MASK] and [SEP] of a user, [CLS][PAD] [UNK] [mask] ##ing",
    "x" * 100 + " " + "y" * 101 + " " + "z" * 5000,
    "ｆｕｌｌ ｗｉｄｔｈ ﬁ ﬂ ligatures Ⅷ ½ ℃",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeff soft\u00adhyphen",
    "ß ẞ İ ı ǅ ς Σ ŉ",
    "\u00a0no-break\u2009thin\u3000ideographic\u2028line",
    "don't... 3.14!!! $5 a_b a-b `c` ~d^ ¿qué? «oui» — “quotes”",
    "𝕸𝖆𝖙𝖍 हिन्दी ไทย \ufffd \ue000 \U0010ffff",
    "",
    " ",
]


@pytest.fixture(params=["tokenizer.json", "vocab.txt", "uncased vocab.txt", "cased vocab.txt"])
def folder(request, minilm, tmp_path):
    """A model directory that holds the tokenizer in one form only."""
    file = request.param.split()[-1]
    shutil.copy(f"{minilm}/{file}", tmp_path)
    shutil.copy(f"{minilm}/config.json", tmp_path)
    if " " in request.param:
        settings = {"do_lower_case": request.param.startswith("uncased")}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        with open(tmp_path / file, "a", encoding="utf-8") as vocabulary:
            vocabulary.write("Café\nThe\nÀ\n##É\n")
        edit_json(tmp_path / "config.json", vocab_size=30526)
    return tmp_path


@pytest.mark.parametrize("max_length", [512, 8])
def test_awkward_unicode_gives_transformers_tokens(folder, max_length):
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder, max_length)
    for other in None, AWKWARD[::-1]:
        expected = theirs(AWKWARD, other, truncation=True, max_length=max_length)
        found = ours.encode_batch(list(zip(AWKWARD, other, strict=True)) if other else AWKWARD)
        for row, text in enumerate(AWKWARD):
            assert found[row].ids == expected["input_ids"][row], text
            assert found[row].type_ids == expected["token_type_ids"][row], text


@pytest.fixture
def own(minilm, tmp_path):
    """A copy of a base's files that may be spoilt."""
    for name in "tokenizer.json", "config.json":
        shutil.copy(f"{minilm}/{name}", tmp_path)
    return tmp_path


def test_settings_in_the_file_do_not_count(own):
    """Files come with lengths to cut to and to pad to."""
    length = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    edit_json(own / "tokenizer.json", truncation=length)
    tokenizer = load_tokenizer(own)
    assert [len(e) for e in tokenizer.encode_batch(["good " * 600, "bad"])] == [602, 3]


def test_tokens_that_the_model_does_not_know_are_refused(own):
    edit_json(own / "config.json", vocab_size=30522)
    load_tokenizer(own)
    edit_json(own / "config.json", vocab_size=30521)
    with pytest.raises(InputError, match=r"has a token of number 30521; the model knows 30521"):
        load_tokenizer(own)


def test_tokenizers_of_another_kind_are_refused(own):
    path = own / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for part, other in [
        ("model", {"type": "BPE", "vocab": {}, "merges": []}),
        ("normalizer", None),
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
    ]:
        path.write_text(json.dumps(whole | {part: other}))
        kind = other and other["type"]
        with pytest.raises(InputError, match=f"tokenizer.json: not a BERT tokenizer, .*{kind}"):
            load_tokenizer(own)


def test_spoilt_files_are_named_in_one_line(own):
    path = own / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    without = dict(whole["model"]["vocab"])
    del without["[UNK]"]
    for content in [
        "",
        "[]",
        '{"model": ["WordPiece"]}',
        json.dumps(whole | {"model": whole["model"] | {"vocab": without}}),
        json.dumps(whole | {"model": whole["model"] | {"vocab": {}}}),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=f"^{path}: .*$") as error:
            load_tokenizer(own)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer, in tokenizer.json or vocab.txt"):
        load_tokenizer(own)
    (own / "vocab.txt").write_bytes(b"\xff\n[UNK]\n")
    with pytest.raises(InputError, match=r"vocab.txt: cannot be read"):
        load_tokenizer(own)
