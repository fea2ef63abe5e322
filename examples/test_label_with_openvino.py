"""label_with_openvino.py labels as sample.py does, and goes on as it does."""

import sys

import pyarrow as pa
import pytest
from pyarrow import csv

import sample
from data import load_data
from examples import label_with_openvino
from support.errors import InputError, run_main


def run(module, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    run_main(module.main)


def test_labels_as_sample_does(review_adapter, held_out, exported, tmp_path, monkeypatch):
    folder, _ = exported
    texts = [text for (text,) in load_data(held_out).validation.texts]
    csv.write_csv(pa.table({"id": range(len(texts)), "text": texts}), tmp_path / "a.csv")
    adapter = ["--adapter", review_adapter]
    table = ["--file", tmp_path / "a.csv", "--scores", "--out"]
    run(sample, monkeypatch, *adapter, *table, tmp_path / "ours.csv")
    ours = csv.read_csv(tmp_path / "ours.csv").to_pydict()
    for dtype, most in ("float32", 1e-5), ("bfloat16", 0.05):
        out = tmp_path / f"{dtype}.csv"
        options = [review_adapter, folder, "--dtype", dtype, *table, out]
        run(label_with_openvino, monkeypatch, *options)
        theirs = csv.read_csv(out).to_pydict()
        assert theirs.keys() == ours.keys() and theirs["text"] == texts
        for name in ours:
            if name.startswith("score_"):
                assert theirs[name] == pytest.approx(ours[name], abs=most)
        for label, other, confidence in zip(
            ours["label"], theirs["label"], ours["confidence"], strict=True
        ):
            assert label == other or confidence < 0.5 + most


WITHOUT = {  # options that cannot be honoured
    "model.onnx: is not there; python -m examples.export_onnx makes it": ["--out", "b.csv"],
    "this only labels": ["--score"],
    "this only labels: give": [],
    "--label-column goes with --score alone": ["--out", "b.csv", "--label-column", "label"],
    "--batch-tokens 0: at least 1": ["--out", "b.csv", "--batch-tokens", "0"],
}


@pytest.mark.parametrize("problem", WITHOUT)
def test_says_what_comes_first(review_adapter, tmp_path, monkeypatch, problem):
    given = [review_adapter, tmp_path, "--file", "a.txt", *WITHOUT[problem]]
    monkeypatch.setattr(sys, "argv", ["label_with_openvino", *map(str, given)])
    with pytest.raises(InputError, match=problem):
        label_with_openvino.main()
