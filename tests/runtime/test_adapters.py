"""Merging into a new folder and no other; what an adapter decides when its training goes on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from helpers import ROOT, adapted, difference, edit_json, open_theirs, write_table
from pyarrow import csv, parquet
from safetensors.torch import load_file, save_file

import sample
from bert import BertConfig
from lora import save_adapter
from runtime import adapters
from support.errors import InputError
from train import Config

MERGE = ("-m", "runtime.adapters", "merge")


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> Path:
    """An adapter with random A and B, which nobody may change; its model."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model = adapted(tiny, ["query", "value"], rank=4, alpha=6, dropout=0.1)
    save_adapter(model, folder, str(tiny))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# How long a text may be.


@pytest.mark.parametrize("told, of_tokenizer, length", [
    (None, None, 40),
    (16, None, 16),
    (16, 24, 16),
    (None, 24, 24),
    (64, 24, 40),
    (None, 1000000000000000019884624838656, 40),  # so transformers writes that it is unknown
    (None, "24", 40),
    (None, 2, 40),
    ("many", 24, 40),
    (-1, None, 40),
], ids=str)  # fmt: skip
def test_a_text_is_cut_as_in_the_training(tmp_path, told, of_tokenizer, length):
    config = BertConfig(max_position_embeddings=40, model_max_length=told)
    if of_tokenizer is not None:
        values = {"model_max_length": of_tokenizer}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    assert adapters.text_length(config, tmp_path) == length


@pytest.mark.parametrize("rank", [4, 0])
def test_every_door_cuts_a_text_alike(run, quick, tiny, tmp_path, rank):
    """Answering, labelling, scoring, merged, and transformers' pipeline of the merged model."""
    import transformers

    best, merged = tmp_path / "out" / "best", tmp_path / "merged"
    quick(tmp_path / "out", "--rank", rank, "--lr", "0.05", "--max-length", 12)
    if rank:
        adapters.merge(str(best), str(merged))
    else:
        merged = best
    words = [
        "the",
        "film",
        "is",
        "good",
        "and",
        "bad",
        "it",
        "was",
        "not",
        "a",
        "great",
        "story",
    ] * 60
    texts = [" ".join(words[i : i + count]) for i, count in enumerate((2, 9, 10, 11, 30, 300, 600))]
    model = sample.open_model(str(best))
    expected = [answer["scores"] for answer in sample.classify(model, [(text,) for text in texts])]
    long = sample.open_model(str(best), max_length=40)
    others = [answer["scores"] for answer in sample.classify(long, [(text,) for text in texts])]
    differences = [
        abs(a["positive"] - b["positive"]) for a, b in zip(expected, others, strict=True)
    ]
    assert max(differences[:3]) < 1e-5 < 1e-4 < min(differences[4:])

    def same(found: list[float]) -> bool:
        wanted = [max(scores.values()) for scores in expected]
        return found == pytest.approx(wanted, abs=1e-5)

    file = write_table(tmp_path / "t.csv", {"text": texts, "label": ["positive"] * len(texts)})
    for name in {best, merged}:
        answers = sample.classify(sample.open_model(str(name)), [(text,) for text in texts])
        assert same([answer["confidence"] for answer in answers])
    done = run("sample.py", "--adapter", best, "--file", file, "--out", tmp_path / "o.parquet",
               "--prefix", "p_")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert same(parquet.read_table(tmp_path / "o.parquet")["p_confidence"].to_pylist())
    scored = ["--score", "--out", tmp_path / "s.csv"]
    done = run("sample.py", "--adapter", best, "--file", file, *scored)
    assert done.returncode == 0, done.stderr
    rows = sorted(csv.read_csv(tmp_path / "s.csv").to_pylist(), key=lambda row: row["row"])
    assert same([row["confidence"] for row in rows])
    pipe = transformers.pipeline("text-classification", model=str(merged), device="cpu")
    assert pipe.tokenizer.model_max_length == 12
    assert same([answer["score"] for answer in pipe(texts, truncation=True)])


# Merging.


