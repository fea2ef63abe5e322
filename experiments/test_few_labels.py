"""few_labels.py: which rows it draws, that it trains on these alone, what it makes of the runs."""

import json
import sys

import few_labels
import numpy as np
import pytest
import torch
from pyarrow import csv, parquet

from data import encode, load_tokenizer, make_batch
from support.errors import run_main
from support.offline import offline_pair


def test_as_many_rows_of_each_class():
    labels = np.array([0, 1, 1, 0, 2, 1, 2, 0, 2, 2])
    rows = few_labels.draw_rows(labels, size=2, seed=1)
    assert len({*rows.tolist()}) == 6
    assert np.bincount(labels[rows]).tolist() == [2, 2, 2]
    assert rows.tolist() == few_labels.draw_rows(labels, size=2, seed=1).tolist()
    others = [few_labels.draw_rows(labels, size=2, seed=seed).tolist() for seed in range(2, 9)]
    assert any(sorted(rows.tolist()) != sorted(other) for other in others)


def test_what_is_taken_is_what_is_encoded():
    texts = [("A fine film.",), ("Dull.",), ("It is what it is, and no more.",), ("No.",)]
    labels = np.array([1, 0, 0, 1])
    tokenizer = load_tokenizer(offline_pair()[0], 16)
    rows = np.array([3, 0])
    taken = few_labels.take(encode(tokenizer, texts, labels), rows)
    alone = encode(tokenizer, [texts[row] for row in rows], labels[rows])
    both = np.array([0, 1])
    for ours, expected in zip(make_batch(taken, both), make_batch(alone, both), strict=True):
        assert (ours is expected is None) or torch.equal(ours, expected)


def test_a_run_is_not_done_again(tiny, some_reviews, tmp_path, monkeypatch, capsys):
    table = csv.read_csv(some_reviews)
    for split in "train", "validation":
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    monkeypatch.setattr(few_labels, "offline_pair", lambda: ("no base", str(tmp_path)))
    monkeypatch.setattr(few_labels, "STEPS", 2)
    for method, settings in few_labels.METHODS.items():
        monkeypatch.setitem(few_labels.METHODS, method, settings | {"max_length": 16})
    lines, picture = tmp_path / "runs.jsonl", tmp_path / "few.png"
    words = ["few_labels.py", "--runs", str(lines), "--seeds", "2", "--picture", str(picture)]
    words += ["--base", str(tiny), "--sizes", "4", "8"]
    monkeypatch.setattr(sys, "argv", words)
    run_main(few_labels.main)
    runs = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(runs) == 2 * 3 * 2 and picture.read_bytes().startswith(b"\x89PNG")
    of_lora = [
        100 * r["accuracy"] for r in runs if r["method"] == "LoRA" and r["rows a class"] == 8
    ]
    cell = f"{np.mean(of_lora):.1f} ± {np.std(of_lora, ddof=1):.1f}"
    said = capsys.readouterr().out
    assert f"| LoRA | {said.partition('| LoRA | ')[2].partition(' | ')[0]} | {cell} |" in said
    monkeypatch.setattr(few_labels, "run", lambda *_: pytest.fail("run again"))
    run_main(few_labels.main)
    assert said.endswith(capsys.readouterr().out)
