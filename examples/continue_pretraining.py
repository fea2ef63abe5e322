"""Read on: LoRA learns to guess hidden words of unlabelled texts; the classifier comes afterwards.

    python -m examples.continue_pretraining          # the offline reviews; leaves out-read-on/
    python train.py --model out-read-on --data offline/movie-reviews --lr 1e-3 --out out-after

BERT's own training (Devlin et al., 2018, section 3.1) goes on, on texts of the task (Gururangan et
al., 2020, arXiv:2004.10964), and is merged: out-read-on is a base like any other. The head is the
checkpoint's, cls.predictions. MiniLM has none: it gets a new one, trained too, and thrown away.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lora
from bert import BertModel, PretrainedModel
from data import encode, load_data, load_tokenizer, make_batch, plan_batches
from support import errors, files, offline
from support.wordpiece import copy_tokenizer


class BertForMaskedLM(PretrainedModel):
    """BERT with the head that scores every word of the vocabulary, under the official names."""

    def __init__(self, config):
        super().__init__(config)
        D = config.hidden_size
        self.bert = BertModel(config)
        self.cls = nn.ModuleDict({"predictions": nn.Module()})
        self.cls.predictions.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.cls.predictions.transform = nn.ModuleDict(
            {"dense": nn.Linear(D, D), "LayerNorm": nn.LayerNorm(D, config.layer_norm_eps)}
        )

    def forward(self, input_ids, attention_mask=None, hidden=None) -> Tensor:
        """Logits (B, S, vocabulary), or of the M tokens where `hidden` (B, S) is true (M, …)."""
        states, _ = self.bert(input_ids, attention_mask)  # (B, S, D)
        head = self.cls.predictions
        x = states if hidden is None else states[hidden]  # (M, D)
        x = head.transform.LayerNorm(F.gelu(head.transform.dense(x)))
        return F.linear(x, self.bert.embeddings.word_embeddings.weight, head.bias)


def open_reader(base: str) -> BertForMaskedLM:
    """A base with LoRA on its encoder, and with its own head, frozen, or a new one."""
    try:
        model = BertForMaskedLM.from_pretrained(base)
    except ValueError as error:
        if "cls.predictions" not in str(error):
            raise
        encoder = BertModel.from_pretrained(base)
        model = BertForMaskedLM(encoder.config)
        model.bert = encoder
        parts = "", ".transform.dense", ".transform.LayerNorm"
        model.newly_initialized = tuple(f"cls.predictions{part}" for part in parts)
    lora.apply_lora_to_model(model, r"bert\.encoder\..*(query|key|value|dense)")  # all linear ones
    lora.mark_only_lora_as_trainable(model)
    return model


def hide(input_ids: Tensor, mask_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """What the model reads, and which tokens (B, S) it must guess: 15 of 100, no special ones.

    Of these 80 of 100 are [MASK], 10 another token, and 10 stay (appendix A.1).
    """
    hidden = (torch.rand(input_ids.shape) < 0.15) & (input_ids > mask_id)  # special: up to it
    chance = torch.rand(input_ids.shape)
    another = torch.randint_like(input_ids, mask_id + 1, vocab_size)
    read = torch.where(hidden & (chance < 0.9), another, input_ids)
    return torch.where(hidden & (chance < 0.8), mask_id, read), hidden


def loss_of(model, data, rows, mask_id: int) -> Tensor:
    input_ids, mask, _, _ = make_batch(data, rows)  # (B, S)
    read, hidden = hide(input_ids, mask_id, model.config.vocab_size)
    return F.cross_entropy(model(read, mask, hidden), input_ids[hidden].long())


@torch.no_grad()
def say_loss(when: str, model, data, mask_id: int) -> None:
    torch.manual_seed(0)  # the same words are hidden each time
    plan = plan_batches(data.lengths, batch_size=100, seed=0, epoch=0)
    losses = [loss_of(model.eval(), data, rows, mask_id).item() for rows in plan]
    print(f"{when}: loss {sum(losses) / len(losses):.3f} of hidden words of held-out reviews")


def main() -> None:
    files.refuse_existing("out-read-on")
    base, reviews = offline.offline_pair()
    tokenizer, splits = load_tokenizer(base, 128), load_data(reviews)
    mask_id = tokenizer.token_to_id("[MASK]")
    data, held_out = (encode(tokenizer, s.texts) for s in (splits.train, splits.validation))
    torch.manual_seed(0)
    model = open_reader(base)
    say_loss("before", model, held_out, mask_id)
    optimizer = torch.optim.AdamW(lora.trained_parameters(model).values())
    plan = plan_batches(data.lengths, batch_size=32, seed=0, epoch=0)
    for step, rows in enumerate(plan):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, step / 20) * (1 - step / len(plan))
        loss_of(model.train(), data, rows, mask_id).backward()
        optimizer.step()
        optimizer.zero_grad()
    say_loss(f"after {len(data.lengths):,} reviews", model, held_out, mask_id)
    with files.written_whole("out-read-on", new=True) as folder:
        lora.merge_lora_weights(model).bert.save_pretrained(folder)
        copy_tokenizer(Path(base), folder)


if __name__ == "__main__":
    errors.run_main(main)