def test_a_merged_adapter_is_a_plain_bert(run, tiny, adapter, tmp_path):
    """Which transformers opens; it answers as base and adapter do."""
    done = run(*MERGE, adapter, f"{tmp_path}/merged/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["merged"]
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == names
    model = adapted(tiny, ["query", "value"], rank=4, alpha=6)
    input_ids = torch.arange(1000, 1012).view(2, 6)
    with torch.no_grad():
        theirs = open_theirs(tmp_path / "merged")(input_ids).logits
        assert difference(theirs, model(input_ids)) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "bert-base-chinese, fine-tuned with [URL] and [USER]",
        "a copy of it without tokenizer_config.json",
        "deepset/gbert-base",
        "a tokenizer saved as PreTrainedTokenizerFast",
    ],
)
def test_the_pipeline_answers_as_we_do_whatever_tokenizer_the_base_had(name, tmp_path):
    from transformers import pipeline

    (tmp_path / "base").mkdir()
    zoo.build(name, tmp_path / "base")
    model = adapted(tmp_path / "base", ["query", "value"], rank=4, alpha=6)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    adapters.merge(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    texts = [text for text in zoo.hostile_texts(120) if text.strip() and len(text) < 60][:50]
    merged = sample.open_model(str(tmp_path / "merged"))
    theirs = pipeline("text-classification", model=str(tmp_path / "merged"))(texts)
    for ours in sample.open_model(str(tmp_path / "adapter")), merged:
        answers = sample.classify(ours, [(text,) for text in texts])
        for text, answer, other in zip(texts, answers, theirs, strict=True):
            assert answer["label"] == other["label"], text
            assert abs(answer["confidence"] - other["score"]) < 1e-4, text


def test_a_merge_replaces_nothing(adapter, tmp_path):
    adapters.merge(str(adapter), str(tmp_path / "half"), dtype="float16")
    weights = load_file(tmp_path / "half" / "model.safetensors").values()
    assert {tensor.dtype for tensor in weights} == {torch.float16}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    before = contents(tmp_path)
    for name in "half", "empty", "file", "link", "empty/..":
        with pytest.raises(InputError, match=": is there already; give another name, or remove it"):
            adapters.merge(str(adapter), str(tmp_path / name))
        assert contents(tmp_path) == before


def test_numbers_beyond_a_type_are_not_merged(run, tiny, adapter, tmp_path):
    """As infinities they would pass for a model."""
    base = shutil.copytree(tiny, tmp_path / "base")
    state = load_file(base / "model.safetensors")
    state["bert.encoder.layer.1.output.dense.weight"][3, 4] = 70000.0
    save_file(state, base / "model.safetensors", {"format": "pt"})
    words = [*MERGE, adapter, tmp_path / "m", "--model", base, "--dtype"]
    done = run(*words, "float16")
    problem = "error: bert.encoder.layer.1.output.dense.weight has numbers that float16 cannot hold"
    assert done.returncode == 2 and done.stderr.startswith(problem), done.stderr
    assert os.listdir(tmp_path) == ["base"]
    assert run(*words, "bfloat16").returncode == 0


def test_a_merge_that_is_killed_leaves_no_half(run, adapter, tmp_path):
    """And does not stand in the way of the next one."""
    kill = (
        "import os, sys, bert\n"
        "from runtime import adapters\n"
        "bert.PretrainedModel.save_pretrained = lambda self, folder: (\n"
        "    folder.mkdir(), (folder / 'config.json').touch(), os._exit(9))\n"
        "adapters.main()\n"
    )
    command = [sys.executable, "-c", kill, "merge", adapter, tmp_path / "merged"]
    assert subprocess.run(command, cwd=ROOT).returncode == 9
    assert not (tmp_path / "merged").exists()
    assert run(*MERGE, adapter, tmp_path / "merged").returncode == 0
    assert os.listdir(tmp_path) == ["merged"]


def test_a_merge_that_fails_is_one_line_and_leaves_nothing(run, tiny, adapter, tmp_path):
    moved = shutil.copytree(adapter, tmp_path / "moved")
    edit_json(moved / "adapter_config.json", base_model_name_or_path=None)
    broken = shutil.copytree(adapter, tmp_path / "broken")
    os.truncate(broken / "adapter_model.safetensors", 500)
    before, m = os.listdir(tmp_path), tmp_path / "m"
    for words, problem in (
        ([tmp_path / "nowhere", m], "nowhere: no such directory"),
        ([moved, m], "names no base model; give one"),
        ([moved, m, "--model", broken], f"{broken}: cannot be read ("),
        ([broken, m], f"{broken}: cannot be read ("),
        ([adapter], "the following arguments are required: target"),
        ([adapter, m, "--dtype", "int8"], "invalid choice: 'int8'"),
    ):
        done = run(*MERGE, *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert problem in done.stderr
        assert os.listdir(tmp_path) == before
    assert run(*MERGE, moved, m, "--model", tiny).returncode == 0


def test_make_merge(run, adapter, tmp_path):
    alone = {"MAKEFLAGS": "", "MAKEOVERRIDES": "", "ARGS": ""}  # no part of a make around it
    shutil.copytree(adapter, tmp_path / "out" / "best")
    for name in "bert.py", "lora.py", "data.py", "support", "runtime", "Makefile":
        (tmp_path / name).symlink_to(ROOT / name)
    words = f"PYTHON={sys.executable}"
    command = f"import os; os.execlp('make', 'make', 'merge', {words!r})"
    done = run("-c", command, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "model.safetensors").exists()


# Going on with the training of an adapter.


def test_what_an_adapter_decides(adapter, tiny):
    own = {"rank": 4, "alpha": 6.0, "targets": "query,value", "use_rslora": False}
    own |= {"dropout": 0.1, "model": str(tiny)}
    named = {"init_adapter": str(adapter)}
    assert adapters.options_of(named) == own and adapters.options_of({"rank": 8}) == {}
    given = {"model": "other", "dropout": 0.5, "lr": 1e-3, "rank": 4, "alpha": 6.0}
    assert adapters.options_of(named | given) == own | {"model": "other", "dropout": 0.5}
    others = {"rank": 0, "alpha": 3.0, "targets": "query", "use_rslora": True}
    for name, value in others.items():
        problem = (
            f"^--{name.replace('_', '-')} {value}: --init-adapter has {own[name]}, and keeps it"
        )
        with pytest.raises(InputError, match=problem):
            adapters.options_of(named | {name: value})


def test_an_adapter_that_cannot_be_read_is_named(adapter, tmp_path):
    broken = shutil.copytree(adapter, tmp_path / "broken")
    edit_json(broken / "adapter_config.json", use_dora=True)
    with pytest.raises(InputError, match=r"adapter_config\.json: use_dora = True"):
        adapters.options_of({"init_adapter": str(broken)})
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=f"^{broken}: cannot be read"):
        adapters.options_of({"init_adapter": str(broken)})


UNNAMED = ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    "theirs, found, names",
    [
        (["bad", "good"], ["bad", "good"], ["bad", "good"]),
        (["bad", "good"], UNNAMED, ["bad", "good"]),
        (UNNAMED, ["bad", "good"], ["bad", "good"]),
        (["bad", "good"], ["good", "bad"], None),
        (["bad", "good"], ["ham", "spam"], None),
        (UNNAMED, ["a", "b", "c"], None),
        (["LABEL_0"], UNNAMED, None),
    ],
)
def test_an_adapter_goes_on_with_its_own_classes(theirs, found, names):
    if names:
        assert adapters.same_classes(Path("a"), theirs, found) == names
        return
    with pytest.raises(InputError, match=r"^a: has the classes .* and the data .*--label-names"):
        adapters.same_classes(Path("a"), theirs, found)


def test_what_does_not_fit_a_base():
    small = BertConfig(max_position_embeddings=40, type_vocab_size=1, text_pairs=False)
    adapters.check_fit(small, Config(model="b", max_length=40))
    with pytest.raises(InputError, match=r"^--max-length 41: the base has 40 positions$"):
        adapters.check_fit(small, Config(model="b", max_length=41))
    small.text_pairs = True
    with pytest.raises(InputError, match=r"^b takes no pairs of texts: it has no second segment$"):
        adapters.check_fit(small, Config(model="b", max_length=40))


def test_a_push_takes_an_adapter_and_a_name():
    for config in Config(push_to_hub=True), Config(hub_model_id="you/a", rank=0):
        with pytest.raises(InputError, match=r"^--push-to-hub .* takes --hub-model-id owner/name"):
            adapters.check_push(config)
