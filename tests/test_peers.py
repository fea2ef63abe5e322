"""transformers and peft of two years, both ways: what they saved opens here, and what was saved
here opens there."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY
from peers import IDS

import lora
import sample
import train
from bert import BertForSequenceClassification
from data import load_tokenizer
from support.options import parse_options

TEXTS = [
    "A great film",
    "ein schöner Film, SO schön",
    "一部好电影 great",
    "фильм 🎬",
    "[MASK] \x07 naïve É",
]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "great",
    "film",
    "##s",
    "a",
    "A",
    "schön",
    "Film",
    "SO",
    "schoner",
]
LETTERS = sorted({*"".join(TEXTS).lower(), *"".join(TEXTS)} - {" ", "\x07", *WORDS})
VOCAB = list(dict.fromkeys([*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]))
CONFIG = TINY | {"max_position_embeddings": 64, "vocab_size": len(VOCAB)}
UNCASED = {"config": CONFIG, "vocab": VOCAB, "rules": {"do_lower_case": True}}
CASED = {"config": CONFIG, "vocab": VOCAB, "rules": {"do_lower_case": False}}
REGEX = r".*encoder\.layer\.1\.(attention\.self\.(query|key)|output\.dense)"

ADAPTERS = {  # of peft: the base, and the settings
    "a list of targets": ("base", {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 3}),
    "a regular expression": ("base", {"target_modules": REGEX, "r": 2, "lora_dropout": 0.1}),
    "all-linear": ("base", {"target_modules": "all-linear", "r": 3}),
    "use_rslora": ("base", {"target_modules": ["key", "dense"], "r": 4, "use_rslora": True}),
    "modules_to_save": ("base", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "a base without a pooler": (
        "no pooler",
        {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]},
    ),
    "a regression": ("base", {"target_modules": ["query", "value"], "r": 4}),
}
OURS = {  # trained here: the base, and the settings
    "a list of targets": ("base", {"target_modules": ["query", "value"], "rank": 4, "alpha": 3}),
    "a regular expression": ("base", {"target_modules": REGEX, "rank": 2}),
    "all-linear": ("base", {"target_modules": "all-linear", "rank": 3, "use_rslora": True}),
    "a base without a pooler": ("no pooler", {"target_modules": "all-linear", "rank": 2}),
    "a regression": ("base", {"target_modules": ["query", "value"], "rank": 4}),
}
MODELS = {  # of transformers: how it is saved
    "bert-tiny": {"config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}},
    "bert-large": {
        "config": {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "vocab_size": 99,
        }
    },
    "100 labels": {"config": CONFIG | {"num_labels": 100}},
    "float16": {"config": CONFIG, "dtype": "float16"},
    "uncased": UNCASED,
    "cased, Chinese, multilingual": CASED,
    "accents kept": UNCASED | {"rules": {"strip_accents": False, "tokenize_chinese_chars": False}},
}


@functools.cache
def peer(release: str) -> subprocess.Popen:
    """A process of one release, whose transformers and peft take seconds to import."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(older() if release == "older" else ""),
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "peers.py"], stderr=subprocess.STDOUT, **pipes
    )


