"""What `make bench` counts as needed, against PyTorch's own count of what a training step does."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from bert import BertConfig, BertForSequenceClassification
from lora import apply_lora_to_model, find_targets, mark_only_lora_as_trainable

sys.path.insert(0, str(ROOT / "benchmarks"))
from compare_hf import needed_operations


@pytest.mark.parametrize("targets", [["query", "value"], ["key"], ["output.dense"], "all-linear"], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_a_step_does_what_is_needed_and_no_more(targets, dropout):
    """Without padding the matrix products of a step are the needed ones, to the last operation."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40)
    model = BertForSequenceClassification(config)
    adapted = find_targets(model, targets)
    apply_lora_to_model(model, targets, rank=3, dropout=dropout)
    mark_only_lora_as_trainable(model)
    # PyTorch counts addmm, but not addmm_.
    in_place = {torch.ops.aten.addmm_: lambda y, a, b, out_shape, **_: addmm_flop(y, a, b)}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        logits = model.train()(torch.randint(0, 50, (5, 7)))
        F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64)).backward()
    assert counter.get_total_flops() == needed_operations(config, adapted, 3, np.full(5, 7))
