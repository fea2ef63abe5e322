"""The tokenizer: tokens as transformers makes them, from every form of file, and spoilt files."""

import itertools
import json
import shutil

import pytest
import zoo
from helpers import edit_json
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from support.errors import InputError
from support.wordpiece import copy_tokenizer, load_tokenizer

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


# What the files say of each other.


def small(folder, settings: dict | None = None, **of_json):
    """A model's directory with a vocabulary that keeps everything, in both its forms."""
    folder.mkdir(exist_ok=True)
    tokens = zoo.vocabulary(keeps="everything")
    zoo.write_vocab(folder, tokens)
    zoo.write_tokenizer(folder, tokens, **of_json)
    config = {"model_type": "bert", "vocab_size": len(tokens) + 9}
    (folder / "config.json").write_text(json.dumps(config))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def differences(ours: Tokenizer, theirs) -> list[str]:
    """The hostile texts whose tokens differ from those of transformers."""
    texts = [*zoo.hostile_texts(60), "a[url] [URL]b [User][USER]"]
    expected = theirs(texts, truncation=True, max_length=512)["input_ids"]
    ours.enable_truncation(512)
    found = [encoding.ids for encoding in ours.encode_batch(texts)]
    return [t for t, a, b in zip(texts, found, expected, strict=True) if a != b]


def test_the_27_rules_are_those_of_tokenizer_config_json(tmp_path):
    """Whatever tokenizer.json says: it says the contrary here, where it can."""
    names = ["do_lower_case", "strip_accents", "tokenize_chinese_chars"]
    seen = set()
    for values in itertools.product([True, False, None], repeat=3):
        settings = {k: v for k, v in zip(names, values, strict=True) if v is not None}
        lower, accents, chinese = [not value for value in values]
        folder = small(tmp_path, settings, lower=lower, accents=accents, chinese=chinese)
        theirs = AutoTokenizer.from_pretrained(folder)
        ours = load_tokenizer(folder)
        assert not differences(ours, theirs), settings
        (folder / "tokenizer.json").unlink()
        assert not differences(load_tokenizer(folder), theirs), settings
        seen.add(str([ours.encode(text).ids for text in zoo.hostile_texts(60)]))
    assert len(seen) == 8  # accents unsaid go with the case; all others make a difference


def test_tokenizer_json_decides_where_the_class_says_so(tmp_path):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}
    folder = small(tmp_path, settings, lower=False, chinese=False, added=["[URL]"])
    ours = load_tokenizer(folder)
    assert not differences(ours, AutoTokenizer.from_pretrained(folder))
    assert ours.encode("A [URL]").tokens == ["[CLS]", "A", "[URL]", "[SEP]"]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer; tokenizer\.json is missing$"):
        load_tokenizer(folder)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("form", ["added_tokens.json", "decoder", "extra", "special_tokens_map"])
def test_added_tokens_are_honoured_and_copied(tmp_path, form, lower):
    folder = small(tmp_path / "base", {"do_lower_case": lower})
    (folder / "tokenizer.json").unlink()
    number = len(zoo.vocabulary(keeps="everything"))
    token = {"content": "[URL]", "lstrip": False, "normalized": False, "rstrip": False}
    token |= {"single_word": False, "special": True}
    if form == "added_tokens.json":
        (folder / form).write_text(json.dumps({"[USER]": number + 1, "[URL]": number}))
    elif form == "decoder":
        edit_json(folder / "tokenizer_config.json", added_tokens_decoder={number: token})
    elif form == "extra":
        edit_json(folder / "tokenizer_config.json", additional_special_tokens=["[URL]"])
    else:
        values = {"url_token": "[URL]", "cls_token": token | {"content": "[CLS]"}}
        (folder / "special_tokens_map.json").write_text(json.dumps(values))
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    assert ours.encode("[URL]").ids[1:-1] == [number] == [ours.token_to_id("[URL]")]
    assert not differences(ours, theirs)
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_tokenizer(folder, copy)
    shutil.copy(folder / "config.json", copy)
    assert not differences(load_tokenizer(copy), theirs)
    assert not differences(ours, AutoTokenizer.from_pretrained(copy))
    (copy / "vocab.txt").unlink()
    assert not differences(ours, AutoTokenizer.from_pretrained(copy))
    assert not differences(Tokenizer.from_file(str(copy / "tokenizer.json")), theirs)


