"""continue_pretraining.py against transformers' BertForMaskedLM; what it hides; what it leaves."""

import re
import shutil

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import TINY, difference, draw, inputs, official_base, saved_base
from pyarrow import parquet
from safetensors.torch import load_file

import lora
from bert import BertForSequenceClassification, BertModel
from examples import continue_pretraining
from examples.continue_pretraining import BertForMaskedLM, hide
from lora import LinearWithLoRA
from support.errors import run_main
from support.offline import offline_pair


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny BertForMaskedLM, written by transformers."""
    folder = tmp_path_factory.mktemp("base") / "base"
    model = transformers.BertForMaskedLM(transformers.BertConfig(**TINY)).eval()
    draw(model)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_logits_and_losses_are_those_of_transformers(base):
    theirs = transformers.BertForMaskedLM.from_pretrained(base).eval()
    ours = BertForMaskedLM(base).eval()
    input_ids, mask = inputs(60, [9, 9, 4])
    hidden = (input_ids % 3 == 0) & mask.bool()
    labels = torch.where(hidden, input_ids, -100)
    expected = theirs(input_ids, mask, labels=labels)
    everywhere = torch.ones_like(hidden)
    found = ours(input_ids, mask, everywhere)
    assert difference(found, expected.logits.flatten(0, 1)) < 1e-5
    chosen = ours(input_ids, mask, hidden)
    assert difference(chosen, expected.logits[hidden]) < 1e-5
    loss = F.cross_entropy(chosen, input_ids[hidden])
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)


def test_gradients_of_lora_and_the_head_are_those_of_peft(base):
    ours = BertForMaskedLM(base).eval()
    lora.apply_lora_to_model(ours.bert, ["query", "key", "value", "dense"])
    lora.mark_only_lora_as_trainable(ours.bert)
    for seed, module in enumerate(m for m in ours.modules() if isinstance(m, LinearWithLoRA)):
        draw(module.lora, seed)
    settings = {**ours.bert.lora_config, "lora_dropout": 0.0}
    settings["target_modules"] = r"bert\..*(query|key|value|dense)"  # not those of the head
    theirs = transformers.BertForMaskedLM.from_pretrained(base)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**settings)).eval()
    theirs.cls.requires_grad_()
    mine = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    del mine["bert.pooler.dense.weight"], mine["bert.pooler.dense.bias"]  # new, and not read
    twins = {}
    for name, parameter in theirs.named_parameters():
        if "lora_" in name or (".cls.predictions." in name and "decoder" not in name):
            short = name.removeprefix("base_model.model.").removeprefix("cls.predictions.")
            twins[short.replace(".default", "").replace(".lora_", ".lora.lora_")] = parameter
    assert twins.keys() == mine.keys() and len(mine) == 5 + 2 * 2 * 6
    for name, parameter in twins.items():
        parameter.data.copy_(mine[name].data)
    input_ids, mask = inputs(60, [9, 4])
    hidden = mask.bool()
    F.cross_entropy(ours(input_ids, mask, hidden), input_ids[hidden]).backward()
    theirs(input_ids, mask, labels=torch.where(hidden, input_ids, -100)).loss.backward()
    for name, parameter in twins.items():
        gradient = mine[name].grad
        assert gradient.abs().max() > 1e-6
        assert difference(gradient, parameter.grad) < 1e-5


def test_opens_the_official_names(tmp_path):
    """gamma and beta, and no decoder in the file, as in bert-base-uncased."""
    folder = official_base(tmp_path / "base")
    ours = BertForMaskedLM(folder)
    file = load_file(folder / "model.safetensors")
    gamma = file["cls.predictions.transform.LayerNorm.gamma"]
    assert torch.equal(ours.transform.LayerNorm.weight, gamma)
    assert torch.equal(ours.bias, file["cls.predictions.bias"])


def test_a_base_without_a_head_gets_a_new_one(tmp_path):
    ours = BertForMaskedLM(saved_base(tmp_path / "base"))
    assert not torch.equal(ours.transform.dense.weight, torch.zeros(32, 32))


def test_what_is_hidden():
    torch.manual_seed(0)
    ids = torch.randint(104, 30522, (200, 500), dtype=torch.int32)
    ids[:, 0], ids[:, -2], ids[:, -1] = 101, 102, 0
    read, hidden = hide(ids, mask_id=103, vocab_size=30522)
    assert read.dtype == ids.dtype
    assert torch.equal(read[~hidden], ids[~hidden])
    assert not hidden[:, [0, -2, -1]].any()
    parts = [
        hidden[:, 1:-2].float().mean(),
        (read[hidden] == 103).float().mean(),
        (read[hidden] == ids[hidden]).float().mean(),
    ]
    for part, expected in zip(parts, (0.15, 0.8, 0.1), strict=True):
        assert part.item() == pytest.approx(expected, abs=0.02)


def test_the_program_leaves_a_base(tmp_path, monkeypatch, capsys):
    """On a tiny base that has its head, and 1,280 reviews; train.py's model opens what is left."""
    minilm, reviews = offline_pair()
    folder = tmp_path / "base"
    config = transformers.BertConfig(**TINY | {"vocab_size": 30522, "max_position_embeddings": 128})
    started = transformers.BertForMaskedLM(config)
    draw(started, std=0.3)  # so that few steps change something
    started.save_pretrained(folder)
    shutil.copy(f"{minilm}/tokenizer.json", folder)
    for split, count in ("train", 1280), ("validation", 100):
        table = parquet.read_table(f"{reviews}/{split}-00000-of-00001.parquet")
        parquet.write_table(table.slice(0, count), tmp_path / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(continue_pretraining.offline, "offline_pair", lambda: (folder, tmp_path))
    run_main(continue_pretraining.main)
    before, after = map(float, re.findall(r": loss (\d+\.\d+)", capsys.readouterr().out))
    assert after < before - 0.1
    model = BertForSequenceClassification.from_pretrained("out-read-on")
    assert (tmp_path / "out-read-on" / "tokenizer.json").exists()
    started = BertModel.from_pretrained(folder)
    moved = set()
    for name, tensor in started.state_dict().items():
        delta = model.bert.state_dict()[name] - tensor
        if delta.any() and not name.startswith("pooler."):  # which is drawn anew each time
            moved.add(name)
            assert torch.linalg.matrix_rank(delta, rtol=1e-3) <= 8
    layers = [n for n, m in started.encoder.named_modules() if isinstance(m, torch.nn.Linear)]
    assert moved == {f"encoder.{name}.weight" for name in layers}
    assert not [n for n, _ in model.named_parameters() if ".lora." in n]
    assert lora.count_lora_parameters(model) == 0
