"""Tag words: persons and places in a sentence, by the same encoder and the same rewriting.

    python -m examples.tag_words    # half a minute; leaves out-tags, an adapter as PEFT's TOKEN_CLS

B- begins a name, I- goes on with it, O is none; the first piece of a word has its tag (Devlin et
al., 2018, section 5.3). The sentences are written here; yours are lists of words and tags alike.
"""

import random

import torch
from seqeval.metrics import f1_score
from torch import Tensor, nn

import lora
from bert import BertForSequenceClassification
from data import load_tokenizer
from support import errors, files, offline

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
PARTS = {  # of each list the last two are for validation
    "PER": ["Mary Smith", "Paul", "Anna Weber", "Lin Yi Chen", "Tom", "Omar", "Ravi Patel", "Eva"],
    "LOC": ["Paris", "New York", "Tainan", "South Korea", "Berlin", "Rome", "Hong Kong", "Oslo"],
    "": ["PER lives in LOC", "PER met PER", "LOC is far", "it rains", "PER left LOC", "PER sings"],
}
TRAINING = {name: choices[:-2] for name, choices in PARTS.items()}
VALIDATION = {name: choices[-2:] for name, choices in PARTS.items()}


class BertForTokenClassification(BertForSequenceClassification):
    """The classifier reads the last state of every token, as nothing is pooled."""


def open_tagger(base, **settings) -> BertForTokenClassification:
    """A base with LoRA in it, by apply_lora_to_model's `settings`."""
    model = BertForTokenClassification.from_pretrained(base, TAGS)
    model.bert.pooler = nn.Identity()  # (B, S, D), of which the classifier makes (B, S, C)
    model.newly_initialized = ()
    lora.apply_lora_to_model(model, **settings).lora_config["task_type"] = "TOKEN_CLS"
    lora.mark_only_lora_as_trainable(model)
    return model


def write(parts: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """The words of a random sentence, and their tags."""
    words, tags = [], []
    for part in random.choice(parts[""]).split():
        name = random.choice(parts.get(part, [part])).split()
        words += name
        tags += [f"B-{part}"] + [f"I-{part}"] * (len(name) - 1) if part in parts else ["O"]
    return words, tags


def compute_logits(model, tokenizer, words: list[str]) -> Tensor:
    """The logits (words, C) at the first piece of each word of one sentence."""
    encoding = tokenizer.encode(words, is_pretokenized=True)
    first = [encoding.word_to_tokens(number)[0] for number in range(len(words))]
    return model(torch.tensor([encoding.ids]))[0, first]  # (1, S, C) -> (words, C)


def main() -> None:
    files.refuse_existing("out-tags")
    torch.manual_seed(0)
    random.seed(0)
    base, _ = offline.offline_pair()
    tokenizer = load_tokenizer(base)
    model = open_tagger(base, target_modules="all-linear").train()
    optimizer = torch.optim.AdamW(lora.trained_parameters(model).values(), lr=1e-3)
    for _ in range(400):
        words, tags = write(TRAINING)
        labels = torch.tensor([TAGS.index(tag) for tag in tags])
        nn.functional.cross_entropy(compute_logits(model, tokenizer, words), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    wanted, found = [], []
    for _ in range(200):
        words, tags = write(VALIDATION)
        wanted.append(tags)
        found.append([TAGS[n] for n in compute_logits(model, tokenizer, words).argmax(-1)])
    print(f"F1 {f1_score(wanted, found):.3f}, names and sentences unseen")
    lora.save_adapter(model, "out-tags", base)


if __name__ == "__main__":
    errors.run_main(main)
