"""The three programs from end to end, on a tiny base and a few reviews; and their loop beside
train.py's."""

import runpy
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from helpers import open_theirs, saved_base, write_table
from pyarrow import parquet
from safetensors.torch import load_file

import train
from examples import beside_lora
from lora import get_lora_state_dict
from support.offline import offline_pair

# the numbers that a tiny BERT of 2 layers trains, D = 32 and I = 48; and what peft says it is
METHODS = {
    "ia3": ("IA3", 2 * (32 + 32 + 48), "IA3"),
    "dora": ("DoRA", 2 * 2 * (8 * (32 + 32) + 32), "LORA"),
    "adalora": ("AdaLoRA", 2 * 2 * (12 * (32 + 1 + 32)), "ADALORA"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, str]:
    """A random base and 320 real reviews."""
    minilm, reviews = offline_pair()
    folder = tmp_path_factory.mktemp("pair")
    base = saved_base(folder / "base", vocab_size=30522, max_position_embeddings=128)
    shutil.copy(f"{minilm}/tokenizer.json", base)
    rows = parquet.read_table(f"{reviews}/train-00000-of-00001.parquet").slice(0, 320)
    return str(base), write_table(folder / "reviews.csv", rows.to_pydict())


def test_fit_trains_what_train_py_trains(pair, monkeypatch, tmp_path):
    monkeypatch.setattr(train.console, "catch_signals", list)
    config = train.Config(*pair, epochs=2, device="cpu", out=f"{tmp_path}/out")
    train.train(config)
    run = train.set_up(config)
    beside_lora.fit("LoRA", run)
    mine, expected = (
        get_lora_state_dict(run.model),
        load_file(tmp_path / "out" / "final" / "adapter_model.safetensors"),
    )
    assert mine.keys() == expected.keys() and all(
        torch.equal(mine[name], expected[name]) for name in mine
    )


@pytest.mark.parametrize("name", METHODS)
def test_trains_beside_lora(pair, monkeypatch, capsys, tmp_path, name):
    method, count, peft_type = METHODS[name]
    monkeypatch.setattr(beside_lora, "offline_pair", lambda: pair)
    monkeypatch.delitem(
        sys.modules, f"examples.{name}", raising=False
    )  # runpy warns of what is imported already
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "2", "--out", f"{tmp_path}/out"])
    runpy.run_module(f"examples.{name}", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("LoRA ") and lines[0].endswith(
        f"trained {2 * 2 * 8 * (32 + 32):,} + 66"
    )
    assert lines[1].startswith(f"{method} ") and lines[1].endswith(f"trained {count:,} + 66")
    assert lines[-1] == f"the adapter is in {tmp_path}/out"
    opened = peft.PeftModel.from_pretrained(open_theirs(pair[0]), tmp_path / "out")
    assert opened.peft_config["default"].peft_type == peft_type
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path(tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit) as exit:  # what is there is never replaced
        runpy.run_module(f"examples.{name}", run_name="__main__")
    assert exit.value.code == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path}/out is there already: remove it, or give another --out\n"
    )
    assert before == {path: path.read_bytes() for path in Path(tmp_path / "out").iterdir()}
