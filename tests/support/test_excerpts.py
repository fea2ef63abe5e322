"""Long and hostile texts give the tokens that transformers makes of the whole."""

import random
import resource
import time

import pytest
from transformers import AutoTokenizer

from data import encode, load_tokenizer
from support.excerpts import excerpts

FILM = "wonderful film"
RUNS = {
    "spaces": " ",
    "U+200B": "\u200b",
    "marks": "\u0301",
    "marks after a letter": "e" + "\u0301" * 20_000,
    "NUL": "\0",
    "letters": "x",
    "bars": "|",
    "CJK": "電",
    "Hangul": "각",
    "U+2003": "\u2003",
    "U+001C": "\x1c",
    "unassigned": "\U000e0080",
    "mixed": "\u200b\u200c \u0301",
    "base64": "aGVsbG8gd29ybGQ+/",
    "blob": "aB3",
    "brackets": "[SEP]",
    "half a token": "[SE",
}


def assert_same(folder, texts, max_length):
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs(*map(list, zip(*texts, strict=True)), truncation=True, max_length=max_length)
    found = encode(load_tokenizer(folder, max_length), texts)
    ends = found.starts + found.lengths
    for row, (start, end) in enumerate(zip(found.starts, ends, strict=True)):
        text = [part[:20] for part in texts[row]]
        assert found.input_ids[start:end].tolist() == expected["input_ids"][row], text


@pytest.mark.parametrize("max_length", [8, 128])
def test_what_stands_before_the_first_words_is_no_matter(minilm, max_length):
    texts = []
    for run in RUNS.values():
        run = (run * 20_000)[:20_000]
        texts += [run + FILM, f"{run} {FILM}", f"a {run}{FILM} {run} {FILM}", f"{FILM}{run}ish"]
    assert_same(minilm, [(text,) for text in texts], max_length)


@pytest.mark.parametrize("max_length", [31, 32])
def test_of_pairs_too(minilm, max_length):
    """Where both are long the longer one keeps a token more, of an odd number."""
    texts = [(run * 2_500)[:2_500] + FILM for run in RUNS.values()]
    texts = [text for text in texts if len(text.split()) < 100 and "|" not in text]
    others = [FILM, "good " * 40, "good " * 450]
    pairs = [pair for text in texts for other in others for pair in ((text, other), (other, text))]
    assert_same(minilm, pairs, max_length)


def test_random_texts_of_hostile_pieces(minilm):
    """One after the other, of all lengths, so that a cut comes at any place."""
    draw = random.Random(0)
    pieces = [*RUNS.values(), " ", FILM, "[CLS]", "café", "naïve", "x" * 99, "y" * 101, "\ufffd"]
    texts = []
    for _ in range(80):
        kinds = draw.sample(pieces, 4)
        parts = [draw.choice(kinds)[:9] * draw.choice([1, 3, 300, 3000]) for _ in range(12)]
        texts.append(("".join(parts),))
    assert_same(minilm, texts, max_length=24)


@pytest.mark.parametrize("content", ["covid", "a b", "xx", "C++", "[U R L]", "aaaaaaaa"])
def test_added_tokens_are_not_cut_through(minilm, content):
    """Whatever they are of, wherever the cut comes: as the tokenizer itself says."""
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(minilm, 16)
    tokenizer.add_tokens([AddedToken(content, single_word=len(content) > 5)])
    draw = random.Random(0)
    texts = []
    for _ in range(30):
        parts = [content, content[:-1], content[1:], "a", "x", " ", "C", "blob", "\u200b"]
        kinds = draw.sample(parts, 3)
        texts.append(("".join(draw.choice(kinds) * draw.choice([1, 2, 1500]) for _ in range(8)),))
    shortened = excerpts(tokenizer, texts)
    assert shortened != texts
    for (text,), (begun,) in zip(texts, shortened, strict=True):
        assert tokenizer.encode(begun).ids == tokenizer.encode(text).ids, text[:50]


def test_long_texts_take_no_memory_and_no_time(minilm):
    """40 million characters before the first word would take 4 GB, 20 long ones 10 s."""
    tokenizer = load_tokenizer(minilm, 128)
    expected = tokenizer.encode(FILM).ids
    for run in " ", "\u0301":
        text = run * 40_000_000 + FILM
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        assert encode(tokenizer, [(text,)]).input_ids.tolist() == expected
        assert time.process_time() - begun < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    many = [("a long story " * 100_000,)] * 20
    begun = time.process_time()
    assert (encode(tokenizer, many).lengths == 128).all()
    assert time.process_time() - begun < 5
