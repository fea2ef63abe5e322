"""What `make bench` counts as needed, against PyTorch's own count of what a training step does."""

import math
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, saved_base
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from bert import BertConfig, BertForSequenceClassification
from lora import apply_lora_to_model, find_targets, mark_only_lora_as_trainable
from runtime import devices
from runtime.kernels import ONEDNN
from support.errors import InputError

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu
import time_to_accuracy
from compare_hf import needed_operations

TARGETS = [["query", "value"], ["key"], ["output.dense"], "all-linear"]


def count_addmm(y, a, b, out_shape, **_) -> int:
    return addmm_flop(y, a, b)


def count_onednn(x, W, *_, out_shape) -> int:
    return 2 * math.prod(x) * W[0]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_a_step_does_what_is_needed_and_no_more(targets, dropout):
    """Without padding the matrix products of a step are the needed ones, to the last operation."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
    )
    model = BertForSequenceClassification(config)
    adapted = [*find_targets(model, targets)]
    apply_lora_to_model(model, targets, rank=3, dropout=dropout)
    mark_only_lora_as_trainable(model)
    devices.place(model, device="cpu", dtype="float32")
    # PyTorch counts addmm, but neither addmm_ nor oneDNN's products.
    more = {torch.ops.aten.addmm_: count_addmm}
    if ONEDNN:
        more[torch.ops.mkldnn._linear_pointwise] = count_onednn
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        logits = model.train()(torch.randint(0, 50, (5, 7)))
        F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64)).backward()
    needed = needed_operations(config, adapted, R=3, lengths=np.full(5, 7))
    assert counter.get_total_flops() == needed


@pytest.fixture
def gpu_records(minilm, some_reviews, tmp_path, monkeypatch):
    """gpu_records("--minutes", "3"): what benchmarks/gpu.py --quick finds, part by part."""
    saved = {}
    base = saved_base(tmp_path / "base", vocab_size=30522, max_position_embeddings=128)
    shutil.copy(f"{minilm}/tokenizer.json", base)
    monkeypatch.setattr(gpu, "save_results", lambda *_, parts: saved.update(parts))

    def gpu_records(*arguments: str) -> dict[str, list[dict]]:
        words = ["gpu.py", "--quick", "--model", str(base), "--data", str(some_reviews), *arguments]
        monkeypatch.setattr(sys, "argv", words)
        gpu.main()
        return saved

    return gpu_records


@pytest.mark.slow
def test_make_gpu_runs_whole_on_a_cpu(gpu_records, capsys):
    records = gpu_records()
    table = capsys.readouterr().out
    assert [*records] == [*gpu.PARTS] and all(records.values())
    figures = {r["what"]: r["figure"] for part in records.values() for r in part}
    assert "skipped" in figures["tests marked cuda"]
    for what, figure in figures.items():
        assert not re.search(r"Error|error:|ended", figure), (what, figure)
        assert f"| {what} | {figure} |" in table
        if "float32" in what and "losses" in what:
            assert float(figure) < 1e-5
    assert figures["stopped and gone on with, auto"] == "the same bytes"
    assert figures["a table labelled"].endswith("2,000 rows labelled")


def test_make_gpu_ends_in_time_with_what_it_has(gpu_records):
    records = gpu_records("--minutes", "0", "--parts", "tests,parity")
    for name in ("tests", "parity"):
        assert records[name][-1] == {"what": name, "figure": "ended: the time was over"}


@pytest.mark.slow
def test_trainings_to_a_mark_are_kept_and_their_steps_timed(tiny, some_reviews, tmp_path):
    """Of this project and of transformers + peft, each to its end; the seconds are steps times
    those of one."""
    names = ("ours-2", "hf-grouped")
    s = SimpleNamespace(
        model=str(tiny),
        data=str(some_reviews),
        out=str(tmp_path),
        device="cpu",
        threads=1,
        max_length=12,
        seed=1,
        every=1,
        rounds=1,
    )
    found = {name: time_to_accuracy.train_once(name, s) for name in names}
    assert [score["step"] for score in found["ours-2"]] == [1, 2]
    assert [score["step"] for score in found["hf-grouped"]] == [1, 2, 3, 4, 5, 6]
    kept = tmp_path / "ours-2-1.json"
    kept.write_text(kept.read_text().replace('"step": 2', '"step": 9'))
    assert time_to_accuracy.train_once("ours-2", s)[1]["step"] == 9  # not trained again
    with pytest.raises(InputError, match="of another training"):
        time_to_accuracy.train_once("ours-2", SimpleNamespace(**vars(s) | {"every": 2}))
    seconds = time_to_accuracy.seconds_a_step(list(names), s)
    assert all(len(seconds[name]) == 1 and seconds[name][0] > 0 for name in names)
    with pytest.raises(InputError, match="2 steps are too few"):
        time_to_accuracy.seconds_a_step(["ours-2"], SimpleNamespace(**vars(s) | {"rounds": 2}))


def test_a_mark_is_reached_in_a_run_that_ends_above_it():
    accuracies = (0.5, 0.9, 0.7, 0.8)
    scores = [{"step": 10 * n, "accuracy": a} for n, a in enumerate(accuracies, 1)]
    steps = [time_to_accuracy.steps_to(mark, scores) for mark in (0.5, 0.8, 0.85)]
    assert steps == [10, 20, float("inf")]
    found = {"ours-2": [scores] * 3}
    text = time_to_accuracy.table(found, {"ours-2": [0.1, 0.3, 0.2]}, marks=[0.8, 0.85])
    last = text.splitlines()[-1]
    assert last == "| ours-2 | 80.00%, 80.00%, 80.00% | 200 | 20, 4 | not reached |"
