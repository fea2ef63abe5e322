"""The beginnings of long texts, of which BERT's tokenizer makes the same tokens as of the whole.

A tokenizer takes a hundred bytes of memory for a character, and for a pair of long texts a time
that grows with the product of their lengths; the model sees some hundred tokens.
"""

import re

from tokenizers import Tokenizer

FIRST, GROWTH = 8, 8  # characters for each token that is needed, and how many times more if too few


def excerpts(tokenizer: Tokenizer, texts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The texts, those of thousands of characters shortened where that changes no token."""
    if not tokenizer.truncation:
        return texts
    rules = Rules(tokenizer, tokenizer.truncation["max_length"])
    if not any(map(rules.is_long, texts)):
        return texts
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    return [shorten(whole, rules, text) if rules.is_long(text) else text for text in texts]


class Rules:
    """How many tokens are needed, and how many of a beginning's last ones are unsure.

    These are what the words go on into, or an added token, within which it ends, and the word
    before that. None has more tokens than characters, and a word of more than some characters
    (100, in BERT's) is one token, [UNK].
    """

    def __init__(self, tokenizer: Tokenizer, most: int):
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        longest = max(map(len, added), default=1)
        self.most = most
        self.unsure = 2 * tokenizer.model.max_input_chars_per_word + longest
        self.needed = most + self.unsure
        # The middle of such a run changes nothing: it is within one word, or it is nothing, or it
        # has more tokens than are needed.
        self.kept = self.needed * longest
        blob = "" if any(map(str.isalnum, added)) else rf"|[0-9A-Za-z]{{{2 * self.kept},}}+"
        self.run = re.compile(rf"(.)\1{{{2 * self.kept},}}+{blob}", re.DOTALL)

    def is_long(self, text: tuple[str, ...]) -> bool:
        return max(map(len, text)) > FIRST * self.needed

    def without_runs(self, part: str) -> str:
        return self.run.sub(lambda run: run[0][: self.kept] + run[0][-self.kept :], part)


def shorten(whole: Tokenizer, rules: Rules, text: tuple[str, ...]) -> tuple[str, ...]:
    """A long text's beginning; of a pair both, of which the longer one stays the longer.

    For it is cut first, and of an odd number of tokens keeps one more.
    """
    parts = [rules.without_runs(part) for part in (*text, "")[:2]]  # one text, and an empty one
    size = FIRST * rules.needed
    while True:
        encodings = [whole.encode(part[:size], add_special_tokens=False) for part in parts]
        counts = [len(encoding) for encoding in encodings]
        fewer = counts.index(min(counts))
        # The tokens that are sure of the longer one have to be more than the model sees, and than
        # the other one has, which has to be whole.
        is_sure = max(counts) - rules.unsure > max(rules.most, min(counts))
        if (is_sure and len(parts[fewer]) <= size) or max(map(len, parts)) <= size:
            break
        size *= GROWTH

    # The longer one has some more tokens, whatever becomes of the last ones.
    beginnings = []
    for number, encoding in enumerate(encodings):
        wanted = rules.needed + rules.unsure * (1 if number == fewer else 4)
        is_long = len(encoding) > wanted + rules.unsure
        end = encoding.offsets[wanted - 1][1] if is_long else size
        beginnings.append(parts[number][:end])
    return tuple(beginnings[: len(text)])