@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens", "url_token",
                                 "bos_token"])  # fmt: skip
def test_special_tokens_are_taken_as_they_are_and_others_lower_cased(tmp_path, file, key):
    """Among those of added_tokens.json; some are not special for transformers there."""
    folder = small(tmp_path, {"do_lower_case": True})
    (folder / "tokenizer.json").unlink()
    number = len(zoo.vocabulary(keeps="everything"))
    (folder / "added_tokens.json").write_text(json.dumps({"[USER]": number + 1, "[URL]": number}))
    values = {key: "[URL]" if key.endswith("_token") else ["[URL]"]}
    (folder / file).write_text(json.dumps({"do_lower_case": True} | values))
    assert not differences(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))


def test_which_file_says_of_what_kind_an_added_token_is(tmp_path):
    """tokenizer.json before added_tokens.json, and tokenizer_config.json before both."""
    folder = small(tmp_path, {}, added=[AddedToken("[URL]", normalized=False)])
    number = len(zoo.vocabulary(keeps="everything"))
    (folder / "added_tokens.json").write_text(json.dumps({"[URL]": number}))
    assert not differences(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))
    token = {"content": "[URL]", "lstrip": True, "normalized": True, "rstrip": True}
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={number: token})
    assert not differences(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert not differences(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))


def test_a_token_of_a_contradicting_number_is_refused(tmp_path):
    folder = small(tmp_path, {})
    number = len(zoo.vocabulary(keeps="everything"))
    (folder / "added_tokens.json").write_text(json.dumps({"[URL]": number + 5}))
    problem = rf"'\[URL\]' has the number {number + 5}, but is number {number}"
    with pytest.raises(InputError, match=problem):
        load_tokenizer(folder)


def test_a_vocabulary_without_mask(tmp_path):
    """transformers numbers it beyond the rows, and fails at a text with it."""
    tokens = [token for token in zoo.vocabulary() if token != "[MASK]"]
    zoo.write_vocab(tmp_path, tokens)
    for rows, found in (len(tokens), 5), (len(tokens) + 1, 3):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows}))
        assert len(load_tokenizer(tmp_path).encode("[MASK]").ids) == found


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_hostile_templates_are_refused(tmp_path, kind):
    """The library dies of some of them: "This should not happen"."""
    folder = small(tmp_path / "base", {"tokenizer_class": kind})
    values = json.loads((folder / "tokenizer.json").read_text())
    template = values["post_processor"]
    far = [*template["pair"][:3], {"Sequence": {"id": "B", "type_id": 7}}, template["pair"][4]]
    cls = {"id": "[CLS]", "ids": [999999], "tokens": ["[CLS]"]}
    for name, value in (
        ("pair", far),
        ("pair", []),
        ("pair", template["pair"][::-1]),
        ("single", template["single"][1:]),
        ("special_tokens", template["special_tokens"] | {"[CLS]": cls}),
        ("special_tokens", {}),
        ("type", "RobertaProcessing"),
        ("type", 7),
    ):
        edit_json(folder / "tokenizer.json", post_processor=template | {name: value})
        with pytest.raises(InputError, match=rf"json: the post_processor is not BERT's: {name} "):
            load_tokenizer(folder)


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_the_older_form_of_the_template(tmp_path, kind):
    folder = small(tmp_path / "base", {"tokenizer_class": kind})
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 12], "cls": ["[CLS]", 11]}
    edit_json(folder / "tokenizer.json", post_processor=bert)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert not differences(load_tokenizer(folder), theirs)
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_tokenizer(folder, copy)
    assert not differences(Tokenizer.from_file(str(copy / "tokenizer.json")), theirs)
    edit_json(folder / "tokenizer.json", post_processor=bert | {"cls": ["[CLS]", 12]})
    with pytest.raises(InputError, match="the post_processor is not BERT's: cls"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("config.json", "tokenizer_class", "BertJapaneseTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", "BertJapaneseTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", "XLMRobertaTokenizerFast"),
        ("tokenizer_config.json", "tokenizer_class", "KoBertTokenizer"),
        ("tokenizer_config.json", "tokenizer_class", ["BertTokenizer"]),
        ("tokenizer_config.json", "word_tokenizer_type", "mecab"),
        ("tokenizer_config.json", "word_tokenizer_type", "sudachi"),
        ("tokenizer_config.json", "subword_tokenizer_type", "character"),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["own.Tokenizer", None]}),
        ("tokenizer_config.json", "split_special_tokens", True),
        ("tokenizer_config.json", "truncation_side", "left"),
        ("tokenizer_config.json", "do_lower_case", "false"),
        ("tokenizer_config.json", "do_lower_case", None),
    ],
)
def test_what_would_make_other_tokens_is_named(tmp_path, file, field, value):
    folder = small(tmp_path, {})
    load_tokenizer(folder)
    edit_json(folder / file, **{field: value})
    with pytest.raises(InputError, match=rf"^.*tokenizer_config\.json: {field} .*$"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "name", ["ElectraTokenizerFast", "MobileBertTokenizer", "BertTokenizerFast"]
)
def test_other_names_of_the_same_tokenizer(tmp_path, name):
    folder = small(tmp_path, {"tokenizer_class": name, "do_lower_case": False})
    assert not differences(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))


