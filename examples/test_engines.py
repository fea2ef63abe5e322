"""Other engines open what merging and exporting leave: the same labels and scores of 50 texts.

Of two models: the adapter of the reviews on MiniLM, and one on a base whose tokens stand in
vocab.txt and added_tokens.json, which no engine but transformers reads.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
import zoo
from helpers import ROOT, adapted, edit_json
from test_export_onnx import PIPELINE, optimum
from tokenizers import Tokenizer

from bert import BertForSequenceClassification
from data import load_data
from examples import export_onnx
from lora import save_adapter
from runtime import adapters
from sample import classify, open_model
from support.offline import offline_pair

TRANSFORMERS_JS = "@huggingface/transformers@4.3.2"
SCRIPT = """
import { env, pipeline } from "@huggingface/transformers";
const [home, name, texts] = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = home;
const classify = await pipeline("text-classification", name, { subfolder: "", dtype: "fp32" });
const answers = [];
for (const text of texts) answers.push((await classify(text))[0]);
console.log(JSON.stringify(answers));
"""


@dataclass
class Merged:
    """A folder with a merged model, its ONNX beside it, and what sample.py answers to 50 texts."""

    folder: Path
    texts: list[str]
    answers: list[tuple[str, float]]


@pytest.fixture(scope="module", params=["reviews", "added tokens"])
def merged(request, tmp_path_factory) -> Merged:
    home = tmp_path_factory.mktemp("engines")
    if request.param == "reviews":
        # Cut to no fewer tokens than the base takes: not every engine cuts of itself.
        adapter = shutil.copytree(request.getfixturevalue("review_adapter"), home / "adapter")
        edit_json(adapter / "config.json", model_max_length=512)
        texts = [text for (text,) in load_data(offline_pair()[1]).validation.texts[:50]]
    else:
        base, adapter = home / "base", home / "adapter"
        base.mkdir()
        zoo.build("bert-base-chinese, fine-tuned with [URL] and [USER]", base)
        model = adapted(base, ["query", "value"], rank=4, alpha=6)
        torch.nn.init.normal_(model.classifier.weight, std=4.0)
        save_adapter(model, adapter, str(base))
        # transformers.js cuts a text, and lower-cases a last Σ, in ways of its own.
        texts = [text for text in zoo.hostile_texts(120) if text.strip() and len(text) < 60]
        texts = [text for text in texts if "Σ" not in text][:50]
    adapters.merge(str(adapter), str(home / "merged"))
    model = BertForSequenceClassification.from_pretrained(home / "merged")
    export_onnx.export(model, home / "merged" / "model.onnx")
    answers = classify(open_model(str(adapter)), [(text,) for text in texts])
    assert len(texts) == 50 and len({answer["label"] for answer in answers}) == 2
    pairs = [(answer["label"], answer["confidence"]) for answer in answers]
    return Merged(home / "merged", texts, pairs)


def check(merged: Merged, theirs: list[tuple[str, float]]) -> None:
    for text, (label, score), (name, confidence) in zip(
        merged.texts, theirs, merged.answers, strict=True
    ):
        assert label == name and abs(score - confidence) < 1e-4, text


def ask_each(merged: Merged, ask) -> list[tuple[str, float]]:
    """The answers of `ask(inputs) -> logits (1, C)`, with tokens by tokenizer.json alone."""
    tokenizer = Tokenizer.from_file(str(merged.folder / "tokenizer.json"))
    names = json.loads((merged.folder / "config.json").read_text())["id2label"]
    answers = []
    for text in merged.texts:
        encoding = tokenizer.encode(text)
        rows = encoding.ids, encoding.attention_mask, encoding.type_ids
        logits = ask({n: np.array([row]) for n, row in zip(export_onnx.INPUTS, rows, strict=True)})
        scores = np.exp(logits[0]) / np.exp(logits[0]).sum()
        answers.append((names[str(scores.argmax())], float(scores.max())))
    return answers


def test_onnx_runtime(merged):
    path = merged.folder / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check(merged, ask_each(merged, lambda inputs: session.run(["logits"], inputs)[0]))


def test_openvino(merged):
    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where the CPU has it
    model = openvino.Core().compile_model(merged.folder / "model.onnx", "CPU", settings)
    check(merged, ask_each(merged, lambda inputs: model(inputs)["logits"]))


def test_transformers_pipeline(merged):
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(merged.folder))
    check(merged, [(answer["label"], answer["score"]) for answer in classify(merged.texts)])


def test_optimum(merged):
    words = [sys.executable, "-c", PIPELINE, merged.folder, "model.onnx", *merged.texts]
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(optimum())}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [max(scores.items(), key=lambda item: item[1]) for scores in json.loads(done.stdout)]
    check(merged, answers)


@pytest.mark.skipif(not shutil.which("npm"), reason="needs Node.js with npm")
def test_transformers_js(merged):
    words = json.dumps([str(merged.folder.parent), merged.folder.name, merged.texts])
    command = ["node", transformers_js() / "answer.mjs", words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    check(merged, [(answer["label"], answer["score"]) for answer in json.loads(done.stdout)])


def transformers_js() -> Path:
    """A folder with the package, installed by npm once, and the script beside it."""
    home = ROOT / ".node-transformers"
    if not (home / "answer.mjs").is_file():
        home.mkdir(exist_ok=True)
        npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", home]
        subprocess.run([*npm, TRANSFORMERS_JS], check=True, capture_output=True, timeout=500)
        (home / "answer.mjs").write_text(SCRIPT)
    return home
