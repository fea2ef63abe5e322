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

from data import encode, load_task, load_tokenizer, make_batch
from examples import export_onnx
from lora import open_adapter
from sample import classify
from support.console import run_main
from support.offline import offline_pair

PIPELINE = """
import json, sys
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
folder, name, *texts = sys.argv[1:]
model = ORTModelForSequenceClassification.from_pretrained(folder, file_name=name)
classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), top_k=None)
print(json.dumps([{entry["label"]: entry["score"] for entry in scores} for scores in classify(texts)]))
"""


def ask(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(
        session.run(["logits"], {name: t.long().numpy() for name, t in inputs.items()})[0]
    )


@torch.inference_mode()
def test_logits_of_real_sentences_of_all_lengths(review_adapter, held_out, exported):
    """One by one and in padded batches; then longer texts, of several reviews, up to all 512
    positions."""
    model = open_adapter(review_adapter)
    texts = load_task(held_out).validation.texts[0].to_pylist()
    tokenizer = load_tokenizer(offline_pair()[0], 512)
    long = [" ".join(texts[-n:]) for n in (2, 4, 6, 8, 10, 12, 40)]
    encoded = encode(tokenizer, [texts + long])
    assert len(texts) == 200 and len(set(encoded.lengths)) > 45
    assert encoded.lengths.min() < 8 and encoded.lengths.max() == 512
    runtime = export_onnx.OnnxModel(exported[0] / "model.onnx", model)
    shuffled = np.random.default_rng(1).permutation(200)
    largest = 0.0
    for rows in [*np.arange(0, 207, 9)[:, None], *np.array_split(shuffled, 7), np.arange(200, 207)]:
        batch = make_batch(encoded, rows, 0)[:3]
        assert len(rows) == 1 or batch[1] is not None
        largest = max(largest, difference(runtime(*batch), model(*batch)))
    assert largest < 1e-4
    assert float(re.search(r"200 reviews are ours within (\S+)", exported[1])[1]) < 1e-4


@torch.inference_mode()
def test_pairs_and_padding_count(review_adapter, exported):
    model, path = open_adapter(review_adapter), exported[0] / "model.onnx"
    ids, ones = torch.randint(1000, 20000, (3, 21)), torch.ones(3, 21, dtype=torch.long)
    second, padded = (
        (torch.arange(21) > 9).long().expand(3, 21),
        (torch.arange(21) < 15).long().expand(3, 21),
    )
    plain = ask(path, input_ids=ids, attention_mask=ones, token_type_ids=0 * ones)
    for mask, types in (ones, second), (padded, 0 * ones), (padded, second):
        logits = ask(path, input_ids=ids, attention_mask=mask, token_type_ids=types)
        assert difference(logits, model(ids, mask, types)) < 1e-4 < difference(logits, plain)


def test_a_text_beyond_the_positions_is_no_wrong_answer(exported):
    ones = torch.ones(1, 513, dtype=torch.long)
    with pytest.raises(Exception, match=r"512 by 513|broadcast"):
        ask(
            exported[0] / "model.onnx", input_ids=ones, attention_mask=ones, token_type_ids=0 * ones
        )


def test_nothing_of_lora_and_no_second_file(exported):
    folder, _ = exported
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    assert not [
        i.name for i in model.graph.initializer if 8 in i.dims
    ]  # A and B have the rank's 8 rows or columns
    shapes = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in model.graph.input
    }
    assert {name: len(set(shape)) for name, shape in shapes.items()} == dict.fromkeys(
        export_onnx.INPUTS, 2
    )
    assert not any(type(size) is int for shape in shapes.values() for size in shape)
    kept = {
        "config.json",
        "model.onnx",
        "model_quantized.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    assert {path.name for path in folder.iterdir()} == kept


@pytest.mark.parametrize("name", ["model.onnx", "model_quantized.onnx"])
def test_optimum_opens_it(review_adapter, exported, name):
    """In an environment of its own: optimum-onnx takes transformers below 4.58."""
    texts = ["a gripping, beautifully acted film", "two hours that nobody will give back"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(optimum())}
    command = [sys.executable, "-c", PIPELINE, exported[0], name, *texts]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = [
        [scores[label] for label in ("negative", "positive")] for scores in json.loads(done.stdout)
    ]
    ours = classify(open_adapter(review_adapter), load_tokenizer(offline_pair()[0]), texts)
    assert np.abs(np.array(theirs) - ours).max() < (1e-5 if name == "model.onnx" else 0.1)


def optimum() -> Path:
    """A folder with the packages of requirements-optimum.txt, installed by pip once."""
    home = ROOT / ".older-optimum"
    if not home.is_dir():
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=".older-") as scratch:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                f"{scratch}/new",
            ]
            subprocess.run(
                [*pip, "--requirement", ROOT / "examples" / "requirements-optimum.txt"], check=True
            )
            if not home.is_dir():
                Path(f"{scratch}/new").rename(home)
    return home


def test_refuses_to_replace(review_adapter, exported, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export_onnx.py", review_adapter, str(exported[0])])
    with pytest.raises(SystemExit) as exit:
        run_main(export_onnx.main)
    error = capsys.readouterr().err
    assert (
        exit.value.code == 2
        and error.startswith(f"error: {exported[0]} is there already")
        and error.count("\n") == 1
    )