def ask(release: str, folder: Path, jobs: list) -> list:
    """The answers of one release to a list of jobs."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    print(folder, file=peer(release).stdin, flush=True)
    said, watch = "", threading.Timer(250, peer(release).kill)
    watch.start()
    while f"done: {folder}\n" not in said:
        said += (line := peer(release).stdout.readline())
        assert line, said[-2000:]
    watch.cancel()
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


def older() -> Path:
    """A folder with the packages of requirements-older.txt, installed by pip once."""
    home = ROOT / ".older"
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
                [*pip, "--requirement", ROOT / "requirements-older.txt"], check=True, timeout=250
            )
            if not home.is_dir():  # another process may have been quicker
                Path(f"{scratch}/new").rename(home)
    return home


@pytest.fixture(scope="module", params=["newest", pytest.param("older", marks=pytest.mark.slow)])
def theirs(request, tmp_path_factory) -> tuple[str, Path, dict]:
    """A release, the folder of what its transformers and peft saved, and what they say of it."""
    folder = tmp_path_factory.mktemp(request.param)
    jobs = {}

    def job(function: str, name: str, **arguments) -> None:
        jobs[function, name] = [function, {"folder": f"{folder}/{name}", **arguments}]

    job("save_model", "base", kind="BertModel", **UNCASED)
    job("save_model", "no pooler", kind="BertForMaskedLM", **UNCASED)
    for name, how in MODELS.items():
        job("save_model", name, kind="BertForSequenceClassification", **how)
        if "vocab" in how:
            job("tokens", name, texts=TEXTS)
    for name, (base, settings) in ADAPTERS.items():
        head = (
            {"num_labels": 1, "problem_type": "regression"}
            if name == "a regression"
            else {"num_labels": 3}
        )
        job("train_adapter", f"adapter, {name}", base=f"{folder}/{base}", settings=settings, **head)
    answers = ask(request.param, folder / "making", list(jobs.values()))
    yield request.param, folder, dict(zip(jobs, answers, strict=True))
    peer(request.param).stdin.close()
    assert peer(request.param).wait(60) == 0


@torch.no_grad()
def says(model: BertForSequenceClassification) -> torch.Tensor:
    input_ids = torch.tensor(IDS)
    return model.eval()(input_ids, (input_ids > 0).long())


def same(a, b, bound: float = 1e-5) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and (a - b).abs().max().item() < bound


# What was saved there opens here.


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers(theirs, name):
    _, folder, answers = theirs
    model = BertForSequenceClassification.from_pretrained(f"{folder}/{name}")
    assert same(says(model), answers["save_model", name])
    if "vocab" in MODELS[name]:
        for absent in (
            None,
            "tokenizer.json",
        ):  # then vocab.txt is read, with the rules of tokenizer_config.json
            if absent:
                (folder / name / absent).rename(folder / name / "set aside.json")
            tokenizer = load_tokenizer(f"{folder}/{name}")
            assert [tokenizer.encode(text).ids for text in TEXTS] == answers["tokens", name]


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_of_peft(theirs, name):
    _, folder, answers = theirs
    model = lora.open_adapter(f"{folder}/adapter, {name}")
    assert same(says(model), answers["train_adapter", f"adapter, {name}"])
    assert not same(says(model)[:1], says(model)[1:])


# What was saved here opens there.


@pytest.fixture(scope="module")
def ours(theirs) -> tuple[Path, dict, dict]:
    """The folder of what was saved here, what we say of it, and what a release of transformers and
    peft says."""
    release, folder, _ = theirs
    expected, jobs = {}, {}
    for name, (base, settings) in OURS.items():
        names = ["LABEL_0"] if name == "a regression" else ["bad", "so-so", "good"]
        model = BertForSequenceClassification.from_pretrained(f"{folder}/{base}", names)
        lora.apply_lora_to_model(model, **settings)
        lora.mark_only_lora_as_trainable(model)
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
        lora.save_adapter(model, folder / f"ours, {name}", f"{folder}/{base}")
        expected[name] = says(model)
        jobs[name] = [
            "open_adapter",
            {"base": f"{folder}/{base}", "folder": f"{folder}/ours, {name}"},
        ]
    rows = ({"text": text, "label": i % 3} for i, text in enumerate(TEXTS * 3))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (base, _) in ADAPTERS.items():
        options = [
            "--model",
            f"{folder}/{base}",
            "--data",
            f"{folder}/rows.jsonl",
            "--out",
            f"{folder}/out {name}",
        ]
        options += [
            "--init-adapter",
            f"{folder}/adapter, {name}",
            "--epochs",
            "1",
            "--batch-size",
            "4",
            "--lr",
            "0.01",
        ]
        options += ["--metric", "pearson"] if name == "a regression" else []
        train.train(train.Config(**parse_options(train.Config, [*options, "--max-length", "16"])))
        expected[f"trained on, {name}"] = says(lora.open_adapter(f"{folder}/out {name}/final"))
        jobs[f"trained on, {name}"] = [
            "open_adapter",
            {"base": f"{folder}/{base}", "folder": f"{folder}/out {name}/final"},
        ]
    for name in "merged", "merged, float16", "merged, a regression":
        adapter = "a regression" if "regression" in name else "all-linear"
        dtype = "float16" if "float16" in name else "float32"
        command = [
            "lora.py",
            "merge",
            f"{folder}/ours, {adapter}",
            f"{folder}/{name}",
            "--dtype",
            dtype,
        ]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        model = BertForSequenceClassification.from_pretrained(f"{folder}/{name}")
        expected[name] = sample.classify(model, load_tokenizer(f"{folder}/{name}"), TEXTS)
        jobs[name] = ["classify", {"folder": f"{folder}/{name}", "texts": TEXTS}]
    return (
        folder,
        expected,
        dict(zip(jobs, ask(release, folder / "opening", list(jobs.values())), strict=True)),
    )


@pytest.mark.parametrize("name", OURS)
def test_peft_opens_an_adapter(ours, name):
    _, expected, answers = ours
    logits, labels, said = answers[name]
    assert same(logits, expected[name])
    assert labels == (["LABEL_0"] if name == "a regression" else ["bad", "so-so", "good"])
    assert said == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_opens_its_adapter_after_training_here(theirs, ours, name):
    _, expected, answers = ours
    logits, labels, said = answers[f"trained on, {name}"]
    assert same(logits, expected[f"trained on, {name}"])
    assert not same(logits, theirs[2]["train_adapter", f"adapter, {name}"], 1e-4)  # it did learn
    assert (labels, said) == (
        ["LABEL_0"] if name == "a regression" else ["LABEL_0", "LABEL_1", "LABEL_2"],
        [],
    )


@pytest.mark.parametrize(("name", "bound"), [("merged", 1e-5), ("merged, float16", 2e-3)])
def test_the_pipeline_opens_a_merged_adapter(ours, name, bound):
    folder, expected, answers = ours
    scores, said = answers[name]
    assert all(list(entry) != [] and set(entry) == {"bad", "so-so", "good"} for entry in scores)
    assert same(
        [[entry[label] for label in ("bad", "so-so", "good")] for entry in scores],
        expected[name],
        bound,
    )
    assert said == []
    halved = (folder / "merged, float16" / "model.safetensors").stat().st_size
    assert halved < 0.6 * (folder / "merged" / "model.safetensors").stat().st_size


def test_the_pipeline_tells_the_number_of_a_merged_regression(ours):
    """By itself, as config.json says "regression": of one label whose problem nobody tells it shows
    a sigmoid."""
    _, expected, answers = ours
    scores, said = answers["merged, a regression"]
    assert all(list(entry) == ["LABEL_0"] for entry in scores) and said == []
    numbers = torch.tensor([[entry["LABEL_0"]] for entry in scores])
    assert same(numbers, expected["merged, a regression"])
    assert not same(numbers, torch.as_tensor(expected["merged, a regression"]).sigmoid(), 0.1)
