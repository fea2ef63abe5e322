"""Read on: LoRA learns to guess hidden words of unlabelled texts; the classifier comes afterwards.

    python -m examples.continue_pretraining          # the offline reviews; leaves out-read-on/
    python train.py --model out-read-on --data offline/movie-reviews --lr 1e-3 --out out-after

BERT's own training (Devlin et al., 2018, section 3.1) goes on, on texts of the task (Gururangan et
al., 2020, arXiv:2004.10964), and is merged: out-read-on is a base like any other, without the head.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import lora
from bert import BertModel, BertOutput, plain_name
from data import encode, load_data, load_tokenizer, make_batch, plan_batches
from support import errors, files, offline, wordpiece


class BertForMaskedLM(nn.Module):
    """BERT with the head of its file, cls.predictions, which scores every word there is."""

    def __init__(self, base: str | Path):
        super().__init__()
        self.bert = BertModel.from_pretrained(base)
        config = self.bert.config
        self.transform = BertOutput(config.hidden_size, config)  # only its dense and LayerNorm
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        file = load_file(Path(base, "model.safetensors"))
        own = {plain_name(key).removeprefix("cls.predictions."): t for key, t in file.items()}
        self.load_state_dict(own, strict=False)  # MiniLM's file has no head: a new one stays

    def forward(self, input_ids: Tensor, mask: Tensor | None, hidden: Tensor) -> Tensor:
        """Token ids (B, S) to logits (M, vocabulary) for the M tokens that are `hidden` (B, S)."""
        states, _ = self.bert(input_ids, mask)  # (B, S, D)
        x = self.transform.LayerNorm(F.gelu(self.transform.dense(states[hidden])))  # (M, D)
        words = self.bert.embeddings.word_embeddings.weight  # (vocabulary, D)
        return F.linear(x, words, self.bias)


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
    model = BertForMaskedLM(base).train()
    lora.apply_lora_to_model(model.bert, r"encoder\..*(query|key|value|dense)")
    lora.mark_only_lora_as_trainable(model.bert)  # the head learns too
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []  # each of texts that were not read before
    for rows in plan_batches(data.lengths, batch_size=32, seed=0, epoch=0):
        input_ids, mask, _, _ = make_batch(data, rows)  # (B, S)
        read, hidden = hide(input_ids, tokenizer.token_to_id("[MASK]"), len(model.bias))
        loss = F.cross_entropy(model(read, mask, hidden), input_ids[hidden].long())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 20 == 0:
            print(f"batch {len(losses)}: loss {sum(losses[-20:]) / 20:.3f}", flush=True)
    lora.merge_lora_weights(model.bert).save_pretrained("out-read-on")
    wordpiece.copy_tokenizer(Path(base), Path("out-read-on"))


if __name__ == "__main__":
    errors.run_main(main)
