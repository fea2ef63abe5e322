"""Three programs from end to end, on a tiny base and few reviews; their loop beside train.py's."""

import runpy
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
from helpers import open_theirs, saved_base, signals_restored, write_table
from pyarrow import parquet
from safetensors.torch import load_file

import train
from examples import beside_lora
from lora import get_lora_state_dict
from support.offline import offline_pair

# The numbers that a tiny BERT of 2 layers trains, D = 32 and I = 48; and what peft says it is.
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


def test_fit_trains_what_train_py_trains(pair, tmp_path):
    base, data = pair
    out = str(tmp_path / "out")
    config = train.Config(model=base, data=data, epochs=2, device="cpu", out=out)
    with signals_restored():
        train.train(config)
    setup = train.set_up(config)
    beside_lora.fit("LoRA", setup)
    mine = get_lora_state_dict(setup.model)
    expected = load_file(tmp_path / "out" / "final" / "adapter_model.safetensors")
    assert mine.keys() == expected.keys()
    assert all(torch.equal(mine[name], expected[name]) for name in mine)


@pytest.mark.parametrize("name", METHODS)
def test_trains_beside_lora(pair, monkeypatch, capsys, tmp_path, name):
    method, count, peft_type = METHODS[name]
    out = tmp_path / "out"
    monkeypatch.setattr(beside_lora, "offline_pair", lambda: pair)
    # runpy warns of what is imported already.
    monkeypatch.delitem(sys.modules, f"examples.{name}", raising=False)
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "2", "--out", str(out)])
    runpy.run_module(f"examples.{name}", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("LoRA ")
    assert lines[0].endswith(f"trained {2 * 2 * 8 * (32 + 32):,} + 66")
    assert lines[1].startswith(f"{method} ")
    assert lines[1].endswith(f"trained {count:,} + 66")
    assert lines[-1] == f"the adapter is in {out}"
    opened = peft.PeftModel.from_pretrained(open_theirs(pair[0]), out)
    assert opened.peft_config["default"].peft_type == peft_type
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path(out).iterdir()}
    with pytest.raises(SystemExit) as exit:  # what is there is never replaced
        runpy.run_module(f"examples.{name}", run_name="__main__")
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error == f"error: {out}: is there already; give another name, or remove it\n"
    assert before == {path: path.read_bytes() for path in Path(out).iterdir()}
