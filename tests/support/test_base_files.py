"""What config.json and the tokenizer of a base model may not ask for, and what a merged model may
replace."""

import filecmp
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from helpers import ROOT, edit_json, saved_base

import lora
from bert import BertConfig, BertModel
from support.files import InputError

UNSUPPORTED = {
    "hidden_act": "relu",
    "position_embedding_type": "relative_key",
    "is_decoder": True,
    "model_type": "t5",
    "problem_type": "regression",
    "num_attention_heads": 5,
    "id2label": {"1": "yes"},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_config_is_named(tmp_path, name):
    base = saved_base(tmp_path / "base")
    edit_json(base / "config.json", **{name: UNSUPPORTED[name]})
    with pytest.raises(InputError, match=rf"config\.json: .*{name}"):
        BertModel.from_pretrained(base)


@pytest.mark.parametrize("labels, told, meant", [
    (1, None, "regression"), (1, "regression", "regression"), (1, "single_label_classification", None),
    (2, None, "single_label_classification"), (3, "single_label_classification", "single_label_classification"),
    (2, "regression", None), (3, "multi_label_classification", None), (1, "multi_label_classification", None),
])  # fmt: skip
def test_one_label_is_a_number_and_more_are_classes(tmp_path, labels, told, meant):
    """As in transformers, where problem_type is told, and where it is gathered from the labels;
    several outputs of a regression and several right classes, which it knows too, are refused. What
    is written says which it is."""
    base = saved_base(tmp_path / "base", num_labels=labels)
    edit_json(base / "config.json", problem_type=told)
    if meant is None:
        with pytest.raises(
            InputError, match=rf"problem_type '{told}' with {labels} labels is not supported, only "
        ):
            BertConfig.from_json(base / "config.json")
        return
    config = BertConfig.from_json(base / "config.json")
    assert config.problem_type == meant
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    theirs(
        torch.tensor([[1, 2]]),
        labels=torch.tensor([1.0 if labels == 1 else 1]).to(int if labels > 1 else float),
    )
    assert theirs.config.problem_type == meant  # it sets it when it first computes a loss
    config.to_json(base / "config.json")
    written = json.loads((base / "config.json").read_text())
    assert written.get("problem_type") == (meant if labels == 1 else None)


def test_classes_stand_in_the_order_of_their_numbers(tmp_path):
    """A file that was sorted as text has "10" before "2"."""
    names = {str(number): f"class {number}" for number in range(12)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}, sort_keys=True))
    config = BertConfig.from_json(tmp_path / "config.json")
    assert list(config.id2label.values()) == [f"class {number}" for number in range(12)]


# What a merged model may replace.


@pytest.fixture(scope="module")
def trained(quick, tiny, tmp_path_factory) -> Path:
    """A directory with a base and an adapter of it, out/best."""
    home = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny, home / "base")
    quick(home / "out", "--model", home / "base")
    return home


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_merge_replaces_only_a_merged_model_and_only_when_told(run, trained, tmp_path):
    merged, merge = tmp_path / "merged", [ROOT / "lora.py", "merge", trained / "out" / "best"]
    assert run(*merge, f"{merged}/").returncode == 0
    assert os.listdir(tmp_path) == ["merged"] and {p.name for p in merged.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json"}  # fmt: skip
    before = contents(merged)
    done = run(*merge, merged, "--dtype", "float16")
    assert done.returncode == 2 and "holds a model; --overwrite replaces it" in done.stderr
    assert contents(merged) == before
    done = run(*merge, merged, "--dtype", "float16", "--overwrite")
    assert done.returncode == 0 and os.listdir(tmp_path) == ["merged"], done.stderr
    assert os.path.getsize(merged / "model.safetensors") < 0.6 * len(before["model.safetensors"])
    (merged / "thesis.txt").write_text("mine")
    done = run(*merge, merged, "--overwrite")
    assert done.returncode == 2 and "holds thesis.txt, which no merge wrote" in done.stderr
    (tmp_path / "empty").mkdir()
    assert (
        run(*merge, tmp_path / "empty").returncode == 0 and contents(tmp_path / "empty") == before
    )


@pytest.mark.parametrize(
    "folder", ["base", "out/best", "out/best/../../base/", "link", "linked", ".", "file"]
)
def test_a_merge_never_replaces_its_sources(trained, tmp_path, folder, monkeypatch):
    home = shutil.copytree(trained, tmp_path / "home")
    edit_json(
        home / "out" / "best" / "adapter_config.json", base_model_name_or_path=str(home / "base")
    )
    (home / "link").symlink_to(home / "base")
    (home / "file").write_text("mine")
    if folder == "linked":  # the base is links into it, as in the Hub's cache
        (home / "base").rename(home / "linked")
        (home / "base").mkdir()
        for path in (home / "linked").iterdir():
            (home / "base" / path.name).symlink_to(path)
    before = contents(home)
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", ["lora.py", "merge", "out/best", folder, "--overwrite"])
    with pytest.raises(InputError, match=rf"^{re.escape(folder)}: .*; give another directory"):
        lora.main()
    assert contents(home) == before


def test_make_merge_goes_on_working(run, trained, tmp_path):
    alone = {
        "MAKEFLAGS": "",
        "MAKEOVERRIDES": "",
        "ARGS": "",
    }  # not as a part of the make which runs the tests
    (tmp_path / "out").symlink_to(trained / "out")
    for name in "bert.py", "lora.py", "support", "Makefile":
        (tmp_path / name).symlink_to(ROOT / name)
    for _ in range(2):
        done = run(
            "-c",
            "import os, sys; os.execlp('make', 'make', 'merge', f'PYTHON={sys.executable}')",
            cwd=tmp_path,
            env=alone,
        )
        assert done.returncode == 0, done.stderr
    assert filecmp.cmp(
        tmp_path / "merged" / "tokenizer.json", trained / "base" / "tokenizer.json", shallow=False
    )


def test_pairs_need_a_second_segment(refused, tiny, tmp_path, capsys):
    """As in RoBERTa's way to train, which some BERTs follow."""
    (tmp_path / "pairs.csv").write_text(
        "sentence1,sentence2,label\n" + "".join(f"a{i},b,{i % 2}\n" for i in range(20))
    )
    base = saved_base(tmp_path / "base", vocab_size=30522, type_vocab_size=1)
    shutil.copy(tiny / "tokenizer.json", base)
    capsys.readouterr()  # what transformers says
    where = ["--data", tmp_path / "pairs.csv", "--max-length", 16, "--out", tmp_path / "out"]
    assert (
        "has no second segment" in refused("--model", base, *where)
        and not (tmp_path / "out").exists()
    )
