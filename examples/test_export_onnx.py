"""export_onnx.py and onnx_int8.py: what ONNX Runtime and optimum's pipeline say of the files."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import ROOT, difference

from data import encode, load_data, load_tokenizer, make_batch
from examples import export_onnx
from lora import open_adapter
from sample import classify, open_model
from support.errors import run_main
from support.offline import offline_pair

PIPELINE = """
import json, sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
folder, name, *texts = sys.argv[1:]
model = ORTModelForSequenceClassification.from_pretrained(folder, file_name=name)
tokenizer = AutoTokenizer.from_pretrained(folder)
classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
answers = classify(texts)
print(json.dumps([{entry["label"]: entry["score"] for entry in scores} for scores in answers]))
"""
FILES = {
    "config.json",
    "model.onnx",
    "model_quantized.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}


def ask(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.long().numpy() for name, tensor in inputs.items()}
    return torch.from_numpy(session.run(["logits"], feed)[0])


@torch.inference_mode()
def test_logits_of_real_sentences_of_all_lengths(review_adapter, held_out, exported):
    """One by one and in padded batches; then longer texts, up to all 512 positions."""
    folder, said = exported
    model = open_adapter(review_adapter)
    texts = [text for (text,) in load_data(held_out).validation.texts]
    tokenizer = load_tokenizer(offline_pair()[0], 512)
    long = [" ".join(texts[-n:]) for n in (2, 4, 6, 8, 10, 12, 40)]
    encoded = encode(tokenizer, [(text,) for text in texts + long])
    assert len(texts) == 200 and len(set(encoded.lengths)) > 45
    assert encoded.lengths.min() < 8 and encoded.lengths.max() == 512
    runtime = export_onnx.OnnxModel(folder / "model.onnx", model.config)
    shuffled = np.random.default_rng(1).permutation(200)
    singles = [*np.arange(0, 207, 9)[:, None]]
    padded = [*np.array_split(shuffled, 7), np.arange(200, 207)]
    for rows in singles + padded:
        batch = make_batch(encoded, rows)[:3]
        assert len(rows) == 1 or batch[1] is not None
        assert difference(runtime(*batch), model(*batch)) < 1e-4
    assert float(re.search(r"200 reviews are ours within (\S+)", said)[1]) < 1e-4


@torch.inference_mode()
def test_the_files_say_how_long_a_text_may_be(review_adapter, held_out, exported):
    """Which cut so are answered as by sample.py: 32 tokens, as in the training."""
    folder, _ = exported
    texts = [text for (text,) in load_data(held_out).validation.texts]
    long = [(" ".join(texts[-n:]),) for n in (1, 2, 4, 12, 40)]
    length = json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"]
    encoded = encode(load_tokenizer(folder, length), long)
    assert length == 32 and encoded.lengths.max() == 32
    runtime = export_onnx.OnnxModel(folder / "model.onnx", open_adapter(review_adapter).config)
    answers = classify(open_model(review_adapter), long)
    for row, answer in enumerate(answers):
        logits = runtime(*make_batch(encoded, np.array([row]))[:3])
        expected = torch.tensor([[*answer["scores"].values()]])
        assert difference(logits.softmax(-1), expected) < 1e-5


@torch.inference_mode()
def test_pairs_and_padding_count(review_adapter, exported):
    model = open_adapter(review_adapter)
    path = exported[0] / "model.onnx"
    ids = torch.randint(1000, 20000, (3, 21))
    ones = torch.ones_like(ids)
    second = (torch.arange(21) > 9).long().expand(3, 21)
    padded = (torch.arange(21) < 15).long().expand(3, 21)
    plain = ask(path, input_ids=ids, attention_mask=ones, token_type_ids=0 * ones)
    for mask, types in (ones, second), (padded, 0 * ones), (padded, second):
        logits = ask(path, input_ids=ids, attention_mask=mask, token_type_ids=types)
        assert difference(logits, model(ids, mask, types)) < 1e-4 < difference(logits, plain)


def test_a_text_beyond_the_positions_is_no_wrong_answer(exported):
    ones = torch.ones(1, 513, dtype=torch.long)
    inputs = {"input_ids": ones, "attention_mask": ones, "token_type_ids": 0 * ones}
    with pytest.raises(Exception, match=r"512 by 513|broadcast"):
        ask(exported[0] / "model.onnx", **inputs)


def test_nothing_of_lora_and_no_second_file(exported):
    folder, _ = exported
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    # A and B have the rank's 8 rows or columns.
    assert not [tensor.name for tensor in model.graph.initializer if 8 in tensor.dims]
    shapes = {}
    for given in model.graph.input:
        shape = given.type.tensor_type.shape.dim
        shapes[given.name] = {size.dim_param or size.dim_value for size in shape}
    assert list(shapes) == export_onnx.INPUTS
    for sizes in shapes.values():
        assert len(sizes) == 2 and not any(type(size) is int for size in sizes)
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_last_layer_is_exported_for_cls_alone(exported):
    """Its intermediate product reads (B, 1, D); those of the other layers read (B, S, D)."""
    folder, _ = exported
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "model.onnx"))
    widths = []
    for value in model.graph.value_info:
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if len(sizes) == 3 and sizes[2] == 4 * 384:
            widths.append(sizes[1])  # 0 where it is not fixed
    assert 1 in widths and 0 in widths


@pytest.mark.parametrize("name", ["model.onnx", "model_quantized.onnx"])
def test_optimum_opens_it(review_adapter, exported, name):
    """In an environment of its own: optimum-onnx takes transformers below 4.58."""
    texts = ["a gripping, beautifully acted film", "two hours that nobody will give back"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(optimum())}
    command = [sys.executable, "-c", PIPELINE, exported[0], name, *texts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = classify(open_model(review_adapter), [(text,) for text in texts])
    apart = 1e-5 if name == "model.onnx" else 0.1
    for theirs, answer in zip(json.loads(done.stdout), ours, strict=True):
        for label, score in answer["scores"].items():
            assert abs(theirs[label] - score) < apart


def optimum() -> Path:
    """A folder with the packages of requirements-optimum.txt, installed by pip once."""
    home = ROOT / ".older-optimum"
    if not home.is_dir():
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=".older-") as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            listed = ROOT / "examples" / "requirements-optimum.txt"
            target = Path(scratch, "new")
            subprocess.run([*pip, "--target", target, "--requirement", listed], check=True)
            if not home.is_dir():
                target.rename(home)
    return home


def test_refuses_to_replace(review_adapter, exported, monkeypatch, capsys):
    folder, _ = exported
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", review_adapter, str(folder)])
    with pytest.raises(SystemExit) as exit:
        run_main(export_onnx.main)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error == f"error: {folder}: is there already; give another name, or remove it\n"
