"""Small replicas of checkpoints as the Hub has them: random weights in the real layout.

    build("beomi/kcbert-base", folder)  # config.json, tokenizer files, tensors under their names

The fields, files and names are those of the real ones, as far as somebody could read them or
knows them; the sizes are not. What each must give stands beside it: equal to transformers, or a
refusal that names the field. `PYTHONPATH=. python tests/zoo.py` prints the table of
docs/compatibility.md.
"""

import json
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from helpers import TINY, draw
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

# Texts.

WORDS = """
The a film was good, bad! Not; U.S. $3.14 ... (e-mail) it's a_b `c` ~d^ {e} |f| <g> @h #i
Café naïve ÀÉÎÕÜ Ångström façade Straße ẞ İstanbul ığdır ςΣ ŉ ǅ Привет Ёлка
中文字符 日本語テキスト 한국어 \U00020000 東京タワー 你好OK iPhone NBA हिन्दी ไทย שלום مرحبا
👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 𝕸𝖆𝖙𝖍 ｆｕｌｌ ﬁ Ⅷ ½ ℃ «oui» — “q” ¿qué?
e\u0301 a\u030a n\u0303 x\u0336y\u0336 cafe\u0301 \u0301 \u1100\u1161 \u0345
[MASK] [SEP] [CLS] [PAD] [UNK] [mask] [unused1] ##ing ## [URL] [USER] <s> </s>
"""
CONTROLS = "\t\n\r\x0c\x07\x00\x7f\x85\xad\ufeff\u200b\u200c\u200d\u202e\u2028\u3000\u2009\xa0"
CONTROLS += "\ufffd\ue000\U0010ffff\u180e\u2060\ufe0f"
LONG = ["x" * 100, "y" * 101, "z" * 3000, "0123456789" * 9, "." * 40]
PIECES = [*re.findall("[^ \n]+", WORDS), *CONTROLS, *LONG]


def hostile_texts(count: int = 200) -> list[str]:
    """Texts of any script, with what cleaning, folding and splitting may get wrong."""
    draw_from = random.Random(0)
    texts = ["", " ", *PIECES]
    while len(texts) < count:
        separators = ["", " ", " ", " ", "\u3000", "-"]
        words = draw_from.choices(PIECES, k=draw_from.randint(2, 14))
        texts.append("".join(word + draw_from.choice(separators) for word in words))
    return texts[:count]


# Tokenizers.

GOOGLE = ["[PAD]", *(f"[unused{n}]" for n in range(1, 10)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SCIBERT = ["[PAD]", *(f"[unused{n}]" for n in range(9)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KOREAN = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def strip_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(char for char in decomposed if unicodedata.category(char) != "Mn")


def vocabulary(special: list[str] = GOOGLE, keeps: str = "nothing") -> list[str]:
    """Words, characters and pieces of the texts, as they are after BERT's own rules.

    It keeps "nothing" of capitals and accents, "accents", or "everything".
    """
    text = " ".join(PIECES)
    if keeps != "everything":
        text = text.lower()
    if keeps == "nothing":
        text = strip_accents(text)
    words = re.findall(r"\w{2,6}", text)
    characters = sorted(set(text) - set(" \t\n\r"))
    visible = [c for c in characters if unicodedata.category(c)[0] != "C" and not c.isspace()]
    pieces = [f"##{piece}" for piece in visible + [word[1:] for word in words]]
    return list(dict.fromkeys([*special, *visible, *words, *pieces]))


def write_vocab(folder: Path, tokens: list[str]) -> int:
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in tokens), encoding="utf-8")
    return len(tokens)


def write_tokenizer(
    folder: Path, tokens: list[str], lower=True, accents=None, chinese=True, added=(), typed=True
) -> int:
    """A tokenizer.json as transformers 4 wrote it, with cutting and padding of its own."""
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    special = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens(list(added))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(folder / "tokenizer.json"))
    if not typed:  # as in 2020
        values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        del values["model"]["type"]
        (folder / "tokenizer.json").write_text(json.dumps(values, ensure_ascii=False))
    return tokenizer.get_vocab_size()


def write_unigram(folder: Path) -> int:
    """What XLM-R's SentencePiece becomes in tokenizer.json."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *vocabulary([])]
    scores = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(pieces)


# Weights: how the names of a model in memory stand in the file.


def official(state: dict) -> dict:
    """As in 2018: LayerNorm's gamma and beta."""
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }


