"""Tag words: persons, places and firms in a sentence, by the same encoder and the same rewriting.

    python -m examples.tag_words    # half a minute; leaves out-tags, an adapter as PEFT's TOKEN_CLS

The first piece of a word has its tag: B- begins a name, I- goes on with it, O is none (Devlin et
al., 2018, section 5.3). The table is written here, from names and sentences; yours is a list alike.
"""

import random

import torch
import torch.nn.functional as F
from seqeval.metrics import f1_score

import lora
from bert import BertForSequenceClassification
from data import load_tokenizer
from support import errors, files, offline

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
PARTS = {  # the second row of each is for validation alone
    "PER": ("Mary Smith|Paul|Anna Weber|Tom|Lin Yi Chen|Omar|Kim", "Ravi Patel|Eva|Jo Ann Lund"),
    "LOC": ("Paris|New York|Tainan|Berlin|Lake Geneva|South Korea", "North Africa|Oslo|Hong Kong"),
    "ORG": ("Acme|Nordic Bank|Delta Foods|Zeta Labs|Hill and Sons", "Blue Air|Omega Bank|Avon"),
    "": (
        "PER lives in LOC|ORG left LOC|PER met PER in LOC|now PER called ORG|a dog sat in the dark"
        "|PER works for ORG in LOC|the bus from LOC was full|ORG and PER agreed in the end",
        "PER flew to LOC with ORG|then ORG moved to LOC|PER sings in the train|it was late",
    ),
}


class BertForTokenClassification(BertForSequenceClassification):
    """The classifier reads the last state of every token, not of [CLS] alone."""

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        states, _ = self.bert(input_ids, attention_mask, token_type_ids)  # (B, S, D)
        return self.classifier(self.dropout(states))  # (B, S, C)


def open_tagger(base, tags=TAGS, **settings) -> BertForTokenClassification:
    """A base with LoRA in it by apply_lora_to_model's `settings`, for save_adapter."""
    model = BertForTokenClassification.from_pretrained(base, tags)
    model.bert.pooler, model.newly_initialized = torch.nn.Identity(), ()  # as transformers has it
    lora.apply_lora_to_model(model, **settings).lora_config["task_type"] = "TOKEN_CLS"
    lora.mark_only_lora_as_trainable(model)
    return model


def write(kind: int, count: int) -> list[tuple[list[str], list[str]]]:
    """Sentences of training (0) or validation (1), each as its words and their tags."""
    pick, sentences = random.Random(kind).choice, []
    for _ in range(count):
        words, tags = [], []
        for part in pick(PARTS[""][kind].split("|")).split():
            name = pick(PARTS[part][kind].split("|")).split() if part in PARTS else [part]
            tags += [
                f"{'I' if n else 'B'}-{part}" if part in PARTS else "O" for n in range(len(name))
            ]
            words += name
        sentences.append((words, tags))
    return sentences


def encode(tokenizer, sentences):
    """Ids and labels (B, S); a label is -100, which no loss counts, where no word begins."""
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch([words for words, _ in sentences], is_pretokenized=True)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    labels = torch.full_like(ids, -100)
    for row, (encoding, (_, tags)) in enumerate(zip(encodings, sentences, strict=True)):
        for number, tag in enumerate(tags):
            labels[row, encoding.word_to_tokens(number)[0]] = TAGS.index(tag)
    return ids, labels


def main() -> None:
    files.refuse_existing("out-tags")
    torch.manual_seed(0)
    base, _ = offline.offline_pair()
    tokenizer = load_tokenizer(base)
    model = open_tagger(base, target_modules="all-linear").train()
    optimizer = torch.optim.AdamW(lora.trained_parameters(model).values(), lr=2e-3)
    ids, labels = encode(tokenizer, write(kind=0, count=640))
    for rows in torch.arange(640).split(16):
        logits = model(ids[rows], ids[rows] != 0)  # (B, S, C)
        F.cross_entropy(logits.transpose(1, 2), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    sentences = write(kind=1, count=200)
    ids, labels = encode(tokenizer, sentences)
    with torch.no_grad():
        found = model.eval()(ids, ids != 0).argmax(-1)  # (B, S)
    given = [[TAGS[tag] for tag in row[of != -100]] for row, of in zip(found, labels, strict=True)]
    print(f"F1 {f1_score([tags for _, tags in sentences], given):.3f}, names and sentences unseen")
    print(*map("/".join, zip(sentences[0][0], given[0], strict=True)))
    lora.save_adapter(model, "out-tags", base)


if __name__ == "__main__":
    errors.run_main(main)
