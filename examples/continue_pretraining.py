"""Read on: LoRA learns to guess hidden words of unlabelled texts; the classifier comes afterwards.

    python -m examples.continue_pretraining          # the offline reviews; leaves out-read-on/
    python train.py --model out-read-on --data offline/movie-reviews --lr 1e-3 --out out-after

BERT's own training (Devlin et al., 2018, section 3.1) goes on, on texts of the task (Gururangan et
al., 2020, arXiv:2004.10964), and is merged: out-read-on is a base like any other. The head is the
checkpoint's, or a new one, as MiniLM has none; it learns too, and is thrown away.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import lora
from bert import BertModel, BertOutput, plain_name
from data import encode, load_data, load_tokenizer, make_batch, plan_batches
from support import errors, files, offline
from support.wordpiece import copy_tokenizer


class Head(nn.Module):
    """Scores every word of the vocabulary; cls.predictions in the official checkpoint."""

    def __init__(self, config):
        super().__init__()
        self.transform = BertOutput(config.hidden_size, config)  # its dense and its LayerNorm
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """States `x` (M, D) to logits (M, vocabulary); `words` (vocabulary, D) are embeddings."""
        x = self.transform.LayerNorm(F.gelu(self.transform.dense(x)))  # (M, D)
        return F.linear(x, words, self.bias)


def open_reader(base: str | Path) -> tuple[BertModel, Head]:
    """An encoder with LoRA on every linear layer; the head of its file, or else a new one."""
    encoder = BertModel.from_pretrained(base)
    head = Head(encoder.config)
    file = load_file(Path(base, "model.safetensors"))
    own = {plain_name(key).removeprefix("cls.predictions."): t for key, t in file.items()}
    head.load_state_dict(own, strict=False)
    lora.apply_lora_to_model(encoder, r"encoder\..*(query|key|value|dense)")
    lora.mark_only_lora_as_trainable(encoder)
    return encoder, head


def hide(input_ids: Tensor, mask_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """What the model reads, and which tokens (B, S) it must guess: 15 of 100, no special ones; of
    these 80 of 100 are [MASK], 10 another token, and 10 stay (appendix A.1)."""
    hidden = (torch.rand(input_ids.shape) < 0.15) & (input_ids > mask_id)  # special: up to it
    chance = torch.rand(input_ids.shape)
    another = torch.randint_like(input_ids, mask_id + 1, vocab_size)
    read = torch.where(hidden & (chance < 0.9), another, input_ids)
    return torch.where(hidden & (chance < 0.8), mask_id, read), hidden


def main() -> None:
    files.refuse_existing("out-read-on")
    torch.manual_seed(0)
    base, reviews = offline.offline_pair()
    tokenizer = load_tokenizer(base, max_length=128)
    data = encode(tokenizer, load_data(reviews).train.texts)
    encoder, head = open_reader(base)
    encoder.train()
    words = encoder.embeddings.word_embeddings.weight  # (vocabulary, D)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    losses = []  # each of texts that were not read before
    for rows in plan_batches(data.lengths, batch_size=32, seed=0, epoch=0):
        input_ids, mask, _, _ = make_batch(data, rows)  # (B, S)
        read, hidden = hide(input_ids, tokenizer.token_to_id("[MASK]"), len(words))
        states, _ = encoder(read, mask)  # (B, S, D)
        loss = F.cross_entropy(head(states[hidden], words), input_ids[hidden].long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 20 == 0:
            print(f"batch {len(losses)}: loss {sum(losses[-20:]) / 20:.3f}", flush=True)
    lora.merge_lora_weights(encoder).save_pretrained("out-read-on")
    copy_tokenizer(Path(base), Path("out-read-on"))


if __name__ == "__main__":
    errors.run_main(main)
