"""Tag words: persons and places in a sentence, by the same encoder and the same rewriting.

    python -m examples.tag_words    # ten seconds; leaves out-tags, an adapter as PEFT's TOKEN_CLS

B- begins a name, I- goes on with it, O is none; the first piece of a word has its tag (Devlin et
al., 2018, section 5.3). Your own sentences are written like those below.
"""

import torch
from seqeval.metrics import f1_score
from torch import Tensor, nn

import lora
from bert import BertForSequenceClassification
from data import load_tokenizer
from support import errors, files, offline

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TRAINING = {
    "Mary Smith lives in Paris": "B-PER I-PER O O B-LOC",
    "Paul met Anna Weber in New York": "B-PER O B-PER I-PER O B-LOC I-LOC",
    "Lin Yi Chen was born in South Korea": "B-PER I-PER I-PER O O O B-LOC I-LOC",
    "Tainan is far from here": "B-LOC O O O O",
    "she wrote to Tom Brown and Omar": "O O O B-PER I-PER O B-PER",
    "the train to Berlin was late": "O O O B-LOC O O",
}
VALIDATION = {  # other names, in other sentences
    "Ravi Patel left Oslo": "B-PER I-PER O B-LOC",
    "Eva sings in Hong Kong": "B-PER O O B-LOC I-LOC",
    "nobody in Madrid knows Ann Lee": "O O B-LOC O B-PER I-PER",
    "they flew from Cairo to San Francisco": "O O O B-LOC O B-LOC I-LOC",
}


class BertForTokenClassification(BertForSequenceClassification):
    """The classifier reads the last state of every token, as nothing is pooled."""


def open_tagger(base) -> BertForTokenClassification:
    """A base with LoRA on every linear layer, and a new classifier of the tags."""
    model = BertForTokenClassification.from_pretrained(base, TAGS)
    model.bert.pooler = nn.Identity()  # (B, S, D), of which the classifier makes (B, S, C)
    lora.apply_lora_to_model(model, "all-linear")
    model.lora_config["task_type"] = "TOKEN_CLS"
    lora.mark_only_lora_as_trainable(model)
    return model


def compute_logits(model, tokenizer, words: list[str]) -> Tensor:
    """The logits (words, C) at the first piece of each word of one sentence."""
    encoding = tokenizer.encode(words, is_pretokenized=True)
    first = [encoding.word_to_tokens(number)[0] for number in range(len(words))]
    return model(torch.tensor([encoding.ids]))[0, first]  # (1, S, C) -> (words, C)


def main() -> None:
    files.refuse_existing("out-tags")
    torch.manual_seed(0)
    base, _ = offline.offline_pair()
    tokenizer = load_tokenizer(base)
    model = open_tagger(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for sentence, tags in 30 * list(TRAINING.items()):  # 30 epochs
        labels = torch.tensor([TAGS.index(tag) for tag in tags.split()])  # (words,)
        logits = compute_logits(model, tokenizer, sentence.split())
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    found = []
    for sentence in VALIDATION:
        logits = compute_logits(model, tokenizer, sentence.split())
        found.append([TAGS[n] for n in logits.argmax(-1)])
        print(f"{sentence}: {' '.join(found[-1])}")
    print(f"F1 {f1_score([tags.split() for tags in VALIDATION.values()], found):.3f}")
    lora.save_adapter(model, "out-tags", base)


if __name__ == "__main__":
    errors.run_main(main)