def with_positions(state: dict) -> dict:
    """With the buffer that early transformers saved."""
    prefix = "bert." if any(name.startswith("bert.") for name in state) else ""
    return state | {f"{prefix}embeddings.position_ids": torch.arange(40)[None]}


def compiled(state: dict) -> dict:
    return {f"_orig_mod.{name}": tensor for name, tensor in state.items()}


def parallel(state: dict) -> dict:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def half(state: dict) -> dict:
    return {name: tensor.half() for name, tensor in state.items()}


def with_distillation(state: dict) -> dict:
    """TinyBERT's layers that its teacher's states were compared through."""
    extra = {f"fit_denses.{n}.{part}": torch.ones(3) for n in range(3) for part in ("weight", "b")}
    return official(state) | extra


def with_joined_attention(state: dict) -> dict:
    """MosaicBERT's one matrix for query, key and value."""
    joined = {"bert.encoder.layer.0.attention.self.Wqkv.weight": torch.ones(96, 32)}
    return {n: t for n, t in state.items() if ".0.attention.self." not in n} | joined


# Checkpoints.


@dataclass
class Checkpoint:
    """A checkpoint of the Hub, small.

    `refused` is what the refusal names; a `pickled` one must be converted first.
    """

    special: str  # what its files have of their own
    architecture: str = "BertForMaskedLM"
    config: dict = field(default_factory=dict)  # more of config.json; None: the field is absent
    tokens: list[str] = field(default_factory=vocabulary)
    vocab_txt: bool = True
    json: dict | None = None  # the settings of tokenizer.json
    files: dict = field(default_factory=dict)  # tokenizer_config.json and others
    naming: Callable[[dict], dict] = with_positions
    pickled: bool = False
    own_tokenizer: Callable[[Path], int] | None = None
    refused: str = ""


BIDI = {
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
}
UNCASED: dict = {"tokenizer_config.json": {"do_lower_case": True, "model_max_length": 512}}
CASED: dict = {"tokenizer_config.json": {"do_lower_case": False, "model_max_length": 512}}
EVERYTHING = vocabulary(keeps="everything")
SEQUENCE = "BertForSequenceClassification"


def saved_by_transformers(**settings) -> dict:
    """tokenizer_config.json as transformers 4 saved it."""
    numbers = {token: GOOGLE.index(token) for token in GOOGLE if "unused" not in token}
    common = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(n): {"content": t, "special": True, **common} for t, n in numbers.items()}
    names = {f"{part}_token": f"[{part.upper()}]" for part in ("cls", "mask", "pad", "sep", "unk")}
    return {
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": True,
        "do_basic_tokenize": True,
        "do_lower_case": True,
        "model_max_length": 512,
        "never_split": None,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "tokenizer_class": "BertTokenizer",
        **names,
        **settings,
    }


def labels(*names: str) -> dict:
    numbers = {name: number for number, name in enumerate(names)}
    return {"id2label": {str(n): name for name, n in numbers.items()}, "label2id": numbers}