# Spoilt files.


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


@pytest.mark.parametrize("kind", ["BertTokenizer", "TokenizersBackend"])
def test_tokenizers_of_another_kind_are_refused(own, kind):
    (own / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    path = own / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for part, other, problem in [
        ("model", {"type": "BPE", "vocab": {}, "merges": []}, "type 'BPE'"),
        ("model", whole["model"] | {"max_input_chars_per_word": 7}, "max_input_chars_per_word 7"),
        ("normalizer", {"type": "Lowercase"}, "type 'Lowercase'"),
        ("normalizer", whole["normalizer"] | {"clean_text": False}, "clean_text False"),
        ("pre_tokenizer", {"type": "Whitespace"}, "type 'Whitespace'"),
        ("truncation", {"direction": "Left"}, "direction 'Left'"),
    ]:
        path.write_text(json.dumps(whole | {part: other}))
        with pytest.raises(InputError, match=f"json: the {part} is not BERT's: {problem}"):
            load_tokenizer(own)


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor"])
def test_a_part_may_lack_where_tokenizer_json_does_not_decide(tmp_path, part):
    """transformers takes the vocabulary alone from there; else it would have no [CLS], say."""
    folder = small(tmp_path, {})
    edit_json(folder / "tokenizer.json", **{part: None})
    assert not differences(load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(InputError, match=rf"tokenizer\.json: has no {part}"):
        load_tokenizer(folder)


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
        json.dumps(whole | {"added_tokens": [{"content": "[URL]"}]}),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=f"^{path}: .*$") as error:
            load_tokenizer(own)
        assert "\n" not in str(error.value)
    path.write_text(json.dumps(whole))
    for settings in {"cls_token": None}, {"unk_token": {"content": ""}}, {"strip_accents": 1}:
        (own / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(InputError, match=r"tokenizer.json: cannot be read \(.+\)$"):
            load_tokenizer(own)
    path.unlink()
    (own / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=r"holds no tokenizer; vocab.txt is missing"):
        load_tokenizer(own)
    (own / "vocab.txt").write_bytes(b"\xff\n[UNK]\n")
    with pytest.raises(InputError, match=r"vocab.txt: cannot be read"):
        load_tokenizer(own)
