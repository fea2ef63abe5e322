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
from helpers import ROOT, TINY, train_here
from peers import IDS

import lora
from bert import BertForSequenceClassification
from data import load_tokenizer

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
    "several labels": ("base", {"target_modules": ["query", "value"], "r": 4}),
}
OURS = {  # trained here: the base, and the settings
    "a list of targets": ("base", {"target_modules": ["query", "value"], "rank": 4, "alpha": 3}),
    "a regular expression": ("base", {"target_modules": REGEX, "rank": 2}),
    "all-linear": ("base", {"target_modules": "all-linear", "rank": 3, "use_rslora": True}),
    "a base without a pooler": ("no pooler", {"target_modules": "all-linear", "rank": 2}),
    "a regression": ("base", {"target_modules": ["query", "value"], "rank": 4}),
    "several labels": ("base", {"target_modules": ["query", "value"], "rank": 4}),
}
SEVERAL = {"problem_type": "multi_label_classification"}
MERGED = {  # the adapter of OURS, and the type of the numbers
    "merged": ("all-linear", "float32"),
    "merged, float16": ("all-linear", "float16"),
    "merged, a regression": ("a regression", "float32"),
    "merged, several labels": ("several labels", "float32"),
}
MODELS = {  # of transformers: how it is saved
    "bert-tiny": {"config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}},
    "bert-large's first layers": {
        "config": {
            "hidden_size": 1024,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "vocab_size": 99,
        }
    },
    "100 labels": {"config": CONFIG | {"num_labels": 100}},
    "several labels": UNCASED | {"config": CONFIG | SEVERAL | {"num_labels": 6}},
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
        line = peer(release).stdout.readline()
        assert line, said[-2000:]
        said += line
    watch.cancel()
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


def older() -> Path:
    """A folder with the packages of requirements-older.txt, installed by pip once."""
    home = ROOT / ".older"
    if not home.is_dir():
        with tempfile.TemporaryDirectory(dir=ROOT, prefix=".older-") as scratch:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            what = [
                "--target",
                f"{scratch}/new",
                "--requirement",
                ROOT / "tests" / "requirements-older.txt",
            ]
            subprocess.run([*pip, *what], check=True, timeout=250)
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
        head = {"num_labels": 3}
        if name == "a regression":
            head = {"num_labels": 1, "problem_type": "regression"}
        if name == "several labels":
            head |= SEVERAL
        job("train_adapter", f"adapter, {name}", base=f"{folder}/{base}", settings=settings, **head)
    answers = ask(request.param, folder / "making", list(jobs.values()))
    yield request.param, folder, dict(zip(jobs, answers, strict=True))
    peer(request.param).stdin.close()
    assert peer(request.param).wait(60) == 0


def label_names(name: str) -> list[str]:
    """The classes of an adapter of OURS."""
    return ["LABEL_0"] if name == "a regression" else ["bad", "so-so", "good"]


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


def adapters_saved_here(folder: Path) -> dict[str, torch.Tensor]:
    """Saves the adapters of OURS; what each says."""
    expected = {}
    for name, (base, settings) in OURS.items():
        model = BertForSequenceClassification.from_pretrained(folder / base, label_names(name))
        lora.apply_lora_to_model(model, **settings)
        lora.mark_only_lora_as_trainable(model)
        if name == "several labels":
            model.config.problem_type = SEVERAL["problem_type"]
        for number, parameter in enumerate(lora.trained_parameters(model).values()):
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(number))
        lora.save_adapter(model, folder / f"ours, {name}", f"{folder}/{base}")
        expected[name] = says(model)
    return expected


def adapters_trained_on(folder: Path) -> dict[str, torch.Tensor]:
    """Goes on with the training of peft's adapters; what each says then."""
    for name in "rows", "several":
        rows = [{"text": text, "label": i % 3} for i, text in enumerate(TEXTS * 3)]
        if name == "several":
            rows = [row | {"label": [*range(row["label"])]} for row in rows]
            rows[0]["label"] = [2]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    common = {
        "--data": folder / "rows.jsonl",
        "--epochs": 1,
        "--batch-size": 4,
        "--lr": 0.01,
        "--max-length": 16,
    }
    expected = {}
    for name, (base, _) in ADAPTERS.items():
        options = {
            "--model": folder / base,
            "--init-adapter": folder / f"adapter, {name}",
            "--out": folder / f"out {name}",
        }
        if name == "a regression":
            options["--metric"] = "pearson"
        if name == "several labels":
            options["--data"] = folder / "several.jsonl"
        train_here(*(word for option in (common | options).items() for word in option))
        expected[name] = says(lora.open_adapter(folder / f"out {name}" / "final"))
    return expected


def merged_models(folder: Path) -> dict[str, list[dict]]:
    """Merges adapters of ours; what sample.py answers with each."""
    import sample
    from runtime import adapters

    expected = {}
    for name, (adapter, dtype) in MERGED.items():
        source, target = folder / f"ours, {adapter}", folder / name
        adapters.merge(str(source), str(target), dtype=dtype)
        model = sample.open_model(str(target))
        expected[name] = sample.classify(model, [(text,) for text in TEXTS])
    return expected


@pytest.fixture(scope="module")
def ours(theirs) -> tuple[Path, dict, dict]:
    """The folder of what was saved here, what we say of it, and what transformers and peft say."""
    release, folder, _ = theirs
    expected, jobs = {}, {}

    def job(name: str, says, function: str, **arguments) -> None:
        expected[name] = says
        jobs[name] = [function, arguments]

    for name, logits in adapters_saved_here(folder).items():
        base, path = f"{folder}/{OURS[name][0]}", f"{folder}/ours, {name}"
        job(name, logits, "open_adapter", base=base, folder=path)
    for name, logits in adapters_trained_on(folder).items():
        base, path = f"{folder}/{ADAPTERS[name][0]}", f"{folder}/out {name}/final"
        job(f"trained on, {name}", logits, "open_adapter", base=base, folder=path)
    for name, answers in merged_models(folder).items():
        job(name, answers, "classify", folder=f"{folder}/{name}", texts=TEXTS)
    answers = ask(release, folder / "opening", list(jobs.values()))
    return folder, expected, dict(zip(jobs, answers, strict=True))


@pytest.mark.parametrize("name", OURS)
def test_peft_opens_an_adapter(ours, name):
    _, expected, answers = ours
    logits, labels, said = answers[name]
    assert same(logits, expected[name])
    assert labels == label_names(name)
    assert said == []


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_opens_its_adapter_after_training_here(theirs, ours, name):
    _, expected, answers = ours
    logits, labels, said = answers[f"trained on, {name}"]
    before = theirs[2]["train_adapter", f"adapter, {name}"]
    assert same(logits, expected[f"trained on, {name}"])
    assert not same(logits, before, 1e-4)  # it did learn
    assert labels == [f"LABEL_{number}" for number in range(len(logits[0]))]
    assert said == []


@pytest.mark.parametrize(
    ("name", "bound"),
    [("merged", 1e-5), ("merged, float16", 2e-3), ("merged, several labels", 1e-5)],
)
def test_the_pipeline_opens_a_merged_adapter(ours, name, bound):
    folder, expected, answers = ours
    scores, said = answers[name]
    for theirs, answer in zip(scores, expected[name], strict=True):
        assert theirs.keys() == {"bad", "so-so", "good"}
        for label, probability in answer["scores"].items():
            assert abs(theirs[label] - probability) < bound
    assert said == []
    halved = (folder / "merged, float16" / "model.safetensors").stat().st_size
    assert halved < 0.6 * (folder / "merged" / "model.safetensors").stat().st_size


def test_the_pipeline_tells_the_number_of_a_merged_regression(ours):
    """As config.json says "regression": for one label whose problem nobody tells, transformers
    shows a sigmoid."""
    _, expected, answers = ours
    scores, said = answers["merged, a regression"]
    numbers = [answer["score"] for answer in expected["merged, a regression"]]
    assert said == [] and all(list(entry) == ["LABEL_0"] for entry in scores)
    assert same([entry["LABEL_0"] for entry in scores], numbers)
    assert not same(numbers, torch.tensor(numbers).sigmoid(), 0.1)