NER = labels("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
TOXIC = labels("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MECAB = {"do_lower_case": False, "word_tokenizer_type": "mecab"}
WORD_MAP = {f"{part}_token": f"[{part.upper()}]" for part in ("cls", "mask", "pad", "sep", "unk")}

ZOO: dict[str, Checkpoint] = {
    # The official ones.
    "google-bert/bert-base-uncased": Checkpoint(
        "gamma and beta, heads of pre-training; tokenizer.json names no type of model",
        json={"typed": False},
        files=UNCASED,
        naming=official,
    ),
    "google-bert/bert-base-cased": Checkpoint(
        "cased", tokens=EVERYTHING, json={"lower": False}, files=CASED, naming=official
    ),
    "google-bert/bert-base-chinese": Checkpoint(
        "no capitals in the vocabulary, and not lower-cased; pooler_* in config.json",
        config=BIDI,
        json={"lower": False},
        files=CASED,
        naming=official,
    ),
    "google-bert/bert-base-multilingual-cased": Checkpoint(
        "cased, many scripts", config=BIDI, tokens=EVERYTHING, json={"lower": False}, files=CASED
    ),
    "a copy of it without tokenizer_config.json": Checkpoint(
        "tokenizer.json says cased; transformers lower-cases",
        tokens=EVERYTHING,
        json={"lower": False},
    ),
    "google-bert/bert-base-multilingual-uncased": Checkpoint(
        "lower-cased, many scripts", config=BIDI, json={}, files=UNCASED
    ),
    "google-bert/bert-large-uncased-whole-word-masking-finetuned-squad": Checkpoint(
        "qa_outputs", "BertForQuestionAnswering", json={}, files=UNCASED, naming=official
    ),
    "google/bert_uncased_L-2_H-128_A-2": Checkpoint(
        "vocab.txt alone, no model_type, pickle alone",
        config={"model_type": None, "architectures": None},
        naming=official,
        pickled=True,
    ),
    "prajjwal1/bert-tiny": Checkpoint(
        "vocab.txt alone, no model_type, pickle alone",
        "BertModel",
        config={"model_type": None, "architectures": None},
        naming=with_positions,
        pickled=True,
    ),
    # Chinese, Japanese, Korean.
    "hfl/chinese-roberta-wwm-ext": Checkpoint(
        "a BERT in spite of its name; empty added_tokens.json, init_inputs",
        config=BIDI | {"bos_token_id": 0, "eos_token_id": 2, "output_past": True},
        json={},
        files={
            "tokenizer_config.json": {"init_inputs": []},
            "added_tokens.json": {},
            "special_tokens_map.json": WORD_MAP,
        },
    ),
    "bert-base-chinese, fine-tuned with [URL] and [USER]": Checkpoint(
        "vocab.txt and added_tokens.json",
        SEQUENCE,
        files={
            "tokenizer_config.json": {"do_lower_case": False},
            "added_tokens.json": {
                "[URL]": len(vocabulary()),
                "[USER]": len(vocabulary()) + 1,
            },
        },
    ),
    "a copy of bert-base-chinese with [CLS] among its added tokens": Checkpoint(
        "added_tokens.json gives [CLS] another number; the vocabulary's counts",
        json={"lower": False},
        files=CASED | {"added_tokens.json": {"[CLS]": 21128}},
    ),
    "cl-tohoku/bert-base-japanese": Checkpoint(
        "MeCab's words",
        config={"tokenizer_class": "BertJapaneseTokenizer"},
        tokens=EVERYTHING,
        files={"tokenizer_config.json": MECAB | {"subword_tokenizer_type": "wordpiece"}},
        refused="tokenizer_class 'BertJapaneseTokenizer'",
    ),
    "cl-tohoku/bert-base-japanese-char": Checkpoint(
        "MeCab's words, characters",
        tokens=EVERYTHING,
        files={"tokenizer_config.json": MECAB | {"subword_tokenizer_type": "character"}},
        refused="word_tokenizer_type 'mecab'",
    ),
    "beomi/kcbert-base": Checkpoint(
        "300 positions (here 30)",
        config=BIDI | {"max_position_embeddings": 30},
        tokens=vocabulary(KOREAN, keeps="everything"),
        files={"tokenizer_config.json": {"do_lower_case": False, "model_max_length": 300}},
        naming=with_positions,
    ),
    "klue/bert-base": Checkpoint(
        "special tokens at the front, BertTokenizer",
        config={"position_embedding_type": "absolute", "use_cache": True},
        tokens=vocabulary(KOREAN, keeps="everything"),
        json={"lower": False},
        files={
            "tokenizer_config.json": {
                "do_lower_case": False,
                "do_basic_tokenize": True,
                "never_split": None,
                "bos_token": "[CLS]",
                "eos_token": "[SEP]",
                "tokenizer_class": "BertTokenizer",
                **WORD_MAP,
            },
            "special_tokens_map.json": WORD_MAP | {"bos_token": "[CLS]", "eos_token": "[SEP]"},
        },
    ),
    # Distilled, and for sentences.
    "microsoft/MiniLM-L12-H384-uncased": Checkpoint(
        "vocab.txt alone, pickle alone", "BertModel", config={"architectures": None}, pickled=True
    ),
    "microsoft/Multilingual-MiniLM-L12-H384": Checkpoint(
        "XLM-R's SentencePiece",
        "BertModel",
        config={"tokenizer_class": "XLMRobertaTokenizer"},
        vocab_txt=False,
        refused="tokenizer_class 'XLMRobertaTokenizer'",
    ),
    "sentence-transformers/all-MiniLM-L12-v2": Checkpoint(
        "no classifier; cutting and padding in tokenizer.json; a file of another case",
        "BertModel",
        json={},
        files={
            "tokenizer_config.json": saved_by_transformers(max_length=128, padding_side="right"),
            "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        },
    ),
    "sentence-transformers/LaBSE": Checkpoint(
        "501,153 tokens, cased",
        "BertModel",
        tokens=EVERYTHING,
        json={"lower": False},
        files={"tokenizer_config.json": saved_by_transformers(do_lower_case=False)},
    ),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": Checkpoint(
        "Unigram in tokenizer.json, 250,037 rows for 250,002 tokens",
        "BertModel",
        files={"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}},
        vocab_txt=False,
        own_tokenizer=write_unigram,
        refused="Unigram",
    ),
    "BAAI/bge-small-en-v1.5": Checkpoint(
        "one label that means nothing",
        "BertModel",
        config=labels("LABEL_0"),
        json={},
        files={"tokenizer_config.json": saved_by_transformers()},
    ),
    "intfloat/e5-small-v2": Checkpoint(
        "position_ids",
        "BertModel",
        json={},
        files={
            "tokenizer_config.json": saved_by_transformers(),
            "special_tokens_map.json": WORD_MAP,
        },
    ),
    "thenlper/gte-small": Checkpoint(
        "float16",
        "BertModel",
        json={},
        naming=half,
        files={"tokenizer_config.json": saved_by_transformers(tokenizer_class="BertTokenizerFast")},
    ),
    "cross-encoder/ms-marco-MiniLM-L6-v2": Checkpoint(
        "one label, no problem_type; position_ids",
        SEQUENCE,
        config=labels("LABEL_0")
        | {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        json={},
        files={"tokenizer_config.json": saved_by_transformers()},
    ),
    "huawei-noah/TinyBERT_General_4L_312D": Checkpoint(
        "pickle alone; layers of the distillation",
        "BertForPreTraining",
        config={"cell": {}, "emb_size": 312, "structure": [], "pre_trained": "", "training": ""},
        naming=with_distillation,
        pickled=True,
    ),
    # Fine-tuned.
    "ProsusAI/finbert": Checkpoint(
        "pickle alone; positive, negative, neutral in this order",
        SEQUENCE,
        config=labels("positive", "negative", "neutral"),
        files={
            "tokenizer_config.json": {"do_lower_case": True},
            "special_tokens_map.json": WORD_MAP,
        },
        pickled=True,
    ),
    "nlptown/bert-base-multilingual-uncased-sentiment": Checkpoint(
        "five stars, _num_labels, finetuning_task",
        SEQUENCE,
        config=labels(*(f"{n} star" + "s" * (n > 1) for n in range(1, 6)))
        | BIDI
        | {"_num_labels": 5, "finetuning_task": "sentiment-analysis"},
        files={"tokenizer_config.json": {"do_lower_case": True}},
    ),
    "dslim/bert-base-NER": Checkpoint(
        "a head of words, and a pooler",
        "BertForTokenClassification",
        config=NER | {"_num_labels": 9},
        tokens=EVERYTHING,
        files={
            "tokenizer_config.json": {"do_lower_case": False},
            "added_tokens.json": {},
            "special_tokens_map.json": WORD_MAP,
        },
    ),
    "unitary/toxic-bert": Checkpoint(
        "six labels, several of them right",
        SEQUENCE,
        config=TOXIC | {"problem_type": "multi_label_classification"},
        json={},
        files={"tokenizer_config.json": saved_by_transformers()},
    ),
    "textattack/bert-base-uncased-MNLI": Checkpoint(
        "LABEL_n in an order of its own; pickle alone",
        SEQUENCE,
        config=labels("LABEL_0", "LABEL_1", "LABEL_2") | {"finetuning_task": "glue:mnli"},
        files={"special_tokens_map.json": WORD_MAP},
        pickled=True,
    ),
    "textattack/bert-base-uncased-SST-2": Checkpoint(
        "LABEL_n unsaid; pickle alone",
        SEQUENCE,
        config={"finetuning_task": "glue:sst-2"},
        files={"special_tokens_map.json": WORD_MAP},
        pickled=True,
    ),
    "a classifier with num_labels alone": Checkpoint(
        "num_labels: 3, no id2label",
        SEQUENCE,
        config={"num_labels": 3, "id2label": None, "label2id": None},
        json={},
        files=UNCASED,
    ),
    "a multiple-choice model (SWAG)": Checkpoint(
        "a head of one row", "BertForMultipleChoice", json={}, files=UNCASED
    ),
    "a next-sentence model": Checkpoint(
        "cls.seq_relationship", "BertForNextSentencePrediction", json={}, files=UNCASED
    ),
    "a classifier saved by torch.compile": Checkpoint(
        "every name begins with _orig_mod.", SEQUENCE, json={}, files=UNCASED, naming=compiled
    ),
    "a classifier saved by DataParallel": Checkpoint(
        "every name begins with module.", SEQUENCE, json={}, files=UNCASED, naming=parallel
    ),
    # Of a language, of a field.
    "allenai/scibert_scivocab_uncased": Checkpoint(
        "vocab.txt alone, pickle alone, [unused0] after [PAD]",
        config={"architectures": None},
        tokens=vocabulary(SCIBERT),
        naming=official,
        pickled=True,
    ),
    "emilyalsentzer/Bio_ClinicalBERT": Checkpoint(
        "a cased vocab.txt alone: transformers lower-cases; pickle alone",
        config={"architectures": None},
        tokens=EVERYTHING,
        naming=official,
        pickled=True,
    ),
    "dbmdz/bert-base-german-cased": Checkpoint(
        "umlauts and capitals", tokens=EVERYTHING, json={"lower": False}, files=CASED
    ),
    "dbmdz/bert-base-german-uncased": Checkpoint(
        "umlauts without capitals",
        tokens=vocabulary(keeps="accents"),
        files={
            "tokenizer_config.json": {
                "do_lower_case": True,
                "strip_accents": False,
                "model_max_length": 512,
            }
        },
    ),
    "deepset/gbert-base": Checkpoint(
        "strip_accents false",
        tokens=EVERYTHING,
        files={"tokenizer_config.json": {"do_lower_case": False, "strip_accents": False}},
    ),
    "DeepPavlov/rubert-base-cased": Checkpoint(
        "cased Cyrillic, special_tokens_map.json",
        config=BIDI,
        tokens=EVERYTHING,
        files=CASED | {"special_tokens_map.json": WORD_MAP},
    ),
    "onlplab/alephbert-base": Checkpoint(
        "one segment: no pairs",
        config={"type_vocab_size": 1},
        tokens=vocabulary(KOREAN),
        json={},
        files={"tokenizer_config.json": {"max_len": 512}},
    ),
    "aubmindlab/bert-base-arabertv02": Checkpoint(
        "never_split",
        tokens=EVERYTHING,
        json={"lower": False},
        files={
            "tokenizer_config.json": {
                "do_lower_case": False,
                "max_len": 512,
                "do_basic_tokenize": True,
                "never_split": ["[بريد]", "[مستخدم]", "[رابط]"],
            },
            "special_tokens_map.json": WORD_MAP,
        },
    ),
    "a tokenizer saved as PreTrainedTokenizerFast": Checkpoint(
        "tokenizer.json counts, tokenizer_config.json does not",
        SEQUENCE,
        tokens=EVERYTHING,
        json={"lower": False, "added": ["[URL]", "[USER]"]},
        files={
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "do_lower_case": True,
                **WORD_MAP,
            }
        },
    ),
    # Other activations.
    **{
        f"a BERT with hidden_act {name}": Checkpoint(
            f"hidden_act {name}", SEQUENCE, config={"hidden_act": name}, json={}, files=UNCASED
        )
        for name in ("gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "relu")
    },
    "a BERT with hidden_act silu": Checkpoint(
        "hidden_act silu", SEQUENCE, config={"hidden_act": "silu"}, refused="hidden_act 'silu'"
    ),
    # No BERT, or one of another build.
    "zhiheng-huang/bert-base-uncased-embedding-relative-key": Checkpoint(
        "relative positions",
        config={"position_embedding_type": "relative_key"},
        refused="position_embedding_type 'relative_key'",
    ),
    "jinaai/jina-embeddings-v2-base-en": Checkpoint(
        "ALiBi, code of its own",
        config={"position_embedding_type": "alibi", "auto_map": {"AutoModel": "modeling.JinaBert"}},
        refused="position_embedding_type 'alibi'",
    ),
    "mosaicml/mosaic-bert-base": Checkpoint(
        "Wqkv, code of its own",
        config={"alibi_starting_size": 512, "auto_map": {"AutoModelForMaskedLM": "bert.Bert"}},
        naming=with_joined_attention,
        refused="Wqkv",
    ),
    "nomic-ai/nomic-bert-2048": Checkpoint(
        "another model", config={"model_type": "nomic_bert"}, refused="model_type 'nomic_bert'"
    ),
    "distilbert/distilbert-base-uncased": Checkpoint(
        "another model", config={"model_type": "distilbert"}, refused="model_type 'distilbert'"
    ),
    "a BERT as a decoder": Checkpoint(
        "is_decoder", config={"is_decoder": True}, refused="is_decoder True"
    ),
}


def build(name: str, folder: Path) -> Checkpoint:
    """Writes the files of a replica into an empty folder."""
    import transformers

    replica = ZOO[name]
    rows = len(replica.tokens)
    if replica.vocab_txt:
        write_vocab(folder, replica.tokens)
    if replica.json is not None:
        rows = write_tokenizer(folder, replica.tokens, **replica.json)
    if replica.own_tokenizer:
        rows = replica.own_tokenizer(folder)
    for file, values in replica.files.items():
        (folder / file).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    rows += len(replica.files.get("added_tokens.json", {}))
    # The weights: those of transformers' own class.
    told = {"vocab_size": rows + 3, "layer_norm_eps": 1e-12} | replica.config
    ours = {**TINY, **{key: value for key, value in told.items() if value is not None}}
    ours = {key: value for key, value in ours.items() if key not in ("model_type", "is_decoder")}
    config = transformers.BertConfig(**ours)
    model = getattr(transformers, replica.architecture)(config)
    draw(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
    state = {name: tensor for name, tensor in state.items() if name not in tied}
    state = replica.naming(state)
    values = {"model_type": "bert", "hidden_act": "gelu", "architectures": [replica.architecture]}
    values |= TINY | told
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    if replica.pickled:
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return replica


def table() -> str:
    """The table of docs/compatibility.md: what tests/test_zoo.py demands of each."""
    lines = ["| checkpoint | what its files have of their own | result |", "| --- | --- | --- |"]
    for name, replica in ZOO.items():
        result = "equal, once converted" if replica.pickled else "equal"
        if replica.refused:
            result = f"refused: {replica.refused}"
        lines.append(f"| {name} | {replica.special} | {result} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
