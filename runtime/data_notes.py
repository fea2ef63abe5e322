"""What a run says of its data before it trains: lines for people, each with what to do."""

import math

import numpy as np
import torch
from tokenizers import Tokenizer

from data import Encoded, encode, row_keys
from support.dataset import Data
from support.errors import listing, plain

FEW = 5  # rows of a class, on which its figures say little
SAMPLE = 10_000  # texts that are tokenized whole, at most
LONGEST = 10**5  # characters of a text that are counted
MUCH_UNKNOWN = 0.05


def data_notes(data: Data, tokenizer: Tokenizer, train: Encoded, validation: Encoded) -> list[str]:
    """The notes on the two splits, which are `train` and `validation` when encoded."""
    notes = [*data.notes, *token_notes(tokenizer, data.train.texts, train)]

    counts = data.task.rows_of_classes(torch.from_numpy(data.validation.labels))
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEW]
    if few:
        hint = "their figures say little; add rows"
        notes.append(f"fewer than {FEW} rows to validate on of {listing(few)}: {hint}")

    trained = {*row_keys(train)}
    both = sum(key in trained for key in row_keys(validation))
    if both:
        share = both / len(validation.lengths)
        notes.append(
            f"{both:,} of the rows to validate on ({share:.1%}) stand in training too, token by "
            "token: the scores tell less of new texts"
        )
    return [plain(f"note: {note}") for note in notes]


def token_notes(tokenizer: Tokenizer, texts: list[tuple[str, ...]], encoded: Encoded) -> list[str]:
    """How many of N texts are longer than the tokenizer's limit, and how many tokens unknown."""
    notes = []
    limit = tokenizer.truncation["max_length"] if tokenizer.truncation else math.inf
    if encoded.lengths.max() == limit:  # cut, or just so long
        lengths = whole_lengths(tokenizer, texts)
        longer = np.mean(lengths > limit)
        usual = np.quantile(lengths, 0.99, method="inverted_cdf")
        if longer:
            notes.append(
                f"{longer:.1%} of the texts are longer than --max-length {limit}, and cut to it; "
                f"99 % have at most {usual} tokens"
            )
    unknown = tokenizer.token_to_id(tokenizer.model.unk_token)
    share = np.mean(encoded.input_ids.cpu().numpy() == unknown)
    if share >= 0.0005:
        notes.append(f"{share:.1%} of the tokens are [UNK], unknown to the vocabulary")
    if share > MUCH_UNKNOWN:
        notes[-1] += ": it is not of this language, or not of this case; choose another --model"
    return notes


def whole_lengths(tokenizer: Tokenizer, texts: list[tuple[str, ...]]) -> np.ndarray:
    """The numbers of tokens (n,) of uncut texts; of more than SAMPLE some stand for all."""
    whole = Tokenizer.from_str(tokenizer.to_str())
    whole.no_truncation()
    some = texts[:: math.ceil(len(texts) / SAMPLE)]
    return encode(whole, [tuple(part[:LONGEST] for part in text) for text in some]).lengths
